package proctest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/neozodb/neo/fsformat"
)

// Damaged files are refused, or copied as far as they are whole, and what is said
// names the file, the place, and the transaction.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	original := filepath.Join(samples, "site.fs")
	whole, list := read(t, original), places(t, original)
	middle, last := list[len(list)/2], list[len(list)-1]
	damage := func(at int64, b ...byte) []byte {
		d := slices.Clone(whole)
		copy(d[at:], b)
		return d
	}
	lengths := binary.BigEndian.AppendUint64(nil, 1<<40)

	for _, c := range []struct {
		name    string
		content []byte
		says    []string
		keeps   int64 // how much is copied; 0: nothing is, not even an empty file
		status  int
	}{
		{"truncated.fs", whole[:last.pos+100], []string{`warning: .*truncated\.fs: offset ` + fmt.Sprint(last.pos), last.tid.String(), `100 bytes ignored`}, last.pos, 0},
		{"voted.fs", damage(last.pos+16, 'c'), []string{`warning: .*voted\.fs: offset ` + fmt.Sprint(last.pos), last.tid.String(), `bytes ignored`}, last.pos, 0},
		{"length.fs", damage(middle.pos+8, lengths...), []string{`length\.fs`, fmt.Sprint(middle.pos), middle.tid.String()}, middle.pos, 1},
		{"status.fs", damage(middle.pos+16, 'x'), []string{`status\.fs`, fmt.Sprint(middle.pos), middle.tid.String(), `status`}, middle.pos, 1},
		{"record.fs", damage(record(t, original, middle)+8, 0, 0, 0), []string{`record\.fs`, fmt.Sprint(record(t, original, middle)), middle.tid.String()}, middle.pos, 1},
		{"zeros.fs", slices.Concat(whole[:middle.pos], make([]byte, 4096), whole[middle.pos+4096:]), []string{`zeros\.fs`, fmt.Sprint(middle.pos)}, middle.pos, 1},
		{"magic.fs", damage(0, 'P', 'K', 3, 4), []string{`magic\.fs: not a Data\.fs: it begins with "PK`}, 0, 1},
		{"text.fs", []byte("hello"), []string{`text\.fs: not a Data\.fs`}, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			file := write(t, c.name, c.content)
			out := filepath.Join(t.TempDir(), "out.fs")
			refused(t, c.status, c.says, "neoexport", "-q", file, out)

			cluster := StartCluster(t, Options{})
			refused(t, c.status, c.says, "neomigrate", "-q", "-c", cluster.Name, file, cluster.Masters)
			copied := filepath.Join(t.TempDir(), "copied.fs")
			cluster.export(t, copied)
			sameBytes(t, file, c.content)
			switch {
			case c.keeps == 0:
				sameBytes(t, copied, []byte("FS30"))
				if entries, err := os.ReadDir(filepath.Dir(out)); err != nil || len(entries) > 0 {
					t.Errorf("the export left %s %v", names(entries), err)
				}
			case c.status == 0:
				sameBytes(t, out, whole[:c.keeps])
				sameBytes(t, copied, whole[:c.keeps])
			default: // what was copied is a beginning, and goes on with the whole file
				got := read(t, copied)
				if string(got) != string(whole[:len(got)]) || int64(len(got)) > c.keeps {
					t.Errorf("%d bytes in the cluster are not the first %d of the file", len(got), c.keeps)
				}
				if size(out) != 0 {
					t.Error("an export that failed looks complete")
				}
				cluster.migrate(t, original)
				cluster.export(t, copied)
				sameBytes(t, copied, whole)
				must(t, "neoexport", "-q", original, out)
				sameBytes(t, out, whole)
			}
			if _, _, status := Run(t, "neofs", "check", "-q", file); status != 1 {
				t.Errorf("neofs check has status %d", status)
			}
		})
	}
}

// record returns the position of the first record of a transaction.
func record(t testing.TB, path string, p place) int64 {
	t.Helper()
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	x, err := r.TransactionAt(p.pos)
	if err != nil {
		t.Fatal(err)
	}
	return x.Head.First()
}

// An index that is not that of the file is told and not believed.
func TestForeignIndex(t *testing.T) {
	t.Parallel()
	site, err := filepath.Abs(filepath.Join(samples, "site.fs"))
	if err != nil {
		t.Fatal(err)
	}
	b, list := read(t, site), places(t, site)
	half := list[len(list)/2].end
	newer := write(t, "whole.fs", b)
	must(t, "neofs", "index", "-q", "--write", newer)
	want, _ := must(t, "neofs", "cat", write(t, "half.fs", b[:half]), "0")

	for name, index := range map[string][]byte{
		"of another file":     read(t, filepath.Join(samples, "01-basic.fs.index")),
		"newer than the file": read(t, newer+".index"),
		"garbage":             []byte("\x80\x03garbage"),
		"empty":               {},
	} {
		file := write(t, "Data.fs", b[:half])
		if err := os.WriteFile(file+".index", index, 0o666); err != nil {
			t.Fatal(err)
		}
		out, errOut := must(t, "neofs", "cat", "-q", file, "0")
		if out != want {
			t.Errorf("with an index %s the root is\n%s\nwant\n%s", name, out, want)
		}
		says(t, "neofs cat with an index "+name, errOut, `warning: .*Data\.fs\.index: unusable index: .*the file was read instead`)
		refused(t, 1, []string{`Data\.fs\.index: unusable index: `}, "neofs", "index", "-q", file)
		// What is appended is what the data say, and the new index is right.
		must(t, "neoexport", "-q", site, file)
		sameBytes(t, file, b)
		sameBytes(t, file+".index", read(t, newer+".index"))
	}
}

// A Data.fs that somebody writes is not written by anybody else.
func TestLockedFile(t *testing.T) {
	t.Parallel()
	site := filepath.Join(samples, "site.fs")
	b, list := read(t, site), places(t, site)
	file := write(t, "Data.fs", b[:list[3].end])
	unlock, err := fsformat.Lock(file)
	if err != nil {
		t.Fatal(err)
	}
	locked := []string{`Data\.fs\.lock`, fmt.Sprint(os.Getpid())}
	refused(t, 1, locked, "neoexport", "-q", site, file)
	c := StartCluster(t, Options{})
	c.migrate(t, site)
	refused(t, 1, locked, "neomigrate", "-q", "-c", c.Name, c.Masters, file)
	sameBytes(t, file, b[:list[3].end])
	// Reading is allowed.
	must(t, "neofs", "check", "-q", file)
	must(t, "neoexport", "-q", file, filepath.Join(t.TempDir(), "copy.fs"))
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	c.export(t, file)
	sameBytes(t, file, b)
}
