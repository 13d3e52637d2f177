package client_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"
	"time"

	_ "modernc.org/sqlite" // with -race the product has another driver

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
)

// What the disk of a storage has damaged is read from another replica. If there is no
// other, it is an error, unless the client was told to take what there is.
func TestDamagedDatabase(t *testing.T) {
	dir := t.TempDir()
	run := func(use func(ctx context.Context, masters []proto.Address)) {
		t.Helper()
		cluster, err := simple.New(simple.Config{Dir: dir, Name: "test", Partitions: 1, Replicas: 1, Storages: 2})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		ended := make(chan error, 1)
		go func() { ended <- cluster.Run(ctx) }()
		if err := cluster.WaitRunning(ctx); err != nil {
			t.Error(err)
		} else {
			use(ctx, []proto.Address{cluster.Master()})
		}
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	// load uses clients of their own, so that both storages are asked.
	load := func(ignore bool, check func(data []byte, err error)) {
		t.Helper()
		run(func(ctx context.Context, masters []proto.Address) {
			for range 8 {
				c, err := client.Open(ctx, client.Config{Cluster: "test", Masters: masters, IgnoreWrongChecksum: ignore})
				if err != nil {
					t.Error(err)
					return
				}
				data, _, err := c.Load(ctx, 1)
				check(data, err)
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	damage := func(name string) {
		t.Helper()
		db, err := sql.Open("sqlite", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec("UPDATE data SET value = X'00'"); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	run(func(ctx context.Context, masters []proto.Address) {
		c, err := client.Open(ctx, client.Config{Cluster: "test", Masters: masters})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		txn, err := c.Begin(ctx, client.BeginOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := txn.Store(ctx, 1, 0, []byte("good")); err != nil {
			t.Fatal(err)
		}
		if _, err := txn.Finish(ctx, nil); err != nil {
			t.Fatal(err)
		}
	})
	damage("storage1.sqlite")
	load(false, func(data []byte, err error) {
		if string(data) != "good" || err != nil {
			t.Errorf("one replica is good: loaded %q, %v", data, err)
		}
	})
	damage("storage2.sqlite")
	load(false, func(data []byte, err error) {
		if !errors.Is(err, client.ErrChecksum) {
			t.Errorf("both replicas are damaged: loaded %q, %v", data, err)
		}
	})
	load(true, func(data []byte, err error) {
		if string(data) != "\x00" || err != nil {
			t.Errorf("both replicas are damaged, which is ignored: loaded %q, %v", data, err)
		}
	})
}
