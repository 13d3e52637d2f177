package storage

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// backupPair runs S1 of cluster "up", with data, and S2 of the backup cluster.
func (r *rig) backupPair() (up, b *testNode, c *testClient) {
	r.t.Helper()
	up = r.start(1, backendtest.NewMemory(), func(c *Config) { c.Cluster = "up" })
	up.initialize(1, table("U", "U"))
	up.operate()
	c = up.dial("u1")
	call[*proto.AcceptIdentification](c, &proto.RequestIdentification{Type: proto.Client, ID: clientNode(1).ID, Cluster: "up", IDTimestamp: proto.Some(101.0)})
	b = r.start(2, backendtest.NewMemory(), nil)
	b.initialize(1, table(".U", ".U"))
	b.master.Send(&proto.StartOperation{Backup: true})
	expect[*proto.NotifyReady](b)
	return up, b, c
}

func (s *testNode) replicateFrom(t tid.TID, cluster string, from *testNode, partitions ...int) {
	s.rig.t.Helper()
	s.replicateUpTo(t, t, cluster, from, partitions...)
}

// replicateUpTo is replicateFrom for cells that are not complete then, but up to want.
func (s *testNode) replicateUpTo(t, want tid.TID, cluster string, from *testNode, partitions ...int) {
	s.rig.t.Helper()
	p := &proto.Replicate{TID: t, Upstream: cluster, Sources: map[int]proto.Address{}}
	for _, i := range partitions {
		p.Sources[i] = from.Addr()
	}
	s.master.Send(p)
	for range partitions {
		if d := await[*proto.NotifyReplicationDone](s); d.TID != want {
			s.rig.t.Errorf("done: %+v, want %v", d, want)
		}
	}
}

func (s *testNode) backedUp() proto.Opt[tid.TID] {
	c, err := s.db.Config()
	if err != nil {
		s.rig.t.Fatal(err)
	}
	return c.BackupTID
}

