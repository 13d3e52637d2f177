package clustertest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/importer"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/source"
)

// keptImports are seeds that have found a fault.
var keptImports = []uint64{
	101,  // a node did not start while its source was away, before the first transaction was copied
	1701, // a cell was given away before it had executed a pack, and the pack was waited for without end
}

var importSeeds = flag.Int("import-seeds", 20, "simulated runs of TestImporting")

// importPlan shapes the simulated run of a cluster that imports.
type importPlan struct {
	Plan
	Transactions int // of the source
	Slow         time.Duration
	Away         bool // the source is away at times
	Orders       bool // an operator pauses, limits and compares
	Joins        int  // storages that come during the import
}

func importPlanOf(seed uint64) importPlan {
	r := rand.New(rand.NewPCG(seed, 11))
	p := importPlan{
		Plan: Plan{
			Seed:       seed,
			Storages:   1,
			Partitions: 1 + r.IntN(4),
			Clients:    1 + r.IntN(3),
			Objects:    2 + r.IntN(4),
			Steps:      10 + r.IntN(20),
			Delay:      time.Duration(1+r.IntN(20)) * time.Millisecond,
			Lost:       r.IntN(3) == 0,
			Crashes:    r.IntN(2) == 0,
			Packs:      r.IntN(3) == 0,
		},
		Transactions: 1 + r.IntN(150),
		Slow:         time.Duration(r.IntN(60)) * time.Millisecond,
		Away:         r.IntN(3) == 0,
		Orders:       r.IntN(2) == 0,
	}
	if r.IntN(2) == 0 {
		p.Joins = 1 + r.IntN(2)
		p.Replicas = r.IntN(2)
		p.Partitions = max(p.Partitions, 1+p.Joins) // each gets a cell
	}
	return p
}

// distant is a source behind a network, which is slow and goes away.
type distant struct {
	*txntest.Memory
	slow time.Duration
	far  *far
	gone atomic.Bool // it was closed
}

// far is what all openings of a source have in common.
type far struct {
	m    sync.Mutex
	rand *rand.Rand
	back chan struct{} // closed when the source comes back; nil: it is there
}

func (f *far) away(on bool) {
	f.m.Lock()
	defer f.m.Unlock()
	switch {
	case on && f.back == nil:
		f.back = make(chan struct{})
	case !on && f.back != nil:
		close(f.back)
		f.back = nil
	}
}

// reach is what each question to the source costs, and how it fails.
func (d *distant) reach(ctx context.Context) error {
	d.far.m.Lock()
	pause := time.Duration(d.far.rand.Int64N(int64(d.slow) + 1))
	patience := time.Duration(d.far.rand.Int64N(int64(source.DefaultPatience)))
	d.far.m.Unlock()
	select {
	case <-time.After(pause):
	case <-ctx.Done():
		return ctx.Err()
	}
	if d.gone.Load() {
		return errors.New("the source is closed")
	}
	d.far.m.Lock()
	back := d.far.back
	d.far.m.Unlock()
	if back == nil {
		return nil
	}
	select {
	case <-back:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(patience):
		return fmt.Errorf("the source is away: %w", txn.ErrUnavailable)
	}
}

func (d *distant) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	if err := d.reach(ctx); err != nil {
		return txn.Revision{}, err
	}
	return d.Memory.LoadBefore(ctx, oid, before)
}

func (d *distant) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	if err := d.reach(ctx); err != nil {
		return txn.Revision{}, err
	}
	return d.Memory.LoadAt(ctx, oid, at)
}

func (d *distant) Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	if err := d.reach(ctx); err != nil {
		return nil, err
	}
	return d.Memory.Revisions(ctx, oid, n)
}

// reaching asks the source before each step of an iteration.
func reaching[T any](ctx context.Context, d *distant, seq iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		if err := d.reach(ctx); err != nil {
			yield(none, err)
			return
		}
		for v, err := range seq {
			if !yield(v, err) || err != nil {
				return
			}
			if err := d.reach(ctx); err != nil {
				yield(none, err)
				return
			}
		}
	}
}

