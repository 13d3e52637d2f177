package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// usual are the settings of most tests.
var usual = Settings{KeepLineagesDays: 35, PruneGraceHours: 24}

// bubble runs a test in simulated time.
func bubble(t *testing.T, seed uint64, do func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { do(newWorld(t, seed)) })
}

// old makes a repository with an old lineage that may go, superseded objects, and tails.
func (w *world) old() {
	w.t.Helper()
	w.snapshot(3)
	w.follow(3)
	w.snapshot(2)
	_, _, err := w.keeper(w.mem, usual).Publish(w.t.Context())
	w.must(err)
	w.rebase()
	w.snapshot(2)
	w.prove(w.current().Lineage, snapshot.ResultOK)
	time.Sleep(40 * day)
	w.snapshot(1)
	w.prove(w.current().Lineage, snapshot.ResultOK)
	w.follow(2)
	time.Sleep(day + time.Minute)
}

// confirmed prunes, which must not be refused.
func (w *world) confirmed(k *Keeper) *PruneReport {
	w.t.Helper()
	rep, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true})
	w.must(err)
	if len(rep.Refused) > 0 {
		w.t.Fatalf("refused: %v", rep.Refused)
	}
	return rep
}

// Nothing is deleted before it was announced for the grace; then the old lineage and what was superseded
// is gone, and everything else restores. A plan alone changes nothing.
func TestTwoSteps(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.old()
		g := w.guard()
		k := w.keeper(g, Settings{KeepLineagesDays: 35, PruneGraceHours: 30})
		before := w.keys()
		if rep, err := k.Prune(w.t.Context(), PruneOptions{}); err != nil || rep.New.Objects == 0 || rep.Due.Objects != 0 || len(rep.Differences) != 1 {
			w.t.Fatalf("%+v, %v", rep, err)
		}
		if !maps.Equal(before, w.keys()) {
			w.t.Fatal("a plan changes something")
		}
		first := w.confirmed(k)
		if first.Deleted.Objects != 0 || len(first.Written) != 1 {
			w.t.Fatalf("%+v", first)
		}
		for range 2 { // the policy in force says 24 hours, whatever this keeper is configured for
			time.Sleep(12*time.Hour - time.Second)
			if rep := w.confirmed(k); rep.Deleted.Objects != 0 || rep.Waiting.Objects != first.New.Objects {
				w.t.Fatalf("%+v", rep)
			}
		}
		time.Sleep(2 * time.Second)
		rep := w.confirmed(k)
		if rep.Deleted != first.New || !slices.Equal(rep.Finished, first.Written) {
			w.t.Fatalf("%+v, announced was %+v", rep, first.New)
		}
		if n := len(w.lineages()); n != 1 {
			w.t.Errorf("%d lineages are left", n)
		}
		// Notes go before what they lead to, the oldest first.
		at, last := 0, snapshot.Key{}
		for _, key := range g.order {
			k, err := snapshot.ParseKey(key)
			w.must(err)
			if i := slices.Index([]snapshot.Kind{snapshot.KindLineage, snapshot.KindManifest, snapshot.KindProof, snapshot.KindTail, snapshot.KindPage, snapshot.KindSegment, snapshot.KindDoom}, k.Kind); i < at {
				w.t.Errorf("%s goes after %v", key, last)
			} else {
				at = i
			}
			if k.Kind == snapshot.KindManifest && last.Kind == k.Kind && last.Lineage == k.Lineage && last.N > k.N {
				w.t.Errorf("manifest %d goes after %d", k.N, last.N)
			}
			last = k
		}
		for key := range w.keys() {
			if k, _ := snapshot.ParseKey(key); k.Lineage != (snapshot.ID{}) && k.Lineage != w.current().Lineage {
				w.t.Errorf("%s is left", key)
			}
		}
		w.compare(w.state(w.current().Lineage))
		// The list itself goes, after it was named by a later one.
		w.snapshot(1)
		for range 4 {
			time.Sleep(25 * time.Hour)
			w.snapshot(1)
			w.confirmed(k)
		}
		if _, ok := w.keys()[first.Written[0]]; ok {
			w.t.Errorf("%s is left", first.Written[0])
		}
		w.compare(w.state(w.current().Lineage))
	})
}

