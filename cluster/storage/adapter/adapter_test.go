package adapter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(t.Context(), Config{Adapter: SQLite, Database: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	// An error about the destination of an import says where that is configured.
	conf := filepath.Join(t.TempDir(), "importer.conf")
	if err := os.WriteFile(conf, []byte("[dst]\ndatabase: x/none/s\n[root]\nstorage:\n  <filestorage>\n    path x.fs\n  </filestorage>\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{Adapter: "DB2"}, "unknown adapter"},
		{Config{Adapter: SQLite, Database: path, Engine: "InnoDB"}, "SQLite has none"},
		{Config{Adapter: SQLite, Database: filepath.Join(path, "x")}, path},
		{Config{Adapter: MySQL, Engine: "TokuDB"}, "unsupported engine"},
		{Config{Adapter: PyMySQL, Database: "u:secret@neo" + path}, "open u@neo" + path + ": "},
		{Config{Adapter: Importer, Database: path + ".conf"}, path + ".conf"},
		{Config{Adapter: Importer, Database: conf}, conf + ": section [dst]: open x/none/s: "},
		{Config{Adapter: Importer, Database: path, Engine: "InnoDB"}, "option of its destination"},
	} {
		if db, err := Open(t.Context(), tt.cfg); db != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, %v; want %q", tt.cfg, db, err, tt.want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ended, Config{Adapter: SQLite, Database: path}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
	if db, err = Open(t.Context(), Config{Adapter: SQLite, Database: path}); err != nil {
		t.Fatalf("nothing is left locked: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}
