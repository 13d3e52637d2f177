//go:build unix

package socket

import (
	"io"
	"net"
	"syscall"
)

// Writer writes to a socket without waiting. It has one user at a time.
type Writer struct {
	rc   syscall.RawConn
	call func(fd uintptr) bool // made once: a closure for each write would be allocated

	b   []byte
	n   int
	err error
}

// NewWriter returns nil if nc is no socket, but TLS for example.
func NewWriter(nc net.Conn) *Writer {
	rc := raw(nc)
	if rc == nil {
		return nil
	}
	s := &Writer{rc: rc}
	s.call = func(fd uintptr) bool {
		for {
			s.n, s.err = write(fd, s.b)
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
	err := s.rc.Write(s.call)
	s.b = nil
	switch {
	case err != nil:
		return 0, err
	case s.err == syscall.EAGAIN:
		return 0, nil
	}
	return max(s.n, 0), s.err
}

// reader reads from a socket. It has one user at a time.
type reader struct {
	rc   syscall.RawConn
	call func(fd uintptr) bool

	b   []byte
	n   int
	err error
}

// NewReader returns what reads from nc at the least cost: nc itself if that is no
// socket.
func NewReader(nc net.Conn) io.Reader {
	rc := raw(nc)
	if rc == nil {
		return nc
	}
	s := &reader{rc: rc}
	s.call = func(fd uintptr) bool {
		for {
			s.n, s.err = read(fd, s.b)
			if s.err != syscall.EINTR {
				return s.err != syscall.EAGAIN // else wait, and call again
			}
		}
	}
	return s
}

func (s *reader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	s.b, s.n, s.err = b, 0, nil
	err := s.rc.Read(s.call)
	s.b = nil
	switch {
	case err != nil:
		return 0, err
	case s.err != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: s.err}
	case s.n == 0:
		return 0, io.EOF
	}
	return s.n, nil
}

func raw(nc net.Conn) syscall.RawConn {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return rc
}
