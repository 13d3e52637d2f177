package fsformat

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
)

func TestIndexIsThatOfPython(t *testing.T) {
	for _, name := range sampleNames {
		t.Run(name, func(t *testing.T) {
			r := openSample(t, name)
			x, err := r.BuildIndex(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			want := readSample(t, name)
			if x.Len() != want.Objects || x.End != want.ValidEnd || x.LastTID.String() != want.LastTID {
				t.Errorf("%d objects up to %d and %v, want %d, %d, %s", x.Len(), x.End, x.LastTID, want.Objects, want.ValidEnd, want.LastTID)
			}
			stored, err := os.ReadFile(samples + name + ".fs.index")
			if errors.Is(err, fs.ErrNotExist) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if _, err := x.WriteTo(&got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(hex.Dump(stored), hex.Dump(got.Bytes())); diff != "" {
				t.Errorf("index differs (-python +got):\n%s", diff)
			}
			if unusable, err := r.UseIndex(t.Context(), "", nil); unusable != nil || err != nil {
				t.Errorf("stored index not used: %v, %v", unusable, err)
			}
			if diff := cmp.Diff(indexMap(x), indexMap(r.Index())); diff != "" {
				t.Errorf("stored index differs (-built +stored):\n%s", diff)
			}
		})
	}
}

func indexMap(x *Index) map[string]int64 {
	m := map[string]int64{"": x.End, "last": int64(x.LastTID)}
	for oid, pos := range x.All() {
		m[oid.String()] = pos
	}
	return m
}

func TestOldIndexForms(t *testing.T) {
	for _, tt := range []struct{ file, form string }{
		{"01-basic", "01-basic.index-old-dict"},
		{"01-basic", "01-basic.index-old-fsindex"},
		{"01-basic", "01-basic.index-old-oobtree"},
		{"01-basic", "01-basic.index-old-data"},
		{"07-btrees-refs", "07-btrees-refs.index-old-flat"},
		{"07-btrees-refs", "07-btrees-refs.index-old-oobucket"},
		{"old/oobucket", "old/oobucket.fs.index"},
	} {
		form := tt.form
		r := openBytes(t, readFile(t, samples+tt.file+".fs"))
		want, err := r.BuildIndex(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		x, err := r.ReadIndex(samples + form)
		if err != nil {
			t.Errorf("%s: %v", form, err)
			continue
		}
		if diff := cmp.Diff(indexMap(want), indexMap(x)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", form, diff)
		}
	}
}

func TestUnusableIndexIsReplaced(t *testing.T) {
	basic := readFile(t, samples+"01-basic.fs")
	index := readFile(t, samples+"01-basic.fs.index")
	for _, tt := range []struct {
		name        string
		file, index []byte
		want        string // "": usable
	}{
		{"good", basic, index, ""},
		{"the file has grown", basic, oldIndex(t, basic[:1135]), ""},
		{"newer than the file", basic[:1135], index, "it is newer than the file: it covers 1733 bytes, the file has 1135"},
		{"of another file", basic, readFile(t, samples+"02-undo.fs.index"), "it is of another file: no transaction ends at 1289"},
		{"of another file of the same length", basic, otherPositions(index), "it is of another file: object 0000000000000003 would be at 737, but is at 738"},
		{"truncated", basic, index[:40], "it is truncated"},
		{"empty", basic, nil, "it is truncated"},
		{"no pickle", basic, []byte("\xffhello"), "pickle: offset 0: unknown opcode 0xff"},
		{"other pickle", basic, []byte("\x80\x03N."), "it begins neither with a position nor with a dict"},
		{"position of 2^40 in a small file", basic, []byte("\x80\x03\x8a\x06\x00\x00\x00\x00\x00\x01.\x80\x03N."), "it is newer than the file: it covers 1099511627776 bytes, the file has 1733"},
		{"bucket of odd length", basic, []byte("\x80\x03M\xc5\x06.\x80\x03C\x06\x00\x00\x00\x00\x00\x00C\x05abcde\x86."), "a bucket of wrong length: 5 bytes for a prefix of 6"},
		{"prefix twice", basic, []byte("\x80\x03M\xc5\x06.\x80\x03C\x06\x00\x00\x00\x00\x00\x00C\x00\x86.\x80\x03C\x06\x00\x00\x00\x00\x00\x00C\x00\x86."), "prefix 000000000000 is not above the one before, 000000000000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "Data.fs")
			writeFile(t, path, tt.file)
			writeFile(t, path+".index", tt.index)
			r, err := Open(path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			unusable, err := r.UseIndex(t.Context(), "", nil)
			if err != nil {
				t.Fatal(err)
			}
			var ie *IndexError
			switch {
			case tt.want == "" && unusable != nil:
				t.Errorf("unusable: %v", unusable)
			case tt.want != "" && !errors.As(unusable, &ie):
				t.Errorf("unusable: %v, want %q", unusable, tt.want)
			case tt.want != "" && ie.Problem != tt.want:
				t.Errorf("unusable: %q, want %q", ie.Problem, tt.want)
			}
			built, err := r.BuildIndex(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(indexMap(built), indexMap(r.Index())); diff != "" {
				t.Errorf("index (-built +used):\n%s", diff)
			}
		})
	}
}

// oldIndex is the index of a shorter file.
func oldIndex(t *testing.T, file []byte) []byte {
	x, err := openBytes(t, file).BuildIndex(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := x.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// otherPositions moves the last position by one.
func otherPositions(index []byte) []byte {
	b := bytes.Clone(index)
	b[len(b)-4-3]-- // before TUPLE2, STOP and the pickle of None
	return b
}

func writeFile(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
}

func TestIndexHoldsWhatWasSet(t *testing.T) {
	const seed = 20260101
	rng := rand.New(rand.NewPCG(seed, 0))
	x := NewIndex()
	want := make(map[tid.OID]int64)
	for i := range 200_000 {
		oid := tid.OID(rng.Uint64N(100_000)) // dense, as ZODB makes them
		if i%7 == 0 {
			oid = tid.OID(rng.Uint64()) &^ 0xffff // sparse
		}
		pos := int64(minRecordPos + i)
		if old := x.swap(oid, pos); old != want[oid] {
			t.Fatalf("seed %d: object %v was at %d, want %d", seed, oid, old, want[oid])
		}
		want[oid] = pos
	}
	if x.Len() != len(want) {
		t.Fatalf("seed %d: %d objects, want %d", seed, x.Len(), len(want))
	}
	last := tid.OID(0)
	for oid, pos := range x.All() {
		if pos != want[oid] || oid < last {
			t.Fatalf("seed %d: object %v at %d after %v, want %d", seed, oid, pos, last, want[oid])
		}
		last = oid
	}
	if _, ok := x.Get(1 << 60); ok {
		t.Error("an object that was never set is there")
	}
	if max, _ := x.MaxOID(); max != last {
		t.Errorf("greatest object %v, want %v", max, last)
	}
}

func TestIndexTakes24BytesAnObject(t *testing.T) {
	x := NewIndex()
	for i := range tid.OID(1_000_000) {
		x.Set(i, minRecordPos)
		if n := int(i) + 1; n >= 100_000 && n%10_000 == 0 {
			slots := 0
			for _, s := range x.segments {
				slots += len(s.slots)
			}
			if got := float64(slots) * float64(unsafe.Sizeof(slot{})) / float64(n); got > 24 {
				t.Fatalf("%.1f bytes an object at %d objects", got, n)
			}
		}
	}
}
