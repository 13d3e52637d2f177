package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// ErrClock reports that the clock of the store cannot be relied on.
var ErrClock = errors.New("the clocks of this host and of the store differ")

// view is a repository as a keeper sees it at a moment.
type view struct {
	k    *Keeper
	ctx  context.Context
	repo *backup.Repository
	list *listing
	facts
	policies *InForce
	lists    []*doomList
	epochs   map[snapshot.KID]bool
	missing  []string // needed, and not stored
	damaged  bool     // a state does not verify
	// refused says why nothing may be deleted; before is what was known of that before decide.
	refused, before []string
	damagedBefore   bool

	// When everything had been read, by the clocks of the store (zero: it tells none) and of this host.
	stored, host time.Time
}

// doomList is a doom list that is neither void nor carried out.
type doomList struct {
	key      string
	modified time.Time
	created  time.Time
	ripe     bool
	there    int // objects that it names and that are stored
}

// refuse notes why nothing may be deleted.
func (v *view) refuse(format string, args ...any) {
	v.refused = append(v.refused, fmt.Sprintf(format, args...))
}

// damage reports whether an error says something of what is stored, and not only of the store.
func damage(err error) bool {
	if _, ok := errors.AsType[*backup.BrokenError](err); ok {
		return true
	}
	return errors.Is(err, snapshot.ErrCorrupt) || errors.Is(err, snapshot.ErrUntrusted) || errors.Is(err, snapshot.ErrVersion) ||
		errors.Is(err, backup.ErrIncomplete) || errors.Is(err, store.ErrNotFound)
}

// look lists a repository and finds out what is needed in it. What keeps anything from being deleted
// is in refused; the error is one of the store.
func (k *Keeper) look(ctx context.Context, o PruneOptions) (*view, error) {
	v := &view{k: k, ctx: ctx, repo: k.o.Repo, list: newListing(), epochs: map[snapshot.KID]bool{}}
	for info, err := range v.repo.Store.List(ctx, "", "") {
		if err != nil {
			return nil, err
		}
		if err := v.list.add(info); err != nil {
			return nil, err
		}
	}
	if err := v.clock(); err != nil {
		return nil, err
	}
	for _, step := range []func() error{v.readPolicy, v.readLineages, v.readLists, v.readProofs, func() error { return v.wraps(o.DropWraps) }} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	v.before, v.damagedBefore = v.refused, v.damaged
	err := v.decide()
	v.stored, v.host = store.Date(v.repo.Store), k.o.Now().Round(0)
	return v, err
}

// stale reports whether a look is too old to delete by. The store may not tell the time, and a host that was
// suspended knows it by the wall clock only.
func (v *view) stale() bool {
	return store.Date(v.repo.Store).Sub(v.stored) > maxView || v.k.o.Now().Round(0).Sub(v.host) > maxView
}

// clock reads the clock of the store.
func (v *view) clock() error {
	v.now = store.Date(v.repo.Store)
	// A directory tells the time with what is stored in it: later looks would have that of the first one.
	if v.now.IsZero() {
		v.k.touches = true
	}
	if v.k.touches {
		var err error
		if v.now, err = v.k.touch(v.ctx); err != nil {
			return err
		}
	}
	if v.now.IsZero() {
		return fmt.Errorf("%w: the store does not tell its time", ErrClock)
	}
	off := v.now.Sub(v.k.o.Now())
	if off.Abs() > store.ClockError {
		return fmt.Errorf("%w by %v: ages cannot be told, nothing is deleted", ErrClock, off.Round(time.Second))
	}
	if off.Abs() > store.ClockWarning {
		v.k.log.Warn("the clocks of this host and of the store differ", "by", off.Round(time.Second))
	}
	return nil
}

// touch stores a probe object, and returns when that was.
func (k *Keeper) touch(ctx context.Context) (time.Time, error) {
	key, s := snapshot.NewProbeKey(), k.o.Repo.Store
	if err := k.create(ctx, key, []byte("time\n")); err != nil {
		return time.Time{}, fmt.Errorf("the time of the store: %w", err)
	}
	body, info, err := s.Get(ctx, key, 0, 0)
	if err != nil {
		return time.Time{}, err
	}
	return info.Modified, errors.Join(body.Close(), s.Delete(ctx, []string{key}))
}

