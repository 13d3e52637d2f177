package storage

import (
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
)

// wireError returns what a request is answered if the database gives an error
// that is an answer, nil if the database can no longer be trusted. what is named
// in the message: the object in the form that clients expect, or the operation.
func wireError(err error, what fmt.Stringer) *proto.Error {
	switch {
	case errors.Is(err, backend.ErrNonReadable):
		return &proto.Error{ErrCode: proto.NonReadableCell}
	case errors.Is(err, backend.ErrNoSuchObject):
		return proto.Errorf(proto.OIDDoesNotExist, "%v", what)
	case errors.Is(err, backend.ErrNotFound):
		return proto.Errorf(proto.OIDNotFound, "%v", what)
	case errors.Is(err, backend.ErrUndoPacked):
		return proto.Errorf(proto.UndoPackError, "%v", what)
	case errors.Is(err, backend.ErrNotImplemented):
		return proto.Errorf(proto.BackendNotImplemented, "%v", err)
	}
	if corrupt, ok := errors.AsType[*backend.CorruptError](err); ok {
		// A client tries other cells after this code, and fails without one.
		return proto.Errorf(proto.NonReadableCell, "%v", corrupt)
	}
	return nil
}
