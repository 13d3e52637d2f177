package proctest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

var (
	importRounds = flag.Int("import-rounds", 6, "imports whose processes are killed by TestImportKilled")
	importSeed   = flag.Uint64("import-seed", 0, "seed of TestImportKilled; 0 chooses one")
)

// imported is a Data.fs and what is in it.
type imported struct {
	path    string
	history []clustertest.Attempt // as if clients had been told
	oids    []tid.OID             // some of the objects
}

// readFile returns the history of a Data.fs.
func readFile(t testing.TB, path string) []clustertest.Stored {
	t.Helper()
	f, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	db, err := clustertest.Dump(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// toImport makes a Data.fs.
func toImport(t testing.TB, size string, seed uint64) *imported {
	f := &imported{path: filepath.Join(t.TempDir(), "Data.fs")}
	must(t, "neobench", "generate", f.path, "--size", size, "--seed", fmt.Sprint(seed))
	last := map[tid.OID]tid.TID{}
	for _, s := range readFile(t, f.path) {
		a := clustertest.Attempt{Mark: s.Mark, Outcome: clustertest.Committed, TID: s.TID}
		for oid, data := range s.Records {
			a.Writes = append(a.Writes, clustertest.Write{OID: oid, Base: last[oid], Data: data})
			if last[oid] = s.TID; len(f.oids) < 12 {
				f.oids = append(f.oids, oid)
			}
		}
		f.history = append(f.history, a)
	}
	return f
}

// importedApp is clients that commit, undo and read while a Data.fs is imported, and what
// they saw.
type importedApp struct {
	*workload
	file *imported
}

// connectWithoutCache opens a client of the cluster. Other clients are not told of deletions,
// so that one with a cache may read what an undo has deleted.
func connectWithoutCache(ctx context.Context, c *Cluster) (*client.Client, error) {
	masters, err := conf.ParseMasters(c.Masters)
	if err != nil {
		return nil, err
	}
	return client.Open(ctx, client.Config{Cluster: c.Name, Masters: []proto.Address{proto.Address(masters[0])}, CacheSize: 1})
}

// startApp starts clients. They stop with the test, or by [workload.stop].
func startApp(t testing.TB, c *Cluster, file *imported, clients int, seed uint64) *importedApp {
	ctx, cancel := context.WithCancel(t.Context())
	a := &importedApp{workload: &workload{cancel: cancel, since: time.Now()}, file: file}
	a.seen.Attempts = append(a.seen.Attempts, file.history...)
	t.Cleanup(func() { a.stop() })
	for n := range clients {
		a.wg.Go(func() {
			cl, err := connectWithoutCache(ctx, c)
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			defer cl.Close()
			r := rand.New(rand.NewPCG(seed, uint64(n)))
			for i := 0; ctx.Err() == nil && !a.enough.Load(); i++ {
				switch mark := fmt.Sprintf("%d.%d", n, i); r.IntN(5) {
				case 0, 1:
					a.read(ctx, cl, r)
				case 2:
					a.undo(ctx, cl, r, mark)
				default:
					a.change(ctx, cl, r, mark)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	return a
}

func (a *importedApp) load(ctx context.Context, cl *client.Client, oid tid.OID, before tid.TID) (clustertest.Read, error) {
	known, err := cl.LastTID(ctx)
	if err != nil {
		return clustertest.Read{}, err
	}
	if before == 0 {
		before = known + 1
	}
	rev, err := cl.LoadBefore(ctx, oid, before)
	r := clustertest.Read{OID: oid, Before: before, Serial: rev.Serial, Next: rev.Next, Data: rev.Data, Known: known}
	var gone *client.ObjectError
	switch {
	case err == nil:
	case errors.Is(err, client.ErrDeleted) && errors.As(err, &gone):
		r.Serial = gone.TID
	case errors.Is(err, txn.ErrNotFound), errors.Is(err, txn.ErrNoSuchObject):
	default:
		return r, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen.Reads = append(a.seen.Reads, r)
	return r, nil
}

// read loads a few objects as they were at some time.
func (a *importedApp) read(ctx context.Context, cl *client.Client, r *rand.Rand) {
	before := a.file.history[r.IntN(len(a.file.history))].TID + tid.TID(r.IntN(2))
	if r.IntN(3) == 0 {
		before = 0 // now
	}
	for range 3 {
		if _, err := a.load(ctx, cl, a.file.oids[r.IntN(len(a.file.oids))], before); err != nil {
			return
		}
	}
	for _, w := range a.file.history[r.IntN(len(a.file.history))].Writes {
		if _, err := a.load(ctx, cl, w.OID, before); err != nil {
			return
		}
	}
}

func (a *importedApp) attempt(mark string) clustertest.Attempt {
	a.mu.Lock()
	defer a.mu.Unlock()
	return clustertest.Attempt{Mark: mark, After: a.last}
}

// change commits new revisions of objects of the source, and a new object.
func (a *importedApp) change(ctx context.Context, cl *client.Client, r *rand.Rand, mark string) {
	x := a.attempt(mark)
	for _, i := range r.Perm(len(a.file.oids))[:1+r.IntN(2)] {
		read, err := a.load(ctx, cl, a.file.oids[i], 0)
		if err != nil {
			return
		}
		x.Writes = append(x.Writes, clustertest.Write{OID: read.OID, Base: read.Serial, Data: fmt.Appendf(nil, "%s of %v", mark, read.OID)})
	}
	oids, err := cl.NewOIDs(ctx, 1)
	if err != nil {
		return
	}
	x.Writes = append(x.Writes, clustertest.Write{OID: oids[0], Data: []byte(mark)})
	a.transact(ctx, cl, &x, func(tx *client.Txn) error {
		for _, w := range x.Writes {
			if err := tx.Store(ctx, w.OID, w.Base, w.Data); err != nil {
				return err
			}
		}
		return nil
	})
}

// undo undoes one of the last transactions of the source, or one of the clients.
func (a *importedApp) undo(ctx context.Context, cl *client.Client, r *rand.Rand, mark string) {
	x := a.attempt(mark)
	h := a.file.history
	x.Undoes = h[len(h)-1-r.IntN(min(len(h), 60))].TID
	if x.After != 0 && r.IntN(2) == 0 {
		x.Undoes = x.After
	}
	a.transact(ctx, cl, &x, func(tx *client.Txn) error {
		_, err := tx.Undo(ctx, x.Undoes)
		return err
	})
}

// transact tries a transaction and notes how it ended.
func (a *importedApp) transact(ctx context.Context, cl *client.Client, x *clustertest.Attempt, fill func(*client.Txn) error) {
	x.Outcome = clustertest.Aborted
	tx, err := cl.Begin(ctx, client.BeginOptions{Description: []byte(x.Mark)})
	if err != nil {
		return
	}
	if err = fill(tx); err == nil {
		_, err = tx.Vote(ctx)
	}
	if err == nil {
		x.TID, err = tx.Finish(ctx, nil)
		switch {
		case err == nil:
			x.Outcome = clustertest.Committed
			a.add(*x)
			return
		case ctx.Err() != nil || errors.Is(err, txn.ErrUnknownOutcome):
			x.Outcome = clustertest.Unknown
		}
	}
	a.add(*x)
	tx.Abort(context.WithoutCancel(ctx)) // how it ended is already known
}

// importingCluster is a cluster that imports.
type importingCluster struct {
	*Cluster
	program *Process // that imports
	native  func()   // starts the same without the import
}

// startSimpleImport starts neosimple with a Data.fs.
func startSimpleImport(t testing.TB, path string) *importingCluster {
	dir := t.TempDir()
	c := &importingCluster{Cluster: &Cluster{Name: "neo", Dir: dir, Masters: fmt.Sprintf("127.0.0.1:%d", FreePort(t)), Admin: fmt.Sprintf("127.0.0.1:%d", FreePort(t))}}
	args := []string{"--dir", filepath.Join(dir, "db"), "--name", c.Name, "-m", c.Masters, "--admin", c.Admin, "--zeo", "none"}
	c.program = Start(t, "neosimple", append(args, "--import", path)...)
	c.native = func() { c.program = Start(t, "neosimple", args...) }
	return c
}

// startClusterImport starts a cluster whose storage imports a Data.fs.
func startClusterImport(t testing.TB, path string, writeBack bool) *importingCluster {
	return startImportOf(t, fmt.Sprintf("<filestorage>\n    path %s\n  </filestorage>", path), writeBack)
}

// startImportOf starts a cluster whose storage imports what a section of importer.conf says.
func startImportOf(t testing.TB, storage string, writeBack bool) *importingCluster {
	dir := t.TempDir()
	c := &importingCluster{Cluster: &Cluster{Name: "imports", Dir: dir, Masters: fmt.Sprintf("127.0.0.1:%d", FreePort(t)), Admin: fmt.Sprintf("127.0.0.1:%d", FreePort(t))}}
	conf, db := filepath.Join(dir, "importer.conf"), filepath.Join(dir, "db.sqlite")
	text := fmt.Sprintf("[neo]\nadapter: SQLite\ndatabase: %s\nwriteback: %v\n[root]\nstorage:\n  %s\n", db, writeBack, storage)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	common := []string{"-c", c.Name, "-m", c.Masters}
	c.Master = Start(t, "neomaster", append(common, "-b", c.Masters, "-A", "1", "-p", "3", "-r", "0")...)
	c.program = Start(t, "neostorage", append(common, "-a", "Importer", "-d", conf)...)
	c.AdminP = Start(t, "neoadmin", append(common, "-b", c.Admin)...)
	c.native = func() { c.program = Start(t, "neostorage", append(common, "-a", "SQLite", "-d", db)...) }
	return c
}

// waitImport waits until what neoctl prints of the import has one of some texts.
func (c *importingCluster) waitImport(t testing.TB, limit time.Duration, want ...string) {
	t.Helper()
	var out, errOut string
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		out, errOut, _ = c.Ctl(t, "print", "import")
		for _, w := range want {
			if strings.Contains(out, w) {
				return
			}
		}
		if !c.program.Running() {
			t.Fatalf("%s has ended by itself", c.program.Name)
		}
	}
	t.Fatalf("after %v the import is not %q: %s%s", limit, want, out, errOut)
}

// dump reads the whole cluster.
func (c *importingCluster) dump(t testing.TB) []clustertest.Stored {
	t.Helper()
	cl, err := Connect(t.Context(), c.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	db, err := clustertest.Dump(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// sameHistory compares two histories.
func sameHistory(t testing.TB, what string, got, want []clustertest.Stored) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		g, w := got[i], want[i]
		same := g.TID == w.TID && g.Mark == w.Mark && len(g.Records) == len(w.Records)
		for oid, data := range w.Records {
			d, ok := g.Records[oid]
			same = same && ok && bytes.Equal(d, data) && (d == nil) == (data == nil)
		}
		if !same {
			t.Fatalf("%s: transaction %v %q is not %v %q", what, g.TID, g.Mark, w.TID, w.Mark)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d transactions, want %d", what, len(got), len(want))
	}
}

// moments at which a process is killed.
const (
	atStart = iota
	whileCopying
	whileComparing // and at the switch
	afterwards
	moments
)

// What imports is killed at random moments while clients read, commit and undo. Nothing
// that was acknowledged may be lost, each object is at each moment what it was, the import
// comes to its end, and the database is the same without the importer.
func TestImportKilled(t *testing.T) {
	seed := *importSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-import-seed=%d", seed)
	file := toImport(t, "5MB", seed)
	for round := range *importRounds {
		t.Run(fmt.Sprintf("round=%d", round), func(t *testing.T) {
			testImportKilled(t, file, round, rand.New(rand.NewPCG(seed, uint64(round))))
		})
	}
}

func testImportKilled(t *testing.T, file *imported, round int, r *rand.Rand) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	data, err := os.ReadFile(file.path)
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	var c *importingCluster
	simple, writeBack := round%3 == 0, round%3 == 1
	if simple {
		c = startSimpleImport(t, path)
	} else {
		c = startClusterImport(t, path, writeBack)
	}
	c.killed(t, file, round, r, simple, func(db []clustertest.Stored) {
		if writeBack {
			sameHistory(t, "written back", readFile(t, path), db)
			if round == 1 {
				t.Run("Python", func(t *testing.T) { python(t, readEverything, path) })
			}
		} else if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, data) {
			t.Errorf("the source was changed: %v", err)
		}
	})
}

// killed kills what imports while clients work, and verifies what became of all. stopped is called
// with the history once it has ended.
func (c *importingCluster) killed(t *testing.T, file *imported, round int, r *rand.Rand, simple bool, stopped func(db []clustertest.Stored)) {
	var killed []string
	kill := func(longest time.Duration, ask bool) {
		time.Sleep(time.Duration(r.Int64N(int64(longest))))
		state := "start"
		if ask {
			state = "not ready"
			out, _, _ := c.Ctl(t, "print", "import")
			if _, after, ok := strings.Cut(out, `"state":"`); ok {
				state, _, _ = strings.Cut(after, `"`)
			}
		}
		if !c.program.Running() {
			t.Fatalf("%s has ended by itself", c.program.Name)
		}
		victim := c.program
		if !simple && r.IntN(6) == 0 {
			victim = c.Master
		}
		victim.Kill()
		killed = append(killed, victim.Name+" "+state)
		time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
		if err := victim.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	if first := round % moments; first == atStart || r.IntN(3) == 0 {
		for range 1 + r.IntN(3) {
			kill(200*time.Millisecond, false)
		}
		if !simple {
			c.begin(t)
		}
	}
	w := startApp(t, c.Cluster, file, 2, r.Uint64())
	for m := whileCopying; m < moments; m++ {
		if m != round%moments && r.IntN(3) > 0 {
			continue
		}
		switch m {
		case whileCopying:
			c.waitImport(t, patience, `"copying"`, `"comparing"`, `"done"`)
		case whileComparing:
			c.waitImport(t, 2*time.Minute, `"comparing"`, `"done"`)
		default:
			c.waitImport(t, 2*time.Minute, `"done"`)
		}
		for range 1 + r.IntN(3) {
			kill([]time.Duration{300 * time.Millisecond, 1500 * time.Millisecond}[r.IntN(2)], true)
		}
	}
	c.waitImport(t, 2*time.Minute, `"done"`)
	before := w.acknowledged()
	for deadline := time.Now().Add(patience); w.acknowledged() < before+3; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is committed any more")
		}
	}
	seen := w.finish(t)
	db := c.dump(t)
	for i, err := range clustertest.Verify(seen, db) {
		if t.Error(err); i == 20 {
			t.Fatal("and more")
		}
	}
	if err := c.program.Stop(t); err != nil {
		t.Errorf("%s: %v", c.program.Name, err)
	}
	stopped(db)
	c.native()
	sameHistory(t, "without the importer", c.dump(t), db)
	t.Logf("killed: %q; %d transactions acknowledged of %d attempted, %d reads", killed, w.acknowledged(), len(seen.Attempts)-len(file.history), len(seen.Reads))
}

// begin waits until the cluster runs. A storage that was killed before it had the first partition table
// is empty, and the master, which cannot know that, waits for an explicit start.
func (c *importingCluster) begin(t *testing.T) {
	t.Helper()
	waitFor(t, "the cluster runs", func() bool {
		out, _, _ := c.Ctl(t, "print", "cluster")
		if strings.Contains(out, "RECOVERING") && strings.Contains(c.Master.Output(), "an explicit start makes a new database") {
			c.Ctl(t, "start") // refused while no storage is there
		}
		return strings.Contains(out, "RUNNING")
	})
}
