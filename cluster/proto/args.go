package proto

import (
	"math"

	"github.com/neozodb/neo/cluster/msgpack"
)

// Arguments of the packets, in the order of the protocol. Each pair of methods
// writes and reads the same fields.

func (p *RequestIdentification) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 6)
	b = appendNodeType(b, p.Type)
	b = appendNodeID(b, p.ID)
	b = appendAddress(b, p.Addr)
	b = msgpack.AppendBin(b, p.Cluster)
	b = appendOpt(b, p.IDTimestamp, msgpack.AppendFloat)
	return appendValues(b, p.Extra)
}

func (p *RequestIdentification) decodeArgs(d *decoder) {
	if !d.tuple(6) {
		return
	}
	p.Type = d.nodeType()
	p.ID = d.optID()
	p.Addr = d.optAddress()
	p.Cluster = d.string()
	p.IDTimestamp = opt(d, d.Float)
	p.Extra = d.values(0)
}

func (p *AcceptIdentification) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendNodeType(b, p.Type)
	b = appendNodeID(b, p.ID)
	return appendNodeID(b, p.YourID)
}

func (p *AcceptIdentification) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.Type = d.nodeType()
	p.ID = d.optID()
	p.YourID = d.optID()
}

func (*Ping) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*Ping) decodeArgs(d *decoder)      { d.tuple(0) }

func (*Pong) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*Pong) decodeArgs(d *decoder)      { d.tuple(0) }

func (*CloseClient) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*CloseClient) decodeArgs(d *decoder)      { d.tuple(0) }

func (*AskPrimary) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*AskPrimary) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AnswerPrimary) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendNodeID(b, p.ID)
}

func (p *AnswerPrimary) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.ID = d.optID()
}

func (p *NotPrimaryMaster) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendOpt(b, p.Primary, appendInt)
	return appendList(b, p.Masters, appendAddress)
}

func (p *NotPrimaryMaster) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.Primary = opt(d, d.int)
	p.Masters = list(d, 4, d.address)
}

func (p *NotifyNodeInformation) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = msgpack.AppendFloat(b, p.Timestamp)
	return appendList(b, p.Nodes, appendNode)
}

func (p *NotifyNodeInformation) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.Timestamp = d.Float()
	p.Nodes = list(d, 10, d.node)
}

func (*AskRecovery) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*AskRecovery) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AnswerRecovery) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendOpt(b, p.PTID, msgpack.AppendUint)
	b = appendOptTID(b, p.BackupTID)
	return appendOptTID(b, p.TruncateTID)
}

func (p *AnswerRecovery) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.PTID = opt(d, d.Uint)
	p.BackupTID = d.optTID()
	p.TruncateTID = d.optTID()
}

func (*AskLastIDs) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*AskLastIDs) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AnswerLastIDs) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendOptTID(b, p.LastTID)
	b = appendOptOID(b, p.LastOID)
	return appendTID(b, p.FirstTID)
}

func (p *AnswerLastIDs) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.LastTID = d.optTID()
	p.LastOID = d.optOID()
	p.FirstTID = d.tid()
}

func (*AskPartitionTable) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*AskPartitionTable) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AnswerPartitionTable) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendOpt(b, p.PTID, msgpack.AppendUint)
	b = appendInt(b, p.Replicas)
	return appendList(b, p.Rows, appendRow)
}

func (p *AnswerPartitionTable) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.PTID = opt(d, d.Uint)
	p.Replicas = d.int()
	p.Rows = list(d, 1, d.row)
}

func (p *SendPartitionTable) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendOpt(b, p.PTID, msgpack.AppendUint)
	b = appendInt(b, p.Replicas)
	return appendList(b, p.Rows, appendRow)
}

func (p *SendPartitionTable) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.PTID = opt(d, d.Uint)
	p.Replicas = d.int()
	p.Rows = list(d, 1, d.row)
}

func (p *NotifyPartitionChanges) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = msgpack.AppendUint(b, p.PTID)
	b = appendInt(b, p.Replicas)
	return appendList(b, p.Cells, appendCellChange)
}

func (p *NotifyPartitionChanges) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.PTID = d.Uint()
	p.Replicas = d.int()
	p.Cells = list(d, 6, d.cellChange)
}

