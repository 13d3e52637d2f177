package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/ports"
)

func runAdmin(ctx context.Context, args ...string) (code int, stderr string) {
	var out, errOut bytes.Buffer
	env := &cli.Env{Args: args, Stdout: &out, Stderr: &errOut, Getenv: func(k string) string { return map[string]string{"EMAIL": "neo@example.com"}[k] }}
	code = cli.Run(ctx, env, newCommand)
	return code, errOut.String()
}

// A second admin joins a cluster with what its configuration file says, and ends
// with the cluster.
func TestJoins(t *testing.T) {
	dir := t.TempDir()
	cluster, err := simple.New(simple.Config{Dir: filepath.Join(dir, "db"), Name: "c"})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cluster.Run(t.Context()) }()
	if err := cluster.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}

	port, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	addr := proto.Address{Host: "127.0.0.1", Port: uint16(port)}
	file := filepath.Join(dir, "neo.conf")
	text := "[DEFAULT]\ncluster: c\nmasters: " + cluster.Master().String() + "\n[admin]\nbind: " + addr.String() +
		"\ndynamic_master_list: " + filepath.Join(dir, "masters.json") + "\nmonitor_backup: bk1\n bk2\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan int, 1)
	go func() {
		code, stderr := runAdmin(t.Context(), "-f", file)
		t.Log(stderr)
		done <- code
	}()
	var client *ctl.Client
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if client == nil {
			if client, err = ctl.Dial(t.Context(), addr, link.Config{}); err != nil {
				client = nil
			}
		}
		if client != nil {
			if state, err := client.ClusterState(t.Context()); err == nil && state == proto.Running {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no answer: %v", err)
		}
	}
	defer client.Close()
	p, err := client.Summary(t.Context())
	if err != nil || !strings.Contains(p.Summary, "\n\nbk1\n    None\n\nbk2\n    None") {
		t.Errorf("summary %v, %v", p, err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(dir, "masters.json"))
		if err == nil && strings.Contains(string(b), cluster.Master().Host) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("masters %s, %v", b, err)
		}
	}
	if _, err := client.SetClusterState(t.Context(), proto.Stopping); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 0 {
		t.Errorf("exit %d", code)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"", 2, "--cluster"},
		{"-c x -m nonsense:", 2, "nonsense"},
		{"-c x --masters=", 2, "no master address"},
		{"-c x --ca a", 2, "3 files must be provided"},
		{"-c x -b 127.0.0.1:99999", 2, "99999"},
		{"-c x --monitor-maxlag -1", 2, "--monitor-maxlag must be 0 seconds or more"},
		{"-c x --monitor-maxlag NaN", 2, "--monitor-maxlag must be 0 seconds or more"},
		{"-c x --monitor-interval 0", 2, "--monitor-interval must be more than 0 seconds"},
		{"-c x --monitor-interval NaN", 2, "--monitor-interval must be more than 0 seconds"},
		{"-c x --monitor-maxlag 5", 2, "--monitor-backup"},
		{"-c x --monitor-interval 5", 2, "--monitor-email"},
		{"-c x --smtp localhost", 2, "--monitor-email"},
		{"-c x --smtp-tls", 2, "--monitor-email"},
		{"-c x --smtp-auth a:b", 2, "--monitor-email"},
		{"-c x -s admin", 2, "none is given"},
		{"-c x --peer-timeout 1", 2, "--peer-timeout must be between 3 and 86400 seconds"},
		{"-c x --peer-timeout soon", 2, "--peer-timeout: \"soon\" is not a number"},
		{"-c x --logfile-size -1", 2, "--logfile-size must be 0 MB or more"},
		{"-c x --monitor-email nobody", 2, "nobody"},
		{"-c x --monitor-email a@b --smtp-auth user", 2, "USER:PASSWORD"},
		{"-c x -f /no/such/file", 2, "no such file"},
		{"-c x word", 2, "word"},
	} {
		code, stderr := runAdmin(t.Context(), strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(stderr, tt.want) {
			t.Errorf("neoadmin %s: exit %d, %s; want %d, %q", tt.args, code, stderr, tt.code, tt.want)
		}
	}
}

func TestMailer(t *testing.T) {
	o := options{mailTo: []string{"a@example.com"}, smtp: "mail.example.com", smtpAuth: "user:pass:word"}
	o.Cluster = "main"
	m, err := o.mailer(&cli.Env{Getenv: func(string) string { return "neo@example.com" }})
	if err != nil {
		t.Fatal(err)
	}
	if m.Server != "mail.example.com:25" || m.User != "user" || m.Password != "pass:word" || m.From.String() != `"NEO main" <neo@example.com>` {
		t.Errorf("mailer %+v", m)
	}
}
