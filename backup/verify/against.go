package verify

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/exporter"
)

// AgainstOptions say what [Against] compares. Repo, State and Source are required.
type AgainstOptions struct {
	Repo   *backup.Repository
	Keys   *backup.Keys
	State  *backup.State
	Source exporter.Source // what was backed up: see [FromFeed] for a feed
	// Ours stands for the history of the repository: what was restored of it and compared
	// with it, so that nothing is read again from the store. Default: the repository.
	Ours exporter.Source
	// How are differences that do not count: that a source keeps the records of a
	// transaction in another order, say. Default: none.
	How exporter.CompareOptions
	// Packed, of a source that may have been packed, returns up to when, as far as was read:
	// it is asked when the source lacks something. Revisions that were superseded by then, and
	// deletions, which the source lacks and the repository has, are explained by that. The order
	// of records, and links to data that are gone, then do not count. Default: it was not packed.
	Packed func(context.Context) (tid.TID, error)
	// Horizon, of a source that was packed, is up to when, if that is known before: see
	// [Horizon].
	Horizon tid.TID
	// Collected: the pack may have removed objects that were not reachable, as that of a Data.fs
	// does. That they are in the repository is then a warning.
	Collected bool
	// After and UpTo bound what is compared. Default: all that the repository has.
	After, UpTo tid.TID
	Fetch       backup.FetchOptions
	Report      func(Finding)
	Progress    exporter.Progress // of what both have; default: none
}

// AgainstSummary says what [Against] has compared.
type AgainstSummary struct {
	After, UpTo tid.TID `json:"-"`
	Txns        int64   `json:"txns"`
	Records     int64   `json:"records"`
	Bytes       int64   `json:"bytes"`
	Explained   int64   `json:"explained"` // differences that a pack of the source explains
	Damage      int64   `json:"damage"`
	Warnings    int64   `json:"warnings"`
}

// Against compares the history of a repository with that of a source, record by record, and
// reports all differences with the segment in which they are.
func Against(ctx context.Context, o AgainstOptions) (*AgainstSummary, error) {
	r := &reporter{report: o.Report}
	if o.Packed != nil {
		o.How.FullData = true
		if !o.How.AnyOrder {
			o.How.AnyOrder, o.How.EachRecord = true, true
		}
	}
	if o.Keys == nil {
		o.Keys = o.Repo.Unlock()
	}
	sum := &AgainstSummary{After: o.After, UpTo: o.State.Head()}
	if o.UpTo != tid.Zero {
		sum.UpTo = min(sum.UpTo, o.UpTo)
	}
	parts, err := allParts(ctx, o.Repo, o.State, func(_ string, _, _ tid.TID, err error) error { return err })
	if err != nil {
		return sum, err
	}
	look := &lookup{ctx: ctx, repo: o.Repo, keys: o.Keys, parts: parts}
	p := &packed{ask: o.Packed, upTo: o.Horizon, left: map[tid.OID]exporter.Difference{}}
	ours := source(func(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
		if o.Ours != nil {
			return p.watch(o.Ours.Transactions(ctx, after, upTo))
		}
		return p.watch(o.Repo.Transactions(ctx, o.Keys, o.State, after, upTo, o.Fetch, look.load))
	})
	theirs := source(func(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
		return func(yield func(*txn.Transaction, error) bool) {
			for t, err := range o.Source.Transactions(ctx, after, upTo) {
				if p.theirs = t; !yield(t, err) {
					return
				}
			}
		}
	})
	find := func(d exporter.Difference, warning bool) {
		f := Finding{Kind: Different, Warning: warning}
		switch d.What {
		case exporter.MissingInFirst:
			d.What = "missing in the repository"
		case exporter.MissingInSecond:
			d.What = "missing in the source"
		default:
			d.What = "repository (first) and source (second) differ: " + d.What
		}
		f.Text = d.String()
		if d.Record {
			f.OIDs, f.Objects = []tid.OID{d.OID}, 1
		}
		if from, to := look.at(d.TID); from < to && parts[from].Segment != nil {
			f.Key = parts[from].Segment.Key
			f.After, f.Upto = parts[from].Range()
		}
		r.add(f)
	}
	progress := func(last tid.TID, txns, records, bytes int64) {
		sum.Txns, sum.Records, sum.Bytes = txns, records, bytes
		if o.Progress != nil {
			o.Progress(last, txns, records, bytes)
		}
	}
	for d, err := range exporter.Compare(ctx, ours, theirs, sum.After, sum.UpTo, o.How, progress) {
		if err != nil {
			return sum, err
		}
		if explained, err := p.explains(ctx, &d); err != nil {
			return sum, err
		} else if explained {
			sum.Explained++
			continue
		}
		find(d, false)
	}
	if err := p.later(ctx, o.Source, sum.UpTo); err != nil {
		return sum, err
	}
	for _, d := range p.leftovers() {
		// A pack that came while the source was read may explain more.
		last, there, err := look.last(d.OID, p.upTo)
		if err != nil {
			return sum, err
		}
		if last > d.TID || !there {
			continue
		}
		if d.What == exporter.MissingInFirst {
			d.What = "no data in the second"
		}
		sum.Explained--
		find(d, o.Collected)
	}
	sum.Damage, sum.Warnings = r.damage, r.warnings
	return sum, ctx.Err()
}

