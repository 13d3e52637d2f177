package writer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// rebasing is what the state directory keeps of a rebase under way.
type rebasing struct {
	Repo    string `json:"repo"`
	Lineage string `json:"lineage"` // that is filled
	Parent  string `json:"parent"`  // that it shall replace
}

func (w *Writer) rebasePath() string { return filepath.Join(w.o.StateDir, "rebase") }

// readRebase returns the lineage that a rebase under way fills, zero if there is none. One that
// was completed, or overtaken, is forgotten.
func (w *Writer) readRebase() (snapshot.ID, error) {
	b, err := os.ReadFile(w.rebasePath())
	if errors.Is(err, fs.ErrNotExist) {
		return snapshot.ID{}, nil
	}
	if err != nil {
		return snapshot.ID{}, fmt.Errorf("state directory: %w", err)
	}
	var r rebasing
	if err := json.Unmarshal(b, &r); err == nil && r.Repo == w.repo.Marker.ID.String() && r.Parent == w.note.Lineage.String() {
		if id, err := snapshot.ParseID(r.Lineage); err == nil {
			return id, nil
		}
	}
	if err := os.Remove(w.rebasePath()); err != nil {
		return snapshot.ID{}, fmt.Errorf("state directory: %w", err)
	}
	return snapshot.ID{}, nil
}

// Rebasing returns the lineage that an interrupted Rebase was filling, or false. Follow and
// Rebase go on with it.
func (w *Writer) Rebasing() (snapshot.ID, bool) { return w.next, w.next != snapshot.ID{} }

// rebaseIfPacked begins a new lineage if the current one cannot go on.
func (w *Writer) rebaseIfPacked(ctx context.Context) error {
	if w.packed == nil {
		return nil
	}
	w.log.Warn("a new lineage is filled, since the present one cannot go on", "err", w.packed)
	return w.rebase(ctx)
}

// Rebase reads the whole source into a new lineage, which then takes the place of the
// current one: what packs freed in the source is not in it. Meanwhile the current lineage is
// followed, as far as the source still allows it. Interrupted, the next Rebase goes on.
func (w *Writer) Rebase(ctx context.Context) (err error) {
	defer func() { err = w.diverged(ctx, err) }()
	if w.chain.uncertain {
		if err := w.reread(ctx); err != nil {
			return err
		}
	}
	return w.rebase(ctx)
}

