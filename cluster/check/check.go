// Package check is what a comparison of replicas finds, as nodes tell each other: a
// storage tells the master, the master the admins, an admin an operator.
//
// Reports travel in NotifyMonitorInformation, whose map has keys that are free. They
// are only sent to nodes which said that they understand them: see [Understands].
package check

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Kind says how a replica differs.
type Kind uint8

const (
	Missing   Kind = iota + 1 // others have it
	Extra                     // the reference, or most replicas, do not have it
	Different                 // from the reference or most replicas; or it is not known which is right
	Damaged                   // it cannot be read, or differs from its checksum
	lastKind  = Damaged
)

var kindNames = [...][2]string{
	Missing:   {"missing transaction", "missing record"},
	Extra:     {"extra transaction", "extra record"},
	Different: {"different metadata", "different data"},
	Damaged:   {"damaged metadata", "damaged data"},
}

// Difference is one transaction, or one record of an object, in which a node differs.
type Difference struct {
	Partition int
	Kind      Kind
	TID       tid.TID
	OID       proto.Opt[tid.OID] // absent: the transaction itself
	Node      proto.NodeID       // 0: the storage of the upstream cluster
}

func (d Difference) String() string {
	node := d.Node.String()
	if d.Node == 0 {
		node = upstreamName
	}
	if !d.OID.OK {
		return fmt.Sprintf("partition %d: %s: %s, tid %#016x", d.Partition, node, kindNames[d.Kind][0], uint64(d.TID))
	}
	return fmt.Sprintf("partition %d: %s: %s, oid %#016x, tid %#016x", d.Partition, node, kindNames[d.Kind][1], uint64(d.OID.V), uint64(d.TID))
}

// upstreamName is what a storage of the upstream cluster is called among nodes.
const upstreamName = "upstream cluster"

// Local, instead of the node that is the reference, orders the master of a backup
// cluster to compare its replicas only, and not with the upstream cluster. It is the id
// of no node. A master of the Python implementation must not be told so: see Started.
var Local = proto.Master.ID(0)

// State is how far the check of a partition is, or what a report without partition
// is about.
type State uint8

const (
	Begun     State = iota // Partitions are going to be compared; to a storage: an order of this check follows
	Comparing              // so far
	Compared               // to the end
	Failed                 // Note says why
	Repair                 // an order: let Nodes get what differs from the reference, or from Source
	Repairing              // the cells of Nodes are taken out of service
	Repaired               // they are back
	Tail                   // to a storage: the order that follows is about the last transactions of Partition, by their ids
	lastState = Tail
)

var stateNames = [...]string{"begun", "comparing", "compared", "failed", "repair", "repairing", "repaired", "tail"}

func (s State) String() string { return stateNames[s] }

// None is the partition of a report about a whole check.
const None = -1

// MaxFound is how many differences are listed for each partition; all are counted.
const MaxFound = 200

// Report tells about a check, or about one of its partitions.
type Report struct {
	Check      int64 // names the check
	Partition  int   // or None
	State      State
	Partitions []int          // of a check that begins
	Reference  proto.NodeID   // that the others are compared with, or repaired from; 0: none
	Min, Max   tid.TID        // what is compared
	Rows       int            // transactions and records compared so far
	Total      int            // differences found so far
	Found      []Difference   // since the last report, as far as they are listed
	Nodes      []proto.NodeID // that differ, so far
	Stuck      []proto.NodeID // that cannot be repaired from the reference, which is damaged as well
	Note       string         // what the operator should know
	Upstream   string         // cluster whose copy is the reference, "": none; Reference is 0 then
	Faulty     bool           // that copy is damaged somewhere
}

// Extension is the key by which a node says in its identification that it
// understands reports. Nodes of the Python implementation ignore it.
const Extension = "check"

// Version is what a storage says with that key. The first one knows no Tail.
const Version = 2

// UnderstandsTail reports whether a storage that identified itself can compare the last
// transactions of a partition with the upstream cluster.
func UnderstandsTail(extra map[string]proto.Value) bool {
	v, _ := extra[Extension].(int64)
	return v >= 2
}

