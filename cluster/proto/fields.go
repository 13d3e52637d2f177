package proto

import (
	"fmt"
	"math"

	"github.com/neozodb/neo/cluster/tid"
)

// Fields reads the values of a map whose keys are free, as NotifyMonitorInformation has. What is
// missing, or is not what it must be, is read as zero; Err names the first such key.
type Fields struct {
	what string
	all  map[string]Value
	err  error
}

// NewFields returns the fields of a map. Errors begin with what the map is.
func NewFields(what string, all map[string]Value) *Fields { return &Fields{what: what, all: all} }

// Err returns what was wrong first, nil if nothing was.
func (f *Fields) Err() error { return f.err }

// Wrong notes that the value of a key makes no sense.
func (f *Fields) Wrong(key string) {
	if f.err == nil {
		f.err = fmt.Errorf("%s: invalid %s", f.what, key)
	}
}

// Lookup returns the value of a key that may be missing.
func (f *Fields) Lookup(key string) (v Value, ok bool) {
	v, ok = f.all[key]
	return v, ok
}

// Int reads a number from least to most.
func (f *Fields) Int(key string, least, most int64) int64 {
	return f.IntOf(key, f.all[key], least, most)
}

// IntOf reads a number from least to most that is part of the value of a key.
func (f *Fields) IntOf(key string, v Value, least, most int64) int64 {
	n, ok := v.(int64)
	if !ok || n < least || n > most {
		f.Wrong(key)
		return 0
	}
	return n
}

// Count reads a number that is not negative.
func (f *Fields) Count(key string) int64 { return f.Int(key, 0, math.MaxInt64) }

// Node reads the id of a node, which may be that of none.
func (f *Fields) Node(key string) NodeID { return NodeID(f.Int(key, math.MinInt32, math.MaxInt32)) }

// Float reads a number that is neither negative nor infinite.
func (f *Fields) Float(key string) float64 {
	x, ok := f.all[key].(float64)
	if !ok || !(x >= 0 && x <= math.MaxFloat64) {
		f.Wrong(key)
		return 0
	}
	return x
}

// Bool reads a truth value.
func (f *Fields) Bool(key string) bool {
	b, ok := f.all[key].(bool)
	if !ok {
		f.Wrong(key)
	}
	return b
}

// TID reads a transaction id of 8 bytes, whatever it is: it may be greater than [tid.Max].
func (f *Fields) TID(key string) tid.TID { return f.TIDOf(key, f.all[key]) }

// TIDOf reads a transaction id that is part of the value of a key.
func (f *Fields) TIDOf(key string, v Value) tid.TID {
	b, _ := v.([]byte)
	if len(b) != 8 {
		f.Wrong(key)
		return tid.Zero
	}
	return tid.FromBytes(b)
}

// Text reads a text.
func (f *Fields) Text(key string) string {
	b, ok := f.all[key].([]byte)
	if !ok {
		f.Wrong(key)
	}
	return string(b)
}

// List reads a list.
func (f *Fields) List(key string) []Value {
	l, ok := f.all[key].([]Value)
	if !ok {
		f.Wrong(key)
	}
	return l
}
