package admin

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// fakeMaster accepts every admin, and answers requests as a test says.
type fakeMaster struct {
	t        *testing.T
	listener *link.Listener
	answer   func(proto.Packet) proto.Packet // nil: no answer

	mu    sync.Mutex
	mute  bool // does not tell the state of the cluster
	conns []*link.Conn
	got   []proto.Packet
}

const adminID = proto.NodeID(-0x2fffffff) // A1

func newMaster(t *testing.T, answer func(proto.Packet) proto.Packet) *fakeMaster {
	t.Helper()
	m := &fakeMaster{t: t, answer: answer}
	var err error
	m.listener, err = link.Listen(t.Context(), proto.Address{Host: "127.0.0.1"}, link.Config{Deliver: m.deliver}, func(c *link.Conn) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.conns = append(m.conns, c)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.listener.Close(); err != nil {
			t.Error(err)
		}
		m.hangUp()
	})
	return m
}

func (m *fakeMaster) deliver(ev link.Event) {
	if ev.Packet == nil || ev.Asked != nil {
		return
	}
	m.mu.Lock()
	m.got = append(m.got, ev.Packet)
	m.mu.Unlock()
	switch p := ev.Packet.(type) {
	case *proto.RequestIdentification:
		ev.Conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Master, ID: proto.Master.ID(1), YourID: adminID})
		ev.Conn.Send(&proto.NotifyNodeInformation{Timestamp: 1, Nodes: []proto.Node{
			{Type: proto.Admin, ID: adminID, State: proto.NodeRunning, Addr: p.Addr, IDTimestamp: proto.Some(1.5)},
			{Type: proto.Master, ID: proto.Master.ID(1), State: proto.NodeRunning, Addr: m.listener.Addr()},
			{Type: proto.Storage, ID: 1, State: proto.NodeRunning, Addr: proto.Address{Host: "127.0.0.1", Port: 1}},
			{Type: proto.Storage, ID: 2, State: proto.NodeRunning, Addr: proto.Address{Host: "127.0.0.1", Port: 2}},
		}})
		ev.Conn.Send(&proto.SendPartitionTable{PTID: proto.Some(uint64(7)), Replicas: 1, Rows: [][]proto.Cell{
			{{ID: 1, State: proto.UpToDate}, {ID: 2, State: proto.UpToDate}},
			{{ID: 1, State: proto.UpToDate}, {ID: 2, State: proto.OutOfDate}},
			{{ID: 2, State: proto.UpToDate}},
		}})
	case *proto.AskClusterState:
		m.mu.Lock()
		mute := m.mute
		m.mu.Unlock()
		if mute {
			return
		}
		ev.Conn.Answer(ev.ID, &proto.AnswerClusterState{State: proto.Some(proto.Running)})
	default:
		if a := m.answer; a != nil {
			if answer := a(p); answer != nil {
				ev.Conn.Answer(ev.ID, answer)
			}
		}
	}
}

// send notifies the admin that connected last.
func (m *fakeMaster) send(p proto.Packet) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conns[len(m.conns)-1].Send(p)
}

// hangUp ends all links.
func (m *fakeMaster) hangUp() {
	m.mu.Lock()
	conns := m.conns
	m.mu.Unlock()
	for _, c := range conns {
		c.Close()
		<-c.Done()
	}
}

func (m *fakeMaster) received(code uint16) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.got, func(p proto.Packet) bool { return p.Code() == code })
}

// start runs an admin of a cluster with this master.
func start(t *testing.T, m *fakeMaster, change func(*Config)) (n *Node, done <-chan error) {
	t.Helper()
	cfg := Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Cluster: "main", Bind: proto.Address{Host: "127.0.0.1"}, Masters: bootstrap.NewMasters(m.listener.Addr())}
	if change != nil {
		change(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- n.Run(ctx)
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return n, ended
}

// dial connects an operator, and waits until the admin has a master.
func dial(t *testing.T, n *Node) *link.Conn {
	t.Helper()
	c := dialOnly(t, n)
	until(t, "the admin has found the master", func() bool {
		p, err := c.Call(t.Context(), &proto.AskClusterState{})
		a, ok := p.(*proto.AnswerClusterState)
		return err == nil && ok && a.State.OK
	})
	return c
}

func dialOnly(t *testing.T, n *Node) *link.Conn {
	t.Helper()
	c, err := link.Dial(t.Context(), n.Addr(), link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); <-c.Done() })
	return c
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within two minutes: %s", what)
		}
	}
}

