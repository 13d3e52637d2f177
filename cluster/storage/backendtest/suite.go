package backendtest

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// Database is a place where a backend keeps its data.
type Database interface {
	// Open opens it. Nobody else has it open.
	Open() (backend.Backend, error)
	// Crash ends the use of the backend that is open as the death of its process
	// would: nothing is written any more. What was committed is there at the next Open.
	Crash() error
}

// Run checks that a backend keeps the promises of package backend. fresh makes a
// new, empty database.
func Run(t *testing.T, fresh func(t *testing.T) Database) {
	for _, tt := range []struct {
		name string
		run  func(e *env)
	}{
		{"Configuration", testConfiguration},
		{"PartitionTable", testPartitionTable},
		{"OutOfDateCells", testOutOfDateCells},
		{"OutOfDateBeforeValidation", testOutOfDateBeforeValidation},
		{"OutOfDateBeforeTruncation", testOutOfDateBeforeTruncation},
		{"ChangeOfID", testChangeOfID},
		{"PackedIDs", testPackedIDs},
		{"Revisions", testRevisions},
		{"RevisionsNotCommitted", testRevisionsNotCommitted},
		{"LastRevision", testLastRevision},
		{"Deletion", testDeletion},
		{"NonReadable", testNonReadable},
		{"HeldData", testHeldData},
		{"ReleasedDataOfDroppedState", testReleasedDataOfDroppedState},
		{"ManyHeldRecords", testManyHeldRecords},
		{"Undo", testUndo},
		{"UndoPacked", testUndoPacked},
		{"SharedDataSurvives", testSharedDataSurvives},
		{"Histories", testHistories},
		{"Unfinished", testUnfinished},
		{"ValidateParts", testValidateParts},
		{"DropUnfinished", testDropUnfinished},
		{"DropUnfinishedPartitions", testDropUnfinishedPartitions},
		{"Abort", testAbort},
		{"VoteTwice", testVoteTwice},
		{"PackOrders", testPackOrders},
		{"PackOrderOfAbortedTransaction", testPackOrderOfAborted},
		{"Pack", testPack},
		{"PackListed", testPackListed},
		{"PackKeepsDeletions", testPackKeepsDeletions},
		{"PackedByOthers", testPackedByOthers},
		{"DropPartition", testDropPartition},
		{"Truncate", testTruncate},
		{"Replicate", testReplicate},
		{"ReplicateAgain", testReplicateAgain},
		{"Digests", testDigests},
		{"Orphans", testOrphans},
		{"Crash", testCrash},
		{"EveryOperationFailsOnce", testEveryOperationFailsOnce},
		{"Erase", testErase},
		{"Concurrency", testConcurrency},
		{"ConcurrentTransactions", testConcurrentTransactions},
		{"DeferredUnlock", testDeferredUnlock},
		{"RandomWorkMatchesModel", testRandomWork},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := &env{T: t, database: fresh(t), fresh: fresh}
			e.open()
			tt.run(e)
			if e.b != nil {
				if err := e.b.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
		})
	}
}

const (
	np = 4
	me = proto.NodeID(3)
)

// env is a test with its database.
type env struct {
	*testing.T
	database Database
	fresh    func(t *testing.T) Database
	b        backend.Backend
	clock    tid.TID
}

func (e *env) open() {
	e.Helper()
	b, err := e.database.Open()
	if err != nil {
		e.Fatalf("Open: %v", err)
	}
	e.b = b
}

// reopen closes and opens the database.
func (e *env) reopen() {
	e.Helper()
	e.ok(e.b.Close())
	e.open()
}

// crash kills the backend and opens the database again.
func (e *env) crash() {
	e.Helper()
	e.ok(e.database.Crash())
	e.open()
}

func (e *env) ok(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *env) is(err, want error) {
	e.Helper()
	if !errors.Is(err, want) {
		e.Errorf("error %v, want %v", err, want)
	}
}

