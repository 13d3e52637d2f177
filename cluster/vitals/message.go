package vitals

import (
	"math"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Extension is the key by which a node says in its identification that it understands
// these messages. Nodes of the Python implementation ignore it.
const Extension = "vitals"

// Understands reports whether a node that identified itself understands these messages.
func Understands(extra map[string]proto.Value) bool {
	v, _ := extra[Extension].(int64)
	return v >= 1
}

// Topic says what a [Message] is.
type Topic uint8

const (
	Wanted    Topic = iota // a master asks a node for its reports from now on, an operator an admin for all it knows
	Reported               // Node: from a node to its master to admins, from an admin to operators
	Gone                   // Node.ID left at Node.Since: from a master to admins
	Packed                 // Pack: from a master to admins, from an admin to operators
	Checked                // Check: from an admin to operators
	Known                  // Cluster, from an admin to operators: all that it knows was told
	lastTopic = Known
)

// Message is what nodes tell each other. It travels in NotifyMonitorInformation, whose map
// has keys that are free.
type Message struct {
	Topic   Topic
	Node    Node
	Pack    Pack
	Check   Check
	Cluster string
}

// Packet returns the packet that carries a message. What is negative and must not be
// becomes 0.
func (m *Message) Packet() *proto.NotifyMonitorInformation {
	// The values are those that a receiver gets.
	info := map[string]proto.Value{Extension: int64(m.Topic)}
	switch m.Topic {
	case Reported, Gone:
		n := &m.Node
		info["node"], info["since"] = int64(n.ID), nanos(n.Since)
		if m.Topic == Gone {
			break
		}
		info["known"], info["host"], info["version"], info["started"] = n.Known, []byte(n.Host), []byte(n.Version), nanos(n.Started)
		info["adapter"], info["database"], info["pack_disabled"] = []byte(n.Adapter), []byte(n.Database), n.PackDisabled
		info["commits"], info["loads"] = max(0, n.Commits), max(0, n.Loads)
		info["commit_rate"], info["load_rate"] = finite(n.CommitRate), finite(n.LoadRate)
		info["copying"], info["partition"] = n.Copy.Active, int64(max(0, n.Copy.Partition))
		info["reached"], info["end"] = n.Copy.Reached.Bytes(), n.Copy.End.Bytes()
	case Packed:
		k := &m.Pack
		info["order"], info["up_to"] = k.Order.Bytes(), k.UpTo.Bytes()
		info["partial"], info["signed"], info["done"], info["waiting"] = k.Partial, k.Signed, k.Done, numbers(k.Waiting)
	case Checked:
		k := &m.Check
		info["begun"], info["ended"], info["complete"] = nanos(k.Begun), nanos(k.Ended), k.Complete
		info["partitions"], info["rows"], info["differences"] = int64(max(0, k.Partitions)), int64(max(0, k.Rows)), int64(max(0, k.Differences))
		info["nodes"], info["differ"] = numbers(k.Nodes), numbers(k.Differ)
	case Known:
		info["cluster"] = []byte(m.Cluster)
	}
	return &proto.NotifyMonitorInformation{Info: info}
}

// nanos is a moment in nanoseconds since 1970, 0 if it is not known.
func nanos(t time.Time) int64 {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) { // others have no UnixNano
		return 0
	}
	return t.UnixNano()
}

func finite(f float64) float64 {
	if !(f >= 0 && f <= math.MaxFloat64) {
		return 0
	}
	return f
}

func numbers[T int | proto.NodeID](list []T) []proto.Value {
	values := make([]proto.Value, len(list))
	for i, n := range list {
		values[i] = int64(n)
	}
	return values
}

// Parse returns the message that a packet carries; ok is false if it carries none.
func Parse(p *proto.NotifyMonitorInformation) (m *Message, ok bool, err error) {
	if _, ok := p.Info[Extension]; !ok {
		return nil, false, nil
	}
	d := fields{proto.NewFields("message about a node", p.Info)}
	m = &Message{Topic: Topic(d.Int(Extension, 0, int64(lastTopic)))}
	switch m.Topic {
	case Reported:
		m.Node = Node{
			ID: d.Node("node"), Since: d.moment("since"), Known: d.Bool("known"), CommitRate: d.Float("commit_rate"), LoadRate: d.Float("load_rate"),
			Report: Report{
				Self:         Self{Host: d.Text("host"), Version: d.Text("version"), Started: d.moment("started"), Adapter: d.Text("adapter"), Database: d.Text("database")},
				PackDisabled: d.Bool("pack_disabled"), Commits: d.Count("commits"), Loads: d.Count("loads"),
				Copy: Copy{Active: d.Bool("copying"), Partition: int(d.Int("partition", 0, math.MaxInt32)), Reached: d.tid("reached"), End: d.tid("end")},
			},
		}
	case Gone:
		m.Node = Node{ID: d.Node("node"), Since: d.moment("since")}
	case Packed:
		m.Pack = Pack{Order: d.tid("order"), UpTo: d.tid("up_to"), Partial: d.Bool("partial"), Signed: d.Bool("signed"), Done: d.Bool("done"),
			Waiting: list[proto.NodeID](d, "waiting", math.MinInt32)}
	case Checked:
		m.Check = Check{Begun: d.moment("begun"), Ended: d.moment("ended"), Complete: d.Bool("complete"),
			Partitions: int(d.Int("partitions", 0, math.MaxInt32)), Rows: int(d.Count("rows")), Differences: int(d.Count("differences")),
			Nodes: list[proto.NodeID](d, "nodes", math.MinInt32), Differ: list[int](d, "differ", 0)}
	case Known:
		m.Cluster = d.Text("cluster")
	}
	return m, true, d.Err()
}

// fields reads a message.
type fields struct{ *proto.Fields }

// moment reads a time that may be unknown.
func (f fields) moment(key string) time.Time {
	if at := f.Count(key); at > 0 {
		return time.Unix(0, at).UTC()
	}
	return time.Time{}
}

// tid reads a transaction id, of which what no database can hold is the greatest one.
func (f fields) tid(key string) tid.TID { return min(f.TID(key), tid.Max) }

// list reads numbers from least to the greatest of 32 bits.
func list[T int | proto.NodeID](f fields, key string, least int64) []T {
	var list []T
	for _, v := range f.List(key) {
		list = append(list, T(f.IntOf(key, v, least, math.MaxInt32)))
	}
	return list
}
