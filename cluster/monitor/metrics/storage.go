package metrics

import (
	"context"
	"sync/atomic"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
)

var (
	mOperational  = gauge("storage_operational", "1 while the storage takes part in the operation of the cluster.")
	mClients      = gauge("storage_clients", "Clients that are connected.")
	mOwnCells     = gauge("storage_cells", "Cells of this storage.", "state")
	mTransactions = gauge("storage_transactions_pending", "Transactions in progress on this storage.")
	mWaiting      = gauge("storage_requests_waiting", "Requests that wait for a write lock or for the end of a commit.")
	mWaits        = counter("storage_lock_waits_total", "Requests that had to wait for a write lock.")
	mConflicts    = counter("storage_conflicts_total", "Requests to store or check an object that has a later revision.")
	mDeadlocks    = counter("storage_deadlocks_total", "Write locks that a transaction was asked to give to an older one.")
	mUnlocked     = counter("storage_transactions_committed_total", "Transactions committed that concern this storage.")
	mLoads        = counter("storage_loads_total", "Objects that clients have asked for.")
	mLoadedBytes  = counter("storage_loaded_bytes_total", "Data of objects loaded by clients, as they are stored.")
	mStores       = counter("storage_stores_total", "Objects stored by clients, in transactions that were aborted too.")
	mStoredBytes  = counter("storage_stored_bytes_total", "Data of these objects as they are stored.")
	mDBCommit     = histogram("storage_commit_duration_seconds", "Time that the database took to make durable what was written. One commit serves many transactions.")

	mReplicating = gauge("storage_replication_cells", "Cells that are replicated, wait for it, or are not declared up to date yet.")
	mLag         = gauge("storage_replication_lag_seconds", "How far the last of these cells is behind what it is to have, by the times of the transactions. A cell that has nothing yet does not count.")
	mFetched     = counter("storage_replication_received_records_total", "Records received by replication.")
	mFetchedSize = counter("storage_replication_received_bytes_total", "Data of these records.")
	mFed         = counter("storage_replication_sent_records_total", "Records given to other storages by replication.")
	mFedSize     = counter("storage_replication_sent_bytes_total", "Data of these records.")

	mComparing   = gauge("storage_check_running", "1 while this storage compares replicas.")
	mDifferences = counter("storage_check_differences_total", "Differences found by this storage when it compared replicas.")
	mDamaged     = counter("storage_damaged_reads_total", "Reads that have found damaged data in the database.")

	mPacking     = gauge("storage_pack_partitions", "Partitions that are still to be packed by the pack in progress; 0 if there is none.")
	mPacked      = gauge("storage_pack_done_timestamp_seconds", "When the last pack was ordered that this storage has executed.")
	mPackOrdered = gauge("storage_pack_ordered_timestamp_seconds", "When the last pack was ordered.")
	mDropping    = gauge("storage_dropping_partitions", "Partitions whose data are being deleted.")
	mKept        = gauge("storage_pack_kept_partitions", "Partitions that keep deletions for replicas which are away.")

	mImportState   = gauge("storage_import_state", "1 for the state that the import is in.", "state")
	mImportBad     = gauge("storage_import_needs_operator", "1 if the import waits for the operator.")
	mImportAt      = gauge("storage_import_position_bytes", "How far the copy is in the sources.")
	mImportSize    = gauge("storage_import_size_bytes", "Size of the sources.")
	mImportRate    = gauge("storage_import_bytes_per_second", "Bytes of the sources copied per second, lately.")
	mImportLeft    = gauge("storage_import_remaining_seconds", "About how long the copy will take.")
	mImportRecords = gauge("storage_import_records", "Records copied.")
	mImportDiffer  = gauge("storage_import_differences", "Differences found by the last comparison with the sources.")
	mImportBehind  = gauge("storage_import_write_back_transactions", "Transactions that are still to be written back to the source, at least.")

	importStates = []importing.State{importing.Waiting, importing.Copying, importing.Paused, importing.Failed, importing.Comparing, importing.Different, importing.Done}
)

// Storage watches a storage of a cluster.
func Storage(cluster, version string, n *storage.Node) *Node {
	var id atomic.Int32 // last known
	return &Node{cluster: cluster, typ: "storage", version: version, busy: true, look: func(ctx context.Context) (string, func(*emitter), bool, error) {
		s, err := n.Stats(ctx)
		silent := err != nil
		if !silent {
			id.Store(int32(s.ID))
			err = s.Ready()
		}
		return named(proto.NodeID(id.Load()), n.Addr()), func(e *emitter) { e.storage(&s, silent) }, silent, err
	}}
}

func (e *emitter) storage(s *storage.Stats, silent bool) {
	e.set(mUnlocked, float64(s.Committed))
	e.set(mLoads, float64(s.Loaded.Records))
	e.set(mLoadedBytes, float64(s.Loaded.Bytes))
	e.set(mStores, float64(s.Stored.Records))
	e.set(mStoredBytes, float64(s.Stored.Bytes))
	e.set(mFetched, float64(s.Fetched.Records))
	e.set(mFetchedSize, float64(s.Fetched.Bytes))
	e.set(mFed, float64(s.Fed.Records))
	e.set(mFedSize, float64(s.Fed.Bytes))
	e.set(mDamaged, float64(s.Damaged))
	e.histogram(mDBCommit, s.Commits)
	e.traffic(&s.Traffic)
	if r := s.Import; r != nil {
		e.importReport(r)
	}
	if silent {
		return
	}
	e.flag(mOperational, s.Operational)
	e.set(mClients, float64(s.Clients))
	e.cells(mOwnCells, s.Cells)
	e.set(mTransactions, float64(s.Transactions))
	e.set(mWaiting, float64(s.Waiting))
	e.set(mWaits, float64(s.Waits))
	e.set(mConflicts, float64(s.Conflicts))
	e.set(mDeadlocks, float64(s.Deadlocks))
	e.set(mReplicating, float64(s.Replicating))
	e.set(mLag, s.Lag.Seconds())
	e.flag(mComparing, s.Comparing)
	e.set(mDifferences, float64(s.Differences))
	e.set(mPacking, float64(s.Packing))
	e.time(mPacked, s.Packed)
	e.time(mPackOrdered, s.PackOrdered)
	e.set(mDropping, float64(s.Dropping))
	e.set(mKept, float64(s.KeptDeletions))
}

func (e *emitter) importReport(r *importing.Report) {
	for _, s := range importStates {
		e.flag(mImportState, s == r.State, s.String())
	}
	e.flag(mImportBad, r.State.Bad())
	e.set(mImportRecords, float64(r.Records))
	e.set(mImportDiffer, float64(r.Differences))
	if r.Size > 0 {
		e.set(mImportAt, float64(r.Position))
		e.set(mImportSize, float64(r.Size))
	}
	if r.State == importing.Copying {
		e.set(mImportRate, r.Rate)
		if r.Left > 0 {
			e.set(mImportLeft, r.Left.Seconds())
		}
	}
	if r.WriteBack > 0 {
		e.set(mImportBehind, float64(r.Behind))
	}
}
