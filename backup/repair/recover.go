package repair

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
)

// ErrNotNeeded reports a lineage that has a manifest which verifies: [Repair] is for that.
var ErrNotNeeded = errors.New("its newest manifest verifies")

// Recover finds the history of a lineage of which the newest manifest does not verify, from what is stored: segments that signed notes
// name, then the others. The error is an [ErrNotNeeded] if it does verify.
func Recover(ctx context.Context, o Options) (*Plan, error) {
	e, err := newEngine(ctx, o)
	if err != nil {
		return nil, err
	}
	_, err = e.repo.State(ctx, e.id, nil)
	if err == nil || errors.As(err, new(*backup.BrokenError)) {
		return nil, fmt.Errorf("lineage %v: %w", e.id, ErrNotNeeded)
	}
	if !wrong(err) {
		return nil, err
	}
	p := &Plan{Lineage: e.id}
	all, e2 := e.numbers(ctx, snapshot.KindManifest)
	if e2 != nil {
		return nil, e2
	}
	at := "no manifest is there"
	if len(all) > 0 {
		at = fmt.Sprintf("of %d manifests the newest", len(all))
	}
	p.step(Step{Problem: at + ": " + problem(err), Means: Listed, Detail: "the history is put together from what is stored"})
	pool, err := e.candidates(ctx)
	if err != nil {
		return nil, err
	}
	if err := e.parents(ctx, pool); err != nil {
		return nil, err
	}
	d := &draft{rewrite: true}
	d.m.MaxOID, d.m.Source = pool.maxOID, snapshot.Source{Kind: "copy", Name: "recovered"}
	if o.Source != nil {
		d.m.Source = o.Source.Source()
	}
	slices.SortFunc(pool.manifests, func(a, b *snapshot.Manifest) int { return int(a.Seq - b.Seq) })
	for _, m := range pool.manifests {
		if o.Source == nil || m.Source.Kind != feed.KindFile {
			d.m.Source = m.Source
		}
		d.m.Reserved = m.Reserved
		e.tips = append(e.tips, tipAt{m.Head, m.Tip})
		d.end = m.ChainEnd()
	}
	for _, t := range pool.tails {
		e.tips = append(e.tips, tipAt{t.Upto, t.Tip})
	}
	slices.SortStableFunc(e.tips, func(a, b tipAt) int {
		if a.tid < b.tid {
			return -1
		}
		return 1
	})
	list, err := e.cover(ctx, pool, tid.Zero, 0, true, func(c *candidate) bool { return c.signed })
	if err != nil {
		return nil, err
	}
	x := &entry{err: errors.New("no manifest names it")}
	head := tid.Zero
	for _, c := range list {
		if c.after > head {
			more, err := e.missing(ctx, p, d, pool, x, head, c.after)
			if err != nil {
				return nil, err
			}
			d.entries = append(d.entries, more...)
		}
		// What signed notes name needs no step of its own.
		d.entries = append(d.entries, e.entriesOf(d, x, []*candidate{c})...)
		head = c.upto
	}
	signed := len(d.entries)
	if head, err = e.afterSigned(ctx, p, d, pool, x, head); err != nil {
		return nil, err
	}
	added := int64(len(d.entries) - signed) // each may be what a tail had whose note is gone
	d.head = head
	for _, h := range pool.holes {
		if h.From < head {
			d.m.Holes = snapshot.AddHole(d.m.Holes, h)
		}
	}
	if err := e.sumUpTails(ctx, d, pool); err != nil {
		return nil, err
	}
	if first := pool.lastTail() + 1 + added; first <= d.end.N {
		var lost []int64
		for n := first; n <= d.end.N; n++ {
			lost = append(lost, n)
		}
		end := &entry{after: head, upto: head, open: true, tail: d.end.N, err: fmt.Errorf("the last tails (%s) are lost", spread(lost))}
		more, err := e.fillEnd(ctx, p, d, pool, end)
		if err != nil {
			return nil, err
		}
		d.entries, head = append(d.entries, more...), d.head
	}
	if d.tip = d.tipIfKnown(e); d.tip == (snapshot.Hash{}) && head != tid.Zero {
		if n := len(d.entries); n > 0 && d.entries[n-1].last != nil {
			if d.tip, err = e.tipOf(ctx, d.entries[n-1].last); err != nil {
				return nil, err
			}
		}
		if n := len(d.entries); n > 0 && d.entries[n-1].tip != (snapshot.Hash{}) {
			d.tip = d.entries[n-1].tip
		}
	}
	if err := e.checkNotes(ctx, p, d); err != nil {
		return nil, err
	}
	for _, s := range pool.odd {
		s.Means = Left
		p.step(s)
	}
	return p, e.ready(ctx, p, d)
}

