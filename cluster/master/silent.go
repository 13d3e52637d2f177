package master

import (
	"log/slog"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/proto"
)

// silent handles that a peer gives no sign of life any more. Its connection is
// closed, unless the cluster would stop for want of its cells: then it has to be
// waited for in any case, and what goes on without it goes on. The question comes
// again as long as the peer is silent.
func (m *Machine) silent(p *peer, d time.Duration, beats bool) {
	if !m.expendable(p, beats) {
		if !m.stillSilent(p) {
			m.log(slog.LevelWarn, "a storage gives no sign of life, but nothing can replace it", "node", p.String(), "silence", d.String())
		}
		p.silent, p.silentAt = true, m.now
		return
	}
	m.log(slog.LevelWarn, "a node gives no sign of life and is given up", "node", p.String(), "silence", d.String())
	p.silent = true
	m.out = append(m.out, Effect{Op: GiveUp, Conn: p.conn, Silence: d})
	m.drop(p)
}

// silentFor is how long a peer counts as silent after that was last said, which is
// said every second: that it gives signs of life again is not, unless it sends a packet.
const silentFor = 5 * time.Second

// stillSilent reports whether a peer that was not given up is silent now.
func (m *Machine) stillSilent(p *peer) bool { return p.silent && m.now.Sub(p.silentAt) < silentFor }

// expendable reports whether the cluster is better off without a silent peer.
func (m *Machine) expendable(p *peer, beats bool) bool {
	switch {
	case p.role != member || p.node.Type != proto.Storage || m.state == proto.Recovering:
		return true
	case p.node.State != proto.NodeRunning:
		return true
	case m.state == proto.Verifying && !beats:
		return false // it may be busy cutting its data
	case m.superseded(p):
		return true
	case m.truncate.OK || m.undecided(p.node.ID):
		return false // its loss leads back to recovery
	case m.state == proto.Stopping && len(m.txns.pending) == 0:
		return true // only its mark is waited for
	}
	heard := func(id proto.NodeID) bool {
		s := m.stores[id]
		return m.running(id) && s != p && (s == nil || !m.stillSilent(s))
	}
	return m.table.Operational(heard) && m.covered(func(id proto.NodeID) bool { return heard(id) && m.serves(id) })
}

// superseded reports whether another master may be primary by now: one that becomes
// so starts with all storages that can be read by a table that one of them has, and this
// one hears none of these any more. It must not be taken for the primary when it is back, with storages of which
// only it believes that they are connected, and a table that is not continued.
func (m *Machine) superseded(p *peer) bool {
	if len(m.masters()) < 2 {
		return false
	}
	return !m.covered(func(id proto.NodeID) bool {
		s := m.stores[id]
		return s != nil && s != p && !m.stillSilent(s) && slices.Contains(m.table.ReadableNodes(), id)
	})
}

// placeClaim is an identification as a node that is connected already.
type placeClaim struct {
	old  *peer // the connected one
	peer *peer
	id   uint32
	req  *proto.RequestIdentification
}

// claimed handles that a peer identifies itself as a node that is connected. That
// one may be dead, which TCP tells late: it is asked, and the claim waits.
func (m *Machine) claimed(old, p *peer, id uint32, r *proto.RequestIdentification) {
	if !slices.ContainsFunc(m.claims, func(c placeClaim) bool { return c.old == old }) {
		m.log(slog.LevelInfo, "a node that is connected comes again", "node", old.String(), "addr", r.Addr.String())
		m.out = append(m.out, Effect{Op: Probe, Conn: old.conn})
	}
	m.claims = append(m.claims, placeClaim{old, p, id, r})
}

// probed decides about the claims to the place of a peer. One that does not answer
// is dead if it gives signs of life by itself. A Python node may be in its database:
// the claim comes again until the connection is known to be dead.
func (m *Machine) probed(old *peer, alive, beats bool) {
	var claims []placeClaim
	for _, c := range m.claims {
		if c.old == old && !c.peer.gone {
			claims = append(claims, c)
		}
	}
	if !alive && beats && len(claims) > 0 {
		m.log(slog.LevelWarn, "a node gives no sign of life, and its place is claimed", "node", old.String())
		m.close(old) // this admits the other
		return
	}
	m.claims = slices.DeleteFunc(m.claims, func(c placeClaim) bool { return c.old == old })
	code := proto.NotReady
	if alive {
		code = proto.ProtocolError
	}
	for _, c := range claims {
		m.refuseAs(code, c.peer, c.id, c.req, "%v is already connected", old)
	}
}

// admitClaims identifies those who waited for the place of a peer that is gone.
func (m *Machine) admitClaims() {
	for {
		i := slices.IndexFunc(m.claims, func(c placeClaim) bool { return c.old.gone })
		if i < 0 {
			return
		}
		c := m.claims[i]
		m.claims = slices.Delete(m.claims, i, i+1)
		switch {
		case c.peer.gone || c.peer.role != stranger:
		case m.second != nil:
			m.redirect(c.peer, c.id, c.req)
		default:
			m.identify(c.peer, c.id, c.req)
		}
	}
}
