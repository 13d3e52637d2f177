package daemon

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync/atomic"

	"github.com/neozodb/neo/backup/store"
)

// faulty is a store that does not answer while it is away.
type faulty struct {
	store.Wrapped
	away atomic.Bool
}

var errAway = errors.New("no route")

func (f *faulty) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, store.Info, error) {
	if f.away.Load() {
		return nil, store.Info{}, errAway
	}
	return f.Store.Get(ctx, key, off, n)
}

func (f *faulty) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	if f.away.Load() {
		return func(yield func(store.Info, error) bool) { yield(store.Info{}, errAway) }
	}
	return f.Store.List(ctx, prefix, after)
}
