package fsformat

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/fsformat/pickle"
)

// CheckOptions configures [Check]. A zero field takes the documented default.
type CheckOptions struct {
	// Structure leaves out what is in the data: pickles and references.
	Structure bool
	// Now is what transactions must not be later than. Default: the time of the call.
	Now time.Time
	// Progress is told how far the check is.
	Progress Progress
}

// Severity tells errors from what may be so.
type Severity uint8

const (
	// Warning: FileStorage works with it, and it may be on purpose.
	Warning Severity = iota
	// Error: no writer leaves this.
	Error
)

func (s Severity) String() string {
	if s == Error {
		return "error"
	}
	return "warning"
}

// Problem is something that a check has found.
type Problem struct {
	Severity Severity
	Offset   int64   // of the transaction or the record
	TID      tid.TID // 0 if not known
	OID      tid.OID
	HasOID   bool
	Text     string
}

func (p Problem) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: offset %d: ", p.Severity, p.Offset)
	e := CorruptError{TID: p.TID, OID: p.OID, HasOID: p.HasOID, Problem: p.Text}
	e.describe(&b)
	return b.String()
}

// Summary is what a check has seen.
type Summary struct {
	Tail
	Transactions int64
	Undone       int64 // transactions undone in place
	Packed       int64 // transactions of status 'p'
	Records      int64
	BackPointers int64 // records that share the data of another
	Absent       int64 // records by which an object ceases to exist
	DataBytes    int64
	Objects      int
	Blobs        int64 // revisions of blobs
	Opaque       int64 // records whose wrapping is not known: their contents were not checked
	Hidden       int64 // packed records whose previous record a pack has forgotten
	Errors       int64
	Warnings     int64
}

// Check verifies all that can be verified of a Data.fs, and goes on after errors:
// the structure, what FileStorage checks and what it does not (tids, previous
// records, back-pointers), that data are two pickles that Python can load if it has
// the classes, and that the references of current objects lead somewhere. Problems are reported as they are found. The
// error is about reading or the context, never about what is in the file.
func Check(ctx context.Context, r *Reader, opt CheckOptions, report func(Problem)) (Summary, error) {
	if opt.Now.IsZero() {
		opt.Now = time.Now()
	}
	c := checker{
		r: r, opt: opt, report: report, index: NewIndex(), gone: make(map[tid.OID]struct{}),
		limit: tid.FromTime(opt.Now.Add(time.Minute)),
	}
	c.scanner.Python = true
	switch {
	case r.size == 0:
		c.problem(Problem{Severity: Error, Text: "the file is empty: it has no byte. FileStorage takes it for a new database; if there was one, it is gone"})
	case r.size == magicLen:
		c.problem(Problem{Severity: Warning, Text: "the file has no transaction: FileStorage leaves that before a new database is first opened"})
	}
	if err := c.transactions(ctx); err != nil {
		return c.sum, err
	}
	c.sum.Objects = c.index.Len()
	if (c.dangling || len(c.gone) > 0) && !opt.Structure {
		if err := c.references(ctx); err != nil {
			return c.sum, err
		}
	}
	return c.sum, nil
}

type checker struct {
	r        *Reader
	opt      CheckOptions
	report   func(Problem)
	index    *Index
	gone     map[tid.OID]struct{} // objects that do not exist any more
	limit    tid.TID
	sum      Summary
	scanner  pickle.Scanner
	records  []written
	missing  []tid.OID // referred to by the transaction, not stored before it
	dangling bool      // some reference leads, or led, nowhere
	opaque   bool      // it was said that there are opaque records
}

func (c *checker) problem(p Problem) {
	if p.Severity == Error {
		c.sum.Errors++
	} else {
		c.sum.Warnings++
	}
	c.report(p)
}

// corrupt reports an error if it is about the file, otherwise returns it.
func (c *checker) corrupt(err error) error {
	var e *CorruptError
	if !errors.As(err, &e) {
		return err
	}
	c.problem(Problem{Error, e.Offset, e.TID, e.OID, e.HasOID, e.Problem})
	return nil
}

func (c *checker) recordProblem(s Severity, rec *RecordHeader, t tid.TID, format string, args ...any) {
	c.problem(Problem{s, rec.Pos, t, rec.OID, true, fmt.Sprintf(format, args...)})
}

