// Package pending holds the transactions in progress on a storage node: their
// write locks, the objects locked for reading while a commit is being completed,
// and the requests that wait for either.
//
// A [Manager] decides and writes to its [Database]; it neither sends nor commits.
// What must be sent is returned by [Manager.Effects], in order. The same calls on
// the same database give the same effects.
//
// # Invariants
//
// Two transactions never hold the write lock of one object, unless this node
// cannot judge for lack of data (lockless, in a partition being replicated).
//
// A transaction that can commit has for each of its objects, here or on a node
// that has the data, a lock that was taken when the base revision was the last one.
//
// What a client was told to be stored stays until its transaction is over, or the client is
// told otherwise, or the cell is discarded.
//
// An object of a transaction whose final TID is known is not read before the
// transaction is in the final tables.
package pending

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// maxForgotten bounds the memory of aborted transactions.
const maxForgotten = 1 << 16

// Database is what the transactions in progress need of a backend. See there.
type Database interface {
	// LastObjectTID may return [backend.ErrNotPrepared]: see [Prepare].
	LastObjectTID(oid tid.OID) (proto.Opt[tid.TID], error)
	// Deleted reports whether the revision of an object, its last one, deletes it.
	Deleted(oid tid.OID, t tid.TID) (bool, error)
	SetReplicated(partition int)
	HoldData(oid tid.OID, d proto.ObjectData, dataSerial proto.Opt[tid.TID]) (backend.DataID, error)
	ReleaseData(ids []backend.DataID, prune bool) error
	LoadData(id backend.DataID) (proto.ObjectData, error)
	Vote(ttid tid.TID, stores []backend.Store, meta *backend.Meta, pack *proto.PackRequest) error
	Lock(ttid, final tid.TID, approvePack bool) error
	Unlock(ttid, final tid.TID, meta, objects, pack bool) error
	Abort(ttid tid.TID) error
	DropUnfinishedPartitions(partitions []int) error
}

// Request is where an answer goes.
type Request struct {
	Conn any // comparable; nil: nobody
	ID   uint32
}

// Kind says what to do with an effect.
type Kind int

const (
	Answer        Kind = iota // send Packet in answer to Request
	AnswerDurable             // the same, after a commit of all that was written before
	Retry                     // Packet, of Request, need not wait any more
	NotifyClient              // send Packet to Client
	NotifyMaster              // send Packet to the master
	Prepare                   // call [Manager.Prepared] when the database knows the last revision of OID
)

// Effect is something to do for the owner of a manager. An answer that is a
// [proto.Error] with the code ProtocolError also ends the connection.
type Effect struct {
	Kind    Kind
	Request Request
	Client  proto.NodeID
	Packet  proto.Packet
	OID     tid.OID
}

// op is what a transaction does with one object.
type op struct {
	serial   tid.TID // base revision
	stored   bool    // false: only checked
	store    backend.Store
	lockless bool
	deadlock bool // its client was told
}

type transaction struct {
	ttid   tid.TID
	client proto.NodeID
	ops    map[tid.OID]*op
	voted  bool
	meta   bool    // the metadata is here
	final  tid.TID // Zero before the lock
	pack   bool
	queued int // requests that wait
}

// Manager owns the transactions in progress. Its methods are for one goroutine,
// except [Manager.ObjectLocked] and [Manager.TransactionLocked]. An error is one
// of the database, after which neither can be trusted.
type Manager struct {
	db      Database
	np      int
	txns    map[tid.TID]*transaction
	locks   map[tid.OID]tid.TID // write locks
	effects []Effect
	dirty   bool
	counts  Counts

	writes  []*write           // by ttid, then in order of arrival
	asked   map[tid.OID]bool   // objects whose last revision the database learns
	unknown proto.Opt[tid.OID] // the object whose last revision it could not learn
	reads   []read
	running bool // the writes are being retried
	again   bool

	replicating map[int]bool
	// replicated partitions have all data, but not yet only checked locks: the
	// value is what to announce then. Absent once announced.
	replicated map[int]proto.Opt[tid.TID]

	// forgotten are transactions aborted here but perhaps not for the master.
	// The value is the client if it was lost, and perhaps only by this node: what it
	// stored is gone, so that it must neither store more nor vote. None of them may
	// be locked.
	forgotten map[tid.TID]proto.NodeID
	// foreign were locked without having stored anything here.
	foreign map[tid.TID]bool

	mu        sync.RWMutex
	readLocks map[tid.OID]tid.TID
	lockedMin tid.TID // least final TID that is locked, Invalid if none
}

