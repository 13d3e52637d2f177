package proctest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/fsformat"
)

// samples is where the Data.fs of the project are.
const samples = "../../../testdata/fs"

// must runs a program that has to succeed, and returns what it printed.
func must(t testing.TB, program string, args ...string) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, status := Run(t, program, args...)
	if status != 0 {
		t.Fatalf("%s %s: exit status %d\n%s%s", program, strings.Join(args, " "), status, stdout, stderr)
	}
	return stdout, stderr
}

// refused runs a program that has to fail with a status, and with a message on
// stderr that matches all patterns.
func refused(t testing.TB, status int, patterns []string, program string, args ...string) {
	t.Helper()
	stdout, stderr, got := Run(t, program, args...)
	if got != status {
		t.Errorf("%s %s: exit status %d, want %d\n%s%s", program, strings.Join(args, " "), got, status, stdout, stderr)
	}
	says(t, program, stderr, patterns...)
}

// says checks that a text matches all patterns, and is no trace of a crash.
func says(t testing.TB, who, text string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(text) {
			t.Errorf("%s said\n%s\nwhich does not match %q", who, tail(text, 4000), p)
		}
	}
	if strings.Contains(text, "goroutine ") {
		t.Errorf("%s crashed:\n%s", who, tail(text, 4000))
	}
}

// migrate runs neomigrate into the cluster.
func (c *Cluster) migrate(t testing.TB, file string) {
	t.Helper()
	must(t, "neomigrate", "-q", "-c", c.Name, file, c.Masters)
}

// export runs neoexport from the cluster, with more options.
func (c *Cluster) export(t testing.TB, file string, options ...string) {
	t.Helper()
	must(t, "neoexport", append([]string{"-q", "-c", c.Name, c.Masters, file}, options...)...)
}

// read returns the content of a small file.
func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// write makes a file in a new directory and returns its path.
func write(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// sameBytes compares a file with what it has to be.
func sameBytes(t testing.TB, path string, want []byte) {
	t.Helper()
	if got := read(t, path); !bytes.Equal(got, want) {
		at := 0
		for at < min(len(got), len(want)) && got[at] == want[at] {
			at++
		}
		t.Errorf("%s has %d bytes, want %d; the first difference is at %d", path, len(got), len(want), at)
	}
}

// sameFiles compares files of any size.
func sameFiles(t testing.TB, a, b string) {
	t.Helper()
	fa, err := os.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer fb.Close()
	var bufs [2][1 << 16]byte
	for at := 0; ; at += len(bufs[0]) {
		n, errA := io.ReadFull(fa, bufs[0][:])
		m, errB := io.ReadFull(fb, bufs[1][:])
		if !bytes.Equal(bufs[0][:n], bufs[1][:m]) {
			t.Errorf("%s and %s differ between %d and %d", a, b, at, at+max(n, m))
			return
		}
		if errA != nil || errB != nil {
			for _, err := range []error{errA, errB} {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatal(err)
				}
			}
			return
		}
	}
}

// place is where a transaction of a Data.fs is.
type place struct {
	tid      tid.TID
	pos, end int64
}

// places returns the transactions of a small Data.fs.
func places(t testing.TB, path string) []place {
	t.Helper()
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var list []place
	for x, err := range r.Scan(context.Background(), tid.Zero, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, place{x.TID, x.Head.Pos, x.Head.End()})
	}
	return list
}

// twice returns the first of two records of one object in one transaction, as
// [from, to).
func twice(t testing.TB, path string) (from, to int) {
	t.Helper()
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for x, err := range r.Scan(context.Background(), tid.Zero, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		seen := map[tid.OID]fsformat.RecordHeader{}
		for rec, err := range x.Places {
			if err != nil {
				t.Fatal(err)
			}
			if old, ok := seen[rec.OID]; ok {
				return int(old.Pos), int(old.End())
			}
			seen[rec.OID] = *rec
		}
	}
	t.Fatalf("%s: no object is twice in a transaction", path)
	return 0, 0
}
