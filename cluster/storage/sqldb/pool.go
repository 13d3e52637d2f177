package sqldb

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// pool holds the reading connections, the one used last on top.
//
// Each keeps what it sees from one read to the next, as long as nothing is
// committed: beginning and ending costs as much as reading. None keeps it beyond
// a commit while it is idle, because that would hold up a checkpoint; or, where linger is set, for
// longer than that, however much or little is committed and read.
type pool struct {
	open  func(context.Context) (*Conn, error)
	lost  func(error) bool // a connection is gone, see Dialect
	log   *slog.Logger
	begin string // opens what a reader sees
	limit int
	// linger is how long a connection may keep what it sees. Zero: until the next commit.
	linger time.Duration

	// commits is counted before a commit is reported: a reader that knows of it
	// sees it.
	commits atomic.Uint64

	m      sync.Mutex
	cond   sync.Cond
	idle   []*Conn
	opened int
	armed  bool // expire will run
	paused bool
	closed bool
}

// snapshot is what a reading connection sees.
type snapshot struct {
	open    bool
	commits uint64 // made before it
	begun   time.Time
}

// current reports that a connection sees all that is committed, and has not for too long.
func (p *pool) current(s snapshot) bool {
	return s.open && s.commits == p.commits.Load() && !p.expired(s)
}

// expired reports that a connection has kept what it sees for too long.
func (p *pool) expired(s snapshot) bool {
	return s.open && p.linger > 0 && time.Since(s.begun) >= p.linger
}

// A read on connections that are lost is tried so many times, with a pause before all but
// the second.
const (
	maxAttempts = 3
	lostPause   = time.Second
)

// use runs f on a connection that sees all that is committed. If f fails, other
// than by an answer, the connection is not used again. If it was lost, f is run again:
// it must begin anew, whatever it had read before.
func (p *pool) use(ctx context.Context, f func(c *Conn) error) error { return p.useFor(ctx, false, f) }