// A backup cluster follows another one, and shows its clients nothing that is
// not complete everywhere.
func TestBackup(t *testing.T) {
	r := newRig(t)
	up, b, c := r.backupPair()
	if got := b.backedUp(); got != proto.Some(tid.Zero) {
		t.Errorf("backup TID of an empty database: %v", got)
	}
	up.commit(c, 10, 0, "one", 0, 1)
	up.commit(c, 13, 10, "two", 0, 1)
	b.replicateFrom(13, "up", up, 0, 1)
	if got := b.backedUp(); got.V != 13 {
		t.Errorf("backup TID: %v", got)
	}
	if diff := cmp.Diff(contents(t, up.db), contents(t, b.db)); diff != "" {
		t.Errorf("backup (-want +got):\n%s", diff)
	}
	// A transaction that only partition 1 has, yet.
	up.commit(c, 15, 13, "three", 0, 1, 3)
	b.replicateFrom(15, "up", up, 1)
	if got := b.backedUp(); got.V != 13 {
		t.Errorf("backup TID with one partition ahead: %v", got)
	}
	reader := b.client(1)
	if a := call[*proto.AnswerObject](reader, &proto.AskObject{OID: 1}); a.Serial != 13 || a.NextSerial.OK {
		t.Errorf("load: %+v", a)
	}
	if a := call[*proto.AnswerObject](reader, &proto.AskObject{OID: 1, Before: proto.Some[tid.TID](99)}); a.Serial != 15 {
		t.Errorf("load before, of a partition that has more: %+v", a)
	}
	if a := call[*proto.AnswerObject](reader, &proto.AskObject{OID: 0, Before: proto.Some[tid.TID](99)}); a.Serial != 13 {
		t.Errorf("load before, of a partition that is behind: %+v", a)
	}
	if a := call[*proto.AnswerTransactionInformation](reader, &proto.AskTransactionInformation{TID: 15}); a.TID != 15 {
		t.Errorf("transaction: %+v", a)
	}
	if a := call[*proto.AnswerObjectHistory](reader, &proto.AskObjectHistory{OID: 1, Last: 5}); !cmp.Equal(a.History, []proto.Revision{{TID: 13, Size: 3}, {TID: 10, Size: 3}}) {
		t.Errorf("history: %+v", a)
	}
	if a := call[*proto.AnswerTIDs](reader, &proto.AskTIDs{Last: 5, Partition: 1}); !cmp.Equal(a.TIDs, []tid.TID{13}) {
		t.Errorf("transactions: %+v", a)
	}
	if a := call[*proto.AnswerTIDsFrom](reader, &proto.AskTIDsFrom{Max: 99, Length: 5, Partition: 1}); !cmp.Equal(a.TIDs, []tid.TID{13, 15}) {
		t.Errorf("transactions from: %+v", a)
	}
	if a := call[*proto.AnswerOIDsFrom](reader, &proto.AskOIDsFrom{Partition: 1, Length: 5, At: 99}); !cmp.Equal(a.OIDs, []tid.OID{1, 3}) {
		t.Errorf("objects: %+v", a)
	}
	if a := call[*proto.AnswerObjectUndoSerial](reader, &proto.AskObjectUndoSerial{TTID: 20, LastTID: 99, Undone: 13, OIDs: []tid.OID{1}}); a.Undo[1] != (proto.UndoSerial{Current: 13, Undo: proto.Some[tid.TID](10), IsCurrent: true}) {
		t.Errorf("undo: %+v", a)
	}
	for _, tt := range []struct {
		req  proto.Request
		want string
	}{
		{&proto.AskObject{OID: 0, At: proto.Some[tid.TID](15)}, "OID_NOT_FOUND"},
		{store(20, 1, 13, "x"), "READ_ONLY_ACCESS"},
		{&proto.AskStoreTransaction{TTID: 20}, "READ_ONLY_ACCESS"},
		{&proto.AskVoteTransaction{TTID: 20}, "READ_ONLY_ACCESS"},
		{&proto.AskCheckCurrentSerial{TTID: 20}, "READ_ONLY_ACCESS"},
		{&proto.AskRelockObject{TTID: 20}, "READ_ONLY_ACCESS"},
		{&proto.AskFinalTID{TTID: 20}, "READ_ONLY_ACCESS"},
	} {
		if got := code(reader, tt.req); got != tt.want {
			t.Errorf("%T: got %s, want %s", tt.req, got, tt.want)
		}
	}
	b.replicateFrom(15, "up", up, 0)
	if a := call[*proto.AnswerObject](reader, &proto.AskObject{OID: 1}); a.Serial != 15 {
		t.Errorf("load when all is there: %+v", a)
	}
	if a := call[*proto.AnswerOIDsFrom](reader, &proto.AskOIDsFrom{Partition: 1, Length: 5, At: 99}); !cmp.Equal(a.OIDs, []tid.OID{1, 3}) {
		t.Errorf("objects when all is there: %+v", a)
	}
	// Nothing new in either partition: only the TID advances.
	b.master.Send(&proto.Replicate{TID: 20, Upstream: "", Sources: map[int]proto.Address{0: {}, 1: {}}})
	b.barrier()
	if got := b.backedUp(); got.V != 20 {
		t.Errorf("backup TID without data: %v", got)
	}
	// The same again after a restart of operation.
	b.master.Send(&proto.StopOperation{})
	b.initialize(2, table(".U", ".U"))
	b.master.Send(&proto.StartOperation{Backup: true})
	expect[*proto.NotifyReady](b)
	if got := b.backedUp(); got.V != 20 {
		t.Errorf("backup TID after a restart: %v", got)
	}
	up.commit(c, 21, 15, "four", 0)
	b.replicateFrom(21, "up", up, 0, 1)
	if diff := cmp.Diff(contents(t, up.db), contents(t, b.db)); diff != "" {
		t.Errorf("backup (-want +got):\n%s", diff)
	}
	// Leaving backup mode forgets the TID.
	b.master.Send(&proto.StopOperation{})
	b.master.Send(&proto.Truncate{TID: 15})
	b.initialize(3, table(".U", ".U"))
	b.operate()
	if got := b.backedUp(); got.OK {
		t.Errorf("backup TID after backup mode: %v", got)
	}
	if a := call[*proto.AnswerObject](b.client(1), &proto.AskObject{OID: 0}); a.Serial != 15 {
		t.Errorf("load after the truncation: %+v", a)
	}
}

