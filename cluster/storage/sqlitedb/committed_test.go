package sqlitedb

import (
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Reads that can do without what is not committed do without it, and see the rest.
func TestReadCommitted(t *testing.T) {
	db := mustOpenSample(t, filepath.Join(t.TempDir(), "db"), Options{})
	const object, early, late = 3, tid.TID(1 << 20), tid.TID(1 << 30)
	db.ReadCommitted(late - 1)
	sees := func(what string, at tid.TID, want bool) {
		t.Helper()
		if _, err := db.Transaction(t.Context(), at); (err == nil) != want {
			t.Errorf("%s: transaction %v: %v, want it %v", what, at, err, want)
		}
		if o, err := db.GetObject(t.Context(), object, proto.Some(at), nothing); (err == nil && o.Serial == at) != want {
			t.Errorf("%s: object at %v: %v, %v, want it %v", what, at, o, err, want)
		}
		if _, err := db.FetchObject(t.Context(), object, at); err != nil {
			t.Errorf("%s: the record of %v: %v", what, at, err)
		}
	}
	mustAdd(t, db, object, early, "early")
	sees("before the commit", early, false)
	must(t, db.AddObject(object, early+1, proto.ObjectData{}, proto.Some(early)))
	if o, err := db.FetchObject(t.Context(), object, early+1); err != nil || string(o.Data) != "early" {
		t.Errorf("a link to what is not committed: %q, %v", o.Data, err)
	}
	mustAdd(t, db, object, late, "late")
	sees("before the commit", late, true)
	must(t, db.Commit())
	sees("after the commit", early, true)
	sees("after the commit", late, true)
	db.ReadCommitted(tid.Zero)
	mustAdd(t, db, object, early+2, "again")
	sees("when all is to be seen", early+2, true)
}
