// Package mysqldb stores the data of a NEO node in a database of MariaDB or MySQL, with the
// tables of package sqldb, on the engines InnoDB and RocksDB.
//
// # Connections
//
// The writing connection holds the named lock by which implementations exclude each other, and
// has an SQL transaction open at any time. It reads what is committed at each statement, and by that locks
// no gaps between rows. Reading connections see what was committed at their first
// query after a COMMIT.
//
// A connection that was lost is replaced as package sqldb says. The lock is then waited for a moment,
// because the server may still be ending the connection that was lost; what that one had
// sent is over when the lock is free.
//
// # Values
//
// Statements are prepared: values are sent as they are, in no character set.
package mysqldb

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/sqldb"
)

// Engines.
const (
	InnoDB  = "InnoDB"
	RocksDB = "RocksDB"
)

// Options configure a database. A zero field takes the documented default.
type Options struct {
	Engine string // of new tables: InnoDB, the default, or RocksDB
	// Wait is how long to wait for the server at the start; negative: until ctx ends. Default:
	// not at all.
	Wait  time.Duration
	Dedup bool // a new database keeps equal data once
	// HalfImported: see [sqldb.Options].
	HalfImported bool
	Log          *slog.Logger // default: discard
}

// Open opens the database that a string names, creating its tables if need be:
// [user[:password]@]database[socket], or //host[:port]/database[?user=…&password=…&tls=…].
// backend.ErrLocked: another process uses it.
func Open(ctx context.Context, database string, o Options) (*sqldb.DB, error) {
	d, err := newDialect(database, o)
	if err != nil {
		return nil, err
	}
	return sqldb.Open(ctx, d, sqldb.Options{Dedup: o.Dedup, HalfImported: o.HalfImported, Log: o.Log})
}

// CheckEngine returns an error for an engine that is neither "" nor supported.
func CheckEngine(engine string) error {
	switch engine {
	case "", InnoDB, RocksDB:
		return nil
	case "TokuDB":
		return errors.New("unsupported engine TokuDB: MariaDB has removed it with version 10.6, use RocksDB or InnoDB")
	}
	return fmt.Errorf("unsupported engine %q: want InnoDB or RocksDB", engine)
}

const (
	readers = 8
	// maxPartition: data ids, partition·2⁴⁸, are signed in package sqldb.
	maxPartition = 32767
	rowsInInsert = 256
	bytesInSQL   = 4 << 20
	dialTimeout  = 10 * time.Second
	maxSilence   = 20 * time.Second
	waitPause    = time.Second
	// Seconds to wait for the lock: of a process that has just ended, of a connection
	// of this one that was lost.
	lockGrace, lockAgain = 1, 30
)

// dialect implements sqldb.Dialect.
type dialect struct {
	name   name
	engine string // of a new database
	wait   time.Duration
	log    *slog.Logger
	cfg    *mysql.Config

	silence time.Duration // see dial
	tables  string        // engine of the tables
	// session is the id of the last writing connection, 0: there was none.
	session atomic.Uint64
	// started is when the server was, as that connection found, in seconds since 1970.
	started   atomic.Int64
	volatile  atomic.Bool // a server that is restarted may have lost what was committed
	uncertain atomic.Bool // one was
	rocks     atomic.Bool // the server has RocksDB
	maria     atomic.Bool // it is MariaDB
}

func newDialect(database string, o Options) (*dialect, error) {
	if err := CheckEngine(o.Engine); err != nil {
		return nil, err
	}
	n, err := parseName(database)
	if err != nil {
		return nil, err
	}
	d := &dialect{name: n, engine: cmp.Or(o.Engine, InnoDB), wait: o.Wait, log: o.Log, silence: maxSilence}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	c := mysql.NewConfig()
	if c.User, err = n.login(); err != nil {
		return nil, err
	}
	c.Passwd, c.DBName, c.Timeout = n.password, n.database, dialTimeout
	c.Net, c.Addr, c.TLSConfig = "tcp", n.addr, n.tls
	if n.addr == "" {
		c.Net = "unix"
		if c.Addr, err = n.path(); err != nil {
			return nil, err
		}
	}
	c.Collation = "binary"
	c.MaxAllowedPacket = 0 // that of the server
	c.Logger = &mysql.NopLogger{}
	c.Params = map[string]string{
		"autocommit":   "0",
		"wait_timeout": "2147483",
		"sql_mode":     "'TRADITIONAL,NO_ENGINE_SUBSTITUTION'",
		// Defaults of the server that would cut results, or refuse deletions.
		"sql_select_limit": "18446744073709551615",
		"sql_safe_updates": "0",
	}
	d.cfg = c
	return d, nil
}

