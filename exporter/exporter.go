// Package exporter copies the history of one database into another: from a
// cluster, a Data.fs or a slice of transactions into a Data.fs or a cluster.
//
// [ToFile] and [ToCluster] bring a destination up to date. They know histories that can
// be read in order, and sinks that take transactions in order; a cluster is a
// [txn.Database] with an [Appender].
//
// # Invariant
//
// What a sink holds is always a prefix of the source: every transaction of the
// source up to the last one of the sink, and nothing else. An interrupted copy
// goes on after the last transaction of the sink, once [Follows] has shown that
// it still is such a prefix, and that the ids of what the source has increase: up to
// the last one of a source means nothing if another is greater.
package exporter

import (
	"context"
	"fmt"
	"iter"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Sink takes transactions in the order of their ids.
type Sink interface {
	// Append adds a transaction. After an error the last ones appended may be
	// missing, but nothing follows a missing one.
	Append(t *txn.Transaction) error
}

// Source is all that a copy needs from a database; see [txn.History].
type Source interface {
	Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error]
}

// Progress is told, after each transaction, what was copied in all: the id of
// the last transaction, the number of transactions and records, and the bytes of
// data.
type Progress func(last tid.TID, transactions, records, bytes int64)

// Copy appends the history of src in (after, upTo] to dst. It returns the last
// TID appended, after if there was none. progress may be nil.
func Copy(ctx context.Context, dst Sink, src Source, after, upTo tid.TID, progress Progress) (tid.TID, error) {
	last := after
	var transactions, records, bytes int64
	for t, err := range src.Transactions(ctx, after, upTo) {
		if err != nil {
			return last, fmt.Errorf("copy after transaction %v: read: %w", last, err)
		}
		if t.TID <= last && last != tid.Zero {
			return last, fmt.Errorf("copy after transaction %v: the source goes on with %v", last, t.TID)
		}
		counted := *t
		if t.Records != nil {
			counted.Records = func(yield func(*txn.Record, error) bool) {
				for r, err := range t.Records {
					if err == nil {
						records++
						bytes += int64(len(r.Data))
					}
					if !yield(r, err) {
						return
					}
				}
			}
		}
		if err := dst.Append(&counted); err != nil {
			return last, fmt.Errorf("copy transaction %v: %w", t.TID, err)
		}
		last = t.TID
		transactions++
		if progress != nil {
			progress(last, transactions, records, bytes)
		}
	}
	return last, ctx.Err()
}
