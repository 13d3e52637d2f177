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

// startCluster runs a cluster until the end of the test.
func startCluster(t *testing.T, cfg simple.Config) *simple.Cluster {
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
	wait, stop := context.WithTimeout(ctx, 2*time.Minute)
	defer stop()
	if err := c.WaitRunning(wait); err != nil {
		t.Fatal(err)
	}
	return c
}

func neomigrate(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	env := &cli.Env{Args: append([]string{"-c", "test"}, args...), Stdin: strings.NewReader(""), Stdout: &out, Stderr: &err, Getenv: os.Getenv}
	code = cli.Run(ctx, env, newCommand)
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

// differences compares two files.
func differences(t *testing.T, a, b string, opt exporter.CompareOptions) (list []string) {
	t.Helper()
	ra, err := fsformat.Open(a, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer ra.Close()
	rb, err := fsformat.Open(b, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rb.Close()
	for d, err := range exporter.Compare(t.Context(), ra, rb, tid.Zero, tid.Max, opt, nil) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, d.String())
	}
	return list
}

// What a cluster can hold comes back byte for byte.
func TestThereAndBack(t *testing.T) {
	shapes := []simple.Config{{Partitions: 1, Storages: 1}, {Partitions: 5, Storages: 2, Replicas: 1}, {Partitions: 3, Storages: 3}}
	for i, tt := range []struct {
		name string
		size int // of the part that comes back; 0: all
		opt  exporter.CompareOptions
		same bool
	}{
		{name: "01-basic.fs", same: true},
		{name: "02-undo.fs", same: true},
		{name: "03-creation-undone.fs", same: true},
		{name: "04-deleted.fs", same: true},
		{name: "05-before-pack.fs", same: true},
		{name: "05-packed.fs", opt: exporter.CompareOptions{AnyStatus: true}}, // no packet carries the status
		{name: "07-btrees-refs.fs", same: true},
		{name: "08-truncated-tail.fs", size: 1135, same: true},
		{name: "09-voted-tail.fs", size: 293, same: true},
		{name: "10-legacy-fs21.fs"}, // without its magic and a transaction undone in place
		{name: "site.fs", same: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := startCluster(t, shapes[i%len(shapes)])
			masters := c.Master().String()
			src, dst := sample(tt.name), filepath.Join(t.TempDir(), "Data.fs")
			code, stdout, stderr := neomigrate(t.Context(), src, masters)
			if code != 0 || !strings.Contains(stdout, "Migration done") {
				t.Fatalf("exit %d\n%s%s", code, stdout, stderr)
			}
			if code, stdout, stderr = neomigrate(t.Context(), "-q", masters, dst); code != 0 || stdout+stderr != "" {
				t.Fatalf("exit %d\n%s%s", code, stdout, stderr)
			}
			if diff := differences(t, src, dst, tt.opt); diff != nil {
				t.Errorf("differences:\n%s", strings.Join(diff, "\n"))
			}
			want, got := read(t, src), read(t, dst)
			if tt.size > 0 {
				want = want[:tt.size]
			}
			if tt.same && !bytes.Equal(got, want) {
				t.Errorf("%d bytes came back as %d others", len(want), len(got))
			}
			// Once more in both directions: nothing is left to be done.
			for _, args := range [][]string{{src, masters}, {masters, dst}} {
				code, stdout, stderr = neomigrate(t.Context(), args...)
				if code != 0 || !strings.Contains(stdout, "already") {
					t.Errorf("again: exit %d\n%s%s", code, stdout, stderr)
				}
			}
			if !bytes.Equal(read(t, dst), got) {
				t.Error("the file was changed by a second copy")
			}
		})
	}
}

