package clustertest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var followings = flag.Int("followings", 30, "simulated runs of TestFollowing")

// FollowPlan shapes a run with a backup cluster.
type FollowPlan struct {
	Plan      // of the upstream cluster
	Backup    Plan
	FromStart bool // the cluster is a backup from the beginning
	Rounds    int
	Faults    bool // links are cut, nodes crash, on both sides
	Leaves    bool // the operator leaves backup mode and comes back to it
	Truncates bool // the upstream cluster is truncated
	Fetch     int  // records that storages of the backup ask for at a time
	Readers   int
	Deletions bool
	Packed    bool // the upstream cluster is packed
	Watched   bool // its admin monitors the backup
}

// FollowPlanOf returns the plan of a seed for [SimulateFollowing].
func FollowPlanOf(seed uint64) FollowPlan {
	r := rand.New(rand.NewPCG(seed, 5))
	np := 1 + r.IntN(4)
	side := func() Plan {
		p := Plan{Seed: seed, Partitions: np, Storages: 1 + r.IntN(3), Clients: 2 + r.IntN(2), Objects: 3 + r.IntN(4),
			Steps: 8 + r.IntN(10), Delay: time.Duration(1+r.IntN(30)) * time.Millisecond}
		if p.Storages > 1 && r.IntN(2) == 0 {
			p.Replicas = 1
		}
		p.Storages = min(p.Storages, np+p.Replicas)
		return p
	}
	p := FollowPlan{Plan: side(), Backup: side(), FromStart: r.IntN(2) == 0, Rounds: 1 + r.IntN(3), Faults: r.IntN(3) > 0,
		Leaves: r.IntN(3) == 0, Truncates: r.IntN(3) == 0, Fetch: []int{1, 2, 5, 1000}[r.IntN(4)], Readers: 1 + r.IntN(2)}
	p.Deletions = r.IntN(2) == 0
	p.Packed = r.IntN(2) == 0
	return p
}

// following is a run with a backup cluster.
type following struct {
	t        *testing.T
	plan     FollowPlan
	up, down *simulation
	writers  calm
	readers  calm
	faults   calm

	mu      sync.Mutex
	history past          // of the upstream cluster, as far as it was looked at
	reading chan struct{} // full while history is read: a mutex would hold the simulated time
	looked  tid.TID
	packs   []followPack // in the order of their IDs
	viewed  int64        // operations at the last view that was compared
	views   []view       // that were not compared yet
	marks   map[tid.TID]string
	starts  operations // of the backup cluster
	read    int
}

// operations counts how often the backup cluster has begun to recover, and its masters, and notes packs. It is a handler of
// the log, so that no state is missed.
type operations struct {
	slog.Handler
	count, masters *atomic.Int64
	packs          *atomic.Uint64 // up to which order packs may have been executed
	down           bool
}

func (o operations) Enabled(context.Context, slog.Level) bool { return true }

func (o operations) WithAttrs(list []slog.Attr) slog.Handler {
	for _, a := range list {
		o.down = o.down || a.Key == "host" && a.Value.String() == site{number: 1}.masterHost()
	}
	o.Handler = o.Handler.WithAttrs(list)
	return o
}

func (o operations) Handle(ctx context.Context, r slog.Record) error {
	if o.down && r.Message == "cluster state" {
		r.Attrs(func(a slog.Attr) bool {
			if a.Value.String() == proto.Recovering.String() {
				o.count.Add(1)
			}
			return true
		})
	}
	if o.down && r.Message == "playing primary" {
		o.masters.Add(1)
	}
	if o.down && strings.HasPrefix(r.Message, "packs may be executed") {
		r.Attrs(func(a slog.Attr) bool {
			if t, err := tid.Parse(a.Value.String()); err == nil {
				o.packs.Store(max(o.packs.Load(), uint64(t)))
			}
			return true
		})
	}
	if !o.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return o.Handler.Handle(ctx, r)
}

// followPack is an order to pack the upstream cluster.
type followPack struct {
	id   tid.TID // Zero: not known
	time tid.TID
}

// packed returns the greatest time of the packs that may have been executed in a cluster that
// has the transactions up to a TID.
func (f *following) packed(upTo tid.TID) (t tid.TID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.packs {
		if p.id <= upTo {
			t = max(t, p.time)
		}
	}
	return t
}

