package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// ForkOptions say what a new lineage has of the current one. Of Options, Repo, Signer and
// StateDir are required. With Feed, At must be the last transaction that repository and source
// share; without, nothing is compared, and At is required.
type ForkOptions struct {
	Options

	// At is a moment: the history up to the last transaction at or before it is taken.
	// Zero: up to the last one that repository and source share.
	At tid.TID
	// Keys, if they open the repository, make it possible to take any transaction, and to find
	// the last shared one. Without them only the ends of tails and manifests are known.
	Keys *backup.Keys
	Why  string // what the operator says; it is kept in the note of the lineage
}

// Errors of a fork, for errors.Is.
var (
	// ErrNothingToFork reports a source that continues the repository.
	ErrNothingToFork = errors.New("the source continues the repository: there is nothing to fork")
	// ErrNotCommon reports a transaction that is not known to be the last one that repository and
	// source share.
	ErrNotCommon = errors.New("a fork goes on from the last transaction that repository and source share")
	// ErrDoomed reports an object that a keeper is about to delete.
	ErrDoomed = errors.New("about to be deleted")
	// ErrGivenUp reports a rebase that nothing was added to for so long that a keeper may be deleting what it has stored.
	ErrGivenUp = errors.New("a keeper gives up what a rebase has stored")
)

// Fork is a lineage to be, that has a part of the history of the current one.
type Fork struct {
	Parent *snapshot.Lineage
	Head   tid.TID // of the parent
	At     tid.TID // of the new lineage: what comes after it stays in the parent alone
	// Common is the last transaction that repository and source share; Zero: none that is
	// known, or there is no source. Known says that there is none after it, else it is the
	// last one of those that the notes of the repository name.
	Common tid.TID
	Known  bool

	Segments int64 // of the new lineage, all of them the parent's
	Stored   int64 // bytes of these

	w        *Writer
	o        ForkOptions
	manifest *snapshot.Manifest
}

// PlanFork finds out what a new lineage would be. Nothing is written. The state directory is locked
// until Close.
func PlanFork(ctx context.Context, o ForkOptions) (*Fork, error) {
	w, err := prepare(o.Options)
	if err != nil {
		return nil, err
	}
	f := &Fork{w: w, o: o}
	if err := f.plan(ctx); err != nil {
		w.lock.Close()
		return nil, err
	}
	return f, nil
}

// Close gives up the state directory.
func (f *Fork) Close() error { return f.w.lock.Close() }

func (f *Fork) plan(ctx context.Context) error {
	w := f.w
	if err := w.openLineage(ctx); err != nil {
		return err
	}
	f.Parent, f.Head = w.note, w.chain.end.Head
	state, err := w.repo.State(ctx, w.note.Lineage, w.chain.known())
	if err != nil {
		return err
	}
	if err := f.common(ctx, state); err != nil {
		return err
	}
	at := f.o.At
	switch {
	case at == tid.Zero && w.o.Feed == nil:
		return errors.New("a fork without a source needs a transaction to end with")
	case at == tid.Zero:
		at = f.Common
	}
	if at == tid.Zero {
		return fmt.Errorf("%w: none is known: is it another database?", ErrNotCommon)
	}
	tip, err := f.tip(ctx, state, at)
	if err != nil {
		return err
	}
	if w.o.Feed != nil && f.At != f.Common {
		switch {
		case f.Common == tid.Zero:
			return fmt.Errorf("%w: transaction %v; none is known: is it another database?", ErrNotCommon, f.At)
		case !f.Known:
			return fmt.Errorf("%w, of which transaction %v is not known; %v is: without an identity only the ends of tails and manifests are", ErrNotCommon, f.At, f.Common)
		}
		return fmt.Errorf("%w, which is %v, not %v", ErrNotCommon, f.Common, f.At)
	}
	if f.manifest, err = w.repo.Fork(ctx, state, snapshot.NewID(), f.At, tip); err != nil {
		return err
	}
	f.manifest.Writer = w.name
	if w.o.Feed != nil {
		f.manifest.Source = w.o.Feed.Source()
	}
	f.Stored = f.manifest.Stored
	for _, i := range f.manifest.Items {
		switch {
		case i.Segment != nil:
			f.Segments++
		case i.Page != nil:
			f.Segments += i.Page.N
		}
	}
	return f.alive(ctx, state)
}

// common finds the last transaction that source and repository share.
func (f *Fork) common(ctx context.Context, state *backup.State) error {
	w, c := f.w, f.w.chain
	if w.o.Feed == nil {
		return nil
	}
	if err := w.o.Feed.Resume(ctx, w.markOf(c.id)); err != nil && !differs(err) {
		return err
	}
	if c.end.Head == tid.Zero {
		return fmt.Errorf("%w: nothing is stored yet", ErrNothingToFork)
	}
	err := w.sameHistory(ctx, c, nil)
	d, ok := errors.AsType[*DivergedError](err)
	switch {
	case err == nil:
		return ErrNothingToFork
	case !ok:
		return err
	}
	f.Common = d.Common
	if f.o.Keys == nil {
		return nil
	}
	at, err := w.lastShared(ctx, state, f.o.Keys)
	if err != nil {
		return err
	}
	f.Common, f.Known = max(at, f.Common), true
	return nil
}

