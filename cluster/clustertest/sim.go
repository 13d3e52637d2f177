package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Plan shapes a simulated run. All of it follows from the seed.
type Plan struct {
	Seed                          uint64
	Storages, Partitions, Clients int
	Objects                       int // that all clients compete for
	Steps                         int // of each client
	Delay                         time.Duration
	Lost                          bool // connections are reset, clients die
	Crashes                       bool // nodes crash and come back
	Packs                         bool
	Replicas                      int
	Masters                       int // default: 1
}

// PlanOf returns the plan of a seed.
func PlanOf(seed uint64) Plan {
	r := rand.New(rand.NewPCG(seed, 1))
	p := Plan{
		Seed:       seed,
		Storages:   1 + r.IntN(3),
		Partitions: 1 + r.IntN(4),
		Clients:    2 + r.IntN(3),
		Objects:    2 + r.IntN(5),
		Steps:      10 + r.IntN(15),
		Delay:      time.Duration(1+r.IntN(30)) * time.Millisecond,
		Lost:       r.IntN(2) == 0,
		Crashes:    r.IntN(3) == 0,
		Packs:      r.IntN(3) == 0,
	}
	p.Storages = min(p.Storages, p.Partitions)
	if p.Storages > 1 && r.IntN(3) == 0 {
		p.Replicas = 1
	}
	return p
}

// site is a cluster and where its hosts are, of several in one network.
type site struct {
	cluster string
	number  int
}

// home is the site of simulations with one cluster.
var home = site{cluster: "sim"}

func (s site) masterHost() string       { return fmt.Sprintf("10.%d.0.1", s.number) }
func (s site) adminHost() string        { return fmt.Sprintf("10.%d.0.2", s.number) }
func (s site) storageHost(i int) string { return fmt.Sprintf("10.%d.1.%d", s.number, i+1) }
func (s site) clientHost(i int) string  { return fmt.Sprintf("10.%d.2.%d", s.number, i+1) }
func (s site) standbyHost(i int) string { return fmt.Sprintf("10.%d.3.%d", s.number, i) }

const masterHost = "10.0.0.1" // of home

func storageHost(i int) string { return home.storageHost(i) }
func clientHost(i int) string  { return home.clientHost(i) }

// limit is how long, in simulated time, a run may take: far more than any run
// needs, so that one that reaches it is stuck.
const limit = 2 * time.Hour

// simulation is one run.
type simulation struct {
	site
	t      *testing.T
	plan   Plan
	log    *slog.Logger
	net    *memnet.Network
	dbs    []*backendtest.Memory
	ctx    context.Context
	cancel context.CancelFunc
	stuck  *time.Timer
	wg     sync.WaitGroup
	adapt  func(i int, cfg *storage.Config) // nil: storages are as they are

	upstream master.Upstream // that this cluster is a backup of
	monitors []string        // backups of this cluster that its admin watches

	mu      sync.Mutex
	nodes   map[string]context.CancelFunc // running nodes by host
	crashed map[string]bool               // hosts whose node may fail: it has lost its database
	seen    Observed
	lastAck tid.TID
	oids    []tid.OID
}

// Simulate runs a plan and reports every violated promise. log may be nil.
func Simulate(t *testing.T, plan Plan, log *slog.Logger) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(t, plan, log)
		defer s.close()
		if s.start() {
			s.run()
		}
	})
}

func newSimulation(t *testing.T, plan Plan, log *slog.Logger) *simulation {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &simulation{site: home, t: t, plan: plan, log: log, net: memnet.New(plan.Seed), nodes: map[string]context.CancelFunc{}, crashed: map[string]bool{}}
	s.ctx, s.cancel = context.WithCancel(t.Context())
	s.stuck = time.AfterFunc(limit, func() {
		buf := make([]byte, 1<<20)
		t.Errorf("%+v: stuck\n%s", plan, buf[:runtime.Stack(buf, true)])
		s.cancel()
	})
	return s
}

// close ends all nodes and waits for them.
func (s *simulation) close() {
	s.stuck.Stop()
	s.cancel()
	s.wg.Wait()
}

// beside returns a simulation of another cluster, in the same network and of the same test.
func (s *simulation) beside(at site, plan Plan) *simulation {
	o := &simulation{site: at, t: s.t, plan: plan, log: s.log, net: s.net, stuck: s.stuck, nodes: map[string]context.CancelFunc{}, crashed: map[string]bool{}}
	o.ctx, o.cancel = context.WithCancel(s.ctx)
	return o
}

// start starts the nodes and stores the objects that the clients compete for.
func (s *simulation) start() bool {
	s.boot()
	return s.create()
}

