package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// errNextCell is what a check of an answer returns to have another cell asked,
// without counting a failure.
var errNextCell = errors.New("not readable here")

// readCells returns the nodes of a partition in the order in which to ask them:
// at random, so that the load is spread, those that failed lately at the end.
func (c *Client) readCells(v *view, partition int, buf []proto.NodeID) []proto.NodeID {
	for _, cell := range v.rows[partition] {
		if cell.State.Readable() {
			buf = append(buf, cell.ID)
		}
	}
	if len(buf) < 2 {
		return buf
	}
	rand.Shuffle(len(buf), func(i, j int) { buf[i], buf[j] = buf[j], buf[i] })
	s := &c.storages
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.failures) > 0 {
		now := time.Now()
		until := func(id proto.NodeID) int64 {
			if t := s.failures[id]; t.After(now) {
				return t.UnixNano()
			}
			return 0
		}
		slices.SortStableFunc(buf, func(a, b proto.NodeID) int { return cmp.Compare(until(a), until(b)) })
	}
	return buf
}

// read asks a readable cell of the partition of key until one answers with what
// check accepts. check may be nil.
func (c *Client) read(ctx context.Context, key uint64, req proto.Request, check func(proto.Packet) error) (proto.Packet, error) {
	v, err := c.connected(ctx)
	if err != nil {
		return nil, err
	}
	var room [4]proto.NodeID
	failed, unreadable := 0, 0
	var rejected, damaged error
	for {
		partition := int(key % uint64(v.np()))
		cells := c.readCells(v, partition, room[:0])
		failures := failed
		for _, id := range cells {
			conn, err := c.storage(ctx, v, id)
			if err != nil {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				failed++
				continue
			}
			p, err := conn.Call(ctx, req)
			if err == nil && check != nil {
				if err = check(p); err != nil {
					if err != errNextCell {
						failed++
						rejected = fmt.Errorf("answer of storage %v: %w", id, err)
						c.log.Error("bad answer", "storage", id, "err", err)
					}
					continue
				}
			}
			if err == nil {
				return p, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if pe, ok := errors.AsType[*proto.Error](err); ok {
				switch pe.ErrCode {
				case proto.NonReadableCell:
					if pe.Message != "" { // so storages call damage too
						damaged = fmt.Errorf("storage %v: %s: %w", id, pe.Message, ErrChecksum)
					}
				case proto.NotReady:
					failed++
				default:
					return nil, fromWire(pe)
				}
				continue
			}
			failed++
		}
		session := v.session
		if v = c.view.Load(); v == nil || v.session != session {
			if c.ctx.Err() != nil {
				return nil, ErrClosed
			}
			return nil, ErrMasterLost
		}
		if failed > len(cells) {
			if rejected != nil {
				return nil, rejected
			}
			return nil, fmt.Errorf("read partition %d: %w", partition, ErrNoStorage)
		}
		// Let the master tell what has changed, instead of spinning.
		if err := c.ping(ctx, v); err != nil {
			return nil, err
		}
		before := v
		if v = c.view.Load(); v == nil || v.session != session {
			return nil, ErrMasterLost
		}
		if v != before || failed > failures {
			unreadable = 0
			continue
		}
		// The storages may know less than the master for a moment, but what is
		// damaged stays so.
		if unreadable++; damaged != nil && unreadable > len(cells) || unreadable == unreadableRounds {
			if damaged == nil {
				damaged = ErrNoStorage
			}
			return nil, fmt.Errorf("read partition %d: %w", partition, damaged)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Duration(unreadable) * unreadablePause):
		}
	}
}

// Storages that all refuse to be read, according to a partition table that does not
// change, are asked so often, with pauses that grow by this.
const (
	unreadableRounds = 20
	unreadablePause  = 10 * time.Millisecond
)

// readAs is read for one type of answer.
func readAs[A proto.Packet](ctx context.Context, c *Client, key uint64, req proto.Request) (A, error) {
	var none A
	p, err := c.read(ctx, key, req, func(p proto.Packet) error {
		if _, ok := p.(A); !ok {
			return fmt.Errorf("%T answered with %T", req, p)
		}
		return nil
	})
	if err != nil {
		return none, err
	}
	return p.(A), nil
}

// steady calls what reads history, which does not change, again when the master
// was lost meanwhile.
func steady[T any](ctx context.Context, read func() (T, error)) (T, error) {
	for {
		v, err := read()
		if !errors.Is(err, ErrMasterLost) || ctx.Err() != nil {
			return v, err
		}
	}
}

// post makes a request to one readable cell of a partition without waiting, to be
// sent by Flush, and returns the link, nil if none is open; the caller then takes the slow way,
// [Client.read]. If the link ends without the tag having been told, the request
// came too late.
func (c *Client) post(v *view, partition int, req proto.Request, tag asked) *link.Conn {
	var room [4]proto.NodeID
	for _, id := range c.readCells(v, partition, room[:0]) {
		s := &c.storages
		s.mu.RLock()
		l := s.links[id]
		s.mu.RUnlock()
		if l == nil {
			continue
		}
		select {
		case <-l.done:
			if l.conn != nil {
				l.conn.AskLater(req, tag)
				return l.conn
			}
		default:
		}
	}
	return nil
}

var _ asked = (*lastTIDAsked)(nil)

// answerError returns why a request that was posted has no answer of its own.
func answerError(ev link.Event) error {
	if pe, ok := ev.Packet.(*proto.Error); ok {
		return pe
	}
	if ev.Err != nil {
		return ev.Err
	}
	return fmt.Errorf("%T answered with %T", ev.Asked.Request, ev.Packet)
}
