package drill

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Mode is what a drill restores to.
type Mode string

// The modes.
const (
	File    Mode = "file"    // a Data.fs in the scratch directory
	Cluster Mode = "cluster" // the tables of a cluster, which is then started and read
	Read    Mode = "read"    // nothing: all segments are read and verified
)

// Head as the moment of a drill is the newest one that can be restored.
const Head = tid.Max

// DefaultSample is how many objects are compared byte by byte.
const DefaultSample = 1000

var (
	// ErrSetup reports a drill that could not begin: what it needs is missing or of no use.
	ErrSetup = errors.New("a drill needs more")
	// ErrDamaged reports a repository that is not as it was written.
	ErrDamaged = errors.New("the repository is damaged")
)

// Phase is what a drill does.
type Phase string

// The phases, in their order.
const (
	Opening   Phase = "opening"
	Reading   Phase = "reading" // in place of the next two, in the mode of that name
	Restoring Phase = "restoring"
	Comparing Phase = "comparing"
	Objects   Phase = "comparing objects"
	Source    Phase = "comparing with the source"
)

// Options say what is drilled, and how. Store, Trusted, Signer and Scratch are required, other
// zero fields take the default.
type Options struct {
	Store      store.Store // it should repeat
	Trusted    snapshot.Verifiers
	Identities []age.Identity   // default: none, for a repository that is not encrypted
	Signer     *snapshot.Signer // of the role drill, and trusted
	Lineage    snapshot.ID      // default: the current one
	// At is the moment to be restored. Default: the head, and after a proof of that a moment
	// chosen at random.
	At   tid.TID
	Mode Mode // default: File
	// Scratch is a directory with room for what is restored. The drill makes a directory of its
	// own there.
	Scratch string
	Keep    bool // what was restored is not removed, by no later drill either

	// Source opens what is backed up. Default: nothing is compared with it.
	Source func(context.Context) (feed.Feed, error)
	// Check, unless it is nil, may refuse the state that was found: it may be older than what this host
	// has seen, say.
	Check func(*backup.State) error

	// AcceptOlder goes on although newer objects are missing than what was found before: what is
	// lost is known. The next drill knows only what this one has found.
	AcceptOlder bool

	// Lock and LockDays are the retention of the proof. Default: none.
	Lock     store.Mode
	LockDays int

	Sample int              // objects that are compared byte by byte; default: DefaultSample
	Rand   *rand.Rand       // default: one with a random seed
	Now    func() time.Time // default: time.Now
	Log    *slog.Logger     // default: discard
	// Progress is told how far a phase is: of objects their number, of all else bytes of text, or
	// stored bytes when they are only read. It is called from one goroutine at a time. Default: none.
	Progress func(p Phase, done, total int64)

	// For tests: what takes the place of the restore, and of its comparison.
	restore func(context.Context, *run) (*target, error)
	compare func(context.Context, *run, *target) (*restore.Result, error)
}

// Result is what a drill found out.
type Result struct {
	Repository string
	K          int64           // number of the lineage
	Proof      *snapshot.Proof // nil if nothing can be said
	Key        string          // of the stored proof; "" if none was written
	Head       bool            // whether the moment is the head
	// Objects were compared byte by byte between what was restored and what a client of the
	// repository gets. Existing is how many objects there are; they are the same ones in both.
	Objects, Existing int64
	// References of those objects were looked up. Dangling lead to no object.
	References, Dangling int64
	// Source says in words what came of the comparison with the source.
	Source   string
	Findings []verify.Finding // up to maxFindings
	Found    int64            // how many there were, without warnings
	Warnings []string
	Kept     string // directory of what was restored, with Keep
}

// maxFindings is how many findings are kept.
const maxFindings = 100

// maxReason is the greatest length of the reason in a proof, in bytes.
const maxReason = 2000

