package snapshot

import (
	"cmp"
	"container/heap"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"runtime"
	"slices"
	"strconv"

	"github.com/klauspost/compress/zstd"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat/zdump"
)

// When a frame ends.
const (
	frameSize   = 256 << 10 // at the end of a transaction, of a record in a long one
	longTxn     = 1 << 20
	recordPiece = 1 << 20 // within a record
	blockSize   = 32 << 10
	slabSize    = 1 << 15 // entries
)

// MaxRecord is the greatest length of the data of a record.
const MaxRecord = 4 << 30

// ErrTooLarge reports a record with more than MaxRecord bytes of data.
var ErrTooLarge = errors.New("too large for a backup")

// Tip returns what identifies a transaction with its metadata. Its status is not part
// of that, since a pack may change it, nor are its records.
func Tip(t *txn.Transaction) Hash {
	b := fmt.Appendf(nil, "txn %v\n", t.TID)
	return Sum(zdump.AppendMetadata(b, t))
}

// Record is a revision as a segment has it.
type Record struct {
	OID tid.OID
	TID tid.TID // of the transaction it belongs to

	Kind    EntryKind
	DataTID tid.TID // of the earlier revision that it copies, or zero
	Data    []byte  // if Kind is HasData
}

// RecordOf returns what a segment has for a record. copied says that the revision
// that DataTID names is in the history of the backup; if it is not, the record is
// written with its data.
func RecordOf(r *txn.Record, copied bool) Record {
	rec := Record{OID: r.OID, TID: r.TID, Data: r.Data}
	if copied {
		rec.DataTID = r.DataTID
	}
	switch {
	case r.Data == nil:
		rec.Kind = NoData
	case rec.DataTID != 0:
		rec.Kind, rec.Data = Copied, nil
	}
	return rec
}

// WriterOptions say how a segment is written. Zero fields take the defaults.
type WriterOptions struct {
	Level Level // default: Fastest

	// Concurrency is how many frames are compressed at the same time, beside the
	// caller's work; default: the number of processors. 1 compresses in the calls.
	Concurrency int
}

// SegmentWriter writes the plaintext of a segment: Begin, Record and End for each
// transaction, then Close. After an error it cannot be used. It keeps 32 bytes per
// record and Concurrency frames in memory.
type SegmentWriter struct {
	w   io.WriterAt
	h   Header
	off int64
	enc *zstd.Encoder
	err error

	raw      hash.Hash
	buf      []byte // text of the frame that has not ended
	bufTID   tid.TID
	pos      int64 // of the next byte of text
	txnPos   int64 // where the transaction begins
	at       tid.TID
	inTxn    bool
	line     []byte
	table    []byte
	f        Footer
	index    [][]Entry // slabs; all but the last are sorted
	jobs     []*job    // oldest first
	limit    int
	freeText [][]byte
}

// job is a frame that is compressed.
type job struct {
	text []byte
	out  []byte
	tid  tid.TID
	done chan struct{}
}

// NewSegmentWriter returns a writer of a segment. Repo, Lineage and After of h are
// what the segment will have; with Continues it begins within transaction After. The
// header is written last, so that what was not closed is no segment.
func NewSegmentWriter(w io.WriterAt, h Header, o WriterOptions) (*SegmentWriter, error) {
	enc, err := encoder(o.Level)
	if err != nil {
		return nil, err
	}
	s := &SegmentWriter{w: w, h: h, off: textStart, enc: enc, raw: sha256.New(), limit: o.Concurrency, at: h.After}
	if s.limit <= 0 {
		s.limit = runtime.GOMAXPROCS(0)
	}
	if h.Continues {
		s.inTxn = true
		s.f.First, s.f.Last = h.After, h.After
	}
	return s, nil
}

// Size returns about how long the segment would be if it were closed now.
func (s *SegmentWriter) Size() int64 {
	n := s.off + int64(len(s.table)) + s.f.Records*8 + 1024
	for _, j := range s.jobs {
		n += int64(len(j.text)) / 2
	}
	return n + int64(len(s.buf))/2
}

// Text returns how many bytes of text were written.
func (s *SegmentWriter) Text() int64 { return s.pos }