// What keeps anything from being deleted.
func TestRefused(t *testing.T) {
	segment := func(w *world) string {
		w.t.Helper()
		for p, err := range w.repo.Parts(w.t.Context(), w.state(w.current().Lineage), 0, tid.Max) {
			w.must(err)
			return p.Segment.Key
		}
		return ""
	}
	remove := func(w *world, key string) { w.must(w.mem.Delete(w.t.Context(), []string{key})) }
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for _, c := range []struct {
		name    string
		spoil   func(w *world)
		want    string
		damaged bool
	}{
		{"the newest manifest is damaged", func(w *world) {
			s := w.state(w.current().Lineage)
			w.mem.Corrupt(snapshot.ManifestKey(s.Lineage, s.Manifest.Seq), flip)
		}, "does not verify", true},
		{"a tail is damaged", func(w *world) {
			s := w.state(w.current().Lineage)
			w.mem.Corrupt(s.Tails[0].Key, func(b []byte) []byte { b[200] ^= 1; return b })
		}, "does not verify", true},
		{"a tail is missing", func(w *world) { remove(w, w.state(w.current().Lineage).Tails[0].Key) }, "does not verify", true},
		{"a segment is missing", func(w *world) { remove(w, segment(w)) }, "is needed and missing", true},
		{"a segment is too short", func(w *world) { w.mem.Corrupt(segment(w), func(b []byte) []byte { return b[1:] }) }, "does not verify", true},
		{"the wraps of a key are gone", func(w *world) { remove(w, "keys/0001.0001") }, "keys/0001.0001 is needed and missing", true},
		{"the note of a lineage is damaged", func(w *world) { w.mem.Corrupt("l/0002", flip) }, "note of a lineage does not verify", true},
		{"all notes of lineages are gone", func(w *world) { remove(w, "l/0001"); remove(w, "l/0002") }, "no lineage", false},
		{"the policy is damaged", func(w *world) { w.mem.Corrupt("policy/0001", flip) }, "no policy is in force", false},
		{"much goes", func(w *world) {
			id := snapshot.NewID()
			for range 400 {
				w.stray(id)
			}
			time.Sleep(8 * day)
			w.prove(w.current().Lineage, snapshot.ResultOK)
		}, "--force-share", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			seed := uint64(1)
			if strings.Contains(c.name, "wrap") {
				seed = 2 // encrypted
			}
			bubble(t, seed, func(w *world) {
				w.old()
				k := w.keeper(w.mem, usual)
				first := w.confirmed(k)
				time.Sleep(25 * time.Hour)
				c.spoil(w)
				before := w.keys()
				rep, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true})
				if err != nil || len(rep.Refused) == 0 || rep.Damaged != c.damaged {
					w.t.Fatalf("%+v, %v", rep, err)
				}
				if !strings.Contains(strings.Join(rep.Refused, "\n"), c.want) {
					w.t.Errorf("refused: %v, want %q", rep.Refused, c.want)
				}
				if !maps.Equal(before, w.keys()) {
					w.t.Error("something was changed")
				}
				if c.want == "--force-share" {
					rep, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true, ForceShare: 1})
					if err != nil || len(rep.Refused) > 0 || rep.Deleted != first.New {
						w.t.Errorf("forced: %+v, %v", rep, err)
					}
				}
			})
		})
	}
}

// What was announced and is needed by the time it is due is spared, and may be announced again later.
func TestSpared(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.old()
		k := w.keeper(w.guard(), usual)
		old := w.lineages()[0]
		first := w.confirmed(k)
		w.prove(old.Lineage, snapshot.ResultOK)
		time.Sleep(25 * time.Hour)
		rep := w.confirmed(k)
		if rep.Spared.Objects == 0 || rep.Deleted.Objects == 0 || rep.Spared.Objects+rep.Deleted.Objects != first.New.Objects || !slices.Equal(rep.Finished, first.Written) {
			w.t.Errorf("%+v, announced was %+v", rep, first.New)
		}
		w.compare(w.state(old.Lineage))
		// The next list says that it was carried out: what was spared is not announced any more.
		w.snapshot(1)
		time.Sleep(25 * time.Hour)
		w.confirmed(k)
		note := snapshot.Key{Kind: snapshot.KindLineage, N: old.K}.String()
		named := func(key string) bool { return key == note }
		if m, err := w.repo.Announced(w.t.Context(), named); err != nil || len(m) != 0 {
			w.t.Errorf("announced: %v, %v", m, err)
		}
		if m, err := w.repo.Doomed(w.t.Context(), named); err != nil || m[note] != first.Written[0] {
			w.t.Errorf("doomed: %v, %v", m, err)
		}
		for range 2 { // newer proofs on other manifests
			w.snapshot(1)
			w.prove(w.current().Lineage, snapshot.ResultOK)
			time.Sleep(time.Hour)
		}
		for range 3 {
			w.confirmed(k)
			time.Sleep(25 * time.Hour)
		}
		if len(w.lineages()) != 1 {
			w.t.Error("the old lineage stays")
		}
	})
}

