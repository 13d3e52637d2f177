package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Finish commits a transaction, after a vote if there was none. onFinish, if not
// nil, is called with the final TID before [Client.LastTID] names it, on the
// goroutine that reads from the master: it must neither block nor call the
// client.
//
// If the master is lost meanwhile, Finish finds out from the next one, or from
// the storages, how the transaction ended. onFinish is not called then, and the
// caches were told by Config.OnReset that anything may have changed.
//
// When ctx ends before the answer the error is txn.ErrUnknownOutcome.
func (t *Txn) Finish(ctx context.Context, onFinish func(tid.TID)) (tid.TID, error) {
	t.mu.Lock()
	voted, asked := t.voted, t.finish
	t.mu.Unlock()
	if asked != nil { // by FinishAsync, with its onFinish
		return t.awaitFinish(ctx, asked)
	}
	if !voted {
		if _, err := t.Vote(ctx); err != nil {
			return tid.Zero, err
		}
	}
	a, err := t.askFinish(onFinish)
	if err != nil {
		return tid.Zero, err
	}
	return t.awaitFinish(ctx, a)
}

// askFinish requests the commit. From here on it can not be aborted.
func (t *Txn) askFinish(onFinish func(tid.TID)) (*finishAsked, error) {
	return t.askFinishThen(onFinish, nil)
}

// askFinishThen is askFinish for a caller that does not wait: then is called once,
// unless it is nil.
func (t *Txn) askFinishThen(onFinish func(tid.TID), then func(tid.TID, bool)) (*finishAsked, error) {
	t.mu.Lock()
	if err := t.usableLocked(); err != nil {
		t.mu.Unlock()
		return nil, err
	}
	t.ended = true
	np := t.np()
	req := &proto.AskFinishTransaction{TTID: t.ttid, Pack: t.pack, OIDs: make([]tid.OID, 0, len(t.order))}
	for _, oid := range t.order {
		if oid == tid.InvalidOID {
			continue
		}
		switch w := t.done[oid]; {
		case w.check:
			req.Checked = append(req.Checked, oid.Partition(np))
		case w.deleted:
			req.Deleted = append(req.Deleted, oid.Partition(np))
		default:
			req.OIDs = append(req.OIDs, oid)
		}
	}
	a := &finishAsked{t: t, onFinish: onFinish, result: make(chan finishResult, 1), then: then}
	t.finish = a
	t.mu.Unlock()
	if then != nil {
		t.c.mu.Lock()
		t.c.finishing[a] = struct{}{}
		t.c.mu.Unlock()
	}
	t.session.conn.Ask(req, a)
	t.forget()
	return a, nil
}

// awaitFinish waits for the end of the commit.
func (t *Txn) awaitFinish(ctx context.Context, a *finishAsked) (tid.TID, error) {
	var r finishResult
	select {
	case r = <-a.result:
	case <-ctx.Done():
		return tid.Zero, fmt.Errorf("finish transaction %v: %w: %w", t.ttid, txn.ErrUnknownOutcome, ctx.Err())
	case <-t.session.conn.Done():
		select {
		case r = <-a.result:
		default:
			r.err = link.ErrClosed
		}
	}
	if r.err == nil {
		return r.tid, nil
	}
	if pe, ok := errors.AsType[*proto.Error](r.err); ok {
		return tid.Zero, fmt.Errorf("finish transaction %v: %w", t.ttid, fromWire(pe))
	}
	return t.recover(ctx, r.err)
}

// finishAsked is the tag of AskFinishTransaction. The answer is processed in the
// order in which it arrives among invalidations.
type finishAsked struct {
	t        *Txn
	onFinish func(tid.TID)
	result   chan finishResult
	then     func(at tid.TID, finished bool) // under the lock of the client; nil: called, or not asked for
}

// takeThen returns what is to be called, the first time.
func (a *finishAsked) takeThen() func(tid.TID, bool) {
	c := a.t.c
	c.mu.Lock()
	defer c.mu.Unlock()
	then := a.then
	a.then = nil
	delete(c.finishing, a)
	return then
}

