// Package zeoclient reads a storage of a ZEO server, ours or Python's, as a
// [txn.Database]. It is read-only and keeps no cache.
//
// A connection that is lost stays lost: all that waits for it and all later calls get
// an error that names the server and the call and wraps [txn.ErrUnavailable]. The
// caller connects again. An answer that no call waits for, or that is none, ends the
// connection. A server that says nothing is waited for until the context of the call
// ends, as Python's client does: some answers take long.
package zeoclient
