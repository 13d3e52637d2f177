package store

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/time/rate"
)

// Limited is a store with limits on its rates; create it with [Limit].
type Limited struct {
	Wrapped
	up, down *rate.Limiter // nil: no limit
}

// Limit returns s such that all its uploads together keep to upload bytes per
// second, all its downloads to download; 0 is no limit. What is waiting to be sent
// or read ends with its context.
func Limit(s Store, upload, download int64) *Limited {
	return &Limited{Wrapped{s}, limiter(upload), limiter(download)}
}

// limiter allows bursts of a tenth of a second, and at least the runs of bytes in
// which bodies are read.
func limiter(bytes int64) *rate.Limiter {
	if bytes <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytes), int(max(bytes/10, 32<<10)))
}

// wait waits until n bytes may pass.
func wait(ctx context.Context, l *rate.Limiter, n int) error {
	for n > 0 {
		k := min(n, l.Burst())
		if err := l.WaitN(ctx, k); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%w: %w", context.DeadlineExceeded, err) // it would be
		}
		n -= k
	}
	return nil
}

// Put implements [Store].
func (l *Limited) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o PutOptions) error {
	if l.up != nil {
		o = o.sending(func(n int) error { return wait(ctx, l.up, n) })
	}
	return l.Store.Put(ctx, key, body, size, o)
}

// Get implements [Store].
func (l *Limited) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, Info, error) {
	r, info, err := l.Store.Get(ctx, key, off, n)
	return l.limited(ctx, r, err), info, err
}

// GetVersion implements [Versioner].
func (l *Limited) GetVersion(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, Info, error) {
	r, info, err := l.Wrapped.GetVersion(ctx, key, version, off, n)
	return l.limited(ctx, r, err), info, err
}

func (l *Limited) limited(ctx context.Context, r io.ReadCloser, err error) io.ReadCloser {
	if err != nil || l.down == nil {
		return r
	}
	return &body{r, func(n int) error { return wait(ctx, l.down, n) }}
}
