package replica

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/nodetab"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// Link names a connection with another storage between a [Machine] and its shell: any
// comparable value, nil for none. It is also what the log calls the other storage.
type Link any

// Target is a storage to replicate from.
type Target struct {
	ID       proto.NodeID  // 0: of another cluster
	Addr     proto.Address // where it listens
	Upstream string        // name of the other cluster
}

// Ends are the greatest TIDs among the transactions and among the records of a
// partition, Zero if there is none.
type Ends struct{ Transactions, Records tid.TID }

// Settings are what a [Machine] knows from its beginning. The tables are those of the
// node, which may change them between two steps.
type Settings struct {
	ID    proto.NodeID // of this node
	Nodes *nodetab.Table
	Table *parttab.Table
	// Count is how many transactions or records are asked for at a time.
	Count int
	// Pick returns a number less than n, to choose one of n sources.
	Pick func(n int) int
}

// EventKind says what has happened.
type EventKind uint8

const (
	nothing          EventKind = iota
	Begun                      // operation begins: Cells, Backup, Ends, PackOrder
	BackupBegun                // the cluster follows another one from now on: Backup, Ends
	BackupStopped              // what comes from the upstream cluster is not wanted any more
	UpstreamLost               // the master has lost the upstream cluster
	PackAllowed                // in a backup cluster: PackOrder and those before may be executed
	BackupOrdered              // by the master of a backup cluster: Packet, a Replicate
	TableChanged               // the partition table has changed: Changes
	TransactionEnded           // TTID has ended; Last is the last TID then, absent if it was aborted
	PackApproved               // PackOrder is the greatest order approved so far
	PackUnknown                // decisions about the orders Missing, which are not here; some are Approved
	CheckAnnounced             // Report tells of a check that begins, or of a repair
	CheckOrdered               // a partition is to be compared: Packet, a CheckPartition
	Woken                      // it is time: see Wake
	Reminded                   // it is time: see Remind; Tag
	Linked                     // the outcome of Connect: Link, Ready, Tag
	LinkReady                  // Link, which was not, is ready
	LinkLost                   // Link has ended
	LinkReplaced               // the source of Link has connected itself: New is used from now on, and ready
	Received                   // a packet that belongs to the answer to Ask: Packet
	Answered                   // the answer to Ask, or an Error: Packet
	TailListed                 // the outcome of ListTail: TIDs, or Refused; Tag
	MasterAnswered             // the answer of the master, or an Error, to AskMaster: Packet, Tag
	Listed                     // the outcome of ListTransactions (TIDs) or ListRecords (Keys): PackOrder, Tag
	Examined                   // the outcome of Examine: Record, Tag
	Digested                   // the outcome of Digest: Items, Next, PackOrder, or Refused; Tag
	LockedSeen                 // the outcome of SeeLocked: Locked, Tag
)

// Event is what a [Machine] is told, by kind.
type Event struct {
	Kind      EventKind
	Link, New Link
	Ready     bool
	Ask       uint64
	Packet    proto.Packet
	Tag       any
	TTID      tid.TID
	Last      proto.Opt[tid.TID]
	Cells     []backend.Cell // of this node
	Changes   []proto.CellChange
	Backup    proto.Opt[tid.TID] // absent: this is no backup cluster
	Gap       [2]tid.TID         // with Backup: as recorded by SetGap, Zero if there is none
	Reached   map[int]tid.TID    // with Backup: what cells were announced up to in the last period of operation
	Ends      map[int]Ends       // of readable cells, in a backup cluster
	PackOrder proto.Opt[tid.TID]
	Missing   []tid.TID
	Approved  []tid.TID
	TIDs      []tid.TID
	Keys      []backend.Key
	Record    Record
	Report    *check.Report
	Items     map[backend.Key]Content // transactions, whose oid is 0, or records
	Next      proto.Opt[backend.Key]  // where the next chunk begins; absent: there is none
	Refused   bool                    // this database cannot do that
	Locked    bool
}

// Record is what this node has of an object around one of its revisions.
type Record struct {
	Last     tid.TID // last revision up to Until of the question, Zero if there is none
	Deletion bool    // it deletes the object
	Before   tid.TID // last revision before that of the question, Zero if there is none
	Happened bool    // if asked: the transaction of the revision is here
}

// Op says what the shell must do.
type Op uint8

