// Package restore makes of a backup repository what was backed up: a Data.fs, the
// contents of a running cluster, or the tables of the storage nodes of a cluster that
// is to be started.
//
// A [Source] is a repository at a moment. [Source.Plan] says what a restore would read;
// [Source.ToFile], [Source.ToCluster] and [Source.ToTables] restore.
//
// # Invariant
//
// A restore at T gives the history up to T as the source had it, or an error: nothing
// is written before it is known that T is exact, that every segment is named by a trusted
// note and that every epoch can be opened. What was written is read again and compared
// with what the repository says of it, before it gets the name or the state under which it
// is used: a file that is not complete is called PATH.part, the tables of a node
// are not those of a node. An interrupted restore goes on where it was.
package restore
