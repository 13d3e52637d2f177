package feed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// DefaultPoll is how often a source that does not tell of changes is looked at.
const DefaultPoll = time.Second

// FileOptions configures a [File]. A zero field takes the documented default.
type FileOptions struct {
	Poll time.Duration // how often the file is looked at; default: DefaultPoll
	Log  *slog.Logger  // default: discard
}

// File is a Data.fs. A server may have it open and commit to it.
type File struct {
	path string
	poll time.Duration
	log  *slog.Logger

	look sync.Mutex // held while the file is looked at

	mu      sync.Mutex
	current *opened
	told    tid.TID // by Last
	read    tid.TID // the greatest transaction that was read
	resumed place   // that Resume has found again
	packed  tid.TID
	closed  bool
}

var _ Feed = (*File)(nil)

// opened is the file as it was at a moment. It is closed after its last use.
type opened struct {
	r    *fsformat.Reader
	info os.FileInfo
	tail fsformat.Tail
	uses int // File.current counts
}

// place is where a transaction is.
type place struct {
	tid    tid.TID
	pos    int64
	status byte
}

// errFileClosed reports the use of a File after Close.
var errFileClosed = errors.New("the feed is closed")

// OpenFile opens a Data.fs. It need not be locked: a server may go on using it.
func OpenFile(ctx context.Context, path string, o FileOptions) (*File, error) {
	f := &File{path: path, poll: o.Poll, log: o.Log}
	if f.poll == 0 {
		f.poll = DefaultPoll
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	err := f.steady(ctx, func() (err error) {
		f.current, err = f.open(func() (*fsformat.Reader, error) { return fsformat.Open(path, fsformat.Options{}) }, ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open Data.fs: %w", orderHint(err))
	}
	if t := f.current.tail; t.Ignored > 0 {
		f.log.Info("the end of the file is no finished transaction yet", "path", path, "offset", t.End, "bytes", t.Ignored, "reason", t.Reason)
	}
	return f, nil
}

// orderHint says what to do about ids that are out of order.
func orderHint(err error) error {
	if errors.Is(err, fsformat.ErrOrder) {
		return fmt.Errorf("%w: make a file of it whose ids increase with \"neoexport --renumber\", and use that from now on", err)
	}
	return err
}

// open makes a reader of the file, with what is known of the file that it has open.
func (f *File) open(open func() (*fsformat.Reader, error), ctx context.Context) (*opened, error) {
	before, err := os.Stat(f.path)
	if err != nil {
		return nil, err
	}
	r, err := open()
	if err != nil {
		return nil, err
	}
	after, err := os.Stat(f.path)
	if err == nil && !os.SameFile(before, after) {
		err = fmt.Errorf("%s: replaced while it was opened", f.path) // again, see steady
	}
	o := &opened{r: r, info: after, uses: 1}
	if err == nil {
		o.tail, err = r.Tail(ctx)
	}
	if err != nil {
		r.Close() // only read
		return nil, err
	}
	return o, nil
}

// Attempts to read the end of a file that is just being written, and the pause between
// them. A transaction that is given up is cut off, which reading may come across; and a
// pack has no file at the path for a moment.
const (
	fileAttempts = 20
	filePause    = 50 * time.Millisecond
)

// steady repeats what fails as long as the file changes.
func (f *File) steady(ctx context.Context, look func() error) error {
	for i := 1; ; i++ {
		before, beforeErr := os.Stat(f.path)
		err := look()
		if err == nil || ctx.Err() != nil || errors.Is(err, fsformat.ErrReplaced) || final(err) || i == fileAttempts {
			return err
		}
		if after, afterErr := os.Stat(f.path); i > 2 && beforeErr == nil && afterErr == nil && after.Size() == before.Size() &&
			after.ModTime().Equal(before.ModTime()) && os.SameFile(before, after) {
			return err // it is so
		}
		select {
		case <-time.After(filePause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// final reports an error of ours, which does not go away.
func final(err error) bool {
	return errors.Is(err, ErrPacked) || errors.Is(err, ErrReplaced) || errors.Is(err, ErrChanged) || errors.Is(err, errFileClosed)
}

// use returns the file as it was seen last. done must be called after use.
func (f *File) use() (o *opened, done func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, nil, errFileClosed
	}
	o = f.current
	o.uses++
	return o, func() { f.release(o) }, nil
}

func (f *File) release(o *opened) {
	f.mu.Lock()
	o.uses--
	last := o.uses == 0
	f.mu.Unlock()
	if last {
		o.r.Close() // only read
	}
}

// refresh sees what the file has now.
func (f *File) refresh(ctx context.Context) error {
	f.look.Lock()
	defer f.look.Unlock()
	err := f.steady(ctx, func() error {
		o, done, err := f.use()
		if err != nil {
			return err
		}
		defer done()
		changed, err := f.differs(o)
		if err != nil || !changed {
			return err
		}
		next, err := f.open(func() (*fsformat.Reader, error) { return o.r.Follow(ctx) }, ctx)
		if errors.Is(err, fsformat.ErrReplaced) {
			return f.explain(ctx, o)
		}
		if err != nil {
			return orderHint(err)
		}
		if !os.SameFile(next.info, o.info) {
			f.log.Info("the file is another one with the same beginning", "path", f.path)
		}
		f.mu.Lock()
		if f.closed {
			f.mu.Unlock()
			next.r.Close()
			return errFileClosed
		}
		f.current = next
		f.mu.Unlock()
		f.release(o)
		return nil
	})
	if _, ok := errors.AsType[*fsformat.MagicError](err); ok {
		return fmt.Errorf("%w by something else: %w", ErrReplaced, err)
	}
	if errors.Is(err, fs.ErrNotExist) { // not mounted, or about to be restored
		return fmt.Errorf("%w: %w", txn.ErrUnavailable, err)
	}
	return err
}

// differs reports whether the file may have other finished transactions than it had.
func (f *File) differs(o *opened) (bool, error) {
	fi, err := os.Stat(f.path)
	if err != nil {
		return false, err
	}
	return fi.Size() != o.tail.End || !os.SameFile(fi, o.info), nil
}

// explain says why the file does not go on after what it was.
func (f *File) explain(ctx context.Context, old *opened) error {
	now, err := f.open(func() (*fsformat.Reader, error) { return fsformat.Open(f.path, fsformat.Options{}) }, ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return err // for a moment of a pack
	}
	if err != nil {
		return fmt.Errorf("%s: %w by something else: %w", f.path, ErrReplaced, err)
	}
	defer now.r.Close()
	last := old.tail.LastTID
	p, found, err := find(ctx, now, last)
	if err != nil {
		return fmt.Errorf("%s: %w by a file that cannot be read: %w", f.path, ErrReplaced, err)
	}
	packed, err := firstPacked(ctx, now)
	if err != nil {
		return fmt.Errorf("%s: %w by a file that cannot be read: %w", f.path, ErrReplaced, err)
	}
	switch {
	case found && p.status == txn.Packed, packed && (found || now.tail.LastTID >= last):
		return f.packedError(last)
	case os.SameFile(now.info, old.info) && now.tail.End < old.tail.End:
		return f.truncatedError(last, now.tail.LastTID)
	case os.SameFile(now.info, old.info):
		return fmt.Errorf("%s: %w: it was written over: where transaction %v was is something else", f.path, ErrChanged, last)
	}
	return fmt.Errorf("%s: %w: the new one ends with transaction %v, the one before had %v at another place or it is not in this one: put the right file back, or back this one up as another history", f.path, ErrReplaced, now.tail.LastTID, last)
}

func (f *File) packedError(t tid.TID) error {
	return fmt.Errorf("%s: %w after transaction %v was backed up: a pack leaves no trace of what it removes, so the backup has to begin again from this file: \"neobackup rebase\"", f.path, ErrPacked, t)
}

func (f *File) truncatedError(had, has tid.TID) error {
	return fmt.Errorf("%s: %w: it was truncated, or is an older copy: its last transaction is %v, it had %v", f.path, ErrChanged, has, had)
}

// find returns where a transaction is.
func find(ctx context.Context, o *opened, t tid.TID) (p place, found bool, err error) {
	if t == tid.Zero || t > o.tail.LastTID {
		return p, false, nil
	}
	for tr, err := range o.r.Scan(ctx, t-1, t) {
		if err != nil {
			return p, false, err
		}
		return place{tr.TID, tr.Head.Pos, tr.Status}, true, nil
	}
	return p, false, nil
}

// firstPacked reports whether the first transaction is one that a pack has left.
func firstPacked(ctx context.Context, o *opened) (bool, error) {
	for tr, err := range o.r.Scan(ctx, tid.Zero, tid.Max) {
		if err != nil {
			return false, err
		}
		return tr.Status == txn.Packed, nil
	}
	return false, nil
}

// Source implements [Feed].
func (f *File) Source() snapshot.Source { return snapshot.Source{Kind: KindFile, Name: f.path} }

// Last implements [Feed].
func (f *File) Last(ctx context.Context) (tid.TID, time.Time, error) {
	now := time.Now()
	if err := ctx.Err(); err != nil {
		return 0, now, err
	}
	if err := f.refresh(ctx); err != nil {
		return 0, now, fmt.Errorf("last transaction: %w", err)
	}
	o, done, err := f.use()
	if err != nil {
		return 0, now, err
	}
	defer done()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = max(f.told, o.tail.LastTID)
	return f.told, now, nil
}

// Info implements [Feed].
func (f *File) Info(ctx context.Context, t tid.TID) (*txn.Transaction, error) {
	o, done, err := f.use()
	if err != nil {
		return nil, err
	}
	defer done()
	if t != tid.Zero && t <= o.tail.LastTID {
		for tr, err := range o.r.Scan(ctx, t-1, t) {
			if err != nil {
				return nil, err
			}
			return &txn.Transaction{
				TID: tr.TID, Status: tr.Status,
				User: slices.Clone(tr.User), Description: slices.Clone(tr.Description), Extension: slices.Clone(tr.Extension),
			}, nil
		}
	}
	return nil, fmt.Errorf("%s: transaction %v: %w", f.path, t, txn.ErrNotFound)
}

// Read implements [Feed]. A record whose object id seems to be damaged is reported in the
// log. Read takes 5 bytes of memory for each object of the range.
func (f *File) Read(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		o, done, err := f.use()
		if err != nil {
			yield(nil, err)
			return
		}
		defer done()
		// What is behind the last transaction may become one at any time.
		upTo := min(upTo, o.tail.LastTID)
		if after >= upTo {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
			}
			return
		}
		checked := o.r.Checked(func(e *fsformat.CorruptError) error {
			f.log.Error("a record of the source is damaged", "err", e)
			return nil
		})
		first := true
		for tr, err := range checked.Transactions(ctx, after, upTo) {
			if err == nil && first && tr.Status == txn.Packed {
				err = f.mayBePacked(after)
			}
			if err != nil {
				yield(nil, f.failed(ctx, o, err))
				return
			}
			first = false
			f.note(tr)
			records := tr.Records
			tr.Records = func(yield func(*txn.Record, error) bool) {
				for rec, err := range records {
					if err == nil {
						err = ctx.Err()
					}
					if err != nil {
						yield(nil, f.failed(ctx, o, err))
						return
					}
					if !yield(rec, nil) {
						return
					}
				}
			}
			if !yield(tr, nil) {
				return
			}
		}
	}
}

// mayBePacked refuses transactions after one that a pack has left, unless they were left by
// a pack before that one was read.
func (f *File) mayBePacked(after tid.TID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if after == tid.Zero || after <= f.read || after <= f.resumed.tid || f.resumed.status == txn.Packed {
		return nil
	}
	return f.packedError(after)
}

// note takes what the status of a transaction that is read tells of packs: those at or
// before the time of the last one are marked, and none after it.
func (f *File) note(t *txn.Transaction) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case t.Status == txn.Packed:
		f.packed = max(f.packed, t.TID)
	case f.packed != tid.Zero && f.read == f.packed && t.TID > f.packed:
		f.packed = t.TID - 1 // the first one that is not marked
	}
	f.read = max(f.read, t.TID)
}

// failed explains the error of a read: the file may have changed under it.
func (f *File) failed(ctx context.Context, o *opened, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if final(err) {
		return err
	}
	if fi, statErr := os.Stat(f.path); statErr == nil && os.SameFile(fi, o.info) && fi.Size() < o.tail.End {
		return fmt.Errorf("%s: %w: it was truncated to %d bytes while it was read, it had %d (%w)", f.path, ErrChanged, fi.Size(), o.tail.End, err)
	}
	return orderHint(err)
}

// Packed implements [Feed]. The time of a pack is not in the file: it is between the last
// transaction that the pack has marked and the next one. So it is taken to be just before
// that, or the last one of a file which has none after it.
func (f *File) Packed(ctx context.Context) (tid.TID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, errFileClosed
	}
	return f.packed, ctx.Err()
}

// Has implements [Feed].
func (f *File) Has(ctx context.Context, oid tid.OID, at tid.TID) (bool, error) {
	o, done, err := f.use()
	if err != nil {
		return false, err
	}
	defer done()
	if at == tid.Zero || at > o.tail.LastTID {
		return false, ctx.Err()
	}
	for tr, err := range o.r.Scan(ctx, at-1, at) {
		if err != nil {
			return false, f.failed(ctx, o, err)
		}
		for rec, err := range tr.Places {
			if err != nil {
				return false, f.failed(ctx, o, err)
			}
			if rec.OID == oid {
				return true, nil
			}
		}
		break
	}
	return false, ctx.Err()
}

// fileMark is the form of the marks of a File: TID, position and status of a transaction. A pack
// moves it, unless it removes nothing before it.
const fileMark = "Data.fs %v %d %d"

// Mark implements [Feed].
func (f *File) Mark(ctx context.Context, t tid.TID) (string, error) {
	o, done, err := f.use()
	if err != nil {
		return "", err
	}
	defer done()
	if t == tid.Zero {
		return "", ctx.Err()
	}
	p, found, err := find(ctx, o, t)
	if err == nil && !found {
		err = fmt.Errorf("transaction %v: %w", t, txn.ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", f.path, err)
	}
	return fmt.Sprintf(fileMark, p.tid, p.pos, p.status), nil
}

// Resume implements [Feed].
func (f *File) Resume(ctx context.Context, mark string) error {
	if !strings.HasPrefix(mark, "Data.fs ") {
		return ctx.Err()
	}
	var p place
	var id string
	_, err := fmt.Sscanf(mark, "Data.fs %s %d %d", &id, &p.pos, &p.status)
	if err == nil {
		p.tid, err = tid.Parse(id)
	}
	if err != nil {
		return fmt.Errorf("%s: the mark %q: %w", f.path, mark, err)
	}
	o, done, err := f.use()
	if err != nil {
		return err
	}
	defer done()
	now, found, err := find(ctx, o, p.tid)
	if err != nil {
		return f.failed(ctx, o, err)
	}
	if found && now == p {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.resumed = p
		return nil
	}
	packed, err := firstPacked(ctx, o)
	switch {
	case err != nil:
		return f.failed(ctx, o, err)
	case o.tail.LastTID < p.tid:
		return f.truncatedError(p.tid, o.tail.LastTID)
	case packed:
		return f.packedError(p.tid)
	case found:
		return fmt.Errorf("%s: %w: transaction %v is at offset %d and was at %d: it is another file", f.path, ErrReplaced, p.tid, now.pos, p.pos)
	}
	return fmt.Errorf("%s: %w: transaction %v is not in it: it is another file", f.path, ErrReplaced, p.tid)
}

// Wait implements [Feed].
func (f *File) Wait(ctx context.Context) error {
	for {
		o, done, err := f.use()
		if err != nil {
			return err
		}
		changed, err := f.differs(o)
		if changed || errors.Is(err, fs.ErrNotExist) {
			// Not only the size: a transaction under way may stay for long.
			err = f.refresh(ctx)
		}
		done()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.mu.Lock()
		something := f.current.tail.LastTID > f.told
		f.mu.Unlock()
		if err != nil || something {
			return err
		}
		select {
		case <-time.After(f.poll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close implements [Feed].
func (f *File) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	o := f.current
	f.mu.Unlock()
	f.release(o)
	return nil
}
