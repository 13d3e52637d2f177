package sqldb

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// Options configure a DB. A zero field takes the documented default.
type Options struct {
	Dedup bool // a new table of data keeps equal records once
	// HalfImported accepts a database into which an import has not come to its end:
	// the importer continues it, or it is erased. Else: [backend.ErrHalfImported].
	HalfImported bool
	Log          *slog.Logger // default: discard

	// MaxBytes and MaxRows bound the records that wait in memory to be written.
	// Defaults: 8 MiB, 500.
	MaxBytes, MaxRows int
	// MaxRecent bounds the number of records that are written, but not
	// committed: a call that exceeds it commits. Default: 131072.
	MaxRecent int
}

// DB is a [backend.Backend] in an SQL database.
type DB struct {
	d   Dialect
	log *slog.Logger
	o   Options

	// w is held while the writing connection is used. It comes before m.
	w        sync.Mutex
	conn     *Conn
	begun    bool // there is an SQL transaction
	topology []string
	opened   string       // value of keyOpened
	drop     map[int]bool // partitions to be dropped
	parking  int64        // next id to park data under, 0: none

	pool   pool
	layout atomic.Pointer[layout]
	unique atomic.Bool // data has a unique index on (hash, compression)

	// m guards what follows. It is never held while SQL runs.
	m             sync.RWMutex
	err           error // after the first failed write, or Close
	held          map[int64]int
	next          map[int]int64 // next data id of each partition
	buf           buffer
	parked        map[int64]*parked        // by the id of the data
	parkedBytes   int                      // of those not moved
	moved         []*parked                // since the last commit
	txns          map[tid.TID]*transaction // voted, not yet unlocked
	queue         []*transaction           // those with something to write
	direct        direct
	top           map[int]greatest // by partition
	recent        overlay          // changes since the last commit
	saving        overlay          // changes that a commit under way makes durable
	committedUpTo tid.TID          // see ReadCommitted
}

var _ backend.Backend = (*DB)(nil)

var (
	// errClosed answers calls after Close.
	errClosed = errors.New("database is closed")
	// errHalf answers calls after a panic.
	errHalf = errors.New("something was written in part only")
)

// Open opens a database with its tables, creating or migrating them. ctx bounds the
// wait for the connection.
func Open(ctx context.Context, d Dialect, o Options) (*DB, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.MaxBytes = cmp.Or(o.MaxBytes, 8<<20)
	o.MaxRows = cmp.Or(o.MaxRows, 500)
	o.MaxRecent = cmp.Or(o.MaxRecent, 1<<17)
	c, err := Connect(ctx, d, Writer)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	db := &DB{d: d, log: o.Log, o: o, conn: c}
	c.reconnect = func() (driver.Conn, error) {
		db.pool.log.Warn("writing connection lost, connecting again: nothing was uncommitted")
		dc, err := d.Connect(context.Background(), Writer)
		if err == nil {
			if err = db.checkOpened(dc); err != nil {
				err = errors.Join(err, dc.Close())
			}
		}
		if err != nil {
			db.pool.log.Warn("no other writing connection can be had", "err", err)
			return nil, err
		}
		return dc, nil
	}
	db.pool.open = func(ctx context.Context) (*Conn, error) { return Connect(ctx, d, Reader) }
	db.pool.lost = d.Lost
	db.pool.log = o.Log.With("database", d.Name())
	db.pool.begin = d.Snapshot()
	db.pool.limit = d.Readers()
	db.pool.linger = d.Linger()
	db.pool.cond.L = &db.pool.m
	err = db.setup()
	if err == nil {
		db.topology, err = d.Topology(c)
	}
	if err == nil && !o.HalfImported {
		err = db.checkImported()
	}
	if err != nil {
		return nil, errors.Join(err, c.Close(), d.Close())
	}
	return db, nil
}

// reset empties what is kept in memory. The caller holds w.
func (db *DB) reset() {
	db.m.Lock()
	defer db.m.Unlock()
	db.held = map[int64]int{}
	db.next = map[int]int64{}
	db.buf = newBuffer()
	db.parked, db.parkedBytes, db.moved = map[int64]*parked{}, 0, nil
	db.txns = map[tid.TID]*transaction{}
	db.queue = nil
	db.direct = direct{}
	db.top = map[int]greatest{}
	db.recent = newOverlay()
	db.saving = newOverlay()
	db.drop = map[int]bool{}
}

