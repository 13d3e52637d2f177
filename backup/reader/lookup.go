package reader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// atOnce is in how many segments one lookup looks at the same time.
const atOnce = 128

// hit is a revision and where it is.
type hit struct {
	snapshot.Entry
	s *segment
}

// runError is damage of a local index file.
type runError struct {
	run *run
	err error
}

func (e *runError) Error() string { return e.err.Error() }
func (e *runError) Unwrap() error { return e.err }

// find returns the latest revision of an object before a TID in a step.
func (s *step) find(ctx context.Context, d *Database, oid tid.OID, before tid.TID) (h hit, ok bool, err error) {
	before = min(before, s.end()+1)
	if s.run != nil {
		e, ok, err := s.run.find(ctx, d.cache, oid, before)
		return s.located(ctx, e, ok, err)
	}
	return s.look(ctx, oid, func(r *snapshot.Reader) (snapshot.Entry, error) { return r.Find(oid, before) })
}

// next returns the earliest revision of an object after a TID in a step.
func (s *step) next(ctx context.Context, d *Database, oid tid.OID, after tid.TID) (h hit, ok bool, err error) {
	if s.run != nil {
		e, ok, err := s.run.next(ctx, d.cache, oid, after)
		return s.located(ctx, e, ok, err)
	}
	h, ok, err = s.look(ctx, oid, func(r *snapshot.Reader) (snapshot.Entry, error) { return r.Next(oid, after) })
	return h, ok && h.TID <= s.end(), err
}

func (s *step) located(ctx context.Context, e located, ok bool, err error) (hit, bool, error) {
	if err != nil {
		if ctx.Err() == nil {
			err = &runError{s.run, err}
		}
		return hit{}, false, err
	}
	if !ok {
		return hit{}, false, nil
	}
	return hit{e.Entry, s.segs[e.segment]}, true, nil
}

func (s *step) look(ctx context.Context, oid tid.OID, look func(*snapshot.Reader) (snapshot.Entry, error)) (hit, bool, error) {
	x := s.segs[0]
	if x.gap == nil && oid > x.l.MaxOID {
		return hit{}, false, nil
	}
	r, err := x.reader(ctx)
	if err != nil {
		return hit{}, false, err
	}
	e, err := look(r)
	if errors.Is(err, snapshot.ErrNotFound) {
		return hit{}, false, nil
	}
	return hit{e, x}, err == nil, err
}

