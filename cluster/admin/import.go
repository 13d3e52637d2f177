package admin

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// imports are the imports of the cluster, as the primary master reports them.
type imports struct {
	reports map[proto.NodeID]importing.Report
	orders  map[int64]importOrder // by the number under which the master knows it
	last    int64                 // number given
	news    string                // see importNews
}

// importOrder is where the answer to an order goes.
type importOrder struct {
	conn   *link.Conn
	number int64 // of the operator
}

// nodes returns the storages that import, in order.
func (i *imports) nodes() []proto.NodeID { return slices.Sorted(maps.Keys(i.reports)) }

// bad reports whether an import needs the operator.
func (i *imports) bad() bool {
	for _, r := range i.reports {
		if r.State.Bad() {
			return true
		}
	}
	return false
}

// lines are what the summary says, each with a line break before it.
func (i *imports) lines() string {
	var b strings.Builder
	for _, id := range i.nodes() {
		r := i.reports[id]
		// A sentence of the storage is one line here.
		fmt.Fprintf(&b, "\n%sstorage %v: %s", importing.SummaryPrefix, id, strings.Join(strings.Fields(r.String()), " "))
	}
	return b.String()
}

// importNews is what is worth a mail when it changes: that an import is over, well or
// not, and what to do then.
func (i *imports) importNews() string {
	text := ""
	for _, id := range i.nodes() {
		if r := i.reports[id]; r.State.Over() {
			text += fmt.Sprintf("import %v %v\n", id, r.State)
		}
	}
	return text
}

// importMessage takes what the primary master says of imports. It reports whether the
// packet was about that.
func (n *Node) importMessage(p *proto.NotifyMonitorInformation) bool {
	m, ok, err := importing.Parse(p)
	switch {
	case err != nil:
		n.log.Warn("message not understood", "err", err)
		return true
	case !ok:
		return false
	}
	i := &n.monitor.imports
	switch m.Topic {
	case importing.Reported:
		if i.reports == nil {
			i.reports = map[proto.NodeID]importing.Report{}
		}
		i.reports[m.Node] = m.Report
		n.tellImport(p)
	case importing.Gone:
		delete(i.reports, m.Node)
		n.tellImport(p)
	case importing.Answered:
		if o, ok := i.orders[m.Number]; ok {
			delete(i.orders, m.Number)
			answerImport(o, m.Text)
		}
	default:
		n.log.Warn("unexpected message about an import", "topic", m.Topic)
	}
	n.importsChanged()
	return true
}

// importsChanged starts a check if something is worth a mail.
func (n *Node) importsChanged() {
	if news := n.monitor.imports.importNews(); news != n.monitor.imports.news {
		n.monitor.imports.news = news
		n.changed()
	}
}

// tellImport tells the operators that follow.
func (n *Node) tellImport(p *proto.NotifyMonitorInformation) {
	for c, o := range n.peers {
		if o.imports {
			c.Send(p)
		}
	}
}

func answerImport(o importOrder, text string) {
	o.conn.Send((&importing.Message{Topic: importing.Answered, Number: o.number, Text: text}).Packet())
}

// importsLost forgets what only the primary master knew. A new one is told again.
func (n *Node) importsLost() {
	i := &n.monitor.imports
	for _, number := range slices.Sorted(maps.Keys(i.orders)) {
		answerImport(i.orders[number], "the primary master was lost before it answered: see neoctl print import whether the order was obeyed")
	}
	for _, id := range i.nodes() {
		n.tellImport((&importing.Message{Topic: importing.Gone, Node: id}).Packet())
	}
	i.orders, i.reports = nil, nil
	n.importsChanged()
}

// importAsked serves an operator. It only comes from one that has found an import in
// the summary, and reports whether the packet was about imports.
func (n *Node) importAsked(c *link.Conn, id uint32, p *proto.NotifyMonitorInformation) bool {
	m, ok, err := importing.Parse(p)
	if err == nil && !ok {
		return false
	}
	i := &n.monitor.imports
	switch {
	case err == nil && m.Topic == importing.Wanted:
		n.peers[c].imports = true
		for _, id := range i.nodes() {
			r := i.reports[id]
			c.Send(r.Packet(id))
		}
		c.Send((&importing.Message{Topic: importing.Known}).Packet())
	case err == nil && m.Topic == importing.Ordered:
		o := importOrder{c, m.Number}
		node, why := n.importingNode(m.Node)
		if why != "" {
			answerImport(o, why)
			break
		}
		if i.orders == nil {
			i.orders = map[int64]importOrder{}
		}
		i.last++
		i.orders[i.last] = o
		n.master.Send(m.Order.Packet(node, i.last))
	default:
		c.AbortError(id, proto.ProtocolError, "%s is not for an admin", proto.CodeName(p.Code()))
	}
	return true
}

// importingNode returns the storage that an order is for, or why there is none.
func (n *Node) importingNode(id proto.NodeID) (_ proto.NodeID, why string) {
	nodes := n.monitor.imports.nodes()
	switch {
	case n.master == nil:
		return 0, notConnected
	case id != 0 && !slices.Contains(nodes, id):
		return 0, fmt.Sprintf("%v reports no import", id)
	case id != 0:
		return id, ""
	}
	// One that is over does not count beside one that is not.
	under := slices.DeleteFunc(slices.Clone(nodes), func(id proto.NodeID) bool { return n.monitor.imports.reports[id].State == importing.Done })
	if len(under) == 0 {
		under = nodes
	}
	switch len(under) {
	case 0:
		return 0, "no storage reports an import"
	case 1:
		return under[0], ""
	}
	return 0, fmt.Sprintf("%v and %v import: the order does not say which is meant", under[0], under[1])
}
