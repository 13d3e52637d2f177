package storage

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// pair runs S1, with data, and S2, an empty replica.
func (r *rig) pair(fill func(*testNode)) (s1, s2 *testNode) {
	r.t.Helper()
	s1 = r.start(1, backendtest.NewMemory(), nil)
	s1.initialize(1, table("U", "U"))
	s1.operate()
	fill(s1)
	s2 = r.start(2, backendtest.NewMemory(), nil)
	s1.announce(proto.NodeRunning, s2.node())
	change := []proto.CellChange{{Partition: 0, ID: 2, State: proto.OutOfDate}, {Partition: 1, ID: 2, State: proto.OutOfDate}}
	s1.master.Send(&proto.NotifyPartitionChanges{PTID: 2, Replicas: 1, Cells: change})
	s2.initialize(2, table("UO", "UO"), s1.node())
	s2.operate()
	return s1, s2
}

// unfinished answers the question for unfinished transactions.
func (s *testNode) unfinished(last tid.TID, ttids ...tid.TID) {
	s.rig.t.Helper()
	for {
		ev := s.next()
		if _, ok := ev.Packet.(*proto.AskUnfinishedTransactions); ok {
			s.master.Answer(ev.ID, &proto.AnswerUnfinishedTransactions{LastTID: last, TTIDs: ttids})
			return
		}
		if ev.End() {
			s.rig.t.Fatal("the node hung up")
		}
	}
}

