package storage

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// scriptedStorage is a storage that a node connects to.
type scriptedStorage struct {
	t      *testing.T
	node   proto.Node
	events chan link.Event
}

func (r *rig) scriptedStorage(n int) *scriptedStorage {
	r.t.Helper()
	s := &scriptedStorage{t: r.t, events: make(chan link.Event, 100)}
	host := fmt.Sprintf("s%d", n)
	l, err := link.Listen(r.t.Context(), proto.Address{Host: host, Port: 1000}, link.Config{
		Network: r.net.Host(host),
		Deliver: func(ev link.Event) { s.events <- ev },
	}, func(*link.Conn) {})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	s.node = proto.Node{Type: proto.Storage, ID: proto.NodeID(n), Addr: l.Addr(), State: proto.NodeRunning, IDTimestamp: proto.Some(float64(n))}
	return s
}

// asked returns the next event, a request of type T.
func asked[T proto.Request](t *testing.T, events chan link.Event) link.Event {
	t.Helper()
	select {
	case ev := <-events:
		if q, ok := ev.Packet.(T); !ok {
			t.Fatalf("got %T %+v, want %T", ev.Packet, ev.Packet, q)
		}
		return ev
	case <-time.After(patience):
		var q T
		t.Fatalf("nothing comes, want %T", q)
		panic("not reached")
	}
}

// accept answers the identification of the node that connects.
func (s *scriptedStorage) accept(by *testNode) {
	s.t.Helper()
	ev := asked[*proto.RequestIdentification](s.t, s.events)
	ev.Conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Storage, ID: s.node.ID, YourID: by.id})
}

// identify asks to be accepted, without waiting for the answer.
func (s *scriptedStorage) identify(to *testNode) *testClient {
	s.t.Helper()
	c := to.dial(s.node.Addr.Host)
	c.Ask(&proto.RequestIdentification{Type: proto.Storage, ID: s.node.ID, Addr: s.node.Addr, Cluster: "test",
		IDTimestamp: s.node.IDTimestamp}, nil)
	return c
}

// accepted waits for the answer to identify.
func accepted(c *testClient) {
	c.t.Helper()
	ev := <-c.events
	if _, ok := ev.Packet.(*proto.AcceptIdentification); !ok {
		c.t.Fatalf("got %T %+v, want AcceptIdentification", ev.Packet, ev.Packet)
	}
}

// A link that takes the place of the one being made is used, however many packets wait.
func TestLinkIsReplacedUnderLoad(t *testing.T) {
	r := newRig(t)
	s2 := r.scriptedStorage(2)
	s := r.start(1, backendtest.NewMemory(), nil)
	s.initialize(1, table("U.", "OU"), s2.node)
	s.operate()
	s.unfinished(50)
	asked[*proto.RequestIdentification](t, s2.events) // not answered
	c := s.client(1)

	release := make(chan struct{})
	s.post(func() error { <-release; return nil })
	eventually(t, "the node is busy", func() bool { return len(s.inbox) == 0 })
	other := s2.identify(s)
	eventually(t, "the identification waits", func() bool { return len(s.inbox) == 1 })
	for i := range tid.OID(2000) {
		c.Ask(store(100, 2*i, 0, "x"), nil)
	}
	eventually(t, "the inbox is full", func() bool { return len(s.inbox) == inboxSize })
	close(release)
	eventually(t, "all is stored", func() bool { return c.PendingCount() == 0 })
	accepted(other)
	asked[*proto.AskFetchTransactions](t, other.events)
}

// replaceLink makes the storage connect under a new timestamp, as after its restart, before
// the end of its former connection is noticed.
func (s *scriptedStorage) replaceLink(to *testNode) *testClient {
	s.t.Helper()
	s.node.IDTimestamp.V++
	to.announce(proto.NodeRunning, s.node)
	to.barrier()
	c := s.identify(to)
	accepted(c)
	return c
}

// Replication goes on over the link that takes the place of the one in use.
func TestReplicationOverReplacedLink(t *testing.T) {
	r := newRig(t)
	s2 := r.scriptedStorage(2)
	s := r.start(1, backendtest.NewMemory(), nil)
	s.initialize(1, table("U.", "OU"), s2.node)
	s.operate()
	s.unfinished(50)
	s2.accept(s)
	asked[*proto.AskFetchTransactions](t, s2.events)
	c := s2.replaceLink(s)
	ev := asked[*proto.AskFetchTransactions](t, c.events)
	ev.Conn.Answer(ev.ID, &proto.AnswerFetchTransactions{})
	ev = asked[*proto.AskFetchObjects](t, c.events)
	ev.Conn.Answer(ev.ID, &proto.AnswerFetchObjects{})
	if p := await[*proto.NotifyReplicationDone](s); p.Partition != 1 || p.TID != 50 {
		t.Errorf("done: %+v", p)
	}
}

