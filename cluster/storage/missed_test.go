package storage

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// remove deletes objects in one transaction.
func (s *testNode) remove(c *testClient, t, base tid.TID, oids ...tid.OID) {
	s.rig.t.Helper()
	for _, oid := range oids {
		if a := call[*proto.AnswerStoreObject](c, &proto.AskStoreObject{TTID: t, OID: oid, Serial: base}); a.Conflict.OK {
			s.rig.t.Fatalf("deletion of %v at %v: conflict with %v", oid, t, a.Conflict.V)
		}
	}
	s.finish(c, t, oids...)
}

// packed commits a pack order and waits until it is executed.
func (s *testNode) packed(c *testClient, id, time tid.TID, oids ...tid.OID) {
	s.rig.t.Helper()
	s.packAt(c, id, time, oids...)
	for {
		ev := s.next()
		if q, ok := ev.Packet.(*proto.AskPackOrders); ok {
			orders, err := s.db.PackOrders(q.Min)
			if err != nil {
				s.rig.t.Fatal(err)
			}
			s.master.Answer(ev.ID, &proto.AnswerPackOrders{Orders: orders[:min(1, len(orders))]})
		}
		if p, ok := ev.Packet.(*proto.NotifyPackCompleted); ok && p.ID == id {
			return
		}
		if ev.End() {
			s.rig.t.Fatal("the node hung up")
		}
	}
}

// All that is here is compared with the source, however little the source has: damage
// that is there already goes when a cell is compared from the beginning.
func TestReplicationComparesAll(t *testing.T) {
	r := newRig(t)
	few := func(c *Config) { c.FetchCount = 3 }
	mem := backendtest.NewMemory()
	s2 := r.start(2, mem, few)
	s2.initialize(1, table(".U", ".U"))
	s2.operate()
	c := s2.client(1)
	for i := range tid.TID(12) {
		s2.commit(c, 10+i, 0, "risen", tid.OID(20+i), tid.OID(40+i))
	}
	s2.commit(c, 30, 0, "stays", 1, 2)
	s2.announce(proto.NodeDown)
	if err := s2.wait(); err != nil {
		t.Fatal(err)
	}
	if err := s2.db.Close(); err != nil {
		t.Fatal(err)
	}
	s1 := r.start(1, backendtest.NewMemory(), few)
	s1.initialize(2, table("U.", "U."))
	s1.operate()
	c = s1.client(1)
	for i := range tid.TID(3) {
		s1.commit(c, 23+2*i, 0, "right", tid.OID(100+i))
	}
	s1.commit(c, 30, 0, "stays", 1, 2)
	s2 = r.start(2, mem, few)
	s1.announce(proto.NodeRunning, s2.node())
	s2.initialize(1, table("UO", "UO"), s1.node()) // the table was numbered anew
	s2.operate()
	s2.unfinished(30)
	for range 2 {
		await[*proto.NotifyReplicationDone](s2)
	}
	if diff := cmp.Diff(contents(t, s1.db), contents(t, s2.db)); diff != "" {
		t.Errorf("replica (-want +got):\n%s", diff)
	}
}

// A deletion that the source has lost is not deleted where its transaction is known to
// have happened: the object would rise.
func TestDeletionIsNotDeletedOnTheWordOfTheSource(t *testing.T) {
	r := newRig(t)
	mem := backendtest.NewMemory()
	fill := func(s *testNode) {
		c := s.client(1)
		s.commit(c, 10, 0, "text", 0, 1, 2, 3)
		s.remove(c, 12, 10, 0, 1)
	}
	s2 := r.start(2, mem, nil)
	s2.initialize(1, table(".U", ".U"))
	s2.operate()
	fill(s2)
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
	fill(s1)
	if err := s1.db.DeleteObject(1, 12); err != nil { // it has risen there
		t.Fatal(err)
	}
	s2 = r.start(2, mem, nil)
	s1.announce(proto.NodeRunning, s2.node())
	s2.initialize(1, table("UO", "UO"), s1.node()) // compared from the beginning
	s2.operate()
	s2.unfinished(12)
	for range 2 {
		await[*proto.NotifyReplicationDone](s2)
	}
	for oid, want := range map[tid.OID]string{0: "12 true", 1: "12 true", 2: "10 false", 3: "10 false"} {
		at, deleted, err := s2.db.RecordBefore(t.Context(), oid, tid.Max)
		if got := fmt.Sprint(uint64(at), deleted); err != nil || got != want {
			t.Errorf("last record of %v: %s (%v), want %s", oid, got, err, want)
		}
	}
}

