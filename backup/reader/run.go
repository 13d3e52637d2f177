package reader

import (
	"bufio"
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"slices"
	"sort"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
)

// A run is the index of some segments that follow each other, in one sorted list. Its
// form is private, and it can be made again from the repository at any time:
//
//	"NEOBKRX1"
//	blocks           one zstd frame each, with a checksum; of entries:
//	                 uv oid minus that of the entry before (first: the oid), 8 tid,
//	                 uv number of the segment, uv 4 × place in its text + kind
//	table            one zstd frame:
//	                 uv segments, of each 32 SHA-256, 8 clip;
//	                 uv blocks, of each uv length, 8 oid, 8 tid of its first entry
//	trailer (56 B)   8 offset and 8 length of the table, 32 SHA-256 of it, "NEOBKRX1"
const (
	runMagic   = "NEOBKRX1"
	runTrailer = 8 + 8 + sha256.Size + len(runMagic)
	runBlock   = 32 << 10 // of entries, before compression
	maxTable   = 1 << 30
	// maxRunEntry is the greatest length of an entry.
	maxRunEntry = 3*binary.MaxVarintLen64 + 8
)

var errRun = errors.New("damaged index file")

// located is a revision and the segment in which it is.
type located struct {
	snapshot.Entry
	segment int // number in the run
}

// order orders as an index does: ascending by oid, descending by tid.
func order(a, b snapshot.Entry) int {
	if c := cmp.Compare(a.OID, b.OID); c != 0 {
		return c
	}
	return cmp.Compare(b.TID, a.TID)
}

// encoder compresses blocks and tables.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	return must(zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(true), zstd.WithWindowSize(64<<10)))
})

// tables decompresses tables, whose hash is right.
var tables = sync.OnceValue(func() *zstd.Decoder {
	return must(zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxTable), zstd.WithDecoderConcurrency(0)))
})

// blocks decompresses blocks, into the room that it is given.
var blocks = sync.OnceValue(func() *zstd.Decoder {
	return must(zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderConcurrency(0)))
})

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // the options are constant
	}
	return v
}

// runWriter writes a run.
type runWriter struct {
	w      *bufio.Writer
	off    int64
	buf    []byte
	out    []byte
	prev   snapshot.Entry
	first  snapshot.Entry
	n      int // entries of the block
	blocks []runBlockAt
}

// runBlockAt is where a block of a run is.
type runBlockAt struct {
	first snapshot.Entry // oid and tid
	at    int64
	len   int64
}

func newRunWriter(w io.Writer) (*runWriter, error) {
	r := &runWriter{w: bufio.NewWriterSize(w, 256<<10)}
	return r, r.write([]byte(runMagic))
}

func (w *runWriter) write(b []byte) error {
	n, err := w.w.Write(b)
	w.off += int64(n)
	return err
}

// add adds an entry, which must come after the last one.
func (w *runWriter) add(e located) error {
	oid := e.OID
	if w.n == 0 {
		w.first = e.Entry
	} else {
		oid -= w.prev.OID
	}
	w.buf = binary.AppendUvarint(w.buf, uint64(oid))
	w.buf = e.TID.Append(w.buf)
	w.buf = binary.AppendUvarint(w.buf, uint64(e.segment))
	w.buf = binary.AppendUvarint(w.buf, uint64(e.Pos)<<2|uint64(e.Kind))
	w.prev = e.Entry
	if w.n++; len(w.buf) >= runBlock {
		return w.flush()
	}
	return nil
}

func (w *runWriter) flush() error {
	if w.n == 0 {
		return nil
	}
	w.out = encoder().EncodeAll(w.buf, w.out[:0])
	w.blocks = append(w.blocks, runBlockAt{w.first, w.off, int64(len(w.out))})
	w.buf, w.n = w.buf[:0], 0
	return w.write(w.out)
}

// close ends the run, which is of these segments.
func (w *runWriter) close(of []segmentID) error {
	if err := w.flush(); err != nil {
		return err
	}
	b := binary.AppendUvarint(nil, uint64(len(of)))
	for _, s := range of {
		b = append(b, s.sum[:]...)
		b = s.clip.Append(b)
	}
	b = binary.AppendUvarint(b, uint64(len(w.blocks)))
	for i := range w.blocks {
		d := &w.blocks[i]
		b = binary.AppendUvarint(b, uint64(d.len))
		b = d.first.OID.Append(b)
		b = d.first.TID.Append(b)
	}
	b = encoder().EncodeAll(b, nil)
	sum := sha256.Sum256(b)
	at := w.off
	if err := w.write(b); err != nil {
		return err
	}
	t := binary.BigEndian.AppendUint64(nil, uint64(at))
	t = binary.BigEndian.AppendUint64(t, uint64(len(b)))
	t = append(append(t, sum[:]...), runMagic...)
	if err := w.write(t); err != nil {
		return err
	}
	return w.w.Flush()
}

// run is an index that is on this machine.
type run struct {
	path   string // "": in memory
	src    io.ReaderAt
	size   int64
	of     []segmentID
	blocks []runBlockAt
}

