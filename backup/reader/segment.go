package reader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	// unknownMeta is how much of the end of a segment is read if its line does not say how
	// long the directory is: behind a tail.
	unknownMeta = 64 << 10
	// largestRead is the greatest range that is asked for at once.
	largestRead = 8 << 20
	// sealedChunk is what an age file is read by.
	sealedChunk = 64 << 10
)

// segment is a segment of the repository, or a gap in its history.
type segment struct {
	d      *Database
	l      snapshot.Segment
	gap    *snapshot.Gap
	bad    error  // the gap is not one that was accepted
	object []byte // what is stored, if it is in memory: behind a small tail

	mu      sync.Mutex
	fileKey []byte
	checked bool // the hash of object
}

// segmentID is what makes a segment what it is, and how much of it is used.
type segmentID struct {
	sum  snapshot.Hash
	clip tid.TID
}

func (s *segment) id() segmentID { return segmentID{s.l.SHA256, s.l.Clip} }

// first returns the least TID that may be in the segment.
func (s *segment) first() tid.TID {
	after, upto := s.span()
	if after == upto {
		return upto // it goes on with a transaction
	}
	return after + 1
}

// span returns the range (after, upto] for which the segment is used.
func (s *segment) span() (after, upto tid.TID) {
	if s.gap != nil {
		return s.gap.After, s.gap.Upto
	}
	return s.l.After, s.l.End()
}

// local reports whether it is in memory as a whole.
func (s *segment) local() bool { return s.object != nil }

// lost returns the error of a gap.
func (s *segment) lost() error {
	if s.gap == nil {
		return nil
	}
	if s.bad != nil {
		return fmt.Errorf("transactions after %v up to %v: %w", s.gap.After, s.gap.Upto, s.bad)
	}
	return fmt.Errorf("transactions after %v up to %v: %w: %s", s.gap.After, s.gap.Upto, backup.ErrIncomplete, s.gap.Note)
}

// opened is what is needed to read at random in a segment.
type opened struct {
	r      *snapshot.Reader // for With
	suffix []byte           // last bytes as stored
}

// weight is about what an opened segment takes in memory. Directory and frame table are
// larger there than in the segment.
func (o *opened) weight() int64 {
	f := o.r.Footer()
	return int64(len(o.suffix)) + 3*(f.DirectoryLength+f.TableLength) + 1024
}

// open returns the opened segment, read from the store unless it was.
func (s *segment) open(ctx context.Context) (*opened, error) {
	if err := s.lost(); err != nil {
		return nil, err
	}
	v, err := s.d.cache.get(ctx, cacheKey{of: s, off: -1}, func(ctx context.Context) (any, int64, error) {
		o, err := s.read(ctx)
		if err != nil {
			return nil, 0, err
		}
		return o, o.weight(), nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*opened), nil
}

// read opens the segment with its end, of an older version if the newest one is damaged.
func (s *segment) read(ctx context.Context) (*opened, error) {
	o, err := s.readNow(ctx)
	if again, e := s.d.repo.Rescue(ctx, &s.l, err); e != nil {
		return nil, e
	} else if again {
		return s.readNow(ctx)
	}
	return o, err
}

// readNow opens the segment with its end, from the file of it if there is one.
func (s *segment) readNow(ctx context.Context) (*opened, error) {
	if s.object != nil {
		if err := s.check(); err != nil {
			return nil, err
		}
		return s.openWith(ctx, nil)
	}
	path := s.d.files.meta(s)
	if path != "" {
		b, err := os.ReadFile(path)
		if err == nil {
			o, err := s.openWith(ctx, b)
			if err == nil {
				return o, nil
			}
			if !errors.Is(err, snapshot.ErrCorrupt) && !errors.Is(err, errShortEnd) {
				return nil, err
			}
			s.d.log.Warn("a file of the index cache is damaged: it is read again from the repository", "path", path, "err", err)
		} else if !errors.Is(err, os.ErrNotExist) {
			s.d.log.Warn("a file of the index cache cannot be read: it is read again from the repository", "path", path, "err", err)
		}
	}
	n := int64(unknownMeta)
	for {
		suffix, err := s.readEnd(ctx, n)
		if err != nil {
			return nil, err
		}
		o, err := s.openWith(ctx, suffix)
		if short, ok := errors.AsType[*shortEnd](err); ok && short.need > n {
			n = short.need // behind a tail: its directory is longer than expected
			continue
		}
		if err != nil {
			return nil, err
		}
		if path != "" {
			s.d.files.write(path, suffix)
		}
		return o, nil
	}
}

// check makes sure once that what came with the note of a tail is what that says.
func (s *segment) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.checked {
		return nil
	}
	if got := snapshot.Sum(s.object); got != s.l.SHA256 {
		return &snapshot.CorruptError{Name: s.l.Key, Offset: -1, Err: fmt.Errorf("its SHA-256 is %v, want %v", got, s.l.SHA256)}
	}
	s.checked = true
	return nil
}

