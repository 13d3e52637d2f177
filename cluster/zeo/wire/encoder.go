package wire

import (
	"encoding/binary"
	"math"

	"github.com/neozodb/neo/cluster/tid"
)

// Encoder appends messages to b, as pickles of protocol 3 without memo or as
// msgpack.
//
// Containers are written between Begin… and End…, both of which are told the number
// of items.
type Encoder struct {
	B       []byte // what has been written
	Msgpack bool   // msgpack, not pickles
}

// BeginFrame opens a frame and returns its place for EndFrame.
func (e *Encoder) BeginFrame() int {
	at := len(e.B)
	e.B = append(e.B, 0, 0, 0, 0)
	return at
}

// EndFrame closes the frame that BeginFrame opened at its place.
func (e *Encoder) EndFrame(at int) {
	binary.BigEndian.PutUint32(e.B[at:], uint32(len(e.B)-at-4))
}

var (
	pickleReply  = []byte("X\x06\x00\x00\x00.reply")
	msgpackReply = []byte("\xa6.reply")
)

// FlagResult and FlagException say what an answer of the server holds.
const (
	FlagResult    = 0
	FlagException = 2
)

// BeginReply opens the frame of an answer; its value has to follow.
func (e *Encoder) BeginReply(id *MsgID, flag int64) int {
	at := e.BeginFrame()
	if e.Msgpack {
		e.B = append(e.B, 0x94)
		e.id(id)
		e.Int(flag)
		e.B = append(e.B, msgpackReply...)
	} else {
		e.B = append(e.B, 0x80, 3, '(')
		e.id(id)
		e.Int(flag)
		e.B = append(e.B, pickleReply...)
	}
	return at
}

// EndMessage closes what BeginReply or BeginNotice opened.
func (e *Encoder) EndMessage(at int) {
	if !e.Msgpack {
		e.B = append(e.B, 't', '.')
	}
	e.EndFrame(at)
}

// BeginNotice opens the frame of a notification; the tuple of its arguments has
// to follow.
func (e *Encoder) BeginNotice(name string) int {
	at := e.BeginFrame()
	if e.Msgpack {
		e.B = append(e.B, 0x94, 0, 0xc3)
	} else {
		e.B = append(e.B, 0x80, 3, '(', 'K', 0, 0x88)
	}
	e.Text(name)
	return at
}

func (e *Encoder) id(id *MsgID) {
	switch {
	case id.raw != nil:
		e.B = append(e.B, id.raw...)
	case id.Pair:
		e.BeginTuple(2)
		e.Bytes(id.A[:])
		e.Bytes(id.B[:])
		e.EndTuple(2)
	default:
		e.Int(id.N)
	}
}

// Null writes None.
func (e *Encoder) Null() {
	if e.Msgpack {
		e.B = append(e.B, 0xc0)
	} else {
		e.B = append(e.B, 'N')
	}
}

// Bool writes a bool.
func (e *Encoder) Bool(v bool) {
	t, f := byte(0x88), byte(0x89)
	if e.Msgpack {
		t, f = 0xc3, 0xc2
	}
	if !v {
		t = f
	}
	e.B = append(e.B, t)
}

// Int writes an int.
func (e *Encoder) Int(n int64) {
	if e.Msgpack {
		e.msgpackInt(n)
		return
	}
	switch {
	case n >= 0 && n < 1<<8:
		e.B = append(e.B, 'K', byte(n))
	case n >= 0 && n < 1<<16:
		e.B = append(e.B, 'M', byte(n), byte(n>>8))
	case n >= math.MinInt32 && n <= math.MaxInt32:
		e.B = binary.LittleEndian.AppendUint32(append(e.B, 'J'), uint32(n))
	default: // the shortest two's complement, little-endian
		size := 8
		for size > 1 && n == n<<(64-8*(size-1))>>(64-8*(size-1)) {
			size--
		}
		e.B = append(e.B, 0x8a, byte(size))
		for range size {
			e.B = append(e.B, byte(n))
			n >>= 8
		}
	}
}

func (e *Encoder) msgpackInt(n int64) {
	switch {
	case n >= -32 && n < 128:
		e.B = append(e.B, byte(n))
	case n >= 0 && n < 1<<8:
		e.B = append(e.B, 0xcc, byte(n))
	case n >= 0 && n < 1<<16:
		e.B = binary.BigEndian.AppendUint16(append(e.B, 0xcd), uint16(n))
	case n >= 0 && n < 1<<32:
		e.B = binary.BigEndian.AppendUint32(append(e.B, 0xce), uint32(n))
	case n >= 0:
		e.B = binary.BigEndian.AppendUint64(append(e.B, 0xcf), uint64(n))
	case n >= math.MinInt8:
		e.B = append(e.B, 0xd0, byte(n))
	case n >= math.MinInt16:
		e.B = binary.BigEndian.AppendUint16(append(e.B, 0xd1), uint16(n))
	case n >= math.MinInt32:
		e.B = binary.BigEndian.AppendUint32(append(e.B, 0xd2), uint32(n))
	default:
		e.B = binary.BigEndian.AppendUint64(append(e.B, 0xd3), uint64(n))
	}
}

