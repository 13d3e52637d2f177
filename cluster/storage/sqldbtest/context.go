package sqldbtest

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

var errNoContext = errors.New("a query that may hang has no context")

// hanging is a dialect whose reading connections answer nothing while it hangs.
type hanging struct {
	sqldb.Dialect
	cheap  bool
	hangs  bool
	cancel context.CancelFunc // of the read, called when a query hangs
}

func (h *hanging) CheapContext() bool { return h.cheap }

func (h *hanging) Connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	dc, err := h.Dialect.Connect(ctx, role)
	if err != nil || role == sqldb.Writer {
		return dc, err
	}
	return hangingConn{dc, h}, nil
}

type hangingConn struct {
	driver.Conn
	h *hanging
}

func (c hangingConn) Prepare(q string) (driver.Stmt, error) {
	s, err := c.Conn.Prepare(q)
	return hangingStmt{s, c.h}, err
}

type hangingStmt struct {
	driver.Stmt
	h *hanging
}

func (s hangingStmt) Query(args []driver.Value) (driver.Rows, error) {
	if s.h.hangs {
		return nil, errNoContext
	}
	//lint:ignore SA1019 as package sqldb does
	return s.Stmt.Query(args)
}

func (s hangingStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if s.h.hangs {
		s.h.cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
}

// A read whose connection hangs ends with its context, and the next one is answered.
func testReadsEndWithContext(t *testing.T, p Place) {
	d, err := p.Dialect()
	must(t, err)
	h := &hanging{Dialect: d, cheap: true}
	db, err := sqldb.Open(t.Context(), h, sqldb.Options{})
	must(t, err)
	defer func() { must(t, db.Close()) }()
	must(t, backendtest.PrepareSample(db))
	must(t, db.AddObject(1, 8, proto.ObjectData{Checksum: sha("x"), Data: []byte("x")}, none))
	must(t, db.Commit())
	fails := func(_ any, err error) error { return err }
	short := map[string]func(ctx context.Context) error{
		"GetObject":        func(ctx context.Context) error { return fails(db.GetObject(ctx, 1, none, none)) },
		"Transaction":      func(ctx context.Context) error { return fails(db.Transaction(ctx, 8)) },
		"FetchObject":      func(ctx context.Context) error { return fails(db.FetchObject(ctx, 1, 8)) },
		"FetchTransaction": func(ctx context.Context) error { _, _, err := db.FetchTransaction(ctx, 8); return err },
		"RecordBefore":     func(ctx context.Context) error { _, _, err := db.RecordBefore(ctx, 1, 9); return err },
		"GetObjects": func(ctx context.Context) (failed error) {
			keys := []backend.ObjectKey{{OID: 1, At: proto.Some(tid.TID(8))}, {OID: 2, At: proto.Some(tid.TID(8))}}
			db.GetObjects(ctx, keys, func(_ int, _ *backend.Object, err error) bool {
				failed = err
				return err == nil
			})
			return failed
		},
	}
	long := map[string]func(ctx context.Context) error{
		"FinalTID":     func(ctx context.Context) error { return fails(db.FinalTID(ctx, 8)) },
		"LastIDs":      func(ctx context.Context) error { return fails(db.LastIDs(ctx)) },
		"LastTIDs":     func(ctx context.Context) error { _, _, err := db.LastTIDs(ctx, 1); return err },
		"TIDs":         func(ctx context.Context) error { return fails(db.TIDs(ctx, []int{0}, 0, 9)) },
		"TIDsFrom":     func(ctx context.Context) error { return fails(db.TIDsFrom(ctx, 0, 0, tid.Max, 0)) },
		"History":      func(ctx context.Context) error { return fails(db.History(ctx, 1, 0, 9)) },
		"OIDsFrom":     func(ctx context.Context) error { _, _, err := db.OIDsFrom(ctx, 1, 9, 0, tid.Max); return err },
		"UndoHistory":  func(ctx context.Context) error { return fails(db.UndoHistory(ctx, 1, 8)) },
		"RecordsFrom":  func(ctx context.Context) error { return fails(db.RecordsFrom(ctx, 1, 0, tid.Max, 0, 9)) },
		"CheckTIDs":    func(ctx context.Context) error { return fails(db.CheckTIDs(ctx, 0, 9, 0, tid.Max)) },
		"CheckSerials": func(ctx context.Context) error { return fails(db.CheckSerials(ctx, 1, 9, 0, tid.Max, 0)) },
	}
	try := func(name string, read func(context.Context) error) {
		var ctx context.Context
		ctx, h.cancel = context.WithCancel(t.Context())
		h.hangs = true
		err := read(ctx)
		h.hangs = false
		h.cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s (contexts are cheap: %v): %v, want %v", name, h.cheap, err, context.Canceled)
		}
		if err := read(t.Context()); errors.Is(err, context.Canceled) || errors.Is(err, errNoContext) {
			t.Errorf("%s after one that was interrupted: %v", name, err)
		}
	}
	for name, read := range short {
		try(name, read)
	}
	for _, h.cheap = range []bool{true, false} {
		for name, read := range long {
			try(name, read)
		}
	}
}
