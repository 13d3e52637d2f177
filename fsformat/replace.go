package fsformat

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat/pickle"
)

// Change says what one revision of an object becomes. Data nil and Previous false: it
// is deleted there, as if by the application.
type Change struct {
	OID tid.OID
	// TID is that of the transaction of the revision, or one after it: the newest
	// revision not after TID is changed. [tid.Max]: the current one.
	TID      tid.TID
	Data     []byte // the new data, a record that Python can load
	Previous bool   // it becomes what it was before, as if undone
}

// Replaced is a record that is another one in the copy.
type Replaced struct {
	RecordHeader // as it was
	Shares       bool
	Size         int // of the data it has now; 0: the object does not exist any more
}

// Replace copies the transactions of r to w with one revision of an object changed:
// for data that nothing can read. Records that share the data of the revision, which
// undos leave, change with it. Each is reported to replaced, and to warn each record
// whose object id may be damaged. r needs an index.
func Replace(ctx context.Context, r *Reader, w *Writer, c Change, progress Progress, replaced func(Replaced), warn func(*CorruptError)) error {
	if c.Data != nil {
		if err := loadable(c.Data); err != nil {
			return fmt.Errorf("the new data of object %v: %w", c.OID, err)
		}
	}
	at, err := r.revisionAt(c.OID, c.TID)
	if err != nil {
		return err
	}
	rp := replacer{r: r, s: r.newScanner(magicLen, 0), c: c, at: at, changed: make(map[int64]bool), replaced: replaced}
	report := int64(0)
	for t, err := range r.Checked(func(e *CorruptError) error { warn(e); return nil }).Scan(ctx, 0, tid.Max) {
		if err != nil {
			return err
		}
		if progress != nil && t.Head.Pos >= report {
			progress(t.Head.Pos)
			report = t.Head.Pos + progressStep
		}
		out := t.Transaction
		out.Records = func(yield func(*txn.Record, error) bool) {
			for p, err := range t.Places {
				var rec txn.Record
				if err == nil {
					err = rp.record(p, &rec)
				}
				if !yield(&rec, err) || err != nil {
					return
				}
			}
		}
		if err := w.Append(&out); err != nil {
			return err
		}
	}
	if len(rp.changed) == 0 {
		return r.absent(txn.ErrNotFound, "object %v in transaction %v", c.OID, at)
	}
	return nil
}

type replacer struct {
	r        *Reader
	s        *scanner
	c        Change
	at       tid.TID
	changed  map[int64]bool // records of the object, by position
	replaced func(Replaced)
}

// record reads a record as it is in the copy.
func (rp *replacer) record(p *RecordHeader, out *txn.Record) error {
	direct := p.OID == rp.c.OID && p.TID == rp.at
	shares := p.OID == rp.c.OID && p.DataLen == 0 && rp.changed[p.Back]
	if !direct && !shares {
		return rp.s.load(p, out)
	}
	*out = txn.Record{OID: p.OID, TID: p.TID}
	switch {
	case shares && !direct:
		// The same data again, by the pointer that there was.
		var target RecordHeader
		if err := rp.r.follow(p, &target); err != nil {
			return err
		}
		out.DataTID = target.TID
		if rp.c.Previous {
			return rp.previous(p, out, true)
		}
		out.Data = rp.c.Data
	case rp.c.Previous:
		if err := rp.previous(p, out, false); err != nil {
			return err
		}
		return nil
	default:
		out.Data = rp.c.Data
	}
	rp.note(p, out, shares && !direct)
	return nil
}

// previous gives a record the data that the object had before the revision.
func (rp *replacer) previous(p *RecordHeader, out *txn.Record, shares bool) error {
	from := *p
	for from.TID != rp.at {
		var target RecordHeader
		if err := rp.r.follow(&from, &target); err != nil {
			return err
		}
		from = target
	}
	var prev RecordHeader
	ok, err := rp.r.previous(&from, &prev)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("object %v: there is no revision before that of transaction %v", p.OID, rp.at)
	}
	var buf []byte
	if out.Data, err = rp.r.resolve(&prev, &buf); err != nil {
		return err
	}
	if !shares {
		out.DataTID = prev.TID
	}
	rp.note(p, out, shares)
	return nil
}

func (rp *replacer) note(p *RecordHeader, out *txn.Record, shares bool) {
	if !rp.changed[p.Pos] { // records may be read again
		rp.changed[p.Pos] = true
		rp.replaced(Replaced{*p, shares, len(out.Data)})
	}
}

// revisionAt returns the transaction of the newest revision of an object not after
// another one.
func (r *Reader) revisionAt(oid tid.OID, at tid.TID) (tid.TID, error) {
	var rec, prev RecordHeader
	if err := r.current(oid, &rec); err != nil {
		return 0, err
	}
	for rec.TID > at {
		ok, err := r.previous(&rec, &prev)
		if errors.As(err, new(*CorruptError)) || err == nil && !ok {
			return at, nil // hidden by a pack, or by damage: as it was asked for
		}
		if err != nil {
			return 0, err
		}
		rec = prev
	}
	return rec.TID, nil
}

// loadable says why data are no record that Python can load.
func loadable(data []byte) error {
	if len(data) == 0 {
		return errors.New("there are none")
	}
	plain, wrapped, err := pickle.Unwrap(data)
	if err != nil || !wrapped && data[0] == '.' {
		return err // wrapped in an unknown way: not for us to judge
	}
	s := pickle.Scanner{Python: true}
	_, err = s.References(plain)
	return err
}
