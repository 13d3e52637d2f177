package clustertest

import (
	"context"
	"crypto/sha1"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

var repairs = flag.Int("repairs", 20, "simulated runs of TestRepair")

// A replica that lost, changed or gained records is repaired while clients commit:
// what they see agrees with a sequential history, and in the end the replicas are
// equal.
func TestRepair(t *testing.T) {
	run := func(t *testing.T, seed uint64, log *slog.Logger) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			plan := Plan{Seed: seed, Storages: 2 + r.IntN(2), Replicas: 1, Partitions: 2 + r.IntN(3), Clients: 2 + r.IntN(3), Objects: 3 + r.IntN(5),
				Steps: 60, Delay: time.Duration(1+r.IntN(30)) * time.Millisecond}
			s := newSimulation(t, plan, log)
			defer s.close()
			if !s.start() {
				return
			}
			s.startAdmin()
			// What is spoilt is not shown to clients: they go on when it is out of service.
			calm := make(calm, plan.Clients)
			var clients sync.WaitGroup
			for i := range plan.Clients {
				clients.Go(func() { s.steps(i, calm) })
			}
			ok := true
			for round := range 2 {
				time.Sleep(time.Duration(500+r.IntN(1000)) * time.Millisecond)
				ok = ok && s.spoilAndRepair(r, round, calm)
			}
			clients.Wait()
			time.Sleep(time.Minute)
			s.compare()
			if ok {
				s.compareReplicas()
			}
		})
	}
	if *seed != 0 {
		run(t, *seed, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		return
	}
	for i := range *repairs {
		n := *first + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", n), func(t *testing.T) { run(t, n, nil) })
	}
}

// calm has a place for each client that makes a step.
type calm chan struct{}

// begin waits until no client makes a step, and holds them.
func (c calm) begin() {
	for range cap(c) {
		c <- struct{}{}
	}
}

func (c calm) end() {
	for range cap(c) {
		<-c
	}
}

// steps is a client that lives.
func (s *simulation) steps(i int, calm calm) {
	r := rand.New(rand.NewPCG(s.plan.Seed, uint64(100+i)))
	cl, err := s.open(s.ctx, i)
	if err != nil {
		s.t.Errorf("%+v: client %d cannot connect: %v", s.plan, i, err)
		return
	}
	defer cl.Close()
	for step := 0; step < s.plan.Steps && s.ctx.Err() == nil; step++ {
		calm <- struct{}{}
		s.step(s.ctx, r, cl, fmt.Sprintf("%d.%d", i, step))
		<-calm
		time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
	}
}

