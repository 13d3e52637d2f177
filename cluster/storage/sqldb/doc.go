// Package sqldb stores the data of a NEO node in an SQL database, in the tables
// that the Python implementation uses, so that either can open what the other
// wrote. What differs between databases is a [Dialect].
//
// # Invariants
//
// There is one writing connection and one SQL transaction on it, shared by all
// NEO transactions and ended by Commit only. There is never a rollback: an abort
// deletes rows.
//
// What a NEO transaction writes is first kept in memory and reaches SQL in a few
// statements of many rows, at the latest in the Commit that makes it durable. A
// transaction that is voted and unlocked between two commits never visits the
// temporary tables.
//
// Reads use connections of their own, which see what is committed and never wait
// for a commit. The records added since the last commit are remembered in a small
// map (the overlay) and merged in; reads that it cannot answer go to the writing
// connection.
//
// A connection that is lost is replaced by another one where that loses nothing: a reading one
// always, the writing one if nothing has been written since the last COMMIT. What was running
// is repeated. A read ends with its context, even while a statement is running, on the
// reading connections; never on the writing one, which may have something uncommitted.
//
// After any other failed write nothing can be written any more: the first error is
// returned to every later call.
package sqldb
