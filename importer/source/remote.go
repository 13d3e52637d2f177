package source

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Pauses between attempts to connect, and between attempts to read.
const (
	firstPause  = 100 * time.Millisecond
	longestConn = 5 * time.Second
	longestRead = time.Second
)

// connection is a connection to a server. It must not be used any more once its error is
// not nil.
type connection interface {
	txn.Database
	// serves waits until the server can be asked, if the connection finds it again by
	// itself.
	serves(ctx context.Context) error
	Done() <-chan struct{} // closed when it is lost; nil: it is never
	Err() error
	close()
}

// remote is a database on a server that may go away and come back. One goroutine
// connects, as often as needed; all reads share the connection.
type remote struct {
	section  string
	what     string // "ZEO server a:1"
	patience time.Duration
	log      *slog.Logger
	// dial connects to the server, or to one of several.
	dial func(ctx context.Context) (connection, error)

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	failures chan error // of attempts to connect, the last one

	mu    sync.Mutex
	conn  connection    // nil: there is none
	ready chan struct{} // closed while conn is not nil
	err   error         // why there is none, or why it does not serve for the moment
	since time.Time     // and since when
}

func newRemote(section, what string, opt Options, dial func(context.Context) (connection, error)) *remote {
	r := &remote{section: section, what: what, patience: opt.Patience, log: opt.Log, dial: dial, failures: make(chan error, 1), ready: make(chan struct{}), since: time.Now()}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// open begins to connect and, unless it is to be lazy, waits until it is. final reports
// whether a failure is worth no other attempt.
func (r *remote) open(ctx context.Context, lazy bool, final func(error) bool) error {
	ready := r.ready
	r.wg.Go(r.run)
	var last error
	for !lazy {
		select {
		case <-ready:
			return nil
		case last = <-r.failures:
			if !final(last) {
				continue
			}
			r.Close()
			return last
		case <-ctx.Done():
			r.Close()
			if last == nil {
				return fmt.Errorf("%s: %w", r.what, ctx.Err())
			}
			return fmt.Errorf("%w: %w", last, ctx.Err())
		}
	}
	return nil
}

// ErrClosed reports a read that was under way when a source was closed, or began later. Where it
// waited for a server it is a [txn.ErrUnavailable] as well.
var ErrClosed = errors.New("the source is closed")

// Close ends the connection. Reads under way fail.
func (r *remote) Close() error {
	r.cancel()
	r.wg.Wait()
	return nil
}

// run keeps connected.
func (r *remote) run() {
	pause := firstPause
	for r.ctx.Err() == nil {
		began := time.Now()
		conn, err := r.dial(r.ctx)
		if err != nil {
			r.failed(err)
		} else {
			r.connected(conn)
			select {
			case <-conn.Done():
			case <-r.ctx.Done():
			}
			r.lost(conn)
			if time.Since(began) > longestConn {
				pause = firstPause
				continue
			}
		}
		select {
		case <-time.After(pause):
		case <-r.ctx.Done():
		}
		pause = min(2*pause, longestConn)
	}
}

func (r *remote) failed(err error) {
	if r.ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil || r.err.Error() != err.Error() {
		r.log.Warn("cannot connect, trying again", "server", r.what, "err", err)
	}
	r.err = err
	select {
	case <-r.failures:
	default:
	}
	r.failures <- err // by this goroutine alone
}

// away says that the connection, which is there, does not serve for the moment, or does
// again.
func (r *remote) away(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil && r.err == nil:
		r.since = time.Now()
		r.log.Warn("the connection is lost, connecting again", "server", r.what, "err", err)
	case err == nil && r.err != nil:
		r.log.Info("connected", "server", r.what, "seconds", time.Since(r.since).Seconds())
	}
	r.err = err
}

func (r *remote) connected(conn connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log.Info("connected", "server", r.what, "seconds", time.Since(r.since).Seconds())
	r.conn, r.err = conn, nil
	close(r.ready)
}

