// Package parttab holds the partition table: which storage node keeps which
// part of the database, and how complete each copy is.
//
// A [Table] is a value owned by one goroutine: no I/O, no clock, no locks. The
// master decides with it; the others apply the numbered changes it broadcasts.
//
// # Invariant
//
// A table is operational when every partition has a readable cell (UP_TO_DATE or
// FEEDING) on a running node. Otherwise some object could be out of reach, and
// the cluster must stop serving rather than answer for only part of the data.
package parttab

import (
	"fmt"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
)

// Table is a partition table. The zero Table is empty, without id.
type Table struct {
	ptid     proto.Opt[uint64]
	replicas int
	rows     [][]proto.Cell
}

// PTID returns the version of the table, absent before there is one.
func (t *Table) PTID() proto.Opt[uint64] { return t.ptid }

// Replicas returns the number of wanted copies beside the first.
func (t *Table) Replicas() int { return t.replicas }

// NP returns the number of partitions.
func (t *Table) NP() int { return len(t.rows) }

// Row returns the cells of a partition. They must not be changed.
func (t *Table) Row(partition int) []proto.Cell { return t.rows[partition] }

// Rows returns all rows. They must not be changed.
func (t *Table) Rows() [][]proto.Cell { return t.rows }

// Clear forgets the table.
func (t *Table) Clear() { *t = Table{} }

// Load replaces the table.
func (t *Table) Load(ptid proto.Opt[uint64], replicas int, rows [][]proto.Cell) {
	t.ptid, t.replicas = ptid, replicas
	t.rows = make([][]proto.Cell, len(rows))
	for i, row := range rows {
		t.rows[i] = slices.Clone(row)
	}
}

// Clone returns an independent copy.
func (t *Table) Clone() *Table {
	c := &Table{}
	c.Load(t.ptid, t.replicas, t.rows)
	return c
}

// Apply applies a NotifyPartitionChanges. The id must grow; strict, as storages
// need it, wants exactly the next one. On error the table is unchanged.
func (t *Table) Apply(p *proto.NotifyPartitionChanges, strict bool) error {
	if !t.ptid.OK || p.PTID <= t.ptid.V || strict && p.PTID != t.ptid.V+1 {
		return fmt.Errorf("partition table change %d does not follow %s", p.PTID, idText(t.ptid))
	}
	for _, c := range p.Cells {
		if c.Partition < 0 || c.Partition >= len(t.rows) {
			return fmt.Errorf("partition table change %d names partition %d of %d", p.PTID, c.Partition, len(t.rows))
		}
	}
	t.ptid, t.replicas = proto.Some(p.PTID), p.Replicas
	for _, c := range p.Cells {
		t.Set(c.Partition, c.ID, c.State)
	}
	return nil
}

// Set gives a cell a state, adding it if needed; Discarded removes it.
func (t *Table) Set(partition int, id proto.NodeID, state proto.CellState) {
	row := t.rows[partition]
	i := slices.IndexFunc(row, func(c proto.Cell) bool { return c.ID == id })
	switch {
	case state == proto.Discarded && i >= 0:
		t.rows[partition] = slices.Delete(slices.Clone(row), i, i+1)
	case state == proto.Discarded:
	case i >= 0:
		row[i].State = state
	default:
		t.rows[partition] = append(row, proto.Cell{ID: id, State: state})
	}
}

// Cell returns the state of a node's cell of a partition, Discarded if it has none.
func (t *Table) Cell(partition int, id proto.NodeID) proto.CellState {
	if partition < len(t.rows) {
		for _, c := range t.rows[partition] {
			if c.ID == id {
				return c.State
			}
		}
	}
	return proto.Discarded
}

// HasCells reports whether the node has a cell.
func (t *Table) HasCells(id proto.NodeID) bool {
	for _, row := range t.rows {
		for _, c := range row {
			if c.ID == id {
				return true
			}
		}
	}
	return false
}

// Filled reports whether there are partitions and each has a cell.
func (t *Table) Filled() bool {
	return len(t.rows) > 0 && !slices.ContainsFunc(t.rows, func(row []proto.Cell) bool { return len(row) == 0 })
}

// Operational reports whether every partition has a readable cell on a node for
// which running returns true.
func (t *Table) Operational(running func(proto.NodeID) bool) bool {
	for _, row := range t.rows {
		if !slices.ContainsFunc(row, func(c proto.Cell) bool { return c.State.Readable() && running(c.ID) }) {
			return false
		}
	}
	return len(t.rows) > 0
}

// ReadableNodes returns the ids of the nodes that hold a readable cell, sorted.
func (t *Table) ReadableNodes() []proto.NodeID { return t.nodes(proto.CellState.Readable) }

func idText(ptid proto.Opt[uint64]) string {
	if !ptid.OK {
		return "None"
	}
	return fmt.Sprint(ptid.V)
}

// Nodes returns the ids of all nodes with cells, sorted.
func (t *Table) Nodes() []proto.NodeID {
	return t.nodes(func(proto.CellState) bool { return true })
}

// nodes returns the ids of the nodes with a cell in a wanted state, sorted.
func (t *Table) nodes(want func(proto.CellState) bool) []proto.NodeID {
	seen := map[proto.NodeID]bool{}
	var ids []proto.NodeID
	for _, row := range t.rows {
		for _, c := range row {
			if !seen[c.ID] && want(c.State) {
				seen[c.ID] = true
				ids = append(ids, c.ID)
			}
		}
	}
	slices.Sort(ids)
	return ids
}
