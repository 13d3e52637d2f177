package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

const (
	walkTxns    = 256      // transactions whose metadata is asked for ahead
	walkRecords = 1024     // records asked for ahead
	walkBytes   = 16 << 20 // of records ahead, as far as their sizes can be guessed
	walkKeep    = 1 << 20  // bytes of one transaction kept for a second iteration
	walkEach    = 64       // of them for each record, which may be without data

	// What is asked for ahead begins small and grows with what was consumed: an
	// iteration that is begun for a few transactions must not read many.
	walkFirstTxns    = 4
	walkFirstRecords = 16
	walkGrowth       = 4 // times what was consumed
	walkFirstTIDs    = 16
)

// Transactions yields what was committed in (after, upTo], oldest first, up to
// the last TID at the time of the call. Records that were packed are left out.
// Metadata and records are asked for ahead, many at a time, within fixed memory, and
// within the budget of ctx if it has one (see [txn.WithReadAhead]).
func (c *Client) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return c.TransactionsWith(ctx, after, upTo, nil)
}

// Missing is asked about an object that a transaction names and that has no record there: it was
// only checked, or a pack has removed the record, before since. The record that it returns
// is given instead; nil: none.
type Missing func(t tid.TID, oid tid.OID, since time.Time) (*txn.Record, error)

// TransactionsWith is [Client.Transactions] that asks missing about each object without a
// record, in the order of the objects. It may be asked again in another iteration of the records.
func (c *Client) TransactionsWith(ctx context.Context, after, upTo tid.TID, missing Missing) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		w, err := c.walk(ctx, after, upTo)
		if err != nil {
			yield(nil, fmt.Errorf("iterate: %w", err))
			return
		}
		w.missing = missing
		defer w.end()
		for {
			t, err := w.next()
			if err != nil {
				yield(nil, fmt.Errorf("iterate: %w", err))
				return
			}
			if t == nil || !yield(t.transaction(), nil) {
				return
			}
			if err := t.skip(); err != nil {
				yield(nil, fmt.Errorf("iterate: %w", err))
				return
			}
		}
	}
}

// walk reads history in order. Its requests are made by the goroutine that
// iterates, which never waits for an answer unless it is the next one needed.
type walk struct {
	c    *Client
	ctx  context.Context
	tids tidList
	txns []*walkTxn // asked for, in order
	ring [walkRecords]walkSlot
	head int // first slot not consumed; the index in ring is modulo its length
	tail int // next slot to use
	post int // txns[:post] have all their records asked for
	left int // transactions consumed

	asking  []*link.Conn // with requests that are not sent yet
	budget  *txn.ReadAhead
	missing Missing // or nil

	signal chan struct{}
	mu     sync.Mutex
	bytes  int  // answered and not consumed
	asked  int  // records without answer
	mean   int  // size of a record, a moving average
	ended  bool // nothing of it is counted in the budget any more
}

// walkTxn is a transaction of a walk.
type walkTxn struct {
	w     *walk
	tid   tid.TID
	conn  *link.Conn // asked
	done  bool       // answered; under walk.mu
	info  *proto.AnswerTransactionInformation
	held  int // bytes of info in walk.bytes and the budget
	err   error
	asked int // records asked for
	taken int // records consumed
	kept  []txn.Record
	bytes int
	drop  bool // kept is not complete
}

// walkSlot is one record of a walk.
type walkSlot struct {
	w    *walk
	conn *link.Conn
	done bool
	obj  *proto.AnswerObject
	data []byte // of obj, decoded
	held int    // bytes in the budget: a guess until the answer comes
	err  error
	at   time.Time // when err came
}

func (c *Client) walk(ctx context.Context, after, upTo tid.TID) (*walk, error) {
	v, err := c.connected(ctx)
	if err != nil {
		return nil, err
	}
	last, err := c.LastTID(ctx)
	if err != nil {
		return nil, err
	}
	// A caller that was told of a commit may ask for it before LastTID names it.
	last = max(last, tid.TID(c.told.Load()))
	// Links are opened now: asking ahead does not wait for them.
	for id := range v.running {
		if _, err := c.storage(ctx, v, id); err != nil && ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	w := &walk{c: c, ctx: ctx, signal: make(chan struct{}, 1), mean: 4096, budget: txn.ReadAheadOf(ctx)}
	w.tids = newTIDList(c, v.np(), after, min(upTo, last))
	for i := range w.ring {
		w.ring[i].w = w
	}
	return w, nil
}

// end gives back what the walk holds of the budget.
func (w *walk) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	// Records that are used although their transaction is over give nothing back again.
	for i := w.head; i < w.tail; i++ {
		s := &w.ring[i%walkRecords]
		w.budget.Give(s.held)
		s.held = 0
	}
	for _, t := range w.txns {
		w.budget.Give(t.held)
		t.held = 0
	}
}