// openRun opens a run.
func openRun(src io.ReaderAt, size int64, path string) (*run, error) {
	bad := func(format string, args ...any) (*run, error) {
		return nil, fmt.Errorf("%w %s: %s", errRun, path, fmt.Sprintf(format, args...))
	}
	if size < int64(len(runMagic)+runTrailer) {
		return bad("%d bytes", size)
	}
	t := make([]byte, runTrailer)
	if _, err := src.ReadAt(t, size-int64(runTrailer)); err != nil {
		return nil, err
	}
	at, n := binary.BigEndian.Uint64(t), binary.BigEndian.Uint64(t[8:])
	if string(t[16+sha256.Size:]) != runMagic || n > uint64(size) || at != uint64(size)-uint64(runTrailer)-n || at < uint64(len(runMagic)) {
		return bad("no table")
	}
	b := make([]byte, n)
	if _, err := src.ReadAt(b, int64(at)); err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(b); !bytes.Equal(sum[:], t[16:16+sha256.Size]) {
		return bad("its table has another hash")
	}
	b, err := tables().DecodeAll(b, nil)
	if err != nil {
		return bad("its table: %v", err)
	}
	r := &run{path: path, src: src, size: size}
	count := func(each int) (int, bool) {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > uint64(len(b)/each) {
			return 0, false
		}
		b = b[n:]
		return int(v), true
	}
	segments, ok := count(sha256.Size + 8)
	if !ok {
		return bad("its table is cut")
	}
	for range segments {
		if len(b) < sha256.Size+8 {
			return bad("its table is cut")
		}
		r.of = append(r.of, segmentID{snapshot.Hash(b[:sha256.Size]), tid.FromBytes(b[sha256.Size:])})
		b = b[sha256.Size+8:]
	}
	total, ok := count(17)
	if !ok {
		return bad("its table is cut")
	}
	r.blocks = make([]runBlockAt, 0, total)
	off := int64(len(runMagic))
	for range total {
		v, n := binary.Uvarint(b)
		if n <= 0 || len(b) < n+16 || v == 0 || v > at-uint64(off) {
			return bad("its table is cut")
		}
		b = b[n:]
		r.blocks = append(r.blocks, runBlockAt{snapshot.Entry{OID: tid.OIDFromBytes(b), TID: tid.FromBytes(b[8:])}, off, int64(v)})
		b = b[16:]
		off += int64(v)
	}
	if len(b) != 0 || uint64(off) != at {
		return bad("its blocks end at %d, not at %d", off, at)
	}
	return r, nil
}

