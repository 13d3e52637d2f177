package drill

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
)

// running runs a cluster with a history until the end of the test.
func running(t *testing.T, list backuptest.History) (*client.Client, func(context.Context) (feed.Feed, error)) {
	t.Helper()
	repo := backuptest.New(t, memstore.New(memstore.Options{}), false)
	repo.Tail(list...)
	dir := t.TempDir()
	src := restore.Source{Repo: repo.Repository, Keys: repo.Keys, State: repo.Now()}
	if _, err := src.ToTables(t.Context(), restore.TablesOptions{Cluster: "site", Partitions: 3, Nodes: 2, Replicas: 1, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	c, err := simple.New(simple.Config{Dir: dir, Name: "site"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := c.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg := client.Config{Cluster: "site", Masters: []proto.Address{c.Master()}}
	cl, err := client.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cl.Close(); err != nil {
			t.Error(err)
		}
	})
	return cl, func(ctx context.Context) (feed.Feed, error) {
		return feed.OpenCluster(ctx, feed.ClusterOptions{Client: cfg, Repository: "test"})
	}
}

// commit stores an object in a cluster.
func commit(t *testing.T, cl *client.Client, oid tid.OID, serial tid.TID) tid.TID {
	t.Helper()
	x, err := cl.Begin(t.Context(), client.BeginOptions{})
	if err == nil {
		err = x.Store(t.Context(), oid, serial, []byte("new"))
	}
	if err == nil {
		_, err = x.Vote(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	id, err := x.Finish(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A cluster in use, that goes on and is packed, is a source to compare with, also for a cluster
// that was restored.
func TestClusterSource(t *testing.T) {
	w := newWorld(t)
	w.o.At = Head
	cl, open := running(t, w.list)
	w.o.Source = open
	check := func(mode Mode) *Result {
		t.Helper()
		w.o.Mode = mode
		res, err := w.run(t.Context(), w.o)
		if err != nil || res.Proof.Compared.Source != digest || len(res.Warnings) > 0 {
			t.Fatalf("%s: %v, %+v", mode, err, res)
		}
		return res
	}
	check(Cluster)
	commits := make(chan bool)
	stop := make(chan bool)
	go func() {
		defer close(commits)
		serial := tid.Zero
		for {
			serial = commit(t, cl, 123456, serial)
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	check(File)
	close(stop)
	<-commits
	id, err := cl.Pack(t.Context(), w.head())
	if err == nil {
		err = cl.WaitForPack(t.Context(), id)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []Mode{Cluster, Read} {
		check(mode)
	}
	for name, list := range lies(t, w.list) {
		if name != "a byte of an old revision" && name != "no last transaction" && name != "metadata" {
			continue
		}
		_, w.o.Source = running(t, list)
		w.o.Mode = Cluster
		if res, err := w.run(t.Context(), w.o); !errors.Is(err, restore.ErrDifferent) || res.Key == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
