package clustertest

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
)

// packMark is the description of the transactions that carry pack orders.
const packMark = "IStorage.pack"

// Outcome is what a client knows of a transaction it tried to commit.
type Outcome int

const (
	Unknown   Outcome = iota // the client died or lost the answer for good
	Aborted                  // the client was told that it failed, or aborted it
	Committed                // the client was given its TID
)

// Write is one record of a transaction.
type Write struct {
	OID tid.OID
	// Base is the revision the new one was made from, Zero for a new object.
	Base tid.TID
	Data []byte // nil: deletion
}

// Check is an object that a transaction wanted unchanged.
type Check struct {
	OID    tid.OID
	Serial tid.TID
}

// Attempt is one transaction as its client saw it. Mark is unique: it is the
// transaction's description in the database.
type Attempt struct {
	Mark    string
	Outcome Outcome
	TID     tid.TID // if Committed
	Writes  []Write
	Checks  []Check
	// Undoes, when not Zero, is the transaction that this one undid: its writes
	// follow from the history.
	Undoes tid.TID
	// After is the greatest TID acknowledged to any client before this attempt
	// began: its own TID must be above.
	After tid.TID
}

// Read is one snapshot read: the last revision before Before.
type Read struct {
	OID    tid.OID
	Before tid.TID
	Serial tid.TID // Zero: the object did not exist
	Next   tid.TID // as reported; Zero: none known
	Data   []byte
	// Known is the last transaction that the reader knew of when it asked: a revision that
	// follows and is not later must be reported.
	Known tid.TID
}

// Stored is one transaction of the database after the run.
type Stored struct {
	TID     tid.TID
	Mark    string
	Records map[tid.OID][]byte
}

// Observed is all that a run saw.
type Observed struct {
	Attempts []Attempt
	Reads    []Read
	// PackedUpTo is the greatest pack time ordered: revisions that are not the
	// last one at or before it may be gone.
	PackedUpTo tid.TID
}

