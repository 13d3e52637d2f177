package writer

import (
	"slices"
	"time"
)

// When a manifest is due, and how segments are merged.
const (
	publishTails = 64             // tails, heartbeats too, since the last manifest
	publishBytes = 8 << 20        // stored in them
	publishAge   = 24 * time.Hour // of the last manifest, if there is a tail

	fanOut = 64 // adjacent segments of a tier that become one of the next

	// A flush with more text than this is stored as segments of their own. Less goes behind
	// the note of the tail.
	smallText = 8 << 20
)

// Limits of time.
const (
	// maxStall is how long after its last tail a writer may take an answer 200 for an
	// acknowledgement without looking at the chain again.
	maxStall = 10 * time.Minute
	// maxUnreferenced is how long a stored segment may be named by no tail or manifest. A
	// prune may doom it after 24 hours.
	maxUnreferenced = 12 * time.Hour
)

// due reports whether a manifest is due: tails since the last one, the bytes stored in
// them, and its age.
func due(tails int, bytes int64, age time.Duration) bool {
	return tails >= publishTails || bytes > publishBytes || tails > 0 && age >= publishAge
}

// piece is a line of the history that is not in a page, as the plan sees it.
type piece struct {
	bytes int64
	tier  int  // how often its content was merged; 0: it is behind a tail
	tail  bool // it is behind a tail: covered by a manifest only as a copy
	open  bool // its plaintext is in the spool, so that it can be merged
}

// run is what becomes one line: pieces [from, to).
type run struct {
	from, to int
	tier     int
	sealed   bool // never to be merged again
}

// copied reports whether the run needs a new segment.
func (r run) copied(p []piece) bool { return r.to-r.from > 1 || p[r.from].tail && p[r.from].open }

// merges returns what becomes of the pieces of a lineage when a manifest is published, in
// their order and all of them. Pieces that are not open stay. Those before one that is not
// open can only be sealed: nothing will be adjacent to them any more. Of the last ones
//
//   - as much as fits into a segment is sealed if all together reach its size,
//   - those behind tails become one of tier 1,
//   - and fanOut pieces of a tier become one of the next, with smaller ones between them.
func merges(p []piece, segmentSize int64) []run {
	var list []run
	for i := 0; i < len(p); {
		if !p[i].open {
			list = append(list, run{i, i + 1, p[i].tier, true})
			i++
			continue
		}
		end := i
		for end < len(p) && p[end].open {
			end++
		}
		if end < len(p) {
			for i < end {
				n := fit(p[i:end], segmentSize)
				list = append(list, run{i, i + n, 0, true})
				i += n
			}
			continue
		}
		for size(p[i:]) >= segmentSize {
			n := fit(p[i:], segmentSize)
			list = append(list, run{i, i + n, 0, true})
			i += n
		}
		list = append(list, open(p, i)...)
		break
	}
	return list
}

// open returns what becomes of the pieces from i on, which stay open.
func open(p []piece, i int) []run {
	var list []run
	for j := i; j < len(p); j++ {
		if last := len(list) - 1; p[j].tail && last >= 0 && p[list[last].to-1].tail {
			list[last].to++ // with the tails before it
			continue
		}
		tier := p[j].tier
		if p[j].tail {
			tier = 1
		}
		list = append(list, run{j, j + 1, tier, false})
	}
	for tier, more := 1, true; more; tier++ {
		more = false
		for _, r := range list {
			more = more || r.tier > tier
		}
		// Of the tier and below it, at the end.
		n, first, last := 0, len(list), 0
		for first > 0 && list[first-1].tier <= tier {
			if first--; list[first].tier == tier {
				n++
				last = max(last, first)
			}
		}
		if n >= fanOut {
			r := run{list[first].from, list[last].to, tier + 1, false}
			list = slices.Replace(list, first, last+1, r)
			more = true
		}
	}
	return list
}

// fit returns how many of the first pieces make a segment of at most max bytes: at least one.
func fit(p []piece, max int64) int {
	var sum int64
	for i := range p {
		if sum += p[i].bytes; sum > max && i > 0 {
			return i
		}
	}
	return len(p)
}

func size(p []piece) (sum int64) {
	for i := range p {
		sum += p[i].bytes
	}
	return sum
}

// pages returns where pages begin, of PageSegments lines each, among lines of which some may
// be in a page: those of sealed segments.
func pages(pageable []bool, n int) (starts []int) {
	count := 0
	for i, ok := range pageable {
		if count++; !ok {
			count = 0
		}
		if count == n {
			starts = append(starts, i+1-n)
			count = 0
		}
	}
	return starts
}

// mark is a moment by three clocks. A machine that was suspended or moved may have stopped one
// of them.
type mark struct {
	at    time.Time // wall clock, and the monotonic one
	store time.Time // of the store; zero: unknown
}

// stalled reports whether more than maxStall passed from one mark to the next.
func (m mark) stalled(now mark) bool {
	return now.at.Sub(m.at) >= maxStall || now.at.Round(0).Sub(m.at.Round(0)) >= maxStall ||
		!m.store.IsZero() && !now.store.IsZero() && now.store.Sub(m.store) >= maxStall
}

// pace says when something is done.
type pace struct {
	interval  time.Duration // between flushes
	heartbeat time.Duration // after which a tail says that nothing is new
}

// action is what is to be done next.
type action uint8

const (
	wait  action = iota // until the time that next returns, or something new is there
	sleep               // until that time: something is there, but it is too early
	flush
	beat
)

// next returns what is to be done: pending says that something is not stored, flushed and
// tail are when the last flush began and when the last tail was stored.
func (p pace) next(now time.Time, pending bool, flushed, tail time.Time) (action, time.Time) {
	beatAt := tail.Add(p.heartbeat)
	switch at := flushed.Add(p.interval); {
	case pending && !now.Before(at):
		return flush, now
	case !now.Before(beatAt) && !pending:
		return beat, now
	case pending:
		return sleep, at
	}
	return wait, beatAt
}

// asofOf returns when the source surely had nothing beyond a transaction that is not its last
// one: at the time of the transaction itself, by the source's clock, or when it had nothing
// beyond an earlier one.
func asofOf(before, committed, now time.Time) time.Time {
	if committed.After(now) {
		committed = now
	}
	if committed.After(before) {
		return committed
	}
	return before
}
