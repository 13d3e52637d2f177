package wire

import (
	"encoding/binary"
	"fmt"
	"io"
)

// FrameReader reads frames: a length of 4 bytes, big-endian, and as many bytes.
type FrameReader struct {
	Source io.Reader
	Limit  int  // greatest length accepted
	Owned  bool // the last frame has memory of its own: it may be kept

	buf    []byte
	lo, hi int
}

const (
	// BufferSize is how many bytes a [FrameReader] reads at once.
	BufferSize = 16 << 10
	// Longer frames get memory of their own.
	ownedSize = 64 << 10
	// The memory of a long frame grows by this much at most ahead of its bytes.
	growth = 1 << 20
)

// NewFrameReader returns a reader of frames of at most limit bytes.
func NewFrameReader(r io.Reader, limit int) *FrameReader {
	return &FrameReader{Source: r, buf: make([]byte, BufferSize), Limit: limit}
}

// Next returns the next frame. Unless it is owned, it is valid until the next call.
func (f *FrameReader) Next() ([]byte, error) {
	if err := f.fill(4); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(f.buf[f.lo:]))
	if n > f.Limit {
		return nil, fmt.Errorf("%w: frame of %d bytes, at most %d are accepted", ErrBadMessage, n, f.Limit)
	}
	f.lo += 4
	f.Owned = n > ownedSize
	if f.Owned {
		return f.long(n)
	}
	if err := f.fill(n); err != nil {
		return nil, midFrame(err)
	}
	p := f.buf[f.lo : f.lo+n : f.lo+n]
	f.lo += n
	return p, nil
}

// SpeaksTLS reports whether what could not be read as a frame begins a TLS
// handshake.
func (f *FrameReader) SpeaksTLS() bool {
	return f.hi-f.lo >= 2 && f.buf[f.lo] == 0x16 && f.buf[f.lo+1] == 3
}

// Ready reports whether next would not wait.
func (f *FrameReader) Ready() bool {
	have := f.hi - f.lo
	return have >= 4 && have-4 >= int(binary.BigEndian.Uint32(f.buf[f.lo:]))
}

// fill waits for n bytes in the buffer.
func (f *FrameReader) fill(n int) error {
	if f.lo == f.hi {
		f.lo, f.hi = 0, 0
	}
	if len(f.buf)-f.lo < n {
		buf := f.buf
		if len(buf) < n {
			buf = make([]byte, ownedSize)
		}
		f.hi = copy(buf, f.buf[f.lo:f.hi])
		f.lo, f.buf = 0, buf
	}
	for f.hi-f.lo < n {
		k, err := f.Source.Read(f.buf[f.hi:])
		f.hi += k
		if err != nil && f.hi-f.lo < n {
			if err == io.EOF && f.hi > f.lo {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// long reads a frame into memory that grows with what has really come.
func (f *FrameReader) long(n int) ([]byte, error) {
	p := make([]byte, 0, min(n, growth))
	k := min(n, f.hi-f.lo)
	p = append(p, f.buf[f.lo:f.lo+k]...)
	f.lo += k
	for len(p) < n {
		if len(p) == cap(p) {
			q := make([]byte, len(p), min(n, 2*cap(p)))
			copy(q, p)
			p = q
		}
		at := len(p)
		p = p[:cap(p)]
		k, err := io.ReadFull(f.Source, p[at:])
		p = p[:at+k]
		if err != nil {
			return nil, midFrame(err)
		}
	}
	return p, nil
}

func midFrame(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
