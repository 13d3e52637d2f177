package clustertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// The links of a cluster, by the node that receives and the one that sends.
const (
	clientFromMaster     = "client<master"
	clientFromStorage    = "client<storage"
	storageFromMaster    = "storage<master" // in initialization
	operationalStorage   = "operational storage<master"
	storageFromClient    = "storage<client"
	storageFromStorage   = "storage<storage"
	adminFromMaster      = "admin<master"
	adminFromOperator    = "admin<ctl"
	adminFromBackup      = "admin<admin of a backup"
	adminFromUpstream    = "admin<upstream admin"
	masterFromStorage    = "master<storage"
	masterFromClient     = "master<client"
	masterFromAdmin      = "master<admin"
	masterFromSecondary  = "master<secondary master"
	secondaryFromPrimary = "secondary master<master"
	ctlFromAdmin         = "ctl<admin"
	unacceptedFromMaster = "node that is not accepted yet<master"
)

var allLinks = []string{clientFromMaster, clientFromStorage, storageFromMaster, operationalStorage, storageFromClient,
	storageFromStorage, adminFromMaster, adminFromOperator, adminFromBackup, adminFromUpstream, masterFromStorage,
	masterFromClient, masterFromAdmin, masterFromSecondary, secondaryFromPrimary, ctlFromAdmin, unacceptedFromMaster}

// notices are all notifications of the protocol with the links on which a node,
// of any implementation, may send them. ends are the links that the receiver may
// close in order after it.
var notices = []struct {
	packet proto.Packet
	on     []string
	ends   []string
}{
	// What every role takes from any peer.
	{&proto.CloseClient{}, allLinks, allLinks},
	{&proto.FlushLog{}, allLinks, nil},
	{&proto.NotifyNodeInformation{Timestamp: 1e9}, allLinks, nil},
	{&proto.NotPrimaryMaster{Masters: []proto.Address{}}, allLinks, []string{unacceptedFromMaster, secondaryFromPrimary}},

	{&proto.SendPartitionTable{PTID: proto.Some(uint64(2)), Rows: oneCell}, []string{clientFromMaster, storageFromMaster, adminFromMaster}, nil},
	{&proto.NotifyPartitionChanges{PTID: 2}, []string{clientFromMaster, storageFromMaster, operationalStorage, adminFromMaster}, nil},
	{&proto.NotifyClusterInformation{State: proto.Running},
		[]string{clientFromMaster, storageFromMaster, operationalStorage, adminFromMaster, secondaryFromPrimary}, nil},
	{&proto.StartOperation{}, []string{storageFromMaster}, nil},
	{&proto.StartOperation{Backup: true}, []string{operationalStorage}, nil},
	{&proto.StopOperation{}, []string{clientFromMaster, storageFromMaster, operationalStorage}, nil},
	{&proto.NotifyReady{}, []string{masterFromStorage}, nil},
	{&proto.ValidateTransaction{TTID: 5, TID: 5}, []string{storageFromMaster}, nil},
	{&proto.InvalidateObjects{TID: 5, OIDs: []tid.OID{1}}, []string{clientFromMaster}, nil},
	// To the master of a backup cluster, and to a client with Config.Backup.
	{&proto.InvalidatePartitions{TID: 5}, nil, nil},
	// Of a transaction that is locked, which every commit shows.
	{&proto.NotifyUnlockInformation{TTID: 5}, nil, nil},
	{&proto.NotifyDeadlock{TTID: 5, OID: 1}, []string{clientFromStorage}, nil},
	{&proto.AbortTransaction{TTID: 5}, []string{storageFromMaster, operationalStorage, storageFromClient, masterFromClient}, nil},
	{&proto.NotifyTransactionFinished{TTID: 5, Max: 5}, []string{storageFromMaster, operationalStorage}, nil},
	{&proto.NotifyRepair{DryRun: true}, []string{storageFromMaster, operationalStorage}, nil},
	{&proto.NotifyPackSigned{Approved: []tid.TID{5}}, []string{storageFromMaster, operationalStorage}, nil},
	{&proto.NotifyPackCompleted{ID: 5}, []string{masterFromStorage}, nil},
	{&proto.Replicate{TID: 5, Sources: map[int]proto.Address{}}, []string{operationalStorage}, nil},
	{&proto.CheckPartition{Max: tid.Max}, []string{operationalStorage}, nil},
	{&proto.NotifyPartitionCorrupted{IDs: []proto.NodeID{1}}, []string{masterFromStorage}, nil},
	{&proto.NotifyReplicationDone{TID: 5}, []string{masterFromStorage}, nil},
	// Those of a fetch that is over.
	{&proto.AddTransaction{TID: 5, TTID: 5}, []string{storageFromStorage}, nil},
	{&proto.AddObject{OID: 1, Serial: 5}, []string{storageFromStorage}, nil},
	{&proto.Truncate{TID: 5}, []string{storageFromMaster}, nil},
	{&proto.NotifyMonitorInformation{Info: map[string]proto.Value{"down": int64(1)}}, []string{adminFromBackup}, nil},
	// About an import, whether there is one or not.
	{(&importing.Message{Topic: importing.Wanted}).Packet(), []string{storageFromMaster, operationalStorage, adminFromOperator}, nil},
	{(&importing.Report{State: importing.Failed}).Packet(1), []string{masterFromStorage, adminFromMaster, ctlFromAdmin}, nil},
	{(&importing.Message{Topic: importing.Gone, Node: 1}).Packet(), []string{adminFromMaster, ctlFromAdmin}, nil},
	{(&importing.Message{Topic: importing.Answered, Number: 5}).Packet(), []string{masterFromStorage, adminFromMaster, ctlFromAdmin}, nil},
	{(&importing.Order{}).Packet(1, 5), []string{storageFromMaster, operationalStorage, masterFromAdmin, adminFromOperator}, nil},
	{&proto.NotifyUpstreamAdmin{Addr: upstreamAddr}, []string{adminFromMaster}, nil},
}

