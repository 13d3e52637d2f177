package following

import (
	"math"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Extension is the key by which a node says in its identification that it understands
// messages about backup clusters. Nodes of the Python implementation ignore it.
const Extension = "following"

// HoldKey is the key by which a storage says in its identification which hold its database
// remembers, in 8 bytes; absent: none. Others ignore it.
const HoldKey = "backup_hold"

// Understands reports whether a node that identified itself understands messages about
// backup clusters.
func Understands(extra map[string]proto.Value) bool {
	v, _ := extra[Extension].(int64)
	return v >= 1
}

// Topic says what a [Message] is.
type Topic uint8

const (
	Wanted    Topic = iota // an operator asks an admin for the report from now on
	Reported               // Report: from the master to admins, from an admin to operators and to the admin upstream
	Ordered                // Order: from an operator to an admin to the master
	Answered               // to the order Number: Text says why it was not obeyed, "" that it was
	Agreed                 // Terms: from the master to a storage, before StartOperation and when they change
	Known                  // from an admin to operators: all reports that it knows were told
	Recorded               // Stored: from a storage to the master, when operation begins and when it changes
	lastTopic = Recorded
)

// Message is what nodes tell each other about a backup cluster. It travels in
// NotifyMonitorInformation, whose map has keys that are free.
type Message struct {
	Topic   Topic
	Number  int64  // names an order between two nodes
	Report  Report // if Reported
	Cluster string // if Reported by an admin to an operator: the backup that it watches; "": its own cluster
	Order   Order  // if Ordered
	Terms   Terms  // if Agreed
	Stored  Stored // if Recorded
	Text    string // if Answered
}

// Packet returns the packet that carries a report.
func (r *Report) Packet() *proto.NotifyMonitorInformation {
	return (&Message{Topic: Reported, Report: *r}).Packet()
}

// Packet returns the packet that carries an order, which number names in the answer.
func (o *Order) Packet(number int64) *proto.NotifyMonitorInformation {
	return (&Message{Topic: Ordered, Number: number, Order: *o}).Packet()
}

// Packet returns the packet by which a master tells its terms to a storage.
func (t *Terms) Packet() *proto.NotifyMonitorInformation {
	return (&Message{Topic: Agreed, Terms: *t}).Packet()
}

// Packet returns the packet by which a storage tells what it has recorded.
func (s *Stored) Packet() *proto.NotifyMonitorInformation {
	return (&Message{Topic: Recorded, Stored: *s}).Packet()
}

// Packet returns the packet that carries a message. What is negative and must not be
// becomes 0.
func (m *Message) Packet() *proto.NotifyMonitorInformation {
	// The values are those that a receiver gets.
	info := map[string]proto.Value{Extension: int64(m.Topic)}
	switch m.Topic {
	case Reported:
		r := &m.Report
		opens := int64(0)
		if !r.Opens.Before(time.Unix(0, 0)) && !r.Opens.After(time.Unix(0, math.MaxInt64)) { // others have no UnixNano
			opens = r.Opens.UnixNano()
		}
		for key, v := range map[string]int64{"due": int64(r.Due), "delay": int64(r.Delay), "rate": r.Rate, "opens": opens} {
			info[key] = max(0, v)
		}
		for key, t := range map[string]tid.TID{"backup": r.Backup, "readable": r.Readable, "upstream": r.Upstream, "bound": r.Bound,
			"gap_begin": r.Gap[0], "gap_end": r.Gap[1]} {
			info[key] = t.Bytes()
		}
		info["cluster"] = []byte(m.Cluster)
		info["hold"], info["closed"], info["linked"], info["note"] = optional(r.Hold), r.Closed, r.Linked, []byte(r.Note)
	case Ordered:
		info["number"], info["order"], info["tid"] = m.Number, int64(m.Order.Kind), optional(m.Order.TID)
	case Answered:
		info["number"], info["text"] = m.Number, []byte(m.Text)
	case Agreed:
		info["paused"] = m.Terms.Paused
		info["rate"], info["packs"], info["hold"] = max(0, m.Terms.Rate), m.Terms.Packs.Bytes(), optional(m.Terms.Hold)
	case Recorded:
		info["tid"], info["gap_begin"], info["gap_end"] = m.Stored.TID.Bytes(), m.Stored.Gap[0].Bytes(), m.Stored.Gap[1].Bytes()
	}
	return &proto.NotifyMonitorInformation{Info: info}
}

func optional(t proto.Opt[tid.TID]) proto.Value {
	if !t.OK {
		return nil
	}
	return t.V.Bytes()
}

// Parse returns the message that a packet carries; ok is false if it carries none.
func Parse(p *proto.NotifyMonitorInformation) (m *Message, ok bool, err error) {
	if _, ok := p.Info[Extension]; !ok {
		return nil, false, nil
	}
	d := fields{proto.NewFields("message about a backup cluster", p.Info)}
	m = &Message{Topic: Topic(d.Int(Extension, 0, int64(lastTopic)))}
	switch m.Topic {
	case Reported:
		m.Report = Report{
			Backup: d.tid("backup"), Readable: d.tid("readable"), Upstream: d.tid("upstream"), Bound: d.tid("bound"),
			Due: time.Duration(d.Count("due")), Hold: d.optional("hold"), Delay: time.Duration(d.Count("delay")),
			Closed: d.Bool("closed"), Linked: d.Bool("linked"), Rate: d.Count("rate"),
			Gap: [2]tid.TID{d.tid("gap_begin"), d.tid("gap_end")}, Note: d.Text("note"),
		}
		if at := d.Count("opens"); at > 0 {
			m.Report.Opens = time.Unix(0, at).UTC()
		}
		m.Cluster = d.Text("cluster")
	case Ordered:
		m.Number = d.Int("number", math.MinInt64, math.MaxInt64)
		m.Order = Order{Kind: Kind(d.Int("order", 0, int64(lastKind))), TID: d.optional("tid")}
	case Answered:
		m.Number, m.Text = d.Int("number", math.MinInt64, math.MaxInt64), d.Text("text")
	case Agreed:
		m.Terms = Terms{Paused: d.Bool("paused"), Rate: d.Count("rate"), Packs: d.tid("packs"), Hold: d.optional("hold")}
	case Recorded:
		m.Stored = Stored{TID: d.tid("tid"), Gap: [2]tid.TID{d.tid("gap_begin"), d.tid("gap_end")}}
	}
	return m, true, d.Err()
}

// fields reads a message.
type fields struct{ *proto.Fields }

// tid reads a transaction id that databases can hold.
func (f fields) tid(key string) tid.TID {
	t := f.TID(key)
	if t > tid.Max {
		f.Wrong(key)
		return tid.Zero
	}
	return t
}

// optional reads a TID that may be nil, but must be there.
func (f fields) optional(key string) (t proto.Opt[tid.TID]) {
	if v, ok := f.Lookup(key); ok && v == nil {
		return t
	}
	return proto.Some(f.tid(key))
}
