package backup

import (
	"context"
	"fmt"
	"slices"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Fork returns the first manifest of a lineage that has the history of a state up to
// transaction at, by reference: nothing is copied. tip identifies the transaction. The caller
// says what writes it, and signs and stores it. The error is an [ErrNotExact] if the history is
// not exact there, and an [ErrIncomplete] if it is lost there.
func (r *Repository) Fork(ctx context.Context, s *State, lineage snapshot.ID, at tid.TID, tip snapshot.Hash) (*snapshot.Manifest, error) {
	if err := s.Exact(at); err != nil {
		return nil, err
	}
	m := &snapshot.Manifest{
		Repo: r.Marker.ID, Lineage: lineage, Seq: 1, Created: now(), Asof: at.Time().UTC(), Tip: tip,
		Source: s.Manifest.Source,
	}
	for _, h := range s.Holes() {
		if h.To <= at {
			m.Holes = append(m.Holes, h)
		}
	}
	end := tid.Zero
	inPage := int64(0) // how many of the parts that follow are in a page that is taken
	// Pages stay whole; of one that goes on after the transaction the lines are taken.
	pages := map[tid.TID]*snapshot.Page{}
	for _, i := range s.Manifest.Items {
		if i.Page != nil && i.Page.Upto <= at {
			pages[i.Page.After] = i.Page
		}
	}
	for p, err := range r.Parts(ctx, s, tid.Zero, at) {
		if err != nil {
			return nil, err
		}
		from, upto := p.Range()
		if inPage > 0 {
			inPage--
			continue
		}
		if page := pages[from]; page != nil && from < upto {
			m.Items = append(m.Items, snapshot.Item{Page: page})
			end, inPage = page.Upto, page.N-1
			continue
		}
		if p.Gap != nil {
			if upto > at {
				return nil, fmt.Errorf("transactions after %v up to %v: %w: %s", from, upto, ErrIncomplete, p.Gap.Note)
			}
			m.Items = append(m.Items, snapshot.Item{Gap: p.Gap})
			end = upto
			continue
		}
		l := *p.Segment
		if upto > at {
			l.Clip = at
		}
		m.Items = append(m.Items, snapshot.Item{Segment: &l})
		end = l.End()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if end != at {
		return nil, fmt.Errorf("%w: transaction %v: what is stored ends with %v", ErrIncomplete, at, end)
	}
	// A run only serves lookups, and would have what comes later. Blobs are needed.
	reserved := slices.Clone(s.Manifest.Reserved)
	for _, t := range s.Tails {
		reserved = append(reserved, t.Reserved...)
	}
	m.Reserved = slices.DeleteFunc(reserved, func(x snapshot.Reserved) bool { return x.Kind == snapshot.ReservedRun })
	m.SumUp()
	return m, nil
}

// References yields the keys of the objects that a manifest names itself. What pages name is not
// among them: see [Repository.Parts].
func References(m *snapshot.Manifest) []string {
	var keys []string
	for _, i := range m.Items {
		switch {
		case i.Page != nil:
			keys = append(keys, i.Page.Key)
		case i.Segment != nil:
			keys = append(keys, i.Segment.Key)
		}
	}
	for _, r := range m.Reserved {
		keys = append(keys, r.Key)
	}
	return keys
}

// LastTransaction returns the last transaction of a state up to a TID, without its records,
// nil if there is none. It reads one segment, which the keys must open.
func (r *Repository) LastTransaction(ctx context.Context, k *Keys, s *State, upTo tid.TID) (*txn.Transaction, error) {
	var parts []*Part
	for p, err := range r.Parts(ctx, s, tid.Zero, upTo) {
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	for _, p := range slices.Backward(parts) {
		if p.Gap != nil {
			return nil, fmt.Errorf("transactions after %v up to %v: %w: %s", p.Gap.After, p.Gap.Upto, ErrIncomplete, p.Gap.Note)
		}
		t, err := r.lastOf(ctx, k, p, upTo)
		if t != nil || err != nil {
			return t, err
		}
	}
	return nil, nil
}

// lastOf returns the last transaction up to a TID that begins in a segment, nil if there is none.
func (r *Repository) lastOf(ctx context.Context, k *Keys, p *Part, upTo tid.TID) (*txn.Transaction, error) {
	if p.Segment.Txns == 0 {
		return nil, nil
	}
	seg, err := r.OpenPart(ctx, k, p)
	if err != nil {
		return nil, err
	}
	_, end := p.Range()
	end = min(end, upTo)
	var last *txn.Transaction
	// The first transaction of the last frame that has any of these.
	start := seg.FrameBefore(end + 1)
	if start > tid.Zero {
		start--
	}
	for e, err := range seg.WalkAfter(start) {
		if err != nil {
			return nil, err
		}
		if e.Txn == nil {
			continue
		}
		if e.Txn.TID > end {
			break
		}
		t := *e.Txn
		t.User, t.Description, t.Extension, t.Records = slices.Clone(t.User), slices.Clone(t.Description), slices.Clone(t.Extension), nil
		last = &t
	}
	return last, nil
}