// The last transaction has an object id that not every database can hold. Before
// it, an object is stored twice in one transaction.
func TestRefusedObject(t *testing.T) {
	c := startCluster(t, simple.Config{Partitions: 2, Storages: 2})
	masters := c.Master().String()
	code, _, stderr := neomigrate(t.Context(), sample("06-metadata.fs"), masters)
	if code != 1 || !strings.Contains(stderr, "ffffffffffff0001") {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	dst := filepath.Join(t.TempDir(), "Data.fs")
	if code, _, stderr := neomigrate(t.Context(), masters, dst); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	diff := differences(t, sample("06-metadata.fs"), dst, exporter.CompareOptions{AnyOrder: true, AnyStatus: true})
	if len(diff) != 1 || !strings.Contains(diff[0], "missing in the second") {
		t.Errorf("differences:\n%s", strings.Join(diff, "\n"))
	}
}

// A transaction with an invalid status is refused, or taken for a committed one.
func TestAnyStatus(t *testing.T) {
	c := startCluster(t, simple.Config{Partitions: 2, Storages: 1})
	masters := c.Master().String()
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "source.fs"), filepath.Join(dir, "Data.fs")
	b := read(t, sample("01-basic.fs"))
	b[4+16] = 'x' // of the first transaction
	if err := os.WriteFile(src, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := neomigrate(t.Context(), src, masters); code != 1 || !strings.Contains(stderr, "invalid status 'x'") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	for _, args := range [][]string{{"--any-status", src, masters}, {masters, dst}} {
		if code, _, stderr := neomigrate(t.Context(), args...); code != 0 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
	}
	if !bytes.Equal(read(t, dst), read(t, sample("01-basic.fs"))) {
		t.Error("the file is another one")
	}
}

// What may be missing after an interruption must not be more than the next start
// compares.
func TestWindow(t *testing.T) {
	for _, n := range []string{"0", "257"} {
		code, _, stderr := neomigrate(t.Context(), "--window", n, sample("01-basic.fs"), "127.0.0.1:1")
		if code != 2 || !strings.Contains(stderr, "--window "+n) {
			t.Errorf("--window %s: exit %d: %s", n, code, stderr)
		}
	}
}

func TestOtherDestinations(t *testing.T) {
	c := startCluster(t, simple.Config{Partitions: 2, Storages: 1})
	masters := c.Master().String()
	if code, _, stderr := neomigrate(t.Context(), sample("02-undo.fs"), masters); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	other := filepath.Join(t.TempDir(), "Data.fs")
	if err := os.WriteFile(other, read(t, sample("01-basic.fs")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		stderr string
	}{
		{"a cluster with another history", []string{sample("01-basic.fs"), masters}, 1, "is not the beginning of the source"},
		{"a file with another history", []string{masters, other}, 1, "is not the beginning of the source"},
		{"two files", []string{sample("01-basic.fs"), other}, 2, "neoexport"},
		{"one argument", []string{masters}, 2, "accepts 2 arg"},
		{"neither file nor address", []string{"/no/where", other}, 1, "neither an existing file nor a list of masters"},
		{"not a Data.fs", []string{"main_test.go", masters}, 1, "main_test.go"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, _, stderr := neomigrate(t.Context(), tt.args...)
			if code != tt.code || !strings.Contains(stderr, tt.stderr) {
				t.Errorf("exit %d, want %d with %q: %s", code, tt.code, tt.stderr, stderr)
			}
		})
	}
	if !bytes.Equal(read(t, other), read(t, sample("01-basic.fs"))) {
		t.Error("a refused destination was changed")
	}
}

func openClient(t *testing.T, c *simple.Cluster) *client.Client {
	t.Helper()
	cl, err := client.Open(t.Context(), client.Config{Cluster: "test", Masters: []proto.Address{c.Master()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	return cl
}

// An interrupted copy goes on where it stopped, wherever that was.
func TestInterrupted(t *testing.T) {
	c := startCluster(t, simple.Config{Partitions: 3, Storages: 2})
	masters := c.Master().String()
	r, err := fsformat.Open(sample("site.fs"), fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cl := openClient(t, c)
	for n := 1; ; n += 7 {
		last, err := cl.LastTID(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if upTo, _ := r.LastTID(t.Context()); last == upTo {
			break
		}
		ctx, cancel := context.WithCancel(t.Context())
		a := cl.NewAppender(ctx, client.AppenderOptions{Window: 8})
		left := n
		exporter.Copy(ctx, a, r, last, tid.Max, func(tid.TID, int64, int64, int64) {
			if left--; left == 0 {
				cancel() // with several transactions under way
			}
		})
		a.Close()
		cancel()
		if err := cl.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := neomigrate(t.Context(), masters, filepath.Join(t.TempDir(), "part.fs")); code != 0 {
			t.Fatal(stderr)
		}
	}
	dst := filepath.Join(t.TempDir(), "Data.fs")
	if code, _, stderr := neomigrate(t.Context(), masters, dst); code != 0 {
		t.Fatal(stderr)
	}
	if !bytes.Equal(read(t, dst), read(t, sample("site.fs"))) {
		t.Errorf("differences:\n%s", strings.Join(differences(t, sample("site.fs"), dst, exporter.CompareOptions{}), "\n"))
	}
}

// Nothing of a file whose ids do not increase reaches the cluster, or all of it. The
// same for one with a damaged record and --strict.
func TestRefusedFile(t *testing.T) {
	c := startCluster(t, simple.Config{Partitions: 2, Storages: 1})
	masters := c.Master().String()
	src, flipped := sample("damaged/tsreduction.fs"), sample("damaged/oidflip.fs")
	cl := openClient(t, c)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{src, masters}, "tsreduction.fs: offset 415: transaction 03a0000000000032: its id is not above that of the previous transaction, 03a0000000000064; with --renumber"},
		{[]string{"--strict", flipped, masters}, "oidflip.fs: offset 229: transaction 03a0000000000002: object 0000000000000003: its previous record"},
	} {
		code, _, stderr := neomigrate(t.Context(), tt.args...)
		if code != 1 || !strings.Contains(stderr, tt.want) {
			t.Errorf("%q: exit %d: %s", tt.args, code, stderr)
		}
		if err := cl.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if last, err := cl.LastTID(t.Context()); last != tid.Zero || err != nil {
			t.Errorf("%q: the cluster has transactions up to %v, %v", tt.args, last, err)
		}
	}
	for range 2 {
		if code, _, stderr := neomigrate(t.Context(), "--renumber", src, masters); code != 0 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
	}
	// Without the option it is no copy of the file.
	if code, _, stderr := neomigrate(t.Context(), src, masters); code != 1 || !strings.Contains(stderr, "--renumber") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	back := filepath.Join(t.TempDir(), "Data.fs")
	if code, _, stderr := neomigrate(t.Context(), masters, back); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	want, err := fsformat.Open(src, fsformat.Options{Renumber: true})
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	got, err := fsformat.Open(back, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	n := 0
	for d, err := range exporter.Compare(t.Context(), want, got, tid.Zero, tid.Max, exporter.CompareOptions{}, func(tid.TID, int64, int64, int64) { n++ }) {
		t.Errorf("%v, %v", d, err)
	}
	if n != 5 {
		t.Errorf("%d transactions came back", n)
	}
}

func TestWarnings(t *testing.T) {
	for name, want := range map[string][]string{
		"damaged/oidflip.fs": {"oidflip.fs: offset 229: transaction 03a0000000000002: object 0000000000000003: its previous record", "oidflip.fs: 1 record has a wrong pointer"},
		"damaged/future.fs":  {"future.fs: transaction 0500000000000000, the last one, is in the future"},
	} {
		c := startCluster(t, simple.Config{Partitions: 2, Storages: 1})
		code, stdout, stderr := neomigrate(t.Context(), "-q", sample(name), c.Master().String())
		if code != 0 || stdout != "" || strings.Count(stderr, "\n") != len(want) {
			t.Errorf("%s: exit %d\n%s%s", name, code, stdout, stderr)
		}
		for _, w := range want {
			if !strings.Contains(stderr, "warning: ../../testdata/fs/damaged/"+w) {
				t.Errorf("%s: no %q in:\n%s", name, w, stderr)
			}
		}
	}
}

// After a pack of the source, both directions say what happened and what to do.
func TestPackedSource(t *testing.T) {
	c := startCluster(t, simple.Config{Partitions: 2, Storages: 1})
	masters := c.Master().String()
	if code, _, stderr := neomigrate(t.Context(), sample("05-before-pack.fs"), masters); code != 0 {
		t.Fatal(stderr)
	}
	if code, _, stderr := neomigrate(t.Context(), sample("05-packed.fs"), masters); code != 1 || !strings.Contains(stderr, "the source was packed") || !strings.Contains(stderr, "migrate to a new cluster") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	dst := filepath.Join(t.TempDir(), "Data.fs")
	if code, _, stderr := neomigrate(t.Context(), masters, dst); code != 0 {
		t.Fatal(stderr)
	}
	cl := openClient(t, c)
	last, err := cl.LastTID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	order, err := cl.Pack(t.Context(), last)
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.WaitForPack(t.Context(), order); err != nil {
		t.Fatal(err)
	}
	before := read(t, dst)
	if code, _, stderr := neomigrate(t.Context(), masters, dst); code != 1 || !strings.Contains(stderr, "the source was packed") || !strings.Contains(stderr, "neoexport --full") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if !bytes.Equal(read(t, dst), before) {
		t.Error("the refused file was changed")
	}
}
