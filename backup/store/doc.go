// Package store says what a backup needs of the place where it is kept: [Store],
// a flat set of immutable objects under keys, as S3 has them.
//
// A store keeps five promises, each a test of the suite in storetest:
//
//   - An object is there whole or not at all.
//   - What was put is seen at once, by Get and by List, from every host.
//   - Of several writers that create one key at the same time exactly one
//     succeeds; the others get [ErrExists], and what is stored is the winner's.
//   - List yields every key once, in ascending order of its bytes.
//   - What was answered without error survives a power failure.
//
// A store that lacks one of them cannot fence writers or publish snapshots.
// Documentation does not tell which servers do: [Probe] tries it and names what
// is missing.
//
// Stores: s3store (S3 and compatible servers), filestore (a directory), memstore
// (memory, for tests). storeurl opens each by its URL. Wrappers, outermost first
// as programs stack them: [Retry] repeats what failed for a while, [Count] counts
// requests and bytes, [Limit] keeps to a rate. storetest has one that injects
// faults.
package store
