package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// BeginOptions are what a transaction is made with.
type BeginOptions struct {
	// TID imposes the id of the transaction, for copies of a database. It must
	// be greater than every committed one. Default: the master chooses.
	TID tid.TID

	User, Description []byte // UTF-8
	Extension         []byte // pickled dict, or empty

	// NoCache does not keep what is stored in the cache of the client.
	NoCache bool

	// rebase is called before an object is stored again, as it is, on top of a
	// revision that was not the expected one: there are no conflicts in a copy.
	rebase func(context.Context) error
	// voting is called when the votes are queued to be sent.
	voting func()
}

// Txn is a transaction of this client. It is used by one goroutine at a time:
// stores and checks, then Vote, then Finish; or Abort at any time before Finish.
type Txn struct {
	c       *Client
	session *session // link to the master on which it began
	ttid    tid.TID
	opt     BeginOptions
	changed chan struct{} // something was answered

	mu       sync.Mutex
	data     map[tid.OID]*write // being stored: some node has not answered
	dataSize int                // bytes in data
	done     map[tid.OID]*write // stored by all nodes
	doneSize int                // bytes in done
	conflict map[tid.OID]tid.TID
	resolved map[tid.OID]tid.TID         // what the stored data takes into account
	order    []tid.OID                   // in the order of the last stores; InvalidOID: moved to the end
	position map[tid.OID]int             // in order
	nodes    map[proto.NodeID]*link.Conn // nil once lost: not used again by this transaction
	wrote    map[proto.NodeID]bool       // nodes that know the transaction
	pending  map[proto.NodeID]int        // requests without answer
	lockless map[int]map[proto.NodeID]bool
	stored   bool // no more stores: deadlocks need not be avoided any more
	voted    bool
	ended    bool
	unsent   bool             // stores may wait on the links for more, or for an answer
	crowded  bool             // its user waits for room
	keepAll  bool             // keep the data of all stores until the end
	watchers []chan struct{}  // to be closed at the next answer
	then     func(quiet bool) // to be called once no answer is pending
	asked    bool             // the votes are asked for
	finish   *finishAsked     // the commit is asked for
	err      error            // why it can no longer be committed
	pack     *proto.PackRequest
}

// write is one object of a transaction.
type write struct {
	data       []byte            // uncompressed, unless packed; nil: no data, or dropped from done
	packed     *proto.ObjectData // data as it is sent, if that is already known
	kept       bool              // data is what was stored
	serial     tid.TID
	dataSerial tid.TID // undo: the revision with the same data
	check      bool    // not stored, must only stay unchanged
	restored   bool    // whatever the current revision is: see Restore
	again      bool    // same place in the order as the attempt before
	deleted    bool    // stored without data, and not an undo to an earlier deletion
	waiting    []proto.NodeID
}

// Begin starts a transaction.
func (c *Client) Begin(ctx context.Context, opt BeginOptions) (*Txn, error) {
	if c.cfg.ReadOnly {
		return nil, fmt.Errorf("begin transaction: %w", txn.ErrReadOnly)
	}
	a, err := c.askBegin(ctx, opt)
	if err != nil {
		return nil, err
	}
	return c.begun(ctx, a)
}

// askBegin asks for a transaction.
func (c *Client) askBegin(ctx context.Context, opt BeginOptions) (*beginAsked, error) {
	v, err := c.connected(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin transaction: %w", err)
	}
	return c.askBeginOf(v, opt), nil
}

func (c *Client) askBeginOf(v *view, opt BeginOptions) *beginAsked {
	req := &proto.AskBeginTransaction{}
	if opt.TID != tid.Zero {
		req.TID = proto.Some(opt.TID)
	}
	a := &beginAsked{session: v.session, conn: v.session.conn, opt: opt, result: make(chan beginResult, 1)}
	a.conn.Ask(req, a)
	return a
}

