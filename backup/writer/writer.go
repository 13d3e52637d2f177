package writer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// Options say what a writer reads and how it writes. Repo, Signer, Feed and StateDir are
// required, a zero field else takes its default.
type Options struct {
	// Repo should be on a store that repeats calls until their context ends: what the
	// store refuses for good, and what it still refuses then, ends the writer.
	Repo     *backup.Repository
	Signer   *snapshot.Signer
	Feed     feed.Feed
	StateDir string // of this repository alone; made if there is none

	// Recipients are the operators to whom new epochs are encrypted. If they are not those
	// of the newest one, a new one begins. None: the newest epoch stays.
	Recipients []snapshot.Recipient

	Interval    time.Duration // between flushes, while there is something new; default: 1 s
	Heartbeat   time.Duration // between tails, while there is nothing new; default: 5 min
	SegmentSize int64         // bytes of a sealed segment as stored; default: 128 MiB
	// Level is how hard everything is compressed. Default: [snapshot.Fastest] for what is read from
	// the source, [snapshot.Default] for what is merged and so stays.
	Level snapshot.Level

	// Lock asks for objects that cannot be deleted for a time: LockDays for what stays,
	// LockShortDays (default: 7) for what merges and later manifests replace.
	Lock          store.Mode
	LockDays      int
	LockShortDays int

	// RebaseOnPack lets the writer begin a new lineage by itself when a Data.fs was packed.
	// Otherwise the error is an ErrDiverged then, until Rebase is called on a writer with it.
	RebaseOnPack bool
	// AssumeSameHistory goes on although the source does not have the last transaction of the
	// repository, for a file from which a pack dropped it.
	AssumeSameHistory bool

	Log      *slog.Logger   // default: discard
	Progress func(Progress) // if set, called often while much is stored, from one goroutine at a time
	// Flushed, if set, is called after each flush with what it took, from the goroutine that flushes.
	Flushed func(took time.Duration)

	limits limits // default: usual
}

// Progress says how far a writer has come.
type Progress struct {
	Lineage snapshot.ID
	TID     tid.TID // that was read
	Target  tid.TID // last transaction of the source
	Head    tid.TID // everything up to it is acknowledged
	Txns    int64   // since the writer was opened, as are all that follow
	Records int64
	Text    int64 // bytes of text
	Stored  int64 // bytes of objects
}

// Errors of a writer, for errors.Is.
var (
	// ErrFenced reports that another writer adds to the lineage: a [*FencedError].
	ErrFenced = errors.New("another writer has taken over")
	// ErrDiverged reports that what the source has is not the continuation of what the
	// repository has: a [*DivergedError].
	ErrDiverged = errors.New("source and repository differ")
	// ErrBusy reports a state directory that another process uses.
	ErrBusy = errors.New("another process uses this state directory")
	// ErrClock reports clocks that differ too much.
	ErrClock = errors.New("the clocks of this host and of the store differ")
)

// FencedError is an ErrFenced. What was acknowledged before it is in the repository.
type FencedError struct {
	Key    string    // that the other writer created
	Writer string    // host/pid/nonce
	Asof   time.Time // of what it wrote; zero: not known
}