// Begin begins a transaction. Its records are not read.
func (s *SegmentWriter) Begin(t *txn.Transaction) error {
	switch {
	case s.err != nil:
		return s.err
	case s.inTxn:
		return s.fail(fmt.Errorf("transaction %v begins within transaction %v", t.TID, s.at))
	case s.h.Continues:
		return s.fail(fmt.Errorf("transaction %v in a segment that only goes on with %v", t.TID, s.at))
	case t.TID <= s.at || t.TID > tid.Max:
		return s.fail(fmt.Errorf("transaction %v after %v", t.TID, s.at))
	}
	for _, m := range []struct {
		name string
		b    []byte
	}{{"user", t.User}, {"description", t.Description}, {"extension", t.Extension}} {
		if len(m.b) > math.MaxUint16 {
			return s.fail(fmt.Errorf("transaction %v: its %s of %d bytes is longer than a database can hold", t.TID, m.name, len(m.b)))
		}
	}
	if s.f.First == 0 {
		s.f.First = t.TID
	}
	s.at, s.inTxn, s.txnPos = t.TID, true, s.pos
	s.f.Last = t.TID
	s.f.Txns++
	s.line = zdump.AppendHead(s.line[:0], t)
	s.text(s.line)
	return nil
}

// Record writes a record of the transaction. The data may change after the call.
func (s *SegmentWriter) Record(r Record) error {
	switch {
	case s.err != nil:
		return s.err
	case !s.inTxn:
		return s.fail(fmt.Errorf("object %v outside of a transaction", r.OID))
	case r.TID != s.at:
		return s.fail(fmt.Errorf("object %v: a record of transaction %v in transaction %v", r.OID, r.TID, s.at))
	case r.DataTID >= s.at && r.DataTID != 0:
		return s.fail(fmt.Errorf("object %v in transaction %v: its data are those of %v, which is not earlier", r.OID, s.at, r.DataTID))
	case (r.Kind == HasData) != (r.Data != nil) || r.Kind == HasData && r.DataTID != 0 || r.Kind == Copied && r.DataTID == 0 || r.Kind > Copied:
		return s.fail(fmt.Errorf("object %v in transaction %v: kind %d, copy of %v and data do not fit", r.OID, s.at, r.Kind, r.DataTID))
	case len(r.Data) > MaxRecord:
		return s.fail(fmt.Errorf("object %v in transaction %v: %d bytes of data, more than 4 GiB: %w", r.OID, s.at, len(r.Data), ErrTooLarge))
	}
	start := s.pos
	s.add(Entry{OID: r.OID, TID: s.at, Pos: start, Kind: r.Kind})
	s.f.Records++
	s.f.MaxOID = max(s.f.MaxOID, r.OID)
	b := AppendRecordHead(s.line[:0], &r)
	s.line = b
	s.text(b)
	if r.Kind == HasData {
		for data := r.Data; len(data) > 0; {
			n := min(int64(len(data)), recordPiece-(s.pos-start)%recordPiece)
			s.text(data[:n])
			data = data[n:]
			if (s.pos-start)%recordPiece == 0 {
				if err := s.cut(); err != nil {
					return err
				}
			}
		}
		s.text([]byte{'\n'})
	}
	if len(s.buf) >= frameSize && s.pos-s.txnPos > longTxn {
		return s.cut()
	}
	return nil
}

// AppendRecordHead appends the line with which the text of a segment has a record. Data
// and LF follow it if the kind is HasData.
func AppendRecordHead(b []byte, r *Record) []byte {
	b = append(b, "obj "...)
	b = append(b, r.OID.String()...)
	switch {
	case r.DataTID != 0:
		b = append(b, " from "...)
		b = append(b, r.DataTID.String()...)
		return append(b, '\n')
	case r.Kind == NoData:
		return append(b, " delete\n"...)
	}
	b = strconv.AppendInt(append(b, ' '), int64(len(r.Data)), 10)
	return append(b, " null:00\n"...)
}

// End ends the transaction.
func (s *SegmentWriter) End() error {
	if s.err != nil {
		return s.err
	}
	if !s.inTxn {
		return s.fail(errors.New("the end of a transaction outside of one"))
	}
	s.text([]byte{'\n'})
	s.inTxn = false
	if len(s.buf) >= frameSize {
		return s.cut()
	}
	return nil
}

func (s *SegmentWriter) fail(err error) error {
	s.err = err
	return err
}

func (s *SegmentWriter) text(b []byte) {
	if len(s.buf) == 0 {
		s.bufTID = s.at
	}
	s.raw.Write(b)
	s.buf = append(s.buf, b...)
	s.pos += int64(len(b))
}

