package proto

import "github.com/neozodb/neo/cluster/tid"

// Codes of packets. An answer has bit 0x8000.
const (
	codeError                        = 0x8000
	codeRequestIdentification        = 0x0001
	codeAcceptIdentification         = 0x8001
	codePing                         = 0x0002
	codePong                         = 0x8002
	codeCloseClient                  = 0x0003
	codeAskPrimary                   = 0x0004
	codeAnswerPrimary                = 0x8004
	codeNotPrimaryMaster             = 0x0005
	codeNotifyNodeInformation        = 0x0006
	codeAskRecovery                  = 0x0007
	codeAnswerRecovery               = 0x8007
	codeAskLastIDs                   = 0x0008
	codeAnswerLastIDs                = 0x8008
	codeAskPartitionTable            = 0x0009
	codeAnswerPartitionTable         = 0x8009
	codeSendPartitionTable           = 0x000a
	codeNotifyPartitionChanges       = 0x000b
	codeStartOperation               = 0x000c
	codeStopOperation                = 0x000d
	codeAskUnfinishedTransactions    = 0x000e
	codeAnswerUnfinishedTransactions = 0x800e
	codeAskLockedTransactions        = 0x000f
	codeAnswerLockedTransactions     = 0x800f
	codeAskFinalTID                  = 0x0010
	codeAnswerFinalTID               = 0x8010
	codeValidateTransaction          = 0x0011
	codeAskBeginTransaction          = 0x0012
	codeAnswerBeginTransaction       = 0x8012
	codeFailedVote                   = 0x0013
	codeAskFinishTransaction         = 0x0014
	codeAnswerTransactionFinished    = 0x8014
	codeAskLockInformation           = 0x0015
	codeAnswerInformationLocked      = 0x8015
	codeInvalidateObjects            = 0x0016
	codeInvalidatePartitions         = 0x0017
	codeNotifyUnlockInformation      = 0x0018
	codeAskNewOIDs                   = 0x0019
	codeAnswerNewOIDs                = 0x8019
	codeNotifyDeadlock               = 0x001a
	codeAskRelockObject              = 0x001b
	codeAnswerRelockObject           = 0x801b
	codeAskStoreObject               = 0x001c
	codeAnswerStoreObject            = 0x801c
	codeAbortTransaction             = 0x001d
	codeAskStoreTransaction          = 0x001e
	codeAnswerStoreTransaction       = 0x801e
	codeAskVoteTransaction           = 0x001f
	codeAnswerVoteTransaction        = 0x801f
	codeAskObject                    = 0x0020
	codeAnswerObject                 = 0x8020
	codeAskTIDs                      = 0x0021
	codeAnswerTIDs                   = 0x8021
	codeAskTransactionInformation    = 0x0022
	codeAnswerTransactionInformation = 0x8022
	codeAskObjectHistory             = 0x0023
	codeAnswerObjectHistory          = 0x8023
	codeAskPartitionList             = 0x0024
	codeAnswerPartitionList          = 0x8024
	codeAskNodeList                  = 0x0025
	codeAnswerNodeList               = 0x8025
	codeSetNodeState                 = 0x0026
	codeAddPendingNodes              = 0x0027
	codeTweakPartitionTable          = 0x0028
	codeAnswerTweakPartitionTable    = 0x8028
	codeSetNumReplicas               = 0x0029
	codeSetClusterState              = 0x002a
	codeRepair                       = 0x002b
	codeNotifyRepair                 = 0x002c
	codeNotifyClusterInformation     = 0x002d
	codeAskClusterState              = 0x002e
	codeAnswerClusterState           = 0x802e
	codeAskObjectUndoSerial          = 0x002f
	codeAnswerObjectUndoSerial       = 0x802f
	codeAskTIDsFrom                  = 0x0030
	codeAnswerTIDsFrom               = 0x8030
	codeAskOIDsFrom                  = 0x0031
	codeAnswerOIDsFrom               = 0x8031
	codeWaitForPack                  = 0x0032
	codeWaitedForPack                = 0x8032
	codeAskPackOrders                = 0x0033
	codeAnswerPackOrders             = 0x8033
	codeNotifyPackSigned             = 0x0034
	codeNotifyPackCompleted          = 0x0035
	codeCheckReplicas                = 0x0036
	codeCheckPartition               = 0x0037
	codeAskCheckTIDRange             = 0x0038
	codeAnswerCheckTIDRange          = 0x8038
	codeAskCheckSerialRange          = 0x0039
	codeAnswerCheckSerialRange       = 0x8039
	codeNotifyPartitionCorrupted     = 0x003a
	codeNotifyReady                  = 0x003b
	codeAskLastTransaction           = 0x003c
	codeAnswerLastTransaction        = 0x803c
	codeAskCheckCurrentSerial        = 0x003d
	codeAnswerCheckCurrentSerial     = 0x803d
	codeNotifyTransactionFinished    = 0x003e
	codeReplicate                    = 0x003f
	codeNotifyReplicationDone        = 0x0040
	codeAskFetchTransactions         = 0x0041
	codeAnswerFetchTransactions      = 0x8041
	codeAskFetchObjects              = 0x0042
	codeAnswerFetchObjects           = 0x8042
	codeAddTransaction               = 0x0043
	codeAddObject                    = 0x0044
	codeTruncate                     = 0x0045
	codeFlushLog                     = 0x0046
	codeAskMonitorInformation        = 0x0047
	codeAnswerMonitorInformation     = 0x8047
	codeNotifyMonitorInformation     = 0x0048
	codeNotifyUpstreamAdmin          = 0x0049
)

