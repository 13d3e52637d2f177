package reader

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	fillAtOnce = 3 // segments of which the index is read, each with up to three times largestRead
	fanIn      = 8 // runs that become one
	// fillPause is how long filling waits after a store that did not answer.
	fillPause = 10 * time.Second
	// oldFile is the age at which a file that is not used is deleted: another process may use it.
	oldFile = 24 * time.Hour
	// sweepEvery is how often such files are looked for while the repository goes on.
	sweepEvery = time.Hour
)

// filler reads the indexes of all segments into runs.
type filler struct {
	mu     sync.Mutex
	active bool
	again  bool // the view has changed meanwhile
	now    *attempt
	wanted chan struct{} // ends the pause after a failure

	bad  map[*segment]bool // of which the index cannot be read; told once
	used atomic.Int64      // bytes of runs in memory
	full bool              // there is no room for more
}

// attempt is one of those to read all that is missing.
type attempt struct {
	done chan struct{} // closed when it has ended, or failed for the moment
	err  error         // of that
}

// background runs f until Close.
func (d *Database) background(f func()) bool {
	d.cache.mu.Lock()
	defer d.cache.mu.Unlock()
	if d.ctx.Err() != nil {
		return false
	}
	d.wg.Go(f)
	return true
}

// startFilling makes the runs those of the current view, in the background.
func (d *Database) startFilling() {
	f := &d.fill
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active {
		f.again = true
		return
	}
	f.active, f.now = true, &attempt{done: make(chan struct{})}
	if !d.background(d.fillAll) {
		f.active = false
		close(f.now.done)
	}
}

