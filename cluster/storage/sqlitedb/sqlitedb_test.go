package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/storage/sqldbtest"
)

// file is a database of the conformance suite. A crash is a copy of the files as
// they are while the database is open, which is what a new process finds.
type file struct {
	t    *testing.T
	dir  string
	n    int
	o    Options
	uri  string         // parameters
	sql  *sqldb.Options // instead of o
	open *sqldb.DB
}

func (f *file) path() string { return filepath.Join(f.dir, fmt.Sprint("db", f.n)) }

func (f *file) Open() (backend.Backend, error) {
	if f.sql == nil {
		db, err := Open(context.Background(), "file:"+f.path()+f.uri, f.o)
		f.open = db
		return db, err
	}
	d, err := newDialect(f.path(), nil)
	if err != nil {
		return nil, err
	}
	db, err := sqldb.Open(context.Background(), d, *f.sql)
	f.open = db
	return db, err
}

func (f *file) Crash() error {
	old := f.path()
	f.n++
	for _, suffix := range []string{"", "-wal", "-journal"} {
		if err := copyFile(f.path()+suffix, old+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	db := f.open
	f.t.Cleanup(func() { db.Close() }) // in vain, if its disk was broken
	return nil
}

func copyFile(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, r); err != nil {
		return errors.Join(err, w.Close())
	}
	return w.Close()
}

func TestConformance(t *testing.T) {
	for name, f := range map[string]file{
		"default": {},
		"dedup":   {o: Options{Dedup: true}},
		// Whatever is done meets what is written, but not committed.
		"flushed": {sql: &sqldb.Options{MaxBytes: 1}},
		// Nobody asked for some of the commits.
		"committed": {sql: &sqldb.Options{MaxRows: 3, MaxRecent: 4}},
		"journal":   {uri: "?journal_mode=DELETE&synchronous=OFF"}, // no reader beside the writer
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backendtest.Database {
				f := f
				f.t, f.dir = t, t.TempDir()
				return &f
			})
		})
	}
}

// serverLike is SQLite with the tables that only database servers have.
type serverLike struct{ *dialect }

func (d serverLike) Tables() []string { return append(d.dialect.Tables(), "bigdata", "todel") }

func (d serverLike) CreateTable(table, as string, dedup bool) string {
	switch table {
	case "bigdata":
		return "CREATE TABLE " + as + " (id INTEGER PRIMARY KEY, value BLOB NOT NULL)"
	case "todel":
		return "CREATE TABLE " + as + " (data_id INTEGER PRIMARY KEY)"
	}
	return d.dialect.CreateTable(table, as, dedup)
}

// place is a database of the suite of dialects.
type place struct {
	file
	server bool // serverLike
}

func (p *place) Dialect() (sqldb.Dialect, error) {
	d, err := newDialect(p.path(), nil)
	if err != nil || !p.server {
		return d, err
	}
	return serverLike{d}, nil
}

func (p *place) Crash(db *sqldb.DB) error {
	p.open = db
	return p.file.Crash()
}

func (p *place) Query(text string) ([]string, error) { return query(p.t, p.path(), text), nil }

func (p *place) Exec(statements ...string) error {
	script(p.t, p.path(), strings.Join(statements, ";"))
	return nil
}

func TestDialect(t *testing.T) {
	for name, server := range map[string]bool{"as it is": false, "with the tables of servers": true} {
		t.Run(name, func(t *testing.T) {
			sqldbtest.Run(t, func(t *testing.T) sqldbtest.Place { return &place{file{t: t, dir: t.TempDir()}, server} })
		})
	}
}
