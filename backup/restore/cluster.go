package restore

import (
	"context"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/exporter"
)

// ClusterOptions say how the contents of a cluster are restored. A zero field takes the
// default.
type ClusterOptions struct {
	// Append goes on after what the cluster has, which must be the beginning of what is
	// restored: an interrupted restore, or a cluster that lost its end. Default: a cluster
	// that has something is an [ErrNotEmpty].
	Append   bool
	NoVerify bool     // the cluster is not read again at the end
	Progress Progress // default: none
}

// recent is how many transactions at the end of a cluster are compared before
// anything is appended: not less than a copy has under way at once.
const recent = 256

// ToCluster restores into a running cluster, by what appender returns. No other client
// may write to it. A copy that fails is an [exporter.InterruptedError]: it goes on
// with Append.
//
// A cluster keeps the last record of an object that a transaction has twice, and cannot
// be told that a transaction was packed.
func (s *Source) ToCluster(ctx context.Context, dst txn.Database, appender func() exporter.Appender, o ClusterOptions) (*Result, error) {
	if err := s.noGaps(); err != nil {
		return nil, err
	}
	plan, err := s.check(ctx)
	if err != nil {
		return nil, err
	}
	if plan.MaxOID > tid.MaxOID {
		return nil, fmt.Errorf("object %v: a cluster cannot be relied on to hold ids above %v: restore to a Data.fs", plan.MaxOID, tid.MaxOID)
	}
	last, err := dst.LastTID(ctx)
	if err != nil {
		return nil, err
	}
	if last != tid.Zero && !o.Append {
		return nil, fmt.Errorf("restore to the cluster: %w: its last transaction is %v: restore to a new cluster, or append if an interrupted restore left it", ErrNotEmpty, last)
	}
	load := func(oid tid.OID, at tid.TID) ([]byte, error) {
		r, err := dst.LoadAt(ctx, oid, at)
		return absent(r.Data, err)
	}
	res := &Result{At: s.at()}
	src := &history{s: s, load: load}
	var records, text int64
	err = exporter.ToCluster(ctx, src, dst, appender, exporter.ClusterOptions{
		Recent: recent,
		Opened: func(last, _ tid.TID) error {
			res.Resumed = last
			// A storage takes the data from the revision that is named, which may be
			// under way still.
			src.load = func(tid.OID, tid.TID) ([]byte, error) { return nil, nil }
			return nil
		},
		Progress: func(last tid.TID, t, r, b int64) {
			res.Last, res.Txns, records, text = last, t, r, b
			if o.Progress != nil {
				o.Progress(Writing, last, textOf(t, r, b, plan.Text), plan.Text)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("restore to the cluster: %w", err)
	}
	if o.NoVerify {
		res.Records, res.Bytes = records, text
		return res, nil
	}
	compared := &Result{At: res.At, Resumed: res.Resumed}
	how := exporter.CompareOptions{AnyStatus: true, AnyOrder: true, FullData: true}
	if err := s.compare(ctx, target{name: "the cluster", Source: dst, last: dst.LastTID, load: load, how: how}, compared, plan.Text, o.Progress); err != nil {
		return nil, err
	}
	s.log().Info("restored into the cluster", "last", compared.Last, "transactions", compared.Txns)
	return compared, nil
}
