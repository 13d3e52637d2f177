package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// smallTail is how much of a tail is read at once. Most are smaller as a whole.
const smallTail = 64 << 10

// State is what a lineage holds. It does not change.
type State struct {
	Lineage  snapshot.ID
	Manifest *snapshot.Manifest
	Hash     snapshot.Hash // of the object of the manifest
	Tails    []*StoredTail // those after the manifest, without hole
}

// StoredTail is a tail as it is stored.
type StoredTail struct {
	*snapshot.Tail
	Key    string
	Size   int64  // of the object
	Object []byte // its beginning: note and age header at least; all of a small one
}

// BrokenError reports a tail that is missing or damaged while there are later ones. What
// comes after it cannot be used.
type BrokenError struct {
	Key  string // of the tail
	Last int64  // number of the last tail that is there
	Err  error
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("the chain of tails is broken at %s, the last one has number %d: %v", e.Key, e.Last, e.Err)
}

// Unwrap returns what is wrong with the tail.
func (e *BrokenError) Unwrap() error { return e.Err }

// NotExactError is an [ErrNotExact].
type NotExactError struct {
	TID           tid.TID
	Head          tid.TID
	Before, After tid.TID // the nearest exact TIDs; zero: none
}

func (e *NotExactError) Error() string {
	if e.TID > e.Head {
		return fmt.Sprintf("transaction %v is not restorable: the backup ends with %v", e.TID, e.Head)
	}
	var nearest string
	switch {
	case e.Before == 0 && e.After == 0:
		nearest = "none is yet, those that are still to be read will be"
	case e.Before == 0:
		nearest = fmt.Sprintf("the first that is: %v", e.After)
	case e.After == 0:
		nearest = fmt.Sprintf("the nearest that are: %v, and those that are still to be read", e.Before)
	default:
		nearest = fmt.Sprintf("the nearest that are: %v and %v", e.Before, e.After)
	}
	return fmt.Sprintf("transaction %v is not restorable: a pack of the source had removed what was current then before it was read; %s", e.TID, nearest)
}

// Is reports whether target is [ErrNotExact].
func (e *NotExactError) Is(target error) bool { return target == ErrNotExact }

// Chain returns the place after the last tail: where the next one goes.
func (s *State) Chain() snapshot.Chain {
	if n := len(s.Tails); n > 0 {
		return s.Tails[n-1].Chain()
	}
	return s.Manifest.ChainEnd()
}

// Head returns the greatest TID such that everything up to it is in the repository.
func (s *State) Head() tid.TID { return s.Chain().Head }

// Tip returns what identifies transaction Head; zero if there is none, or a gap has it.
func (s *State) Tip() snapshot.Hash {
	if n := len(s.Tails); n > 0 {
		return s.Tails[n-1].Tip
	}
	return s.Manifest.Tip
}

// Holes returns all holes, ascending.
func (s *State) Holes() []snapshot.Hole {
	holes := s.Manifest.Holes
	for _, t := range s.Tails {
		if t.ExactFrom != 0 {
			holes = snapshot.AddHole(holes, snapshot.Hole{From: t.After, To: t.ExactFrom})
		}
	}
	return holes
}

// MaxOID returns the greatest object id.
func (s *State) MaxOID() tid.OID {
	oid := s.Manifest.MaxOID
	for _, t := range s.Tails {
		oid = max(oid, t.MaxOID)
	}
	return oid
}

// HasBlobs reports whether the lineage has blobs, which this version cannot restore.
func (s *State) HasBlobs() bool {
	for _, t := range s.Tails {
		if snapshot.HasBlobs(t.Reserved) {
			return true
		}
	}
	return snapshot.HasBlobs(s.Manifest.Reserved)
}

// Exact returns nil if the history can be restored exactly at T: if T is not beyond Head
// and in no hole. The error is a [*NotExactError].
func (s *State) Exact(t tid.TID) error {
	if t > s.Head() {
		return &NotExactError{TID: t, Head: s.Head(), Before: s.Head()}
	}
	if h, in := snapshot.InHole(s.Holes(), t); in {
		e := &NotExactError{TID: t, Head: s.Head(), Before: h.From}
		if h.To <= e.Head {
			e.After = h.To
		}
		return e
	}
	return nil
}

