// Package memnet is a network in memory for tests: hosts that listen and dial by
// address, with connections that can be cut, held and delayed.
//
// Waiting on it is durable in the sense of testing/synctest, so that whole
// clusters run in simulated time.
//
// # Invariant
//
// Bytes of a connection arrive in order, or the connection is reset: nothing is
// lost in between, as with TCP.
package memnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// ErrReset is what both ends of a connection get when it is cut.
var ErrReset error = syscall.ECONNRESET

var errRefused error = syscall.ECONNREFUSED

// Network is a set of hosts. Its methods may be called by any goroutine.
type Network struct {
	mu        sync.Mutex
	seed      uint64
	pipes     uint64 // made so far
	port      int
	listeners map[string]*listener // by host:port
	conns     map[*Conn]bool
	cut       map[pair]bool
	held      map[pair]bool
	delays    map[direction]delay
}

// pair is two hosts, in the order of their names.
type pair struct{ a, b string }

func pairOf(a, b string) pair {
	if b < a {
		a, b = b, a
	}
	return pair{a, b}
}

type direction struct{ from, to string }

type delay struct{ least, most time.Duration }

// New returns a network without hosts. Delays are drawn from the seed.
func New(seed uint64) *Network {
	return &Network{
		seed:      seed,
		port:      40000,
		listeners: map[string]*listener{},
		conns:     map[*Conn]bool{},
		cut:       map[pair]bool{},
		held:      map[pair]bool{},
		delays:    map[direction]delay{},
	}
}

// Host is the network as seen from a host. It can be the Network of a
// link.Config.
type Host struct {
	n    *Network
	name string
}

// Host returns the host with this name, an IP address usually.
func (n *Network) Host(name string) Host { return Host{n, name} }

// Listen listens at host:port; port 0 chooses one.
func (h Host) Listen(_ context.Context, addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listening at %s: %w", addr, err)
	}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if port == "0" {
		addr = h.n.addrLocked(host)
	}
	if h.n.listeners[addr] != nil {
		return nil, fmt.Errorf("listening at %s: %w", addr, syscall.EADDRINUSE)
	}
	l := &listener{n: h.n, addr: Addr(addr), wake: sync.NewCond(&h.n.mu)}
	h.n.listeners[addr] = l
	return l, nil
}

// Dial connects to a listener. It fails at once if there is none or if the hosts
// are cut off.
func (h Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[addr]
	if l == nil || n.cut[pairOf(h.name, host)] {
		return nil, &net.OpError{Op: "dial", Net: "mem", Addr: Addr(addr), Err: errRefused}
	}
	there, back := newPipe(n, h.name, host), newPipe(n, host, h.name)
	local := Addr(n.addrLocked(h.name))
	near := &Conn{n: n, in: back, out: there, local: local, remote: l.addr}
	far := &Conn{n: n, in: there, out: back, local: l.addr, remote: local}
	n.conns[near], n.conns[far] = true, true
	l.queue = append(l.queue, far)
	l.wake.Signal()
	return near, nil
}

func (n *Network) addrLocked(host string) string {
	n.port++
	return net.JoinHostPort(host, strconv.Itoa(n.port))
}

// Cut resets the connections between two hosts and refuses new ones, until Heal.
func (n *Network) Cut(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[pairOf(a, b)] = true
	n.resetLocked(func(c *Conn) bool { return pairOf(c.in.from, c.in.to) == pairOf(a, b) })
}

// Heal ends the effect of Cut.
func (n *Network) Heal(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, pairOf(a, b))
}

// Drop resets the connections between two hosts; new ones can be made.
func (n *Network) Drop(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resetLocked(func(c *Conn) bool { return pairOf(c.in.from, c.in.to) == pairOf(a, b) })
}

// Crash resets all connections of a host and closes its listeners, as if its
// power had failed: what it sent and was not received is lost.
func (n *Network) Crash(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resetLocked(func(c *Conn) bool { return c.in.from == host || c.in.to == host })
	for addr, l := range n.listeners {
		if h, _, err := net.SplitHostPort(addr); err == nil && h == host {
			l.closeLocked()
		}
	}
}

// Vanish ends a host as a loss of power does: its listeners are closed, and what is
// sent on its connections goes nowhere, but the other ends are not told. It may
// come back and make new ones.
func (n *Network) Vanish(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.in.from == host || c.in.to == host {
			c.in.hold(true)
			c.out.hold(true)
			delete(n.conns, c) // no release either
		}
	}
	for addr, l := range n.listeners {
		if h, _, err := net.SplitHostPort(addr); err == nil && h == host {
			l.closeLocked()
		}
	}
}

func (n *Network) resetLocked(match func(*Conn) bool) {
	for c := range n.conns {
		if match(c) {
			c.in.reset()
			c.out.reset()
			delete(n.conns, c)
		}
	}
}

// Hold lets nothing arrive between two hosts, until Release. What is sent
// meanwhile arrives then.
func (n *Network) Hold(a, b string) { n.hold(a, b, true) }

// Release ends the effect of Hold.
func (n *Network) Release(a, b string) { n.hold(a, b, false) }

func (n *Network) hold(a, b string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held[pairOf(a, b)] = on
	for c := range n.conns {
		if pairOf(c.in.from, c.in.to) == pairOf(a, b) {
			c.in.hold(on)
		}
	}
}

// Delay makes whatever one host sends to another arrive after a random time
// between least and most, still in order.
func (n *Network) Delay(from, to string, least, most time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delays[direction{from, to}] = delay{least, most}
}

// delay returns the bounds of the delay of what is sent now.
func (n *Network) delay(from, to string) delay {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.delays[direction{from, to}]
}

// Conns returns the number of open ends of connections, to find leaks.
func (n *Network) Conns() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns)
}

// Addr is an address: host:port.
type Addr string

func (Addr) Network() string  { return "mem" }
func (a Addr) String() string { return string(a) }

type listener struct {
	n      *Network
	addr   Addr
	queue  []*Conn
	wake   *sync.Cond // of n.mu
	closed bool
}

func (l *listener) Accept() (net.Conn, error) {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.wake.Wait()
	}
	if l.closed {
		return nil, net.ErrClosed
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c, nil
}

func (l *listener) Close() error {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	if l.closed {
		return errors.New("closing a closed listener")
	}
	l.closeLocked()
	return nil
}

func (l *listener) closeLocked() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.n.listeners, string(l.addr))
	for _, c := range l.queue {
		c.in.reset()
		c.out.reset()
		delete(l.n.conns, c)
	}
	l.wake.Broadcast()
}

func (l *listener) Addr() net.Addr { return l.addr }
