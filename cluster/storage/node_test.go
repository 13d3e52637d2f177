package storage

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

func TestInitialization(t *testing.T) {
	r := newRig(t)
	s := r.start(1, backendtest.NewMemory(), nil)
	s.announce(proto.NodePending)
	if a := ask[*proto.AnswerRecovery](s, &proto.AskRecovery{}); a.PTID.OK || a.BackupTID.OK || a.TruncateTID.OK {
		t.Errorf("recovery of an empty database: %+v", a)
	}
	if a := ask[*proto.AnswerPartitionTable](s, &proto.AskPartitionTable{}); a.PTID.OK || len(a.Rows) > 0 {
		t.Errorf("table of an empty database: %+v", a)
	}
	s.announce(proto.NodeRunning)
	s.master.Send(&proto.NotifyClusterInformation{State: proto.Verifying})
	s.master.Send(&proto.SendPartitionTable{PTID: proto.Some[uint64](7), Replicas: 1, Rows: table("UO", "U")})
	if a := ask[*proto.AnswerLockedTransactions](s, &proto.AskLockedTransactions{}); len(a.TIDs) > 0 {
		t.Errorf("unfinished transactions: %+v", a)
	}
	if a := ask[*proto.AnswerFinalTID](s, &proto.AskFinalTID{TTID: 4}); a.TID.OK {
		t.Errorf("final TID: %+v", a)
	}
	s.master.Ask(&proto.AskLastIDs{}, nil)
	if p := expect[*proto.NotifyPackCompleted](s); p.ID != tid.Zero {
		t.Errorf("packed: %v", p.ID)
	}
	if a := expect[*proto.AnswerLastIDs](s); a.LastTID.OK || a.LastOID.OK || a.FirstTID != tid.Max {
		t.Errorf("last ids: %+v", a)
	}
	if a := ask[*proto.AnswerPackOrders](s, &proto.AskPackOrders{}); len(a.Orders) > 0 {
		t.Errorf("pack orders: %+v", a)
	}
	if a := ask[*proto.AnswerPartitionTable](s, &proto.AskPartitionTable{}); a.PTID.V != 7 || a.Replicas != 1 || !cmp.Equal(a.Rows, table("UO", "U")) {
		t.Errorf("table: %+v", a)
	}
	// Nobody is served before StartOperation.
	c := s.dial("c1")
	if got := code(c, &proto.RequestIdentification{Type: proto.Client, ID: clientNode(1).ID, Cluster: "test", IDTimestamp: proto.Some(101.0)}); got != "NOT_READY" {
		t.Errorf("identification before operation: %s", got)
	}
	s.master.Send(&proto.StartOperation{})
	expect[*proto.NotifyReady](s)
	// And nothing of the initialization is accepted after it.
	s.master.Ask(&proto.AskLockedTransactions{}, nil)
	if e := expect[*proto.Error](s); e.ErrCode != proto.ProtocolError {
		t.Errorf("unexpected packet: %v", e)
	}
	s.connected() // the node has hung up and comes back
}

