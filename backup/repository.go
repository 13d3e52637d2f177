package backup

import (
	"context"
	"errors"
	"iter"
	"log/slog"

	"filippo.io/age"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Errors of a repository, for errors.Is. They come wrapped, with what they are about.
var (
	// ErrNoRepository reports a place without marker.
	ErrNoRepository = errors.New("not a backup repository")
	// ErrKeys reports an epoch that no identity opens, or identities where there
	// must be none.
	ErrKeys = errors.New("no identity opens it")
	// ErrIncomplete reports a range of the history that is missing.
	ErrIncomplete = errors.New("missing in the repository")
	// ErrNotExact reports a TID at which the history cannot be restored exactly.
	ErrNotExact = errors.New("not restorable at that time")
)

// Config says how a repository is opened. Store and Trusted are required.
type Config struct {
	Store   store.Store        // with the wrappers that the caller wants; it should repeat
	Trusted snapshot.Verifiers // keys of the configuration
	Log     *slog.Logger       // default: discard
}

// Repository is an open repository. It is safe for concurrent use.
type Repository struct {
	Config
	Marker *snapshot.Marker
}

// Open opens the repository of a store. The error is an [ErrNoRepository] if there is
// none.
func Open(ctx context.Context, cfg Config) (*Repository, error) { panic("todo") }

// Lineages returns the notes of all lineages, k ascending: the last one is current.
func (r *Repository) Lineages(ctx context.Context) ([]*snapshot.Lineage, error) { panic("todo") }

// Current returns the note of the current lineage.
func (r *Repository) Current(ctx context.Context) (*snapshot.Lineage, error) { panic("todo") }

// Epochs returns the notes of all epochs, ascending.
func (r *Repository) Epochs(ctx context.Context) ([]*snapshot.Epoch, error) { panic("todo") }

// State reads the newest manifest of a lineage and the tails after it. known is an
// earlier state of the lineage, or nil: what it has is not read again.
func (r *Repository) State(ctx context.Context, lineage snapshot.ID, known *State) (*State, error) {
	panic("todo")
}

// State is what a lineage holds. It does not change.
type State struct {
	Lineage  snapshot.ID
	Manifest *snapshot.Manifest
	Hash     snapshot.Hash // of the object of the manifest
	Tails    []*StoredTail // those after the manifest, without hole
}

// StoredTail is a tail as it is stored.
type StoredTail struct {
	*snapshot.Tail
	Key    string
	Size   int64  // of the object
	Object []byte // the whole object if it is small, else its first bytes, at least the note and the age header
}

// Chain returns the place after the last tail: where the next one goes.
func (s *State) Chain() snapshot.Chain { panic("todo") }

// Head returns the greatest TID such that everything up to it is in the repository.
func (s *State) Head() tid.TID { panic("todo") }

// Tip returns what identifies transaction Head; zero if there is none.
func (s *State) Tip() snapshot.Hash { panic("todo") }

// Holes returns all holes, ascending.
func (s *State) Holes() []snapshot.Hole { panic("todo") }

// MaxOID returns the greatest object id.
func (s *State) MaxOID() tid.OID { panic("todo") }

// Exact returns nil if the history can be restored exactly at T: if T is not beyond Head and
// in no hole. The error is a [*NotExactError], which names the nearest TIDs that are.
func (s *State) Exact(t tid.TID) error { panic("todo") }

// NotExactError is an [ErrNotExact].
type NotExactError struct {
	TID           tid.TID
	Head          tid.TID
	Before, After tid.TID // the nearest exact TIDs; zero: none
}

func (e *NotExactError) Error() string        { panic("todo") }
func (e *NotExactError) Is(target error) bool { return target == ErrNotExact }

// Part is one step through the history of a state: a segment, or a gap in which an
// operator accepted that all is lost.
type Part struct {
	Segment *snapshot.Segment
	Gap     *snapshot.Gap
	tail    *StoredTail // the segment is behind this one
}

// Parts yields the parts of a state that have something in (after, upTo], in their order.
// Pages are read when they are needed. An error is the last step. It fails with an
// error that is [ErrIncomplete] where a page is missing, never passes over it.
func (r *Repository) Parts(ctx context.Context, s *State, after, upTo tid.TID) iter.Seq2[*Part, error] {
	panic("todo")
}

// Keys open what a repository has encrypted. They are safe for concurrent use.
type Keys struct{}

// Unlock returns the keys that identities give. In a repository without encryption
// there must be none.
func (r *Repository) Unlock(ctx context.Context, identities ...age.Identity) (*Keys, error) {
	panic("todo")
}

// Epoch returns the identity of an epoch. The error is an [ErrKeys] that names the
// recipients to which it is encrypted.
func (k *Keys) Epoch(ctx context.Context, kid snapshot.KID) (snapshot.Identity, error) { panic("todo") }

// OpenPart opens the segment of a part for random access: each read is one ranged GET, but
// for what was read before. ctx limits all its reads.
func (r *Repository) OpenPart(ctx context.Context, k *Keys, p *Part) (*snapshot.Reader, error) {
	panic("todo")
}

// FetchOptions say how whole segments are read.
type FetchOptions struct {
	Scratch  string // directory of temporary files, for segments above 8 MiB; default: os.TempDir
	Parallel int    // segments read ahead; default: 8
}

// Fetched is a whole segment on this machine, whose SHA-256 is right.
type Fetched struct {
	*snapshot.Reader
	Part *Part
}

// Close gives up the room that it takes.
func (f *Fetched) Close() error { panic("todo") }

// FetchParts reads whole segments ahead and yields them in their order, gaps with a nil
// Reader. Each is valid until the next step.
func (r *Repository) FetchParts(ctx context.Context, k *Keys, s *State, after, upTo tid.TID, o FetchOptions) iter.Seq2[*Fetched, error] {
	panic("todo")
}

// Transactions yields the history of a state in (after, upTo], whole transactions also where
// segments cut them. Records that copy an earlier revision have its DataTID; resolve
// gives the data, nil where that revision has none. Without resolve Data of such records is nil, and
// Record.Data of a copy is not known. It ends at the first error; a gap is an [ErrIncomplete].
func (r *Repository) Transactions(ctx context.Context, k *Keys, s *State, after, upTo tid.TID, o FetchOptions,
	resolve func(oid tid.OID, at tid.TID) ([]byte, error)) iter.Seq2[*txn.Transaction, error] {
	panic("todo")
}
