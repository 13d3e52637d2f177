package copier

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// Options say what is copied where. From and To are required.
type Options struct {
	From *backup.Repository
	To   store.Store // it should repeat
	Name string      // of To, in errors and in the state directory: its URL

	// StateDir is where this host keeps what it has copied, so that a later copy knows what is
	// there also when the repository has given up the notes that say so. Default: it is not kept.
	StateDir string
	// AssumeSameHistory takes what is in To for an earlier state of From although nothing
	// that is left shows it.
	AssumeSameHistory bool

	Verify   bool   // read all that was written again
	Scratch  string // directory of temporary files, for objects above 8 MiB; default: os.TempDir
	Parallel int    // objects that are copied at once; default: 4

	// Lock asks for objects that cannot be deleted for a time, as a writer does.
	Lock          store.Mode
	LockDays      int
	LockShortDays int // default: 7

	Log      *slog.Logger   // default: discard
	Progress func(Progress) // if set, called after each object, from one goroutine at a time
}

// Progress says how far a copy has come.
type Progress struct {
	Objects, Bytes           int64 // that were copied
	TotalObjects, TotalBytes int64 // to be copied
}

// Count counts objects.
type Count struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

func (c *Count) add(size int64) {
	c.Objects++
	c.Bytes += size
}

// Summary says what a copy has done, or is going to do.
type Summary struct {
	First  bool  `json:"first"`         // there was nothing before
	Needed Count `json:"needed"`        // that a copy has
	Equal  Count `json:"already_there"` // of these
	Copied Count `json:"copied"`        // of these
	Read   Count `json:"read_again"`    // that were verified after they were written

	// OtherWraps are wraps of the keys of epochs that were made in the copy.
	OtherWraps int64 `json:"other_wraps,omitempty"`
	// LeftOut is what the repository has and a copy does not need, by reason.
	LeftOut map[string]Count `json:"left_out,omitempty"`

	Lineages int64             `json:"lineages"`
	State    *backup.State     `json:"-"` // of the current lineage
	Lineage  *snapshot.Lineage `json:"-"`
}

// Reasons for which objects are left out.
const (
	Spare      = "spare"      // nothing refers to it any more
	Unfinished = "unfinished" // of a lineage without note: a fork or rebase under way
	ProbeLeft  = "probe"
	DoomList   = "doom_list" // what the keeper of the repository deletes
	Foreign    = "foreign"   // no object of a repository
	Untrusted  = "untrusted" // no trusted key has signed it
)

// Errors of a copy, for errors.Is.
var (
	// ErrOther reports a place that is another repository.
	ErrOther = errors.New("it is another repository")
	// ErrDiverged reports a copy that is not an earlier state of the repository.
	ErrDiverged = errors.New("the copy is not an earlier state of the repository")
	// ErrUnknown reports a copy of which nothing shows that it is an earlier state.
	ErrUnknown = errors.New("nothing shows that the copy is an earlier state of the repository")
	// ErrConflict reports an object of the copy that has other bytes.
	ErrConflict = errors.New("the copy has other bytes")
	// ErrDoomed reports an object in the copy that a keeper is about to delete.
	ErrDoomed = errors.New("about to be deleted in the copy")
)

// maxInMemory is the size of the greatest object that is copied through memory.
const maxInMemory = 8 << 20

// maxNote is the greatest length of a note that is read.
const maxNote = 64 << 20

// replans is how often a copy begins again, since the repository has given up an object meanwhile.
const replans = 10

