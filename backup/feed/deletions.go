package feed

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// mostAsked is how many answers a reading remembers.
const mostAsked = 1 << 16

// reading is a range that is read from a cluster. It finds out what became of the objects that a
// transaction names and has no record of: the object was only checked; or a pack has removed
// the record, because a later one replaced it, or because the object was deleted. In the last
// case the deletion is gone as well, and an earlier record in a backup would rise again.
type reading struct {
	f   *Cluster
	ctx context.Context

	// objects are those that exist after what was read, of a range from the beginning.
	// Otherwise it is nil, and any object may exist before the range.
	objects *objects
	changes []change // of the transaction, to be made to objects
	last    tid.TID  // the transaction
	whole   bool     // all its records were read

	packed tid.TID          // for which asked is
	asked  map[tid.OID]bool // whether the object exists at packed
}

type change struct {
	oid    tid.OID
	exists bool
}

// begun is how far the history was read from its beginning, in one or several steps, and
// what exists then.
type begun struct {
	from, to tid.TID // a reading that goes on begins here
	objects  *objects
}

func (f *Cluster) newReading(ctx context.Context, after tid.TID) *reading {
	r := &reading{f: f, ctx: ctx, last: after, whole: true}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch b := f.begun; {
	case after == tid.Zero:
		r.objects = new(objects)
	case b.objects != nil && b.from <= after && after <= b.to:
		r.objects = b.objects
	}
	if r.objects != nil {
		f.begun = begun{} // it has one user
	}
	return r
}

// next goes on to transaction t. Until then, the records of the one before it may be read
// again.
func (r *reading) next(t tid.TID) {
	r.leave()
	r.last, r.whole = t, false
}

func (r *reading) leave() {
	if !r.whole {
		r.objects = nil // what was not read is not known
	}
	if r.objects != nil {
		for _, c := range r.changes {
			r.objects.set(c.oid, c.exists)
		}
	}
	r.changes = r.changes[:0]
}

// end ends the reading, at the end of its range or after the transaction that was given last.
func (r *reading) end(upTo tid.TID) {
	if r.leave(); r.objects != nil {
		r.f.mu.Lock()
		defer r.f.mu.Unlock()
		r.f.begun = begun{r.last, max(r.last, upTo), r.objects}
	}
}

// watch notes what becomes of the objects of a transaction.
func (r *reading) watch(records iter.Seq2[*txn.Record, error]) iter.Seq2[*txn.Record, error] {
	return func(yield func(*txn.Record, error) bool) {
		r.changes = r.changes[:0]
		for rec, err := range records {
			if err == nil {
				err = r.ctx.Err()
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if r.objects != nil {
				r.changes = append(r.changes, change{rec.OID, rec.Data != nil})
			}
			if !yield(rec, nil) {
				return
			}
		}
		r.whole = true
	}
}

// missing is a [client.Missing].
func (r *reading) missing(t tid.TID, oid tid.OID, since time.Time) (*txn.Record, error) {
	packed := r.packed
	if t > packed {
		var err error
		if packed, err = r.f.packedSince(r.ctx, since); err != nil {
			return nil, err
		}
		if t > packed {
			return nil, nil // no pack was so far: it was only checked
		}
	}
	if r.objects != nil && !r.objects.has(oid) {
		return nil, nil // there is nothing that could rise again
	}
	if packed != r.packed || len(r.asked) >= mostAsked {
		r.packed, r.asked = packed, make(map[tid.OID]bool)
	}
	exists, known := r.asked[oid]
	if !known {
		_, err := steady(r.ctx, func() (txn.Revision, error) { return r.f.c.LoadBefore(r.ctx, oid, packed+1) })
		if err != nil && !errors.Is(err, txn.ErrNotFound) && !errors.Is(err, txn.ErrNoSuchObject) {
			return nil, err
		}
		exists = err == nil
		r.asked[oid] = exists
	}
	if exists {
		return nil, nil // checked, or there is a later record
	}
	return &txn.Record{OID: oid, TID: t}, nil
}

// objects is a set of objects: one bit for each.
type objects struct {
	pages map[tid.OID]*page
}

type page [512]uint64

func (o *objects) has(oid tid.OID) bool {
	p := o.pages[oid>>15]
	return p != nil && p[oid>>6&511]&(1<<(oid&63)) != 0
}

func (o *objects) set(oid tid.OID, exists bool) {
	p := o.pages[oid>>15]
	if p == nil {
		if !exists {
			return
		}
		if o.pages == nil {
			o.pages = map[tid.OID]*page{}
		}
		p = new(page)
		o.pages[oid>>15] = p
	}
	if exists {
		p[oid>>6&511] |= 1 << (oid & 63)
	} else {
		p[oid>>6&511] &^= 1 << (oid & 63)
	}
}
