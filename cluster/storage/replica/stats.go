package replica

import (
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// Stats is how far replication and checks are.
type Stats struct {
	Cells int // to be replicated, being replicated, or not declared up to date yet by the master
	// Lag is how far the last one of them is behind what it is to have, by the times of the
	// transactions. A cell that has nothing yet does not count, nor one that waits for the master.
	Lag         time.Duration
	Comparing   bool   // replicas are being compared
	Differences uint64 // found so far in comparisons of this machine
}

// Stats returns the present state. It changes nothing.
func (m *Machine) Stats() Stats {
	s := Stats{Comparing: m.checks.current != nil, Differences: m.checks.differences}
	for p, c := range m.cells {
		upTo, todo := m.todo[p]
		if m.busy(p) {
			upTo, todo = max(upTo, m.current.max), true
		}
		if todo || c.blocker.OK || m.incomplete[p] {
			s.Cells++
		}
		if next := min(c.nextTrans, c.nextObj); todo && next > tid.Zero && next <= upTo {
			s.Lag = max(s.Lag, upTo.Time().Sub(next.Time()))
		}
	}
	return s
}
