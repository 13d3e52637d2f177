package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/importer/config"
)

// lookInterval is how often a file in use is looked at.
const lookInterval = time.Second

var _ Indexed = (*file)(nil)

// file is a Data.fs, as long as it was when it was opened. Its index is in memory.
type file struct {
	section  string
	path     string
	r        *fsformat.Reader
	checked  *fsformat.Checked
	tail     fsformat.Tail
	extent   Extent
	unlock   func() error
	writable bool
	log      *slog.Logger

	end fsformat.Header // of the last transaction

	closeOnce sync.Once
	closeErr  error
	damaged   sync.Map // texts of errors that were told

	looked atomic.Int64 // when the file was looked at last, in ns
	bad    atomic.Bool  // lost is not nil: each read looks
	mu     sync.Mutex
	opened os.FileInfo
	mtime  time.Time // when what the file has was last verified
	lost   error     // reads are refused, nil if not
	moved  error     // reads go on, nil if the file is at its place
	grown  bool

	wrong map[int64]bool // offsets of records that were reported as damaged
}

// maxWrong is how many damaged records of a file are told.
const maxWrong = 1000

// report tells of a record that is damaged, but can be read: a copy does not show it any more.
func (f *file) report(e *fsformat.CorruptError) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wrong[e.Offset] || len(f.wrong) > maxWrong {
		return nil
	}
	if f.wrong == nil {
		f.wrong = map[int64]bool{}
	}
	if f.wrong[e.Offset] = true; len(f.wrong) > maxWrong {
		f.log.Warn("more records of the source are damaged: they are not told one by one (neofs check lists all)", "path", f.path)
		return nil
	}
	f.log.Warn("a record of the source is damaged, and imported as it is: nothing will show the damage any more", "err", e)
	return nil
}

func openFile(ctx context.Context, section string, cfg *config.File, opt Options) (Source, error) {
	f := &file{section: section, path: cfg.Path, writable: opt.Writable, log: opt.Log}
	fi, err := os.Stat(cfg.Path)
	if err != nil {
		return nil, err
	}
	switch {
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a regular file", cfg.Path)
	case fi.Size() == 0:
		return nil, fmt.Errorf("%s: %w: the file has no bytes; a database without transactions needs no import", cfg.Path, ErrEmpty)
	}
	if !opt.Writable {
		if f.unlock, err = lock(cfg.Path, opt.Log); err != nil {
			return nil, err
		}
	}
	if err := f.open(ctx, opt.Progress); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if cfg.BlobDir != "" {
		opt.Log.Warn("the files of blobs are not imported, only their records are", "blob_dir", cfg.BlobDir)
	}
	return f, nil
}

// lock keeps writers away from a file.
func lock(path string, log *slog.Logger) (unlock func() error, err error) {
	unlock, err = fsformat.Lock(path)
	if l, ok := errors.AsType[*fsformat.LockedError](err); ok {
		if l.PID == fmt.Sprint(os.Getpid()) {
			return nil, fmt.Errorf("%s is in use by this process already: is it two sources?", path)
		}
		return nil, fmt.Errorf("%s is in use by process %s: stop it first: %w", path, l.PID, err)
	}
	if err == nil || !errors.Is(err, fs.ErrPermission) && !errors.Is(err, errReadOnlyFS) {
		return unlock, err
	}
	if _, exists := os.Lstat(path + ".lock"); !errors.Is(exists, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s cannot be locked, so that a server may have it open: allow to write to the lock: %w", path, err)
	}
	// A server that has the file open would have made the lock.
	log.Warn("the file cannot be locked: see that no server opens it before the import has ended", "path", path, "err", err)
	return func() error { return nil }, nil
}

func (f *file) release() error {
	unlock := f.unlock
	f.unlock = nil
	if unlock == nil {
		return nil
	}
	return unlock()
}

