package link

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/proto"
)

// patient returns two connected Conns that watch each other, configured further by
// change, which is told whose configuration it is.
func patient(t *testing.T, n *memnet.Network, change func(name string, cfg *Config)) (a, b *Conn, ain, bin inbox) {
	t.Helper()
	ain, bin = make(inbox, 1000), make(inbox, 1000)
	config := func(name string, in inbox) Config {
		cfg := Config{Deliver: func(ev Event) { in <- ev }, Network: n.Host(name), PeerTimeout: DefaultPeerTimeout}
		if change != nil {
			change(name, &cfg)
		}
		return cfg
	}
	accepted := make(chan *Conn, 1)
	l, err := Listen(t.Context(), proto.Address{Host: "b"}, config("b", bin), func(c *Conn) { accepted <- c })
	if err != nil {
		t.Fatal(err)
	}
	if a, err = Dial(t.Context(), l.Addr(), config("a", ain)); err != nil {
		t.Fatal(err)
	}
	b = <-accepted
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() {
		for _, c := range []*Conn{a, b} {
			c.Close()
			<-c.Done()
		}
	})
	// One packet each, as for an identification.
	a.Send(&proto.NotifyReady{})
	packet[*proto.NotifyReady](t, bin)
	b.Send(&proto.NotifyReady{})
	packet[*proto.NotifyReady](t, ain)
	return a, b, ain, bin
}

func wantOpen(t *testing.T, when string, conns ...*Conn) {
	t.Helper()
	for _, c := range conns {
		if c.Closed() {
			t.Errorf("%s: the connection with %v has ended", when, c)
		}
	}
}

// wantGivenUp waits for the end of a connection and returns when it came.
func wantGivenUp(t *testing.T, in inbox) time.Duration {
	t.Helper()
	start := time.Now()
	if err := in.end(t); !strings.Contains(err.Error(), "no sign of life") {
		t.Errorf("ended with %v", err)
	}
	return time.Since(start)
}

// A peer that is cut off is given up on both sides, in time; one that is idle is not.
func TestSilentPeer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := memnet.New(1)
		a, b, ain, bin := patient(t, n, nil)
		time.Sleep(time.Hour)
		wantOpen(t, "idle", a, b)
		n.Hold("a", "b")
		if d := wantGivenUp(t, ain); d < DefaultPeerTimeout-2*beatInterval || d > DefaultPeerTimeout+2*beatInterval {
			t.Errorf("given up after %v", d)
		}
		wantGivenUp(t, bin)
		n.Release("a", "b")
	})
}

// A node whose owner does not take packets for a long time, because it writes to its
// disk or reads a big answer, is not given up; nor does it give up its peer.
func TestBusyPeer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var busy, free = make(chan struct{}), make(chan struct{})
		a, b, _, bin := patient(t, memnet.New(1), func(name string, cfg *Config) {
			if deliver := cfg.Deliver; name == "b" {
				cfg.Deliver = func(ev Event) {
					if _, ok := ev.Packet.(*proto.AskNewOIDs); ok {
						close(busy)
						<-free
					}
					deliver(ev)
				}
			}
		})
		a.Ask(&proto.AskNewOIDs{Count: 1}, nil)
		<-busy
		// Also while more is under way to it than the network takes.
		for range 20 {
			a.Send(&proto.AddObject{ObjectData: proto.ObjectData{Data: make([]byte, 100<<10)}})
		}
		time.Sleep(10 * time.Minute)
		wantOpen(t, "busy", a, b)
		if a.Buffered() == 0 {
			t.Error("the network took everything: the test tests little")
		}
		close(free)
		packet[*proto.AskNewOIDs](t, bin)
		for range 20 {
			packet[*proto.AddObject](t, bin)
		}
		time.Sleep(time.Minute)
		wantOpen(t, "free again", a, b)
	})
}

// An owner may keep a connection with a silent peer, and is asked again.
func TestSilentIsAsked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var asked atomic.Int32
		var last atomic.Int64
		n := memnet.New(1)
		a, _, ain, _ := patient(t, n, func(name string, cfg *Config) {
			if name == "a" {
				cfg.Silent = func(c *Conn, d time.Duration) {
					last.Store(int64(d))
					if asked.Add(1) == 30 {
						c.GiveUp(d)
					}
				}
			} else {
				cfg.PeerTimeout = -1 // it never gives up, but lives
			}
		})
		time.Sleep(time.Hour)
		if asked.Load() > 0 {
			t.Error("asked although the peer lives")
		}
		n.Hold("a", "b")
		time.Sleep(20 * time.Second)
		wantOpen(t, "kept", a)
		n.Release("a", "b")
		time.Sleep(time.Minute)
		if got := asked.Load(); got < 10 || got > 14 {
			t.Errorf("asked %d times in 20 s", got)
		}
		n.Hold("a", "b")
		wantGivenUp(t, ain)
		if d := time.Duration(last.Load()); d < 20*time.Second {
			t.Errorf("given up after %v", d)
		}
		n.Release("a", "b")
	})
}