// RelockConflict tells that a write lock was lost to a newer revision. Data is
// what the storage held for the transaction, nil for a check or an undo.
type RelockConflict struct {
	Serial   tid.TID // base of the store
	Conflict tid.TID // newer revision
	Data     *ObjectData
}

// Revision is one entry of an object's history. Size is the stored length in bytes.
type Revision struct {
	TID  tid.TID
	Size int
}

// UndoSerial tells how to undo a change of one object. Undo is absent if the
// creation of the object is undone.
type UndoSerial struct {
	Current   tid.TID
	Undo      Opt[tid.TID]
	IsCurrent bool
}

// PackState is a pack order as it is replicated, without its id.
type PackState struct {
	Approved Opt[bool]
	Partial  bool
	OIDs     []tid.OID
	Time     tid.TID
}

// RequestIdentification opens every connection except neoctl's.
type RequestIdentification struct {
	Type        NodeType
	ID          NodeID
	Addr        Address
	Cluster     string
	IDTimestamp Opt[float64]
	Extra       map[string]Value
}

// AcceptIdentification answers RequestIdentification.
type AcceptIdentification struct {
	Type   NodeType
	ID     NodeID
	YourID NodeID
}

// Ping is a barrier: Pong comes after everything that preceded it.
type Ping struct {
}

// Pong answers Ping.
type Pong struct {
}

// CloseClient says that the sender no longer uses the link as a client.
type CloseClient struct {
}

// AskPrimary asks an admin for the primary master.
type AskPrimary struct {
}

// AnswerPrimary answers AskPrimary.
type AnswerPrimary struct {
	ID NodeID
}

// NotPrimaryMaster names the primary master, an index into Masters.
type NotPrimaryMaster struct {
	Primary Opt[int]
	Masters []Address
}

// NotifyNodeInformation announces nodes; the first one on a link is the complete list.
type NotifyNodeInformation struct {
	Timestamp float64
	Nodes     []Node
}

// AskRecovery asks what a recovery needs to know.
type AskRecovery struct {
}

// AnswerRecovery answers AskRecovery.
type AnswerRecovery struct {
	PTID        Opt[uint64]
	BackupTID   Opt[tid.TID]
	TruncateTID Opt[tid.TID]
}

// AskLastIDs asks a storage to truncate if ordered, then for its last ids.
type AskLastIDs struct {
}

// AnswerLastIDs answers AskLastIDs; FirstTID is tid.Max if there is none.
type AnswerLastIDs struct {
	LastTID  Opt[tid.TID]
	LastOID  Opt[tid.OID]
	FirstTID tid.TID
}

// AskPartitionTable asks a storage for its partition table.
type AskPartitionTable struct {
}

// AnswerPartitionTable answers AskPartitionTable.
type AnswerPartitionTable struct {
	PTID     Opt[uint64]
	Replicas int
	Rows     [][]Cell
}

// SendPartitionTable gives the whole partition table.
type SendPartitionTable struct {
	PTID     Opt[uint64]
	Replicas int
	Rows     [][]Cell
}

// NotifyPartitionChanges changes the partition table; PTID is the previous one plus 1.
type NotifyPartitionChanges struct {
	PTID     uint64
	Replicas int
	Cells    []CellChange
}

// StartOperation makes a storage operational.
type StartOperation struct {
	Backup bool
}

// StopOperation says that the cluster is no longer operational.
type StopOperation struct {
}

// AskUnfinishedTransactions asks which transactions a replica must still wait for.
type AskUnfinishedTransactions struct {
	Partitions []int
}

