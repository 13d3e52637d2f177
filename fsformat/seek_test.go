package fsformat

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

// writeRandom makes a Data.fs with an index of a random history.
func writeRandom(t *testing.T, n int) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "Data.fs")
	w, err := Create(path, WriterOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for tr, err := range txntest.Random(7, n, 500).Transactions(t.Context(), tid.Zero, tid.Max) {
		if err == nil {
			err = w.Append(tr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// With an index each transaction is found where it is without, and little is read.
func TestPosition(t *testing.T) {
	path := writeRandom(t, 3000)
	plain, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	indexed, read := openCounting(t, path)
	if p, err := indexed.Position(t.Context(), tid.Max); p != plain.Size() || err != nil {
		t.Errorf("behind the last transaction: %d, %v, want %d", p, err, plain.Size())
	}
	if p, err := indexed.Position(t.Context(), 0); p != magicLen || err != nil {
		t.Errorf("before the first transaction: %d, %v", p, err)
	}
	for tr, err := range plain.Scan(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		read.n = 0
		for d := range tid.TID(2) {
			want := tr.Head.Pos + int64(d)*(tr.Head.End()-tr.Head.Pos)
			if p, err := indexed.Position(t.Context(), tr.TID+d); p != want || err != nil {
				t.Fatalf("Position(%v) = %d, %v, want %d", tr.TID+d, p, err, want)
			}
		}
		{ // what is between the places known by the index is read once
			read.n = 0
			if _, err := indexed.Position(t.Context(), tr.TID); read.n > plain.Size()/20 || err != nil {
				t.Fatalf("%d of %d bytes were read to find transaction %v, %v", read.n, plain.Size(), tr.TID, err)
			}
		}
		pos, last, err := indexed.seek(t.Context(), tr.TID)
		if pos != tr.Head.End() || last != tr.TID || err != nil {
			t.Fatalf("seek(%v) = %d after %v, %v", tr.TID, pos, last, err)
		}
	}
}

// openCounting opens a file with an index, and counts what is read of it.
func openCounting(t *testing.T, path string) (*Reader, *countingReader) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	read := &countingReader{File: f}
	r, err := NewReader(read, fi.Size(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if unusable, err := r.UseIndex(t.Context(), "", nil); unusable != nil || err != nil {
		t.Fatal(unusable, err)
	}
	return r, read
}

type countingReader struct {
	*os.File
	n int64
}

func (c *countingReader) ReadAt(b []byte, off int64) (int, error) {
	c.n += int64(len(b))
	return c.File.ReadAt(b, off)
}

// With an index, an end that is incomplete is found without reading all heads, and is
// the same as without.
func TestTailOfIndex(t *testing.T) {
	path := writeRandom(t, 2000)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(b, b[magicLen:magicLen+100]...), 0o666); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := int64(len(b)) + 100
	plain, err := NewReader(f, size, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want, err := plain.Tail(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, read := openCounting(t, path)
	got, err := r.Tail(t.Context())
	if got != want || err != nil || got.Ignored != 100 {
		t.Errorf("tail %+v, %v, want %+v", got, err, want)
	}
	if read.n > size/4 {
		t.Errorf("%d of %d bytes were read", read.n, size)
	}
}