func (s *simulation) startAdmin() {
	a, err := admin.New(admin.Config{
		Cluster: s.cluster, Bind: proto.Address{Host: s.adminHost(), Port: 9999}, Masters: bootstrap.NewMasters(s.masters()...),
		Backups: s.monitors, Network: s.net.Host(s.adminHost()), Log: s.log.With("host", "admin"),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.node(s.adminHost(), a.Run)
}

// operate asks the admin, until it is ready.
func (s *simulation) operate(ask func(ctx context.Context, c *ctl.Client) error) error {
	c, err := ctl.Dial(s.ctx, proto.Address{Host: s.adminHost(), Port: 9999}, link.Config{Network: s.net.Host(s.clientHost(s.plan.Clients)), Log: s.log})
	if err != nil {
		return err
	}
	defer c.Close()
	return ask(s.ctx, c)
}

// reopen opens the database of a storage that does not run any more.
func (s *simulation) reopen(i int) backend.Backend {
	if err := s.dbs[i].Crash(); err != nil {
		s.t.Fatal(err)
	}
	db, err := s.dbs[i].Open()
	if err != nil {
		s.t.Fatal(err)
	}
	return db
}

// spoil changes the database of a storage that does not run, and returns how often.
func (s *simulation) spoil(r *rand.Rand, i int) (id proto.NodeID, n int) {
	db := s.reopen(i)
	change := func() error {
		cells, err := db.Cells()
		if err != nil {
			return err
		}
		cfg, err := db.Config()
		if err != nil {
			return err
		}
		id = cfg.ID
		for _, cell := range cells {
			if cell.ID != cfg.ID || !cell.State.Readable() {
				continue
			}
			keys, err := db.RecordsFrom(context.Background(), cell.Partition, 0, tid.Max, 0, 1000)
			if err != nil {
				return err
			}
			for _, k := range keys {
				switch r.IntN(6) {
				case 0: // it is lost
					err = db.DeleteObject(k.OID, k.TID)
				case 1: // others
					d := proto.ObjectData{Data: []byte("spoilt"), Checksum: checksum("spoilt")}
					if err = db.DeleteObject(k.OID, k.TID); err == nil {
						err = db.AddObject(k.OID, k.TID, d, proto.Opt[tid.TID]{})
					}
				case 2: // one more
					err = db.AddObject(k.OID, k.TID-1, proto.ObjectData{}, proto.Opt[tid.TID]{})
				default:
					continue
				}
				if err != nil {
					return err
				}
				n++
			}
			tids, err := db.TIDsFrom(context.Background(), cell.Partition, 0, tid.Max, 1000)
			if err != nil {
				return err
			}
			for _, t := range tids[:len(tids)/2] {
				n++
				if err := db.DeleteTransaction(t); err != nil {
					return err
				}
			}
		}
		return db.Commit()
	}
	if err := change(); err != nil {
		s.t.Error(err)
	}
	if err := db.Close(); err != nil {
		s.t.Error(err)
	}
	return id, n
}

// settled waits until all cells are readable.
func (s *simulation) settled() (rows [][]proto.Cell) {
	for s.ctx.Err() == nil {
		err := s.operate(func(ctx context.Context, c *ctl.Client) error {
			p, err := c.PartitionTable(ctx, 0, 0, 0)
			if err == nil {
				rows = p.Rows
			}
			return err
		})
		ready := err == nil && len(rows) > 0
		for _, row := range rows {
			for _, c := range row {
				ready = ready && c.State == proto.UpToDate
			}
		}
		if ready {
			return rows
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// check compares all partitions with the copies of a node, if it has one, and
// otherwise without reference.
func (s *simulation) check(ctx context.Context, c *ctl.Client, rows [][]proto.Cell, from proto.NodeID) (*check.Run, error) {
	partitions := map[int]proto.Opt[proto.NodeID]{}
	for p, row := range rows {
		partitions[p] = proto.Opt[proto.NodeID]{}
		if slices.ContainsFunc(row, func(c proto.Cell) bool { return c.ID == from }) {
			partitions[p] = proto.Some(from)
		}
	}
	id, err := c.CheckReplicas(ctx, partitions, 0, proto.Opt[tid.TID]{})
	if err != nil {
		return nil, err
	}
	return c.FollowCheck(ctx, id)
}

// spoilAndRepair spoils the database of a storage and repairs it from the others.
func (s *simulation) spoilAndRepair(r *rand.Rand, round int, calm calm) bool {
	rows := s.settled()
	calm.begin()
	release := sync.OnceFunc(calm.end)
	defer release()
	i := r.IntN(s.plan.Storages)
	s.mu.Lock()
	stop := s.nodes[storageHost(i)]
	s.mu.Unlock()
	stop()
	time.Sleep(time.Second) // for the loss to be known everywhere
	spoilt, n := s.spoil(r, i)
	s.startStorage(i, s.dbs[i])
	rows = s.settled()
	if s.ctx.Err() != nil || n == 0 {
		return s.ctx.Err() == nil
	}
	repaired := false
	err := s.operate(func(ctx context.Context, c *ctl.Client) error {
		out := map[int]bool{} // of service, spoilt partitions
		c.Progress = func(run *check.Run) {
			for p, part := range run.Parts {
				if part.State == check.Repairing {
					out[p] = true
				}
			}
			all := true
			for p, row := range rows {
				if slices.ContainsFunc(row, func(c proto.Cell) bool { return c.ID == spoilt }) && !out[p] {
					all = false
				}
			}
			if all {
				time.AfterFunc(80*time.Millisecond, release) // when clients know of it
			}
		}
		for from := proto.NodeID(1); int(from) <= s.plan.Storages; from++ {
			if from == spoilt {
				continue
			}
			run, err := s.check(ctx, c, rows, from)
			if err != nil {
				return err
			}
			for p, part := range run.Parts {
				if part.State != check.Compared {
					return fmt.Errorf("partition %d: %v %v", p, part.State, part.Notes)
				}
				if part.Reference == 0 || part.Total == 0 {
					continue
				}
				if !slices.Equal(part.Nodes, []proto.NodeID{spoilt}) {
					return fmt.Errorf("partition %d: %v differ, %v was spoilt", p, part.Nodes, spoilt)
				}
				repaired = true
			}
			if run, err = c.RepairReplicas(ctx, []proto.NodeID{spoilt}); err != nil {
				return err
			}
			for p, part := range run.Parts {
				if slices.Contains(part.Nodes, spoilt) && part.Reference != 0 && part.State != check.Repaired {
					return fmt.Errorf("partition %d: %v %v", p, part.State, part.Notes)
				}
			}
		}
		rows = s.settled()
		run, err := s.check(ctx, c, rows, 0)
		if err != nil {
			return err
		}
		for p, part := range run.Parts {
			if part.State != check.Compared || part.Total != 0 {
				return fmt.Errorf("after the repair, partition %d: %v, %d differences, %v", p, part.State, part.Total, part.Notes)
			}
		}
		sum, err := c.Summary(ctx)
		if err == nil && len(sum.Warning) > 0 {
			return fmt.Errorf("after the repair: %s", sum.Summary)
		}
		return err
	})
	if err != nil {
		s.t.Errorf("%+v: round %d: %v", s.plan, round, err)
		return false
	}
	if !repaired {
		s.t.Logf("seed %d: nothing was found to be repaired", s.plan.Seed)
	}
	return true
}

// compareReplicas compares the databases of all storages.
func (s *simulation) compareReplicas() {
	rows := s.settled()
	s.mu.Lock()
	var stops []context.CancelFunc
	for _, stop := range s.nodes {
		stops = append(stops, stop)
	}
	s.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
	stored := map[int]map[string]string{} // of each partition
	for i := range s.dbs {
		db := s.reopen(i)
		cfg, err := db.Config()
		if err != nil {
			s.t.Fatal(err)
		}
		for p, row := range rows {
			if !slices.ContainsFunc(row, func(c proto.Cell) bool { return c.ID == cfg.ID }) {
				continue
			}
			list, err := contents(db, p, false)
			if err != nil {
				s.t.Fatal(err)
			}
			if first, ok := stored[p]; ok {
				if diff := cmp.Diff(first, list); diff != "" {
					s.t.Errorf("%+v: partition %d differs:\n%s", s.plan, p, diff)
				}
			} else {
				stored[p] = list
			}
		}
		db.Close()
	}
}

func checksum(s string) proto.Hash { return sha1.Sum([]byte(s)) }
