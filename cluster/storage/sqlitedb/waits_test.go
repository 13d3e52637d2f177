package sqlitedb

import (
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// What a read waits for, because it wants what is not committed, is counted apart. A read
// of what is committed waits for nothing.
func TestWaits(t *testing.T) {
	db, err := Open(t.Context(), filepath.Join(t.TempDir(), "db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, db)
	if err := backendtest.PrepareSample(db); err != nil {
		t.Fatal(err)
	}
	const object, at = 3, tid.TID(1 << 20)
	if err := db.AddObject(object, at, proto.ObjectData{Checksum: sha("x"), Data: []byte("x")}, nothing); err != nil {
		t.Fatal(err)
	}
	if err := db.AddTransaction(at, backend.Meta{OIDs: []tid.OID{object}, TTID: at}, nil); err != nil {
		t.Fatal(err)
	}
	var waits backend.Waits
	ctx := backend.WithWaits(t.Context(), &waits)
	reads := map[string]func() error{
		"TIDsFrom":         func() error { _, err := db.TIDsFrom(ctx, 0, at, at, 10); return err },
		"RecordsFrom":      func() error { _, err := db.RecordsFrom(ctx, 0, at, at, 0, 10); return err },
		"FetchTransaction": func() error { _, _, err := db.FetchTransaction(ctx, at); return err },
		"FetchObject":      func() error { _, err := db.FetchObject(ctx, object, at); return err },
	}
	for _, committed := range []bool{false, true} {
		for name, read := range reads {
			if err := read(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if waited := waits.Take() > 0; waited == committed {
				t.Errorf("%s: it has waited: %v, committed: %v", name, waited, committed)
			}
		}
		if err := db.Commit(); err != nil {
			t.Fatal(err)
		}
	}
}
