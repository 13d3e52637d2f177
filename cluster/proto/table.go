package proto

// decodeArgs reads the arguments of the packet with the given code, or returns
// nil if there is no such code. One case per packet lets the decoder stay on the
// stack: the packet is the only allocation.
func decodeArgs(code uint16, d *decoder) Packet {
	switch code {
	case codeRequestIdentification:
		p := new(RequestIdentification)
		p.decodeArgs(d)
		return p
	case codePing:
		p := new(Ping)
		p.decodeArgs(d)
		return p
	case codeCloseClient:
		p := new(CloseClient)
		p.decodeArgs(d)
		return p
	case codeAskPrimary:
		p := new(AskPrimary)
		p.decodeArgs(d)
		return p
	case codeNotPrimaryMaster:
		p := new(NotPrimaryMaster)
		p.decodeArgs(d)
		return p
	case codeNotifyNodeInformation:
		p := new(NotifyNodeInformation)
		p.decodeArgs(d)
		return p
	case codeAskRecovery:
		p := new(AskRecovery)
		p.decodeArgs(d)
		return p
	case codeAskLastIDs:
		p := new(AskLastIDs)
		p.decodeArgs(d)
		return p
	case codeAskPartitionTable:
		p := new(AskPartitionTable)
		p.decodeArgs(d)
		return p
	case codeSendPartitionTable:
		p := new(SendPartitionTable)
		p.decodeArgs(d)
		return p
	case codeNotifyPartitionChanges:
		p := new(NotifyPartitionChanges)
		p.decodeArgs(d)
		return p
	case codeStartOperation:
		p := new(StartOperation)
		p.decodeArgs(d)
		return p
	case codeStopOperation:
		p := new(StopOperation)
		p.decodeArgs(d)
		return p
	case codeAskUnfinishedTransactions:
		p := new(AskUnfinishedTransactions)
		p.decodeArgs(d)
		return p
	case codeAskLockedTransactions:
		p := new(AskLockedTransactions)
		p.decodeArgs(d)
		return p
	case codeAskFinalTID:
		p := new(AskFinalTID)
		p.decodeArgs(d)
		return p
	case codeValidateTransaction:
		p := new(ValidateTransaction)
		p.decodeArgs(d)
		return p
	case codeAskBeginTransaction:
		p := new(AskBeginTransaction)
		p.decodeArgs(d)
		return p
	case codeFailedVote:
		p := new(FailedVote)
		p.decodeArgs(d)
		return p
	case codeAskFinishTransaction:
		p := new(AskFinishTransaction)
		p.decodeArgs(d)
		return p
	case codeAskLockInformation:
		p := new(AskLockInformation)
		p.decodeArgs(d)
		return p
	case codeInvalidateObjects:
		p := new(InvalidateObjects)
		p.decodeArgs(d)
		return p
	case codeInvalidatePartitions:
		p := new(InvalidatePartitions)
		p.decodeArgs(d)
		return p
	case codeNotifyUnlockInformation:
		p := new(NotifyUnlockInformation)
		p.decodeArgs(d)
		return p
	case codeAskNewOIDs:
		p := new(AskNewOIDs)
		p.decodeArgs(d)
		return p
	case codeNotifyDeadlock:
		p := new(NotifyDeadlock)
		p.decodeArgs(d)
		return p
	case codeAskRelockObject:
		p := new(AskRelockObject)
		p.decodeArgs(d)
		return p
	case codeAskStoreObject:
		p := new(AskStoreObject)
		p.decodeArgs(d)
		return p
	case codeAbortTransaction:
		p := new(AbortTransaction)
		p.decodeArgs(d)
		return p
	case codeAskStoreTransaction:
		p := new(AskStoreTransaction)
		p.decodeArgs(d)
		return p
	case codeAskVoteTransaction:
		p := new(AskVoteTransaction)
		p.decodeArgs(d)
		return p
	case codeAskObject:
		p := new(AskObject)
		p.decodeArgs(d)
		return p
	case codeAskTIDs:
		p := new(AskTIDs)
		p.decodeArgs(d)
		return p
	case codeAskTransactionInformation:
		p := new(AskTransactionInformation)
		p.decodeArgs(d)
		return p
	case codeAskObjectHistory:
		p := new(AskObjectHistory)
		p.decodeArgs(d)
		return p
	case codeAskPartitionList:
		p := new(AskPartitionList)
		p.decodeArgs(d)
		return p
	case codeAskNodeList:
		p := new(AskNodeList)
		p.decodeArgs(d)
		return p
	case codeSetNodeState:
		p := new(SetNodeState)
		p.decodeArgs(d)
		return p
	case codeAddPendingNodes:
		p := new(AddPendingNodes)
		p.decodeArgs(d)
		return p
	case codeTweakPartitionTable:
		p := new(TweakPartitionTable)
		p.decodeArgs(d)
		return p
	case codeSetNumReplicas:
		p := new(SetNumReplicas)
		p.decodeArgs(d)
		return p
	case codeSetClusterState:
		p := new(SetClusterState)
		p.decodeArgs(d)
		return p
	case codeRepair:
		p := new(Repair)
		p.decodeArgs(d)
		return p
	case codeNotifyRepair:
		p := new(NotifyRepair)
		p.decodeArgs(d)
		return p
	case codeNotifyClusterInformation:
		p := new(NotifyClusterInformation)
		p.decodeArgs(d)
		return p
	case codeAskClusterState:
		p := new(AskClusterState)
		p.decodeArgs(d)
		return p
	case codeAskObjectUndoSerial:
		p := new(AskObjectUndoSerial)
		p.decodeArgs(d)
		return p
	case codeAskTIDsFrom:
		p := new(AskTIDsFrom)
		p.decodeArgs(d)
		return p
	case codeAskOIDsFrom:
		p := new(AskOIDsFrom)
		p.decodeArgs(d)
		return p
	case codeWaitForPack:
		p := new(WaitForPack)
		p.decodeArgs(d)
		return p
	case codeAskPackOrders:
		p := new(AskPackOrders)
		p.decodeArgs(d)
		return p
	case codeNotifyPackSigned:
		p := new(NotifyPackSigned)
		p.decodeArgs(d)
		return p
	case codeNotifyPackCompleted:
		p := new(NotifyPackCompleted)
		p.decodeArgs(d)
		return p
	case codeCheckReplicas:
		p := new(CheckReplicas)
		p.decodeArgs(d)
		return p
	case codeCheckPartition:
		p := new(CheckPartition)
		p.decodeArgs(d)
		return p
	case codeAskCheckTIDRange:
		p := new(AskCheckTIDRange)
		p.decodeArgs(d)
		return p
	case codeAskCheckSerialRange:
		p := new(AskCheckSerialRange)
		p.decodeArgs(d)
		return p
	case codeNotifyPartitionCorrupted:
		p := new(NotifyPartitionCorrupted)
		p.decodeArgs(d)
		return p
	case codeNotifyReady:
		p := new(NotifyReady)
		p.decodeArgs(d)
		return p
	case codeAskLastTransaction:
		p := new(AskLastTransaction)
		p.decodeArgs(d)
		return p
	case codeAskCheckCurrentSerial:
		p := new(AskCheckCurrentSerial)
		p.decodeArgs(d)
		return p
	case codeNotifyTransactionFinished:
		p := new(NotifyTransactionFinished)
		p.decodeArgs(d)
		return p
	case codeReplicate:
		p := new(Replicate)
		p.decodeArgs(d)
		return p
	case codeNotifyReplicationDone:
		p := new(NotifyReplicationDone)
		p.decodeArgs(d)
		return p
	case codeAskFetchTransactions:
		p := new(AskFetchTransactions)
		p.decodeArgs(d)
		return p
	case codeAskFetchObjects:
		p := new(AskFetchObjects)
		p.decodeArgs(d)
		return p
	case codeAddTransaction:
		p := new(AddTransaction)
		p.decodeArgs(d)
		return p
	case codeAddObject:
		p := new(AddObject)
		p.decodeArgs(d)
		return p
	case codeTruncate:
		p := new(Truncate)
		p.decodeArgs(d)
		return p
	case codeFlushLog:
		p := new(FlushLog)
		p.decodeArgs(d)
		return p
	case codeAskMonitorInformation:
		p := new(AskMonitorInformation)
		p.decodeArgs(d)
		return p
	case codeNotifyMonitorInformation:
		p := new(NotifyMonitorInformation)
		p.decodeArgs(d)
		return p
	case codeNotifyUpstreamAdmin:
		p := new(NotifyUpstreamAdmin)
		p.decodeArgs(d)
		return p
	case codeError:
		p := new(Error)
		p.decodeArgs(d)
		return p
	case codeAcceptIdentification:
		p := new(AcceptIdentification)
		p.decodeArgs(d)
		return p
	case codePong:
		p := new(Pong)
		p.decodeArgs(d)
		return p
	case codeAnswerPrimary:
		p := new(AnswerPrimary)
		p.decodeArgs(d)
		return p
	case codeAnswerRecovery:
		p := new(AnswerRecovery)
		p.decodeArgs(d)
		return p
	case codeAnswerLastIDs:
		p := new(AnswerLastIDs)
		p.decodeArgs(d)
		return p
	case codeAnswerPartitionTable:
		p := new(AnswerPartitionTable)
		p.decodeArgs(d)
		return p
	case codeAnswerUnfinishedTransactions:
		p := new(AnswerUnfinishedTransactions)
		p.decodeArgs(d)
		return p
	case codeAnswerLockedTransactions:
		p := new(AnswerLockedTransactions)
		p.decodeArgs(d)
		return p
	case codeAnswerFinalTID:
		p := new(AnswerFinalTID)
		p.decodeArgs(d)
		return p
	case codeAnswerBeginTransaction:
		p := new(AnswerBeginTransaction)
		p.decodeArgs(d)
		return p
	case codeAnswerTransactionFinished:
		p := new(AnswerTransactionFinished)
		p.decodeArgs(d)
		return p
	case codeAnswerInformationLocked:
		p := new(AnswerInformationLocked)
		p.decodeArgs(d)
		return p
	case codeAnswerNewOIDs:
		p := new(AnswerNewOIDs)
		p.decodeArgs(d)
		return p
	case codeAnswerRelockObject:
		p := new(AnswerRelockObject)
		p.decodeArgs(d)
		return p
	case codeAnswerStoreObject:
		p := new(AnswerStoreObject)
		p.decodeArgs(d)
		return p
	case codeAnswerStoreTransaction:
		p := new(AnswerStoreTransaction)
		p.decodeArgs(d)
		return p
	case codeAnswerVoteTransaction:
		p := new(AnswerVoteTransaction)
		p.decodeArgs(d)
		return p
	case codeAnswerObject:
		p := new(AnswerObject)
		p.decodeArgs(d)
		return p
	case codeAnswerTIDs:
		p := new(AnswerTIDs)
		p.decodeArgs(d)
		return p
	case codeAnswerTransactionInformation:
		p := new(AnswerTransactionInformation)
		p.decodeArgs(d)
		return p
	case codeAnswerObjectHistory:
		p := new(AnswerObjectHistory)
		p.decodeArgs(d)
		return p
	case codeAnswerPartitionList:
		p := new(AnswerPartitionList)
		p.decodeArgs(d)
		return p
	case codeAnswerNodeList:
		p := new(AnswerNodeList)
		p.decodeArgs(d)
		return p
	case codeAnswerTweakPartitionTable:
		p := new(AnswerTweakPartitionTable)
		p.decodeArgs(d)
		return p
	case codeAnswerClusterState:
		p := new(AnswerClusterState)
		p.decodeArgs(d)
		return p
	case codeAnswerObjectUndoSerial:
		p := new(AnswerObjectUndoSerial)
		p.decodeArgs(d)
		return p
	case codeAnswerTIDsFrom:
		p := new(AnswerTIDsFrom)
		p.decodeArgs(d)
		return p
	case codeAnswerOIDsFrom:
		p := new(AnswerOIDsFrom)
		p.decodeArgs(d)
		return p
	case codeWaitedForPack:
		p := new(WaitedForPack)
		p.decodeArgs(d)
		return p
	case codeAnswerPackOrders:
		p := new(AnswerPackOrders)
		p.decodeArgs(d)
		return p
	case codeAnswerCheckTIDRange:
		p := new(AnswerCheckTIDRange)
		p.decodeArgs(d)
		return p
	case codeAnswerCheckSerialRange:
		p := new(AnswerCheckSerialRange)
		p.decodeArgs(d)
		return p
	case codeAnswerLastTransaction:
		p := new(AnswerLastTransaction)
		p.decodeArgs(d)
		return p
	case codeAnswerCheckCurrentSerial:
		p := new(AnswerCheckCurrentSerial)
		p.decodeArgs(d)
		return p
	case codeAnswerFetchTransactions:
		p := new(AnswerFetchTransactions)
		p.decodeArgs(d)
		return p
	case codeAnswerFetchObjects:
		p := new(AnswerFetchObjects)
		p.decodeArgs(d)
		return p
	case codeAnswerMonitorInformation:
		p := new(AnswerMonitorInformation)
		p.decodeArgs(d)
		return p
	}
	return nil
}