func (e *FencedError) Error() string {
	at := ""
	if !e.Asof.IsZero() { // a lineage may end before the source was first asked
		at = " at " + e.Asof.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("%v: %s was created by writer %s%s; stop one of the two", ErrFenced, e.Key, e.Writer, at)
}

// Is reports whether target is ErrFenced.
func (e *FencedError) Is(target error) bool { return target == ErrFenced }

// DivergedError is an ErrDiverged.
type DivergedError struct {
	Head   tid.TID // of the repository
	Common tid.TID // greatest TID at which both are known to agree; Zero: none
	Err    error   // how they differ
}

func (e *DivergedError) Error() string {
	s := fmt.Sprintf("%v: %v", ErrDiverged, e.Err)
	switch {
	case errors.Is(e.Err, feed.ErrPacked), errors.Is(e.Err, feed.ErrReplaced):
		return s + "; what a pack drops of a file cannot be told: a rebase reads it into a new lineage"
	case e.Common == e.Head:
		return s
	case e.Common == tid.Zero:
		return fmt.Sprintf("%s; the repository has transactions up to %v, and none of them is known to be in the source: is it another database?", s, e.Head)
	}
	return fmt.Sprintf("%s; they agree up to transaction %v, the repository has transactions up to %v: the source was truncated or restored from an older copy, or it is another database", s, e.Common, e.Head)
}

// Is reports whether target is ErrDiverged.
func (e *DivergedError) Is(target error) bool { return target == ErrDiverged }

// Unwrap returns how they differ.
func (e *DivergedError) Unwrap() error { return e.Err }

// Stats describes a writer and what it wrote.
type Stats struct {
	Lineage snapshot.ID
	Head    tid.TID   // everything up to it is acknowledged
	Asof    time.Time // the source had nothing beyond Head then
	Last    tid.TID   // of the source, when it was last asked

	Connected bool // the source answers
	Waiting   bool // Follow waits for something new: as far as the source has told, it has nothing beyond Head

	LineageBytes int64 // of the segments of the lineage, as stored

	Manifest int64 // number of the newest
	Tail     int64 // number of the newest
	Tails    int64 // since the manifest
	Open     int   // segments that are not sealed, as of the newest manifest

	Spool int64 // bytes of plaintext that are kept

	// Since the writer was opened.
	Txns, Records, Text int64
	Stored              int64 // bytes of objects created
	Objects             int64
	Flushes             int64
	FlushTime           time.Duration // of all flushes
	Heartbeats          int64
	Manifests           int64
	Postponed           int64 // merges that a fault of the state directory delayed
}

// Writer adds to a repository. Snapshot, Follow, Drain and Rebase must not be called at the same
// time; Stats may always.
type Writer struct {
	o     Options
	repo  *backup.Repository
	log   *slog.Logger
	name  string // host/pid/nonce
	lock  *os.File
	spool *spool
	kid   snapshot.KID
	to    snapshot.Recipient // of the epoch; nil without encryption

	note   *snapshot.Lineage // of the chain
	chain  *chain
	packed error       // the file was packed since the repository was written
	next   snapshot.ID // lineage of a rebase under way; zero: there is none

	caughtUp bool // Follow had stored all that there was

	mu       sync.Mutex
	stats    Stats
	progress Progress
	asked    time.Time         // since when the source owes an answer; zero: it does not
	spoolErr error             // of the last attempt to keep a plaintext
	marks    map[string]string // of the source, by lineage

	telling sync.Mutex // held while Progress is called
	marking sync.Mutex // held while the marks are written
}

// Open prepares to add to the current lineage of a repository: it reads where the lineage
// ends, and makes sure that the source continues it. The state directory is locked until
// Close. The error is an ErrBusy, ErrDiverged or ErrClock, or that of the repository or
// the source.
func Open(ctx context.Context, o Options) (*Writer, error) {
	if o.Feed == nil {
		return nil, errors.New("a writer needs a source")
	}
	w, err := prepare(o)
	if err != nil {
		return nil, err
	}
	if err := w.open(ctx); err != nil {
		w.lock.Close()
		return nil, err
	}
	return w, nil
}

// prepare returns a writer that has its state directory, and has read nothing yet.
func prepare(o Options) (*Writer, error) {
	if o.Repo == nil || o.Signer == nil || o.StateDir == "" {
		return nil, errors.New("a writer needs a repository, a signing key and a state directory")
	}
	if o.Signer.Role() != snapshot.Writer {
		return nil, fmt.Errorf("key %s signs as %s, want %s", o.Signer.Name(), o.Signer.Role(), snapshot.Writer)
	}
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = 5 * time.Minute
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = 128 << 20
	}
	if o.limits == (limits{}) {
		o.limits = usual
	}
	if o.LockShortDays == 0 {
		o.LockShortDays = 7
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Interval < 0 || o.Heartbeat < 0 || o.SegmentSize < 0 || o.SegmentSize > store.MaxObject || o.LockDays < 0 || o.LockShortDays < 0 || o.Lock != "" && o.LockDays == 0 {
		return nil, fmt.Errorf("interval %v, heartbeat %v, segment size %d, lock %q for %d and %d days: out of range", o.Interval, o.Heartbeat, o.SegmentSize, o.Lock, o.LockDays, o.LockShortDays)
	}
	w := &Writer{o: o, repo: o.Repo, log: o.Log, name: backup.WriterName()}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if w.lock, err = LockFile(filepath.Join(o.StateDir, "lock"), ErrBusy); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *Writer) open(ctx context.Context) error {
	if err := w.openLineage(ctx); err != nil {
		return err
	}
	if err := w.openEpoch(ctx); err != nil {
		return err
	}
	if err := w.checkSource(ctx, w.chain); err != nil {
		return err
	}
	next, err := w.readRebase()
	if err != nil {
		return err
	}
	w.next = next
	if err := w.cleanSpool(w.next); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	w.report(w.chain)
	return nil
}

// openLineage reads where the current lineage ends, and what the state directory has of it.
func (w *Writer) openLineage(ctx context.Context) error {
	at := w.mark()
	note, err := w.repo.Current(ctx)
	if err != nil {
		return err
	}
	if err := w.checkClock(); err != nil {
		return err
	}
	if w.spool, err = openSpool(filepath.Join(w.o.StateDir, "spool")); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	state, err := w.repo.State(ctx, note.Lineage, nil)
	if err != nil {
		return err
	}
	w.note = note
	if w.chain, err = w.newChain(state, at); err != nil {
		return err
	}
	return w.readMarks()
}

// checkClock compares the clock of this host with that of the store.
func (w *Writer) checkClock() error {
	date := store.Date(w.repo.Store)
	if date.IsZero() {
		return nil
	}
	switch d := time.Since(date).Round(time.Second).Abs(); {
	case d > store.ClockError:
		return fmt.Errorf("%w by %v: set the clock of this host", ErrClock, d)
	case d > store.ClockWarning:
		w.log.Warn("the clocks of this host and of the store differ", "difference", d)
	}
	return nil
}

// openEpoch finds what to encrypt to.
func (w *Writer) openEpoch(ctx context.Context) error {
	if w.repo.Marker.Encryption == snapshot.EncryptionNone {
		if len(w.o.Recipients) > 0 {
			return fmt.Errorf("the repository is not encrypted, for its whole life, but recipients are configured: %w", backup.ErrKeys)
		}
		return nil
	}
	epochs, err := w.repo.Epochs(ctx)
	if err != nil {
		return err
	}
	var newest *snapshot.Epoch
	if n := len(epochs); n > 0 {
		newest = epochs[n-1]
	}
	if len(w.o.Recipients) > 0 && (newest == nil || !backup.SameRecipients(newest, w.o.Recipients)) {
		if newest, err = w.repo.NewEpoch(ctx, w.o.Signer, w.o.Recipients); err != nil {
			return err
		}
		w.log.Info("a new epoch of the key begins", "epoch", newest.KID)
	}
	if newest == nil {
		return fmt.Errorf("the repository has no epoch, and no recipients are configured: %w", backup.ErrKeys)
	}
	w.kid = newest.KID
	w.to, err = snapshot.ParseRecipient(newest.Recipient)
	return err
}

// Close gives up the state directory. What was not stored is not lost: the source has it.
func (w *Writer) Close() error { return w.lock.Close() }

// Lineage returns the note of the lineage that the writer adds to.
func (w *Writer) Lineage() *snapshot.Lineage {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.note
}

// sourceTimeout is how long a source may take for an answer while it counts as connected.
const sourceTimeout = 10 * time.Second

// Stats returns what the writer has done.
func (w *Writer) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stats
	s.Spool = w.spool.used()
	if !w.asked.IsZero() && time.Since(w.asked) > sourceTimeout {
		s.Connected = false
	}
	return s
}