// State reads the newest manifest of a lineage and the tails after it. known is an
// earlier state of the lineage, or nil: what it has is not read again.
//
// With a [*BrokenError] it returns the state before the break as well.
func (r *Repository) State(ctx context.Context, lineage snapshot.ID, known *State) (*State, error) {
	for try := 0; ; try++ {
		s, err := r.manifest(ctx, lineage, known)
		if err != nil {
			return nil, err
		}
		err = r.tails(ctx, s, known)
		// A newer manifest may have taken the place of tails that are deleted meanwhile.
		if b, ok := errors.AsType[*BrokenError](err); ok && errors.Is(b, store.ErrNotFound) && try < 2 {
			if next, err := r.manifest(ctx, lineage, s); err == nil && next.Manifest.Seq > s.Manifest.Seq {
				known = s
				continue
			}
		}
		if err != nil {
			if _, ok := errors.AsType[*BrokenError](err); !ok {
				s = nil
			}
		}
		return s, err
	}
}

// manifest returns a state with the newest manifest and without tails.
func (r *Repository) manifest(ctx context.Context, lineage snapshot.ID, known *State) (*State, error) {
	var seq int64
	for info, err := range r.Store.List(ctx, snapshot.Prefix(snapshot.KindManifest, lineage), "") {
		if err != nil {
			return nil, err
		}
		if k, err := snapshot.ParseKey(info.Key); err == nil && k.Kind == snapshot.KindManifest {
			seq = k.N // the newest comes first
			break
		}
	}
	if known != nil {
		seq = max(seq, known.Manifest.Seq)
	}
	// What will be needed is read at the same time: a store may be far away.
	begun := map[int64]*ahead{}
	for _, n := range []int64{seq - 1, seq, seq + 1} {
		if n > 0 && (n > seq || known == nil || n > known.Manifest.Seq) {
			begun[n] = r.ahead(ctx, snapshot.ManifestKey(lineage, n))
		}
	}
	read := func(seq int64) ([]byte, error) {
		if a := begun[seq]; a != nil {
			delete(begun, seq) // asked for again, it may have changed
			return a.wait()
		}
		return r.ahead(ctx, snapshot.ManifestKey(lineage, seq)).wait()
	}
	var newest, before []byte
	if seq > 0 && (known == nil || known.Manifest.Seq < seq) {
		b, err := read(seq)
		if err != nil {
			return nil, err
		}
		newest = b
	}
	for { // a list may be late
		b, err := read(seq + 1)
		if errors.Is(err, store.ErrNotFound) {
			break
		}
		if err != nil {
			return nil, err
		}
		newest, before, seq = b, newest, seq+1
	}
	if newest == nil && known == nil {
		return nil, fmt.Errorf("%w: lineage %v has no manifest", ErrIncomplete, lineage)
	}
	if newest == nil {
		return &State{Lineage: lineage, Manifest: known.Manifest, Hash: known.Hash}, nil
	}
	key := snapshot.ManifestKey(lineage, seq)
	m, err := snapshot.OpenManifest(newest, key, r.Marker.ID, r.Trusted)
	if again, e := r.rescueBytes(ctx, key, err, maxNote, func(b []byte) bool {
		_, err := snapshot.OpenManifest(b, key, r.Marker.ID, r.Trusted)
		return err == nil
	}); e != nil {
		return nil, e
	} else if again {
		if newest, err = read(seq); err == nil {
			m, err = snapshot.OpenManifest(newest, key, r.Marker.ID, r.Trusted)
		}
	}
	if err != nil {
		return nil, err
	}
	prev := snapshot.Hash{}
	switch {
	case seq == 1:
	case known != nil && known.Manifest.Seq == seq-1:
		prev = known.Hash
	case before != nil:
		prev = snapshot.Sum(before)
	default:
		b, err := read(seq - 1)
		if errors.Is(err, store.ErrNotFound) {
			prev = m.Prev // a newer one stands for it: it may be gone
		} else if err != nil {
			return nil, err
		} else {
			prev = snapshot.Sum(b)
		}
	}
	if m.Prev != prev {
		err := &snapshot.CorruptError{Name: key, Offset: 0, Err: fmt.Errorf("prev is %v, manifest %d has %v", m.Prev, seq-1, prev)}
		// It may be the one before that is not what it was.
		again, e := r.rescueBytes(ctx, snapshot.ManifestKey(lineage, seq-1), err, maxNote, func(b []byte) bool { return snapshot.Sum(b) == m.Prev })
		if e != nil {
			return nil, e
		}
		if !again {
			return nil, err
		}
	}
	return &State{Lineage: lineage, Manifest: m, Hash: snapshot.Sum(newest)}, nil
}

