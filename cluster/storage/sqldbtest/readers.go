package sqldbtest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

// A reading connection keeps its transaction until something is committed: no
// load may show less than what was committed before it was asked for.
func testLoadsSeeEveryCommit(t *testing.T, p Place) {
	d, err := p.Dialect()
	must(t, err)
	db, err := sqldb.Open(t.Context(), d, sqldb.Options{})
	must(t, err)
	defer func() { must(t, db.Close()) }()
	if err := backendtest.PrepareSample(db); err != nil {
		t.Fatal(err)
	}
	const oid = 3
	var committed atomic.Uint64
	commit := func(n tid.TID) error {
		data := fmt.Appendf(nil, "revision %d", n)
		if err := db.AddObject(oid, n, proto.ObjectData{Checksum: sha(string(data)), Data: data}, none); err != nil {
			return err
		}
		if err := db.Commit(); err != nil {
			return err
		}
		committed.Store(uint64(n))
		return nil
	}
	if err := commit(8); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 * max(d.Readers(), 1) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				least := tid.TID(committed.Load())
				o, err := db.GetObject(t.Context(), oid, none, none)
				if err != nil {
					t.Error(err)
					return
				}
				if want := fmt.Sprintf("revision %d", o.Serial); o.Serial < least || string(o.Data) != want {
					t.Errorf("loaded %q at %d after %d was committed", o.Data, o.Serial, least)
					return
				}
				before := proto.Some(o.Serial) // the one before it, then
				switch older, err := db.GetObject(t.Context(), oid, none, before); {
				case o.Serial == 8 && err == nil, o.Serial > 8 && err != nil:
					t.Errorf("before %d: %v", o.Serial, err)
					return
				case err == nil && (older.Serial >= o.Serial || older.Next != o.Serial):
					t.Errorf("before %d: %d, followed by %d", o.Serial, older.Serial, older.Next)
					return
				}
			}
		})
	}
	for n := range tid.TID(400) {
		if err := commit(12 + 4*n); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}
