package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"sync"
	"time"
)

// RetryOptions say how calls are repeated. A zero field takes the documented default.
type RetryOptions struct {
	Base     time.Duration // greatest first pause, doubled with each further one; default: 200 ms
	Max      time.Duration // greatest pause; default: 20 s
	Attempts int           // of a call; default: until its context ends
	// Concurrency is how many calls run at once, as long as the store does not
	// ask for fewer; default: 128. Reading a body is no call.
	Concurrency int
	// Repeating, if set, is told of each call that will be repeated after a pause.
	Repeating func(op, key string, attempt int, pause time.Duration, err error)
}

// Retrying is a store that repeats calls; create it with [Retry].
type Retrying struct {
	Wrapped
	o    RetryOptions
	gate *gate
}

// Retry returns s such that a call that ends with a *[TemporaryError] is repeated
// after a random pause. A store that asks for fewer requests gets half as many at
// once, and then slowly more again.
//
//   - A create that ends with ErrExists after an attempt whose outcome was unknown
//     has succeeded if what is stored has the same bytes: it was that attempt.
//   - A body goes on at the byte reached; if the object is not the same any more, it
//     ends with ErrChanged.
//   - A list goes on after the last key.
//
// An error after the last attempt still is a *TemporaryError: a Put may have had
// its effect.
func Retry(s Store, o RetryOptions) *Retrying {
	if o.Base <= 0 {
		o.Base = 200 * time.Millisecond
	}
	if o.Max <= 0 {
		o.Max = 20 * time.Second
	}
	if o.Concurrency <= 0 {
		o.Concurrency = 128
	}
	return &Retrying{Wrapped{s}, o, newGate(o.Concurrency)}
}

// do calls f until it does not fail for a while only.
func (r *Retrying) do(ctx context.Context, op, key string, f func() error) error {
	for attempt := 1; ; attempt++ {
		if err := r.gate.enter(ctx); err != nil {
			return &KeyError{Op: op, Key: key, Err: err}
		}
		err := f()
		r.gate.leave(err)
		if err == nil {
			return nil
		}
		if err := r.pause(ctx, op, key, attempt, err); err != nil {
			return err
		}
	}
}

// pause returns nil after a pause if the call that ended with err is to be repeated,
// else its error.
func (r *Retrying) pause(ctx context.Context, op, key string, attempt int, err error) error {
	t, ok := errors.AsType[*TemporaryError](err)
	if !ok {
		return err
	}
	if attempt == r.o.Attempts {
		return fmt.Errorf("%w (after %d attempts)", err, attempt)
	}
	pause := r.o.Max
	if shift := attempt - 1; shift < 30 {
		pause = min(pause, r.o.Base<<shift)
	}
	pause = max(rand.N(pause), t.After)
	if r.o.Repeating != nil {
		r.o.Repeating(op, key, attempt, pause, err)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w; the last of %d attempts: %w", context.Cause(ctx), attempt, err)
	}
}

// Put implements [Store].
func (r *Retrying) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o PutOptions) error {
	unknown := false
	err := r.do(ctx, "put", key, func() error {
		err := r.Store.Put(ctx, key, body, size, o)
		unknown = unknown || Temporary(err)
		return err
	})
	if !unknown || !errors.Is(err, ErrExists) {
		return err
	}
	same, e := r.stored(ctx, key, body, size)
	switch {
	case e != nil:
		return fmt.Errorf("put %s: it exists, from an earlier attempt or another writer: %w", key, e)
	case same:
		return nil
	}
	return err
}

// stored reports whether an object has the bytes of a body.
func (r *Retrying) stored(ctx context.Context, key string, body io.ReaderAt, size int64) (bool, error) {
	rc, info, err := r.Get(ctx, key, 0, All)
	if err != nil {
		return false, err
	}
	defer rc.Close()
	if info.Size != size {
		return false, nil
	}
	want, got := make([]byte, min(size, 64<<10)), make([]byte, min(size, 64<<10))
	for off := int64(0); off < size; {
		k := min(int64(len(want)), size-off)
		if _, err := io.ReadFull(rc, got[:k]); err != nil {
			return false, err
		}
		if n, err := body.ReadAt(want[:k], off); int64(n) < k {
			return false, fmt.Errorf("read the body again: %w", err)
		}
		if !bytes.Equal(want[:k], got[:k]) {
			return false, nil
		}
		off += k
	}
	return true, nil
}

// Get implements [Store].
func (r *Retrying) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, Info, error) {
	return r.open(ctx, key, off, n, func(off, n int64) (io.ReadCloser, Info, error) {
		return r.Store.Get(ctx, key, off, n)
	})
}

// GetVersion implements [Versioner].
func (r *Retrying) GetVersion(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, Info, error) {
	return r.open(ctx, key, off, n, func(off, n int64) (io.ReadCloser, Info, error) {
		return r.Wrapped.GetVersion(ctx, key, version, off, n)
	})
}

// getFunc is Get of one object.
type getFunc func(off, n int64) (io.ReadCloser, Info, error)

func (r *Retrying) open(ctx context.Context, key string, off, n int64, get getFunc) (io.ReadCloser, Info, error) {
	var rc io.ReadCloser
	var info Info
	err := r.do(ctx, "get", key, func() (err error) {
		rc, info, err = get(off, n)
		return err
	})
	if err != nil {
		return nil, info, err
	}
	from, to := Span(off, n, info.Size)
	return &resuming{r: r, ctx: ctx, key: key, get: get, body: rc, info: info, off: from, end: to}, info, nil
}

