// Package adapter opens the database of a storage node by the name of its kind and
// its database string, as the options of a node and the configuration of an import give them.
package adapter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/mysqldb"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/importer"
	"github.com/neozodb/neo/importer/config"
)

// Names of adapters.
const (
	SQLite   = "SQLite"
	MySQL    = "MySQL"
	MySQLdb  = "MySQLdb" // those two are MySQL under the names of Python's clients
	PyMySQL  = "PyMySQL"
	Importer = "Importer"
)

// ErrUnknown reports a name that is not one of an adapter.
var ErrUnknown = errors.New("unknown adapter")

// Config says which database to open. A zero field takes the documented default.
type Config struct {
	Adapter  string // required
	Database string // as the adapter understands it; required
	Engine   string // of MySQL: InnoDB, the default, or RocksDB
	// Wait is how long to wait for a database server; negative: until ctx ends. Default:
	// not at all. A file is not waited for.
	Wait  time.Duration
	Dedup bool // a new database keeps equal data once
	// HalfImported accepts a database into which an import has not come to its end.
	// Else: [backend.ErrHalfImported]. With the adapter Importer, the destination alone is
	// opened, without the sources.
	HalfImported bool
	// Progress is told how far the reading of a Data.fs without a usable index is, in
	// bytes, when an import is opened. Default: none.
	Progress func(source string, pos, size int64)
	Log      *slog.Logger // default: discard
}

// Open opens a database, creating it if need be. [ErrUnknown], and
// [backend.ErrLocked]: another process uses it.
func Open(ctx context.Context, cfg Config) (backend.Backend, error) {
	if cfg.Adapter != Importer { // which names the file where its engine is
		if err := Check(cfg.Adapter, cfg.Engine, ""); err != nil {
			return nil, err
		}
	}
	switch cfg.Adapter {
	case SQLite:
		db, err := sqlitedb.Open(ctx, cfg.Database, sqlitedb.Options{Dedup: cfg.Dedup, HalfImported: cfg.HalfImported, Log: cfg.Log})
		if err != nil {
			return nil, err // not db, which is no nil interface
		}
		return db, nil
	case MySQL, MySQLdb, PyMySQL:
		db, err := mysqldb.Open(ctx, cfg.Database, mysqldb.Options{Engine: cfg.Engine, Wait: cfg.Wait, Dedup: cfg.Dedup, HalfImported: cfg.HalfImported, Log: cfg.Log})
		if err != nil {
			return nil, err // not db, which is no nil interface
		}
		return db, nil
	}
	return openImporter(ctx, cfg)
}

// Check returns an error for the name of an adapter that is none, [ErrUnknown], for an engine that
// the adapter cannot have, "" being the default, and for a database string that it does not
// understand, unless that is "". It opens nothing.
func Check(adapter, engine, database string) error {
	switch adapter {
	case MySQL, MySQLdb, PyMySQL:
		if err := mysqldb.CheckEngine(engine); err != nil || database == "" {
			return err
		}
		return mysqldb.CheckName(database)
	case SQLite:
		if engine == "" && database != "" {
			return sqlitedb.CheckName(database)
		}
		fallthrough
	case Importer:
		if engine != "" {
			return fmt.Errorf("unsupported engine %q: %s has none", engine, adapter)
		}
		return nil
	}
	return fmt.Errorf("%w %q: want Importer, MySQL, MySQLdb, PyMySQL or SQLite", ErrUnknown, adapter)
}

// Name returns a database string as messages may show it, without a password.
func Name(adapter, database string) string {
	switch adapter {
	case MySQL, MySQLdb, PyMySQL:
		return mysqldb.Redact(database)
	}
	return database
}

// Place returns where a database is, for operators: its name, of a file with the whole path.
func Place(adapter, database string) string {
	if adapter != SQLite && adapter != Importer || strings.HasPrefix(database, "file:") {
		return Name(adapter, database)
	}
	if path, err := filepath.Abs(database); err == nil {
		return path
	}
	return database
}

// openImporter opens the destination and the sources that an importer.conf names.
func openImporter(ctx context.Context, cfg Config) (backend.Backend, error) {
	imp, err := importOf(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.HalfImported {
		return imp.Open(ctx, imp.Import.Destination)
	}
	db, err := importer.Open(ctx, imp)
	if err != nil {
		return nil, err // not db, which is no nil interface
	}
	return db, nil
}

// ExtendImport makes the import of an importer.conf go on to where its source ends now: see
// [importer.Extend].
func ExtendImport(ctx context.Context, cfg Config) (importer.Extension, error) {
	imp, err := importOf(cfg)
	if err != nil {
		return importer.Extension{}, err
	}
	return importer.Extend(ctx, imp)
}

// importOf returns the import that an importer.conf describes.
func importOf(cfg Config) (importer.Config, error) {
	if cfg.Engine != "" {
		return importer.Config{}, fmt.Errorf("unsupported engine %q: the engine of an import is an option of its destination, in %s", cfg.Engine, cfg.Database)
	}
	imp, err := config.ReadFile(cfg.Database)
	if err != nil {
		return importer.Config{}, err
	}
	destination := func(ctx context.Context, d config.Destination) (importer.Native, error) {
		db, err := Open(ctx, Config{Adapter: d.Adapter, Database: d.Database, Engine: d.Engine, Wait: d.Wait, Dedup: cfg.Dedup, HalfImported: true, Log: cfg.Log})
		if err != nil {
			return nil, fmt.Errorf("%s: section [%s]: %w", cfg.Database, d.Section, err)
		}
		return db.(importer.Native), nil // each native backend is one
	}
	return importer.Config{Import: imp, Open: destination, Progress: cfg.Progress, Log: cfg.Log}, nil
}
