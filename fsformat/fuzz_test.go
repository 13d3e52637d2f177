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
	"github.com/neozodb/neo/cluster/txn"
)

// FuzzReader: whatever the bytes, they are read to the end or refused; what is
// read without error and checked without error is copied into the same records.
func FuzzReader(f *testing.F) {
	for _, name := range sampleNames {
		f.Add(readFile(f, samples+name+".fs"))
	}
	for _, name := range []string{"badpickle", "future", "oidflip", "tsreduction"} {
		f.Add(readFile(f, samples+"damaged/"+name+".fs"))
	}
	for _, at := range []int{4, 12, 22, 391, 400, 412, 543, 557, 890, 894, 910, 924, 1273} { // damage that is repaired, and not
		b := readFile(f, samples+"02-undo.fs")
		b[at] ^= 0x41
		f.Add(b)
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
		for tr, err := range r.ScanBackwards(t.Context()) {
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
				if _, err := chainOf(t, r, oid); err != nil && sum.Errors == 0 {
					t.Errorf("object %v: %v, and no error was found", oid, err)
				}
				if _, err := r.LoadBefore(t.Context(), oid, tid.Max); err != nil && sum.Errors == 0 && !errors.Is(err, txn.ErrNoSuchObject) {
					t.Errorf("object %v: %v, and no error was found", oid, err)
				}
			}
		}
		if len(b) == 0 {
			return // nothing to recover
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
		again := openBytes(t, saved)
		if _, err := Check(t.Context(), again, CheckOptions{Structure: true}, func(p Problem) {
			if p.Severity == Error {
				t.Errorf("what was salvaged: %v", p)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if sum.Errors > 0 {
			return
		}
		if diff := cmp.Diff(dumpRecords(t, r), dumpRecords(t, again)); diff != "" {
			t.Errorf("what was salvaged from a file without errors differs (-source +copy):\n%s", diff)
		}
	})
}

// FuzzRenumber: whatever the ids, those of a renumbered file increase, a copy of it is
// the same, and a file in order is read as without the option. Nothing is left out
// without an error.
func FuzzRenumber(f *testing.F) {
	for _, name := range append(sampleNames, "damaged/tsreduction", "damaged/oidflip", "damaged/future") {
		f.Add(readFile(f, samples+name+".fs"))
	}
	f.Fuzz(fuzzRenumber)
}

func fuzzRenumber(t *testing.T, b []byte) {
	plain, err := NewReader(bytes.NewReader(b), int64(len(b)), "Data.fs", Options{})
	if err != nil {
		return
	}
	r, err := NewReader(bytes.NewReader(b), int64(len(b)), "Data.fs", Options{Renumber: true})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "Data.fs")
	w, err := Create(path, WriterOptions{NoSync: true, Magic: r.Magic()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	n := int64(0)
	last := tid.TID(0)
	for tr, err := range r.Checked(func(*CorruptError) error { return nil }).Transactions(t.Context(), 0, tid.Invalid) {
		if err != nil {
			return
		}
		if tr.TID <= last {
			t.Fatalf("transaction %v follows %v", tr.TID, last)
		}
		last = tr.TID
		n++
		if err := w.Append(tr); err != nil {
			return // damaged
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	copied := openBytes(t, readFile(t, path))
	if diff := cmp.Diff(dumpRecords(t, r), dumpRecords(t, copied)); diff != "" {
		t.Errorf("a renumbered copy differs (-source +copy):\n%s", diff)
	}
	order, err := plain.Order(t.Context())
	if err != nil {
		t.Fatalf("%d transactions were read, but: %v", n, err)
	}
	switch err := plain.CheckOrder(t.Context(), 0); {
	case order.Wrong > 0 && !errors.Is(err, ErrOrder) || order.Wrong == 0 && err != nil:
		t.Errorf("%+v, but %v", order, err)
	case err == nil:
		if diff := cmp.Diff(dumpRecords(t, plain), dumpRecords(t, r)); diff != "" {
			t.Errorf("a file in order is renumbered (-plain +renumbered):\n%s", diff)
		}
	}
	// Up to the last one: all, or an error.
	upTo, err := plain.LastTID(t.Context())
	if err != nil {
		return
	}
	seen := int64(0)
	for _, err := range plain.Transactions(t.Context(), 0, upTo) {
		if err != nil {
			return
		}
		seen++
	}
	if seen != n {
		t.Errorf("%d of %d transactions up to the last one, %v", seen, n, upTo)
	}
}

// FuzzIndex: an index is refused, or what it holds is written and read again.
func FuzzIndex(f *testing.F) {
	for _, pattern := range []string{"*.index", "*.index-*", "old/*.index"} {
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
