package merge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// ScanOptions configures [Database.Scan]. A zero field takes the documented default.
type ScanOptions struct {
	// OnBad is asked what to do with a record that cannot be rewritten: it is left out if
	// skip is true, otherwise it has the data returned, merged numbers in it; nil is a
	// deletion. It is called by the goroutine that reads the records, each time that they are
	// read. Default: the error ends the records.
	OnBad func(bad *RecordError) (data []byte, skip bool)
	// Notes counts what merging changes. It must not be used while the iteration goes
	// on, but by the goroutine that iterates. Default: it is not counted.
	Notes *Notes
}

// Notes is what merging could not keep as it was. What is about records is counted as often as
// they were read.
type Notes struct {
	// Joined counts the transactions that became part of one with the same id of another source.
	Joined int64
	// Dropped counts those of them that had a user, a description or an extension which the
	// transaction that they are part of now does not have.
	Dropped int64
	// FirstDropped is the first of these.
	FirstDropped tid.TID
	// Foreign counts, by the name of the database, the references to databases that are no
	// source. They stay as they are. Names beyond the first 1000 count as [OtherNames].
	Foreign map[string]int64
	// Dangling counts the references to numbers that no object of the source has, since
	// they are above all of them. They became numbers that no object of the cluster will have.
	Dangling int64
}

// OtherNames is a key of [Notes.Foreign].
const OtherNames = "(other names)"

func (n *Notes) foreign(database string) {
	if n == nil {
		return
	}
	if n.Foreign == nil {
		n.Foreign = make(map[string]int64)
	}
	if _, ok := n.Foreign[database]; !ok && len(n.Foreign) >= 1000 {
		database = OtherNames
	}
	n.Foreign[database]++
}

// joined counts a transaction that became part of another one.
func (n *Notes) joined(kept, t *txn.Transaction) {
	if n == nil {
		return
	}
	n.Joined++
	lost := func(kept, own []byte) bool { return len(own) > 0 && !bytes.Equal(kept, own) }
	if lost(kept.User, t.User) || lost(kept.Description, t.Description) || lost(kept.Extension, t.Extension) {
		if n.Dropped++; n.Dropped == 1 {
			n.FirstDropped = t.TID
		}
	}
}

// LastTID implements [txn.History].
func (d *Database) LastTID(ctx context.Context) (tid.TID, error) { return d.last, ctx.Err() }

// Transactions implements [txn.History]. Those of several sources that have the same id
// are one: it has the records of all, and the rest from the source with the lowest
// Shift. An object that a source has twice in a transaction is there twice, in the same order:
// the last one counts.
func (d *Database) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return d.Scan(ctx, after, upTo, ScanOptions{})
}

// Scan is [Database.Transactions] that goes on behind bad records, and counts. Nothing of
// a single source that is given as it is can be bad or counted.
func (d *Database) Scan(ctx context.Context, after, upTo tid.TID, opt ScanOptions) iter.Seq2[*txn.Transaction, error] {
	if d.plain {
		return d.sources[0].plain(ctx, after, upTo)
	}
	return func(yield func(*txn.Transaction, error) bool) {
		var heads []head[*txn.Transaction]
		for i := range d.sources {
			s := &d.sources[i]
			if after >= min(upTo, s.Last) {
				continue
			}
			next, stop := iter.Pull2(s.transactions(ctx, after, upTo))
			defer stop()
			heads = append(heads, head[*txn.Transaction]{s: s, next: next})
		}
		var out txn.Transaction
		var parts []part
		records := func(yield func(*txn.Record, error) bool) { d.records(parts, &opt, yield) }
		for {
			var first tid.TID
			parts = parts[:0]
			for i := range heads {
				h := &heads[i]
				if err := h.fill(); err != nil {
					yield(nil, err)
					return
				}
				if !h.ok || len(parts) > 0 && h.item.TID > first {
					continue
				}
				if len(parts) == 0 || h.item.TID < first {
					parts, first = parts[:0], h.item.TID
				}
				parts = append(parts, part{h.s, h.item})
			}
			if len(parts) == 0 {
				return
			}
			out = *parts[0].t
			out.Records = records
			for _, p := range parts[1:] {
				opt.Notes.joined(parts[0].t, p.t)
			}
			if !yield(&out, nil) {
				return
			}
			for i := range heads {
				if heads[i].ok && heads[i].item.TID == first {
					heads[i].used = true
				}
			}
		}
	}
}

// A head is the transaction of a source that is next. It is valid until the one after it
// is asked for.
type head[T any] struct {
	s     *Source
	next  func() (T, error, bool)
	item  T
	ok    bool // there is one
	begun bool
	used  bool // it has been yielded
}

// fill makes item the next transaction if it is not.
func (h *head[T]) fill() (err error) {
	if h.begun && !h.used {
		return nil
	}
	h.begun, h.used = true, false
	h.item, err, h.ok = h.next()
	if err != nil {
		return err
	}
	return nil
}

// A part is what a source has of a merged transaction.
type part struct {
	s *Source
	t *txn.Transaction
}

