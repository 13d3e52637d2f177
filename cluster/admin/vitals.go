package admin

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/vitals"
)

// vitalBoard is what is known of nodes beyond the protocol. It outlives the link to the
// master, as the names of machines and databases do.
type vitalBoard struct {
	nodes map[proto.NodeID]*vital
	pack  vitals.Pack // last one; its Order is Zero: none is known
	check checkTimes  // of the last one
}

// vital is what is known of a node.
type vital struct {
	vitals.Node
	at    time.Time // of the last report; zero: there was none from this process of the node
	base  base      // of the rates
	rated time.Time // when the rates were found
}

// base is what a node had done at a moment.
type base struct {
	at             time.Time // zero: not known
	commits, loads int64
}

// checkTimes is when a check was made.
type checkTimes struct {
	id           int64
	begun, ended time.Time
}

// rateAge is how long a rate holds if no other report follows: a node reports what has
// changed only.
const rateAge = 5 * vitals.Every / 2

func (b *vitalBoard) node(id proto.NodeID) *vital {
	v := b.nodes[id]
	if v == nil {
		if b.nodes == nil {
			b.nodes = map[proto.NodeID]*vital{}
		}
		v = &vital{Node: vitals.Node{ID: id}}
		b.nodes[id] = v
	}
	return v
}

// reported notes a report, and how much was done since an earlier one.
func (v *vital) reported(r *vitals.Report, now time.Time) {
	before := &v.base
	switch since := now.Sub(before.at); {
	case v.at.IsZero() || before.at.IsZero() || !v.Started.Equal(r.Started) || r.Commits < before.commits || r.Loads < before.loads:
		// The rates are between reports of the same process.
		v.CommitRate, v.LoadRate, v.rated = 0, 0, time.Time{}
		*before = base{now, r.Commits, r.Loads}
	case since >= vitals.Every/2: // else some work is counted at a random moment
		// A node that had nothing to tell for a while tells what came lately.
		seconds := min(since, rateAge).Seconds()
		v.CommitRate, v.LoadRate, v.rated = float64(r.Commits-before.commits)/seconds, float64(r.Loads-before.loads)/seconds, now
		*before = base{now, r.Commits, r.Loads}
	}
	v.Report, v.Known, v.at = *r, true, now
}

// vitalsMessage takes what the primary master says of nodes. It reports whether the packet
// was about that.
func (n *Node) vitalsMessage(p *proto.NotifyMonitorInformation) bool {
	m, ok, err := vitals.Parse(p)
	switch {
	case !ok:
		return false
	case err != nil:
		n.log.Warn("message not understood", "err", err)
	case m.Topic == vitals.Wanted:
		n.master.Send((&vitals.Message{Topic: vitals.Reported, Node: vitals.Node{ID: n.id, Known: true, Report: vitals.Report{Self: n.cfg.Self}}}).Packet())
	case m.Topic == vitals.Reported:
		n.vitals.node(m.Node.ID).reported(&m.Node.Report, time.Now())
	case m.Topic == vitals.Gone:
		v := n.vitals.node(m.Node.ID)
		v.Since, v.at = m.Node.Since, time.Time{}
	case m.Topic == vitals.Packed:
		n.vitals.pack = m.Pack
	default:
		n.log.Warn("unexpected message about a node", "topic", m.Topic)
	}
	return true
}

// noteStates notes when nodes come into their states. What the first message of a link says
// may have been so for long: only the master knows that.
func (n *Node) noteStates(nodes []proto.Node) {
	for _, node := range nodes {
		if node.ID == 0 {
			continue
		}
		old := n.nodes.ByID(node.ID)
		if old != nil && old.State == node.State && old.IDTimestamp == node.IDTimestamp {
			continue
		}
		known := n.vitals.nodes[node.ID]
		switch {
		case node.State == proto.NodeRunning || node.State == proto.NodePending:
			if known != nil {
				known.Since, known.at = time.Time{}, time.Time{} // see IDTimestamp
			}
			if known != nil && (node.Type == proto.Client || node.Type == proto.Admin) {
				delete(n.vitals.nodes, node.ID) // it may be another one
			}
		case n.fresh:
			if known != nil {
				known.Since = time.Time{}
			}
		case node.Type == proto.Client || node.Type == proto.Admin:
			delete(n.vitals.nodes, node.ID)
		default:
			if v := n.vitals.node(node.ID); v.Since.IsZero() { // else the master has said it
				v.Since, v.at = time.Now(), time.Time{}
			}
		}
	}
}

// noteCheck notes when a check was made.
func (n *Node) noteCheck(r *check.Report) {
	c := &n.vitals.check
	switch {
	case r.Partition == check.None && r.State == check.Begun:
		*c = checkTimes{id: r.Check, begun: time.Now()}
	case r.Check != c.id:
		return
	}
	if run := n.checks.Run(c.id); run != nil && c.ended.IsZero() && len(run.Parts) > 0 && run.Over() {
		c.ended = time.Now()
	}
}

// lastCheck returns what the last check has found; nil: none is known.
func (n *Node) lastCheck() *vitals.Check {
	t := n.vitals.check
	run := n.checks.Run(t.id)
	if run == nil || t.begun.IsZero() {
		return nil
	}
	c := &vitals.Check{Begun: t.begun, Ended: t.ended, Complete: true, Partitions: len(run.Parts), Differ: n.checks.Differ()}
	for _, p := range run.Parts {
		c.Complete = c.Complete && p.State != check.Failed
		c.Rows += p.Rows
		c.Differences += p.Total
		c.Nodes = append(c.Nodes, p.Nodes...)
	}
	slices.Sort(c.Nodes)
	c.Nodes = slices.Compact(c.Nodes)
	return c
}

// vitalsAsked serves an operator. It reports whether the packet was about nodes.
func (n *Node) vitalsAsked(c *link.Conn, id uint32, p *proto.NotifyMonitorInformation) bool {
	m, ok, err := vitals.Parse(p)
	if err == nil && !ok {
		return false
	}
	if err != nil || m.Topic != vitals.Wanted {
		c.AbortError(id, proto.ProtocolError, "%s is not for an admin", proto.CodeName(p.Code()))
		return true
	}
	send := func(m *vitals.Message) { c.Send(m.Packet()) }
	now := time.Now()
	for _, id := range slices.SortedFunc(maps.Keys(n.vitals.nodes), cmp.Compare[proto.NodeID]) {
		v := n.vitals.nodes[id]
		node := v.Node
		if now.Sub(v.rated) > rateAge {
			node.CommitRate, node.LoadRate = 0, 0
		}
		send(&vitals.Message{Topic: vitals.Reported, Node: node})
	}
	if n.vitals.pack.Order != tid.Zero {
		send(&vitals.Message{Topic: vitals.Packed, Pack: n.vitals.pack})
	}
	if c := n.lastCheck(); c != nil {
		send(&vitals.Message{Topic: vitals.Checked, Check: *c})
	}
	send(&vitals.Message{Topic: vitals.Known, Cluster: n.cfg.Cluster})
	return true
}
