package writer

import (
	"math/rand/v2"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
)

// CostOptions say what a writer will have to store. Interval, Heartbeat, SegmentSize and, unless the
// source is idle, Commits and Merged are required.
type CostOptions struct {
	Interval    time.Duration
	Heartbeat   time.Duration
	SegmentSize int64

	Commits float64 // transactions a day, at random times
	// Bytes of a transaction: as it is stored in segments that are merged, behind a tail (default: as
	// much as in segments that are merged), and as text (default: four times as much).
	Merged, Tail, Text float64

	Sealed int64 // segments that the lineage has
}

// Cost is what following costs, on average.
type Cost struct {
	// A day.
	Puts      float64
	Gets      float64
	Lists     float64
	Tails     float64 // PUTs of tails, those that are heartbeats included
	Manifests float64
	Uploaded  float64 // bytes
	Fresh     float64 // bytes, of new transactions behind their first tail

	Open int // segments that are not sealed, at most
}

// EmptySegment is how many bytes a segment has beside its transactions.
const EmptySegment = costSegment

// Sizes, in bytes. TestCostSizes compares them with what is encoded.
const (
	costNote     = 740 // note of a tail
	costSegment  = 600 // of a segment without transactions, encrypted
	costManifest = 745 // of a manifest without lines
	costLine     = 675
	costPage     = 306
)

// A forecast is about a month, or as many tails.
const (
	costDays  = 30
	costTails = 150_000
)

// Forecast returns what it costs to follow a source. It lets time pass in a simulation in which the
// same functions decide that decide when a writer is at work.
func Forecast(o CostOptions) Cost {
	perDay := min(o.Commits, float64(24*time.Hour/o.Interval)) + float64(24*time.Hour/o.Heartbeat)
	days := min(costDays, max(1, int(costTails/perDay)))
	return usual.simulate(o, days, 1).perDay(days)
}

// costs are sums of a simulation.
type costs struct {
	puts, gets, lists, tails, manifests, pages, beats int64
	uploaded, fresh                                   int64
	open                                              int // greatest number of open lines
	publications                                      []publicationCost
}

type publicationCost struct {
	tails int
	bytes int64
	age   time.Duration
}

func (c *costs) perDay(days int) Cost {
	a := func(n int64) float64 { return float64(n) / float64(days) }
	return Cost{Puts: a(c.puts), Gets: a(c.gets), Lists: a(c.lists), Tails: a(c.tails), Manifests: a(c.manifests), Uploaded: a(c.uploaded), Fresh: a(c.fresh), Open: c.open}
}

// costPiece is a line of a simulation.
type costPiece struct {
	piece
	txns float64
}

// simulate runs a writer for some days.
func (l *limits) simulate(o CostOptions, days int, seed uint64) *costs {
	if o.Tail == 0 {
		o.Tail = o.Merged
	}
	if o.Text == 0 {
		o.Text = 4 * o.Merged
	}
	rnd := rand.New(rand.NewPCG(seed, 0))
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	end := start.AddDate(0, 0, days)
	p := pace{o.Interval, o.Heartbeat}
	perInterval := o.Commits * o.Interval.Hours() / 24
	many := perInterval > 50 // there is something at each flush
	next := func(after time.Time) time.Time {
		if o.Commits == 0 {
			return end
		}
		return after.Add(time.Duration(rnd.ExpFloat64() / o.Commits * float64(24*time.Hour)))
	}
	commit := next(start)

	c := &costs{}
	numPages, numSealed := o.Sealed/snapshot.PageSegments, o.Sealed%snapshot.PageSegments
	var list []costPiece // open ones, then those since the last manifest
	now, flushed, tail, published := start, start, start, start
	pending, tails, tailBytes := 0.0, 0, int64(0)
	put := func(n int64) { c.puts++; c.uploaded += n }
	stored := func() { // a tail
		if now.Sub(tail) >= maxStall { // the chain is read again
			c.lists += 3
			c.gets += 1 + int64(tails)
		}
		c.tails++
		tails++
		tail = now
	}
	for now.Before(end) {
		if many {
			pending = perInterval
		}
		for !many && !commit.After(now) && commit.Before(end) {
			pending++
			commit = next(commit)
		}
		a, at := p.next(now, pending > 0, flushed, tail)
		switch a {
		case flush:
			behind := pending*o.Text <= float64(l.text)
			if behind {
				n := int64(costSegment + o.Tail*pending)
				put(costNote + n)
				c.fresh += n
				tailBytes += n
				list = append(list, costPiece{piece{bytes: n, tail: true, open: true}, pending})
			} else { // segments of their own, and a tail that names them
				all := int64(o.Merged * pending)
				count := 1 + all/o.SegmentSize
				for range count {
					n := all/count + costSegment
					put(n)
					c.fresh += n
					tailBytes += n
					list = append(list, costPiece{piece{bytes: n, tier: 1, open: n < o.SegmentSize/2}, pending / float64(count)})
				}
				put(costNote + count*costLine)
			}
			flushed, pending = now, 0
			stored()
		case beat:
			put(costNote)
			c.beats++
			stored()
		default:
			if now = at; !many && commit.Before(now) && a == wait {
				now = commit
			}
		}
		if !l.due(tails, tailBytes, now.Sub(published)) {
			continue
		}
		c.publications = append(c.publications, publicationCost{tails, tailBytes, now.Sub(published)})
		c.gets++ // whether the lineage is current
		pieces := make([]piece, len(list))
		for i := range list {
			pieces[i] = list[i].piece
		}
		var left []costPiece
		for _, r := range l.merges(pieces, o.SegmentSize) {
			m := list[r.from]
			if r.copied(pieces) {
				m.txns = 0
				for _, p := range list[r.from:r.to] {
					m.txns += p.txns
				}
				m.bytes = int64(costSegment + o.Merged*m.txns)
				put(m.bytes)
			}
			if r.sealed {
				numSealed++
			} else {
				m.tier, m.tail, m.open = r.tier, false, true
				left = append(left, m)
			}
		}
		for numSealed >= snapshot.PageSegments {
			put(snapshot.PageSegments * costLine)
			c.pages++
			numSealed -= snapshot.PageSegments
			numPages++
		}
		list = left
		c.open = max(c.open, len(list))
		put(costManifest + numPages*costPage + (numSealed+int64(len(list)))*costLine)
		c.manifests++
		tails, tailBytes, published = 0, 0, now
	}
	return c
}
