package backendtest

import (
	"fmt"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// order commits a transaction that carries a pack order.
func (e *env) order(ttid, final tid.TID, approve bool, pack proto.PackRequest) {
	e.Helper()
	stores, meta := e.hold(ttid)
	e.ok(e.b.Vote(ttid, stores, meta, &pack))
	e.ok(e.b.Commit())
	e.ok(e.b.Lock(ttid, final, approve))
	e.ok(e.b.Commit())
	e.ok(e.b.Unlock(ttid, final, true, false, true))
}

func (e *env) orders(min tid.TID, want ...proto.PackOrder) {
	e.Helper()
	got, err := e.b.PackOrders(min)
	e.ok(err)
	e.equal("PackOrders", got, want)
}

func testPackOrders(e *env) {
	e.table()
	e.order(4, 8, true, proto.PackRequest{Time: 3})
	e.order(12, 12, false, proto.PackRequest{Time: 10, OIDs: []tid.OID{1, 7}})
	e.order(17, 21, false, proto.PackRequest{Time: 15})
	all := []proto.PackOrder{
		{ID: 8, Approved: proto.Some(true), Time: 3},
		{ID: 12, Partial: true, OIDs: []tid.OID{1, 7}, Time: 10},
		{ID: 21, Time: 15},
	}
	e.orders(0, all...)
	e.reopen()
	e.orders(0, all...)
	e.orders(9, all[1:]...)
	missing, changed, err := e.b.SignPackOrders([]tid.TID{8, 12, 77}, []tid.TID{21, 78})
	e.ok(err)
	e.equal("missing", missing, []tid.TID{78, 77})
	e.equal("changed", changed, true)
	all[1].Approved, all[2].Approved = proto.Some(true), proto.Some(false)
	e.orders(0, all...)
	_, changed, err = e.b.SignPackOrders([]tid.TID{8}, nil)
	e.ok(err)
	e.equal("changed", changed, false)
	e.ok(e.b.Commit())
	e.crash()
	e.orders(0, all...)
	e.change(1, me, proto.OutOfDate)
	e.orders(0, all[:2]...) // 21 is of partition 1
	_, pack, err := e.b.FetchTransaction(e.Context(), 12)
	e.ok(err)
	e.equal("replicated order", pack, &proto.PackState{Approved: proto.Some(true), Partial: true, OIDs: []tid.OID{1, 7}, Time: 10})
}

// A pack order goes with its transaction: left behind, it would be reported as
// unsigned after a restart, and keep later orders from being approved.
func testPackOrderOfAborted(e *env) {
	e.table()
	end := map[string]func(ttid tid.TID){
		"Abort":          func(ttid tid.TID) { e.ok(e.b.Abort(ttid)) },
		"DropUnfinished": func(tid.TID) { e.ok(e.b.DropUnfinished()) },
		"DropUnfinishedPartitions": func(ttid tid.TID) {
			e.ok(e.b.DropUnfinishedPartitions([]int{ttid.Partition(np)}))
		},
	}
	for name, f := range end {
		for _, flushed := range []bool{false, true} {
			ttid := e.next(0)
			stores, meta := e.hold(ttid)
			e.ok(e.b.Vote(ttid, stores, meta, &proto.PackRequest{Time: 1}))
			if flushed {
				e.ok(e.b.Commit())
			}
			e.orders(0) // not of a finished transaction
			f(ttid)
			e.ok(e.b.Commit())
			e.reopen()
			// A transaction with the same id would bring the order back to light.
			e.ok(e.b.AddTransaction(ttid, *meta, nil))
			orders, err := e.b.PackOrders(0)
			e.ok(err)
			if len(orders) > 0 {
				e.Errorf("%s (flushed: %v) left %v", name, flushed, orders)
			}
			e.ok(e.b.DeleteTransaction(ttid))
		}
	}
}

func (e *env) packedUpTo(oid tid.OID, want tid.TID) {
	e.Helper()
	got, err := e.b.PackedUpTo(oid)
	e.ok(err)
	e.equal("PackedUpTo", got, want)
}

func testPack(e *env) {
	e.table()
	e.commit(4, 4, change{oid: 1, text: "a4"}, change{oid: 5, text: "b4"}, change{oid: 9, text: "c4"}, change{oid: 2, text: "d4"})
	e.commit(8, 8, change{oid: 1, text: "a8"}, change{oid: 5, text: "-"}, change{oid: 13, text: "e8"})
	e.commit(12, 12, change{oid: 1, text: "a12"}, change{oid: 9, text: "c12"}, change{oid: 2, text: "d12"}, change{oid: 13, text: "-"})
	e.ok(e.b.Commit())
	e.packedUpTo(1, 0)
	// Slice by slice, one object each.
	var after proto.Opt[tid.OID]
	deleted, slices := 0, 0
	for {
		last, n, err := e.b.Pack(1, 10, nil, tid.Max, after, 1)
		e.ok(err)
		deleted += n
		if slices++; slices > 10 {
			e.Fatal("a pack does not end")
		}
		if !last.OK {
			break
		}
		if after.OK && last.V <= after.V {
			e.Fatalf("a pack does not advance: %v after %v", last.V, after.V)
		}
		after = last
	}
	e.equal("deleted", deleted, 3) // a4, b4 and its deletion
	e.ok(e.b.Commit())
	for range 2 {
		e.packedUpTo(1, 10)
		e.loads(1, query{}, "12 a12")
		e.loads(1, query{before: 12}, "8<12 a8")
		e.loads(1, query{before: 8}, "not found")
		e.loads(5, query{}, "no such object")
		e.loads(9, query{before: 12}, "4<12 c4")
		e.loads(13, query{before: 12}, "8<12 e8")
		e.loads(2, query{before: 12}, "4<12 d4") // another partition
		e.equal("orphans", e.orphans(), 0)
		m, err := e.b.Transaction(e.Context(), 4) // metadata stay
		e.ok(err)
		e.equal("oids", m.OIDs, []tid.OID{1, 5, 9, 2})
		e.reopen()
	}
	// Again: nothing left to do.
	last, n, err := e.b.Pack(1, 10, nil, tid.Max, proto.Opt[tid.OID]{}, 100)
	e.ok(err)
	e.equal("Pack", fmt.Sprint(last, n), fmt.Sprint(proto.Opt[tid.OID]{}, 0))
}

// A pack keeps the deletions that another replica may not know, until it is told that all
// replicas know them.
func testPackKeepsDeletions(e *env) {
	e.table()
	e.commit(4, 4, change{oid: 1, text: "a4"}, change{oid: 5, text: "b4"}, change{oid: 9, text: "c4"}, change{oid: 2, text: "d4"})
	e.commit(8, 8, change{oid: 1, text: "-"}, change{oid: 9, text: "c8"})
	e.commit(12, 12, change{oid: 5, text: "-"}, change{oid: 9, text: "-"}, change{oid: 2, text: "-"})
	e.commit(16, 16, change{oid: 9, text: "c16"})
	e.ok(e.b.Commit())
	kept := func(want map[int]tid.TID) {
		e.Helper()
		got, err := e.b.KeptDeletions()
		e.ok(err)
		if len(got)+len(want) > 0 {
			e.equal("KeptDeletions", got, want)
		}
	}
	before := func(oid tid.OID, t tid.TID, want string) {
		e.Helper()
		got, deleted, err := e.b.RecordBefore(e.Context(), oid, t)
		e.ok(err)
		e.equal(fmt.Sprint("RecordBefore ", oid, t), fmt.Sprint(uint64(got), deleted), want)
	}
	before(9, tid.Max, "16 false")
	before(9, 16, "12 true")
	before(9, 12, "8 false")
	before(9, 4, "0 false")
	before(77, tid.Max, "0 false")
	kept(nil)
	pack := func(p int, oids ...tid.OID) (deleted int) {
		e.Helper()
		var after proto.Opt[tid.OID]
		for {
			last, n, err := e.b.Pack(p, 13, oids, 8, after, 1)
			e.ok(err)
			deleted += n
			if after = last; !last.OK {
				return deleted
			}
		}
	}
	// The deletion at 8 goes, those after it stay, without what they have deleted.
	e.equal("deleted", pack(1), 5) // a4, its deletion, b4, c4, c8
	e.equal("deleted", pack(2, 2), 1)
	e.equal("deleted again", pack(1), 0)
	e.ok(e.b.Commit())
	for range 2 {
		kept(map[int]tid.TID{1: 13, 2: 13})
		before(1, tid.Max, "0 false")
		before(5, tid.Max, "12 true")
		before(9, 16, "12 true")
		before(9, 12, "0 false")
		e.loads(1, query{}, "no such object")
		e.loads(5, query{before: 12}, "not found")
		e.loads(9, query{before: 16}, "12<16 absent")
		e.loads(2, query{}, "12 absent")
		e.loads(9, query{}, "16 c16")
		e.equal("orphans", e.orphans(), 0)
		e.reopen()
	}
	drop := func(p int) (deleted int) {
		e.Helper()
		var after proto.Opt[tid.OID]
		for {
			last, n, err := e.b.DropDeletions(p, after, 1)
			e.ok(err)
			deleted += n
			if after = last; !last.OK {
				return deleted
			}
		}
	}
	e.equal("dropped", drop(1), 2)
	e.ok(e.b.Commit())
	for range 2 {
		kept(map[int]tid.TID{2: 13})
		before(5, tid.Max, "0 false")
		e.loads(5, query{}, "no such object")
		e.loads(9, query{}, "16 c16")
		e.loads(9, query{before: 16}, "not found")
		e.loads(2, query{}, "12 absent")
		e.reopen()
	}
	e.equal("dropped where nothing is kept", drop(3), 0)
	e.ok(e.b.NoteKept(3, 9))
	e.ok(e.b.NoteKept(3, 8))
	kept(map[int]tid.TID{2: 13, 3: 9})
	e.equal("dropped where there is nothing", drop(3), 0)
	// What was kept also goes if the time was raised by a pack of other objects.
	e.commit(18, 18, change{oid: 6, text: "f18"})
	e.commit(19, 19, change{oid: 6, text: "-"})
	for _, t := range []tid.TID{19, 22} {
		if t == 22 {
			e.commit(20, 20, change{oid: 6, text: "f20"})
			e.commit(21, 21, change{oid: 10, text: "g21"})
			e.commit(22, 22, change{oid: 10, text: "-"})
		}
		_, _, err := e.b.Pack(2, t, []tid.OID{6, 10}[t/20:][:1], 0, proto.Opt[tid.OID]{}, 10)
		e.ok(err)
	}
	e.equal("dropped", drop(2), 3)
	e.ok(e.b.Commit())
	before(6, tid.Max, "20 false")
	before(6, 20, "0 false")
	// A deletion that stands after something else is history.
	e.commit(23, 23, change{oid: 13, text: "e23"})
	e.commit(24, 24, change{oid: 13, text: "-"}, change{oid: 17, text: "-"})
	e.ok(e.b.Commit())
	last, n, err := e.b.Pack(1, 24, []tid.OID{17}, 0, proto.Opt[tid.OID]{}, 10)
	e.ok(err)
	e.equal("Pack", fmt.Sprint(last.OK, n), "false 0")
	kept(map[int]tid.TID{1: 24})
	e.ok(e.b.Commit())
	for i := range 2 {
		last, n, err = e.b.DropDeletions(1, proto.Opt[tid.OID]{}, 1000)
		e.ok(err)
		e.equal("DropDeletions", fmt.Sprint(last.OK, n), "false 1")
		if i == 0 { // what was not committed is not forgotten
			e.crash()
			kept(map[int]tid.TID{1: 24})
			before(17, tid.Max, "24 true")
		}
	}
	e.ok(e.b.Commit())
	kept(nil)
	before(13, tid.Max, "24 true")
	before(17, tid.Max, "0 false")
}

// What others have packed stays so when this program packs, too: before it, after it
// with the same database, or on the node that a cell is replicated from.
func testPackedByOthers(e *env) {
	e.table()
	pack := func(t tid.TID, order tid.TID) {
		e.Helper()
		for p := range np {
			_, _, err := e.b.Pack(p, t, nil, tid.Max, proto.Opt[tid.OID]{}, 10)
			e.ok(err)
			e.ok(e.b.SetPacked(p, order))
		}
		e.ok(e.b.Commit())
	}
	// A cell that comes to this node when others have executed orders up to 20.
	arrive := func(p int, order tid.TID) {
		e.Helper()
		cfg, err := e.b.Config()
		e.ok(err)
		e.change(p, me, proto.Discarded)
		e.ok(e.b.ChangePartitionTable(cfg.PTID.V+2, 1, []proto.CellChange{{Partition: p, ID: me, State: proto.OutOfDate}}, false, order))
		e.change(p, me, proto.UpToDate)
	}
	arrive(1, 20)
	e.packedUpTo(1, 20)
	e.packedUpTo(2, 0)
	pack(8, 24) // further back than the order of the others
	for range 2 {
		e.packedUpTo(1, 20)
		e.reopen()
	}
	arrive(1, 40)
	e.packedUpTo(1, 40)
	e.packedUpTo(2, 20)
	pack(32, 44)
	e.packedUpTo(1, 40)
	pack(48, 52)
	e.packedUpTo(1, 48)
	// This node was away while others executed the order 60.
	e.ok(e.b.LowerPacked(1, 60))
	e.packedUpTo(1, 60)
	e.ok(e.b.LowerPacked(1, 44))
	e.packedUpTo(1, 60)
}

// A partial pack whose list names nothing of a partition is done there.
func testPackListed(e *env) {
	e.table()
	for _, t := range []tid.TID{4, 8, 12} {
		e.commit(t, t, change{oid: 1, text: "a"}, change{oid: 5, text: "b"}, change{oid: 9, text: "c"})
	}
	for _, oids := range [][]tid.OID{{}, {2, 3}, {77}} {
		last, n, err := e.b.Pack(1, 12, oids, tid.Max, proto.Opt[tid.OID]{}, 10)
		e.ok(err)
		if last.OK || n != 0 {
			e.Errorf("pack of %v: %v, %d deleted", oids, last, n)
		}
	}
	var after proto.Opt[tid.OID]
	deleted := 0
	for i := 0; ; i++ {
		last, n, err := e.b.Pack(1, 12, []tid.OID{9, 2, 1, 21}, tid.Max, after, 1)
		e.ok(err)
		deleted += n
		if !last.OK {
			break
		}
		if after = last; i > 10 {
			e.Fatal("a pack does not end")
		}
	}
	e.equal("deleted", deleted, 4)
	e.ok(e.b.Commit())
	e.loads(1, query{before: 12}, "not found")
	e.loads(5, query{before: 12}, "8<12 b")
	e.loads(9, query{}, "12 c")
	e.equal("orphans", e.orphans(), 0)
}

func testDropPartition(e *env) {
	e.table()
	e.commit(4, 4, change{oid: 1, text: "a"}, change{oid: 2, text: "b"}, change{oid: 5, text: "c"})
	e.commit(9, 9, change{oid: 1, text: "d"})
	e.order(13, 13, true, proto.PackRequest{Time: 3})
	e.ok(e.b.Commit())
	done, err := e.b.DropPartition(1, 10)
	e.ok(err)
	e.equal("DropPartition of an assigned one", done, true)
	e.loads(1, query{}, "9 d")
	e.change(1, me, proto.Discarded)
	rows := func() int {
		e.ok(e.b.Commit())
		records, err := e.b.RecordsFrom(e.Context(), 1, 0, tid.Max, 0, 100)
		e.ok(err)
		transactions, err := e.b.TIDsFrom(e.Context(), 1, 0, tid.Max, 100)
		e.ok(err)
		return len(records) + len(transactions)
	}
	for i := 0; ; i++ {
		before := rows()
		done, err := e.b.DropPartition(1, 1)
		e.ok(err)
		if n := rows(); n < before-1 || done && n > 0 {
			e.Errorf("%d of %d records and transactions are left after a slice, done: %v", n, before, done)
		}
		if done {
			break
		}
		if i > 10 {
			e.Fatal("dropping does not end")
		}
	}
	drop, err := e.b.UnassignedPartitions()
	e.ok(err)
	e.equal("UnassignedPartitions", drop, []int{})
	e.ok(e.b.Commit())
	e.equal("orphans", e.orphans(), 0)
	e.change(1, me, proto.UpToDate)
	e.reopen()
	e.loads(1, query{}, "no such object")
	e.loads(2, query{}, "4 b")
	_, err = e.b.Transaction(e.Context(), 9)
	e.is(err, backend.ErrNotFound)
	_, err = e.b.Transaction(e.Context(), 4)
	e.ok(err)
	e.orders(0)
}

func testOrphans(e *env) {
	e.table()
	held, _ := e.hold(4, change{oid: 1, text: "held"})
	e.commit(8, 8, change{oid: 2, text: "used"})
	stores, _ := e.hold(12, change{oid: 5, text: "orphan"}, change{oid: 6, text: "another"})
	lost := []backend.DataID{stores[0].Data, stores[1].Data}
	e.ok(e.b.Commit())
	e.ok(e.b.ReleaseData(lost, false)) // as a crash leaves them
	var found []backend.DataID
	for id, err := range e.b.Orphans(e.Context()) {
		e.ok(err)
		found = append(found, id)
	}
	e.equal("Orphans", found, lost)
	n, err := e.b.PruneData(append(found, held[0].Data))
	e.ok(err)
	e.equal("pruned", n, 2)
	e.gone(lost[0])
	e.kept(held[0].Data, "held")
	e.loads(2, query{}, "8 used")
	e.equal("orphans", e.orphans(), 0)
}
