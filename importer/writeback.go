package importer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/pace"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/exporter"
)

const (
	// pageTIDs is how many ids of transactions are read of a partition at once.
	pageTIDs = 100
	// gather is how long a transaction waits for others before it is written back, at least;
	// where it takes long to find what is new, up to maxGather.
	gather    = 100 * time.Millisecond
	maxGather = 2 * time.Second
	// maxGap is the longest time without making durable what was written back.
	maxGap = time.Second
	// firstRetry and lastRetry are the first and the longest pause after an error.
	firstRetry = time.Second
	lastRetry  = 5 * time.Minute
	// writeBackShare is the share of the time that write-back takes while clients are served. It has
	// to keep up with them.
	writeBackShare = 0.5
	// drainTimeout is how long a node that ends goes on to write back.
	drainTimeout = 10 * time.Second
	// countedTIDs is how many transactions of a partition are counted that wait.
	countedTIDs = 1000
)

// Sink is where new transactions are written back to. Its last transaction is the only
// record of how far that is.
type Sink interface {
	// Open opens the sink, once more after an error, and keeps other writers away until
	// Close. It returns the last transaction, which is durable as is everything before.
	Open(ctx context.Context) (last tid.TID, err error)
	// Check verifies that the latest transactions after a TID are those of ours. The error is
	// a [*ForeignError] if one is not.
	Check(ctx context.Context, after tid.TID, ours exporter.Source) error
	// Append adds a transaction, which is seen whole or not at all. After an error that
	// comes from t the sink is as it was.
	Append(t *txn.Transaction) error
	// Flush makes what was appended durable. Without it, any number of the transactions
	// appended last may be lost in a crash.
	Flush() error
	Close() error
}

// ForeignError reports a sink with a transaction that was not written back.
type ForeignError struct {
	Sink string
	What string // a difference
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("%s has transactions that are not ours (%s): another program wrote to it, or this node has lost what it had written back. "+
		"Put back the file as it was, or set writeback to false: then there is no way back to it", e.Sink, e.What)
}

// waiting says why nothing is written back for the moment.
type waiting struct{ why string }

func (w *waiting) Error() string { return w.why }

// errTable reports a partition table that has changed while transactions were read.
var errTable = errors.New("the partition table has changed")

// writeBack forwards what clients commit to the source.
//
// # Invariant
//
// The sink has the transactions of the native backend after end up to its last one, all of them,
// and nothing else. So a transaction is forwarded only when all those before it can be read
// here: see [writeBack.bound].
type writeBack struct {
	native Native
	sink   Sink
	end    tid.TID
	log    *slog.Logger
	pace   *pace.Pace // nil: it does not yield
	wake   chan struct{}

	turn    sync.Mutex // held by what uses the fields up to mu, and the sink
	opened  bool
	checked bool // the sink has only what is ours
	ran     bool // the node is or was operational: everything locked before was unlocked or dropped
	np      int  // number of partitions, all of them readable; 0: look at the table
	seen    uint64

	mu       sync.Mutex
	locked   map[tid.TID]tid.TID // TIDs of locked transactions, by TTID
	unlocked tid.TID             // the greatest TID of which Unlock has returned
	changes  uint64              // how often the partition table has changed
	last     tid.TID             // of the sink, durable
	passed   tid.TID             // everything up to it is in the sink, durable
	behind   int64
	note     string
}

// newWriteBack returns what forwards the transactions of native after end to sink. Whatever
// uses native must use what [writeBack.wrap] returns instead. served may be nil.
func newWriteBack(native Native, sink Sink, end tid.TID, log *slog.Logger, served *pace.Pace) *writeBack {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &writeBack{native: native, sink: sink, end: end, log: log, pace: served, wake: make(chan struct{}, 1), locked: map[tid.TID]tid.TID{}}
}

