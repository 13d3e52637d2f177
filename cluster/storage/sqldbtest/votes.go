package sqldbtest

import (
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// The votes of clients do not wait for what is replicated beside them: it is written
// when it is a chunk, or much. Until then it can be read, and shared.
func testVotesLeaveWhatIsReplicated(t *testing.T, fresh func(t *testing.T) Place) {
	for _, crash := range []bool{true, false} {
		testVotesBeside(t, fresh(t), crash)
	}
}

func testVotesBeside(t *testing.T, p Place, crash bool) {
	db := openParking(t, p)
	const replicated = 100
	meta := backend.Meta{User: []byte{}, Description: []byte{}, Extension: []byte{}, OIDs: []tid.OID{50}}
	for i := range tid.TID(replicated) {
		at := 12 * (i + 1)
		data := content(50, at)
		must(t, db.AddTransaction(at, meta, nil))
		must(t, db.AddObject(50, at, proto.ObjectData{Checksum: sha(data), Data: []byte(data)}, none))
	}
	check := func(when string, obj, trans int) {
		t.Helper()
		if o, n := count(t, p, "obj"), count(t, p, "trans"); o != obj || n != trans {
			t.Errorf("%s: %d records and %d transactions, want %d and %d", when, o, n, obj, trans)
		}
		checkReferences(t, p)
	}
	voteFor(t, db, 2400, 1, 2, 3)
	must(t, db.CommitVotes())
	check("after a vote", 0, 0)
	must(t, db.Lock(2400, 2400, false))
	must(t, db.CommitVotes())
	must(t, db.Unlock(2400, 2400, true, true, false))
	must(t, db.CommitVotes())
	check("after a commit", 0, 0)
	if n := count(t, p, "tobj"); n != 3 {
		t.Errorf("%d records of the vote, want 3", n)
	}
	checkLoad(t, db, 50, 12)
	checkLoad(t, db, 50, 12*replicated)

	// A vote that shares data makes them durable.
	id, err := db.HoldData(50, proto.ObjectData{}, proto.Some[tid.TID](12))
	must(t, err)
	undo := meta
	must(t, db.Vote(2412, []backend.Store{{OID: 50, Data: id, DataSerial: 12}}, &undo, nil))
	must(t, db.CommitVotes())
	check("after an undo", 0, 0)
	if n := count(t, p, "tobj JOIN data ON data.id = data_id"); n != 4 {
		t.Errorf("%d records of votes have data, want 4", n)
	}

	if crash { // what a process finds that is started then
		must(t, p.Crash(db))
		db := open(t, p)
		if _, err := db.FetchObject(t.Context(), 50, 12); err == nil {
			t.Error("a record that was not committed is there after a crash")
		}
		must(t, db.Close())
		return
	}

	must(t, db.Commit())
	check("after a chunk", replicated+3, replicated+1)

	// Much of it makes room for itself.
	for i := range tid.TID(2000) {
		at := 12 * (i + 500)
		data := content(51, at)
		must(t, db.AddObject(51, at, proto.ObjectData{Checksum: sha(data), Data: []byte(data)}, none))
		if i%100 == 0 {
			voteFor(t, db, 12*(i+5000), 7)
			must(t, db.CommitVotes())
		}
	}
	if n := count(t, p, "obj WHERE oid = 51"); n < 1000 {
		t.Errorf("%d records are written, want most of 2000", n)
	}
	checkReferences(t, p)
}
