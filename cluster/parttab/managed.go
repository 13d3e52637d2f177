package parttab

import (
	"errors"
	"fmt"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
)

// ErrNotOperational reports that a change would leave a partition without a
// readable cell on a running node.
var ErrNotOperational = errors.New("a partition would have no readable cell")

// ErrNotAssigned reports that a node has no cell of a partition.
var ErrNotAssigned = errors.New("partition is not assigned to the node")

// Managed is the table of the primary master, the only node that decides about
// cells. It remembers what the wire does not carry: members that have no cell
// yet, and which outdated cells may become readable.
//
// Every method that changes cells applies the changes and returns them, but
// does not number them: [Managed.Number] does, when they are broadcast.
type Managed struct {
	Table
	members map[proto.NodeID]bool
	// updatable holds the outdated cells whose node has asked, since the cell
	// became unreadable, which transactions it must still wait for. A late
	// report of an earlier replication of the same cell is thus ignored.
	updatable map[cellKey]bool
}

type cellKey struct {
	partition int
	id        proto.NodeID
}

// Reset forgets everything. The table then has np empty rows and no id, which is
// how a cluster without database presents itself.
func (m *Managed) Reset(np, replicas int) {
	*m = Managed{members: map[proto.NodeID]bool{}, updatable: map[cellKey]bool{}}
	m.replicas = replicas
	m.rows = make([][]proto.Cell, np)
}

// Load replaces the table by a stored one. Its members are the nodes with cells.
func (m *Managed) Load(ptid proto.Opt[uint64], replicas int, rows [][]proto.Cell) {
	m.Reset(0, 0)
	m.Table.Load(ptid, replicas, rows)
	for _, id := range m.Nodes() {
		m.members[id] = true
	}
}

// Check reports what is wrong with rows received from a storage: a table that
// is loaded must be sound, because the master decides with it.
func Check(rows [][]proto.Cell) error {
	if len(rows) == 0 {
		return errors.New("partition table without partitions")
	}
	for p, row := range rows {
		for i, c := range row {
			if c.ID <= 0 {
				return fmt.Errorf("partition %d has a cell on %v, which is not a storage", p, c.ID)
			}
			if c.State >= proto.Discarded {
				return fmt.Errorf("partition %d has a cell in state %v on %v", p, c.State, c.ID)
			}
			if slices.ContainsFunc(row[:i], func(o proto.Cell) bool { return o.ID == c.ID }) {
				return fmt.Errorf("partition %d has two cells on %v", p, c.ID)
			}
		}
	}
	return nil
}

// Clone returns an independent copy.
func (m *Managed) Clone() *Managed {
	c := &Managed{Table: *m.Table.Clone(), members: map[proto.NodeID]bool{}, updatable: map[cellKey]bool{}}
	for id := range m.members {
		c.members[id] = true
	}
	for k := range m.updatable {
		c.updatable[k] = true
	}
	return c
}

// Number gives the table its next version, at least floor, and returns it.
func (m *Managed) Number(floor uint64) uint64 {
	m.ptid = proto.Some(max(m.ptid.V+1, floor))
	return m.ptid.V
}

// Leap is by how much a version is greater than the one before where the history
// does not simply go on: it was cut, or goes on without what an absent storage may have.
// A storage that comes back over a leap may have what was given up meanwhile. It is
// more than the number of changes that a cluster may have seen without this one.
const Leap = 1_000_000

// OutdateCells takes readable cells out of service that the caller does not trust,
// except in partitions without a trusted one.
func (m *Managed) OutdateCells(trusted func(partition int, id proto.NodeID) bool) []proto.CellChange {
	var changes []proto.CellChange
	for p, row := range m.rows {
		if !slices.ContainsFunc(row, func(c proto.Cell) bool { return c.State.Readable() && trusted(p, c.ID) }) {
			continue
		}
		for _, c := range slices.Clone(row) {
			if c.State.Readable() && !trusted(p, c.ID) {
				m.outdate(&changes, p, c)
			}
		}
	}
	return changes
}

// outdate takes a readable cell out of service.
func (m *Managed) outdate(changes *[]proto.CellChange, partition int, c proto.Cell) {
	if c.State == proto.Feeding {
		// It was to be dropped anyway: kept, it would later be one copy too many.
		m.change(changes, partition, c.ID, proto.Discarded)
	} else {
		m.change(changes, partition, c.ID, proto.OutOfDate)
	}
}

// SetReplicas sets the number of wanted copies beside the first.
func (m *Managed) SetReplicas(n int) { m.replicas = n }

// AddMember makes a node available to [Managed.Tweak].
func (m *Managed) AddMember(id proto.NodeID) { m.members[id] = true }

