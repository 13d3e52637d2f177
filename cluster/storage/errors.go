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

// SupersededError reports a cluster whose partition table is not newer than that of
// this node, and has no cells of it. It was made anew, or comes from a copy: nobody
// has decided that the data of this node may go.
type SupersededError struct {
	Cluster      string
	Theirs, Ours uint64 // versions of the partition tables
}

func (e *SupersededError) Error() string {
	return fmt.Sprintf("cluster %s has partition table %d without this storage, whose table is %d: it was made anew or comes from a copy, "+
		"and the data here would be erased. If that is wanted, start this storage once with --reset; "+
		"if not, stop the cluster and start it with this storage and without those that replaced it", e.Cluster, e.Theirs, e.Ours)
}
