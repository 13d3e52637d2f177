package fsformat

import (
	"context"
	"fmt"
	"iter"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Transactions implements [txn.History]: it yields the finished transactions in
// (after, upTo], oldest first, with their records in the order of the file. Those
// undone in place (status 'u') are left out; an incomplete end is where the
// iteration ends, see [Reader.Tail].
func (r *Reader) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return plain(r.Scan(ctx, after, upTo))
}

func plain(scan iter.Seq2[*Transaction, error]) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for tr, err := range scan {
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(&tr.Transaction, nil) {
				return
			}
		}
	}
}

// Transaction is a transaction with its place in the file. It and all it refers
// to are valid only until the next step of the iteration.
type Transaction struct {
	txn.Transaction
	Head Header
	// Places yields the heads of the data records, in the order of the file.
	Places iter.Seq2[*RecordHeader, error]
}

// Scan is [Reader.Transactions] with the places of transactions and records.
func (r *Reader) Scan(ctx context.Context, after, upTo tid.TID) iter.Seq2[*Transaction, error] {
	return r.scan(ctx, after, upTo, nil)
}

// scan is Scan that tells c, if not nil, of the records whose pointer to the previous
// one does not agree. An error of c ends it.
func (r *Reader) scan(ctx context.Context, after, upTo tid.TID, c *Checked) iter.Seq2[*Transaction, error] {
	return func(yield func(*Transaction, error) bool) {
		if _, err := r.Renumbered(ctx); err != nil {
			yield(nil, err)
			return
		}
		pos, last, err := r.seek(ctx, after)
		if err != nil {
			yield(nil, err)
			return
		}
		s := r.newScanner(pos, last)
		if c != nil {
			s.lineage = r.newLineage(pos, c.tell)
			s.lineage.known = c.known
		}
		var t Transaction
		for passed := 0; ; {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			h, err := s.next()
			if err == nil && h != nil {
				err = s.trailer(h)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if h == nil {
				return
			}
			r.places.note(h, r.size)
			if passed < maxPassed && !r.opt.Renumber {
				r.places.pass(h)
				passed++
			}
			if h.TID <= after || h.Status == statusUndone {
				continue
			}
			if h.TID > upTo {
				// The last transaction, and what else is asked for, may come after it; or it is
				// one that a server has finished since.
				if tail, err := r.Tail(ctx); err == nil && tail.LastTID <= upTo && h.Pos < tail.End {
					yield(nil, r.outOfOrder(h.Pos, h.TID, "its id is above that of the last transaction of the file, %v", tail.LastTID))
				}
				return
			}
			if err := s.fillIn(&t, h); err != nil {
				yield(nil, err)
				return
			}
			if !yield(&t, nil) {
				return
			}
			if s.lineage != nil {
				if err := s.lineage.end(s, h); err != nil {
					yield(nil, err)
					return
				}
			}
		}
	}
}

// ScanBackwards yields all finished transactions, newest first.
func (r *Reader) ScanBackwards(ctx context.Context) iter.Seq2[*Transaction, error] {
	return func(yield func(*Transaction, error) bool) {
		tail, err := r.Tail(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		var t Transaction
		s := r.newScanner(tail.End, 0)
		last := tid.Invalid
		for end, passed := tail.End, 0; end > magicLen; {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			h, ok, err := r.lastBefore(end)
			switch {
			case err != nil:
			case !ok:
				err = r.corrupt(end-trailerLen, 0, "no transaction ends here")
			case !validStatus(h.Status) && !r.opt.AnyStatus || h.Status == statusVoted:
				err = r.corrupt(h.Pos, h.TID, "invalid status %q", h.Status)
			case h.TID >= last:
				err = r.outOfOrder(h.Pos, h.TID, "its id is not below that of the next transaction, %v", last)
			case h.Status == statusUndone:
				end, last = h.Pos, h.TID
				continue
			default:
				end, last = h.Pos, h.TID
				if passed < maxPassed && !r.opt.Renumber {
					r.places.pass(&h)
					passed++
				}
				s.head = h
				err = s.fillIn(&t, &h)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(&t, nil) {
				return
			}
		}
	}
}

// fillIn makes t the transaction of h.
func (s *scanner) fillIn(t *Transaction, h *Header) error {
	user, desc, ext, err := s.metadata()
	if err != nil {
		return err
	}
	t.Head = *h
	t.Transaction = txn.Transaction{
		TID: h.TID, Status: h.Status, User: user, Description: desc, Extension: ext,
	}
	if h.Status != txn.Committed && h.Status != txn.Packed {
		t.Transaction.Status = txn.Committed // asked for by AnyStatus
	}
	head := *h
	t.Places = func(yield func(*RecordHeader, error) bool) {
		var rec RecordHeader
		for pos := head.First(); ; pos = rec.End() {
			ok, err := s.record(&head, pos, &rec)
			if err != nil {
				yield(nil, err)
				return
			}
			if !ok || !yield(&rec, nil) {
				return
			}
		}
	}
	t.Records = func(yield func(*txn.Record, error) bool) {
		var rec RecordHeader
		var out txn.Record
		for pos := head.First(); ; pos = rec.End() {
			ok, err := s.record(&head, pos, &rec)
			if err == nil && s.lineage != nil {
				err = s.lineage.next(&head, pos, &rec, ok)
			}
			if err == nil && ok {
				err = s.load(&rec, &out)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !ok || !yield(&out, nil) {
				return
			}
		}
	}
	return nil
}

// load reads the data of a record, directly or through its back-pointer.
func (s *scanner) load(rec *RecordHeader, out *txn.Record) error {
	*out = txn.Record{OID: rec.OID, TID: rec.TID}
	if rec.DataLen > 0 {
		b, err := s.w.data(rec.DataPos(), rec.DataLen, &s.big)
		if err != nil {
			return fmt.Errorf("%s: reading the data of object %v in transaction %v at offset %d: %w", s.r.name, rec.OID, rec.TID, rec.Pos, err)
		}
		out.Data = b[:len(b):len(b)]
		return nil
	}
	if rec.Back == 0 {
		return nil
	}
	var target RecordHeader
	if err := s.r.follow(rec, &target); err != nil {
		return err
	}
	out.DataTID = target.TID
	data, err := s.r.resolve(&target, &s.big)
	out.Data = data
	return err
}