// holdLocked counts what has come, for which there need not have been room.
func (w *walk) holdLocked(held *int, n int) {
	if !w.ended {
		w.budget.Force(n - *held)
		*held = n
	}
}

// next returns the next transaction with its metadata, nil at the end.
func (w *walk) next() (*walkTxn, error) {
	if err := w.pump(); err != nil {
		return nil, err
	}
	if len(w.txns) == 0 {
		return nil, nil
	}
	t := w.txns[0]
	if err := w.await(t.conn, &t.done); err != nil {
		return nil, err
	}
	if t.info == nil {
		a, err := steady(w.ctx, func() (*proto.AnswerTransactionInformation, error) {
			return readAs[*proto.AnswerTransactionInformation](w.ctx, w.c, uint64(t.tid), &proto.AskTransactionInformation{TID: t.tid})
		})
		if err != nil {
			return nil, fmt.Errorf("transaction %v: %w", t.tid, err)
		}
		w.mu.Lock()
		t.info, t.done, t.err = a, true, nil
		w.mu.Unlock()
	}
	return t, w.pump()
}

// await waits for an answer.
func (w *walk) await(conn *link.Conn, done *bool) error {
	var end <-chan struct{}
	if conn != nil {
		end = conn.Done()
	}
	for {
		w.mu.Lock()
		ok := *done
		w.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-w.signal:
		case <-end:
			return nil // asked too late: neither answer nor error, see record
		case <-w.ctx.Done():
			return w.ctx.Err()
		case <-w.c.ctx.Done():
			return ErrClosed
		}
	}
}

// pump asks for as much as may be asked for ahead.
func (w *walk) pump() error {
	defer w.flush()
	// What belongs to the only transaction is needed: there is always room for it.
	room := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.bytes < walkBytes && w.budget.Room()
	}
	if most := min(walkTxns, max(walkFirstTxns, walkGrowth*w.left)); len(w.txns) <= most/2 {
		for len(w.txns) < most && (len(w.txns) == 0 || room()) {
			t, ok, err := w.tids.next(w.ctx)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			wt := &walkTxn{w: w, tid: t}
			w.txns = append(w.txns, wt)
			wt.conn = w.postTo(uint64(t), &proto.AskTransactionInformation{TID: t}, wt, func() { wt.done, wt.err = true, ErrNoStorage })
		}
	}
	for w.post < len(w.txns) {
		t := w.txns[w.post]
		w.mu.Lock()
		known := t.done && t.err == nil
		w.mu.Unlock()
		if !known {
			return nil
		}
		for t.asked < len(t.info.OIDs) {
			w.mu.Lock()
			mean := w.mean
			room := w.tail == w.head
			if room {
				w.budget.Force(mean)
			} else {
				room = w.tail-w.head < min(walkRecords, max(walkFirstRecords, walkGrowth*w.head)) &&
					w.bytes+(w.asked+1)*mean < walkBytes && w.budget.Take(mean)
			}
			if room {
				w.asked++
			}
			w.mu.Unlock()
			if !room {
				return nil
			}
			s := &w.ring[w.tail%walkRecords]
			s.done, s.obj, s.err, s.held = false, nil, nil, mean
			w.tail++
			oid := t.info.OIDs[t.asked]
			t.asked++
			s.conn = w.postTo(uint64(oid), &proto.AskObject{OID: oid, At: proto.Some(t.tid)}, s, func() {
				s.done, s.err = true, ErrNoStorage
				w.asked--
			})
		}
		w.post++
	}
	return nil
}

// postTo makes a request without waiting. later marks it as one to be made again
// when its answer is needed.
func (w *walk) postTo(key uint64, req proto.Request, tag asked, later func()) *link.Conn {
	if v := w.c.view.Load(); v != nil {
		if conn := w.c.post(v, int(key%uint64(v.np())), req, tag); conn != nil {
			if !slices.Contains(w.asking, conn) {
				w.asking = append(w.asking, conn)
			}
			return conn
		}
	}
	w.mu.Lock()
	later()
	w.mu.Unlock()
	return nil
}

// flush sends the requests that wait for more.
func (w *walk) flush() {
	for i, conn := range w.asking {
		conn.Flush()
		w.asking[i] = nil
	}
	w.asking = w.asking[:0]
}

