package client

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
)

// levels prints the queues from the lowest, oldest entry first, as oid@tid.
func (c *cache) levels() string {
	var b strings.Builder
	for i, q := range c.queues {
		if q.head == nil {
			continue
		}
		fmt.Fprintf(&b, "%d:", i)
		for e := q.head; e != nil; e = e.newer {
			fmt.Fprintf(&b, " %d@%d", e.oid, e.tid)
			if e.next != 0 {
				fmt.Fprintf(&b, "-%d", e.next)
			}
		}
		b.WriteString("; ")
	}
	return strings.TrimSuffix(b.String(), "; ")
}

// check verifies the invariants of the structure.
func (c *cache) check(t *testing.T) {
	t.Helper()
	size, history, queued := 0, 0, map[*entry]bool{}
	for level, q := range c.queues {
		var last *entry
		for e := q.head; e != nil; last, e = e, e.newer {
			if e.level != level || e.older != last {
				t.Fatalf("entry %d@%d of level %d in queue %d", e.oid, e.tid, e.level, level)
			}
			if e.full != (level > 0) {
				t.Fatalf("entry %d@%d of level %d: full is %v", e.oid, e.tid, level, e.full)
			}
			if level == 0 {
				history++
			}
			size += len(e.data)
			queued[e] = true
		}
		if q.tail != last {
			t.Fatalf("tail of queue %d", level)
		}
	}
	n := 0
	for oid, list := range c.oids {
		for i, e := range list {
			n++
			if !queued[e] || e.oid != oid {
				t.Fatalf("entry %d@%d is in no queue", e.oid, e.tid)
			}
			if i > 0 && (list[i-1].next == 0 || list[i-1].next > e.tid) {
				t.Fatalf("revisions of %d overlap: %d-%d and %d", oid, list[i-1].tid, list[i-1].next, e.tid)
			}
		}
	}
	if n != len(queued) || size != c.size || history != c.history {
		t.Fatalf("%d entries, %d queued; %d bytes, %d counted; history %d, %d counted", n, len(queued), size, c.size, history, c.history)
	}
	if c.size > c.maxSize || c.history > c.maxHistory {
		t.Fatalf("%d bytes of %d, history %d of %d", c.size, c.maxSize, c.history, c.maxHistory)
	}
}

func TestCachePolicy(t *testing.T) {
	data := []byte("0123456789")
	type step struct {
		do   string // store oid tid next, load oid before, invalidate oid tid, clear, forget
		a    [3]uint64
		want string // queues; for load also whether it is a hit
	}
	for _, tt := range []struct {
		name  string
		size  int
		life  uint64
		hist  int
		steps []step
	}{
		{"levels follow the logarithm of accesses", 100, 100, 10, []step{
			{"store", [3]uint64{1, 5, 0}, "1: 1@5"},
			{"load", [3]uint64{1, 0}, "hit 2: 1@5"},
			{"load", [3]uint64{1, 6}, "hit 2: 1@5"},
			{"load", [3]uint64{1, 0}, "hit 3: 1@5"},
			{"load", [3]uint64{1, 5}, "miss 3: 1@5"},
		}},
		{"what is not used loses one level at a time", 100, 1, 10, []step{
			{"store", [3]uint64{1, 5, 0}, "1: 1@5"},
			{"load", [3]uint64{1, 0}, "hit 2: 1@5"},
			{"store", [3]uint64{2, 5, 0}, "1: 2@5 1@5"},     // 1 has expired
			{"store", [3]uint64{3, 5, 0}, "1: 2@5 1@5 3@5"}, // there is room
			{"store", [3]uint64{4, 5, 0}, "1: 2@5 1@5 3@5 4@5"},
		}},
		{"eviction goes to history, from where the count comes back", 25, 100, 10, []step{
			{"store", [3]uint64{1, 5, 0}, "1: 1@5"},
			{"store", [3]uint64{2, 5, 0}, "1: 1@5 2@5"},
			{"store", [3]uint64{3, 5, 0}, "0: 1@5; 1: 2@5 3@5"},
			{"load", [3]uint64{1, 0}, "miss 0: 1@5; 1: 2@5 3@5"},
			{"store", [3]uint64{1, 5, 0}, "0: 2@5; 1: 3@5; 2: 1@5"},
		}},
		{"history is bounded", 15, 100, 1, []step{
			{"store", [3]uint64{1, 5, 0}, "1: 1@5"},
			{"store", [3]uint64{2, 5, 0}, "0: 1@5; 1: 2@5"},
			{"store", [3]uint64{3, 5, 0}, "0: 2@5; 1: 3@5"},
		}},
		{"a new revision inherits the popularity", 100, 100, 10, []step{
			{"store", [3]uint64{1, 5, 0}, "1: 1@5"},
			{"load", [3]uint64{1, 0}, "hit 2: 1@5"},
			{"invalidate", [3]uint64{1, 7}, "2: 1@5-7"},
			{"load", [3]uint64{1, 0}, "miss 2: 1@5-7"},
			{"load", [3]uint64{1, 7}, "hit 2: 1@5-7"},
			{"store", [3]uint64{1, 7, 0}, "1: 1@5-7; 3: 1@7"},
		}},
		{"a revision without data has no heir", 15, 100, 10, []step{
			{"store", [3]uint64{1, 5, 0}, "1: 1@5"},
			{"store", [3]uint64{2, 5, 0}, "0: 1@5; 1: 2@5"},
			{"invalidate", [3]uint64{1, 7}, "0: 1@5-7; 1: 2@5"},
			{"store", [3]uint64{1, 7, 0}, "0: 2@5; 2: 1@7"},
		}},
		{"past revisions are inserted in order", 100, 100, 10, []step{
			{"store", [3]uint64{1, 9, 0}, "1: 1@9"},
			{"store", [3]uint64{1, 3, 5}, "1: 1@9 1@3-5"},
			{"load", [3]uint64{1, 5}, "hit 1: 1@9; 2: 1@3-5"},
			{"load", [3]uint64{1, 6}, "miss 1: 1@9; 2: 1@3-5"},
			{"store", [3]uint64{1, 5, 9}, "1: 1@9 1@5-9; 2: 1@3-5"},
			{"load", [3]uint64{1, 9}, "hit 1: 1@9; 2: 1@3-5 1@5-9"},
		}},
		{"what contradicts the known history is not kept", 100, 100, 10, []step{
			{"store", [3]uint64{1, 5, 9}, "1: 1@5-9"},
			{"store", [3]uint64{1, 3, 9}, "1: 1@5-9"}, // 5 was packed meanwhile
			{"store", [3]uint64{1, 3, 0}, "1: 1@5-9"},
			{"store", [3]uint64{1, 7, 0}, "1: 1@5-9"},
			{"store", [3]uint64{1, 5, 7}, "1: 1@5-9"},
		}},
		{"too big", 10, 100, 10, []step{
			{"store", [3]uint64{1, 5, 0}, ""},
		}},
		{"reconnection forgets only what may have changed", 100, 100, 10, []step{
			{"store", [3]uint64{1, 3, 5}, "1: 1@3-5"},
			{"store", [3]uint64{1, 5, 0}, "1: 1@3-5; 2: 1@5"},
			{"store", [3]uint64{2, 5, 0}, "1: 1@3-5 2@5; 2: 1@5"},
			{"forget", [3]uint64{}, "1: 1@3-5"},
			{"clear", [3]uint64{}, ""},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCache(tt.size)
			c.lifeTime, c.maxHistory = tt.life, tt.hist
			for i, s := range tt.steps {
				var got string
				oid := tid.OID(s.a[0])
				switch s.do {
				case "store":
					c.store(oid, data, tid.TID(s.a[1]), tid.TID(s.a[2]))
				case "load":
					if e, ok := c.load(oid, tid.TID(s.a[1])); ok && e.oid == oid {
						got = "hit "
					} else {
						got = "miss "
					}
				case "invalidate":
					c.invalidate(oid, tid.TID(s.a[1]))
				case "forget":
					c.clearCurrent()
				case "clear":
					c.clear()
				}
				if got += c.levels(); got != s.want {
					t.Fatalf("step %d, %s %v: got %q, want %q", i, s.do, s.a, got, s.want)
				}
				c.check(t)
			}
		})
	}
}

