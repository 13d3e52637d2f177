// Package sqlitedb stores the data of a NEO node in an SQLite file, with the
// tables of package sqldb.
//
// # Durability
//
// A new file has pages of 8 KiB and a write-ahead log; synchronous is FULL on
// every connection, and read back. A file of the Python implementation is opened
// as it is and switched to the write-ahead log, which Python opens, too.
//
// The log is copied into the file beside the writer, when some has gathered and
// when the database is idle, so that commits do not wait for it. It is bounded:
// where copying cannot keep pace, a commit waits.
//
// # Exclusive use
//
// One process uses a file: see lockFile. Other programs may read it. Nothing here
// opens the file other than through SQLite, because closing a descriptor drops
// SQLite's own locks on it.
package sqlitedb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/sqldb"
)

// Options configure a database. A zero field takes the documented default.
type Options struct {
	Dedup bool // a new database keeps equal data once
	// HalfImported: see [sqldb.Options].
	HalfImported bool
	Log          *slog.Logger // default: discard
}

// Open opens the database that a string names, creating it if need be: a path, or
// :memory:, or file:path with the parameters cache_size, journal_mode and
// synchronous. backend.ErrLocked: another process uses it.
func Open(ctx context.Context, database string, o Options) (*sqldb.DB, error) {
	d, err := newDialect(database, o.Log)
	if err != nil {
		return nil, err
	}
	return sqldb.Open(ctx, d, sqldb.Options{Dedup: o.Dedup, HalfImported: o.HalfImported, Log: o.Log})
}

// Open must make what a storage node needs.
var _ backend.Backend = (*sqldb.DB)(nil)

const (
	pageSize = 8192
	// The allocator of the pure Go driver takes twice as much.
	writerCache  = 24 << 10 // KiB
	readerCache  = 8 << 10  // KiB
	readers      = 4
	maxPartition = 32767 // data ids, partition·2⁴⁸, are signed
	rowsInInsert = 64
	bytesInSQL   = 4 << 20
	busyTimeout  = "60000" // ms
)

// dialect implements sqldb.Dialect.
type dialect struct {
	name  name
	log   *slog.Logger
	lock  *fileLock
	stat  syscall.Stat_t
	wal   bool
	check *checkpointer
}

func newDialect(database string, log *slog.Logger) (*dialect, error) {
	n, err := parseName(database)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &dialect{name: n, log: log, wal: n.path != ""}
	for _, p := range n.pragmas {
		if p[0] == "journal_mode" && !strings.EqualFold(p[1], "wal") {
			d.wal = false
		}
	}
	if n.path == "" {
		return d, nil
	}
	// Creating the file here gives it an identity to lock before SQLite sees it.
	f, err := os.OpenFile(n.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("create database: %w", err)
	}
	if err := syscall.Stat(n.path, &d.stat); err != nil {
		return nil, fmt.Errorf("database %s: %w", n.path, os.NewSyscallError("stat", err))
	}
	if d.lock, err = lockFile(&d.stat, n.path); err != nil {
		return nil, err
	}
	if err := checkHeader(n.path); err != nil {
		return nil, errors.Join(err, d.lock.release())
	}
	if d.wal {
		d.check = newCheckpointer(d)
	}
	return d, nil
}

// checkHeader refuses a file with checksums in its pages: they would become
// wrong. The caller has exclusive use, so no lock can be lost by closing the file.
func checkHeader(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := make([]byte, 100)
	n, err := io.ReadFull(f, h)
	if err == io.EOF {
		return nil // new
	} else if err != nil && err != io.ErrUnexpectedEOF {
		return fmt.Errorf("database %s: read header: %w", path, err)
	}
	if n < len(h) || !strings.HasPrefix(string(h), "SQLite format 3\x00") {
		return fmt.Errorf("database %s: not an SQLite file", path)
	}
	if h[20] != 0 {
		return fmt.Errorf("database %s: its pages have %d reserved bytes, as cksumvfs makes them, which is not supported", path, h[20])
	}
	return nil
}

// Name implements sqldb.Dialect.
func (d *dialect) Name() string {
	if d.name.path == "" {
		return ":memory:"
	}
	return d.name.path
}

// Connect implements sqldb.Dialect.
func (d *dialect) Connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dc, err := openDriver(d.name.dsn())
	if err != nil {
		return nil, err
	}
	if err := d.configure(dc, role); err != nil {
		return nil, errors.Join(err, dc.Close())
	}
	return dc, nil
}

