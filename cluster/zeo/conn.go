package zeo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/socket"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

// conn is one connection of a client. One goroutine reads and carries out what
// does not wait; what may wait runs in others, of which there are few.
type conn struct {
	srv    *Server
	nc     net.Conn
	plain  *slog.Logger // without the label that the client gives itself; of the reader
	logger atomic.Pointer[slog.Logger]
	ctx    context.Context // ends when the connection does
	cancel context.CancelFunc
	out    *output
	wg     sync.WaitGroup // everything but the reader

	msgpack  bool
	seq      *sequencer // nil before register
	readOnly bool
	frames   *wire.FrameReader
	dec      wire.MessageDecoder
	unsent   bool // answers to loads wait for those to the frames that have come

	loads   chan load // to idle workers
	workers atomic.Int32
	idle    atomic.Int32
	slow    chan struct{} // a place for each slow call under way

	tx    txnState
	iters iterators
	blob  bool // between storeBlobStart and storeBlobEnd
}

const (
	maxWorkers = 8  // loads at the same time
	maxSlow    = 16 // other calls at the same time
	// Before it has registered a client has nothing long to say.
	helloLimit = 64 << 10
	// Time for a TLS handshake and for the first frame.
	helloTimeout = time.Minute
)

// load is a loadBefore to be answered.
type load struct {
	id     wire.MsgID
	oid    tid.OID
	before tid.TID
}

// call is one call of a client. An unknown method is nil.
type call struct {
	wire.Message
	method *method
}

// errClose ends a connection whose client was told all it has to know.
var errClose = errors.New("closed")

func newConn(srv *Server, nc net.Conn) *conn {
	ctx, cancel := context.WithCancel(srv.ctx)
	c := &conn{
		srv:    srv,
		nc:     nc,
		ctx:    ctx,
		cancel: cancel,
		loads:  make(chan load),
		slow:   make(chan struct{}, maxSlow),
	}
	c.setLog(srv.log.With("client", nc.RemoteAddr().String()))
	c.out = newOutput(nc, srv.cfg.OutputLimit, func() {
		c.log().Warn("client does not read: dropped", "waiting_bytes", srv.cfg.OutputLimit)
	})
	c.frames = wire.NewFrameReader(&watchedReader{nc: nc, in: socket.NewReader(nc), idle: helloTimeout}, helloLimit)
	c.tx.init(c)
	c.iters.init(ctx, srv.iterations)
	return c
}

func (c *conn) log() *slog.Logger { return c.logger.Load() }

func (c *conn) setLog(l *slog.Logger) { c.logger.Store(l) }

// watchedReader gives up on a peer that was silent for too long.
type watchedReader struct {
	nc    net.Conn
	in    io.Reader // of nc
	idle  time.Duration
	until time.Time
}

func (w *watchedReader) Read(p []byte) (int, error) {
	// A deadline costs little, but not nothing: it is moved once in a while.
	now := time.Now()
	if left := w.until.Sub(now); left < w.idle*3/4 || left > w.idle {
		w.until = now.Add(w.idle)
		if err := w.nc.SetReadDeadline(w.until); err != nil {
			return 0, err
		}
	}
	return w.in.Read(p)
}

// serve runs the connection to its end. When it returns, its transaction is
// finished or aborted and all of its goroutines have ended.
func (c *conn) serve() {
	stop := make(chan struct{})
	c.wg.Go(func() { c.out.run(stop) })
	err := c.talk()
	if errors.Is(err, errClose) {
		c.out.flush()
	}
	c.cancel()
	c.out.close()
	if c.seq != nil {
		c.seq.unregister(c)
	}
	c.tx.disconnected()
	close(stop)
	close(c.loads)
	c.wg.Wait()
	c.iters.closeAll()
	refusal, refused := errors.AsType[*refusedError](err)
	_, lost := errors.AsType[*net.OpError](err)
	switch {
	case c.seq == nil && err == io.EOF: // a look-out for a free port, or ruok
	case refused && !errors.Is(err, net.ErrClosed):
		c.srv.refusals.Log(c.srv.log, "client refused", host(c.nc.RemoteAddr()), c.nc.RemoteAddr().String(), refusal.err)
	case err == io.EOF, errors.Is(err, errClose), errors.Is(err, net.ErrClosed):
		c.log().Info("disconnected")
	case lost: // a client that was killed, or a network
		c.log().Info("disconnected", "err", err)
	default:
		c.log().Warn("disconnected", "err", err)
	}
}

