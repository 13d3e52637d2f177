package fsformat

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sort"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var _ txn.Database = (*Reader)(nil)

// LoadBefore implements [txn.Database]. [Reader.UseIndex] must have been called
// before, as for all that is about single objects.
func (r *Reader) LoadBefore(_ context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	var rev txn.Revision
	rec, err := r.before(oid, before, &rev.Next)
	if err != nil {
		return txn.Revision{}, err
	}
	if rev.Data, err = r.resolve(&rec, &rev.Data); err != nil {
		return txn.Revision{}, err
	}
	if rev.Data == nil {
		return txn.Revision{}, r.absent(txn.ErrNoSuchObject, "object %v, deleted or its creation undone by transaction %v", oid, rec.TID)
	}
	rev.Serial = rec.TID
	return rev, nil
}

// before reads the head of the newest record of an object before a transaction.
// next becomes the transaction of the record that follows it, if there is one.
func (r *Reader) before(oid tid.OID, before tid.TID, next *tid.TID) (rec RecordHeader, err error) {
	if err := r.current(oid, &rec); err != nil {
		return rec, err
	}
	var prev RecordHeader
	for rec.TID >= before {
		*next = rec.TID
		ok, err := r.previous(&rec, &prev)
		if err != nil {
			return rec, err
		}
		if !ok {
			return rec, r.absent(txn.ErrNotFound, "object %v before transaction %v", oid, before)
		}
		rec = prev
	}
	return rec, nil
}

// LastRevision returns the last transaction that changed an object, be it by a deletion: 0 if
// there is none. It reads one head.
func (r *Reader) LastRevision(oid tid.OID) (tid.TID, error) {
	var rec RecordHeader
	err := r.current(oid, &rec)
	if errors.Is(err, txn.ErrNoSuchObject) {
		return tid.Zero, nil
	}
	return rec.TID, err
}

// DataTIDAt is [Reader.DataTID] of the record that transaction at made of an object.
func (r *Reader) DataTIDAt(oid tid.OID, at tid.TID) (tid.TID, error) {
	var next tid.TID
	rec, err := r.before(oid, at+1, &next)
	if err != nil {
		return tid.Zero, err
	}
	if rec.TID != at {
		return tid.Zero, r.absent(txn.ErrNotFound, "object %v in transaction %v", oid, at)
	}
	return r.DataTID(&rec)
}

// LoadAt implements [txn.Database].
func (r *Reader) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	rev, err := r.LoadBefore(ctx, oid, at+1)
	if err == nil && rev.Serial != at {
		return txn.Revision{}, r.absent(txn.ErrNotFound, "object %v in transaction %v", oid, at)
	}
	rev.Next = tid.Zero
	return rev, err
}

