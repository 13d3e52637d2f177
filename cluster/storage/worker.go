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
	"github.com/neozodb/neo/cluster/storage/replica"
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
	// keepDeletions is how long a replica may be gone, or may not yet have stored for
	// good what it knows, before the partition table says so.
	keepDeletions = time.Minute
	// packAgain is how long after a backend could not pack it is asked again.
	packAgain = 10 * time.Second
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
	dropped   int // partitions, since nothing was to be dropped
	packing   *packing
	started   *packing  // the last order that was begun
	asking    bool      // the master, for an order
	later     time.Time // when a backend is asked again that could not pack; zero: it can
	repairing bool

	kept     map[int]tid.TID   // deletions kept by packs, of partitions
	quiet    map[int]time.Time // since when their cells have not changed, nor were packed
	dropping *packing          // those of a partition

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
	return &worker{n: n, s: s, drop: map[int]bool{}, quiet: map[int]time.Time{}, rate: 10000}
}

// begin finds what is to be done, be it left by former periods of operation, or ordered
// while the database had work of its own.
func (w *worker) begin() error {
	if err := w.start(); err != nil {
		return err
	}
	return w.maybePack()
}

// start finds what is to be deleted.
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
	return w.readKept()
}

// readKept learns what packs have kept.
func (w *worker) readKept() error {
	kept, err := w.n.db.KeptDeletions()
	if errors.Is(err, backend.ErrNotImplemented) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kept deletions: %w", err)
	}
	for p := range kept {
		if _, known := w.kept[p]; !known {
			w.quiet[p] = time.Now()
		}
	}
	w.kept = kept
	return nil
}

// keepAfter returns from when on a pack of a partition keeps deletions. A replica that
// is away has the objects, but may not know that they were deleted: it must get the
// deletions when it comes back. If it is one of ours, it would also notice without them.
func (w *worker) keepAfter(partition int, order tid.TID) tid.TID {
	keep := tid.Max
	for _, c := range w.n.table.Row(partition) {
		switch {
		case c.ID == w.n.id:
		case !c.State.Readable():
			return tid.Zero
		case order>>32 == 0:
			return tid.Zero
		default: // it may be gone, and nothing has noticed yet
			keep = order.Add(-1 << 32 * int64(keepDeletions/time.Minute))
		}
	}
	return keep
}

// due returns a partition where the deletions that packs have kept are no longer
// needed, or how long it takes until there may be one.
func (w *worker) due() (partition int, wait time.Duration) {
	wait = -1
	for p := range w.kept {
		if w.n.cfg.DisablePack || !w.n.isReadable(p) || w.drop == nil ||
			slices.ContainsFunc(w.n.table.Row(p), func(c proto.Cell) bool { return !c.State.Readable() }) {
			continue
		}
		left := max(0, keepDeletions-time.Since(w.quiet[p]))
		if wait < 0 || left < wait || left == wait && p < partition {
			partition, wait = p, left
		}
	}
	return partition, wait
}

func (w *worker) stepKept(n int) (int, error) {
	k := w.dropping
	if k == nil || w.kept[k.at] == tid.Zero {
		p, _ := w.due()
		k = &packing{at: p}
		w.dropping = k
	}
	last, deleted, err := w.n.db.DropDeletions(k.at, k.after, n)
	if err != nil {
		return 0, fmt.Errorf("dropping kept deletions of partition %d: %w", k.at, err)
	}
	if k.after = last; last.OK {
		return max(deleted, n), nil
	}
	delete(w.kept, k.at)
	w.dropping = nil
	w.n.log.Info("deletions kept for other replicas are no longer needed", "partition", k.at)
	w.dirty = false
	return deleted, w.n.commit()
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
		w.quiet[c.Partition] = time.Now()
		w.dropping = nil // if it is still to be done, it begins again
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
	return (len(w.drop) > 0 || w.packing != nil || w.dropping != nil) && time.Since(w.last) > maxStarving
}

// step does a slice of work. It returns 0 if there may be more, how long to wait
// before the next call, or -1 if there is nothing to do.
func (w *worker) step() (time.Duration, error) {
	begin := time.Now()
	n := max(minRows, int(w.rate*slice.Seconds()))
	done, worked, err := 0, true, error(nil)
	_, wait := w.due()
	switch {
	case len(w.drop) > 0:
		done, err = n, w.stepDrop(n)
	case w.packing != nil:
		done, err = w.stepPack(n)
	case wait == 0:
		done, err = w.stepKept(n)
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
		if !w.later.IsZero() {
			left := time.Until(w.later)
			if left <= 0 {
				w.later = time.Time{}
				return 0, w.maybePack()
			}
			if wait < 0 || left < wait {
				wait = left
			}
		}
		return wait, nil
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
		w.n.log.Debug("dropped", "partition", p)
		if w.dropped++; len(w.drop) == 0 {
			w.n.log.Info("no data are left here of partitions that are on other storages", "partitions", w.dropped)
			w.dropped = 0
		}
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
			if err := w.readKept(); err != nil {
				return 0, err
			}
			return 0, w.maybePack()
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
		k.after, deleted, err = w.n.db.Pack(k.at, k.order.Time, oids, w.keepAfter(k.at, k.order.ID), k.after, n)
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
	// Deletions that this pack has kept are needed for as long as those of an earlier one were.
	w.quiet[k.at] = time.Now()
	w.dropping = nil
	w.dirty = false
	return deleted, w.n.commit()
}

// maybePack begins the next pack order, if there is one to be executed.
func (w *worker) maybePack() error { return w.packNext(nil, 0) }

// packNext is maybePack with what the master answered to the question for the first
// order after one. Cells that became readable since may need an earlier one.
func (w *worker) packNext(order *proto.PackOrder, after tid.TID) error {
	n := w.n
	if n.cfg.DisablePack || w.packing != nil || w.drop == nil {
		return nil
	}
	packed, err := n.db.PackedIDs(true)
	if errors.Is(err, backend.ErrNotImplemented) { // during an import, for example
		w.later = time.Now().Add(packAgain)
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
	case order != nil && after == from && order.ID > from:
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
			return w.packNext(&a.Orders[0], from)
		}})
		return nil
	}
	k := &packing{order: *order, from: from, todo: map[int]bool{}, at: -1}
	for p, id := range packed {
		if id == from && w.s.replicator.m.Complete(p, order.ID) {
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
		switch {
		case errors.Is(err, backend.ErrNotImplemented) && initial:
			// During an import. The master does not wait for a storage that says nothing: it would
			// call an order completed which this one is going to execute.
			id = tid.Zero
		case errors.Is(err, backend.ErrNotImplemented):
			return nil
		case err != nil:
			return fmt.Errorf("completed pack orders: %w", err)
		case len(packed) == 0:
			return nil
		default:
			id = slices.Min(slices.Collect(maps.Values(packed)))
		}
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
			unknown := replica.Event{Kind: replica.PackUnknown, Missing: missing, Approved: q.Approved}
			if err := n.session.replicator.tell(unknown); err != nil {
				return err
			}
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
	if n.session == nil {
		return nil
	}
	if err := n.session.replicator.tell(replica.Event{Kind: replica.PackApproved, PackOrder: proto.Some(last)}); err != nil {
		return err
	}
	if n.cfg.DisablePack {
		return n.notifyPacked(false)
	}
	return n.session.worker.maybePack()
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