// An undo may refer to a record that was packed away upstream: its data are given.
func TestBackupOfPackedUndo(t *testing.T) {
	r := newRig(t)
	up, b, c := r.backupPair()
	up.commit(c, 10, 0, "one", 1)
	up.commit(c, 13, 10, "two", 1)
	undo := store(15, 1, 13, "one")
	undo.DataSerial = proto.Some[tid.TID](10)
	call[*proto.AnswerStoreObject](c, undo)
	up.finish(c, 15, 1)
	if _, _, err := up.db.Pack(1, 14, nil, tid.Max, proto.Opt[tid.OID]{}, 100); err != nil {
		t.Fatal(err)
	}
	b.replicateFrom(15, "up", up, 0, 1)
	if a := call[*proto.AnswerObject](b.client(1), &proto.AskObject{OID: 1}); a.Serial != 15 || string(a.Data) != "one" || a.DataSerial.V != 10 {
		t.Errorf("undone object: %+v", a)
	}
}

// A running cluster that becomes a backup keeps what it has.
func TestEnterBackup(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	s.commit(s.client(1), 10, 0, "one", 0, 1)
	s.master.Send(&proto.StartOperation{Backup: true})
	s.barrier()
	if got := s.backedUp(); got.V != 10 {
		t.Errorf("backup TID: %v", got)
	}
	s.master.Send(&proto.NotifyClusterInformation{State: proto.StoppingBackup})
	s.barrier()
}

// A replica that was behind when the cluster left backup mode, and is outdated after
// that, gets what it has not replicated.
func TestLeaveBackupBehind(t *testing.T) {
	r := newRig(t)
	up, b, c := r.backupPair()
	up.commit(c, 10, 0, "one", 0, 1)
	b.replicateFrom(10, "up", up, 0, 1)
	// Transactions come before their records.
	if err := b.db.AddTransaction(14, backend.Meta{TTID: 14, OIDs: []tid.OID{0}}, nil); err != nil {
		t.Fatal(err)
	}
	b.master.Send(&proto.StopOperation{})
	b.master.Send(&proto.Truncate{TID: 14})
	s3 := r.scriptedStorage(3)
	b.initialize(3, table(".OU", ".OU"), s3.node)
	b.operate()
	b.unfinished(14)
	s3.accept(b)
	for range 2 {
		ev := asked[*proto.AskFetchTransactions](t, s3.events)
		if q := ev.Packet.(*proto.AskFetchTransactions); q.Min > 11 {
			t.Errorf("partition %d: transactions from %d on, though records after 10 are missing", q.Partition, q.Min)
		}
		ev.Conn.Answer(ev.ID, &proto.AnswerFetchTransactions{})
		ev = asked[*proto.AskFetchObjects](t, s3.events)
		if q := ev.Packet.(*proto.AskFetchObjects); q.Min > 11 {
			t.Errorf("partition %d: records from %d on, though those after 10 are missing", q.Partition, q.Min)
		}
		ev.Conn.Answer(ev.ID, &proto.AnswerFetchObjects{})
	}
}

// A master that was restarted is told of cells that are further than the node as a
// whole, before it is told what the node has recorded. One that has no terms is not.
func TestBackupTellsWhatCellsHave(t *testing.T) {
	r := newRig(t)
	up, b, c := r.backupPair()
	up.commit(c, 10, 0, "one", 0, 1)
	b.replicateFrom(10, "up", up, 0, 1)
	up.commit(c, 15, 10, "two", 0, 1)
	b.replicateFrom(15, "up", up, 1)
	for _, agreed := range []bool{true, true, false} {
		b.master.Send(&proto.StopOperation{})
		b.initialize(2, table(".U", ".U"))
		if agreed {
			b.agree(following.Terms{})
		}
		b.master.Send(&proto.StartOperation{Backup: true})
		expect[*proto.NotifyReady](b)
		if !agreed {
			continue
		}
		if d := expect[*proto.NotifyReplicationDone](b); d.Partition != 1 || d.TID != 15 {
			t.Errorf("told %+v", d)
		}
		m, ok, err := following.Parse(expect[*proto.NotifyMonitorInformation](b))
		if !ok || err != nil || m.Topic != following.Recorded || m.Stored != (following.Stored{TID: 10}) {
			t.Errorf("told %+v, %v", m, err)
		}
	}
}
