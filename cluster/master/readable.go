package master

import (
	"log/slog"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// What a backup cluster may show, keep, and pack. A pack of the upstream cluster removes
// history that a storage has not fetched yet: when it has fetched on, it is complete from the
// order on, but lacks something between. See Stored in package following.

// outOfGaps lowers a TID until no storage with readable cells lacks something there.
func (m *Machine) outOfGaps(t tid.TID) tid.TID {
	for lowered := true; lowered; {
		lowered = false
		for _, id := range m.table.ReadableNodes() {
			if p := m.stores[id]; p != nil && p.stored.V.Gap[0] < t && t < p.stored.V.Gap[1] {
				t, lowered = p.stored.V.Gap[0], true
			}
		}
	}
	return t
}

// beyondGaps raises a TID until no storage with readable cells lacks something there.
func (m *Machine) beyondGaps(t tid.TID) tid.TID {
	for raised := true; raised; {
		raised = false
		for _, id := range m.table.ReadableNodes() {
			if p := m.stores[id]; p != nil && p.stored.V.Gap[0] < t && t < p.stored.V.Gap[1] {
				t, raised = p.stored.V.Gap[1], true
			}
		}
	}
	return t
}

// keepable returns up to which transaction the database would be kept if the cluster left
// backup mode now.
func (m *Machine) keepable() tid.TID { return m.outOfGaps(m.reached(true)) }

// lateFrom is keepable, as it is shown: up to the moment before the first transaction that
// is lacking. Else a backup of a cluster that was idle for a day would be a day late
// while it fetches one transaction.
func (m *Machine) lateFrom() tid.TID {
	return m.outOfGaps(m.reachedBy(true, func(r *reach) tid.TID { return max(r.backup, m.upToHold(r.free)) }))
}

// advanceTold lets clients see what all readable cells have. What they were told
// once stays, so it waits for cells that are about to become readable.
func (m *Machine) advanceTold() {
	f := &m.follow
	if m.state != proto.StartingBackup && m.state != proto.BackingUp || !f.moved || len(f.chasing) > 0 {
		return
	}
	for _, id := range m.table.ReadableNodes() {
		if p := m.stores[id]; p == nil || p.ready == 0 || p.follows && !p.stored.OK {
			return
		}
	}
	f.moved = false
	if t := m.outOfGaps(m.reached(false)); !f.told.OK || t > f.told.V {
		f.told = proto.Some(t)
		m.gate.reports.changed = true
		m.allowPacks()
	}
}

// maxHidden is how long clients wait at most for what they may have seen before a start.
const maxHidden = 10 * time.Second

// goesBack reports whether clients might be shown less than before the cluster was started. A
// cell that nothing touches is told how far it is, and may forget it when its storage or the
// master is killed, until the upstream cluster has told it again. What clients saw last
// is a transaction, and its own cells still have it. They wait for that unless
// it cannot come now.
func (m *Machine) goesBack() bool {
	f := &m.follow
	return f.told.V < f.before && !m.gate.hold.OK && m.open() && m.now.Sub(f.since) < maxHidden
}

// recorded takes what a storage has recorded of how far it follows.
func (m *Machine) recorded(p *peer, s following.Stored) {
	if p.node.Type != proto.Storage || !m.inBackup() {
		return
	}
	p.stored, m.follow.moved = proto.Some(s), true
	if m.state == proto.StoppingBackup {
		m.lowerKept()
	}
	m.allowPacks()
}

// lowerKept accepts that less can be kept than when the cluster began to leave backup mode.
func (m *Machine) lowerKept() {
	t := m.outOfGaps(min(m.backup.V, m.reached(true)))
	if t >= m.backup.V {
		return
	}
	if t == tid.Zero {
		m.log(slog.LevelError, "leaving backup mode: nothing that is complete is left; the lost storages are needed")
		return
	}
	m.log(slog.LevelWarn, "leaving backup mode: what only lost storages had is given up", "tid", t.String(), "planned", m.backup.V.String())
	m.backup = proto.Some(t)
}

// allowPacks lets storages execute the orders that every cell of the cluster is beyond, as
// it is recorded: whatever is lost now, the cluster is not left at a time before them.
//
// A storage also learns from it that its gap is behind the cluster, and does not join it with the
// next one. After a start that is found again from what is recorded, since the order at which the
// gap ends may be executed and forgotten: the joined gap would begin before packs that were executed.
func (m *Machine) allowPacks() {
	if m.state != proto.BackingUp && m.state != proto.StartingBackup {
		return
	}
	upTo := m.follow.told.V
	for _, id := range m.table.ReadableNodes() {
		p := m.stores[id]
		if p == nil || p.ready == 0 {
			return
		}
		if p.follows {
			upTo = min(upTo, p.stored.V.TID)
		}
	}
	upTo = m.outOfGaps(upTo) // there the cluster would be left
	allowed := m.follow.allowed
	for _, id := range m.table.ReadableNodes() {
		if end := m.stores[id].stored.V.Gap[1]; end <= upTo {
			allowed = max(allowed, end)
		}
	}
	for id, o := range m.pack.orders {
		if o.Approved == proto.Some(true) && id <= upTo {
			allowed = max(allowed, id)
		}
	}
	if allowed == m.follow.allowed {
		return
	}
	m.follow.allowed = allowed
	m.log(slog.LevelInfo, "packs may be executed: the backup is beyond them", "order", allowed.String())
	for _, p := range m.ofType(proto.Storage) {
		if p.ready > 0 {
			m.tellTerms(p)
		}
	}
}

// packQuestions are the questions for pack orders that the upstream cluster is asked, or will
// be when its orders are known: those of storages, and our own, whose asker is nil.
type packQuestions struct {
	waiting []packQuestion
	sent    []packQuestion // in the order in which they are answered
	known   tid.TID        // greatest order that upstream has told
}

type packQuestion struct {
	asker
	min tid.TID
}

// askUpstreamPacks takes the question of a storage for orders. The answer must
// tell of every pack that a storage upstream can have begun before the question: the master
// upstream tells of an order before any storage begins.
func (m *Machine) askUpstreamPacks(p *peer, id uint32, from tid.TID) {
	q := packQuestion{asker{p, id}, from}
	if !m.up.packs {
		m.up.questions.waiting = append(m.up.questions.waiting, q)
		return
	}
	m.askPacks(max(m.up.questions.known, m.backup.V)+1, q)
}

func (m *Machine) askPacks(from tid.TID, q packQuestion) {
	m.up.questions.sent = append(m.up.questions.sent, q)
	m.ask(m.up.link, &proto.AskPackOrders{Min: from})
}

// upstreamPacks takes the orders that upstream tells, and answers the storage that asked.
// A Python master also tells of orders that are not committed yet, and may be lost with
// it. These do not count: no storage has begun them, and they are told when they are committed.
func (m *Machine) upstreamPacks(orders []proto.PackOrder) {
	orders = slices.DeleteFunc(orders, func(o proto.PackOrder) bool { return o.ID > m.ids.committed })
	q := &m.up.questions
	m.pack.add(orders)
	for _, o := range orders {
		q.known = max(q.known, o.ID)
	}
	if len(orders) > 0 {
		m.relaySigned()
		m.allowPacks()
	}
	if len(q.sent) > 0 {
		answered := q.sent[0]
		q.sent = slices.Delete(q.sent, 0, 1)
		m.answerPackQuestion(answered)
	}
	if !m.up.packs {
		m.up.packs = true
		waiting := q.waiting
		q.waiting = nil
		for _, w := range waiting {
			m.askUpstreamPacks(w.peer, w.id, w.min)
		}
	}
}

// answerPackQuestion answers a storage from what is known here.
func (m *Machine) answerPackQuestion(q packQuestion) {
	if q.peer != nil && !q.peer.gone {
		m.packOrdersAsked(q.peer, q.id, q.min)
	}
}

// chase has a cell that was out of date, and would be readable now, catch up with what
// clients were told: the furthest readable cell has it.
func (m *Machine) chase(n int, p *peer) {
	f, k := &m.follow, repairCell{n, p.node.ID}
	best := m.furthest(n)
	if best == nil {
		delete(f.chasing, k)
		return
	}
	f.chasing[k] = best.node.ID
	m.notify(p, &proto.Replicate{TID: f.cell(n, best.node.ID).backup, Sources: map[int]proto.Address{n: best.node.Addr}})
}

// furthest returns the ready storage whose readable cell of a partition is the furthest.
func (m *Machine) furthest(n int) *peer {
	var best *peer
	for _, p := range m.readyCells(n) {
		if best == nil || m.follow.cell(n, p.node.ID).backup > m.follow.cell(n, best.node.ID).backup {
			best = p
		}
	}
	return best
}

// followMessage takes what a node says of a backup cluster. It reports whether the packet
// was about that.
func (m *Machine) followMessage(p *peer, pkt *proto.NotifyMonitorInformation) bool {
	msg, ok, err := following.Parse(pkt)
	if !ok {
		return false
	}
	switch {
	case err != nil:
		m.log(slog.LevelWarn, "message not understood", "node", p.String(), "err", err)
	case msg.Topic == following.Recorded:
		m.recorded(p, msg.Stored)
	case msg.Topic == following.Ordered && p.node.Type == proto.Admin:
		m.backupOrdered(p, msg)
	default:
		m.log(slog.LevelWarn, "unexpected message about a backup cluster", "node", p.String(), "topic", msg.Topic)
	}
	return true
}
