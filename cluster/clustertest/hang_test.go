package clustertest

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
)

// Hosts hang and are cut off.
func TestHangs(t *testing.T) {
	if *seed != 0 {
		SimulateHangs(t, HangPlanOf(*seed), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		return
	}
	list := slices.Clone(hangSeeds)
	for i := range *seeds {
		list = append(list, *first+uint64(i))
	}
	for _, s := range list {
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) { SimulateHangs(t, HangPlanOf(s), nil) })
	}
}

// hangSeeds have found a fault.
var hangSeeds = []uint64{
	52000160, // a replica was completed while the other copy was cut off; two masters went on, each with one of them
	61000050, // the last table was on no disk, and the master waited for it
	52001990, // a table was taken for confirmed that a storage had not stored which still started
}

// bound is how long a node that hangs may hold up the others.
const bound = 10 * time.Second

// hung runs f in a cluster with three masters, whose clients are f's to open.
func hung(t *testing.T, storages, replicas int, f func(t *testing.T, s *simulation)) {
	synctest.Test(t, func(t *testing.T) {
		plan := Plan{Seed: 1, Masters: 3, Storages: storages, Partitions: 2, Replicas: replicas, Clients: 2, Objects: 4, Delay: time.Millisecond}
		s := newSimulation(t, plan, nil)
		defer s.close()
		s.startStandby(1)
		s.startStandby(2)
		if s.start() {
			f(t, s)
			s.compare()
		}
	})
}

