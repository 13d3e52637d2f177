package repair

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// temp is a file without a name: its room is free when it is closed, also after a crash.
type temp struct {
	f    *os.File
	size int64
}

// ReadAt implements io.ReaderAt.
func (t *temp) ReadAt(b []byte, off int64) (int, error) { return t.f.ReadAt(b, off) }

// Close gives up the room.
func (t *temp) Close() error { return t.f.Close() }

func (e *engine) temp() (*temp, error) {
	f, err := os.CreateTemp(e.o.Scratch, "neobackup-*.repair")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return &temp{f: f}, nil
}

// Write implements io.Writer.
func (t *temp) Write(b []byte) (int, error) {
	n, err := t.f.Write(b)
	t.size += int64(n)
	return n, err
}

// WriteAt implements io.WriterAt.
func (t *temp) WriteAt(b []byte, off int64) (int, error) {
	t.size = max(t.size, off+int64(len(b)))
	return t.f.WriteAt(b, off)
}

func (t *temp) reader() io.Reader { return io.NewSectionReader(t, 0, t.size) }

// copySegment writes the stored bytes of a segment to w and returns their hash. Size and existence are verified.
func copySegment(ctx context.Context, s store.Store, l *snapshot.Segment, w io.Writer) error {
	body, info, err := s.Get(ctx, l.Key, l.Offset(), l.Bytes)
	if err != nil {
		return err
	}
	defer body.Close()
	if want := l.Offset() + l.Bytes; info.Size != want {
		return &snapshot.CorruptError{Name: l.Key, Offset: -1, Err: fmt.Errorf("an object of %d bytes, want %d", info.Size, want)}
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, sum), body); err != nil {
		return fmt.Errorf("read %s: %w", l.Key, err)
	}
	if got := snapshot.Hash(sum.Sum(nil)); got != l.SHA256 {
		return &snapshot.CorruptError{Name: l.Key, Offset: -1, Err: fmt.Errorf("its SHA-256 is %v, want %v", got, l.SHA256)}
	}
	return nil
}

// fetch returns the stored bytes of a segment, which have the hash of its line.
func (e *engine) fetch(ctx context.Context, s store.Store, l *snapshot.Segment) (*temp, error) {
	t, err := e.temp()
	if err != nil {
		return nil, err
	}
	if err := copySegment(ctx, s, l, t); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// plaintext opens the stored bytes of a segment.
func (e *engine) plaintext(ctx context.Context, l *snapshot.Segment, stored io.ReaderAt) (io.ReaderAt, int64, error) {
	if (l.KID != 0) != e.repo.Encrypted() {
		return nil, 0, &snapshot.CorruptError{Name: l.Key, Offset: -1, Err: fmt.Errorf("epoch %v in a repository of which the marker says: encryption %q", l.KID, e.repo.Marker.Encryption)}
	}
	if l.KID == 0 {
		return stored, l.Bytes, nil
	}
	id, err := e.o.Keys.Epoch(ctx, l.KID)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", l.Key, err)
	}
	key, err := snapshot.FileKey(l.Header, l.Key, id)
	if err != nil {
		return nil, 0, err
	}
	return (&snapshot.Sealed{Key: l.Key, Size: l.Bytes, Header: l.Header, FileKey: key}).Open(stored)
}

// open opens the stored bytes of a segment, which must be what the line says; a Meta of 0, as of a segment behind a tail,
// and its greatest oid then, say nothing.
func (e *engine) open(ctx context.Context, l *snapshot.Segment, stored io.ReaderAt) (*snapshot.Reader, error) {
	plain, size, err := e.plaintext(ctx, l, stored)
	if err != nil {
		return nil, err
	}
	r, err := snapshot.NewReader(plain, size, l.Key)
	if err != nil {
		return nil, err
	}
	line := *l
	if f := r.Footer(); line.Meta == 0 {
		line.Meta, line.MaxOID = f.MetaLength(), f.MaxOID
	}
	if err := r.Matches(&line); err != nil {
		return nil, err
	}
	h, err := r.Header()
	if err != nil {
		return nil, err
	}
	k, err := snapshot.ParseKey(l.Key)
	if err != nil {
		return nil, err
	}
	if h.Repo != e.repo.Marker.ID || h.Lineage != k.Lineage || h.After != l.After || h.Upto != l.Upto {
		return nil, &snapshot.CorruptError{Name: l.Key, Offset: 0, Err: fmt.Errorf("its header says repository %v, lineage %v, %v to %v", h.Repo, h.Lineage, h.After, h.Upto)}
	}
	return r, nil
}

