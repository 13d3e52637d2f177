package copier

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var seeds = flag.Int("copier.seeds", 6, "random histories to copy")

// world is a repository that grows, and a place for copies of it.
type world struct {
	t    *testing.T
	rnd  *rand.Rand
	from *memstore.Store
	to   *memstore.Store
	repo *backuptest.Repo
	list []*txn.Transaction // of the current lineage
	dir  string

	mu      sync.Mutex // held by what is called by stores
	head    tid.TID    // of the copy
	lineage snapshot.ID
	proofs  int
	gaps    bool // the copy may have tails that do not follow on each other
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{t: t, rnd: rand.New(rand.NewPCG(seed, 3)), from: memstore.New(memstore.Options{}), to: memstore.New(memstore.Options{}), dir: t.TempDir()}
	w.repo = backuptest.New(t, w.from, seed%2 == 0)
	return w
}

// more returns transactions that come next.
func (w *world) more(n int) (list []*txn.Transaction) {
	at := tid.TID(100)
	if k := len(w.list); k > 0 {
		at = w.list[k-1].TID
	}
	for range n {
		at += tid.TID(5 + w.rnd.IntN(9))
		var records []txn.Record
		for oid := range tid.OID(1 + w.rnd.IntN(4)) {
			records = append(records, txn.Record{OID: oid, Data: fmt.Appendf(nil, "object %v at %v %d", oid, at, w.rnd.Uint64())})
		}
		list = append(list, backuptest.Txn(at, records...))
	}
	w.list = append(w.list[:len(w.list):len(w.list)], list...)
	return list
}

// grow adds something to the repository: tails, listed segments, manifests, forks, proofs.
func (w *world) grow(steps int) {
	w.t.Helper()
	for range steps {
		switch k := w.rnd.IntN(10); {
		case k < 4:
			w.repo.Tail(w.more(1 + w.rnd.IntN(4))...)
		case k == 4:
			w.repo.Listed(w.more(2), w.more(1))
		case k == 5:
			w.repo.Heartbeat()
		case k == 6 && w.rnd.IntN(3) == 0:
			w.repo.ForkWithin(w.rnd, w.more(2))
		case k == 7 && w.rnd.IntN(2) == 0:
			w.prove()
		default:
			if w.rnd.IntN(3) > 0 {
				w.repo.Manifest(true, w.rnd.IntN(2) == 0)
			} else {
				w.repo.Manifest(false, false)
			}
		}
	}
}

// prove stores a proof of the state.
func (w *world) prove() {
	w.t.Helper()
	s := w.repo.Now()
	c := s.Chain()
	w.proofs++
	now := time.Date(2026, 1, 1, 0, 0, w.proofs, 0, time.UTC)
	p := &snapshot.Proof{Repo: w.repo.Marker.ID, Lineage: s.Lineage, Seq: s.Manifest.Seq, Manifest: s.Hash, Tail: c.N, Chain: c.Hash, TID: max(s.Head(), 1), Time: now, Mode: "read", Result: snapshot.ResultOK, Compared: snapshot.Compared{Source: "none"}}
	b, err := snapshot.Sign(p, w.repo.Driver)
	if err != nil {
		w.t.Fatal(err)
	}
	key := snapshot.Key{Kind: snapshot.KindProof, Lineage: s.Lineage, Time: now, Upto: p.TID}.String()
	if err := w.from.Put(w.t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{Create: true}); err != nil {
		w.t.Fatal(err)
	}
}

