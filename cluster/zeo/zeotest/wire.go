package zeotest

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/neozodb/neo/cluster/tid"
)

// Tuple and List are values on the wire; other values are nil, bool, int64 (or
// int), float64, string, []byte, [tid.TID], [tid.OID] and Dict.
type (
	Tuple []any
	List  []any
	Dict  map[any]any
)

// Encode returns v as a pickle or as msgpack. It is written apart from the server,
// which it tests.
func Encode(msgpack bool, v any) []byte {
	if msgpack {
		return appendMsgpack(nil, v)
	}
	return append(appendPickle([]byte{0x80, 3}, v), '.')
}

func appendPickle(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, 'N')
	case bool:
		if v {
			return append(b, 0x88)
		}
		return append(b, 0x89)
	case int:
		return appendPickle(b, int64(v))
	case int64:
		if v >= 0 && v < 256 {
			return append(b, 'K', byte(v))
		}
		return binary.LittleEndian.AppendUint64(append(b, 0x8a, 8), uint64(v))
	case float64:
		return binary.BigEndian.AppendUint64(append(b, 'G'), math.Float64bits(v))
	case string:
		return append(binary.LittleEndian.AppendUint32(append(b, 'X'), uint32(len(v))), v...)
	case tid.TID:
		return appendPickle(b, v.Bytes())
	case tid.OID:
		return appendPickle(b, v.Bytes())
	case []byte:
		if len(v) < 256 {
			return append(append(b, 'C', byte(len(v))), v...)
		}
		return append(binary.LittleEndian.AppendUint32(append(b, 'B'), uint32(len(v))), v...)
	case Tuple:
		b = append(b, '(')
		for _, x := range v {
			b = appendPickle(b, x)
		}
		return append(b, 't')
	case List:
		b = append(b, ']', '(')
		for _, x := range v {
			b = appendPickle(b, x)
		}
		return append(b, 'e')
	case Dict:
		b = append(b, '}', '(')
		for k, x := range v {
			b = appendPickle(appendPickle(b, k), x)
		}
		return append(b, 'u')
	}
	panic(fmt.Sprintf("zeotest: cannot encode %T", v))
}

func appendMsgpack(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, 0xc0)
	case bool:
		if v {
			return append(b, 0xc3)
		}
		return append(b, 0xc2)
	case int:
		return appendMsgpack(b, int64(v))
	case int64:
		if v >= 0 && v < 128 {
			return append(b, byte(v))
		}
		return binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(v))
	case float64:
		return binary.BigEndian.AppendUint64(append(b, 0xcb), math.Float64bits(v))
	case string:
		return append(binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(len(v))), v...)
	case tid.TID:
		return appendMsgpack(b, v.Bytes())
	case tid.OID:
		return appendMsgpack(b, v.Bytes())
	case []byte:
		return append(binary.BigEndian.AppendUint32(append(b, 0xc6), uint32(len(v))), v...)
	case Tuple:
		b = binary.BigEndian.AppendUint32(append(b, 0xdd), uint32(len(v)))
		for _, x := range v {
			b = appendMsgpack(b, x)
		}
		return b
	case List:
		return appendMsgpack(b, Tuple(v))
	case Dict:
		b = binary.BigEndian.AppendUint32(append(b, 0xdf), uint32(len(v)))
		for k, x := range v {
			b = appendMsgpack(appendMsgpack(b, k), x)
		}
		return b
	}
	panic(fmt.Sprintf("zeotest: cannot encode %T", v))
}

// Decode reads what the server sends. Tuples and lists of msgpack are both Tuple.
func Decode(msgpack bool, b []byte) (v any, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("decoding % x: %v", b, r)
		}
	}()
	if msgpack {
		v, rest := readMsgpack(b)
		if len(rest) != 0 {
			return nil, fmt.Errorf("%d bytes after the value", len(rest))
		}
		return v, nil
	}
	return readPickle(b)
}