// oneCell is the table of one partition, on storage S1.
var oneCell = [][]proto.Cell{{{ID: proto.Storage.ID(1), State: proto.UpToDate}}}

// acknowledged are the requests that are answered by an Error, which is why they
// have no answer of their own.
var acknowledged = []proto.Request{&proto.FailedVote{}, &proto.SetNodeState{}, &proto.AddPendingNodes{}, &proto.SetNumReplicas{},
	&proto.SetClusterState{}, &proto.Repair{}, &proto.CheckReplicas{}}

// No node takes a notification that it may be sent for a breach of protocol.
func TestNotificationsAreAccepted(t *testing.T) {
	known := map[uint16]bool{}
	for _, n := range notices {
		known[n.packet.Code()] = true
	}
	for _, r := range acknowledged {
		known[r.Code()] = true
	}
	for code := uint16(1); code <= (&proto.NotifyUpstreamAdmin{}).Code(); code++ {
		if answer := proto.CodeName(code | 0x8000); strings.HasPrefix(answer, "A") || strings.HasPrefix(answer, "Waited") || answer == "Pong" {
			continue
		}
		if !known[code] {
			t.Errorf("%s is not in the table", proto.CodeName(code))
		}
	}
	for _, on := range allLinks {
		for _, n := range notices {
			if !slices.Contains(n.on, on) {
				continue
			}
			t.Run(on+" "+proto.CodeName(n.packet.Code()), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newNoticeWorld(t)
					defer w.close()
					p := w.peerOn(on)
					p.conn.Send(n.packet)
					p.conn.Ask(&proto.Ping{}, nil)
					time.Sleep(time.Second)
					p.mu.Lock()
					defer p.mu.Unlock()
					for _, e := range p.errors {
						t.Errorf("answered by %v", e)
					}
					if (!p.pong || p.conn.Closed()) && !slices.Contains(n.ends, on) {
						t.Error("the link has ended")
					}
				})
			})
		}
	}
}

