package zeo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

// phase is how far a transaction is.
type phase uint8

const (
	phaseQueueing  phase = iota // nothing was sent to the storage
	phaseVoting                 // a goroutine carries the queue out
	phaseResolving              // the client was told of conflicts; locks are held
	phaseVoted                  // waits for the client to finish or abort; locks are held
	phaseFinishing              // a goroutine commits
)

// transaction is what one client stores. The reader of its connection owns it,
// except while voting or finishing, when a goroutine of its own does.
type transaction struct {
	id     int64
	begin  Begin
	queue  queue
	refuse error // why vote will fail: calls before it have no answer
	ctx    context.Context
	cancel context.CancelFunc
	timer  *time.Timer

	ahead     PendingBegin // begun before the vote; nil: not, or no longer
	prompt    AsyncTxn     // votes without a goroutine; under txnState.mu
	st        Txn          // nil until the first vote
	sent      int          // operations of the queue that were carried out
	conflicts map[tid.OID]*txn.ConflictError
	last      map[tid.OID]int // last operation that writes the object
	checks    map[tid.OID]int // first operation that checks it
	undone    []tid.OID       // by undos

	unresolved int // votes that were answered with conflicts

	counted bool // not among the active ones any more; under stats.mu

	phase   phase  // changed by the owner, under txnState.mu
	aborted bool   // while the goroutine owned it; under txnState.mu
	after   func() // what to do then
}

// txnState is the transaction of a connection: at most one is open.
type txnState struct {
	c    *conn
	mu   sync.Mutex
	open *transaction
}

func (s *txnState) init(c *conn) { s.c = c }

