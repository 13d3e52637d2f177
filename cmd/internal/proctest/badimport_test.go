package proctest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/fsformat"
)

// importerConf writes an importer.conf beside the database that it names.
func importerConf(t testing.TB, sections string) (path, database string) {
	t.Helper()
	dir := t.TempDir()
	path, database = filepath.Join(dir, "importer.conf"), filepath.Join(dir, "neo.sqlite")
	text := "[neo]\nadapter = SQLite\ndatabase = " + database + "\n" + sections
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	return path, database
}

// fileSource is the section of a Data.fs that is imported.
func fileSource(name, path string, lines ...string) string {
	return fmt.Sprintf("[%s]\nstorage =\n  <filestorage>\n    path %s\n  </filestorage>\n%s\n", name, path, strings.Join(lines, "\n"))
}

// startImporting starts a cluster whose only storage, for now, imports.
func startImporting(t testing.TB, conf string, partitions int) *Cluster {
	t.Helper()
	c := beginImporting(t, conf, partitions)
	c.WaitState(t, "RUNNING", patience)
	return c
}

// beginImporting is startImporting for an import that may end before it is seen running.
func beginImporting(t testing.TB, conf string, partitions int) *Cluster {
	t.Helper()
	c := &Cluster{
		Name: "test", Dir: filepath.Dir(conf),
		Masters: fmt.Sprintf("127.0.0.1:%d", FreePort(t)),
		Admin:   fmt.Sprintf("127.0.0.1:%d", FreePort(t)),
	}
	c.Master = Start(t, "neomaster", "-c", c.Name, "-m", c.Masters, "-b", c.Masters, "-A", "1", "-p", fmt.Sprint(partitions))
	c.Storages = []*Process{Start(t, "neostorage", "-c", c.Name, "-m", c.Masters, "-a", "Importer", "-d", conf)}
	c.AdminP = Start(t, "neoadmin", "-c", c.Name, "-m", c.Masters, "-b", c.Admin)
	return c
}

// waitImport waits until print import shows something, and returns what it prints.
func (c *Cluster) waitImport(t testing.TB, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var out string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if out, _, _ = c.Ctl(t, "print", "import"); re.MatchString(out) {
			return out
		}
	}
	t.Fatalf("print import does not show %s but\n%s", pattern, out)
	return ""
}

// importDone is what print import shows at the end.
const importDone = `(?m)^S\d+: done$`

// oldRecord returns an old revision in the middle of a Data.fs, which no index leads to.
func oldRecord(t testing.TB, path string) (rec fsformat.RecordHeader, at tid.TID) {
	t.Helper()
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	type found struct {
		rec fsformat.RecordHeader
		tid tid.TID
	}
	last, seen := map[tid.OID]tid.TID{}, []found{}
	for x, err := range r.Scan(context.Background(), tid.Zero, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		for rec, err := range x.Places {
			if err != nil {
				t.Fatal(err)
			}
			last[rec.OID] = x.TID
			seen = append(seen, found{*rec, x.TID})
		}
	}
	for _, f := range seen[len(seen)/2:] {
		if last[f.rec.OID] > f.tid && f.rec.OID != 0 {
			return f.rec, f.tid
		}
	}
	t.Fatalf("%s: no old revision", path)
	return
}

// heldImport is a cluster with an import that stands still in the middle, until release is called.
func heldImport(t *testing.T, partitions int) (c *Cluster, conf, database string, release func()) {
	t.Helper()
	file := write(t, "Data.fs", read(t, filepath.Join(samples, "site.fs")))
	must(t, "neofs", "index", "-q", "--write", file)
	rec, _ := oldRecord(t, file)
	head := read(t, file)[rec.Pos : rec.Pos+16]
	overwrite(t, file, rec.Pos, append(append([]byte{}, head[:8]...), 1, 2, 3, 4, 5, 6, 7, 8))
	conf, database = importerConf(t, fileSource("root", file))
	c = startImporting(t, conf, partitions)
	c.waitImport(t, `FAILED`)
	return c, conf, database, func() {
		t.Helper()
		overwrite(t, file, rec.Pos, head)
		if _, errOut, status := c.Ctl(t, "import", "resume"); status != 0 {
			t.Errorf("import resume: %s", errOut)
		}
	}
}

