package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// loading is a load under way. Others that want the same object wait for it,
// they usually want the same revision.
//
// The answer of a storage and the invalidation from the master race on two
// links: changed keeps what was invalidated since the request was made, so that
// a revision that was just replaced is never cached as the current one.
type loading struct {
	done    chan struct{} // of those that wait, nil if there are none; under cacheMu
	changed []tid.TID     // ascending
}

// Load returns the current revision of an object: the one at [Client.LastTID].
// The error is an [ObjectError] over [txn.ErrNoSuchObject] or [ErrDeleted], or says
// what failed.
func (c *Client) Load(ctx context.Context, oid tid.OID) (data []byte, serial tid.TID, err error) {
	r, err := c.load(ctx, oid, tid.Zero, tid.Zero)
	return r.Data, r.Serial, err
}

// LoadBefore implements [txn.Database]. The error for an object that is not there is
// an [ObjectError].
func (c *Client) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	return c.load(ctx, oid, tid.Zero, max(before, 1)) // nothing is older
}

// Cached is [Client.LoadBefore] if the revision is in the cache. It never waits.
func (c *Client) Cached(oid tid.OID, before tid.TID) (r txn.Revision, ok bool) {
	if before == tid.Zero || c.view.Load() == nil {
		return r, false
	}
	c.cacheMu.Lock()
	defer c.cacheMu.Unlock()
	e := c.cache.lookup(oid, before)
	if e == nil || !e.full {
		return r, false // not counted: a load will follow
	}
	c.cache.hits++
	c.cache.fetched(e)
	return e.revision(), true
}

// LoadAt implements [txn.Database]. The error for a revision that is not there is an
// [ObjectError].
func (c *Client) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	if at == tid.Zero {
		return txn.Revision{}, &ObjectError{oid, at, txn.ErrNotFound}
	}
	r, err := c.load(ctx, oid, at, tid.Zero)
	r.Next = tid.Zero
	return r, err
}

// load: at most one of at and before is given.
func (c *Client) load(ctx context.Context, oid tid.OID, at, before tid.TID) (r txn.Revision, err error) {
	if _, err := c.connected(ctx); err != nil { // learns lastTID
		return r, err
	}
	bound := before
	if at != tid.Zero {
		bound = at + 1
	}
	var l *loading
	for {
		c.cacheMu.Lock()
		if at == tid.Zero && before == tid.Zero && c.lastTID != tid.Zero {
			// Never return what is newer than the last invalidation.
			before = c.lastTID + 1
			bound = before
		}
		if e, ok := c.cache.load(oid, bound); ok && (at == tid.Zero || e.tid == at) {
			r = e.revision()
			c.cacheMu.Unlock()
			return r, nil
		}
		other := c.loading[oid]
		if other == nil {
			l = &loading{}
			c.loading[oid] = l
			c.cacheMu.Unlock()
			break
		}
		if other.done == nil {
			other.done = make(chan struct{})
		}
		done := other.done
		c.cacheMu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return r, ctx.Err()
		}
	}

	o, data, err := c.fetch(ctx, oid, at, before)

	c.cacheMu.Lock()
	defer c.cacheMu.Unlock()
	if l.done != nil {
		close(l.done)
	}
	valid := c.loading[oid] == l // else the master was lost: nothing is known of what came after
	if valid {
		delete(c.loading, oid)
	}
	if err != nil {
		return r, &ObjectError{oid, max(at, before), err}
	}
	next := o.NextSerial.V
	if !o.NextSerial.OK {
		next = tid.Zero
		for _, t := range l.changed {
			if t > o.Serial {
				next = t
				break
			}
		}
	}
	if data == nil {
		return r, &ObjectError{oid, o.Serial, ErrDeleted}
	}
	if valid {
		c.cache.store(oid, data, o.Serial, next)
	}
	return txn.Revision{Data: data, Serial: o.Serial, Next: next}, nil
}