func (v *view) readPolicy() (err error) {
	if v.policies, err = v.k.Policy(v.ctx); err != nil {
		return err
	}
	if v.policy = v.policies.Policy; v.policy == nil {
		v.refuse("no policy is in force: publish one with \"neobackup policy --publish\"")
		v.policy = &snapshot.Policy{KeepLineagesDays: 36500, PruneGraceHours: 24} // for the plan that is shown
	}
	return v.newest(snapshot.Key{Kind: snapshot.KindPolicy, N: v.policies.last + 1})
}

// newest refuses if a note that would be the newest was removed.
func (v *view) newest(next snapshot.Key) error {
	err := v.mustBeNew(next.String())
	if err == nil || !damage(err) {
		return err
	}
	v.damaged = true
	v.refuse("%v", err)
	return nil
}

// readLineages reads the notes of all lineages, and those that the list does not show yet.
func (v *view) readLineages() error {
	var last int64
	read := func(n int64) (found bool, err error) {
		key := snapshot.Key{Kind: snapshot.KindLineage, N: n}
		b, _, err := store.ReadAll(v.ctx, v.repo.Store, key.String(), maxNote)
		if errors.Is(err, store.ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		note := &snapshot.Lineage{}
		if err := snapshot.Open(b, key.String(), v.repo.Marker.ID, note, v.repo.Trusted); err != nil {
			v.damaged = true
			v.refuse("a note of a lineage does not verify: %v", err)
			return true, nil
		}
		v.lineages = append(v.lineages, &lineage{note: note})
		return true, nil
	}
	for o := range v.list.column(snapshot.ID{}, snapshot.KindLineage).all() {
		last = int64(o.a)
		if _, err := read(last); err != nil {
			return err
		}
	}
	for {
		last++
		found, err := read(last)
		if err != nil {
			return err
		}
		if found {
			continue
		}
		if len(v.lineages) == 0 {
			v.refuse("the repository has no lineage")
		}
		return v.newest(snapshot.Key{Kind: snapshot.KindLineage, N: last})
	}
}

// readLists reads the doom lists that are neither void nor carried out, and marks in the listing what they
// name.
func (v *view) readLists() error {
	v.done, v.voids = map[string]bool{}, map[string]bool{}
	all, err := v.repo.DoomLists(v.ctx)
	if err != nil {
		return err
	}
	// The newest first: a list that was carried out is named by a later one.
	for _, l := range slices.Backward(all) {
		if l.Void {
			v.voids[l.Key] = true
		}
		d, err := v.repo.Doom(v.ctx, l.Key)
		switch {
		case errors.Is(err, store.ErrNotFound):
			continue
		case err != nil && damage(err):
			v.k.log.Warn("a doom list is ignored", "key", l.Key, "err", err)
			continue
		case err != nil:
			return err
		}
		for _, key := range d.Done {
			v.done[key] = true
		}
		if l.Void || v.done[l.Key] {
			continue
		}
		live := &doomList{key: l.Key, modified: l.Modified, created: d.Created, ripe: !l.Modified.IsZero() && !v.now.Before(l.Modified.Add(v.grace()))}
		v.lists = append(v.lists, live)
		for _, o := range d.Objects {
			k, err := snapshot.ParseKey(o.Key)
			if err != nil {
				continue // OpenDoom refuses it
			}
			if k.Kind == snapshot.KindLineage && strings.HasPrefix(o.Why, forgotPrefix) {
				for _, lin := range v.lineages {
					lin.forgotten = lin.forgotten || lin.note.K == k.N
				}
			}
			if at := v.list.find(k); at != nil {
				live.there++
				if live.ripe {
					at.listed = ripe
				} else if at.listed == unlisted {
					at.listed = waiting
				}
			}
		}
	}
	slices.Reverse(v.lists)
	return nil
}

// lineage returns what is known of a lineage with a note.
func (v *view) lineage(id snapshot.ID) *lineage {
	i := slices.IndexFunc(v.lineages, func(l *lineage) bool { return l.note.Lineage == id })
	if i < 0 {
		return nil
	}
	return v.lineages[i]
}

// readProofs reads the proofs of all lineages, and finds out which of the newest ones stand: of each
// lineage the newest and the newest one on another manifest.
func (v *view) readProofs() error {
	for _, l := range v.lineages {
		list, err := v.repo.Proofs(v.ctx, l.note.Lineage)
		if err != nil {
			return err
		}
		var first *proven
		for _, p := range list {
			if p.Result != snapshot.ResultOK || p.Lineage != l.note.Lineage {
				continue
			}
			at := &proven{key: p.Key, seq: p.Seq, tail: p.Tail, manifest: p.Manifest, modified: p.Modified}
			l.proofs = append(l.proofs, at)
			if first == nil || first.seq != 0 && at.manifest != first.manifest {
				keys, err := v.needsOf(p.Proof)
				if err != nil && !damage(err) {
					return err
				}
				if err != nil {
					v.k.log.Debug("a proof does not count any more", "key", p.Key, "err", err)
					continue
				}
				at.stands, at.needs = true, keys
				if first == nil {
					first = at
				} else {
					first = &proven{} // two are enough
				}
			}
		}
	}
	return nil
}

// maxNote is the greatest length of a note that is read.
const maxNote = 64 << 20

// needsOf returns the objects that a proof is about. The error says what of them is not stored as it was.
func (v *view) needsOf(p *snapshot.Proof) ([]*object, error) {
	key := snapshot.ManifestKey(p.Lineage, p.Seq)
	var all []*object
	need := func(key string, _ int64) error {
		k, err := snapshot.ParseKey(key)
		if err != nil {
			return err
		}
		o := v.list.find(k)
		if o == nil {
			return fmt.Errorf("%s: %w", key, store.ErrNotFound)
		}
		all = append(all, o)
		return nil
	}
	if err := need(key, -1); err != nil {
		return nil, err
	}
	b, _, err := store.ReadAll(v.ctx, v.repo.Store, key, maxNote)
	if err != nil {
		return nil, err
	}
	if snapshot.Sum(b) != p.Manifest {
		return nil, &snapshot.CorruptError{Name: key, Offset: -1, Err: errors.New("it is not the manifest that was proved")}
	}
	m, err := snapshot.OpenManifest(b, key, v.repo.Marker.ID, v.repo.Trusted)
	if err != nil {
		return nil, err
	}
	s := &backup.State{Lineage: p.Lineage, Manifest: m, Hash: p.Manifest}
	for n := m.Tail + 1; n <= p.Tail; n++ {
		t, err := v.repo.Tail(v.ctx, p.Lineage, n)
		if err == nil {
			err = t.Follows(s.Chain())
		}
		if err != nil {
			return nil, err
		}
		t.Object = bytes.Clone(t.Object[:min(int64(len(t.Object)), t.NoteSize()+4096)]) // the age header is in it
		s.Tails = append(s.Tails, t)
	}
	if end := s.Chain(); p.Tail > m.Tail && end.Hash != p.Chain {
		return nil, &snapshot.CorruptError{Name: snapshot.TailKey(p.Lineage, p.Tail), Offset: -1, Err: errors.New("it is not the tail that was proved")}
	}
	return all, v.each(s, need)
}

// each calls need with the keys of all that a state refers to, but its manifest, and their sizes; -1: not known.
func (v *view) each(s *backup.State, need func(key string, size int64) error) error {
	for _, i := range s.Manifest.Items {
		if i.Page != nil {
			if err := need(i.Page.Key, -1); err != nil {
				return err
			}
		}
	}
	reserved := slices.Clone(s.Manifest.Reserved)
	for _, t := range s.Tails {
		if err := need(t.Key, t.Size); err != nil {
			return err
		}
		reserved = append(reserved, t.Reserved...)
	}
	for _, r := range reserved {
		if err := need(r.Key, -1); err != nil {
			return err
		}
	}
	for p, err := range v.repo.Parts(v.ctx, s, tid.Zero, tid.Max) {
		if err != nil {
			return err
		}
		if p.Segment == nil {
			continue
		}
		if p.Segment.KID != 0 {
			v.epochs[p.Segment.KID] = true
		}
		if err := need(p.Segment.Key, p.Segment.Offset()+p.Segment.Bytes); err != nil {
			return err
		}
	}
	return nil
}

// decide finds out which lineages are kept and marks what they need, then judges everything.
func (v *view) decide() error {
	for _, c := range v.list.groups {
		for o := range c.all() {
			o.reason = unjudged
		}
	}
	v.refused, v.missing, v.damaged = slices.Clone(v.before), nil, v.damagedBefore
	v.retain()
	for _, l := range v.lineages {
		if !l.kept {
			continue
		}
		for _, p := range l.proofs {
			for _, o := range p.needs {
				o.reason = needed
			}
		}
		if err := v.keep(l); err != nil {
			if !damage(err) {
				return err
			}
			v.damaged = true
			v.refuse("lineage %d (%s) does not verify, so what it needs is not known: %v", l.note.K, l.why, err)
			v.all(l.note.Lineage)
		}
	}
	if p := v.policies.Policy; p != nil {
		if err := v.need(snapshot.Key{Kind: snapshot.KindPolicy, N: p.K}.String(), -1); err != nil {
			return err
		}
	}
	if err := v.need(snapshot.MarkerKey, -1); err != nil {
		return err
	}
	for _, kind := range []snapshot.Kind{snapshot.KindEpoch, snapshot.KindWrap} {
		for o := range v.list.column(snapshot.ID{}, kind).all() {
			if opens, ok := v.dropWraps[int64(o.a)]; kind == snapshot.KindWrap && ok && int64(o.b) < opens {
				continue
			}
			o.reason = needed
		}
	}
	if list := v.repo.Tampered(); len(list) > 0 {
		v.damaged = true
		v.refuse("%v: \"neobackup repair\" first", list[0])
	}
	wrapped := map[int64]bool{}
	for o := range v.list.column(snapshot.ID{}, snapshot.KindWrap).all() {
		wrapped[int64(o.a)] = true
	}
	for kid := range v.epochs {
		if v.list.find(snapshot.Key{Kind: snapshot.KindEpoch, N: int64(kid)}) == nil {
			v.missing = append(v.missing, snapshot.Key{Kind: snapshot.KindEpoch, N: int64(kid)}.String())
		}
		// Without a wrap its key is lost, and what was merged into its segments may be there still, under another one.
		if !wrapped[int64(kid)] {
			if err := v.need(snapshot.Key{Kind: snapshot.KindWrap, N: int64(kid), Wrap: 1}.String(), -1); err != nil {
				return err
			}
		}
	}
	for i, key := range v.missing {
		if i == maxForeign {
			v.refuse("… %d objects in all that are needed are missing", len(v.missing))
			break
		}
		v.refuse("%s is needed and missing: \"neobackup check\" says more, \"neobackup repair\" mends it; what it was made of may be there still", key)
	}
	v.judge(v.list)
	return nil
}

// keep marks what a lineage needs.
func (v *view) keep(l *lineage) error {
	id := l.note.Lineage
	if err := v.need(snapshot.Key{Kind: snapshot.KindLineage, N: l.note.K}.String(), -1); err != nil {
		return err
	}
	s, broken := v.repo.State(v.ctx, id, nil)
	if s == nil {
		return broken
	}
	for _, t := range s.Tails { // their data are not needed here
		t.Object = bytes.Clone(t.Object[:min(int64(len(t.Object)), t.NoteSize()+4096)]) // the age header is in it
	}
	l.seq, l.head = s.Manifest.Seq, uint64(s.Manifest.Head)
	for _, i := range s.Manifest.Items {
		if i.Gap != nil {
			l.gaps = append(l.gaps, *i.Gap)
		}
	}
	if v.k.o.Check != nil {
		if err := v.k.o.Check(s); err != nil {
			v.damaged = true
			v.refuse("lineage %d had more before, so what it needs is not known: %v", l.note.K, err)
			v.all(id)
		}
	}
	for _, p := range l.proofs {
		what, of, last := "manifest", p.seq, s.Manifest.Seq
		if of <= last {
			what, of, last = "tail", p.tail, s.Chain().N
		}
		if of > last {
			v.damaged = true
			v.refuse("%s is a proof of %s %d of lineage %d, and the newest one is %d: newer ones were removed", p.key, what, of, l.note.K, last)
			v.all(id)
			break
		}
	}
	for _, key := range []string{snapshot.ManifestKey(id, s.Manifest.Seq+1), snapshot.TailKey(id, s.Chain().N+1)} {
		if err := v.mustBeNew(key); err != nil {
			if !damage(err) {
				return err
			}
			broken = cmpErr(broken, err)
		}
	}
	if err := v.need(snapshot.ManifestKey(id, s.Manifest.Seq), -1); err != nil {
		return err
	}
	// Also those that are behind a break, or newer than what was read.
	for o := range v.list.column(id, snapshot.KindTail).all() {
		if int64(o.a) > s.Manifest.Tail {
			o.reason = needed
		}
	}
	for o := range v.list.column(id, snapshot.KindManifest).all() {
		if snapshot.MaxSeq-int64(o.a) > s.Manifest.Seq {
			o.reason = needed
		}
	}
	for o := range v.list.column(id, snapshot.KindProof).all() {
		o.reason = needed // they are small, and say since when a lineage was proved
	}
	// A lineage that is broken uses others as before.
	if err := v.each(s, v.need); err != nil && (broken == nil || !damage(err)) {
		return err
	}
	return broken
}

// mustBeNew returns an error if a key that comes after the newest one has been used: what is newest was
// removed then, and the store, which keeps versions, has hidden it only.
func (v *view) mustBeNew(key string) error {
	for x, err := range store.Versions(v.ctx, v.repo.Store, key) {
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, store.ErrDenied) {
			return nil
		}
		if err != nil {
			return err
		}
		if x.Key == key && x.Deleted && x.Latest {
			return &snapshot.CorruptError{Name: key, Offset: -1, Err: errors.New("it was deleted, and is newer than what is there")}
		}
	}
	return nil
}

