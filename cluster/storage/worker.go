package storage

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	// slice is how long background work may keep packets waiting.
	slice = 10 * time.Millisecond
	// minRows is the least that a slice does, in rows.
	minRows = 100
	// maxStarving is how long packets may keep background work waiting.
	maxStarving = 100 * time.Millisecond
	// commitPeriod is how often background work is committed.
	commitPeriod = time.Second
	// maxOrphans is how many orphans are deleted before the next search.
	maxOrphans = 100000
)

// worker deletes what is no longer needed, in slices between packets: discarded
// partitions, history that was ordered to be packed, orphans.
//
// Completion is recorded after its effects, in the same database: both are
// durable together, or neither.
type worker struct {
	n         *Node
	s         *session
	drop      map[int]bool
	packing   *packing
	started   *packing // the last order that was begun
	asking    bool     // the master, for an order
	repairing bool

	rate      float64 // rows per second, measured
	last      time.Time
	committed time.Time
	dirty     bool
}

// packing is a pack order being executed.
type packing struct {
	order proto.PackOrder
	from  tid.TID      // value of the cells concerned: the order before
	todo  map[int]bool // partitions
	at    int          // current partition, -1: none
	after proto.Opt[tid.OID]
}

func newWorker(n *Node, s *session) *worker {
	return &worker{n: n, s: s, drop: map[int]bool{}, rate: 10000}
}

// start finds what former periods of operation left to be done.
func (w *worker) start() error {
	if w.n.repair != nil {
		w.repairNow()
	}
	list, err := w.n.db.UnassignedPartitions()
	if errors.Is(err, backend.ErrNotImplemented) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("discarded partitions: %w", err)
	}
	for _, p := range list {
		w.discard(p)
	}
	return nil
}

func (w *worker) discard(partition int) {
	if w.n.cfg.DisableDrop {
		w.n.log.Info("data of a discarded partition are kept", "partition", partition)
		return
	}
	w.drop[partition] = true
}

// stop ends all work. What was done is committed by the caller.
func (w *worker) stop() { w.drop, w.packing = nil, nil }

// tableChanged follows the cells of this node.
func (w *worker) tableChanged(cells []proto.CellChange) {
	for _, c := range cells {
		if c.ID != w.n.id {
			continue
		}
		if c.State == proto.Discarded {
			w.discard(c.Partition)
		} else {
			delete(w.drop, c.Partition)
		}
		if w.packing != nil && !c.State.Readable() {
			delete(w.packing.todo, c.Partition)
		}
	}
}

// overdue reports whether there is work that packets have delayed for too long.
func (w *worker) overdue() bool {
	return (len(w.drop) > 0 || w.packing != nil) && time.Since(w.last) > maxStarving
}

// step does a slice of work. It returns 0 if there may be more, how long to wait
// before the next call, or -1 if there is nothing to do.
func (w *worker) step() (time.Duration, error) {
	begin := time.Now()
	n := max(minRows, int(w.rate*slice.Seconds()))
	done, worked, err := 0, true, error(nil)
	switch {
	case len(w.drop) > 0:
		done, err = n, w.stepDrop(n)
	case w.packing != nil:
		done, err = w.stepPack(n)
	default:
		worked = false
	}
	if err != nil {
		return 0, err
	}
	if !worked {
		if w.dirty {
			w.dirty = false
			return 0, w.n.commit()
		}
		return -1, nil
	}
	w.last = time.Now()
	if took := w.last.Sub(begin); done >= n && took > 0 {
		w.rate = (w.rate + float64(done)/took.Seconds()) / 2
	}
	w.dirty = true
	if w.last.Sub(w.committed) > commitPeriod {
		w.committed, w.dirty = w.last, false
		return 0, w.n.commit()
	}
	return 0, nil
}

func (w *worker) stepDrop(n int) error {
	p := slices.Min(slices.Collect(maps.Keys(w.drop)))
	done, err := w.n.db.DropPartition(p, n)
	if err != nil {
		return fmt.Errorf("dropping partition %d: %w", p, err)
	}
	if done {
		delete(w.drop, p)
		w.n.log.Info("dropped", "partition", p)
		w.dirty = false
		return w.n.commit()
	}
	return nil
}

func (w *worker) stepPack(n int) (int, error) {
	k := w.packing
	if !k.todo[k.at] {
		if len(k.todo) == 0 {
			w.packing = nil
			w.n.log.Info("packed", "order", k.order.ID, "time", k.order.Time)
			if err := w.n.notifyPacked(false); err != nil {
				return 0, err
			}
			return 0, w.maybePack(nil)
		}
		k.at, k.after = slices.Min(slices.Collect(maps.Keys(k.todo))), proto.Opt[tid.OID]{}
	}
	var oids []tid.OID
	deleted := 0
	if k.order.Partial {
		for _, oid := range k.order.OIDs {
			if oid.Partition(w.n.table.NP()) == k.at {
				oids = append(oids, oid)
			}
		}
	}
	if !k.order.Partial || len(oids) > 0 {
		var err error
		k.after, deleted, err = w.n.db.Pack(k.at, k.order.Time, oids, k.after, n)
		if err != nil {
			return 0, fmt.Errorf("packing partition %d up to %v: %w", k.at, k.order.Time, err)
		}
		if k.after.OK {
			return max(deleted, n), nil
		}
	}
	if err := w.n.db.SetPacked(k.at, k.order.ID); err != nil {
		return 0, fmt.Errorf("recording the pack of partition %d: %w", k.at, err)
	}
	delete(k.todo, k.at)
	w.dirty = false
	return deleted, w.n.commit()
}

