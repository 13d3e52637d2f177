package link

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/msgpack"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/socket"
)

type state uint8

const (
	open     state = iota
	aborting       // our side: input is discarded, output is flushed
	closed         // either side
	ended          // the pending requests have been failed
)

// Conn is a connection. Its methods may be called by any goroutine.
type Conn struct {
	// Tag is for the owner of the connection, and only used by it.
	Tag any

	cfg      Config
	nc       net.Conn // TLS or raw
	raw      net.Conn
	in       io.Reader // of nc
	try      tryWriter // nil: only the writer goroutine writes
	remote   proto.Address
	incoming bool
	input    *proto.Reader
	counts   *counters // nil: nothing is counted

	silence  time.Duration // silenceTimeout
	watching *time.Timer   // nil: silence cannot be seen; under mu
	silent   bool          // the peer was, when it was last looked at; under mu

	heard atomic.Bool   // something has arrived since the last beat
	waits atomic.Bool   // the reader waits for input
	reads atomic.Uint64 // how often something has arrived

	batch      atomic.Bool // more input is there already
	wake       chan struct{}
	ctx        context.Context // ends when the connection must end
	quit       context.CancelFunc
	writerDone chan struct{}
	done       chan struct{}

	mu      sync.Mutex
	peer    string
	state   state
	local   bool  // our side ended it
	aborted bool  // by an abort
	cause   error // why it ends
	nextID  uint32
	pending map[uint32]*pending
	calls   []*pending // to be used again
	out     []byte     // to be written after rest
	rest    []byte     // left over by an immediate write
	spare   []byte     // an empty buffer to become out
	flying  int        // bytes that the writer is writing
	writing bool       // somebody is writing, or the writer has been woken
	broken  bool       // output fails
	shaking bool       // an accepted peer has to do the TLS handshake
	held    bool       // the owner has more to send
	vitals  vitals
}

// pending is a request without answer. It belongs to whoever removes it from the
// map.
type pending struct {
	Pending
	answer chan answer // of a Call
	lost   bool        // the Call was given up: drop the answer
}

// maxSpareCalls is how many answered Calls are kept for reuse.
const maxSpareCalls = 16

type answer struct {
	p   proto.Packet
	err error
}

func newConn(nc net.Conn, remote proto.Address, cfg Config) *Conn {
	c := &Conn{
		cfg:        cfg,
		nc:         nc,
		raw:        nc,
		remote:     remote,
		peer:       remote.String(),
		silence:    silenceTimeout,
		wake:       make(chan struct{}, 1),
		writerDone: make(chan struct{}),
		done:       make(chan struct{}),
		pending:    map[uint32]*pending{},
		counts:     cfg.Traffic.begin(),
		out:        append(make([]byte, 0, 4<<10), proto.Handshake[:]...),
	}
	c.ctx, c.quit = context.WithCancel(context.Background())
	c.input = proto.NewReader((*source)(c))
	return c
}

func (c *Conn) start() {
	c.in, c.try = socket.NewReader(c.nc), tryWriterOf(c.nc)
	c.mu.Lock()
	if c.incoming && c.state == open { // an abort has deadlines of its own
		// A deadline that cannot be set fails the reads too.
		_ = c.nc.SetDeadline(time.Now().Add(handshakeTimeout))
	}
	c.startBeatingLocked()
	if _, ok := socket.Silence(c.raw); ok {
		c.watching = time.AfterFunc(c.silence/6, c.watch)
	}
	c.mu.Unlock()
	go c.write()
	go c.read()
	c.mu.Lock()
	c.flushLocked()
	c.mu.Unlock()
}

// watch ends the connection if the peer is gone while something is under way to it.
func (c *Conn) watch() {
	d, _ := socket.Silence(c.raw)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.state >= closed:
	case d < c.silence, !c.silent: // once may be just after a long idle time
		c.silent = d >= c.silence
		c.watching.Reset(c.silence / 6)
	default:
		c.closeLocked(fmt.Errorf("the peer has acknowledged nothing for %v", d.Round(time.Second)))
		_ = c.raw.Close()
	}
}

