// Package repair makes a damaged repository whole again, as far as that is possible.
//
// [Repair] mends what the newest manifest and the tails refer to: it finds damaged and missing
// objects, and takes for each the first means that works: the same bytes, from an older version of the
// object or from another copy of the repository; smaller segments of the same content; the same content, read from the source
// again; what a packed source still has of it; or a gap that the operator accepts. [Recover] finds the
// history when no manifest verifies. [Compact] merges what a writer could not merge since it
// had lost its spool.
//
// Each returns a [Plan], which says what would be done; [Plan.Apply] does it.
//
// # Invariant
//
// Objects are only added, under new keys, and a manifest, which is created under the next number. Nothing is deleted or
// written over. What no trusted key signed is used only if the source has the same, or if the operator accepts
// it. What is lost is named: a restore needs to accept it as well.
package repair
