package master

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/vitals"
)

// board is what nodes tell of themselves, for the admins. Storages and masters stay on it
// when they are lost: an operator looks for the machine and the database then.
type board struct {
	nodes   map[proto.NodeID]vitals.Node
	commits int64     // transactions since this master began
	told    int64     // what the admins were told of that,
	at      time.Time // and when
	packs   packBoard
}

// packBoard is what is known of the last pack order.
type packBoard struct {
	last vitals.Pack
	told vitals.Pack
}

// vitalsMessage takes what a node says of itself. It reports whether the packet was about
// that.
func (m *Machine) vitalsMessage(p *peer, pkt *proto.NotifyMonitorInformation) bool {
	msg, ok, err := vitals.Parse(pkt)
	switch {
	case !ok && err == nil:
		return false
	case err != nil:
		m.log(slog.LevelWarn, "message not understood", "node", p.String(), "err", err.Error())
	case msg.Topic == vitals.Reported:
		n := vitals.Node{ID: p.node.ID, Known: true, Report: msg.Node.Report}
		m.note(n)
		m.tellAdmins(&vitals.Message{Topic: vitals.Reported, Node: n})
		if m.board.commits != m.board.told {
			m.tellOwn()
		}
	default:
		m.log(slog.LevelWarn, "unexpected message about a node", "node", p.String(), "topic", msg.Topic)
	}
	return true
}

func (m *Machine) note(n vitals.Node) {
	if m.board.nodes == nil {
		m.board.nodes = map[proto.NodeID]vitals.Node{}
	}
	m.board.nodes[n.ID] = n
}

// tellAdmins tells the admins that understand it.
func (m *Machine) tellAdmins(msg *vitals.Message) {
	var pkt proto.Packet
	for _, p := range m.members {
		if p.node.Type == proto.Admin && p.vitals {
			if pkt == nil {
				pkt = msg.Packet()
			}
			m.notify(p, pkt)
		}
	}
}

// ownVitals is what this master tells of itself.
func (m *Machine) ownVitals() *vitals.Message {
	return &vitals.Message{Topic: vitals.Reported, Node: vitals.Node{ID: m.self.ID, Known: true, Report: vitals.Report{Self: m.set.Self, Commits: m.board.commits}}}
}

// tellCommits tells the admins now and then how many transactions there were.
func (m *Machine) tellCommits() {
	if m.now.Sub(m.board.at) >= vitals.Every {
		m.tellOwn()
	}
}

func (m *Machine) tellOwn() {
	m.board.at, m.board.told = m.now, m.board.commits
	m.tellAdmins(m.ownVitals())
}

// joinVitals asks a node for its reports, and tells an admin what it has missed.
func (m *Machine) joinVitals(p *peer) {
	if n, known := m.board.nodes[p.node.ID]; known {
		n.Since = time.Time{} // it runs again; who it is now, it says itself
		m.note(n)
	}
	if !p.vitals {
		delete(m.board.nodes, p.node.ID) // it cannot say so
		return
	}
	m.notify(p, (&vitals.Message{Topic: vitals.Wanted}).Packet())
	if p.node.Type != proto.Admin {
		return
	}
	m.notify(p, m.ownVitals().Packet())
	for _, id := range slices.Sorted(maps.Keys(m.board.nodes)) {
		n := m.board.nodes[id]
		if n.Known {
			m.notify(p, (&vitals.Message{Topic: vitals.Reported, Node: n}).Packet())
		}
		if !n.Since.IsZero() {
			m.notify(p, (&vitals.Message{Topic: vitals.Gone, Node: vitals.Node{ID: id, Since: n.Since}}).Packet())
		}
	}
	m.lookAtPacks()
	if k := m.board.packs.last; k.Order != tid.Zero {
		m.notify(p, (&vitals.Message{Topic: vitals.Packed, Pack: k}).Packet())
	}
}

// leaveVitals notes that a node is lost.
func (m *Machine) leaveVitals(p *peer) {
	id := p.node.ID
	if p.node.Type != proto.Storage && p.node.Type != proto.Master {
		delete(m.board.nodes, id) // another one will have its id
		return
	}
	n := m.board.nodes[id]
	n.ID, n.Since = id, m.now
	m.note(n)
	m.tellAdmins(&vitals.Message{Topic: vitals.Gone, Node: vitals.Node{ID: id, Since: m.now}})
}

// lookAtPacks finds out how far the last pack order is.
func (m *Machine) lookAtPacks() {
	k, last := &m.pack, &m.board.packs.last
	if ids := k.ids(); len(ids) > 0 && ids[len(ids)-1] >= last.Order {
		o := k.orders[ids[len(ids)-1]]
		*last = vitals.Pack{Order: o.ID, UpTo: o.Time, Partial: o.Partial, Signed: o.Approved == proto.Some(true)}
	} else if k.completed.V > last.Order {
		*last = vitals.Pack{Order: k.completed.V, Signed: true}
	}
	last.Done, last.Waiting = false, nil
	if last.Order == tid.Zero {
		return
	}
	for _, p := range m.readableStores() {
		if p.completed.V < last.Order {
			last.Waiting = append(last.Waiting, p.node.ID)
		}
	}
	slices.Sort(last.Waiting)
	last.Done = last.Waiting == nil && len(m.readableStores()) > 0
}

// tellPacks tells the admins how far the last pack order is, if that has changed.
func (m *Machine) tellPacks() {
	m.lookAtPacks()
	b := &m.board.packs
	if b.last.Order == b.told.Order && b.last.UpTo == b.told.UpTo && b.last.Signed == b.told.Signed && b.last.Done == b.told.Done && slices.Equal(b.last.Waiting, b.told.Waiting) {
		return
	}
	b.told = b.last
	m.tellAdmins(&vitals.Message{Topic: vitals.Packed, Pack: b.last})
}