func TestCommitAndLoad(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	c, other := s.client(1), s.client(2)
	s.commit(c, 10, 0, "one", 1, 2)
	if a := call[*proto.AnswerStoreObject](c, store(20, 1, 10, "two")); a.Conflict.OK {
		t.Fatalf("store: %+v", a)
	}
	if a := call[*proto.AnswerFinalTID](c, &proto.AskFinalTID{TTID: 20}); a.TID.OK {
		t.Errorf("final TID before the lock: %+v", a)
	}
	call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 20, User: []byte("u"), Description: []byte("d"), Extension: []byte("e"), OIDs: []tid.OID{1}})
	ask[*proto.AnswerInformationLocked](s, &proto.AskLockInformation{TTID: 20, TID: 22})
	if a := call[*proto.AnswerFinalTID](c, &proto.AskFinalTID{TTID: 20}); a.TID.V != 22 {
		t.Errorf("final TID after the lock: %+v", a)
	}
	// Loads of the object wait, whatever they ask for; those of others don't.
	loads := make(chan proto.Packet, 5)
	for _, req := range []proto.Request{
		&proto.AskObject{OID: 1, Before: proto.Some[tid.TID](12)},
		&proto.AskTIDsFrom{Max: 30, Length: 10, Partition: 0},
		&proto.AskObjectHistory{OID: 1, Last: 10},
		&proto.AskTransactionInformation{TID: 22},
		&proto.AskTIDs{Last: 10, Partition: proto.InvalidPartition},
		&proto.AskObjectUndoSerial{TTID: 30, LastTID: 23, Undone: 10, OIDs: []tid.OID{1}},
	} {
		go func() {
			p, err := try(other, req)
			if err != nil {
				t.Error(err)
			}
			loads <- p
		}()
	}
	call[*proto.AnswerObject](other, &proto.AskObject{OID: 2})
	call[*proto.AnswerTIDsFrom](other, &proto.AskTIDsFrom{Max: 21, Length: 10, Partition: 0})
	call[*proto.AnswerTransactionInformation](other, &proto.AskTransactionInformation{TID: 10})
	eventually(t, "six requests wait", func() bool {
		n := make(chan int)
		s.post(func() error {
			_, d := s.session.txns.Len()
			n <- d
			return nil
		})
		return <-n == 6
	})
	s.master.Send(&proto.NotifyUnlockInformation{TTID: 20})
	for range 6 {
		switch p := (<-loads).(type) {
		case *proto.AnswerObjectUndoSerial:
			want := map[tid.OID]proto.UndoSerial{1: {Current: 22}}
			if diff := cmp.Diff(want, p.Undo); diff != "" {
				t.Errorf("undo (-want +got):\n%s", diff)
			}
		case *proto.AnswerTransactionInformation:
			if p.TID != 22 {
				t.Errorf("transaction: %+v", p)
			}
		case *proto.AnswerTIDs:
			if !cmp.Equal(p.TIDs, []tid.TID{22, 10}) {
				t.Errorf("undo log: %v", p.TIDs)
			}
		case *proto.AnswerObject:
			want := &proto.AnswerObject{OID: 1, Serial: 10, NextSerial: proto.Some[tid.TID](22), ObjectData: data("one")}
			if diff := cmp.Diff(want, p); diff != "" {
				t.Errorf("load of the former revision (-want +got):\n%s", diff)
			}
		case *proto.AnswerTIDsFrom:
			if !cmp.Equal(p.TIDs, []tid.TID{10, 22}) {
				t.Errorf("transactions: %v", p.TIDs)
			}
		case *proto.AnswerObjectHistory:
			if !cmp.Equal(p.History, []proto.Revision{{TID: 22, Size: 3}, {TID: 10, Size: 3}}) {
				t.Errorf("history: %v", p.History)
			}
		default:
			t.Errorf("answered %T", p)
		}
	}
	if a := call[*proto.AnswerTransactionInformation](c, &proto.AskTransactionInformation{TID: 22}); string(a.User)+string(a.Description)+string(a.Extension) != "ude" || !cmp.Equal(a.OIDs, []tid.OID{1}) {
		t.Errorf("transaction: %+v", a)
	}
	if a := call[*proto.AnswerOIDsFrom](c, &proto.AskOIDsFrom{Partition: 1, Length: 10, At: 30}); !cmp.Equal(a.OIDs, []tid.OID{1}) || a.Next.OK {
		t.Errorf("objects: %+v", a)
	}
	if a := call[*proto.AnswerFinalTID](c, &proto.AskFinalTID{TTID: 20}); a.TID.V != 22 {
		t.Errorf("final TID after the commit: %+v", a)
	}
	for _, tt := range []struct {
		req  proto.Request
		want string
	}{
		{&proto.AskObject{OID: 9}, "OID_DOES_NOT_EXIST"},
		{&proto.AskObject{OID: 1, Before: proto.Some[tid.TID](10)}, "OID_NOT_FOUND"},
		{&proto.AskObject{OID: 1, At: proto.Some[tid.TID](11)}, "OID_NOT_FOUND"},
		{&proto.AskObject{OID: 1 << 63}, "OID_DOES_NOT_EXIST"},
		{&proto.AskObject{OID: tid.InvalidOID}, "OID_DOES_NOT_EXIST"},
		{&proto.AskObjectHistory{OID: 9, Last: 1}, "OID_NOT_FOUND"},
		{&proto.AskTransactionInformation{TID: 11}, "TID_NOT_FOUND"},
		{&proto.AskTransactionInformation{TID: tid.Invalid}, "TID_NOT_FOUND"},
		{&proto.AskTIDs{Last: 10, Partition: 7}, "NON_READABLE_CELL"},
		{&proto.AskTIDsFrom{Max: 30, Length: 10, Partition: 7}, "NON_READABLE_CELL"},
		{&proto.AskOIDsFrom{Partition: 7, Length: 10, At: 30}, "NON_READABLE_CELL"},
	} {
		if got := code(c, tt.req); got != tt.want {
			t.Errorf("%T %+v: got %s, want %s", tt.req, tt.req, got, tt.want)
		}
	}
	if a := call[*proto.AnswerObject](c, &proto.AskObject{OID: 1, Before: proto.Some(tid.Invalid)}); a.Serial != 22 {
		t.Errorf("load before the greatest TID: %+v", a)
	}
}

