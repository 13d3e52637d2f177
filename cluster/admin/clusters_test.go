package admin_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
)

// stalled is a network on which what an address sends can be kept back.
type stalled struct {
	mu   sync.Mutex
	addr string        // whose packets
	open chan struct{} // closed: they come
}

func (n *stalled) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	return &stalledConn{c, n, addr}, err
}

func (n *stalled) Listen(ctx context.Context, addr string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", addr)
}

func (n *stalled) stall(addr string) (resume func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	open := make(chan struct{})
	n.addr, n.open = addr, open
	return sync.OnceFunc(func() { close(open) })
}

type stalledConn struct {
	net.Conn
	n    *stalled
	addr string
}

func (c *stalledConn) Read(b []byte) (int, error) {
	k, err := c.Conn.Read(b)
	c.n.mu.Lock()
	open := c.n.open
	if c.addr != c.n.addr {
		open = nil
	}
	c.n.mu.Unlock()
	if open != nil {
		<-open
	}
	return k, err
}

// lastingAddress returns one that no outgoing connection gets while nothing listens there.
func lastingAddress(t *testing.T) proto.Address {
	t.Helper()
	for range 100 {
		a := proto.Address{Host: "127.0.0.1", Port: 10000 + rand.N[uint16](5000)}
		if l, err := net.Listen("tcp", a.String()); err == nil {
			l.Close()
			return a
		}
	}
	t.Fatal("no free port")
	panic("not reached")
}

// runSimple runs a cluster until it is stopped.
func runSimple(t *testing.T, cfg simple.Config) (c *simple.Cluster, stop func()) {
	t.Helper()
	c, err := simple.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return c, stop
}

// letters are the mails of an admin.
type letters struct {
	mu   sync.Mutex
	list []string // subject, and text
}

func (l *letters) send(_ context.Context, subject, body string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, subject+"\n"+body)
	return nil
}