// noticeWorld has the node under test and the peers that a test plays.
type noticeWorld struct {
	t      *testing.T
	net    *memnet.Network
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	conns  []*link.Conn
	ends   []func()
}

func newNoticeWorld(t *testing.T) *noticeWorld {
	w := &noticeWorld{t: t, net: memnet.New(1)}
	w.ctx, w.cancel = context.WithCancel(t.Context())
	return w
}

func (w *noticeWorld) close() {
	w.cancel()
	for _, end := range slices.Backward(w.ends) {
		end()
	}
	for _, c := range w.conns {
		c.Close()
		<-c.Done()
	}
	w.wg.Wait()
}

// run runs a node.
func (w *noticeWorld) run(name string, run func(context.Context) error) {
	w.wg.Go(func() {
		if err := run(w.ctx); err != nil && w.ctx.Err() == nil {
			w.t.Errorf("%s failed: %v", name, err)
		}
	})
}

// played is a peer that the test plays.
type played struct {
	conn *link.Conn

	mu     sync.Mutex
	errors []*proto.Error
	pong   bool
	last   proto.Packet // of those that are not answers
}

// config is for a link of a played peer, which answers requests with answer.
func (w *noticeWorld) config(host string, p *played, answer func(ev link.Event)) link.Config {
	return link.Config{Network: w.net.Host(host), Deliver: func(ev link.Event) {
		p.mu.Lock()
		switch q := ev.Packet.(type) {
		case *proto.Error:
			p.errors = append(p.errors, q)
		case *proto.Pong:
			p.pong = true
		case *proto.NotifyReady:
			p.last = q
		}
		p.mu.Unlock()
		if ev.Packet != nil && ev.Asked == nil && !link.HandleBase(ev) && answer != nil {
			answer(ev)
		}
	}}
}

// dial connects a played peer and identifies it, if identify is not nil.
func (w *noticeWorld) dial(host string, to proto.Address, identify *proto.RequestIdentification) *played {
	p := &played{}
	stamp := make(chan proto.Opt[float64], 1)
	conn, err := link.Dial(w.ctx, to, w.config(host, p, func(ev link.Event) {
		if q, ok := ev.Packet.(*proto.NotifyNodeInformation); ok && len(stamp) == 0 {
			stamp <- q.Nodes[0].IDTimestamp
		}
	}))
	if err != nil {
		w.t.Fatal(err)
	}
	p.conn = conn
	w.conns = append(w.conns, conn)
	if identify == nil {
		return p
	}
	answer, err := conn.Call(w.ctx, identify)
	if err != nil {
		w.t.Fatalf("identifying as %v: %v", identify.Type, err)
	}
	if to.Host == masterHost {
		identify.ID = answer.(*proto.AcceptIdentification).YourID
		identify.IDTimestamp = <-stamp
	}
	return p
}

