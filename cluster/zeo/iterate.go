package zeo

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

// maxIterators bounds what one client can leave open: clients that only read never
// tell what they do not use any more. Beyond that, the one not used for longest ends.
const maxIterators = 1000

// An iteration under way is live: it reads ahead, and has goroutines. The others are
// parked: they are a position, from which they go on when they are used again.
const (
	// liveIterations is how many may be live for one connection. Beyond that, the one
	// not used for longest is parked.
	liveIterations = 8
	// liveTotal is how many may be live in a server. Beyond that, each connection may
	// have one.
	liveTotal = 64
	// parkAfter is how long a live iteration may be idle.
	parkAfter = 15 * time.Second

	readAheadConn  = 32 << 20  // bytes read ahead for one connection
	readAheadTotal = 256 << 20 // and for all of a server
)

// iterationLimits are what the connections of a server share.
type iterationLimits struct {
	live  atomic.Int32
	ahead *txn.ReadAhead
}

func newIterationLimits() *iterationLimits {
	return &iterationLimits{ahead: txn.NewReadAhead(readAheadTotal, nil)}
}

var errIteratorsEnded = errors.New("the connection ends")

// iterators are the iterations that a client has under way. One of them advances
// at a time.
type iterators struct {
	ctx    context.Context // of the connection, with its budget
	limits *iterationLimits

	busy sync.Mutex // held while one advances, or ends; before mu
	live int        // counted in limits; under busy
	idle *time.Timer

	mu    sync.Mutex // for the tables: never held while waiting
	next  int64
	uses  int64 // of all of them
	txns  map[int64]*txnIterator
	recs  map[int64]*recordIterator
	ended bool
	ends  []func() // of iterations that are forgotten, and not yet ended
}

func (it *iterators) init(ctx context.Context, l *iterationLimits) {
	it.limits = l
	it.ctx = txn.WithReadAhead(ctx, txn.NewReadAhead(readAheadConn, l.ahead))
}

// pull is an iteration of the storage, if it is live.
type pull[T any] struct {
	next    func() (T, error, bool)
	stop    func()
	counted bool // in iterators.live: not over what another iteration holds
}

func (p *pull[T]) live() bool { return p.next != nil }

// begin makes the iteration live, parking others if need be; busy is held.
func (p *pull[T]) begin(it *iterators, seq iter.Seq2[T, error]) {
	it.enter()
	p.counted = true
	p.next, p.stop = iter.Pull2(seq)
}

// end stops the iteration of the storage; busy is held.
func (p *pull[T]) end(it *iterators) {
	if p.live() {
		p.stop()
		if p.counted {
			it.live--
			it.limits.live.Add(-1)
		}
	}
	*p = pull[T]{}
}

// txnIterator iterates over transactions.
type txnIterator struct {
	used    int64     // uses, then; under iterators.mu
	last    time.Time // when it was used; under busy
	after   tid.TID   // the last transaction returned
	upTo    tid.TID
	begun   bool // after was returned
	pull    pull[*txn.Transaction]
	current *txn.Transaction             // that is after; nil: parked since
	readers map[*recordIterator]struct{} // of current
}

// recordIterator iterates over the records of a transaction. It reads from the
// iteration that found the transaction, and once that goes on or is parked, from
// its own.
type recordIterator struct {
	used   int64        // uses, then; under iterators.mu
	last   time.Time    // when it was used; under busy
	parent *txnIterator // nil: on its own
	tid    tid.TID
	done   int // records returned
	pull   pull[*txn.Record]
}

func unknownIterator(id int64) error {
	return &remoteError{quiet: true, class: "builtins.KeyError", data: func(e *wire.Encoder) {
		e.BeginTuple(1)
		e.Int(id)
		e.EndTuple(1)
	}}
}

func (it *iterators) newIDLocked() (int64, error) {
	if it.ended {
		return 0, errIteratorsEnded
	}
	if len(it.txns)+len(it.recs) >= maxIterators {
		it.forgetLocked([]int64{it.leastUsedLocked()})
	}
	if it.txns == nil {
		it.txns = make(map[int64]*txnIterator)
		it.recs = make(map[int64]*recordIterator)
	}
	it.next++
	return it.next - 1, nil
}