func call[A proto.Packet](t *testing.T, c *link.Conn, req proto.Request) A {
	t.Helper()
	p, err := c.Call(t.Context(), req)
	if err != nil {
		t.Fatalf("%T: %v", req, err)
	}
	a, ok := p.(A)
	if !ok {
		t.Fatalf("%T answered by %T", req, p)
	}
	return a
}

// What an admin knows it answers itself.
func TestView(t *testing.T) {
	m := newMaster(t, nil)
	n, _ := start(t, m, nil)
	c := dial(t, n)

	if got := call[*proto.AnswerPrimary](t, c, &proto.AskPrimary{}).ID; got != proto.Master.ID(1) {
		t.Errorf("primary master %v", got)
	}
	var names []string
	for _, node := range call[*proto.AnswerNodeList](t, c, &proto.AskNodeList{}).Nodes {
		names = append(names, node.ID.String())
	}
	if diff := cmp.Diff([]string{"A1", "M1", "S1", "S2"}, names); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if nodes := call[*proto.AnswerNodeList](t, c, &proto.AskNodeList{Type: proto.Some(proto.Client)}).Nodes; len(nodes) != 0 {
		t.Errorf("clients: %v", nodes)
	}

	m.send(&proto.NotifyPartitionChanges{PTID: 8, Replicas: 1, Cells: []proto.CellChange{{Partition: 1, ID: 2, State: proto.UpToDate}}})
	until(t, "the change of the partition table", func() bool {
		p := call[*proto.AnswerPartitionList](t, c, &proto.AskPartitionList{Min: 1, Max: 2})
		return p.PTID == proto.Some(uint64(8)) && len(p.Rows) == 1 && p.Rows[0][1].State == proto.UpToDate
	})
	if rows := call[*proto.AnswerPartitionList](t, c, &proto.AskPartitionList{Min: 1}).Rows; len(rows) != 2 {
		t.Errorf("%d rows from 1 on, want 2", len(rows))
	}
	for _, bad := range []proto.AskPartitionList{{Min: 4}, {Min: 2, Max: 1}, {Max: 4}} {
		var e *proto.Error
		if _, err := c.Call(t.Context(), &bad); !errors.As(err, &e) || e.ErrCode != proto.ProtocolError {
			t.Errorf("rows [%d, %d): %v", bad.Min, bad.Max, err)
		}
	}

	// A change that does not follow makes the admin get a whole table.
	m.send(&proto.NotifyPartitionChanges{PTID: 3, Replicas: 1})
	until(t, "a new link to the master", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.conns) == 2
	})

	var b bytes.Buffer
	n.Dump(&b)
	if !strings.Contains(b.String(), `cluster "main"`) {
		t.Errorf("dump: %s", b.String())
	}
}

// Orders are passed on, and so is what the master says.
func TestRelay(t *testing.T) {
	m := newMaster(t, func(p proto.Packet) proto.Packet {
		switch p := p.(type) {
		case *proto.SetNumReplicas:
			return proto.Errorf(proto.Ack, "now %d", p.Replicas)
		case *proto.SetNodeState:
			return proto.Errorf(proto.Denied, "unknown node")
		case *proto.AskLastTransaction:
			return &proto.AnswerLastTransaction{TID: 5}
		case *proto.Truncate:
			return proto.Errorf(proto.ProtocolError, "no")
		}
		return nil
	})
	flushed := make(chan bool, 1)
	n, _ := start(t, m, func(c *Config) {
		c.FlushLog = func() { flushed <- true }
	})
	c := dial(t, n)
	if ack := call[*proto.Error](t, c, &proto.SetNumReplicas{Replicas: 3}); ack.Message != "now 3" {
		t.Errorf("ack %q", ack.Message)
	}
	if last := call[*proto.AnswerLastTransaction](t, c, &proto.AskLastTransaction{}); last.TID != 5 {
		t.Errorf("last transaction %v", last.TID)
	}
	var e *proto.Error
	if _, err := c.Call(t.Context(), &proto.SetNodeState{ID: 9}); !errors.As(err, &e) || e.ErrCode != proto.Denied || e.Message != "unknown node" {
		t.Errorf("denied: %v", err)
	}
	c.Send(&proto.FlushLog{})
	<-flushed
	until(t, "FlushLog at the master", func() bool { return m.received((&proto.FlushLog{}).Code()) })

	// A protocol error ends the link of who caused it, only.
	other := dialOnly(t, n)
	if _, err := other.Call(t.Context(), &proto.Truncate{}); !errors.As(err, &e) || e.ErrCode != proto.ProtocolError {
		t.Errorf("protocol error: %v", err)
	}
	<-other.Done()
	// So does what is not for an admin.
	stranger := dialOnly(t, n)
	if _, err := stranger.Call(t.Context(), &proto.AskNewOIDs{Count: 1}); !errors.As(err, &e) || e.ErrCode != proto.ProtocolError {
		t.Errorf("not for an admin: %v", err)
	}
	<-stranger.Done()

	// The loss of the master answers what is under way.
	unanswered := make(chan error, 1)
	go func() {
		_, err := c.Call(t.Context(), &proto.AskRecovery{})
		unanswered <- err
	}()
	until(t, "the request at the master", func() bool { return m.received((&proto.AskRecovery{}).Code()) })
	m.hangUp()
	if err := <-unanswered; !errors.As(err, &e) || e.ErrCode != proto.ProtocolError {
		t.Errorf("after the loss of the master: %v", err)
	}
}

