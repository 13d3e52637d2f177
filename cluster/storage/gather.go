package storage

import (
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// maxGathered is how many loads of a connection are answered together.
const maxGathered = 128

// gathered is a load that waits for others that have arrived with it.
type gathered struct {
	id  uint32
	ask *proto.AskObject
}

// gather keeps a load that need not wait for a commit until all that has arrived
// with it is known. It runs on the goroutine of the connection.
func (n *Node) gather(p *peer, a *access, ev link.Event) bool {
	q, ok := ev.Packet.(*proto.AskObject)
	if !ok || q.OID > tid.MaxOID || n.mustWaitFor(a, q) {
		n.answerGathered(p)
		return false
	}
	if p.reads = append(p.reads, gathered{ev.ID, q}); len(p.reads) == maxGathered {
		n.answerGathered(p)
	}
	return true
}

// idle is called before the goroutine of a connection waits for more input.
func (n *Node) idle(conn *link.Conn) {
	if p, ok := conn.Tag.(*peer); ok && len(p.reads) > 0 {
		n.answerGathered(p)
	}
}

// answerGathered answers the loads that were gathered. The locks for reading were
// looked at when each came, before the database, as everywhere.
func (n *Node) answerGathered(p *peer) {
	reads := p.reads
	if len(reads) == 0 {
		return
	}
	defer func() {
		clear(p.reads)
		p.reads = p.reads[:0]
	}()
	a := p.access.Load()
	if a == nil {
		return // the connection is being closed
	}
	if len(reads) == 1 {
		n.read(p.conn.Context(), a, p.conn, reads[0].id, reads[0].ask, true)
		n.throttle(p.conn)
		return
	}
	n.answerTogether(a, p, reads)
}

// answerTogether answers loads by as few queries as possible. It changes reads.
func (n *Node) answerTogether(a *access, p *peer, reads []gathered) {
	ctx := p.conn.Context()
	n.vitals.loads.Add(int64(len(reads)))
	keys := make([]backend.ObjectKey, 0, len(reads))
	for len(reads) > 0 {
		keys = keys[:0]
		bytes := 0
		for _, r := range reads {
			at, before := when(n.limitOfLoad(a, r.ask), r.ask)
			keys = append(keys, backend.ObjectKey{OID: r.ask.OID, At: at, Before: before})
		}
		n.db.GetObjects(ctx, keys, func(i int, o *backend.Object, err error) bool {
			r := &reads[i]
			if err == nil {
				bytes += len(o.Data)
				p.conn.Queue(r.id, answerObject(n.limitOfLoad(a, r.ask), r.ask.OID, o))
			} else {
				n.finishRead(ctx, p.conn, r.id, nil, r.ask.OID, err)
			}
			r.ask = nil
			return p.conn.Buffered() <= maxOutput
		})
		n.counts.loaded.Add(uint64(bytes))
		p.conn.Flush()
		n.throttle(p.conn)
		left := reads[:0]
		for _, r := range reads {
			if r.ask != nil {
				left = append(left, r)
			}
		}
		reads = left
		if ctx.Err() != nil || n.ctx.Err() != nil {
			return
		}
	}
}
