package restore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// noGaps returns an error if gaps are allowed, for a target that cannot say what is lost.
func (s *Source) noGaps() error {
	if s.AllowGaps {
		return errors.New("with gaps, a repository is restored to a Data.fs only: beside it stands what is not known; look at that, and then use the file")
	}
	return nil
}

func inGap(gaps []snapshot.Gap, t tid.TID) bool {
	for _, g := range gaps {
		if g.After < t && t <= g.Upto {
			return true
		}
	}
	return false
}

// withGaps is Transactions without what is lost. A record that copies a revision which is lost has no data: the object does not
// exist then, rather than to be what it was at another time.
func (h *history) withGaps(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	fetch := h.s.Fetch
	fetch.SkipGaps = true
	resolve := func(oid tid.OID, at tid.TID) ([]byte, error) {
		if inGap(h.gaps, at) {
			return nil, nil
		}
		data, err := h.load(oid, at) // which may itself copy what is lost
		if errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject) {
			return nil, nil
		}
		return data, err
	}
	return func(yield func(*txn.Transaction, error) bool) {
		for t, err := range h.s.Repo.Transactions(ctx, h.s.Keys, h.s.State, after, upTo, fetch, resolve) {
			if err != nil {
				yield(nil, err)
				return
			}
			c, records := *t, t.Records
			c.Records = func(yield func(*txn.Record, error) bool) {
				for r, err := range records {
					if err == nil && inGap(h.gaps, r.DataTID) {
						r.DataTID, r.Data = tid.Zero, nil
					}
					if !yield(r, err) {
						return
					}
				}
			}
			if !yield(&c, nil) {
				return
			}
		}
	}
}

// unknown writes PATH.unknown: the objects that a restored file has and that may have changed in a gap, a line each, and those
// whose newest revision copies one that is lost.
func (s *Source) unknown(ctx context.Context, path string, gaps []snapshot.Gap, res *Result) (err error) {
	last := gaps[len(gaps)-1]
	lost := map[tid.OID]tid.TID{}
	for e, err := range s.lostCopies(ctx, gaps) {
		if err != nil {
			return err
		}
		lost[e.OID] = max(lost[e.OID], e.TID)
	}
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		return err
	}
	defer r.Close() // only read
	if _, err := r.UseIndex(ctx, path+".index", nil); err != nil {
		return err
	}
	res.UnknownFile = path + ".unknown"
	f, err := os.OpenFile(res.UnknownFile, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	defer func() {
		err = errors.Join(err, w.Flush(), f.Close())
	}()
	for _, g := range gaps {
		fmt.Fprintf(w, "# lost: transactions after %v up to %v; objects that were created in them are missing\n", g.After, g.Upto)
	}
	fmt.Fprintf(w, "# object, transaction of its newest revision that is known\n")
	for _, oid := range r.Index().OIDs() {
		newest, err := r.LastRevision(oid)
		if err != nil {
			return err
		}
		text := ""
		switch {
		case newest <= last.After:
			text = "may have changed"
		case lost[oid] == newest:
			text = "lost: it is again what it was in a transaction that is lost"
		default:
			continue
		}
		res.Unknown++
		fmt.Fprintf(w, "%v %v %s\n", oid, newest, text)
	}
	return ctx.Err()
}

// lostCopies yields the records that copy a revision which is lost.
func (s *Source) lostCopies(ctx context.Context, gaps []snapshot.Gap) iter.Seq2[snapshot.Entry, error] {
	fetch := s.Fetch
	fetch.SkipGaps = true
	return func(yield func(snapshot.Entry, error) bool) {
		lost := map[snapshot.Entry]bool{}
		for t, err := range s.Repo.Transactions(ctx, s.Keys, s.State, gaps[0].Upto, s.at(), fetch, nil) {
			if err != nil {
				yield(snapshot.Entry{}, err)
				return
			}
			for r, err := range t.Records {
				if err != nil {
					yield(snapshot.Entry{}, err)
					return
				}
				e := snapshot.Entry{OID: r.OID, TID: t.TID}
				if r.DataTID == tid.Zero || !inGap(gaps, r.DataTID) && !lost[snapshot.Entry{OID: r.OID, TID: r.DataTID}] {
					continue
				}
				if lost[e] = true; !yield(e, nil) {
					return
				}
			}
		}
	}
}
