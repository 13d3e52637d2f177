package txntest

import (
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

func TestMemory(t *testing.T) {
	Run(t, func(t *testing.T, h txn.History) txn.Database {
		m := &Memory{}
		for tr, err := range h.Transactions(t.Context(), tid.Zero, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Append(tr); err != nil {
				t.Fatal(err)
			}
		}
		return m
	})
}