// boot starts the nodes.
func (s *simulation) boot() {
	hosts := []string{s.masterHost()}
	for i := range s.plan.Storages {
		hosts = append(hosts, s.storageHost(i))
	}
	for i := range s.plan.Clients + 1 {
		hosts = append(hosts, s.clientHost(i))
	}
	for _, a := range hosts {
		for _, b := range hosts {
			s.net.Delay(a, b, 0, s.plan.Delay)
		}
	}
	s.startMaster()
	for i := range s.plan.Storages {
		s.dbs = append(s.dbs, backendtest.NewMemory())
		s.startStorage(i, s.dbs[i])
	}
}

func (s *simulation) run() {
	var clients sync.WaitGroup
	for i := range s.plan.Clients {
		clients.Go(func() { s.client(i) })
	}
	done := make(chan struct{})
	s.wg.Go(func() { s.disturb(done) })
	clients.Wait()
	close(done)
	// Whatever was on its way arrives, lost nodes come back.
	time.Sleep(time.Minute)
	s.compare()
}

func (s *simulation) startMaster() {
	m, err := master.New(master.Config{
		Cluster: s.cluster, Bind: proto.Address{Host: s.masterHost(), Port: 10000},
		Masters: s.masters(), Partitions: s.plan.Partitions, Replicas: s.plan.Replicas, Autostart: s.plan.Storages, Upstream: s.upstream,
		Network: s.net.Host(s.masterHost()), Log: s.log.With("host", s.masterHost()),
	})
	if err != nil {
		s.t.Errorf("starting the master: %v", err)
		return
	}
	s.node(s.masterHost(), m.Run)
}

func (s *simulation) startStorage(i int, db *backendtest.Memory) {
	b, err := db.Open()
	if err != nil {
		s.t.Errorf("opening database %d: %v", i, err)
		return
	}
	cfg := storage.Config{
		Cluster: s.cluster, Bind: proto.Address{Host: s.storageHost(i), Port: 20000},
		Masters: bootstrap.NewMasters(s.masters()...), Backend: b,
		Network: s.net.Host(s.storageHost(i)), Log: s.log.With("host", fmt.Sprintf("storage%d", i+1)),
	}
	if s.adapt != nil {
		s.adapt(i, &cfg)
	}
	n, err := storage.New(cfg)
	if err != nil {
		s.t.Errorf("starting storage %d: %v", i, err)
		return
	}
	s.node(s.storageHost(i), n.Run)
}

// node runs a node until its host is stopped.
func (s *simulation) node(host string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(s.ctx)
	ended := make(chan struct{})
	s.mu.Lock()
	s.nodes[host] = func() { cancel(); <-ended }
	s.crashed[host] = false
	s.mu.Unlock()
	s.wg.Go(func() {
		defer close(ended)
		err := run(ctx)
		s.mu.Lock()
		crashed := s.crashed[host]
		s.mu.Unlock()
		if err != nil && ctx.Err() == nil && !crashed {
			s.t.Errorf("%+v: the node of %s failed: %v", s.plan, host, err)
		}
	})
}

func (s *simulation) masters() []proto.Address {
	list := []proto.Address{{Host: s.masterHost(), Port: 10000}}
	for i := 1; i < s.plan.Masters; i++ {
		list = append(list, proto.Address{Host: s.standbyHost(i), Port: 10000})
	}
	return list
}

func (s *simulation) open(ctx context.Context, i int) (*client.Client, error) {
	return client.Open(ctx, client.Config{
		Cluster: s.cluster, Masters: s.masters(), Network: s.net.Host(s.clientHost(i)),
		Dialer: &link.Dialer{}, Log: s.log.With("host", fmt.Sprintf("client%d", i+1)),
	})
}

// create stores the objects that the clients compete for.
func (s *simulation) create() bool {
	cl, err := s.open(s.ctx, s.plan.Clients)
	if err != nil {
		s.t.Errorf("%+v: the cluster does not start: %v", s.plan, err)
		return false
	}
	defer cl.Close()
	if s.oids, err = cl.NewOIDs(s.ctx, s.plan.Objects); err != nil {
		s.t.Errorf("%+v: %v", s.plan, err)
		return false
	}
	a := Attempt{Mark: "init"}
	for _, oid := range s.oids {
		a.Writes = append(a.Writes, Write{OID: oid, Data: fmt.Appendf(nil, "init %v", oid)})
	}
	s.commit(s.ctx, cl, &a)
	s.record(a)
	if a.Outcome != Committed {
		s.t.Errorf("%+v: the first transaction failed", s.plan)
	}
	return a.Outcome == Committed
}

// disturb loses connections and crashes nodes until done.
func (s *simulation) disturb(done <-chan struct{}) {
	r := rand.New(rand.NewPCG(s.plan.Seed, 2))
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(200+r.IntN(3000)) * time.Millisecond):
		}
		host := s.masterHost()
		i := r.IntN(s.plan.Storages + 1)
		if i < s.plan.Storages {
			host = s.storageHost(i)
		}
		if s.plan.Lost && r.IntN(2) == 0 {
			s.net.Drop(s.clientHost(r.IntN(s.plan.Clients)), host)
		}
		if s.plan.Crashes && r.IntN(3) == 0 {
			s.crash(i, time.Duration(r.IntN(2000))*time.Millisecond)
		}
	}
}

