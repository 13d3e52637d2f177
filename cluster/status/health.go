package status

import (
	"fmt"
	"strings"
	"time"

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

// Health is how well a cluster is, and why: a sentence without full stop for each
// reason, the worst first; none if it is OK.
type Health struct {
	Level   Level    `json:"level"`
	Reasons []string `json:"reasons"`
}

// Health judges the status.
func (s *Status) Health() Health {
	var down, degraded []string
	if s.Unknown != "" {
		return Health{Down, []string{s.Unknown}}
	}
	switch s.State {
	case proto.Running.String(), proto.BackingUp.String():
	case proto.StartingBackup.String(), proto.StoppingBackup.String():
		degraded = append(degraded, "the cluster is "+s.State)
	default:
		down = append(down, "the cluster is "+s.State)
	}
	for p, row := range s.Partitions.Rows {
		readable, missing := 0, []string(nil)
		for i := range row {
			c := &row[i]
			n := s.Node(c.Node)
			switch {
			case n == nil || !n.Running():
				missing = append(missing, s.name(c.Node, n)+" is "+stateSince(n))
			case !c.Readable():
				missing = append(missing, s.name(c.Node, n)+" has "+c.State)
			default:
				readable++
			}
		}
		wanted := s.Partitions.Replicas + 1
		if readable >= wanted && missing == nil {
			continue
		}
		text := fmt.Sprintf("partition %d has %s of %d", p, copies(readable), wanted)
		if missing != nil {
			text += ": " + strings.Join(missing, ", ")
		}
		if readable == 0 {
			down = append(down, text)
		} else {
			degraded = append(degraded, text)
		}
	}
	h := Health{Reasons: append(down, degraded...)}
	switch {
	case down != nil:
		h.Level = Down
	case degraded != nil:
		h.Level = Degraded
	}
	return h
}

func copies(n int) string {
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
	return n.State + " since " + n.Since.UTC().Format(time.RFC3339)
}
