package master

import (
	"slices"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/parting"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/vitals"
)

// extra is what the free part of an identification can say.
type extra struct {
	devpath  []string // where a storage keeps its data, from the outside in
	newNID   []int    // partitions of a storage cloned from another
	readOnly bool
	backups  []string
	reports  bool // of checks
	tails    bool // it can compare the end of a partition with the upstream cluster
	imports  bool // it understands messages about imports
	follows  bool // it understands messages about backup clusters
	parts    bool // it can say why it ends
	vitals   bool // it understands messages about nodes
	hold     proto.Opt[tid.TID]
}

func parseExtra(typ proto.NodeType, values map[string]proto.Value) extra {
	var e extra
	e.devpath = texts(values["devpath"])
	if b, ok := values[following.HoldKey].([]byte); ok && len(b) == 8 && tid.FromBytes(b) <= tid.Max {
		e.hold = proto.Some(tid.FromBytes(b))
	}
	e.reports, e.imports, e.follows = check.Understands(values), importing.Understands(values), following.Understands(values)
	e.vitals = vitals.Understands(values)
	e.tails = check.UnderstandsTail(values)
	e.parts = typ == proto.Storage && parting.Understands(values)
	if list, ok := values["new_nid"].([]proto.Value); ok {
		for _, v := range list {
			if n, ok := v.(int64); ok {
				e.newNID = append(e.newNID, int(n))
			} else {
				e.newNID = append(e.newNID, -1)
			}
		}
	}
	switch backup := values["backup"].(type) {
	case []byte: // of a backup master: its cluster
		e.backups = []string{string(backup)}
		e.readOnly = typ == proto.Client
	case []proto.Value: // of an admin: the clusters it watches
		e.backups = texts(backup)
	}
	switch v := values["read_only"].(type) {
	case bool:
		e.readOnly = v
	case int64:
		e.readOnly = v != 0
	}
	return e
}

func texts(v proto.Value) []string {
	list, _ := v.([]proto.Value)
	var out []string
	for _, v := range list {
		if b, ok := v.([]byte); ok {
			out = append(out, string(b))
		}
	}
	return out
}

// identify admits a node to the cluster, or refuses it.
func (m *Machine) identify(p *peer, id uint32, r *proto.RequestIdentification) {
	if r.Cluster != m.set.Cluster {
		m.refuse(p, id, r, "this is cluster %q, not %q", m.set.Cluster, r.Cluster)
		return
	}
	if !r.Addr.IsZero() && r.Addr == m.self.Addr {
		m.refuse(p, id, r, "%v is the address of this master", r.Addr)
		return
	}
	if m.displaced[r.Addr] && r.Type == proto.Storage {
		delete(m.displaced, r.Addr)
		other := *r
		other.ID = 0
		r = &other
	}
	known, ok := m.resolve(p, id, r)
	if !ok {
		return
	}
	e := parseExtra(r.Type, r.Extra)
	state := proto.NodeRunning
	switch r.Type {
	case proto.Master:
		if r.Addr.IsZero() {
			m.refuse(p, id, r, "a master needs an address")
			return
		}
		if m.state == proto.Recovering && r.IDTimestamp.OK && m.olderThanUs(r.IDTimestamp.V, r.Addr) {
			m.becomeSecondary(r.Addr, m.candidateAt(r.Addr))
			return
		}
	case proto.Client:
		if m.state == proto.BackingUp {
			if !e.readOnly {
				m.answerError(p, id, proto.ReadOnlyAccess, "read-only access to a backup cluster")
				return
			}
			if !m.follow.told.OK {
				m.refuseAs(proto.NotReady, p, id, r, "it is not known yet what the backup has")
				return
			}
			if m.goesBack() {
				m.refuseAs(proto.NotReady, p, id, r, "clients may have seen more of the backup before it was started again: up to %v, and it is known to have all up to %v", m.follow.before, m.follow.told.V)
				return
			}
			break
		}
		if m.state != proto.Running && (m.state != proto.Stopping || len(m.txns.pending) == 0) {
			m.refuseAs(proto.NotReady, p, id, r, "the cluster is %v%s", m.state, m.awaited())
			return
		}
	case proto.Storage:
		if m.state == proto.StoppingBackup {
			m.refuseAs(proto.NotReady, p, id, r, "the cluster is %v", m.state)
			return
		}
		if ptid, ok := m.newer(r); ok {
			// To become a copy of what is here would delete what only it has.
			m.refuse(p, id, r, "%v at %v has worked with partition table %d, but the cluster has started from an older copy of the database, "+
				"and has table %d: stop the cluster, and start it with this storage", r.ID, r.Addr, ptid, m.table.PTID().V)
			return
		}
		switch {
		case r.Addr.IsZero():
			if m.state == proto.Recovering {
				m.refuseAs(proto.NotReady, p, id, r, "the cluster is %v", m.state)
				return
			}
			if r.ID != 0 || len(e.newNID) == 0 {
				m.refuse(p, id, r, "a storage needs an address, unless it wants another id")
				return
			}
			for _, n := range e.newNID {
				if n < 0 || n >= m.table.NP() {
					m.refuse(p, id, r, "no partition %d", n)
					return
				}
			}
			state = proto.NodeDown
		case m.state == proto.Recovering || r.ID == 0 || known == nil:
			state = proto.NodePending
		}
	case proto.Admin:
	default:
		m.refuse(p, id, r, "unknown type of node %v", r.Type)
		return
	}
	m.admit(p, id, r, known, state, e)
}

