package status

import (
	"fmt"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
)

// Level is how well a cluster is, which is also what neoctl health exits with.
type Level int

// Levels.
const (
	OK       Level = 0 // all is well
	Degraded Level = 1 // it serves, but something needs the operator
	Down     Level = 2 // clients cannot work, or that is not known
)

func (l Level) String() string {
	switch l {
	case OK:
		return "ok"
	case Degraded:
		return "degraded"
	default:
		return "down"
	}
}

// MarshalText implements [encoding.TextMarshaler].
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (l *Level) UnmarshalText(text []byte) error {
	for _, level := range []Level{OK, Degraded, Down} {
		if level.String() == string(text) {
			*l = level
			return nil
		}
	}
	return fmt.Errorf("%q is not ok, degraded or down", text)
}

// Health is how well a cluster is, and why: a sentence without full stop for each
// reason, the worst first; none if it is OK.
type Health struct {
	Level   Level    `json:"level"`
	Reasons []string `json:"reasons"`
}

// Health judges the status.
func (s *Status) Health() Health {
	if s.Unknown != "" {
		return Health{Down, []string{s.Unknown}}
	}
	var down, degraded []string
	switch s.State {
	case proto.Running.String(), proto.BackingUp.String():
	case proto.StartingBackup.String(), proto.StoppingBackup.String():
		degraded = append(degraded, "the cluster is "+s.State)
	case proto.Recovering.String():
		text := "the cluster is " + s.State
		if s.unmade() {
			text += ", and no storage that is there has a partition table: if the cluster is new, neoctl start makes one of the storages that there are then; if not, start those that are missing"
		}
		down = append(down, text)
	default:
		down = append(down, "the cluster is "+s.State)
	}
	lost, few := s.copies()
	down, degraded = append(down, lost...), append(degraded, few...)
	degraded = append(degraded, s.masters()...)
	degraded = append(degraded, s.work()...)
	for _, name := range slices.Concat(s.Problems, s.Warnings) {
		if name != "" {
			degraded = append(degraded, fmt.Sprintf("the backup cluster %q is not well, or late", name))
		}
	}
	if slices.Contains(s.Problems, "") && down == nil && degraded == nil {
		degraded = append(degraded, "the admin reports a problem: "+strings.Join(strings.Fields(s.Summary), " "))
	}
	h := Health{Reasons: append(append([]string{}, down...), degraded...)}
	switch {
	case down != nil:
		h.Level = Down
	case degraded != nil:
		h.Level = Degraded
	}
	return h
}

// unmade reports that the partition table has no cell at all, as in a new cluster and in one
// of which no storage has come back yet.
func (s *Status) unmade() bool {
	return len(s.Partitions.Rows) > 0 && !slices.ContainsFunc(s.Partitions.Rows, func(row []Cell) bool { return len(row) > 0 })
}

// copies returns which partitions have no readable copy, and which have too few.
func (s *Status) copies() (lost, few []string) {
	if len(s.Partitions.Rows) == 0 || s.State == proto.Recovering.String() && s.unmade() {
		return nil, nil // the state of the cluster says so
	}
	wanted := s.Partitions.Replicas + 1
	type reason struct {
		text string
		lost bool
		of   []int
	}
	var reasons []*reason
	for p, row := range s.Partitions.Rows {
		readable, missing := 0, []string(nil)
		for i := range row {
			c := &row[i]
			n := s.Node(c.Node)
			switch {
			case n == nil || !n.Running():
				missing = append(missing, s.name(c.Node, n)+" is "+stateSince(n))
			case !c.Readable():
				missing = append(missing, s.name(c.Node, n)+" is "+c.State)
			default:
				readable++
			}
		}
		if readable >= wanted && missing == nil {
			continue
		}
		text := fmt.Sprintf("%s of %d", readableCopies(readable), wanted)
		switch {
		case readable >= wanted: // another one is being made, or would have to go: no node is to be stopped now
			text = fmt.Sprintf("enough readable copies, but %s", strings.Join(missing, ", "))
		case missing != nil:
			text += ": " + strings.Join(missing, ", ")
		case len(row) < wanted:
			text += ": no storage is to have another one (neoctl tweak)"
		}
		i := slices.IndexFunc(reasons, func(r *reason) bool { return r.text == text })
		if i < 0 {
			i = len(reasons)
			reasons = append(reasons, &reason{text: text, lost: readable == 0})
		}
		reasons[i].of = append(reasons[i].of, p)
	}
	for _, r := range reasons {
		have := "has"
		if len(r.of) > 1 {
			have = "have"
		}
		text := fmt.Sprintf("%s %s %s", PartitionNames(r.of), have, r.text)
		if r.lost {
			lost = append(lost, text)
		} else {
			few = append(few, text)
		}
	}
	return lost, few
}