// contents lists what a database holds of two partitions.
func contents(t *testing.T, db backend.Backend) (list []string) {
	t.Helper()
	for p := range 2 {
		tids, err := db.TIDsFrom(t.Context(), p, 0, tid.Max, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range tids {
			m, pack, err := db.FetchTransaction(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, fmt.Sprintf("transaction %d %s %v pack=%v", id, m.User, m.OIDs, pack != nil))
		}
		keys, err := db.RecordsFrom(t.Context(), p, 0, tid.Max, 0, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			o, err := db.FetchObject(t.Context(), k.OID, k.TID)
			if errors.Is(err, backend.ErrNotFound) { // deleted since it was listed
				list = append(list, fmt.Sprintf("object %d at %d: vanished", k.OID, k.TID))
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, fmt.Sprintf("object %d at %d: %d bytes %x serial %d", k.OID, k.TID, len(o.Data), o.Checksum[:4], o.DataSerial))
		}
	}
	return list
}

// An empty cell becomes a copy, chunk by chunk, and is announced when the
// transactions that were under way are over too.
func TestReplication(t *testing.T) {
	r := newRig(t)
	last := tid.TID(0)
	s1, s2 := r.pair(func(s *testNode) {
		c := s.client(1)
		for i := range tid.TID(3) { // three chunks of records in partition 0
			var oids []tid.OID
			last = 100 + 2*i
			for o := range tid.OID(900) {
				oids = append(oids, 2*o)
			}
			oids = append(oids, 1)
			for _, oid := range oids {
				base := last - 2
				if i == 0 {
					base = 0
				}
				c.Ask(store(last, oid, base, fmt.Sprint("text ", oid, last)), nil)
			}
			eventually(t, "stored", func() bool { return c.PendingCount() == 0 })
			s.finish(c, last, oids...)
		}
		// An undo, and a deletion.
		last = 106
		undo := store(last, 2, 104, "")
		undo.ObjectData = data("text 2100")
		undo.DataSerial = proto.Some[tid.TID](100)
		call[*proto.AnswerStoreObject](c, undo)
		call[*proto.AnswerStoreObject](c, &proto.AskStoreObject{TTID: last, OID: 4, Serial: 104})
		s.finish(c, last, 2, 4)
	})
	// Transaction 107 is under way, S1 knows it in full, S2 not at all.
	c := s1.client(2)
	call[*proto.AnswerStoreObject](c, store(107, 9, 0, "unfinished"))
	// Transaction 109 begins now: both get it.
	s2.unfinished(last, 107, 108)
	c2 := s2.client(2)
	for _, c := range []*testClient{c, c2} {
		p, err := try(c, store(109, 11, 0, "both"))
		if err != nil {
			t.Fatal(err)
		}
		want := proto.Opt[tid.TID]{}
		if c == c2 {
			want = proto.Some(tid.Zero)
		}
		if got := p.(*proto.AnswerStoreObject).Conflict; got != want {
			t.Errorf("store: got %v, want %v", got, want)
		}
	}
	eventually(t, "S2 has what was committed", func() bool {
		return len(contents(t, s2.db)) == len(contents(t, s1.db))
	})
	// 108 is aborted, 107 finishes: now S2 can know it.
	s2.master.Send(&proto.AbortTransaction{TTID: 108})
	s1.finish(c, 107, 9)
	s2.master.Send(&proto.NotifyTransactionFinished{TTID: 107, Max: 107})
	done := map[int]tid.TID{}
	for range 2 {
		p := await[*proto.NotifyReplicationDone](s2)
		done[p.Partition] = p.TID
	}
	if done[0] != 107 || done[1] != 107 {
		t.Errorf("done: %v", done)
	}
	if diff := cmp.Diff(contents(t, s1.db), contents(t, s2.db)); diff != "" {
		t.Errorf("replica (-want +got):\n%s", diff)
	}
	// Both know 109 as locked, and commit it.
	change := &proto.NotifyPartitionChanges{PTID: 3, Replicas: 1, Cells: []proto.CellChange{{Partition: 0, ID: 2, State: proto.UpToDate}, {Partition: 1, ID: 2, State: proto.UpToDate}}}
	s1.master.Send(change)
	s2.master.Send(change)
	s1.finish(c, 109, 11)
	s2.finish(c2, 109, 11)
	if diff := cmp.Diff(contents(t, s1.db), contents(t, s2.db)); diff != "" {
		t.Errorf("replica after a commit (-want +got):\n%s", diff)
	}
	if a := call[*proto.AnswerObject](c2, &proto.AskObject{OID: 2}); a.Serial != 106 || a.DataSerial.V != 100 {
		t.Errorf("undone object: %+v", a)
	}
	if n := orphans(t, s2.db); n != 0 {
		t.Errorf("%d orphans", n)
	}
}

// What a replica has and its source has not is deleted, also beyond a chunk.
func TestReplicationDeletes(t *testing.T) {
	r := newRig(t)
	mem := backendtest.NewMemory()
	s2 := r.start(2, mem, nil)
	s2.initialize(1, table(".U", ".U"))
	s2.operate()
	c := s2.client(1)
	for i, id := range []tid.TID{10, 14, 20, 25, 26} {
		s2.commit(c, id, 0, "wrong", tid.OID(20+i))
	}
	s2.announce(proto.NodeDown)
	if err := s2.wait(); err != nil {
		t.Fatal(err)
	}
	if err := s2.db.Close(); err != nil {
		t.Fatal(err)
	}
	s1 := r.start(1, backendtest.NewMemory(), nil)
	s1.initialize(2, table("U.", "U."))
	s1.operate()
	c = s1.client(1)
	for i := range tid.TID(3) {
		s1.commit(c, 12+3*i, 0, "right", tid.OID(23+i))
	}
	// S1 was outdated for S2, and the table was numbered anew.
	s2 = r.start(2, mem, nil)
	s1.announce(proto.NodeRunning, s2.node())
	s2.initialize(1, table("UO", "UO"), s1.node())
	s2.operate()
	s2.unfinished(26)
	for range 2 {
		await[*proto.NotifyReplicationDone](s2)
	}
	if diff := cmp.Diff(contents(t, s1.db), contents(t, s2.db)); diff != "" {
		t.Errorf("replica (-want +got):\n%s", diff)
	}
}

// A replica that loses its source goes on where it was, from the same one or
// from another.
func TestReplicationInterrupted(t *testing.T) {
	r := newRig(t)
	s1, s2 := r.pair(func(s *testNode) {
		c := s.client(1)
		for i := range tid.TID(20) {
			s.commit(c, 10+i, 0, "text", tid.OID(i))
		}
	})
	for range 3 {
		r.net.Drop("s1", "s2")
	}
	s2.unfinished(29)
	r.net.Drop("s1", "s2")
	for range 2 {
		await[*proto.NotifyReplicationDone](s2)
	}
	if diff := cmp.Diff(contents(t, s1.db), contents(t, s2.db)); diff != "" {
		t.Errorf("replica (-want +got):\n%s", diff)
	}
}

// The answer about unfinished transactions may concern a cell that was discarded
// meanwhile, or discarded and assigned again.
func TestUnfinishedOfDiscardedCell(t *testing.T) {
	r := newRig(t)
	s1, s2 := r.pair(func(s *testNode) { s.commit(s.client(1), 10, 0, "text", 0, 1) })
	ev := s2.next()
	if _, ok := ev.Packet.(*proto.AskUnfinishedTransactions); !ok {
		t.Fatalf("got %T", ev.Packet)
	}
	for i, cells := range [][]proto.CellChange{
		{{Partition: 0, ID: 2, State: proto.Discarded}, {Partition: 1, ID: 2, State: proto.Discarded}},
		{{Partition: 1, ID: 2, State: proto.OutOfDate}},
	} {
		change := &proto.NotifyPartitionChanges{PTID: uint64(3 + i), Replicas: 1, Cells: cells}
		s1.master.Send(change)
		s2.master.Send(change)
	}
	again := s2.next()
	if p, ok := again.Packet.(*proto.AskUnfinishedTransactions); !ok || !slices.Equal(p.Partitions, []int{1}) {
		t.Fatalf("got %T %+v", again.Packet, again.Packet)
	}
	s2.master.Answer(ev.ID, &proto.AnswerUnfinishedTransactions{LastTID: 5})
	s2.barrier()
	s2.master.Answer(again.ID, &proto.AnswerUnfinishedTransactions{LastTID: 10})
	if p := await[*proto.NotifyReplicationDone](s2); p.Partition != 1 || p.TID != 10 {
		t.Errorf("done: %+v", p)
	}
}

// A feeder refuses what it cannot give, and the packets of another fetch are
// ignored.
func TestFetch(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	c := s.client(1)
	s.commit(c, 10, 0, "one", 0, 1)
	s.commit(c, 12, 10, "two", 0, 1)
	b := s.dial("b")
	call[*proto.AcceptIdentification](b, &proto.RequestIdentification{Type: proto.Storage, Cluster: "test"})
	if got := code(b, &proto.AskFetchTransactions{Partition: 5, Length: 10, Max: 20}); got != "REPLICATION_ERROR" {
		t.Errorf("unknown partition: %s", got)
	}
	id := b.Ask(&proto.AskFetchTransactions{Partition: 0, Length: 1, Max: 20, Have: []tid.TID{11, 12}, AskPack: true}, nil)
	ev := <-b.events
	if p, ok := ev.Packet.(*proto.AddTransaction); !ok || ev.ID != id || p.TID != 10 || string(p.User) != "joe" {
		t.Errorf("got %T %+v under id %d, want AddTransaction under %d", ev.Packet, ev.Packet, ev.ID, id)
	}
	ev = <-b.events
	want := &proto.AnswerFetchTransactions{Next: proto.Some[tid.TID](12), Delete: []tid.TID{11, 12}, Packed: proto.Some(tid.Zero)}
	if diff := cmp.Diff(proto.Packet(want), ev.Packet); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	b.Ask(&proto.AskFetchObjects{Partition: 1, Length: 10, Max: 20, Have: map[tid.TID][]tid.OID{10: {1, 3}}}, nil)
	ev = <-b.events
	if p, ok := ev.Packet.(*proto.AddObject); !ok || p.Serial != 12 || string(p.Data) != "two" {
		t.Errorf("got %T %+v", ev.Packet, ev.Packet)
	}
	ev = <-b.events
	if diff := cmp.Diff(proto.Packet(&proto.AnswerFetchObjects{Delete: map[tid.TID][]tid.OID{10: {3}}}), ev.Packet); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	// While a transaction is being committed, its range waits.
	call[*proto.AnswerStoreObject](c, store(14, 0, 12, "three"))
	call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 14, OIDs: []tid.OID{0}})
	ask[*proto.AnswerInformationLocked](s, &proto.AskLockInformation{TTID: 14, TID: 14})
	b.Ask(&proto.AskFetchTransactions{Partition: 0, Length: 10, Min: 13, Max: 20}, nil)
	b.Ask(&proto.AskCheckTIDRange{Partition: 0, Length: 10, Min: 13, Max: 20}, nil)
	if _, err := try(b, &proto.Ping{}); err != nil {
		t.Fatal(err)
	}
	if len(b.events) > 0 {
		t.Errorf("answered before the end of the commit: %+v", (<-b.events).Packet)
	}
	s.master.Send(&proto.NotifyUnlockInformation{TTID: 14})
	got := map[string]bool{}
	for range 3 {
		got[fmt.Sprintf("%T", (<-b.events).Packet)] = true
	}
	if !got["*proto.AddTransaction"] || !got["*proto.AnswerFetchTransactions"] || !got["*proto.AnswerCheckTIDRange"] {
		t.Errorf("after the commit: %v", got)
	}
	if got := code(b, &proto.AskCheckSerialRange{Partition: 9, Length: 10, Max: 20}); got != "CHECKING_ERROR" {
		t.Errorf("check of an unknown partition: %s", got)
	}
	// Left-overs are not stored.
	b.SendAs(3, &proto.AddObject{OID: 77, Serial: 5, ObjectData: data("left over")})
	if _, err := try(b, &proto.Ping{}); err != nil {
		t.Fatal(err)
	}
	if got := code(c, &proto.AskObject{OID: 77}); got != "OID_DOES_NOT_EXIST" {
		t.Errorf("a record that nobody asked for: %s", got)
	}
	b.Send(&proto.CloseClient{})
	<-b.Done()
}

