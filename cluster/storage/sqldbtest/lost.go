package sqldbtest

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

var errLost = errors.New("server has gone away")

// losing is a dialect of which a connection is lost at the step after left more of them,
// and all connections that are then open with it. A step is a statement or a row.
type losing struct {
	sqldb.Dialect
	role   sqldb.Role // whose connections count
	left   atomic.Int64
	outage atomic.Int64 // the generation of connections
}

func (l *losing) Lost(err error) bool      { return errors.Is(err, errLost) }
func (l *losing) Transient(err error) bool { return true } // Lost comes first

func (l *losing) Connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	dc, err := l.Dialect.Connect(ctx, role)
	if err != nil || role != l.role {
		return dc, err
	}
	return losingConn{dc, l, l.outage.Load()}, nil
}

func (c losingConn) step() error {
	if c.l.outage.Load() != c.born {
		return errLost
	}
	if c.l.left.Add(-1) == -1 {
		c.l.outage.Add(1)
		return errLost
	}
	return nil
}

type losingConn struct {
	driver.Conn
	l    *losing
	born int64
}

func (c losingConn) Prepare(q string) (driver.Stmt, error) {
	s, err := c.Conn.Prepare(q)
	return losingStmt{s, c}, err
}

// Close fails as that of a connection that is lost may.
func (c losingConn) Close() error {
	if err := c.Conn.Close(); err != nil || c.l.outage.Load() == c.born {
		return err
	}
	return errLost
}

type losingStmt struct {
	driver.Stmt
	c losingConn
}

func (s losingStmt) Exec(args []driver.Value) (driver.Result, error) {
	if err := s.c.step(); err != nil {
		return nil, err
	}
	//lint:ignore SA1019 as package sqldb does
	return s.Stmt.Exec(args)
}

func (s losingStmt) Query(args []driver.Value) (driver.Rows, error) {
	if err := s.c.step(); err != nil {
		return nil, err
	}
	//lint:ignore SA1019 as package sqldb does
	r, err := s.Stmt.Query(args)
	return losingRows{r, s.c}, err
}

type losingRows struct {
	driver.Rows
	c losingConn
}

func (r losingRows) Next(v []driver.Value) error {
	if err := r.Rows.Next(v); err == io.EOF {
		return err
	} else if err != nil {
		return err
	}
	return r.c.step()
}

// Every read gives the same when the connections are lost at any of its steps.
func testLostReaders(t *testing.T, p Place) {
	d, err := p.Dialect()
	must(t, err)
	l := &losing{Dialect: d, role: sqldb.Reader}
	l.left.Store(1 << 40)
	db, err := sqldb.Open(t.Context(), l, sqldb.Options{})
	must(t, err)
	defer func() { must(t, db.Close()) }()
	must(t, backendtest.PrepareSample(db))
	for _, oid := range []tid.OID{1, 2, 5} {
		for _, at := range []tid.TID{8, 9, 12, 13, 16} {
			text := fmt.Sprintf("object %d of %d", oid, at)
			must(t, db.AddObject(oid, at, proto.ObjectData{Checksum: sha(text), Data: []byte(text)}, none))
			if oid > 1 {
				continue
			}
			must(t, db.AddTransaction(at+100, backend.Meta{TTID: at + 90, OIDs: []tid.OID{oid}, User: []byte{}, Description: []byte{}, Extension: []byte{}}, nil))
		}
		must(t, db.Commit())
	}
	ctx := t.Context()
	pair := func(v ...any) any { return v }
	reads := map[string]func() any{
		"GetObject":        func() any { return pair(db.GetObject(ctx, 1, none, proto.Some(tid.TID(12)))) },
		"LastObjectTID":    func() any { return pair(db.LastObjectTID(ctx, 1)) },
		"Transaction":      func() any { return pair(db.Transaction(ctx, 108)) },
		"FinalTID":         func() any { return pair(db.FinalTID(ctx, 98)) },
		"LastIDs":          func() any { return pair(db.LastIDs(ctx)) },
		"LastTIDs":         func() any { return pair(db.LastTIDs(ctx, 1)) },
		"TIDs":             func() any { return pair(db.TIDs(ctx, []int{0, 1, 2}, 1, 5)) },
		"TIDsFrom":         func() any { return pair(db.TIDsFrom(ctx, 0, 0, tid.Max, 0)) },
		"History":          func() any { return pair(db.History(ctx, 1, 1, 9)) },
		"OIDsFrom":         func() any { return pair(db.OIDsFrom(ctx, 1, 9, 0, tid.Max)) },
		"UndoHistory":      func() any { return pair(db.UndoHistory(ctx, 1, 9)) },
		"FetchObject":      func() any { return pair(db.FetchObject(ctx, 1, 9)) },
		"FetchTransaction": func() any { return pair(db.FetchTransaction(ctx, 108)) },
		"RecordsFrom":      func() any { return pair(db.RecordsFrom(ctx, 1, 8, 13, 0, 9)) },
		"RecordBefore":     func() any { return pair(db.RecordBefore(ctx, 1, 13)) },
		"CheckTIDs":        func() any { return pair(db.CheckTIDs(ctx, 0, 9, 0, tid.Max)) },
		"CheckSerials":     func() any { return pair(db.CheckSerials(ctx, 1, 9, 8, tid.Max, 0)) },
		"GetObjects": func() any {
			list := make([]string, 4)
			keys := []backend.ObjectKey{{OID: 1, At: proto.Some(tid.TID(8))}, {OID: 1, At: proto.Some(tid.TID(12))}, {OID: 5, At: proto.Some(tid.TID(16))}, {OID: 2, At: proto.Some(tid.TID(7))}}
			db.GetObjects(ctx, keys, func(i int, o *backend.Object, err error) bool {
				if list[i] != "" {
					t.Errorf("key %d is answered again", i)
				}
				if list[i] = "none"; err == nil {
					list[i] = string(o.Data)
				}
				return true
			})
			return list
		},
	}
	same := func(x, y any) string {
		return cmp.Diff(x, y, cmp.Comparer(func(x, y error) bool { return (x == nil) == (y == nil) }))
	}
	for name, read := range reads {
		want := read()
		for n := int64(0); ; n++ {
			l.left.Store(n)
			got := read()
			reached := l.left.Swap(1<<40) < 0
			if diff := same(want, got); diff != "" {
				t.Errorf("%s, lost after %d steps: %s", name, n, diff)
			}
			if !reached {
				break
			}
		}
	}
	// A commit finds idle connections lost.
	db.GetObject(ctx, 1, none, none)
	l.outage.Add(1)
	must(t, db.SetName("x"))
}

