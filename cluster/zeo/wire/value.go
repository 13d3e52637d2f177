package wire

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Kind is the type of a [Value].
type Kind uint8

// Kinds of values.
const (
	KindNil Kind = iota
	KindBool
	KindInt
	KindBig // int beyond 64 bits: two's complement in B, little-endian
	KindFloat
	KindBytes
	KindText
	KindTuple
	KindList
	KindDict
	KindPrefix // ZopeUndo.Prefix: matches what begins with B
	KindGlobal // name of a class, only on the way to an object
	KindOpaque // some object of an extension, never built
)

// Value is an argument or a result as it came. Its slices belong to the message.
type Value struct {
	Kind  Kind
	n     uint64  // bool, int, and float as bits
	B     []byte  // bytes, text, prefix, global
	Items []Value // tuple
	Box   *Box    // list, and dict as keys and values in turn
	start int32   // where a dict begins in the message
	end   int32
}

// Box holds what can still grow after others refer to it.
type Box struct{ Items []Value }

// Bounds on a message, far above what clients send. The values of a message and of
// what is encoded of it are at most MaxValues.
const (
	MaxValues = 1 << 16 // per message; where parts are shared, 256 bytes count as one more
	maxDepth  = 64
)

func bound(most int) int {
	if most > 0 {
		return most
	}
	return MaxValues
}

var (
	// ErrBadMessage reports bytes that are no message.
	ErrBadMessage = errors.New("malformed message")
	// ErrTooComplex reports a message of more values than are accepted.
	ErrTooComplex = fmt.Errorf("%w: too many values", ErrBadMessage)
)

// Int returns the number of a KindInt, 0 or 1 for a KindBool.
func (v *Value) Int() int64 { return int64(v.n) }

// Float returns the number of a KindFloat.
func (v *Value) Float() float64 { return math.Float64frombits(v.n) }

// IntValue returns an int.
func IntValue(n int64) Value { return Value{Kind: KindInt, n: uint64(n)} }

func boolValue(b bool) Value {
	if b {
		return Value{Kind: KindBool, n: 1}
	}
	return Value{Kind: KindBool}
}

// FloatValue returns a float.
func FloatValue(f float64) Value { return Value{Kind: KindFloat, n: math.Float64bits(f)} }

// List returns the items of a tuple or a list, false for anything else.
func (v *Value) List() ([]Value, bool) {
	switch v.Kind {
	case KindTuple:
		return v.Items, true
	case KindList:
		return v.Box.Items, true
	}
	return nil, false
}

// Truth is Python's bool(v) for what can be a flag.
func (v *Value) Truth() (bool, bool) {
	switch v.Kind {
	case KindNil:
		return false, true
	case KindBool, KindInt:
		return v.n != 0, true
	}
	return false, false
}

// Spend takes the cost of v itself, without its items, from a budget, which bounds
// what shared parts can expand to.
func (v *Value) Spend(depth int, budget *int) error {
	if *budget -= 1 + len(v.B)>>8; *budget < 0 || depth > maxDepth {
		return ErrTooComplex
	}
	return nil
}

// Value encodes v for the peer. What the encoding or the peer could not
// read becomes text.
func (e *Encoder) Value(v *Value, depth int, budget *int) error {
	if err := v.Spend(depth, budget); err != nil {
		return err
	}
	switch v.Kind {
	case KindNil:
		e.Null()
	case KindBool:
		e.Bool(v.n != 0)
	case KindInt:
		e.Int(v.Int())
	case KindBig:
		e.big(v.B)
	case KindFloat:
		e.Float(v.Float())
	case KindBytes:
		e.Bytes(v.B)
	case KindText, KindPrefix, KindGlobal, KindOpaque:
		e.Text(Text(v))
	case KindTuple:
		e.BeginTuple(len(v.Items))
		for i := range v.Items {
			if err := e.Value(&v.Items[i], depth+1, budget); err != nil {
				return err
			}
		}
		e.EndTuple(len(v.Items))
	case KindList:
		items := v.Box.Items
		e.BeginList(len(items))
		for i := range items {
			if err := e.Value(&items[i], depth+1, budget); err != nil {
				return err
			}
		}
		e.EndList(len(items))
	case KindDict:
		items := v.Box.Items
		e.BeginDict(len(items) / 2)
		for i := 0; i < len(items); i += 2 {
			if err := e.key(&items[i], depth+1, budget); err != nil {
				return err
			}
			if err := e.Value(&items[i+1], depth+1, budget); err != nil {
				return err
			}
		}
		e.EndDict(len(items) / 2)
	}
	return nil
}

// key encodes a key of a dict. Clients refuse msgpack keys that are neither text
// nor bytes.
func (e *Encoder) key(v *Value, depth int, budget *int) error {
	switch {
	case v.Kind == KindText || v.Kind == KindBytes:
	case e.Msgpack:
		if err := v.Spend(depth, budget); err != nil {
			return err
		}
		if v.Kind == KindInt {
			e.Text(strconv.FormatInt(v.Int(), 10))
		} else {
			e.Text(Text(v))
		}
		return nil
	}
	if err := e.Value(v, depth, budget); err != nil {
		return err
	}
	if !hashable(v) {
		return fmt.Errorf("%w: dict key", ErrBadMessage)
	}
	return nil
}

// hashable reports whether v can be a key on the other side. It follows shared
// parts wherever they are: v must have been encoded, within a budget.
func hashable(v *Value) bool {
	switch v.Kind {
	case KindList, KindDict:
		return false
	case KindTuple:
		for i := range v.Items {
			if !hashable(&v.Items[i]) {
				return false
			}
		}
	}
	return true
}

// Text shows a value that cannot be sent as what it is.
func Text(v *Value) string {
	if v.Kind == KindOpaque {
		if len(v.B) > 0 && utf8.Valid(v.B) {
			return "<" + string(v.B) + ">"
		}
		return "<object>"
	}
	if v.Kind == KindBig {
		return decimal(v.B)
	}
	if !utf8.Valid(v.B) {
		return fmt.Sprintf("%q", v.B)
	}
	return string(v.B)
}

// decimal shows a big int.
func decimal(little []byte) string {
	if len(little) > 1024 { // digits cost the square of their number
		return "<int>"
	}
	b := slices.Clone(little)
	slices.Reverse(b)
	n := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0] >= 0x80 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(b))))
	}
	return n.String()
}
