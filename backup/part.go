package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// Part is one step through the history of a state: a segment, or a gap of which an
// operator accepted that all in it is lost.
type Part struct {
	Segment *snapshot.Segment // Meta is 0 where it is not known: behind a tail
	Gap     *snapshot.Gap

	tail *StoredTail // that the segment is behind
}

// stored returns the part without what was read of it.
func (p *Part) stored() *Part { return &Part{Segment: p.Segment, Gap: p.Gap} }

// Range returns the range (after, upto] that the part stands for.
func (p *Part) Range() (after, upto tid.TID) {
	if p.Gap != nil {
		return p.Gap.After, p.Gap.Upto
	}
	return p.Segment.After, p.Segment.End()
}

// touches reports whether something of the part is in (after, upTo]. The second part of a
// transaction that is cut has an empty range.
func touches(from, end, after, upTo tid.TID) bool {
	return end > after && (from < upTo || from == end && end <= upTo)
}

// Parts yields the parts of a state that have something in (after, upTo], in their order.
// An error is the last step: an [ErrIncomplete] where a page is missing.
func (r *Repository) Parts(ctx context.Context, s *State, after, upTo tid.TID) iter.Seq2[*Part, error] {
	return func(yield func(*Part, error) bool) {
		if err := r.readPages(ctx, s, after, upTo); err != nil {
			yield(nil, err)
			return
		}
		segments := func(list []snapshot.Segment) bool {
			for i := range list {
				if touches(list[i].After, list[i].End(), after, upTo) && !yield(&Part{Segment: &list[i]}, nil) {
					return false
				}
			}
			return true
		}
		for _, i := range s.Manifest.Items {
			from, end := i.Range()
			switch {
			case !touches(from, end, after, upTo):
			case i.Page != nil:
				r.mu.Lock()
				list := r.pages[i.Page.Key]
				r.mu.Unlock()
				if !segments(list) {
					return
				}
			default:
				if !yield(&Part{Segment: i.Segment, Gap: i.Gap}, nil) {
					return
				}
			}
		}
		for _, t := range s.Tails {
			if t.Bytes == 0 {
				if !segments(t.Segments) {
					return
				}
				continue
			}
			if !touches(t.After, t.Upto, after, upTo) {
				continue
			}
			l, err := t.Line()
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(&Part{Segment: l, tail: t}, nil) {
				return
			}
		}
	}
}

// Line returns the line of the segment behind the note, without the length of its directory, which
// only the segment tells.
func (t *StoredTail) Line() (*snapshot.Segment, error) {
	l := &snapshot.Segment{After: t.After, Upto: t.Upto, Bytes: t.Bytes, SHA256: t.SHA256, Raw: t.Raw, Text: t.Text, Txns: t.Txns, Records: t.Records, MaxOID: t.MaxOID, KID: t.KID}
	l.SetTail(t.Key, t.NoteSize())
	if t.KID != 0 {
		h, err := snapshot.HeaderOf(bytes.NewReader(t.Object[t.NoteSize():]), t.Key)
		if err != nil {
			return nil, err
		}
		l.Header = h
	}
	return l, nil
}

// readPages reads the catalog pages that have something in (after, upTo].
func (r *Repository) readPages(ctx context.Context, s *State, after, upTo tid.TID) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, i := range s.Manifest.Items {
		if i.Page == nil || !touches(i.Page.After, i.Page.Upto, after, upTo) {
			continue
		}
		r.mu.Lock()
		_, known := r.pages[i.Page.Key]
		r.mu.Unlock()
		if known {
			continue
		}
		g.Go(func() error {
			list, err := r.page(ctx, i.Page)
			if again, e := r.rescueBytes(ctx, i.Page.Key, err, snapshot.MaxPage, func(b []byte) bool { return snapshot.Sum(b) == i.Page.SHA256 }); e != nil {
				err = e
			} else if again {
				list, err = r.page(ctx, i.Page)
			}
			if err != nil {
				return missing(err, "catalog page %s", i.Page.Key)
			}
			r.mu.Lock()
			r.pages[i.Page.Key] = list
			r.mu.Unlock()
			return nil
		})
	}
	return g.Wait()
}

func (r *Repository) page(ctx context.Context, p *snapshot.Page) ([]snapshot.Segment, error) {
	b, info, err := store.ReadAll(ctx, r.Store, p.Key, snapshot.MaxPage)
	if err != nil && info.Size > snapshot.MaxPage {
		err = &snapshot.CorruptError{Name: p.Key, Offset: -1, Err: fmt.Errorf("a catalog page of %d bytes", info.Size)}
	}
	if err != nil {
		return nil, err
	}
	return snapshot.OpenPage(b, p)
}

