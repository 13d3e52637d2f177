package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// Options say what a keeper works with. Repo is required; its store should repeat.
type Options struct {
	Repo   *backup.Repository
	Signer *snapshot.Signer // of the role keeper; nil: nothing is written, only looked

	// Settings are what the configuration of this keeper says. What is in force is the policy
	// note of the repository.
	Settings Settings
	// Lock is the mode of the locks that are extended; "" if the repository has none. LockShortDays
	// is how long what merges replace is locked.
	Lock          store.Mode
	LockShortDays int64

	// Check, if set, returns an error if a state is older than what this host has seen: nothing is deleted
	// then.
	Check func(*backup.State) error

	Log *slog.Logger     // default: discard
	Now func() time.Time // clock of this host; default: time.Now
}

// Settings are what a policy is made of.
type Settings struct {
	KeepLineagesDays int64
	PruneGraceHours  int64 // at least 24
	LockDays         int64 // 0: no locks
	Holds            []Hold
}

// Hold is a moment that must remain restorable.
type Hold struct {
	TID   tid.TID   // of the transaction, or what Time makes
	Time  time.Time // if it is meant so: the greatest transaction at or before it; else zero
	Label string
}

// Keeper deletes what a repository does not need any more, and extends the locks of what it does.
type Keeper struct {
	o   Options
	log *slog.Logger

	touches bool // the store tells the time of what is stored in it only
}

// New returns a keeper.
func New(o Options) *Keeper {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Keeper{o: o, log: o.Log}
}

// Errors of keepers, for errors.Is.
var (
	// ErrNoKey reports that the keeper has no key to sign with.
	ErrNoKey = errors.New("no key of a keeper")
	// ErrRefused reports an order that would take what must stay.
	ErrRefused = errors.New("refused")
)

func (k *Keeper) signer() (*snapshot.Signer, error) {
	if k.o.Signer == nil {
		return nil, fmt.Errorf("%w: policies, doom lists and voids are signed", ErrNoKey)
	}
	return k.o.Signer, nil
}

// create stores a note, which must not exist.
func (k *Keeper) create(ctx context.Context, key string, b []byte) error {
	return k.o.Repo.Store.Put(ctx, key, bytes.NewReader(b), int64(len(b)), store.PutOptions{Create: true, SHA256: snapshot.Sum(b)})
}

// Ignored is a note that does not count, and why.
type Ignored struct {
	Key string `json:"key"`
	Err string `json:"error"`
}

// InForce is the policy in force.
type InForce struct {
	Policy  *snapshot.Policy // nil: none
	Ignored []Ignored        // notes of policies that do not verify

	last int64 // greatest number that is taken
}

