package exporter

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Appender is a [Sink] that may have several transactions under way.
type Appender interface {
	Sink
	// LastTID returns the last transaction that is committed, with all before it.
	LastTID() tid.TID
	// Close waits for what is under way. Its error is that of all that failed.
	Close() error
}

// ClusterOptions configures [ToCluster]. A zero field takes the documented default.
type ClusterOptions struct {
	// Recent is how many transactions at the end of the cluster are compared with the
	// source before anything is appended: not less than an interrupted copy may have
	// had under way. Default: all.
	Recent int
	// Continued: the cluster may have been written to since it was filled. If it goes
	// on after the end of the source, the last transaction of the source stands for
	// all. Default: this is a [NotPrefixError].
	Continued bool
	// Opened is told where the copy begins, once the cluster is known to hold the
	// source up to there. An error ends the copy. Default: none.
	Opened   func(last, upTo tid.TID) error
	Progress Progress // default: none
}

// InterruptedError reports a copy into a cluster that has begun and not ended. Another
// call goes on from there.
type InterruptedError struct {
	Last tid.TID // committed, with all before it
	Err  error
}

func (e *InterruptedError) Error() string {
	return fmt.Sprintf("stopped after transaction %v: %v", e.Last, e.Err)
}

// Unwrap returns why the copy stopped.
func (e *InterruptedError) Unwrap() error { return e.Err }

// ToCluster brings a cluster up to date with src: what it lacks is appended by what
// appender returns. A cluster that is not the beginning of src is a [NotPrefixError],
// and stays as it is. A copy that fails is an [InterruptedError].
func ToCluster(ctx context.Context, src txn.History, dst txn.Database, appender func() Appender, opt ClusterOptions) error {
	upTo, err := src.LastTID(ctx)
	if err != nil {
		return err
	}
	last, err := dst.LastTID(ctx)
	if err != nil {
		return err
	}
	if err := opt.check(ctx, src, dst, last, upTo); err != nil {
		return err
	}
	if opt.Opened != nil {
		if err := opt.Opened(last, upTo); err != nil {
			return err
		}
	}
	if last >= upTo {
		return nil
	}
	a := appender()
	_, err = Copy(ctx, a, src, last, upTo, opt.Progress)
	if closed := a.Close(); closed != nil && !errors.Is(err, closed) {
		err = errors.Join(err, closed)
	}
	if err != nil {
		return &InterruptedError{a.LastTID(), err}
	}
	return nil
}

// check verifies that the end of a cluster, up to last, is in the source.
func (o *ClusterOptions) check(ctx context.Context, src Source, dst txn.Database, last, upTo tid.TID) error {
	how := throughCluster
	after := tid.Zero
	switch {
	case o.Continued && last >= upTo && upTo > tid.Zero:
		after, last = upTo-1, upTo
		how.Packed = true // what was written since may have made records superfluous
	case o.Recent > 0 && last > tid.Zero:
		var err error
		if after, err = beforeLatest(ctx, dst, o.Recent); err != nil {
			return err
		}
	}
	return Follows(ctx, src, dst, after, last, how)
}

// throughCluster are the differences of a copy that came through a cluster, which keeps
// the last record of an object in a transaction, may be told of records in another
// order, and cannot be told of a status.
var throughCluster = CompareOptions{AnyStatus: true, AnyOrder: true, FullData: true}

// beforeLatest returns the transaction after which the latest n of a database come,
// zero if it has no more.
func beforeLatest(ctx context.Context, db txn.Database, n int) (tid.TID, error) {
	infos, err := txn.Select(db.Backwards(ctx), n, n+1, nil)
	if err != nil || len(infos) == 0 {
		return tid.Zero, err
	}
	return infos[0].TID, nil
}