// overwrite changes a part of a file in its place.
func overwrite(t testing.TB, file string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// A record of the source that is damaged stops the import, which says where and what to do.
// Everything else is served, and the import goes on when the file is mended, or when the record
// is left out by order, which is told ever after.
func TestImportOfDamaged(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"resume", "skip"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			whole := read(t, filepath.Join(samples, "site.fs"))
			file := write(t, "Data.fs", whole)
			must(t, "neofs", "index", "-q", "--write", file)
			rec, at := oldRecord(t, file)
			// The head of the record says that it is of another transaction.
			overwrite(t, file, rec.Pos, append(append([]byte{}, whole[rec.Pos:rec.Pos+8]...), 1, 2, 3, 4, 5, 6, 7, 8))
			conf, database := importerConf(t, fileSource("root", file))
			c := startImporting(t, conf, 4)
			out := c.waitImport(t, `FAILED`)
			says(t, "print import", out, at.String(), rec.OID.String(), fmt.Sprint(rec.Pos), `neoctl import resume`, `neoctl import skip `+at.String()+`\[:OID\]`)
			if _, _, status := c.Ctl(t, "print", "import"); status == 0 {
				t.Error("print import of an import that stands still has status 0")
			}
			cl, err := Connect(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			for oid := range tid.OID(20) {
				if _, err := cl.LoadBefore(t.Context(), oid, tid.Max); err != nil {
					t.Errorf("object %v: %v", oid, err)
				}
			}
			if _, err := cl.LoadAt(t.Context(), rec.OID, at); err == nil || !strings.Contains(err.Error(), fmt.Sprint(rec.Pos)) {
				t.Errorf("the damaged record: %v", err)
			}
			copied := filepath.Join(t.TempDir(), "copied.fs")
			if way == "resume" {
				overwrite(t, file, rec.Pos, whole[rec.Pos:rec.Pos+16])
				c.Ctl(t, "import", "resume")
				c.waitImport(t, importDone)
				c.export(t, copied)
				sameBytes(t, copied, whole)
				return
			}
			c.Ctl(t, "import", "skip", at.String())
			out = c.waitImport(t, importDone)
			says(t, "print import", out, `(?m)^  LEFT OUT: +\d+ record`, `left out \(TID\[:OID\]\): `+at.String())
			says(t, "the storage", c.Storages[0].Output(), `left out.*tid=`+at.String())
			// As the native database, too.
			if err := c.Storages[0].Stop(t); err != nil {
				t.Error(err)
			}
			native := Start(t, "neostorage", "-c", c.Name, "-m", c.Masters, "-a", "SQLite", "-d", database)
			c.Storages[0] = native
			c.WaitState(t, "RUNNING", patience)
			if _, err := cl.LoadAt(t.Context(), rec.OID, at); err == nil {
				t.Error("the record that was left out is there")
			}
			if _, err := cl.LoadBefore(t.Context(), rec.OID, tid.Max); err != nil {
				t.Errorf("the object of that record: %v", err)
			}
		})
	}
}

// ctl runs neoctl, which must end with a status and say something.
func (c *Cluster) ctl(t testing.TB, status int, pattern string, args ...string) string {
	t.Helper()
	out, errOut, got := c.Ctl(t, args...)
	if got != status || !regexp.MustCompile(pattern).MatchString(out+errOut) {
		t.Errorf("neoctl %s: status %d, %s%s\nwant status %d and %s", strings.Join(args, " "), got, out, errOut, status, pattern)
	}
	return out
}

