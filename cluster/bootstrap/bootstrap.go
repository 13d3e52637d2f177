// Package bootstrap finds the primary master among the known ones and identifies
// to it.
//
// # Invariant
//
// What the master sends after it accepted us is delivered to the owner of the
// connection, all of it and in order; what happens before stays here.
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/socket"
)

// identifyTimeout is how long a master may take to accept us before another one
// is tried, if Link.PeerTimeout does not say it: a stopped process must not hide the
// primary.
const identifyTimeout = time.Minute

// Config says who looks for a primary master, and where.
type Config struct {
	Masters *Masters // learns from every master that is asked
	// Lookup, if not nil, is asked for more addresses before each round over the
	// masters.
	Lookup   func(context.Context) ([]proto.Address, error)
	Identify proto.RequestIdentification
	// Link is the configuration of the connection. Deliver gets the events that
	// follow acceptance, possibly before Find returns.
	Link   link.Config
	Dialer *link.Dialer // shared by the process; default: one for each Find
	// Accepted, if not nil, is called by the goroutine that will call Deliver,
	// before the first event.
	Accepted func(*Result)
	// Refused, if not nil, is told after a round of all masters why there is no primary one yet,
	// when that is another reason than before.
	Refused func(addr proto.Address, err error)
	Log     *slog.Logger // default: discard
}

// Result is an accepted identification.
type Result struct {
	Conn     *link.Conn
	MasterID proto.NodeID
	ID       proto.NodeID // ours
}

// NotPrimaryError is the answer of a secondary master.
type NotPrimaryError struct {
	Primary proto.Address // zero: not known
	Masters []proto.Address
}

func (e *NotPrimaryError) Error() string {
	if e.Primary.IsZero() {
		return "not the primary master, which is not known"
	}
	return fmt.Sprintf("not the primary master, which is %v", e.Primary)
}

// Find connects to the primary master. It tries the known masters in turn,
// beginning with the second, and those it is referred to, for ever; only the end
// of ctx and answers that will not change make it return an error: a
// PROTOCOL_ERROR, such as for another cluster name, or READ_ONLY_ACCESS, both as
// [*proto.Error].
func Find(ctx context.Context, cfg Config) (*Result, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dialer == nil {
		cfg.Dialer = &link.Dialer{}
	}
	var addr proto.Address
	if list := cfg.Masters.List(); len(list) > 0 {
		addr = list[0]
	}
	var wait socket.Waiting
	told := "" // to cfg.Refused
	for {
		if err := lookup(ctx, cfg); err != nil {
			wait.Failed(log, "the addresses of masters are not known", "err", err)
		}
		var at proto.Address
		var why error // of the last master that has answered, or of the first one
		// One round; a reference to the primary does not count.
		for range max(1, len(cfg.Masters.List())) {
			addr = cfg.Masters.after(addr)
			if addr.IsZero() {
				if cfg.Lookup == nil {
					return nil, errors.New("finding the primary master: no address of a master")
				}
				if err := sleep(ctx, time.Second); err != nil {
					return nil, err
				}
				continue
			}
			next := addr
			for hops := 0; !next.IsZero() && hops < 3 && (hops == 0 || !cfg.Masters.passOver(next)); hops++ {
				addr = next
				next = proto.Address{}
				res, err := Identify(ctx, addr, cfg)
				if err == nil {
					wait.Over(log, "the primary master is found", "addr", addr.String())
					log.Debug("identified to the primary master", "addr", addr.String(), "master", res.MasterID.String(), "id", res.ID.String())
					return res, nil
				}
				if ctx.Err() != nil {
					return nil, fmt.Errorf("finding the primary master: %w", context.Cause(ctx))
				}
				if e, ok := errors.AsType[*NotPrimaryError](err); ok {
					next = e.Primary
				} else if e, ok := errors.AsType[*proto.Error](err); ok && fatal(e.ErrCode) {
					return nil, err
				}
				if next.IsZero() && (why == nil || answered(err)) {
					at, why = addr, err
				}
			}
		}
		if why != nil {
			wait.Failed(log, "no primary master", "addr", at.String(), "err", why)
			if text := why.Error(); cfg.Refused != nil && text != told {
				told = text
				cfg.Refused(at, why)
			}
		}
	}
}

// answered reports whether an error is what a master has answered.
func answered(err error) bool {
	_, ok := errors.AsType[*proto.Error](err)
	return ok
}

func fatal(c proto.ErrorCode) bool { return c == proto.ProtocolError || c == proto.ReadOnlyAccess }

func lookup(ctx context.Context, cfg Config) error {
	if cfg.Lookup == nil {
		return nil
	}
	list, err := cfg.Lookup(ctx)
	cfg.Masters.Learn(list...)
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("finding the primary master: %w", context.Cause(ctx))
	}
}

// Identify makes one attempt, at one master. Refusals are returned as
// [*NotPrimaryError] and [*proto.Error]. Masters that a secondary names are
// learned.
func Identify(ctx context.Context, addr proto.Address, cfg Config) (*Result, error) {
	a := &attempt{cfg: &cfg, addr: addr, done: make(chan outcome, 1)}
	lc := cfg.Link
	lc.Deliver = a.deliver
	limit := identifyTimeout
	if lc.PeerTimeout > 0 {
		limit, lc.Greeted = min(limit, lc.PeerTimeout), true
	}
	dial := link.Dial
	if cfg.Dialer != nil {
		dial = cfg.Dialer.Dial
	}
	c, err := dial(ctx, addr, lc)
	if err != nil {
		if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() && ctx.Err() == nil {
			cfg.Masters.hang(addr)
		}
		return nil, err
	}
	req := cfg.Identify
	c.Ask(&req, nil)
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	var out outcome
	select {
	case out = <-a.done:
	case <-ctx.Done():
		out = a.giveUp(context.Cause(ctx))
	case <-timeout.C:
		cfg.Masters.hang(addr)
		out = a.giveUp(fmt.Errorf("no answer within %v", limit))
	}
	if out.err != nil {
		c.Close()
		<-c.Done()
		return nil, fmt.Errorf("identifying to master %v: %w", addr, out.err)
	}
	return out.res, nil
}

type outcome struct {
	res *Result
	err error
}
