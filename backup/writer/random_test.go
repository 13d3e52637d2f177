package writer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Each call to the store fails once, in each way: with and without effect, slowly, for five
// minutes, with a body that ends too early, and bits that flip while they are read. Behind Retry all
// of it but the last goes unnoticed.
func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault storetest.Fault
		storm time.Duration // how long it goes on from the call on
		fatal bool          // a writer may refuse to go on
	}{
		{"no effect", storetest.Fault{Err: storetest.Temporary}, 0, false},
		{"effect, then an error", storetest.Fault{Err: storetest.Temporary, After: true}, 0, false},
		{"10 s late", storetest.Fault{Delay: 10 * time.Second}, 0, false},
		{"half of the body", storetest.Fault{Err: storetest.Temporary, Cut: true}, 0, false},
		{"slow down for 5 minutes", storetest.Fault{Err: storetest.SlowDown}, 5 * time.Minute, false},
		{"effects without answers for 20 minutes", storetest.Fault{Err: storetest.Temporary, After: true}, 20 * time.Minute, false},
		{"a late list", storetest.Fault{Late: 10 * time.Second}, 0, false},
		{"a bit that is read flips", storetest.Fault{Flip: true}, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for n := 1; ; n++ {
				fired := false
				synctest.Test(t, func(t *testing.T) { fired = faultAt(t, n, tt.fault, tt.storm, tt.fatal) })
				if !fired {
					return
				}
			}
		})
	}
}

func faultAt(t *testing.T, n int, fault storetest.Fault, storm time.Duration, fatal bool) bool {
	w := newWorld(t, uint64(n%2)+50, n%2 == 0)
	w.setup = func(o *Options) { o.Heartbeat = 10 * time.Minute }
	var until atomic.Int64 // the end of the storm; calls come from several goroutines
	faulty := storetest.NewFaulty(w.store, func(_ context.Context, c storetest.Call) storetest.Fault {
		if c.N == n {
			until.Store(time.Now().Add(storm).UnixNano())
		}
		if c.Op == "put" && fault.Flip {
			return storetest.Fault{} // see TestFlippedInStore
		}
		if c.N == n || time.Now().UnixNano() < until.Load() {
			return fault
		}
		return storetest.Fault{}
	})
	w.change(5)
	wr, err := w.open(t.Context(), store.Retry(faulty, store.RetryOptions{}), w.dir)
	if err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 45*time.Minute)
		done := make(chan error)
		go func() { done <- wr.Follow(ctx) }()
		for range 6 {
			time.Sleep(time.Duration(w.rnd.IntN(3000)) * time.Millisecond)
			w.change(2)
		}
		if err = <-done; errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
			err = nil
			if got, want := acked(wr), w.last(); got != want {
				t.Errorf("call %d: %v is acknowledged, want %v", n, got, want)
			}
		}
		cancel()
		wr.Close()
	}
	if err != nil && !fatal {
		t.Errorf("call %d: %v", n, err)
	}
	w.check(acked(wr))
	wr = w.must()
	defer wr.Close()
	if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatalf("after call %d: %v", n, err)
	}
	w.check(w.last())
	return faulty.Calls() >= n
}

// A bit of each object flips in the store, in turn, and nothing but reading finds out: what is read is
// right or an error, and the next writer goes on or says what is damaged.
func TestFlippedInStore(t *testing.T) {
	for n := 1; ; n++ {
		w := newWorld(t, 60, n%2 == 0)
		var puts atomic.Int64
		faulty := storetest.NewFaulty(w.store, func(_ context.Context, c storetest.Call) storetest.Fault {
			if c.Op == "put" {
				if puts.Add(1) == int64(n) {
					return storetest.Fault{Flip: true}
				}
			}
			return storetest.Fault{}
		})
		found := func(err error) bool {
			if err != nil && !isAny(err, snapshot.ErrCorrupt, snapshot.ErrUntrusted) {
				t.Fatalf("object %d: %v", n, err)
			}
			return err != nil
		}
		damaged := false
		for range 4 {
			w.change(3)
			wr, err := w.open(t.Context(), faulty, w.dir)
			if err == nil {
				err = wr.Snapshot(t.Context(), 0, "")
				wr.Close()
			}
			damaged = found(err) || damaged
		}
		s, err := w.repo.State(t.Context(), w.repo.Lineage, nil)
		if damaged = found(err) || damaged; s != nil && err == nil {
			want := collect(t, w.feed.Full().Transactions(t.Context(), 0, s.Head()))
			i := 0
			for tr, err := range w.repo.Transactions(t.Context(), w.repo.Keys, s, 0, s.Head(), backup.FetchOptions{Scratch: t.TempDir()}, nil) {
				if found(err) {
					damaged = true
					break
				}
				got := stored{Transaction: *tr}
				for r, err := range tr.Records {
					if found(err) {
						damaged = true
						break
					}
					got.records = append(got.records, *r)
				}
				if g, w := got.String(), want[i].String(); !damaged && g != w {
					t.Fatalf("object %d: transaction\n%s\nwant\n%s", n, g, w)
				}
				i++
			}
		}
		if puts.Load() < int64(n) {
			return
		}
	}
}