// While a storage imports, others may join: their replication ends after the import. A pack is
// executed then, what would cut or take away what is not copied is refused, and no node ends.
func TestClusterDuringImport(t *testing.T) {
	t.Parallel()
	c, conf, database, release := heldImport(t, 4)
	cl, err := Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	old, err := cl.LoadBefore(t.Context(), 0, tid.Max)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := cl.Begin(t.Context(), client.BeginOptions{})
	if err == nil {
		err = tx.Store(t.Context(), 0, old.Serial, old.Data)
	}
	if err != nil {
		t.Fatal(err)
	}
	last, err := tx.Finish(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.ctl(t, 1, `the sources of the import of S1 go up to`, "truncate", fmt.Sprint("tid:", uint64(old.Serial-1)), "--yes")
	order, err := cl.Pack(t.Context(), last)
	if err != nil {
		t.Fatal(err)
	}

	refused(t, 1, []string{`the import into this database is not finished`}, "neostorage", "-c", c.Name, "-m", c.Masters, "-a", "SQLite", "-d", copied(t, database))
	refused(t, 1, []string{`^error: database is locked\n` + regexp.QuoteMeta(database) + ` is used by another process`}, "neostorage", "-c", c.Name, "-m", c.Masters, "-a", "Importer", "-d", conf)
	s2 := Start(t, "neostorage", "-c", c.Name, "-m", c.Masters, "-a", "SQLite", "-d", filepath.Join(c.Dir, "s2.sqlite"))
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		if out, _, _ := c.Ctl(t, "print", "node"); strings.Contains(out, "S2 ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("S2 does not come")
		}
	}
	c.Storages = append(c.Storages, s2)
	c.ctl(t, 0, ``, "add", "S2")
	c.ctl(t, 0, ``, "set", "replicas", "1")
	c.ctl(t, 0, ``, "tweak")
	c.ctl(t, 0, `S2 R O+`, "print", "pt")
	c.ctl(t, 1, `only readable copies|must be stopped`, "drop", "S1", "--yes")
	c.ctl(t, 1, ``, "set", "cluster", "STARTING_BACKUP")
	c.ctl(t, 3, `S1 was not compared to the end.*\n.*4 partitions could not be compared`, "check", ":")

	// The master is another one, and another one again.
	for range 2 {
		c.Master.Kill()
		if err := c.Master.Restart(); err != nil {
			t.Fatal(err)
		}
		c.WaitState(t, "RUNNING", patience)
	}
	c.waitImport(t, `FAILED`)
	waitFor(t, "S2 is there again", func() bool {
		out, _, _ := c.Ctl(t, "print", "pt")
		return regexp.MustCompile(`S2 R O+`).MatchString(out)
	})
	if _, err := cl.LoadAt(t.Context(), 0, old.Serial); err != nil {
		t.Errorf("a revision is packed during the import: %v", err)
	}
	wantRunning(t, c.Nodes())

	release()
	c.waitImport(t, importDone)
	c.waitUpToDate(t, patience)
	packed, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := cl.WaitForPack(packed, order); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.LoadAt(t.Context(), 0, old.Serial); err == nil {
		t.Error("the pack that was ordered is not executed")
	}
	c.ctl(t, 0, `no difference found`, "check", ":")
	c.ctl(t, 1, `packed by an order after|the sources of the import of S1 go up to`, "truncate", fmt.Sprint("tid:", uint64(old.Serial-1)), "--yes")
	wantRunning(t, c.Nodes())
	for _, p := range c.Nodes() {
		if strings.Contains(p.Output(), "NOT_IMPLEMENTED") || strings.Count(p.Output(), "a source of the import is damaged what=") > 3 {
			t.Errorf("%s printed\n%s", p.Name, p.Output())
		}
	}
}

// copied returns a copy of an SQLite database that is in use, as a backup would have it.
func copied(t testing.TB, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(path))
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if err == nil {
			err = os.WriteFile(to+suffix, b, 0o666)
		}
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return to
}

// A cluster that would begin with two storages is refused by the one that imports, before
// anything is stored.
func TestImportIntoTwoStorages(t *testing.T) {
	t.Parallel()
	file := write(t, "Data.fs", read(t, filepath.Join(samples, "site.fs")))
	conf, _ := importerConf(t, fileSource("root", file))
	masters := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	master := Start(t, "neomaster", "-c", "test", "-m", masters, "-b", masters, "-A", "2", "-p", "4")
	importing := Start(t, "neostorage", "-c", "test", "-m", masters, "-a", "Importer", "-d", conf)
	other := Start(t, "neostorage", "-c", "test", "-m", masters, "-a", "SQLite", "-d", filepath.Join(t.TempDir(), "s2.sqlite"))
	if err := importing.Wait(t, patience); err == nil || err.Error() != "exit status 1" {
		t.Errorf("the importing storage: %v", err)
	}
	says(t, "the importing storage", importing.Output(), `error: .*the import is not finished, and the partition table has .*Make the cluster with this storage alone, and add others afterwards`)
	wantRunning(t, []*Process{master, other})
	refused(t, 0, nil, "neostorage", "-c", "test", "-a", "Importer", "-d", conf, "--reset")
}