// Policy returns the policy in force: that with the greatest number of those that verify. The error is a
// [snapshot.ErrVersion] if that is of a newer version: what it keeps is not known.
func (k *Keeper) Policy(ctx context.Context) (*InForce, error) {
	r := k.o.Repo
	var numbers []int64
	for info, err := range r.Store.List(ctx, snapshot.Prefix(snapshot.KindPolicy, snapshot.ID{}), "") {
		if err != nil {
			return nil, err
		}
		if key, err := snapshot.ParseKey(info.Key); err == nil && key.Kind == snapshot.KindPolicy {
			numbers = append(numbers, key.N)
		}
	}
	f := &InForce{}
	var newer error
	var newerK int64
	read := func(n int64) (bool, error) {
		key := snapshot.Key{Kind: snapshot.KindPolicy, N: n}.String()
		b, _, err := store.ReadAll(ctx, r.Store, key, maxNote)
		if errors.Is(err, store.ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		f.last = max(f.last, n)
		p := &snapshot.Policy{}
		if err := snapshot.Open(b, key, r.Marker.ID, p, r.Trusted); err != nil {
			f.Ignored = append(f.Ignored, Ignored{key, err.Error()})
			if errors.Is(err, snapshot.ErrVersion) && n > newerK { // a trusted key has signed it
				newer, newerK = err, n
			}
			return true, nil
		}
		if f.Policy == nil || p.K > f.Policy.K {
			f.Policy = p
		}
		return true, nil
	}
	last := int64(0)
	for _, n := range numbers {
		last = max(last, n)
		if _, err := read(n); err != nil {
			return nil, err
		}
	}
	for n := last + 1; n <= 0xffff; n++ { // a list may be late
		found, err := read(n)
		if err != nil {
			return nil, err
		}
		if !found {
			break
		}
	}
	if newer != nil && (f.Policy == nil || newerK > f.Policy.K) {
		return nil, newer
	}
	return f, nil
}

// Difference is a setting of this keeper that is not in force.
type Difference struct {
	Setting    string `json:"setting"`
	InForce    string `json:"in_force"`
	Configured string `json:"configured"`
}

// Differences returns where the settings of this keeper differ from the policy in force.
func (k *Keeper) Differences(p *snapshot.Policy) []Difference {
	var list []Difference
	none := p == nil
	add := func(name string, in, conf int64) {
		if in == conf {
			return
		}
		d := Difference{name, fmt.Sprint(in), fmt.Sprint(conf)}
		if none {
			d.InForce = ""
		}
		list = append(list, d)
	}
	s := k.o.Settings
	if none {
		p = &snapshot.Policy{}
	}
	add("keep_lineages_days", p.KeepLineagesDays, s.KeepLineagesDays)
	add("prune_grace_hours", p.PruneGraceHours, s.PruneGraceHours)
	add("lock_days", p.LockDays, s.LockDays)
	for _, h := range s.Holds {
		if _, ok := resolved(p.Holds, h); !ok {
			list = append(list, Difference{"hold", "", h.String()})
		}
	}
	for _, h := range p.Holds {
		if !slices.ContainsFunc(s.Holds, func(x Hold) bool { return x.TID == h.TID && x.Label == h.Label }) {
			list = append(list, Difference{"hold", fmt.Sprintf("%v %s", h.TID, h.Label), ""})
		}
	}
	return list
}

// String returns a hold as a configuration has it.
func (h Hold) String() string {
	if !h.Time.IsZero() {
		return h.Time.UTC().Format(time.RFC3339Nano) + " " + h.Label
	}
	return h.TID.String() + " " + h.Label
}

// resolved returns the hold of a policy that a line of a configuration became.
func resolved(list []snapshot.Hold, h Hold) (snapshot.Hold, bool) {
	for _, x := range list {
		if x.TID == h.TID && x.Label == h.Label {
			return x, true
		}
	}
	return snapshot.Hold{}, false
}

// Publish makes the settings of this keeper the policy in force, as the next note, if something differs.
// New holds pin the newest lineage in which they are exact; the others stay as they are. It returns
// what is in force then, and whether that is new.
func (k *Keeper) Publish(ctx context.Context) (*snapshot.Policy, bool, error) {
	signer, err := k.signer()
	if err != nil {
		return nil, false, err
	}
	f, err := k.Policy(ctx)
	if err != nil {
		return nil, false, err
	}
	if f.Policy != nil && len(k.Differences(f.Policy)) == 0 {
		return f.Policy, false, nil
	}
	p := &snapshot.Policy{
		Repo: k.o.Repo.Marker.ID, K: f.last + 1, Created: k.stamp(),
		KeepLineagesDays: k.o.Settings.KeepLineagesDays, PruneGraceHours: k.o.Settings.PruneGraceHours, LockDays: k.o.Settings.LockDays,
	}
	for _, h := range k.o.Settings.Holds {
		x := snapshot.Hold{TID: h.TID, Label: h.Label}
		known := false
		if f.Policy != nil {
			x, known = resolved(f.Policy.Holds, h)
		}
		if !known {
			if x, err = k.pin(ctx, h); err != nil {
				return nil, false, err
			}
		}
		p.Holds = append(p.Holds, x)
	}
	b, err := snapshot.Sign(p, signer)
	if err != nil {
		return nil, false, err
	}
	key := snapshot.Key{Kind: snapshot.KindPolicy, N: p.K}.String()
	err = k.create(ctx, key, b)
	if errors.Is(err, store.ErrExists) {
		return nil, false, fmt.Errorf("another keeper has just published %s: look at it, then repeat this if it is still to be: %w", key, err)
	}
	if err != nil {
		return nil, false, err
	}
	k.log.Info("a policy was published", "key", key)
	return p, true, nil
}

// pin returns the newest lineage in which a moment is exact.
func (k *Keeper) pin(ctx context.Context, h Hold) (snapshot.Hold, error) {
	list, err := k.o.Repo.Lineages(ctx)
	if err != nil {
		return snapshot.Hold{}, err
	}
	var newest error
	for _, l := range slices.Backward(list) {
		s, err := k.o.Repo.State(ctx, l.Lineage, nil)
		if _, broken := errors.AsType[*backup.BrokenError](err); err != nil && !broken {
			if !damage(err) {
				return snapshot.Hold{}, err
			}
			newest = cmpErr(newest, err)
			continue
		}
		t := h.TID
		if !h.Time.IsZero() && t > s.Head() && s.Head() != 0 && !h.Time.After(asof(s)) {
			t = s.Head() // the source had nothing between
		}
		if err := s.Exact(t); err != nil {
			newest = cmpErr(newest, err)
			continue
		}
		return snapshot.Hold{Lineage: l.Lineage, TID: h.TID, Label: h.Label}, nil
	}
	return snapshot.Hold{}, fmt.Errorf("hold %s: %w", h, newest)
}

// cmpErr returns the first error.
func cmpErr(first, next error) error {
	if first != nil {
		return first
	}
	return next
}

// asof returns since when the source had nothing beyond the head.
func asof(s *backup.State) time.Time {
	if n := len(s.Tails); n > 0 {
		return s.Tails[n-1].Asof
	}
	return s.Manifest.Asof
}

// stamp is the present time of the store, as notes have it.
func (k *Keeper) stamp() time.Time {
	t := store.Date(k.o.Repo.Store)
	if t.IsZero() {
		t = k.o.Now()
	}
	return t.UTC().Truncate(time.Second)
}
