package clustertest

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
)

// deletionPlan returns the plan of a seed for clusters where objects are deleted and
// packed while replicas are away.
func deletionPlan(seed uint64) (plan Plan, fetch int, habits []habit) {
	r := rand.New(rand.NewPCG(seed, 3))
	plan = Plan{
		Seed:       seed,
		Storages:   2 + r.IntN(2),
		Partitions: 1 + r.IntN(4),
		Clients:    1 + r.IntN(3),
		Objects:    6 + r.IntN(10),
		Steps:      20 + r.IntN(20),
		Delay:      time.Duration(1+r.IntN(20)) * time.Millisecond,
		Packs:      true,
	}
	plan.Replicas = 1 + r.IntN(plan.Storages-1)
	plan.Storages = max(plan.Storages, plan.Replicas+1)
	fetch = 1 + r.IntN(12)
	kind := r.IntN(3)
	for range plan.Storages {
		switch h := r.IntN(2) == 0; kind {
		case 0:
			habits = append(habits, habit{})
		case 1:
			habits = append(habits, habit{dropsDeletions: h})
		default:
			habits = append(habits, habit{believes: h})
		}
	}
	return plan, fetch, habits
}

// Objects are created, deleted, undone and packed while storages are stopped and killed,
// some with the habits of the Python implementation. In the end replicas must be equal, and nothing
// that was deleted may be loaded.
func TestDeletions(t *testing.T) {
	run := func(t *testing.T, seed uint64, log *slog.Logger) {
		plan, fetch, habits := deletionPlan(seed)
		simulateReplicas(t, plan, fetch, log, habits, func(r *replicas) {
			var clients sync.WaitGroup
			for i := range plan.Clients {
				clients.Go(func() { r.work(i) })
			}
			done := make(chan struct{})
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				r.lose(done)
			}()
			clients.Wait()
			close(done)
			<-ended
			r.equal()
			r.compare()
			r.deletedIsGone()
			if t.Failed() {
				t.Logf("records fetched at a time: %d, storages: %+v", fetch, habits)
			}
		})
	}
	if *seed != 0 {
		run(t, *seed, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		return
	}
	for i := range *seeds {
		s := *first + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) { run(t, s, nil) })
	}
}

// lose lets storages go away and come back until done.
func (r *replicas) lose(done <-chan struct{}) {
	x := rand.New(rand.NewPCG(r.plan.Seed, 4))
	for i := range r.plan.Storages { // replication takes a while
		for j := range r.plan.Storages {
			r.net.Delay(storageHost(i), storageHost(j), 0, time.Duration(x.IntN(300))*time.Millisecond)
		}
	}
	i, complete := 0, true
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(x.IntN(3000)) * time.Millisecond):
		}
		if x.IntN(3) == 0 {
			i = x.IntN(r.plan.Storages)
		}
		if complete && x.IntN(4) == 0 { // what it commits from now on is lost; others have it
			r.db(i).dead.Store(true)
			time.Sleep(time.Duration(x.IntN(2000)) * time.Millisecond)
		}
		r.away(i, r.db(i).dead.Load() || x.IntN(2) == 0)
		time.Sleep(time.Duration(x.IntN(20000)) * time.Millisecond)
		r.back(i)
		if complete = x.IntN(3) > 0; complete {
			r.upToDate()
		}
	}
}

// work is one client.
func (r *replicas) work(i int) {
	x := rand.New(rand.NewPCG(r.plan.Seed, uint64(200+i)))
	cl, err := r.open(r.ctx, i)
	if err != nil {
		r.t.Errorf("%+v: client %d cannot connect: %v", r.plan, i, err)
		return
	}
	defer cl.Close()
	for step := 0; step < r.plan.Steps && r.ctx.Err() == nil; step++ {
		mark := fmt.Sprintf("%d.%d", i, step)
		switch n := x.IntN(100); {
		case n < 10:
			r.snapshot(r.ctx, x, cl)
		case n < 20:
			r.undo(r.ctx, x, cl, mark)
		case n < 35:
			r.packSome(r.ctx, x, cl)
		case n < 60:
			r.deleteSome(r.ctx, x, cl, mark)
		default:
			r.change(r.ctx, x, cl, mark)
		}
		time.Sleep(time.Duration(x.IntN(3000)) * time.Millisecond)
	}
}

