package repair

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// tipAt identifies a transaction.
type tipAt struct {
	tid tid.TID
	tip snapshot.Hash
}

// source returns nil if the source can be read up to a TID: it is the one that was backed up, which at least one
// transaction that signed notes identify must show.
func (e *engine) source(ctx context.Context, upto tid.TID) error {
	if e.o.Source == nil {
		return errors.New("no source was given")
	}
	if !e.sameAs && e.noSame == nil {
		if err := e.compareTips(ctx); errors.Is(err, ErrDiverged) {
			e.noSame = err
		} else if err != nil {
			return err
		} else {
			e.sameAs = true
		}
	}
	if e.noSame != nil {
		return e.noSame
	}
	last, _, err := e.o.Source.Last(ctx)
	if err == nil && last < upto {
		err = fmt.Errorf("%w: the last transaction of the source is %v", ErrDiverged, last)
	}
	return err
}

// maxTips is how many transactions are looked for in a source of which a pack may have removed some.
const maxTips = 100

func (e *engine) compareTips(ctx context.Context) error {
	if err := e.o.Source.Resume(ctx, ""); err != nil {
		return fmt.Errorf("%w: %w", ErrDiverged, err)
	}
	last, _, err := e.o.Source.Last(ctx)
	if err != nil {
		return err
	}
	n := 0
	for i := len(e.tips) - 1; i >= 0 && n < maxTips; i-- {
		t := e.tips[i]
		if t.tid == tid.Zero || t.tip == (snapshot.Hash{}) || t.tid > last {
			continue
		}
		n++
		got, err := e.o.Source.Info(ctx, t.tid)
		switch {
		case errors.Is(err, txn.ErrNotFound) && e.file:
			continue // a pack drops some
		case errors.Is(err, txn.ErrNotFound):
			return fmt.Errorf("%w: the source has no transaction %v", ErrDiverged, t.tid)
		case err != nil:
			return err
		case snapshot.Tip(got) != t.tip:
			return fmt.Errorf("%w: transaction %v is another one", ErrDiverged, t.tid)
		}
		return nil
	}
	return fmt.Errorf("%w: none of the transactions that signed notes identify is known to be in the source", ErrDiverged)
}

// made is a segment that was built, not stored.
type made struct {
	*snapshot.Written
	plain *temp
}

func closeAll(list []made) {
	for _, m := range list {
		m.plain.Close()
	}
}

// build makes segments of (after, upto] of what the source has. With cuts, they are cut where their texts have these lengths. exact
// says from when on a segment is exact, by what the source knows of packs when it was read. It returns the
// identification of the last transaction as well, zero if there is none.
func (e *engine) build(ctx context.Context, lineage snapshot.ID, after, upto tid.TID, cuts []int64, exact func(after, packed tid.TID) tid.TID) (list []made, tip snapshot.Hash, packed tid.TID, err error) {
	var w *snapshot.SegmentWriter
	var buf *temp
	var start tid.TID
	defer func() {
		if err != nil {
			closeAll(list)
			if buf != nil {
				buf.Close()
			}
			list = nil
		}
	}()
	begin := func(after tid.TID, continues bool) (err error) {
		if buf, err = e.temp(); err != nil {
			return err
		}
		start = after
		w, err = snapshot.NewSegmentWriter(buf, snapshot.Header{Repo: e.repo.Marker.ID, Lineage: lineage, After: after, Continues: continues}, snapshot.WriterOptions{Level: e.o.Level})
		return err
	}
	end := func(upto tid.TID) error {
		packed, err := e.o.Source.Packed(ctx)
		if err != nil {
			return err
		}
		written, err := w.Close(upto, e.salted(exact(start, packed), start))
		if err != nil {
			return err
		}
		list = append(list, made{written, buf})
		w, buf = nil, nil
		return nil
	}
	if err = begin(after, false); err != nil {
		return list, tip, 0, err
	}
	full := func() bool {
		if cuts != nil {
			return len(list) < len(cuts)-1 && w.Text() >= cuts[len(list)]
		}
		return w.Size() >= e.o.SegmentSize
	}
	at := after
	for t, err := range e.o.Source.Read(ctx, after, upto) {
		if err != nil {
			return list, tip, 0, fmt.Errorf("reading the source after transaction %v: %w", at, err)
		}
		if t.TID <= at || t.TID > upto {
			return list, tip, 0, fmt.Errorf("the source gave transaction %v after %v", t.TID, at)
		}
		if cuts == nil && full() {
			if err := end(at); err != nil {
				return list, tip, 0, err
			}
			if err := begin(at, false); err != nil {
				return list, tip, 0, err
			}
		}
		if err := w.Begin(t); err != nil {
			return list, tip, 0, err
		}
		for r, err := range t.Records {
			if err != nil {
				return list, tip, 0, fmt.Errorf("reading transaction %v: %w", t.TID, err)
			}
			if full() {
				if err := end(t.TID); err != nil {
					return list, tip, 0, err
				}
				if err := begin(t.TID, true); err != nil {
					return list, tip, 0, err
				}
			}
			copied := false
			if r.DataTID != tid.Zero && !e.lost(r.DataTID) {
				if copied, err = e.o.Source.Has(ctx, r.OID, r.DataTID); err != nil {
					return list, tip, 0, fmt.Errorf("object %v in transaction %v, copied from %v: %w", r.OID, t.TID, r.DataTID, err)
				}
			}
			if err := w.Record(snapshot.RecordOf(r, copied)); err != nil {
				return list, tip, 0, err
			}
		}
		if err := w.End(); err != nil {
			return list, tip, 0, err
		}
		at, tip = t.TID, snapshot.Tip(t)
		if n := len(list); cuts == nil && n > 0 && start == at { // the end of one that is cut
			if err := end(at); err != nil {
				return list, tip, 0, err
			}
			if err := begin(at, false); err != nil {
				return list, tip, 0, err
			}
		}
	}
	if err = ctx.Err(); err != nil {
		return list, tip, 0, err
	}
	if packed, err = e.o.Source.Packed(ctx); err != nil {
		return list, tip, 0, err
	}
	if w.Text() > 0 || len(list) == 0 {
		err = end(upto)
		return list, tip, packed, err
	}
	buf.Close()
	buf = nil
	// The last one ends where a transaction that was cut does.
	if last := list[len(list)-1].Header.Upto; last != upto {
		err = fmt.Errorf("the source has no transaction %v", upto)
	}
	return list, tip, packed, err
}

// lost reports whether a transaction is in a gap.
func (e *engine) lost(t tid.TID) bool {
	for _, g := range e.gaps {
		if g.After < t && t <= g.Upto {
			return true
		}
	}
	return false
}
