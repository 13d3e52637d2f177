package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
)

// Tampering is an object that was overwritten or deleted, of which the store still has the version
// that is right. That version is what is read.
type Tampering struct {
	Key     string
	Version string // that is right
	Err     error  // what was wrong with the newest one
}

func (t Tampering) String() string {
	return fmt.Sprintf("%s was overwritten or deleted (%v); version %s of it is right, and was read in its place", t.Key, t.Err, t.Version)
}

// pinned reads the right version of objects that were tampered with.
type pinned struct {
	store.Wrapped

	mu    sync.Mutex
	pins  map[string]string // versions, by key
	asked map[string]bool   // keys of which no version is right
	found []Tampering
}

// Get implements [store.Store].
func (p *pinned) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, store.Info, error) {
	p.mu.Lock()
	version, ok := p.pins[key]
	p.mu.Unlock()
	if ok {
		return store.GetVersion(ctx, p.Store, key, version, off, n)
	}
	return p.Store.Get(ctx, key, off, n)
}

// Tampered returns the objects of which an older version was used until now, in the order in which they were found.
func (r *Repository) Tampered() []Tampering {
	p, ok := r.Store.(*pinned)
	if !ok {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.found)
}

// wrongObject reports whether an error says that an object is not what it was.
func wrongObject(err error) bool {
	return errors.Is(err, snapshot.ErrCorrupt) || errors.Is(err, snapshot.ErrUntrusted) || errors.Is(err, store.ErrNotFound)
}

// rescue looks for the version of an object that right accepts, where the newest one gave the error cause.
// If there is one, everything that is read of the object from now on is that version, and rescue returns true.
func (r *Repository) rescue(ctx context.Context, key string, cause error, right func(v store.Version) (bool, error)) (bool, error) {
	p, ok := r.Store.(*pinned)
	if !ok || !wrongObject(cause) {
		return false, nil
	}
	p.mu.Lock()
	_, done := p.pins[key]
	done = done || p.asked[key]
	p.mu.Unlock()
	if done {
		return false, nil
	}
	for v, err := range store.Versions(ctx, p.Store, key) {
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, store.ErrDenied) {
			break // as if there were none
		}
		if err != nil {
			return false, fmt.Errorf("%w; its versions: %w", cause, err)
		}
		if v.Key != key || v.Deleted || v.Version == "" {
			continue
		}
		good, err := right(v)
		if errors.Is(err, store.ErrNotFound) { // deleted meanwhile
			continue
		}
		if err != nil {
			return false, fmt.Errorf("%w; version %s: %w", cause, v.Version, err)
		}
		if !good {
			continue
		}
		t := Tampering{key, v.Version, cause}
		p.mu.Lock()
		if _, known := p.pins[key]; !known {
			p.pins[key] = v.Version
			p.found = append(p.found, t)
		}
		p.mu.Unlock()
		r.Log.Error("an object was tampered with: an older version of it is used", "key", key, "version", v.Version, "err", cause)
		return true, nil
	}
	p.mu.Lock()
	// An object that is not there yet may come.
	p.asked[key] = !errors.Is(cause, store.ErrNotFound)
	p.mu.Unlock()
	return false, nil
}

// version returns the bytes [0, n) of a version as far as they exist.
func (r *Repository) version(ctx context.Context, v store.Version, n int64) ([]byte, error) {
	p := r.Store.(*pinned)
	body, _, err := store.GetVersion(ctx, p.Store, v.Key, v.Version, 0, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, body); err != nil {
		return nil, fmt.Errorf("read version %s of %s: %w", v.Version, v.Key, err)
	}
	return b.Bytes(), nil
}

// rescueBytes is rescue for a small object: right is asked about all its bytes.
func (r *Repository) rescueBytes(ctx context.Context, key string, cause error, limit int64, right func(b []byte) bool) (bool, error) {
	return r.rescue(ctx, key, cause, func(v store.Version) (bool, error) {
		if v.Size > limit {
			return false, nil
		}
		b, err := r.version(ctx, v, store.All)
		return err == nil && right(b), err
	})
}

// Rescue looks for the version of a segment that has the hash of its line, where the newest one gave the error cause. If
// there is one, all later reads of the segment are of that version, and Rescue returns true.
func (r *Repository) Rescue(ctx context.Context, l *snapshot.Segment, cause error) (bool, error) {
	if p, ok := r.Store.(*pinned); ok && wrongObject(cause) {
		p.mu.Lock()
		_, known := p.pins[l.Key]
		p.mu.Unlock()
		if known { // since the caller began to read, which verifies what it reads
			return true, nil
		}
	}
	return r.rescue(ctx, l.Key, cause, func(v store.Version) (bool, error) {
		if v.Size != l.Offset()+l.Bytes {
			return false, nil
		}
		p := r.Store.(*pinned)
		body, _, err := store.GetVersion(ctx, p.Store, v.Key, v.Version, l.Offset(), l.Bytes)
		if err != nil {
			return false, err
		}
		defer body.Close()
		sum := sha256.New()
		if _, err := io.Copy(sum, body); err != nil {
			return false, err
		}
		return snapshot.Hash(sum.Sum(nil)) == l.SHA256, nil
	})
}

// Bare returns the store without what [Repository.Tampered] tells of: the newest versions, as they are.
func (r *Repository) Bare() store.Store {
	if p, ok := r.Store.(*pinned); ok {
		return p.Store
	}
	return r.Store
}
