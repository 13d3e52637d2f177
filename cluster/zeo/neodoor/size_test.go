package neodoor

import (
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
)

// Clients are shown how much is in the cluster: exactly if it is little, about otherwise,
// and what they have created since.
func TestSize(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	data := make([]byte, 100)
	show := func(what string, s *Cluster, objects, slack int64) {
		t.Helper()
		var n, bytes int64
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if n, bytes = s.Size(); n >= objects-slack && n <= objects+slack && bytes >= n*100 && bytes < n*100+100 {
				return
			}
		}
		t.Errorf("%s: %d objects, %d bytes, want %d and %d", what, n, bytes, objects, 100*objects)
	}
	s := watch(t, c, time.Minute)
	show("nothing", s.Cluster, 0, 0)
	tx, err := s.Begin(t.Context(), zeo.Begin{})
	if err != nil {
		t.Fatal(err)
	}
	for oid := tid.OID(0); oid < 10; oid++ {
		if err := tx.Store(t.Context(), oid, 0, data); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := tx.Vote(t.Context()); err != nil {
		t.Fatal(err)
	}
	at, err := tx.Finish(t.Context(), func(tid.TID) {})
	if err != nil {
		t.Fatal(err)
	}
	show("created since", s.Cluster, 10, 0)
	show("few", watch(t, c, time.Minute).Cluster, 10, 0)

	// 2000 more, with as many ids in between that no object has.
	var records []txn.Record
	for oid := tid.OID(0); oid < 2000; oid++ {
		records = append(records, txn.Record{OID: 10 + 2*oid, Data: data})
	}
	if err := restore(t, s, at+1<<32, txn.Committed, records...); err != nil {
		t.Fatal(err)
	}
	// The chance that a sample of 256 is off by 600 is one in some millions.
	show("estimated", watch(t, c, time.Minute).Cluster, 2010, 650)
}
