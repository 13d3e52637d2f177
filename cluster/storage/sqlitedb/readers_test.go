package sqlitedb

import (
	"context"
	"fmt"
	"path/filepath"
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
func TestLoadsSeeEveryCommit(t *testing.T) {
	db, err := Open(context.Background(), filepath.Join(t.TempDir(), "db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, db)
	if err := backendtest.PrepareSample(db); err != nil {
		t.Fatal(err)
	}
	const oid = 3
	var committed atomic.Uint64
	commit := func(n tid.TID) error {
		data := fmt.Appendf(nil, "revision %d", n)
		if err := db.AddObject(oid, n, proto.ObjectData{Checksum: sha(string(data)), Data: data}, nothing); err != nil {
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
	for range 2 * readers {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				least := tid.TID(committed.Load())
				o, err := db.GetObject(t.Context(), oid, nothing, nothing)
				if err != nil {
					t.Error(err)
					return
				}
				if want := fmt.Sprintf("revision %d", o.Serial); o.Serial < least || string(o.Data) != want {
					t.Errorf("loaded %q at %d after %d was committed", o.Data, o.Serial, least)
					return
				}
				before := proto.Some(o.Serial) // the one before it, then
				switch older, err := db.GetObject(t.Context(), oid, nothing, before); {
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

// Connections that have nothing to read do not keep the log from being copied.
func TestIdleReadersHoldNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(context.Background(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, db)
	if err := backendtest.PrepareSample(db); err != nil {
		t.Fatal(err)
	}
	if _, err := db.GetObject(t.Context(), 1, nothing, nothing); err != nil {
		t.Fatal(err)
	}
	text := "later"
	if err := db.AddObject(3, 8, proto.ObjectData{Checksum: sha(text), Data: []byte(text)}, nothing); err != nil {
		t.Fatal(err)
	}
	if err := db.Commit(); err != nil {
		t.Fatal(err)
	}
	d, err := parseName(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := sqldb.Connect(t.Context(), &dialect{name: d, wal: true}, sqldb.Writer)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	pages, copied, err := walSize(c, "PASSIVE")
	if err != nil {
		t.Fatal(err)
	}
	if pages == 0 || copied < pages {
		t.Errorf("%d of %d pages copied", copied, pages)
	}
}
