package mysqldb

import (
	"context"
	"testing"

	"github.com/neozodb/neo/cluster/storage/mysqldb/mysqltest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/storage/sqldbtest"
)

// The server of the tests flushes nothing to the disk: what is measured are round trips, and what
// the server computes. Command neobench measures the rest.
func bench(b *testing.B, run func(*testing.B, *sqldb.DB)) {
	for _, engine := range []string{InnoDB, RocksDB} {
		b.Run(engine, func(b *testing.B) {
			s := mysqltest.Get(b)
			db, err := Open(context.Background(), s.String(s.Database(b)), Options{Engine: engine})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() {
				if err := db.Close(); err != nil {
					b.Error(err)
				}
			})
			run(b, db)
		})
	}
}

func BenchmarkImport(b *testing.B) { bench(b, sqldbtest.BenchImport) }

func BenchmarkGetObject(b *testing.B) { bench(b, sqldbtest.BenchGetObject) }

func BenchmarkCommit(b *testing.B) { bench(b, sqldbtest.BenchCommit) }
