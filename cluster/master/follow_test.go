package master

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// followWorld is an upstream cluster and the storages of a backup cluster, as the backup
// master sees them. It knows what each cell really has.
type followWorld struct {
	t       *testing.T
	rng     *rand.Rand
	m       *Machine
	np      int
	changes []followChange     // of the upstream cluster
	has     map[[2]int]tid.TID // what a cell is complete to, by partition and node
	orders  []followOrder
}

type followChange struct {
	tid        tid.TID
	partitions []int
}

type followOrder struct {
	to    proto.NodeID
	order *proto.Replicate
}

func newFollowWorld(t *testing.T, seed uint64) *followWorld {
	w := &followWorld{t: t, rng: rand.New(rand.NewPCG(seed, 1)), has: map[[2]int]tid.TID{}}
	w.np = 1 + w.rng.IntN(4)
	nodes, copies := 1+w.rng.IntN(3), 1
	if nodes > 1 {
		copies = 1 + w.rng.IntN(nodes)
	}
	w.m = NewMachine(time.Unix(1e9, 0), Settings{Cluster: "down", Partitions: w.np, Upstream: Upstream{Cluster: "up"}})
	m := w.m
	rows := make([][]proto.Cell, w.np)
	for p := range rows {
		for i := range copies {
			rows[p] = append(rows[p], proto.Cell{ID: proto.NodeID(1 + (p+i)%nodes), State: proto.UpToDate})
		}
	}
	m.table.Load(proto.Some(uint64(1)), copies-1, rows)
	upRows := make([][]proto.Cell, w.np)
	for p := range upRows {
		upRows[p] = []proto.Cell{{ID: 1, State: proto.UpToDate}, {ID: 2, State: proto.UpToDate}}
	}
	m.up.table.Load(proto.Some(uint64(1)), 1, upRows)
	for i := range 2 {
		m.up.nodes.Put(proto.Node{Type: proto.Storage, ID: proto.NodeID(1 + i), Addr: proto.Address{Host: "up", Port: uint16(1 + i)}, State: proto.NodeRunning})
	}
	for i := range nodes {
		w.storage(proto.NodeID(1 + i))
	}
	m.state, m.up.known = proto.BackingUp, true
	m.follow.reset()
	return w
}

// storage lets a storage of the backup cluster be ready.
func (w *followWorld) storage(id proto.NodeID) {
	m := w.m
	n := m.nodes.Put(proto.Node{Type: proto.Storage, ID: id, Addr: proto.Address{Host: "down", Port: uint16(id)}, State: proto.NodeRunning})
	p := &peer{conn: ConnID(id), role: member, node: n, ready: uint64(id)}
	m.peers[p.conn], m.links[n], m.stores[id] = p, p, p
	m.members = append(m.members, p)
}

// take collects the orders that the master has given.
func (w *followWorld) take() {
	for _, e := range w.m.out {
		if r, ok := e.Packet.(*proto.Replicate); ok && e.Op == Notify {
			w.orders = append(w.orders, followOrder{proto.NodeID(e.Conn), r})
		}
	}
	w.m.out = w.m.out[:0]
}

func (w *followWorld) touch(t tid.TID, partitions []int, first bool) {
	prev := w.m.ids.committed
	if first {
		prev = t
	}
	w.m.ids.committed = t
	w.m.touch(t, t, prev, func(p int) bool { return slices.Contains(partitions, p) })
	w.take()
}

// last is the last transaction upstream.
func (w *followWorld) last() tid.TID {
	if len(w.changes) == 0 {
		return tid.Zero
	}
	return w.changes[len(w.changes)-1].tid
}

// lacks reports whether upstream has changed a partition in (after, upTo].
func (w *followWorld) lacks(p int, after, upTo tid.TID) bool {
	return slices.ContainsFunc(w.changes, func(c followChange) bool {
		return c.tid > after && c.tid <= upTo && slices.Contains(c.partitions, p)
	})
}

func (w *followWorld) commit(tell bool) {
	c := followChange{tid: w.last() + 1 + tid.TID(w.rng.IntN(5))}
	c.partitions = []int{c.tid.Partition(w.np)}
	if p := w.rng.IntN(w.np); p != c.partitions[0] {
		c.partitions = append(c.partitions, p)
	}
	w.changes = append(w.changes, c)
	if tell {
		w.touch(c.tid, c.partitions, false)
		w.check()
	}
}