// resuming is a body that goes on where it was cut.
type resuming struct {
	r        *Retrying
	ctx      context.Context
	key      string
	get      getFunc
	body     io.ReadCloser // nil after an error
	info     Info
	off, end int64
	failures int   // since the last byte
	err      error // final
}

func (b *resuming) Read(p []byte) (int, error) {
	for b.err == nil && b.off < b.end {
		if b.body == nil {
			if err := b.reopen(); err != nil {
				b.err = err
				break
			}
		}
		n, err := b.body.Read(p[:min(int64(len(p)), b.end-b.off)])
		if n > 0 {
			b.failures = 0
			b.off += int64(n)
		}
		if errors.Is(err, io.EOF) && b.off < b.end {
			err = &TemporaryError{Err: io.ErrUnexpectedEOF}
		} else if errors.Is(err, io.EOF) {
			err = nil
		}
		if err != nil {
			b.body.Close()
			b.body = nil
			b.failures++
			b.r.gate.slow(err)
			b.err = b.r.pause(b.ctx, "read", b.key, b.failures, err)
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	if b.err == nil {
		return 0, io.EOF
	}
	return 0, b.err
}

// reopen asks for the rest.
func (b *resuming) reopen() error {
	return b.r.do(b.ctx, "get", b.key, func() error {
		rc, info, err := b.get(b.off, b.end-b.off)
		if err != nil {
			return err
		}
		if info.Size != b.info.Size || info.ETag != b.info.ETag || info.Version != b.info.Version || !info.Modified.Equal(b.info.Modified) {
			rc.Close()
			return &KeyError{Op: "read", Key: b.key, Err: ErrChanged}
		}
		b.body = rc
		return nil
	})
}

func (b *resuming) Close() error {
	if b.err == nil {
		b.err = errors.New("read after close")
	}
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}

// List implements [Store].
func (r *Retrying) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		for attempt := 1; ; attempt++ {
			var failed error
			for info, err := range r.Store.List(ctx, prefix, after) {
				if err != nil {
					failed = err
					break
				}
				after, attempt = info.Key, 1
				if !yield(info, nil) {
					return
				}
			}
			if failed == nil {
				return
			}
			r.gate.slow(failed)
			if err := r.pause(ctx, "list", prefix, attempt, failed); err != nil {
				yield(Info{}, err)
				return
			}
		}
	}
}

// Versions implements [Versioner].
func (r *Retrying) Versions(ctx context.Context, prefix string) iter.Seq2[Version, error] {
	return func(yield func(Version, error) bool) {
		last, seen := "", map[string]bool{} // of the last key, its versions
		for attempt := 1; ; attempt++ {
			var failed error
			for v, err := range r.Wrapped.Versions(ctx, prefix) {
				if err != nil {
					failed = err
					break
				}
				if v.Key < last || v.Key == last && seen[v.Version] {
					continue
				}
				if v.Key != last {
					last = v.Key
					clear(seen)
				}
				seen[v.Version] = true
				attempt = 1
				if !yield(v, nil) {
					return
				}
			}
			if failed == nil {
				return
			}
			r.gate.slow(failed)
			if err := r.pause(ctx, "versions of", prefix, attempt, failed); err != nil {
				yield(Version{}, err)
				return
			}
		}
	}
}

// Delete implements [Store].
func (r *Retrying) Delete(ctx context.Context, keys []string) error {
	return r.do(ctx, "delete", several(keys, func(k string) string { return k }), func() error {
		return r.Store.Delete(ctx, keys)
	})
}

// DeleteVersions implements [Versioner].
func (r *Retrying) DeleteVersions(ctx context.Context, versions []Version) error {
	return r.do(ctx, "delete", several(versions, func(v Version) string { return v.Key }), func() error {
		return r.Wrapped.DeleteVersions(ctx, versions)
	})
}

// Retention implements [Retainer].
func (r *Retrying) Retention(ctx context.Context, key, version string) (got Retention, err error) {
	err = r.do(ctx, "retention of", key, func() (err error) {
		got, err = r.Wrapped.Retention(ctx, key, version)
		return err
	})
	return got, err
}

// Retain implements [Retainer].
func (r *Retrying) Retain(ctx context.Context, key, version string, to Retention) error {
	return r.do(ctx, "retention of", key, func() error {
		return r.Wrapped.Retain(ctx, key, version, to)
	})
}

// several names a set of keys.
func several[T any](list []T, key func(T) string) string {
	switch len(list) {
	case 0:
		return "nothing"
	case 1:
		return key(list[0])
	}
	return fmt.Sprintf("%s and %d more", key(list[0]), len(list)-1)
}

// gate admits calls, fewer when the store asks for it.
type gate struct {
	mu      sync.Mutex
	running int
	limit   int // ≥ 1
	most    int
	good    int           // calls that succeeded since limit changed
	changed chan struct{} // closed when a call may be admitted
}

func newGate(n int) *gate { return &gate{limit: n, most: n, changed: make(chan struct{})} }

// enter waits until a call may begin.
func (g *gate) enter(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		g.mu.Lock()
		if g.running < g.limit {
			g.running++
			g.mu.Unlock()
			return nil
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// leave ends a call.
func (g *gate) leave(err error) {
	g.slow(err)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if err == nil && g.limit < g.most {
		if g.good++; g.good >= g.limit {
			g.limit++
			g.good = 0
		}
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// slow halves the number of calls if err asks for it.
func (g *gate) slow(err error) {
	t, ok := errors.AsType[*TemporaryError](err)
	if !ok || !t.SlowDown {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = max(1, min(g.limit, max(g.running, 1))/2)
	g.good = 0
}