// view is what a client of the backup read as the state at a TID.
type view struct {
	client string
	starts int64 // of the backup cluster until then
	at     tid.TID
	packed tid.TID // of the packs that the backup may have executed until the end
	data   map[tid.OID][]byte
	whole  []Stored // all transactions up to there, if they were read
}

// SimulateFollowing runs a plan and reports whatever a client of the backup saw and the
// upstream cluster had not, and whatever differs at the end. log may be nil.
func SimulateFollowing(t *testing.T, plan FollowPlan, log *slog.Logger) {
	simulatePair(t, plan, log, (*following).run)
}

// simulatePair runs test with an upstream cluster and its backup.
func simulatePair(t *testing.T, plan FollowPlan, log *slog.Logger, test func(f *following)) {
	synctest.Test(t, func(t *testing.T) {
		f := &following{t: t, plan: plan, writers: make(calm, plan.Clients), readers: make(calm, plan.Readers+1), faults: make(calm, 1), marks: map[tid.TID]string{}, reading: make(chan struct{}, 1)}
		if log == nil {
			log = slog.New(slog.DiscardHandler)
		}
		f.starts = operations{log.Handler(), new(atomic.Int64), new(atomic.Int64), new(atomic.Uint64), false}
		f.up = newSimulation(t, plan.Plan, slog.New(f.starts))
		defer f.up.close()
		f.up.cluster = "up"
		if plan.Watched {
			f.up.monitors = []string{"down"}
		}
		f.down = f.up.beside(site{"down", 1}, plan.Backup)
		defer f.down.close()
		f.down.upstream = master.Upstream{Cluster: "up", Masters: f.up.masters(), Backup: plan.FromStart}
		f.down.adapt = func(_ int, cfg *storage.Config) { cfg.FetchCount = plan.Fetch }
		for _, a := range f.up.hosts() {
			for _, b := range f.down.hosts() {
				f.up.net.Delay(a, b, 0, plan.Delay)
				f.up.net.Delay(b, a, 0, plan.Delay)
			}
		}
		for i := 1; i < plan.Masters; i++ {
			f.up.startStandby(i)
		}
		if !f.up.start() {
			return
		}
		f.up.startAdmin()
		f.down.boot()
		f.down.startAdmin()
		if !plan.FromStart {
			f.await(f.down, proto.Running)
			f.order(f.down, proto.StartingBackup)
		}
		test(f)
	})
}

func (f *following) run() {
	r := rand.New(rand.NewPCG(f.plan.Seed, 6))
	for round := 0; round < f.plan.Rounds && f.ok(); round++ {
		f.round(r, round)
		if f.plan.Truncates && r.IntN(2) == 0 && f.ok() {
			f.truncate(r)
		}
	}
	f.caughtUp()
	f.look()
	f.checkUpstream()
	f.leave()
	if f.ok() {
		time.Sleep(5 * time.Minute) // packs end, deletions that they have kept are dropped
		f.down.compareReplicas()
	}
	f.t.Logf("seed %d: %d transactions, %d views", f.plan.Seed, len(f.history.tids), f.read)
}

func (f *following) ok() bool { return f.up.ctx.Err() == nil && !f.t.Failed() }

// round lets clients of both clusters work, and disturbs them.
func (f *following) round(r *rand.Rand, round int) {
	done := make(chan struct{})
	var writers, others sync.WaitGroup
	for i := range f.plan.Clients {
		writers.Go(func() { f.writer(round, i) })
	}
	for i := range f.plan.Readers {
		others.Go(func() { f.reader(done, round, i) })
	}
	if f.plan.Faults {
		others.Go(func() { f.disturb(done, round) })
	}
	others.Go(func() { f.monitor(done) })
	others.Go(func() { f.checker(done, round) })
	if f.plan.Leaves && r.IntN(2) == 0 {
		before, after := time.Duration(r.IntN(15000))*time.Millisecond, time.Duration(r.IntN(5000))*time.Millisecond
		others.Go(func() {
			time.Sleep(before)
			f.leave()
			time.Sleep(after)
			f.order(f.down, proto.StartingBackup)
			f.readers.end()
		})
	}
	writers.Wait()
	time.Sleep(time.Duration(r.IntN(5000)) * time.Millisecond)
	close(done)
	others.Wait()
	time.Sleep(time.Minute) // connections are made again
	f.look()
}

