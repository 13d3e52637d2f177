package clustertest

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

const staleRounds = 3

// StalePlanOf returns the plan of a run in which databases are replaced by older copies.
func StalePlanOf(seed uint64) Plan {
	r := rand.New(rand.NewPCG(seed, 3))
	p := Plan{
		Seed:       seed,
		Storages:   2 + r.IntN(2),
		Clients:    2 * staleRounds,
		Objects:    2 + r.IntN(5),
		Steps:      5 + r.IntN(10),
		Delay:      time.Duration(1+r.IntN(20)) * time.Millisecond,
		Replicas:   r.IntN(2),
		Partitions: 3 + r.IntN(3),
	}
	return p
}

// copies is a run in which databases are replaced by older copies of themselves.
type copies struct {
	*simulation
	r      *rand.Rand
	made   [][]*backendtest.Memory // by storage, in the order of their time
	states []databaseState         // before the databases were replaced
	late   atomic.Bool             // a storage was refused that came after an older copy of another one
}

// SimulateStale lets clients write while copies of the databases are made, replaces some
// databases by any of these copies while the storages are down, and requires that
// everything that was acknowledged is there afterwards, or that the cluster does not start
// by itself. It reports whether what was lost could not be noticed: every copy of a
// partition was replaced, by copies made since the storages last confirmed their table; or
// only too late, by a storage that came after the cluster had started, and was refused.
func SimulateStale(t *testing.T, plan Plan, log *slog.Logger) (unnoticed, refused bool) {
	synctest.Test(t, func(t *testing.T) {
		s := &copies{simulation: newSimulation(t, plan, log), r: rand.New(rand.NewPCG(plan.Seed, 4))}
		s.made = make([][]*backendtest.Memory, plan.Storages)
		defer s.close()
		if !s.start() {
			return
		}
		for round := 0; round < staleRounds && !unnoticed && !t.Failed(); round++ {
			var stopped bool
			unnoticed, stopped = s.round(round)
			refused = refused || stopped
		}
	})
	return unnoticed, refused
}

func (s *copies) round(round int) (unnoticed, refused bool) {
	s.write(round)
	how := s.r.IntN(3)
	replaced := make([]bool, s.plan.Storages)
	for i := range replaced {
		replaced[i] = len(s.made[i]) > 0 && s.r.IntN(2) == 0
	}
	switch how {
	case 0: // an orderly stop
		s.order(proto.Stopping)
		time.Sleep(10 * time.Second)
	case 1: // only the storages that are replaced
	case 2:
		s.stop(masterHost)
	}
	s.states = nil
	for i := range s.dbs {
		if how != 1 || replaced[i] {
			s.stop(storageHost(i))
		}
		s.states = append(s.states, s.state(s.dbs[i].Copy()))
	}
	right := make([]*backendtest.Memory, len(s.dbs))
	for i := range s.dbs {
		right[i] = s.dbs[i].Copy()
		if replaced[i] {
			s.dbs[i].Restore(s.made[i][s.r.IntN(len(s.made[i]))])
		}
	}
	lost, noticed := s.loss(replaced, how == 1)
	s.log.Info("restart", "how", how, "replaced", replaced, "lost", lost, "noticed", noticed)
	if how != 1 {
		s.stop(masterHost)
		s.startMaster()
	}
	for _, i := range s.r.Perm(len(s.dbs)) {
		if how != 1 || replaced[i] {
			s.restart(i)
			time.Sleep(time.Duration(s.r.IntN(3000)) * time.Millisecond)
		}
	}
	serves := s.serves()
	switch {
	case s.late.Load() && how == 2 && slices.Contains(replaced, true):
		return true, false // see "Noticed late" in the design of the master
	case s.late.Load():
		s.t.Errorf("%+v: a storage is refused, although none has an older copy that came first; replaced: %v", s.plan, replaced)
		return false, false
	case lost == nil && !serves:
		s.t.Errorf("%+v: the cluster does not start, although each partition is there; replaced: %v", s.plan, replaced)
		return false, false
	case lost != nil && noticed && serves:
		s.t.Errorf("%+v: the cluster has started, although partitions %v are only in older copies; replaced: %v", s.plan, lost, replaced)
		return false, false
	case lost != nil && serves && (how == 2 || how == 0 && !slices.Contains(replaced, false)):
		return true, false
	case lost != nil && serves:
		// The master has seen the last commits, or the storages had confirmed their
		// table after them: none can be missing.
	case lost != nil:
		refused = true
		// The right databases come back.
		for i := range s.dbs {
			if replaced[i] {
				s.stop(storageHost(i))
				s.dbs[i].Restore(right[i])
				s.restart(i)
			}
		}
		if !s.serves() {
			s.t.Errorf("%+v: the cluster does not start with the right databases", s.plan)
			return false, false
		}
	}
	time.Sleep(5 * time.Minute) // until all is replicated
	s.compare()
	s.equal()
	return false, refused
}

