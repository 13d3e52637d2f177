package master

import (
	"slices"

	"github.com/neozodb/neo/cluster/proto"
)

// told reports whether a member is told about changes of a node. links holds
// the backup clusters an admin watches, so that it is asked for the node's peer.
func (m *Machine) told(p *peer, n *proto.Node) bool {
	switch n.Type {
	case proto.Master:
		return true
	case proto.Storage:
		return p.node.Type != proto.Master
	case proto.Client:
		return p.node.Type == proto.Admin || p.node.Type == proto.Storage
	case proto.Admin:
		// A backup master tells its own admin whom to report to.
		if a := m.links[n]; a != nil && p.node.Type == proto.Client {
			for _, name := range p.backups {
				if slices.Contains(a.backups, name) {
					return true
				}
			}
		}
	}
	return false
}

// broadcastNodes tells every member what it is told about these nodes.
func (m *Machine) broadcastNodes(nodes ...*proto.Node) {
	if len(nodes) == 0 || len(m.members) == 0 {
		return
	}
	now := m.monotonic()
	for _, p := range m.members {
		var list []proto.Node
		for _, n := range nodes {
			if m.told(p, n) {
				list = append(list, *n)
			}
		}
		if list != nil {
			m.notify(p, &proto.NotifyNodeInformation{Timestamp: now, Nodes: list})
		}
	}
}

// sendNodes gives a new member the complete list of what it may know, itself first.
func (m *Machine) sendNodes(p *peer) {
	list := []proto.Node{*p.node}
	for n := range m.nodes.Nodes() {
		if n != p.node && m.told(p, n) {
			list = append(list, *n)
		}
	}
	m.notify(p, &proto.NotifyNodeInformation{Timestamp: m.monotonic(), Nodes: list})
}

// setState changes the state of a node and tells the members. An UNKNOWN node is
// forgotten.
func (m *Machine) setState(n *proto.Node, s proto.NodeState) {
	if n.State == s {
		return
	}
	n.State = s
	m.broadcastNodes(n)
	if s == proto.NodeUnknown {
		m.nodes.Remove(n)
	}
}

// sendTable gives a member the whole partition table.
func (m *Machine) sendTable(p *peer) {
	m.notify(p, m.tablePacket())
}

func (m *Machine) tablePacket() *proto.SendPartitionTable {
	return &proto.SendPartitionTable{PTID: m.table.PTID(), Replicas: m.table.Replicas(), Rows: copyRows(m.table.Rows())}
}

// copyRows makes rows that may be sent later, while the table changes.
func copyRows(rows [][]proto.Cell) [][]proto.Cell {
	out := make([][]proto.Cell, len(rows))
	for i, row := range rows {
		out[i] = slices.Clone(row)
	}
	return out
}

// broadcastCells numbers changes of the table and tells every member but masters.
func (m *Machine) broadcastCells(changes []proto.CellChange) {
	if len(changes) > 0 {
		m.broadcastTable(changes)
	}
}

// renumber gives the table a version that this process has not broadcast.
func (m *Machine) renumber() {
	m.maxPTID = m.table.Number(m.maxPTID + 1)
}

// broadcastTable is broadcastCells also for a table of which no cell has changed.
func (m *Machine) broadcastTable(changes []proto.CellChange) {
	m.follow.changed(changes)
	m.renumber()
	changed := m.hold()
	defer m.cellsRepaired(changes)
	pkt := &proto.NotifyPartitionChanges{PTID: m.table.PTID().V, Replicas: m.table.Replicas(), Cells: changes}
	for _, p := range m.members {
		// While it recovers, a storage may have another table, which the change
		// seems to follow. It gets the whole one later.
		if p.node.Type != proto.Master && (p.node.Type != proto.Storage || m.state != proto.Recovering) {
			m.notify(p, pkt)
		}
	}
	if changed && !m.settled() {
		m.confirmTable()
	}
}
