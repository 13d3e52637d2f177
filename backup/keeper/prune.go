package keeper

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// batch is how many objects are deleted between two looks whether it is still wanted.
const batch = 1000

// maxView is how old a look at the repository may be while objects are deleted by it.
const maxView = time.Hour

// ErrCancelled reports that a keeper has cancelled a doom list, or published a policy, while it was carried out.
var ErrCancelled = errors.New("cancelled")

// PruneOptions say what [Keeper.Prune] does. The zero value only plans.
type PruneOptions struct {
	// Confirm carries out the plan: what was announced long enough is deleted, what is new is announced.
	Confirm bool
	// ForceShare is which part of the stored bytes may go, beside expired lineages and what newest
	// manifests supersede; default: DefaultShare.
	ForceShare float64
	// DropWraps gives up older wraps of the keys of epochs whose newest wrap one of these identities
	// opens.
	DropWraps []age.Identity
	// Progress is told how much is deleted; default: none.
	Progress func(objects, bytes, totalObjects, totalBytes int64)

	maxDoomed int // for tests
}

// Count is a number of objects and their size.
type Count struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

func (c *Count) add(bytes int64) { c.Objects++; c.Bytes += bytes }

// LineageReport says why a lineage is kept, or goes.
type LineageReport struct {
	K       int64       `json:"k"`
	Lineage snapshot.ID `json:"lineage"`
	Kept    bool        `json:"kept"`
	Why     string      `json:"why"`
	Until   time.Time   `json:"until,omitzero"` // kept at least
}

// ListReport is a doom list that was not carried out yet.
type ListReport struct {
	Key     string    `json:"key"`
	Objects int64     `json:"objects"` // of it that are there
	Due     time.Time `json:"due"`     // what is unneeded then may be deleted
}

// PruneReport is a plan, and what was done of it.
type PruneReport struct {
	Time        time.Time        `json:"time"`             // of the store
	Policy      *snapshot.Policy `json:"policy,omitempty"` // in force
	Ignored     []Ignored        `json:"ignored_policies,omitempty"`
	Differences []Difference     `json:"differences,omitempty"`

	Stored   Count           `json:"stored"`
	Groups   []Group         `json:"groups"`
	Lineages []LineageReport `json:"lineages"`
	Lists    []ListReport    `json:"lists,omitempty"`
	Foreign  []string        `json:"foreign,omitempty"` // keys of no repository, up to 10, which are left alone
	Share    float64         `json:"share"`

	// Refused says why nothing may be deleted or announced.
	Refused []string `json:"refused,omitempty"`
	Damaged bool     `json:"damaged,omitempty"` // something of that is damage

	Due     Count `json:"due"`     // announced long enough: deleted with Confirm
	Waiting Count `json:"waiting"` // announced
	New     Count `json:"new"`     // to be announced with Confirm
	Later   Count `json:"later"`   // to be announced when their locks end
	Spared  Count `json:"spared"`  // announced and due, but needed by now

	Deleted  Count    `json:"deleted"`
	Locked   Count    `json:"locked"`             // still locked
	Hidden   int64    `json:"hidden,omitempty"`   // of what was deleted, older versions are left if the store keeps them: see Lifecycle
	Written  []string `json:"written,omitempty"`  // doom lists
	Finished []string `json:"finished,omitempty"` // doom lists
}

// Prune finds out what a repository does not need any more. With Confirm it deletes what a doom list named
// at least the grace ago and is still not needed, and writes a doom list of what is new. It may be
// interrupted at any time, and run by several keepers at once. With an error it returns what was done before it, if anything.
func (k *Keeper) Prune(ctx context.Context, o PruneOptions) (*PruneReport, error) {
	if o.ForceShare == 0 {
		o.ForceShare = DefaultShare
	}
	if o.maxDoomed == 0 {
		o.maxDoomed = snapshot.MaxDoomed
	}
	if o.Confirm {
		if _, err := k.signer(); err != nil {
			return nil, err
		}
	}
	p := &pruning{k: k, o: o}
	for {
		v, err := k.look(ctx, o)
		if err != nil {
			return p.rep, err // of what was deleted before another look
		}
		rep := p.plan(v)
		if len(rep.Refused) > 0 || !o.Confirm {
			return rep, nil
		}
		again, err := p.carryOut(ctx)
		if err != nil {
			return rep, err
		}
		if again {
			continue
		}
		if err := p.finish(ctx); err != nil {
			return rep, err
		}
		return rep, p.announce(ctx)
	}
}

