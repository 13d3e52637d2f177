package fsformat

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat/pickle"
)

// SalvageOptions configures [Salvage]. A zero field takes the documented default.
type SalvageOptions struct {
	// Partial keeps the intact records of a transaction of which others are damaged.
	// Default: a transaction is kept whole or not at all.
	Partial bool
	// From and To are the offsets between which transactions are recovered: those
	// that begin at From or after it, and before To. Default: the whole file.
	From, To int64
	// After and UpTo bound the ids of the transactions that are recovered:
	// (After, UpTo]. UpTo 0: no bound.
	After, UpTo tid.TID
	// Strict ends the salvage with an error at the first record whose object id may
	// be damaged: its pointer to the previous record does not agree. Default: it is
	// kept, with a [Warned] notice.
	Strict bool
	// Now is what transactions should not be later than. Default: the time of the call.
	Now time.Time
	// Notice is told what was repaired or looks wrong, and was kept. nil is allowed.
	Notice func(Notice)
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

// NoticeKind says what became of a part of a file that is not as it should be.
type NoticeKind uint8

const (
	// Repaired: a field was damaged, and other fields say what it was.
	Repaired NoticeKind = iota
	// RenumberedID: a transaction got another id, since ids must increase.
	RenumberedID
	// Warned: it was kept as it is, and the operator should look at it.
	Warned
	// LeftOut: it is intact, and no part of the database: undone in place.
	LeftOut
)

func (k NoticeKind) String() string {
	return [...]string{"repaired", "renumbered", "warning", "left out"}[k]
}

// Notice is about a part of a file that was kept and is not as it should be.
type Notice struct {
	Kind   NoticeKind
	Offset int64   // of the transaction or the record
	TID    tid.TID // as it is in the file
	OID    tid.OID
	HasOID bool
	Text   string
}

func (n Notice) String() string {
	e := CorruptError{TID: n.TID, OID: n.OID, HasOID: n.HasOID, Problem: n.Text}
	var b strings.Builder
	fmt.Fprintf(&b, "%v: offset %d: ", n.Kind, n.Offset)
	e.describe(&b)
	return b.String()
}

// Salvaged is the outcome of [Salvage].
type Salvaged struct {
	Kept       int64 // transactions, complete or not
	Partial    int64 // transactions kept without some of their records
	Records    int64 // kept
	LostRanges int64
	LostBytes  int64
	Repaired   int64 // fields of which others said what they were
	Renumbered int64 // transactions with another id
	Warnings   int64
}

// Salvage appends to w all that is intact in a damaged file, in the order of the
// file, and reports every range of bytes that it leaves out. A transaction is intact
// if its header, its length at both ends and all its records are, also when it is
// not where it once was because bytes before it were lost; where one of these is
// damaged and the others say what it was, it is repaired. Transactions whose ids do
// not increase get other ones: as few as possible, each the next after the one before.
func Salvage(ctx context.Context, r *Reader, w *Writer, opt SalvageOptions, lost func(Lost)) (Salvaged, error) {
	if opt.Now.IsZero() {
		opt.Now = time.Now()
	}
	if opt.UpTo == 0 {
		opt.UpTo = tid.Invalid
	}
	s := &salvager{w: w, opt: opt, lost: lost, plan: make(map[int64]planned), fixed: make(map[int64]RecordHeader)}
	s.framer = framer{r: r, limit: tid.FromTime(opt.Now.AddDate(0, 0, 1)), from: max(opt.From, magicLen), to: r.size}
	if opt.To > 0 {
		s.to = min(opt.To, r.size)
	}
	if r.size == 0 {
		return s.sum, fmt.Errorf("%s: the file is empty: there is nothing to recover", r.name)
	}
	if s.from > s.to {
		return s.sum, fmt.Errorf("%s: offset %d is behind the end, %d", r.name, s.from, s.to)
	}
	err := s.run(ctx)
	return s.sum, err
}

type salvager struct {
	framer
	w    *Writer
	opt  SalvageOptions
	lost func(Lost)
	sum  Salvaged

	ids     []tid.TID // of all transactions from first to last, if they do not increase
	changed []Renumbered
	holes   []hole
	lineage *lineage

	here  int64             // where the transaction is
	plan  map[int64]planned // of the transaction: records that are not read as they are
	bad   []Lost
	fixed map[int64]RecordHeader // what was repaired so far, by position

	pickles pickle.Scanner
}

// A hole is a part of the file that is not in the copy: bytes [from, to).
type hole struct{ from, to int64 }

// A planned record is read as rec, or left out up to skip.
type planned struct {
	rec     RecordHeader
	skip    int64
	repairs []string // what was repaired of rec
}

func (s *salvager) notice(n Notice) {
	switch n.Kind {
	case Repaired:
		s.sum.Repaired++
	case Warned:
		s.sum.Warnings++
	}
	if s.opt.Notice != nil {
		s.opt.Notice(n)
	}
}

func (s *salvager) lose(l Lost) {
	if l.To > l.From {
		s.sum.LostRanges++
		s.sum.LostBytes += l.To - l.From
		s.skip(l.From, l.To)
		s.lost(l)
	}
}

// skip notes that records in a part of the file are not there any more.
func (s *salvager) skip(from, to int64) {
	if n := len(s.holes); n > 0 && s.holes[n-1].to == from {
		s.holes[n-1].to = to
		return
	}
	s.holes = append(s.holes, hole{from, to})
}

// holeAt returns what was lost or left out around the byte at pos.
func (s *salvager) holeAt(pos int64) (hole, bool) {
	i, found := slices.BinarySearchFunc(s.holes, pos, func(h hole, pos int64) int { return cmp.Compare(h.from, pos) })
	if !found {
		i--
	}
	if i < 0 || pos >= s.holes[i].to {
		return hole{}, false
	}
	return s.holes[i], true
}

func (s *salvager) run(ctx context.Context) error {
	if err := s.number(ctx); err != nil {
		return err
	}
	s.lineage = s.r.newLineage(s.from, nil)
	n := 0
	report := int64(0)
	return s.frames(ctx, func(h *Header) error {
		if s.opt.Progress != nil && h.Pos >= report {
			s.opt.Progress(h.Pos)
			report = h.Pos + progressStep
		}
		if h.Status == statusUndone {
			s.notice(Notice{Kind: LeftOut, Offset: h.Pos, TID: h.TID, Text: "it was undone in place"})
			return nil
		}
		id := h.TID
		if s.ids != nil {
			id = s.ids[n]
		}
		n++
		if id != h.TID {
			s.changed = append(s.changed, Renumbered{h.Pos, h.TID, id})
		}
		if id <= s.opt.After || id > s.opt.UpTo {
			s.skip(h.Pos, h.End())
			return nil
		}
		return s.transaction(h, id)
	}, s.lose)
}

// number decides which transactions get other ids. In a file whose ids increase, it
// keeps nothing; otherwise 28 bytes for each transaction while it decides.
func (s *salvager) number(ctx context.Context) error {
	var ids []tid.TID
	last, ordered := tid.TID(0), true
	see := func(h *Header) error {
		if h.Status == statusUndone {
			return nil
		}
		ordered = ordered && h.TID > last && h.TID <= tid.Max
		last = h.TID
		if !ordered {
			ids = append(ids, h.TID)
		}
		return nil
	}
	for range 2 { // again to collect them all, if need be
		ids = nil
		if err := s.frames(ctx, see, func(Lost) {}); err != nil {
			return err
		}
		if ordered {
			return nil
		}
	}
	s.ids = increasing(ids)
	return nil
}

// increasing returns ids that increase, in which as many as possible are as they
// were. What is between two that stay gets the next ids after the first of them.
func increasing(ids []tid.TID) []tid.TID {
	n := len(ids)
	// Those that stay, i < j, leave room for what is between: ids[j]-ids[i] ≥ j-i. So
	// they are a longest subsequence of ids[i]-i that does not decrease. It is looked
	// for from the end: of two equal ids, the first stays.
	after := make([]int32, n) // the one that stays behind each
	var ends []int32          // where the best of each length begins
	room := func(i int32) int64 { return int64(i) - int64(ids[i]) }
	for i := int32(n) - 1; i >= 0; i-- {
		after[i] = -1
		if id := ids[i]; id <= tid.TID(i) || id > tid.Max-tid.TID(n) {
			continue // no place for those before, or behind
		}
		k, _ := slices.BinarySearchFunc(ends, room(i), func(e int32, v int64) int {
			if room(e) <= v {
				return -1
			}
			return 1
		})
		if k > 0 {
			after[i] = ends[k-1]
		}
		if k == len(ends) {
			ends = append(ends, i)
		} else {
			ends[k] = i
		}
	}
	out := make([]tid.TID, n)
	first := int32(-1)
	if len(ends) > 0 {
		first = ends[len(ends)-1]
		for i := first; i >= 0; i = after[i] {
			out[i] = ids[i]
		}
	}
	for i := range int32(n) {
		switch {
		case out[i] != 0:
		case i < first:
			out[i] = ids[first] - tid.TID(first-i)
		case i == 0:
			out[i] = 1
		default:
			out[i] = out[i-1] + 1
		}
	}
	return out
}

// newID returns the id of the transaction at pos, where it is in the file, which
// says that it is stored.
func (s *salvager) newID(pos int64, stored tid.TID) tid.TID {
	i, found := slices.BinarySearchFunc(s.changed, pos, func(c Renumbered, pos int64) int { return int(min(max(c.Pos-pos, -1), 1)) })
	if found && s.changed[i].Old == stored {
		return s.changed[i].New
	}
	return stored
}

// transaction appends what is intact of a transaction.
func (s *salvager) transaction(h *Header, id tid.TID) error {
	n, err := s.assess(h)
	if err != nil {
		return err
	}
	if len(s.bad) > 0 && (!s.opt.Partial || n == 0) {
		reason := fmt.Sprintf("%d of its records are damaged, the first: %s", len(s.bad), s.bad[0].Reason)
		if n > 0 {
			reason += fmt.Sprintf("; the other %d are intact", n)
		}
		s.lose(Lost{h.Pos, h.End(), h.TID, reason})
		return nil
	}
	repairs := s.repairs
	for _, pos := range slices.Sorted(maps.Keys(s.plan)) {
		repairs = append(repairs, s.plan[pos].repairs...)
	}
	for _, what := range repairs {
		s.notice(Notice{Kind: Repaired, Offset: h.Pos, TID: h.TID, Text: what})
	}
	for _, l := range s.bad {
		s.lose(l)
	}
	if id != h.TID {
		s.sum.Renumbered++
		s.notice(Notice{Kind: RenumberedID, Offset: h.Pos, TID: h.TID, Text: fmt.Sprintf("its id is out of order, it becomes %v", id)})
	}
	if id > s.limit {
		s.notice(Notice{Kind: Warned, Offset: h.Pos, TID: h.TID, Text: "it is in the future"})
	}
	var t Transaction
	s.scanner.head = *h
	if err := s.scanner.fillIn(&t, h); err != nil {
		return err
	}
	t.Transaction.TID = id
	s.lineage.records, s.lineage.whole = s.lineage.records[:0], true
	t.Records = func(yield func(*txn.Record, error) bool) {
		for rec, err := range s.records(h, id) {
			if !yield(rec, err) {
				return
			}
		}
	}
	if err := s.w.Append(&t.Transaction); err != nil {
		return err
	}
	if err := s.lineage.end(s.scanner, h); err != nil {
		return err
	}
	s.sum.Kept++
	s.sum.Records += n
	if len(s.bad) > 0 {
		s.sum.Partial++
	}
	return nil
}

// records yields the records of a transaction that was assessed.
func (s *salvager) records(h *Header, id tid.TID) iter.Seq2[*txn.Record, error] {
	return func(yield func(*txn.Record, error) bool) {
		var rec RecordHeader
		var out txn.Record
		for pos := h.First(); pos < h.Pos+h.Len; pos = rec.End() {
			if p, ok := s.plan[pos]; ok {
				if rec = p.rec; p.skip > 0 {
					rec = RecordHeader{Pos: p.skip - recHeaderLen - pointerLen} // ends there
					continue
				}
			} else if _, err := s.scanner.recordOf(h, pos, s.at(h), &rec); err != nil {
				yield(nil, err)
				return
			}
			if err := s.suspect(h, &rec); err != nil {
				yield(nil, err)
				return
			}
			if err := s.load(&rec, &out); err != nil {
				yield(nil, err)
				return
			}
			if id != h.TID && pickle.IsBlob(out.Data) {
				s.notice(Notice{Warned, rec.Pos, h.TID, rec.OID, true, fmt.Sprintf("it is a blob: its file has the id of the transaction in its name and is to be renamed to %v", id)})
			}
			if !yield(&out, nil) {
				return
			}
		}
	}
}

// suspect compares the pointer of a record to the previous one with what there is,
// unless that was lost.
func (s *salvager) suspect(h *Header, rec *RecordHeader) error {
	here := *rec
	if rec.Prev != 0 {
		here.Prev = s.moved(rec.Prev)
	}
	s.lineage.records = append(s.lineage.records, written{rec.OID, rec.Pos})
	wrong, err := s.lineage.check(&here, h.Status)
	if err != nil || wrong == nil {
		return err
	}
	if _, lost := s.holeAt(here.Prev); lost {
		return nil
	}
	if s.opt.Strict {
		return wrong
	}
	s.notice(Notice{Warned, rec.Pos, h.TID, rec.OID, true, wrong.Problem})
	return nil
}

// load is scanner.load for a record in a transaction that may have moved or have
// another id, and so may have what its back-pointers lead to.
func (s *salvager) load(rec *RecordHeader, out *txn.Record) error {
	if rec.DataLen > 0 {
		return s.scanner.load(rec, out)
	}
	*out = txn.Record{OID: rec.OID, TID: rec.TID}
	if rec.Back == 0 {
		return nil
	}
	cur := *rec
	for cur.DataLen == 0 && cur.Back != 0 {
		target, ok, err := s.target(&cur, cur.Back)
		if err != nil {
			return err
		}
		if !ok {
			return s.r.corruptRecord(rec, rec.TID, "its back-pointer leads to %d, where its data are no more", uint64(cur.Back))
		}
		if out.DataTID == 0 {
			// The transaction of the target is where it says, or as far from there as the
			// target is from where it was written.
			out.DataTID = s.newID(s.moved(target.TxnPos), target.TID)
		}
		cur = target
	}
	var err error
	out.Data, err = s.r.resolve(&cur, &s.scanner.big)
	return err
}

// target reads the record that a back-pointer leads to. ok is false if there is
// none that it can be.
func (s *salvager) target(rec *RecordHeader, back int64) (target RecordHeader, ok bool, err error) {
	// The loss may be further ahead than it seems: then the record is where it would
	// be had it moved along with this one.
	for _, pos := range []int64{s.moved(back), back + s.shift} {
		if pos < minRecordPos || pos >= min(rec.Pos, s.here) {
			continue
		}
		fixed, ok := s.fixed[pos]
		if ok {
			target = fixed
		} else {
			err = s.r.movedRecordAt(pos, &target)
		}
		if errors.As(err, new(*fs.PathError)) {
			return target, false, err
		}
		if err != nil || target.OID != rec.OID || target.TID >= rec.TID && s.ids == nil {
			continue
		}
		if !ok {
			ok, err = s.isWhole(&target, pos-back)
		}
		if ok || err != nil {
			return target, ok, err
		}
	}
	return target, false, nil
}

// maxUnpickled is the most data that are read to find out their length.
const maxUnpickled = 1 << 28

// isWhole reports whether a record, which has moved by some bytes, has the length that
// it says. One that was kept has. In a part that was lost, what follows it tells:
// another record of its transaction, or the end of that; or else the data, which are
// two pickles.
func (s *salvager) isWhole(rec *RecordHeader, moved int64) (bool, error) {
	lost, ok := s.holeAt(rec.Pos)
	switch {
	case rec.Pos < s.from:
		lost.to = s.from
	case !ok:
		return true, nil
	}
	if rec.DataLen == 0 {
		return true, nil
	}
	if rec.End() > lost.to {
		return false, nil
	}
	var b [recHeaderLen]byte
	n := min(recHeaderLen, s.r.size-rec.End())
	if err := readFull(s.r.r, b[:n], rec.End()); err != nil {
		return false, fmt.Errorf("%s: reading at offset %d: %w", s.r.name, rec.End(), err)
	}
	if next := parseRecordHeader(b[:], rec.End()); n == recHeaderLen && next.TxnPos == rec.TxnPos && next.TID == rec.TID {
		return true, nil
	}
	if n >= trailerLen && int64(binary.BigEndian.Uint64(b[:])) == rec.End()-moved-rec.TxnPos {
		return true, nil
	}
	if rec.DataLen > maxUnpickled {
		return false, nil
	}
	data, err := s.r.resolve(rec, &s.scanner.big)
	if err != nil {
		return false, err
	}
	return s.areData(data), nil
}

// areData reports whether b is two pickles and nothing behind them.
func (s *salvager) areData(b []byte) bool {
	plain, wrapped, err := pickle.Unwrap(b)
	if err != nil {
		return false
	}
	n, err := s.pickles.Len(plain)
	return err == nil && (n == len(plain) || wrapped)
}