// What no correct client sends ends its connection; the node serves the others.
func TestBadInput(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	good := s.client(2)
	big := make([]tid.OID, proto.MaxOIDs)
	wrong := store(10, 1, 0, "x")
	wrong.Checksum[3]++
	packed := store(10, 1, 0, "x")
	packed.Compression = 2
	hashOnly := store(10, 1, 0, "")
	hashOnly.Checksum = proto.Hash{1}
	for _, tt := range []struct {
		name string
		req  proto.Request
	}{
		{"checksum of other data", wrong},
		{"checksum of other data, no data", hashOnly},
		{"compression", packed},
		{"oid out of range", store(10, 1<<63, 0, "x")},
		{"ttid out of range", store(1<<63, 1, 0, "x")},
		{"no ttid", store(0, 1, 0, "x")},
		{"undo out of range", &proto.AskStoreObject{TTID: 10, OID: 1, DataSerial: proto.Some[tid.TID](1 << 63)}},
		{"check of an oid out of range", &proto.AskCheckCurrentSerial{TTID: 10, OID: 1 << 63}},
		{"vote of an unknown transaction", &proto.AskVoteTransaction{TTID: 99}},
		{"too many objects", &proto.AskStoreTransaction{TTID: 10, OIDs: big}},
		{"too many objects to pack", &proto.AskStoreTransaction{TTID: 10, Pack: &proto.PackRequest{OIDs: big}}},
		{"ttid of metadata out of range", &proto.AskStoreTransaction{TTID: tid.Invalid}},
		{"empty range", &proto.AskTIDs{First: 3, Last: 3}},
		{"empty history", &proto.AskObjectHistory{OID: 1, First: 2, Last: 1}},
		{"no transaction", &proto.AskTIDsFrom{Length: 0}},
		{"no object", &proto.AskOIDsFrom{Length: 0}},
		{"packet for a master", &proto.AskBeginTransaction{}},
		{"packet for a storage", &proto.AskFetchObjects{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c *testClient
			eventually(t, "the former connection has ended", func() bool {
				c = s.dial("c1")
				_, err := try(c, &proto.RequestIdentification{Type: proto.Client, ID: clientNode(1).ID, Cluster: "test", IDTimestamp: proto.Some(101.0)})
				return err == nil
			})
			if got := code(c, tt.req); got != "PROTOCOL_ERROR" {
				t.Errorf("got %s, want PROTOCOL_ERROR", got)
			}
			select {
			case <-c.Done():
			case <-time.After(patience):
				t.Error("the connection was not closed")
			}
		})
	}
	s.commit(good, 12, 0, "good", 1)
}

