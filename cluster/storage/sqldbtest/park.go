package sqldbtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

const parkPartitions = 12

// openParking opens a new database of some partitions until the test ends.
func openParking(t *testing.T, p Place) *sqldb.DB {
	t.Helper()
	db := open(t, p)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	var cells []proto.CellChange
	for p := range parkPartitions {
		cells = append(cells, proto.CellChange{Partition: p, ID: 1, State: proto.UpToDate})
	}
	if err := db.SetID(1); err != nil {
		t.Fatal(err)
	}
	if err := db.ChangePartitionTable(1, 0, cells, true, 0); err != nil {
		t.Fatal(err)
	}
	if err := db.Commit(); err != nil {
		t.Fatal(err)
	}
	return db
}

// content is what a test stores.
func content(oid tid.OID, at tid.TID) string { return fmt.Sprintf("object %d of %d", oid, at) }

// voteFor votes for a transaction that stores some objects.
func voteFor(t *testing.T, db *sqldb.DB, ttid tid.TID, oids ...tid.OID) []backend.DataID {
	t.Helper()
	var stores []backend.Store
	var ids []backend.DataID
	for _, oid := range oids {
		data := content(oid, ttid)
		id, err := db.HoldData(oid, proto.ObjectData{Checksum: sha(data), Data: []byte(data)}, none)
		if err != nil {
			t.Fatal(err)
		}
		stores = append(stores, backend.Store{OID: oid, Data: id})
		ids = append(ids, id)
	}
	meta := &backend.Meta{User: []byte{}, Description: []byte{}, Extension: []byte{}, OIDs: oids}
	if err := db.Vote(ttid, stores, meta, nil); err != nil {
		t.Fatal(err)
	}
	return ids
}

// query returns what another program finds.
func query(t *testing.T, p Place, text string) []string {
	t.Helper()
	rows, err := p.Query(text)
	must(t, err)
	return rows
}

func count(t *testing.T, p Place, what string) int {
	t.Helper()
	n, err := strconv.Atoi(query(t, p, "SELECT COUNT(*) FROM "+what)[0])
	must(t, err)
	return n
}

// checkReferences checks what another program finds at any moment: each row refers
// to data that is there, and nothing is there that no row refers to.
func checkReferences(t *testing.T, p Place) {
	t.Helper()
	for what, q := range map[string]string{
		"unfinished record without data": "tobj LEFT JOIN data ON data.id = data_id WHERE data_id IS NOT NULL AND data.id IS NULL",
		"record without data":            "obj LEFT JOIN data ON data.id = data_id WHERE data_id IS NOT NULL AND data.id IS NULL",
		"data without record":            "data WHERE id NOT IN (SELECT data_id FROM obj UNION ALL SELECT data_id FROM tobj)",
	} {
		if n := count(t, p, q); n > 0 {
			t.Fatalf("%d times %s", n, what)
		}
	}
}

func checkLoad(t *testing.T, db *sqldb.DB, oid tid.OID, at tid.TID) {
	t.Helper()
	o, err := db.GetObject(t.Context(), oid, proto.Some(at), none)
	if want := content(oid, at); err != nil || string(o.Data) != want {
		t.Fatalf("object %d at %d: %q, %v, want %q", oid, at, o.Data, err, want)
	}
}

const misplacedRows = "obj JOIN data ON data.id = data_id WHERE data_id >> 48 != `partition`"

// parking returns the rows that are parked by a dialect that parks.
func parking(t *testing.T, p Place) (rows string) {
	t.Helper()
	d, err := p.Dialect()
	must(t, err)
	first := d.Parking()
	must(t, d.Close())
	if first == 0 {
		t.Skip("the dialect parks nothing")
	}
	return fmt.Sprint("data WHERE id >= ", first)
}