// count changes the counts.
func (w *Writer) count(f func(*Stats)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.stats)
}

// report shows in the counts where the lineage of the writer ends.
func (w *Writer) report(c *chain) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c != w.chain {
		return // a rebase that is not current yet
	}
	w.stats.Lineage, w.stats.Head, w.stats.Asof = c.id, c.end.Head, c.asof
	w.stats.Manifest, w.stats.Tail, w.stats.Tails = c.manifest.Seq, c.end.N, int64(len(c.tails))
	w.stats.Open, w.stats.LineageBytes = 0, c.manifest.Stored
	for _, t := range c.tails {
		for i := range t.lines {
			w.stats.LineageBytes += t.lines[i].Bytes
		}
	}
	for _, i := range c.manifest.Items {
		if i.Segment != nil {
			if _, ok := w.spool.find(pieceName(c.id, i.Segment)); ok {
				w.stats.Open++
			}
		}
	}
}

// mark returns the present moment.
func (w *Writer) mark() mark { return mark{time.Now(), store.Date(w.repo.Store)} }

// storeNow returns the present time of the store, as well as it is known.
func (w *Writer) storeNow() time.Time {
	if t := store.Date(w.repo.Store); !t.IsZero() {
		return t
	}
	return time.Now()
}

// long and short say for how long an object is locked.
const (
	long  = false
	short = true
)

