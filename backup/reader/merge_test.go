package reader

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// A file of the index that is found damaged when several become one is made again.
func TestDamageFoundByMerge(t *testing.T) {
	r := backuptest.New(t, memstore.New(memstore.Options{}), false)
	add := func(i int) {
		r.Listed([]*txn.Transaction{backuptest.Txn(tid.TID(0x10+i), txn.Record{OID: tid.OID(i), Data: fmt.Append(nil, i)})})
	}
	for i := range fanIn - 1 {
		add(i)
	}
	d, err := Open(t.Context(), r.Repository, r.Keys, r.Now(), Options{CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	files := func(want int) []string {
		t.Helper()
		if err := d.Filled(t.Context()); err != nil {
			t.Fatal(err)
		}
		list, err := filepath.Glob(filepath.Join(d.files.dir, "index-*"))
		if err != nil || len(list) != want {
			t.Fatalf("%d files, want %d: %v", len(list), want, err)
		}
		return list
	}
	f, err := os.OpenFile(files(fanIn - 1)[3], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff, 0xff}, int64(len(runMagic))); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	add(fanIn - 1)
	if err := d.Refresh(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	files(1)
}
