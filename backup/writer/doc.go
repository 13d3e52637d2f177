// Package writer takes backups: it reads what is new in a [feed.Feed] and adds it to a
// repository, once or continuously.
//
// A [Writer] appends tails to the current lineage, each of which commits the
// transactions since the one before it, and from time to time publishes a manifest that
// sums them up. While it does, it merges small segments into greater ones, from copies of
// their plaintext in its state directory: it needs neither the key that decrypts, nor
// the permission to delete, nor to overwrite. plan.go decides what is merged, sealed and
// published when, as pure functions; the rest carries it out.
//
// # Invariant
//
// A transaction counts as stored when a tail that contains it, or names the segments that
// do, was created under the next number of the chain, and not before. A tail or a
// manifest names only what was completely stored before it. What is in the state
// directory may be lost at any time: that costs time and merges, never data.
package writer
