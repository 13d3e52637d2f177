package proctest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

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

// importCluster starts a cluster whose only storage, for now, imports.
func importCluster(t testing.TB, conf string, partitions int) *Cluster {
	t.Helper()
	c := &Cluster{
		Name: "test", Dir: filepath.Dir(conf),
		Masters: fmt.Sprintf("127.0.0.1:%d", FreePort(t)),
		Admin:   fmt.Sprintf("127.0.0.1:%d", FreePort(t)),
	}
	c.Master = Start(t, "neomaster", "-c", c.Name, "-m", c.Masters, "-b", c.Masters, "-A", "1", "-p", fmt.Sprint(partitions))
	c.Storages = []*Process{Start(t, "neostorage", "-c", c.Name, "-m", c.Masters, "-a", "Importer", "-d", conf)}
	c.AdminP = Start(t, "neoadmin", "-c", c.Name, "-m", c.Masters, "-b", c.Admin)
	c.WaitState(t, "RUNNING", 30*time.Second)
	return c
}

// waitImport waits until print import shows something, and returns what it prints.
func (c *Cluster) waitImport(t testing.TB, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var out string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
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
			write := func(b []byte) {
				f, err := os.OpenFile(file, os.O_WRONLY, 0)
				if err == nil {
					_, err = f.WriteAt(b, rec.Pos)
					err2 := f.Close()
					if err == nil {
						err = err2
					}
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			// The head of the record says that it is of another transaction.
			write(append(append([]byte{}, whole[rec.Pos:rec.Pos+8]...), 1, 2, 3, 4, 5, 6, 7, 8))
			conf, database := importerConf(t, fileSource("root", file))
			c := importCluster(t, conf, 4)
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
				write(whole[rec.Pos : rec.Pos+16])
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
			c.WaitState(t, "RUNNING", 30*time.Second)
			if _, err := cl.LoadAt(t.Context(), rec.OID, at); err == nil {
				t.Error("the record that was left out is there")
			}
			if _, err := cl.LoadBefore(t.Context(), rec.OID, tid.Max); err != nil {
				t.Errorf("the object of that record: %v", err)
			}
		})
	}
}