func (p *StartOperation) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return msgpack.AppendBool(b, p.Backup)
}

func (p *StartOperation) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Backup = d.Bool()
}

func (*StopOperation) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*StopOperation) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AskUnfinishedTransactions) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendList(b, p.Partitions, appendInt)
}

func (p *AskUnfinishedTransactions) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Partitions = list(d, 1, d.int)
}

func (p *AnswerUnfinishedTransactions) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendTID(b, p.LastTID)
	return appendList(b, p.TTIDs, appendTID)
}

func (p *AnswerUnfinishedTransactions) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.LastTID = d.tid()
	p.TTIDs = d.tids()
}

func (*AskLockedTransactions) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*AskLockedTransactions) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AnswerLockedTransactions) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendMap(b, p.TIDs, appendTID, appendOptTID)
}

func (p *AnswerLockedTransactions) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TIDs = dict(d, 11, d.tid, d.optTID)
}

func (p *AskFinalTID) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendTID(b, p.TTID)
}

func (p *AskFinalTID) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TTID = d.tid()
}

func (p *AnswerFinalTID) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendOptTID(b, p.TID)
}

func (p *AnswerFinalTID) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TID = d.optTID()
}

func (p *ValidateTransaction) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendTID(b, p.TTID)
	return appendTID(b, p.TID)
}

func (p *ValidateTransaction) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.TTID = d.tid()
	p.TID = d.tid()
}

func (p *AskBeginTransaction) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendOptTID(b, p.TID)
}

func (p *AskBeginTransaction) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TID = d.optTID()
}

func (p *AnswerBeginTransaction) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendTID(b, p.TTID)
}

func (p *AnswerBeginTransaction) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TTID = d.tid()
}

func (p *FailedVote) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendTID(b, p.TTID)
	return appendList(b, p.IDs, appendNodeID)
}

func (p *FailedVote) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.TTID = d.tid()
	p.IDs = list(d, 1, d.nodeID)
}

func (p *AskFinishTransaction) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 5)
	b = appendTID(b, p.TTID)
	b = appendList(b, p.OIDs, appendOID)
	b = appendList(b, p.Deleted, appendInt)
	b = appendList(b, p.Checked, appendInt)
	return appendPackRequest(b, p.Pack)
}

func (p *AskFinishTransaction) decodeArgs(d *decoder) {
	if !d.tuple(5) {
		return
	}
	p.TTID = d.tid()
	p.OIDs = d.oids()
	p.Deleted = list(d, 1, d.int)
	p.Checked = list(d, 1, d.int)
	p.Pack = d.packRequest()
}

func (p *AnswerTransactionFinished) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendTID(b, p.TTID)
	return appendTID(b, p.TID)
}

func (p *AnswerTransactionFinished) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.TTID = d.tid()
	p.TID = d.tid()
}

func (p *AskLockInformation) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendTID(b, p.TTID)
	b = appendTID(b, p.TID)
	return msgpack.AppendBool(b, p.PackApproved)
}

func (p *AskLockInformation) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.TTID = d.tid()
	p.TID = d.tid()
	p.PackApproved = d.Bool()
}

func (p *AnswerInformationLocked) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendTID(b, p.TTID)
}

func (p *AnswerInformationLocked) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TTID = d.tid()
}

func (p *InvalidateObjects) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendTID(b, p.TID)
	return appendList(b, p.OIDs, appendOID)
}

func (p *InvalidateObjects) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.TID = d.tid()
	p.OIDs = d.oids()
}

func (p *InvalidatePartitions) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendTID(b, p.TID)
	return appendList(b, p.Partitions, appendInt)
}

func (p *InvalidatePartitions) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.TID = d.tid()
	p.Partitions = list(d, 1, d.int)
}

func (p *NotifyUnlockInformation) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendTID(b, p.TTID)
}

func (p *NotifyUnlockInformation) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TTID = d.tid()
}

func (p *AskNewOIDs) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendInt(b, p.Count)
}

func (p *AskNewOIDs) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Count = d.int()
}

func (p *AnswerNewOIDs) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendList(b, p.OIDs, appendOID)
}

