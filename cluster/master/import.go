package master

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// imports are the imports of the storages that are connected, and the orders that they
// have not answered.
type imports struct {
	reports map[proto.NodeID]importing.Report
	orders  map[int64]importOrder // by the number under which the storage knows it
	last    int64                 // number given
}

// importOrder is an order on its way.
type importOrder struct {
	admin   *peer
	number  int64 // of the admin
	storage *peer
}

// importMessage takes what a node says of imports. It reports whether the packet was
// about that.
func (m *Machine) importMessage(p *peer, pkt *proto.NotifyMonitorInformation) bool {
	msg, ok, err := importing.Parse(pkt)
	switch {
	case err != nil:
		m.log(slog.LevelWarn, "message not understood", "node", p.String(), "err", err.Error())
		return true
	case !ok:
		return false
	}
	storage := p.node.Type == proto.Storage
	switch {
	case storage && msg.Topic == importing.Reported:
		m.importReported(p, &msg.Report)
	case storage && msg.Topic == importing.Answered:
		m.importAnswered(p, msg)
	case p.node.Type == proto.Admin && msg.Topic == importing.Ordered:
		m.importOrdered(p, msg)
	default:
		m.log(slog.LevelWarn, "unexpected message about an import", "node", p.String(), "topic", msg.Topic)
	}
	return true
}

// importReported notes how far the import of a storage is.
func (m *Machine) importReported(p *peer, r *importing.Report) {
	if m.stores[p.node.ID] != p {
		return
	}
	before, known := m.imports.reports[p.node.ID]
	if !known || before.State != r.State {
		level := slog.LevelInfo
		if r.State.Bad() {
			level = slog.LevelWarn
		}
		m.log(level, "import", "node", p.String(), "state", r.State.String(), "tid", r.Last.String(), "note", r.Note)
	}
	if m.imports.reports == nil {
		m.imports.reports = map[proto.NodeID]importing.Report{}
	}
	m.imports.reports[p.node.ID] = *r
	m.tellImport(r.Packet(p.node.ID))
}

// tellImport tells the admins that understand it.
func (m *Machine) tellImport(pkt proto.Packet) {
	for _, p := range m.members {
		if p.node.Type == proto.Admin && p.imports {
			m.notify(p, pkt)
		}
	}
}

// joinImports asks a storage for its reports, and tells an admin what it has missed.
func (m *Machine) joinImports(p *peer) {
	if !p.imports {
		return
	}
	switch p.node.Type {
	case proto.Storage:
		m.notify(p, (&importing.Message{Topic: importing.Wanted}).Packet())
	case proto.Admin:
		for _, id := range slices.Sorted(maps.Keys(m.imports.reports)) {
			r := m.imports.reports[id]
			m.notify(p, r.Packet(id))
		}
	}
}

// leaveImports forgets a node whose connection has ended. What a storage has reported
// may not be so any more, and its database may come back without import.
func (m *Machine) leaveImports(p *peer) {
	if _, known := m.imports.reports[p.node.ID]; known && p.node.Type == proto.Storage {
		delete(m.imports.reports, p.node.ID)
		m.tellImport((&importing.Message{Topic: importing.Gone, Node: p.node.ID}).Packet())
	}
	for _, number := range slices.Sorted(maps.Keys(m.imports.orders)) {
		switch o := m.imports.orders[number]; p {
		case o.storage:
			delete(m.imports.orders, number)
			m.answerImport(o.admin, o.number, fmt.Sprintf("%v was lost before it answered", p))
		case o.admin:
			delete(m.imports.orders, number)
		}
	}
}

func (m *Machine) answerImport(admin *peer, number int64, text string) {
	m.notify(admin, (&importing.Message{Topic: importing.Answered, Number: number, Text: text}).Packet())
}

// importOrdered passes an order on to the storage that it is for.
func (m *Machine) importOrdered(p *peer, msg *importing.Message) {
	s := m.stores[msg.Node]
	if _, known := m.imports.reports[msg.Node]; !known || s == nil {
		m.answerImport(p, msg.Number, fmt.Sprintf("%v reports no import", msg.Node))
		return
	}
	m.log(slog.LevelInfo, "import ordered", "node", s.String(), "order", msg.Order.String())
	if m.imports.orders == nil {
		m.imports.orders = map[int64]importOrder{}
	}
	m.imports.last++
	m.imports.orders[m.imports.last] = importOrder{p, msg.Number, s}
	m.notify(s, msg.Order.Packet(msg.Node, m.imports.last))
}

// importAnswered passes the answer to an order back.
func (m *Machine) importAnswered(p *peer, msg *importing.Message) {
	o, known := m.imports.orders[msg.Number]
	if !known || o.storage != p {
		return // the admin that ordered it has gone
	}
	delete(m.imports.orders, msg.Number)
	m.answerImport(o.admin, o.number, msg.Text)
}

// importedAfter returns, in a sentence, why the database cannot be truncated after t because
// of an import, "" otherwise. The storage would refuse it too, but only when the cluster has
// stopped for it.
func (m *Machine) importedAfter(t tid.TID) string {
	for _, id := range slices.Sorted(maps.Keys(m.imports.reports)) {
		switch r := m.imports.reports[id]; {
		case r.End > t:
			return fmt.Sprintf("the sources of the import of %v go up to %v, and what is deleted of them would be imported again: "+
				"when the import is done, use the database without the adapter Importer, and truncate then", id, r.End)
		case r.WriteBack > t:
			return fmt.Sprintf("the import of %v has written transactions up to %v back to its source, where they would stay", id, r.WriteBack)
		}
	}
	return ""
}