// fetch asks storages for a revision, verified and decompressed. data is nil if
// the object does not exist at that revision.
func (c *Client) fetch(ctx context.Context, oid tid.OID, at, before tid.TID) (*proto.AnswerObject, []byte, error) {
	req := &proto.AskObject{OID: oid}
	if at != tid.Zero {
		req.At = proto.Some(at)
	} else if before != tid.Zero {
		req.Before = proto.Some(before)
	}
	var damaged *proto.AnswerObject
	var data []byte
	p, err := c.read(ctx, uint64(oid), req, func(p proto.Packet) (err error) {
		o, ok := p.(*proto.AnswerObject)
		if !ok || o.OID != oid {
			return fmt.Errorf("object %v: answered with %T", oid, p)
		}
		data, err = decode(&o.ObjectData)
		if err != nil && damaged == nil {
			damaged = o
		}
		if err != nil {
			err = &ObjectError{oid, o.Serial, err}
		}
		return err
	})
	if err == nil {
		return p.(*proto.AnswerObject), data, nil
	}
	if damaged != nil && c.cfg.IgnoreWrongChecksum && errors.Is(err, ErrChecksum) {
		data, unpackErr := deflate.Unpack(&damaged.ObjectData)
		if unpackErr != nil {
			data = []byte{}
		}
		return damaged, data, nil
	}
	return nil, nil, err
}

// decode returns the ZODB record of stored bytes, verified. nil: no data.
func decode(o *proto.ObjectData) ([]byte, error) {
	if deflate.Absent(o) {
		return nil, nil
	}
	if !deflate.Valid(o) {
		return nil, ErrChecksum
	}
	data, err := deflate.Unpack(o)
	if err != nil { // the checksum covers what was stored: all replicas have it
		return nil, fmt.Errorf("%w: %w", ErrChecksum, err)
	}
	return data, nil
}

// replaceLocked notes that objects have a new revision.
func (c *Client) replaceLocked(t tid.TID, oid tid.OID) {
	c.cache.invalidate(oid, t)
	if l := c.loading[oid]; l != nil {
		l.changed = append(l.changed, t)
	}
}

// invalidate applies the commit of another client.
func (c *Client) invalidate(t tid.TID, oids []tid.OID) {
	c.counts.invalidations.Add(1)
	c.counts.invalidated.Add(uint64(len(oids)))
	c.cacheMu.Lock()
	for _, oid := range oids {
		c.replaceLocked(t, oid)
	}
	c.cacheMu.Unlock()
	c.told.Store(uint64(t))
	if c.cfg.OnInvalidate != nil {
		c.cfg.OnInvalidate(t, oids)
	}
	c.advance(t)
}

// invalidateAll applies a commit whose objects are not known.
func (c *Client) invalidateAll(t tid.TID) {
	c.cacheMu.Lock()
	c.cache.clearCurrent()
	c.loading = map[tid.OID]*loading{} // what they bring may be replaced already
	c.cacheMu.Unlock()
	c.invalidate(t, nil)
}

// advance makes t the last transaction, once all know what it changed.
func (c *Client) advance(t tid.TID) {
	c.cacheMu.Lock()
	c.lastTID = t
	c.last.Store(uint64(t))
	c.cacheMu.Unlock()
}

// resync brings the cache in line with what a master tells after (re)connection.
func (c *Client) resync(last tid.TID) {
	c.cacheMu.Lock()
	first := !c.known
	if !first && last == c.lastTID {
		c.cacheMu.Unlock()
		return
	}
	if last > c.lastTID {
		c.cache.clearCurrent()
	} else { // truncated
		c.cache.clear()
		c.restored.clear()
	}
	c.loading = map[tid.OID]*loading{}
	c.known = true
	c.cacheMu.Unlock()
	c.told.Store(uint64(last))
	if !first && c.cfg.OnReset != nil {
		c.cfg.OnReset()
	}
	c.advance(last)
}
