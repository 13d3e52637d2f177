package sqlitedb

import (
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// What a read waits for, because it wants what is not committed, is counted apart. A read
// of what is committed waits for nothing.
func TestWaits(t *testing.T) {
	db := mustOpenSample(t, filepath.Join(t.TempDir(), "db"), Options{})
	const object, at = 3, tid.TID(1 << 20)
	mustAdd(t, db, object, at, "x")
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
		must(t, db.Commit())
	}
}
