package admin

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// sent is a mail.
type sent struct {
	at            time.Time
	subject, body string
}

// letterbox collects mails.
type letterbox struct {
	mu   sync.Mutex
	list []sent
	err  error
}

func (b *letterbox) send(_ context.Context, subject, body string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.list = append(b.list, sent{time.Now(), subject, body})
	return b.err
}

// taken returns the mails that came since the last call, after a while.
func (b *letterbox) taken(t *testing.T, after time.Duration) []sent {
	time.Sleep(after)
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.list
	b.list = nil
	for i, m := range list {
		t.Logf("%v %s %q", m.at.Format(time.TimeOnly), m.subject, m.body)
		if i > 0 && m.at.Sub(list[i-1].at) < DefaultMailInterval {
			t.Errorf("a mail %v after another one", m.at.Sub(list[i-1].at))
		}
	}
	return list
}

// mailWorld has an admin that writes mails, and plays its master.
type mailWorld struct {
	*letterbox
	t       *testing.T
	net     *memnet.Network
	addr    proto.Address
	mu      sync.Mutex
	conns   []*link.Conn
	listens *link.Listener
}

// testMails runs a test with an admin whose cluster is well: S1 and S2 have one
// cell each.
func testMails(t *testing.T, test func(w *mailWorld)) {
	synctest.Test(t, func(t *testing.T) {
		w := &mailWorld{letterbox: &letterbox{}, t: t, net: memnet.New(1), addr: proto.Address{Host: "10.0.0.1", Port: 10000}}
		w.startMaster()
		n, err := New(Config{
			Cluster: "main", Bind: proto.Address{Host: "10.0.0.2", Port: 9999}, Masters: bootstrap.NewMasters(w.addr),
			Network: w.net.Host("10.0.0.2"), Mail: w.send,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the admin ended with %v", err)
			}
			w.stopMaster()
		}()
		if list := w.taken(t, 10*time.Minute); len(list) == 0 || list[len(list)-1].subject != "NEO monitoring: OK" {
			t.Errorf("mails at the start: %v", list)
		}
		test(w)
	})
}

func (w *mailWorld) startMaster() {
	var err error
	w.listens, err = link.Listen(w.t.Context(), w.addr, link.Config{Network: w.net.Host(w.addr.Host), Deliver: w.deliver}, func(c *link.Conn) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.conns = append(w.conns, c)
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *mailWorld) stopMaster() {
	if err := w.listens.Close(); err != nil {
		w.t.Error(err)
	}
	w.mu.Lock()
	conns := w.conns
	w.conns = nil
	w.mu.Unlock()
	for _, c := range conns {
		c.Close()
		<-c.Done()
	}
}

func (w *mailWorld) deliver(ev link.Event) {
	switch p := ev.Packet.(type) {
	case *proto.RequestIdentification:
		ev.Conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Master, ID: proto.Master.ID(1), YourID: adminID})
		ev.Conn.Send(&proto.NotifyNodeInformation{Timestamp: 1, Nodes: []proto.Node{
			{Type: proto.Admin, ID: adminID, State: proto.NodeRunning, Addr: p.Addr, IDTimestamp: proto.Some(1.5)},
			{Type: proto.Storage, ID: 1, State: proto.NodeRunning, Addr: proto.Address{Host: "10.0.0.3", Port: 1}},
			{Type: proto.Storage, ID: 2, State: proto.NodeRunning, Addr: proto.Address{Host: "10.0.0.3", Port: 2}},
		}})
		ev.Conn.Send(&proto.SendPartitionTable{PTID: proto.Some(uint64(7)), Rows: [][]proto.Cell{
			{{ID: 1, State: proto.UpToDate}}, {{ID: 2, State: proto.UpToDate}},
		}})
	case *proto.AskClusterState:
		ev.Conn.Answer(ev.ID, &proto.AnswerClusterState{State: proto.Some(proto.Running)})
	case *proto.AskLastTransaction:
		ev.Conn.Answer(ev.ID, &proto.AnswerLastTransaction{TID: 5})
	}
}