// begun waits for a transaction that was asked for.
func (c *Client) begun(ctx context.Context, a *beginAsked) (*Txn, error) {
	opt := a.opt
	var r beginResult
	select {
	case r = <-a.result:
	case <-ctx.Done():
		a.abandon()
		return nil, ctx.Err()
	case <-a.conn.Done():
		select {
		case r = <-a.result:
		default:
			r.err = link.ErrClosed
		}
	}
	if r.err != nil {
		return nil, fmt.Errorf("begin transaction: %w", c.masterError(ctx, r.err))
	}
	t := &Txn{
		c: c, session: a.session, ttid: r.ttid, opt: opt,
		changed:  make(chan struct{}, 1),
		data:     map[tid.OID]*write{},
		done:     map[tid.OID]*write{},
		conflict: map[tid.OID]tid.TID{},
		resolved: map[tid.OID]tid.TID{},
		position: map[tid.OID]int{},
		nodes:    map[proto.NodeID]*link.Conn{},
		wrote:    map[proto.NodeID]bool{},
		pending:  map[proto.NodeID]int{},
		lockless: map[int]map[proto.NodeID]bool{},
	}
	c.mu.Lock()
	c.txns[t.ttid] = t
	c.mu.Unlock()
	if now := c.view.Load(); now == nil || now.session != a.session {
		t.fail(ErrMasterLost) // lost before we were in the table
	}
	if opt.TID != tid.Zero && t.ttid != opt.TID {
		t.Abort(ctx)
		return nil, fmt.Errorf("begin transaction %v: the master made it %v", opt.TID, t.ttid)
	}
	return t, nil
}

// beginAsked is the tag of AskBeginTransaction. The caller may go away before
// the answer: the transaction is then aborted.
type beginAsked struct {
	session   *session
	conn      *link.Conn
	opt       BeginOptions
	mu        sync.Mutex
	abandoned bool
	result    chan beginResult
}

type beginResult struct {
	ttid tid.TID
	err  error
}

func (a *beginAsked) answered(ev link.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := ev.Packet.(*proto.AnswerBeginTransaction)
	switch {
	case !ok:
		a.result <- beginResult{err: answerError(ev)}
	case a.abandoned:
		a.conn.Send(&proto.AbortTransaction{TTID: p.TTID})
	default:
		a.result <- beginResult{ttid: p.TTID}
	}
}

func (a *beginAsked) abandon() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.abandoned = true
	select {
	case r := <-a.result:
		if r.err == nil {
			a.conn.Send(&proto.AbortTransaction{TTID: r.ttid})
		}
	default:
	}
}

// TTID returns the temporary id of the transaction.
func (t *Txn) TTID() tid.TID { return t.ttid }

// Store writes an object whose current revision is expected to be serial, Zero
// for a new object. It does not wait for storages, unless much data is waiting
// already: it is sent together with the following ones, at the latest by Vote.
// Conflicts appear in Vote, or in a later Store. data must not be changed until
// the transaction ends; nil deletes the object.
func (t *Txn) Store(ctx context.Context, oid tid.OID, serial tid.TID, data []byte) error {
	return t.write(ctx, oid, &write{data: data, serial: serial, deleted: data == nil})
}

// StoreUndo writes an object again as it was at an earlier revision. data is
// that of dataTID, nil if the object did not exist there; with dataTID Zero the
// creation of the object is undone.
func (t *Txn) StoreUndo(ctx context.Context, oid tid.OID, serial tid.TID, data []byte, dataTID tid.TID) error {
	return t.write(ctx, oid, &write{data: data, serial: serial, dataSerial: dataTID, deleted: data == nil && dataTID == tid.Zero})
}

// Delete removes an object.
func (t *Txn) Delete(ctx context.Context, oid tid.OID, serial tid.TID) error {
	return t.Store(ctx, oid, serial, nil)
}

