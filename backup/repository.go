package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// Errors of a repository, for errors.Is. They come wrapped, with what they are about.
var (
	// ErrNoRepository reports a place without marker.
	ErrNoRepository = errors.New("not a backup repository")
	// ErrKeys reports an epoch that no identity opens.
	ErrKeys = errors.New("no identity opens it")
	// ErrIncomplete reports a range of the history that is missing.
	ErrIncomplete = errors.New("missing in the repository")
	// ErrNotExact reports a TID at which the history cannot be restored exactly.
	ErrNotExact = errors.New("not restorable at that time")
)

// maxNote is the greatest length of a note that is read, in bytes; formats have their own limits.
const maxNote = 64 << 20

// Config says how a repository is opened. Store and Trusted are required.
type Config struct {
	Store   store.Store        // with the wrappers that the caller wants; it should repeat
	Trusted snapshot.Verifiers // keys of the configuration
	Log     *slog.Logger       // default: discard

	// EpochKey is [snapshot.NewEpochKey], maybe in another process, whose memory is not that of a
	// writer; default: here.
	EpochKey func(ctx context.Context, recipients []snapshot.Recipient) (recipient string, wrap []byte, err error)
}

func (c *Config) setDefaults() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Repository is an open repository. It is safe for concurrent use.
type Repository struct {
	Config
	Marker *snapshot.Marker

	mu    sync.Mutex
	pages map[string][]snapshot.Segment // catalog pages that were read, by key
}

// Open opens the repository of a store. The error is an [ErrNoRepository] if there is
// none, and a [snapshot.ErrUntrusted] if its marker has no trusted signature.
func Open(ctx context.Context, cfg Config) (*Repository, error) {
	cfg.setDefaults()
	m := &snapshot.Marker{}
	r := newRepository(cfg, m)
	err := r.noteOf(ctx, snapshot.MarkerKey, snapshot.ID{}, m)
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("%w: it has no object %q", ErrNoRepository, snapshot.MarkerKey)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

func newRepository(cfg Config, m *snapshot.Marker) *Repository {
	p, ok := cfg.Store.(*pinned)
	if ok { // of a repository that was opened before: what is wrong now may not have been then
		cfg.Store = p.Store
	}
	cfg.Store = &pinned{Wrapped: store.Wrapped{Store: cfg.Store}, pins: map[string]string{}, asked: map[string]bool{}}
	return &Repository{Config: cfg, Marker: m, pages: map[string][]snapshot.Segment{}}
}

// Encrypted reports whether the marker says that segments are encrypted.
func (r *Repository) Encrypted() bool { return r.Marker.Encryption == snapshot.EncryptionAge }

// list returns the names of the objects of a kind, ascending. Foreign objects are what a
// check reports; they change nothing here.
func list(ctx context.Context, s store.Store, kind snapshot.Kind, lineage snapshot.ID) ([]snapshot.Key, error) {
	var keys []snapshot.Key
	for info, err := range s.List(ctx, snapshot.Prefix(kind, lineage), "") {
		if err != nil {
			return nil, err
		}
		if k, err := snapshot.ParseKey(info.Key); err == nil && k.Kind == kind {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// note reads a note of one line.
func (r *Repository) note(ctx context.Context, key string, n snapshot.Note) error {
	return r.noteOf(ctx, key, r.Marker.ID, n)
}

func (r *Repository) noteOf(ctx context.Context, key string, repo snapshot.ID, n snapshot.Note) error {
	return r.noteFrom(ctx, nil, key, repo, n)
}

// noteFrom is noteOf with an object that is being read, or nil.
func (r *Repository) noteFrom(ctx context.Context, a *ahead, key string, repo snapshot.ID, n snapshot.Note) error {
	open := func(b []byte) error {
		reflect.ValueOf(n).Elem().SetZero() // of another version
		return snapshot.Open(b, key, repo, n, r.Trusted)
	}
	right := func(b []byte) bool { return open(b) == nil }
	read := func() error {
		b, err := r.whole(ctx, a, key)
		a = nil
		if err != nil {
			return err
		}
		return open(b)
	}
	err := read()
	if again, e := r.rescueBytes(ctx, key, err, maxNote, right); e != nil {
		return e
	} else if again {
		return read()
	}
	return err
}

// Lineages returns the notes of all lineages, K ascending: the last one is current.
func (r *Repository) Lineages(ctx context.Context) ([]*snapshot.Lineage, error) {
	keys, err := list(ctx, r.Store, snapshot.KindLineage, snapshot.ID{})
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: it has no lineage", ErrIncomplete)
	}
	return notes(ctx, r, keys, func() *snapshot.Lineage { return &snapshot.Lineage{} })
}

// Current returns the note of the current lineage.
func (r *Repository) Current(ctx context.Context) (*snapshot.Lineage, error) {
	firstKey := snapshot.Key{Kind: snapshot.KindLineage, N: 1}.String()
	read := r.ahead(ctx, firstKey) // most have no other
	keys, err := list(ctx, r.Store, snapshot.KindLineage, snapshot.ID{})
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: it has no lineage", ErrIncomplete)
	}
	key := keys[len(keys)-1].String()
	if key != firstKey {
		read = nil
	}
	l := &snapshot.Lineage{}
	return l, r.noteFrom(ctx, read, key, r.Marker.ID, l)
}

// Epochs returns the notes of all epochs, ascending.
func (r *Repository) Epochs(ctx context.Context) ([]*snapshot.Epoch, error) {
	keys, err := list(ctx, r.Store, snapshot.KindEpoch, snapshot.ID{})
	if err != nil {
		return nil, err
	}
	return notes(ctx, r, keys, func() *snapshot.Epoch { return &snapshot.Epoch{} })
}

// notes reads several notes at the same time.
func notes[N snapshot.Note](ctx context.Context, r *Repository, keys []snapshot.Key, empty func() N) ([]N, error) {
	list := make([]N, len(keys))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, k := range keys {
		list[i] = empty()
		g.Go(func() error { return r.note(ctx, k.String(), list[i]) })
	}
	return list, g.Wait()
}
