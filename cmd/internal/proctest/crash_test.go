package proctest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var (
	crashRounds = flag.Int("crash-rounds", 100, "processes killed by TestKill")
	crashSeed   = flag.Uint64("crash-seed", 0, "seed of TestKill; 0 chooses one")
)

func TestMain(m *testing.M) {
	code := m.Run()
	Cleanup()
	os.Exit(code)
}

// Processes are killed with SIGKILL at random moments while clients commit.
// Every acknowledged transaction must be there afterwards, whole, and nothing of
// those whose client was told that they failed.
func TestKill(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-crash-seed=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := StartCluster(t, Options{Storages: 2, Partitions: 6})
	w := startWorkload(t, c, 4)
	for round := range *crashRounds {
		time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
		wantRunning(t, c.Nodes())
		victim := c.Storages[rnd.IntN(2)]
		switch n := rnd.IntN(10); {
		case n < 3:
			victim = c.Master
		case n == 3:
			victim = c.AdminP
		}
		victim.Kill()
		time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
		if err := victim.Restart(); err != nil {
			t.Fatal(err)
		}
		before := w.acknowledged()
		for deadline := time.Now().Add(patience); w.acknowledged() < before+3; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				out, errOut, _ := c.Ctl(t, "print", "node")
				t.Fatalf("round %d: nothing is committed any more after %s was killed\n%s%s", round, victim.Name, out, errOut)
			}
		}
	}
	seen := w.stop()
	wantRunning(t, c.Nodes())
	for _, p := range c.Nodes() {
		p.Kill()
	}
	for _, p := range c.Nodes() {
		if err := p.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	c.WaitState(t, "RUNNING", patience)

	c.verify(t, seen)
	t.Logf("%d rounds, %d transactions acknowledged, %d attempted", *crashRounds, w.acknowledged(), len(seen.Attempts))
}

// workload is clients that commit as fast as a little pause lets them.
type workload struct {
	cancel context.CancelFunc
	enough atomic.Bool
	wg     sync.WaitGroup

	mu      sync.Mutex
	seen    clustertest.Observed
	last    tid.TID // greatest acknowledged
	count   int     // of acknowledged transactions
	since   time.Time
	longest time.Duration // without an acknowledged transaction
	rises   []rise        // of last
}

// rise is a moment at which a TID was seen for the first time.
type rise struct {
	at  time.Time
	tid tid.TID
}

// startWorkload starts clients. They stop with the test, or by [workload.stop].
func startWorkload(t testing.TB, c *Cluster, clients int) *workload {
	return startMarked(t, c, clients, "")
}

// startMarked is startWorkload with a prefix for the marks of the transactions.
func startMarked(t testing.TB, c *Cluster, clients int, prefix string) *workload {
	ctx, cancel := context.WithCancel(t.Context())
	w := &workload{cancel: cancel, since: time.Now()}
	t.Cleanup(func() { w.stop() })
	for n := range clients {
		w.wg.Go(func() {
			cl, err := Connect(ctx, c)
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			defer cl.Close()
			own, base := tid.OID(0), tid.Zero
			for i := 0; ctx.Err() == nil && !w.enough.Load(); i++ {
				w.mu.Lock()
				a := clustertest.Attempt{Mark: fmt.Sprintf("%s%d.%d", prefix, n, i), After: w.last}
				w.mu.Unlock()
				commit(ctx, cl, &a, &own, &base)
				w.add(a)
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	return w
}

func (w *workload) add(a clustertest.Attempt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.Attempts = append(w.seen.Attempts, a)
	if a.Outcome == clustertest.Committed {
		if a.TID > w.last {
			w.last = a.TID
			w.rises = append(w.rises, rise{time.Now(), a.TID})
		}
		w.longest = max(w.longest, time.Since(w.since))
		w.since = time.Now()
		w.count++
	}
}

// finish lets the clients end what they have begun, and returns what they saw: nothing is committed
// any more then.
func (w *workload) finish(t testing.TB) clustertest.Observed {
	t.Helper()
	w.enough.Store(true)
	ended := make(chan struct{})
	go func() {
		w.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("clients do not end")
	}
	return w.stop()
}

// stop ends the clients and returns what they saw. What was under way may be committed later.
func (w *workload) stop() clustertest.Observed {
	w.cancel()
	w.wg.Wait()
	return w.seen
}

// acknowledged returns how many transactions were.
func (w *workload) acknowledged() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// lastAcknowledged returns the greatest TID that was.
func (w *workload) lastAcknowledged() tid.TID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// times returns when transactions were acknowledged, without those that a later one
// has overtaken.
func (w *workload) times() []rise {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.rises)
}

// longestPause returns the longest time without an acknowledged transaction since
// it was called the last time.
func (w *workload) longestPause() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := max(w.longest, time.Since(w.since))
	w.longest = 0
	return d
}

// verify compares what clients saw with the database, and returns what it holds.
func (c *Cluster) verify(t testing.TB, seen clustertest.Observed) []clustertest.Stored {
	t.Helper()
	cl, err := Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	db, err := clustertest.Dump(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range clustertest.Verify(seen, db) {
		t.Error(err)
		if i == 20 {
			t.Fatal("and more")
		}
	}
	return db
}

// commit tries one transaction: three new objects, and a new revision of the
// worker's own one.
func commit(ctx context.Context, cl *client.Client, a *clustertest.Attempt, own *tid.OID, base *tid.TID) {
	a.Outcome = clustertest.Aborted
	oids, err := cl.NewOIDs(ctx, 3)
	if err != nil {
		return
	}
	if *own == 0 {
		*own, *base = oids[0], tid.Zero
	} else {
		oids = append(oids, *own)
	}
	for _, oid := range oids {
		w := clustertest.Write{OID: oid, Data: fmt.Appendf(nil, "%s of %v", a.Mark, oid)}
		if oid == *own {
			w.Base = *base
		}
		a.Writes = append(a.Writes, w)
	}
	tx, err := cl.Begin(ctx, client.BeginOptions{Description: []byte(a.Mark)})
	if err != nil {
		return
	}
	for _, w := range a.Writes {
		if err = tx.Store(ctx, w.OID, w.Base, w.Data); err != nil {
			break
		}
	}
	if err == nil {
		_, err = tx.Vote(ctx)
	}
	if err == nil {
		a.Outcome = clustertest.Unknown
		a.TID, err = tx.Finish(ctx, nil)
	}
	switch {
	case err == nil:
		a.Outcome = clustertest.Committed
		*base = a.TID
		return
	case ctx.Err() == nil:
		a.Outcome = clustertest.Aborted
	}
	tx.Abort(context.WithoutCancel(ctx)) // the error that matters is already known
	// A failed transaction may have created the object that it was to own.
	if *base == tid.Zero {
		*own = 0
	}
	var conflict *txn.ConflictError
	if errors.As(err, &conflict) && conflict.OID == *own {
		*own, *base = 0, tid.Zero
	}
}

// Connect opens a client of the cluster.
func Connect(ctx context.Context, c *Cluster) (*client.Client, error) { return c.connect(ctx, false) }

// connect opens a client, which may be one that only reads.
func (c *Cluster) connect(ctx context.Context, readOnly bool) (*client.Client, error) {
	masters, err := conf.ParseMasters(c.Masters)
	if err != nil {
		return nil, err
	}
	list := make([]proto.Address, len(masters))
	for i, a := range masters {
		list[i] = proto.Address(a)
	}
	return client.Open(ctx, client.Config{Cluster: c.Name, Masters: list, TLS: c.tls, ReadOnly: readOnly})
}