// dial opens a connection. One by TCP ends when nothing has come from the machine of the server for a while, not even an
// acknowledgement. What the server needs for a statement is not limited.
func (d *dialect) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var dialer net.Dialer
	if network == "tcp" {
		dialer.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: d.silence / 2, Interval: d.silence / 4, Count: 2}
		dialer.Control = limitSilence(d.silence)
	}
	return dialer.DialContext(ctx, network, addr)
}

// Name implements sqldb.Dialect.
func (d *dialect) Name() string { return d.name.String() }

// Connect implements sqldb.Dialect.
func (d *dialect) Connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	begin, logged := time.Now(), false
	for {
		dc, err := d.connect(ctx, role)
		first := role == sqldb.Writer && d.session.Load() == 0
		if err == nil || !first || !lost(err) || d.wait >= 0 && time.Since(begin) >= d.wait {
			return dc, d.advise(err)
		}
		if !logged {
			d.log.Info("waiting for the database server", "database", d.Name(), "err", err)
			logged = true
		}
		select {
		case <-time.After(waitPause):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}

func (d *dialect) connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	var nc net.Conn
	cfg := d.cfg.Clone()
	cfg.DialFunc = func(ctx context.Context, network, addr string) (_ net.Conn, err error) {
		nc, err = d.dial(ctx, network, addr)
		return nc, err
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	session := d.session.Load()
	dc, err := connector.Connect(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		if err.Error() == "bad connection" { // lost before anything was sent: the driver does not export this error
			err = driver.ErrBadConn
		}
		return nil, err
	}
	if err := d.configure(dc, role, session); err != nil {
		return nil, errors.Join(err, closeLost(dc))
	}
	return interruptible{dc.(driverConn), nc}, nil
}

// interruptible implements sqldb.Interrupter.
type interruptible struct {
	driverConn
	nc net.Conn
}

// driverConn is what is used of a connection of the driver.
type driverConn interface {
	driver.Conn
	driver.ExecerContext
}

// Interrupt implements sqldb.Interrupter: what waits for the server fails.
func (c interruptible) Interrupt() {
	_ = c.nc.SetDeadline(time.Unix(1, 0)) // it fails if the connection is closed
}

// closeLost closes a connection that may be lost.
func closeLost(dc driver.Conn) error {
	if err := dc.Close(); err != nil && !lost(err) {
		return err
	}
	return nil
}

// configure sets a connection up. session was that of the writing connection before it.
func (d *dialect) configure(dc driver.Conn, role sqldb.Role, session uint64) error {
	isolation := "REPEATABLE READ, READ ONLY"
	started, restarted, err := d.checkRestart(dc, session)
	if err != nil {
		return err
	}
	if role == sqldb.Writer {
		isolation = "READ COMMITTED"
		if restarted {
			session = 0
		}
		if err := d.lock(dc, session); err != nil {
			return err
		}
		d.started.Store(started)
	}
	if err := d.checkServer(dc, role); err != nil { // also of a reader: settings may be changed meanwhile
		return err
	}
	if err := exec(dc, "SET SESSION TRANSACTION ISOLATION LEVEL "+isolation); err != nil {
		return err
	}
	if d.rocks.Load() {
		return exec(dc, rocksSettings)
	}
	return nil
}

// A truncation, or a pack, changes more rows than the default in one SQL transaction. The
// statistics of RocksDB ignore what is new: the range of an index that is named is always preferred to all
// of a partition.
const rocksSettings = "SET SESSION rocksdb_max_row_locks = 1073741824, SESSION rocksdb_force_index_records_in_range = 1"

// lock takes the lock of the database, which the server releases when the connection ends. old is the
// id of the connection that had it, 0: the server knows none. After it was restarted, another process may have that id.
func (d *dialect) lock(dc driver.Conn, old uint64) error {
	name, wait := d.name.database+".neostorage", lockGrace
	if old != 0 {
		wait = lockAgain
		// The server may not have noticed yet that the old connection is gone.
		row, err := query(dc, "SELECT IS_USED_LOCK(?)", name)
		if err != nil {
			return err
		}
		if row[0] == strconv.FormatUint(old, 10) {
			if err := exec(dc, "KILL "+row[0]); err != nil && code(err) == 0 {
				return err
			}
		}
	}
	row, err := query(dc, "SELECT CONNECTION_ID(), GET_LOCK(?, ?)", name, int64(wait))
	if err != nil {
		return err
	}
	if row[1] != "1" {
		return fmt.Errorf("%w%s", backend.ErrLocked, holder(dc, name))
	}
	id, err := strconv.ParseUint(row[0], 10, 64)
	if err != nil {
		return fmt.Errorf("connection id: %w", err)
	}
	d.session.Store(id)
	return nil
}

// holder tells which connection has a lock, for messages; "" if that cannot be found out.
func holder(dc driver.Conn, lock string) string {
	row, err := query(dc, "SELECT id, host FROM information_schema.processlist WHERE id = IS_USED_LOCK(?)", lock)
	if err != nil {
		return "" // it is free again, or of another user, without the right to see that
	}
	return fmt.Sprintf(" by connection %s, from %s: if no process has it any more, because that machine was lost or cut off, end it with KILL %s on the server", row[0], row[1], row[0])
}

func exec(dc driver.Conn, statement string) error {
	_, err := dc.(driver.ExecerContext).ExecContext(context.Background(), statement, nil)
	return err
}

// query returns the first row of a query as text, NULL as "".
func query(dc driver.Conn, text string, args ...driver.Value) ([]string, error) {
	all, err := queryAll(dc, text, args...)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no row", text)
	}
	return all[0], nil
}

