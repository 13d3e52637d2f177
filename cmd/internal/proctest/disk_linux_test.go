package proctest

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// tmpfs mounts a small disk. It takes root, as on the machines of CI.
func tmpfs(t testing.TB, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		zeotest.Missing(t, "mounting a small disk (run this test as root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	return dir
}

// ballast fills a part of a disk until it is removed.
func ballast(t testing.TB, dir string, n int) (path string) {
	t.Helper()
	path = filepath.Join(dir, "ballast")
	if err := os.WriteFile(path, make([]byte, n), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// attempts commits one transaction after the other, each of about 60 kB that do not compress, until the
// context ends, and returns what came of them.
func (c *Cluster) attempts(ctx context.Context, t testing.TB, writer int) (list []clustertest.Attempt) {
	cl, err := Connect(ctx, c)
	if err != nil {
		if ctx.Err() == nil {
			t.Error(err)
		}
		return nil
	}
	defer cl.Close()
	own, base, last := tid.OID(0), tid.Zero, tid.Zero
	for n := 0; ctx.Err() == nil; n++ {
		a := clustertest.Attempt{Mark: mark(writer, n), After: last}
		commit(ctx, cl, &a, &own, &base)
		list = append(list, a)
		if a.Outcome == clustertest.Committed {
			last = a.TID
		}
	}
	return list
}

// The disk of a storage gets full while clients commit: the storage says so and
// stops. Once there is space again, all that was acknowledged is there, and half a
// transaction nowhere.
func TestDiskFullInCommit(t *testing.T) {
	t.Parallel()
	for _, replicas := range []int{0, 1} {
		dir := tmpfs(t, "size=5m")
		fill := ballast(t, dir, 5<<19)
		o := Options{Dir: dir}
		if replicas == 1 {
			o = Options{Storages: 2, Replicas: 1} // one storage has a large disk
		}
		c := StartCluster(t, o)
		victim := c.Storages[0]
		if replicas == 1 {
			// Its database moves to the small disk.
			victim.Kill()
			old := filepath.Join(c.Dir, "s1.sqlite")
			for _, suffix := range []string{"", "-wal", "-shm"} {
				if b, err := os.ReadFile(old + suffix); err == nil {
					if err := os.WriteFile(filepath.Join(dir, "s1.sqlite"+suffix), b, 0o666); err != nil {
						t.Fatal(err)
					}
				}
			}
			for i, a := range victim.args {
				victim.args[i] = strings.ReplaceAll(a, old, filepath.Join(dir, "s1.sqlite"))
			}
			if err := victim.Restart(); err != nil {
				t.Fatal(err)
			}
			waitTable(t, c, "UUUU", "UUUU")
		}

		ctx, cancel := context.WithTimeout(t.Context(), patience)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var seen clustertest.Observed
		for w := range 3 {
			wg.Go(func() {
				list := c.attempts(ctx, t, w)
				mu.Lock()
				seen.Attempts = append(seen.Attempts, list...)
				mu.Unlock()
			})
		}
		err := victim.Wait(t, patience)
		if replicas == 1 {
			time.Sleep(300 * time.Millisecond) // the other goes on alone
		}
		cancel()
		wg.Wait()
		if err == nil || !strings.Contains(err.Error(), "exit status 1") {
			t.Errorf("on a full disk the storage ended with %v", err)
		}
		says(t, "the storage", victim.Output(), `error: .*(disk is full|no space left)`, `s1\.sqlite`)

		// A start on a full disk may fail, but breaks nothing.
		if err := victim.Restart(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		victim.Kill()
		says(t, "the storage", victim.Output())

		if err := os.Remove(fill); err != nil {
			t.Fatal(err)
		}
		if replicas == 1 { // it also has to replicate what the other one got meanwhile
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=100m"); err != nil {
				t.Fatal(err)
			}
		}
		if err := victim.Restart(); err != nil {
			t.Fatal(err)
		}
		if replicas == 1 {
			waitTable(t, c, "UUUU", "UUUU")
			c.Storages[1].Kill() // what the victim has is enough
		}
		c.WaitState(t, "RUNNING", patience)
		cl, err := Connect(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		db, err := clustertest.Dump(t.Context(), cl)
		if err != nil {
			t.Fatal(err)
		}
		acknowledged := 0
		for _, a := range seen.Attempts {
			if a.Outcome == clustertest.Committed {
				acknowledged++
			}
		}
		t.Logf("%d replicas: %d of %d transactions were acknowledged, %d are there", replicas, acknowledged, len(seen.Attempts), len(db))
		if acknowledged < 3 {
			t.Errorf("only %d transactions were acknowledged before the disk was full", acknowledged)
		}
		for i, err := range clustertest.Verify(seen, db) {
			if t.Error(err); i == 10 {
				break
			}
		}
		// And it goes on.
		var own tid.OID
		var base tid.TID
		a := clustertest.Attempt{Mark: "after"}
		if commit(t.Context(), cl, &a, &own, &base); a.Outcome != clustertest.Committed {
			t.Errorf("nothing can be committed any more: %+v", a)
		}
		cl.Close()
	}
}

// mark names a transaction. It is long, and so are the objects made of it.
func mark(w, n int) string {
	b := make([]byte, 20000)
	x := uint32(w*1000003 + n*7919 + 1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = ' ' + byte(x>>24)%90
	}
	return string(b)
}

// waitTable waits until the rows of the partition table are these, in any order of nodes.
func waitTable(t testing.TB, c *Cluster, rows ...string) {
	t.Helper()
	var out string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		out, _, _ = c.Ctl(t, "print", "pt")
		lines, n := strings.Split(out, "\n"), 0
		for _, l := range lines {
			if f := strings.Fields(l); len(f) == 3 && f[1] == "R" && n < len(rows) && f[2] == rows[n] {
				n++
			}
		}
		if n == len(rows) {
			return
		}
	}
	t.Fatalf("the partition table is not %q but\n%s", rows, out)
}

// The disk of an export gets full: it fails, and goes on when there is space.
func TestDiskFullInExport(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "source.fs")
	must(t, "neobench", "generate", file, "--size", "5MB")
	c := StartCluster(t, Options{Storages: 2})
	c.migrate(t, file)
	for _, command := range []string{"neoexport", "neomigrate"} {
		dir := tmpfs(t, "size=7m")
		fill := ballast(t, dir, 4<<20)
		out := filepath.Join(dir, "out.fs")
		refused(t, 1, []string{`out\.fs`, `no space left on device`}, command, "-q", "-c", c.Name, c.Masters, out)
		if size(out) != 0 {
			t.Errorf("%s: an export that failed looks complete", command)
		}
		refused(t, 1, []string{`no space left on device`}, command, "-q", "-c", c.Name, c.Masters, out) // it still is
		if err := os.Remove(fill); err != nil {
			t.Fatal(err)
		}
		must(t, command, "-q", "-c", c.Name, c.Masters, out)
		sameFiles(t, out, file)
	}
}

// An export that is brought up to date on a full disk stays what it was.
func TestDiskFullInAppend(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "source.fs")
	must(t, "neobench", "generate", file, "--size", "5MB")
	list := places(t, file)
	begin := list[len(list)/10]
	dir := tmpfs(t, "size=6m")
	fill := ballast(t, dir, 3<<20)
	out := filepath.Join(dir, "out.fs")
	must(t, "neoexport", "-q", "--at", begin.tid.String(), file, out)
	if size(out) != begin.end {
		t.Fatalf("%s has %d bytes, want %d", out, size(out), begin.end)
	}
	refused(t, 1, []string{`out\.fs`, `no space left on device`}, "neoexport", "-q", file, out)
	got := places(t, out) // perhaps some of what is new, but whole
	must(t, "neofs", "cmp", out, write(t, "begin.fs", read(t, file)[:got[len(got)-1].end]))
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	must(t, "neoexport", "-q", file, out)
	sameFiles(t, out, file)
	must(t, "neofs", "check", "-q", out)
}

// A disk that cannot be written to is named.
func TestReadOnlyDisk(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t, "size=3m")
	file := filepath.Join(dir, "02-undo.fs")
	if err := os.WriteFile(file, read(t, filepath.Join(samples, "02-undo.fs")), 0o666); err != nil {
		t.Fatal(err)
	}
	c := StartCluster(t, Options{Dir: dir})
	c.migrate(t, file)
	// Ended in order: then no journal has to be replayed, and nothing to be written.
	c.Storages[0].Stop(t)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	readOnly := `(?i)read-?only`
	refused(t, 1, []string{`out\.fs`, readOnly}, "neoexport", "-q", file, filepath.Join(dir, "out.fs"))
	refused(t, 1, []string{`02-undo\.fs`, readOnly}, "neofs", "index", "-q", "--write", file)
	refused(t, 1, []string{`s1\.sqlite`, readOnly}, "neostorage", "-c", c.Name, "-m", c.Masters, "-a", "SQLite", "-d", filepath.Join(dir, "s1.sqlite"))
	refused(t, 1, []string{`s2\.sqlite`, readOnly}, "neostorage", "-c", c.Name, "-m", c.Masters, "-a", "SQLite", "-d", filepath.Join(dir, "s2.sqlite"))
	refused(t, 1, []string{regexp.QuoteMeta(dir), readOnly}, "neosimple", "-q", "--dir", filepath.Join(dir, "simple"))
	// What only reads works.
	must(t, "neofs", "check", "-q", file)
	must(t, "neoexport", "-q", file, filepath.Join(t.TempDir(), "copy.fs"))
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if err := c.Storages[0].Restart(); err != nil {
		t.Fatal(err)
	}
	c.WaitState(t, "RUNNING", patience)
	c.alive(t, file)
}

