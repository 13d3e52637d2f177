package zeo

import (
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

// remoteError is an exception as clients know it: the class and either its
// arguments or its attributes.
type remoteError struct {
	class string
	text  string // for the log
	data  func(*wire.Encoder)
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
	return &remoteError{class: class, text: text, data: func(e *wire.Encoder) {
		e.BeginTuple(1)
		e.Text(text)
		e.EndTuple(1)
	}}
}

// keyError is a POSKeyError.
func keyError(oid []byte) *remoteError {
	return &remoteError{quiet: true, class: "ZODB.POSException.POSKeyError", data: func(e *wire.Encoder) {
		e.BeginTuple(1)
		e.Bytes(oid)
		e.EndTuple(1)
	}}
}

func readOnlyError() *remoteError {
	return &remoteError{quiet: true, class: "ZODB.POSException.ReadOnlyError", data: func(e *wire.Encoder) {
		e.BeginTuple(0)
		e.EndTuple(0)
	}}
}

// transactionError is a StorageTransactionError: a message, or the transaction
// that is open (None without) and the one that was named.
func transactionError(format string, args ...any) *remoteError {
	return textError("ZODB.POSException.StorageTransactionError", format, args...)
}

func wrongTransaction(open *transaction, given int64) *remoteError {
	return &remoteError{class: "ZODB.POSException.StorageTransactionError", data: func(e *wire.Encoder) {
		e.BeginTuple(2)
		if open == nil {
			e.Null()
		} else {
			e.Int(open.id)
		}
		e.Int(given)
		e.EndTuple(2)
	}}
}

func conflictError(class, message string, oid tid.OID, committed, base tid.TID) *remoteError {
	return &remoteError{quiet: true, class: class, data: func(e *wire.Encoder) {
		e.BeginDict(4)
		e.Text("message")
		e.Text(message)
		e.Text("oid")
		e.OID(oid)
		e.Text("class_name")
		e.Null()
		e.Text("serials")
		e.BeginTuple(2)
		e.TID(committed)
		e.TID(base)
		e.EndTuple(2)
		e.EndDict(4)
	}}
}

func undoError(u *txn.UndoError) *remoteError {
	return &remoteError{class: "ZODB.POSException.MultipleUndoErrors", data: func(e *wire.Encoder) {
		e.BeginDict(3)
		e.Text("_reason")
		e.Text("Undo errors")
		e.Text("_oid")
		e.Null()
		e.Text("_errs")
		e.BeginList(len(u.Failures))
		for _, f := range u.Failures {
			if f.OID == tid.InvalidOID {
				f.OID = 0 // the client shows some object
			}
			e.BeginTuple(2)
			e.OID(f.OID)
			e.Text(f.Reason)
			e.EndTuple(2)
		}
		e.EndList(len(u.Failures))
		e.EndDict(3)
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
	if a, ok := errors.AsType[wire.ArgError](err); ok {
		return textError("builtins.TypeError", "%s", string(a))
	}
	switch {
	case errors.Is(err, txn.ErrNoSuchObject), oid != nil && errors.Is(err, txn.ErrNotFound):
		return keyError(oid)
	case errors.Is(err, txn.ErrReadOnly):
		return readOnlyError()
	case errors.Is(err, ErrUnsupported):
		return textError("ZODB.POSException.Unsupported", "%s", err.Error())
	case errors.Is(err, wire.ErrTooComplex):
		return textError("builtins.ValueError", "%s", err.Error())
	}
	return textError("ZODB.POSException.StorageError", "%s", err.Error())
}

// appendError appends an error as the answer to a call.
func appendError(e *wire.Encoder, id *wire.MsgID, r *remoteError) {
	at := e.BeginReply(id, wire.FlagException)
	e.BeginTuple(2)
	e.Text(r.class)
	r.data(e)
	e.EndTuple(2)
	e.EndMessage(at)
}
