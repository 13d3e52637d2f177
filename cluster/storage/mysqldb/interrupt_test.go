package mysqldb

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"golang.org/x/sync/errgroup"

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

// Reads that end at any moment take nothing from others: each answer is the right one, and a read that ends
// says so by the error of its context.
func TestInterruptedAmongOthers(t *testing.T) {
	s := mysqltest.Get(t)
	db, err := Open(t.Context(), s.String(s.Database(t)), Options{})
	must(t, err)
	defer func() { must(t, db.Close()) }()
	must(t, backendtest.PrepareSample(db))
	const objects = 40
	text := func(oid tid.OID) string { return strings.Repeat(fmt.Sprintf("object %d.", oid), 1+int(oid)*100) }
	for oid := tid.OID(1); oid <= objects; oid++ {
		must(t, db.AddObject(oid, 8, proto.ObjectData{Checksum: sha(text(oid)), Data: []byte(text(oid))}, none))
	}
	must(t, db.Commit())
	var g errgroup.Group
	var answered, ended atomic.Int64
	for n := range 6 {
		random := rand.New(rand.NewPCG(1, uint64(n)))
		g.Go(func() error {
			for i := range 200 {
				oid := 1 + tid.OID(random.IntN(objects))
				ctx, cancel := context.WithCancel(t.Context())
				after := time.Duration(random.IntN(1500)) * time.Microsecond
				if i%20 == 0 { // is answered, however slow the server is
					after = time.Hour
				}
				stop := time.AfterFunc(after, cancel)
				var failed error
				check := func(want tid.OID, o *backend.Object, err error) {
					switch {
					case err == nil && string(o.Data) != text(want):
						failed = fmt.Errorf("object %v has %.20q", want, o.Data)
					case err == nil:
						answered.Add(1)
					case errors.Is(err, context.Canceled):
						ended.Add(1)
					default:
						failed = fmt.Errorf("object %v: %w", want, err)
					}
				}
				if random.IntN(2) == 0 {
					o, err := db.GetObject(ctx, oid, none, none)
					check(oid, &o, err)
				} else {
					var keys []backend.ObjectKey
					for k := range tid.OID(5) {
						keys = append(keys, backend.ObjectKey{OID: 1 + (oid+k)%objects, At: proto.Some(tid.TID(8))})
					}
					db.GetObjects(ctx, keys, func(i int, o *backend.Object, err error) bool {
						check(keys[i].OID, o, err)
						return failed == nil
					})
				}
				stop.Stop()
				cancel()
				if failed != nil {
					return failed
				}
			}
			return nil
		})
	}
	must(t, g.Wait())
	if answered.Load() == 0 || ended.Load() == 0 {
		t.Errorf("%d answers, %d interrupted", answered.Load(), ended.Load())
	}
}
