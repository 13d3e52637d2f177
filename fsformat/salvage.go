package fsformat

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// SalvageOptions configures [Salvage]. A zero field takes the documented default.
type SalvageOptions struct {
	// Partial keeps the intact records of a transaction of which others are damaged.
	// Default: a transaction is kept whole or not at all.
	Partial bool
	// Now is what transactions cannot be later than. Default: the time of the call.
	Now time.Time
	// Progress is told how far the reading is.
	Progress Progress
}

// Lost is a part of a damaged file that was not recovered.
type Lost struct {
	From, To int64   // bytes [From, To)
	TID      tid.TID // of the transaction, 0 if not known
	Reason   string
}

func (l Lost) String() string {
	s := fmt.Sprintf("bytes %d to %d (%d): ", l.From, l.To, l.To-l.From)
	if l.TID != 0 {
		s += fmt.Sprintf("transaction %v: ", l.TID)
	}
	return s + l.Reason
}

// Salvaged is the outcome of [Salvage].
type Salvaged struct {
	Kept      int64 // transactions, complete or not
	Partial   int64 // transactions kept without some of their records
	Records   int64 // kept
	LostBytes int64
}

// Salvage appends to w all that is intact in a damaged file, and reports every
// range of bytes that it leaves out. A transaction is intact if its header, its
// length at both ends and all its records are, also when it is not where it once
// was because bytes before it were lost.
func Salvage(ctx context.Context, r *Reader, w *Writer, opt SalvageOptions, lost func(Lost)) (Salvaged, error) {
	if opt.Now.IsZero() {
		opt.Now = time.Now()
	}
	s := salvager{
		r: r, w: w, opt: opt, limit: tid.FromTime(opt.Now.AddDate(0, 0, 1)),
		scanner: r.newScanner(magicLen, 0),
	}
	s.lost = func(l Lost) {
		s.sum.LostBytes += l.To - l.From
		lost(l)
	}
	err := s.run(ctx)
	return s.sum, err
}

type salvager struct {
	r       *Reader
	w       *Writer
	opt     SalvageOptions
	limit   tid.TID
	scanner *scanner
	lost    func(Lost)
	sum     Salvaged
	bad     []Lost // of the transaction
	shifts  []shift
}

// A shift says how far what was written at from and behind it has moved.
type shift struct{ from, by int64 }

func (s *salvager) shiftedFrom(from, by int64) {
	last := shift{}
	if n := len(s.shifts); n > 0 {
		last = s.shifts[n-1]
	}
	if by != last.by && from > last.from {
		s.shifts = append(s.shifts, shift{from, by})
	}
}

// moved returns where the bytes are that were written at pos.
func (s *salvager) moved(pos int64) int64 {
	by := int64(0)
	for _, sh := range s.shifts {
		if sh.from <= pos {
			by = sh.by
		}
	}
	return pos + by
}

// load is scanner.load for a record in a transaction that has moved, and so may
// have what its back-pointers lead to.
func (s *salvager) load(rec *RecordHeader, by int64, out *txn.Record) error {
	if rec.DataLen > 0 || rec.Back == 0 || len(s.shifts) == 0 {
		return s.scanner.load(rec, out)
	}
	*out = txn.Record{OID: rec.OID, TID: rec.TID}
	cur := *rec
	for cur.DataLen == 0 && cur.Back != 0 {
		// The loss may be further ahead than it seems: then the record is where it
		// would be had it moved along with this one.
		var target RecordHeader
		found := false
		for _, pos := range []int64{s.moved(cur.Back), cur.Back + by} {
			if found || pos < minRecordPos || pos >= cur.Pos {
				continue
			}
			err := s.r.movedRecordAt(pos, &target)
			if errors.As(err, new(*fs.PathError)) {
				return err
			}
			found = err == nil && target.OID == rec.OID && target.TID < cur.TID
		}
		if !found {
			return s.r.corruptRecord(rec, rec.TID, "its back-pointer leads to %d, where its data are no more", uint64(cur.Back))
		}
		if out.DataTID == 0 {
			out.DataTID = target.TID
		}
		cur = target
	}
	var err error
	out.Data, err = s.r.resolve(&cur, &s.scanner.big)
	return err
}

func ofObject(e *CorruptError) string {
	if !e.HasOID {
		return e.Problem
	}
	return fmt.Sprintf("object %v: %s", e.OID, e.Problem)
}

func (s *salvager) run(ctx context.Context) error {
	sc := s.scanner
	report := int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.opt.Progress != nil && sc.pos >= report {
			s.opt.Progress(sc.pos)
			report = sc.pos + progressStep
		}
		from := sc.pos
		h, err := sc.next()
		reason, badTID := sc.reason, tid.TID(0)
		if h != nil && err == nil {
			err = sc.trailer(h)
		}
		if err != nil {
			var e *CorruptError
			if !errors.As(err, &e) {
				return err
			}
			reason, badTID, h = e.Problem, e.TID, nil
		}
		if h == nil {
			if from == s.r.size {
				return nil
			}
			// Also behind what looks like an incomplete end.
			found, err := s.r.resync(ctx, from+1, s.w.LastTID(), s.limit)
			if err != nil {
				return err
			}
			l := Lost{From: from, To: s.r.size, TID: badTID, Reason: reason}
			if found != nil {
				l.To = found.Pos
			}
			s.lost(l)
			if found == nil {
				return nil
			}
			sc.head, sc.pos, sc.last, sc.reason = *found, found.End(), found.TID, ""
			h = found
		}
		if h.Status == statusUndone {
			continue
		}
		if h.TID > s.limit {
			s.drop(h, "it is in the future")
			continue
		}
		if err := s.transaction(h); err != nil {
			return err
		}
	}
}

