package master

import (
	"cmp"
	"log/slog"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/vitals"
)

// secondary is the state of a master that is not primary.
//
// The election keeps no state and takes no vote: the master that has been a
// candidate for the longest time wins, and there is an election only while the
// primary recovers. A primary that serves is never deposed.
type secondary struct {
	target proto.Address // the master believed to be primary
	link   *peer
	listed bool // the link is identified and has given its list of nodes
	// identified tells that target has accepted us.
	identified bool
	tried      map[proto.Address]bool // since the last success
}

// playPrimary makes this master a candidate for the primary role: it recovers
// the cluster unless it learns of a better candidate.
func (m *Machine) playPrimary() {
	m.second = nil
	m.started = m.monotonic()
	m.startup = startupWhole
	m.newTerm()
	if m.self.ID == 0 {
		m.self.ID = m.nodes.NewID(proto.Master, m.set.NID, m.self.Addr)
		m.self = m.nodes.Put(*m.self)
	}
	m.self.State, m.self.IDTimestamp = proto.NodeRunning, proto.Opt[float64]{}
	m.log(slog.LevelDebug, "playing primary", "id", m.self.ID.String())
	m.unheard = map[proto.Address]bool{}
	for _, n := range m.nodes.OfType(proto.Master) {
		if n != m.self && !n.Addr.IsZero() {
			m.unheard[n.Addr] = true
		}
	}
	m.announcePrimary()
	m.enterRecovery()
	m.elect()
}

// heard notes that a master stands by, or cannot be asked.
func (m *Machine) heard(a proto.Address) {
	delete(m.unheard, a)
	m.announcePrimary()
}

// announcePrimary logs once that this master is primary: not as long as another one, which may
// be primary already, was not asked yet.
func (m *Machine) announcePrimary() {
	if m.second != nil || m.unheard == nil || len(m.unheard) > 0 {
		return
	}
	m.unheard = nil
	m.log(slog.LevelInfo, "ready", "role", "primary", "node", m.self.ID.String())
}

// newTerm forgets what is only known as long as no other master has been primary: one
// may have gone on, and cut the database.
func (m *Machine) newTerm() {
	m.blind = true
	m.served, m.witnesses, m.final = false, nil, nil
	m.seen.forget()
	m.orderedTruncate = proto.Opt[tid.TID]{}
	m.gate = gate{}
	m.ids.term(m.now)
}

// witnessLost notes that a storage, nil for none, is lost in recovery. If all are lost that
// could be read when the operation stopped, or by a table that others may still have, another master may have been primary since, even
// if this one has always been so itself: it knows no more than that one.
func (m *Machine) witnessLost(p *peer) {
	m.witnesses = slices.DeleteFunc(m.witnesses, func(o *peer) bool { return o == p })
	left := func(id proto.NodeID) bool {
		return slices.ContainsFunc(m.witnesses, func(o *peer) bool { return o.node.ID == id })
	}
	if !m.served || m.covered(left) || len(m.masters()) < 2 {
		return
	}
	m.log(slog.LevelInfo, "storages of the operation are lost that another master can start with: it may have been primary")
	m.newTerm()
	if m.startup == startupDegraded {
		m.startup = startupWhole
	}
}

// learn adds a master to the known ones.
func (m *Machine) learn(a proto.Address) {
	if !a.IsZero() && m.nodes.ByAddr(a) == nil {
		m.nodes.Put(proto.Node{Type: proto.Master, Addr: a, State: proto.NodeDown})
		m.learnt = true
	}
}

// tellSelf tells what the shell should know of this master if it has changed: its
// id, and the known masters.
func (m *Machine) tellSelf() {
	if m.self.ID != m.announced {
		m.announced = m.self.ID
		m.out = append(m.out, Effect{Op: Identify, Self: m.self.ID})
	}
	if !m.learnt {
		return
	}
	m.learnt = false
	if list := m.masters(); !slices.Equal(list, m.saved) {
		m.saved = list
		m.out = append(m.out, Effect{Op: SaveMasters, Masters: list})
	}
}

// masters returns the addresses of all known masters, this one included.
func (m *Machine) masters() []proto.Address {
	var list []proto.Address
	for _, n := range m.nodes.OfType(proto.Master) {
		if !n.Addr.IsZero() {
			list = append(list, n.Addr)
		}
	}
	return list
}

// elect connects to the masters that this primary, while it recovers, has no
// connection with.
func (m *Machine) elect() {
	if m.second != nil || m.state != proto.Recovering {
		return
	}
	for _, n := range m.nodes.OfType(proto.Master) {
		if n == m.self || m.links[n] != nil || n.Addr.IsZero() {
			continue
		}
		if m.candidateAt(n.Addr) == nil {
			m.dial(n.Addr)
		}
	}
}

