package reader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Defaults of Options.
const (
	DefaultCacheSize   = 64 << 20
	DefaultReadTimeout = 30 * time.Second
)

// Options say what is read, and how. A zero field takes the default.
type Options struct {
	// At is the last transaction of the history. Default: the head, also after Refresh.
	At tid.TID

	// CacheDir is a directory for the index of the segments, which is made if it does not
	// exist. What is in it may be deleted at any time, and used by several at once. Object ids,
	// transaction ids and places are there in clear text, for the owner alone; data at most as
	// they are stored.
	// Default: the index is kept in memory, as far as CacheSize allows.
	CacheDir string

	// CacheSize is how many bytes of what was read are kept in memory. Default:
	// DefaultCacheSize.
	CacheSize int64

	// ReadTimeout is how long one read of the store may take, with all its repetitions, and
	// how long one object may. Default: DefaultReadTimeout.
	ReadTimeout time.Duration

	Log *slog.Logger // default: discard
}

// errTimeout is the cause of reads that took too long.
var errTimeout = errors.New("the store did not answer in time")

// Database is the history of a lineage up to a transaction. It is safe for concurrent use.
type Database struct {
	repo  *backup.Repository
	keys  *backup.Keys
	fixed bool // At was given
	log   *slog.Logger
	limit int64
	read  time.Duration
	files files
	cache *cache

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	refreshing sync.Mutex // one at a time
	swept      time.Time  // when superfluous files were deleted last
	inHole     tid.TID    // head of which it was told that it lies in a hole
	fill       filler
	warned     atomic.Bool

	mu   sync.RWMutex
	view *view
	segs map[string]*segment // those of the view and of earlier ones that are in use, by name
	runs map[*run]bool       // those that can be used
}

var _ txn.Database = (*Database)(nil)