func (f *file) open(ctx context.Context, progress func(pos, size int64)) (err error) {
	if f.r, err = fsformat.Open(f.path, fsformat.Options{}); err != nil {
		return err
	}
	if f.opened, err = os.Stat(f.path); err != nil {
		return err
	}
	f.mtime = f.opened.ModTime()
	var told fsformat.Progress
	if progress != nil {
		told = func(pos int64) { progress(pos, f.r.Size()) }
	}
	began := time.Now()
	unusable, err := f.r.UseIndex(ctx, "", told)
	switch {
	case errors.Is(err, fsformat.ErrOrder):
		return fmt.Errorf("%w: make a file of it whose ids increase with \"neoexport --renumber\", and import that", err)
	case errors.As(err, new(*fsformat.CorruptError)):
		return fmt.Errorf("%w: the file has no index that can be used and is damaged: repair a copy with \"neofs salvage\", and import that", err)
	case err != nil:
		return err
	}
	x := f.r.Index()
	switch {
	case errors.Is(unusable, fs.ErrNotExist):
		f.log.Info("the file has no index: it was read to make one, which is kept in memory", "path", f.path, "objects", x.Len(), "seconds", time.Since(began).Seconds())
	case unusable != nil:
		f.log.Warn("the stored index cannot be used: the file was read to make one, which is kept in memory", "path", f.path, "objects", x.Len(), "seconds", time.Since(began).Seconds(), "err", unusable)
	}
	if f.tail, err = f.r.Tail(ctx); err != nil {
		return err
	}
	if f.tail.LastTID == tid.Zero {
		return fmt.Errorf("%s: %w: it has no transaction; such a database needs no import", f.path, ErrEmpty)
	}
	if f.tail.Ignored > 0 {
		f.log.Warn("the end of the file is no finished transaction: it is not imported", "path", f.path, "offset", f.tail.End, "bytes", f.tail.Ignored, "reason", f.tail.Reason)
	}
	f.checked = f.r.Checked(f.report)
	if f.tail.LastTID > tid.FromTime(time.Now().Add(time.Minute)) {
		f.log.Warn("the last transaction is in the future: what is committed after it gets ids above that", "path", f.path, "tid", f.tail.LastTID, "time", f.tail.LastTID.Time().Format(time.DateTime))
	}
	for t, err := range f.r.ScanBackwards(ctx) {
		if err != nil {
			return err
		}
		f.end = t.Head
		break
	}
	f.extent.Last = f.tail.LastTID
	if greatest, ok := x.MaxOID(); ok {
		if f.extent.Next, err = next(greatest); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	f.log.Info("opened", "path", f.path, "magic", string(f.r.Magic()), "objects", x.Len(), "bytes", f.tail.End, "last", f.extent.Last, "seconds", time.Since(began).Seconds())
	return nil
}

func (f *file) Close() error {
	f.closeOnce.Do(func() {
		if f.r != nil {
			f.closeErr = f.r.Close()
		}
		f.closeErr = errors.Join(f.closeErr, f.release())
	})
	return f.closeErr
}

// Extent implements [Source]: it is that of the opening.
func (f *file) Extent(context.Context) (Extent, error) { return f.extent, nil }

func (f *file) Position(t tid.TID) (pos, size int64, ok bool) {
	pos, err := f.r.Position(context.Background(), t)
	return min(pos, f.tail.End), f.tail.End, err == nil
}

func (f *file) Trouble() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	if f.lost != nil {
		return f.lost
	}
	return f.moved
}

