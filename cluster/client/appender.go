package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// AppenderOptions configures an [Appender]. A zero field takes the documented
// default.
type AppenderOptions struct {
	// Window is how many transactions may be under way. Default: 128. A master that
	// does not take several imposed TIDs at once gets one at a time.
	Window int
	// Bytes is how much data may be under way, in bytes. Default: 32 MiB. A single
	// transaction is bounded by Config.CacheSize.
	Bytes int64
}

// Appender copies the transactions of another database into a cluster, with
// their TIDs, links to earlier data and order of objects. Nobody else may write
// to the cluster meanwhile.
//
// Several transactions are under way at once; none is finished before the one
// before it has been voted and its finish was requested. After a failure of a
// node in the middle a transaction may nevertheless be missing among the last
// ones: compare the end of the cluster with the source before going on.
//
// What is sent waits up to [appendDelay] for company, except for the oldest
// transaction, for which all others wait: a packet by itself costs everybody a
// system call and a switch.
type Appender struct {
	c   *Client
	ctx context.Context
	opt AppenderOptions

	window int // 0: not yet known
	slots  chan struct{}
	jobs   chan *job // begun, to be stored; nil: not started
	wg     sync.WaitGroup

	packing chan *jobPart // to be packed; nil: not started

	storing, sending, packers sync.WaitGroup
	stored, sent              chan struct{} // closed to end them

	// Owned by the goroutine that stores.
	turn    *pipelined // of the last transaction
	serials serials
	// unknownBase are objects of open transactions stored without knowing their
	// current revision. No other store may be sent for them before that one has
	// its lock: storages take a base that is newer than the current one for an error.
	unknownBase map[tid.OID]*Txn

	mu    sync.Mutex
	open  []*pipelined // not known to be over, oldest first
	room  *sync.Cond
	bytes int64
	err   error
	last  tid.TID // committed, with all before
}

// NewAppender returns an appender to a cluster whose last transaction is already
// known to be in the source.
func (c *Client) NewAppender(ctx context.Context, opt AppenderOptions) *Appender {
	if opt.Window <= 0 {
		opt.Window = 128
	}
	if opt.Bytes <= 0 {
		opt.Bytes = 32 << 20
	}
	a := &Appender{c: c, ctx: ctx, opt: opt, last: tid.TID(c.last.Load()), unknownBase: map[tid.OID]*Txn{}, stored: make(chan struct{}), sent: make(chan struct{})}
	a.room = sync.NewCond(&a.mu)
	a.turn = newPipelined(ctx, nil)
	a.turn.cancel()
	close(a.turn.asked)
	close(a.turn.committed)
	return a
}

