package storage

import (
	"context"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

func (s *testNode) stats() Stats {
	s.rig.t.Helper()
	st, err := s.Stats(s.rig.t.Context())
	if err != nil {
		s.rig.t.Fatal(err)
	}
	return st
}

// Replication, checks and conflicts are counted, and what was counted stays when the operation ends.
func TestStats(t *testing.T) {
	r := newRig(t)
	var c *testClient
	s1, s2 := r.pair(func(s *testNode) {
		c = s.client(1)
		s.commit(c, 10, 0, "one", 0, 2)
		s.commit(c, 12, 10, "two", 2)
	})
	if s := s2.stats(); s.Replicating != 2 || s.Cells[proto.OutOfDate] != 2 || s.Ready() != nil {
		t.Errorf("before the replication: %+v", s)
	}
	s2.unfinished(12)
	for range 2 {
		await[*proto.NotifyReplicationDone](s2)
	}
	if s := s2.stats(); s.Replicating != 2 || s.Fetched.Records != 3 || s.Fetched.Bytes == 0 || s.Lag != 0 {
		t.Errorf("after the replication: %+v", s)
	}
	if s := s1.stats(); s.Fed.Records != 3 || s.Fed != s2.stats().Fetched || s.Stored.Records != 3 {
		t.Errorf("the source: %+v", s)
	}
	change := &proto.NotifyPartitionChanges{PTID: 3, Replicas: 1, Cells: []proto.CellChange{{Partition: 0, ID: 2, State: proto.UpToDate}, {Partition: 1, ID: 2, State: proto.UpToDate}}}
	s1.master.Send(change)
	s2.master.Send(change)
	s2.barrier()
	if s := s2.stats(); s.Cells[proto.UpToDate] != 2 || s.Cells[proto.OutOfDate] != 0 || s.Replicating != 0 {
		t.Errorf("cells: %v, %d are replicated", s.Cells, s.Replicating)
	}

	// A difference, a conflict, and a wait that a deadlock could come of.
	if err := s2.db.DeleteObject(2, 12); err != nil {
		t.Fatal(err)
	}
	s1.barrier()
	s1.master.Send(&proto.CheckPartition{Partition: 0, Max: 20})
	await[*proto.NotifyPartitionCorrupted](s1)
	if a := call[*proto.AnswerStoreObject](c, store(20, 2, 10, "late")); a.Conflict != proto.Some(tid.TID(12)) {
		t.Errorf("conflict with %v", a.Conflict)
	}
	call[*proto.AnswerStoreObject](c, store(22, 0, 10, "mine"))
	c.Ask(store(24, 0, 10, "waits"), nil)
	c.Ask(store(21, 0, 10, "is older"), nil)
	eventually(t, "a request waits", func() bool { return s1.stats().Waiting == 2 })
	s := s1.stats()
	if s.Conflicts != 1 || s.Waits != 2 || s.Deadlocks != 1 || s.Differences != 1 || s.Transactions < 3 {
		t.Errorf("counted %+v, %d differences, %d transactions", s.Counts, s.Differences, s.Transactions)
	}
	s1.master.Send(&proto.StopOperation{})
	eventually(t, "the operation ends", func() bool { return !s1.stats().Operational })
	if after := s1.stats(); after.Counts != s.Counts || after.Differences != 1 || after.Ready() == nil || after.Transactions != 0 {
		t.Errorf("after the operation: %+v", after)
	}
}

// What is counted is known of a node that is busy, too.
func TestStatsOfBusyNode(t *testing.T) {
	r := newRig(t)
	s := r.start(1, backendtest.NewMemory(), nil)
	s.initialize(1, table("U", "U"))
	s.operate()
	c := s.client(1)
	s.commit(c, 10, 0, "one", 0)
	busy := make(chan struct{})
	s.post(func() error { <-busy; return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	got, err := s.Stats(ctx)
	close(busy)
	if err == nil || got.Stored.Records != 1 || got.Commits.Count == 0 || got.Traffic.In.Packets["AskStoreObject"] != 1 || got.Operational {
		t.Errorf("%+v, %v", got, err)
	}
}
