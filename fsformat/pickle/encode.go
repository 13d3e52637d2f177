package pickle

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"unicode/utf8"
)

// maxDepth is how deep values may be nested when encoded or shown. It ends cycles.
const maxDepth = 1000

// maxValues is how many values are encoded, each 256 bytes of a string being one more:
// a few that refer to each other unfold to any number.
const maxValues = 1 << 20

// Append appends v as a pickle of a protocol from 0 to 5, without memo: what is
// used twice is written twice. The error is about a type that has no pickle, about
// cycles, or about more than a million values. Integers of any kind are accepted
// beside those that [Value] lists.
func Append(b []byte, protocol int, v Value) ([]byte, error) {
	if protocol < 0 || protocol > maxProtocol {
		return b, fmt.Errorf("pickling: unknown protocol %d", protocol)
	}
	e := encoder{b: b, protocol: protocol}
	if protocol >= 2 {
		e.b = append(e.b, opProto, byte(protocol))
	}
	if err := e.value(v, 0); err != nil {
		return b, err
	}
	return append(e.b, opStop), nil
}

type encoder struct {
	b        []byte
	protocol int
	values   int
}

func (e *encoder) value(v Value, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("pickling: values nested deeper than %d", maxDepth)
	}
	if e.values += 1 + length(v)>>8; e.values > maxValues {
		return fmt.Errorf("pickling: more than %d values, since some are used many times", maxValues)
	}
	switch v := v.(type) {
	case nil:
		e.b = append(e.b, opNone)
	case bool:
		e.bool(v)
	case int:
		e.int(int64(v))
	case int64:
		e.int(v)
	case int32:
		e.int(int64(v))
	case uint32:
		e.int(int64(v))
	case uint64:
		e.big(new(big.Int).SetUint64(v))
	case *big.Int:
		e.big(v)
	case float64:
		e.float(v)
	case string:
		e.text(v)
	case []byte:
		e.bytes(v)
	case ByteString:
		e.byteString(v)
	case Tuple:
		return e.tuple(v, depth)
	case *List:
		return e.list(v.Items, depth)
	case []Value:
		return e.list(v, depth)
	case *Dict:
		return e.dict(v, depth)
	case *Set:
		return e.set(v, depth)
	case Global:
		e.b = fmt.Appendf(e.b, "c%s\n%s\n", v.Module, v.Name)
	case PersID:
		if e.protocol == 0 {
			return fmt.Errorf("pickling: protocol 0 has no persistent references but text")
		}
		if err := e.value(v.ID, depth+1); err != nil {
			return err
		}
		e.b = append(e.b, opBinPersID)
	case *Object:
		return e.object(v, depth)
	default:
		return fmt.Errorf("pickling: a %T is no plain value", v)
	}
	return nil
}

// length returns the number of bytes of a string of any kind.
func length(v Value) int {
	switch v := v.(type) {
	case string:
		return len(v)
	case []byte:
		return len(v)
	case ByteString:
		return len(v)
	case *big.Int:
		return v.BitLen() / 8
	case Global:
		return len(v.Module) + len(v.Name)
	}
	return 0
}

func (e *encoder) bool(v bool) {
	switch {
	case e.protocol >= 2 && v:
		e.b = append(e.b, opNewTrue)
	case e.protocol >= 2:
		e.b = append(e.b, opNewFalse)
	case v:
		e.b = append(e.b, "I01\n"...)
	default:
		e.b = append(e.b, "I00\n"...)
	}
}

func (e *encoder) int(n int64) {
	if n != int64(int32(n)) {
		e.big(big.NewInt(n))
		return
	}
	switch {
	case e.protocol == 0:
		e.b = fmt.Appendf(e.b, "I%d\n", n)
	case n >= 0 && n < 1<<8:
		e.b = append(e.b, opBinInt1, byte(n))
	case n >= 0 && n < 1<<16:
		e.b = binary.LittleEndian.AppendUint16(append(e.b, opBinInt2), uint16(n))
	default:
		e.b = binary.LittleEndian.AppendUint32(append(e.b, opBinInt), uint32(n))
	}
}