// A cancelled list is not carried out; what it named is announced again. A list that is cancelled while it is
// carried out stops that.
func TestUndo(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.old()
		k := w.keeper(w.guard(), usual)
		k2 := w.keeper(w.mem, usual)
		if lists, err := k.Undo(w.t.Context(), ""); err != nil || len(lists) != 0 {
			w.t.Fatalf("nothing is announced: %v, %v", lists, err)
		}
		rep, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true, maxDoomed: 3})
		w.must(err)
		if len(rep.Written) < 3 {
			w.t.Fatalf("lists: %v", rep.Written)
		}
		lists, err := k2.Undo(w.t.Context(), "a mistake")
		w.must(err)
		slices.Reverse(lists)
		if !slices.Equal(lists, rep.Written) {
			w.t.Fatalf("%v are cancelled, want %v", lists, rep.Written)
		}
		time.Sleep(26 * time.Hour)
		again := w.confirmed(k)
		if again.Deleted.Objects != 0 || again.New.Objects < rep.New.Objects {
			w.t.Fatalf("%+v", again)
		}
		time.Sleep(26 * time.Hour)
		// Cancelled after the first batch.
		n := 0
		stop := storetest.NewFaulty(w.mem, func(_ context.Context, c storetest.Call) storetest.Fault {
			if c.Op == "delete" {
				if n++; n == 1 {
					if _, err := k2.Undo(context.WithoutCancel(w.t.Context()), ""); err != nil {
						w.t.Error(err)
					}
				}
			}
			return storetest.Fault{}
		})
		if rep, err := w.keeper(stop, usual).Prune(w.t.Context(), PruneOptions{Confirm: true}); !errors.Is(err, ErrCancelled) || rep.Deleted.Objects == 0 {
			w.t.Errorf("cancelled meanwhile: %+v, %v", rep, err)
		}
		if n != 1 {
			w.t.Errorf("%d deletions", n)
		}
		w.compare(w.state(w.current().Lineage))
	})
}

// What one run announced is cancelled as a whole, also if another keeper announced something at the same time.
func TestUndoOfTwo(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.old()
		k := w.keeper(w.mem, usual)
		v, err := k.look(w.t.Context(), PruneOptions{})
		w.must(err)
		var lists [2][]string
		first := k.newDoom(v, nil, 1)
		time.Sleep(time.Second)
		v.now = v.now.Add(time.Second)
		second := k.newDoom(v, nil, 1)
		key := w.stray(w.current().Lineage)
		for _, d := range []*doomWriter{first, second, first} {
			w.must(d.add(w.t.Context(), key, "test"))
			time.Sleep(time.Second)
		}
		lists[0], lists[1] = first.written, second.written
		for i := range lists {
			got, err := k.Undo(w.t.Context(), "")
			slices.Reverse(got)
			if err != nil || !slices.Equal(got, lists[i]) {
				w.t.Errorf("cancelled: %v, %v; want %v", got, err, lists[i])
			}
		}
	})
}

// A new policy stops a run that carries out what an earlier one allowed: it may have a hold.
func TestPolicyMeanwhile(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.old()
		w.confirmed(w.keeper(w.mem, usual))
		time.Sleep(26 * time.Hour)
		old := w.lineages()[0]
		hold := usual
		hold.Holds = []Hold{{TID: w.state(old.Lineage).Head(), Label: "release"}}
		var armed atomic.Bool
		publish := func(settings Settings) {
			if armed.CompareAndSwap(true, false) {
				if _, _, err := w.keeper(w.mem, settings).Publish(context.WithoutCancel(w.t.Context())); err != nil {
					w.t.Error(err)
				}
			}
		}
		k := w.keeper(storetest.NewFaulty(w.mem, func(_ context.Context, c storetest.Call) storetest.Fault {
			if c.Op == "list" {
				publish(hold)
			}
			return storetest.Fault{}
		}), usual)
		armed.Store(true)
		rep, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true})
		// The moment is exact in the newer lineage too, which the hold pins: the old one goes.
		if err != nil || rep.Policy.K != 2 || rep.Policy.Holds[0].Lineage != w.current().Lineage {
			w.t.Fatalf("%+v, %v", rep, err)
		}
		// Between look and deletion.
		w.snapshot(1)
		time.Sleep(26 * time.Hour)
		w.confirmed(w.keeper(w.mem, hold))
		time.Sleep(26 * time.Hour)
		before := w.keys()
		stop := storetest.NewFaulty(w.mem, func(_ context.Context, c storetest.Call) storetest.Fault {
			if c.Op == "get" && strings.HasSuffix(c.Key, ".void") {
				publish(usual)
			}
			return storetest.Fault{}
		})
		armed.Store(true)
		// The first question for a void is that of the look: the policy is published after it was read.
		if _, err := w.keeper(stop, usual).Prune(w.t.Context(), PruneOptions{Confirm: true}); !errors.Is(err, ErrCancelled) {
			w.t.Errorf("a policy was published meanwhile: %v", err)
		}
		after := w.keys()
		delete(after, "policy/0003")
		if !maps.Equal(before, after) {
			w.t.Error("something was deleted")
		}
	})
}

