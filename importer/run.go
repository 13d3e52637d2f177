package importer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/pace"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/importer/config"
)

// copyShare is the share of the time that the copy takes while clients are served. See
// DESIGN.md for how it was found.
const copyShare = 0.25

// retryUnavailable is how long after a source was not available it is asked again.
const retryUnavailable = time.Minute

// copying is the work of a Backend: see [Backend.Run].
type copying struct {
	packer deflate.Packer
	pace   *pace.Pace
	// ended closes the sources, which nothing asks any more. It may be nil.
	ended func() error

	saving sync.Mutex    // held while the progress is stored
	turns  chan struct{} // of one element: see Backend.turn

	comparing chan struct{} // of one element, which is in it during a comparison
	demanded  chan struct{} // a comparison of what is copied was asked for
	wake      chan struct{} // an order came

	mu       sync.Mutex
	p        progress // with what is written since it was stored
	state    importing.State
	note     string
	stop     context.CancelFunc // ends the copy for the moment; nil: there is none
	compared tid.TID            // by the comparison under way
	speed    speed
	waits    waits
	broken   error // of the native backend, in a comparison that was asked for

	advice, doneNote string // see Advice of Config; they never change
}

// prepare reads the stored progress, and makes b ready for [Backend.Run]. compress is as in
// [config.Destination]. ended closes the sources when they are no longer needed. found tells
// whether there is a stored progress, according to which b.done was set.
func (b *Backend) prepare(compress int, ended func() error) (p progress, found bool, err error) {
	stored, err := b.native.ImportProgress()
	if err != nil {
		return p, false, err
	}
	if p, err = parseProgress(stored); err != nil {
		return p, false, err
	}
	c := &b.copying
	c.p, c.ended = p, ended
	switch compress {
	case config.NoCompression:
	case -1:
		c.packer.Level = deflate.DefaultLevel
	default:
		c.packer.Level = compress
	}
	c.demanded, c.wake, c.turns = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	c.comparing = make(chan struct{}, 1)
	b.served, b.prepared = pace.NewService(), true
	b.Writing = writing{b.native, b.served}
	b.ahead = b.copyRecord
	c.pace = pace.New(b.served, copyShare, p.Limit)
	if stored.OK {
		b.first.Store(uint64(p.First))
		b.advance(tid.TID(p.TID))
	}
	return p, stored.OK, nil
}

// Run implements [backend.Runner]: it copies, compares, and makes the native backend the
// database of the node. Beside that and afterwards it writes back, where that is configured.
func (b *Backend) Run(ctx context.Context) error {
	if b.back == nil {
		return b.runImport(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- b.back.run(ctx) }()
	err := b.runImport(ctx)
	if err != nil {
		cancel()
	}
	return errors.Join(err, <-ended)
}

func (b *Backend) runImport(ctx context.Context) error {
	c := &b.copying
	if b.own.Load() {
		return nil
	}
	b.setCopying(true)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		b.setCopying(false)
		if !b.own.Load() {
			b.set(importing.Waiting, "")
		}
	}()
	c.mu.Lock()
	c.known(tid.TID(b.done.Load()))
	c.broken = nil
	c.mu.Unlock()
	wg.Go(func() {
		if err := b.compareOnDemand(ctx); err != nil && ctx.Err() == nil {
			c.mu.Lock()
			c.broken = err
			c.mu.Unlock()
			cancel()
		}
	})
	for {
		err := b.next(ctx)
		if errors.Is(err, errFinished) {
			return nil
		}
		c.mu.Lock()
		broken := c.broken
		c.mu.Unlock()
		if e, ok := errors.AsType[*SourceError](err); ok && broken == nil {
			b.set(importing.Failed, b.advice(e))
			b.log.Error("the import stands still, and everything is served as before", "tid", e.TID, "last", e.Last, "err", e.Err)
			retry := time.Duration(0)
			if errors.Is(e, txn.ErrUnavailable) {
				retry = retryUnavailable
			}
			err = b.wait(ctx, retry)
		}
		if broken != nil {
			return broken
		}
		if err != nil {
			return err
		}
	}
}

// errFinished is the end of the import.
var errFinished = errors.New("the import is finished")

// next takes one step, and ends early for an order.
func (b *Backend) next(ctx context.Context) error {
	c := &b.copying
	c.mu.Lock()
	p := c.p
	part, stop := context.WithCancel(ctx)
	defer stop()
	if !p.Paused {
		c.stop = stop
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.stop = nil
		c.mu.Unlock()
	}()
	var err error
	switch {
	case finished(p):
		return b.conclude()
	case p.Paused:
		b.set(importing.Paused, "")
		return b.wait(ctx, 0)
	case tid.TID(p.TID) < b.end:
		b.set(importing.Copying, "")
		err = b.copyAll(part)
	case p.Verdict == "":
		b.set(importing.Comparing, "")
		err = b.compareAll(part)
	default:
		b.set(importing.Different, fmt.Sprintf("%d differences between the sources and the copy were found, and are in the log of the storage. The sources are still served. "+
			"`neoctl import compare` compares again; `neoctl import skip TID[:OID]` accepts what is different of a transaction or a record.", p.Differences))
		return b.wait(ctx, 0)
	}
	if part.Err() != nil && ctx.Err() == nil && errors.Is(err, context.Canceled) {
		return nil // by an order
	}
	return err
}

// wait waits for an order, or for some time if d is not 0.
func (b *Backend) wait(ctx context.Context, d time.Duration) error {
	var timeout <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timeout = t.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-b.copying.wake:
	case <-timeout:
	}
	return nil
}

