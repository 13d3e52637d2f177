package msgpack

import "fmt"

// MaxScan is the greatest size in bytes of one element, with all it contains,
// that a [Scanner] accepts.
const MaxScan = 256 << 20

// Scanner finds the end of an element that arrives in pieces. It looks at each
// byte once, however many pieces there are. The zero Scanner is at the start of
// an element.
type Scanner struct {
	pos  int  // where the next element starts
	left int  // elements still to come after the first one
	open bool // the first one has been seen
}

// Scan is given all the bytes from the start of the element, more at each call.
// It returns the size of the element, or 0 if it is not complete, and then in
// need a size that it has at least.
func (s *Scanner) Scan(b []byte) (n, need int, err error) {
	if !s.open {
		s.left, s.open = 1, true
	}
	for s.left > 0 {
		if s.pos >= len(b) {
			return 0, s.pos + s.left, nil
		}
		h := headers[b[s.pos]]
		if h.kind == Invalid {
			return 0, 0, fmt.Errorf("byte %d: invalid byte 0x%02x", s.pos, b[s.pos])
		}
		end := s.pos + 1 + int(h.width)
		if end > len(b) {
			return 0, end + s.left - 1, nil
		}
		size := uint64(h.fix)
		if h.width > 0 {
			size = number(b[s.pos+1:], h.width)
		}
		more := 0
		switch h.kind {
		case Str, Bin, Ext:
			if size > MaxElement {
				return 0, 0, fmt.Errorf("byte %d: element of %d bytes, more than %d", s.pos, size, MaxElement)
			}
			if h.kind == Ext {
				size++
			}
			end += int(size)
		case Array:
			more = int(size)
		case Map:
			more = 2 * int(size)
		}
		s.pos = end
		s.left += more - 1
		if s.pos+s.left > MaxScan {
			return 0, 0, fmt.Errorf("byte %d: element with all it contains exceeds %d bytes", s.pos, MaxScan)
		}
	}
	if s.pos > len(b) {
		return 0, s.pos, nil
	}
	return s.pos, s.pos, nil
}