// What a node that understands reports is answered to the order of a check: its name
// follows Started.
const (
	Started = "check "
	Nothing = "nothing to check"
)

// Understands reports whether a node that identified itself understands reports.
func Understands(extra map[string]proto.Value) bool {
	v, _ := extra[Extension].(int64)
	return v >= 1
}

// Packet returns the packet that carries a report.
func (r *Report) Packet() *proto.NotifyMonitorInformation {
	found := make([]proto.Value, 0, len(r.Found))
	for _, d := range r.Found {
		oid := proto.Value(nil)
		if d.OID.OK {
			oid = d.OID.V.Bytes()
		}
		found = append(found, []proto.Value{int64(d.Kind), d.TID.Bytes(), oid, int64(d.Node)})
	}
	// The values are those that a receiver gets.
	return &proto.NotifyMonitorInformation{Info: map[string]proto.Value{
		Extension: r.Check, "partition": int64(r.Partition), "state": int64(r.State), "partitions": numbers(r.Partitions),
		"reference": int64(r.Reference), "min": r.Min.Bytes(), "max": r.Max.Bytes(), "rows": int64(r.Rows), "total": int64(r.Total),
		"found": found, "nodes": numbers(r.Nodes), "stuck": numbers(r.Stuck), "note": []byte(r.Note),
		"upstream": []byte(r.Upstream), "faulty": r.Faulty,
	}}
}

func numbers[T int | proto.NodeID](list []T) []proto.Value {
	out := make([]proto.Value, 0, len(list))
	for _, n := range list {
		out = append(out, int64(n))
	}
	return out
}

// Parse returns the report that a packet carries; ok is false if it carries none.
func Parse(p *proto.NotifyMonitorInformation) (r *Report, ok bool, err error) {
	if _, ok := p.Info[Extension]; !ok {
		return nil, false, nil
	}
	d := proto.NewFields("report of a check", p.Info)
	r = &Report{
		Check: d.Int(Extension, math.MinInt64, math.MaxInt64), Partition: int(d.Int("partition", None, math.MaxInt32)),
		State: State(d.Int("state", 0, int64(lastState))), Reference: d.Node("reference"), Min: d.TID("min"), Max: d.TID("max"),
		Rows: int(d.Count("rows")), Total: int(d.Count("total")), Note: d.Text("note"),
	}
	// Nodes of an earlier version know of no upstream cluster.
	if _, ok := d.Lookup("upstream"); ok {
		r.Upstream = d.Text("upstream")
	}
	if _, ok := d.Lookup("faulty"); ok {
		r.Faulty = d.Bool("faulty")
	}
	for _, v := range d.List("partitions") {
		r.Partitions = append(r.Partitions, int(d.IntOf("partitions", v, 0, math.MaxInt32)))
	}
	for key, to := range map[string]*[]proto.NodeID{"nodes": &r.Nodes, "stuck": &r.Stuck} {
		for _, v := range d.List(key) {
			*to = append(*to, proto.NodeID(d.IntOf(key, v, math.MinInt32, math.MaxInt32)))
		}
	}
	for _, v := range d.List("found") {
		row, _ := v.([]proto.Value)
		if len(row) != 4 {
			d.Wrong("found")
			break
		}
		f := Difference{
			Partition: r.Partition, Kind: Kind(d.IntOf("kind", row[0], 1, int64(lastKind))), TID: d.TIDOf("tid", row[1]),
			Node: proto.NodeID(d.IntOf("node", row[3], math.MinInt32, math.MaxInt32)),
		}
		if row[2] != nil {
			f.OID = proto.Some(tid.OID(d.TIDOf("oid", row[2])))
		}
		r.Found = append(r.Found, f)
	}
	return r, true, d.Err()
}

// Part is a partition of a check.
type Part struct {
	State     State
	Reference proto.NodeID
	Min, Max  tid.TID
	Rows      int
	Total     int
	Found     []Difference // at most MaxFound
	Nodes     []proto.NodeID
	Stuck     []proto.NodeID
	Notes     []string
	Upstream  string
	Faulty    bool
}

