package writer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"

	"github.com/neozodb/neo/backup/snapshot"
)

// inMemory is how much of a segment under construction is kept in memory.
const inMemory = 4 << 20

// scratch is an object under construction: in memory, or in a file once it is large.
type scratch struct {
	dir  string
	mem  []byte
	f    *os.File
	size int64
}

// WriteAt implements io.WriterAt.
func (s *scratch) WriteAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if s.f == nil && end > inMemory {
		f, err := os.CreateTemp(s.dir, "tmp-*")
		if err != nil {
			return 0, &roomError{err}
		}
		s.f = f
		if _, err := f.WriteAt(s.mem, 0); err != nil {
			return 0, &roomError{err}
		}
		s.mem = nil
	}
	s.size = max(s.size, end)
	if s.f != nil {
		n, err := s.f.WriteAt(p, off)
		if err != nil {
			err = &roomError{err}
		}
		return n, err
	}
	if more := end - int64(len(s.mem)); more > 0 {
		s.mem = append(s.mem, make([]byte, more)...)
	}
	return copy(s.mem[off:], p), nil
}

// roomError is an error of a file under construction.
type roomError struct{ err error }

func (e *roomError) Error() string { return "state directory: " + e.err.Error() }
func (e *roomError) Unwrap() error { return e.err }

// Write implements io.Writer: it appends.
func (s *scratch) Write(p []byte) (int, error) { return s.WriteAt(p, s.size) }

// ReadAt implements io.ReaderAt.
func (s *scratch) ReadAt(p []byte, off int64) (int, error) {
	if s.f != nil {
		return s.f.ReadAt(p, off)
	}
	if off >= int64(len(s.mem)) {
		return 0, io.EOF
	}
	n := copy(p, s.mem[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *scratch) reader() io.Reader { return io.NewSectionReader(s, 0, s.size) }

// close gives up the room.
func (s *scratch) close() {
	s.mem = nil
	if s.f != nil {
		s.f.Close()
		os.Remove(s.f.Name()) // it may have moved to the spool
		s.f = nil
	}
}

// spool keeps the plaintext of segments that are not sealed, a file each. All of it may be
// lost at any time; what is read is verified.
type spool struct {
	dir string

	mu    sync.Mutex
	have  map[string]spooled // by pieceName
	bytes int64
}

type spooled struct {
	tier int
	size int64
}

var spoolForm = regexp.MustCompile(`^([0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{16}-[0-9a-f]{16})\.([0-9])$`)

// pieceName is what the plaintext of a line is called.
func pieceName(lineage snapshot.ID, l *snapshot.Segment) string {
	return fmt.Sprintf("%v-%v-%v-%v", lineage, l.After, l.Upto, l.SHA256.Short())
}

// openSpool returns the spool in a directory, without what an earlier process left half done.
func openSpool(dir string) (*spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &spool{dir: dir, have: map[string]spooled{}}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		m := spoolForm.FindStringSubmatch(e.Name())
		info, err := e.Info()
		if m == nil || err != nil || !info.Mode().IsRegular() {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		tier, _ := strconv.Atoi(m[2])
		s.have[m[1]] = spooled{tier, info.Size()}
		s.bytes += info.Size()
	}
	return s, nil
}

func (s *spool) scratch() *scratch { return &scratch{dir: s.dir} }

func (s *spool) path(name string, tier int) string {
	return filepath.Join(s.dir, fmt.Sprintf("%s.%d", name, tier))
}

// put keeps a plaintext. A scratch file moves.
func (s *spool) put(name string, tier int, c *scratch) error {
	tier = min(tier, 9)
	path := s.path(name, tier)
	if c.f != nil {
		if err := os.Rename(c.f.Name(), path); err != nil {
			return err
		}
	} else if err := os.WriteFile(path, c.mem, 0o600); err != nil {
		os.Remove(path)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.have[name] = spooled{tier, c.size}
	s.bytes += c.size
	return nil
}

// find reports whether there is a plaintext, and its tier.
func (s *spool) find(name string) (tier int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.have[name]
	return e.tier, ok
}

func (s *spool) used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// remove gives up plaintexts. What cannot be removed will be at the next start.
func (s *spool) remove(names ...string) error {
	var errs []error
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		if e, ok := s.have[name]; ok {
			delete(s.have, name)
			s.bytes -= e.size
			errs = append(errs, os.Remove(s.path(name, e.tier)))
		}
	}
	return errors.Join(errs...)
}

// keep removes all plaintexts that keep does not accept.
func (s *spool) keep(accept func(name string) bool) error {
	var names []string
	s.mu.Lock()
	for name := range s.have {
		if !accept(name) {
			names = append(names, name)
		}
	}
	s.mu.Unlock()
	return s.remove(names...)
}

// open opens the plaintext of a line, which must be the segment that the line refers to.
func (s *spool) open(name string, l *snapshot.Segment) (*snapshot.Reader, io.Closer, error) {
	s.mu.Lock()
	e, ok := s.have[name]
	s.mu.Unlock()
	if !ok {
		return nil, nil, fmt.Errorf("%s is not in the spool", name)
	}
	f, err := os.Open(s.path(name, e.tier))
	if err != nil {
		return nil, nil, err
	}
	r, err := snapshot.NewReader(f, e.size, f.Name())
	if err == nil {
		line := *l
		if line.Meta == 0 {
			footer := r.Footer()
			line.Meta = footer.MetaLength()
		}
		err = r.Matches(&line)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return r, f, nil
}

// writeFile replaces a small file in one step.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
