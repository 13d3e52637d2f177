package store

import (
	"errors"
	"fmt"
	"time"
)

// The errors of stores. They come wrapped, with the key.
var (
	// ErrExists reports that the key to be created exists. What is stored may be
	// the caller's own earlier try: its bytes tell.
	ErrExists = errors.New("exists already")
	// ErrNotFound reports that there is no such object.
	ErrNotFound = errors.New("not found")
	// ErrDenied reports that the credentials do not allow the call.
	ErrDenied = errors.New("permission denied")
	// ErrKey reports a key that no repository has.
	ErrKey = errors.New("invalid key")
	// ErrChecksum reports that the bytes to be stored do not have the hash that
	// the caller gave. Nothing was stored.
	ErrChecksum = errors.New("differs from its SHA-256")
	// ErrChanged reports an object that was replaced while its body was read.
	ErrChanged = errors.New("changed while it was read")
	// ErrLied reports an answer that cannot be true, such as another range than
	// the one asked for. The store must not be trusted; repeating is useless.
	ErrLied = errors.New("wrong answer of the store")
)

// TemporaryError reports a call that may succeed if it is repeated. A Put or
// Delete that ends so may have had its effect.
type TemporaryError struct {
	Err error
	// SlowDown is set if the store asks for fewer requests.
	SlowDown bool
	// After is the pause that the store asks for; 0: it says nothing.
	After time.Duration
}

func (e *TemporaryError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *TemporaryError) Unwrap() error { return e.Err }

// Temporary reports whether repeating the call that ended with err may help.
func Temporary(err error) bool {
	_, ok := errors.AsType[*TemporaryError](err)
	return ok
}

// LockedError reports an object that cannot be deleted yet.
type LockedError struct {
	Key     string
	Version string
	Until   time.Time // zero: the store does not say
	Err     error     // the answer of the store, if any
}

func (e *LockedError) Error() string {
	s := e.Key + " is locked"
	if e.Version != "" {
		s = fmt.Sprintf("version %s of %s is locked", e.Version, e.Key)
	}
	if !e.Until.IsZero() {
		s += " until " + e.Until.UTC().Format(time.RFC3339)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the answer of the store.
func (e *LockedError) Unwrap() error { return e.Err }

// KeyError is the error of one of several keys.
type KeyError struct {
	Op      string
	Key     string
	Version string // "" if the call names none
	Err     error
}

func (e *KeyError) Error() string {
	if e.Version != "" {
		return fmt.Sprintf("%s %s version %s: %v", e.Op, e.Key, e.Version, e.Err)
	}
	return fmt.Sprintf("%s %s: %v", e.Op, e.Key, e.Err)
}

// Unwrap returns the cause.
func (e *KeyError) Unwrap() error { return e.Err }
