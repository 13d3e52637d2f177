package link

import (
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neozodb/neo/cluster/proto"
)

// A peer whose machine is gone is noticed although something is under way to it: TCP
// sends no keepalive then.
func TestSilentMachine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	in := make(inbox, 10)
	c := newConn(near, address(near.RemoteAddr()), Config{Deliver: func(ev Event) { in <- ev }})
	c.start()
	t.Cleanup(func() {
		c.Close()
		<-c.Done()
		far.Close()
	})
	if _, err := far.Write(proto.Handshake[:]); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Read(make([]byte, len(proto.Handshake))); err != nil {
		t.Fatal(err)
	}
	rc, err := far.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// From here on, nothing reaches the other socket.
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	prog := &unix.SockFprog{Len: 1, Filter: &drop[0]}
	if cerr := rc.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, prog)
	}); cerr != nil || err != nil {
		t.Skipf("no socket filter on this system: %v, %v", cerr, err)
	}
	c.Send(&proto.Ping{})
	c.mu.Lock()
	c.silence = 300 * time.Millisecond
	c.mu.Unlock()
	c.watch()
	if err := in.end(t); !strings.Contains(err.Error(), "acknowledged nothing") {
		t.Errorf("ended with %v", err)
	}
}
