package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/neozodb/neo/backup/store"
)

// ErrFault is the cause of each error that [Faulty] makes by itself.
var ErrFault = errors.New("injected fault")

// Call is one call to a store.
type Call struct {
	N   int    // from 1
	Op  string // put, get, list, delete, retention, retain, versions
	Key string // or prefix, or the first of several keys
}

// Fault is what happens to a call. The zero value is none.
type Fault struct {
	// Err is the error that the call returns instead of its answer.
	Err error
	// After lets the call have its effect before Err is returned.
	After bool
	// Cut ends the body of a Get after half of its bytes with Err, the call itself
	// succeeds; a list ends after half of what it has.
	Cut bool
	// Flip inverts one bit in the middle of the body that is stored or read.
	Flip bool
	// Delay is how long the call takes longer.
	Delay time.Duration
	// Late hides from a list what was put through the same Faulty less long ago.
	Late time.Duration
}

// Temporary is the error of a store that is out of order for a while.
var Temporary error = &store.TemporaryError{Err: ErrFault}

// SlowDown is the error of a store that has too many requests.
var SlowDown error = &store.TemporaryError{Err: fmt.Errorf("slow down: %w", ErrFault), SlowDown: true}

// Faulty is a store in which calls fail; create it with [NewFaulty].
type Faulty struct {
	store.Wrapped
	next func(context.Context, Call) Fault

	mu    sync.Mutex
	n     int
	put   map[string]time.Time
	fired int
}

// NewFaulty returns s with faults: next is asked before each call, and may wait. It
// is called by one goroutine at a time only if the calls are.
func NewFaulty(s store.Store, next func(context.Context, Call) Fault) *Faulty {
	return &Faulty{Wrapped: store.Wrapped{Store: s}, next: next, put: map[string]time.Time{}}
}

// FailAt returns s with one fault, in its n-th call from 1 on. Whether it happened,
// [Faulty.Fired] tells: a test tries n = 1, 2, … until it did not.
func FailAt(s store.Store, n int, f Fault) *Faulty {
	return NewFaulty(s, func(_ context.Context, c Call) Fault {
		if c.N == n {
			return f
		}
		return Fault{}
	})
}

// DieAt returns s whose calls all fail from the n-th on, as those of a process that
// was killed there; with after, the n-th still has its effect.
func DieAt(s store.Store, n int, after bool) *Faulty {
	return NewFaulty(s, func(_ context.Context, c Call) Fault {
		if c.N >= n {
			return Fault{Err: fmt.Errorf("killed at call %d: %w", n, ErrFault), After: after && c.N == n}
		}
		return Fault{}
	})
}

// Calls returns the number of calls so far.
func (f *Faulty) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// Fired returns the number of calls so far that had a fault.
func (f *Faulty) Fired() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// begin counts a call and returns its fault.
func (f *Faulty) begin(ctx context.Context, op, key string) (Fault, error) {
	f.mu.Lock()
	f.n++
	c := Call{f.n, op, key}
	f.mu.Unlock()
	fault := f.next(ctx, c)
	if fault != (Fault{}) {
		f.mu.Lock()
		f.fired++
		f.mu.Unlock()
	}
	if fault.Delay > 0 {
		timer := time.NewTimer(fault.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fault, fmt.Errorf("%s %s: %w", op, key, ctx.Err())
		}
	}
	if fault.Err != nil && !fault.After && !fault.Cut {
		return fault, fmt.Errorf("%s %s: %w", op, key, fault.Err)
	}
	return fault, nil
}

// end returns the error of a call that had its effect.
func (f Fault) end(op, key string, err error) error {
	if err == nil && f.Err != nil && f.After {
		return fmt.Errorf("%s %s: %w", op, key, f.Err)
	}
	return err
}

// Put implements [store.Store].
func (f *Faulty) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o store.PutOptions) error {
	fault, err := f.begin(ctx, "put", key)
	if err != nil {
		return err
	}
	if fault.Flip && size > 0 {
		b := make([]byte, size)
		if _, err := io.ReadFull(io.NewSectionReader(body, 0, size), b); err != nil {
			return err
		}
		b[size/2] ^= 1
		body = bytes.NewReader(b)
		o.SHA256 = [32]byte{} // nothing notices
	}
	err = f.Store.Put(ctx, key, body, size, o)
	if err == nil {
		f.mu.Lock()
		f.put[key] = time.Now()
		f.mu.Unlock()
	}
	return fault.end("put", key, err)
}

// Get implements [store.Store].
func (f *Faulty) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, store.Info, error) {
	return f.get(ctx, key, func() (io.ReadCloser, store.Info, error) { return f.Store.Get(ctx, key, off, n) })
}

