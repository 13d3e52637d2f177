package mysqldb

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/mysqldb/mysqltest"
	"github.com/neozodb/neo/cluster/tid"
)

// A read for which the server keeps a client waiting ends with its context, and the next one is answered.
func TestReadIsInterrupted(t *testing.T) {
	s := mysqltest.Get(t)
	name := s.Database(t)
	db, err := Open(t.Context(), s.String(name), Options{})
	must(t, err)
	defer func() { must(t, db.Close()) }()
	must(t, backendtest.PrepareSample(db))
	must(t, db.AddObject(1, 8, proto.ObjectData{Checksum: sha("x"), Data: []byte("x")}, none))
	must(t, db.Commit())

	// Another connection, which has no transaction.
	d, err := newDialect(s.String(name), Options{})
	must(t, err)
	connector, err := mysql.NewConnector(d.cfg)
	must(t, err)
	c, err := connector.Connect(t.Context())
	must(t, err)
	reads := map[string]func(ctx context.Context) error{
		"GetObject":   func(ctx context.Context) error { _, err := db.GetObject(ctx, 1, none, none); return err },
		"RecordsFrom": func(ctx context.Context) error { _, err := db.RecordsFrom(ctx, 1, 0, tid.Max, 0, 9); return err },
		"GetObjects": func(ctx context.Context) (failed error) {
			keys := []backend.ObjectKey{{OID: 1, At: proto.Some(tid.TID(8))}, {OID: 1, At: proto.Some(tid.TID(8))}}
			db.GetObjects(ctx, keys, func(_ int, _ *backend.Object, err error) bool {
				failed = err
				return err == nil
			})
			return failed
		},
	}
	for what, read := range reads {
		must(t, exec(c, "LOCK TABLES obj WRITE"))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := read(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want %v", what, err, context.DeadlineExceeded)
		}
		cancel()
		must(t, exec(c, "UNLOCK TABLES"))
		if err := read(t.Context()); err != nil {
			t.Errorf("%s after one that was interrupted: %v", what, err)
		}
	}
	must(t, c.Close())
}
