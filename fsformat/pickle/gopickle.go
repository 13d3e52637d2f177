package pickle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/big"

	gopickle "github.com/nlpodyssey/gopickle/pickle"
	"github.com/nlpodyssey/gopickle/types"
)

// unpickle decodes a record with gopickle, a second opinion that knows opcodes that
// [Decode] refuses. It is for showing only: str, unicode and the names of slots are
// not told apart.
//
// gopickle trusts lengths and panics on some inputs. So the record has been run by a
// machine first, which compares every length with the data, and a panic becomes an
// error.
func unpickle(record []byte) (class, state Value, err error) {
	if len(record) > maxShown {
		return nil, nil, fmt.Errorf("a record of %d bytes is too large to show", len(record))
	}
	var m machine
	if _, _, err := m.runRecord(record); err != nil {
		return nil, nil, err
	}
	if bytes.IndexByte(record, opFrame) >= 0 && frameTooLong(record) {
		return nil, nil, errors.New("a frame longer than the record")
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("gopickle: %v", p)
		}
	}()
	u := gopickle.NewUnpickler(bytes.NewReader(record))
	u.FindClass = func(module, name string) (any, error) { return &foreignClass{Global{module, name}}, nil }
	u.PersistentLoad = func(id any) (any, error) { return &foreignRef{id}, nil }
	u.GetExtension = func(code int) (any, error) {
		return &foreignClass{Global{"copyreg", fmt.Sprint("extension ", code)}}, nil
	}
	u.NextBuffer = func() (any, error) { return nil, io.ErrUnexpectedEOF }
	c, err := u.Load()
	if err != nil {
		return nil, nil, err
	}
	s, err := u.Load()
	if err != nil {
		return nil, nil, err
	}
	var k converter
	return k.value(c, 0), k.value(s, 0), nil
}

// frameTooLong reports whether some FRAME, which a machine passes over, declares
// more than there is.
func frameTooLong(record []byte) bool {
	for pos := 0; pos < len(record); {
		op, arg, argEnd, next, err := instruction(record, pos)
		if err != nil {
			return false // behind the second pickle
		}
		if op == opFrame {
			n, _ := littleEndian(record[arg:argEnd]).(int64)
			if n < 0 || n > int64(len(record)-next) {
				return true
			}
		}
		pos = next
	}
	return false
}

type foreignClass struct{ name Global }

func (c *foreignClass) Call(args ...any) (any, error) {
	return &foreignObject{class: c, args: args}, nil
}
func (c *foreignClass) PyNew(args ...any) (any, error) {
	return &foreignObject{class: c, args: args}, nil
}

type foreignRef struct{ id any }

type foreignObject struct {
	class    *foreignClass
	args     []any
	state    any
	hasState bool
	items    []any
}

func (o *foreignObject) PySetState(state any) error {
	o.state, o.hasState = state, true
	return nil
}
func (o *foreignObject) Append(v any) { o.items = append(o.items, v) }
func (o *foreignObject) Add(v any)    { o.items = append(o.items, v) }
func (o *foreignObject) Set(k, v any) { o.items = append(o.items, k, v) }

// A converter makes values of what gopickle returns, up to the depth that is shown.
type converter struct{ n int }

// maxConverted bounds what a few bytes that refer to each other unfold to.
const maxConverted = 1 << 20

func (k *converter) value(v any, depth int) Value {
	if k.n++; depth > deepest || k.n > maxConverted {
		return nil
	}
	switch v := v.(type) {
	case nil, bool, float64, string, []byte, *big.Int:
		return v
	case int:
		return int64(v)
	case *types.Tuple:
		return Tuple(k.values(*v, depth))
	case *types.List:
		return &List{k.values(*v, depth)}
	case *types.Dict:
		d := &Dict{}
		for _, e := range *v {
			d.Items = append(d.Items, Item{k.value(e.Key, depth+1), k.value(e.Value, depth+1)})
		}
		return d
	case *types.Set:
		s := &Set{}
		for e := range *v {
			s.Items = append(s.Items, k.value(e, depth+1))
		}
		return s
	case *types.FrozenSet:
		s := &Set{Frozen: true}
		for e := range *v {
			s.Items = append(s.Items, k.value(e, depth+1))
		}
		return s
	case *foreignClass:
		return v.name
	case *foreignRef:
		return PersID{k.value(v.id, depth+1)}
	case *foreignObject:
		o := call(v.class.name, Tuple(k.values(v.args, depth)))
		if o, ok := o.(*Object); ok {
			o.HasState, o.Items = v.hasState, k.values(v.items, depth)
			if v.hasState {
				o.State = k.value(v.state, depth+1)
			}
		}
		return o
	}
	return ByteString(fmt.Sprintf("<%T>", v))
}

func (k *converter) values(in []any, depth int) []Value {
	var out []Value
	for _, v := range in {
		out = append(out, k.value(v, depth+1))
	}
	return out
}
