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
	"github.com/neozodb/neo/cluster/txn"
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
	wait, stop := context.WithTimeout(ctx, 2*time.Minute)
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
		{"moment", []string{"--at", "someday", other, text}, 2, "--at"},
		{"before everything", []string{"--at", "tid:0", other, text}, 2, "--at"},
		{"magic", []string{"--magic", "FS99", other, filepath.Join(dir, "other.fs.new")}, 2, "FS99"},
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

const (
	outOfOrder = "damaged/tsreduction.fs: offset 415: transaction 03a0000000000032: its id is not above that of the previous transaction, 03a0000000000064; with --renumber"
	oidFlip    = "damaged/oidflip.fs: offset 229: transaction 03a0000000000002: object 0000000000000003: its previous record is said to be at 133, which is one of object 0000000000000002"
)

// A file whose ids do not increase is refused, or copied whole.
func TestOutOfOrder(t *testing.T) {
	src, dst := sample("damaged/tsreduction.fs"), filepath.Join(t.TempDir(), "Data.fs")
	for _, args := range [][]string{{src, dst}, {"--verify", src, dst}, {"--full", src, dst}, {"--at", "03a0000000000064", src, dst}} {
		if code, _, stderr := neoexport(t, args...); code != 1 || !strings.Contains(stderr, outOfOrder) {
			t.Errorf("%q: exit %d: %s", args, code, stderr)
		}
		for _, name := range []string{dst, dst + ".part", dst + ".index"} {
			if _, err := os.Stat(name); !os.IsNotExist(err) {
				t.Errorf("%q: %s: %v", args, name, err)
			}
		}
	}
	for i, want := range []string{
		"tsreduction.fs: offset 415: transaction 03a0000000000032 becomes 03a0000000000065\n" + src + ": offset 552: transaction 03a000000000003c becomes 03a0000000000066\n",
		"", // nothing is left to be done
	} {
		code, stdout, stderr := neoexport(t, "--verify", "--renumber", src, dst)
		if code != 0 || !strings.Contains(stderr, want) || strings.Contains(stderr, "becomes") != (i == 0) {
			t.Fatalf("exit %d\n%s%s", code, stdout, stderr)
		}
	}
	r, err := fsformat.Open(dst, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got []string
	for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		for rec := range tr.Records {
			got = append(got, tr.TID.String()[8:]+" "+rec.OID.String()[8:])
		}
	}
	if s := strings.Join(got, ", "); s != "00000001 00000000, 00000002 00000002, 00000064 00000064, 00000065 00000032, 00000066 0000003c" {
		t.Errorf("the copy has %s", s)
	}
}

// Each damaged record is named and counted, or refuses the copy before it begins.
func TestDamagedRecord(t *testing.T) {
	src, dst := sample("damaged/oidflip.fs"), filepath.Join(t.TempDir(), "Data.fs")
	code, _, stderr := neoexport(t, "--strict", src, dst)
	if code != 1 || !strings.Contains(stderr, oidFlip) || !strings.Contains(stderr, "refused by --strict: 1 record") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if left, _ := filepath.Glob(dst + "*"); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
	code, stdout, stderr := neoexport(t, "-q", "--verify", src, dst)
	if code != 0 || stdout != "" || strings.Count(stderr, oidFlip) != 1 || !strings.Contains(stderr, "oidflip.fs: 1 record has a wrong pointer to the previous record of the object") {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	// In a copy that goes on: the record of a new object has become one of an old one.
	dir := t.TempDir()
	src, dst = filepath.Join(dir, "Source.fs"), filepath.Join(dir, "Data.fs")
	w, err := fsformat.Create(src, fsformat.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var end int64
	for i := tid.TID(1); i <= 2; i++ {
		end = w.Size()
		if err := w.Append(&txn.Transaction{TID: 0x03a0000000000000 + i, Records: txn.Slice([]txn.Record{{OID: tid.OID(i), Data: []byte("x")}})}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := read(t, src)
	if err := os.WriteFile(dst, b[:end], 0o600); err != nil {
		t.Fatal(err)
	}
	b[end+23+7] ^= 3 // object 2 becomes 1
	if err := os.WriteFile(src, b, 0o600); err != nil {
		t.Fatal(err)
	}
	const first = "object 0000000000000001: it is said to be the first record of the object, which has an earlier one"
	if code, _, stderr := neoexport(t, "-q", "--strict", src, dst); code != 1 || !strings.Contains(stderr, first) || !bytes.Equal(read(t, dst), b[:end]) {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if code, _, stderr := neoexport(t, "-q", src, dst); code != 0 || !strings.Contains(stderr, first) || !strings.Contains(stderr, "1 record has") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	// Others, undamaged, are copied without a word.
	if code, stdout, stderr := neoexport(t, "-q", "--strict", sample("site.fs"), filepath.Join(t.TempDir(), "Data.fs")); code != 0 || stdout+stderr != "" {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
}

func TestFuture(t *testing.T) {
	code, _, stderr := neoexport(t, "-q", sample("damaged/future.fs"), filepath.Join(t.TempDir(), "Data.fs"))
	if code != 0 || !strings.Contains(stderr, "damaged/future.fs: transaction 0500000000000000, the last one, is in the future (2056-08-06 05:20:00)") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// After a pack of the source, the copy stays until a full one has replaced it.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "Source.fs"), filepath.Join(dir, "Data.fs")
	put := func(name string) {
		t.Helper()
		if err := os.WriteFile(src, read(t, sample(name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("05-before-pack.fs")
	if code, _, stderr := neoexport(t, src, dst); code != 0 {
		t.Fatal(stderr)
	}
	put("05-packed.fs")
	code, _, stderr := neoexport(t, src, dst)
	if code != 1 || !strings.Contains(stderr, "the source was packed") || !strings.Contains(stderr, "--full") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if !bytes.Equal(read(t, dst), read(t, sample("05-before-pack.fs"))) {
		t.Error("the refused copy was changed")
	}
	if code, _, stderr := neoexport(t, "--full", "--verify", src, dst); code != 0 {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if code, _, stderr := neoexport(t, "--verify", src, dst); code != 0 {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// A cluster has the last record of an object in a transaction; the file from which
// it was filled has all. Each is brought up to date from the other.
func TestObjectTwice(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "Source.fs"), filepath.Join(dir, "Data.fs")
	w, err := fsformat.Create(src, fsformat.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := tid.TID(1); i <= 3; i++ {
		records := []txn.Record{{OID: 1, Data: []byte{byte(i)}}, {OID: 2, Data: []byte("blob")}, {OID: 1, Data: []byte{byte(i), 'x'}}}
		if err := w.Append(&txn.Transaction{TID: 0x03a0000000000000 + i, Records: txn.Slice(records)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	masters := startCluster(t, src, simple.Config{Storages: 2, Partitions: 3})
	copied := filepath.Join(dir, "copied.fs")
	if err := os.WriteFile(copied, read(t, src), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{masters, copied}, {masters, dst}, {src, dst}, {masters, dst}} {
		if code, stdout, stderr := neoexport(t, append([]string{"-c", "test", "--verify"}, args...)...); code != 0 {
			t.Errorf("%q: exit %d\n%s%s", args, code, stdout, stderr)
		}
	}
	if !bytes.Equal(read(t, copied), read(t, src)) {
		t.Error("the copy was changed")
	}
}