// LastTID returns the last transaction that is committed, with all before it.
func (a *Appender) LastTID() tid.TID {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// appendDelay is how long packets of a copy wait for others.
const appendDelay = 2 * time.Millisecond

// jobBytes is how much of a transaction is stored at once.
const jobBytes = 1 << 20

// job is a transaction to be stored.
type job struct {
	asked *beginAsked
	tx    *Txn // already begun
	parts chan *jobPart
	// handed: it is being stored before it is complete.
	handed bool
	err    error // it could not be read; once parts is closed
	size   int64 // bytes of its data; once parts is closed
}

// jobPart is some records of a transaction, which are packed beside the goroutine
// that reads and the one that stores.
type jobPart struct {
	writes []jobWrite
	packed chan struct{} // closed when they are
}

type jobWrite struct {
	oid tid.OID
	w   *write
}

// Append starts to commit a transaction. An error may be about an earlier one;
// nothing can be appended after it, but those before the failed one go on.
func (a *Appender) Append(t *txn.Transaction) error {
	if err := a.failure(); err != nil {
		return err
	}
	j, err := a.begin(t)
	if err != nil {
		return a.fail(nil, err)
	}
	if a.jobs == nil {
		a.jobs = make(chan *job, a.window)
		a.storing.Go(a.run)
		a.sending.Go(a.sendAll)
		a.packing = make(chan *jobPart, 2*runtime.GOMAXPROCS(0))
		for range runtime.GOMAXPROCS(0) {
			a.packers.Go(a.pack)
		}
	}
	j.parts = make(chan *jobPart, 1)
	// There is room for the job, or it would have no slot. Small ones are complete.
	part, err := a.collect(j, t)
	if err == nil && part != nil {
		j.parts <- a.pass(part)
	}
	j.err = err
	close(j.parts)
	if !j.handed {
		a.jobs <- j
	}
	return err
}

// pass lets records be packed.
func (a *Appender) pass(writes []jobWrite) *jobPart {
	p := &jobPart{writes, make(chan struct{})}
	a.packing <- p
	return p
}

// pack packs records, on as many processors as there are.
func (a *Appender) pack() {
	for p := range a.packing {
		for _, w := range p.writes {
			packed := a.c.packer.Pack(w.w.data)
			w.w.data, w.w.packed = packed.Data, &packed
		}
		close(p.packed)
	}
}

// run stores transactions in order. After a failure it only gives them up.
func (a *Appender) run() {
	for {
		select {
		case j := <-a.jobs:
			a.start(j)
		case <-a.stored:
			for len(a.jobs) > 0 {
				a.start(<-a.jobs)
			}
			return
		}
	}
}

// start stores a transaction, and lets it go on by itself.
func (a *Appender) start(j *job) {
	over := func() {
		for range j.parts { // of one that is given up
		}
		a.release(j.size)
		<-a.slots
	}
	if a.failure() != nil {
		if j.tx != nil {
			_ = j.tx.Abort(a.ctx) // always nil
		} else {
			j.asked.abandon()
		}
		over()
		return
	}
	before := a.turn
	tx := j.tx
	if tx == nil {
		j.asked.opt.rebase = a.rebase(before)
		j.asked.opt.voting = a.sendIfOldest(before)
		var err error
		if tx, err = a.c.begun(a.ctx, j.asked); err != nil {
			a.fail(nil, err)
			over()
			return
		}
	}
	mine := newPipelined(a.ctx, tx)
	a.turn = mine
	a.enter(mine)
	if err := a.store(mine, j); err != nil {
		a.fail(mine, err)
		close(mine.asked)
		close(mine.committed)
		over()
		return
	}
	a.wg.Go(func() {
		defer over()
		a.commit(before, mine)
	})
}

// sendIfOldest returns what is done when a transaction has sent its votes: if it is the
// oldest, nothing waits. Like rebase, it keeps no pipelined transaction.
func (a *Appender) sendIfOldest(before *pipelined) func() {
	committed := before.committed
	return func() {
		select {
		case <-committed:
			a.c.sendHeld()
		default:
		}
	}
}

// sendAll sends what waits, periodically.
func (a *Appender) sendAll() {
	tick := time.NewTicker(appendDelay)
	defer tick.Stop()
	for {
		a.c.sendHeld()
		select {
		case <-tick.C:
		case <-a.sent:
			for _, conn := range a.c.conns() {
				conn.Release()
			}
			return
		}
	}
}

// conns returns the links to the master and to storages.
func (c *Client) conns() []*link.Conn {
	var list []*link.Conn
	if v := c.view.Load(); v != nil {
		list = append(list, v.session.conn)
	}
	s := &c.storages
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, l := range s.links {
		if l.conn != nil {
			list = append(list, l.conn)
		}
	}
	return list
}

// sendHeld sends what waits for company, and holds what comes from now on.
func (c *Client) sendHeld() {
	for _, conn := range c.conns() {
		conn.Release()
		conn.Hold()
	}
}

// enter makes a transaction known and forgets those that are over.
func (a *Appender) enter(mine *pipelined) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open = append(a.open, mine)
	for a.err == nil && a.open[0].over() {
		for _, oid := range a.open[0].unknownBase {
			if a.unknownBase[oid] == a.open[0].tx {
				delete(a.unknownBase, oid)
			}
		}
		a.open[0] = nil
		a.open = a.open[1:]
	}
}

