// Package importer is a backend that serves databases while it copies them into
// another backend.
//
// # Invariant
//
// At any time the history is that of the sources up to a TID, the end, followed by what
// clients have committed since. What is copied and committed is a prefix of it: all
// transactions up to a TID, done, whole. So every answer comes from the copy for what is at or
// before done or after end, and from the sources between, whatever of those is already written.
package importer

import (
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/neozodb/neo/cluster/pace"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Native is the backend that becomes the database of the node.
type Native interface {
	backend.Backend
	backend.Importing
}

// committedReader is implemented by a native backend whose reads can do without what is
// not committed.
type committedReader interface {
	// ReadCommitted tells that reads need not see what is added up to a TID before it is
	// committed: the sources answer until then, and reads do not wait for the copy.
	// Zero: they see everything.
	ReadCommitted(upTo tid.TID)
}

// Backend is the database of a node while it imports, and afterwards.
type Backend struct {
	reading
	backend.Writing // of the native backend
	keeping

	native Native
	source txn.Database  // all sources, merged
	end    tid.TID       // last transaction of the sources
	oids   tid.OID       // first id above all objects of the sources
	done   atomic.Uint64 // everything of the sources up to this TID is in the native backend
	own    atomic.Bool   // the sources are no longer needed: the native backend answers all
	log    *slog.Logger

	served   *pace.Service // when clients were
	copying  copying
	prepared bool       // for Run, which will end the import
	back     *writeBack // nil: it is not configured

	from        *sources
	first       atomic.Uint64 // first transaction of the sources, 0: not known
	np          atomic.Int64  // number of partitions, 0: not known
	closeSource func() error  // closes the sources; called once, by Close. It may be nil
	// ahead writes a record of the sources to the native backend before its turn, exactly as
	// the copy will. nil: an undo of what is not copied yet is refused.
	ahead func(r *txn.Record) error

	m      sync.Mutex
	moved  chan struct{}       // closed when done, own or active change; nil: nothing waits
	active bool                // transactions are being copied
	begun  map[tid.OID]tid.TID // the first revisions of objects after end, as far as they are known
	cuts   int                 // how often something after end was deleted
}

// reading answers from sources and native backend.
type reading struct {
	backend.Reading // of the native backend
	b               *Backend
}

// keeping refuses what an import cannot bear.
type keeping struct {
	backend.Keeping // of the native backend
	b               *Backend
}
