package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/cluster/testlog"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

// sample returns a copy of a sample database: an import locks its source, so that two
// tests cannot have the same one.
func sample(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../testdata/fs", name))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), filepath.Base(name))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// process is a neosimple that runs.
type process struct {
	t              *testing.T
	stdout, stderr testlog.Buffer
	cancel         context.CancelFunc
	code           chan int
}

// start runs neosimple in this process; the end of its context stands for SIGINT.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, code: make(chan int, 1)}
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(t.Context())
	env := &cli.Env{Args: args, Stdout: &p.stdout, Stderr: &p.stderr, Getenv: os.Getenv}
	go func() { p.code <- cli.Run(ctx, env, newCommand) }()
	return p
}

var readyLine = regexp.MustCompile(`^ready name=(\S+) masters=(\S+:\d+) admin=(\S+:\d+)( zeo=(\S+:\d+))?\n$`)

// ready waits for the line on stdout and returns its values.
func (p *process) ready() (name, masters, admin, zeo string) {
	p.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if m := readyLine.FindStringSubmatch(p.stdout.String()); m != nil {
			return m[1], m[2], m[3], m[5]
		}
		select {
		case code := <-p.code:
			p.t.Fatalf("exit %d before it was ready: %s", code, p.stderr.String())
		default:
		}
	}
	p.t.Fatalf("not ready after a minute: %q, %s", p.stdout.String(), p.stderr.String())
	return
}

// stop interrupts, and wants exit code 0.
func (p *process) stop() {
	p.t.Helper()
	p.cancel()
	select {
	case code := <-p.code:
		if code != 0 {
			p.t.Errorf("exit %d: %s", code, p.stderr.String())
		}
	case <-time.After(time.Minute):
		p.t.Fatal("still running a minute after it was told to stop")
	}
}

// fails runs to the end and wants exit code 1 (or 2) with a text on stderr.
func fails(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := cli.Run(ctx, &cli.Env{Args: args, Stdout: &stdout, Stderr: &stderr, Getenv: os.Getenv}, newCommand)
	if got != code || stdout.Len() > 0 || !strings.Contains(stderr.String(), want) {
		t.Errorf("%q: exit %d, %q, %q; want exit %d and %q", args, got, stdout.String(), stderr.String(), code, want)
	}
}

// A directory that was filled from a Data.fs has everything at the next start, and
// the same command can be given again.
func TestImport(t *testing.T) {
	site := sample(t, "site.fs")
	dir := filepath.Join(t.TempDir(), "db")
	for i, want := range []string{"It has 334 transactions with 2142 records from ", "It already has everything that is in "} {
		p := start(t, "--dir", dir, "--import", site, "--name", "sample", "--storages", "2")
		name, masters, admin, _ := p.ready()
		text := p.stderr.String()
		if name != "sample" || !strings.Contains(text, want+site) || !strings.Contains(text, masters) || !strings.Contains(text, admin) {
			t.Errorf("start %d: %s %s %s\n%s", i, name, masters, admin, text)
		}
		if !strings.Contains(text, "neoexport -c sample "+masters+" copy.fs") {
			t.Errorf("start %d does not say how to export:\n%s", i, text)
		}
		p.stop()
	}
	fails(t, 1, "already has data that are not from this file", "--dir", dir, "--import", sample(t, "01-basic.fs"))
}

// A copy before the service that is interrupted says so, and goes on at the next start.
func TestInterruptedImport(t *testing.T) {
	site := sample(t, "site.fs")
	var dir string
	var p *process
	code := 0
	for n := 0; code == 0 && n < 20; n++ { // 0: it was complete before the test could interrupt it
		dir = filepath.Join(t.TempDir(), "db")
		p = start(t, "--dir", dir, "--import", site, "--name", "sample", "--storages", "2")
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if _, err := os.Stat(filepath.Join(dir, "storage1.sqlite")); err == nil {
				break
			}
		}
		p.cancel()
		code = <-p.code
	}
	if code != 1 || !strings.Contains(p.stderr.String(), "interrupted before everything was imported") || p.stdout.String() != "" {
		t.Errorf("exit %d: %s%s", code, p.stdout.String(), p.stderr.String())
	}
	p = start(t, "--dir", dir, "--import", site)
	p.ready()
	p.stop()
}

