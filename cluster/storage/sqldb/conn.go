package sqldb

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Conn is one connection and its prepared statements. It has one user at a time.
type Conn struct {
	dialect Dialect
	big     bool // there is a table bigdata
	c       driver.Conn
	stmts   map[string]driver.Stmt
	texts   map[rowsKey]string // of multi-row INSERTs
	row     Row
	args    []driver.Value

	snapshot snapshot // of a reader

	// A writer connects again when its connection is lost, unless something is uncommitted.
	reconnect func() (driver.Conn, error) // nil: it does not
	open      bool                        // there is an SQL transaction, which begin has opened
	begin     string
	dirty     bool // something was written in it

	ctx  context.Context // of a read; nil: none
	long bool            // what is read may take long
}

// Connect opens a connection of the given role.
func Connect(ctx context.Context, d Dialect, role Role) (*Conn, error) {
	dc, err := d.Connect(ctx, role)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d.Name(), err)
	}
	return NewConn(d, dc), nil
}

// NewConn wraps a connection that is already set up.
func NewConn(d Dialect, dc driver.Conn) *Conn {
	return &Conn{dialect: d, big: slices.Contains(d.Tables(), tBigData), c: dc, stmts: map[string]driver.Stmt{}, texts: map[rowsKey]string{}}
}

// Close closes the connection.
func (c *Conn) Close() error {
	err := c.forget()
	return errors.Join(err, c.c.Close())
}

// forget closes the prepared statements, which a change of the schema needs.
func (c *Conn) forget() error {
	var errs []error
	for q, s := range c.stmts {
		if err := s.Close(); err != nil {
			errs = append(errs, c.failed(q, err))
		}
	}
	clear(c.stmts)
	return errors.Join(errs...)
}

func (c *Conn) failed(query string, err error) error {
	return fmt.Errorf("database %s: %s: %w", c.dialect.Name(), head(query), err)
}

// head shortens a statement for messages.
func head(query string) string {
	query = strings.Join(strings.Fields(query), " ")
	if i := strings.Index(query, " VALUES"); i > 0 {
		query = query[:i]
	}
	if len(query) > 100 {
		query = query[:100] + "…"
	}
	return query
}

func (c *Conn) stmt(query string) (driver.Stmt, error) {
	if s, ok := c.stmts[query]; ok {
		return s, nil
	}
	var s driver.Stmt
	var err error
	if p, ok := c.c.(driver.ConnPrepareContext); ok && c.cancellable() && c.dialect.CheapContext() {
		s, err = p.PrepareContext(c.ctx, c.dialect.Rewrite(query))
	} else {
		s, err = c.c.Prepare(c.dialect.Rewrite(query))
	}
	if err != nil {
		return nil, c.failed(query, err)
	}
	c.stmts[query] = s
	return s, nil
}

// restored reports whether a statement that has failed is to be run again, since its connection
// was lost with nothing uncommitted: on another one, or to fail with why there is none. n counts its failures.
func (c *Conn) restored(n int, err error) bool {
	if c.reconnect == nil || c.dirty || n >= maxAttempts || !c.dialect.Lost(err) {
		return false
	}
	if n > 1 {
		time.Sleep(lostPause)
	}
	// It is lost: its end cannot fail in a way that matters.
	_ = c.Close()
	dc, err := c.reconnect()
	if err != nil {
		c.c = lostConn{err}
		return true
	}
	c.c = dc
	if c.open && c.begin != "" {
		if _, err := c.exec(c.begin); err != nil {
			c.c = lostConn{errors.Join(err, dc.Close())}
			return true
		}
	}
	return true
}

// lostConn is what there is as long as no other connection can be had: all fails in the same way.
type lostConn struct{ err error }

func (c lostConn) Prepare(string) (driver.Stmt, error) { return nil, c.err }
func (c lostConn) Close() error                        { return nil }
func (c lostConn) Begin() (driver.Tx, error)           { return nil, c.err }

// Begin opens an SQL transaction by a statement, "" if there always is one.
func (c *Conn) Begin(query string) error {
	if query != "" {
		if _, err := c.run(query); err != nil {
			return err
		}
	}
	c.open, c.begin = true, query
	return nil
}

// Commit ends the SQL transaction.
func (c *Conn) Commit() error {
	if _, err := c.run("COMMIT"); err != nil {
		return err
	}
	c.open, c.dirty = false, false
	return nil
}

// Exec runs a prepared statement and returns the number of rows changed.
func (c *Conn) Exec(query string, args ...driver.Value) (int64, error) {
	n, err := c.run(query, args...)
	c.dirty = c.dirty || err == nil && c.open
	return n, err
}

func (c *Conn) run(query string, args ...driver.Value) (int64, error) {
	changed, err := c.exec(query, args...)
	for n := 1; err != nil && c.restored(n, err); n++ {
		changed, err = c.exec(query, args...)
	}
	return changed, err
}