func TestChecker(t *testing.T) {
	for _, tt := range []struct {
		name   string
		spoil  func(backend.Backend) error
		source int
		want   []proto.NodeID // nil: equal
	}{
		{"equal", func(backend.Backend) error { return nil }, 0, nil},
		{"missing record", func(db backend.Backend) error { return db.DeleteObject(2, 12) }, 0, []proto.NodeID{1, 2}},
		{"missing record, S1 is right", func(db backend.Backend) error { return db.DeleteObject(2, 12) }, 1, []proto.NodeID{2}},
		{"missing record, S2 is right", func(db backend.Backend) error { return db.DeleteObject(2, 12) }, 2, []proto.NodeID{1}},
		{"missing transaction", func(db backend.Backend) error { return db.DeleteTransaction(12) }, 1, []proto.NodeID{2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			s1, s2 := r.pair(func(s *testNode) {
				c := s.client(1)
				s.commit(c, 10, 0, "one", 0, 2)
				s.commit(c, 12, 10, "two", 2)
			})
			s2.unfinished(12)
			for range 2 {
				await[*proto.NotifyReplicationDone](s2)
			}
			change := &proto.NotifyPartitionChanges{PTID: 3, Replicas: 1, Cells: []proto.CellChange{{Partition: 0, ID: 2, State: proto.UpToDate}, {Partition: 1, ID: 2, State: proto.UpToDate}}}
			s1.master.Send(change)
			s2.master.Send(change)
			s2.barrier()
			if err := tt.spoil(s2.db); err != nil {
				t.Fatal(err)
			}
			source := proto.Address{}
			switch tt.source {
			case 1:
				source = s1.Addr()
			case 2:
				source = s2.Addr()
			}
			s1.barrier()
			s1.master.Send(&proto.CheckPartition{Partition: 0, Source: source, Max: 20})
			if tt.want == nil {
				eventually(t, "the check ends", func() bool {
					over := make(chan bool)
					s1.post(func() error {
						_, _, checking := s1.session.replicator.m.Checking()
						over <- !checking
						return nil
					})
					return <-over
				})
				s1.barrier()
				return
			}
			p := await[*proto.NotifyPartitionCorrupted](s1)
			if !cmp.Equal(p.IDs, tt.want) || p.Partition != 0 {
				t.Errorf("corrupted: %+v, want %v", p, tt.want)
			}
		})
	}
}

