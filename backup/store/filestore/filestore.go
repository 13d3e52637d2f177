// Package filestore is a [store.Store] in a directory: one file per object, under
// the name of its key.
//
// A file appears under its name with link(2), which fails if the name exists, after
// its bytes were synced; then the directory is synced. So an object is whole, has
// one winner, and survives a power failure. A file system without hard links cannot
// do this and is refused: there another writer could be overwritten. On a network
// file system the promises are as good as its link and its sync.
package filestore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/neozodb/neo/backup/store"
)

// temporary is where files are written before they get their names. No key begins
// with a dot.
const temporary = ".tmp"

// abandoned is the age at which a temporary file has no writer any more.
const abandoned = 24 * time.Hour

// Store is a store in a directory; open it with [Open].
type Store struct {
	dir  string
	root *os.Root

	mu     sync.Mutex
	synced map[string]bool // directories whose names are known to be on the disk
	date   time.Time
}

// Open opens the store in a directory, which must exist: a missing one may be a
// disk that is not mounted. It removes what crashed writers left there more than a
// day ago.
func Open(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	s := &Store{dir: abs, root: root, synced: map[string]bool{".": true}}
	if err := s.clean(); err != nil {
		root.Close()
		return nil, err
	}
	return s, nil
}

// Close releases the directory.
func (s *Store) Close() error { return s.root.Close() }

// String names the store in messages.
func (s *Store) String() string { return "file://" + s.dir }

// clean removes abandoned temporary files. A store that may only be read keeps them.
func (s *Store) clean() error {
	d, err := s.root.Open(temporary)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	} else if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < abandoned {
			continue // its writer has just removed it, or is at work
		}
		err = s.root.Remove(path.Join(temporary, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS) {
			return fmt.Errorf("remove an abandoned file: %w", err)
		}
	}
	return nil
}

// classify gives the errors of the file system the meaning they have for callers.
func classify(op, key string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		err = store.ErrNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		err = fmt.Errorf("%w: %w", store.ErrDenied, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EINTR),
		errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
		errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.ETIMEDOUT):
		err = &store.TemporaryError{Err: err}
	}
	return &store.KeyError{Op: op, Key: key, Err: err}
}

// Put implements [store.Store]. Retention is not supported.
func (s *Store) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o store.PutOptions) error {
	if err := store.CheckPut(key, size, o); err != nil {
		return err
	}
	if !o.Retain.IsZero() {
		return &store.KeyError{Op: "put", Key: key, Err: fmt.Errorf("a directory has no object lock: %w", errors.ErrUnsupported)}
	}
	if err := ctx.Err(); err != nil {
		return &store.KeyError{Op: "put", Key: key, Err: err}
	}
	if o.Create { // saves writing what cannot be kept; link decides
		if _, err := s.root.Lstat(key); err == nil {
			return &store.KeyError{Op: "put", Key: key, Err: store.ErrExists}
		}
	}
	if err := s.makeDir(path.Dir(key)); err != nil {
		return classify("put", key, err)
	}
	tmp, err := s.write(ctx, key, body, size, o)
	if tmp != "" {
		defer s.root.Remove(tmp) // after a rename it is not there any more
	}
	if err != nil {
		return err
	}
	if !o.Create {
		err = s.root.Rename(tmp, key)
	} else if err = s.root.Link(tmp, key); errors.Is(err, fs.ErrExist) {
		// What is there may not be on the disk yet: its writer acknowledges later.
		err = errors.Join(store.ErrExists, s.syncDir(path.Dir(key)))
		return &store.KeyError{Op: "put", Key: key, Err: err}
	} else if noLinks(err) {
		err = fmt.Errorf("the file system has no hard links, which a repository needs: %w", err)
		return &store.KeyError{Op: "put", Key: key, Err: err}
	}
	if errors.Is(err, fs.ErrNotExist) { // another host took the temporary file for abandoned
		return s.again(key, err)
	}
	if err == nil {
		err = s.syncDir(path.Dir(key))
	}
	return classify("put", key, err)
}

// noLinks reports whether link(2) failed for want of hard links.
func noLinks(err error) bool {
	return errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) ||
		errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EPERM)
}

// write puts the body into a temporary file that is on the disk when it returns.
func (s *Store) write(ctx context.Context, key string, body io.ReaderAt, size int64, o store.PutOptions) (tmp string, err error) {
	tmp = path.Join(temporary, rand.Text())
	f, err := s.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return "", s.again(key, err)
	} else if err != nil {
		return "", classify("put", key, err)
	}
	defer func() {
		if e := f.Close(); err == nil && e != nil {
			err = classify("put", key, e)
		}
	}()
	h := sha256.New()
	buf := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return tmp, &store.KeyError{Op: "put", Key: key, Err: err}
		}
		b := buf[:min(int64(len(buf)), size-off)]
		if n, err := body.ReadAt(b, off); n < len(b) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return tmp, &store.KeyError{Op: "put", Key: key, Err: fmt.Errorf("read its body: %w", err)}
		}
		if o.Sending != nil {
			if err := o.Sending(len(b)); err != nil {
				return tmp, &store.KeyError{Op: "put", Key: key, Err: err}
			}
		}
		h.Write(b)
		if _, err := f.Write(b); err != nil {
			return tmp, classify("put", key, err)
		}
		off += int64(len(b))
	}
	if o.SHA256 != ([sha256.Size]byte{}) && [sha256.Size]byte(h.Sum(nil)) != o.SHA256 {
		return tmp, &store.KeyError{Op: "put", Key: key, Err: fmt.Errorf("body %w", store.ErrChecksum)}
	}
	// A failed sync may have dropped what was written: this file is not used.
	if err := f.Sync(); err != nil {
		return tmp, classify("put", key, err)
	}
	info, err := f.Stat()
	if err != nil {
		return tmp, classify("put", key, err)
	}
	s.mu.Lock()
	s.date = info.ModTime()
	s.mu.Unlock()
	return tmp, nil
}