// commits tries to commit changes of all objects until one attempt succeeds, and
// returns how long that took.
func (s *simulation) commits(cl *client.Client, mark string) time.Duration {
	s.t.Helper()
	start := time.Now()
	for n := 0; s.ctx.Err() == nil; n++ {
		a := s.attempt(fmt.Sprintf("%s %d", mark, n))
		last, err := cl.LastTID(s.ctx)
		for _, oid := range s.oids {
			var read Read
			if err == nil {
				read, err = s.read(s.ctx, cl, oid, last+1)
			}
			a.Writes = append(a.Writes, Write{OID: oid, Base: read.Serial, Data: []byte(a.Mark)})
		}
		if err == nil {
			s.commit(s.ctx, cl, &a)
			s.record(a)
		}
		if a.Outcome == Committed {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return time.Since(start)
}

// between holds or releases all that passes between two groups of hosts.
func (s *simulation) between(change func(a, b string), as, bs []string) {
	for _, a := range as {
		for _, b := range bs {
			change(a, b)
		}
	}
}

// A replica is completed from a copy that is cut off from the primary master, and does not
// know it: another master starts with that copy alone, so that nothing must be committed on
// the replica alone.
func TestReplicaCompletedBesideCut(t *testing.T) {
	for _, masters := range []int{1, 3} {
		t.Run(fmt.Sprint(masters, " masters"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				plan := Plan{Seed: 1, Masters: masters, Storages: 2, Partitions: 2, Replicas: 1, Clients: 2, Objects: 4, Delay: time.Millisecond}
				s := newSimulation(t, plan, nil)
				defer s.close()
				ours, theirs := []string{masterHost, storageHost(0), clientHost(0)}, []string{storageHost(1), clientHost(1)}
				for i := 1; i < masters; i++ {
					s.startStandby(i)
					theirs = append(theirs, standbyHost(i))
				}
				if !s.start() {
					return
				}
				cl, other := s.mustOpen(0), s.mustOpen(1)
				defer cl.Close()
				defer other.Close()
				s.commits(cl, "with both")
				s.nodes[storageHost(0)]()
				if err := s.dbs[0].Crash(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				s.commits(cl, "without the replica")
				s.net.Hold(storageHost(0), storageHost(1))
				s.startStorage(0, s.dbs[0])
				time.Sleep(time.Second)
				s.between(s.net.Hold, ours, theirs)
				s.net.Release(storageHost(0), storageHost(1))
				var both sync.WaitGroup
				for i, c := range []*client.Client{cl, other} {
					both.Go(func() {
						time.Sleep(20 * time.Second)
						s.commits(c, fmt.Sprint("cut ", i))
					})
				}
				time.Sleep(time.Minute)
				if masters == 1 {
					// The master comes back as a new one, which finds the copy that was cut off first.
					s.vanish(masterHost, len(s.dbs), time.Second)
					s.between(s.net.Hold, []string{storageHost(0)}, []string{masterHost})
				}
				s.between(s.net.Release, ours, theirs)
				time.Sleep(time.Minute)
				s.net.Release(storageHost(0), masterHost)
				both.Wait()
				time.Sleep(time.Minute)
				s.compare()
			})
		})
	}
}

func (s *simulation) mustOpen(i int) *client.Client {
	s.t.Helper()
	cl, err := s.open(s.ctx, i)
	if err != nil {
		s.t.Fatal(err)
	}
	return cl
}

// during runs f while a host hangs.
func (s *simulation) during(host string, f func()) {
	for _, h := range s.hosts() {
		if h != host {
			s.net.Hold(host, h)
		}
	}
	f()
	for _, h := range s.hosts() {
		if h != host {
			s.net.Release(host, h)
		}
	}
	time.Sleep(time.Minute)
}

// A storage, or the primary master, hangs: the others go on without it, also
// clients that wait for it with a load or a commit, and it comes back.
func TestOthersGoOn(t *testing.T) {
	for _, host := range []string{storageHost(0), storageHost(1), masterHost} {
		t.Run(host, func(t *testing.T) {
			hung(t, 2, 1, func(t *testing.T, s *simulation) {
				cl := s.mustOpen(0)
				defer cl.Close()
				s.commits(cl, "before")
				for round := range 3 {
					s.during(host, func() {
						if d := s.commits(cl, fmt.Sprint("during ", round)); d > bound {
							t.Errorf("no commit for %v", d)
						}
						// A client that comes now finds the way at once.
						start := time.Now()
						other := s.mustOpen(1)
						defer other.Close()
						if s.commits(other, fmt.Sprint("new ", round)); time.Since(start) > bound {
							t.Errorf("no commit of a new client for %v", time.Since(start))
						}
					})
					s.commits(cl, fmt.Sprint("after ", round))
				}
			})
		})
	}
}

// A client that hangs while it holds locks is given up, also if its transaction is voted.
func TestHungClient(t *testing.T) {
	hung(t, 2, 1, func(t *testing.T, s *simulation) {
		cl, sick := s.mustOpen(0), s.mustOpen(1)
		defer cl.Close()
		defer sick.Close()
		for _, vote := range []bool{false, true} {
			tx, err := sick.Begin(s.ctx, client.BeginOptions{Description: []byte("never")})
			if err != nil {
				t.Fatal(err)
			}
			_, serial, err := sick.Load(s.ctx, s.oids[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := tx.Store(s.ctx, s.oids[0], serial, []byte("never")); err != nil {
				t.Fatal(err)
			}
			tx.Flush()
			time.Sleep(time.Second)
			if vote {
				if _, err := tx.Vote(s.ctx); err != nil {
					t.Fatal(err)
				}
			}
			s.during(clientHost(1), func() {
				if d := s.commits(cl, fmt.Sprint("voted ", vote)); d > bound {
					t.Errorf("voted %v: no commit for %v", vote, d)
				}
			})
			if _, err := tx.Finish(s.ctx, nil); err == nil {
				t.Errorf("voted %v: a transaction that was given up is committed", vote)
			}
			_ = tx.Abort(s.ctx) // it has failed
		}
	})
}

// startStorageAs starts a storage of another kind.
func (s *simulation) startStorageAs(change func(*storage.Config)) {
	s.t.Helper()
	i := len(s.dbs)
	s.dbs = append(s.dbs, backendtest.NewMemory())
	b, err := s.dbs[i].Open()
	if err != nil {
		s.t.Fatal(err)
	}
	cfg := storage.Config{Cluster: "sim", Bind: proto.Address{Host: storageHost(i), Port: 20000},
		Masters: bootstrap.NewMasters(s.masters()...), Backend: b, Network: s.net.Host(storageHost(i))}
	change(&cfg)
	n, err := storage.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.node(storageHost(i), n.Run)
}

// A storage that nothing can replace is waited for: neither commits nor loads fail.
func TestOnlyStorageHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(t, Plan{Seed: 1, Storages: 2, Partitions: 2, Clients: 1, Objects: 4, Delay: time.Millisecond}, nil)
		defer s.close()
		s.startMaster()
		for range 2 {
			// A process that is stopped gives nothing up meanwhile.
			s.startStorageAs(func(cfg *storage.Config) { cfg.PeerTimeout = -1 })
		}
		if !s.create() {
			return
		}
		cl := s.mustOpen(0)
		defer cl.Close()
		for round := range 3 {
			committed := make(chan time.Duration, 1)
			s.during(storageHost(round%2), func() {
				s.wg.Go(func() {
					start := time.Now()
					a := s.attempt(fmt.Sprint(round))
					for _, oid := range s.oids {
						data, serial, err := cl.Load(s.ctx, oid)
						if err != nil {
							t.Errorf("load while the only storage hangs: %v", err)
						}
						a.Writes = append(a.Writes, Write{OID: oid, Base: serial, Data: append(data, '.')})
					}
					if s.commit(s.ctx, cl, &a); a.Outcome != Committed {
						t.Errorf("a commit while the only storage hangs is %v", a.Outcome)
					}
					s.record(a)
					committed <- time.Since(start)
				})
				time.Sleep(time.Minute)
			})
			if d := <-committed; d < time.Minute {
				t.Errorf("committed after %v: it was not waited for", d)
			}
		}
		s.compare()
	})
}