// raw is a peer in bytes: packets that it got, without what it is.
type raw struct {
	t    *testing.T
	conn interface {
		Write([]byte) (int, error)
	}
	in *proto.Reader
}

// python returns a Conn whose peer is one in bytes.
func python(t *testing.T, greeted bool) (*Conn, inbox, *raw) {
	t.Helper()
	n := memnet.New(1)
	l, err := n.Host("b").Listen(t.Context(), "b:1")
	if err != nil {
		t.Fatal(err)
	}
	in := make(inbox, 1000)
	a, err := Dial(t.Context(), proto.Address{Host: "b", Port: 1}, Config{
		Deliver: func(ev Event) { in <- ev }, Network: n.Host("a"), PeerTimeout: DefaultPeerTimeout, Greeted: greeted})
	if err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); <-a.Done(); nc.Close(); l.Close() })
	return a, in, &raw{t, nc, proto.NewReader(nc)}
}

func (r *raw) send(id uint32, p proto.Packet) {
	r.t.Helper()
	if _, err := r.conn.Write(proto.Append(nil, id, p)); err != nil {
		r.t.Error(err)
	}
}

// live answers as a Python node does, until the connection ends.
func (r *raw) live(busy *atomic.Bool) {
	if err := r.in.Handshake(); err != nil {
		r.t.Error(err)
		return
	}
	for {
		id, p, err := r.in.Next()
		if err != nil {
			return
		}
		for busy.Load() {
			time.Sleep(time.Second)
		}
		if _, ok := p.(*proto.Ping); ok {
			if id != beatID {
				r.t.Errorf("Ping under id %d", id)
			}
			_, _ = r.conn.Write(proto.Append(nil, id, &proto.Pong{})) // it may have been given up
		}
	}
}

// A peer that gives no sign of life by itself is asked for it, and may be in its
// database for a while; its owner hears nothing of this.
func TestPythonPeer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, in, r := python(t, false)
		if _, err := r.conn.Write(proto.Handshake[:]); err != nil {
			t.Fatal(err)
		}
		r.send(0, &proto.NotifyReady{})
		packet[*proto.NotifyReady](t, in)
		var busy atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() { r.live(&busy) })
		time.Sleep(time.Hour)
		wantOpen(t, "idle", a)
		busy.Store(true)
		time.Sleep(80 * time.Second)
		wantOpen(t, "80 s in its database", a)
		busy.Store(false)
		time.Sleep(time.Minute)
		wantOpen(t, "idle again", a)
		if n := a.PendingCount(); n != 0 || len(in) > 0 {
			t.Errorf("%d pending, %d events", n, len(in))
		}
		busy.Store(true)
		wantGivenUp(t, in)
		busy.Store(false)
		wg.Wait()
	})
}

// A process that was stopped lets the system accept connections for it.
func TestPeerWithoutHandshake(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, in, _ := python(t, true)
		if d := wantGivenUp(t, in); d > DefaultPeerTimeout+2*beatInterval {
			t.Errorf("given up after %v", d)
		}
		_, in, _ = python(t, false)
		if d := wantGivenUp(t, in); d < 10*DefaultPeerTimeout {
			t.Errorf("a peer that may be in its database is given up after %v", d)
		}
	})
}

// A Ping is a barrier for the owner to answer, unless it is a sign of life; which a
// peer does not give whose counter of messages has come as far.
func TestBarriersAreDelivered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, in, r := python(t, false)
		if _, err := r.conn.Write(proto.Handshake[:]); err != nil {
			t.Fatal(err)
		}
		r.send(beatID, &proto.Ping{})
		r.send(7, &proto.Ping{})
		if ev, _ := packet[*proto.Ping](t, in); ev.ID != 7 {
			t.Errorf("Ping %d delivered", ev.ID)
		}
		r.send(beatID-1, &proto.NotifyReady{})
		packet[*proto.NotifyReady](t, in)
		r.send(beatID, &proto.Ping{})
		if ev, _ := packet[*proto.Ping](t, in); ev.ID != beatID {
			t.Errorf("Ping %d delivered", ev.ID)
		}
		// Nor do we use the id for anything else.
		a.mu.Lock()
		a.nextID = beatID
		id := a.idLocked()
		a.mu.Unlock()
		if id != 0 {
			t.Errorf("id %d", id)
		}
	})
}

func TestProbe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := memnet.New(1)
		a, b, _, _ := patient(t, n, nil)
		probe := func() (alive bool) {
			done := make(chan bool)
			a.Probe(4*time.Second, func(alive bool) { done <- alive })
			return <-done
		}
		start := time.Now()
		if !probe() || time.Since(start) > time.Second {
			t.Errorf("not seen to live, after %v", time.Since(start))
		}
		n.Hold("a", "b")
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		if start = time.Now(); probe() || time.Since(start) != 4*time.Second {
			t.Errorf("seen to live, after %v", time.Since(start))
		}
		n.Release("a", "b")
		b.Close()
		if probe() {
			t.Error("seen to live after its end")
		}
	})
}
