package fsformat

import (
	"io"
)

const (
	// windowMax is what a window reads at once: large enough to make the calls
	// cheap, small enough to stay in the processor's cache, and more than the
	// longest transaction header.
	windowMax = 256 << 10
	windowMin = 4 << 10
)

// A window is a view on a file that moves forwards. It reads much at once where
// records follow each other closely, and little behind data that was skipped.
type window struct {
	r    io.ReaderAt
	end  int64  // never read beyond
	off  int64  // position of buf[0]
	buf  []byte // what was read
	mem  []byte
	next int // how much to read next time
}

func newWindow(r io.ReaderAt, end int64) *window {
	return &window{r: r, end: end, next: windowMin}
}

// bytes returns n ≤ windowMax bytes at off. They are valid until the next call.
// Beyond the end of the file it returns io.ErrUnexpectedEOF.
func (w *window) bytes(off int64, n int) ([]byte, error) {
	if i := off - w.off; i >= 0 && i+int64(n) <= int64(len(w.buf)) {
		return w.buf[i : i+int64(n)], nil
	}
	return w.fill(off, n)
}

func (w *window) fill(off int64, n int) ([]byte, error) {
	if off < 0 || int64(n) > w.end-off {
		return nil, io.ErrUnexpectedEOF
	}
	gap := off - (w.off + int64(len(w.buf)))
	if off < w.off || gap > windowMax/4 {
		w.next = windowMin
	} else {
		w.next = min(2*w.next, windowMax)
	}
	size := int(min(int64(max(w.next, n)), w.end-off))
	if len(w.mem) < size {
		// As much as is needed: many windows are for a single transaction.
		w.mem = make([]byte, size)
	}
	have := 0
	if gap < 0 && off >= w.off {
		have = copy(w.mem, w.buf[off-w.off:])
	}
	w.off, w.buf = off, w.mem[:0]
	if err := readFull(w.r, w.mem[have:size], off+int64(have)); err != nil {
		return nil, err
	}
	w.buf = w.mem[:size]
	return w.buf[:n], nil
}

// data returns n bytes at off: a part of the window if they are in it or fit,
// otherwise in *big, which grows as needed. They are valid until the next call.
func (w *window) data(off int64, n int64, big *[]byte) ([]byte, error) {
	if n <= windowMax/2 {
		return w.bytes(off, int(n))
	}
	if off < 0 || n > w.end-off {
		return nil, io.ErrUnexpectedEOF
	}
	if int64(cap(*big)) < n {
		*big = make([]byte, n)
	}
	b := (*big)[:n]
	have := 0
	if i := off - w.off; i >= 0 && i < int64(len(w.buf)) {
		have = copy(b, w.buf[i:])
	}
	if err := readFull(w.r, b[have:], off+int64(have)); err != nil {
		return nil, err
	}
	return b, nil
}

// readFull fills b from off. A file that ends before is io.ErrUnexpectedEOF.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	if len(b) == 0 {
		return nil
	}
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
