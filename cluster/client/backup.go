package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// AskLastTID asks the master for the last transaction that clients may read, and makes it that of
// [Client.LastTID]: for a cluster in backup mode of the Python implementation, which tells
// its clients of no transaction.
func (c *Client) AskLastTID(ctx context.Context) (tid.TID, error) {
	v, err := c.connected(ctx)
	if err != nil {
		return 0, err
	}
	answered := make(chan error, 1)
	v.session.conn.Ask(&proto.AskLastTransaction{}, &lastTIDAgain{v.session, answered})
	select {
	case err = <-answered:
	case <-v.session.conn.Done():
		select {
		case err = <-answered:
		default:
			err = link.ErrClosed
		}
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("last transaction: %w", c.masterError(ctx, err))
	}
	return c.LastTID(ctx)
}

// lastTIDAgain is the tag of an AskLastTransaction later than the first one.
type lastTIDAgain struct {
	s    *session
	done chan<- error
}

func (a *lastTIDAgain) answered(ev link.Event) {
	p, ok := ev.Packet.(*proto.AnswerLastTransaction)
	if !ok {
		a.done <- answerError(ev)
		return
	}
	if c := a.s.c; p.TID > tid.TID(c.last.Load()) {
		c.resync(p.TID)
	}
	a.done <- nil
}

// ClusterState asks the master for the state of the cluster.
func (c *Client) ClusterState(ctx context.Context) (proto.ClusterState, error) {
	a, err := askMaster[*proto.AnswerClusterState](ctx, c, &proto.AskClusterState{})
	if err != nil {
		return 0, fmt.Errorf("cluster state: %w", err)
	}
	return a.State.V, nil
}

// Partitions returns the number of partitions.
func (c *Client) Partitions(ctx context.Context) (int, error) {
	v, err := c.connected(ctx)
	if err != nil {
		return 0, err
	}
	return v.np(), nil
}

// PackOrders returns the orders to pack that have at least this id, in the order of ids. A
// storage executes an order only after the master can tell of it.
func (c *Client) PackOrders(ctx context.Context, from tid.TID) ([]proto.PackOrder, error) {
	a, err := steady(ctx, func() (*proto.AnswerPackOrders, error) {
		// A master of the Python implementation ends at the question for those from 0 on.
		return askMaster[*proto.AnswerPackOrders](ctx, c, &proto.AskPackOrders{Min: max(from, 1)})
	})
	if err != nil {
		return nil, fmt.Errorf("pack orders: %w", err)
	}
	return a.Orders, nil
}

// HasRevision reports whether every readable cell has the revision that a transaction made of an
// object, be it one without data. A cell that cannot answer has it not.
func (c *Client) HasRevision(ctx context.Context, oid tid.OID, at tid.TID) (bool, error) {
	v, err := c.connected(ctx)
	if err != nil {
		return false, err
	}
	var room [4]proto.NodeID
	cells := c.readCells(v, int(uint64(oid)%uint64(v.np())), room[:0])
	for _, id := range cells {
		conn, err := c.storage(ctx, v, id)
		if err == nil {
			var p proto.Packet
			if p, err = conn.Call(ctx, &proto.AskObject{OID: oid, At: proto.Some(at)}); err == nil {
				o, ok := p.(*proto.AnswerObject)
				if !ok || o.OID != oid || o.Serial != at {
					return false, fmt.Errorf("storage %v was asked for object %v at %v, and answered %+v", id, oid, at, p)
				}
				continue
			}
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if err := fromWire(err); !errors.Is(err, txn.ErrNotFound) && !errors.Is(err, txn.ErrNoSuchObject) {
			c.log.Info("a storage cannot tell whether it has a revision", "storage", id, "oid", oid, "tid", at, "err", err)
		}
		return false, nil
	}
	return len(cells) > 0, nil
}