// writer is a client of the upstream cluster.
func (f *following) writer(round, i int) {
	s := f.up
	r := rand.New(rand.NewPCG(f.plan.Seed, uint64(1000*round+100+i)))
	var cl *client.Client
	for step := 0; step < f.plan.Steps && f.ok(); step++ {
		f.writers <- struct{}{}
		if cl == nil {
			var err error
			if cl, err = s.open(s.ctx, i); err != nil {
				<-f.writers
				return
			}
		}
		switch mark, n := fmt.Sprintf("%d.%d.%d", round, i, step), r.IntN(100); {
		case f.plan.Deletions && n < 15:
			f.delete(r, cl, mark)
		case f.plan.Packed && n < 25:
			f.pack(r, cl)
		default:
			s.step(s.ctx, r, cl, mark)
		}
		if r.IntN(20) == 0 {
			cl.Close()
			cl = nil
		}
		<-f.writers
		time.Sleep(time.Duration(r.IntN(1000)) * time.Millisecond)
	}
	if cl != nil {
		cl.Close()
	}
}

// delete deletes an object upstream.
func (f *following) delete(r *rand.Rand, cl *client.Client, mark string) {
	s := f.up
	a := s.attempt(mark)
	last, err := cl.LastTID(s.ctx)
	if err != nil {
		return
	}
	read, err := s.read(s.ctx, cl, s.oids[r.IntN(len(s.oids))], last+1)
	if err != nil || read.Data == nil {
		return
	}
	a.Writes = append(a.Writes, Write{OID: read.OID, Base: read.Serial})
	s.commit(s.ctx, cl, &a)
	s.record(a)
}

// pack packs the upstream cluster, at a time up to which its history was read.
func (f *following) pack(r *rand.Rand, cl *client.Client) {
	if f.readHistory() != nil {
		return
	}
	at := f.looked.Add(-int64(r.IntN(1<<32)) / 20)
	if r.IntN(3) == 0 {
		at = f.looked
	}
	f.mu.Lock()
	i := len(f.packs)
	f.packs = append(f.packs, followPack{time: at})
	f.mu.Unlock()
	f.up.mu.Lock()
	f.up.seen.PackedUpTo = max(f.up.seen.PackedUpTo, at)
	f.up.mu.Unlock()
	var id tid.TID
	var err error
	if r.IntN(4) == 0 {
		id, err = cl.PackObjects(f.up.ctx, at, f.up.oids[:1+r.IntN(len(f.up.oids))])
	} else {
		id, err = cl.Pack(f.up.ctx, at)
	}
	f.up.log.Info("PACKED", "time", at, "id", id, "err", err)
	if err == nil {
		f.mu.Lock()
		f.packs[i].id = id
		f.mu.Unlock()
	}
}

func (f *following) open(i int) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(f.down.ctx, time.Minute)
	defer cancel()
	return client.Open(ctx, client.Config{
		Cluster: f.down.cluster, Masters: f.down.masters(), Network: f.down.net.Host(f.down.clientHost(i)), ReadOnly: true,
		Dialer: &link.Dialer{}, Log: f.down.log.With("host", fmt.Sprintf("reader%d", i+1)),
	})
}

// reader is a client of the backup cluster.
func (f *following) reader(done <-chan struct{}, round, i int) {
	r := rand.New(rand.NewPCG(f.plan.Seed, uint64(1000*round+200+i)))
	for life := 0; f.ok(); life++ {
		select {
		case <-done:
			return
		case f.readers <- struct{}{}:
		}
		if cl, err := f.open(i); err == nil {
			for range 1 + r.IntN(10) {
				f.view(r, cl, fmt.Sprint("reader ", i))
				time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
			}
			cl.Close()
		}
		<-f.readers
		time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
	}
}

