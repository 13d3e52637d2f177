package merge

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// find returns the source of an object and its number there.
func (d *Database) find(oid tid.OID) (s *Source, own tid.OID, err error) {
	if s = d.owner(oid); s == nil {
		return nil, 0, fmt.Errorf("object %v is of no source: %w", oid, txn.ErrNoSuchObject)
	}
	return s, oid - s.Shift, nil
}

// LoadBefore implements [txn.Database].
func (d *Database) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	s, own, err := d.find(oid)
	if err != nil {
		return txn.Revision{}, err
	}
	rev, err := s.Database.LoadBefore(ctx, own, min(before, s.Last+1))
	if errors.Is(err, txn.ErrNotFound) {
		err = s.createdLater(ctx, own, before, err)
	}
	if err != nil {
		return txn.Revision{}, s.aboutObject(oid, err)
	}
	if rev.Next > s.Last {
		rev.Next = tid.Zero
	}
	rev.Data, err = d.rewritten(s, own, rev.Serial, rev.Data)
	if err != nil {
		return txn.Revision{}, err
	}
	return rev, nil
}

// createdLater returns the error of an object that the source says was created later:
// if that is after Last, the object does not exist at all.
func (s *Source) createdLater(ctx context.Context, own tid.OID, before tid.TID, notFound error) error {
	if before <= s.Last {
		_, err := s.Database.LoadBefore(ctx, own, s.Last+1)
		switch {
		case err == nil || errors.Is(err, txn.ErrNoSuchObject):
			return notFound
		case !errors.Is(err, txn.ErrNotFound):
			return err
		}
	}
	return fmt.Errorf("created after %v: %w", s.Last, txn.ErrNoSuchObject)
}

// LoadAt implements [txn.Database].
func (d *Database) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	s, own, err := d.find(oid)
	if err != nil {
		return txn.Revision{}, err
	}
	if at > s.Last {
		return txn.Revision{}, s.aboutObject(oid, fmt.Errorf("transaction %v is after the last one, %v: %w", at, s.Last, txn.ErrNotFound))
	}
	rev, err := s.Database.LoadAt(ctx, own, at)
	if err != nil {
		return txn.Revision{}, s.aboutObject(oid, err)
	}
	rev.Data, err = d.rewritten(s, own, rev.Serial, rev.Data)
	if err != nil {
		return txn.Revision{}, err
	}
	return rev, nil
}

// LastRevision returns the last transaction that changed an object, be it by a deletion: Zero if
// there is none. known is false where its source has no such method, does not know it, or
// knows of a later one.
func (d *Database) LastRevision(oid tid.OID) (last tid.TID, known bool) {
	s := d.owner(oid)
	if s == nil {
		return tid.Zero, true
	}
	x, ok := s.Database.(interface {
		LastRevision(oid tid.OID) (last tid.TID, known bool)
	})
	if !ok {
		return tid.Zero, false
	}
	last, known = x.LastRevision(oid - s.Shift)
	if !known || last > s.Last {
		return tid.Zero, false
	}
	return last, true
}

// DataTID returns the [txn.Record.DataTID] of the record that transaction at made of an object.
// [errors.ErrUnsupported] where its source has no such method.
func (d *Database) DataTID(ctx context.Context, oid tid.OID, at tid.TID) (tid.TID, error) {
	s, own, err := d.find(oid)
	if err != nil {
		return tid.Zero, err
	}
	x, ok := s.Database.(interface {
		DataTID(ctx context.Context, oid tid.OID, at tid.TID) (tid.TID, error)
	})
	if !ok {
		return tid.Zero, errors.ErrUnsupported
	}
	if at > s.Last {
		return tid.Zero, s.aboutObject(oid, fmt.Errorf("transaction %v is after the last one, %v: %w", at, s.Last, txn.ErrNotFound))
	}
	t, err := x.DataTID(ctx, own, at)
	if err != nil {
		return tid.Zero, s.aboutObject(oid, err)
	}
	return t, nil
}

// Revisions implements [txn.Database]. It tells of a transaction what the source of the object
// has of it: user and description may be those that are dropped where several sources have
// the same transaction.
func (d *Database) Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	s, own, err := d.find(oid)
	if err != nil {
		return nil, err
	}
	for ask := n; ; {
		list, err := s.Database.Revisions(ctx, own, ask)
		if err != nil {
			return nil, s.aboutObject(oid, err)
		}
		later := 0
		for later < len(list) && list[later].TID > s.Last {
			later++
		}
		if len(list) < ask || len(list)-later >= n {
			if list = list[later:]; len(list) == 0 && n > 0 {
				return nil, s.aboutObject(oid, fmt.Errorf("created after %v: %w", s.Last, txn.ErrNoSuchObject))
			}
			list = list[:min(len(list), max(n, 0))]
			if s.Shift != 0 {
				for i := range list {
					list[i].OIDs = s.shift(nil, list[i].OIDs)
				}
			}
			return list, nil
		}
		ask = max(n+later, 2*ask) // the source has grown: n+later, unless it goes on to grow
	}
}

// OIDs implements [txn.Database].
func (d *Database) OIDs(ctx context.Context, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error] {
	return func(yield func(tid.OID, error) bool) {
		for i := range d.sources {
			s := &d.sources[i]
			if s.end() <= from {
				continue
			}
			for own, err := range s.Database.OIDs(ctx, min(at, s.Last), max(from, s.Shift)-s.Shift) {
				switch {
				case err != nil:
					err = s.about(err)
				case own >= s.Next:
					err = s.beyond(own, fmt.Sprintf("at %v", min(at, s.Last)))
				}
				if err != nil {
					yield(0, err)
					return
				}
				if !yield(own+s.Shift, nil) {
					return
				}
			}
		}
	}
}
