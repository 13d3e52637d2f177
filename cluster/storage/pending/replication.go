package pending

import (
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// Replicating says that cells of this node are not complete: writes to them are
// taken without check.
func (m *Manager) Replicating(partitions []int) {
	for _, p := range partitions {
		m.replicating[p] = true
	}
}

// Replicated says that a cell has all data up to the last transaction that began
// before this node took part in all of them. It is announced to the master, with
// t, as soon as every write in progress on it is a checked lock.
func (m *Manager) Replicated(partition int, t tid.TID) error {
	delete(m.replicating, partition)
	m.replicated[partition] = proto.Some(t)
	m.db.SetReplicated(partition)
	return m.announceReplicated()
}

// TableChanged tells the database again which partitions are complete.
func (m *Manager) TableChanged() {
	for _, p := range slices.Sorted(maps.Keys(m.replicated)) {
		m.db.SetReplicated(p)
	}
}

// Readable says that the master declared cells up to date.
func (m *Manager) Readable(partitions []int) {
	for _, p := range partitions {
		delete(m.replicating, p)
		delete(m.replicated, p)
	}
}

// announceReplicated replaces the locks taken without check by checked ones, in the
// partitions where every write in progress can have its own, and announces those where
// every one has it.
//
// Nothing that was stored is dropped here: its client was told that it is stored, and may
// vote. A readable cell may have taken what fails the check here, since replicas that keep
// different deletions differ in what the last revision of an object is. What cannot be
// checked stays as it is, and the cell is announced when that transaction is over.
func (m *Manager) announceReplicated() error {
	ready := map[int]bool{}
	for p, t := range m.replicated {
		if t.OK {
			ready[p] = true
		}
	}
	if len(ready) == 0 {
		return nil
	}
	inReady := maps.Clone(ready)
	for _, t := range m.sorted() {
		for _, oid := range t.oids() {
			p := m.partition(oid)
			if !inReady[p] || !t.ops[oid].lockless {
				continue
			}
			if ttid, ok := m.locks[oid]; ok && ttid != t.ttid {
				delete(ready, p) // several transactions write the object
			}
			m.locks[oid] = t.ttid // the youngest ends up with it, and newcomers wait
		}
	}
	for _, oid := range slices.Sorted(maps.Keys(m.locks)) {
		p := m.partition(oid)
		t := m.txns[m.locks[oid]]
		o := t.ops[oid]
		if !ready[p] || !o.lockless {
			continue
		}
		if !t.voted { // else its client voted because a readable cell has a real lock for it
			delete(m.locks, oid)
			o.lockless = false
			result, _, err := m.lock(t, o.serial, oid)
			if err != nil {
				return err
			}
			if result != locked {
				m.locks[oid], o.lockless = t.ttid, true
				delete(ready, p)
				continue
			}
		}
		o.lockless = false
	}
	for _, p := range slices.Sorted(maps.Keys(ready)) {
		m.effects = append(m.effects, Effect{Kind: NotifyMaster,
			Packet: &proto.NotifyReplicationDone{Partition: p, TID: m.replicated[p].V}})
		m.replicated[p] = proto.Opt[tid.TID]{}
	}
	return nil
}

// Discarded forgets everything about cells that this node no longer has.
func (m *Manager) Discarded(partitions []int) error {
	in := map[int]bool{}
	for _, p := range partitions {
		in[p] = true
		delete(m.replicating, p)
		delete(m.replicated, p)
	}
	gone := func(oid tid.OID) bool { return in[m.partition(oid)] }
	maps.DeleteFunc(m.locks, func(oid tid.OID, _ tid.TID) bool { return gone(oid) })
	m.mu.Lock()
	maps.DeleteFunc(m.readLocks, func(oid tid.OID, _ tid.TID) bool { return gone(oid) })
	m.mu.Unlock()
	var ids []backend.DataID
	for _, t := range m.sorted() {
		ids = append(ids, t.data(gone)...)
		maps.DeleteFunc(t.ops, func(oid tid.OID, _ *op) bool { return gone(oid) })
		if in[t.ttid.Partition(m.np)] { // its metadata are dropped below: there is nothing to lock
			t.meta, t.pack = false, false
		}
	}
	if err := m.db.DropUnfinishedPartitions(partitions); err != nil {
		return err
	}
	if err := m.release(ids); err != nil {
		return err
	}
	m.runReads()
	return m.runWrites()
}

// Incomplete reports whether a cell is being replicated, or was and is not
// declared up to date yet.
func (m *Manager) Incomplete(partition int) bool {
	_, replicated := m.replicated[partition]
	return replicated || m.replicating[partition]
}
