package reader

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

const (
	// firstAhead and mostAhead are how much an iteration reads at once, at first and at most.
	firstAhead = 256 << 10
	mostAhead  = 4 << 20
	// maxKept is how many bytes of the records of one transaction are kept in memory, so that they can
	// be yielded again. What is beyond is read again where it lies.
	maxKept = 8 << 20
	// manyText is after how many bytes of text an iteration reads whole segments ahead.
	manyText = 32 << 20
)

// event is a step through the history, and the segment in which it is.
type event struct {
	snapshot.Event
	s *segment
}

// walk yields the steps through the transactions of (after, upTo]. The last step of a transaction
// has neither Txn nor Record. It reads only what has them. read, if it is set, is told before each
// segment how much text of others was walked through, and ends the walk with false.
func (d *Database) walk(ctx context.Context, v *view, after, upTo tid.TID, read func(s *segment, text int64) bool) iter.Seq2[event, error] {
	return func(yield func(event, error) bool) {
		upTo := min(upTo, v.at)
		text := int64(0)
		open := false // a transaction is
		for _, s := range v.segs {
			from, end := s.span()
			if end <= after || s.first() > upTo {
				continue
			}
			goesOn := from == end && s.gap == nil
			if open && !goesOn {
				yield(event{}, fmt.Errorf("%w: the end of a transaction that %s goes on with", backup.ErrIncomplete, s.l.Key))
				return
			}
			if read != nil && !open && !read(s, text) {
				return
			}
			o, err := s.open(ctx)
			if err != nil {
				yield(event{}, err)
				return
			}
			ra := txn.ReadAheadOf(ctx)
			taken := 0
			w := &window{ctx: ctx, s: s, o: o, ahead: firstAhead, end: o.r.Footer().IndexAt, grow: func(n int64) int64 {
				if more := min(2*n, mostAhead); more > n && ra.Take(int(more-n)) {
					taken += int(more - n)
					return more
				}
				return n
			}}
			ok := func() bool {
				defer func() { ra.Give(taken) }()
				for e, err := range o.r.With(w).WalkAfter(after) {
					if err == nil && e.Txn != nil && e.Txn.TID > min(end, upTo) {
						return true
					}
					if err == nil && ctx.Err() != nil {
						err = context.Cause(ctx)
					}
					if err == nil && e.Txn == nil && !open && !goesOn {
						err = fmt.Errorf("%s: %w: the beginning of a transaction", s.l.Key, backup.ErrIncomplete)
					}
					open = e.Txn != nil || e.Record != nil
					if !yield(event{e, s}, err) || err != nil {
						return false
					}
				}
				return true
			}()
			if !ok {
				return
			}
			text += s.l.Text
		}
		if open {
			yield(event{}, fmt.Errorf("%w: the end of the last transaction", backup.ErrIncomplete))
		}
	}
}

// infos yields the transactions of (after, upTo], oldest first, with all objects that they
// changed.
func (d *Database) infos(ctx context.Context, v *view, after, upTo tid.TID) iter.Seq2[*txn.Info, error] {
	return func(yield func(*txn.Info, error) bool) {
		var info txn.Info
		for e, err := range d.walk(ctx, v, after, upTo, nil) {
			switch {
			case err != nil:
				yield(nil, err)
				return
			case e.Txn != nil:
				info = infoOf(e.Txn)
			case e.Record != nil:
				info.OIDs = append(info.OIDs, e.Record.OID)
			default:
				if !yield(&info, nil) {
					return
				}
			}
		}
	}
}

// Transactions implements [txn.History]. What is read of a damaged segment up to the damage is
// right.
func (d *Database) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for try := 0; ; {
			v := d.current()
			again := false
			for t, err := range d.transactions(ctx, v, after, upTo) {
				if err != nil {
					var e error
					if e, again = d.again(ctx, v, err, &try); again {
						break
					}
					yield(nil, d.failed(ctx, e))
					return
				}
				after, try = t.TID, 0
				if !yield(t, nil) {
					return
				}
			}
			if !again {
				return
			}
		}
	}
}

