package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
)

var quick = store.RetryOptions{Base: time.Microsecond, Max: time.Microsecond}

// Each wrapper keeps every promise of what is in it. Over calls of which a third
// fails, before or after their effect or in the middle of a body, Retry still does.
func TestWrappersAreStores(t *testing.T) {
	for _, tt := range []struct {
		name string
		wrap func(store.Store) store.Store
	}{
		{"Retry", func(s store.Store) store.Store { return store.Retry(s, quick) }},
		{"Count", func(s store.Store) store.Store { return store.Count(s) }},
		{"Limit", func(s store.Store) store.Store { return store.Limit(s, 10<<30, 10<<30) }},
		{"Faulty", func(s store.Store) store.Store {
			return storetest.NewFaulty(s, func(context.Context, storetest.Call) storetest.Fault { return storetest.Fault{} })
		}},
		{"all", func(s store.Store) store.Store {
			return store.Retry(store.Count(store.Limit(s, 10<<30, 10<<30)), quick)
		}},
		{"Retry over faults", func(s store.Store) store.Store {
			var mu sync.Mutex
			r := rand.New(rand.NewPCG(1, 2))
			return store.Retry(storetest.NewFaulty(s, func(context.Context, storetest.Call) storetest.Fault {
				mu.Lock()
				defer mu.Unlock()
				switch r.IntN(12) {
				case 0:
					return storetest.Fault{Err: storetest.Temporary}
				case 1:
					return storetest.Fault{Err: storetest.Temporary, After: true}
				case 2:
					return storetest.Fault{Cut: true}
				case 3:
					return storetest.Fault{Err: storetest.SlowDown}
				}
				return storetest.Fault{}
			}), quick)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			storetest.Suite{
				Open: func(*testing.T) store.Store {
					return tt.wrap(memstore.New(memstore.Options{Versioned: true}))
				},
				Lock: true, Versioned: true, Keys: 100,
			}.Run(t)
		})
	}
}

// What a store cannot do, a wrapper cannot either.
func TestWrappersOfPlainStore(t *testing.T) {
	s := store.Retry(store.Count(store.Limit(struct{ store.Store }{memstore.New(memstore.Options{})}, 0, 0)), quick)
	ctx := t.Context()
	_, err := store.GetRetention(ctx, s, "a", "")
	errs := []error{err, store.SetRetention(ctx, s, "a", "", store.Retention{}), store.DeleteVersions(ctx, s, []store.Version{{}})}
	_, _, err = store.GetVersion(ctx, s, "a", "1", 0, 1)
	errs = append(errs, err)
	for _, err := range store.Versions(ctx, s, "") {
		errs = append(errs, err)
	}
	if len(errs) != 5 {
		t.Errorf("%d errors, want 5", len(errs))
	}
	for _, err := range errs {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v, want errors.ErrUnsupported", err)
		}
	}
	if !store.Date(s).IsZero() {
		t.Error("a store without clock has a date")
	}
}

// Pauses double up to the greatest one, and a store may ask for a longer one.
func TestRetryPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bounds []time.Duration
		var failing error = &store.TemporaryError{Err: errors.New("busy")}
		s := store.Retry(storetest.NewFaulty(memstore.New(memstore.Options{}), func(context.Context, storetest.Call) storetest.Fault {
			return storetest.Fault{Err: failing}
		}), store.RetryOptions{Attempts: 12, Repeating: func(op, key string, attempt int, pause time.Duration, err error) {
			bounds = append(bounds, pause)
			if most := min(20*time.Second, 200*time.Millisecond<<(attempt-1)); pause >= most || !errors.Is(err, failing) || op != "put" || key != "a" {
				t.Errorf("attempt %d of %s %s: pause %v, want less than %v; %v", attempt, op, key, pause, most, err)
			}
		}})
		err := s.Put(t.Context(), "a", bytes.NewReader(nil), 0, store.PutOptions{Create: true})
		if !store.Temporary(err) || !strings.Contains(err.Error(), "12 attempts") || len(bounds) != 11 {
			t.Errorf("%v after %d pauses", err, len(bounds))
		}

		failing = &store.TemporaryError{Err: errors.New("busy"), After: time.Hour}
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Minute)
		defer cancel()
		s = store.Retry(storetest.NewFaulty(memstore.New(memstore.Options{}), func(_ context.Context, c storetest.Call) storetest.Fault {
			return storetest.Fault{Err: failing}
		}), store.RetryOptions{})
		_, _, err = s.Get(ctx, "a", 0, store.All)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "busy") || time.Since(begin) != 90*time.Minute {
			t.Errorf("after %v: %v, want the end of the context and the last error", time.Since(begin), err)
		}
	})
}

