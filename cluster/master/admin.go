package master

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// adminPacket handles what an operator asks through an admin node.
func (m *Machine) adminPacket(p *peer, id uint32, pkt proto.Packet) {
	if order := orderText(pkt); order != "" {
		// Before it is carried out: that may be the end of this master.
		m.log(slog.LevelInfo, "operator orders", "order", order, "node", p.String())
	}
	var denied *proto.Error
	switch pkt := pkt.(type) {
	case *proto.SetClusterState:
		denied = m.setClusterState(p, id, pkt.State)
	case *proto.SetNodeState:
		denied = m.setNodeState(p, id, pkt)
	case *proto.AddPendingNodes:
		denied = m.addPending(p, id, pkt.IDs)
	case *proto.TweakPartitionTable:
		denied = m.tweak(p, id, pkt)
	case *proto.SetNumReplicas:
		denied = m.setReplicas(p, id, pkt.Replicas)
	case *proto.Truncate:
		denied = m.truncateAsked(p, id, pkt.TID)
	case *proto.Repair:
		denied = m.repair(p, id, pkt)
	case *proto.CheckReplicas:
		denied = m.checkReplicas(p, id, pkt)
	case *proto.NotifyMonitorInformation:
		if !m.importMessage(p, pkt) && !m.followMessage(p, pkt) && !m.vitalsMessage(p, pkt) {
			m.repairOrdered(p, pkt)
		}
	default:
		m.unexpected(p, id, pkt)
		return
	}
	if denied != nil {
		m.log(slog.LevelInfo, "operator denied", "err", denied.Message)
		m.answer(p, id, denied)
	}
}

// orderText writes an order of an operator as neoctl takes it, "" for what changes nothing or is
// logged elsewhere.
func orderText(pkt proto.Packet) string {
	nodes := func(order string, ids []proto.NodeID) string {
		for _, id := range ids {
			order += " " + id.String()
		}
		return order
	}
	switch pkt := pkt.(type) {
	case *proto.SetClusterState:
		return "set cluster " + pkt.State.String()
	case *proto.SetNodeState:
		switch pkt.State {
		case proto.NodeDown:
			return nodes("kill", []proto.NodeID{pkt.ID})
		case proto.NodeUnknown:
			return nodes("drop", []proto.NodeID{pkt.ID})
		}
		return nodes("set node "+pkt.State.String(), []proto.NodeID{pkt.ID})
	case *proto.AddPendingNodes:
		return nodes("add", pkt.IDs)
	case *proto.TweakPartitionTable:
		if pkt.DryRun {
			return ""
		}
		return nodes("tweak", pkt.IDs)
	case *proto.SetNumReplicas:
		return fmt.Sprintf("set replicas %d", pkt.Replicas)
	case *proto.Truncate:
		return "truncate " + pkt.TID.String()
	case *proto.Repair:
		if pkt.DryRun {
			return nodes("prune_orphan 1", pkt.IDs)
		}
		return nodes("prune_orphan 0", pkt.IDs)
	case *proto.CheckReplicas:
		return "check"
	}
	return ""
}

// stateChanged is what an operator is told whatever the state. This and the other
// texts for operators are those of the Python implementation, which scripts know.
const stateChanged = "Cluster state changed"

func deny(format string, args ...any) *proto.Error {
	return proto.Errorf(proto.Denied, format, args...)
}

func (m *Machine) ack(p *peer, id uint32, text string) {
	m.answer(p, id, proto.Errorf(proto.Ack, "%s", text))
}

// setClusterState acknowledges before it acts: the operator's admin node may go
// away with the rest.
func (m *Machine) setClusterState(p *peer, id uint32, s proto.ClusterState) *proto.Error {
	switch {
	case s == proto.Stopping:
		m.ack(p, id, stateChanged)
		m.stop()
	case s == proto.Verifying && m.state == proto.Recovering:
		storages := m.ofType(proto.Storage)
		if len(storages) == 0 {
			return deny("no storage node is connected")
		}
		for _, s := range storages {
			if s.pending > 0 {
				return deny("storage %v is still being asked, try again", s)
			}
		}
		if denied := m.confirmStart(); denied != nil {
			return denied
		}
		m.startup = startupForced
		m.fallBack()
		m.ack(p, id, stateChanged)
	case m.state == proto.Recovering && (s == proto.Recovering || s == proto.Running):
		m.rec.stale.decide(s == proto.Recovering, m.now)
		return deny("%v does not lead to %v", m.state, s)
	case s == proto.StartingBackup && m.state == proto.Running:
		return m.startBackup(p, id)
	case s == proto.StoppingBackup && (m.state == proto.StartingBackup || m.state == proto.BackingUp):
		if !m.follow.told.OK {
			return deny("the storages have not said yet what they have: try again")
		}
		if m.keepable() == tid.Zero {
			return deny("nothing is backed up yet: the whole database would be truncated")
		}
		m.ack(p, id, stateChanged)
		m.stopBackup()
	default:
		return deny("%v does not lead to %v", m.state, s)
	}
	return nil
}