// begin opens a transaction. Nothing is locked before vote, which fails with refuse
// unless it is nil.
func (s *txnState) begin(id int64, b Begin, refuse error) error {
	c := s.c
	if c.readOnly {
		return readOnlyError()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != nil {
		if s.open.id == id {
			return nil
		}
		return transactionError("Multiple simultaneous tpc_begin requests from one client.")
	}
	t := &transaction{id: id, begin: b, refuse: refuse}
	t.queue.limit = c.srv.cfg.SpillSize
	t.ctx, t.cancel = context.WithCancel(c.srv.ctx)
	s.open = t
	c.seq.stats.active.Add(1)
	if c.seq.ahead != nil && refuse == nil {
		t.ahead = c.seq.ahead.BeginAsync(b)
		s.expire(t)
	}
	return nil
}

// aheadLimit is how long a transaction that was begun ahead may wait for its vote:
// the storage counts it among those under way.
const aheadLimit = 10 * time.Second

// expire abandons what was begun ahead if the vote does not come. It is called with
// mu held.
func (s *txnState) expire(t *transaction) {
	if t.ahead == nil {
		return
	}
	t.timer = time.AfterFunc(aheadLimit, func() { s.takeAhead(t, true) })
}

// takeAhead returns what was begun ahead, once; late: it is abandoned.
func (s *txnState) takeAhead(t *transaction, late bool) PendingBegin {
	s.mu.Lock()
	ahead := t.ahead
	if ahead != nil {
		t.ahead = nil
		t.timer.Stop()
		t.timer = nil
	}
	s.mu.Unlock()
	if ahead != nil && late {
		ahead.Abandon()
	}
	return ahead
}

// queueing returns the open transaction if it has this id and still takes
// operations.
func (s *txnState) queueing(id int64) (*transaction, error) {
	if s.c.readOnly {
		return nil, readOnlyError()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.open
	switch {
	case t == nil || t.id != id:
		return nil, wrongTransaction(t, id)
	case t.phase != phaseQueueing && t.phase != phaseResolving:
		return nil, transactionError("Already voting")
	}
	return t, nil
}

// vote lets a goroutine carry out what is queued.
func (s *txnState) vote(id int64, msg wire.MsgID, async bool) error {
	if s.c.readOnly {
		return readOnlyError()
	}
	t, err := s.voting(id)
	if err == nil && !s.voteAsync(t, msg, async) {
		s.c.wg.Go(func() { s.runVote(t, msg, async) })
	}
	return err
}

// voting lets the transaction pass to the goroutine that votes.
func (s *txnState) voting(id int64) (*transaction, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.open
	switch {
	case t == nil || t.id != id:
		return nil, wrongTransaction(t, id)
	case t.phase == phaseVoting:
		return nil, transactionError("Already voting (waiting)")
	case t.phase == phaseVoted || t.phase == phaseFinishing:
		return nil, transactionError("Already voting (locked)")
	}
	t.phase = phaseVoting
	return t, nil
}

// maxAsync is how many bytes the reader stores itself.
const maxAsync = 256 << 10

// voteAsync carries out the queue and votes on what was begun ahead, if nothing
// stands in the way. It reports false if that is not so.
func (s *txnState) voteAsync(t *transaction, msg wire.MsgID, async bool) bool {
	ahead := s.takeAhead(t, false)
	if ahead == nil {
		return false
	}
	// What was begun before a claim was made would be preferred to its owner.
	if t.refuse != nil || !t.queue.plain(maxAsync) || s.c.seq.claims.held.Load() > 0 {
		ahead.Abandon()
		return false
	}
	s.c.wg.Add(1)
	if st := ahead.Take(); st != nil {
		s.voteOn(t, st, msg, async)
		return true
	}
	go func() {
		st, err := ahead.Wait(t.ctx)
		if err != nil { // begun anew
			s.runVote(t, msg, async)
			s.c.wg.Done()
			return
		}
		s.voteOn(t, st, msg, async)
	}()
	return true
}

// voteOn carries out the queue and votes, and waits only for room. The transaction
// counts as a goroutine of the connection until it is voted.
func (s *txnState) voteOn(t *transaction, st AsyncTxn, msg wire.MsgID, async bool) {
	t.collapse()
	t.st = st
	s.c.seq.stats.lock(t)
	s.limit(t)
	err := t.replay()
	s.mu.Lock()
	t.prompt = st
	unusual := err != nil || len(t.conflicts) > 0 || t.aborted
	s.mu.Unlock()
	takeOver := func() {
		defer s.c.wg.Done()
		if err != nil {
			s.endVote(t, msg, async, nil, err)
		} else {
			s.runVote(t, msg, async)
		}
	}
	if unusual {
		go takeOver()
		return
	}
	st.VoteAsync(func(voted bool) {
		if voted && s.votedAsync(t, &msg, async) {
			s.c.wg.Done()
			return
		}
		go takeOver()
	})
	// An abort that came since then had nothing to give up yet.
	s.mu.Lock()
	gone := t.aborted
	s.mu.Unlock()
	if gone {
		st.GiveUp()
	}
}

// votedAsync tells the client that its transaction is voted. It does not wait, and
// reports false if the client does not want to know any more.
func (s *txnState) votedAsync(t *transaction, msg *wire.MsgID, async bool) bool {
	s.mu.Lock()
	gone := t.aborted
	if !gone {
		t.phase = phaseVoted
	}
	s.mu.Unlock()
	if gone {
		return false
	}
	if !async {
		e := s.c.out.lock()
		at := e.BeginReply(msg, wire.FlagResult)
		e.BeginList(0)
		e.EndList(0)
		e.EndMessage(at)
		s.c.out.unlock()
		s.c.out.send()
	}
	return true
}

func (s *txnState) runVote(t *transaction, msg wire.MsgID, async bool) {
	changed, err := t.vote(s)
	s.endVote(t, msg, async, changed, err)
}

// endVote passes the transaction back to the reader, or ends it, and answers.
func (s *txnState) endVote(t *transaction, msg wire.MsgID, async bool, changed []tid.OID, err error) {
	c := s.c
	if err == nil && len(t.conflicts) > 0 {
		if t.unresolved++; t.unresolved == mostVotes {
			err = t.firstConflict()
		}
	}
	s.mu.Lock()
	gone := t.aborted
	switch {
	case gone, err != nil:
		if s.open == t {
			s.open = nil
		}
	case len(t.conflicts) > 0:
		t.phase = phaseResolving
	default:
		t.phase = phaseVoted
	}
	s.mu.Unlock()
	switch {
	case gone:
		s.rollback(t)
		t.after()
	case err != nil:
		s.rollback(t)
		if isConflict(err) {
			c.seq.stats.conflicts.Add(1)
		}
		if async {
			c.log().Warn("call without answer failed", "method", "vote", "err", err)
			c.out.close()
		} else {
			c.sendError(&msg, "vote", err, nil)
		}
	case !async:
		s.sendVote(t, &msg, changed)
	}
}

// mostVotes is how often clients vote on one transaction. If the last vote is
// answered with conflicts, they resolve them, do not vote again, and finish.
const mostVotes = 9

// firstConflict returns the conflict with the least object id.
func (t *transaction) firstConflict() error {
	return t.conflicts[slices.Min(slices.Collect(maps.Keys(t.conflicts)))]
}

func isConflict(err error) bool {
	_, a := errors.AsType[*txn.ConflictError](err)
	_, b := errors.AsType[*txn.ReadConflictError](err)
	return a || b
}

// sendVote answers a vote: with the conflicts, or with the objects whose data are
// not what the client believes.
func (s *txnState) sendVote(t *transaction, msg *wire.MsgID, changed []tid.OID) {
	conflicts := make([]*txn.ConflictError, 0, len(t.conflicts))
	for _, c := range t.conflicts {
		conflicts = append(conflicts, c)
	}
	slices.SortFunc(conflicts, func(a, b *txn.ConflictError) int {
		if a.OID < b.OID {
			return -1
		}
		return 1
	})
	data := make([][]byte, len(conflicts))
	for i, c := range conflicts {
		var err error
		if data[i], err = t.queue.load(&t.queue.ops[t.last[c.OID]]); err != nil {
			s.c.log().Error("call failed", "method", "vote", "err", err)
			s.c.out.close()
			return
		}
	}
	s.c.seq.stats.conflicts.Add(int64(len(conflicts)))
	if len(conflicts) > 0 {
		changed = nil // reported by the vote that succeeds
	}
	s.c.send(msg, func(e *wire.Encoder) {
		e.BeginList(len(conflicts) + len(changed))
		for i, c := range conflicts {
			e.BeginDict(3)
			e.Text("oid")
			e.OID(c.OID)
			e.Text("serials")
			e.BeginTuple(2)
			e.TID(c.Committed)
			e.TID(c.Base)
			e.EndTuple(2)
			e.Text("data")
			e.Bytes(data[i])
			e.EndDict(3)
		}
		for _, o := range changed {
			e.OID(o)
		}
		e.EndList(len(conflicts) + len(changed))
	})
}

// vote carries out what is queued and votes if there are no conflicts. It returns
// the objects whose data differ from what the client stored.
func (t *transaction) vote(s *txnState) ([]tid.OID, error) {
	if t.refuse != nil {
		return nil, t.refuse
	}
	t.collapse()
	claims := &s.c.seq.claims
	for {
		if t.st == nil {
			if err := t.start(s); err != nil {
				return nil, err
			}
		}
		changed, err := t.attempt()
		if err != nil || len(t.conflicts) == 0 {
			return changed, err
		}
		oids := slices.Collect(maps.Keys(t.conflicts))
		if claims.try(t, oids) {
			return nil, nil
		}
		// Another client of this server resolves a conflict on the same object: to
		// be told of its result is better than to be told of what it replaces.
		if err := s.restart(t, oids); err != nil {
			return nil, err
		}
	}
}

// start waits for those who resolve conflicts on the same objects, and begins the
// transaction of the storage.
func (t *transaction) start(s *txnState) error {
	seq := s.c.seq
	seq.stats.waiting.Add(1)
	defer seq.stats.waiting.Add(-1)
	if seq.claims.held.Load() > 0 {
		if oids := seq.claims.taken(t, slices.Collect(maps.Keys(t.last))); len(oids) > 0 {
			if err := seq.claims.wait(t.ctx, t, oids); err != nil {
				return err
			}
		}
	}
	st, err := seq.st.Begin(t.ctx, t.begin)
	if err != nil {
		return err
	}
	t.st = st
	seq.stats.lock(t)
	s.limit(t)
	return nil
}

// restart gives up what the storage has of t, waits for the objects and is ready
// to start anew.
func (s *txnState) restart(t *transaction, oids []tid.OID) error {
	seq := s.c.seq
	st := t.st
	t.st = nil
	s.unlimit(t)
	seq.stats.unlock(t)
	seq.claims.release(t)
	if err := st.Abort(s.c.srv.late); err != nil {
		s.c.log().Warn("abort", "err", err)
	}
	t.sent, t.undone = 0, nil
	clear(t.conflicts)
	seq.stats.waiting.Add(1)
	defer seq.stats.waiting.Add(-1)
	return seq.claims.wait(t.ctx, t, oids)
}

// attempt sends what was not sent yet, and votes if there are no conflicts.
func (t *transaction) attempt() ([]tid.OID, error) {
	if err := t.replay(); err != nil {
		return nil, err
	}
	if len(t.conflicts) > 0 {
		return nil, nil
	}
	changed, conflicts, err := t.st.Vote(t.ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range conflicts {
		if err := t.conflict(c); err != nil {
			return nil, err
		}
	}
	changed = append(changed, t.undone...)
	slices.Sort(changed)
	return slices.Compact(changed), nil
}

// collapse finds the last write of each object, and the first check: only these
// count.
func (t *transaction) collapse() {
	ops := t.queue.ops
	if t.last == nil {
		t.last = make(map[tid.OID]int, len(ops))
		t.checks = make(map[tid.OID]int)
		t.conflicts = make(map[tid.OID]*txn.ConflictError)
	}
	for i := t.sent; i < len(ops); i++ {
		switch ops[i].kind {
		case opUndo:
		case opCheck:
			if _, ok := t.checks[ops[i].oid]; !ok {
				t.checks[ops[i].oid] = i
			}
		default:
			t.last[ops[i].oid] = i
		}
	}
}

// replay carries out the operations that were not yet.
func (t *transaction) replay() error {
	for ; t.sent < len(t.queue.ops); t.sent++ {
		if err := t.carryOut(t.sent); err != nil {
			return err
		}
	}
	return nil
}

// carryOut carries out one operation. What is written later, or at all, needs not
// be written, or checked.
func (t *transaction) carryOut(i int) error {
	o := &t.queue.ops[i]
	last, written := t.last[o.oid]
	switch o.kind {
	case opUndo:
		oids, err := t.st.Undo(t.ctx, o.serial)
		t.undone = append(t.undone, oids...)
		return err
	case opCheck:
		if written {
			return nil
		}
		if first := &t.queue.ops[t.checks[o.oid]]; first != o {
			if first.serial != o.serial { // one of them is not current
				return &txn.ReadConflictError{OID: o.oid, Committed: max(first.serial, o.serial), Base: min(first.serial, o.serial)}
			}
			return nil
		}
		return t.st.Check(t.ctx, o.oid, o.serial)
	}
	if last != i {
		return nil
	}
	switch o.kind {
	case opDelete:
		err := t.st.Delete(t.ctx, o.oid, o.serial)
		if errors.Is(err, txn.ErrNoSuchObject) {
			return keyError(o.oid.Bytes())
		}
		return err
	case opRestore:
		r, ok := t.st.(Restorer)
		if !ok {
			return fmt.Errorf("restore: %w", ErrUnsupported)
		}
		data, err := t.queue.load(o)
		if err != nil {
			return err
		}
		return r.Restore(t.ctx, txn.Record{OID: o.oid, TID: o.serial, Data: data, DataTID: o.prev})
	}
	data, err := t.queue.load(o)
	if err != nil {
		return err
	}
	err = t.st.Store(t.ctx, o.oid, o.serial, data)
	if c, ok := errors.AsType[*txn.ConflictError](err); ok {
		return t.conflict(c)
	}
	if err == nil {
		delete(t.conflicts, o.oid)
	}
	return err
}

// conflict notes a conflict that the client may resolve. That of anything but a
// store is final.
func (t *transaction) conflict(c *txn.ConflictError) error {
	i, ok := t.last[c.OID]
	if !ok || t.queue.ops[i].kind != opStore {
		return c
	}
	t.conflicts[c.OID] = c
	return nil
}

// limit closes the connection if the transaction holds its locks for too long.
func (s *txnState) limit(t *transaction) {
	d := s.c.srv.cfg.TransactionTimeout
	if d <= 0 {
		return
	}
	timer := time.AfterFunc(d, func() {
		s.mu.Lock()
		expired := s.open == t && t.phase != phaseFinishing
		s.mu.Unlock()
		if expired {
			s.c.log().Error("transaction timeout: closing the connection", "after", d)
			s.c.out.close()
		}
	})
	s.mu.Lock()
	t.timer = timer
	s.mu.Unlock()
}

// unlimit ends what limit began.
func (s *txnState) unlimit(t *transaction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.timer != nil {
		t.timer.Stop()
	}
}

// rollback releases all that a transaction holds.
func (s *txnState) rollback(t *transaction) {
	t.cancel()
	if t.st != nil {
		if err := t.st.Abort(s.c.srv.late); err != nil {
			s.c.log().Warn("abort", "err", err)
		}
	}
	s.forget(t)
}

// forget ends a transaction that holds nothing any more.
func (s *txnState) forget(t *transaction) {
	t.cancel()
	s.takeAhead(t, true)
	s.unlimit(t)
	s.c.seq.claims.release(t)
	t.queue.close()
	s.c.seq.stats.over(t)
}

// abort ends the transaction and calls done once its locks are released. A
// transaction of another id, or none, is no error.
func (s *txnState) abort(id int64, done func()) error {
	s.mu.Lock()
	t := s.open
	switch {
	case t == nil || t.id != id:
		s.mu.Unlock()
		done()
		return nil
	case t.phase == phaseFinishing:
		s.mu.Unlock()
		return transactionError("Already finishing")
	}
	s.c.seq.stats.aborts.Add(1)
	s.endLocked(t, done)
	return nil
}

// endLocked aborts t from any phase but finishing. It unlocks.
func (s *txnState) endLocked(t *transaction, done func()) {
	s.open = nil
	t.cancel()
	switch {
	case t.phase == phaseVoting:
		t.aborted, t.after = true, done // the goroutine goes on with it
		prompt := t.prompt
		s.mu.Unlock()
		if prompt != nil {
			prompt.GiveUp()
		}
	case t.st == nil:
		s.mu.Unlock()
		s.forget(t)
		done()
	default:
		s.mu.Unlock()
		s.c.wg.Go(func() {
			s.rollback(t)
			done()
		})
	}
}

// disconnected aborts what is open. What is finishing goes on.
func (s *txnState) disconnected() {
	s.mu.Lock()
	t := s.open
	if t == nil || t.phase == phaseFinishing {
		s.mu.Unlock()
		return
	}
	s.c.seq.stats.aborts.Add(1)
	s.endLocked(t, func() {})
}

// finish commits what was voted.
func (s *txnState) finish(id int64, msg wire.MsgID, async bool) error {
	t, err := s.finishing(id)
	if err == nil {
		s.runFinish(t, &msg, async)
	}
	return err
}

// finishing lets a voted transaction pass to the goroutine that commits it.
func (s *txnState) finishing(id int64) (*transaction, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.open
	if t == nil || t.id != id {
		// A client that was connected elsewhere when it voted would take any answer,
		// even None, for a commit.
		return nil, fmt.Errorf("transaction %d is not open on this connection: %w", id, txn.ErrUnavailable)
	}
	if t.phase != phaseVoted {
		return nil, textError("builtins.AssertionError", "finished called wo lock")
	}
	t.phase = phaseFinishing
	if t.timer != nil {
		t.timer.Stop()
	}
	return t, nil
}

// runFinish commits, in a goroutine unless the storage can go on by itself.
func (s *txnState) runFinish(t *transaction, msg *wire.MsgID, async bool) {
	c := s.c
	oids := slices.Clone(t.undone)
	for oid := range t.last {
		oids = append(oids, oid)
	}
	var final tid.TID
	answer := func(e *wire.Encoder) {
		s.mu.Lock()
		s.open = nil // before the client can know
		s.mu.Unlock()
		c.seq.stats.committed(t)
		c.seq.appendInfo(e)
		if async {
			return
		}
		at := e.BeginReply(msg, wire.FlagResult)
		e.TID(final)
		e.EndMessage(at)
	}
	told := false
	committed := func(at tid.TID) {
		final, told = at, true
		c.seq.commit(at, oids, c, answer)
	}
	finish := func() {
		recovered, err := t.st.Finish(c.srv.late, committed)
		if !told {
			if err != nil { // the storage may not even have been asked
				if err := t.st.Abort(c.srv.late); err != nil {
					c.log().Warn("abort", "err", err)
				}
			}
			s.mu.Lock()
			s.open = nil
			s.mu.Unlock()
			final = recovered
			switch {
			case err == nil && c.seq.recover(c.srv.late, final, c, answer):
			case err == nil || errors.Is(err, txn.ErrUnknownOutcome):
				if err == nil {
					c.seq.stats.committed(t)
				}
				c.log().Warn("the client cannot be told whether its transaction is committed: closing", "tid", final, "err", err)
				c.out.close()
			default:
				c.sendError(msg, "tpc_finish", err, nil)
			}
		}
		s.forget(t)
	}
	p, ok := t.st.(AsyncTxn)
	if !ok {
		c.wg.Go(finish)
		return
	}
	c.wg.Add(1)
	p.FinishAsync(committed, func(_ tid.TID, finished bool) {
		if finished {
			s.forget(t)
			c.wg.Done()
			return
		}
		go func() {
			defer c.wg.Done()
			finish()
		}()
	})
}