// New returns a manager without transactions, for a table of np partitions.
func New(db Database, np int) *Manager {
	return &Manager{
		db: db, np: np,
		txns:        map[tid.TID]*transaction{},
		locks:       map[tid.OID]tid.TID{},
		asked:       map[tid.OID]bool{},
		replicating: map[int]bool{},
		replicated:  map[int]proto.Opt[tid.TID]{},
		forgotten:   map[tid.TID]proto.NodeID{},
		foreign:     map[tid.TID]bool{},
		readLocks:   map[tid.OID]tid.TID{},
		lockedMin:   tid.Invalid,
	}
}

// Effects returns what is to be done since the last call, in order. The slice
// may be used until the manager is called again.
func (m *Manager) Effects() []Effect {
	e := m.effects
	m.effects = m.effects[len(m.effects):]
	if cap(m.effects) < 16 {
		m.effects = make([]Effect, 0, 256)
	}
	return e
}

// Dirty reports whether something was written since the last call that is to be
// committed soon, though nobody waits for it.
func (m *Manager) Dirty() bool {
	d := m.dirty
	m.dirty = false
	return d
}

// Counts are what a manager has counted.
type Counts struct {
	Waits     uint64 // requests that had to wait for a write lock
	Conflicts uint64 // requests refused because the object has a later revision
	Deadlocks uint64 // locks that a transaction was asked to give to an older one
}

// Plus returns the sum.
func (c Counts) Plus(o Counts) Counts {
	return Counts{c.Waits + o.Waits, c.Conflicts + o.Conflicts, c.Deadlocks + o.Deadlocks}
}

// Counts returns what was counted until now.
func (m *Manager) Counts() Counts { return m.counts }

// Len returns the number of transactions in progress, and of delayed requests.
func (m *Manager) Len() (transactions, delayed int) { return len(m.txns), len(m.writes) + len(m.reads) }

func (m *Manager) answer(r Request, p proto.Packet) {
	m.effects = append(m.effects, Effect{Kind: Answer, Request: r, Packet: p})
}

func (m *Manager) refuse(r Request, format string, args ...any) {
	m.answer(r, proto.Errorf(proto.ProtocolError, format, args...))
}

func (m *Manager) partition(oid tid.OID) int { return oid.Partition(m.np) }

// sorted returns the transactions by ttid.
func (m *Manager) sorted() []*transaction {
	return slices.SortedFunc(maps.Values(m.txns), func(a, b *transaction) int { return cmp.Compare(a.ttid, b.ttid) })
}

// oids returns the objects of a transaction, sorted.
func (t *transaction) oids() []tid.OID {
	list := make([]tid.OID, 0, len(t.ops))
	for oid := range t.ops {
		list = append(list, oid)
	}
	slices.Sort(list)
	return list
}

// register returns the transaction of a client, new if needed, nil if it may not
// be used; the request is answered then.
func (m *Manager) register(r Request, client proto.NodeID, ttid tid.TID) *transaction {
	t := m.txns[ttid]
	switch {
	case t == nil:
		t = &transaction{ttid: ttid, client: client, ops: map[tid.OID]*op{}}
		m.txns[ttid] = t
		delete(m.forgotten, ttid)
	case t.client != client:
		m.refuse(r, "transaction %v belongs to %v", ttid, t.client)
		return nil
	case t.voted:
		m.refuse(r, "transaction %v is already voted", ttid)
		return nil
	}
	return t
}

// FinalTID returns whether the transaction is in progress, and its final TID if
// it is locked.
func (m *Manager) FinalTID(ttid tid.TID) (final proto.Opt[tid.TID], pending bool) {
	t := m.txns[ttid]
	if t == nil {
		return final, false
	}
	return proto.Opt[tid.TID]{V: t.final, OK: t.final != tid.Zero}, true
}

// UndoBase returns the revision that an undo inside the transaction sees as the
// current one of an object: absent if the transaction does not store it.
func (m *Manager) UndoBase(ttid tid.TID, oid tid.OID) proto.Opt[tid.TID] {
	t := m.txns[ttid]
	if t == nil || t.ops[oid] == nil || !t.ops[oid].stored {
		return proto.Opt[tid.TID]{}
	}
	if s := t.ops[oid].store.DataSerial; s != tid.Zero {
		return proto.Some(s)
	}
	return proto.Some(ttid)
}