// superseded returns what no lineage of a repository needs.
func (w *world) superseded(s store.Store) (keys []string) {
	w.t.Helper()
	ctx := context.Background()
	r, err := backup.Open(ctx, backup.Config{Store: s, Trusted: w.repo.Trusted})
	if err != nil {
		w.t.Fatal(err)
	}
	needed := map[string]bool{}
	notes, err := r.Lineages(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, n := range notes {
		state, err := r.State(ctx, n.Lineage, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		needed[snapshot.ManifestKey(n.Lineage, state.Manifest.Seq)] = true
		refs, err := references(ctx, r, n.Lineage)
		if err != nil {
			w.t.Fatal(err)
		}
		maps.Copy(needed, refs)
		for _, t := range state.Tails {
			needed[t.Key] = true
		}
		proofs, err := r.Proofs(ctx, n.Lineage)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, p := range proofs {
			needed[snapshot.ManifestKey(n.Lineage, p.Seq)] = true
		}
	}
	for info, err := range s.List(ctx, "", "") {
		if err != nil {
			w.t.Fatal(err)
		}
		k, err := snapshot.ParseKey(info.Key)
		if err == nil && !needed[info.Key] && slices.Contains([]snapshot.Kind{snapshot.KindManifest, snapshot.KindTail, snapshot.KindPage, snapshot.KindSegment}, k.Kind) {
			keys = append(keys, info.Key)
		}
	}
	return keys
}

// prune deletes what is superseded, as a keeper does after a day.
func (w *world) prune() {
	w.t.Helper()
	if err := w.from.Delete(context.Background(), w.superseded(w.from)); err != nil {
		w.t.Fatal(err)
	}
}

// options are those of a copy.
func (w *world) options() Options {
	w.t.Helper()
	r, err := backup.Open(w.t.Context(), backup.Config{Store: w.from, Trusted: w.repo.Trusted})
	if err != nil {
		w.t.Fatal(err)
	}
	return Options{From: r, To: w.to, Name: "copy", StateDir: w.dir, Scratch: w.dir}
}

// valid makes sure that the copy is a repository without damage, and does not go back.
func (w *world) valid() {
	w.t.Helper()
	ctx := context.Background()
	cfg := backup.Config{Store: w.to, Trusted: w.repo.Trusted}
	r, err := backup.Open(ctx, cfg)
	if errors.Is(err, backup.ErrNoRepository) {
		return
	}
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := verify.Check(ctx, cfg, verify.CheckOptions{Report: func(f verify.Finding) {
		if !f.Warning && (!w.gaps || f.Kind != verify.Missing || !strings.Contains(f.Key, "/t/")) {
			w.t.Fatalf("the copy: %v", f)
		}
	}}); err != nil {
		w.t.Fatal(err)
	}
	l, err := r.Current(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := r.State(ctx, l.Lineage, nil)
	if _, broken := errors.AsType[*backup.BrokenError](err); err != nil && !(broken && w.gaps) {
		w.t.Fatal(err)
	}
	if l.Lineage == w.lineage && s.Head() < w.head {
		w.t.Fatalf("the copy went back from %v to %v", w.head, s.Head())
	}
	w.lineage, w.head = l.Lineage, s.Head()
}

// adopts reports whether a manifest of the repository names segments behind tails.
func (w *world) adopts() bool {
	ctx := context.Background()
	notes, err := w.repo.Lineages(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, n := range notes {
		s, err := w.repo.State(ctx, n.Lineage, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		if slices.ContainsFunc(backup.References(s.Manifest), func(key string) bool { return strings.Contains(key, "/t/") }) {
			return true
		}
	}
	return false
}

// watched is the copy, looked at before each call that changes it.
func (w *world) watched() store.Store {
	return storetest.NewFaulty(w.to, func(_ context.Context, c storetest.Call) storetest.Fault {
		if c.Op == "put" {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.gaps = w.adopts()
			w.valid()
			w.gaps = false
		}
		return storetest.Fault{}
	})
}

func read(t *testing.T, s store.Store, key string) []byte {
	t.Helper()
	b, _, err := store.ReadAll(t.Context(), s, key, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// whole compares the copy with the repository: what it needs is there, with the same bytes, and
// can be restored.
func (w *world) whole() {
	w.t.Helper()
	t := w.t
	w.valid()
	spare := map[string]bool{}
	for _, key := range w.superseded(w.from) {
		spare[key] = true
	}
	for info, err := range w.from.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if !spare[info.Key] && !bytes.Equal(read(t, w.from, info.Key), read(t, w.to, info.Key)) {
			t.Fatalf("%s is another one in the copy", info.Key)
		}
	}
	r, err := backup.Open(t.Context(), backup.Config{Store: w.to, Trusted: w.repo.Trusted})
	if err != nil {
		t.Fatal(err)
	}
	keys := r.Unlock()
	if w.repo.Identity != nil {
		keys = r.Unlock(w.repo.Identity)
	}
	l, err := r.Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.State(t.Context(), l.Lineage, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Chain() != w.repo.Now().Chain() || s.Hash != w.repo.Now().Hash {
		t.Fatalf("the copy ends with %v, want %v", s.Chain(), w.repo.Now().Chain())
	}
	n := 0
	for tr, err := range r.Transactions(t.Context(), keys, s, 0, tid.Max, backup.FetchOptions{Scratch: w.dir}, nil) {
		if err != nil {
			t.Fatal(err)
		}
		if tr.TID != w.list[n].TID {
			t.Fatalf("transaction %v, want %v", tr.TID, w.list[n].TID)
		}
		n++
	}
	if n != len(w.list) {
		t.Fatalf("%d transactions, want %d", n, len(w.list))
	}
}

// A copy is the repository, whatever it has in whatever forms, and at every moment until then a state
// that it has or had; a later one copies what came.
func TestCopy(t *testing.T) {
	for seed := range uint64(*seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, seed)
			for round := range 5 {
				w.grow(2 + w.rnd.IntN(8))
				if w.rnd.IntN(2) == 0 {
					w.prune()
				}
				o := w.options()
				o.To = w.watched()
				o.Verify = seed%3 == 0
				plan, err := Plan(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				last := Progress{}
				o.Progress = func(p Progress) { last = p }
				sum, err := Copy(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				if sum.First != (round == 0) || sum.Needed.Objects != sum.Equal.Objects+sum.Copied.Objects || sum.Needed.Bytes != sum.Equal.Bytes+sum.Copied.Bytes ||
					plan.Needed != sum.Needed || plan.Equal != sum.Equal || plan.Copied.Objects != 0 || o.Verify && sum.Read.Bytes+int64(len(read(t, w.to, snapshot.MarkerKey))) < sum.Copied.Bytes {
					t.Fatalf("round %d: %+v, planned %+v", round, sum, plan)
				}
				if sum.Copied.Objects > 0 && last != (Progress{sum.Copied.Objects, sum.Copied.Bytes, sum.Copied.Objects, sum.Copied.Bytes}) {
					t.Errorf("progress %+v at the end of %+v", last, sum)
				}
				if spare := int64(len(w.superseded(w.from))); sum.LeftOut[Spare].Objects != spare {
					t.Errorf("%d spare objects were left out, want %d", sum.LeftOut[Spare].Objects, spare)
				}
				w.whole()
				// Nothing is left to do, and nothing is read again but notes.
				count := store.Count(w.from)
				o.From, err = backup.Open(t.Context(), backup.Config{Store: count, Trusted: w.repo.Trusted})
				if err != nil {
					t.Fatal(err)
				}
				o.To = storetest.NewFaulty(w.to, func(_ context.Context, c storetest.Call) storetest.Fault {
					if c.Op == "put" {
						t.Errorf("%s is put again", c.Key)
					}
					return storetest.Fault{}
				})
				if sum, err = Copy(t.Context(), o); err != nil || sum.Copied.Objects != 0 || sum.Equal != sum.Needed {
					t.Fatalf("again: %+v, %v", sum, err)
				}
			}
		})
	}
}

// Whatever call is the last one of a copy, what is there is valid, and the next one goes on.
func TestCopyInterrupted(t *testing.T) {
	for _, side := range []string{"from", "to"} {
		for _, after := range []bool{false, true} {
			w := newWorld(t, 2)
			w.repo.Tail(w.more(3)...)
			w.repo.Listed(w.more(2), w.more(2))
			w.repo.Manifest(false, false)
			w.repo.ForkWithin(w.rnd, w.more(2))
			w.repo.Tail(w.more(1)...)
			w.prove()
			for n, done := 1, false; !done; n += 1 + n/12 {
				w.to, w.head, w.lineage = memstore.New(memstore.Options{}), 0, snapshot.ID{}
				o := w.options()
				o.Parallel = 1
				if side == "to" {
					o.To = storetest.DieAt(w.to, n, after)
				} else {
					r, err := backup.Open(t.Context(), backup.Config{Store: w.from, Trusted: w.repo.Trusted})
					if err != nil {
						t.Fatal(err)
					}
					r.Store = storetest.DieAt(w.from, n, after)
					o.From = r
				}
				_, err := Copy(t.Context(), o)
				if done = err == nil; !done && !errors.Is(err, storetest.ErrFault) {
					t.Fatalf("call %d: %v", n, err)
				}
				w.valid()
				if _, err := Copy(t.Context(), w.options()); err != nil {
					t.Fatalf("after call %d: %v", n, err)
				}
				w.whole()
				if n > 2000 {
					t.Fatal("too many calls")
				}
			}
		}
	}
}

// A writer that goes on, and a keeper that removes what it supersedes, do not disturb a copy: it is
// that of a moment between its begin and its end.
func TestCopyMeanwhile(t *testing.T) {
	disturbed := 0
	for seed := range uint64(*seeds) {
		w := newWorld(t, seed)
		w.grow(12)
		changes := 0
		from := storetest.NewFaulty(w.from, func(_ context.Context, c storetest.Call) storetest.Fault {
			w.mu.Lock()
			defer w.mu.Unlock()
			if changes < 6 && w.rnd.IntN(8) == 0 {
				changes++
				w.repo.Tail(w.more(1)...)
				w.repo.Manifest(true, w.rnd.IntN(2) == 0)
				w.prune()
			}
			return storetest.Fault{}
		})
		o := w.options()
		o.From.Store = from
		o.To = w.watched()
		o.Parallel = 3
		_, err := Copy(t.Context(), o)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		disturbed += changes
		w.valid()
		if _, err := Copy(t.Context(), w.options()); err != nil {
			t.Fatalf("seed %d, again: %v", seed, err)
		}
		w.whole()
	}
	if disturbed == 0 {
		t.Error("nothing came meanwhile")
	}
}

// other returns the repository of the copy, as a writer there would have it.
func (w *world) other() *backuptest.Repo {
	w.t.Helper()
	r := *w.repo
	var err error
	if r.Repository, err = backup.Open(w.t.Context(), backup.Config{Store: w.to, Trusted: w.repo.Trusted}); err != nil {
		w.t.Fatal(err)
	}
	return &r
}

// A place that is no copy, or has what the repository does not have, is left as it is.
func TestCopyRefused(t *testing.T) {
	type test struct {
		name string
		want error
		text string
		do   func(w *world)
	}
	for _, tt := range []test{
		{"another repository", ErrOther, "the one to be copied is test", func(w *world) {
			w.to = memstore.New(memstore.Options{})
			backuptest.New(w.t, w.to, false)
		}},
		{"a place in use", nil, "not empty: it has some/object", func(w *world) {
			w.to = memstore.New(memstore.Options{})
			storetest.Put(w.t, w.to, "some/object", nil)
		}},
		{"half of another copy", nil, "not empty", func(w *world) {
			other := newWorld(w.t, 8)
			other.grow(9)
			o := other.options()
			o.To = storetest.DieAt(other.to, 9, false)
			if _, err := Copy(w.t.Context(), o); !errors.Is(err, storetest.ErrFault) {
				w.t.Fatal(err)
			}
			w.to = other.to
		}},
		{"ahead", ErrDiverged, "the repository ends with", func(w *world) { w.other().Tail(w.more(1)...) }},
		{"a manifest more", ErrDiverged, "it has manifest", func(w *world) { w.other().Manifest(true, false) }},
		{"two histories under one number", ErrDiverged, "is another one", func(w *world) {
			w.other().Tail(w.more(1)...)
			w.repo.Tail(w.more(1)...)
			w.repo.Tail(w.more(1)...)
		}},
		{"two manifests under one number", ErrDiverged, "is another one", func(w *world) {
			w.other().Manifest(true, false)
			w.repo.Tail(w.more(1)...)
			w.repo.Manifest(true, false)
		}},
		{"two histories, of which one is summed up", ErrUnknown, "neither the repository", func(w *world) {
			w.other().Tail(w.more(1)...)
			w.repo.Tail(w.more(1)...)
			w.repo.Tail(w.more(1)...)
			w.repo.Manifest(true, false)
			w.prune()
		}},
		{"an epoch more", ErrDiverged, "keys/0002.pub", func(w *world) {
			o := w.other()
			if _, err := o.NewEpoch(w.t.Context(), o.Signer, []snapshot.Recipient{must(snapshot.ParseRecipient(must(o.Epochs(w.t.Context()))[0].Recipient))}); err != nil {
				w.t.Fatal(err)
			}
		}},
		{"a lineage more", ErrDiverged, "l/0002", func(w *world) {
			o := w.other()
			o.ForkAt(w.list[len(w.list)-1])
		}},
		{"another lineage under one number", ErrDiverged, "l/0002", func(w *world) {
			o, last := w.other(), w.list[len(w.list)-1]
			o.ForkAt(last)
			w.repo.ForkAt(last)
		}},
		{"doomed", ErrDoomed, "prune --undo", func(w *world) {
			// A segment that an interrupted copy left, and that the keeper of the copy found.
			key := w.repo.Listed(w.more(2))[0]
			b := read(w.t, w.from, key)
			storetest.Put(w.t, w.to, key, b)
			now := time.Now().UTC().Truncate(time.Second)
			d := &snapshot.Doom{Repo: w.repo.Marker.ID, Created: now, Policy: 1, Objects: []snapshot.Doomed{{Key: key, Why: "test"}}}
			storetest.Put(w.t, w.to, snapshot.Key{Kind: snapshot.KindDoom, Time: now}.String(), must(d.Sign(w.repo.Keeper)))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 4)
			w.repo.Tail(w.more(3)...)
			w.repo.Manifest(true, false)
			w.repo.Tail(w.more(3)...)
			if _, err := Copy(t.Context(), w.options()); err != nil {
				t.Fatal(err)
			}
			tt.do(w)
			before := keysOf(t, w.to)
			_, err := Copy(t.Context(), w.options())
			_, notEmpty := errors.AsType[*backup.NotEmptyError](err)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && !notEmpty || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
			if got := keysOf(t, w.to); !slices.Equal(got, before) {
				t.Errorf("the copy has %d objects, had %d", len(got), len(before))
			}
			if errors.Is(tt.want, ErrUnknown) {
				o := w.options()
				o.AssumeSameHistory = true
				if _, err := Copy(t.Context(), o); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func keysOf(t *testing.T, s store.Store) (keys []string) {
	t.Helper()
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

// A writer that is started on the copy while data are copied is not overtaken by the manifest that comes after them: what
// it has stored stays in the history of the copy.
func TestCopyWriterMeanwhile(t *testing.T) {
	w := newWorld(t, 4)
	w.repo.Tail(w.more(3)...)
	w.repo.Manifest(true, false)
	w.repo.Tail(w.more(3)...)
	if _, err := Copy(t.Context(), w.options()); err != nil {
		t.Fatal(err)
	}
	other, there := w.other(), w.more(1)
	w.repo.Listed(w.more(2))
	w.repo.Tail(w.more(1)...)
	w.repo.Manifest(true, false)
	o := w.options()
	var begin sync.Once // several objects are put at once
	begun := false
	o.To = storetest.NewFaulty(w.to, func(_ context.Context, c storetest.Call) storetest.Fault {
		if c.Op == "put" {
			begin.Do(func() {
				begun = true
				other.Tail(there...)
			})
		}
		return storetest.Fault{}
	})
	if _, err := Copy(t.Context(), o); !errors.Is(err, ErrDiverged) {
		t.Errorf("got %v, want %v", err, ErrDiverged)
	}
	s := other.Now()
	if !begun || s.Head() != there[0].TID {
		t.Errorf("the copy ends with %v, its writer has stored %v", s.Head(), there[0].TID)
	}
}

// What shows that a copy is an earlier state may be gone from the repository: this host still knows how it
// has left the copy.
func TestCopyRemembered(t *testing.T) {
	w := newWorld(t, 5)
	w.repo.Tail(w.more(2)...)
	w.repo.Tail(w.more(2)...)
	if _, err := Copy(t.Context(), w.options()); err != nil {
		t.Fatal(err)
	}
	w.repo.Tail(w.more(2)...)
	w.repo.Manifest(true, false)
	w.repo.Tail(w.more(2)...)
	w.repo.Manifest(true, false)
	w.prune()
	o := w.options()
	o.StateDir = ""
	if _, err := Copy(t.Context(), o); !errors.Is(err, ErrUnknown) {
		t.Errorf("without a state directory: %v", err)
	}
	if _, err := Copy(t.Context(), w.options()); err != nil {
		t.Fatal(err)
	}
	w.whole()
}

// Nothing that is damaged is copied, and what depends on it is not either.
func TestCopyDamage(t *testing.T) {
	w := newWorld(t, 6)
	w.repo.Tail(w.more(3)...)
	w.repo.Manifest(false, false) // a segment behind a tail
	w.repo.Listed(w.more(2), w.more(2))
	w.repo.Manifest(true, true)
	w.repo.Listed(w.more(2))
	w.repo.Manifest(false, true)
	w.repo.Tail(w.more(3)...)
	spare := map[string]bool{}
	for _, key := range w.superseded(w.from) {
		spare[key] = true
	}
	for _, key := range keysOf(t, w.from) {
		k := must(snapshot.ParseKey(key))
		if k.Kind == snapshot.KindWrap && k.Wrap > 1 {
			continue
		}
		good := read(t, w.from, key)
		for _, at := range []int{0, len(good) / 2, len(good) - 1} {
			bad := bytes.Clone(good)
			bad[at] ^= 1
			if err := w.from.Put(t.Context(), key, bytes.NewReader(bad), int64(len(bad)), store.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			w.to, w.head, w.lineage = memstore.New(memstore.Options{}), 0, snapshot.ID{}
			r, err := backup.Open(t.Context(), backup.Config{Store: w.from, Trusted: w.repo.Trusted})
			if err == nil {
				_, err = Copy(t.Context(), Options{From: r, To: w.to, Name: "copy", Scratch: w.dir})
			}
			if spare[key] {
				if err != nil && !strings.Contains(err.Error(), "prev is") { // of the newest manifest
					t.Errorf("%s, which is not needed: %v", key, err)
				}
				continue
			}
			// The line feed at the end of a signature, for one, may be another byte without harm to
			// what is signed; then the copy has the same one.
			if err == nil {
				w.valid()
				if !bytes.Equal(read(t, w.to, key), bad) {
					t.Errorf("%s: byte %d is damaged, and was copied as something else", key, at)
				}
				if k.Kind == snapshot.KindSegment || k.Kind == snapshot.KindPage || k.Kind == snapshot.KindWrap {
					t.Errorf("%s: byte %d is damaged, and was copied", key, at)
				}
			} else {
				w.valid()
				if !errors.Is(err, snapshot.ErrCorrupt) && !errors.Is(err, snapshot.ErrUntrusted) {
					t.Errorf("%s: byte %d: %v", key, at, err)
				}
			}
		}
		if err := w.from.Put(t.Context(), key, bytes.NewReader(good), int64(len(good)), store.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// A broken chain is copied up to the break.
	w.to = memstore.New(memstore.Options{})
	gone := w.repo.Tail(w.more(1)...)
	w.repo.Tail(w.more(1)...)
	if err := w.from.Delete(t.Context(), []string{gone}); err != nil {
		t.Fatal(err)
	}
	sum, err := Copy(t.Context(), w.options())
	if _, ok := errors.AsType[*backup.BrokenError](err); !ok || sum == nil || sum.State.Head() != w.list[len(w.list)-3].TID {
		t.Errorf("a broken chain: %+v, %v", sum, err)
	}
	w.head, w.lineage = 0, snapshot.ID{}
	w.valid()
}

// lying stores something else than what it is given.
type lying struct {
	store.Wrapped
	kind snapshot.Kind
}

func (l lying) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o store.PutOptions) error {
	k, err := snapshot.ParseKey(key)
	if err != nil || k.Kind != l.kind {
		return l.Store.Put(ctx, key, body, size, o)
	}
	b := make([]byte, size)
	if _, err := body.ReadAt(b, 0); err != nil && err != io.EOF {
		return err
	}
	b[size/2] ^= 1
	o.SHA256 = [32]byte{}
	return l.Store.Put(ctx, key, bytes.NewReader(b), size, o)
}

// What the place of a copy stores wrongly is found by reading it again.
func TestCopyVerify(t *testing.T) {
	for _, kind := range []snapshot.Kind{snapshot.KindSegment, snapshot.KindTail, snapshot.KindManifest, snapshot.KindWrap, snapshot.KindEpoch} {
		w := newWorld(t, 2)
		w.repo.Listed(w.more(3))
		w.repo.Tail(w.more(3)...)
		o := w.options()
		o.To = lying{store.Wrapped{Store: w.to}, kind}
		o.Verify = true
		if _, err := Copy(t.Context(), o); !errors.Is(err, ErrConflict) {
			t.Errorf("%v: %v", kind, err)
		}
	}
}

// The objects of a copy are locked as those of a writer, and what is no part of the repository is left
// out and counted.
func TestCopyLocksAndLeftOut(t *testing.T) {
	w := newWorld(t, 2)
	w.to = memstore.New(memstore.Options{})
	w.repo.Listed(w.more(3))
	w.repo.Tail(w.more(3)...)
	w.repo.Manifest(true, false)
	w.repo.Tail(w.more(1)...)
	storetest.Put(t, w.from, "probe/abc", []byte("x"))
	storetest.Put(t, w.from, "readme.txt", []byte("x"))
	storetest.Put(t, w.from, "policy/0001", []byte("x"))
	storetest.Put(t, w.from, "d/20260101T000000Z", []byte("x"))
	storetest.Put(t, w.from, snapshot.ManifestKey(snapshot.NewID(), 1), []byte("x"))
	o := w.options()
	o.Lock, o.LockDays = store.Governance, 35
	sum, err := Copy(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	spare := sum.LeftOut[Spare]
	delete(sum.LeftOut, Spare)
	if want := (map[string]Count{ProbeLeft: {1, 1}, Foreign: {1, 1}, Untrusted: {1, 1}, DoomList: {1, 1}, Unfinished: {1, 1}}); !maps.Equal(sum.LeftOut, want) || spare.Objects != 4 {
		t.Errorf("left out: %v and %v, want %v", sum.LeftOut, spare, want)
	}
	for _, key := range keysOf(t, w.to) {
		r, err := store.GetRetention(t.Context(), w.to, key, "")
		if err != nil {
			t.Fatal(err)
		}
		days := 35
		if k := must(snapshot.ParseKey(key)); k.Kind == snapshot.KindTail || k.Kind == snapshot.KindManifest {
			days = 7
		}
		if d := time.Until(r.Until).Hours() / 24; r.Mode != store.Governance || d > float64(days) || d < float64(days)-1 {
			t.Errorf("%s is locked %q for %v days, want %d", key, r.Mode, d, days)
		}
	}
	w.valid()
}