// runAdmin runs one more admin of a cluster, and connects an operator.
func runAdmin(t *testing.T, of *simple.Cluster, change func(*admin.Config)) (*admin.Node, *ctl.Client) {
	t.Helper()
	cfg := admin.Config{Cluster: of.Name(), Bind: proto.Address{Host: "127.0.0.1"}, Masters: bootstrap.NewMasters(of.Master()), MailInterval: time.Nanosecond}
	change(&cfg)
	n, err := admin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	op, err := ctl.Dial(t.Context(), n.Addr(), link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(op.Close)
	return n, op
}

// shown returns the summary and who is in warning and in problem.
func shown(t *testing.T, op *ctl.Client) string {
	s, err := op.Summary(t.Context())
	if err != nil {
		return err.Error()
	}
	names := func(list []proto.Opt[string]) string {
		var words []string
		for _, name := range list {
			if name.OK {
				words = append(words, name.V)
			} else {
				words = append(words, "own")
			}
		}
		return strings.Join(words, ",")
	}
	return fmt.Sprintf("warning: %s problem: %s\n%s", names(s.Warning), names(s.Problem), withoutDue(s.Summary))
}

// withoutDue drops what a backup reports itself, which comes when it comes.
func withoutDue(text string) string {
	var kept []string
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(strings.TrimSpace(line), following.SummaryPrefix) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}

// due is how late a backup is, in the summary.
var due = regexp.MustCompile(`(?m)^    ` + following.SummaryPrefix + `due ([^,\n]+)$`)

// awaitDue waits until the summary says how late the backup is.
func awaitDue(t *testing.T, op *ctl.Client, what string, ok func(due string) bool) {
	t.Helper()
	var got string
	for range 2400 {
		s, err := op.Summary(t.Context())
		if err == nil {
			got = s.Summary
			if m := due.FindStringSubmatch(got); m != nil && ok(m[1]) {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s: %s", what, got)
}

// awaitShown waits until a summary is as it must be.
func awaitShown(t *testing.T, what string, op *ctl.Client, want string) {
	t.Helper()
	got := ""
	for range 2400 {
		if got = shown(t, op); got == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s:\n got %s\nwant %s", what, got, want)
}

// awaitMail waits for a mail with this text. Its subject, or that of one before it which
// came with the same change, has the names.
func awaitMail(t *testing.T, what string, l *letters, level, names, text string) {
	t.Helper()
	named := func(list []string) bool {
		return slices.ContainsFunc(list, func(m string) bool { return strings.HasPrefix(m, "NEO monitoring: "+level+names+"\n") })
	}
	for range 2400 {
		l.mu.Lock()
		list := slices.Clone(l.list)
		l.mu.Unlock()
		if n := len(list); n > 0 && strings.HasPrefix(list[n-1], "NEO monitoring: "+level) && strings.HasSuffix(withoutDue(list[n-1]), "\n"+text+"\n") && named(list) {
			l.mu.Lock()
			l.list = l.list[n:]
			l.mu.Unlock()
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Fatalf("%s:\n got %q\nwant %s%s: %q", what, l.list, level, names, text)
}

// awaitBackupStats waits until the stats of a backup are as they must be.
func awaitBackupStats(t *testing.T, n *admin.Node, what string, ok func(admin.BackupStats) bool) {
	t.Helper()
	var s admin.Stats
	for range 2400 {
		var err error
		if s, err = n.Stats(t.Context()); err != nil {
			t.Fatal(err)
		}
		if ok(s.Backups[0]) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s: %+v", what, s.Backups[0])
}

func storeOne(t *testing.T, cl *client.Client, oid tid.OID) tid.TID {
	t.Helper()
	x, err := cl.Begin(t.Context(), client.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Store(t.Context(), oid, 0, []byte("x")); err != nil {
		t.Fatal(err)
	}
	at, err := x.Finish(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func pythonTime(t tid.TID) string {
	at := t.Time()
	if at.Nanosecond() == 0 {
		return at.Format("2006-01-02 15:04:05")
	}
	return at.Format("2006-01-02 15:04:05.000000")
}

// The admin of the upstream cluster shows its backup, and sends mails about it: when it
// follows, is late, is lost, and is back; and both sides tell that the upstream cluster is lost.
func TestTwoClusters(t *testing.T) {
	const partitions = 1
	upDir, downDir := t.TempDir(), t.TempDir()
	up, stopUp := runSimple(t, simple.Config{Dir: upDir, Name: "up", Partitions: partitions, Master: lastingAddress(t)})
	if err := up.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	address := up.Master()
	var mails letters
	watch := func(c *admin.Config) { c.Backups, c.Mail, c.MaxLag = []string{"down"}, mails.send, time.Second }
	node, op := runAdmin(t, up, watch)
	own := func(last tid.TID) string {
		return fmt.Sprintf("RUNNING; UP_TO_DATE=%d; ltid=%v (%s)", partitions, last, pythonTime(last))
	}
	backup := func(at tid.TID, lag string) string {
		return fmt.Sprintf("\n\ndown\n    BACKINGUP; UP_TO_DATE=%d; ltid=%v; lag=%s", partitions, at, lag)
	}

	awaitMail(t, "before there is a transaction", &mails, "PROBLEM", "", own(tid.Zero)+"\n\ndown\n    None")
	cl, err := client.Open(t.Context(), client.Config{Cluster: "up", Masters: []proto.Address{address}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	t1 := storeOne(t, cl, 1)
	awaitShown(t, "before there is a backup", op, "warning:  problem: down\n"+own(t1)+"\n\ndown\n    None")

	network := &stalled{}
	start := func() (stop func()) {
		_, stop = runSimple(t, simple.Config{Dir: downDir, Name: "down", Partitions: partitions, Network: network,
			Upstream: master.Upstream{Cluster: "up", Masters: []proto.Address{address}, Backup: true}})
		return stop
	}
	stopDown := start()
	awaitShown(t, "a backup follows", op, "warning:  problem: \n"+own(t1)+backup(t1, "0.0"))
	awaitMail(t, "a backup follows", &mails, "OK", "", own(t1)+backup(t1, "0.0"))
	awaitDue(t, op, "a backup follows", func(due string) bool { return due == "0 s" })
	awaitBackupStats(t, node, "a backup follows", func(b admin.BackupStats) bool {
		return b.Connected && b.State == proto.Some(proto.BackingUp) && b.Lag == proto.Some(time.Duration(0))
	})

	// It is late: the upstream storage is not heard of. What it lacks begins at t2.
	nodes, err := op.Nodes(t.Context(), proto.Some(proto.Storage))
	if err != nil || len(nodes) != 1 {
		t.Fatal(nodes, err)
	}
	resume := network.stall(nodes[0].Addr.String())
	defer resume()
	t2 := storeOne(t, cl, 2)
	awaitShown(t, "one transaction late, no more than allowed", op, "warning:  problem: \n"+own(t2)+backup(t2-1, "ε"))
	time.Sleep(1100 * time.Millisecond)
	t3 := storeOne(t, cl, 3)
	lag := strconv.FormatFloat(t3.Time().Sub((t2 - 1).Time()).Seconds(), 'f', -1, 64)
	awaitShown(t, "late", op, "warning: down problem: \n"+own(t3)+backup(t2-1, lag))
	awaitDue(t, op, "it grows", func(due string) bool { return !slices.Contains([]string{"0 s", "ε", "1 s"}, due) })
	awaitBackupStats(t, node, "late", func(b admin.BackupStats) bool { return b.Lag.V >= time.Second })
	resume()
	awaitShown(t, "not late any more", op, "warning:  problem: \n"+own(t3)+backup(t3, "0.0"))

	// It is lost, and comes back.
	stopDown()
	awaitBackupStats(t, node, "a lost backup", func(b admin.BackupStats) bool { return !b.Connected && !b.State.OK && !b.Lag.OK })
	awaitShown(t, "a lost backup", op, "warning:  problem: down\n"+own(t3)+"\n\ndown\n    None")
	awaitMail(t, "a lost backup", &mails, "PROBLEM", " (down)", own(t3)+"\n\ndown\n    None")
	start()
	awaitShown(t, "a backup that is back", op, "warning:  problem: \n"+own(t3)+backup(t3, "0.0"))
	awaitMail(t, "a backup that is back", &mails, "OK", "", own(t3)+backup(t3, "0.0"))

	// The upstream cluster is lost, and comes back at the same address.
	stopUp()
	awaitShown(t, "no master", op, "NOT_READY: Not connected to a primary master.")
	if s, err := node.Stats(t.Context()); err != nil || s.Connected || s.Ready() == nil || s.State.OK || len(s.Nodes) != 0 {
		t.Errorf("without a master: %+v, %v", s, err)
	}
	awaitMail(t, "no master", &mails, "PROBLEM", " (up)", "Not connected to a primary master.")
	up, _ = runSimple(t, simple.Config{Dir: upDir, Name: "up", Master: address})
	if err := up.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitShown(t, "all are back", op, "warning:  problem: \n"+own(t3)+backup(t3, "0.0"))
}