// talk says hello and then serves one frame after the other.
func (c *conn) talk() error {
	if t, ok := c.nc.(*tls.Conn); ok {
		ctx, cancel := context.WithTimeout(c.ctx, helloTimeout)
		err := t.HandshakeContext(ctx)
		cancel()
		if err != nil {
			return explainTLS(err)
		}
	}
	if err := c.hello(); err != nil {
		if c.frames.SpeaksTLS() {
			return &refusedError{fmt.Errorf("the client speaks TLS, this server does not: %w", err)}
		}
		return err
	}
	var m call
	for {
		if c.unsent && !c.frames.Ready() { // what followed needs no answer
			c.unsent = false
			c.out.flush()
		}
		frame, err := c.frames.Next()
		if err != nil {
			return err
		}
		if err := c.dec.Decode(frame, &m.Message); err != nil {
			return err
		}
		if m.Heartbeat {
			continue
		}
		m.method = methods[string(m.Name)]
		if err := c.dispatch(&m); err != nil {
			return err
		}
	}
}

const version = "5"

func (c *conn) hello() error {
	e := c.out.lock()
	at := e.BeginFrame()
	if c.srv.cfg.Msgpack {
		e.B = append(e.B, 'M', version[0])
	} else {
		e.B = append(e.B, 'Z', version[0])
	}
	e.EndFrame(at)
	c.out.unlock()
	c.out.flush()

	frame, err := c.frames.Next()
	if err != nil {
		return err
	}
	switch string(frame) {
	case "ruok":
		status := c.srv.statusJSON()
		e := c.out.lock()
		at := e.BeginFrame()
		e.B = append(e.B, status...)
		e.EndFrame(at)
		c.out.unlock()
		return errClose
	case "M" + version:
		c.msgpack = true
	case "Z" + version:
	default:
		return fmt.Errorf("%w: protocol %.20q", wire.ErrBadMessage, frame)
	}
	c.dec.Msgpack = c.msgpack
	c.dec.MayHold = mayHoldObjects
	e = c.out.lock()
	e.Msgpack = c.msgpack
	c.out.unlock()
	return nil
}

// dispatch carries out one call. An error ends the connection.
func (c *conn) dispatch(m *call) error {
	meth := m.method
	switch {
	case meth == nil:
		return fmt.Errorf("%w: unknown method %.40q", wire.ErrBadMessage, m.Name)
	case meth.first != (c.seq == nil):
		return fmt.Errorf("%w: %s out of place", wire.ErrBadMessage, meth.name)
	}
	if len(m.Args) < meth.least || len(m.Args) > meth.most {
		return c.failed(m, wire.ArgError(fmt.Sprintf("%s takes %d to %d arguments, %d given", meth.name, meth.least, meth.most, len(m.Args))), nil)
	}
	return meth.call(c, m)
}

// failed answers a call with an error. Where no client waits for an answer, the only
// way to tell is to close.
func (c *conn) failed(m *call, err error, oid []byte) error {
	if m.Async {
		return fmt.Errorf("%s: %w", m.method.name, describe(err))
	}
	c.sendError(&m.ID, m.method.name, err, oid)
	return nil
}

func describe(err error) error {
	if r, ok := errors.AsType[*remoteError](err); ok {
		return fmt.Errorf("the client would get %w", r)
	}
	return err
}

// cancelled reports whether an error only says that the connection or the server
// ends. The client connects again and repeats what it wanted; it would show an error
// to its user.
func (c *conn) cancelled(err error) bool {
	return errors.Is(err, context.Canceled) || c.ctx.Err() != nil
}

func (c *conn) sendError(id *wire.MsgID, name string, err error, oid []byte) {
	if c.cancelled(err) {
		c.out.close()
		return
	}
	if errors.Is(err, txn.ErrUnavailable) {
		c.log().Warn("call failed: closing", "method", name, "err", err)
		c.out.close()
		return
	}
	r := toRemote(err, oid)
	if !r.quiet {
		c.log().Warn("call failed", "method", name, "err", err)
	}
	e := c.out.lock()
	appendError(e, id, r)
	c.out.unlock()
	c.out.flush()
}

// answer appends the result of a call and sends it.
func (c *conn) answer(m *call, result func(*wire.Encoder)) {
	if m.Async {
		return
	}
	c.send(&m.ID, result)
}

func (c *conn) send(id *wire.MsgID, result func(*wire.Encoder)) {
	c.lockReply(id, result)
	c.out.unlock()
	c.out.flush()
}

// sendAsked is send after there was room for an answer.
func (c *conn) sendAsked(id *wire.MsgID, result func(*wire.Encoder)) {
	at := c.lockReply(id, result)
	c.out.unlockAsked(at)
	c.out.flush()
}

// lockReply locks the output, appends the result of a call, and returns where that
// begins.
func (c *conn) lockReply(id *wire.MsgID, result func(*wire.Encoder)) int {
	e := c.out.lock()
	at := e.BeginReply(id, wire.FlagResult)
	result(e)
	e.EndMessage(at)
	return at
}