// useFor is use; long: what f reads may take long. When ctx ends, so does f.
func (p *pool) useFor(ctx context.Context, long bool, f func(c *Conn) error) error {
	for attempt := 1; ; attempt++ {
		err := p.useOnce(ctx, long, f)
		if err == nil || attempt == maxAttempts || ctx.Err() != nil || !p.lost(err) {
			return err
		}
		p.log.Warn("reading connection lost, connecting again", "err", err)
		p.dropIdle()
		if attempt > 1 {
			select {
			case <-time.After(lostPause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// dropIdle closes the idle connections, which are lost as well when the server is.
func (p *pool) dropIdle() {
	p.m.Lock()
	if p.paused { // whose are the idle ones
		p.m.Unlock()
		return
	}
	idle := p.idle
	p.idle = nil
	p.opened -= len(idle)
	p.m.Unlock()
	p.cond.Broadcast()
	for _, c := range idle {
		if err := c.Close(); err != nil && !p.lost(err) {
			p.log.Debug("closing an idle connection", "err", err)
		}
	}
}

func (p *pool) useOnce(ctx context.Context, long bool, f func(c *Conn) error) error {
	c, err := p.get(ctx)
	if err != nil {
		return err
	}
	c.ctx, c.long = ctx, long
	goesOn := c.interruptAfter(ctx)
	if err = p.renew(c); err == nil {
		err = f(c)
	}
	c.ctx = nil
	if !goesOn() {
		// It is of no use any more: its end cannot fail in a way that matters.
		_ = p.discard(c)
		if err != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return err
	}
	// A query that was interrupted leaves a connection of which little is known.
	if err != nil && (!answer(err) || ctx.Err() != nil) {
		return errors.Join(err, p.discard(c))
	}
	return errors.Join(err, p.put(c))
}

// renew makes a connection see all that is committed.
func (p *pool) renew(c *Conn) error {
	if p.current(c.snapshot) {
		return nil
	}
	now := p.commits.Load() // before the beginning, which may see more
	if err := c.endSnapshot(); err != nil {
		return err
	}
	if p.begin != "" {
		if _, err := c.Exec(p.begin); err != nil {
			return err
		}
	}
	c.snapshot = snapshot{true, now, time.Now()}
	return nil
}

func (c *Conn) endSnapshot() error {
	if !c.snapshot.open {
		return nil
	}
	c.snapshot.open = false
	_, err := c.Exec("COMMIT")
	return err
}

// committed is called after each commit.
func (p *pool) committed() error {
	p.commits.Add(1)
	if p.linger > 0 {
		return nil
	}
	p.m.Lock()
	old := p.take(func(c *Conn) bool { return c.snapshot.open })
	p.m.Unlock()
	var errs []error
	for _, c := range old {
		errs = append(errs, p.put(c))
	}
	return errors.Join(errs...)
}

// take removes connections from the idle ones. The caller holds m, and puts them back.
func (p *pool) take(wanted func(c *Conn) bool) (taken []*Conn) {
	for i := len(p.idle) - 1; i >= 0; i-- {
		if c := p.idle[i]; wanted(c) {
			taken = append(taken, c)
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
		}
	}
	return taken
}

// arm makes expire run, if an idle connection sees something. The caller holds m.
func (p *pool) arm() {
	if p.linger == 0 || p.armed || p.paused || p.closed || !slices.ContainsFunc(p.idle, func(c *Conn) bool { return c.snapshot.open }) {
		return
	}
	p.armed = true
	time.AfterFunc(p.linger, p.expire)
}

// expire ends what idle connections have seen for too long.
func (p *pool) expire() {
	p.m.Lock()
	p.armed = false
	var old []*Conn
	if !p.paused { // whose are the idle ones
		old = p.take(func(c *Conn) bool { return p.expired(c.snapshot) })
		p.arm()
	}
	p.m.Unlock()
	for _, c := range old {
		if err := p.put(c); err != nil {
			p.log.Debug("ending what an idle connection has seen", "err", err)
		}
	}
}

func (p *pool) get(ctx context.Context) (*Conn, error) {
	p.m.Lock()
	if p.busy() {
		stop := context.AfterFunc(ctx, func() {
			p.m.Lock() // so that the wait below has begun, or sees the end
			defer p.m.Unlock()
			p.cond.Broadcast()
		})
		for p.busy() && ctx.Err() == nil {
			p.cond.Wait()
		}
		stop()
	}
	if err := ctx.Err(); err != nil {
		p.m.Unlock()
		return nil, err
	}
	if p.closed {
		p.m.Unlock()
		return nil, errClosed
	}
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.m.Unlock()
		return c, nil
	}
	p.opened++
	p.m.Unlock()
	c, err := p.open(ctx)
	if err != nil {
		p.left()
		if ctx.Err() != nil { // a driver may only say that the connection is lost
			err = errors.Join(ctx.Err(), err)
		}
		return nil, err
	}
	return c, nil
}

// busy reports that no connection is free. The caller holds m.
func (p *pool) busy() bool { return p.paused || len(p.idle) == 0 && p.opened == p.limit }

// put makes a connection idle.
func (p *pool) put(c *Conn) error {
	for {
		p.m.Lock()
		if !c.snapshot.open || !p.paused && (p.current(c.snapshot) || p.linger > 0 && !p.expired(c.snapshot)) {
			break // with the lock held: committed sees it among the idle ones
		}
		p.m.Unlock()
		if err := c.endSnapshot(); err != nil {
			err = errors.Join(err, p.discard(c))
			if p.lost(err) {
				return nil // nothing was lost but the connection
			}
			return err
		}
	}
	p.idle = append(p.idle, c)
	p.arm()
	wake := p.paused || len(p.idle) == 1
	p.m.Unlock()
	if wake {
		p.cond.Broadcast()
	}
	return nil
}

// discard closes a connection that may not be used again.
func (p *pool) discard(c *Conn) error {
	p.left()
	return c.Close()
}

// left counts a connection out.
func (p *pool) left() {
	p.m.Lock()
	p.opened--
	p.m.Unlock()
	p.cond.Broadcast()
}

// pause runs f while no reading connection is in use.
func (p *pool) pause(f func() error) error {
	p.m.Lock()
	for p.paused {
		p.cond.Wait()
	}
	p.paused = true
	for len(p.idle) < p.opened {
		p.cond.Wait()
	}
	idle := p.idle
	p.m.Unlock()
	defer func() {
		p.m.Lock()
		p.paused = false
		p.m.Unlock()
		p.cond.Broadcast()
	}()
	for _, c := range idle {
		if err := c.endSnapshot(); err != nil && !p.lost(err) {
			return err
		}
	}
	return f()
}

// close waits for readers and closes their connections.
func (p *pool) close() error {
	return p.pause(func() error {
		var errs []error
		for _, c := range p.idle {
			if err := c.Close(); err != nil && !p.lost(err) {
				errs = append(errs, err)
			}
		}
		p.idle, p.opened, p.closed = nil, 0, true
		return errors.Join(errs...)
	})
}
