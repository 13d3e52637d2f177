package link

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/socket"
)

// Pauses between two attempts to connect to an address: the first is short, since
// an election takes that long, and each is twice as long as the one before. Masters
// answer and hang up at once while they look for a primary, and count on peers that
// do not insist.
const (
	dialPause    = 50 * time.Millisecond
	dialInterval = time.Second
)

// Dialer makes a handful of quick connection attempts to an address, and then at
// most one per second; more are delayed. An address that was left alone for two
// seconds begins anew. A process has one. The zero Dialer is ready for use.
type Dialer struct {
	mu       sync.Mutex
	paces    map[proto.Address]pace
	refusals socket.Refusals
}

// pace is when the next attempt may be made, and the pause before it.
type pace struct {
	next  time.Time
	pause time.Duration
}

// Dial is [Dial], perhaps later. That there is no agreement with the peer, on TLS
// or on the protocol, is logged as a warning, since callers try again in silence.
func (d *Dialer) Dial(ctx context.Context, addr proto.Address, cfg Config) (*Conn, error) {
	if wait := d.reserve(addr); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("connecting to %v: %w", addr, context.Cause(ctx))
		}
	}
	cfg.refusals = &d.refusals
	return Dial(ctx, addr, cfg)
}

// reserve returns how long to wait.
func (d *Dialer) reserve(addr proto.Address) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if d.paces == nil {
		d.paces = map[proto.Address]pace{}
	}
	for a, p := range d.paces {
		if now.Sub(p.next) > 2*dialInterval-p.pause {
			delete(d.paces, a)
		}
	}
	p, at := d.paces[addr], now
	if p.next.After(now) {
		at = p.next
	}
	p.pause = min(max(2*p.pause, dialPause), dialInterval)
	p.next = at.Add(p.pause)
	d.paces[addr] = p
	return at.Sub(now)
}

// Forget allows the next attempts to connect to addr at once.
func (d *Dialer) Forget(addr proto.Address) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.paces, addr)
}
