package writer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// checkSource makes sure that the source continues a lineage.
func (w *Writer) checkSource(ctx context.Context, c *chain) error {
	head := c.end.Head
	resumed := w.o.Feed.Resume(ctx, w.markOf(c.id))
	if resumed != nil && !differs(resumed) {
		return resumed
	}
	if head == tid.Zero {
		return nil // whatever the source was: nothing of it is here
	}
	source := w.o.Feed.Source()
	if resumed == nil && source.Kind == feed.KindFile && w.markOf(c.id) == "" {
		if resumed = w.begins(ctx, head); resumed != nil && !differs(resumed) {
			return resumed
		}
	}
	if s := c.manifest.Source; s != source {
		w.log.Warn("the source has another identity than the one before", "kind", source.Kind, "name", source.Name, "np", source.NP, "before", fmt.Sprintf("%s %s %d", s.Kind, s.Name, s.NP))
	}
	if err := w.sameHistory(ctx, c, resumed); err != nil {
		return err
	}
	if resumed == nil {
		return nil
	}
	e := &DivergedError{Head: head, Common: head, Err: resumed}
	if !w.o.RebaseOnPack || errors.Is(resumed, feed.ErrChanged) {
		return e
	}
	w.packed = e
	return nil
}

// begins reads the first transaction of a file after one, of which there is no mark: whether a pack
// went beyond that shows in it.
func (w *Writer) begins(ctx context.Context, after tid.TID) error {
	last, _, err := w.o.Feed.Last(ctx)
	if err != nil {
		return err
	}
	for _, err := range w.o.Feed.Read(ctx, after, last) {
		return err
	}
	return nil
}

// differs reports whether an error says that the source is not what it was.
func differs(err error) bool {
	return errors.Is(err, feed.ErrPacked) || errors.Is(err, feed.ErrReplaced) || errors.Is(err, feed.ErrChanged)
}

// sameHistory returns an ErrDiverged unless the source has the last transaction of a
// lineage. If that may have gone with a pack, of which resumed tells, another one will do: the
// source is then read into a new lineage.
func (w *Writer) sameHistory(ctx context.Context, c *chain, resumed error) error {
	head := c.end.Head
	last, _, err := w.o.Feed.Last(ctx)
	if err != nil && !errors.Is(err, feed.ErrChanged) {
		return err
	}
	var why error
	switch {
	case err != nil:
		why = err
	case last == tid.Zero:
		why = errors.New("the source is empty")
	case last < head:
		why = fmt.Errorf("the last transaction of the source is %v", last)
	case c.tip == snapshot.Hash{}:
		return nil // it is lost in a gap
	default:
		t, err := w.o.Feed.Info(ctx, head)
		switch {
		case errors.Is(err, txn.ErrNotFound) && w.o.AssumeSameHistory:
			w.log.Warn("the source does not have the last transaction of the repository; it is assumed to have the same history", "tid", head)
			return nil
		case errors.Is(err, txn.ErrNotFound) && w.o.RebaseOnPack && errors.Is(resumed, feed.ErrPacked):
			known, err := w.shared(ctx, c)
			if err != nil {
				return err
			}
			if known != tid.Zero {
				w.log.Warn("the pack removed the last transaction of the repository from the source, which has an earlier one", "tid", head, "earlier", known)
				return nil
			}
			why = fmt.Errorf("%w; it has no transaction %v, nor any other that is known of the repository: if it is the same database all the same, say so by --assume-same-history", resumed, head)
		case errors.Is(err, txn.ErrNotFound) && errors.Is(resumed, feed.ErrPacked):
			why = fmt.Errorf("%w; it has no transaction %v any more", resumed, head)
		case errors.Is(err, txn.ErrNotFound):
			why = fmt.Errorf("the source has no transaction %v", head)
		case err != nil:
			return err
		case snapshot.Tip(t) == c.tip:
			return nil
		default:
			why = fmt.Errorf("transaction %v of the source has another user, description or extension", head)
		}
	}
	common, err := w.common(ctx, c)
	if err != nil {
		return errors.Join(&DivergedError{Head: head, Err: why}, err)
	}
	return &DivergedError{Head: head, Common: common, Err: why}
}

// common returns the greatest end of a tail or manifest of a lineage, of those that are still
// stored, whose last transaction the source has too.
func (w *Writer) common(ctx context.Context, c *chain) (tid.TID, error) {
	// Both histories are the same up to some transaction: the last that agrees is searched, among
	// tails, and before them among manifests, and before all in the lineages whose beginnings the
	// lineage has.
	ancestors, err := w.ancestors(ctx, c)
	if err != nil {
		return 0, err
	}
	for _, a := range ancestors {
		for _, kind := range steps {
			keys, err := w.keys(ctx, a.id, kind)
			if err != nil {
				return 0, err
			}
			ends := make([]tid.TID, len(keys))
			var failed error
			n := sort.Search(len(keys), func(i int) bool {
				end, has, err := w.agrees(ctx, keys[i])
				ends[i] = end
				if err != nil && failed == nil {
					failed = err
				}
				return (!has || end > a.upTo) && end != tid.Zero
			})
			if failed != nil {
				return 0, failed
			}
			if n > 0 && ends[n-1] != tid.Zero {
				return ends[n-1], nil
			}
		}
	}
	return tid.Zero, nil
}