// AnswerUnfinishedTransactions answers AskUnfinishedTransactions.
type AnswerUnfinishedTransactions struct {
	LastTID tid.TID
	TTIDs   []tid.TID
}

// AskLockedTransactions asks for the unfinished transactions of a storage.
type AskLockedTransactions struct {
}

// AnswerLockedTransactions maps each ttid to its final tid if locked.
type AnswerLockedTransactions struct {
	TIDs map[tid.TID]Opt[tid.TID]
}

// AskFinalTID asks how a transaction ended.
type AskFinalTID struct {
	TTID tid.TID
}

// AnswerFinalTID absent: not committed; tid.Max from a master: ask a storage.
type AnswerFinalTID struct {
	TID Opt[tid.TID]
}

// ValidateTransaction commits a voted transaction during verification.
type ValidateTransaction struct {
	TTID tid.TID
	TID  tid.TID
}

// AskBeginTransaction begins a transaction, with an imposed TID for imports.
type AskBeginTransaction struct {
	TID Opt[tid.TID]
}

// AnswerBeginTransaction answers AskBeginTransaction.
type AnswerBeginTransaction struct {
	TTID tid.TID
}

// FailedVote reports storages where a write failed.
type FailedVote struct {
	TTID tid.TID
	IDs  []NodeID
}

// AskFinishTransaction commits a voted transaction; Deleted and Checked are partitions.
type AskFinishTransaction struct {
	TTID    tid.TID
	OIDs    []tid.OID
	Deleted []int
	Checked []int
	Pack    *PackRequest
}

// AnswerTransactionFinished answers AskFinishTransaction.
type AnswerTransactionFinished struct {
	TTID tid.TID
	TID  tid.TID
}

// AskLockInformation makes the final TID durable and locks the objects for reading.
type AskLockInformation struct {
	TTID         tid.TID
	TID          tid.TID
	PackApproved bool
}

// AnswerInformationLocked answers AskLockInformation.
type AnswerInformationLocked struct {
	TTID tid.TID
}

// InvalidateObjects tells clients of a commit by another one.
type InvalidateObjects struct {
	TID  tid.TID
	OIDs []tid.OID
}

// InvalidatePartitions tells backup masters of a commit.
type InvalidatePartitions struct {
	TID        tid.TID
	Partitions []int
}

// NotifyUnlockInformation makes a locked transaction visible.
type NotifyUnlockInformation struct {
	TTID tid.TID
}

// AskNewOIDs asks for new object ids.
type AskNewOIDs struct {
	Count int
}

// AnswerNewOIDs answers AskNewOIDs.
type AnswerNewOIDs struct {
	OIDs []tid.OID
}

// NotifyDeadlock says that an older transaction wants oid.
type NotifyDeadlock struct {
	TTID tid.TID
	OID  tid.OID
}

// AskRelockObject gives a write lock back and queues for it again.
type AskRelockObject struct {
	TTID tid.TID
	OID  tid.OID
}

// AnswerRelockObject nil: locked again.
type AnswerRelockObject struct {
	Conflict *RelockConflict
}

// AskStoreObject stores a record on one cell.
type AskStoreObject struct {
	OID    tid.OID
	Serial tid.TID
	ObjectData
	DataSerial Opt[tid.TID]
	TTID       tid.TID
}

// AnswerStoreObject absent: locked; tid.Zero: stored without lock; else the conflicting revision.
type AnswerStoreObject struct {
	Conflict Opt[tid.TID]
}

// AbortTransaction aborts a transaction.
type AbortTransaction struct {
	TTID tid.TID
	IDs  []NodeID
}

// AskStoreTransaction votes, with the metadata.
type AskStoreTransaction struct {
	TTID        tid.TID
	User        []byte
	Description []byte
	Extension   []byte
	OIDs        []tid.OID
	Pack        *PackRequest
}

// AnswerStoreTransaction answers AskStoreTransaction.
type AnswerStoreTransaction struct {
}

// AskVoteTransaction votes on a storage that gets no metadata.
type AskVoteTransaction struct {
	TTID tid.TID
}

// AnswerVoteTransaction answers AskVoteTransaction.
type AnswerVoteTransaction struct {
}

// AskObject loads one revision.
type AskObject struct {
	OID    tid.OID
	At     Opt[tid.TID]
	Before Opt[tid.TID]
}

// AnswerObject answers AskObject.
type AnswerObject struct {
	OID        tid.OID
	Serial     tid.TID
	NextSerial Opt[tid.TID]
	ObjectData
	DataSerial Opt[tid.TID]
}

