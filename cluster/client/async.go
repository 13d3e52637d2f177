package client

import (
	"context"
	"slices"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// PendingBegin is a transaction that the master was asked for.
type PendingBegin struct {
	c *Client
	a *beginAsked
}

// BeginAsync is [Client.Begin] without waiting. It returns nil if that is impossible
// now; otherwise Take, Wait or Abandon must follow.
func (c *Client) BeginAsync(opt BeginOptions) *PendingBegin {
	v := c.view.Load()
	if v == nil || c.cfg.ReadOnly || opt.TID != tid.Zero {
		return nil
	}
	return &PendingBegin{c, c.askBeginOf(v, opt)}
}

// Take returns the transaction if the master has answered and all storages are
// connected, so that no store has to wait for that. Otherwise it returns nil, and
// Wait or Abandon must follow.
func (b *PendingBegin) Take() *Txn {
	if len(b.a.result) == 0 || !b.c.linked() {
		return nil
	}
	t, err := b.c.begun(context.Background(), b.a) // does not wait
	if err != nil {
		b.a.result <- beginResult{err: err} // for Wait
		return nil
	}
	return t
}

// Wait waits for the transaction. If ctx ends before, the transaction is abandoned.
func (b *PendingBegin) Wait(ctx context.Context) (*Txn, error) { return b.c.begun(ctx, b.a) }

// Abandon ends the transaction, once the master has begun it.
func (b *PendingBegin) Abandon() { b.a.abandon() }

// linked reports whether all storages that are running are connected.
func (c *Client) linked() bool {
	v := c.view.Load()
	if v == nil {
		return false
	}
	c.storages.mu.RLock()
	defer c.storages.mu.RUnlock()
	for id := range v.running {
		if l := c.storages.links[id]; l == nil || l.conn == nil {
			return false
		}
	}
	return true
}

// VoteAsync is [Txn.Vote] without waiting, for a caller without a goroutine to spare.
// It calls done once, now or from the goroutine that reads the last answer; done
// must not wait. With voted false something is left to be done by Vote, which goes
// on from there and returns why, if it fails.
func (t *Txn) VoteAsync(done func(voted bool)) {
	t.whenQuiet(func(quiet bool) {
		if !quiet || !t.voteNow() {
			done(false)
			return
		}
		t.whenQuiet(func(quiet bool) { done(quiet && t.votedNow()) })
	})
}

// GiveUp makes a VoteAsync under way call done.
func (t *Txn) GiveUp() {
	t.mu.Lock()
	then := t.then
	t.then = nil
	t.mu.Unlock()
	if then != nil {
		then(false)
	}
}

// whenQuiet calls then once no answer is pending, or the transaction is over.
func (t *Txn) whenQuiet(then func(quiet bool)) {
	t.Flush()
	t.mu.Lock()
	if t.overLocked() || !t.waitingLocked() {
		t.mu.Unlock()
		then(true)
		return
	}
	t.then = then
	t.mu.Unlock()
}

func (t *Txn) overLocked() bool { return t.ended || t.err != nil }

// voteNow asks for the votes, if everything is stored and all it needs is at hand.
func (t *Txn) voteNow() bool {
	v := t.c.view.Load()
	if v == nil || v.session != t.session {
		return false
	}
	meta := v.rows[t.ttid.Partition(v.np())]
	for _, cell := range meta {
		if !t.linkedTo(cell.ID) {
			return false
		}
	}
	t.mu.Lock()
	if t.overLocked() || t.voted || t.stored || !t.settledLocked() || len(t.data)+len(t.resolved) > 0 || len(t.order) >= proto.MaxOIDs {
		t.mu.Unlock()
		return false
	}
	t.stored = true
	oids := t.oidsLocked()
	t.mu.Unlock()
	return t.sendVotesOf(v, oids, func(id proto.NodeID) (*link.Conn, error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.nodes[id], nil
	}) == nil
}

// linkedTo takes the link to a node into the transaction if it is there.
func (t *Txn) linkedTo(id proto.NodeID) bool {
	t.mu.Lock()
	conn, known := t.nodes[id]
	t.mu.Unlock()
	if known {
		return conn != nil
	}
	s := &t.c.storages
	s.mu.RLock()
	if l := s.links[id]; l != nil {
		conn = l.conn
	}
	s.mu.RUnlock()
	return conn != nil && t.use(id, conn) != nil
}

// oidsLocked returns the objects of the transaction in order.
func (t *Txn) oidsLocked() []tid.OID {
	return slices.DeleteFunc(slices.Clone(t.order), func(o tid.OID) bool { return o == tid.InvalidOID })
}

// votedNow ends a vote that all nodes have answered, unless one of them was lost.
func (t *Txn) votedNow() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.overLocked() {
		return false
	}
	for _, conn := range t.nodes {
		if conn == nil {
			return false
		}
	}
	t.voted = true
	return true
}

// FinishAsync is [Txn.Finish], after a vote, without waiting. It calls done once,
// from the goroutine that reads the answer; done must not wait. With finished
// false something went wrong: Finish waits for the outcome and returns it.
func (t *Txn) FinishAsync(onFinish func(tid.TID), done func(at tid.TID, finished bool)) {
	a, err := t.askFinishThen(onFinish, done)
	if err != nil {
		done(tid.Zero, false)
		return
	}
	if v := t.c.view.Load(); v == nil || v.session != t.session {
		a.giveUp() // lost before we were in the table
	}
}
