package writer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/tid"
)

// fork plans a fork, and begins it.
func (w *world) fork(s store.Store, change func(*ForkOptions)) (*Fork, *snapshot.Lineage, error) {
	w.t.Helper()
	repo, err := backup.Open(w.t.Context(), backup.Config{Store: s, Trusted: w.repo.Trusted})
	if err != nil {
		return nil, nil, err
	}
	o := ForkOptions{Options: Options{Repo: repo, Signer: w.repo.Signer, Feed: w.feed.Reopen(), StateDir: w.dir, limits: few, Log: w.log}}
	if change != nil {
		change(&o)
	}
	f, err := PlanFork(w.t.Context(), o)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	l, err := f.Begin(w.t.Context())
	return f, l, err
}

// tids are those of the source.
func (w *world) tids() (list []tid.TID) {
	w.t.Helper()
	for t, err := range w.feed.Full().Transactions(w.t.Context(), 0, tid.Max) {
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, t.TID)
	}
	return list
}

// A source that was truncated goes on in a fork, with or without an identity: nothing is stored again,
// the parent has what it had, and writers add to the fork whatever becomes of it.
func TestFork(t *testing.T) {
	for seed := range uint64(*seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, seed, seed%2 == 0)
			for round := range 3 {
				for range 1 + w.rnd.IntN(4) {
					w.change(2 + w.rnd.IntN(12))
					wr := w.must()
					if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
						t.Fatal(err)
					}
					wr.Close()
				}
				w.check(w.last())
				before, _ := w.repo.Current(t.Context())
				parent := collect(t, w.feed.Full().Transactions(t.Context(), 0, tid.Max))
				list := w.tids()
				at := list[w.rnd.IntN(len(list)-1)]
				w.feed.Truncate(at)
				for range w.rnd.IntN(2) {
					w.change(3)
				}
				_, err := w.open(t.Context(), w.store, w.dir)
				if !errors.Is(err, ErrDiverged) {
					t.Fatalf("after a truncation: %v", err)
				}
				if n := w.rnd.IntN(3); n == 0 { // a lost state directory
					w.dir = t.TempDir()
				}
				objects := w.objects()
				f, l, err := w.fork(w.store, func(o *ForkOptions) { o.Keys, o.Why = w.repo.Keys, "test" })
				if err != nil {
					t.Fatal(err)
				}
				if f.At != at || !f.Known || f.Common != at || l.At != at || l.Parent != before.Lineage || l.K != before.K+1 || l.Why != "fork: test" {
					t.Fatalf("round %d: %+v, %+v, want a fork at %v", round, f, l, at)
				}
				w.forked = true
				if n := w.objects() - objects; n != 3 {
					t.Errorf("%d objects were stored, want a manifest, a tail and a note", n)
				}
				w.check(at)
				for range 1 + w.rnd.IntN(3) {
					w.change(w.rnd.IntN(9))
					wr := w.must()
					if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
						t.Fatal(err)
					}
					wr.Close()
					w.check(w.last())
				}
				w.sound()
				// The parent is what it was.
				s, err := w.repo.State(t.Context(), before.Lineage, nil)
				if err != nil {
					t.Fatal(err)
				}
				got := collect(t, w.repo.Transactions(t.Context(), w.repo.Keys, s, 0, tid.Max, backup.FetchOptions{Scratch: w.dir}, nil))
				if len(got) != len(parent) || got[len(got)-1].String() != parent[len(parent)-1].String() {
					t.Fatalf("the parent has %d transactions, want %d", len(got), len(parent))
				}
			}
		})
	}
}