func (p *AnswerNewOIDs) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.OIDs = d.oids()
}

func (p *NotifyDeadlock) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendTID(b, p.TTID)
	return appendOID(b, p.OID)
}

func (p *NotifyDeadlock) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.TTID = d.tid()
	p.OID = d.oid()
}

func (p *AskRelockObject) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendTID(b, p.TTID)
	return appendOID(b, p.OID)
}

func (p *AskRelockObject) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.TTID = d.tid()
	p.OID = d.oid()
}

func (p *AnswerRelockObject) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendRelockConflict(b, p.Conflict)
}

func (p *AnswerRelockObject) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Conflict = d.relockConflict()
}

func (p *AskStoreObject) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 7)
	b = appendOID(b, p.OID)
	b = appendTID(b, p.Serial)
	b = appendObjectData(b, &p.ObjectData, false)
	b = appendOptTID(b, p.DataSerial)
	return appendTID(b, p.TTID)
}

func (p *AskStoreObject) decodeArgs(d *decoder) {
	if !d.tuple(7) {
		return
	}
	p.OID = d.oid()
	p.Serial = d.tid()
	d.objectData(&p.ObjectData)
	p.DataSerial = d.optTID()
	p.TTID = d.tid()
}

func (p *AnswerStoreObject) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendOptTID(b, p.Conflict)
}

func (p *AnswerStoreObject) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Conflict = d.optTID()
}

func (p *AbortTransaction) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendTID(b, p.TTID)
	return appendList(b, p.IDs, appendNodeID)
}

func (p *AbortTransaction) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.TTID = d.tid()
	p.IDs = list(d, 1, d.nodeID)
}

func (p *AskStoreTransaction) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 6)
	b = appendTID(b, p.TTID)
	b = msgpack.AppendBin(b, p.User)
	b = msgpack.AppendBin(b, p.Description)
	b = msgpack.AppendBin(b, p.Extension)
	b = appendList(b, p.OIDs, appendOID)
	return appendPackRequest(b, p.Pack)
}

func (p *AskStoreTransaction) decodeArgs(d *decoder) {
	if !d.tuple(6) {
		return
	}
	p.TTID = d.tid()
	p.User = d.Bin()
	p.Description = d.Bin()
	p.Extension = d.Bin()
	p.OIDs = d.oids()
	p.Pack = d.packRequest()
}

func (*AnswerStoreTransaction) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*AnswerStoreTransaction) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AskVoteTransaction) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendTID(b, p.TTID)
}

func (p *AskVoteTransaction) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TTID = d.tid()
}

func (*AnswerVoteTransaction) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*AnswerVoteTransaction) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AskObject) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendOID(b, p.OID)
	b = appendOptTID(b, p.At)
	return appendOptTID(b, p.Before)
}

func (p *AskObject) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.OID = d.oid()
	p.At = d.optTID()
	p.Before = d.optTID()
}

func (p *AnswerObject) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 7)
	b = appendOID(b, p.OID)
	b = appendTID(b, p.Serial)
	b = appendOptTID(b, p.NextSerial)
	b = appendObjectData(b, &p.ObjectData, true)
	return appendOptTID(b, p.DataSerial)
}

func (p *AnswerObject) decodeArgs(d *decoder) {
	if !d.tuple(7) {
		return
	}
	p.OID = d.oid()
	p.Serial = d.tid()
	p.NextSerial = d.optTID()
	d.objectData(&p.ObjectData)
	p.DataSerial = d.optTID()
}

func (p *AskTIDs) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendInt(b, p.First)
	b = appendInt(b, p.Last)
	return msgpack.AppendUint(b, uint64(p.Partition))
}

func (p *AskTIDs) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.First = d.int()
	p.Last = d.int()
	p.Partition = uint32(d.uint(math.MaxUint32))
}

func (p *AnswerTIDs) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendList(b, p.TIDs, appendTID)
}

func (p *AnswerTIDs) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TIDs = d.tids()
}

func (p *AskTransactionInformation) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendTID(b, p.TID)
}

func (p *AskTransactionInformation) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TID = d.tid()
}

