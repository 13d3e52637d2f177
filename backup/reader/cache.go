package reader

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

// cacheKey names what is in a cache: bytes of a segment or of an index file.
type cacheKey struct {
	of     any // *segment or *run
	off, n int64
}

// cache keeps what was read, up to a limit, and reads what several ask for once. What was
// asked for goes on as long as one of them waits for it.
type cache struct {
	ctx     context.Context // ends all that is under way
	limit   int64
	timeout time.Duration // of one read
	wg      *sync.WaitGroup

	mu    sync.Mutex
	used  int64
	items map[cacheKey]*cached
	order list.List // of *cached that have their value, the last used first
}

type cached struct {
	key     cacheKey
	value   any
	err     error
	cost    int64
	element *list.Element // nil while it is read

	done    chan struct{}
	waiters int
	cancel  context.CancelFunc
}

func newCache(ctx context.Context, limit int64, timeout time.Duration, wg *sync.WaitGroup) *cache {
	return &cache{ctx: ctx, limit: limit, timeout: timeout, wg: wg, items: map[cacheKey]*cached{}}
}

// get returns what load returned for a key, with what it takes in memory, in bytes. Errors are not
// kept. It returns when ctx ends.
func (c *cache) get(ctx context.Context, key cacheKey, load func(ctx context.Context) (value any, cost int64, err error)) (any, error) {
	var before error
	for {
		value, joined, err := c.once(ctx, key, load)
		switch {
		case err == nil:
			return value, nil
		case ctx.Err() != nil && before != nil:
			return nil, before // it says more than that time is up
		case !joined || !errors.Is(err, errTimeout) && !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
			return nil, err
		}
		before = err // what was begun earlier, by another, has ended earlier
	}
}

// once is get without another attempt. joined reports whether it was under way.
func (c *cache) once(ctx context.Context, key cacheKey, load func(ctx context.Context) (value any, cost int64, err error)) (value any, joined bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, context.Cause(ctx)
	}
	c.mu.Lock()
	i := c.items[key]
	switch {
	case i == nil:
		if err := c.ctx.Err(); err != nil {
			c.mu.Unlock()
			return nil, false, context.Cause(c.ctx)
		}
		i = &cached{key: key, done: make(chan struct{})}
		var loading context.Context
		loading, i.cancel = context.WithTimeoutCause(c.ctx, c.timeout, errTimeout)
		c.items[key] = i
		c.wg.Go(func() {
			value, cost, err := load(loading)
			i.cancel()
			c.loaded(i, value, cost, err)
		})
	case i.element != nil:
		c.order.MoveToFront(i.element)
		c.mu.Unlock()
		return i.value, true, nil
	default:
		joined = true
	}
	i.waiters++
	c.mu.Unlock()
	select {
	case <-i.done:
		return i.value, joined, i.err
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		if i.waiters--; i.waiters == 0 && i.element == nil {
			i.cancel()
			if c.items[key] == i {
				delete(c.items, key) // the next one asks anew
			}
		}
		return nil, joined, context.Cause(ctx)
	}
}

func (c *cache) loaded(i *cached, value any, cost int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i.value, i.err, i.cost = value, err, cost
	close(i.done)
	if c.items[i.key] != i {
		return
	}
	if err != nil {
		delete(c.items, i.key)
		return
	}
	i.element = c.order.PushFront(i)
	c.used += cost
	for c.used > c.limit && c.order.Len() > 1 {
		c.removeLocked(c.order.Back().Value.(*cached))
	}
}

// has reports whether something is kept.
func (c *cache) has(key cacheKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.items[key]
	return i != nil && i.element != nil
}

func (c *cache) removeLocked(i *cached) {
	c.order.Remove(i.element)
	delete(c.items, i.key)
	c.used -= i.cost
}