func (db *DB) setup() error {
	db.reset()
	if err := db.create(); err != nil {
		return err
	}
	if db.d.Shared() {
		db.opened = rand.Text()
		if err := setConfig(db.conn, keyOpened, proto.Some(db.opened)); err != nil {
			return err
		}
	}
	if err := db.commitSQL(); err != nil {
		return err
	}
	unique, err := db.d.Deduplicates(db.conn)
	if err != nil {
		return err
	}
	db.unique.Store(unique)
	held := map[int64]int{}
	err = db.conn.Each("SELECT data_id, COUNT(*) FROM tobj WHERE data_id IS NOT NULL GROUP BY data_id", func(r *Row) error {
		held[r.Int(0)] = int(r.Int(1))
		return nil
	})
	if err != nil {
		return err
	}
	db.m.Lock()
	db.held = held
	db.m.Unlock()
	if err := db.setParking(); err != nil {
		return err
	}
	if err := db.drainToDel(); err != nil {
		return err
	}
	return db.loadLayout()
}

// checkOpened refuses a connection to a database that another process has opened since this one did: what is in
// memory is not what is there. The Python implementation leaves no mark.
func (db *DB) checkOpened(dc driver.Conn) error {
	if db.opened == "" { // not yet: the tables are being made
		return nil
	}
	c, opened := NewConn(db.d, dc), ""
	_, err := c.One("SELECT value FROM config WHERE name = ?", func(r *Row) error {
		opened = r.Text(0)
		return nil
	}, keyOpened)
	if err = errors.Join(err, c.forget()); err != nil {
		return err
	}
	if opened != db.opened {
		return fmt.Errorf("database %s: another process has used it while the connection was lost: start the storage again", db.d.Name())
	}
	return nil
}

// broken returns the error that ended the use of the database.
func (db *DB) broken() error {
	db.m.RLock()
	defer db.m.RUnlock()
	return db.err
}

// fail remembers an error after which nothing can be trusted.
func (db *DB) fail(err error) error {
	if err == nil || answer(err) {
		return err
	}
	db.m.Lock()
	defer db.m.Unlock()
	if db.err == nil {
		db.err = err
	}
	return err
}

