package fsformat

import (
	"errors"
	"io/fs"

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
	r       *Reader
	from    int64 // where the reading begins: of what is before, nothing is known
	pages   map[tid.OID]*lineagePage
	page    *lineagePage // the one used last
	pageID  tid.OID
	pending []written // records of the transaction
}

type lineagePage [64]uint32

func (r *Reader) newLineage(from int64) *lineage {
	return &lineage{r: r, from: from, pages: make(map[tid.OID]*lineagePage), pageID: tid.InvalidOID}
}

// record checks the next record of a transaction. The error is about reading.
func (l *lineage) record(rec *RecordHeader, status byte) (*CorruptError, error) {
	l.pending = append(l.pending, written{rec.OID, rec.Pos})
	mark := uint32(0)
	if p := l.find(rec.OID); p != nil {
		mark = p[rec.OID%64]
	}
	if mark == 0 && l.from > magicLen {
		return l.unseen(rec)
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
func (l *lineage) unseen(rec *RecordHeader) (*CorruptError, error) {
	if rec.Prev == 0 {
		return nil, nil // nothing to compare it with
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

// begin is called before the records of a transaction: those of the one before are
// the newest ones now. begin again without records between has no effect.
func (l *lineage) begin() {
	for _, w := range l.pending {
		p := l.find(w.oid)
		if p == nil {
			p = new(lineagePage)
			l.page, l.pageID = p, w.oid/64
			l.pages[l.pageID] = p
		}
		p[w.oid%64] = markOf(w.pos)
	}
	l.pending = l.pending[:0]
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