// The disk of a storage gets full under a copy into the cluster: the copying tool says at
// once which storage is gone and why, and the copy goes on when it is back.
func TestDiskFullInMigration(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "source.fs")
	must(t, "neobench", "generate", file, "--size", "8MB")
	dir := tmpfs(t, "size=5m")
	fill := ballast(t, dir, 2<<20)
	c := StartCluster(t, Options{Dir: dir})
	copying := Start(t, "neomigrate", "-c", c.Name, file, c.Masters)
	if err := c.Storages[0].Wait(t, patience); err == nil {
		t.Fatal("the disk is full, and the storage has ended without an error")
	}
	waits := regexp.MustCompile(`waiting for cluster \w+: the cluster is RECOVERING: 4 of 4 partitions cannot be read without S1 \(127\.0\.0\.1:\d+\), which is gone: .*s1\.sqlite.*(disk is full|no space left)`)
	for deadline := time.Now().Add(patience); !waits.MatchString(copying.Output()); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the copy does not say what it waits for:\n%s", copying.Output())
		}
	}
	says(t, "the master", c.Master.Output(), `a storage ends.*S1.*(disk is full|no space left)`)
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=100m"); err != nil {
		t.Fatal(err)
	}
	if err := c.Storages[0].Restart(); err != nil {
		t.Fatal(err)
	}
	if err := copying.Wait(t, patience); err != nil {
		t.Fatalf("the copy does not go on: %v\n%s", err, copying.Output())
	}
	says(t, "the copy", copying.Output(), `(?m)^cluster \w+ serves again$`, `Migration done in`)
	out, _, _ := Run(t, "neomigrate", "--verify", "-c", c.Name, file, c.Masters)
	says(t, "the comparison", out, `No difference in \d+ transactions`)
}
