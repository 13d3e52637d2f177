package repair

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
)

// Errors, for errors.Is. They come wrapped, with what they are about.
var (
	// ErrNoManifest reports a lineage whose newest manifest does not verify: [Recover] is for that.
	ErrNoManifest = errors.New("no manifest verifies")
	// ErrRefused reports a plan that cannot be carried out without more: a source, a copy, or what the operator
	// accepts.
	ErrRefused = errors.New("not everything can be repaired")
	// ErrChanged reports that another program added to the repository in a way that the plan does not fit any more.
	// Nothing was changed, but for objects that nothing names.
	ErrChanged = errors.New("the repository has changed meanwhile")
	// ErrDiverged reports a source that is not the one that was backed up.
	ErrDiverged = errors.New("source and repository differ")
	// ErrDoomed reports an object that would be used and that a prune is about to delete.
	ErrDoomed = errors.New("a prune is about to delete it")
)

// Options say what is repaired, and with what. Repo and Lineage are required, and Signer to apply a plan; a zero field
// else takes its default.
type Options struct {
	Repo    *backup.Repository
	Lineage snapshot.ID
	Signer  *snapshot.Signer // of the writer
	Keys    *backup.Keys     // default: what is encrypted cannot be opened

	From   *backup.Repository // another copy of the same repository; default: none
	Source feed.Feed          // what was backed up; default: none

	// AcceptGaps makes a gap of what cannot be repaired: what is in it is lost, and a restore of a later moment must accept that too.
	AcceptGaps bool
	// AcceptUnsigned uses segments that no signed note names and that were not compared with the source. The public
	// recipient is all that it takes to make such ones.
	AcceptUnsigned bool
	// Quick looks only whether objects are there and have the right size. Default: all bytes are read.
	Quick bool
	// SeenManifest and SeenTail are the greatest numbers of a manifest and of a tail that are known to have existed.
	SeenManifest, SeenTail int64

	Scratch     string // directory of temporary files; default: os.TempDir
	Parallel    int    // objects that are read at once; default: 8
	SegmentSize int64  // bytes of a new segment as stored; default: 128 MiB
	Level       snapshot.Level

	// Lock asks for objects that cannot be deleted for a time, manifests for LockShortDays (default: 7).
	Lock          store.Mode
	LockDays      int
	LockShortDays int

	Log *slog.Logger // default: discard
	// Progress is told how many bytes were read of those that will be. It is called from one goroutine at a time.
	Progress func(done, total int64)
}

// Means is how something is repaired.
type Means string

// The means, in the order in which they are tried.
const (
	Version  Means = "version"  // an older version of the object has the right bytes
	Copy     Means = "copy"     // another copy of the repository has the right bytes
	Smaller  Means = "smaller"  // signed notes name other segments with the same range
	Source   Means = "source"   // the source has the same content
	Again    Means = "again"    // the range, of which nothing is known, is read from the source again
	Reduced  Means = "reduced"  // the source was packed: what it still has, which is exact from the pack on
	Compared Means = "compared" // segments that no signed note names, but the source has the same
	Unsigned Means = "unsigned" // segments that no signed note names
	Gap      Means = "gap"      // it is lost
	Listed   Means = "listed"   // nothing is lost: the new manifest says it
	Merged   Means = "merged"   // of a compaction
	Left     Means = "left"     // it stays as it is: its key cannot be written again
	None     Means = "none"
)

// Step is something that is wrong, and what is done about it.
type Step struct {
	Key string `json:"key,omitempty"` // of the object; "": none is known
	// After and Upto are the range of the history; both Zero: it has none.
	After   tid.TID `json:"after,omitzero"`
	Upto    tid.TID `json:"upto,omitzero"`
	Problem string  `json:"problem"`
	Means   Means   `json:"means"`
	Detail  string  `json:"detail,omitempty"` // where from, or why nothing else works
}

// String returns a line for an operator.
func (s Step) String() string {
	text := s.Problem
	if s.Upto != tid.Zero {
		text += fmt.Sprintf(" (transactions after %v up to %v)", s.After, s.Upto)
	}
	text += ": " + s.Means.text()
	if s.Detail != "" {
		text += ": " + s.Detail
	}
	return text
}

func (m Means) text() string {
	switch m {
	case Version:
		return "an older version of the object is right, and is stored again"
	case Copy:
		return "the other repository has it, it is copied"
	case Smaller:
		return "other segments have the same, they take its place"
	case Source:
		return "the source has the same content, it is stored again"
	case Again:
		return "it is read again from the source"
	case Reduced:
		return "the source was packed: what it still has is stored, which is exact from the pack on"
	case Compared:
		return "segments are used that no signed note names, and of which the source has the same content"
	case Left:
		return "it stays as it is"
	case Unsigned:
		return "segments are used that no signed note names"
	case Gap:
		return "LOST: it becomes a gap"
	case Listed:
		return "nothing is lost, the new manifest says so"
	case Merged:
		return "merged"
	}
	return "cannot be repaired"
}

