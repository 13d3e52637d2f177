package keeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// ErrNoLocks reports that there is nothing to extend: no lock is configured.
var ErrNoLocks = errors.New("no lock is configured")

// LockReport says what [Keeper.ExtendLocks] found and did.
type LockReport struct {
	Time     time.Time     `json:"time"` // of the store
	Mode     store.Mode    `json:"mode"`
	Days     int64         `json:"days"`
	Needed   int64         `json:"needed"`       // objects, each with all its versions
	Extended int64         `json:"extended"`     // versions whose lock was extended
	Least    time.Duration `json:"least_nanos"`  // that a needed object is locked from now on
	LeastKey string        `json:"least_key"`    // the object
	Before   time.Duration `json:"before_nanos"` // the least before
	Ended    int64         `json:"ended"`        // needed versions that were not locked any more, or never

	// Damage says what is damaged or missing, and why more was extended than is needed, maybe.
	Damage  []string `json:"damage,omitempty"`
	Damaged bool     `json:"damaged,omitempty"` // something of that is damage
}

// ExtendLocks extends the lock of each object that is needed, so that none ends within half of the days
// for which objects are locked. All versions of an object are locked: which of them is the right one,
// its hash tells. If it is not known what a lineage needs, that is all it has. What is damaged or missing is
// in the report, and no error.
func (k *Keeper) ExtendLocks(ctx context.Context) (*LockReport, error) {
	if k.o.Lock == "" {
		return nil, ErrNoLocks
	}
	v, err := k.look(ctx, PruneOptions{})
	if err != nil {
		return nil, err
	}
	rep := &LockReport{Time: v.now, Mode: k.o.Lock, Damage: v.refused, Damaged: len(v.missing) > 0 || v.damaged, Least: -1, Before: -1}
	if v.policies.Policy != nil {
		rep.Days = v.policies.Policy.LockDays
	}
	if rep.Days == 0 {
		rep.Days = k.o.Settings.LockDays
		k.log.Warn("no policy in force says for how long objects are locked: publish one with \"neobackup policy --publish\"", "lock_days", rep.Days)
	}
	if rep.Days == 0 {
		return nil, ErrNoLocks
	}
	e := &extension{k: k, v: v, rep: rep, half: times(rep.Days, day) / 2}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for gr, c := range v.list.groups {
		for o := range c.all() {
			if o.reason != needed {
				continue
			}
			rep.Needed++
			key := v.list.key(gr, o).String()
			until := v.now.Add(times(rep.Days, day))
			if gr.kind == snapshot.KindTail || gr.kind == snapshot.KindManifest {
				until = v.now.Add(e.half) // the next manifest takes their place
			}
			g.Go(func() error { return e.extend(ctx, key, until) })
			if ctx.Err() != nil {
				return nil, g.Wait()
			}
		}
	}
	for _, key := range v.missing { // what hides them may be a deletion
		g.Go(func() error { return e.extend(ctx, key, v.now.Add(times(rep.Days, day))) })
	}
	return rep, g.Wait()
}

// extension is one run.
type extension struct {
	k    *Keeper
	v    *view
	half time.Duration

	mu         sync.Mutex
	rep        *LockReport
	noVersions bool
}

// extend extends the locks of all versions of an object.
func (e *extension) extend(ctx context.Context, key string, until time.Time) error {
	s := e.k.o.Repo.Store
	var versions []string
	e.mu.Lock()
	newest := e.noVersions
	e.mu.Unlock()
	if !newest {
		for v, err := range store.Versions(ctx, s, key) {
			if err != nil {
				if store.Temporary(err) || ctx.Err() != nil {
					return err
				}
				e.mu.Lock()
				if !e.noVersions && !errors.Is(err, errors.ErrUnsupported) {
					e.k.log.Warn("versions of objects cannot be listed by these credentials: of an object that was overwritten, only the newest is locked", "err", err)
				}
				e.noVersions = true
				e.mu.Unlock()
				newest = true
				break
			}
			if v.Key == key && !v.Deleted {
				versions = append(versions, v.Version)
			}
		}
	}
	if newest {
		versions = []string{""}
	}
	for _, version := range versions {
		if err := e.one(ctx, key, version, until); err != nil {
			return err
		}
	}
	return nil
}

func (e *extension) one(ctx context.Context, key, version string, until time.Time) error {
	s := e.k.o.Repo.Store
	r, err := store.GetRetention(ctx, s, key, version)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock of %s: %w", key, err)
	}
	before := max(0, r.Until.Sub(e.v.now))
	after := before
	if before < e.half || r.Mode != e.k.o.Lock && r.Mode != store.Compliance {
		if err := store.SetRetention(ctx, s, key, version, store.Retention{Mode: e.k.o.Lock, Until: until}); err != nil {
			return fmt.Errorf("lock of %s: %w", key, err)
		}
		after = max(before, until.Sub(e.v.now))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if after != before {
		e.rep.Extended++
	}
	if before == 0 {
		e.rep.Ended++
	}
	if e.rep.Before < 0 || before < e.rep.Before {
		e.rep.Before = before
	}
	if e.rep.Least < 0 || after < e.rep.Least {
		e.rep.Least, e.rep.LeastKey = after, key
	}
	return nil
}