// RemoteAddr returns the address that was dialled, or the one of the peer's
// socket.
func (c *Conn) RemoteAddr() proto.Address { return c.remote }

// SetPeer sets the name of the peer for Record and for errors, "S1"; at first it
// is the remote address.
func (c *Conn) SetPeer(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peer = name
}

// String returns the name of the peer.
func (c *Conn) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer
}

// Done is closed when the connection has ended, with all its goroutines, and its
// last event has been delivered.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Context returns a context that ends when the connection is known to end, which is
// before its last event. What is done to answer a request need not go on then.
func (c *Conn) Context() context.Context { return c.ctx }

// Closed reports whether the connection was closed or aborted by our side or is
// known to be closed by the peer. What is sent then goes nowhere.
func (c *Conn) Closed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state != open
}

// Buffered returns the number of bytes that wait to be written.
func (c *Conn) Buffered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flying + len(c.rest) + len(c.out)
}

// PendingCount returns the number of requests that wait for an answer.
func (c *Conn) PendingCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pending)
}

// Send sends a notification, or a request that gets no answer.
func (c *Conn) Send(p proto.Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == open {
		c.queueLocked(c.idLocked(), p)
		c.flushLocked()
	}
}

// Ask sends a request. Its answer, or its loss if the connection ends, is
// delivered as an Event with Asked. If the end of the connection has already been
// delivered, or is being delivered, nothing more comes: who receives that event
// must take everything as lost.
func (c *Conn) Ask(req proto.Request, tag any) (id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.askLocked(req, &pending{Pending: Pending{Request: req, Tag: tag}}, false)
}

func (c *Conn) askLocked(req proto.Request, p *pending, later bool) uint32 {
	id := c.idLocked()
	if c.state == ended {
		return id
	}
	p.ID = id
	c.pending[id] = p
	if c.state == open {
		c.queueLocked(id, req)
		if !later || len(c.out) > delayedBytes {
			c.flushLocked()
		}
	}
	return id
}

// idLocked returns the next message id. After 2³² it starts again, and passes
// over ids that still wait for an answer, and over that of the signs of life.
func (c *Conn) idLocked() uint32 {
	for {
		id := c.nextID
		c.nextID++
		if c.pending[id] == nil && id != beatID {
			return id
		}
	}
}

// Call sends a request and waits for its answer. If that is an Error, it returns
// it as error, except for ACK, which it returns as packet. If the connection ends
// the error wraps [ErrClosed]. Deliver must not use it.
func (c *Conn) Call(ctx context.Context, req proto.Request) (proto.Packet, error) {
	c.mu.Lock()
	if c.state != open {
		err := c.lossLocked()
		c.mu.Unlock()
		return nil, err
	}
	p := c.callLocked()
	p.Request = req
	c.askLocked(req, p, false)
	c.mu.Unlock()
	select {
	case a := <-p.answer:
		c.reuseCall(p)
		if e, ok := a.p.(*proto.Error); ok && e.ErrCode != proto.Ack {
			return nil, e
		}
		return a.p, a.err
	case <-ctx.Done():
		c.mu.Lock()
		p.lost = true
		c.mu.Unlock()
		return nil, fmt.Errorf("waiting for %s to answer %s: %w", c, proto.CodeName(req.Code()), context.Cause(ctx))
	}
}

// callLocked returns a pending with a channel.
func (c *Conn) callLocked() *pending {
	n := len(c.calls)
	if n == 0 {
		return &pending{answer: make(chan answer, 1)}
	}
	p := c.calls[n-1]
	c.calls = c.calls[:n-1]
	return p
}

// reuseCall takes back a pending whose answer has been received.
func (c *Conn) reuseCall(p *pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.Pending = Pending{}
	if len(c.calls) < maxSpareCalls {
		c.calls = append(c.calls, p)
	}
}

// Answer answers the request with the given id.
func (c *Conn) Answer(id uint32, p proto.Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == open {
		c.queueLocked(id, p)
		c.flushLocked()
	}
}

// AnswerError answers a request with an Error.
func (c *Conn) AnswerError(id uint32, code proto.ErrorCode, format string, args ...any) {
	c.Answer(id, proto.Errorf(code, format, args...))
}

