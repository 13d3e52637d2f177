package zeo

import (
	"context"
	"errors"
	"iter"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// ErrUnsupported reports an operation that the storage does not offer.
var ErrUnsupported = errors.New("not supported by this storage")

// Features says what a storage can do besides loading and storing.
type Features struct {
	Name     string // shown to clients
	ReadOnly bool
	Undo     bool // UndoLog and Txn.Undo
	Iterate  bool // Transactions
	Objects  bool // NextObject
	Restore  bool // Txn is a Restorer
	GC       bool // Txn.Delete

	// Local: loads never wait for another machine. They are then answered
	// without passing through another goroutine.
	Local bool
}

// Storage is what the server needs from a database. Its methods may be called
// concurrently and return soon after their context ended. An error that wraps
// [txn.ErrUnavailable] disconnects the client, which connects again, here or
// elsewhere, and repeats its transaction. [Reader] makes a Storage of any
// [txn.Database].
type Storage interface {
	// Features returns the same at each call.
	Features() Features
	// Size returns the number of objects and of bytes, or estimates, or zeros. It
	// never waits.
	Size() (objects, bytes int64)

	// Watch makes w learn of all commits from now on and returns the last one
	// before. It is called once, before anything else.
	Watch(ctx context.Context, w Watcher) (tid.TID, error)
	// Sync returns when every commit that finished before, through whatever
	// door, was given to the watcher.
	Sync(ctx context.Context) error

	// LoadBefore, LoadAt, Revisions and Transactions are those of [txn.Database].
	LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error)
	LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error)
	Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error)
	Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error]
	// UndoLog returns, newest first, the undoable transactions that accept
	// accepts, of which the first ones are left out and the last is excluded.
	UndoLog(ctx context.Context, first, last int, accept func(*txn.Info) bool) ([]txn.Info, error)
	// NextObject returns the current revision of the first object, not deleted,
	// whose id is not less than from. It returns [txn.ErrNoSuchObject] at the end.
	NextObject(ctx context.Context, from tid.OID) (tid.OID, txn.Revision, error)

	// NewOIDs returns n ids that are given to no other client.
	NewOIDs(ctx context.Context, n int) ([]tid.OID, error)
	// Begin starts a transaction. It may wait until others have ended.
	Begin(ctx context.Context, b Begin) (Txn, error)
	// Pack removes what is not needed to see the database as of at or later, and
	// returns when this is done.
	Pack(ctx context.Context, at tid.TID) error
}

// Cacher is a [Storage] that keeps some revisions at hand.
type Cacher interface {
	// Cached is LoadBefore if that needs not wait; ok is false otherwise.
	Cached(oid tid.OID, before tid.TID) (r txn.Revision, ok bool)
}

// AsyncStorage is a [Storage] whose transactions can be begun before they are needed, and
// voted and finished without a goroutine that waits.
type AsyncStorage interface {
	// BeginAsync begins a transaction without waiting. It returns nil if that is
	// impossible now.
	BeginAsync(b Begin) PendingBegin
}

// PendingBegin is a transaction that has been asked for. It holds no locks. It is taken,
// waited for or abandoned.
type PendingBegin interface {
	// Take returns the transaction if neither that nor a store of few data needs
	// to wait; otherwise nil.
	Take() AsyncTxn
	// Wait waits for the transaction, or until ctx ends: it is abandoned then.
	Wait(ctx context.Context) (AsyncTxn, error)
	Abandon()
}

// AsyncTxn is a [Txn] that tells when it has gone on. What it calls must not wait,
// and may be called by any goroutine, even by the caller.
type AsyncTxn interface {
	Txn
	// VoteAsync is Vote without waiting. It calls done once. With voted false there
	// are conflicts, an error or something to wait for: Vote has to be called and
	// goes on from there.
	VoteAsync(done func(voted bool))
	// GiveUp makes a VoteAsync under way call done.
	GiveUp()
	// FinishAsync is Finish without waiting. It calls done once, after committed.
	// With finished false Finish has to be called, which waits for the outcome.
	FinishAsync(committed func(tid.TID), done func(at tid.TID, finished bool))
}

// Begin describes a transaction to begin.
type Begin struct {
	TID         tid.TID // imposed; [tid.Zero]: chosen at commit
	Status      byte    // of txn; [txn.Committed] unless imposed
	User        []byte
	Description []byte
	Extension   []byte // pickled dict, or empty
}

// Txn is a transaction that stores. It has one user, who ends it by Abort or by a
// Finish that returns no error.
type Txn interface {
	// Store writes an object based on the revision base, Zero for a new object.
	// A *[txn.ConflictError], here or from Vote, leaves the transaction open: what was
	// stored remains locked, and a new Store of the object may follow. Store may
	// keep data until Vote returns.
	Store(ctx context.Context, oid tid.OID, base tid.TID, data []byte) error
	// Check demands that base still be current at commit (*[txn.ReadConflictError]).
	Check(ctx context.Context, oid tid.OID, base tid.TID) error
	// Delete removes an object. *[txn.ConflictError] or [txn.ErrNoSuchObject] if it is
	// not at base.
	Delete(ctx context.Context, oid tid.OID, base tid.TID) error
	// Undo restores what a transaction replaced and returns the objects
	// concerned. *[txn.UndoError] if others have built upon it.
	Undo(ctx context.Context, undone tid.TID) ([]tid.OID, error)
	// Vote makes sure that Finish will succeed. It reports all conflicts of
	// stores found meanwhile, in which case the transaction is still open, and it
	// must be called again after they were stored anew. It returns the objects
	// whose data differ from what was stored.
	Vote(ctx context.Context) (changed []tid.OID, conflicts []*txn.ConflictError, err error)
	// Finish commits. It calls committed in the order of the transaction ids,
	// relative to what the [Watcher] is told, and before any load shows the
	// transaction; the watcher that belongs to this storage is not told. If that
	// order was lost (a broken connection that had to be repaired), committed is
	// not called and the id is returned alone. It is not stopped by ctx where the
	// outcome would remain unknown; if the outcome remains unknown, the error
	// wraps [txn.ErrUnknownOutcome].
	Finish(ctx context.Context, committed func(tid.TID)) (tid.TID, error)
	// Abort forgets the transaction and releases its locks, in whatever state. After
	// a Finish that failed it does nothing to what may be committed.
	Abort(ctx context.Context) error
}

// Restorer is a [Txn] that can copy records with their transaction ids.
type Restorer interface {
	// Restore writes a record without any check. Data nil: the object does not
	// exist at this revision. DataTID, if not Zero, is an earlier revision that
	// probably has the same data.
	Restore(ctx context.Context, r txn.Record) error
}

// Change says which objects a transaction changed.
type Change struct {
	TID  tid.TID
	OIDs []tid.OID
}

// Changer is a [Storage] that knows what changed without reading the data.
type Changer interface {
	// Changes returns what was committed after from, oldest first. from is after,
	// or later if these are more than n transactions or too many to list.
	Changes(ctx context.Context, after tid.TID, n int) (changes []Change, from tid.TID, err error)
}

// Watcher is told of commits. Its methods do not wait.
type Watcher interface {
	// Committed announces a transaction of another client, before any load shows
	// it. The ids are strictly increasing.
	Committed(t tid.TID, oids []tid.OID)
	// Lost announces that commits may be missed from now on, or that the
	// database is out of service.
	Lost()
	// Back announces the end of what Lost began. Last is the last commit, which
	// may have been missed.
	Back(last tid.TID)
}
