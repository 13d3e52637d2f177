package status_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	adminnode "github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/status"
)

// A real cluster is known with names, databases and counters; and what is lost, with since when.
func TestCollect(t *testing.T) {
	dir := t.TempDir()
	c, err := simple.New(simple.Config{Dir: dir, Name: "test", Partitions: 4, Storages: 2, Replicas: 1, Version: "v9"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	cl, err := client.Open(ctx, client.Config{Cluster: "test", Masters: []proto.Address{c.Master()}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	tx, err := cl.Begin(ctx, client.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Store(ctx, 1, 0, []byte("data")); err != nil {
		t.Fatal(err)
	}
	last, err := tx.Finish(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	order, err := cl.Pack(ctx, last)
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.WaitForPack(ctx, order); err != nil {
		t.Fatal(err)
	}
	admin, err := ctl.Dial(ctx, c.Admin(), link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	await := func(what string, ok func(*status.Status) bool) *status.Status {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
			s, err := status.Collect(ctx, admin)
			if err != nil {
				t.Fatal(err)
			}
			if ok(s) {
				return s
			}
			if time.Now().After(end) {
				text, _ := json.MarshalIndent(s, "", "  ")
				t.Fatalf("not %s:\n%s", what, text)
			}
		}
	}
	s := await("known with its pack order", func(s *status.Status) bool {
		for _, id := range []string{"M1", "A1", "S1", "S2"} {
			if n := s.Node(id); n == nil || n.Host == "" {
				return false
			}
		}
		return s.Pack != nil && s.Pack.Done
	})
	host, _ := os.Hostname()
	s2 := s.Node("S2")
	if s2.Host != host || s2.Adapter != "SQLite" || filepath.Dir(s2.Database) != dir || s2.Version != "v9" || s2.Started == nil || s2.Since == nil || s2.Cells["UP_TO_DATE"] != 4 {
		t.Errorf("%+v", s2)
	}
	if s.Cluster != "test" || s.State != "RUNNING" || s.Primary != "M1" || s.Last.TID != status.ID(order) || s.Partitions.Replicas != 1 || len(s.Partitions.Rows) != 4 {
		t.Errorf("%+v", s)
	}
	if s.Pack.Order.TID != status.ID(order) || s.Pack.UpTo.TID != status.ID(last) {
		t.Errorf("%+v", s.Pack)
	}
	for _, id := range []string{"M1", "A1"} {
		if n := s.Node(id); n == nil || n.Host != host || n.Version != "v9" {
			t.Errorf("%s: %+v", id, n)
		}
	}
	if h := s.Health(); h.Level != status.OK || len(h.Reasons) > 0 {
		t.Errorf("%+v", h)
	}

	killed := time.Now()
	if _, err := admin.Kill(ctx, 2); err != nil {
		t.Fatal(err)
	}
	s = await("degraded", func(s *status.Status) bool { return s.Health().Level == status.Degraded && s.Node("S2").Since != nil })
	if n := s.Node("S2"); n.Running() || n.Database != s2.Database || n.Since.Before(killed) {
		t.Errorf("%+v", n)
	}
	if len(s.Replication) != 4 || s.Replication[0].Running {
		t.Errorf("%+v", s.Replication)
	}

	// An admin that comes later knows as much.
	later, err := adminnode.New(adminnode.Config{Cluster: "test", Bind: proto.Address{Host: "127.0.0.1"}, Masters: bootstrap.NewMasters(c.Master())})
	if err != nil {
		t.Fatal(err)
	}
	laterCtx, stopLater := context.WithCancel(ctx)
	laterDone := make(chan error, 1)
	go func() { laterDone <- later.Run(laterCtx) }()
	defer func() {
		stopLater()
		<-laterDone
	}()
	first := s
	admin2, err := ctl.Dial(ctx, later.Addr(), link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer admin2.Close()
	admin.Close()
	admin = admin2
	s = await("as much", func(s *status.Status) bool {
		return s.Node("S2") != nil && s.Node("S2").Since != nil && s.Node("S2").Database != "" && s.Pack != nil
	})
	if diff := cmp.Diff(first.Node("S2"), s.Node("S2")); diff != "" {
		t.Errorf("(-first +later):\n%s", diff)
	}
	if diff := cmp.Diff(first.Pack, s.Pack); diff != "" {
		t.Errorf("(-first +later):\n%s", diff)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var again status.Status
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if second, err := json.Marshal(again); err != nil || string(second) != string(text) {
		t.Errorf("%v\n%s\n%s", err, text, second)
	}
}
