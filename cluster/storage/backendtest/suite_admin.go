package backendtest

import (
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

func (e *env) config(want backend.Config) {
	e.Helper()
	got, err := e.b.Config()
	e.ok(err)
	e.equal("Config", got, want)
}

func testConfiguration(e *env) {
	e.config(backend.Config{})
	e.ok(e.b.SetName("cluster"))
	e.ok(e.b.SetID(me))
	// Zero is a value of its own: in backup mode, nothing replicated yet.
	e.ok(e.b.SetBackupTID(proto.Some(tid.Zero)))
	e.ok(e.b.SetTruncateTID(proto.Some(tid.TID(0x0123456789abcdef))))
	e.ok(e.b.SetConfirmed(proto.Some[uint64](1 << 40)))
	e.ok(e.b.SetBackupGap([2]tid.TID{0, 5}))
	e.ok(e.b.SetBackupHold(proto.Some(tid.Zero)))
	want := backend.Config{
		Name: "cluster", ID: me, BackupGap: [2]tid.TID{0, 5}, BackupHold: proto.Some(tid.Zero), BackupTID: proto.Some(tid.Zero), TruncateTID: proto.Some(tid.TID(0x0123456789abcdef)),
		Confirmed: proto.Some[uint64](1 << 40),
	}
	e.config(want)
	e.ok(e.b.Commit())
	e.crash()
	e.config(want)
	e.ok(e.b.SetBackupTID(none))
	e.ok(e.b.SetTruncateTID(none))
	e.ok(e.b.SetBackupGap([2]tid.TID{}))
	e.ok(e.b.SetBackupHold(none))
	e.ok(e.b.SetConfirmed(proto.Opt[uint64]{}))
	e.config(backend.Config{Name: "cluster", ID: me})
	e.crash()
	e.config(want) // not committed
	if len(e.b.Topology()) == 0 {
		e.Error("no topology")
	}
}

func (e *env) cells(want ...backend.Cell) {
	e.Helper()
	got, err := e.b.Cells()
	e.ok(err)
	e.equal("Cells", got, want)
}

func testPartitionTable(e *env) {
	e.ok(e.b.SetID(me))
	e.cells()
	e.ok(e.b.ChangePartitionTable(1<<40, 2, []proto.CellChange{
		{Partition: 0, ID: 1, State: proto.UpToDate}, {Partition: 0, ID: me, State: proto.Feeding},
		{Partition: 1, ID: me, State: proto.Corrupted}, {Partition: 2, ID: 1, State: proto.OutOfDate},
	}, true, 0))
	e.ok(e.b.Commit())
	e.reopen()
	want := []backend.Cell{
		{Partition: 0, ID: 1, State: proto.UpToDate}, {Partition: 0, ID: me, State: proto.Feeding},
		{Partition: 1, ID: me, State: proto.Corrupted}, {Partition: 2, ID: 1, State: proto.OutOfDate},
	}
	e.cells(want...)
	e.config(backend.Config{ID: me, PTID: proto.Some(uint64(1 << 40)), Replicas: 2})

	e.change(1, me, proto.Discarded)
	e.change(2, 1, proto.UpToDate)
	want[2], want = backend.Cell{Partition: 2, ID: 1, State: proto.UpToDate}, want[:3]
	e.cells(want...)
	drop, err := e.b.UnassignedPartitions()
	e.ok(err)
	e.equal("UnassignedPartitions", drop, []int{1})

	// A whole table replaces what is not in it; whatever is not mine may have rows.
	e.ok(e.b.ChangePartitionTable(5, 0, []proto.CellChange{
		{Partition: 0, ID: 1, State: proto.UpToDate}, {Partition: 1, ID: me, State: proto.UpToDate}, {Partition: 2, ID: 1, State: proto.UpToDate},
	}, true, 0))
	e.cells(backend.Cell{Partition: 0, ID: 1, State: proto.UpToDate}, backend.Cell{Partition: 1, ID: me, State: proto.UpToDate},
		backend.Cell{Partition: 2, ID: 1, State: proto.UpToDate})
	drop, err = e.b.UnassignedPartitions()
	e.ok(err)
	e.equal("UnassignedPartitions", drop, []int{0, 2})
}

// An own cell that becomes OUT_OF_DATE keeps the greatest TID up to which it is
// known to be complete: replication resumes there.
func testOutOfDateCells(e *env) {
	e.table()
	t0, t1 := e.next(0), e.next(1)
	e.commit(t0, t0, change{oid: 1, text: "one"}) // metadata in 0, object in 1
	e.commit(t1, t1, change{oid: 5, text: "two"}) // both in 1
	e.change(3, 9, proto.OutOfDate)
	for p := range np - 1 {
		e.change(p, me, proto.OutOfDate)
	}
	want := []backend.Cell{
		{Partition: 0, ID: me, TID: t0}, {Partition: 1, ID: me, TID: t1}, {Partition: 2, ID: me},
		{Partition: 3, ID: me, State: proto.UpToDate}, {Partition: 3, ID: 9},
	}
	e.cells(want...)
	// Known once, it does not change until it is replicated.
	e.change(1, me, proto.OutOfDate)
	e.cells(want...)
	e.ok(e.b.SetCellTID(2, 77))
	e.ok(e.b.SetCellTID(3, 77)) // not outdated
	want[2].TID = 77
	e.cells(want...)
	e.change(2, me, proto.Corrupted)
	e.change(2, me, proto.OutOfDate)
	want[2].TID = 0
	e.cells(want...)
	e.ok(e.b.SetBackupTID(proto.Some(tid.TID(55))))
	e.change(3, me, proto.OutOfDate)
	want[3] = backend.Cell{Partition: 3, ID: me, TID: 55}
	e.cells(want...)
}

// A node that was in backup mode when a truncation was ordered may have transactions
// without all their records.
func testOutOfDateBeforeTruncation(e *env) {
	e.table()
	e.ok(e.b.SetBackupTID(proto.Some(tid.TID(8))))
	for _, t := range []tid.TID{8, 12, 16} {
		e.ok(e.b.AddTransaction(t, backend.Meta{TTID: t, OIDs: []tid.OID{0, 4}}, nil))
	}
	e.ok(e.b.AddObject(0, 8, rec("a"), none))
	e.ok(e.b.AddObject(4, 8, rec("b"), none))
	e.ok(e.b.AddObject(0, 12, rec("c"), none))
	e.ok(e.b.SetBackupTID(none))
	e.ok(e.b.SetTruncateTID(proto.Some(tid.TID(16))))
	for p := range np {
		e.change(p, me, proto.OutOfDate)
	}
	e.ok(e.b.Truncate())
	e.cells(backend.Cell{Partition: 0, ID: me, TID: 11}, backend.Cell{Partition: 1, ID: me},
		backend.Cell{Partition: 2, ID: me}, backend.Cell{Partition: 3, ID: me})
}

// Verification was interrupted after it had validated the transaction with the
// greater TID. The other one is dropped here when operation begins: the cells must
// be replicated from before it.
func testOutOfDateBeforeValidation(e *env) {
	e.table()
	e.commit(8, 8, change{oid: 0, text: "a"})
	e.vote(12, change{oid: 0, text: "b"}, change{oid: 1, text: "c"}, change{oid: 2, text: "d"}, change{oid: 3, text: "e"})
	e.vote(24, change{oid: 4, text: "f"}, change{oid: 5, text: "g"}) // metadata in 0
	e.vote(26, change{oid: 9, text: "h"})                            // metadata in 2, object in 1
	e.ok(e.b.Lock(24, 48, false))
	e.ok(e.b.Lock(26, 50, false))
	e.ok(e.b.Lock(12, 60, false))
	e.ok(e.b.Commit())
	e.crash()
	e.ok(e.b.Validate(12, 60))
	e.crash()
	for p := range np {
		e.change(p, me, proto.OutOfDate)
	}
	want := []backend.Cell{
		{Partition: 0, ID: me, TID: 23}, {Partition: 1, ID: me, TID: 23}, {Partition: 2, ID: me, TID: 25}, {Partition: 3, ID: me, TID: 60},
	}
	e.cells(want...)
	e.ok(e.b.DropUnfinished())
	e.cells(want...)
}

func testChangeOfID(e *env) {
	e.table()
	e.change(0, 8, proto.OutOfDate)
	e.ok(e.b.SetPacked(2, 40))
	e.commit(e.next(1), e.clock, change{oid: 1, text: "x"})
	e.ok(e.b.SetID(12))
	e.cells(backend.Cell{Partition: 0, ID: 8}, backend.Cell{Partition: 0, ID: 12, State: proto.UpToDate},
		backend.Cell{Partition: 1, ID: 12, State: proto.UpToDate}, backend.Cell{Partition: 2, ID: 12, State: proto.UpToDate},
		backend.Cell{Partition: 3, ID: 12, State: proto.UpToDate})
	e.crash()
	e.config(backend.Config{ID: 12, PTID: proto.Some(uint64(8)), Replicas: 1})
	ids, err := e.b.PackedIDs(false)
	e.ok(err)
	e.equal("PackedIDs", ids, map[int]tid.TID{0: 0, 1: 0, 2: 40, 3: 0})
	e.loads(1, query{}, "5 x")
}

func testPackedIDs(e *env) {
	e.ok(e.b.SetID(me))
	e.ok(e.b.ChangePartitionTable(1, 0, []proto.CellChange{
		{Partition: 0, ID: me, State: proto.UpToDate}, {Partition: 1, ID: me, State: proto.OutOfDate},
		{Partition: 2, ID: me, State: proto.Feeding}, {Partition: 3, ID: 9, State: proto.UpToDate},
	}, true, 33))
	packed := func(upToDate bool, want map[int]tid.TID) {
		e.Helper()
		ids, err := e.b.PackedIDs(upToDate)
		e.ok(err)
		e.equal("PackedIDs", ids, want)
	}
	packed(false, map[int]tid.TID{0: 0, 1: 33, 2: 0})
	packed(true, map[int]tid.TID{0: 0})
	e.ok(e.b.SetPacked(0, 50))
	e.ok(e.b.SetPacked(2, 60))
	e.ok(e.b.LowerPacked(0, 55))
	e.ok(e.b.LowerPacked(2, 55))
	e.change(1, me, proto.UpToDate) // keeps its value
	packed(false, map[int]tid.TID{0: 50, 1: 33, 2: 55})
}

func testErase(e *env) {
	e.ok(e.b.SetName("cluster"))
	e.table()
	e.commit(e.next(1), e.clock, change{oid: 1, text: "x"})
	e.ok(e.b.Erase())
	for range 2 {
		e.config(backend.Config{})
		e.cells()
		e.reopen()
	}
	e.table()
	e.loads(1, query{}, "no such object")
	e.commit(e.next(1), e.clock, change{oid: 1, text: "y"})
	e.loads(1, query{}, "9 y")
}
