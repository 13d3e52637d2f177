package writer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// uploads is how many segments are sealed and stored at the same time.
const uploads = 4

// flush stores what the source has after the head, up to target. complete says that target is
// its last transaction, beyond which it had nothing at asof. It goes on to later transactions while a pack
// makes those that were read inexact.
func (c *chain) flush(ctx context.Context, target tid.TID, asof time.Time, complete bool) error {
	for try := 1; ; try++ {
		err := c.read(ctx, target, asof, complete)
		_, full := errors.AsType[*roomError](err)
		switch {
		case c.uncertain:
			return err // its number may be used
		case full && c.cutAt > inMemory/2:
			c.w.log.Error("segments are made small, in memory", "err", err)
			c.cutAt = inMemory / 2
			defer c.cut()
		case errors.Is(err, errOld) && try < 10:
			c.w.log.Warn("segments are made again, and cut elsewhere", "err", err)
			old, _ := errors.AsType[*oldError](err)
			c.cutAt = old.size/8 + rand.Int64N(old.size)*3/4
			defer c.cut()
		default:
			return err
		}
	}
}

// cut lets segments have the size that they may have.
func (c *chain) cut() { c.cutAt = c.w.o.SegmentSize }

// salted returns a TID from which on a segment after one is exact, as it is from packed on. What a
// process that was killed left stored, and named by nothing, must not be named any more once it is
// old. Without encryption the same content has the same key, so what this process stores says what
// is true a little differently.
func (w *Writer) salted(packed, after tid.TID) tid.TID {
	if w.to != nil || packed >= after {
		return packed
	}
	return packed + tid.TID(rand.Uint64N(uint64(after-packed)))
}

// read is a flush without another try.
func (c *chain) read(ctx context.Context, target tid.TID, asof time.Time, complete bool) error {
	begin := time.Now()
	c.flushed = begin
	f := &flushing{c: c, at: c.end.Head, tip: c.tip, last: begin}
	uploading, cancel := context.WithCancel(ctx)
	f.caller = ctx
	f.group, f.ctx = errgroup.WithContext(uploading)
	f.group.SetLimit(uploads)
	defer f.abandon(cancel)
	for {
		err := f.read(target)
		if err == nil && complete && f.at != target {
			err = fmt.Errorf("the source says that its last transaction is %v, but after %v it gave none", target, f.at)
		}
		if cause := context.Cause(f.ctx); err != nil && cause != nil {
			return cause // of an upload, or of the caller
		}
		if err != nil && c.uncertain {
			return err // of a tail that may have been stored
		}
		if err != nil {
			// What is stored completely counts.
			return cmp.Or(f.commitReady(ctx, 1), err)
		}
		if f.packed, err = c.w.o.Feed.Packed(ctx); err != nil {
			return err
		}
		if f.packed <= target {
			break
		}
		last, at, err := c.w.o.Feed.Last(ctx)
		if err != nil {
			return err
		}
		asof, complete = at, true
		if last <= target {
			break
		}
		c.w.log.Info("the source was packed: reading goes on to what the pack left exact", "pack", f.packed, "read", target, "last", last)
		target = last
	}
	f.whole = true
	if !complete {
		asof = asofOf(c.asof, f.at.Time(), asof)
	}
	if err := f.finish(ctx, asof); err != nil {
		return err
	}
	f.tell(f.at, target, 0)
	if c.w.markOf(c.id) == "" {
		if err := c.w.writeMark(ctx, c); err != nil {
			return err
		}
	}
	took := time.Since(begin)
	c.w.count(func(s *Stats) {
		s.Flushes++
		s.FlushTime += took
	})
	if f := c.w.o.Flushed; f != nil {
		f(took)
	}
	return nil
}

