package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

var m1, m2, m3 = addr("m1"), addr("m2"), addr("m3")

func addr(host string) proto.Address { return proto.Address{Host: host, Port: 10000} }

// world is a network with masters, and the order in which they are asked.
type world struct {
	t     *testing.T
	net   *memnet.Network
	start time.Time

	mu    sync.Mutex
	asked []string // "m1 0s"
}

func newWorld(t *testing.T) *world {
	return &world{t: t, net: memnet.New(1), start: time.Now()}
}

// master starts a master that answers each identification with answer.
func (w *world) master(a proto.Address, answer func(c *link.Conn, id uint32, q *proto.RequestIdentification)) {
	w.t.Helper()
	deliver := func(ev link.Event) {
		if q, ok := ev.Packet.(*proto.RequestIdentification); ok {
			w.mu.Lock()
			w.asked = append(w.asked, fmt.Sprint(a.Host, " ", time.Since(w.start)))
			w.mu.Unlock()
			answer(ev.Conn, ev.ID, q)
		}
	}
	var conns []*link.Conn
	l, err := link.Listen(w.t.Context(), a, link.Config{Network: w.net.Host(a.Host), Deliver: deliver},
		func(c *link.Conn) { conns = append(conns, c) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		l.Close()
		for _, c := range conns {
			c.Close()
			<-c.Done()
		}
	})
}

func (w *world) config(masters ...proto.Address) Config {
	return Config{
		Masters:  NewMasters(masters...),
		Identify: proto.RequestIdentification{Type: proto.Client, Cluster: "test"},
		Link:     link.Config{Network: w.net.Host("client")},
		Dialer:   &link.Dialer{},
	}
}

func (w *world) checkAsked(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.asked, want) {
		w.t.Errorf("asked %q, want %q", w.asked, want)
	}
}

func accept(c *link.Conn, id uint32, _ *proto.RequestIdentification) {
	c.Answer(id, &proto.AcceptIdentification{Type: proto.Master, ID: proto.Master.ID(1), YourID: proto.Client.ID(7)})
}

func refer(primary proto.Opt[int], masters ...proto.Address) func(*link.Conn, uint32, *proto.RequestIdentification) {
	return func(c *link.Conn, _ uint32, _ *proto.RequestIdentification) {
		c.Send(&proto.NotPrimaryMaster{Primary: primary, Masters: masters})
		c.Abort()
	}
}

func refuse(code proto.ErrorCode) func(*link.Conn, uint32, *proto.RequestIdentification) {
	return func(c *link.Conn, id uint32, _ *proto.RequestIdentification) {
		c.AbortError(id, code, "no")
	}
}

func find(t *testing.T, cfg Config) *Result {
	t.Helper()
	res, err := Find(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if res.MasterID != proto.Master.ID(1) || res.ID != proto.Client.ID(7) {
		t.Errorf("accepted by %v as %v", res.MasterID, res.ID)
	}
	res.Conn.Close()
	<-res.Conn.Done()
	return res
}

func TestFindFollowsTheSecondary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.master(m3, accept)
		w.master(m2, refer(proto.Some(1), m1, m3))
		cfg := w.config(m1, m2)
		res := find(t, cfg)
		if res.Conn.RemoteAddr() != m3 {
			t.Errorf("found %v", res.Conn.RemoteAddr())
		}
		w.checkAsked("m2 0s", "m3 0s")
		if got, want := cfg.Masters.List(), []proto.Address{m1, m2, m3}; !slices.Equal(got, want) {
			t.Errorf("masters %v, want %v", got, want)
		}
	})
}

func TestFindGoesRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := 0
		w.master(m1, func(c *link.Conn, id uint32, q *proto.RequestIdentification) {
			if n++; n < 3 {
				refuse(proto.NotReady)(c, id, q)
				return
			}
			accept(c, id, q)
		})
		w.master(m2, refer(proto.Opt[int]{}, m1, m2))
		find(t, w.config(m1, m2)) // m2 first
		w.checkAsked("m2 0s", "m1 0s", "m2 50ms", "m1 50ms", "m2 150ms", "m1 150ms")
	})
}

// Two masters that each take the other for the primary are not asked in a frenzy.
func TestFindKeepsItsPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.master(m1, refer(proto.Some(1), m1, m2))
		w.master(m2, refer(proto.Some(0), m1, m2))
		ctx, cancel := context.WithTimeout(t.Context(), 9500*time.Millisecond)
		defer cancel()
		_, err := Find(ctx, w.config(m1, m2))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Find = %v", err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if n := len(w.asked); n < 15 || n > 26 {
			t.Errorf("%d questions in 9.5 s to 2 masters", n)
		}
	})
}

func TestFindReturnsFatalAnswers(t *testing.T) {
	for _, code := range []proto.ErrorCode{proto.ProtocolError, proto.ReadOnlyAccess} {
		t.Run(code.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.master(m1, func(c *link.Conn, id uint32, _ *proto.RequestIdentification) { c.AnswerError(id, code, "no") })
				_, err := Find(t.Context(), w.config(m1))
				if e, ok := errors.AsType[*proto.Error](err); !ok || e.ErrCode != code {
					t.Errorf("Find = %v, want %v", err, code)
				}
			})
		})
	}
}

func TestFindWaitsForAMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		go func() {
			time.Sleep(89500 * time.Millisecond)
			w.master(m1, accept)
		}()
		find(t, w.config(m1))
		w.checkAsked("m1 1m29.55s")
	})
}

func TestFindGivesUpOnAStoppedMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.master(m2, func(*link.Conn, uint32, *proto.RequestIdentification) {})
		w.master(m1, accept)
		find(t, w.config(m1, m2))
		w.checkAsked("m2 0s", "m1 1m0s")
	})
}

func TestFindLooksUpMasters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.master(m3, accept)
		cfg := w.config()
		calls := 0
		cfg.Lookup = func(context.Context) ([]proto.Address, error) {
			if calls++; calls < 3 {
				return nil, errors.New("name service is away")
			}
			return []proto.Address{m3}, nil
		}
		find(t, cfg)
		w.checkAsked("m3 2s")
		if _, err := Find(t.Context(), w.config()); err == nil {
			t.Error("Find without a master succeeded")
		}
	})
}

func TestStrangeAnswers(t *testing.T) {
	for name, answer := range map[string]proto.Packet{
		"a storage accepts": &proto.AcceptIdentification{Type: proto.Storage, ID: 1, YourID: 2},
		"no id":             &proto.AcceptIdentification{Type: proto.Master, ID: proto.Master.ID(1)},
		"too early":         &proto.StartOperation{},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.master(m1, func(c *link.Conn, id uint32, _ *proto.RequestIdentification) { c.Answer(id, answer) })
				if res, err := Identify(t.Context(), m1, w.config(m1)); err == nil {
					t.Errorf("identified: %+v", res)
				}
			})
		})
	}
}

// The owner gets what follows acceptance, in order, up to the end, and nothing
// of the attempts before.
func TestEventsAfterAcceptance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.master(m2, refuse(proto.NotReady))
		w.master(m1, func(c *link.Conn, id uint32, q *proto.RequestIdentification) {
			accept(c, id, q)
			for i := range 100 {
				c.Send(&proto.NotifyPartitionChanges{PTID: uint64(i)})
			}
			c.Abort()
		})
		cfg := w.config(m1, m2)
		var accepted *Result
		var events []link.Event
		cfg.Accepted = func(r *Result) { accepted = r }
		cfg.Link.Deliver = func(ev link.Event) {
			if accepted == nil || ev.Conn != accepted.Conn {
				t.Errorf("event %+v before acceptance", ev)
			}
			events = append(events, ev)
		}
		res, err := Find(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		<-res.Conn.Done()
		if res != accepted || len(events) != 101 || !events[100].End() {
			t.Fatalf("%d events", len(events))
		}
		for i, ev := range events[:100] {
			if p, ok := ev.Packet.(*proto.NotifyPartitionChanges); !ok || p.PTID != uint64(i) {
				t.Errorf("event %d is %+v", i, ev)
			}
		}
	})
}

func TestFindStopsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.master(m1, func(*link.Conn, uint32, *proto.RequestIdentification) {})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := Find(ctx, w.config(m1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Find = %v", err)
		}
		if took := time.Since(w.start); took != 5*time.Second {
			t.Errorf("Find took %v", took)
		}
	})
}

// A master that vanishes in the middle of the identification is only one failed
// attempt.
func TestMasterDisappears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := 0
		w.master(m1, func(c *link.Conn, id uint32, q *proto.RequestIdentification) {
			if n++; n == 1 {
				w.net.Drop("m1", "client")
				return
			}
			accept(c, id, q)
		})
		find(t, w.config(m1))
		w.checkAsked("m1 0s", "m1 50ms")
	})
}

// A primary that was stopped is passed over, although the others still refer to it;
// unless there is no other.
func TestFindPassesOverAHungMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var hung, takenOver atomic.Bool
		w.master(m1, func(c *link.Conn, id uint32, q *proto.RequestIdentification) {
			if !hung.Load() {
				accept(c, id, q)
			}
		})
		w.master(m2, func(c *link.Conn, id uint32, q *proto.RequestIdentification) {
			if takenOver.Load() {
				accept(c, id, q)
			} else {
				refer(proto.Some(0), m1, m2)(c, id, q)
			}
		})
		cfg := w.config(m1, m2)
		cfg.Link.PeerTimeout = link.DefaultPeerTimeout
		res, err := Find(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		hung.Store(true)
		w.net.Hold("m1", "client")
		<-res.Conn.Done()
		time.AfterFunc(time.Second, func() { takenOver.Store(true) })
		start := time.Now()
		if res := find(t, cfg); res.Conn.RemoteAddr() != m2 || time.Since(start) > 2*time.Second {
			t.Errorf("%v found after %v", res.Conn.RemoteAddr(), time.Since(start))
		}

		// It alone is asked all the same.
		w.net.Release("m1", "client")
		hung.Store(false)
		cfg.Masters = NewMasters(m1)
		cfg.Masters.hang(m1)
		start = time.Now()
		if find(t, cfg); time.Since(start) > time.Second {
			t.Errorf("the only master is found after %v", time.Since(start))
		}
	})
}