// tails reads the tails after the manifest.
func (r *Repository) tails(ctx context.Context, s, known *State) error {
	at := s.Manifest.ChainEnd()
	if known != nil {
		for _, t := range known.Tails {
			if t.N > at.N {
				if t.Follows(at) != nil {
					break // the manifest knows better
				}
				s.Tails = append(s.Tails, t)
				at = t.Chain()
			}
		}
	}
	last := at.N
	type answer struct {
		t   *StoredTail
		err error
	}
	next := make(chan answer, 1) // it is asked for while the list is read
	go func(n int64) {
		t, err := r.Tail(ctx, s.Lineage, n)
		next <- answer{t, err}
	}(at.N + 1)
	for info, err := range r.Store.List(ctx, snapshot.Prefix(snapshot.KindTail, s.Lineage), snapshot.TailKey(s.Lineage, at.N)) {
		if err != nil {
			return err
		}
		if k, err := snapshot.ParseKey(info.Key); err == nil && k.Kind == snapshot.KindTail {
			last = max(last, k.N)
		}
	}
	for {
		// One more than was listed: a list may be late.
		first := at.N + 1
		list := make([]*StoredTail, min(last-first+2, 64))
		errs := make([]error, len(list))
		var g errgroup.Group
		g.SetLimit(16)
		for i := range list {
			g.Go(func() error {
				if i == 0 && next != nil {
					a := <-next
					next = nil
					if !errors.Is(a.err, store.ErrNotFound) || first > last {
						list[0], errs[0] = a.t, a.err
						return nil
					} // it was stored since
				}
				list[i], errs[i] = r.Tail(ctx, s.Lineage, first+int64(i))
				return nil
			})
		}
		g.Wait()
		for i, t := range list {
			n, err := first+int64(i), errs[i]
			if err == nil {
				err = t.Follows(at)
			}
			if err != nil && n <= last {
				// Of what is there an earlier version may be the one that follows.
				again, e := r.rescueTail(ctx, s.Lineage, n, err, func(t *snapshot.Tail) error { return t.Follows(at) })
				if e != nil {
					return e
				}
				if again {
					if t, err = r.Tail(ctx, s.Lineage, n); err == nil {
						err = t.Follows(at)
					}
				}
			}
			switch {
			case err == nil:
				s.Tails = append(s.Tails, t)
				at, last = t.Chain(), max(last, n)
			case errors.Is(err, store.ErrNotFound) && n > last:
				return nil
			case errors.Is(err, store.ErrNotFound), errors.Is(err, snapshot.ErrCorrupt), errors.Is(err, snapshot.ErrUntrusted):
				return &BrokenError{snapshot.TailKey(s.Lineage, n), last, err}
			default:
				return err
			}
		}
	}
}

// Tail reads a tail: its note, and the whole object if it is small. Of one that was overwritten it
// reads the version that is right.
func (r *Repository) Tail(ctx context.Context, lineage snapshot.ID, n int64) (*StoredTail, error) {
	t, err := r.tail(ctx, lineage, n)
	cause := err
	if err == nil && t.Bytes > 0 && t.Size == int64(len(t.Object)) {
		if got := snapshot.Sum(t.Object[t.NoteSize():]); got != t.SHA256 {
			// The note is right: what is behind it is an error only to what reads it.
			cause = &snapshot.CorruptError{Name: t.Key, Offset: t.NoteSize(), Err: fmt.Errorf("the SHA-256 of the segment behind the note is %v, want %v", got, t.SHA256)}
		}
	}
	if cause == nil || errors.Is(cause, store.ErrNotFound) {
		return t, err
	}
	again, e := r.rescueTail(ctx, lineage, n, cause, nil)
	if e != nil {
		return nil, e
	}
	if again {
		return r.tail(ctx, lineage, n)
	}
	return t, err
}

// rescueTail is rescue for a tail. follows, if set, says whether its note is the right one.
func (r *Repository) rescueTail(ctx context.Context, lineage snapshot.ID, n int64, cause error, follows func(*snapshot.Tail) error) (bool, error) {
	key := snapshot.TailKey(lineage, n)
	return r.rescue(ctx, key, cause, func(v store.Version) (bool, error) {
		b, err := r.version(ctx, v, snapshot.MaxTailNote)
		if err != nil {
			return false, err
		}
		t, err := snapshot.OpenTail(b, key, r.Marker.ID, r.Trusted)
		if err != nil || v.Size != t.NoteSize()+t.Bytes || follows != nil && follows(t) != nil {
			return false, nil
		}
		if t.Bytes == 0 {
			return true, nil
		}
		if b, err = r.version(ctx, v, store.All); err != nil {
			return false, err
		}
		return snapshot.Sum(b[t.NoteSize():]) == t.SHA256, nil
	})
}

func (r *Repository) tail(ctx context.Context, lineage snapshot.ID, n int64) (*StoredTail, error) {
	key := snapshot.TailKey(lineage, n)
	b, info, err := r.read(ctx, key, 0, smallTail)
	if err != nil {
		return nil, err
	}
	// The age header follows the note.
	if note, err := snapshot.SplitTail(b, key); err == nil && info.Size > int64(len(b)) && note+4096 > int64(len(b)) {
		if b, info, err = r.read(ctx, key, 0, note+4096); err != nil {
			return nil, err
		}
	}
	t, err := snapshot.OpenTail(b, key, r.Marker.ID, r.Trusted)
	if err != nil {
		return nil, err
	}
	if want := t.NoteSize() + t.Bytes; info.Size != want {
		return nil, &snapshot.CorruptError{Name: key, Offset: -1, Err: fmt.Errorf("an object of %d bytes, its note says %d", info.Size, want)}
	}
	return &StoredTail{Tail: t, Key: key, Size: info.Size, Object: b}, nil
}

// ahead is an object that is being read.
type ahead struct {
	done chan struct{}
	b    []byte
	err  error
}

// ahead begins to read a whole note.
func (r *Repository) ahead(ctx context.Context, key string) *ahead {
	a := &ahead{done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.b, _, a.err = store.ReadAll(ctx, r.Store, key, maxNote)
	}()
	return a
}

func (a *ahead) wait() ([]byte, error) {
	<-a.done
	return a.b, a.err
}

// whole returns an object that is being read, if it is not nil. It is read again if it was not there: it may have been
// asked for too early.
func (r *Repository) whole(ctx context.Context, a *ahead, key string) ([]byte, error) {
	if a != nil {
		if b, err := a.wait(); !errors.Is(err, store.ErrNotFound) {
			return b, err
		}
	}
	b, _, err := store.ReadAll(ctx, r.Store, key, maxNote)
	return b, err
}

// read returns the bytes [off, off+n) of an object as far as they exist.
func (r *Repository) read(ctx context.Context, key string, off, n int64) ([]byte, store.Info, error) {
	body, info, err := r.Store.Get(ctx, key, off, n)
	if err != nil {
		return nil, info, err
	}
	defer body.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, body); err != nil {
		return nil, info, fmt.Errorf("read %s: %w", key, err)
	}
	return b.Bytes(), info, nil
}