// GetVersion implements [store.Versioner].
func (f *Faulty) GetVersion(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, store.Info, error) {
	return f.get(ctx, key, func() (io.ReadCloser, store.Info, error) {
		return f.Wrapped.GetVersion(ctx, key, version, off, n)
	})
}

func (f *Faulty) get(ctx context.Context, key string, get func() (io.ReadCloser, store.Info, error)) (io.ReadCloser, store.Info, error) {
	fault, err := f.begin(ctx, "get", key)
	if err != nil {
		return nil, store.Info{}, err
	}
	r, info, err := get()
	if err = fault.end("get", key, err); err != nil {
		if r != nil {
			r.Close()
		}
		return nil, store.Info{}, err
	}
	if !fault.Cut && !fault.Flip {
		return r, info, nil
	}
	b, err := io.ReadAll(r)
	r.Close()
	if err != nil {
		return nil, store.Info{}, err
	}
	if fault.Flip && len(b) > 0 {
		b[len(b)/2] ^= 1
	}
	if !fault.Cut {
		return io.NopCloser(bytes.NewReader(b)), info, nil
	}
	if fault.Err == nil {
		fault.Err = Temporary
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(b[:len(b)/2]), broken{fmt.Errorf("read %s: %w", key, fault.Err)})), info, nil
}

// broken is a reader that fails.
type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// List implements [store.Store].
func (f *Faulty) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		fault, err := f.begin(ctx, "list", prefix)
		if err != nil {
			yield(store.Info{}, err)
			return
		}
		var list []store.Info
		for info, err := range f.Store.List(ctx, prefix, after) {
			if err != nil {
				yield(store.Info{}, err)
				return
			}
			f.mu.Lock()
			late := fault.Late > 0 && time.Since(f.put[info.Key]) < fault.Late
			f.mu.Unlock()
			if !late {
				list = append(list, info)
			}
		}
		if fault.Cut {
			list = list[:len(list)/2]
		}
		for _, info := range list {
			if !yield(info, nil) {
				return
			}
		}
		if fault.Cut && fault.Err == nil {
			fault.Err = Temporary
		}
		if fault.Err != nil {
			yield(store.Info{}, fmt.Errorf("list %s: %w", prefix, fault.Err))
		}
	}
}

// Delete implements [store.Store].
func (f *Faulty) Delete(ctx context.Context, keys []string) error {
	first := ""
	if len(keys) > 0 {
		first = keys[0]
	}
	fault, err := f.begin(ctx, "delete", first)
	if err != nil {
		return err
	}
	return fault.end("delete", first, f.Store.Delete(ctx, keys))
}

// DeleteVersions implements [store.Versioner].
func (f *Faulty) DeleteVersions(ctx context.Context, versions []store.Version) error {
	first := ""
	if len(versions) > 0 {
		first = versions[0].Key
	}
	fault, err := f.begin(ctx, "delete", first)
	if err != nil {
		return err
	}
	return fault.end("delete", first, f.Wrapped.DeleteVersions(ctx, versions))
}

// Versions implements [store.Versioner].
func (f *Faulty) Versions(ctx context.Context, prefix string) iter.Seq2[store.Version, error] {
	return func(yield func(store.Version, error) bool) {
		fault, err := f.begin(ctx, "versions", prefix)
		if err != nil {
			yield(store.Version{}, err)
			return
		}
		var list []store.Version
		for v, err := range f.Wrapped.Versions(ctx, prefix) {
			if err != nil {
				yield(store.Version{}, err)
				return
			}
			list = append(list, v)
		}
		if fault.Cut {
			list = list[:len(list)/2]
			if fault.Err == nil {
				fault.Err = Temporary
			}
		}
		for _, v := range list {
			if !yield(v, nil) {
				return
			}
		}
		if fault.Err != nil {
			yield(store.Version{}, fmt.Errorf("versions of %s: %w", prefix, fault.Err))
		}
	}
}

// Retention implements [store.Retainer].
func (f *Faulty) Retention(ctx context.Context, key, version string) (store.Retention, error) {
	fault, err := f.begin(ctx, "retention", key)
	if err != nil {
		return store.Retention{}, err
	}
	r, err := f.Wrapped.Retention(ctx, key, version)
	return r, fault.end("retention", key, err)
}

// Retain implements [store.Retainer].
func (f *Faulty) Retain(ctx context.Context, key, version string, r store.Retention) error {
	fault, err := f.begin(ctx, "retain", key)
	if err != nil {
		return err
	}
	return fault.end("retain", key, f.Wrapped.Retain(ctx, key, version, r))
}
