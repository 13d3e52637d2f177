//go:build unix && !linux

package sqlitedb

import (
	"fmt"
	"os"
	"syscall"

	"github.com/neozodb/neo/cluster/storage/backend"
)

// fileLock is the exclusive use of a database: where there are no abstract
// socket names, a lock on a file of its own beside it. (A descriptor of the
// database itself must not be used: closing it would drop SQLite's locks.)
type fileLock struct{ f *os.File }

func lockFile(_ *syscall.Stat_t, path string) (*fileLock, error) {
	f, err := os.OpenFile(path+"-neolock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if err == syscall.EWOULDBLOCK {
			return nil, fmt.Errorf("%s: %w", path, backend.ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &fileLock{f}, nil
}

func (l *fileLock) release() error { return l.f.Close() }