// queryAll returns the rows of a query as text, NULL as "".
func queryAll(dc driver.Conn, text string, args ...driver.Value) (all [][]string, err error) {
	s, err := dc.Prepare(text)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	//lint:ignore SA1019 the context-free form is that of the driver
	rows, err := s.Query(args)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	values := make([]driver.Value, len(rows.Columns()))
	for {
		if err := rows.Next(values); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		row := make([]string, len(values))
		for i, v := range values {
			switch v := v.(type) {
			case nil:
			case []byte:
				row[i] = string(v)
			default:
				row[i] = fmt.Sprint(v)
			}
		}
		all = append(all, row)
	}
}

// Readers implements sqldb.Dialect.
func (d *dialect) Readers() int { return readers }

// OwnsBytes implements sqldb.Dialect: values are parts of the driver's buffer.
func (d *dialect) OwnsBytes() bool { return false }

// insertSuffix makes an INSERT do nothing where the key is there. INSERT IGNORE would also ignore
// that a value is too long, and cut it.
const insertSuffix = " ON DUPLICATE KEY UPDATE tid = tid"

// Rewrite implements sqldb.Dialect.
func (d *dialect) Rewrite(query string) string {
	if strings.Contains(query, "{ignore}") {
		query += insertSuffix
	}
	return rewriter.Replace(query)
}

var rewriter = strings.NewReplacer("{ignore}", "", "{pk:trans}", "FORCE INDEX (PRIMARY)", "{pk:obj}", "FORCE INDEX (PRIMARY)", "{tid:obj}", "FORCE INDEX (tid)",
	"CROSS JOIN", "STRAIGHT_JOIN")

// Rows implements sqldb.Dialect.
func (d *dialect) Rows() int { return rowsInInsert }

// Bytes implements sqldb.Dialect.
func (d *dialect) Bytes() int { return bytesInSQL }

// Batches implements sqldb.Dialect. MySQL has another syntax for it.
func (d *dialect) Batches() bool { return d.maria.Load() }

// CheapContext implements sqldb.Dialect: two other goroutines wake up for each query that has one. The
// connections are interrupted instead.
func (d *dialect) CheapContext() bool { return false }

// Begin implements sqldb.Dialect: without autocommit there always is an SQL transaction.
func (d *dialect) Begin() string { return "" }

// Snapshot implements sqldb.Dialect: the first query after a COMMIT makes it.
func (d *dialect) Snapshot() string { return "" }

// MaxMeta implements sqldb.Dialect: the columns are BLOBs. A Data.fs has the same limit.
func (d *dialect) MaxMeta() int { return 65535 }

// Linger implements sqldb.Dialect: the server cannot purge what a connection may still read, in any of its
// databases.
func (d *dialect) Linger() time.Duration { return time.Second }

// MaxPartition implements sqldb.Dialect.
func (d *dialect) MaxPartition() int { return maxPartition }

// Parking implements sqldb.Dialect: a change of a page is logged as such, not as a page.
func (d *dialect) Parking() int64 { return 0 }

