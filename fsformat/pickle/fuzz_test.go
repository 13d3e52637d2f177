package pickle

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func addSeeds(f *testing.F) {
	for _, v := range readVectors(f) {
		f.Add(unhex(f, v.In))
	}
	names, err := filepath.Glob("../../testdata/fs/*.index*")
	if err != nil || len(names) == 0 {
		f.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, v := range values {
		for protocol := range 6 {
			if b, err := Append(nil, protocol, v); err == nil {
				f.Add(b)
			}
		}
	}
}

// FuzzPickle: what is decoded survives encoding, and nothing panics.
func FuzzPickle(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Scanner
		_, _, _ = s.Class(b)
		_, _ = s.References(b)
		_, _ = Show(b)
		v, _, err := Decode(b)
		if err != nil {
			return
		}
		for protocol := range 6 {
			p, err := Append(nil, protocol, v)
			if err != nil {
				continue // references and instances of some forms
			}
			again, n, err := Decode(p)
			if err != nil || n != len(p) {
				t.Fatalf("%q: protocol %d: %q is refused: %v", b, protocol, p, err)
			}
			var want, got bytes.Buffer
			if err := Format(&want, v, 0); err != nil {
				t.Fatal(err)
			}
			if err := Format(&got, again, 0); err != nil {
				t.Fatal(err)
			}
			if protocol >= 4 && !bytes.Equal(want.Bytes(), got.Bytes()) {
				t.Errorf("%q: protocol %d: %s becomes %s", b, protocol, &want, &got)
			}
		}
	})
}

// FuzzRewrite: a record is refused, or the identity gives back its bytes, and a
// mapping changes its references and nothing else that can be seen.
func FuzzRewrite(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var rw Rewriter
		same, err := rw.Rewrite(b, identity{})
		if err != nil {
			return
		}
		if !bytes.Equal(same, b) {
			t.Fatalf("%q: the identity gives %q", b, same)
		}
		plain, _, err := Unwrap(b)
		if err != nil {
			t.Fatal(err)
		}
		var s Scanner
		before, err := s.References(plain)
		if err != nil {
			t.Fatalf("%q: rewritten but not scanned: %v", b, err)
		}
		want := make([]Ref, len(before))
		for i, r := range before {
			n, _ := vectorMapping{}.Local(r.OID)
			want[i] = Ref{Kind: r.Kind, OID: n}
			if r.Kind == Multi || r.Kind == MultiOID || len(r.Database) > 0 || isForeign(r) {
				n, ok := vectorMapping{}.Foreign(string(r.Database), r.OID)
				want[i].OID = n
				switch {
				case !ok:
					want[i] = Ref{r.Kind, r.OID, append([]byte{}, r.Database...)}
				case r.Kind != Weak:
					want[i].Kind = Strong
				}
			}
		}
		out, err := rw.Rewrite(b, vectorMapping{})
		if err != nil {
			t.Fatalf("%q: the identity is possible, a mapping is not: %v", b, err)
		}
		if out, _, err = Unwrap(out); err != nil {
			t.Fatal(err)
		}
		after, err := s.References(out)
		if err != nil {
			t.Fatalf("%q: rewritten as %q: %v", b, out, err)
		}
		if len(want) != len(after) {
			t.Fatalf("%q: %d references, then %d", b, len(want), len(after))
		}
		for i := range want {
			if want[i].Kind != after[i].Kind || want[i].OID != after[i].OID || !bytes.Equal(want[i].Database, after[i].Database) {
				t.Errorf("%q: reference %d is %v, want %v", b, i, after[i], want[i])
			}
		}
	})
}

// isForeign reports whether a reference names a database, be it with an empty name.
func isForeign(r Ref) bool { return r.Database != nil }

var values = []Value{
	nil, true, false, int64(0), int64(-1), int64(255), int64(256), int64(65535), int64(65536), int64(-1 << 31), int64(1 << 31),
	int64(-1 << 63), 0.5, "", "text", "é\n\\ \x00 𝄞", []byte{}, []byte("bytes\xff"), ByteString("str'\\\n\xff"), Tuple{}, Tuple{int64(1)},
	Tuple{int64(1), "a", nil}, Tuple{int64(1), int64(2), int64(3), int64(4)}, &List{}, &List{[]Value{int64(1), &List{}}},
	&Dict{}, &Dict{[]Item{{"a", int64(1)}, {"b", &Dict{[]Item{{"c", nil}}}}}}, Global{"m", "C"},
	&Object{Class: Global{"m", "C"}, Args: Tuple{int64(1)}}, &Object{Class: Global{"m", "C"}, Args: Tuple{}, State: &Dict{}, HasState: true},
}

func TestValuesSurvive(t *testing.T) {
	for _, v := range values {
		for protocol := range 6 {
			b, err := Append([]byte("x"), protocol, v)
			if err != nil {
				t.Errorf("%#v in protocol %d: %v", v, protocol, err)
				continue
			}
			got, n, err := Decode(b[1:])
			if err != nil || n != len(b)-1 || !reflect.DeepEqual(got, v) {
				t.Errorf("%#v in protocol %d: %q is %#v, %v", v, protocol, b, got, err)
			}
		}
	}
	loop := &List{}
	loop.Items = []Value{loop}
	if _, err := Append(nil, 3, loop); err == nil {
		t.Error("a list that contains itself is pickled")
	}
	var b bytes.Buffer
	if err := Format(&b, loop, 0); err != nil || b.Len() > 1000 {
		t.Errorf("a list that contains itself is shown as %s, %v", &b, err)
	}
}