// answer reports an error that is only an answer to the caller.
func answer(err error) bool {
	return errors.Is(err, backend.ErrNonReadable) || errors.Is(err, backend.ErrNotFound) ||
		errors.Is(err, backend.ErrNoSuchObject) || errors.Is(err, backend.ErrUndoPacked) ||
		errors.Is(err, backend.ErrNotImplemented) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// write runs f on the writing connection inside the SQL transaction, after
// everything that waits in memory was written.
func (db *DB) write(f func(c *Conn) error) error {
	db.w.Lock()
	defer db.w.Unlock()
	return db.writeLocked(f)
}

func (db *DB) writeLocked(f func(c *Conn) error) error {
	if err := db.flush(); err != nil {
		return err
	}
	if err := db.begin(); err != nil {
		return db.fail(err)
	}
	db.m.Lock()
	db.recent.written = true
	db.m.Unlock()
	return db.guard(func() error { return db.fail(f(db.conn)) })
}

// guard runs f, which writes. If a panic ends it, so does the use of the database:
// what it has written so far must not be committed. The caller holds w.
func (db *DB) guard(f func() error) error {
	ended := false
	defer func() {
		if !ended {
			db.fail(fmt.Errorf("database %s: %w", db.d.Name(), errHalf))
		}
	}()
	err := f()
	ended = true
	return err
}

// readMain runs f on the writing connection, which sees everything. If the connection is lost
// with nothing uncommitted, f is run again on another one: it must begin anew.
func (db *DB) readMain(f func(c *Conn) error) error { return db.readMainAfter(nil, f) }

// readMainAfter is readMain that counts how long it waits: for a commit under way, and for
// what would be written a little later anyway.
func (db *DB) readMainAfter(waits *backend.Waits, f func(c *Conn) error) error {
	begin := time.Now()
	db.w.Lock()
	defer db.w.Unlock()
	err := db.flush()
	waits.Add(time.Since(begin))
	if err != nil {
		return err
	}
	return db.again(f)
}

// again runs f, which reads, until a connection lasts. The caller holds w.
func (db *DB) again(f func(c *Conn) error) error {
	err := f(db.conn)
	for n := 1; err != nil && db.conn.restored(n, err); n++ {
		err = f(db.conn)
	}
	return err
}

// read runs f, which looks at nothing later than upTo, on a connection that sees
// all of that.
func (db *DB) read(ctx context.Context, upTo tid.TID, f func(c *Conn) error) error {
	return db.readFor(ctx, false, upTo, f)
}

// readLong is read for what may take long.
func (db *DB) readLong(ctx context.Context, upTo tid.TID, f func(c *Conn) error) error {
	return db.readFor(ctx, true, upTo, f)
}

func (db *DB) readFor(ctx context.Context, long bool, upTo tid.TID, f func(c *Conn) error) error {
	db.m.RLock()
	err := db.err
	dirty := upTo >= min(db.recent.from, db.saving.from)
	db.m.RUnlock()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if dirty || db.pool.limit == 0 {
		return db.readMainAfter(backend.WaitsOf(ctx), f)
	}
	return db.pool.useFor(ctx, long, f)
}

// readNear runs f on a connection that sees at least what is committed: on the
// writing one if it is free, because each commit empties the caches of the others.
// It is about to write: the SQL transaction begins now, so that no read has one of
// its own.
func (db *DB) readNear(ctx context.Context, f func(c *Conn) error) error {
	if db.w.TryLock() {
		defer db.w.Unlock()
		if err := db.broken(); err != nil {
			return err
		}
		if err := db.begin(); err != nil {
			return db.fail(err)
		}
		return db.again(f)
	}
	return db.pool.use(ctx, f)
}

// begin opens the SQL transaction. The caller holds w.
func (db *DB) begin() error {
	if !db.begun {
		if err := db.conn.Begin(db.d.Begin()); err != nil {
			return err
		}
	}
	db.begun = true
	return nil
}

// commitSQL ends the SQL transaction. The caller holds w.
func (db *DB) commitSQL() error {
	if !db.begun {
		return nil
	}
	for logged := false; ; {
		err := db.conn.Commit()
		if err == nil {
			break
		}
		if db.d.Lost(err) || !db.d.Transient(err) {
			return err
		}
		if !logged {
			db.log.Warn("commit delayed: another process uses the database", "database", db.d.Name())
			logged = true
		}
		time.Sleep(10 * time.Millisecond)
	}
	db.begun = false
	return db.pool.committed()
}

// Commit implements [backend.Writing].
func (db *DB) Commit() error {
	db.w.Lock()
	defer db.w.Unlock()
	return db.commitLocked()
}

// CommitVotes implements [backend.Writing].
func (db *DB) CommitVotes() error {
	db.w.Lock()
	defer db.w.Unlock()
	return db.commit(true)
}

func (db *DB) commitLocked() error { return db.commit(false) }

// commit makes everything durable; later: moves to the final tables may wait. The
// caller holds w.
func (db *DB) commit(later bool) error {
	if err := db.flushInto(true, later); err != nil {
		return err
	}
	if err := db.guard(db.commitSQL); err != nil {
		return db.fail(err)
	}
	db.m.Lock()
	db.saving = newOverlay()
	db.forgetMoved()
	db.m.Unlock()
	return db.fail(db.d.AfterCommit(db.conn, db.pool.pause))
}

// Close implements [backend.Keeping].
func (db *DB) Close() error {
	db.w.Lock()
	defer db.w.Unlock()
	err := db.broken()
	if errors.Is(err, errClosed) {
		return nil
	}
	if err == nil {
		err = db.commitLocked()
	} else {
		err = nil // returned by the write that failed
	}
	db.m.Lock()
	db.err = fmt.Errorf("%s: %w", db.d.Name(), errClosed)
	db.m.Unlock()
	return errors.Join(err, db.pool.close(), db.conn.Close(), db.d.Close())
}

// Erase implements [backend.Keeping].
func (db *DB) Erase() error {
	db.w.Lock()
	defer db.w.Unlock()
	if err := db.flush(); err != nil {
		return err
	}
	if err := db.begin(); err != nil {
		return db.fail(err)
	}
	db.layout.Store(&layout{}) // before anything is gone
	return db.guard(func() error {
		if err := db.dropTables(); err != nil {
			return db.fail(err)
		}
		return db.fail(db.setup())
	})
}

// Topology implements [backend.Keeping].
func (db *DB) Topology() []string { return db.topology }

// layout is what the node's copy of the partition table says. It never changes;
// another one takes its place.
type layout struct {
	np         int
	id         proto.NodeID
	readable   []bool
	assigned   []bool
	replicated []bool // complete, but not yet declared so
}

// partition returns the partition of a readable object.
func (l *layout) object(o tid.OID) (int, error) {
	if l.np == 0 {
		return 0, backend.ErrNonReadable
	}
	p := o.Partition(l.np)
	if !l.readable[p] {
		return 0, backend.ErrNonReadable
	}
	return p, nil
}

func (l *layout) transaction(t tid.TID) (int, error) { return l.object(tid.OID(t)) }

func (l *layout) check(partition int) error {
	if partition < 0 || partition >= l.np || !l.readable[partition] {
		return backend.ErrNonReadable
	}
	return nil
}

// still returns err, or ErrNonReadable if a partition is not readable any more: what
// was found is then what is left of it, and says nothing of what exists.
func (db *DB) still(partition int, err error) error {
	if err == nil || answer(err) {
		return cmpErr(db.layout.Load().check(partition), err)
	}
	return err
}

// readables returns the readable partitions.
func (l *layout) readables() []int {
	var ps []int
	for p, ok := range l.readable {
		if ok {
			ps = append(ps, p)
		}
	}
	return ps
}

// eachChunk is how many rows a long scan reads before it lets others go on.
const eachChunk = 1000
