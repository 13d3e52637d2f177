package storage

import (
	"errors"
	"fmt"
	"slices"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
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
	source tid.TID            // greatest order that a source has completed
	orders []proto.PackOrder  // to be compared for
	upTo   tid.TID            // the cell is complete up to here
	asking bool               // for orders
	done   proto.Opt[tid.TID] // to be announced after that
}

// packedThere notes that a source has completed an order. In what is received from
// the beginning, only that counts.
func (m *missedPacks) packedThere(id tid.TID) {
	m.source = max(m.source, id)
	if m.fresh && m.after.OK {
		m.after.V = min(m.after.V, id)
	}
}

// settled reports whether the cell is compared for an order.
func (m *missedPacks) settled(order tid.TID) bool {
	return !m.after.OK || m.after.V >= order && len(m.orders) == 0
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
}

// notePacked finds which orders are executed on a cell that begins to be replicated.
func (r *replicator) notePacked(f *fetch) error {
	m := &f.cell.missed
	if m.after.OK {
		return nil
	}
	ids, err := r.n.db.PackedIDs(false)
	if errors.Is(err, backend.ErrNotImplemented) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("completed pack orders: %w", err)
	}
	m.after, m.fresh = proto.Some(ids[f.partition]), f.min == tid.Zero
	return nil
}

// settle is called when a cell has everything up to done, which is announced as soon
// as no pack was missed.
func (r *replicator) settle(partition int, c *progress, done proto.Opt[tid.TID]) error {
	m := &c.missed
	if done.OK {
		m.done = done
	}
	switch {
	case len(m.orders) > 0:
		r.todo[partition] = max(r.todo[partition], m.upTo)
		return nil
	case m.asking:
		return nil
	case !m.after.OK || r.n.isReadable(partition) && max(m.source, r.n.lastPack) <= m.after.V:
		return r.announce(partition, c)
	}
	m.asking = true
	r.packs.waiting = append(r.packs.waiting, settling{partition, c})
	return r.askOrders()
}

// announce says that a cell is replicated.
func (r *replicator) announce(partition int, c *progress) error {
	if done := c.missed.done; done.OK {
		c.missed.done = proto.Opt[tid.TID]{}
		if err := r.s.txns.Replicated(partition, done.V); err != nil {
			return err
		}
	}
	if r.n.table.Cell(partition, r.n.id) == proto.UpToDate {
		if err := r.s.worker.maybePack(); err != nil {
			return err
		}
	}
	return r.s.worker.readKept()
}

// packSigned looks again at the cells of a backup cluster, which are readable: an
// order is executed there when the cell is compared for it.
func (r *replicator) packSigned() error {
	if r.n.backupTID.Load() == nil {
		return nil
	}
	for p, c := range r.cells {
		_, more := r.todo[p]
		if more || r.current != nil && r.current.partition == p || !r.n.isReadable(p) || !c.missed.after.OK {
			continue
		}
		if err := r.settle(p, c, proto.Opt[tid.TID]{}); err != nil {
			return err
		}
	}
	return nil
}

// askOrders asks for the orders after those that the waiting cells have executed.
func (r *replicator) askOrders() error {
	k := &r.packs
	if k.asking || len(k.waiting) == 0 {
		return nil
	}
	cells := k.waiting
	k.waiting, k.asking = nil, true
	after := tid.Invalid
	for _, w := range cells {
		after = min(after, w.cell.missed.after.V)
	}
	if !k.known || after < k.after {
		k.known, k.after, k.list = true, after, nil
	}
	r.askOrder(cells)
	return nil
}

// askOrder asks for one more, until there is none.
func (r *replicator) askOrder(cells []settling) {
	k := &r.packs
	last := k.after
	if n := len(k.list); n > 0 {
		last = k.list[n-1].ID
	}
	r.n.master.conn.Ask(&proto.AskPackOrders{Min: last + 1}, question{r.s, func(ev link.Event) error {
		a, ok := ev.Packet.(*proto.AnswerPackOrders)
		if !ok {
			r.n.log.Warn("the master does not say which packs were ordered", "error", ev.Packet)
		} else if len(a.Orders) > 0 && a.Orders[0].ID > last {
			k.list = append(k.list, a.Orders[0])
			r.askOrder(cells)
			return nil
		}
		k.asking = false
		for _, w := range cells {
			if r.cells[w.partition] == w.cell {
				if err := r.settled(w.partition, w.cell); err != nil {
					return err
				}
			}
		}
		if err := r.askOrders(); err != nil {
			return err
		}
		return r.goOn()
	}})
}

