package storage

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// packAt commits a transaction that carries a pack order, approved at once.
func (s *testNode) packAt(c *testClient, id, time tid.TID, oids ...tid.OID) {
	s.rig.t.Helper()
	call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: id, Pack: &proto.PackRequest{Time: time, OIDs: oids}})
	s.master.Ask(&proto.AskLockInformation{TTID: id, TID: id, PackApproved: true}, nil)
	await[*proto.AnswerInformationLocked](s)
	s.master.Send(&proto.NotifyUnlockInformation{TTID: id})
	s.master.Send(&proto.NotifyPackSigned{Approved: []tid.TID{id}})
}

// ordered answers the question for the next pack order, as the master does from
// what the storages told it.
func (s *testNode) ordered(min tid.TID) {
	s.rig.t.Helper()
	ev := s.next()
	q, ok := ev.Packet.(*proto.AskPackOrders)
	if !ok || q.Min != min {
		s.rig.t.Fatalf("got %T %+v, want AskPackOrders from %v", ev.Packet, ev.Packet, min)
	}
	orders := ask[*proto.AnswerPackOrders](s, &proto.AskPackOrders{Min: min}).Orders
	if len(orders) == 0 || !orders[0].Approved.V {
		s.rig.t.Fatalf("orders of the node: %+v", orders)
	}
	s.master.Answer(ev.ID, &proto.AnswerPackOrders{Orders: orders[:1]})
}

func (s *testNode) revisions(c *testClient, oid tid.OID) (list []tid.TID) {
	s.rig.t.Helper()
	for _, r := range call[*proto.AnswerObjectHistory](c, &proto.AskObjectHistory{OID: oid, Last: 100}).History {
		list = append(list, r.TID)
	}
	return list
}

func TestPack(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	c := s.client(1)
	s.commit(c, 10, 0, "one", 0, 1, 2, 3)
	s.commit(c, 12, 10, "two", 0, 1, 2, 3)
	s.commit(c, 14, 12, "three", 0, 1)
	call[*proto.AnswerStoreObject](c, &proto.AskStoreObject{TTID: 16, OID: 3, Serial: 12}) // deleted
	s.finish(c, 16, 3)

	s.packAt(c, 18, 13)
	s.ordered(1)
	if p := await[*proto.NotifyPackCompleted](s); p.ID != 18 {
		t.Errorf("completed: %+v", p)
	}
	for oid, want := range map[tid.OID][]tid.TID{0: {14, 12}, 1: {14, 12}, 2: {12}, 3: {16, 12}} {
		if got := s.revisions(c, oid); !cmp.Equal(got, want) {
			t.Errorf("revisions of %v after the first pack: %v, want %v", oid, got, want)
		}
	}
	// Of one object only; the other partition has none of the list.
	s.packAt(c, 20, 17, 1)
	s.ordered(19)
	if p := await[*proto.NotifyPackCompleted](s); p.ID != 20 {
		t.Errorf("completed: %+v", p)
	}
	for oid, want := range map[tid.OID][]tid.TID{0: {14, 12}, 1: {14}, 3: {16, 12}} {
		if got := s.revisions(c, oid); !cmp.Equal(got, want) {
			t.Errorf("revisions of %v after the partial pack: %v, want %v", oid, got, want)
		}
	}
	// Two orders at once are executed one after the other.
	s.packAt(c, 22, 14)
	s.ordered(21)
	s.packAt(c, 24, 17)
	s.await24(c)
	for oid, want := range map[tid.OID]string{0: "", 3: "OID_DOES_NOT_EXIST"} {
		if want != "" {
			if got := code(c, &proto.AskObject{OID: oid}); got != want {
				t.Errorf("deleted object %v: %s", oid, got)
			}
		} else if got := s.revisions(c, oid); !cmp.Equal(got, []tid.TID{14}) {
			t.Errorf("revisions of %v: %v", oid, got)
		}
	}
	if n := orphans(t, s.db); n != 0 {
		t.Errorf("%d orphans", n)
	}
	// Nothing is begun again by the next period of operation.
	s.master.Send(&proto.StopOperation{})
	s.announce(proto.NodePending, clientNode(1))
	s.master.Send(&proto.SendPartitionTable{PTID: proto.Some[uint64](2), Rows: table("U", "U")})
	s.master.Ask(&proto.AskLastIDs{}, nil)
	if p := expect[*proto.NotifyPackCompleted](s); p.ID != 24 {
		t.Errorf("completed before: %+v", p)
	}
	expect[*proto.AnswerLastIDs](s)
	s.operate()
	s.master.Send(&proto.NotifyPackSigned{Approved: []tid.TID{24}})
	s.master.Ask(&proto.Ping{}, nil)
	expect[*proto.Pong](s)
}

