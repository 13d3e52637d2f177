package pickle

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// Reader splits a stream of pickles.
type Reader struct {
	r   *bufio.Reader
	max int
	buf []byte
}

// NewReader returns a reader of pickles of at most max bytes each.
func NewReader(r *bufio.Reader, max int) *Reader { return &Reader{r: r, max: max} }

// Next returns the bytes of the next pickle, up to its STOP, without looking at
// what they mean. They are valid until the next call. The error is io.EOF if there
// is none.
func (r *Reader) Next() ([]byte, error) {
	r.buf = r.buf[:0]
	for {
		op, err := r.r.ReadByte()
		if err == io.EOF && len(r.buf) > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		r.buf = append(r.buf, op)
		if err := r.operand(op); err != nil {
			return nil, err
		}
		if len(r.buf) > r.max {
			return nil, errorAt(r.max, "a pickle longer than %d bytes", r.max)
		}
		if op == opStop {
			return r.buf, nil
		}
	}
}

func (r *Reader) operand(op byte) error {
	size := 0
	switch kind := operands[op]; kind {
	case argLine:
		return r.lines(1)
	case argLines:
		return r.lines(2)
	case argLen1:
		size = 1
	case argLen4:
		size = 4
	case argLen8:
		size = 8
	case argUnknown:
		return errorAt(len(r.buf)-1, "unknown opcode 0x%02x", op)
	default:
		return r.take(uint64(kind))
	}
	if err := r.take(uint64(size)); err != nil {
		return err
	}
	var n [8]byte
	copy(n[:], r.buf[len(r.buf)-size:])
	return r.take(binary.LittleEndian.Uint64(n[:]))
}

func (r *Reader) take(n uint64) error {
	at := len(r.buf)
	if n > uint64(max(r.max-at, 0)) {
		return errorAt(r.max, "a pickle longer than %d bytes", r.max)
	}
	r.buf = append(r.buf, make([]byte, n)...)
	if _, err := io.ReadFull(r.r, r.buf[at:]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("reading a pickle: %w", err)
	}
	return nil
}

func (r *Reader) lines(n int) error {
	for n > 0 {
		c, err := r.r.ReadByte()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("reading a pickle: %w", err)
		}
		if r.buf = append(r.buf, c); len(r.buf) > r.max {
			return errorAt(r.max, "a pickle longer than %d bytes", r.max)
		}
		if c == '\n' {
			n--
		}
	}
	return nil
}
