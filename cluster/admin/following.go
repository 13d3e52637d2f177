package admin

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// backup is what the primary master reports of how far our cluster follows another one.
type backup struct {
	orders map[int64]importOrder // by the number under which the master knows it
	last   int64                 // number given
	wanted bool                  // by the admin upstream
}

// inBackup reports whether a report of the cluster says anything.
func (s *status) inBackup() bool {
	return s.state.OK && (s.state.V == proto.StartingBackup || s.state.V == proto.BackingUp || s.state.V == proto.StoppingBackup)
}

// line is what the summary says of how far a cluster follows, with a line break and an
// indentation before it; "" if it does not.
func (c *cluster) followLine(indent string) string {
	if c.follows == nil || !c.inBackup() {
		return ""
	}
	return "\n" + indent + following.SummaryPrefix + strings.Join(strings.Fields(c.follows.String()), " ")
}

// due is how late a backup is, if it says so itself: what a delay or a window keeps back is
// not late. Otherwise it is how far behind it is.
func (c *cluster) due(l lag) lag {
	r := c.follows
	if !l.known || r == nil || r.Upstream == 0 {
		return l
	}
	return lag{known: true, time: r.Due, behind: r.Readable < r.Bound}
}

// followMessage takes what the primary master says of a backup. It reports whether the
// packet was about that.
func (n *Node) followMessage(p *proto.NotifyMonitorInformation) bool {
	m, ok, err := following.Parse(p)
	switch {
	case !ok:
		return false
	case err != nil:
		n.log.Warn("message not understood", "err", err)
	case m.Topic == following.Reported:
		n.monitor.own.follows = &m.Report
		if u := &n.upstream; u.accepted && n.monitor.following.wanted {
			u.conn.Send(m.Report.Packet())
		}
	case m.Topic == following.Answered:
		if o, ok := n.monitor.following.orders[m.Number]; ok {
			delete(n.monitor.following.orders, m.Number)
			answerFollow(o, m.Text)
		}
	default:
		n.log.Warn("unexpected message about a backup cluster", "topic", m.Topic)
	}
	return true
}

func answerFollow(o importOrder, text string) {
	o.conn.Send((&following.Message{Topic: following.Answered, Number: o.number, Text: text}).Packet())
}

// followLost forgets what only the primary master knew.
func (n *Node) followLost() {
	f := &n.monitor.following
	for _, number := range slices.Sorted(maps.Keys(f.orders)) {
		answerFollow(f.orders[number], "the primary master was lost before it answered: see neoctl print backup whether the order was obeyed")
	}
	f.orders, n.monitor.own.follows = nil, nil
}

// followAsked serves an operator. It reports whether the packet was about backups.
func (n *Node) followAsked(c *link.Conn, id uint32, p *proto.NotifyMonitorInformation) bool {
	m, ok, err := following.Parse(p)
	if err == nil && !ok {
		return false
	}
	f := &n.monitor.following
	switch {
	case err == nil && m.Topic == following.Wanted:
		for _, o := range append([]*cluster{&n.monitor.own}, n.monitor.backups...) {
			if o.follows == nil || !o.inBackup() {
				continue
			}
			r := following.Message{Topic: following.Reported, Report: *o.follows}
			if o != &n.monitor.own {
				r.Cluster = o.name
			}
			c.Send(r.Packet())
		}
		c.Send((&following.Message{Topic: following.Known}).Packet())
	case err == nil && m.Topic == following.Ordered:
		o := importOrder{c, m.Number}
		if n.master == nil {
			answerFollow(o, notConnected)
			break
		}
		if n.monitor.own.follows == nil {
			answerFollow(o, "the cluster is no backup of another one")
			break
		}
		if f.orders == nil {
			f.orders = map[int64]importOrder{}
		}
		f.last++
		f.orders[f.last] = o
		n.master.Send(m.Order.Packet(f.last))
	default:
		c.AbortError(id, proto.ProtocolError, "%s is not for an admin", proto.CodeName(p.Code()))
	}
	return true
}

// followUpstream takes what the admin upstream says: that it wants reports.
func (n *Node) followUpstream(p *proto.NotifyMonitorInformation) {
	m, ok, err := following.Parse(p)
	if err != nil || !ok || m.Topic != following.Wanted {
		n.log.Debug("ignored", "packet", proto.CodeName(p.Code()), "peer", "upstream admin", "err", err)
		return
	}
	n.monitor.following.wanted = true
	if r := n.monitor.own.follows; r != nil && n.upstream.accepted {
		n.upstream.conn.Send(r.Packet())
	}
}

// followReported takes a report of the admin of a backup cluster. It reports whether the
// packet was one.
func (n *Node) followReported(c *cluster, p *proto.NotifyMonitorInformation) (bool, error) {
	m, ok, err := following.Parse(p)
	switch {
	case !ok:
		return false, nil
	case err == nil && m.Topic != following.Reported:
		err = fmt.Errorf("unexpected message about a backup cluster, of topic %d", m.Topic)
	}
	if err != nil {
		return true, err
	}
	c.follows = &m.Report
	return true, nil
}
