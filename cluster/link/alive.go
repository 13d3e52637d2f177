package link

import (
	"errors"
	"fmt"
	"time"

	"github.com/neozodb/neo/cluster/proto"
)

// DefaultPeerTimeout is the PeerTimeout of a node that was not told another one.
const DefaultPeerTimeout = 8 * time.Second

// MinPeerTimeout is the least PeerTimeout: a few beats may be late.
const MinPeerTimeout = 3 * time.Second

// ErrSilent is what ends a connection whose peer gives no sign of life.
var ErrSilent = errors.New("no sign of life")

const (
	// beatInterval is how often a connection gives a sign of life. All nodes must
	// agree on it, whatever their PeerTimeout.
	beatInterval = time.Second
	// muteFactor times PeerTimeout is the limit of a peer that gives signs of life
	// only when it is asked: a Python node, whose only thread may be in the database.
	muteFactor = 12
	// beatID is the message id of the Pings that are signs of life. Others are
	// barriers, and for the owner to answer.
	beatID = 1<<32 - 1
)

// vitals are what a connection knows of the life of its peer.
type vitals struct {
	timer  *time.Timer // nil: no signs of life are given, or wanted
	missed int         // beats without input
	beats  bool        // the peer gives signs of life by itself
	known  bool        // it has sent a packet: it may be sent one
	lastIn uint32      // id of the last packet that is no answer
}

// startBeatingLocked begins to give signs of life and to look for those of the peer.
func (c *Conn) startBeatingLocked() {
	if c.cfg.PeerTimeout != 0 {
		c.vitals.timer = time.AfterFunc(beatInterval, c.beat)
	}
}

// beat is called once per interval. It counts calls and not time, so that a
// process that was stopped does not hold that against its peers; and while the
// reader does not wait for input, it is not the peer that is late.
func (c *Conn) beat() {
	heard, waits := c.heard.Swap(false), c.waits.Load()
	c.mu.Lock()
	v := &c.vitals
	if c.state >= closed {
		c.mu.Unlock()
		return
	}
	if heard || !waits {
		v.missed = 0
	} else {
		v.missed++
	}
	silence := time.Duration(v.missed) * beatInterval
	c.sendBeatLocked()
	late := c.state == open && c.cfg.PeerTimeout > 0 && v.missed > 0 && silence >= c.limitLocked()
	c.mu.Unlock()
	if late {
		if c.cfg.Silent != nil {
			c.cfg.Silent(c, silence)
		} else {
			c.GiveUp(silence)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state < closed {
		v.timer.Reset(beatInterval)
	}
}

// limitLocked returns how long the peer may be silent.
func (c *Conn) limitLocked() time.Duration {
	d := c.cfg.PeerTimeout
	if !c.vitals.beats && (c.vitals.known || !c.cfg.Greeted) {
		d *= muteFactor
	}
	return d
}

// sendBeatLocked gives a sign of life, unless other output is on its way.
func (c *Conn) sendBeatLocked() {
	if c.vitals.timer != nil && c.vitals.known && c.state == open && c.flying+len(c.rest)+len(c.out) == 0 {
		c.out = proto.Append(c.out, beatID, &proto.Ping{})
		c.flushLocked()
	}
}

// receivedLocked takes in a packet. It reports whether it is about signs of life only.
func (c *Conn) receivedLocked(id uint32, p proto.Packet) bool {
	v := &c.vitals
	if !v.known {
		v.known = true
		c.sendBeatLocked() // that we do is known at once
	}
	if proto.IsAnswer(p) {
		_, pong := p.(*proto.Pong)
		return pong && id == beatID
	}
	// The counter of a peer that does not know about beats gets there too.
	counted := v.lastIn == beatID-1
	v.lastIn = id
	if _, ping := p.(*proto.Ping); !ping || id != beatID || counted {
		return false
	}
	v.beats = true
	if c.state == open && !c.broken {
		c.out = proto.Append(c.out, beatID, &proto.Pong{})
		c.flushLocked()
	}
	return true
}

// GiveUp closes the connection because the peer has been silent for d.
func (c *Conn) GiveUp(d time.Duration) {
	c.mu.Lock()
	c.closeLocked(fmt.Errorf("%w for %v", ErrSilent, d))
	c.mu.Unlock()
	_ = c.raw.Close()
}

// Beats reports whether the peer is known to give signs of life by itself,
// however busy it is.
func (c *Conn) Beats() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.vitals.beats
}

// probeSteps is how often a probe looks.
const probeSteps = 20

// Probe asks the peer for a sign of life, and calls done on another goroutine with
// whether something has arrived within d. It does so also if the connection ends.
func (c *Conn) Probe(d time.Duration, done func(alive bool)) {
	c.mu.Lock()
	before := c.reads.Load()
	if c.state == open && !c.broken {
		c.out = proto.Append(c.out, beatID, &proto.Ping{})
		c.flushLocked()
	}
	c.mu.Unlock()
	go func() {
		t := time.NewTicker(d / probeSteps)
		defer t.Stop()
		for range probeSteps {
			select {
			case <-t.C:
			case <-c.done:
				done(false)
				return
			}
			if c.reads.Load() != before || !c.waits.Load() {
				done(true)
				return
			}
		}
		done(false)
	}()
}