func (o *Options) setDefaults() error {
	if o.Mode == "" {
		o.Mode = File
	}
	if o.Sample == 0 {
		o.Sample = DefaultSample
	}
	if o.Rand == nil {
		o.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.restore == nil {
		o.restore = restoreTarget
	}
	if o.compare == nil {
		o.compare = compareTarget
	}
	switch o.Mode {
	case File, Cluster, Read:
	default:
		return fmt.Errorf("%w: mode %q is none of file, cluster and read", ErrSetup, o.Mode)
	}
	switch {
	case o.Signer == nil:
		return fmt.Errorf("%w: no key to sign the proof with", ErrSetup)
	case o.Signer.Role() != snapshot.Driver:
		return fmt.Errorf("%w: the key %s signs no proofs: they are signed by one of the role %s", ErrSetup, o.Signer.Name(), snapshot.Driver)
	case o.Scratch == "":
		return fmt.Errorf("%w: no scratch directory", ErrSetup)
	}
	return nil
}

// Run restores, compares, and writes the proof. The error is why the drill failed, or why it
// could not begin; the result is nil if nothing can be said. A drill that failed has
// written a proof that says so, unless ctx ended, it could not begin, or the store does not take it.
func Run(ctx context.Context, o Options) (*Result, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	d := &run{o: &o, store: store.Count(o.Store), start: time.Now()}
	err := d.open(ctx)
	if err == nil {
		err = d.work(ctx)
		err = errors.Join(err, d.close())
	}
	switch {
	case d.res == nil:
	case err != nil && ctx.Err() == nil && d.began:
		err = d.failed(ctx, err)
	case d.res.Key == "":
		d.res.Proof = nil
	}
	return d.res, err
}

// run is a drill.
type run struct {
	o     *Options
	store *store.Counted
	start time.Time

	repo    *backup.Repository
	lineage *snapshot.Lineage
	keys    *backup.Keys
	state   *backup.State
	proofs  []*backup.StoredProof
	at      tid.TID
	opened  time.Duration // how long it took to find the state
	root    txn.Revision
	telling sync.Mutex
	began   bool // what goes wrong is a drill that failed
	scratch *scratch
	door    *door
	target  *target
	src     *restore.Source
	plan    *restore.Plan

	proof *snapshot.Proof
	res   *Result
}

func (d *run) progress(p Phase, done, total int64) {
	if d.o.Progress != nil {
		d.o.Progress(p, done, total)
	}
}

func (d *run) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	d.o.Log.Warn("drill", "warning", text)
	d.res.Warnings = append(d.res.Warnings, text)
}

// config returns how the repository is opened.
func (d *run) config() backup.Config {
	return backup.Config{Store: d.store, Trusted: d.o.Trusted, Log: d.o.Log}
}

// open finds out what the repository is, and makes sure that a proof can be written.
func (d *run) open(ctx context.Context) (err error) {
	d.progress(Opening, 0, 0)
	if d.repo, err = backup.Open(ctx, d.config()); err != nil {
		return err
	}
	d.keys = d.repo.Unlock(d.o.Identities...)
	if d.lineage, err = d.repo.Current(ctx); err != nil {
		return err
	}
	if want := d.o.Lineage; want != (snapshot.ID{}) && want != d.lineage.Lineage {
		if d.lineage, err = d.named(ctx, want); err != nil {
			return err
		}
	}
	d.opened = time.Since(d.start)
	d.res = &Result{Repository: d.repo.Marker.Name, K: d.lineage.K, Source: "not compared"}
	d.proof = &snapshot.Proof{
		Repo: d.repo.Marker.ID, Lineage: d.lineage.Lineage, Mode: string(d.o.Mode), Compared: snapshot.Compared{Source: noSource}, Epochs: []snapshot.KID{},
	}
	d.res.Proof = d.proof
	if err := d.canSign(); err != nil {
		d.res.Proof = nil
		return err
	}
	d.scratch, err = newScratch(ctx, d.o)
	return err
}

// named returns the note of a lineage.
func (d *run) named(ctx context.Context, id snapshot.ID) (*snapshot.Lineage, error) {
	all, err := d.repo.Lineages(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range all {
		if l.Lineage == id {
			return l, nil
		}
	}
	return nil, fmt.Errorf("%w: there is no lineage %v", ErrSetup, id)
}

// work is the drill, once it can begin.
func (d *run) work(ctx context.Context) error {
	d.began = true
	if err := d.look(ctx); err != nil {
		return d.explain(err)
	}
	if err := d.choose(ctx); err != nil {
		return d.explain(err)
	}
	for _, step := range []func(context.Context) error{d.firstRead, d.openEpochs, d.restoreAll, d.compareObjects, d.compareSource, d.untouched} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return d.explain(err)
		}
	}
	return d.prove(ctx)
}