// settled announces a cell, or has it compared for the orders that it missed.
func (r *replicator) settled(partition int, c *progress) error {
	m := &c.missed
	m.asking = false
	m.upTo = max(c.nextObj, 1) - 1
	backup := r.n.isReadable(partition)
	for _, o := range r.packs.list {
		if o.ID <= m.after.V {
			continue
		}
		if backup && o.ID > m.upTo {
			break // until the cell has the order, and so all that it concerns
		}
		m.after.V = o.ID
		if o.Partial {
			all := o.OIDs
			o.OIDs = nil
			for _, oid := range all {
				if oid.Partition(r.n.table.NP()) == partition {
					o.OIDs = append(o.OIDs, oid)
				}
			}
			if len(o.OIDs) == 0 {
				continue
			}
			slices.Sort(o.OIDs)
		}
		m.orders = append(m.orders, o)
	}
	if last := max(m.source, r.n.lastPack); !backup && last > m.after.V {
		// Executed somewhere, but the master does not know it any more.
		m.after.V = last
		m.orders = append(m.orders, proto.PackOrder{ID: last, Time: last})
	}
	if len(m.orders) == 0 {
		return r.announce(partition, c)
	}
	r.todo[partition] = max(r.todo[partition], m.upTo)
	return nil
}

// beginMissed begins the comparison for missed packs. It asks first what the source
// has packed: the range of transactions is one that is here already.
func (r *replicator) beginMissed(f *fetch) error {
	m := &f.cell.missed
	f.max, f.pass = m.upTo, passAsk
	if r.todo[f.partition] <= m.upTo {
		delete(r.todo, f.partition)
	}
	f.min, f.last = m.upTo, m.upTo
	return r.askTransactions(true)
}

// compareMissed begins to compare keys. A source that has executed all the orders has
// nothing that they have removed. From another one, which may execute them meanwhile, first
// everything is fetched that it has: what is here and not there after that was removed.
func (r *replicator) compareMissed(f *fetch, packed proto.Opt[tid.TID]) error {
	m := &f.cell.missed
	last := tid.Zero
	for _, o := range m.orders {
		last = max(last, o.Time)
	}
	f.pass, f.min, f.minOID, f.last = passDelete, 0, 0, min(m.upTo, last)
	if !packed.OK || packed.V < m.orders[len(m.orders)-1].ID {
		f.pass = passAdd
	}
	r.n.log.Info("comparing with a replica for packs that were missed", "partition", f.partition, "orders", len(m.orders),
		"up_to", f.last, "peer", f.link)
	if err := r.n.commit(); err != nil {
		return err
	}
	return r.askRecords()
}

// endMissed is called when all keys are compared.
func (r *replicator) endMissed(f *fetch) error {
	if err := r.n.commit(); err != nil {
		return err
	}
	if f.pass == passAdd {
		f.pass, f.min, f.minOID = passDelete, 0, 0
		return r.askRecords()
	}
	r.n.log.Info("compared for packs that were missed", "partition", f.partition, "objects_deleted", f.deleted, "peer", f.link)
	f.cell.missed.orders = nil
	r.current, f.cell.failures = nil, 0
	if err := r.settle(f.partition, f.cell, proto.Opt[tid.TID]{}); err != nil {
		return err
	}
	return r.goOn()
}

// lacking processes a record that is here, and which the source has not.
func (r *replicator) lacking(f *fetch, oid tid.OID, t tid.TID) error {
	if f.pass == passAdd {
		return nil
	}
	db, until := r.n.db, t
	if f.pass == passDelete {
		var ok bool
		if until, ok = f.cell.missed.reach(oid, t); !ok {
			return nil // no order has removed it
		}
	}
	last, deletion, err := db.RecordBefore(oid, until+1)
	if err != nil || last != t {
		return err // gone, or superseded: to be packed here
	}
	before, _, err := db.RecordBefore(oid, t)
	if err != nil {
		return err
	}
	if deletion && before != tid.Zero {
		// Without it the object would rise again. It goes when the pack is executed here.
		if keep, err := r.keepDeletion(f, t); err != nil || keep {
			return err
		}
	}
	r.n.log.Debug("deleting a record that the source has not", "partition", f.partition, "oid", oid, "tid", t, "pack", f.pass == passDelete, "peer", f.link)
	if err := db.DeleteObject(oid, t); err != nil || f.pass == passFetch {
		return err
	}
	// The object was deleted and packed.
	f.deleted++
	for before != tid.Zero {
		if err := db.DeleteObject(oid, before); err != nil {
			return err
		}
		if before, _, err = db.RecordBefore(oid, before); err != nil {
			return err
		}
	}
	return nil
}

// reach returns the time of the first pack that may have removed a record.
func (m *missedPacks) reach(oid tid.OID, t tid.TID) (until tid.TID, ok bool) {
	for _, o := range m.orders {
		if o.Time < t || ok && o.Time >= until {
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

// keepDeletion decides about a deletion that the source lacks although the object has
// earlier records here. It was removed by a pack, or the source has lost it, unless the
// transaction never happened for the cluster. That is known where the transaction itself is
// here; else cells that are compared from the beginning are those which may have such.
func (r *replicator) keepDeletion(f *fetch, t tid.TID) (bool, error) {
	if f.pass == passDelete {
		return true, nil
	}
	p := t.Partition(r.n.table.NP())
	if c := r.cells[p]; r.n.isReadable(p) && r.n.backupTID.Load() == nil || c != nil && c.nextTrans > t {
		list, err := r.n.db.TIDsFrom(p, t, t, 1)
		return len(list) > 0, err
	}
	return !f.cell.missed.fresh, nil
}