// sound makes sure that nothing is wrong with the repository.
func (w *world) sound() {
	w.t.Helper()
	report := func(f verify.Finding) {
		if !f.Warning {
			w.t.Fatal(f)
		}
	}
	if _, err := verify.Check(w.t.Context(), backup.Config{Store: w.repo.Store, Trusted: w.repo.Trusted}, verify.CheckOptions{Report: report}); err != nil {
		w.t.Fatal(err)
	}
	note, err := w.repo.Current(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := w.repo.State(w.t.Context(), note.Lineage, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := verify.Read(w.t.Context(), verify.ReadOptions{Repo: w.repo.Repository, Keys: w.repo.Keys, State: s, Scratch: w.dir, Report: report}); err != nil {
		w.t.Fatal(err)
	}
}

// objects returns how many objects are stored.
func (w *world) objects() (n int) {
	w.t.Helper()
	for _, err := range w.store.List(w.t.Context(), "", "") {
		if err != nil {
			w.t.Fatal(err)
		}
		n++
	}
	return n
}

// A fork that is not at the last transaction that both have, or needs what is not there or about to go, is
// refused, and nothing is written.
func TestForkRefused(t *testing.T) {
	w := newWorld(t, 1, true)
	take := func() {
		t.Helper()
		wr := w.must()
		if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
			t.Fatal(err)
		}
		wr.Close()
	}
	w.change(5)
	take()
	first := w.last()
	w.change(5)
	list := w.tids()
	within := list[len(list)-3] // not the end of a tail or manifest
	take()
	objects := w.objects()
	refused := func(name string, want error, text string, change func(*ForkOptions)) {
		t.Helper()
		_, _, err := w.fork(w.store, change)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %v and %q", name, err, want, text)
		}
		if w.objects() != objects {
			t.Errorf("%s: something was written", name)
		}
	}
	refused("the source goes on", ErrNothingToFork, "", nil)
	w.feed.Truncate(within)
	refused("without identity", ErrNotCommon, first.String(), func(o *ForkOptions) { o.At = list[len(list)-1] })
	refused("without identity, not at the end of a note", backup.ErrKeys, "an identity is needed", func(o *ForkOptions) { o.At, o.Feed = within, nil })
	refused("beyond the head", backup.ErrNotExact, "ends with", func(o *ForkOptions) { o.At = tid.Max })
	refused("before the first transaction", backup.ErrNotExact, "nothing was committed", func(o *ForkOptions) { o.At, o.Feed, o.Keys = 1, nil, w.repo.Keys })
	// A keeper has decided that an object goes.
	seg := w.segmentOf(first)
	now := time.Now().UTC().Truncate(time.Second)
	d := &snapshot.Doom{Repo: w.repo.Marker.ID, Created: now, Policy: 1, Objects: []snapshot.Doomed{{Key: seg, Why: "test"}}}
	doom := snapshot.Key{Kind: snapshot.KindDoom, Time: now}.String()
	b, err := d.Sign(w.repo.Keeper)
	if err != nil {
		t.Fatal(err)
	}
	w.repo.Put(doom, b)
	objects++
	refused("doomed", ErrDoomed, "prune --undo", func(o *ForkOptions) { o.Keys = w.repo.Keys })
	v, err := snapshot.Sign(&snapshot.Void{Repo: w.repo.Marker.ID, List: doom, Created: now}, w.repo.Keeper)
	if err != nil {
		t.Fatal(err)
	}
	w.repo.Put(doom+".void", v)
	objects++
	// Another database has nothing in common.
	other := newWorld(t, 2, false)
	other.change(9)
	refused("another database", ErrNotCommon, "another database", func(o *ForkOptions) { o.Feed = other.feed; o.Keys = w.repo.Keys })
	other.feed.Truncate(0)
	refused("an empty source", ErrNotCommon, "another database", func(o *ForkOptions) { o.Feed = other.feed.Reopen(); o.Keys = w.repo.Keys })
	// A hole.
	if f, _, err := w.fork(w.store, func(o *ForkOptions) { o.Keys = w.repo.Keys }); err != nil || f.At != within {
		t.Fatalf("%+v, %v", f, err)
	}
	w.check(within)
}

// segmentOf is the key of the object that has a transaction.
func (w *world) segmentOf(t tid.TID) string {
	w.t.Helper()
	note, err := w.repo.Current(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := w.repo.State(w.t.Context(), note.Lineage, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for p, err := range w.repo.Parts(w.t.Context(), s, t-1, t) {
		if err != nil {
			w.t.Fatal(err)
		}
		return p.Segment.Key
	}
	w.t.Fatalf("no segment has %v", t)
	return ""
}

// Holes before a fork stay, and none can be forked within.
func TestForkHoles(t *testing.T) {
	w := newWorld(t, 3, true)
	w.packed = true
	step := func() tid.TID {
		t.Helper()
		wr := w.must()
		defer wr.Close()
		if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
			t.Fatal(err)
		}
		return w.last()
	}
	w.change(20)
	step()
	w.change(20)
	list := w.tids()
	inHole := list[len(list)-5]
	w.feed.Pack(w.last())
	end := step()
	w.change(10)
	last := step()
	if _, _, err := w.fork(w.store, func(o *ForkOptions) { o.At, o.Feed, o.Keys = inHole, nil, w.repo.Keys }); !errors.Is(err, backup.ErrNotExact) {
		t.Errorf("within a hole: %v", err)
	}
	w.feed.Truncate(end)
	if _, _, err := w.fork(w.store, func(o *ForkOptions) { o.Keys = w.repo.Keys }); err != nil {
		t.Fatal(err)
	}
	s := w.check(end)
	if holes := s.Holes(); len(holes) != 1 || s.Exact(inHole) == nil || s.Head() != end || s.Head() >= last {
		t.Errorf("head %v, holes %v", s.Head(), holes)
	}
}

// Whatever call of the store is the last one, the fork is there or not, and can be made again; a writer
// of the parent that goes on is stopped before it acknowledges anything that the fork does not have.
func TestForkInterrupted(t *testing.T) {
	for _, after := range []bool{false, true} {
		done := false
		for n := 1; !done; n++ {
			w := newWorld(t, 4, true)
			w.change(10)
			old := w.must()
			if err := old.Snapshot(t.Context(), 0, ""); err != nil {
				t.Fatal(err)
			}
			cut := w.last()
			w.change(3)
			if err := old.Snapshot(t.Context(), 0, ""); err != nil {
				t.Fatal(err)
			}
			w.feed.Truncate(cut)
			w.dir = t.TempDir() // another host
			_, _, err := w.fork(storetest.DieAt(w.store, n, after), nil)
			done = err == nil
			if err != nil {
				if _, _, err := w.fork(w.store, nil); err != nil && !errors.Is(err, ErrNothingToFork) {
					t.Fatalf("call %d, after %t: %v", n, after, err)
				}
			}
			w.check(cut)
			note, err := w.repo.Current(t.Context())
			if err != nil || note.K != 2 {
				t.Fatalf("call %d, after %t: lineage %v, %v", n, after, note, err)
			}
			// It only knows that its next number is used.
			if err := old.chain.heartbeat(context.Background(), old.chain.asof); !errors.Is(err, ErrFenced) {
				t.Fatalf("the writer of the parent: %v", err)
			}
			old.Close()
			w.change(3)
			wr := w.must()
			if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
				t.Fatal(err)
			}
			wr.Close()
			w.check(w.last())
			if n > 60 {
				t.Fatal("too many calls")
			}
		}
	}
}