// put creates an object.
func (w *Writer) put(ctx context.Context, key string, body io.ReaderAt, size int64, sum snapshot.Hash, short bool) error {
	o := store.PutOptions{Create: true, SHA256: sum}
	if w.o.Lock != "" {
		days := w.o.LockDays
		if short {
			days = min(days, w.o.LockShortDays)
		}
		o.Retain = store.Retention{Mode: w.o.Lock, Until: w.storeNow().Add(time.Duration(days) * 24 * time.Hour)}
	}
	if err := w.repo.Store.Put(ctx, key, body, size, o); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Objects++
	w.stats.Stored += size
	w.progress.Stored += size
	return nil
}

// putHashed creates an object whose key has the hash of its bytes, and returns since when it
// is stored: a process that was killed may have done it before.
func (w *Writer) putHashed(ctx context.Context, key string, body io.ReaderAt, size int64, sum snapshot.Hash, short bool) (time.Time, error) {
	now := time.Now()
	err := w.put(ctx, key, body, size, sum, short)
	if !errors.Is(err, store.ErrExists) {
		return now, err
	}
	got, info, err := w.repo.Store.Get(ctx, key, 0, store.All)
	if err != nil {
		return now, err
	}
	defer got.Close()
	if info.Size == size {
		same, err := equal(got, body, size)
		if err != nil {
			return now, fmt.Errorf("compare %s: %w", key, err)
		}
		if same {
			return now.Add(-w.storeNow().Sub(info.Modified)), nil
		}
	}
	return now, &snapshot.CorruptError{Name: key, Offset: -1, Err: errors.New("it has other bytes than its name says")}
}

// equal reports whether both have the same bytes.
func equal(r io.Reader, body io.ReaderAt, size int64) (bool, error) {
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); off < size; {
		n := min(int64(len(a)), size-off)
		if _, err := io.ReadFull(r, a[:n]); err != nil {
			return false, err
		}
		if got, err := body.ReadAt(b[:n], off); int64(got) < n {
			return false, err
		}
		if !bytes.Equal(a[:n], b[:n]) {
			return false, nil
		}
		off += n
	}
	return true, nil
}

// errOld reports an object that must not be referred to any more: an [*oldError].
var errOld = errors.New("it is too old to be named")

type oldError struct {
	key  string
	size int64 // bytes
	age  time.Duration
}

func (e *oldError) Error() string {
	return fmt.Sprintf("%s was stored %v ago and is named by nothing yet: it may be about to be deleted, and is not used", e.key, e.age.Round(time.Second))
}

func (e *oldError) Is(target error) bool { return target == errOld }

// old returns an errOld if an object was stored too long ago.
func old(key string, size int64, stored time.Time) error {
	if age := time.Since(stored); age >= maxUnreferenced {
		return &oldError{key, size, age}
	}
	return nil
}

// sourceMarks is what the state directory keeps of the source, for each lineage that is written.
type sourceMarks struct {
	Repo  string            `json:"repo"`
	Marks map[string]string `json:"marks"`
}

func (w *Writer) markPath() string { return filepath.Join(w.o.StateDir, "source") }

// readMarks reads what the last writer noted of the source. It may be nothing.
func (w *Writer) readMarks() error {
	w.marks = map[string]string{}
	b, err := os.ReadFile(w.markPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	var m sourceMarks
	if err := json.Unmarshal(b, &m); err != nil || m.Repo != w.repo.Marker.ID.String() {
		w.log.Warn("what the state directory says of the source is not of this repository, and is ignored", "file", w.markPath())
		return nil
	}
	if m.Marks != nil {
		w.marks = m.Marks
	}
	return nil
}

// markOf returns what is noted of the source for a lineage.
func (w *Writer) markOf(id snapshot.ID) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.marks[id.String()]
}

// writeMark notes the source up to the head of a lineage, for the next start.
func (w *Writer) writeMark(ctx context.Context, c *chain) error {
	m, err := w.o.Feed.Mark(ctx, c.end.Head)
	if err != nil {
		return err
	}
	w.marking.Lock()
	defer w.marking.Unlock()
	w.mu.Lock()
	if old, ok := w.marks[c.id.String()]; ok && old == m {
		w.mu.Unlock()
		return nil
	}
	for id := range w.marks {
		if id != w.note.Lineage.String() && id != w.next.String() {
			delete(w.marks, id)
		}
	}
	w.marks[c.id.String()] = m
	b, err := json.Marshal(sourceMarks{w.repo.Marker.ID.String(), w.marks})
	w.mu.Unlock()
	if err != nil {
		return err
	}
	if err := writeFile(w.markPath(), append(b, '\n')); err != nil {
		// The next start can do without.
		w.log.Warn("the state directory cannot be written", "err", err)
	}
	return nil
}
