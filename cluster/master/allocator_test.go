package master

import (
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Whatever the clock does, ids grow, and a TID is of the partition of its TTID.
func TestIDsNeverGoBack(t *testing.T) {
	for _, np := range []int{1, 2, 7, 12, 100, 5000} {
		a := allocator{}
		a.reset()
		now := time.Date(2026, 2, 28, 23, 59, 59, 999_999_000, time.UTC) // the next minute is in March
		var last tid.TID
		var ttids []tid.TID
		for i, step := range []time.Duration{0, 0, time.Microsecond, -time.Hour, -time.Hour, 0, 24 * time.Hour, -48 * time.Hour, 0, 3 * time.Second} {
			now = now.Add(step)
			ttid := a.next(now, 0)
			if ttid <= last {
				t.Errorf("np %d, step %d: ttid %v after %v", np, i, ttid, last)
			}
			last = ttid
			ttids = append(ttids, ttid)
			if i%3 != 2 {
				continue
			}
			for _, ttid := range ttids {
				got := a.final(now, 0, ttid, np)
				if got < last || got == last && got != ttid {
					t.Errorf("np %d, step %d: tid %v after %v", np, i, got, last)
				}
				if got.Partition(np) != ttid.Partition(np) {
					t.Errorf("np %d: tid %v is not of the partition of ttid %v", np, got, ttid)
				}
				if got < ttid {
					t.Errorf("np %d: tid %v is below its ttid %v", np, got, ttid)
				}
				last = got
			}
			ttids = nil
		}
		if ahead := last.Time().Sub(now); ahead > 49*time.Hour {
			t.Errorf("np %d: ids are %v ahead of the clock", np, ahead)
		}
	}
}

// The last id of a month is followed by one in the next month, congruent all the same.
func TestFinalIDAtTheEndOfAMonth(t *testing.T) {
	const end = tid.TID(0x03eead5f_ffffffff) // 2023-02-28 23:59, last fraction
	for np := 1; np < 200; np++ {
		a := allocator{given: end}
		ttid := end - tid.TID(np/2)
		got := a.final(time.Time{}, 0, ttid, np)
		if got.Partition(np) != ttid.Partition(np) || got < end || got == end && ttid != end {
			t.Fatalf("np %d: %v for ttid %v", np, got, ttid)
		}
		if at := got.Time(); got != end && at.Month() != time.March {
			t.Errorf("np %d: %v is in %v", np, got, at)
		}
	}
}

// A new master whose clock is behind the database goes on above what is stored.
func TestIDsFollowTheDatabase(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	last := tid.FromTime(now.Add(24 * time.Hour))
	for _, np := range []int{1, 7, 12} {
		fresh := func() *allocator {
			a := new(allocator)
			a.reset()
			a.saw(&proto.AnswerLastIDs{LastTID: proto.Some(last), FirstTID: 1})
			return a
		}
		check := func(what string, a *allocator, ttid, above tid.TID) {
			t.Helper()
			got := a.final(now, 0, ttid, np)
			if got <= above {
				t.Errorf("np %d, %s: tid %v is not above %v", np, what, got, above)
			}
			if got.Partition(np) != ttid.Partition(np) {
				t.Errorf("np %d, %s: tid %v is not of the partition of ttid %v", np, what, got, ttid)
			}
		}
		a := fresh()
		ttid := a.next(now, 0)
		if ttid <= last {
			t.Errorf("np %d: ttid %v is not above the last committed %v", np, ttid, last)
		}
		other := a.next(now, 0)
		check("after another begin", a, ttid, max(other, last))
		for n := range np { // a TTID of any partition, and below the database
			check("old ttid", fresh(), tid.FromTime(now)+tid.TID(n), last)
		}
	}
}

func TestIDsAfterARecovery(t *testing.T) {
	a := allocator{}
	a.reset()
	ttid := a.next(time.Now(), 0)
	a.reset()
	a.saw(&proto.AnswerLastIDs{LastTID: proto.Some(tid.TID(50)), LastOID: proto.Some(tid.OID(7)), FirstTID: 40})
	a.saw(&proto.AnswerLastIDs{LastTID: proto.Some(tid.Invalid), LastOID: proto.Some(tid.InvalidOID), FirstTID: 45})
	if a.committed != 50 || a.oid != 7 || a.first != 40 {
		t.Errorf("last ids are %+v", a)
	}
	if again := a.next(time.Time{}, 0); again <= ttid {
		t.Errorf("%v was given again as %v", ttid, again)
	}
}

// What was given before a recovery may still be stored, though no storage knows it.
func TestNoObjectIDIsGivenTwice(t *testing.T) {
	a := allocator{}
	a.reset()
	oids, err := a.newOIDs(100)
	if err != nil {
		t.Fatal(err)
	}
	a.reset()
	a.saw(&proto.AnswerLastIDs{LastOID: proto.Some(tid.OID(7))})
	if a.oid != 7 { // what is told to operators
		t.Errorf("the last id is %v, want that of the storages", a.oid)
	}
	again, err := a.newOIDs(1)
	if err != nil {
		t.Fatal(err)
	}
	if last := oids[len(oids)-1]; again[0] <= last {
		t.Errorf("%v was given after %v", again[0], last)
	}
}

func TestNewOIDs(t *testing.T) {
	a := allocator{oid: tid.MaxOID - 3}
	for _, n := range []int{-1, 0, 4, maxOIDsAsked + 1} {
		if oids, err := a.newOIDs(n); err == nil {
			t.Errorf("%d ids asked: got %v", n, oids)
		}
	}
	if oids, err := a.newOIDs(3); err != nil || oids[2] != tid.MaxOID {
		t.Errorf("got %v, %v", oids, err)
	}
}

// A master that follows another one gives none of the ids that the clients of that
// one may have kept, nor the ones that a third would give; an empty database begins
// at 1, and nothing is left out twice.
func TestObjectIDsOfAnotherMaster(t *testing.T) {
	now := time.Now()
	one := func(a *allocator) tid.OID {
		t.Helper()
		oids, err := a.newOIDs(1)
		if err != nil {
			t.Fatal(err)
		}
		return oids[0]
	}
	recovered := func(a *allocator, last tid.OID) {
		a.reset()
		a.saw(&proto.AnswerLastIDs{LastOID: proto.Some(last), FirstTID: 1})
	}
	begun := func(last tid.OID) *allocator {
		a := &allocator{}
		now = now.Add(time.Second)
		a.term(now)
		recovered(a, last)
		return a
	}
	if got := one(begun(0)); got != 1 {
		t.Errorf("the first object of an empty database is %v", got)
	}
	a := begun(44)
	first := one(a)
	if first <= 44+reserved {
		t.Errorf("%v is given after 44, which a client of the other master may have kept", first)
	}
	recovered(a, 50)
	if got := one(a); got != first+1 {
		t.Errorf("%v is given after %v, want the next one", got, first)
	}
	seen := map[tid.OID]bool{first: true}
	for range 50 { // nothing that was given is ever stored
		got := one(begun(44))
		if seen[got] || seen[got-1] || seen[got+1] {
			t.Fatalf("%v is given again by another master", got)
		}
		seen[got] = true
	}
	now = now.Add(time.Second)
	a.term(now) // again, after another one was primary
	recovered(a, first+100)
	if got := one(a); got <= first+100+reserved {
		t.Errorf("%v is given after %v, which a client of the other master may have kept", got, first+100)
	}
}

// Behind the clock of the database, no master gives the TTIDs that the one before it
// gave and nobody has seen committed.
func TestTTIDsOfAnotherMaster(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	last := tid.FromTime(now.Add(time.Hour))
	seen := map[tid.TID]bool{}
	for range 50 {
		now = now.Add(time.Second)
		a := &allocator{}
		a.term(now)
		a.reset()
		a.saw(&proto.AnswerLastIDs{LastTID: proto.Some(last), FirstTID: 1})
		for range 3 {
			ttid := a.next(now, 0)
			if ttid <= last || seen[ttid] {
				t.Fatalf("%v is given after %v, again: %v", ttid, last, seen[ttid])
			}
			seen[ttid] = true
		}
	}
}
