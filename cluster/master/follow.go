package master

import (
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// follower is how far the readable cells follow the upstream cluster. One readable cell
// of each partition is primary: it fetches from upstream, and the others from it.
type follower struct {
	primary map[int]proto.NodeID
	spans   map[int][]span     // transactions that touch a partition, and that some readable cell lacks
	touched tid.TID            // last transaction that was handed to touch
	cells   [][]*reach         // by partition; a list, since all are looked at again and again
	moved   bool               // some cell is further than before, or is no longer read
	told    proto.Opt[tid.TID] // what clients may see, which does not go back; absent: not known yet
	teller  teller
	allowed tid.TID // greatest pack order that storages may execute
	// before is the last transaction that storages had when the cluster started: clients may
	// have been told of it. since is when it began to follow.
	before tid.TID
	since  time.Time
	// chasing are the cells that are about to become readable, and from where they copy
	// what they lack.
	chasing map[repairCell]proto.NodeID
}

// span is one transaction, or a run of transactions of which only the ends are known.
type span struct{ first, last tid.TID }

// maxSpans is how many transactions are remembered for a partition. More are joined.
const maxSpans = 1000

// reach is how far a cell is.
type reach struct {
	node        proto.NodeID
	backup      tid.TID // it has everything up to this
	replicating tid.TID // it was ordered to replicate up to this
	asked       tid.TID // the last order that it got
	free        tid.TID // after backup, nothing touches it up to here
	// incomplete is an order after which it was no further: it lacks what a pack upstream
	// has removed, until it has that pack.
	incomplete tid.TID
}

func (r *reach) ordered() tid.TID { return max(r.backup, r.replicating) }

func (f *follower) reset() {
	*f = follower{primary: map[int]proto.NodeID{}, spans: map[int][]span{}, chasing: map[repairCell]proto.NodeID{}}
}

// lost forgets what depends on the link to the upstream cluster. What is free stays free:
// later transactions come after all that was heard of.
func (f *follower) lost() {
	clear(f.primary)
	clear(f.spans)
	f.touched = tid.Zero
	for r := range f.all() {
		r.replicating, r.incomplete = tid.Zero, tid.Zero
	}
}

// all yields how far each cell is.
func (f *follower) all() iter.Seq[*reach] {
	return func(yield func(*reach) bool) {
		for _, list := range f.cells {
			for _, r := range list {
				if !yield(r) {
					return
				}
			}
		}
	}
}

func (f *follower) cell(n int, id proto.NodeID) *reach {
	for len(f.cells) <= n {
		f.cells = append(f.cells, nil)
	}
	for _, r := range f.cells[n] {
		if r.node == id {
			return r
		}
	}
	r := &reach{node: id}
	f.cells[n] = append(f.cells[n], r)
	return r
}

// changed forgets how far cells are that are not readable any more.
func (f *follower) changed(changes []proto.CellChange) {
	f.moved = true
	for _, c := range changes {
		if !c.State.Readable() {
			if c.Partition < len(f.cells) {
				f.cells[c.Partition] = slices.DeleteFunc(f.cells[c.Partition], func(r *reach) bool { return r.node == c.ID })
			}
			delete(f.chasing, repairCell{c.Partition, c.ID})
		}
	}
}

// add remembers transactions that touch a partition.
func (f *follower) add(n int, s span) {
	list := append(f.spans[n], s)
	if len(list) > maxSpans {
		i := len(list) / 2
		list[i].last = list[i+1].last
		list = slices.Delete(list, i+1, i+2)
	}
	f.spans[n] = list
}

// last returns the last transaction known to touch a partition, or prev.
func (f *follower) last(n int, prev tid.TID) tid.TID {
	if list := f.spans[n]; len(list) > 0 {
		return list[len(list)-1].last
	}
	return prev
}

// reached returns up to which transaction every partition is on its furthest readable
// cell, or on all readable cells. It looks at all cells: after an event it is called once, or
// twice while a run lasts.
func (m *Machine) reached(furthest bool) tid.TID {
	return m.reachedBy(furthest, func(r *reach) tid.TID { return r.backup })
}

// reachedBy is reached with what counts of a cell.
func (m *Machine) reachedBy(furthest bool, of func(*reach) tid.TID) tid.TID {
	result := tid.Max
	for n, row := range m.table.Rows() {
		var t tid.TID
		first := true
		for _, c := range row {
			if !c.State.Readable() {
				continue
			}
			b := of(m.follow.cell(n, c.ID))
			if first || furthest == (b > t) {
				t = b
			}
			first = false
		}
		result = min(result, t)
	}
	if m.table.NP() == 0 {
		return tid.Zero
	}
	return result
}

// readyCells returns the ready storages with a readable cell of a partition.
func (m *Machine) readyCells(n int) []*peer {
	var list []*peer
	for _, c := range m.table.Row(n) {
		if p := m.stores[c.ID]; c.State.Readable() && p != nil && p.ready > 0 {
			list = append(list, p)
		}
	}
	return list
}

// leastPrimary returns the storage that is primary of the fewest partitions.
func (f *follower) leastPrimary(list []*peer) proto.NodeID {
	count := map[proto.NodeID]int{}
	for _, id := range f.primary {
		count[id]++
	}
	return slices.MinFunc(list, func(a, b *peer) int { return count[a.node.ID] - count[b.node.ID] }).node.ID
}

// touch takes what has happened upstream from first to t, which touches some partitions, and
// follows prev. If prev is t, it is not known what precedes.
func (m *Machine) touch(first, t, prev tid.TID, touched func(int) bool) {
	f := &m.follow
	initial := prev == t
	f.moved = true
	f.touched = t
	untouched := map[*peer]map[int]proto.Address{}
	var waiting []*peer
	for n := range m.table.NP() {
		last := f.last(n, prev)
		cells := m.readyCells(n)
		if !touched(n) {
			for _, p := range cells {
				switch r := f.cell(n, p.node.ID); {
				case t <= r.backup: // it was further before the link was lost
				case last <= r.backup:
					r.backup = t
					if untouched[p] == nil {
						untouched[p] = map[int]proto.Address{}
					}
					untouched[p][n] = proto.Address{}
				case last <= r.replicating:
					r.replicating = max(r.replicating, t)
				}
			}
			continue
		}
		var candidates, behind []*peer
		for _, p := range cells {
			r := f.cell(n, p.node.ID)
			switch {
			case initial && t <= r.backup:
				candidates = append(candidates, p)
				continue
			case t <= r.backup:
				continue // it was further before the link was lost
			case !initial && last <= r.backup:
				r.backup, r.free = max(r.backup, prev), max(r.free, first-1)
			}
			behind = append(behind, p)
		}
		from := candidates
		if len(from) == 0 {
			from = cells
		}
		if id := f.primary[n]; len(from) > 0 && !slices.ContainsFunc(from, func(p *peer) bool { return p.node.ID == id }) {
			f.primary[n] = f.leastPrimary(from)
		}
		if len(behind) == 0 {
			continue
		}
		f.add(n, span{first, t})
		if len(candidates) > 0 {
			m.orderSecondaries(n, t)
			continue
		}
		for _, p := range behind {
			if !slices.Contains(waiting, p) {
				waiting = append(waiting, p)
			}
		}
	}
	for _, p := range m.ofType(proto.Storage) {
		if list := untouched[p]; list != nil {
			m.notify(p, &proto.Replicate{TID: t, Sources: list})
		}
	}
	for _, p := range waiting {
		m.trigger(p)
	}
}

// triggerAll looks at what every storage may fetch: something it waits for has changed.
func (m *Machine) triggerAll() {
	if m.state == proto.BackingUp {
		for _, p := range m.ofType(proto.Storage) {
			m.trigger(p)
		}
	}
}

// trigger orders a storage to fetch what its primary cells lack.
func (m *Machine) trigger(p *peer) {
	f := &m.follow
	if m.state != proto.BackingUp || p.ready == 0 || !m.open() {
		return
	}
	t := min(m.bound(), f.touched)
	sources := map[int]proto.Address{}
	used := map[proto.Address]bool{}
	for n := range m.table.NP() {
		if f.primary[n] != p.node.ID || !m.table.Cell(n, p.node.ID).Readable() || len(f.spans[n]) == 0 {
			continue
		}
		r := f.cell(n, p.node.ID)
		if r.ordered() >= min(f.last(n, 0), t) || t <= r.incomplete {
			continue
		}
		if a := m.upstreamCell(n, used); !a.IsZero() {
			used[a] = true
			sources[n] = a
			r.replicating, r.asked = t, t
		}
	}
	if len(sources) > 0 {
		m.notify(p, &proto.Replicate{TID: t, Upstream: m.set.Upstream.Cluster, Sources: sources})
	}
}

// upstreamCell returns the address of an upstream storage with a readable cell, of one
// that is used already if there is one.
func (m *Machine) upstreamCell(n int, used map[proto.Address]bool) proto.Address {
	var all []proto.Address
	if n >= m.up.table.NP() {
		return proto.Address{}
	}
	for _, c := range m.up.table.Row(n) {
		node := m.up.nodes.ByID(c.ID)
		if !c.State.Readable() || node == nil || node.State != proto.NodeRunning || node.Addr.IsZero() {
			continue
		}
		if used[node.Addr] {
			return node.Addr
		}
		all = append(all, node.Addr)
	}
	if all == nil {
		return proto.Address{}
	}
	return all[n%len(all)]
}

// orderSecondaries has the cells of a partition copy from its primary up to t.
func (m *Machine) orderSecondaries(n int, t tid.TID) {
	f := &m.follow
	id := f.primary[n]
	primary := m.stores[id]
	if primary == nil {
		return
	}
	for _, p := range m.readyCells(n) {
		r := f.cell(n, p.node.ID)
		if p != primary && r.ordered() < t {
			r.replicating, r.asked = t, t
			m.notify(p, &proto.Replicate{TID: t, Sources: map[int]proto.Address{n: primary.node.Addr}})
		}
	}
}

// backedUp takes how far a cell is.
func (m *Machine) backedUp(p *peer, pkt *proto.NotifyReplicationDone) {
	f, n, t := &m.follow, pkt.Partition, min(pkt.TID, tid.Max)
	if n < 0 || n >= m.table.NP() || m.table.Cell(n, p.node.ID) == proto.Discarded {
		return // a tweak or a drop has crossed the message
	}
	var changes []proto.CellChange
	outdated := !m.table.Cell(n, p.node.ID).Readable()
	delete(f.chasing, repairCell{n, p.node.ID})
	f.moved = true
	if outdated && t < f.told.V {
		m.chase(n, p)
		return
	}
	if outdated {
		changes, _ = m.table.SetUpToDate(p.node.ID, n)
		if len(changes) == 0 {
			return
		}
	}
	r := f.cell(n, p.node.ID)
	if !outdated && t <= r.backup && len(f.spans[n]) > 0 && m.state == proto.BackingUp {
		r.replicating, r.incomplete = tid.Zero, r.asked
		m.trigger(p)
		return
	}
	if list := f.spans[n]; len(list) > 0 {
		i := slices.IndexFunc(list, func(s span) bool { return s.last > t })
		switch {
		case t < list[0].first:
			r.replicating = t
		case i < 0 && m.state == proto.BackingUp:
			t = max(t, m.upToHold(f.touched))
			m.notify(p, &proto.Replicate{TID: t, Sources: map[int]proto.Address{n: {}}})
		case i >= 0 && list[i].first > t:
			t = list[i].first - 1
		}
	}
	r.backup = max(r.backup, m.upToHold(t))
	m.prune(n)
	primary := f.primary[n]
	if outdated {
		if m.settled() {
			changes = append(changes, m.table.DiscardFed(n)...)
		} else {
			m.fed = append(m.fed, n)
		}
		m.broadcastCells(changes)
		if primary != 0 && primary != p.node.ID {
			m.orderSecondaries(n, f.cell(n, primary).backup)
		}
		return
	}
	m.trigger(p)
	if primary == p.node.ID {
		m.orderSecondaries(n, r.backup)
	}
}

// prune forgets the transactions that all readable cells of a partition have.
func (m *Machine) prune(n int) {
	all := tid.Max
	for _, c := range m.table.Row(n) {
		if c.State.Readable() {
			all = min(all, m.follow.cell(n, c.ID).backup)
		}
	}
	m.follow.spans[n] = slices.DeleteFunc(m.follow.spans[n], func(s span) bool { return s.last <= all })
}

// chooseLeader makes the furthest readable cell of a partition primary, and has the
// others copy from it.
func (m *Machine) chooseLeader(n int) {
	f := &m.follow
	best := m.furthest(n)
	if best == nil {
		delete(f.primary, n)
		return
	}
	f.primary[n] = best.node.ID
	for _, p := range m.readyCells(n) {
		r := f.cell(n, p.node.ID)
		r.replicating, r.incomplete = tid.Zero, tid.Zero
	}
	m.orderSecondaries(n, f.cell(n, best.node.ID).backup)
}

// followerLost gives the partitions of which a storage was primary to others, and has the
// cells that copied from it copy from another one, also while there is no link upstream.
func (m *Machine) followerLost(id proto.NodeID) {
	for _, k := range slices.SortedFunc(maps.Keys(m.follow.chasing), repairCell.compare) {
		switch p := m.stores[k.id]; {
		case k.id == id || p == nil:
			delete(m.follow.chasing, k)
		case m.follow.chasing[k] == id:
			m.chase(k.partition, p)
		}
	}
	m.follow.moved = true
	if m.state != proto.BackingUp && m.state != proto.StoppingBackup {
		return
	}
	for n := range m.table.NP() {
		if m.follow.primary[n] == id {
			m.chooseLeader(n)
		}
		m.prune(n)
	}
	if m.state == proto.StoppingBackup {
		m.lowerKept()
	}
	m.triggerAll()
}