// AskTIDs asks for TIDs in descending order, positions [First, Last).
type AskTIDs struct {
	First     int
	Last      int
	Partition uint32
}

// AnswerTIDs answers AskTIDs.
type AnswerTIDs struct {
	TIDs []tid.TID
}

// AskTransactionInformation asks for metadata.
type AskTransactionInformation struct {
	TID tid.TID
}

// AnswerTransactionInformation answers AskTransactionInformation.
type AnswerTransactionInformation struct {
	TID         tid.TID
	User        []byte
	Description []byte
	Extension   []byte
	Packed      bool
	OIDs        []tid.OID
}

// AskObjectHistory asks for revisions, newest first, positions [First, Last).
type AskObjectHistory struct {
	OID   tid.OID
	First int
	Last  int
}

// AnswerObjectHistory answers AskObjectHistory.
type AnswerObjectHistory struct {
	OID     tid.OID
	History []Revision
}

// AskPartitionList asks an admin for rows [Min, Max), all if Max is 0.
type AskPartitionList struct {
	Min int
	Max int
	ID  NodeID
}

// AnswerPartitionList answers AskPartitionList.
type AnswerPartitionList struct {
	PTID     Opt[uint64]
	Replicas int
	Rows     [][]Cell
}

// AskNodeList asks an admin for nodes.
type AskNodeList struct {
	Type Opt[NodeType]
}

// AnswerNodeList answers AskNodeList.
type AnswerNodeList struct {
	Nodes []Node
}

// SetNodeState kills or drops a node.
type SetNodeState struct {
	ID    NodeID
	State NodeState
}

// AddPendingNodes takes pending storages into the cluster.
type AddPendingNodes struct {
	IDs []NodeID
}

// TweakPartitionTable rebalances, emptying the given nodes.
type TweakPartitionTable struct {
	DryRun bool
	IDs    []NodeID
}

// AnswerTweakPartitionTable answers TweakPartitionTable.
type AnswerTweakPartitionTable struct {
	Changed bool
	Rows    [][]Cell
}

// SetNumReplicas sets the number of replicas.
type SetNumReplicas struct {
	Replicas int
}

// SetClusterState asks for a cluster state.
type SetClusterState struct {
	State ClusterState
}

// Repair asks storages to delete orphan data.
type Repair struct {
	IDs    []NodeID
	DryRun bool
}

// NotifyRepair orders the deletion of orphan data.
type NotifyRepair struct {
	DryRun bool
}

// NotifyClusterInformation announces the cluster state.
type NotifyClusterInformation struct {
	State ClusterState
}

// AskClusterState asks for the cluster state.
type AskClusterState struct {
}

// AnswerClusterState answers AskClusterState.
type AnswerClusterState struct {
	State Opt[ClusterState]
}

// AskObjectUndoSerial asks what undoing a transaction needs.
type AskObjectUndoSerial struct {
	TTID    tid.TID
	LastTID tid.TID
	Undone  tid.TID
	OIDs    []tid.OID
}

// AnswerObjectUndoSerial answers AskObjectUndoSerial.
type AnswerObjectUndoSerial struct {
	Undo map[tid.OID]UndoSerial
}

// AskTIDsFrom asks for TIDs in ascending order.
type AskTIDsFrom struct {
	Min       tid.TID
	Max       tid.TID
	Length    int
	Partition int
}

// AnswerTIDsFrom answers AskTIDsFrom.
type AnswerTIDsFrom struct {
	TIDs []tid.TID
}

// AskOIDsFrom asks for the objects of a partition.
type AskOIDsFrom struct {
	Partition int
	Length    int
	Min       tid.OID
	At        tid.TID
}

// AnswerOIDsFrom answers AskOIDsFrom.
type AnswerOIDsFrom struct {
	Next Opt[tid.OID]
	OIDs []tid.OID
}

// WaitForPack waits for the completion of a pack order.
type WaitForPack struct {
	ID tid.TID
}

// WaitedForPack answers WaitForPack.
type WaitedForPack struct {
}

// AskPackOrders asks for pack orders from an id on.
type AskPackOrders struct {
	Min tid.TID
}

// AnswerPackOrders answers AskPackOrders.
type AnswerPackOrders struct {
	Orders []PackOrder
}

// NotifyPackSigned announces decisions on pack orders.
type NotifyPackSigned struct {
	Approved []tid.TID
	Rejected []tid.TID
}

// NotifyPackCompleted says that a storage has packed up to this order.
type NotifyPackCompleted struct {
	ID tid.TID
}