// Over reports whether nothing more is going to happen.
func (p *Part) Over() bool { return p.State == Compared || p.State == Failed || p.State == Repaired }

// Run is a check.
type Run struct {
	ID    int64
	Parts map[int]*Part
	Note  string // why there is none
}

// Over reports whether the check has ended, or the repair that followed it.
func (r *Run) Over() bool {
	for _, p := range r.Parts {
		if !p.Over() {
			return false
		}
	}
	return true
}

// Partitions returns the partitions of the check, sorted.
func (r *Run) Partitions() []int {
	list := make([]int, 0, len(r.Parts))
	for n := range r.Parts {
		list = append(list, n)
	}
	slices.Sort(list)
	return list
}

// Apply adds what a report says.
func (r *Run) Apply(rep *Report) {
	if r.Parts == nil {
		r.Parts = map[int]*Part{}
	}
	if rep.Partition == None {
		switch rep.State {
		case Begun:
			for _, n := range rep.Partitions {
				if r.Parts[n] == nil {
					r.Parts[n] = &Part{Reference: rep.Reference, Min: rep.Min, Max: rep.Max, Upstream: rep.Upstream}
				}
			}
		case Failed:
			r.Note = rep.Note
		}
		return
	}
	p := r.Parts[rep.Partition]
	if p == nil {
		p = &Part{}
		r.Parts[rep.Partition] = p
	}
	p.State, p.Reference = rep.State, rep.Reference
	if rep.Note != "" && !slices.Contains(p.Notes, rep.Note) {
		p.Notes = append(p.Notes, rep.Note)
	}
	if rep.State == Repairing || rep.State == Repaired {
		return
	}
	p.Min, p.Max = rep.Min, rep.Max
	p.Rows, p.Total = max(p.Rows, rep.Rows), max(p.Total, rep.Total)
	for _, f := range rep.Found {
		if len(p.Found) < MaxFound {
			p.Found = append(p.Found, f)
		}
	}
	p.Nodes, p.Stuck = union(p.Nodes, rep.Nodes), union(p.Stuck, rep.Stuck)
	p.Faulty = p.Faulty || rep.Faulty
	if rep.Upstream != "" {
		p.Upstream = rep.Upstream
	}
}

func union(a, b []proto.NodeID) []proto.NodeID {
	for _, id := range b {
		if !slices.Contains(a, id) {
			a = append(a, id)
		}
	}
	return a
}

// mark is what the last check of a partition has found.
type mark struct {
	check    int64
	min, max tid.TID
	total    int
	nodes    []proto.NodeID
	upstream string // compared with that cluster
	faulty   bool   // which has a part in it
}

// maxRuns is how many checks are remembered in detail.
const maxRuns = 16

// Board is what is known of the checks of a cluster. The zero value is ready.
type Board struct {
	runs  []*Run // oldest first
	marks map[int]mark
}

// Run returns a check, nil if it is not known.
func (b *Board) Run(id int64) *Run {
	for _, r := range b.runs {
		if r.ID == id {
			return r
		}
	}
	return nil
}

// Runs returns the checks that are known, oldest first.
func (b *Board) Runs() []*Run { return b.runs }

// Apply adds what a report says.
func (b *Board) Apply(rep *Report) {
	r := b.Run(rep.Check)
	if r == nil {
		r = &Run{ID: rep.Check}
		b.runs = append(b.runs, r)
		if len(b.runs) > maxRuns {
			if i := slices.IndexFunc(b.runs, (*Run).Over); i >= 0 && b.runs[i] != r {
				b.runs = slices.Delete(b.runs, i, i+1)
			}
		}
	}
	r.Apply(rep)
	if rep.Partition == None || rep.State != Compared && rep.State != Failed {
		return
	}
	p := r.Parts[rep.Partition]
	old, marked := b.marks[rep.Partition]
	switch {
	case p.Total > 0:
		if b.marks == nil {
			b.marks = map[int]mark{}
		}
		m := mark{rep.Check, p.Min, p.Max, p.Total, p.Nodes, p.Upstream, p.Faulty}
		if marked { // what it said of another range still holds
			m.min, m.max = min(m.min, old.min), max(m.max, old.max)
			if m.upstream == "" {
				m.upstream = old.upstream
			}
		}
		b.marks[rep.Partition] = m
	case old.upstream != "" && p.Upstream == "": // it did not look at that
	case rep.State == Compared && marked && p.Min <= old.min && p.Max >= old.max:
		delete(b.marks, rep.Partition)
	}
}