// inOrder calls look for the steps of a sequence until one has something, in which case no error
// of a later one matters. Those that read from the store are looked into at the same time.
func inOrder(ctx context.Context, steps func(yield func(*step) bool), look func(context.Context, *step) (hit, bool, error)) (hit, bool, error) {
	type result struct {
		hit
		ok  bool
		err error
	}
	var batch []*step
	flush := func() (hit, bool, error) {
		if len(batch) == 0 {
			return hit{}, false, nil
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		results := make([]result, len(batch))
		done := make([]chan struct{}, len(batch))
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		for i, s := range batch {
			done[i] = make(chan struct{})
			wg.Go(func() {
				defer close(done[i])
				r := &results[i]
				r.hit, r.ok, r.err = look(ctx, s)
			})
		}
		batch = batch[:0]
		for i := range results {
			<-done[i]
			if r := &results[i]; r.ok || r.err != nil {
				return r.hit, r.ok, r.err
			}
		}
		return hit{}, false, nil
	}
	for s := range steps {
		if !s.local() {
			if batch = append(batch, s); len(batch) < atOnce {
				continue
			}
			s = nil
		}
		if h, ok, err := flush(); ok || err != nil {
			return h, ok, err
		}
		if s == nil {
			continue
		}
		if h, ok, err := look(ctx, s); ok || err != nil {
			return h, ok, err
		}
	}
	return flush()
}

// find returns the latest revision of an object before a TID.
func (d *Database) find(ctx context.Context, v *view, oid tid.OID, before tid.TID) (hit, bool, error) {
	if before = min(before, v.at+1); before == 0 {
		return hit{}, false, nil
	}
	n := sort.Search(len(v.steps), func(i int) bool { return v.steps[i].first() >= before })
	return inOrder(ctx, func(yield func(*step) bool) {
		for i := n - 1; i >= 0; i-- {
			if !yield(&v.steps[i]) {
				return
			}
		}
	}, func(ctx context.Context, s *step) (hit, bool, error) { return s.find(ctx, d, oid, before) })
}

// next returns the earliest revision of an object after a TID.
func (d *Database) next(ctx context.Context, v *view, oid tid.OID, after tid.TID) (hit, bool, error) {
	if after >= v.at {
		return hit{}, false, nil
	}
	n := sort.Search(len(v.steps), func(i int) bool { return v.steps[i].end() > after })
	h, ok, err := inOrder(ctx, func(yield func(*step) bool) {
		for i := n; i < len(v.steps); i++ {
			if !yield(&v.steps[i]) {
				return
			}
		}
	}, func(ctx context.Context, s *step) (hit, bool, error) { return s.next(ctx, d, oid, after) })
	return h, ok && h.TID <= v.at, err
}

// load reads the data of a revision, nil if it has none. hops follows copies to where the data are.
func (d *Database) load(ctx context.Context, v *view, h hit) ([]byte, error) {
	for of := h; ; {
		if h.Kind == snapshot.NoData {
			return nil, nil
		}
		rec, err := d.record(ctx, h)
		if err != nil {
			return nil, err
		}
		if h.Kind == snapshot.HasData {
			if rec.Data == nil {
				return []byte{}, nil
			}
			return rec.Data, nil
		}
		next, ok, err := d.find(ctx, v, h.OID, rec.DataTID+1)
		if err != nil {
			return nil, err
		}
		if !ok || next.TID != rec.DataTID {
			return nil, &snapshot.CorruptError{Name: h.s.l.Key, Offset: -1, Err: fmt.Errorf("object %v in transaction %v has the data of transaction %v, which the history does not have", h.OID, of.TID, rec.DataTID)}
		}
		h = next
	}
}

// record reads a revision where it lies. Frames are kept as text: what lies beside the revision is
// often asked for next.
func (d *Database) record(ctx context.Context, h hit) (*snapshot.Record, error) {
	o, err := h.s.open(ctx)
	if err != nil {
		return nil, err
	}
	key := cacheKey{of: h.s, off: o.r.FrameStart(h.Pos), n: -1}
	text, err := d.cache.get(ctx, key, func(ctx context.Context) (any, int64, error) {
		text, err := o.r.With(&direct{ctx, h.s, o}).Frame(h.Entry)
		if again, e := d.repo.Rescue(ctx, &h.s.l, err); e != nil {
			err = e
		} else if again { // an older version of the object is right
			text, err = o.r.With(&direct{ctx, h.s, o}).Frame(h.Entry)
		}
		return text, int64(cap(text)) + 256, err
	})
	if err != nil {
		return nil, err
	}
	return o.r.With(&direct{ctx, h.s, o}).LoadFrom(h.Entry, text.([]byte))
}

// about adds the object to an error that has no answer about it.
func about(err error, oid tid.OID, what string, at tid.TID) error {
	if err == nil || errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject) {
		return err
	}
	return fmt.Errorf("object %v %s %v: %w", oid, what, at, err)
}

// absent returns the error of an object that has no revision before a TID.
func (d *Database) absent(ctx context.Context, v *view, oid tid.OID, before tid.TID) error {
	if before > v.at {
		return fmt.Errorf("object %v: %w", oid, txn.ErrNoSuchObject)
	}
	_, ok, err := d.next(ctx, v, oid, before-1)
	switch {
	case err != nil:
		return err
	case ok:
		return fmt.Errorf("object %v before %v: %w", oid, before, txn.ErrNotFound)
	}
	return fmt.Errorf("object %v: %w", oid, txn.ErrNoSuchObject)
}

// LoadBefore implements [txn.Database].
func (d *Database) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (rev txn.Revision, err error) {
	err = d.do(ctx, func(ctx context.Context, v *view) error {
		rev = txn.Revision{}
		h, ok, err := d.find(ctx, v, oid, before)
		if err != nil {
			return err
		}
		if !ok {
			return d.absent(ctx, v, oid, max(before, 1))
		}
		if h.Kind == snapshot.NoData {
			return fmt.Errorf("object %v, deleted by %v: %w", oid, h.TID, txn.ErrNoSuchObject)
		}
		var next hit
		if before <= v.at {
			if next, ok, err = d.next(ctx, v, oid, before-1); err != nil {
				return err
			}
			if ok {
				rev.Next = next.TID
			}
		}
		if rev.Data, err = d.load(ctx, v, h); err != nil {
			return err
		}
		if rev.Data == nil { // only where the index of another segment says that it has none
			return fmt.Errorf("object %v, deleted by %v: %w", oid, h.TID, txn.ErrNoSuchObject)
		}
		rev.Serial = h.TID
		return nil
	})
	if err != nil {
		return txn.Revision{}, about(err, oid, "before", before)
	}
	return rev, nil
}

