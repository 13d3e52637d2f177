package writer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	"github.com/neozodb/neo/cluster/txn"
)

func both(t *testing.T, f func(t *testing.T, encrypted bool)) {
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprintf("encrypted=%v", encrypted), func(t *testing.T) { f(t, encrypted) })
	}
}

// Snapshots of a growing history, with everything that merges: the history is the same, and the
// manifest stays small.
func TestSnapshots(t *testing.T) {
	both(t, func(t *testing.T, encrypted bool) {
		for seed := *firstSeed; seed < *firstSeed+3; seed++ {
			w := newWorld(t, seed, encrypted)
			for i := range 40 {
				w.change(1 + w.rnd.IntN(5))
				wr := w.must()
				if err := wr.Snapshot(t.Context(), 0, fmt.Sprint("run ", i)); err != nil {
					t.Fatal(err)
				}
				if got, want := acked(wr), w.last(); got != want {
					t.Fatalf("the head is %v, want %v", got, want)
				}
				wr.Close()
			}
			s := w.check(w.last())
			if s.Manifest.Label != "run 39" || len(s.Tails) > 0 {
				t.Errorf("label %q and %d tails after a snapshot", s.Manifest.Label, len(s.Tails))
			}
			pages, open, sealed := 0, 0, 0
			for _, i := range s.Manifest.Items {
				switch {
				case i.Page != nil:
					pages++
				case i.Segment.Offset() > 0:
					t.Errorf("line %s refers to a tail, though the spool is complete", i.Segment.Key)
				case i.Segment.Bytes < w.size/2:
					open++
				default:
					sealed++
				}
			}
			if pages == 0 || open > 12 {
				t.Errorf("%d pages, %d small segments, %d large ones", pages, open, sealed)
			}
		}
	})
}

func (w *world) last() tid.TID {
	last, err := w.feed.Full().LastTID(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return last
}

// A snapshot at a time has what was committed until then, also between two transactions.
func TestSnapshotAt(t *testing.T) {
	w := newWorld(t, 1, true)
	w.change(10)
	half := w.last()
	w.change(10)
	wr := w.must()
	if err := wr.Snapshot(t.Context(), half+1, "half"); err != nil {
		t.Fatal(err)
	}
	if s := w.check(half); s.Head() != half || s.Manifest.Label != "half" {
		t.Errorf("the head is %v, label %q, want %v", s.Head(), s.Manifest.Label, half)
	}
	if err := wr.Snapshot(t.Context(), half+1, ""); err != nil {
		t.Error(err)
	}
	if err := wr.Snapshot(t.Context(), half-1, ""); err != nil {
		t.Error(err)
	}
	if err := wr.Snapshot(t.Context(), half-1, "early"); err == nil || !strings.Contains(err.Error(), half.String()) {
		t.Errorf("a label for what was stored long ago: %v", err)
	}
	if err := wr.Snapshot(t.Context(), tid.Max, ""); err != nil {
		t.Error(err)
	}
	w.check(w.last())
}

// What is committed is acknowledged within an interval, in one tail per interval; an idle
// source has heartbeats.
func TestFollow(t *testing.T) {
	both(t, func(t *testing.T, encrypted bool) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1, encrypted)
			w.change(30)
			wr := w.must()
			defer wr.Close()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- wr.Follow(ctx) }()
			for range 100 {
				w.change(w.rnd.IntN(3))
				last := w.last()
				time.Sleep(time.Duration(w.rnd.IntN(2000)) * time.Millisecond)
				for _, wait := range []time.Duration{0, time.Second} {
					time.Sleep(wait)
					synctest.Wait()
					if acked(wr) >= last {
						break
					}
				}
				if acked(wr) < last {
					t.Fatalf("%v is not acknowledged after more than an interval, only %v", last, acked(wr))
				}
			}
			before := wr.Stats()
			time.Sleep(time.Hour)
			synctest.Wait()
			after := wr.Stats()
			if n := after.Heartbeats - before.Heartbeats; n != 12 {
				t.Errorf("%d heartbeats in an hour", n)
			}
			if age := time.Since(after.Asof); age > 5*time.Minute {
				t.Errorf("asof is %v old", age)
			}
			if after.Flushes > 102 || after.Manifests < after.Flushes/6 || after.Txns == 0 {
				t.Errorf("stats: %+v", after)
			}
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			w.check(w.last())
		})
	})
}

