package backup

import (
	"context"
	"fmt"
	"iter"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Resolve returns the data of the revision that transaction at made of an object, nil if it
// is one without data.
type Resolve func(oid tid.OID, at tid.TID) ([]byte, error)

// maxKept is how many bytes of records of one transaction are kept in memory, so that they
// can be yielded again. What is beyond is read again.
const maxKept = 8 << 20

// Transactions yields the history of a state in (after, upTo], whole transactions also where
// segments cut them. A record that copies an earlier revision has its DataTID, and the data
// that resolve gives; without resolve it has none. It ends at the first error; a gap
// is an [ErrIncomplete].
func (r *Repository) Transactions(ctx context.Context, k *Keys, s *State, after, upTo tid.TID, o FetchOptions, resolve Resolve) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		h := &history{resolve: resolve, skip: o.SkipGaps}
		h.next, h.stop = iter.Pull2(h.events(r.fetchParts(ctx, k, s, after, upTo, o)))
		defer h.close()
		for {
			ok, err := h.transaction(after, upTo, yield)
			if err != nil {
				yield(nil, err)
				return
			}
			if !ok {
				return
			}
		}
	}
}

// history is an iteration through segments.
type history struct {
	next    func() (event, error, bool)
	stop    func()
	resolve Resolve
	skip    bool // gaps

	parts []*Fetched // that the current transaction is in
}

// event is a step, and the segment in which it is.
type event struct {
	snapshot.Event
	in *Fetched
}

// events yields the steps of all segments. A segment is closed when a transaction begins in a
// later one.
func (h *history) events(parts iter.Seq2[*Fetched, error]) iter.Seq2[event, error] {
	return func(yield func(event, error) bool) {
		continued := false
		var upto tid.TID
		for f, err := range parts {
			if err != nil {
				yield(event{}, err)
				return
			}
			h.parts = append(h.parts, f)
			if f.Part.Gap != nil && h.skip {
				continue
			}
			if f.Part.Gap != nil {
				g := f.Part.Gap
				yield(event{}, fmt.Errorf("transactions after %v up to %v: %w: %s", g.After, g.Upto, ErrIncomplete, g.Note))
				return
			}
			hdr, err := f.Header()
			if err == nil && hdr.Continues != continued {
				err = fmt.Errorf("%s: %w: the other part of transaction %v", f.Part.Segment.Key, ErrIncomplete, max(upto, hdr.After))
			}
			if err != nil {
				yield(event{}, err)
				return
			}
			continued, upto = hdr.Continued, hdr.Upto
			end := f.Part.Segment.End()
			for e, err := range f.Walk() {
				if err == nil && e.Txn != nil && e.Txn.TID > end {
					continued = false
					break // the rest is not used, nor are other segments of the last transaction
				}
				if !yield(event{e, f}, err) || err != nil {
					return
				}
			}
		}
		if continued {
			yield(event{}, fmt.Errorf("%w: the end of transaction %v", ErrIncomplete, upto))
		}
	}
}

func (h *history) close() {
	h.stop()
	for _, f := range h.parts {
		f.Close()
	}
	h.parts = nil
}

// transaction yields the next transaction. It returns false at the end.
func (h *history) transaction(after, upTo tid.TID, yield func(*txn.Transaction, error) bool) (bool, error) {
	e, err, ok := h.next()
	if err != nil || !ok {
		return false, err
	}
	for len(h.parts) > 0 && h.parts[0] != e.in {
		h.parts[0].Close()
		h.parts = h.parts[1:]
	}
	if e.Txn == nil {
		return true, nil // of a transaction that began before the first segment
	}
	t := *e.Txn
	if t.TID > upTo {
		return false, nil
	}
	l := &records{h: h}
	t.Records = l.each
	if t.TID > after && !yield(&t, nil) {
		return false, nil
	}
	return true, l.drain()
}

// records are those of the current transaction. They are read when they are asked for.
type records struct {
	h     *history
	kept  []txn.Record // the first ones
	size  int64        // of the data in kept
	later []located    // those that were not kept
	ended bool
	err   error
}

// located is where a record is.
type located struct {
	snapshot.Entry
	in *Fetched
}

// read reads the next record. ok is false at the end of the transaction.
func (l *records) read() (rec txn.Record, ok bool, err error) {
	if l.ended || l.err != nil {
		return rec, false, l.err
	}
	e, err, more := l.h.next()
	switch {
	case err != nil:
		l.err = err
		return rec, false, err
	case !more || e.Record == nil:
		l.ended = true
		return rec, false, nil
	}
	if rec, err = l.h.record(e.Record); err != nil {
		l.err = err
		return rec, false, err
	}
	if l.later == nil && l.size+int64(len(rec.Data)) <= maxKept {
		if e.Record.Kind == snapshot.HasData {
			rec.Data = append([]byte{}, rec.Data...)
		}
		l.size += int64(len(rec.Data)) + 64
		l.kept = append(l.kept, rec)
	} else {
		l.later = append(l.later, located{snapshot.Entry{OID: rec.OID, TID: rec.TID, Pos: e.Pos, Kind: e.Record.Kind}, e.in})
	}
	return rec, true, nil
}

// each is a [txn.Transaction.Records].
func (l *records) each(yield func(*txn.Record, error) bool) {
	for i := range l.kept {
		r := l.kept[i]
		if !yield(&r, nil) {
			return
		}
	}
	for i := range l.later {
		at := l.later[i]
		rec, err := at.in.Load(at.Entry)
		var r txn.Record
		if err == nil {
			r, err = l.h.record(rec)
		}
		if !yield(&r, err) || err != nil {
			return
		}
	}
	for {
		r, ok, err := l.read()
		if err != nil {
			yield(nil, err)
			return
		}
		if !ok || !yield(&r, nil) {
			return
		}
	}
}

// drain reads what the caller has not.
func (l *records) drain() error {
	for {
		if _, ok, err := l.read(); err != nil || !ok {
			return err
		}
	}
}

// record returns a record with its data.
func (h *history) record(r *snapshot.Record) (txn.Record, error) {
	rec := txn.Record{OID: r.OID, TID: r.TID, DataTID: r.DataTID}
	switch {
	case r.Kind == snapshot.HasData:
		rec.Data = r.Data
		if rec.Data == nil {
			rec.Data = []byte{}
		}
	case r.Kind == snapshot.Copied && h.resolve != nil:
		data, err := h.resolve(r.OID, r.DataTID)
		if err != nil {
			return rec, fmt.Errorf("object %v of transaction %v, a copy of that of %v: %w", r.OID, r.TID, r.DataTID, err)
		}
		rec.Data = data
	}
	return rec, nil
}
