package sqlitedb

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/storage/sqldbtest"
)

func openBench(b *testing.B) *sqldb.DB {
	db, err := Open(context.Background(), filepath.Join(b.TempDir(), "db"), Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	})
	return db
}

func BenchmarkImport(b *testing.B) { sqldbtest.BenchImport(b, openBench(b)) }

func BenchmarkGetObject(b *testing.B) { sqldbtest.BenchGetObject(b, openBench(b)) }

func BenchmarkCommit(b *testing.B) { sqldbtest.BenchCommit(b, openBench(b)) }
