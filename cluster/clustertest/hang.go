package clustertest

import (
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
)

// HangPlanOf returns the plan of a seed for [SimulateHangs].
func HangPlanOf(seed uint64) Plan {
	r := rand.New(rand.NewPCG(seed, 3))
	p := Plan{
		Seed:       seed,
		Masters:    1 + r.IntN(3),
		Storages:   2 + r.IntN(3),
		Partitions: 2 + r.IntN(4),
		Replicas:   1,
		Clients:    2 + r.IntN(2),
		Objects:    2 + r.IntN(5),
		Steps:      60 + r.IntN(60),
		Delay:      time.Duration(1+r.IntN(20)) * time.Millisecond,
		Packs:      r.IntN(4) == 0,
	}
	if r.IntN(5) == 0 {
		p.Replicas = 0
	}
	p.Storages = min(p.Storages, p.Partitions)
	return p
}

// SimulateHangs runs a plan in which hosts hang or are cut off without anything
// being reset, or vanish and come back before it is noticed, and reports every
// violated promise. log may be nil.
func SimulateHangs(t *testing.T, plan Plan, log *slog.Logger) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(t, plan, log)
		defer s.close()
		for i := 1; i < plan.Masters; i++ {
			s.startStandby(i)
		}
		if !s.start() {
			return
		}
		clients := make(chan struct{})
		for i := range plan.Clients {
			s.wg.Go(func() { s.client(i); clients <- struct{}{} })
		}
		done := make(chan struct{})
		s.wg.Go(func() { s.hangs(done) })
		for range plan.Clients {
			<-clients
		}
		close(done)
		// What was given up comes back.
		time.Sleep(2 * time.Minute)
		s.compare()
	})
}

func standbyHost(i int) string { return home.standbyHost(i) }

// startStandby starts one more master.
func (s *simulation) startStandby(i int) { s.startMasterAt(s.standbyHost(i)) }

func (s *simulation) startMasterAt(host string) {
	if host == s.masterHost() {
		s.startMaster()
		return
	}
	for _, a := range append(s.hosts(), host) {
		s.net.Delay(a, host, 0, s.plan.Delay)
		s.net.Delay(host, a, 0, s.plan.Delay)
	}
	m, err := master.New(master.Config{
		Cluster: s.cluster, Bind: proto.Address{Host: host, Port: 10000}, Masters: s.masters(),
		Partitions: s.plan.Partitions, Replicas: s.plan.Replicas, Autostart: s.plan.Storages, Upstream: s.upstream,
		Network: s.net.Host(host), Log: s.log.With("host", host),
	})
	if err != nil {
		s.t.Errorf("starting a master: %v", err)
		return
	}
	s.node(host, m.Run)
}

// hosts returns all hosts: masters, storages, clients.
func (s *simulation) hosts() []string {
	var list []string
	for _, a := range s.masters() {
		list = append(list, a.Host)
	}
	for i := range s.plan.Storages {
		list = append(list, s.storageHost(i))
	}
	for i := range s.plan.Clients + 1 {
		list = append(list, s.clientHost(i))
	}
	return list
}

// hold lets nothing pass between a host and some others for a while.
func (s *simulation) hold(host string, others []string, d time.Duration) {
	for _, h := range others {
		if h != host {
			s.net.Hold(host, h)
		}
	}
	time.Sleep(d)
	for _, h := range others {
		if h != host {
			s.net.Release(host, h)
		}
	}
}

// hangs makes hosts hang until done. One of the last faults is over before the next
// but one begins.
func (s *simulation) hangs(done <-chan struct{}) {
	r := rand.New(rand.NewPCG(s.plan.Seed, 4))
	turn := make(chan struct{}, 2)
	hosts := s.hosts()
	defer func() {
		for range cap(turn) {
			turn <- struct{}{}
		}
	}()
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(r.IntN(3000)) * time.Millisecond):
		}
		host := hosts[r.IntN(len(hosts))]
		// Shorter than what is noticed, about as long, longer.
		d := time.Duration(r.IntN([]int{5000, 12000, 60000}[r.IntN(3)])) * time.Millisecond
		kind, other := r.IntN(4), hosts[r.IntN(len(hosts))]
		back := time.Duration(r.IntN(3000)) * time.Millisecond
		turn <- struct{}{}
		s.wg.Go(func() {
			defer func() { <-turn }()
			i := 0
			for i < len(s.dbs) && s.storageHost(i) != host {
				i++
			}
			isStorage := i < len(s.dbs)
			isMaster := slices.ContainsFunc(s.masters(), func(a proto.Address) bool { return a.Host == host })
			switch {
			case kind == 0:
				s.log.Info("CUT", "host", host, "other", other, "for", d)
				s.hold(host, []string{other}, d)
			case kind == 1 && (isStorage || isMaster):
				s.log.Info("VANISH", "host", host, "back", back)
				s.vanish(host, i, back)
			default:
				s.log.Info("HANG", "host", host, "for", d)
				s.hold(host, hosts, d)
			}
		})
	}
}

// vanish ends a node as a loss of power does, and starts it again. storage is the
// number of its database, if it is a storage.
func (s *simulation) vanish(host string, storage int, back time.Duration) {
	s.mu.Lock()
	stop := s.nodes[host]
	delete(s.nodes, host)
	s.mu.Unlock()
	if stop == nil || s.ctx.Err() != nil {
		return // it is away already
	}
	s.net.Vanish(host)
	stop()
	isStorage := storage < len(s.dbs)
	if isStorage {
		if err := s.dbs[storage].Crash(); err != nil {
			s.t.Errorf("crashing a database: %v", err)
		}
	}
	time.Sleep(back)
	if s.ctx.Err() != nil {
		return
	}
	if isStorage {
		s.startStorage(storage, s.dbs[storage])
	} else {
		s.startMasterAt(host)
	}
}
