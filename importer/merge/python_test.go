package merge_test

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat/pickle"
	"github.com/neozodb/neo/importer/merge"
)

//go:embed testdata/mounted.py
var mounted string

// runMounted runs testdata/mounted.py and returns what it prints.
func runMounted(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(zeotest.Python(t), append([]string{"-c", mounted}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("mounted.py %q: %v\n%s", args, err, &stderr)
	}
	return out
}

// A Python program makes databases that are mounted into each other and refer to each other in
// all ways that ZODB has, one of them with pickles as of Python 2. The merged database is a
// Data.fs that Python reads: it is walked from its root beside the originals, through every
// mount point, and each object has the same class and the same state.
func TestMountedDatabasesOfPython(t *testing.T) {
	zeotest.Python(t)
	dir := t.TempDir()
	var made struct {
		Databases []struct {
			Name   string
			Target tid.OID            // that mount points of other databases lead to
			Mounts map[string]tid.OID // by the name of the database
		}
	}
	if err := json.Unmarshal(runMounted(t, "make", dir), &made); err != nil {
		t.Fatal(err)
	}
	var sources []merge.Source
	targets := map[string]tid.OID{}
	shift := tid.OID(0)
	for _, m := range made.Databases {
		f := openFile(t, filepath.Join(dir, m.Name+".fs"))
		last, err := f.LastTID(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		next := tid.OID(0)
		for oid, err := range f.OIDs(t.Context(), last, 0) {
			if err != nil {
				t.Fatal(err)
			}
			next = oid + 1
		}
		targets[m.Name] = m.Target + shift
		sources = append(sources, merge.Source{
			Name: "section-" + m.Name, DatabaseName: m.Name, Database: f, Last: last, Shift: shift, Next: next,
			Mapping: map[tid.OID]tid.OID{}, Python3: true,
		})
		shift += next
	}
	forms := map[string]int{}
	for i, m := range made.Databases {
		for to, oid := range m.Mounts {
			sources[i].Mapping[oid] = targets[to]
		}
		if forms[m.Name] = countForms(t, sources[i], forms); forms[m.Name] == 0 {
			t.Errorf("database %s has no references", m.Name)
		}
	}
	for _, form := range []string{"strong", "weak", "weak foreign", "multi foreign", "multi-oid foreign", "str of Python 2"} {
		if forms[form] == 0 {
			t.Errorf("no reference of form %s: %v", form, forms)
		}
	}
	d := mustNew(t, sources...)
	path := filepath.Join(dir, "merged.fs")
	if _, err := exporter.ToFile(t.Context(), d, path, exporter.FileOptions{}); err != nil {
		t.Fatal(err)
	}
	var notes merge.Notes
	for tr, err := range d.Scan(t.Context(), 0, tid.Max, merge.ScanOptions{Notes: &notes}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(notes.Foreign) != 1 || notes.Foreign["elsewhere"] == 0 || notes.Dangling != 0 {
		t.Errorf("notes %+v, want references to elsewhere", notes)
	}
	shifts := map[string]tid.OID{}
	for i, m := range made.Databases {
		shifts[m.Name] = sources[i].Shift
	}
	arg, err := json.Marshal(shifts)
	if err != nil {
		t.Fatal(err)
	}
	var seen struct {
		Objects map[string]int // compared, by the name of their database
		Mounts  int            // that were gone through
		Weak    int
		Old     int // revisions compared
	}
	if err := json.Unmarshal(runMounted(t, "compare", dir, string(arg)), &seen); err != nil {
		t.Fatal(err)
	}
	for _, m := range made.Databases {
		if seen.Objects[m.Name] < 100 {
			t.Errorf("%d objects of %s were compared", seen.Objects[m.Name], m.Name)
		}
	}
	if seen.Mounts < 5 || seen.Weak < 4 || seen.Old == 0 {
		t.Errorf("compared %+v", seen)
	}
	t.Logf("compared %+v; references %v", seen, forms)

	// The file is what loads say, too.
	checkLoads(t, d, openFile(t, path))
}

// countForms adds the references in a source by their form, and returns how many there are.
func countForms(t *testing.T, s merge.Source, forms map[string]int) (n int) {
	t.Helper()
	var scanner pickle.Scanner
	for tr, err := range s.Database.Transactions(t.Context(), 0, s.Last) {
		if err != nil {
			t.Fatal(err)
		}
		for r, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			refs, err := scanner.References(r.Data)
			if err != nil {
				t.Fatal(err)
			}
			for _, ref := range refs {
				form := ref.Kind.String()
				if len(ref.Database) > 0 {
					form += " foreign"
				}
				forms[form]++
				n++
			}
			if strings.Contains(string(r.Data), "U\x08\x00\x00\x00\x00") {
				forms["str of Python 2"]++
			}
		}
	}
	return n
}

// checkLoads compares each object of a merged database with the file that was made of it.
func checkLoads(t *testing.T, d *merge.Database, f txn.Database) {
	t.Helper()
	n := 0
	for oid, err := range f.OIDs(t.Context(), tid.Max, 0) {
		if err != nil {
			t.Fatal(err)
		}
		want, err := f.LoadBefore(t.Context(), oid, tid.Max)
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.LoadBefore(t.Context(), oid, tid.Max)
		if err != nil || got.Serial != want.Serial || !bytes.Equal(got.Data, want.Data) {
			t.Errorf("object %v: %d bytes at %v, %v, want %d at %v", oid, len(got.Data), got.Serial, err, len(want.Data), want.Serial)
		}
		n++
	}
	if n == 0 {
		t.Error("the file has no objects")
	}
}
