package plan

import (
	"context"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/pickle"
)

// everywhere is a database in which all objects have the same record.
type everywhere struct {
	txn.Database
	data []byte
}

func (e everywhere) LoadBefore(context.Context, tid.OID, tid.TID) (txn.Revision, error) {
	return txn.Revision{Data: e.data}, nil
}

// A search ends in objects that contain themselves, in every way that there is.
func TestWalkInCircles(t *testing.T) {
	next := pickle.PersID{ID: []byte("\x00\x00\x00\x00\x00\x00\x00\x01")}
	state := &pickle.Dict{Items: []pickle.Item{{Key: "here", Value: next}}}
	for _, key := range contents {
		state.Items = append(state.Items, pickle.Item{Key: key, Value: next})
	}
	data, err := pickle.Append(nil, 3, pickle.Global{Module: "OFS.Folder", Name: "Folder"})
	if err != nil {
		t.Fatal(err)
	}
	if data, err = pickle.Append(data, 3, state); err != nil {
		t.Fatal(err)
	}
	w := walker{ctx: t.Context(), db: everywhere{data: data}}
	if oid, err := w.walk("here", "/here/here"); oid != 1 || err != nil {
		t.Errorf("%v, %v", oid, err)
	}
	if oid, err := w.walk("here", "/there"); err == nil {
		t.Errorf("found at %v", oid)
	}
}

func FuzzWalk(f *testing.F) {
	for _, name := range []string{"07-btrees-refs.fs", "10-legacy-fs21.fs", "site.fs"} {
		r, err := fsformat.Open("../../testdata/fs/"+name, fsformat.Options{})
		if err != nil {
			f.Fatal(err)
		}
		n := 0
		for t, err := range r.Transactions(f.Context(), 0, tid.Max) {
			if err != nil {
				f.Fatal(err)
			}
			for rec, err := range t.Records {
				if err != nil {
					f.Fatal(err)
				}
				if n++; len(rec.Data) > 0 && n < 200 {
					f.Add(append([]byte{}, rec.Data...))
				}
			}
		}
		if err := r.Close(); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		w := walker{ctx: t.Context(), db: everywhere{data: data}}
		// Whatever it finds: it ends, and does not panic.
		_, _ = w.walk(applicationRoot, "/a/b")
		_, _ = w.walk("", "/key1")
		e := examiner{s: &Source{}}
		if mountClass(data) != "" {
			e.mount(1, ramMount, data)
		}
	})
}
