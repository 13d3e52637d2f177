package simple

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// backupOf completes the configuration of a cluster that is, or may become, the backup of another one.
func backupOf(up *Cluster, cfg Config) Config {
	cfg.Name, cfg.Upstream.Cluster, cfg.Upstream.Masters = "down", up.Name(), []proto.Address{up.Master()}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return cfg
}

// open connects a client.
func open(t *testing.T, c *Cluster, cfg client.Config) *client.Client {
	t.Helper()
	cfg.Cluster, cfg.Masters = c.Name(), []proto.Address{c.Master()}
	cl, err := client.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	return cl
}

// store commits the same data for objects, as they were at the last commit of the client.
func store(t *testing.T, cl *client.Client, data string, oids ...tid.OID) tid.TID {
	t.Helper()
	x, err := cl.Begin(t.Context(), client.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, oid := range oids {
		_, serial, err := cl.Load(t.Context(), oid)
		if err != nil && !errors.Is(err, txn.ErrNoSuchObject) {
			t.Fatal(err)
		}
		if err := x.Store(t.Context(), oid, serial, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := x.Vote(t.Context()); err != nil {
		t.Fatal(err)
	}
	id, err := x.Finish(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func await(t *testing.T, c *ctl.Client, want proto.ClusterState) {
	t.Helper()
	for range 2400 {
		if s, err := c.ClusterState(t.Context()); err == nil && s == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the cluster does not become %v", want)
}

// awaitBackup waits until a backup has a transaction.
func awaitBackup(t *testing.T, c *ctl.Client, id tid.TID) {
	t.Helper()
	var ids *ctl.LastIDs
	for range 2400 {
		var err error
		if ids, err = c.LastIDs(t.Context()); err == nil && ids.BackupTID.OK && ids.BackupTID.V >= id {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the backup has %+v, not %v", ids, id)
}

// A running cluster becomes a backup, follows its upstream cluster, and has what that
// one has once it is left.
func TestBackup(t *testing.T) {
	up, _ := start(t, Config{Dir: t.TempDir(), Name: "up", Partitions: 4})
	down, _ := start(t, backupOf(up, Config{Dir: t.TempDir(), Partitions: 4, Storages: 2, Replicas: 1}))
	op := dial(t, down)
	if _, err := op.SetClusterState(t.Context(), proto.StartingBackup); err != nil {
		t.Fatal(err)
	}
	await(t, op, proto.BackingUp)
	cl := open(t, up, client.Config{})
	var last tid.TID
	for i := range tid.OID(20) {
		last = store(t, cl, "a record", i)
	}
	awaitBackup(t, op, last)
	if _, err := op.SetClusterState(t.Context(), proto.StoppingBackup); err != nil {
		t.Fatal(err)
	}
	await(t, op, proto.Running)
	copied := open(t, down, client.Config{})
	for i := range tid.OID(20) {
		if got, _, err := copied.Load(t.Context(), i); err != nil || string(got) != "a record" {
			t.Errorf("object %d: %q, %v", i, got, err)
		}
	}
}

// A new database may be a backup from the beginning. It stays one after a restart, and
// gets what was committed meanwhile; without options its master ends.
func TestBackupRestart(t *testing.T) {
	up, _ := start(t, Config{Dir: t.TempDir(), Name: "up", Partitions: 4})
	cl := open(t, up, client.Config{})
	dir := t.TempDir()
	for i, backup := range []bool{true, false} {
		last := store(t, cl, "x", tid.OID(i))
		down, stop := run(t, backupOf(up, Config{Dir: dir, Partitions: 4, Upstream: master.Upstream{Backup: backup}}))
		op := dial(t, down)
		await(t, op, proto.BackingUp)
		awaitBackup(t, op, last)
		stop()
	}
	down, err := New(Config{Dir: dir, Name: "down", Partitions: 4})
	if err != nil {
		t.Fatal(err)
	}
	if err := down.Run(t.Context()); !errors.Is(err, master.ErrNoUpstream) {
		t.Errorf("without upstream: %v", err)
	}
}

// Clients of a backup are told of each transaction with its objects when all cells have it,
// as if it had been committed there.
func TestBackupTellsClients(t *testing.T) {
	up, _ := start(t, Config{Dir: t.TempDir(), Name: "up", Partitions: 4, Storages: 2})
	down, _ := start(t, backupOf(up, Config{Dir: t.TempDir(), Partitions: 4, Storages: 2, Replicas: 1}))
	op := dial(t, down)
	if _, err := op.SetClusterState(t.Context(), proto.StartingBackup); err != nil {
		t.Fatal(err)
	}
	await(t, op, proto.BackingUp)
	cl := open(t, up, client.Config{})
	type change struct {
		tid  tid.TID
		oids []tid.OID
	}
	told := make(chan change, 100)
	reader := open(t, down, client.Config{ReadOnly: true, OnInvalidate: func(id tid.TID, oids []tid.OID) { told <- change{id, oids} }})
	for i := range 10 {
		// The object that is changed each time is in the cache of the reader.
		data, oids := fmt.Sprint(i), []tid.OID{1, tid.OID(10 + i)}
		last := store(t, cl, data, oids...)
		select {
		case got := <-told:
			slices.Sort(got.oids)
			if got.tid != last || !slices.Equal(got.oids, oids) {
				t.Fatalf("told of %v with %v, want %v with %v", got.tid, got.oids, last, oids)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("a reader of the backup is not told of %v", last)
		}
		// Load would give the revision before until LastTID names the transaction.
		if r, err := reader.LoadBefore(t.Context(), 1, last+1); err != nil || r.Serial != last || string(r.Data) != data {
			t.Fatalf("the reader sees %q of %v (%v), want %q of %v", r.Data, r.Serial, err, data, last)
		}
	}
}
