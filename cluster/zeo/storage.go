package zeo

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var (
	// ErrNoSuchObject reports an object that does not exist, at all or at the
	// revision asked for, or that is deleted there.
	ErrNoSuchObject = errors.New("no such object")
	// ErrTooEarly reports an object that exists, but not yet at the time asked for.
	ErrTooEarly = errors.New("object was created later")
	// ErrReadOnly reports a write to what can only be read.
	ErrReadOnly = errors.New("read-only storage")
	// ErrUnavailable reports that the database cannot serve for the moment. The
	// client is disconnected: it connects again, here or elsewhere, and repeats its
	// transaction.
	ErrUnavailable = errors.New("storage is not available")
	// ErrUnsupported reports an operation the storage does not offer.
	ErrUnsupported = errors.New("not supported by this storage")
)

// ConflictError reports a store or a deletion based on a revision that is no
// longer the current one.
type ConflictError struct {
	OID       tid.OID
	Committed tid.TID // current revision
	Base      tid.TID // revision that the client started from
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("object %v: based on %v but %v is committed", e.OID, e.Base, e.Committed)
}

// ReadConflictError reports that an object which had to be current is not.
type ReadConflictError struct {
	OID       tid.OID
	Committed tid.TID
	Base      tid.TID
}

func (e *ReadConflictError) Error() string {
	return fmt.Sprintf("object %v: read at %v but %v is committed", e.OID, e.Base, e.Committed)
}

// UndoError reports why a transaction cannot be undone.
type UndoError struct{ Failures []UndoFailure }

// UndoFailure is one object of an [UndoError].
type UndoFailure struct {
	OID    tid.OID
	Reason string
}

func (e *UndoError) Error() string {
	if len(e.Failures) == 0 {
		return "undo: impossible"
	}
	f := e.Failures[0]
	return fmt.Sprintf("undo: object %v: %s (%d objects in all)", f.OID, f.Reason, len(e.Failures))
}

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

// Revision is one revision of an object.
type Revision struct {
	Data   []byte  // not modified by the storage as long as the caller may use it
	Serial tid.TID // when it was committed
	Next   tid.TID // when it was replaced; [tid.Zero]: it is current
}

// Storage is what the server needs from a database. Its methods may be called
// concurrently and return soon after their context ended.
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

	// LoadBefore returns the revision that was current just before a moment.
	// Errors: [ErrNoSuchObject], [ErrTooEarly].
	LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (Revision, error)
	// LoadSerial returns the data committed at serial, or [ErrNoSuchObject].
	LoadSerial(ctx context.Context, oid tid.OID, serial tid.TID) ([]byte, error)
	// History returns up to n revisions, newest first, or [ErrNoSuchObject].
	// Deletions have size 0.
	History(ctx context.Context, oid tid.OID, n int) ([]Meta, error)
	// UndoLog returns, newest first, the undoable transactions that accept
	// accepts, of which the first ones are left out and the last is excluded.
	UndoLog(ctx context.Context, first, last int, accept func(*Meta) bool) ([]Meta, error)
	// Transactions yields what was committed in (after, upTo], oldest first.
	Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error]
	// NextObject returns the current revision of the first object, not deleted,
	// whose id is not less than from. It returns [ErrNoSuchObject] at the end.
	NextObject(ctx context.Context, from tid.OID) (tid.OID, Revision, error)

	// NewOIDs returns n ids that are given to nobody else.
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
	Cached(oid tid.OID, before tid.TID) (r Revision, ok bool)
}

// Ahead is a [Storage] whose transactions can be begun before they are needed, and
// voted and finished by a user who has no goroutine to wait.
type Ahead interface {
	// BeginSoon begins a transaction without waiting. It returns nil if that is
	// impossible now.
	BeginSoon(b Begin) Beginning
}

// Beginning is a transaction that has been asked for. It holds no locks. It is taken,
// waited for or abandoned.
type Beginning interface {
	// Take returns the transaction if neither that nor a store of few data needs
	// to wait; otherwise nil.
	Take() Prompt
	// Wait waits for the transaction, or until ctx ends: it is abandoned then.
	Wait(ctx context.Context) (Prompt, error)
	Abandon()
}

// Prompt is a [Txn] that tells when it has gone on. What it calls must not wait,
// and may be called by any goroutine, even by the caller.
type Prompt interface {
	Txn
	// VoteSoon is Vote without waiting. It calls done once. With voted false there
	// are conflicts, an error or something to wait for: Vote has to be called and
	// goes on from there.
	VoteSoon(done func(voted bool))
	// GiveUp makes a VoteSoon under way call done.
	GiveUp()
	// FinishSoon is Finish without waiting. It calls done once, after committed.
	// With finished false Finish has to be called, which waits for the outcome.
	FinishSoon(committed func(tid.TID), done func(at tid.TID, finished bool))
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
	// A *[ConflictError], here or from Vote, leaves the transaction open: what was
	// stored remains locked, and a new Store of the object may follow. Store may
	// keep data until Vote returns.
	Store(ctx context.Context, oid tid.OID, base tid.TID, data []byte) error
	// Check demands that base still be current at commit (*[ReadConflictError]).
	Check(ctx context.Context, oid tid.OID, base tid.TID) error
	// Delete removes an object. *[ConflictError] or [ErrNoSuchObject] if it is
	// not at base.
	Delete(ctx context.Context, oid tid.OID, base tid.TID) error
	// Undo restores what a transaction replaced and returns the objects
	// concerned. *[UndoError] if others have built upon it.
	Undo(ctx context.Context, undone tid.TID) ([]tid.OID, error)
	// Vote makes sure that Finish will succeed. It reports all conflicts of
	// stores found meanwhile, in which case the transaction is still open, and it
	// must be called again after they were stored anew. It returns the objects
	// whose data differ from what was stored.
	Vote(ctx context.Context) (changed []tid.OID, conflicts []*ConflictError, err error)
	// Finish commits. It calls committed in the order of the transaction ids,
	// relative to what the [Watcher] is told, and before any load shows the
	// transaction; the watcher that belongs to this storage is not told. If that
	// order was lost (a broken connection that had to be repaired), committed is
	// not called and the id is returned alone. It is not stopped by ctx where the
	// outcome would remain unknown; if the outcome remains unknown, the error
	// wraps [ErrUnknown].
	Finish(ctx context.Context, committed func(tid.TID)) (tid.TID, error)
	// Abort forgets the transaction and releases its locks, in whatever state. After
	// a Finish that failed it does nothing to what may be committed.
	Abort(ctx context.Context) error
}

// ErrUnknown reports a transaction that may or may not be committed.
var ErrUnknown = errors.New("outcome of the transaction is unknown")

// Restorer is a [Txn] that can copy records with their transaction ids.
type Restorer interface {
	// Restore writes a record without any check. Data nil: the object does not
	// exist at this revision. DataTID, if not Zero, is an earlier revision that
	// probably has the same data.
	Restore(ctx context.Context, r txn.Record) error
}

// Meta describes a transaction in [Storage.History] and [Storage.UndoLog].
type Meta struct {
	TID         tid.TID
	User        []byte
	Description []byte
	Extension   []byte
	Size        int64 // bytes of the record or of the transaction
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
	// Committed announces a transaction of somebody else, before any load shows
	// it. The ids are strictly increasing.
	Committed(t tid.TID, oids []tid.OID)
	// Lost announces that commits may be missed from now on, or that the
	// database is out of service.
	Lost()
	// Back announces the end of what Lost began. Last is the last commit, which
	// may have been missed.
	Back(last tid.TID)
}
