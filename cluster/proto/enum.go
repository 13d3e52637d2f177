package proto

import (
	"fmt"
	"strconv"
)

// CellState is how complete a copy of a partition is.
type CellState uint8

const (
	OutOfDate CellState = iota // written to, not read: replicating, or its node was away
	UpToDate
	Feeding   // complete, to be discarded once a replacement is up to date
	Corrupted // a replica check found a difference
	Discarded // only in packets: drop the cell
)

// Readable reports whether objects may be read from a cell in this state.
func (s CellState) Readable() bool { return s == UpToDate || s == Feeding }

func (s CellState) String() string {
	return name(int(s), "OUT_OF_DATE", "UP_TO_DATE", "FEEDING", "CORRUPTED", "DISCARDED")
}

// ClusterState is what a cluster is doing as a whole.
type ClusterState uint8

const (
	Recovering ClusterState = iota
	Verifying
	Running
	Stopping
	StartingBackup
	BackingUp
	StoppingBackup
)

func (s ClusterState) String() string {
	return name(int(s), "RECOVERING", "VERIFYING", "RUNNING", "STOPPING", "STARTING_BACKUP", "BACKINGUP", "STOPPING_BACKUP")
}

// NodeState is what the master says of a node. UNKNOWN and RUNNING also have
// these names in ClusterState's list, hence the prefix.
type NodeState uint8

const (
	NodeUnknown NodeState = iota // forget it; to a storage about itself: erase the database
	NodeDown                     // not connected; to a node about itself: shut down
	NodeRunning
	NodePending // an identified storage that is not part of the operation
)

func (s NodeState) String() string { return name(int(s), "UNKNOWN", "DOWN", "RUNNING", "PENDING") }

// NodeType is the role of a node.
type NodeType uint8

const (
	Master NodeType = iota
	Storage
	Client
	Admin
)

func (t NodeType) String() string { return name(int(t), "MASTER", "STORAGE", "CLIENT", "ADMIN") }

// ErrorCode says why a request was refused, or that it succeeded (ACK). It is a
// plain integer on the wire.
type ErrorCode uint8

const (
	Ack ErrorCode = iota
	Denied
	NotReady
	OIDNotFound
	TIDNotFound
	OIDDoesNotExist
	ProtocolError
	ReplicationError
	CheckingError
	BackendNotImplemented
	NonReadableCell
	ReadOnlyAccess
	IncompleteTransaction
	UndoPackError
)

func (c ErrorCode) String() string {
	return name(int(c), "ACK", "DENIED", "NOT_READY", "OID_NOT_FOUND", "TID_NOT_FOUND", "OID_DOES_NOT_EXIST",
		"PROTOCOL_ERROR", "REPLICATION_ERROR", "CHECKING_ERROR", "BACKEND_NOT_IMPLEMENTED", "NON_READABLE_CELL",
		"READ_ONLY_ACCESS", "INCOMPLETE_TRANSACTION", "UNDO_PACK_ERROR")
}

func name(i int, names ...string) string {
	if i < len(names) {
		return names[i]
	}
	return strconv.Itoa(i)
}

// NodeID identifies a node in its cluster. The high byte tells its type (see
// [NodeID.Type]); negative ids are temporary. Zero is "none", nil on the wire.
type NodeID int32

// first returns the smallest id of a namespace, less one.
func (t NodeType) namespace() int32 {
	return -int32([...]int{Master: 1, Storage: 0, Client: 2, Admin: 3}[t]) << 28
}

// ID returns the n-th id (from 1) of the nodes of this type: S1, M1, ...
func (t NodeType) ID(n int) NodeID { return NodeID(t.namespace() + int32(n)) }

// Type returns the type of node that the id was made for.
func (id NodeID) Type() NodeType {
	switch {
	case id >= 0:
		return Storage
	case int32(id) >= Master.namespace():
		return Master
	case int32(id) >= Client.namespace():
		return Client
	}
	return Admin
}

// String returns the operator's form of an id: S1, M2, C7, A1, or None.
func (id NodeID) String() string {
	if id == 0 {
		return "None"
	}
	return fmt.Sprintf("%c%d", "MSCA"[id.Type()], uint32(id)&0xffffff)
}
