package storage

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/cluster/tid"
)

const patience = time.Minute

// rig is a network with a scripted master.
type rig struct {
	t       *testing.T
	net     *memnet.Network
	stamp   float64 // of the last node information
	nodes   map[proto.NodeID]proto.Node
	masters *link.Listener
	conns   chan *link.Conn // of storages that connect
}

// testNode is a storage node under test, and the master's end of its link.
type testNode struct {
	*Node
	rig    *rig
	id     proto.NodeID
	mem    *backendtest.Memory
	master *link.Conn
	events chan link.Event
	ended  chan error
	cancel context.CancelFunc
	orders []proto.PackOrder // known to the master
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, net: memnet.New(1), stamp: 1000, nodes: map[proto.NodeID]proto.Node{}, conns: make(chan *link.Conn, 10)}
	var err error
	r.masters, err = link.Listen(t.Context(), proto.Address{Host: "m", Port: 10000}, link.Config{
		Network: r.net.Host("m"),
		Deliver: func(ev link.Event) { ev.Conn.Tag.(chan link.Event) <- ev },
	}, func(c *link.Conn) {
		c.Tag = make(chan link.Event, 10000)
		r.conns <- c
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.masters.Close() })
	return r
}

// start runs a storage with the id n and waits for its identification.
func (r *rig) start(n int, mem *backendtest.Memory, change func(*Config)) *testNode {
	r.t.Helper()
	db, err := mem.Open()
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := Config{
		Cluster: "test",
		Bind:    proto.Address{Host: fmt.Sprintf("s%d", n), Port: 1000},
		Masters: bootstrap.NewMasters(proto.Address{Host: "m", Port: 10000}),
		Backend: db,
		Network: r.net.Host(fmt.Sprintf("s%d", n)),
		Log:     slog.New(slog.NewTextHandler(testWriter{r.t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	node, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	s := &testNode{Node: node, rig: r, id: proto.NodeID(n), mem: mem, ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	done := make(chan struct{})
	go func() {
		s.ended <- node.Run(ctx)
		close(done)
	}()
	r.t.Cleanup(func() {
		cancel()
		<-done
		db.Close()
	})
	s.connected()
	return s
}

// connected accepts the storage as a master does.
func (s *testNode) connected() *proto.RequestIdentification {
	s.rig.t.Helper()
	select {
	case s.master = <-s.rig.conns:
	case <-time.After(patience):
		s.rig.t.Fatal("the node does not connect to the master")
	}
	s.events = s.master.Tag.(chan link.Event)
	ev := s.next()
	ask, ok := ev.Packet.(*proto.RequestIdentification)
	if !ok {
		s.rig.t.Fatalf("first packet is %T", ev.Packet)
	}
	s.master.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Master, ID: proto.Master.ID(1), YourID: s.id})
	return ask
}

func (s *testNode) next() link.Event {
	s.rig.t.Helper()
	select {
	case ev := <-s.events:
		return ev
	case <-time.After(patience):
		s.rig.t.Fatal("nothing comes from the node")
		panic("not reached")
	}
}

// expect returns the next packet of the node, which must be of type T.
func expect[T proto.Packet](s *testNode) T {
	s.rig.t.Helper()
	ev := s.next()
	p, ok := ev.Packet.(T)
	if !ok {
		s.rig.t.Fatalf("got %T %+v, want %T (%v)", ev.Packet, ev.Packet, p, ev.Err)
	}
	return p
}

// await returns the next packet of type T, skipping others. Before the end of a
// replication the node asks for the pack orders that it may have missed.
func await[T proto.Packet](s *testNode) T {
	s.rig.t.Helper()
	for {
		ev := s.next()
		if p, ok := ev.Packet.(T); ok {
			return p
		}
		var t T
		if _, done := any(t).(*proto.NotifyReplicationDone); done {
			s.answerOrders(ev)
		}
		if ev.End() {
			var zero T
			s.rig.t.Fatalf("the node hung up before %T: %v", zero, ev.Err)
		}
	}
}

// answerOrders answers AskPackOrders as the master does.
func (s *testNode) answerOrders(ev link.Event) {
	q, ok := ev.Packet.(*proto.AskPackOrders)
	if !ok {
		return
	}
	a := &proto.AnswerPackOrders{}
	for _, o := range s.orders {
		if o.ID >= q.Min {
			a.Orders = []proto.PackOrder{o}
			break
		}
	}
	s.master.Answer(ev.ID, a)
}

// ask asks the node and returns its answer, which must be of type T.
func ask[T proto.Packet](s *testNode, req proto.Request) T {
	s.rig.t.Helper()
	s.master.Ask(req, nil)
	return expect[T](s)
}

// announce tells the node about nodes, itself first.
func (s *testNode) announce(state proto.NodeState, others ...proto.Node) {
	s.rig.stamp++
	list := []proto.Node{{Type: proto.Storage, ID: s.id, Addr: s.Addr(), State: state, IDTimestamp: proto.Some(float64(s.id))}}
	s.master.Send(&proto.NotifyNodeInformation{Timestamp: s.rig.stamp, Nodes: append(list, others...)})
}

func clientNode(n int) proto.Node {
	return proto.Node{Type: proto.Client, ID: proto.Client.ID(n), State: proto.NodeRunning, IDTimestamp: proto.Some(float64(100 + n))}
}

func (s *testNode) node() proto.Node {
	return proto.Node{Type: proto.Storage, ID: s.id, Addr: s.Addr(), State: proto.NodeRunning, IDTimestamp: proto.Some(float64(s.id))}
}

// table makes rows of cells from a picture: one word per partition, one letter
// per node from S1 on: U, O, F, C or a dot.
func table(words ...string) [][]proto.Cell {
	var rows [][]proto.Cell
	for _, w := range words {
		var row []proto.Cell
		for i, letter := range w {
			state, ok := map[rune]proto.CellState{'U': proto.UpToDate, 'O': proto.OutOfDate, 'F': proto.Feeding, 'C': proto.Corrupted}[letter]
			if ok {
				row = append(row, proto.Cell{ID: proto.NodeID(i + 1), State: state})
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// initialize goes through the exchange that precedes operation.
func (s *testNode) initialize(ptid uint64, rows [][]proto.Cell, others ...proto.Node) {
	s.rig.t.Helper()
	s.announce(proto.NodeRunning, append(others, clientNode(1), clientNode(2), clientNode(3))...)
	s.master.Send(&proto.SendPartitionTable{PTID: proto.Some(ptid), Rows: rows})
	s.master.Ask(&proto.AskLastIDs{}, nil)
	if !s.cfg.DisablePack {
		expect[*proto.NotifyPackCompleted](s)
	}
	expect[*proto.AnswerLastIDs](s)
}

func (s *testNode) operate() {
	s.rig.t.Helper()
	s.master.Send(&proto.StartOperation{})
	expect[*proto.NotifyReady](s)
}

// run makes a new operational node S1 with two readable partitions.
func (r *rig) run(change func(*Config)) *testNode {
	r.t.Helper()
	s := r.start(1, backendtest.NewMemory(), change)
	s.initialize(1, table("U", "U"))
	s.operate()
	return s
}

// openFile opens an SQLite database until the test ends.
func openFile(t *testing.T, path string) *sqldb.DB {
	t.Helper()
	db, err := sqlitedb.Open(context.Background(), path, sqlitedb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// crashed opens what a new process finds if that of an SQLite database dies now.
// Nothing must be written meanwhile.
func crashed(t *testing.T, path string) *sqldb.DB {
	t.Helper()
	to := filepath.Join(t.TempDir(), "db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if err == nil {
			err = os.WriteFile(to+suffix, b, 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return openFile(t, to)
}

// testClient is a client of a node.
type testClient struct {
	*link.Conn
	t      *testing.T
	events chan link.Event
}

// dial connects to a node without identification.
func (s *testNode) dial(host string) *testClient {
	s.rig.t.Helper()
	c := &testClient{t: s.rig.t, events: make(chan link.Event, 10000)}
	var err error
	c.Conn, err = link.Dial(s.rig.t.Context(), s.Addr(), link.Config{
		Network: s.rig.net.Host(host),
		Deliver: func(ev link.Event) { c.events <- ev },
	})
	if err != nil {
		s.rig.t.Fatal(err)
	}
	s.rig.t.Cleanup(c.Close)
	return c
}

// client connects as client Cn.
func (s *testNode) client(n int) *testClient {
	s.rig.t.Helper()
	c := s.dial(fmt.Sprintf("c%d", n))
	call[*proto.AcceptIdentification](c, &proto.RequestIdentification{Type: proto.Client, ID: proto.Client.ID(n), Cluster: "test",
		IDTimestamp: proto.Some(float64(100 + n)), Extra: map[string]proto.Value{}})
	return c
}

// call returns the answer to a request, which must be of type T.
func call[T proto.Packet](c *testClient, req proto.Request) T {
	c.t.Helper()
	p, err := try(c, req)
	a, ok := p.(T)
	if err != nil || !ok {
		c.t.Fatalf("%T: got %+v, %v, want %T", req, p, err, a)
	}
	return a
}

func try(c *testClient, req proto.Request) (proto.Packet, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.Call(ctx, req)
}

// code returns the error code that a request is answered with.
func code(c *testClient, req proto.Request) string {
	c.t.Helper()
	p, err := try(c, req)
	if e, ok := errors.AsType[*proto.Error](err); ok {
		return e.ErrCode.String()
	}
	return fmt.Sprintf("%T %v", p, err)
}

func data(s string) proto.ObjectData {
	return proto.ObjectData{Checksum: sha1.Sum([]byte(s)), Data: []byte(s)}
}

func store(ttid tid.TID, oid tid.OID, base tid.TID, s string) *proto.AskStoreObject {
	return &proto.AskStoreObject{TTID: ttid, OID: oid, Serial: base, ObjectData: data(s)}
}

// commit stores objects, all with the same data, as one transaction.
func (s *testNode) commit(c *testClient, t, base tid.TID, text string, oids ...tid.OID) {
	s.rig.t.Helper()
	for _, oid := range oids {
		if a := call[*proto.AnswerStoreObject](c, store(t, oid, base, text)); a.Conflict.OK {
			s.rig.t.Fatalf("store of %v at %v: conflict with %v", oid, t, a.Conflict.V)
		}
	}
	s.finish(c, t, oids...)
}

// finish ends a transaction whose objects are stored.
func (s *testNode) finish(c *testClient, t tid.TID, oids ...tid.OID) {
	s.rig.t.Helper()
	call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: t, User: []byte("joe"), OIDs: oids})
	s.master.Ask(&proto.AskLockInformation{TTID: t, TID: t}, nil)
	await[*proto.AnswerInformationLocked](s)
	s.master.Send(&proto.NotifyUnlockInformation{TTID: t})
	s.barrier()
}

// barrier waits until the node has processed all that the master sent.
func (s *testNode) barrier() {
	s.rig.t.Helper()
	s.master.Ask(&proto.Ping{}, nil)
	await[*proto.Pong](s)
}

func (s *testNode) wait() error {
	s.rig.t.Helper()
	select {
	case err := <-s.ended:
		s.ended <- err
		return err
	case <-time.After(patience):
		s.rig.t.Fatal("the node does not end")
		return nil
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(b))
	return len(b), nil
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not so after %v: %s", patience, what)
}

func newMasters() *bootstrap.Masters {
	return bootstrap.NewMasters(proto.Address{Host: "m", Port: 10000})
}