// monitor asks the backup again and again up to where it can be read: while it follows,
// that does not go back.
func (f *following) monitor(done <-chan struct{}) {
	s := f.down
	var told tid.TID
	var starts int64
	for f.ok() {
		f.readers <- struct{}{}
		ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
		conn, err := link.Dial(ctx, s.masters()[0], link.Config{Network: s.net.Host(s.adminHost())})
		if err == nil {
			_, err = conn.Call(ctx, &proto.RequestIdentification{Type: proto.Client, Cluster: s.cluster, Extra: map[string]proto.Value{"read_only": true}})
		}
		for err == nil {
			var a proto.Packet
			before := f.starts.count.Load()
			a, err = conn.Call(ctx, &proto.AskLastTransaction{})
			if err != nil || f.starts.count.Load() != before {
				continue
			}
			t := a.(*proto.AnswerLastTransaction).TID
			if before == starts && t < told {
				f.t.Errorf("seed %d: the backup can be read up to %v, after it could be read up to %v", f.plan.Seed, t, told)
			}
			told, starts = t, before
			select {
			case <-done:
				err = context.Canceled
			case <-time.After(7 * time.Millisecond):
			}
		}
		cancel()
		if conn != nil {
			conn.Abort()
			<-conn.Done()
		}
		<-f.readers
		select {
		case <-done:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// view reads some objects as they are at the end of what the client knows.
func (f *following) view(r *rand.Rand, cl *client.Client, name string) {
	var v view
	at, err := cl.LastTID(f.down.ctx)
	if err != nil {
		return
	}
	defer func() {
		if err == nil {
			v.packed = f.packed(tid.TID(f.starts.packs.Load()))
			f.mu.Lock()
			f.views = append(f.views, v)
			f.mu.Unlock()
		}
	}()
	v = view{client: name, starts: f.starts.count.Load(), at: at, data: map[tid.OID][]byte{}}
	if r.IntN(10) == 0 {
		if v.whole, err = dumpUpTo(f.down.ctx, cl, at); err != nil {
			return
		}
	}
	f.mu.Lock()
	oids := slices.Concat(f.up.oids, slices.Sorted(maps.Keys(f.history.data)))
	f.mu.Unlock()
	for range 1 + r.IntN(4) {
		oid := oids[r.IntN(len(oids))]
		if v.data[oid], err = load(f.down.ctx, cl, oid, at); err != nil {
			return
		}
		time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
	}
}

// load returns an object as it is at a TID, nil if it is not there.
func load(ctx context.Context, cl *client.Client, oid tid.OID, at tid.TID) ([]byte, error) {
	r, err := cl.LoadBefore(ctx, oid, at+1)
	if errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return slices.Clone(r.Data), nil
}

// look reads what the upstream cluster has committed since the last look, and compares
// what clients of the backup saw with it.
func (f *following) look() {
	f.mu.Lock()
	views := f.views
	f.views = nil
	f.mu.Unlock()
	if !f.until("the history upstream is read", func() (bool, error) { err := f.readHistory(); return err == nil, err }) {
		return
	}
	for _, v := range views {
		f.read++
		if v.starts != f.viewed {
			f.viewed = v.starts
			f.history.restart()
		}
		if v.at < v.packed {
			v.data = nil // it may be gone by now
		}
		err := f.history.seen(v.client, v.at, v.data)
		if err == nil && v.whole != nil && v.at >= v.packed {
			err = f.prefix(v.whole, v.at, true)
		}
		if err != nil {
			f.t.Errorf("seed %d: %v", f.plan.Seed, err)
		}
	}
}

// readHistory goes on reading what the upstream cluster has.
func (f *following) readHistory() error {
	f.reading <- struct{}{}
	defer func() { <-f.reading }()
	ctx, cancel := context.WithTimeout(f.up.ctx, time.Minute)
	defer cancel()
	cl, err := f.up.open(ctx, f.plan.Clients)
	if err != nil {
		return err
	}
	defer cl.Close()
	last, err := cl.LastTID(ctx)
	if err != nil {
		return err
	}
	for t, err := range cl.Transactions(ctx, f.looked, last) {
		if err != nil {
			return err
		}
		writes := map[tid.OID][]byte{}
		for rec, err := range t.Records {
			if err != nil {
				return err
			}
			writes[rec.OID] = slices.Clone(rec.Data)
		}
		f.mu.Lock()
		f.history.commit(t.TID, writes)
		f.marks[t.TID] = string(t.Description)
		f.mu.Unlock()
		f.looked = t.TID
	}
	return nil
}

// prefix compares transactions of the backup with those of the upstream cluster up to a TID.
// What packs up to there may have removed, may be missing; packing: also what one has removed
// while the transactions were read, with a deletion.
func (f *following) prefix(db []Stored, upTo tid.TID, packing bool) error {
	packed := min(f.packed(tid.Max), upTo)
	f.mu.Lock()
	defer f.mu.Unlock()
	has := map[tid.TID]*Stored{}
	records := map[tid.OID]map[tid.TID]bool{}
	for i := range db {
		has[db[i].TID] = &db[i]
		for oid, data := range db[i].Records {
			if records[oid] == nil {
				records[oid] = map[tid.TID]bool{}
			}
			records[oid][db[i].TID] = true
			k := slices.IndexFunc(f.history.data[oid], func(r pastRevision) bool { return r.at == db[i].TID })
			if k < 0 && data == nil && f.deletedByPack(oid, db[i].TID) {
				continue
			}
			if k < 0 {
				return fmt.Errorf("the backup has %v in %v (%q), upstream has not", oid, db[i].TID, db[i].Mark)
			}
			if want := f.history.data[oid][k].data; !bytes.Equal(data, want) || (data == nil) != (want == nil) {
				return fmt.Errorf("the backup has %v in %v (%q) as %q, upstream it is %q", oid, db[i].TID, db[i].Mark, data, want)
			}
		}
	}
	for _, t := range f.history.tids {
		switch s := has[t]; {
		case t > upTo:
		case s == nil:
			return fmt.Errorf("the backup lacks %v (%q) of those up to %v", t, f.marks[t], upTo)
		case s.Mark != f.marks[t]:
			return fmt.Errorf("the backup has %v as %q, upstream it is %q", t, s.Mark, f.marks[t])
		default:
			delete(has, t)
		}
	}
	for t, s := range has {
		return fmt.Errorf("the backup has %v (%q), which is not one of those up to %v", t, s.Mark, upTo)
	}
	for oid, list := range f.history.data {
		var last pastRevision // up to the packs
		before := false       // something is there
		for _, rev := range list {
			before = before || records[oid][rev.at]
			if rev.at <= packed {
				last = rev
			} else if rev.data == nil && !before && len(f.packs) > 0 {
				// The deletion of something that packs have removed goes as well.
			} else if rev.at <= upTo && !records[oid][rev.at] {
				return fmt.Errorf("the backup lacks %v of %v (%q), of those up to %v", oid, rev.at, f.marks[rev.at], upTo)
			}
		}
		if last.at == 0 || records[oid][last.at] {
			continue
		}
		if last.data != nil {
			return fmt.Errorf("the backup lacks %v of %v (%q), the last one up to the packs at %v", oid, last.at, f.marks[last.at], packed)
		}
		for _, rev := range list {
			if !packing && rev.at < last.at && records[oid][rev.at] && rev.data != nil {
				return fmt.Errorf("the backup has %v of %v (%q), but not its deletion in %v", oid, rev.at, f.marks[rev.at], last.at)
			}
		}
	}
	return nil
}

// deletedByPack reports whether a deletion may be that of an object which was deleted and packed
// upstream: the backup has it at the time of the pack. A transaction of that id that has only
// checked the object then seems to have deleted it.
func (f *following) deletedByPack(oid tid.OID, at tid.TID) bool {
	if !slices.ContainsFunc(f.packs, func(p followPack) bool { return p.time == at }) {
		return false
	}
	var last pastRevision
	for _, rev := range f.history.data[oid] {
		if rev.at <= at {
			last = rev
		}
	}
	return last.at != 0 && last.data == nil
}

// disturb cuts links and crashes nodes until done.
func (f *following) disturb(done <-chan struct{}, round int) {
	r := rand.New(rand.NewPCG(f.plan.Seed, uint64(1000*round+300)))
	net := f.up.net
	hosts := slices.Concat(f.up.hosts(), f.down.hosts())
	for f.ok() {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(200+r.IntN(3000)) * time.Millisecond):
		}
		a, b := hosts[r.IntN(len(hosts))], hosts[r.IntN(len(hosts))]
		d := time.Duration(r.IntN([]int{1000, 15000}[r.IntN(2)])) * time.Millisecond
		s := []*simulation{f.up, f.down}[r.IntN(2)]
		switch i := r.IntN(s.plan.Storages + 1); r.IntN(4) {
		case 0:
			f.up.log.Info("DROP", "a", a, "b", b)
			net.Drop(a, b)
		case 1:
			f.up.log.Info("CUT", "a", a, "b", b, "for", d)
			net.Cut(a, b)
			time.Sleep(d)
			net.Heal(a, b)
		case 2:
			f.up.log.Info("CRASH", "cluster", s.cluster, "node", i)
			s.crash(i, d/8)
		case 3:
			// From one cluster to the other.
			a, b := f.up.masterHost(), f.down.masterHost()
			if r.IntN(2) == 0 {
				a, b = f.up.storageHost(r.IntN(f.plan.Storages)), f.down.storageHost(r.IntN(f.plan.Backup.Storages))
			}
			f.up.log.Info("HOLD", "a", a, "b", b, "for", d)
			net.Hold(a, b)
			time.Sleep(d)
			net.Release(a, b)
		}
	}
}

// state returns the state of a cluster, and where its database is.
func (f *following) state(s *simulation) (state proto.ClusterState, ids *ctl.LastIDs, err error) {
	err = s.operate(func(ctx context.Context, c *ctl.Client) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if state, err = c.ClusterState(ctx); err != nil {
			return err
		}
		ids, err = c.LastIDs(ctx)
		return err
	})
	return state, ids, err
}