const (
	Connect           Op = iota // get a link to Target; it comes as Linked, with Tag
	Release                     // Link is no longer used here
	Drop                        // close Link at once
	Breach                      // close Link, after a breach of the protocol
	Satisfied                   // the source of Link has served to the end: it may be connected to at once again
	Ask                         // send Packet on Link; what comes names Ask
	AskMaster                   // send Packet to the master; its answer comes with Tag
	Wake                        // tell Woken after Delay, instead of what was ordered before
	ListTransactions            // of Partition, from Min.TID to Max, at most Count; Packed; Tag
	ListRecords                 // the same from Min on
	Examine                     // what is here of Record.OID up to Until, if that is not Zero, and before Record.TID; Happened; Tag
	Digest                      // read what is here of Partition from Min to Max, at most Count transactions or Records; Packed; Tag. It may take a while
	ListTail                    // the last Count transactions of Partition, ascending; Tag. It may take a while
	SeeLocked                   // whether a transaction up to Max is being committed; Tag
	AddTransaction              // store Packet
	AddRecord                   // store Packet
	DeleteTransaction           // delete Record.TID
	DeleteRecord                // delete Record
	DeleteBefore                // delete the revisions of Record.OID before Record.TID
	SetComplete                 // Partition is complete up to TID
	SetBackup                   // the database follows the upstream cluster up to TID
	SetGap                      // what is between the TIDs of Gap is not all here
	ShowBackup                  // readers may see what is up to TID
	TellStored                  // tell the master: follows up to TID, with Gap
	LowerPacked                 // Partition has executed pack orders up to TID at most
	NoteKept                    // Partition has deletions up to TID for other replicas
	SignPacks                   // apply decisions: Approved, Rejected; what is not here comes as PackUnknown
	Commit                      // make all that precedes durable
	Replicating                 // writes to Partitions are taken without check from now on
	Readable                    // the master has declared Partitions up to date
	Discarded                   // Partitions are not here any more, or out of date
	Replicated                  // Partition has all data up to TID: tell the master
	Pack                        // see whether a pack order can be executed
	ReadKept                    // see which deletions are kept
	TellMaster                  // send Packet to the master
	Remind                      // tell Reminded after Delay, with Tag
	TellPacked                  // tell the master which pack order all cells have executed
	Log                         // write a line to the log
)

// Effect is one thing a [Machine] wants done, by Op.
type Effect struct {
	Op         Op
	Partition  int
	Partitions []int
	Target     Target
	Link       Link
	Ask        uint64
	Packet     proto.Packet
	Tag        any
	Delay      time.Duration
	Min        backend.Key
	Max        tid.TID
	Count      int
	Packed     bool // also the last pack order completed
	Records    bool
	Nothing    bool // of a Digest: only what is Packed
	Record     backend.Key
	Until      tid.TID
	Happened   bool // also whether the transaction is here
	TID        tid.TID
	Gap        [2]tid.TID
	Approved   []tid.TID
	Rejected   []tid.TID
	Line       *Line
}

// Line is one line of log.
type Line struct {
	Level slog.Level
	Text  string
	Attrs []any
}

// Machine decides about replication, checks and repairs of one storage node, during one period of
// operation. The same events give the same effects.
type Machine struct {
	set        Settings
	now        time.Time
	caughtUp   caughtUp
	out        []Effect
	cells      map[int]*progress
	todo       map[int]tid.TID // replicate up to
	sources    map[int]origin  // from where, if not from any readable cell
	unfinished map[tid.TID]bool
	// incomplete are the cells that are being replicated, or were and are not declared
	// up to date yet.
	incomplete map[int]bool
	current    *fetch
	link       Link // used last
	asks       uint64
	packs      packOrders
	lastPack   tid.TID // greatest approved order known
	checks     checker
	tails      tails
	backup     proto.Opt[tid.TID] // followed up to; absent: this is no backup cluster
	gap        [2]tid.TID         // between these, ends excluded, something is missing; Zero, Zero: no gap
	unlinked   bool               // the master has lost the upstream cluster
	allowed    tid.TID            // greatest pack order that may be executed in a backup cluster
}

// New returns a machine without cells.
func New(s Settings) *Machine {
	m := &Machine{set: s, cells: map[int]*progress{}, todo: map[int]tid.TID{}, sources: map[int]origin{},
		unfinished: map[tid.TID]bool{}, incomplete: map[int]bool{}}
	m.checks = checker{m: m, repairs: map[int]checkOrder{}}
	m.tails = tails{m, map[int]*tail{}}
	return m
}

// Step consumes one event and returns what must be done, in order. The slice is valid
// until the next step.
func (m *Machine) Step(now time.Time, ev Event) []Effect {
	clear(m.out)
	m.out, m.now = m.out[:0], now
	m.event(&ev)
	return m.out
}

