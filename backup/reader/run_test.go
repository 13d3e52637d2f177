package reader

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
)

func runOf(t testing.TB, of []segmentID, list []located) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := newRunWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if err := w.add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.close(of); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openedRun(t testing.TB, b []byte) *run {
	t.Helper()
	r, err := openRun(bytes.NewReader(b), int64(len(b)), "run")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// randomEntries returns sorted entries of some segments.
func randomEntries(rnd *rand.Rand, n, objects, segments int) (list []located) {
	for range n {
		list = append(list, located{snapshot.Entry{OID: tid.OID(rnd.IntN(objects)), TID: tid.TID(1 + rnd.IntN(4*n)), Pos: rnd.Int64N(1 << 30), Kind: snapshot.EntryKind(rnd.IntN(3))}, rnd.IntN(segments)})
	}
	slices.SortFunc(list, func(a, b located) int { return order(a.Entry, b.Entry) })
	return slices.CompactFunc(list, func(a, b located) bool { return order(a.Entry, b.Entry) == 0 })
}

func ids(n int) (of []segmentID) {
	for i := range n {
		of = append(of, segmentID{snapshot.Hash{byte(i), 1}, tid.TID(i % 2)})
	}
	return of
}

func collect(t testing.TB, seq iter.Seq2[located, error]) (list []located) {
	t.Helper()
	for e, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}

// A run has what was written, finds what a list would, and is the same as several merged.
func TestRun(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		list := randomEntries(rnd, rnd.IntN(20_000), 1+rnd.IntN(3000), 5)
		r := openedRun(t, runOf(t, ids(5), list))
		if got := collect(t, r.entries(0)); !slices.Equal(got, list) || !slices.Equal(r.of, ids(5)) {
			t.Fatalf("seed %d: %d entries, want %d", seed, len(got), len(list))
		}
		c := newCache(t.Context(), 1<<rnd.IntN(22), time.Minute, new(sync.WaitGroup))
		for range 200 {
			oid, at := tid.OID(rnd.IntN(3100)), tid.TID(1+rnd.IntN(90_000))
			if len(list) > 0 && rnd.IntN(2) == 0 {
				e := list[rnd.IntN(len(list))]
				oid, at = e.OID, e.TID+tid.TID(rnd.IntN(3))-1
			}
			var before, after *located
			for i := range list {
				switch e := &list[i]; {
				case e.OID != oid:
				case e.TID < at && before == nil:
					before = e
				case e.TID > at:
					after = e
				}
			}
			got, ok, err := r.find(t.Context(), c, oid, at)
			if at > 0 && (err != nil || ok != (before != nil) || ok && got != *before) {
				t.Fatalf("seed %d: object %v before %v: %+v, %v, %v, want %+v", seed, oid, at, got, ok, err, before)
			}
			got, ok, err = r.next(t.Context(), c, oid, at)
			if err != nil || ok != (after != nil) || ok && got != *after {
				t.Fatalf("seed %d: object %v after %v: %+v, %v, %v, want %+v", seed, oid, at, got, ok, err, after)
			}
		}
		from := tid.OID(rnd.IntN(3000))
		i, _ := slices.BinarySearchFunc(list, from, func(e located, oid tid.OID) int { return order(e.Entry, snapshot.Entry{OID: oid, TID: tid.Invalid}) })
		if got := collect(t, r.entries(from)); !slices.Equal(got, list[i:]) {
			t.Fatalf("seed %d: %d entries from %v, want %d", seed, len(got), from, len(list)-i)
		}
		// The same, as those of each segment and merged again.
		lists, base := make([][]located, 5), make([]int, 5)
		for _, e := range list {
			lists[e.segment] = append(lists[e.segment], located{Entry: e.Entry})
		}
		var sources []iter.Seq2[located, error]
		for i, l := range lists {
			base[i] = i
			sources = append(sources, openedRun(t, runOf(t, ids(1), l)).entries(0))
		}
		if got := collect(t, merged(sources, base)); !slices.Equal(got, list) {
			t.Fatalf("seed %d: %d entries merged, want %d", seed, len(got), len(list))
		}
	}
}