// readEnd reads the stored bytes that have the directory, or the last n of the plaintext if its
// length is not known.
func (s *segment) readEnd(ctx context.Context, n int64) ([]byte, error) {
	if s.l.Meta > 0 {
		n = s.l.Meta
	}
	size := s.l.Bytes
	off := size - min(n, size)
	if s.l.KID != 0 {
		sealed := snapshot.Sealed{Key: s.l.Key, Size: size, Header: s.l.Header}
		plain, err := sealed.PlainSize()
		if err != nil {
			return nil, err
		}
		n = min(n, plain)
		off, _ = sealed.SealedRange(plain-n, n)
	}
	b := make([]byte, size-off)
	_, err := s.stored(ctx).ReadAt(b, off)
	return b, err
}

// shortEnd reports an end that does not have the whole directory.
type shortEnd struct{ need int64 }

var errShortEnd = errors.New("the directory is longer")

func (e *shortEnd) Error() string        { return fmt.Sprintf("%v: %d bytes", errShortEnd, e.need) }
func (e *shortEnd) Is(target error) bool { return target == errShortEnd }

// onlyEnd is the stored bytes of a segment of which only the end is there.
type onlyEnd struct {
	size int64
	b    []byte
}

func (e *onlyEnd) ReadAt(b []byte, off int64) (int, error) {
	at := off - (e.size - int64(len(e.b)))
	if at < 0 {
		return 0, &shortEnd{e.size - off}
	}
	return copy(b, e.b[at:]), nil
}

// openWith opens the segment with its end as it is stored; nil if all of it is in memory.
func (s *segment) openWith(ctx context.Context, suffix []byte) (*opened, error) {
	var src io.ReaderAt = bytes.NewReader(s.object)
	if s.object == nil {
		if int64(len(suffix)) > s.l.Bytes {
			return nil, &shortEnd{}
		}
		src = &onlyEnd{s.l.Bytes, suffix}
	}
	plain, size, err := s.plainOf(ctx, src, suffix)
	if err != nil {
		return nil, err
	}
	r, err := snapshot.NewReader(plain, size, s.l.Key)
	if err != nil {
		return nil, err
	}
	line := s.l
	if f := r.Footer(); line.Meta == 0 {
		line.Meta = f.MetaLength()
		line.MaxOID = min(line.MaxOID, f.MaxOID) // a tail has that of the whole lineage
	}
	return &opened{r, suffix}, r.Matches(&line)
}

// plainOf returns the plaintext of stored bytes.
func (s *segment) plainOf(ctx context.Context, src io.ReaderAt, suffix []byte) (io.ReaderAt, int64, error) {
	if (s.l.KID != 0) != s.d.repo.Encrypted() {
		return nil, 0, &snapshot.CorruptError{Name: s.l.Key, Offset: -1, Err: fmt.Errorf("epoch %v in a repository of which the marker says: encryption %q", s.l.KID, s.d.repo.Marker.Encryption)}
	}
	if s.l.KID == 0 {
		return src, s.l.Bytes, nil
	}
	key, err := s.key(ctx)
	if err != nil {
		return nil, 0, err
	}
	sealed := &snapshot.Sealed{Key: s.l.Key, Size: s.l.Bytes, Header: s.l.Header, FileKey: key, Suffix: suffix}
	return sealed.Open(src)
}

// key returns the key of the age file.
func (s *segment) key(ctx context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fileKey == nil {
		id, err := s.d.keys.Epoch(ctx, s.l.KID)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.l.Key, err)
		}
		if s.fileKey, err = snapshot.FileKey(s.l.Header, s.l.Key, id); err != nil {
			return nil, err
		}
	}
	return s.fileKey, nil
}

// stored is the stored bytes of the segment, by ranges.
func (s *segment) stored(ctx context.Context) io.ReaderAt { return &stored{ctx, s} }

type stored struct {
	ctx context.Context
	s   *segment
}

func (r *stored) ReadAt(b []byte, off int64) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	l := &r.s.l
	body, info, err := r.s.d.repo.Store.Get(r.ctx, l.Key, l.Offset()+off, int64(len(b)))
	if errors.Is(err, store.ErrNotFound) {
		return 0, fmt.Errorf("segment %s: %w: %w", l.Key, backup.ErrIncomplete, err)
	}
	if err != nil {
		return 0, fmt.Errorf("segment %s: %w", l.Key, err)
	}
	defer body.Close()
	if want := l.Offset() + l.Bytes; info.Size != want {
		return 0, &snapshot.CorruptError{Name: l.Key, Offset: -1, Err: fmt.Errorf("an object of %d bytes, want %d", info.Size, want)}
	}
	return io.ReadFull(body, b)
}