// LoadAt implements [txn.Database].
func (d *Database) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (rev txn.Revision, err error) {
	err = d.do(ctx, func(ctx context.Context, v *view) error {
		h, err := d.exactly(ctx, v, oid, at)
		if err != nil {
			return err
		}
		data, err := d.load(ctx, v, h)
		if err != nil {
			return err
		}
		if data == nil {
			return fmt.Errorf("object %v, deleted by %v: %w", oid, at, txn.ErrNoSuchObject)
		}
		rev = txn.Revision{Data: data, Serial: at}
		return nil
	})
	return rev, about(err, oid, "at", at)
}

// exactly returns the revision that a transaction made.
func (d *Database) exactly(ctx context.Context, v *view, oid tid.OID, at tid.TID) (hit, error) {
	if at > v.at || at == 0 {
		return hit{}, fmt.Errorf("object %v at %v: %w", oid, at, txn.ErrNotFound)
	}
	h, ok, err := d.find(ctx, v, oid, at+1)
	if err != nil {
		return hit{}, err
	}
	if !ok || h.TID != at {
		return hit{}, fmt.Errorf("object %v at %v: %w", oid, at, txn.ErrNotFound)
	}
	return h, nil
}

// DataTID returns the [txn.Record.DataTID] of the record that transaction at made of an object.
// The error is a [txn.ErrNotFound] if there is none.
func (d *Database) DataTID(ctx context.Context, oid tid.OID, at tid.TID) (from tid.TID, err error) {
	err = d.do(ctx, func(ctx context.Context, v *view) error {
		h, err := d.exactly(ctx, v, oid, at)
		if err != nil || h.Kind == snapshot.HasData {
			return err
		}
		rec, err := d.record(ctx, h)
		if err == nil {
			from = rec.DataTID
		}
		return err
	})
	return from, about(err, oid, "at", at)
}

// LastRevision returns the last transaction that changed an object, be it by a deletion: Zero if
// there is none. known is false as long as the store has to be asked for it.
func (d *Database) LastRevision(oid tid.OID) (last tid.TID, known bool) {
	v := d.current()
	for i := range v.steps {
		if s := &v.steps[i]; !s.local() && s.first() <= v.at {
			return tid.Zero, false
		}
	}
	h, ok, err := d.find(d.ctx, v, oid, v.at+1)
	switch {
	case err != nil:
		return tid.Zero, false
	case !ok:
		return tid.Zero, true
	}
	return h.TID, true
}

// Revisions implements [txn.Database].
func (d *Database) Revisions(ctx context.Context, oid tid.OID, n int) (infos []txn.Info, err error) {
	err = d.do(ctx, func(ctx context.Context, v *view) error {
		infos = nil
		for before := v.at + 1; len(infos) < n; {
			h, ok, err := d.find(ctx, v, oid, before)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			info, err := d.info(ctx, v, h.TID)
			if err != nil {
				return err
			}
			if h.Kind == snapshot.HasData {
				rec, err := d.record(ctx, h)
				if err != nil {
					return err
				}
				info.Size = int64(len(rec.Data))
			}
			infos = append(infos, info)
			before = h.TID
		}
		if len(infos) == 0 && n > 0 {
			return fmt.Errorf("object %v: %w", oid, txn.ErrNoSuchObject)
		}
		return nil
	})
	return infos, about(err, oid, "up to", d.At())
}

// info returns the metadata of a transaction that is in the history, without its objects.
func (d *Database) info(ctx context.Context, v *view, at tid.TID) (txn.Info, error) {
	i, _ := slices.BinarySearchFunc(v.segs, at, func(s *segment, at tid.TID) int {
		if _, end := s.span(); end < at {
			return -1
		}
		return 1
	})
	if i < len(v.segs) {
		r, err := v.segs[i].reader(ctx)
		if err != nil {
			return txn.Info{}, err
		}
		for e, err := range r.WalkAfter(at - 1) {
			if err != nil {
				return txn.Info{}, err
			}
			if e.Txn != nil && e.Txn.TID == at {
				return infoOf(e.Txn), nil
			}
			break
		}
	}
	return txn.Info{}, fmt.Errorf("transaction %v: %w", at, txn.ErrNotFound)
}

func infoOf(t *txn.Transaction) txn.Info {
	return txn.Info{TID: t.TID, Status: t.Status, User: slices.Clone(t.User), Description: slices.Clone(t.Description), Extension: slices.Clone(t.Extension)}
}
