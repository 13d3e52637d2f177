package link

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/socket"
)

// dialInterval is the least time between two attempts to connect to an address.
// Masters answer and hang up at once during an election, and count on it.
const dialInterval = time.Second

// Dialer makes at most one connection attempt per second to each address; more
// are delayed. A process has one. The zero Dialer is ready for use.
type Dialer struct {
	mu       sync.Mutex
	next     map[proto.Address]time.Time // when the next attempt may be made
	refusals socket.Refusals
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
	if d.next == nil {
		d.next = map[proto.Address]time.Time{}
	}
	at := d.next[addr]
	if at.Before(now) {
		at = now
	}
	for a, t := range d.next {
		if t.Before(now) {
			delete(d.next, a)
		}
	}
	d.next[addr] = at.Add(dialInterval)
	return at.Sub(now)
}

// Forget allows the next attempt to connect to addr at once.
func (d *Dialer) Forget(addr proto.Address) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.next, addr)
}
