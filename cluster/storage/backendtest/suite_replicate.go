package backendtest

import (
	"encoding/hex"
	"fmt"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

func testReplicate(e *env) {
	e.table()
	e.change(1, me, proto.OutOfDate) // readability does not matter
	meta := backend.Meta{User: []byte("u"), Description: []byte{}, Extension: []byte{1}, Packed: true, TTID: 5, OIDs: []tid.OID{1, 5}}
	pack := &proto.PackState{Approved: proto.Some(false), Time: 4}
	e.ok(e.b.AddTransaction(9, meta, pack))
	e.ok(e.b.AddObject(1, 9, rec("a"), none))
	e.ok(e.b.AddObject(5, 9, proto.ObjectData{}, none))
	e.ok(e.b.AddObject(5, 13, rec("b"), none))
	e.ok(e.b.AddObject(1, 13, rec("ignored"), proto.Some(tid.TID(9))))
	e.ok(e.b.AddObject(1, 17, rec("given"), proto.Some(tid.TID(8)))) // 8 is gone: data is used
	e.ok(e.b.AddObject(2, 9, rec("other partition"), none))
	votes := func() { e.ok(e.b.CommitVotes()) } // may leave them for later
	for _, when := range []func(){votes, func() {}, votes, e.reopen} {
		when()
		m, p, err := e.b.FetchTransaction(e.Context(), 9)
		e.ok(err)
		e.equal("FetchTransaction", m, meta)
		e.equal("pack", p, pack)
		_, _, err = e.b.FetchTransaction(e.Context(), 13)
		e.is(err, backend.ErrNotFound)
		for k, want := range map[backend.Key]string{
			{TID: 9, OID: 1}: "9 a", {TID: 9, OID: 5}: "9 absent", {TID: 13, OID: 5}: "13 b",
			{TID: 13, OID: 1}: "13 as 9 a", {TID: 17, OID: 1}: "17 as 8 given",
		} {
			o, err := e.b.FetchObject(e.Context(), k.OID, k.TID)
			e.ok(err)
			e.equal("FetchObject", show(o), want)
		}
		_, err = e.b.FetchObject(e.Context(), 1, 10)
		e.is(err, backend.ErrNotFound)
		records := func(min, max tid.TID, minOID tid.OID, n int, want ...backend.Key) {
			e.Helper()
			got, err := e.b.RecordsFrom(e.Context(), 1, min, max, minOID, n)
			e.ok(err)
			e.equal(fmt.Sprint("RecordsFrom ", min, max, minOID, n), got, want)
		}
		all := []backend.Key{{TID: 9, OID: 1}, {TID: 9, OID: 5}, {TID: 13, OID: 1}, {TID: 13, OID: 5}, {TID: 17, OID: 1}}
		records(0, tid.Max, 0, 100, all...)
		records(0, 13, 0, 3, all[:3]...)
		records(9, 13, 2, 100, all[1:4]...)
		records(9, 9, 5, 1, all[1])
		records(13, 9, 0, 100)
		records(10, 12, 0, 100)
	}
	e.ok(e.b.DeleteObject(5, 13))
	e.ok(e.b.DeleteObject(5, 99))
	e.ok(e.b.DeleteTransaction(9))
	for _, when := range []func(){func() {}, e.reopen} {
		when()
		_, err := e.b.FetchObject(e.Context(), 5, 13)
		e.is(err, backend.ErrNotFound)
		_, _, err = e.b.FetchTransaction(e.Context(), 9)
		e.is(err, backend.ErrNotFound)
		keys, err := e.b.RecordsFrom(e.Context(), 1, 13, 13, 0, 0)
		e.ok(err)
		e.equal("RecordsFrom", keys, []backend.Key{{TID: 13, OID: 1}})
		e.equal("orphans", e.orphans(), 0)
	}
	// The order went with its transaction.
	e.ok(e.b.AddTransaction(9, meta, nil))
	_, p, err := e.b.FetchTransaction(e.Context(), 9)
	e.ok(err)
	if p != nil {
		e.Errorf("pack order %v outlived its transaction", p)
	}
}

// A chunk of an interrupted replication comes again. What differs is refused.
func testReplicateAgain(e *env) {
	e.table()
	meta := backend.Meta{User: []byte{}, Description: []byte{}, Extension: []byte{}, TTID: 4, OIDs: []tid.OID{1}}
	for i := range 3 {
		e.ok(e.b.AddTransaction(4, meta, nil))
		e.ok(e.b.AddObject(1, 4, rec("a"), none))
		e.ok(e.b.AddObject(2, 4, proto.ObjectData{}, none))
		e.ok(e.b.AddObject(1, 8, rec("x"), proto.Some(tid.TID(4))))
		if i > 0 {
			e.ok(e.b.Commit())
		}
		e.loads(1, query{at: 4}, "4<8 a")
		e.equal("orphans", e.orphans(), 0)
	}
	for name, f := range map[string]func(b backend.Backend) error{
		"data":       func(b backend.Backend) error { return b.AddObject(1, 4, rec("b"), none) },
		"no data":    func(b backend.Backend) error { return b.AddObject(1, 4, proto.ObjectData{}, none) },
		"DataSerial": func(b backend.Backend) error { return b.AddObject(1, 4, rec("a"), proto.Some(tid.TID(3))) },
		"metadata": func(b backend.Backend) error {
			m := meta
			m.User = []byte("other")
			return b.AddTransaction(4, m, nil)
		},
	} {
		err := f(e.b)
		if err == nil {
			err = e.b.Commit()
		}
		if err == nil {
			e.Errorf("a row with other %s was accepted", name)
		}
		e.crash()
		e.loads(1, query{at: 4}, "4<8 a")
	}
}

func testDigests(e *env) {
	e.table()
	for _, t := range []tid.TID{18, 22, 26} {
		e.commit(t, t, change{oid: 2, text: "a"}, change{oid: tid.OID(t), text: "b"})
	}
	e.ok(e.b.ChangePartitionTable(8, 0, nil, false, 0))
	a, err := e.b.CheckTIDs(e.Context(), 2, 2, 0, tid.Max)
	e.ok(err)
	e.equal("CheckTIDs", a, &proto.AnswerCheckTIDRange{Count: 2, Last: 22, Checksum: sum("18,22")})
	a, err = e.b.CheckTIDs(e.Context(), 2, 100, 19, 26)
	e.ok(err)
	e.equal("CheckTIDs", a, &proto.AnswerCheckTIDRange{Count: 2, Last: 26, Checksum: sum("22,26")})
	a, err = e.b.CheckTIDs(e.Context(), 3, 100, 0, tid.Max)
	e.ok(err)
	e.equal("CheckTIDs", a, &proto.AnswerCheckTIDRange{})
	s, err := e.b.CheckSerials(e.Context(), 2, 3, 18, 26, 3)
	e.ok(err)
	e.equal("CheckSerials", s, &proto.AnswerCheckSerialRange{Count: 3, LastTID: 22, LastOID: 22,
		TIDChecksum: sum("18,22,22"), OIDChecksum: sum("18,2,22")})
	s, err = e.b.CheckSerials(e.Context(), 2, 3, 27, tid.Max, 0)
	e.ok(err)
	e.equal("CheckSerials", s, &proto.AnswerCheckSerialRange{})
	// As the Python implementation computes it.
	if got := sum("18,20"); hex.EncodeToString(got[:]) != "a7054dee9d5a497fd7aa75d480dcbcebee478322" {
		e.Errorf("digest of 18 and 20 is %x", got)
	}
}

func sum(text string) proto.Hash { return rec(text).Checksum }
