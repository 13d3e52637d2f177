package link

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/neozodb/neo/cluster/proto"
)

// source is the input of a connection.
type source Conn

func (s *source) Read(b []byte) (int, error) {
	s.batch.Store(false)
	if s.cfg.Idle != nil {
		s.cfg.Idle((*Conn)(s))
	}
	s.waits.Store(true)
	n, err := s.in.Read(b)
	s.waits.Store(false)
	if n > 0 {
		s.heard.Store(true)
		s.reads.Add(1)
		s.counts.addBytes(inward, n)
	}
	return n, err
}

// read is the reader goroutine.
func (c *Conn) read() {
	err := c.greet()
	if err != nil {
		c.refused(err)
	}
	for err == nil {
		var id uint32
		var p proto.Packet
		id, p, err = c.input.Next()
		if err == nil {
			c.batch.Store(c.input.Buffered() > 0)
			c.receive(id, p)
		}
	}
	c.end(err)
}

// greet does the TLS handshake of an accepted connection, then receives the one
// of the protocol.
func (c *Conn) greet() error {
	if tc, ok := c.nc.(*tls.Conn); ok && c.incoming {
		ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
		defer cancel()
		if err := tc.HandshakeContext(ctx); err != nil {
			return explainTLS(err)
		}
		c.mu.Lock()
		c.shaking = false
		c.mu.Unlock()
	}
	if err := c.input.Handshake(); err != nil {
		return explainTLS(err) // with TLS 1.3 a server refuses our certificate only now
	}
	if c.incoming {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.state == open && !c.broken { // these have deadlines of their own
			// It fails if the end has come. What was sent before is still to be read.
			_ = c.nc.SetDeadline(time.Time{})
		}
	}
	return nil
}

// refused logs that there will be no connection, because one side does not accept
// what the other is or speaks. A peer that only connects and hangs up, to see
// whether the port is open, is of no interest; nor is what our side has ended, nor a
// node that ends just now.
func (c *Conn) refused(err error) {
	c.mu.Lock()
	local := c.local
	c.mu.Unlock()
	var timeout net.Error
	hungUp := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	switch {
	case c.cfg.refusals == nil, local, errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed):
	case hungUp && (c.incoming || c.cfg.TLS == nil):
	case c.incoming && errors.As(err, &timeout) && timeout.Timeout():
	case c.incoming:
		c.cfg.refusals.Log(c.cfg.logger(), "peer refused", c.remote.Host, c.remote.String(), err)
	default:
		c.cfg.refusals.Log(c.cfg.logger(), "no agreement with a peer", c.remote.String(), c.remote.String(), err)
	}
}

// staleLocked reports whether our side ended the connection in such a way that p
// must be ignored.
func (c *Conn) staleLocked(p proto.Packet) bool {
	if !c.local {
		return false
	}
	if c.aborted {
		return true
	}
	_, request := p.(proto.Request)
	return request && !proto.Keep(p)
}

// receive delivers one packet.
func (c *Conn) receive(id uint32, p proto.Packet) {
	c.mu.Lock()
	if c.receivedLocked(id, p) {
		c.mu.Unlock()
		return
	}
	c.counts.packet(inward, p)
	if c.cfg.Record != nil {
		c.cfg.Record(false, c.peer, id, p)
	}
	if c.staleLocked(p) {
		c.mu.Unlock()
		return
	}
	if !proto.IsAnswer(p) {
		c.mu.Unlock()
		c.deliver(Event{Conn: c, ID: id, Packet: p})
		return
	}
	_, isError := p.(*proto.Error)
	asked := c.pending[id]
	switch {
	case asked != nil && (isError || p.Code() == asked.Request.AnswerCode()):
		delete(c.pending, id)
		lost := asked.lost
		c.mu.Unlock()
		switch {
		case lost:
		case asked.answer != nil:
			asked.answer <- answer{p: p}
		default:
			c.deliver(Event{Conn: c, ID: id, Packet: p, Asked: &asked.Pending})
		}
	case isError:
		// It may answer a notification, or be sent under any id by Python.
		c.mu.Unlock()
		c.deliver(Event{Conn: c, ID: id, Packet: p})
	default:
		c.mu.Unlock()
		c.AbortError(id, proto.ProtocolError, "unexpected answer %s", proto.CodeName(p.Code()))
	}
}

func (c *Conn) deliver(ev Event) {
	if c.cfg.Deliver != nil {
		c.cfg.Deliver(ev)
		return
	}
	HandleBase(ev)
}

// end fails what is pending and delivers the last event.
func (c *Conn) end(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the peer hung up: %w", err)
	}
	c.mu.Lock()
	c.closeLocked(err)
	if c.watching != nil {
		c.watching.Stop()
	}
	if c.vitals.timer != nil {
		c.vitals.timer.Stop()
	}
	c.mu.Unlock()
	_ = c.raw.Close()
	<-c.writerDone

	c.mu.Lock()
	c.state = ended
	loss := c.lossLocked()
	lost := slices.SortedFunc(maps.Values(c.pending), func(a, b *pending) int { return cmp.Compare(a.ID, b.ID) })
	clear(c.pending)
	c.mu.Unlock()
	for _, p := range lost {
		if p.answer != nil {
			p.answer <- answer{err: fmt.Errorf("%s: %w", proto.CodeName(p.Request.Code()), loss)}
		} else {
			c.deliver(Event{Conn: c, ID: p.ID, Asked: &p.Pending, Err: loss})
		}
	}
	c.cfg.Traffic.end(c.counts)
	c.deliver(Event{Conn: c, Err: loss})
	close(c.done)
}
