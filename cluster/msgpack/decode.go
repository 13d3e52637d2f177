package msgpack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrShort reports that the bytes end inside an element.
var ErrShort = errors.New("unexpected end of data")

// Kind is the kind of an element.
type Kind uint8

const (
	Invalid Kind = iota // no byte left, or a byte that starts nothing
	Nil
	Bool
	Int
	Float
	Str
	Bin
	Array
	Map
	Ext
)

func (k Kind) String() string {
	return [...]string{"invalid byte", "nil", "bool", "int", "float", "str", "bin", "array", "map", "ext"}[k]
}

// header describes what the first byte of an element says: the width in bytes of
// the length (or of the number) that follows, or the length itself.
type header struct {
	kind  Kind
	width uint8 // bytes of a length or number that follow
	fix   uint8 // the length, if width is 0
}

var headers = func() (h [256]header) {
	for i := range 256 {
		switch {
		case i < 0x80, i >= 0xe0:
			h[i] = header{kind: Int}
		case i < 0x90:
			h[i] = header{kind: Map, fix: uint8(i & 0x0f)}
		case i < 0xa0:
			h[i] = header{kind: Array, fix: uint8(i & 0x0f)}
		case i < 0xc0:
			h[i] = header{kind: Str, fix: uint8(i & 0x1f)}
		}
	}
	h[0xc0] = header{kind: Nil}
	h[0xc2] = header{kind: Bool}
	h[0xc3] = header{kind: Bool}
	for i := range 3 {
		h[0xc4+i] = header{kind: Bin, width: 1 << i}
		h[0xc7+i] = header{kind: Ext, width: 1 << i}
		h[0xd9+i] = header{kind: Str, width: 1 << i}
	}
	h[0xca] = header{kind: Float, width: 4}
	h[0xcb] = header{kind: Float, width: 8}
	for i := range 4 {
		h[0xcc+i] = header{kind: Int, width: 1 << i}
		h[0xd0+i] = header{kind: Int, width: 1 << i}
	}
	for i := range 5 {
		h[0xd4+i] = header{kind: Ext, fix: 1 << i}
	}
	for i := range 2 {
		h[0xdc+i] = header{kind: Array, width: 2 << i}
		h[0xde+i] = header{kind: Map, width: 2 << i}
	}
	return h
}()

// number reads the big-endian number of w bytes at the start of b.
func number(b []byte, w uint8) uint64 {
	switch w {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.BigEndian.Uint16(b))
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	}
	return binary.BigEndian.Uint64(b)
}

// Decoder reads elements one after the other from a slice. The first error stays:
// from then on every method returns zero, so that a caller may check once, at the
// end. What Bin, Str and Ext return are parts of the slice.
type Decoder struct {
	buf []byte
	off int
	err error
}

// NewDecoder returns a Decoder at the start of b.
func NewDecoder(b []byte) Decoder { return Decoder{buf: b} }

// Err returns the first error, or nil. It is [ErrShort] if bytes are missing.
func (d *Decoder) Err() error { return d.err }

// Offset returns the number of bytes read.
func (d *Decoder) Offset() int { return d.off }

// Since returns the bytes from an earlier Offset to here.
func (d *Decoder) Since(off int) []byte { return d.buf[off:d.off:d.off] }

// Len returns the number of bytes that remain.
func (d *Decoder) Len() int { return len(d.buf) - d.off }

// Fail makes the decoder fail at its present position, unless it already has.
func (d *Decoder) Fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("byte %d: %s", d.off, fmt.Sprintf(format, args...))
	}
}

func (d *Decoder) short() {
	if d.err == nil {
		d.err = ErrShort
	}
}

// Peek returns the kind of the next element, which it leaves in place.
func (d *Decoder) Peek() Kind {
	if d.err != nil {
		return Invalid
	}
	if d.off >= len(d.buf) {
		d.short()
		return Invalid
	}
	return headers[d.buf[d.off]].kind
}

// open reads the header of an element of the given kind and returns its number
// or length; d.off is then after it.
func (d *Decoder) open(kind Kind) (uint64, bool) {
	if d.err != nil {
		return 0, false
	}
	if d.off >= len(d.buf) {
		d.short()
		return 0, false
	}
	h := headers[d.buf[d.off]]
	if h.kind != kind {
		d.mismatch(kind)
		return 0, false
	}
	if h.width == 0 {
		d.off++
		return uint64(h.fix), true
	}
	if len(d.buf)-d.off <= int(h.width) {
		d.short()
		return 0, false
	}
	n := number(d.buf[d.off+1:], h.width)
	d.off += 1 + int(h.width)
	return n, true
}

