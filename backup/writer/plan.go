package writer

import (
	"slices"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
)

// limits say when something is due. Tests have smaller ones.
type limits struct {
	// A manifest is due after so many tails, heartbeats too, so many bytes stored in them, or
	// that time, if there is a tail.
	tails int
	bytes int64
	age   time.Duration

	fanOut int // adjacent segments of a tier that become one of the next
	page   int // sealed segments that become a page

	// A flush with more bytes of text is stored as segments of their own. Less goes behind the
	// note of the tail.
	text int64
	// As many segments of a backlog are named by a tail.
	batch int
}

var usual = limits{tails: 64, bytes: 8 << 20, age: 24 * time.Hour, fanOut: 64, page: snapshot.PageSegments, text: 8 << 20, batch: 16}

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
func (l *limits) due(tails int, bytes int64, age time.Duration) bool {
	return tails >= l.tails || bytes > l.bytes || tails > 0 && age >= l.age
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
func (l *limits) merges(p []piece, segmentSize int64) []run {
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
		list = append(list, l.open(p, i)...)
		break
	}
	return list
}

// open returns what becomes of the pieces from i on, which stay open.
func (l *limits) open(p []piece, i int) []run {
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
		if n >= l.fanOut {
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

// placed is a line as pages see it.
type placed struct {
	pageable  bool // it may be in a page: a sealed segment
	continues bool // it goes on with a transaction of the line before
}

// pages returns which lines become pages, as [from, to): of n lines, or of a few less so that none
// begins within a transaction.
func pages(lines []placed, n int) (list [][2]int) {
	for from := 0; from < len(lines); {
		to := from
		for to < len(lines) && to-from < n && lines[to].pageable {
			to++
		}
		if to-from == n {
			if to = pageEnd(lines, from, to); to > from {
				list = append(list, [2]int{from, to})
				from = to
				continue
			}
		}
		for from++; from < len(lines) && lines[from].continues; from++ {
		}
	}
	return list
}

// pageEnd returns the last place up to one where a page from one line on may end; from if there is
// none.
func pageEnd(lines []placed, from, to int) int {
	for to > from && to < len(lines) && lines[to].continues {
		to--
	}
	return to
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
	early               // until that time: something is there, but it is too early
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
		return early, at
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
