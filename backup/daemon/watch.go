package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// Sight is how a repository looks from outside: what its store tells of the current lineage.
type Sight struct {
	Lineage  snapshot.ID
	Created  time.Time // of the lineage
	Head     tid.TID
	Asof     time.Time // the source had nothing beyond Head then, by the clock of the writer
	Newest   time.Time // when the newest tail or manifest was stored, by the clock of the store
	Writer   string    // host/pid/nonce
	Manifest int64
	Stored   int64         // bytes of segments
	Skew     time.Duration // by how much the clock of the store is ahead of that of this host
}

// errOlder reports a repository from which what was seen is gone.
var errOlder = errors.New("newer objects were removed from the repository, or the store shows an old state")

// lineageEvery is how often the current lineage is looked for. It is, too, while its writer is silent.
const lineageEvery = time.Hour

// watcher looks at a repository with few requests: two LIST, and a GET if there is something new.
type watcher struct {
	repo  *backup.Repository
	quiet time.Duration // without anything new, another lineage may have become current
	now   func() time.Time

	lineage  *snapshot.Lineage
	read     time.Time // when the lineage was
	manifest *snapshot.Manifest
	made     time.Time // when the manifest was stored
	tail     *backup.StoredTail
	tailMade time.Time
	sight    *Sight
}

// look returns how the repository is now.
func (w *watcher) look(ctx context.Context) (*Sight, error) {
	now := w.now()
	if s := w.sight; w.lineage == nil || s == nil || now.Sub(w.read).Abs() >= lineageEvery || now.Add(s.Skew).Sub(s.Newest) > w.quiet {
		l, err := w.repo.Current(ctx)
		if err != nil {
			return nil, err
		}
		if w.lineage != nil && l.K < w.lineage.K {
			return nil, fmt.Errorf("%w: lineage %d is current, it was %d", errOlder, l.K, w.lineage.K)
		}
		if w.lineage == nil || l.K > w.lineage.K {
			w.manifest, w.tail, w.sight = nil, nil, nil
		}
		w.lineage, w.read = l, now
	}
	if err := w.lookAtManifest(ctx); err != nil {
		return nil, err
	}
	if err := w.lookAtTails(ctx); err != nil {
		return nil, err
	}
	m := w.manifest
	s := &Sight{Lineage: w.lineage.Lineage, Created: w.lineage.Created, Head: m.Head, Asof: m.Asof, Newest: w.made, Writer: m.Writer, Manifest: m.Seq, Stored: m.Stored}
	if t := w.tail; t != nil && t.N > m.Tail {
		s.Head, s.Asof, s.Writer, s.Stored = t.Upto, t.Asof, t.Writer, s.Stored+t.Bytes
	}
	if w.tailMade.After(s.Newest) {
		s.Newest = w.tailMade
	}
	if date := store.Date(w.repo.Store); !date.IsZero() {
		s.Skew = date.Sub(w.now()).Round(time.Second)
	}
	if old := w.sight; old != nil && s.Head < old.Head {
		return nil, fmt.Errorf("%w: it ends with %v, it had %v", errOlder, s.Head, old.Head)
	}
	w.sight = s
	return s, nil
}

func (w *watcher) lookAtManifest(ctx context.Context) error {
	for info, err := range w.repo.Store.List(ctx, snapshot.Prefix(snapshot.KindManifest, w.lineage.Lineage), "") {
		if err != nil {
			return err
		}
		k, err := snapshot.ParseKey(info.Key)
		if err != nil || k.Kind != snapshot.KindManifest {
			continue
		}
		if w.manifest != nil && k.N <= w.manifest.Seq {
			return nil // the list is late, or nothing is new
		}
		b, _, err := store.ReadAll(ctx, w.repo.Store, info.Key, maxNote)
		if err != nil {
			return err
		}
		m, err := snapshot.OpenManifest(b, info.Key, w.repo.Marker.ID, w.repo.Trusted)
		if err != nil {
			return err
		}
		w.manifest, w.made = m, info.Modified
		return nil // the newest comes first
	}
	if w.manifest == nil {
		return fmt.Errorf("%w: lineage %v has no manifest", backup.ErrIncomplete, w.lineage.Lineage)
	}
	return nil
}

// lookAtTails reads the newest tail alone: what is between is what a check reads.
func (w *watcher) lookAtTails(ctx context.Context) error {
	after := w.manifest.Tail
	if w.tail != nil {
		after = max(after, w.tail.N)
	}
	var newest int64
	var made time.Time
	for info, err := range w.repo.Store.List(ctx, snapshot.Prefix(snapshot.KindTail, w.lineage.Lineage), snapshot.TailKey(w.lineage.Lineage, after)) {
		if err != nil {
			return err
		}
		if k, err := snapshot.ParseKey(info.Key); err == nil && k.Kind == snapshot.KindTail {
			newest, made = k.N, info.Modified
		}
	}
	if newest == 0 {
		return nil
	}
	t, err := w.repo.Tail(ctx, w.lineage.Lineage, newest)
	if err != nil {
		return err
	}
	w.tail, w.tailMade = t, made
	return nil
}

// maxNote is the greatest length of a manifest that is read.
const maxNote = 64 << 20

// proofs looks for the newest proof. What it has read is not read again while nothing was added.
type proofs struct {
	repo *backup.Repository

	lineage snapshot.ID
	n       int
	last    string // greatest key
	newest  *backup.StoredProof
	failed  *backup.StoredProof
}

// look returns the newest proof that stands, and that of a drill that has failed since then; nil: there is none.
func (p *proofs) look(ctx context.Context, lineage snapshot.ID) (newest, failed *backup.StoredProof, err error) {
	n, last := 0, ""
	for info, err := range p.repo.Store.List(ctx, snapshot.Prefix(snapshot.KindProof, lineage), "") {
		if err != nil {
			return nil, nil, err
		}
		n++
		last = max(last, info.Key)
	}
	if p.lineage == lineage && p.n == n && p.last == last {
		return p.newest, p.failed, nil
	}
	list, err := p.repo.Proofs(ctx, lineage)
	if err != nil {
		return nil, nil, err
	}
	if newest, err = p.repo.ProvenBy(ctx, list); err != nil {
		return nil, nil, err
	}
	if len(list) > 0 && list[0].Result != snapshot.ResultOK {
		failed = list[0]
	}
	p.lineage, p.n, p.last, p.newest, p.failed = lineage, n, last, newest, failed
	return newest, failed, nil
}

// lastDoom returns when the newest doom list was stored, by the clock of the store; zero: there is none.
func lastDoom(ctx context.Context, repo *backup.Repository) (at time.Time, err error) {
	for info, err := range repo.Store.List(ctx, snapshot.Prefix(snapshot.KindDoom, snapshot.ID{}), "") {
		if err != nil {
			return at, err
		}
		if k, err := snapshot.ParseKey(info.Key); err == nil && k.Kind == snapshot.KindDoom && info.Modified.After(at) {
			at = info.Modified
		}
	}
	return at, nil
}
