package storage

import (
	"slices"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// identification is a request that waits for the master to tell about the node.
type identification struct {
	peer *peer
	ev   link.Event
}

// fromStranger processes the first packet of an incoming connection.
func (n *Node) fromStranger(p *peer, ev link.Event) error {
	r, ok := ev.Packet.(*proto.RequestIdentification)
	if !ok {
		n.unexpected(p, ev)
		return nil
	}
	n.peers[p] = true
	refuse := func(code proto.ErrorCode, format string, args ...any) error {
		n.log.Info("connection refused", "peer", p, "node", r.ID, "reason", proto.Errorf(code, format, args...))
		p.conn.AbortError(ev.ID, code, format, args...)
		return nil
	}
	switch {
	case r.Cluster != n.cfg.Cluster:
		return refuse(proto.ProtocolError, "this is cluster %q, not %q", n.cfg.Cluster, r.Cluster)
	case n.session == nil:
		return refuse(proto.NotReady, "not operational")
	case r.Type != proto.Client && r.Type != proto.Storage:
		return refuse(proto.ProtocolError, "a storage does not accept a %v", r.Type)
	case r.ID == 0 && r.Type == proto.Storage:
		// A storage of a backup cluster: it reads what any client could.
		p.role, p.identified, p.server = storageRole, true, true
		p.key = linkKey{addr: p.conn.RemoteAddr()}
		n.links[p.key] = p
		p.conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Storage})
		return nil
	case r.ID == 0:
		return refuse(proto.ProtocolError, "a client needs an id")
	case r.ID == n.id:
		return refuse(proto.ProtocolError, "%v is this node", r.ID)
	}
	// Only the master is trusted for ids: a node that lost the master must not go
	// on under an id that may belong to another one now.
	node := n.nodes.ByID(r.ID)
	if node == nil || node.Type != r.Type || !r.IDTimestamp.OK || node.IDTimestamp != r.IDTimestamp {
		if r.IDTimestamp.OK && n.infoTimestamp.V < r.IDTimestamp.V {
			n.unidentified = append(n.unidentified, &identification{p, ev})
			return nil
		}
		return refuse(proto.NotReady, "%v is not known by the master", r.ID)
	}
	if r.Type == proto.Client {
		return n.acceptClient(p, ev, r)
	}
	key := linkKey{id: r.ID}
	old := n.links[key]
	if old != nil {
		replace := !old.identified && n.id < r.ID || old.stamp != 0 && old.stamp != r.IDTimestamp.V
		if !replace {
			return refuse(proto.ProtocolError, "already connected")
		}
		delete(n.links, key)
		old.closed = true
		delete(n.peers, old)
		if old.conn != nil {
			old.conn.Close()
		}
		p.client = old.client
	}
	p.role, p.id, p.key, p.stamp, p.identified, p.server = storageRole, r.ID, key, r.IDTimestamp.V, true, true
	n.links[key] = p
	p.named()
	p.conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Storage, ID: n.id, YourID: r.ID})
	if old == nil {
		return nil
	}
	// Those who wait for the link use the other one, after the answer.
	return n.session.replicator.linkReplaced(old, p)
}

func (n *Node) acceptClient(p *peer, ev link.Event, r *proto.RequestIdentification) error {
	if old := n.clients[r.ID]; old != nil {
		// The id has a new holder; or the same client, of which no other process knows the
		// stamp, has lost its connection, and TCP has not told us yet.
		if err := n.drop(old); err != nil {
			return err
		}
	}
	p.role, p.id, p.stamp, p.identified = clientRole, r.ID, r.IDTimestamp.V, true
	n.clients[r.ID] = p
	p.named()
	p.access.Store(&access{txns: n.session.txns, readOnly: n.backupTID.Load() != nil})
	p.conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Storage, ID: n.id, YourID: r.ID})
	return nil
}

// retryIdentifications is called when the master has told about nodes.
func (n *Node) retryIdentifications() error {
	list := n.unidentified
	n.unidentified = nil
	for _, i := range list {
		if i.peer.closed {
			continue
		}
		if err := n.fromStranger(i.peer, i.ev); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) forgetIdentification(p *peer) {
	n.unidentified = slices.DeleteFunc(n.unidentified, func(i *identification) bool { return i.peer == p })
}