// write lets clients work while copies are made, and a storage stops and comes back.
func (s *copies) write(round int) {
	var clients sync.WaitGroup
	done := make(chan struct{})
	for i := range 2 {
		clients.Go(func() { s.client(2*round + i) })
	}
	var copying sync.WaitGroup
	copying.Go(func() {
		r := rand.New(rand.NewPCG(s.plan.Seed, uint64(1000+round)))
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Duration(50+r.IntN(1000)) * time.Millisecond):
			}
			i := r.IntN(len(s.dbs))
			if s.state(s.dbs[i].Copy()).ptid > 0 {
				s.mu.Lock()
				s.made[i] = append(s.made[i], s.dbs[i].Copy())
				s.mu.Unlock()
			}
			if s.plan.Replicas > 0 && r.IntN(8) == 0 {
				s.stop(storageHost(i))
				time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
				s.restart(i)
			}
		}
	})
	clients.Wait()
	close(done)
	copying.Wait()
	time.Sleep(time.Duration(s.r.IntN(180)) * time.Second)
}

func (s *copies) stop(host string) {
	s.net.Crash(host)
	s.mu.Lock()
	stop := s.nodes[host]
	s.mu.Unlock()
	stop()
}

// restart starts a storage, which may be refused.
func (s *copies) restart(i int) {
	if err := s.dbs[i].Crash(); err != nil {
		s.t.Errorf("database %d: %v", i, err)
	}
	b, err := s.dbs[i].Open()
	if err != nil {
		s.t.Errorf("opening database %d: %v", i, err)
		return
	}
	n, err := storage.New(storage.Config{
		Cluster: "sim", Bind: proto.Address{Host: storageHost(i), Port: 20000},
		Masters: bootstrap.NewMasters(s.masters()...), Backend: b,
		Network: s.net.Host(storageHost(i)), Log: s.log.With("host", fmt.Sprintf("storage%d", i+1)),
	})
	if err != nil {
		s.t.Errorf("starting storage %d: %v", i, err)
		return
	}
	s.node(storageHost(i), func(ctx context.Context) error {
		err := n.Run(ctx)
		if err != nil && strings.Contains(err.Error(), "has started from an older copy of the database") {
			s.late.Store(true) // as loudly as it can be said
			return nil
		}
		return err
	})
}

// order gives the master an order of an operator.
func (s *copies) order(state proto.ClusterState) {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	conn, err := link.Dial(ctx, s.masters()[0], link.Config{Network: s.net.Host(clientHost(s.plan.Clients))})
	if err != nil {
		s.t.Errorf("%+v: %v", s.plan, err)
		return
	}
	defer conn.Close()
	_, err = conn.Call(ctx, &proto.RequestIdentification{Type: proto.Admin, Addr: proto.Address{Host: "10.0.3.1", Port: 9999},
		Cluster: "sim", Extra: map[string]proto.Value{"backup": []proto.Value{}}})
	if err == nil {
		_, err = conn.Call(ctx, &proto.SetClusterState{State: state})
	}
	if err != nil {
		s.t.Errorf("%+v: order to become %v: %v", s.plan, state, err)
	}
}