// transactions is Transactions in a view. It begins with what is needed of each segment, and goes
// on with whole segments.
func (d *Database) transactions(ctx context.Context, v *view, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		var whole *segment
		var t *txn.Transaction
		var list *kept
		for e, err := range d.walk(ctx, v, after, upTo, func(s *segment, text int64) bool {
			_, end := s.span()
			if text > manyText && end <= min(upTo, v.at) {
				whole = s
			}
			return whole == nil
		}) {
			switch {
			case err != nil:
				yield(nil, err)
				return
			case e.Txn != nil:
				list = &kept{ctx: ctx, d: d, v: v}
				t = e.Txn
				t.Records = list.each
			case e.Record != nil:
				list.add(e)
			default:
				if !yield(t, nil) {
					return
				}
				after = t.TID
			}
		}
		if whole == nil {
			return
		}
		from, _ := whole.span()
		resolve := func(oid tid.OID, at tid.TID) ([]byte, error) { return d.dataOf(ctx, v, oid, at) }
		for t, err := range d.repo.Transactions(ctx, d.keys, v.state, max(after, from), min(upTo, v.at), backup.FetchOptions{Scratch: d.files.dir, Parallel: 4}, resolve) {
			if !yield(t, err) || err != nil {
				return
			}
		}
	}
}

// dataOf returns the data of the revision that a transaction made, nil if it has none.
func (d *Database) dataOf(ctx context.Context, v *view, oid tid.OID, at tid.TID) ([]byte, error) {
	h, err := d.exactly(ctx, v, oid, at)
	if errors.Is(err, txn.ErrNotFound) {
		return nil, &snapshot.CorruptError{Name: v.state.Lineage.String(), Offset: -1, Err: fmt.Errorf("the history does not have object %v of transaction %v, which a later one copies", oid, at)}
	}
	if err != nil {
		return nil, err
	}
	return d.load(ctx, v, h)
}

// kept are the records of a transaction.
type kept struct {
	ctx  context.Context
	d    *Database
	v    *view
	size int
	list []keptRecord
}

type keptRecord struct {
	snapshot.Record
	pos   int64
	s     *segment
	later bool // the data are read when they are asked for
}

func (k *kept) add(e event) {
	r := keptRecord{Record: *e.Record, pos: e.Pos, s: e.s}
	if r.Kind == snapshot.HasData {
		if r.later = k.size+len(r.Data) > maxKept; r.later {
			r.Data = nil
		} else {
			r.Data = append([]byte{}, r.Data...)
			k.size += len(r.Data)
		}
	}
	k.list = append(k.list, r)
}

// each is a [txn.Transaction.Records].
func (k *kept) each(yield func(*txn.Record, error) bool) {
	for i := range k.list {
		r := &k.list[i]
		rec := &txn.Record{OID: r.OID, TID: r.TID, DataTID: r.DataTID, Data: r.Data}
		var err error
		switch {
		case r.later:
			var found *snapshot.Record
			if found, err = k.d.record(k.ctx, hit{snapshot.Entry{OID: r.OID, TID: r.TID, Pos: r.pos, Kind: r.Kind}, r.s}); err == nil {
				rec.Data = found.Data
			}
		case r.Kind == snapshot.Copied:
			if rec.Data, err = k.d.dataOf(k.ctx, k.v, r.OID, r.DataTID); err != nil {
				err = fmt.Errorf("object %v of transaction %v: %w", r.OID, r.TID, err)
			}
		}
		if err != nil {
			yield(nil, k.d.failed(k.ctx, err))
			return
		}
		if !yield(rec, nil) {
			return
		}
	}
}

// Backwards implements [txn.Database].
func (d *Database) Backwards(ctx context.Context) iter.Seq2[*txn.Info, error] {
	return func(yield func(*txn.Info, error) bool) {
		last := d.At()
		for try := 0; ; {
			v := d.current()
			again := false
			for info, err := range d.backwards(ctx, v, last) {
				if err != nil {
					var e error
					if e, again = d.again(ctx, v, err, &try); again {
						break
					}
					yield(nil, d.failed(ctx, e))
					return
				}
				last, try = info.TID-1, 0
				if !yield(info, nil) {
					return
				}
			}
			if !again {
				return
			}
		}
	}
}

