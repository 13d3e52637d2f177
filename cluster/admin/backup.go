package admin

import (
	"context"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// Keys of NotifyMonitorInformation.
const (
	keyState = "cluster_state"
	keyDown  = "down"
	keyCells = "pt_summary"
)

// upstream is the admin of the cluster that ours is a backup of.
type upstream struct {
	addr     proto.Address // zero: not known
	conn     *link.Conn    // nil: not connected
	accepted bool
	stop     context.CancelFunc // ends the attempts to connect; nil: there are none
}

// identify takes in the admin of a backup cluster.
func (n *Node) identify(ev link.Event, p *proto.RequestIdentification) {
	c := n.monitor.backup(p.Cluster)
	switch {
	case p.Type != proto.Admin:
		ev.Conn.AbortError(ev.ID, proto.ProtocolError, "reject a connection of a %v", p.Type)
	case c == nil:
		ev.Conn.AbortError(ev.ID, proto.ProtocolError, "%q is not a backup cluster that is monitored here", p.Cluster)
	case c.conn != nil:
		ev.Conn.AbortError(ev.ID, proto.ProtocolError, "backup cluster %q is already connected", p.Cluster)
	default:
		c.conn = ev.Conn
		n.peers[ev.Conn].backup = c
		ev.Conn.SetPeer("admin of " + p.Cluster)
		ev.Conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Admin})
		if following.Understands(p.Extra) {
			ev.Conn.Send((&following.Message{Topic: following.Wanted}).Packet())
		}
		n.log.Info("backup cluster connected", "cluster", p.Cluster)
	}
}

// fromBackup handles a packet of the admin of a backup cluster.
func (n *Node) fromBackup(ev link.Event, c *cluster) {
	p, ok := ev.Packet.(*proto.NotifyMonitorInformation)
	if !ok {
		ev.Conn.AbortError(ev.ID, proto.ProtocolError, "unexpected %s", proto.CodeName(ev.Packet.Code()))
		return
	}
	if ok, err := n.followReported(c, p); err != nil {
		ev.Conn.AbortError(ev.ID, proto.ProtocolError, "%v", err)
		return
	} else if ok {
		return
	}
	now := c.status
	for key, v := range p.Info {
		if !now.set(key, v) {
			ev.Conn.AbortError(ev.ID, proto.ProtocolError, "unexpected %s of type %T", key, v)
			return
		}
	}
	if !now.equal(&c.status) {
		c.status = now
		n.changed()
	}
}

// set takes over a value of NotifyMonitorInformation. Unknown keys are ignored.
func (s *status) set(key string, v proto.Value) bool {
	switch key {
	case keyState:
		state, ok := v.(proto.ClusterState)
		s.state = proto.Opt[proto.ClusterState]{V: state, OK: ok}
		return ok || v == nil
	case keyDown:
		down, ok := v.(int64)
		s.down = int(down)
		return ok && down >= 0
	case keyCells:
		cells, ok := v.(map[proto.CellState]int)
		s.cells = cells
		return ok || v == nil
	}
	return true
}

// info returns the values of NotifyMonitorInformation that differ from before;
// all if that is nil.
func (s *status) info(before *status) map[string]proto.Value {
	m := map[string]proto.Value{}
	if before == nil || before.state != s.state {
		m[keyState] = nil
		if s.state.OK {
			m[keyState] = s.state.V
		}
	}
	if before == nil || before.down != s.down {
		m[keyDown] = s.down
	}
	if before == nil || !(&status{cells: before.cells}).equal(&status{cells: s.cells}) {
		m[keyCells] = nil
		if s.cells != nil {
			m[keyCells] = s.cells
		}
	}
	return m
}

// setUpstream changes whom this node reports to.
func (n *Node) setUpstream(addr proto.Address) {
	u := &n.upstream
	if u.addr == addr {
		return
	}
	u.addr = addr
	if u.stop != nil {
		u.stop()
		u.stop = nil
	}
	if u.conn != nil {
		n.discard(u.conn)
		u.conn, u.accepted, n.monitor.following.wanted = nil, false, false
	}
	n.dialUpstream()
}

// dialUpstream tries for ever to connect to the admin of the upstream cluster.
func (n *Node) dialUpstream() {
	u := &n.upstream
	if u.addr.IsZero() {
		return
	}
	addr, cfg := u.addr, n.linkConfig()
	ctx, cancel := context.WithCancel(n.work.ctx)
	u.stop = cancel
	n.work.start(func(context.Context) {
		defer cancel()
		logged := ""
		for ctx.Err() == nil {
			conn, err := n.cfg.Dialer.Dial(ctx, addr, cfg)
			if err == nil {
				if !n.send(dialled{conn, addr}) {
					n.discard(conn)
				}
				return
			}
			if err.Error() != logged && ctx.Err() == nil {
				logged = err.Error()
				n.log.Info("upstream admin not reached yet, trying again", "err", err)
			}
		}
	})
}

func (n *Node) upstreamDialled(ev dialled) {
	u := &n.upstream
	switch {
	case ev.to != u.addr || u.conn != nil:
		n.discard(ev.conn)
		return
	case ev.conn.Closed():
		// Its end may have been before this event.
		n.discard(ev.conn)
		n.dialUpstream()
		return
	}
	u.conn, u.stop = ev.conn, nil
	u.conn.SetPeer("upstream admin")
	u.conn.Ask(&proto.RequestIdentification{Type: proto.Admin, Cluster: n.cfg.Cluster, Extra: map[string]proto.Value{following.Extension: 1}}, nil)
}

// fromUpstream handles an event of the link to the upstream admin.
func (n *Node) fromUpstream(ev link.Event) {
	u := &n.upstream
	if ev.End() {
		n.log.Warn("connection to the upstream admin lost", "err", ev.Err)
		u.conn, u.accepted, n.monitor.following.wanted = nil, false, false
		n.dialUpstream()
		return
	}
	switch p := ev.Packet.(type) {
	case nil: // the loss of our identification; the end follows
	case *proto.AcceptIdentification:
		if p.Type != proto.Admin {
			ev.Conn.Close()
			return
		}
		u.accepted = true
		u.conn.Send(&proto.NotifyMonitorInformation{Info: n.monitor.own.info(nil)})
	case *proto.Error:
		n.log.Warn("upstream admin refuses our reports", "err", p)
		ev.Conn.Close()
	case *proto.AskRecovery, *proto.AskLastTransaction:
		if n.master == nil {
			ev.Conn.AnswerError(ev.ID, proto.NotReady, notConnected)
			return
		}
		n.master.Ask(p.(proto.Request), relay{ev.Conn, ev.ID})
	case *proto.FlushLog:
		n.flushLog()
	case *proto.NotifyMonitorInformation:
		n.followUpstream(p)
	case *proto.NotifyNodeInformation, *proto.NotPrimaryMaster:
		n.log.Debug("ignored", "packet", proto.CodeName(p.Code()), "peer", ev.Conn.String())
	default:
		ev.Conn.AbortError(ev.ID, proto.ProtocolError, "unexpected %s", proto.CodeName(ev.Packet.Code()))
	}
}

// tellUpstream reports what changed.
func (n *Node) tellUpstream(before *status) {
	if n.upstream.accepted {
		n.upstream.conn.Send(&proto.NotifyMonitorInformation{Info: n.monitor.own.info(before)})
	}
}