func (r *remote) lost(conn connection) {
	r.mu.Lock()
	r.conn, r.err, r.since = nil, conn.Err(), time.Now()
	r.ready = make(chan struct{})
	if r.ctx.Err() == nil {
		r.log.Warn("the connection is lost, connecting again", "server", r.what, "err", r.err)
	}
	r.mu.Unlock()
	conn.close()
}

// Trouble implements [Source].
func (r *remote) Trouble() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil && r.err == nil || r.ctx.Err() != nil {
		return nil
	}
	return r.unavailableLocked(r.err)
}

// unavailableLocked is the error of a read that has waited in vain.
func (r *remote) unavailableLocked(err error) error {
	if err == nil {
		err = errors.New("not yet connected")
	}
	return &unavailableError{r.section, r.what, time.Since(r.since).Round(time.Second), r.conn != nil && r.err == nil, err}
}

// unavailableError is a [txn.ErrUnavailable].
type unavailableError struct {
	section   string
	what      string
	since     time.Duration
	connected bool
	err       error
}

func (e *unavailableError) Error() string {
	if e.connected {
		return fmt.Sprintf("source %s: %s does not serve: %v; the import goes on when it does", e.section, e.what, e.err)
	}
	return fmt.Sprintf("source %s: %s has not been reachable for %v: %v; start it again: the import then goes on", e.section, e.what, e.since, e.err)
}

func (e *unavailableError) Unwrap() []error { return []error{txn.ErrUnavailable, e.err} }

// wait is the patience of one read.
type wait struct {
	r     *remote
	ctx   context.Context
	until time.Time // zero: there was nothing to wait for since the last success
	pause time.Duration
}

func (r *remote) wait(ctx context.Context) *wait { return &wait{r: r, ctx: ctx} }

// progress says that something was read.
func (w *wait) progress() {
	if w.until != (time.Time{}) {
		w.until, w.pause = time.Time{}, 0
	}
}

// begin returns when patience ends.
func (w *wait) begin() time.Time {
	if w.until.IsZero() {
		w.until = time.Now().Add(w.r.patience)
	}
	return w.until
}

// connection waits for a connection. The error is the one to return.
func (w *wait) connection() (connection, error) {
	r := w.r
	for {
		if err := w.ctx.Err(); err != nil {
			return nil, err
		}
		r.mu.Lock()
		conn, ready := r.conn, r.ready
		r.mu.Unlock()
		if conn != nil && conn.Err() == nil {
			return conn, w.serves(conn)
		}
		if conn != nil { // just lost: its end is told soon
			if err := w.sleep(time.Millisecond); err != nil {
				return nil, err
			}
			continue
		}
		if err := w.await(ready); err != nil {
			return nil, err
		}
	}
}

// serves waits until a connection can be asked.
func (w *wait) serves(conn connection) error {
	ctx, cancel := context.WithTimeout(w.ctx, w.r.patience)
	defer cancel()
	err := conn.serves(ctx)
	switch {
	case err == nil:
		return nil
	case w.ctx.Err() != nil:
		return w.ctx.Err()
	case w.r.ctx.Err() != nil:
		return w.closed()
	case ctx.Err() != nil:
		return w.unavailable(nil)
	}
	return fmt.Errorf("source %s: %w", w.r.section, err)
}

// await waits for a channel to be closed.
func (w *wait) await(ready <-chan struct{}) error {
	t := time.NewTimer(time.Until(w.begin()))
	defer t.Stop()
	select {
	case <-ready:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	case <-w.r.ctx.Done():
		return w.closed()
	case <-t.C:
		return w.unavailable(nil)
	}
}

func (w *wait) sleep(d time.Duration) error {
	select {
	case <-time.After(min(d, time.Until(w.begin()))):
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	case <-w.r.ctx.Done():
		return w.closed()
	}
}