// Each call to the store fails once, or the keeper is killed there: the next run completes it, nothing is
// deleted that must stay.
func TestEachCall(t *testing.T) {
	type how struct {
		name string
		with func(s store.Store, n int) *storetest.Faulty
	}
	for _, h := range []how{
		{"fails", func(s store.Store, n int) *storetest.Faulty {
			return storetest.FailAt(s, n, storetest.Fault{Err: storetest.ErrFault})
		}},
		{"fails after its effect", func(s store.Store, n int) *storetest.Faulty {
			return storetest.FailAt(s, n, storetest.Fault{Err: storetest.ErrFault, After: true})
		}},
		{"killed", func(s store.Store, n int) *storetest.Faulty { return storetest.DieAt(s, n, false) }},
		{"killed after its effect", func(s store.Store, n int) *storetest.Faulty { return storetest.DieAt(s, n, true) }},
		{"half an answer", func(s store.Store, n int) *storetest.Faulty {
			return storetest.FailAt(s, n, storetest.Fault{Err: storetest.ErrFault, Cut: true})
		}},
		{"a bit flips", func(s store.Store, n int) *storetest.Faulty {
			return storetest.FailAt(s, n, storetest.Fault{Flip: true})
		}},
	} {
		t.Run(h.name, func(t *testing.T) {
			bubble(t, 1, func(w *world) {
				w.old()
				fired, errs := 0, 0
				for n := 1; ; n++ {
					// Three runs are a whole cycle; each of them has its fault.
					g := w.guard()
					more := false
					for range 2 {
						f := h.with(g, n)
						o := PruneOptions{Confirm: true, maxDoomed: 5}
						k := w.keeper(w.mem, usual)
						k.o.Repo.Store = f
						rep, err := k.Prune(w.t.Context(), o)
						if f.Fired() > 0 {
							more, fired = true, fired+1
						} else if err != nil {
							w.t.Fatalf("call %d: %v", n, err)
						}
						if err != nil || len(rep.Refused) > 0 {
							errs++
						}
						time.Sleep(25 * time.Hour)
					}
					if !more || n == 30 && h.name == "a bit flips" { // each list that was stored damaged is read again
						break
					}
					if n%9 == 0 {
						w.snapshot(1)
						w.prove(w.current().Lineage, snapshot.ResultOK)
					}
				}
				if fired < 20 || errs < fired/4 && h.name != "a bit flips" || errs == 0 {
					w.t.Errorf("%d calls had a fault, %d runs failed", fired, errs)
				}
				// What is not needed is gone in the end.
				k := w.keeper(w.mem, usual)
				for range 4 {
					w.confirmed(k)
					time.Sleep(25 * time.Hour)
				}
				for key := range w.keys() {
					if k, _ := snapshot.ParseKey(key); k.Lineage != (snapshot.ID{}) && k.Lineage != w.current().Lineage {
						w.t.Errorf("%s is left", key)
					}
				}
				w.compare(w.state(w.current().Lineage))
			})
		})
	}
}

// A keeper whose lists are late deletes nothing that it would keep if it saw everything.
func TestLateLists(t *testing.T) {
	bubble(t, 2, func(w *world) {
		w.old()
		g := w.guard()
		k := w.keeper(&late{store.Wrapped{Store: g}, w}, usual)
		lists, deleted := 0, int64(0)
		for i := range 12 {
			w.snapshot(1)
			switch i % 4 {
			case 1:
				w.rebase()
			case 2:
				w.fork()
				w.snapshot(1)
			case 3:
				w.prove(w.current().Lineage, snapshot.ResultOK)
			}
			w.follow(2)
			_, err := k.Prune(w.t.Context(), PruneOptions{})
			w.must(err)
			if i == 6 {
				hold := usual
				hold.Holds = []Hold{{TID: w.state(w.current().Lineage).Head(), Label: "release"}}
				_, _, err := w.keeper(w.mem, hold).Publish(w.t.Context())
				w.must(err)
			}
			rep := w.confirmed(k)
			if i >= 6 && len(rep.Policy.Holds) != 1 {
				w.t.Errorf("the policy in force is %d", rep.Policy.K)
			}
			lists += len(rep.Written)
			deleted += rep.Deleted.Objects
			time.Sleep(26 * time.Hour)
			if i == 8 {
				lists, err := w.keeper(w.mem, usual).Undo(w.t.Context(), "")
				w.must(err)
				if rep := w.confirmed(k); len(lists) == 0 || rep.Deleted.Objects != 0 {
					w.t.Errorf("cancelled %v, deleted all the same: %+v", lists, rep.Deleted)
				}
			}
		}
		if lists == 0 || deleted == 0 {
			w.t.Errorf("%d lists, %d objects deleted", lists, deleted)
		}
		for _, l := range w.lineages() {
			w.compare(w.state(l.Lineage))
		}
	})
}

// late is a store whose lists show objects an hour later.
type late struct {
	store.Wrapped
	w *world
}

