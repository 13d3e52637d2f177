package restore

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// A restore may end before a transaction that begins in the last segment it needs, and ends in the
// next one.
func TestBeforeCut(t *testing.T) {
	repo := backuptest.New(t, memstore.New(memstore.Options{}), false)
	rec := func(oid tid.OID, at tid.TID) txn.Record {
		return txn.Record{OID: oid, TID: at, Data: fmt.Appendf(nil, "%v/%v", oid, at)}
	}
	cut := []txn.Record{rec(1, 0x30), rec(2, 0x30), rec(3, 0x30)}
	repo.CutAfter([]*txn.Transaction{backuptest.Txn(0x10, rec(1, 0x10)), backuptest.Txn(0x20, rec(2, 0x20))},
		backuptest.Txn(0x30, cut...), cut[:1], cut[1:2], cut[2:])
	repo.Tail(backuptest.Txn(0x40, rec(4, 0x40)))
	for i, at := range []tid.TID{0x10, 0x2f, 0x30, 0x40} {
		src := source(repo, at)
		res, err := src.ToFile(t.Context(), filepath.Join(t.TempDir(), "out.fs"), FileOptions{})
		if err != nil || res.Txns != []int64{1, 2, 3, 4}[i] {
			t.Errorf("file at %v: %+v, %v", at, res, err)
		}
		dir := t.TempDir()
		res, err = src.ToTables(t.Context(), TablesOptions{Cluster: "c", Partitions: 2, Nodes: 1, Dir: dir})
		if err != nil || res.Txns != []int64{1, 2, 3, 4}[i] || res.Records != []int64{1, 2, 5, 6}[i] {
			t.Errorf("tables at %v: %+v, %v", at, res, err)
			continue
		}
		db, err := adapter.Open(t.Context(), adapter.Config{Adapter: adapter.SQLite, Database: filepath.Join(dir, "storage1.sqlite")})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}
