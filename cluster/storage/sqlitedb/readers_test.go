package sqlitedb

import (
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/sqldb"
)

// Connections that have nothing to read do not keep the log from being copied.
func TestIdleReadersHoldNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := mustOpenSample(t, path, Options{})
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