// Of a revision in two segments, the later one counts.
func TestMergedTwice(t *testing.T) {
	e := snapshot.Entry{OID: 1, TID: 5}
	later := e
	later.Pos = 7
	one := func(e snapshot.Entry) iter.Seq2[located, error] {
		return func(yield func(located, error) bool) { yield(located{Entry: e}, nil) }
	}
	if got := collect(t, merged([]iter.Seq2[located, error]{one(e), one(later)}, []int{0, 1})); len(got) != 1 || got[0].Pos != 7 || got[0].segment != 1 {
		t.Errorf("%+v", got)
	}
}

func FuzzRun(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 1))
	f.Add(runOf(f, ids(3), randomEntries(rnd, 50, 10, 3)))
	f.Add(runOf(f, ids(1), randomEntries(rnd, 5000, 1000, 1)))
	f.Add(runOf(f, nil, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := openRun(bytes.NewReader(b), int64(len(b)), "run")
		if err != nil {
			return
		}
		c := newCache(context.Background(), 1<<20, time.Minute, new(sync.WaitGroup))
		for e, err := range r.entries(0) {
			if err != nil {
				if !errors.Is(err, errRun) {
					t.Errorf("%v", err)
				}
				return
			}
			if e.segment >= len(r.of) {
				t.Fatalf("%+v", e)
			}
			if _, _, err := r.find(context.Background(), c, e.OID, e.TID+1); err != nil && !errors.Is(err, errRun) {
				t.Fatal(err)
			}
			if _, _, err := r.next(context.Background(), c, e.OID, e.TID-1); err != nil && !errors.Is(err, errRun) {
				t.Fatal(err)
			}
		}
	})
}

func FuzzEntries(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 1))
	r := openedRun(f, runOf(f, ids(3), randomEntries(rnd, 50, 10, 3)))
	b := make([]byte, r.blocks[0].len)
	if _, err := r.src.ReadAt(b, r.blocks[0].at); err != nil {
		f.Fatal(err)
	}
	b, err := blocks().DecodeAll(b, make([]byte, 0, runBlock))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseEntries(b, 3)
		if err == nil && len(list) == 0 {
			t.Error("no entry")
		}
		for i, e := range list {
			if i > 0 && order(list[i-1].Entry, e.Entry) >= 0 || e.segment > 2 || e.Pos < 0 || e.Kind > snapshot.Copied {
				t.Errorf("entry %d: %+v", i, e)
			}
		}
	})
}

// What several ask for is read once. A caller may leave before, and reading ends with the last one.
func TestCache(t *testing.T) {
	var wg sync.WaitGroup
	c := newCache(t.Context(), 10, time.Minute, &wg)
	begun, ended := make(chan struct{}), make(chan error, 1)
	key := cacheKey{of: t}
	reading := func(ctx context.Context) (any, int64, error) {
		close(begun)
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, 0, ctx.Err()
	}
	first, leave1 := context.WithCancel(t.Context())
	second, leave2 := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() { _, err := c.get(first, key, reading); errs <- err }()
	<-begun
	go func() {
		_, err := c.get(second, key, func(context.Context) (any, int64, error) { t.Error("read twice"); return nil, 0, nil })
		errs <- err
	}()
	for {
		c.mu.Lock()
		n := c.items[key].waiters
		c.mu.Unlock()
		if n == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	leave1()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-ended:
		t.Error("the reading has ended, but one waits for it")
	case <-time.After(20 * time.Millisecond):
	}
	leave2()
	<-errs
	<-ended
	for i := range 20 { // the limit is kept
		v, err := c.get(t.Context(), cacheKey{of: t, off: int64(i)}, func(context.Context) (any, int64, error) { return i, 3, nil })
		if v != i || err != nil {
			t.Errorf("%v, %v", v, err)
		}
	}
	wg.Wait()
	if c.used > 10 || len(c.items) != 3 || !c.has(cacheKey{of: t, off: 19}) {
		t.Errorf("%d bytes in %d items", c.used, len(c.items))
	}
}
