package proto

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/neozodb/neo/cluster/msgpack"
)

// Sizes in bytes of the buffers that a Reader reads into.
const (
	minChunk = 4 << 10
	// MaxChunk is the greatest that packets share. A packet of this size or more fills
	// one of its own, up to 4 kB: to keep its data keeps nothing else.
	MaxChunk = 128 << 10
)

// Reader reads packets from a stream. Its buffers are never written twice, so
// that packets may alias them; they grow with the traffic.
type Reader struct {
	r     io.Reader
	buf   []byte // received, not yet decoded
	free  []byte // what follows buf in the same allocation
	chunk int    // size of the next allocation
	scan  msgpack.Scanner
	need  int // size that the packet at the start of buf has at least; 0: not known to be incomplete
	err   error
}

// NewReader returns a Reader of the packets in r. The handshake is not a packet:
// see [Reader.Handshake].
func NewReader(r io.Reader) *Reader { return &Reader{r: r, chunk: minChunk} }

// Buffered returns the number of bytes received that Next has not returned.
func (r *Reader) Buffered() int { return len(r.buf) }

// Handshake reads what a peer sends first, and returns an error that says what
// the peer is if it is not a node that speaks this version of the protocol.
func (r *Reader) Handshake() error {
	for {
		got := r.buf[:min(len(r.buf), len(Handshake))]
		same := 0
		for same < len(got) && got[same] == Handshake[same] {
			same++
		}
		switch {
		case same == len(Handshake):
			r.buf = r.buf[same:]
			return nil
		case same == len(got):
			if err := r.fill(len(Handshake)); err != nil {
				if (err == io.EOF || errors.Is(err, syscall.ECONNRESET)) && len(r.buf) == 0 {
					return fmt.Errorf("no handshake (it may require TLS, or speak another version of the protocol): %w", err)
				}
				return err
			}
		case same == len(Handshake)-1:
			return fmt.Errorf("peer speaks version %d of the protocol, not %d", got[same], Version)
		case got[0] == 0x16 || got[0] == 0x15:
			return errors.New("peer speaks TLS, this node does not")
		default:
			return fmt.Errorf("peer does not speak the NEO protocol: first bytes % x", got)
		}
	}
}

// Next returns the next packet. After the last one it returns [io.EOF], or
// [io.ErrUnexpectedEOF] if the stream ends inside a packet. Packets that were
// received completely are returned before any error of the stream.
func (r *Reader) Next() (id uint32, p Packet, err error) {
	for {
		if len(r.buf) > 0 && r.need <= len(r.buf) {
			n := 0
			if r.need == 0 {
				// Most packets are complete: decode at once.
				id, p, n, err = decode(r.buf)
				if err == nil {
					r.buf = r.buf[n:]
					return id, p, nil
				}
				if err != ErrShort {
					return 0, nil, err
				}
			}
			n, r.need, err = r.scan.Scan(r.buf)
			if err != nil {
				return 0, nil, err
			}
			if n > 0 {
				r.scan, r.need = msgpack.Scanner{}, 0
				id, p, _, err = decode(r.buf[:n:n])
				if err == ErrShort {
					err = errTruncated
				}
				if err != nil {
					return 0, nil, err
				}
				r.buf = r.buf[n:]
				return id, p, nil
			}
		}
		if err := r.fill(r.need); err != nil {
			if err == io.EOF && len(r.buf) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return 0, nil, err
		}
	}
}

// fill receives more bytes, for a packet that needs at least need bytes. A claim
// is not believed at once: the buffer at most doubles.
func (r *Reader) fill(need int) error {
	if r.err != nil {
		return r.err
	}
	if n := len(r.free); n == 0 || n < minChunk/8 && (need == 0 || need-len(r.buf) > n) {
		size := max(r.chunk, min(need, 2*len(r.buf)), len(r.buf)+minChunk)
		b := make([]byte, size)
		n := copy(b, r.buf)
		r.buf, r.free = b[:n], b[n:]
	}
	for range 100 {
		n, err := r.r.Read(r.free)
		if n == len(r.free) {
			r.chunk = min(2*r.chunk, MaxChunk)
		}
		r.buf = r.buf[:len(r.buf)+n]
		r.free = r.free[n:]
		if n > 0 {
			r.err = err
			return nil
		}
		if err != nil {
			r.err = err
			return err
		}
	}
	return io.ErrNoProgress
}
