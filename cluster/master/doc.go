// Package master is the master node: it knows who is in the cluster and which
// storage keeps what, gives out transaction and object ids, and orders commits.
// It keeps nothing on disk: what it must know is recovered from the storages.
//
// A [Machine] decides. It is a value without I/O, clock or goroutine: events go
// in, effects come out, in the order in which they must be carried out. A
// [Master] is the shell around it: connections and one goroutine that owns the
// machine.
//
// # Invariant
//
// What was answered as committed stays committed. A transaction is answered only
// after every living storage that takes part in it has locked it; commits are
// announced in the order of their TIDs; a database starts only from a partition
// table as new as any seen, and by itself only with every node that has a
// readable cell, or if nothing was committed since that table.
//
// See DESIGN.md for the reasons behind the decisions that the protocol leaves open.
package master
