package memnet

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// capacity is how many bytes may be under way in one direction.
const capacity = 256 << 10

// Conn is one end of a connection.
type Conn struct {
	n             *Network
	in, out       *pipe
	local, remote Addr
}

func (c *Conn) LocalAddr() net.Addr  { return c.local }
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

func (c *Conn) Read(b []byte) (int, error) { return c.in.read(b) }

func (c *Conn) Write(b []byte) (int, error) {
	total := 0
	for {
		n, err := c.out.write(b[total:], true)
		total += n
		if err != nil || total == len(b) {
			return total, err
		}
	}
}

// TryWrite writes what fits without waiting.
func (c *Conn) TryWrite(b []byte) (int, error) { return c.out.write(b, false) }

// CloseWrite makes the other end read io.EOF after what was written.
func (c *Conn) CloseWrite() error {
	c.out.closeWrite()
	return nil
}

func (c *Conn) Close() error {
	c.n.mu.Lock()
	delete(c.n.conns, c)
	c.n.mu.Unlock()
	c.in.closeRead()
	c.out.closeWrite()
	return nil
}

func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readLimit, t)
	return nil
}

func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.writeLimit, t)
	return nil
}

// pipe is one direction of a connection.
type pipe struct {
	n        *Network
	from, to string

	mu         sync.Mutex
	rand       *rand.Rand // of its own, so that delays do not depend on other pipes
	wake       *sync.Cond
	queue      []chunk
	size       int // bytes in queue
	held       bool
	noReader   bool // the reading end is closed
	noWriter   bool // nothing more is written
	broken     bool
	readLimit  time.Time
	writeLimit time.Time
}

type chunk struct {
	at time.Time // of arrival
	b  []byte
}

func newPipe(n *Network, from, to string) *pipe {
	n.pipes++
	p := &pipe{n: n, from: from, to: to, held: n.held[pairOf(from, to)], rand: rand.New(rand.NewPCG(n.seed, n.pipes))}
	p.wake = sync.NewCond(&p.mu)
	return p
}

// until makes sure that waiters look again at t.
func (p *pipe) until(t time.Time) {
	time.AfterFunc(time.Until(t), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.wake.Broadcast()
	})
}

func expired(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.noReader:
			return 0, net.ErrClosed
		case p.broken:
			return 0, ErrReset
		case expired(p.readLimit):
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case p.held:
		case len(p.queue) > 0:
			if now := time.Now(); p.queue[0].at.After(now) {
				p.until(p.queue[0].at)
				break
			}
			n := copy(b, p.queue[0].b)
			p.size -= n
			if p.queue[0].b = p.queue[0].b[n:]; len(p.queue[0].b) == 0 {
				p.queue = p.queue[1:]
			}
			p.wake.Broadcast()
			return n, nil
		case p.noWriter:
			return 0, io.EOF
		}
		p.wake.Wait()
	}
}

func (p *pipe) write(b []byte, wait bool) (int, error) {
	d := p.n.delay(p.from, p.to)
	p.mu.Lock()
	defer p.mu.Unlock()
	at := time.Now()
	if d.most > 0 {
		at = at.Add(d.least + time.Duration(p.rand.Int64N(int64(d.most-d.least)+1)))
	}
	for {
		switch {
		case p.noWriter:
			return 0, net.ErrClosed
		case p.broken:
			return 0, ErrReset
		case p.noReader && !p.held: // else it does not know yet
			return 0, syscall.EPIPE
		case expired(p.writeLimit):
			return 0, os.ErrDeadlineExceeded
		}
		if n := min(len(b), capacity-p.size); n > 0 {
			if last := len(p.queue) - 1; last >= 0 && p.queue[last].at.After(at) {
				at = p.queue[last].at // in order
			}
			p.queue = append(p.queue, chunk{at, append([]byte(nil), b[:n]...)})
			p.size += n
			p.wake.Broadcast()
			return n, nil
		}
		if !wait || len(b) == 0 {
			return 0, nil
		}
		p.wake.Wait()
	}
}

func (p *pipe) setDeadline(limit *time.Time, t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*limit = t
	p.wake.Broadcast()
	if !t.IsZero() {
		p.until(t)
	}
}

func (p *pipe) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	p.wake.Broadcast()
}

func (p *pipe) hold(on bool) { p.set(func() { p.held = on }) }
func (p *pipe) closeRead()   { p.set(func() { p.noReader, p.queue, p.size = true, nil, 0 }) }
func (p *pipe) closeWrite()  { p.set(func() { p.noWriter = true }) }
func (p *pipe) reset()       { p.set(func() { p.broken, p.queue, p.size = true, nil, 0 }) }
