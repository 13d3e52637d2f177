package fsformat

import (
	"testing"

	"github.com/neozodb/neo/cluster/tid"
)

// Transactions that were listed are found again without reading.
func TestListedTransactionsAreFound(t *testing.T) {
	path := writeRandom(t, 3000)
	r, read := openCounting(t, path)
	at := map[tid.TID]int64{}
	for tr, err := range r.ScanBackwards(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if at[tr.TID] = tr.Head.Pos; len(at) == 200 {
			break
		}
	}
	read.n = 0
	for id, want := range at {
		if pos, _, err := r.seek(t.Context(), id-1); pos != want || err != nil {
			t.Errorf("transaction %v is at %d, %v, want %d", id, pos, err, want)
		}
	}
	if read.n > 0 {
		t.Errorf("%d bytes were read to find what was listed", read.n)
	}
}

// What the index tells of single records is what iteration shows.
func TestRevisionsByIndex(t *testing.T) {
	for _, name := range sampleNames {
		if name == "05-packed" { // a pack hides a revision that iteration shows
			continue
		}
		t.Run(name, func(t *testing.T) {
			r := openSample(t, name)
			if _, err := r.UseIndex(t.Context(), "", nil); err != nil {
				t.Fatal(err)
			}
			type key struct {
				oid tid.OID
				at  tid.TID
			}
			from, last := map[key]tid.TID{}, map[tid.OID]tid.TID{}
			for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
				if err != nil {
					t.Fatal(err)
				}
				for rec, err := range tr.Records {
					if err != nil {
						t.Fatal(err)
					}
					from[key{rec.OID, tr.TID}], last[rec.OID] = rec.DataTID, tr.TID
				}
			}
			for k, want := range from {
				if got, err := r.DataTIDAt(k.oid, k.at); got != want || err != nil {
					t.Errorf("DataTIDAt(%v, %v) = %v, %v, want %v", k.oid, k.at, got, err, want)
				}
			}
			last[1<<40] = 0 // no object
			for oid, want := range last {
				if got, err := r.LastRevision(oid); got != want || err != nil {
					t.Errorf("LastRevision(%v) = %v, %v, want %v", oid, got, err, want)
				}
			}
		})
	}
}