// flushing is a flush under way.
type flushing struct {
	c      *chain
	caller context.Context
	ctx    context.Context // of the uploads and of what they are made from
	group  *errgroup.Group

	at    tid.TID // last transaction that was read completely
	tip   snapshot.Hash
	seg   *snapshot.SegmentWriter // under construction; nil: there is none
	buf   *scratch                // of it
	start tid.TID                 // after of it
	cont  bool                    // it continues a transaction

	queue  []*queued // segments that no tail names yet
	last   time.Time // when the last tail of it was stored, or it began
	packed tid.TID   // what all is exact from, once it is whole
	whole  bool      // all was read
	future bool      // a transaction was from the future

	records int64 // not reported as progress yet
	text    int64 // bytes, likewise
}

// queued is a segment that is complete, and being stored.
type queued struct {
	line      snapshot.Segment
	tip       snapshot.Hash
	continued bool
	exact     tid.TID // from when on all is exact that was read until it ended
	stored    time.Time
	done      chan struct{} // closed when it is stored
}

// read adds the transactions up to target to segments.
func (f *flushing) read(target tid.TID) error {
	w := f.c.w
	if f.at >= target {
		return nil
	}
	for t, err := range w.o.Feed.Read(f.ctx, f.at, target) {
		if err != nil {
			return fmt.Errorf("reading the source after transaction %v: %w", f.at, err)
		}
		if err := f.transaction(t); err != nil {
			return err
		}
		if err := f.ctx.Err(); err != nil {
			return context.Cause(f.ctx)
		}
		f.tell(t.TID, target, 1)
	}
	return nil
}

// transaction adds a transaction.
func (f *flushing) transaction(t *txn.Transaction) error {
	w := f.c.w
	if t.TID <= f.at {
		return fmt.Errorf("the source gave transaction %v after %v", t.TID, f.at)
	}
	if !f.future && t.TID.Time().After(w.storeNow().Add(time.Hour)) {
		f.future = true
		w.log.Warn("a transaction is from the future", "tid", t.TID, "time", t.TID.Time())
	}
	if err := f.begin(f.at, false); err != nil {
		return err
	}
	before := f.seg.Text()
	if err := f.seg.Begin(t); err != nil {
		return err
	}
	for r, err := range t.Records {
		if err != nil {
			return fmt.Errorf("reading transaction %v: %w", t.TID, err)
		}
		copied := false
		if r.DataTID != tid.Zero && !f.c.lost(r.DataTID) {
			if copied, err = w.o.Feed.Has(f.ctx, r.OID, r.DataTID); err != nil {
				return fmt.Errorf("object %v in transaction %v, copied from %v: %w", r.OID, t.TID, r.DataTID, err)
			}
		}
		rec := snapshot.RecordOf(r, copied)
		if n := f.seg.Size(); n >= f.c.cutAt || int64(len(rec.Data)) > w.o.limits.text && n+int64(len(rec.Data)) > f.c.cutAt {
			f.text += f.seg.Text() - before
			before = 0
			if err := f.close(t.TID, f.tip); err != nil {
				return err
			}
			if err := f.begin(t.TID, true); err != nil {
				return err
			}
		}
		if err := f.seg.Record(rec); err != nil {
			return err
		}
		f.records++
	}
	if err := f.seg.End(); err != nil {
		return err
	}
	f.text += f.seg.Text() - before
	f.at, f.tip = t.TID, snapshot.Tip(t)
	overdue := time.Since(f.last) >= w.o.Heartbeat
	if f.cont || f.seg.Size() >= f.c.cutAt || overdue && len(f.queue) == 0 {
		if err := f.close(f.at, f.tip); err != nil {
			return err
		}
	}
	// That an upload fails must not leave a tail of unknown fate.
	if overdue {
		return f.commitReady(f.caller, 1)
	}
	return f.commitReady(f.caller, w.o.limits.batch)
}

// lost reports whether a transaction is in a gap.
func (c *chain) lost(t tid.TID) bool {
	for _, i := range c.manifest.Items {
		if i.Gap != nil && i.Gap.After < t && t <= i.Gap.Upto {
			return true
		}
	}
	return false
}

