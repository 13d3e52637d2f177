package fsformat

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
)

// resync looks from pos on for a transaction whose header, repeated length and
// records are consistent. With a tid in (after, limit] it may have moved; with
// another it must have records, which say that it has not. nil: there is none.
func (r *Reader) resync(ctx context.Context, pos int64, after, limit tid.TID) (*Header, error) {
	w := newWindow(r.r, r.size)
	s := r.newScanner(pos, 0)
	const step = windowMax / 2
	for pos+txnHeaderLen+trailerLen <= r.size {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := int(min(step, r.size-pos))
		b, err := w.bytes(pos, n)
		if err != nil {
			return nil, fmt.Errorf("%s: reading at offset %d: %w", r.name, pos, err)
		}
		last := n - txnHeaderLen
		for i := 0; i <= last; i++ {
			// Cheap tests first: few bytes pass them.
			if !validStatus(b[i+16]) || b[i+8] != 0 || b[i+9] != 0 {
				continue
			}
			h := parseHeader(b[i:], pos+int64(i))
			if !h.lenOK() || h.End() > r.size || h.TID == 0 {
				continue
			}
			ok, err := r.looksIntact(s, &h, h.TID > after && h.TID <= limit)
			if err != nil {
				return nil, err
			}
			if ok {
				return &h, nil
			}
		}
		if n < step {
			break
		}
		pos += int64(last) + 1
	}
	return nil, nil
}

// looksIntact verifies the end and the records of a possible transaction, which
// may have been written elsewhere.
func (r *Reader) looksIntact(s *scanner, h *Header, expected bool) (bool, error) {
	var e *CorruptError
	if err := s.trailer(h); err != nil {
		if errors.As(err, &e) {
			return false, nil
		}
		return false, err
	}
	if expected {
		return r.recordsFit(s, h, -1)
	}
	if h.First() == h.Pos+h.Len {
		return false, nil
	}
	return r.recordsFit(s, h, h.Pos)
}

// recordsFit verifies that records fill a transaction, which was written at some
// place: anywhere, if at is negative.
func (r *Reader) recordsFit(s *scanner, h *Header, at int64) (bool, error) {
	var e *CorruptError
	var rec RecordHeader
	for pos := h.First(); ; pos = rec.End() {
		ok, err := s.recordOf(h, pos, at, &rec)
		if errors.As(err, &e) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if !ok {
			return true, nil
		}
		at = rec.TxnPos
	}
}