// serves returns why the file must not be read any more. It looks at the file once in a
// while.
func (f *file) serves() error {
	if !f.bad.Load() {
		now := time.Now().UnixNano()
		if last := f.looked.Load(); now-last < int64(lookInterval) || !f.looked.CompareAndSwap(last, now) {
			return nil
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	return f.lost
}

// failed explains the error of a read: the file may have changed.
func (f *file) failed(ctx context.Context, err error) error {
	if answered(ctx, err) {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	if f.lost != nil {
		return f.lost
	}
	return fmt.Errorf("source %s: %w", f.section, err)
}

// look compares the file at the path with the one that is open.
func (f *file) look() {
	lost, moved := f.compare()
	tell(f.log, f.lost, lost, "the file is again what it was")
	tell(f.log, f.moved, moved, "the file is again at its place")
	f.lost, f.moved = lost, moved
	f.bad.Store(lost != nil)
	f.looked.Store(time.Now().UnixNano())
}

func tell(log *slog.Logger, before, now error, good string) {
	switch {
	case now != nil && (before == nil || before.Error() != now.Error()):
		log.Error("the source has changed", "err", now)
	case now == nil && before != nil:
		log.Info(good)
	}
}

func (f *file) compare() (lost, moved error) {
	changed := func(format string, args ...any) error {
		return &changedError{fmt.Sprintf("source %s: %s: ", f.section, f.path) + fmt.Sprintf(format, args...)}
	}
	fi, err := os.Stat(f.path)
	switch {
	case err != nil:
		return nil, changed("the file was removed: %v; it is still open here and read on: put it back before this process ends", err)
	case !os.SameFile(fi, f.opened):
		return nil, changed("the file was replaced by another one; the old one is still open here and read on: put it back before this process ends")
	case fi.Size() < f.tail.End:
		return changed("the file was truncated to %d bytes, it had %d: put back what it was", fi.Size(), f.r.Size()), nil
	}
	if !fi.ModTime().Equal(f.mtime) || f.lost != nil {
		if t, err := f.r.TransactionAt(f.end.Pos); err != nil || t.Head != f.end {
			return changed("the file was written over: where its last transaction was, %v at offset %d, is something else: put back what it was", f.end.TID, f.end.Pos), nil
		}
		f.mtime = fi.ModTime()
	}
	if n := fi.Size() - f.r.Size(); n > 0 && !f.grown && !f.writable {
		f.grown = true
		f.log.Warn("the file has grown since it was opened: what was added is not imported; stop what writes to it", "path", f.path, "bytes", n)
	}
	return nil, nil
}

// LoadBefore implements [txn.Database].
func (f *file) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	if err := f.serves(); err != nil {
		return txn.Revision{}, err
	}
	r, err := f.r.LoadBefore(ctx, oid, before)
	return r, f.failed(ctx, err)
}

// LoadAt implements [txn.Database].
func (f *file) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	if err := f.serves(); err != nil {
		return txn.Revision{}, err
	}
	r, err := f.r.LoadAt(ctx, oid, at)
	return r, f.failed(ctx, err)
}

// LastRevision implements [Indexed].
func (f *file) LastRevision(oid tid.OID) (last tid.TID, known bool) {
	if f.serves() != nil {
		return tid.Zero, false
	}
	last, err := f.r.LastRevision(oid)
	return last, err == nil
}

// DataTID implements [Indexed].
func (f *file) DataTID(ctx context.Context, oid tid.OID, at tid.TID) (tid.TID, error) {
	if err := f.serves(); err != nil {
		return tid.Zero, err
	}
	t, err := f.r.DataTIDAt(oid, at)
	return t, f.failed(ctx, err)
}

// Revisions implements [txn.Database].
func (f *file) Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	if err := f.serves(); err != nil {
		return nil, err
	}
	list, err := f.r.Revisions(ctx, oid, n)
	return list, f.failed(ctx, err)
}

// LastTID implements [txn.History].
func (f *file) LastTID(context.Context) (tid.TID, error) { return f.extent.Last, f.serves() }

// Transactions implements [txn.History].
func (f *file) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for t, err := range guarded(ctx, f, f.checked.Transactions(ctx, after, upTo)) {
			if err == nil {
				t.Records = guarded(ctx, f, t.Records)
			}
			if !yield(t, err) {
				return
			}
		}
	}
}

// Backwards implements [txn.Database]. A damaged record does not end it: what else its
// transaction has is found, and those before it are.
func (f *file) Backwards(ctx context.Context) iter.Seq2[*txn.Info, error] {
	return guarded(ctx, f, f.r.BackwardsPastDamage(ctx, func(err error) {
		if _, told := f.damaged.LoadOrStore(err.Error(), true); !told {
			f.log.Error("a record of the source is damaged", "err", err)
		}
	}))
}

// OIDs implements [txn.Database].
func (f *file) OIDs(ctx context.Context, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error] {
	return guarded(ctx, f, f.r.OIDs(ctx, at, from))
}

// guarded is a sequence of what is read from a file, until that does not serve.
func guarded[T any](ctx context.Context, f *file, seq iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for v, err := range seq {
			if err == nil {
				err = f.serves()
			} else {
				err = f.failed(ctx, err)
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}

// Added returns the last transaction of a Data.fs and how many it has after one, which is
// the last one of an import: if that is not in it, the error is an [ErrChanged]. The file may be in
// use.
func Added(ctx context.Context, path string, end tid.TID) (last tid.TID, added int, err error) {
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		return 0, 0, err
	}
	defer r.Close()
	for t, err := range r.ScanBackwards(ctx) {
		switch {
		case err != nil:
			return 0, 0, err
		case added == 0 && last == tid.Zero:
			last = t.TID
		}
		if t.TID == end {
			return last, added, nil
		}
		if t.TID < end {
			break
		}
		added++
	}
	return 0, 0, &changedError{fmt.Sprintf("%s: transaction %v is not in it: it is another file, or was packed or truncated", path, end)}
}
