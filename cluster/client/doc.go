// Package client is the client of a NEO cluster: it loads objects, stores them
// in two-phase commits, undoes, packs and iterates over history.
//
// A [Client] keeps one link to the primary master and one to each storage node
// it needs. It may be used by many goroutines; a [Txn] belongs to one at a time.
//
// # Invariant
//
// What the client tells of the present is never older than what it told before
// of the past: every link is read by one goroutine, what the master sends is
// applied in the order of arrival, and [Client.LastTID] names a transaction only
// after its invalidations were given to the cache and to Config.OnInvalidate. So
// a reader that starts at LastTID()+1 sees exactly what was committed up to it.
//
// # Caveats
//
// A link that is lost fails what waits for it. Nothing has a time limit of its
// own, a slow node is not a dead node: give a context that ends.
//
// Data returned by loads is shared with the cache and must not be changed.
package client
