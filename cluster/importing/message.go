package importing

import (
	"fmt"
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
	d := decoder{p.Info, nil}
	m = &Message{Topic: Topic(d.int(Extension, 0, int64(lastTopic))), Node: proto.NodeID(d.int("node", math.MinInt32, math.MaxInt32))}
	switch m.Topic {
	case Reported:
		m.Report = Report{
			State: State(d.int("state", 0, int64(Done))), Last: d.tid("last"), End: d.tid("end"),
			Transactions: d.count("transactions"), Records: d.count("records"), Bytes: d.count("bytes"), Position: d.count("position"), Size: d.count("size"),
			Rate: d.rate(), Left: time.Duration(d.count("left")), Slow: d.text("slow"), Limit: d.count("limit"),
			Compared: d.tid("compared"), Differences: d.count("differences"), WriteBack: d.tid("write_back"), Behind: d.count("behind"),
			Twice: d.count("twice"), Blobs: d.count("blobs"), Skipped: d.count("skipped"), Note: d.text("note"),
		}
		if at := d.count("compared_at"); at > 0 {
			m.Report.ComparedAt = time.Unix(0, at).UTC()
		}
	case Ordered:
		m.Number = d.int("number", math.MinInt64, math.MaxInt64)
		m.Order = Order{Kind: Kind(d.int("order", 0, int64(Skip))), Rate: d.count("rate"), TID: d.tid("tid")}
		if p.Info["oid"] != nil {
			m.Order.OID = proto.Some(tid.OID(d.tid("oid")))
		}
	case Answered:
		m.Number, m.Text = d.int("number", math.MinInt64, math.MaxInt64), d.text("text")
	}
	return m, true, d.err
}

type decoder struct {
	info map[string]proto.Value
	err  error
}

func (d *decoder) wrong(key string) {
	if d.err == nil {
		d.err = fmt.Errorf("message about an import: invalid %s", key)
	}
}

func (d *decoder) int(key string, least, most int64) int64 {
	n, ok := d.info[key].(int64)
	if !ok || n < least || n > most {
		d.wrong(key)
		return 0
	}
	return n
}

func (d *decoder) count(key string) int64 { return d.int(key, 0, math.MaxInt64) }

func (d *decoder) rate() float64 {
	f, ok := d.info["rate"].(float64)
	if !ok || !(f >= 0 && f <= math.MaxFloat64) {
		d.wrong("rate")
		return 0
	}
	return f
}

func (d *decoder) tid(key string) tid.TID {
	b, _ := d.info[key].([]byte)
	if len(b) != 8 {
		d.wrong(key)
		return 0
	}
	return tid.FromBytes(b)
}

func (d *decoder) text(key string) string {
	b, ok := d.info[key].([]byte)
	if !ok {
		d.wrong(key)
	}
	return string(b)
}