func (e *encoder) big(n *big.Int) {
	if e.protocol < 2 {
		e.b = fmt.Appendf(e.b, "L%sL\n", n)
		return
	}
	if n.Sign() == 0 {
		e.b = append(e.b, opLong1, 0)
		return
	}
	// As many bytes as two's complement needs, sign included.
	m := n
	if n.Sign() < 0 {
		m = new(big.Int).Not(n)
	}
	size := m.BitLen()/8 + 1
	be := make([]byte, size)
	m.FillBytes(be)
	if size < 256 {
		e.b = append(e.b, opLong1, byte(size))
	} else {
		e.b = binary.LittleEndian.AppendUint32(append(e.b, opLong4), uint32(size))
	}
	for i := size - 1; i >= 0; i-- {
		c := be[i]
		if n.Sign() < 0 {
			c = ^c
		}
		e.b = append(e.b, c)
	}
}

func (e *encoder) float(f float64) {
	if e.protocol >= 1 {
		e.b = binary.BigEndian.AppendUint64(append(e.b, opBinFloat), math.Float64bits(f))
		return
	}
	s := strconv.FormatFloat(f, 'g', -1, 64)
	switch {
	case math.IsInf(f, 1):
		s = "inf"
	case math.IsInf(f, -1):
		s = "-inf"
	case math.IsNaN(f):
		s = "nan"
	}
	e.b = append(append(append(e.b, opFloat), s...), '\n')
}

func (e *encoder) text(s string) {
	switch {
	case e.protocol == 0:
		e.b = append(e.b, opUnicode)
		for len(s) > 0 {
			r, n := utf8.DecodeRuneInString(s)
			if r == utf8.RuneError && n == 1 && len(s) >= 3 && s[0] == 0xed {
				r, n = rune(s[0]&0xf)<<12|rune(s[1]&0x3f)<<6|rune(s[2]&0x3f), 3 // surrogate
			}
			switch {
			case r > 0xffff:
				e.b = fmt.Appendf(e.b, `\U%08x`, r)
			case r > 0xff || r == '\\' || r == '\n' || r == '\r' || r == 0 || r == 0x1a:
				e.b = fmt.Appendf(e.b, `\u%04x`, r)
			default:
				e.b = append(e.b, byte(r))
			}
			s = s[n:]
		}
		e.b = append(e.b, '\n')
	case e.protocol >= 4 && len(s) < 256:
		e.b = append(append(e.b, opShortBinUnicode, byte(len(s))), s...)
	default:
		e.sized(opBinUnicode, opBinUnicode8, s)
	}
}

// sized writes a length of 4 bytes, or of 8, and the data.
func (e *encoder) sized(op, op8 byte, s string) {
	if uint64(len(s)) <= math.MaxUint32 {
		e.b = binary.LittleEndian.AppendUint32(append(e.b, op), uint32(len(s)))
	} else {
		e.b = binary.LittleEndian.AppendUint64(append(e.b, op8), uint64(len(s)))
	}
	e.b = append(e.b, s...)
}

func (e *encoder) bytes(b []byte) {
	if e.protocol < 3 {
		if len(b) == 0 {
			e.b = append(e.b, "c__builtin__\nbytes\n"...)
			e.emptyTuple()
		} else {
			e.b = append(e.b, "c_codecs\nencode\n("...)
			text := make([]rune, len(b))
			for i, c := range b {
				text[i] = rune(c)
			}
			e.text(string(text))
			e.text("latin1")
			e.b = append(e.b, opTuple)
		}
		e.b = append(e.b, opReduce)
		return
	}
	if len(b) < 256 {
		e.b = append(append(e.b, opShortBinBytes, byte(len(b))), b...)
		return
	}
	e.sized(opBinBytes, opBinBytes8, string(b))
}