// Without master everything is refused, with the text that is known.
func TestNoMaster(t *testing.T) {
	m := newMaster(t, nil)
	addr := m.listener.Addr()
	if err := m.listener.Close(); err != nil {
		t.Fatal(err)
	}
	m2 := &fakeMaster{listener: m.listener}
	n, _ := start(t, m2, func(c *Config) { c.Masters = bootstrap.NewMasters(addr) })
	c := dialOnly(t, n)
	for _, req := range []proto.Request{&proto.AskClusterState{}, &proto.AskNodeList{}, &proto.AskMonitorInformation{}, &proto.Truncate{TID: 1}} {
		var e *proto.Error
		if _, err := c.Call(t.Context(), req); !errors.As(err, &e) || e.ErrCode != proto.NotReady || e.Message != "Not connected to a primary master." {
			t.Errorf("%T: %v", req, err)
		}
	}
	var err error
	if m.listener, err = link.Listen(t.Context(), proto.Address{Host: "127.0.0.1"}, link.Config{}, func(*link.Conn) {}); err != nil {
		t.Fatal(err) // for the cleanup
	}
}

// levels takes the levels of the lines of a log that have a text.
type levels struct {
	slog.Handler
	text string
	got  chan slog.Level
}

func (l *levels) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == l.text {
		l.got <- r.Level
	}
	return l.Handler.Handle(ctx, r)
}

// A primary master that is lost is worth a warning; one that becomes secondary before it has said
// anything, as when masters are started together, is not.
func TestLostMaster(t *testing.T) {
	m := newMaster(t, nil)
	m.mute = true
	l := &levels{slog.NewTextHandler(t.Output(), nil), "connection to the primary master lost", make(chan slog.Level, 10)}
	n, _ := start(t, m, func(c *Config) { c.Log = slog.New(l) })
	until(t, "a question", func() bool { return m.received((&proto.AskClusterState{}).Code()) })
	m.mu.Lock()
	m.mute = false
	m.mu.Unlock()
	m.hangUp()
	if got := <-l.got; got != slog.LevelInfo {
		t.Errorf("lost before it has told its state: %v", got)
	}
	dial(t, n)
	m.hangUp()
	if got := <-l.got; got != slog.LevelWarn {
		t.Errorf("lost in service: %v", got)
	}
}