// Open returns the history of a state. The error is a [backup.ErrNotExact] if it cannot be read
// exactly at o.At. Segments that are missing, damaged or lost in a gap are no error: what can
// only be known from them is.
func Open(ctx context.Context, repo *backup.Repository, keys *backup.Keys, state *backup.State, o Options) (*Database, error) {
	if o.CacheSize == 0 {
		o.CacheSize = DefaultCacheSize
	}
	if o.ReadTimeout == 0 {
		o.ReadTimeout = DefaultReadTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d := &Database{repo: repo, keys: keys, fixed: o.At != 0, log: o.Log, limit: o.CacheSize, read: o.ReadTimeout, segs: map[string]*segment{}, runs: map[*run]bool{}}
	at := o.At
	if !d.fixed {
		at = newestExact(state)
	}
	if err := check(state, at); err != nil {
		return nil, err
	}
	d.files.d = d
	d.fill.wanted = make(chan struct{}, 1)
	if o.CacheDir != "" {
		d.files.dir = filepath.Join(o.CacheDir, state.Lineage.String())
		if err := os.MkdirAll(d.files.dir, 0o700); err != nil {
			return nil, fmt.Errorf("index cache: %w", err)
		}
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.cache = newCache(d.ctx, d.limit, d.read, &d.wg)
	v, err := d.newView(ctx, state, at)
	if err != nil {
		d.cancel()
		return nil, err
	}
	d.loadRuns(v)
	d.swept = time.Now()
	d.view = d.withRuns(v)
	d.warnHole(state, at)
	if d.fixed && at < state.Head() {
		if err := d.last(ctx); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	d.startFilling()
	return d, nil
}

// last makes the last transaction that is not after Options.At that of the history.
func (d *Database) last(ctx context.Context) error {
	at := tid.Zero
	for t, err := range d.Backwards(ctx) {
		if err != nil {
			return fmt.Errorf("the last transaction up to %v: %w", d.view.at, err)
		}
		at = t.TID
		break
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v := *d.view
	v.at = at
	d.view = &v
	return nil
}

// check returns an error if a state cannot be read at a TID.
func check(state *backup.State, at tid.TID) error {
	if state.HasBlobs() {
		return fmt.Errorf("lineage %v has blobs, which this version cannot read: %w", state.Lineage, errors.ErrUnsupported)
	}
	if at == 0 && state.Head() == 0 {
		return nil
	}
	return state.Exact(at)
}

// newestExact returns the greatest TID at which a state is exact.
func newestExact(state *backup.State) tid.TID {
	head := state.Head()
	if e, ok := errors.AsType[*backup.NotExactError](state.Exact(head)); ok {
		return e.Before
	}
	return head
}

// errClosed is the error of what is under way at Close, or begins after it.
var errClosed = errors.New("the database is closed")

// Close ends all reads that are under way.
func (d *Database) Close() error {
	d.cache.mu.Lock() // no read begins any more
	d.cancel()
	d.cache.mu.Unlock()
	d.wg.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for r := range d.runs {
		errs = append(errs, r.close())
	}
	d.runs = nil
	return errors.Join(errs...)
}

// view is what a state holds up to a TID. It does not change.
type view struct {
	state *backup.State
	at    tid.TID
	segs  []*segment // ascending
	steps []step     // of all of them, ascending
}

// step is a part of the history that a lookup looks into at once.
type step struct {
	segs []*segment // one, or those of run
	run  *run       // nil: the index of the segment itself
}

// first returns the least TID that may be in the step.
func (s *step) first() tid.TID { return s.segs[0].first() }

// end returns the greatest TID that may be in the step.
func (s *step) end() tid.TID {
	_, end := s.segs[len(s.segs)-1].span()
	return end
}

// local reports whether a lookup needs nothing from the store.
func (s *step) local() bool { return s.run != nil || s.segs[0].local() }

func (d *Database) current() *view {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.view
}

// Repository returns the repository that is read.
func (d *Database) Repository() *backup.Repository { return d.repo }

// Name returns the name of the repository.
func (d *Database) Name() string { return d.repo.Marker.Name }

// State returns the state that is read.
func (d *Database) State() *backup.State { return d.current().state }

// At returns the last transaction of the history; Zero if there is none.
func (d *Database) At() tid.TID { return d.current().at }

// LastTID implements [txn.History].
func (d *Database) LastTID(ctx context.Context) (tid.TID, error) { return d.At(), ctx.Err() }

// MaxOID returns the greatest object id of the lineage, which may be that of an object which was
// created after At. ok is false if there is none.
func (d *Database) MaxOID() (oid tid.OID, ok bool) {
	v := d.current()
	for _, s := range v.segs {
		if ok = s.gap != nil || s.l.Records > 0; ok {
			break
		}
	}
	return v.state.MaxOID(), ok
}

// Position returns how much of the history comes before a transaction, and how much it has, in
// bytes of its text. It counts whole segments.
func (d *Database) Position(t tid.TID) (pos, size int64) {
	v := d.current()
	for _, s := range v.segs {
		if s.first() > v.at {
			break
		}
		size += s.l.Text
		if _, end := s.span(); end < t {
			pos += s.l.Text
		}
	}
	return pos, size
}

// newView returns the view of a state, without steps.
func (d *Database) newView(ctx context.Context, state *backup.State, at tid.TID) (*view, error) {
	v := &view{state: state, at: at}
	objects := map[string][]byte{}
	for _, t := range state.Tails {
		if int64(len(t.Object)) == t.Size {
			objects[t.Key] = t.Object[t.NoteSize():]
		}
	}
	// Also those beyond at: what is on this machine of them must not be taken for superfluous.
	parts, err := d.parts(ctx, state, state.Head())
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range parts {
		s := &segment{d: d, bad: p.err}
		name := ""
		if p.Gap != nil {
			s.gap = p.Gap
		} else {
			s.l = *p.Segment
			name = fmt.Sprint(s.l.Key, s.l.Clip)
			if known := d.segs[name]; known != nil && known.l.SHA256 == s.l.SHA256 {
				v.segs = append(v.segs, known)
				continue
			}
			if s.l.Offset() > 0 {
				s.object = objects[s.l.Key]
			}
			d.segs[name] = s
		}
		v.segs = append(v.segs, s)
	}
	return v, nil
}

// part is a part of a state, or the place of one that cannot be known.
type part struct {
	*backup.Part
	err error
}

// parts returns the parts of a state up to a TID. In place of a page that is missing or damaged
// is a gap with the error.
func (d *Database) parts(ctx context.Context, state *backup.State, at tid.TID) (list []part, err error) {
	seen := map[string]bool{}
	add := func(after, upTo tid.TID) error {
		n := len(list)
		for p, err := range d.repo.Parts(ctx, state, after, upTo) {
			if err != nil {
				list = list[:n]
				return err
			}
			if p.Segment != nil {
				// One that goes on with a transaction touches what ends with it as well.
				if seen[p.Segment.Key] {
					continue
				}
				seen[p.Segment.Key] = true
			}
			list = append(list, part{p, nil})
		}
		return nil
	}
	damage := func(err error) bool {
		return errors.Is(err, backup.ErrIncomplete) || errors.Is(err, snapshot.ErrCorrupt)
	}
	if err := add(0, at); err == nil || !damage(err) {
		return list, err
	}
	clear(seen)
	for _, i := range state.Manifest.Items {
		after, upto := i.Range()
		if after >= at && (after != upto || upto > at) {
			break
		}
		err := add(after, min(upto, at))
		if err != nil && (i.Page == nil || !damage(err)) {
			return nil, err
		}
		if err != nil {
			d.log.Error("a catalog page is missing or damaged: what can only be known from it cannot be read", "key", i.Page.Key, "err", err)
			list = append(list, part{&backup.Part{Gap: &snapshot.Gap{Gap: true, After: after, Upto: upto}}, err})
		}
	}
	if head := state.Manifest.Head; head < at {
		if err := add(head, at); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// do reads in the current view. It is tried again where that has changed meanwhile: a segment
// of which another one has taken the place may be deleted.
func (d *Database) do(ctx context.Context, f func(ctx context.Context, v *view) error) error {
	// A little longer than one read of the store, whose error says more.
	limited, cancel := context.WithTimeoutCause(ctx, d.read+d.read/8, errTimeout)
	defer cancel()
	for try := 0; ; {
		v := d.current()
		err := f(limited, v)
		if err == nil {
			return nil
		}
		again, ok := d.again(limited, v, err, &try)
		if !ok {
			return d.failed(ctx, again)
		}
	}
}

// mostTries is how often a read is tried again because the repository has changed.
const mostTries = 3

// again reports whether a read that failed is to be tried with another view. If not, the error is
// the one to return. It counts the tries.
func (d *Database) again(ctx context.Context, v *view, err error, try *int) (error, bool) {
	if d.ctx.Err() != nil {
		return err, false // it is closed
	}
	if r, ok := errors.AsType[*runError](err); ok {
		d.dropRun(r) // no more often than there are runs
		return err, true
	}
	if errors.Is(err, store.ErrNotFound) && *try < mostTries {
		*try++
		changed, e := d.reopen(ctx, v)
		if e != nil {
			return errors.Join(err, e), false
		}
		return err, changed
	}
	return err, false
}

// failed returns the error of a read that is the caller's.
func (d *Database) failed(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, txn.ErrNotFound), errors.Is(err, txn.ErrNoSuchObject):
		return err
	case d.ctx.Err() != nil:
		return fmt.Errorf("%w: %w", txn.ErrUnavailable, errClosed)
	case store.Temporary(err), errors.Is(err, errTimeout), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &UnavailableError{d.read, err}
	}
	return err
}

// UnavailableError reports a store that did not answer in time. It is a
// [txn.ErrUnavailable].
type UnavailableError struct {
	Timeout time.Duration // of reads
	Err     error
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("the backup repository cannot be read (tried for %v): %v", e.Timeout, e.Err)
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() []error { return []error{txn.ErrUnavailable, e.Err} }

// reopen reads the newest manifest, and makes it that of the current view. It reports whether
// the view has changed since v.
func (d *Database) reopen(ctx context.Context, v *view) (bool, error) {
	d.refreshing.Lock()
	defer d.refreshing.Unlock()
	if now := d.current(); now.state != v.state {
		return true, nil
	}
	state, err := d.repo.State(ctx, v.state.Lineage, v.state)
	if err != nil {
		if _, ok := errors.AsType[*backup.BrokenError](err); !ok || state.Head() < v.at {
			return false, err
		}
	}
	if state.Manifest.Seq == v.state.Manifest.Seq {
		return false, nil
	}
	next, err := d.newView(ctx, state, v.at)
	if err != nil {
		return false, err
	}
	d.show(next, nil)
	d.log.Info("the repository was opened again at its newest manifest", "seq", state.Manifest.Seq)
	return true, nil
}

// show makes a view the current one. announce is called while nothing reads in either.
func (d *Database) show(v *view, announce func()) {
	d.mu.Lock()
	if announce != nil {
		announce()
	}
	d.view = d.withRunsLocked(v)
	used := map[*segment]bool{}
	for _, s := range v.segs {
		used[s] = true
	}
	for name, s := range d.segs {
		if !used[s] {
			delete(d.segs, name)
		}
	}
	d.mu.Unlock()
	d.startFilling()
	if d.files.dir != "" && time.Since(d.swept) >= sweepEvery {
		d.swept = time.Now()
		d.background(func() { d.sweep(v) })
	}
}

// warnHole tells once of a state whose newest transactions cannot be shown: a pack of the source came before all
// was stored that it touched.
func (d *Database) warnHole(state *backup.State, at tid.TID) {
	head := state.Head()
	e, ok := errors.AsType[*backup.NotExactError](state.Exact(head))
	if d.fixed || !ok || d.inHole == head {
		return
	}
	d.inHole = head
	d.log.Warn("the newest transactions of the repository are not shown: what the source was then cannot be told from what is stored, until it goes on after a pack", "last", at, "head", head, "err", e)
}

// Change says which objects a transaction changed.
type Change struct {
	TID  tid.TID
	OIDs []tid.OID
}

const (
	mostChanges = 10_000
	mostOIDs    = 1 << 20
)

// Refresh reads the newest state, and makes its head the last transaction unless Options.At
// was given. announce, if it is set, learns of all transactions that are new before any read shows
// them, and no read begins meanwhile: it must not wait nor read. complete is false if
// there are too many to list: then changes has none of them. last is the new last transaction.
//
// The state is the present one if the error is a [*backup.BrokenError]: the history ends at the
// break.
func (d *Database) Refresh(ctx context.Context, announce func(changes []Change, last tid.TID, complete bool)) error {
	d.refreshing.Lock()
	defer d.refreshing.Unlock()
	v := d.current()
	state, err := d.repo.State(ctx, v.state.Lineage, v.state)
	broken, _ := errors.AsType[*backup.BrokenError](err)
	if err != nil && broken == nil {
		return d.failed(ctx, err)
	}
	if state.Head() < v.state.Head() {
		if broken != nil {
			return broken
		}
		return fmt.Errorf("the repository ends with transaction %v, it ended with %v before: %w", state.Head(), v.state.Head(), backup.ErrIncomplete)
	}
	if state.Manifest.Seq == v.state.Manifest.Seq && len(state.Tails) == len(v.state.Tails) {
		return brokenOrNil(broken)
	}
	at := v.at
	if !d.fixed {
		at = max(at, newestExact(state))
	}
	if err := check(state, at); err != nil {
		return err
	}
	d.warnHole(state, at)
	next, err := d.newView(ctx, state, at)
	if err != nil {
		return d.failed(ctx, err)
	}
	next = d.withRuns(next)
	if at == v.at || announce == nil {
		d.show(next, nil)
		return brokenOrNil(broken)
	}
	changes, complete, err := d.changes(ctx, next, v.at)
	if err != nil {
		return d.failed(ctx, err)
	}
	d.show(next, func() { announce(changes, at, complete) })
	return brokenOrNil(broken)
}

func brokenOrNil(b *backup.BrokenError) error {
	if b == nil {
		return nil
	}
	return b
}

// changes lists what changed in a view after a TID.
func (d *Database) changes(ctx context.Context, v *view, after tid.TID) (list []Change, complete bool, err error) {
	n := 0
	for t, err := range d.infos(ctx, v, after, v.at) {
		if err != nil {
			return nil, false, err
		}
		n += len(t.OIDs)
		if len(list) == mostChanges || n > mostOIDs {
			return nil, false, nil
		}
		list = append(list, Change{t.TID, t.OIDs})
	}
	return list, true, nil
}

// warnFiles tells once that the index cache cannot be written.
func (d *Database) warnFiles(err error) {
	if !d.warned.Swap(true) {
		d.log.Warn("the index cache cannot be written: the index is read from the repository again", "path", d.files.dir, "err", err)
	}
}

var _ io.Closer = (*Database)(nil)