// A database into which an import has begun is not served without its Data.fs.
func TestHalfImported(t *testing.T) {
	site := sample(t, "site.fs")
	dir := t.TempDir()
	db, err := sqlitedb.Open(t.Context(), filepath.Join(dir, "storage1.sqlite"), sqlitedb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.SetImportState(proto.Some(`{"root": {"oid": 0, "ltid": 9, "mapping": {}, "shift_oid": 0, "next_oid": 1}}`)); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	fails(t, 1, "start it again with --import", "--dir", dir)
	fails(t, 1, "it is not the database with which the import began", "--dir", dir, "--import", site)
}

// A Data.fs is served while it is copied. If the copy has not come to its end, the
// next start needs the file and goes on; afterwards it does not.
func TestServedImport(t *testing.T) {
	site := sample(t, "site.fs")
	complete := "It has everything that was in " + site
	done := "\ndone: everything is copied and equal. The file " + site + " is not needed any more: the next start may be without --import.\n"
	var dir string
	var p *process
	for n := 0; n < 20; n++ {
		dir = filepath.Join(t.TempDir(), "db")
		p = start(t, "--dir", dir, "--import", site, "--name", "sample")
		p.ready()
		p.stop()
		if want := "reading " + site + ", which has no index: 1.1 MB in "; !strings.Contains(p.stderr.String(), want) {
			t.Errorf("no %q in:\n%s", want, p.stderr.String())
		}
		p = start(t, "--dir", dir, "--import", site)
		p.ready()
		ended := func(text string) bool { return strings.Contains(text, done) || strings.Contains(text, complete) }
		for deadline := time.Now().Add(time.Minute); !ended(p.stderr.String()); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the import does not come to its end:\n%s", p.stderr.String())
			}
		}
		p.stop()
		if !strings.Contains(p.stderr.String(), complete) {
			break
		}
		// The first one had come to its end before it was stopped: once more.
	}
	for _, want := range []string{" print import ", done} {
		if !strings.Contains(p.stderr.String(), want) {
			t.Errorf("no %q in:\n%s", want, p.stderr.String())
		}
	}
	p = start(t, "--dir", dir, "--import", site)
	p.ready()
	if !strings.Contains(p.stderr.String(), complete) {
		t.Errorf("no %q in:\n%s", complete, p.stderr.String())
	}
	p.stop()
	p = start(t, "--dir", dir)
	p.ready()
	p.stop()
}

func TestTemporaryDirectory(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	p := start(t)
	p.ready()
	entries, err := os.ReadDir(os.TempDir())
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d directories, %v", len(entries), err)
	}
	dir := filepath.Join(os.TempDir(), entries[0].Name())
	if text := p.stderr.String(); !strings.Contains(text, dir) || !strings.Contains(text, "temporary directory that is removed") || !strings.Contains(text, "neomigrate -c neo Data.fs") {
		t.Errorf("stderr: %s", text)
	}
	p.stop()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s was not removed: %v", dir, err)
	}
	if text := p.stderr.String(); strings.Contains(text, "WARNING") || !strings.Contains(text, "\nStopped.\n") {
		t.Errorf("a quiet life and end, but: %s", text)
	}
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	p := start(t, "--dir", dir, "-q", "--name", "n1")
	_, masters, _, zeo := p.ready()
	if p.stderr.String() != "" {
		t.Errorf("quiet, but: %s", p.stderr.String())
	}
	fails(t, 1, dir+": in use by another process", "--dir", dir)
	fails(t, 1, "listening at "+masters, "--masters", masters)
	fails(t, 1, "listening at "+masters, "--admin", masters)
	fails(t, 1, "--zeo: listen tcp "+zeo+": bind: address already in use", "--zeo", zeo)
	p.stop()
	fails(t, 1, `belongs to cluster "n1", not "n2"`, "--dir", dir, "--name", "n2")
	fails(t, 1, "databases of 1 storages, not 2", "--dir", dir, "--storages", "2")

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, 1, file, "--dir", filepath.Join(file, "x"))
	fails(t, 1, "not a Data.fs", "--import", file)
	fails(t, 1, "no such file", "--import", file+"x")
	fails(t, 2, "needs at least --storages 2", "--replicas", "1")
	fails(t, 2, "--partitions", "--partitions", "0")
	fails(t, 2, "--zeo: ", "--zeo", "nowhere.invalid:x")
	fails(t, 2, "MySQL", "--adapter", "MySQL")
	fails(t, 2, "--zeo: address", "--zeo", "x:y")
	fails(t, 2, "--masters: address", "--masters", "x:y")
	fails(t, 2, "--admin: address", "--admin", "x:y")
	fails(t, 2, "unsupported engine TokuDB", "--adapter", "MySQL", "--database", "neo1", "--engine", "TokuDB")
	fails(t, 2, "not of the form", "--adapter", "MySQL", "--database", "neo1", "--database", "/neo2")
	fails(t, 2, `unknown adapter "DB2"`, "--adapter", "DB2", "--database", "neo1")
	fails(t, 2, "--monitor: \"127.0.0.1:http-x\" is not HOST:PORT", "--monitor", "127.0.0.1:http-x")
	fails(t, 2, "unknown command", "word")
}

