package master

import (
	"log/slog"

	"github.com/neozodb/neo/cluster/proto"
)

// tellLost tells the operator of a node whose connection has ended, and why; of a storage
// also what is worse without it. A node that was told to go, or a client or an admin that
// leaves, is no news to act upon.
func (m *Machine) tellLost(p *peer) {
	err := m.hungUp
	m.hungUp = nil // of what ends in consequence it is not the reason
	if p.role != member || m.ended {
		return
	}
	n := p.node
	attrs := []any{"node", p.String()}
	if !n.Addr.IsZero() {
		attrs = append(attrs, "addr", n.Addr.String())
	}
	if err != nil {
		attrs = append(attrs, "err", err.Error())
	}
	told := n.State == proto.NodeDown || n.State == proto.NodeUnknown || m.state == proto.Stopping
	switch {
	case told || n.Type == proto.Client || n.Type == proto.Admin:
		m.log(memberLevel(n.Type), "node left", attrs...)
	case m.state == proto.Recovering && n.Type == proto.Storage:
		m.log(slog.LevelInfo, "storage lost", attrs...) // nothing is served yet
	case n.Type == proto.Storage:
		fewer, none := m.worseWithout(n.ID)
		if fewer != nil {
			attrs = append(attrs, "fewer_copies", partitionsText(fewer))
		}
		if none != nil {
			attrs = append(attrs, "unreadable", partitionsText(none))
		}
		m.log(slog.LevelWarn, "storage lost", attrs...)
	default:
		m.log(slog.LevelWarn, "node lost", attrs...)
	}
}

// worseWithout returns the partitions of which a storage has a readable cell, apart by
// whether another storage that runs has one too.
func (m *Machine) worseWithout(id proto.NodeID) (fewer, none []int) {
	for i := range m.table.NP() {
		has, other := false, false
		for _, c := range m.table.Row(i) {
			if c.State.Readable() {
				has = has || c.ID == id
				other = other || c.ID != id && m.running(c.ID)
			}
		}
		switch {
		case has && other:
			fewer = append(fewer, i)
		case has:
			none = append(none, i)
		}
	}
	return fewer, none
}

// memberLevel is the level at which nodes that come and go are logged. Clients do so all the
// time, a backup cluster that does not fit once a second.
func memberLevel(t proto.NodeType) slog.Level {
	if t == proto.Client {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}