func TestIdentification(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	request := func(change func(*proto.RequestIdentification)) *proto.RequestIdentification {
		p := &proto.RequestIdentification{Type: proto.Client, ID: clientNode(1).ID, Cluster: "test", IDTimestamp: proto.Some(101.0)}
		change(p)
		return p
	}
	for _, tt := range []struct {
		name string
		req  *proto.RequestIdentification
		want string
	}{
		{"other cluster", request(func(p *proto.RequestIdentification) { p.Cluster = "other" }), "PROTOCOL_ERROR"},
		{"master", request(func(p *proto.RequestIdentification) { p.Type = proto.Master }), "PROTOCOL_ERROR"},
		{"admin", request(func(p *proto.RequestIdentification) { p.Type = proto.Admin }), "PROTOCOL_ERROR"},
		{"anonymous client", request(func(p *proto.RequestIdentification) { p.ID = 0 }), "PROTOCOL_ERROR"},
		{"own id", request(func(p *proto.RequestIdentification) { p.ID, p.Type = 1, proto.Storage }), "PROTOCOL_ERROR"},
		{"stale timestamp", request(func(p *proto.RequestIdentification) { p.IDTimestamp.V = 5 }), "NOT_READY"},
		{"no timestamp", request(func(p *proto.RequestIdentification) { p.IDTimestamp.OK = false }), "NOT_READY"},
		{"unknown client", request(func(p *proto.RequestIdentification) { p.ID = clientNode(9).ID }), "NOT_READY"},
		{"client as storage", request(func(p *proto.RequestIdentification) { p.Type = proto.Storage }), "NOT_READY"},
	} {
		if got := code(s.dial("x"), tt.req); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
	// A client that comes again has lost its connection, which may not be known here.
	first := s.client(1)
	second := s.dial("x")
	call[*proto.AcceptIdentification](second, request(func(*proto.RequestIdentification) {}))
	<-first.Done()
	first = second
	// Of a node that the master announces later, the request waits.
	late := s.dial("c7")
	answers := make(chan error, 1)
	go func() {
		_, err := try(late, request(func(p *proto.RequestIdentification) { p.ID, p.IDTimestamp.V = clientNode(7).ID, 5000 }))
		answers <- err
	}()
	s.barrier()
	node := clientNode(7)
	node.IDTimestamp.V = 5000
	r.stamp = 6000
	s.announce(proto.NodeRunning, node)
	if err := <-answers; err != nil {
		t.Errorf("announced client: %v", err)
	}
	// A new holder of an id replaces the former one.
	node = clientNode(1)
	node.IDTimestamp.V = 5001
	s.announce(proto.NodeRunning, node)
	s.barrier()
	call[*proto.AcceptIdentification](s.dial("c1"), request(func(p *proto.RequestIdentification) { p.IDTimestamp.V = 5001 }))
	<-first.Done()
	// A client that the master forgets is disconnected.
	node.State = proto.NodeUnknown
	node.ID = clientNode(7).ID
	s.announce(proto.NodeRunning, node)
	<-late.Done()
	// An anonymous storage belongs to a backup cluster.
	a := call[*proto.AcceptIdentification](s.dial("b"), &proto.RequestIdentification{Type: proto.Storage, Cluster: "test"})
	if a.ID != 0 || a.YourID != 0 {
		t.Errorf("anonymous storage: %+v", a)
	}
	// The first packet must be the identification.
	if got := code(s.dial("x"), &proto.AskObject{OID: 1}); got != "PROTOCOL_ERROR" {
		t.Errorf("request before identification: %s", got)
	}
}

func TestShutDown(t *testing.T) {
	t.Run("DOWN", func(t *testing.T) {
		s := newRig(t).run(nil)
		s.commit(s.client(1), 10, 0, "x", 1)
		s.announce(proto.NodeDown)
		if err := s.wait(); err != nil {
			t.Errorf("Run returned %v", err)
		}
		if c, err := s.db.Config(); err != nil || c.Name != "test" {
			t.Errorf("configuration after DOWN: %+v, %v", c, err)
		}
	})
	t.Run("UNKNOWN", func(t *testing.T) {
		s := newRig(t).run(nil)
		c := s.client(1)
		s.commit(c, 10, 0, "x", 1)
		call[*proto.AnswerStoreObject](c, store(12, 2, 0, "unvoted"))
		s.announce(proto.NodeUnknown)
		if err := s.wait(); err != nil {
			t.Errorf("Run returned %v", err)
		}
		if c, err := s.db.Config(); err != nil || c.Name != "" || c.PTID.OK {
			t.Errorf("configuration after UNKNOWN: %+v, %v", c, err)
		}
	})
	t.Run("context", func(t *testing.T) {
		s := newRig(t).run(nil)
		c := s.client(1)
		s.commit(c, 10, 0, "x", 1)
		s.cancel()
		if err := s.wait(); err != nil {
			t.Errorf("Run returned %v", err)
		}
		<-c.Done()
	})
}

// The volatile state of a period of operation, its data included, does not
// survive it; what was voted does, until operation begins again.
func TestStopOperation(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	c := s.client(1)
	call[*proto.AnswerStoreObject](c, store(10, 1, 0, "unvoted"))
	call[*proto.AnswerStoreObject](c, store(12, 2, 0, "voted"))
	call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 12, OIDs: []tid.OID{2}, Pack: &proto.PackRequest{Time: 5}})
	call[*proto.AnswerStoreObject](c, store(14, 4, 0, "locked"))
	call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 14, OIDs: []tid.OID{4}})
	ask[*proto.AnswerInformationLocked](s, &proto.AskLockInformation{TTID: 14, TID: 16})

	s.master.Send(&proto.StopOperation{})
	// At once, although the node may wait for answers (unfinished transactions).
	s.master.Send(&proto.Truncate{TID: 100})
	s.announce(proto.NodePending)
	if a := ask[*proto.AnswerRecovery](s, &proto.AskRecovery{}); a.TruncateTID.V != 100 {
		t.Errorf("truncate TID: %+v", a)
	}
	<-c.Done()
	want := map[tid.TID]proto.Opt[tid.TID]{12: {}, 14: proto.Some[tid.TID](16)}
	if a := ask[*proto.AnswerLockedTransactions](s, &proto.AskLockedTransactions{}); !cmp.Equal(a.TIDs, want) {
		t.Errorf("unfinished: %v, want %v", a.TIDs, want)
	}
	if n := orphans(t, s.db); n != 0 {
		t.Errorf("%d records were left without reference nor protection", n)
	}
	s.master.Send(&proto.ValidateTransaction{TTID: 14, TID: 16})
	s.initialize(2, table("U", "U"))
	if a := ask[*proto.AnswerRecovery](s, &proto.AskRecovery{}); a.TruncateTID.OK {
		t.Errorf("truncate TID after AskLastIDs: %+v", a)
	}
	s.operate()
	c = s.client(1)
	if a := call[*proto.AnswerObject](c, &proto.AskObject{OID: 4}); a.Serial != 16 {
		t.Errorf("validated object: %+v", a)
	}
	for _, oid := range []tid.OID{1, 2} {
		if got := code(c, &proto.AskObject{OID: oid}); got != "OID_DOES_NOT_EXIST" {
			t.Errorf("object %v: %s", oid, got)
		}
	}
	if n := orphans(t, s.db); n != 0 {
		t.Errorf("%d orphan records", n)
	}
	// The pack order of a dropped transaction is not reported.
	if a := ask[*proto.AnswerPackOrders](s, &proto.AskPackOrders{}); len(a.Orders) > 0 {
		t.Errorf("pack orders: %+v", a.Orders)
	}
}

