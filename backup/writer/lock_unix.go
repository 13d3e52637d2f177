//go:build unix

package writer

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// LockFile takes a lock that ends with the process, or sooner with Close. The file stays. If another
// process has it, the error is busy, with the path.
func LockFile(path string, busy error) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", path, busy)
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return f, nil
}
