package fsformat

import (
	"context"
)

// Progress is told how far a long piece of work is: the position reached in the
// file, every few megabytes. nil is allowed.
type Progress func(pos int64)

// progressStep is how many bytes lie between two calls of a Progress, and between
// two looks at the context.
const progressStep = 4 << 20

// BuildIndex reads the whole file and returns its index. It checks all that the
// heads of transactions and records let it check.
func (r *Reader) BuildIndex(ctx context.Context, progress Progress) (*Index, error) {
	x := NewIndex()
	return x, r.extendIndex(ctx, x, progress, nil)
}

// BuildCheckedIndex is BuildIndex that reports each record whose pointer to the
// previous one does not agree. With an index, the file is opened without a look at
// them. An error of report ends it.
func (r *Reader) BuildCheckedIndex(ctx context.Context, progress Progress, report func(*CorruptError) error) (*Index, error) {
	x := NewIndex()
	return x, r.extendIndex(ctx, x, progress, report)
}

// extendIndex adds to x what the file has after x.End.
func (r *Reader) extendIndex(ctx context.Context, x *Index, progress Progress, checked func(*CorruptError) error) error {
	_, err := r.completeIndex(ctx, x, progress, checked)
	return err
}

// completeIndex is extendIndex that says why the rest of the file is ignored, "" if
// there is none.
func (r *Reader) completeIndex(ctx context.Context, x *Index, progress Progress, checked func(*CorruptError) error) (reason string, err error) {
	if _, err := r.Renumbered(ctx); err != nil {
		return "", err
	}
	s := r.newScanner(x.End, x.LastTID)
	var rec RecordHeader
	var records []written // of the transaction, if they are checked
	report := x.End
	for {
		h, err := s.next()
		if err != nil {
			return "", err
		}
		if h == nil {
			x.End = max(s.pos, magicLen) // a file may have no byte at all
			return s.reason, nil
		}
		if h.Pos >= report {
			if err := ctx.Err(); err != nil {
				return "", err
			}
			if progress != nil {
				progress(h.Pos)
			}
			report = h.Pos + progressStep
		}
		if h.Status != statusUndone {
			for pos := h.First(); ; pos = rec.End() {
				ok, err := s.record(h, pos, &rec)
				if err != nil {
					return "", err
				}
				if !ok {
					break
				}
				if checked == nil {
					x.Set(rec.OID, pos)
					continue
				}
				records = append(records, written{rec.OID, pos})
				if newest, _ := x.Get(rec.OID); !previousAgrees(&rec, h.Status, newest) {
					wrong, err := r.wrongPrevious(&rec)
					if err == nil {
						err = checked(wrong)
					}
					if err != nil {
						return "", err
					}
				}
			}
			for _, w := range records {
				x.Set(w.oid, w.pos)
			}
			records = records[:0]
			x.LastTID = h.TID
		}
		if err := s.trailer(h); err != nil {
			return "", err
		}
		x.End = h.End()
	}
}

// SetIndex gives the reader the index that loads and histories need.
func (r *Reader) SetIndex(x *Index) { r.index = x }

// Index returns the index the reader uses, nil if it has none.
func (r *Reader) Index() *Index { return r.index }
