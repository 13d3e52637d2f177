// Package backend says what a database must do to be the storage of a NEO node.
//
// # Guarantees
//
// What was written before [Backend.Commit] returned survives the death of the
// process and of the machine. What was written after the last Commit may be lost,
// but only as a whole suffix of commits: there is never a rollback, an abort
// deletes rows.
//
// Every method may be called concurrently. Writes are serialised by the backend.
// A read sees everything written by calls that returned before it began, committed or
// not, and need not wait for a Commit that is under way. Only what Pack, DropDeletions
// and DropPartition delete may still be seen until the next Commit.
//
// A backend may commit earlier than it is told to, between two calls.
//
// # Errors
//
// [ErrNonReadable], [ErrNotFound], [ErrNoSuchObject], [ErrUndoPacked], [ErrNotPrepared]
// and [ErrNotImplemented] are answers, and so is the error of a context that has ended.
// Any other error means that the database can no longer be trusted: the node must stop.
package backend

import (
	"context"
	"errors"
	"iter"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

var (
	// ErrNonReadable reports a partition of which this node has no readable cell.
	ErrNonReadable = errors.New("partition is not readable here")
	// ErrNoSuchObject reports an object without any record.
	ErrNoSuchObject = errors.New("object does not exist")
	// ErrNotFound reports an object that exists but not at the time asked for,
	// or a transaction that does not exist.
	ErrNotFound = errors.New("not found")
	// ErrUndoPacked reports that the record an undo refers to was packed away.
	ErrUndoPacked = errors.New("the record to restore was packed away")
	// ErrNotPrepared reports that the last revision of an object is not known here yet:
	// see [Preparing].
	ErrNotPrepared = errors.New("the last revision is not known here yet")
	// ErrNotImplemented reports an operation that this backend cannot do.
	ErrNotImplemented = errors.New("not implemented by this backend")
	// ErrTooLong reports metadata of a transaction for which the database has no room.
	ErrTooLong = errors.New("too long for the database")
	// ErrLocked reports a database that another process uses.
	ErrLocked = errors.New("database is locked")
	// ErrHalfImported reports a database into which an import has not come to its end:
	// only the importer may use it.
	ErrHalfImported = errors.New("the import into this database is not finished")
)

// CorruptError reports stored data that differs from its checksum. Retrying is
// useless: another replica must answer, and the operator must know.
type CorruptError struct {
	Partition int
	OID       tid.OID
	TID       tid.TID
	Detail    string
}

func (e *CorruptError) Error() string {
	return "object " + e.OID.String() + " at " + e.TID.String() + " is corrupt: " + e.Detail
}

// DataID names a stored record. Zero with ok=false in this package's structs
// means "no data" (the object is deleted at that revision); the id 0 is valid.
type DataID struct {
	ID int64
	OK bool
}

// Object is one revision as stored.
type Object struct {
	Serial tid.TID
	Next   tid.TID // following revision of the same object; Zero: none
	proto.ObjectData
	DataSerial tid.TID // earlier revision with the same data (undo); Zero: none
}

// Store is one object of a transaction.
type Store struct {
	OID        tid.OID
	Data       DataID
	DataSerial tid.TID // Zero: none
}

// Meta is the metadata of a transaction.
type Meta struct {
	User, Description, Extension []byte
	Packed                       bool
	TTID                         tid.TID
	OIDs                         []tid.OID
}

// Config are the values that a database keeps for its node.
type Config struct {
	Name        string // "" in a new database
	ID          proto.NodeID
	PTID        proto.Opt[uint64]
	Replicas    int
	BackupTID   proto.Opt[tid.TID] // present, even Zero: in backup mode
	BackupGap   [2]tid.TID         // in backup mode: between these, ends excluded, something is missing; Zero, Zero: no gap
	BackupHold  proto.Opt[tid.TID] // in backup mode: nothing after it is to be fetched
	TruncateTID proto.Opt[tid.TID]
	// Confirmed is a version of the partition table that each storage had stored which
	// had a readable cell then, before anything was committed under a later one.
	Confirmed proto.Opt[uint64]
}

// Cell is a row of the stored partition table. TID is meaningful for the node's
// own OUT_OF_DATE cells: everything up to it is present.
type Cell struct {
	Partition int
	ID        proto.NodeID
	State     proto.CellState
	TID       tid.TID
}

// LastIDs are over readable partitions. Absent values: nothing there.
type LastIDs struct {
	TID   proto.Opt[tid.TID]
	OID   proto.Opt[tid.OID]
	First tid.TID // tid.Max if there is none
}

// Backend is a database of one storage node. A wrapper replaces one group or
// more, each as one value:
//
//	struct {
//		backend.Reading // reads elsewhere, too
//		backend.Writing
//		backend.Keeping
//	}
//
// A wrapper of a single method replaces what other methods of its group do with it as
// well: [Reading.GetObject] and [Reading.GetObjects] answer the same.
type Backend interface {
	Reading
	Writing
	Keeping
}

// Parts are a [Backend] made of its groups.
type Parts struct {
	Reading
	Writing
	Keeping
}

// Reading answers questions about the history. Except where said, it needs a
// readable cell: ErrNonReadable. When ctx ends, a method that waits returns its error.
//
// The goroutine that serves all peers of a node waits for the answers of some, which must
// come from what is local: LastObjectTID (see [Preparing] for a backend that cannot), FinalTID, LastIDs,
// LastTIDs; RecordBefore, unless the backend is a [Preparing] one; and of partitions that are being
// replicated to this node TIDsFrom, RecordsFrom and RecordBefore. All others are called on other
// goroutines, where they may wait: ctx ends with the connection that asks, or with the operation.
type Reading interface {
	// GetObject returns the revision at exactly At, or the last one before
	// Before, or the last one. ErrNoSuchObject, ErrNotFound. Data that differ from
	// their checksum may be returned with it: every client compares them.
	GetObject(ctx context.Context, oid tid.OID, at, before proto.Opt[tid.TID]) (Object, error)
	// LastObjectTID returns the last revision of an object, absent if it has none. A
	// [Preparing] backend may return ErrNotPrepared.
	LastObjectTID(ctx context.Context, oid tid.OID) (proto.Opt[tid.TID], error)
	// Transaction returns metadata. ErrNotFound.
	Transaction(ctx context.Context, t tid.TID) (Meta, error)
	// FinalTID returns the TID under which ttid was committed, if it was.
	FinalTID(ctx context.Context, ttid tid.TID) (proto.Opt[tid.TID], error)
	LastIDs(ctx context.Context) (LastIDs, error)
	// TIDs returns TIDs of the given partitions in descending order, without
	// the first skip, at most n.
	TIDs(ctx context.Context, partitions []int, skip, n int) ([]tid.TID, error)
	// TIDsFrom returns the TIDs in [min, max] of a partition, ascending, at most
	// n if n > 0. No readability needed.
	TIDsFrom(ctx context.Context, partition int, min, max tid.TID, n int) ([]tid.TID, error)
	// History returns revisions, newest first. Empty if the object has none.
	History(ctx context.Context, oid tid.OID, skip, n int) ([]proto.Revision, error)
	// OIDsFrom returns objects that exist at a TID. Next is absent at the end.
	OIDsFrom(ctx context.Context, partition, n int, min tid.OID, at tid.TID) (next proto.Opt[tid.OID], oids []tid.OID, err error)
	// UndoHistory returns whether the object has a record at undone, the
	// revision before it, and the revisions after it, ascending, with their
	// DataSerial.
	UndoHistory(ctx context.Context, oid tid.OID, undone tid.TID) (UndoHistory, error)
	// GetObjects is GetObject for each of keys, which may cost less. It calls f with what
	// that returns, in any order, until f returns false. f must not use the backend.
	GetObjects(ctx context.Context, keys []ObjectKey, f func(i int, o *Object, err error) bool)

	// What follows is for replication and checks: no readability needed.

	// LastTIDs returns the greatest TIDs among the transactions and among the
	// records of one partition, Zero if there is none. No readability needed.
	LastTIDs(ctx context.Context, partition int) (trans, obj tid.TID, err error)
	// FetchObject returns one revision exactly, without Next. ErrNotFound, or a
	// CorruptError if the data differ from their checksum: a node that receives them
	// stores them as they are.
	FetchObject(ctx context.Context, oid tid.OID, t tid.TID) (Object, error)
	// FetchTransaction returns metadata and its pack order. ErrNotFound.
	FetchTransaction(ctx context.Context, t tid.TID) (Meta, *proto.PackState, error)
	// RecordsFrom returns at most n records ordered by (TID, OID), from
	// (min, minOID) to max inclusive.
	RecordsFrom(ctx context.Context, partition int, min, max tid.TID, minOID tid.OID, n int) ([]Key, error)
	// RecordBefore returns the last record of an object before a TID, and whether it
	// is a deletion, Zero if there is none.
	RecordBefore(ctx context.Context, oid tid.OID, before tid.TID) (t tid.TID, deleted bool, err error)
	// CheckTIDs and CheckSerials digest ranges for the comparison of replicas: SHA-1 of
	// decimal numbers joined by commas. n bounds the number of rows.
	CheckTIDs(ctx context.Context, partition, n int, min, max tid.TID) (*proto.AnswerCheckTIDRange, error)
	CheckSerials(ctx context.Context, partition, n int, min, max tid.TID, minOID tid.OID) (*proto.AnswerCheckSerialRange, error)
}

// Writing takes transactions: those in progress, whose two-phase commit it is, and
// what is replicated, for which no readability is checked. Commit makes it durable.
type Writing interface {
	// HoldData stores a record and protects it until ReleaseData. With
	// dataSerial, the data of that revision of oid is shared; if it is gone:
	// ErrUndoPacked when the partition is readable, else d is stored. ZeroHash
	// gives a DataID that is not OK. The backend may keep the row in memory until
	// it is needed; d.Data must not change after the call.
	HoldData(oid tid.OID, d proto.ObjectData, dataSerial proto.Opt[tid.TID]) (DataID, error)
	// ReleaseData ends the protection of records; with prune, those that no
	// record refers to are deleted.
	ReleaseData(ids []DataID, prune bool) error
	// LoadData returns held data.
	LoadData(id DataID) (proto.ObjectData, error)

	// Vote writes the objects of a transaction, and its metadata if meta is not
	// nil, and its pack order if pack is not nil, to the temporary tables. The
	// caller commits before it answers. A second vote replaces the first. What the
	// arguments refer to must not change any more. meta.TTID need not be set. After
	// ErrTooLong nothing has changed.
	Vote(ttid tid.TID, stores []Store, meta *Meta, pack *proto.PackRequest) error
	// Lock records the final TID next to the voted metadata (and approves the
	// pack order). The caller commits before it answers.
	Lock(ttid, final tid.TID, approvePack bool) error
	// Unlock moves a transaction to the final tables and releases its data.
	// meta, objects, pack: which of them are here. It needs no commit of its own.
	Unlock(ttid, final tid.TID, meta, objects, pack bool) error
	// Abort deletes a voted transaction, its pack order too; nothing happens to
	// an unknown one. Its data are released by ReleaseData.
	Abort(ttid tid.TID) error
	// Unfinished returns every transaction in the temporary tables, with its
	// final TID if it was locked.
	Unfinished() (map[tid.TID]proto.Opt[tid.TID], error)
	// Validate commits a transaction found by Unfinished: Lock and Unlock,
	// whichever of metadata and objects are here, approving its pack order. It commits.
	Validate(ttid, final tid.TID) error
	// DropUnfinished deletes every unfinished transaction, and pack orders that
	// belong to no transaction. It commits.
	DropUnfinished() error
	// DropUnfinishedPartitions deletes what unfinished transactions have in these
	// partitions, without releasing data.
	DropUnfinishedPartitions(partitions []int) error

	// AddTransaction stores metadata in the final tables. An equal row is
	// accepted; a different one makes this call or a later one fail.
	AddTransaction(t tid.TID, meta Meta, pack *proto.PackState) error
	// AddObject stores a record in the final tables; if the revision named by
	// dataSerial is gone, the data given is stored. An equal row is accepted; a
	// different one makes this call or a later one fail.
	AddObject(oid tid.OID, t tid.TID, d proto.ObjectData, dataSerial proto.Opt[tid.TID]) error
	DeleteTransaction(t tid.TID) error
	DeleteObject(oid tid.OID, t tid.TID) error

	// Commit makes everything written so far durable.
	Commit() error
	// CommitVotes is Commit, except that the effects of Unlock need not be durable
	// if the vote and the lock are: after a crash the transaction is unfinished
	// again; nor those of AddTransaction and AddObject: replication goes on from what
	// Commit has made durable. Readers see them in any case. A backend that writes
	// all of it at once does what Commit does.
	CommitVotes() error
}

// Keeping administers the database: its configuration, the node's copy of the partition
// table, and what is deleted: history, discarded partitions and orphans, slice by slice.
type Keeping interface {
	// Close commits what is pending and releases the lock on the database.
	Close() error
	// Erase drops all tables and creates them again, empty.
	Erase() error
	Config() (Config, error)
	SetName(name string) error   // commits
	SetID(id proto.NodeID) error // rewrites rows of the old id; commits
	// SetBackupTID and SetTruncateTID do not commit. Absent deletes the value.
	SetBackupTID(proto.Opt[tid.TID]) error
	SetTruncateTID(proto.Opt[tid.TID]) error
	// SetBackupHold does not commit. Absent deletes the value.
	SetBackupHold(proto.Opt[tid.TID]) error
	// SetBackupGap does not commit. Zero, Zero deletes the value.
	SetBackupGap([2]tid.TID) error
	// SetConfirmed does not commit. Absent deletes the value.
	SetConfirmed(proto.Opt[uint64]) error
	// Topology returns the path that tells devices apart: host name, device number.
	Topology() []string

	// Cells returns the stored table.
	Cells() ([]Cell, error)
	// ChangePartitionTable stores changes; reset replaces the whole table. It
	// does not commit. lastPack is the pack id given to new cells of this node
	// that are not readable. An own cell that becomes OUT_OF_DATE keeps the
	// greatest TID up to which it is known complete, which is less than the TTID
	// of each unfinished transaction that has something in it, and, while a truncation
	// is pending, than both the last transaction and the last record.
	ChangePartitionTable(ptid uint64, replicas int, cells []proto.CellChange, reset bool, lastPack tid.TID) error
	// SetCellTID records that an own OUT_OF_DATE cell is complete up to t.
	SetCellTID(partition int, t tid.TID) error
	// SetReplicated makes one partition readable for LastTID of its objects,
	// until the next ChangePartitionTable: it is complete, but not yet declared so.
	SetReplicated(partition int)

	// Truncate deletes everything after the recorded truncate TID in the
	// assigned cells, lowers the TID of outdated ones, forgets the order. It
	// commits. Nothing happens if none is recorded.
	Truncate() error

	// PackOrders returns the orders from an id on whose partition is readable
	// here, of committed transactions only.
	PackOrders(min tid.TID) ([]proto.PackOrder, error)
	// SignPackOrders records decisions and returns the ids that are not here.
	// changed tells whether the caller must commit.
	SignPackOrders(approved, rejected []tid.TID) (missing []tid.TID, changed bool, err error)
	// PackedIDs returns the last completed order of each own cell.
	PackedIDs(upToDateOnly bool) (map[int]tid.TID, error)
	// SetPacked records that Pack has executed an order on a cell.
	SetPacked(partition int, id tid.TID) error
	// LowerPacked makes the last completed order of a cell at most id: the cell is
	// replicated from one where id is the last completed order.
	LowerPacked(partition int, id tid.TID) error
	// Pack packs at most about n records of a partition up to t, starting after
	// the object after (absent: from the first), or the listed objects only. Of an
	// object that was deleted after keep, the deletion stays, and the partition is
	// among the KeptDeletions. It returns the last object examined, absent when the
	// partition is done, and the number of records deleted.
	Pack(partition int, t tid.TID, oids []tid.OID, keep tid.TID, after proto.Opt[tid.OID], n int) (last proto.Opt[tid.OID], deleted int, err error)
	// KeptDeletions returns the partitions where Pack has kept deletions, and the
	// greatest time of those packs.
	KeptDeletions() (map[int]tid.TID, error)
	// NoteKept adds a partition to the KeptDeletions, up to t.
	NoteKept(partition int, t tid.TID) error
	// DropDeletions deletes, of at most about n records of a partition, the deletions
	// up to its time of KeptDeletions that are the first record of their object. after
	// and last are as for Pack. When the partition is done it has no KeptDeletions.
	DropDeletions(partition int, after proto.Opt[tid.OID], n int) (last proto.Opt[tid.OID], deleted int, err error)
	// PackedUpTo returns a TID such that no record of an object after it has lost the
	// one before it to a pack: Zero if there was none. Where that is not known, the
	// TID is rather too late than too early.
	PackedUpTo(oid tid.OID) (tid.TID, error)
	// DropPartition deletes about n records or transactions of a partition that is not assigned
	// to this node; nothing of one that is. done: nothing of it is left to do.
	DropPartition(partition, n int) (done bool, err error)
	// UnassignedPartitions yields partitions that may still have rows although
	// they are not assigned to this node.
	UnassignedPartitions() ([]int, error)
	// Orphans yields stored data that nothing refers to.
	Orphans(ctx context.Context) iter.Seq2[DataID, error]
	// PruneData deletes those of the given data that nothing refers to.
	PruneData(ids []DataID) (int, error)
}

// UndoHistory is what [Reading.UndoHistory] finds.
type UndoHistory struct {
	Found bool
	Prev  proto.Opt[tid.TID]
	Later []Later
}

// Later is a revision after the one to undo.
type Later struct {
	TID        tid.TID
	DataSerial tid.TID // Zero: none
}

// Key names one revision of one object.
type Key struct {
	TID tid.TID
	OID tid.OID
}

// ObjectKey says which revision of an object is wanted: see [Reading.GetObject].
type ObjectKey struct {
	OID        tid.OID
	At, Before proto.Opt[tid.TID]
}

// GetEach is [Reading.GetObjects] where nothing is gained by many loads at once: it
// calls GetObject for each of keys.
func GetEach(ctx context.Context, r Reading, keys []ObjectKey, f func(i int, o *Object, err error) bool) {
	for i, k := range keys {
		o, err := r.GetObject(ctx, k.OID, k.At, k.Before)
		if !f(i, &o, err) {
			return
		}
	}
}

// Preparing is implemented by a [Backend] of which not all is local. Its reads for clients run on
// goroutines of their own, many for one client.
type Preparing interface {
	// Prepare makes [Reading.LastObjectTID] know the last revision of an object. When that
	// has returned ErrNotPrepared, the node calls Prepare on another goroutine, where it may wait,
	// and then LastObjectTID again. Meanwhile the requests for the object wait, and
	// nothing else does. Prepare may be called for many objects at the same time, but not
	// twice for one. What it has learned may be forgotten at any time: then it is called again.
	//
	// An error is reported, and the requests that wait are taken without check, as in a cell that is
	// being replicated: without another replica the transaction fails. ctx ends with the operation.
	Prepare(ctx context.Context, oid tid.OID) error
}

// Local is implemented by a [Preparing] backend that may become local.
type Local interface {
	// Local reports whether all is local now, as for a backend that is not Preparing. It stays
	// so.
	Local() bool
}

// Runner is implemented by a [Backend] with work of its own, such as an import.
type Runner interface {
	// Run works until all is done, or until ctx ends. The node calls it whenever an
	// operation begins, on a goroutine of its own; ctx ends with the operation, and the node waits
	// for Run to return. An error is reported, and the node goes on to serve: it calls Run again after
	// a while. If the database cannot be trusted any more, the other methods say so.
	Run(ctx context.Context) error
	// Progress says how far the work is. It may be called at any time.
	Progress() importing.Report
	// Order obeys an operator, or says why not, in a sentence for the operator.
	Order(importing.Order) error
}

// Importing is implemented by a [Backend] that can be the destination of an import.
// Both values are kept as they are.
type Importing interface {
	// ImportState returns what the import must never change once it has begun: which
	// sources there are, and what becomes of their ids. Absent: there is no import.
	ImportState() (proto.Opt[string], error)
	// SetImportState does not commit. Absent deletes the value.
	SetImportState(proto.Opt[string]) error
	// ImportProgress returns how far the import is. Absent: no value is known.
	ImportProgress() (proto.Opt[string], error)
	// SetImportProgress does not commit. It becomes durable after all that was written
	// before. Absent deletes the value.
	SetImportProgress(proto.Opt[string]) error
}