func (c *Conn) exec(query string, args ...driver.Value) (int64, error) {
	s, err := c.stmt(query)
	if err != nil {
		return 0, err
	}
	var res driver.Result
	if x, ok := s.(driver.StmtExecContext); ok && c.cancellable() && c.dialect.CheapContext() {
		res, err = x.ExecContext(c.ctx, named(args))
	} else {
		//lint:ignore SA1019 the context-free form starts no goroutine and the drivers keep it
		res, err = s.Exec(args)
	}
	if err != nil {
		return 0, c.failed(query, err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, c.failed(query, err)
	}
	return n, nil
}

// ExecOnce runs a statement that is not worth keeping prepared.
func (c *Conn) ExecOnce(query string, args ...driver.Value) error {
	err := c.execOnce(query, args...)
	for n := 1; err != nil && c.restored(n, err); n++ {
		err = c.execOnce(query, args...)
	}
	c.dirty = c.dirty || err == nil && c.open
	return err
}

func (c *Conn) execOnce(query string, args ...driver.Value) error {
	s, err := c.c.Prepare(c.dialect.Rewrite(query))
	if err != nil {
		return c.failed(query, err)
	}
	//lint:ignore SA1019 see exec
	_, err = s.Exec(args)
	if err != nil {
		err = c.failed(query, err)
	}
	return errors.Join(err, s.Close())
}

// query begins a query.
func (c *Conn) query(query string, args []driver.Value) (driver.Rows, error) {
	s, err := c.stmt(query)
	if err != nil {
		return nil, err
	}
	var rows driver.Rows
	if q, ok := s.(driver.StmtQueryContext); ok && c.cancellable() && (c.long || c.dialect.CheapContext()) {
		rows, err = q.QueryContext(c.ctx, named(args))
	} else {
		//lint:ignore SA1019 see exec
		rows, err = s.Query(args)
	}
	if err != nil {
		return nil, c.failed(query, err)
	}
	return rows, nil
}

// interruptAfter lets the end of a context end what the connection does, if its driver can. goesOn ends
// that, and reports whether the connection was left alone.
func (c *Conn) interruptAfter(ctx context.Context) (goesOn func() bool) {
	if i, ok := c.c.(Interrupter); ok && ctx.Done() != nil {
		return context.AfterFunc(ctx, i.Interrupt)
	}
	return func() bool { return true }
}

// cancellable reports that what is read has a context that may end.
func (c *Conn) cancellable() bool { return c.ctx != nil && c.ctx.Done() != nil }

func named(args []driver.Value) []driver.NamedValue {
	list := make([]driver.NamedValue, len(args))
	for i, a := range args {
		list[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
	}
	return list
}

// ctxRows is after how many rows of a read its context is looked at.
const ctxRows = 64

// errStop ends an iteration early without an error.
var errStop = errors.New("stop")

// Each calls f with every row of a query. The row is valid during the call only,
// but the slices it returns may be kept. f must not use the connection.
func (c *Conn) Each(query string, f func(r *Row) error, args ...driver.Value) error {
	seen, err := c.each(query, f, args)
	for n := 1; err != nil && !seen && c.restored(n, err); n++ {
		seen, err = c.each(query, f, args)
	}
	return err
}

// each is Each. seen: f was called.
func (c *Conn) each(query string, f func(r *Row) error, args []driver.Value) (seen bool, err error) {
	rows, err := c.query(query, args)
	if err != nil {
		return false, err
	}
	r := &c.row
	if n := len(rows.Columns()); cap(r.v) < n {
		r.v = make([]driver.Value, n)
	} else {
		r.v = r.v[:n]
	}
	r.err, r.clone = nil, !c.dialect.OwnsBytes()
	for n := 0; ; n++ {
		if n%ctxRows == ctxRows-1 && c.ctx != nil {
			if err = c.ctx.Err(); err != nil {
				break
			}
		}
		if err = rows.Next(r.v); err != nil {
			break
		}
		seen = true
		if err = f(r); err == nil {
			err = r.err
		}
		if err != nil {
			break
		}
	}
	clear(r.v)
	if cerr := rows.Close(); cerr != nil && (err == io.EOF || err == errStop) {
		err = cerr
	}
	switch {
	case err == io.EOF, err == errStop:
		return seen, nil
	default:
		return seen, c.failed(query, err)
	}
}

// One calls f with the first row, and reports whether there was one.
func (c *Conn) One(query string, f func(r *Row) error, args ...driver.Value) (found bool, err error) {
	err = c.Each(query, func(r *Row) error {
		found = true
		if err := f(r); err != nil {
			return err
		}
		return cmpErr(r.err, errStop)
	}, args...)
	return found, err
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// Row is one row of a result.
type Row struct {
	v     []driver.Value
	err   error
	clone bool
}

// Null reports whether a column is NULL.
func (r *Row) Null(i int) bool { return r.v[i] == nil }

// Int returns an integer column, 0 for NULL. Another type ends the iteration
// with an error: SQLite would store it.
func (r *Row) Int(i int) int64 {
	switch v := r.v[i].(type) {
	case nil:
		return 0
	case int64:
		return v
	case uint64:
		if v <= math.MaxInt64 {
			return int64(v)
		}
	case bool:
		if v {
			return 1
		}
		return 0
	case []byte:
		if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return n
		}
	case string:
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			return n
		}
	}
	r.err = fmt.Errorf("column %d holds %.40v of type %T instead of an integer", i, r.v[i], r.v[i])
	return 0
}

// Bytes returns a binary or text column, never nil.
func (r *Row) Bytes(i int) []byte {
	switch v := r.v[i].(type) {
	case nil:
		return []byte{}
	case []byte:
		if v == nil {
			return []byte{}
		}
		if r.clone {
			return bytes.Clone(v)
		}
		return v
	case string:
		return []byte(v)
	}
	r.err = fmt.Errorf("column %d holds %.40v of type %T instead of bytes", i, r.v[i], r.v[i])
	return []byte{}
}

// Text returns a text column.
func (r *Row) Text(i int) string { return string(r.Bytes(i)) }