// listen plays a node that accepts connections and passes on the one whose peer
// has been answered.
func (w *noticeWorld) listen(addr proto.Address, answer func(ev link.Event) bool) <-chan *played {
	peers := map[*link.Conn]*played{}
	var mu sync.Mutex
	ready := make(chan *played, 16)
	deliver := func(ev link.Event) {
		mu.Lock()
		p := peers[ev.Conn]
		mu.Unlock()
		w.config(addr.Host, p, func(ev link.Event) {
			if answer(ev) {
				ready <- p
			}
		}).Deliver(ev)
	}
	l, err := link.Listen(w.ctx, addr, link.Config{Network: w.net.Host(addr.Host), Deliver: deliver}, func(c *link.Conn) {
		mu.Lock()
		defer mu.Unlock()
		peers[c] = &played{conn: c}
		w.conns = append(w.conns, c)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.ends = append(w.ends, func() { l.Close() })
	return ready
}

var (
	masterAddr   = proto.Address{Host: masterHost, Port: 10000}
	storageAddr  = proto.Address{Host: storageHost(0), Port: 20000}
	adminAddr    = proto.Address{Host: "10.0.3.1", Port: 9999}
	upstreamAddr = proto.Address{Host: "10.0.3.2", Port: 9999}
)

// playMaster plays the primary master of a node, whose link is passed on once it
// is accepted.
func (w *noticeWorld) playMaster() <-chan *played {
	return w.listen(masterAddr, func(ev link.Event) bool {
		switch q := ev.Packet.(type) {
		case *proto.RequestIdentification:
			id := q.Type.ID(1)
			if q.Type == proto.Master {
				id = q.Type.ID(2)
			}
			ev.Conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Master, ID: proto.Master.ID(1), YourID: id})
			nodes := []proto.Node{{Type: q.Type, Addr: q.Addr, ID: id, State: proto.NodeRunning, IDTimestamp: proto.Some(2.0)}}
			if q.Type != proto.Storage {
				nodes = append(nodes, proto.Node{Type: proto.Storage, Addr: storageAddr, ID: proto.Storage.ID(1), State: proto.NodeRunning})
			}
			ev.Conn.Send(&proto.NotifyNodeInformation{Timestamp: 1, Nodes: nodes})
			if q.Type != proto.Master {
				ev.Conn.Send(&proto.SendPartitionTable{PTID: proto.Some(uint64(1)), Rows: oneCell})
			}
			return q.Type != proto.Client
		case *proto.AskLastTransaction:
			ev.Conn.Answer(ev.ID, &proto.AnswerLastTransaction{TID: 4})
			return true
		case *proto.AskClusterState:
			ev.Conn.Answer(ev.ID, &proto.AnswerClusterState{State: proto.Some(proto.Running)})
		}
		return false
	})
}

