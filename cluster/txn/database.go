package txn

import (
	"context"
	"errors"
	"iter"

	"github.com/neozodb/neo/cluster/tid"
)

var (
	// ErrNoSuchObject reports an object that does not exist: it never did, or it was
	// deleted or its creation undone before the time asked for. Python's POSKeyError.
	ErrNoSuchObject = errors.New("no such object")
	// ErrNotFound reports a revision or a transaction that does not exist: the object
	// was created later, the transaction did not change it, or a pack removed it.
	ErrNotFound = errors.New("not found")
	// ErrReadOnly reports a write to what can only be read.
	ErrReadOnly = errors.New("read-only access")
	// ErrUnsupported reports an operation that a database does not offer.
	ErrUnsupported = errors.ErrUnsupported
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
