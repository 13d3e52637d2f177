// Package importing is what the import of a storage node tells the operator, and what
// the operator tells it. The nodes between them pass it on as it is, in
// NotifyMonitorInformation, and only to nodes that understand it: see [Message].
package importing

import (
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// State is how far an import is.
type State uint8

const (
	Waiting   State = iota // for the node to become operational
	Copying                // transactions, oldest first
	Paused                 // by order of the operator
	Failed                 // Report.Note says why. The node serves sources and copy as before
	Comparing              // everything is copied: each record of the sources with the copy
	Different              // the comparison has found differences: the sources are still served
	Done                   // everything is copied and equal: the node serves its own tables
)

var stateNames = [...]string{"waiting", "copying", "paused", "failed", "comparing", "different", "done"}

func (s State) String() string { return stateNames[s] }

// Report is the state of an import.
type Report struct {
	State State
	// Last is the last transaction that is copied, End the last one of the sources.
	Last, End tid.TID
	// Transactions, Records and Bytes of data are those copied so far, by earlier runs
	// too as far as that is known.
	Transactions, Records, Bytes int64
	// Twice is how many records were left out because the same transaction has a later
	// one of the same object, Blobs how many have data in files that are not imported, and
	// Skipped how many have no data in the copy, or are not in it, by order of the operator.
	Twice, Blobs, Skipped int64
	// Position of the copy in the sources, and their Size, in bytes; 0: not known.
	Position, Size int64
	Rate           float64       // bytes of the sources per second, lately
	Left           time.Duration // an estimate; 0: not known
	// Slow says what the copy waits for most: "source", "processor", "database",
	// "clients", "limit"; "" if that is not known.
	Slow  string
	Limit int64 // bytes per second; 0: none
	// Compared is the result of the last comparison that came to its end, Differences
	// how many it found.
	Compared    tid.TID // up to which; Zero: there was none
	ComparedAt  time.Time
	Differences int64
	// WriteBack is the last transaction written back to the source, Zero if that is not
	// configured; Behind is how many are still to be written, at least.
	WriteBack tid.TID
	Behind    int64
	Note      string // an error and what to do about it, or ""
}

// Kind is what an Order is for.
type Kind uint8

const (
	Pause   Kind = iota // stop to copy, serve on
	Resume              // go on, after Pause or an error
	Limit               // copy at most so many bytes per second
	Compare             // what is copied with the sources, now
	Skip                // go on without a record that cannot be read
)

// Order is what an operator wants of an import.
type Order struct {
	Kind Kind
	Rate int64              // of Limit; 0: no limit
	TID  tid.TID            // of Skip
	OID  proto.Opt[tid.OID] // of Skip; absent: the whole transaction
}
