package merge_test

import (
	"context"
	"errors"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/importer/merge"
)

// indexed is a source with an index, in which one object has one record.
type indexed struct {
	txn.Database
	oid      tid.OID
	at, from tid.TID
}

func (x *indexed) LastRevision(oid tid.OID) (tid.TID, bool) {
	if oid != x.oid {
		return tid.Zero, true
	}
	return x.at, true
}

func (x *indexed) DataTID(_ context.Context, oid tid.OID, at tid.TID) (tid.TID, error) {
	if oid != x.oid || at != x.at {
		return tid.Zero, txn.ErrNotFound
	}
	return x.from, nil
}

// Questions about single records go to the source of the object, in its numbers, if that has an
// index; what it has from later is none of the merged database.
func TestIndexed(t *testing.T) {
	a := &indexed{memory(t, nil), 1, 8, 7}
	b := &indexed{memory(t, nil), 2, 12, 9}
	d := mustNew(t,
		merge.Source{Name: "a", Database: a, Last: 10, Next: 10},
		merge.Source{Name: "b", Database: b, Last: 10, Next: 10, Shift: 10},
		merge.Source{Name: "c", Database: memory(t, nil), Last: 10, Next: 10, Shift: 20})
	for _, tt := range []struct {
		oid   tid.OID
		last  tid.TID
		known bool
	}{{1, 8, true}, {2, 0, true}, {12, 0, false}, {11, 0, true}, {21, 0, false}, {30, 0, true}} {
		if last, known := d.LastRevision(tt.oid); last != tt.last || known != tt.known {
			t.Errorf("LastRevision(%v) = %v, %v, want %v, %v", tt.oid, last, known, tt.last, tt.known)
		}
	}
	for _, tt := range []struct {
		oid  tid.OID
		at   tid.TID
		from tid.TID
		err  error
	}{{1, 8, 7, nil}, {1, 9, 0, txn.ErrNotFound}, {12, 12, 0, txn.ErrNotFound}, {21, 8, 0, errors.ErrUnsupported}} {
		if from, err := d.DataTID(t.Context(), tt.oid, tt.at); from != tt.from || !errors.Is(err, tt.err) {
			t.Errorf("DataTID(%v, %v) = %v, %v, want %v, %v", tt.oid, tt.at, from, err, tt.from, tt.err)
		}
	}
}
