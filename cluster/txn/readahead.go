package txn

import (
	"context"
	"sync/atomic"
)

// ReadAhead is a budget of bytes for what iterations ask for before it is needed.
// Iterations share it, and a budget may be part of another one. What an iteration
// needs next it takes in any case, so that each goes on: the bytes used may exceed
// the limit by one record and its transaction for each iteration, and by what was
// guessed too small. A nil budget has no limit.
type ReadAhead struct {
	limit  int64
	parent *ReadAhead
	used   atomic.Int64
}

// NewReadAhead returns a budget of limit bytes, which are also counted in parent
// unless that is nil.
func NewReadAhead(limit int64, parent *ReadAhead) *ReadAhead {
	return &ReadAhead{limit: limit, parent: parent}
}

// Used returns the bytes that are in use.
func (r *ReadAhead) Used() int64 {
	if r == nil {
		return 0
	}
	return r.used.Load()
}

// Room reports whether something is left, of this budget and those it is part of.
func (r *ReadAhead) Room() bool {
	for ; r != nil; r = r.parent {
		if r.used.Load() >= r.limit {
			return false
		}
	}
	return true
}

// Take uses n bytes if they are left.
func (r *ReadAhead) Take(n int) bool {
	for b := r; b != nil; b = b.parent {
		if b.used.Add(int64(n)) > b.limit {
			for u := r; ; u = u.parent {
				u.used.Add(-int64(n))
				if u == b {
					return false
				}
			}
		}
	}
	return true
}

// Force uses n bytes, which may be negative, whatever is left.
func (r *ReadAhead) Force(n int) {
	for ; r != nil; r = r.parent {
		r.used.Add(int64(n))
	}
}

// Give ends the use of n bytes.
func (r *ReadAhead) Give(n int) { r.Force(-n) }

type readAheadKey struct{}

// WithReadAhead makes iterations under the context share a budget.
func WithReadAhead(ctx context.Context, r *ReadAhead) context.Context {
	return context.WithValue(ctx, readAheadKey{}, r)
}

// ReadAheadOf returns the budget of a context, nil if it has none.
func ReadAheadOf(ctx context.Context) *ReadAhead {
	r, _ := ctx.Value(readAheadKey{}).(*ReadAhead)
	return r
}
