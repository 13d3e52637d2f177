package snapshot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"slices"
	"sort"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat/zdump"
)

// Reader reads the plaintext of a segment. Its methods may be called concurrently if
// the io.ReaderAt may. It keeps the directory and the frame table in memory.
//
// Errors that are not an [ErrCorrupt] or an [ErrVersion] are those of the io.ReaderAt.
type Reader struct {
	r      io.ReaderAt
	name   string
	size   int64
	f      Footer
	blocks []block
	frames []frame
}

// NewReader reads the directory of a segment whose plaintext has size bytes. Only its
// last MetaLength bytes are read. name is its key or path, for errors.
func NewReader(r io.ReaderAt, size int64, name string) (*Reader, error) {
	s := &Reader{r: r, name: name, size: size}
	if size < minContainer {
		return nil, corrupt(name, -1, "a segment of %d bytes, want at least %d", size, minContainer)
	}
	b, err := s.read(size-footerFrame, footerFrame)
	if err != nil {
		return nil, err
	}
	if s.f, err = parseFooter(b, name, size); err != nil {
		return nil, err
	}
	f := &s.f
	if b, err = s.read(f.DirectoryAt, f.DirectoryLength+f.TableLength); err != nil {
		return nil, err
	}
	directory, err := skippable(b[:f.DirectoryLength], name, f.DirectoryAt, frameDirectory, -1, "directory")
	if err != nil {
		return nil, err
	}
	table, err := skippable(b[f.DirectoryLength:], name, f.TableAt, frameTable, -1, "frame table")
	if err != nil {
		return nil, err
	}
	meta := sha256.New()
	meta.Write(directory)
	meta.Write(table)
	if got := Hash(meta.Sum(nil)); got != f.Meta {
		return nil, corrupt(name, f.DirectoryAt, "the hash of the directory is %v, the footer says %v", got, f.Meta)
	}
	if s.blocks, err = parseDirectory(directory, f); err != nil {
		return nil, corrupt(name, f.DirectoryAt, "%w", err)
	}
	if s.frames, err = parseTable(table, f); err != nil {
		return nil, corrupt(name, f.TableAt, "%w", err)
	}
	return s, nil
}

// Name returns the key or path that was given to NewReader.
func (s *Reader) Name() string { return s.name }

// With returns the same segment, read through another io.ReaderAt. The directory and
// the frame table, which it shares, are not read again.
func (s *Reader) With(r io.ReaderAt) *Reader {
	c := *s
	c.r = r
	return &c
}

// Footer returns what the segment sums up to.
func (s *Reader) Footer() Footer { return s.f }

// Header reads the header.
func (s *Reader) Header() (Header, error) {
	b, err := s.read(0, textStart)
	if err != nil {
		return Header{}, err
	}
	return parseHeader(b, s.name)
}

// Written returns what the writer of the segment knew.
func (s *Reader) Written() (*Written, error) {
	h, err := s.Header()
	return &Written{Header: h, Footer: s.f, Size: s.size}, err
}

// Matches returns an error unless the segment is what a line says. A Meta of 0 says nothing.
func (s *Reader) Matches(l *Segment) error {
	f := &s.f
	if f.Raw != l.Raw || f.Text != l.Text || f.Txns != l.Txns || f.Records != l.Records || f.MaxOID != l.MaxOID || l.Meta != 0 && f.MetaLength() != l.Meta {
		return corrupt(s.name, s.size-footerFrame, "the footer is not that of the segment which the manifest names")
	}
	return nil
}

func (s *Reader) read(off, n int64) ([]byte, error) {
	b := make([]byte, n)
	return b, s.readInto(b, off)
}

func (s *Reader) readInto(b []byte, off int64) error {
	n, err := s.r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt(s.name, off+int64(n), "it ends there, want %d bytes", s.size)
	}
	if errors.Is(err, ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%s: reading %d bytes at %d: %w", s.name, len(b), off, err)
}

