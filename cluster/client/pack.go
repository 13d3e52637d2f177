package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// oidChunk is how many object ids are asked for at a time.
const oidChunk = 100

// NewOIDs returns n ids that no object has.
func (c *Client) NewOIDs(ctx context.Context, n int) ([]tid.OID, error) {
	if c.cfg.ReadOnly {
		return nil, fmt.Errorf("new object ids: %w", txn.ErrReadOnly)
	}
	var list []tid.OID
	for len(list) < n {
		if got := c.takeOIDs(n - len(list)); len(got) > 0 {
			list = append(list, got...)
			continue
		}
		if err := c.fillOIDs(ctx, n-len(list)); err != nil {
			return nil, fmt.Errorf("new object ids: %w", err)
		}
	}
	return list, nil
}

func (c *Client) takeOIDs(n int) []tid.OID {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, len(c.oids))
	got := c.oids[:n:n]
	c.oids = c.oids[n:]
	for _, oid := range got {
		c.lastOID = max(c.lastOID, oid)
	}
	return got
}

// fillOIDs gets a reserve from the master, one request at a time.
func (c *Client) fillOIDs(ctx context.Context, n int) error {
	select {
	case c.oidTurn <- struct{}{}:
		defer func() { <-c.oidTurn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	c.mu.Lock()
	have := len(c.oids)
	c.mu.Unlock()
	if have > 0 {
		return nil
	}
	v, err := c.connected(ctx)
	if err != nil {
		return err
	}
	p, err := v.session.conn.Call(ctx, &proto.AskNewOIDs{Count: max(n, oidChunk)})
	if err != nil {
		return c.masterError(ctx, err)
	}
	a, ok := p.(*proto.AnswerNewOIDs)
	if !ok || len(a.OIDs) == 0 {
		return fmt.Errorf("master answered AskNewOIDs with %+v", p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// The next master may know of a different last oid.
	if now := c.view.Load(); now != nil && now.session == v.session {
		c.oids = a.OIDs
	}
	return nil
}

// Len returns the greatest object id given out by this client: the estimate of
// the number of objects that ZODB shows.
func (c *Client) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(c.lastOID)
}

// Pack orders to drop the history before upTo, which is capped at the last TID.
// It returns the id of the order, for [Client.WaitForPack], as soon as the order
// is committed. Zero, for the time or the result: nothing is done.
func (c *Client) Pack(ctx context.Context, upTo tid.TID) (tid.TID, error) {
	return c.pack(ctx, upTo, nil)
}

// PackObjects is Pack for some objects only. No object: nothing is done.
func (c *Client) PackObjects(ctx context.Context, upTo tid.TID, oids []tid.OID) (tid.TID, error) {
	if len(oids) == 0 {
		return tid.Zero, nil // on the wire an empty list means all objects
	}
	if len(oids) >= proto.MaxOIDs {
		return tid.Zero, fmt.Errorf("pack: %d objects are too many", len(oids))
	}
	return c.pack(ctx, upTo, oids)
}

func (c *Client) pack(ctx context.Context, upTo tid.TID, oids []tid.OID) (tid.TID, error) {
	last, err := c.LastTID(ctx)
	if err != nil {
		return tid.Zero, fmt.Errorf("pack: %w", err)
	}
	upTo = min(upTo, last)
	if upTo == tid.Zero {
		return tid.Zero, nil
	}
	t, err := c.Begin(ctx, BeginOptions{Description: []byte("IStorage.pack")})
	if err != nil {
		return tid.Zero, fmt.Errorf("pack: %w", err)
	}
	t.SetPackOrder(upTo, oids)
	id, err := t.Finish(ctx, func(at tid.TID) {
		if c.cfg.OnInvalidate != nil { // its user does not commit it
			c.cfg.OnInvalidate(at, nil)
		}
	})
	if err != nil {
		return tid.Zero, errors.Join(fmt.Errorf("pack: %w", err), t.Abort(ctx))
	}
	return id, nil
}

// WaitForPack waits until an order is carried out by all readable cells. What
// was packed is then dropped from the cache.
func (c *Client) WaitForPack(ctx context.Context, id tid.TID) error {
	if _, err := askMaster[*proto.WaitedForPack](ctx, c, &proto.WaitForPack{ID: id}); err != nil {
		return fmt.Errorf("wait for pack %v: %w", id, err)
	}
	c.ClearCache()
	return nil
}
