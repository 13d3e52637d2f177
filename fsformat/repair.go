package fsformat

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat/pickle"
)

// A framer finds the transactions of a damaged file: where each begins and ends and
// what its id is. Its second pass finds what the first has found.
type framer struct {
	r       *Reader
	scanner *scanner
	limit   tid.TID
	from    int64
	to      int64

	last    tid.TID  // of the transaction before
	repairs []string // of the present one
	hidden  bool     // its junk may have been a record
	shift   int64    // how far it is from where it was written
	shifts  []shift
}

// A shift says how far what was written at from and behind it has moved.
type shift struct{ from, by int64 }

// at returns where a transaction was written.
func (f *framer) at(h *Header) int64 { return h.Pos - f.shift }

// moved returns where the bytes are that were written at pos.
func (f *framer) moved(pos int64) int64 {
	by := int64(0)
	for _, sh := range f.shifts {
		if sh.from <= pos {
			by = sh.by
		}
	}
	return pos + by
}

// frames calls found for each transaction, with what was repaired of its head in
// f.repairs, and lost for what is between them.
func (f *framer) frames(ctx context.Context, found func(*Header) error, lost func(Lost)) error {
	f.scanner = f.r.newScanner(f.from, 0)
	f.last, f.shift, f.shifts = 0, 0, nil
	gap := f.from > magicLen // the transactions that follow may have moved
	report := int64(0)
	for pos := f.from; pos < f.to; {
		if pos >= report {
			if err := ctx.Err(); err != nil {
				return err
			}
			report = pos + progressStep
		}
		h, ok, err := f.frame(pos)
		if err != nil {
			return err
		}
		if !ok {
			l, err := f.reason(pos)
			if err != nil {
				return err
			}
			// Also behind what looks like an incomplete end.
			next, err := f.r.resync(ctx, pos+1, f.last, f.limit)
			if err != nil {
				return err
			}
			l.To = f.to
			if next != nil {
				l.To = min(next.Pos, f.to)
			}
			lost(l)
			pos, gap = l.To, true
			continue
		}
		if gap {
			settled, err := f.settle(&h)
			if err != nil {
				return err
			}
			gap = !settled
		}
		f.last = h.TID
		if len(f.repairs) > 0 {
			gap = true // bytes may have been lost in it, or have been added
		}
		if err := found(&h); err != nil {
			return err
		}
		if h.junk > 0 && !f.hidden {
			f.shifts = append(f.shifts, shift{h.First() - h.junk - f.shift, f.shift + h.junk})
		}
		pos = h.End()
	}
	return nil
}

// reason says why there is no transaction at pos.
func (f *framer) reason(pos int64) (Lost, error) {
	s := f.scanner
	s.pos, s.last, s.reason = pos, 0, ""
	h, err := s.next()
	if h != nil && err == nil {
		err = s.trailer(h)
	}
	l := Lost{From: pos, Reason: s.reason}
	var e *CorruptError
	switch {
	case errors.As(err, &e):
		l.TID, l.Reason = e.TID, e.Problem
	case err != nil:
		return l, err
	case l.Reason == "":
		l.Reason = "it is no transaction"
	}
	return l, nil
}

// bytes reads n bytes, fewer at the end of the file. They are valid until the next call.
func (f *framer) bytes(pos int64, n int) ([]byte, error) {
	if pos >= f.r.size || pos < 0 {
		return nil, nil
	}
	n = int(min(int64(n), f.r.size-pos))
	b, err := f.scanner.w.bytes(pos, n)
	if err != nil {
		return nil, fmt.Errorf("%s: reading at offset %d: %w", f.r.name, pos, err)
	}
	return b, nil
}