// until waits until something holds.
func (f *following) until(what string, holds func() (bool, error)) bool {
	var last error
	for begin := time.Now(); f.ok(); time.Sleep(100 * time.Millisecond) {
		ok, err := holds()
		if ok {
			return true
		}
		if err != nil {
			last = err
		}
		if time.Since(begin) > 10*time.Minute {
			f.t.Errorf("seed %d: %s: not in 10 minutes; last error: %v", f.plan.Seed, what, last)
		}
	}
	return false
}

func (f *following) await(s *simulation, want proto.ClusterState) {
	f.until(fmt.Sprintf("cluster %s becomes %v", s.cluster, want), func() (bool, error) {
		state, _, err := f.state(s)
		return err == nil && state == want, err
	})
}

// order gives an order of an operator until it is accepted.
func (f *following) order(s *simulation, want proto.ClusterState) {
	f.until(fmt.Sprintf("cluster %s accepts %v", s.cluster, want), func() (bool, error) {
		err := s.operate(func(ctx context.Context, c *ctl.Client) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			_, err := c.SetClusterState(ctx, want)
			return err
		})
		return err == nil, err
	})
}

// caughtUp waits until the backup has everything.
func (f *following) caughtUp() {
	f.until("the backup catches up", func() (bool, error) {
		_, up, err := f.state(f.up)
		if err != nil {
			return false, err
		}
		state, down, err := f.state(f.down)
		if err != nil {
			return false, err
		}
		return state == proto.BackingUp && down.BackupTID.V == up.LastTID.V, fmt.Errorf("%v %+v, upstream %+v", state, *down, *up)
	})
}