func (w *wait) closed() error {
	return fmt.Errorf("source %s: %w: %w", w.r.section, txn.ErrUnavailable, ErrClosed)
}

// unavailable is the error of impatience. err is what the server said last, if anything.
func (w *wait) unavailable(err error) error {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	if err == nil {
		err = w.r.err
	}
	return w.r.unavailableLocked(err)
}

// again decides what to do about the error of a read: nil means that it is to be tried
// again, otherwise it is the error to return.
func (w *wait) again(err error) error {
	switch {
	case w.ctx.Err() != nil:
		return w.ctx.Err()
	case w.r.ctx.Err() != nil:
		return w.closed()
	case !errors.Is(err, txn.ErrUnavailable):
		return fmt.Errorf("source %s: %w", w.r.section, err)
	case !time.Now().Before(w.begin()):
		return w.unavailable(err)
	}
	w.pause = min(max(2*w.pause, 10*time.Millisecond), longestRead)
	return w.sleep(w.pause)
}

// do calls f with a connection, again if that was lost. The patience is for everything:
// f is about one object.
func (r *remote) do(ctx context.Context, f func(ctx context.Context, conn connection) error) error {
	w := r.wait(ctx)
	for {
		conn, err := w.connection()
		if err != nil {
			return err
		}
		limited, cancel := context.WithDeadline(ctx, w.begin())
		err = f(limited, conn)
		late := limited.Err() != nil
		cancel()
		switch {
		case err == nil || errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject):
			return err
		case late && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			return w.unavailable(fmt.Errorf("no answer within %v", r.patience))
		}
		if err := w.again(err); err != nil {
			return err
		}
	}
}

// read is do for what has a result.
func read[T any](ctx context.Context, r *remote, f func(ctx context.Context, conn connection) (T, error)) (T, error) {
	var v T
	err := r.do(ctx, func(ctx context.Context, conn connection) (err error) {
		v, err = f(ctx, conn)
		return err
	})
	if err != nil {
		var zero T
		return zero, err
	}
	return v, nil
}

// resumed yields what begin yields, and where that is cut, what it yields on the next
// connection: begin goes on behind what it gave before.
func resumed[T any](ctx context.Context, r *remote, begin func(conn connection) iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		w := r.wait(ctx)
		for {
			conn, err := w.connection()
			if err != nil {
				yield(zero, err)
				return
			}
			cut := false
			for v, err := range begin(conn) {
				if err != nil {
					if err := w.again(err); err != nil {
						yield(zero, err)
						return
					}
					cut = true
					break
				}
				w.progress()
				if !yield(v, nil) {
					return
				}
			}
			if !cut {
				return
			}
		}
	}
}

// LoadBefore implements [txn.Database].
func (r *remote) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	return read(ctx, r, func(ctx context.Context, conn connection) (txn.Revision, error) {
		return conn.LoadBefore(ctx, oid, before)
	})
}

// LoadAt implements [txn.Database].
func (r *remote) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	return read(ctx, r, func(ctx context.Context, conn connection) (txn.Revision, error) { return conn.LoadAt(ctx, oid, at) })
}

// Revisions implements [txn.Database].
func (r *remote) Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	return read(ctx, r, func(ctx context.Context, conn connection) ([]txn.Info, error) { return conn.Revisions(ctx, oid, n) })
}

// LastTID implements [txn.History].
func (r *remote) LastTID(ctx context.Context) (tid.TID, error) {
	return read(ctx, r, func(ctx context.Context, conn connection) (tid.TID, error) { return conn.LastTID(ctx) })
}

// Position implements [Source].
func (*remote) Position(tid.TID) (pos, size int64, ok bool) { return 0, 0, false }

