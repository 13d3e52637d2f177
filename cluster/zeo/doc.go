// Package zeo serves a storage to unmodified ZEO clients: it speaks version 5 of
// the ZEO protocol, in both of its encodings, over any [Storage] given to it.
//
// Each storage has one sequencer. It learns of every commit of any client, in
// the order of the transaction ids, and puts it into the output queues of all
// connections before anything that was computed later. Connections never wait
// for each other: a client that does not read is dropped.
//
// # Invariant
//
// On one connection the transactions announced are strictly increasing and
// without gap, and once transaction T was announced, no later answer to a load
// is older than T. A client cache relies on it: what breaks it shows stale data
// as current, silently and lastingly, since ZEO caches are files.
package zeo
