package fsformat

import (
	"cmp"
	"context"
	"slices"
	"sort"
	"sync"

	"github.com/neozodb/neo/cluster/tid"
)

// seekPlaces is about how many places, spread over the file, are known between which a
// transaction is looked for.
const seekPlaces = 1 << 12

// places are where a search for a transaction may begin: what the index knows, and what
// iterations and searches came by. They take at most 24 bytes for each of seekPlaces, and
// some hundred kilobytes for what was passed lately.
type places struct {
	once    sync.Once
	records []int64 // of the index, ascending, once it is done

	mu   sync.Mutex
	seen []place // ascending

	// passed are the positions of the transactions at which iterations have begun lately,
	// was those before them: what is listed is then asked for, one after the other.
	passed, was map[tid.TID]int64
}

// maxPassed is how many transactions of an iteration are kept in places.passed, and about
// half as many as are kept of all.
const maxPassed = 1 << 12

// pass remembers exactly where a transaction is: one of the first maxPassed of an iteration.
func (p *places) pass(h *Header) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.passed[h.TID]; known {
		return
	}
	if p.passed == nil || len(p.passed) >= maxPassed {
		p.passed, p.was = make(map[tid.TID]int64), p.passed
	}
	p.passed[h.TID] = h.Pos
}

// exactly returns the position of a transaction, if it was passed lately.
func (p *places) exactly(t tid.TID) (pos int64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pos, ok = p.passed[t]; !ok {
		pos, ok = p.was[t]
	}
	return pos, ok
}

type place struct {
	pos int64 // of a transaction
	tid tid.TID
}

// note remembers a transaction, unless one that is near is known.
func (p *places) note(h *Header, size int64) {
	step := size/seekPlaces + 1
	p.mu.Lock()
	defer p.mu.Unlock()
	i := len(p.seen)
	if i > 0 && p.seen[i-1].pos >= h.Pos {
		i, _ = slices.BinarySearchFunc(p.seen, h.Pos, func(e place, pos int64) int { return cmp.Compare(e.pos, pos) })
	}
	if i > 0 && h.Pos-p.seen[i-1].pos < step || i < len(p.seen) && p.seen[i].pos-h.Pos < step {
		return
	}
	p.seen = slices.Insert(p.seen, i, place{h.Pos, h.TID})
}

// around returns the last place known that is not after a transaction, and the first
// that is after it, with position 0 if there is none.
func (p *places) around(after tid.TID) (from, to place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := sort.Search(len(p.seen), func(i int) bool { return p.seen[i].tid > after })
	if i > 0 {
		from = p.seen[i-1]
	}
	if i < len(p.seen) {
		to = p.seen[i]
	}
	return from, to
}

// spread returns the positions of about n records that are spread over the first size
// bytes of a file, in ascending order.
func (x *Index) spread(size, n int64) []int64 {
	step := size/n + 1
	found := make([]int64, size/step+1)
	for i := range x.segments {
		for _, e := range x.segments[i].slots {
			if e.pos == 0 || e.pos >= size {
				continue
			}
			if p := &found[e.pos/step]; *p == 0 || e.pos < *p {
				*p = e.pos
			}
		}
	}
	return slices.DeleteFunc(found, func(p int64) bool { return p == 0 })
}

// aroundByIndex is [places.around] of what the index knows.
func (r *Reader) aroundByIndex(after tid.TID) (from, to place) {
	x, p := r.index, &r.places
	if x == nil {
		return from, to
	}
	p.once.Do(func() { p.records = x.spread(r.size, seekPlaces) })
	// A record that cannot be read is damaged: what comes there later says so.
	at := func(i int) (at place, ok bool) {
		var rec RecordHeader
		if i < 0 || i == len(p.records) || r.recordAt(p.records[i], &rec) != nil {
			return at, false
		}
		t, err := r.TransactionAt(rec.TxnPos)
		return place{rec.TxnPos, rec.TID}, err == nil && t.TID == rec.TID
	}
	i := sort.Search(len(p.records), func(i int) bool {
		t, ok := at(i)
		return !ok || t.tid > after
	})
	if t, ok := at(i - 1); ok && t.tid <= after {
		from = t
	}
	if t, ok := at(i); ok && t.tid > after {
		to = t
	}
	return from, to
}

// seek returns the position of a transaction from where those after the given one
// are found, and the tid of the one before it, 0 if that is not known. Between two
// places that are known it comes from both ends at once, so that what is near either is
// found quickly.
func (r *Reader) seek(ctx context.Context, after tid.TID) (pos int64, last tid.TID, err error) {
	pos = magicLen
	if after == 0 || r.size <= magicLen {
		return pos, 0, nil
	}
	var end int64
	if !r.opt.Renumber { // what is renumbered depends on all before it
		if pos, ok := r.places.exactly(after + 1); ok {
			return pos, 0, nil
		}
		from, to := r.places.around(after)
		from2, to2 := r.aroundByIndex(after)
		pos = max(pos, from.pos, from2.pos)
		if end = to.pos; end == 0 || to2.pos > 0 && to2.pos < end {
			end = to2.pos
		}
	}
	if end == 0 {
		if t, ok, err := r.tailFromEnd(); err != nil {
			return 0, 0, err
		} else if ok {
			end = t.End
		}
	}
	s := r.newScanner(pos, 0)
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
		if end > magicLen {
			h, ok, err := r.lastBefore(end)
			switch {
			case err != nil:
				return 0, 0, err
			case !ok:
				end = 0 // damaged: the other end will say where
			case h.TID <= after:
				return end, h.TID, nil
			default:
				end = h.Pos
				r.places.note(&h, r.size)
			}
		}
		h, err := s.next()
		if err != nil {
			return 0, 0, err
		}
		if h == nil || h.TID > after {
			return pos, last, nil
		}
		pos, last = h.End(), h.TID
		r.places.note(h, r.size)
	}
}

// Position returns where in the file a transaction begins, or would begin. With an
// index it reads little of the file.
func (r *Reader) Position(ctx context.Context, t tid.TID) (int64, error) {
	if t == tid.Zero {
		return magicLen, nil
	}
	pos, _, err := r.seek(ctx, t-1)
	return min(pos, r.size), err
}