// leave leaves backup mode, and compares the database with the history of the upstream
// cluster. Readers are held from then on. A master that is lost may take the order with it, which is
// given again then; whatever else is lost meanwhile, the cluster leaves. If it has reached some
// storages only, the cluster waits for an explicit start, which repeats it.
func (f *following) leave() {
	f.readers.begin()
	ordered := int64(-1) // to which master
	waiting := time.Now()
	f.until(fmt.Sprintf("cluster %s leaves backup mode", f.down.cluster), func() (bool, error) {
		master := f.starts.masters.Load()
		state, _, err := f.state(f.down)
		switch {
		case err != nil || state != proto.Recovering:
			waiting = time.Now()
		case time.Since(waiting) > 30*time.Second:
			err = f.down.operate(func(ctx context.Context, c *ctl.Client) error {
				ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				_, err := c.SetClusterState(ctx, proto.Verifying)
				return err
			})
			return false, err
		}
		if err != nil || state == proto.Running || ordered == master || state != proto.StartingBackup && state != proto.BackingUp {
			return err == nil && state == proto.Running, err
		}
		err = f.down.operate(func(ctx context.Context, c *ctl.Client) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			_, err := c.SetClusterState(ctx, proto.StoppingBackup)
			return err
		})
		if err == nil {
			ordered = master
		}
		return false, err
	})
	f.compare()
}