func orphans(t *testing.T, db backend.Backend) (n int) {
	t.Helper()
	for id, err := range db.Orphans(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("orphan %v", id)
		n++
	}
	return n
}

// Transactions that were being committed when the master died are found by the
// verification, whatever the node forgot.
func TestMasterLost(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	c := s.client(1)
	call[*proto.AnswerStoreObject](c, store(14, 4, 0, "locked"))
	call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 14, OIDs: []tid.OID{4}})
	ask[*proto.AnswerInformationLocked](s, &proto.AskLockInformation{TTID: 14, TID: 16})
	s.master.Close()
	if p := s.connected(); p.ID != 1 || p.Cluster != "test" {
		t.Errorf("identification after the loss: %+v", p)
	}
	<-c.Done()
	s.announce(proto.NodePending)
	want := map[tid.TID]proto.Opt[tid.TID]{14: proto.Some[tid.TID](16)}
	if a := ask[*proto.AnswerLockedTransactions](s, &proto.AskLockedTransactions{}); !cmp.Equal(a.TIDs, want) {
		t.Errorf("unfinished: %v, want %v", a.TIDs, want)
	}
}

// lossLevels takes the levels of the lines about lost masters.
type lossLevels struct {
	slog.Handler
	got chan slog.Level
}

func (l *lossLevels) WithAttrs(a []slog.Attr) slog.Handler {
	return &lossLevels{l.Handler.WithAttrs(a), l.got}
}

func (l *lossLevels) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "connection to the master lost" {
		l.got <- r.Level
	}
	return l.Handler.Handle(ctx, r)
}

// The loss of the master is worth a warning if the storage serves. One that waits loses nothing:
// of masters that are started together, one becomes secondary.
func TestLossOfAMasterIsWarnedOfInOperation(t *testing.T) {
	r := newRig(t)
	l := &lossLevels{slog.NewTextHandler(testWriter{t}, nil), make(chan slog.Level, 10)}
	s := r.start(1, backendtest.NewMemory(), func(c *Config) { c.Log = slog.New(l) })
	s.master.Close()
	s.connected()
	if got := <-l.got; got != slog.LevelInfo {
		t.Errorf("before the operation: %v", got)
	}
	s.initialize(1, table("U", "U"))
	s.operate()
	s.master.Close()
	s.connected()
	if got := <-l.got; got != slog.LevelWarn {
		t.Errorf("in operation: %v", got)
	}
}