// again is the error of a Put that did not find what it had made before: the next
// try makes it again.
func (s *Store) again(key string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = map[string]bool{".": true}
	return &store.KeyError{Op: "put", Key: key, Err: &store.TemporaryError{Err: err}}
}

// makeDir makes a directory and that of the temporary files, with all above them,
// such that they survive a power failure.
func (s *Store) makeDir(dir string) error {
	for _, dir := range []string{temporary, dir} {
		s.mu.Lock()
		done := s.synced[dir]
		s.mu.Unlock()
		if done {
			continue
		}
		if err := s.root.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		for d := dir; d != "."; d = path.Dir(d) {
			// Also if it was there before: another writer may just have made it.
			if err := s.syncDir(path.Dir(d)); err != nil {
				return err
			}
		}
		s.mu.Lock()
		s.synced[dir] = true
		s.mu.Unlock()
	}
	return nil
}

// syncDir makes the names in a directory survive a power failure.
func (s *Store) syncDir(dir string) error {
	d, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, store.Info, error) {
	if err := store.CheckRange(key, off, n); err != nil {
		return nil, store.Info{}, err
	}
	if err := store.CheckKey(key); err != nil {
		return nil, store.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return nil, store.Info{}, &store.KeyError{Op: "get", Key: key, Err: err}
	}
	f, err := s.root.Open(key)
	if errors.Is(err, syscall.ENOTDIR) {
		err = fs.ErrNotExist // an object where a directory would be
	}
	if err != nil {
		return nil, store.Info{}, classify("get", key, err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, store.Info{}, classify("get", key, err)
	}
	info := s.info(key, fi)
	from, to := store.Span(off, n, info.Size)
	return &reader{ctx: ctx, key: key, f: f, off: from, end: to}, info, nil
}

// info describes a file. There is no ETag: the time of a file does not tell two
// contents apart.
func (s *Store) info(key string, fi fs.FileInfo) store.Info {
	return store.Info{Key: key, Size: fi.Size(), Modified: fi.ModTime().UTC()}
}

// reader reads a part of a file.
type reader struct {
	ctx      context.Context
	key      string
	f        *os.File
	off, end int64
}

func (r *reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, &store.KeyError{Op: "read", Key: r.key, Err: err}
	}
	if r.off == r.end {
		return 0, io.EOF
	}
	n, err := r.f.ReadAt(b[:min(int64(len(b)), r.end-r.off)], r.off)
	r.off += int64(n)
	if errors.Is(err, io.EOF) {
		if err = nil; n == 0 && len(b) > 0 {
			err = io.ErrUnexpectedEOF // it became shorter
		}
	}
	if err != nil {
		err = classify("read", r.key, err)
	}
	return n, err
}

func (r *reader) Close() error { return r.f.Close() }

// List implements [store.Store]. It holds the names of one directory at a time for
// each level.
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		s.walk(ctx, ".", prefix, after, yield)
	}
}

// walk yields what is below a directory; false: the iteration has ended.
func (s *Store) walk(ctx context.Context, dir, prefix, after string, yield func(store.Info, error) bool) bool {
	fail := func(err error) bool {
		yield(store.Info{}, fmt.Errorf("list %q: %w", prefix, err))
		return false
	}
	d, err := s.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) && dir != "." {
		return true
	} else if err != nil {
		return fail(classify("list", dir, err))
	}
	entries, err := d.ReadDir(-1)
	d.Close()
	if err != nil {
		return fail(classify("list", dir, err))
	}
	// A directory sorts as what its keys begin with: "a-b" < "a.b" < "a/b" < "ab".
	name := func(e fs.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(name(a), name(b)) })
	for _, e := range entries {
		key := strings.TrimPrefix(dir+"/"+name(e), "./")
		switch {
		case strings.HasPrefix(e.Name(), "."):
		case e.IsDir():
			// All keys in it begin with key: nothing of it may be wanted.
			if !strings.HasPrefix(key, prefix) && !strings.HasPrefix(prefix, key) || key < after && !strings.HasPrefix(after, key) {
				continue
			}
			if !s.walk(ctx, strings.TrimSuffix(key, "/"), prefix, after, yield) {
				return false
			}
		case strings.HasPrefix(key, prefix) && key > after:
			if err := ctx.Err(); err != nil {
				return fail(err)
			}
			fi, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue // deleted meanwhile
			} else if err != nil {
				return fail(classify("list", key, err))
			}
			if fi.Mode().IsRegular() && !yield(s.info(key, fi), nil) {
				return false
			}
		}
	}
	return true
}

// Delete implements [store.Store]. Directories stay.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	var errs []error
	dirs := map[string]bool{}
	for _, key := range keys {
		err := store.CheckKey(key)
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			if fi, e := s.root.Lstat(key); e == nil && fi.IsDir() {
				continue // no object, but the beginning of the keys of others
			}
			err = s.root.Remove(key)
		}
		switch {
		case err == nil:
			dirs[path.Dir(key)] = true
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR):
			errs = append(errs, classify("delete", key, err))
		}
	}
	for dir := range dirs {
		if err := s.syncDir(dir); err != nil {
			errs = append(errs, classify("delete in", dir, err))
		}
	}
	return errors.Join(errs...)
}

// Date implements [store.Dater]: the time that the file system gave the latest file.
func (s *Store) Date() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.date
}
