package socket

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Silence returns for how long the peer of a TCP connection has acknowledged nothing,
// although something was sent that it has to: 0 if nothing was. A peer that does not
// read acknowledges all the same. ok is false if nc is no TCP connection.
func Silence(nc net.Conn) (d time.Duration, ok bool) {
	rc := raw(nc)
	if rc == nil {
		return 0, false
	}
	var info *unix.TCPInfo
	var err error
	if rc.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }) != nil || err != nil {
		return 0, false
	}
	if info.Unacked == 0 {
		return 0, true
	}
	return time.Duration(info.Last_ack_recv) * time.Millisecond, true
}
