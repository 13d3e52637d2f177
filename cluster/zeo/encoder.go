package zeo

import (
	"encoding/binary"
	"math"

	"github.com/neozodb/neo/cluster/tid"
)

// encoder appends messages to b, as pickles of protocol 3 without memo or as
// msgpack.
//
// Containers are written between begin and end, both of which are told the number
// of items.
type encoder struct {
	b       []byte
	msgpack bool
}

// beginFrame opens a frame and returns its place for endFrame.
func (e *encoder) beginFrame() int {
	at := len(e.b)
	e.b = append(e.b, 0, 0, 0, 0)
	return at
}

func (e *encoder) endFrame(at int) {
	binary.BigEndian.PutUint32(e.b[at:], uint32(len(e.b)-at-4))
}

var (
	pickleReply  = []byte("X\x06\x00\x00\x00.reply")
	msgpackReply = []byte("\xa6.reply")
)

// Flags of what the server sends.
const (
	flagResult    = 0
	flagException = 2
)

// beginReply opens the frame of an answer; its value has to follow.
func (e *encoder) beginReply(id *msgID, flag int64) int {
	at := e.beginFrame()
	if e.msgpack {
		e.b = append(e.b, 0x94)
		e.id(id)
		e.int(flag)
		e.b = append(e.b, msgpackReply...)
	} else {
		e.b = append(e.b, 0x80, 3, '(')
		e.id(id)
		e.int(flag)
		e.b = append(e.b, pickleReply...)
	}
	return at
}

// endMessage closes what beginReply or beginNotice opened.
func (e *encoder) endMessage(at int) {
	if !e.msgpack {
		e.b = append(e.b, 't', '.')
	}
	e.endFrame(at)
}

// beginNotice opens the frame of a notification; the tuple of its arguments has
// to follow.
func (e *encoder) beginNotice(name string) int {
	at := e.beginFrame()
	if e.msgpack {
		e.b = append(e.b, 0x94, 0, 0xc3)
	} else {
		e.b = append(e.b, 0x80, 3, '(', 'K', 0, 0x88)
	}
	e.text(name)
	return at
}

func (e *encoder) id(id *msgID) {
	switch {
	case id.raw != nil:
		e.b = append(e.b, id.raw...)
	case id.pair:
		e.beginTuple(2)
		e.bytes(id.a[:])
		e.bytes(id.b[:])
		e.endTuple(2)
	default:
		e.int(id.n)
	}
}

func (e *encoder) null() {
	if e.msgpack {
		e.b = append(e.b, 0xc0)
	} else {
		e.b = append(e.b, 'N')
	}
}

func (e *encoder) bool(v bool) {
	t, f := byte(0x88), byte(0x89)
	if e.msgpack {
		t, f = 0xc3, 0xc2
	}
	if !v {
		t = f
	}
	e.b = append(e.b, t)
}

func (e *encoder) int(n int64) {
	if e.msgpack {
		e.msgpackInt(n)
		return
	}
	switch {
	case n >= 0 && n < 1<<8:
		e.b = append(e.b, 'K', byte(n))
	case n >= 0 && n < 1<<16:
		e.b = append(e.b, 'M', byte(n), byte(n>>8))
	case n >= math.MinInt32 && n <= math.MaxInt32:
		e.b = binary.LittleEndian.AppendUint32(append(e.b, 'J'), uint32(n))
	default: // the shortest two's complement, little-endian
		size := 8
		for size > 1 && n == n<<(64-8*(size-1))>>(64-8*(size-1)) {
			size--
		}
		e.b = append(e.b, 0x8a, byte(size))
		for range size {
			e.b = append(e.b, byte(n))
			n >>= 8
		}
	}
}

func (e *encoder) msgpackInt(n int64) {
	switch {
	case n >= -32 && n < 128:
		e.b = append(e.b, byte(n))
	case n >= 0 && n < 1<<8:
		e.b = append(e.b, 0xcc, byte(n))
	case n >= 0 && n < 1<<16:
		e.b = binary.BigEndian.AppendUint16(append(e.b, 0xcd), uint16(n))
	case n >= 0 && n < 1<<32:
		e.b = binary.BigEndian.AppendUint32(append(e.b, 0xce), uint32(n))
	case n >= 0:
		e.b = binary.BigEndian.AppendUint64(append(e.b, 0xcf), uint64(n))
	case n >= math.MinInt8:
		e.b = append(e.b, 0xd0, byte(n))
	case n >= math.MinInt16:
		e.b = binary.BigEndian.AppendUint16(append(e.b, 0xd1), uint16(n))
	case n >= math.MinInt32:
		e.b = binary.BigEndian.AppendUint32(append(e.b, 0xd2), uint32(n))
	default:
		e.b = binary.BigEndian.AppendUint64(append(e.b, 0xd3), uint64(n))
	}
}