func (e *encoder) byteString(s ByteString) {
	switch {
	case e.protocol == 0:
		e.b = append(e.b, opString, '\'')
		for i := range len(s) {
			switch c := s[i]; {
			case c == '\\' || c == '\'':
				e.b = append(e.b, '\\', c)
			case c < ' ' || c > '~':
				e.b = fmt.Appendf(e.b, `\x%02x`, c)
			default:
				e.b = append(e.b, c)
			}
		}
		e.b = append(e.b, '\'', '\n')
	case len(s) < 256:
		e.b = append(append(e.b, opShortBinString, byte(len(s))), s...)
	default:
		e.b = binary.LittleEndian.AppendUint32(append(e.b, opBinString), uint32(len(s)))
		e.b = append(e.b, s...)
	}
}

func (e *encoder) emptyTuple() {
	if e.protocol == 0 {
		e.b = append(e.b, opMark, opTuple)
	} else {
		e.b = append(e.b, opEmptyTuple)
	}
}

func (e *encoder) tuple(t Tuple, depth int) error {
	if len(t) == 0 {
		e.emptyTuple()
		return nil
	}
	short := e.protocol >= 2 && len(t) <= 3
	if !short {
		e.b = append(e.b, opMark)
	}
	for _, v := range t {
		if err := e.value(v, depth+1); err != nil {
			return err
		}
	}
	if short {
		e.b = append(e.b, opTuple1+byte(len(t))-1)
	} else {
		e.b = append(e.b, opTuple)
	}
	return nil
}

// batch is how many items one APPENDS or SETITEMS gets, as in Python.
const batch = 1000

func (e *encoder) list(items []Value, depth int) error {
	if e.protocol == 0 {
		e.b = append(e.b, opMark, opList)
		for _, v := range items {
			if err := e.value(v, depth+1); err != nil {
				return err
			}
			e.b = append(e.b, opAppend)
		}
		return nil
	}
	e.b = append(e.b, opEmptyList)
	return e.batches(items, opAppends, depth)
}

func (e *encoder) batches(items []Value, op byte, depth int) error {
	for len(items) > 0 {
		n := min(len(items), batch)
		e.b = append(e.b, opMark)
		for _, v := range items[:n] {
			if err := e.value(v, depth+1); err != nil {
				return err
			}
		}
		e.b = append(e.b, op)
		items = items[n:]
	}
	return nil
}

func (e *encoder) dict(d *Dict, depth int) error {
	if e.protocol == 0 {
		e.b = append(e.b, opMark, opDict)
		for _, it := range d.Items {
			if err := e.value(it.Key, depth+1); err != nil {
				return err
			}
			if err := e.value(it.Value, depth+1); err != nil {
				return err
			}
			e.b = append(e.b, opSetItem)
		}
		return nil
	}
	e.b = append(e.b, opEmptyDict)
	flat := make([]Value, 0, 2*len(d.Items))
	for _, it := range d.Items {
		flat = append(flat, it.Key, it.Value)
	}
	return e.batches(flat, opSetItems, depth)
}

func (e *encoder) set(s *Set, depth int) error {
	if e.protocol >= 4 {
		if s.Frozen {
			e.b = append(e.b, opMark)
			for _, v := range s.Items {
				if err := e.value(v, depth+1); err != nil {
					return err
				}
			}
			e.b = append(e.b, opFrozenSet)
			return nil
		}
		e.b = append(e.b, opEmptySet)
		return e.batches(s.Items, opAddItems, depth)
	}
	name := "set"
	if s.Frozen {
		name = "frozenset"
	}
	return e.object(&Object{Class: Global{"__builtin__", name}, Args: Tuple{&List{s.Items}}}, depth)
}

func (e *encoder) object(o *Object, depth int) error {
	for _, v := range []Value{o.Class, o.Args} {
		if err := e.value(v, depth+1); err != nil {
			return err
		}
	}
	e.b = append(e.b, opReduce)
	if len(o.Items) > 0 {
		return fmt.Errorf("pickling: instances with items are not supported")
	}
	if o.HasState {
		if err := e.value(o.State, depth+1); err != nil {
			return err
		}
		e.b = append(e.b, opBuild)
	}
	return nil
}