// compare compares the database of the backup, which was left.
func (f *following) compare() {
	if !f.ok() {
		return
	}
	if f.plan.Packed {
		time.Sleep(10 * time.Second) // the packs that were held back are executed
	}
	var db []Stored
	var last tid.TID
	f.until("the database of the former backup is read", func() (bool, error) {
		cl, err := f.open(f.plan.Readers)
		if err != nil {
			return false, err
		}
		defer cl.Close()
		if last, err = cl.LastTID(f.down.ctx); err != nil {
			return false, err
		}
		db, err = Dump(f.down.ctx, cl)
		return err == nil, err
	})
	f.look()
	if !f.ok() {
		return
	}
	if last < f.history.most {
		f.t.Errorf("seed %d: after leaving, the last transaction is %v, but clients were told %v", f.plan.Seed, last, f.history.most)
	}
	if err := f.prefix(db, last, false); err != nil {
		f.t.Errorf("seed %d: after leaving: %v", f.plan.Seed, err)
	}
	f.starts.packs.Store(max(f.starts.packs.Load(), uint64(last))) // without an upstream cluster they are not held back
	f.down.log.Info("COMPARED", "last", last)
}

// truncate truncates the upstream cluster. The backup notices it, is truncated by its
// operator, and follows again.
func (f *following) truncate(r *rand.Rand) {
	f.readers.begin()
	defer f.readers.end()
	f.look()
	f.mu.Lock()
	n := len(f.history.tids)
	f.mu.Unlock()
	if n < 3 || !f.ok() {
		return
	}
	at := f.history.tids[n-1-min(n-2, 1+r.IntN(5))]
	for _, p := range f.packs {
		if p.id == 0 || p.id > at {
			return // it cannot be truncated before a pack
		}
	}
	_, before, err := f.state(f.down)
	if err != nil {
		f.t.Errorf("seed %d: %v", f.plan.Seed, err)
		return
	}
	if err := f.up.operate(func(ctx context.Context, c *ctl.Client) error { return c.Truncate(ctx, at) }); err != nil {
		f.t.Errorf("seed %d: truncating after %v: %v", f.plan.Seed, at, err)
		return
	}
	f.await(f.up, proto.Running)
	f.up.log.Info("TRUNCATED", "after", at, "backup", *before)
	f.await(f.down, proto.Running) // it has known more
	f.compare()
	f.mu.Lock()
	f.history.truncate(at)
	maps.DeleteFunc(f.marks, func(t tid.TID, _ string) bool { return t > at })
	f.mu.Unlock()
	f.looked = min(f.looked, at)
	f.up.mu.Lock()
	f.up.seen.Attempts = slices.DeleteFunc(f.up.seen.Attempts, func(a Attempt) bool { return a.TID > at })
	f.up.mu.Unlock()
	_, ids, err := f.state(f.down)
	if err == nil && ids.LastTID.V > at {
		err = f.down.operate(func(ctx context.Context, c *ctl.Client) error { return c.Truncate(ctx, at) })
	}
	if err != nil {
		f.t.Errorf("seed %d: truncating the former backup after %v: %v", f.plan.Seed, at, err)
		return
	}
	f.await(f.down, proto.Running)
	f.compare()
	f.order(f.down, proto.StartingBackup)
}

// A backup cluster follows its upstream cluster through losses of links and nodes on both
// sides: whatever its clients see is a state that the upstream cluster had, and what is
// there after it was left is exactly the beginning of the history upstream.
func TestFollowing(t *testing.T) {
	if *seed != 0 {
		SimulateFollowing(t, FollowPlanOf(*seed), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		return
	}
	for i := range *followings {
		n := *first + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", n), func(t *testing.T) { SimulateFollowing(t, FollowPlanOf(n), nil) })
	}
}
