package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// What makes an older copy of a database known as such to the master: a mark that it
// lacks (backend.Config.Confirmed), and how far its data go. The master compares both
// with what the other storages say.

// tellState adds to an identification what the master needs in order to know an older
// copy of the database. Other masters ignore it.
//
//	confirmed_ptid  the mark; 0: none
//	last_tids       for each own readable cell: partition, last transaction, last record
//	backup_hold     nothing after it is to be fetched from upstream; absent: no hold
//	unfinished      transactions that were voted: TTID, TID if it was locked with its metadata
func (n *Node) tellState(extra map[string]proto.Value) error {
	c, err := n.db.Config()
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if c.BackupHold.OK {
		extra[following.HoldKey] = packTID(c.BackupHold.V)
	}
	mark := c.Confirmed.V
	if mark > c.PTID.V || mark > math.MaxInt64 {
		mark = 0 // of a table that was given up
	}
	cells, err := n.db.Cells()
	if err != nil {
		return fmt.Errorf("reading the partition table: %w", err)
	}
	last := []proto.Value{}
	for _, cell := range cells {
		if cell.ID != c.ID || !cell.State.Readable() {
			continue
		}
		trans, obj, err := n.db.LastTIDs(n.ctx, cell.Partition)
		if errors.Is(err, backend.ErrNotImplemented) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("last transaction of partition %d: %w", cell.Partition, err)
		}
		last = append(last, []proto.Value{int64(cell.Partition), packTID(trans), packTID(obj)})
	}
	unfinished, err := n.db.Unfinished()
	if err != nil {
		return fmt.Errorf("unfinished transactions: %w", err)
	}
	voted := []proto.Value{}
	for _, ttid := range slices.Sorted(maps.Keys(unfinished)) {
		voted = append(voted, []proto.Value{packTID(ttid), packTID(unfinished[ttid].V)})
	}
	extra["confirmed_ptid"], extra["last_tids"], extra["unfinished"] = int64(mark), last, voted
	return nil
}

func packTID(t tid.TID) []byte { return binary.BigEndian.AppendUint64(nil, uint64(t)) }

// note remembers the version of the table at the moment when the master asks every
// storage whether it has stored it: by this question, at the end of a verification, or
// with the greatest id in operation. What StartOperation then says is that all have.
func (n *Node) note(min tid.TID) {
	if n.session == nil || min == tid.Max {
		n.noted = n.table.PTID()
	}
}

// confirm records that all storages have stored the table whose version was noted.
// The caller commits.
func (n *Node) confirm() error {
	if !n.noted.OK {
		return nil
	}
	if err := n.db.SetConfirmed(n.noted); err != nil {
		return fmt.Errorf("storing the confirmed version of the partition table: %w", err)
	}
	n.noted = proto.Opt[uint64]{}
	return nil
}

// keepConfirmed forgets the mark of a later table than the one received: the cluster
// goes on from an earlier one.
func (n *Node) keepConfirmed(ptid uint64) error {
	n.noted = proto.Opt[uint64]{}
	c, err := n.db.Config()
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if !c.Confirmed.OK || c.Confirmed.V <= ptid {
		return nil
	}
	if err := n.db.SetConfirmed(proto.Opt[uint64]{}); err != nil {
		return fmt.Errorf("forgetting the confirmed version of the partition table: %w", err)
	}
	return nil
}

// refused returns the own cells that a change takes out of service before the
// operation begins: the master has found that another copy has what is missing here.
// Where it is missing is not known.
func (n *Node) refused(q *proto.NotifyPartitionChanges) []int {
	if n.session != nil {
		return nil
	}
	var list []int
	for _, c := range q.Cells {
		if c.ID == n.id && c.State == proto.OutOfDate && c.Partition < n.table.NP() && n.table.Cell(c.Partition, n.id).Readable() {
			list = append(list, c.Partition)
		}
	}
	return list
}

// compared answers the master, which compares the ends of the copies of a partition
// before the operation begins. Nothing is being committed meanwhile. It reads on another goroutine.
func (n *Node) compared(ev link.Event) {
	read := func(what fmt.Stringer, f func(ctx context.Context) (proto.Packet, error)) {
		n.wg.Go(func() {
			ctx, cancel := both(n.ctx, ev.Conn.Context())
			defer cancel()
			a, err := f(ctx)
			n.finishRead(ctx, ev.Conn, ev.ID, a, what, err)
		})
	}
	switch q := ev.Packet.(type) {
	case *proto.AskCheckTIDRange:
		if !n.checkable(q.Partition) {
			ev.Conn.AnswerError(ev.ID, proto.CheckingError, "partition %d cannot be checked here", q.Partition)
			return
		}
		read(q.Min, func(ctx context.Context) (proto.Packet, error) {
			return n.db.CheckTIDs(ctx, q.Partition, q.Length, q.Min, min(q.Max, tid.Max))
		})
	case *proto.AskCheckSerialRange:
		if !n.checkable(q.Partition) {
			ev.Conn.AnswerError(ev.ID, proto.CheckingError, "partition %d cannot be checked here", q.Partition)
			return
		}
		read(q.MinOID, func(ctx context.Context) (proto.Packet, error) {
			return n.db.CheckSerials(ctx, q.Partition, q.Length, q.Min, min(q.Max, tid.Max), q.MinOID)
		})
	}
}