// Transactions implements [txn.History]. Where the connection is lost it goes on, behind
// the last record that was given.
func (r *remote) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		last := after
		resumed(ctx, r, func(conn connection) iter.Seq2[*txn.Transaction, error] {
			return func(yield func(*txn.Transaction, error) bool) {
				if last >= upTo {
					return
				}
				end, err := conn.LastTID(ctx)
				if err != nil {
					yield(nil, err)
					return
				}
				for t, err := range conn.Transactions(ctx, last, upTo) {
					if err == nil {
						last = t.TID
						t.Records = r.records(ctx, t.TID, t.Records)
					}
					if !yield(t, err) || err != nil {
						return
					}
				}
				// Python's server ends an iteration where its file is damaged.
				if last < end && end <= upTo {
					yield(nil, fmt.Errorf("%s gives no transaction after %v, and the last one is %v: look for damage in its database", r.what, last, end))
				}
			}
		})(yield)
	}
}

// records yields the records of a transaction, the rest of them on another connection
// where they are cut.
func (r *remote) records(ctx context.Context, at tid.TID, records iter.Seq2[*txn.Record, error]) iter.Seq2[*txn.Record, error] {
	if records == nil {
		return nil
	}
	return func(yield func(*txn.Record, error) bool) {
		given, last := 0, tid.OID(0)
		begun := false
		resumed(ctx, r, func(conn connection) iter.Seq2[*txn.Record, error] {
			from := records
			if begun {
				from = recordsOf(ctx, conn, at)
			}
			begun = true
			return func(yield func(*txn.Record, error) bool) {
				n, other := 0, false
				for rec, err := range from {
					if n++; err == nil && n <= given {
						if other = n == given && rec.OID != last; other {
							break
						}
						continue
					}
					if err == nil {
						given, last = n, rec.OID
					}
					if !yield(rec, err) || err != nil {
						return
					}
				}
				if other || n < given {
					yield(nil, fmt.Errorf("transaction %v has other records than before the connection was lost: was %s packed? Begin again", at, r.what))
				}
			}
		})(yield)
	}
}

// recordsOf yields the records of one transaction.
func recordsOf(ctx context.Context, conn connection, at tid.TID) iter.Seq2[*txn.Record, error] {
	return func(yield func(*txn.Record, error) bool) {
		for t, err := range conn.Transactions(ctx, at-1, at) {
			if err != nil {
				yield(nil, err)
				return
			}
			if t.Records == nil {
				return
			}
			for rec, err := range t.Records {
				if !yield(rec, err) || err != nil {
					return
				}
			}
			return
		}
		// It is gone: no record is left.
	}
}

// Backwards implements [txn.Database].
func (r *remote) Backwards(ctx context.Context) iter.Seq2[*txn.Info, error] {
	return func(yield func(*txn.Info, error) bool) {
		last := tid.Invalid
		resumed(ctx, r, func(conn connection) iter.Seq2[*txn.Info, error] {
			return func(yield func(*txn.Info, error) bool) {
				for info, err := range conn.Backwards(ctx) {
					if err == nil {
						if info.TID >= last {
							continue
						}
						last = info.TID
					}
					if !yield(info, err) || err != nil {
						return
					}
				}
			}
		})(yield)
	}
}

// OIDs implements [txn.Database].
func (r *remote) OIDs(ctx context.Context, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error] {
	return func(yield func(tid.OID, error) bool) {
		from := from
		resumed(ctx, r, func(conn connection) iter.Seq2[tid.OID, error] {
			return func(yield func(tid.OID, error) bool) {
				for oid, err := range conn.OIDs(ctx, at, from) {
					if err == nil {
						from = oid + 1
					}
					if !yield(oid, err) || err != nil {
						return
					}
				}
			}
		})(yield)
	}
}

// greatest returns the greatest object that exists, read from a walk over all of them.
func (r *remote) greatest(ctx context.Context) (oid tid.OID, ok bool, err error) {
	for oid, err = range r.OIDs(ctx, tid.Max, 0) {
		if err != nil {
			return 0, false, err
		}
		ok = true
	}
	return oid, ok, nil
}
