package copier

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// KindCopy is the kind of a source that is a repository, in [snapshot.Source].
const KindCopy = "copy"

// Feed is the current lineage of a repository as a source of another one: a [feed.Feed]. It ends with
// the last transaction at which the lineage is exact. Records that copy an earlier revision
// have no data of their own: the other repository has that revision, since it is read from the
// beginning.
type Feed struct {
	repo *backup.Repository
	keys *backup.Keys
	o    FeedOptions
	note *snapshot.Lineage

	mu    sync.Mutex
	state *backup.State
	told  tid.TID // by Last
	at    tid.TID // last transaction that was read
}

// FeedOptions say how a repository is read. A zero field takes the default.
type FeedOptions struct {
	Fetch backup.FetchOptions
	Poll  time.Duration // how often Wait looks for what is new; default: 1 s
	// Of is what the other repository is a copy of, as its newest manifest says, and Head its
	// last transaction; by default it has none.
	Of   snapshot.Source
	Head tid.TID
}

// renewedError reports that the repository has another lineage than the one that was copied, and is
// a [feed.ErrPacked]: its source may have been packed, and what that dropped cannot be told.
type renewedError struct {
	note *snapshot.Lineage
	of   string
}

func (e *renewedError) Error() string {
	return fmt.Sprintf("the repository has lineage %v since %s (%s), and was copied from %s: what that lacks cannot be told", e.note.Lineage, e.note.Created.UTC().Format(time.RFC3339), e.note.Why, e.of)
}

func (e *renewedError) Is(target error) bool { return target == feed.ErrPacked }

// OpenFeed opens the current lineage of a repository as a source. The keys must open it.
func OpenFeed(ctx context.Context, repo *backup.Repository, keys *backup.Keys, o FeedOptions) (*Feed, error) {
	if o.Poll <= 0 {
		o.Poll = time.Second
	}
	note, err := repo.Current(ctx)
	if err != nil {
		return nil, err
	}
	f := &Feed{repo: repo, keys: keys, o: o, note: note}
	_, err = f.refresh(ctx)
	return f, err
}

var _ feed.Feed = (*Feed)(nil)

// refresh reads what the lineage has now.
func (f *Feed) refresh(ctx context.Context) (*backup.State, error) {
	f.mu.Lock()
	known := f.state
	f.mu.Unlock()
	s, err := f.repo.State(ctx, f.note.Lineage, known)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == known || s.Chain().N > f.state.Chain().N {
		f.state = s
	}
	return f.state, nil
}

func (f *Feed) now() *backup.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// exactEnd returns the last TID at which a state is exact.
func exactEnd(s *backup.State) tid.TID {
	head := s.Head()
	if h, in := snapshot.InHole(s.Holes(), head); in {
		return h.From
	}
	return head
}

// sourceName is how manifests name a lineage that was copied.
func sourceName(r *backup.Repository, lineage snapshot.ID) string {
	return r.Marker.Name + "/" + lineage.String()
}

// Source implements [feed.Feed].
func (f *Feed) Source() snapshot.Source {
	return snapshot.Source{Kind: KindCopy, Name: sourceName(f.repo, f.note.Lineage)}
}

// Last implements [feed.Feed].
func (f *Feed) Last(ctx context.Context) (tid.TID, time.Time, error) {
	s, err := f.refresh(ctx)
	if err != nil {
		return 0, time.Time{}, err
	}
	last := exactEnd(s)
	asof := s.Manifest.Asof
	if n := len(s.Tails); n > 0 {
		asof = s.Tails[n-1].Asof
	}
	if last < s.Head() || asof.IsZero() {
		asof = last.Time()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if last < f.told {
		return 0, asof, fmt.Errorf("%w: the repository ends with %v, and had %v", feed.ErrChanged, last, f.told)
	}
	f.told = last
	return last, asof, nil
}

// Info implements [feed.Feed].
func (f *Feed) Info(ctx context.Context, t tid.TID) (*txn.Transaction, error) {
	s := f.now()
	if t <= s.Head() {
		got, err := f.repo.LastTransaction(ctx, f.keys, s, t)
		if err != nil {
			return nil, err
		}
		if got != nil && got.TID == t {
			return got, nil
		}
	}
	return nil, fmt.Errorf("transaction %v: %w", t, txn.ErrNotFound)
}

// Read implements [feed.Feed].
func (f *Feed) Read(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	// That a copy has data is all that the other repository stores of it.
	there := func(tid.OID, tid.TID) ([]byte, error) { return []byte{}, nil }
	return func(yield func(*txn.Transaction, error) bool) {
		for again := true; again; {
			again = false
			s := f.now()
			for t, err := range f.repo.Transactions(ctx, f.keys, s, after, upTo, f.o.Fetch, there) {
				if err == nil {
					after = t.TID
					f.mu.Lock()
					f.at = max(f.at, after)
					f.mu.Unlock()
				} else if again = f.superseded(ctx, s, err); again {
					break
				}
				if !yield(t, err) || err != nil {
					return
				}
			}
		}
	}
}

// superseded reports whether an error is about something that a newer manifest has made superfluous, so that
// it may be gone: what is read takes longer than a keeper waits.
func (f *Feed) superseded(ctx context.Context, s *backup.State, err error) bool {
	if !errors.Is(err, store.ErrNotFound) {
		return false
	}
	next, err := f.refresh(ctx)
	return err == nil && next.Manifest.Seq > s.Manifest.Seq
}

// Packed implements [feed.Feed]: it is the end of the last hole that what was read reaches into.
func (f *Feed) Packed(context.Context) (tid.TID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	packed := tid.Zero
	for _, h := range f.state.Holes() {
		if h.From < f.at {
			packed = max(packed, h.To)
		}
	}
	return packed, nil
}

// Has implements [feed.Feed].
func (f *Feed) Has(context.Context, tid.OID, tid.TID) (bool, error) { return true, nil }

// Mark implements [feed.Feed].
func (f *Feed) Mark(context.Context, tid.TID) (string, error) { return "", nil }

// Resume implements [feed.Feed]: the lineage has to be the one that was copied, or a fork of it after what
// was copied.
func (f *Feed) Resume(ctx context.Context, _ string) error {
	if f.o.Head == tid.Zero || f.o.Of == f.Source() {
		return nil
	}
	notes, err := f.repo.Lineages(ctx)
	if err != nil {
		return err
	}
	byID := map[snapshot.ID]*snapshot.Lineage{}
	for _, n := range notes {
		byID[n.Lineage] = n
	}
	for l := f.note; l != nil && l.At != tid.Zero; l = byID[l.Parent] {
		if f.o.Of.Name == sourceName(f.repo, l.Parent) {
			return nil // whether it was forked before, the last transaction tells
		}
	}
	return &renewedError{f.note, f.o.Of.Name}
}

// Wait implements [feed.Feed].
func (f *Feed) Wait(ctx context.Context) error {
	for {
		s, err := f.refresh(ctx)
		if err != nil {
			return err
		}
		f.mu.Lock()
		told := f.told
		f.mu.Unlock()
		if exactEnd(s) > told {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(f.o.Poll):
		}
	}
}

// Close implements [feed.Feed].
func (f *Feed) Close() error { return nil }

// Stops returns the transactions at which a copy has to end a range, so that it has exactly the holes
// that the repository has: where they begin.
func (f *Feed) Stops() (list []tid.TID) {
	for _, h := range f.now().Holes() {
		if h.From > tid.Zero {
			list = append(list, h.From)
		}
	}
	return list
}
