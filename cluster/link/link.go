// Package link is one connection between two nodes: handshake, TLS, packets in
// both directions, answers matched to requests, orderly end.
//
// A [Conn] has two goroutines. The reader hands every packet to Config.Deliver,
// in the order of arrival; the writer sends what does not fit into the socket at
// once. Sending never waits for the network.
//
// # Invariant
//
// Every packet that was received completely is delivered before the end of its
// connection, unless our side aborted it; a request that must take effect (see
// [proto.Keep]) is delivered even if our side closed the connection meanwhile.
// The end is delivered exactly once, after everything else, and each request
// made with [Conn.Ask] before it has by then got its answer or its loss.
package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/socket"
)

// ErrClosed is what errors about the end of a connection wrap, whoever ended it.
var ErrClosed = errors.New("connection closed")

// Timings of a connection.
const (
	// connectTimeout bounds a TCP connection attempt: a host that is down must
	// not keep others from being tried.
	connectTimeout = 10 * time.Second
	// handshakeTimeout is how long TLS, and an accepted peer, may take to say
	// who they are. No answer has a limit: a slow node is not a dead node. What has
	// one is the time without sign of life, see [Config].
	handshakeTimeout = time.Minute
	// silenceTimeout is how long a peer may acknowledge nothing of what was sent to
	// it: keepalive finds who is gone only while nothing is under way, otherwise TCP
	// repeats it for a quarter of an hour. A peer that is there, however slow, does
	// so each time, which is after two minutes at most.
	silenceTimeout = 150 * time.Second
	// flushTimeout bounds an abort if the peer does not read.
	flushTimeout = 10 * time.Second
	// lingerTimeout is how long an aborted connection waits for the peer to
	// close, so that the last packet is not lost in a reset.
	lingerTimeout = time.Second
)

// delayedBytes is the size above which delayed packets are sent without waiting
// for a normal one.
const delayedBytes = 64 << 10

// Config is what the connections of a node have in common.
type Config struct {
	TLS *tls.Config // from LoadTLS; nil: plain
	// Deliver is called by the reader goroutine of a connection. If it blocks,
	// nothing more is read from the peer. Nil: only Call is used.
	Deliver func(Event)
	Log     *slog.Logger // default: discard
	// Idle, if not nil, is called on the goroutine that delivers, before it waits for
	// more input: all packets that have arrived are delivered.
	Idle func(*Conn)
	// Record is told every packet, for a log of packets. It must not block.
	Record  func(sent bool, peer string, id uint32, p proto.Packet)
	Traffic *Traffic // counts; default: nothing is counted
	Network Network  // default: TCP
	// PeerTimeout is how long a peer may give no sign of life before the connection
	// is closed; a peer that does not give any by itself, as Python nodes do not, has
	// twelve times as long. Negative: no limit. 0: this side gives no sign of life
	// either, and its peers will have to ask.
	PeerTimeout time.Duration
	// Silent, if not nil, is called instead of closing the connection, and again
	// every second as long as nothing arrives: it may call [Conn.GiveUp].
	Silent func(c *Conn, silence time.Duration)
	// Greeted tells that a peer which is alive sends its handshake within PeerTimeout,
	// because it is a master: it does not wait for a database.
	Greeted bool

	refusals *socket.Refusals // of a listener or dialer; nil: not logged
}

func (c *Config) logger() *slog.Logger {
	if c.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Log
}

func (c *Config) network() Network {
	if c.Network == nil {
		return tcp{}
	}
	return c.Network
}

// Event is a packet, the loss of a request, or the end of a connection.
type Event struct {
	Conn   *Conn
	ID     uint32
	Packet proto.Packet // nil: a lost request, or the end
	Asked  *Pending     // the request that this answers, if it was made with Ask
	Err    error        // why there is no packet
}

// End reports whether this is the last event of its connection.
func (e Event) End() bool { return e.Packet == nil && e.Asked == nil }

// Stale reports whether an event that waited in a queue must not be processed,
// because our side has ended the connection meanwhile: nothing after an abort;
// after a close, no request, unless it must take effect.
func (e Event) Stale() bool {
	if e.Packet == nil || e.Asked != nil {
		return false
	}
	e.Conn.mu.Lock()
	defer e.Conn.mu.Unlock()
	return e.Conn.staleLocked(e.Packet)
}

// Pending is a request without answer.
type Pending struct {
	ID      uint32
	Request proto.Request
	Tag     any // as given to Ask
}

