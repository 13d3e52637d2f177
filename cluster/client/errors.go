package client

import (
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var (
	// ErrDeleted reports an object that does not exist at the time asked for
	// because it was deleted or its creation undone. It is a [txn.ErrNoSuchObject].
	ErrDeleted = of(txn.ErrNoSuchObject, "object is deleted")
	// ErrMasterLost reports that the link to the primary master was lost. What
	// was read may be retried from the start of the reader's transaction. It is a
	// [txn.ErrUnavailable], as are the next three.
	ErrMasterLost = of(txn.ErrUnavailable, "connection to the primary master was lost")
	// ErrNoStorage reports that no storage node could answer or take a write.
	ErrNoStorage = of(txn.ErrUnavailable, "no storage available")
	// ErrIncomplete reports a commit that was refused because storage nodes that
	// missed it are needed to keep the cluster operational.
	ErrIncomplete = of(txn.ErrUnavailable, "incomplete transaction")
	// ErrClosed reports the use of a closed client or of an ended transaction.
	ErrClosed = of(txn.ErrUnavailable, "closed")
	// ErrUndoPacked reports that the revision to restore was packed.
	ErrUndoPacked = errors.New("the revision to restore was packed")
	// ErrChecksum reports data that differs from its checksum on every replica.
	ErrChecksum = errors.New("wrong checksum")
)

// kindError is an error of a kind, whose text says more.
type kindError struct {
	text string
	kind error
}

func of(kind error, text string) error { return &kindError{text, kind} }

func (e *kindError) Error() string { return e.text }

func (e *kindError) Unwrap() error { return e.kind }

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

// fromWire turns the refusal of a peer into the error that callers test for.
func fromWire(err error) error {
	pe, ok := errors.AsType[*proto.Error](err)
	if !ok {
		return err
	}
	switch pe.ErrCode {
	case proto.OIDNotFound, proto.TIDNotFound:
		return txn.ErrNotFound
	case proto.OIDDoesNotExist:
		return txn.ErrNoSuchObject
	case proto.ReadOnlyAccess:
		return txn.ErrReadOnly
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