// big writes an int beyond 64 bits, given in little-endian two's complement.
func (e *Encoder) big(b []byte) {
	switch {
	case e.Msgpack && len(b) == 9 && b[8] == 0:
		e.B = binary.BigEndian.AppendUint64(append(e.B, 0xcf), binary.LittleEndian.Uint64(b))
	case e.Msgpack: // it has none
		e.Text(decimal(b))
	case len(b) < 1<<8:
		e.B = append(append(e.B, 0x8a, byte(len(b))), b...)
	default:
		e.B = append(binary.LittleEndian.AppendUint32(append(e.B, 0x8b), uint32(len(b))), b...)
	}
}

// Float writes a float.
func (e *Encoder) Float(f float64) {
	if e.Msgpack {
		e.B = append(e.B, 0xcb)
	} else {
		e.B = append(e.B, 'G')
	}
	e.B = binary.BigEndian.AppendUint64(e.B, math.Float64bits(f))
}

// sized appends the head of n bytes: one opcode for lengths of 8 bits, and so on.
func (e *Encoder) sized(n int, op8, op16, op32 byte) {
	switch {
	case n < 1<<8 && op8 != 0:
		e.B = append(e.B, op8, byte(n))
	case n < 1<<16 && op16 != 0:
		e.B = binary.BigEndian.AppendUint16(append(e.B, op16), uint16(n))
	default:
		e.B = binary.BigEndian.AppendUint32(append(e.B, op32), uint32(n))
	}
}

// Bytes writes bytes.
func (e *Encoder) Bytes(p []byte) {
	switch {
	case e.Msgpack:
		e.sized(len(p), 0xc4, 0xc5, 0xc6)
	case len(p) < 1<<8:
		e.B = append(e.B, 'C', byte(len(p)))
	default:
		e.B = binary.LittleEndian.AppendUint32(append(e.B, 'B'), uint32(len(p)))
	}
	e.B = append(e.B, p...)
}

// TID writes a transaction id as 8 bytes.
func (e *Encoder) TID(t tid.TID) {
	e.head8()
	e.B = t.Append(e.B)
}

// OID writes an object id as 8 bytes.
func (e *Encoder) OID(o tid.OID) {
	e.head8()
	e.B = o.Append(e.B)
}

func (e *Encoder) head8() {
	if e.Msgpack {
		e.B = append(e.B, 0xc4, 8)
	} else {
		e.B = append(e.B, 'C', 8)
	}
}

// TIDOrNull writes a transaction id, None for Zero.
func (e *Encoder) TIDOrNull(t tid.TID) {
	if t == tid.Zero {
		e.Null()
	} else {
		e.TID(t)
	}
}

// Data writes bytes, None for nil.
func (e *Encoder) Data(p []byte) {
	if p == nil {
		e.Null()
	} else {
		e.Bytes(p)
	}
}

// Text writes a str.
func (e *Encoder) Text(s string) {
	switch {
	case !e.Msgpack:
		e.B = binary.LittleEndian.AppendUint32(append(e.B, 'X'), uint32(len(s)))
	case len(s) < 32:
		e.B = append(e.B, 0xa0|byte(len(s)))
	default:
		e.sized(len(s), 0xd9, 0xda, 0xdb)
	}
	e.B = append(e.B, s...)
}

func (e *Encoder) msgpackHead(n int, fix, op16, op32 byte) {
	if n < 16 {
		e.B = append(e.B, fix|byte(n))
	} else {
		e.sized(n, 0, op16, op32)
	}
}

// BeginTuple begins a tuple of n items.
func (e *Encoder) BeginTuple(n int) {
	if e.Msgpack {
		e.msgpackHead(n, 0x90, 0xdc, 0xdd)
	} else if n > 3 {
		e.B = append(e.B, '(')
	}
}

// EndTuple ends a tuple of n items.
func (e *Encoder) EndTuple(n int) {
	if e.Msgpack {
		return
	}
	switch n {
	case 0:
		e.B = append(e.B, ')')
	case 1, 2, 3:
		e.B = append(e.B, 0x84+byte(n))
	default:
		e.B = append(e.B, 't')
	}
}

// BeginList begins a list of n items.
func (e *Encoder) BeginList(n int) {
	if e.Msgpack {
		e.msgpackHead(n, 0x90, 0xdc, 0xdd)
		return
	}
	e.B = append(e.B, ']')
	if n > 1 {
		e.B = append(e.B, '(')
	}
}

// EndList ends a list of n items.
func (e *Encoder) EndList(n int) {
	switch {
	case e.Msgpack || n == 0:
	case n == 1:
		e.B = append(e.B, 'a')
	default:
		e.B = append(e.B, 'e')
	}
}

// BeginDict begins a dict of n items, each of them a key and a value.
func (e *Encoder) BeginDict(n int) {
	if e.Msgpack {
		e.msgpackHead(n, 0x80, 0xde, 0xdf)
		return
	}
	e.B = append(e.B, '}')
	if n > 1 {
		e.B = append(e.B, '(')
	}
}

// EndDict ends a dict of n items.
func (e *Encoder) EndDict(n int) {
	switch {
	case e.Msgpack || n == 0:
	case n == 1:
		e.B = append(e.B, 's')
	default:
		e.B = append(e.B, 'u')
	}
}

// OIDs writes a list of object ids.
func (e *Encoder) OIDs(oids []tid.OID) {
	e.BeginList(len(oids))
	for _, o := range oids {
		e.OID(o)
	}
	e.EndList(len(oids))
}
