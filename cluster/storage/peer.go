package storage

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// idleTimeout is how long a link to another storage is kept after its last use.
const idleTimeout = 100 * time.Second

type role int

const (
	strangerRole role = iota // not identified yet
	masterRole
	clientRole
	storageRole
)

// peer is the other end of a connection. Everything but access is owned by Run.
type peer struct {
	conn   *link.Conn
	role   role
	id     proto.NodeID // 0: anonymous, or not known yet
	stamp  float64      // id timestamp under which it was accepted
	closed bool

	// access is set for clients: what its loads may see.
	access atomic.Pointer[access]
	reads  []gathered // owned by the goroutine of the connection
	remote remoteReads

	// Links between storages.
	key        linkKey
	identified bool // else being connected to
	client     bool // we use it
	server     bool // it uses us
	idle       *time.Timer
}

// linkKey names the other end of a link between storages: its id, or the address
// of a storage of another cluster.
type linkKey struct {
	id   proto.NodeID
	addr proto.Address
}

func (p *peer) String() string {
	switch {
	case p.id != 0:
		return p.id.String()
	case p.conn != nil:
		return p.conn.RemoteAddr().String()
	}
	return p.key.addr.String()
}

// named lets logs of packets call the peer by its id.
func (p *peer) named() { p.conn.SetPeer(fmt.Sprintf("%v (%v)", p.id, p.conn.RemoteAddr())) }

// accept is called for an incoming connection, before its events.
func (n *Node) accept(conn *link.Conn) {
	conn.Tag = &peer{conn: conn, remote: remoteReads{slots: make(chan struct{}, maxRemoteReads)}}
	n.conns.add(conn)
}

// connSet are the connections of a node, to be closed when it ends.
type connSet struct {
	mu     sync.Mutex
	conns  map[*link.Conn]bool
	closed bool
}

// add adds a connection, closing it if the node has ended.
func (s *connSet) add(c *link.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return
	}
	if s.conns == nil {
		s.conns = map[*link.Conn]bool{}
	}
	s.conns[c] = true
}