func (s *late) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		for info, err := range s.Store.List(ctx, prefix, after) {
			if err == nil && s.w.now().Sub(info.Modified) < time.Hour {
				continue
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// What is locked is not tried before its lock ends, and is no error; then it goes.
func TestLocked(t *testing.T) {
	for _, versioned := range []bool{false, true} {
		t.Run(fmt.Sprint("versions ", versioned), func(t *testing.T) {
			bubble(t, 1, func(w *world) {
				w.mem = memstore.New(memstore.Options{Now: w.now, Versioned: versioned})
				w.repo = newRepo(w)
				w.old()
				tried := 0
				g := w.guard()
				watch := storetest.NewFaulty(g, func(_ context.Context, c storetest.Call) storetest.Fault {
					if c.Op == "delete" {
						tried++
					}
					return storetest.Fault{}
				})
				k := w.keeper(watch, usual)
				k.o.Lock = store.Governance
				plan, rep := w.goingOf(k)
				for key := range plan {
					w.must(w.mem.Retain(w.t.Context(), key, "", store.Retention{Mode: store.Governance, Until: w.now().Add(10 * day)}))
				}
				w.confirmed(k)
				for range 9 {
					time.Sleep(day + time.Second)
					if got := w.confirmed(k); got.Deleted.Objects != 0 || got.Locked != rep.New || tried != 0 || len(got.Finished) != 0 {
						w.t.Fatalf("%+v, %d deletions tried", got, tried)
					}
				}
				time.Sleep(2 * day)
				if got := w.confirmed(k); got.Deleted != rep.New || tried == 0 {
					w.t.Fatalf("%+v, want %+v", got, rep.New)
				}
				for v, err := range w.mem.Versions(w.t.Context(), "") {
					w.must(err)
					if plan[v.Key] != "" {
						w.t.Errorf("%s is left, deleted: %v", v.Key, v.Deleted)
					}
				}
			})
		})
	}
}

// The store says that an object is locked although nothing was known of it: not an error either.
func TestLockedUnknown(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.old()
		k := w.keeper(w.guard(), usual)
		plan, rep := w.goingOf(k)
		w.confirmed(k)
		for key := range plan {
			w.must(w.mem.Retain(w.t.Context(), key, "", store.Retention{Mode: store.Compliance, Until: w.now().Add(5 * day)}))
		}
		time.Sleep(25 * time.Hour)
		if got := w.confirmed(k); got.Locked != rep.New || got.Deleted.Objects != 0 {
			w.t.Fatalf("%+v", got)
		}
		time.Sleep(5 * day)
		if got := w.confirmed(k); got.Deleted != rep.New {
			w.t.Fatalf("%+v", got)
		}
	})
}

// Without the permission to delete versions, objects are hidden.
func TestHidden(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.mem = memstore.New(memstore.Options{Now: w.now, Versioned: true})
		w.repo = newRepo(w)
		w.old()
		k := w.keeper(&noVersions{store.Wrapped{Store: w.mem}}, usual)
		w.confirmed(k)
		time.Sleep(25 * time.Hour)
		rep := w.confirmed(k)
		if rep.Deleted.Objects == 0 || rep.Hidden != rep.Deleted.Objects {
			w.t.Errorf("%+v", rep)
		}
	})
}

// Without the permission to list versions they are hidden too, and the report says so. If versions cannot be listed for another
// reason, nothing is hidden: no later run would find what is left of it.
func TestVersionsNotListed(t *testing.T) {
	for _, cause := range []error{store.ErrDenied, store.ErrLied} {
		bubble(t, 1, func(w *world) {
			w.mem = memstore.New(memstore.Options{Now: w.now, Versioned: true})
			w.repo = newRepo(w)
			w.old()
			s := &noList{Wrapped: store.Wrapped{Store: w.mem}}
			k := w.keeper(s, usual)
			w.confirmed(k)
			time.Sleep(25 * time.Hour)
			s.err = cause
			before := w.keys()
			rep, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true})
			switch {
			case cause == store.ErrDenied:
				if err != nil || rep.Deleted.Objects == 0 || rep.Hidden == 0 {
					w.t.Errorf("%+v, %v", rep, err)
				}
			case !errors.Is(err, cause):
				w.t.Errorf("%+v, %v", rep, err)
			default:
				after := w.keys()
				for key := range before {
					if _, ok := after[key]; !ok && key != "l/0001" { // a batch of its own
						w.t.Errorf("%s is hidden", key)
					}
				}
			}
		})
	}
}

// noList is a store that does not list the versions of several objects.
type noList struct {
	store.Wrapped
	err error
}

func (s *noList) Versions(ctx context.Context, prefix string) iter.Seq2[store.Version, error] {
	if _, err := snapshot.ParseKey(prefix); s.err == nil || err == nil {
		return s.Wrapped.Versions(ctx, prefix)
	}
	return func(yield func(store.Version, error) bool) {
		yield(store.Version{}, &store.KeyError{Op: "list versions of", Key: prefix, Err: s.err})
	}
}

// noVersions is a store whose credentials may not delete versions.
type noVersions struct{ store.Wrapped }

func (s *noVersions) DeleteVersions(_ context.Context, v []store.Version) error {
	return errors.Join(&store.KeyError{Op: "delete", Key: v[0].Key, Version: v[0].Version, Err: store.ErrDenied})
}

