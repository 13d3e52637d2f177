package client

import (
	"context"
	"fmt"
	"slices"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Vote waits until everything is stored and makes it durable: after a
// successful vote the transaction can be finished. It returns the objects whose
// conflicts were resolved; what readers know of them is outdated.
//
// A [txn.ConflictError] leaves the transaction open: the object may be stored again
// and the vote repeated.
func (t *Txn) Vote(ctx context.Context) (resolved []tid.OID, err error) {
	for settled := false; !settled; {
		if err := t.settle(ctx); err != nil {
			return nil, err
		}
		t.mu.Lock()
		// A deadlock may be avoided meanwhile, by giving up a lock.
		if settled = t.settledLocked(); !settled {
			t.mu.Unlock()
		}
	}
	if err := t.usableLocked(); err != nil {
		t.mu.Unlock()
		return nil, err
	}
	if t.voted {
		t.mu.Unlock()
		return nil, fmt.Errorf("transaction %v: voted twice", t.ttid)
	}
	if len(t.data) > 0 {
		t.mu.Unlock()
		return nil, fmt.Errorf("transaction %v: could not store or check all objects", t.ttid)
	}
	asked := t.asked // by VoteAsync
	t.stored = true
	oids := t.oidsLocked()
	for _, oid := range oids {
		if _, ok := t.resolved[oid]; ok {
			resolved = append(resolved, oid)
		}
	}
	t.mu.Unlock()
	if len(oids) >= proto.MaxOIDs {
		return nil, fmt.Errorf("transaction %v: %d objects are too many", t.ttid, len(oids))
	}
	if !asked {
		if err := t.sendVotes(ctx, oids); err != nil {
			return nil, err
		}
	}
	if err := t.quiet(ctx); err != nil {
		return nil, err
	}
	if err := t.reportFailures(ctx); err != nil {
		return nil, err
	}
	// Failing now, when the master was lost, is cheap: failing in finish is not.
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.usableLocked(); err != nil {
		return nil, err
	}
	t.voted = true
	return resolved, nil
}

// settledLocked reports whether nothing keeps the transaction from its vote, or
// everything does.
func (t *Txn) settledLocked() bool {
	return t.overLocked() || len(t.conflict) == 0 && !t.waitingLocked()
}

// settle waits for all stores and resolves all conflicts.
func (t *Txn) settle(ctx context.Context) error {
	for {
		t.mu.Lock()
		err := t.usableLocked()
		conflict := len(t.conflict) > 0
		waiting := t.waitingLocked()
		t.mu.Unlock()
		switch {
		case err != nil:
			return err
		case conflict:
			err = t.resolve(ctx)
		case waiting:
			err = t.wait(ctx)
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// sendVotes sends the metadata to the cells of the transaction and the vote to
// the other nodes that were written to.
func (t *Txn) sendVotes(ctx context.Context, oids []tid.OID) error {
	v := t.c.view.Load()
	if v == nil || v.session != t.session {
		return fmt.Errorf("vote transaction %v: %w", t.ttid, ErrMasterLost)
	}
	return t.sendVotesOf(v, oids, func(id proto.NodeID) (*link.Conn, error) { return t.node(ctx, v, id) })
}

func (t *Txn) sendVotesOf(v *view, oids []tid.OID, node func(proto.NodeID) (*link.Conn, error)) error {
	partition := t.ttid.Partition(v.np())
	meta := make(map[proto.NodeID]*link.Conn, 2)
	for _, cell := range v.rows[partition] {
		conn, err := node(cell.ID)
		if err != nil {
			return err
		}
		if conn != nil {
			meta[cell.ID] = conn
		}
	}
	if len(meta) == 0 {
		return fmt.Errorf("vote transaction %v: write to partition %d: %w", t.ttid, partition, ErrNoStorage)
	}
	t.mu.Lock()
	t.asked = true
	votes := make(map[proto.NodeID]*link.Conn, 2)
	for id, conn := range t.nodes {
		if conn != nil && (t.wrote[id] || meta[id] != nil) {
			votes[id] = conn
			t.pending[id]++
		}
	}
	pack := t.pack
	t.mu.Unlock()
	store := &proto.AskStoreTransaction{
		TTID: t.ttid, User: t.opt.User, Description: t.opt.Description, Extension: t.opt.Extension,
		OIDs: oids, Pack: pack,
	}
	vote := &proto.AskVoteTransaction{TTID: t.ttid}
	for id, conn := range votes {
		var req proto.Request = vote
		if meta[id] != nil {
			req = store
		}
		conn.Ask(req, &voteAsked{t, id})
	}
	if t.opt.voting != nil {
		t.opt.voting()
	}
	return nil
}

// voteAsked is the tag of AskStoreTransaction and AskVoteTransaction.
type voteAsked struct {
	t  *Txn
	id proto.NodeID
}

func (a *voteAsked) answered(ev link.Event) {
	t := a.t
	t.mu.Lock()
	defer t.signal()
	defer t.mu.Unlock()
	if !t.answeredLocked(a.id, ev) {
		return
	}
	switch ev.Packet.(type) {
	case *proto.AnswerStoreTransaction, *proto.AnswerVoteTransaction:
	default:
		if t.err == nil {
			t.err = fmt.Errorf("vote on %v: %w", a.id, fromWire(answerError(ev)))
		}
	}
}

// reportFailures makes sure that the nodes that failed are not needed, and that
// the master will disconnect them: they missed something of the transaction.
func (t *Txn) reportFailures(ctx context.Context) error {
	v := t.c.view.Load()
	if v == nil || v.session != t.session {
		return fmt.Errorf("vote transaction %v: %w", t.ttid, ErrMasterLost)
	}
	t.mu.Lock()
	var failed []proto.NodeID
	lost := false
	for id, conn := range t.nodes {
		if conn == nil {
			lost = true
			if _, running := v.running[id]; running {
				failed = append(failed, id)
			}
		}
	}
	if !lost {
		t.mu.Unlock()
		return nil
	}
	// Where a node took stores without locking, another one must have checked
	// them for conflicts.
	for partition, ids := range t.lockless {
		if !slices.ContainsFunc(v.rows[partition], func(cell proto.Cell) bool {
			return t.nodes[cell.ID] != nil && !ids[cell.ID]
		}) {
			t.mu.Unlock()
			return fmt.Errorf("vote transaction %v: partition %d is not fully write-locked: %w", t.ttid, partition, ErrNoStorage)
		}
	}
	t.mu.Unlock()
	if len(failed) == 0 {
		return nil
	}
	slices.Sort(failed)
	p, err := t.session.conn.Call(ctx, &proto.FailedVote{TTID: t.ttid, IDs: failed})
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// If the link is lost, the transaction itself may hear of it only later.
		return fmt.Errorf("vote transaction %v without %v: %w", t.ttid, failed, t.c.masterError(ctx, err))
	}
	if e, ok := p.(*proto.Error); ok && e.ErrCode != proto.Ack {
		return fmt.Errorf("vote transaction %v without %v: %w", t.ttid, failed, fromWire(e))
	}
	t.c.log.Warn("commit without storages that failed", "ttid", t.ttid, "storages", fmt.Sprint(failed))
	return nil
}
