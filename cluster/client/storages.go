package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// failedFor is how long a storage that could not be connected is asked last.
const failedFor = 600 * time.Second

// storages are the links to storage nodes, one per node, shared by all requests.
type storages struct {
	mu       sync.RWMutex
	links    map[proto.NodeID]*storageLink
	failures map[proto.NodeID]time.Time // when the node may be asked first again
	beats    map[proto.NodeID]bool      // it gave signs of life by itself
}

func (s *storages) init() {
	s.links = map[proto.NodeID]*storageLink{}
	s.failures = map[proto.NodeID]time.Time{}
	s.beats = map[proto.NodeID]bool{}
}

// storageLink is a link or the attempt to make it.
type storageLink struct {
	c      *Client
	id     proto.NodeID
	cancel context.CancelFunc
	done   chan struct{} // closed when conn and err are set
	conn   *link.Conn    // nil if the attempt failed; set under storages.mu
	err    error
	ended  bool // the connection is over, maybe before done; under storages.mu
}

// storage returns the link to a node that the view says is running.
func (c *Client) storage(ctx context.Context, v *view, id proto.NodeID) (*link.Conn, error) {
	s := &c.storages
	s.mu.RLock()
	l := s.links[id]
	s.mu.RUnlock()
	if l == nil {
		var err error
		if l, err = c.openStorage(v, id); err != nil {
			return nil, err
		}
	}
	select {
	case <-l.done:
	default:
		select {
		case <-l.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return l.conn, l.err
}

func (c *Client) openStorage(v *view, id proto.NodeID) (*storageLink, error) {
	addr, running := v.running[id]
	if !running {
		return nil, fmt.Errorf("storage %v is not running", id)
	}
	s := &c.storages
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.links[id]; l != nil {
		return l, nil
	}
	// With the lock held, so that a lost master closes what was opened under it.
	if now := c.view.Load(); now == nil || now.session != v.session {
		return nil, ErrMasterLost
	}
	if c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	ctx, cancel := context.WithCancel(c.ctx)
	l := &storageLink{c: c, id: id, cancel: cancel, done: make(chan struct{})}
	s.links[id] = l
	c.wg.Go(func() { l.open(ctx, v, addr) })
	return l, nil
}

// open connects and identifies.
func (l *storageLink) open(ctx context.Context, v *view, addr proto.Address) {
	defer l.cancel() // or the client would keep the context of each link there ever was
	conn, err := l.dial(ctx, v, addr)
	s := &l.c.storages
	s.mu.Lock()
	if err == nil && ctx.Err() != nil { // closed by us meanwhile
		conn.Close()
		err = ctx.Err()
	} else if err == nil && l.ended {
		err = fmt.Errorf("storage %v hung up", l.id)
	}
	if err != nil {
		conn = nil
		again := false
		if s.links[l.id] == l {
			delete(s.links, l.id)
			_, again = s.failures[l.id]
			s.failures[l.id] = time.Now().Add(failedFor)
		}
		if l.c.ctx.Err() == nil {
			level := slog.LevelInfo
			if again {
				level = slog.LevelDebug // it is tried all the time
			}
			l.c.log.Log(ctx, level, "storage not connected", "storage", l.id, "addr", addr, "err", err)
		}
	} else {
		delete(s.failures, l.id)
	}
	l.conn, l.err = conn, err
	s.mu.Unlock()
	close(l.done)
}

func (l *storageLink) dial(ctx context.Context, v *view, addr proto.Address) (*link.Conn, error) {
	c := l.c
	cfg := c.links(l.deliver)
	cfg.Silent = l.silent
	c.storages.mu.Lock()
	cfg.Greeted = c.storages.beats[l.id]
	c.storages.mu.Unlock()
	conn, err := c.cfg.Dialer.Dial(ctx, addr, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to storage %v at %v: %w", l.id, addr, err)
	}
	p, err := conn.Call(ctx, &proto.RequestIdentification{
		Type:        proto.Client,
		ID:          v.id,
		Cluster:     c.cfg.Cluster,
		IDTimestamp: v.stamp,
		Extra:       map[string]proto.Value{},
	})
	if err == nil {
		if a, ok := p.(*proto.AcceptIdentification); !ok || a.Type != proto.Storage || a.ID != l.id || a.YourID != 0 && a.YourID != v.id {
			err = fmt.Errorf("unexpected identification %+v", p)
		}
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("identify to storage %v at %v: %w", l.id, addr, err)
	}
	conn.SetPeer(l.id.String())
	return conn, nil
}

// silent handles that a storage gives no sign of life: others are asked, if there are
// any for all that it has. Otherwise it is waited for.
func (l *storageLink) silent(conn *link.Conn, silence time.Duration) {
	if v := l.c.view.Load(); v != nil && !v.replaceable(l.id) {
		return
	}
	l.c.log.Warn("storage gives no sign of life", "storage", l.id, "silence", silence)
	s := &l.c.storages
	s.mu.Lock()
	s.failures[l.id] = time.Now().Add(failedFor)
	s.mu.Unlock()
	conn.GiveUp(silence)
}

// deliver handles what arrives on the link to a storage, in order.
func (l *storageLink) deliver(ev link.Event) {
	if ev.Asked != nil {
		if a, ok := ev.Asked.Tag.(asked); ok {
			a.answered(ev)
		}
		return
	}
	if ev.End() {
		s := &l.c.storages
		s.mu.Lock()
		l.ended = true
		s.beats[l.id] = s.beats[l.id] || ev.Conn.Beats()
		if s.links[l.id] == l && l.conn == ev.Conn {
			delete(s.links, l.id)
		}
		s.mu.Unlock()
		if l.c.ctx.Err() == nil {
			l.c.log.Info("link ended", "storage", l.id, "err", ev.Err)
		}
		l.c.storageLost(l.id, ev.Conn)
		return
	}
	if l.c.base(ev) {
		return
	}
	switch p := ev.Packet.(type) {
	case *proto.NotifyDeadlock:
		l.c.deadlock(ev.Conn, l.id, p)
	case *proto.NotifyNodeInformation:
		// The master's word counts.
		l.c.log.Debug("node information from a storage is ignored", "storage", l.id)
	case *proto.Error:
		l.c.log.Warn("error from storage that answers nothing", "storage", l.id, "err", p)
	default:
		ev.Conn.AbortError(ev.ID, proto.ProtocolError, "unexpected packet %T", p)
	}
}

// storageLost tells the transactions that use a link of its end. Requests they
// make from now on would get no answer.
func (c *Client) storageLost(id proto.NodeID, conn *link.Conn) {
	c.mu.Lock()
	txns := slices.Collect(maps.Values(c.txns))
	c.mu.Unlock()
	for _, t := range txns {
		t.mu.Lock()
		if t.nodes[id] == conn {
			t.lostLocked(id)
		}
		t.mu.Unlock()
		t.signal()
	}
}

// closeStorage ends the link to a node that is no longer running.
func (c *Client) closeStorage(id proto.NodeID, why error) {
	s := &c.storages
	s.mu.Lock()
	l := s.links[id]
	delete(s.links, id)
	s.mu.Unlock()
	if l != nil {
		c.log.Debug("closing link", "storage", id, "why", why)
		l.close()
	}
}

// closeStorages ends all links. The channels are closed when they have ended.
func (c *Client) closeStorages(why error) (ends []<-chan struct{}) {
	s := &c.storages
	s.mu.Lock()
	links := s.links
	s.links = map[proto.NodeID]*storageLink{}
	s.mu.Unlock()
	for _, l := range links {
		if conn := l.close(); conn != nil {
			ends = append(ends, conn.Done())
		}
	}
	if len(links) > 0 && !errors.Is(why, ErrClosed) {
		c.log.Debug("closed links to storages", "count", len(links), "why", why)
	}
	return ends
}

func (l *storageLink) close() *link.Conn {
	l.cancel()
	l.c.storages.mu.Lock()
	conn := l.conn
	l.c.storages.mu.Unlock()
	if conn != nil { // else open sees that it was cancelled
		conn.Close()
	}
	return conn
}
