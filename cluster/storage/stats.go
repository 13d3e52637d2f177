package storage

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/latency"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/pending"
	"github.com/neozodb/neo/cluster/tid"
)

// counts are what a node counts, beside its vitals.
type counts struct {
	loaded, damaged      atomic.Uint64 // bytes, reads
	stored, fetched, fed amount
	commits              latency.Histogram

	// Of the periods of operation that are over. Owned by Run.
	waits       pending.Counts
	differences uint64
}

// amount is a number of records and their size.
type amount struct{ records, bytes atomic.Uint64 }

func (a *amount) add(records, bytes int) {
	a.records.Add(uint64(records))
	a.bytes.Add(uint64(bytes))
}

func (a *amount) get() Amount { return Amount{a.records.Load(), a.bytes.Load()} }

// Amount is a number of records of objects, and the bytes of their data as they are stored.
type Amount struct{ Records, Bytes uint64 }

// Stats is what a storage knows now and has counted since it was started.
type Stats struct {
	ID          proto.NodeID // 0: the master has given none yet
	Connected   bool         // to the primary master
	Operational bool
	Backup      bool                    // it follows an upstream cluster
	Clients     int                     // connected
	Cells       map[proto.CellState]int // of this storage, by state

	Transactions int // in progress here
	Waiting      int // requests that wait for a lock or for a commit
	pending.Counts

	Committed uint64 // transactions, by orders to unlock them
	Loaded    Amount // by clients; records that were asked for, bytes of those that are there
	Stored    Amount // by clients, in transactions that were aborted too
	// Fetched is what came from other storages by replication, Fed what they were given.
	Fetched, Fed Amount

	Replicating int           // cells that are replicated or wait for it
	Lag         time.Duration // see [replica.Stats]
	Comparing   bool          // replicas are compared by this storage
	Differences uint64        // that this storage has found so far by comparing replicas
	Damaged     uint64        // reads that have found damaged data, so far

	Packing       int               // partitions that are still to be packed by the order in progress; 0: none is
	Packed        tid.TID           // the pack order up to which all cells are packed, as the master knows it; Zero: none
	PackOrdered   tid.TID           // the last pack order that is approved; Zero: none
	Dropping      int               // partitions whose data are being deleted
	KeptDeletions int               // partitions that keep deletions for replicas which are away
	Import        *importing.Report // nil: the database does not import
	Commits       latency.Snapshot  // of the database
	Traffic       link.TrafficStats
}

// Ready returns why the storage serves no purpose now, nil if it does.
func (s *Stats) Ready() error {
	switch {
	case !s.Connected:
		return errors.New("not connected to the primary master")
	case !s.Operational:
		return errors.New("not operational: the cluster is not running, or waits for the operator")
	}
	return nil
}

// Stats returns the present state. If ctx ends before the node has answered, the error says so, and
// only what is counted is there: a node that is busy, as with a database that hangs, has that too.
func (n *Node) Stats(ctx context.Context) (Stats, error) {
	answer := make(chan Stats, 1)
	ask := event{call: func() error { answer <- n.stats(); return nil }}
	var s Stats
	var err error
	select {
	case n.inbox <- ask:
		select {
		case s = <-answer:
		case <-n.done:
			err = errors.New("the storage has ended")
		case <-ctx.Done():
			err = fmt.Errorf("the storage does not answer: it is busy, or its database hangs: %w", context.Cause(ctx))
		}
	case <-n.done:
		err = errors.New("the storage has ended")
	case <-ctx.Done():
		err = fmt.Errorf("the storage takes no packets: it is busy, or its database hangs: %w", context.Cause(ctx))
	}
	c := &n.counts
	s.Committed = uint64(n.vitals.commits.Load())
	s.Loaded = Amount{uint64(n.vitals.loads.Load()), c.loaded.Load()}
	s.Stored, s.Fetched, s.Fed = c.stored.get(), c.fetched.get(), c.fed.get()
	s.Damaged, s.Commits, s.Traffic = c.damaged.Load(), c.commits.Snapshot(), n.traffic.Stats()
	if db, ok := n.db.(backend.Runner); ok {
		r := db.Progress()
		s.Import = &r
	}
	return s, err
}

// stats returns what is owned by Run.
func (n *Node) stats() Stats {
	s := Stats{
		ID: n.id, Connected: n.master != nil, Operational: n.session != nil, Backup: n.backupTID.Load() != nil,
		Clients: len(n.clients), Cells: map[proto.CellState]int{},
		Counts: n.counts.waits, Differences: n.counts.differences, Packed: n.completedPack, PackOrdered: n.lastPack,
	}
	for i := range n.table.NP() {
		if state := n.table.Cell(i, n.id); state != proto.Discarded {
			s.Cells[state]++
		}
	}
	o := n.session
	if o == nil {
		return s
	}
	s.Transactions, s.Waiting = o.txns.Len()
	s.Counts = s.Counts.Plus(o.txns.Counts())
	r := o.replicator.m.Stats()
	s.Replicating, s.Lag, s.Comparing = r.Cells, r.Lag, r.Comparing
	s.Differences += r.Differences
	if k := o.worker.packing; k != nil {
		s.Packing = max(len(k.todo), 1)
	}
	s.Dropping, s.KeptDeletions = len(o.worker.drop), len(o.worker.kept)
	return s
}

// sessionEnds keeps what the operation that ends has counted.
func (n *Node) sessionEnds(s *session) {
	n.counts.waits = n.counts.waits.Plus(s.txns.Counts())
	n.counts.differences += s.replicator.m.Stats().Differences
}
