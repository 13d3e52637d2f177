package client

import (
	"math/bits"

	"github.com/neozodb/neo/cluster/tid"
)

// serials remembers the latest revision of objects in bounded memory: 64 MiB at
// most. What it has forgotten costs a round trip more, nothing else.
type serials struct {
	buckets []serialBucket
	used    int
}

// serialBucket holds objects with the same hash; when it is full the oldest goes.
type serialBucket [8]struct {
	oid    tid.OID
	serial tid.TID // Zero: free
}

const (
	serialsMin = 1 << 10 // buckets
	serialsMax = 1 << 19
)

func (s *serials) bucket(oid tid.OID) *serialBucket {
	h := uint64(oid) * 0x9e3779b97f4a7c15
	return &s.buckets[h>>(65-bits.Len(uint(len(s.buckets))))] // the high bits of the product are the good ones
}

// get returns the revision of an object, Zero if there is none or it is forgotten.
func (s *serials) get(oid tid.OID) tid.TID {
	if s.buckets == nil {
		return tid.Zero
	}
	for _, e := range s.bucket(oid) {
		if e.oid == oid && e.serial != tid.Zero {
			return e.serial
		}
	}
	return tid.Zero
}

// put sets the revision of an object.
func (s *serials) put(oid tid.OID, serial tid.TID) {
	if s.buckets == nil {
		s.buckets = make([]serialBucket, serialsMin)
	}
	if s.used > len(s.buckets)*4 && len(s.buckets) < serialsMax {
		s.grow()
	}
	b := s.bucket(oid)
	free := -1
	for i := range b {
		switch e := &b[i]; {
		case e.serial == tid.Zero:
			free = i
		case e.oid == oid:
			e.serial = serial
			return
		}
	}
	if free < 0 {
		copy(b[:], b[1:])
		free = len(b) - 1
	} else {
		s.used++
	}
	b[free].oid, b[free].serial = oid, serial
}

func (s *serials) grow() {
	old := s.buckets
	s.buckets, s.used = make([]serialBucket, 4*len(old)), 0
	for i := range old {
		for _, e := range old[i] {
			if e.serial != tid.Zero {
				s.put(e.oid, e.serial)
			}
		}
	}
}
