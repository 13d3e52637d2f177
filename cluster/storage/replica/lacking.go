package replica

import (
	"fmt"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// A record that a member of a comparison with an upstream cluster lacks may have been
// removed by a pack that has begun meanwhile. The member says which order it has executed
// to the end, not which one it is executing. So what other members lack is judged at the end,
// when the master has told of every order that any storage can have begun. This node knows an
// order before it begins it.

// lackings are the records that other members were found to lack.
type lackings struct {
	of      map[*member]*lacking // not judged yet
	asking  bool                 // the master, for orders
	unsure  int                  // differences, or removed by a pack: that is not known
	excused bool                 // some were removed by packs, or may have been
}

// lacking is what one member lacks, in ascending order of the transactions.
type lacking struct {
	list []lack               // the first ones, at most check.MaxFound
	rest map[proto.NodeID]int // how many more there are, by the node of the difference
	from tid.TID              // the first transaction of these
}

// lack is a difference because a member lacks a record.
type lack struct {
	item backend.Key
	diff check.Difference
	in   *member // that differs
}

func (l *lacking) total() int {
	n := len(l.list)
	for _, more := range l.rest {
		n += more
	}
	return n
}

// add notes a difference because a member lacks a record.
func (k *lackings) add(m *member, x lack) {
	if k.of == nil {
		k.of = map[*member]*lacking{}
	}
	l := k.of[m]
	if l == nil {
		l = &lacking{rest: map[proto.NodeID]int{}}
		k.of[m] = l
	}
	if len(l.list) < check.MaxFound {
		l.list = append(l.list, x)
		return
	}
	if len(l.rest) == 0 {
		l.from = x.item.TID
	}
	l.rest[x.diff.Node]++
}

// unknown returns how many differences could not be told from the work of a pack.
func (k *lackings) unknown() int {
	n := k.unsure
	for _, l := range k.of {
		n += l.total()
	}
	return n
}

// packsAsked is the tag of the question for the orders that members may have begun.
type packsAsked struct {
	k    *comparison
	last tid.TID
	list []proto.PackOrder
}

// judgeLacking asks the master for what members may be packing, if that matters. It
// reports whether it does: the comparison ends when that is known.
func (c *checker) judgeLacking() bool {
	k := c.current
	if len(k.lacking.of) == 0 {
		return false
	}
	if !k.lacking.asking {
		after := tid.Invalid
		for m := range k.lacking.of {
			after = min(after, k.packed[m].V)
		}
		k.lacking.asking = true
		c.askPacks(packsAsked{k: k, last: after})
	}
	return true
}

func (c *checker) askPacks(asked packsAsked) {
	c.m.do(Effect{Op: AskMaster, Packet: &proto.AskPackOrders{Min: asked.last + 1}, Tag: asked})
}

// packsKnown takes an order that members may have begun, or that there is none.
func (c *checker) packsKnown(asked packsAsked, p proto.Packet) {
	k := c.current
	if k != asked.k {
		return
	}
	a, ok := p.(*proto.AnswerPackOrders)
	switch {
	case !ok || k.order.losses != c.losses: // the master does not know
		c.finish()
		return
	case len(a.Orders) > 0 && a.Orders[0].ID > asked.last:
		o := a.Orders[0]
		asked.last = o.ID
		if o.Partial {
			o.OIDs = c.m.ownOIDs(k.order.Partition, o.OIDs)
		}
		asked.list = append(asked.list, o)
		c.askPacks(asked)
		return
	}
	for _, m := range k.members {
		if l := k.lacking.of[m]; l != nil {
			delete(k.lacking.of, m)
			c.judgeLack(m, l, asked.list)
		}
	}
	k.advance = c.finish
	c.settleDoubts()
}

// judgeLack decides about what a member lacks, which may have begun to execute orders
// since it said which ones it has executed.
func (c *checker) judgeLack(m *member, l *lacking, orders []proto.PackOrder) {
	k := c.current
	var begun missedPacks
	last := tid.Zero
	for _, o := range orders {
		if o.ID > k.packed[m].V {
			begun.orders = append(begun.orders, o)
			last = max(last, o.Time)
		}
	}
	for _, x := range l.list {
		switch until, ok := begun.reach(x.item.OID, x.item.TID, true); {
		case !ok:
			c.count(x.diff, x.in)
		case m == k.source:
			k.doubts = append(k.doubts, doubt{k, k.round, x.item, m, until, &x})
		default:
			k.lacking.excused = true
		}
	}
	for id, n := range l.rest {
		if last >= l.from {
			k.lacking.unsure += n
			continue
		}
		k.total += n
		k.nodes[id] = true
	}
}

// judgeBegun decides about a record that the upstream cluster lacks, and may have
// packed: what was current here no pack removes, unless it deletes the object.
func (c *checker) judgeBegun(d doubt, r Record) {
	if c.followed(d.until) && r.Last == d.item.TID && !r.Deletion {
		c.count(d.lack.diff, d.lack.in)
		return
	}
	c.current.lacking.excused = true
}

// finish ends a comparison in which all was compared.
func (c *checker) finish() {
	c.comparePacks(false)
	c.end(check.Compared)
}

// noteUnknown notes what could not be told from the work of a pack. It reports whether
// there is something.
func (k *comparison) noteUnknown() bool {
	n := k.lacking.unknown()
	if n > 0 {
		k.notes = append(k.notes, fmt.Sprintf("%d differences are not told: a pack may have made them meanwhile", n))
	}
	return n > 0
}
