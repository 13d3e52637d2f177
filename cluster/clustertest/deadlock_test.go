package clustertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
)

// Many clients write the same few objects in opposite orders, on two storages:
// without deadlock avoidance they would soon wait for each other for ever. Every
// client must get all its transactions through, and no update may be lost.
func TestDeadlocks(t *testing.T) {
	const clients, transactions = 16, 10
	plan := Plan{Seed: 1, Storages: 2, Partitions: 2, Clients: clients, Objects: 3, Delay: 5 * time.Millisecond}
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(t, plan, nil)
		defer s.close()
		if !s.start() {
			return
		}
		var conflicts atomic.Int64
		var wg sync.WaitGroup
		begin := time.Now()
		for i := range clients {
			wg.Go(func() {
				cl, err := s.open(s.ctx, i)
				if err != nil {
					t.Error(err)
					return
				}
				defer cl.Close()
				r := rand.New(rand.NewPCG(1, uint64(i)))
				for n := 0; n < transactions && s.ctx.Err() == nil; {
					if s.increment(cl, r, fmt.Sprintf("%d.%d", i, n)) {
						n++
					} else {
						conflicts.Add(1)
					}
				}
			})
		}
		wg.Wait()
		t.Logf("%d transactions with %d conflicts in %v of simulated time", clients*transactions, conflicts.Load(), time.Since(begin))
		s.compare()
	})
}

// increment writes all objects in random order, and reports whether it committed.
func (s *simulation) increment(cl *client.Client, r *rand.Rand, mark string) bool {
	a := s.attempt(mark + fmt.Sprintf(" %d", r.Int64()))
	if err := cl.Sync(s.ctx); err != nil {
		return false
	}
	last, err := cl.LastTID(s.ctx)
	if err != nil {
		return false
	}
	for _, n := range r.Perm(len(s.oids)) {
		read, err := s.read(s.ctx, cl, s.oids[n], last+1)
		if err != nil {
			return false
		}
		a.Writes = append(a.Writes, Write{OID: read.OID, Base: read.Serial, Data: []byte(a.Mark)})
	}
	s.commit(s.ctx, cl, &a)
	s.record(a)
	return a.Outcome == Committed
}

// A client that stopped in the middle of a commit, its connections still open,
// blocks only those that want its objects, and only until it is gone.
func TestStuckClientHoldsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(t, Plan{Seed: 2, Storages: 1, Partitions: 1, Clients: 2, Objects: 2, Delay: time.Millisecond}, nil)
		defer s.close()
		if !s.start() {
			return
		}
		stuck, err := s.open(s.ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		held, err := stuck.Begin(s.ctx, client.BeginOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_, serial, err := stuck.Load(s.ctx, s.oids[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := held.Store(s.ctx, s.oids[0], serial, []byte("never committed")); err != nil {
			t.Fatal(err)
		}
		held.Flush()
		time.Sleep(time.Second)

		other, err := s.open(s.ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		write := func(ctx context.Context, oid tid.OID, mark string) Outcome {
			a := s.attempt(mark)
			a.Writes = []Write{{OID: oid, Base: serial, Data: []byte(mark)}}
			s.commit(ctx, other, &a)
			s.record(a)
			return a.Outcome
		}
		if got := write(s.ctx, s.oids[1], "free"); got != Committed {
			t.Errorf("writing an object that nobody holds: %v", got)
		}
		done := make(chan Outcome, 1)
		go func() { done <- write(s.ctx, s.oids[0], "held") }()
		time.Sleep(time.Minute)
		if len(done) > 0 {
			t.Errorf("the held object was written: %v", <-done)
		}
		s.net.Crash(clientHost(0))
		if got := <-done; got != Committed {
			t.Errorf("writing after the holder died: %v", got)
		}
		stuck.Close()
		s.compare()
	})
}
