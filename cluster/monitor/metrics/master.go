package metrics

import (
	"context"
	"sync/atomic"

	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
)

var (
	mPrimary    = gauge("master_primary", "1 if the master is primary.")
	mPending    = gauge("master_transactions_pending", "Transactions that have begun and not ended.")
	mQueued     = gauge("master_transactions_committing", "Transactions that are being committed.")
	mDelayed    = gauge("master_requests_delayed", "Requests of clients that wait for a transaction or for a storage.")
	mBegun      = counter("master_transactions_begun_total", "Transactions begun.")
	mCommitted  = counter("master_transactions_committed_total", "Transactions committed.")
	mAborted    = counter("master_transactions_aborted_total", "Transactions that ended without a commit, as far as this master knows.")
	mCommit     = histogram("master_commit_duration_seconds", "Time from the request of a client to finish a transaction to the commit.")
	mRecoveries = counter("master_recoveries_total", "Recoveries begun, that at the start included.")
	mLost       = counter("master_storages_lost_total", "Connections with storages that have ended, in order or not.")

	mPTID       = gauge("cluster_partition_table_version", "Version of the partition table.")
	mPartitions = gauge("cluster_partitions", "Partitions.")
	mReplicas   = gauge("cluster_replicas_wanted", "Copies that are wanted beside the first.")
	mLacking    = gauge("cluster_partitions_underreplicated", "Partitions with fewer readable cells on running storages than wanted.")
	mUnreadable = gauge("cluster_partitions_unreadable", "Partitions without any readable cell on a running storage.")
)

// Master watches a master of a cluster.
func Master(cluster, version string, m *master.Master) *Node {
	var id atomic.Int32 // last known
	return &Node{cluster: cluster, typ: "master", version: version, look: func(ctx context.Context) (string, func(*emitter), bool, error) {
		s, err := m.Stats(ctx)
		if err != nil {
			return named(proto.NodeID(id.Load()), m.Addr()), func(*emitter) {}, true, err
		}
		id.Store(int32(s.ID))
		return named(s.ID, m.Addr()), func(e *emitter) { e.master(&s) }, false, s.Ready()
	}}
}

func (e *emitter) master(s *master.Stats) {
	e.flag(mPrimary, s.Primary)
	e.set(mBegun, float64(s.Begun))
	e.set(mCommitted, float64(s.Committed))
	e.set(mAborted, float64(s.Aborted))
	e.set(mRecoveries, float64(s.Recoveries))
	e.set(mLost, float64(s.LostStorages))
	e.histogram(mCommit, s.Commits)
	e.traffic(&s.Traffic)
	if !s.Primary {
		return
	}
	e.set(mPending, float64(s.Pending))
	e.set(mQueued, float64(s.Queued))
	e.set(mDelayed, float64(s.Delayed))
	e.states(s.State)
	for c, n := range s.Nodes {
		e.set(mNodes, float64(n), c.Type.String(), c.State.String())
	}
	e.time(mLastTID, s.LastTID)
	if !s.PTID.OK {
		return // there is no table yet
	}
	e.cells(mCells, s.Cells)
	e.set(mPTID, float64(s.PTID.V))
	e.set(mPartitions, float64(s.Partitions))
	e.set(mReplicas, float64(s.Replicas))
	e.set(mLacking, float64(s.Lacking))
	e.set(mUnreadable, float64(s.Unreadable))
}