// Filled waits until the index of each segment is on this machine, as far as there is room for it
// and the segment can be read. Without it reads need more requests. The error is an
// [*UnavailableError] if the store does not answer in time.
func (d *Database) Filled(ctx context.Context) error {
	f := &d.fill
	for {
		f.mu.Lock()
		active, now := f.active, f.now
		f.mu.Unlock()
		if !active {
			return ctx.Err()
		}
		select {
		case f.wanted <- struct{}{}:
		default:
		}
		select {
		case <-now.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if now.err != nil {
			return d.failed(ctx, now.err)
		}
	}
}

// fillAll fills until nothing is left to do.
func (d *Database) fillAll() {
	f := &d.fill
	for {
		err := d.fillOnce()
		if err != nil && d.ctx.Err() == nil {
			d.log.Warn("the index cannot be read ahead, trying again", "err", err)
			select {
			case <-f.wanted: // by those that learn of this failure
			default:
			}
			f.mu.Lock()
			f.now.err = err
			close(f.now.done)
			f.now = &attempt{done: make(chan struct{})}
			f.mu.Unlock()
			select {
			case <-time.After(fillPause):
			case <-f.wanted:
			case <-d.ctx.Done():
			}
		}
		f.mu.Lock()
		if d.ctx.Err() != nil || err == nil && !f.again {
			f.active = false
			close(f.now.done)
			f.mu.Unlock()
			return
		}
		f.again = false
		f.mu.Unlock()
	}
}

// fillOnce reads what the current view lacks, and merges.
func (d *Database) fillOnce() error {
	d.salvage()
	var missing []*segment // the newest first
	v := d.current()
	for i := range slices.Backward(v.steps) {
		s := &v.steps[i]
		if s.run == nil && !s.local() && s.segs[0].gap == nil && s.first() <= v.at && !d.fill.bad[s.segs[0]] {
			missing = append(missing, s.segs[0])
		}
	}
	if err := d.readEnds(missing); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(d.ctx)
	g.SetLimit(fillAtOnce)
	var mu sync.Mutex // of bad and full
	for _, s := range missing {
		g.Go(func() error {
			err := d.fillSegment(ctx, s, &mu)
			if err != nil && ctx.Err() == nil && !d.temporary(err) {
				mu.Lock()
				defer mu.Unlock()
				if d.fill.bad == nil {
					d.fill.bad = map[*segment]bool{}
				}
				d.fill.bad[s] = true
				d.log.Error("a segment cannot be read: what can only be known from it cannot be read either", "key", s.l.Key, "err", err)
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for d.files.dir != "" && d.ctx.Err() == nil {
		if merged, err := d.mergeOnce(); err != nil {
			if damaged, ok := errors.AsType[*runError](err); ok {
				d.dropRun(damaged) // filling begins again
			} else {
				d.warnFiles(err)
			}
			break
		} else if !merged {
			break
		}
	}
	return nil
}

// temporary reports whether a segment may be read later, although that failed now.
func (d *Database) temporary(err error) bool {
	_, temporary := errors.AsType[*UnavailableError](d.failed(d.ctx, err))
	return temporary
}

// readEnds reads the directories of segments, many at once, as far as there is room for them.
func (d *Database) readEnds(list []*segment) error {
	g, ctx := errgroup.WithContext(d.ctx)
	g.SetLimit(atOnce)
	room := d.limit / 2
	for _, s := range list {
		if room -= 3*max(s.l.Meta, unknownMeta/4) + 1024; room < 0 && d.files.dir == "" {
			break
		}
		g.Go(func() error {
			_, err := s.open(ctx)
			if err != nil && d.temporary(err) {
				return err
			}
			return nil // told by what needs it
		})
	}
	return g.Wait()
}

// fillSegment reads the index of a segment into a run.
func (d *Database) fillSegment(ctx context.Context, s *segment, mu *sync.Mutex) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*d.read, errTimeout)
	defer cancel()
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	f := o.r.Footer()
	mu.Lock()
	// About as large as in the segment, and while it is made twice.
	full := d.fill.full || d.files.dir == "" && d.fill.used.Load()+2*(f.DirectoryAt-f.IndexAt) > d.limit/2
	if full && !d.fill.full {
		d.fill.full = true
		d.log.Warn("the index does not fit into the memory given to it: reads need more requests; a directory for it helps", "bytes", d.limit)
	}
	mu.Unlock()
	if full {
		return nil
	}
	entries := func(yield func(located, error) bool) {
		for e, err := range s.entries(ctx, 0, largestRead) {
			if !yield(located{Entry: e}, err) {
				return
			}
		}
	}
	r, err := d.writeRun([]segmentID{s.id()}, entries)
	mu.Lock()
	if err == nil && r.path == "" && d.fill.used.Add(r.size) > d.limit/2 { // others were faster
		d.fill.used.Add(-r.size)
		err = errNoRoom
	}
	full = errors.Is(err, errNoRoom)
	if full && !d.fill.full {
		d.fill.full = true
		d.log.Warn("the index can neither be kept in a directory nor in the memory given to it: reads need more requests until the next start", "path", d.files.dir, "bytes", d.limit)
	}
	mu.Unlock()
	if full {
		return nil
	}
	if err != nil {
		return err
	}
	d.useRuns([]*run{r}, nil)
	return nil
}

// writeRun makes a run of entries: a file, or in memory if there is no directory or no room in it.
func (d *Database) writeRun(of []segmentID, entries iter.Seq2[located, error]) (*run, error) {
	fill := func(dst io.Writer) error {
		w, err := newRunWriter(dst)
		if err != nil {
			return err
		}
		for e, err := range entries {
			if err != nil {
				return &readError{err}
			}
			if err := w.add(e); err != nil {
				return err
			}
		}
		return w.close(of)
	}
	path := d.files.run(of)
	if path != "" {
		err := d.files.store(path, fill)
		if err == nil {
			return openRunFile(path)
		}
		if e, ok := errors.AsType[*readError](err); ok {
			return nil, e.err
		}
		d.warnFiles(err)
		path = ""
	}
	b := bounded{left: d.limit/2 - d.fill.used.Load()}
	if err := fill(&b); err != nil {
		if e, ok := errors.AsType[*readError](err); ok {
			return nil, e.err
		}
		return nil, err
	}
	return openRun(bytes.NewReader(bytes.Clone(b.b.Bytes())), int64(b.b.Len()), path)
}

var errNoRoom = errors.New("no room for the index in memory")

// bounded is a buffer with a limit.
type bounded struct {
	b    bytes.Buffer
	left int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, errNoRoom
	}
	return b.b.Write(p)
}

// readError is an error of what a run is made of.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }

// run returns the path of the run of some segments, "" if there is no directory.
func (f *files) run(of []segmentID) string {
	if f.dir == "" {
		return ""
	}
	h := sha256.New()
	for _, id := range of {
		h.Write(id.sum[:])
		h.Write(id.clip.Bytes())
	}
	return filepath.Join(f.dir, "index-"+hex.EncodeToString(h.Sum(nil)))
}

// loadRuns opens the files that are of use for a view, and deletes old ones that are not.
func (d *Database) loadRuns(v *view) {
	if d.files.dir == "" {
		return
	}
	entries, err := os.ReadDir(d.files.dir)
	if err != nil {
		d.warnFiles(err)
		return
	}
	known := map[segmentID]bool{}
	for _, s := range v.segs {
		if s.gap == nil {
			known[s.id()] = true
		}
	}
	for _, e := range entries {
		path := filepath.Join(d.files.dir, e.Name())
		if strings.HasPrefix(e.Name(), "index-") {
			r, err := openRunFile(path)
			if err == nil && slices.ContainsFunc(r.of, func(id segmentID) bool { return known[id] }) {
				d.runs[r] = true
				continue
			}
			if err == nil {
				err = r.close()
			}
			if errors.Is(err, errRun) {
				d.log.Warn("a file of the index cache is damaged: it is made again", "err", err)
				err = os.Remove(path)
			}
			if err != nil {
				d.warnFiles(err)
			}
			removeOld(path, e)
		}
	}
	d.sweep(v)
}

// removeOld deletes a file that is not used, unless another process may.
func removeOld(path string, e os.DirEntry) {
	if fi, err := e.Info(); err == nil && time.Since(fi.ModTime()) > oldFile {
		os.Remove(path) // else the next time
	}
}

// sweep deletes the ends of segments that a view does not have any more, and what crashes have left.
func (d *Database) sweep(v *view) {
	entries, err := os.ReadDir(d.files.dir)
	if err != nil {
		d.warnFiles(err)
		return
	}
	used := map[string]bool{}
	for _, s := range v.segs {
		if s.gap == nil {
			used[filepath.Base(d.files.meta(s))] = true
		}
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "index-") && !used[e.Name()] {
			removeOld(filepath.Join(d.files.dir, e.Name()), e)
		}
	}
}

// withRuns returns a view with the runs that there are.
func (d *Database) withRuns(v *view) *view {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.withRunsLocked(v)
}

func (d *Database) withRunsLocked(v *view) *view {
	byFirst := map[segmentID][]*run{}
	for r := range d.runs {
		if len(r.of) > 0 {
			byFirst[r.of[0]] = append(byFirst[r.of[0]], r)
		}
	}
	c := &view{state: v.state, at: v.at, segs: v.segs}
	for i := 0; i < len(v.segs); {
		st := step{segs: v.segs[i : i+1 : i+1]}
		if v.segs[i].gap == nil {
			for _, r := range byFirst[v.segs[i].id()] {
				if n := len(r.of); (st.run == nil || n > len(st.run.of)) && i+n <= len(v.segs) && slices.EqualFunc(r.of, v.segs[i:i+n], isOf) {
					st = step{segs: v.segs[i : i+n : i+n], run: r}
				}
			}
		}
		c.steps = append(c.steps, st)
		i += len(st.segs)
	}
	return c
}

func isOf(id segmentID, s *segment) bool { return s.gap == nil && s.id() == id }

// useRuns adds runs in the place of others, which are deleted.
func (d *Database) useRuns(runs, instead []*run) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.runs == nil {
		return // closed
	}
	for _, r := range runs {
		d.runs[r] = true
	}
	for _, r := range instead {
		d.removeLocked(r)
	}
	d.view = d.withRunsLocked(d.view)
}

