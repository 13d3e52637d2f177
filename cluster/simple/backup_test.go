package simple

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
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

// Clients of a backup are told of each transaction with its objects when all cells have it,
// as if it had been committed there.
func TestBackupTellsClients(t *testing.T) {
	up, _ := start(t, Config{Dir: t.TempDir(), Name: "up", Partitions: 4, Storages: 2})
	down, _ := start(t, Config{Dir: t.TempDir(), Name: "down", Partitions: 4, Storages: 2, Replicas: 1,
		Upstream: master.Upstream{Cluster: "up", Masters: []proto.Address{up.Master()}}})
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
	type change struct {
		tid  tid.TID
		oids []tid.OID
	}
	told := make(chan change, 100)
	reader, err := client.Open(t.Context(), client.Config{Cluster: "down", Masters: []proto.Address{down.Master()}, ReadOnly: true,
		OnInvalidate: func(id tid.TID, oids []tid.OID) { told <- change{id, oids} }})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var serial tid.TID
	for i := range 10 {
		x, err := cl.Begin(t.Context(), client.BeginOptions{})
		if err != nil {
			t.Fatal(err)
		}
		data := []byte{byte(i)}
		// The object that is changed each time is in the cache of the reader.
		for oid, before := range map[tid.OID]tid.TID{1: serial, tid.OID(10 + i): 0} {
			if err := x.Store(t.Context(), oid, before, data); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := x.Vote(t.Context()); err != nil {
			t.Fatal(err)
		}
		if serial, err = x.Finish(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-told:
			slices.Sort(got.oids)
			if want := []tid.OID{1, tid.OID(10 + i)}; got.tid != serial || !slices.Equal(got.oids, want) {
				t.Fatalf("told of %v with %v, want %v with %v", got.tid, got.oids, serial, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("a reader of the backup is not told of %v", serial)
		}
		// Load would give the revision before until LastTID names the transaction.
		if r, err := reader.LoadBefore(t.Context(), 1, serial+1); err != nil || r.Serial != serial || !bytes.Equal(r.Data, data) {
			t.Fatalf("the reader sees %q of %v (%v), want %q of %v", r.Data, r.Serial, err, data, serial)
		}
	}
}