// need marks an object as needed. It must have that size, unless it is negative. One that is not stored
// is noted; a list may be late.
func (v *view) need(key string, size int64) error {
	k, err := snapshot.ParseKey(key)
	if err != nil {
		return err
	}
	o := v.list.find(k)
	if o != nil {
		o.reason = needed
		if size >= 0 && o.size != size {
			return &snapshot.CorruptError{Name: key, Offset: -1, Err: fmt.Errorf("an object of %d bytes, want %d", o.size, size)}
		}
		return nil
	}
	body, _, err := v.repo.Store.Get(v.ctx, key, 0, 0)
	switch {
	case err == nil:
		return body.Close()
	case !errors.Is(err, store.ErrNotFound):
		return err
	case !slices.Contains(v.missing, key):
		v.missing = append(v.missing, key)
	}
	return nil
}

// all marks all objects of a lineage as needed.
func (v *view) all(id snapshot.ID) {
	for g, c := range v.list.groups {
		if g.lineage == id {
			for o := range c.all() {
				o.reason = needed
			}
		}
	}
}

// wraps finds out of which epochs older wraps of the key may go: of those whose newest wrap
// opens with an identity. Without one nothing is known of what is in it.
func (v *view) wraps(identities []age.Identity) error {
	v.dropWraps = map[int64]int64{}
	if len(identities) == 0 {
		return nil
	}
	newest := map[int64]int64{}
	for o := range v.list.column(snapshot.ID{}, snapshot.KindWrap).all() {
		newest[int64(o.a)] = max(newest[int64(o.a)], int64(o.b))
	}
	epochs, err := v.repo.Epochs(v.ctx)
	if err != nil {
		return err
	}
	for _, e := range epochs {
		w := newest[int64(e.KID)]
		if w < 2 {
			continue
		}
		key := snapshot.Key{Kind: snapshot.KindWrap, N: int64(e.KID), Wrap: w}.String()
		b, _, err := store.ReadAll(v.ctx, v.repo.Store, key, maxNote)
		if err != nil {
			return err
		}
		if _, err := snapshot.Unwrap(b, key, e.Recipient, identities...); err != nil {
			return fmt.Errorf("%w: the newest wrap of the key of epoch %v, so no older one is given up: %w", backup.ErrKeys, e.KID, err)
		}
		v.dropWraps[int64(e.KID)] = w
	}
	return nil
}
