// Package latency counts how long something took, by classes of time.
//
// # Invariant
//
// To count costs no lock and no memory. The classes never change, so that the counts of all
// nodes can be added up.
package latency

import (
	"sync/atomic"
	"time"
)

// Bounds are the upper ends of the classes, ascending. One more class has what took longer.
var Bounds = [...]time.Duration{
	250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second,
}

// Histogram counts. The zero Histogram is ready for use, by any goroutine.
type Histogram struct {
	counts [len(Bounds) + 1]atomic.Uint64
	sum    atomic.Int64 // ns
}

// Observe counts something that took d.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0) // a clock that was set back
	i := 0
	for i < len(Bounds) && d > Bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// Snapshot is what a Histogram has counted.
type Snapshot struct {
	Count uint64
	Sum   time.Duration
	// Within has, for each of Bounds, how many took no longer.
	Within [len(Bounds)]uint64
}

// Snapshot returns what was counted until now.
func (h *Histogram) Snapshot() Snapshot {
	s := Snapshot{Sum: time.Duration(h.sum.Load())}
	for i := range h.counts {
		s.Count += h.counts[i].Load()
		if i < len(Bounds) {
			s.Within[i] = s.Count
		}
	}
	return s
}
