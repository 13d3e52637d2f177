package mysqldb

import (
	"syscall"
	"time"
)

const tcpUserTimeout = 0x12 // TCP_USER_TIMEOUT

// limitSilence has the kernel end a TCP connection if the other machine does not acknowledge for so long
// what was sent, with probes while nothing is: the default is a quarter of an hour.
func limitSilence(limit time.Duration) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(limit/time.Millisecond))
		})
		if err == nil {
			err = failed
		}
		return err
	}
}
