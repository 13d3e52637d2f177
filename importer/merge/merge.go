// Package merge makes one database of several that are mounted into each other: their
// object ids are shifted so that none has those of another, and the references in their
// records lead to the new ids, through mount points too.
//
// # Invariant
//
// A merged database never changes. Each of its sources may grow: what is later than
// [Source.Last] is not there, in no answer. A reference leads to the object that it led to in
// the sources, or else to none: never to another object. What cannot be rewritten so is a
// [*RecordError], and every other record can still be read.
package merge

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Source is one of the databases.
type Source struct {
	Name     string       // for errors
	Database txn.Database // its own numbers; it may grow
	// DatabaseName is what references from other databases call it. Default: Name.
	DatabaseName string
	Last         tid.TID             // later transactions are not there
	Shift        tid.OID             // added to its object ids
	Next         tid.OID             // the first number above all of its objects, own numbers
	Mapping      map[tid.OID]tid.OID // mount points: own number to merged number of what is mounted there

	// Python3 tells that applications read the source by Python 3, as they do a Data.fs
	// that begins with FS30. See Python3 of the Rewriter of package pickle.
	Python3 bool
}

// end is the first merged number above all objects of the source.
func (s *Source) end() tid.OID { return s.Shift + s.Next }

// Database is the merged database, a [txn.Database]. It never changes.
type Database struct {
	sources []Source       // by Shift, which are those of disjoint ranges
	named   map[string]int // DatabaseName -> place in sources
	last    tid.TID
	next    tid.OID
	plain   bool // one source, whose records are given as they are
	pool    sync.Pool
}

var _ txn.Database = (*Database)(nil)

// danglingBase is the first of the numbers that references to no object get. No object
// ever has one of them: a cluster gives new objects the numbers after the greatest that
// it has.
const danglingBase tid.OID = 0x7f00_0000_0000_0000

// New returns the database that the sources make together. It reads nothing of them. A
// single source that is not shifted and has no mount points is given as it is, byte for
// byte.
func New(sources []Source) (*Database, error) {
	if len(sources) == 0 {
		return nil, errors.New("merge: no source is given")
	}
	d := &Database{sources: slices.Clone(sources), named: make(map[string]int)}
	slices.SortStableFunc(d.sources, func(a, b Source) int {
		return cmp.Or(cmp.Compare(a.Shift, b.Shift), cmp.Compare(a.Next, b.Next))
	})
	d.plain = len(sources) == 1 && sources[0].Shift == 0 && len(sources[0].Mapping) == 0
	limit := danglingBase
	if d.plain {
		limit = tid.InvalidOID
	}
	names := make(map[string]bool)
	for i := range d.sources {
		s := &d.sources[i]
		s.DatabaseName = cmp.Or(s.DatabaseName, s.Name)
		s.Mapping = maps.Clone(s.Mapping)
		switch {
		case s.Database == nil:
			return nil, fmt.Errorf("source %s: it has no database", s.Name)
		case names[s.Name]:
			return nil, fmt.Errorf("source %s: another one has the same name", s.Name)
		case s.Last > tid.Max:
			return nil, fmt.Errorf("source %s: %v is no id of a last transaction", s.Name, s.Last)
		case s.Next > limit || s.Shift > limit-s.Next:
			return nil, fmt.Errorf("source %s: its object ids, up to %v and shifted by %v, would pass %v", s.Name, s.Next, s.Shift, limit)
		}
		if i > 0 {
			if before := &d.sources[i-1]; before.end() > s.Shift {
				return nil, fmt.Errorf("sources %s and %s have object ids in common: from %v to %v, and from %v to %v",
					before.Name, s.Name, before.Shift, before.end(), s.Shift, s.end())
			}
		}
		if other, ok := d.named[s.DatabaseName]; ok {
			return nil, fmt.Errorf("sources %s and %s: both are called %q by other databases, so it is not known which one a reference means",
				d.sources[other].Name, s.Name, s.DatabaseName)
		}
		names[s.Name] = true
		d.named[s.DatabaseName] = i
		d.last = max(d.last, s.Last)
		d.next = max(d.next, s.end())
	}
	for i := range d.sources {
		s := &d.sources[i]
		for _, mount := range slices.Sorted(maps.Keys(s.Mapping)) {
			if mount >= s.Next {
				return nil, fmt.Errorf("source %s: mount point %v is none of its objects, which are below %v", s.Name, mount, s.Next)
			}
			if to := s.Mapping[mount]; d.owner(to) == nil {
				return nil, fmt.Errorf("source %s: mount point %v leads to %v, which is an object of no source", s.Name, mount, to)
			}
		}
	}
	d.pool.New = func() any { return &rewriter{d: d} }
	return d, nil
}

// End returns the greatest Last of all sources.
func (d *Database) End() tid.TID { return d.last }

// Next returns the first object id above those of all objects.
func (d *Database) Next() tid.OID { return d.next }

// owner returns the source that an object is of, nil if there is none.
func (d *Database) owner(oid tid.OID) *Source {
	i := sort.Search(len(d.sources), func(i int) bool { return d.sources[i].Shift > oid }) - 1
	if i < 0 || oid >= d.sources[i].end() {
		return nil
	}
	return &d.sources[i]
}

// about names the source of an error, unless that does so itself.
func (s *Source) about(err error) error {
	if name := "source " + s.Name + ": "; !strings.HasPrefix(err.Error(), name) {
		return fmt.Errorf("%s%w", name, err)
	}
	return err
}

// aboutObject names the source and the object of an error, by its merged number and its own.
func (s *Source) aboutObject(oid tid.OID, err error) error {
	if s.Shift == 0 {
		return fmt.Errorf("source %s: object %v: %w", s.Name, oid, err)
	}
	return fmt.Errorf("source %s: object %v, there %v: %w", s.Name, oid, oid-s.Shift, err)
}

// beyond is the error of an object that was not there when Next was found. It has no
// place: its number may be that of an object of another source, or of one that clients
// create.
func (s *Source) beyond(own tid.OID, in string) error {
	return fmt.Errorf("source %s: object %v %s: when the import began, all of its objects were below %v: check the source, and begin the import again",
		s.Name, own, in, s.Next)
}

// A RecordError is a record whose references cannot be rewritten. All others can be
// read.
type RecordError struct {
	Source string  // its name
	OID    tid.OID // the number in the source
	Merged tid.OID // the number in the merged database
	TID    tid.TID // of the transaction
	Err    error
}

func (e *RecordError) Error() string {
	if e.OID == e.Merged {
		return fmt.Sprintf("source %s: object %v in transaction %v: rewriting its references: %v", e.Source, e.OID, e.TID, e.Err)
	}
	return fmt.Sprintf("source %s: object %v, there %v, in transaction %v: rewriting its references: %v", e.Source, e.Merged, e.OID, e.TID, e.Err)
}

// Unwrap returns why the references cannot be rewritten.
func (e *RecordError) Unwrap() error { return e.Err }
