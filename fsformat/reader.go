package fsformat

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/neozodb/neo/cluster/tid"
)

// Options configures a [Reader]. A zero field takes the documented default.
type Options struct {
	// AnyStatus takes a transaction whose status byte is invalid for a committed
	// one, as Python does. Default: it is a [CorruptError].
	AnyStatus bool

	// Renumber gives a transaction whose id is not above that of the previous one
	// the next id after it: the transactions keep their order, which is what the
	// data depend on, and their ids where they can. Links between them follow. It
	// takes 16 bytes for each transaction with another id. Default: such an id is a
	// [CorruptError] of kind [ErrOrder].
	Renumber bool

	// Progress is told how far a pass over the heads of all transactions is. Default:
	// none.
	Progress Progress
}

// Reader reads a Data.fs. It sees the file as long as it was when it was opened.
// Its methods may be called by several goroutines, except where noted.
type Reader struct {
	r     io.ReaderAt
	name  string
	size  int64
	magic Magic
	opt   Options
	close func() error

	tailOnce sync.Once
	tail     Tail
	tailErr  error

	renumbered []Renumbered // in the order of the file, once tailOnce is done

	index *Index

	places places

	oidsOnce sync.Once
	oids     []tid.OID // of index, ascending, once oidsOnce is done
}

// Tail says where the finished transactions of a file end, and what follows.
type Tail struct {
	End     int64   // position after the last finished transaction
	LastTID tid.TID // of the last finished transaction, 0 if there is none
	Ignored int64   // bytes after End
	Reason  string  // why they are ignored, "" if there are none
}

// Open opens a Data.fs for reading.
func Open(path string, opt Options) (*Reader, error) {
	// Before it is opened: the opening of a pipe would wait for a writer.
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	r, err := NewReader(f, fi.Size(), path, opt)
	if err != nil {
		f.Close()
		return nil, err
	}
	r.close = f.Close
	return r, nil
}

// NewReader reads the first size bytes of r as a Data.fs; name is for messages.
// A file of no bytes is an empty database. The error is a [*MagicError] if the
// file is none.
func NewReader(r io.ReaderAt, size int64, name string, opt Options) (*Reader, error) {
	rd := &Reader{r: r, name: name, size: size, magic: FS30, opt: opt}
	if size == 0 {
		return rd, nil
	}
	b := make([]byte, min(magicLen, size))
	if err := readFull(r, b, 0); err != nil {
		return nil, fmt.Errorf("%s: reading the magic: %w", name, err)
	}
	rd.magic = Magic(b)
	if rd.magic != FS30 && rd.magic != FS21 {
		return nil, &MagicError{name, b}
	}
	return rd, nil
}

// Close closes the file.
func (r *Reader) Close() error {
	if r.close == nil {
		return nil
	}
	return r.close()
}

// Name returns the name of the file.
func (r *Reader) Name() string { return r.name }

// Size returns the length of the file in bytes when it was opened.
func (r *Reader) Size() int64 { return r.size }

// Magic returns the magic of the file.
func (r *Reader) Magic() Magic { return r.magic }

// LastTID implements [txn.History]. In a file whose ids are out of order, see
// [Reader.CheckOrder], the last one need not be the greatest.
func (r *Reader) LastTID(ctx context.Context) (tid.TID, error) {
	t, err := r.Tail(ctx)
	return t.LastTID, err
}

// Tail finds the end of the finished transactions, from the end of the file if
// that is consistent, otherwise by reading all transaction headers. The error is
// a [*CorruptError] if the damage is not at the end.
func (r *Reader) Tail(ctx context.Context) (Tail, error) {
	r.tailOnce.Do(func() {
		r.tail, r.tailErr = r.findTail(ctx)
	})
	return r.tail, r.tailErr
}

func (r *Reader) findTail(ctx context.Context) (Tail, error) {
	if r.opt.Renumber {
		return r.tailFromStart(ctx, magicLen, 0)
	}
	if t, ok, err := r.tailFromEnd(); ok || err != nil {
		return t, err
	}
	return r.tailFromStart(ctx, magicLen, 0)
}

// tailFromEnd goes backwards from the end of the file to the last committed
// transaction. ok is false if what it meets does not look like a clean end.
func (r *Reader) tailFromEnd() (t Tail, ok bool, err error) {
	if r.size <= magicLen {
		return Tail{End: r.size}, true, nil
	}
	end := r.size
	t.End = end
	for end > magicLen {
		h, ok, err := r.lastBefore(end)
		if !ok || err != nil {
			return t, false, err
		}
		switch {
		case h.Status == statusVoted && end == r.size:
			t = Tail{End: h.Pos, Ignored: r.size - h.Pos, Reason: reasonVoted(&h)}
		case h.Status == statusUndone:
		case validStatus(h.Status) || r.opt.AnyStatus && h.Status != statusVoted:
			t.LastTID = h.TID
			return t, true, nil
		default:
			return t, false, nil
		}
		end = h.Pos
	}
	return t, true, nil
}

// lastBefore reads the header of the transaction that ends at end. ok is false if
// there is nothing like a transaction.
func (r *Reader) lastBefore(end int64) (h Header, ok bool, err error) {
	if end-magicLen < txnHeaderLen+trailerLen {
		return h, false, nil
	}
	var b [txnHeaderLen]byte
	if err := readFull(r.r, b[:8], end-8); err != nil {
		return h, false, fmt.Errorf("%s: reading the length of the transaction before offset %d: %w", r.name, end, err)
	}
	n := binary.BigEndian.Uint64(b[:])
	if n < txnHeaderLen || n > uint64(end-trailerLen-magicLen) {
		return h, false, nil
	}
	pos := end - trailerLen - int64(n)
	if err := readFull(r.r, b[:], pos); err != nil {
		return h, false, fmt.Errorf("%s: reading the transaction at offset %d: %w", r.name, pos, err)
	}
	h = r.parseHeader(b[:], pos)
	return h, h.Len == int64(n) && h.lenOK() && h.TID != 0, nil
}

// endsIntact reports whether the file ends with a transaction that begins after
// pos: what is wrong at pos is then no incomplete end.
func (r *Reader) endsIntact(pos int64) (bool, error) {
	h, ok, err := r.lastBefore(r.size)
	return ok && h.Pos > pos && (validStatus(h.Status) || h.Status == statusVoted), err
}

func (r *Reader) tailFromStart(ctx context.Context, pos int64, last tid.TID) (Tail, error) {
	s := r.newScanner(pos, last)
	t := Tail{LastTID: last}
	for n := 0; ; n++ {
		if n%1024 == 0 {
			if err := ctx.Err(); err != nil {
				return t, err
			}
			if r.opt.Progress != nil {
				r.opt.Progress(s.pos)
			}
		}
		h, err := s.next()
		if err != nil {
			return t, err
		}
		if h == nil {
			t.End, t.Ignored, t.Reason = s.pos, r.size-s.pos, s.reason
			return t, nil
		}
		if h.TID != h.stored {
			r.renumbered = append(r.renumbered, Renumbered{h.Pos, h.stored, h.TID})
		}
		if h.Status != statusUndone {
			t.LastTID = h.TID
		}
	}
}

func reasonVoted(h *Header) string {
	return fmt.Sprintf("transaction %v was voted but not finished", h.TID)
}