// Blocks returns the number of index blocks.
func (s *Reader) Blocks() int { return len(s.blocks) }

// Block reads the entries of an index block.
func (s *Reader) Block(i int) ([]Entry, error) {
	d := &s.blocks[i]
	b, err := s.read(d.at, d.len)
	if err != nil {
		return nil, err
	}
	if shortSum(b) != d.sum {
		return nil, corrupt(s.name, d.at, "index block %d has another hash than the directory says", i)
	}
	c, err := skippable(b, s.name, d.at, frameBlock, -1, "index block")
	if err != nil {
		return nil, err
	}
	if c, err = decompress(nil, c, maxBlock); err != nil {
		return nil, corrupt(s.name, d.at, "index block %d: %w", i, err)
	}
	list, err := parseBlock(c, &s.f)
	if err != nil {
		return nil, corrupt(s.name, d.at, "index block %d: %w", i, err)
	}
	switch {
	case list[0].compare(d.first) != 0:
		return nil, corrupt(s.name, d.at, "index block %d begins with object %v, transaction %v, not as the directory says", i, list[0].OID, list[0].TID)
	case i+1 < len(s.blocks) && list[len(list)-1].compare(s.blocks[i+1].first) >= 0:
		return nil, corrupt(s.name, d.at, "index block %d ends behind the beginning of the next one", i)
	}
	return list, nil
}

// Entries yields the index, ascending by oid, those of an oid descending by tid. It
// ends at the first error.
func (s *Reader) Entries() iter.Seq2[Entry, error] { return s.entriesFrom(0) }

