// Package proto holds the packets of the NEO protocol, version 5: typed values,
// and their msgpack bytes. Bytes to values and values to bytes, nothing more.
//
// # Ownership
//
// The byte slices of a decoded packet alias the bytes it was decoded from, which
// are never written again: they may be kept for ever, but a small slice that is
// kept pins the buffer around it, so copy what stays in memory.
//
// # Invariant
//
// Whatever bytes arrive, decoding returns a packet or an error; it never panics
// and never allocates more than a small multiple of the bytes received.
package proto

import (
	"crypto/sha1"
	"fmt"
	"net"
	"strconv"

	"github.com/neozodb/neo/cluster/tid"
)

// Version of the protocol, exchanged in the handshake.
const Version = 5

// MaxElement is the size in bytes above which Python peers die of a single
// binary element: never sent, refused when received.
const MaxElement = 64 << 20

// InvalidPartition in AskTIDs means all readable partitions of the node.
const InvalidPartition = 0xffffffff

// MaxOIDs is the number of oids that a transaction or a pack order must stay below.
const MaxOIDs = 0x200000

// Handshake is sent by both sides before anything else.
var Handshake = [6]byte{0x92, 0xa3, 'N', 'E', 'O', Version}

// Hash is the SHA-1 of stored bytes; ZeroHash stands for "no data".
type Hash [sha1.Size]byte

// ZeroHash marks a record without data (deletion, creation undone).
var ZeroHash Hash

// Opt is a value that may be absent: nil on the wire.
type Opt[T any] struct {
	V  T
	OK bool
}

// Some returns a present value.
func Some[T any](v T) Opt[T] { return Opt[T]{v, true} }

// Address is where a node listens. The zero Address is "none", nil on the wire.
type Address struct {
	Host string // numeric IP in text form
	Port uint16
}

// IsZero reports whether there is no address.
func (a Address) IsZero() bool { return a == Address{} }

// String returns host:port, IPv6 hosts in brackets.
func (a Address) String() string {
	if a.IsZero() {
		return ""
	}
	return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}

// Packet is any message. A *Type of this package implements it.
type Packet interface {
	Code() uint16 // with bit 0x8000 for an answer
	appendArgs([]byte) []byte
	decodeArgs(*decoder)
}

// Request is a packet that expects an answer: a packet with AnswerCode, or an Error.
type Request interface {
	Packet
	AnswerCode() uint16
}

// Error answers a request that failed, or one documented to be answered by
// Error(ACK). It is a Go error too, which callers test for its Code.
type Error struct {
	ErrCode ErrorCode
	Message string
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.ErrCode.String()
	}
	return fmt.Sprintf("%v: %s", e.ErrCode, e.Message)
}

// Errorf makes an Error.
func Errorf(code ErrorCode, format string, args ...any) *Error {
	return &Error{code, fmt.Sprintf(format, args...)}
}

// ConfirmStart begins the message of a refusal (Denied) of the order to start, which is
// to set the cluster state VERIFYING, where that may lose transactions. The same order is
// obeyed if it is given again as this says, which any implementation can do: not sooner,
// so that a script that repeats what has failed does not confirm. After the order to set
// the state RECOVERING, which is refused, it is obeyed at once; one to set the state
// RUNNING, refused too, lets the first order not count.
const ConfirmStart = "NOT STARTED, TRANSACTIONS MAY BE LOST. The same order, given again after 3 seconds and within 10 minutes, starts all the same. "

// Node describes a node as the master publishes it.
type Node struct {
	Type  NodeType
	Addr  Address
	ID    NodeID // 0: a master only known by address
	State NodeState
	// IDTimestamp tells successive holders of an id apart. Absent for the
	// primary master.
	IDTimestamp Opt[float64]
}

// Cell is one copy of a partition.
type Cell struct {
	ID    NodeID
	State CellState
}

// CellChange is one change of the partition table.
type CellChange struct {
	Partition int
	ID        NodeID
	State     CellState
}

// PackOrder is an order to drop history, identified by the TID of the
// transaction that carried it.
type PackOrder struct {
	ID       tid.TID
	Approved Opt[bool]
	Partial  bool
	OIDs     []tid.OID // if Partial
	Time     tid.TID   // pack up to here
}

// PackRequest is the pack order inside a commit: all objects if OIDs is empty
// (an empty list on the wire, which would mean none, is refused).
type PackRequest struct {
	OIDs []tid.OID
	Time tid.TID
}

// ObjectData is a record as stored: Checksum is the SHA-1 of Data as it is,
// compressed or not; ZeroHash and no data for an absent object.
type ObjectData struct {
	Compression uint8
	Checksum    Hash
	Data        []byte
}

// Value is an item of the "extra" map of RequestIdentification or of
// NotifyMonitorInformation: one of []byte, []Value, int64, bool, float64, nil,
// map[string]Value, ClusterState, map[CellState]int, or else [Raw]. A sender may
// also use string, int, []string and []int.
type Value any
