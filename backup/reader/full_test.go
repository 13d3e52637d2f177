package reader

import (
	"fmt"
	"os"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Where the directory of the index cannot be written, memory is used up to its limit.
func TestDirectoryThatCannotBeWritten(t *testing.T) {
	r := backuptest.New(t, memstore.New(memstore.Options{}), false)
	dir := t.TempDir()
	const limit = 16 << 10
	d, err := Open(t.Context(), r.Repository, r.Keys, r.Now(), Options{CacheDir: dir, CacheSize: limit})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Filled(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(d.files.dir); err != nil {
		t.Fatal(err)
	}
	const n, objects = 30, 300
	for i := range n {
		at := tid.TID(0x1000 + i)
		var records []txn.Record
		for oid := range objects {
			records = append(records, txn.Record{OID: tid.OID(oid * (7 + i)), TID: at, Data: fmt.Appendf(nil, "%d %d", i, oid)})
		}
		r.Listed([]*txn.Transaction{backuptest.Txn(at, records...)})
	}
	if err := d.Refresh(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := d.Filled(t.Context()); err != nil {
		t.Fatal(err)
	}
	if used := d.fill.used.Load(); used > limit/2 || used == 0 {
		t.Errorf("indexes take %d bytes of memory, the limit is %d", used, limit/2)
	}
	for i := range n {
		oid := tid.OID((objects - 1) * (7 + i))
		if rev, err := d.LoadAt(t.Context(), oid, tid.TID(0x1000+i)); err != nil || string(rev.Data) != fmt.Sprintf("%d %d", i, objects-1) {
			t.Errorf("object %v: %q, %v", oid, rev.Data, err)
		}
	}
}
