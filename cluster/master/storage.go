package master

import (
	"log/slog"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// storagePacket handles what a storage sends on its own account. Notifications
// that come late, after a change of state, are ignored.
func (m *Machine) storagePacket(p *peer, id uint32, pkt proto.Packet) {
	switch pkt := pkt.(type) {
	case *proto.NotifyReady:
		m.storageReady(p)
	case *proto.NotifyPackCompleted:
		if m.state != proto.Recovering {
			m.packCompleted(p, pkt.ID)
		}
	case *proto.NotifyReplicationDone:
		m.replicationDone(p, pkt)
	case *proto.NotifyPartitionCorrupted:
		m.log(slog.LevelError, "replicas differ", "node", p.String(), "partition", pkt.Partition, "nodes", idTexts(pkt.IDs))
		m.corrupted(p, pkt)
	case *proto.NotifyMonitorInformation:
		if m.partingMessage(p, pkt) {
			return
		}
		if !m.importMessage(p, pkt) && !m.followMessage(p, pkt) && !m.vitalsMessage(p, pkt) {
			m.checkReported(p, pkt)
		}
	case *proto.AskUnfinishedTransactions:
		m.unfinished(p, id, pkt)
	case *proto.AskPackOrders:
		switch {
		case m.state == proto.BackingUp:
			m.askUpstreamPacks(p, id, pkt.Min)
		case m.service():
			m.packOrdersAsked(p, id, pkt.Min)
		default:
			m.refuseAs(proto.NotReady, p, id, pkt, "the cluster is %v", m.state)
		}
	default:
		m.unexpected(p, id, pkt)
	}
}

func idTexts(ids []proto.NodeID) []string {
	var list []string
	for _, id := range ids {
		list = append(list, id.String())
	}
	return list
}

// storageReady notes that a storage is operational: from now on, transactions
// that begin are written to it in full.
func (m *Machine) storageReady(p *peer) {
	if !p.starting {
		return
	}
	p.starting = false
	m.starting--
	m.counter++
	p.ready = m.counter
	if signed := m.pack.signed(); signed != nil {
		m.notify(p, signed)
	}
	m.retry()
	if m.starting == 0 {
		m.confirmTable()
	}
}

// replicationDone makes a cell readable after its replication.
func (m *Machine) replicationDone(p *peer, pkt *proto.NotifyReplicationDone) {
	if !m.service() {
		return
	}
	if m.inBackup() {
		m.backedUp(p, pkt)
		return
	}
	changes, err := m.table.SetUpToDate(p.node.ID, pkt.Partition)
	if err != nil {
		// A tweak or a drop has crossed the message.
		m.log(slog.LevelInfo, "late replication", "node", p.String(), "err", err)
		return
	}
	switch {
	case len(changes) == 0:
		return
	case m.settled():
		changes = append(changes, m.table.DiscardFed(pkt.Partition)...)
	default:
		m.fed = append(m.fed, pkt.Partition)
	}
	m.broadcastCells(changes)
}

// unfinished tells a storage that replicates which transactions it must wait
// for, because it did not get them from their begin on.
func (m *Machine) unfinished(p *peer, id uint32, pkt *proto.AskUnfinishedTransactions) {
	if !m.service() {
		m.refuseAs(proto.NotReady, p, id, pkt, "the cluster is %v", m.state)
		return
	}
	if slices.ContainsFunc(pkt.Partitions, func(n int) bool { return n < 0 || n >= m.table.NP() }) {
		m.refuse(p, id, pkt, "a partition is not one of %d", m.table.NP())
		return
	}
	ttids := m.txns.ttids()
	for _, ttid := range ttids {
		if t := m.txns.pending[ttid]; !slices.Contains(t.registered, p) {
			t.registered = append(t.registered, p)
		}
	}
	last := m.ids.committed
	if m.inBackup() {
		last = m.follow.told.V
	}
	m.answer(p, id, &proto.AnswerUnfinishedTransactions{LastTID: last, TTIDs: ttids})
	m.table.SetUpdatable(p.node.ID, pkt.Partitions)
}

// storageLost handles the end of the link to a storage. The order matters: what
// it could still hold alone is decided on before anything goes on without it.
func (m *Machine) storageLost(p *peer) {
	if p.starting {
		m.starting--
	}
	p.starting, p.ready = false, 0
	m.checkerLost(p)
	m.up.tails.lost(p)
	if m.state == proto.Recovering {
		m.recoveryLost(p)
		return
	}
	n := p.node
	switch {
	case n.State == proto.NodePending && !m.table.HasCells(n.ID):
		m.setState(n, proto.NodeUnknown)
		delete(m.where, n.ID)
	case n.State == proto.NodeDown || n.State == proto.NodeUnknown:
		// It was killed or dropped: all that is already known.
	default:
		m.setState(n, proto.NodeDown)
		if m.truncate.OK || m.undecided(n.ID) {
			// It must be cut as well, or asked: start over with it.
			m.stopOperation(proto.Opt[tid.TID]{})
			return
		}
		if m.table.Operational(m.running) && !m.coveredWithout() {
			m.log(slog.LevelWarn, "a storage is lost that may not know yet that other copies are complete: it is waited for, as another "+
				"master could start with it alone", "node", n.ID.String(), "ptid", m.table.PTID().V)
			m.stopOperation(proto.Opt[tid.TID]{})
			return
		}
		m.broadcastCells(m.table.Outdate(n.ID, m.running))
		if !m.table.Operational(m.running) {
			m.stopOperation(proto.Opt[tid.TID]{})
			return
		}
	}
	m.withoutStorage(p)
}

// withoutStorage goes on without a storage that is no longer needed.
func (m *Machine) withoutStorage(p *peer) {
	m.followerLost(p.node.ID)
	for _, ttid := range m.txns.ttids() {
		t := m.txns.pending[ttid]
		isGone := func(o *peer) bool { return o == p }
		t.waiting = slices.DeleteFunc(t.waiting, isGone)
		t.involved = slices.DeleteFunc(t.involved, isGone)
		t.registered = slices.DeleteFunc(t.registered, isGone)
	}
	m.commitReady()
	m.retry()
	m.confirmAnswered(p)
	if len(m.confirming.waiting) == 0 && !m.settled() {
		m.confirmTable()
	}
	if m.state == proto.Verifying {
		m.verificationLost(p)
		return
	}
	m.packStorageLost(p)
	m.tellerLost(p)
	m.allowPacks()
}
