package admin

import (
	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// checkReported takes what the master reports of a check of replicas.
func (n *Node) checkReported(p *proto.NotifyMonitorInformation) {
	r, ok, err := check.Parse(p)
	switch {
	case err != nil:
		n.log.Warn("report not understood", "err", err)
	case ok:
		n.checkChanged(r)
	}
}

// checkChanged notes a report and tells the operators that follow the check.
func (n *Node) checkChanged(r *check.Report) {
	if r.Partition != check.None || r.State == check.Begun {
		n.checks.Apply(r)
	}
	n.noteCheck(r)
	for c, p := range n.peers {
		if p.checks[r.Check] {
			c.Send(r.Packet())
		}
	}
	if s := n.checks.Summary(); s != n.monitor.checks {
		n.monitor.checks = s
		n.changed()
	}
}

// checksLost ends what is under way. What was found before is remembered: a new master
// does not know of it.
func (n *Node) checksLost() {
	for _, r := range n.checks.Lost("the primary master was lost") {
		n.checkChanged(r)
	}
}

// followCheck lets an operator follow a check, and passes on the order to repair what
// it found. It is only sent by an operator that was told the name of a check.
func (n *Node) followCheck(c *link.Conn, id uint32, p *proto.NotifyMonitorInformation) {
	r, ok, err := check.Parse(p)
	if err != nil || !ok {
		c.AbortError(id, proto.ProtocolError, "%s is not for an admin", proto.CodeName(p.Code()))
		return
	}
	fail := func(why string) {
		c.Send((&check.Report{Check: r.Check, Partition: check.None, State: check.Failed, Note: why}).Packet())
	}
	switch run := n.checks.Run(r.Check); {
	case run == nil:
		fail("this admin knows of no such check")
	case r.State == check.Repair && n.master == nil:
		fail(notConnected)
	case r.State == check.Repair:
		n.master.Send(p)
	default:
		o := n.peers[c]
		if o.checks == nil {
			o.checks = map[int64]bool{}
		}
		o.checks[r.Check] = true
		for _, r := range run.Replay() {
			c.Send(r.Packet())
		}
	}
}