// CheckReplicas asks for a comparison of replicas.
type CheckReplicas struct {
	Partitions map[int]Opt[NodeID]
	Min        tid.TID
	Max        Opt[tid.TID]
}

// CheckPartition orders a storage to compare.
type CheckPartition struct {
	Partition int
	Upstream  string
	Source    Address
	Min       tid.TID
	Max       tid.TID
}

// AskCheckTIDRange asks for a digest of transactions.
type AskCheckTIDRange struct {
	Partition int
	Length    int
	Min       tid.TID
	Max       tid.TID
}

// AnswerCheckTIDRange answers AskCheckTIDRange.
type AnswerCheckTIDRange struct {
	Count    int
	Checksum Hash
	Last     tid.TID
}

// AskCheckSerialRange asks for a digest of records.
type AskCheckSerialRange struct {
	Partition int
	Length    int
	Min       tid.TID
	Max       tid.TID
	MinOID    tid.OID
}

// AnswerCheckSerialRange answers AskCheckSerialRange.
type AnswerCheckSerialRange struct {
	Count       int
	TIDChecksum Hash
	LastTID     tid.TID
	OIDChecksum Hash
	LastOID     tid.OID
}

// NotifyPartitionCorrupted reports differing replicas.
type NotifyPartitionCorrupted struct {
	Partition int
	IDs       []NodeID
}

// NotifyReady says that a storage is operational.
type NotifyReady struct {
}

// AskLastTransaction asks for the last committed TID.
type AskLastTransaction struct {
}

// AnswerLastTransaction answers AskLastTransaction.
type AnswerLastTransaction struct {
	TID tid.TID
}

// AskCheckCurrentSerial locks an object that must stay unchanged.
type AskCheckCurrentSerial struct {
	TTID   tid.TID
	OID    tid.OID
	Serial tid.TID
}

// AnswerCheckCurrentSerial as AnswerStoreObject.
type AnswerCheckCurrentSerial struct {
	Conflict Opt[tid.TID]
}

// NotifyTransactionFinished tells replicating storages of an end.
type NotifyTransactionFinished struct {
	TTID tid.TID
	Max  tid.TID
}

// Replicate orders replication in backup mode; a zero Address means nothing new.
type Replicate struct {
	TID      tid.TID
	Upstream string
	Sources  map[int]Address
}

// NotifyReplicationDone says that a cell is complete.
type NotifyReplicationDone struct {
	Partition int
	TID       tid.TID
}

// AskFetchTransactions fetches transactions.
type AskFetchTransactions struct {
	Partition int
	Length    int
	Min       tid.TID
	Max       tid.TID
	Have      []tid.TID
	AskPack   bool
}

// AnswerFetchTransactions ends a chunk.
type AnswerFetchTransactions struct {
	Next   Opt[tid.TID]
	Delete []tid.TID
	Packed Opt[tid.TID]
}

// AskFetchObjects fetches records.
type AskFetchObjects struct {
	Partition int
	Length    int
	Min       tid.TID
	Max       tid.TID
	MinOID    tid.OID
	Have      map[tid.TID][]tid.OID
}

// AnswerFetchObjects ends a chunk.
type AnswerFetchObjects struct {
	Next    Opt[tid.TID]
	NextOID Opt[tid.OID]
	Delete  map[tid.TID][]tid.OID
}

// AddTransaction feeds one transaction, under the id of the request.
type AddTransaction struct {
	TID         tid.TID
	User        []byte
	Description []byte
	Extension   []byte
	Packed      bool
	TTID        tid.TID
	OIDs        []tid.OID
	Pack        *PackState
}

// AddObject feeds one record, under the id of the request.
type AddObject struct {
	OID    tid.OID
	Serial tid.TID
	ObjectData
	DataSerial Opt[tid.TID]
}

// Truncate cuts the database after a TID; never answered by a storage.
type Truncate struct {
	TID tid.TID
}

// FlushLog asks for a flush of logs.
type FlushLog struct {
}

// AskMonitorInformation asks an admin for a summary.
type AskMonitorInformation struct {
}

// AnswerMonitorInformation names clusters; absent is the own one.
type AnswerMonitorInformation struct {
	Warning []Opt[string]
	Problem []Opt[string]
	Summary string
}

// NotifyMonitorInformation reports a backup cluster; values: ClusterState or nil, int64, map[CellState]int or nil.
type NotifyMonitorInformation struct {
	Info map[string]Value
}

// NotifyUpstreamAdmin tells an admin whom to report to.
type NotifyUpstreamAdmin struct {
	Addr Address
}

