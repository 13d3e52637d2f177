// Package keeper deletes what a backup repository does not need any more, and extends the locks of
// what it does.
//
// What is needed follows from the policy in force ([Keeper.Policy], [Keeper.Publish]), a signed note
// in the repository that all keepers obey. [Keeper.Prune] finds it out from a list of all objects
// and the notes among them. It deletes in two steps: a doom list announces, and a run at least a day
// later deletes what is not needed then either. [Keeper.Undo] cancels, [Keeper.Forget] lets an old
// lineage go early, [Keeper.ExtendLocks] keeps object locks from running out. [Bucket] has the
// permissions of each role.
//
// # Invariant
//
// Only what a doom list of a trusted key named at least a day ago, by the clock of the store, is
// deleted, and only if a new look finds that it is not needed. If it is not certain what is needed,
// nothing is deleted.
package keeper
