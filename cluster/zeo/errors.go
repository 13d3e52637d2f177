package zeo

import (
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// remoteError is an exception as clients know it: the class and either its
// arguments or its attributes.
type remoteError struct {
	class string
	text  string // for the log
	data  func(*encoder)
	quiet bool // ordinary: not worth a line in the log
}

func (e *remoteError) Error() string {
	if e.text != "" {
		return e.class + ": " + e.text
	}
	return e.class
}

// textError is an exception with one text as argument.
func textError(class, format string, args ...any) *remoteError {
	text := fmt.Sprintf(format, args...)
	return &remoteError{class: class, text: text, data: func(e *encoder) {
		e.beginTuple(1)
		e.text(text)
		e.endTuple(1)
	}}
}

// keyError is a POSKeyError.
func keyError(oid []byte) *remoteError {
	return &remoteError{quiet: true, class: "ZODB.POSException.POSKeyError", data: func(e *encoder) {
		e.beginTuple(1)
		e.bytes(oid)
		e.endTuple(1)
	}}
}

func readOnlyError() *remoteError {
	return &remoteError{quiet: true, class: "ZODB.POSException.ReadOnlyError", data: func(e *encoder) {
		e.beginTuple(0)
		e.endTuple(0)
	}}
}

// transactionError is a StorageTransactionError: a message, or the transaction
// that is open (None without) and the one that was named.
func transactionError(format string, args ...any) *remoteError {
	return textError("ZODB.POSException.StorageTransactionError", format, args...)
}

func wrongTransaction(open *transaction, given int64) *remoteError {
	return &remoteError{class: "ZODB.POSException.StorageTransactionError", data: func(e *encoder) {
		e.beginTuple(2)
		if open == nil {
			e.null()
		} else {
			e.int(open.id)
		}
		e.int(given)
		e.endTuple(2)
	}}
}

func conflictError(class, message string, oid tid.OID, committed, base tid.TID) *remoteError {
	return &remoteError{quiet: true, class: class, data: func(e *encoder) {
		e.beginDict(4)
		e.text("message")
		e.text(message)
		e.text("oid")
		e.oid(oid)
		e.text("class_name")
		e.null()
		e.text("serials")
		e.beginTuple(2)
		e.tid(committed)
		e.tid(base)
		e.endTuple(2)
		e.endDict(4)
	}}
}

func undoError(u *txn.UndoError) *remoteError {
	return &remoteError{class: "ZODB.POSException.MultipleUndoErrors", data: func(e *encoder) {
		e.beginDict(3)
		e.text("_reason")
		e.text("Undo errors")
		e.text("_oid")
		e.null()
		e.text("_errs")
		e.beginList(len(u.Failures))
		for _, f := range u.Failures {
			if f.OID == tid.InvalidOID {
				f.OID = 0 // the client shows some object
			}
			e.beginTuple(2)
			e.oid(f.OID)
			e.text(f.Reason)
			e.endTuple(2)
		}
		e.endList(len(u.Failures))
		e.endDict(3)
	}}
}

// toRemote translates an error for the client. The object is the one the call was
// about, if any.
func toRemote(err error, oid []byte) *remoteError {
	if r, ok := errors.AsType[*remoteError](err); ok {
		return r
	}
	if c, ok := errors.AsType[*txn.ConflictError](err); ok {
		return conflictError("ZODB.POSException.ConflictError", "database conflict error", c.OID, c.Committed, c.Base)
	}
	if c, ok := errors.AsType[*txn.ReadConflictError](err); ok {
		return conflictError("ZODB.POSException.ReadConflictError", "database read conflict error", c.OID, c.Committed, c.Base)
	}
	if u, ok := errors.AsType[*txn.UndoError](err); ok {
		return undoError(u)
	}
	if a, ok := errors.AsType[argError](err); ok {
		return textError("builtins.TypeError", "%s", string(a))
	}
	switch {
	case errors.Is(err, txn.ErrNoSuchObject), oid != nil && errors.Is(err, txn.ErrNotFound):
		return keyError(oid)
	case errors.Is(err, txn.ErrReadOnly):
		return readOnlyError()
	case errors.Is(err, ErrUnsupported):
		return textError("ZODB.POSException.Unsupported", "%s", err.Error())
	case errors.Is(err, errTooComplex):
		return textError("builtins.ValueError", "%s", err.Error())
	}
	return textError("ZODB.POSException.StorageError", "%s", err.Error())
}

// appendError appends an error as the answer to a call.
func appendError(e *encoder, id *msgID, r *remoteError) {
	at := e.beginReply(id, flagException)
	e.beginTuple(2)
	e.text(r.class)
	r.data(e)
	e.endTuple(2)
	e.endMessage(at)
}