// A final error is not repeated.
func TestRetryFinalErrors(t *testing.T) {
	for _, final := range []error{store.ErrExists, store.ErrNotFound, store.ErrDenied, store.ErrLied, store.ErrChanged, &store.LockedError{Key: "a"}, errors.New("else")} {
		f := storetest.NewFaulty(memstore.New(memstore.Options{}), func(context.Context, storetest.Call) storetest.Fault {
			return storetest.Fault{Err: final}
		})
		s := store.Retry(f, quick)
		if err := s.Delete(t.Context(), []string{"a"}); !errors.Is(err, final) || f.Calls() != 1 {
			t.Errorf("%v after %d calls, want %v after 1", err, f.Calls(), final)
		}
		n := 0
		for _, err := range s.List(t.Context(), "", "") {
			if n++; !errors.Is(err, final) {
				t.Errorf("%v, want %v", err, final)
			}
		}
		if n != 1 || f.Calls() != 2 {
			t.Errorf("a list with %d steps after %d calls", n, f.Calls()-1)
		}
	}
}

// A create whose outcome was unknown has succeeded if the object has its bytes, and
// only then. Without such an attempt before it, ErrExists remains, whatever is there.
func TestRetryCreate(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789"), 20_000)
	for _, tt := range []struct {
		name    string
		there   []byte // before
		unknown bool   // first attempt
		after   bool   // it has an effect
		want    error
	}{
		{"own attempt", nil, true, true, nil},
		{"attempt without effect", nil, true, false, nil},
		{"another's with the same bytes", body, true, false, nil},
		{"another's with other bytes", bytes.ToLower(append(bytes.Clone(body[:len(body)-1]), 'x')), true, false, store.ErrExists},
		{"another's, shorter", body[:len(body)-1], true, false, store.ErrExists},
		{"another's, empty", []byte{}, true, false, store.ErrExists},
		{"known outcome", body, false, false, store.ErrExists},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := memstore.New(memstore.Options{})
			if tt.there != nil {
				storetest.Put(t, m, "a", tt.there)
			}
			f := storetest.FailAt(m, 0, storetest.Fault{})
			if tt.unknown {
				f = storetest.FailAt(m, 1, storetest.Fault{Err: storetest.Temporary, After: tt.after})
			}
			err := store.Retry(f, quick).Put(t.Context(), "a", bytes.NewReader(body), int64(len(body)), store.PutOptions{Create: true})
			if !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if got := storetest.Get(t, m, "a"); err == nil && !bytes.Equal(got, body) {
				t.Error("acknowledged, but not stored")
			}
		})
	}
}

// If it cannot be read whose object is there, the outcome stays unknown: it is
// neither acknowledged nor blamed on another writer.
func TestRetryCreateUnknown(t *testing.T) {
	f := storetest.NewFaulty(memstore.New(memstore.Options{}), func(_ context.Context, c storetest.Call) storetest.Fault {
		switch {
		case c.Op == "put" && c.N == 1:
			return storetest.Fault{Err: storetest.Temporary, After: true}
		case c.Op == "get":
			return storetest.Fault{Err: storetest.Temporary}
		}
		return storetest.Fault{}
	})
	o := quick
	o.Attempts = 3
	err := store.Retry(f, o).Put(t.Context(), "a", strings.NewReader("a"), 1, store.PutOptions{Create: true})
	if errors.Is(err, store.ErrExists) || !store.Temporary(err) {
		t.Errorf("%v, want a *TemporaryError that is not ErrExists", err)
	}
}