// Network is how connections are made: TCP, or a network in memory. Addresses
// are host:port.
type Network interface {
	Dial(ctx context.Context, addr string) (net.Conn, error)
	Listen(ctx context.Context, addr string) (net.Listener, error)
}

type tcp struct{}

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 10 * time.Second, Count: 3}

func (tcp) Dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: connectTimeout, KeepAliveConfig: keepAlive}
	return d.DialContext(ctx, "tcp", addr)
}

func (tcp) Listen(ctx context.Context, addr string) (net.Listener, error) {
	l := net.ListenConfig{KeepAliveConfig: keepAlive}
	return l.Listen(ctx, "tcp", addr)
}

// Dial connects to addr and sends the handshake. It does not wait for the peer's,
// which is checked before the first packet is delivered.
func Dial(ctx context.Context, addr proto.Address, cfg Config) (*Conn, error) {
	limited, cancel := ctx, context.CancelFunc(func() {})
	if cfg.PeerTimeout > 0 {
		// A host that is there answers at once.
		limited, cancel = context.WithTimeout(ctx, min(connectTimeout, cfg.PeerTimeout/2))
	}
	nc, err := cfg.network().Dial(limited, addr.String())
	cancel()
	if err != nil {
		return nil, fmt.Errorf("connecting to %v: %w", addr, err)
	}
	c := newConn(nc, addr, cfg)
	if cfg.TLS != nil {
		tc := tls.Client(nc, cfg.TLS)
		ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
		defer cancel()
		if err := tc.HandshakeContext(ctx); err != nil {
			nc.Close()
			cfg.Traffic.end(c.counts)
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("the peer hung up during the TLS handshake; it may be a node without TLS: %w", err)
			}
			err = explainTLS(err)
			c.refused(err)
			return nil, fmt.Errorf("connecting to %v: %w", addr, err)
		}
		c.nc = tc
	}
	c.start()
	return c, nil
}

// New takes an accepted connection. Events may be delivered before it returns.
func New(nc net.Conn, cfg Config) *Conn {
	c := accepted(nc, cfg)
	c.start()
	return c
}

func accepted(nc net.Conn, cfg Config) *Conn {
	c := newConn(nc, address(nc.RemoteAddr()), cfg)
	c.incoming = true
	if cfg.TLS != nil {
		c.nc, c.shaking = tls.Server(nc, cfg.TLS), true
	}
	return c
}

// address returns the host and port of an address of the network.
func address(a net.Addr) proto.Address {
	if a, ok := a.(*net.TCPAddr); ok {
		return proto.Address{Host: a.IP.String(), Port: uint16(a.Port)}
	}
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return proto.Address{Host: a.String()}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return proto.Address{Host: a.String()}
	}
	return proto.Address{Host: host, Port: uint16(n)}
}

// Listener accepts connections.
type Listener struct {
	nl   net.Listener
	done sync.WaitGroup
}

// Listen accepts connections to addr, whose port may be 0. Each is passed to
// accept before any of its events is delivered.
func Listen(ctx context.Context, addr proto.Address, cfg Config, accept func(*Conn)) (*Listener, error) {
	nl, err := cfg.network().Listen(ctx, net.JoinHostPort(addr.Host, strconv.Itoa(int(addr.Port))))
	if err != nil {
		return nil, fmt.Errorf("listening at %v: %w", addr, err)
	}
	cfg.refusals = &socket.Refusals{}
	l := &Listener{nl: nl}
	l.done.Go(func() { l.serve(cfg, accept) })
	return l, nil
}

func (l *Listener) serve(cfg Config, accept func(*Conn)) {
	pause := 10 * time.Millisecond
	for {
		nc, err := l.nl.Accept()
		switch {
		case err == nil:
			pause = 10 * time.Millisecond
			c := accepted(nc, cfg)
			accept(c)
			c.start()
		case errors.Is(err, net.ErrClosed):
			return
		default: // too many open files, most likely: others may close some
			cfg.logger().Warn("accept", "addr", l.Addr().String(), "err", err)
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
		}
	}
}

// Addr returns the address that is listened at, with the real port.
func (l *Listener) Addr() proto.Address { return address(l.nl.Addr()) }

// Close stops listening. Accepted connections stay.
func (l *Listener) Close() error {
	err := l.nl.Close()
	l.done.Wait()
	return err
}