// lastShared returns the last transaction of a state that the source has too, Zero if there is none.
func (w *Writer) lastShared(ctx context.Context, s *backup.State, k *backup.Keys) (tid.TID, error) {
	has := func(t *txn.Transaction) (bool, error) {
		info, err := w.o.Feed.Info(ctx, t.TID)
		if errors.Is(err, txn.ErrNotFound) {
			return false, nil
		}
		return err == nil && snapshot.Tip(info) == snapshot.Tip(t), err
	}
	var ends []tid.TID // of segments
	for p, err := range w.repo.Parts(ctx, s, tid.Zero, s.Head()) {
		if err != nil {
			return 0, err
		}
		if p.Gap == nil && p.Segment.Txns > 0 {
			_, end := p.Range()
			ends = append(ends, end)
		}
	}
	// The first segment at the end of which they differ.
	var failed error
	i := sort.Search(len(ends), func(i int) bool {
		if failed != nil {
			return true
		}
		t, err := w.repo.LastTransaction(ctx, k, s, ends[i])
		ok := false
		if err == nil && t != nil {
			ok, err = has(t)
		}
		failed = err
		return !ok
	})
	if failed != nil {
		return 0, failed
	}
	after, upTo := tid.Zero, s.Head()
	if i > 0 {
		after = ends[i-1]
	}
	if i < len(ends) {
		upTo = ends[i]
	}
	shared := tid.Zero
	if i > 0 {
		t, err := w.repo.LastTransaction(ctx, k, s, after)
		if err != nil {
			return 0, err
		}
		shared = t.TID
	}
	for t, err := range w.repo.Transactions(ctx, k, s, after, upTo, backup.FetchOptions{Scratch: w.spool.dir}, nil) {
		if err != nil {
			return 0, err
		}
		ok, err := has(t)
		if err != nil || !ok {
			return shared, err
		}
		shared = t.TID
	}
	return shared, nil
}

// tip sets At to the last transaction at or before a moment, and returns what identifies it.
func (f *Fork) tip(ctx context.Context, s *backup.State, at tid.TID) (snapshot.Hash, error) {
	w, c := f.w, f.w.chain
	if err := s.Exact(at); err != nil {
		return snapshot.Hash{}, err
	}
	f.At = at
	if at == s.Head() {
		return s.Tip(), nil
	}
	ancestors, err := w.ancestors(ctx, c)
	if err != nil {
		return snapshot.Hash{}, err
	}
	for _, a := range ancestors {
		if at > a.upTo {
			break
		}
		for _, kind := range steps {
			keys, err := w.keys(ctx, a.id, kind)
			if err != nil {
				return snapshot.Hash{}, err
			}
			var found snapshot.Hash
			var failed error
			sort.Search(len(keys), func(i int) bool {
				end, tip, err := w.endOf(ctx, keys[i])
				if err != nil {
					failed = err
				}
				if end == at {
					found = tip
				}
				return end >= at
			})
			if found != (snapshot.Hash{}) || failed != nil {
				return found, failed
			}
		}
	}
	if f.o.Keys == nil {
		return snapshot.Hash{}, fmt.Errorf("transaction %v is not at the end of a tail or manifest that is there: %w: an identity is needed to read it", at, backup.ErrKeys)
	}
	t, err := w.repo.LastTransaction(ctx, f.o.Keys, s, at)
	if err != nil {
		return snapshot.Hash{}, err
	}
	if t == nil {
		return snapshot.Hash{}, fmt.Errorf("%w: nothing was committed until %v", backup.ErrNotExact, at)
	}
	f.At = t.TID
	return snapshot.Tip(t), s.Exact(t.TID)
}

// alive makes sure that no keeper is about to delete what the new lineage refers to: it was not
// needed when that was decided, if the newest manifest of the parent does not name it.
func (f *Fork) alive(ctx context.Context, s *backup.State) error {
	used := map[string]bool{}
	for _, key := range backup.References(f.manifest) {
		used[key] = true
	}
	for p, err := range f.w.repo.Parts(ctx, s, tid.Zero, f.At) {
		if err != nil {
			return err
		}
		if p.Segment != nil {
			used[p.Segment.Key] = true
		}
	}
	doomed, err := f.w.repo.Doomed(ctx, func(key string) bool { return used[key] })
	for key, list := range doomed {
		return fmt.Errorf("%s is %w, as %s says: neobackup prune --undo cancels that", key, ErrDoomed, list)
	}
	return err
}

// Begin stores the new lineage, which is the current one from then on. The parent gets a last tail
// before, so that a writer which still adds to it is stopped.
func (f *Fork) Begin(ctx context.Context) (*snapshot.Lineage, error) {
	w := f.w
	// What was looked at must still be so when the note is there.
	timely, cancel := context.WithTimeout(ctx, maxUnreferenced)
	defer cancel()
	if err := w.checkCurrent(timely, w.chain); err != nil {
		return nil, err
	}
	m := f.manifest
	b, err := m.Sign(w.o.Signer)
	if err != nil {
		return nil, err
	}
	if err := w.put(timely, snapshot.ManifestKey(m.Lineage, 1), bytes.NewReader(b), int64(len(b)), snapshot.Sum(b), short); err != nil {
		return nil, err
	}
	if err := w.chain.heartbeat(timely, w.chain.asof); err != nil {
		return nil, err
	}
	why := "fork"
	if f.o.Why != "" {
		why += ": " + f.o.Why
	}
	l := &snapshot.Lineage{Repo: w.repo.Marker.ID, K: w.note.K + 1, Lineage: m.Lineage, Parent: w.note.Lineage, At: f.At, Created: time.Now(), Why: why}
	if err := w.repo.NewLineage(timely, w.o.Signer, l); errors.Is(err, store.ErrExists) {
		if err := w.checkCurrent(timely, w.chain); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("lineage note %d exists, but is not current: %w", l.K, err)
	} else if err != nil {
		return nil, err
	}
	w.log.Info("a new lineage is current", "lineage", l.Lineage, "k", l.K, "head", f.At, "parent", l.Parent)
	return l, nil
}
