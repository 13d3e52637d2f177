package store

import (
	"context"
	"io"
	"iter"
	"sync/atomic"
)

// Stats counts what was asked of a store, as its operator bills it.
type Stats struct {
	Puts    int64
	Gets    int64 // those for Info alone included
	Lists   int64 // requests for up to 1000 keys each
	Deletes int64 // requests for up to 1000 keys each
	Others  int64 // about retention
	Failed  int64 // of all these, those that ended with an error, ErrExists and ErrNotFound included

	Sent     int64 // bytes of bodies
	Received int64 // bytes of bodies
}

// Counted is a store that counts; create it with [Count].
type Counted struct {
	Wrapped
	puts, gets, lists, deletes, others, failed, sent, received atomic.Int64
}

// page is how many keys a store handles in one request.
const page = 1000

// Count returns s such that its requests are counted. Inside [Retry] it counts the
// requests that are sent, outside those that were wanted.
func Count(s Store) *Counted { return &Counted{Wrapped: Wrapped{s}} }

// Stats returns the counts so far.
func (c *Counted) Stats() Stats {
	return Stats{
		Puts: c.puts.Load(), Gets: c.gets.Load(), Lists: c.lists.Load(), Deletes: c.deletes.Load(),
		Others: c.others.Load(), Failed: c.failed.Load(), Sent: c.sent.Load(), Received: c.received.Load(),
	}
}

// done counts an error.
func (c *Counted) done(err error) error {
	if err != nil {
		c.failed.Add(1)
	}
	return err
}

// Put implements [Store].
func (c *Counted) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o PutOptions) error {
	c.puts.Add(1)
	o = o.sending(func(n int) error { c.sent.Add(int64(n)); return nil })
	return c.done(c.Store.Put(ctx, key, body, size, o))
}

// Get implements [Store].
func (c *Counted) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, Info, error) {
	c.gets.Add(1)
	r, info, err := c.Store.Get(ctx, key, off, n)
	return c.counted(r, err), info, c.done(err)
}

// GetVersion implements [Versioner].
func (c *Counted) GetVersion(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, Info, error) {
	c.gets.Add(1)
	r, info, err := c.Wrapped.GetVersion(ctx, key, version, off, n)
	return c.counted(r, err), info, c.done(err)
}

func (c *Counted) counted(r io.ReadCloser, err error) io.ReadCloser {
	if err != nil {
		return r
	}
	return &body{r, func(n int) error { c.received.Add(int64(n)); return nil }}
}

// List implements [Store].
func (c *Counted) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return counted(c, c.Store.List(ctx, prefix, after))
}

// Versions implements [Versioner].
func (c *Counted) Versions(ctx context.Context, prefix string) iter.Seq2[Version, error] {
	return counted(c, c.Wrapped.Versions(ctx, prefix))
}

func counted[T any](c *Counted, list iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		c.lists.Add(1)
		n := 0
		for v, err := range list {
			if n++; n > page {
				c.lists.Add(1)
				n = 1
			}
			if !yield(v, c.done(err)) {
				return
			}
		}
	}
}

// Delete implements [Store].
func (c *Counted) Delete(ctx context.Context, keys []string) error {
	c.deletes.Add(int64((len(keys) + page - 1) / page))
	return c.done(c.Store.Delete(ctx, keys))
}

// DeleteVersions implements [Versioner].
func (c *Counted) DeleteVersions(ctx context.Context, versions []Version) error {
	c.deletes.Add(int64((len(versions) + page - 1) / page))
	return c.done(c.Wrapped.DeleteVersions(ctx, versions))
}

// Retention implements [Retainer].
func (c *Counted) Retention(ctx context.Context, key, version string) (Retention, error) {
	c.others.Add(1)
	r, err := c.Wrapped.Retention(ctx, key, version)
	return r, c.done(err)
}

// Retain implements [Retainer].
func (c *Counted) Retain(ctx context.Context, key, version string, r Retention) error {
	c.others.Add(1)
	return c.done(c.Wrapped.Retain(ctx, key, version, r))
}