// What was deleted and packed upstream is deleted in the backup, even if the deletions
// could not be replicated any more.
func TestBackupOfDeletedObjects(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%v", restart), func(t *testing.T) {
			r := newRig(t)
			up, b, c := r.backupPair()
			up.commit(c, 10, 0, "text", 0, 1, 2, 3)
			b.replicateFrom(10, "up", up, 0, 1)
			up.remove(c, 12, 10, 0, 1)
			up.commit(c, 14, 10, "later", 2)
			up.packed(c, 16, 14)
			up.commit(c, 18, 14, "last", 2, 5)
			if restart {
				b.master.Send(&proto.StopOperation{})
				b.initialize(2, table(".U", ".U"))
				b.master.Send(&proto.StartOperation{Backup: true})
				expect[*proto.NotifyReady](b)
			}
			orders, err := up.db.PackOrders(0)
			if err != nil {
				t.Fatal(err)
			}
			// Part of it is replicated before the order is: it is not complete.
			b.replicateUpTo(14, 10, "up", up, 0)
			if at, _, _ := b.db.RecordBefore(t.Context(), 3, tid.Max); at != 10 {
				t.Errorf("an object that is not deleted is at %v", at)
			}
			b.orders = orders
			b.master.Send(&proto.NotifyPackSigned{Approved: []tid.TID{16}})
			b.replicateFrom(18, "up", up, 0, 1)
			eventually(t, "the backup is equal", func() bool {
				for len(b.events) > 0 {
					b.answerOrders(b.next())
				}
				return cmp.Equal(contents(t, up.db), contents(t, b.db))
			})
		})
	}
}

// An answer to the question for the next order does not concern a cell that became
// readable after the question, and has executed less.
func TestNextPackOrderOfEachCell(t *testing.T) {
	r := newRig(t)
	s := r.start(1, backendtest.NewMemory(), nil)
	s.initialize(1, table("UU", "OU"))
	s.operate()
	c := s.client(1)
	s.commit(c, 10, 0, "text", 0)
	s.packAt(c, 12, 10)
	s.ordered(1)
	eventually(t, "the first order is executed", func() bool {
		ids, err := s.db.PackedIDs(true)
		return err == nil && ids[0] == 12
	})
	s.packAt(c, 14, 10)
	question := s.next()
	for ; ; question = s.next() {
		if q, ok := question.Packet.(*proto.AskPackOrders); ok {
			if q.Min != 13 {
				t.Fatalf("asked for the order from %v on", q.Min)
			}
			break
		}
	}
	s.master.Send(&proto.NotifyPartitionChanges{PTID: 2, Replicas: 1, Cells: []proto.CellChange{{Partition: 1, ID: 1, State: proto.UpToDate}}})
	s.master.Answer(question.ID, &proto.AnswerPackOrders{Orders: []proto.PackOrder{{ID: 14, Approved: proto.Some(true), Time: 10}}})
	if q := await[*proto.AskPackOrders](s); q.Min != 1 {
		t.Errorf("asked for the order from %v on, want the first", q.Min)
	}
}

