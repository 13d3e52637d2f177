package master

import (
	"context"
	"fmt"

	"github.com/neozodb/neo/cluster/latency"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/nodetab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// counts are what a machine has counted since its beginning, beside its board.
type counts struct {
	begun, aborted   uint64
	recoveries, lost uint64
	commits          latency.Histogram
}

// Stats is what a master knows now and has counted since it was started.
type Stats struct {
	ID      proto.NodeID
	Primary bool
	// Following tells of a secondary that it is connected to the primary master. Such a master
	// knows nothing of what follows but the counts.
	Following bool

	State proto.ClusterState
	Nodes map[nodetab.Class]int // nodes that are known, by class
	// The partition table.
	PTID       proto.Opt[uint64]
	Partitions int
	Replicas   int                     // wanted beside the first copy
	Cells      map[proto.CellState]int // by state
	Lacking    int                     // partitions with fewer readable cells on running storages than wanted
	Unreadable int                     // partitions without any

	LastTID tid.TID // last transaction committed, Zero if none is known
	LastOID tid.OID // greatest object id given out
	Pending int     // transactions that have begun and not ended
	Queued  int     // of these, those that are being committed
	Delayed int     // requests of clients that wait for another transaction or for a storage

	Begun, Committed uint64
	Aborted          uint64           // ended without commit, as far as this master knows
	Commits          latency.Snapshot // from the request to finish to the commit
	Recoveries       uint64           // recoveries begun, that at the start included
	LostStorages     uint64           // connections with storages that ended, in order or not
	Traffic          link.TrafficStats
}

// Ready returns why the master serves no purpose now, nil if it does: it is primary in a cluster that
// is in use, or stands by.
func (s *Stats) Ready() error {
	switch {
	case s.Primary && s.PTID.OK && s.Unreadable > 0:
		return fmt.Errorf("the cluster is %v: %d of %d partitions have no readable cell on a running storage", s.State, s.Unreadable, s.Partitions)
	case s.Primary && s.State != proto.Running && s.State != proto.BackingUp:
		return fmt.Errorf("the cluster is %v", s.State)
	case !s.Primary && !s.Following:
		return fmt.Errorf("not connected to the primary master")
	}
	return nil
}

// Stats returns the present state. The error is that of ctx: the master did not answer before.
func (m *Master) Stats(ctx context.Context) (Stats, error) {
	answer := make(chan Stats, 1)
	select {
	case m.inbox <- input{stats: answer}:
	case <-m.done:
		return Stats{}, fmt.Errorf("the master has ended")
	case <-ctx.Done():
		return Stats{}, fmt.Errorf("the master takes no input: %w", context.Cause(ctx))
	}
	select {
	case s := <-answer:
		s.Traffic = m.links.Traffic.Stats()
		return s, nil
	case <-m.done:
		return Stats{}, fmt.Errorf("the master has ended")
	case <-ctx.Done():
		return Stats{}, fmt.Errorf("the master does not answer: %w", context.Cause(ctx))
	}
}

// stats returns all but Traffic. It changes nothing.
func (m *Machine) stats() Stats {
	c := &m.counts
	s := Stats{
		ID: m.self.ID, Primary: m.second == nil, State: m.state,
		Begun: c.begun, Committed: uint64(m.board.commits), Aborted: c.aborted, Commits: c.commits.Snapshot(), Recoveries: c.recoveries, LostStorages: c.lost,
	}
	if !s.Primary {
		s.Following = m.second.identified
		return s
	}
	s.LastTID, s.LastOID = m.ids.committed, m.ids.oid
	s.Pending, s.Queued, s.Delayed = len(m.txns.pending), len(m.txns.queue), len(m.txns.delayed)
	s.Nodes = m.nodes.Count()
	s.PTID, s.Partitions, s.Replicas = m.table.PTID(), m.table.NP(), m.table.Replicas()
	s.Cells = map[proto.CellState]int{}
	for _, row := range m.table.Rows() {
		readable := 0
		for _, cell := range row {
			s.Cells[cell.State]++
			if cell.State.Readable() && m.nodes.Running(cell.ID) {
				readable++
			}
		}
		if readable == 0 {
			s.Unreadable++
		}
		if readable <= s.Replicas {
			s.Lacking++
		}
	}
	return s
}
