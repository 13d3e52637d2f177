package master

import (
	"log/slog"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// become changes the state of the cluster and tells every member.
func (m *Machine) become(s proto.ClusterState) {
	m.state = s
	if s != proto.Recovering && m.unheard != nil {
		clear(m.unheard)
		m.announcePrimary()
	}
	m.newEpoch()
	m.log(slog.LevelInfo, "cluster state", "state", s.String())
	pkt := &proto.NotifyClusterInformation{State: s}
	for _, p := range m.members {
		m.notify(p, pkt)
	}
}

// newEpoch makes the answers to earlier questions meaningless.
func (m *Machine) newEpoch() {
	m.epochs++
	m.epoch = m.epochs
}

// enterRecovery starts over with what the storages know. The table in memory is
// forgotten: it could be newer than any on disk.
func (m *Machine) enterRecovery() {
	m.reset()
	m.table.Reset(m.set.Partitions, m.set.Replicas)
	m.backup, m.truncate = proto.Opt[tid.TID]{}, proto.Opt[tid.TID]{}
	m.rec = newRecovery()
	m.counts.recoveries++
	m.become(proto.Recovering)
	for _, p := range m.ofType(proto.Storage) {
		p.lastAsked, p.completed, p.reported = false, proto.Opt[tid.TID]{}, 0
		m.ask(p, &proto.AskRecovery{})
	}
}

// reset forgets what belongs to an operation that is over.
func (m *Machine) reset() {
	m.checksLost("the operation of the cluster was stopped")
	m.closeUpstream()
	m.up.questions = packQuestions{}
	m.follow.reset()
	m.gate.reset()
	m.counts.aborted += m.txns.unprepared()
	m.txns.reset()
	m.pack.reset()
	m.ids.reset()
	m.confirming = confirming{}
	m.fed = nil
	m.starting = 0
	for _, p := range m.stores {
		p.starting, p.ready = false, 0
		p.stored = proto.Opt[following.Stored]{} // it is told again, after what it is ahead of that
	}
}

// enterService starts the operation on every storage that takes part.
func (m *Machine) enterService() {
	m.become(proto.Running)
	m.served = true
	for _, p := range m.ofType(proto.Storage) {
		if p.node.State == proto.NodeRunning {
			m.startStorage(p)
		}
	}
}

// startStorage makes a storage operational. It is first asked for its last ids
// if it was not since the recovery, only because this makes it carry out an old
// order to truncate, which must not survive in a storage that is going to be
// replicated: the next recovery might apply it to the whole cluster.
func (m *Machine) startStorage(p *peer) {
	if !p.lastAsked {
		p.lastAsked = true
		m.ask(p, &proto.AskLastIDs{})
	}
	p.stored = proto.Opt[following.Stored]{}
	if m.backup.OK {
		m.tellTerms(p)
	}
	m.notify(p, &proto.StartOperation{Backup: m.backup.OK})
	p.fresh = false
	if !p.starting {
		p.starting = true
		m.starting++
	}
}

// stopOperation goes back to recovery, because part of the database is out of
// reach or because it must be cut after a TID.
func (m *Machine) stopOperation(truncate proto.Opt[tid.TID]) {
	if m.state == proto.Stopping {
		m.shutdown()
		return
	}
	if m.state == proto.Recovering {
		return
	}
	m.log(slog.LevelWarn, "operation stops", "state", m.state.String())
	switch {
	case m.truncate.OK || truncate.OK:
		m.startup = startupWhole
	case m.deciding(): // the operation has not begun: as before
	case !m.settled(): // a storage that is away may have a table with which others can start
		m.startup = startupWhole
	default:
		m.startup = startupDegraded
	}
	if truncate.OK {
		m.orderedTruncate = truncate
		m.ids.known = truncate.V
		m.seen.forget()
	}
	// Without transactions, the loss of clients below has no consequence.
	m.reset()
	// From here on, the loss of a member must not stop the operation again.
	m.state = proto.Recovering
	m.rec = newRecovery()
	m.final = m.table.Clone()
	if truncate.OK || m.truncate.OK {
		m.final = nil
	}
	m.witnesses = m.readableStores()
	m.witnessLost(nil)
	clients := m.ofType(proto.Client)
	storages := m.ofType(proto.Storage)
	for _, p := range storages {
		m.notify(p, &proto.StopOperation{})
	}
	for _, p := range clients {
		m.notify(p, &proto.StopOperation{})
		m.abort(p)
	}
	var pending []*proto.Node
	for _, p := range storages {
		if truncate.OK {
			m.notify(p, &proto.Truncate{TID: truncate.V})
		}
		if p.node.State == proto.NodeRunning {
			p.node.State = proto.NodePending
			pending = append(pending, p.node)
		}
	}
	m.broadcastNodes(pending...)
	m.enterRecovery()
	m.elect()
}

// stop begins an orderly end of the cluster: pending transactions are awaited,
// new ones are held.
func (m *Machine) stop() {
	if m.state == proto.Stopping {
		return
	}
	m.state = proto.Stopping
	m.log(slog.LevelInfo, "cluster state", "state", m.state.String())
	for _, p := range m.members {
		m.notify(p, &proto.NotifyClusterInformation{State: proto.Stopping})
	}
	m.stopIfIdle()
}

// stopIfIdle ends the master once the last transaction has ended.
func (m *Machine) stopIfIdle() {
	if m.state == proto.Stopping && len(m.txns.pending) == 0 && !m.confirmLast() {
		m.shutdown()
	}
}

// shutdown tells the storages to stop and ends. The master goes first, so that
// no cell becomes outdated by the departure of a storage.
func (m *Machine) shutdown() {
	if m.ended {
		return
	}
	m.out = append(m.out, Effect{Op: StopListening})
	for _, p := range m.ofType(proto.Storage) {
		down := *p.node
		down.State = proto.NodeDown
		m.notify(p, &proto.NotifyNodeInformation{Timestamp: m.monotonic(), Nodes: []proto.Node{down}})
	}
	for _, p := range m.allPeers() {
		m.out = append(m.out, Effect{Op: Abort, Conn: p.conn})
		m.forget(p)
	}
	m.exit(nil)
}

// flushLog completes the logs of this node, and of all others when a member asks.
func (m *Machine) flushLog(from *peer) {
	m.out = append(m.out, Effect{Op: FlushLogs})
	if from.role != member {
		return
	}
	for _, p := range m.members {
		// Of an upstream cluster, only the master of a backup is told.
		if p != from {
			m.notify(p, &proto.FlushLog{})
		}
	}
}