// serves reports whether a client can connect within some minutes.
func (s *copies) serves() bool {
	ctx, cancel := context.WithTimeout(s.ctx, 3*time.Minute)
	defer cancel()
	cl, err := s.open(ctx, s.plan.Clients)
	if err != nil {
		return false
	}
	cl.Close()
	return true
}

// databaseState is what a database says of itself.
type databaseState struct {
	id        proto.NodeID
	ptid      uint64
	confirmed uint64
	cells     []backend.Cell
}

func (s *copies) state(db *backendtest.Memory) databaseState {
	b, err := db.Open()
	if err != nil {
		s.t.Fatal(err)
	}
	cfg, err := b.Config()
	if err != nil {
		s.t.Fatal(err)
	}
	cells, err := b.Cells()
	if err != nil {
		s.t.Fatal(err)
	}
	return databaseState{cfg.ID, cfg.PTID.V, cfg.Confirmed.V, cells}
}

// loss returns the partitions of which every readable copy was replaced, and whether
// a database that is there, or the master if it lives, knows that one of them must be
// wrong.
func (s *copies) loss(replaced []bool, masterLives bool) (lost []int, noticed bool) {
	known := uint64(0)
	now := make([]databaseState, len(s.dbs))
	for i := range s.dbs {
		now[i] = s.state(s.dbs[i].Copy())
		known = max(known, now[i].confirmed)
		if masterLives {
			known = max(known, s.states[i].confirmed)
		}
	}
	for p := range s.plan.Partitions {
		if !slices.ContainsFunc(holders(s.states, p), func(i int) bool { return !replaced[i] }) {
			lost = append(lost, p)
			noticed = noticed || !slices.ContainsFunc(holders(now, p), func(i int) bool { return now[i].ptid >= known })
		}
	}
	return lost, noticed
}

// holders returns the databases that have a partition according to the newest table.
func holders(states []databaseState, partition int) (list []int) {
	newest := slices.MaxFunc(states, func(a, b databaseState) int { return int(a.ptid) - int(b.ptid) })
	for _, c := range newest.cells {
		if c.Partition == partition && c.State.Readable() {
			list = append(list, slices.IndexFunc(states, func(d databaseState) bool { return d.id == c.ID }))
		}
	}
	return list
}

// equal requires that all copies are complete and equal.
func (s *copies) equal() {
	type digest struct {
		trans proto.AnswerCheckTIDRange
		obj   proto.AnswerCheckSerialRange
	}
	first := map[int]digest{}
	for i := range s.dbs {
		b, err := s.dbs[i].Copy().Open()
		if err != nil {
			s.t.Fatal(err)
		}
		state := s.state(s.dbs[i].Copy())
		for _, c := range state.cells {
			if c.ID != state.id {
				continue
			}
			if !c.State.Readable() {
				s.t.Errorf("%+v: partition %d is still %v on %v", s.plan, c.Partition, c.State, c.ID)
				continue
			}
			trans, err := b.CheckTIDs(context.Background(), c.Partition, 1<<20, 0, tid.Max)
			if err != nil {
				s.t.Fatal(err)
			}
			obj, err := b.CheckSerials(context.Background(), c.Partition, 1<<20, 0, tid.Max, 0)
			if err != nil {
				s.t.Fatal(err)
			}
			d := digest{*trans, *obj}
			if o, ok := first[c.Partition]; !ok {
				first[c.Partition] = d
			} else if o != d {
				s.t.Errorf("%+v: copies of partition %d differ: %+v, %+v", s.plan, c.Partition, o, d)
			}
		}
	}
}