func (m *Machine) setNodeState(p *peer, id uint32, pkt *proto.SetNodeState) *proto.Error {
	n := m.nodes.ByID(pkt.ID)
	switch {
	case n == nil || pkt.ID == 0:
		return deny("unknown node")
	case n == m.self:
		return deny("can not kill primary master node")
	case n.Type == proto.Master && pkt.State == proto.NodeDown:
		if n.State != proto.NodeDown {
			m.kill(n, proto.NodeDown)
		}
		m.ack(p, id, "state changed")
		m.broadcastNodes(n)
		return nil
	case n.Type != proto.Storage || pkt.State != proto.NodeDown && pkt.State != proto.NodeUnknown:
		return deny("a %v cannot be made %v", n.Type, pkt.State)
	case n.State == pkt.State:
		m.ack(p, id, "node already in "+n.State.String()+" state")
		return nil
	case n.State == proto.NodeRunning && pkt.State == proto.NodeUnknown:
		return deny("a running node must be stopped before removal")
	case pkt.State == proto.NodeUnknown && m.mayBeNeeded(pkt.ID):
		return deny("the cluster is %v: %v may have what no other storage has", m.state, pkt.ID)
	}
	return m.removeStorage(p, id, n, pkt.State)
}

// kill tells a node its new state, which makes it exit, and ends its link. It
// returns what remains to be done without it.
func (m *Machine) kill(n *proto.Node, s proto.NodeState) *peer {
	n.State = s
	p := m.links[n]
	if p == nil {
		return nil
	}
	m.notify(p, &proto.NotifyNodeInformation{Timestamp: m.monotonic(), Nodes: []proto.Node{*n}})
	m.out = append(m.out, Effect{Op: Abort, Conn: p.conn})
	m.forget(p)
	return p
}

// removeStorage stops a storage (DOWN), or removes it from the cluster
// (UNKNOWN), in which case it also erases its database. The last readable copy
// of a partition is never given up.
func (m *Machine) removeStorage(p *peer, id uint32, n *proto.Node, s proto.NodeState) *proto.Error {
	if m.state != proto.Recovering && !m.coveredWithout(n.ID) && !m.settled() {
		return deny("the storages have not all stored yet which copies are complete without %v: try again", n.ID)
	}
	hadCells := m.table.HasCells(n.ID)
	table := &m.table
	if s == proto.NodeDown {
		table = m.table.Clone() // kill only has to be possible like drop
	}
	changes, err := table.DropNodes([]proto.NodeID{n.ID})
	if only, ok := errors.AsType[*parttab.OnlyCopyError](err); ok {
		return deny("Refuse to drop nodes that contain the only readable copies of partition %d", only.Partition)
	}
	if err != nil {
		return deny("%v: %v", n.ID, err)
	}
	gone := m.kill(n, s)
	recovering := m.state == proto.Recovering
	if s == proto.NodeDown {
		changes = nil
		if !recovering {
			changes = m.table.Outdate(n.ID, m.running)
		}
	}
	// Receivers assume that a node which is removed has no cell.
	m.broadcastCells(changes)
	if s == proto.NodeUnknown && hadCells {
		m.ack(p, id, "node permanently removed")
	} else {
		m.ack(p, id, "state changed")
	}
	m.broadcastNodes(n)
	if s == proto.NodeUnknown {
		m.nodes.Remove(n)
		delete(m.where, n.ID)
	}
	if gone == nil {
		return nil
	}
	if !recovering && !m.table.Operational(m.running) {
		if gone.starting {
			m.starting--
		}
		m.stopOperation(proto.Opt[tid.TID]{})
		return nil
	}
	m.storageLost(gone)
	return nil
}

