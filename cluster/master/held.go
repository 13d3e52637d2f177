package master

import (
	"fmt"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
)

// heldTable is what a version of the table says that a storage may have: an automatic
// start from it, by another master too, needs all these storages.
type heldTable struct {
	ptid     uint64 // the first version that does
	readable []proto.NodeID
}

// names reports whether storages are among those that the table needs.
func (t heldTable) names(ids []proto.NodeID) bool {
	return !slices.ContainsFunc(ids, func(id proto.NodeID) bool { return !slices.Contains(t.readable, id) })
}

// hold notes that the storages are sent the present table, and reports whether it names
// other storages than the one before. A table that needs more storages than a later one
// is not kept: what conflicts with the later one conflicts with it.
func (m *Machine) hold() (changed bool) {
	now, ptid := m.table.ReadableNodes(), m.table.PTID().V
	if n := len(m.held); n > 0 && slices.Equal(m.held[n-1].readable, now) {
		return false
	}
	for n := len(m.held); n > 0 && m.held[n-1].names(now); n-- {
		ptid, m.held = m.held[n-1].ptid, m.held[:n-1]
	}
	m.held = append(slices.DeleteFunc(m.held, func(t heldTable) bool { return t.names(now) }), heldTable{ptid, now})
	return true
}

// released notes that all storages have stored a version of the table, or a later one.
func (m *Machine) released(ptid uint64) {
	for len(m.held) > 1 && m.held[1].ptid <= ptid {
		m.held = m.held[1:]
	}
}

// settled reports whether all tables that the storages may have name all those that have
// readable cells now.
func (m *Machine) settled() bool {
	now := m.table.ReadableNodes()
	return !slices.ContainsFunc(m.held, func(t heldTable) bool { return !t.names(now) })
}

// covered reports whether no other master can start automatically without one of these
// storages, whatever tables the others have.
func (m *Machine) covered(has func(proto.NodeID) bool) bool {
	return !slices.ContainsFunc(m.held, func(t heldTable) bool { return !slices.ContainsFunc(t.readable, has) })
}

// serves reports whether a storage runs and has readable cells.
func (m *Machine) serves(id proto.NodeID) bool {
	return m.running(id) && slices.Contains(m.table.ReadableNodes(), id)
}

// coveredWithout is [Machine.covered] for the storages that serve, but for these.
func (m *Machine) coveredWithout(ids ...proto.NodeID) bool {
	return m.covered(func(id proto.NodeID) bool { return m.serves(id) && !slices.Contains(ids, id) })
}

// leftBehind returns storages that are away and may have a table of this process with
// which they can be started beside those that are here; nil if there are none.
func (m *Machine) leftBehind() []proto.NodeID {
	if !m.served {
		return nil
	}
	for _, t := range m.held {
		if !slices.ContainsFunc(t.readable, func(id proto.NodeID) bool {
			return m.present(id) && slices.Contains(m.table.ReadableNodes(), id)
		}) {
			return t.readable
		}
	}
	return nil
}

// otherTable says that storages that are away may have another table than those that are here.
func (m *Machine) otherTable(away []proto.NodeID) string {
	return fmt.Sprintf("newest partition table here is %d, but %s may have another one, which needs none of the storages that are here",
		m.rec.target, strings.Join(idTexts(away), ", "))
}

// discardFed discards the feeding cells that have waited until every storage knows the
// copies that replace them.
func (m *Machine) discardFed() {
	if len(m.fed) == 0 || !m.settled() {
		return
	}
	var changes []proto.CellChange
	for _, n := range m.fed {
		changes = append(changes, m.table.DiscardFed(n)...)
	}
	m.fed = nil
	m.broadcastCells(changes)
}
