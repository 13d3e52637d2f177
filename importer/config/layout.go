package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/importer/state"
)

// Extent is what the place of a source among the others depends on.
type Extent struct {
	Next tid.OID // the first number above all of its objects
	Last tid.TID // its last transaction
}

// greatest says what the greatest object id is.
func (e Extent) greatest() string {
	if e.Next == 0 {
		return "there is none"
	}
	return fmt.Sprintf("the greatest is %d", e.Next-1)
}

// ErrEmpty reports a source without transactions.
var ErrEmpty = errors.New("can not import empty storage")

// Layout gives each source a range of object ids: the root keeps its numbers, and each
// mounted database follows what is before it, depth-first, in the order of the mount points.
// extents are those of all sources, by section.
func Layout(imp Import, extents map[string]Extent) (state.State, error) {
	l := layout{imp: imp, extents: extents, sources: map[string]*Source{}, state: state.State{}}
	for i := range imp.Sources {
		l.sources[imp.Sources[i].Section] = &imp.Sources[i]
	}
	root := imp.Root()
	if root == nil {
		return nil, imp.errorf("no source is the root")
	}
	if _, err := l.place(root, 0); err != nil {
		return nil, err
	}
	for _, src := range imp.Sources {
		if _, ok := l.state[src.Section]; !ok {
			return nil, imp.errorf("[%s] can not be reached from the root", src.Section)
		}
	}
	return l.state, nil
}

func (i *Import) errorf(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if i.Path == "" {
		return err
	}
	return fmt.Errorf("%s: %w", i.Path, err)
}

type layout struct {
	imp     Import
	extents map[string]Extent
	sources map[string]*Source
	state   state.State
}

// place gives a source, and all below it that have none yet, their ranges from shift
// on. It returns what is above them.
func (l *layout) place(src *Source, shift tid.OID) (tid.OID, error) {
	e, ok := l.extents[src.Section]
	switch {
	case !ok:
		return 0, l.imp.errorf("[%s]: its size is not known", src.Section)
	case e.Last == tid.Zero:
		return 0, l.imp.errorf("[%s]: %w: %s", src.Section, ErrEmpty, src.Storage)
	case e.Last > tid.Max:
		return 0, l.imp.errorf("[%s]: the last transaction %v is beyond what a database can hold, %v", src.Section, e.Last, tid.Max)
	case e.Next > tid.MaxOID+1-shift:
		return 0, l.imp.errorf("[%s]: its object ids, %d from %d on, would be beyond %v", src.Section, uint64(e.Next), uint64(shift), tid.MaxOID)
	case src.OID != 0 && src.OID >= e.Next:
		return 0, l.imp.errorf("[%s]: oid %d, which its mount point leads to, is no object: %s", src.Section, src.OID, e.greatest())
	}
	s := state.Source{OID: src.OID, LTID: e.Last, Mapping: map[tid.OID]tid.OID{}, Shift: shift, Next: e.Next}
	l.state[src.Section] = s
	shift += e.Next
	for _, m := range src.Mounts {
		if m.OID >= e.Next {
			return 0, l.imp.errorf("[%s]: mount point %d of [%s] is no object: %s", src.Section, m.OID, m.Section, e.greatest())
		}
		if placed, ok := l.state[m.Section]; ok {
			s.Mapping[m.OID] = placed.OID + placed.Shift
			continue
		}
		mounted, ok := l.sources[m.Section]
		if !ok {
			return 0, l.imp.errorf("[%s]: mount point %d is of [%s], which is no source", src.Section, m.OID, m.Section)
		}
		s.Mapping[m.OID] = mounted.OID + shift
		var err error
		if shift, err = l.place(mounted, shift); err != nil {
			return 0, err
		}
	}
	return shift, nil
}

// Check compares an import with the state that was made when it began. A source that is
// not in both is an error: its objects have no place, or the place has no objects. warnings are
// sentences about what the file says now and the import, which can not change, does not.
func Check(imp Import, s state.State) (warnings []string, err error) {
	sources := map[string]*Source{}
	for i := range imp.Sources {
		src := &imp.Sources[i]
		sources[src.Section] = src
		if _, ok := s[src.Section]; !ok {
			return nil, imp.errorf("[%s] was no source when the import began, and can not become one any more: remove it, or begin again with an empty database", src.Section)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if sources[name] == nil {
			return nil, imp.errorf("[%s] was a source when the import began, and is needed until its end", name)
		}
	}
	for _, src := range imp.Sources {
		was := s[src.Section]
		if src.OID != was.OID {
			warnings = append(warnings, imp.errorf("[%s]: oid is %d, but the import began with %d, which stays", src.Section, src.OID, was.OID).Error())
		}
		now := map[tid.OID]tid.OID{}
		for _, m := range src.Mounts {
			now[m.OID] = s[m.Section].OID + s[m.Section].Shift
		}
		if !maps.Equal(now, was.Mapping) {
			warnings = append(warnings, imp.errorf("[%s]: its mount points are not those with which the import began, which stay", src.Section).Error())
		}
	}
	return warnings, nil
}