// crash ends a storage, or the master if i is the number of storages, as a loss of power
// does, and starts it again after a while.
func (s *simulation) crash(i int, back time.Duration) {
	host := s.masterHost()
	if i < s.plan.Storages {
		host = s.storageHost(i)
	}
	s.mu.Lock()
	s.crashed[host] = true
	stop := s.nodes[host]
	s.mu.Unlock()
	if i < s.plan.Storages {
		if err := s.dbs[i].Crash(); err != nil {
			s.t.Errorf("crashing database %d: %v", i, err)
		}
	}
	s.net.Crash(host)
	stop()
	time.Sleep(back)
	if i < s.plan.Storages {
		s.startStorage(i, s.dbs[i])
	} else {
		s.startMaster()
	}
}

// client is one client: it works, dies and comes back.
func (s *simulation) client(i int) {
	r := rand.New(rand.NewPCG(s.plan.Seed, uint64(100+i)))
	for life, step := 0, 0; step < s.plan.Steps && s.ctx.Err() == nil; life++ {
		ctx, cancel := context.WithCancel(s.ctx)
		if s.plan.Lost && r.IntN(2) == 0 {
			death := time.Duration(r.IntN(20000)) * time.Millisecond
			t := time.AfterFunc(death, func() {
				s.net.Crash(s.clientHost(i))
				cancel()
			})
			defer t.Stop()
		}
		cl, err := s.open(ctx, i)
		if err == nil {
			for ; step < s.plan.Steps && ctx.Err() == nil; step++ {
				s.step(ctx, r, cl, fmt.Sprintf("%d.%d.%d", i, life, step))
				time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
			}
			cl.Close()
		} else if ctx.Err() == nil {
			s.t.Errorf("%+v: client %d cannot connect: %v", s.plan, i, err)
		}
		cancel()
		time.Sleep(time.Duration(1+r.IntN(500)) * time.Millisecond)
	}
}

func (s *simulation) step(ctx context.Context, r *rand.Rand, cl *client.Client, mark string) {
	switch n := r.IntN(100); {
	case n < 20:
		s.snapshot(ctx, r, cl)
	case n < 30:
		s.undo(ctx, r, cl, mark)
	case n < 35 && s.plan.Packs:
		s.pack(ctx, r, cl)
	default:
		s.change(ctx, r, cl, mark)
	}
}

