package restore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"iter"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat/zdump"
)

// DifferenceError reports the first difference between a target and the repository. It
// is an [ErrDifferent].
type DifferenceError struct {
	Key   string // of the segment
	First exporter.Difference
}

func (e *DifferenceError) Error() string {
	return fmt.Sprintf("%v: segment %s (first) and the target (second): %v", ErrDifferent, e.Key, e.First)
}

// Is reports whether target is ErrDifferent.
func (e *DifferenceError) Is(target error) bool { return target == ErrDifferent }

// CompareOptions say how [Source.Compare] compares. A zero field takes the default.
type CompareOptions struct {
	// How are differences that do not count: a cluster keeps one record of an object in a
	// transaction, in an order of its own. Default: none.
	How      exporter.CompareOptions
	Progress Progress // default: none
}

// Compare reads again what was restored without comparison, all of it, and compares it with
// what the repository says of each segment. The first difference is a [*DifferenceError], or
// another [ErrDifferent].
func (s *Source) Compare(ctx context.Context, name string, db txn.Database, o CompareOptions) (*Result, error) {
	plan, err := s.check(ctx)
	if err != nil {
		return nil, err
	}
	load := func(oid tid.OID, at tid.TID) ([]byte, error) {
		r, err := db.LoadAt(ctx, oid, at)
		return absent(r.Data, err)
	}
	res := &Result{At: s.at()}
	if err := s.compare(ctx, target{name: name, Source: db, last: db.LastTID, load: load, how: o.How}, res, plan.Text, o.Progress); err != nil {
		return nil, err
	}
	return res, nil
}

// target is what was restored, read again.
type target struct {
	name string
	exporter.Source
	last func(context.Context) (tid.TID, error)
	load func(oid tid.OID, at tid.TID) ([]byte, error) // data of a revision, nil if it has none
	how  exporter.CompareOptions                       // what does not count
	gaps []snapshot.Gap                                // that were left out
}

// group is segments that end with whole transactions: several only if a transaction is
// cut between them.
type group []*snapshot.Segment

func (g group) after() tid.TID { return g[0].After }
func (g group) end() tid.TID   { return g[len(g)-1].End() }

// groups yields the segments of a state up to a TID.
func (s *Source) groups(ctx context.Context) iter.Seq2[group, error] {
	return func(yield func(group, error) bool) {
		var g group
		for part, err := range s.Repo.Parts(ctx, s.State, tid.Zero, s.at()) {
			if err == nil && part.Gap != nil && s.AllowGaps {
				continue
			}
			if err == nil && part.Gap != nil {
				err = fmt.Errorf("%v to %v: %w", part.Gap.After, part.Gap.Upto, backup.ErrIncomplete)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			l := part.Segment
			if len(g) > 0 && l.After != l.Upto {
				if !yield(g, nil) {
					return
				}
				g = nil
			}
			g = append(g, l)
		}
		if err := ctx.Err(); err != nil {
			yield(nil, err)
			return
		}
		if len(g) > 0 {
			yield(g, nil)
		}
	}
}

// tellEvery is after how many bytes progress is told.
const tellEvery = 4 << 20

// textOf is about how much dump text there is of what was copied.
func textOf(txns, records, bytes, total int64) int64 {
	return min(bytes+34*records+62*txns, total)
}

// compare reads a target and compares it with what the repository says: of each segment
// the digest of its text, which the target's text must have. Where that differs, or
// where only a part of a segment was restored, the segment is read and compared record
// by record.
func (s *Source) compare(ctx context.Context, t target, res *Result, total int64, progress Progress) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next, stop := iter.Pull2(t.Transactions(ctx, tid.Zero, s.at()))
	defer stop()
	tr, err, more := next()
	if err != nil {
		return fmt.Errorf("compare %s: %w", t.name, err)
	}
	var c cutter
	told := int64(0)
	tell := func(done int64) {
		if progress != nil {
			told = done
			progress(Comparing, res.Last, done, max(total, done))
		}
	}
	tell(0)
	for g, err := range s.groups(ctx) {
		if err != nil {
			return err
		}
		c.begin(g)
		end := min(g.end(), s.at())
		for more && tr.TID <= end {
			if tr.TID <= res.Last && res.Last != tid.Zero {
				return fmt.Errorf("compare %s: %w: transaction %v comes after %v", t.name, ErrDifferent, tr.TID, res.Last)
			}
			res.Last = tr.TID
			res.Txns++
			if err := c.transaction(tr, &res.Records); err != nil {
				return fmt.Errorf("compare %s: transaction %v: %w", t.name, tr.TID, err)
			}
			if done := res.Bytes + c.n; done-told >= tellEvery {
				tell(done)
			}
			if tr, err, more = next(); err != nil {
				return fmt.Errorf("compare %s: %w", t.name, err)
			}
		}
		if !c.same() {
			if err := s.compareRecords(ctx, t, g, end); err != nil {
				return err
			}
		}
		res.Segments += int64(len(g))
		res.Bytes += c.n
		tell(res.Bytes)
	}
	last, err := t.last(ctx)
	if err != nil {
		return err
	}
	if last != res.Last {
		return fmt.Errorf("compare %s: %w: its last transaction is %v, not %v", t.name, ErrDifferent, last, res.Last)
	}
	res.Compared = true
	return ctx.Err()
}

