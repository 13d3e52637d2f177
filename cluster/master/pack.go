package master

import (
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

type packOrder = proto.PackOrder

// packs are the pack orders that are not completed everywhere. Orders are
// executed in the order of their ids, so one that is not signed blocks the newer
// ones. The storages keep them; this is what a recovery forgets.
type packs struct {
	orders    map[tid.TID]*packOrder
	completed proto.Opt[tid.TID] // everything up to this order is done, and forgotten here
	waiters   []packWaiter
	queries   []*packQuery
}

type packWaiter struct {
	asker
	id tid.TID
}

// packQuery is a question about orders that are forgotten here: storages that
// together have all partitions must be asked.
type packQuery struct {
	asker
	min     tid.TID
	asked   []*peer
	covered []bool // partitions of storages asked
}

func (k *packs) reset() { *k = packs{orders: map[tid.TID]*packOrder{}} }

func (k *packs) ids() []tid.TID { return slices.Sorted(maps.Keys(k.orders)) }

// add registers orders known to storages.
func (k *packs) add(orders []packOrder) {
	for _, o := range orders {
		if old := k.orders[o.ID]; old == nil || !old.Approved.OK {
			k.orders[o.ID] = &o
		}
	}
}

// order returns the order of a transaction that is prepared. It is approved at once
// unless an older one is not signed. It is told when it is committed: until then the
// transaction may be lost, and a pack cannot be undone.
func (k *packs) order(id tid.TID, r *proto.PackRequest) *packOrder {
	o := &packOrder{ID: id, Partial: len(r.OIDs) > 0, OIDs: r.OIDs, Time: r.Time, Approved: proto.Some(true)}
	for _, older := range k.orders {
		if !older.Approved.OK {
			o.Approved = proto.Opt[bool]{}
		}
	}
	return o
}

// signed returns the decisions that a storage which becomes ready may have
// missed, nil if there are none.
func (k *packs) signed() *proto.NotifyPackSigned {
	var pkt proto.NotifyPackSigned
	if k.completed.OK {
		pkt.Approved = append(pkt.Approved, k.completed.V)
	}
	for _, id := range k.ids() {
		if o := k.orders[id]; o.Approved.OK && o.Approved.V {
			pkt.Approved = append(pkt.Approved, id)
		} else if o.Approved.OK {
			pkt.Rejected = append(pkt.Rejected, id)
		}
	}
	if pkt.Approved == nil && pkt.Rejected == nil {
		return nil
	}
	return &pkt
}

// approvedAfter reports whether an order after t may have been executed.
func (k *packs) approvedAfter(t tid.TID) bool {
	if k.completed.OK && k.completed.V > t {
		return true
	}
	for id, o := range k.orders {
		if id > t && o.Approved == proto.Some(true) {
			return true
		}
	}
	return false
}

func (k *packs) clientLost(p *peer) {
	k.waiters = slices.DeleteFunc(k.waiters, func(w packWaiter) bool { return w.peer == p })
	k.queries = slices.DeleteFunc(k.queries, func(q *packQuery) bool { return q.peer == p })
}

// packCommitted registers the order of a transaction, and announces it if it was approved
// when it was prepared.
func (m *Machine) packCommitted(o *packOrder) {
	m.pack.orders[o.ID] = o
	if o.Approved != proto.Some(true) {
		return
	}
	pkt := &proto.NotifyPackSigned{Approved: []tid.TID{o.ID}}
	for _, p := range m.members {
		if p.ready > 0 || p.node.Type == proto.Client && p.backups != nil {
			m.notify(p, pkt)
		}
	}
}

// firstPackNeeded returns the id from which the storages must be asked for
// orders: what all those that reported have done is not needed.
func (m *Machine) firstPackNeeded() tid.TID {
	if done := m.packDone(); done.OK {
		return done.V + 1
	}
	return tid.Zero
}

// packDone returns the order that every storage with readable cells, among
// those that reported, has executed.
func (m *Machine) packDone() proto.Opt[tid.TID] {
	var done proto.Opt[tid.TID]
	for _, p := range m.readableStores() {
		if p.completed.OK && (!done.OK || p.completed.V < done.V) {
			done = p.completed
		}
	}
	return done
}

func (m *Machine) packCompleted(p *peer, id tid.TID) {
	if id > tid.Max {
		return
	}
	p.completed = proto.Some(id)
	if m.service() {
		m.updatePacks()
		m.tellPacks()
	}
}

// updatePacks forgets the orders that are completed everywhere, except those that a
// question under way is going to be answered with, and answers those who wait for them.
func (m *Machine) updatePacks() {
	k := &m.pack
	done := m.packDone()
	if !done.OK {
		return
	}
	for id := range k.orders {
		if id <= done.V && !slices.ContainsFunc(k.queries, func(q *packQuery) bool { return id >= q.min }) {
			delete(k.orders, id)
		}
	}
	if !k.completed.OK || k.completed.V < done.V {
		k.completed = done
	}
	k.waiters = slices.DeleteFunc(k.waiters, func(w packWaiter) bool {
		if k.orders[w.id] != nil {
			return false
		}
		m.answer(w.peer, w.asker.id, &proto.WaitedForPack{})
		return true
	})
}

func (m *Machine) waitForPack(p *peer, id uint32, order tid.TID) {
	if m.pack.orders[order] == nil {
		m.answer(p, id, &proto.WaitedForPack{})
		return
	}
	m.pack.waiters = append(m.pack.waiters, packWaiter{asker{p, id}, order})
}

// packOrdersAsked answers a storage with the next order to execute, and a client
// (the master of a backup cluster) with all of them.
func (m *Machine) packOrdersAsked(p *peer, id uint32, from tid.TID) {
	if !m.pack.completed.OK || from > m.pack.completed.V {
		m.answerPackOrders(p, id, from)
		return
	}
	q := &packQuery{asker: asker{p, id}, min: from, covered: make([]bool, m.table.NP())}
	m.pack.queries = append(m.pack.queries, q)
	m.continueQuery(q)
}

func (m *Machine) answerPackOrders(p *peer, id uint32, from tid.TID) {
	var orders []packOrder
	for _, k := range m.pack.ids() {
		o := m.pack.orders[k]
		if k < from || p.node.Type == proto.Storage && o.Approved != proto.Some(true) {
			continue
		}
		orders = append(orders, *o)
		if p.node.Type == proto.Storage {
			break
		}
	}
	m.answer(p, id, &proto.AnswerPackOrders{Orders: orders})
}

// continueQuery asks storages until every partition is covered, and answers
// once all of them have.
func (m *Machine) continueQuery(q *packQuery) {
	for n, done := range q.covered {
		if done {
			continue
		}
		for _, c := range m.table.Row(n) {
			if s := m.stores[c.ID]; c.State.Readable() && s != nil && s.ready > 0 && !slices.Contains(q.asked, s) {
				q.asked = append(q.asked, s)
				m.cover(q, s)
				m.ask(s, &proto.AskPackOrders{Min: q.min})
				break
			}
		}
	}
	if len(q.asked) > 0 {
		return
	}
	m.pack.queries = slices.DeleteFunc(m.pack.queries, func(o *packQuery) bool { return o == q })
	if m.pack.completed.OK && q.min <= m.pack.completed.V {
		m.pack.completed = proto.Opt[tid.TID]{}
		if q.min > tid.Zero {
			m.pack.completed = proto.Some(q.min - 1)
		}
	}
	m.answerPackOrders(q.peer, q.id, q.min)
	m.updatePacks()
}

func (m *Machine) cover(q *packQuery, s *peer) {
	for n, row := range m.table.Rows() {
		for _, c := range row {
			if c.ID == s.node.ID && c.State.Readable() {
				q.covered[n] = true
			}
		}
	}
}

// packOrdersAnswered merges what a storage knows.
func (m *Machine) packOrdersAnswered(p *peer, pkt proto.Packet) {
	answer, _ := pkt.(*proto.AnswerPackOrders)
	for _, q := range slices.Clone(m.pack.queries) {
		if i := slices.Index(q.asked, p); i >= 0 {
			if answer != nil {
				m.pack.add(answer.Orders)
			}
			if q.asked = slices.Delete(q.asked, i, i+1); len(q.asked) == 0 {
				m.continueQuery(q)
			}
		}
	}
}

// packStorageLost asks others what a lost storage was asked, and forgets what
// it asked and how far it had packed.
func (m *Machine) packStorageLost(p *peer) {
	m.pack.queries = slices.DeleteFunc(m.pack.queries, func(q *packQuery) bool { return q.peer == p })
	for _, q := range slices.Clone(m.pack.queries) {
		if i := slices.Index(q.asked, p); i >= 0 {
			q.asked = slices.Delete(q.asked, i, i+1)
			for n := range q.covered {
				q.covered[n] = false
			}
			for _, s := range q.asked {
				m.cover(q, s)
			}
			m.continueQuery(q)
		}
	}
	m.updatePacks()
}