// A lineage that was forgotten goes earlier, but never against what keeps it.
func TestForget(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.snapshot(3)
		k := w.keeper(w.guard(), usual)
		first := w.current()
		refused := func(id snapshot.ID, want string) {
			w.t.Helper()
			for _, confirm := range []bool{false, true} {
				rep, err := k.Forget(w.t.Context(), id, ForgetOptions{Confirm: confirm})
				if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
					w.t.Errorf("%+v, %v, want %q", rep, err, want)
				}
			}
		}
		refused(first.Lineage, "no policy")
		_, _, err := k.Publish(w.t.Context())
		w.must(err)
		refused(snapshot.NewID(), "no lineage")
		refused(first.Lineage, "current")
		w.prove(first.Lineage, snapshot.ResultOK)
		time.Sleep(day)
		w.fork()
		w.snapshot(1)
		refused(first.Lineage, "newest proof")
		time.Sleep(day)
		w.prove(w.current().Lineage, snapshot.ResultOK)
		refused(first.Lineage, "newest proof") // and the one before, on another manifest
		w.snapshot(1)
		time.Sleep(day)
		w.prove(w.current().Lineage, snapshot.ResultOK)
		hold := usual
		hold.Holds = []Hold{{TID: w.state(first.Lineage).Head(), Label: "release"}}
		w.snapshot(0)
		k2 := w.keeper(w.mem, hold)
		p, _, err := k2.Publish(w.t.Context())
		w.must(err)
		if p.Holds[0].Lineage == first.Lineage {
			refused(first.Lineage, "hold")
		}
		_, _, err = k.Publish(w.t.Context())
		w.must(err)
		w.must(w.forgetAndPrune(k, first))
		w.compare(w.state(w.current().Lineage))
	})
}

func (w *world) forgetAndPrune(k *Keeper, l *snapshot.Lineage) error {
	w.t.Helper()
	plan, err := k.Forget(w.t.Context(), l.Lineage, ForgetOptions{})
	if err != nil {
		return err
	}
	if plan.Goes.Objects == 0 || plan.Stays.Objects == 0 {
		w.t.Errorf("%+v: the fork uses its segments", plan)
	}
	rep, err := k.Forget(w.t.Context(), l.Lineage, ForgetOptions{Confirm: true, Why: "personal data"})
	if err != nil {
		return err
	}
	if rep.Goes != plan.Goes || len(rep.Written) != 1 {
		w.t.Errorf("%+v, planned %+v", rep, plan)
	}
	if _, err := k.Forget(w.t.Context(), l.Lineage, ForgetOptions{Confirm: true}); !errors.Is(err, ErrRefused) {
		w.t.Errorf("forgotten twice: %v", err)
	}
	time.Sleep(23 * time.Hour)
	if got := w.confirmed(k); got.Deleted.Objects != 0 {
		w.t.Errorf("%+v", got)
	}
	time.Sleep(2 * time.Hour)
	if got := w.confirmed(k); got.Deleted.Objects < rep.Goes.Objects {
		w.t.Errorf("%+v, want %+v", got.Deleted, rep.Goes)
	}
	if len(w.lineages()) != 1 {
		w.t.Error("the lineage is left")
	}
	return nil
}

// A cancelled order to forget is none.
func TestForgetUndo(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.snapshot(3)
		k := w.keeper(w.guard(), usual)
		_, _, err := k.Publish(w.t.Context())
		w.must(err)
		first := w.current()
		w.rebase()
		for range 2 {
			w.snapshot(1)
			w.prove(w.current().Lineage, snapshot.ResultOK)
			time.Sleep(2 * day)
		}
		_, err = k.Forget(w.t.Context(), first.Lineage, ForgetOptions{Confirm: true})
		w.must(err)
		lists, err := k.Undo(w.t.Context(), "")
		w.must(err)
		if len(lists) != 1 {
			w.t.Fatalf("cancelled: %v", lists)
		}
		for range 3 {
			time.Sleep(2 * day)
			w.confirmed(k)
		}
		if len(w.lineages()) != 2 {
			w.t.Error("the lineage is gone")
		}
		w.compare(w.state(first.Lineage))
	})
}