// fetch reads a range of the plaintext from the store.
func (s *segment) fetch(ctx context.Context, o *opened, b []byte, off int64) error {
	err := s.fetchNow(ctx, o, b, off)
	if again, e := s.d.repo.Rescue(ctx, &s.l, err); e != nil {
		return e
	} else if again {
		return s.fetchNow(ctx, o, b, off)
	}
	return err
}

func (s *segment) fetchNow(ctx context.Context, o *opened, b []byte, off int64) error {
	var src io.ReaderAt
	switch at := off - (s.l.Bytes - int64(len(o.suffix))); {
	case s.object != nil:
		src = bytes.NewReader(s.object)
	case s.l.KID == 0 && at >= 0: // in an age file the suffix is looked at anyway
		src = &onlyEnd{s.l.Bytes, o.suffix}
	default:
		src = s.stored(ctx)
	}
	plain, _, err := s.plainOf(ctx, src, o.suffix)
	if err != nil {
		return err
	}
	n, err := plain.ReadAt(b, off)
	if n < len(b) {
		return err
	}
	return nil
}

// reader returns the segment such that what is read is kept in the cache.
func (s *segment) reader(ctx context.Context) (*snapshot.Reader, error) {
	o, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	return o.r.With(&cachedReader{ctx, s, o}), nil
}

// cachedReader reads the plaintext of a segment through the cache.
type cachedReader struct {
	ctx context.Context
	s   *segment
	o   *opened
}

func (r *cachedReader) ReadAt(b []byte, off int64) (int, error) {
	n := int64(len(b))
	if r.s.object != nil {
		return (&direct{r.ctx, r.s, r.o}).ReadAt(b, off)
	}
	v, err := r.s.d.cache.get(r.ctx, cacheKey{r.s, off, n}, func(ctx context.Context) (any, int64, error) {
		b := make([]byte, n)
		err := r.s.fetch(ctx, r.o, b, off)
		return b, n + 256, err
	})
	if err != nil {
		return 0, err
	}
	return copy(b, v.([]byte)), nil
}

// direct reads the plaintext of a segment as it is asked for.
type direct struct {
	ctx context.Context
	s   *segment
	o   *opened
}

func (r *direct) ReadAt(b []byte, off int64) (int, error) {
	if err := r.s.fetch(r.ctx, r.o, b, off); err != nil {
		return 0, err
	}
	return len(b), nil
}

// window reads the plaintext of a segment ahead, for what is read in order. It has one user.
type window struct {
	ctx   context.Context
	s     *segment
	o     *opened
	ahead int64                  // how much to read at once
	grow  func(next int64) int64 // how much next time
	end   int64                  // of what is read in order
	at    int64
	b     []byte
}

func (w *window) ReadAt(b []byte, off int64) (int, error) {
	n := int64(len(b))
	if off < w.at || off+n > w.at+int64(len(w.b)) {
		// To the end of a chunk of an age file: that is read anyway.
		end := (off + max(n, w.ahead) + sealedChunk - 1) / sealedChunk * sealedChunk
		end = max(min(end, w.end), off+n)
		w.b = make([]byte, end-off)
		w.at = off
		if err := w.s.fetch(w.ctx, w.o, w.b, off); err != nil {
			w.b = nil
			return 0, err
		}
		if w.grow != nil {
			w.ahead = w.grow(w.ahead)
		}
	}
	return copy(b, w.b[off-w.at:]), nil
}

// files is where the index cache is: in a directory, or nowhere.
type files struct {
	dir string
	d   *Database
}

// meta returns the path of the file with the end of a segment, "" if there is no directory.
func (f *files) meta(s *segment) string {
	if f.dir == "" {
		return ""
	}
	return filepath.Join(f.dir, "end-"+s.l.SHA256.String())
}

// write stores a file as a whole. That it cannot be stored costs time later, nothing else.
func (f *files) write(path string, b []byte) {
	if err := f.store(path, func(w io.Writer) error { _, err := w.Write(b); return err }); err != nil {
		f.d.warnFiles(err)
	}
}

// store writes a file under another name first, so that it is there as a whole or not at all.
func (f *files) store(path string, fill func(io.Writer) error) error {
	t, err := os.CreateTemp(f.dir, "tmp-*")
	if err != nil {
		return err
	}
	err = fill(t)
	err = errors.Join(err, t.Close())
	if err == nil {
		err = os.Rename(t.Name(), path)
	}
	if err != nil {
		os.Remove(t.Name())
	}
	return err
}