func TestHelp(t *testing.T) {
	var stdout bytes.Buffer
	env := &cli.Env{Args: []string{"--help"}, Stdout: &stdout, Stderr: io.Discard}
	if code := cli.Run(t.Context(), env, func(e *cli.Env) *cobra.Command { return newCommand(e) }); code != 0 || !strings.Contains(stdout.String(), "Exit status: 0 done") {
		t.Errorf("exit %d, %s", code, stdout.String())
	}
}

// Nothing of a file is imported if its ids do not increase or, with --strict, a record
// is damaged.
func TestRefusedImport(t *testing.T) {
	reduced, flipped := sample(t, "damaged/tsreduction.fs"), sample(t, "damaged/oidflip.fs")
	dir := filepath.Join(t.TempDir(), "db")
	fails(t, 1, "tsreduction.fs: offset 415: transaction 03a0000000000032: its id is not above that of the previous transaction, 03a0000000000064: make a file of it whose ids increase with \"neoexport --renumber\", and import that (or here, with --renumber)", "--dir", dir, "--import", reduced)
	fails(t, 1, "oidflip.fs: refused by --strict: 1 record", "--dir", dir, "--import", flipped, "--strict")
	for _, want := range []string{"It has 5 transactions with 5 records from ", "It already has everything that is in "} {
		p := start(t, "--dir", dir, "--import", reduced, "--renumber")
		p.ready()
		if !strings.Contains(p.stderr.String(), want) {
			t.Errorf("no %q in:\n%s", want, p.stderr.String())
		}
		p.stop()
	}
	fails(t, 1, "--renumber", "--dir", dir, "--import", reduced)
	for name, want := range map[string]string{
		"oidflip.fs": "oidflip.fs: offset 229: transaction 03a0000000000002: object 0000000000000003: its previous record",
		"future.fs":  "the last transaction is in the future",
	} {
		p := start(t, "-q", "--import", sample(t, "damaged/"+name))
		p.ready()
		for deadline := time.Now().Add(time.Minute); !strings.Contains(p.stderr.String(), want); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no %q in:\n%s", want, p.stderr.String())
			}
		}
		p.stop()
	}
}

// A cluster that was packed since its import is still that of the file.
func TestImportThenPack(t *testing.T) {
	dir, source := filepath.Join(t.TempDir(), "db"), filepath.Join(t.TempDir(), "Data.fs")
	w, err := fsformat.Create(source, fsformat.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Append(&txn.Transaction{TID: 0x03a0000000000001, Records: txn.Slice([]txn.Record{{OID: 0, Data: []byte("root")}, {OID: 1, Data: []byte("old")}})}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	p := start(t, "--dir", dir, "--import", source)
	name, masters, _, _ := p.ready()
	address, err := conf.ParseAddress(masters, 0)
	if err != nil {
		t.Fatal(err)
	}
	cl, err := client.Open(t.Context(), client.Config{Cluster: name, Masters: []proto.Address{proto.Address(address)}})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := cl.Begin(t.Context(), client.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Store(t.Context(), 1, 0x03a0000000000001, []byte("new")); err != nil {
		t.Fatal(err)
	}
	last, err := tx.Finish(t.Context(), nil)
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
	if _, err := cl.LoadAt(t.Context(), 1, 0x03a0000000000001); err == nil {
		t.Error("nothing was packed")
	}
	cl.Close()
	p.stop()
	p = start(t, "--dir", dir, "--import", source)
	p.ready()
	p.stop()
}
