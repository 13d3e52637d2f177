package main

import (
	"context"
	"crypto/sha1"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/testlog"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/ports"
)

// runBackup runs a backup of a cluster on a directory until it is stopped. It returns
// when that has everything up to a transaction.
func runBackup(t *testing.T, dir string, up *simple.Cluster, last tid.TID, cfg simple.Config) (ctl func(args string) (string, int), stop func()) {
	t.Helper()
	cfg.Dir, cfg.Name, cfg.Partitions = dir, "down", partitions
	cfg.Upstream.Cluster, cfg.Upstream.Masters, cfg.Upstream.Backup = up.Name(), []proto.Address{up.Master()}, true
	c, err := simple.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	ctl = func(args string) (string, int) {
		t.Helper()
		stdout, stderr, code := runCtl(t, append([]string{"-a", c.Admin().String()}, strings.Fields(args)...)...)
		return stdout + stderr, code
	}
	awaitText(t, ctl, "print cluster", "BACKINGUP")
	awaitText(t, ctl, "print ids", fmt.Sprintf("backup_tid = %#x", uint64(last)))
	return ctl, stop
}

// awaitText waits until a command says something.
func awaitText(t *testing.T, ctl func(string) (string, int), args, text string) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		out, _ := ctl(args)
		if strings.Contains(out, text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("neoctl %s does not say %q:\n%s", args, text, out)
		}
	}
}

// commitAll stores two objects of each partition.
func commitAll(t *testing.T, cl *client.Client, base tid.TID, text string) tid.TID {
	t.Helper()
	tx, err := cl.Begin(t.Context(), client.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for oid := range tid.OID(2 * partitions) {
		if err := tx.Store(t.Context(), oid, base, fmt.Appendf(nil, "%s revision of object %d", text, oid)); err != nil {
			t.Fatal(err)
		}
	}
	at, err := tx.Finish(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// A check of a backup cluster with one copy of each partition finds what differs from the
// upstream cluster. Nothing is repaired from there.
func TestCheckUpstream(t *testing.T) {
	up, stopUp := runCluster(t, t.TempDir(), simple.Config{Name: "up", Partitions: partitions})
	cl, err := client.Open(t.Context(), client.Config{Cluster: "up", Masters: []proto.Address{up.Master()}, Level: client.NoCompression})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	t1 := commitAll(t, cl, 0, "first")
	t2 := commitAll(t, cl, t1, "second")
	dir := t.TempDir()
	ctl, stop := runBackup(t, dir, up, t2, simple.Config{})
	say := func(args string, code int, want ...string) {
		t.Helper()
		out, got := ctl(args)
		if got != code {
			t.Errorf("neoctl %s: exit %d, want %d:\n%s", args, got, code, out)
		}
		for _, text := range want {
			if !strings.Contains(out, text) {
				t.Errorf("neoctl %s does not say %q:\n%s", args, text, out)
			}
		}
	}
	rows := 4*partitions + 2
	equal := fmt.Sprintf("%d transactions and records of %d partitions compared with cluster up: no difference found\n", rows, partitions)
	say("check", 0, equal)
	say("check : 0 tid:0x7fffffffffffffff", 0, fmt.Sprintf("partitions 0-7: compared up to %v only: some copies have nothing later yet\n", t2), equal)
	say("check --local", 0, "partitions 0-7: only S1 has it: only checksums were verified\n",
		fmt.Sprintf("%d transactions and records of %d partitions compared: no difference found\n", rows, partitions))
	say("repair --from upstream S1", 2, "nothing is repaired from the upstream cluster")
	stop()

	id := func(x uint64) string { return fmt.Sprintf("%#016x", x) }
	other := proto.ObjectData{Checksum: sha1.Sum([]byte("other")), Data: []byte("other")}
	spoil(t, filepath.Join(dir, "storage1.sqlite"), func(db backend.Backend) error {
		if err := db.DeleteObject(0, t1); err != nil {
			return err
		}
		return db.AddObject(partitions*9+1, t1, other, proto.Opt[tid.TID]{})
	})
	ctl, _ = runBackup(t, dir, up, t2, simple.Config{})
	differ := []string{
		fmt.Sprintf("partition 0: S1: missing record, oid %s, tid %s\n", id(0), id(uint64(t1))),
		fmt.Sprintf("partition 1: S1: extra record, oid %s, tid %s\n", id(partitions*9+1), id(uint64(t1))),
		"compared with cluster up: 2 differences found in S1\n",
	}
	say("check", 1, differ...)
	say("check --local", 0, "no difference found")
	summary := "CHECK: replicas differ (2 differences; partitions 0, 1; node S1)\n"
	say("print summary", 0, summary) // the replicas alone say nothing about that

	// Upstream is packed. Whether the order is executed here or not: no other difference.
	order, err := cl.Pack(t.Context(), t2)
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.WaitForPack(t.Context(), order); err != nil {
		t.Fatal(err)
	}
	awaitText(t, ctl, "print ids", fmt.Sprintf("backup_tid = %#x", uint64(order)))
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		out, _ := ctl("check")
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "partition ") && line != differ[1] && !strings.Contains(line, "executed pack orders") {
				t.Errorf("a difference that a pack explains: %s", line)
			}
		}
		if strings.HasPrefix(out, differ[1]) && !strings.Contains(out, "executed pack orders") || strings.Contains(out, "no difference found") {
			break // the order is executed: it may have deleted what is only here
		}
		if time.Now().After(deadline) {
			t.Fatalf("the pack is not executed:\n%s", out)
		}
	}

	stopUp()
	awaitText(t, ctl, "print cluster", "STARTING_BACKUP")
	say("check", 1, `the upstream cluster "up" is not connected; neoctl check --local compares the replicas of this cluster only`)
	say("check --local", 0, "no difference found")
	say("repair --from S1 S2", 1, "S1 has no partition in common")
}

