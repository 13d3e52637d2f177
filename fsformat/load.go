package fsformat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// recordAt reads the head of the data record at pos, which may be anywhere: the
// error is without offset and says why there can be no record.
func (r *Reader) recordAt(pos int64, rec *RecordHeader) error {
	if err := r.movedRecordAt(pos, rec); err != nil {
		return err
	}
	if rec.TxnPos < magicLen || rec.TxnPos > pos-txnHeaderLen {
		return fmt.Errorf("there is no data record at %d: its transaction would be at %d", pos, uint64(rec.TxnPos))
	}
	rec.TID = r.idAt(rec.TxnPos, rec.TID)
	return nil
}

// movedRecordAt is recordAt for a record that was perhaps written elsewhere.
func (r *Reader) movedRecordAt(pos int64, rec *RecordHeader) error {
	var b [recHeaderLen + pointerLen]byte
	n := min(int64(len(b)), r.size-pos)
	if n < recHeaderLen || pos < minRecordPos {
		return fmt.Errorf("position %d is no place for a record", pos)
	}
	if err := readFull(r.r, b[:n], pos); err != nil {
		return err
	}
	*rec = parseRecordHeader(b[:], pos)
	switch {
	case rec.versions != 0:
		return fmt.Errorf("there is no data record at %d", pos)
	case rec.DataLen < 0 || rec.DataLen > r.size-pos-recHeaderLen || rec.DataLen == 0 && n < int64(len(b)):
		return fmt.Errorf("there is no data record at %d: its %d bytes of data would pass the end of the file", pos, uint64(rec.DataLen))
	}
	if rec.DataLen == 0 {
		rec.Back = int64(binary.BigEndian.Uint64(b[recHeaderLen:]))
	}
	return nil
}

// badTarget is the error of a record that leads to no record, or to one that cannot
// be read.
func (r *Reader) badTarget(rec *RecordHeader, what string, err error) error {
	if errors.As(err, new(*fs.PathError)) {
		return fmt.Errorf("%s: offset %d: transaction %v: object %v: reading %s: %w", r.name, rec.Pos, rec.TID, rec.OID, what, err)
	}
	return r.corruptRecord(rec, rec.TID, "%s: %v", what, err)
}

// follow reads the record that the back-pointer of rec leads to.
func (r *Reader) follow(rec, target *RecordHeader) error {
	oid, pos, t := rec.OID, rec.Pos, rec.TID
	from := *rec
	if rec.Back < minRecordPos || rec.Back >= pos {
		return r.corruptRecord(&from, t, "its back-pointer leads to %d, where no earlier record can be", uint64(rec.Back))
	}
	if err := r.recordAt(rec.Back, target); err != nil {
		return r.badTarget(&from, "its back-pointer", err)
	}
	if target.OID != oid {
		return r.corruptRecord(&from, t, "its back-pointer leads to %d, a record of object %v", target.Pos, target.OID)
	}
	if target.TID >= t {
		return r.corruptRecord(&from, t, "its back-pointer leads to %d, a record of transaction %v", target.Pos, target.TID)
	}
	return nil
}

// previous reads the record before rec of the same object. It returns false if
// there is none.
func (r *Reader) previous(rec, prev *RecordHeader) (bool, error) {
	from := *rec
	if from.Prev == 0 {
		return false, nil
	}
	if from.Prev < minRecordPos || from.Prev >= from.Pos {
		return false, r.corruptRecord(&from, from.TID, "its previous record is at %d, where no earlier record can be", uint64(from.Prev))
	}
	if err := r.recordAt(from.Prev, prev); err != nil {
		return false, r.badTarget(&from, "its previous record", err)
	}
	if prev.OID != from.OID {
		return false, r.corruptRecord(&from, from.TID, "its previous record, at %d, is one of object %v", prev.Pos, prev.OID)
	}
	if prev.TID >= from.TID {
		return false, r.corruptRecord(&from, from.TID, "its previous record, at %d, is of transaction %v", prev.Pos, prev.TID)
	}
	return true, nil
}

// resolve reads the data of a record, through as many back-pointers as needed,
// into *buf, which grows. nil means that the object does not exist.
func (r *Reader) resolve(rec *RecordHeader, buf *[]byte) ([]byte, error) {
	cur, err := r.DataRecord(rec)
	if err != nil || cur.DataLen == 0 {
		return nil, err
	}
	if int64(cap(*buf)) < cur.DataLen {
		*buf = make([]byte, cur.DataLen)
	}
	b := (*buf)[:cur.DataLen:cur.DataLen]
	if err := readFull(r.r, b, cur.DataPos()); err != nil {
		return nil, fmt.Errorf("%s: reading the data of object %v in transaction %v at offset %d: %w", r.name, cur.OID, cur.TID, cur.Pos, err)
	}
	return b, nil
}

// DataRecord returns the record that has the data of rec, which is rec itself
// unless that has a back-pointer. Its DataLen is 0 if the object does not exist.
func (r *Reader) DataRecord(rec *RecordHeader) (RecordHeader, error) {
	cur := *rec
	for cur.DataLen == 0 && cur.Back != 0 {
		var next RecordHeader
		if err := r.follow(&cur, &next); err != nil {
			return cur, err
		}
		cur = next
	}
	return cur, nil
}

// current reads the head of the newest record of an object.
func (r *Reader) current(oid tid.OID, rec *RecordHeader) error {
	if r.index == nil {
		return r.noIndex(fmt.Sprintf("loading object %v", oid))
	}
	pos, ok := r.index.Get(oid)
	if !ok {
		return r.absent(txn.ErrNoSuchObject, "object %v", oid)
	}
	if err := r.recordAt(pos, rec); errors.As(err, new(*fs.PathError)) {
		return fmt.Errorf("%s: reading the record of object %v at offset %d: %w", r.name, oid, pos, err)
	} else if err != nil {
		return &CorruptError{File: r.name, Offset: pos, OID: oid, HasOID: true, Problem: "the index is wrong: " + err.Error()}
	}
	if rec.OID != oid {
		return &CorruptError{File: r.name, Offset: pos, OID: oid, HasOID: true, Problem: fmt.Sprintf("the index is wrong: it leads to a record of object %v", rec.OID)}
	}
	return nil
}

// noIndex is the error of what needs the index.
func (r *Reader) noIndex(what string) error {
	return fmt.Errorf("%s: %s: no index, call UseIndex first", r.name, what)
}
