//go:build !unix

package socket

import (
	"io"
	"net"
)

// Writer is not available on this system.
type Writer struct{}

// NewWriter returns nil.
func NewWriter(net.Conn) *Writer { return nil }

func (*Writer) TryWrite([]byte) (int, error) { return 0, nil }

// NewReader returns nc.
func NewReader(nc net.Conn) io.Reader { return nc }
