package keeper

import (
	"errors"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
)

// Years of a repository with two keepers that are configured in different ways: forks, rebases, proofs,
// holds, lineages that were forgotten, cancelled lists, clocks that are a year off. Nothing is deleted
// that must stay, every lineage that is kept can be restored as a whole, both keepers plan the
// same, and what was planned is what happens.
func TestYears(t *testing.T) {
	for i := range *seeds {
		seed := *firstSeed + uint64(i)
		synctest.Test(t, func(t *testing.T) { years(t, seed) })
	}
}

func years(t *testing.T, seed uint64) {
	w := newWorld(t, seed)
	g := w.guard()
	settings := [2]Settings{{KeepLineagesDays: 35, PruneGraceHours: 24}, {KeepLineagesDays: 60, PruneGraceHours: 72}}
	keepers := func() (list [2]*Keeper) {
		for i := range list {
			list[i] = w.keeper(g, settings[i])
		}
		return list
	}
	ctx := t.Context()
	start := time.Now()
	var counts = map[string]int{}
	publish := func(i int) {
		_, isNew, err := keepers()[i].Publish(ctx)
		if err != nil {
			t.Fatalf("publish: %v", err)
		}
		if isNew {
			counts["policies"]++
		}
	}
	w.snapshot(5)
	rep, err := keepers()[0].Prune(ctx, PruneOptions{Confirm: true})
	if err != nil || len(rep.Refused) == 0 {
		t.Fatalf("without a policy: %+v, %v", rep, err)
	}
	publish(0)
	for range *steps {
		time.Sleep(time.Hour + time.Duration(w.rnd.Int64N(int64(7*24*time.Hour))))
		switch n := w.rnd.IntN(100); {
		case n < 30:
			w.snapshot(1 + w.rnd.IntN(4))
		case n < 42:
			w.follow(1 + w.rnd.IntN(4))
		case n < 47:
			w.rebase()
			counts["rebases"]++
		case n < 52:
			w.fork()
			w.snapshot(1)
			counts["forks"]++
		case n < 72:
			id := w.current().Lineage
			if w.rnd.IntN(5) == 0 {
				list, err := w.repo.Lineages(ctx)
				w.must(err)
				id = list[w.rnd.IntN(len(list))].Lineage
			}
			result := snapshot.ResultOK
			if w.rnd.IntN(8) == 0 {
				result = snapshot.ResultFailed
			}
			w.prove(id, result)
			counts["proofs"]++
		case n < 78:
			i := w.rnd.IntN(2)
			s := &settings[i]
			if len(s.Holds) > 1 || len(s.Holds) == 1 && w.rnd.IntN(2) == 0 {
				s.Holds = s.Holds[1:]
			} else {
				head := w.state(w.current().Lineage).Head()
				s.Holds = append(s.Holds, Hold{TID: head, Label: "release"})
			}
			publish(i)
			counts["holds"]++
		case n < 80:
			w.stray(w.current().Lineage)
		case n < 82:
			w.stray(snapshot.NewID()) // of a lineage that is never completed
		case n < 85:
			list, err := w.repo.Lineages(ctx)
			w.must(err)
			_, err = keepers()[0].Forget(ctx, list[0].Lineage, ForgetOptions{Confirm: true})
			if err == nil {
				counts["forgotten"]++
			} else if !errors.Is(err, ErrRefused) {
				t.Fatal(err)
			}
		case n < 88:
			lists, err := keepers()[1].Undo(ctx, "test")
			w.must(err)
			counts["cancelled"] += len(lists)
		default:
			w.off(keepers)
			counts["clocks"]++
		}
		w.prune(g, keepers(), counts)
	}
	counts["lineages"] = len(w.lineages())
	t.Logf("seed %d: %v, %v, %d objects left", seed, time.Since(start).Round(time.Hour), counts, len(w.keys()))
	if counts["deleted"] == 0 {
		t.Error("nothing was ever deleted")
	}
}

