package link

import (
	"net"
	"time"

	"github.com/neozodb/neo/cluster/socket"
)

// maxSpare is the size in bytes of the largest buffer that is kept for reuse.
const maxSpare = 1 << 20

// tryWriter writes without blocking: what does not fit is left over.
type tryWriter interface {
	TryWrite(b []byte) (int, error)
}

func tryWriterOf(nc net.Conn) tryWriter {
	if t, ok := nc.(tryWriter); ok {
		return t
	}
	if w := socket.NewWriter(nc); w != nil {
		return w
	}
	return nil
}

// flushLocked sends what is queued: at once if nobody else is writing, which
// saves the switch to the writer goroutine, but not if the reader has more input,
// whose answers may as well go together.
func (c *Conn) flushLocked() {
	if c.writing || len(c.out) == 0 || c.held && c.state == open && len(c.out) <= delayedBytes {
		return
	}
	if c.try == nil || c.batch.Load() || c.state != open {
		c.wakeLocked()
		return
	}
	c.writing = true
	b := c.takeLocked()
	c.mu.Unlock()
	n, err := c.try.TryWrite(b)
	c.counts.addBytes(outward, n)
	c.mu.Lock()
	switch {
	case c.state >= closed:
	case err != nil:
		c.breakLocked()
		c.wakeLocked()
	case n < len(b):
		c.rest = b[n:]
		c.wakeLocked()
	default:
		c.reuseLocked(b)
		if len(c.out) > 0 || c.state != open {
			c.wakeLocked()
			return
		}
		c.writing = false
	}
}

// Hold keeps what is sent from now on until [Conn.Release], or until there is
// much of it: an owner that has more to do shares writes between its packets.
func (c *Conn) Hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = true
}

// Release ends [Conn.Hold].
func (c *Conn) Release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	if c.state == open {
		c.flushLocked()
	}
}

// wakeLocked makes the writer goroutine go on.
func (c *Conn) wakeLocked() {
	c.writing = true
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// takeLocked returns what is queued.
func (c *Conn) takeLocked() []byte {
	b := c.out
	c.out, c.spare = c.spare[:0], nil
	return b
}

func (c *Conn) reuseLocked(b []byte) {
	if cap(b) <= maxSpare && c.state < closed {
		c.spare = b[:0]
	}
}

// breakLocked gives up sending. The end of the connection is for the reader to
// find, after what the peer sent before.
func (c *Conn) breakLocked() {
	c.broken = true
	c.out, c.rest = nil, nil
	_ = c.nc.SetReadDeadline(time.Now().Add(flushTimeout))
}

// write is the writer goroutine.
func (c *Conn) write() {
	defer close(c.writerDone)
	for {
		select {
		case <-c.wake:
		case <-c.ctx.Done():
			return
		}
		c.mu.Lock()
		for c.state < closed && len(c.rest)+len(c.out) > 0 {
			b := c.rest
			c.rest = nil
			if len(b) == 0 {
				b = c.takeLocked()
			}
			c.flying = len(b)
			c.mu.Unlock()
			n, err := c.nc.Write(b)
			c.counts.addBytes(outward, n)
			c.mu.Lock()
			c.flying = 0
			if err != nil {
				c.breakLocked()
			} else {
				c.reuseLocked(b)
			}
		}
		c.writing = false
		finish := c.state == aborting
		c.mu.Unlock()
		if finish {
			c.finish()
			return
		}
	}
}

// finish ends the output of an aborted connection.
func (c *Conn) finish() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		_ = c.raw.Close()
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(lingerTimeout))
}