func (it *iterators) useLocked(used *int64) {
	it.uses++
	*used = it.uses
}

func (it *iterators) leastUsedLocked() int64 {
	least, id := it.uses+1, int64(-1)
	for i, t := range it.txns {
		if t.used < least {
			least, id = t.used, i
		}
	}
	for i, r := range it.recs {
		if r.used < least {
			least, id = r.used, i
		}
	}
	return id
}

// enter makes a place for one more live iteration of this connection; busy is held.
func (it *iterators) enter() {
	for it.live > 0 && (it.live >= liveIterations || it.limits.live.Load() >= liveTotal) && it.parkOne() {
	}
	it.live++
	it.limits.live.Add(1)
	if it.idle == nil {
		it.idle = time.AfterFunc(parkAfter, it.parkIdle)
	}
}

// parkOne parks the live iteration that was not used for longest, if there is one.
func (it *iterators) parkOne() bool {
	it.mu.Lock()
	least := it.uses + 1
	var park func()
	for _, t := range it.txns {
		if t.pull.counted && t.used < least {
			least, park = t.used, func() { t.park(it) }
		}
	}
	for _, r := range it.recs {
		if r.pull.counted && r.used < least {
			least, park = r.used, func() { r.pull.end(it) }
		}
	}
	it.mu.Unlock()
	if park == nil {
		return false
	}
	park()
	return true
}

// parkIdle parks what is not used.
func (it *iterators) parkIdle() {
	it.busy.Lock()
	defer it.busy.Unlock()
	it.mu.Lock()
	ended := it.ended
	txns, recs := slices.Collect(maps.Values(it.txns)), slices.Collect(maps.Values(it.recs))
	it.mu.Unlock()
	if ended {
		return
	}
	now := time.Now()
	// A reader needs its parent, however long that is idle.
	for _, r := range recs {
		if r.parent != nil && r.last.After(r.parent.last) {
			r.parent.last = r.last
		}
	}
	for _, t := range txns {
		if t.pull.live() && now.Sub(t.last) >= parkAfter {
			t.park(it)
		}
	}
	for _, r := range recs {
		if r.pull.counted && now.Sub(r.last) >= parkAfter {
			r.pull.end(it)
		}
	}
	it.idle = nil
	if it.live > 0 {
		it.idle = time.AfterFunc(parkAfter, it.parkIdle)
	}
}

// start begins an iteration over the transactions in (after, upTo].
func (it *iterators) start(after, upTo tid.TID) (int64, error) {
	it.mu.Lock()
	defer it.mu.Unlock()
	id, err := it.newIDLocked()
	if err != nil {
		return 0, err
	}
	t := &txnIterator{after: after, upTo: upTo}
	it.useLocked(&t.used)
	it.txns[id] = t
	return id, nil
}

func (it *iterators) txn(id int64) (*txnIterator, error) {
	it.mu.Lock()
	defer it.mu.Unlock()
	if t := it.txns[id]; t != nil {
		it.useLocked(&t.used)
		return t, nil
	}
	return nil, unknownIterator(id)
}

// startRecords begins an iteration over the records of the transaction that the
// iteration over transactions has just returned.
func (it *iterators) startRecords(over int64, at tid.TID) (int64, error) {
	it.busy.Lock()
	defer it.busy.Unlock()
	t, err := it.txn(over)
	if err != nil {
		return 0, err
	}
	if !t.begun {
		return 0, unknownIterator(over)
	}
	if t.after != at {
		return 0, textError("builtins.Exception", "Out-of-order request for record iterator for transaction %v", at)
	}
	it.mu.Lock()
	defer it.mu.Unlock()
	id, err := it.newIDLocked()
	if err != nil {
		return 0, err
	}
	r := &recordIterator{tid: at, last: time.Now()}
	if t.current != nil {
		if t.readers == nil {
			t.readers = make(map[*recordIterator]struct{})
		}
		r.parent = t
		t.readers[r] = struct{}{}
	}
	it.useLocked(&r.used)
	it.recs[id] = r
	return id, nil
}

