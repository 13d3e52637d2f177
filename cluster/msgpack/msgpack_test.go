package msgpack

import (
	"bytes"
	"encoding/hex"
	"math"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestIntegers(t *testing.T) {
	for _, tt := range []struct {
		v    int64
		want string // the shortest form
	}{
		{0, "00"}, {127, "7f"}, {128, "cc80"}, {255, "ccff"}, {256, "cd0100"}, {65535, "cdffff"},
		{65536, "ce00010000"}, {1<<32 - 1, "ceffffffff"}, {1 << 32, "cf0000000100000000"}, {math.MaxInt64, "cf7fffffffffffffff"},
		{-1, "ff"}, {-32, "e0"}, {-33, "d0df"}, {-128, "d080"}, {-129, "d1ff7f"}, {-32768, "d18000"},
		{-32769, "d2ffff7fff"}, {-268435455, "d2f0000001"}, {math.MinInt32, "d280000000"},
		{math.MinInt32 - 1, "d3ffffffff7fffffff"}, {math.MinInt64, "d38000000000000000"},
	} {
		b := AppendInt(nil, tt.v)
		if got := hex.EncodeToString(b); got != tt.want {
			t.Errorf("AppendInt(%d) = %s, want %s", tt.v, got, tt.want)
		}
		d := NewDecoder(b)
		if got := d.Int(); got != tt.v || d.Err() != nil || d.Len() != 0 {
			t.Errorf("Int of %s = %d, %v, want %d", tt.want, got, d.Err(), tt.v)
		}
		d = NewDecoder(b)
		if got := d.Uint(); tt.v >= 0 && (got != uint64(tt.v) || d.Err() != nil) || tt.v < 0 && d.Err() == nil {
			t.Errorf("Uint of %s = %d, %v", tt.want, got, d.Err())
		}
	}
	for in, want := range map[string]int64{ // longer than necessary
		"cc01": 1, "cd0001": 1, "ce00000001": 1, "cf0000000000000001": 1,
		"d001": 1, "d10001": 1, "d200000001": 1, "d30000000000000001": 1,
		"d0ff": -1, "d1ffff": -1, "d2ffffffff": -1, "d3ffffffffffffffff": -1,
	} {
		d := NewDecoder(unhex(t, in))
		if got := d.Int(); got != want || d.Err() != nil {
			t.Errorf("Int of %s = %d, %v, want %d", in, got, d.Err(), want)
		}
	}
	d := NewDecoder(unhex(t, "cfffffffffffffffff"))
	if v := d.Uint(); v != math.MaxUint64 || d.Err() != nil {
		t.Errorf("Uint = %d, %v", v, d.Err())
	}
	d = NewDecoder(unhex(t, "cfffffffffffffffff"))
	if v := d.Int(); v != 0 || d.Err() == nil {
		t.Errorf("Int of 2⁶⁴-1 = %d", v)
	}
}

func TestFloats(t *testing.T) {
	for _, v := range []float64{0, math.Copysign(0, -1), 1700000000.5, math.MaxFloat64, math.SmallestNonzeroFloat64, math.Inf(-1), math.NaN()} {
		b := AppendFloat(nil, v)
		d := NewDecoder(b)
		if got := d.Float(); math.Float64bits(got) != math.Float64bits(v) || d.Err() != nil || len(b) != 9 {
			t.Errorf("%v becomes %v, %v", v, got, d.Err())
		}
	}
	for in, want := range map[string]float64{"ca3fc00000": 1.5, "05": 5, "ff": -1, "cb ca00000000000000": math.Float64frombits(0xca << 56)} {
		d := NewDecoder(unhex(t, in))
		if got := d.Float(); got != want || d.Err() != nil {
			t.Errorf("Float of %s = %v, %v, want %v", in, got, d.Err(), want)
		}
	}
}

func TestStringsAndExtensions(t *testing.T) {
	for _, n := range []int{0, 1, 2, 4, 8, 16, 31, 32, 255, 256, 65535, 65536, 1 << 20} {
		v := bytes.Repeat([]byte{'v'}, n)
		for name, f := range map[string]struct {
			b    []byte
			read func(*Decoder) []byte
		}{
			"bin": {AppendBin(nil, v), (*Decoder).Bin},
			"str": {AppendStr(nil, string(v)), (*Decoder).Str},
			"ext": {AppendExt(nil, -3, v), func(d *Decoder) []byte {
				typ, data := d.Ext()
				if typ != -3 && d.Err() == nil {
					t.Errorf("extension type %d", typ)
				}
				return data
			}},
		} {
			d := NewDecoder(append(f.b, 0xc0))
			if got := f.read(&d); !bytes.Equal(got, v) || d.Err() != nil || !d.Nil() || cap(got) != len(got) {
				t.Errorf("%s of %d bytes becomes %d, %v", name, n, len(got), d.Err())
			}
			for i := range min(len(f.b), 10) {
				d := NewDecoder(f.b[:i])
				if f.read(&d); d.Err() != ErrShort && i < len(f.b) {
					t.Errorf("%s of %d bytes, cut to %d: %v", name, n, i, d.Err())
				}
			}
		}
	}
}

func TestCounts(t *testing.T) {
	for _, n := range []int{0, 15, 16, 65535, 65536} {
		elements := bytes.Repeat([]byte{0xc0}, 2*n)
		d := NewDecoder(append(AppendArray(nil, n), elements...))
		if got := d.Array(2); got != n || d.Err() != nil {
			t.Errorf("Array = %d, %v, want %d", got, d.Err(), n)
		}
		d = NewDecoder(append(AppendMap(nil, n), elements...))
		if got := d.Map(2); got != n || d.Err() != nil {
			t.Errorf("Map = %d, %v, want %d", got, d.Err(), n)
		}
		d = NewDecoder(append(AppendArray(nil, n), elements...))
		if got := d.Array(3); n > 0 && (got != 0 || d.Err() != ErrShort) {
			t.Errorf("Array(3) of %d elements in %d bytes = %d, %v", n, 2*n, got, d.Err())
		}
	}
}

func TestTheFirstErrorStays(t *testing.T) {
	d := NewDecoder(unhex(t, "01 a161 02"))
	d.Int()
	d.Bin()
	first := d.Err()
	d.Bool()
	d.Fail("another")
	if first == nil || d.Err() != first || first.Error() != "byte 1: str instead of bin (0xa1)" {
		t.Errorf("%v, then %v", first, d.Err())
	}
	if d.Int() != 0 || d.Peek() != Invalid || d.Offset() != 1 || d.Nil() {
		t.Error("goes on after an error")
	}
}

func TestLimits(t *testing.T) {
	for _, in := range []string{"c604000001", "db04000001", "c90400000101"} {
		var s Scanner
		if _, _, err := s.Scan(unhex(t, in)); err == nil {
			t.Errorf("Scan of %s succeeded", in)
		}
	}
	d := NewDecoder(unhex(t, "c604000001"))
	if d.Bin(); d.Err() == nil || d.Err() == ErrShort {
		t.Errorf("Bin = %v", d.Err())
	}
	for _, in := range []string{"ddffffffff", "dfffffffff"} {
		var s Scanner
		if _, _, err := s.Scan(unhex(t, in)); err == nil {
			t.Errorf("Scan of %s succeeded", in)
		}
	}
	// Exactly the limit is accepted, as in Python.
	b := AppendBin(nil, make([]byte, MaxElement))
	d = NewDecoder(b)
	if v := d.Bin(); len(v) != MaxElement || d.Err() != nil {
		t.Errorf("Bin = %d bytes, %v", len(v), d.Err())
	}
}

// sample has one element of each kind and width.
const sample = "dc001c c0 c2 c3 05 ff cc80 cd0100 ce00010000 cf0000000100000000 d080 d18000 d280000000 d38000000000000000 " +
	"ca3fc00000 cb3ff8000000000000 a161 d90161 da000161 db0000000161 c40161 c5000161 c60000000161 d40102 d5010203 c7000f c8000101ff " +
	"82 01 90 02 91c0 de0001 01 df00000000"

func TestScanInPieces(t *testing.T) {
	b := unhex(t, sample)
	d := NewDecoder(b)
	if d.Skip(); d.Err() != nil || d.Len() != 0 {
		t.Fatalf("Skip: %d bytes left, %v", d.Len(), d.Err())
	}
	var s Scanner
	for i := range b {
		n, need, err := s.Scan(b[:i])
		if n != 0 || err != nil || need <= i || need > len(b) {
			t.Fatalf("after %d of %d bytes: %d, needs %d, %v", i, len(b), n, need, err)
		}
		d := NewDecoder(b[:i])
		if d.Skip(); d.Err() != ErrShort {
			t.Fatalf("Skip of %d bytes: %v", i, d.Err())
		}
	}
	if n, _, err := s.Scan(append(b, 1, 2, 3)); n != len(b) || err != nil {
		t.Errorf("Scan = %d, %v, want %d", n, err, len(b))
	}
}

// walk reads any element with the method for its kind and writes it again.
func walk(d *Decoder, b []byte, depth int) []byte {
	switch d.Peek() {
	case Nil:
		d.Nil()
		return AppendNil(b)
	case Bool:
		return AppendBool(b, d.Bool())
	case Int:
		in := *d
		if v := in.Uint(); in.Err() == nil {
			*d = in
			return AppendUint(b, v)
		}
		return AppendInt(b, d.Int())
	case Float:
		return AppendFloat(b, d.Float())
	case Str:
		return AppendStr(b, string(d.Str()))
	case Bin:
		return AppendBin(b, d.Bin())
	case Ext:
		typ, data := d.Ext()
		return AppendExt(b, typ, data)
	case Array, Map:
		n := 0
		if d.Peek() == Array {
			n = d.Array(1)
			b = AppendArray(b, n)
		} else {
			n = 2 * d.Map(2)
			b = AppendMap(b, n/2)
		}
		for range n {
			if depth > 100 {
				d.Fail("nested too deeply for this test")
			}
			if d.Err() != nil {
				return b
			}
			b = walk(d, b, depth+1)
		}
	default:
		d.Fail("nothing")
	}
	return b
}

func FuzzDecoder(f *testing.F) {
	f.Add(unhex(f, sample))
	f.Add(unhex(f, "dd7fffffff01"))
	f.Add(unhex(f, "c67fffffff"))
	f.Add(unhex(f, "c1"))
	f.Add(append(bytes.Repeat([]byte{0x91}, 1000), 0xcc, 0x30))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := NewDecoder(b)
		out := walk(&d, nil, 0)
		skip := NewDecoder(b)
		skip.Skip()
		if d.Err() != nil {
			return
		}
		if skip.Err() != nil || skip.Offset() != d.Offset() {
			t.Fatalf("%x: read %d bytes, skipped %d, %v", b, d.Offset(), skip.Offset(), skip.Err())
		}
		if len(out) > d.Offset()*9/5+8 { // a float32 grows from 5 to 9 bytes
			t.Errorf("%x: written as %d bytes", b, len(out))
		}
		again := NewDecoder(out)
		if twice := walk(&again, nil, 0); again.Err() != nil || again.Len() != 0 || !bytes.Equal(out, twice) {
			t.Errorf("%x: %x is read as %x, %v", b, out, twice, again.Err())
		}
	})
}