// Verify compares what clients saw with the history in the database. The model
// is ZODB's: transactions happen one after the other in the order of their TIDs,
// each from the revisions that its writes name as their base; a read at a moment
// gives the last revision before it. It returns every violation.
func Verify(o Observed, db []Stored) []error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	stored := map[string]*Stored{}
	revisions := map[tid.OID][]tid.TID{} // ascending
	for i := range db {
		s := &db[i]
		if i > 0 && s.TID <= db[i-1].TID {
			fail("transaction %v does not come after %v", s.TID, db[i-1].TID)
		}
		if stored[s.Mark] != nil && s.Mark != packMark {
			fail("transaction %q was committed twice, at %v and %v", s.Mark, stored[s.Mark].TID, s.TID)
		}
		stored[s.Mark] = s
		for oid := range s.Records {
			revisions[oid] = append(revisions[oid], s.TID)
		}
	}
	byTID := map[tid.TID]*Stored{}
	for i := range db {
		byTID[db[i].TID] = &db[i]
	}
	before := func(oid tid.OID, t tid.TID) (serial, next tid.TID) {
		r := revisions[oid]
		i, _ := slices.BinarySearch(r, t)
		if i > 0 {
			serial = r[i-1]
		}
		if i < len(r) {
			next = r[i]
		}
		return
	}

	// A pack deletes an object that no longer existed at its time without a
	// trace: such objects may lack any record.
	removed := map[tid.OID]bool{}
	undone := map[tid.TID]bool{}
	for _, a := range o.Attempts {
		if a.Outcome != Aborted {
			undone[a.Undoes] = true
		}
	}
	for _, a := range o.Attempts {
		for _, w := range a.Writes {
			if w.Data == nil || w.Base == 0 && undone[a.TID] {
				removed[w.OID] = true
			}
		}
	}

	for _, s := range db {
		for oid, data := range s.Records {
			if data == nil && !removed[oid] && len(revisions[oid]) > 1 {
				fail("transaction %v (%q) deleted %v, which nobody wanted", s.TID, s.Mark, oid)
			}
		}
	}

	attempts := map[string]bool{}
	for _, a := range o.Attempts {
		attempts[a.Mark] = true
		s := stored[a.Mark]
		switch {
		case a.Outcome == Committed && s == nil:
			fail("acknowledged transaction %q (%v) is missing", a.Mark, a.TID)
			continue
		case a.Outcome == Committed && s.TID != a.TID:
			fail("transaction %q was acknowledged as %v and is stored as %v", a.Mark, a.TID, s.TID)
		case a.Outcome == Aborted && s != nil:
			fail("aborted transaction %q is visible at %v", a.Mark, s.TID)
			continue
		}
		if s == nil {
			continue
		}
		if s.TID <= a.After {
			fail("transaction %q got %v, although %v was acknowledged before it began", a.Mark, s.TID, a.After)
		}
		if a.Undoes != 0 {
			verifyUndo(a, s, byTID[a.Undoes], o.PackedUpTo, byTID, before, fail)
		}
		for _, w := range a.Writes {
			data, ok := s.Records[w.OID]
			if !ok {
				// It may be packed if there is a later one at the pack time.
				next := firstAfter(revisions[w.OID], s.TID)
				if s.TID > o.PackedUpTo || (next == 0 || next > o.PackedUpTo) && !removed[w.OID] {
					fail("transaction %q (%v) lost its record of %v", a.Mark, s.TID, w.OID)
				}
				continue
			}
			if !bytes.Equal(data, w.Data) || (data == nil) != (w.Data == nil) {
				fail("transaction %q (%v) holds %q for %v, want %q", a.Mark, s.TID, data, w.OID, w.Data)
			}
			prev, _ := before(w.OID, s.TID)
			if prev != w.Base && w.Base > o.PackedUpTo {
				fail("lost update: transaction %q (%v) wrote %v from %v, but the last revision was %v", a.Mark, s.TID, w.OID, w.Base, prev)
			}
		}
		for oid := range s.Records {
			if a.Undoes == 0 && !slices.ContainsFunc(a.Writes, func(w Write) bool { return w.OID == oid }) {
				fail("transaction %q (%v) holds %v, which it never wrote", a.Mark, s.TID, oid)
			}
		}
		for _, c := range a.Checks {
			if prev, _ := before(c.OID, s.TID); prev != c.Serial && c.Serial > o.PackedUpTo {
				fail("transaction %q (%v) needed %v unchanged since %v, but it was changed at %v", a.Mark, s.TID, c.OID, c.Serial, prev)
			}
		}
	}
	for _, s := range db {
		if !attempts[s.Mark] && s.Mark != packMark {
			fail("transaction %v (%q) was never attempted", s.TID, s.Mark)
		}
	}
	for _, r := range o.Reads {
		serial, next := before(r.OID, r.Before)
		if serial != r.Serial {
			// What a pack removed may have been read before it ran, and one replica may have
			// removed a deletion that another one has kept.
			gone := r.Serial == 0 && serial != 0 && byTID[serial].Records[r.OID] == nil
			if !(r.Serial <= o.PackedUpTo && serial <= o.PackedUpTo && (byTID[r.Serial] != nil || gone)) {
				fail("read of %v before %v gave %v, want %v", r.OID, r.Before, r.Serial, serial)
			}
			continue
		}
		if r.Next != 0 && r.Next != next && r.Next > o.PackedUpTo {
			fail("read of %v before %v gave next revision %v, want %v", r.OID, r.Before, r.Next, next)
		}
		if serial != 0 && r.Next == 0 && next != 0 && next <= r.Known && !removed[r.OID] {
			fail("read of %v before %v gave the last revision, although %v was known to follow", r.OID, r.Before, next)
		}
		if serial != 0 && !bytes.Equal(byTID[serial].Records[r.OID], r.Data) {
			fail("read of %v before %v gave %q, want %q", r.OID, r.Before, r.Data, byTID[serial].Records[r.OID])
		}
	}
	return errs
}

// verifyUndo checks that an undo gave each object the state before the undone
// transaction, and that nobody had changed it since to something else.
func verifyUndo(a Attempt, s, undone *Stored, packed tid.TID, byTID map[tid.TID]*Stored,
	before func(tid.OID, tid.TID) (serial, next tid.TID), fail func(string, ...any)) {
	if undone == nil {
		fail("transaction %q (%v) undid %v, which does not exist", a.Mark, s.TID, a.Undoes)
		return
	}
	if a.Undoes <= packed {
		return // what it needed to know may be gone
	}
	for oid, data := range undone.Records {
		got, ok := s.Records[oid]
		if !ok {
			if s.TID > packed {
				fail("transaction %q (%v) undid %v without %v", a.Mark, s.TID, a.Undoes, oid)
			}
			continue
		}
		var want []byte
		earlier, _ := before(oid, a.Undoes)
		if earlier != 0 {
			want = byTID[earlier].Records[oid]
		} else if packed > 0 {
			continue // the state before may have been packed since
		}
		if !bytes.Equal(got, want) || (got == nil) != (want == nil) {
			fail("transaction %q (%v) undid %v but gave %v %q, want %q", a.Mark, s.TID, a.Undoes, oid, got, want)
		}
		if last, _ := before(oid, s.TID); last > packed && !bytes.Equal(byTID[last].Records[oid], data) {
			fail("transaction %q (%v) undid %v over a later change of %v at %v", a.Mark, s.TID, a.Undoes, oid, last)
		}
	}
}

func firstAfter(sorted []tid.TID, t tid.TID) tid.TID {
	i, found := slices.BinarySearchFunc(sorted, t, cmp.Compare[tid.TID])
	if found {
		i++
	}
	if i < len(sorted) {
		return sorted[i]
	}
	return 0
}