// nextTxn calls use with the next transaction, nil at the end.
func (it *iterators) nextTxn(st Storage, id int64, use func(*txn.Transaction)) error {
	it.busy.Lock()
	defer it.busy.Unlock()
	t, err := it.txn(id)
	if err != nil {
		return err
	}
	t.leave(it)
	t.last = time.Now()
	if !t.pull.live() {
		t.pull.begin(it, st.Transactions(it.ctx, t.after, t.upTo))
	}
	next, err, ok := t.pull.next()
	if !ok || err != nil {
		it.endLocked([]int64{id})
		if err == nil {
			use(nil)
		}
		return err
	}
	t.current, t.after, t.begun = next, next.TID, true
	use(next)
	return nil
}

// leave makes the readers of the current transaction go on by themselves.
func (t *txnIterator) leave(it *iterators) {
	for r := range t.readers {
		r.pull.end(it)
		r.parent = nil
	}
	t.readers, t.current = nil, nil
}

// park leaves nothing of the iteration but its position; busy is held.
func (t *txnIterator) park(it *iterators) {
	t.leave(it)
	t.pull.end(it)
}

// nextRecord calls use with the next record, nil at the end.
func (it *iterators) nextRecord(st Storage, id int64, use func(*txn.Record)) error {
	it.busy.Lock()
	defer it.busy.Unlock()
	it.mu.Lock()
	r := it.recs[id]
	if r != nil {
		it.useLocked(&r.used)
		if r.parent != nil {
			it.useLocked(&r.parent.used)
		}
	}
	it.mu.Unlock()
	if r == nil {
		return unknownIterator(id)
	}
	r.last = time.Now()
	switch {
	case r.pull.live():
	case r.parent != nil:
		// It lives on what its parent holds.
		r.pull.next, r.pull.stop = iter.Pull2(r.parent.current.Records)
	default:
		r.pull.begin(it, recordsOf(it.ctx, st, r.tid, r.done))
	}
	next, err, ok := r.pull.next()
	if !ok || err != nil {
		it.endLocked([]int64{id})
		if err == nil {
			use(nil)
		}
		return err
	}
	r.done++
	use(next)
	return nil
}

// recordsOf yields the records of one transaction but the first ones.
func recordsOf(ctx context.Context, st Storage, at tid.TID, skip int) iter.Seq2[*txn.Record, error] {
	return func(yield func(*txn.Record, error) bool) {
		for t, err := range st.Transactions(ctx, at-1, at) {
			if err != nil {
				yield(nil, err)
				return
			}
			n := 0
			for r, err := range t.Records {
				if n++; err == nil && n <= skip {
					continue
				}
				if !yield(r, err) {
					return
				}
			}
			return
		}
		yield(nil, fmt.Errorf("transaction %v: %w", at, txn.ErrNoSuchObject))
	}
}

// forget makes iterations unknown, of whatever kind. endForgotten ends them.
func (it *iterators) forget(ids []int64) {
	it.mu.Lock()
	defer it.mu.Unlock()
	it.forgetLocked(ids)
}

func (it *iterators) forgetLocked(ids []int64) {
	var txns []*txnIterator
	var recs []*recordIterator
	for _, id := range ids {
		if t := it.txns[id]; t != nil {
			txns = append(txns, t)
			delete(it.txns, id)
		}
		if r := it.recs[id]; r != nil {
			recs = append(recs, r)
			delete(it.recs, id)
		}
	}
	if len(recs)+len(txns) == 0 {
		return
	}
	it.ends = append(it.ends, func() {
		for _, r := range recs {
			r.pull.end(it)
			if r.parent != nil {
				delete(r.parent.readers, r)
			}
		}
		for _, t := range txns {
			t.park(it)
		}
	})
}

// endForgotten ends what was forgotten; busy is held.
func (it *iterators) endForgotten() {
	it.mu.Lock()
	ends := it.ends
	it.ends = nil
	it.mu.Unlock()
	for _, end := range ends {
		end()
	}
}

// tidy ends what was forgotten. It waits only if there is something.
func (it *iterators) tidy() {
	it.mu.Lock()
	none := len(it.ends) == 0
	it.mu.Unlock()
	if !none {
		it.busy.Lock()
		defer it.busy.Unlock()
		it.endForgotten()
	}
}