// EntriesFrom is Entries from the first revision of an object on.
func (s *Reader) EntriesFrom(oid tid.OID) iter.Seq2[Entry, error] {
	want := Entry{OID: oid, TID: tid.Invalid}
	i := sort.Search(len(s.blocks), func(i int) bool { return s.blocks[i].first.compare(want) > 0 })
	return func(yield func(Entry, error) bool) {
		for e, err := range s.entriesFrom(max(i-1, 0)) {
			if err == nil && e.OID < oid {
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func (s *Reader) entriesFrom(i int) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for i := i; i < len(s.blocks); i++ {
			list, err := s.Block(i)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			for _, e := range list {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// Find returns the latest revision of an object before a TID. The error is
// ErrNotFound if the segment has none.
func (s *Reader) Find(oid tid.OID, before tid.TID) (Entry, error) {
	if before == 0 {
		return Entry{}, ErrNotFound
	}
	want := Entry{OID: oid, TID: before - 1}
	i := sort.Search(len(s.blocks), func(i int) bool { return s.blocks[i].first.compare(want) > 0 })
	// The last block that begins before it may have it, else what the next one begins
	// with, as far as the directory does not deny it.
	for j := max(i-1, 0); j < len(s.blocks); j++ {
		if j >= i && s.blocks[j].first.OID != oid {
			break
		}
		list, err := s.Block(j)
		if err != nil {
			return Entry{}, err
		}
		k, _ := slices.BinarySearchFunc(list, want, Entry.compare)
		if k == len(list) {
			continue
		}
		if list[k].OID != oid {
			break
		}
		return list[k], nil
	}
	return Entry{}, ErrNotFound
}

// Next returns the earliest revision of an object after a TID. The error is
// ErrNotFound if the segment has none.
func (s *Reader) Next(oid tid.OID, after tid.TID) (Entry, error) {
	var found *Entry
	want := Entry{OID: oid, TID: tid.Invalid}
	i := sort.Search(len(s.blocks), func(i int) bool { return s.blocks[i].first.compare(want) > 0 })
	for e, err := range s.entriesFrom(max(i-1, 0)) {
		if err != nil {
			return e, err
		}
		if e.OID < oid {
			continue
		}
		if e.OID > oid || e.TID <= after {
			break
		}
		found = &e
	}
	if found == nil {
		return Entry{}, ErrNotFound
	}
	return *found, nil
}

// frameText decodes the text of a frame into the memory of b.
func (s *Reader) frameText(i int, b []byte) ([]byte, error) {
	f := &s.frames[i]
	stored, err := s.read(f.at, f.len)
	if err != nil {
		return nil, err
	}
	if shortSum(stored) != f.sum {
		return nil, corrupt(s.name, f.at, "frame %d has another hash than the frame table says", i)
	}
	if b, err = decompress(b, stored, maxFrameText); err != nil {
		return nil, corrupt(s.name, f.at, "frame %d: %w", i, err)
	}
	if int64(len(b)) != f.text {
		return nil, corrupt(s.name, f.at, "frame %d has %d bytes of text, the frame table says %d", i, len(b), f.text)
	}
	return b, nil
}

// text reads the dump text from a frame on.
type text struct {
	s    *Reader
	next int       // frame
	raw  hash.Hash // of all, nil if it is not read from the beginning
	buf  []byte
	rest []byte
	err  error

	ahead chan decoded // frames that are decoded in the background; nil: none are
	spare chan []byte
}

// decoded is the text of a frame.
type decoded struct {
	b   []byte
	err error
}

// readAhead decodes the frames from next on in the background, on another processor than
// the one that uses them. The caller calls stop at the end, and then the reader is not used
// any more.
func (t *text) readAhead() (stop func()) {
	if len(t.s.frames)-t.next < 2 {
		return func() {}
	}
	t.ahead, t.spare = make(chan decoded, 1), make(chan []byte, 3)
	ahead, quit := t.ahead, make(chan struct{})
	go func(next int) {
		defer close(ahead)
		for ; next < len(t.s.frames); next++ {
			var d decoded
			select {
			case d.b = <-t.spare:
			default:
			}
			if d.b, d.err = t.s.frameText(next, d.b); d.err == nil && t.raw != nil {
				t.raw.Write(d.b)
			}
			select {
			case ahead <- d:
			case <-quit:
				return
			}
			if d.err != nil {
				return
			}
		}
	}(t.next)
	return func() {
		close(quit)
		for range ahead {
		}
	}
}

// frame makes buf the text of the next frame. more is false at the end.
func (t *text) frame() (more bool, err error) {
	if t.ahead != nil {
		if t.buf != nil {
			t.spare <- t.buf
		}
		d, more := <-t.ahead
		t.buf = d.b
		return more, d.err
	}
	if t.next == len(t.s.frames) {
		return false, nil
	}
	if t.buf, err = t.s.frameText(t.next, t.buf); err != nil {
		return true, err
	}
	t.next++
	if t.raw != nil {
		t.raw.Write(t.buf)
	}
	return true, nil
}

func (t *text) Read(p []byte) (int, error) {
	for len(t.rest) == 0 && t.err == nil {
		more, err := t.frame()
		if more {
			t.rest, t.err = t.buf, err
			continue
		}
		t.err = io.EOF
		if t.raw != nil {
			if got := Hash(t.raw.Sum(nil)); got != t.s.f.Raw {
				t.err = corrupt(t.s.name, textStart, "the hash of the text is %v, the footer says %v", got, t.s.f.Raw)
			}
		}
	}
	if len(t.rest) == 0 {
		return 0, t.err
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// Text returns a reader of the dump text. It verifies all hashes, that of the whole
// text at its end: what was read is right only if the reader came to io.EOF.
func (s *Reader) Text() io.Reader { return &text{s: s, raw: sha256.New()} }

// FrameStart returns where the frame begins, in the text, that a place of it is in.
func (s *Reader) FrameStart(pos int64) int64 {
	if len(s.frames) == 0 {
		return 0
	}
	return s.frames[s.frameAt(pos)].pos
}

func (s *Reader) frameAt(pos int64) int {
	return max(sort.Search(len(s.frames), func(i int) bool { return s.frames[i].pos > pos })-1, 0)
}

// Load reads the revision of an entry.
func (s *Reader) Load(e Entry) (*Record, error) {
	first, err := s.Frame(e)
	if err != nil {
		return nil, err
	}
	return s.LoadFrom(e, first)
}

// Frame returns the text of the frame in which an entry is, or begins.
func (s *Reader) Frame(e Entry) ([]byte, error) {
	if e.Pos < 0 || e.Pos >= s.f.Text {
		return nil, corrupt(s.name, -1, "object %v in transaction %v: no text at %d", e.OID, e.TID, e.Pos)
	}
	return s.frameText(s.frameAt(e.Pos), nil)
}

// LoadFrom is Load with what Frame returned for an entry of the same frame.
func (s *Reader) LoadFrom(e Entry, first []byte) (*Record, error) {
	i := s.frameAt(e.Pos)
	at := e.Pos - s.FrameStart(e.Pos)
	if at < 0 || at >= int64(len(first)) {
		return nil, corrupt(s.name, -1, "object %v in transaction %v: no text at %d", e.OID, e.TID, e.Pos)
	}
	t := &text{s: s, next: i + 1, rest: first[at:]}
	sc := zdump.NewScanner(t)
	sc.Resume(e.TID)
	r, err := sc.Record()
	if t.err != nil && t.err != io.EOF {
		return nil, t.err
	}
	if err != nil {
		return nil, corrupt(s.name, s.frames[i].at, "object %v in transaction %v, at %d of the text: %w", e.OID, e.TID, e.Pos, err)
	}
	if r == nil || r.OID != e.OID {
		return nil, corrupt(s.name, s.frames[i].at, "object %v in transaction %v is not at %d of the text, where the index has it", e.OID, e.TID, e.Pos)
	}
	rec := record(r)
	if !fits(&rec, e.Kind) {
		return nil, corrupt(s.name, s.frames[i].at, "object %v in transaction %v is not of the kind %d that the index has", e.OID, e.TID, e.Kind)
	}
	rec.Kind = e.Kind
	return &rec, nil
}

// record returns what a line of a dump says. Of a copy of an earlier revision it
// assumes that there is data.
func record(r *txn.Record) Record {
	rec := Record{OID: r.OID, TID: r.TID, DataTID: r.DataTID, Data: r.Data}
	switch {
	case r.DataTID != 0:
		rec.Kind = Copied
	case r.Data == nil:
		rec.Kind = NoData
	}
	return rec
}

// fits reports whether a record of the text can be of the kind that the index says.
func fits(r *Record, k EntryKind) bool {
	return r.Kind == k || r.Kind == Copied && k == NoData
}

// Event is a step through a segment: a transaction begins, has a record, or ends.
type Event struct {
	Txn    *txn.Transaction // it begins; without its records
	Record *Record          // valid until the next step
	Pos    int64            // in the text
}

// Walk yields all that is in the segment, in the order of its text. It begins with a
// record if the segment continues a transaction, and ends without an end if it is
// continued. It ends at the first error. All hashes are verified, that of the whole
// text at the end: what came before is right only if no error follows.
//
// It keeps 8 bytes per deletion in memory.
func (s *Reader) Walk() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		h, err := s.Header()
		if err != nil {
			yield(Event{}, err)
			return
		}
		var absent []int64
		for e, err := range s.Entries() {
			if err != nil {
				yield(Event{}, err)
				return
			}
			if e.Kind == NoData {
				absent = append(absent, e.Pos)
			}
		}
		slices.Sort(absent)
		s.walk(&h, absent, yield)
	}
}

func (s *Reader) walk(h *Header, absent []int64, yield func(Event, error) bool) {
	t := &text{s: s, raw: sha256.New()}
	defer t.readAhead()()
	sc := zdump.NewScanner(t)
	fail := func(err error) {
		if t.err != nil && t.err != io.EOF {
			err = t.err
		} else if !errors.Is(err, ErrCorrupt) {
			err = corrupt(s.name, textStart, "its text, byte %d: %w", sc.Pos(), err)
		}
		yield(Event{}, err)
	}
	last := h.After
	open := h.Continues
	if open {
		sc.Resume(h.Upto)
		last = h.Upto
	}
	for {
		if !open {
			tr, err := sc.Transaction()
			if err == io.EOF {
				break
			}
			if err != nil {
				fail(err)
				return
			}
			if tr.TID <= last || tr.TID > h.Upto || h.Continues {
				fail(fmt.Errorf("transaction %v after %v in a segment from %v to %v", tr.TID, last, h.After, h.Upto))
				return
			}
			if last, open = tr.TID, true; !yield(Event{Txn: tr, Pos: sc.Pos()}, nil) {
				return
			}
		}
		if h.Continued && last == h.Upto && sc.Offset() == s.f.Text {
			break // the rest is in the next segment
		}
		r, err := sc.Record()
		if err != nil {
			fail(err)
			return
		}
		if r == nil {
			open = false
			if !yield(Event{Pos: sc.Pos()}, nil) {
				return
			}
			continue
		}
		rec := record(r)
		if _, found := slices.BinarySearch(absent, sc.Pos()); found {
			if !fits(&rec, NoData) {
				fail(fmt.Errorf("object %v in transaction %v has data, the index says that it has none", rec.OID, rec.TID))
				return
			}
			rec.Kind = NoData
		}
		if !yield(Event{Record: &rec, Pos: sc.Pos()}, nil) {
			return
		}
	}
	if open != h.Continued {
		fail(fmt.Errorf("the header says continued %v, the end of transaction %v is there: %v", h.Continued, last, !open))
		return
	}
	if _, err := io.Copy(io.Discard, t); err != nil { // verifies the hash of the text
		fail(err)
	}
}

// FrameBefore returns the first transaction that touches the last frame of which this is
// before t; Zero if there is no such frame. It reads nothing.
func (s *Reader) FrameBefore(t tid.TID) tid.TID {
	i := sort.Search(len(s.frames), func(i int) bool { return s.frames[i].tid >= t })
	if i == 0 {
		return tid.Zero
	}
	return s.frames[i-1].tid
}

// anchor returns the last frame that begins with the head or a record of a transaction not
// after t, or with the end of one; 0 if there is none.
func (s *Reader) anchor(t tid.TID) (int, error) {
	i := sort.Search(len(s.frames), func(i int) bool { return s.frames[i].tid > t })
	for i = max(i-1, 0); i > 0; i-- {
		// A cut within a record comes after a whole piece of it.
		if s.frames[i-1].text < recordPiece {
			break
		}
		// Of such frames most end with a transaction. What is in a record cannot name its own
		// transaction, whose id is given to it afterwards.
		b, err := s.frameText(i, nil)
		if err != nil {
			return 0, err
		}
		if head, err := zdump.NewScanner(bytes.NewReader(b)).Transaction(); err == nil && head.TID == s.frames[i].tid {
			break
		}
	}
	return i, nil
}

// WalkAfter yields what Walk does of the transactions after one, as far as this can be
// known of a part: only the frames that have them are read, and their hashes verified.
// Of a copy of an earlier revision it is not known whether there is data. In a segment that
// continues a transaction after t it begins with a record of that.
func (s *Reader) WalkAfter(t tid.TID) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if t >= s.f.Last {
			return
		}
		i, err := s.anchor(t)
		if err != nil {
			yield(Event{}, err)
			return
		}
		f := &s.frames[i]
		first, err := s.frameText(i, nil)
		if err != nil {
			yield(Event{}, err)
			return
		}
		x := &text{s: s, next: i + 1, buf: first, rest: first}
		sc := zdump.NewScanner(x)
		fail := func(err error) {
			if x.err != nil && x.err != io.EOF {
				err = x.err
			} else {
				err = corrupt(s.name, f.at, "its text, byte %d: %w", f.pos+sc.Pos(), err)
			}
			yield(Event{}, err)
		}
		last, open, shown := tid.Zero, false, false
		if !bytes.HasPrefix(first, []byte("txn ")) {
			sc.Resume(f.tid)
			last, open, shown = f.tid, true, f.tid > t
		}
		for {
			if !open {
				head, err := sc.Transaction()
				if err == io.EOF {
					return
				}
				if err != nil {
					fail(err)
					return
				}
				if head.TID <= last || head.TID > s.f.Last {
					fail(fmt.Errorf("transaction %v after %v in a segment up to %v", head.TID, last, s.f.Last))
					return
				}
				last, open, shown = head.TID, true, head.TID > t
				if shown && !yield(Event{Txn: head, Pos: f.pos + sc.Pos()}, nil) {
					return
				}
			}
			if last == s.f.Last && f.pos+sc.Offset() == s.f.Text {
				return // it is continued
			}
			r, err := sc.Record()
			if err != nil {
				fail(err)
				return
			}
			e := Event{Pos: f.pos + sc.Pos()}
			if r == nil {
				open = false
			} else {
				rec := record(r)
				e.Record = &rec
			}
			if shown && !yield(e, nil) {
				return
			}
		}
	}
}

// Check verifies all that the segment alone can show: every hash, the syntax and order
// of the text, its range, the sums of the footer, and that text and index say the same.
// visit, unless it is nil, is called for every record, which is valid during the call:
// what DataTID leads to may be in another segment. Check keeps 32 bytes per record in
// memory.
func (s *Reader) Check(visit func(*Record) error) error {
	h, err := s.Header()
	if err != nil {
		return err
	}
	f := &s.f
	var list []Entry
	var sum Footer
	next := 0 // frame
	last := tid.TID(0)
	if h.Continues {
		last = h.Upto
		sum.First = last
	}
	touch := func(pos int64) error {
		for ; next < len(s.frames) && s.frames[next].pos < pos; next++ {
			if got := s.frames[next].tid; got != last {
				return corrupt(s.name, f.TableAt, "frame %d begins within transaction %v, the frame table says %v", next, last, got)
			}
		}
		return nil
	}
	for ev, err := range s.Walk() {
		if err != nil {
			return err
		}
		switch {
		case ev.Txn != nil:
			if err := touch(ev.Pos); err != nil {
				return err
			}
			sum.Txns++
			if last = ev.Txn.TID; sum.First == 0 {
				sum.First = last
			}
		case ev.Record != nil:
			r := ev.Record
			sum.Records++
			sum.MaxOID = max(sum.MaxOID, r.OID)
			list = append(list, Entry{OID: r.OID, TID: r.TID, Pos: ev.Pos, Kind: r.Kind})
			if visit != nil {
				if err := visit(r); err != nil {
					return err
				}
			}
		}
	}
	if err := touch(f.Text); err != nil {
		return err
	}
	sum.Last = last
	if f.Text == 0 {
		sum.First, sum.Last = 0, 0
	}
	if sum.Txns != f.Txns || sum.Records != f.Records || sum.MaxOID != f.MaxOID || sum.First != f.First || sum.Last != f.Last {
		return corrupt(s.name, s.size-footerFrame, "its text has %d transactions (%v to %v), %d records, objects to %v; the footer says %d (%v to %v), %d, %v",
			sum.Txns, sum.First, sum.Last, sum.Records, sum.MaxOID, f.Txns, f.First, f.Last, f.Records, f.MaxOID)
	}
	sortEntries(list)
	list = slices.CompactFunc(list, func(a, b Entry) bool { return a.compare(b) == 0 })
	for e, err := range s.Entries() {
		if err != nil {
			return err
		}
		if len(list) == 0 || list[0] != e {
			return corrupt(s.name, f.IndexAt, "the index has object %v, transaction %v, kind %d at %d of the text, the text has not", e.OID, e.TID, e.Kind, e.Pos)
		}
		list = list[1:]
	}
	if len(list) > 0 {
		return corrupt(s.name, f.IndexAt, "object %v of transaction %v is in the text, but not in the index", list[0].OID, list[0].TID)
	}
	return nil
}