// A storage that is told not to pack can be replicated from: the replica is compared once
// for the orders that others may have executed, not again and again.
func TestReplicaOfAStorageThatDoesNotPack(t *testing.T) {
	r := newRig(t)
	s1 := r.start(1, backendtest.NewMemory(), func(c *Config) { c.DisablePack = true })
	s1.initialize(1, table("U", "U"))
	s1.operate()
	c := s1.client(1)
	s1.commit(c, 10, 0, "text", 0, 1, 2)
	s1.remove(c, 12, 10, 2)
	s1.packAt(c, 14, 12)
	s2 := r.start(2, backendtest.NewMemory(), nil)
	s1.announce(proto.NodeRunning, s2.node())
	cells := []proto.CellChange{{Partition: 0, ID: 2, State: proto.OutOfDate}, {Partition: 1, ID: 2, State: proto.OutOfDate}}
	s1.master.Send(&proto.NotifyPartitionChanges{PTID: 2, Replicas: 1, Cells: cells})
	s2.initialize(2, table("UO", "UO"), s1.node())
	s2.operate()
	s2.orders = []proto.PackOrder{{ID: 14, Approved: proto.Some(true), Time: 12}}
	s2.master.Send(&proto.NotifyPackSigned{Approved: []tid.TID{14}})
	s2.unfinished(14)
	done, questions := 0, 0
	for done < 2 {
		ev := s2.next()
		switch ev.Packet.(type) {
		case *proto.NotifyReplicationDone:
			done++
		case *proto.AskPackOrders:
			if questions++; questions > 20 {
				t.Fatalf("asked %d times for pack orders, and %d of 2 cells are replicated", questions, done)
			}
			s2.answerOrders(ev)
		}
		if ev.End() {
			t.Fatal("the node hung up")
		}
	}
	if diff := cmp.Diff(contents(t, s1.db), contents(t, s2.db)); diff != "" {
		t.Errorf("replica (-want +got):\n%s", diff)
	}
}

// What a client stores while a cell is being replicated stays, though it fails the check
// when the cell is complete: replicas that keep different deletions differ in what the last
// revision of an object is, and the readable one has taken it.
func TestStoreWithoutCheckStays(t *testing.T) {
	r := newRig(t)
	mem := backendtest.NewMemory()
	s2 := r.start(2, mem, nil)
	s2.initialize(1, table(".U", ".U"))
	s2.operate()
	c := s2.client(1)
	s2.commit(c, 10, 0, "text", 1, 2)
	s2.remove(c, 12, 10, 1, 2)
	s2.announce(proto.NodeDown)
	if err := s2.wait(); err != nil {
		t.Fatal(err)
	}
	if err := s2.db.Close(); err != nil {
		t.Fatal(err)
	}
	s1 := r.start(1, backendtest.NewMemory(), nil) // it has packed both objects
	s1.initialize(2, table("U.", "U."))
	s1.operate()
	s1.commit(s1.client(1), 20, 0, "other", 0)
	s2 = r.start(2, mem, nil)
	s1.announce(proto.NodeRunning, s2.node())
	s2.initialize(2, table("UO", "UO"), s1.node())
	s2.operate()
	c = s2.client(1)
	for oid, base := range map[tid.OID]tid.TID{1: 16, 2: 0} { // after the deletion that is here, and before
		if a := call[*proto.AnswerStoreObject](c, store(30+tid.TID(oid), oid, base, "new")); a.Conflict != proto.Some(tid.Zero) {
			t.Errorf("store of %v: %+v", oid, a)
		}
	}
	s2.unfinished(20)
	if p := await[*proto.NotifyReplicationDone](s2); p.Partition != 1 {
		t.Errorf("partition %d is complete, where a store fails the check", p.Partition)
	}
	for oid := range tid.OID(2) {
		s2.finish(c, 31+tid.TID(oid), 1+oid)
	}
	for oid := range tid.OID(2) {
		if at, _, err := s2.db.RecordBefore(t.Context(), 1+oid, tid.Max); err != nil || at != 31+tid.TID(oid) {
			t.Errorf("last record of %v: %v (%v)", 1+oid, at, err)
		}
	}
}
