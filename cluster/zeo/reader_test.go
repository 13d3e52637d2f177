package zeo_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/cluster/zeo"
)

// What ZEO asks for beside the promises of a readable database: the objects one after
// the other, what changed, and what can be undone.
func TestReader(t *testing.T) {
	for name, db := range map[string]*txntest.Memory{"empty": {}, "small": txntest.Small(), "random": txntest.Random(3, 200, 30)} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			s := zeo.NewReader(db, zeo.ReaderConfig{Name: "memory"})
			var want, got []tid.OID
			for oid := range db.OIDs(ctx, tid.Max, 0) {
				want = append(want, oid)
			}
			for from := tid.OID(0); ; {
				oid, r, err := s.NextObject(ctx, from)
				if errors.Is(err, txn.ErrNoSuchObject) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				w, err := db.LoadBefore(ctx, oid, tid.Max)
				if diff := cmp.Diff(w, r); diff != "" || err != nil {
					t.Errorf("object %v (-want +got): %v\n%s", oid, err, diff)
				}
				got = append(got, oid)
				from = oid + 1
			}
			if !slices.Equal(got, want) {
				t.Errorf("objects %v, want %v", got, want)
			}

			var all []zeo.Change
			for info := range db.Backwards(ctx) {
				all = append([]zeo.Change{{TID: info.TID, OIDs: info.OIDs}}, all...)
			}
			log, err := s.UndoLog(ctx, 0, 1000, func(*txn.Info) bool { return true })
			if len(log) != len(all) || err != nil {
				t.Errorf("undo log of %d transactions, %v, want %d", len(log), err, len(all))
			}
			changes, from, err := s.Changes(ctx, tid.Zero, 1000)
			if diff := cmp.Diff(all, changes); diff != "" || from != tid.Zero || err != nil {
				t.Errorf("changes after %v, %v (-want +got):\n%s", from, err, diff)
			}
			if len(all) < 5 {
				return
			}
			changes, from, err = s.Changes(ctx, tid.Zero, 3) // too many: what is before is not told
			if diff := cmp.Diff(all[len(all)-3:], changes); diff != "" || from != all[len(all)-4].TID || err != nil {
				t.Errorf("changes after %v, %v (-want +got):\n%s", from, err, diff)
			}
			changes, from, err = s.Changes(ctx, all[1].TID, 1000)
			if diff := cmp.Diff(all[2:], changes); diff != "" || from != all[1].TID || err != nil {
				t.Errorf("changes after %v, %v (-want +got):\n%s", from, err, diff)
			}
			log, err = s.UndoLog(ctx, 1, 3, func(i *txn.Info) bool { return i.TID != all[len(all)-2].TID })
			if err != nil || len(log) != 2 || log[0].TID != all[len(all)-3].TID || log[1].TID != all[len(all)-4].TID {
				t.Errorf("undo log [1, 3) without the second: %v, %v", log, err)
			}
		})
	}
	s := zeo.NewReader(&txntest.Memory{}, zeo.ReaderConfig{})
	_, begin := s.Begin(t.Context(), zeo.Begin{})
	_, oids := s.NewOIDs(t.Context(), 1)
	for what, err := range map[string]error{"begin": begin, "new ids": oids, "pack": s.Pack(t.Context(), tid.Max)} {
		if !errors.Is(err, txn.ErrReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