// await24 answers questions until order 24 is completed.
func (s *testNode) await24(c *testClient) {
	s.rig.t.Helper()
	for {
		ev := s.next()
		switch p := ev.Packet.(type) {
		case *proto.AskPackOrders:
			orders, err := s.db.PackOrders(p.Min)
			if err != nil {
				s.rig.t.Fatal(err)
			}
			for len(orders) > 0 && !orders[0].Approved.V {
				orders = orders[1:]
			}
			s.master.Answer(ev.ID, &proto.AnswerPackOrders{Orders: orders[:min(1, len(orders))]})
		case *proto.NotifyPackCompleted:
			if p.ID == 24 {
				return
			}
		}
		if ev.End() {
			s.rig.t.Fatal("the node hung up")
		}
	}
}

// unable is a backend that cannot pack until it can.
type unable struct {
	backend.Backend
	able atomic.Bool
}

func (u *unable) PackedIDs(upToDateOnly bool) (map[int]tid.TID, error) {
	if upToDateOnly && !u.able.Load() {
		return nil, backend.ErrNotImplemented
	}
	return u.Backend.PackedIDs(upToDateOnly)
}

// An order that cannot be executed yet is executed when it can, without another event.
func TestPackLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		db := &unable{}
		s := r.run(func(c *Config) {
			db.Backend = c.Backend
			c.Backend = db
		})
		c := s.client(1)
		s.commit(c, 10, 0, "one", 0)
		s.commit(c, 12, 10, "two", 0)
		s.packAt(c, 14, 13)
		time.Sleep(time.Minute)
		if got := s.revisions(c, 0); !cmp.Equal(got, []tid.TID{12, 10}) {
			t.Errorf("revisions before: %v", got)
		}
		db.able.Store(true)
		s.ordered(1)
		if p := await[*proto.NotifyPackCompleted](s); p.ID != 14 {
			t.Errorf("completed: %+v", p)
		}
		if got := s.revisions(c, 0); !cmp.Equal(got, []tid.TID{12}) {
			t.Errorf("revisions afterwards: %v", got)
		}
	})
}

func TestDisablePack(t *testing.T) {
	r := newRig(t)
	s := r.run(func(c *Config) { c.DisablePack = true })
	c := s.client(1)
	s.commit(c, 10, 0, "one", 1)
	s.commit(c, 12, 10, "two", 1)
	s.packAt(c, 14, 13)
	if p := expect[*proto.NotifyPackCompleted](s); p.ID != 14 {
		t.Errorf("completed: %+v", p)
	}
	if got := s.revisions(c, 1); !cmp.Equal(got, []tid.TID{12, 10}) {
		t.Errorf("revisions: %v", got)
	}
}

// A pack order that never got a transaction stays unsigned for ever, and would
// block all others, unless it is deleted.
func TestPackOrderOfAbortedTransaction(t *testing.T) {
	r := newRig(t)
	mem := backendtest.NewMemory()
	s := r.start(1, mem, nil)
	s.initialize(1, table("U", "U"))
	s.operate()
	c := s.client(1)
	call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 10, Pack: &proto.PackRequest{Time: 5}})
	call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 12, Pack: &proto.PackRequest{Time: 5}})
	if a := ask[*proto.AnswerPackOrders](s, &proto.AskPackOrders{}); len(a.Orders) > 0 {
		t.Errorf("orders of unfinished transactions: %+v", a.Orders)
	}
	c.Send(&proto.AbortTransaction{TTID: 10})
	if _, err := try(c, &proto.Ping{}); err != nil {
		t.Fatal(err)
	}
	s.cancel() // 12 is dropped by the next start
	s.wait()
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	s = r.start(1, mem, nil)
	s.initialize(2, table("U", "U"))
	s.operate()
	if a := ask[*proto.AnswerPackOrders](s, &proto.AskPackOrders{}); len(a.Orders) > 0 {
		t.Errorf("orders without transaction: %+v", a.Orders)
	}
}

// An order to cut that a node still holds when it joins a cluster in service is
// executed before it replicates.
func TestStaleTruncation(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	c := s.client(1)
	s.commit(c, 10, 0, "one", 1)
	s.commit(c, 12, 10, "two", 1)
	s.master.Send(&proto.StopOperation{})
	s.master.Send(&proto.Truncate{TID: 11})
	s.announce(proto.NodeRunning, clientNode(1))
	s.master.Send(&proto.SendPartitionTable{PTID: proto.Some[uint64](2), Rows: table("U", "U")})
	s.master.Send(&proto.StartOperation{})
	expect[*proto.NotifyReady](s)
	if a := call[*proto.AnswerObject](s.client(1), &proto.AskObject{OID: 1}); a.Serial != 10 {
		t.Errorf("load: %+v", a)
	}
	if conf, err := s.db.Config(); err != nil || conf.TruncateTID.OK {
		t.Errorf("truncate TID: %+v, %v", conf.TruncateTID, err)
	}
}