// Catalog pages, the segments in them, and what reserved lines name are needed.
func TestPages(t *testing.T) {
	bubble(t, 2, func(w *world) {
		_, _, err := w.keeper(w.mem, usual).Publish(w.t.Context())
		w.must(err)
		n := tid.TID(0x03d2000000000000)
		add := func() *txn.Transaction {
			n++
			return backuptest.Txn(n, txn.Record{OID: 1, Data: []byte(n.String())})
		}
		for range 5 {
			w.repo.Listed([]*txn.Transaction{add()}, []*txn.Transaction{add(), add()})
			w.repo.Tail(add())
			w.repo.Manifest(true, false)
		}
		w.repo.Manifest(false, true)
		w.repo.Tail(add())
		w.repo.Heartbeat()
		s := w.repo.Now()
		if s.Manifest.Items[0].Page == nil {
			w.t.Fatal("no page")
		}
		m := *s.Manifest
		m.Seq, m.Prev = m.Seq+1, s.Hash
		for _, l := range []string{`{"run":"` + s.Lineage.String() + `/x/1-2"}`, `{"blob":"` + s.Lineage.String() + `/b/ab"}`} {
			m.Reserved = append(m.Reserved, snapshot.Reserved{Kind: l[2:strings.Index(l, `":`)], Key: l[strings.Index(l, `":"`)+3 : len(l)-2], Line: l})
		}
		for _, r := range m.Reserved {
			w.repo.Put(r.Key, []byte("of a later version"))
		}
		b, err := m.Sign(w.repo.Signer)
		w.must(err)
		w.repo.Put(snapshot.ManifestKey(m.Lineage, m.Seq), b)
		k := w.keeper(w.guard(), usual)
		deleted := int64(0)
		for range 4 {
			time.Sleep(25 * time.Hour)
			deleted += w.confirmed(k).Deleted.Objects
		}
		if deleted < 15 {
			w.t.Errorf("%d objects are deleted", deleted)
		}
		have := w.keys()
		for _, r := range m.Reserved {
			if _, ok := have[r.Key]; !ok {
				w.t.Errorf("%s is gone", r.Key)
			}
		}
		count := 0
		for _, err := range w.repo.Transactions(w.t.Context(), w.repo.Keys, w.repo.Now(), 0, n, backup.FetchOptions{Scratch: w.dir}, nil) {
			w.must(err)
			count++
		}
		if count != 21 {
			w.t.Errorf("%d transactions are left", count)
		}
	})
}

// A lineage that has no note yet is being filled: it stays until nothing was added for a week.
func TestNoteless(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.old()
		k := w.keeper(w.guard(), usual)
		id := snapshot.NewID()
		var keys []string
		for range 4 {
			keys = append(keys, w.stray(id))
			for range 3 {
				time.Sleep(2 * day)
				w.confirmed(k)
			}
		}
		have := w.keys()
		for _, key := range keys {
			if _, ok := have[key]; !ok {
				w.t.Errorf("%s is gone", key)
			}
		}
		w.prove(w.current().Lineage, snapshot.ResultOK)
		for range 3 {
			time.Sleep(2 * day)
			_, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true, ForceShare: 1})
			w.must(err)
		}
		have = w.keys()
		for _, key := range keys {
			if _, ok := have[key]; ok {
				w.t.Errorf("%s is left", key)
			}
		}
	})
}

// A run that takes long looks again at what is needed.
func TestLongRun(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.old()
		w.confirmed(w.keeper(w.mem, usual))
		time.Sleep(25 * time.Hour)
		looks, once := 0, false
		slow := storetest.NewFaulty(w.guard(), func(_ context.Context, c storetest.Call) storetest.Fault {
			switch {
			case c.Op == "list" && c.Key == "":
				looks++
			case c.Op == "delete" && !once:
				once = true
				return storetest.Fault{Delay: 2 * time.Hour}
			}
			return storetest.Fault{}
		})
		k := w.keeper(slow, usual)
		rep, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true})
		w.must(err)
		if looks != 2 || rep.Deleted.Objects == 0 {
			w.t.Errorf("%d looks, %+v", looks, rep)
		}
		w.compare(w.state(w.current().Lineage))
	})
}

// What lies where the newest manifest has a gap stays: it may be all that is left of it.
func TestGap(t *testing.T) {
	l := &lineage{head: 100, gaps: []snapshot.Gap{{After: 10, Upto: 20}}}
	for _, c := range []struct {
		after, upto uint64
		want        reason
	}{{0, 10, superseded}, {0, 11, inGap}, {12, 13, inGap}, {19, 30, inGap}, {20, 30, superseded}, {99, 101, unreferenced}} {
		if got := l.judge(snapshot.KindSegment, &object{a: c.after, b: c.upto}); got != c.want {
			t.Errorf("%d to %d: %v, want %v", c.after, c.upto, got, c.want)
		}
	}
}

// dated tells the time of its latest answer, as a server does, or that of the latest object that was put, as a
// directory does.
type dated struct {
	store.Wrapped
	w         *world
	directory bool
	mu        sync.Mutex
	date      time.Time
}

func (s *dated) answer(put bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if put || !s.directory {
		s.date = s.w.now()
	}
}

func (s *dated) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, store.Info, error) {
	s.answer(false)
	return s.Wrapped.Get(ctx, key, off, n)
}

func (s *dated) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	s.answer(false)
	return s.Wrapped.List(ctx, prefix, after)
}

func (s *dated) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o store.PutOptions) error {
	s.answer(true)
	return s.Wrapped.Put(ctx, key, body, size, o)
}

func (s *dated) Date() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.date
}

