package zeo

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"unicode/utf8"
)

// kind is the type of a [value].
type kind uint8

const (
	kindNil kind = iota
	kindBool
	kindInt
	kindBig // int beyond 64 bits: two's complement in b, little-endian
	kindFloat
	kindBytes
	kindText
	kindTuple
	kindList
	kindDict
	kindPrefix // ZopeUndo.Prefix: matches what begins with b
	kindGlobal // name of a class, only on the way to an object
	kindOpaque // some object of an extension, never built
)

// value is an argument as it came. Its slices belong to the message.
type value struct {
	kind  kind
	n     uint64  // bool, int, and float as bits
	b     []byte  // bytes, text, prefix, global
	items []value // tuple
	box   *box    // list, and dict as keys and values in turn
	start int32   // where a dict begins in the message
	end   int32
}

// box holds what can still grow after others refer to it.
type box struct{ items []value }

// Bounds on a message, far above what clients send.
const (
	maxValues = 1 << 16 // per message; where parts are shared, 256 bytes count as one more
	maxDepth  = 64
)

var (
	errBadMessage = errors.New("malformed message")
	errTooComplex = fmt.Errorf("%w: too many values", errBadMessage)
)

func (v *value) int() int64     { return int64(v.n) }
func (v *value) float() float64 { return math.Float64frombits(v.n) }

func intValue(n int64) value { return value{kind: kindInt, n: uint64(n)} }

func boolValue(b bool) value {
	if b {
		return value{kind: kindBool, n: 1}
	}
	return value{kind: kindBool}
}

func floatValue(f float64) value { return value{kind: kindFloat, n: math.Float64bits(f)} }

// list returns the items of a tuple or a list.
func (v *value) list() ([]value, bool) {
	switch v.kind {
	case kindTuple:
		return v.items, true
	case kindList:
		return v.box.items, true
	}
	return nil, false
}

// truth is Python's bool(v) for what can be a flag.
func (v *value) truth() (bool, bool) {
	switch v.kind {
	case kindNil:
		return false, true
	case kindBool, kindInt:
		return v.n != 0, true
	}
	return false, false
}

// spend takes the cost of v itself, without its items, from a budget, which bounds
// what shared parts can expand to.
func (v *value) spend(depth int, budget *int) error {
	if *budget -= 1 + len(v.b)>>8; *budget < 0 || depth > maxDepth {
		return errTooComplex
	}
	return nil
}

// value encodes v for the peer. What the encoding or the peer could not
// read becomes text.
func (e *encoder) value(v *value, depth int, budget *int) error {
	if err := v.spend(depth, budget); err != nil {
		return err
	}
	switch v.kind {
	case kindNil:
		e.null()
	case kindBool:
		e.bool(v.n != 0)
	case kindInt:
		e.int(v.int())
	case kindBig:
		e.big(v.b)
	case kindFloat:
		e.float(v.float())
	case kindBytes:
		e.bytes(v.b)
	case kindText, kindPrefix, kindGlobal, kindOpaque:
		e.text(text(v))
	case kindTuple:
		e.beginTuple(len(v.items))
		for i := range v.items {
			if err := e.value(&v.items[i], depth+1, budget); err != nil {
				return err
			}
		}
		e.endTuple(len(v.items))
	case kindList:
		items := v.box.items
		e.beginList(len(items))
		for i := range items {
			if err := e.value(&items[i], depth+1, budget); err != nil {
				return err
			}
		}
		e.endList(len(items))
	case kindDict:
		items := v.box.items
		e.beginDict(len(items) / 2)
		for i := 0; i < len(items); i += 2 {
			if err := e.key(&items[i], depth+1, budget); err != nil {
				return err
			}
			if err := e.value(&items[i+1], depth+1, budget); err != nil {
				return err
			}
		}
		e.endDict(len(items) / 2)
	}
	return nil
}

// key encodes a key of a dict. Clients refuse msgpack keys that are neither text
// nor bytes.
func (e *encoder) key(v *value, depth int, budget *int) error {
	switch {
	case v.kind == kindText || v.kind == kindBytes:
	case e.msgpack && v.kind == kindInt:
		e.text(strconv.FormatInt(v.int(), 10))
		return nil
	case e.msgpack:
		e.text(text(v))
		return nil
	}
	if err := e.value(v, depth, budget); err != nil {
		return err
	}
	if !hashable(v) {
		return fmt.Errorf("%w: dict key", errBadMessage)
	}
	return nil
}

// hashable reports whether v can be a key on the other side. It follows shared
// parts wherever they are: v must have been encoded, within a budget.
func hashable(v *value) bool {
	switch v.kind {
	case kindList, kindDict:
		return false
	case kindTuple:
		for i := range v.items {
			if !hashable(&v.items[i]) {
				return false
			}
		}
	}
	return true
}

// text shows a value that cannot be sent as what it is.
func text(v *value) string {
	if v.kind == kindOpaque {
		if len(v.b) > 0 && utf8.Valid(v.b) {
			return "<" + string(v.b) + ">"
		}
		return "<object>"
	}
	if v.kind == kindBig {
		return decimal(v.b)
	}
	if !utf8.Valid(v.b) {
		return fmt.Sprintf("%q", v.b)
	}
	return string(v.b)
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
