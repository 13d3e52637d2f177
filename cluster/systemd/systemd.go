// Package systemd tells a service manager how a program is, as sd_notify does.
//
// # Invariant
//
// What is told is what is: READY=1 comes once a program does what it was started for, or waits
// for others with everything of its own open; STOPPING=1 before it ends in order. Without a
// service manager nothing is told, and a manager that cannot be told keeps no program from its work.
package systemd

import (
	"errors"
	"net"
	"strings"
	"time"
)

// Socket is the variable of the environment with the address of the service manager.
const Socket = "NOTIFY_SOCKET"

// patience is how long a manager may take to read what it was told before.
const patience = time.Second

// Manager is the service manager, which is told how the program is; create it with [NewManager].
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
	text := make([]string, len(lines))
	for i, l := range lines {
		text[i] = strings.ReplaceAll(l, "\n", " ")
	}
	if err = c.SetWriteDeadline(time.Now().Add(patience)); err == nil {
		_, err = c.Write([]byte(strings.Join(text, "\n")))
	}
	return errors.Join(err, c.Close())
}