// Members returns the ids of all members, sorted.
func (m *Managed) Members() []proto.NodeID {
	ids := make([]proto.NodeID, 0, len(m.members))
	for id := range m.members {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// AddCells gives a node outdated cells, as for a clone of another storage.
// Partitions that the node already has are left alone.
func (m *Managed) AddCells(id proto.NodeID, partitions []int) []proto.CellChange {
	m.AddMember(id)
	var changes []proto.CellChange
	for _, p := range partitions {
		if m.Cell(p, id) == proto.Discarded {
			m.change(&changes, p, id, proto.OutOfDate)
		}
	}
	return changes
}

// change sets a cell and records the change. It keeps the marks of the cell
// consistent: they hold only while a cell is assigned and unreadable.
func (m *Managed) change(list *[]proto.CellChange, partition int, id proto.NodeID, state proto.CellState) {
	delete(m.updatable, cellKey{partition, id})
	m.Set(partition, id, state)
	*list = append(*list, proto.CellChange{Partition: partition, ID: id, State: state})
}

// Outdate takes out of service the readable cells of nodes that do not run. A
// partition that lost its last readable cell with the node lost (0: none) keeps
// it as it is, so that the cluster can restart from it.
func (m *Managed) Outdate(lost proto.NodeID, running func(proto.NodeID) bool) []proto.CellChange {
	var changes []proto.CellChange
	for p, row := range m.rows {
		served := slices.ContainsFunc(row, func(c proto.Cell) bool { return c.State.Readable() && running(c.ID) })
		for _, c := range slices.Clone(row) {
			if !c.State.Readable() || running(c.ID) || !served && c.ID == lost {
				continue
			}
			m.outdate(&changes, p, c)
		}
	}
	return changes
}

// Suspend takes a readable cell out of service, so that it is replicated, if another
// readable cell of the partition runs. It returns no change otherwise.
func (m *Managed) Suspend(id proto.NodeID, partition int, running func(proto.NodeID) bool) []proto.CellChange {
	others := slices.ContainsFunc(m.rows[partition], func(c proto.Cell) bool { return c.ID != id && c.State.Readable() && running(c.ID) })
	if !others || m.Cell(partition, id) != proto.UpToDate {
		return nil
	}
	var changes []proto.CellChange
	m.change(&changes, partition, id, proto.OutOfDate)
	return changes
}

// SetUpdatable notes that a node has asked which transactions its outdated
// cells of these partitions must wait for: they may now become readable.
func (m *Managed) SetUpdatable(id proto.NodeID, partitions []int) {
	for _, p := range partitions {
		if m.Cell(p, id) == proto.OutOfDate {
			m.updatable[cellKey{p, id}] = true
		}
	}
}

// SetUpToDate makes an outdated cell readable after its replication. It returns
// ErrNotAssigned if the node has no such cell, and no change if the cell is not
// waiting for a replication (the report was late).
func (m *Managed) SetUpToDate(id proto.NodeID, partition int) ([]proto.CellChange, error) {
	switch {
	case partition < 0 || partition >= len(m.rows) || m.Cell(partition, id) == proto.Discarded:
		return nil, fmt.Errorf("partition %d of %v: %w", partition, id, ErrNotAssigned)
	case !m.updatable[cellKey{partition, id}]:
		return nil, nil
	}
	var changes []proto.CellChange
	m.change(&changes, partition, id, proto.UpToDate)
	return changes, nil
}

// DiscardFed discards the feeding cells of a partition that have become superfluous as
// a cell was made readable.
func (m *Managed) DiscardFed(partition int) []proto.CellChange {
	var changes []proto.CellChange
	row := m.rows[partition]
	readable := 0
	var emptied, feeding []proto.NodeID
	for _, c := range row {
		if c.State.Readable() {
			readable++
		}
		if c.State == proto.Feeding {
			if m.onlyFeeds(c.ID) {
				emptied = append(emptied, c.ID)
			} else {
				feeding = append(feeding, c.ID)
			}
		}
	}
	drop := append(emptied, feeding...)
	if readable < len(row) {
		// Other copies are still replicating: keep as many readable ones as wanted.
		drop = drop[:min(len(drop), max(0, readable-m.replicas-1))]
	}
	for _, id := range drop {
		m.change(&changes, partition, id, proto.Discarded)
	}
	return changes
}

// onlyFeeds reports whether all cells of a node are feeding: it is being emptied.
func (m *Managed) onlyFeeds(id proto.NodeID) bool {
	for _, row := range m.rows {
		for _, c := range row {
			if c.ID == id && c.State != proto.Feeding {
				return false
			}
		}
	}
	return true
}

// OnlyCopyError is an ErrNotOperational that names the partition.
type OnlyCopyError struct{ Partition int }

func (e *OnlyCopyError) Error() string {
	return fmt.Sprintf("partition %d: %v", e.Partition, ErrNotOperational)
}

// Unwrap returns ErrNotOperational.
func (e *OnlyCopyError) Unwrap() error { return ErrNotOperational }

// DropNodes removes all cells of nodes. It refuses with ErrNotOperational, and
// changes nothing, if one of them has the only readable copy of a partition. A
// feeding cell left behind is taken back. The nodes stop being members.
func (m *Managed) DropNodes(ids []proto.NodeID) ([]proto.CellChange, error) {
	var changes []proto.CellChange
	for p, row := range m.rows {
		removed, removedReadable, upToDate := false, false, false
		feeding := proto.NodeID(0)
		for _, c := range row {
			switch {
			case slices.Contains(ids, c.ID):
				changes = append(changes, proto.CellChange{Partition: p, ID: c.ID, State: proto.Discarded})
				removed = true
				removedReadable = removedReadable || c.State.Readable()
			case c.State == proto.Feeding:
				feeding = c.ID
			case c.State == proto.UpToDate:
				upToDate = true
			}
		}
		switch {
		case removed && feeding != 0:
			changes = append(changes, proto.CellChange{Partition: p, ID: feeding, State: proto.UpToDate})
		case removedReadable && !upToDate:
			return nil, &OnlyCopyError{p}
		}
	}
	var applied []proto.CellChange
	for _, c := range changes {
		m.change(&applied, c.Partition, c.ID, c.State)
	}
	for _, id := range ids {
		delete(m.members, id)
	}
	return applied, nil
}