func (p *part) records(yield func(*txn.Record, error) bool) { p.s.each(p.t, yield) }

func (d *Database) records(parts []part, opt *ScanOptions, yield func(*txn.Record, error) bool) {
	rw := d.rewriter(opt.Notes)
	defer d.release(rw)
	var out txn.Record
	for _, p := range parts {
		for r, err := range p.records {
			if err != nil {
				yield(nil, err)
				return
			}
			out = *r
			out.OID += p.s.Shift
			out.Data, err = rw.rewrite(p.s, r.OID, p.t.TID, r.Data)
			if bad, ok := errors.AsType[*RecordError](err); ok && opt.OnBad != nil {
				var skip bool
				if out.Data, skip = opt.OnBad(bad); skip {
					continue
				}
				out.DataTID, err = tid.Zero, nil // it no longer is what the other transaction has
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(&out, nil) {
				return
			}
		}
	}
}

// plain is Transactions of a source whose records are given as they are.
func (s *Source) plain(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		var out txn.Transaction
		var now *txn.Transaction
		// One function for all transactions, which must cost as little as can be.
		records := func(yield func(*txn.Record, error) bool) { s.each(now, yield) }
		for t, err := range s.transactions(ctx, after, upTo) {
			if err != nil {
				yield(nil, err)
				return
			}
			now, out = t, *t
			out.Records = records
			if !yield(&out, nil) {
				return
			}
		}
	}
}

// transactions yields those of the source up to Last, and verifies that their ids
// increase.
func (s *Source) transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		if upTo = min(upTo, s.Last); after >= upTo {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
			}
			return
		}
		last := after
		for t, err := range s.Database.Transactions(ctx, after, upTo) {
			switch {
			case err != nil:
				err = s.about(err)
			case t.TID <= last:
				err = s.about(fmt.Errorf("transaction %v comes after %v: the ids must increase", t.TID, last))
			case t.TID > upTo:
				err = s.about(fmt.Errorf("transaction %v comes after %v, though only those up to %v were asked for", t.TID, last, upTo))
			}
			if err != nil {
				yield(nil, err)
				return
			}
			last = t.TID
			if !yield(t, nil) {
				return
			}
		}
	}
}

// each yields the records of a transaction as they are, and verifies that their
// numbers are below Next.
func (s *Source) each(t *txn.Transaction, yield func(*txn.Record, error) bool) {
	if t.Records == nil {
		return
	}
	t.Records(func(r *txn.Record, err error) bool {
		switch {
		case err != nil:
			err = s.about(err)
		case r.OID >= s.Next:
			err = s.beyond(r.OID, fmt.Sprintf("in transaction %v", t.TID))
		default:
			return yield(r, nil)
		}
		yield(nil, err)
		return false
	})
}

// Backwards implements [txn.Database].
func (d *Database) Backwards(ctx context.Context) iter.Seq2[*txn.Info, error] {
	if d.plain {
		return d.sources[0].backwards(ctx)
	}
	return func(yield func(*txn.Info, error) bool) {
		var heads []head[*txn.Info]
		for i := range d.sources {
			s := &d.sources[i]
			next, stop := iter.Pull2(s.backwards(ctx))
			defer stop()
			heads = append(heads, head[*txn.Info]{s: s, next: next})
		}
		var out txn.Info
		var oids []tid.OID
		for {
			newest := -1 // place of the first head that is the newest
			for i := range heads {
				h := &heads[i]
				if err := h.fill(); err != nil {
					yield(nil, err)
					return
				}
				if h.ok && (newest < 0 || h.item.TID > heads[newest].item.TID) {
					newest = i
				}
			}
			if newest < 0 {
				return
			}
			out = *heads[newest].item
			out.Size, oids = 0, oids[:0]
			for i := newest; i < len(heads); i++ {
				h := &heads[i]
				if !h.ok || h.item.TID != out.TID {
					continue
				}
				h.used = true
				out.Size += h.item.Size
				oids = h.s.shift(oids, h.item.OIDs)
			}
			out.OIDs = oids
			if !yield(&out, nil) {
				return
			}
		}
	}
}

// shift appends the merged numbers of objects of the source.
func (s *Source) shift(to, own []tid.OID) []tid.OID {
	for _, oid := range own {
		to = append(to, oid+s.Shift)
	}
	return to
}

// backwards yields the transactions of the source up to Last, newest first, own numbers.
func (s *Source) backwards(ctx context.Context) iter.Seq2[*txn.Info, error] {
	return func(yield func(*txn.Info, error) bool) {
		if s.Last == tid.Zero {
			return
		}
		last := tid.Invalid
		for info, err := range s.Database.Backwards(ctx) {
			switch {
			case err != nil:
				err = s.about(err)
			case info.TID >= last:
				err = s.about(fmt.Errorf("transaction %v comes before %v: the ids must increase", info.TID, last))
			}
			if err != nil {
				yield(nil, err)
				return
			}
			last = info.TID
			if info.TID <= s.Last && !yield(info, nil) {
				return
			}
		}
	}
}