// ancestor is a lineage, and how much of its history another one has.
type ancestor struct {
	id   snapshot.ID
	upTo tid.TID
}

// ancestors returns a lineage, and those from which it was forked.
func (w *Writer) ancestors(ctx context.Context, c *chain) ([]ancestor, error) {
	list := []ancestor{{c.id, tid.Max}}
	if c.id != w.note.Lineage || w.note.At == tid.Zero {
		return list, nil
	}
	notes, err := w.repo.Lineages(ctx)
	if err != nil {
		return nil, err
	}
	upTo := tid.Max
	for l := w.note; l != nil && l.At != tid.Zero; {
		upTo = min(upTo, l.At)
		list = append(list, ancestor{l.Parent, upTo})
		i := slices.IndexFunc(notes, func(p *snapshot.Lineage) bool { return p.Lineage == l.Parent })
		if i < 0 {
			break // an old one that was removed
		}
		l = notes[i]
	}
	return list, nil
}

// maxShared is how many tails, and how many manifests, are looked at for a transaction that the
// source has too.
const maxShared = 1000

// shared returns a transaction at the end of a tail or manifest that the source has too, Zero if
// it has none of the newest ones. A pack leaves some of them, and removes others.
func (w *Writer) shared(ctx context.Context, c *chain) (tid.TID, error) {
	for _, kind := range steps {
		keys, err := w.keys(ctx, c.id, kind)
		if err != nil {
			return 0, err
		}
		for _, key := range slices.Backward(keys[max(0, len(keys)-maxShared):]) {
			if end, has, err := w.agrees(ctx, key); err != nil || has {
				return end, err
			}
		}
	}
	return tid.Zero, nil
}

// steps are the kinds of notes that end with a transaction which they identify.
var steps = []snapshot.Kind{snapshot.KindTail, snapshot.KindManifest}

// keys returns the keys of the notes of a kind of a lineage that are still stored, the oldest first.
func (w *Writer) keys(ctx context.Context, lineage snapshot.ID, kind snapshot.Kind) ([]string, error) {
	var keys []string
	for info, err := range w.repo.Store.List(ctx, snapshot.Prefix(kind, lineage), "") {
		if err != nil {
			return nil, err
		}
		keys = append(keys, info.Key)
	}
	if kind == snapshot.KindManifest { // lists have the newest first
		slices.Reverse(keys)
	}
	return keys, nil
}

// agrees returns the last transaction of a tail or manifest, Zero if it has none, and whether the
// source has it too.
func (w *Writer) agrees(ctx context.Context, key string) (end tid.TID, has bool, err error) {
	end, tip, err := w.endOf(ctx, key)
	if err != nil || end == tid.Zero {
		return end, false, err
	}
	t, err := w.o.Feed.Info(ctx, end)
	if errors.Is(err, txn.ErrNotFound) {
		return end, false, nil
	}
	return end, err == nil && snapshot.Tip(t) == tip, err
}

// endOf returns the last transaction of a tail or manifest, and what identifies it.
func (w *Writer) endOf(ctx context.Context, key string) (tid.TID, snapshot.Hash, error) {
	k, err := snapshot.ParseKey(key)
	if err != nil {
		return 0, snapshot.Hash{}, err
	}
	if k.Kind == snapshot.KindTail {
		t, err := w.repo.Tail(ctx, k.Lineage, k.N)
		if err != nil {
			return 0, snapshot.Hash{}, err
		}
		return t.Upto, t.Tip, nil
	}
	b, _, err := store.ReadAll(ctx, w.repo.Store, key, 64<<20)
	if err != nil {
		return 0, snapshot.Hash{}, err
	}
	m, err := snapshot.OpenManifest(b, key, w.repo.Marker.ID, w.repo.Trusted)
	if err != nil {
		return 0, snapshot.Hash{}, err
	}
	return m.Head, m.Tip, nil
}

// diverged makes an error that says that the source changed an ErrDiverged.
func (w *Writer) diverged(ctx context.Context, err error) error {
	if err == nil || !differs(err) || errors.Is(err, ErrDiverged) {
		return err
	}
	c := w.chain
	e := &DivergedError{Head: c.end.Head, Common: c.end.Head, Err: err}
	if errors.Is(err, feed.ErrChanged) {
		if e.Common, err = w.common(ctx, c); err != nil {
			e.Common = tid.Zero
		}
	}
	return e
}