// read loads an object as of the client's present and records what it got.
func (s *simulation) read(ctx context.Context, cl *client.Client, oid tid.OID, before tid.TID) (Read, error) {
	known, err := cl.LastTID(ctx)
	if err != nil {
		return Read{}, err
	}
	r, err := cl.LoadBefore(ctx, oid, before)
	read := Read{OID: oid, Before: before, Serial: r.Serial, Next: r.Next, Data: r.Data, Known: known}
	var gone *client.ObjectError
	switch {
	case err == nil:
	case errors.Is(err, client.ErrDeleted) && errors.As(err, &gone):
		read.Serial = gone.TID
	case errors.Is(err, txn.ErrNotFound), errors.Is(err, txn.ErrNoSuchObject):
	default:
		return read, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen.Reads = append(s.seen.Reads, read)
	return read, nil
}

func (s *simulation) snapshot(ctx context.Context, r *rand.Rand, cl *client.Client) {
	last, err := cl.LastTID(ctx)
	if err != nil {
		return
	}
	for range 1 + r.IntN(4) {
		if _, err := s.read(ctx, cl, s.oids[r.IntN(len(s.oids))], last+1); err != nil {
			return
		}
		time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
	}
}

func (s *simulation) change(ctx context.Context, r *rand.Rand, cl *client.Client, mark string) {
	a := s.attempt(mark)
	last, err := cl.LastTID(ctx)
	if err != nil {
		return
	}
	chosen := r.Perm(len(s.oids))[:1+r.IntN(min(3, len(s.oids)))]
	for i, n := range chosen {
		read, err := s.read(ctx, cl, s.oids[n], last+1)
		if err != nil {
			return
		}
		switch {
		case i > 0 && r.IntN(4) == 0:
			a.Checks = append(a.Checks, Check{read.OID, read.Serial})
		default:
			a.Writes = append(a.Writes, Write{OID: read.OID, Base: read.Serial, Data: fmt.Appendf(nil, "%s %v", mark, read.OID)})
		}
	}
	if r.IntN(5) == 0 {
		if oids, err := cl.NewOIDs(ctx, 1); err == nil {
			a.Writes = append(a.Writes, Write{OID: oids[0], Data: []byte(mark)})
		}
	}
	s.commit(ctx, cl, &a)
	s.record(a)
}

// commit tries a transaction and says how it ended.
func (s *simulation) commit(ctx context.Context, cl *client.Client, a *Attempt) {
	s.transact(ctx, cl, a, func(t *client.Txn) error {
		for i, w := range a.Writes {
			if err := t.Store(ctx, w.OID, w.Base, w.Data); err != nil {
				return err
			}
			if i%2 == 0 { // some locks are taken one by one
				t.Flush()
			}
		}
		for _, c := range a.Checks {
			if err := t.CheckCurrent(ctx, c.OID, c.Serial); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *simulation) transact(ctx context.Context, cl *client.Client, a *Attempt, fill func(*client.Txn) error) {
	a.Outcome = Aborted
	t, err := cl.Begin(ctx, client.BeginOptions{Description: []byte(a.Mark)})
	if err != nil {
		return
	}
	if err = fill(t); err == nil {
		_, err = t.Vote(ctx)
	}
	if err == nil {
		a.TID, err = t.Finish(ctx, nil)
		switch {
		case err == nil:
			a.Outcome = Committed
			return
		case ctx.Err() != nil || errors.Is(err, txn.ErrUnknownOutcome):
			a.Outcome = Unknown
		}
	}
	t.Abort(context.WithoutCancel(ctx)) // how it ended is already known
}

func (s *simulation) undo(ctx context.Context, r *rand.Rand, cl *client.Client, mark string) {
	s.mu.Lock()
	var candidates []tid.TID
	for _, a := range s.seen.Attempts {
		if a.Outcome == Committed && a.Mark != "init" && len(a.Writes)+int(a.Undoes) > 0 {
			candidates = append(candidates, a.TID)
		}
	}
	s.mu.Unlock()
	if len(candidates) == 0 {
		return
	}
	// Recent ones have more often not been overwritten.
	slices.Sort(candidates)
	s.undoOf(ctx, cl, mark, candidates[max(0, len(candidates)-1-r.IntN(4))])
}

func (s *simulation) undoOf(ctx context.Context, cl *client.Client, mark string, undone tid.TID) {
	a := s.attempt(mark)
	a.Undoes = undone
	s.transact(ctx, cl, &a, func(t *client.Txn) error {
		_, err := t.Undo(ctx, a.Undoes)
		return err
	})
	s.record(a)
}

func (s *simulation) pack(ctx context.Context, r *rand.Rand, cl *client.Client) {
	last, err := cl.LastTID(ctx)
	if err != nil {
		return
	}
	upTo := last.Add(-int64(r.IntN(1<<32)) / 4)
	s.mu.Lock()
	s.seen.PackedUpTo = max(s.seen.PackedUpTo, upTo)
	s.mu.Unlock()
	if id, err := cl.Pack(ctx, upTo); err == nil && id != 0 && r.IntN(2) == 0 {
		cl.WaitForPack(ctx, id) // an error means a lost connection, no wrong pack
	}
}

func (s *simulation) attempt(mark string) Attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Attempt{Mark: mark, After: s.lastAck}
}

func (s *simulation) record(a Attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen.Attempts = append(s.seen.Attempts, a)
	if a.Outcome == Committed {
		s.lastAck = max(s.lastAck, a.TID)
	}
}

// compare reads the whole database and compares it with what clients saw.
func (s *simulation) compare() {
	if s.ctx.Err() != nil {
		return
	}
	cl, err := s.open(s.ctx, s.plan.Clients)
	if err != nil {
		s.t.Errorf("%+v: the cluster does not serve any more: %v", s.plan, err)
		return
	}
	defer cl.Close()
	db, err := Dump(s.ctx, cl)
	if err != nil {
		s.t.Errorf("%+v: reading the database: %v", s.plan, err)
		return
	}
	for _, err := range Verify(s.seen, db) {
		s.t.Errorf("%+v: %v", s.plan, err)
	}
	committed := 0
	for _, a := range s.seen.Attempts {
		if a.Outcome == Committed {
			committed++
		}
	}
	s.t.Logf("seed %d: %d of %d transactions committed, %d reads, %d stored", s.plan.Seed, committed, len(s.seen.Attempts), len(s.seen.Reads), len(db))
	if committed == 1 && !s.plan.Lost && !s.plan.Crashes {
		s.t.Errorf("%+v: nothing was committed", s.plan)
	}
	if s.t.Failed() {
		var b bytes.Buffer
		for _, tx := range db {
			fmt.Fprintf(&b, "%v %s", tx.TID, tx.Mark)
			for oid, data := range tx.Records {
				fmt.Fprintf(&b, " %v=%q", oid, data)
			}
			b.WriteByte('\n')
		}
		s.t.Logf("database:\n%s", &b)
	}
}