func (w *noticeWorld) startMaster(addr proto.Address, masters ...proto.Address) {
	m, err := master.New(master.Config{Cluster: "test", Bind: addr, Masters: masters, Partitions: 1, Autostart: 1, Network: w.net.Host(addr.Host)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run("master", m.Run)
}

func (w *noticeWorld) startStorage() {
	b, err := backendtest.NewMemory().Open()
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := storage.New(storage.Config{Cluster: "test", Bind: storageAddr, Masters: bootstrap.NewMasters(masterAddr), Backend: b,
		Network: w.net.Host(storageAddr.Host), Dialer: &link.Dialer{}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run("storage", n.Run)
}

func (w *noticeWorld) startAdmin() {
	n, err := admin.New(admin.Config{Cluster: "test", Bind: adminAddr, Masters: bootstrap.NewMasters(masterAddr), Backups: []string{"backup"},
		Network: w.net.Host(adminAddr.Host), Dialer: &link.Dialer{}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run("admin", n.Run)
}

func (w *noticeWorld) openClient() *client.Client {
	c, err := client.Open(w.ctx, client.Config{Cluster: "test", Masters: []proto.Address{masterAddr}, Network: w.net.Host(clientHost(9)), Dialer: &link.Dialer{}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.ends = append(w.ends, func() { c.Close() })
	return c
}

// startCluster starts real nodes, which serve when it returns.
func (w *noticeWorld) startCluster() {
	w.startMaster(masterAddr)
	w.startStorage()
	w.openClient()
}

func identification(typ proto.NodeType, addr proto.Address) *proto.RequestIdentification {
	return &proto.RequestIdentification{Type: typ, Addr: addr, Cluster: "test", Extra: map[string]proto.Value{}}
}

// peerOn starts what a kind of link needs, and returns the peer that sends on it.
func (w *noticeWorld) peerOn(on string) *played {
	const host = "10.0.9.9"
	addr := proto.Address{Host: host, Port: 1}
	switch on {
	case clientFromMaster:
		ready := w.playMaster()
		w.openClient()
		return <-ready
	case clientFromStorage:
		w.playMaster()
		ready := w.listen(storageAddr, func(ev link.Event) bool {
			switch q := ev.Packet.(type) {
			case *proto.RequestIdentification:
				ev.Conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Storage, ID: proto.Storage.ID(1), YourID: q.ID})
			case *proto.AskObject:
				ev.Conn.AnswerError(ev.ID, proto.OIDDoesNotExist, "none")
				return true
			}
			return false
		})
		c := w.openClient()
		if _, err := c.LoadBefore(w.ctx, 1, tid.Max); err == nil {
			w.t.Error("an object that is not there was loaded")
		}
		return <-ready
	case storageFromMaster:
		ready := w.playMaster()
		w.startStorage()
		return <-ready
	case operationalStorage:
		ready := w.playMaster()
		w.startStorage()
		p := <-ready
		p.conn.Send(&proto.StartOperation{})
		for waiting := true; waiting; {
			time.Sleep(time.Millisecond)
			p.mu.Lock()
			waiting = p.last == nil
			p.mu.Unlock()
		}
		return p
	case storageFromClient:
		w.startCluster()
		id := identification(proto.Client, proto.Address{})
		w.dial(host, masterAddr, id)
		return w.dial(host, storageAddr, id)
	case storageFromStorage: // of a backup cluster, which has no id here
		w.startCluster()
		return w.dial(host, storageAddr, identification(proto.Storage, addr))
	case adminFromMaster:
		ready := w.playMaster()
		w.startAdmin()
		return <-ready
	case adminFromOperator:
		w.startCluster()
		w.startAdmin()
		return w.dial(host, adminAddr, nil)
	case adminFromBackup:
		w.startCluster()
		w.startAdmin()
		id := identification(proto.Admin, proto.Address{})
		id.Cluster = "backup"
		return w.dial(host, adminAddr, id)
	case adminFromUpstream:
		ready := w.playMaster()
		w.startAdmin()
		upstream := w.listen(upstreamAddr, func(ev link.Event) bool {
			if _, ok := ev.Packet.(*proto.RequestIdentification); ok {
				ev.Conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Admin})
				return false
			}
			_, reports := ev.Packet.(*proto.NotifyMonitorInformation)
			return reports
		})
		(<-ready).conn.Send(&proto.NotifyUpstreamAdmin{Addr: upstreamAddr})
		return <-upstream
	case masterFromStorage:
		w.startCluster()
		return w.dial(host, masterAddr, identification(proto.Storage, addr))
	case masterFromClient:
		w.startCluster()
		return w.dial(host, masterAddr, identification(proto.Client, proto.Address{}))
	case masterFromAdmin:
		w.startCluster()
		return w.dial(host, masterAddr, identification(proto.Admin, addr))
	case masterFromSecondary:
		w.startCluster()
		return w.dial(host, masterAddr, identification(proto.Master, addr))
	case secondaryFromPrimary:
		ready := w.playMaster()
		w.startMaster(proto.Address{Host: "10.0.0.2", Port: 10000}, masterAddr)
		return <-ready
	case ctlFromAdmin:
		ready := w.listen(adminAddr, func(ev link.Event) bool {
			ev.Conn.Answer(ev.ID, &proto.AnswerClusterState{State: proto.Some(proto.Running)})
			return true
		})
		c, err := ctl.Dial(w.ctx, adminAddr, link.Config{Network: w.net.Host(host)})
		if err != nil {
			w.t.Fatal(err)
		}
		w.ends = append(w.ends, c.Close)
		if _, err := c.ClusterState(w.ctx); err != nil {
			w.t.Error(err)
		}
		return <-ready
	case unacceptedFromMaster:
		ready := w.listen(masterAddr, func(ev link.Event) bool {
			_, identifies := ev.Packet.(*proto.RequestIdentification)
			return identifies
		})
		w.startAdmin()
		return <-ready
	}
	panic(fmt.Sprintf("no peer on %s", on))
}
