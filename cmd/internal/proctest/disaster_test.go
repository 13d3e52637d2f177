package proctest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// writesThroughZEO is a ZODB client that finds the root, and commits.
const writesThroughZEO = `
import sys, time, transaction, ZODB
from ZEO.ClientStorage import ClientStorage
host, port = sys.argv[1].rsplit(':', 1)
storage = ClientStorage((host, int(port)), wait_timeout=60)
db = ZODB.DB(storage)
connection = db.open()
root = connection.root()
assert root['before'] == 'the disaster', dict(root)
root['after'] = 'it'
transaction.commit()
print(time.time())
db.close()
`

const writesRoot = `
import sys, transaction, ZODB
from ZEO.ClientStorage import ClientStorage
host, port = sys.argv[1].rsplit(':', 1)
db = ZODB.DB(ClientStorage((host, int(port)), wait_timeout=60))
connection = db.open()
connection.root()['before'] = 'the disaster'
transaction.commit()
db.close()
`

// left are the nodes that a script has started, by the files with their pids.
func left(t testing.TB, dir string) {
	t.Cleanup(func() {
		files, _ := filepath.Glob(filepath.Join(dir, "*.pid"))
		for _, f := range files {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(read(t, f)))); err == nil {
				syscall.Kill(pid, syscall.SIGKILL) // which may have ended
			}
		}
		if t.Failed() {
			outs, _ := filepath.Glob(filepath.Join(dir, "*.out"))
			for _, f := range outs {
				t.Logf("%s: %s", filepath.Base(f), tail(string(read(t, f)), 2000))
			}
		}
	})
}