// A source with commits, packs and absences; a store with faults; a host that is killed, loses its
// state or stops for hours; rebases. Whatever comes, what was acknowledged is there, and each exact
// TID gives what the source had.
func TestRandom(t *testing.T) {
	for seed := *firstSeed; seed < *firstSeed+uint64(*seeds); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { random(t, seed) })
		})
	}
}

func random(t *testing.T, seed uint64) {
	rnd := newRand(seed, 1)
	w := newWorld(t, seed, rnd.IntN(2) == 0)
	w.packed = rnd.IntN(2) == 0
	w.size = 4<<10 + rnd.Int64N(16<<10)
	w.setup = func(o *Options) {
		o.Interval = time.Duration(1+rnd.IntN(3000)) * time.Millisecond
		o.Heartbeat = time.Duration(1+rnd.IntN(300)) * time.Second
		o.limits = limits{tails: 1 + rnd.IntN(6), bytes: 1 << (9 + rnd.IntN(10)), age: 24 * time.Hour, fanOut: 2 + rnd.IntN(4), page: 2 + rnd.IntN(4), text: 1 << (9 + rnd.IntN(6)), batch: 1 + rnd.IntN(4)}
	}
	var stored tid.TID
	if w.packed {
		// Also while it is read.
		w.feed.BeforeStep(func(tid.TID) {
			if rnd.IntN(40) == 0 {
				w.pack(rnd)
			}
			if rnd.IntN(40) == 0 {
				w.feed.Commit(feedtest.Transaction{Description: "while it is read"})
			}
		})
	}
	w.change(rnd.IntN(60))
	for range 6 {
		kill := 1 + rnd.IntN(120)
		after := rnd.IntN(2) == 0
		faulty := storetest.NewFaulty(w.store, func(_ context.Context, c storetest.Call) storetest.Fault {
			switch {
			case c.N > kill:
				return storetest.Fault{Err: fmt.Errorf("killed: %w", storetest.ErrFault)}
			case c.N == kill:
				return storetest.Fault{Err: fmt.Errorf("killed: %w", storetest.ErrFault), After: after}
			}
			switch rnd.IntN(40) {
			case 0:
				return storetest.Fault{Err: storetest.Temporary}
			case 1:
				return storetest.Fault{Err: storetest.Temporary, After: true}
			case 2:
				return storetest.Fault{Delay: time.Duration(rnd.IntN(20)) * time.Second}
			case 3:
				return storetest.Fault{Late: time.Duration(rnd.IntN(20)) * time.Second}
			case 4:
				if rnd.IntN(5) == 0 {
					return storetest.Fault{Delay: time.Duration(rnd.IntN(20)) * time.Hour}
				}
			}
			return storetest.Fault{}
		})
		wr, err := w.open(t.Context(), store.Retry(faulty, store.RetryOptions{}), w.dir)
		if err == nil {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			how := rnd.IntN(5)
			go func() {
				switch how {
				case 0:
					done <- wr.Rebase(ctx)
				case 1:
					done <- wr.Snapshot(ctx, w.last()-tid.TID(rnd.IntN(1<<30)), "")
				case 2:
					done <- wr.Snapshot(ctx, 0, "label")
				default:
					done <- wr.Follow(ctx)
				}
			}()
			for range 1 + rnd.IntN(12) {
				time.Sleep(time.Duration(rnd.IntN(5000)) * time.Millisecond)
				w.change(rnd.IntN(4))
				if w.packed && rnd.IntN(6) == 0 {
					w.pack(rnd)
				}
				if rnd.IntN(15) == 0 {
					w.feed.Fail(fmt.Errorf("the test: %w", txn.ErrUnavailable))
					time.Sleep(time.Duration(rnd.IntN(30)) * time.Second)
					w.feed.Fail(nil)
				}
			}
			if rnd.IntN(3) == 0 {
				cancel()
			} else {
				time.AfterFunc(48*time.Hour, cancel)
			}
			err = <-done
			cancel()
			stored = max(stored, acked(wr))
			wr.Close()
		}
		if err != nil && !isAny(err, storetest.ErrFault, context.Canceled, context.DeadlineExceeded, txn.ErrUnavailable) {
			t.Fatal(err)
		}
		w.check(stored)
		if rnd.IntN(5) == 0 {
			if err := os.RemoveAll(w.dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.feed.BeforeStep(nil)
	wr := w.must()
	defer wr.Close()
	if err := wr.Snapshot(t.Context(), 0, "end"); err != nil {
		t.Fatal(err)
	}
	s := w.check(w.last())
	if err := s.Exact(s.Head()); err != nil {
		t.Errorf("the last transaction: %v", err)
	}
	if s.Manifest.Label != "end" {
		t.Errorf("label %q", s.Manifest.Label)
	}
	var holes []snapshot.Hole
	if w.packed {
		holes = s.Holes()
	}
	t.Logf("%d transactions, %d lines, manifest %d, tail %d, holes %v", s.Manifest.Txns, len(s.Manifest.Items), s.Manifest.Seq, s.Manifest.Tail, holes)
}

// pack packs the source at some time until now.
func (w *world) pack(rnd *rand.Rand) {
	if last := w.last(); last > 0 {
		w.feed.Pack(last - tid.TID(rnd.Int64N(1<<31)))
	}
}