// maybePack begins the next pack order, if there is one to be executed. order is
// what the master answered to the question for it.
func (w *worker) maybePack(order *proto.PackOrder) error {
	n := w.n
	if n.cfg.DisablePack || w.packing != nil || w.drop == nil {
		return nil
	}
	packed, err := n.db.PackedIDs(true)
	if errors.Is(err, backend.ErrNotImplemented) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("completed pack orders: %w", err)
	}
	if len(packed) == 0 {
		return nil
	}
	from := slices.Min(slices.Collect(maps.Values(packed)))
	switch {
	case from >= n.lastPack:
		w.started = nil
		return nil
	case w.started != nil && w.started.from == from:
		order = &w.started.order // some cells could not be packed then
	case order != nil && order.ID > from:
	case w.asking:
		return nil
	default:
		w.asking = true
		n.master.conn.Ask(&proto.AskPackOrders{Min: from + 1}, question{w.s, func(ev link.Event) error {
			w.asking = false
			a, ok := ev.Packet.(*proto.AnswerPackOrders)
			if !ok || len(a.Orders) == 0 {
				return nil
			}
			return w.maybePack(&a.Orders[0])
		}})
		return nil
	}
	k := &packing{order: *order, from: from, todo: map[int]bool{}, at: -1}
	for p, id := range packed {
		if id == from && w.s.replicator.complete(p, order.ID) {
			k.todo[p] = true
		}
	}
	if len(k.todo) == 0 {
		return nil // until more is replicated
	}
	n.log.Info("packing", "order", order.ID, "time", order.Time, "partitions", len(k.todo))
	w.packing, w.started = k, k
	return nil
}

// notifyPacked tells the master up to which order all cells are packed, if that
// has changed.
func (n *Node) notifyPacked(initial bool) error {
	id := n.lastPack
	if !n.cfg.DisablePack {
		packed, err := n.db.PackedIDs(false)
		if errors.Is(err, backend.ErrNotImplemented) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("completed pack orders: %w", err)
		}
		if len(packed) == 0 {
			return nil
		}
		id = slices.Min(slices.Collect(maps.Values(packed)))
	}
	if id != n.completedPack || initial {
		n.completedPack = id
		n.master.conn.Send(&proto.NotifyPackCompleted{ID: id})
	}
	return nil
}

// packSigned processes decisions on pack orders.
func (n *Node) packSigned(q *proto.NotifyPackSigned) error {
	if !n.cfg.DisablePack {
		missing, changed, err := n.db.SignPackOrders(q.Approved, q.Rejected)
		switch {
		case errors.Is(err, backend.ErrNotImplemented):
			return nil
		case err != nil:
			return fmt.Errorf("signing pack orders: %w", err)
		case changed:
			if err := n.commit(); err != nil {
				return err
			}
		}
		if n.session != nil {
			n.session.replicator.signLater(missing, q.Approved)
		}
	}
	last := tid.Zero
	for _, id := range q.Approved {
		last = max(last, id)
	}
	if last <= n.lastPack {
		return nil
	}
	n.lastPack = last
	switch {
	case n.session == nil:
		return nil
	case n.cfg.DisablePack:
		return n.notifyPacked(false)
	}
	return n.session.worker.maybePack(nil)
}

// repairOrdered processes an order to delete data that nothing refers to.
func (n *Node) repairOrdered(q *proto.NotifyRepair) error {
	if n.repair != nil {
		n.log.Error("a search for orphans is already under way")
		return nil
	}
	n.repair = q
	if n.session != nil {
		n.session.worker.repairNow()
	}
	return nil
}

// repairNow searches orphans on a goroutine; they are deleted on ours.
func (w *worker) repairNow() {
	if w.repairing {
		return
	}
	w.repairing = true
	n, dry := w.n, w.n.repair.DryRun
	w.s.feeder.run(func() {
		var ids []backend.DataID
		found := 0
		for id, err := range n.db.Orphans(w.s.feeder.ctx) {
			switch {
			case w.s.feeder.ctx.Err() != nil:
				return
			case errors.Is(err, backend.ErrNotImplemented):
				n.log.Error("this database cannot search orphans")
			case err != nil:
				n.fail(fmt.Errorf("searching orphans: %w", err))
				return
			default:
				found++
				if !dry {
					ids = append(ids, id)
				}
			}
			if len(ids) == maxOrphans {
				break
			}
		}
		w.s.feeder.post(func() error { return w.repaired(ids, found, dry) })
	})
}

func (w *worker) repaired(ids []backend.DataID, found int, dry bool) error {
	n := w.n
	if n.session != w.s {
		return nil
	}
	w.repairing = false
	if dry {
		n.log.Info("orphan records found, none deleted", "count", found)
		n.repair = nil
		return nil
	}
	deleted := 0
	for chunk := range slices.Chunk(ids, 1000) {
		k, err := n.db.PruneData(chunk)
		if err != nil {
			return fmt.Errorf("deleting orphans: %w", err)
		}
		deleted += k
	}
	n.log.Info("orphan records deleted", "found", found, "deleted", deleted)
	if err := n.commit(); err != nil {
		return err
	}
	if len(ids) == maxOrphans && deleted > 0 {
		w.repairNow()
		return nil
	}
	n.repair = nil
	return nil
}
