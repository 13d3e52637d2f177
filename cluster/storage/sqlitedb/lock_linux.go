package sqlitedb

import (
	"fmt"
	"os"
	"syscall"

	"github.com/neozodb/neo/cluster/storage/backend"
)

// fileLock is the exclusive use of a database: a socket with an abstract name,
// which the kernel releases when the process dies. The Python implementation
// uses the same name.
type fileLock struct{ fd int }

func lockFile(st *syscall.Stat_t, path string) (*fileLock, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	name := fmt.Sprintf("@neostorage:%d:%d", st.Dev, st.Ino)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: name}); err != nil {
		syscall.Close(fd)
		if err == syscall.EADDRINUSE {
			return nil, fmt.Errorf("%s: %w", path, backend.ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, os.NewSyscallError("bind", err))
	}
	return &fileLock{fd}, nil
}

func (l *fileLock) release() error { return os.NewSyscallError("close", syscall.Close(l.fd)) }
