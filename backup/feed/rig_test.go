package feed_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// rig is a cluster whose nodes stop and start one by one. Its databases are in memory.
type rig struct {
	t          *testing.T
	partitions int
	replicas   int
	at         proto.Address // of the master
	stopMaster func()
	storages   []*node
}

type node struct {
	mem    *backendtest.Memory
	noPack bool
	stop   func()
}

func newNodes(t *testing.T, partitions, replicas, storages int, change func(i int, n *node)) *rig {
	t.Helper()
	r := &rig{t: t, partitions: partitions, replicas: replicas, at: proto.Address{Host: "127.0.0.1"}, stopMaster: func() {}}
	for i := range storages {
		n := &node{mem: backendtest.NewMemory(), stop: func() {}}
		if change != nil {
			change(i, n)
		}
		r.storages = append(r.storages, n)
	}
	r.start()
	t.Cleanup(r.stop)
	return r
}

// begin runs a node until it is stopped.
func begin(run func(context.Context) error, end func()) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx)
		end()
	}()
	return sync.OnceFunc(func() {
		cancel()
		<-done
	})
}

func (r *rig) start() {
	r.t.Helper()
	r.startMaster()
	for _, n := range r.storages {
		r.startStorage(n)
	}
}

func (r *rig) stop() {
	for _, n := range r.storages {
		n.stop()
	}
	r.stopMaster()
}

func (r *rig) startMaster() {
	r.t.Helper()
	cfg := master.Config{Cluster: "test", Bind: r.at, Partitions: r.partitions, Replicas: r.replicas, Autostart: len(r.storages)}
	if cfg.Bind.Port == 0 {
		// Not one that the system gives to others while the master is stopped.
		cfg.Bind.Port = uint16(10_000 + rand.IntN(5_000))
	}
	m, err := master.New(cfg)
	for i := 0; err != nil && i < 3000; i++ { // the port is in use, perhaps for a moment
		time.Sleep(20 * time.Millisecond)
		if r.at.Port == 0 {
			cfg.Bind.Port = uint16(10_000 + rand.IntN(5_000))
		}
		m, err = master.New(cfg)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.at = m.Addr()
	r.stopMaster = begin(m.Run, func() {})
}

func (r *rig) startStorage(n *node) {
	r.t.Helper()
	db, err := n.mem.Open()
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := storage.New(storage.Config{
		Cluster: "test", Bind: proto.Address{Host: "127.0.0.1"}, Masters: bootstrap.NewMasters(r.at), Backend: db, DisablePack: n.noPack,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	n.stop = begin(s.Run, func() { db.Close() })
}

func (r *rig) client() *cluster { return clientOf(r.t, "test", r.at) }

// fill commits n transactions.
func (r *rig) fill(c *cluster, n int) (list []tid.TID) {
	r.t.Helper()
	for i := range n {
		at := tid.TID(1+len(list)) << 32
		if l, err := c.c.LastTID(r.t.Context()); err != nil {
			r.t.Fatal(err)
		} else if l >= at {
			at = l + 1<<32
		}
		var records []txn.Record
		for j := range 3 {
			records = append(records, txn.Record{OID: tid.OID(i*7+j) % 50, Data: fmt.Appendf(nil, "%d %d %0900d", i, j, i)})
		}
		c.Append(r.t, feedtest.Transaction{TID: at, Records: records})
		list = append(list, at)
	}
	return list
}

func (r *rig) feed(c *cluster) *feed.Cluster {
	r.t.Helper()
	f := c.open(r.t)
	r.t.Cleanup(func() { f.Close() })
	return f
}

// A storage that is lost in the middle of a reading is replaced by others, and a master is
// waited for.
func TestClusterNodeLost(t *testing.T) {
	r := newNodes(t, 4, 1, 3, nil)
	c := r.client()
	want := r.fill(c, 1500)
	f := r.feed(c)
	last, _, err := f.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for tr, err := range f.Read(t.Context(), 0, last) {
		if err != nil {
			t.Fatal(err)
		}
		switch i {
		case 200:
			r.storages[1].stop()
		case 700:
			r.stopMaster()
			r.startMaster()
			r.startStorage(r.storages[1])
		}
		n := 0
		for _, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if i == len(want) || tr.TID != want[i] || n != 3 {
			t.Fatalf("transaction %d is %v with %d records", i, tr.TID, n)
		}
		i++
	}
	if i != len(want) {
		t.Errorf("%d transactions were read, want %d", i, len(want))
	}
	// What is committed with the next master is told.
	next := r.client()
	next.serials = c.serials
	more := r.fill(next, 1)
	for {
		if err := f.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		last, _, err := f.Last(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if last == more[0] {
			break
		}
	}
}

// A wait ends soon after its context, also without a master.
func TestClusterGone(t *testing.T) {
	r := newNodes(t, 1, 0, 1, nil)
	c := r.client()
	r.fill(c, 3)
	f := r.feed(c)
	last, _, err := f.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	for name, call := range map[string]func(context.Context) error{
		"Wait":   f.Wait,
		"Last":   func(ctx context.Context) error { _, _, err := f.Last(ctx); return err },
		"Info":   func(ctx context.Context) error { _, err := f.Info(ctx, last); return err },
		"Packed": func(ctx context.Context) error { _, err := f.Packed(ctx); return err },
		"Has":    func(ctx context.Context) error { _, err := f.Has(ctx, 0, last); return err },
		"Read":   func(ctx context.Context) error { _, err := readAll(ctx, f, 0, last); return err },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		err := call(ctx)
		// Wait may return early, and a storage that is lost has no revision.
		for (name == "Wait" || name == "Has") && err == nil {
			err = call(ctx)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	r.start()
	if got := tids(t, f, 0); len(got) != 3 {
		t.Errorf("afterwards %v is read", got)
	}
}

func readAll(ctx context.Context, f feed.Feed, after, upTo tid.TID) (list []tid.TID, err error) {
	for tr, err := range f.Read(ctx, after, upTo) {
		if err != nil {
			return list, err
		}
		list = append(list, tr.TID)
	}
	return list, nil
}

// A cluster whose database is another one, older or with other partitions, is refused.
func TestClusterChanged(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(r *rig, old *backendtest.Memory)
		text   string
	}{
		{"older", func(r *rig, old *backendtest.Memory) { r.storages[0].mem.Restore(old) }, "truncated"},
		{"older and gone on", func(r *rig, old *backendtest.Memory) {
			r.storages[0].mem.Restore(old)
			r.start()
			c := r.client()
			last, err := c.c.LastTID(r.t.Context())
			if err != nil {
				r.t.Fatal(err)
			}
			c.Append(r.t, feedtest.Transaction{TID: last + 100<<32, Records: []txn.Record{{OID: 1000, Data: []byte("new")}}})
			c.c.Close()
			r.stop()
		}, "no transaction"},
		{"empty", func(r *rig, _ *backendtest.Memory) { r.storages[0].mem = backendtest.NewMemory() }, "truncated"},
		{"other partitions", func(r *rig, _ *backendtest.Memory) {
			r.storages[0].mem = backendtest.NewMemory()
			r.partitions = 7
		}, "7 partitions"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newNodes(t, 2, 0, 1, nil)
			c := r.client()
			r.fill(c, 5)
			r.stop()
			old := r.storages[0].mem.Copy()
			r.start()
			c = r.client()
			c.serials = map[tid.OID]tid.TID{}
			c.Append(t, feedtest.Transaction{TID: 20 << 32, Records: []txn.Record{{OID: 2000, Data: []byte("x")}}})
			f := r.feed(c)
			tids(t, f, 0)
			last, _, err := f.Last(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r.stop()
			c.c.Close()
			tt.change(r, old)
			r.start()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			_, err = readAll(ctx, f, 0, last)
			if !errors.Is(err, feed.ErrChanged) {
				t.Errorf("Read: %v", err)
			}
			_, _, err = f.Last(ctx)
			says(t, "Last", err, feed.ErrChanged, tt.text)
		})
	}
}

// A cluster that is truncated before it is read, or meanwhile, does not seem to have been read
// whole.
func TestClusterTruncatedWhileRead(t *testing.T) {
	for _, when := range []int{0, 5} {
		r := newNodes(t, 2, 0, 1, nil)
		c := r.client()
		r.fill(c, 300)
		r.stop()
		old := r.storages[0].mem.Copy()
		r.start()
		next := r.client()
		next.serials = c.serials
		r.fill(next, 700)
		f := r.feed(c)
		last, _, err := f.Last(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		truncate := func() {
			r.stop()
			r.storages[0].mem.Restore(old)
			r.start()
		}
		if when == 0 {
			truncate()
		}
		n := 0
		for _, e := range f.Read(t.Context(), 0, last) {
			if err = e; err != nil {
				break
			}
			if n++; n == when {
				truncate()
			}
		}
		says(t, fmt.Sprintf("truncated after %d", when), err, feed.ErrChanged, "truncated")
		if n >= 1000 {
			t.Errorf("%d transactions were read", n)
		}
	}
}

// A revision that one of the storages has packed is gone, although another one has it.
func TestClusterPartlyPacked(t *testing.T) {
	r := newNodes(t, 1, 1, 2, func(i int, n *node) { n.noPack = i == 1 })
	c := r.client()
	var list []tid.TID
	for i := range 3 {
		list = append(list, tid.TID(1+i)<<32)
		c.Append(t, feedtest.Transaction{TID: list[i], Records: []txn.Record{{OID: 1, Data: fmt.Append(nil, i)}}})
	}
	f := r.feed(c)
	check := func(at tid.TID, want bool) {
		t.Helper()
		for range 20 { // cells are asked at random
			if has, err := f.Has(t.Context(), 1, at); has != want || err != nil {
				t.Fatalf("Has at %v = %v, %v, want %v", at, has, err, want)
			}
		}
	}
	for _, at := range list {
		check(at, true)
	}
	c.Pack(t, list[1])
	check(list[0], false)
	check(list[1], true)
	check(list[2], true)
	r.storages[1].stop()
	check(list[0], false)
	check(list[2], true)
}

// A cluster is not asked for twice as much only because objects are often checked: what is known of
// packs counts for all that was read before.
func TestClusterChecks(t *testing.T) {
	r := newNodes(t, 2, 0, 1, nil)
	c := r.client()
	c.Append(t, feedtest.Transaction{TID: 1 << 32, Records: []txn.Record{{OID: 0, Data: []byte("root")}}})
	for i := range 500 {
		c.Append(t, feedtest.Transaction{TID: tid.TID(2+i) << 32, Records: []txn.Record{{OID: 1, Data: fmt.Append(nil, i)}}, Checked: []tid.OID{0}})
	}
	var mu sync.Mutex
	sent := map[string]int{}
	f, err := feed.OpenCluster(t.Context(), feed.ClusterOptions{Repository: "prod", Client: client.Config{Cluster: "test", Masters: c.masters,
		Record: func(out bool, _ string, _ uint32, p proto.Packet) {
			mu.Lock()
			defer mu.Unlock()
			if out {
				sent[fmt.Sprintf("%T", p)]++
			}
			if ask, ok := p.(*proto.AskPackOrders); ok && ask.Min == tid.Zero {
				t.Error("orders from 0 on are asked for: a Python master ends at that")
			}
		}}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := tids(t, f, 0); len(got) != 501 {
		t.Errorf("%d transactions were read", len(got))
	}
	mu.Lock()
	defer mu.Unlock()
	if n := sent["*proto.AskObject"]; n != 1+2*500 {
		t.Errorf("%d questions for objects, want one for each that a transaction names", n)
	}
	if n := sent["*proto.AskPackOrders"]; n == 0 || n > 250 {
		t.Errorf("%d questions for packs in 500 transactions", n)
	}
}