// cut ends the frame.
func (s *SegmentWriter) cut() error {
	if len(s.buf) == 0 {
		return nil
	}
	j := &job{text: s.buf, tid: s.bufTID, done: make(chan struct{})}
	s.buf = nil
	if n := len(s.freeText); n > 0 {
		s.buf, s.freeText = s.freeText[n-1][:0], s.freeText[:n-1]
	}
	work := func() {
		j.out = s.enc.EncodeAll(j.text, make([]byte, 0, len(j.text)/2+1024))
		close(j.done)
	}
	if s.limit == 1 {
		work()
	} else {
		go work()
	}
	s.jobs = append(s.jobs, j)
	if len(s.jobs) >= s.limit {
		return s.flush()
	}
	return nil
}

// flush writes the oldest frame.
func (s *SegmentWriter) flush() error {
	j := s.jobs[0]
	s.jobs = s.jobs[1:]
	<-j.done
	s.table = appendFrame(s.table, &frame{text: int64(len(j.text)), len: int64(len(j.out)), tid: j.tid, sum: shortSum(j.out)})
	s.freeText = append(s.freeText, j.text)
	return s.write(j.out)
}

func (s *SegmentWriter) write(b []byte) error {
	if _, err := s.w.WriteAt(b, s.off); err != nil {
		return s.fail(fmt.Errorf("writing a segment at byte %d: %w", s.off, err))
	}
	s.off += int64(len(b))
	return nil
}

// add adds an entry to the index. Slabs bound what is copied when it grows.
func (s *SegmentWriter) add(e Entry) {
	n := len(s.index)
	if n == 0 || len(s.index[n-1]) == slabSize {
		if n > 0 {
			sortEntries(s.index[n-1])
		}
		s.index = append(s.index, nil)
		n++
	}
	s.index[n-1] = append(s.index[n-1], e)
}

// sortEntries sorts as an index is, the last of the same oid and tid first.
func sortEntries(list []Entry) {
	slices.SortFunc(list, func(a, b Entry) int {
		if c := a.compare(b); c != 0 {
			return c
		}
		return cmp.Compare(b.Pos, a.Pos)
	})
}

// slabs is a heap of sorted lists.
type slabs [][]Entry

