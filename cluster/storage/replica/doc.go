// Package replica decides how a storage node replicates, checks and repairs its cells.
//
// It completes the cells of the node from those of other nodes: cells that are
// OUT_OF_DATE, and those of a backup cluster, which stay readable while they follow the
// upstream cluster. It compares replicas of a partition, and deletes what is wrong in a
// cell that is to be repaired.
//
// A [Machine] decides. It is a value without I/O, clock or goroutine: events go in,
// effects come out, in the order in which they must be carried out. What it needs to
// know of the database it asks for by an effect, and an event tells it. The storage
// node is the shell around it: links with other storages, the database, the master.
//
// One partition is replicated at a time: first transactions, then records, in chunks.
// The keys of a chunk are listed to the source, which sends what is missing and names
// what it has not. Each chunk is committed before the next one is asked for, and only
// then counts as done.
//
// # Invariants
//
// A cell is complete below the first transactions and records that it asks for next,
// and what is recorded in the database as complete is committed with it, or later.
//
// A cell is announced as replicated when it has everything up to the last transaction
// that began without this node, and is compared for each pack order that others may
// have executed and this node has not.
//
// See DESIGN.md for the reasons.
package replica
