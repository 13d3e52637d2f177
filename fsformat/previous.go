package fsformat

import (
	"context"
	"errors"
	"io/fs"
	"iter"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Every record says where the previous one of its object is. That is the only
// redundancy an object id has: if a bit of it changes, nothing else in the file does.

// previousAgrees reports whether the pointer of a record to the previous one of its
// object is right, if the newest record of the object before the transaction is at
// newest, 0 if there is none. A pack leaves 0 whatever there is. If it is not right,
// the object id or the pointer of this record, or the object id of the one it leads
// to, is damaged.
func previousAgrees(rec *RecordHeader, status byte, newest int64) bool {
	return rec.Prev == newest || rec.Prev == 0 && status == txn.Packed
}

// wrongPrevious describes a record whose pointer to the previous one does not
// agree, by what is where it leads. The error is about reading.
func (r *Reader) wrongPrevious(rec *RecordHeader) (*CorruptError, error) {
	var prev RecordHeader
	err := r.recordAt(rec.Prev, &prev)
	switch {
	case rec.Prev == 0:
		return r.corruptRecord(rec, rec.TID, "it is said to be the first record of the object, which has an earlier one"), nil
	case rec.Prev >= rec.Pos:
		return r.corruptRecord(rec, rec.TID, "its previous record is said to be at %d, where no earlier record can be", uint64(rec.Prev)), nil
	case errors.As(err, new(*fs.PathError)):
		return nil, r.badTarget(rec, "its previous record", err)
	case err != nil:
		return r.corruptRecord(rec, rec.TID, "its previous record is said to be at %d: %v", uint64(rec.Prev), err), nil
	case prev.OID != rec.OID:
		return r.corruptRecord(rec, rec.TID, "its previous record is said to be at %d, which is one of object %v: an object id is damaged", rec.Prev, prev.OID), nil
	}
	return r.corruptRecord(rec, rec.TID, "its previous record is said to be at %d, but there is a later one", rec.Prev), nil
}

// A lineage finds the records of a file, read from first to last, whose pointers to
// the previous record do not agree. It reads nothing for that and takes about 5
// bytes an object where ids are dense, as they are: it keeps 32 bits of each position.
type lineage struct {
	r      *Reader
	from   int64 // where the reading begins: of what is before, nothing is known
	report func(*CorruptError) error
	known  func(tid.OID) bool // whether an object is in what is before; may be nil
	pages  map[tid.OID]*lineagePage
	page   *lineagePage // the one used last
	pageID tid.OID

	records []written // of the transaction, as far as they were read
	whole   bool      // all were read
}

type lineagePage [64]uint32

func (r *Reader) newLineage(from int64, report func(*CorruptError) error) *lineage {
	return &lineage{r: r, from: from, report: report, pages: make(map[tid.OID]*lineagePage), pageID: tid.InvalidOID}
}

// next is told of the record at pos in a transaction, or that there is none any
// more. The records of a transaction may be gone through several times.
func (l *lineage) next(h *Header, pos int64, rec *RecordHeader, ok bool) error {
	if pos == h.First() {
		l.records, l.whole = l.records[:0], false
	}
	if !ok {
		l.whole = true
		return nil
	}
	l.records = append(l.records, written{rec.OID, pos})
	wrong, err := l.check(rec, h.Status)
	if wrong != nil {
		err = l.report(wrong)
	}
	return err
}

// end goes through the records of a transaction that were not read. They are then
// the newest ones of their objects.
func (l *lineage) end(s *scanner, h *Header) error {
	var rec RecordHeader
	for pos := h.First(); !l.whole; pos = rec.End() {
		ok, err := s.record(h, pos, &rec)
		if err == nil {
			err = l.next(h, pos, &rec, ok)
		}
		if err != nil {
			return err
		}
	}
	l.whole = false
	for _, w := range l.records {
		p := l.find(w.oid)
		if p == nil {
			p = new(lineagePage)
			l.page, l.pageID = p, w.oid/64
			l.pages[l.pageID] = p
		}
		p[w.oid%64] = markOf(w.pos)
	}
	l.records = l.records[:0]
	return nil
}

// check returns what is wrong with the pointer of a record, nil if nothing is. The
// error is about reading.
func (l *lineage) check(rec *RecordHeader, status byte) (*CorruptError, error) {
	mark := uint32(0)
	if p := l.find(rec.OID); p != nil {
		mark = p[rec.OID%64]
	}
	if mark == 0 && l.from > magicLen {
		return l.unseen(rec, status)
	}
	newest := int64(0)
	switch {
	case mark == markOf(rec.Prev):
		newest = rec.Prev
	case mark != 0:
		newest = -1 // there is one, and not where it is said to be
	}
	if previousAgrees(rec, status, newest) {
		return nil, nil
	}
	return l.r.wrongPrevious(rec)
}

// unseen checks the first record of an object behind from: what it leads to is read.
func (l *lineage) unseen(rec *RecordHeader, status byte) (*CorruptError, error) {
	if rec.Prev == 0 {
		if status != txn.Packed && l.known != nil && l.known(rec.OID) {
			return l.r.wrongPrevious(rec)
		}
		return nil, nil
	}
	var prev RecordHeader
	err := l.r.recordAt(rec.Prev, &prev)
	if errors.As(err, new(*fs.PathError)) {
		return nil, l.r.badTarget(rec, "its previous record", err)
	}
	if err == nil && rec.Prev < l.from && prev.OID == rec.OID {
		return nil, nil
	}
	return l.r.wrongPrevious(rec)
}

func (l *lineage) find(oid tid.OID) *lineagePage {
	if l.pageID != oid/64 {
		p := l.pages[oid/64]
		if p == nil {
			return nil
		}
		l.page, l.pageID = p, oid/64
	}
	return l.page
}

// markOf returns what is kept of a position: 0 only for 0.
func markOf(pos int64) uint32 {
	m := uint32(pos) ^ uint32(pos>>32)
	if m == 0 && pos != 0 {
		return 1
	}
	return m
}

// Checked is the history of a file for a copy: on the way, each record whose pointer
// to the previous one does not agree is reported, once. A copy computes these
// pointers anew, so that nothing would show the damage any more.
type Checked struct {
	*Reader
	report func(*CorruptError) error
	known  func(tid.OID) bool
	told   int64 // position of the last one reported
}

// Known gives c what a copy that goes on in the middle of the file knows: whether an
// object is in the part before. Otherwise a record that is said to be the first of its
// object is believed there.
func (c *Checked) Known(known func(tid.OID) bool) { c.known = known }

// Checked returns the history of r. An error of report ends the iteration.
func (r *Reader) Checked(report func(*CorruptError) error) *Checked {
	return &Checked{Reader: r, report: report}
}

// CheckPrevious reports all records behind a transaction whose pointer to the
// previous one does not agree, without reading any data.
func (c *Checked) CheckPrevious(ctx context.Context, after tid.TID) error {
	for _, err := range c.Transactions(ctx, after, tid.Max) {
		if err != nil {
			return err
		}
	}
	return nil
}

// Transactions implements [txn.History]. It takes 5 bytes of memory for each object
// it meets.
func (c *Checked) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return plain(c.Scan(ctx, after, upTo))
}

// Scan is Transactions with the places of transactions and records.
func (c *Checked) Scan(ctx context.Context, after, upTo tid.TID) iter.Seq2[*Transaction, error] {
	return c.scan(ctx, after, upTo, c)
}

// tell reports a record that was not reported before.
func (c *Checked) tell(e *CorruptError) error {
	if e.Offset <= c.told {
		return nil
	}
	c.told = e.Offset
	return c.report(e)
}