func (d *Decoder) mismatch(want Kind) {
	c := d.buf[d.off]
	d.Fail("%v instead of %v (0x%02x)", headers[c].kind, want, c)
}

// take returns the next n bytes.
func (d *Decoder) take(n uint64) []byte {
	if n > MaxElement {
		d.Fail("element of %d bytes, more than %d", n, MaxElement)
		return nil
	}
	if n > uint64(len(d.buf)-d.off) {
		d.short()
		return nil
	}
	b := d.buf[d.off : d.off+int(n) : d.off+int(n)]
	d.off += int(n)
	return b
}

// Nil reads nil if it comes next, and reports whether it did.
func (d *Decoder) Nil() bool {
	if d.err != nil {
		return false
	}
	if d.off >= len(d.buf) {
		d.short()
		return false
	}
	if d.buf[d.off] != 0xc0 {
		return false
	}
	d.off++
	return true
}

// Bool reads a boolean.
func (d *Decoder) Bool() bool {
	if _, ok := d.open(Bool); !ok {
		return false
	}
	return d.buf[d.off-1] == 0xc3
}

// integer reads an integer; neg tells whether v is to be taken as an int64.
func (d *Decoder) integer() (v uint64, neg bool) {
	start := d.off
	v, ok := d.open(Int)
	if !ok {
		return 0, false
	}
	switch c := d.buf[start]; c {
	case 0xcc, 0xcd, 0xce, 0xcf:
	case 0xd0:
		v = uint64(int8(v))
	case 0xd1:
		v = uint64(int16(v))
	case 0xd2:
		v = uint64(int32(v))
	case 0xd3:
	default:
		return uint64(int8(c)), int8(c) < 0
	}
	return v, d.buf[start]&0xf0 == 0xd0 && int64(v) < 0
}

// Int reads an integer that an int64 can hold.
func (d *Decoder) Int() int64 {
	v, neg := d.integer()
	if !neg && v > math.MaxInt64 {
		d.Fail("integer %d out of range", v)
		return 0
	}
	return int64(v)
}

// Uint reads an integer that is not negative.
func (d *Decoder) Uint() uint64 {
	v, neg := d.integer()
	if neg {
		d.Fail("integer %d is negative", int64(v))
		return 0
	}
	return v
}

// Float reads a float. Integers are accepted: some encoders write 1 for 1.0.
func (d *Decoder) Float() float64 {
	if d.Peek() == Int {
		v, neg := d.integer()
		if neg {
			return float64(int64(v))
		}
		return float64(v)
	}
	start := d.off
	v, ok := d.open(Float)
	if !ok {
		return 0
	}
	if d.buf[start] == 0xca {
		return float64(math.Float32frombits(uint32(v)))
	}
	return math.Float64frombits(v)
}

// Bin reads a binary string.
func (d *Decoder) Bin() []byte {
	n, ok := d.open(Bin)
	if !ok {
		return nil
	}
	return d.take(n)
}

// Str reads a text string, without looking at its encoding.
func (d *Decoder) Str() []byte {
	n, ok := d.open(Str)
	if !ok {
		return nil
	}
	return d.take(n)
}

// Array reads the header of an array whose elements take at least size bytes
// each, and returns their number. It fails if so many bytes do not remain.
func (d *Decoder) Array(size int) int { return d.count(Array, size) }

// Map reads the header of a map whose pairs take at least size bytes each, and
// returns their number. It fails if so many bytes do not remain.
func (d *Decoder) Map(size int) int { return d.count(Map, size) }

func (d *Decoder) count(kind Kind, size int) int {
	n, ok := d.open(kind)
	if !ok {
		return 0
	}
	if n*uint64(size) > uint64(len(d.buf)-d.off) {
		d.short()
		return 0
	}
	return int(n)
}

// Ext reads an extension.
func (d *Decoder) Ext() (typ int8, data []byte) {
	n, ok := d.open(Ext)
	if !ok {
		return 0, nil
	}
	if d.off >= len(d.buf) {
		d.short()
		return 0, nil
	}
	typ = int8(d.buf[d.off])
	d.off++
	return typ, d.take(n)
}

// Skip passes over one element of any kind, with all it contains.
func (d *Decoder) Skip() {
	if d.err != nil {
		return
	}
	var s Scanner
	n, _, err := s.Scan(d.buf[d.off:])
	switch {
	case err != nil:
		d.Fail("%v", err)
	case n == 0:
		d.short()
	default:
		d.off += n
	}
}