func (d *distant) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for t, err := range reaching(ctx, d, d.Memory.Transactions(ctx, after, upTo)) {
			if err == nil {
				c := *t
				c.Records = reaching(ctx, d, t.Records)
				t = &c
			}
			if !yield(t, err) {
				return
			}
		}
	}
}

func (d *distant) Backwards(ctx context.Context) iter.Seq2[*txn.Info, error] {
	return reaching(ctx, d, d.Memory.Backwards(ctx))
}

func (d *distant) OIDs(ctx context.Context, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error] {
	return reaching(ctx, d, d.Memory.OIDs(ctx, at, from))
}

func (d *distant) Extent(ctx context.Context) (e source.Extent, err error) {
	if e.Last, err = d.LastTID(ctx); err != nil {
		return e, err
	}
	for i, err := range d.Memory.Backwards(ctx) {
		if err != nil {
			return e, err
		}
		for _, oid := range i.OIDs {
			e.Next = max(e.Next, oid+1)
		}
	}
	return e, nil
}

func (*distant) Position(tid.TID) (pos, size int64, ok bool) { return 0, 0, false }

func (*distant) Trouble() error { return nil }

func (d *distant) Close() error {
	d.gone.Store(true)
	return nil
}

var _ source.Source = (*distant)(nil)

// importSim is a simulated cluster whose first storage imports.
type importSim struct {
	*simulation
	plan   importPlan
	far    far
	source *txntest.Memory
	past   []tid.TID // the transactions of the source

	ordered tid.TID // a pack that a client was given the id of. mu
	backend *importer.Backend
	opened  map[int]backend.Backend
	native  bool // the storage is started without the importer
	joined  int
}

// simulateImport runs a plan and reports every violated promise. log may be nil.
func simulateImport(t *testing.T, plan importPlan, log *slog.Logger) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC))) // after the source was made
		s := &importSim{simulation: newSimulation(t, plan.Plan, log), plan: plan, opened: map[int]backend.Backend{}}
		s.far.rand = rand.New(rand.NewPCG(plan.Seed, 12))
		s.adapt = s.imports
		defer s.close()
		s.history()
		for i := range plan.Joins {
			for _, host := range []string{masterHost, storageHost(0)} {
				s.net.Delay(host, storageHost(1+i), 0, plan.Delay)
				s.net.Delay(storageHost(1+i), host, 0, plan.Delay)
			}
		}
		s.startAdmin()
		if s.start() {
			for i := range 3 {
				s.oids = append(s.oids, tid.OID(i*2))
			}
			for range plan.Joins {
				s.dbs = append(s.dbs, backendtest.NewMemory())
			}
			s.run()
		}
	})
}

// history makes the source, and of its transactions what clients have seen.
func (s *importSim) history() {
	s.source = &txntest.Memory{}
	last := map[tid.OID]tid.TID{}
	deleted := map[tid.OID]bool{}
	short := map[string][]byte{} // data that can be printed
	for t, err := range txntest.Random(s.plan.Seed, s.plan.Transactions, 12).Transactions(s.ctx, 0, tid.Max) {
		if err != nil {
			s.t.Fatal(err)
		}
		a := Attempt{Mark: string(t.Description), Outcome: Committed, TID: t.TID}
		var records []txn.Record
		for r := range t.Records {
			c := *r
			if r.Data == nil && deleted[r.OID] {
				continue // a pack would drop it, whenever it was
			}
			if deleted[r.OID] = r.Data == nil; r.Data != nil {
				key := fmt.Sprintf("%v %s", r.OID, r.Data)
				if short[key] == nil {
					short[key] = fmt.Appendf(nil, "source %s of %v", t.Description, r.OID)
				}
				c.Data = short[key]
			}
			records = append(records, c)
			a.Writes = append(a.Writes, Write{OID: r.OID, Base: last[r.OID], Data: c.Data})
			last[r.OID] = t.TID
		}
		x := *t
		x.Records = txn.Slice(records)
		if err := s.source.Append(&x); err != nil {
			s.t.Fatal(err)
		}
		s.seen.Attempts = append(s.seen.Attempts, a)
		s.past = append(s.past, t.TID)
	}
}