// look reads the state of the lineage, as a stranger.
func (d *run) look(ctx context.Context) (err error) {
	start := time.Now()
	d.state, err = d.repo.State(ctx, d.lineage.Lineage, nil)
	d.opened += time.Since(start)
	if d.state != nil {
		at := d.state.Chain()
		d.proof.Seq, d.proof.Manifest, d.proof.Tail, d.proof.Chain = d.state.Manifest.Seq, d.state.Hash, at.N, at.Hash
	} else if ctx.Err() == nil {
		d.guess(ctx)
	}
	if err != nil {
		return err
	}
	if d.proofs, err = d.repo.Proofs(ctx, d.lineage.Lineage); err != nil {
		return err
	}
	err = d.older()
	if err == nil && d.o.Check != nil {
		err = d.o.Check(d.state)
	}
	switch {
	case err == nil:
	case d.o.AcceptOlder:
		d.warn("newer objects were removed, which is accepted: %v", err)
	default:
		return fmt.Errorf("%w: newer objects were removed, or the store shows an old state: %w", ErrDamaged, err)
	}
	return nil
}

// guess says in the proof which manifest could not be used.
func (d *run) guess(ctx context.Context) {
	for info, err := range d.store.List(ctx, snapshot.Prefix(snapshot.KindManifest, d.lineage.Lineage), "") {
		if err != nil {
			return
		}
		k, err := snapshot.ParseKey(info.Key)
		if err != nil || k.Kind != snapshot.KindManifest {
			continue
		}
		d.proof.Seq = k.N // the newest comes first
		if b, _, err := store.ReadAll(ctx, d.store, info.Key, 64<<20); err == nil {
			d.proof.Manifest = snapshot.Sum(b)
		}
		return
	}
}

// older returns an error if what the last successful drill has found is newer than what is there.
func (d *run) older() error {
	for _, p := range d.proofs {
		if p.Result != snapshot.ResultOK {
			continue
		}
		switch at := d.state.Chain(); {
		case p.Seq > d.state.Manifest.Seq, p.Tail > at.N, p.TID > at.Head:
			return fmt.Errorf("the drill of %s found manifest %d and tail %d, and transaction %v; now manifest %d and tail %d are the last ones, and transaction %v",
				p.Time.Format(time.RFC3339), p.Seq, p.Tail, p.TID, d.state.Manifest.Seq, at.N, at.Head)
		case p.Seq == d.state.Manifest.Seq && p.Manifest != d.state.Hash:
			return fmt.Errorf("manifest %d is not the one that the drill of %s found", p.Seq, p.Time.Format(time.RFC3339))
		}
		return nil
	}
	return nil
}

// untouched returns an error if older versions of objects had to be read: what is there now does not
// restore without them.
func (d *run) untouched(context.Context) error {
	list := d.repo.Tampered()
	if len(list) == 0 {
		return nil
	}
	for _, t := range list {
		d.report(verify.Finding{Kind: verify.Overwritten, Key: t.Key, Text: t.String()})
	}
	return d.found(false)
}

// explain says what to do about an error, where that is not known elsewhere.
func (d *run) explain(err error) error {
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
	}
	free := restore.Free(d.o.Scratch)
	switch {
	case is(restore.ErrSpace):
		return fmt.Errorf("scratch directory %s: %w", d.o.Scratch, err)
	case is(syscall.ENOSPC, syscall.EDQUOT),
		free >= 0 && free < leastFree && !is(snapshot.ErrCorrupt, snapshot.ErrUntrusted, backup.ErrIncomplete, backup.ErrKeys, backup.ErrNotExact, restore.ErrDifferent, ErrDamaged, store.ErrNotFound):
		return fmt.Errorf("scratch directory %s: %w: %w", d.o.Scratch, restore.ErrSpace, err)
	case errors.Is(err, store.ErrNotFound) && !errors.Is(err, backup.ErrIncomplete):
		return fmt.Errorf("%w: %w", backup.ErrIncomplete, err)
	}
	return err
}

// leastFree is how many bytes a directory has that is not full: a database does not tell
// in which way it failed.
const leastFree = 256 << 10

// close ends what was opened, and removes what was restored.
func (d *run) close() error {
	var errs []error // of what was only read
	if d.door != nil {
		errs = append(errs, d.door.close())
	}
	if d.target != nil {
		errs = append(errs, d.target.close())
	}
	if err := errors.Join(errs...); err != nil {
		d.o.Log.Warn("closing what was restored", "err", err)
	}
	if d.o.Keep {
		d.res.Kept = d.scratch.dir
		return d.scratch.keep()
	}
	return d.scratch.remove()
}

// path is a name in the directory of the drill.
func (d *run) path(name string) string { return filepath.Join(d.scratch.dir, name) }

// mkdir makes a directory in that of the drill.
func (d *run) mkdir(name string) (string, error) {
	dir := d.path(name)
	return dir, os.Mkdir(dir, 0o700)
}