// resolve finds the known node that identifies itself, nil if it is a new one.
// It refuses nodes whose id or address is in use, once that is certain.
func (m *Machine) resolve(p *peer, id uint32, r *proto.RequestIdentification) (known *proto.Node, ok bool) {
	var byAddr, byID *proto.Node
	if !r.Addr.IsZero() {
		byAddr = m.nodes.ByAddr(r.Addr)
	}
	if r.ID != 0 && r.ID.Type() == r.Type {
		byID = m.nodes.ByID(r.ID)
	}
	switch {
	case byAddr != nil && m.links[byAddr] != nil:
		m.claimed(m.links[byAddr], p, id, r)
		return nil, false
	case byAddr != nil && byAddr.Type != r.Type:
		m.refuse(p, id, r, "%v is the address of %v", r.Addr, byAddr.ID)
		return nil, false
	case byAddr != nil && byID == nil && m.table.HasCells(byAddr.ID):
		// Another database at the address of a storage that is away: the cells
		// of the latter must not become those of the former.
		m.loseAddress(byAddr)
		return nil, true
	case byAddr != nil && (byID == byAddr || byID == nil || r.ID < 0):
		return byAddr, true
	case byID == nil || byID == m.self:
		return nil, true
	case r.Type == proto.Master:
		return nil, true // ids of masters are provisional: the other one is not forgotten
	case m.links[byID] != nil && r.ID < 0:
		return nil, true // it gets another id
	case m.links[byID] != nil && !m.makePlace(m.links[byID]):
		m.claimed(m.links[byID], p, id, r)
		return nil, false
	}
	if byAddr != nil {
		m.loseAddress(byAddr)
	}
	return byID, true
}

// loseAddress takes its address from a storage that is away, as another one is there
// now, and tells the members: they find nodes by address first, and would take the
// other one for it. A storage without cells is forgotten.
func (m *Machine) loseAddress(n *proto.Node) {
	if m.table.PTID().OK && !m.table.HasCells(n.ID) {
		m.setState(n, proto.NodeUnknown)
		delete(m.where, n.ID)
		return
	}
	m.nodes.Remove(n)
	n.Addr = proto.Address{}
	m.broadcastNodes(m.nodes.Put(*n))
}

// admit makes a peer a member of the cluster and tells it, and the others, what
// they must know. The order of the packets is part of the protocol.
func (m *Machine) admit(p *peer, id uint32, r *proto.RequestIdentification, known *proto.Node, state proto.NodeState, e extra) {
	n := proto.Node{Type: r.Type, Addr: r.Addr, State: state, IDTimestamp: proto.Some(m.monotonic())}
	if known != nil && r.ID != 0 && known.ID == r.ID {
		n.ID = r.ID
	} else if n.ID = m.nodes.NewID(r.Type, r.ID, r.Addr); n.ID == 0 {
		m.refuse(p, id, r, "no id is left for a %v", r.Type)
		return
	}
	if known != nil {
		m.nodes.Remove(known)
	}
	p.node = m.nodes.Put(n)
	m.links[p.node] = p
	m.learnt = m.learnt || r.Type == proto.Master
	if o := m.candidateAt(r.Addr); o != nil && r.Type == proto.Master {
		// Two masters have connected to each other: this connection is enough.
		m.out = append(m.out, Effect{Op: Close, Conn: o.conn})
		m.forget(o)
	}
	p.readOnly, p.backups, p.reports, p.imports, p.follows = e.readOnly, e.backups, e.reports, e.imports, e.follows
	p.hold = e.hold
	p.tails = e.tails
	p.vitals = e.vitals
	if r.Type == proto.Storage {
		m.where[n.ID] = e.devpath
		p.newID = r.ID != n.ID
		defer m.showsStale(p)
		p.claim, p.fresh = parseClaim(r.Extra), true
	}
	m.broadcastNodes(p.node)
	if state == proto.NodeDown {
		m.broadcastCells(m.table.AddCells(n.ID, e.newNID))
	}
	p.role = member
	m.members = append(m.members, p)
	if r.Type == proto.Storage {
		m.stores[n.ID] = p
		delete(m.reasons, n.ID)
	}
	if r.Type == proto.Master {
		m.heard(r.Addr)
	}
	attrs := []any{"node", p.String()}
	if !r.Addr.IsZero() {
		attrs = append(attrs, "addr", r.Addr.String())
	}
	m.log(memberLevel(r.Type), "node identified", append(attrs, "state", state.String())...)
	m.out = append(m.out, Effect{Op: Name, Conn: p.conn, Text: n.ID.String()})
	m.answer(p, id, &proto.AcceptIdentification{Type: proto.Master, ID: m.self.ID, YourID: n.ID})
	m.sendNodes(p)
	if r.Type == proto.Admin {
		m.replayChecks(p)
	}
	m.joinImports(p)
	m.joinFollowing(p)
	if e.parts {
		m.notify(p, (&parting.Message{}).Packet())
	}
	m.joinVitals(p)
	switch {
	case r.Type == proto.Master:
	case r.Type == proto.Storage && m.state == proto.Recovering:
		m.ask(p, &proto.AskRecovery{})
	default:
		m.sendTable(p)
		if r.Type == proto.Admin {
			m.tellUpstreamAdmin(p)
		}
		if r.Type == proto.Storage && state == proto.NodeRunning {
			m.table.AddMember(n.ID)
			if m.service() {
				m.startStorage(p)
			}
		}
	}
}

// peersOf returns the connections in a role, oldest first.
func (m *Machine) peersOf(r role) []*peer {
	var list []*peer
	for _, p := range m.peers {
		if p.role == r {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *peer) int { return int(a.conn) - int(b.conn) })
	return list
}