// All nodes of a cluster that is followed into a repository are killed, and their databases removed. The script of the
// runbook brings up a cluster to which a ZODB client and clients of the cluster commit at once, and which then
// completes itself. Nothing that the repository had is missing, and it becomes a cluster of three storages again.
func TestDisaster(t *testing.T) {
	zeotest.Python(t) // or skip before anything is started
	c := StartCluster(t, Options{Storages: 3, Partitions: 6, Replicas: 1, Standby: 1})
	door := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	zeo := Start(t, "neozeo", "-c", c.Name, "-m", c.Masters, "-b", door)
	python(t, writesRoot, door)
	r := newRepository(t, "neo://"+c.Name+"@"+c.Masters, "", "--set", "interval=100ms")
	follow := Start(t, "neobackup", "follow", "-f", r.conf)
	w := startWorkload(t, c, 3)
	w.wait(t, 300, patience, "before the disaster")
	acknowledged := w.lastAcknowledged()
	for deadline := time.Now().Add(patience); r.head(t) < acknowledged; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("follow does not reach what is committed")
		}
	}

	for _, p := range append(slices.Concat(c.Storages, c.Standby), c.Master, c.AdminP, zeo) {
		p.Kill()
	}
	seen := w.stop()
	start := time.Now()
	files, err := filepath.Glob(filepath.Join(c.Dir, "s*.sqlite*"))
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	follow.Kill() // it waited for the source
	kept := r.head(t)

	dir := filepath.Join(t.TempDir(), "disaster")
	left(t, dir)
	key := strings.TrimSpace(strings.TrimPrefix(line(t, r.conf, "verify_keys: "), "verify_keys: "))
	masters := strings.Fields(c.Masters)
	args := []string{"-r", "file://" + r.dir, "-k", key, "-i", r.identity, "-c", c.Name, "-d", dir, "-m", masters[0], "-a", c.Admin, "-z", door, "-p", "6", "-y"}
	wrong := slices.Clone(args)
	wrong[5] = filepath.Join(t.TempDir(), "other.txt")
	must(t, "neobackup", "key", "generate", wrong[5])
	wrong[9] = filepath.Join(t.TempDir(), "wrong")
	if out, err := runbook(t, "disaster.sh", wrong...); err == nil || !strings.Contains(out, "no identity opens it") {
		t.Errorf("with an identity that does not fit: %v\n%s", err, out)
	}
	begun := time.Now()
	out, err := runbook(t, "disaster.sh", args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	script := time.Since(begun)
	python(t, writesThroughZEO, door)
	zodb := time.Since(begun)
	more := startWorkload(t, c, 2)
	more.wait(t, 10, patience, "after the disaster")
	if out, err := runbook(t, "disaster.sh", args...); err == nil || !strings.Contains(out, "is not empty") {
		t.Errorf("once more: %v\n%s", err, out)
	}

	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if out, _, _ := c.Ctl(t, "print", "import"); strings.Contains(out, `"done"`) {
			break
		}
		if time.Now().After(deadline) {
			out, _, _ := c.Ctl(t, "print", "import")
			t.Fatalf("the cluster is not complete: %s", out)
		}
	}
	complete := time.Since(begun)
	t.Logf("RUNNING %v after the start of the script, committed by a ZODB client after %v, complete after %v; %v between kill and script",
		script.Round(time.Millisecond), zodb.Round(time.Millisecond), complete.Round(time.Millisecond), begun.Sub(start).Round(time.Millisecond))

	// Three storages again, of which the first is started with its own database.
	common := []string{"-c", c.Name, "-m", masters[0]}
	for i := 2; i <= 3; i++ {
		c.Storages[i-1] = Start(t, "neostorage", append(common, "-a", "SQLite", "-d", filepath.Join(c.Dir, fmt.Sprintf("new%d.sqlite", i)))...)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				out, _, _ := c.Ctl(t, "print", "pt")
				nodes, _, _ := c.Ctl(t, "print", "node")
				t.Fatalf("%s: no\n%s%s", what, out, nodes)
			}
		}
	}
	ctl := func(args ...string) string {
		out, _, _ := c.Ctl(t, args...)
		return out
	}
	until("two storages more", func() bool { return strings.Count(ctl("print", "node", "STORAGE"), "PENDING") == 2 })
	for _, order := range [][]string{{"add", "all"}, {"set", "replicas", "1"}, {"tweak"}} {
		if _, errs, status := c.Ctl(t, order...); status != 0 {
			t.Fatalf("neoctl %q: %s", order, errs)
		}
	}
	whole := func() bool {
		for _, l := range strings.Split(ctl("print", "pt"), "\n") {
			if strings.HasPrefix(l, "S") && strings.Contains(l, "O") {
				return false
			}
		}
		return true
	}
	until("all is on two storages", whole)
	after := more.stop()

	// What the repository had, and then what was committed on the new cluster.
	cl, err := Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	db, err := clustertest.Dump(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	n := slices.IndexFunc(db, func(s clustertest.Stored) bool { return s.TID > kept })
	if n < 300 {
		t.Fatalf("%d transactions up to %v", n, kept)
	}
	var had, lost int
	for i := range seen.Attempts {
		if a := &seen.Attempts[i]; a.Outcome == clustertest.Committed && a.TID > kept {
			lost++
			a.Outcome = clustertest.Unknown
		} else if a.Outcome == clustertest.Committed {
			had++
		}
	}
	seen.Reads = slices.DeleteFunc(seen.Reads, func(r clustertest.Read) bool { return r.Known > kept })
	workloads := func(db []clustertest.Stored) []clustertest.Stored { // without those of ZODB
		return slices.DeleteFunc(slices.Clone(db), func(s clustertest.Stored) bool { return !strings.Contains(s.Mark, ".") })
	}
	for i, err := range clustertest.Verify(seen, workloads(db[:n])) {
		if t.Error(err); i == 20 {
			t.Fatal("and more")
		}
	}
	for i, err := range clustertest.Verify(after, workloads(db[n:])) {
		if t.Error(err); i == 20 {
			t.Fatal("and more")
		}
	}
	whole1 := filepath.Join(t.TempDir(), "whole.fs")
	must(t, "neoexport", "-q", "-c", c.Name, masters[0], whole1)
	restored, exported := read(t, r.restore(t)), read(t, whole1)
	if !bytes.HasPrefix(exported, restored) {
		t.Error("an export of the new cluster does not begin with what was in the repository")
	}
	if acknowledged > kept {
		t.Errorf("the repository ended with %v, and had told of %v", kept, acknowledged)
	}
	t.Logf("%d transactions were kept, %d not yet in the repository are lost; %d more committed", had, lost, len(db)-n)
}

// line returns the line of a file that begins with something.
func line(t testing.TB, path, begin string) string {
	t.Helper()
	for _, l := range strings.Split(string(read(t, path)), "\n") {
		if strings.HasPrefix(l, begin) {
			return l
		}
	}
	t.Fatalf("%s has no line %q", path, begin)
	return ""
}