func (*Error) Code() uint16                        { return codeError }
func (*RequestIdentification) Code() uint16        { return codeRequestIdentification }
func (*AcceptIdentification) Code() uint16         { return codeAcceptIdentification }
func (*Ping) Code() uint16                         { return codePing }
func (*Pong) Code() uint16                         { return codePong }
func (*CloseClient) Code() uint16                  { return codeCloseClient }
func (*AskPrimary) Code() uint16                   { return codeAskPrimary }
func (*AnswerPrimary) Code() uint16                { return codeAnswerPrimary }
func (*NotPrimaryMaster) Code() uint16             { return codeNotPrimaryMaster }
func (*NotifyNodeInformation) Code() uint16        { return codeNotifyNodeInformation }
func (*AskRecovery) Code() uint16                  { return codeAskRecovery }
func (*AnswerRecovery) Code() uint16               { return codeAnswerRecovery }
func (*AskLastIDs) Code() uint16                   { return codeAskLastIDs }
func (*AnswerLastIDs) Code() uint16                { return codeAnswerLastIDs }
func (*AskPartitionTable) Code() uint16            { return codeAskPartitionTable }
func (*AnswerPartitionTable) Code() uint16         { return codeAnswerPartitionTable }
func (*SendPartitionTable) Code() uint16           { return codeSendPartitionTable }
func (*NotifyPartitionChanges) Code() uint16       { return codeNotifyPartitionChanges }
func (*StartOperation) Code() uint16               { return codeStartOperation }
func (*StopOperation) Code() uint16                { return codeStopOperation }
func (*AskUnfinishedTransactions) Code() uint16    { return codeAskUnfinishedTransactions }
func (*AnswerUnfinishedTransactions) Code() uint16 { return codeAnswerUnfinishedTransactions }
func (*AskLockedTransactions) Code() uint16        { return codeAskLockedTransactions }
func (*AnswerLockedTransactions) Code() uint16     { return codeAnswerLockedTransactions }
func (*AskFinalTID) Code() uint16                  { return codeAskFinalTID }
func (*AnswerFinalTID) Code() uint16               { return codeAnswerFinalTID }
func (*ValidateTransaction) Code() uint16          { return codeValidateTransaction }
func (*AskBeginTransaction) Code() uint16          { return codeAskBeginTransaction }
func (*AnswerBeginTransaction) Code() uint16       { return codeAnswerBeginTransaction }
func (*FailedVote) Code() uint16                   { return codeFailedVote }
func (*AskFinishTransaction) Code() uint16         { return codeAskFinishTransaction }
func (*AnswerTransactionFinished) Code() uint16    { return codeAnswerTransactionFinished }
func (*AskLockInformation) Code() uint16           { return codeAskLockInformation }
func (*AnswerInformationLocked) Code() uint16      { return codeAnswerInformationLocked }
func (*InvalidateObjects) Code() uint16            { return codeInvalidateObjects }
func (*InvalidatePartitions) Code() uint16         { return codeInvalidatePartitions }
func (*NotifyUnlockInformation) Code() uint16      { return codeNotifyUnlockInformation }
func (*AskNewOIDs) Code() uint16                   { return codeAskNewOIDs }
func (*AnswerNewOIDs) Code() uint16                { return codeAnswerNewOIDs }
func (*NotifyDeadlock) Code() uint16               { return codeNotifyDeadlock }
func (*AskRelockObject) Code() uint16              { return codeAskRelockObject }
func (*AnswerRelockObject) Code() uint16           { return codeAnswerRelockObject }
func (*AskStoreObject) Code() uint16               { return codeAskStoreObject }
func (*AnswerStoreObject) Code() uint16            { return codeAnswerStoreObject }
func (*AbortTransaction) Code() uint16             { return codeAbortTransaction }
func (*AskStoreTransaction) Code() uint16          { return codeAskStoreTransaction }
func (*AnswerStoreTransaction) Code() uint16       { return codeAnswerStoreTransaction }
func (*AskVoteTransaction) Code() uint16           { return codeAskVoteTransaction }
func (*AnswerVoteTransaction) Code() uint16        { return codeAnswerVoteTransaction }
func (*AskObject) Code() uint16                    { return codeAskObject }
func (*AnswerObject) Code() uint16                 { return codeAnswerObject }
func (*AskTIDs) Code() uint16                      { return codeAskTIDs }
func (*AnswerTIDs) Code() uint16                   { return codeAnswerTIDs }
func (*AskTransactionInformation) Code() uint16    { return codeAskTransactionInformation }
func (*AnswerTransactionInformation) Code() uint16 { return codeAnswerTransactionInformation }
func (*AskObjectHistory) Code() uint16             { return codeAskObjectHistory }
func (*AnswerObjectHistory) Code() uint16          { return codeAnswerObjectHistory }
func (*AskPartitionList) Code() uint16             { return codeAskPartitionList }
func (*AnswerPartitionList) Code() uint16          { return codeAnswerPartitionList }
func (*AskNodeList) Code() uint16                  { return codeAskNodeList }
func (*AnswerNodeList) Code() uint16               { return codeAnswerNodeList }
func (*SetNodeState) Code() uint16                 { return codeSetNodeState }
func (*AddPendingNodes) Code() uint16              { return codeAddPendingNodes }
func (*TweakPartitionTable) Code() uint16          { return codeTweakPartitionTable }
func (*AnswerTweakPartitionTable) Code() uint16    { return codeAnswerTweakPartitionTable }
func (*SetNumReplicas) Code() uint16               { return codeSetNumReplicas }
func (*SetClusterState) Code() uint16              { return codeSetClusterState }
func (*Repair) Code() uint16                       { return codeRepair }
func (*NotifyRepair) Code() uint16                 { return codeNotifyRepair }
func (*NotifyClusterInformation) Code() uint16     { return codeNotifyClusterInformation }
func (*AskClusterState) Code() uint16              { return codeAskClusterState }
func (*AnswerClusterState) Code() uint16           { return codeAnswerClusterState }
func (*AskObjectUndoSerial) Code() uint16          { return codeAskObjectUndoSerial }
func (*AnswerObjectUndoSerial) Code() uint16       { return codeAnswerObjectUndoSerial }
func (*AskTIDsFrom) Code() uint16                  { return codeAskTIDsFrom }
func (*AnswerTIDsFrom) Code() uint16               { return codeAnswerTIDsFrom }
func (*AskOIDsFrom) Code() uint16                  { return codeAskOIDsFrom }
func (*AnswerOIDsFrom) Code() uint16               { return codeAnswerOIDsFrom }
func (*WaitForPack) Code() uint16                  { return codeWaitForPack }
func (*WaitedForPack) Code() uint16                { return codeWaitedForPack }
func (*AskPackOrders) Code() uint16                { return codeAskPackOrders }
func (*AnswerPackOrders) Code() uint16             { return codeAnswerPackOrders }
func (*NotifyPackSigned) Code() uint16             { return codeNotifyPackSigned }
func (*NotifyPackCompleted) Code() uint16          { return codeNotifyPackCompleted }
func (*CheckReplicas) Code() uint16                { return codeCheckReplicas }
func (*CheckPartition) Code() uint16               { return codeCheckPartition }
func (*AskCheckTIDRange) Code() uint16             { return codeAskCheckTIDRange }
func (*AnswerCheckTIDRange) Code() uint16          { return codeAnswerCheckTIDRange }
func (*AskCheckSerialRange) Code() uint16          { return codeAskCheckSerialRange }
func (*AnswerCheckSerialRange) Code() uint16       { return codeAnswerCheckSerialRange }
func (*NotifyPartitionCorrupted) Code() uint16     { return codeNotifyPartitionCorrupted }
func (*NotifyReady) Code() uint16                  { return codeNotifyReady }
func (*AskLastTransaction) Code() uint16           { return codeAskLastTransaction }
func (*AnswerLastTransaction) Code() uint16        { return codeAnswerLastTransaction }
func (*AskCheckCurrentSerial) Code() uint16        { return codeAskCheckCurrentSerial }
func (*AnswerCheckCurrentSerial) Code() uint16     { return codeAnswerCheckCurrentSerial }
func (*NotifyTransactionFinished) Code() uint16    { return codeNotifyTransactionFinished }
func (*Replicate) Code() uint16                    { return codeReplicate }
func (*NotifyReplicationDone) Code() uint16        { return codeNotifyReplicationDone }
func (*AskFetchTransactions) Code() uint16         { return codeAskFetchTransactions }
func (*AnswerFetchTransactions) Code() uint16      { return codeAnswerFetchTransactions }
func (*AskFetchObjects) Code() uint16              { return codeAskFetchObjects }
func (*AnswerFetchObjects) Code() uint16           { return codeAnswerFetchObjects }
func (*AddTransaction) Code() uint16               { return codeAddTransaction }
func (*AddObject) Code() uint16                    { return codeAddObject }
func (*Truncate) Code() uint16                     { return codeTruncate }
func (*FlushLog) Code() uint16                     { return codeFlushLog }
func (*AskMonitorInformation) Code() uint16        { return codeAskMonitorInformation }
func (*AnswerMonitorInformation) Code() uint16     { return codeAnswerMonitorInformation }
func (*NotifyMonitorInformation) Code() uint16     { return codeNotifyMonitorInformation }
func (*NotifyUpstreamAdmin) Code() uint16          { return codeNotifyUpstreamAdmin }