// Plan says what is to be done.
type Plan struct {
	Lineage snapshot.ID     `json:"lineage"`
	Head    tid.TID         `json:"head"`     // of the repository afterwards
	Old     tid.TID         `json:"old_head"` // that readers have now; Zero: none
	Seq     int64           `json:"manifest"` // number of the manifest that would be written; 0: none is needed
	Tail    int64           `json:"tail"`     // it sums up all tails up to this number
	Steps   []Step          `json:"steps,omitempty"`
	Holes   []snapshot.Hole `json:"-"`
	Gaps    []snapshot.Gap  `json:"-"`
	Objects int64           `json:"objects"` // that were looked at
	Bytes   int64           `json:"bytes"`
	// Unsigned are the objects that would be used without being named by a signed note.
	Unsigned []string `json:"unsigned,omitempty"`

	e    *engine
	d    *draft
	more tid.TID // head after tails that are created again
}

// Needed reports whether there is anything to do.
func (p *Plan) Needed() bool { return p.Seq != 0 || len(p.d.notes) > 0 }

// Err returns an [ErrRefused] with the first step that has no means.
func (p *Plan) Err() error {
	n := 0
	var first Step
	for _, s := range p.Steps {
		if s.Means == None {
			if n == 0 {
				first = s
			}
			n++
		}
	}
	switch n {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%w: %v", ErrRefused, first)
	}
	return fmt.Errorf("%w: %v, and %d more", ErrRefused, first, n-1)
}

// Result says what was done.
type Result struct {
	Seq     int64   `json:"manifest"` // that was published; 0: none
	Head    tid.TID `json:"head"`
	Objects int64   `json:"objects"` // that were stored
	Bytes   int64   `json:"bytes"`
}

// engine is what all of them need.
type engine struct {
	o      Options
	repo   *backup.Repository
	id     snapshot.ID
	name   string // host/pid/nonce
	log    *slog.Logger
	doomed map[string]string // keys, and the doom list that names them

	kid snapshot.KID
	to  snapshot.Recipient // of the epoch; nil without encryption

	pool    *pool   // once it is needed
	sameAs  bool    // the source was compared
	noSame  error   // why the source is not used
	file    bool    // the source is a file: of what a pack drops no trace is left
	tips    []tipAt // that signed notes tell
	objects int64   // that were stored
	bytes   int64
	gaps    []snapshot.Gap // of which it is known that they are lost
}

func newEngine(ctx context.Context, o Options) (*engine, error) {
	if o.Repo == nil || o.Lineage == (snapshot.ID{}) {
		return nil, errors.New("a repair needs a repository and a lineage")
	}
	if o.Signer != nil && o.Signer.Role() != snapshot.Writer {
		return nil, fmt.Errorf("key %s signs as %s, want %s", o.Signer.Name(), o.Signer.Role(), snapshot.Writer)
	}
	if o.Keys == nil {
		o.Keys = o.Repo.Unlock()
	}
	if o.Parallel == 0 {
		o.Parallel = 8
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = 128 << 20
	}
	if o.LockShortDays == 0 {
		o.LockShortDays = 7
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.From != nil && o.From.Marker.ID != o.Repo.Marker.ID {
		return nil, fmt.Errorf("the repository to copy from is %v, not a copy of %v", o.From.Marker.ID, o.Repo.Marker.ID)
	}
	e := &engine{o: o, repo: o.Repo, id: o.Lineage, name: backup.WriterName(), log: o.Log}
	if o.Source != nil {
		e.file = o.Source.Source().Kind == feed.KindFile
	}
	if err := e.openEpoch(ctx); err != nil {
		return nil, err
	}
	return e, e.readDoomed(ctx)
}

// openEpoch finds what to encrypt to. Without a note that verifies nothing can be encrypted.
func (e *engine) openEpoch(ctx context.Context) error {
	if !e.repo.Encrypted() {
		return nil
	}
	epochs, err := e.repo.Epochs(ctx)
	if wrong(err) {
		e.log.Warn("not all notes of epochs can be read", "err", err)
		return nil
	}
	if err != nil || len(epochs) == 0 {
		return err
	}
	newest := epochs[len(epochs)-1]
	e.kid = newest.KID
	e.to, err = snapshot.ParseRecipient(newest.Recipient)
	return err
}

// wrong reports whether an error says that an object is not what it was.
func wrong(err error) bool {
	return errors.Is(err, snapshot.ErrCorrupt) || errors.Is(err, snapshot.ErrUntrusted) || errors.Is(err, store.ErrNotFound) || errors.Is(err, backup.ErrIncomplete)
}

// readDoomed finds what doom lists name. One that does not verify is carried out by no keeper: it must not prevent
// a repair.
func (e *engine) readDoomed(ctx context.Context) error {
	lists, err := e.repo.DoomLists(ctx)
	if err != nil {
		return err
	}
	e.doomed = map[string]string{}
	for _, l := range lists {
		if l.Void {
			continue
		}
		d, err := e.repo.Doom(ctx, l.Key)
		if wrong(err) {
			e.log.Warn("a doom list is ignored", "key", l.Key, "err", err)
			continue
		}
		if err != nil {
			return err
		}
		for _, o := range d.Objects {
			e.doomed[o.Key] = l.Key
		}
	}
	return nil
}

// storeNow returns the time of the store, as well as it is known.
func (e *engine) storeNow() time.Time {
	if t := store.Date(e.repo.Store); !t.IsZero() {
		return t
	}
	return time.Now()
}

// Damage reports whether the plan is about something that is wrong, and not only about merges.
func (p *Plan) Damage() bool {
	return slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Means != Merged })
}