func (s *connSet) remove(c *link.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// close closes all connections and waits for the end of their goroutines.
func (s *connSet) close() {
	s.mu.Lock()
	list := slices.Collect(maps.Keys(s.conns))
	s.closed = true
	s.mu.Unlock()
	for _, c := range list {
		c.Close()
	}
	for _, c := range list {
		<-c.Done()
	}
}

// deliver receives the events of incoming connections, on their goroutines.
func (n *Node) deliver(ev link.Event) {
	p := ev.Conn.Tag.(*peer)
	e := event{peer: p, link: ev}
	if a := p.access.Load(); a != nil && ev.Asked == nil && ev.Packet != nil {
		n.served.Seen()
		remote := n.remote()
		if remote && isRead(ev.Packet) && !n.mustWaitFor(a, ev.Packet) {
			n.readRemote(p, a, ev)
			return
		}
		if !remote && n.gather(p, a, ev) {
			return
		}
		if s, ok := ev.Packet.(*proto.AskStoreObject); ok {
			e.invalid = invalidStore(s)
		} else if n.read(ev.Conn.Context(), a, ev.Conn, ev.ID, ev.Packet, false) == served {
			n.throttle(ev.Conn)
			return
		}
	}
	if ev.End() {
		n.conns.remove(ev.Conn)
		p.remote.wg.Wait()
	}
	n.putFetched(e)
}

// throttle waits until a client has read most of its answers.
func (n *Node) throttle(conn *link.Conn) {
	for conn.Buffered() > maxOutput {
		select {
		case <-n.ctx.Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// lost forgets a connection.
func (n *Node) lost(p *peer, cause error) error {
	if p.closed && !n.peers[p] {
		return nil
	}
	p.closed = true
	delete(n.peers, p)
	if p.idle != nil {
		p.idle.Stop()
	}
	n.forgetIdentification(p)
	switch p.role {
	case masterRole:
		level := slog.LevelWarn
		if n.session == nil { // nothing is served: as when masters are started together, and it has become secondary
			level = slog.LevelInfo
		}
		n.log.Log(context.Background(), level, "connection to the master lost", "err", cause)
		n.master = nil
		if err := n.leaveOperation(); err != nil {
			return err
		}
		n.closeAll()
		return n.connect()
	case clientRole:
		p.access.Store(nil)
		if n.clients[p.id] == p {
			delete(n.clients, p.id)
		}
		if s := n.session; s != nil {
			return s.txns.ConnClosed(p.conn, p.id)
		}
	case storageRole:
		if n.links[p.key] == p {
			delete(n.links, p.key)
		}
		if s := n.session; s != nil {
			if err := s.txns.ConnClosed(p.conn, 0); err != nil {
				return err
			}
			return s.replicator.linkLost(p)
		}
	}
	return nil
}

// drop closes a connection; its last event is then of no interest.
func (n *Node) drop(p *peer) error {
	if p.conn != nil {
		p.conn.Close()
	}
	return n.lost(p, fmt.Errorf("closed"))
}

// closeAll closes every connection but the one with the master: a node that is not
// ready serves no other, and replication in either direction is aborted.
func (n *Node) closeAll() {
	for p := range n.peers {
		if p == n.master {
			continue
		}
		p.closed = true
		p.access.Store(nil)
		if p.idle != nil {
			p.idle.Stop()
		}
		if p.conn != nil {
			p.conn.Close()
		}
		delete(n.peers, p)
	}
	clear(n.clients)
	clear(n.links)
	n.unidentified = nil
}

// target is a storage to connect to.
type target struct {
	id       proto.NodeID  // 0: of another cluster
	addr     proto.Address // where it listens
	upstream string        // name of the other cluster
}

func (t target) key() linkKey {
	if t.upstream != "" {
		return linkKey{addr: t.addr}
	}
	return linkKey{id: t.id}
}

// use returns the link with another storage, to be used by us, and whether it is
// ready. Else its end, or that it became ready, is told to the
// replicator.
func (n *Node) use(t target) (p *peer, ready bool) {
	if p = n.links[t.key()]; p != nil {
		if p.idle != nil {
			p.idle.Stop()
			p.idle = nil
		}
		p.client = true
		return p, p.identified
	}
	p = &peer{role: storageRole, id: t.id, key: t.key(), client: true}
	n.links[p.key] = p
	n.peers[p] = true
	ask := &proto.RequestIdentification{Type: proto.Storage, ID: n.id, Addr: n.Addr(), Cluster: n.cfg.Cluster,
		IDTimestamp: n.idTimestamp, Extra: map[string]proto.Value{}}
	if t.upstream != "" {
		ask.ID, ask.Cluster = 0, t.upstream
	}
	if node := n.nodes.ByID(t.id); node != nil && t.id != 0 {
		p.stamp = node.IDTimestamp.V
	}
	cfg := n.linkConfig(func(ev link.Event) {
		if ev.End() {
			n.conns.remove(ev.Conn)
		}
		n.putFetched(event{peer: p, link: ev})
	})
	n.wg.Go(func() {
		ctx, cancel := context.WithTimeout(n.ctx, time.Minute)
		defer cancel()
		conn, err := n.cfg.Dialer.Dial(ctx, t.addr, cfg)
		if err == nil {
			n.conns.add(conn)
		}
		n.post(func() error {
			switch {
			case err != nil:
				return n.lost(p, err)
			case p.closed:
				conn.Close()
				return nil
			}
			p.conn = conn
			conn.Tag = p
			conn.Ask(ask, p)
			return nil
		})
	})
	return p, false
}

// putFetched is put, on the goroutine of a link with another storage: what it was asked
// for waits while clients come first. The other storage then waits to send more.
func (n *Node) putFetched(e event) {
	switch e.link.Packet.(type) {
	case *proto.AddTransaction, *proto.AddObject, *proto.AnswerFetchTransactions, *proto.AnswerFetchObjects:
		if n.fetching.Rest(n.ctx.Done(), n.done) {
			e.fetched = true
			n.fetching.Queued()
		}
	}
	n.put(e)
}

// release says that we no longer use a link.
func (n *Node) release(p *peer) {
	if p.closed || !p.client || p.idle != nil {
		return
	}
	p.idle = time.AfterFunc(idleTimeout, func() {
		n.post(func() error {
			if p.closed || p.idle == nil {
				return nil
			}
			p.idle = nil
			if !p.server {
				return n.drop(p)
			}
			p.client = false
			p.conn.Send(&proto.CloseClient{})
			return nil
		})
	})
}
