//go:build unix

package link

import (
	"net"
	"syscall"
)

// socket writes to a socket without blocking.
type socket struct{ rc syscall.RawConn }

func socketWriter(nc net.Conn) tryWriter {
	switch nc := nc.(type) {
	case *net.TCPConn:
		if rc, err := nc.SyscallConn(); err == nil {
			return socket{rc}
		}
	case *net.UnixConn:
		if rc, err := nc.SyscallConn(); err == nil {
			return socket{rc}
		}
	}
	return nil
}

func (s socket) TryWrite(b []byte) (n int, err error) {
	cerr := s.rc.Write(func(fd uintptr) bool {
		for {
			n, err = syscall.Write(int(fd), b)
			if err != syscall.EINTR {
				return true // do not wait
			}
		}
	})
	switch {
	case cerr != nil:
		return 0, cerr
	case err == syscall.EAGAIN:
		return 0, nil
	}
	return max(n, 0), err
}
