package zeoclient

import (
	"context"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

// NewOID reserves an object id above all that the storage has. The client must be
// Writable. Nothing is written.
func (c *Client) NewOID(ctx context.Context) (tid.OID, error) {
	var oid tid.OID
	err := c.call(ctx, "new_oids", "", func(e *wire.Encoder) {
		e.BeginTuple(1)
		e.Int(1)
		e.EndTuple(1)
	}, func(v *wire.Value) (err error) {
		items, ok := v.List()
		if !ok || len(items) == 0 {
			return malformed("new_oids: want a list")
		}
		oid, err = items[0].AsOID()
		return err
	})
	if err != nil {
		return 0, err
	}
	return oid, nil
}

// GreatestOID returns the greatest id of an object, found in a few dozen calls; ok is
// false if there is none. Deleted objects count where the server tells of them: Python's
// does, ours does not tell of those above all that exist.
func (c *Client) GreatestOID(ctx context.Context) (oid tid.OID, ok bool, err error) {
	oid, ok, err = c.objectFrom(ctx, 0)
	if !ok || err != nil {
		return 0, false, err
	}
	if high, ok, err := c.objectFrom(ctx, tid.MaxOID+1); ok || err != nil {
		return high, ok, err
	}
	// There is an object oid, and none from end on.
	for step, end := tid.OID(1), tid.MaxOID+1; oid+1 < end; {
		middle := oid + 1 + (end-oid-1)/2
		if end > tid.MaxOID && step < 1<<62 { // ids are mostly small
			middle = min(middle, oid+step)
			step *= 2
		}
		next, ok, err := c.objectFrom(ctx, middle)
		switch {
		case err != nil:
			return 0, false, err
		case ok:
			oid = next
		default:
			end = middle
		}
	}
	return oid, true, nil
}

// objectFrom returns the first object from an id on, and whether there is one.
func (c *Client) objectFrom(ctx context.Context, from tid.OID) (oid tid.OID, ok bool, err error) {
	err = c.call(ctx, "record_iternext", fmt.Sprintf("object %v", from), func(e *wire.Encoder) {
		e.BeginTuple(1)
		e.OID(from)
		e.EndTuple(1)
	}, func(v *wire.Value) error {
		items, err := tuple(v, 4)
		if err == nil {
			oid, err = items[0].AsOID()
		}
		return err
	})
	if err != nil {
		if oid, err = c.afterError(ctx, from, err); err == errNoMoreObjects {
			return 0, false, nil
		} else if err != nil {
			return 0, false, err
		}
	}
	if oid < from {
		return 0, false, fmt.Errorf("ZEO server %s: record_iternext: object %v, asked from %v: %w", c.addr, oid, from, wire.ErrBadMessage)
	}
	return oid, true, nil
}