func (m *Machine) event(ev *Event) {
	switch ev.Kind {
	case Begun:
		m.begun(ev)
	case BackupBegun:
		m.enterBackup(ev)
	case BackupStopped:
		m.stopBackup()
	case UpstreamLost:
		m.upstreamLost()
		m.endComparison()
	case PackAllowed:
		m.allow(ev.PackOrder.V)
	case BackupOrdered:
		m.replicate(ev.Packet.(*proto.Replicate))
	case TableChanged:
		m.tableChanged(ev.Changes)
		m.checks.tableChanged(ev.Changes)
	case TransactionEnded:
		m.transactionEnded(ev.TTID, ev.Last)
	case PackApproved:
		m.lastPack = ev.PackOrder.V
		if m.backup.OK && m.lastPack > m.allowed {
			m.tellStored()
		}
		m.packApproved()
	case PackUnknown:
		m.signLater(ev.Missing, ev.Approved)
	case CheckAnnounced:
		if ev.Report.State == check.Tail {
			m.tails.announced(ev.Report)
			return
		}
		m.checks.told(ev.Report)
	case CheckOrdered:
		if m.tails.order(ev.Packet.(*proto.CheckPartition)) {
			return
		}
		m.checks.order(ev.Packet.(*proto.CheckPartition))
	case Woken:
		m.next()
	case Reminded:
		m.checks.reminded(ev.Tag)
	case Linked:
		switch k := ev.Tag.(type) {
		case *member:
			m.checks.linked(k, ev)
			return
		case *tail:
			m.tails.linked(k, ev)
			return
		}
		m.linked(ev)
	case LinkReady:
		m.linkReady(ev.Link)
		m.checks.linkReady(ev.Link)
		m.tails.linkReady(ev.Link)
	case LinkLost:
		m.linkLost(ev.Link)
		m.checks.linkLost(ev.Link)
		m.tails.linkLost(ev.Link)
	case LinkReplaced:
		m.linkReplaced(ev.Link, ev.New)
		m.checks.linkReplaced(ev.Link, ev.New)
	case Received:
		if k := m.checks.receives(ev.Ask); k != nil {
			m.checks.received(k, ev.Packet)
			return
		}
		m.received(ev)
	case Answered:
		if k := m.checks.receives(ev.Ask); k != nil {
			m.checks.answered(k, ev.Packet)
			return
		}
		if k := m.tails.receives(ev.Ask); k != nil {
			m.tails.answered(k, ev.Packet)
			return
		}
		m.answered(ev)
	case MasterAnswered:
		m.masterAnswered(ev)
	case Listed:
		m.listed(ev)
	case TailListed:
		m.tails.tailListed(ev.Tag.(*tail), ev)
	case Examined:
		if d, ok := ev.Tag.(doubt); ok {
			m.checks.examined(d, ev.Record)
			return
		}
		m.examined(ev)
	case Digested:
		m.checks.digested(ev)
	case LockedSeen:
		m.checks.lockedSeen(ev)
	}
}

func (m *Machine) do(e Effect) { m.out = append(m.out, e) }

func (m *Machine) commit() { m.do(Effect{Op: Commit}) }

func (m *Machine) log(level slog.Level, text string, attrs ...any) {
	m.do(Effect{Op: Log, Line: &Line{level, text, attrs}})
}

// readable reports whether the cell of this node may be read.
func (m *Machine) readable(partition int) bool {
	return partition >= 0 && partition < m.set.Table.NP() && m.set.Table.Cell(partition, m.set.ID).Readable()
}

// busy reports whether a partition is being replicated.
func (m *Machine) busy(partition int) bool {
	return m.current != nil && m.current.partition == partition
}

// Checking reports whether replicas are being compared, how many, and whether it is
// their records, after the transactions.
func (m *Machine) Checking() (members int, records, ok bool) {
	k := m.checks.current
	if k == nil {
		return 0, false, false
	}
	return len(k.members), k.records, true
}

// release gives up a link that replication has used. A check that uses it does so
// itself, at its end.
func (m *Machine) release(l Link) {
	if m.checks.find(l) == nil && len(m.tails.on(l)) == 0 {
		m.do(Effect{Op: Release, Link: l})
	}
}

// Uses reports whether what is being replicated comes over a link.
func (m *Machine) Uses(l Link) bool { return m.current != nil && m.current.link == l }

// Awaits reports whether replication waits for the answer to a question.
func (m *Machine) Awaits(ask uint64) bool { return m.current != nil && m.current.ask == ask }

// Todo returns up to which transaction each partition that waits is to be replicated.
func (m *Machine) Todo() map[int]tid.TID { return maps.Clone(m.todo) }

// Complete reports whether the history that a pack order deletes is all here.
func (m *Machine) Complete(partition int, order tid.TID) bool {
	if !m.backup.OK {
		return true
	}
	c := m.cells[partition]
	return c != nil && order <= m.allowed && c.whole > order && c.missed.settled(order)
}

// Reached returns up to where a cell of a backup cluster was announced to have what the
// upstream cluster has.
func (m *Machine) Reached(partition int) tid.TID {
	c := m.cells[partition]
	if c == nil {
		return tid.Zero
	}
	return max(c.whole, 1) - 1
}

// Announced returns what Reached returns of all readable cells of a backup cluster.
func (m *Machine) Announced() map[int]tid.TID {
	all := map[int]tid.TID{}
	for p := range m.cells {
		if m.backup.OK && m.readable(p) {
			all[p] = m.Reached(p)
		}
	}
	return all
}

// partitions returns the partitions that have a cell here, sorted.
func (m *Machine) partitions() []int { return slices.Sorted(maps.Keys(m.cells)) }
