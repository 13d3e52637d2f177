package importer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/importer/source"
)

// gone is a source on a server that is closed.
type gone struct{ txn.Database }

func (gone) LoadBefore(context.Context, tid.OID, tid.TID) (txn.Revision, error) {
	return txn.Revision{}, fmt.Errorf("%w: %w", txn.ErrUnavailable, source.ErrClosed)
}

// A read of a source that was closed because the import has ended is not repeated: whatever asked
// finds the answer in the tables.
func TestReadOfClosedSource(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := newSources(gone{txntest.Small()}, tid.Max, nil)
	s.wait = time.Hour
	_, err := ask(ctx, s, false, func(ctx context.Context) (txn.Revision, error) { return s.db.LoadBefore(ctx, 1, tid.Max) })
	if !errors.Is(err, backend.ErrNonReadable) {
		t.Errorf("%v, want %v", err, backend.ErrNonReadable)
	}
}
