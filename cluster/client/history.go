package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var _ txn.Database = (*Client)(nil)

// Revisions implements [txn.Database]. Sizes are those of the stored data, compressed.
func (c *Client) Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	if n <= 0 {
		return nil, nil
	}
	a, err := readAs[*proto.AnswerObjectHistory](ctx, c, uint64(oid), &proto.AskObjectHistory{OID: oid, First: 0, Last: n})
	if errors.Is(err, txn.ErrNotFound) {
		err = txn.ErrNoSuchObject
	}
	if err != nil {
		return nil, fmt.Errorf("history: %w", &ObjectError{oid, tid.Zero, err})
	}
	list := make([]txn.Info, len(a.History))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for i, r := range a.History {
		g.Go(func() error {
			info, err := c.TransactionInfo(ctx, r.TID)
			if err != nil {
				return fmt.Errorf("history of object %v: %w", oid, err)
			}
			list[i] = *info
			list[i].Size = int64(r.Size)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return list, nil
}

const (
	leastTIDs = 16 // asked for at once, of a partition
	mostTIDs  = 1000
)

// Backwards implements [txn.Database]. Positions in AskTIDs count within a partition,
// so each partition has its own and the answers are merged.
func (c *Client) Backwards(ctx context.Context) iter.Seq2[*txn.Info, error] {
	return func(yield func(*txn.Info, error) bool) {
		v, err := c.connected(ctx)
		if err != nil {
			yield(nil, fmt.Errorf("transactions backwards: %w", err))
			return
		}
		lists := make([]backList, v.np())
		for ahead := 1; ; {
			// Refill what has run out.
			g, gctx := errgroup.WithContext(ctx)
			g.SetLimit(16)
			for p := range lists {
				l := &lists[p]
				if len(l.tids) > 0 || l.end {
					continue
				}
				chunk := min(max(leastTIDs, l.pos), mostTIDs) // twice as many in all
				g.Go(func() error {
					a, err := steady(gctx, func() (*proto.AnswerTIDs, error) {
						return readAs[*proto.AnswerTIDs](gctx, c, uint64(p), &proto.AskTIDs{First: l.pos, Last: l.pos + chunk, Partition: uint32(p)})
					})
					if err != nil {
						return err
					}
					l.pos += len(a.TIDs)
					l.end = len(a.TIDs) < chunk
					// Commits since the previous chunk have shifted the positions.
					before := l.lastOr()
					if len(a.TIDs) > 0 {
						l.last = min(a.TIDs[len(a.TIDs)-1], before)
					}
					l.tids = slices.DeleteFunc(a.TIDs, func(t tid.TID) bool { return t >= before })
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				yield(nil, fmt.Errorf("transactions backwards: %w", err))
				return
			}
			// Take the greatest heads, as far as none of a list that has run out may be
			// between them, and ask for several at the same time: more and more, since
			// most callers need few.
			var next []tid.TID
			again := false
			for len(next) < ahead && !again {
				best := -1
				for p := range lists {
					switch l := &lists[p]; {
					case len(l.tids) == 0:
						again = again || !l.end
					case best < 0 || l.tids[0] > lists[best].tids[0]:
						best = p
					}
				}
				if again || best < 0 {
					break
				}
				next = append(next, lists[best].tids[0])
				lists[best].tids = lists[best].tids[1:]
			}
			if len(next) == 0 {
				if again {
					continue
				}
				return
			}
			infos := make([]*txn.Info, len(next))
			errs := make([]error, len(next))
			var wg errgroup.Group
			wg.SetLimit(16)
			for i, t := range next {
				wg.Go(func() error {
					infos[i], errs[i] = c.TransactionInfo(ctx, t)
					return nil
				})
			}
			wg.Wait() // the errors are in errs
			for i, info := range infos {
				if errs[i] != nil {
					yield(nil, fmt.Errorf("transactions backwards: %w", errs[i]))
					return
				}
				if !yield(info, nil) {
					return
				}
			}
			ahead = min(2*ahead, mostAhead)
		}
	}
}

// mostAhead is for how many transactions an iteration backwards asks at the same time.
const mostAhead = 64

// backList is the part of a partition that was asked for and not yet used.
type backList struct {
	tids []tid.TID // descending
	pos  int
	last tid.TID // the smallest seen
	end  bool
}

func (l *backList) lastOr() tid.TID {
	if l.last == tid.Zero {
		return tid.Max
	}
	return l.last
}

// OIDs implements [txn.Database].
func (c *Client) OIDs(ctx context.Context, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error] {
	return func(yield func(tid.OID, error) bool) {
		v, err := c.connected(ctx)
		if err != nil {
			yield(0, err)
			return
		}
		if last, err := c.LastTID(ctx); err != nil {
			yield(0, err)
			return
		} else {
			at = min(at, last)
		}
		if at == tid.Zero {
			return
		}
		type list struct {
			oids []tid.OID
			next tid.OID
			end  bool
		}
		lists := make([]list, v.np())
		for p := range lists {
			lists[p].next = from
		}
		for {
			g, gctx := errgroup.WithContext(ctx)
			g.SetLimit(16)
			for p := range lists {
				l := &lists[p]
				if len(l.oids) > 0 || l.end {
					continue
				}
				g.Go(func() error {
					for len(l.oids) == 0 && !l.end {
						a, err := steady(gctx, func() (*proto.AnswerOIDsFrom, error) {
							return readAs[*proto.AnswerOIDsFrom](gctx, c, uint64(p), &proto.AskOIDsFrom{Partition: p, Length: 1000, Min: l.next, At: at})
						})
						if err != nil {
							return fmt.Errorf("object ids of partition %d: %w", p, err)
						}
						l.oids = a.OIDs
						l.end = !a.Next.OK
						if a.Next.OK && a.Next.V <= l.next && !l.end {
							return fmt.Errorf("object ids of partition %d: %v follows %v", p, a.Next.V, l.next)
						}
						l.next = a.Next.V
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				yield(0, err)
				return
			}
			for { // until a list has run out
				best := -1
				out := false
				for p := range lists {
					switch l := &lists[p]; {
					case len(l.oids) == 0:
						out = out || !l.end
					case best < 0 || l.oids[0] < lists[best].oids[0]:
						best = p
					}
				}
				if out {
					break
				}
				if best < 0 {
					return
				}
				oid := lists[best].oids[0]
				lists[best].oids = lists[best].oids[1:]
				if !yield(oid, nil) {
					return
				}
			}
		}
	}
}
