package fsformat

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/fsformat/pickle"
)

// IndexError reports a stored index that cannot be used for its file. The file is
// not to blame: a new index can be made, as [Reader.UseIndex] does.
type IndexError struct {
	File    string // the index
	Problem string
}

func (e *IndexError) Error() string { return fmt.Sprintf("%s: unusable index: %s", e.File, e.Problem) }

const (
	// maxBucket is the longest pickle of an index: 65536 suffixes and positions.
	maxBucket = 8<<16 + 64
	// maxOldIndex bounds the forms that are one pickle, not written by ZODB since 2010.
	maxOldIndex = 64 << 20
)

// UseIndex gives the reader the index stored in a file (default: NAME.index),
// completed with what the data file has after it, or else a new one. unusable
// says why the stored one was not used: fs.ErrNotExist or an [*IndexError].
func (r *Reader) UseIndex(ctx context.Context, path string, progress Progress) (unusable, err error) {
	if _, err := r.Renumbered(ctx); err != nil { // the index is of what the reader shows
		return nil, err
	}
	if path == "" {
		path = r.name + ".index"
	}
	x, err := r.ReadIndex(path)
	if err == nil {
		if err = r.useIndex(ctx, x, progress); err == nil {
			return nil, nil
		}
		return nil, err
	}
	if !errors.As(err, new(*IndexError)) && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return err, r.useIndex(ctx, NewIndex(), progress)
}

// useIndex completes an index and gives it to the reader. What is found at the end of
// the file need not be looked for again.
func (r *Reader) useIndex(ctx context.Context, x *Index, progress Progress) error {
	reason, err := r.completeIndex(ctx, x, progress, nil)
	if err != nil {
		return err
	}
	r.tailOnce.Do(func() {
		r.tail = Tail{End: min(x.End, r.size), LastTID: x.LastTID, Ignored: r.size - min(x.End, r.size), Reason: reason}
	})
	r.index = x
	return nil
}

// ReadIndex reads an index, in the present form or one of those that FileStorage
// wrote before 2010 (and some installations until 2017), and verifies that it can be one of this file. The error is an
// [*IndexError] if not.
func (r *Reader) ReadIndex(path string) (*Index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	x, err := parseIndex(f, fi.Size()/storedObject)
	if err == nil {
		err = r.validate(x)
	}
	if err != nil {
		if c := (*CorruptError)(nil); errors.As(err, &c) {
			err = errors.New(c.Problem)
		}
		if errors.As(err, new(*fs.PathError)) {
			return nil, err // reading failed: no verdict on the index
		}
		return nil, &IndexError{path, err.Error()}
	}
	return x, nil
}

// storedObject is how many bytes an object takes in a stored index, at least.
const storedObject = 8

// ParseIndex reads an index in any of its forms. The tid it covers is not in
// it; see [Reader.ReadIndex].
func ParseIndex(in io.Reader) (*Index, error) { return parseIndex(in, 0) }

// parseIndex is ParseIndex of an index with at most so many objects, 0 if that is not
// known.
func parseIndex(in io.Reader, most int64) (*Index, error) {
	br := bufio.NewReaderSize(in, 64<<10)
	b, err := pickle.NewReader(br, maxOldIndex).Next()
	if err != nil {
		return nil, notEOF(err)
	}
	first, _, err := pickle.Decode(b)
	if err != nil {
		return nil, err
	}
	x := NewIndex()
	switch v := first.(type) {
	case int64:
		x.End = v
	case *pickle.Dict, *pickle.Object:
		return x, x.parseOld(v)
	default:
		return nil, errors.New("it begins neither with a position nor with a dict")
	}
	if x.End < magicLen || x.End >= maxPos {
		return nil, fmt.Errorf("it covers %d bytes", x.End)
	}
	x.reserve(int(most))
	pr := pickle.NewReader(br, maxBucket)
	last := int64(-1)
	for {
		b, err := pr.Next()
		if err != nil {
			return nil, notEOF(err)
		}
		v, _, err := pickle.Decode(b)
		if err != nil {
			return nil, err
		}
		if v == nil {
			return x, nil
		}
		prefix, err := x.parseBucket(v)
		if err != nil {
			return nil, err
		}
		if prefix <= last {
			return nil, fmt.Errorf("prefix %012x is not above the one before, %012x", prefix, last)
		}
		last = prefix
	}
}

func notEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it is truncated")
	}
	return err
}