// giveUp tells a caller that does not wait that it has to.
func (a *finishAsked) giveUp() {
	if then := a.takeThen(); then != nil {
		then(tid.Zero, false)
	}
}

type finishResult struct {
	tid tid.TID
	err error
}

func (a *finishAsked) answered(ev link.Event) {
	p, ok := ev.Packet.(*proto.AnswerTransactionFinished)
	if !ok {
		a.result <- finishResult{err: answerError(ev)}
		a.giveUp()
		return
	}
	then := a.takeThen()
	a.t.finished(p.TID)
	a.t.c.told.Store(uint64(p.TID))
	if a.onFinish != nil {
		a.onFinish(p.TID)
	}
	a.t.c.advance(p.TID)
	a.result <- finishResult{tid: p.TID}
	if then != nil {
		then(p.TID, true)
	}
}

// finished applies our own commit to the cache.
func (t *Txn) finished(final tid.TID) {
	c := t.c
	var restored []tid.OID
	defer func() { c.restoredAt(final, restored) }()
	c.counts.commits.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	c.cacheMu.Lock()
	defer c.cacheMu.Unlock()
	for oid, w := range t.done {
		if w.check {
			continue
		}
		if w.restored {
			restored = append(restored, oid)
		}
		c.replaceLocked(final, oid)
		if w.data != nil && w.kept && !t.opt.NoCache {
			c.cache.store(oid, w.data, final, tid.Zero)
		}
	}
	t.done = nil
}

// recover finds out how a transaction ended whose finish has no answer.
func (t *Txn) recover(ctx context.Context, lost error) (tid.TID, error) {
	unknown := func(err error) error {
		return fmt.Errorf("finish transaction %v: %w: %w", t.ttid, txn.ErrUnknownOutcome, err)
	}
	for {
		if ctx.Err() != nil {
			return tid.Zero, unknown(ctx.Err())
		}
		p, err := askMaster[*proto.AnswerFinalTID](ctx, t.c, &proto.AskFinalTID{TTID: t.ttid})
		if err == nil && p.TID.OK && p.TID.V == tid.Max {
			// The master does not know: the storages of its metadata do.
			p, err = readAs[*proto.AnswerFinalTID](ctx, t.c, uint64(t.ttid), &proto.AskFinalTID{TTID: t.ttid})
		}
		switch {
		case errors.Is(err, ErrMasterLost):
			continue
		case errors.Is(err, ErrNoStorage):
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return tid.Zero, unknown(err)
		case !p.TID.OK:
			return tid.Zero, fmt.Errorf("finish transaction %v: not committed: %w: %w", t.ttid, ErrMasterLost, lost)
		}
		t.c.counts.commits.Add(1)
		t.c.log.Info("transaction was committed", "ttid", t.ttid, "tid", p.TID.V)
		return p.TID.V, nil
	}
}

// Abort ends the transaction without committing it. After Finish was called it
// does nothing.
func (t *Txn) Abort(context.Context) error {
	t.mu.Lock()
	if t.ended {
		t.mu.Unlock()
		return nil
	}
	t.ended = true
	t.c.counts.aborts.Add(1)
	var ids []proto.NodeID
	var conns []*link.Conn
	for id, conn := range t.nodes {
		ids = append(ids, id)
		if conn != nil {
			conns = append(conns, conn)
		}
	}
	t.data, t.done = nil, nil
	t.mu.Unlock()
	t.signal()
	t.forget()
	// On each link after our own stores, so that none of them leaves a lock...
	for _, conn := range conns {
		conn.Send(&proto.AbortTransaction{TTID: t.ttid})
	}
	// ... and by the master to the nodes that we can no longer reach. After it
	// was lost, no master knows the transaction.
	if v := t.c.view.Load(); v != nil && v.session == t.session {
		t.session.conn.Send(&proto.AbortTransaction{TTID: t.ttid, IDs: ids})
	}
	return nil
}

// forget takes the transaction out of the table of those under way.
func (t *Txn) forget() {
	t.c.mu.Lock()
	delete(t.c.txns, t.ttid)
	t.c.mu.Unlock()
}
