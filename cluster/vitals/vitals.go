// Package vitals is what nodes tell of themselves, beyond the protocol that all
// implementations have, so that an operator knows which machine and which database a node is,
// and how much it does. The primary master passes it on to the admins, and they to operators,
// in NotifyMonitorInformation, and only to nodes that understand it: see [Message].
//
// # Invariant
//
// Nothing that a node does depends on what another one says here.
package vitals

import (
	"os"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Every is how often a node tells what has changed, at most.
const Every = 5 * time.Second

// Self is what does not change while a node runs. The zero Self says nothing.
type Self struct {
	Host     string    // name of the machine
	Version  string    // of the program
	Started  time.Time // when its process began; zero: not known
	Adapter  string    // of a storage: SQLite, MySQL, Importer
	Database string    // of a storage: path, or database without password
}

// NewSelf returns what a process of this machine says that begins now.
func NewSelf(version string) Self {
	host, err := os.Hostname()
	if err != nil {
		host = "" // not known
	}
	return Self{Host: host, Version: version, Started: time.Now().UTC()}
}

// Report is what a node tells of itself.
type Report struct {
	Self
	PackDisabled bool  // a storage does not execute pack orders
	Commits      int64 // transactions since the node began; of a storage: in which it took part
	Loads        int64 // records that a storage has read for clients since it began
	Copy         Copy  // of a storage: what it gets from another one now
}

// Copy is the replication of a cell. The zero Copy is none.
type Copy struct {
	Active    bool
	Partition int
	// Reached is up to where records are there, Zero as long as transactions are copied;
	// End is the last transaction that is wanted.
	Reached, End tid.TID
}

// Node is what an admin knows of a node.
type Node struct {
	ID proto.NodeID
	Report
	// Since is when it came into its state; zero: not known.
	Since time.Time
	// Known tells that the node has reported: else only Since is set.
	Known bool
	// Rates per second, lately.
	CommitRate, LoadRate float64
}

// Pack is the last pack order.
type Pack struct {
	Order   tid.TID // transaction that gave it; Zero: there was none
	UpTo    tid.TID // what was replaced or deleted up to then goes
	Partial bool    // it is for some objects only
	Signed  bool    // it is approved
	Done    bool    // executed by all storages that have readable cells
	Waiting []proto.NodeID
}

// Check is the last check of replicas.
type Check struct {
	Begun       time.Time // zero: not known
	Ended       time.Time // zero: it goes on
	Complete    bool      // all that was to be compared was
	Partitions  int
	Rows        int // transactions and records compared
	Differences int
	Nodes       []proto.NodeID // that differ
	Differ      []int          // partitions that had differences when they were last checked
}