func (w *walk) wake() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

func (t *walkTxn) answered(ev link.Event) {
	t.w.mu.Lock()
	t.done = true
	if a, ok := ev.Packet.(*proto.AnswerTransactionInformation); ok {
		t.info = a
		size := 8*len(a.OIDs) + len(a.User) + len(a.Description) + len(a.Extension)
		t.w.holdLocked(&t.held, size)
		t.w.bytes += t.held
	} else {
		t.err = answerError(ev)
	}
	t.w.mu.Unlock()
	t.w.wake()
}

func (s *walkSlot) answered(ev link.Event) {
	w := s.w
	o, ok := ev.Packet.(*proto.AnswerObject)
	var data []byte
	var err error
	if ok {
		data, err = decodeInPlace(&o.ObjectData) // beside the goroutine that iterates
	} else {
		err = answerError(ev)
	}
	var at time.Time
	if err != nil {
		at = time.Now()
	}
	w.mu.Lock()
	s.done, s.data, s.err, s.at = true, data, err, at
	w.asked--
	if ok {
		s.obj = o
		w.holdLocked(&s.held, len(data))
		w.bytes += len(data)
		w.mean += (len(data) - w.mean) / 16
	}
	w.mu.Unlock()
	w.wake()
}

// take consumes the next record of a transaction. nil: it was packed.
func (t *walkTxn) take() (*txn.Record, error) {
	w := t.w
	if t.asked == t.taken {
		if err := w.pump(); err != nil {
			return nil, err
		}
	}
	s := &w.ring[w.head%walkRecords]
	if err := w.await(s.conn, &s.done); err != nil {
		return nil, err
	}
	oid := t.info.OIDs[t.taken]
	obj, data, err, since := s.obj, s.data, s.err, s.at
	if obj == nil && err == nil {
		err = link.ErrClosed
	}
	w.release(s)
	t.taken++
	if (w.tail-w.head)%64 == 0 {
		if err := w.pump(); err != nil {
			return nil, err
		}
	}
	return w.record(oid, t.tid, obj, data, err, since)
}

// release makes the slot at the head free for another record.
func (w *walk) release(s *walkSlot) {
	w.mu.Lock()
	if s.obj != nil {
		w.bytes -= len(s.data)
	}
	if !s.done {
		w.asked--
	}
	w.budget.Give(s.held)
	s.held = 0
	w.mu.Unlock()
	s.obj, s.data = nil, nil
	w.head++
}

// record takes a decoded answer, or asks again after an error, of a time, that may not last.
func (w *walk) record(oid tid.OID, at tid.TID, obj *proto.AnswerObject, data []byte, err error, since time.Time) (*txn.Record, error) {
	if err == nil && (obj.OID != oid || obj.Serial != at) {
		return nil, fmt.Errorf("asked for object %v at %v, got %v at %v", oid, at, obj.OID, obj.Serial)
	}
	if pe, ok := errors.AsType[*proto.Error](err); ok {
		err = fromWire(pe)
	}
	switch {
	case err == nil:
	case errors.Is(err, txn.ErrNotFound), errors.Is(err, txn.ErrNoSuchObject):
		return w.absent(oid, at, since)
	default:
		type answer struct {
			obj  *proto.AnswerObject
			data []byte
		}
		a, err := steady(w.ctx, func() (answer, error) {
			obj, data, err := w.c.fetch(w.ctx, oid, at, tid.Zero)
			return answer{obj, data}, err
		})
		switch {
		case errors.Is(err, txn.ErrNotFound), errors.Is(err, txn.ErrNoSuchObject):
			return w.absent(oid, at, time.Now())
		case err != nil:
			return nil, &ObjectError{oid, at, err}
		}
		obj, data = a.obj, a.data
	}
	return &txn.Record{OID: oid, TID: at, Data: data, DataTID: obj.DataSerial.V}, nil
}

// absent returns what is to be given for a record that is not there.
func (w *walk) absent(oid tid.OID, at tid.TID, since time.Time) (*txn.Record, error) {
	if w.missing == nil {
		return nil, nil
	}
	return w.missing(at, oid, since)
}

// decodeInPlace is decode for data that is used at once: the result may alias
// the packet.
func decodeInPlace(o *proto.ObjectData) ([]byte, error) {
	if deflate.Absent(o) || o.Compression != deflate.None {
		return decode(o)
	}
	if !deflate.Valid(o) {
		return nil, ErrChecksum
	}
	if o.Data == nil {
		return []byte{}, nil
	}
	return o.Data, nil
}

