//go:build unix

package fsformat

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// A lock is that of FileStorage on NAME.lock: it keeps every other writer away
// from NAME, be it in Python or in Go. The file stays when the lock is released.
type lock struct{ f *os.File }

// LockedError reports that another process, or another storage of this one, has
// the file open for writing.
type LockedError struct {
	File string // the lock
	PID  string // of its owner, as it says itself
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is locked by process %s: the file is open for writing", e.File, e.PID)
}

func acquireLock(path string) (*lock, error) {
	name := path + ".lock"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", name, err)
		}
		b := make([]byte, 32)
		n, _ := f.Read(b) // only for the message
		pid := "?"
		if _, err := fmt.Sscan(string(b[:n]), &pid); err != nil {
			pid = "?"
		}
		return nil, &LockedError{name, pid}
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, " %d\n", os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("writing %s: %w", name, err)
	}
	return &lock{f}, nil
}

func (l *lock) release() error { return l.f.Close() }

// Lock keeps all other writers, in Python or Go, away from a Data.fs until the
// function it returns is called. The error is a [*LockedError] if there is one.
func Lock(path string) (unlock func() error, err error) {
	l, err := acquireLock(path)
	if err != nil {
		return nil, err
	}
	return l.release, nil
}