// An idle day gives a manifest, though there are few tails.
func TestDailyManifest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, true)
		w.setup = func(o *Options) { o.limits, o.Heartbeat = usual, time.Hour }
		w.change(3)
		wr := w.must()
		defer wr.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- wr.Follow(ctx) }()
		time.Sleep(72*time.Hour + time.Minute)
		synctest.Wait()
		if n := wr.Stats().Manifests; n != 3 {
			t.Errorf("%d manifests in three days, want 3", n)
		}
		cancel()
		<-done
	})
}

// A transaction larger than a segment is cut, committed by one tail, and whole again when it
// is read; small parts of it are not merged with others.
func TestCutTransaction(t *testing.T) {
	both(t, func(t *testing.T, encrypted bool) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 3, encrypted)
			w.size = 2 << 10
			slow := storetest.NewFaulty(w.store, func(_ context.Context, c storetest.Call) storetest.Fault {
				return storetest.Fault{Delay: time.Duration(w.rnd.IntN(3)) * time.Second}
			})
			for range 12 {
				w.change(12)
				wr, err := w.open(t.Context(), slow, w.dir)
				if err != nil {
					t.Fatal(err)
				}
				w.feed.BeforeStep(func(tid.TID) { time.Sleep(time.Second) })
				if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
					t.Fatal(err)
				}
				wr.Close()
			}
			w.check(w.last())
			cut := 0
			for n := int64(1); ; n++ {
				tail, err := w.repo.Repository.Tail(t.Context(), w.repo.Lineage, n)
				if errors.Is(err, store.ErrNotFound) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				for i, l := range tail.Segments {
					if l.After != l.Upto {
						continue
					}
					if cut++; i == 0 {
						t.Errorf("tail %d begins within transaction %v", n, l.Upto)
					}
				}
			}
			if cut == 0 {
				t.Error("no transaction was cut")
			}
		})
	})
}

// The state directory is lost: nothing else is. Segments stay as they are.
func TestStateLost(t *testing.T) {
	both(t, func(t *testing.T, encrypted bool) {
		w := newWorld(t, 4, encrypted)
		for i := range 20 {
			w.change(3)
			wr := w.must()
			if err := wr.chain.flush(t.Context(), w.last(), time.Now(), true); err != nil {
				t.Fatal(err)
			}
			if i%3 == 0 {
				if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
					t.Fatal(err)
				}
			}
			if err := wr.chain.quiesce(); err != nil {
				t.Fatal(err)
			}
			wr.Close()
			if i%5 == 1 {
				w.dir = t.TempDir()
			}
			w.check(w.last())
		}
	})
}

// Plaintexts in the spool that a power failure spoiled are found, and not merged.
func TestSpoolSpoiled(t *testing.T) {
	w := newWorld(t, 5, true)
	for i := range 12 {
		w.change(3)
		wr := w.must()
		if err := wr.chain.flush(t.Context(), w.last(), time.Now(), true); err != nil {
			t.Fatal(err)
		}
		if err := wr.chain.quiesce(); err != nil { // it has files in the spool too
			t.Fatal(err)
		}
		list, err := filepath.Glob(filepath.Join(w.dir, "spool", "*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			wr.Close()
			continue // the last one was sealed
		}
		name := list[w.rnd.IntN(len(list))]
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		switch i % 4 {
		case 3: // the segment of another line
			if b, err = os.ReadFile(list[w.rnd.IntN(len(list))]); err != nil {
				t.Fatal(err)
			}
		case 0:
			b[w.rnd.IntN(len(b))] ^= 1 << w.rnd.IntN(8)
		case 1:
			b = b[:w.rnd.IntN(len(b))]
		default:
			clear(b)
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // in the same process, else in the next one
			if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
				t.Fatal(err)
			}
		}
		if n := wr.Stats().Postponed; n > 0 {
			t.Error("a spoiled plaintext keeps the others from being merged")
		}
		wr.Close()
		w.check(w.last())
	}
}

// A full disk: what is small is still stored and acknowledged, and manifests are published;
// once there is room, merges go on.
func TestDiskFull(t *testing.T) {
	if os.Getuid() == 0 {
		t.Log("permissions do not stop root: the spool is replaced by a file instead")
	}
	w := newWorld(t, 6, true)
	wr := w.must()
	defer wr.Close()
	spool := filepath.Join(w.dir, "spool")
	step := func() {
		t.Helper()
		w.change(1)
		if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
			t.Fatal(err)
		}
		w.check(w.last())
	}
	step()
	step()
	if err := os.Rename(spool, spool+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(spool, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		step()
	}
	if wr.Stats().Postponed == 0 {
		t.Error("nothing was postponed")
	}
	if err := errors.Join(os.Remove(spool), os.Rename(spool+".away", spool)); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		step()
	}
	if n := len(w.check(0).Manifest.Items); n > 12 {
		t.Errorf("%d lines: nothing was merged", n)
	}
}

