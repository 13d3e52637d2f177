package pickle

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
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
	old, err := os.ReadFile("../../testdata/fs/old/oobucket.fs.index")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(old)
	for _, s := range States {
		f.Add([]byte("cm\nC\nq\x01." + s))
	}
	for _, s := range Refused {
		f.Add([]byte("cm\nC\nq\x01." + s.State))
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
		refs, refused := s.References(b)
		refs = slices.Clone(refs)
		s.Python = true
		if again, err := s.References(b); err == nil && refused == nil && !s.Untold() && !sameRefs(refs, again) {
			t.Errorf("%q: references %v, to Python %v", b, refs, again)
		}
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
				n, _, ok := vectorMapping{}.Foreign(string(r.Database), r.OID)
				want[i].OID = n
				switch {
				case !ok:
					want[i] = Ref{r.Kind, r.OID, append([]byte{}, r.Database...)}
				case r.Kind != Weak:
					want[i].Kind = Strong
				}
			}
		}
		for _, rw.Python3 = range []bool{false, true} {
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

func sameRefs(a, b []Ref) bool {
	return slices.EqualFunc(a, b, func(a, b Ref) bool {
		return a.Kind == b.Kind && a.OID == b.OID && bytes.Equal(a.Database, b.Database)
	})
}

// States are pickles that have what the samples lack.
var States = []string{
	"(dp1\nS'abc'\np2\nI1\ns.", "(lp1\nVtext\\u20ac\np2\naF1.5\naL12L\naI01\na.", "(I1\nI-2\nL-3L\nF-1e-07\nFinf\nt.",
	"}(K\x01K\x02K\x03K\x04u.", "}K\x01]s.", "](K\x01K\x02K\x03K\x04K\x05e.", "(K\x01K\x02K\x03K\x04t.", "((K\x01tK\x02d.",
	"(im\nC\n}b.", "(cm\nC\nK\x01o}b.", "cm\nC\n)R}b.", "cm\nC\n)\x81}(U\x01aK\x01U\x01bK\x02ub.", "cm\nC\nq\x02)R](K\x01K\x02ebh\x02\x85.",
	"X\x03\x00\x00\x00\xe2\x82\xac.", "X\x03\x00\x00\x00\xed\xa0\x80.", "G\x3f\xf0\x00\x00\x00\x00\x00\x00.", "\x8a\x05\xff\x00\x00\x00\x80.",
	"\x88\x89\x86N\x87.", "N2\x860N.", "(K\x01K\x021N.", "K\x01p300\ng300\n\x86.", "K\x01r\x00\x01\x00\x00j\x00\x01\x00\x00\x86.",
}

// Refused are pickles that Python cannot load, after 8 bytes that name a class.
var Refused = []struct{ State, Want string }{
	{"}X\x02\x00\x00\x00a\xf9K\x01s.", "offset 9: a text that is no UTF-8"},
	{"X\x03\x00\x00\x00\xed\xa0a.", "offset 8: a text that is no UTF-8"},
	{"}(U\x01aK\x01U\x01bu.", "offset 18: a key without a value: 3 items for SETITEMS"},
	{"}(K\x01u.", "offset 12: a key without a value: 1 items for SETITEMS"},
	{"(dp1\nS'abc\np2\nI1\ns.", `offset 13: a string that is not quoted: "'abc"`},
	{"S'a\\xg0'\n.", `offset 8: a string with a broken escape: "'a\\xg0'"`},
	{"V\\u12\n.", `offset 8: a text with a broken escape: "\\u12"`},
	{"I12x\n.", `offset 8: no integer: "12x"`},
	{"L010L\n.", `offset 8: no integer: "010L"`},
	{"F1.5.2\n.", `offset 8: no number: "1.5.2"`},
	{"c\nC\n.", `offset 8: no name of a class: "\nC"`},
	{"cm\n\xff\n.", `offset 8: no name of a class: "m\n\xff"`},
	{"}]K\x01s.", "offset 12: a list or a dict as a key"},
	{"(}\x85K\x01d.", "offset 13: a list or a dict as a key"},
	{"K\x01K\x02R.", "offset 12: arguments that are no tuple"},
	{"K\x01)R.", "offset 11: a call of what is no class"},
	{"cm\nC\nN\x81.", "offset 14: arguments that are no tuple"},
	{"(K\x01o.", "offset 11: a call of what is no class"},
	{"K\x01}b.", "offset 11: a state for what is no instance"},
	{"}K\x01a.", "offset 11: items for what is no list"},
	{"K\x01(NNu.", "offset 13: keys and values for what is no dict"},
	{"](NNu.", "offset 12: a key for a list"},
	{"h\x07.", "offset 8: nothing was put into slot 7 of the memo"},
	{"\x82\x00.", "offset 8: extension code 0"},
	{"K\x01Q.", "offset 10: a persistent reference of unknown form"},
	{"s.", "offset 8: opcode 0x73 needs 3 values on the stack"},
}
