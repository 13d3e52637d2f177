package writer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/cluster/tid"
)

// Two writers on two hosts: one stops at each of its store calls in turn, and goes on after the
// other one has worked. What either acknowledged is in the current lineage, and one of them
// ends as fenced, or both can go on.
func TestTwoWriters(t *testing.T) {
	for _, how := range []string{"snapshot", "snapshots", "tails", "rebase"} {
		t.Run(how, func(t *testing.T) {
			fenced := 0
			for n := 1; ; n++ {
				stopped, err := stopAt(t, n, how)
				if err != nil {
					fenced++
				}
				if !stopped {
					t.Logf("%d calls, fenced after %d of them", n-1, fenced)
					if fenced == 0 {
						t.Error("the first writer was never fenced")
					}
					return
				}
			}
		})
	}
}

// halting is a store that stores nothing while it is halted.
type halting struct {
	store.Wrapped
	mu sync.RWMutex
}

func (h *halting) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o store.PutOptions) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.Wrapped.Put(ctx, key, body, size, o)
}

func stopAt(t *testing.T, n int, how string) (bool, error) {
	w := newWorld(t, uint64(n%2)+20, n%2 == 0)
	// The call may be one of several that the first writer makes at once: they all have to wait.
	halt := &halting{Wrapped: store.Wrapped{Store: w.store}}
	var mu sync.Mutex
	var stored tid.TID
	ack := func(wr *Writer) {
		mu.Lock()
		defer mu.Unlock()
		stored = max(stored, acked(wr))
	}
	stopped := false
	other := func() {
		halt.mu.Lock()
		defer halt.mu.Unlock()
		stopped = true
		wr, err := w.open(t.Context(), w.store, t.TempDir())
		if err != nil {
			t.Fatalf("call %d: the other writer: %v", n, err)
		}
		defer wr.Close()
		defer wr.chain.quiesce()
		for i := range 2 {
			if how != "rebase" {
				w.change(3)
			}
			switch {
			case how == "rebase" && i == 0:
				err = wr.Rebase(t.Context())
			case how == "tails":
				err = wr.chain.flush(t.Context(), w.last(), time.Now(), true)
			default:
				err = wr.Snapshot(t.Context(), 0, "other")
			}
			if err != nil {
				t.Fatalf("call %d: the other writer: %v", n, err)
			}
			ack(wr)
			if how == "snapshot" {
				break
			}
		}
	}
	faulty := storetest.NewFaulty(halt, func(_ context.Context, c storetest.Call) storetest.Fault {
		if c.N == n {
			other()
		}
		return storetest.Fault{}
	})
	run := func() error {
		w.change(5)
		wr, err := w.open(t.Context(), faulty, w.dir)
		if err != nil {
			return err
		}
		defer wr.Close()
		defer wr.chain.quiesce()
		for i := range 4 {
			w.change(1 + i)
			var err error
			if how == "tails" {
				err = wr.chain.flush(t.Context(), w.last(), time.Now(), true)
			} else {
				err = wr.Snapshot(t.Context(), 0, "")
			}
			ack(wr)
			if err != nil {
				return err
			}
		}
		return nil
	}
	err := run()
	if err != nil && !isAny(err, ErrFenced, ErrDiverged) {
		t.Fatalf("call %d: %v", n, err)
	}
	if e, ok := errors.AsType[*FencedError](err); ok && (e.Writer == "" || strings.Contains(e.Error(), " 0001-") || how != "rebase" && e.Asof.IsZero()) {
		t.Errorf("call %d: %v does not say what the other writer did", n, err)
	}
	w.check(stored)
	wr := w.must()
	defer wr.Close()
	w.change(1)
	if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatalf("after call %d: %v", n, err)
	}
	w.check(w.last())
	return stopped, err
}

// A writer that was stopped for more than a day at each of its calls in turn: what it would have
// created was created by another one, summed up and deleted. The store says 200, and the
// writer must not believe it.
func TestStalledWriter(t *testing.T) {
	calls := 0
	for n := 1; ; n++ {
		var stopped bool
		synctest.Test(t, func(t *testing.T) { stopped = stallAt(t, n) })
		if !stopped {
			break
		}
		calls++
	}
	t.Logf("%d calls", calls)
}