// candidateAt returns the connection to another master, to which we have
// identified ourselves as a candidate and which has not answered. Its answer is
// still good once that master is known to be the better candidate.
func (m *Machine) candidateAt(a proto.Address) *peer {
	for _, p := range m.peersOf(candidate) {
		if p.dialed == a {
			return p
		}
	}
	return nil
}

func (m *Machine) dial(a proto.Address) {
	if !m.dialing[a] {
		m.dialing[a] = true
		m.out = append(m.out, Effect{Op: Dial, Addr: a})
	}
}

func (m *Machine) connected(conn ConnID, a proto.Address) {
	delete(m.dialing, a)
	if a == m.up.dialing {
		m.upstreamConnected(conn, a)
		return
	}
	p := &peer{conn: conn, dialed: a}
	n := m.nodes.ByAddr(a)
	req := &proto.RequestIdentification{
		Type: proto.Master, ID: m.self.ID, Addr: m.self.Addr, Cluster: m.set.Cluster, Extra: map[string]proto.Value{},
	}
	switch {
	case m.second != nil && m.second.target == a && m.second.link == nil:
		p.role = leader
		req.Extra[vitals.Extension] = int64(1)
		m.second.link = p
	case m.second == nil && m.state == proto.Recovering && n != nil && m.links[n] == nil:
		p.role = candidate
		req.IDTimestamp = proto.Some(m.started)
	default:
		m.out = append(m.out, Effect{Op: Close, Conn: conn})
		return
	}
	m.peers[conn] = p
	m.ask(p, req)
}

func (m *Machine) connectFailed(a proto.Address) {
	delete(m.dialing, a)
	if a == m.up.dialing {
		m.up.dialing = proto.Address{}
		m.unfollowed("the master at %v cannot be reached", a)
		return
	}
	switch {
	case m.second == nil:
		m.heard(a)
		m.elect()
	case m.second.target == a && m.second.link == nil:
		m.seekNext()
	}
}

// olderThanUs reports whether a candidate wins against this one.
func (m *Machine) olderThanUs(started float64, a proto.Address) bool {
	return cmp.Or(cmp.Compare(started, m.started), cmp.Compare(a.Host, m.self.Addr.Host), cmp.Compare(a.Port, m.self.Addr.Port)) < 0
}

// identified handles the answer of a master to our identification.
func (m *Machine) identified(p *peer, pkt proto.Packet) {
	accepted, ok := pkt.(*proto.AcceptIdentification)
	if !ok || accepted.Type != proto.Master || accepted.YourID.Type() != proto.Master || accepted.YourID == 0 {
		if e, ok := pkt.(*proto.Error); ok {
			m.log(slog.LevelWarn, "identification refused by a master", "addr", p.dialed.String(), "err", e.Error())
		}
		m.close(p)
		return
	}
	if p.role == candidate {
		m.becomeSecondary(p.dialed, p)
	}
	m.second.identified = true
	clear(m.second.tried)
	// Its list of nodes, which follows, tells the rest.
	m.nodes.Put(proto.Node{Type: proto.Master, Addr: p.dialed, ID: accepted.ID, State: proto.NodeRunning})
	m.rename(accepted.YourID)
	m.log(slog.LevelInfo, "ready", "role", "secondary", "node", m.self.ID.String(), "primary", p.dialed.String())
}

// rename takes the id that the primary gives us.
func (m *Machine) rename(id proto.NodeID) {
	self := *m.self
	self.ID = id
	m.self = m.nodes.Put(self)
}

// becomeSecondary leaves the primary role to the master at an address. All
// connections end but the one to keep, if any, which leads there.
func (m *Machine) becomeSecondary(a proto.Address, keep *peer) {
	m.log(slog.LevelDebug, "another master is primary", "addr", a.String())
	for _, p := range m.allPeers() {
		if p != keep {
			m.out = append(m.out, Effect{Op: Close, Conn: p.conn})
			m.forget(p)
		}
	}
	m.learn(a)
	for n := range m.nodes.Nodes() {
		if n.Type != proto.Master {
			m.nodes.Remove(n)
		} else if n != m.self {
			n.State = proto.NodeDown
		}
	}
	m.state = proto.Recovering
	m.reset()
	m.truncate, m.orderedTruncate = proto.Opt[tid.TID]{}, proto.Opt[tid.TID]{}
	m.table.Reset(m.set.Partitions, m.set.Replicas)
	m.second = &secondary{target: a, tried: map[proto.Address]bool{}}
	if keep != nil {
		keep.role = leader
		m.second.link = keep
		return
	}
	m.seek(a)
}

// allPeers returns all connections, oldest first.
func (m *Machine) allPeers() []*peer {
	var list []*peer
	for _, p := range m.peers {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *peer) int { return cmp.Compare(a.conn, b.conn) })
	return list
}

// seek tries the master at an address as primary.
func (m *Machine) seek(a proto.Address) {
	s := m.second
	s.target, s.identified, s.listed = a, false, false
	s.tried[a] = true
	if p := s.link; p != nil {
		s.link = nil
		if !p.gone {
			m.out = append(m.out, Effect{Op: Close, Conn: p.conn})
			m.forget(p)
		}
	}
	m.dial(a)
}