func readPickle(b []byte) (any, error) {
	if len(b) < 2 || b[0] != 0x80 || b[1] != 3 {
		return nil, fmt.Errorf("no pickle of protocol 3")
	}
	b = b[2:]
	type mark struct{}
	var stack []any
	push := func(v any) { stack = append(stack, v) }
	take := func(n int) []byte {
		p := b[:n]
		b = b[n:]
		return p
	}
	toMark := func() []any {
		i := len(stack) - 1
		for stack[i] != any(mark{}) {
			i--
		}
		items := append([]any(nil), stack[i+1:]...)
		stack = stack[:i]
		return items
	}
	pop := func(n int) []any {
		items := append([]any(nil), stack[len(stack)-n:]...)
		stack = stack[:len(stack)-n]
		return items
	}
	for {
		switch op := take(1)[0]; op {
		case '.':
			if len(stack) != 1 || len(b) != 0 {
				return nil, fmt.Errorf("%d values, %d bytes at the end", len(stack), len(b))
			}
			return stack[0], nil
		case '(':
			push(mark{})
		case 'N':
			push(nil)
		case 0x88, 0x89:
			push(op == 0x88)
		case 'K':
			push(int64(take(1)[0]))
		case 'M':
			push(int64(binary.LittleEndian.Uint16(take(2))))
		case 'J':
			push(int64(int32(binary.LittleEndian.Uint32(take(4)))))
		case 0x8a:
			p := take(int(take(1)[0]))
			var n int64
			for i, c := range p {
				n |= int64(c) << (8 * i)
			}
			if len(p) < 8 && p[len(p)-1] >= 0x80 {
				n -= 1 << (8 * len(p))
			}
			push(n)
		case 'G':
			push(math.Float64frombits(binary.BigEndian.Uint64(take(8))))
		case 'X':
			push(string(take(int(binary.LittleEndian.Uint32(take(4))))))
		case 'C':
			push(take(int(take(1)[0])))
		case 'B':
			push(take(int(binary.LittleEndian.Uint32(take(4)))))
		case ')':
			push(Tuple(nil))
		case 0x85, 0x86, 0x87:
			push(Tuple(pop(int(op) - 0x84)))
		case 't':
			push(Tuple(toMark()))
		case ']':
			push(List(nil))
		case '}':
			push(Dict{})
		case 'a', 'e':
			items := []any(nil)
			if op == 'a' {
				items = pop(1)
			} else {
				items = toMark()
			}
			top := len(stack) - 1
			stack[top] = append(stack[top].(List), items...)
		case 's', 'u':
			items := []any(nil)
			if op == 's' {
				items = pop(2)
			} else {
				items = toMark()
			}
			d := stack[len(stack)-1].(Dict)
			for i := 0; i < len(items); i += 2 {
				d[key(items[i])] = items[i+1]
			}
		default:
			return nil, fmt.Errorf("opcode %#02x", op)
		}
	}
}

// key makes a value comparable.
func key(v any) any {
	if b, ok := v.([]byte); ok {
		return string(b)
	}
	return v
}

func readMsgpack(b []byte) (any, []byte) {
	c := b[0]
	b = b[1:]
	size := func(w int) int {
		n := 0
		for _, x := range b[:w] {
			n = n<<8 | int(x)
		}
		b = b[w:]
		return n
	}
	items := func(n int) []any {
		list := make([]any, 0, n)
		for range n {
			var v any
			v, b = readMsgpack(b)
			list = append(list, v)
		}
		return list
	}
	dict := func(n int) (any, []byte) {
		d := Dict{}
		for list := items(2 * n); len(list) > 0; list = list[2:] {
			d[key(list[0])] = list[1]
		}
		return d, b
	}
	bytes := func(n int) []byte {
		p := b[:n]
		b = b[n:]
		return p
	}
	switch {
	case c < 0x80 || c >= 0xe0:
		return int64(int8(c)), b
	case c < 0x90:
		return dict(int(c & 15))
	case c < 0xa0:
		return Tuple(items(int(c & 15))), b
	case c < 0xc0:
		return string(bytes(int(c & 31))), b
	}
	switch c {
	case 0xc0:
		return nil, b
	case 0xc2, 0xc3:
		return c == 0xc3, b
	case 0xc4, 0xc5, 0xc6:
		return bytes(size(1 << (c - 0xc4))), b
	case 0xcb:
		return math.Float64frombits(uint64(size(8))), b
	case 0xcc, 0xcd, 0xce, 0xcf:
		return int64(size(1 << (c - 0xcc))), b
	case 0xd0:
		return int64(int8(size(1))), b
	case 0xd1:
		return int64(int16(size(2))), b
	case 0xd2:
		return int64(int32(size(4))), b
	case 0xd3:
		return int64(size(8)), b
	case 0xd9, 0xda, 0xdb:
		return string(bytes(size(1 << (c - 0xd9)))), b
	case 0xdc, 0xdd:
		return Tuple(items(size(2 << (c - 0xdc)))), b
	case 0xde, 0xdf:
		return dict(size(2 << (c - 0xde)))
	}
	panic(fmt.Sprintf("type %#02x", c))
}
