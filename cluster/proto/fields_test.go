package proto

import (
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
)

// fieldReaders read the value of a key, and return it as a sender has it.
var fieldReaders = map[string]func(f *Fields, key string) Value{
	"Int":   func(f *Fields, key string) Value { return f.Int(key, -5, 5) },
	"Count": func(f *Fields, key string) Value { return f.Count(key) },
	"Node":  func(f *Fields, key string) Value { return int64(f.Node(key)) },
	"Float": func(f *Fields, key string) Value { return f.Float(key) },
	"Bool":  func(f *Fields, key string) Value { return f.Bool(key) },
	"TID":   func(f *Fields, key string) Value { return f.TID(key).Bytes() },
	"Text":  func(f *Fields, key string) Value { return []byte(f.Text(key)) },
	"List":  func(f *Fields, key string) Value { return f.List(key) },
}

// acceptedBy returns which readers accept a value, and checks what they return.
func acceptedBy(t *testing.T, key string, all map[string]Value) map[string]bool {
	accepted := map[string]bool{}
	for name, read := range fieldReaders {
		f := NewFields("a message", all)
		got := read(f, key)
		switch err := f.Err(); {
		case err == nil && !reflect.DeepEqual(got, all[key]):
			t.Errorf("%s reads %#v as %#v", name, all[key], got)
		case err == nil:
			accepted[name] = true
		case !strings.HasPrefix(err.Error(), "a message: invalid "+key):
			t.Errorf("%s: %v", name, err)
		}
	}
	return accepted
}

// Each reader accepts what it is for, and names the key of what it refuses.
func TestFields(t *testing.T) {
	for _, tt := range []struct {
		v  Value
		by string
	}{
		{int64(-5), "Int Node"}, {int64(-6), "Node"}, {int64(5), "Int Count Node"}, {int64(6), "Count Node"},
		{int64(math.MaxInt32), "Count Node"}, {int64(math.MaxInt32 + 1), "Count"}, {int64(math.MinInt64), ""}, {int64(math.MaxInt64), "Count"},
		{0.0, "Float"}, {1.5, "Float"}, {-1.5, ""}, {math.NaN(), ""}, {math.Inf(1), ""}, {true, "Bool"}, {false, "Bool"},
		{[]byte{}, "Text"}, {[]byte("1234567"), "Text"}, {[]byte("12345678"), "Text TID"}, {[]byte(strings.Repeat("\xff", 8)), "Text TID"}, {[]byte("123456789"), "Text"},
		{[]Value{}, "List"}, {[]Value{int64(1), nil}, "List"}, {nil, ""}, {"text", ""}, {map[string]Value{}, ""}, {Raw{0xc0}, ""},
	} {
		want := map[string]bool{}
		for _, name := range strings.Fields(tt.by) {
			want[name] = true
		}
		if got := acceptedBy(t, "key", map[string]Value{"key": tt.v}); !reflect.DeepEqual(got, want) {
			t.Errorf("%#v is accepted by %v, want %v", tt.v, got, want)
		}
	}
	if got := acceptedBy(t, "key", nil); len(got) > 0 {
		t.Errorf("what is missing is accepted by %v", got)
	}

	f := NewFields("a message", map[string]Value{"list": []Value{int64(7), []byte("12345678"), nil}, "null": nil})
	list := f.List("list")
	if n, id := f.IntOf("list", list[0], 0, 7), f.TIDOf("list", list[1]); n != 7 || id != tid.FromBytes([]byte("12345678")) || f.Err() != nil {
		t.Errorf("%d, %v, %v", n, id, f.Err())
	}
	if v, ok := f.Lookup("null"); v != nil || !ok {
		t.Error("a value that is nil is missing")
	}
	if _, ok := f.Lookup("other"); ok || f.Err() != nil {
		t.Error("a missing value may be looked up, and is not there", f.Err())
	}
	f.IntOf("first", list[2], 0, 7)
	f.TIDOf("second", list[2])
	if err := f.Err(); err == nil || err.Error() != "a message: invalid first" {
		t.Errorf("the error is %v", err)
	}
}

func FuzzFields(f *testing.F) {
	f.Add(Append(nil, 1, &NotifyMonitorInformation{Info: map[string]Value{
		"int": int64(1), "float": 1.5, "bool": true, "tid": tid.Max.Bytes(), "text": []byte("x"), "list": []Value{int64(1)}, "nil": nil}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, got, _, err := Decode(b)
		if err != nil {
			return
		}
		if p, ok := got.(*NotifyMonitorInformation); ok {
			for key := range p.Info {
				acceptedBy(t, key, p.Info)
			}
			acceptedBy(t, "no such key", p.Info)
		}
	})
}