func (h slabs) Len() int { return len(h) }
func (h slabs) Less(i, j int) bool {
	if c := h[i][0].compare(h[j][0]); c != 0 {
		return c < 0
	}
	return h[i][0].Pos > h[j][0].Pos
}
func (h slabs) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *slabs) Push(x any)   { *h = append(*h, x.([]Entry)) }
func (h *slabs) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// writeIndex writes the index blocks and returns the directory.
func (s *SegmentWriter) writeIndex() ([]byte, error) {
	if n := len(s.index); n > 0 {
		sortEntries(s.index[n-1])
	}
	h := slabs(s.index)
	s.index = nil
	heap.Init(&h)
	var directory, content []byte
	var first, last Entry
	flush := func() error {
		if len(content) == 0 {
			return nil
		}
		stored := s.enc.EncodeAll(content, make([]byte, frameHead, len(content)))
		appendFrameHead(stored[:0], frameBlock, len(stored)-frameHead)
		directory = appendBlock(directory, &block{first: first, at: s.off, len: int64(len(stored)), sum: shortSum(stored)})
		content = content[:0]
		return s.write(stored)
	}
	any := false
	for len(h) > 0 {
		e := h[0][0]
		if h[0] = h[0][1:]; len(h[0]) == 0 {
			heap.Pop(&h)
		} else {
			heap.Fix(&h, 0)
		}
		if any && last.compare(e) == 0 {
			continue // an earlier line of the object in the same transaction
		}
		if len(content)+maxEntry > blockSize {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		prev := last.OID
		if len(content) == 0 {
			first, prev = e, 0
		}
		content = appendEntry(content, e, prev)
		last, any = e, true
	}
	return directory, flush()
}

// Written is what Close knows of a segment.
type Written struct {
	Header Header
	Footer Footer
	Size   int64 // of the plaintext
}

// Line returns the line that refers to the segment in a manifest or a tail, as an
// object of its own.
func (w *Written) Line(st Stored) Segment {
	h, f := &w.Header, &w.Footer
	return Segment{
		Key: SegmentKey(h.Lineage, h.After, h.Upto, st.SHA256), After: h.After, Upto: h.Upto, Bytes: st.Bytes, SHA256: st.SHA256,
		Raw: f.Raw, Text: f.Text, Txns: f.Txns, Records: f.Records, MaxOID: f.MaxOID, Meta: f.MetaLength(), KID: st.KID, Header: st.Header,
	}
}

// Close ends the segment with its range and writes its header. Within a transaction,
// which then is upto, the segment is continued.
func (s *SegmentWriter) Close(upto, exactFrom tid.TID) (*Written, error) {
	if s.err != nil {
		return nil, s.err
	}
	h := s.h
	h.Upto, h.ExactFrom, h.Continued = upto, exactFrom, s.inTxn
	if err := h.check(); err != nil {
		return nil, s.fail(fmt.Errorf("closing a segment: %w", err))
	}
	if upto < s.at || s.inTxn && upto != s.at {
		return nil, s.fail(fmt.Errorf("closing a segment at %v, which has transaction %v", upto, s.at))
	}
	if err := s.cut(); err != nil {
		return nil, err
	}
	for len(s.jobs) > 0 {
		if err := s.flush(); err != nil {
			return nil, err
		}
	}
	s.freeText = nil
	f := &s.f
	if s.pos == 0 {
		f.First, f.Last = 0, 0
	}
	f.Text = s.pos
	f.Raw = Hash(s.raw.Sum(nil))
	f.IndexAt = s.off
	directory, err := s.writeIndex()
	if err != nil {
		return nil, err
	}
	if len(directory) > maxDirectory-frameHead || len(s.table) > maxDirectory-frameHead {
		return nil, s.fail(fmt.Errorf("a segment with a directory of %d and a frame table of %d bytes: make smaller segments", len(directory), len(s.table)))
	}
	meta := sha256.New()
	meta.Write(directory)
	meta.Write(s.table)
	f.Meta = Hash(meta.Sum(nil))
	f.DirectoryAt = s.off
	f.DirectoryLength = int64(frameHead + len(directory))
	f.TableAt = s.off + f.DirectoryLength
	f.TableLength = int64(frameHead + len(s.table))
	end := appendFrameHead(nil, frameDirectory, len(directory))
	end = append(end, directory...)
	end = appendFrameHead(end, frameTable, len(s.table))
	end = append(end, s.table...)
	end = f.append(end)
	if err := s.write(end); err != nil {
		return nil, err
	}
	if _, err := s.w.WriteAt(h.append(nil), 0); err != nil {
		return nil, s.fail(fmt.Errorf("writing the header of a segment: %w", err))
	}
	s.err = errors.New("the segment is closed")
	return &Written{Header: h, Footer: *f, Size: s.off}, nil
}

// Copy writes all that another segment has, for a merge. It must go on where the
// writer is. The text is the same as that of both.
func (s *SegmentWriter) Copy(r *Reader) error {
	if s.err != nil {
		return s.err
	}
	h, err := r.Header()
	if err != nil {
		return s.fail(err)
	}
	switch {
	case h.Repo != s.h.Repo || h.Lineage != s.h.Lineage:
		return s.fail(fmt.Errorf("%s is of repository %v, lineage %v: it cannot be merged with another one's", r.Name(), h.Repo, h.Lineage))
	case h.Continues != s.inTxn || h.After < s.at || h.Continues && h.After != s.at:
		return s.fail(fmt.Errorf("%s (after %v, upto %v) does not go on where transaction %v ended", r.Name(), h.After, h.Upto, s.at))
	}
	for ev, err := range r.Walk() {
		if err == nil {
			switch {
			case ev.Txn != nil:
				err = s.Begin(ev.Txn)
			case ev.Record != nil:
				err = s.Record(*ev.Record)
			default:
				err = s.End()
			}
		}
		if err != nil {
			return s.fail(err)
		}
	}
	return nil
}

// Buffer is an io.WriterAt and io.ReaderAt in memory.
type Buffer struct{ b []byte }

// WriteAt writes at an offset.
func (b *Buffer) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(b.b) {
		b.b = append(b.b, make([]byte, end-len(b.b))...)
	}
	return copy(b.b[off:], p), nil
}

// Bytes returns what was written.
func (b *Buffer) Bytes() []byte { return b.b }