func (p *AnswerTransactionInformation) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 6)
	b = appendTID(b, p.TID)
	b = msgpack.AppendBin(b, p.User)
	b = msgpack.AppendBin(b, p.Description)
	b = msgpack.AppendBin(b, p.Extension)
	b = msgpack.AppendBool(b, p.Packed)
	return appendList(b, p.OIDs, appendOID)
}

func (p *AnswerTransactionInformation) decodeArgs(d *decoder) {
	if !d.tuple(6) {
		return
	}
	p.TID = d.tid()
	p.User = d.Bin()
	p.Description = d.Bin()
	p.Extension = d.Bin()
	p.Packed = d.Bool()
	p.OIDs = d.oids()
}

func (p *AskObjectHistory) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendOID(b, p.OID)
	b = appendInt(b, p.First)
	return appendInt(b, p.Last)
}

func (p *AskObjectHistory) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.OID = d.oid()
	p.First = d.int()
	p.Last = d.int()
}

func (p *AnswerObjectHistory) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendOID(b, p.OID)
	return appendList(b, p.History, appendRevision)
}

func (p *AnswerObjectHistory) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.OID = d.oid()
	p.History = list(d, 12, d.revision)
}

func (p *AskPartitionList) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendInt(b, p.Min)
	b = appendInt(b, p.Max)
	return appendNodeID(b, p.ID)
}

func (p *AskPartitionList) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.Min = d.int()
	p.Max = d.int()
	p.ID = d.optID()
}

func (p *AnswerPartitionList) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendOpt(b, p.PTID, msgpack.AppendUint)
	b = appendInt(b, p.Replicas)
	return appendList(b, p.Rows, appendRow)
}

func (p *AnswerPartitionList) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.PTID = opt(d, d.Uint)
	p.Replicas = d.int()
	p.Rows = list(d, 1, d.row)
}

func (p *AskNodeList) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendOpt(b, p.Type, appendNodeType)
}

func (p *AskNodeList) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Type = opt(d, d.nodeType)
}

func (p *AnswerNodeList) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendList(b, p.Nodes, appendNode)
}

func (p *AnswerNodeList) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Nodes = list(d, 10, d.node)
}

func (p *SetNodeState) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendNodeID(b, p.ID)
	return appendNodeState(b, p.State)
}

func (p *SetNodeState) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.ID = d.nodeID()
	p.State = d.nodeState()
}

func (p *AddPendingNodes) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendList(b, p.IDs, appendNodeID)
}

func (p *AddPendingNodes) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.IDs = list(d, 1, d.nodeID)
}

func (p *TweakPartitionTable) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = msgpack.AppendBool(b, p.DryRun)
	return appendList(b, p.IDs, appendNodeID)
}

func (p *TweakPartitionTable) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.DryRun = d.Bool()
	p.IDs = list(d, 1, d.nodeID)
}

func (p *AnswerTweakPartitionTable) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = msgpack.AppendBool(b, p.Changed)
	return appendList(b, p.Rows, appendRow)
}

func (p *AnswerTweakPartitionTable) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.Changed = d.Bool()
	p.Rows = list(d, 1, d.row)
}

func (p *SetNumReplicas) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendInt(b, p.Replicas)
}

func (p *SetNumReplicas) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Replicas = d.int()
}

func (p *SetClusterState) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendClusterState(b, p.State)
}

func (p *SetClusterState) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.State = d.clusterState()
}

func (p *Repair) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendList(b, p.IDs, appendNodeID)
	return msgpack.AppendBool(b, p.DryRun)
}

func (p *Repair) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.IDs = list(d, 1, d.nodeID)
	p.DryRun = d.Bool()
}

func (p *NotifyRepair) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return msgpack.AppendBool(b, p.DryRun)
}

func (p *NotifyRepair) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.DryRun = d.Bool()
}

func (p *NotifyClusterInformation) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendClusterState(b, p.State)
}

func (p *NotifyClusterInformation) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.State = d.clusterState()
}

func (*AskClusterState) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*AskClusterState) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AnswerClusterState) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendOpt(b, p.State, appendClusterState)
}

func (p *AnswerClusterState) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.State = opt(d, d.clusterState)
}

