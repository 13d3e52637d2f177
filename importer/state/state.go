// Package state is the row zodb of table config: which sources an import has, and
// what it makes of their object ids. It is written once, before the first transaction is
// copied; with another one references would lead to wrong objects.
//
// # Invariant
//
// Each source has a range of the merged object ids to itself, [Source.Shift] to
// Shift+Next. What [Parse] returns has all five fields of every source. A row that lacks one, or
// has ranges that overlap, is refused and never completed by a guess.
package state

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/neozodb/neo/cluster/tid"
)

// Source is what an import never changes about one of its sources.
type Source struct {
	OID     tid.OID             `json:"oid"`       // that mount points of the parent lead to, in its own numbers
	LTID    tid.TID             `json:"ltid"`      // last transaction to import
	Mapping map[tid.OID]tid.OID `json:"mapping"`   // mount points: own number to merged number of what is mounted there
	Shift   tid.OID             `json:"shift_oid"` // added to its object ids
	Next    tid.OID             `json:"next_oid"`  // the first number above all of its objects, own numbers
}

// Restoring is how the row begins while a backup is restored into the database, which
// is no import: what follows is for the restore alone. The database is not to be used
// until the row is gone.
const Restoring = "neobackup "

// State is all sources by the names of their sections.
type State map[string]Source

// Parse reads a state: JSON as [State.String] writes it, or a pickle of the Python
// implementation, as it is from Python 2, or as the text of a bytes literal from Python 3.
func Parse(row string) (State, error) {
	s, err := parse(row)
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return nil, fmt.Errorf("state of the import: %w", err)
	}
	return s, nil
}

func parse(row string) (State, error) {
	switch {
	case strings.HasPrefix(strings.TrimSpace(row), "{"):
		return parseJSON(row)
	case strings.HasPrefix(row, "b'") || strings.HasPrefix(row, `b"`):
		b, err := pythonBytes(row)
		if err != nil {
			return nil, err
		}
		return parsePickle(b)
	}
	return parsePickle([]byte(row))
}

// parseJSON refuses fields that it does not know: they would mean something.
func parseJSON(row string) (State, error) {
	var sources map[string]struct {
		OID     *tid.OID            `json:"oid"`
		LTID    *tid.TID            `json:"ltid"`
		Mapping map[tid.OID]tid.OID `json:"mapping"`
		Shift   *tid.OID            `json:"shift_oid"`
		Next    *tid.OID            `json:"next_oid"`
	}
	d := json.NewDecoder(strings.NewReader(row))
	d.DisallowUnknownFields()
	if err := d.Decode(&sources); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows its end")
	}
	s := State{}
	for name, f := range sources {
		if f.OID == nil || f.LTID == nil || f.Mapping == nil || f.Shift == nil || f.Next == nil {
			return nil, fmt.Errorf("source %q has not all of oid, ltid, mapping, shift_oid and next_oid", name)
		}
		s[name] = Source{*f.OID, *f.LTID, f.Mapping, *f.Shift, *f.Next}
	}
	return s, nil
}

// check returns what is impossible about a state.
func (s State) check() error {
	if len(s) == 0 {
		return errors.New("it has no source")
	}
	names := slices.SortedFunc(maps.Keys(s), func(a, b string) int {
		return cmp.Or(cmp.Compare(s[a].Shift, s[b].Shift), cmp.Compare(s[a].Next, s[b].Next), strings.Compare(a, b))
	})
	var end tid.OID
	for i, name := range names {
		f := s[name]
		switch {
		case !utf8.ValidString(name):
			return fmt.Errorf("the name of source %q is not UTF-8", name)
		case f.LTID == tid.Zero || f.LTID > tid.Max:
			return fmt.Errorf("source %q: %v can not be its last transaction", name, f.LTID)
		case f.OID > tid.MaxOID || f.Shift > tid.MaxOID || f.Next > tid.MaxOID+1-f.Shift:
			return fmt.Errorf("source %q: object ids beyond %v", name, tid.MaxOID)
		case f.Shift < end:
			return fmt.Errorf("sources %q and %q overlap at object %v", names[i-1], name, f.Shift)
		}
		end = f.Shift + f.Next
		for oid, to := range f.Mapping {
			if oid > tid.MaxOID || to > tid.MaxOID {
				return fmt.Errorf("source %q: mount point %v, which leads to %v, is beyond %v", name, oid, to, tid.MaxOID)
			}
		}
	}
	return nil
}

// String returns the state as JSON. Equal states give equal text.
func (s State) String() string {
	full := make(map[string]Source, len(s))
	for name, f := range s {
		if f.Mapping == nil {
			f.Mapping = map[tid.OID]tid.OID{}
		}
		full[name] = f
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(full); err != nil {
		panic(err) // maps of numbers by text and numbers
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// End returns the greatest of the last transactions of the sources, Zero if there is
// no source.
func (s State) End() tid.TID {
	var end tid.TID
	for _, f := range s {
		end = max(end, f.LTID)
	}
	return end
}
