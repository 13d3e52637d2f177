package side

import (
	"testing"

	"github.com/neozodb/neo/cluster/tid"
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