// background runs a call that may wait, once there is a place for it. What it
// needs of the message must have been taken from it. It returns the result as a
// function that appends it.
func (c *conn) background(m *call, oid []byte, call func(ctx context.Context) (func(*wire.Encoder), error)) error {
	select {
	case c.slow <- struct{}{}:
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	id, name, async := m.ID, m.method.name, m.Async
	c.wg.Go(func() {
		defer func() { <-c.slow }()
		if !c.out.waitRoom() {
			return
		}
		result, err := call(c.ctx)
		switch {
		case async && err != nil:
			c.log().Warn("call without answer failed", "method", name, "err", err)
			c.out.close()
		case async:
		case err != nil:
			c.sendError(&id, name, err, oid)
		case result != nil: // else it was sent
			c.sendAsked(&id, result)
		}
	})
	return nil
}

// startLoad answers a load, here if that cannot wait, else in another goroutine.
func (c *conn) startLoad(l load) error {
	c.seq.stats.loads.Add(1)
	if c.seq.feat.Local || c.seq.cache != nil {
		if !c.out.waitRoom() {
			return net.ErrClosed
		}
		here := true
		if c.seq.feat.Local {
			c.load(&l)
		} else {
			here = c.loadCached(&l)
		}
		if !here || !c.frames.Ready() || c.out.pending() > wire.BufferSize {
			c.unsent = false
			c.out.flush() // what waits for more as well
		} else {
			c.unsent = true
		}
		if here {
			return nil
		}
	}
	if c.idle.Load() == 0 && c.workers.Load() < maxWorkers {
		c.workers.Add(1)
		first := l // a copy, so that l is on the heap only here
		c.wg.Go(func() { c.loadWorker(first) })
		return nil
	}
	select {
	case c.loads <- l:
		c.idle.Add(-1)
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// loadWorker answers loads until the connection ends, or until another worker is
// idle as well.
func (c *conn) loadWorker(l load) {
	defer c.workers.Add(-1)
	for ok := true; ok; {
		if !c.out.waitRoom() {
			c.cancel() // the reader may wait for a worker, and not learn of it
			return
		}
		c.load(&l)
		c.out.flush()
		if c.idle.Add(1) > 1 {
			select {
			case l, ok = <-c.loads:
				continue
			default:
				c.idle.Add(-1)
				return
			}
		}
		l, ok = <-c.loads // the sender takes back the idle one
	}
}

// load appends the answer to a loadBefore.
func (c *conn) load(l *load) {
	for {
		head := c.seq.last()
		r, err := c.seq.st.LoadBefore(c.ctx, l.oid, l.before)
		if err != nil && (errors.Is(err, txn.ErrUnavailable) || c.cancelled(err)) {
			c.sendError(&l.id, "loadBefore", err, nil)
			return
		}
		if c.loaded(l, head, &r, err) || c.ctx.Err() != nil {
			return
		}
	}
}

// loadCached is load if the storage has the revision at hand. It reports whether
// that was so.
func (c *conn) loadCached(l *load) bool {
	head := c.seq.last()
	r, ok := c.seq.cache.Cached(l.oid, l.before)
	return ok && c.loaded(l, head, &r, nil)
}

// loaded appends the answer to a load, found when the last transaction was head.
// It reports false if there must be another load.
func (c *conn) loaded(l *load, head tid.TID, r *txn.Revision, err error) bool {
	for {
		e := c.out.lock()
		n := len(e.B)
		// Within the lock: what is committed from here on is announced after
		// this answer.
		if now := c.seq.last(); now != head && (err != nil || r.Next == tid.Zero) {
			c.out.unlock()
			if err == nil {
				var ok bool
				if head, ok = c.seq.settle(l.oid, r, head); ok {
					continue
				}
			}
			return false
		}
		c.appendLoad(e, l, r, err)
		c.out.unlockAsked(n)
		return true
	}
}

func (c *conn) appendLoad(e *wire.Encoder, l *load, r *txn.Revision, err error) {
	switch {
	case err == nil:
		at := e.BeginReply(&l.id, wire.FlagResult)
		e.BeginTuple(3)
		e.Bytes(r.Data)
		e.TID(r.Serial)
		e.TIDOrNull(r.Next)
		e.EndTuple(3)
		e.EndMessage(at)
	case errors.Is(err, txn.ErrNotFound):
		at := e.BeginReply(&l.id, wire.FlagResult)
		e.Null()
		e.EndMessage(at)
	default:
		var oid [8]byte
		remote := toRemote(err, l.oid.Append(oid[:0]))
		if !remote.quiet {
			c.log().Warn("call failed", "method", "loadBefore", "oid", l.oid, "err", err)
		}
		appendError(e, &l.id, remote)
	}
}
