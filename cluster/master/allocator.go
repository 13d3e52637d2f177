package master

import (
	"fmt"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// allocator gives out transaction and object ids.
//
// No TID is given twice, nor one below another, whatever the clock does. That
// holds for the life of the process: a client that comes back after a recovery
// must not find its TTID in the hands of another.
//
// No object id is given twice either: clients keep those that they have not used,
// for hours, and use them after the death of the master. What it had given and
// nobody has stored is not written anywhere. The next one leaves so many out that it
// cannot meet them, and another number of them than any other.
//
// Likewise TTIDs: whoever comes after a master whose clock was behind the database
// does not go on where that one did.
type allocator struct {
	committed tid.TID // last committed
	first     tid.TID // first of the database, tid.Max if none
	oid       tid.OID // last given or stored
	given     tid.TID // greatest TTID or TID generated
	handed    tid.OID // greatest object id given by this process
	known     tid.TID // last committed, as far as this process knows, unless it was cut off
	left      tid.OID // greatest one that another master may have given

	gap  tid.OID // to be left out in this term; 0: not any more
	jump int64   // of the first TTID that is not that of the clock; 0: not any more
}

// term begins: another master may have given ids since this one did.
func (a *allocator) term(now time.Time) {
	// Different for each term: Fibonacci hashing of its time.
	r := uint64(now.UnixNano()) * 0x9e3779b97f4a7c15 >> 32
	a.gap = reserved + tid.OID(r>>4) // 28 bits
	a.jump = int64(r >> 2)           // 30 bits, up to 15 seconds
}

// reset forgets the database, not what was given.
func (a *allocator) reset() {
	*a = allocator{first: tid.Max, given: a.given, handed: a.handed, left: a.left, known: a.known, gap: a.gap, jump: a.jump}
}

// saw takes the last ids of a storage into account.
func (a *allocator) saw(p *proto.AnswerLastIDs) {
	if p.LastTID.OK && p.LastTID.V < tid.Max {
		a.committed = max(a.committed, p.LastTID.V)
		a.known = max(a.known, a.committed)
	}
	if p.LastOID.OK && p.LastOID.V <= tid.MaxOID {
		a.oid = max(a.oid, p.LastOID.V)
		if a.oid > 0 && a.gap > 0 && a.oid < tid.MaxOID-a.gap {
			a.left = max(a.left, a.oid+a.gap)
		}
	}
	a.first = min(a.first, p.FirstTID)
}

// next returns a TID above every one given, committed, or queued for commit.
func (a *allocator) next(now time.Time, queued tid.TID) tid.TID {
	t := tid.FromTime(now)
	if last := max(a.given, a.committed, queued); t <= last {
		t = last.Add(1 + a.jump)
		a.jump = 0
	}
	a.given = t
	return t
}

// final returns the TID under which a transaction is committed. Its metadata was
// stored in the partition of its TTID, so the TID is of the same one.
func (a *allocator) final(now time.Time, queued, ttid tid.TID, np int) tid.TID {
	last := max(a.given, a.committed, queued)
	t := tid.FromTime(now)
	if t <= last {
		if ttid == last {
			return ttid
		}
		t = last.Add(1)
	}
	// At the end of a month Add skips days that do not exist, hence the loop.
	for n := uint64(np); ; {
		delta := (uint64(ttid)%n + n - uint64(t)%n) % n
		if delta == 0 {
			break
		}
		t = t.Add(int64(delta))
	}
	a.given = t
	return t
}

// reserved is how many object ids the clients of another master may have left.
const reserved = 1 << 20

// maxOIDsAsked bounds one request for object ids, so that its answer is small.
const maxOIDsAsked = 100_000

// newOIDs returns n consecutive object ids.
func (a *allocator) newOIDs(n int) ([]tid.OID, error) {
	last := max(a.oid, a.handed, a.left)
	if n < 1 || n > maxOIDsAsked || tid.OID(n) > tid.MaxOID-last {
		return nil, fmt.Errorf("cannot give %d object ids after %v", n, last)
	}
	oids := make([]tid.OID, n)
	for i := range oids {
		last++
		oids[i] = last
	}
	a.oid, a.handed, a.gap = last, last, 0
	return oids, nil
}