// seekNext tries the next master, and plays primary when none is left.
func (m *Machine) seekNext() {
	for _, n := range m.nodes.OfType(proto.Master) {
		if n != m.self && !n.Addr.IsZero() && !m.second.tried[n.Addr] {
			m.seek(n.Addr)
			return
		}
	}
	if p := m.second.link; p != nil && !p.gone {
		m.out = append(m.out, Effect{Op: Close, Conn: p.conn})
		m.forget(p)
	}
	m.playPrimary()
}

// leaderLost looks for the primary again after the end of the link to it.
func (m *Machine) leaderLost(p *peer) {
	s := m.second
	if s.link != p {
		return
	}
	s.link = nil
	if !s.identified {
		m.seekNext()
		return
	}
	m.log(slog.LevelWarn, "primary lost", "addr", s.target.String())
	for _, n := range m.nodes.OfType(proto.Master) {
		if n != m.self {
			n.State = proto.NodeDown
		}
	}
	if p.silent {
		s.tried[s.target] = true // it would not answer
		m.seekNext()
		return
	}
	m.seek(s.target) // once: it may only have restarted its link
}

// notPrimary handles the redirection to the primary by another master.
func (m *Machine) notPrimary(p *peer, pkt *proto.NotPrimaryMaster) {
	if p.role != candidate && p.role != leader {
		return
	}
	for _, a := range pkt.Masters {
		m.learn(a)
	}
	var named proto.Address
	if pkt.Primary.OK && pkt.Primary.V >= 0 && pkt.Primary.V < len(pkt.Masters) {
		named = pkt.Masters[pkt.Primary.V]
	}
	switch {
	case p.role == leader && (named.IsZero() || named == m.self.Addr || m.second.tried[named]):
		m.seekNext()
	case p.role == leader:
		m.seek(named)
	case named.IsZero() || named == m.self.Addr:
		m.elect()
	default:
		if n := m.nodes.ByAddr(named); n == nil || m.links[n] == nil {
			m.becomeSecondary(named, m.candidateAt(named))
		}
	}
}

// redirect answers, as a secondary master, who identifies itself.
func (m *Machine) redirect(p *peer, id uint32, pkt proto.Packet) {
	r, ok := pkt.(*proto.RequestIdentification)
	switch {
	case !ok:
		m.refuse(p, id, pkt, "identification expected")
		return
	case r.Cluster != m.set.Cluster:
		m.refuse(p, id, pkt, "this is cluster %q, not %q", m.set.Cluster, r.Cluster)
		return
	case r.Type == proto.Master && r.IDTimestamp.OK && !m.second.identified && !r.Addr.IsZero() && r.Addr != m.self.Addr &&
		m.olderThanUs(r.IDTimestamp.V, r.Addr):
		// A candidate, while we do not know whether ours has won. One that is
		// younger than we are cannot win: we have given way to an older one.
		m.close(p)
		m.learn(r.Addr)
		if m.second.target != r.Addr {
			m.seek(r.Addr)
		}
		return
	}
	answer := &proto.NotPrimaryMaster{Masters: m.masters()}
	if m.second.identified && r.Addr != m.second.target {
		if i := slices.Index(answer.Masters, m.second.target); i >= 0 {
			answer.Primary = proto.Some(i)
		}
	}
	m.notify(p, answer)
	m.abort(p)
}

// leaderPacket handles what the primary tells a secondary.
func (m *Machine) leaderPacket(p *peer, id uint32, pkt proto.Packet) {
	switch pkt := pkt.(type) {
	case *proto.NotifyNodeInformation:
		complete := !m.second.listed
		m.second.listed = true
		nodes := slices.DeleteFunc(slices.Clone(pkt.Nodes), func(n proto.Node) bool { return n.Type != proto.Master || n.Addr.IsZero() })
		for _, n := range nodes {
			if n.Addr == m.self.Addr && n.State != proto.NodeRunning {
				m.log(slog.LevelInfo, "stopped by the primary")
				m.exit(nil)
				return
			}
		}
		m.nodes.Update(nodes, complete, func(n *proto.Node) bool { return n == m.self || slices.Contains(m.set.Masters, n.Addr) })
		m.self = m.nodes.ByAddr(m.self.Addr)
		m.learnt = true
	case *proto.NotifyClusterInformation:
		if pkt.State == proto.Stopping {
			m.log(slog.LevelInfo, "the cluster stops")
			m.exit(nil)
		}
	case *proto.NotifyMonitorInformation:
		if msg, ok, err := vitals.Parse(pkt); ok && err == nil && msg.Topic == vitals.Wanted {
			m.notify(p, m.ownVitals().Packet())
			return
		}
		m.unexpected(p, id, pkt)
	default:
		m.unexpected(p, id, pkt)
	}
}
