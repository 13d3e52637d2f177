package page

import (
	"context"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/status"
)

// The page of a real cluster: while it starts, runs, is gone, and is back.
func TestAsker(t *testing.T) {
	a := NewAsker(link.Config{})
	defer a.Close()
	p := New(Config{Collect: func(context.Context) *status.Status { return a.Collect(t.Context()) }}) // however long it takes
	shows := func(when string, texts ...string) {
		t.Helper()
		p.mu.Lock()
		p.last = nil // whatever was asked a moment ago
		p.mu.Unlock()
		body := get(t, p, "/").Body.String()
		for _, s := range texts {
			if !strings.Contains(body, s) {
				t.Errorf("%s: no %q in %s", when, s, body[strings.Index(body, "<main>"):])
			}
		}
	}
	shows("before the start", "the program is starting")
	dir, addr := t.TempDir(), lastingAddress(t)
	for range 2 {
		c, err := simple.New(simple.Config{Dir: dir, Name: "site", Storages: 2, Replicas: 1, Partitions: 5, Admin: addr})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		starting, stop := context.WithTimeout(t.Context(), time.Minute)
		if err := c.WaitRunning(starting); err != nil {
			t.Fatal(err)
		}
		stop()
		a.Use(c.Name(), addr)
		shows("running", "✓ site: ok", "RUNNING", "5 partitions, 2 copies wanted of each. All have them.", "storage2.sqlite", "2 of 2", "Healthy")
		shows("running", "✓ site: ok")
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		shows("stopped", "✕ site: down", "Not known: the cluster cannot be asked", "the admin at "+addr.String()+" cannot be asked: ")
	}
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
