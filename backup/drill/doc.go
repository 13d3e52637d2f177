// Package drill proves that a backup repository can be restored, by restoring it.
//
// A drill opens a repository as a stranger would, with an identity and nothing else, reads the
// root object as a client of the repository would, restores all of it up to a moment, compares
// what was restored with what the repository says of each segment, with what a client of the
// repository gets, and with the source where that can be reached. What came of it is a
// signed note in the repository: a proof.
//
// # Invariant
//
// A proof that says ok is only written after the comparison of all records, each of which was
// read again from where it was restored to. What went wrong makes a proof that says so, or an
// error if none could be written. What a drill restores is removed at its end, and at the
// beginning of the next one if it was killed; nothing else ever is.
package drill
