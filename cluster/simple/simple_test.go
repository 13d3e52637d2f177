package simple

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// run runs a cluster, without to wait for it. stop stops it and checks its end.
func run(t *testing.T, cfg Config) (c *Cluster, stop func()) {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return c, stop
}

// start runs a cluster until it is RUNNING.
func start(t *testing.T, cfg Config) (c *Cluster, stop func()) {
	t.Helper()
	c, stop = run(t, cfg)
	waiting, cancelWait := context.WithTimeout(t.Context(), time.Minute)
	defer cancelWait()
	if err := c.WaitRunning(waiting); err != nil {
		t.Fatal(err)
	}
	return c, stop
}

func dial(t *testing.T, c *Cluster) *ctl.Client {
	t.Helper()
	client, err := ctl.Dial(t.Context(), c.Admin(), link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// What a directory was created with stays: it is found again, and other values
// are refused.
func TestDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "db")
	c, stop := start(t, Config{Dir: dir, Name: "n1", Storages: 2, Replicas: 1, Partitions: 5})
	if c.Existing() {
		t.Error("a new database is said to exist")
	}
	table, err := dial(t, c).PartitionTable(t.Context(), 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(table.Rows) != 5 || table.Replicas != 1 || len(table.Rows[0]) != 2 {
		t.Errorf("partition table %+v", table)
	}

	if _, err := New(Config{Dir: dir}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second process: %v", err)
	}
	stop()

	for want, cfg := range map[string]Config{
		`belongs to cluster "n1", not "n2"`: {Dir: dir, Name: "n2"},
		"databases of 2 storages, not 3":    {Dir: dir, Storages: 3},
		"databases of 2 storages, not 1":    {Dir: dir, Storages: 1},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want %q", cfg, err, want)
		}
	}

	// Nothing of the refused ones is left: the directory can be used.
	c, stop = start(t, Config{Dir: dir})
	defer stop()
	if !c.Existing() || c.Name() != "n1" || c.Storages() != 2 {
		t.Errorf("found cluster %q of %d storages, existing %v", c.Name(), c.Storages(), c.Existing())
	}
}

// An address that is taken is told, and everything else is released.
func TestAddressInUse(t *testing.T) {
	c, stop := start(t, Config{Dir: t.TempDir()})
	defer stop()
	dir := t.TempDir()
	for name, cfg := range map[string]Config{
		"master": {Dir: dir, Master: c.Master()},
		"admin":  {Dir: dir, Admin: c.Master()},
	} {
		if _, err := New(cfg); err == nil || !strings.HasPrefix(err.Error(), name+": ") || !strings.Contains(err.Error(), c.Master().String()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, stopSecond := start(t, Config{Dir: dir})
	stopSecond()
}

func TestUnusableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Dir: file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file as directory: %v", err)
	}
	if _, err := New(Config{Dir: t.TempDir(), Replicas: 1}); err == nil || !strings.Contains(err.Error(), "at least 2 storages") {
		t.Errorf("more replicas than storages: %v", err)
	}
}

// An operator can stop the cluster, as any other.
func TestStoppedByOperator(t *testing.T) {
	c, err := New(Config{Dir: t.TempDir(), Storages: 2})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(t.Context()) }()
	if err := c.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := dial(t, c)
	if _, err := client.SetClusterState(t.Context(), proto.Stopping); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("still running a minute after it was stopped")
	}
}

// A node that an operator stops does not take the others along.
func TestKilledStorage(t *testing.T) {
	c, stop := start(t, Config{Dir: t.TempDir(), Storages: 2, Replicas: 1})
	defer stop()
	client := dial(t, c)
	if _, err := client.Kill(t.Context(), proto.Storage.ID(2)); err != nil {
		t.Fatal(err)
	}
	state, err := client.ClusterState(t.Context())
	if err != nil || state != proto.Running {
		t.Errorf("cluster is %v, %v", state, err)
	}
}

func TestInterruptedStart(t *testing.T) {
	c, err := New(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Error(err)
	}
}