// pruning is one run.
type pruning struct {
	k   *Keeper
	o   PruneOptions
	v   *view
	rep *PruneReport

	unversioned bool // versions may not be listed or deleted
}

// plan sums up a view.
func (p *pruning) plan(v *view) *PruneReport {
	rep := &PruneReport{Time: v.now, Policy: v.policies.Policy, Ignored: v.policies.Ignored, Foreign: v.list.foreign}
	if p.rep != nil { // of a run that goes on
		rep.Deleted, rep.Locked, rep.Hidden = p.rep.Deleted, Count{}, p.rep.Hidden
	}
	p.v, p.rep = v, rep
	rep.Differences = p.k.Differences(v.policies.Policy)
	rep.Stored = Count{v.list.objects, v.list.bytes}
	rep.Groups = v.list.sums()
	for _, l := range v.lineages {
		rep.Lineages = append(rep.Lineages, LineageReport{l.note.K, l.note.Lineage, l.kept, l.why, l.until})
	}
	for _, l := range v.lists {
		rep.Lists = append(rep.Lists, ListReport{l.key, int64(l.there), l.modified.Add(v.grace())})
	}
	rep.Share = v.list.share()
	if rep.Share > p.o.ForceShare {
		v.refuse("%.0f %% of what is stored would go, beside expired lineages and what newest manifests supersede: more than %.0f %%. If that is right, repeat it with --force-share", 100*rep.Share, 100*p.o.ForceShare)
	}
	rep.Refused, rep.Damaged = v.refused, len(v.missing) > 0 || v.damaged
	for _, c := range v.list.groups {
		for o := range c.all() {
			switch {
			case o.listed == ripe && !o.reason.goes():
				rep.Spared.add(o.size)
			case !o.reason.goes():
			case o.listed == ripe:
				rep.Due.add(o.size)
			case o.listed == waiting:
				rep.Waiting.add(o.size)
			case p.lockedLater(o):
				rep.Later.add(o.size)
			default:
				rep.New.add(o.size)
			}
		}
	}
	return rep
}

// lockedLater reports whether an object would be locked still when the grace is over, as far as is known
// without asking.
func (p *pruning) lockedLater(o *object) bool {
	if p.k.o.Lock == "" {
		return false
	}
	ends := time.Unix(0, o.modified).Add(time.Duration(p.k.o.LockShortDays) * day)
	return ends.After(p.v.now.Add(p.v.grace()))
}

// locks reports whether objects may be locked.
func (p *pruning) locks() bool { return p.k.o.Lock != "" || p.v.policy.LockDays > 0 }

// carryOut deletes what is due. again is set if that took so long that everything must be looked at
// anew.
func (p *pruning) carryOut(ctx context.Context) (again bool, err error) {
	if p.rep.Due.Objects == 0 {
		return false, nil
	}
	total := p.rep.Due
	var done Count
	var list []doomed
	flush := func() (again bool, err error) {
		if len(list) == 0 {
			return false, nil
		}
		if err := p.wanted(ctx); err != nil || p.v.stale() {
			return err == nil, err
		}
		if err := p.remove(ctx, list); err != nil {
			return false, err
		}
		for _, d := range list {
			done.add(d.size)
		}
		if p.o.Progress != nil {
			p.o.Progress(done.Objects, done.Bytes, total.Objects, total.Bytes)
		}
		list = list[:0]
		return false, nil
	}
	var at block
	for d := range p.v.list.going() {
		if d.listed != ripe {
			continue
		}
		// What is of another kind comes after.
		if len(list) == batch || blockOf(d) != at {
			if again, err := flush(); again || err != nil {
				return again, err
			}
		}
		at = blockOf(d)
		list = append(list, d)
	}
	return flush()
}

// block is what the objects of a batch have in common. Their versions are listed by the prefix of their keys, and held in memory:
// it must not be that of the whole repository, or of all tails of a lineage.
type block struct {
	group
	high uint64 // of the number of a tail or manifest
}

func blockOf(d doomed) block {
	b := block{group: group{d.key.Lineage, d.key.Kind}}
	if b.kind == snapshot.KindTail || b.kind == snapshot.KindManifest {
		b.high = d.a >> 12
	}
	return b
}