// slowDisk is a database whose commits may take their time.
type slowDisk struct {
	backend.Backend
	takes *atomic.Int64
}

func (d slowDisk) Commit() error {
	time.Sleep(time.Duration(d.takes.Load()))
	return d.Backend.Commit()
}

func (d slowDisk) CommitVotes() error { return d.Commit() }

// A storage that writes to its disk for minutes is not given up.
func TestSlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(t, Plan{Seed: 1, Storages: 2, Partitions: 2, Replicas: 1, Clients: 1, Objects: 4, Delay: time.Millisecond}, nil)
		defer s.close()
		s.startMaster()
		var takes atomic.Int64
		for range 2 {
			s.startStorageAs(func(cfg *storage.Config) { cfg.Backend = slowDisk{cfg.Backend, &takes} })
		}
		if !s.create() {
			return
		}
		cl := s.mustOpen(0)
		defer cl.Close()
		for _, d := range []time.Duration{5 * time.Second, 30 * time.Second, 5 * time.Minute} {
			takes.Store(int64(d))
			a := s.attempt(fmt.Sprint(d))
			start := time.Now()
			for _, oid := range s.oids {
				_, serial, err := cl.Load(s.ctx, oid)
				if err != nil {
					t.Fatal(err)
				}
				a.Writes = append(a.Writes, Write{OID: oid, Base: serial, Data: []byte(a.Mark)})
			}
			if s.commit(s.ctx, cl, &a); a.Outcome != Committed || time.Since(start) < d {
				t.Errorf("the disk takes %v: the transaction is %v after %v", d, a.Outcome, time.Since(start))
			}
			s.record(a)
			takes.Store(0)
			time.Sleep(10 * time.Minute)
		}
		s.compare()
	})
}

// A storage whose host lost its power comes back before that is noticed.
func TestVanishedStorageReturns(t *testing.T) {
	for _, replicas := range []int{0, 1} {
		t.Run(fmt.Sprint(replicas, " replicas"), func(t *testing.T) {
			hung(t, 2, replicas, func(t *testing.T, s *simulation) {
				cl := s.mustOpen(0)
				defer cl.Close()
				for i := range 2 {
					start := time.Now()
					s.vanish(storageHost(i), i, time.Second)
					if s.commits(cl, fmt.Sprint(i)); time.Since(start) > bound {
						t.Errorf("no commit for %v", time.Since(start))
					}
					time.Sleep(time.Minute)
				}
			})
		})
	}
}