// again stores the content of a segment, of which the right stored bytes are given, under a new key. Where the old object is
// gone, the same bytes are stored under the same key, which has their hash: no identity is needed for that.
func (e *engine) again(ctx context.Context, l *snapshot.Segment, good *temp) (snapshot.Segment, error) {
	if l.Offset() == 0 {
		_, _, err := e.repo.Bare().Get(ctx, l.Key, 0, 0)
		if errors.Is(err, store.ErrNotFound) {
			if list := e.doomed[l.Key]; list != "" {
				return *l, fmt.Errorf("%s: %w: %s names it", l.Key, ErrDoomed, list)
			}
			err = e.put(ctx, l.Key, good, good.size, l.SHA256, false)
			if err == nil || !errors.Is(err, store.ErrExists) {
				return *l, err
			}
			// There is a mark of its deletion, over which this store creates nothing.
		} else if err != nil {
			return *l, err
		}
	}
	r, err := e.open(ctx, l, good)
	if err != nil {
		return *l, err
	}
	if l.Offset() != 0 { // what is behind a tail may become an object of its own as it is
		f := r.Footer()
		line := *l
		line.At, line.Key = 0, snapshot.SegmentKey(lineageOf(l), l.After, l.Upto, l.SHA256)
		line.Meta, line.MaxOID = f.MetaLength(), f.MaxOID
		err := e.putHashed(ctx, line.Key, good, good.size, l.SHA256)
		if err == nil || !wrong(err) {
			return line, err
		}
	}
	plain, size, err := e.plaintext(ctx, l, good)
	if err != nil {
		return *l, err
	}
	if e.to != nil {
		return e.seal(ctx, r, io.NewSectionReader(plain, 0, size))
	}
	return e.recode(ctx, r)
}

func lineageOf(l *snapshot.Segment) snapshot.ID {
	k, err := snapshot.ParseKey(l.Key)
	if err != nil {
		panic(err) // of a line that was verified
	}
	return k.Lineage
}

// recode stores the content of a segment in other bytes: without encryption the same ones have the same key.
func (e *engine) recode(ctx context.Context, r *snapshot.Reader) (snapshot.Segment, error) {
	h, err := r.Header()
	if err != nil {
		return snapshot.Segment{}, err
	}
	for _, level := range []snapshot.Level{snapshot.Fastest, snapshot.Default, snapshot.Better} {
		line, err := e.recodeAt(ctx, r, h, level)
		if !errors.Is(err, snapshot.ErrCorrupt) {
			return line, err
		}
	}
	return snapshot.Segment{}, fmt.Errorf("%s: its content cannot be stored under another key", r.Name())
}

func (e *engine) recodeAt(ctx context.Context, r *snapshot.Reader, h snapshot.Header, level snapshot.Level) (snapshot.Segment, error) {
	t, err := e.temp()
	if err != nil {
		return snapshot.Segment{}, err
	}
	defer t.Close()
	w, err := snapshot.NewSegmentWriter(t, snapshot.Header{Repo: h.Repo, Lineage: h.Lineage, After: h.After, Continues: h.Continues}, snapshot.WriterOptions{Level: level})
	if err != nil {
		return snapshot.Segment{}, err
	}
	if err := w.Copy(r); err != nil {
		return snapshot.Segment{}, err
	}
	written, err := w.Close(h.Upto, e.salted(h.ExactFrom, h.After))
	if err != nil {
		return snapshot.Segment{}, err
	}
	if f := r.Footer(); written.Footer.Raw != f.Raw {
		return snapshot.Segment{}, fmt.Errorf("%s: written again, its text has the digest %v, not %v", r.Name(), written.Footer.Raw, f.Raw)
	}
	return e.store(ctx, written, t)
}

