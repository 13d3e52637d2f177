package sqldbtest

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

// interrupted is a dialect that calls functions where others may run.
type interrupted struct {
	sqldb.Dialect
	beforeReader, afterErase func() // once each
}

func once(f *func()) {
	if g := *f; g != nil {
		*f = nil
		g()
	}
}

func (d *interrupted) Connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	if role == sqldb.Reader {
		once(&d.beforeReader)
	}
	return d.Dialect.Connect(ctx, role)
}

func (d *interrupted) Deduplicates(c *sqldb.Conn) (bool, error) {
	once(&d.afterErase)
	return d.Dialect.Deduplicates(c)
}

// reads are questions about object 1 and partition 1, which must not be answered
// from what is left of them.
var reads = map[string]func(db *sqldb.DB) error{
	"GetObject": func(db *sqldb.DB) error {
		_, err := db.GetObject(context.Background(), 1, none, none)
		return err
	},
	"GetObject before": func(db *sqldb.DB) error {
		_, err := db.GetObject(context.Background(), 1, none, proto.Some(tid.TID(100)))
		return err
	},
	"GetObjects": func(db *sqldb.DB) (err error) {
		key := backend.ObjectKey{OID: 1, At: proto.Some(tid.TID(5))}
		db.GetObjects(context.Background(), []backend.ObjectKey{key, key}, func(_ int, _ *backend.Object, e error) bool {
			err = e
			return true
		})
		return err
	},
	"Transaction": func(db *sqldb.DB) error {
		_, err := db.Transaction(context.Background(), 5)
		return err
	},
	"FinalTID": func(db *sqldb.DB) error {
		_, err := db.FinalTID(context.Background(), 5)
		return err
	},
	"TIDs": func(db *sqldb.DB) error {
		_, err := db.TIDs(context.Background(), []int{0, 1}, 0, 10)
		return err
	},
	"History": func(db *sqldb.DB) error {
		_, err := db.History(context.Background(), 1, 0, 10)
		return err
	},
	"OIDsFrom": func(db *sqldb.DB) error {
		_, _, err := db.OIDsFrom(context.Background(), 1, 10, 0, 100)
		return err
	},
	"UndoHistory": func(db *sqldb.DB) error {
		_, err := db.UndoHistory(context.Background(), 1, 5)
		return err
	},
}

// A read that began before its partition was discarded, or everything erased, does
// not say that something does not exist.
func testReadsOfWhatIsDiscarded(t *testing.T, fresh func(t *testing.T) Place) {
	for name, read := range reads {
		for _, erase := range []bool{false, true} {
			d, err := fresh(t).Dialect()
			if err != nil {
				t.Fatal(err)
			}
			if d.Readers() == 0 {
				must(t, d.Close())
				t.Skip("nothing is read beside the writer")
			}
			i := &interrupted{Dialect: d}
			db, err := sqldb.Open(context.Background(), i, sqldb.Options{})
			if err != nil {
				t.Fatal(err)
			}
			ok := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			const me = 1
			ok(db.SetID(me))
			ok(db.ChangePartitionTable(1, 0, []proto.CellChange{{Partition: 0, ID: me, State: proto.UpToDate},
				{Partition: 1, ID: me, State: proto.UpToDate}}, true, 0))
			ok(db.AddTransaction(5, backend.Meta{TTID: 5, OIDs: []tid.OID{1}}, nil))
			ok(db.AddObject(1, 5, proto.ObjectData{Checksum: sha("data"), Data: []byte("data")}, none))
			ok(db.Commit())
			fails := func() {
				t.Helper()
				if err := read(db); !errors.Is(err, backend.ErrNonReadable) {
					t.Errorf("%s: %v, want %v", name, err, backend.ErrNonReadable)
				}
			}
			if erase {
				i.afterErase = fails
				ok(db.Erase())
			} else {
				i.beforeReader = func() {
					ok(db.ChangePartitionTable(2, 0, []proto.CellChange{{Partition: 1, ID: me, State: proto.Discarded},
						{Partition: 1, ID: me + 1, State: proto.UpToDate}}, false, 0))
					ok(db.Commit())
					for done := false; !done; {
						done, err = db.DropPartition(1, 10)
						ok(err)
					}
					ok(db.Commit())
				}
				fails()
			}
			if i.beforeReader != nil || i.afterErase != nil {
				t.Errorf("%s: nothing came between", name)
			}
			must(t, db.Close())
		}
	}
}