// configure sets every pragma on a connection, whatever the defaults of the
// driver, and makes sure that commits will be durable.
func (d *dialect) configure(dc driver.Conn, role sqldb.Role) error {
	set := func(key, value string) error {
		_, err := pragma(dc, key+" = "+value)
		return err
	}
	cache := writerCache
	if role == sqldb.Reader {
		cache = readerCache
	}
	settings := [][2]string{
		{"busy_timeout", busyTimeout},
		{"page_size", strconv.Itoa(pageSize)}, // without effect unless the file is new
		{"cache_size", strconv.Itoa(-cache)},
		{"temp_store", "MEMORY"},
		{"foreign_keys", "0"},
	}
	if d.wal {
		settings = append(settings, [2]string{"journal_mode", "WAL"}, [2]string{"wal_autocheckpoint", "0"})
	}
	settings = append(settings, [2]string{"synchronous", "FULL"})
	settings = append(settings, d.name.pragmas...)
	if role == sqldb.Reader {
		settings = append(settings, [2]string{"query_only", "1"})
	}
	relaxed := false
	for _, s := range settings {
		if err := set(s[0], s[1]); err != nil {
			return fmt.Errorf("set %s to %s: %w", s[0], s[1], err)
		}
	}
	for _, p := range d.name.pragmas {
		relaxed = relaxed || p[0] == "synchronous"
	}
	if mode, err := pragma(dc, "journal_mode"); err != nil {
		return err
	} else if d.wal && mode != "wal" {
		return fmt.Errorf("journal_mode is %s instead of WAL: another program may be using the database", mode)
	}
	level, err := pragma(dc, "synchronous")
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(level); !relaxed && (err != nil || n < 2) {
		return fmt.Errorf("synchronous is %s instead of FULL: commits would not be durable", level)
	}
	return nil
}

// pragma runs a pragma and returns the first value it yields, as text.
func pragma(dc driver.Conn, text string) (string, error) {
	values, err := pragmas(dc, text)
	if err != nil || len(values) == 0 {
		return "", err
	}
	return fmt.Sprint(values[0]), nil
}

func pragmas(dc driver.Conn, text string) ([]driver.Value, error) {
	rows, err := dc.(driver.QueryerContext).QueryContext(context.Background(), "PRAGMA "+text, nil)
	if err != nil {
		return nil, err
	}
	values := make([]driver.Value, len(rows.Columns()))
	err = rows.Next(values)
	if err == io.EOF {
		return nil, rows.Close()
	}
	for i := range values {
		if s, ok := values[i].([]byte); ok {
			values[i] = string(s)
		}
	}
	return values, errors.Join(err, rows.Close())
}

// Readers implements sqldb.Dialect.
func (d *dialect) Readers() int {
	if !d.wal {
		return 0
	}
	return readers
}

// OwnsBytes implements sqldb.Dialect: both drivers copy values for each row.
func (d *dialect) OwnsBytes() bool { return true }

// Rewrite implements sqldb.Dialect: SQLite needs no hints.
func (d *dialect) Rewrite(query string) string { return rewriter.Replace(query) }

var rewriter = strings.NewReplacer("{ignore}", " OR IGNORE",
	" {pk:trans}", "", " {pk:obj}", "", " {tid:obj}", "", "AS SIGNED", "AS INTEGER")

// Rows implements sqldb.Dialect.
func (d *dialect) Rows() int { return rowsInInsert }

// Bytes implements sqldb.Dialect.
func (d *dialect) Bytes() int { return bytesInSQL }

// Batches implements sqldb.Dialect.
func (d *dialect) Batches() bool { return true }

// CheapContext implements sqldb.Dialect: the drivers start a goroutine for each query that has one.
func (d *dialect) CheapContext() bool { return false }

// Begin implements sqldb.Dialect.
func (d *dialect) Begin() string { return "BEGIN IMMEDIATE" }

// Snapshot implements sqldb.Dialect.
func (d *dialect) Snapshot() string { return "BEGIN" }

// Linger implements sqldb.Dialect: a checkpoint does not wait.
func (d *dialect) Linger() time.Duration { return 0 }

// Prepare implements sqldb.Dialect: a file has what it has.
func (d *dialect) Prepare(*sqldb.Conn) error { return nil }

// Widen implements sqldb.Dialect: values have any length.
func (d *dialect) Widen(error, int) string { return "" }

// MaxMeta implements sqldb.Dialect.
func (d *dialect) MaxMeta() int { return 0 }

// Lengthen implements sqldb.Dialect.
func (d *dialect) Lengthen(*sqldb.Conn, string, map[string]int) (string, error) { return "", nil }

// Shared implements sqldb.Dialect: the process has the lock, whatever becomes of connections.
func (d *dialect) Shared() bool { return false }

// Copying implements sqldb.Dialect.
func (d *dialect) Copying(_ *sqldb.Conn, f func() error) error { return f() }

// MaxPartition implements sqldb.Dialect.
func (d *dialect) MaxPartition() int { return maxPartition }

// Parking implements sqldb.Dialect: the last place of a table is the only one where
// a row can be added without moving others.
func (d *dialect) Parking() int64 { return maxPartition << 48 }

// Transient implements sqldb.Dialect.
func (d *dialect) Transient(err error) bool { return resultCode(err)&0xff == codeBusy }

// Lost implements sqldb.Dialect: there is no server to be lost.
func (d *dialect) Lost(error) bool { return false }

// codeBusy is SQLITE_BUSY.
const codeBusy = 5

// Topology implements sqldb.Dialect.
func (d *dialect) Topology(*sqldb.Conn) ([]string, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	return []string{host, strconv.FormatUint(uint64(d.stat.Dev), 10)}, nil
}

// Close implements sqldb.Dialect.
func (d *dialect) Close() error {
	var errs []error
	if d.check != nil {
		errs = append(errs, d.check.close())
	}
	if d.lock != nil {
		errs = append(errs, d.lock.release())
	}
	return errors.Join(errs...)
}