func (p *AskObjectUndoSerial) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 4)
	b = appendTID(b, p.TTID)
	b = appendTID(b, p.LastTID)
	b = appendTID(b, p.Undone)
	return appendList(b, p.OIDs, appendOID)
}

func (p *AskObjectUndoSerial) decodeArgs(d *decoder) {
	if !d.tuple(4) {
		return
	}
	p.TTID = d.tid()
	p.LastTID = d.tid()
	p.Undone = d.tid()
	p.OIDs = d.oids()
}

func (p *AnswerObjectUndoSerial) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendMap(b, p.Undo, appendOID, appendUndoSerial)
}

func (p *AnswerObjectUndoSerial) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Undo = dict(d, 23, d.oid, d.undoSerial)
}

func (p *AskTIDsFrom) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 4)
	b = appendTID(b, p.Min)
	b = appendTID(b, p.Max)
	b = appendInt(b, p.Length)
	return appendInt(b, p.Partition)
}

func (p *AskTIDsFrom) decodeArgs(d *decoder) {
	if !d.tuple(4) {
		return
	}
	p.Min = d.tid()
	p.Max = d.tid()
	p.Length = d.int()
	p.Partition = d.int()
}

func (p *AnswerTIDsFrom) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendList(b, p.TIDs, appendTID)
}

func (p *AnswerTIDsFrom) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TIDs = d.tids()
}

func (p *AskOIDsFrom) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 4)
	b = appendInt(b, p.Partition)
	b = appendInt(b, p.Length)
	b = appendOID(b, p.Min)
	return appendTID(b, p.At)
}

func (p *AskOIDsFrom) decodeArgs(d *decoder) {
	if !d.tuple(4) {
		return
	}
	p.Partition = d.int()
	p.Length = d.int()
	p.Min = d.oid()
	p.At = d.tid()
}

func (p *AnswerOIDsFrom) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendOptOID(b, p.Next)
	return appendList(b, p.OIDs, appendOID)
}

func (p *AnswerOIDsFrom) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.Next = d.optOID()
	p.OIDs = d.oids()
}

func (p *WaitForPack) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendTID(b, p.ID)
}

func (p *WaitForPack) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.ID = d.tid()
}

func (*WaitedForPack) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*WaitedForPack) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AskPackOrders) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendTID(b, p.Min)
}

func (p *AskPackOrders) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Min = d.tid()
}

func (p *AnswerPackOrders) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendList(b, p.Orders, appendPackOrder)
}

func (p *AnswerPackOrders) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Orders = list(d, 24, d.packOrder)
}

func (p *NotifyPackSigned) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendList(b, p.Approved, appendTID)
	return appendList(b, p.Rejected, appendTID)
}

func (p *NotifyPackSigned) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.Approved = d.tids()
	p.Rejected = d.tids()
}

func (p *NotifyPackCompleted) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendTID(b, p.ID)
}

func (p *NotifyPackCompleted) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.ID = d.tid()
}

func (p *CheckReplicas) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendMap(b, p.Partitions, appendInt, appendOptNodeID)
	b = appendTID(b, p.Min)
	return appendOptTID(b, p.Max)
}

func (p *CheckReplicas) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.Partitions = dict(d, 2, d.int, d.optNodeID)
	p.Min = d.tid()
	p.Max = d.optTID()
}

func (p *CheckPartition) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 4)
	b = appendInt(b, p.Partition)
	b = msgpack.AppendArray(b, 2)
	b = msgpack.AppendBin(b, p.Upstream)
	b = appendAddress(b, p.Source)
	b = appendTID(b, p.Min)
	return appendTID(b, p.Max)
}

func (p *CheckPartition) decodeArgs(d *decoder) {
	if !d.tuple(4) {
		return
	}
	p.Partition = d.int()
	if !d.tuple(2) {
		return
	}
	p.Upstream = d.string()
	p.Source = d.optAddress()
	p.Min = d.tid()
	p.Max = d.tid()
}

func (p *AskCheckTIDRange) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 4)
	b = appendInt(b, p.Partition)
	b = appendInt(b, p.Length)
	b = appendTID(b, p.Min)
	return appendTID(b, p.Max)
}

