package zeo

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/neozodb/neo/cluster/tid"
)

// claims lets the clients that have to resolve conflicts on the same objects do so
// one after the other. A storage need not lock what it reported a conflict on; if
// everybody went on at once, most would meet the next conflict, and clients give
// up after nine.
//
// A claim binds the transactions of this server only. Who waits for one holds
// nothing else: no claim and no lock of the storage.
type claims struct {
	held atomic.Int64 // objects claimed, or waited for

	mu      sync.Mutex
	owner   map[tid.OID]*transaction
	waiting []*claim // in the order they came
}

// claim is a transaction that waits for objects.
type claim struct {
	t       *transaction
	oids    []tid.OID
	granted chan struct{}
}

// taken returns those objects that t would have to wait for.
func (c *claims) taken(t *transaction, oids []tid.OID) []tid.OID {
	if c.held.Load() == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []tid.OID
	for _, o := range oids {
		if c.takenLocked(t, o, len(c.waiting)) {
			list = append(list, o)
		}
	}
	return list
}

// takenLocked reports whether an object is claimed by another transaction, or by
// one of the first ones that wait.
func (c *claims) takenLocked(t *transaction, oid tid.OID, first int) bool {
	if owner := c.owner[oid]; owner != nil {
		return owner != t // who waits for what t has is behind t
	}
	for _, w := range c.waiting[:first] {
		if w.t != t && slices.Contains(w.oids, oid) {
			return true
		}
	}
	return false
}

// try claims all of the objects, or none.
func (c *claims) try(t *transaction, oids []tid.OID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range oids {
		if c.takenLocked(t, o, len(c.waiting)) {
			return false
		}
	}
	c.takeLocked(t, oids)
	return true
}

func (c *claims) takeLocked(t *transaction, oids []tid.OID) {
	if c.owner == nil {
		c.owner = make(map[tid.OID]*transaction)
	}
	for _, o := range oids {
		c.owner[o] = t
	}
	c.held.Store(int64(len(c.owner) + len(c.waiting)))
}

// wait claims all of the objects once nobody before has a claim to any of them.
// What t has claimed already is given back and waited for too: two that waited for
// what the other has would do so for ever.
func (c *claims) wait(ctx context.Context, t *transaction, oids []tid.OID) error {
	w := &claim{t, slices.Clone(oids), make(chan struct{})}
	c.mu.Lock()
	for o, owner := range c.owner {
		if owner == t {
			delete(c.owner, o)
			w.oids = append(w.oids, o)
		}
	}
	c.waiting = append(c.waiting, w)
	c.grantLocked()
	c.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
		c.release(t)
		return ctx.Err()
	}
}

// grantLocked serves those who wait, in order, as far as possible.
func (c *claims) grantLocked() {
	for i := 0; i < len(c.waiting); {
		w := c.waiting[i]
		if slices.ContainsFunc(w.oids, func(o tid.OID) bool { return c.takenLocked(w.t, o, i) }) {
			i++
			continue
		}
		c.waiting = slices.Delete(c.waiting, i, i+1)
		c.takeLocked(w.t, w.oids)
		close(w.granted)
	}
	c.held.Store(int64(len(c.owner) + len(c.waiting)))
}

// release ends all that t claims or waits for.
func (c *claims) release(t *transaction) {
	if c.held.Load() == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for o, owner := range c.owner {
		if owner == t {
			delete(c.owner, o)
		}
	}
	c.waiting = slices.DeleteFunc(c.waiting, func(w *claim) bool { return w.t == t })
	c.grantLocked()
}
