package verify

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// Kind is what is wrong.
type Kind string

// The kinds of findings.
const (
	Missing     Kind = "missing"     // an object that is needed is not there
	Damaged     Kind = "damaged"     // an object is not what was written
	Untrusted   Kind = "untrusted"   // no trusted key of the role signed a note
	Newer       Kind = "newer"       // of a version that this program does not know
	Broken      Kind = "broken"      // a chain of notes does not hold
	Older       Kind = "older"       // what this host has seen before is not there any more
	Overwritten Kind = "overwritten" // another object was stored under a key
	Foreign     Kind = "foreign"     // an object that is none of a repository
	Doomed      Kind = "doomed"      // a needed object may be deleted by the next prune
	Gap         Kind = "gap"         // a loss that an operator accepted
	Different   Kind = "different"   // from the source
)

// MaxOIDs is how many objects a finding lists at most.
const MaxOIDs = 1000

// Finding is something that is wrong.
type Finding struct {
	Kind Kind `json:"kind"`
	// Warning: nothing is lost by it, as far as is known.
	Warning bool   `json:"warning,omitempty"`
	Key     string `json:"key,omitempty"` // of the object
	// After and Upto are the range of the history that is touched; both Zero: not known,
	// or none.
	After tid.TID `json:"after,omitzero"`
	Upto  tid.TID `json:"upto,omitzero"`
	// OIDs are objects that have a revision there which cannot be read, as far as the
	// index of the segment tells. Objects is how many there are.
	OIDs    []tid.OID `json:"oids,omitempty"`
	Objects int64     `json:"objects,omitempty"`
	Text    string    `json:"text"`

	Err error `json:"-"` // the cause, if there is one
}

// String returns a line for an operator.
func (f Finding) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: ", f.Kind)
	if f.Key != "" && !strings.Contains(f.Text, f.Key) {
		fmt.Fprintf(&b, "%s: ", f.Key)
	}
	b.WriteString(f.Text)
	if f.Upto != tid.Zero {
		fmt.Fprintf(&b, " (transactions after %v up to %v)", f.After, f.Upto)
	}
	if f.Objects > 0 {
		fmt.Fprintf(&b, ", %d objects are touched", f.Objects)
	}
	return b.String()
}

// reporter counts findings. It is safe for concurrent use.
type reporter struct {
	mu               sync.Mutex
	report           func(Finding)
	damage, warnings int64
}

func (r *reporter) add(f Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.Text == "" && f.Err != nil {
		f.Text = f.Err.Error()
	}
	if f.Warning {
		r.warnings++
	} else {
		r.damage++
	}
	if r.report != nil {
		r.report(f)
	}
}

// kindOf returns what an error about an object says of it; false if it says nothing, as when
// the store does not answer.
func kindOf(err error) (Kind, bool) {
	switch {
	case errors.Is(err, snapshot.ErrUntrusted):
		return Untrusted, true
	case errors.Is(err, snapshot.ErrVersion):
		return Newer, true
	case errors.Is(err, snapshot.ErrCorrupt):
		return Damaged, true
	case errors.Is(err, store.ErrNotFound), errors.Is(err, backup.ErrIncomplete):
		return Missing, true
	}
	return "", false
}