func (p *AskCheckTIDRange) decodeArgs(d *decoder) {
	if !d.tuple(4) {
		return
	}
	p.Partition = d.int()
	p.Length = d.int()
	p.Min = d.tid()
	p.Max = d.tid()
}

func (p *AnswerCheckTIDRange) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendInt(b, p.Count)
	b = msgpack.AppendBin(b, p.Checksum[:])
	return appendTID(b, p.Last)
}

func (p *AnswerCheckTIDRange) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.Count = d.int()
	p.Checksum = d.hash()
	p.Last = d.tid()
}

func (p *AskCheckSerialRange) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 5)
	b = appendInt(b, p.Partition)
	b = appendInt(b, p.Length)
	b = appendTID(b, p.Min)
	b = appendTID(b, p.Max)
	return appendOID(b, p.MinOID)
}

func (p *AskCheckSerialRange) decodeArgs(d *decoder) {
	if !d.tuple(5) {
		return
	}
	p.Partition = d.int()
	p.Length = d.int()
	p.Min = d.tid()
	p.Max = d.tid()
	p.MinOID = d.oid()
}

func (p *AnswerCheckSerialRange) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 5)
	b = appendInt(b, p.Count)
	b = msgpack.AppendBin(b, p.TIDChecksum[:])
	b = appendTID(b, p.LastTID)
	b = msgpack.AppendBin(b, p.OIDChecksum[:])
	return appendOID(b, p.LastOID)
}

func (p *AnswerCheckSerialRange) decodeArgs(d *decoder) {
	if !d.tuple(5) {
		return
	}
	p.Count = d.int()
	p.TIDChecksum = d.hash()
	p.LastTID = d.tid()
	p.OIDChecksum = d.hash()
	p.LastOID = d.oid()
}

func (p *NotifyPartitionCorrupted) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendInt(b, p.Partition)
	return appendList(b, p.IDs, appendNodeID)
}

func (p *NotifyPartitionCorrupted) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.Partition = d.int()
	p.IDs = list(d, 1, d.nodeID)
}

func (*NotifyReady) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*NotifyReady) decodeArgs(d *decoder)      { d.tuple(0) }

func (*AskLastTransaction) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*AskLastTransaction) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AnswerLastTransaction) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendTID(b, p.TID)
}

func (p *AnswerLastTransaction) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TID = d.tid()
}

func (p *AskCheckCurrentSerial) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendTID(b, p.TTID)
	b = appendOID(b, p.OID)
	return appendTID(b, p.Serial)
}

func (p *AskCheckCurrentSerial) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.TTID = d.tid()
	p.OID = d.oid()
	p.Serial = d.tid()
}

func (p *AnswerCheckCurrentSerial) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendOptTID(b, p.Conflict)
}

func (p *AnswerCheckCurrentSerial) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Conflict = d.optTID()
}

func (p *NotifyTransactionFinished) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendTID(b, p.TTID)
	return appendTID(b, p.Max)
}

func (p *NotifyTransactionFinished) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.TTID = d.tid()
	p.Max = d.tid()
}

func (p *Replicate) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendTID(b, p.TID)
	b = msgpack.AppendBin(b, p.Upstream)
	return appendMap(b, p.Sources, appendInt, appendAddress)
}

func (p *Replicate) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.TID = d.tid()
	p.Upstream = d.string()
	p.Sources = dict(d, 2, d.int, d.optAddress)
}

func (p *NotifyReplicationDone) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = appendInt(b, p.Partition)
	return appendTID(b, p.TID)
}

func (p *NotifyReplicationDone) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.Partition = d.int()
	p.TID = d.tid()
}

func (p *AskFetchTransactions) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 6)
	b = appendInt(b, p.Partition)
	b = appendInt(b, p.Length)
	b = appendTID(b, p.Min)
	b = appendTID(b, p.Max)
	b = appendList(b, p.Have, appendTID)
	return msgpack.AppendBool(b, p.AskPack)
}

func (p *AskFetchTransactions) decodeArgs(d *decoder) {
	if !d.tuple(6) {
		return
	}
	p.Partition = d.int()
	p.Length = d.int()
	p.Min = d.tid()
	p.Max = d.tid()
	p.Have = d.tids()
	p.AskPack = d.Bool()
}