func (e *env) equal(what string, got, want any) {
	e.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		e.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// table makes every partition UP_TO_DATE here.
func (e *env) table() {
	e.Helper()
	var cells []proto.CellChange
	for p := range np {
		cells = append(cells, proto.CellChange{Partition: p, ID: me, State: proto.UpToDate})
	}
	e.ok(e.b.SetID(me))
	e.ok(e.b.ChangePartitionTable(7, 1, cells, true, 0))
	e.ok(e.b.Commit())
}

// change makes one change of the partition table.
func (e *env) change(p int, id proto.NodeID, state proto.CellState) {
	e.Helper()
	cfg, err := e.b.Config()
	e.ok(err)
	e.ok(e.b.ChangePartitionTable(cfg.PTID.V+1, 1, []proto.CellChange{{Partition: p, ID: id, State: state}}, false, 0))
}

// record makes a record from a text.
func rec(text string) proto.ObjectData {
	return proto.ObjectData{Compression: uint8(len(text) % 2), Checksum: sha1.Sum([]byte(text)), Data: []byte(text)}
}

// next returns a TID in a partition, greater than those before.
func (e *env) next(partition int) tid.TID {
	e.clock = (e.clock/np+1)*np + tid.TID(partition)
	return e.clock
}

var none proto.Opt[tid.TID]

type change struct {
	oid  tid.OID
	text string  // "-": delete
	undo tid.TID // share the data of that revision
}

// vote stores and votes a transaction.
func (e *env) vote(ttid tid.TID, changes ...change) []backend.Store {
	e.Helper()
	stores, meta := e.hold(ttid, changes...)
	e.ok(e.b.Vote(ttid, stores, meta, nil))
	return stores
}

func (e *env) hold(ttid tid.TID, changes ...change) ([]backend.Store, *backend.Meta) {
	e.Helper()
	meta := &backend.Meta{User: []byte("joe"), Description: fmt.Appendf(nil, "transaction %v", ttid), Extension: []byte{}, TTID: ttid}
	var stores []backend.Store
	for _, c := range changes {
		d := rec(c.text)
		if c.text == "-" {
			d = proto.ObjectData{}
		}
		id, err := e.b.HoldData(c.oid, d, proto.Opt[tid.TID]{V: c.undo, OK: c.undo != 0})
		e.ok(err)
		stores = append(stores, backend.Store{OID: c.oid, Data: id, DataSerial: c.undo})
		meta.OIDs = append(meta.OIDs, c.oid)
	}
	return stores, meta
}

// commit carries a transaction through the two phases, with every commit that a
// node makes. The last one is deferred.
func (e *env) commit(ttid, final tid.TID, changes ...change) []backend.Store {
	e.Helper()
	stores := e.vote(ttid, changes...)
	e.ok(e.b.CommitVotes())
	e.ok(e.b.Lock(ttid, final, false))
	e.ok(e.b.CommitVotes())
	e.ok(e.b.Unlock(ttid, final, true, len(stores) > 0, false))
	return stores
}

// at and before are arguments of GetObject.
type query struct{ at, before tid.TID }

func (q query) args() (at, before proto.Opt[tid.TID]) {
	return proto.Opt[tid.TID]{V: q.at, OK: q.at != 0}, proto.Opt[tid.TID]{V: q.before, OK: q.before != 0}
}

// load describes the answer of GetObject as text. GetObjects must answer the same.
func (e *env) load(oid tid.OID, q query) string {
	e.Helper()
	at, before := q.args()
	o, err := e.b.GetObject(e.Context(), oid, at, before)
	want := describe(o, err)
	key := backend.ObjectKey{OID: oid, At: at, Before: before}
	keys := slices.Repeat([]backend.ObjectKey{key, {OID: oid + np, At: at, Before: before}, key, {OID: oid, At: proto.Some(tid.TID(1))}}, 1+int(oid)%16/15*16)
	seen := make([]int, len(keys))
	e.b.GetObjects(context.Background(), keys, func(i int, o *backend.Object, err error) bool {
		if seen[i]++; err != nil {
			o = &backend.Object{}
		}
		if got := describe(*o, err); keys[i] == key && got != want {
			e.Errorf("object %v, %+v is %q, among others %q", oid, q, want, got)
		}
		return true
	})
	for i, n := range seen {
		if n != 1 {
			e.Errorf("%d answers for key %d of %d", n, i, len(keys))
		}
	}
	n := 0
	e.b.GetObjects(context.Background(), keys, func(int, *backend.Object, error) bool { n++; return n < 3 })
	if n != 3 {
		e.Errorf("%d answers, though the third was to be the last", n)
	}
	return want
}

func describe(o backend.Object, err error) string {
	switch {
	case errors.Is(err, backend.ErrNoSuchObject):
		return "no such object"
	case errors.Is(err, backend.ErrNotFound):
		return "not found"
	case errors.Is(err, backend.ErrNonReadable):
		return "not readable"
	case err != nil:
		return err.Error()
	}
	return show(o)
}

func show(o backend.Object) string {
	s := fmt.Sprintf("%d", o.Serial)
	if o.Next != tid.Zero {
		s += fmt.Sprintf("<%d", o.Next)
	}
	if o.DataSerial != tid.Zero {
		s += fmt.Sprintf(" as %d", o.DataSerial)
	}
	if o.Checksum == proto.ZeroHash {
		return s + " absent"
	}
	if want := rec(string(o.Data)); want.Checksum != o.Checksum || want.Compression != o.Compression {
		return s + " corrupt"
	}
	return s + " " + string(o.Data)
}

func (e *env) loads(oid tid.OID, q query, want string) {
	e.Helper()
	if got := e.load(oid, q); got != want {
		e.Errorf("object %d at %d before %d: %s, want %s", oid, q.at, q.before, got, want)
	}
}

// lastObject is LastObjectTID as the node asks it.
func (e *env) lastObject(oid tid.OID) (proto.Opt[tid.TID], error) {
	for {
		last, err := e.b.LastObjectTID(e.Context(), oid)
		if !errors.Is(err, backend.ErrNotPrepared) {
			return last, err
		}
		if err := e.b.(backend.Preparing).Prepare(e.Context(), oid); err != nil {
			return last, err
		}
	}
}

// gone checks that data was deleted.
func (e *env) gone(id backend.DataID) {
	e.Helper()
	if _, err := e.b.LoadData(id); !errors.Is(err, backend.ErrNotFound) {
		e.Errorf("data %x is still there: %v", id.ID, err)
	}
}

func (e *env) kept(id backend.DataID, want string) {
	e.Helper()
	d, err := e.b.LoadData(id)
	if err != nil || string(d.Data) != want {
		e.Errorf("data %x: %q, %v, want %q", id.ID, d.Data, err, want)
	}
}

// orphans returns the number of records of data that nothing refers to.
func (e *env) orphans() int {
	e.Helper()
	n := 0
	for _, err := range e.b.Orphans(e.Context()) {
		e.ok(err)
		n++
	}
	return n
}