// compareRecords compares the history of segments with a target record by record.
func (s *Source) compareRecords(ctx context.Context, t target, g group, end tid.TID) error {
	src := &history{s: s, load: t.load, gaps: t.gaps}
	for d, err := range exporter.Compare(ctx, src, t, g.after(), end, t.how, nil) {
		if err != nil {
			return err
		}
		switch d.What {
		case exporter.MissingInSecond:
			d.What = "missing in the target"
		case exporter.MissingInFirst:
			d.What = "not in the repository"
		}
		return &DifferenceError{g[0].Key, d}
	}
	return nil
}

// cutter makes the text of transactions and cuts it into those of segments.
type cutter struct {
	g    group
	i    int // segment
	left int64
	sum  hash.Hash
	bad  bool
	n    int64 // bytes since begin
	b    []byte
}

func (c *cutter) begin(g group) {
	c.g, c.i, c.left, c.bad, c.n = g, 0, g[0].Text, false, 0
	if c.sum == nil {
		c.sum = sha256.New()
	}
	c.sum.Reset()
	c.next()
}

// next goes on to the next segment while one is full.
func (c *cutter) next() {
	for c.i < len(c.g) && c.left == 0 {
		if snapshot.Hash(c.sum.Sum(nil)) != c.g[c.i].Raw {
			c.bad = true
		}
		c.sum.Reset()
		if c.i++; c.i < len(c.g) {
			c.left = c.g[c.i].Text
		}
	}
}

func (c *cutter) write(b []byte) {
	c.n += int64(len(b))
	for len(b) > 0 && !c.bad {
		if c.i == len(c.g) {
			c.bad = true
			return
		}
		n := min(int64(len(b)), c.left)
		c.sum.Write(b[:n])
		b = b[n:]
		c.left -= n
		c.next()
	}
}

// transaction writes the text of a transaction and counts its records.
func (c *cutter) transaction(t *txn.Transaction, records *int64) error {
	c.b = zdump.AppendHead(c.b[:0], t)
	c.write(c.b)
	if t.Records != nil {
		for r, err := range t.Records {
			if err != nil {
				return err
			}
			*records++
			rec := snapshot.RecordOf(r, true)
			c.b = snapshot.AppendRecordHead(c.b[:0], &rec)
			c.write(c.b)
			if rec.Kind == snapshot.HasData {
				c.write(rec.Data)
				c.write([]byte{'\n'})
			}
		}
	}
	c.write([]byte{'\n'})
	return nil
}

// same reports whether the text was that of the segments, all of it.
func (c *cutter) same() bool { return !c.bad && c.i == len(c.g) }

// absent makes of the error about a revision without data no error.
func absent(data []byte, err error) ([]byte, error) {
	if errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject) {
		return nil, nil
	}
	return data, err
}
