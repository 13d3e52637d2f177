package fsformat

import (
	"iter"
	"math/bits"
	"math/rand/v2"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
)

// Index maps each object to the position of its newest record. It takes at most
// 24 bytes an object, whatever the ids: 256 open-addressing tables of 16-byte
// slots, filled to between 70 % and 80 %, each growing by itself so that a growth
// needs little room beside it. It has one owner.
type Index struct {
	End     int64   // of the last transaction covered: where a scan goes on
	LastTID tid.TID // of the last committed transaction covered

	n        int
	maxOID   tid.OID
	seed     uint64
	segments [256]segment
}

type segment struct {
	slots []slot
	n     int
}

// A slot is free if pos is 0, which is no record.
type slot struct {
	oid uint64
	pos int64
}

// NewIndex returns the index of an empty file.
func NewIndex() *Index {
	return &Index{End: magicLen, seed: rand.Uint64()}
}

// Len returns the number of objects, those that were deleted included.
func (x *Index) Len() int { return x.n }

// MaxOID returns the greatest object id, and whether there is any object.
func (x *Index) MaxOID() (tid.OID, bool) { return x.maxOID, x.n > 0 }

// Get returns the position of the newest record of an object.
func (x *Index) Get(oid tid.OID) (pos int64, ok bool) {
	h := x.hash(uint64(oid))
	s := &x.segments[h>>56]
	if s.n == 0 {
		return 0, false
	}
	p := s.find(uint64(oid), h).pos
	return p, p != 0
}

// Set notes the newest record of an object.
func (x *Index) Set(oid tid.OID, pos int64) {
	h := x.hash(uint64(oid))
	s := &x.segments[h>>56]
	if s.n*5 >= len(s.slots)*4 {
		x.grow(s)
	}
	e := s.find(uint64(oid), h)
	if e.pos == 0 {
		e.oid = uint64(oid)
		s.n++
		x.n++
		x.maxOID = max(x.maxOID, oid)
	}
	e.pos = pos
}

// swap is Set that returns the position there was before, 0 if none.
func (x *Index) swap(oid tid.OID, pos int64) (old int64) {
	h := x.hash(uint64(oid))
	s := &x.segments[h>>56]
	if s.n*5 >= len(s.slots)*4 {
		x.grow(s)
	}
	e := s.find(uint64(oid), h)
	old, e.pos = e.pos, pos
	if old == 0 {
		e.oid = uint64(oid)
		s.n++
		x.n++
		x.maxOID = max(x.maxOID, oid)
	}
	return old
}

// hash is keyed: nobody can choose ids that collide.
func (x *Index) hash(oid uint64) uint64 {
	h := oid * 0x9e3779b97f4a7c15
	h ^= h>>32 ^ x.seed
	h *= 0xd6e8feb86659fd93
	return h ^ h>>32
}

// find returns the slot of oid, or the free one where it belongs. There is always
// a free one.
func (s *segment) find(oid, h uint64) *slot {
	i, _ := bits.Mul64(h<<8, uint64(len(s.slots)))
	for {
		e := &s.slots[i]
		if e.oid == oid && e.pos != 0 || e.pos == 0 {
			return e
		}
		if i++; i == uint64(len(s.slots)) {
			i = 0
		}
	}
}

func (x *Index) grow(s *segment) {
	old := s.slots
	size := len(old) + len(old)/7
	if len(old) < 256 { // not worth being tight
		size = max(8, 2*len(old))
	}
	s.slots = make([]slot, size)
	for _, e := range old {
		if e.pos != 0 {
			*s.find(e.oid, x.hash(e.oid)) = e
		}
	}
}

// reserve makes room for so many objects in an empty index, so that most of its tables
// need not grow.
func (x *Index) reserve(objects int) {
	if objects < 256*len(x.segments) {
		return
	}
	n := objects / len(x.segments)
	for i := range x.segments {
		x.segments[i].slots = make([]slot, n+n*3/10)
	}
}

// OIDs returns all objects in ascending order.
func (x *Index) OIDs() []tid.OID {
	out := make([]tid.OID, 0, x.n)
	for i := range x.segments {
		for _, e := range x.segments[i].slots {
			if e.pos != 0 {
				out = append(out, tid.OID(e.oid))
			}
		}
	}
	slices.Sort(out)
	return out
}

// All yields all objects in ascending order, with their positions.
func (x *Index) All() iter.Seq2[tid.OID, int64] {
	return func(yield func(tid.OID, int64) bool) {
		for _, oid := range x.OIDs() {
			pos, _ := x.Get(oid)
			if !yield(oid, pos) {
				return
			}
		}
	}
}

// positions returns the positions of all objects in ascending order.
func (x *Index) positions() []int64 {
	out := make([]int64, 0, x.n)
	for i := range x.segments {
		for _, e := range x.segments[i].slots {
			if e.pos != 0 {
				out = append(out, e.pos)
			}
		}
	}
	slices.Sort(out)
	return out
}