// Records that are voted wait at the end of the table, and are moved together.
func testParking(t *testing.T, p Place) {
	parkedRows := parking(t, p)
	db := openParking(t, p)
	voteFor(t, db, 12, 1, 2, 3)
	must(t, db.CommitVotes())
	voteFor(t, db, 24, 4)
	must(t, db.CommitVotes())
	if n := count(t, p, parkedRows); n != 4 {
		t.Errorf("%d records are parked, want 4", n)
	}
	checkReferences(t, p)
	for _, ttid := range []tid.TID{12, 24} {
		must(t, db.Lock(ttid, ttid, false))
		must(t, db.CommitVotes())
		must(t, db.Unlock(ttid, ttid, true, true, false))
	}
	must(t, db.CommitVotes())
	checkReferences(t, p)
	if n := count(t, p, "obj"); n != 0 {
		t.Errorf("%d records were moved, want none yet", n)
	}
	// A load beside the writer finds what is parked.
	for oid, at := range map[tid.OID]tid.TID{1: 12, 2: 12, 3: 12, 4: 24} {
		checkLoad(t, db, oid, at)
	}
	if n := count(t, p, parkedRows); n != 4 {
		t.Errorf("loads have moved the records: %d are parked, want 4", n)
	}
	voteFor(t, db, 36, 5, 6) // moved with the others, while it is unfinished
	must(t, db.CommitVotes())
	must(t, db.Commit())
	checkReferences(t, p)
	if n := count(t, p, parkedRows) + count(t, p, misplacedRows); n != 0 {
		t.Errorf("%d records are not at their places", n)
	}
	must(t, db.Abort(36))
	must(t, db.Commit())
	for oid, at := range map[tid.OID]tid.TID{1: 12, 4: 24} {
		checkLoad(t, db, oid, at)
	}
}

// An undo shares the data of a record that is parked.
func testParkedDataIsShared(t *testing.T, p Place) {
	db := openParking(t, p)
	voteFor(t, db, 12, 1)
	must(t, db.CommitVotes())
	must(t, db.Lock(12, 12, false))
	must(t, db.CommitVotes())
	must(t, db.Unlock(12, 12, true, true, false))
	id, err := db.HoldData(1, proto.ObjectData{}, proto.Some(tid.TID(12)))
	must(t, err)
	must(t, db.Vote(24, []backend.Store{{OID: 1, Data: id, DataSerial: 12}}, &backend.Meta{OIDs: []tid.OID{1}}, nil))
	must(t, db.CommitVotes())
	checkReferences(t, p)
	must(t, db.Lock(24, 24, false))
	must(t, db.Unlock(24, 24, true, true, false))
	must(t, db.Commit())
	checkReferences(t, p)
	if o, err := db.GetObject(t.Context(), 1, proto.Some(tid.TID(24)), none); err != nil || string(o.Data) != content(1, 12) {
		t.Errorf("%q, %v", o.Data, err)
	}
}

// What is parked when the process dies is data like any other.
func testParkedDataOfKilledProcess(t *testing.T, p Place) {
	parkedRows := parking(t, p)
	db := openParking(t, p)
	voteFor(t, db, 12, 1, 2) // to be finished
	voteFor(t, db, 24, 3)    // to be dropped
	must(t, db.CommitVotes())
	must(t, db.Lock(12, 12, false))
	must(t, db.CommitVotes())
	must(t, db.Unlock(12, 12, true, true, false))
	voteFor(t, db, 36, 1)
	must(t, db.CommitVotes())
	must(t, p.Crash(db))

	db = open(t, p)
	defer func() { must(t, db.Close()) }()
	checkReferences(t, p)
	if n := count(t, p, parkedRows); n != 4 {
		t.Errorf("%d records are parked, want 4", n)
	}
	must(t, db.Validate(12, 12))
	must(t, db.DropUnfinished())
	checkReferences(t, p)
	checkLoad(t, db, 1, 12)
	checkLoad(t, db, 2, 12)
	voteFor(t, db, 48, 1, 2)
	must(t, db.CommitVotes())
	checkReferences(t, p)
	must(t, db.Lock(48, 48, false))
	must(t, db.Unlock(48, 48, true, true, false))
	must(t, db.Commit())
	checkReferences(t, p)
	for oid := range tid.OID(2) {
		for _, at := range []tid.TID{12, 48} {
			checkLoad(t, db, oid+1, at)
		}
	}
}