// advice says what failed and what to do.
func (b *Backend) advice(e *SourceError) string {
	where := ""
	if e.TID != tid.Zero {
		where = " " + e.TID.String() + "[:OID]"
	} else {
		where = " TID"
	}
	if errors.Is(e, txn.ErrUnavailable) {
		return fmt.Sprintf("%v. It is tried again every minute, or at once by `neoctl import resume`. Clients are served as before.", e)
	}
	return fmt.Sprintf("%v. Clients are served as before. Mend the source (neofs check, neofs salvage) and restart, or `neoctl import resume` tries again, "+
		"and `neoctl import skip%s` leaves out what cannot be read there.", e, where)
}

// skippedOID names the object that may be left out.
func skippedOID(oid proto.Opt[tid.OID]) string {
	if !oid.OK {
		return "all that cannot be read"
	}
	return oid.V.String()
}

// set changes the state that is reported.
func (b *Backend) set(s importing.State, note string) {
	c := &b.copying
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != s {
		c.speed, c.waits = speed{}, waits{}
	}
	c.state, c.note = s, note
}

// conclude makes the native backend the database of the node.
func (b *Backend) conclude() error {
	b.finish()
	b.set(importing.Done, b.copying.doneNote)
	if b.copying.ended != nil {
		if err := b.copying.ended(); err != nil {
			b.log.Warn("close the sources of the import", "err", err)
		}
	}
	b.log.Info("All data are imported. " + b.copying.advice +
		" There is no hurry: all data were compared with the sources, which are not needed any more, and this node serves its own tables from now on.")
	return errFinished
}

// save stores the progress, with all that was written before. Readers may rely on it then.
func (b *Backend) save() error {
	c := &b.copying
	c.saving.Lock()
	defer c.saving.Unlock()
	c.mu.Lock()
	c.known(tid.TID(b.done.Load()))
	if c.p.First = 0; c.p.TID == 0 {
		c.p.First = hexTID(b.first.Load())
	}
	last, text := tid.TID(c.p.TID), c.p.String()
	c.mu.Unlock()
	if err := b.native.SetImportProgress(some(text)); err != nil {
		return err
	}
	if err := b.native.Commit(); err != nil {
		return err
	}
	if last > tid.TID(b.done.Load()) {
		b.advance(last)
	}
	return nil
}

// known notes what is copied as far as readers know: without a stored progress that was found
// out from the transactions. The caller holds mu.
func (c *copying) known(done tid.TID) { c.p.TID = max(c.p.TID, hexTID(done)) }

// skips reports whether a record may be left out.
func (b *Backend) skips(t tid.TID, oid tid.OID) bool {
	b.copying.mu.Lock()
	defer b.copying.mu.Unlock()
	return b.copying.p.skips(t, oid)
}

func (b *Backend) skipsIn(t tid.TID) bool {
	b.copying.mu.Lock()
	defer b.copying.mu.Unlock()
	return b.copying.p.skipsIn(t)
}

func (b *Backend) skipsAfter(t tid.TID) (tid.TID, bool) {
	b.copying.mu.Lock()
	defer b.copying.mu.Unlock()
	return b.copying.p.skipsAfter(t)
}

// Order implements [backend.Runner]. Orders hold after a restart.
func (b *Backend) Order(o importing.Order) error {
	if b.own.Load() {
		return errors.New("the import is finished: there is nothing to be done")
	}
	c := &b.copying
	c.mu.Lock()
	stored := true
	err := func() error {
		switch o.Kind {
		case importing.Pause:
			if c.p.Paused {
				return errors.New("the import is paused already")
			}
			c.p.Paused = true
			if c.stop != nil {
				c.stop()
			}
		case importing.Resume:
			switch {
			case c.p.Paused:
				c.p.Paused = false
			case c.state == importing.Failed:
				stored = false
			case c.state == importing.Different:
				return errors.New("the copy differs from the sources: compare it again, or skip what you accept of the differences in the log")
			default:
				return fmt.Errorf("there is nothing to resume: the import is %v", c.state)
			}
		case importing.Limit:
			if o.Rate < 0 {
				return fmt.Errorf("a limit of %d bytes per second is not possible: 0 is no limit", o.Rate)
			}
			c.p.Limit = o.Rate
			c.pace.SetRate(o.Rate)
		case importing.Compare:
			switch {
			case c.state == importing.Comparing:
				return errors.New("the copy is being compared")
			case c.state == importing.Waiting:
				return errors.New("the storage is not operational: what is copied can be compared later")
			case c.p.Verdict == different:
				c.p.Verdict = ""
			case tid.TID(c.p.TID) == tid.Zero:
				return errors.New("nothing is copied yet")
			default:
				stored = false
				select {
				case c.demanded <- struct{}{}:
				default:
					return errors.New("what is copied is going to be compared already")
				}
			}
		case importing.Skip:
			s := skip{o.TID, o.OID}
			switch {
			case o.TID == tid.Zero || o.TID > b.end:
				return fmt.Errorf("transaction %v is not one of the sources, the last of which is %v", o.TID, b.end)
			case slices.Contains(c.p.Skip, s):
				return errors.New("that may be left out already")
			}
			c.p.Skip = append(slices.Clone(c.p.Skip), s)
			b.log.Warn("by order, a record of the sources may be left out, or differ", "tid", o.TID, "oid", skippedOID(o.OID))
		default:
			return fmt.Errorf("unknown order %d", o.Kind)
		}
		return nil
	}()
	c.mu.Unlock()
	if err == nil && stored {
		err = b.save()
	}
	if err == nil {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	return err
}

var _ backend.Runner = (*Backend)(nil)
