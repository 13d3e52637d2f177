package side

import (
	"bytes"
	"io"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

func TestRemaining(t *testing.T) {
	r, err := fsformat.Open("../../../testdata/fs/site.fs", fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	after := tid.Zero
	for tr, err := range r.Scan(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		if n, err := Remaining(t.Context(), r, after); n != r.Size()-tr.Head.Pos || err != nil {
			t.Errorf("after %v: %d bytes, %v, want %d", after, n, err, r.Size()-tr.Head.Pos)
		}
		after = tr.TID
	}
	if n, err := Remaining(t.Context(), r, after); n != 0 || err != nil {
		t.Errorf("after all: %d bytes, %v", n, err)
	}
}

// The records of blobs of a copy that was interrupted are counted once each, also those that were read before.
func TestBlobsAreCountedOnce(t *testing.T) {
	var said bytes.Buffer
	env := &cli.Env{Stdout: io.Discard, Stderr: &said}
	f, err := new(Options).OpenFile(t.Context(), env, "../../../testdata/fs/07-btrees-refs.fs", false, true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// read reads up to most records behind a transaction. It returns how many, and the transaction in which it stopped.
	read := func(after tid.TID, most int) (n int, at tid.TID) {
		t.Helper()
		for x, err := range f.Transactions(t.Context(), after, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			for _, err := range x.Records {
				if err != nil {
					t.Fatal(err)
				}
				if n++; n == most {
					return n, x.TID
				}
			}
		}
		return n, tid.Max
	}
	f.CountBlobs(tid.Zero)
	records, _ := read(tid.Zero, 0)
	want := f.blobs
	if want == 0 {
		t.Fatal("the sample has no blobs")
	}
	for n := 1; n < records; n++ {
		for _, anew := range []bool{false, true} {
			f.CountBlobs(tid.Zero)
			_, at := read(tid.Zero, n)
			if anew {
				at = 1
			}
			read(at-1, 0)
			if f.blobs != want {
				t.Errorf("interrupted after %d of %d records (from the beginning: %v): %d blobs, want %d", n, records, anew, f.blobs, want)
			}
		}
	}
}