// endLocked ends iterations; busy is held.
func (it *iterators) endLocked(ids []int64) {
	it.forget(ids)
	it.endForgotten()
}

func (it *iterators) closeAll() {
	it.mu.Lock()
	it.ended = true
	ids := slices.Collect(maps.Keys(it.recs))
	ids = slices.AppendSeq(ids, maps.Keys(it.txns))
	it.mu.Unlock()
	it.busy.Lock()
	defer it.busy.Unlock()
	it.endLocked(ids)
	if it.idle != nil {
		it.idle.Stop()
	}
}

func callIteratorStart(c *conn, m *call) error {
	after, upTo := tid.Zero, c.seq.last()
	if v := &m.Args[0]; v.Kind != wire.KindNil {
		start, err := v.AsTID("start")
		if err != nil {
			return c.failed(m, err, nil)
		}
		after = max(start, 1) - 1
	}
	if v := &m.Args[1]; v.Kind != wire.KindNil {
		stop, err := v.AsTID("stop")
		if err != nil {
			return c.failed(m, err, nil)
		}
		upTo = min(stop, upTo)
	}
	if !c.seq.feat.Iterate {
		return c.failed(m, ErrUnsupported, nil)
	}
	return c.background(m, nil, func(context.Context) (func(*wire.Encoder), error) {
		id, err := c.iters.start(after, upTo)
		c.iters.tidy()
		return func(e *wire.Encoder) { e.Int(id) }, err
	})
}

func callIteratorNext(c *conn, m *call) error {
	id, err := m.Args[0].AsInt("iterator")
	if err != nil {
		return c.failed(m, err, nil)
	}
	msg, async := m.ID, m.Async
	return c.background(m, nil, func(context.Context) (func(*wire.Encoder), error) {
		return nil, c.iters.nextTxn(c.seq.st, id, func(t *txn.Transaction) {
			if async {
				return
			}
			c.sendAsked(&msg, func(e *wire.Encoder) {
				if t == nil {
					e.Null()
					return
				}
				e.BeginTuple(5)
				e.TID(t.TID)
				e.Text(string(rune(t.Status)))
				e.Bytes(t.User)
				e.Bytes(t.Description)
				encodeExtension(e, t.Extension)
				e.EndTuple(5)
			})
		})
	})
}

func callIteratorRecordStart(c *conn, m *call) error {
	over, err := m.Args[0].AsInt("iterator")
	if err != nil {
		return c.failed(m, err, nil)
	}
	at, err := m.Args[1].AsTID("tid")
	if err != nil {
		return c.failed(m, err, nil)
	}
	return c.background(m, nil, func(context.Context) (func(*wire.Encoder), error) {
		id, err := c.iters.startRecords(over, at)
		c.iters.tidy()
		return func(e *wire.Encoder) { e.Int(id) }, err
	})
}

func callIteratorRecordNext(c *conn, m *call) error {
	id, err := m.Args[0].AsInt("iterator")
	if err != nil {
		return c.failed(m, err, nil)
	}
	msg, async := m.ID, m.Async
	return c.background(m, nil, func(context.Context) (func(*wire.Encoder), error) {
		return nil, c.iters.nextRecord(c.seq.st, id, func(r *txn.Record) {
			if async {
				return
			}
			c.sendAsked(&msg, func(e *wire.Encoder) {
				if r == nil {
					e.Null()
					return
				}
				e.BeginTuple(4)
				e.OID(r.OID)
				e.TID(r.TID)
				e.Data(r.Data)
				e.TIDOrNull(r.DataTID)
				e.EndTuple(4)
			})
		})
	})
}

func callIteratorGC(c *conn, m *call) error {
	list, ok := m.Args[0].List()
	if !ok {
		return c.failed(m, wire.ArgError("iterators: want a list"), nil)
	}
	var ids []int64
	for i := range list {
		if list[i].Kind == wire.KindInt {
			ids = append(ids, list[i].Int())
		}
	}
	c.iters.forget(ids) // at once: calls that follow do not know them
	return c.background(m, nil, func(context.Context) (func(*wire.Encoder), error) {
		c.iters.busy.Lock()
		defer c.iters.busy.Unlock()
		c.iters.endForgotten()
		return (*wire.Encoder).Null, nil
	})
}