// open opens the sink at the start of the node, before the source is opened for reading: what
// an interrupted write has left at the end is cut off then. After an error, run tries again.
func (w *writeBack) open(ctx context.Context) error {
	w.turn.Lock()
	defer w.turn.Unlock()
	return w.openSink(ctx)
}

func (w *writeBack) openSink(ctx context.Context) error {
	if w.opened {
		return nil
	}
	last, err := w.sink.Open(ctx)
	if err != nil {
		return err
	}
	if last < w.end {
		return fmt.Errorf("the source ends with transaction %v, and has not all that is imported, up to %v: it was truncated or replaced. Put back what it was", last, w.end)
	}
	w.opened, w.checked, w.np = true, false, 0
	w.mu.Lock()
	w.last, w.passed = last, last
	w.mu.Unlock()
	return nil
}

// run forwards transactions until ctx ends. It is called when the node is operational.
func (w *writeBack) run(ctx context.Context) error {
	w.turn.Lock()
	defer w.turn.Unlock()
	w.ran = true
	for pause := time.Duration(0); ctx.Err() == nil; {
		begin := time.Now()
		err := w.forward(ctx)
		took := time.Since(begin)
		switch _, waits := errors.AsType[*waiting](err); {
		case ctx.Err() != nil || errors.Is(err, errTable):
		case err == nil || waits:
			pause = 0
			w.say(err)
			select {
			case <-ctx.Done():
			case <-w.wake:
				// However little there is, to find it costs a query for each partition.
				sleep(ctx, min(max(gather, 10*took), maxGather))
			}
		default:
			w.say(err)
			pause = min(max(2*pause, firstRetry), lastRetry)
			sleep(ctx, pause)
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// say reports what keeps transactions from being written back, nil: nothing does.
func (w *writeBack) say(err error) {
	note := ""
	_, waits := errors.AsType[*waiting](err)
	switch {
	case waits:
		note = fmt.Sprintf("write-back waits: %v", err)
	case err != nil:
		note = fmt.Sprintf("new transactions are not written back to the source: %v. Clients are served as before, and it is tried again", err)
	}
	w.mu.Lock()
	old := w.note
	w.note = note
	last, behind := w.last, w.behind
	w.mu.Unlock()
	switch {
	case note == old:
	case note == "":
		w.log.Info("new transactions are written back to the source again", "last", last)
	case waits:
		w.log.Warn("write-back to the source waits", "last", last, "behind", behind, "err", err)
	default:
		w.log.Error("new transactions are not written back to the source; clients are served as before, and it is tried again", "last", last, "behind", behind, "err", err)
	}
}

// forward writes back all that can be now. After an error that is no [waiting] the sink is to be
// opened again, unless ctx has ended or it is errTable. The caller holds turn.
func (w *writeBack) forward(ctx context.Context) error {
	if err := w.openSink(ctx); err != nil {
		return err
	}
	if err := w.look(ctx); err != nil {
		return err
	}
	ours := &committed{native: w.native, np: w.np, still: w.still}
	if !w.checked {
		if w.last > w.end {
			if err := w.sink.Check(ctx, w.end, ours); err != nil {
				return w.broken(ctx, err)
			}
		}
		w.checked = true
	}
	if upTo := w.bound(); upTo > w.passed {
		if err := w.copy(ctx, ours, upTo); err != nil {
			return w.broken(ctx, err)
		}
	}
	w.mu.Lock()
	if w.unlocked <= w.passed {
		w.behind = 0
	}
	w.mu.Unlock()
	return ctx.Err()
}

// broken returns err. What uses the sink next opens it again, if need be.
func (w *writeBack) broken(ctx context.Context, err error) error {
	if ctx.Err() == nil && !errors.Is(err, errTable) {
		w.opened = false
	}
	return err
}

// copy appends what the sink lacks up to a TID, and makes it durable.
func (w *writeBack) copy(ctx context.Context, ours *committed, upTo tid.TID) error {
	last := w.last
	n := int64(0)
	flushed := time.Now()
	flush := func() error {
		if err := w.sink.Flush(); err != nil {
			w.opened = false
			return err
		}
		w.mu.Lock()
		w.last, w.passed = last, max(w.passed, last)
		w.behind = max(w.behind-n, 0)
		w.mu.Unlock()
		n, flushed = 0, time.Now()
		return nil
	}
	err := func() error {
		begin := time.Now()
		for t, err := range ours.Transactions(ctx, w.passed, upTo) {
			if err != nil {
				return err
			}
			if err := w.sink.Append(t); err != nil {
				return fmt.Errorf("transaction %v: %w", t.TID, err)
			}
			last = t.TID
			n++
			if time.Since(flushed) >= maxGap {
				if err := flush(); err != nil {
					return err
				}
			}
			if w.pace != nil {
				w.pace.Worked(time.Since(begin), 0)
				if !w.pace.Rest(ctx.Done(), nil) {
					return ctx.Err()
				}
				begin = time.Now()
			}
		}
		return nil
	}()
	// What is whole is kept, whatever the error.
	if w.opened {
		if e := flush(); e != nil && !errors.Is(err, e) {
			err = errors.Join(err, e)
		}
	}
	if err == nil {
		w.mu.Lock()
		w.passed = upTo
		w.mu.Unlock()
	}
	return err
}

// look reads the partition table if it has changed. The error is a [waiting] if not
// everything can be read here.
func (w *writeBack) look(ctx context.Context) error {
	w.mu.Lock()
	changes := w.changes
	w.mu.Unlock()
	if w.np > 0 && w.seen == changes {
		return nil
	}
	w.np = 0
	c, err := w.native.Config()
	if err != nil {
		return err
	}
	cells, err := w.native.Cells()
	if err != nil {
		return err
	}
	switch {
	case c.BackupTID.OK:
		return &waiting{"the cluster is in backup mode"}
	case c.TruncateTID.OK:
		return &waiting{fmt.Sprintf("the database is to be truncated after %v", c.TruncateTID.V)}
	}
	np := 0
	readable := map[int]bool{}
	for _, x := range cells {
		np = max(np, x.Partition+1)
		if x.ID == c.ID && x.State.Readable() {
			readable[x.Partition] = true
		}
	}
	for p := range np {
		if !readable[p] {
			return &waiting{fmt.Sprintf("partition %d is not readable on this node, so that transactions would be missing. It goes on when the partition table gives this node all of them", p)}
		}
	}
	if np == 0 {
		return &waiting{"the node has no partition table"}
	}
	known, behind := tid.Zero, int64(0)
	for p := range np {
		t, _, err := w.native.LastTIDs(ctx, p)
		if err != nil {
			return err
		}
		known = max(known, t)
		if t > w.last {
			list, err := w.native.TIDsFrom(ctx, p, w.last+1, tid.Max, countedTIDs)
			if err != nil {
				return err
			}
			behind += int64(len(list))
		}
	}
	w.np, w.seen = np, changes
	w.mu.Lock()
	w.unlocked, w.behind = max(w.unlocked, known), behind
	w.mu.Unlock()
	return nil
}

// still returns an error if the partition table was changed since look.
func (w *writeBack) still() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changes != w.seen {
		return errTable
	}
	return nil
}

// bound returns up to which TID all transactions can be read. The master locks transactions in
// the order of their TIDs: when one is unlocked, each of those before it is either unlocked
// as well or still locked. Rows that are being written belong to one that is locked.
func (w *writeBack) bound() tid.TID {
	w.mu.Lock()
	defer w.mu.Unlock()
	upTo := w.unlocked
	for _, t := range w.locked {
		upTo = min(upTo, t-1)
	}
	return upTo
}

// changed is called when the partition table has changed.
func (w *writeBack) changed() {
	w.mu.Lock()
	w.changes++
	w.mu.Unlock()
	w.kick()
}

func (w *writeBack) kick() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// drain forwards what is left, as long as ctx lasts, and closes the sink. It is called when run
// has returned, before the native backend is closed.
func (w *writeBack) drain(ctx context.Context) error {
	w.turn.Lock()
	defer w.turn.Unlock()
	var err error
	if w.ran { // otherwise the end of the sink may be locked here, not unlocked
		err = w.forward(ctx)
		for errors.Is(err, errTable) {
			err = w.forward(ctx)
		}
		if _, waits := errors.AsType[*waiting](err); waits {
			err = nil
		}
		w.mu.Lock()
		last, behind := w.last, w.behind
		w.mu.Unlock()
		if err != nil {
			err = fmt.Errorf("at least %d transactions after %v are not written back to the source: they will be after the next start: %w", behind, last, err)
		}
	}
	w.opened = false
	return errors.Join(err, w.sink.Close())
}

// progress returns the last transaction written back, at least how many are still to be,
// and what keeps them from it, "" if nothing does.
func (w *writeBack) progress() (last tid.TID, behind int64, note string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last, w.behind, w.note
}

// packable returns up to which TID everything is written back, so that a pack may delete it.
func (w *writeBack) packable() tid.TID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.passed
}

// committed is what clients have committed, as a history.
type committed struct {
	native backend.Reading
	np     int
	still  func() error // an error if not everything can be read any more
}

// Transactions implements [exporter.Source].
func (c *committed) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for after < upTo {
			page, last, err := c.page(ctx, after+1, upTo)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, t := range page {
				tr, err := c.transaction(ctx, t)
				if !yield(tr, err) || err != nil {
					return
				}
			}
			after = last
		}
	}
}

