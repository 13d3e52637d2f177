package zeoclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

// Config says which storage of which server to read.
type Config struct {
	Network string // "tcp" (default) or "unix"
	// Dial makes the connection. Default: that to Addr.
	Dial    func(ctx context.Context) (net.Conn, error)
	Addr    string      // host:port, or a path
	Storage string      // default: "1"
	TLS     *tls.Config // default: a plain connection

	// Writable registers as a client that may write, which a read-only server refuses.
	// It is what [Client.NewOID] needs; nothing here writes.
	Writable bool

	// MaxFrame is the greatest message accepted, in bytes. Default: 1 GiB.
	MaxFrame int
}

const (
	helloLimit = 64 << 10
	// A server may drop a client that is silent for several minutes.
	heartbeatInterval = time.Minute
	// writeTimeout is how long a server may leave a call unread.
	writeTimeout = time.Minute
)

// Client is one connection to a ZEO server. Its methods may be called concurrently.
type Client struct {
	addr    string
	storage string
	nc      net.Conn
	msgpack bool
	frames  *wire.FrameReader
	dec     wire.AnswerDecoder

	write sync.Mutex // held while a call is encoded and written
	enc   wire.Encoder

	mu    sync.Mutex
	id    int64
	calls map[int64]*call // not answered; nil: given up meanwhile
	err   error           // why the connection was lost
	lost  chan struct{}   // closed when it was
	wg    sync.WaitGroup
}

// call is a call under way. take copies the result out of the answer; the reader of
// the connection runs it.
type call struct {
	take func(v *wire.Value) error
	err  error
	done chan struct{}
}

// Dial connects to a server and registers for reading. It gives up when the context
// ends, which has no effect later.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Network == "" {
		cfg.Network = "tcp"
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context) (net.Conn, error) {
			d := net.Dialer{Control: limitSilence}
			return d.DialContext(ctx, cfg.Network, cfg.Addr)
		}
	}
	nc, err := cfg.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("ZEO server %s: %w", cfg.Addr, err)
	}
	return newClient(ctx, nc, cfg)
}

// newClient begins to talk on a connection, which it closes if that fails.
func newClient(ctx context.Context, nc net.Conn, cfg Config) (*Client, error) {
	if cfg.Storage == "" {
		cfg.Storage = "1"
	}
	if cfg.MaxFrame == 0 {
		cfg.MaxFrame = 1 << 30
	}
	c := &Client{addr: cfg.Addr, storage: cfg.Storage, nc: nc, calls: make(map[int64]*call), lost: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	err := c.hello(ctx, &cfg)
	if !stop() && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("ZEO server %s: %w", cfg.Addr, err)
	}
	c.frames.Limit = cfg.MaxFrame
	c.wg.Go(c.read)
	c.wg.Go(c.beat)
	if err := c.register(ctx, !cfg.Writable); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// hello agrees on the protocol.
func (c *Client) hello(ctx context.Context, cfg *Config) error {
	if cfg.TLS != nil {
		tc := tls.Client(c.nc, cfg.TLS)
		if err := tc.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
		c.nc = tc
	}
	c.frames = wire.NewFrameReader(c.nc, helloLimit)
	proposed, err := c.frames.Next()
	if err != nil {
		return fmt.Errorf("no protocol was proposed (is it a ZEO server, with or without TLS as configured?): %w", err)
	}
	switch string(proposed) {
	case "M5":
		c.msgpack = true
	case "Z5":
	default:
		return fmt.Errorf("protocol %.20q is not known: want Z5 or M5", proposed)
	}
	c.enc.Msgpack, c.dec.Msgpack = c.msgpack, c.msgpack
	at := c.enc.BeginFrame()
	c.enc.B = append(c.enc.B, proposed...)
	c.enc.EndFrame(at)
	return c.flush()
}

func (c *Client) register(ctx context.Context, readOnly bool) error {
	return c.call(ctx, "register", fmt.Sprintf("storage %q", c.storage), func(e *wire.Encoder) {
		e.BeginTuple(2)
		e.Text(c.storage)
		e.Bool(readOnly)
		e.EndTuple(2)
	}, func(*wire.Value) error { return nil })
}

// Close ends the connection. Calls under way fail.
func (c *Client) Close() {
	c.fail(net.ErrClosed)
	c.wg.Wait()
}

// Addr returns the address of the server, as it was given.
func (c *Client) Addr() string { return c.addr }

// Done returns a channel that is closed when the connection is lost.
func (c *Client) Done() <-chan struct{} { return c.lost }

// Err returns why the connection was lost, nil if it was not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// lostError says that the connection ended.
type lostError struct {
	addr string
	err  error
}

func (e *lostError) Error() string {
	return fmt.Sprintf("connection to ZEO server %s was lost: %v", e.addr, e.err)
}

func (e *lostError) Unwrap() []error { return []error{txn.ErrUnavailable, e.err} }

// fail ends the connection and the calls that wait for it. The first reason counts.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	if err == io.EOF {
		err = errors.New("the server closed it")
	}
	c.err = &lostError{c.addr, err}
	c.nc.Close()
	for _, k := range c.calls {
		if k != nil {
			k.err = c.err
			close(k.done)
		}
	}
	clear(c.calls)
	close(c.lost)
}

