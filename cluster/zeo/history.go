package zeo

import (
	"slices"

	"github.com/neozodb/neo/cluster/tid"
)

// history remembers what the newest transactions changed. Its owner holds the
// lock of the sequencer.
type history struct {
	limit   int      // transactions
	weight  int      // objects in all of them
	base    tid.TID  // everything after base is in changes
	changes []Change // oldest first; OIDs sorted
	head    int      // changes before it are gone
}

// maxWeight bounds the object ids kept, whatever the number of transactions.
const maxWeight = 4 << 20

// reset forgets all and starts after t.
func (h *history) reset(t tid.TID) {
	h.base, h.changes, h.head, h.weight = t, nil, 0, 0
}

// add appends the newest transaction and returns its objects, sorted, each once.
// It takes over the slice.
func (h *history) add(t tid.TID, oids []tid.OID) []tid.OID {
	slices.Sort(oids)
	oids = slices.Compact(oids)
	h.changes = append(h.changes, Change{t, oids})
	h.weight += len(oids)
	for len(h.changes)-h.head > h.limit || h.weight > maxWeight {
		c := &h.changes[h.head]
		h.base = c.TID
		h.weight -= len(c.OIDs)
		*c = Change{}
		h.head++
	}
	if h.head > 64 && h.head > len(h.changes)/2 {
		n := copy(h.changes, h.changes[h.head:])
		clear(h.changes[n:])
		h.changes, h.head = h.changes[:n], 0
	}
	return oids
}

// extend adds what is known of transactions up to base, of all of those after before,
// unless the history does not begin at base any more. It takes over known.
func (h *history) extend(base, before tid.TID, known []Change) {
	if h.base != base || before >= base {
		return
	}
	room := max(0, h.limit-(len(h.changes)-h.head))
	end := 0
	for end < len(known) && known[end].TID <= base {
		end++
	}
	begin := end
	for ; begin > 0 && room > 0; room-- {
		c := &known[begin-1]
		slices.Sort(c.OIDs)
		c.OIDs = slices.Compact(c.OIDs)
		if h.weight+len(c.OIDs) > maxWeight {
			break
		}
		h.weight += len(c.OIDs)
		begin--
	}
	if begin > 0 {
		before = known[begin-1].TID
	}
	h.base, h.changes, h.head = before, slices.Concat(known[begin:end], h.changes[h.head:]), 0
}

// after returns the changes after t, or false if t is too long ago.
func (h *history) after(t tid.TID) ([]Change, bool) {
	if t < h.base {
		return nil, false
	}
	live := h.changes[h.head:]
	i, _ := slices.BinarySearchFunc(live, t, func(c Change, t tid.TID) int {
		if c.TID <= t {
			return -1
		}
		return 1
	})
	return live[i:], true
}

// nextChange returns the first transaction after t that changed oid, Zero if
// there is none, or false if t is too long ago.
func (h *history) nextChange(oid tid.OID, t tid.TID) (tid.TID, bool) {
	changes, ok := h.after(t)
	for i := range changes {
		if _, found := slices.BinarySearch(changes[i].OIDs, oid); found {
			return changes[i].TID, ok
		}
	}
	return tid.Zero, ok
}

// union returns the objects of all changes, each once.
func union(changes []Change) []tid.OID {
	n := 0
	for i := range changes {
		n += len(changes[i].OIDs)
	}
	oids := make([]tid.OID, 0, n)
	for i := range changes {
		oids = append(oids, changes[i].OIDs...)
	}
	slices.Sort(oids)
	return slices.Compact(oids)
}
