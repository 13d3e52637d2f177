package fsformat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/neozodb/neo/cluster/tid"
)

// A scanner walks over the transactions of a file from first to last. It is the
// one place that decides what is an incomplete end and what is damage.
type scanner struct {
	r      *Reader
	w      *window
	pos    int64   // of the next transaction
	last   tid.TID // of the previous one
	reason string  // why the end is not that of the file
	head   Header
	meta   []byte // user, description and extension of the current transaction
	big    []byte // data of a large record

	lineage *lineage // of the records that are read; nil: not looked at
}

func (r *Reader) newScanner(pos int64, last tid.TID) *scanner {
	return &scanner{r: r, w: newWindow(r.r, r.size), pos: min(pos, r.size), last: last}
}

// next returns the header of the next transaction, of status ' ', 'p' or 'u', or
// nil at the end of the finished transactions. It verifies that the record is
// within the file and that its length is repeated at its end, not its contents.
// The header is valid until the next call.
func (s *scanner) next() (*Header, error) {
	r, pos := s.r, s.pos
	left := r.size - pos
	if left == 0 {
		return nil, nil
	}
	if left < txnHeaderLen {
		s.reason = fmt.Sprintf("%d bytes are too few for a transaction", left)
		return nil, nil
	}
	b, err := s.w.bytes(pos, txnHeaderLen)
	if err != nil {
		return nil, fmt.Errorf("%s: reading the transaction at offset %d: %w", r.name, pos, err)
	}
	s.head = r.parseHeader(b, pos)
	h := &s.head
	switch {
	case h.Len < 0 || h.Len > maxPos || h.End() > r.size:
		intact, err := r.endsIntact(pos)
		if err != nil {
			return nil, err
		}
		if intact {
			return nil, r.corrupt(pos, h.TID, "its length %d passes the end of the file, which ends with an intact transaction", uint64(h.Len))
		}
		s.reason = fmt.Sprintf("transaction %v is incomplete", h.TID)
		return nil, nil
	case h.Status == statusVoted:
		if h.End() < r.size {
			return nil, r.corrupt(pos, h.TID, "it was voted but not finished, and %d bytes follow it", r.size-h.End())
		}
		s.reason = reasonVoted(h)
		return nil, nil
	case !h.lenOK():
		garbage, err := s.isGarbage(pos)
		if err != nil {
			return nil, err
		}
		if garbage {
			s.reason = fmt.Sprintf("the last %d bytes are no transaction", left)
			return nil, nil
		}
		return nil, r.corrupt(pos, h.TID, "its length %d is less than that of its header, %d", h.Len, txnHeaderLen+h.metaLen())
	case !validStatus(h.Status) && !r.opt.AnyStatus:
		return nil, r.corrupt(pos, h.TID, "invalid status %q", h.Status)
	case h.TID <= s.last && r.opt.Renumber && s.last < tid.Max:
		h.TID = s.last + 1
	case h.TID <= s.last:
		return nil, r.outOfOrder(pos, h.TID, "its id is not above that of the previous transaction, %v", s.last)
	}
	s.pos = h.End()
	s.last = h.TID
	return h, nil
}

// isGarbage reports whether the end of the file from pos on is no transaction,
// rather than a damaged one, by what the last 8 bytes say: Python's criterion.
func (s *scanner) isGarbage(pos int64) (bool, error) {
	var b [8]byte
	if err := readFull(s.r.r, b[:], s.r.size-8); err != nil {
		return false, fmt.Errorf("%s: reading the last length: %w", s.r.name, err)
	}
	n := binary.BigEndian.Uint64(b[:])
	return n < txnHeaderLen || n > uint64(s.r.size-pos), nil
}

// metadata reads user, description and extension. They are valid until next.
func (s *scanner) metadata() (user, desc, ext []byte, err error) {
	h := &s.head
	b, err := s.w.bytes(h.Pos+txnHeaderLen, h.metaLen())
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: reading the metadata of transaction %v at offset %d: %w", s.r.name, h.TID, h.Pos, err)
	}
	s.meta = append(s.meta[:0], b...)
	u, d := h.userLen, h.userLen+h.descLen
	return s.meta[:u:u], s.meta[u:d:d], s.meta[d:], nil
}

// record reads the header of the data record at pos in transaction h, with its
// back-pointer, and verifies that it lies in the transaction and is part of it.
// It returns false at the end of the transaction.
func (s *scanner) record(h *Header, pos int64, rec *RecordHeader) (bool, error) {
	return s.recordOf(h, pos, h.Pos, rec)
}

// recordOf is record for a transaction that was written at another position, if
// it is not negative.
func (s *scanner) recordOf(h *Header, pos, writtenAt int64, rec *RecordHeader) (bool, error) {
	end := h.Pos + h.Len
	if pos == end {
		return false, nil
	}
	if end-pos < recHeaderLen {
		return false, s.r.corrupt(pos, h.TID, "%d bytes are left in the transaction, too few for a data record", end-pos)
	}
	b, err := s.w.bytes(pos, recHeaderLen)
	if err != nil {
		return false, fmt.Errorf("%s: reading the record at offset %d: %w", s.r.name, pos, err)
	}
	*rec = parseRecordHeader(b, pos)
	if writtenAt < 0 {
		writtenAt = rec.TxnPos
	}
	stored := rec.TID == h.stored
	if stored {
		rec.TID = h.TID
	}
	if rec.TxnPos == writtenAt && stored && rec.versions == 0 && rec.DataLen > 0 && rec.DataLen <= end-pos-recHeaderLen {
		return true, nil
	}
	switch {
	case rec.TxnPos != writtenAt:
		return false, s.r.corruptRecord(rec, h.TID, "the record says that its transaction is at %d, not %d", uint64(rec.TxnPos), writtenAt)
	case rec.versions != 0:
		return false, s.r.corruptRecord(rec, h.TID, "the record has a version name of %d bytes: versions are not supported", rec.versions)
	case !stored:
		return false, s.r.corruptRecord(rec, h.TID, "the record says that its transaction is %v", rec.TID)
	case rec.DataLen < 0 || rec.DataLen > end-pos-recHeaderLen || rec.DataLen == 0 && end-pos-recHeaderLen < pointerLen:
		return false, s.r.corruptRecord(rec, h.TID, "the record of %d bytes of data passes the end of its transaction at %d", uint64(rec.DataLen), end)
	}
	b, err = s.w.bytes(pos+recHeaderLen, pointerLen)
	if err != nil {
		return false, fmt.Errorf("%s: reading the record at offset %d: %w", s.r.name, pos, err)
	}
	rec.Back = int64(binary.BigEndian.Uint64(b))
	return true, nil
}

// trailer verifies that the length of h is repeated at its end.
func (s *scanner) trailer(h *Header) error {
	var b []byte
	var err error
	if h.Len < windowMax/2 {
		b, err = s.w.bytes(h.Pos+h.Len, trailerLen)
	} else { // far away: the window stays where the records are
		var far [trailerLen]byte
		b = far[:]
		err = readFull(s.r.r, b, h.Pos+h.Len)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return s.r.corrupt(h.Pos, h.TID, "the file ends within the transaction")
	}
	if err != nil {
		return fmt.Errorf("%s: reading the end of the transaction at offset %d: %w", s.r.name, h.Pos, err)
	}
	if n := int64(binary.BigEndian.Uint64(b)); n != h.Len {
		return s.r.corrupt(h.Pos, h.TID, "its length is %d at its beginning and %d at its end", h.Len, uint64(n))
	}
	return nil
}