// parseBucket adds a pair (prefix, bucket) and returns the prefix.
func (x *Index) parseBucket(v pickle.Value) (int64, error) {
	pair, ok := v.(pickle.Tuple)
	if !ok || len(pair) != 2 {
		return 0, fmt.Errorf("a %T where a pair (prefix, bucket) was expected", v)
	}
	prefix, ok1 := pickle.RawBytes(pair[0])
	bucket, ok2 := pickle.RawBytes(pair[1])
	if !ok1 || !ok2 || len(prefix) != 6 || len(bucket)%8 != 0 || len(bucket) > 8<<16 {
		return 0, fmt.Errorf("a bucket of wrong length: %d bytes for a prefix of %d", len(bucket), len(prefix))
	}
	high := binary.BigEndian.Uint64(append([]byte{0, 0}, prefix...))
	n := len(bucket) / 8
	last := -1
	for i := range n {
		low := int(binary.BigEndian.Uint16(bucket[2*i:]))
		if low <= last {
			return 0, fmt.Errorf("the objects with prefix %012x are not in order", high)
		}
		last = low
		var p [8]byte
		copy(p[2:], bucket[2*n+6*i:][:6])
		if err := x.parsed(tid.OID(high<<16|uint64(low)), int64(binary.BigEndian.Uint64(p[:]))); err != nil {
			return 0, err
		}
	}
	return int64(high), nil
}

func (x *Index) parsed(oid tid.OID, pos int64) error {
	if pos < minRecordPos || pos >= x.End {
		return fmt.Errorf("object %v would be at %d, in a file of which %d bytes are covered", oid, pos, x.End)
	}
	x.Set(oid, pos)
	return nil
}

// checkedRecords is how many records at the end of what an index covers are
// compared with it, and how many of its entries with the file.
const checkedRecords = 100

// validate verifies that x can be an index of this file and notes the last
// transaction it covers.
func (r *Reader) validate(x *Index) error {
	if x.End > r.size {
		return fmt.Errorf("it is newer than the file: it covers %d bytes, the file has %d", x.End, r.size)
	}
	if r.size == 0 || x.End == magicLen {
		if x.Len() > 0 {
			return errors.New("it has objects, and the file is empty")
		}
		return nil
	}
	s := r.newScanner(x.End, 0)
	newest := make(map[tid.OID]bool)
	for end, checked := x.End, 0; end > magicLen && checked < checkedRecords; {
		h, ok, err := r.lastBefore(end)
		if err != nil {
			return err
		}
		if !ok || !validStatus(h.Status) {
			return fmt.Errorf("it is of another file: no transaction ends at %d", end)
		}
		end = h.Pos
		if h.Status == statusUndone {
			continue
		}
		if x.LastTID == 0 {
			x.LastTID = h.TID
		}
		n, err := r.compare(s, x, &h, newest)
		if err != nil {
			return err
		}
		checked += n
	}
	n := 0
	for i := range x.segments {
		k := 0
		for _, e := range x.segments[i].slots {
			if e.pos == 0 {
				continue
			}
			var rec RecordHeader
			err := r.recordAt(e.pos, &rec)
			if errors.As(err, new(*fs.PathError)) {
				return err
			}
			if err != nil || rec.OID != tid.OID(e.oid) {
				return fmt.Errorf("it is of another file: at %d there is no record of object %v", e.pos, tid.OID(e.oid))
			}
			n++
			if k++; k > checkedRecords/len(x.segments) || n >= checkedRecords {
				break
			}
		}
	}
	return nil
}

// compare verifies that the records of a transaction, which those in newest come
// after, are in x. It returns how many there are.
func (r *Reader) compare(s *scanner, x *Index, h *Header, newest map[tid.OID]bool) (int, error) {
	last := make(map[tid.OID]int64)
	var rec RecordHeader
	n := 0
	for pos := h.First(); n < 100*checkedRecords; pos = rec.End() {
		ok, err := s.record(h, pos, &rec)
		if err != nil {
			return n, err
		}
		if !ok {
			break
		}
		last[rec.OID] = pos // an object that is there twice counts where it is last
		n++
	}
	for oid, pos := range last {
		got, ok := x.Get(oid)
		if !ok {
			return n, fmt.Errorf("it is of another file: object %v, at %d, is not in it", oid, pos)
		}
		if !newest[oid] && got != pos && n < 100*checkedRecords {
			return n, fmt.Errorf("it is of another file: object %v would be at %d, but is at %d", oid, got, pos)
		}
		newest[oid] = true
	}
	return n, nil
}