// imports makes the first storage one that imports.
func (s *importSim) imports(i int, cfg *storage.Config) {
	s.mu.Lock()
	s.opened[i] = cfg.Backend
	s.mu.Unlock()
	if i > 0 || s.native {
		return
	}
	native := cfg.Backend.(importer.Native)
	b, err := importer.Open(s.ctx, importer.Config{
		Import: config.Import{
			Destination: config.Destination{Section: "neo", Compress: 1},
			Sources:     []config.Source{{Section: "root", DatabaseName: "root"}},
		},
		Open: func(context.Context, config.Destination) (importer.Native, error) { return native, nil },
		OpenSource: func(context.Context, string, config.Storage, source.Options) (source.Source, error) {
			return &distant{Memory: s.source, slow: s.plan.Slow, far: &s.far}, nil
		},
		Log: cfg.Log,
	})
	if err != nil {
		s.t.Errorf("%+v: opening the import: %v", s.plan, err)
		s.cancel()
		return
	}
	s.mu.Lock()
	s.backend, s.opened[i] = b, b
	s.mu.Unlock()
	cfg.Backend = b
}

func (s *importSim) importing() *importer.Backend {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.backend
}

func (s *importSim) startAdmin() {
	a, err := admin.New(admin.Config{Cluster: "sim", Bind: adminAddr, Masters: bootstrap.NewMasters(s.masters()...), Network: s.net.Host(adminAddr.Host), Dialer: &link.Dialer{}})
	if err != nil {
		s.t.Error(err)
		return
	}
	s.node(adminAddr.Host, a.Run)
}

// open connects a client without cache: other clients are not told of deletions.
func (s *importSim) open(ctx context.Context, i int) (*client.Client, error) {
	return client.Open(ctx, client.Config{
		Cluster: "sim", Masters: s.masters(), Network: s.net.Host(clientHost(i)),
		Dialer: &link.Dialer{}, Log: s.log.With("host", fmt.Sprintf("client%d", i+1)), CacheSize: 1,
	})
}

// admin asks the cluster by its admin, which may be without a master: it is asked again.
func (s *importSim) admin(what string, f func(c *ctl.Client) error) {
	var err error
	for range 60 {
		var c *ctl.Client
		if c, err = ctl.Dial(s.ctx, adminAddr, link.Config{Network: s.net.Host("10.0.3.3")}); err == nil {
			err = f(c)
			c.Close()
		}
		if err == nil || s.ctx.Err() != nil {
			return
		}
		time.Sleep(time.Second)
	}
	s.t.Errorf("%+v: %s: %v", s.plan, what, err)
}

// run lets clients work, disturbs them, and compares at the end.
func (s *importSim) run() {
	var clients sync.WaitGroup
	for i := range s.plan.Clients {
		clients.Go(func() { s.client(i) })
	}
	done, disturbed := make(chan struct{}), make(chan struct{})
	go func() {
		s.disturb(done)
		close(disturbed)
	}()
	clients.Wait()
	r := rand.New(rand.NewPCG(s.plan.Seed, 3))
	if r.IntN(2) == 0 { // what follows the copy is disturbed as well
		for range 60 {
			if s.ctx.Err() != nil || s.importing().Progress().State == importing.Done {
				break
			}
			time.Sleep(time.Second)
		}
	}
	close(done)
	<-disturbed
	for s.joined < s.plan.Joins && s.ctx.Err() == nil {
		s.join()
	}
	s.far.away(false)
	b := s.importing()
	for _, o := range []importing.Order{{Kind: importing.Limit}, {Kind: importing.Resume}} {
		b.Order(o) // if it is neither paused nor has failed, there is nothing to resume
	}
	for begin := time.Now(); b.Progress().State != importing.Done && s.ctx.Err() == nil; time.Sleep(time.Second) {
		if time.Since(begin) > 20*time.Minute {
			s.t.Errorf("%+v: the import does not end: %+v", s.plan, b.Progress())
			return
		}
	}
	s.complete()
	s.packed()
	time.Sleep(time.Minute)
	s.compare()
	s.admin("reports", func(c *ctl.Client) error {
		list, err := c.Imports(s.ctx)
		if err == nil && (len(list) != 1 || list[0].State != importing.Done || list[0].Last != list[0].End) {
			err = fmt.Errorf("reported is %+v", list)
		}
		return err
	})
	if r.IntN(2) == 0 { // the same without the importer
		s.stopStorage(0, false)
		s.native = true
		s.startStorage(0, s.dbs[0])
		s.complete()
		time.Sleep(time.Minute)
		s.compare()
	}
	if s.plan.Joins > 0 && s.plan.Replicas > 0 { // the same from replicas alone
		s.stopStorage(0, false)
		time.Sleep(time.Minute)
		s.compare()
	}
}

