// Package pickle reads and edits Python pickles without running them: it finds
// the references that a ZODB record makes, rewrites them in place, names the class
// of a record, and decodes and encodes plain values.
//
// A ZODB record is two pickles, one after the other: the class of the object and
// its state. They share one memo. Persistent references are what the opcode
// BINPERSID finds on the stack.
//
// # Invariant
//
// Nothing in a pickle is ever called or instantiated, and no input makes this
// package panic or allocate much more than its length: every length is compared
// with the bytes that are there before it is used. What it does not understand is
// an [*Error], never a guess.
//
// [Scanner.Python] judges a record as zodbpickle's C code does, with which ZODB
// loads it. The tests compare the two on mutated records: none that Python loads is
// refused, and of those that it refuses only what depends on the classes,
// functions and codecs of the application is let through.
package pickle

import "fmt"

// Error says why bytes are no pickle that this package understands.
type Error struct {
	Offset  int // in the bytes given
	Problem string
}

func (e *Error) Error() string { return fmt.Sprintf("pickle: offset %d: %s", e.Offset, e.Problem) }

func errorAt(off int, format string, args ...any) error {
	return &Error{off, fmt.Sprintf(format, args...)}
}
