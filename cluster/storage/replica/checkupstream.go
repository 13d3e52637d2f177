package replica

import (
	"log/slog"
	"slices"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// Against the upstream cluster of a backup: packs may have removed on one side what the other side
// still has. What they explain is no difference; what nothing explains is one.

// upstream returns the cluster that is the reference, "" if there is none.
func (k *comparison) upstream() string {
	if k.source == nil {
		return ""
	}
	return k.source.of
}

// removed reports whether a pack may have removed a record of a member that others have:
// it has executed an order for that time which one of these has not, or the record is a
// deletion. A replica may also have fetched after another storage of the upstream cluster
// had executed an order.
func (c *checker) removed(m *member, i backend.Key) bool {
	k := c.current
	if k.deletes(i) {
		return true
	}
	p := c.packedHere(m)
	if p < i.TID {
		return false
	}
	for _, o := range k.members {
		if _, has := o.items[i]; has && k.packed[o].V < p {
			return true
		}
	}
	return false
}

// deletes reports whether a record is a deletion. One of an object that has nothing before it
// means nothing: it is kept as long as another replica may need it.
func (k *comparison) deletes(i backend.Key) bool {
	for _, o := range k.members {
		if o.items[i].Absent {
			return true
		}
	}
	return false
}

// packedHere returns the last order that may have removed records of a member.
func (c *checker) packedHere(m *member) tid.TID {
	p := c.current.packed[m].V
	if m.of == "" {
		p = max(p, c.m.lastPack)
	}
	return p
}

// doubt is a record that a pack may have removed, upstream or here.
type doubt struct {
	k     *comparison
	round int
	item  backend.Key
	lacks *member
	until tid.TID // order of the pack; of a deletion Zero
	lack  *lack   // judged at the end
}

// judgeAlone compares what the replicas have of a record that the upstream cluster may
// have packed: only what was superseded, or deletes the object, can be gone. Those that
// have fetched after the pack lack it as well.
func (c *checker) judgeAlone(i backend.Key) {
	k := c.current
	k.excused = true
	switch x, has := k.members[0].items[i]; {
	case k.deletes(i):
		k.doubts = append(k.doubts, doubt{k, k.round, i, k.source, tid.Zero, nil})
		return
	case has && !x.Damaged && k.members[0].self:
		k.doubts = append(k.doubts, doubt{k, k.round, i, k.source, k.packed[k.source].V, nil})
		return
	}
	c.judgeReplicas(i)
}

func (c *checker) judgeReplicas(i backend.Key) {
	k := c.current
	c.judgeAmong(i, slices.DeleteFunc(slices.Clone(k.members), func(m *member) bool {
		_, has := m.items[i]
		return m == k.source || !has
	}), nil)
}

// settleDoubts examines the next record that a pack may have removed, or goes on.
func (c *checker) settleDoubts() {
	k := c.current
	if len(k.doubts) == 0 {
		advance := k.advance
		k.advance = nil
		advance()
		return
	}
	d := k.doubts[0]
	k.doubts = k.doubts[1:]
	c.m.do(Effect{Op: Examine, Record: d.item, Until: d.until, Tag: d})
}

// followed reports whether this node is known to have everything up to a TID of what is
// compared: what was fetched after a pack upstream may still lack deletions.
func (c *checker) followed(upTo tid.TID) bool {
	p := c.m.cells[c.current.order.Partition]
	return p != nil && p.whole > upTo
}

// examined takes what is here of an object up to a pack.
func (c *checker) examined(d doubt, r Record) {
	k := c.current
	switch {
	case k != d.k || k.round != d.round:
		return
	case !slices.Contains(k.members, d.lacks): // lost
	case d.lack != nil:
		c.judgeBegun(d, r)
	case d.until == tid.Zero:
		c.judgeDeletion(d, r.Before != tid.Zero)
	case !c.followed(d.until): // what has superseded it may not be here yet
		if d.lacks == k.source {
			c.judgeReplicas(d.item)
		}
	case d.lacks != k.source:
		// A pack removes what something follows.
		if r.Last != tid.Zero && r.Last < d.item.TID {
			c.differs(d.item, check.Missing, d.lacks)
		}
	case r.Last == d.item.TID: // it was current, and no pack removes that
		c.extra(d.item)
	default:
		c.judgeReplicas(d.item)
	}
	c.settleDoubts()
}

// extra notes that the upstream cluster does not have an item.
func (c *checker) extra(i backend.Key) {
	for _, m := range c.current.members {
		x, has := m.items[i]
		switch {
		case has && x.Damaged:
			c.differs(i, check.Damaged, m)
		case has:
			c.differs(i, check.Extra, m)
		}
	}
}

// judgeDeletion decides about a deletion that a member lacks. before: the object has
// earlier revisions here.
func (c *checker) judgeDeletion(d doubt, before bool) {
	k := c.current
	switch packed := c.packedHere(d.lacks) >= d.item.TID; {
	case !before: // else it is a difference that something is before it
	case d.lacks.self:
		c.differs(d.item, check.Missing, d.lacks)
	case packed: // with what it deletes
	case d.lacks == k.source:
		c.extra(d.item)
	default:
		c.differs(d.item, check.Missing, d.lacks)
	}
}

// restart compares a partition with the upstream cluster again, if a member has packed
// meanwhile and something differs: what the pack has removed may be all of it.
func (c *checker) restart() bool {
	k := c.current
	same := func(m *member) bool { return m.pack == k.packed[m] }
	if k.upstream() == "" || k.total+k.lacking.unknown() == 0 || k.again == maxAgain || !slices.ContainsFunc(k.members, func(m *member) bool { return !same(m) }) {
		return false
	}
	k.again++
	k.rows, k.total, k.listed, k.found, k.faulty, k.excused, k.notes, k.lacking = 0, 0, 0, nil, false, false, nil, lackings{}
	clear(k.nodes)
	clear(k.packed)
	k.ending, k.records, k.min = false, false, backend.Key{TID: k.order.Min}
	c.m.log(slog.LevelDebug, "packed meanwhile: compared again", "partition", k.order.Partition)
	for _, m := range k.members {
		m.done = false
	}
	c.ask()
	return true
}