// begin makes sure that there is a segment under construction.
func (f *flushing) begin(after tid.TID, continues bool) error {
	if f.seg != nil {
		return nil
	}
	w := f.c.w
	f.buf, f.start, f.cont = w.spool.scratch(), after, continues
	var err error
	f.seg, err = snapshot.NewSegmentWriter(f.buf, snapshot.Header{Repo: w.repo.Marker.ID, Lineage: f.c.id, After: after, Continues: continues}, snapshot.WriterOptions{Level: w.o.Level})
	return err
}

// end ends the segment under construction.
func (f *flushing) end(upto, packed tid.TID) (*snapshot.Written, *scratch, error) {
	written, err := f.seg.Close(upto, f.c.w.salted(packed, f.start))
	buf := f.buf
	f.seg, f.buf = nil, nil
	if err != nil {
		buf.close()
		return nil, nil, err
	}
	return written, buf, nil
}

// close ends the segment under construction, and lets it be stored as an object of its own.
func (f *flushing) close(upto tid.TID, tip snapshot.Hash) error {
	w := f.c.w
	packed := f.packed
	if !f.whole { // more may be removed before it is read
		var err error
		if packed, err = w.o.Feed.Packed(f.ctx); err != nil {
			return err
		}
	}
	continues := f.cont
	written, buf, err := f.end(upto, packed)
	if err != nil {
		return err
	}
	q := &queued{tip: tip, continued: written.Header.Continued, exact: packed, done: make(chan struct{})}
	f.queue = append(f.queue, q)
	f.group.Go(func() error { // waits while enough are under way
		defer buf.close()
		sealed := w.spool.scratch()
		defer sealed.close()
		st, err := snapshot.Seal(sealed, buf.reader(), w.to, w.kid)
		if err != nil {
			return fmt.Errorf("sealing a segment: %w", err)
		}
		if st.Bytes > store.MaxObject {
			return fmt.Errorf("a segment after transaction %v has %d bytes, more than the %d of an object: a record is too large: %w", written.Header.After, st.Bytes, store.MaxObject, snapshot.ErrTooLarge)
		}
		q.line = written.Line(st)
		// Large ones, and parts of transactions, are never merged.
		merged := written.Size < w.o.SegmentSize/2 && !continues && !q.continued
		if merged {
			w.keep(pieceName(f.c.id, &q.line), 1, buf)
		}
		if q.stored, err = w.putHashed(f.ctx, q.line.Key, sealed, sealed.size, st.SHA256, merged); err != nil {
			return err
		}
		close(q.done)
		return nil
	})
	return nil
}

// keep puts a plaintext into the spool. Without it the segment is not merged.
func (w *Writer) keep(name string, tier int, buf *scratch) {
	err := w.spool.put(name, tier, buf)
	w.mu.Lock()
	changed := (err == nil) != (w.spoolErr == nil)
	w.spoolErr = err
	w.mu.Unlock()
	if err != nil && changed {
		w.log.Error("the state directory cannot be written: segments are stored, but not merged", "err", err)
	} else if changed {
		w.log.Info("the state directory can be written again")
	}
}

// commitReady commits the segments at the beginning of the queue that are stored, if they are
// min or more, to the end of a transaction.
func (f *flushing) commitReady(ctx context.Context, min int) error {
	n := 0
	for i, q := range f.queue {
		select {
		case <-q.done:
			if !q.continued {
				n = i + 1
			}
			continue
		default:
		}
		break
	}
	if n < min || n == 0 {
		return nil
	}
	upto := f.queue[n-1].line.Upto
	return f.commit(ctx, n, asofOf(f.c.asof, upto.Time(), time.Now()), true)
}

