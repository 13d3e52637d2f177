package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"iter"
	"os"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
)

// FetchOptions say how whole segments are read. A zero field takes the default.
type FetchOptions struct {
	Scratch  string // directory of temporary files, for segments above 8 MiB; default: os.TempDir
	Parallel int    // segments that are read at once, ahead of the one in use; default: 8
	// SkipGaps passes over what is lost in [Repository.Transactions]. The caller must tell that. Default: a gap is an
	// ErrIncomplete.
	SkipGaps bool
}

// maxInMemory is the size of the greatest segment that is fetched into memory.
const maxInMemory = 8 << 20

// Fetched is a whole segment on this machine, whose bytes have the hash that the manifest
// or tail says; or a gap, without Reader.
type Fetched struct {
	*snapshot.Reader
	Part *Part

	file *os.File
}

// Close gives up the room that it takes.
func (f *Fetched) Close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

// Fetch reads the whole segment of a part. The caller closes it.
func (r *Repository) Fetch(ctx context.Context, k *Keys, p *Part, scratch string) (*Fetched, error) {
	f := &Fetched{Part: p}
	if p.Gap != nil {
		return f, nil
	}
	src, err := r.download(ctx, p, scratch, f)
	if again, e := r.Rescue(ctx, p.Segment, err); e != nil {
		err = e
	} else if again {
		f.Close()
		f.file, p = nil, p.stored()
		src, err = r.download(ctx, p, scratch, f)
	}
	if err == nil {
		f.Reader, err = r.open(ctx, k, p, src, false)
	}
	if err == nil {
		err = r.checkHeader(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkHeader compares what stands in the segment itself with where it was found.
func (r *Repository) checkHeader(f *Fetched) error {
	h, err := f.Header()
	if err != nil {
		return err
	}
	// The lineage is that of the segment's key: a fork uses segments of its parent.
	l := f.Part.Segment
	k, err := snapshot.ParseKey(l.Key)
	if err != nil {
		return err
	}
	if h.Repo != r.Marker.ID || h.Lineage != k.Lineage || h.After != l.After || h.Upto != l.Upto {
		return &snapshot.CorruptError{Name: l.Key, Offset: 0, Err: fmt.Errorf("its header says repository %v, lineage %v, %v to %v", h.Repo, h.Lineage, h.After, h.Upto)}
	}
	return nil
}

// download returns the stored bytes of a segment, with the right hash.
func (r *Repository) download(ctx context.Context, p *Part, scratch string, f *Fetched) (io.ReaderAt, error) {
	l := p.Segment
	if t := p.tail; t != nil && int64(len(t.Object)) == t.Size {
		b := t.Object[t.NoteSize():]
		return bytes.NewReader(b), sameHash(l, snapshot.Sum(b))
	}
	body, info, err := r.Store.Get(ctx, l.Key, l.Offset(), l.Bytes)
	if err != nil {
		return nil, missing(err, "segment %s", l.Key)
	}
	defer body.Close()
	if info.Size != l.Offset()+l.Bytes {
		return nil, wrongSize(l, info.Size)
	}
	if l.Bytes <= maxInMemory {
		b := make([]byte, l.Bytes)
		if _, err := io.ReadFull(body, b); err != nil {
			return nil, fmt.Errorf("read %s: %w", l.Key, err)
		}
		return bytes.NewReader(b), sameHash(l, snapshot.Sum(b))
	}
	f.file, err = os.CreateTemp(scratch, "neobackup-*.segment")
	if err != nil {
		return nil, err
	}
	// The room is free again when the file is closed, also after a crash.
	if err := os.Remove(f.file.Name()); err != nil {
		return nil, err
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f.file, sum), body); err != nil {
		return nil, fmt.Errorf("read %s into %s: %w", l.Key, f.file.Name(), err)
	}
	return f.file, sameHash(l, snapshot.Hash(sum.Sum(nil)))
}

func sameHash(l *snapshot.Segment, got snapshot.Hash) error {
	if got != l.SHA256 {
		return &snapshot.CorruptError{Name: l.Key, Offset: -1, Err: fmt.Errorf("its SHA-256 is %v, want %v", got, l.SHA256)}
	}
	return nil
}

// FetchParts reads whole segments ahead and yields them in their order, and gaps. Each is
// closed after its step. It ends at the first error.
func (r *Repository) FetchParts(ctx context.Context, k *Keys, s *State, after, upTo tid.TID, o FetchOptions) iter.Seq2[*Fetched, error] {
	return func(yield func(*Fetched, error) bool) {
		for f, err := range r.fetchParts(ctx, k, s, after, upTo, o) {
			ok := yield(f, err)
			if f != nil {
				f.Close()
			}
			if !ok || err != nil {
				return
			}
		}
	}
}

// fetchParts is FetchParts, but the caller closes what is yielded.
func (r *Repository) fetchParts(ctx context.Context, k *Keys, s *State, after, upTo tid.TID, o FetchOptions) iter.Seq2[*Fetched, error] {
	if o.Parallel == 0 {
		o.Parallel = 8
	}
	type result struct {
		f   *Fetched
		err error
	}
	return func(yield func(*Fetched, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var ahead []chan result
		defer func() {
			cancel()
			for _, c := range ahead {
				if got := <-c; got.f != nil {
					got.f.Close()
				}
			}
		}()
		first := func() bool {
			got := <-ahead[0]
			ahead = ahead[1:]
			return yield(got.f, got.err) && got.err == nil
		}
		for p, err := range r.Parts(ctx, s, after, upTo) {
			if len(ahead) == o.Parallel && !first() {
				return
			}
			c := make(chan result, 1)
			ahead = append(ahead, c)
			if err != nil {
				c <- result{nil, err}
				break
			}
			go func() {
				f, err := r.Fetch(ctx, k, p, o.Scratch)
				c <- result{f, err}
			}()
		}
		for len(ahead) > 0 {
			if !first() {
				return
			}
		}
	}
}
