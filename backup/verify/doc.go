// Package verify finds what is wrong in a backup repository.
//
// [Check] looks at what is stored, and reads the notes: what is missing, what is there too
// much, whose size, signature or chain is wrong, whether a newest state is older than the one that
// this host has seen. [Read] reads segments, all or a share of them, and verifies
// everything that they can show. [Against] compares the history with that of a source.
//
// # Invariant
//
// All damage of a run is reported, each as a [Finding] that names the object, and the range of
// the history and the objects in it as far as they are known. What could not be looked at is
// never taken for good: it is in the summary, or the error. Nothing is changed in the repository.
package verify
