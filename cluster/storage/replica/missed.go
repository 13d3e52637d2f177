package replica

import (
	"log/slog"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// A pack removes the deletion of an object together with the object. A cell that
// misses both, because its node was away, never hears of the deletion: what it
// replicates is what follows its own last transaction, and its own execution of the
// order finds a record that nothing supersedes. The same happens to records that are
// fetched before a pack of the source, if the deletion would have been fetched after it.
//
// So a cell is not announced as replicated before it is known, from the master, which
// pack orders may have been executed elsewhere and not here. If there are any, the keys
// of the cell are compared with those of a source from the beginning, and what the
// orders have removed there is deleted here.

// missedPacks are the pack orders that others may have executed on what this cell has.
type missedPacks struct {
	after  proto.Opt[tid.TID] // orders up to this one are taken into account; absent: not known yet
	fresh  bool               // the cell began empty, or is compared from the beginning
	base   tid.TID            // the orders to be compared for are those after this one
	source tid.TID            // greatest order that a source has completed
	orders []proto.PackOrder  // to be compared for
	upTo   tid.TID            // the cell is complete up to here
	asking bool               // for orders
	done   proto.Opt[tid.TID] // to be announced after that
	// In a backup cluster: whether what is to be announced came from upstream, and the
	// last order that may have removed there what is missing here before it.
	upstream bool
	hole     tid.TID
}

// packedThere notes that a source has completed an order. In what is received from
// the beginning, only that counts, except for orders that the cell is being compared for.
func (k *missedPacks) packedThere(id tid.TID, comparing bool) {
	k.source = max(k.source, id)
	if k.fresh && k.after.OK && (!comparing || id < k.base) {
		k.after.V = min(k.after.V, id)
	}
}

// settled reports whether the cell is compared for an order.
func (k *missedPacks) settled(order tid.TID) bool {
	return !k.after.OK || k.after.V >= order && len(k.orders) == 0
}

// pass is what is being done with the answers of a source.
type pass int

const (
	passFetch  pass = iota // what is missing is added, what the source lacks is deleted
	passAsk                // what the source has packed is asked
	passAdd                // only added: afterwards everything is here that the source has or had
	passDelete             // only deleted
)

// packOrders asks the master for orders. The last answer, that there is no other one,
// comes after the master has told this node of every order that any storage can have
// begun before the question.
type packOrders struct {
	waiting []settling
	asking  bool
	known   bool
	after   tid.TID
	list    []proto.PackOrder // approved ones after that
}

// settling is a cell for which the orders are asked.
type settling struct {
	partition int
	cell      *progress
	done      proto.Opt[tid.TID] // what the cell had to announce when the question was sent
}

// ordersAsked is the tag of a question for the order after last.
type ordersAsked struct {
	cells []settling
	last  tid.TID
}

// notePacked takes the last order executed on a cell that begins to be replicated.
func (m *Machine) notePacked(f *fetch, order tid.TID) {
	f.cell.missed.after, f.cell.missed.fresh = proto.Some(order), f.min == tid.Zero
}

// settle is called when a cell has everything up to done, which is announced as soon
// as no pack was missed.
func (m *Machine) settle(partition int, c *progress, done proto.Opt[tid.TID]) {
	k := &c.missed
	if done.OK {
		k.done = done
	}
	switch {
	case len(k.orders) > 0:
		m.todo[partition] = max(m.todo[partition], k.upTo)
	case k.asking:
	case !k.after.OK || m.readable(partition) && !k.done.OK && max(k.source, m.lastPack) <= k.after.V:
		m.announce(partition, c)
	default:
		k.asking = true
		m.packs.waiting = append(m.packs.waiting, settling{partition: partition, cell: c})
		m.askOrders()
	}
}

// announce says that a cell is replicated.
func (m *Machine) announce(partition int, c *progress) {
	if done := c.missed.done; done.OK {
		c.missed.done = proto.Opt[tid.TID]{}
		m.incomplete[partition] = true
		m.advance(c, done.V)
		m.do(Effect{Op: Replicated, Partition: partition, TID: done.V})
	}
	if m.set.Table.Cell(partition, m.set.ID) == proto.UpToDate {
		m.do(Effect{Op: Pack})
	}
	m.do(Effect{Op: ReadKept})
}

// advance records that a cell of a backup cluster has everything up to t. Orders that
// were executed upstream leave a gap before them: TIDs at which nothing is complete here.
func (m *Machine) advance(c *progress, t tid.TID) {
	if !m.backup.OK {
		return
	}
	k := &c.missed
	if k.hole > c.whole {
		from := max(c.whole, 1) - 1
		if m.gap[1] > m.allowed { // else all cells of the cluster are beyond it
			from = min(from, m.gap[0])
			k.hole = max(k.hole, m.gap[1])
		}
		m.gap = [2]tid.TID{from, k.hole}
		m.log(slog.LevelInfo, "packed upstream meanwhile: what was between is not all here", "after", m.gap[0], "before", m.gap[1])
		m.do(Effect{Op: SetGap, Gap: m.gap})
		m.commit()
		m.tellStored()
	}
	k.hole, k.upstream = tid.Zero, false
	c.whole = max(c.whole, t+1)
	m.storeBackup()
}

// tellStored tells the master what is recorded of how far this node follows the
// upstream cluster.
func (m *Machine) tellStored() {
	m.do(Effect{Op: TellStored, TID: m.backup.V, Gap: m.gap})
}

// allow takes up to which order packs may be executed: all cells of the cluster are beyond it.
func (m *Machine) allow(t tid.TID) {
	more := t > m.allowed
	m.allowed = t
	if more {
		m.do(Effect{Op: Pack})
	}
}

// packApproved looks again at the cells of a backup cluster, which are readable: an
// order is executed there when the cell is compared for it.
func (m *Machine) packApproved() {
	if !m.backup.OK {
		return
	}
	for _, p := range m.partitions() {
		c := m.cells[p]
		if _, more := m.todo[p]; more || m.busy(p) || !m.readable(p) || !c.missed.after.OK {
			continue
		}
		m.settle(p, c, proto.Opt[tid.TID]{})
	}
}

// askOrders asks for the orders after those that the waiting cells have executed.
func (m *Machine) askOrders() {
	k := &m.packs
	if k.asking || len(k.waiting) == 0 {
		return
	}
	cells := k.waiting
	k.waiting, k.asking = nil, true
	after := tid.Invalid
	for i, w := range cells {
		after = min(after, w.cell.missed.after.V)
		cells[i].done = w.cell.missed.done
	}
	if !k.known || after < k.after {
		k.known, k.after, k.list = true, after, nil
	}
	m.askOrder(cells)
}

// askOrder asks for one more, until there is none.
func (m *Machine) askOrder(cells []settling) {
	last := m.packs.after
	if n := len(m.packs.list); n > 0 {
		last = m.packs.list[n-1].ID
	}
	m.do(Effect{Op: AskMaster, Packet: &proto.AskPackOrders{Min: last + 1}, Tag: ordersAsked{cells, last}})
}

func (m *Machine) orderKnown(asked ordersAsked, p proto.Packet) {
	k := &m.packs
	a, ok := p.(*proto.AnswerPackOrders)
	if !ok {
		m.log(slog.LevelWarn, "the master does not say which packs were ordered", "err", p)
		for i, w := range asked.cells {
			if m.backup.OK && m.readable(w.partition) {
				asked.cells[i].done = proto.Opt[tid.TID]{} // announced when it is ordered again
			}
		}
	} else if len(a.Orders) > 0 && a.Orders[0].ID > asked.last {
		k.list = append(k.list, a.Orders[0])
		m.askOrder(asked.cells)
		return
	}
	k.asking = false
	for _, w := range asked.cells {
		switch {
		case m.cells[w.partition] != w.cell:
		case m.backup.OK && m.readable(w.partition):
			m.settledBackup(w)
		default:
			m.settled(w.partition, w.cell)
		}
	}
	m.askOrders()
	m.goOn()
}

// settledBackup is settled for a cell of a backup cluster. What it had to announce when
// the orders were asked is announced, unless one that is later may have removed at the
// source what the cell has not fetched: then it is complete again when it has the order.
func (m *Machine) settledBackup(w settling) {
	c, k := w.cell, &w.cell.missed
	k.asking = false
	if w.done.OK && !k.done.OK {
		w.done = proto.Opt[tid.TID]{} // the upstream cluster was lost meanwhile
	}
	upTo := max(c.whole, 1) - 1
	if w.done.OK {
		upTo = w.done.V
	}
	k.base = k.after.V
	orders := m.packs.list
	if k.source > k.after.V && !slices.ContainsFunc(orders, func(o proto.PackOrder) bool { return o.ID >= k.source }) {
		// Executed upstream, but the master does not know it, or not any more.
		orders = append(slices.Clip(orders), proto.PackOrder{ID: k.source, Time: k.source})
	}
	for _, o := range orders {
		if !k.after.OK || o.ID <= k.after.V {
			continue
		}
		concerns := o.Time >= c.whole && w.done.OK
		if o.Partial && concerns {
			o.OIDs = m.ownOIDs(w.partition, o.OIDs)
			concerns = len(o.OIDs) > 0
		}
		if o.ID > upTo {
			// A cell of this cluster has not executed what is not here yet.
			if concerns && (k.upstream || k.done != w.done) {
				m.log(slog.LevelInfo, "packed upstream: not complete before the order is here", "partition", w.partition,
					"up_to", upTo, "order", o.ID)
				m.notAnnounced(w)
				return
			}
			continue
		}
		k.after.V = o.ID
		if concerns {
			k.hole = max(k.hole, o.ID)
			k.orders = append(k.orders, o)
		}
	}
	k.upTo = upTo
	switch {
	case len(k.orders) > 0:
		m.todo[w.partition] = max(m.todo[w.partition], k.upTo)
	case k.done != w.done: // more has come, after the question
		k2 := k.done
		k.done = w.done
		m.announce(w.partition, c)
		m.settle(w.partition, c, k2)
	default:
		m.announce(w.partition, c)
	}
}

// notAnnounced gives up to announce what a cell had to when the orders were asked. All orders
// count again when it has more.
func (m *Machine) notAnnounced(w settling) {
	c, k := w.cell, &w.cell.missed
	later := k.done
	k.done, k.orders, k.upTo, k.after.V = proto.Opt[tid.TID]{}, nil, 0, k.base
	if later != w.done { // it came after the question, perhaps with the order
		m.settle(w.partition, c, later)
		return
	}
	m.do(Effect{Op: Replicated, Partition: w.partition, TID: max(c.whole, 1) - 1})
}

// ownOIDs returns the objects of a partition, sorted.
func (m *Machine) ownOIDs(partition int, all []tid.OID) (list []tid.OID) {
	for _, oid := range all {
		if oid.Partition(m.set.Table.NP()) == partition {
			list = append(list, oid)
		}
	}
	slices.Sort(list)
	return list
}

// settled announces a cell, or has it compared for the orders that it missed.
func (m *Machine) settled(partition int, c *progress) {
	k := &c.missed
	k.asking = false
	k.upTo = max(c.nextObj, 1) - 1
	k.base = k.after.V
	for _, o := range m.packs.list {
		if o.ID <= k.after.V {
			continue
		}
		k.after.V = o.ID
		if o.Partial {
			if o.OIDs = m.ownOIDs(partition, o.OIDs); len(o.OIDs) == 0 {
				continue
			}
		}
		k.orders = append(k.orders, o)
	}
	if last := max(k.source, m.lastPack); last > k.after.V {
		// Executed somewhere, but the master does not know it any more.
		k.after.V = last
		k.orders = append(k.orders, proto.PackOrder{ID: last, Time: last})
	}
	if len(k.orders) == 0 {
		m.announce(partition, c)
		return
	}
	m.todo[partition] = max(m.todo[partition], k.upTo)
}

// beginMissed begins the comparison for missed packs. It asks first what the source
// has packed: the range of transactions is one that is here already.
func (m *Machine) beginMissed(f *fetch) {
	upTo := f.cell.missed.upTo
	f.max, f.pass = upTo, passAsk
	if m.todo[f.partition] <= upTo {
		delete(m.todo, f.partition)
	}
	f.min, f.last = upTo, upTo
	m.listTransactions(true)
}

// compareMissed begins to compare keys. A source that has executed all the orders has
// nothing that they have removed. From another one, which may execute them meanwhile, first
// everything is fetched that it has: what is here and not there after that was removed.
func (m *Machine) compareMissed(f *fetch, packed proto.Opt[tid.TID]) {
	k := &f.cell.missed
	last := tid.Zero
	for _, o := range k.orders {
		last = max(last, o.Time)
	}
	f.pass, f.min, f.minOID, f.last = passDelete, 0, 0, min(k.upTo, last)
	if !packed.OK || packed.V < k.orders[len(k.orders)-1].ID {
		f.pass = passAdd
	}
	m.log(slog.LevelInfo, "comparing with a replica for packs that were missed", "partition", f.partition, "orders", len(k.orders),
		"up_to", f.last, "peer", f.link)
	m.commit()
	m.listRecords()
}

// endMissed is called when all keys are compared.
func (m *Machine) endMissed(f *fetch) {
	m.commit()
	if f.pass == passAdd {
		f.pass, f.min, f.minOID = passDelete, 0, 0
		m.listRecords()
		return
	}
	m.log(slog.LevelInfo, "compared for packs that were missed", "partition", f.partition, "objects_deleted", f.deleted, "peer", f.link)
	f.cell.missed.orders = nil
	m.current, f.cell.failures = nil, 0
	m.settle(f.partition, f.cell, proto.Opt[tid.TID]{})
	m.goOn()
}

// examineNext looks at the next record that the source has not, or ends the chunk. One
// at a time: what is deleted of an object counts for the next one.
func (m *Machine) examineNext(f *fetch) {
	for len(f.lacking) > 0 {
		k := f.lacking[0]
		f.lacking = f.lacking[1:]
		until := k.TID
		switch f.pass {
		case passAdd:
			continue
		case passDelete:
			var ok bool
			// In a backup cluster all of them are behind the cell: what was current up to the
			// last one, and is not there, was deleted.
			if until, ok = f.cell.missed.reach(k.OID, k.TID, m.backup.OK && m.readable(f.partition)); !ok {
				continue // no order has removed it
			}
		}
		asked := f.pass == passFetch && m.knowsTransactions(k.TID)
		m.do(Effect{Op: Examine, Record: k, Until: until, Happened: asked, Tag: lackingAt{f, k, asked, until}})
		return
	}
	f.lacking = nil
	m.recordsFetched(f)
}

// lacks decides about a record that the source has not.
func (m *Machine) lacks(at lackingAt, r Record) {
	f, k := at.fetch, at.key
	switch {
	case r.Last != k.TID: // gone, or superseded: to be packed here
	case r.Deletion && r.Before != tid.Zero && f.keepsDeletion(at.asked, r.Happened):
		// Without it the object would rise again. It goes when the pack is executed here.
	case f.pass == passDelete && m.backup.OK && m.readable(f.partition):
		// The object was deleted and packed. What it was before stays: this cluster may
		// still be left, or be read, at a time before the pack.
		if r.Deletion || k.TID >= at.until {
			break
		}
		m.log(slog.LevelDebug, "deleting an object that was deleted and packed upstream", "partition", f.partition, "oid", k.OID,
			"last_tid", k.TID, "tid", at.until, "peer", f.link)
		m.do(Effect{Op: AddRecord, Packet: &proto.AddObject{OID: k.OID, Serial: at.until, ObjectData: proto.ObjectData{Checksum: proto.ZeroHash}}})
		f.deleted++
	default:
		m.log(slog.LevelDebug, "deleting a record that the source has not", "partition", f.partition, "oid", k.OID, "tid", k.TID,
			"pack", f.pass == passDelete, "peer", f.link)
		m.do(Effect{Op: DeleteRecord, Record: k})
		if f.pass != passFetch { // the object was deleted and packed
			f.deleted++
			if r.Before != tid.Zero {
				m.do(Effect{Op: DeleteBefore, Record: k})
			}
		}
	}
	m.examineNext(f)
}

// reach returns the time of the first pack that may have removed a record, or of the last one.
func (k *missedPacks) reach(oid tid.OID, t tid.TID, last bool) (until tid.TID, ok bool) {
	for _, o := range k.orders {
		if o.Time < t || ok && last != (o.Time > until) {
			continue
		}
		if o.Partial {
			if _, listed := slices.BinarySearch(o.OIDs, oid); !listed {
				continue
			}
		}
		until, ok = o.Time, true
	}
	return until, ok
}

// knowsTransactions reports whether this node has the transaction of a TID, if it happened.
func (m *Machine) knowsTransactions(t tid.TID) bool {
	p := t.Partition(m.set.Table.NP())
	c := m.cells[p]
	return m.readable(p) && !m.backup.OK || c != nil && c.nextTrans > t
}

// keepsDeletion decides about a deletion that the source lacks although the object has
// earlier records here. It was removed by a pack, or the source has lost it, unless the
// transaction never happened for the cluster. That is known where the transaction itself is
// here; else cells that are compared from the beginning are those which may have such.
func (f *fetch) keepsDeletion(known, happened bool) bool {
	switch {
	case f.pass == passDelete:
		return true
	case known:
		return happened
	}
	return !f.cell.missed.fresh
}
