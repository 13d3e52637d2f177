package master

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/neozodb/neo/cluster/parting"
	"github.com/neozodb/neo/cluster/proto"
)

// partingMessage notes why a storage is about to end. It reports whether the packet says that.
func (m *Machine) partingMessage(p *peer, pkt *proto.NotifyMonitorInformation) bool {
	msg, ok, err := parting.Parse(pkt)
	switch {
	case err != nil:
		m.log(slog.LevelWarn, "message not understood", "node", p.String(), "err", err.Error())
	case ok && msg.Reason != "" && m.stores[p.node.ID] == p:
		m.log(slog.LevelError, "a storage ends", "node", p.String(), "addr", p.node.Addr.String(), "err", msg.Reason)
		if m.reasons == nil {
			m.reasons = map[proto.NodeID]string{}
		}
		m.reasons[p.node.ID] = msg.Reason
	}
	return ok
}

// mostAwaited is how many storages a client is told of that it waits for.
const mostAwaited = 5

// awaited says which storages keep the cluster from serving because they are away, and
// why they have ended, as the end of a sentence; "" if there is none or none is known.
func (m *Machine) awaited() string {
	if m.state != proto.Recovering {
		return ""
	}
	table := &m.table
	if m.final != nil {
		table = m.final
	}
	unreadable, nodes := 0, map[proto.NodeID]bool{}
	for n := range table.NP() {
		away := map[proto.NodeID]bool{}
		for _, c := range table.Row(n) {
			switch {
			case !c.State.Readable():
			case m.stores[c.ID] != nil:
				away = nil
			case away != nil:
				away[c.ID] = true
			}
		}
		if len(away) > 0 {
			unreadable++
		}
		for id := range away {
			nodes[id] = true
		}
	}
	if unreadable == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, ": %d of %d partitions cannot be read without", unreadable, table.NP())
	told := 0
	for _, id := range table.Nodes() {
		if !nodes[id] {
			continue
		}
		if told++; told > mostAwaited {
			fmt.Fprintf(&b, ", and %d more", len(nodes)-mostAwaited)
			break
		}
		if told > 1 {
			b.WriteString(";")
		}
		fmt.Fprintf(&b, " %v", id)
		if n := m.nodes.ByID(id); n != nil && !n.Addr.IsZero() {
			fmt.Fprintf(&b, " (%v)", n.Addr)
		}
		b.WriteString(", which is gone")
		if why := m.reasons[id]; why != "" {
			b.WriteString(": " + why)
		}
	}
	return b.String()
}
