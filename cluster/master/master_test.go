package master_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

func hostAddr(n int) proto.Address {
	return proto.Address{Host: fmt.Sprintf("10.0.0.%d", n), Port: 10000}
}

// node is a fake node: what it is told, and a link to answer on.
type node struct {
	t     *testing.T
	conn  *link.Conn
	mu    sync.Mutex
	got   []proto.Packet
	ended error
}

// dial connects a fake node to a master. With handle, it reacts to packets.
func dial(t *testing.T, nw link.Network, a proto.Address, handle func(*node, link.Event)) *node {
	t.Helper()
	n := &node{t: t}
	ready := make(chan struct{})
	c, err := link.Dial(t.Context(), a, link.Config{Network: nw, Deliver: func(ev link.Event) {
		<-ready
		n.mu.Lock()
		n.got = append(n.got, ev.Packet)
		if ev.End() {
			n.ended = ev.Err
		}
		n.mu.Unlock()
		if handle != nil && ev.Packet != nil {
			handle(n, ev)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	n.conn = c
	close(ready)
	t.Cleanup(func() { c.Close(); <-c.Done() })
	return n
}

// call asks, and fails the test if the answer is an error.
func call[T proto.Packet](n *node, req proto.Request) T {
	n.t.Helper()
	p, err := n.conn.Call(n.t.Context(), req)
	if err != nil {
		n.t.Fatalf("%T: %v", req, err)
	}
	answer, ok := p.(T)
	if !ok {
		n.t.Fatalf("%T answered by %T", req, p)
	}
	return answer
}

func (n *node) identify(typ proto.NodeType, port uint16) *proto.AcceptIdentification {
	n.t.Helper()
	r := &proto.RequestIdentification{Type: typ, Cluster: "test", Extra: map[string]proto.Value{}}
	if port != 0 {
		r.Addr = proto.Address{Host: "10.0.9.9", Port: port}
	}
	return call[*proto.AcceptIdentification](n, r)
}

// storage answers as a storage without data does.
func storage(n *node, ev link.Event) {
	switch p := ev.Packet.(type) {
	case *proto.AskRecovery:
		n.conn.Answer(ev.ID, &proto.AnswerRecovery{})
	case *proto.AskLockedTransactions:
		n.conn.Answer(ev.ID, &proto.AnswerLockedTransactions{})
	case *proto.AskLastIDs:
		n.conn.Answer(ev.ID, &proto.AnswerLastIDs{FirstTID: tid.Max})
	case *proto.AskPackOrders:
		n.conn.Answer(ev.ID, &proto.AnswerPackOrders{})
	case *proto.StartOperation:
		n.conn.Send(&proto.NotifyReady{})
	case *proto.AskLockInformation:
		n.conn.Answer(ev.ID, &proto.AnswerInformationLocked{TTID: p.TTID})
	}
}

// run starts a master, and waits for its end with the test.
func run(t *testing.T, cfg master.Config) (m *master.Master, stop func(), ended <-chan error) {
	t.Helper()
	cfg.Cluster = "test"
	m, err := master.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { done <- m.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return m, func() { cancel(); wg.Wait() }, done
}

// A cluster of one fake storage and fake clients commits over real links.
func TestCommitOverLinks(t *testing.T) {
	m, _, ended := run(t, master.Config{Bind: proto.Address{Host: "127.0.0.1"}, Partitions: 3, Autostart: 1})
	var flushed sync.WaitGroup
	flushed.Add(1)
	s := dial(t, nil, m.Addr(), func(n *node, ev link.Event) {
		storage(n, ev)
		if _, ok := ev.Packet.(*proto.NotifyUnlockInformation); ok {
			flushed.Done()
		}
	})
	s.identify(proto.Storage, 1)
	a := dial(t, nil, m.Addr(), nil)
	a.identify(proto.Admin, 2)
	for call[*proto.AnswerClusterState](a, &proto.AskClusterState{}).State != proto.Some(proto.Running) {
		time.Sleep(time.Millisecond)
	}
	c, other := dial(t, nil, m.Addr(), nil), dial(t, nil, m.Addr(), nil)
	c.identify(proto.Client, 0)
	other.identify(proto.Client, 0)

	oids := call[*proto.AnswerNewOIDs](c, &proto.AskNewOIDs{Count: 2}).OIDs
	ttid := call[*proto.AnswerBeginTransaction](c, &proto.AskBeginTransaction{}).TTID
	if ahead := time.Since(ttid.Time()).Abs(); ahead > time.Minute {
		t.Errorf("ttid %v is %v from now", ttid, ahead)
	}
	done := call[*proto.AnswerTransactionFinished](c, &proto.AskFinishTransaction{TTID: ttid, OIDs: oids})
	if done.TTID != ttid || done.TID < ttid || done.TID.Partition(3) != ttid.Partition(3) {
		t.Errorf("finished %+v for ttid %v", done, ttid)
	}
	flushed.Wait()
	if last := call[*proto.AnswerLastTransaction](other, &proto.AskLastTransaction{}); last.TID != done.TID {
		t.Errorf("last transaction %v, want %v", last.TID, done.TID)
	}
	other.mu.Lock()
	if !slices.ContainsFunc(other.got, func(p proto.Packet) bool {
		i, ok := p.(*proto.InvalidateObjects)
		return ok && i.TID == done.TID && slices.Equal(i.OIDs, oids)
	}) {
		t.Error("the other client was not told of the commit before its answer")
	}
	other.mu.Unlock()

	call[*proto.Error](a, &proto.SetClusterState{State: proto.Stopping})
	if err := <-ended; err != nil {
		t.Errorf("Run = %v", err)
	}
	for _, n := range []*node{s, a, c} {
		<-n.conn.Done()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.ContainsFunc(s.got, func(p proto.Packet) bool {
		i, ok := p.(*proto.NotifyNodeInformation)
		return ok && len(i.Nodes) == 1 && i.Nodes[0].State == proto.NodeDown
	}) {
		t.Error("the storage was not told to stop")
	}
}

func TestPortInUse(t *testing.T) {
	m, _, _ := run(t, master.Config{Bind: proto.Address{Host: "127.0.0.1"}})
	if _, err := master.New(master.Config{Cluster: "test", Bind: m.Addr()}); err == nil {
		t.Error("two masters listen at the same port")
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []master.Config{
		{},
		{Cluster: "test", Partitions: -1},
		{Cluster: "test", Replicas: -1},
	} {
		cfg.Bind = proto.Address{Host: "127.0.0.1"}
		if _, err := master.New(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

// primaryOf asks the masters, and returns the one that is primary, 0 if they do
// not agree.
func primaryOf(t *testing.T, nw *memnet.Network, masters []int) int {
	t.Helper()
	primary := 0
	for _, i := range masters {
		named := make(chan int, 1)
		n := dial(t, nw.Host("10.0.8.8"), hostAddr(i), func(_ *node, ev link.Event) {
			switch p := ev.Packet.(type) {
			case *proto.NotPrimaryMaster:
				if p.Primary.OK {
					for j := range 20 {
						if p.Masters[p.Primary.V] == hostAddr(j) {
							named <- j
							return
						}
					}
				}
				named <- 0
			case *proto.NotifyNodeInformation:
				select {
				case named <- i:
				default:
				}
			}
		})
		n.conn.Ask(&proto.RequestIdentification{Type: proto.Admin, Addr: proto.Address{Host: "10.0.8.8", Port: 1}, Cluster: "test",
			Extra: map[string]proto.Value{}}, nil)
		got := <-named
		n.conn.Close()
		<-n.conn.Done()
		if got == 0 || primary != 0 && got != primary {
			return 0
		}
		primary = got
	}
	return primary
}

// Masters that start together agree on one; when it dies, the others agree on
// another one; when it returns, it does not take the role back.
func TestElectionOverLinks(t *testing.T) {
	for seed := range uint64(5) {
		synctest.Test(t, func(t *testing.T) {
			nw := memnet.New(seed)
			const n = 6
			var all []proto.Address
			for i := 1; i <= n; i++ {
				all = append(all, hostAddr(i))
			}
			for i := range n {
				for j := range n {
					nw.Delay(all[i].Host, all[j].Host, 0, 20*time.Millisecond)
				}
			}
			stops := map[int]func(){}
			start := func(i int) {
				_, stops[i], _ = run(t, master.Config{Bind: hostAddr(i), Masters: all, Network: nw.Host(hostAddr(i).Host)})
			}
			alive := func() []int {
				var list []int
				for i := 1; i <= n; i++ {
					if stops[i] != nil {
						list = append(list, i)
					}
				}
				return list
			}
			agree := func(what string) int {
				for range 60 {
					time.Sleep(time.Second)
					if p := primaryOf(t, nw, alive()); p != 0 {
						return p
					}
				}
				t.Fatalf("seed %d: no agreement %s", seed, what)
				return 0
			}
			for i := 1; i <= n; i++ {
				start(i)
			}
			first := agree("at the start")
			stops[first]()
			delete(stops, first)
			second := agree("after a loss")
			if second == first {
				t.Errorf("seed %d: a dead master is primary", seed)
			}
			start(first)
			if third := agree("after a return"); third != second {
				t.Errorf("seed %d: the primary changed from %d to %d", seed, second, third)
			}
			for _, stop := range stops {
				stop()
			}
		})
	}
}

// A master without a network to dial ends all the same.
func TestStopWhileDialling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		_, stop, ended := run(t, master.Config{Bind: hostAddr(1), Masters: []proto.Address{hostAddr(2)}, Network: nw.Host(hostAddr(1).Host)})
		time.Sleep(2500 * time.Millisecond)
		stop()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	})
}

// What the master, its links, and eight clients with one storage need for a
// commit, over loopback.
func BenchmarkCommitOverLinks(b *testing.B) { // bounds the commits per second of a cluster
	t := &testing.T{}
	m, err := master.New(master.Config{Cluster: "test", Bind: proto.Address{Host: "127.0.0.1"}, Partitions: 12, Autostart: 1})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	connect := func(handle func(*link.Conn, link.Event), r *proto.RequestIdentification) *link.Conn {
		c, err := link.Dial(ctx, m.Addr(), link.Config{Deliver: func(ev link.Event) {
			if handle != nil && ev.Packet != nil {
				handle(ev.Conn, ev)
			}
		}})
		if err != nil {
			b.Fatal(err)
		}
		r.Cluster, r.Extra = "test", map[string]proto.Value{}
		if _, err := c.Call(ctx, r); err != nil {
			b.Fatal(err)
		}
		return c
	}
	s := connect(func(c *link.Conn, ev link.Event) { storage(&node{t: t, conn: c}, ev) },
		&proto.RequestIdentification{Type: proto.Storage, Addr: proto.Address{Host: "127.0.0.1", Port: 9}})
	defer s.Close()
	time.Sleep(50 * time.Millisecond)
	const clients = 8
	jobs := make(chan struct{})
	var workers sync.WaitGroup
	for range clients {
		c := connect(nil, &proto.RequestIdentification{Type: proto.Client})
		workers.Go(func() {
			defer c.Close()
			for range jobs {
				p, err := c.Call(ctx, &proto.AskBeginTransaction{})
				if err != nil {
					b.Error(err)
					return
				}
				if _, err := c.Call(ctx, &proto.AskFinishTransaction{TTID: p.(*proto.AnswerBeginTransaction).TTID, OIDs: []tid.OID{1, 2, 3}}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		jobs <- struct{}{}
	}
	close(jobs)
	workers.Wait()
}
