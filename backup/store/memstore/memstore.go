// Package memstore is a [store.Store] in memory: the model that the suite of
// storetest compares with, and a fast and deterministic store for tests of what
// lies above. It works with the simulated time of testing/synctest.
package memstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/neozodb/neo/backup/store"
)

// Options of a store. The zero value has neither versions nor object lock.
type Options struct {
	// Versioned keeps what is overwritten or deleted, as a versioned bucket does.
	Versioned bool
	// Now is the clock of the store; default: time.Now.
	Now func() time.Time
}

// Store is a store in memory; create it with [New]. It has object lock.
type Store struct {
	o Options

	mu       sync.Mutex
	versions map[string][]*object // newest first
	next     int
	date     time.Time
}

// object is one version; it is not changed once stored, but for its retention.
type object struct {
	info    store.Info
	body    []byte
	deleted bool
	retain  store.Retention
}

// New returns an empty store.
func New(o Options) *Store {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Store{o: o, versions: map[string][]*object{}}
}

// String names the store in messages.
func (s *Store) String() string { return "mem:" }

// newestLocked returns the object that Get finds, or nil.
func (s *Store) newestLocked(key string) *object {
	if v := s.versions[key]; len(v) > 0 && !v[0].deleted {
		return v[0]
	}
	return nil
}

// versionLocked returns one version, "" being the newest, or nil.
func (s *Store) versionLocked(key, version string) *object {
	if version == "" {
		return s.newestLocked(key)
	}
	for _, o := range s.versions[key] {
		if o.info.Version == version && !o.deleted {
			return o
		}
	}
	return nil
}

// addLocked puts a version on top, or in place of what was there.
func (s *Store) addLocked(key string, o *object) {
	s.next++
	if s.o.Versioned {
		o.info.Version = "v" + strconv.Itoa(s.next)
		s.versions[key] = slices.Insert(s.versions[key], 0, o)
		return
	}
	s.versions[key] = []*object{o}
}

// tickLocked returns the store's time, which is then what Date returns.
func (s *Store) tickLocked() time.Time {
	s.date = s.o.Now().UTC()
	return s.date
}

