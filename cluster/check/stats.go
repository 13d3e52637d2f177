package check

import "time"

// Stats is what is known of the checks of a cluster.
type Stats struct {
	Differences int // found by the last check of each partition, as far as no later one was clean
	Partitions  int // that differ, by that
	// Last is when the last check that is known was ordered, zero if none is. Over: it has ended.
	// Failed is how many of its partitions could not be compared to the end.
	Last   time.Time
	Over   bool
	Failed int
}

// Stats sums up what is known.
func (b *Board) Stats() Stats {
	s := Stats{Partitions: len(b.marks)}
	for _, m := range b.marks {
		s.Differences += m.total
	}
	if len(b.runs) == 0 {
		return s
	}
	r := b.runs[len(b.runs)-1]
	s.Last, s.Over = time.Unix(0, r.ID), r.Over() // the id is the time of the order
	for _, p := range r.Parts {
		if p.State == Failed {
			s.Failed++
		}
	}
	return s
}