// storage says that S2 is in a state.
func (w *mailWorld) storage(s proto.NodeState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[len(w.conns)-1].Send(&proto.NotifyNodeInformation{Timestamp: 2, Nodes: []proto.Node{
		{Type: proto.Storage, ID: 2, State: s, Addr: proto.Address{Host: "10.0.0.3", Port: 2}},
	}})
}

// A master that is gone for an hour is one mail, its return another one.
func TestMailsWithoutMaster(t *testing.T) {
	testMails(t, func(w *mailWorld) {
		w.stopMaster()
		if list := w.taken(w.t, time.Hour); len(list) != 1 || !strings.Contains(list[0].subject, "PROBLEM") || !strings.HasPrefix(list[0].body, notConnected) {
			w.t.Errorf("without master: %v", list)
		}
		w.startMaster()
		if list := w.taken(w.t, time.Hour); len(list) == 0 || list[len(list)-1].subject != "NEO monitoring: OK" {
			w.t.Errorf("with the master again: %v", list)
		}
	})
}

// Changes that follow each other closely are few mails, and nothing is lost: what
// lasts is told, and what has passed too.
func TestMailsHaveAFloor(t *testing.T) {
	testMails(t, func(w *mailWorld) {
		w.storage(proto.NodeDown)
		if list := w.taken(w.t, time.Second); len(list) != 1 || !strings.Contains(list[0].body, "DOWN=1") {
			w.t.Errorf("a storage is down: %v", list)
		}
		w.storage(proto.NodeRunning)
		if list := w.taken(w.t, 5*time.Minute); len(list) != 1 || list[0].subject != "NEO monitoring: OK" || strings.Contains(list[0].body, "Meanwhile") {
			w.t.Errorf("it is back: %v", list)
		}

		// Up and down, a hundred times.
		for range 100 {
			w.storage(proto.NodeDown)
			time.Sleep(time.Second)
			w.storage(proto.NodeRunning)
			time.Sleep(time.Second)
		}
		list := w.taken(w.t, 5*time.Minute)
		if n := len(list); n < 2 || n > 6 || list[n-1].subject != "NEO monitoring: OK" {
			w.t.Errorf("up and down: %v", list)
		}
		if list := w.taken(w.t, time.Hour); len(list) != 0 {
			w.t.Errorf("nothing happened: %v", list)
		}

		// What came and went between two mails is told by the second.
		w.storage(proto.NodeDown)
		time.Sleep(time.Second)
		w.storage(proto.NodeRunning)
		time.Sleep(70 * time.Second) // in a new floor, and well
		w.storage(proto.NodeDown)
		time.Sleep(time.Second)
		w.storage(proto.NodeRunning)
		list = w.taken(w.t, 5*time.Minute)
		if n := len(list); n != 3 || list[n-1].subject != "NEO monitoring: OK" || !strings.Contains(list[n-1].body, "Meanwhile it was:\n\nRUNNING") ||
			!strings.Contains(list[n-1].body, "DOWN=1") {
			w.t.Errorf("what has passed: %v", list)
		}
	})
}

// What could not be sent is told once mails can be sent again.
func TestMailsAfterAFailure(t *testing.T) {
	testMails(t, func(w *mailWorld) {
		w.letterbox.mu.Lock()
		w.err = errors.New("mail server is away")
		w.letterbox.mu.Unlock()
		w.storage(proto.NodeDown)
		time.Sleep(time.Second)
		w.storage(proto.NodeRunning)
		if list := w.taken(w.t, time.Hour); len(list) < 2 || len(list) > 10 {
			w.t.Errorf("%d attempts", len(list))
		}
		w.letterbox.mu.Lock()
		w.err = nil
		w.letterbox.mu.Unlock()
		list := w.taken(w.t, time.Hour)
		if n := len(list); n != 2 || !strings.Contains(list[0].body, "DOWN=1") || list[1].subject != "NEO monitoring: OK" {
			w.t.Errorf("after the failure: %v", list)
		}
	})
}
