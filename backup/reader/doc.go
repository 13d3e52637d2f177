// Package reader reads each object of a backup repository at any time, without restoring
// it: a [Database] is the history of a lineage up to a transaction.
//
// A load looks for the object in the indexes of the segments, the newest first, and
// reads one frame. Indexes are read ahead in the background, once, and kept on this machine
// in sorted lists; until then a load asks for one block of each segment.
//
// # Invariant
//
// An answer is that of the history, or an error. A segment that is missing, damaged or
// lost in a gap gives an error to what can only be known from it, and nothing else. What is on
// this machine carries no truth: it may be deleted or damaged at any time.
package reader
