package sqlitedb

import (
	"context"
	"crypto/sha1"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

var nothing proto.Opt[tid.TID]

func sha(s string) proto.Hash { return sha1.Sum([]byte(s)) }

func TestExclusiveUse(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "db"), filepath.Join(dir, "link")
	db := mustOpen(t, path, Options{})
	if err := os.Symlink("db", link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, link, "file:" + path} {
		if _, err := Open(context.Background(), p, Options{}); !errors.Is(err, backend.ErrLocked) || !strings.Contains(err.Error(), "database is locked") {
			t.Errorf("second use of %s: %v, want %v", p, err, backend.ErrLocked)
		}
	}
	mustClose(t, mustOpen(t, filepath.Join(dir, "other"), Options{}))
	if err := db.SetName("still writable"); err != nil {
		t.Error(err)
	}
	mustClose(t, db)
	mustClose(t, mustOpen(t, link, Options{}))
}

// Slashes at the beginning of a path are not followed by the name of a host.
func TestPathWithTwoSlashes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	mustClose(t, mustOpen(t, "/"+path, Options{}))
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		t.Errorf("the file is %v, %v", st, err)
	}
	mustClose(t, mustOpen(t, "file:////"+path, Options{}))
}

func TestNames(t *testing.T) {
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"/a/b.sqlite":             "/a/b.sqlite",
		"rel":                     "rel",
		"~/x":                     filepath.Join(home, "x"),
		":memory:":                "",
		"file::memory:":           "",
		"file:/a/b?cache_size=-1": "/a/b",
		"file:~/x":                "~/x", // no expansion in a URI
		"file:/a%20b":             "/a%20b",
		"file:///a/b":             "/a/b",
		"file:/a?cksumvfs=0":      "/a",
		"/odd?name#with%signs":    "/odd?name#with%signs",
		"file:/a?synchronous=NORMAL&journal_mode=delete": "/a",
	} {
		if n, err := parseName(in); err != nil || n.path != want {
			t.Errorf("parseName(%q) = %+v, %v, want path %q", in, n, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                                  "empty",
		"file:":                             "no path",
		"file:?cache_size=1":                "no path",
		"file:/a?mode=ro":                   "unknown parameter mode",
		"file:/a?cache_size=1&cache_size=2": "given twice",
		"file:/a?cksumvfs=1":                "cksumvfs",
		"file:/a?cksumvfs=2":                "cksumvfs",
		"file:/a?cache_size=%zz":            "invalid URL escape",
		"file:/a?cache_size=1;drop":         "invalid semicolon",
		"file:/a?journal_mode=a+b":          "not a value",
		"file://host/a":                     "another host",
		"~nobody-of-that-name/x":            "unknown user",
	} {
		if _, err := parseName(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseName(%q): %v, want an error that says %q", in, err, want)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"", "/a", "file:/a?cache_size=-5", "file:///a?b=c", "~x/y", ":memory:", "file:%zz?%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseName(s)
		if err == nil && strings.ContainsAny(strings.TrimPrefix(n.dsn(), "file:"), "?#") {
			t.Errorf("%q becomes %q, of which SQLite would take a part for parameters", s, n.dsn())
		}
	})
}

// A path may have any characters: none of them is taken for a parameter.
func TestOddPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?mode=memory#c%41")
	db := mustOpen(t, path, Options{})
	if err := db.SetName("x"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		t.Errorf("%v, %v", st, err)
	}
	db = mustOpen(t, path, Options{})
	if cfg, err := db.Config(); err != nil || cfg.Name != "x" {
		t.Errorf("%+v, %v", cfg, err)
	}
}