func (w *followWorld) all() (list []int) {
	for p := range w.np {
		list = append(list, p)
	}
	return list
}

// carryOut lets a storage do what it was ordered.
func (w *followWorld) carryOut(i int) {
	o := w.orders[i]
	w.orders = slices.Delete(w.orders, i, i+1)
	for p := range w.np {
		source, ok := o.order.Sources[p]
		if !ok {
			continue
		}
		cell := [2]int{p, int(o.to)}
		switch {
		case source.IsZero():
			// It may be overtaken: the storage goes on from where it is.
			if later := slices.ContainsFunc(w.orders, func(q followOrder) bool { s, ok := q.order.Sources[p]; return ok && q.to == o.to && !s.IsZero() }); later {
				continue
			}
			if w.lacks(p, w.has[cell], o.order.TID) {
				w.t.Fatalf("%v was told that partition %d has nothing new up to %d, but it has only %d of %v", o.to, p, o.order.TID, w.has[cell], w.changes)
			}
			w.has[cell] = max(w.has[cell], o.order.TID)
			continue
		case o.order.Upstream == "":
			from := proto.NodeID(source.Port)
			if has := w.has[[2]int{p, int(from)}]; has < o.order.TID && w.lacks(p, has, o.order.TID) {
				w.t.Fatalf("%v was told to copy partition %d up to %d from %v, which has it up to %d", o.to, p, o.order.TID, from, has)
			}
		}
		if w.has[cell] < o.order.TID {
			w.has[cell] = o.order.TID
		}
		w.m.backedUp(w.m.stores[o.to], &proto.NotifyReplicationDone{Partition: p, TID: o.order.TID})
		w.take()
		w.check()
	}
}

// check checks that no cell is said to have what it lacks.
func (w *followWorld) check() {
	for p := range w.np {
		for _, c := range w.m.table.Row(p) {
			id := c.ID
			r := w.m.follow.cell(p, id)
			if b := max(r.backup, r.free); w.lacks(p, w.has[[2]int{p, int(id)}], b) {
				w.t.Fatalf("partition %d of %v counts as complete up to %d, but is so up to %d: %v", p, id, b, w.has[[2]int{p, int(id)}], w.changes)
			}
		}
	}
}

// Whatever upstream commits, and whatever storages are lost, no cell counts as further
// than it is, and at the end all have everything.
func TestFollowerNeverSaysTooMuch(t *testing.T) {
	for seed := range uint64(3000) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newFollowWorld(t, seed)
			for range w.rng.IntN(5) {
				w.commit(false)
			}
			w.touch(w.last(), w.all(), true)
			w.check()
			for range 200 {
				switch n := w.rng.IntN(101); {
				case n < 40:
					w.commit(true)
				case n == 100:
					// The upstream cluster is lost, commits, and is there again.
					shown := w.m.lateFrom()
					w.m.follow.lost()
					if at := w.m.lateFrom(); at < shown {
						t.Errorf("the backup is shown at %d and at %d once its upstream cluster is lost", shown, at)
					}
					w.commit(false)
					w.touch(w.last(), w.all(), true)
					w.check()
				case len(w.orders) > 0:
					// Each storage carries out its orders in order.
					i := w.rng.IntN(len(w.orders))
					w.carryOut(slices.IndexFunc(w.orders, func(o followOrder) bool { return o.to == w.orders[i].to }))
				}
			}
			for n := 0; len(w.orders) > 0; n++ {
				if n > 10000 {
					t.Fatalf("no end of orders: %+v", w.orders)
				}
				w.carryOut(0)
			}
			if kept, readable, last := w.m.reached(true), w.m.reached(false), w.last(); kept != last || readable != last {
				t.Errorf("kept %d, readable %d, upstream %d", kept, readable, last)
			}
			for p := range w.np {
				if n := len(w.m.follow.spans[p]); n > 0 {
					t.Errorf("%d transactions still wait in partition %d", n, p)
				}
			}
		})
	}
}