// A call that is stopped while a tail is stored leaves a writer that can go on: it finds out whether
// that was its own.
func TestStoppedWhileStoring(t *testing.T) {
	for _, effect := range []bool{false, true} {
		w := newWorld(t, 7, true)
		ctx, cancel := context.WithCancel(t.Context())
		faulty := storetest.NewFaulty(w.store, func(_ context.Context, c storetest.Call) storetest.Fault {
			if k, err := snapshot.ParseKey(c.Key); c.Op == "put" && err == nil && k.Kind == snapshot.KindTail && k.N == 3 && ctx.Err() == nil {
				return storetest.Fault{Err: storetest.Temporary, After: effect}
			}
			return storetest.Fault{}
		})
		stop := func(string, string, int, time.Duration, error) { cancel() }
		wr, err := w.open(t.Context(), store.Retry(faulty, store.RetryOptions{Repeating: stop}), w.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer wr.Close()
		for err == nil {
			w.change(1)
			err = wr.Snapshot(ctx, 0, "")
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		w.change(1)
		if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
			t.Errorf("effect %v: %v", effect, err)
		}
		w.check(w.last())
	}
}

// A source that is away while a lineage is filled is waited for, with pauses, whatever else ends
// meanwhile.
func TestRebaseWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8, true)
		w.change(60)
		ctx, cancel := context.WithCancel(t.Context())
		counted := &countedFeed{Feed: w.feed, stop: cancel}
		w.setup = func(o *Options) { o.Feed, o.Heartbeat = counted, time.Hour }
		wr := w.must()
		defer wr.Close()
		if err := wr.Snapshot(ctx, 0, ""); err != nil {
			t.Fatal(err)
		}
		var away sync.Once
		half := w.last() - 20<<26
		w.feed.BeforeStep(func(at tid.TID) {
			time.Sleep(time.Second) // manifests are published meanwhile
			if at > half {
				away.Do(func() {
					w.feed.Fail(fmt.Errorf("the test: %w", txn.ErrUnavailable))
					time.AfterFunc(time.Hour, func() { w.feed.Fail(nil) })
				})
			}
		})
		if err := wr.Rebase(ctx); err != nil {
			t.Fatalf("after %d questions: %v", counted.n.Load(), err)
		}
		w.check(w.last())
	})
}

// A keeper gives up what a rebase has stored when nothing was added to it for long, and may be deleting it: the rebase is begun
// again, and its lineage does not become current if that happens before its end.
func TestRebaseDoomed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8, true)
		w.change(60)
		wr := w.must()
		if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
			t.Fatal(err)
		}
		doom := func(id snapshot.ID) {
			now := time.Now().UTC().Truncate(time.Second)
			d := &snapshot.Doom{Repo: w.repo.Marker.ID, Created: now, Policy: 1, Objects: []snapshot.Doomed{{Key: snapshot.ManifestKey(id, 1), Why: "test"}}}
			b, err := d.Sign(w.repo.Keeper)
			if err != nil {
				t.Fatal(err)
			}
			w.repo.Put(snapshot.Key{Kind: snapshot.KindDoom, Time: now}.String(), b)
		}
		ctx, cancel := context.WithCancel(t.Context())
		w.feed.BeforeStep(func(tid.TID) {
			if _, ok := wr.Rebasing(); ok {
				cancel()
			}
		})
		if err := wr.Rebase(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		first, ok := wr.Rebasing()
		if err := wr.Close(); err != nil || !ok {
			t.Fatal(err)
		}
		doom(first)
		time.Sleep(time.Minute)
		wr = w.must()
		defer wr.Close()
		second := first
		var doomed sync.Once
		w.feed.BeforeStep(func(tid.TID) {
			if id, ok := wr.Rebasing(); ok && id != first {
				doomed.Do(func() {
					second = id
					doom(id)
				})
			}
		})
		if err := wr.Rebase(t.Context()); !errors.Is(err, ErrGivenUp) || second == first {
			t.Fatalf("%v; %v after %v", err, second, first)
		}
		if l, err := w.repo.Current(t.Context()); err != nil || l.K != 1 {
			t.Fatalf("%+v, %v", l, err)
		}
		if err := wr.Rebase(t.Context()); err != nil {
			t.Fatal(err)
		}
		l, err := w.repo.Current(t.Context())
		if err != nil || l.K != 2 || l.Lineage == first || l.Lineage == second {
			t.Fatalf("%+v, %v", l, err)
		}
		w.checkLineage(l.Lineage, w.last())
	})
}

