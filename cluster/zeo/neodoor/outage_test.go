package neodoor

import (
	"fmt"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo"
)

// watcher gives what it is told to a test.
type watcher chan string

func (w watcher) Committed(t tid.TID, _ []tid.OID) { w <- fmt.Sprint("committed ", t) }
func (w watcher) Lost()                            { w <- "lost" }
func (w watcher) Back(last tid.TID)                { w <- fmt.Sprint("back ", last) }

// want waits for what the watcher has to be told next.
func (w watcher) want(t *testing.T, want ...string) {
	t.Helper()
	for _, next := range want {
		select {
		case got := <-w:
			if got != next {
				t.Fatalf("the watcher was told %q, want %q", got, next)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("the watcher was not told %q", next)
		}
	}
}

// watched is a door whose watcher belongs to a test.
type watched struct {
	*Cluster
	watcher
}

func watch(t *testing.T, c *testCluster, grace time.Duration) *watched {
	t.Helper()
	s, err := c.open(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &watched{s, make(watcher, 100)}
	s.mu.Lock()
	s.grace = grace
	s.mu.Unlock()
	if _, err := s.Watch(t.Context(), w.watcher); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *watched) commit(t *testing.T, oid tid.OID) tid.TID {
	t.Helper()
	x, err := w.Begin(t.Context(), zeo.Begin{})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Store(t.Context(), oid, tid.Zero, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := x.Vote(t.Context()); err != nil {
		t.Fatal(err)
	}
	at, err := x.Finish(t.Context(), func(tid.TID) {})
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// ended waits for the end of an outage.
func (w *watched) ended(t *testing.T, outages int) {
	t.Helper()
	for range 12000 {
		w.mu.Lock()
		now := w.outages
		w.mu.Unlock()
		if now >= outages {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the outage does not end")
}

// A door whose master is lost finds another one though no client asks it for anything.
// Its clients are disconnected if that takes long, or if something was missed.
func TestOutagesEnd(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	short, long := watch(t, c, time.Minute), watch(t, c, time.Millisecond)
	last := short.commit(t, 1)
	long.want(t, fmt.Sprint("committed ", last))

	master := c.masters[0]
	c.stopMaster()
	long.want(t, "lost")
	if err := c.startMaster(master); err != nil {
		t.Fatal(err)
	}
	long.want(t, fmt.Sprint("back ", last))
	short.ended(t, 2)
	last = long.commit(t, 2)
	short.want(t, fmt.Sprint("committed ", last)) // and nothing before

	// Of an outage that is interrupted by another one only the last end counts.
	short.lost()
	short.reset()
	short.want(t, "lost")
	short.lost()
	short.want(t, fmt.Sprint("back ", last))
	last = long.commit(t, 3)
	short.want(t, fmt.Sprint("committed ", last))

	// The door may be closed meanwhile, and hears of nothing any more.
	c.stopMaster()
	long.want(t, "lost")
	if err := long.Close(); err != nil {
		t.Error(err)
	}
	long.lost()
	long.reset()
	if len(long.watcher) > 0 {
		t.Errorf("after the end the watcher was told %q", <-long.watcher)
	}
}
