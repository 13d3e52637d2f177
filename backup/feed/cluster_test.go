package feed_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
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

func newCluster(t testing.TB, cfg simple.Config) *cluster {
	t.Helper()
	cfg.Dir, cfg.Name = t.TempDir(), "test"
	s := run(t, cfg)
	if err := s.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	return clientOf(t, s.Name(), s.Master())
}

func run(t testing.TB, cfg simple.Config) *simple.Cluster {
	t.Helper()
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
	return s
}

func clientOf(t testing.TB, name string, masters ...proto.Address) *cluster {
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

func (d *cluster) open(t testing.TB) *feed.Cluster {
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

// follower is a backup cluster. It has what was written upstream as soon as that returns, or as
// soon as it is asked for its last transaction: packs upstream are then ahead of it.
type follower struct {
	*cluster // upstream
	down     *cluster
	op       *ctl.Client
	late     bool
	held     bool
	last     tid.TID
}

func (b *follower) Append(t *testing.T, list ...feedtest.Transaction) {
	t.Helper()
	b.hold(t)
	b.cluster.Append(t, list...)
	b.last = list[len(list)-1].TID
	b.arrive(t)
}

func (b *follower) Pack(t *testing.T, upTo tid.TID) (tid.TID, string) {
	t.Helper()
	b.hold(t)
	order, description := b.cluster.Pack(t, upTo)
	b.last = order
	b.arrive(t)
	return order, description
}

func (b *follower) hold(t *testing.T) {
	t.Helper()
	if b.late && !b.held {
		b.order(t, following.Hold)
		b.held = true
	}
}

// order is obeyed once the admin has heard of the backup.
func (b *follower) order(t *testing.T, kind following.Kind) {
	t.Helper()
	until(t, fmt.Sprintf("the backup cluster takes the order %v", kind), func() bool {
		return b.op.OrderBackup(t.Context(), following.Order{Kind: kind}) == nil
	})
}

func (b *follower) arrive(t *testing.T) {
	t.Helper()
	if !b.late {
		b.await(t, b.last)
	}
}

// lateFeed is a feed of a backup cluster that is held until it is used.
type lateFeed struct {
	feed.Feed
	t *testing.T
	b *follower
}

func (l *lateFeed) Last(ctx context.Context) (tid.TID, time.Time, error) {
	if ctx.Err() == nil {
		if l.b.held {
			l.b.order(l.t, following.Release)
			l.b.held = false
		}
		l.b.await(l.t, l.b.last)
	}
	return l.Feed.Last(ctx)
}

func (l *lateFeed) Wait(ctx context.Context) error {
	if _, _, err := l.Last(ctx); err != nil {
		return err
	}
	return nil
}

func (b *follower) await(t *testing.T, want tid.TID) {
	t.Helper()
	until(t, fmt.Sprintf("the backup cluster has transaction %v", want), func() bool {
		last, err := b.down.c.AskLastTID(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return last >= want
	})
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 60000 {
		if done() {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("it takes too long until %s", what)
}

func (b *follower) Open(t *testing.T) feed.Feed {
	t.Helper()
	f := b.down.open(t)
	if s := f.Source(); s.Kind != feed.KindBackup || s.Name != "down" {
		t.Errorf("Source = %+v", s)
	}
	if b.late {
		return &lateFeed{f, t, b}
	}
	return f
}

func TestBackupCluster(t *testing.T) {
	t.Run("ahead", func(t *testing.T) { feedtest.Run(t, feedtest.Options{}, newFollower(false)) })
	t.Run("late", func(t *testing.T) { feedtest.RunPacks(t, feedtest.Options{}, newFollower(true)) })
}

func newFollower(late bool) func(t *testing.T) feedtest.Database {
	return func(t *testing.T) feedtest.Database {
		up := newCluster(t, simple.Config{Partitions: 3, Storages: 2})
		cfg := simple.Config{Dir: t.TempDir(), Name: "down", Partitions: 3, Storages: 2, Replicas: 1,
			Upstream: master.Upstream{Cluster: up.name, Masters: up.masters}}
		s := run(t, cfg)
		op, err := ctl.Dial(t.Context(), s.Admin(), link.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { op.Close() })
		until(t, "the cluster is RUNNING", func() bool {
			_, err := op.SetClusterState(t.Context(), proto.StartingBackup)
			return err == nil
		})
		until(t, "the cluster is BACKINGUP", func() bool {
			state, err := op.ClusterState(t.Context())
			return err == nil && state == proto.BackingUp
		})
		down := &cluster{name: s.Name(), masters: []proto.Address{s.Master()}}
		if down.c, err = client.Open(t.Context(), client.Config{Cluster: down.name, Masters: down.masters, ReadOnly: true}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { down.c.Close() })
		return &follower{cluster: up, down: down, op: op, late: late}
	}
}