// A check asks again over the link that takes the place of the one in use.
func TestCheckOverReplacedLink(t *testing.T) {
	r := newRig(t)
	s2 := r.scriptedStorage(2)
	s := r.start(1, backendtest.NewMemory(), nil)
	s.initialize(1, table("UU", "U."), s2.node)
	s.operate()
	s.master.Send(&proto.CheckPartition{Partition: 0, Max: 20})
	s2.accept(s)
	asked[*proto.AskFetchTransactions](t, s2.events)
	c := s2.replaceLink(s)
	ev := asked[*proto.AskFetchTransactions](t, c.events)
	ev.Conn.Answer(ev.ID, &proto.AnswerFetchTransactions{})
	ev = asked[*proto.AskFetchObjects](t, c.events)
	ev.Conn.SendAs(ev.ID, &proto.AddObject{OID: 2, Serial: 8, ObjectData: data("x")})
	ev.Conn.Answer(ev.ID, &proto.AnswerFetchObjects{})
	ev = asked[*proto.AskFetchTransactions](t, c.events) // for the packs
	ev.Conn.Answer(ev.ID, &proto.AnswerFetchTransactions{})
	if p := await[*proto.NotifyPartitionCorrupted](s); p.Partition != 0 {
		t.Errorf("corrupted: %+v", p)
	}
}

// A check that waits for a commit, and loses a replica meanwhile, goes on with the
// others: records that were not compared yet do not count as equal.
func TestCheckLosesReplicaWhileItWaits(t *testing.T) {
	r := newRig(t)
	s2, s3 := r.scriptedStorage(2), r.scriptedStorage(3)
	s := r.start(1, backendtest.NewMemory(), nil)
	s.initialize(1, table("UUU", "U.."), s2.node, s3.node)
	s.operate()
	c := s.client(1)
	s.master.Send(&proto.CheckPartition{Partition: 0, Max: 20})
	s2.accept(s)
	s3.accept(s)
	ev := asked[*proto.AskFetchTransactions](t, s2.events)
	last := asked[*proto.AskFetchTransactions](t, s3.events)
	ev.Conn.Answer(ev.ID, &proto.AnswerFetchTransactions{})
	call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 10, User: []byte("joe")})
	s.master.Ask(&proto.AskLockInformation{TTID: 10, TID: 10}, nil)
	await[*proto.AnswerInformationLocked](s)
	last.Conn.Answer(last.ID, &proto.AnswerFetchTransactions{})
	eventually(t, "the check waits", func() bool { return s.check() == "records of 3" })
	last.Conn.Close()
	eventually(t, "S3 is lost", func() bool { return s.check() != "records of 3" })
	s.master.Send(&proto.NotifyUnlockInformation{TTID: 10})
	ev = asked[*proto.AskFetchObjects](t, s2.events)
	ev.Conn.SendAs(ev.ID, &proto.AddObject{OID: 2, Serial: 8, ObjectData: data("x")})
	ev.Conn.Answer(ev.ID, &proto.AnswerFetchObjects{})
	ev = asked[*proto.AskFetchTransactions](t, s2.events) // for the packs
	ev.Conn.Answer(ev.ID, &proto.AnswerFetchTransactions{})
	if p := await[*proto.NotifyPartitionCorrupted](s); p.Partition != 0 {
		t.Errorf("corrupted: %+v", p)
	}
}

// check says what is being compared, and by how many.
func (s *testNode) check() string {
	is := make(chan string)
	s.post(func() error {
		switch members, records, ok := s.session.replicator.m.Checking(); {
		case !ok:
			is <- "nothing"
		case records:
			is <- fmt.Sprintf("records of %d", members)
		default:
			is <- fmt.Sprintf("transactions of %d", members)
		}
		return nil
	})
	return <-is
}

// A link that a check still needs is not closed when replication has no more use for it.
func TestCheckKeepsLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		s2 := r.scriptedStorage(2)
		s := r.start(1, backendtest.NewMemory(), nil)
		s.initialize(1, table("UU", "OU"), s2.node)
		s.operate()
		s.master.Send(&proto.CheckPartition{Partition: 0, Max: 20})
		s2.accept(s)
		check := asked[*proto.AskFetchTransactions](t, s2.events)
		s.unfinished(50)
		ev := asked[*proto.AskFetchTransactions](t, s2.events)
		ev.Conn.Answer(ev.ID, &proto.AnswerFetchTransactions{})
		ev = asked[*proto.AskFetchObjects](t, s2.events)
		ev.Conn.Answer(ev.ID, &proto.AnswerFetchObjects{})
		await[*proto.NotifyReplicationDone](s)
		time.Sleep(2 * idleTimeout)
		check.Conn.SendAs(check.ID, &proto.AddTransaction{TID: 8})
		check.Conn.Answer(check.ID, &proto.AnswerFetchTransactions{})
		ev = asked[*proto.AskFetchObjects](t, s2.events)
		ev.Conn.Answer(ev.ID, &proto.AnswerFetchObjects{})
		ev = asked[*proto.AskFetchTransactions](t, s2.events) // for the packs
		ev.Conn.Answer(ev.ID, &proto.AnswerFetchTransactions{})
		expect[*proto.NotifyPartitionCorrupted](s)
		// Now it is idle.
		time.Sleep(2 * idleTimeout)
		select {
		case ev := <-s2.events:
			if !ev.End() {
				t.Errorf("got %T instead of the end", ev.Packet)
			}
		default:
			t.Error("the link stays open")
		}
	})
}
