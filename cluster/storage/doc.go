// Package storage is a storage node: it keeps some partitions of the database,
// takes part in the commits that touch them, and answers what clients and other
// storages ask about them.
//
// One goroutine, that of [Node.Run], owns everything: the node and partition
// tables, the transactions in progress, and all writes to the database. Loads are
// the exception: they are answered where they are read, by the goroutine of the
// connection, after a look at the objects that are locked for reading.
//
// # Durability
//
// Answers that promise something (vote, lock) are kept back until the packets
// that have arrived meanwhile are processed too. Then one commit serves all of
// them, and the answers are sent.
//
// # Invariants
//
// A vote and the final TID of a transaction are on disk before they are
// acknowledged.
//
// Nothing is answered about an object or a range of TIDs where a commit is being
// completed, nor about a partition that is not complete here.
//
// An error of the database ends the node: what it holds is then replicated from
// others, or verified when it starts again.
package storage
