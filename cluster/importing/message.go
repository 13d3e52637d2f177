package importing

import (
	"math"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Extension is the key by which a node says in its identification that it understands
// messages about imports. Only a storage that imports has it, and admins. Nodes of the
// Python implementation ignore it.
const Extension = "import"

// Understands reports whether a node that identified itself understands messages about
// imports.
func Understands(extra map[string]proto.Value) bool {
	v, _ := extra[Extension].(int64)
	return v >= 1
}

// Topic says what a [Message] is.
type Topic uint8

const (
	Wanted    Topic = iota // a master asks a storage, or an operator an admin, for the reports from now on
	Reported               // Report, of Node
	Gone                   // nothing is known any more of the import of Node
	Known                  // to an operator: all that was known has been told
	Ordered                // Order, for Node
	Answered               // to the order Number: Text says why it was not obeyed, "" that it was
	lastTopic = Answered
)

// Message is what nodes tell each other about imports. It travels in
// NotifyMonitorInformation, whose map has keys that are free.
type Message struct {
	Topic  Topic
	Node   proto.NodeID // the storage; 0 in an order of an operator: the one that imports
	Number int64        // names an order between two nodes
	Report Report       // if Reported
	Order  Order        // if Ordered
	Text   string       // if Answered
}

// Packet returns the packet by which a storage tells its report.
func (r *Report) Packet(node proto.NodeID) *proto.NotifyMonitorInformation {
	return (&Message{Topic: Reported, Node: node, Report: *r}).Packet()
}

// Packet returns the packet that carries an order to a storage, or to an admin.
func (o *Order) Packet(node proto.NodeID, number int64) *proto.NotifyMonitorInformation {
	return (&Message{Topic: Ordered, Node: node, Number: number, Order: *o}).Packet()
}

// Packet returns the packet that carries a message.
func (m *Message) Packet() *proto.NotifyMonitorInformation {
	// The values are those that a receiver gets.
	info := map[string]proto.Value{Extension: int64(m.Topic), "node": int64(m.Node)}
	switch m.Topic {
	case Reported:
		r := &m.Report
		compared := int64(0)
		if !r.ComparedAt.IsZero() {
			compared = r.ComparedAt.UnixNano()
		}
		rate := r.Rate
		if !(rate >= 0 && rate <= math.MaxFloat64) { // a division by no time, perhaps
			rate = 0
		}
		for key, v := range map[string]int64{
			"state": int64(r.State), "transactions": r.Transactions, "records": r.Records, "bytes": r.Bytes, "position": r.Position, "size": r.Size,
			"left": int64(r.Left), "limit": r.Limit, "compared_at": compared, "differences": r.Differences, "behind": r.Behind,
			"twice": r.Twice, "blobs": r.Blobs, "skipped": r.Skipped,
		} {
			info[key] = max(0, v)
		}
		for key, t := range map[string]tid.TID{"last": r.Last, "end": r.End, "compared": r.Compared, "write_back": r.WriteBack} {
			info[key] = t.Bytes()
		}
		info["rate"], info["slow"], info["note"] = rate, []byte(r.Slow), []byte(r.Note)
	case Ordered:
		info["number"], info["order"], info["rate"], info["tid"] = m.Number, int64(m.Order.Kind), m.Order.Rate, m.Order.TID.Bytes()
		info["oid"] = nil
		if m.Order.OID.OK {
			info["oid"] = m.Order.OID.V.Bytes()
		}
	case Answered:
		info["number"], info["text"] = m.Number, []byte(m.Text)
	}
	return &proto.NotifyMonitorInformation{Info: info}
}

// Parse returns the message that a packet carries; ok is false if it carries none.
func Parse(p *proto.NotifyMonitorInformation) (m *Message, ok bool, err error) {
	if _, ok := p.Info[Extension]; !ok {
		return nil, false, nil
	}
	d := proto.NewFields("message about an import", p.Info)
	m = &Message{Topic: Topic(d.Int(Extension, 0, int64(lastTopic))), Node: d.Node("node")}
	switch m.Topic {
	case Reported:
		m.Report = Report{
			State: State(d.Int("state", 0, int64(Done))), Last: d.TID("last"), End: d.TID("end"),
			Transactions: d.Count("transactions"), Records: d.Count("records"), Bytes: d.Count("bytes"), Position: d.Count("position"), Size: d.Count("size"),
			Rate: d.Float("rate"), Left: time.Duration(d.Count("left")), Slow: d.Text("slow"), Limit: d.Count("limit"),
			Compared: d.TID("compared"), Differences: d.Count("differences"), WriteBack: d.TID("write_back"), Behind: d.Count("behind"),
			Twice: d.Count("twice"), Blobs: d.Count("blobs"), Skipped: d.Count("skipped"), Note: d.Text("note"),
		}
		if at := d.Count("compared_at"); at > 0 {
			m.Report.ComparedAt = time.Unix(0, at).UTC()
		}
	case Ordered:
		m.Number = d.Int("number", math.MinInt64, math.MaxInt64)
		m.Order = Order{Kind: Kind(d.Int("order", 0, int64(Skip))), Rate: d.Count("rate"), TID: d.TID("tid")}
		if p.Info["oid"] != nil {
			m.Order.OID = proto.Some(tid.OID(d.TID("oid")))
		}
	case Answered:
		m.Number, m.Text = d.Int("number", math.MinInt64, math.MaxInt64), d.Text("text")
	}
	return m, true, d.Err()
}