// Close waits for all transactions and returns the first error. Those that can
// not be committed any more are aborted, the last one first: a store that waits
// for the lock of an earlier transaction must be gone when that is aborted.
func (a *Appender) Close() error {
	close(a.stored)
	a.storing.Wait()
	a.wg.Wait()
	close(a.sent)
	a.sending.Wait()
	if a.packing != nil {
		close(a.packing)
		a.packers.Wait()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range slices.Backward(a.open) {
		_ = p.tx.Abort(a.ctx) // always nil; does nothing once the finish is requested
		p.cancel()
	}
	a.open = nil
	if a.err == nil {
		a.err = fmt.Errorf("append: %w", ErrClosed)
		return nil
	}
	return a.err
}

func (a *Appender) failure() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// fail ends the copy at a transaction (nil: after the last one): those that
// follow it cannot be committed.
func (a *Appender) fail(at *pipelined, err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.err = err
	}
	later := false
	for _, p := range a.open {
		if p == at {
			later = true
			p.failed = true
		}
		if later {
			p.cancel()
		}
	}
	a.room.Broadcast()
	return a.err
}

// reserve waits until size more bytes may be under way.
func (a *Appender) reserve(have, size int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	// A transaction that is alone may be of any size: stores wait by themselves.
	for a.err == nil && a.bytes > have && a.bytes+size > a.opt.Bytes {
		a.room.Wait()
	}
	a.bytes += size
	return a.err
}

func (a *Appender) release(size int64) {
	a.mu.Lock()
	a.bytes -= size
	a.room.Broadcast()
	a.mu.Unlock()
}

// begin starts a transaction when there is a free slot. The first one finds out
// how many the master takes at once.
func (a *Appender) begin(t *txn.Transaction) (*job, error) {
	opt := BeginOptions{
		TID: t.TID, NoCache: true,
		User: bytes.Clone(t.User), Description: bytes.Clone(t.Description), Extension: bytes.Clone(t.Extension),
	}
	if a.window == 0 {
		opt.rebase = a.rebase(a.turn) // nobody else uses it yet
		tx, err := a.probe(opt)
		if err != nil {
			return nil, err
		}
		a.slots = make(chan struct{}, a.window)
		a.slots <- struct{}{}
		return &job{tx: tx}, nil
	}
	select {
	case a.slots <- struct{}{}:
	case <-a.ctx.Done():
		return nil, a.ctx.Err()
	}
	err := a.failure() // of the one that had the slot
	var asked *beginAsked
	if err == nil {
		asked, err = a.c.askBegin(a.ctx, opt)
	}
	if err != nil {
		<-a.slots
		return nil, err
	}
	return &job{asked: asked}, nil
}

