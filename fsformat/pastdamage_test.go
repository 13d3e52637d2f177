package fsformat

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Behind a damaged head of a record the others of its transaction are found, and its own
// object where the index leads to it, whatever in the head is damaged.
func TestBackwardsPastDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "Data.fs")
	w, err := Create(path, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	long := make([]byte, 100_000) // a record that is longer than what is read at once
	for i, records := range [][]txn.Record{
		{{OID: 0, Data: []byte("root")}, {OID: 1, Data: []byte("one")}},
		{{OID: 1, Data: []byte("two")}, {OID: 2, Data: long}, {OID: 3, Data: []byte("three")}, {OID: 4, Data: []byte("four")}},
		{{OID: 0, Data: []byte("again")}, {OID: 2, Data: []byte("short")}, {OID: 3, Data: []byte("again")}},
	} {
		if err := w.Append(&txn.Transaction{TID: 0x03e0_0000_0000_0000 + tid.TID(i)<<20, Records: txn.Slice(records)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.UseIndex(t.Context(), "", nil); err != nil {
		t.Fatal(err)
	}
	var places []RecordHeader
	for x, err := range r.Scan(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		if x.TID == 0x03e0_0000_0010_0000 {
			for rec := range x.Places {
				places = append(places, *rec)
			}
		}
	}
	all := []tid.OID{1, 2, 3, 4}
	for i, rec := range places {
		for _, field := range []struct {
			name  string
			at    int64
			found bool // the object of the record
		}{{"oid", 0, false}, {"tid", 8, true}, {"position", 24, true}, {"length", 34, true}} {
			b := slices.Clone(whole)
			copy(b[rec.Pos+field.at:], "\x7fDAMAGED")
			if err := os.WriteFile(path, b, 0o666); err != nil {
				t.Fatal(err)
			}
			var told []error
			var got [][]tid.OID
			for x, err := range r.BackwardsPastDamage(t.Context(), func(err error) { told = append(told, err) }) {
				if err != nil {
					t.Fatalf("%s of record %d: %v", field.name, i, err)
				}
				got = append(got, slices.Clone(x.OIDs))
			}
			want := slices.Clone(all)
			if !field.found {
				continue // a damaged id is that of another object: nothing shows it
			}
			if len(got) != 3 || len(told) != 1 || !slices.Equal(got[1], want) {
				t.Errorf("%s of record %d: %v, told %v", field.name, i, got, told)
			}
		}
	}
}