// names of packets, by code without bit 0x8000: notification or request, then answer.
var names = [...][2]string{
	{"RequestIdentification", "AcceptIdentification"},
	{"Ping", "Pong"},
	{"CloseClient", ""},
	{"AskPrimary", "AnswerPrimary"},
	{"NotPrimaryMaster", ""},
	{"NotifyNodeInformation", ""},
	{"AskRecovery", "AnswerRecovery"},
	{"AskLastIDs", "AnswerLastIDs"},
	{"AskPartitionTable", "AnswerPartitionTable"},
	{"SendPartitionTable", ""},
	{"NotifyPartitionChanges", ""},
	{"StartOperation", ""},
	{"StopOperation", ""},
	{"AskUnfinishedTransactions", "AnswerUnfinishedTransactions"},
	{"AskLockedTransactions", "AnswerLockedTransactions"},
	{"AskFinalTID", "AnswerFinalTID"},
	{"ValidateTransaction", ""},
	{"AskBeginTransaction", "AnswerBeginTransaction"},
	{"FailedVote", ""},
	{"AskFinishTransaction", "AnswerTransactionFinished"},
	{"AskLockInformation", "AnswerInformationLocked"},
	{"InvalidateObjects", ""},
	{"InvalidatePartitions", ""},
	{"NotifyUnlockInformation", ""},
	{"AskNewOIDs", "AnswerNewOIDs"},
	{"NotifyDeadlock", ""},
	{"AskRelockObject", "AnswerRelockObject"},
	{"AskStoreObject", "AnswerStoreObject"},
	{"AbortTransaction", ""},
	{"AskStoreTransaction", "AnswerStoreTransaction"},
	{"AskVoteTransaction", "AnswerVoteTransaction"},
	{"AskObject", "AnswerObject"},
	{"AskTIDs", "AnswerTIDs"},
	{"AskTransactionInformation", "AnswerTransactionInformation"},
	{"AskObjectHistory", "AnswerObjectHistory"},
	{"AskPartitionList", "AnswerPartitionList"},
	{"AskNodeList", "AnswerNodeList"},
	{"SetNodeState", ""},
	{"AddPendingNodes", ""},
	{"TweakPartitionTable", "AnswerTweakPartitionTable"},
	{"SetNumReplicas", ""},
	{"SetClusterState", ""},
	{"Repair", ""},
	{"NotifyRepair", ""},
	{"NotifyClusterInformation", ""},
	{"AskClusterState", "AnswerClusterState"},
	{"AskObjectUndoSerial", "AnswerObjectUndoSerial"},
	{"AskTIDsFrom", "AnswerTIDsFrom"},
	{"AskOIDsFrom", "AnswerOIDsFrom"},
	{"WaitForPack", "WaitedForPack"},
	{"AskPackOrders", "AnswerPackOrders"},
	{"NotifyPackSigned", ""},
	{"NotifyPackCompleted", ""},
	{"CheckReplicas", ""},
	{"CheckPartition", ""},
	{"AskCheckTIDRange", "AnswerCheckTIDRange"},
	{"AskCheckSerialRange", "AnswerCheckSerialRange"},
	{"NotifyPartitionCorrupted", ""},
	{"NotifyReady", ""},
	{"AskLastTransaction", "AnswerLastTransaction"},
	{"AskCheckCurrentSerial", "AnswerCheckCurrentSerial"},
	{"NotifyTransactionFinished", ""},
	{"Replicate", ""},
	{"NotifyReplicationDone", ""},
	{"AskFetchTransactions", "AnswerFetchTransactions"},
	{"AskFetchObjects", "AnswerFetchObjects"},
	{"AddTransaction", ""},
	{"AddObject", ""},
	{"Truncate", ""},
	{"FlushLog", ""},
	{"AskMonitorInformation", "AnswerMonitorInformation"},
	{"NotifyMonitorInformation", ""},
	{"NotifyUpstreamAdmin", ""},
}
