package writer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Snapshot stores what the source has up to its last transaction, or the last one up to at
// unless that is Zero, and publishes a manifest with a label, which may be empty. With at
// below what is stored already there is nothing to do.
func (w *Writer) Snapshot(ctx context.Context, at tid.TID, label string) (err error) {
	defer func() { err = w.diverged(ctx, err) }()
	if err := w.begin(ctx); err != nil {
		return err
	}
	c := w.chain
	last, asof, err := w.last(ctx, c)
	if err != nil {
		return err
	}
	target, complete := last, true
	if at != tid.Zero && at < last {
		target, complete = at, false
	}
	if target < c.end.Head {
		if label != "" {
			return fmt.Errorf("the repository has transactions up to %v already: a snapshot at %v cannot get the label %q; a restore to any time needs no label", c.end.Head, at, label)
		}
		return nil
	}
	defer c.quiesce()
	if target > c.end.Head {
		// Behind a tail it would be stored again at once, by the manifest that follows.
		c.apart = len(c.tails) == 0
		err = c.flush(ctx, target, asof, complete)
		c.apart = false
	} else if complete {
		c.asof = asof
	}
	if err != nil {
		return err
	}
	if err := c.quiesce(); err != nil {
		return err
	}
	return c.publishNow(ctx, label)
}

// begin makes the writer ready to add to its lineage, whatever ended the call before.
func (w *Writer) begin(ctx context.Context) error {
	if w.chain.uncertain {
		if err := w.reread(ctx); err != nil {
			return err
		}
	}
	return w.rebaseIfPacked(ctx)
}

// publishNow publishes a manifest of all that is stored.
func (c *chain) publishNow(ctx context.Context, label string) error {
	for {
		seq := c.manifest.Seq
		p := c.publish(ctx, label)
		<-p.done
		if err := c.settle(); err != nil {
			return err
		}
		switch {
		case p.manifest == nil: // not in time
		case c.manifest.Writer == c.w.name && c.manifest.Label == label && len(c.tails) == 0:
			return c.w.writeMark(ctx, c)
		case c.manifest.Seq == seq:
			return fmt.Errorf("manifest %d exists, but is not found", seq+1)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// last asks the source for its last transaction.
func (w *Writer) last(ctx context.Context, c *chain) (tid.TID, time.Time, error) {
	w.count(func(*Stats) { w.asked = time.Now() })
	last, asof, err := w.o.Feed.Last(ctx)
	w.count(func(s *Stats) {
		w.asked = time.Time{}
		s.Connected = err == nil
		if err == nil {
			s.Last = last
		}
	})
	if err != nil {
		return 0, asof, err
	}
	if last < c.end.Head {
		return 0, asof, fmt.Errorf("%w: its last transaction is %v, the repository has %v", feed.ErrChanged, last, c.end.Head)
	}
	return last, asof, nil
}

// Follow stores what the source has and what becomes new, until ctx ends; it returns
// its error then. What is not stored then, the next writer stores.
func (w *Writer) Follow(ctx context.Context) (err error) {
	defer func() { err = w.diverged(ctx, err) }()
	if err := w.begin(ctx); err != nil {
		return err
	}
	if _, ok := w.Rebasing(); ok {
		if err := w.rebase(ctx); err != nil {
			return err
		}
	}
	return w.follow(ctx, w.chain)
}

// Drain stores what the source has and Follow, which has ended, had not stored yet: it may have waited for its
// interval. It publishes no manifest, and begins no lineage. A source that does not answer at once has nothing to
// wait for: it may be stopping too.
func (w *Writer) Drain(ctx context.Context) (err error) {
	defer func() { err = w.diverged(ctx, err) }()
	if w.packed != nil || !w.caughtUp {
		return nil // only a new lineage would have it, or it is much
	}
	if w.chain.uncertain {
		if err := w.reread(ctx); err != nil {
			return err
		}
	}
	c := w.chain
	asking, cancel := context.WithTimeout(ctx, drainPatience)
	last, asof, err := w.last(asking, c)
	cancel()
	if errors.Is(err, txn.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		w.log.Info("the source does not answer: what it has is stored by the next start", "err", err)
		return nil
	}
	if err != nil || last == c.end.Head {
		return err
	}
	return errors.Join(c.flush(ctx, last, asof, true), c.quiesce())
}

// drainPatience is how long the source may take to say what it has.
const drainPatience = 500 * time.Millisecond

func (w *Writer) follow(ctx context.Context, c *chain) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		c.quiesce() // what it stored is found by the next start
	}()
	p := pace{w.o.Interval, w.o.Heartbeat}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := w.patient(ctx, func() error {
			if err := c.publishIfDue(ctx); err != nil {
				return err
			}
			last, asof, err := w.last(ctx, c)
			if err != nil {
				return err
			}
			a, until := p.next(time.Now(), last > c.end.Head, c.flushed, c.tailAt)
			if a != flush && c == w.chain {
				w.caughtUp = true
			}
			switch a {
			case flush:
				return c.flush(ctx, last, asof, true)
			case beat:
				return c.heartbeat(ctx, asof)
			case early:
				return sleep(ctx, until)
			default:
				c.asof = asof
				w.report(c)
				w.waiting(c, true)
				defer w.waiting(c, false)
				return w.pause(ctx, c, until)
			}
		})
		if err != nil {
			return err
		}
	}
}

// waiting says whether the writer waits for something new.
func (w *Writer) waiting(c *chain, now bool) {
	w.count(func(s *Stats) { s.Waiting = now && c == w.chain })
}

// patient calls f again after a while as long as the source is away.
func (w *Writer) patient(ctx context.Context, f func() error) error {
	for failures := 1; ; failures++ {
		err := f()
		if err == nil || ctx.Err() != nil || !errors.Is(err, txn.ErrUnavailable) {
			return err
		}
		w.count(func(s *Stats) { s.Connected = false })
		pause := min(20*time.Second, 200*time.Millisecond<<min(failures, 10))
		w.log.Warn("the source cannot be read; it is tried again", "pause", pause, "err", err)
		if err := sleep(ctx, time.Now().Add(pause)); err != nil {
			return err
		}
	}
}

// pause waits until something new may be there, a publication ends, or something is due: at
// a time, or a manifest because of the age of the last one.
func (w *Writer) pause(ctx context.Context, c *chain, until time.Time) error {
	if d := c.manifest.Created.Add(w.o.limits.age); len(c.tails) > 0 && c.publication == nil && d.After(time.Now()) && d.Before(until) {
		until = d
	}
	waiting, cancel := context.WithDeadline(ctx, until)
	ended := make(chan struct{})
	if p := c.publication; p != nil {
		go func() {
			defer close(ended)
			select {
			case <-p.done:
				cancel()
			case <-waiting.Done():
			}
		}()
	} else {
		close(ended)
	}
	err := w.o.Feed.Wait(waiting)
	if waiting.Err() != nil {
		err = ctx.Err()
	}
	cancel()
	<-ended
	return err
}

// sleep waits until a time.
func sleep(ctx context.Context, until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