// SendAs sends a notification under the id of the request that it belongs to.
// AddTransaction and AddObject may wait until there is more to send.
func (c *Conn) SendAs(id uint32, p proto.Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != open {
		return
	}
	c.queueLocked(id, p)
	switch p.(type) {
	case *proto.AddTransaction, *proto.AddObject:
		if len(c.out) <= delayedBytes {
			return
		}
	}
	c.flushLocked()
}

// HandleBase does what every role does in the same way: it answers Ping, and
// closes a connection that the peer no longer needs, after CloseClient. It reports
// whether the event needs nothing more. Links between storages, which both sides
// may need, have a CloseClient of their own.
func HandleBase(ev Event) bool {
	switch ev.Packet.(type) {
	case *proto.Ping:
		ev.Conn.Answer(ev.ID, &proto.Pong{})
	case *proto.CloseClient:
		ev.Conn.Close()
	default:
		return false
	}
	return true
}

// AbortError answers a request with an Error and aborts the connection.
func (c *Conn) AbortError(id uint32, code proto.ErrorCode, format string, args ...any) {
	e := proto.Errorf(code, format, args...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == open {
		c.queueLocked(id, e)
		// Not wrapped: the peer did not say this.
		c.abortLocked(fmt.Errorf("aborted by this node: %v", e))
	}
}

// Abort discards all further input, sends what is queued, then closes.
func (c *Conn) Abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == open {
		c.abortLocked(nil)
	}
}

func (c *Conn) abortLocked(cause error) {
	c.state, c.local, c.aborted, c.cause = aborting, true, true, cause
	limit := time.Now().Add(flushTimeout)
	if c.shaking {
		// Nothing can be said to a peer before its part of the TLS handshake, which
		// may never come: writes would wait for it whatever their deadline.
		limit = time.Now()
		_ = c.raw.SetReadDeadline(limit)
	}
	_ = c.nc.SetWriteDeadline(limit)
	if !c.writing {
		c.wakeLocked()
	}
}

// Close ends the connection at once. What is queued may be lost.
func (c *Conn) Close() {
	c.mu.Lock()
	if c.state < closed {
		c.local = true
		c.closeLocked(nil)
	}
	c.mu.Unlock()
	// Not TLS's Close, which might wait for the peer. The reader closes again,
	// to no effect.
	_ = c.raw.Close()
}

// closeLocked makes everybody stop.
func (c *Conn) closeLocked(cause error) {
	if c.state >= closed {
		return
	}
	if !c.local {
		c.cause = cause
	}
	c.state = closed
	c.out, c.rest, c.spare = nil, nil, nil
	c.quit()
}

// lossLocked returns the error of a request that gets no answer.
func (c *Conn) lossLocked() error { return &lossError{c.peer, c.cause} }

// lossError tells how a connection ended.
type lossError struct {
	peer  string
	cause error
}

func (e *lossError) Error() string {
	if e.cause == nil {
		return "connection with " + e.peer + " closed"
	}
	return "connection with " + e.peer + " closed: " + e.cause.Error()
}

func (e *lossError) Is(target error) bool { return target == ErrClosed }
func (e *lossError) Unwrap() error        { return e.cause }

// queueLocked appends a packet to the output.
func (c *Conn) queueLocked(id uint32, p proto.Packet) {
	if c.broken {
		return
	}
	start := len(c.out)
	c.out = proto.Append(c.out, id, p)
	if len(c.out)-start > proto.MaxElement {
		var s msgpack.Scanner
		if _, _, err := s.Scan(c.out[start:]); err != nil {
			// Python peers would die of it.
			c.out = c.out[:start]
			err = fmt.Errorf("%s is too large to be sent: %w", proto.CodeName(p.Code()), err)
			c.cfg.logger().Error("send", "peer", c.peer, "err", err)
			c.abortLocked(err)
			return
		}
	}
	c.counts.packet(outward, p)
	if c.cfg.Record != nil {
		c.cfg.Record(true, c.peer, id, p)
	}
}