// rebase returns what a transaction does when an object has another current
// revision than expected: the expected one was not remembered, or its transaction
// had to store it again. The objects of earlier transactions must not be locked
// by a later one that then waits for its turn, so it waits first.
//
// It keeps no pipelined transaction: each would keep the one before it, and so all.
func (a *Appender) rebase(before *pipelined) func(context.Context) error {
	committed := before.committed
	return func(ctx context.Context) error {
		select {
		case <-committed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// probe begins the first transaction, and another one beside it. A master of the
// Python implementation refuses that and hangs up.
func (a *Appender) probe(opt BeginOptions) (*Txn, error) {
	a.window = a.opt.Window
	tx, err := a.c.Begin(a.ctx, opt)
	if err != nil || a.window == 1 {
		return tx, err
	}
	beside, err := a.c.Begin(a.ctx, BeginOptions{TID: opt.TID + 1})
	if err == nil {
		return tx, beside.Abort(a.ctx)
	}
	if _, refused := errors.AsType[*proto.Error](err); !refused && !errors.Is(err, ErrMasterLost) {
		return nil, errors.Join(err, tx.Abort(a.ctx))
	}
	a.window = 1
	a.c.log.Info("the master takes one imposed transaction id at a time")
	if err := tx.Abort(a.ctx); err != nil {
		return nil, err
	}
	for {
		tx, err := a.c.Begin(a.ctx, opt)
		if errors.Is(err, ErrMasterLost) && a.ctx.Err() == nil {
			continue // it had not hung up yet
		}
		if err == nil {
			if err := a.c.Sync(a.ctx); errors.Is(err, ErrMasterLost) {
				continue
			}
		}
		return tx, err
	}
}

// collect reads the records of a transaction, and returns the last part.
func (a *Appender) collect(j *job, t *txn.Transaction) (part []jobWrite, err error) {
	if t.Records == nil {
		return nil, nil
	}
	size := int64(0) // of part
	for r, err := range t.Records {
		if err != nil {
			return nil, err
		}
		if r.OID > tid.MaxOID {
			return nil, fmt.Errorf("transaction %v: object %v: a cluster cannot be relied on to hold ids above %v", t.TID, r.OID, tid.MaxOID)
		}
		n := int64(len(r.Data))
		err := a.reserve(j.size, n)
		j.size += n
		if err != nil {
			return nil, err
		}
		w := &write{data: bytes.Clone(r.Data), dataSerial: r.DataTID, deleted: r.Data == nil && r.DataTID == tid.Zero}
		part = append(part, jobWrite{r.OID, w})
		if size += n; size >= jobBytes {
			if !j.handed {
				j.handed = true
				a.jobs <- j
			}
			j.parts <- a.pass(part)
			part, size = nil, 0
		}
	}
	return part, nil
}

// store stores the records. What was under way for the same objects is waited
// for by the storages, which keep locks in the order of TIDs.
func (a *Appender) store(mine *pipelined, j *job) error {
	for part := range j.parts {
		<-part.packed
		for _, p := range part.writes {
			if err := a.storeOne(mine, p.oid, p.w); err != nil {
				return err
			}
		}
	}
	return j.err
}

func (a *Appender) storeOne(mine *pipelined, oid tid.OID, w *write) error {
	tx := mine.tx
	if again, ok := tx.baseOf(oid); ok {
		w.serial = again // twice in the source: the last one counts
	} else if w.serial = a.serials.get(oid); w.serial == tid.Zero {
		a.unknownBase[oid] = tx
		mine.unknownBase = append(mine.unknownBase, oid)
	} else if other := a.unknownBase[oid]; other != nil {
		if err := other.awaitLock(mine.ctx, oid); err != nil {
			return err
		}
	}
	if err := tx.write(mine.ctx, oid, w); err != nil {
		return err
	}
	a.serials.put(oid, tx.opt.TID)
	return nil
}

// commit votes at once and finishes in turn.
func (a *Appender) commit(before, mine *pipelined) {
	defer mine.cancel()
	defer close(mine.committed)
	finish, err := a.request(before, mine)
	if err != nil {
		a.fail(mine, fmt.Errorf("append: %w", err))
	}
	close(mine.asked) // after the failure is known: the next one must not go on
	if err != nil {
		return // Close aborts it
	}
	final, err := mine.tx.awaitFinish(a.ctx, finish)
	if err == nil && final != mine.tx.opt.TID {
		err = fmt.Errorf("transaction %v was committed as %v", mine.tx.opt.TID, final)
	}
	if err != nil {
		a.fail(mine, fmt.Errorf("append: %w", err))
		return
	}
	a.mu.Lock()
	a.last = max(a.last, final)
	a.mu.Unlock()
}

// request requests the commit, once that of the transaction before is requested.
func (a *Appender) request(before, mine *pipelined) (*finishAsked, error) {
	if _, err := mine.tx.Vote(mine.ctx); err != nil {
		return nil, err
	}
	<-before.asked
	a.mu.Lock()
	failed := before.failed
	a.mu.Unlock()
	if failed {
		return nil, errors.New("the transaction before has failed")
	}
	asked, err := mine.tx.askFinish(nil)
	if err == nil && before.over() {
		a.c.sendHeld()
	}
	return asked, err
}

// pipelined is a transaction among those that are under way, in the order of commits.
type pipelined struct {
	tx          *Txn
	ctx         context.Context // ends when it cannot be committed any more
	cancel      context.CancelFunc
	unknownBase []tid.OID     // see Appender.unknownBase
	asked       chan struct{} // its finish was requested, or it failed
	committed   chan struct{} // it is over
	failed      bool          // under Appender.mu
}

func newPipelined(ctx context.Context, tx *Txn) *pipelined {
	p := &pipelined{tx: tx, asked: make(chan struct{}), committed: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// over reports whether nothing more happens to the transaction.
func (p *pipelined) over() bool {
	select {
	case <-p.committed:
		return true
	default:
		return false
	}
}