func stallAt(t *testing.T, n int) (stopped bool) {
	w := newWorld(t, uint64(n%2)+30, n%2 == 0)
	var stored tid.TID
	stall := func() {
		stopped = true
		time.Sleep(30 * time.Minute)
		wr, err := w.open(t.Context(), w.store, t.TempDir())
		if err != nil {
			t.Fatalf("call %d: the other writer: %v", n, err)
		}
		for range 3 {
			w.change(3)
			if err := wr.Snapshot(t.Context(), 0, "other"); err != nil {
				t.Fatalf("call %d: the other writer: %v", n, err)
			}
		}
		stored = max(stored, acked(wr))
		wr.Close()
		time.Sleep(30 * time.Hour)
		w.prune()
	}
	faulty := storetest.NewFaulty(w.store, func(_ context.Context, c storetest.Call) storetest.Fault {
		if c.N == n {
			stall()
		}
		return storetest.Fault{}
	})
	run := func() error {
		w.change(5)
		wr, err := w.open(t.Context(), faulty, w.dir)
		if err != nil {
			return err
		}
		defer wr.Close()
		for i := range 4 {
			w.change(1 + i)
			err := wr.Snapshot(t.Context(), 0, "")
			stored = max(stored, acked(wr))
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := run(); err != nil && !isAny(err, ErrFenced, store.ErrNotFound, context.DeadlineExceeded) {
		t.Fatalf("call %d: %v", n, err)
	}
	w.check(stored)
	// What the stalled writer put where a tail was deleted is no part of the chain.
	wr := w.must()
	defer wr.Close()
	w.change(1)
	if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatalf("after call %d: %v", n, err)
	}
	w.check(w.last())
	return stopped
}

// prune deletes all that the newest manifest does not need and that is a day old.
func (w *world) prune() {
	w.t.Helper()
	ctx := w.t.Context()
	s := w.repo.Now()
	need := map[string]bool{}
	for p, err := range w.repo.Parts(ctx, s, 0, s.Head()) {
		if err != nil {
			w.t.Fatal(err)
		}
		if p.Segment != nil {
			need[p.Segment.Key] = true
		}
	}
	for _, i := range s.Manifest.Items {
		if i.Page != nil {
			need[i.Page.Key] = true
		}
	}
	for _, t := range s.Tails {
		need[t.Key] = true
	}
	need[snapshot.ManifestKey(s.Lineage, s.Manifest.Seq)] = true
	var gone []string
	for info, err := range w.store.List(ctx, s.Lineage.String(), "") {
		if err != nil {
			w.t.Fatal(err)
		}
		if !need[info.Key] && time.Since(info.Modified) > 24*time.Hour {
			gone = append(gone, info.Key)
		}
	}
	if err := w.store.Delete(ctx, gone); err != nil {
		w.t.Fatal(err)
	}
}

// The source is not the one that the repository was made from.
func TestDiverged(t *testing.T) {
	prepare := func(t *testing.T) *world {
		w := newWorld(t, 40, true)
		for range 6 {
			w.change(4)
			wr := w.must()
			if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
				t.Fatal(err)
			}
			wr.Close()
		}
		return w
	}
	refused := func(w *world) *DivergedError {
		w.t.Helper()
		_, err := w.open(w.t.Context(), w.store, w.dir)
		e, ok := errors.AsType[*DivergedError](err)
		if !ok || !errors.Is(err, ErrDiverged) {
			w.t.Fatalf("got %v, want an ErrDiverged", err)
		}
		w.t.Log(err)
		return e
	}
	ends := func(w *world) (list []tid.TID) { // of tails, ascending
		for n := int64(1); ; n++ {
			s, err := w.repo.Repository.Tail(w.t.Context(), w.repo.Lineage, n)
			if errors.Is(err, store.ErrNotFound) {
				return list
			}
			if err != nil {
				w.t.Fatal(err)
			}
			list = append(list, s.Upto)
		}
	}
	t.Run("truncated", func(t *testing.T) {
		w := prepare(t)
		list := ends(w)
		w.feed.Truncate(list[len(list)-1] - 1)
		if e := refused(w); e.Common != list[len(list)-2] || e.Head != list[len(list)-1] {
			t.Errorf("common %v, head %v; the tails end with %v", e.Common, e.Head, list)
		}
	})
	t.Run("truncated and written again", func(t *testing.T) {
		w := prepare(t)
		list := ends(w)
		half := list[len(list)/2]
		w.feed.Truncate(half)
		w.change(100)
		if e := refused(w); e.Common != half {
			t.Errorf("common %v, want %v", e.Common, half)
		}
	})
	t.Run("tails are gone, manifests tell", func(t *testing.T) {
		w := prepare(t)
		list := ends(w)
		half := list[len(list)/2]
		w.feed.Truncate(half)
		w.change(100)
		var keys []string
		for info, err := range w.store.List(t.Context(), snapshot.Prefix(snapshot.KindTail, w.repo.Lineage), "") {
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, info.Key)
		}
		if err := w.store.Delete(t.Context(), keys); err != nil {
			t.Fatal(err)
		}
		if e := refused(w); e.Common > half || e.Common == 0 {
			t.Errorf("common %v, want at most %v", e.Common, half)
		}
	})
	t.Run("empty", func(t *testing.T) {
		w := prepare(t)
		w.feed.Truncate(0)
		if e := refused(w); e.Common != 0 {
			t.Errorf("common %v", e.Common)
		}
	})
	t.Run("another database", func(t *testing.T) {
		w := prepare(t)
		w.feed.Truncate(0)
		w.rnd.Uint64()
		w.change(200)
		if e := refused(w); e.Common != 0 {
			t.Errorf("common %v", e.Common)
		}
	})
	t.Run("while it is followed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := prepare(t)
			wr := w.must()
			defer wr.Close()
			done := make(chan error)
			go func() { done <- wr.Follow(t.Context()) }()
			time.Sleep(time.Second)
			list := ends(w)
			w.feed.Truncate(list[len(list)-1] - 1)
			e, ok := errors.AsType[*DivergedError](<-done)
			if !ok || e.Common != list[len(list)-2] {
				t.Errorf("got %v", e)
			}
		})
	})
	t.Run("a file was packed", func(t *testing.T) {
		w := prepare(t)
		f := &packedFeed{Feed: w.feed}
		w.setup = func(o *Options) { o.Feed = f }
		if e := refused(w); !errors.Is(e, feed.ErrPacked) {
			t.Error("it is no ErrPacked")
		}
		w.setup = func(o *Options) { o.Feed, o.RebaseOnPack = f, true }
		w.change(3)
		before := w.repo.Lineage
		wr := w.must()
		if err := wr.Snapshot(t.Context(), 0, "packed"); err != nil {
			t.Fatal(err)
		}
		if wr.Lineage().Lineage == before || wr.Lineage().Parent != before {
			t.Errorf("the lineage is %+v", wr.Lineage())
		}
		wr.Close()
		if s := w.check(w.last()); s.Manifest.Label != "packed" {
			t.Errorf("label %q", s.Manifest.Label)
		}
		w.must().Close() // the mark is known now
	})
}

