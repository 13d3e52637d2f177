package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/storage/sqldb"
)

// limits are sizes of the write-ahead log, in pages.
type limits struct {
	copy    int64 // copied in the background from here on
	little  int64 // left to be copied while readers wait
	restart int64 // begun again from its start, readers waiting for a moment
	max     int64 // a commit waits until it is copied
}

var defaultLimits = limits{copy: 2000, little: 150, restart: 4000, max: 40000}

// idle is the pause after which what is left of the log is copied.
const idle = time.Second

// measured is the number of commits after which the size of the log is looked at:
// that costs as much as a small commit.
const measured = 8

// checkpointer copies the write-ahead log into the file, on a connection of its
// own and beside the writer.
type checkpointer struct {
	d *dialect
	limits
	commits int           // owned by the writer
	last    atomic.Int64  // time of the last commit, in nanoseconds
	awake   atomic.Bool   // since a commit, until the log has been copied
	wake    chan struct{} // it has to awake, or there is much to copy
	stop    chan struct{}
	end     sync.WaitGroup
	once    sync.Once
	busy    sync.Mutex // held during a checkpoint
	err     atomic.Pointer[error]
}

func newCheckpointer(d *dialect) *checkpointer {
	return &checkpointer{d: d, limits: defaultLimits, wake: make(chan struct{}, 1), stop: make(chan struct{})}
}

// walSize returns the pages of the log and how many of them were copied.
func walSize(c *sqldb.Conn, mode string) (pages, copied int64, err error) {
	err = c.Each("PRAGMA wal_checkpoint("+mode+")", func(r *sqldb.Row) error {
		pages, copied = r.Int(1), r.Int(2)
		return nil
	})
	return pages, copied, err
}

// AfterCommit implements sqldb.Dialect.
func (d *dialect) AfterCommit(c *sqldb.Conn, pause func(f func() error) error) error {
	k := d.check
	if k == nil {
		return nil
	}
	k.once.Do(func() {
		k.end.Add(1)
		go k.run()
	})
	if err := k.err.Load(); err != nil {
		return *err
	}
	k.last.Store(time.Now().UnixNano())
	if k.awake.CompareAndSwap(false, true) {
		k.signal()
	}
	if k.commits++; k.commits%measured != 0 {
		return nil
	}
	pages, copied, err := walSize(c, "NOOP")
	if err != nil {
		return err
	}
	left := pages - copied
	if pages >= k.max || pages >= k.restart && left < k.little {
		k.busy.Lock()
		defer k.busy.Unlock()
		return pause(func() error { return d.restart(c) })
	}
	if k.worth(pages, left) {
		k.signal()
	}
	return nil
}

// restart copies the log and begins it again from its start, unless another program
// reads: no commit waits for that.
func (d *dialect) restart(c *sqldb.Conn) (err error) {
	if err := setBusyTimeout(c, "0"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, setBusyTimeout(c, busyTimeout)) }()
	_, _, err = walSize(c, "RESTART")
	if d.Transient(err) {
		err = nil // next time
	}
	return err
}

// setBusyTimeout takes effect when the statement is prepared: it is not kept.
func setBusyTimeout(c *sqldb.Conn, ms string) error { return c.ExecOnce("PRAGMA busy_timeout = " + ms) }

// worth reports whether to copy in the background: there is much to be copied, or
// too much to begin the log again without making a commit wait.
func (k *checkpointer) worth(pages, left int64) bool {
	return left >= k.copy || pages >= k.restart && left >= k.little
}

func (k *checkpointer) signal() {
	select {
	case k.wake <- struct{}{}:
	default: // it is on its way
	}
}

func (k *checkpointer) run() {
	defer k.end.Done()
	if err := k.loop(); err != nil {
		err = fmt.Errorf("checkpoint %s: %w", k.d.Name(), err)
		k.err.Store(&err)
	}
}

func (k *checkpointer) loop() (err error) {
	c, err := sqldb.Connect(context.Background(), k.d, sqldb.Writer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for {
		var quiet <-chan time.Time
		if k.awake.Load() {
			quiet = time.After(time.Until(time.Unix(0, k.last.Load()).Add(idle)))
		}
		select {
		case <-k.stop:
			return nil
		case <-k.wake:
			// A little log is not worth the flush until the database is idle.
			pages, copied, err := walSize(c, "NOOP")
			if err != nil {
				return err
			}
			if !k.worth(pages, pages-copied) {
				continue
			}
		case <-quiet:
			if time.Since(time.Unix(0, k.last.Load())) < idle {
				continue
			}
			k.awake.Store(false) // before copying: the next commit wakes it again
		}
		k.busy.Lock()
		_, _, err := walSize(c, "PASSIVE")
		k.busy.Unlock()
		if err != nil && !k.d.Transient(err) {
			return err
		}
	}
}

func (k *checkpointer) close() error {
	close(k.stop)
	k.end.Wait()
	if err := k.err.Load(); err != nil {
		return *err
	}
	return nil
}