// wanted returns an ErrCancelled if a list was cancelled or a policy published since the look.
func (p *pruning) wanted(ctx context.Context) error {
	for _, l := range p.v.lists {
		if !l.ripe {
			continue
		}
		voided, err := p.k.o.Repo.Voided(ctx, l.key)
		if err != nil {
			return err
		}
		if voided {
			return fmt.Errorf("%w: doom list %s is void now", ErrCancelled, l.key)
		}
	}
	next := snapshot.Key{Kind: snapshot.KindPolicy, N: p.v.policies.last + 1}.String()
	body, _, err := p.k.o.Repo.Store.Get(ctx, next, 0, 0)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	body.Close()
	return fmt.Errorf("%w: %s was published meanwhile; run prune again", ErrCancelled, next)
}

// remove deletes objects of one kind, but those that are locked.
func (p *pruning) remove(ctx context.Context, list []doomed) error {
	if p.locks() {
		var err error
		if list, err = p.unlocked(ctx, list); err != nil {
			return err
		}
	}
	if len(list) == 0 {
		return nil
	}
	byKey := make(map[string]doomed, len(list))
	keys := make([]string, 0, len(list))
	for _, d := range list {
		key := d.key.String()
		byKey[key] = d
		keys = append(keys, key)
	}
	versions, versioned, err := p.versions(ctx, keys, byKey)
	if err != nil {
		return err
	}
	if versioned {
		err = p.k.o.Repo.Store.(store.Versioner).DeleteVersions(ctx, versions)
		if errors.Is(err, store.ErrDenied) {
			p.k.log.Info("older versions may not be deleted by these credentials", "err", err)
			p.unversioned, versioned = true, false
		}
	}
	if !versioned {
		err = p.k.o.Repo.Store.Delete(ctx, keys)
	}
	for _, e := range flatten(err) {
		l, ok := errors.AsType[*store.LockedError](e)
		if !ok {
			return err
		}
		if d, ok := byKey[l.Key]; ok {
			p.rep.Locked.add(d.size)
			d.listed = waiting
			delete(byKey, l.Key)
		}
	}
	for _, d := range byKey {
		p.rep.Deleted.add(d.size)
		d.reason, d.listed = deleted, unlisted
	}
	if p.unversioned {
		p.rep.Hidden += int64(len(byKey))
	}
	return nil
}

// versions returns all versions of some keys, and whether the store keeps versions that may be
// deleted one by one. The error is one after which it is not known.
func (p *pruning) versions(ctx context.Context, keys []string, wanted map[string]doomed) ([]store.Version, bool, error) {
	if p.unversioned {
		return nil, false, nil
	}
	prefix := keys[0]
	for _, k := range keys {
		for !strings.HasPrefix(k, prefix) {
			prefix = prefix[:len(prefix)-1]
		}
	}
	var list []store.Version
	versioned := false
	for v, err := range store.Versions(ctx, p.k.o.Repo.Store, prefix) {
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			return nil, false, nil
		case errors.Is(err, store.ErrDenied): // what may be hidden only is hidden
			p.k.log.Info("versions of objects cannot be listed by these credentials", "err", err)
			p.unversioned = true
			return nil, false, nil
		case err != nil:
			return nil, false, err
		}
		if _, ok := wanted[v.Key]; ok {
			list = append(list, v)
			versioned = versioned || v.Version != "" && v.Version != "null"
		}
	}
	return list, versioned, nil
}

// flatten returns the errors of several objects.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		if m, ok := e.(interface{ Unwrap() []error }); ok {
			var list []error
			for _, x := range m.Unwrap() {
				list = append(list, flatten(x)...)
			}
			return list
		}
	}
	return []error{err}
}

