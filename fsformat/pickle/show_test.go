package pickle

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// records are those of the rewriting vectors, and what is special.
func showable(t *testing.T) [][]byte {
	var out [][]byte
	for _, v := range readVectors(t) {
		out = append(out, unhex(t, v.In))
	}
	for _, s := range []string{
		"\x80\x03cm\nC\nq\x00.\x80\x03}q\x01(X\x01\x00\x00\x00aq\x02K\x01X\x01\x00\x00\x00bq\x03]q\x04(G?\xe0\x00\x00\x00\x00\x00\x00\x88Neu.",
		"cm\nC\np0\n.(dp1\nVtext\nI7\ns.",
		"\x80\x02cm\nC\n.\x80\x02ccopy_reg\nX\n)\x81}b.",
	} {
		out = append(out, []byte(s))
	}
	return out
}

// Two independent decoders agree on what they show, but for the kinds of strings.
func TestShowAgreesWithGopickle(t *testing.T) {
	for i, rec := range showable(t) {
		class, state, err := DecodeRecord(rec)
		if err != nil {
			t.Errorf("record %d: %v", i, err)
			continue
		}
		otherClass, otherState, err := unpickle(rec)
		if bytes.Contains(rec, []byte("\x8a\x00")) && err != nil {
			continue // gopickle panics at the 0L of Python 2
		}
		if err != nil {
			t.Errorf("record %d: gopickle: %v", i, err)
			continue
		}
		var a, b bytes.Buffer
		for _, v := range []Value{class, state} {
			if err := Format(&a, unify(v), 0); err != nil {
				t.Fatal(err)
			}
		}
		for _, v := range []Value{otherClass, otherState} {
			if err := Format(&b, unify(v), 0); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(a.String(), b.String()); diff != "" {
			t.Errorf("record %d (-ours +gopickle):\n%s", i, diff)
		}
	}
}

// unify makes all strings alike.
func unify(v Value) Value {
	switch v := v.(type) {
	case ByteString:
		return string(v)
	case []byte:
		return string(v)
	case Tuple:
		out := Tuple{}
		for _, e := range v {
			out = append(out, unify(e))
		}
		return out
	case *List:
		out := &List{}
		for _, e := range v.Items {
			out.Items = append(out.Items, unify(e))
		}
		return out
	case *Dict:
		out := &Dict{}
		for _, it := range v.Items {
			out.Items = append(out.Items, Item{unify(it.Key), unify(it.Value)})
		}
		return out
	case PersID:
		return PersID{unify(v.ID)}
	case *Object:
		out := *v
		out.Args, out.State = unify(v.Args), unify(v.State)
		return &out
	}
	return v
}

func TestShow(t *testing.T) {
	got, err := Show([]byte("\x80\x03cm\nC\nq\x00.\x80\x03}q\x01(X\x01\x00\x00\x00aq\x02C\x08\x00\x00\x00\x00\x00\x00\x00\x07h\x00\x86QX\x01\x00\x00\x00bq\x03U\x02\xff'u."))
	want := `class <m.C>
state {'a': <reference (b'\x00\x00\x00\x00\x00\x00\x00\x07', <m.C>)>, 'b': '\xff\''}`
	if err != nil || got != want {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}
	// The extension registry is only known to gopickle.
	got, err = Show([]byte("\x80\x02cm\nC\n.\x80\x02\x82\x05."))
	if err != nil || got != "class <m.C>\nstate <copyreg.extension 5>" {
		t.Errorf("%s, %v", got, err)
	}
	for _, bad := range []string{
		"", "\x80\x02cm\nC\n.\x80\x02\x82", "\x80\x02N.\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f\x82\x01.",
		"\x80\x02N.\x80\x02\x82\x01B\xff\xff\xff\x7f.", "\x80\x02N.\x80\x02\x82\x05\x97.",
	} {
		if got, err := Show([]byte(bad)); err == nil {
			t.Errorf("%q is shown as %s", bad, got)
		}
	}
}

// A few bytes can unfold to more than anybody would read.
func TestShowIsBounded(t *testing.T) {
	rec := "\x80\x03N.\x80\x03]q\x00"
	for range 40 { // a list of two of the one before, 40 times
		rec += "0](h\x00h\x00eq\x00"
	}
	got, err := Show([]byte(rec + "."))
	if err != nil || len(got) > 2<<20 || len(got) < 1<<20 {
		t.Errorf("%d bytes are shown, %v", len(got), err)
	}
	got, err = Show([]byte(rec + "\x82\x01\x86."))
	if err != nil || len(got) > 2<<20 {
		t.Errorf("%d bytes are shown, %v", len(got), err)
	}
	if _, _, err := unpickle([]byte(rec + "\x82\x01.")); err == nil {
		t.Error("a stack with two values is shown")
	}
}