// lastTail returns the number of the last tail of which a signed note tells what it had.
func (p *pool) lastTail() int64 {
	last := int64(0)
	for _, m := range p.manifests {
		last = max(last, m.Tail)
	}
	for _, t := range p.tails {
		last = max(last, t.N)
	}
	return last
}

// afterSigned adds what comes after the last segment that a signed note names.
func (e *engine) afterSigned(ctx context.Context, p *Plan, d *draft, pool *pool, x *entry, head tid.TID) (tid.TID, error) {
	list, err := e.cover(ctx, pool, head, 0, true, func(c *candidate) bool { return c.after >= head })
	if err != nil {
		return head, err
	}
	for _, c := range list {
		if c.after > head {
			break // what it goes on with is not there
		}
		s := stepOf(x)
		s.Key, s.After, s.Upto = c.lines[0].Key, c.after, c.upto
		equal := false
		if e.o.Source != nil {
			last, _, err := e.o.Source.Last(ctx)
			if err != nil {
				return head, err
			}
			if last >= c.upto {
				if equal, err = e.sameAsSource(ctx, c); err != nil {
					return head, err
				}
			}
		}
		switch {
		case equal:
			s.Means = Compared
		case e.o.AcceptUnsigned:
			s.Means = Unsigned
			p.unsigned([]*candidate{c})
		case e.o.AcceptGaps:
			s.Means, s.Detail = Gap, fmt.Sprintf("the history ends with %v", head)
			p.step(s)
			return head, nil
		default:
			s.Means, s.Detail = None, "no signed note names it: it was not compared with the source, nor accepted"
			p.step(s)
			return head, nil
		}
		p.step(s)
		d.entries = append(d.entries, e.entriesOf(d, x, []*candidate{c})...)
		head = c.upto
	}
	return head, nil
}

// sumUpTails finds the last number of a tail that is in use, and what its note is.
func (e *engine) sumUpTails(ctx context.Context, d *draft, pool *pool) error {
	all, err := e.numbers(ctx, snapshot.KindTail)
	if err != nil {
		return err
	}
	end := d.end
	if n := len(all); n > 0 && all[n-1] > end.N {
		end = snapshot.Chain{N: all[n-1], Hash: e.noteHash(ctx, snapshot.TailKey(e.id, all[n-1]))}
	}
	for _, t := range pool.tails {
		if t.N == end.N {
			end = t.Chain()
		}
		if t.Upto == d.head && t.Asof.After(d.m.Asof) {
			d.m.Asof = t.Asof
		}
		for _, r := range t.Reserved {
			if !slices.Contains(d.m.Reserved, r) {
				d.m.Reserved = append(d.m.Reserved, r)
			}
		}
	}
	if e.o.SeenTail > end.N {
		end = snapshot.Chain{N: e.o.SeenTail, Hash: snapshot.Sum([]byte(snapshot.TailKey(e.id, e.o.SeenTail)))}
	}
	end.Head = d.head
	d.end = end
	return nil
}

// parents adds the segments of the lineage from which this one was forked.
func (e *engine) parents(ctx context.Context, pool *pool) error {
	list, err := e.repo.Lineages(ctx)
	if err != nil && !wrong(err) {
		return err
	}
	for _, l := range list {
		if l == nil || l.Lineage != e.id || l.Parent == (snapshot.ID{}) || l.At == tid.Zero {
			continue
		}
		s, err := e.repo.State(ctx, l.Parent, nil)
		if err != nil && !errors.As(err, new(*backup.BrokenError)) {
			if wrong(err) {
				e.log.Warn("the lineage from which this one was forked cannot be read: recover that first", "lineage", l.Parent, "err", err)
				return nil
			}
			return err
		}
		var lines []snapshot.Segment
		for part, err := range e.repo.Parts(ctx, s, tid.Zero, l.At) {
			if wrong(err) {
				break
			}
			if err != nil {
				return err
			}
			if part.Gap != nil {
				pool.add(lines, true, nil)
				lines = nil
				continue
			}
			line := *part.Segment
			if line.End() > l.At {
				line.Clip = l.At
			}
			lines = append(lines, line)
		}
		pool.add(lines, true, nil)
		for _, h := range s.Holes() {
			if h.From < l.At {
				pool.holes = snapshot.AddHole(pool.holes, h)
			}
		}
	}
	return ctx.Err()
}