// commit makes the first n segments of the queue a tail. more says that the source has
// something after them.
func (f *flushing) commit(ctx context.Context, n int, asof time.Time, more bool) error {
	list := f.queue[:n]
	lines := make([]snapshot.Segment, n)
	oldest := list[0].stored
	for i, q := range list {
		if err := old(q.line.Key, q.line.Bytes, q.stored); err != nil {
			return err
		}
		if q.stored.Before(oldest) {
			oldest = q.stored
		}
		lines[i] = q.line
	}
	// A tail that comes too late must not name them.
	timely, cancel := context.WithDeadline(ctx, oldest.Add(maxUnreferenced))
	defer cancel()
	t := &snapshot.Tail{Tip: list[n-1].tip, Asof: asof}
	t.SetSegments(lines)
	t.ExactFrom = exactFrom(t.After, t.Upto, list[n-1].exact, more)
	if err := f.c.commit(timely, t, nil); err != nil {
		if timely.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%d segments that were stored since %s could not be named by a tail in time; a writer that is started again stores them again: %w", n, oldest.UTC().Format(time.RFC3339), err)
		}
		return err
	}
	f.queue = f.queue[n:]
	f.last = time.Now()
	f.c.w.counted(t)
	if f.c.w.markOf(f.c.id) == "" { // without it a pack of earlier times cannot be told from a later one
		if err := f.c.w.writeMark(f.caller, f.c); err != nil {
			return err
		}
	}
	return f.c.publishIfDue(f.caller)
}

// exactFrom returns what a tail says of a pack. If more was read and follows, nothing of it may
// be exact yet. If the source has nothing after it, it is exact from its end on.
func exactFrom(after, upto, packed tid.TID, more bool) tid.TID {
	switch {
	case packed <= after:
		return 0
	case packed > upto && !more:
		return upto
	}
	return packed
}

// finish commits all that was read.
func (f *flushing) finish(ctx context.Context, asof time.Time) error {
	c, w := f.c, f.c.w
	if f.seg != nil && len(f.queue) == 0 && f.seg.Text() <= w.o.limits.text && !c.apart {
		return f.small(ctx, asof)
	}
	if f.seg != nil {
		if err := f.close(f.at, f.tip); err != nil {
			return err
		}
	}
	if err := f.group.Wait(); err != nil {
		return err
	}
	if len(f.queue) > 0 {
		return f.commit(ctx, len(f.queue), asof, false)
	}
	if c.end.Head == f.at {
		c.asof = asof // a backlog whose last tail said less
		w.report(c)
	}
	return nil
}

// small commits the segment under construction behind the note of a tail.
func (f *flushing) small(ctx context.Context, asof time.Time) error {
	c, w := f.c, f.c.w
	written, buf, err := f.end(f.at, f.packed)
	if err != nil {
		return err
	}
	defer buf.close()
	sealed := w.spool.scratch()
	defer sealed.close()
	st, err := snapshot.Seal(sealed, buf.reader(), w.to, w.kid)
	if err != nil {
		return fmt.Errorf("sealing a segment: %w", err)
	}
	t := &snapshot.Tail{Tip: f.tip, Asof: asof}
	t.SetSegment(written, st)
	t.ExactFrom = exactFrom(t.After, t.Upto, f.packed, false)
	line := written.Line(st)
	w.keep(pieceName(c.id, &line), 0, buf)
	if err := c.commit(ctx, t, sealed); err != nil {
		return err
	}
	line.SetTail(snapshot.TailKey(c.id, t.N), t.NoteSize())
	c.tails[len(c.tails)-1].lines = []snapshot.Segment{line}
	w.counted(t)
	return nil
}

// abandon ends what is not committed.
func (f *flushing) abandon(cancel func()) {
	cancel()
	f.group.Wait()
	if f.buf != nil {
		f.buf.close()
	}
}

// counted adds a tail to the counts.
func (w *Writer) counted(t *snapshot.Tail) {
	w.count(func(s *Stats) {
		s.Txns += t.Txns
		s.Records += t.Records
		s.Text += t.Text
	})
}

// tell reports progress, after txns more transactions.
func (f *flushing) tell(at, target tid.TID, txns int64) {
	w := f.c.w
	if w.o.Progress == nil {
		return
	}
	w.telling.Lock()
	defer w.telling.Unlock()
	w.mu.Lock()
	p := &w.progress
	p.Lineage, p.TID, p.Target, p.Head = f.c.id, at, target, f.c.end.Head
	p.Txns += txns
	p.Records += f.records
	f.records = 0
	p.Text += f.text
	f.text = 0
	told := *p
	w.mu.Unlock()
	w.o.Progress(told)
}
