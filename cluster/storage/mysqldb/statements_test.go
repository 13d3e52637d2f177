package mysqldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"

	"github.com/neozodb/neo/cluster/storage/sqldb"
)

var errInterrupted = errors.New("interrupted")

// interrupted is a dialect whose writing connection fails after left statements that change
// something.
type interrupted struct {
	*dialect
	left int
}

func (x *interrupted) Connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	dc, err := x.dialect.Connect(ctx, role)
	if err != nil || role == sqldb.Reader {
		return dc, err
	}
	return interruptedConn{dc, x}, nil
}

type interruptedConn struct {
	driver.Conn
	x *interrupted
}

func (c interruptedConn) Prepare(q string) (driver.Stmt, error) {
	s, err := c.Conn.Prepare(q)
	if err != nil {
		return nil, err
	}
	return interruptedStmt{s, c.x, !strings.HasPrefix(q, "SELECT") && !strings.HasPrefix(q, "SHOW")}, nil
}

type interruptedStmt struct {
	driver.Stmt
	x       *interrupted
	changes bool
}

func (s interruptedStmt) Exec(args []driver.Value) (driver.Result, error) {
	if s.changes {
		if s.x.left--; s.x.left < 0 {
			return nil, errInterrupted
		}
	}
	//lint:ignore SA1019 as package sqldb does
	return s.Stmt.Exec(args)
}