// salted returns a TID from which on a segment is exact, as it is from exact on. Without encryption the same bytes have the
// same key, under which something else may be stored.
func (e *engine) salted(exact, after tid.TID) tid.TID {
	if e.to != nil || exact >= after {
		return exact
	}
	return exact + tid.TID(rand.Uint64N(uint64(after-exact)))
}

// store seals and stores the plaintext of a segment.
func (e *engine) store(ctx context.Context, w *snapshot.Written, plain *temp) (snapshot.Segment, error) {
	if e.repo.Encrypted() && e.to == nil {
		return snapshot.Segment{}, fmt.Errorf("no note of an epoch verifies: nothing can be encrypted: %w", backup.ErrKeys)
	}
	sealed, err := e.temp()
	if err != nil {
		return snapshot.Segment{}, err
	}
	defer sealed.Close()
	st, err := snapshot.Seal(sealed, plain.reader(), e.to, e.kid)
	if err != nil {
		return snapshot.Segment{}, fmt.Errorf("sealing a segment: %w", err)
	}
	line := w.Line(st)
	return line, e.putHashed(ctx, line.Key, sealed, sealed.size, st.SHA256)
}

func (e *engine) seal(ctx context.Context, r *snapshot.Reader, plain io.Reader) (snapshot.Segment, error) {
	t, err := e.temp()
	if err != nil {
		return snapshot.Segment{}, err
	}
	defer t.Close()
	if _, err := io.Copy(t, plain); err != nil {
		return snapshot.Segment{}, err
	}
	w, err := r.Written()
	if err != nil {
		return snapshot.Segment{}, err
	}
	return e.store(ctx, w, t)
}

// put creates an object.
func (e *engine) put(ctx context.Context, key string, body io.ReaderAt, size int64, sum snapshot.Hash, short bool) error {
	o := store.PutOptions{Create: true, SHA256: sum}
	if e.o.Lock != "" {
		days := e.o.LockDays
		if short {
			days = min(days, e.o.LockShortDays)
		}
		o.Retain = store.Retention{Mode: e.o.Lock, Until: e.storeNow().Add(time.Duration(days) * 24 * time.Hour)}
	}
	if err := e.repo.Store.Put(ctx, key, body, size, o); err != nil {
		return err
	}
	e.objects++
	e.bytes += size
	return nil
}

// putHashed creates an object whose key has the hash of its bytes. One that exists with these bytes will do, unless it is doomed. The
// error is a CorruptError if it has others.
func (e *engine) putHashed(ctx context.Context, key string, body io.ReaderAt, size int64, sum snapshot.Hash) error {
	err := e.put(ctx, key, body, size, sum, false)
	if !errors.Is(err, store.ErrExists) {
		return err
	}
	got, info, err := e.repo.Bare().Get(ctx, key, 0, store.All)
	if err != nil {
		return err
	}
	defer got.Close()
	h := sha256.New()
	if _, err := io.Copy(h, got); err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	if info.Size != size || snapshot.Hash(h.Sum(nil)) != sum {
		return &snapshot.CorruptError{Name: key, Offset: -1, Err: errors.New("it has other bytes than its name says")}
	}
	if list := e.doomed[key]; list != "" {
		return &snapshot.CorruptError{Name: key, Offset: -1, Err: fmt.Errorf("%w: %s names it", ErrDoomed, list)}
	}
	return nil
}

// putBytes creates a small object under a numbered key.
func (e *engine) putBytes(ctx context.Context, key string, b []byte, short bool) error {
	return e.put(ctx, key, bytes.NewReader(b), int64(len(b)), snapshot.Sum(b), short)
}
