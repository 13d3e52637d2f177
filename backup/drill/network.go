package drill

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
)

// network joins nodes of this process by sockets that no other process can reach. It is
// a link.Network.
type network struct {
	mu        sync.Mutex
	port      int
	listeners map[string]*listener
}

func newNetwork() *network { return &network{listeners: map[string]*listener{}} }

// errRefused reports an address at which nothing listens.
var errRefused = errors.New("connection refused")

// Listen returns a listener. With port 0 it chooses one.
func (n *network) Listen(_ context.Context, addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	num, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	if num == 0 {
		n.port++
		num = n.port
	}
	l := &listener{n: n, addr: &net.TCPAddr{IP: net.ParseIP(host), Port: num}, conns: make(chan net.Conn), closed: make(chan struct{})}
	if n.listeners[l.addr.String()] != nil {
		return nil, fmt.Errorf("%v: address already in use", l.addr)
	}
	n.listeners[l.addr.String()] = l
	return l, nil
}

// Dial connects to a listener.
func (n *network) Dial(ctx context.Context, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[addr]
	n.port++
	from := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: n.port}
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("%s: %w", addr, errRefused)
	}
	a, b, err := pair()
	if err != nil {
		return nil, err
	}
	select {
	case l.conns <- &conn{b, l.addr, from}:
		return &conn{a, from, l.addr}, nil
	case <-l.closed:
		err = fmt.Errorf("%s: %w", addr, errRefused)
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(err, a.Close(), b.Close())
}

// pair returns both ends of a connection.
func pair() (a, b net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	var ends [2]net.Conn
	var errs []error
	for i, fd := range fds {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "socketpair")
		ends[i], err = net.FileConn(f)
		errs = append(errs, err, f.Close())
	}
	if err := errors.Join(errs...); err != nil {
		for _, c := range ends {
			if c != nil {
				c.Close() // the error is told
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}

// conn has addresses, which nodes tell each other apart by.
type conn struct {
	net.Conn
	local, remote net.Addr
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

type listener struct {
	n      *network
	addr   net.Addr
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.n.mu.Lock()
		defer l.n.mu.Unlock()
		delete(l.n.listeners, l.addr.String())
	})
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }
