package zeoclient

import (
	"strings"
	"syscall"
	"time"
)

const tcpUserTimeout = 0x12 // TCP_USER_TIMEOUT

// limitSilence has the kernel end a TCP connection if the other machine does not
// acknowledge what was sent, as when it lost its power. The default is a quarter of an
// hour. A server that is slow, on a machine that runs, is waited for.
func limitSilence(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(time.Minute/time.Millisecond))
	})
	if err == nil {
		err = failed
	}
	return err
}