// A body goes on where it was cut, however often; not in another object.
func TestRetryBody(t *testing.T) {
	body := []byte(strings.Repeat("0123456789abcdef", 10_000))
	m := memstore.New(memstore.Options{})
	storetest.Put(t, m, "a", body)
	f := storetest.NewFaulty(m, func(_ context.Context, c storetest.Call) storetest.Fault { return storetest.Fault{Cut: c.N%7 > 0} })
	s := store.Retry(f, quick)
	for _, r := range [][2]int64{{0, store.All}, {17, 1000}, {5000, -1}, {500_000, -1}, {159_999, store.All}} {
		rc, info, err := s.Get(t.Context(), "a", r[0], r[1])
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		rc.Close()
		from, to := store.Span(r[0], r[1], info.Size)
		if err != nil || !bytes.Equal(got, body[from:to]) {
			t.Errorf("Get(%d, %d): %d bytes, %v, want [%d, %d)", r[0], r[1], len(got), err, from, to)
		}
	}
	if f.Fired() < 10 {
		t.Errorf("only %d faults", f.Fired())
	}
	rc, _, err := s.Get(t.Context(), "a", 0, store.All)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	other := bytes.ToUpper(body)
	if err := m.Put(t.Context(), "a", bytes.NewReader(other), int64(len(other)), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(rc)
	if err == nil || !strings.Contains(err.Error(), "changed") || !errors.Is(err, store.ErrChanged) || !bytes.HasPrefix(body, got) {
		t.Errorf("%d bytes, %v, want an error and no mixture", len(got), err)
	}
}

// A store that asks for fewer requests gets fewer at once, and more again later.
func TestRetryConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var running, most, slow int64
		s := store.Retry(storetest.NewFaulty(memstore.New(memstore.Options{}), func(context.Context, storetest.Call) storetest.Fault {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			running--
			if slow > 0 {
				slow--
				return storetest.Fault{Err: storetest.SlowDown}
			}
			return storetest.Fault{}
		}), store.RetryOptions{Concurrency: 8})
		burst := func(n int) int64 {
			most = 0
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					if err := s.Delete(t.Context(), []string{fmt.Sprint(i)}); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			return most
		}
		if n := burst(100); n != 8 {
			t.Errorf("%d calls at once, want 8", n)
		}
		slow = 40
		burst(5)
		if n := burst(3); n >= 8 {
			t.Errorf("%d calls at once after the store asked for fewer", n)
		}
		if n := burst(200); n != 8 {
			t.Errorf("%d calls at once after a while, want 8 again", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Delete(ctx, []string{"a"}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want context.Canceled", err)
		}
	})
}

// Bytes pass at the rate, not faster, whatever the number of calls; waiting ends with
// its context.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1 << 20
		m := memstore.New(memstore.Options{})
		s := store.Limit(m, rate, 2*rate)
		body := make([]byte, 4*rate)
		begin := time.Now()
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() { storetest.Put(t, s, fmt.Sprint(i), body) })
		}
		wg.Wait()
		if d := time.Since(begin); d < 7800*time.Millisecond || d > 8*time.Second {
			t.Errorf("8 s of uploads took %v", d)
		}
		begin = time.Now()
		storetest.Get(t, s, "0")
		if d := time.Since(begin); d < 1800*time.Millisecond || d > 2*time.Second {
			t.Errorf("2 s of downloads took %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		err := s.Put(ctx, "2", bytes.NewReader(body), int64(len(body)), store.PutOptions{})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		if keys := storetest.Keys(t, m, "", ""); !slices.Equal(keys, []string{"0", "1"}) {
			t.Errorf("stored: %q", keys)
		}
	})
}

func TestCount(t *testing.T) {
	f := storetest.FailAt(memstore.New(memstore.Options{}), 2, storetest.Fault{Err: storetest.Temporary})
	c := store.Count(f)
	s := store.Retry(c, quick)
	for i := range 1500 {
		storetest.Put(t, s, fmt.Sprint(i), make([]byte, 10))
	}
	storetest.Get(t, s, "7")
	if _, _, err := s.Get(t.Context(), "none", 0, 0); !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
	keys := storetest.Keys(t, s, "", "")
	storetest.Keys(t, s, "none", "")
	if err := s.Delete(t.Context(), keys); err != nil {
		t.Error(err)
	}
	if _, err := s.Retention(t.Context(), "none", ""); !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
	want := store.Stats{Puts: 1501, Gets: 2, Lists: 3, Deletes: 2, Others: 1, Failed: 3, Sent: 15_000, Received: 10}
	if got := c.Stats(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
