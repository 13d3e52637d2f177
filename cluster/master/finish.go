package master

import (
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// finish prepares the commit of a transaction: from here on, whatever happens to
// its client, it is committed if its storages survive.
func (m *Machine) finish(p *peer, id uint32, pkt *proto.AskFinishTransaction) {
	t := m.own(p, pkt.TTID)
	switch {
	case t == nil:
		m.refuse(p, id, pkt, "transaction %v is unknown", pkt.TTID)
		return
	case t.prepared:
		m.refuse(p, id, pkt, "transaction %v is already being finished", pkt.TTID)
		return
	}
	if e := m.checkFinish(pkt); e != nil {
		m.refuse(p, id, pkt, "transaction %v: %s", pkt.TTID, e.Message)
		return
	}
	if len(t.failed) > 0 && !m.operationalWithout(t.failed) {
		m.incomplete(t, p, id)
		return
	}
	partitions := m.partitions(t.ttid, pkt)
	if !m.closeFailed(t, partitions) {
		return // the operation has stopped, or the transaction has ended
	}
	involved, ok := m.involve(t, partitions)
	if !ok {
		m.incomplete(t, p, id)
		return
	}
	t.prepared, t.request, t.asked = true, id, m.now
	t.oids, t.deleted = pkt.OIDs, pkt.Deleted
	if !t.imposed {
		t.tid = m.ids.final(m.now, m.txns.queued(), t.ttid, m.table.NP())
		m.txns.queue = append(m.txns.queue, t)
	}
	for _, oid := range pkt.OIDs {
		m.ids.oid = max(m.ids.oid, oid)
	}
	lock := &proto.AskLockInformation{TTID: t.ttid, TID: t.tid}
	if pkt.Pack != nil {
		t.pack = m.pack.order(t.tid, pkt.Pack)
		m.seen.packed = max(m.seen.packed, pkt.Pack.Time)
		lock.PackApproved = t.pack.Approved == proto.Some(true)
	}
	t.involved = involved
	t.waiting = slices.Clone(involved)
	for _, s := range involved {
		m.ask(s, lock)
	}
}

func (m *Machine) checkFinish(pkt *proto.AskFinishTransaction) *proto.Error {
	np := m.table.NP()
	outside := func(n int) bool { return n < 0 || n >= np }
	switch {
	case slices.ContainsFunc(pkt.Deleted, outside) || slices.ContainsFunc(pkt.Checked, outside):
		return proto.Errorf(proto.ProtocolError, "a partition is not one of %d", np)
	case len(pkt.OIDs) >= proto.MaxOIDs || pkt.Pack != nil && len(pkt.Pack.OIDs) >= proto.MaxOIDs:
		return proto.Errorf(proto.ProtocolError, "too many objects")
	case slices.ContainsFunc(pkt.OIDs, func(o tid.OID) bool { return o > tid.MaxOID }):
		return proto.Errorf(proto.ProtocolError, "an object id is above %v", tid.MaxOID)
	case pkt.Pack != nil && (pkt.Pack.Time == tid.Zero || pkt.Pack.Time > m.ids.committed):
		return proto.Errorf(proto.ProtocolError, "cannot pack up to %v", pkt.Pack.Time)
	}
	return nil
}

// incomplete refuses to finish a transaction that no readable copy would hold.
func (m *Machine) incomplete(t *transaction, p *peer, id uint32) {
	m.answerError(p, id, proto.IncompleteTransaction, "transaction %v would be lost", t.ttid)
	var ready []*peer
	for _, s := range m.ofType(proto.Storage) {
		if s.ready > 0 {
			ready = append(ready, s)
		}
	}
	m.discard(t, ready)
	m.transactionsEnded()
}

// partitions returns those that a transaction concerns, each once.
func (m *Machine) partitions(ttid tid.TID, pkt *proto.AskFinishTransaction) []int {
	np := m.table.NP()
	list := make([]int, 0, 1+len(pkt.OIDs)+len(pkt.Deleted)+len(pkt.Checked))
	list = append(list, ttid.Partition(np))
	for _, oid := range pkt.OIDs {
		list = append(list, oid.Partition(np))
	}
	list = append(list, pkt.Deleted...)
	list = append(list, pkt.Checked...)
	slices.Sort(list)
	return slices.Compact(list)
}

// closeFailed ends the links to the storages that the client could not write to,
// so that their cells are outdated, in a table that every storage knows, before
// the transaction is locked: a later verification relies on it. It reports
// whether the transaction can go on.
func (m *Machine) closeFailed(t *transaction, partitions []int) bool {
	if len(t.failed) == 0 {
		return true
	}
	for _, n := range partitions {
		for _, c := range slices.Clone(m.table.Row(n)) {
			if s := m.stores[c.ID]; s != nil && slices.Contains(t.failed, c.ID) {
				m.close(s)
				if !m.service() || m.txns.pending[t.ttid] != t {
					return false
				}
			}
		}
	}
	return true
}

// involve returns the storages that must lock a transaction: outdated cells too,
// as they are written to. It reports whether each partition has a readable copy
// among them.
func (m *Machine) involve(t *transaction, partitions []int) ([]*peer, bool) {
	m.marks++
	involved := make([]*peer, 0, 2)
	for _, n := range partitions {
		readable := false
		for _, c := range m.table.Row(n) {
			s := m.stores[c.ID]
			if s == nil || !m.holdsInFull(s, t) {
				continue
			}
			readable = readable || c.State.Readable()
			if s.mark != m.marks {
				s.mark = m.marks
				involved = append(involved, s)
			}
		}
		if !readable {
			return nil, false
		}
	}
	return involved, true
}