func (w *world) lineages() []*snapshot.Lineage {
	w.t.Helper()
	list, err := w.repo.Lineages(w.t.Context())
	w.must(err)
	return list
}

// off lets the clock of the store be a year off: keepers refuse. Then it is off for all hosts: what must
// stay stays all the same.
func (w *world) off(keepers func() [2]*Keeper) {
	w.t.Helper()
	year := 365 * day
	if w.rnd.IntN(2) == 0 {
		year = -year
	}
	before := w.keys()
	for _, k := range keepers() {
		k.o.Now = func() time.Time { return w.now().Add(year) }
		if _, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true}); !errors.Is(err, ErrClock) {
			w.t.Fatalf("a clock that is off by %v: %v", year, err)
		}
	}
	if !maps.Equal(before, w.keys()) {
		w.t.Fatal("a keeper whose clock is off has changed something")
	}
	if w.rnd.IntN(4) != 0 {
		return
	}
	w.skew = year
	defer func() { w.skew = 0 }()
	for range 2 {
		for _, k := range keepers() {
			_, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true})
			w.must(err)
		}
		time.Sleep(25 * time.Hour)
	}
}

// prune lets one of the keepers prune, or both at once.
func (w *world) prune(g *guard, keepers [2]*Keeper, counts map[string]int) {
	w.t.Helper()
	plan, rep := w.goingOf(keepers[0])
	if w.rnd.IntN(3) == 0 {
		if other, _ := w.goingOf(keepers[1]); !maps.Equal(plan, other) {
			w.t.Fatalf("two keepers plan differently: %d and %d objects", len(plan), len(other))
		}
	}
	before := w.keys()
	clear(g.deleted)
	if both := w.rnd.IntN(3) == 0; both {
		var wg sync.WaitGroup
		for _, k := range keepers {
			wg.Go(func() {
				if _, err := k.Prune(w.t.Context(), PruneOptions{Confirm: true}); err != nil {
					w.t.Error(err)
				}
			})
		}
		wg.Wait()
	} else {
		done, err := keepers[w.rnd.IntN(2)].Prune(w.t.Context(), PruneOptions{Confirm: true})
		w.must(err)
		if done.Deleted != rep.Due || len(done.Refused) != len(rep.Refused) {
			w.t.Fatalf("%+v was deleted, planned was %+v (%v, %v)", done.Deleted, rep.Due, done.Refused, rep.Refused)
		}
		if (len(done.Written) > 0) != (rep.New.Objects > 0 && len(rep.Refused) == 0) {
			w.t.Fatalf("lists %v for %+v", done.Written, rep.New)
		}
		for _, list := range done.Written {
			d, err := w.repo.Doom(w.t.Context(), list)
			w.must(err)
			for _, o := range d.Objects {
				if plan[o.Key] == "" {
					w.t.Fatalf("%s announces %s, which was not planned", list, o.Key)
				}
			}
		}
	}
	if len(rep.Refused) > 0 {
		counts["refused"]++
	}
	counts["deleted"] += len(g.deleted)
	if int64(len(g.deleted)) != rep.Due.Objects && len(rep.Refused) == 0 {
		w.t.Fatalf("%d objects were deleted, %d were due", len(g.deleted), rep.Due.Objects)
	}
	after := w.keys()
	for key := range before {
		if _, ok := after[key]; !ok && !g.deleted[key] {
			w.t.Fatalf("%s is gone", key)
		}
	}
	for key := range g.deleted {
		if plan[key] == "" {
			w.t.Fatalf("%s was deleted, which was not planned", key)
		}
	}
	if len(g.deleted) == 0 {
		return
	}
	for _, l := range w.lineages() {
		s, err := w.repo.State(w.t.Context(), l.Lineage, nil)
		for _, r := range rep.Lineages {
			if r.Lineage == l.Lineage && r.Kept {
				w.must(err)
				w.compare(s)
			}
		}
	}
}