// A keeper that was stopped between its look and the first deletion looks again: what it would have deleted may be
// needed by now.
func TestStopped(t *testing.T) {
	for _, directory := range []bool{false, true} {
		bubble(t, 1, func(w *world) {
			w.old()
			k := w.keeper(&dated{Wrapped: store.Wrapped{Store: w.mem}, w: w, directory: directory}, usual)
			w.confirmed(k)
			time.Sleep(25 * time.Hour)
			p := &pruning{k: k, o: PruneOptions{Confirm: true, ForceShare: DefaultShare}}
			v, err := k.look(w.t.Context(), p.o)
			w.must(err)
			if rep := p.plan(v); rep.Due.Objects == 0 {
				w.t.Fatalf("%+v", rep)
			}
			time.Sleep(2 * time.Hour)
			old := w.lineages()[0]
			w.prove(old.Lineage, snapshot.ResultOK)
			before := w.keys()
			if again, err := p.carryOut(w.t.Context()); err != nil || !again || !maps.Equal(before, w.keys()) {
				w.t.Errorf("again: %v, %v", again, err)
			}
			if rep := w.confirmed(k); rep.Spared.Objects == 0 || rep.Deleted.Objects == 0 {
				w.t.Errorf("%+v", rep)
			}
			w.compare(w.state(old.Lineage))
		})
	}
}

// What a lineage whose tails are broken uses of another one is needed still: its locks are extended.
func TestBrokenFork(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.snapshot(3)
		_, _, err := w.keeper(w.mem, usual).Publish(w.t.Context())
		w.must(err)
		w.fork()
		fork := w.current().Lineage
		w.prove(fork, snapshot.ResultOK)
		time.Sleep(20 * day)
		w.prove(fork, snapshot.ResultOK)
		time.Sleep(20 * day)
		s := w.state(fork)
		w.repo.Put(snapshot.TailKey(fork, 2), []byte("there is no tail 1"))
		v, err := w.keeper(w.mem, usual).look(w.t.Context(), PruneOptions{})
		w.must(err)
		if v.lineages[0].kept || len(v.refused) != 1 {
			w.t.Fatalf("%+v, refused: %v", v.lineages[0], v.refused)
		}
		for _, l := range v.lineages {
			for _, p := range l.proofs {
				p.needs = nil // as if they were of another manifest, which uses less
			}
		}
		w.must(v.decide())
		n := 0
		for p, err := range w.repo.Parts(w.t.Context(), s, 0, tid.Max) {
			w.must(err)
			k, err := snapshot.ParseKey(p.Segment.Key)
			w.must(err)
			if o := v.list.find(k); o == nil || o.reason != needed {
				w.t.Errorf("%s: %+v", p.Segment.Key, o)
			}
			n++
		}
		if n == 0 {
			w.t.Error("nothing is used")
		}
	})
}

// Versions are listed for a part of a lineage at a time: all of a repository would not fit into memory.
func TestVersionsOfABatch(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.mem = memstore.New(memstore.Options{Now: w.now, Versioned: true})
		w.repo = newRepo(w)
		w.old()
		s := &listedVersions{Wrapped: store.Wrapped{Store: w.mem}}
		k := w.keeper(s, usual)
		w.confirmed(k)
		time.Sleep(25 * time.Hour)
		s.prefixes = nil
		if rep := w.confirmed(k); rep.Deleted.Objects == 0 {
			w.t.Fatalf("%+v", rep)
		}
		for _, prefix := range s.prefixes {
			if dir, _, ok := strings.Cut(prefix, "/"); !ok || dir == "" {
				w.t.Errorf("versions of all that begins with %q", prefix)
			}
		}
	})
	id := snapshot.NewID()
	tail := func(n uint64) block {
		return blockOf(doomed{&object{a: n}, snapshot.Key{Kind: snapshot.KindTail, Lineage: id, N: int64(n)}})
	}
	if tail(0xffff) == tail(0x10000) || tail(0x10000) != tail(0x10fff) {
		t.Error("tails that have little in common are in one batch")
	}
}

// listedVersions remembers of what versions were listed.
type listedVersions struct {
	store.Wrapped
	prefixes []string
}

func (s *listedVersions) Versions(ctx context.Context, prefix string) iter.Seq2[store.Version, error] {
	s.prefixes = append(s.prefixes, prefix)
	return s.Wrapped.Versions(ctx, prefix)
}

// A run that is stopped while it announces says which lists are there.
func TestAnnouncedInPart(t *testing.T) {
	bubble(t, 1, func(w *world) {
		w.old()
		lists := 0
		s := storetest.NewFaulty(w.mem, func(_ context.Context, c storetest.Call) storetest.Fault {
			if c.Op == "put" && strings.HasPrefix(c.Key, "d/") {
				if lists++; lists > 1 {
					return storetest.Fault{Err: store.ErrDenied}
				}
			}
			return storetest.Fault{}
		})
		rep, err := w.keeper(s, usual).Prune(w.t.Context(), PruneOptions{Confirm: true, maxDoomed: 3})
		if !errors.Is(err, store.ErrDenied) || len(rep.Written) != 1 {
			w.t.Errorf("%+v, %v", rep, err)
		}
	})
}
