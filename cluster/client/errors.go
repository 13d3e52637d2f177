package client

import (
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

var (
	// ErrNotFound reports a revision or a transaction that does not exist: the
	// object was created later, or what is asked for was packed.
	ErrNotFound = errors.New("not found")
	// ErrNoSuchObject reports an object that has no revision at all (POSKeyError).
	ErrNoSuchObject = errors.New("no such object")
	// ErrDeleted reports an object that does not exist at the time asked for
	// because it was deleted or its creation was undone (POSKeyError).
	ErrDeleted = errors.New("object is deleted")
	// ErrMasterLost reports that the link to the primary master was lost. What
	// was read may be retried from the start of the reader's transaction.
	ErrMasterLost = errors.New("connection to the primary master was lost")
	// ErrNoStorage reports that no storage node could answer or take a write.
	ErrNoStorage = errors.New("no storage available")
	// ErrReadOnly reports a write by a read-only client, or to a cluster that is a backup.
	ErrReadOnly = errors.New("read-only access")
	// ErrIncomplete reports a commit that was refused because storage nodes that
	// missed it are needed to keep the cluster operational.
	ErrIncomplete = errors.New("incomplete transaction")
	// ErrUndoPacked reports that the revision to restore was packed.
	ErrUndoPacked = errors.New("the revision to restore was packed")
	// ErrChecksum reports data that differs from its checksum on every replica.
	ErrChecksum = errors.New("wrong checksum")
	// ErrUnknownOutcome reports a finish that was given up while it was not known
	// whether the transaction is committed.
	ErrUnknownOutcome = errors.New("it is not known whether the transaction was committed")
	// ErrClosed reports the use of a closed client or of an ended transaction.
	ErrClosed = errors.New("closed")
)

// ObjectError says which revision of which object an error is about. TID is the
// revision at which the object was deleted, the revision or the bound asked for,
// or Zero.
type ObjectError struct {
	OID tid.OID
	TID tid.TID
	Err error
}

func (e *ObjectError) Error() string {
	if e.TID == tid.Zero {
		return fmt.Sprintf("object %v: %v", e.OID, e.Err)
	}
	return fmt.Sprintf("object %v at %v: %v", e.OID, e.TID, e.Err)
}

func (e *ObjectError) Unwrap() error { return e.Err }

// ConflictError reports a store over a revision that is no longer the current
// one. The transaction stays open: the object may be stored again on top of
// Serials[0], or the transaction aborted.
type ConflictError struct {
	OID     tid.OID
	Serials [2]tid.TID // the committed revision, and the one the store is based on
	Data    []byte     // that could not be stored, nil for a deletion
	Err     error      // why it could not be resolved, or nil
}

func (e *ConflictError) Error() string {
	s := fmt.Sprintf("conflict on object %v: based on %v, but %v is committed", e.OID, e.Serials[1], e.Serials[0])
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *ConflictError) Unwrap() error { return e.Err }

// ReadConflictError reports an object that had to stay unchanged and did not.
type ReadConflictError struct {
	OID     tid.OID
	Serials [2]tid.TID // the committed revision, and the one expected
}

func (e *ReadConflictError) Error() string {
	return fmt.Sprintf("read conflict on object %v: expected %v, but %v is committed", e.OID, e.Serials[1], e.Serials[0])
}

// UndoError reports a transaction that cannot be undone.
type UndoError struct {
	TID    tid.TID
	OID    tid.OID // InvalidOID: none in particular
	Reason string
	Err    error // ErrUndoPacked if that is the reason, or nil
}

func (e *UndoError) Error() string {
	if e.OID == tid.InvalidOID {
		return fmt.Sprintf("undo transaction %v: %s", e.TID, e.Reason)
	}
	return fmt.Sprintf("undo transaction %v: object %v: %s", e.TID, e.OID, e.Reason)
}

func (e *UndoError) Unwrap() error { return e.Err }

// fromWire turns the refusal of a peer into the error that callers test for.
func fromWire(err error) error {
	pe, ok := errors.AsType[*proto.Error](err)
	if !ok {
		return err
	}
	switch pe.ErrCode {
	case proto.OIDNotFound, proto.TIDNotFound:
		return ErrNotFound
	case proto.OIDDoesNotExist:
		return ErrNoSuchObject
	case proto.ReadOnlyAccess:
		return ErrReadOnly
	case proto.IncompleteTransaction:
		return fmt.Errorf("%w: %s", ErrIncomplete, pe.Message)
	case proto.UndoPackError:
		return ErrUndoPacked
	case proto.BackendNotImplemented:
		return fmt.Errorf("%w: %s", errors.ErrUnsupported, pe.Message)
	case proto.ProtocolError:
		return fmt.Errorf("protocol error: %w", pe)
	}
	return pe
}