// Chain yields the heads of the records of an object, newest first. Deletions have
// records. What a pack has hidden is not found. A head is valid until the next step.
func (r *Reader) Chain(ctx context.Context, oid tid.OID) iter.Seq2[*RecordHeader, error] {
	return func(yield func(*RecordHeader, error) bool) {
		var rec, prev RecordHeader
		err := r.current(oid, &rec)
		for ok := true; ok && err == nil; {
			if err = ctx.Err(); err != nil {
				break
			}
			if !yield(&rec, nil) {
				return
			}
			if ok, err = r.previous(&rec, &prev); ok {
				rec = prev
			}
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// DataTID returns the transaction one hop along the back-pointer of a record, 0 if
// it has none.
func (r *Reader) DataTID(rec *RecordHeader) (tid.TID, error) {
	if rec.DataLen != 0 || rec.Back == 0 {
		return tid.Zero, nil
	}
	var target RecordHeader
	err := r.follow(rec, &target)
	return target.TID, err
}

// Revisions implements [txn.Database], with the sizes of the records themselves: 0 of
// those that share the data of an earlier one.
func (r *Reader) Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	var list []txn.Info
	if n <= 0 {
		return nil, nil
	}
	for rec, err := range r.Chain(ctx, oid) {
		if err != nil {
			return nil, err
		}
		t, err := r.TransactionAt(rec.TxnPos)
		if err != nil {
			return nil, err
		}
		info := t.info()
		info.TID, info.Size = rec.TID, rec.DataLen
		if list = append(list, info); len(list) == n {
			break
		}
	}
	return list, nil
}

// info returns the metadata of a transaction, which are valid as long as it is.
func (t *Transaction) info() txn.Info {
	return txn.Info{
		TID: t.TID, Status: t.Status, Size: t.Head.Len,
		User: t.User, Description: t.Description, Extension: t.Extension,
	}
}

// Backwards implements [txn.Database]. It reads the heads of all records.
func (r *Reader) Backwards(ctx context.Context) iter.Seq2[*txn.Info, error] {
	return r.backwards(ctx, nil)
}

// BackwardsPastDamage is Backwards that tells of a damaged record instead of ending there.
// Its transaction has the objects that can be found: see [Reader.ObjectsPastDamage].
func (r *Reader) BackwardsPastDamage(ctx context.Context, tell func(error)) iter.Seq2[*txn.Info, error] {
	return r.backwards(ctx, tell)
}

func (r *Reader) backwards(ctx context.Context, tell func(error)) iter.Seq2[*txn.Info, error] {
	return func(yield func(*txn.Info, error) bool) {
		var info txn.Info
		var oids []tid.OID
		for t, err := range r.ScanBackwards(ctx) {
			if err == nil {
				info = t.info()
				oids = oids[:0]
				for rec, bad := range t.Places {
					if err = bad; err != nil {
						break
					}
					oids = append(oids, rec.OID)
				}
				if tell != nil && errors.As(err, new(*CorruptError)) {
					tell(err)
					oids, err = r.ObjectsPastDamage(ctx, &t.Head)
				}
				info.OIDs = oids
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(&info, nil) {
				return
			}
		}
	}
}

// ObjectsPastDamage returns the objects of the records of a transaction although some of
// them are damaged: behind one, the next is found by the id and the position of the transaction,
// which each record repeats. The object of a damaged record is among them if the index leads to
// it, which has to be there.
func (r *Reader) ObjectsPastDamage(ctx context.Context, h *Header) (oids []tid.OID, err error) {
	s := r.newScanner(h.Pos, 0)
	var rec RecordHeader
	for pos := h.First(); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ok, err := s.record(h, pos, &rec)
		switch {
		case errors.As(err, new(*CorruptError)):
			if h.Pos+h.Len-pos >= recHeaderLen && rec.OID <= tid.MaxOID {
				oid := rec.OID
				for rec, err := range r.Chain(ctx, oid) {
					if err != nil && !errors.Is(err, txn.ErrNoSuchObject) || err == nil && rec.Pos == pos {
						oids = append(oids, oid)
					}
					if err != nil || rec.Pos <= pos {
						break
					}
				}
			}
			if pos, err = r.nextRecord(h, pos+1); err != nil || pos == 0 {
				return oids, err
			}
			continue
		case err != nil:
			return nil, err
		case !ok:
			return oids, nil
		}
		oids = append(oids, rec.OID)
		pos = rec.End()
	}
}

// nextRecord returns the position of the first whole head of a record of a transaction at or
// after from, 0: there is none.
func (r *Reader) nextRecord(h *Header, from int64) (pos int64, err error) {
	sign := binary.BigEndian.AppendUint64(nil, uint64(h.stored))
	end := h.Pos + h.Len
	buf := make([]byte, 1<<16)
	for from+recHeaderLen <= end {
		b := buf[:min(int64(len(buf)), end-from)]
		if err := readFull(r.r, b, from); err != nil {
			return 0, fmt.Errorf("%s: reading at offset %d: %w", r.name, from, err)
		}
		last := len(b) - recHeaderLen // where a head may begin
		for i := 0; i <= last; i++ {
			// The id of the object is before that of the transaction.
			n := bytes.Index(b[i+8:], sign)
			if n < 0 || i+n > last {
				break
			}
			i += n
			if rec := parseRecordHeader(b[i:i+recHeaderLen], from+int64(i)); rec.TxnPos == h.Pos && rec.versions == 0 && rec.DataLen >= 0 && rec.DataLen <= end-rec.Pos-recHeaderLen {
				return rec.Pos, nil
			}
		}
		from += int64(last) + 1
	}
	return 0, nil
}

// OIDs implements [txn.Database]. It keeps 8 bytes for each object as long as the
// reader is in use.
func (r *Reader) OIDs(ctx context.Context, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error] {
	return func(yield func(tid.OID, error) bool) {
		if r.index == nil {
			yield(0, r.noIndex("listing the objects"))
			return
		}
		r.oidsOnce.Do(func() { r.oids = r.index.OIDs() })
		i := sort.Search(len(r.oids), func(i int) bool { return r.oids[i] >= from })
		for _, oid := range r.oids[i:] {
			ok, err := r.exists(oid, at)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(0, err)
				return
			}
			if ok && !yield(oid, nil) {
				return
			}
		}
	}
}

// exists reports whether an object exists right after a transaction.
func (r *Reader) exists(oid tid.OID, at tid.TID) (bool, error) {
	var next tid.TID
	rec, err := r.before(oid, min(at, tid.Max-1)+1, &next)
	if errors.Is(err, txn.ErrNotFound) {
		return false, nil
	}
	if err == nil {
		rec, err = r.DataRecord(&rec)
	}
	return rec.DataLen > 0, err
}