// An admin ends with its cluster, and when the master tells it to.
func TestEnd(t *testing.T) {
	for name, stop := range map[string]func(*fakeMaster){
		"cluster stops": func(m *fakeMaster) {
			m.send(&proto.NotifyClusterInformation{State: proto.Stopping})
			m.send(&proto.Ping{}) // answered after the state was taken in
			until(t, "the answer", func() bool { return m.received((&proto.AskClusterState{}).Code()) })
			time.Sleep(50 * time.Millisecond)
			m.hangUp()
		},
		"told to": func(m *fakeMaster) {
			m.send(&proto.NotifyNodeInformation{Nodes: []proto.Node{{Type: proto.Admin, ID: adminID, State: proto.NodeDown}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMaster(t, nil)
			n, done := start(t, m, nil)
			dial(t, n)
			stop(m)
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(2 * time.Minute):
				t.Fatal("still running")
			}
		})
	}
}

// The admin of a backup cluster reports to the one of the upstream cluster, which
// asks it for its last transaction.
func TestBackupReports(t *testing.T) {
	const last = tid.TID(0x040d265c07e3a790)
	answer := func(p proto.Packet) proto.Packet {
		switch p.(type) {
		case *proto.AskLastTransaction:
			return &proto.AnswerLastTransaction{TID: last}
		case *proto.AskRecovery:
			return &proto.AnswerRecovery{PTID: proto.Some(uint64(1)), BackupTID: proto.Some(last - 1)}
		}
		return nil
	}
	mails := make(chan string, 1000)
	main, backup := newMaster(t, answer), newMaster(t, answer)
	a, _ := start(t, main, func(c *Config) {
		c.Backups, c.MaxLag = []string{"bk"}, time.Second
		c.Mail = func(_ context.Context, subject, _ string) error { mails <- subject; return nil }
		c.MailInterval = time.Nanosecond
	})
	b, _ := start(t, backup, func(c *Config) { c.Cluster = "bk" })
	c := dial(t, a)
	dial(t, b)
	summary := func() *proto.AnswerMonitorInformation {
		return call[*proto.AnswerMonitorInformation](t, c, &proto.AskMonitorInformation{})
	}
	own := "RUNNING; OUT_OF_DATE=1, UP_TO_DATE=4; ltid=040d265c07e3a790 (2026-11-20 20:12:01.849048)"
	if got := summary(); got.Summary != own+"\n\nbk\n    None" || len(got.Problem) != 1 || len(got.Warning) != 1 {
		t.Errorf("before the backup reports: %+v", got)
	}

	backup.send(&proto.NotifyClusterInformation{State: proto.BackingUp})
	backup.send(&proto.NotifyUpstreamAdmin{Addr: a.Addr()})
	until(t, "the report of the backup", func() bool { return strings.Contains(summary().Summary, "lag=") })
	want := own + "\n\nbk\n    BACKINGUP; OUT_OF_DATE=1, UP_TO_DATE=4; ltid=040d265c07e3a78f; lag=ε"
	if got := summary(); got.Summary != want || got.Problem != nil || len(got.Warning) != 2 {
		t.Errorf("got %+v\nwant %s", got, want)
	}

	// Changes follow.
	backup.send(&proto.NotifyNodeInformation{Nodes: []proto.Node{{Type: proto.Storage, ID: 2, State: proto.NodeDown}}})
	until(t, "the loss of a node of the backup", func() bool { return strings.Contains(summary().Summary, "DOWN=1; ltid=") })

	// Nobody else may report under this name.
	for _, id := range []*proto.RequestIdentification{
		{Type: proto.Admin, Cluster: "bk"}, {Type: proto.Admin, Cluster: "unknown"}, {Type: proto.Storage, Cluster: "bk"},
	} {
		var e *proto.Error
		if _, err := dialOnly(t, a).Call(t.Context(), id); !errors.As(err, &e) || e.ErrCode != proto.ProtocolError {
			t.Errorf("%+v: %v", id, err)
		}
	}

	// A backup that goes away is unknown again, and comes back.
	backup.send(&proto.NotifyUpstreamAdmin{Addr: proto.Address{Host: "127.0.0.1", Port: 1}}) // where nobody is
	until(t, "the end of the reports", func() bool { return strings.HasSuffix(summary().Summary, "\n    None") })
	backup.send(&proto.NotifyUpstreamAdmin{Addr: a.Addr()})
	until(t, "new reports", func() bool { return strings.Contains(summary().Summary, "lag=") })

	var subjects []string
	for len(mails) > 0 {
		subjects = append(subjects, <-mails)
	}
	if len(subjects) == 0 || !slices.ContainsFunc(subjects, func(s string) bool { return strings.Contains(s, "PROBLEM (bk") }) {
		t.Errorf("mails %q", subjects)
	}
}

// A mail that cannot be sent is a problem of its own, shown to operators.
func TestMailFailure(t *testing.T) {
	m := newMaster(t, func(p proto.Packet) proto.Packet { return &proto.AnswerLastTransaction{TID: 1} })
	n, _ := start(t, m, func(c *Config) {
		c.Mail = func(context.Context, string, string) error { return errors.New("mail server is away") }
	})
	c := dial(t, n)
	until(t, "the failure in the summary", func() bool {
		p := call[*proto.AnswerMonitorInformation](t, c, &proto.AskMonitorInformation{})
		return strings.HasSuffix(p.Summary, "\n\nmail server is away") && slices.Contains(p.Problem, proto.Opt[string]{})
	})
}
