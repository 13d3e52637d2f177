package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cmd/internal/cli"
)

// start runs the command and returns its exit code and what it wrote to stderr.
func start(ctx context.Context, args ...string) (code int, stderr string) {
	var out, errOut bytes.Buffer
	env := &cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errOut, Getenv: func(string) string { return "" }}
	code = cli.Run(ctx, env, newCommand)
	return code, errOut.String()
}

func TestRefusals(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no cluster", nil, 2, "cluster"},
		{"unknown option", []string{"-c", "x", "--wrong"}, 2, "wrong"},
		{"argument", []string{"-c", "x", "word"}, 2, "word"},
		{"port in use", []string{"-c", "x", "-b", l.Addr().String()}, 1, "address already in use"},
		{"negative replicas", []string{"-c", "x", "-r", "-1"}, 2, "replicas must be a positive integer"},
		{"no partitions", []string{"-c", "x", "-p", "0"}, 2, "partitions must be more than zero"},
		{"backup of itself", []string{"-c", "x", "-C", "x", "-M", "127.0.0.1:1"}, 2, "must be different"},
		{"backup without masters", []string{"-c", "x", "-C", "y"}, 2, "upstream masters"},
		{"masters of no upstream cluster", []string{"-c", "x", "-M", "127.0.0.1:1"}, 2, "--upstream-cluster"},
		{"backup of nothing", []string{"-c", "x", "-B"}, 2, "--upstream-cluster"},
		{"schedule without upstream cluster", []string{"-c", "x", "--backup-schedule", "@daily"}, 2, "needs an upstream cluster"},
		{"schedule with an hour too many", []string{"-c", "x", "-C", "y", "-M", "127.0.0.1:1", "--backup-schedule", "0 25 * * *"}, 2, "--backup-schedule: schedule \"0 25 * * *\""},
		{"window without end", []string{"-c", "x", "-C", "y", "-M", "127.0.0.1:1", "--backup-window", "02:00"}, 2, "--backup-window"},
		{"bandwidth without number", []string{"-c", "x", "-C", "y", "-M", "127.0.0.1:1", "--backup-bandwidth", "fast"}, 2, "--backup-bandwidth"},
		{"delay without unit", []string{"-c", "x", "-C", "y", "-M", "127.0.0.1:1", "--backup-delay", "60"}, 2, "--backup-delay: \"60\""},
		{"incomplete TLS", []string{"-c", "x", "--ca", "nowhere.pem"}, 2, "3 files"},
		{"master list in no directory", []string{"-c", "x", "-D", filepath.Join(t.TempDir(), "no", "list")}, 1, "dynamic master list"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stderr := start(t.Context(), tt.args...)
			if code != tt.code || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit code %d, want %d; stderr %q, want %q in it", code, tt.code, stderr, tt.want)
			}
		})
	}
}

// A master with options from a file ends in order when it is told to, and keeps
// the masters it knows.
func TestRunsUntilStopped(t *testing.T) {
	dir := t.TempDir()
	file, list := filepath.Join(dir, "neo.conf"), filepath.Join(dir, "masters.json")
	text := "[DEFAULT]\ncluster: test\nreplicas: 1\npartitions: 12\n[master]\nbind: 127.0.0.1:0\ndynamic_master_list: " + list + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		code   int
		stderr string
	}
	ended := make(chan result, 1)
	go func() {
		code, stderr := start(ctx, "-f", file, "-m", "127.0.0.1:1", "-l", filepath.Join(dir, "log.db"))
		ended <- result{code, stderr}
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile(list); err == nil && strings.Count(string(b), "127.0.0.1") == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the masters are not saved")
		}
	}
	cancel()
	if r := <-ended; r.code != 0 || !strings.Contains(r.stderr, "listening on") || strings.Contains(r.stderr, "WARNING") {
		t.Errorf("exit code %d, stderr %q", r.code, r.stderr)
	}
}
