package mysqldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/mysqldb/mysqltest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/storage/sqldbtest"
)

func TestMain(m *testing.M) { os.Exit(mysqltest.Main(m)) }

// mortal is a dialect of a process that may die: it connects no more then.
type mortal struct {
	*dialect
	dead atomic.Bool
}

var errDead = errors.New("the process has died")

func (m *mortal) Connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	if m.dead.Load() {
		return nil, errDead
	}
	return m.dialect.Connect(ctx, role)
}

// database is a database of the conformance suites. A crash ends all connections, as
// the death of a process does.
type database struct {
	t      *testing.T
	server *mysqltest.Server
	name   string
	engine string
	o      sqldb.Options
	d      *mortal
	db     *sqldb.DB
}

func newDatabase(t *testing.T, engine string, o sqldb.Options) *database {
	s := mysqltest.Get(t)
	return &database{t: t, server: s, name: s.Database(t), engine: engine, o: o}
}

func (b *database) dialect() (*mortal, error) {
	d, err := newDialect(b.server.String(b.name), Options{Engine: b.engine})
	if err != nil {
		return nil, err
	}
	b.d = &mortal{dialect: d}
	return b.d, nil
}

func (b *database) Open() (backend.Backend, error) {
	d, err := b.dialect()
	if err != nil {
		return nil, err
	}
	b.db, err = sqldb.Open(context.Background(), d, b.o)
	return b.db, err
}

func (b *database) Crash() error {
	b.d.dead.Store(true)
	b.server.Disconnect(b.t, b.name)
	db := b.db
	b.t.Cleanup(func() { db.Close() }) // in vain
	return nil
}

// place is a database of the suite of dialects.
type place struct{ *database }

func (p place) Dialect() (sqldb.Dialect, error) {
	d, err := p.dialect()
	if err != nil {
		return nil, err // not d, which is no nil interface
	}
	return d, nil
}

func (p place) Crash(db *sqldb.DB) error {
	p.db = db
	return p.database.Crash()
}

func (p place) Query(query string) ([]string, error) { return p.server.Query(p.t, p.name, query), nil }

func (p place) Exec(statements ...string) error {
	p.server.Exec(p.t, p.name, strings.Join(statements, ";"))
	return nil
}

func TestConformance(t *testing.T) {
	for name, c := range map[string]struct {
		engine string
		o      sqldb.Options
	}{
		"InnoDB":        {InnoDB, sqldb.Options{}},
		"RocksDB dedup": {RocksDB, sqldb.Options{Dedup: true}},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backendtest.Database { return newDatabase(t, c.engine, c.o) })
		})
	}
}

func TestDialect(t *testing.T) {
	for _, engine := range []string{InnoDB, RocksDB} {
		t.Run(engine, func(t *testing.T) {
			sqldbtest.Run(t, func(t *testing.T) sqldbtest.Place { return place{newDatabase(t, engine, sqldb.Options{})} })
		})
	}
}
