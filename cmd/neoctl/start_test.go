package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// runSimple runs a cluster of a directory until stop is called. It is not waited for.
func runSimple(t *testing.T, cfg simple.Config) (c *simple.Cluster, stop func()) {
	t.Helper()
	c, err := simple.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return c, stop
}

// commit stores some objects.
func commit(t *testing.T, c *simple.Cluster, n int) {
	t.Helper()
	if err := c.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	cl, err := client.Open(t.Context(), client.Config{Cluster: c.Name(), Masters: []proto.Address{c.Master()}, Dialer: &link.Dialer{}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for range n {
		oids, err := cl.NewOIDs(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		txn, err := cl.Begin(t.Context(), client.BeginOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := txn.Store(t.Context(), oids[0], 0, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := txn.Vote(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := txn.Finish(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// An operator is told what a start may lose, and starts nothing by accident.
func TestStartThatMayLose(t *testing.T) {
	dir := t.TempDir()
	cfg := simple.Config{Dir: dir, Storages: 2, Partitions: 4}
	second, older := filepath.Join(dir, "storage2.sqlite"), filepath.Join(t.TempDir(), "copy")
	c, stop := runSimple(t, cfg)
	commit(t, c, 10)
	stop()
	copyFile(t, second, older)
	c, stop = runSimple(t, cfg)
	commit(t, c, 10)
	stop()
	copyFile(t, older, second)
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(second + suffix); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}

	c, _ = runSimple(t, cfg)
	run := func(stdin io.Reader, args ...string) (string, string, int) {
		t.Helper()
		var out, errOut bytes.Buffer
		env := &cli.Env{Args: append([]string{"-a", c.Admin().String()}, args...), Stdin: stdin, Stdout: &out, Stderr: &errOut}
		code := cli.Run(t.Context(), env, newCommand)
		return out.String(), errOut.String(), code
	}
	// The storages come, and the master has asked them.
	deadline := time.Now().Add(time.Minute)
	for {
		_, stderr, code := run(nil, "start")
		if code == 1 && strings.Contains(stderr, "older copy") {
			break
		}
		if code == 0 || time.Now().After(deadline) {
			t.Fatalf("start: exit %d, %q", code, stderr)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, tt := range []struct {
		stdin io.Reader
		says  string
	}{
		{nil, "neoctl start --accept-loss"},
		{nil, "has an older copy of its database, with partition table "},
		{strings.NewReader(""), "Not started."},
		{strings.NewReader("yes\n"), "Not started."},
	} {
		stdout, stderr, code := run(tt.stdin, "start")
		if code != 1 || stdout != "" || !strings.Contains(stderr, tt.says) || !strings.Contains(stderr, "LOSE TRANSACTIONS") {
			t.Errorf("start: exit %d, %q, %q", code, stdout, stderr)
		}
		if stdout, _, _ := run(nil, "print", "cluster"); stdout != "RECOVERING\n" {
			t.Fatalf("the cluster is %q", stdout)
		}
	}
	if err := c.WaitRunning(t.Context()); err == nil || !strings.Contains(err.Error(), "older copy") {
		t.Errorf("waiting for it: %v", err)
	}
	if stdout, stderr, code := run(strings.NewReader(confirmation+"\n"), "start"); code != 0 || stdout != "Cluster state changed\n" {
		t.Errorf("confirmed: exit %d, %q, %q", code, stdout, stderr)
	}
	if err := c.WaitRunning(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAcceptLoss(t *testing.T) {
	admin := startCluster(t, simple.Config{Storages: 1})
	stdout, stderr, code := runCtl(t, "-a", admin, "start", "--accept-loss")
	if code != 1 || stdout != "" || stderr != "RUNNING does not lead to VERIFYING\n" {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	if _, _, code := runCtl(t, "-a", admin, "start", "--yes"); code != 2 {
		t.Errorf("another word: exit %d", code)
	}
}
