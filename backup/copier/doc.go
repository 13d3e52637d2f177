// Package copier copies a backup repository into another store: object by object, or, where
// the copy shall be a repository of its own, as the source of its writer.
//
// [Copy] brings a store to what a repository is, with the same bytes: identity, keys,
// signatures and all lineages are the same, so each of the two can take the place of the other.
// A [Feed] gives the history of a repository to a writer, which encrypts and signs it anew.
//
// # Invariant
//
// At every moment the copy is a state that the repository had, or was going to have: nothing
// refers to what is not there yet. What was copied was verified when it was read. Nothing in the
// copy is replaced or deleted, and one that has what the repository has not is left alone.
package copier
