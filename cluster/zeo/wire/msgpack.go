package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"unicode/utf8"
)

// MsgpackDecoder reads msgpack without extension types. Its memory is bounded by
// the number of values.
type MsgpackDecoder struct {
	b     []byte
	pos   int
	arena []Value
	count int
	most  int // values; 0: MaxValues
}

// Decode returns the value of b. It refers to b and to the decoder and is valid
// until the next decode.
func (d *MsgpackDecoder) Decode(b []byte) (Value, error) {
	d.b, d.pos, d.count = b, 0, 1
	d.arena = d.arena[:0]
	if cap(d.arena) > 4096 {
		d.arena = nil
	}
	v, err := d.value(0)
	if err == nil && d.pos != len(b) {
		err = d.errorf("bytes after the end")
	}
	return v, err
}

func (d *MsgpackDecoder) errorf(format string, args ...any) error {
	return fmt.Errorf("%w: msgpack, offset %d: %s", ErrBadMessage, d.pos, fmt.Sprintf(format, args...))
}

func (d *MsgpackDecoder) take(n uint64) ([]byte, error) {
	if n > uint64(len(d.b)-d.pos) {
		return nil, d.errorf("%d bytes announced, %d left", n, len(d.b)-d.pos)
	}
	p := d.b[d.pos : d.pos+int(n) : d.pos+int(n)]
	d.pos += int(n)
	return p, nil
}

// uint reads a big-endian number of w bytes.
func (d *MsgpackDecoder) uint(w uint64) (uint64, error) {
	p, err := d.take(w)
	if err != nil {
		return 0, err
	}
	var n uint64
	for _, c := range p {
		n = n<<8 | uint64(c)
	}
	return n, nil
}

func (d *MsgpackDecoder) value(depth int) (Value, error) {
	if depth > maxDepth {
		return Value{}, ErrTooComplex
	}
	p, err := d.take(1)
	if err != nil {
		return Value{}, err
	}
	c := p[0]
	switch {
	case c < 0x80 || c >= 0xe0:
		return IntValue(int64(int8(c))), nil
	case c < 0x90:
		return d.dict(uint64(c&15), depth)
	case c < 0xa0:
		return d.tuple(uint64(c&15), depth)
	case c < 0xc0:
		return d.text(uint64(c & 31))
	}
	switch c {
	case 0xc0:
		return Value{}, nil
	case 0xc2, 0xc3:
		return boolValue(c == 0xc3), nil
	case 0xca:
		p, err := d.take(4)
		if err != nil {
			return Value{}, err
		}
		return FloatValue(float64(math.Float32frombits(binary.BigEndian.Uint32(p)))), nil
	case 0xcb:
		n, err := d.uint(8)
		return Value{Kind: KindFloat, n: n}, err
	case 0xcc, 0xcd, 0xce, 0xcf:
		n, err := d.uint(1 << (c - 0xcc))
		if n > math.MaxInt64 {
			return Value{Kind: KindBig, B: append(binary.LittleEndian.AppendUint64(nil, n), 0)}, err
		}
		return IntValue(int64(n)), err
	case 0xd0, 0xd1, 0xd2, 0xd3:
		w := uint64(1) << (c - 0xd0)
		n, err := d.uint(w)
		shift := 64 - 8*w
		return IntValue(int64(n<<shift) >> shift), err
	case 0xc4, 0xc5, 0xc6:
		n, err := d.uint(1 << (c - 0xc4))
		if err != nil {
			return Value{}, err
		}
		p, err := d.take(n)
		return Value{Kind: KindBytes, B: p}, err
	case 0xd9, 0xda, 0xdb:
		n, err := d.uint(1 << (c - 0xd9))
		if err != nil {
			return Value{}, err
		}
		return d.text(n)
	case 0xdc, 0xdd:
		n, err := d.uint(2 << (c - 0xdc))
		if err != nil {
			return Value{}, err
		}
		return d.tuple(n, depth)
	case 0xde, 0xdf:
		n, err := d.uint(2 << (c - 0xde))
		if err != nil {
			return Value{}, err
		}
		return d.dict(n, depth)
	}
	return Value{}, d.errorf("type %#02x", c)
}

func (d *MsgpackDecoder) text(n uint64) (Value, error) {
	p, err := d.take(n)
	if err == nil && !utf8.Valid(p) {
		err = d.errorf("text is not UTF-8")
	}
	return Value{Kind: KindText, B: p}, err
}

// items reads n values. The place is reserved first: nested ones come after.
func (d *MsgpackDecoder) items(n uint64, depth int) ([]Value, error) {
	if n > uint64(len(d.b)-d.pos) {
		return nil, d.errorf("%d values announced, %d bytes left", n, len(d.b)-d.pos)
	}
	if d.count += int(n); d.count > bound(d.most) {
		return nil, ErrTooComplex
	}
	var items []Value
	if at := len(d.arena); at+int(n) <= cap(d.arena) || at == 0 {
		d.arena = append(d.arena, make([]Value, n)...)
		items = d.arena[at:len(d.arena):len(d.arena)]
	} else {
		items = make([]Value, n)
	}
	for i := range items {
		v, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		items[i] = v
	}
	return items, nil
}

func (d *MsgpackDecoder) tuple(n uint64, depth int) (Value, error) {
	items, err := d.items(n, depth)
	return Value{Kind: KindTuple, Items: items}, err
}

func (d *MsgpackDecoder) dict(n uint64, depth int) (Value, error) {
	if n > uint64(len(d.b)) {
		return Value{}, d.errorf("%d items announced, %d bytes left", n, len(d.b)-d.pos)
	}
	items, err := d.items(2*n, depth)
	return Value{Kind: KindDict, Box: &Box{items}, start: -1}, err
}
