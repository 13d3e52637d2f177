package keeper

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"math"
	"sort"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// listing is what a store has, in 48 bytes for each object: a repository that nothing was pruned
// from for a year may have tens of millions.
type listing struct {
	groups  map[group]*column
	order   []group // as they were added
	rests   []string
	objects int64
	bytes   int64
	foreign []string // keys that are none of a repository, up to maxForeign
	nforgn  int64
	last    string
}

// maxForeign is how many foreign keys are named.
const maxForeign = 10

// group is what objects have in common whose names differ in numbers and hashes only.
type group struct {
	lineage snapshot.ID
	kind    snapshot.Kind
}

// object is one object. What a, b and sum are depends on its kind: see compact.
type object struct {
	a, b     uint64
	sum      snapshot.Short
	size     int64
	modified int64 // UNIX nanoseconds by the clock of the store; unknown: never old
	reason   reason
	listed   listed
}

const unknown = math.MaxInt64

// column is the objects of a group, ascending by their keys. It is in pieces, so that it grows
// without a copy.
type column struct {
	pieces [][]object
	n      int
	bytes  int64
	newest int64 // greatest modified
}

const piece = 1 << 13

func (c *column) add(o object) {
	if c.n%piece == 0 {
		size := 0
		if c.n > 0 {
			size = piece
		}
		c.pieces = append(c.pieces, make([]object, 0, size))
	}
	last := &c.pieces[len(c.pieces)-1]
	*last = append(*last, o)
	c.n++
	c.bytes += o.size
	c.newest = max(c.newest, o.modified)
}

func (c *column) at(i int) *object { return &c.pieces[i/piece][i%piece] }

// all yields the objects in the order of their keys.
func (c *column) all() iter.Seq[*object] {
	return func(yield func(*object) bool) {
		for _, p := range c.pieces {
			for i := range p {
				if !yield(&p[i]) {
					return
				}
			}
		}
	}
}

// backward yields the objects in the reverse order of their keys.
func (c *column) backward() iter.Seq[*object] {
	return func(yield func(*object) bool) {
		for i := c.n - 1; i >= 0; i-- {
			if !yield(c.at(i)) {
				return
			}
		}
	}
}

func newListing() *listing { return &listing{groups: map[group]*column{}} }

func fromTime(t time.Time) uint64 { return uint64(t.Unix()) ^ 1<<63 }
func toTime(a uint64) time.Time   { return time.Unix(int64(a^1<<63), 0).UTC() }

// compact returns the numbers of a key. Those of one group are ordered as the keys are. A name
// that is not read any further is a string, whose place the listing keeps.
func compact(k snapshot.Key) (g group, a, b uint64, sum snapshot.Short) {
	g = group{k.Lineage, k.Kind}
	switch k.Kind {
	case snapshot.KindManifest:
		return g, uint64(snapshot.MaxSeq - k.N), 0, sum
	case snapshot.KindWrap:
		return g, uint64(k.N), uint64(k.Wrap), sum
	case snapshot.KindPage:
		return g, 0, 0, k.Sum
	case snapshot.KindSegment:
		return g, uint64(k.After), uint64(k.Upto), k.Sum
	case snapshot.KindProof:
		return g, fromTime(k.Time), uint64(k.Upto), sum
	case snapshot.KindDoom, snapshot.KindVoid:
		return g, fromTime(k.Time), 0, sum
	}
	return g, uint64(k.N), 0, sum
}

// key returns the key of an object.
func (l *listing) key(g group, o *object) snapshot.Key {
	k := snapshot.Key{Kind: g.kind, Lineage: g.lineage}
	switch g.kind {
	case snapshot.KindManifest:
		k.N = snapshot.MaxSeq - int64(o.a)
	case snapshot.KindWrap:
		k.N, k.Wrap = int64(o.a), int64(o.b)
	case snapshot.KindPage:
		k.Sum = o.sum
	case snapshot.KindSegment:
		k.After, k.Upto, k.Sum = tid.TID(o.a), tid.TID(o.b), o.sum
	case snapshot.KindProof:
		k.Time, k.Upto = toTime(o.a), tid.TID(o.b)
	case snapshot.KindDoom, snapshot.KindVoid:
		k.Time = toTime(o.a)
	case snapshot.KindRun, snapshot.KindBlob, snapshot.KindProbe:
		k.Rest = l.rests[o.a]
	default:
		k.N = int64(o.a)
	}
	return k
}

// named reports whether the names of a kind are not read any further.
func named(k snapshot.Kind) bool {
	return k == snapshot.KindRun || k == snapshot.KindBlob || k == snapshot.KindProbe
}

// add adds an object. They come in the order of their keys.
func (l *listing) add(info store.Info) error {
	if info.Key <= l.last {
		return fmt.Errorf("%w: the list has %s after %s", store.ErrLied, info.Key, l.last)
	}
	l.last = info.Key
	l.objects++
	l.bytes += info.Size
	k, err := snapshot.ParseKey(info.Key)
	if err != nil {
		if l.nforgn++; len(l.foreign) < maxForeign {
			l.foreign = append(l.foreign, info.Key)
		}
		return nil
	}
	g, a, b, sum := compact(k)
	if named(k.Kind) {
		a = uint64(len(l.rests))
		l.rests = append(l.rests, k.Rest)
	}
	o := object{a: a, b: b, sum: sum, size: info.Size, modified: unknown}
	if !info.Modified.IsZero() {
		o.modified = info.Modified.UnixNano()
	}
	c := l.groups[g]
	if c == nil {
		c = &column{newest: math.MinInt64}
		l.groups[g] = c
		l.order = append(l.order, g)
	}
	c.add(o)
	return nil
}

// find returns an object, nil if it is not there.
func (l *listing) find(k snapshot.Key) *object {
	g, a, b, sum := compact(k)
	c := l.groups[g]
	if c == nil {
		return nil
	}
	i := sort.Search(c.n, func(i int) bool {
		o := c.at(i)
		if named(k.Kind) {
			return l.rests[o.a] >= k.Rest
		}
		return cmp.Or(cmp.Compare(o.a, a), cmp.Compare(o.b, b), bytes.Compare(o.sum[:], sum[:])) >= 0
	})
	if i == c.n || l.key(g, c.at(i)).String() != k.String() {
		return nil
	}
	return c.at(i)
}

// column returns the objects of a kind, which may be none.
func (l *listing) column(lineage snapshot.ID, kind snapshot.Kind) *column {
	if c := l.groups[group{lineage, kind}]; c != nil {
		return c
	}
	return &column{newest: math.MinInt64}
}

// newest returns when the last object of a lineage was added.
func (l *listing) newest(lineage snapshot.ID) int64 {
	at := int64(math.MinInt64)
	for g, c := range l.groups {
		if g.lineage == lineage {
			at = max(at, c.newest)
		}
	}
	return at
}