// PartitionNames names partitions, with ranges of those that follow each other: partition 7, partitions 0-3, 7.
func PartitionNames(list []int) string {
	if len(list) == 1 {
		return fmt.Sprintf("partition %d", list[0])
	}
	var parts []string
	for i := 0; i < len(list); {
		k := i
		for k+1 < len(list) && list[k+1] == list[k]+1 {
			k++
		}
		if k == i {
			parts = append(parts, fmt.Sprint(list[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", list[i], list[k]))
		}
		i = k + 1
	}
	return "partitions " + strings.Join(parts, ", ")
}

// masters returns which masters cannot become primary.
func (s *Status) masters() (reasons []string) {
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.Type == proto.Master.String() && !n.Running() {
			name := n.Address
			if n.ID != "" {
				name = n.Name()
			}
			reasons = append(reasons, "the master "+name+" is "+stateSince(n))
		}
	}
	return reasons
}

// work returns what needs the operator beside nodes and copies.
func (s *Status) work() (reasons []string) {
	for _, i := range s.Imports {
		if i.Bad {
			reasons = append(reasons, fmt.Sprintf("the import of %s has stopped (%s): neoctl print import", s.name(i.Node, s.Node(i.Node)), i.State))
		}
	}
	if s.Check != nil {
		reasons = append(reasons, s.Check.Reasons()...)
	}
	for _, b := range s.Backups {
		if b.Cluster == "" && !b.Linked {
			reasons = append(reasons, "the master of the upstream cluster is not connected")
		}
	}
	return reasons
}

// Reasons returns why the check needs the operator.
func (c *Check) Reasons() (reasons []string) {
	switch {
	case len(c.Differ) > 0:
		reasons = append(reasons, fmt.Sprintf("the last check of replicas found differences in %s (neoctl check, neoctl repair)", PartitionNames(c.Differ)))
	case c.Ended == nil && c.Differences > 0:
		reasons = append(reasons, "the check of replicas that goes on has found differences (neoctl status)")
	}
	if c.Ended != nil && !c.Complete {
		reasons = append(reasons, "the last check of replicas could not compare everything (neoctl check)")
	}
	return reasons
}

func readableCopies(n int) string {
	switch n {
	case 0:
		return "no readable copy"
	case 1:
		return "one readable copy"
	}
	return fmt.Sprintf("%d readable copies", n)
}

// name is a node as people know it: S2 (db2, /var/lib/neo/s2.sqlite).
func (s *Status) name(id string, n *Node) string {
	if n == nil {
		return id
	}
	return n.Name()
}

// Name is the node as people know it: S2 (db2, /var/lib/neo/s2.sqlite).
func (n *Node) Name() string {
	id := n.ID
	if id == "" {
		id = strings.ToLower(n.Type)
	}
	var parts []string
	for _, s := range []string{n.Host, n.Database} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if parts == nil && n.Address != "" {
		parts = []string{n.Address}
	}
	if parts == nil {
		return id
	}
	return id + " (" + strings.Join(parts, ", ") + ")"
}

func stateSince(n *Node) string {
	if n == nil {
		return proto.NodeUnknown.String()
	}
	if n.Since == nil {
		return n.State
	}
	return n.State + " since " + n.Since.UTC().Format("2006-01-02 15:04:05 UTC")
}
