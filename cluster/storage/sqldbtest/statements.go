package sqldbtest

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
)

// broken is a dialect whose writing connection fails at its n-th statement that
// changes something, and from then on.
type broken struct {
	sqldb.Dialect
	n      int
	after  bool // the statement is carried out all the same
	panics bool // instead of returning an error
	failed bool
}

var errDisk = errors.New("the disk is on fire")

func (b *broken) Connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	dc, err := b.Dialect.Connect(ctx, role)
	if err != nil || role != sqldb.Writer {
		return dc, err
	}
	return brokenConn{dc, b}, nil
}

type brokenConn struct {
	driver.Conn
	b *broken
}

func (c brokenConn) Prepare(q string) (driver.Stmt, error) {
	s, err := c.Conn.Prepare(q)
	if err != nil {
		return nil, err
	}
	return brokenStmt{s, c.b}, nil
}

type brokenStmt struct {
	driver.Stmt
	b *broken
}

func (s brokenStmt) Exec(args []driver.Value) (driver.Result, error) {
	if s.b.n--; s.b.n > 0 || s.b.failed {
		if s.b.failed {
			return nil, errDisk
		}
		//lint:ignore SA1019 as package sqldb does
		return s.Stmt.Exec(args)
	}
	s.b.failed = true
	if s.b.after {
		//lint:ignore SA1019 as package sqldb does
		if _, err := s.Stmt.Exec(args); err != nil {
			return nil, err
		}
	}
	if s.b.panics {
		panic(errDisk)
	}
	return nil, errDisk
}

// Every statement of a commit fails once, in turn, before or after it took
// effect. Whatever the point of failure, the next start shows the transaction
// whole or not at all, and none was written after the failure.
func testEveryStatementFailsOnce(t *testing.T, fresh func(t *testing.T) Place) {
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			p := fresh(t)
			b := open(t, p)
			must(t, errors.Join(backendtest.PrepareSample(b), b.Close()))
			d, err := p.Dialect()
			must(t, err)
			x := &broken{Dialect: d, n: 1 << 30, after: after}
			db, err := sqldb.Open(context.Background(), x, sqldb.Options{})
			if err != nil {
				t.Fatal(err)
			}
			x.n = n
			err = backendtest.CommitSample(db, 8)
			if x.failed {
				if !errors.Is(err, errDisk) || !strings.Contains(err.Error(), d.Name()) {
					t.Errorf("statement %d: error %v, want one that names the file", n, err)
				}
				for what, err := range map[string]error{
					"commit": db.Commit(), "vote": db.Vote(12, nil, nil, nil), "name": db.SetName("x"), "prune": db.ReleaseData(nil, true),
				} {
					if !errors.Is(err, errDisk) {
						t.Errorf("%s after statement %d failed: %v", what, n, err)
					}
				}
			}
			must(t, p.Crash(db))
			b = open(t, p)
			if cerr := backendtest.CheckSample(b, 8, err == nil); cerr != nil {
				t.Errorf("statement %d failed (took effect: %v): %v", n, after, cerr)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			if !x.failed {
				if n < 10 {
					t.Errorf("a commit has only %d statements", n-1)
				}
				break // n is past the last statement: every point has been tried
			}
		}
	}
}

// Each statement of a commit panics once, in turn, and never again. Nothing of what
// it belongs to is committed, not even when the database is closed.
func testEveryStatementPanicsOnce(t *testing.T, fresh func(t *testing.T) Place) {
	for n := 1; ; n++ {
		p := fresh(t)
		d, err := p.Dialect()
		must(t, err)
		x := &broken{Dialect: d, n: 1 << 30, panics: true}
		db, err := sqldb.Open(context.Background(), x, sqldb.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := backendtest.PrepareSample(db); err != nil {
			t.Fatal(err)
		}
		x.n = n
		panicked := func() (panicked bool) {
			defer func() { panicked = recover() != nil }()
			if err := backendtest.CommitSample(db, 8); err != nil {
				t.Errorf("statement %d: %v", n, err)
			}
			return
		}()
		x.n, x.failed = 1<<30, false
		if panicked {
			for what, err := range map[string]error{"commit": db.Commit(), "votes": db.CommitVotes(), "vote": db.Vote(12, nil, nil, nil)} {
				if err == nil || !strings.Contains(err.Error(), d.Name()) {
					t.Errorf("%s after statement %d panicked: %v, want an error that names the file", what, n, err)
				}
			}
		}
		must(t, db.Close())
		db = open(t, p)
		if err := backendtest.CheckSample(db, 8, !panicked); err != nil {
			t.Errorf("statement %d panicked: %v", n, err)
		}
		if !panicked {
			if n < 10 {
				t.Errorf("a commit has only %d statements", n-1)
			}
			must(t, db.Close())
			break
		}
		must(t, db.Close())
	}
}
