package verify

import (
	"context"
	"iter"

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
	// How are differences that do not count: that a source keeps the records of a
	// transaction in another order, say. Default: none.
	How exporter.CompareOptions
	// Packed is up to when the source may have been packed: what it lacks there, and the
	// repository has, is explained by that; statuses, the order of records, and links to
	// data that are gone, then do not count. Default: it was not.
	Packed tid.TID
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
	if o.Packed != tid.Zero {
		o.How.AnyStatus, o.How.FullData = true, true
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
	ours := source(func(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
		return o.Repo.Transactions(ctx, o.Keys, o.State, after, upTo, o.Fetch, look.load)
	})
	progress := func(last tid.TID, txns, records, bytes int64) {
		sum.Txns, sum.Records, sum.Bytes = txns, records, bytes
		if o.Progress != nil {
			o.Progress(last, txns, records, bytes)
		}
	}
	for d, err := range exporter.Compare(ctx, ours, o.Source, sum.After, sum.UpTo, o.How, progress) {
		if err != nil {
			return sum, err
		}
		if d.TID <= o.Packed && d.What == exporter.MissingInSecond {
			sum.Explained++
			continue
		}
		f := Finding{Kind: Different}
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
	sum.Damage, sum.Warnings = r.damage, r.warnings
	return sum, ctx.Err()
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
