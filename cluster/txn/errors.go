package txn

import (
	"errors"
	"fmt"

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
	// ErrUnavailable reports that a database cannot serve for the moment. What was
	// begun has to be begun again, once it serves.
	ErrUnavailable = errors.New("storage is not available")
	// ErrUnknownOutcome reports a commit that was given up while it was not known
	// whether the transaction is committed.
	ErrUnknownOutcome = errors.New("it is not known whether the transaction was committed")
)

// ConflictError reports a store or a deletion based on a revision that is no longer
// the current one.
type ConflictError struct {
	OID       tid.OID
	Committed tid.TID // current revision
	Base      tid.TID // revision that the store is based on
	Data      []byte  // that could not be stored, where it is known; nil for a deletion
	Err       error   // why it could not be resolved, or nil
}

func (e *ConflictError) Error() string {
	s := fmt.Sprintf("conflict on object %v: based on %v, but %v is committed", e.OID, e.Base, e.Committed)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns why the conflict could not be resolved.
func (e *ConflictError) Unwrap() error { return e.Err }

// ReadConflictError reports an object that had to stay unchanged and did not.
type ReadConflictError struct {
	OID       tid.OID
	Committed tid.TID // current revision
	Base      tid.TID // revision expected
}

func (e *ReadConflictError) Error() string {
	return fmt.Sprintf("read conflict on object %v: expected %v, but %v is committed", e.OID, e.Base, e.Committed)
}

// UndoError reports a transaction that cannot be undone.
type UndoError struct {
	TID      tid.TID
	Failures []UndoFailure // at least one
	Err      error         // kind of the failure, or nil
}

// UndoFailure is one reason why a transaction cannot be undone.
type UndoFailure struct {
	OID    tid.OID // [tid.InvalidOID]: none in particular
	Reason string
}

func (e *UndoError) Error() string {
	s := fmt.Sprintf("undo transaction %v", e.TID)
	for i, f := range e.Failures {
		switch {
		case i > 0:
			return fmt.Sprintf("%s (%d objects in all)", s, len(e.Failures))
		case f.OID != tid.InvalidOID:
			s += fmt.Sprintf(": object %v", f.OID)
		}
		s += ": " + f.Reason
	}
	return s
}

// Unwrap returns the kind of the failure.
func (e *UndoError) Unwrap() error { return e.Err }