func (w *Writer) rebase(ctx context.Context) error {
	before := w.chain
	next, err := w.beginRebase(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var followed chan error
	stop := func() error { return nil }
	if w.packed == nil {
		following, end := context.WithCancel(ctx)
		followed = make(chan error, 1)
		go func() {
			err := w.follow(following, before)
			if following.Err() == nil {
				cancel(err) // the rebase cannot go on without it
			}
			followed <- err
		}()
		stop = func() error {
			end()
			err := <-followed
			followed = nil
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
	}
	err = w.fill(ctx, next, stop)
	if e := next.quiesce(); err == nil {
		err = e
	}
	if followed != nil {
		if e := stop(); e != nil {
			err = e
		}
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return w.replace(ctx, w.chain, next)
}

// beginRebase returns the lineage to be filled, that of an interrupted rebase if it still fits.
func (w *Writer) beginRebase(ctx context.Context) (*chain, error) {
	at := w.mark()
	goesOn := w.next != snapshot.ID{}
	if goesOn {
		err := w.spared(ctx, w.next)
		if err != nil && !errors.Is(err, ErrGivenUp) {
			return nil, err
		}
		if err != nil {
			w.log.Warn("an interrupted rebase cannot go on and is begun again: nothing was added to it for too long", "lineage", w.next, "err", err)
			goesOn = false
		}
	}
	if goesOn {
		s, err := w.repo.State(ctx, w.next, nil)
		switch {
		case errors.Is(err, backup.ErrIncomplete):
			return w.firstManifest(ctx, w.next, at)
		case err != nil:
			return nil, err
		}
		c, err := w.newChain(s, at)
		if err != nil {
			return nil, err
		}
		if err := w.fits(ctx, c); err == nil {
			w.log.Info("a rebase goes on", "lineage", c.id, "head", c.end.Head)
			return c, nil
		} else if !errors.Is(err, ErrDiverged) {
			return nil, err
		}
		w.log.Warn("an interrupted rebase cannot go on and is begun again: the source has changed", "lineage", c.id)
	}
	id := snapshot.NewID()
	b, err := json.Marshal(rebasing{w.repo.Marker.ID.String(), id.String(), w.note.Lineage.String()})
	if err != nil {
		return nil, err
	}
	if err := writeFile(w.rebasePath(), append(b, '\n')); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	w.mu.Lock()
	w.next = id
	w.mu.Unlock()
	w.log.Info("a rebase begins", "lineage", id)
	return w.firstManifest(ctx, id, at)
}

// spared returns an ErrGivenUp if a doom list names something of a lineage that has no note yet. A keeper gives that up when
// nothing was added for a week, and may be deleting it right now, by what it saw before something was added again.
func (w *Writer) spared(ctx context.Context, id snapshot.ID) error {
	named, err := w.repo.Doomed(ctx, func(key string) bool { return strings.HasPrefix(key, id.String()+"/") })
	if errors.Is(err, snapshot.ErrUntrusted) || errors.Is(err, snapshot.ErrCorrupt) {
		w.log.Warn("not all doom lists can be read: whether what a rebase has stored is about to be deleted is not known", "lineage", id, "err", err)
		return nil
	}
	for key, list := range named {
		return fmt.Errorf("%s: %w, as %s says", key, ErrGivenUp, list)
	}
	return err
}

// fits returns an ErrDiverged unless what a lineage to be has can be gone on with.
func (w *Writer) fits(ctx context.Context, c *chain) error {
	if c.end.Head == tid.Zero {
		return nil
	}
	if err := w.o.Feed.Resume(ctx, w.markOf(c.id)); err != nil {
		if differs(err) {
			err = &DivergedError{Head: c.end.Head, Common: c.end.Head, Err: err}
		}
		return err
	}
	return w.sameHistory(ctx, c, nil)
}

// firstManifest creates the manifest with which a lineage begins.
func (w *Writer) firstManifest(ctx context.Context, id snapshot.ID, at mark) (*chain, error) {
	m := &snapshot.Manifest{Repo: w.repo.Marker.ID, Lineage: id, Seq: 1, Created: time.Now(), Writer: w.name, Source: w.o.Feed.Source()}
	b, err := m.Sign(w.o.Signer)
	if err != nil {
		return nil, err
	}
	if err := w.put(ctx, snapshot.ManifestKey(id, 1), bytes.NewReader(b), int64(len(b)), snapshot.Sum(b), short); err != nil {
		return nil, err
	}
	return w.newChain(&backup.State{Lineage: id, Manifest: m, Hash: snapshot.Sum(b)}, at)
}

// fill reads the source into a lineage until it has all that the one before it has, which stop
// ends.
func (w *Writer) fill(ctx context.Context, next *chain, stop func() error) error {
	catchUp := func() error {
		return w.patient(ctx, func() error {
			last, asof, err := w.last(ctx, next)
			if err != nil || last == next.end.Head {
				return err
			}
			return next.flush(ctx, last, asof, true)
		})
	}
	// The second time there is little left.
	for range 2 {
		if err := catchUp(); err != nil {
			return err
		}
	}
	if err := stop(); err != nil {
		return err
	}
	if err := w.reread(ctx); err != nil {
		return err
	}
	if err := catchUp(); err != nil {
		return err
	}
	if err := next.quiesce(); err != nil {
		return err
	}
	return next.publishNow(ctx, "")
}

// reread reads where the lineage of the writer ends, after what added to it was stopped: whether
// the last tail was stored need not be known.
func (w *Writer) reread(ctx context.Context) error {
	at := w.mark()
	before := w.chain
	s, err := w.repo.State(ctx, before.id, before.known())
	if err != nil {
		return err
	}
	end := s.Chain()
	if n := len(s.Tails); n > 0 && end.N == before.end.N+1 && s.Tails[n-1].Writer == w.name && s.Tails[n-1].Follows(before.end) == nil {
		w.log.Debug("the last tail was stored", "tail", end.N)
	} else if end != before.end {
		return takenOver(s)
	}
	c, err := w.newChain(s, at)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.chain = c
	w.mu.Unlock()
	w.report(c)
	return nil
}

// replace makes a lineage that was filled the current one.
func (w *Writer) replace(ctx context.Context, before, next *chain) error {
	if err := w.checkCurrent(ctx, before); err != nil {
		return err
	}
	if err := w.spared(ctx, next.id); err != nil {
		return fmt.Errorf("the lineage that was filled does not take the place of lineage %d, and the next rebase begins again: %w", w.note.K, err)
	}
	// The last tail of the old lineage: another writer that adds to it is stopped, before it
	// takes for acknowledged what is not in the new one.
	if err := before.heartbeat(ctx, before.asof); err != nil {
		return err
	}
	if head := before.end.Head; next.end.Head < head {
		return &DivergedError{Head: head, Common: next.end.Head, Err: fmt.Errorf("%w: its last transaction is %v", feed.ErrChanged, next.end.Head)}
	}
	l := &snapshot.Lineage{Repo: w.repo.Marker.ID, K: w.note.K + 1, Lineage: next.id, Parent: before.id, Created: time.Now(), Why: "rebase"}
	// A writer that opens after that tail asks for the note for a while: until then it must be there.
	timely, cancel := context.WithTimeout(ctx, maxStall/2)
	defer cancel()
	if err := w.repo.NewLineage(timely, w.o.Signer, l); errors.Is(err, store.ErrExists) {
		if err := w.checkCurrent(ctx, before); err != nil {
			return err
		}
		return fmt.Errorf("lineage note %d exists, but is not current: %w", l.K, err)
	} else if err != nil {
		return err
	}
	w.mu.Lock()
	w.note, w.chain, w.next = l, next, snapshot.ID{}
	w.mu.Unlock()
	w.packed = nil
	w.report(next)
	w.log.Info("a new lineage is current", "lineage", l.Lineage, "k", l.K, "head", next.end.Head)
	if err := os.Remove(w.rebasePath()); err != nil {
		w.log.Warn("the state directory cannot be written", "err", err) // the next start knows
	}
	if err := w.cleanSpool(snapshot.ID{}); err != nil {
		w.log.Warn("the state directory cannot be written", "err", err)
	}
	return w.overtake(ctx, before)
}

// overtake makes sure that the lineage of the writer has what another writer, that opened between the
// last tail of the one before and the note, has added to that.
func (w *Writer) overtake(ctx context.Context, before *chain) error {
	s, err := w.repo.State(ctx, before.id, before.known())
	if err != nil || s.Chain() == before.end {
		return err
	}
	c := w.chain
	w.log.Warn("another writer added to the lineage before while this one took its place; that is read again", "err", takenOver(s), "head", s.Head())
	if s.Head() <= c.end.Head {
		return nil
	}
	last, asof, err := w.last(ctx, c)
	if err != nil {
		return err
	}
	if last < s.Head() {
		return &DivergedError{Head: s.Head(), Common: c.end.Head, Err: fmt.Errorf("%w: its last transaction is %v, another writer stored %v from it", feed.ErrChanged, last, s.Head())}
	}
	return c.flush(ctx, last, asof, true)
}