func (c *Client) read() {
	var a wire.Answer
	for {
		frame, err := c.frames.Next()
		if err == nil {
			err = c.dec.Decode(frame, &a)
		}
		if err == nil && !a.Notice {
			err = c.answered(&a)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// answered ends a call. An error ends the connection.
func (c *Client) answered(a *wire.Answer) error {
	c.mu.Lock()
	k, waits := c.calls[a.ID]
	delete(c.calls, a.ID)
	c.mu.Unlock()
	switch {
	case !waits: // the call that it was meant for would wait without end
		return fmt.Errorf("%w: answer to call %d, which waits for none", wire.ErrBadMessage, a.ID)
	case k == nil:
		return nil
	}
	if a.Flag == wire.FlagException {
		k.err = exception(&a.Value)
	} else {
		k.err = k.take(&a.Value)
	}
	close(k.done)
	return nil
}

// beat tells the server once in a while that the client is alive.
func (c *Client) beat() {
	t := time.NewTicker(heartbeatInterval)
	defer t.Stop()
	for {
		select {
		case <-c.lost:
			return
		case <-t.C:
		}
		c.write.Lock()
		c.enc.Heartbeat()
		err := c.flush()
		c.write.Unlock()
		if err != nil {
			c.fail(err)
		}
	}
}

// flush writes what was encoded.
func (c *Client) flush() error {
	err := c.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = c.nc.Write(c.enc.B)
	}
	c.enc.B = c.enc.B[:0]
	return err
}

// send makes a call. args appends the tuple of arguments.
func (c *Client) send(id int64, async bool, method string, args func(*wire.Encoder)) error {
	c.write.Lock()
	defer c.write.Unlock()
	at := c.enc.BeginCall(id, async, method)
	args(&c.enc)
	c.enc.EndMessage(at)
	return c.flush()
}

// call makes a call and waits for its answer, which take reads: in another goroutine,
// and perhaps after call has returned with the error of the context. Errors name the
// call by its method and what it is about.
func (c *Client) call(ctx context.Context, method, about string, args func(*wire.Encoder), take func(v *wire.Value) error) error {
	k := &call{take: take, done: make(chan struct{})}
	err := ctx.Err()
	if err == nil {
		err = c.do(ctx, k, method, args)
	}
	if err == nil {
		return nil
	}
	if about != "" {
		method += " of " + about
	}
	if _, lost := errors.AsType[*lostError](err); lost {
		return fmt.Errorf("%s: %w", method, err)
	}
	return fmt.Errorf("ZEO server %s: %s: %w", c.addr, method, err)
}

func (c *Client) do(ctx context.Context, k *call, method string, args func(*wire.Encoder)) error {
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.id++
	id := c.id
	c.calls[id] = k
	c.mu.Unlock()
	if err := c.send(id, false, method, args); err != nil {
		c.fail(err)
	}
	select {
	case <-k.done:
		return k.err
	case <-ctx.Done():
		c.mu.Lock()
		if c.calls[id] != nil {
			c.calls[id] = nil
		}
		c.mu.Unlock()
		return ctx.Err()
	}
}

// forget tells the server that an iterator is not used any more.
func (c *Client) forget(iterator int64) {
	err := c.send(0, true, "iterator_gc", func(e *wire.Encoder) {
		e.BeginTuple(1)
		e.BeginList(1)
		e.Int(iterator)
		e.EndList(1)
		e.EndTuple(1)
	})
	if err != nil {
		c.fail(err)
	}
}

// RemoteError is an exception of the server.
type RemoteError struct {
	Class string // with its module
	Text  string // first argument or message, if it is a text
	oid   []byte // first argument, if it is one of 8 bytes
}

func (e *RemoteError) Error() string {
	if e.Text == "" {
		return e.Class
	}
	return e.Class + ": " + e.Text
}

// Is makes exceptions the errors of package txn.
func (e *RemoteError) Is(target error) bool {
	switch e.Class {
	case "ZODB.POSException.POSKeyError":
		return target == txn.ErrNoSuchObject
	case "ZODB.POSException.ReadOnlyError":
		return target == txn.ErrReadOnly
	case "ZODB.POSException.Unsupported", "builtins.NotImplementedError":
		return target == txn.ErrUnsupported
	}
	return false
}

// exception copies an exception: its class, and its arguments or attributes.
func exception(v *wire.Value) error {
	pair, ok := v.List()
	if !ok || len(pair) != 2 {
		return fmt.Errorf("%w: exception", wire.ErrBadMessage)
	}
	class, ok := wire.TextOrBytes(&pair[0])
	if !ok {
		return fmt.Errorf("%w: class of an exception", wire.ErrBadMessage)
	}
	r := &RemoteError{Class: string(class)}
	show := func(v *wire.Value) {
		if v.Kind == wire.KindBytes && len(v.B) == 8 {
			r.oid = append(r.oid, v.B...)
		}
		if p, ok := wire.TextOrBytes(v); ok {
			r.Text = fmt.Sprintf("%.200q", p)
			if v.Kind == wire.KindText {
				r.Text = string(p)
			}
		}
	}
	if args, ok := pair[1].List(); ok && len(args) > 0 {
		show(&args[0])
	}
	if pair[1].Kind == wire.KindDict {
		for items := pair[1].Box.Items; len(items) > 1; items = items[2:] {
			if name, _ := wire.TextOrBytes(&items[0]); string(name) == "message" || string(name) == "_reason" {
				show(&items[1])
			}
		}
	}
	return r
}
