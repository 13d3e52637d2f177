# What neolog needs to know to print the packets of a node log: it executes this
# text, which is kept, compressed by bz2, in table "protocol" of each log. Packets
# are logged without the data of their objects: no class has a data_path, which
# tells neolog -A what to decompress.
PROTOCOL_VERSION = 5

import msgpack as _msgpack

_TYPES = (
    ('CellStates', 'OUT_OF_DATE UP_TO_DATE FEEDING CORRUPTED DISCARDED'),
    ('ClusterStates', 'RECOVERING VERIFYING RUNNING STOPPING STARTING_BACKUP'
                      ' BACKINGUP STOPPING_BACKUP'),
    ('ErrorCodes', 'ACK DENIED NOT_READY OID_NOT_FOUND TID_NOT_FOUND'
                   ' OID_DOES_NOT_EXIST PROTOCOL_ERROR REPLICATION_ERROR'
                   ' CHECKING_ERROR BACKEND_NOT_IMPLEMENTED NON_READABLE_CELL'
                   ' READ_ONLY_ACCESS INCOMPLETE_TRANSACTION UNDO_PACK_ERROR'),
    ('NodeStates', 'UNKNOWN DOWN RUNNING PENDING'),
    ('NodeTypes', 'MASTER STORAGE CLIENT ADMIN'),
)


class _Name(str):
    """The name of a value, shown without quotes."""

    __slots__ = ()

    def __repr__(self):
        return str(self)


def _enum(ext, value):
    names = _TYPES[ext][1].split()
    if 0 <= value < len(names):
        return _Name(names[value])
    return '%s(%s)' % (_TYPES[ext][0], value)


def _ext(code, data):
    if 0 <= code < len(_TYPES):
        return _enum(code, _msgpack.unpackb(bytes(data)))
    return _msgpack.ExtType(code, data)


def Unpacker(strict_map_key=False, use_list=True):
    return _msgpack.Unpacker(ext_hook=_ext, raw=True, use_list=use_list,
                             strict_map_key=strict_map_key)


def uuid_str(nid):
    if not nid:
        return str(nid)
    kind = 0 if nid > 0 else ((-nid - 1) >> 28) + 1
    return '%s%s' % ('SMCA'[kind], nid & 0xffffff)


def _text(value):
    if isinstance(value, bytes) and str is not bytes:
        return value.decode('utf-8', 'replace')
    return value


def _error(code, message=b''):
    code = _enum(2, code)
    return (code, message), [' ! %s (%s)' % (code, _text(message))]


def _nodes(timestamp, nodes=()):
    rows = []
    for kind, addr, nid, state, since in nodes:
        if addr:
            host = _text(addr[0])
            addr = ('[%s]:%s' if ':' in host else '%s:%s') % (host, addr[1])
        rows.append((uuid_str(nid), kind, addr or '', state, since))
    width = [max(len(str(row[i])) for row in rows) for i in range(4)] \
        if rows else ()
    return (timestamp,), [
        ' ! ' + ' | '.join([str(cell).ljust(width[i])
                            for i, cell in enumerate(row[:4])] + [str(row[4])])
        for row in rows]


_PRINT = {0x8000: _error, 0x0006: _nodes}

Packets = {}
for _line in '''
0x8000 Error
0x0001 RequestIdentification
0x8001 AcceptIdentification
0x0002 Ping
0x8002 Pong
0x0003 CloseClient
0x0004 AskPrimary
0x8004 AnswerPrimary
0x0005 NotPrimaryMaster
0x0006 NotifyNodeInformation
0x0007 AskRecovery
0x8007 AnswerRecovery
0x0008 AskLastIDs
0x8008 AnswerLastIDs
0x0009 AskPartitionTable
0x8009 AnswerPartitionTable
0x000a SendPartitionTable
0x000b NotifyPartitionChanges
0x000c StartOperation
0x000d StopOperation
0x000e AskUnfinishedTransactions
0x800e AnswerUnfinishedTransactions
0x000f AskLockedTransactions
0x800f AnswerLockedTransactions
0x0010 AskFinalTID
0x8010 AnswerFinalTID
0x0011 ValidateTransaction
0x0012 AskBeginTransaction
0x8012 AnswerBeginTransaction
0x0013 FailedVote
0x0014 AskFinishTransaction
0x8014 AnswerTransactionFinished
0x0015 AskLockInformation
0x8015 AnswerInformationLocked
0x0016 InvalidateObjects
0x0017 InvalidatePartitions
0x0018 NotifyUnlockInformation
0x0019 AskNewOIDs
0x8019 AnswerNewOIDs
0x001a NotifyDeadlock
0x001b AskRelockObject
0x801b AnswerRelockObject
0x001c AskStoreObject
0x801c AnswerStoreObject
0x001d AbortTransaction
0x001e AskStoreTransaction
0x801e AnswerStoreTransaction
0x001f AskVoteTransaction
0x801f AnswerVoteTransaction
0x0020 AskObject
0x8020 AnswerObject
0x0021 AskTIDs
0x8021 AnswerTIDs
0x0022 AskTransactionInformation
0x8022 AnswerTransactionInformation
0x0023 AskObjectHistory
0x8023 AnswerObjectHistory
0x0024 AskPartitionList
0x8024 AnswerPartitionList
0x0025 AskNodeList
0x8025 AnswerNodeList
0x0026 SetNodeState
0x0027 AddPendingNodes
0x0028 TweakPartitionTable
0x8028 AnswerTweakPartitionTable
0x0029 SetNumReplicas
0x002a SetClusterState
0x002b Repair
0x002c NotifyRepair
0x002d NotifyClusterInformation
0x002e AskClusterState
0x802e AnswerClusterState
0x002f AskObjectUndoSerial
0x802f AnswerObjectUndoSerial
0x0030 AskTIDsFrom
0x8030 AnswerTIDsFrom
0x0031 AskOIDsFrom
0x8031 AnswerOIDsFrom
0x0032 WaitForPack
0x8032 WaitedForPack
0x0033 AskPackOrders
0x8033 AnswerPackOrders
0x0034 NotifyPackSigned
0x0035 NotifyPackCompleted
0x0036 CheckReplicas
0x0037 CheckPartition
0x0038 AskCheckTIDRange
0x8038 AnswerCheckTIDRange
0x0039 AskCheckSerialRange
0x8039 AnswerCheckSerialRange
0x003a NotifyPartitionCorrupted
0x003b NotifyReady
0x003c AskLastTransaction
0x803c AnswerLastTransaction
0x003d AskCheckCurrentSerial
0x803d AnswerCheckCurrentSerial
0x003e NotifyTransactionFinished
0x003f Replicate
0x0040 NotifyReplicationDone
0x0041 AskFetchTransactions
0x8041 AnswerFetchTransactions
0x0042 AskFetchObjects
0x8042 AnswerFetchObjects
0x0043 AddTransaction
0x0044 AddObject
0x0045 Truncate
0x0046 FlushLog
0x0047 AskMonitorInformation
0x8047 AnswerMonitorInformation
0x0048 NotifyMonitorInformation
0x0049 NotifyUpstreamAdmin
'''.split('\n'):
    if _line:
        _code, _name = _line.split()
        _code = int(_code, 16)
        _class = type(_name, (object,), {'_code': _code})
        if _code in _PRINT:
            _class._neolog = staticmethod(_PRINT[_code])
        Packets[_code] = _class