// A transaction that was voted before the cell with its metadata and objects is taken
// out of service, or discarded, is locked and unlocked all the same.
func TestLockWithoutItsCell(t *testing.T) {
	for _, state := range []proto.CellState{proto.OutOfDate, proto.Discarded} {
		t.Run(state.String(), func(t *testing.T) {
			r := newRig(t)
			s2 := r.scriptedStorage(2)
			s := r.start(1, backendtest.NewMemory(), nil)
			s.initialize(1, table("UU", "UU"), s2.node)
			s.operate()
			c := s.client(1)
			call[*proto.AnswerStoreObject](c, store(10, 0, 0, "x"))
			call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 10, OIDs: []tid.OID{0}})
			s.master.Send(&proto.NotifyPartitionChanges{PTID: 2, Replicas: 1, Cells: []proto.CellChange{{Partition: 0, ID: 1, State: state}}})
			s.master.Ask(&proto.AskLockInformation{TTID: 10, TID: 10}, nil)
			if p := await[*proto.AnswerInformationLocked](s); p.TTID != 10 {
				t.Errorf("locked: %+v", p)
			}
			s.master.Send(&proto.NotifyUnlockInformation{TTID: 10})
			s.barrier()
		})
	}
}

// A repair that loses its source goes on when that is back, and only then the cell is
// replicated, from that source alone.
func TestRepairWaitsForItsSource(t *testing.T) {
	r := newRig(t)
	s2 := r.scriptedStorage(2)
	s := r.start(1, backendtest.NewMemory(), nil)
	s.initialize(1, table("UU", "UU"), s2.node)
	s.operate()
	c := s.client(1)
	s.commit(c, 10, 0, "wrong", 0)
	s.commit(c, 12, 10, "extra", 0)
	s.master.Send((&check.Report{Check: 1, Partition: 0, State: check.Repair, Reference: 2, Max: 12}).Packet())
	s.master.Send(&proto.NotifyPartitionChanges{PTID: 2, Replicas: 1, Cells: []proto.CellChange{{Partition: 0, ID: 1, State: proto.OutOfDate}}})
	s.unfinished(12)
	s2.accept(s)
	asked[*proto.AskFetchTransactions](t, s2.events).Conn.Close()
	for !(<-s2.events).End() {
	}
	s2.accept(s)
	answer := func(add ...proto.Packet) {
		t.Helper()
		ev := <-s2.events
		for _, p := range add {
			ev.Conn.SendAs(ev.ID, p)
		}
		switch q := ev.Packet.(type) {
		case *proto.AskFetchTransactions:
			if len(q.Have) > 0 && len(add) > 0 {
				t.Errorf("replication begins before the comparison ends: %+v", q)
			}
			ev.Conn.Answer(ev.ID, &proto.AnswerFetchTransactions{})
		case *proto.AskFetchObjects:
			a := &proto.AnswerFetchObjects{Delete: map[tid.TID][]tid.OID{}}
			ev.Conn.Answer(ev.ID, a)
		default:
			t.Fatalf("unexpected %T", q)
		}
	}
	// S2 has the first revision, with other data, and not the second one.
	meta := &proto.AddTransaction{TID: 10, TTID: 10, User: []byte("joe"), OIDs: []tid.OID{0}}
	answer(meta)
	answer(&proto.AddObject{OID: 0, Serial: 10, ObjectData: data("right")})
	answer() // the packs
	answer() // replication: what it has is right
	answer(&proto.AddObject{OID: 0, Serial: 10, ObjectData: data("right")})
	if p := await[*proto.NotifyReplicationDone](s); p.Partition != 0 || p.TID != 12 {
		t.Errorf("done: %+v", p)
	}
	if o, err := s.db.FetchObject(t.Context(), 0, 10); err != nil || string(o.Data) != "right" {
		t.Errorf("after the repair: %q, %v", o.Data, err)
	}
	if _, err := s.db.FetchObject(t.Context(), 0, 12); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("what the source does not have: %v", err)
	}
}