// Left is called when the cluster is no backup any more: from then on a check of the
// replicas decides alone.
func (b *Board) Left() {
	for n, m := range b.marks {
		m.upstream = ""
		b.marks[n] = m
	}
}

// Lost returns the reports that end what is under way: nothing more is heard of it.
func (b *Board) Lost(why string) []*Report {
	var list []*Report
	for _, r := range b.runs {
		for _, n := range r.Partitions() {
			if p := r.Parts[n]; !p.Over() {
				list = append(list, &Report{Check: r.ID, Partition: n, State: Failed, Reference: p.Reference, Min: p.Min, Max: p.Max,
					Rows: p.Rows, Total: p.Total, Note: why, Upstream: p.Upstream})
			}
		}
	}
	return list
}

// Replay returns reports that make an empty board equal to this one, as far as
// differences, and checks that are not over, go.
func (b *Board) Replay() []*Report {
	var list []*Report
	for _, n := range sortedKeys(b.marks) {
		m := b.marks[n]
		list = append(list, &Report{Check: m.check, Partition: n, State: Compared, Min: m.min, Max: m.max, Total: m.total, Nodes: m.nodes,
			Upstream: m.upstream, Faulty: m.faulty})
	}
	for _, r := range b.runs {
		if r.Over() {
			continue
		}
		list = append(list, r.Replay()...)
	}
	return list
}

// Replay returns reports that make an empty check equal to this one.
func (r *Run) Replay() []*Report {
	list := []*Report{{Check: r.ID, Partition: None, Partitions: r.Partitions()}}
	for _, n := range r.Partitions() {
		p := r.Parts[n]
		rep := Report{Check: r.ID, Partition: n, State: p.State, Reference: p.Reference, Min: p.Min, Max: p.Max,
			Rows: p.Rows, Total: p.Total, Found: p.Found, Nodes: p.Nodes, Stuck: p.Stuck, Note: strings.Join(p.Notes, "; "),
			Upstream: p.Upstream, Faulty: p.Faulty}
		if p.State == Repairing || p.State == Repaired { // which carry no findings
			before := rep
			before.State, before.Note = Compared, ""
			list = append(list, &before)
		}
		list = append(list, &rep)
	}
	return list
}

// Differ returns the partitions that had differences when they were last checked, sorted.
func (b *Board) Differ() []int { return sortedKeys(b.marks) }

// Summary says which partitions had differences when they were last checked, "" if
// none is known.
func (b *Board) Summary() string {
	if len(b.marks) == 0 {
		return ""
	}
	total := 0
	var parts []string
	var nodes []proto.NodeID
	faulty := false
	for _, n := range sortedKeys(b.marks) {
		m := b.marks[n]
		faulty = faulty || m.faulty
		total += m.total
		parts = append(parts, fmt.Sprint(n))
		nodes = append(nodes, m.nodes...)
	}
	slices.Sort(nodes)
	var names []string
	for _, id := range slices.Compact(nodes) {
		names = append(names, id.String())
	}
	if faulty {
		names = append(names, upstreamName)
	}
	const most = 20
	if len(parts) > most {
		parts = append(parts[:most], fmt.Sprintf("and %d more", len(parts)-most))
	}
	noun := func(n int, one string) string {
		if n == 1 {
			return one
		}
		return one + "s"
	}
	return fmt.Sprintf("CHECK: replicas differ (%d %s; %s %s; %s %s)", total, noun(total, "difference"),
		noun(len(b.marks), "partition"), strings.Join(parts, ", "), noun(len(names), "node"), strings.Join(names, ", "))
}

func sortedKeys(m map[int]mark) []int {
	list := make([]int, 0, len(m))
	for n := range m {
		list = append(list, n)
	}
	slices.Sort(list)
	return list
}
