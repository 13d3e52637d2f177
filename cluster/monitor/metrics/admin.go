package metrics

import (
	"context"
	"sync/atomic"

	"github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/proto"
)

var (
	mConnected = gauge("admin_connected", "1 if the admin is connected to the primary master.")
	mPeers     = gauge("admin_peers", "Operators, and admins of backup clusters, that are connected.")
	mMailFails = gauge("admin_mail_failing", "1 if the last mail could not be sent.")

	mDown = gauge("cluster_storages_down", "Storages that have cells and do not run.")

	mBackupConnected = gauge("backup_connected", "1 if the admin of the backup cluster is connected to this one.", "backup")
	mBackupFollows   = gauge("backup_following", "1 if the backup cluster is BACKINGUP.", "backup")
	mBackupLag       = gauge("backup_lag_seconds", "How late the backup cluster is, without what a delay, a hold or a window keeps back.", "backup")

	mFollowLag      = gauge("cluster_backup_lag_seconds", "Of a backup cluster: how late it is, without what a delay, a hold or a window keeps back.")
	mFollowLinked   = gauge("cluster_backup_upstream_connected", "Of a backup cluster: 1 if the upstream cluster is connected.")
	mFollowHeld     = gauge("cluster_backup_held", "Of a backup cluster: 1 while the operator holds it.")
	mFollowReadable = gauge("cluster_backup_readable_timestamp_seconds", "Of a backup cluster: time of the transaction up to which it can be read.")

	mCheckDifferences = gauge("cluster_check_differences", "Differences found by the last check of each partition.")
	mCheckPartitions  = gauge("cluster_check_partitions_differing", "Partitions in which these are.")
	mCheckLast        = gauge("cluster_check_last_timestamp_seconds", "When the last check was ordered, as far as this admin knows.")
	mCheckRunning     = gauge("cluster_check_running", "1 until that check has ended.")
	mCheckFailed      = gauge("cluster_check_partitions_failed", "Partitions that this check could not compare to the end.")

	mImportsBad = gauge("cluster_import_needs_operator", "1 if the import of the storage waits for the operator.", "storage")
)

// Admin watches an admin of a cluster.
func Admin(cluster, version string, n *admin.Node) *Node {
	var id atomic.Int32 // last known
	return &Node{cluster: cluster, typ: "admin", version: version, look: func(ctx context.Context) (string, func(*emitter), bool, error) {
		s, err := n.Stats(ctx)
		if err != nil {
			return named(proto.NodeID(id.Load()), n.Addr()), func(*emitter) {}, true, err
		}
		id.Store(int32(s.ID))
		return named(s.ID, n.Addr()), func(e *emitter) { e.admin(&s) }, false, s.Ready()
	}}
}

func (e *emitter) admin(s *admin.Stats) {
	e.flag(mConnected, s.Connected)
	e.set(mPeers, float64(s.Peers))
	e.flag(mMailFails, s.MailFails)
	e.traffic(&s.Traffic)
	for _, b := range s.Backups {
		e.flag(mBackupConnected, b.Connected, b.Name)
		e.flag(mBackupFollows, b.State == proto.Some(proto.BackingUp), b.Name)
		if b.Lag.OK {
			e.set(mBackupLag, b.Lag.V.Seconds(), b.Name)
		}
	}
	c := &s.Checks
	e.set(mCheckDifferences, float64(c.Differences))
	e.set(mCheckPartitions, float64(c.Partitions))
	if !c.Last.IsZero() {
		e.set(mCheckLast, float64(c.Last.UnixMicro())/1e6)
		e.flag(mCheckRunning, !c.Over)
		e.set(mCheckFailed, float64(c.Failed))
	}
	if !s.Connected {
		return
	}
	if s.State.OK {
		e.states(s.State.V)
	}
	for c, n := range s.Nodes {
		e.set(mNodes, float64(n), c.Type.String(), c.State.String())
	}
	if s.Cells != nil {
		e.cells(mCells, s.Cells)
	}
	e.set(mDown, float64(s.Down))
	e.time(mLastTID, s.LastTID.V)
	for id, r := range s.Imports {
		e.flag(mImportsBad, r.State.Bad(), id.String())
	}
	if r := s.Follows; r != nil {
		e.set(mFollowLag, r.Due.Seconds())
		e.flag(mFollowLinked, r.Linked)
		e.flag(mFollowHeld, r.Hold.OK)
		e.time(mFollowReadable, r.Readable)
	}
}
