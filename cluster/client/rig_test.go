package client_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

var masterAddr = proto.Address{Host: "m", Port: 10000}

// rig is a cluster in memory: real master and storage nodes on a network in
// memory, in simulated time.
type rig struct {
	t        *testing.T
	net      *memnet.Network
	clients  int
	storages []*node
	master   *node
	shape    shape
}

type shape struct{ partitions, replicas, storages int }

// node is a running node.
type node struct {
	stop func()
	mem  *backendtest.Memory
}

// simulate runs a test on a cluster in simulated time.
func simulate(t *testing.T, s shape, test func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, net: memnet.New(1), shape: s}
		r.startMaster()
		for range s.storages {
			r.storages = append(r.storages, &node{mem: backendtest.NewMemory()})
		}
		for i := range r.storages {
			r.startStorage(i)
		}
		t.Cleanup(func() { // after the clients
			for _, n := range r.storages {
				n.stop()
			}
			r.master.stop()
		})
		test(t, r)
	})
}

// start runs a node until it is stopped.
func start(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func (r *rig) startMaster() {
	m, err := master.New(master.Config{
		Cluster: "test", Bind: masterAddr, Masters: []proto.Address{masterAddr},
		Partitions: r.shape.partitions, Replicas: r.shape.replicas, Autostart: r.shape.storages,
		Network: r.net.Host("m"),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.master = &node{stop: start(m.Run)}
}

func (r *rig) startStorage(i int) {
	n := r.storages[i]
	db, err := n.mem.Open()
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := storage.New(storage.Config{
		Cluster: "test", Bind: proto.Address{Host: r.storageHost(i), Port: 1000},
		Masters: bootstrap.NewMasters(masterAddr), Backend: db, Network: r.net.Host(r.storageHost(i)),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	stop := start(s.Run)
	n.stop = sync.OnceFunc(func() {
		stop()
		db.Close()
	})
}

func (r *rig) storageHost(i int) string { return fmt.Sprintf("s%d", i) }

// open connects a client from a host of its own, c0, c1...
func (r *rig) open(change func(*client.Config)) *client.Client {
	r.t.Helper()
	cfg := client.Config{
		Cluster: "test", Masters: []proto.Address{masterAddr},
		Network: r.net.Host(fmt.Sprintf("c%d", r.clients)),
	}
	r.clients++
	if change != nil {
		change(&cfg)
	}
	c, err := client.Open(r.t.Context(), cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// commit stores objects, given as oid, base serial, data, and returns the TID.
func (r *rig) commit(c *client.Client, stores ...store) tid.TID {
	r.t.Helper()
	t, err := c.Begin(r.t.Context(), client.BeginOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range stores {
		if err := t.Store(r.t.Context(), s.oid, s.serial, s.data); err != nil {
			r.t.Fatal(err)
		}
	}
	final, err := t.Finish(r.t.Context(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return final
}

type store struct {
	oid    tid.OID
	serial tid.TID
	data   []byte
}

// text is a store of a string.
func text(oid tid.OID, serial tid.TID, s string) store { return store{oid, serial, []byte(s)} }

// want loads the current revision of an object.
func (r *rig) want(c *client.Client, oid tid.OID, data string, serial tid.TID) {
	r.t.Helper()
	got, at, err := c.Load(r.t.Context(), oid)
	if err != nil || string(got) != data || at != serial {
		r.t.Errorf("load %v: %q at %v, %v; want %q at %v", oid, got, at, err, data, serial)
	}
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func equal[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