func (p *AnswerFetchTransactions) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendOptTID(b, p.Next)
	b = appendList(b, p.Delete, appendTID)
	return appendOptTID(b, p.Packed)
}

func (p *AnswerFetchTransactions) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.Next = d.optTID()
	p.Delete = d.tids()
	p.Packed = d.optTID()
}

func (p *AskFetchObjects) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 6)
	b = appendInt(b, p.Partition)
	b = appendInt(b, p.Length)
	b = appendTID(b, p.Min)
	b = appendTID(b, p.Max)
	b = appendOID(b, p.MinOID)
	return appendMap(b, p.Have, appendTID, appendOIDs)
}

func (p *AskFetchObjects) decodeArgs(d *decoder) {
	if !d.tuple(6) {
		return
	}
	p.Partition = d.int()
	p.Length = d.int()
	p.Min = d.tid()
	p.Max = d.tid()
	p.MinOID = d.oid()
	p.Have = dict(d, 11, d.tid, d.oids)
}

func (p *AnswerFetchObjects) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendOptTID(b, p.Next)
	b = appendOptOID(b, p.NextOID)
	return appendMap(b, p.Delete, appendTID, appendOIDs)
}

func (p *AnswerFetchObjects) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.Next = d.optTID()
	p.NextOID = d.optOID()
	p.Delete = dict(d, 11, d.tid, d.oids)
}

func (p *AddTransaction) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 8)
	b = appendTID(b, p.TID)
	b = msgpack.AppendBin(b, p.User)
	b = msgpack.AppendBin(b, p.Description)
	b = msgpack.AppendBin(b, p.Extension)
	b = msgpack.AppendBool(b, p.Packed)
	b = appendTID(b, p.TTID)
	b = appendList(b, p.OIDs, appendOID)
	return appendPackState(b, p.Pack)
}

func (p *AddTransaction) decodeArgs(d *decoder) {
	if !d.tuple(8) {
		return
	}
	p.TID = d.tid()
	p.User = d.Bin()
	p.Description = d.Bin()
	p.Extension = d.Bin()
	p.Packed = d.Bool()
	p.TTID = d.tid()
	p.OIDs = d.oids()
	p.Pack = d.packState()
}

func (p *AddObject) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 6)
	b = appendOID(b, p.OID)
	b = appendTID(b, p.Serial)
	b = appendObjectData(b, &p.ObjectData, false)
	return appendOptTID(b, p.DataSerial)
}

func (p *AddObject) decodeArgs(d *decoder) {
	if !d.tuple(6) {
		return
	}
	p.OID = d.oid()
	p.Serial = d.tid()
	d.objectData(&p.ObjectData)
	p.DataSerial = d.optTID()
}

func (p *Truncate) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendTID(b, p.TID)
}

func (p *Truncate) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.TID = d.tid()
}

func (*FlushLog) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*FlushLog) decodeArgs(d *decoder)      { d.tuple(0) }

func (*AskMonitorInformation) appendArgs(b []byte) []byte { return msgpack.AppendArray(b, 0) }
func (*AskMonitorInformation) decodeArgs(d *decoder)      { d.tuple(0) }

func (p *AnswerMonitorInformation) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 3)
	b = appendList(b, p.Warning, appendOptString)
	b = appendList(b, p.Problem, appendOptString)
	return msgpack.AppendBin(b, p.Summary)
}

func (p *AnswerMonitorInformation) decodeArgs(d *decoder) {
	if !d.tuple(3) {
		return
	}
	p.Warning = list(d, 1, d.optString)
	p.Problem = list(d, 1, d.optString)
	p.Summary = d.string()
}

func (p *NotifyMonitorInformation) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendValues(b, p.Info)
}

func (p *NotifyMonitorInformation) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Info = d.values(0)
}

func (p *NotifyUpstreamAdmin) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 1)
	return appendAddress(b, p.Addr)
}

func (p *NotifyUpstreamAdmin) decodeArgs(d *decoder) {
	if !d.tuple(1) {
		return
	}
	p.Addr = d.address()
}
