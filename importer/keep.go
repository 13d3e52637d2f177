package importer

import (
	"context"
	"fmt"
	"iter"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// ChangePartitionTable implements [backend.Keeping]. Until the import has ended only this node
// has what is not copied, and it has all: a table that says something else is refused
// before anything of it is stored.
func (k keeping) ChangePartitionTable(ptid uint64, replicas int, cells []proto.CellChange, reset bool, lastPack tid.TID) error {
	b := k.b
	if !b.own.Load() {
		if err := b.checkTable(cells, reset); err != nil {
			return err
		}
	}
	err := b.native.ChangePartitionTable(ptid, replicas, cells, reset, lastPack)
	b.np.Store(0)
	return err
}

// checkTable returns an error if the sources could not be served under the table that
// changes make.
func (b *Backend) checkTable(changes []proto.CellChange, reset bool) error {
	c, err := b.native.Config()
	if err != nil {
		return err
	}
	type place struct {
		partition int
		id        proto.NodeID
	}
	states := map[place]proto.CellState{}
	if !reset {
		cells, err := b.native.Cells()
		if err != nil {
			return err
		}
		for _, x := range cells {
			states[place{x.Partition, x.ID}] = x.State
		}
	}
	for _, x := range changes {
		states[place{x.Partition, x.ID}] = x.State
	}
	np := 0
	for at, state := range states {
		if np = max(np, at.partition+1); state == proto.Discarded {
			delete(states, at)
		}
	}
	for p := range np {
		if state, ok := states[place{p, c.ID}]; !ok || !state.Readable() {
			return fmt.Errorf("the import is not finished, and the partition table has no readable cell of this node for partition %d: "+
				"while it imports, a storage must have all partitions. Make the cluster with this storage alone, and add others afterwards", p)
		}
	}
	for at, state := range states {
		if at.id != c.ID && state.Readable() {
			return fmt.Errorf("the import is not finished, and the partition table has a readable cell of another storage, %v, for partition %d: "+
				"until the import has ended only this node has the data. Make the cluster with this storage alone, and add others afterwards", at.id, at.partition)
		}
	}
	return nil
}

// SetID implements [backend.Keeping].
func (k keeping) SetID(id proto.NodeID) error {
	if !k.b.own.Load() {
		c, err := k.b.native.Config()
		if err != nil {
			return err
		}
		if c.ID != 0 && c.ID != id {
			return fmt.Errorf("the node id cannot be changed from %v to %v while an import is not finished: "+
				"start the storage with its id until it says that all data are imported", c.ID, id)
		}
	}
	return k.b.native.SetID(id)
}

// refuseCut returns an error if a truncation would delete something that is imported. As long
// as the sources are configured, it would be imported again.
func (b *Backend) refuseCut(t tid.TID) error {
	if t >= b.end {
		return nil
	}
	return fmt.Errorf("truncation to %v is refused: the sources of the import go up to %v, and what it deletes of them would be imported again. "+
		"Truncate when the import has ended and the storage uses the database without the adapter Importer, or import sources that end there", t, b.end)
}

// SetTruncateTID implements [backend.Keeping].
func (k keeping) SetTruncateTID(t proto.Opt[tid.TID]) error {
	if t.OK {
		if err := k.b.refuseCut(t.V); err != nil {
			return err
		}
	}
	return k.b.native.SetTruncateTID(t)
}

// Truncate implements [backend.Keeping].
func (k keeping) Truncate() error {
	b := k.b
	c, err := b.native.Config()
	if err != nil {
		return err
	}
	if c.TruncateTID.OK {
		if err := b.refuseCut(c.TruncateTID.V); err != nil {
			return err
		}
	}
	defer b.forgetBegun()
	return b.native.Truncate()
}

// forgetBegun forgets the first revisions of objects after the end: something was deleted.
func (b *Backend) forgetBegun() {
	b.m.Lock()
	defer b.m.Unlock()
	clear(b.begun)
	b.cuts++
}

// PackedIDs implements [backend.Keeping]. Until the import has ended nothing is packed: an
// object of which the first record is missing looks as if it could go. The orders are kept, and
// the cells say that they have executed none of them.
func (k keeping) PackedIDs(upToDateOnly bool) (map[int]tid.TID, error) {
	if upToDateOnly && !k.b.own.Load() {
		return nil, fmt.Errorf("packing during an import: %w", backend.ErrNotImplemented)
	}
	return k.b.native.PackedIDs(upToDateOnly)
}

// Pack implements [backend.Keeping].
func (k keeping) Pack(partition int, t tid.TID, oids []tid.OID, keep tid.TID, after proto.Opt[tid.OID], n int) (last proto.Opt[tid.OID], deleted int, err error) {
	if !k.b.own.Load() {
		return last, 0, fmt.Errorf("packing during an import: %w", backend.ErrNotImplemented)
	}
	return k.b.native.Pack(partition, t, oids, keep, after, n)
}

// KeptDeletions implements [backend.Keeping].
func (k keeping) KeptDeletions() (map[int]tid.TID, error) {
	if !k.b.own.Load() {
		return nil, nil
	}
	return k.b.native.KeptDeletions()
}

// DropDeletions implements [backend.Keeping].
func (k keeping) DropDeletions(partition int, after proto.Opt[tid.OID], n int) (last proto.Opt[tid.OID], deleted int, err error) {
	if !k.b.own.Load() {
		return last, 0, fmt.Errorf("dropping deletions during an import: %w", backend.ErrNotImplemented)
	}
	return k.b.native.DropDeletions(partition, after, n)
}

// DropPartition implements [backend.Keeping]. All partitions are assigned until the import
// has ended.
func (k keeping) DropPartition(partition, n int) (done bool, err error) {
	if !k.b.own.Load() {
		return true, nil
	}
	return k.b.native.DropPartition(partition, n)
}

// UnassignedPartitions implements [backend.Keeping].
func (k keeping) UnassignedPartitions() ([]int, error) {
	if !k.b.own.Load() {
		return nil, nil
	}
	return k.b.native.UnassignedPartitions()
}

// Orphans implements [backend.Keeping]. Data that the copy has written may not be referred to
// yet.
func (k keeping) Orphans(ctx context.Context) iter.Seq2[backend.DataID, error] {
	if !k.b.own.Load() {
		return func(yield func(backend.DataID, error) bool) {
			yield(backend.DataID{}, fmt.Errorf("searching orphans during an import: %w", backend.ErrNotImplemented))
		}
	}
	return k.b.native.Orphans(ctx)
}

// PruneData implements [backend.Keeping].
func (k keeping) PruneData(ids []backend.DataID) (int, error) {
	if !k.b.own.Load() {
		return 0, fmt.Errorf("deleting orphans during an import: %w", backend.ErrNotImplemented)
	}
	return k.b.native.PruneData(ids)
}

// Erase implements [backend.Keeping]. The import is forgotten as well: with the next start it begins
// anew, with what the sources are then. The sources stay as they are.
func (k keeping) Erase() error {
	b := k.b
	err := b.native.Erase()
	b.np.Store(0)
	if err == nil && !b.own.Load() {
		b.advance(tid.Zero)
	}
	b.forgetBegun()
	return err
}

// Close implements [backend.Keeping]. It closes the sources, too, after what can be written back
// in [drainTimeout] was.
func (k keeping) Close() error {
	b := k.b
	if b.back != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		if err := b.back.drain(ctx); err != nil {
			b.log.Error("write-back to the source", "err", err)
		}
		cancel()
	}
	err := b.native.Close()
	b.m.Lock()
	closeSource := b.closeSource
	b.closeSource = nil
	b.m.Unlock()
	if closeSource != nil {
		if e := closeSource(); err == nil && e != nil {
			err = fmt.Errorf("closing the sources of the import: %w", e)
		}
	}
	return err
}