func (c *checker) transactions(ctx context.Context) error {
	s := c.r.newScanner(magicLen, 0)
	report := int64(0)
	for {
		if s.pos >= report {
			if err := ctx.Err(); err != nil {
				return err
			}
			if c.opt.Progress != nil {
				c.opt.Progress(s.pos)
			}
			report = s.pos + progressStep
		}
		h, err := s.next()
		if err != nil {
			if err := c.corrupt(err); err != nil {
				return err
			}
			if h, err = c.goOn(ctx, s); err != nil {
				return err
			}
		}
		if h == nil {
			c.end(s)
			return nil
		}
		if err := s.trailer(h); err != nil {
			if err := c.corrupt(err); err != nil {
				return err
			}
			fits, err := c.r.recordsFit(s, h, -1)
			if err != nil {
				return err
			}
			if !fits {
				s.pos = h.Pos
				if h, err = c.goOn(ctx, s); err != nil {
					return err
				}
				if h == nil {
					c.end(s)
					return nil
				}
			}
		}
		if err := c.transaction(s, h); err != nil {
			return err
		}
	}
}

// end notes where the transactions end, and what follows them.
func (c *checker) end(s *scanner) {
	c.sum.End, c.sum.Ignored, c.sum.Reason = s.pos, c.r.size-s.pos, s.reason
	if c.sum.Ignored > 0 {
		c.problem(Problem{Severity: Error, Offset: s.pos, Text: fmt.Sprintf("%s: %d bytes ignored", s.reason, c.sum.Ignored)})
	}
}

// goOn finds a transaction to go on with after damage: the one at fault, if its
// length is right, or the first that looks intact behind it.
func (c *checker) goOn(ctx context.Context, s *scanner) (*Header, error) {
	h := s.head
	if h.lenOK() && h.End() <= c.r.size && s.trailer(&h) == nil {
		s.pos = h.End()
		s.last = h.TID
		return &h, nil
	}
	from := s.pos
	after := s.last
	if after > c.limit {
		after = 0
	}
	found, err := c.r.resync(ctx, from+1, after, c.limit)
	if err != nil {
		return nil, err
	}
	if found == nil {
		s.reason = "no intact transaction follows"
		return nil, nil
	}
	c.problem(Problem{Severity: Error, Offset: from, Text: fmt.Sprintf("%d bytes are damaged: the next intact transaction, %v, is at %d", found.Pos-from, found.TID, found.Pos)})
	s.head = *found
	s.pos, s.last = found.End(), found.TID
	return found, nil
}

func (c *checker) transaction(s *scanner, h *Header) error {
	c.sum.Transactions++
	if h.Status == 'p' {
		c.sum.Packed++
	}
	if h.TID > c.limit {
		c.problem(Problem{Severity: Warning, Offset: h.Pos, TID: h.TID, Text: "it is in the future"})
	}
	if h.Status == statusUndone {
		c.sum.Undone++
		return nil
	}
	c.sum.LastTID = h.TID
	c.records, c.missing = c.records[:0], c.missing[:0]
	var rec RecordHeader
	for pos := h.First(); ; pos = rec.End() {
		ok, err := s.record(h, pos, &rec)
		if err != nil {
			if err := c.corrupt(err); err != nil {
				return err
			}
			break // where the next record is, nobody knows
		}
		if !ok {
			break
		}
		c.sum.Records++
		if err := c.record(s, h, &rec); err != nil {
			return err
		}
		c.records = append(c.records, written{rec.OID, pos})
	}
	for _, w := range c.records {
		c.index.Set(w.oid, w.pos)
	}
	for _, oid := range c.missing {
		if _, ok := c.index.Get(oid); !ok {
			c.dangling = true
		}
	}
	return nil
}

func (c *checker) record(s *scanner, h *Header, rec *RecordHeader) error {
	prev, _ := c.index.Get(rec.OID)
	switch {
	case rec.Prev == prev:
	case rec.Prev == 0 && h.Status == 'p':
		c.sum.Hidden++
	default:
		c.recordProblem(Error, rec, h.TID, "its previous record is said to be at %d, but is at %d", uint64(rec.Prev), prev)
	}
	if rec.DataLen == 0 {
		return c.pointer(rec)
	}
	if len(c.gone) > 0 {
		delete(c.gone, rec.OID)
	}
	c.sum.DataBytes += rec.DataLen
	if c.opt.Structure {
		return nil
	}
	data, err := s.w.data(rec.DataPos(), rec.DataLen, &s.big)
	if err != nil {
		return fmt.Errorf("%s: reading the data of object %v at offset %d: %w", c.r.name, rec.OID, rec.Pos, err)
	}
	refs, ok := c.scan(rec, data)
	if !ok {
		return nil
	}
	for _, ref := range refs {
		if ref.Kind != pickle.Strong {
			continue
		}
		if _, ok := c.index.Get(tid.OID(ref.OID)); !ok {
			c.missing = append(c.missing, tid.OID(ref.OID))
		}
	}
	return nil
}