// What cannot be imported is refused by both programs that import, with what to do, and what is
// there stays as it is.
func TestRefusedImports(t *testing.T) {
	t.Parallel()
	site := read(t, filepath.Join(samples, "site.fs"))
	list := places(t, filepath.Join(samples, "site.fs"))
	dir := t.TempDir()
	served := write(t, "served.fs", site)
	unlock, err := fsformat.Lock(served) // as a server that may write
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	zeros := append([]byte{}, site...)
	clear(zeros[list[len(list)/2].pos:][:3000])
	for _, x := range []struct {
		file string
		says []string
	}{
		{served, []string{`served\.fs is in use by process \d+: stop it first`}},
		{filepath.Join(dir, "missing.fs"), []string{`missing\.fs: no such file`}},
		{dir, []string{regexp.QuoteMeta(dir) + `: not a regular file`}},
		{write(t, "empty.fs", nil), []string{`empty\.fs: can not import empty storage: .*needs no import`}},
		{write(t, "magic.fs", []byte("FS30")), []string{`magic\.fs: can not import empty storage: .*needs no import`}},
		{write(t, "text.fs", []byte("hello, I am a text")), []string{`text\.fs: not a Data\.fs`}},
		{write(t, "zeros.fs", zeros), []string{`zeros\.fs: offset ` + fmt.Sprint(list[len(list)/2].pos), `neofs salvage`}},
	} {
		before, _ := os.ReadFile(x.file)
		refused(t, 1, x.says, "neosimple", "-q", "--dir", filepath.Join(t.TempDir(), "db"), "--import", x.file)
		conf, _ := importerConf(t, fileSource("root", x.file))
		refused(t, 1, x.says, "neostorage", "-c", "test", "-a", "Importer", "-d", conf)
		if after, _ := os.ReadFile(x.file); string(after) != string(before) {
			t.Errorf("%s was changed", x.file)
		}
	}

	good, other := write(t, "good.fs", site), write(t, "other.fs", read(t, filepath.Join(samples, "07-btrees-refs.fs")))
	last, next := list[len(list)-1].tid.String(), fmt.Sprint(1<<40)
	for _, x := range map[string]struct {
		sections string
		says     []string
	}{
		"no such mount target": {fileSource("root", good, "other = 5"), []string{`importer\.conf:\d+: .*"other"`}},
		"two roots":            {fileSource("root", good) + fileSource("other", other), []string{`\[root\] and \[other\] both have oid 0`}},
		"a circle":             {fileSource("root", good) + fileSource("a", other, "oid = 1", "b = 1") + fileSource("b", served, "oid = 1", "a = 1"), []string{`\[a\] can not be reached from the root`}},
		"no object":            {fileSource("root", good, "other = "+next) + fileSource("other", other, "oid = 1"), []string{`mount point ` + next + ` of \[other\] is no object`}},
		"no object mounted":    {fileSource("root", good, "other = 1") + fileSource("other", other, "oid = "+next), []string{`oid ` + next + `, which its mount point leads to, is no object`}},
		"the same file twice":  {fileSource("root", good, "other = 1") + fileSource("other", good, "oid = 1"), []string{`are the same file`}},
	} {
		conf, _ := importerConf(t, x.sections)
		refused(t, 1, x.says, "neostorage", "-c", "test", "-a", "Importer", "-d", conf)
	}

	// Once it has begun.
	c, conf, database, release := heldImport(t, 4)
	if err := c.Storages[0].Stop(t); err != nil {
		t.Error(err)
	}
	text := string(read(t, conf))
	edited := func(from, to string) string {
		path := filepath.Join(t.TempDir(), "importer.conf")
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, from, to)), 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	source := regexp.MustCompile(`path (\S+)`).FindStringSubmatch(text)[1]
	start := []string{"-c", c.Name, "-m", c.Masters, "-a", "Importer", "-d"}
	refused(t, 1, []string{`\[main\] was no source when the import began`}, "neostorage", append(start, edited("[root]", "[main]"))...)
	refused(t, 1, []string{`other\.fs|transaction ` + last, `not the database with which the import began, or it was truncated: put that back`}, "neostorage", append(start, edited(source, other))...)
	cut := filepath.Join(t.TempDir(), "cut.fs")
	if err := os.WriteFile(cut, site[:list[len(list)-3].end], 0o666); err != nil {
		t.Fatal(err)
	}
	refused(t, 1, []string{last + `, the last one of the import that has begun, is not in it`}, "neostorage", append(start, edited(source, cut))...)
	refused(t, 2, []string{`--engine does not go with --adapter Importer`}, "neostorage", append(start, conf, "-e", "InnoDB")...)
	refused(t, 2, []string{`--new-nid does not go with --adapter Importer`}, "neostorage", append(start, conf, "--new-nid")...)
	refused(t, 1, []string{`the database belongs to cluster "test", not "other"`}, "neostorage", "-c", "other", "-m", c.Masters, "-a", "Importer", "-d", conf)
	refused(t, 1, []string{`the import into this database is not finished`, `adapter Importer`}, "neostorage", "-c", c.Name, "-m", c.Masters, "-a", "SQLite", "-d", database)
	if err := c.Storages[0].Restart(); err != nil {
		t.Fatal(err)
	}
	c.waitImport(t, `FAILED`)
	release()
	c.waitImport(t, importDone)
	out := filepath.Join(t.TempDir(), "out.fs")
	c.export(t, out)
	sameBytes(t, out, site)

	// A database that is used already.
	used, _ := importerConf(t, fileSource("root", good))
	db := StartCluster(t, Options{})
	db.migrate(t, other)
	if err := db.Storages[0].Stop(t); err != nil {
		t.Error(err)
	}
	taken := filepath.Join(t.TempDir(), "importer.conf")
	if err := os.WriteFile(taken, []byte(regexp.MustCompile(`database = \S+`).ReplaceAllString(string(read(t, used)), "database = "+filepath.Join(db.Dir, "s1.sqlite"))), 0o666); err != nil {
		t.Fatal(err)
	}
	refused(t, 1, []string{`the destination already has transactions`, `import into a new database`}, "neostorage", "-c", db.Name, "-m", db.Masters, "-a", "Importer", "-d", taken)
	if err := db.Storages[0].Restart(); err != nil {
		t.Fatal(err)
	}
	db.WaitState(t, "RUNNING", patience)
	db.export(t, out+"2")
	sameBytes(t, out+"2", read(t, other))
}

