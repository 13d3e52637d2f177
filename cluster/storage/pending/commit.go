package pending

import (
	"errors"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// Vote processes an AskVoteTransaction.
func (m *Manager) Vote(r Request, client proto.NodeID, p *proto.AskVoteTransaction) error {
	if m.txns[p.TTID] == nil {
		m.refuse(r, "unknown transaction %v", p.TTID)
		return nil
	}
	t := m.register(r, client, p.TTID)
	if t == nil {
		return nil
	}
	return m.vote(r, t, nil, nil, &proto.AnswerVoteTransaction{})
}

// StoreTransaction processes an AskStoreTransaction: a vote with the metadata.
func (m *Manager) StoreTransaction(r Request, client proto.NodeID, p *proto.AskStoreTransaction) error {
	switch {
	case len(p.OIDs) >= proto.MaxOIDs:
		m.refuse(r, "transaction %v has %d objects, too many", p.TTID, len(p.OIDs))
		return nil
	case p.Pack != nil && len(p.Pack.OIDs) >= proto.MaxOIDs:
		m.refuse(r, "the pack order of %v has %d objects, too many", p.TTID, len(p.Pack.OIDs))
		return nil
	case m.forgotten[p.TTID] != 0:
		m.refuse(r, "transaction %v was aborted when its client was lost", p.TTID)
		return nil
	}
	t := m.register(r, client, p.TTID)
	if t == nil {
		return nil
	}
	return m.vote(r, t, &backend.Meta{User: p.User, Description: p.Description, Extension: p.Extension, TTID: p.TTID, OIDs: p.OIDs},
		p.Pack, &proto.AnswerStoreTransaction{})
}

func (m *Manager) vote(r Request, t *transaction, meta *backend.Meta, pack *proto.PackRequest, answer proto.Packet) error {
	if t.queued > 0 {
		// A store executed after the vote would not be durable.
		m.refuse(r, "transaction %v has unanswered requests", t.ttid)
		return nil
	}
	stores := make([]backend.Store, 0, len(t.ops))
	for _, o := range t.ops {
		if o.stored {
			stores = append(stores, o.store)
		}
	}
	slices.SortFunc(stores, func(a, b backend.Store) int {
		if a.OID < b.OID {
			return -1
		}
		return 1
	})
	if err := m.db.Vote(t.ttid, stores, meta, pack); errors.Is(err, backend.ErrTooLong) {
		m.refuse(r, "%v", err)
		return nil
	} else if err != nil {
		return err
	}
	t.voted, t.meta, t.pack = true, meta != nil, pack != nil
	m.effects = append(m.effects, Effect{Kind: AnswerDurable, Request: r, Packet: answer})
	return nil
}

// Lock processes an AskLockInformation: the decision to commit becomes durable,
// and the objects are not read until the transaction is in the final tables.
func (m *Manager) Lock(r Request, p *proto.AskLockInformation) error {
	t := m.txns[p.TTID]
	_, known := m.forgotten[p.TTID]
	answer := &proto.AnswerInformationLocked{TTID: p.TTID}
	switch {
	case t == nil && !known && len(m.replicating)+len(m.replicated) > 0:
		// A cell was given to this node between the stores and the finish. It has
		// nothing of the transaction and will replicate it: the master answers
		// AskUnfinishedTransactions either while the transaction is pending, or
		// after its commit with a TID that is not less.
		m.foreign[p.TTID] = true
		m.answer(r, answer)
		return nil
	case t == nil:
		m.refuse(r, "lock of unknown transaction %v", p.TTID)
		return nil
	case !t.voted:
		m.refuse(r, "lock of transaction %v, which is not voted", p.TTID)
		return nil
	case t.final != tid.Zero:
		m.refuse(r, "transaction %v is already locked as %v", p.TTID, t.final)
		return nil
	case p.TID == tid.Zero || p.TID > tid.Max || p.TID.Partition(m.np) != p.TTID.Partition(m.np):
		m.refuse(r, "%v cannot be the TID of transaction %v", p.TID, p.TTID)
		return nil
	}
	t.final = p.TID
	m.mu.Lock()
	for oid, o := range t.ops {
		if o.stored {
			m.readLocks[oid] = t.ttid
		}
	}
	m.lockedMin = min(m.lockedMin, t.final)
	m.mu.Unlock()
	if !t.meta {
		m.answer(r, answer)
		return nil
	}
	if err := m.db.Lock(t.ttid, t.final, p.PackApproved); err != nil {
		return err
	}
	m.effects = append(m.effects, Effect{Kind: AnswerDurable, Request: r, Packet: answer})
	return nil
}

// Unlock processes a NotifyUnlockInformation: the transaction becomes visible.
// r is where an error goes.
func (m *Manager) Unlock(r Request, ttid tid.TID) error {
	t := m.txns[ttid]
	switch {
	case t == nil && m.foreign[ttid]:
		delete(m.foreign, ttid)
		return nil
	case t == nil:
		m.refuse(r, "unlock of unknown transaction %v", ttid)
		return nil
	case t.final == tid.Zero:
		m.refuse(r, "unlock of transaction %v, which is not locked", ttid)
		return nil
	}
	objects := false
	for _, o := range t.ops {
		objects = objects || o.stored
	}
	if err := m.db.Unlock(ttid, t.final, t.meta, objects, t.pack); err != nil {
		return err
	}
	m.dirty = true
	return m.end(t)
}

// ClientAbort ends a transaction by order of its client, who may begin it again
// under the same imposed TID. A locked transaction is left, it will be unlocked.
func (m *Manager) ClientAbort(client proto.NodeID, ttid tid.TID) error {
	if _, ok := m.forgotten[ttid]; ok {
		m.forgotten[ttid] = 0
	}
	t := m.txns[ttid]
	if t == nil || t.client != client || t.final != tid.Zero {
		return nil
	}
	m.forget(ttid, 0)
	return m.abort(t)
}

// Abort ends a transaction that is over for the master: nothing will be asked
// about it any more. A locked transaction is left, it will be unlocked.
func (m *Manager) Abort(ttid tid.TID) error {
	delete(m.forgotten, ttid)
	delete(m.foreign, ttid)
	if t := m.txns[ttid]; t != nil {
		return m.abort(t)
	}
	return nil
}

func (m *Manager) forget(ttid tid.TID, lost proto.NodeID) {
	if len(m.forgotten) >= maxForgotten {
		clear(m.forgotten) // by far older than anything the master still knows
	}
	m.forgotten[ttid] = lost
}

func (m *Manager) abort(t *transaction) error {
	if t.final != tid.Zero {
		return nil
	}
	if t.voted {
		if err := m.db.Abort(t.ttid); err != nil {
			return err
		}
		m.dirty = true
	}
	if err := m.release(t.data(nil)); err != nil {
		return err
	}
	return m.end(t)
}

// data returns the records that a transaction holds, of some partitions only if
// in is not nil, sorted by object.
func (t *transaction) data(in func(tid.OID) bool) []backend.DataID {
	var ids []backend.DataID
	for _, oid := range t.oids() {
		if o := t.ops[oid]; o.stored && o.store.Data.OK && (in == nil || in(oid)) {
			ids = append(ids, o.store.Data)
		}
	}
	return ids
}

// end removes a transaction and its locks, and lets the others go on.
func (m *Manager) end(t *transaction) error {
	for oid := range t.ops {
		if m.locks[oid] == t.ttid { // else of a lockless one, or of one relocking
			delete(m.locks, oid)
		}
	}
	delete(m.txns, t.ttid)
	if t.final != tid.Zero {
		m.mu.Lock()
		for oid := range t.ops {
			if m.readLocks[oid] == t.ttid {
				delete(m.readLocks, oid)
			}
		}
		m.setLockedMin()
		m.mu.Unlock()
	}
	if err := m.announceReplicated(); err != nil {
		return err
	}
	m.runReads()
	return m.runWrites()
}

// setLockedMin is called with mu held.
func (m *Manager) setLockedMin() {
	m.lockedMin = tid.Invalid
	for _, t := range m.txns {
		if t.final != tid.Zero {
			m.lockedMin = min(m.lockedMin, t.final)
		}
	}
}

// ConnClosed drops the requests that wait on a connection, and aborts what its
// client did not vote: a voted transaction may still be finished through the
// master. A client of id 0 has no transactions.
func (m *Manager) ConnClosed(conn any, client proto.NodeID) error {
	m.writes = slices.DeleteFunc(m.writes, func(w *write) bool {
		if w.req.Conn != conn {
			return false
		}
		if t := m.txns[w.ttid]; t != nil {
			t.queued--
		}
		return true
	})
	m.reads = slices.DeleteFunc(m.reads, func(r read) bool { return r.req.Conn == conn })
	return m.abortOf(client, false)
}

// ClientGone aborts all transactions of a client that the master no longer
// knows, except locked ones. It will not come back: whoever uses one of their
// TIDs from now on imposes it on a new transaction, such as the next run of an
// interrupted copy.
func (m *Manager) ClientGone(client proto.NodeID) error {
	if err := m.abortOf(client, true); err != nil {
		return err
	}
	for ttid, lost := range m.forgotten {
		if lost == client {
			m.forgotten[ttid] = 0
		}
	}
	return nil
}

func (m *Manager) abortOf(client proto.NodeID, voted bool) error {
	if client == 0 {
		return nil
	}
	for _, t := range m.sorted() {
		if t.client != client || t.final != tid.Zero || t.voted && !voted {
			continue
		}
		m.forget(t.ttid, client)
		if err := m.abort(t); err != nil {
			return err
		}
	}
	return nil
}

// Drop releases the data of the transactions that were not voted. It ends the
// use of the manager: the node leaves operation, where everything volatile is
// forgotten. What was voted stays in the database.
func (m *Manager) Drop() error {
	for _, t := range m.sorted() {
		if !t.voted {
			if err := m.release(t.data(nil)); err != nil {
				return err
			}
		}
	}
	return nil
}