// pointer checks a record without data of its own.
func (c *checker) pointer(rec *RecordHeader) error {
	from := *rec
	if from.Back != 0 {
		c.sum.BackPointers++
	}
	for from.DataLen == 0 && from.Back != 0 {
		var target RecordHeader
		err := c.r.follow(&from, &target)
		if err != nil && from.Pos != rec.Pos && errors.As(err, new(*CorruptError)) {
			return nil // was reported for that record
		}
		if err != nil {
			return c.corrupt(err)
		}
		from = target
	}
	if from.DataLen == 0 {
		c.sum.Absent++
		c.gone[rec.OID] = struct{}{}
	} else {
		delete(c.gone, rec.OID)
	}
	return nil
}

// scan returns the references of a record; false if they are not known.
func (c *checker) scan(rec *RecordHeader, data []byte) ([]pickle.Ref, bool) {
	plain, wrapped, err := pickle.Unwrap(data)
	if err != nil {
		c.recordProblem(Error, rec, rec.TID, "%v", err)
		return nil, false
	}
	if !wrapped && data[0] == '.' {
		c.sum.Opaque++
		if !c.opaque {
			c.opaque = true
			c.recordProblem(Warning, rec, rec.TID, "it is wrapped in an unknown way (%.2q): contents like these are not checked, and not reported again", data)
		}
		return nil, false
	}
	refs, err := c.scanner.References(plain)
	if err != nil {
		c.recordProblem(Error, rec, rec.TID, "Python cannot load its data: %v", err)
		return nil, false
	}
	if p := c.scanner.Protocol(); p > 0 {
		c.recordProblem(Warning, rec, rec.TID, "its data use pickle protocol %d, which ZODB does not read", p)
	}
	if c.r.magic == FS30 && c.scanner.ByteStrings() {
		c.recordProblem(Warning, rec, rec.TID, "its data have a str of Python 2 that is not ASCII, which ZODB does not load in Python 3")
	}
	if c.scanner.Untold() {
		c.recordProblem(Warning, rec, rec.TID, "its data have a persistent reference that is made by calling something: it is not checked")
	}
	if pickle.IsBlob(plain) {
		c.sum.Blobs++
	}
	return refs, true
}

// references looks for current objects that refer to nothing.
func (c *checker) references(ctx context.Context) error {
	w := newWindow(c.r.r, c.r.size)
	var buf []byte
	n := 0
	// In the order of the file, as far as the records have data of their own.
	for _, pos := range c.index.positions() {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		b, err := w.bytes(pos, recHeaderLen)
		if err != nil {
			return fmt.Errorf("%s: reading the record at offset %d: %w", c.r.name, pos, err)
		}
		rec := parseRecordHeader(b, pos)
		var data []byte
		if rec.DataLen > 0 {
			data, err = w.data(rec.DataPos(), rec.DataLen, &buf)
		} else if err = c.r.recordAt(pos, &rec); err == nil {
			data, err = c.r.resolve(&rec, &buf)
		}
		if errors.As(err, new(*CorruptError)) || data == nil && err == nil {
			continue // reported before, or no object
		}
		if err != nil {
			return fmt.Errorf("%s: reading the data of object %v at offset %d: %w", c.r.name, rec.OID, rec.Pos, err)
		}
		plain, _, err := pickle.Unwrap(data)
		if err != nil {
			continue // reported before
		}
		refs, err := c.scanner.References(plain)
		if err != nil {
			continue // reported before
		}
		for i, ref := range refs {
			if ref.Kind != pickle.Strong || seenBefore(refs[:i], ref) {
				continue
			}
			oid := tid.OID(ref.OID)
			if _, ok := c.index.Get(oid); !ok {
				c.recordProblem(Warning, &rec, rec.TID, "it refers to object %v, which is not there", oid)
			} else if _, gone := c.gone[oid]; gone {
				c.recordProblem(Warning, &rec, rec.TID, "it refers to object %v, which was deleted or its creation undone", oid)
			}
		}
	}
	return nil
}

// seenBefore reports whether an object was referred to shortly before.
func seenBefore(refs []pickle.Ref, ref pickle.Ref) bool {
	for _, r := range refs[max(0, len(refs)-32):] {
		if r.OID == ref.OID && r.Kind == ref.Kind {
			return true
		}
	}
	return false
}