// An unlock may be lost in a crash, but a vote and a lock may not.
func TestCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no commit comes by itself meanwhile
		r := newRig(t)
		mem := backendtest.NewMemory()
		s := r.start(1, mem, nil)
		s.initialize(1, table("U", "U"))
		s.operate()
		c := s.client(1)
		s.commit(c, 10, 0, "one", 1)
		call[*proto.AnswerStoreObject](c, store(12, 2, 0, "voted"))
		call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 12, OIDs: []tid.OID{2}})
		call[*proto.AnswerStoreObject](c, store(14, 4, 0, "two"))
		call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 14, OIDs: []tid.OID{4}})
		ask[*proto.AnswerInformationLocked](s, &proto.AskLockInformation{TTID: 14, TID: 16})
		s.master.Send(&proto.NotifyUnlockInformation{TTID: 14})
		s.barrier()
		if err := mem.Crash(); err != nil {
			t.Fatal(err)
		}
		s.cancel()
		s.wait()

		s = r.start(1, mem, nil)
		s.announce(proto.NodePending)
		got := ask[*proto.AnswerLockedTransactions](s, &proto.AskLockedTransactions{}).TIDs
		want := map[tid.TID]proto.Opt[tid.TID]{12: {}, 14: proto.Some[tid.TID](16)}
		if !cmp.Equal(got, want) {
			t.Errorf("unfinished after a crash: %v, want %v", got, want)
		}
	})
}

// slowCommits is a database whose commits wait until they are let go.
type slowCommits struct {
	backend.Backend
	begun, goOn chan struct{}
}

func (b *slowCommits) Commit() error {
	if b.goOn != nil {
		b.begun <- struct{}{}
		<-b.goOn
	}
	return b.Backend.Commit()
}

func (b *slowCommits) CommitVotes() error { return b.Commit() }

// Votes that arrive during a commit share the next one, and loads do not wait
// for either.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no commit comes by itself meanwhile
		r := newRig(t)
		slow := &slowCommits{}
		s := r.run(func(c *Config) {
			slow.Backend = c.Backend
			c.Backend = slow
		})
		c := s.client(1)
		s.commit(c, 2, 0, "zero", 0)
		begun, goOn := make(chan struct{}, 100), make(chan struct{})
		s.post(func() error { slow.begun, slow.goOn = begun, goOn; return nil })
		votes := make(chan error, 10)
		vote := func(ttid tid.TID) {
			call[*proto.AnswerStoreObject](c, store(ttid, tid.OID(ttid), 0, "x"))
			go func() {
				_, err := try(c, &proto.AskStoreTransaction{TTID: ttid, OIDs: []tid.OID{tid.OID(ttid)}})
				votes <- err
			}()
		}
		vote(10)
		<-begun
		for ttid := tid.TID(12); ttid < 20; ttid++ {
			c.Ask(store(ttid, tid.OID(ttid), 0, "x"), nil)
			go func() {
				_, err := try(c, &proto.AskStoreTransaction{TTID: ttid, OIDs: []tid.OID{tid.OID(ttid)}})
				votes <- err
			}()
		}
		for range 10 {
			call[*proto.AnswerObject](s.loads(c), &proto.AskObject{OID: 0})
		}
		eventually(t, "all votes have arrived", func() bool { return len(s.inbox) == 16 })
		goOn <- struct{}{}
		<-begun
		goOn <- struct{}{}
		for range 9 {
			if err := <-votes; err != nil {
				t.Error(err)
			}
		}
		if len(begun) > 0 {
			t.Error("more than two commits for nine votes")
		}
		ended := make(chan struct{})
		s.post(func() error { slow.goOn = nil; close(ended); return nil })
		<-ended // before the last commit
	})
}

// loads returns the client itself: its loads need not wait for what it voted.
func (s *testNode) loads(c *testClient) *testClient { return c }

