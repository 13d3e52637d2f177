package pending

import (
	"errors"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// write is a request for a write lock. It may wait.
type write struct {
	ttid   tid.TID
	req    Request
	oid    tid.OID
	packet proto.Packet // AskStoreObject, AskCheckCurrentSerial or AskRelockObject
}

type outcome int

const (
	locked outcome = iota
	lockless
	conflict
	delayed
	unreadable
	invalid // a base revision that does not exist yet
)

// lock takes the write lock of an object for a transaction that read it at
// serial. With conflict and invalid, it returns the last revision.
//
// Without deadlock avoidance two transactions could wait for each other, since
// locks are per object, in any order, on several nodes. Here the older one (the
// smaller ttid) wins, unless the younger can already commit.
func (m *Manager) lock(t *transaction, serial tid.TID, oid tid.OID) (outcome, tid.TID, error) {
	p := m.partition(oid)
	if m.replicating[p] {
		// Neither all revisions nor all locks are known here: a readable cell judges.
		t.setLockless(oid)
		return lockless, 0, nil
	}
	var previous proto.Opt[tid.TID]
	if ttid, ok := m.locks[oid]; ok {
		owner := m.txns[ttid]
		mine := t.ops[oid]
		other := owner.ops[oid]
		switch {
		case ttid < t.ttid || owner.voted:
			return delayed, 0, nil
		case mine != nil && mine.lockless:
			return lockless, 0, nil
		case owner != t && other != nil && other.lockless:
			t.setLockless(oid)
			return lockless, 0, nil
		case owner != t:
			if other != nil && !other.deadlock {
				other.deadlock = true
				m.counts.Deadlocks++
				m.effects = append(m.effects, Effect{Kind: NotifyClient, Client: owner.client,
					Packet: &proto.NotifyDeadlock{TTID: ttid, OID: oid}})
			}
			return delayed, 0, nil
		case mine == nil || !mine.stored || mine.store.DataSerial == tid.Zero:
			return locked, 0, nil // the lock was checked when it was taken
		}
		// What follows an undo must be based on what the undo restored.
		previous = proto.Some(mine.store.DataSerial)
	} else {
		if m.asked[oid] {
			return delayed, 0, nil
		}
		var err error
		previous, err = m.db.LastObjectTID(oid)
		switch {
		case errors.Is(err, backend.ErrNonReadable):
			return unreadable, 0, nil
		case errors.Is(err, backend.ErrNotPrepared) && m.unknown == proto.Some(oid):
			// Taken without check, but with the lock: a cell that is readable must have
			// what is committed elsewhere.
			m.locks[oid] = t.ttid
			return lockless, 0, nil
		case errors.Is(err, backend.ErrNotPrepared):
			// The request waits like one for a lock: others may take the lock first.
			m.asked[oid] = true
			m.effects = append(m.effects, Effect{Kind: Prepare, OID: oid})
			return delayed, 0, nil
		case err != nil:
			return 0, 0, err
		case previous.OK && serial > previous.V:
			// A replica that has kept a later deletion, or the cache of a client, may know one
			// that was packed here. An object that does not exist is free for any base.
			deleted, err := m.db.Deleted(oid, previous.V)
			if err != nil {
				return 0, 0, err
			}
			previous.OK = !deleted
		}
	}
	if previous.OK && previous.V != serial {
		if serial > previous.V {
			return invalid, previous.V, nil
		}
		m.counts.Conflicts++
		return conflict, previous.V, nil
	}
	m.locks[oid] = t.ttid
	return locked, 0, nil
}

// setLockless remembers that the transaction has no real lock on an object.
func (t *transaction) setLockless(oid tid.OID) {
	o := t.ops[oid]
	if o == nil {
		o = &op{}
		t.ops[oid] = o
	}
	o.lockless = true
}

// Store processes an AskStoreObject, whose payload the caller has verified.
func (m *Manager) Store(r Request, client proto.NodeID, p *proto.AskStoreObject) error {
	if m.forgotten[p.TTID] != 0 {
		m.answer(r, &proto.AnswerStoreObject{Conflict: proto.Some(tid.Zero)})
		return nil
	}
	if m.register(r, client, p.TTID) == nil {
		return nil
	}
	return m.start(&write{p.TTID, r, p.OID, p})
}

// Check processes an AskCheckCurrentSerial.
func (m *Manager) Check(r Request, client proto.NodeID, p *proto.AskCheckCurrentSerial) error {
	if m.forgotten[p.TTID] != 0 {
		m.answer(r, &proto.AnswerCheckCurrentSerial{Conflict: proto.Some(tid.Zero)})
		return nil
	}
	if m.register(r, client, p.TTID) == nil {
		return nil
	}
	return m.start(&write{p.TTID, r, p.OID, p})
}

// Relock processes an AskRelockObject: the lock goes to the older transaction
// that waits for it, and is taken again after.
func (m *Manager) Relock(r Request, client proto.NodeID, p *proto.AskRelockObject) error {
	t := m.txns[p.TTID]
	if t == nil || t.ops[p.OID] == nil {
		m.answer(r, &proto.AnswerRelockObject{})
		return nil
	}
	o := t.ops[p.OID]
	switch {
	case t.client != client:
		m.refuse(r, "transaction %v belongs to %v", p.TTID, t.client)
		return nil
	case t.voted:
		m.refuse(r, "transaction %v is already voted", p.TTID)
		return nil
	case o.lockless:
		m.refuse(r, "transaction %v has no lock on %v", p.TTID, p.OID)
		return nil
	}
	o.deadlock = false // it may be told again
	if m.locks[p.OID] == p.TTID {
		delete(m.locks, p.OID)
		if err := m.runWrites(); err != nil {
			return err
		}
	}
	return m.start(&write{p.TTID, r, p.OID, p})
}

// start tries a request for the first time.
func (m *Manager) start(w *write) error {
	wait, err := m.try(w)
	if !wait || err != nil {
		return err
	}
	m.counts.Waits++
	i, _ := slices.BinarySearchFunc(m.writes, w.ttid, func(q *write, t tid.TID) int {
		if q.ttid <= t {
			return -1 // after those of the same transaction
		}
		return 1
	})
	m.writes = slices.Insert(m.writes, i, w)
	m.txns[w.ttid].queued++
	return nil
}

// Prepared ends the wait for the last revision of an object: the database knows it, or
// could not learn it. Then the requests are taken without check: without another replica
// that checks them their clients do not vote.
func (m *Manager) Prepared(oid tid.OID, known bool) error {
	delete(m.asked, oid)
	m.unknown = proto.Opt[tid.OID]{V: oid, OK: !known}
	defer func() { m.unknown = proto.Opt[tid.OID]{} }()
	if err := m.announceReplicated(); err != nil { // a lock without check may wait for it, too
		return err
	}
	return m.retry(func(w *write) bool { return w.oid == oid })
}

// runWrites retries the requests that wait, in order. Called from inside, it
// lets the run in progress start again.
func (m *Manager) runWrites() error { return m.retry(func(*write) bool { return true }) }

// retry is runWrites for some of the requests, as long as none of them releases a lock.
func (m *Manager) retry(which func(*write) bool) error {
	if m.running {
		m.again = true
		return nil
	}
	m.running = true
	defer func() { m.running = false }()
	for i := 0; i < len(m.writes); {
		w := m.writes[i]
		if !which(w) {
			i++
			continue
		}
		wait, err := m.try(w)
		switch {
		case err != nil:
			return err
		case wait:
			i++
		default:
			m.writes = slices.Delete(m.writes, i, i+1)
			if t := m.txns[w.ttid]; t != nil {
				t.queued--
			}
		}
		if m.again {
			m.again, i, which = false, 0, func(*write) bool { return true }
		}
	}
	return nil
}

// try answers a request unless it must wait.
func (m *Manager) try(w *write) (wait bool, err error) {
	t := m.txns[w.ttid]
	switch p := w.packet.(type) {
	case *proto.AskStoreObject:
		if t == nil { // aborted meanwhile
			m.answer(w.req, &proto.AnswerStoreObject{Conflict: proto.Some(tid.Zero)})
			return false, nil
		}
		return m.store(t, w.req, p)
	case *proto.AskCheckCurrentSerial:
		if t == nil {
			m.answer(w.req, &proto.AnswerCheckCurrentSerial{Conflict: proto.Some(tid.Zero)})
			return false, nil
		}
		return m.check(t, w.req, p)
	case *proto.AskRelockObject:
		return m.relock(t, w.req, p)
	}
	panic("pending: unknown write request") // only those three are queued
}

func (m *Manager) store(t *transaction, r Request, p *proto.AskStoreObject) (wait bool, err error) {
	result, previous, err := m.lock(t, p.Serial, p.OID)
	if err != nil {
		return false, err
	}
	var answer proto.Opt[tid.TID]
	switch result {
	case delayed:
		return true, nil
	case invalid:
		m.refuse(r, "object %v was never at %v, only at %v", p.OID, p.Serial, previous)
		return false, nil
	case conflict:
		m.answer(r, &proto.AnswerStoreObject{Conflict: proto.Some(previous)})
		return false, nil
	case unreadable:
		m.answer(r, &proto.AnswerStoreObject{Conflict: proto.Some(tid.Zero)})
		return false, nil
	case lockless:
		answer = proto.Some(tid.Zero)
	}
	// Only now: releasing earlier would lose the data if the request had to wait.
	o := t.ops[p.OID]
	if o != nil && o.stored {
		if err := m.release([]backend.DataID{o.store.Data}); err != nil {
			return false, err
		}
	}
	if o == nil {
		o = &op{}
		t.ops[p.OID] = o
	}
	o.serial, o.stored = p.Serial, false
	shared := p.DataSerial
	if m.Incomplete(m.partition(p.OID)) && p.Checksum != proto.ZeroHash {
		// What is here of that revision may be wrong: the cell may be under repair.
		shared = proto.Opt[tid.TID]{}
	}
	id, err := m.db.HoldData(p.OID, p.ObjectData, shared)
	switch {
	case errors.Is(err, backend.ErrUndoPacked):
		m.answer(r, proto.Errorf(proto.UndoPackError, "object %v at %v", p.OID, p.DataSerial.V))
		return false, nil
	case errors.Is(err, backend.ErrNotImplemented):
		m.answer(r, proto.Errorf(proto.BackendNotImplemented, "store"))
		return false, nil
	case err != nil:
		return false, err
	}
	o.stored, o.store = true, backend.Store{OID: p.OID, Data: id, DataSerial: p.DataSerial.V}
	m.answer(r, &proto.AnswerStoreObject{Conflict: answer})
	return false, nil
}

func (m *Manager) check(t *transaction, r Request, p *proto.AskCheckCurrentSerial) (wait bool, err error) {
	if o := t.ops[p.OID]; o != nil {
		m.refuse(r, "transaction %v already uses %v", p.TTID, p.OID)
		return false, nil
	}
	result, previous, err := m.lock(t, p.Serial, p.OID)
	if err != nil {
		return false, err
	}
	var answer proto.Opt[tid.TID]
	switch result {
	case delayed:
		return true, nil
	case invalid:
		m.refuse(r, "object %v was never at %v, only at %v", p.OID, p.Serial, previous)
		return false, nil
	case conflict:
		m.answer(r, &proto.AnswerCheckCurrentSerial{Conflict: proto.Some(previous)})
		return false, nil
	case unreadable:
		m.answer(r, &proto.AnswerCheckCurrentSerial{Conflict: proto.Some(tid.Zero)})
		return false, nil
	case lockless:
		answer = proto.Some(tid.Zero)
	}
	o := t.ops[p.OID]
	if o == nil {
		o = &op{}
		t.ops[p.OID] = o
	}
	o.serial = p.Serial
	m.answer(r, &proto.AnswerCheckCurrentSerial{Conflict: answer})
	return false, nil
}

func (m *Manager) relock(t *transaction, r Request, p *proto.AskRelockObject) (wait bool, err error) {
	if t == nil || t.ops[p.OID] == nil {
		m.answer(r, &proto.AnswerRelockObject{})
		return false, nil
	}
	serial := t.ops[p.OID].serial
	result, previous, err := m.lock(t, serial, p.OID)
	if err != nil {
		return false, err
	}
	switch result {
	case delayed:
		return true, nil
	case conflict, invalid:
		// The client may have dropped the data from memory: it is moved back.
		data, err := m.unstore(t, p.OID)
		if err != nil {
			return false, err
		}
		m.answer(r, &proto.AnswerRelockObject{Conflict: &proto.RelockConflict{Serial: serial, Conflict: previous, Data: data}})
	default:
		m.answer(r, &proto.AnswerRelockObject{})
	}
	return false, nil
}

// unstore forgets what a transaction does with an object, and returns the data
// it stored.
func (m *Manager) unstore(t *transaction, oid tid.OID) (*proto.ObjectData, error) {
	o := t.ops[oid]
	delete(t.ops, oid)
	if !o.stored || !o.store.Data.OK {
		return nil, nil
	}
	d, err := m.db.LoadData(o.store.Data)
	if err != nil {
		return nil, err
	}
	return &d, m.release([]backend.DataID{o.store.Data})
}

// release ends the protection of data that nobody needs any more.
func (m *Manager) release(ids []backend.DataID) error {
	ids = slices.DeleteFunc(ids, func(id backend.DataID) bool { return !id.OK })
	if len(ids) == 0 {
		return nil
	}
	m.dirty = true
	return m.db.ReleaseData(ids, true)
}
