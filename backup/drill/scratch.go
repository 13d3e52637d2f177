package drill

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// scratchPrefix begins the names of the directories of drills, which the next one removes
	// if they are left, keptPrefix of those that it does not.
	scratchPrefix = "neobackup-drill-"
	keptPrefix    = "neobackup-kept-"
	// scratchMark is a file in each of them: another directory with such a name is left alone.
	scratchMark = "NEOBACKUP-DRILL"
)

// scratch is the directory of a drill. It is locked as long as the drill lasts.
type scratch struct {
	dir  string
	lock *os.File
}

// newScratch removes what killed drills have left, and makes a directory. It waits while another drill does that.
func newScratch(ctx context.Context, o *Options) (s *scratch, err error) {
	parent, err := os.Open(o.Scratch)
	if err != nil {
		return nil, fmt.Errorf("%w: scratch directory: %w", ErrSetup, err)
	}
	defer parent.Close() // only read, and locked
	if st, err := parent.Stat(); err != nil || !st.IsDir() {
		return nil, fmt.Errorf("%w: scratch %s is no directory", ErrSetup, o.Scratch)
	}
	// Between its making and its lock, a directory looks like one that was left.
	err = waitFlock(ctx, parent, o)
	locks := err == nil
	switch {
	case locks:
		err = clean(o.Scratch, o.Log)
	case ctx.Err() == nil:
		o.Log.Warn("directories of scratch cannot be locked: what killed drills have left stays", "dir", o.Scratch, "err", err)
		err = nil
	}
	if err != nil {
		return nil, err
	}
	prefix := scratchPrefix
	if o.Keep {
		prefix = keptPrefix
	}
	dir, err := os.MkdirTemp(o.Scratch, prefix+"*") // for its owner alone
	if err != nil {
		return nil, fmt.Errorf("%w: scratch directory: %w", ErrSetup, err)
	}
	s = &scratch{dir: dir}
	if err = os.WriteFile(filepath.Join(dir, scratchMark), []byte("What neobackup drill has restored. It is removed at the end.\n"), 0o600); err == nil {
		s.lock, err = os.Open(dir)
	}
	if err == nil && locks {
		err = flock(s.lock, syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("scratch directory: %w", err), s.remove())
	}
	return s, nil
}

// lockPause is the time between two attempts to lock the scratch directory.
const lockPause = 100 * time.Millisecond

// waitFlock locks the scratch directory. If another drill has the lock, it tells that it waits.
func waitFlock(ctx context.Context, parent *os.File, o *Options) error {
	for told := false; ; told = true {
		err := flock(parent, syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		if !told {
			o.Log.Warn("another drill is preparing in the scratch directory: this one waits until that is done", "dir", o.Scratch)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockPause):
		}
	}
}

// flock takes a lock that ends with the process.
func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// clean removes directories of drills that do not run any more.
func clean(parent string, log *slog.Logger) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return fmt.Errorf("%w: scratch directory: %w", ErrSetup, err)
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), scratchPrefix) {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		if err := left(dir); err != nil {
			if !errors.Is(err, errNotLeft) {
				log.Warn("what an earlier drill has left is not removed", "dir", dir, "err", err)
			}
			continue
		}
		log.Info("what an earlier drill has left is removed", "dir", dir)
		if err := os.RemoveAll(dir); err != nil {
			log.Warn("what an earlier drill has left is not removed", "dir", dir, "err", err)
		}
	}
	return nil
}

// errNotLeft reports a directory that is in use, or not that of a drill.
var errNotLeft = errors.New("not left by a drill")

// left returns nil if a drill has left a directory.
func left(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	switch err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return errNotLeft // it runs
	case err != nil:
		return err
	}
	st, err := os.Lstat(filepath.Join(dir, scratchMark))
	switch {
	case err == nil && st.Mode().IsRegular():
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	names, err := f.Readdirnames(1)
	if len(names) == 0 {
		return nil // killed at once
	}
	return errors.Join(errNotLeft, err)
}

// remove removes the directory.
func (s *scratch) remove() error {
	err := os.RemoveAll(s.dir)
	if s.lock != nil {
		s.lock.Close() // only locked
	}
	if err != nil {
		return fmt.Errorf("what was restored could not be removed: %w", err)
	}
	return nil
}

// keep leaves the directory.
func (s *scratch) keep() error {
	return s.lock.Close()
}