// A cluster that has the name and the address of the upstream cluster, and its partitions,
// but another history, is not followed: nothing is fetched. When the right one comes back
// it is followed again, also if it was packed meanwhile.
func TestBackupOtherHistory(t *testing.T) {
	upDir, dir := t.TempDir(), t.TempDir()
	port, err := ports.Free() // one that nothing else takes while no cluster is there
	if err != nil {
		t.Fatal(err)
	}
	address := proto.Address{Host: "127.0.0.1", Port: uint16(port)}
	up, stopUp := runCluster(t, upDir, simple.Config{Name: "up", Partitions: partitions, Master: address})
	open := func(master proto.Address) *client.Client {
		t.Helper()
		cl, err := client.Open(t.Context(), client.Config{Cluster: "up", Masters: []proto.Address{master}, Level: client.NoCompression})
		if err != nil {
			t.Fatal(err)
		}
		return cl
	}
	cl := open(address)
	t1 := commitAll(t, cl, 0, "first")
	t2 := commitAll(t, cl, t1, "second")
	cl.Close()
	var log testlog.Buffer
	cfg := simple.Config{Log: slog.New(slog.NewTextHandler(&log, nil))}
	ctl, stop := runBackup(t, dir, up, t2, cfg)
	stopUp()
	awaitText(t, ctl, "print cluster", "STARTING_BACKUP")

	// It gets its transactions elsewhere: an empty one would be taken for the right one, truncated.
	otherDir := t.TempDir()
	other, stopOther := runCluster(t, otherDir, simple.Config{Name: "up", Partitions: partitions})
	cl = open(other.Master())
	last := commitAll(t, cl, commitAll(t, cl, 0, "third"), "fourth")
	cl.Close()
	stopOther()
	_, stopOther = runCluster(t, otherDir, simple.Config{Name: "up", Partitions: partitions, Master: address})
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(log.String(), "another history"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the other cluster is not refused:\n%s", log.String())
		}
	}
	if out, _ := ctl("print cluster"); !strings.Contains(out, "STARTING_BACKUP") {
		t.Errorf("state: %s", out)
	}
	if out, _ := ctl("print ids"); !strings.Contains(out, fmt.Sprintf("backup_tid = %#x", uint64(t2))) {
		t.Errorf("it is not as before:\n%s", out)
	}
	time.Sleep(2500 * time.Millisecond) // it is refused again each second
	if n := strings.Count(log.String(), "another history"); n > 1 {
		t.Errorf("said %d times", n)
	}
	stopOther()
	stop()
	rows := contents(t, filepath.Join(dir, "storage1.sqlite"))
	for _, row := range rows {
		if strings.Contains(row, "third") || strings.Contains(row, "fourth") || strings.HasPrefix(row, last.String()) {
			t.Errorf("fetched from the other cluster: %s", row)
		}
	}
	if want := 4*partitions + 2; len(rows) != want {
		t.Errorf("%d rows, want %d", len(rows), want)
	}

	up, _ = runCluster(t, upDir, simple.Config{Master: address})
	cl = open(address)
	defer cl.Close()
	order, err := cl.Pack(t.Context(), t2)
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.WaitForPack(t.Context(), order); err != nil {
		t.Fatal(err)
	}
	t3 := commitAll(t, cl, t2, "fifth")
	runBackup(t, dir, up, t3, simple.Config{})
}
