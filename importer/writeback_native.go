package importer

import (
	"fmt"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// wrap returns the native backend as everything else has to use it: the write-back learns
// what is committed, and what it could not bear is refused.
func (w *writeBack) wrap() Native {
	return observed{w.native, writtenBack{w.native, w}, keptBack{w.native, w}, w.native}
}

// observed is a native backend of which the write-back learns what is committed.
type observed struct {
	backend.Reading
	backend.Writing
	backend.Keeping
	backend.Importing
}

// ReadCommitted is that of the native backend, if it has it: see committedReader.
func (n observed) ReadCommitted(upTo tid.TID) {
	if r, ok := n.Reading.(committedReader); ok {
		r.ReadCommitted(upTo)
	}
}

// writtenBack is a backend whose transactions are written back.
type writtenBack struct {
	backend.Writing
	w *writeBack
}

// Lock implements [backend.Writing].
func (b writtenBack) Lock(ttid, final tid.TID, approvePack bool) error {
	w := b.w
	w.mu.Lock()
	w.locked[ttid] = final
	w.mu.Unlock()
	return b.Writing.Lock(ttid, final, approvePack)
}

// Unlock implements [backend.Writing].
func (b writtenBack) Unlock(ttid, final tid.TID, meta, objects, pack bool) error {
	err := b.Writing.Unlock(ttid, final, meta, objects, pack)
	if err == nil {
		b.unlocked(ttid, final)
	}
	return err
}

// Validate implements [backend.Writing].
func (b writtenBack) Validate(ttid, final tid.TID) error {
	w := b.w
	w.mu.Lock()
	w.locked[ttid] = final
	w.mu.Unlock()
	err := b.Writing.Validate(ttid, final)
	if err == nil {
		b.unlocked(ttid, final)
	}
	return err
}

func (b writtenBack) unlocked(ttid, final tid.TID) {
	w := b.w
	w.mu.Lock()
	delete(w.locked, ttid)
	w.unlocked = max(w.unlocked, final)
	w.behind++
	w.mu.Unlock()
	w.kick()
}

// Abort implements [backend.Writing].
func (b writtenBack) Abort(ttid tid.TID) error {
	err := b.Writing.Abort(ttid)
	if err == nil {
		b.w.mu.Lock()
		delete(b.w.locked, ttid)
		b.w.mu.Unlock()
		b.w.kick()
	}
	return err
}

// DropUnfinished implements [backend.Writing].
func (b writtenBack) DropUnfinished() error {
	err := b.Writing.DropUnfinished()
	if err == nil {
		b.w.mu.Lock()
		clear(b.w.locked)
		b.w.mu.Unlock()
		b.w.kick()
	}
	return err
}

// keptBack is a backend whose transactions are written back.
type keptBack struct {
	backend.Keeping
	w *writeBack
}

// ChangePartitionTable implements [backend.Keeping].
func (k keptBack) ChangePartitionTable(ptid uint64, replicas int, cells []proto.CellChange, reset bool, lastPack tid.TID) error {
	defer k.w.changed()
	return k.Keeping.ChangePartitionTable(ptid, replicas, cells, reset, lastPack)
}

// SetBackupTID implements [backend.Keeping].
func (k keptBack) SetBackupTID(t proto.Opt[tid.TID]) error {
	defer k.w.changed()
	return k.Keeping.SetBackupTID(t)
}

// SetTruncateTID implements [backend.Keeping].
func (k keptBack) SetTruncateTID(t proto.Opt[tid.TID]) error {
	if t.OK {
		return k.uncut(t.V)
	}
	defer k.w.changed()
	return k.Keeping.SetTruncateTID(t)
}

func (k keptBack) uncut(t tid.TID) error {
	last, _, _ := k.w.progress()
	return fmt.Errorf("truncation to %v is refused: new transactions are written back to the source, up to %v now, and cannot be taken away there. Set writeback to false first", t, last)
}

// Truncate implements [backend.Keeping]. The order may be older than the write-back.
func (k keptBack) Truncate() error {
	c, err := k.Keeping.Config()
	if err != nil {
		return err
	}
	if last, _, _ := k.w.progress(); c.TruncateTID.OK && c.TruncateTID.V < last {
		return k.uncut(c.TruncateTID.V)
	}
	defer k.w.changed()
	return k.Keeping.Truncate()
}

// Erase implements [backend.Keeping].
func (k keptBack) Erase() error {
	w := k.w
	err := k.Keeping.Erase()
	w.mu.Lock()
	clear(w.locked)
	w.unlocked = tid.Zero
	w.mu.Unlock()
	w.changed()
	return err
}

// PackedIDs implements [backend.Keeping]. While there is an order to delete what is not
// written back, packing is not implemented: the node asks again later.
func (k keptBack) PackedIDs(upToDateOnly bool) (map[int]tid.TID, error) {
	packed, err := k.Keeping.PackedIDs(upToDateOnly)
	if err != nil || !upToDateOnly || len(packed) == 0 {
		return packed, err
	}
	from := tid.Max
	for _, id := range packed {
		from = min(from, id)
	}
	orders, err := k.Keeping.PackOrders(from + 1)
	if err != nil {
		return nil, err
	}
	upTo := k.w.packable()
	for _, o := range orders {
		if o.Time > upTo && o.Approved != proto.Some(false) {
			return nil, fmt.Errorf("packing up to %v, when everything is written back up to %v: %w", o.Time, upTo, backend.ErrNotImplemented)
		}
	}
	return packed, nil
}

// Pack implements [backend.Keeping]. What is not written back stays.
func (k keptBack) Pack(partition int, t tid.TID, oids []tid.OID, keep tid.TID, after proto.Opt[tid.OID], n int) (last proto.Opt[tid.OID], deleted int, err error) {
	if upTo := k.w.packable(); t > upTo {
		k.w.log.Warn("a pack leaves what is not written back to the source", "partition", partition, "time", t, "last", upTo)
		t = upTo
	}
	return k.Keeping.Pack(partition, t, oids, keep, after, n)
}
