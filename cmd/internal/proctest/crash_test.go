package proctest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
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
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	var acknowledged atomic.Int64
	var mu sync.Mutex
	var seen clustertest.Observed
	var lastAck tid.TID
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	for w := range 4 {
		wg.Go(func() {
			cl, err := Connect(ctx, c)
			if err != nil {
				t.Error(err)
				return
			}
			defer cl.Close()
			own, base := tid.OID(0), tid.Zero
			for n := 0; ctx.Err() == nil; n++ {
				mu.Lock()
				a := clustertest.Attempt{Mark: fmt.Sprintf("%d.%d", w, n), After: lastAck}
				mu.Unlock()
				commit(ctx, cl, &a, &own, &base)
				mu.Lock()
				seen.Attempts = append(seen.Attempts, a)
				if a.Outcome == clustertest.Committed {
					lastAck = max(lastAck, a.TID)
				}
				mu.Unlock()
				if a.Outcome == clustertest.Committed {
					acknowledged.Add(1)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
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
		before := acknowledged.Load()
		for deadline := time.Now().Add(60 * time.Second); acknowledged.Load() < before+3; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				out, errOut, _ := c.Ctl(t, "print", "node")
				t.Fatalf("round %d: nothing is committed any more after %s was killed\n%s%s", round, victim.Name, out, errOut)
			}
		}
	}
	cancel()
	wg.Wait()
	wantRunning(t, c.Nodes())
	for _, p := range c.Nodes() {
		p.Kill()
	}
	for _, p := range c.Nodes() {
		if err := p.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	c.WaitState(t, "RUNNING", 30*time.Second)

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
	t.Logf("%d rounds, %d transactions acknowledged, %d attempted", *crashRounds, acknowledged.Load(), len(seen.Attempts))
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
	txn, err := cl.Begin(ctx, client.BeginOptions{Description: []byte(a.Mark)})
	if err != nil {
		return
	}
	for _, w := range a.Writes {
		if err = txn.Store(ctx, w.OID, w.Base, w.Data); err != nil {
			break
		}
	}
	if err == nil {
		_, err = txn.Vote(ctx)
	}
	if err == nil {
		a.Outcome = clustertest.Unknown
		a.TID, err = txn.Finish(ctx, nil)
	}
	switch {
	case err == nil:
		a.Outcome = clustertest.Committed
		*base = a.TID
		return
	case ctx.Err() == nil:
		a.Outcome = clustertest.Aborted
	}
	txn.Abort(context.WithoutCancel(ctx)) // the error that matters is already known
	// A failed transaction may have created the object that it was to own.
	if *base == tid.Zero {
		*own = 0
	}
	var conflict *client.ConflictError
	if errors.As(err, &conflict) && conflict.OID == *own {
		*own, *base = 0, tid.Zero
	}
}

// Connect opens a client of the cluster.
func Connect(ctx context.Context, c *Cluster) (*client.Client, error) {
	masters, err := conf.ParseMasters(c.Masters)
	if err != nil {
		return nil, err
	}
	list := make([]proto.Address, len(masters))
	for i, a := range masters {
		list[i] = proto.Address(a)
	}
	return client.Open(ctx, client.Config{Cluster: c.Name, Masters: list})
}