// openRunFile opens the run of a file.
func openRunFile(path string) (*run, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r, err := openRun(f, fi.Size(), path)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

func (r *run) close() error {
	if c, ok := r.src.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// block reads the entries of a block.
func (r *run) block(i int) ([]located, error) {
	d := &r.blocks[i]
	b := make([]byte, d.len)
	if _, err := r.src.ReadAt(b, d.at); err != nil {
		return nil, fmt.Errorf("%w %s: block %d: %w", errRun, r.path, i, err)
	}
	b, err := blocks().DecodeAll(b, make([]byte, 0, runBlock+maxRunEntry))
	if err != nil {
		return nil, fmt.Errorf("%w %s: block %d: %w", errRun, r.path, i, err)
	}
	list, err := parseEntries(b, len(r.of))
	if err != nil {
		return nil, fmt.Errorf("%w %s: block %d: %w", errRun, r.path, i, err)
	}
	if order(list[0].Entry, d.first) != 0 {
		return nil, fmt.Errorf("%w %s: block %d begins with another entry than the table says", errRun, r.path, i)
	}
	return list, nil
}

// parseEntries reads the entries of a block of a run of so many segments. There is at least one.
func parseEntries(b []byte, segments int) ([]located, error) {
	list := make([]located, 0, len(b)/12)
	for len(b) > 0 {
		var e located
		oid, n := binary.Uvarint(b)
		if n <= 0 || len(b) < n+8 {
			return nil, fmt.Errorf("entry %d is cut", len(list))
		}
		e.OID, e.TID = tid.OID(oid), tid.FromBytes(b[n:])
		b = b[n+8:]
		segment, n := binary.Uvarint(b)
		if n <= 0 || segment >= uint64(segments) {
			return nil, fmt.Errorf("entry %d names segment %d of %d", len(list), segment, segments)
		}
		b = b[n:]
		v, n := binary.Uvarint(b)
		if n <= 0 || v&3 > uint64(snapshot.Copied) || v > math.MaxInt64 {
			return nil, fmt.Errorf("entry %d is cut", len(list))
		}
		b = b[n:]
		e.segment, e.Pos, e.Kind = int(segment), int64(v>>2), snapshot.EntryKind(v&3)
		if len(list) > 0 {
			prev := list[len(list)-1].Entry
			if e.OID += prev.OID; e.OID < prev.OID || order(prev, e.Entry) >= 0 {
				return nil, fmt.Errorf("entry %d is out of order", len(list))
			}
		}
		list = append(list, e)
	}
	if len(list) == 0 {
		return nil, errors.New("it has no entry")
	}
	return list, nil
}

// cachedBlock is block through a cache.
func (r *run) cachedBlock(ctx context.Context, c *cache, i int) ([]located, error) {
	v, err := c.get(ctx, cacheKey{r, int64(i), 0}, func(context.Context) (any, int64, error) {
		list, err := r.block(i)
		return list, int64(len(list))*48 + 256, err
	})
	if err != nil {
		return nil, err
	}
	return v.([]located), nil
}

// find returns the latest revision of an object before a TID.
func (r *run) find(ctx context.Context, c *cache, oid tid.OID, before tid.TID) (e located, ok bool, err error) {
	want := snapshot.Entry{OID: oid, TID: before - 1}
	i := sort.Search(len(r.blocks), func(i int) bool { return order(r.blocks[i].first, want) > 0 })
	if i > 0 {
		list, err := r.cachedBlock(ctx, c, i-1)
		if err != nil {
			return e, false, err
		}
		k, _ := slices.BinarySearchFunc(list, want, func(e located, w snapshot.Entry) int { return order(e.Entry, w) })
		if k < len(list) {
			return list[k], list[k].OID == oid, nil
		}
	}
	if i == len(r.blocks) || r.blocks[i].first.OID != oid {
		return e, false, nil
	}
	list, err := r.cachedBlock(ctx, c, i)
	if err != nil {
		return e, false, err
	}
	return list[0], true, nil
}

// next returns the earliest revision of an object after a TID.
func (r *run) next(ctx context.Context, c *cache, oid tid.OID, after tid.TID) (e located, ok bool, err error) {
	// What comes before the first entry that is not after it.
	want := snapshot.Entry{OID: oid, TID: after}
	i := sort.Search(len(r.blocks), func(i int) bool { return order(r.blocks[i].first, want) >= 0 })
	if i == 0 {
		return e, false, nil
	}
	list, err := r.cachedBlock(ctx, c, i-1)
	if err != nil {
		return e, false, err
	}
	k, _ := slices.BinarySearchFunc(list, want, func(e located, w snapshot.Entry) int { return order(e.Entry, w) })
	// k > 0: the block begins before it.
	return list[k-1], list[k-1].OID == oid, nil
}

// entries yields all entries from the first revision of an object on.
func (r *run) entries(from tid.OID) iter.Seq2[located, error] {
	want := snapshot.Entry{OID: from, TID: tid.Invalid}
	first := sort.Search(len(r.blocks), func(i int) bool { return order(r.blocks[i].first, want) > 0 })
	return func(yield func(located, error) bool) {
		for i := max(first-1, 0); i < len(r.blocks); i++ {
			list, err := r.block(i)
			if err != nil {
				yield(located{}, err)
				return
			}
			for _, e := range list {
				if e.OID >= from && !yield(e, nil) {
					return
				}
			}
		}
	}
}

// source is a sorted list of entries, and the place of its segments among all.
type source struct {
	next func() (located, error, bool)
	e    located
	base int // what is added to the number of a segment
}

// sources is a heap of them. Of the same revision in several, that of the later segment comes
// first.
type sources []*source

func (s sources) Len() int { return len(s) }
func (s sources) Less(i, j int) bool {
	if c := order(s[i].e.Entry, s[j].e.Entry); c != 0 {
		return c < 0
	}
	return s[i].e.segment > s[j].e.segment
}
func (s sources) Swap(i, j int) { s[i], s[j] = s[j], s[i] }
func (s *sources) Push(x any)   { *s = append(*s, x.(*source)) }
func (s *sources) Pop() any {
	old := *s
	x := old[len(old)-1]
	*s = old[:len(old)-1]
	return x
}

// step reads the next entry of a source.
func (s *source) step() (bool, error) {
	e, err, ok := s.next()
	if err != nil || !ok {
		return false, err
	}
	e.segment += s.base
	s.e = e
	return true, nil
}

// merged yields the entries of several sorted lists in order. base says what the first segment
// of each is numbered.
func merged(lists []iter.Seq2[located, error], base []int) iter.Seq2[located, error] {
	return func(yield func(located, error) bool) {
		var h sources
		for i, l := range lists {
			next, stop := iter.Pull2(l)
			defer stop()
			s := &source{next: next, base: base[i]}
			ok, err := s.step()
			if err != nil {
				yield(located{}, err)
				return
			}
			if ok {
				h = append(h, s)
			}
		}
		heap.Init(&h)
		var last snapshot.Entry
		for begun := false; len(h) > 0; {
			s := h[0]
			if e := s.e; !begun || order(last, e.Entry) != 0 {
				if !yield(e, nil) {
					return
				}
				last, begun = e.Entry, true
			}
			ok, err := s.step()
			if err != nil {
				yield(located{}, err)
				return
			}
			if ok {
				heap.Fix(&h, 0)
			} else {
				heap.Pop(&h)
			}
		}
	}
}
