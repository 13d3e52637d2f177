// Package backup opens a backup repository and reads what is in it: its lineages,
// epochs and state, its segments, and the history that they hold.
//
// A [Repository] is one prefix of a store. A [State] is what one lineage held at a
// moment: its newest manifest and the unbroken run of tails after it. Its [Part]s are
// the segments, in the order of TIDs, from the first transaction to the head.
// [Keys] are what a reader can open of an encrypted repository.
//
// Packages below: snapshot (the formats), store (where objects are). Packages beside:
// feed (what is backed up), writer (take, follow, merge), reader (each object at any
// time), restore, verify.
//
// # Invariant
//
// Nothing that is not signed by a trusted key is used. What is read is the whole
// history up to a TID, or an error: a range that is missing is never passed over.
package backup
