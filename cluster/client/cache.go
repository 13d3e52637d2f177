package client

import (
	"fmt"
	"math/bits"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

const (
	cacheLifeTime   = 10000  // accesses after which an entry that is not used loses a level, down to 1
	cacheMaxHistory = 100000 // entries remembered after their data was dropped
)

// cache holds uncompressed revisions under a multi-queue policy (Zhou, Philbin
// and Li, USENIX 2001): an entry sits in queue 1+log2(number of accesses) and
// loses a level when it is not used for a while, so that one big scan does not
// wash out what is used all the time. Data is dropped only for want of room. Queue
// 0 remembers how often entries were used whose data is gone.
//
// It is a value owned by the goroutine that holds the lock around it.
//
// Invariant: the revisions of an object are sorted by TID, no two overlap, and
// only the newest may have no successor.
type cache struct {
	maxSize    int
	lifeTime   uint64
	maxHistory int

	size    int    // bytes of data
	time    uint64 // accesses
	history int    // entries in queues[0]
	queues  []queue
	oids    map[tid.OID][]*entry

	hits, misses uint64
}

// entry is one revision of one object.
type entry struct {
	oid     tid.OID
	tid     tid.TID
	next    tid.TID // Zero: current
	data    []byte
	full    bool // data is there
	counter uint
	level   int
	expire  uint64

	older, newer *entry // neighbours in the queue
}

func (e *entry) revision() txn.Revision {
	return txn.Revision{Data: e.data, Serial: e.tid, Next: e.next}
}

// queue is a list of entries, the oldest at the head.
type queue struct{ head, tail *entry }

func newCache(maxSize int) *cache {
	return &cache{
		maxSize:    maxSize,
		lifeTime:   cacheLifeTime,
		maxHistory: cacheMaxHistory,
		queues:     make([]queue, 2),
		oids:       map[tid.OID][]*entry{},
	}
}

// lookup returns the entry that is current just before the bound, whether its
// data is there or not. Without a bound (Zero) it must have no successor.
func (c *cache) lookup(oid tid.OID, before tid.TID) *entry {
	list := c.oids[oid]
	if before == tid.Zero {
		if n := len(list); n > 0 && list[n-1].next == tid.Zero {
			return list[n-1]
		}
		return nil
	}
	for i := len(list) - 1; i >= 0; i-- {
		if e := list[i]; e.tid < before {
			if e.next != tid.Zero && e.next < before {
				return nil
			}
			return e
		}
	}
	return nil
}

// load returns the revision before the bound if its data is there.
func (c *cache) load(oid tid.OID, before tid.TID) (e *entry, ok bool) {
	e = c.lookup(oid, before)
	if e == nil || !e.full {
		c.misses++
		return nil, false
	}
	c.hits++
	c.fetched(e)
	return e, true
}

// store adds a revision. next is Zero for the current one. A revision that
// contradicts what is known (the history was packed in between) is not kept.
func (c *cache) store(oid tid.OID, data []byte, serial, next tid.TID) {
	if len(data) >= c.maxSize {
		return
	}
	e := c.lookup(oid, next)
	if e != nil {
		if e.tid != serial || e.full {
			return
		}
		e.next = next
	} else {
		e = &entry{oid: oid, tid: serial, next: next, level: -1}
		list := c.oids[oid]
		i, found := slices.BinarySearchFunc(list, serial, func(e *entry, t tid.TID) int {
			switch {
			case e.tid < t:
				return -1
			case e.tid > t:
				return 1
			}
			return 0
		})
		if found {
			return // with another successor than we were told
		}
		if i == len(list) && i > 0 {
			prev := list[i-1]
			if prev.next == tid.Zero || prev.next > serial {
				return // overlaps
			}
			// The newest revision takes over the popularity of the one before.
			e.counter, prev.counter = prev.counter, 0
			if prev.level > 1 {
				c.fetched(prev)
			} else if prev.level == 0 {
				c.forget(prev)
			}
			list = c.oids[oid] // some of it may have been forgotten
			i = len(list)
		} else if i < len(list) && (next == tid.Zero || next > list[i].tid) || i > 0 && list[i-1].next > serial {
			return
		}
		c.oids[oid] = slices.Insert(list, i, e)
	}
	e.data, e.full = data, true
	c.size += len(data)
	c.fetched(e)
	for level := 1; c.size > c.maxSize && level < len(c.queues); {
		head := c.queues[level].head
		if head == nil {
			level++
			continue
		}
		c.remove(head)
		c.settle(head, 0)
	}
}

// invalidate marks the newest revision of an object as replaced at t.
func (c *cache) invalidate(oid tid.OID, t tid.TID) {
	if list := c.oids[oid]; len(list) > 0 {
		if e := list[len(list)-1]; e.next == tid.Zero {
			e.next = t
		}
	}
}

// clearCurrent forgets all that may have changed since: revisions without
// successor. Older ones stay.
func (c *cache) clearCurrent() {
	for _, list := range c.oids {
		if e := list[len(list)-1]; e.next == tid.Zero {
			c.remove(e)
			c.drop(e)
		}
	}
}

// clear forgets everything.
func (c *cache) clear() {
	fresh := newCache(c.maxSize)
	fresh.lifeTime, fresh.maxHistory, fresh.hits, fresh.misses = c.lifeTime, c.maxHistory, c.hits, c.misses
	*c = *fresh
}

// String is the line for the log.
func (c *cache) String() string {
	loads := c.hits + c.misses
	rate := 0.0
	if loads > 0 {
		rate = float64(c.hits) / float64(loads) * 100
	}
	lengths := make([]int, len(c.queues))
	for i := range c.queues {
		for e := c.queues[i].head; e != nil; e = e.newer {
			lengths[i]++
		}
	}
	return fmt.Sprintf("%d loads (%.1f%% hits), %d objects, %d bytes of %d, time %d, queues %v, life time %d, history of %d",
		loads, rate, len(c.oids), c.size, c.maxSize, c.time, lengths, c.lifeTime, c.maxHistory)
}

// fetched counts an access and demotes at most one entry whose time is over.
func (c *cache) fetched(e *entry) {
	if e.level >= 0 {
		c.remove(e)
	}
	e.counter++
	e.level = bits.Len(e.counter)
	c.add(e)
	c.time++
	for level := 2; level < len(c.queues); level++ {
		if head := c.queues[level].head; head != nil && head.expire < c.time {
			c.remove(head)
			c.settle(head, head.level)
			return
		}
	}
}

// settle puts an entry that was removed back at a level; one that falls out of
// the data queues without ever having been used on its own is forgotten.
func (c *cache) settle(e *entry, level int) {
	e.level = level
	if level > 0 || e.counter > 0 {
		c.add(e)
	} else {
		c.drop(e)
	}
}

// add appends an entry at the tail of the queue of its level.
func (c *cache) add(e *entry) {
	for len(c.queues) <= e.level {
		c.queues = append(c.queues, queue{})
	}
	q := &c.queues[e.level]
	e.older, e.newer = q.tail, nil
	if q.tail == nil {
		q.head = e
	} else {
		q.tail.newer = e
	}
	q.tail = e
	if e.level > 0 {
		e.expire = c.time + c.lifeTime
		return
	}
	c.empty(e)
	c.history++
	if c.history > c.maxHistory {
		c.forget(q.head)
	}
}

// remove takes an entry out of its queue. It leaves a data queue one level lower.
func (c *cache) remove(e *entry) {
	q := &c.queues[e.level]
	if e.older == nil {
		q.head = e.newer
	} else {
		e.older.newer = e.newer
	}
	if e.newer == nil {
		q.tail = e.older
	} else {
		e.newer.older = e.older
	}
	e.older, e.newer = nil, nil
	if e.level > 0 {
		e.level--
	} else {
		c.history--
	}
}

// forget removes an entry that is in a queue completely.
func (c *cache) forget(e *entry) {
	c.remove(e)
	c.drop(e)
}

// drop forgets an entry that is in no queue.
func (c *cache) drop(e *entry) {
	c.empty(e)
	list := c.oids[e.oid]
	i := slices.Index(list, e)
	if len(list) == 1 {
		delete(c.oids, e.oid)
	} else {
		c.oids[e.oid] = slices.Delete(list, i, i+1)
	}
}

// empty drops the data of an entry.
func (c *cache) empty(e *entry) {
	if e.full {
		c.size -= len(e.data)
		e.data, e.full = nil, false
	}
}
