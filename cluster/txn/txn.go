// Package txn holds transactions and their records as plain values: what a
// Data.fs, a cluster and a dump exchange.
package txn

import (
	"context"
	"iter"

	"github.com/neozodb/neo/cluster/tid"
)

// Status bytes of a transaction, as in a Data.fs.
const (
	Committed byte = ' ' // ordinary
	Packed    byte = 'p' // at or before a pack time: can no longer be undone
)

// Record is one revision of one object.
type Record struct {
	OID tid.OID
	TID tid.TID // of the transaction it belongs to

	// Data is the ZODB record (class pickle and state pickle). nil: the object
	// does not exist at this revision (deleted, or its creation was undone).
	// Empty but not nil: a record of no bytes, which is legal.
	Data []byte

	// DataTID, when not zero, names an earlier transaction whose record of the
	// same object holds the same data: an undo, one hop back. Data is given as
	// well (nil if that revision is itself absent).
	DataTID tid.TID
}

// Transaction is one transaction of a history. It and all it refers to are valid
// only until the next step of the iteration that produced it.
type Transaction struct {
	TID         tid.TID
	Status      byte // Committed or Packed
	User        []byte
	Description []byte
	Extension   []byte // pickled dict, or empty

	// Records yields the records in the order they were stored. A record is
	// valid only until the next step. It may be called several times, within
	// the validity of the transaction.
	Records iter.Seq2[*Record, error]
}

// History is anything whose transactions can be read in order.
type History interface {
	// Transactions yields what was committed in (after, upTo], oldest first.
	// It ends at the first error.
	Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*Transaction, error]
	// LastTID returns the greatest committed TID, tid.Zero if there is none.
	LastTID(ctx context.Context) (tid.TID, error)
}

// Slice returns records as the iterator that [Transaction.Records] needs.
func Slice(records []Record) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		for i := range records {
			if !yield(&records[i], nil) {
				return
			}
		}
	}
}
