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
	s, err := c.c.Prepare(c.dialect.Rewrite(query))
	if err != nil {
		return nil, c.failed(query, err)
	}
	c.stmts[query] = s
	return s, nil
}

// Exec runs a prepared statement and returns the number of rows changed.
func (c *Conn) Exec(query string, args ...driver.Value) (int64, error) {
	s, err := c.stmt(query)
	if err != nil {
		return 0, err
	}
	//lint:ignore SA1019 the context-free form starts no goroutine and the drivers keep it
	res, err := s.Exec(args)
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
	s, err := c.c.Prepare(c.dialect.Rewrite(query))
	if err != nil {
		return c.failed(query, err)
	}
	//lint:ignore SA1019 see Exec
	_, err = s.Exec(args)
	if err != nil {
		err = c.failed(query, err)
	}
	return errors.Join(err, s.Close())
}

// errStop ends an iteration early without an error.
var errStop = errors.New("stop")

// Each calls f with every row of a query. The row is valid during the call only,
// but the slices it returns may be kept. f must not use the connection.
func (c *Conn) Each(query string, f func(r *Row) error, args ...driver.Value) error {
	s, err := c.stmt(query)
	if err != nil {
		return err
	}
	//lint:ignore SA1019 see Exec
	rows, err := s.Query(args)
	if err != nil {
		return c.failed(query, err)
	}
	r := &c.row
	if n := len(rows.Columns()); cap(r.v) < n {
		r.v = make([]driver.Value, n)
	} else {
		r.v = r.v[:n]
	}
	r.err, r.clone = nil, !c.dialect.OwnsBytes()
	for {
		if err = rows.Next(r.v); err != nil {
			break
		}
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
		return nil
	default:
		return c.failed(query, err)
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