func (*RequestIdentification) AnswerCode() uint16     { return codeAcceptIdentification }
func (*Ping) AnswerCode() uint16                      { return codePong }
func (*AskPrimary) AnswerCode() uint16                { return codeAnswerPrimary }
func (*AskRecovery) AnswerCode() uint16               { return codeAnswerRecovery }
func (*AskLastIDs) AnswerCode() uint16                { return codeAnswerLastIDs }
func (*AskPartitionTable) AnswerCode() uint16         { return codeAnswerPartitionTable }
func (*AskUnfinishedTransactions) AnswerCode() uint16 { return codeAnswerUnfinishedTransactions }
func (*AskLockedTransactions) AnswerCode() uint16     { return codeAnswerLockedTransactions }
func (*AskFinalTID) AnswerCode() uint16               { return codeAnswerFinalTID }
func (*AskBeginTransaction) AnswerCode() uint16       { return codeAnswerBeginTransaction }
func (*FailedVote) AnswerCode() uint16                { return codeError }
func (*AskFinishTransaction) AnswerCode() uint16      { return codeAnswerTransactionFinished }
func (*AskLockInformation) AnswerCode() uint16        { return codeAnswerInformationLocked }
func (*AskNewOIDs) AnswerCode() uint16                { return codeAnswerNewOIDs }
func (*AskRelockObject) AnswerCode() uint16           { return codeAnswerRelockObject }
func (*AskStoreObject) AnswerCode() uint16            { return codeAnswerStoreObject }
func (*AskStoreTransaction) AnswerCode() uint16       { return codeAnswerStoreTransaction }
func (*AskVoteTransaction) AnswerCode() uint16        { return codeAnswerVoteTransaction }
func (*AskObject) AnswerCode() uint16                 { return codeAnswerObject }
func (*AskTIDs) AnswerCode() uint16                   { return codeAnswerTIDs }
func (*AskTransactionInformation) AnswerCode() uint16 { return codeAnswerTransactionInformation }
func (*AskObjectHistory) AnswerCode() uint16          { return codeAnswerObjectHistory }
func (*AskPartitionList) AnswerCode() uint16          { return codeAnswerPartitionList }
func (*AskNodeList) AnswerCode() uint16               { return codeAnswerNodeList }
func (*SetNodeState) AnswerCode() uint16              { return codeError }
func (*AddPendingNodes) AnswerCode() uint16           { return codeError }
func (*TweakPartitionTable) AnswerCode() uint16       { return codeAnswerTweakPartitionTable }
func (*SetNumReplicas) AnswerCode() uint16            { return codeError }
func (*SetClusterState) AnswerCode() uint16           { return codeError }
func (*Repair) AnswerCode() uint16                    { return codeError }
func (*AskClusterState) AnswerCode() uint16           { return codeAnswerClusterState }
func (*AskObjectUndoSerial) AnswerCode() uint16       { return codeAnswerObjectUndoSerial }
func (*AskTIDsFrom) AnswerCode() uint16               { return codeAnswerTIDsFrom }
func (*AskOIDsFrom) AnswerCode() uint16               { return codeAnswerOIDsFrom }
func (*WaitForPack) AnswerCode() uint16               { return codeWaitedForPack }
func (*AskPackOrders) AnswerCode() uint16             { return codeAnswerPackOrders }
func (*CheckReplicas) AnswerCode() uint16             { return codeError }
func (*AskCheckTIDRange) AnswerCode() uint16          { return codeAnswerCheckTIDRange }
func (*AskCheckSerialRange) AnswerCode() uint16       { return codeAnswerCheckSerialRange }
func (*AskLastTransaction) AnswerCode() uint16        { return codeAnswerLastTransaction }
func (*AskCheckCurrentSerial) AnswerCode() uint16     { return codeAnswerCheckCurrentSerial }
func (*AskFetchTransactions) AnswerCode() uint16      { return codeAnswerFetchTransactions }
func (*AskFetchObjects) AnswerCode() uint16           { return codeAnswerFetchObjects }
func (*Truncate) AnswerCode() uint16                  { return codeError }
func (*AskMonitorInformation) AnswerCode() uint16     { return codeAnswerMonitorInformation }
