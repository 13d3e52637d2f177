// Package backup opens a backup repository and reads what is in it: its lineages, its
// epochs, what a lineage holds, its segments, and the history in them.
//
// A [Repository] is one prefix of a store. A [State] is what one lineage held at a
// moment: its newest manifest and the unbroken run of tails after it. Its [Part]s are
// segments in the order of TIDs, from the first transaction to the head. [Keys] are
// what a reader can open of what is encrypted.
//
// # Invariant
//
// Nothing that no trusted key signed is used. What is read is the whole history up to a
// TID, or an error: a range that is missing is never passed over.
package backup
