//go:build unix

package socket

import (
	"net"
	"syscall"
)

// Writer writes to a socket without waiting. It has one user at a time.
type Writer struct {
	rc    syscall.RawConn
	write func(fd uintptr) bool // made once: a closure for each write would be allocated

	b   []byte
	n   int
	err error
}

// New returns nil if nc is no socket, but TLS for example.
func New(nc net.Conn) *Writer {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	s := &Writer{rc: rc}
	s.write = func(fd uintptr) bool {
		for {
			s.n, s.err = syscall.Write(int(fd), s.b)
			if s.err != syscall.EINTR {
				return true // do not wait
			}
		}
	}
	return s
}

// TryWrite writes what fits into the buffer of the socket, maybe nothing.
func (s *Writer) TryWrite(b []byte) (int, error) {
	s.b, s.n, s.err = b, 0, nil
	err := s.rc.Write(s.write)
	s.b = nil
	switch {
	case err != nil:
		return 0, err
	case s.err == syscall.EAGAIN:
		return 0, nil
	}
	return max(s.n, 0), s.err
}
