package replica

import (
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// Stats is how far replication and checks are.
type Stats struct {
	Cells int // to be replicated or being replicated
	// Lag is how far the last one of them is behind what it is to have, by the times of the
	// transactions. A cell that has nothing yet does not count.
	Lag         time.Duration
	Comparing   bool   // replicas are being compared
	Differences uint64 // found so far in comparisons of this machine
}

// Stats returns the present state. It changes nothing.
func (m *Machine) Stats() Stats {
	s := Stats{Comparing: m.checks.current != nil, Differences: m.checks.differences}
	add := func(c *progress, upTo tid.TID) {
		s.Cells++
		if next := min(c.nextTrans, c.nextObj); next > tid.Zero && next <= upTo {
			s.Lag = max(s.Lag, upTo.Time().Sub(next.Time()))
		}
	}
	for p, upTo := range m.todo {
		if c := m.cells[p]; c != nil && !m.busy(p) {
			add(c, upTo)
		}
	}
	if f := m.current; f != nil {
		add(f.cell, max(f.max, m.todo[f.partition]))
	}
	return s
}