// removeLocked gives up a run. Reads in earlier views go on with it: its file is closed when
// it is not referred to any more.
func (d *Database) removeLocked(r *run) {
	delete(d.runs, r)
	if r.path == "" {
		d.fill.used.Add(-r.size)
		return
	}
	for other := range d.runs {
		if other.path == r.path {
			return
		}
	}
	if err := os.Remove(r.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.warnFiles(err)
	}
}

// dropRun gives up a damaged run.
func (d *Database) dropRun(e *runError) {
	d.mu.Lock()
	if !d.runs[e.run] {
		d.mu.Unlock()
		return
	}
	d.log.Warn("a file of the index cache is damaged: it is made again", "err", e.err)
	d.removeLocked(e.run)
	d.view = d.withRunsLocked(d.view)
	d.mu.Unlock()
	d.startFilling()
}

// salvage makes runs of what is still used of those that are not any more as a whole, because
// other segments have taken the place of some of theirs.
func (d *Database) salvage() {
	d.mu.RLock()
	v := d.view
	inUse := map[*run]bool{}
	for i := range v.steps {
		inUse[v.steps[i].run] = true
	}
	var idle []*run
	for r := range d.runs {
		if !inUse[r] {
			idle = append(idle, r)
		}
	}
	d.mu.RUnlock()
	if len(idle) == 0 {
		return
	}
	place := map[segmentID]int{}
	for i := range v.steps {
		if s := &v.steps[i]; s.run == nil && s.segs[0].gap == nil {
			place[s.segs[0].id()] = i
		}
	}
	for _, r := range idle {
		var made []*run
		for i := 0; i < len(r.of); {
			first, ok := place[r.of[i]]
			if !ok {
				i++
				continue
			}
			n := 1
			for i+n < len(r.of) {
				if at, ok := place[r.of[i+n]]; !ok || at != first+n {
					break
				}
				n++
			}
			low := i
			part, err := d.writeRun(r.of[low:low+n], func(yield func(located, error) bool) {
				for e, err := range r.entries(0) {
					if err == nil && (e.segment < low || e.segment >= low+n) {
						continue
					}
					e.segment -= low
					if !yield(e, err) || err != nil {
						return
					}
				}
			})
			if err != nil {
				d.log.Warn("a part of the index cache cannot be kept: it is read again", "err", err)
				break
			}
			made = append(made, part)
			for _, id := range part.of {
				delete(place, id)
			}
			i += n
		}
		d.useRuns(made, []*run{r})
	}
}