func TestDisableDrop(t *testing.T) {
	r := newRig(t)
	s := r.run(func(c *Config) { c.DisableDrop = true })
	s.commit(s.client(1), 10, 0, "x", 2)
	s.master.Send(&proto.NotifyPartitionChanges{PTID: 2, Cells: []proto.CellChange{{Partition: 0, ID: 2, State: proto.UpToDate}, {Partition: 0, ID: 1, State: proto.Discarded}}})
	s.barrier()
	time.Sleep(20 * time.Millisecond)
	if _, obj, err := s.db.LastTIDs(t.Context(), 0); err != nil || obj != 10 {
		t.Errorf("last record of the discarded cell: %v, %v", obj, err)
	}
}

// A node that gets a cell between the stores and the finish of a transaction
// locks and unlocks it without knowing it.
func TestLockOfForeignTransaction(t *testing.T) {
	r := newRig(t)
	s := r.start(1, backendtest.NewMemory(), nil)
	s.initialize(1, table("U.", ".U"), proto.Node{Type: proto.Storage, ID: 2, State: proto.NodeRunning})
	s.operate()
	s.master.Send(&proto.NotifyPartitionChanges{PTID: 2, Cells: []proto.CellChange{{Partition: 1, ID: 1, State: proto.OutOfDate}}})
	if p := expect[*proto.AskUnfinishedTransactions](s); !cmp.Equal(p.Partitions, []int{1}) {
		t.Errorf("unfinished transactions of %v", p.Partitions)
	}
	ask[*proto.AnswerInformationLocked](s, &proto.AskLockInformation{TTID: 11, TID: 13})
	s.master.Send(&proto.NotifyUnlockInformation{TTID: 11})
	s.barrier()
}

func TestNewNodeID(t *testing.T) {
	r := newRig(t)
	mem := backendtest.NewMemory()
	db, err := mem.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Cluster: "test", Backend: db, NewID: true, Network: r.net.Host("s9"), Bind: proto.Address{Host: "s9"}}); !errors.Is(err, ErrEmpty) {
		t.Errorf("clone of an empty database: %v", err)
	}
	db.Close()
	s := r.start(1, mem, nil)
	s.initialize(1, table("U", "U"))
	s.operate()
	s.commit(s.client(1), 10, 0, "x", 1)
	s.announce(proto.NodeDown)
	if err := s.wait(); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	db, err = mem.Open()
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan *proto.RequestIdentification, 1)
	s = &testNode{rig: r, id: 4, ended: make(chan error, 1)}
	s.Node, err = New(s.config(db))
	if err != nil {
		t.Fatal(err)
	}
	go func() { s.ended <- s.Node.Run(t.Context()) }()
	asked <- s.connected()
	if p := <-asked; p.ID != 0 || !p.Addr.IsZero() || !cmp.Equal(p.Extra["new_nid"], proto.Value([]proto.Value{int64(0), int64(1)})) {
		t.Errorf("identification of a clone: %+v", p)
	}
	s.announce(proto.NodeDown)
	if err := s.wait(); err != nil {
		t.Fatal(err)
	}
	c, err := db.Config()
	cells, _ := db.Cells()
	if err != nil || c.ID != 4 || len(cells) != 2 || cells[0].ID != 4 {
		t.Errorf("after the clone: %+v %+v, %v", c, cells, err)
	}
}

func (s *testNode) config(db backend.Backend) Config {
	return Config{Cluster: "test", Backend: db, NewID: true, Network: s.rig.net.Host("s4"), Bind: proto.Address{Host: "s4", Port: 1000},
		Masters: newMasters()}
}

func TestWrongCluster(t *testing.T) {
	r := newRig(t)
	mem := backendtest.NewMemory()
	db, err := mem.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := db.SetName("other"); err != nil {
		t.Fatal(err)
	}
	_, err = New(Config{Cluster: "test", Backend: db, Network: r.net.Host("s1")})
	if err == nil || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("database of another cluster: %v", err)
	}
}

// A master that refuses the node for good ends it.
func TestRefused(t *testing.T) {
	r := newRig(t)
	mem := backendtest.NewMemory()
	db, err := mem.Open()
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(Config{Cluster: "test", Backend: db, Network: r.net.Host("s1"), Bind: proto.Address{Host: "s1"}, Masters: newMasters()})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- n.Run(t.Context()) }()
	conn := <-r.conns
	var ev link.Event = <-conn.Tag.(chan link.Event)
	conn.AbortError(ev.ID, proto.ProtocolError, "invalid cluster name")
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "invalid cluster name") {
		t.Errorf("Run returned %v", err)
	}
}