// A server that goes away in the middle of an import is waited for. At a later start the node does
// not need it, and the import goes on when it is back. Nothing is lost.
func TestImportFromLostServer(t *testing.T) {
	t.Parallel()
	file := write(t, "Data.fs", read(t, filepath.Join(samples, "site.fs")))
	addr := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	conf, _ := importerConf(t, "[root]\nstorage =\n  <zeoclient>\n    server "+addr+"\n  </zeoclient>\n")

	// It must be there when the import begins: until then the node waits, and says so.
	masters := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	early := Start(t, "neostorage", "-c", "test", "-m", masters, "-a", "Importer", "-d", conf)
	for deadline := time.Now().Add(patience); !strings.Contains(early.Output(), addr); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the storage does not say that it waits:\n%s", early.Output())
		}
	}
	early.Kill()

	server := Start(t, "neozeo", "--file", file, "-b", addr)
	waitForPort(t, addr)
	c := startImporting(t, conf, 4)
	server.Kill()
	cl, err := Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	wantRunning(t, c.Nodes())
	c.Storages[0].Kill()
	if err := c.Storages[0].Restart(); err != nil {
		t.Fatal(err)
	}
	c.WaitState(t, "RUNNING", patience)
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	waitForPort(t, addr)
	if _, err := cl.LoadBefore(t.Context(), 0, tid.Max); err != nil {
		t.Errorf("a load after the server came back: %v", err)
	}
	c.Ctl(t, "import", "resume") // it may not have failed
	c.waitImport(t, importDone)
	out := filepath.Join(t.TempDir(), "out.fs")
	c.export(t, out)
	// A ZEO server does not tell of back-pointers.
	got, want := places(t, out), places(t, file)
	same := func(a, b place) bool { return a.tid == b.tid }
	if !slices.EqualFunc(got, want, same) {
		t.Errorf("%d transactions, want %d", len(got), len(want))
	}
}
