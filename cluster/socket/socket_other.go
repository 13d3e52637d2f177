//go:build !unix

package socket

import "net"

// Writer is not available on this system.
type Writer struct{}

// New returns nil.
func New(net.Conn) *Writer { return nil }

func (*Writer) TryWrite([]byte) (int, error) { return 0, nil }
