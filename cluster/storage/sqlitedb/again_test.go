package sqlitedb

import (
	"context"
	"crypto/sha1"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// Records are written once more by an import, whose new copies of the data are dropped, while
// transactions that share them are unlocked. No transaction may lose its data.
func TestWrittenAgainWhileShared(t *testing.T) {
	for delay := time.Duration(0); delay < 60*time.Millisecond; delay += 4 * time.Millisecond {
		testWrittenAgain(t, delay)
	}
}

func testWrittenAgain(t *testing.T, delay time.Duration) {
	db, err := Open(context.Background(), filepath.Join(t.TempDir(), "db"), Options{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	defer db.Close()
	must(db.SetID(1))
	must(db.ChangePartitionTable(1, 0, []proto.CellChange{{Partition: 0, ID: 1, State: proto.UpToDate}}, true, 0))
	must(db.Commit())
	const n = 2000
	data := func(i int) proto.ObjectData {
		d := fmt.Appendf(nil, "data of %d", i)
		return proto.ObjectData{Checksum: sha1.Sum(d), Data: d}
	}
	for i := range n {
		must(db.AddObject(tid.OID(i), 10, data(i), proto.Opt[tid.TID]{}))
	}
	must(db.Commit())
	for i := range n { // the import, and an undo of each
		must(db.AddObject(tid.OID(i), 10, data(i), proto.Opt[tid.TID]{}))
		id, err := db.HoldData(tid.OID(i), proto.ObjectData{}, proto.Some(tid.TID(10)))
		must(err)
		must(db.Vote(tid.TID(100+i), []backend.Store{{OID: tid.OID(i), Data: id, DataSerial: 10}}, &backend.Meta{OIDs: []tid.OID{tid.OID(i)}}, nil))
		must(db.Lock(tid.TID(100+i), tid.TID(100+i), false))
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := db.Commit(); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(delay)
	for i := range n {
		must(db.Unlock(tid.TID(100+i), tid.TID(100+i), true, true, false))
	}
	wg.Wait()
	must(db.Commit())
	for i := range n {
		o, err := db.GetObject(t.Context(), tid.OID(i), proto.Some(tid.TID(100+i)), proto.Opt[tid.TID]{})
		if err != nil || string(o.Data) != string(data(i).Data) {
			t.Errorf("object %d: %q, %v", i, o.Data, err)
		}
	}
}
