package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/cmd/internal/cli"
)

func TestSources(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    options
		want map[string]source
		err  string
	}{
		{"cluster", options{cluster: "c", masters: "m:1"}, map[string]source{"1": {cluster: "c", masters: "m:1"}}, ""},
		{"file", options{file: "Data.fs", masters: "m:1"}, map[string]source{"1": {file: "Data.fs"}}, ""},
		{"names", options{cluster: "c", masters: "m:1", storages: []string{"a", "b", "old=x.fs", "2=neo://d@h:1,[::1]:2"}}, map[string]source{
			"a": {cluster: "c", masters: "m:1"}, "b": {cluster: "c", masters: "m:1"}, "old": {file: "x.fs"}, "2": {cluster: "d", masters: "h:1 [::1]:2"},
		}, ""},
		{"only others", options{storages: []string{"a=x.fs"}}, map[string]source{"a": {file: "x.fs"}}, ""},
		{"nothing", options{}, nil, "nothing to serve"},
		{"both", options{cluster: "c", file: "f"}, nil, "either"},
		{"twice", options{cluster: "c", storages: []string{"a", "a"}}, nil, "twice"},
		{"no name", options{cluster: "c", storages: []string{"=x"}}, nil, "no name"},
		{"no source", options{storages: []string{"a="}}, nil, "without source"},
		{"no masters", options{storages: []string{"a=neo://c"}}, nil, "want neo://"},
	} {
		got, err := tt.o.sources()
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(source{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
}

func TestListen(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "zeo.sock")
	for _, tt := range []struct{ bind, network, prefix string }{
		{"127.0.0.1:0", "tcp", "127.0.0.1:"},
		{"127.0.0.1", "tcp", "127.0.0.1:"},
		{"0", "tcp", "[::]:"},
		{socket, "unix", socket},
	} {
		l, err := listen(tt.bind)
		if err != nil {
			t.Errorf("%s: %v", tt.bind, err)
			continue
		}
		if l.Addr().Network() != tt.network || !strings.HasPrefix(l.Addr().String(), tt.prefix) {
			t.Errorf("%s: listening on %v", tt.bind, l.Addr())
		}
		if tt.network == "unix" {
			if _, err := listen(tt.bind); err == nil {
				t.Error("a socket in use was taken")
			}
			l.(*net.UnixListener).SetUnlinkOnClose(false) // as after a crash
		}
		l.Close()
	}
	l, err := listen(socket)
	if err != nil {
		t.Fatalf("a socket left by a crash: %v", err)
	}
	l.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(file); err == nil {
		t.Error("a file was replaced by a socket")
	}
}

func TestUsage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "neo.conf")
	if err := os.WriteFile(file, []byte("[zeo]\nbind = nowhere.invalid:0\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   string
		status int
		stderr string
	}{
		{"--help", 0, ""},
		{"", 2, "--bind"},
		{"-b 127.0.0.1:0", 2, "nothing to serve"},
		{"-b 127.0.0.1:0 --file none.fs", 1, "none.fs"},
		{"-b 127.0.0.1:0 -c c --ssl-certificate none.pem", 2, "--ssl-authenticate"},
		{"-b 127.0.0.1:0 -c c --ssl-key none.pem", 2, "--ssl-certificate"},
		{"-b 127.0.0.1:0 -m 127.0.0.1:1 --file x.fs", 2, "--cluster"},
		{"-b 127.0.0.1:0 -c c --cache-size x", 2, "size"},
		{"-b nowhere.invalid:0 --file x.fs", 1, "nowhere"},
		{"-f " + file + " --file none.fs", 1, "nowhere"},
		{"-f " + file + " -b 127.0.0.1:0 --file none.fs", 1, "none.fs"}, // instead of that of the file
		{"-b 127.0.0.1:0 --file none.fs --cache-size x", 2, "--cache-size"},
		{"-b nowhere.invalid --file none.fs", 1, "--bind: listen tcp: lookup nowhere.invalid"},
		{"extra", 2, "extra"},
		{"-b a:b:c --file none.fs", 2, "--bind"},
		{"-b localhost:http --file none.fs", 2, "--bind"},
		{"-b 127.0.0.1:0 --file -", 2, "neither stdin nor stdout"},
		{"-b 127.0.0.1:0 -c c -m h:x", 2, "h:x"},
		{"-b 127.0.0.1:0 -c c --transaction-timeout -1", 2, "--transaction-timeout"},
		{"-b 127.0.0.1:0 -c c --invalidation-age NaN", 2, "--invalidation-age"},
		{"-b 127.0.0.1:0 -c c --invalidation-queue-size 0", 2, "--invalidation-queue-size"},
	} {
		var stdout, stderr bytes.Buffer
		env := &cli.Env{Args: strings.Fields(tt.args), Stdout: &stdout, Stderr: &stderr, Getenv: func(string) string { return "" }}
		if status := cli.Run(t.Context(), env, newCommand); status != tt.status || !strings.Contains(stderr.String(), tt.stderr) {
			t.Errorf("neozeo %s: status %d, want %d; stderr %q", tt.args, status, tt.status, &stderr)
		}
	}
}

// Several storages have one port, and a Unix socket is as good.
func TestSeveralStorages(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "zeo.sock")
	start(t, &options{
		bind:     []string{socket},
		storages: []string{"a=../../testdata/fs/01-basic.fs", "b=../../testdata/fs/02-undo.fs"},
		pidFile:  filepath.Join(t.TempDir(), "pid"),
	})
	var last []any
	for _, name := range []string{"a", "b"} {
		nc, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		c, err := zeotest.Hello(nc, true)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		at, err := c.Call("register", name, true)
		if err != nil {
			t.Fatal(err)
		}
		last = append(last, at)
	}
	if cmp.Equal(last[0], last[1]) {
		t.Errorf("both storages have the last transaction %x", last[0])
	}
}

// What is committed through the command is in the cluster that it was told of.
func TestCluster(t *testing.T) {
	c, err := simple.New(simple.Config{Dir: t.TempDir(), Name: "test", Partitions: 2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	addr := start(t, &options{cluster: "test", masters: c.Master().String()}).String()
	client, err := zeotest.Register(addr, true)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	at, err := client.Commit(zeotest.Store{OID: 1, Data: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	if data, serial, _, err := client.LoadBefore(1, tid.Max); string(data) != "x" || serial != at || err != nil {
		t.Errorf("loaded %q of %v, %v; committed at %v", data, serial, err, at)
	}
}
