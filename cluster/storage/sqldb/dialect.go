package sqldb

import (
	"context"
	"database/sql/driver"
	"time"
)

// Role is what a connection is for.
type Role int

const (
	Writer Role = iota // the one connection that writes
	Reader             // one of several that only read what is committed
)

// Table names, in the order of creation.
const (
	tConfig  = "config"
	tPT      = "pt"
	tPack    = "pack"
	tTrans   = "trans"
	tObj     = "obj"
	tData    = "data"
	tBigData = "bigdata"
	tTTrans  = "ttrans"
	tTObj    = "tobj"
	tToDel   = "todel"
)

// Dialect is what differs between databases. Statements are written once, with
// ? for parameters, `partition` quoted this way, and these words, which Rewrite
// replaces:
//
//	 {pk:trans} {pk:obj}  after a table: hint to use its primary key
//	 {tid:obj}            after table obj: hint to use its index tid
//	INSERT{ignore}        insert the rows whose keys are not there yet
//	CAST(x AS SIGNED)     to a 64-bit integer
//	CROSS JOIN            with the table before it read first
type Dialect interface {
	// Name names the database in messages: its file, or its address.
	Name() string
	// Connect opens a connection with all its settings. A Reader must not wait
	// for the commit of the Writer.
	Connect(context.Context, Role) (driver.Conn, error)
	// Readers is the greatest number of reading connections. 0: the database
	// cannot be read beside the writer, which then reads too.
	Readers() int
	// OwnsBytes reports that the driver never writes again to the bytes it
	// returned.
	OwnsBytes() bool
	Rewrite(query string) string
	// Rows is the greatest number of rows of one INSERT, and Bytes of the values in it.
	Rows() int
	Bytes() int

	// Batches reports that a query may begin with a list of VALUES.
	Batches() bool

	// CheapContext reports that a query may have a context at little cost, and its end ends
	// the query: all reads have one then. Else only those that may take long.
	CheapContext() bool

	// Begin is the statement that opens an SQL transaction, "" if the connection
	// always has one open.
	Begin() string
	// Snapshot is the statement by which a Reader sees, from its next query until
	// COMMIT, what is committed now. "" if it does so anyway after a COMMIT.
	Snapshot() string

	// Linger is how long a Reader that is idle may keep what it sees. Zero: until the next commit, which
	// ends it. Else the Reader itself does, when it is used again; that costs a commit nothing.
	Linger() time.Duration

	// Prepare is called on the writing connection before it looks for tables: when a
	// database is opened, and when it was erased.
	Prepare(c *Conn) error
	// Tables returns the tables of the dialect, in the order of creation.
	Tables() []string
	// CreateTable returns the statement that creates a table under the name as,
	// as "CREATE TABLE name (…)". dedup is for data only.
	CreateTable(table, as string, dedup bool) string
	// Indices returns the statements that create the indices of a table which are
	// not part of CreateTable, IF NOT EXISTS.
	Indices(table string, dedup bool) []string
	// Widen returns the statement that makes room for a value of so many bytes in table config,
	// if err says that there is none, else "". It may end the SQL transaction.
	Widen(err error, bytes int) string
	// Columns returns the names of the columns of a table, none if it does not exist.
	Columns(c *Conn, table string) ([]string, error)
	// Deduplicates reports whether data has a unique index on (hash, compression).
	Deduplicates(c *Conn) (bool, error)

	// AfterCommit is called after each commit, with the writing connection idle.
	// pause runs a function while no read is under way.
	AfterCommit(c *Conn, pause func(f func() error) error) error
	// Topology returns what tells devices apart: host name, device number.
	Topology(c *Conn) ([]string, error)
	// Transient reports an error of a commit that is worth retrying on the same
	// connection: another program holds the database for a moment. A connection that
	// is lost is not: what it had not committed is gone with it.
	Transient(err error) bool
	// Lost reports an error after which a connection is of no use, while another one
	// may be had, or why there is none yet: a Reader connects again and repeats what it has read,
	// the Writer goes on with another connection if nothing is uncommitted.
	Lost(err error) bool
	// Shared reports that another process may use the database while the connection of the Writer
	// is lost.
	Shared() bool
	// MaxMeta is the greatest length of the user, the description and the extension of a
	// transaction, each, in bytes, for which new tables have room. 0: there is none. If there is
	// one, a list of object ids is a MEDIUMBLOB.
	MaxMeta() int
	// Lengthen returns the statement that makes columns of a table long enough for values of so many
	// bytes, by column, which are one row. "": they are. It may end the SQL transaction.
	Lengthen(c *Conn, table string, sizes map[string]int) (string, error)
	// Copying runs f, which copies a table into another one. What it has written may be committed at
	// any moment.
	Copying(c *Conn, f func() error) error
	// MaxPartition is the greatest partition number.
	MaxPartition() int
	// Parking is the first of the ids under which data may wait for being moved to
	// their places, greater than those of all partitions but the greatest. 0: rows
	// that are inserted at many places cost no more than one after the other.
	Parking() int64
	// Close is called after the last connection was closed.
	Close() error
}
