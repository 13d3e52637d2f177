package pickle

import "math/big"

// Value is a plain Python value as [Decode] returns and [Append] takes it:
//
//	nil                None
//	bool               bool
//	int64, *big.Int    int (long)
//	float64            float
//	string             str (unicode in Python 2), in UTF-8
//	[]byte             bytes
//	ByteString         str of Python 2
//	Tuple              tuple
//	*List, *Dict, *Set list, dict, set or frozenset
//	Global             class or function, by name
//	*Object            what calling something gives, not called
//	PersID             persistent reference
type Value any

// ByteString is a str of Python 2: bytes that are meant as text.
type ByteString string

// Tuple is a tuple.
type Tuple []Value

// List is a list. Pickles may refer to one several times, and from within.
type List struct{ Items []Value }

// Dict is a dict in the order of the pickle. Of equal keys the last one counts.
type Dict struct{ Items []Item }

// Item is an entry of a [Dict].
type Item struct{ Key, Value Value }

// Set is a set, or a frozenset.
type Set struct {
	Items  []Value
	Frozen bool
}

// Global is a class or a function.
type Global struct{ Module, Name string }

// PersID is a persistent reference: the value that names an object.
type PersID struct{ ID Value }

// Object is an instance that was described, not made: Class(*Args), then its state
// was set, if HasState, and Items appended (of a dict: key, value, key, ...).
type Object struct {
	Class    Value
	Args     Value // a Tuple
	State    Value
	HasState bool
	Items    []Value
}

// Get returns the value of a text key, as str or as Python 2 str.
func (d *Dict) Get(key string) (Value, bool) {
	for i := len(d.Items) - 1; i >= 0; i-- {
		if s, ok := Text(d.Items[i].Key); ok && s == key {
			return d.Items[i].Value, true
		}
	}
	return nil, false
}

// Text returns v if it is a str of Python 2 or 3.
func Text(v Value) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case ByteString:
		return string(v), true
	}
	return "", false
}

// RawBytes returns v if it is bytes, or a str of Python 2.
func RawBytes(v Value) ([]byte, bool) {
	switch v := v.(type) {
	case []byte:
		return v, true
	case ByteString:
		return []byte(v), true
	}
	return nil, false
}

// Int returns v if it is an integer of 64 bits.
func Int(v Value) (int64, bool) {
	n, ok := v.(int64)
	return n, ok
}

func bigValue(n *big.Int) Value {
	if n.IsInt64() {
		return n.Int64()
	}
	return n
}