// The defaults of a driver must not decide about durability.
func TestPragmasOfEveryConnection(t *testing.T) {
	d, err := newDialect(filepath.Join(t.TempDir(), "db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, role := range []sqldb.Role{sqldb.Writer, sqldb.Reader, sqldb.Writer} {
		dc, err := d.Connect(t.Context(), role)
		if err != nil {
			t.Fatal(err)
		}
		for key, want := range map[string]string{
			"synchronous": "2", "journal_mode": "wal", "busy_timeout": "60000", "temp_store": "2",
			"page_size": "8192", "wal_autocheckpoint": "0", "foreign_keys": "0",
		} {
			if got, err := pragma(dc, key); err != nil || got != want {
				t.Errorf("role %d: %s is %s, %v, want %s", role, key, got, err, want)
			}
		}
		if got, err := pragma(dc, "query_only"); err != nil || (got == "1") != (role == sqldb.Reader) {
			t.Errorf("role %d: query_only is %s, %v", role, got, err)
		}
		if err := dc.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestPragmasOfName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	d, err := newDialect("file:"+path+"?journal_mode=PERSIST&synchronous=EXTRA&cache_size=77", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	dc, err := d.Connect(t.Context(), sqldb.Writer)
	if err != nil {
		t.Fatal(err)
	}
	defer dc.Close()
	for key, want := range map[string]string{"synchronous": "3", "journal_mode": "persist", "cache_size": "77"} {
		if got, err := pragma(dc, key); err != nil || got != want {
			t.Errorf("%s is %s, %v, want %s", key, got, err, want)
		}
	}
	if d.Readers() != 0 {
		t.Error("readers would wait for commits, and commits for readers")
	}
}

func TestMemory(t *testing.T) {
	db := mustOpen(t, ":memory:", Options{})
	if err := db.SetName("x"); err != nil {
		t.Fatal(err)
	}
	if cfg, err := db.Config(); err != nil || cfg.Name != "x" {
		t.Errorf("%+v, %v", cfg, err)
	}
}

func TestForeignFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	for _, n := range []int{1, 100} { // less than a header, and more
		if err := os.WriteFile(path, []byte(strings.Repeat("this is no database\n", n)), 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(context.Background(), path, Options{}); err == nil || !strings.Contains(err.Error(), "not an SQLite file") {
			t.Errorf("a text file: %v", err)
		}
	}
	header := make([]byte, 4096)
	copy(header, "SQLite format 3\x00\x10\x00\x01\x01\x08")
	if err := os.WriteFile(path, header, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), path, Options{}); err == nil || !strings.Contains(err.Error(), "8 reserved bytes") {
		t.Errorf("a file with page checksums: %v", err)
	}
	if _, err := Open(context.Background(), filepath.Join(path, "below"), Options{}); err == nil {
		t.Error("a path below a file was opened")
	}
}

// Whether data is deduplicated is decided by the table, which an erase makes anew.
func TestEraseForgetsDedup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	unique := func() bool {
		return len(query(t, path, "SELECT 1 FROM sqlite_master WHERE name = '_data_i1'")) == 1
	}
	same := func(o Options, erase bool) bool {
		t.Helper()
		db := mustOpen(t, path, o)
		defer mustClose(t, db)
		if erase {
			if err := db.Erase(); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.SetID(1); err != nil {
			t.Fatal(err)
		}
		if err := db.ChangePartitionTable(1, 0, []proto.CellChange{{ID: 1, State: proto.UpToDate}}, true, 0); err != nil {
			t.Fatal(err)
		}
		d := proto.ObjectData{Checksum: sha("x"), Data: []byte("x")}
		var ids [2]backend.DataID
		for i := range ids {
			var err error
			if ids[i], err = db.HoldData(1, d, nothing); err != nil {
				t.Fatal(err)
			}
		}
		return ids[0] == ids[1]
	}
	if !same(Options{Dedup: true}, false) || !unique() {
		t.Error("not deduplicated")
	}
	if !same(Options{}, false) {
		t.Error("an existing table lost its index")
	}
	if same(Options{}, true) || unique() {
		t.Error("deduplicated after an erase without the option")
	}
	if same(Options{Dedup: true}, false) || unique() {
		t.Error("the option changed a table that exists")
	}
	if !same(Options{Dedup: true}, true) || !unique() {
		t.Error("not deduplicated after an erase with the option")
	}
}