// page returns the transactions in [first, last], ascending, where last is at most upTo.
func (c *committed) page(ctx context.Context, first, upTo tid.TID) (page []tid.TID, last tid.TID, err error) {
	last = upTo
	for p := range c.np {
		list, err := c.native.TIDsFrom(ctx, p, first, last, pageTIDs)
		if err != nil {
			return nil, 0, err
		}
		if len(list) == pageTIDs { // it may have more
			last = list[pageTIDs-1]
		}
		page = append(page, list...)
	}
	slices.Sort(page)
	n, found := slices.BinarySearch(page, last)
	if found {
		n++
	}
	return page[:n], last, c.still()
}

func (c *committed) transaction(ctx context.Context, t tid.TID) (*txn.Transaction, error) {
	meta, _, err := c.native.FetchTransaction(ctx, t)
	if err != nil {
		if e := c.still(); e != nil {
			return nil, e
		}
		return nil, fmt.Errorf("reading transaction %v: %w", t, err)
	}
	return &txn.Transaction{
		TID: t, Status: txn.Committed, User: meta.User, Description: meta.Description, Extension: meta.Extension,
		Records: func(yield func(*txn.Record, error) bool) {
			seen := make(map[tid.OID]bool, len(meta.OIDs))
			for _, oid := range meta.OIDs {
				if seen[oid] {
					continue
				}
				seen[oid] = true
				r, err := c.record(ctx, oid, t)
				switch {
				case errors.Is(err, backend.ErrNotFound):
					continue // its revision was checked, no new one was stored
				case err != nil:
					err = fmt.Errorf("reading object %v: %w", oid, err)
				}
				if !yield(r, err) || err != nil {
					return
				}
			}
			// What was not found may have been dropped with its partition.
			if err := c.still(); err != nil {
				yield(nil, err)
			}
		},
	}, nil
}

func (c *committed) record(ctx context.Context, oid tid.OID, t tid.TID) (*txn.Record, error) {
	o, err := c.native.FetchObject(ctx, oid, t)
	if err != nil {
		return nil, err
	}
	r := &txn.Record{OID: oid, TID: t, DataTID: o.DataSerial}
	if !deflate.Absent(&o.ObjectData) {
		r.Data, err = deflate.Unpack(&o.ObjectData)
	}
	return r, err
}