// countedFeed stops what asks too often.
type countedFeed struct {
	feed.Feed
	n    atomic.Int64
	stop func()
}

func (f *countedFeed) Last(ctx context.Context) (tid.TID, time.Time, error) {
	if f.n.Add(1) > 5000 {
		f.stop()
	}
	return f.Feed.Last(ctx)
}

// A full disk and a large backlog: it is stored in small segments.
func TestDiskFullBacklog(t *testing.T) {
	w := newWorld(t, 9, true)
	w.size = 128 << 20
	w.setup = func(o *Options) { o.limits = usual }
	wr := w.must()
	defer wr.Close()
	spool := filepath.Join(w.dir, "spool")
	if err := errors.Join(os.Remove(spool), os.WriteFile(spool, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		data := make([]byte, 1<<20)
		for j := range data {
			data[j] = byte(w.rnd.Uint32())
		}
		w.feed.Put(tid.OID(i), string(data))
	}
	if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatal(err)
	}
	if n := len(w.check(w.last()).Manifest.Items); n < 4 || wr.chain.cutAt < 100<<20 {
		t.Errorf("%d segments, the next is cut at %d", n, wr.chain.cutAt)
	}
}

// A source that is empty has heartbeats, and later a history.
func TestEmptySource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10, true)
		wr := w.must()
		defer wr.Close()
		if err := wr.Snapshot(t.Context(), 0, "empty"); err != nil {
			t.Fatal(err)
		}
		w.check(0)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- wr.Follow(ctx) }()
		time.Sleep(time.Hour)
		w.change(3)
		time.Sleep(time.Minute)
		cancel()
		<-done
		if s := wr.Stats(); s.Heartbeats < 11 || s.Head != w.last() {
			t.Errorf("%+v", s)
		}
		w.check(w.last())
	})
}

// A second process cannot use the state directory.
func TestBusy(t *testing.T) {
	w := newWorld(t, 1, false)
	wr := w.must()
	if _, err := w.open(t.Context(), w.store, w.dir); !errors.Is(err, ErrBusy) {
		t.Errorf("a second writer: %v", err)
	}
	wr.Close()
	w.must().Close()
}

// Objects are locked as long as they are to stay.
func TestLock(t *testing.T) {
	w := newWorld(t, 1, true)
	w.setup = func(o *Options) { o.Lock, o.LockDays = store.Governance, 35 }
	for range 10 {
		w.change(5)
		wr := w.must()
		if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
			t.Fatal(err)
		}
		wr.Close()
	}
	seen := map[bool]int{}
	for info, err := range w.store.List(t.Context(), w.repo.Lineage.String(), "") {
		if err != nil {
			t.Fatal(err)
		}
		k, err := snapshot.ParseKey(info.Key)
		if err != nil {
			t.Fatal(err)
		}
		if k.Kind == snapshot.KindManifest && k.N == 1 {
			continue // of init
		}
		r, err := w.store.Retention(t.Context(), info.Key, "")
		if err != nil || r.Mode != store.Governance {
			t.Fatalf("%s: retention %+v, %v", info.Key, r, err)
		}
		short := time.Until(r.Until) < 8*24*time.Hour
		seen[short]++
		if (k.Kind == snapshot.KindTail || k.Kind == snapshot.KindManifest) != short && k.Kind != snapshot.KindSegment {
			t.Errorf("%s: locked until %v", info.Key, r.Until)
		}
	}
	if seen[true] == 0 || seen[false] == 0 {
		t.Errorf("locked for long and for short: %v", seen)
	}
}

// Whatever fails once, for good or for a while, before or after it had its effect: what was
// acknowledged is stored, and the next start goes on.
func TestKilledAtEachCall(t *testing.T) {
	for _, tt := range []struct {
		name   string
		rebase bool
	}{{"follow", false}, {"rebase", true}} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s after=%v", tt.name, after), func(t *testing.T) {
				for n := 1; ; n++ {
					if !killAt(t, n, after, tt.rebase) {
						t.Logf("%d calls", n-1)
						return
					}
				}
			})
		}
	}
}