func TestRepair(t *testing.T) {
	r := newRig(t)
	s := r.start(1, backendtest.NewMemory(), nil)
	s.initialize(1, table("U", "U"))
	// As after a crash: data without record nor protection.
	for i := range tid.OID(10) {
		id, err := s.db.HoldData(i, data("lost"), proto.Opt[tid.TID]{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.db.ReleaseData([]backend.DataID{id}, false); err != nil {
			t.Fatal(err)
		}
	}
	s.master.Send(&proto.NotifyRepair{DryRun: true}) // before operation: done later
	s.operate()
	idle := func() bool {
		over := make(chan bool)
		s.post(func() error { over <- s.repair == nil; return nil })
		return <-over
	}
	eventually(t, "the search is over", idle)
	if n := orphans(t, s.db); n != 10 {
		t.Errorf("%d orphans after a dry run, want 10", n)
	}
	c := s.client(1)
	call[*proto.AnswerStoreObject](c, store(10, 1, 0, "held"))
	s.master.Send(&proto.NotifyRepair{})
	s.barrier()
	eventually(t, "the repair is over", idle)
	if n := orphans(t, s.db); n != 0 {
		t.Errorf("%d orphans after the repair", n)
	}
	s.finish(c, 10, 1)
	if a := call[*proto.AnswerObject](c, &proto.AskObject{OID: 1}); string(a.Data) != "held" {
		t.Errorf("data in use: %+v", a)
	}
}

// rowTime is how long a paced database needs to delete a record.
const rowTime = 50 * time.Microsecond

// paced is a database with one lock, which deletes slowly.
type paced struct {
	backend.Backend
	records int           // as many as there are to look at
	lock    chan struct{} // not a mutex: that would stop the clock
	slices  []int         // sizes asked for
	dropped atomic.Bool
}

// delay takes the time for n records.
func (b *paced) delay(n int) {
	b.slices = append(b.slices, n)
	time.Sleep(time.Duration(min(n, b.records)) * rowTime)
}

func (b *paced) Pack(partition int, t tid.TID, oids []tid.OID, keep tid.TID, after proto.Opt[tid.OID], n int) (proto.Opt[tid.OID], int, error) {
	b.lock <- struct{}{}
	defer func() { <-b.lock }()
	b.delay(n)
	return b.Backend.Pack(partition, t, oids, keep, after, n)
}

func (b *paced) DropPartition(partition, n int) (bool, error) {
	b.lock <- struct{}{}
	defer func() { <-b.lock }()
	b.delay(n)
	done, err := b.Backend.DropPartition(partition, n)
	b.dropped.Store(done)
	return done, err
}

func (b *paced) GetObject(ctx context.Context, oid tid.OID, at, before proto.Opt[tid.TID]) (backend.Object, error) {
	b.lock <- struct{}{}
	defer func() { <-b.lock }()
	return b.Backend.GetObject(ctx, oid, at, before)
}

func (b *paced) GetObjects(ctx context.Context, keys []backend.ObjectKey, f func(i int, o *backend.Object, err error) bool) {
	backend.GetEach(ctx, b, keys, f)
}

// History and discarded partitions are deleted in slices, between which loads and
// stores are answered: they wait for about 10 ms, however much there is to delete.
func TestPackGivesWay(t *testing.T) {
	const records, longest = 2400, 30 * time.Millisecond
	for _, tt := range []struct {
		name  string
		begin func(s *testNode, c *testClient)
		over  func(s *testNode) bool
	}{
		{"pack", func(s *testNode, c *testClient) {
			s.packAt(c, 14, 13)
			s.ordered(1)
		}, func(s *testNode) bool { return len(s.events) > 0 }},
		{"drop", func(s *testNode, c *testClient) {
			s.master.Send(&proto.NotifyPartitionChanges{PTID: 2, Cells: []proto.CellChange{
				{Partition: 0, ID: 2, State: proto.UpToDate}, {Partition: 0, ID: 1, State: proto.Discarded}}})
			s.barrier()
		}, func(s *testNode) bool { return s.db.(*paced).dropped.Load() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				db := &paced{records: records, lock: make(chan struct{}, 1)}
				s := r.run(func(c *Config) {
					db.Backend = c.Backend
					c.Backend = db
				})
				c := s.client(1)
				oids := []tid.OID{1}
				for oid := tid.OID(0); oid < records; oid += 2 {
					oids = append(oids, oid)
				}
				s.commit(c, 10, 0, "one", oids...)
				s.commit(c, 12, 10, "two", oids...)
				begin := time.Now()
				tt.begin(s, c)
				stored := tid.OID(records + 1)
				for ; !tt.over(s); stored += 2 {
					for _, req := range []proto.Request{&proto.AskObject{OID: 1}, store(20, stored, 0, "x")} {
						asked := time.Now()
						if _, err := try(c, req); err != nil {
							t.Fatal(err)
						}
						if d := time.Since(asked); d > longest {
							t.Errorf("%T waited for %v, want at most %v", req, d, longest)
						}
					}
					time.Sleep(time.Millisecond)
				}
				took := time.Since(begin)
				s.barrier() // before slices are read
				t.Logf("%v for slices of %v records", took, db.slices)
				if n := len(db.slices); n < 10 || slices.Max(db.slices) > int(longest/rowTime) {
					t.Errorf("%d slices of %v records", n, db.slices)
				}
				// The work itself is not delayed without need.
				if took > 2*records*rowTime {
					t.Errorf("%v for %d records, want at most %v", took, records, 2*records*rowTime)
				}
			})
		})
	}
}