// Copy makes To an exact copy of From as it is now, as far as it is not one. It may be repeated, after
// any interruption as well, while a writer adds to From and a keeper removes what is superseded.
//
// With a [*backup.BrokenError] everything before the break was copied.
func Copy(ctx context.Context, o Options) (*Summary, error) {
	c, err := newCopier(o)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		err := c.plan(ctx)
		gone := errors.Is(err, store.ErrNotFound)
		if err == nil {
			err = c.carryOut(ctx)
			_, gone = errors.AsType[*goneError](err)
		}
		if gone && try < replans {
			c.o.Log.Info("something was removed from the repository meanwhile: what a copy needs is found out again", "err", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		return &c.sum, errors.Join(c.broken...)
	}
}

// Plan says what Copy would do now. Nothing is written.
func Plan(ctx context.Context, o Options) (*Summary, error) {
	c, err := newCopier(o)
	if err != nil {
		return nil, err
	}
	if err := c.plan(ctx); err != nil {
		return nil, err
	}
	return &c.sum, errors.Join(c.broken...)
}

// object is one that a copy needs.
type object struct {
	key   string
	kind  snapshot.Kind
	size  int64                // -1: as listed
	sum   snapshot.Hash        // of all bytes; zero: not known
	check func(b []byte) error // of a note; nil: sum says all
	line  *snapshot.Segment    // of a segment behind a tail
}

// goneError reports an object of the repository that is not there any more.
type goneError struct {
	key string
	err error
}

func (e *goneError) Error() string { return fmt.Sprintf("%s: %v", e.key, e.err) }
func (e *goneError) Unwrap() error { return e.err }

// lineage is one that is copied.
type lineage struct {
	note  *snapshot.Lineage
	state *backup.State
	data  []object // before the manifest
	tails []object // that the manifest names for the segments behind them, ascending
	after []object // tails after the manifest, ascending
	later []object // superseded manifests that proofs name, proofs
}

type copier struct {
	o    Options
	to   *backup.Repository // nil: there is no marker yet
	sum  Summary
	prev Count // copied by earlier tries

	marker   []byte
	from     map[string]store.Info // all objects of the repository
	have     map[string]store.Info // of the copy
	needed   map[string]int64      // with sizes, -1: not known
	before   []object              // wraps and notes of epochs
	lineages []*lineage
	end      []object // policies
	broken   []error

	mu    sync.Mutex
	total Count
}

func newCopier(o Options) (*copier, error) {
	if o.From == nil || o.To == nil {
		return nil, errors.New("a copy needs a repository and a place")
	}
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	if o.LockShortDays <= 0 {
		o.LockShortDays = 7
	}
	if o.Lock != "" && o.LockDays <= 0 {
		return nil, fmt.Errorf("lock %q for %d days: out of range", o.Lock, o.LockDays)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &copier{o: o}, nil
}

// carryOut copies what is missing, in the order in which nothing ever refers to what is not there.
func (c *copier) carryOut(ctx context.Context) error {
	if err := c.all(ctx, c.before, 1); err != nil {
		return err
	}
	for _, l := range c.lineages {
		if err := c.all(ctx, l.data, c.o.Parallel); err != nil {
			return err
		}
		if err := c.alive(ctx, l); err != nil {
			return err
		}
		note := snapshot.Key{Kind: snapshot.KindLineage, N: l.note.K}.String()
		// Until the manifest is there, those of its tails that do not follow on the last one of
		// the copy are a gap in its chain: there is as little as possible between.
		head := append(slices.Clone(l.tails), c.manifest(l.state))
		head = append(head, l.after...)
		head = append(head, object{key: note, kind: snapshot.KindLineage, size: -1, check: c.verified(note, &snapshot.Lineage{})})
		if slices.ContainsFunc(head, func(x object) bool { _, there := c.have[x.key]; return !there }) {
			// The data may have taken hours: a writer that was started on the copy meanwhile has tails that the
			// manifest would sum up.
			if err := c.relate(ctx, l); err != nil {
				return err
			}
		}
		if err := c.all(ctx, head, 1); err != nil {
			return err
		}
		if err := c.all(ctx, l.later, 1); err != nil {
			return err
		}
	}
	if err := c.all(ctx, c.end, 1); err != nil {
		return err
	}
	if _, there := c.have[snapshot.MarkerKey]; !there {
		if err := c.put(ctx, snapshot.KindMarker, snapshot.MarkerKey, bytes.NewReader(c.marker), int64(len(c.marker)), snapshot.Sum(c.marker)); err != nil {
			return err
		}
		c.copied(int64(len(c.marker)))
	}
	if err := c.complete(ctx); err != nil {
		return err
	}
	c.remember()
	return nil
}

// all copies objects that are not there, several at once.
func (c *copier) all(ctx context.Context, list []object, parallel int) error {
	g, within := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, x := range list {
		if _, ok := c.have[x.key]; ok {
			continue
		}
		if within.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := within.Err(); err != nil {
				return err // what comes after an object that failed must not be there
			}
			return c.one(within, x)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// one copies an object.
func (c *copier) one(ctx context.Context, x object) error {
	body, size, sum, err := c.read(ctx, x)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := c.put(ctx, x.kind, x.key, body, size, sum); err != nil {
		return err
	}
	if c.o.Verify {
		if err := c.same(ctx, x.key, size, sum); err != nil {
			return fmt.Errorf("reading again what was just written: %w", err)
		}
		c.mu.Lock()
		c.sum.Read.add(size)
		c.mu.Unlock()
	}
	c.copied(size)
	return nil
}

func (c *copier) copied(size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum.Copied.add(size)
	if c.o.Progress != nil {
		c.o.Progress(Progress{c.sum.Copied.Objects, c.sum.Copied.Bytes, c.total.Objects, c.total.Bytes})
	}
}

// body is the content of an object, in memory or in a file without a name.
type body struct {
	io.ReaderAt
	file *os.File
}

func (b *body) Close() error {
	if b.file == nil {
		return nil
	}
	return b.file.Close()
}

// read reads an object, and verifies it.
func (c *copier) read(ctx context.Context, x object) (*body, int64, snapshot.Hash, error) {
	var none snapshot.Hash
	src, info, err := c.o.From.Store.Get(ctx, x.key, 0, store.All)
	if errors.Is(err, store.ErrNotFound) {
		return nil, 0, none, &goneError{x.key, err}
	}
	if err != nil {
		return nil, 0, none, err
	}
	defer src.Close()
	if x.size >= 0 && info.Size != x.size {
		return nil, 0, none, &snapshot.CorruptError{Name: x.key, Offset: -1, Err: fmt.Errorf("an object of %d bytes, want %d", info.Size, x.size)}
	}
	if x.check != nil && info.Size > maxNote {
		return nil, 0, none, &snapshot.CorruptError{Name: x.key, Offset: -1, Err: fmt.Errorf("a note of %d bytes", info.Size)}
	}
	b := &body{}
	var memory []byte
	sum := sha256.New()
	if info.Size <= maxInMemory || x.check != nil {
		memory = make([]byte, info.Size)
		if _, err := io.ReadFull(src, memory); err != nil {
			return nil, 0, none, fmt.Errorf("read %s: %w", x.key, err)
		}
		sum.Write(memory)
		b.ReaderAt = bytes.NewReader(memory)
	} else {
		if b.file, err = os.CreateTemp(c.o.Scratch, "neobackup-*.copy"); err != nil {
			return nil, 0, none, err
		}
		b.ReaderAt = b.file
		// The room is free again when the file is closed, also after a crash.
		err := os.Remove(b.file.Name())
		var n int64
		if err == nil {
			n, err = io.Copy(io.MultiWriter(b.file, sum), src)
		}
		if err == nil && n != info.Size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			b.Close()
			return nil, 0, none, fmt.Errorf("read %s into %s: %w", x.key, b.file.Name(), err)
		}
	}
	got := snapshot.Hash(sum.Sum(nil))
	err = nil
	switch {
	case x.sum != none && got != x.sum:
		err = &snapshot.CorruptError{Name: x.key, Offset: -1, Err: fmt.Errorf("its SHA-256 is %v, want %v", got, x.sum)}
	case x.line != nil:
		err = c.behindTail(x, b, info.Size)
	}
	if err == nil && x.check != nil {
		err = x.check(memory)
	}
	if err != nil {
		b.Close()
		return nil, 0, none, err
	}
	return b, info.Size, got, nil
}

// behindTail verifies a tail and the segment behind its note.
func (c *copier) behindTail(x object, b *body, size int64) error {
	l := x.line
	note := make([]byte, l.Offset())
	if _, err := b.ReadAt(note, 0); err != nil {
		return fmt.Errorf("read %s: %w", x.key, err)
	}
	if _, err := snapshot.OpenTail(note, x.key, c.o.From.Marker.ID, c.o.From.Trusted); err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(b, l.Offset(), size-l.Offset())); err != nil {
		return fmt.Errorf("read %s: %w", x.key, err)
	}
	if got := snapshot.Hash(sum.Sum(nil)); got != l.SHA256 {
		return &snapshot.CorruptError{Name: x.key, Offset: -1, Err: fmt.Errorf("the SHA-256 of its segment is %v, want %v", got, l.SHA256)}
	}
	return nil
}

// put creates an object of the copy. One that is there already has to have the same bytes.
func (c *copier) put(ctx context.Context, kind snapshot.Kind, key string, b io.ReaderAt, size int64, sum snapshot.Hash) error {
	o := store.PutOptions{Create: true, SHA256: sum}
	if c.o.Lock != "" {
		days := c.o.LockDays
		if kind == snapshot.KindTail || kind == snapshot.KindManifest { // later ones replace them
			days = min(days, c.o.LockShortDays)
		}
		now := store.Date(c.o.To)
		if now.IsZero() {
			now = time.Now()
		}
		o.Retain = store.Retention{Mode: c.o.Lock, Until: now.Add(time.Duration(days) * 24 * time.Hour)}
	}
	err := c.o.To.Put(ctx, key, b, size, o)
	if errors.Is(err, store.ErrExists) {
		return c.same(ctx, key, size, sum)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", key, err)
	}
	return nil
}

// same reads an object of the copy and returns an ErrConflict unless it has these bytes.
func (c *copier) same(ctx context.Context, key string, size int64, want snapshot.Hash) error {
	r, info, err := c.o.To.Get(ctx, key, 0, store.All)
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	if info.Size == size {
		if _, err := io.Copy(sum, r); err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
	}
	if info.Size != size || snapshot.Hash(sum.Sum(nil)) != want {
		return fmt.Errorf("%w under %s: keys are written once, and nothing is replaced", ErrConflict, key)
	}
	return nil
}

// alive makes sure that no keeper of the copy is about to delete what its next manifest refers to.
func (c *copier) alive(ctx context.Context, l *lineage) error {
	if c.to == nil {
		return nil
	}
	if lists, err := c.to.DoomLists(ctx); err != nil || len(lists) == 0 {
		return err
	}
	own, err := references(ctx, c.to, l.note.Lineage)
	if err != nil {
		return err
	}
	need := map[string]bool{}
	for _, x := range append(slices.Clone(l.data), l.tails...) {
		_, there := c.have[x.key]
		need[x.key] = there && !own[x.key]
	}
	doomed, err := c.to.Doomed(ctx, func(key string) bool { return need[key] })
	for key, list := range doomed {
		return fmt.Errorf("%s is %w, as %s says: cancel that by neobackup prune --undo of the copy", key, ErrDoomed, list)
	}
	return err
}

// references returns what a lineage of a repository refers to; nothing if it is not there yet.
func references(ctx context.Context, r *backup.Repository, id snapshot.ID) (map[string]bool, error) {
	keys := map[string]bool{}
	s, err := r.State(ctx, id, nil)
	if s == nil {
		if errors.Is(err, backup.ErrIncomplete) {
			err = nil
		}
		return keys, err
	}
	for _, key := range backup.References(s.Manifest) {
		keys[key] = true
	}
	for p, err := range r.Parts(ctx, s, 0, s.Head()) {
		if err != nil {
			return nil, err
		}
		if p.Segment != nil {
			keys[p.Segment.Key] = true
		}
	}
	return keys, nil
}

// complete compares the list of the copy with what it needs.
func (c *copier) complete(ctx context.Context) error {
	sizes := map[string]int64{}
	for info, err := range c.o.To.List(ctx, "", "") {
		if err != nil {
			return err
		}
		sizes[info.Key] = info.Size
	}
	var missing []string
	for key, want := range c.needed {
		if info, ok := c.from[key]; ok {
			want = info.Size
		}
		size, ok := sizes[key]
		if !ok {
			missing = append(missing, key)
		} else if want >= 0 && size != want {
			return fmt.Errorf("%w under %s: %d, the repository %d", ErrConflict, key, size, want)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("%s: %w: %d objects, the first of them %s, are not in the list of the copy", c.o.Name, backup.ErrIncomplete, len(missing), missing[0])
	}
	return nil
}
