package client

import (
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// A transaction that deletes as many objects as a transaction may have is not kept
// for a second iteration.
func TestDeletionsAreNotKept(t *testing.T) {
	const n, at = 100_000, 10
	w := &walk{ctx: t.Context(), c: &Client{ctx: t.Context()}, signal: make(chan struct{}, 1)}
	tr := &walkTxn{w: w, tid: at, info: &proto.AnswerTransactionInformation{OIDs: make([]tid.OID, n)}, asked: n}
	answer := func() { // about an object that was deleted
		s := &w.ring[w.tail%walkRecords]
		s.done, s.obj = true, &proto.AnswerObject{Serial: at}
		w.tail++
	}
	for range walkRecords {
		answer()
	}
	seen, most := 0, 0
	tr.records(func(r *txn.Record, err error) bool {
		if err != nil || r.Data != nil {
			t.Fatal(r, err)
		}
		answer()
		seen++
		most = max(most, len(tr.kept))
		return true
	})
	if seen != n || most > walkKeep/walkEach {
		t.Errorf("%d of %d records seen, %d kept", seen, n, most)
	}
}
