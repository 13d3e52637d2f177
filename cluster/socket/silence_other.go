//go:build !linux

package socket

import (
	"net"
	"time"
)

// Silence is not known on this system.
func Silence(net.Conn) (time.Duration, bool) { return 0, false }