// mergeOnce makes one run of several that follow each other. It reports whether there were
// any.
func (d *Database) mergeOnce() (bool, error) {
	v := d.current()
	tier := func(s *step) int {
		if s.run == nil || s.run.path == "" {
			return -1
		}
		t := 0
		for n := len(s.run.of); n >= fanIn; n /= fanIn {
			t++
		}
		return t
	}
	for i := 0; i+fanIn <= len(v.steps); i++ {
		t := tier(&v.steps[i])
		n := 1
		for n < fanIn && t >= 0 && tier(&v.steps[i+n]) == t {
			n++
		}
		if n < fanIn {
			continue
		}
		var of []segmentID
		var lists []iter.Seq2[located, error]
		var base []int
		var instead []*run
		for j := range v.steps[i : i+fanIn] {
			r := v.steps[i+j].run
			base = append(base, len(of))
			lists = append(lists, d.entries(d.ctx, &v.steps[i+j], 0))
			of = append(of, r.of...)
			instead = append(instead, r)
		}
		entries := merged(lists, base)
		r, err := d.writeRun(of, func(yield func(located, error) bool) {
			for e, err := range entries {
				if err == nil {
					err = d.ctx.Err()
				}
				if !yield(e, err) || err != nil {
					return
				}
			}
		})
		if err != nil {
			return false, err
		}
		if r.path == "" {
			return false, r.close() // no room on the disk
		}
		d.useRuns([]*run{r}, instead)
		return true, nil
	}
	return false, nil
}
