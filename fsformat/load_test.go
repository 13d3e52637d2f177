package fsformat

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

// Loading before every transaction must agree with what iteration shows.
func TestLoadBeforeAgreesWithIteration(t *testing.T) {
	for _, name := range sampleNames {
		if name == "05-packed" { // a pack hides a revision that iteration shows
			continue
		}
		t.Run(name, func(t *testing.T) {
			r := openSample(t, name)
			if _, err := r.UseIndex(t.Context(), "", nil); err != nil {
				t.Fatal(err)
			}
			type revision struct {
				at     tid.TID
				data   []byte
				exists bool
			}
			history := map[tid.OID][]revision{}
			var tids []tid.TID
			for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
				if err != nil {
					t.Fatal(err)
				}
				tids = append(tids, tr.TID)
				for rec, err := range tr.Records {
					if err != nil {
						t.Fatal(err)
					}
					revs := history[rec.OID]
					if n := len(revs); n > 0 && revs[n-1].at == tr.TID {
						revs = revs[:n-1] // twice in a transaction: the last counts
					}
					history[rec.OID] = append(revs, revision{tr.TID, append([]byte(nil), rec.Data...), rec.Data != nil})
				}
			}
			for oid, revs := range history {
				for _, before := range append(tids, tid.Max, 1) {
					for _, before := range []tid.TID{before, before + 1} {
						var want *revision
						end := tid.TID(0)
						for i := range revs {
							if revs[i].at < before {
								want = &revs[i]
							} else if end == 0 {
								end = revs[i].at
							}
						}
						rev, err := r.LoadBefore(t.Context(), oid, before)
						data, at, gotEnd := rev.Data, rev.Serial, rev.Next
						if want == nil || !want.exists {
							kind := txn.ErrNoSuchObject
							if want == nil {
								kind = txn.ErrNotFound
							}
							if !errors.Is(err, kind) {
								t.Errorf("object %v before %v: %v, want %v", oid, before, err, kind)
							}
							continue
						}
						if err != nil || string(data) != string(want.data) || at != want.at || gotEnd != end {
							t.Errorf("object %v before %v: %q of %v until %v, %v; want %q of %v until %v", oid, before, data, at, gotEnd, err, want.data, want.at, end)
						}
					}
				}
			}
			if _, err := r.LoadBefore(t.Context(), 0x123456, tid.Max); !errors.Is(err, txn.ErrNoSuchObject) {
				t.Errorf("loading what never was: %v", err)
			}
		})
	}
}

// The chain of revisions and the present state of every object are those that an
// independent parser found.
func TestHistories(t *testing.T) {
	for _, name := range sampleNames {
		var s struct {
			Objects map[string]struct {
				Pos     int64 `json:"index_pos"`
				Current *struct {
					TID, Sha1 string
				}
				Revisions []struct {
					TID string
				} `json:"revisions_newest_first"`
			}
		}
		b := readFile(t, samples+name+".fs.json")
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(name, err)
		}
		r := openSample(t, name)
		if _, err := r.UseIndex(t.Context(), "", nil); err != nil {
			t.Fatal(err)
		}
		if len(s.Objects) == 0 {
			t.Errorf("%s: no objects", name)
		}
		for id, want := range s.Objects {
			oid, err := tid.ParseOID(id)
			if err != nil {
				t.Fatal(err)
			}
			revs, err := chainOf(t, r, oid)
			if err != nil {
				t.Errorf("%s: object %s: %v", name, id, err)
				continue
			}
			var chain, wantChain []string
			for _, rev := range revs {
				chain = append(chain, rev.TID.String())
			}
			for _, rev := range want.Revisions {
				wantChain = append(wantChain, rev.TID)
			}
			if diff := cmp.Diff(wantChain, chain); diff != "" || revs[0].Pos != want.Pos {
				t.Errorf("%s: object %s: revisions (-want +got):\n%s", name, id, diff)
			}
			rev, err := r.LoadBefore(t.Context(), oid, tid.Max)
			data, at := rev.Data, rev.Serial
			if want.Current == nil {
				if !errors.Is(err, txn.ErrNoSuchObject) {
					t.Errorf("%s: object %s: %v, want %v", name, id, err, txn.ErrNoSuchObject)
				}
				continue
			}
			sum := sha1.Sum(data)
			if err != nil || at.String() != want.Current.TID || hex.EncodeToString(sum[:]) != want.Current.Sha1 {
				t.Errorf("%s: object %s: %x of %v, %v, want %+v", name, id, sum, at, err, want.Current)
			}
		}
	}
}

// chainOf returns the heads of all records of an object, newest first.
func chainOf(t *testing.T, r *Reader, oid tid.OID) (list []RecordHeader, err error) {
	for rec, err := range r.Chain(t.Context(), oid) {
		if err != nil {
			return nil, err
		}
		list = append(list, *rec)
	}
	return list, nil
}

// A file with a given history keeps all promises of a readable database.
func TestDatabase(t *testing.T) {
	txntest.Run(t, func(t *testing.T, history txn.History) txn.Database {
		path := filepath.Join(t.TempDir(), "Data.fs")
		w, err := Create(path, WriterOptions{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		for tr, err := range history.Transactions(t.Context(), tid.Zero, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Append(tr); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		if _, err := r.UseIndex(t.Context(), path+".index", nil); err != nil {
			t.Fatal(err)
		}
		return r
	})
}

// Without an index, what needs it says so.
func TestObjectsWithoutIndex(t *testing.T) {
	r := openSample(t, "05-packed")
	_, err := r.LoadBefore(t.Context(), 0, tid.Max)
	_, err2 := r.Revisions(t.Context(), 0, 1)
	var err3 error
	for _, err3 = range r.OIDs(t.Context(), tid.Max, 0) {
	}
	for _, err := range []error{err, err2, err3} {
		if err == nil || !strings.Contains(err.Error(), "call UseIndex first") {
			t.Errorf("without an index: %v", err)
		}
	}
}
