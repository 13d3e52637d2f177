package feed_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
)

// cluster is a cluster that a client writes to.
type cluster struct {
	name    string
	masters []proto.Address
	c       *client.Client
	serials map[tid.OID]tid.TID
}

func newCluster(t *testing.T, cfg simple.Config) *cluster {
	t.Helper()
	cfg.Dir, cfg.Name = t.TempDir(), "test"
	s, err := simple.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := s.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	return clientOf(t, s.Name(), s.Master())
}

func clientOf(t *testing.T, name string, masters ...proto.Address) *cluster {
	t.Helper()
	c, err := client.Open(t.Context(), client.Config{Cluster: name, Masters: masters})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &cluster{name, masters, c, map[tid.OID]tid.TID{}}
}

func (d *cluster) Append(t *testing.T, list ...feedtest.Transaction) {
	t.Helper()
	for _, c := range list {
		if err := d.commit(context.Background(), c); err != nil {
			t.Fatal(err)
		}
	}
}

func (d *cluster) commit(ctx context.Context, c feedtest.Transaction) error {
	x, err := d.c.Begin(ctx, client.BeginOptions{TID: c.TID, User: []byte(c.User), Description: []byte(c.Description), Extension: []byte(c.Extension)})
	if err != nil {
		return fmt.Errorf("begin %v: %w", c.TID, err)
	}
	for _, r := range c.Records {
		base := d.serials[r.OID]
		switch {
		case r.DataTID != tid.Zero:
			err = x.StoreUndo(ctx, r.OID, base, r.Data, r.DataTID)
		default:
			err = x.Store(ctx, r.OID, base, r.Data)
		}
		if err != nil {
			return fmt.Errorf("store %v in %v: %w", r.OID, c.TID, err)
		}
	}
	for _, oid := range c.Checked {
		if err := x.CheckCurrent(ctx, oid, d.serials[oid]); err != nil {
			return fmt.Errorf("check %v in %v: %w", oid, c.TID, err)
		}
	}
	if _, err := x.Vote(ctx); err != nil {
		return fmt.Errorf("vote %v: %w", c.TID, err)
	}
	at, err := x.Finish(ctx, nil)
	if err != nil {
		return fmt.Errorf("finish %v: %w", c.TID, err)
	}
	for _, r := range c.Records {
		d.serials[r.OID] = at
	}
	return nil
}

func (d *cluster) Pack(t *testing.T, upTo tid.TID) (tid.TID, string) {
	t.Helper()
	order, err := d.c.Pack(t.Context(), upTo)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.c.WaitForPack(t.Context(), order); err != nil {
		t.Fatal(err)
	}
	return order, "IStorage.pack"
}

func (d *cluster) Open(t *testing.T) feed.Feed {
	t.Helper()
	return d.open(t)
}

func (d *cluster) open(t *testing.T) *feed.Cluster {
	t.Helper()
	f, err := feed.OpenCluster(t.Context(), feed.ClusterOptions{
		Client: client.Config{Cluster: d.name, Masters: d.masters}, Repository: "prod", Poll: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestCluster(t *testing.T) {
	for _, cfg := range []simple.Config{
		{Partitions: 1},
		{Partitions: 5, Storages: 3, Replicas: 1},
	} {
		t.Run(fmt.Sprintf("%d partitions", cfg.Partitions), func(t *testing.T) {
			feedtest.Run(t, feedtest.Options{Seeds: 2}, func(t *testing.T) feedtest.Database { return newCluster(t, cfg) })
		})
	}
}