// What a connection that is lost had not committed is gone: the commit is not repeated.
func testLostWriter(t *testing.T, p Place) {
	d, err := p.Dialect()
	must(t, err)
	l := &losing{Dialect: d, role: sqldb.Writer}
	l.left.Store(1 << 40)
	db, err := sqldb.Open(t.Context(), l, sqldb.Options{})
	must(t, err)
	must(t, backendtest.PrepareSample(db))
	must(t, db.SetConfirmed(proto.Some[uint64](9)))
	l.left.Store(0)
	if err := db.Commit(); !errors.Is(err, errLost) {
		t.Errorf("commit: %v, want %v", err, errLost)
	}
	if err := db.Commit(); !errors.Is(err, errLost) {
		t.Errorf("another commit: %v, want %v", err, errLost)
	}
	db.Close()
}

// Whatever the writer is doing when its connection is lost: if nothing was uncommitted it goes
// on, else it ends, and the next start shows the transaction whole or not at all.
func testWriterGoesOn(t *testing.T, fresh func(t *testing.T) Place) {
	for n, done, first := int64(0), false, true; !done; n++ {
		p := fresh(t)
		d, err := p.Dialect()
		must(t, err)
		begins := d.Begin() != ""
		l := &losing{Dialect: d, role: sqldb.Writer}
		l.left.Store(1 << 40)
		db, err := sqldb.Open(t.Context(), l, sqldb.Options{})
		must(t, err)
		must(t, backendtest.PrepareSample(db))
		l.left.Store(n)
		err = backendtest.CommitSample(db, 8)
		done = l.left.Swap(1<<40) >= 0
		switch {
		case err != nil && !errors.Is(err, errLost):
			t.Errorf("lost after %d steps: %v", n, err)
		case err != nil && (n < 1 || n < 2 && begins): // the beginning of the SQL transaction, if it has one, and the first statement in it
			t.Errorf("lost after %d steps, with nothing uncommitted: %v", n, err)
		case err == nil && !done && (n > 1 || n > 0 && !begins):
			first = false // between two commits
		}
		must(t, p.Crash(db))
		b := open(t, p)
		if cerr := backendtest.CheckSample(b, 8, err == nil); cerr != nil {
			t.Errorf("lost after %d steps (%v): %v", n, err, cerr)
		}
		must(t, b.Close())
		if done && first {
			t.Error("the writer has never gone on after a commit")
		}
	}
}

// What is read on the writing connection is the same when it is lost at any step.
func testWriterReadsAgain(t *testing.T, p Place) {
	d, err := p.Dialect()
	must(t, err)
	l := &losing{Dialect: d, role: sqldb.Writer}
	l.left.Store(1 << 40)
	db, err := sqldb.Open(t.Context(), l, sqldb.Options{})
	must(t, err)
	defer func() { must(t, db.Close()) }()
	must(t, backendtest.PrepareSample(db))
	order := &proto.PackRequest{Time: 4}
	must(t, db.Vote(9, nil, &backend.Meta{TTID: 9}, order))
	must(t, db.Commit())
	pair := func(v ...any) any { return v }
	reads := map[string]func() any{
		"Config":        func() any { return pair(db.Config()) },
		"Cells":         func() any { return pair(db.Cells()) },
		"PackOrders":    func() any { return pair(db.PackOrders(0)) },
		"PackedIDs":     func() any { return pair(db.PackedIDs(false)) },
		"Unfinished":    func() any { return pair(db.Unfinished()) },
		"KeptDeletions": func() any { return pair(db.KeptDeletions()) },
		"PackedUpTo":    func() any { return pair(db.PackedUpTo(1)) },
		"ImportState":   func() any { return pair(db.ImportState()) },
		"LastObjectTID": func() any { return pair(db.LastObjectTID(t.Context(), 1)) },
		"Orphans": func() any {
			var list []backend.DataID
			for id, err := range db.Orphans(t.Context()) {
				if err != nil {
					return err
				}
				list = append(list, id)
			}
			return list
		},
	}
	for name, read := range reads {
		want := read()
		for n := int64(0); ; n++ {
			l.left.Store(n)
			got := read()
			reached := l.left.Swap(1<<40) < 0
			if diff := cmp.Diff(want, got, cmp.Comparer(func(x, y error) bool { return (x == nil) == (y == nil) })); diff != "" {
				t.Errorf("%s, lost after %d steps: %s", name, n, diff)
			}
			if !reached {
				break
			}
		}
		must(t, db.Commit())
	}
}