// Many transactions that wait are not remembered one by one.
func TestFollowerIsBounded(t *testing.T) {
	w := newFollowWorld(t, 1)
	w.touch(tid.Zero, w.all(), true)
	for range 20 * maxSpans {
		w.commit(true)
	}
	for p := range w.np {
		if n := len(w.m.follow.spans[p]); n > maxSpans {
			t.Errorf("partition %d: %d transactions wait", p, n)
		}
	}
}

// The cells that copied from a lost storage are ordered to copy from another one in the order of
// their partitions, in each run.
func TestChasingGoesOnInOrder(t *testing.T) {
	for range 10 {
		w := &followWorld{t: t, np: 12}
		m := NewMachine(time.Unix(1e9, 0), Settings{Cluster: "down", Partitions: w.np, Upstream: Upstream{Cluster: "up"}})
		w.m = m
		rows := make([][]proto.Cell, w.np)
		for p := range rows {
			rows[p] = []proto.Cell{{ID: 1, State: proto.OutOfDate}, {ID: 2, State: proto.OutOfDate}, {ID: 3, State: proto.UpToDate}}
		}
		m.table.Load(proto.Some(uint64(1)), 2, rows)
		m.state = proto.StartingBackup
		m.follow.reset()
		for id := range proto.NodeID(3) {
			w.storage(id + 1)
		}
		for p := range rows {
			m.follow.chasing[repairCell{p, 2 - proto.NodeID(p%2)}] = 4
		}
		m.followerLost(4)
		w.take()
		var list []int
		for _, o := range w.orders {
			for p := range o.order.Sources {
				list = append(list, p)
			}
		}
		if len(list) != w.np || !slices.IsSorted(list) {
			t.Fatalf("ordered for the partitions %v", list)
		}
	}
}

// BenchmarkFollow is what the master of a backup does for one transaction of the upstream cluster, in a
// table of 1,000 partitions with two copies: it tells the storages, and hears of both copies.
func BenchmarkFollow(b *testing.B) {
	const np, nodes = 1000, 4
	m := NewMachine(time.Unix(1e9, 0), Settings{Cluster: "down", Partitions: np, Upstream: Upstream{Cluster: "up"}})
	w := &followWorld{m: m, np: np}
	rows, upRows := make([][]proto.Cell, np), make([][]proto.Cell, np)
	for p := range rows {
		for i := range 2 {
			rows[p] = append(rows[p], proto.Cell{ID: proto.NodeID(1 + (p+i)%nodes), State: proto.UpToDate})
		}
		upRows[p] = []proto.Cell{{ID: 1, State: proto.UpToDate}}
	}
	m.table.Load(proto.Some(uint64(1)), 1, rows)
	m.up.table.Load(proto.Some(uint64(1)), 0, upRows)
	m.up.nodes.Put(proto.Node{Type: proto.Storage, ID: 1, Addr: proto.Address{Host: "up", Port: 1}, State: proto.NodeRunning})
	for id := range proto.NodeID(nodes) {
		w.storage(id + 1)
	}
	m.up.link = &peer{conn: 100, role: upstreamMaster}
	m.peers[100] = m.up.link
	m.state, m.up.known, m.gate.decided = proto.BackingUp, true, true
	m.follow.reset()
	now := time.Unix(1e9, 0)
	step := func(conn ConnID, pkt proto.Packet) (list []followOrder) {
		now = now.Add(time.Millisecond)
		for _, e := range m.Step(now, Event{Kind: Received, Conn: conn, Packet: pkt}) {
			if r, ok := e.Packet.(*proto.Replicate); ok && len(r.Sources) == 1 {
				list = append(list, followOrder{proto.NodeID(e.Conn), r})
			}
		}
		return list
	}
	m.touch(0, 0, 0, func(int) bool { return true })
	m.out = nil
	t := tid.TID(0)
	for b.Loop() {
		t++
		for orders := step(100, &proto.InvalidatePartitions{TID: t}); len(orders) > 0; orders = orders[1:] {
			for p, source := range orders[0].order.Sources {
				if !source.IsZero() {
					orders = append(orders, step(ConnID(orders[0].to), &proto.NotifyReplicationDone{Partition: p, TID: orders[0].order.TID})...)
				}
			}
		}
		if m.follow.told.V != t {
			b.Fatalf("clients are told of %d, not %d", m.follow.told.V, t)
		}
	}
}
