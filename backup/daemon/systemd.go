package daemon

import (
	"errors"
	"net"
	"strings"
)

// Manager is the service manager, which is told how the daemon is; create it with [NewManager].
type Manager struct{ addr *net.UnixAddr }

// NewManager returns the manager that listens on a socket, that of NOTIFY_SOCKET. It may be
// empty: then nothing is told.
func NewManager(socket string) *Manager {
	if socket == "" {
		return &Manager{}
	}
	return &Manager{&net.UnixAddr{Name: socket, Net: "unixgram"}}
}

// Tell sends lines such as READY=1 and STATUS=text.
func (m *Manager) Tell(lines ...string) error {
	if m.addr == nil {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, m.addr)
	if err != nil {
		return err
	}
	for i, l := range lines {
		lines[i] = strings.ReplaceAll(l, "\n", " ")
	}
	_, err = c.Write([]byte(strings.Join(lines, "\n")))
	return errors.Join(err, c.Close())
}