// missing makes an error about an object that is not there an [ErrIncomplete].
func missing(err error, format string, args ...any) error {
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%s: %w: %w", fmt.Sprintf(format, args...), ErrIncomplete, err)
	}
	return err
}

// unknownMeta is how much of the end of a segment is read if the length of its directory is
// not known.
const unknownMeta = 64 << 10

// OpenPart opens the segment of a part for random access: each read is one ranged GET, but
// for the end, which is read at once. ctx limits all its reads.
func (r *Repository) OpenPart(ctx context.Context, k *Keys, p *Part) (*snapshot.Reader, error) {
	s, err := r.openPart(ctx, k, p)
	if again, e := r.Rescue(ctx, p.Segment, err); e != nil {
		return nil, e
	} else if again {
		return r.openPart(ctx, k, p.stored())
	}
	return s, err
}

func (r *Repository) openPart(ctx context.Context, k *Keys, p *Part) (*snapshot.Reader, error) {
	l := p.Segment
	var src io.ReaderAt
	if t := p.tail; t != nil && int64(len(t.Object)) == t.Size {
		src = bytes.NewReader(t.Object[t.NoteSize():])
	} else {
		src = &ranged{ctx: ctx, r: r, l: l}
	}
	return r.open(ctx, k, p, src, true)
}

// open opens a segment of which src has the stored bytes. ahead: the end is read at once.
func (r *Repository) open(ctx context.Context, k *Keys, p *Part, src io.ReaderAt, ahead bool) (*snapshot.Reader, error) {
	l := p.Segment
	plain, size := src, l.Bytes
	suffix := func(off, n int64) ([]byte, error) {
		b := make([]byte, n)
		if got, err := src.ReadAt(b, off); got < len(b) {
			return nil, fmt.Errorf("read the end of %s: %w", l.Key, err)
		}
		return b, nil
	}
	meta := l.Meta
	if meta == 0 {
		meta = unknownMeta
	}
	if (l.KID != 0) != r.Encrypted() {
		return nil, &snapshot.CorruptError{Name: l.Key, Offset: -1, Err: fmt.Errorf("epoch %v in a repository of which the marker says: encryption %q", l.KID, r.Marker.Encryption)}
	}
	if l.KID != 0 {
		id, err := k.Epoch(ctx, l.KID)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.Key, err)
		}
		fileKey, err := snapshot.FileKey(l.Header, l.Key, id)
		if err != nil {
			return nil, err
		}
		sealed := &snapshot.Sealed{Key: l.Key, Size: l.Bytes, Header: l.Header, FileKey: fileKey}
		if ahead {
			size, err := sealed.PlainSize()
			if err != nil {
				return nil, err
			}
			meta = min(meta, size)
			if sealed.Suffix, err = suffix(sealed.SealedRange(size-meta, meta)); err != nil {
				return nil, err
			}
		}
		if plain, size, err = sealed.Open(src); err != nil {
			return nil, err
		}
	} else if ahead {
		meta = min(meta, size)
		b, err := suffix(size-meta, meta)
		if err != nil {
			return nil, err
		}
		plain = &withEnd{src, size - meta, b}
	}
	s, err := snapshot.NewReader(plain, size, l.Key)
	if err != nil {
		return nil, err
	}
	line := *l
	if f := s.Footer(); line.Meta == 0 {
		line.Meta = f.MetaLength()
		line.MaxOID = min(line.MaxOID, f.MaxOID) // a tail has that of the whole lineage
	}
	return s, s.Matches(&line)
}

// withEnd has the end of what an io.ReaderAt reads in memory.
type withEnd struct {
	io.ReaderAt
	at  int64
	end []byte
}

func (w *withEnd) ReadAt(b []byte, off int64) (int, error) {
	if off >= w.at && off+int64(len(b)) <= w.at+int64(len(w.end)) {
		return copy(b, w.end[off-w.at:]), nil
	}
	return w.ReaderAt.ReadAt(b, off)
}

// ranged reads the stored bytes of a segment by ranges.
type ranged struct {
	ctx context.Context
	r   *Repository
	l   *snapshot.Segment
}

// ReadAt implements io.ReaderAt.
func (g *ranged) ReadAt(b []byte, off int64) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	body, info, err := g.r.Store.Get(g.ctx, g.l.Key, g.l.Offset()+off, int64(len(b)))
	if err != nil {
		return 0, missing(err, "segment %s", g.l.Key)
	}
	defer body.Close()
	if want := g.l.Offset() + g.l.Bytes; info.Size != want {
		return 0, wrongSize(g.l, info.Size)
	}
	return io.ReadFull(body, b)
}

func wrongSize(l *snapshot.Segment, size int64) error {
	return &snapshot.CorruptError{Name: l.Key, Offset: -1, Err: fmt.Errorf("an object of %d bytes, want %d", size, l.Offset()+l.Bytes)}
}
