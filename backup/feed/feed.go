package feed

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Kinds of sources, in [snapshot.Source].
const (
	KindCluster = "cluster"
	KindBackup  = "backup"
	KindFile    = "file"
)

// Errors of a source that is not the one that was read before, for errors.Is. They come
// wrapped, with what was found and what to do. Repeating the call does not help.
var (
	// ErrPacked reports a file that was packed: what a pack drops of it cannot be told.
	ErrPacked = errors.New("the file was packed")
	// ErrReplaced reports another file at the place of the one that was read.
	ErrReplaced = errors.New("the file was replaced")
	// ErrChanged reports a source with another history or form: a file that was truncated or
	// written over, a cluster that was truncated, or has another number of partitions.
	ErrChanged = errors.New("the source has changed")
)

// Feed is a source of a backup. Its methods may be called concurrently, and return soon
// after their context has ended.
type Feed interface {
	// Source describes the source, as manifests name it.
	Source() snapshot.Source

	// Last returns the last transaction, Zero if there is none, and a time at which
	// there was nothing after it. It is at least what Last returned before, else the
	// error is an [ErrChanged].
	Last(ctx context.Context) (tid.TID, time.Time, error)

	// Info returns a transaction without its records. Records is nil. The error wraps
	// [txn.ErrNotFound] if there is none with that TID. The transaction is the caller's own.
	Info(ctx context.Context, t tid.TID) (*txn.Transaction, error)

	// Read yields the transactions of (after, upTo], in the order of TIDs, each with its
	// records in the source's order. upTo must not be above what Last returned. It ends
	// at the first error; an iteration of records may end with one too. A transaction is
	// valid until the next step.
	//
	// Records of a transaction at or before a pack may be missing. What was deleted and then
	// removed by a pack has a record without data, at the end of its transaction.
	Read(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error]

	// Packed returns the greatest TID of all packs that what was read until now may
	// lack history of, Zero if there is none. Asked after the last transaction of a range was
	// read, it is what the range is exact from. It never gets smaller.
	Packed(ctx context.Context) (tid.TID, error)

	// Has reports whether the source still has the revision that transaction at made of an
	// object, be it one without data: for Record.DataTID of a record whose copied revision
	// is not known to be stored.
	Has(ctx context.Context, oid tid.OID, at tid.TID) (bool, error)

	// Mark describes the source up to transaction t, which was read, in a line of text to be
	// kept for Resume. It is empty if there is nothing to say.
	Mark(ctx context.Context, t tid.TID) (string, error)

	// Resume verifies that the source is still what an earlier feed, maybe of another
	// process, made a mark of. It should be called before anything is read after a transaction that
	// an earlier feed has read, with the empty mark if there is none. A mark of another kind
	// of source counts as none. The error is an [ErrPacked], [ErrReplaced] or
	// [ErrChanged] if it is not the same.
	Resume(ctx context.Context, mark string) error

	// Wait returns nil when there may be something after what Last returned last, at
	// once if so. It may return early. The error is that of ctx, or of the source.
	Wait(ctx context.Context) error

	Close() error
}