// packedFeed is a file that was packed, for all marks that were made before.
type packedFeed struct{ feed.Feed }

func (f *packedFeed) Resume(_ context.Context, mark string) error {
	if mark == "after the pack" || mark == "" {
		return nil
	}
	return fmt.Errorf("the test: %w", feed.ErrPacked)
}

func (f *packedFeed) Mark(context.Context, tid.TID) (string, error) { return "after the pack", nil }

// A writer whose tail was stored, but that could not look then whether its lineage is current, is not
// its own rival when it goes on.
func TestNotFencedByItself(t *testing.T) {
	for _, backlog := range []bool{false, true} {
		w := newWorld(t, 3, true)
		w.change(3)
		var fail, failed atomic.Bool
		faulty := storetest.NewFaulty(w.store, func(_ context.Context, c storetest.Call) storetest.Fault {
			if k, err := snapshot.ParseKey(c.Key); fail.Load() && c.Op == "get" && err == nil && k.Kind == snapshot.KindLineage && !failed.Swap(true) {
				return storetest.Fault{Err: store.ErrDenied}
			}
			return storetest.Fault{}
		})
		wr, err := w.open(t.Context(), faulty, w.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer wr.Close()
		if backlog {
			w.change(200)
		}
		fail.Store(true)
		if err := wr.Snapshot(t.Context(), 0, ""); !errors.Is(err, store.ErrDenied) {
			t.Errorf("backlog %v: got %v, want what the store says", backlog, err)
		}
		if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
			t.Errorf("backlog %v: %v", backlog, err)
		}
		w.check(w.last())
	}
}