// complete waits until every cell is readable.
func (s *importSim) complete() {
	for begin := time.Now(); s.ctx.Err() == nil; time.Sleep(time.Second) {
		missing, copies := 0, 0
		s.admin("partition table", func(c *ctl.Client) error {
			list, err := c.PartitionTable(s.ctx, 0, 0, 0)
			if err != nil {
				return err
			}
			for _, row := range list.Rows {
				copies = len(row)
				for _, cell := range row {
					if cell.State != proto.UpToDate {
						missing++
					}
				}
			}
			return nil
		})
		want := 1
		if s.joined > 0 {
			want = 1 + s.plan.Replicas
		}
		if missing == 0 && copies == want {
			return
		}
		if missing == 0 { // the master was lost before it said so to the storages
			s.balance()
		}
		if time.Since(begin) > 20*time.Minute {
			s.t.Errorf("%+v: replicas are not complete: %d cells of %d copies", s.plan, missing, copies)
			s.cancel()
		}
	}
}

// packed waits until a pack that was ordered is executed.
func (s *importSim) packed() {
	if s.ordered == 0 || s.ctx.Err() != nil {
		return
	}
	cl, err := s.open(s.ctx, s.plan.Clients)
	if err == nil {
		ctx, cancel := context.WithTimeout(s.ctx, 20*time.Minute)
		err = cl.WaitForPack(ctx, s.ordered)
		cancel()
		cl.Close()
	}
	if err != nil {
		s.t.Errorf("%+v: pack %v: %v", s.plan, s.ordered, err)
	}
}

// join starts a storage and gives it cells.
func (s *importSim) join() {
	// Before the first storage is there, an empty one would become a cluster of its own.
	s.admin("state", func(c *ctl.Client) error {
		state, err := c.ClusterState(s.ctx)
		if err == nil && state != proto.Running {
			err = fmt.Errorf("the cluster is %v", state)
		}
		return err
	})
	s.joined++
	s.startStorage(s.joined, s.dbs[s.joined])
	defer func() { s.simulation.plan.Storages++ }() // that a new master waits for
	s.admin("adding a storage", func(c *ctl.Client) error {
		nodes, err := c.Nodes(s.ctx, proto.Some(proto.Storage))
		if err != nil {
			return err
		}
		if len(nodes) < 1+s.joined {
			return fmt.Errorf("there are only %+v", nodes)
		}
		return nil
	})
	s.balance()
	time.Sleep(time.Second) // a master that is lost before the table is stored gives its id to another storage
}

// balance gives cells to all storages.
func (s *importSim) balance() {
	s.admin("tweaking", func(c *ctl.Client) error {
		nodes, err := c.Nodes(s.ctx, proto.Some(proto.Storage))
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.State == proto.NodePending {
				if _, err := c.Add(s.ctx, []proto.NodeID{n.ID}); err != nil {
					return err
				}
			}
		}
		if s.plan.Replicas > 0 {
			if _, err := c.SetReplicas(s.ctx, s.plan.Replicas); err != nil {
				return err
			}
		}
		_, err = c.Tweak(s.ctx, false, nil)
		return err
	})
}

