//go:build !unix

package link

import "net"

// socketWriter returns nil: only the writer goroutine writes.
func socketWriter(net.Conn) tryWriter { return nil }