// unlocked returns the objects that are not locked.
func (p *pruning) unlocked(ctx context.Context, list []doomed) ([]doomed, error) {
	locked := make([]bool, len(list))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, d := range list {
		g.Go(func() error {
			r, err := store.GetRetention(ctx, p.k.o.Repo.Store, d.key.String(), "")
			switch {
			case errors.Is(err, errors.ErrUnsupported), errors.Is(err, store.ErrNotFound):
				return nil
			case err != nil:
				return err
			}
			locked[i] = r.Until.After(p.v.now)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var free []doomed
	for i, d := range list {
		if locked[i] {
			p.rep.Locked.add(d.size)
			d.listed = waiting // again
			continue
		}
		free = append(free, d)
	}
	return free, nil
}

// finish finds out which doom lists are carried out.
func (p *pruning) finish(ctx context.Context) error {
	for _, l := range p.v.lists {
		if !l.ripe {
			continue
		}
		left := false
		if p.rep.Locked.Objects > 0 {
			d, err := p.k.o.Repo.Doom(ctx, l.key)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			for _, o := range d.Objects {
				if k, err := snapshot.ParseKey(o.Key); err == nil {
					if at := p.v.list.find(k); at != nil && at.reason.goes() {
						left = true
						break
					}
				}
			}
		}
		if !left {
			p.rep.Finished = append(p.rep.Finished, l.key)
		}
	}
	return nil
}

// announce writes doom lists of what is new.
func (p *pruning) announce(ctx context.Context) error {
	if p.rep.New.Objects == 0 {
		return nil
	}
	w := p.k.newDoom(p.v, p.rep.Finished, p.o.maxDoomed)
	defer func() { p.rep.Written = w.written }()
	for d := range p.v.list.going() {
		if d.listed == unlisted && !p.lockedLater(d.object) {
			if err := w.add(ctx, d.key.String(), d.reason.String()); err != nil {
				return err
			}
		}
	}
	return w.close(ctx)
}

// doomWriter writes doom lists.
type doomWriter struct {
	k       *Keeper
	v       *view
	max     int
	list    snapshot.Doom
	at      time.Time // name of the next one
	written []string
}

func (k *Keeper) newDoom(v *view, done []string, limit int) *doomWriter {
	at := v.now.UTC().Truncate(time.Second)
	return &doomWriter{k: k, v: v, max: limit, at: at, list: snapshot.Doom{Repo: k.o.Repo.Marker.ID, Created: at, Policy: v.policy.K, Done: done}}
}

func (w *doomWriter) add(ctx context.Context, key, why string) error {
	w.list.Objects = append(w.list.Objects, snapshot.Doomed{Key: key, Why: why})
	if len(w.list.Objects) < w.max {
		return nil
	}
	return w.close(ctx)
}

// close writes what was added.
func (w *doomWriter) close(ctx context.Context) error {
	if len(w.list.Objects) == 0 {
		return nil
	}
	signer, err := w.k.signer()
	if err != nil {
		return err
	}
	b, err := w.list.Sign(signer)
	if err != nil {
		return err
	}
	for range 1000 {
		key := snapshot.Key{Kind: snapshot.KindDoom, Time: w.at}.String()
		w.at = w.at.Add(time.Second)
		err = w.k.create(ctx, key, b)
		if errors.Is(err, store.ErrExists) {
			continue // of another keeper
		}
		if err == nil {
			w.written = append(w.written, key)
			w.list.Objects, w.list.Done = nil, nil
		}
		return err
	}
	return err
}

// Undo cancels the doom lists that the newest run announced, if they are not carried out yet. It returns
// their keys, none if there is nothing to cancel. What is gone already stays so.
func (k *Keeper) Undo(ctx context.Context, why string) ([]string, error) {
	signer, err := k.signer()
	if err != nil {
		return nil, err
	}
	r := k.o.Repo
	lists, err := r.DoomLists(ctx)
	if err != nil {
		return nil, err
	}
	done := map[string]bool{}
	var created time.Time
	var voided []string
	for i := len(lists) - 1; i >= 0; i-- {
		l := lists[i]
		d, err := r.Doom(ctx, l.Key)
		switch {
		case errors.Is(err, store.ErrNotFound):
			continue
		case err != nil && damage(err):
			k.log.Warn("a doom list is ignored", "key", l.Key, "err", err)
			continue
		case err != nil:
			return voided, err
		}
		for _, key := range d.Done {
			done[key] = true
		}
		if l.Void || done[l.Key] {
			continue
		}
		if len(voided) > 0 && !d.Created.Equal(created) {
			continue // of another run, maybe at the same time
		}
		created = d.Created
		b, err := snapshot.Sign(&snapshot.Void{Repo: r.Marker.ID, List: l.Key, Created: k.stamp(), Why: why}, signer)
		if err != nil {
			return voided, err
		}
		if err := k.create(ctx, l.Key+".void", b); err != nil && !errors.Is(err, store.ErrExists) {
			return voided, err
		}
		voided = append(voided, l.Key)
	}
	return voided, nil
}
