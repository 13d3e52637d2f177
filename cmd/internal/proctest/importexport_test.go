package proctest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// exportOfImported returns what the export of an imported sample has to be, nil if it cannot
// be imported, or not all of it.
func exportOfImported(t *testing.T, file string) []byte {
	t.Helper()
	b := read(t, file)
	switch filepath.Base(file) {
	case "05-packed.fs":
		// A link that the pack has cut is one again.
		binary.BigEndian.PutUint64(b[742+16:], 33)
	case "06-metadata.fs", "10-legacy-fs21.fs":
		return nil
	case "08-truncated-tail.fs":
		return b[:1135]
	case "09-voted-tail.fs":
		return b[:293]
	}
	return b
}

// An export is the source, byte for byte, followed by what clients have committed: before
// anything is copied, when all is, and after a restart without the source.
func TestExportOfImported(t *testing.T) {
	files, err := filepath.Glob(samples + "/*.fs")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		want := exportOfImported(t, file)
		if want == nil {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			source := write(t, "Data.fs", read(t, file))
			dir := t.TempDir()
			database := filepath.Join(dir, "s1.sqlite")
			configuration := write(t, "importer.conf", fmt.Appendf(nil,
				"[neo]\nadapter: SQLite\ndatabase: %s\n[root]\nstorage:\n  <filestorage>\n    path %s\n  </filestorage>\n", database, source))
			pauseImport(t, configuration)

			c := StartCluster(t, Options{Dir: dir, Storage: []string{"-a", "Importer", "-d", configuration}})
			during := filepath.Join(dir, "during.fs")
			c.export(t, during)
			sameBytes(t, during, want)
			c.commitNew(t)
			c.export(t, during) // is brought up to date
			if out, errOut, status := c.Ctl(t, "import", "resume"); status != 0 {
				t.Fatalf("resume: %s%s", out, errOut)
			}
			if out, errOut, status := c.Ctl(t, "print", "import", "--follow"); status != 0 {
				t.Fatalf("import: exit status %d\n%s%s", status, out, errOut)
			}
			after := filepath.Join(dir, "after.fs")
			c.export(t, after, "--verify")
			sameFiles(t, after, during)
			got := read(t, after)
			if len(got) <= len(want) || string(got[:len(want)]) != string(want) {
				t.Error("what was committed meanwhile is not at the end of the export alone")
			}

			if err := c.Storages[0].Stop(t); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(source); err != nil {
				t.Fatal(err)
			}
			c.Storages[0] = Start(t, "neostorage", "-c", c.Name, "-m", c.Masters, "-a", "SQLite", "-d", database)
			c.WaitState(t, "RUNNING", patience)
			native := filepath.Join(dir, "native.fs")
			c.export(t, native)
			sameFiles(t, native, after)
		})
	}
}

// pauseImport pauses an import before its storage starts.
func pauseImport(t *testing.T, configuration string) {
	t.Helper()
	db, err := adapter.Open(t.Context(), adapter.Config{Adapter: adapter.Importer, Database: configuration})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.(backend.Runner).Order(importing.Order{Kind: importing.Pause}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// commitNew commits a new object.
func (c *Cluster) commitNew(t *testing.T) {
	t.Helper()
	cl, err := Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	tx, err := cl.Begin(t.Context(), client.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	oids, err := cl.NewOIDs(t.Context(), 1)
	if err == nil {
		err = tx.Store(t.Context(), oids[0], tid.Zero, []byte("new"))
	}
	if err == nil {
		_, err = tx.Finish(t.Context(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}