// Put implements [store.Store].
func (s *Store) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o store.PutOptions) error {
	if err := store.CheckPut(key, size, o); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	b := make([]byte, size)
	if n, err := body.ReadAt(b, 0); int64(n) < size {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("put %s: read its body: %w", key, err)
	}
	sum := sha256.Sum256(b)
	if o.SHA256 != ([sha256.Size]byte{}) && sum != o.SHA256 {
		return fmt.Errorf("put %s: body %w", key, store.ErrChecksum)
	}
	if o.Sending != nil && size > 0 {
		if err := o.Sending(int(size)); err != nil {
			return fmt.Errorf("put %s: %w", key, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.tickLocked()
	old := s.newestLocked(key)
	if old != nil && o.Create {
		return fmt.Errorf("put %s: %w", key, store.ErrExists)
	}
	if old != nil && !s.o.Versioned && old.retain.Until.After(now) {
		return &store.LockedError{Key: key, Until: old.retain.Until}
	}
	s.addLocked(key, &object{
		info:   store.Info{Key: key, Size: size, Modified: now, ETag: hex.EncodeToString(sum[:16])},
		body:   b,
		retain: o.Retain,
	})
	return nil
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, store.Info, error) {
	return s.GetVersion(ctx, key, "", off, n)
}

// GetVersion implements [store.Versioner].
func (s *Store) GetVersion(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, store.Info, error) {
	if err := store.CheckRange(key, off, n); err != nil {
		return nil, store.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return nil, store.Info{}, fmt.Errorf("get %s: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickLocked()
	o := s.versionLocked(key, version)
	if o == nil {
		return nil, store.Info{}, &store.KeyError{Op: "get", Key: key, Version: version, Err: store.ErrNotFound}
	}
	from, to := store.Span(off, n, o.info.Size)
	return io.NopCloser(bytes.NewReader(o.body[from:to])), o.info, nil
}

// keys returns the keys with a prefix beyond after, in order.
func (s *Store) keys(prefix, after string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickLocked()
	var keys []string
	for k := range s.versions {
		if strings.HasPrefix(k, prefix) && k > after {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// List implements [store.Store].
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		for _, key := range s.keys(prefix, after) {
			if err := ctx.Err(); err != nil {
				yield(store.Info{}, fmt.Errorf("list %q: %w", prefix, err))
				return
			}
			s.mu.Lock()
			o := s.newestLocked(key)
			s.mu.Unlock()
			if o != nil && !yield(o.info, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(store.Info{}, fmt.Errorf("list %q: %w", prefix, err))
		}
	}
}

// Delete implements [store.Store]. In a versioned store it hides the objects.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %d objects: %w", len(keys), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.tickLocked()
	var errs []error
	for _, key := range keys {
		old := s.newestLocked(key)
		switch {
		case old == nil:
		case s.o.Versioned:
			s.addLocked(key, &object{info: store.Info{Key: key, Modified: now}, deleted: true})
		case old.retain.Until.After(now):
			errs = append(errs, &store.LockedError{Key: key, Until: old.retain.Until})
		default:
			delete(s.versions, key)
		}
	}
	return errors.Join(errs...)
}

// Retention implements [store.Retainer].
func (s *Store) Retention(ctx context.Context, key, version string) (store.Retention, error) {
	if err := ctx.Err(); err != nil {
		return store.Retention{}, fmt.Errorf("retention of %s: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickLocked()
	o := s.versionLocked(key, version)
	if o == nil {
		return store.Retention{}, &store.KeyError{Op: "retention of", Key: key, Version: version, Err: store.ErrNotFound}
	}
	return o.retain, nil
}

// Retain implements [store.Retainer].
func (s *Store) Retain(ctx context.Context, key, version string, r store.Retention) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("retention of %s: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickLocked()
	o := s.versionLocked(key, version)
	if o == nil {
		return &store.KeyError{Op: "retention of", Key: key, Version: version, Err: store.ErrNotFound}
	}
	o.retain = store.Extended(o.retain, r)
	return nil
}

// Versions implements [store.Versioner].
func (s *Store) Versions(ctx context.Context, prefix string) iter.Seq2[store.Version, error] {
	return func(yield func(store.Version, error) bool) {
		for _, key := range s.keys(prefix, "") {
			s.mu.Lock()
			list := slices.Clone(s.versions[key])
			s.mu.Unlock()
			for i, o := range list {
				if err := ctx.Err(); err != nil {
					yield(store.Version{}, fmt.Errorf("versions of %q: %w", prefix, err))
					return
				}
				if !yield(store.Version{Info: o.info, Latest: i == 0, Deleted: o.deleted}, nil) {
					return
				}
			}
		}
	}
}

// DeleteVersions implements [store.Versioner].
func (s *Store) DeleteVersions(ctx context.Context, versions []store.Version) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %d versions: %w", len(versions), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.tickLocked()
	var errs []error
	for _, v := range versions {
		list := s.versions[v.Key]
		i := slices.IndexFunc(list, func(o *object) bool { return o.info.Version == v.Version })
		if i < 0 {
			continue
		}
		if until := list[i].retain.Until; until.After(now) {
			errs = append(errs, &store.LockedError{Key: v.Key, Version: v.Version, Until: until})
			continue
		}
		if list = slices.Delete(list, i, i+1); len(list) == 0 {
			delete(s.versions, v.Key)
		} else {
			s.versions[v.Key] = list
		}
	}
	return errors.Join(errs...)
}

// Date implements [store.Dater].
func (s *Store) Date() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.date
}

// Corrupt replaces the bytes of a stored object behind the back of everything, for
// tests of damage; change gets a copy. It panics if there is no such object.
func (s *Store) Corrupt(key string, change func([]byte) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := *s.newestLocked(key)
	o.body = change(bytes.Clone(o.body))
	o.info.Size = int64(len(o.body))
	s.versions[key][0] = &o
}
