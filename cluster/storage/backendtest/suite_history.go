package backendtest

import (
	"fmt"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

func testHistories(e *env) {
	e.table()
	ids, err := e.b.LastIDs(e.Context())
	e.ok(err)
	e.equal("LastIDs of an empty database", ids, backend.LastIDs{First: tid.Max})
	var ts []tid.TID
	for i := range 12 {
		t := e.next(i % 3) // never partition 3
		ts = append(ts, t)
		e.commit(t, t, change{oid: 1, text: fmt.Sprint("rev", i)}, change{oid: tid.OID(2 + 4*i), text: "x"})
		if i == 7 {
			e.ok(e.b.Commit()) // the last ones stay uncommitted
		}
	}
	e.ok(e.b.AddObject(3, 999, rec("late"), none)) // an object without its transaction
	for _, when := range []func(){func() {}, e.reopen} {
		when()
		ids, err := e.b.LastIDs(e.Context())
		e.ok(err)
		e.equal("LastIDs", ids, backend.LastIDs{TID: proto.Some(tid.TID(999)), OID: proto.Some(tid.OID(46)), First: ts[0]})
		trans, obj, err := e.b.LastTIDs(e.Context(), 2)
		e.ok(err)
		e.equal("LastTIDs", []tid.TID{trans, obj}, []tid.TID{ts[11], ts[11]})

		down := func(skip, n int, partitions []int, want ...tid.TID) {
			e.Helper()
			got, err := e.b.TIDs(e.Context(), partitions, skip, n)
			e.ok(err)
			e.equal(fmt.Sprint("TIDs ", skip, n, partitions), got, want)
		}
		down(0, 3, []int{0, 1, 2, 3}, ts[11], ts[10], ts[9])
		down(10, 5, []int{0, 1, 2, 3}, ts[1], ts[0])
		down(1, 2, []int{1}, ts[7], ts[4])
		down(20, 2, []int{1})
		down(0, 2, []int{3})
		down(0, 2, nil)

		up := func(p int, min, max tid.TID, n int, want ...tid.TID) {
			e.Helper()
			got, err := e.b.TIDsFrom(e.Context(), p, min, max, n)
			e.ok(err)
			e.equal(fmt.Sprint("TIDsFrom ", p, min, max, n), got, want)
		}
		up(0, 0, tid.Max, 0, ts[0], ts[3], ts[6], ts[9])
		up(0, ts[3], ts[6], 0, ts[3], ts[6])
		up(0, ts[3]+1, ts[9]-1, 5, ts[6])
		up(0, 0, tid.Max, 2, ts[0], ts[3])
		up(0, tid.Max, 0, 2)

		revs, err := e.b.History(e.Context(), 1, 1, 2)
		e.ok(err)
		e.equal("History", revs, []proto.Revision{{TID: ts[10], Size: 5}, {TID: ts[9], Size: 4}})
		revs, err = e.b.History(e.Context(), 77, 0, 2)
		e.ok(err)
		e.equal("History", revs, []proto.Revision{})

		next, oids, err := e.b.OIDsFrom(e.Context(), 2, 3, 6, ts[9])
		e.ok(err)
		e.equal("OIDsFrom", oids, []tid.OID{6, 10, 14})
		e.equal("OIDsFrom next", next, proto.Some(tid.OID(18)))
		next, oids, err = e.b.OIDsFrom(e.Context(), 2, 100, 30, ts[9])
		e.ok(err)
		e.equal("OIDsFrom", oids, []tid.OID{30, 34, 38})
		e.equal("OIDsFrom next", next, proto.Opt[tid.OID]{})
	}
	// Deleted objects count, but are not listed.
	e.commit(2000, 2000, change{oid: 6, text: "-"})
	next, oids, err := e.b.OIDsFrom(e.Context(), 2, 2, 0, 2000)
	e.ok(err)
	e.equal("OIDsFrom", oids, []tid.OID{2})
	e.equal("OIDsFrom next", next, proto.Some(tid.OID(10)))
	_, oids, err = e.b.OIDsFrom(e.Context(), 2, 2, 0, 1999)
	e.ok(err)
	e.equal("OIDsFrom", oids, []tid.OID{2, 6})

	_, err = e.b.Transaction(e.Context(), 1)
	e.is(err, backend.ErrNotFound)
	m, err := e.b.Transaction(e.Context(), 2000)
	e.ok(err)
	e.equal("Transaction", m.OIDs, []tid.OID{6})
}

func testTruncate(e *env) {
	e.table()
	e.ok(e.b.Truncate()) // no order: nothing
	e.commit(4, 4, change{oid: 1, text: "a"})
	e.commit(8, 8, change{oid: 1, text: "b"}, change{oid: 2, text: "c"}, change{oid: 3, text: "d"})
	gone := e.commit(12, 12, change{oid: 1, text: "e"}, change{oid: 5, text: "f"}, change{oid: 2, text: "x", undo: 8})
	stores, meta := e.hold(16)
	e.ok(e.b.Vote(16, stores, meta, &proto.PackRequest{Time: 10}))
	e.ok(e.b.Commit())
	e.ok(e.b.Lock(16, 16, true))
	e.ok(e.b.Unlock(16, 16, true, false, true))
	e.commit(21, 21, change{oid: 6, text: "g"})
	e.ok(e.b.SetTruncateTID(proto.Some(tid.TID(8))))
	e.ok(e.b.Commit())
	e.change(3, 9, proto.UpToDate)
	e.change(3, me, proto.Discarded) // not assigned: left alone
	e.change(2, me, proto.OutOfDate)
	e.ok(e.b.SetCellTID(2, 21))
	e.ok(e.b.Truncate())
	for _, when := range []func(){func() {}, e.crash} {
		when()
		e.loads(1, query{}, "8 b")
		e.loads(1, query{at: 4}, "4<8 a")
		e.loads(5, query{}, "no such object")
		e.gone(gone[0].Data)
		e.kept(gone[2].Data, "c") // 8 has it, too
		tids, err := e.b.TIDsFrom(e.Context(), 0, 0, tid.Max, 0)
		e.ok(err)
		e.equal("TIDsFrom", tids, []tid.TID{4, 8})
		tids, err = e.b.TIDsFrom(e.Context(), 1, 0, tid.Max, 0)
		e.ok(err)
		e.equal("TIDsFrom", tids, []tid.TID{})
		orders, err := e.b.PackOrders(0)
		e.ok(err)
		e.equal("PackOrders", orders, []proto.PackOrder{})
		cells, err := e.b.Cells()
		e.ok(err)
		e.equal("cell of partition 2", cells[2], backend.Cell{Partition: 2, ID: me, TID: 8})
		cfg, err := e.b.Config()
		e.ok(err)
		e.equal("TruncateTID", cfg.TruncateTID, none)
		e.equal("orphans", e.orphans(), 0)
		_, err = e.b.FetchObject(e.Context(), 3, 8)
		e.ok(err)
	}
}