// transaction presents the metadata and the records.
func (t *walkTxn) transaction() *txn.Transaction {
	out := &txn.Transaction{
		TID:         t.tid,
		Status:      txn.Committed,
		User:        t.info.User,
		Description: t.info.Description,
		Extension:   t.info.Extension,
		Records:     t.records,
	}
	if t.info.Packed {
		out.Status = txn.Packed
	}
	return out
}

// records yields what is there already, then consumes the rest. What was not
// kept for a second iteration is asked for again.
func (t *walkTxn) records(yield func(*txn.Record, error) bool) {
	if t.drop {
		for _, oid := range t.info.OIDs[:t.taken] {
			r, err := t.w.record(oid, t.tid, nil, nil, ErrNoStorage, time.Time{})
			if err != nil {
				yield(nil, err)
				return
			}
			if r != nil && !yield(r, nil) {
				return
			}
		}
	} else {
		for i := range t.kept {
			if !yield(&t.kept[i], nil) {
				return
			}
		}
	}
	for t.taken < len(t.info.OIDs) {
		r, err := t.take()
		if err != nil {
			yield(nil, err)
			return
		}
		if r == nil {
			continue
		}
		if !t.drop {
			t.bytes += walkEach + len(r.Data)
			if t.kept = append(t.kept, *r); t.bytes > walkKeep {
				t.kept, t.drop = nil, true
			}
		}
		if !yield(r, nil) {
			return
		}
	}
}

// skip leaves the transaction: records that were not asked for are consumed.
func (t *walkTxn) skip() error {
	w := t.w
	for t.taken < t.asked {
		s := &w.ring[w.head%walkRecords]
		if err := w.await(s.conn, &s.done); err != nil {
			return err
		}
		w.release(s)
		t.taken++
	}
	t.kept = nil
	w.mu.Lock()
	w.bytes -= t.held
	w.budget.Give(t.held)
	t.held = 0
	w.mu.Unlock()
	w.left++
	w.txns[0] = nil
	w.txns = w.txns[1:]
	if w.post > 0 {
		w.post--
	}
	return nil
}

// tidList yields the TIDs of a range, ascending, merged from all partitions.
type tidList struct {
	c     *Client
	chunk int // grows up to most
	most  int
	upTo  tid.TID
	lists []tidChunk
}

// tidChunk is the part of a partition that was asked for and not yet used.
type tidChunk struct {
	tids []tid.TID
	from tid.TID // next to ask for
	end  bool
}

func newTIDList(c *Client, np int, after, upTo tid.TID) tidList {
	l := tidList{c: c, chunk: walkFirstTIDs, most: max(walkFirstTIDs, min(1000, 1<<16/np)), upTo: upTo, lists: make([]tidChunk, np)}
	for i := range l.lists {
		l.lists[i].from = after + 1
		l.lists[i].end = after >= upTo
	}
	return l
}

// next returns the next TID; ok is false at the end.
func (l *tidList) next(ctx context.Context) (t tid.TID, ok bool, err error) {
	best := -1
	for p := range l.lists {
		list := &l.lists[p]
		if len(list.tids) == 0 && !list.end {
			if err := l.fill(ctx); err != nil {
				return 0, false, err
			}
		}
		if len(list.tids) > 0 && (best < 0 || list.tids[0] < l.lists[best].tids[0]) {
			best = p
		}
	}
	if best < 0 {
		return 0, false, nil
	}
	t = l.lists[best].tids[0]
	l.lists[best].tids = l.lists[best].tids[1:]
	return t, true, nil
}

// fill asks all partitions that have run out.
func (l *tidList) fill(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	chunk := l.chunk
	l.chunk = min(l.most, walkGrowth*chunk)
	for p := range l.lists {
		list := &l.lists[p]
		if len(list.tids) > 0 || list.end {
			continue
		}
		g.Go(func() error {
			a, err := steady(ctx, func() (*proto.AnswerTIDsFrom, error) {
				return readAs[*proto.AnswerTIDsFrom](ctx, l.c, uint64(p), &proto.AskTIDsFrom{Min: list.from, Max: l.upTo, Length: chunk, Partition: p})
			})
			if err != nil {
				return fmt.Errorf("transactions of partition %d: %w", p, err)
			}
			for _, t := range a.TIDs {
				if t < list.from || t > l.upTo {
					return fmt.Errorf("transactions of partition %d: %v is not in order", p, t)
				}
				list.from = t + 1
			}
			list.tids = a.TIDs
			list.end = len(a.TIDs) < chunk
			return nil
		})
	}
	return g.Wait()
}
