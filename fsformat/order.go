package fsformat

import (
	"context"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
)

// Renumbered is a transaction that Options.Renumber has given another id.
type Renumbered struct {
	Pos      int64 // of the transaction
	Old, New tid.TID
}

// Renumbered returns the transactions with other ids than in the file, in its order.
// It reads the heads of all transactions, once. It is empty without Options.Renumber,
// and must not be changed.
func (r *Reader) Renumbered(ctx context.Context) ([]Renumbered, error) {
	if !r.opt.Renumber {
		return nil, nil
	}
	_, err := r.Tail(ctx)
	return r.renumbered, err
}

// idAt returns the id of the transaction at pos, which the file says is stored.
func (r *Reader) idAt(pos int64, stored tid.TID) tid.TID {
	if len(r.renumbered) == 0 {
		return stored
	}
	i, found := slices.BinarySearchFunc(r.renumbered, pos, func(x Renumbered, pos int64) int { return int(min(max(x.Pos-pos, -1), 1)) })
	if found && r.renumbered[i].Old == stored {
		return r.renumbered[i].New
	}
	return stored
}

// parseHeader is parseHeader with the id that the reader gives the transaction.
func (r *Reader) parseHeader(b []byte, pos int64) Header {
	h := parseHeader(b, pos)
	h.TID = r.idAt(pos, h.stored)
	return h
}

// CheckOrder verifies, by the heads of the transactions alone, that the ids of those
// behind a transaction increase up to the end of the file. Before a copy: iteration
// up to the last transaction ends early where one is greater than the last, and a
// copy that is refused midway has written half a database. The error is a
// [*CorruptError] of kind [ErrOrder] if not.
func (r *Reader) CheckOrder(ctx context.Context, after tid.TID) error {
	if r.opt.Renumber {
		_, err := r.Tail(ctx)
		return err
	}
	pos, last, err := r.seek(ctx, after)
	if err != nil {
		return err
	}
	_, err = r.tailFromStart(ctx, pos, last)
	return err
}

// Order says how the ids of the finished transactions of a file follow each other.
type Order struct {
	First, Last, Greatest tid.TID // in the order of the file; 0 if it has none
	Transactions          int64
	Wrong                 int64         // transactions whose id is not above that of the one before
	FirstWrong            *CorruptError // the first of them, nil if there is none
}

// Order reads the heads of all transactions.
func (r *Reader) Order(ctx context.Context) (Order, error) {
	var o Order
	s := r.newScanner(magicLen, 0)
	for {
		if o.Transactions%1024 == 0 && ctx.Err() != nil {
			return o, ctx.Err()
		}
		last := s.last
		s.last = 0 // any id will do
		h, err := s.next()
		if h == nil || err != nil {
			return o, err
		}
		o.Transactions++
		if h.TID <= last {
			o.Wrong++
			if o.FirstWrong == nil {
				o.FirstWrong = r.outOfOrder(h.Pos, h.TID, "its id is not above that of the previous transaction, %v", last)
			}
		}
		if h.Status == statusUndone {
			continue
		}
		if o.First == 0 {
			o.First = h.TID
		}
		o.Last, o.Greatest = h.TID, max(o.Greatest, h.TID)
	}
}
