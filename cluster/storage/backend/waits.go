package backend

import (
	"context"
	"sync/atomic"
	"time"
)

// Waits adds up how long reads have waited for the writes of others. A nil *Waits adds
// nothing.
type Waits struct{ sum atomic.Int64 }

type waitsKey struct{}

// WithWaits returns a context whose reads add to w. A backend that knows of no waits adds
// nothing.
func WithWaits(ctx context.Context, w *Waits) context.Context {
	return context.WithValue(ctx, waitsKey{}, w)
}

// WaitsOf returns what the reads of a context add to, or nil.
func WaitsOf(ctx context.Context) *Waits {
	w, _ := ctx.Value(waitsKey{}).(*Waits)
	return w
}

// Add counts a wait.
func (w *Waits) Add(d time.Duration) {
	if w != nil {
		w.sum.Add(int64(d))
	}
}

// Take returns the sum, and begins anew.
func (w *Waits) Take() time.Duration { return time.Duration(w.sum.Swap(0)) }
