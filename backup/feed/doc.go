// Package feed is what a backup reads: a Data.fs, a cluster, or the backup of a
// cluster.
//
// A [Feed] gives the history of its source in the order of TIDs, whole transactions
// only, and says what a backup must know to be right: which history a pack may have
// removed, whether an earlier revision that a record copies is still there, and whether
// the source is still the one that was read before.
//
// # Invariant
//
// What Read yields for a range is all that the source had in it, except for revisions that
// a pack at or before [Feed.Packed] has removed. Of those that Read left out, none was
// the state of its object at a TID from Packed on: a deletion that went with the records
// of its object is restored, as a record without data in its transaction. So the records of
// the range, put on top of those up to its beginning, give each object as it was at any
// TID at or after Packed.
package feed