func (r *replicas) packSome(ctx context.Context, x *rand.Rand, cl *client.Client) {
	if x.IntN(2) == 0 {
		r.pack(ctx, x, cl)
		return
	}
	last, err := cl.LastTID(ctx)
	if err != nil {
		return
	}
	var oids []tid.OID
	for _, n := range x.Perm(len(r.oids))[:1+x.IntN(len(r.oids))] {
		oids = append(oids, r.oids[n])
	}
	r.mu.Lock()
	r.seen.PackedUpTo = max(r.seen.PackedUpTo, last)
	r.mu.Unlock()
	if id, err := cl.PackObjects(ctx, last, oids); err == nil && id != 0 && x.IntN(2) == 0 {
		cl.WaitForPack(ctx, id) // an error means a lost connection, no wrong pack
	}
}

func (r *replicas) deleteSome(ctx context.Context, x *rand.Rand, cl *client.Client, mark string) {
	a := r.attempt(mark)
	last, err := cl.LastTID(ctx)
	if err != nil {
		return
	}
	for _, n := range x.Perm(len(r.oids))[:1+x.IntN(3)] {
		read, err := r.read(ctx, cl, r.oids[n], last+1)
		if err != nil {
			return
		}
		if read.Serial != 0 && read.Data != nil {
			a.Writes = append(a.Writes, Write{OID: read.OID, Base: read.Serial})
		}
	}
	if len(a.Writes) > 0 {
		r.commit(ctx, cl, &a)
		r.record(a)
	}
}

// deletedIsGone looks in every database for objects of which the last write was a
// deletion.
func (r *replicas) deletedIsGone() {
	if r.ctx.Err() != nil {
		return
	}
	cl, err := r.open(r.ctx, r.plan.Clients)
	if err != nil {
		r.t.Errorf("%+v: the cluster does not serve any more: %v", r.plan, err)
		return
	}
	defer cl.Close()
	db, err := Dump(r.ctx, cl)
	if err != nil {
		r.t.Errorf("%+v: reading the database: %v", r.plan, err)
		return
	}
	// The last write of each object. An undo may have written anything that the
	// undone transaction has.
	attempts, byTID := map[string]*Attempt{}, map[tid.TID]*Attempt{}
	for i, a := range r.seen.Attempts {
		attempts[a.Mark] = &r.seen.Attempts[i]
	}
	for _, s := range db {
		if a := attempts[s.Mark]; a != nil {
			byTID[s.TID] = a
		}
	}
	type last struct {
		deletion, undo bool
		at             tid.TID
	}
	state := map[tid.OID]last{}
	var touch func(a *Attempt, at tid.TID, undo bool)
	touch = func(a *Attempt, at tid.TID, undo bool) {
		if a == nil {
			return
		}
		for _, w := range a.Writes {
			state[w.OID] = last{w.Data == nil, undo, at}
		}
		if a.Undoes != 0 {
			touch(byTID[a.Undoes], at, true)
		}
	}
	for _, s := range db {
		touch(attempts[s.Mark], s.TID, false)
	}
	for oid, l := range state {
		for i := range r.dbs {
			b := r.db(i).Backend
			t, deleted, err := b.RecordBefore(r.t.Context(), oid, tid.Max)
			switch cells, _ := b.Cells(); {
			case err != nil:
				r.t.Errorf("database %d: %v", i, err)
			case l.undo || !assigned(r, i, oid) || cells == nil:
			case l.deletion && t != 0 && !deleted:
				r.t.Errorf("%+v: %v was deleted at %v, storage %d has it at %v", r.plan, oid, l.at, i+1, t)
			case !l.deletion && t != l.at:
				r.t.Errorf("%+v: %v was written at %v, storage %d has it at %v", r.plan, oid, l.at, i+1, t)
			}
		}
	}
}

// assigned reports whether a storage has the partition of an object.
func assigned(r *replicas, i int, oid tid.OID) bool {
	cfg, _ := r.db(i).Config()
	cells, _ := r.db(i).Cells()
	for _, c := range cells {
		if c.Partition == oid.Partition(r.plan.Partitions) && c.ID == cfg.ID {
			return true
		}
	}
	return false
}
