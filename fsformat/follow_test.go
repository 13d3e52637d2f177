package fsformat

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
)

// A file is followed while a writer appends to it, until it is replaced.
func TestFollow(t *testing.T) {
	source := openSample(t, "02-undo")
	whole := readFile(t, samples+"02-undo.fs")
	path := filepath.Join(t.TempDir(), "Data.fs")
	writeFile(t, path, nil)
	r, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.UseIndex(t.Context(), "", nil); err != nil {
		t.Fatal(err)
	}
	seen := tid.TID(0)
	for tr, err := range source.Scan(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		// The writer is in the middle of the next transaction.
		writeFile(t, path, whole[:min(int(tr.Head.End())+30, len(whole))])
		next, err := r.Follow(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		r = next
		var got []tid.TID
		for tr, err := range r.Transactions(t.Context(), seen, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, tr.TID)
		}
		if diff := cmp.Diff([]tid.TID{tr.TID}, got); diff != "" {
			t.Errorf("new transactions (-want +got):\n%s", diff)
		}
		seen = tr.TID
		built, err := r.BuildIndex(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(indexMap(built), indexMap(r.Index())); diff != "" {
			t.Errorf("index (-built +followed):\n%s", diff)
		}
	}
	defer r.Close()
	for _, other := range []string{"01-basic", "09-voted-tail", "10-legacy-fs21"} {
		writeFile(t, path, readFile(t, samples+other+".fs"))
		// r has the file open that was overwritten; a pack renames instead.
		was, err := NewReader(source.r, source.size, path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := was.Follow(t.Context()); !errors.Is(err, ErrReplaced) {
			t.Errorf("replaced by %s: %v, want ErrReplaced", other, err)
		}
	}
}