// CheckCurrent makes the transaction fail unless serial is still the current
// revision of an object that it does not write.
func (t *Txn) CheckCurrent(ctx context.Context, oid tid.OID, serial tid.TID) error {
	t.mu.Lock()
	w := t.data[oid]
	if w == nil {
		w = t.done[oid]
	}
	t.mu.Unlock()
	switch {
	case w == nil:
	case !w.check: // the store checks it as well
		return nil
	case w.serial == serial: // storages take only one
		return nil
	default:
		return &txn.ReadConflictError{OID: oid, Committed: w.serial, Base: serial}
	}
	return t.write(ctx, oid, &write{serial: serial, check: true})
}

// SetPackOrder attaches the order to drop the history before upTo to the
// transaction: of the given objects, or of all if there are none.
func (t *Txn) SetPackOrder(upTo tid.TID, oids []tid.OID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pack = &proto.PackRequest{OIDs: slices.Sorted(slices.Values(oids)), Time: upTo}
}

// baseOf returns the serial on which another store of an object of this
// transaction must be based; ok is false if there was none.
func (t *Txn) baseOf(oid tid.OID) (serial tid.TID, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.data[oid]
	if w == nil {
		w = t.done[oid]
	}
	if w == nil {
		return tid.Zero, false
	}
	if w.dataSerial != tid.Zero { // storages take the target of an undo for the current revision
		return w.dataSerial, true
	}
	return w.serial, true
}

// usable returns why nothing can be done with the transaction any more.
func (t *Txn) usable() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.usableLocked()
}

func (t *Txn) usableLocked() error {
	switch {
	case t.ended:
		return fmt.Errorf("transaction %v: %w", t.ttid, ErrClosed)
	case t.err != nil:
		return fmt.Errorf("transaction %v: %w", t.ttid, t.err)
	}
	return nil
}

