package txn

import (
	"context"
	"iter"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
)

// Revision is one revision of an object.
type Revision struct {
	Data   []byte  // the ZODB record; not modified as long as the caller may use it
	Serial tid.TID // the transaction that made the revision
	Next   tid.TID // the transaction that replaced it; [tid.Zero]: it is current
}

// Info describes a transaction without its data.
type Info struct {
	TID         tid.TID
	Status      byte // Committed or Packed
	User        []byte
	Description []byte
	Extension   []byte // pickled dict, or empty

	// OIDs are the objects that the transaction changed, as far as the database
	// knows them without reading data.
	OIDs []tid.OID

	// Size is a length in bytes, 0 where it is not known: of the stored record in
	// [Database.Revisions], which is 0 for a deletion and may be for an undo, and of
	// the transaction in [Database.Backwards].
	Size int64
}

// Database is anything that a ZODB application could read: the history of all
// objects, each of them at any time. Its methods may be called concurrently, and
// return soon after their context has ended.
type Database interface {
	History

	// LoadBefore returns the latest revision of an object before a TID. The error
	// wraps [ErrNotFound] if the object was created later, and [ErrNoSuchObject] if
	// it does not exist at that time for another reason.
	LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (Revision, error)
	// LoadAt returns the revision of an object that transaction at made, without
	// Next. The error wraps [ErrNotFound] or [ErrNoSuchObject] if there is none, or
	// if it is a deletion.
	LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (Revision, error)
	// Revisions returns the latest n transactions that changed an object, newest
	// first; a deletion is a change. The error wraps [ErrNoSuchObject] if there is
	// no such transaction.
	Revisions(ctx context.Context, oid tid.OID, n int) ([]Info, error)
	// Backwards yields all transactions, newest first. Each is valid only until the
	// next step. It ends at the first error.
	Backwards(ctx context.Context) iter.Seq2[*Info, error]
	// OIDs yields the objects that exist at a TID, ascending, from an id on. It ends
	// at the first error.
	OIDs(ctx context.Context, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error]
}

// Select returns the transactions at positions [first, last) among those of a
// sequence that accept accepts (nil: all).
func Select(infos iter.Seq2[*Info, error], first, last int, accept func(*Info) bool) ([]Info, error) {
	var list []Info
	if first < 0 || last <= first {
		return nil, nil
	}
	accepted := 0
	for info, err := range infos {
		if err != nil {
			return nil, err
		}
		if accept != nil && !accept(info) {
			continue
		}
		if accepted >= first {
			list = append(list, info.Clone())
		}
		if accepted++; accepted == last {
			break
		}
	}
	return list, nil
}

// Clone returns a copy that shares nothing with i.
func (i *Info) Clone() Info {
	c := *i
	c.User, c.Description, c.Extension = slices.Clone(i.User), slices.Clone(i.Description), slices.Clone(i.Extension)
	c.OIDs = slices.Clone(i.OIDs)
	return c
}