// packed tells what the pack of a source explains.
type packed struct {
	ask    func(context.Context) (tid.TID, error) // nil: it was not packed
	upTo   tid.TID                                // as it was answered last
	now    *txn.Transaction                       // of the repository
	theirs *txn.Transaction                       // of the source
	// left are revisions that the source lacks, and that were the last ones of their objects as
	// far as was read: a pack does not remove what is current at its time.
	left map[tid.OID]exporter.Difference
}

// watch yields the history of the repository.
func (p *packed) watch(list iter.Seq2[*txn.Transaction, error]) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for t, err := range list {
			if err == nil && p.ask != nil {
				p.now = t
				c, records := *t, t.Records
				c.Records = func(yield func(*txn.Record, error) bool) {
					for r, err := range records {
						if err == nil && r.TID <= p.upTo {
							delete(p.left, r.OID)
						}
						if !yield(r, err) {
							return
						}
					}
				}
				t = &c
			}
			if !yield(t, err) {
				return
			}
		}
	}
}

// explains reports whether a pack can be the reason of a difference. What it takes for that,
// and is not sure of, is among the leftovers in the end.
func (p *packed) explains(ctx context.Context, d *exporter.Difference) (bool, error) {
	if p.ask == nil {
		return false, nil
	}
	if d.TID > p.upTo {
		upTo, err := p.ask(ctx)
		if p.upTo = max(p.upTo, upTo); err != nil || d.TID > p.upTo {
			return false, err
		}
	}
	switch {
	case !d.Record && strings.HasPrefix(d.What, "status "):
		return true, nil
	case d.What == exporter.MissingInSecond && !d.Record:
		for r, err := range p.now.Records {
			if err != nil {
				return false, err
			}
			if delete(p.left, r.OID); r.Data != nil {
				p.left[r.OID] = exporter.Difference{TID: d.TID, Record: true, OID: r.OID, What: exporter.MissingInSecond}
			}
		}
		return true, nil
	case d.What == exporter.MissingInSecond:
		for r, err := range p.now.Records {
			if err != nil {
				return false, err
			}
			if r.OID == d.OID && r.Data != nil {
				p.left[d.OID] = *d
			} else if r.OID == d.OID {
				delete(p.left, d.OID)
			}
		}
		return true, nil
	case d.Record && d.First != nil && d.Second != nil && d.Second.Absent && !d.First.Absent:
		// A feed has the deletion of a packed object in each transaction that changed it.
		p.left[d.OID] = *d
		return true, nil
	case d.What == exporter.MissingInFirst && d.Record:
		for r, err := range p.theirs.Records {
			if err != nil {
				return false, err
			}
			if r.OID == d.OID && r.Data != nil {
				return false, nil
			}
		}
		p.left[d.OID] = *d
		return true, nil
	}
	return false, nil
}

// later reads what the source has after what was compared, up to the pack: what was superseded
// there the pack could remove.
func (p *packed) later(ctx context.Context, source exporter.Source, after tid.TID) error {
	if p.ask == nil || len(p.left) == 0 || p.upTo <= after {
		return nil
	}
	for t, err := range source.Transactions(ctx, after, p.upTo) {
		if err != nil {
			return err
		}
		for r, err := range t.Records {
			if err != nil {
				return err
			}
			delete(p.left, r.OID)
		}
		if len(p.left) == 0 {
			break
		}
	}
	return nil
}

// Horizon returns up to when a Data.fs was packed: just before its first transaction that no pack has
// marked; [tid.Max] if it has none, since the pack may have dropped later ones as a whole. Zero if it was
// not packed. packed is that of its feed. A pack of a Data.fs has no trace of its own, so what comes
// before has to be looked at.
func Horizon(ctx context.Context, source exporter.Source, packed func(context.Context) (tid.TID, error)) (tid.TID, error) {
	upTo := tid.Zero
	for t, err := range source.Transactions(ctx, tid.Zero, tid.Max) {
		if err == nil {
			upTo, err = packed(ctx)
		}
		if err != nil || t.TID > upTo {
			return upTo, err
		}
	}
	if upTo == tid.Zero {
		return upTo, nil
	}
	return tid.Max, nil
}

// leftovers returns what a pack does not explain.
func (p *packed) leftovers() []exporter.Difference {
	list := slices.Collect(maps.Values(p.left))
	slices.SortFunc(list, func(a, b exporter.Difference) int {
		return cmp.Or(cmp.Compare(a.TID, b.TID), cmp.Compare(a.OID, b.OID))
	})
	return list
}

// source is a function as an [exporter.Source].
type source func(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error]

// Transactions implements [exporter.Source].
func (s source) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return s(ctx, after, upTo)
}

// Feed is what reads the history of a source for a backup: see package feed.
type Feed interface {
	Read(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error]
}

// FromFeed returns what a feed reads, for [Against].
func FromFeed(f Feed) exporter.Source { return source(f.Read) }
