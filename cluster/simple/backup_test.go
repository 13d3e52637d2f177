package simple

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

func await(t *testing.T, c *ctl.Client, want proto.ClusterState) {
	t.Helper()
	for range 600 {
		if s, err := c.ClusterState(t.Context()); err == nil && s == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the cluster does not become %v", want)
}

// A running cluster becomes a backup, follows its upstream cluster, and has what that
// one has once it is left.
func TestBackup(t *testing.T) {
	up, _ := start(t, Config{Dir: t.TempDir(), Name: "up", Partitions: 4})
	cfg := Config{Dir: t.TempDir(), Name: "down", Partitions: 4, Storages: 2, Replicas: 1,
		Upstream: master.Upstream{Cluster: "up", Masters: []proto.Address{up.Master()}}}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	down, _ := start(t, cfg)
	op := dial(t, down)
	if _, err := op.SetClusterState(t.Context(), proto.StartingBackup); err != nil {
		t.Fatal(err)
	}
	await(t, op, proto.BackingUp)
	cl, err := client.Open(t.Context(), client.Config{Cluster: "up", Masters: []proto.Address{up.Master()}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var last tid.TID
	data := []byte("a record")
	for i := range 20 {
		x, err := cl.Begin(t.Context(), client.BeginOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Store(t.Context(), tid.OID(i), 0, data); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Vote(t.Context()); err != nil {
			t.Fatal(err)
		}
		if last, err = x.Finish(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; ; i++ {
		ids, err := op.LastIDs(t.Context())
		if err == nil && ids.BackupTID.OK && ids.BackupTID.V >= last {
			break
		}
		if i == 600 {
			t.Fatalf("the backup has %+v, not %v", ids, last)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if _, err := op.SetClusterState(t.Context(), proto.StoppingBackup); err != nil {
		t.Fatal(err)
	}
	await(t, op, proto.Running)
	copied, err := client.Open(t.Context(), client.Config{Cluster: "down", Masters: []proto.Address{down.Master()}})
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	for i := range 20 {
		if got, _, err := copied.Load(t.Context(), tid.OID(i)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("object %d: %q, %v", i, got, err)
		}
	}
}

// A new database may be a backup from the beginning. It stays one after a restart, and
// gets what was committed meanwhile; without options its master ends.
func TestBackupRestart(t *testing.T) {
	up, _ := start(t, Config{Dir: t.TempDir(), Name: "up", Partitions: 4})
	cl, err := client.Open(t.Context(), client.Config{Cluster: "up", Masters: []proto.Address{up.Master()}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	store := func(oid tid.OID) tid.TID {
		x, err := cl.Begin(t.Context(), client.BeginOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Store(t.Context(), oid, 0, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Vote(t.Context()); err != nil {
			t.Fatal(err)
		}
		last, err := x.Finish(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return last
	}
	dir := t.TempDir()
	for i, upstream := range []master.Upstream{{Cluster: "up", Masters: []proto.Address{up.Master()}, Backup: true},
		{Cluster: "up", Masters: []proto.Address{up.Master()}}, {}} {
		last := store(tid.OID(i))
		cfg := Config{Dir: dir, Name: "down", Partitions: 4, Upstream: upstream}
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		if upstream.Cluster == "" {
			if err := <-done; !errors.Is(err, master.ErrNoUpstream) {
				t.Errorf("without upstream: %v", err)
			}
			cancel()
			return
		}
		op, err := ctl.Dial(t.Context(), c.Admin(), link.Config{})
		if err != nil {
			t.Fatal(err)
		}
		await(t, op, proto.BackingUp)
		for n := 0; ; n++ {
			ids, err := op.LastIDs(t.Context())
			if err == nil && ids.BackupTID.OK && ids.BackupTID.V >= last {
				break
			}
			if n == 600 {
				t.Fatalf("the backup has %+v, not %v", ids, last)
			}
			time.Sleep(50 * time.Millisecond)
		}
		op.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}
