// Package following is what the nodes of a backup cluster tell each other, and the
// operator, beyond the protocol that all implementations have: how far the cluster
// follows the one that it is a backup of, what holds it back, and at which rate its
// storages may fetch. The nodes pass it on in NotifyMonitorInformation, and only to nodes
// that understand it: see [Message].
package following

import (
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Report is how far a backup cluster follows its upstream cluster.
type Report struct {
	Backup   tid.TID // what would be kept if the cluster stopped to follow now
	Readable tid.TID // what all readable cells have: clients see no more
	Upstream tid.TID // last transaction of the upstream cluster that is known, Zero if none is
	// Bound is the last transaction that is wanted by now: no later than Upstream, and
	// earlier during a delay, a hold, or outside of the window.
	Bound  tid.TID
	Due    time.Duration      // how far Readable is behind what is wanted by now, without delay and window
	Hold   proto.Opt[tid.TID] // nothing after it is copied
	Delay  time.Duration
	Closed bool       // outside of the window, or of the schedule
	Opens  time.Time  // when it is open again; zero if it is, or if that is not known
	Linked bool       // the master of the upstream cluster is connected
	Rate   int64      // most bytes per second of all storages together; 0: no limit
	Gap    [2]tid.TID // between these, ends excluded, nothing can be kept: the upstream cluster was packed; Zero, Zero: no gap
	Note   string     // what is wrong, and what to do about it, or ""
}

// Kind is what an [Order] is for.
type Kind uint8

const (
	Hold    Kind = iota // copy nothing after TID, or after what is readable now
	Release             // end the hold
	RunNow              // copy until caught up, whatever the schedule and the window say

	lastKind = RunNow
)

// Order is what an operator wants of a backup cluster.
type Order struct {
	Kind Kind
	TID  proto.Opt[tid.TID] // of Hold
}

// Stored is what a storage of a backup cluster has recorded of how far it follows.
type Stored struct {
	TID tid.TID    // all its readable cells are up to this
	Gap [2]tid.TID // between these, ends excluded, something is missing on it; Zero, Zero: no gap
}

// Terms are what a master tells the storages of a backup cluster.
type Terms struct {
	Rate  int64              // most bytes per second that the storage may fetch from upstream; 0: no limit
	Packs tid.TID            // pack orders up to this are executed: all cells of the cluster are beyond them
	Hold  proto.Opt[tid.TID] // to be remembered across restarts: see [HoldKey]
	// Paused tells that nothing more is to be fetched for now, after what was asked for.
	Paused bool
}
