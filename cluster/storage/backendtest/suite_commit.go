package backendtest

import (
	"fmt"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

func testRevisions(e *env) {
	e.table()
	e.commit(5, 6, change{oid: 1, text: "a"}, change{oid: 2, text: "b"}) // ttid in 1: metadata follows the ttid
	e.commit(12, 12, change{oid: 1, text: "aa"})
	e.commit(20, 20, change{oid: 1, text: ""}) // a record of no bytes is a record
	for _, when := range []func(){func() {}, func() { e.ok(e.b.Commit()) }, e.reopen} {
		when()
		e.loads(1, query{}, "20 ")
		e.loads(1, query{before: tid.Max}, "20 ")
		e.loads(1, query{before: 20}, "12<20 aa")
		e.loads(1, query{before: 13}, "12<20 aa")
		e.loads(1, query{before: 12}, "6<12 a")
		e.loads(1, query{before: 7}, "6<12 a")
		e.loads(1, query{before: 6}, "not found")
		e.loads(1, query{at: 6}, "6<12 a")
		e.loads(1, query{at: 12}, "12<20 aa")
		e.loads(1, query{at: 13}, "not found")
		e.loads(2, query{}, "6 b")
		e.loads(3, query{}, "no such object")
		e.loads(3, query{before: 5}, "no such object")
		e.loads(3, query{at: 5}, "no such object")
		for oid, want := range map[tid.OID]proto.Opt[tid.TID]{1: proto.Some(tid.TID(20)), 2: proto.Some(tid.TID(6)), 3: none} {
			got, err := e.lastObject(oid)
			e.ok(err)
			e.equal("LastObjectTID", got, want)
		}
	}
}

// Reads see what was written whether it was committed or not, in any mixture.
func testRevisionsNotCommitted(e *env) {
	e.table()
	for mask := range 1 << 4 {
		oid := tid.OID(mask*np + 1)
		var ts []tid.TID
		for i := range 4 {
			t := e.next(i)
			ts = append(ts, t)
			e.commit(t, t, change{oid: oid, text: fmt.Sprint("r", i)})
			if mask>>i&1 == 1 {
				e.ok(e.b.Commit())
			}
		}
		for i, t := range ts {
			want := fmt.Sprintf("%d r%d", t, i)
			if i < 3 {
				want = fmt.Sprintf("%d<%d r%d", t, ts[i+1], i)
			}
			e.loads(oid, query{at: t}, want)
			e.loads(oid, query{before: t + 1}, want)
		}
		e.loads(oid, query{before: ts[0]}, "not found")
		e.loads(oid, query{}, fmt.Sprintf("%d r3", ts[3]))
	}
	// The same with direct additions, newest first.
	for mask := range 1 << 3 {
		oid := tid.OID(mask*np + 2)
		ts := []tid.TID{e.next(0), e.next(1), e.next(2)}
		for i := range 3 {
			e.ok(e.b.AddObject(oid, ts[2-i], rec(fmt.Sprint("d", 2-i)), none))
			if mask>>i&1 == 1 {
				e.ok(e.b.Commit())
			}
		}
		e.loads(oid, query{}, fmt.Sprintf("%d d2", ts[2]))
		e.loads(oid, query{before: ts[2]}, fmt.Sprintf("%d<%d d1", ts[1], ts[2]))
		e.loads(oid, query{at: ts[0]}, fmt.Sprintf("%d<%d d0", ts[0], ts[1]))
		last, err := e.lastObject(oid)
		e.ok(err)
		e.equal("LastObjectTID", last, proto.Some(ts[2]))
	}
}

// The store of an object asks for its last revision: of a new one, of one that was
// stored a moment ago or before the database was opened, or whose partition has come
// and gone.
func testLastRevision(e *env) {
	e.table()
	last := func(want map[tid.OID]proto.Opt[tid.TID]) {
		e.Helper()
		for oid, t := range want {
			got, err := e.lastObject(oid)
			e.ok(err)
			e.equal(fmt.Sprint("LastObjectTID of ", oid), got, t)
		}
	}
	last(map[tid.OID]proto.Opt[tid.TID]{0: none, 1: none, 5: none})
	e.commit(4, 4, change{oid: 0, text: "zero"}, change{oid: 5, text: "a"})
	some := proto.Some(tid.TID(4))
	last(map[tid.OID]proto.Opt[tid.TID]{0: some, 1: none, 4: none, 5: some, 9: none})
	e.ok(e.b.Commit())
	last(map[tid.OID]proto.Opt[tid.TID]{0: some, 1: none, 4: none, 5: some, 9: none})
	e.reopen()
	last(map[tid.OID]proto.Opt[tid.TID]{0: some, 1: none, 4: none, 5: some, 9: none})
	e.ok(e.b.AddObject(13, 3, rec("replicated"), none))
	last(map[tid.OID]proto.Opt[tid.TID]{5: some, 9: none, 13: proto.Some(tid.TID(3)), 17: none})
	// Stored by a transaction that is not committed.
	e.vote(8, change{oid: 17, text: "b"})
	last(map[tid.OID]proto.Opt[tid.TID]{17: none})
	e.crash()
	last(map[tid.OID]proto.Opt[tid.TID]{0: some, 5: some, 9: none, 17: none})
}

func testDeletion(e *env) {
	e.table()
	e.commit(4, 4, change{oid: 1, text: "a"})
	e.commit(8, 8, change{oid: 1, text: "-"})
	e.loads(1, query{}, "8 absent")
	e.loads(1, query{before: 8}, "4<8 a")
	e.reopen()
	e.loads(1, query{}, "8 absent")
	e.commit(12, 12, change{oid: 1, text: "b"})
	e.loads(1, query{at: 8}, "8<12 absent")
}

func testNonReadable(e *env) {
	e.ok(e.b.SetID(me))
	if _, err := e.b.GetObject(e.Context(), 1, none, none); err == nil {
		e.Error("an object was loaded without a partition table")
	}
	e.table()
	e.commit(5, 5, change{oid: 1, text: "a"})
	e.change(1, me, proto.OutOfDate)
	e.loads(1, query{}, "not readable")
	e.loads(2, query{}, "no such object")
	_, err := e.lastObject(1)
	e.is(err, backend.ErrNonReadable)
	_, err = e.b.Transaction(e.Context(), 5)
	e.is(err, backend.ErrNonReadable)
	_, err = e.b.FinalTID(e.Context(), 5)
	e.is(err, backend.ErrNonReadable)
	_, err = e.b.TIDs(e.Context(), []int{0, 1}, 0, 10)
	e.is(err, backend.ErrNonReadable)
	_, err = e.b.History(e.Context(), 1, 0, 10)
	e.is(err, backend.ErrNonReadable)
	_, _, err = e.b.OIDsFrom(e.Context(), 1, 10, 0, tid.Max)
	e.is(err, backend.ErrNonReadable)
	_, err = e.b.UndoHistory(e.Context(), 1, 5)
	e.is(err, backend.ErrNonReadable)
	tids, err := e.b.TIDsFrom(e.Context(), 1, 0, tid.Max, 10) // replication looks at cells that are not readable
	e.ok(err)
	e.equal("TIDsFrom", tids, []tid.TID{5})

	e.b.SetReplicated(1)
	last, err := e.lastObject(1)
	e.ok(err)
	e.equal("LastObjectTID", last, proto.Some(tid.TID(5)))
	e.loads(1, query{}, "not readable")
	e.change(2, 9, proto.OutOfDate)
	_, err = e.lastObject(1)
	e.is(err, backend.ErrNonReadable)

	// Rows of cells that are not readable do not count.
	ids, err := e.b.LastIDs(e.Context())
	e.ok(err)
	e.equal("LastIDs", ids, backend.LastIDs{First: tid.Max})
	e.change(1, me, proto.UpToDate)
	e.loads(1, query{}, "5 a")
}

func testHeldData(e *env) {
	e.table()
	stores, _ := e.hold(4, change{oid: 1, text: "a"}, change{oid: 2, text: "A"}, change{oid: 3, text: "-"}, change{oid: 5, text: "b"})
	e.kept(stores[0].Data, "a")
	e.kept(stores[3].Data, "b")
	if stores[2].Data.OK {
		e.Error("a deletion got data")
	}
	if id := stores[0].Data.ID; id>>48 != 1 {
		e.Errorf("data id %x is not in the range of partition 1", id)
	}
	e.ok(e.b.ReleaseData([]backend.DataID{stores[0].Data}, true))
	e.gone(stores[0].Data)
	e.ok(e.b.Commit())
	e.ok(e.b.ReleaseData([]backend.DataID{stores[3].Data, stores[2].Data}, true))
	e.gone(stores[3].Data)
	e.kept(stores[1].Data, "A")
	e.equal("orphans", e.orphans(), 0) // held
	e.crash()
	// The one that was held, and the one whose deletion was not committed.
	if n := e.orphans(); n > 2 {
		e.Errorf("%d orphans after a crash, want at most 2", n)
	}
}

// A node that leaves operation releases the data of transactions that were not
// voted: nothing of them may stay.
func testReleasedDataOfDroppedState(e *env) {
	e.table()
	unvoted, _ := e.hold(4, change{oid: 1, text: "a"})
	voted := e.vote(8, change{oid: 2, text: "b"})
	e.ok(e.b.Commit())
	e.ok(e.b.ReleaseData([]backend.DataID{unvoted[0].Data}, true))
	e.gone(unvoted[0].Data)
	e.kept(voted[0].Data, "b")
	if n, err := e.b.PruneData([]backend.DataID{voted[0].Data}); n != 0 || err != nil {
		e.Errorf("pruned %d voted records, %v", n, err)
	}
	e.ok(e.b.Commit())
	e.ok(e.b.DropUnfinished())
	e.gone(voted[0].Data)
	e.equal("orphans", e.orphans(), 0)
	e.crash()
	e.equal("orphans", e.orphans(), 0)
}

// What does not fit into memory is written early, and none of it is mixed up.
func testManyHeldRecords(e *env) {
	e.table()
	var changes []change
	for i := range 1500 {
		changes = append(changes, change{oid: tid.OID(i), text: fmt.Sprint("record ", i)})
	}
	changes = append(changes, change{oid: 9000, text: strings.Repeat("big", 4<<20)})
	e.commit(4, 4, changes...)
	for _, when := range []func(){func() {}, e.reopen} {
		when()
		for _, c := range changes {
			o, err := e.b.GetObject(e.Context(), c.oid, none, none)
			if err != nil || string(o.Data) != c.text || o.Serial != 4 {
				e.Fatalf("object %v: %d bytes at %v, %v", c.oid, len(o.Data), o.Serial, err)
			}
		}
	}
}

func testUndo(e *env) {
	e.table()
	first := e.commit(4, 4, change{oid: 1, text: "a"})
	e.commit(8, 8, change{oid: 1, text: "b"})
	undone := e.commit(12, 12, change{oid: 1, text: "fallback", undo: 4})
	e.equal("data of an undo", undone[0].Data, first[0].Data)
	e.loads(1, query{}, "12 as 4 a")
	e.ok(e.b.Commit())
	e.commit(16, 16, change{oid: 1, text: "-", undo: 8}) // from committed rows
	e.loads(1, query{}, "16 as 8 b")
	e.commit(20, 20, change{oid: 1, text: "-"})
	undone = e.commit(24, 24, change{oid: 1, text: "fallback", undo: 20})
	if undone[0].Data.OK {
		e.Error("the undo of a deletion's successor got data")
	}
	e.loads(1, query{}, "24 as 20 absent")
	h, err := e.b.UndoHistory(e.Context(), 1, 8)
	e.ok(err)
	e.equal("UndoHistory", h, backend.UndoHistory{Found: true, Prev: proto.Some(tid.TID(4)), Later: []backend.Later{
		{TID: 12, DataSerial: 4}, {TID: 16, DataSerial: 8}, {TID: 20}, {TID: 24, DataSerial: 20},
	}})
	e.reopen()
	h, err = e.b.UndoHistory(e.Context(), 1, 4)
	e.ok(err)
	e.equal("UndoHistory.Prev", h.Prev, none)
	h, err = e.b.UndoHistory(e.Context(), 1, 5)
	e.ok(err)
	e.equal("UndoHistory", h, backend.UndoHistory{})
}

func testUndoPacked(e *env) {
	e.table()
	e.commit(4, 4, change{oid: 1, text: "a"})
	e.commit(8, 8, change{oid: 1, text: "b"})
	_, _, err := e.b.Pack(1, 8, nil, tid.Max, proto.Opt[tid.OID]{}, 100)
	e.ok(err)
	_, err = e.b.HoldData(1, rec("a"), proto.Some(tid.TID(4)))
	e.is(err, backend.ErrUndoPacked)
	// Replication never raises it: the data that came along is used.
	e.ok(e.b.AddObject(1, 12, rec("a"), proto.Some(tid.TID(4))))
	e.loads(1, query{}, "12 as 4 a")
	// Nor does a cell that is not complete.
	e.change(1, me, proto.OutOfDate)
	id, err := e.b.HoldData(1, rec("A"), proto.Some(tid.TID(5)))
	e.ok(err)
	e.kept(id, "A")
}

// Data shared by an undo stays as long as one revision needs it.
func testSharedDataSurvives(e *env) {
	e.table()
	e.commit(4, 4, change{oid: 1, text: "a"})
	e.commit(8, 8, change{oid: 1, text: "b"})
	// Shared with a record that is in memory only, then aborted.
	stores, _ := e.hold(12, change{oid: 1, text: "x", undo: 8})
	e.ok(e.b.ReleaseData([]backend.DataID{stores[0].Data}, true))
	e.loads(1, query{}, "8 b")
	e.ok(e.b.AddObject(5, 8, rec("m"), none))
	stores, _ = e.hold(12, change{oid: 5, text: "x", undo: 8})
	e.ok(e.b.ReleaseData([]backend.DataID{stores[0].Data}, true))
	e.loads(5, query{}, "8 m")
	e.reopen()
	e.loads(1, query{}, "8 b")
	e.loads(5, query{}, "8 m")
	e.commit(16, 16, change{oid: 1, text: "x", undo: 4})
	_, deleted, err := e.b.Pack(1, 16, nil, tid.Max, proto.Opt[tid.OID]{}, 100)
	e.ok(err)
	e.equal("deleted", deleted, 2)
	e.ok(e.b.Commit())
	e.loads(1, query{}, "16 as 4 a")
	e.equal("orphans", e.orphans(), 0)
}

func (e *env) unfinished(want map[tid.TID]proto.Opt[tid.TID]) {
	e.Helper()
	got, err := e.b.Unfinished()
	e.ok(err)
	e.equal("Unfinished", got, want)
}

// The verification of a cluster after a crash finds every voted transaction, and
// commits those that were decided.
func testUnfinished(e *env) {
	e.table()
	e.vote(4, change{oid: 1, text: "a"})
	e.vote(8, change{oid: 2, text: "b"})
	e.vote(13, change{oid: 3, text: "c"})
	e.ok(e.b.Commit())
	e.ok(e.b.Lock(8, 12, false))
	e.ok(e.b.Commit())
	e.ok(e.b.Lock(13, 17, false))
	e.crash()
	e.unfinished(map[tid.TID]proto.Opt[tid.TID]{4: none, 8: proto.Some(tid.TID(12)), 13: none})
	final, err := e.b.FinalTID(e.Context(), 8)
	e.ok(err)
	e.equal("FinalTID", final, none)
	e.loads(2, query{}, "no such object")

	e.ok(e.b.Validate(8, 12))
	e.ok(e.b.Validate(13, 17)) // another node had it locked
	e.ok(e.b.Validate(99, 103))
	e.crash()
	e.unfinished(map[tid.TID]proto.Opt[tid.TID]{4: none})
	final, err = e.b.FinalTID(e.Context(), 8)
	e.ok(err)
	e.equal("FinalTID", final, proto.Some(tid.TID(12)))
	e.loads(2, query{}, "12 b")
	e.loads(3, query{}, "17 c")
	m, err := e.b.Transaction(e.Context(), 17)
	e.ok(err)
	e.equal("Transaction", m, backend.Meta{User: []byte("joe"), Description: []byte("transaction 000000000000000d"),
		Extension: []byte{}, TTID: 13, OIDs: []tid.OID{3}})

	e.ok(e.b.DropUnfinished())
	e.unfinished(map[tid.TID]proto.Opt[tid.TID]{})
	e.equal("orphans", e.orphans(), 0)
	// A ttid and its final TID are congruent, and the ttid is not greater.
	e.commit(24, 24, change{oid: 1, text: "z"})
	final, err = e.b.FinalTID(e.Context(), 20)
	e.ok(err)
	e.equal("FinalTID", final, none)
}

// A node may have only the metadata of a transaction, or only objects.
func testValidateParts(e *env) {
	e.table()
	stores, meta := e.hold(4, change{oid: 1, text: "a"})
	e.ok(e.b.Vote(4, stores, nil, nil))
	e.ok(e.b.Vote(8, nil, meta, &proto.PackRequest{Time: 3}))
	e.ok(e.b.Commit())
	e.crash()
	e.unfinished(map[tid.TID]proto.Opt[tid.TID]{4: none, 8: none})
	e.ok(e.b.Validate(4, 12))
	e.ok(e.b.Validate(8, 16))
	e.loads(1, query{}, "12 a")
	_, err := e.b.Transaction(e.Context(), 12)
	e.is(err, backend.ErrNotFound)
	_, err = e.b.Transaction(e.Context(), 16)
	e.ok(err)
	orders, err := e.b.PackOrders(0)
	e.ok(err)
	e.equal("PackOrders", orders, []proto.PackOrder{{ID: 16, Approved: proto.Some(true), Time: 3}})
	e.unfinished(map[tid.TID]proto.Opt[tid.TID]{})

	// The same in a running cluster.
	e.ok(e.b.ChangePartitionTable(9, 0, nil, false, 0))
	stores, _ = e.hold(20, change{oid: 1, text: "b"})
	e.ok(e.b.Vote(20, stores, nil, nil))
	e.ok(e.b.Commit())
	e.ok(e.b.Lock(20, 24, false))
	e.ok(e.b.Unlock(20, 24, false, true, false))
	e.loads(1, query{}, "24 b")
	_, err = e.b.Transaction(e.Context(), 24)
	e.is(err, backend.ErrNotFound)
	e.ok(e.b.Vote(28, nil, meta, nil))
	e.ok(e.b.Commit())
	e.ok(e.b.Lock(28, 32, false))
	e.ok(e.b.Commit())
	e.ok(e.b.Unlock(28, 32, true, false, false))
	_, err = e.b.Transaction(e.Context(), 32)
	e.ok(err)
	e.reopen()
	e.unfinished(map[tid.TID]proto.Opt[tid.TID]{})
	e.loads(1, query{}, "24 b")
	_, err = e.b.Transaction(e.Context(), 32)
	e.ok(err)
}

func testDropUnfinished(e *env) {
	e.table()
	e.commit(4, 4, change{oid: 1, text: "a"})
	first := e.vote(8, change{oid: 1, text: "b"})
	e.ok(e.b.Commit())
	e.crash()
	// Voted before the crash, voted since, and committed by neither.
	second := e.vote(12, change{oid: 2, text: "c"}, change{oid: 3, text: "x", undo: 0})
	e.ok(e.b.DropUnfinished())
	for _, when := range []func(){func() {}, e.crash} {
		when()
		e.unfinished(map[tid.TID]proto.Opt[tid.TID]{})
		e.gone(first[0].Data)
		e.gone(second[0].Data)
		e.loads(1, query{}, "4 a")
		e.loads(2, query{}, "no such object")
		e.equal("orphans", e.orphans(), 0)
	}
}

func testDropUnfinishedPartitions(e *env) {
	e.table()
	stores, meta := e.hold(5, change{oid: 1, text: "a"}, change{oid: 2, text: "b"})
	e.ok(e.b.Vote(5, stores, meta, &proto.PackRequest{Time: 3}))
	e.ok(e.b.Commit())
	e.vote(4, change{oid: 5, text: "c"}, change{oid: 6, text: "d"}) // not flushed yet
	e.ok(e.b.DropUnfinishedPartitions([]int{1, 3}))
	e.ok(e.b.Commit())
	e.kept(stores[0].Data, "a") // released by the caller
	e.ok(e.b.ReleaseData([]backend.DataID{stores[0].Data}, true))
	e.gone(stores[0].Data)
	e.ok(e.b.Unlock(5, 9, false, true, false))
	e.ok(e.b.Lock(4, 8, false))
	e.ok(e.b.Unlock(4, 8, true, true, false))
	for _, when := range []func(){func() {}, e.reopen} {
		when()
		e.loads(1, query{}, "no such object")
		e.loads(2, query{}, "9 b")
		e.loads(5, query{}, "no such object")
		e.loads(6, query{}, "8 d")
		_, err := e.b.Transaction(e.Context(), 9)
		e.is(err, backend.ErrNotFound)
		_, err = e.b.Transaction(e.Context(), 8)
		e.ok(err)
		e.unfinished(map[tid.TID]proto.Opt[tid.TID]{})
	}
	orders, err := e.b.PackOrders(0)
	e.ok(err)
	e.equal("PackOrders", orders, []proto.PackOrder{})
}

func testAbort(e *env) {
	e.table()
	for _, flushed := range []bool{false, true} {
		stores := e.vote(e.next(0), change{oid: 1, text: "a"})
		if flushed {
			e.ok(e.b.Commit())
		}
		e.ok(e.b.Abort(e.clock))
		e.ok(e.b.ReleaseData([]backend.DataID{stores[0].Data}, true))
		e.ok(e.b.Commit())
		e.unfinished(map[tid.TID]proto.Opt[tid.TID]{})
		e.gone(stores[0].Data)
		e.loads(1, query{}, "no such object")
	}
	e.ok(e.b.Abort(999)) // unknown: nothing to do
	e.crash()
	e.unfinished(map[tid.TID]proto.Opt[tid.TID]{})
	e.equal("orphans", e.orphans(), 0)
	if err := e.b.Unlock(4, 4, true, true, false); err == nil {
		e.Error("an aborted transaction was unlocked")
	}
	e.ok(e.database.Crash()) // after such an error nothing may be written
	e.open()
	e.loads(1, query{}, "no such object")
}

// A client that votes again, after the first vote was durable, has the last word.
func testVoteTwice(e *env) {
	e.table()
	for _, flushed := range []bool{false, true} {
		t := e.next(0)
		first, _ := e.hold(t, change{oid: 1, text: "a"}, change{oid: 2, text: "b"})
		e.ok(e.b.Vote(t, first, nil, nil))
		if flushed {
			e.ok(e.b.Commit())
		}
		e.ok(e.b.ReleaseData([]backend.DataID{first[1].Data}, false))
		second, meta := e.hold(t, change{oid: 3, text: "c"})
		e.ok(e.b.Vote(t, append(first[:1:1], second...), meta, nil))
		e.ok(e.b.Commit())
		e.ok(e.b.Lock(t, t, false))
		e.ok(e.b.Commit())
		e.ok(e.b.Unlock(t, t, true, true, false))
		e.reopen()
		e.loads(1, query{}, fmt.Sprintf("%d a", t))
		e.loads(2, query{}, "no such object")
		e.loads(3, query{}, fmt.Sprintf("%d c", t))
		e.unfinished(map[tid.TID]proto.Opt[tid.TID]{})
	}
}

func testCrash(e *env) {
	e.table()
	e.commit(4, 4, change{oid: 1, text: "a"})
	e.ok(e.b.Commit())
	e.commit(8, 8, change{oid: 1, text: "b"}) // locked durably, unlocked not
	e.vote(12, change{oid: 1, text: "c"})
	e.crash()
	e.loads(1, query{}, "4 a")
	e.unfinished(map[tid.TID]proto.Opt[tid.TID]{8: proto.Some(tid.TID(8))})
	e.ok(e.b.Validate(8, 8))
	e.crash()
	e.loads(1, query{}, "8 b")
	// Data ids go on after those in use.
	e.commit(16, 16, change{oid: 1, text: "d"})
	e.loads(1, query{at: 4}, "4<8 a")
	e.loads(1, query{at: 8}, "8<16 b")
	e.loads(1, query{}, "16 d")
}