// disturb does what happens to clusters until done.
func (s *importSim) disturb(done <-chan struct{}) {
	r := rand.New(rand.NewPCG(s.plan.Seed, 2))
	for {
		select {
		case <-done:
			return
		case <-s.ctx.Done():
			return
		case <-time.After(time.Duration(100+r.IntN(3000)) * time.Millisecond):
		}
		if s.plan.Lost && r.IntN(2) == 0 {
			s.net.Drop(clientHost(r.IntN(s.plan.Clients)), storageHost(0))
		}
		if s.plan.Away {
			s.far.away(r.IntN(4) == 0)
		}
		if s.plan.Orders && r.IntN(2) == 0 {
			s.order(r)
		}
		if s.joined < s.plan.Joins && r.IntN(3) == 0 {
			s.join()
		}
		if s.plan.Crashes && r.IntN(3) == 0 {
			if i := r.IntN(s.joined+3) - 1; i < 0 {
				s.crashMaster(r)
			} else {
				i = max(i-1, 0) // more often the storage that imports
				s.stopStorage(i, r.IntN(3) > 0)
				time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
				s.startStorage(i, s.dbs[i])
			}
		}
	}
}

func (s *importSim) order(r *rand.Rand) {
	b := s.importing()
	state := b.Progress().State
	o := importing.Order{Kind: importing.Kind(r.IntN(int(importing.Compare) + 1))}
	if o.Kind == importing.Limit {
		o.Rate = int64(r.IntN(3)) * 20000
	}
	err := b.Order(o)
	s.log.Debug("order", "kind", o.Kind, "state", state, "err", err)
}

func (s *importSim) crashMaster(r *rand.Rand) {
	s.mu.Lock()
	s.crashed[masterHost] = true
	stop := s.nodes[masterHost]
	s.mu.Unlock()
	s.net.Crash(masterHost)
	stop()
	time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
	s.startMaster()
}

// stopStorage ends a storage, which loses what it has not committed if it crashes.
func (s *importSim) stopStorage(i int, crash bool) {
	host := storageHost(i)
	s.mu.Lock()
	s.crashed[host] = crash
	stop := s.nodes[host]
	s.mu.Unlock()
	if crash {
		if err := s.dbs[i].Crash(); err != nil {
			s.t.Errorf("crashing database %d: %v", i, err)
		}
		s.net.Crash(host)
		stop()
		return
	}
	stop()
	s.mu.Lock()
	db := s.opened[i]
	s.mu.Unlock()
	if err := db.Close(); err != nil {
		s.t.Errorf("closing database %d: %v", i, err)
	}
}

// client is one client.
func (s *importSim) client(i int) {
	r := rand.New(rand.NewPCG(s.plan.Seed, uint64(100+i)))
	cl, err := s.open(s.ctx, i)
	if err != nil {
		s.t.Errorf("%+v: client %d cannot connect: %v", s.plan, i, err)
		return
	}
	defer cl.Close()
	for step := 0; step < s.plan.Steps && s.ctx.Err() == nil; step++ {
		mark := fmt.Sprintf("%d.%d", i, step)
		switch n := r.IntN(100); {
		case n < 15:
			s.snapshot(s.ctx, r, cl)
		case n < 35:
			s.readPast(r, cl)
		case n < 42:
			s.walk(r, cl)
		case n < 49:
			s.list(r, cl)
		case n < 55:
			s.undo(s.ctx, r, cl, mark)
		case n < 62: // what was undone is often changed since
			s.undoOf(s.ctx, cl, mark, s.past[max(0, len(s.past)-1-r.IntN(8))])
		case n < 66 && s.plan.Packs:
			s.pack(r, cl)
		default:
			s.change(s.ctx, r, cl, mark)
		}
		time.Sleep(time.Duration(r.IntN(600)) * time.Millisecond)
	}
}

// readPast reads objects as they were in the source.
func (s *importSim) readPast(r *rand.Rand, cl *client.Client) {
	for range 1 + r.IntN(5) {
		before := s.past[r.IntN(len(s.past))] + tid.TID(r.IntN(2))
		if _, err := s.read(s.ctx, cl, tid.OID(r.IntN(13)), before); err != nil {
			return
		}
	}
}