// TestCacheRandom compares the answers of a small cache with the true history.
func TestCacheRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	c := newCache(400)
	c.lifeTime, c.maxHistory = 20, 30
	history := map[tid.OID][]tid.TID{}
	now := tid.TID(1)
	data := func(oid tid.OID, t tid.TID) []byte { return fmt.Appendf(nil, "%d@%d", oid, t) }
	at := func(oid tid.OID, before tid.TID) (serial, next tid.TID) {
		for _, s := range history[oid] {
			if s < before {
				serial, next = s, 0
			} else if next == 0 {
				next = s
			}
		}
		return serial, next
	}
	hits := 0
	for range 200000 {
		oid := tid.OID(rng.ExpFloat64() * 10)
		switch rng.IntN(10) {
		case 0:
			now++
			history[oid] = append(history[oid], now)
			c.invalidate(oid, now)
			if rng.IntN(2) == 0 {
				c.store(oid, data(oid, now), now, 0)
			}
		default:
			before := now + 1
			if rng.IntN(2) == 0 {
				before = tid.TID(rng.Uint64N(uint64(now)) + 1)
			}
			serial, next := at(oid, before)
			e, ok := c.load(oid, before)
			if ok {
				hits++
				if e.tid != serial || e.next != next || string(e.data) != string(data(oid, serial)) {
					t.Fatalf("%d before %d: got %d-%d %q, want %d-%d", oid, before, e.tid, e.next, e.data, serial, next)
				}
			} else if serial != 0 {
				c.store(oid, data(oid, serial), serial, next)
			}
		}
		c.check(t)
	}
	if hits < 10000 {
		t.Errorf("only %d hits", hits)
	}
}

func TestSerials(t *testing.T) {
	var s serials
	for oid := range tid.OID(100000) {
		s.put(oid, tid.TID(oid)+1)
		s.put(oid, tid.TID(oid)+2)
	}
	missing := 0
	for oid := range tid.OID(100000) {
		switch s.get(oid) {
		case tid.TID(oid) + 2:
		case tid.Zero:
			missing++
		default:
			t.Fatalf("%v: %v", oid, s.get(oid))
		}
	}
	if missing > 1000 {
		t.Errorf("%d of 100000 forgotten", missing)
	}
	if got := s.get(1 << 40); got != tid.Zero {
		t.Errorf("unknown object: %v", got)
	}
}
