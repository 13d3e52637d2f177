package clustertest

import (
	"context"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Dump reads a whole history as [Verify] wants it.
func Dump(ctx context.Context, h txn.History) ([]Stored, error) {
	last, err := h.LastTID(ctx)
	if err != nil {
		return nil, err
	}
	return dumpUpTo(ctx, h, last)
}

// dumpUpTo is Dump up to a transaction.
func dumpUpTo(ctx context.Context, h txn.History, last tid.TID) ([]Stored, error) {
	var db []Stored
	for t, err := range h.Transactions(ctx, tid.Zero, last) {
		if err != nil {
			return nil, err
		}
		s := Stored{TID: t.TID, Mark: string(t.Description), Records: map[tid.OID][]byte{}}
		for r, err := range t.Records {
			if err != nil {
				return nil, err
			}
			s.Records[r.OID] = slices.Clone(r.Data)
		}
		db = append(db, s)
	}
	return db, nil
}