// backwards yields the transactions up to one, newest first, a frame at a time.
func (d *Database) backwards(ctx context.Context, v *view, last tid.TID) iter.Seq2[*txn.Info, error] {
	return func(yield func(*txn.Info, error) bool) {
		last := min(last, v.at)
		var rest []tid.OID // of a transaction that began in an earlier segment
		for _, s := range slices.Backward(v.segs) {
			from, end := s.span()
			if s.first() > last {
				continue
			}
			if from == end && s.gap == nil {
				oids, err := d.goesOn(ctx, s)
				if err != nil {
					yield(nil, err)
					return
				}
				rest = append(oids, rest...)
				continue
			}
			o, err := s.open(ctx)
			if err != nil {
				yield(nil, err)
				return
			}
			r := o.r.With(&cachedReader{ctx, s, o})
			for hi := min(last, end, r.Footer().Last); hi > 0; {
				lo := r.FrameBefore(hi + 1)
				if lo == tid.Zero {
					break
				}
				var list []txn.Info
				for e, err := range r.WalkAfter(lo - 1) {
					if err == nil {
						err = ctx.Err()
					}
					if err != nil {
						yield(nil, err)
						return
					}
					if e.Txn != nil && e.Txn.TID > hi {
						break
					}
					switch {
					case e.Txn != nil:
						list = append(list, infoOf(e.Txn))
					case e.Record != nil && len(list) > 0:
						i := &list[len(list)-1]
						i.OIDs = append(i.OIDs, e.Record.OID)
					}
				}
				for i := range slices.Backward(list) {
					if i == len(list)-1 && list[i].TID == end {
						list[i].OIDs = append(list[i].OIDs, rest...)
					}
					if !yield(&list[i], nil) {
						return
					}
				}
				rest = nil
				hi = lo - 1
			}
		}
	}
}

// goesOn returns the objects of the transaction with which a segment goes on.
func (d *Database) goesOn(ctx context.Context, s *segment) (oids []tid.OID, err error) {
	r, err := s.reader(ctx)
	if err != nil {
		return nil, err
	}
	for e, err := range r.WalkAfter(s.first() - 1) {
		if err != nil {
			return nil, err
		}
		if e.Record != nil {
			oids = append(oids, e.Record.OID)
		}
	}
	return oids, nil
}

// OIDs implements [txn.Database]. It needs the index of all segments, and waits until it is there
// if that can be.
func (d *Database) OIDs(ctx context.Context, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error] {
	return func(yield func(tid.OID, error) bool) {
		for try := 0; ; {
			err := d.Filled(ctx)
			v := d.current()
			if err == nil {
				for oid, e := range d.oids(ctx, v, at, from) {
					if err = e; err != nil {
						break
					}
					from = oid + 1
					if !yield(oid, nil) {
						return
					}
				}
			}
			if err == nil {
				return
			}
			again, ok := d.again(ctx, v, err, &try)
			if !ok {
				yield(0, d.failed(ctx, again))
				return
			}
		}
	}
}

// oids is OIDs in a view.
func (d *Database) oids(ctx context.Context, v *view, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error] {
	return func(yield func(tid.OID, error) bool) {
		at := min(at, v.at)
		var lists []iter.Seq2[located, error]
		var base []int
		n := 0
		for i := range v.steps {
			s := &v.steps[i]
			if s.first() > at {
				break
			}
			lists = append(lists, d.entries(ctx, s, from))
			base = append(base, n)
			n += len(s.segs)
		}
		known := false
		var last tid.OID
		for e, err := range merged(lists, base) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(0, err)
				return
			}
			if e.TID > at || known && e.OID == last {
				continue
			}
			last, known = e.OID, true
			if e.Kind != snapshot.NoData && !yield(e.OID, nil) {
				return
			}
		}
	}
}

// entries yields the index of a step from an object on.
func (d *Database) entries(ctx context.Context, s *step, from tid.OID) iter.Seq2[located, error] {
	return func(yield func(located, error) bool) {
		if s.run != nil {
			for e, err := range s.run.entries(from) {
				if err != nil {
					err = &runError{s.run, err}
				}
				if !yield(e, err) || err != nil {
					return
				}
			}
			return
		}
		for e, err := range s.segs[0].entries(ctx, from, sealedChunk) {
			if !yield(located{Entry: e}, err) {
				return
			}
		}
	}
}

// entries yields the index of a segment from an object on, as far as it is used. It reads so many
// bytes at once.
func (s *segment) entries(ctx context.Context, from tid.OID, ahead int64) iter.Seq2[snapshot.Entry, error] {
	return func(yield func(snapshot.Entry, error) bool) {
		o, err := s.open(ctx)
		if err != nil {
			yield(snapshot.Entry{}, err)
			return
		}
		f := o.r.Footer()
		_, end := s.span()
		w := &window{ctx: ctx, s: s, o: o, ahead: ahead, end: f.DirectoryAt}
		for e, err := range o.r.With(w).EntriesFrom(from) {
			if err == nil && e.TID > end {
				continue
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}
