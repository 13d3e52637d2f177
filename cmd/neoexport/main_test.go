package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

func neoexport(t *testing.T, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	env := &cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &err, Getenv: os.Getenv}
	code = cli.Run(t.Context(), env, newCommand)
	return code, out.String(), err.String()
}

func sample(name string) string { return filepath.Join("..", "..", "testdata", "fs", name) }

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// startCluster runs a cluster with the history of a Data.fs and returns its master.
func startCluster(t *testing.T, file string, cfg simple.Config) string {
	t.Helper()
	cfg.Dir, cfg.Name = t.TempDir(), "test"
	c, err := simple.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("cluster: %v", err)
		}
	})
	wait, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	if err := c.WaitRunning(wait); err != nil {
		t.Fatal(err)
	}
	cl, err := client.Open(wait, client.Config{Cluster: "test", Masters: []proto.Address{c.Master()}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	r, err := fsformat.Open(file, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a := cl.NewAppender(wait, client.AppenderOptions{})
	if _, err := exporter.Copy(wait, a, r, 0, tid.Max, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return c.Master().String()
}

func TestExportCluster(t *testing.T) {
	for _, tt := range []struct {
		name   string
		packed bool
		cfg    simple.Config
	}{
		{"site.fs", false, simple.Config{Partitions: 4, Storages: 2}},
		{"05-packed.fs", true, simple.Config{Storages: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			masters := startCluster(t, sample(tt.name), tt.cfg)
			dst := filepath.Join(t.TempDir(), "Data.fs")
			args := []string{"-c", "test", "--verify"}
			if tt.packed {
				args = append(args, "--packed-up-to", lastPacked(t, sample(tt.name)))
			}
			code, stdout, stderr := neoexport(t, append(args, masters, dst)...)
			if code != 0 {
				t.Fatalf("exit %d\n%s%s", code, stdout, stderr)
			}
			if !bytes.Equal(read(t, dst), read(t, sample(tt.name))) {
				t.Error("the file is another one")
			}
		})
	}
}

func lastPacked(t *testing.T, path string) string {
	t.Helper()
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var last tid.TID
	for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		if tr.Status == 'p' {
			last = tr.TID
		}
	}
	return last.String()
}

// A file of a file is the same file, whatever the magic, except what never was
// committed.
func TestExportFile(t *testing.T) {
	for name, size := range map[string]int{
		"01-basic.fs": 0, "02-undo.fs": 0, "03-creation-undone.fs": 0, "04-deleted.fs": 0, "05-before-pack.fs": 0,
		"06-metadata.fs": 0, "07-btrees-refs.fs": 0, "08-truncated-tail.fs": 1135, "09-voted-tail.fs": 293, "site.fs": 0,
	} {
		dst := filepath.Join(t.TempDir(), "Data.fs")
		code, stdout, stderr := neoexport(t, "--verify", sample(name), dst)
		want := read(t, sample(name))
		if size > 0 {
			want = want[:size]
		}
		if code != 0 || !bytes.Equal(read(t, dst), want) {
			t.Errorf("%s: exit %d\n%s%s", name, code, stdout, stderr)
		}
	}
}

// A transaction with an invalid status is refused, or taken for a committed one.
func TestAnyStatus(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "source.fs"), filepath.Join(dir, "Data.fs")
	b := read(t, sample("01-basic.fs"))
	b[4+16] = 'x' // of the first transaction
	if err := os.WriteFile(src, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := neoexport(t, src, dst); code != 1 || !strings.Contains(stderr, "invalid status 'x'") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if code, _, stderr := neoexport(t, "--verify", "--any-status", src, dst); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if !bytes.Equal(read(t, dst), read(t, sample("01-basic.fs"))) {
		t.Error("the file is another one")
	}
}

func TestExportAt(t *testing.T) {
	var tids []tid.TID
	r, err := fsformat.Open(sample("01-basic.fs"), fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		tids = append(tids, tr.TID)
	}
	dst := filepath.Join(t.TempDir(), "Data.fs")
	for _, n := range []int{1, 3, len(tids)} { // each goes on where the one before ended
		at := tids[n-1].String()
		if n == 3 {
			at = "tid:" + "0x" + at
		}
		if code, stdout, stderr := neoexport(t, "--at", at, "-q", sample("01-basic.fs"), dst); code != 0 || stdout+stderr != "" {
			t.Fatalf("exit %d\n%s%s", code, stdout, stderr)
		}
		e, err := fsformat.Open(dst, fsformat.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if last, err := e.LastTID(t.Context()); last != tids[n-1] || err != nil {
			t.Errorf("--at %s: last transaction %v, %v", at, last, err)
		}
		e.Close()
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other.fs")
	if err := os.WriteFile(other, read(t, sample("02-undo.fs")), 0o600); err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(dir, "new.fs.part")
	if err := os.WriteFile(part, read(t, sample("02-undo.fs")), 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(dir, "locked.fs")
	w, err := fsformat.Create(locked, fsformat.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		stderr string
	}{
		{"destination with another history", []string{sample("01-basic.fs"), other}, 1, "is not the beginning of the source"},
		{"destination that is no database", []string{sample("01-basic.fs"), text}, 1, "text"},
		{"source that is no database", []string{text, other}, 1, "text"},
		{"destination in use", []string{sample("01-basic.fs"), locked}, 1, "lock"},
		{"the same file", []string{other, other}, 2, "same file"},
		{"the rest of an interrupted export", []string{"--restart", part, filepath.Join(dir, "new.fs")}, 2, "same file"},
		{"no directory", []string{sample("01-basic.fs"), filepath.Join(dir, "no", "where.fs")}, 1, "no such file"},
		{"cluster without name", []string{"127.0.0.1:1", other}, 2, "-c"},
		{"moment", []string{"--at", "yesterday", other, text}, 2, "--at"},
		{"before everything", []string{"--at", "tid:0", other, text}, 2, "--at"},
		{"magic", []string{"--magic", "FS99", other, filepath.Join(dir, "other.fs.new")}, 1, "FS99"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, _, stderr := neoexport(t, tt.args...)
			if code != tt.code || !strings.Contains(stderr, tt.stderr) {
				t.Errorf("exit %d, want %d with %q: %s", code, tt.code, tt.stderr, stderr)
			}
		})
	}
	if !bytes.Equal(read(t, other), read(t, sample("02-undo.fs"))) || !bytes.Equal(read(t, part), read(t, sample("02-undo.fs"))) || string(read(t, text)) != "not a database" {
		t.Error("a refused destination, or a source, was changed")
	}
}