// walk reads a part of the history of the source, as an export does.
func (s *importSim) walk(r *rand.Rand, cl *client.Client) {
	i := r.IntN(len(s.past))
	n := min(1+r.IntN(20), len(s.past)-i)
	var want []Attempt
	s.mu.Lock()
	want = append(want, s.seen.Attempts[i:i+n]...) // they are the first ones
	s.mu.Unlock()
	var db []Stored
	for t, err := range cl.Transactions(s.ctx, s.past[i]-1, s.past[i+n-1]) {
		if err != nil {
			return
		}
		x := Stored{TID: t.TID, Mark: string(t.Description), Records: map[tid.OID][]byte{}}
		for r, err := range t.Records {
			if err != nil {
				return
			}
			x.Records[r.OID] = bytes.Clone(r.Data)
		}
		db = append(db, x)
	}
	s.mu.Lock()
	packed := s.seen.PackedUpTo != 0
	s.mu.Unlock()
	if packed {
		return // records may be gone
	}
	if len(db) != n {
		s.t.Errorf("%+v: %d transactions from %v to %v, want %d", s.plan, len(db), s.past[i], s.past[i+n-1], n)
		return
	}
	for i, a := range want {
		same := db[i].TID == a.TID && db[i].Mark == a.Mark && len(db[i].Records) == len(a.Writes)
		for _, w := range a.Writes {
			data, ok := db[i].Records[w.OID]
			same = same && ok && bytes.Equal(data, w.Data) && (data == nil) == (w.Data == nil)
		}
		if !same {
			s.t.Errorf("%+v: the history has %+v, want %+v", s.plan, db[i], a)
		}
	}
}

// list asks for the history of an object, and for the transactions an operator can undo.
func (s *importSim) list(r *rand.Rand, cl *client.Client) {
	oid := tid.OID(r.IntN(13))
	s.mu.Lock()
	var want []tid.TID
	for _, a := range s.seen.Attempts[:len(s.past)] {
		if slices.ContainsFunc(a.Writes, func(w Write) bool { return w.OID == oid }) {
			want = append(want, a.TID)
		}
	}
	s.mu.Unlock()
	slices.Reverse(want)
	infos, err := cl.Revisions(s.ctx, oid, 1000)
	if err != nil && !errors.Is(err, txn.ErrNoSuchObject) {
		return
	}
	end := s.past[len(s.past)-1]
	var got []tid.TID
	for _, i := range infos {
		if i.TID <= end {
			got = append(got, i.TID)
		}
	}
	n, listed := r.IntN(len(s.past)), []tid.TID{}
	for i, err := range cl.Backwards(s.ctx) {
		if err != nil {
			return
		}
		if i.TID <= end {
			listed = append(listed, i.TID)
		}
		if len(listed) > n {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen.PackedUpTo != 0 {
		return
	}
	if !slices.Equal(got, want) {
		s.t.Errorf("%+v: the history of %v is %v, want %v", s.plan, oid, got, want)
	}
	latest := slices.Clone(s.past[len(s.past)-1-n:])
	if slices.Reverse(latest); !slices.Equal(listed, latest) {
		s.t.Errorf("%+v: the last transactions of the source are %v, want %v", s.plan, listed, latest)
	}
}

func (s *importSim) pack(r *rand.Rand, cl *client.Client) {
	last, err := cl.LastTID(s.ctx)
	if err != nil {
		return
	}
	upTo := last.Add(-int64(r.IntN(1<<32)) / 4)
	if r.IntN(2) == 0 {
		upTo = s.past[r.IntN(len(s.past))]
	}
	s.mu.Lock()
	s.seen.PackedUpTo = max(s.seen.PackedUpTo, upTo)
	s.mu.Unlock()
	id, err := cl.Pack(s.ctx, upTo)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.ordered = max(s.ordered, id)
	}
}

// A storage serves a source while it imports it, and all that clients saw in the meantime
// agrees with one history, of which the source is the beginning.
func TestImporting(t *testing.T) {
	if *seed != 0 {
		simulateImport(t, importPlanOf(*seed), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		return
	}
	list := slices.Clone(keptImports)
	for i := range *importSeeds {
		list = append(list, *first+uint64(i))
	}
	for _, s := range list {
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) { simulateImport(t, importPlanOf(s), nil) })
	}
}