// Transient implements sqldb.Dialect: no other program writes.
func (d *dialect) Transient(error) bool { return false }

// Shared implements sqldb.Dialect: the lock ends with the connection.
func (d *dialect) Shared() bool { return true }

// Lost implements sqldb.Dialect.
func (d *dialect) Lost(err error) bool { return lost(err) }

// maxVarBinary is the greatest length of a VARBINARY column beside a short one.
const maxVarBinary = 65000

// Widen implements sqldb.Dialect.
func (d *dialect) Widen(err error, n int) string {
	switch {
	case code(err) != codeTooLong:
		return ""
	case n > maxVarBinary:
		return "ALTER TABLE config MODIFY value MEDIUMBLOB NULL"
	}
	return fmt.Sprintf("ALTER TABLE config MODIFY value VARBINARY(%d) NULL", n)
}

// blob is a type of columns for bytes, with the greatest length of its values.
type blob struct {
	name string
	max  int
}

var blobs = []blob{{"TINYBLOB", 1<<8 - 1}, {"BLOB", 1<<16 - 1}, {"MEDIUMBLOB", 1<<24 - 1}, {"LONGBLOB", 1<<32 - 1}}

// rowOverhead is more than what a row has beside its long values.
const rowOverhead = 1 << 10

// Lengthen implements sqldb.Dialect. The Python implementation reads longer columns as well.
func (d *dialect) Lengthen(c *sqldb.Conn, table string, sizes map[string]int) (string, error) {
	total, packet := rowOverhead, 0
	for _, n := range sizes {
		total += n
	}
	if _, err := c.One("SELECT @@GLOBAL.max_allowed_packet", func(r *sqldb.Row) error {
		packet = int(r.Int(0))
		return nil
	}); err != nil {
		return "", err
	}
	if total > packet {
		return "", fmt.Errorf("its metadata has %d bytes, but max_allowed_packet of the server is %d: set max_allowed_packet = %dM in section [mysqld] of its configuration, and restart it", total-rowOverhead, packet, total>>20+1)
	}
	var changes []string
	q := "SELECT column_name, data_type, is_nullable FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ? ORDER BY ordinal_position"
	err := c.Each(q, func(r *sqldb.Row) error {
		n, long := sizes[r.Text(0)]
		for _, b := range blobs {
			if strings.EqualFold(b.name, r.Text(1)) {
				long = long && n > b.max
			}
		}
		if !long {
			return nil
		}
		i := slices.IndexFunc(blobs, func(b blob) bool { return n <= b.max })
		null := " NOT NULL"
		if strings.EqualFold(r.Text(2), "YES") {
			null = " NULL"
		}
		changes = append(changes, "MODIFY "+r.Text(0)+" "+blobs[i].name+null)
		return nil
	}, table)
	if err != nil || changes == nil {
		return "", err
	}
	return "ALTER TABLE " + table + " " + strings.Join(changes, ", "), nil
}

// Copying implements sqldb.Dialect: RocksDB has in memory what is not committed.
func (d *dialect) Copying(c *sqldb.Conn, f func() error) error {
	if d.tables != RocksDB {
		return f()
	}
	const set = "SET SESSION rocksdb_commit_in_the_middle = "
	if err := c.ExecOnce(set + "1"); err != nil {
		return err
	}
	return errors.Join(f(), c.ExecOnce(set+"0"))
}

// AfterCommit implements sqldb.Dialect.
func (d *dialect) AfterCommit(*sqldb.Conn, func(func() error) error) error { return nil }

// Topology implements sqldb.Dialect: as the Python implementation, the host and the device of the data
// directory, if that can be seen from here; else the host of the server and the directory.
func (d *dialect) Topology(c *sqldb.Conn) ([]string, error) {
	var dir, server string
	if _, err := c.One("SELECT @@datadir, @@hostname", func(r *sqldb.Row) error {
		dir, server = r.Text(0), r.Text(1)
		return nil
	}); err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	var st syscall.Stat_t
	if d.name.addr == "" || server == host {
		err := syscall.Stat(dir, &st)
		if err == nil {
			return []string{host, strconv.FormatUint(uint64(st.Dev), 10)}, nil
		}
		d.log.Warn("the device of the database is unknown: replicas may get on the same one", "database", d.Name(), "path", dir, "err", err)
	}
	return []string{server, dir}, nil
}

// Close implements sqldb.Dialect: the lock ended with its connection.
func (d *dialect) Close() error { return nil }
