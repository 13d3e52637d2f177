package fsformat

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
)

// FuzzReader: whatever the bytes, they are read to the end or refused; what is
// read without error and checked without error is copied into the same records.
func FuzzReader(f *testing.F) {
	for _, name := range sampleNames {
		f.Add(readFile(f, samples+name+".fs"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := NewReader(bytes.NewReader(b), int64(len(b)), "Data.fs", Options{})
		if err != nil {
			return
		}
		sum, err := Check(t.Context(), r, CheckOptions{Now: time.Unix(4e9, 0)}, func(Problem) {})
		if err != nil {
			t.Fatalf("a check fails: %v", err)
		}
		for tr, err := range r.Backwards(t.Context()) {
			if err != nil {
				break
			}
			for _, err := range tr.Records {
				if err != nil {
					break
				}
			}
		}
		if x, err := r.BuildIndex(t.Context(), nil); err == nil {
			r.SetIndex(x)
			for oid := range x.All() {
				if _, err := r.History(t.Context(), oid, 0); err != nil && sum.Errors == 0 {
					t.Errorf("object %v: %v, and no error was found", oid, err)
				}
				if _, _, err := r.Load(oid); err != nil && sum.Errors == 0 && !errors.Is(err, ErrNotFound) {
					t.Errorf("object %v: %v, and no error was found", oid, err)
				}
			}
		}
		path := filepath.Join(t.TempDir(), "Data.fs")
		w, err := Create(path, WriterOptions{NoSync: true, Magic: r.Magic()})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		if _, err := Salvage(t.Context(), r, w, SalvageOptions{Partial: len(b)%2 == 0}, func(Lost) {}); err != nil {
			t.Fatalf("a salvage fails: %v", err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		saved, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if sum.Errors > 0 || sum.LastTID > tid.FromTime(time.Now()) {
			return
		}
		if diff := cmp.Diff(dumpRecords(t, r), dumpRecords(t, openBytes(t, saved))); diff != "" {
			t.Errorf("what was salvaged from a file without errors differs (-source +copy):\n%s", diff)
		}
	})
}

// FuzzIndex: an index is refused, or what it holds is written and read again.
func FuzzIndex(f *testing.F) {
	for _, pattern := range []string{"*.index", "*.index-*"} {
		names, err := filepath.Glob(samples + pattern)
		if err != nil || len(names) == 0 {
			f.Fatal(names, err)
		}
		for _, name := range names {
			f.Add(readFile(f, name))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := ParseIndex(bytes.NewReader(b))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if _, err := x.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
		again, err := ParseIndex(&out)
		if err != nil {
			t.Fatalf("%q is written as what is refused: %v", b, err)
		}
		if diff := cmp.Diff(indexMap(x), indexMap(again)); diff != "" {
			t.Errorf("%q changes (-read +again):\n%s", b, diff)
		}
	})
}
