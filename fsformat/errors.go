package fsformat

import (
	"errors"
	"fmt"
	"strings"

	"github.com/neozodb/neo/cluster/tid"
)

// ErrOrder is the kind of a [CorruptError] about transactions whose ids do not
// increase, as after the clock of a server was set back. All of them may be intact:
// Options.Renumber reads them.
var ErrOrder = errors.New("transaction ids out of order")

// CorruptError reports bytes of a Data.fs that no writer leaves there. Retrying
// is useless; [Salvage] recovers what is intact.
type CorruptError struct {
	File    string
	Offset  int64   // of the record at fault
	TID     tid.TID // of the transaction; 0 if not known
	OID     tid.OID // of the object, if HasOID
	HasOID  bool
	Problem string
	Kind    error // [ErrOrder], or nil
}

// Unwrap returns the kind.
func (e *CorruptError) Unwrap() error { return e.Kind }

func (e *CorruptError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: offset %d: ", e.File, e.Offset)
	e.describe(&b)
	return b.String()
}

func (e *CorruptError) describe(b *strings.Builder) {
	if e.TID != 0 {
		fmt.Fprintf(b, "transaction %v: ", e.TID)
	}
	if e.HasOID {
		fmt.Fprintf(b, "object %v: ", e.OID)
	}
	b.WriteString(e.Problem)
}

func (r *Reader) corrupt(offset int64, t tid.TID, format string, args ...any) *CorruptError {
	return &CorruptError{File: r.name, Offset: offset, TID: t, Problem: fmt.Sprintf(format, args...)}
}

func (r *Reader) outOfOrder(offset int64, t tid.TID, format string, args ...any) *CorruptError {
	e := r.corrupt(offset, t, format, args...)
	e.Kind = ErrOrder
	return e
}

func (r *Reader) corruptRecord(h *RecordHeader, t tid.TID, format string, args ...any) *CorruptError {
	return &CorruptError{
		File: r.name, Offset: h.Pos, TID: t, OID: h.OID, HasOID: true,
		Problem: fmt.Sprintf(format, args...),
	}
}

// absentError reports what is not in the file. Its text is the same for all kinds.
type absentError struct {
	what string
	kind error // [txn.ErrNotFound] or [txn.ErrNoSuchObject]
}

func (e *absentError) Error() string { return e.what + ": not found" }

func (e *absentError) Unwrap() error { return e.kind }

func (r *Reader) absent(kind error, format string, args ...any) error {
	return &absentError{r.name + ": " + fmt.Sprintf(format, args...), kind}
}

// MagicError reports a file that is no Data.fs.
type MagicError struct {
	File string
	Got  []byte // the first bytes, at most 4
}

func (e *MagicError) Error() string {
	return fmt.Sprintf("%s: not a Data.fs: it begins with %q, want \"FS30\" or \"FS21\"", e.File, e.Got)
}