func (f *framer) uint64(pos int64) (uint64, error) {
	b, err := f.bytes(pos, 8)
	if err != nil || len(b) < 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

// record reads the head of a record at pos, of a transaction that was written at
// some place. It returns false if it has neither that place nor the id t, or passes
// the end of the file.
func (f *framer) record(pos, at int64, t tid.TID, rec *RecordHeader) (bool, error) {
	b, err := f.bytes(pos, recHeaderLen)
	if err != nil || len(b) < recHeaderLen {
		return false, err
	}
	*rec = parseRecordHeader(b, pos)
	return (rec.TxnPos == at || rec.TID == t) && rec.versions == 0 && rec.DataLen >= 0 && rec.DataLen <= f.r.size-pos-recHeaderLen && rec.End() <= f.r.size, nil
}

// frame reads the transaction at pos. ok is false if there is none, as far as what
// is there can tell.
func (f *framer) frame(pos int64) (h Header, ok bool, err error) {
	f.repairs, f.hidden = f.repairs[:0], false
	b, err := f.bytes(pos, txnHeaderLen)
	if err != nil || len(b) < txnHeaderLen {
		return h, false, err
	}
	h = parseHeader(b, pos)
	agree := h.lenOK() && h.End() <= f.r.size
	if agree {
		n, err := f.uint64(pos + h.Len)
		if err != nil {
			return h, false, err
		}
		agree = int64(n) == h.Len
	}
	if agree && h.Status == statusVoted && h.End() == f.r.size {
		return h, false, nil // never finished
	}
	plain := agree && h.First() == pos+h.Len
	if agree && !plain {
		var rec RecordHeader
		plain, err = f.record(h.First(), f.at(&h), h.TID, &rec)
		if err != nil {
			return h, false, err
		}
		plain = plain && rec.TID == h.TID
	}
	if !plain {
		rebuilt, done, err := f.rebuild(h, agree)
		if err != nil {
			return h, false, err
		}
		switch {
		case done:
			h = rebuilt
		case agree: // what is wrong with its records will show
		case h.lenOK() && h.First() == pos+h.Len && h.TID > f.last && h.TID <= f.limit:
			follows, err := f.follows(h.End())
			if err != nil || !follows {
				return h, false, err
			}
			f.repairs = append(f.repairs, "its length at its end")
		default:
			return h, false, nil
		}
	}
	switch {
	case h.Status == statusVoted:
		f.repairs = append(f.repairs, "its status says that it was not finished, and others follow")
		h.Status = ' '
	case !validStatus(h.Status):
		f.repairs = append(f.repairs, fmt.Sprintf("its status %q is none, it is taken for committed", h.Status))
		h.Status = ' '
	}
	return h, true, nil
}

// follows reports whether the file ends at pos, or a transaction begins there whose
// length is the same at both ends.
func (f *framer) follows(pos int64) (bool, error) {
	if pos == f.r.size {
		return true, nil
	}
	b, err := f.bytes(pos, txnHeaderLen)
	if err != nil || len(b) < txnHeaderLen {
		return false, err
	}
	h := parseHeader(b, pos)
	if !h.lenOK() || h.End() > f.r.size {
		return false, nil
	}
	n, err := f.uint64(pos + h.Len)
	return int64(n) == h.Len, err
}

// rebuild makes the head of a transaction from its records: each says where it was
// written and what its id is. The file must have what leads from the first of them
// to the last, and one of the two lengths or another transaction behind it.
// Its lengths may agree, and its records not.
func (f *framer) rebuild(h Header, agree bool) (Header, bool, error) {
	at := f.at(&h)
	first, err := f.findRecord(h.Pos+txnHeaderLen, min(h.Pos+txnHeaderLen+3*maxMetaLen+recHeaderLen, f.r.size), at, 0, false)
	if err != nil || first < 0 {
		return h, false, err
	}
	var rec RecordHeader
	var id tid.TID
	n := 0
	end := first
	for {
		ok, err := f.record(end, at, 0, &rec)
		if err != nil {
			return h, false, err
		}
		if !ok || rec.TxnPos != at || n > 0 && rec.TID != id {
			break
		}
		id = rec.TID
		end = rec.End()
		n++
	}
	size := end - h.Pos
	trailer, err := f.uint64(end)
	if err != nil || n == 0 || end+trailerLen > f.r.size || id == 0 || id > tid.Max {
		return h, false, err
	}
	if int64(trailer) != size && h.Len != size {
		ok, err := f.follows(end + trailerLen)
		if err != nil || !ok {
			return h, false, err
		}
	}
	if h.Status == statusVoted && end+trailerLen == f.r.size {
		return h, false, nil
	}
	if id != h.TID {
		believed, err := f.believes(id, h.TID, n, end+trailerLen)
		if err != nil {
			return h, false, err
		}
		if believed {
			f.repairs = append(f.repairs, fmt.Sprintf("its id was %v, its records say %v", h.TID, id))
			h.TID, h.stored = id, id
		}
	}
	meta := int(first - h.Pos - txnHeaderLen)
	if junk := size - h.Len; int64(trailer) == h.Len && junk > 0 && int64(meta-h.metaLen()) == junk {
		f.repairs = append(f.repairs, fmt.Sprintf("%d bytes that belong to nothing are before its first record", junk))
		h.Len, h.junk = size, junk
		return h, true, nil
	}
	if h.Len != size {
		f.repairs = append(f.repairs, fmt.Sprintf("its length was %d, its records fill %d", uint64(h.Len), size))
		h.Len = size
	}
	if int64(trailer) != size {
		f.repairs = append(f.repairs, fmt.Sprintf("its length at its end was %d, its records fill %d", trailer, size))
	}
	if h.metaLen() == meta {
		return h, true, nil
	}
	head := h
	what, sure, err := f.splitMeta(&h, meta)
	if err != nil {
		return h, false, err
	}
	// A record that is damaged may hide in what is not explained: it has zeros in it.
	from := h.Pos + txnHeaderLen
	if head.metaLen() < meta {
		from = head.First()
	}
	zeros := false
	if !sure && first-from >= recHeaderLen+pointerLen {
		b, err := f.bytes(from, int(first-from))
		if err != nil {
			return h, false, err
		}
		zeros = bytes.IndexByte(b, 0) >= 0
	}
	switch {
	case !zeros && what != "":
		f.repairs = append(f.repairs, what)
	case agree:
		return h, false, nil // the head is right
	default:
		if h = head; h.metaLen() > meta {
			h.userLen, h.descLen, h.extLen = 0, 0, 0
		}
		h.junk = int64(meta - h.metaLen())
		f.hidden = true
	}
	return h, true, nil
}

// believes reports whether the id in n records is rather that of a transaction than
// the one in its head: by majority, or else by the transactions around it, whose
// ids are near.
func (f *framer) believes(id, head tid.TID, n int, next int64) (bool, error) {
	if n > 1 || head == 0 || head > tid.Max {
		return true, nil
	}
	after, err := f.uint64(next)
	if err != nil {
		return false, err
	}
	fits := func(t tid.TID) bool {
		return t > f.last && t <= f.limit && (after == 0 || t < tid.TID(after) || tid.TID(after) <= f.last)
	}
	if !fits(id) || !fits(head) {
		return fits(id), nil
	}
	near := func(t tid.TID) tid.TID {
		d := t - f.last
		if tid.TID(after) > t {
			d = min(d, tid.TID(after)-t)
		}
		return d
	}
	return near(id) < near(head), nil
}

// splitMeta divides the n bytes of user, description and extension, of which one
// length, or more, is damaged. It returns what was done, "" if they are too many,
// and whether it is certain, since an extension ends where they end.
func (f *framer) splitMeta(h *Header, n int) (what string, sure bool, err error) {
	b, err := f.bytes(h.Pos+txnHeaderLen, n)
	if err != nil {
		return "", false, err
	}
	isExtension := func(b []byte) bool {
		if len(b) == 0 {
			return true
		}
		_, k, err := pickle.Decode(b)
		return err == nil && k == len(b)
	}
	for _, c := range [][3]int{
		{h.userLen, n - h.userLen - h.extLen, h.extLen},
		{n - h.descLen - h.extLen, h.descLen, h.extLen},
		{h.userLen, h.descLen, n - h.userLen - h.descLen},
	} {
		if c[0] < 0 || c[1] < 0 || c[2] < 0 || max(c[0], c[1], c[2]) > maxMetaLen || !isExtension(b[c[0]+c[1]:]) {
			continue
		}
		h.userLen, h.descLen, h.extLen = c[0], c[1], c[2]
		return "a length of its user, description or extension", h.extLen > 0, nil
	}
	if n > maxMetaLen {
		return "", false, nil
	}
	h.userLen, h.descLen, h.extLen = 0, n, 0
	return "its user, description and extension cannot be told apart: all is description", false, nil
}

// findRecord looks from pos up to end for the first record of the transaction that
// was written at some place, and has the id t, if asked for. -1: there is none.
func (f *framer) findRecord(pos, end, at int64, t tid.TID, both bool) (int64, error) {
	pattern := binary.BigEndian.AppendUint64(nil, uint64(at))
	for pos+recHeaderLen <= end {
		b, err := f.bytes(pos, int(min(windowMax/2, end-pos)))
		if err != nil {
			return -1, err
		}
		next := pos + int64(len(b)) - recHeaderLen + 1
		for i := 0; i+recHeaderLen <= len(b); {
			k := bytes.Index(b[i+24:len(b)-10], pattern)
			if k < 0 {
				break
			}
			i += k
			rec := parseRecordHeader(b[i:], pos+int64(i))
			if rec.versions == 0 && rec.DataLen >= 0 && rec.DataLen <= f.r.size-rec.Pos-recHeaderLen && rec.TID != 0 && (!both || rec.TID == t) {
				return rec.Pos, nil
			}
			i++
		}
		pos = next
	}
	return -1, nil
}

// settle finds out how far a transaction behind a loss has moved, by what its
// records say. It returns false if it has none.
func (f *framer) settle(h *Header) (bool, error) {
	var rec, second RecordHeader
	b, err := f.bytes(h.First(), recHeaderLen)
	if err != nil || h.First()+recHeaderLen > h.Pos+h.Len {
		return false, err
	}
	rec = parseRecordHeader(b, h.First())
	if rec.TxnPos == f.at(h) {
		return true, nil
	}
	if rec.TxnPos < magicLen || rec.TxnPos >= maxPos || rec.DataLen < 0 || rec.DataLen > h.Len {
		return false, nil
	}
	if end := rec.End(); end < h.Pos+h.Len {
		ok, err := f.record(end, f.at(h), h.TID, &second)
		if err != nil || !ok || second.TxnPos != rec.TxnPos {
			return false, err
		}
	} else if b, err = f.bytes(h.End(), txnHeaderLen); err != nil {
		return false, err
	} else if len(b) == txnHeaderLen {
		next := parseHeader(b, h.End())
		if ok, err := f.record(next.First(), f.at(&next), next.TID, &second); err != nil || ok && second.TxnPos == f.at(&next) {
			return true, err // it is the record that is wrong
		}
	}
	f.shift = h.Pos - rec.TxnPos
	last := shift{}
	if n := len(f.shifts); n > 0 {
		last = f.shifts[n-1]
	}
	if rec.TxnPos > last.from {
		f.shifts = append(f.shifts, shift{rec.TxnPos, f.shift})
	}
	return true, nil
}

func ofObject(e *CorruptError) string {
	if !e.HasOID {
		return e.Problem
	}
	return fmt.Sprintf("object %v: %s", e.OID, e.Problem)
}

// assess goes through the records of a transaction. It notes those that can be
// repaired, in s.plan, and those that are lost, in s.plan and s.bad, and returns how
// many are kept.
func (s *salvager) assess(h *Header) (int64, error) {
	s.bad = s.bad[:0]
	clear(s.plan)
	s.here = h.Pos
	at, end := s.at(h), h.Pos+h.Len
	var rec, prev RecordHeader
	n := int64(0)
	if s.hidden {
		s.bad = append(s.bad, Lost{h.First() - h.junk, h.First(), h.TID, "no record can be read there, nor user, description and extension"})
	}
	for pos := h.First(); pos < end; {
		_, err := s.scanner.recordOf(h, pos, at, &rec)
		var e *CorruptError
		if err != nil && !errors.As(err, &e) {
			return n, err
		}
		if err != nil {
			what, ok, err := s.repair(h, pos, &rec)
			if err != nil {
				return n, err
			}
			if !ok && prev.Pos > 0 && prev.DataLen > 0 {
				// The record before may be longer or shorter than it says.
				fixed := prev
				what, ok, err = s.measure(h, &fixed)
				if err != nil {
					return n, err
				}
				ok = ok && fixed.End() != prev.End()
				if ok { // it is looked at again: it may have become a back-pointer
					rec, pos = fixed, fixed.Pos
					n--
				}
			}
			if !ok {
				next, err := s.findRecord(pos+1, end, at, h.TID, true)
				if err != nil {
					return n, err
				}
				if next < 0 {
					next = end
				}
				s.leaveOut(h, pos, next, e)
				prev, pos = RecordHeader{}, next
				continue
			}
			s.fix(rec, what)
		}
		if rec.DataLen == pointerLen {
			// Too short for two pickles, mostly: perhaps a pointer.
			fixed := rec
			if what, ok, err := s.measure(h, &fixed); err != nil {
				return n, err
			} else if ok && fixed.DataLen == 0 && fixed.Back != 0 {
				rec = fixed
				s.fix(rec, what)
			}
		}
		if rec.DataLen == 0 && rec.Back != 0 {
			e, err := s.pointer(&rec)
			if err != nil {
				return n, err
			}
			fixed := rec
			if e != nil {
				// Its length may be what is wrong: there are data.
				_, ok, err := s.measure(h, &fixed)
				if err != nil {
					return n, err
				}
				if ok && fixed.DataLen > 0 {
					s.fix(fixed, "the length of its data")
					rec, e = fixed, nil
				}
			}
			if e != nil {
				s.leaveOut(h, pos, rec.End(), e)
				prev, pos = RecordHeader{}, rec.End()
				continue
			}
		}
		n++
		prev, pos = rec, rec.End()
	}
	return n, nil
}

func (s *salvager) leaveOut(h *Header, pos, to int64, e *CorruptError) {
	s.bad = append(s.bad, Lost{pos, to, h.TID, ofObject(e)})
	s.plan[pos] = planned{skip: to}
}

// fix notes that a record is read as rec, and what was repaired of it.
func (s *salvager) fix(rec RecordHeader, what string) {
	s.fixed[rec.Pos] = rec
	what = fmt.Sprintf("object %v, at %d: %s", rec.OID, rec.Pos, what)
	s.plan[rec.Pos] = planned{rec: rec, repairs: append(s.plan[rec.Pos].repairs, what)}
}

// repair reads the record at pos, of which one field is damaged and the others, and
// what follows, say what it was.
func (s *salvager) repair(h *Header, pos int64, rec *RecordHeader) (what string, ok bool, err error) {
	at, end := s.at(h), h.Pos+h.Len
	if end-pos < recHeaderLen {
		return "", false, nil
	}
	b, err := s.bytes(pos, recHeaderLen+pointerLen)
	if err != nil || len(b) < recHeaderLen+pointerLen {
		return "", false, err
	}
	*rec = parseRecordHeader(b, pos)
	rec.Back = int64(binary.BigEndian.Uint64(b[recHeaderLen:]))
	wrong := 0
	if rec.TxnPos != at {
		what = fmt.Sprintf("the position of its transaction was %d", uint64(rec.TxnPos))
		rec.TxnPos = at
		wrong++
	}
	if rec.TID != h.stored {
		what = fmt.Sprintf("the id of its transaction was %v", rec.TID)
		wrong++
	}
	rec.TID = h.TID
	if rec.versions != 0 {
		what = fmt.Sprintf("the length of its version, %d", rec.versions)
		rec.versions = 0
		wrong++
	}
	if wrong == 0 {
		return s.measure(h, rec)
	}
	if wrong > 1 || rec.DataLen < 0 || rec.DataLen > end-pos || rec.End() > end {
		return "", false, nil
	}
	if rec.End() == end {
		return what, true, nil
	}
	var next RecordHeader
	ok, err = s.record(rec.End(), at, h.stored, &next)
	return what, ok, err
}

// measure finds out the length of the data of a record by the record that follows,
// or the end of the transaction, and believes it if the data are two pickles of that
// length, or a position where a record of the object is.
func (s *salvager) measure(h *Header, rec *RecordHeader) (string, bool, error) {
	const what = "the length of its data"
	end := h.Pos + h.Len
	next, err := s.findRecord(rec.Pos+recHeaderLen+1, end, s.at(h), h.stored, true)
	if err != nil {
		return "", false, err
	}
	if next < 0 {
		next = end
	}
	n := next - rec.DataPos()
	if n <= 0 {
		return "", false, nil
	}
	if n == pointerLen {
		back, err := s.uint64(rec.DataPos())
		if err != nil {
			return "", false, err
		}
		ok := back == 0
		if !ok && back < maxPos {
			if _, ok, err = s.target(rec, int64(back)); err != nil {
				return "", false, err
			}
		}
		if ok {
			rec.DataLen, rec.Back = 0, int64(back)
			return what, true, nil
		}
	}
	data, err := s.scanner.w.data(rec.DataPos(), n, &s.scanner.big)
	if err != nil {
		return "", false, fmt.Errorf("%s: reading the data of object %v at offset %d: %w", s.r.name, rec.OID, rec.Pos, err)
	}
	if !s.areData(data) {
		return "", false, nil
	}
	rec.DataLen = n
	return what, true, nil
}

// pointer verifies that a back-pointer leads to data. One bit of it may be damaged,
// if there is one change of a bit that makes it right.
func (s *salvager) pointer(rec *RecordHeader) (*CorruptError, error) {
	var out txn.Record
	err := s.load(rec, &out)
	var e *CorruptError
	if err == nil || !errors.As(err, &e) {
		return nil, err
	}
	if _, ok, err := s.target(rec, rec.Back); ok || err != nil {
		return e, err // what it leads to is damaged
	}
	found := *rec
	for bit := range 48 {
		back := rec.Back ^ 1<<bit
		_, ok, err := s.target(rec, back)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if found.Back != rec.Back {
			return e, nil // two
		}
		found.Back = back
	}
	if found.Back == rec.Back || s.load(&found, &out) != nil {
		return e, nil
	}
	s.fix(found, fmt.Sprintf("its back-pointer was %d, a bit of it is damaged", uint64(rec.Back)))
	*rec = found
	return nil, nil
}
