package proctest

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/importer/state"
)

// mountedProgram makes databases that are mounted into each other, and looks at them.
const mountedProgram = "../../../importer/merge/testdata/mounted.py"

// runMounted runs the program and decodes what it prints into result, if that is not nil.
func runMounted(t *testing.T, result any, args ...string) {
	t.Helper()
	out := python(t, string(read(t, mountedProgram)), args...)
	if result == nil {
		return
	}
	if err := json.Unmarshal([]byte(out), result); err != nil {
		t.Fatalf("mounted.py %q: %v\n%s", args, err, out)
	}
}

// importStatus is the line for programs of `neoctl print import`.
type importStatus struct {
	State        string `json:"state"`
	Transactions int64  `json:"transactions"`
	Position     int64  `json:"position"`
	Size         int64  `json:"size"`
	Note         string `json:"note"`
}

func (c *Cluster) importStatus(t testing.TB) (s importStatus) {
	t.Helper()
	out, errOut, _ := c.Ctl(t, "print", "import")
	line, _, _ := strings.Cut(strings.TrimPrefix(out, "# "), "\n")
	all := map[string]importStatus{}
	if err := json.Unmarshal([]byte(line), &all); err != nil || len(all) != 1 {
		t.Fatalf("print import: %v\n%s%s", err, out, errOut)
	}
	for _, s = range all {
	}
	return s
}

// Three databases that are mounted into each other become one: a Data.fs, one that Python's
// ZEO server has, and one with pickles of Python 2 that another cluster has. An unmodified
// client of ZEO goes through every mount point while they are imported, and after that; each
// object equals the original. It changes them, undoes and resolves conflicts in all of them.
func TestImportMountedDatabases(t *testing.T) {
	t.Parallel()
	interpreter := zeotest.Python(t)
	dir, originals := t.TempDir(), t.TempDir()
	var made struct {
		Databases []struct {
			Name   string
			Target tid.OID            // that mount points of other databases lead to
			Mounts map[string]tid.OID // by the name of the database
		}
	}
	runMounted(t, &made, "make", originals)
	names, err := fs.Glob(os.DirFS(originals), "*.fs")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names { // those that are compared cannot be open here as well
		if err := os.WriteFile(filepath.Join(dir, name), read(t, filepath.Join(originals, name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	zeo := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	serving, cancel := context.WithCancel(context.Background())
	server := exec.CommandContext(serving, interpreter, "-m", "ZEO.runzeo", "-a", zeo, "-f", filepath.Join(dir, "catalog.fs"))
	if err := server.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = server.Wait() // it was killed
	})
	other := StartCluster(t, Options{Name: "other", Storages: 2})
	other.migrate(t, filepath.Join(dir, "old.fs"))
	waitForPort(t, zeo)

	database := filepath.Join(dir, "imported.sqlite")
	conf := fmt.Sprintf("[neo]\nadapter: SQLite\ndatabase: %s\n", database)
	storage := map[string]string{
		"main":    fmt.Sprintf("<filestorage>\n    path %s\n  </filestorage>", filepath.Join(dir, "main.fs")),
		"catalog": fmt.Sprintf("<zeoclient>\n    server %s\n  </zeoclient>", zeo),
		"old":     fmt.Sprintf("<NEOStorage>\n    name other\n    master_nodes %s\n  </NEOStorage>", other.Masters),
	}
	for _, m := range made.Databases {
		conf += fmt.Sprintf("[%s]\nstorage:\n  %s\n", m.Name, storage[m.Name])
		if m.Target != 0 {
			conf += fmt.Sprintf("oid: %d\n", m.Target)
		}
		for to, oid := range m.Mounts {
			conf += fmt.Sprintf("%s: %d\n", to, oid)
		}
	}
	path := filepath.Join(dir, "importer.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}

	c := &Cluster{Name: "test", Dir: dir, Masters: fmt.Sprintf("127.0.0.1:%d", FreePort(t)), Admin: fmt.Sprintf("127.0.0.1:%d", FreePort(t))}
	common := []string{"-c", c.Name, "-m", c.Masters}
	c.Master = Start(t, "neomaster", append(common, "-b", c.Masters, "-p", "5")...)
	c.AdminP = Start(t, "neoadmin", append(common, "-b", c.Admin)...)
	storageNode := Start(t, "neostorage", append(common, "-a", "Importer", "-d", path)...)
	door := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	Start(t, "neozeo", append(common, "-b", door)...)
	// An order is taken before the cluster is started.
	c.until(t, "the import is limited", func() bool {
		_, _, status := c.Ctl(t, "import", "limit", "1KB")
		return status == 0
	})
	if out, errOut, status := c.Ctl(t, "start"); status != 0 {
		t.Fatalf("start: %s%s", out, errOut)
	}
	c.WaitState(t, "RUNNING", patience)
	waitForPort(t, door)
	c.until(t, "something is copied", func() bool { return c.importStatus(t).Transactions > 0 })

	row := python(t, `
import sqlite3, sys
db = sqlite3.connect('file:%s?mode=ro' % sys.argv[1], uri=True)
print(db.execute("select value from config where name = 'zodb'").fetchone()[0])`, database)
	sources, err := state.Parse(row)
	if err != nil {
		t.Fatal(err)
	}
	shifts := map[string]tid.OID{}
	for name, s := range sources {
		shifts[name] = s.Shift
	}
	arg, err := json.Marshal(shifts)
	if err != nil {
		t.Fatal(err)
	}
	names = nil // of what was edited
	look := func(when string) {
		t.Helper()
		var seen struct {
			Objects map[string]int // compared, by the name of their database
			Mounts  int            // that were gone through
			Weak    int
			Old     int // revisions compared
		}
		runMounted(t, &seen, "compare", originals, string(arg), door)
		for _, m := range made.Databases {
			if seen.Objects[m.Name] < 100 {
				t.Errorf("%s, %d objects of %s were compared", when, seen.Objects[m.Name], m.Name)
			}
		}
		if seen.Mounts < 5 || seen.Weak < 4 || seen.Old == 0 {
			t.Errorf("%s, compared %+v", when, seen)
		}
		runMounted(t, nil, "check", originals, door, strings.Join(names, ""))
		name := fmt.Sprint(len(names))
		runMounted(t, nil, "edit", originals, door, name)
		names = append(names, name)
		runMounted(t, nil, "check", originals, door, strings.Join(names, ""))
	}
	look("during the import")
	if s := c.importStatus(t); s.State != "copying" {
		t.Errorf("the import is %+v after all had been looked at", s)
	}
	if out, errOut, status := c.Ctl(t, "import", "limit", "none"); status != 0 {
		t.Fatalf("import limit: %s%s", out, errOut)
	}
	c.until(t, "the import is done", func() bool { return c.importStatus(t).State == "done" })
	cancel() // the sources are not needed any more
	for _, p := range other.Nodes() {
		p.Kill()
	}
	look("after the import")
	if err := storageNode.Stop(t); err != nil {
		t.Error(err)
	}
	Start(t, "neostorage", append(common, "-a", "SQLite", "-d", database)...)
	c.WaitState(t, "RUNNING", patience)
	look("with the database of the destination")
	export := filepath.Join(dir, "export.fs")
	c.export(t, export, "--verify")
}

// until waits until ok returns true.
func (c *Cluster) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			out, errOut, _ := c.Ctl(t, "print", "import")
			t.Fatalf("not in 2 minutes: %s\n%s%s", what, out, errOut)
		}
	}
}
