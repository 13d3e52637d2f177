package daemon

import (
	"context"
	"io"
	"iter"

	"github.com/neozodb/neo/backup/store"
)

// faulty is a store that answers with an error while there is one.
type faulty struct {
	store.Wrapped
	err func() error
}

func (f *faulty) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, store.Info, error) {
	if err := f.err(); err != nil {
		return nil, store.Info{}, err
	}
	return f.Store.Get(ctx, key, off, n)
}

func (f *faulty) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	if err := f.err(); err != nil {
		return func(yield func(store.Info, error) bool) { yield(store.Info{}, err) }
	}
	return f.Store.List(ctx, prefix, after)
}
