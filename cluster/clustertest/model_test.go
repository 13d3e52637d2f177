package clustertest

import (
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
)

// Each case breaks one promise in an otherwise good history: a checker that
// accepts it is worth nothing.
func TestVerifyFindsEachViolation(t *testing.T) {
	good := func() (Observed, []Stored) {
		return Observed{
				Attempts: []Attempt{
					{Mark: "a", Outcome: Committed, TID: 10, Writes: []Write{{OID: 1, Data: []byte("a")}, {OID: 2, Data: []byte("b")}}},
					{Mark: "b", Outcome: Committed, TID: 20, After: 10, Writes: []Write{{OID: 1, Base: 10, Data: []byte("c")}}, Checks: []Check{{2, 10}}},
					{Mark: "c", Outcome: Aborted, Writes: []Write{{OID: 2, Base: 10, Data: []byte("x")}}},
					{Mark: "d", Outcome: Unknown, Writes: []Write{{OID: 2, Base: 10, Data: []byte("d")}}},
				},
				Reads: []Read{
					{OID: 1, Before: 20, Serial: 10, Next: 20, Data: []byte("a"), Known: 20},
					{OID: 1, Before: 21, Serial: 20, Data: []byte("c")},
					{OID: 3, Before: 21},
				},
			}, []Stored{
				{TID: 10, Mark: "a", Records: map[tid.OID][]byte{1: []byte("a"), 2: []byte("b")}},
				{TID: 20, Mark: "b", Records: map[tid.OID][]byte{1: []byte("c")}},
				{TID: 30, Mark: "d", Records: map[tid.OID][]byte{2: []byte("d")}},
			}
	}
	if o, db := good(); len(Verify(o, db)) > 0 {
		t.Fatalf("a good history is refused: %v", Verify(o, db))
	}
	for want, spoil := range map[string]func(*Observed, *[]Stored){
		"is missing":              func(o *Observed, db *[]Stored) { *db = (*db)[1:] },
		"is stored as":            func(o *Observed, db *[]Stored) { o.Attempts[0].TID = 11 },
		"is visible":              func(o *Observed, db *[]Stored) { o.Attempts[3].Outcome = Aborted },
		"lost its record":         func(o *Observed, db *[]Stored) { delete((*db)[0].Records, 2) },
		"lost update":             func(o *Observed, db *[]Stored) { o.Attempts[1].Writes[0].Base = 5 },
		"needed 0000000000000002": func(o *Observed, db *[]Stored) { o.Attempts[1].Checks[0].Serial = 5 },
		"nobody wanted":           func(o *Observed, db *[]Stored) { (*db)[1].Records[1] = nil },
		"never wrote":             func(o *Observed, db *[]Stored) { (*db)[1].Records[9] = nil },
		"never attempted":         func(o *Observed, db *[]Stored) { o.Attempts = o.Attempts[:3] },
		"committed twice":         func(o *Observed, db *[]Stored) { *db = append(*db, Stored{TID: 40, Mark: "a"}) },
		"does not come after":     func(o *Observed, db *[]Stored) { (*db)[1].TID = 10 },
		"although":                func(o *Observed, db *[]Stored) { o.Attempts[1].After = 20 },
		"holds \"q\"":             func(o *Observed, db *[]Stored) { (*db)[1].Records[1] = []byte("q") },
		"gave 0000000000000005":   func(o *Observed, db *[]Stored) { o.Reads[0].Serial = 5 },
		"next revision":           func(o *Observed, db *[]Stored) { o.Reads[0].Next = 30 },
		"was known to follow":     func(o *Observed, db *[]Stored) { o.Reads[0].Next = 0 },
		"gave \"z\"":              func(o *Observed, db *[]Stored) { o.Reads[1].Data = []byte("z") },
		"want 0000000000000000":   func(o *Observed, db *[]Stored) { o.Reads[2].Serial = 20 },
	} {
		o, db := good()
		spoil(&o, &db)
		found := false
		for _, err := range Verify(o, db) {
			found = found || strings.Contains(err.Error(), want)
		}
		if !found {
			t.Errorf("no violation with %q among %v", want, Verify(o, db))
		}
	}
}

// A replica may have packed a deletion that another one keeps for a third: what it has not
// is read like what is deleted. Anything else must be found.
func TestVerifyKeptDeletion(t *testing.T) {
	history := func(deletion []byte, packed tid.TID) []error {
		return Verify(Observed{
			PackedUpTo: packed,
			Attempts: []Attempt{
				{Mark: "a", Outcome: Committed, TID: 10, Writes: []Write{{OID: 1, Data: []byte("a")}}},
				{Mark: "b", Outcome: Committed, TID: 20, After: 10, Writes: []Write{{OID: 1, Base: 10, Data: deletion}}},
			},
			Reads: []Read{{OID: 1, Before: 21}},
		}, []Stored{
			{TID: 10, Mark: "a", Records: map[tid.OID][]byte{}},
			{TID: 20, Mark: "b", Records: map[tid.OID][]byte{1: deletion}},
		})
	}
	if errs := history(nil, 20); len(errs) > 0 {
		t.Errorf("a deletion that one replica has packed: %v", errs)
	}
	if errs := history(nil, 15); len(errs) == 0 {
		t.Error("a deletion that was not packed is not missed")
	}
	if errs := history([]byte("b"), 20); len(errs) == 0 {
		t.Error("an object that exists is not missed")
	}
}