// write sends an object to all cells, and waits while too much data is waiting
// for answers.
func (t *Txn) write(ctx context.Context, oid tid.OID, w *write) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	err := t.usableLocked()
	if err == nil && t.stored {
		err = fmt.Errorf("transaction %v: store after vote", t.ttid)
	}
	t.mu.Unlock()
	if err == nil {
		err = t.possible(ctx, oid, w)
	}
	if err != nil {
		return err
	}
	w.kept = true
	if err := t.send(ctx, oid, w); err != nil {
		return err
	}
	for {
		t.mu.Lock()
		full := t.dataSize >= t.c.cfg.CacheSize
		t.crowded = full
		stuck := len(t.conflict) > 0
		err := t.usableLocked()
		t.mu.Unlock()
		switch {
		case err != nil:
			return err
		case !full:
			return nil
		case stuck:
			err = t.resolve(ctx)
		default:
			err = t.wait(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// possible refuses what storages would take for an error of the node, to the loss of
// all its users: the id of no object, and a revision that is not committed.
func (t *Txn) possible(ctx context.Context, oid tid.OID, w *write) error {
	if oid > tid.MaxOID {
		return fmt.Errorf("transaction %v: object %v: the id is out of range", t.ttid, oid)
	}
	if t.opt.TID != tid.Zero || w.serial <= tid.TID(t.c.last.Load()) {
		return nil
	}
	if err := t.c.Sync(ctx); err != nil { // its announcement may be late
		return fmt.Errorf("transaction %v: %w", t.ttid, err)
	}
	if last := tid.TID(t.c.last.Load()); w.serial > last {
		if w.check {
			return &txn.ReadConflictError{OID: oid, Committed: last, Base: w.serial}
		}
		return &txn.ConflictError{OID: oid, Committed: last, Base: w.serial, Data: w.data, Err: errors.New("the revision does not exist")}
	}
	return nil
}

// send makes w the latest attempt to store an object and sends it.
func (t *Txn) send(ctx context.Context, oid tid.OID, w *write) error {
	v := t.c.view.Load()
	if v == nil || v.session != t.session {
		return fmt.Errorf("transaction %v: %w", t.ttid, ErrMasterLost)
	}
	partition := oid.Partition(v.np())
	type target struct {
		id   proto.NodeID
		conn *link.Conn
	}
	targets := make([]target, 0, 4)
	for _, cell := range v.rows[partition] {
		conn, err := t.node(ctx, v, cell.ID)
		if err != nil {
			return err
		}
		if conn != nil {
			targets = append(targets, target{cell.ID, conn})
		}
	}
	if len(targets) == 0 {
		return fmt.Errorf("transaction %v: write to partition %d: %w", t.ttid, partition, ErrNoStorage)
	}

	var req proto.Request
	if w.check {
		req = &proto.AskCheckCurrentSerial{TTID: t.ttid, OID: oid, Serial: w.serial}
	} else {
		store := &proto.AskStoreObject{OID: oid, Serial: w.serial, TTID: t.ttid}
		if w.packed != nil {
			store.ObjectData = *w.packed
		} else {
			store.ObjectData = t.c.packer.Pack(w.data)
		}
		if len(store.Data) > proto.MaxElement {
			return fmt.Errorf("transaction %v: object %v: record of %d bytes is too big", t.ttid, oid, len(store.Data))
		}
		if w.dataSerial != tid.Zero {
			store.DataSerial = proto.Some(w.dataSerial)
		}
		req = store
	}

	t.mu.Lock()
	repeated := t.data[oid] != nil
	t.forgetLocked(oid)
	if i, ok := t.position[oid]; !ok || !w.again {
		if ok {
			t.order[i] = tid.InvalidOID
		}
		t.position[oid] = len(t.order)
		t.order = append(t.order, oid)
	}
	if c, ok := t.conflict[oid]; ok && c <= w.serial {
		delete(t.conflict, oid)
		t.resolved[oid] = max(c, t.resolved[oid])
	}
	targets = slices.DeleteFunc(targets, func(to target) bool { return t.nodes[to.id] != to.conn })
	for _, to := range targets {
		w.waiting = append(w.waiting, to.id)
		t.pending[to.id]++
		t.wrote[to.id] = true
	}
	t.data[oid] = w
	t.dataSize += len(w.data)
	t.mu.Unlock()
	if len(targets) == 0 { // lost since
		return fmt.Errorf("transaction %v: write to partition %d: %w", t.ttid, partition, ErrNoStorage)
	}
	for _, to := range targets {
		if repeated { // a caller waits for it
			to.conn.Ask(req, &storeAsked{t, to.id, oid, w})
		} else {
			to.conn.AskLater(req, &storeAsked{t, to.id, oid, w})
		}
	}
	if !repeated { // not before: an answer that comes meanwhile would take the mark
		t.mu.Lock()
		t.unsent = true
		t.mu.Unlock()
	}
	return nil
}

// forgetLocked removes what was stored before for an object.
func (t *Txn) forgetLocked(oid tid.OID) {
	if old := t.data[oid]; old != nil {
		t.dataSize -= len(old.data)
		delete(t.data, oid)
	}
	if old := t.done[oid]; old != nil {
		t.doneSize -= len(old.data)
		delete(t.done, oid)
	}
}

// node returns the link to a node for this transaction: nil if it is lost, and
// it stays so, because the node has missed something.
func (t *Txn) node(ctx context.Context, v *view, id proto.NodeID) (*link.Conn, error) {
	t.mu.Lock()
	conn, known := t.nodes[id]
	t.mu.Unlock()
	if known {
		return conn, nil
	}
	conn, err := t.c.storage(ctx, v, id)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		conn = nil
	}
	return t.use(id, conn), nil
}

// use makes conn, nil if there is none, the link to a node for this transaction. It
// returns nil if that is lost.
func (t *Txn) use(id proto.NodeID, conn *link.Conn) *link.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nodes[id] = conn
	// In this order: from here on the end of the link is told to us.
	if conn != nil && conn.Closed() {
		t.lostLocked(id)
	}
	return t.nodes[id]
}

// fail makes the transaction impossible to commit.
func (t *Txn) fail(err error) {
	t.mu.Lock()
	if t.err == nil {
		t.err = err
	}
	t.mu.Unlock()
	t.signal()
}

func (t *Txn) signal() {
	t.mu.Lock()
	watchers := t.watchers
	t.watchers = nil
	var then func(quiet bool)
	if t.then != nil && (t.overLocked() || !t.waitingLocked()) {
		then, t.then = t.then, nil
	}
	t.mu.Unlock()
	for _, w := range watchers {
		close(w)
	}
	if then != nil {
		defer then(true)
	}
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// Flush sends the stores that wait for more, so that storages lock their objects
// now. Vote does it by itself.
func (t *Txn) Flush() {
	t.mu.Lock()
	var conns []*link.Conn
	if t.unsent {
		t.unsent = false
		for _, conn := range t.nodes {
			if conn != nil {
				conns = append(conns, conn)
			}
		}
	}
	t.mu.Unlock()
	for _, conn := range conns {
		conn.Flush()
	}
}

// wait waits for an answer.
func (t *Txn) wait(ctx context.Context) error {
	t.Flush()
	select {
	case <-t.changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaitLock waits until all nodes have accepted the store of an object, or the
// transaction is over. It may be called by other goroutines than its user.
func (t *Txn) awaitLock(ctx context.Context, oid tid.OID) error {
	t.Flush()
	for {
		t.mu.Lock()
		if t.data[oid] == nil || t.ended || t.err != nil {
			t.mu.Unlock()
			return nil
		}
		w := make(chan struct{})
		t.watchers = append(t.watchers, w)
		t.mu.Unlock()
		select {
		case <-w:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// storeAsked is the tag of AskStoreObject and AskCheckCurrentSerial. Answers to
// an attempt that was followed by another one count only as reports of conflicts.
type storeAsked struct {
	t   *Txn
	id  proto.NodeID
	oid tid.OID
	w   *write
}

func (a *storeAsked) answered(ev link.Event) {
	t := a.t
	t.mu.Lock()
	defer func() {
		// No caller waits for one answer among many.
		flush := t.unsent
		tell := !t.waitingLocked() || t.crowded || t.err != nil || len(t.conflict) > 0 || len(t.watchers) > 0
		t.mu.Unlock()
		if flush {
			t.Flush()
		}
		if tell {
			t.signal()
		}
	}()
	if !t.answeredLocked(a.id, ev) {
		return
	}
	var conflict proto.Opt[tid.TID]
	switch p := ev.Packet.(type) {
	case *proto.AnswerStoreObject:
		conflict = p.Conflict
	case *proto.AnswerCheckCurrentSerial:
		conflict = p.Conflict
	default:
		if t.err == nil {
			t.err = fmt.Errorf("store object %v on %v: %w", a.oid, a.id, fromWire(answerError(ev)))
		}
		return
	}
	latest := t.data[a.oid] == a.w
	switch {
	case !conflict.OK:
		if latest {
			t.acceptLocked(a.oid, a.w, a.id)
		}
	case conflict.V == tid.Zero:
		// Stored without lock. Not finished while a conflict is to be resolved.
		if !latest {
			return
		}
		partition := a.oid.Partition(t.np())
		if t.lockless[partition] == nil {
			t.lockless[partition] = map[proto.NodeID]bool{}
		}
		t.lockless[partition][a.id] = true
		if _, ok := t.conflict[a.oid]; !ok {
			t.acceptLocked(a.oid, a.w, a.id)
		}
	default:
		t.conflictLocked(a.oid, conflict.V)
	}
}

// np returns the number of partitions, which does not change.
func (t *Txn) np() int {
	t.session.mu.Lock()
	defer t.session.mu.Unlock()
	return max(t.session.pt.NP(), 1)
}

// answeredLocked counts an answer. It reports false if it does not matter: the
// node is lost for the transaction.
func (t *Txn) answeredLocked(id proto.NodeID, ev link.Event) bool {
	if t.nodes[id] != ev.Conn {
		return false
	}
	if ev.Packet == nil {
		t.lostLocked(id)
		return false
	}
	t.pending[id]--
	return true
}

// lostLocked gives a node up. What it has not answered counts as answered: the
// vote decides whether enough other nodes have it.
func (t *Txn) lostLocked(id proto.NodeID) {
	t.nodes[id] = nil
	delete(t.pending, id)
	for oid, w := range t.data {
		if _, ok := t.conflict[oid]; !ok {
			t.acceptLocked(oid, w, id)
		}
	}
}

// conflictLocked notes that an object has a newer revision, unless what is
// stored takes it into account already: a late report of a slower replica.
func (t *Txn) conflictLocked(oid tid.OID, newer tid.TID) {
	if newer > t.resolved[oid] && newer > t.conflict[oid] {
		t.conflict[oid] = newer
		t.c.counts.conflicts.Add(1)
	}
}

// acceptLocked notes that a node has stored the latest attempt. The data must
// stay until all nodes have answered: one that is about to be disconnected may
// accept before another one reports a conflict.
func (t *Txn) acceptLocked(oid tid.OID, w *write, id proto.NodeID) {
	i := slices.Index(w.waiting, id)
	if i < 0 {
		return
	}
	w.waiting = slices.Delete(w.waiting, i, i+1)
	if _, ok := t.conflict[oid]; ok || len(w.waiting) > 0 {
		return
	}
	delete(t.data, oid)
	t.dataSize -= len(w.data)
	if !t.keepAll && (t.opt.NoCache || t.doneSize+len(w.data) >= t.c.cfg.CacheSize) {
		w.data, w.packed, w.kept = nil, nil, false
	}
	t.done[oid] = w
	t.doneSize += len(w.data)
}

// deadlock gives a lock up that an older transaction waits for, and queues for
// it again.
func (c *Client) deadlock(conn *link.Conn, id proto.NodeID, p *proto.NotifyDeadlock) {
	c.mu.Lock()
	t := c.txns[p.TTID]
	c.mu.Unlock()
	if t == nil {
		return
	}
	t.mu.Lock()
	if t.stored || t.ended || t.nodes[id] != conn { // it votes: no deadlock
		t.mu.Unlock()
		return
	}
	t.pending[id]++
	t.mu.Unlock()
	conn.Ask(&proto.AskRelockObject{TTID: p.TTID, OID: p.OID}, &relockAsked{t, id, p.OID})
}

// relockAsked is the tag of AskRelockObject.
type relockAsked struct {
	t   *Txn
	id  proto.NodeID
	oid tid.OID
}

func (a *relockAsked) answered(ev link.Event) {
	t := a.t
	t.mu.Lock()
	defer t.signal()
	defer t.mu.Unlock()
	if !t.answeredLocked(a.id, ev) {
		return
	}
	p, ok := ev.Packet.(*proto.AnswerRelockObject)
	if !ok {
		if t.err == nil {
			t.err = fmt.Errorf("lock object %v again on %v: %w", a.oid, a.id, fromWire(answerError(ev)))
		}
		return
	}
	if p.Conflict == nil {
		return // locked again
	}
	if w := t.done[a.oid]; w != nil && p.Conflict.Conflict > t.resolved[a.oid] {
		// All nodes had accepted it, and its data may be gone from here: the
		// storage gives back what it had.
		if p.Conflict.Data != nil {
			data, err := decode(p.Conflict.Data)
			if err != nil {
				if t.err == nil {
					t.err = fmt.Errorf("object %v given back by %v: %w", a.oid, a.id, err)
				}
				return
			}
			w = &write{data: data, kept: true, serial: p.Conflict.Serial, dataSerial: w.dataSerial, deleted: w.deleted, restored: w.restored}
		}
		t.doneSize -= len(t.done[a.oid].data)
		delete(t.done, a.oid)
		w.serial = p.Conflict.Serial
		t.data[a.oid] = w
		t.dataSize += len(w.data)
	}
	t.conflictLocked(a.oid, p.Conflict.Conflict)
}