func killAt(t *testing.T, n int, after, rebase bool) bool {
	w := newWorld(t, uint64(n%3)+10, n%2 == 0)
	faulty := storetest.DieAt(w.store, n, after)
	var stored tid.TID
	run := func() error {
		wr, err := w.open(t.Context(), faulty, w.dir)
		if err != nil {
			return err
		}
		defer wr.Close()
		for i := range 7 {
			w.change(2 + i)
			err := wr.Snapshot(t.Context(), 0, "")
			stored = max(stored, acked(wr))
			if err != nil {
				return err
			}
		}
		if rebase {
			err := wr.Rebase(t.Context())
			stored = max(stored, acked(wr))
			if err != nil {
				return err
			}
			w.change(3)
			err = wr.Snapshot(t.Context(), 0, "")
			stored = max(stored, acked(wr))
			return err
		}
		return nil
	}
	err := run()
	if err != nil && !errors.Is(err, storetest.ErrFault) {
		t.Fatalf("call %d: %v", n, err)
	}
	w.check(stored)
	if n%5 == 0 {
		w.dir = t.TempDir() // the host is lost
	}
	w.change(2)
	wr := w.must()
	defer wr.Close()
	if rebase && n%2 == 0 {
		if err := wr.Rebase(t.Context()); err != nil {
			t.Fatalf("after call %d: %v", n, err)
		}
	}
	if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatalf("after call %d: %v", n, err)
	}
	w.check(w.last())
	return faulty.Fired() > 0
}

// Progress tells of a head only when it is acknowledged.
func TestProgressHead(t *testing.T) {
	w := newWorld(t, 11, true)
	var wr *Writer
	var told []Progress
	w.setup = func(o *Options) {
		o.Progress = func(p Progress) {
			if head := wr.Stats().Head; p.Head != head {
				t.Errorf("head %v, %v is acknowledged", p.Head, head)
			}
			told = append(told, p)
		}
	}
	w.feed.Put(1, "data")
	w.feed.Put(2, "data")
	wr = w.must()
	defer wr.Close()
	if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatal(err)
	}
	if n := len(told); n != 3 || told[1].Head != 0 || told[1].TID != w.last() || told[2].Head != w.last() || told[2].Txns != 2 {
		t.Errorf("told %+v", told)
	}
}

// However long a source is not flushed, what is small is stored behind one tail.
func TestIntervalAboveHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, true)
		w.setup = func(o *Options) { o.Interval, o.Heartbeat, o.limits = 7*time.Minute, 5*time.Minute, usual }
		wr := w.must()
		defer wr.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Hour)
		defer cancel()
		done := make(chan error)
		go func() { done <- wr.Follow(ctx) }()
		for range 4 * 60 {
			time.Sleep(time.Minute)
			w.feed.Put(1, "data")
		}
		<-done
		s := wr.Stats()
		if s.Flushes < 30 || s.Objects != s.Flushes+s.Heartbeats {
			t.Errorf("%d flushes and %d heartbeats made %d objects", s.Flushes, s.Heartbeats, s.Objects)
		}
		w.check(w.last())
	})
}

// What a snapshot adds is stored once.
func TestSnapshotStoresOnce(t *testing.T) {
	w := newWorld(t, 1, true)
	w.size = 1 << 20
	w.setup = func(o *Options) { o.limits = usual }
	for range 5 {
		data := make([]byte, 20<<10)
		for i := range data {
			data[i] = byte(w.rnd.Uint32())
		}
		w.feed.Put(1, string(data))
		wr := w.must()
		if err := wr.Snapshot(t.Context(), 0, ""); err != nil {
			t.Fatal(err)
		}
		if s := wr.Stats(); s.Stored > 30<<10 || s.Objects != 3 {
			t.Errorf("%d objects of %d bytes were stored for %d bytes of data", s.Objects, s.Stored, len(data))
		}
		wr.Close()
	}
	w.check(w.last())
}

// What is merged, and so stays, is compressed harder than what is read, unless a level is set.
func TestLevel(t *testing.T) {
	stored := func(level snapshot.Level) (bytes int64) {
		w := newWorld(t, 5, false)
		w.size = 1 << 20
		w.setup = func(o *Options) { o.Level = level }
		var text strings.Builder
		for i := range 20_000 {
			fmt.Fprintf(&text, "word%d ", i*i%997)
		}
		for i := range 10 {
			w.feed.Put(tid.OID(i), text.String()[i*100:i*100+5000])
			wr := w.must()
			err := wr.chain.flush(t.Context(), w.last(), time.Now(), true)
			if err = errors.Join(err, wr.chain.publishNow(t.Context(), ""), wr.Close()); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range w.check(w.last()).Manifest.Items {
			bytes += i.Segment.Bytes
		}
		return bytes
	}
	fastest, def, none := stored(snapshot.Fastest), stored(snapshot.Default), stored("")
	if none >= fastest || none < def {
		t.Errorf("stored: %d bytes with level fastest, %d with default, %d without", fastest, def, none)
	}
}