// big writes an int beyond 64 bits, given in little-endian two's complement.
func (e *encoder) big(b []byte) {
	switch {
	case e.msgpack && len(b) == 9 && b[8] == 0:
		e.b = binary.BigEndian.AppendUint64(append(e.b, 0xcf), binary.LittleEndian.Uint64(b))
	case e.msgpack: // it has none
		e.text(decimal(b))
	case len(b) < 1<<8:
		e.b = append(append(e.b, 0x8a, byte(len(b))), b...)
	default:
		e.b = append(binary.LittleEndian.AppendUint32(append(e.b, 0x8b), uint32(len(b))), b...)
	}
}

func (e *encoder) float(f float64) {
	if e.msgpack {
		e.b = append(e.b, 0xcb)
	} else {
		e.b = append(e.b, 'G')
	}
	e.b = binary.BigEndian.AppendUint64(e.b, math.Float64bits(f))
}

// sized appends the head of n bytes: one opcode for lengths of 8 bits, and so on.
func (e *encoder) sized(n int, op8, op16, op32 byte) {
	switch {
	case n < 1<<8 && op8 != 0:
		e.b = append(e.b, op8, byte(n))
	case n < 1<<16 && op16 != 0:
		e.b = binary.BigEndian.AppendUint16(append(e.b, op16), uint16(n))
	default:
		e.b = binary.BigEndian.AppendUint32(append(e.b, op32), uint32(n))
	}
}

func (e *encoder) bytes(p []byte) {
	switch {
	case e.msgpack:
		e.sized(len(p), 0xc4, 0xc5, 0xc6)
	case len(p) < 1<<8:
		e.b = append(e.b, 'C', byte(len(p)))
	default:
		e.b = binary.LittleEndian.AppendUint32(append(e.b, 'B'), uint32(len(p)))
	}
	e.b = append(e.b, p...)
}

func (e *encoder) tid(t tid.TID) {
	e.head8()
	e.b = t.Append(e.b)
}

func (e *encoder) oid(o tid.OID) {
	e.head8()
	e.b = o.Append(e.b)
}

func (e *encoder) head8() {
	if e.msgpack {
		e.b = append(e.b, 0xc4, 8)
	} else {
		e.b = append(e.b, 'C', 8)
	}
}

// tidOrNull writes None for Zero.
func (e *encoder) tidOrNull(t tid.TID) {
	if t == tid.Zero {
		e.null()
	} else {
		e.tid(t)
	}
}

// data writes None for nil.
func (e *encoder) data(p []byte) {
	if p == nil {
		e.null()
	} else {
		e.bytes(p)
	}
}

func (e *encoder) text(s string) {
	switch {
	case !e.msgpack:
		e.b = binary.LittleEndian.AppendUint32(append(e.b, 'X'), uint32(len(s)))
	case len(s) < 32:
		e.b = append(e.b, 0xa0|byte(len(s)))
	default:
		e.sized(len(s), 0xd9, 0xda, 0xdb)
	}
	e.b = append(e.b, s...)
}

func (e *encoder) msgpackHead(n int, fix, op16, op32 byte) {
	if n < 16 {
		e.b = append(e.b, fix|byte(n))
	} else {
		e.sized(n, 0, op16, op32)
	}
}

func (e *encoder) beginTuple(n int) {
	if e.msgpack {
		e.msgpackHead(n, 0x90, 0xdc, 0xdd)
	} else if n > 3 {
		e.b = append(e.b, '(')
	}
}

func (e *encoder) endTuple(n int) {
	if e.msgpack {
		return
	}
	switch n {
	case 0:
		e.b = append(e.b, ')')
	case 1, 2, 3:
		e.b = append(e.b, 0x84+byte(n))
	default:
		e.b = append(e.b, 't')
	}
}

func (e *encoder) beginList(n int) {
	if e.msgpack {
		e.msgpackHead(n, 0x90, 0xdc, 0xdd)
		return
	}
	e.b = append(e.b, ']')
	if n > 1 {
		e.b = append(e.b, '(')
	}
}

func (e *encoder) endList(n int) {
	switch {
	case e.msgpack || n == 0:
	case n == 1:
		e.b = append(e.b, 'a')
	default:
		e.b = append(e.b, 'e')
	}
}

func (e *encoder) beginDict(n int) {
	if e.msgpack {
		e.msgpackHead(n, 0x80, 0xde, 0xdf)
		return
	}
	e.b = append(e.b, '}')
	if n > 1 {
		e.b = append(e.b, '(')
	}
}

func (e *encoder) endDict(n int) {
	switch {
	case e.msgpack || n == 0:
	case n == 1:
		e.b = append(e.b, 's')
	default:
		e.b = append(e.b, 'u')
	}
}

func (e *encoder) oids(oids []tid.OID) {
	e.beginList(len(oids))
	for _, o := range oids {
		e.oid(o)
	}
	e.endList(len(oids))
}