// Big records, many at once and the only partition gain nothing by being parked.
func testNotParked(t *testing.T, p Place) {
	parkedRows := parking(t, p)
	db := openParking(t, p)
	var many []tid.OID
	for i := range tid.OID(8 * parkPartitions) {
		many = append(many, i)
	}
	voteFor(t, db, 12, many...)
	must(t, db.CommitVotes())
	data := make([]byte, 300<<10)
	id, err := db.HoldData(1, proto.ObjectData{Checksum: sha(string(data)), Data: data}, none)
	must(t, err)
	must(t, db.Vote(24, []backend.Store{{OID: 1, Data: id}}, nil, nil))
	must(t, db.CommitVotes())
	if n := count(t, p, parkedRows); n != 0 {
		t.Errorf("%d records are parked", n)
	}
	checkReferences(t, p)
}

// Transactions in any order and state: at each commit another program would find
// a consistent database, and in the end everything is at its place.
func testParkingAtRandom(t *testing.T, p Place) {
	parkedRows := parking(t, p)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	db := openParking(t, p)
	type txn struct {
		ttid   tid.TID
		oids   []tid.OID
		ids    []backend.DataID
		locked bool
	}
	var running []*txn
	last := map[tid.OID]tid.TID{}
	ttid := tid.TID(0)
	var replicated []tid.TID // of object 50
	for range 400 {
		switch k := r.IntN(13); {
		case k >= 10: // a record is replicated, with new data or those of another one
			ttid += parkPartitions
			from := none
			if len(replicated) > 0 && k == 12 {
				from = proto.Some(replicated[r.IntN(len(replicated))])
			}
			data := content(50, ttid)
			must(t, db.AddObject(50, ttid, proto.ObjectData{Checksum: sha(data), Data: []byte(data)}, from))
			if !from.OK {
				replicated = append(replicated, ttid)
				last[50] = ttid
			}
		case k < 3:
			ttid += parkPartitions
			x := &txn{ttid: ttid}
			for range 1 + r.IntN(5) {
				if oid := tid.OID(r.IntN(40)); !slices.Contains(x.oids, oid) {
					x.oids = append(x.oids, oid)
				}
			}
			x.ids = voteFor(t, db, ttid, x.oids...)
			running = append(running, x)
		case k < 8 && len(running) > 0:
			i := r.IntN(len(running))
			x := running[i]
			switch {
			case x.locked:
				must(t, db.Unlock(x.ttid, x.ttid, true, true, false))
				for _, oid := range x.oids {
					last[oid] = x.ttid
				}
				running = slices.Delete(running, i, i+1)
			case r.IntN(4) == 0:
				must(t, db.Abort(x.ttid))
				must(t, db.ReleaseData(x.ids, true))
				running = slices.Delete(running, i, i+1)
			default:
				must(t, db.Lock(x.ttid, x.ttid, false))
				x.locked = true
			}
		case k == 8:
			for oid, at := range last {
				checkLoad(t, db, oid, at)
				break
			}
			if len(replicated) > 0 { // an undo that is given up
				id, err := db.HoldData(50, proto.ObjectData{}, proto.Some(replicated[r.IntN(len(replicated))]))
				must(t, err)
				ttid += parkPartitions
				meta := &backend.Meta{User: []byte{}, Description: []byte{}, Extension: []byte{}, OIDs: []tid.OID{50}}
				must(t, db.Vote(ttid, []backend.Store{{OID: 50, Data: id, DataSerial: replicated[0]}}, meta, nil))
				running = append(running, &txn{ttid: ttid, ids: []backend.DataID{id}})
			}
		case r.IntN(8) == 0:
			must(t, db.Commit())
			checkReferences(t, p)
			if n := count(t, p, parkedRows); n != 0 {
				t.Fatalf("%d records are parked", n)
			}
		default:
			must(t, db.CommitVotes())
			checkReferences(t, p)
		}
	}
	for _, x := range running {
		must(t, db.Abort(x.ttid))
		must(t, db.ReleaseData(x.ids, true))
	}
	must(t, db.Commit())
	checkReferences(t, p)
	if n := count(t, p, parkedRows) + count(t, p, misplacedRows) + count(t, p, "tobj") + count(t, p, "ttrans"); n != 0 {
		t.Errorf("%d rows are not at their places", n)
	}
	for oid, at := range last {
		checkLoad(t, db, oid, at)
	}
}