// drop leaves out a transaction. Its tid, which may be wrong, is forgotten.
func (s *salvager) drop(h *Header, reason string) {
	s.lost(Lost{h.Pos, h.End(), h.TID, reason})
	s.scanner.last = s.w.LastTID()
}

// transaction appends what is intact of a transaction.
func (s *salvager) transaction(h *Header) error {
	s.bad = s.bad[:0]
	n, err := s.records(h, nil)
	if err != nil {
		return err
	}
	if len(s.bad) > 0 && !s.opt.Partial {
		s.drop(h, fmt.Sprintf("%d of its records are damaged, the first: %s", len(s.bad), s.bad[0].Reason))
		return nil
	}
	for _, l := range s.bad {
		s.lost(l)
	}
	var t Transaction
	s.scanner.head = *h
	if err := s.scanner.fillIn(&t, h); err != nil {
		return err
	}
	t.Records = func(yield func(*txn.Record, error) bool) {
		s.bad = s.bad[:0]
		if _, err := s.records(h, func(rec *txn.Record) bool { return yield(rec, nil) }); err != nil {
			yield(nil, err)
		}
	}
	if err := s.w.Append(&t.Transaction); err != nil {
		return err
	}
	s.sum.Kept++
	s.sum.Records += n
	if len(s.bad) > 0 {
		s.sum.Partial++
	}
	return nil
}

// records yields the intact records of a transaction, and notes the others. It
// returns how many are intact.
func (s *salvager) records(h *Header, yield func(*txn.Record) bool) (int64, error) {
	var rec RecordHeader
	var out txn.Record
	shift := int64(0) // where the transaction is, less where it was written
	n := int64(0)
	for pos := h.First(); pos < h.Pos+h.Len; pos = rec.End() {
		if pos == h.First() && h.Pos+h.Len-pos >= recHeaderLen {
			var b [8]byte
			if err := readFull(s.r.r, b[:], pos+24); err != nil {
				return n, fmt.Errorf("%s: reading the record at offset %d: %w", s.r.name, pos, err)
			}
			if at := binary.BigEndian.Uint64(b[:]); at >= magicLen && at < maxPos {
				shift = h.Pos - int64(at)
				s.shiftedFrom(int64(at), shift)
			}
		}
		_, err := s.scanner.recordOf(h, pos, h.Pos-shift, &rec)
		var e *CorruptError
		if err != nil && !errors.As(err, &e) {
			return n, err
		}
		if err != nil {
			s.bad = append(s.bad, Lost{pos, h.Pos + h.Len, h.TID, ofObject(e)})
			return n, nil
		}
		if err := s.load(&rec, shift, &out); err != nil {
			if !errors.As(err, &e) {
				return n, err
			}
			s.bad = append(s.bad, Lost{pos, rec.End(), h.TID, ofObject(e)})
			continue
		}
		n++
		if yield != nil && !yield(&out) {
			return n, nil
		}
	}
	return n, nil
}

// resync looks from pos on for a transaction with a tid in (after, limit] whose
// header, repeated length and records are consistent. nil: there is none.
func (r *Reader) resync(ctx context.Context, pos int64, after, limit tid.TID) (*Header, error) {
	w := newWindow(r.r, r.size)
	s := r.newScanner(pos, 0)
	const step = windowMax / 2
	for pos+txnHeaderLen+trailerLen <= r.size {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := int(min(step, r.size-pos))
		b, err := w.bytes(pos, n)
		if err != nil {
			return nil, fmt.Errorf("%s: reading at offset %d: %w", r.name, pos, err)
		}
		last := n - txnHeaderLen
		for i := 0; i <= last; i++ {
			// Cheap tests first: few bytes pass them.
			if !validStatus(b[i+16]) || b[i+8] != 0 || b[i+9] != 0 {
				continue
			}
			h := parseHeader(b[i:], pos+int64(i))
			if !h.lenOK() || h.End() > r.size || h.TID <= after || h.TID > limit {
				continue
			}
			ok, err := r.looksIntact(s, &h)
			if err != nil {
				return nil, err
			}
			if ok {
				return &h, nil
			}
		}
		if n < step {
			break
		}
		pos += int64(last) + 1
	}
	return nil, nil
}

// looksIntact verifies the end and the records of a possible transaction, which
// may have been written elsewhere.
func (r *Reader) looksIntact(s *scanner, h *Header) (bool, error) {
	var e *CorruptError
	if err := s.trailer(h); err != nil {
		if errors.As(err, &e) {
			return false, nil
		}
		return false, err
	}
	return r.recordsFit(s, h)
}

// recordsFit verifies that records fill a transaction, wherever it was written.
func (r *Reader) recordsFit(s *scanner, h *Header) (bool, error) {
	var e *CorruptError
	at := int64(-1)
	var rec RecordHeader
	for pos := h.First(); ; pos = rec.End() {
		ok, err := s.recordOf(h, pos, at, &rec)
		if errors.As(err, &e) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if !ok {
			return true, nil
		}
		at = rec.TxnPos
	}
}
