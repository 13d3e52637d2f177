package snapshot

import (
	"errors"
	"fmt"
	"strings"
)

// Kinds of errors, for errors.Is.
var (
	// ErrCorrupt reports bytes that are not what a writer wrote.
	ErrCorrupt = errors.New("damaged")
	// ErrVersion reports a format that this version does not know.
	ErrVersion = errors.New("unknown version")
	// ErrUntrusted reports a note without a trusted signature of its role.
	ErrUntrusted = errors.New("no trusted signature")
	// ErrNotFound reports that a segment has no revision that was asked for.
	ErrNotFound = errors.New("not in this segment")
)

// CorruptError reports damage in an object of a repository. It is an [ErrCorrupt].
type CorruptError struct {
	Name   string // key of the object or path of the file
	Offset int64  // in the plaintext of a segment, in the bytes of a note; -1 unknown
	Err    error  // what is wrong
}

func (e *CorruptError) Error() string {
	var b strings.Builder
	b.WriteString(e.Name)
	if e.Offset >= 0 {
		fmt.Fprintf(&b, ": at byte %d", e.Offset)
	}
	fmt.Fprintf(&b, ": %v (the object is damaged or was replaced: \"neobackup verify\" lists all damage, \"neobackup repair\" mends it)", e.Err)
	return b.String()
}

// Unwrap returns what is wrong.
func (e *CorruptError) Unwrap() error { return e.Err }

// Is reports whether target is ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

func corrupt(name string, off int64, format string, args ...any) error {
	return &CorruptError{Name: name, Offset: off, Err: fmt.Errorf(format, args...)}
}

// VersionError reports a format with a greater version. It is an [ErrVersion].
type VersionError struct {
	Name       string // key of the object or path of the file
	What       string // kind of note, or "segment"
	Got, Known int64
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s: version %d of the format (%s), this program knows version %d: use a newer neobackup, which wrote it",
		e.Name, e.Got, e.What, e.Known)
}

// Is reports whether target is ErrVersion.
func (e *VersionError) Is(target error) bool { return target == ErrVersion }

// UntrustedError reports a note without a trusted signature of its role. It is an
// [ErrUntrusted].
type UntrustedError struct {
	Name  string // key of the object or path of the file
	Role  Role
	Found []string // names and hashes of the keys that signed it
}

func (e *UntrustedError) Error() string {
	found := "nothing"
	if len(e.Found) > 0 {
		found = strings.Join(e.Found, ", ")
	}
	return fmt.Sprintf("%s: no trusted signature of the %s (signed by %s): compare the verify_keys of the configuration with the keys that \"init\" printed; the note may be forged",
		e.Name, e.Role, found)
}

// Is reports whether target is ErrUntrusted.
func (e *UntrustedError) Is(target error) bool { return target == ErrUntrusted }