// changeable denies requests that make sense only in service.
func (m *Machine) changeable() *proto.Error {
	if m.state != proto.Running && m.state != proto.StartingBackup && m.state != proto.BackingUp {
		return deny("the cluster is %v", m.state)
	}
	return nil
}

// addPending takes waiting storages into the cluster, still without cells.
func (m *Machine) addPending(p *peer, id uint32, ids []proto.NodeID) *proto.Error {
	if e := m.changeable(); e != nil {
		return e
	}
	var nodes []*proto.Node
	var names []string
	for _, s := range m.ofType(proto.Storage) {
		if s.node.State == proto.NodePending && slices.Contains(ids, s.node.ID) {
			m.table.AddMember(s.node.ID)
			m.startStorage(s)
			nodes = append(nodes, s.node)
			names = append(names, s.node.ID.String())
		}
	}
	m.setRunning(nodes)
	if nodes == nil {
		m.ack(p, id, "No node added")
	} else {
		m.ack(p, id, "Nodes added: "+strings.Join(names, ", "))
	}
	return nil
}

func (m *Machine) tweak(p *peer, id uint32, pkt *proto.TweakPartitionTable) *proto.Error {
	if e := m.changeable(); e != nil {
		return e
	}
	ignored := slices.Clone(pkt.IDs)
	for _, n := range m.nodes.OfType(proto.Storage) {
		switch {
		case n.State == proto.NodePending:
			ignored = append(ignored, n.ID)
		case n.State != proto.NodeRunning && !slices.Contains(pkt.IDs, n.ID):
			return deny("tweak: down nodes must be listed explicitly: %v is %v", n.ID, n.State)
		}
	}
	table := &m.table
	if pkt.DryRun || !m.settled() {
		table = m.table.Clone()
	}
	changes, spread, err := table.Tweak(ignored, m.place, m.running)
	if !pkt.DryRun && table != &m.table && err == nil {
		if !m.covered(func(id proto.NodeID) bool { return m.running(id) && slices.Contains(table.ReadableNodes(), id) }) {
			return deny("tweak: the storages have not all stored yet which copies are complete: try again")
		}
		m.table, table = *table, &m.table
	}
	switch {
	case errors.Is(err, parttab.ErrNoNode) || errors.Is(err, parttab.ErrNotOperational):
		return deny("%v", err)
	case err != nil:
		return deny("tweak: %v", err)
	}
	m.warnTopology(spread)
	if !pkt.DryRun {
		m.broadcastCells(changes)
	}
	m.answer(p, id, &proto.AnswerTweakPartitionTable{Changed: len(changes) > 0, Rows: copyRows(table.Rows())})
	return nil
}

// maxReplicas is far above what makes sense, and below what is harmful.
const maxReplicas = 10_000

func (m *Machine) setReplicas(p *peer, id uint32, n int) *proto.Error {
	if e := m.changeable(); e != nil {
		return e
	}
	if n < 0 || n > maxReplicas {
		return deny("%d is not a number of replicas", n)
	}
	m.table.SetReplicas(n)
	m.broadcastTable(nil)
	m.ack(p, id, "")
	return nil
}

func (m *Machine) truncateAsked(p *peer, id uint32, t tid.TID) *proto.Error {
	switch {
	case m.state != proto.Running:
		return deny("the cluster is %v", m.state)
	case t >= m.ids.committed:
		return deny("nothing was committed after %v", t)
	case t < m.ids.first:
		return deny("everything was committed after %v", t)
	case m.pack.approvedAfter(t):
		return deny("the database was packed by an order after %v", t)
	}
	if text := m.importedAfter(t); text != "" {
		return deny("%s", text)
	}
	m.ack(p, id, "")
	m.stopOperation(proto.Some(t))
	return nil
}

func (m *Machine) repair(p *peer, id uint32, pkt *proto.Repair) *proto.Error {
	var list []*peer
	for _, nid := range pkt.IDs {
		s := m.stores[nid]
		if s == nil {
			return deny("%v is not a connected storage", nid)
		}
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	for _, s := range list {
		m.notify(s, &proto.NotifyRepair{DryRun: pkt.DryRun})
	}
	m.ack(p, id, "")
	return nil
}
