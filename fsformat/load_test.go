package fsformat

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
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
						data, at, gotEnd, err := r.LoadBefore(oid, before)
						if want == nil || !want.exists {
							if !errors.Is(err, ErrNotFound) {
								t.Errorf("object %v before %v: %v, want ErrNotFound", oid, before, err)
							}
							continue
						}
						if err != nil || string(data) != string(want.data) || at != want.at || gotEnd != end {
							t.Errorf("object %v before %v: %q of %v until %v, %v; want %q of %v until %v", oid, before, data, at, gotEnd, err, want.data, want.at, end)
						}
					}
				}
			}
			if _, _, err := r.Load(0x123456); !errors.Is(err, ErrNotFound) {
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
			revs, err := r.History(t.Context(), oid, 0)
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
			data, at, err := r.Load(oid)
			if want.Current == nil {
				if !errors.Is(err, ErrNotFound) {
					t.Errorf("%s: object %s: %v, want ErrNotFound", name, id, err)
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

func TestUndoLogEndsAtThePack(t *testing.T) {
	r := openSample(t, "05-packed")
	log, err := r.UndoLog(t.Context(), 1, 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range log {
		got = append(got, fmt.Sprintf("%v %d %s", u.TID, u.Size, u.Description))
	}
	if len(got) != 3 { // of nine transactions five are packed, and one is skipped
		t.Errorf("undo log %q, want 3 entries", got)
	}
}
