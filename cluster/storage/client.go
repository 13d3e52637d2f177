package storage

import (
	"crypto/sha1"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/pending"
	"github.com/neozodb/neo/cluster/tid"
)

// maxCompression is the greatest known compression code: zlib.
const maxCompression = 1

// fromClient processes a packet of a client that its own goroutine did not.
func (n *Node) fromClient(e event) error {
	p, ev := e.peer, e.link
	a := p.access.Load()
	if n.session == nil || a == nil || a.txns != n.session.txns {
		return nil // the connection is being closed
	}
	txns, r := a.txns, pending.Request{Conn: ev.Conn, ID: ev.ID}
	if a.readOnly {
		switch ev.Packet.(type) {
		case *proto.AskStoreTransaction, *proto.AskVoteTransaction, *proto.AskStoreObject,
			*proto.AskFinalTID, *proto.AskRelockObject, *proto.AskCheckCurrentSerial:
			ev.Conn.AnswerError(ev.ID, proto.ReadOnlyAccess, "read-only access to a backup cluster")
			return nil
		}
	}
	switch q := ev.Packet.(type) {
	case *proto.AskStoreObject:
		if e.invalid != "" {
			ev.Conn.AbortError(ev.ID, proto.ProtocolError, "%s", e.invalid)
			return nil
		}
		n.counts.stored.add(1, len(q.Data))
		return txns.Store(r, p.id, q)
	case *proto.AskCheckCurrentSerial:
		if q.OID > tid.MaxOID || q.TTID > tid.Max {
			ev.Conn.AbortError(ev.ID, proto.ProtocolError, "object %v or transaction %v is out of range", q.OID, q.TTID)
			return nil
		}
		return txns.Check(r, p.id, q)
	case *proto.AskRelockObject:
		return txns.Relock(r, p.id, q)
	case *proto.AskStoreTransaction:
		if q.TTID > tid.Max {
			ev.Conn.AbortError(ev.ID, proto.ProtocolError, "transaction %v is out of range", q.TTID)
			return nil
		}
		if i := slices.IndexFunc(q.OIDs, func(o tid.OID) bool { return o > tid.MaxOID }); i >= 0 {
			ev.Conn.AbortError(ev.ID, proto.ProtocolError, "object %v of transaction %v is out of range", q.OIDs[i], q.TTID)
			return nil
		}
		return txns.StoreTransaction(r, p.id, q)
	case *proto.AskVoteTransaction:
		return txns.Vote(r, p.id, q)
	case *proto.AbortTransaction:
		if err := txns.ClientAbort(p.id, q.TTID); err != nil {
			return err
		}
		return n.session.replicator.transactionEnded(q.TTID, proto.Opt[tid.TID]{})
	case *proto.AskFinalTID:
		final, isPending := txns.FinalTID(q.TTID)
		var err error
		if !isPending && q.TTID <= tid.Max {
			final, err = n.db.FinalTID(n.ctx, q.TTID)
		}
		n.finishRead(n.ctx, ev.Conn, ev.ID, &proto.AnswerFinalTID{TID: final}, q.TTID, err)
		return nil
	case *proto.AskObjectUndoSerial:
		// The client knows of every commit below LastTID, this node perhaps not
		// yet of its completion.
		if last := min(q.LastTID-1, n.limit(a)); !e.waited && txns.TransactionLocked(last) {
			txns.WaitTransaction(r, q, last)
			return nil
		}
		// The list may be long: not on this goroutine.
		bases := map[tid.OID]tid.TID{}
		for _, oid := range q.OIDs {
			if t := txns.UndoBase(q.TTID, oid); t.OK {
				bases[oid] = t.V
			}
		}
		f := n.session.feeder
		f.wg.Go(func() {
			ctx, cancel := f.answering(ev.Conn)
			defer cancel()
			answer, err := n.undoSerial(ctx, n.limit(a), q, bases)
			n.finishRead(ctx, ev.Conn, ev.ID, answer, q.Undone, err)
		})
		return nil
	case *proto.CloseClient:
		return n.drop(p)
	}
	oid, last := n.needs(a, ev.Packet)
	switch {
	case !isRead(ev.Packet):
		n.unexpected(p, ev)
	case e.waited || !n.mustWaitFor(a, ev.Packet):
		// It waits no more, or the commit was completed since the goroutine of the connection looked.
		f := n.session.feeder
		f.wg.Go(func() {
			ctx, cancel := f.answering(ev.Conn)
			defer cancel()
			n.read(ctx, a, ev.Conn, ev.ID, ev.Packet, true)
		})
	case oid.OK:
		txns.WaitObject(r, ev.Packet, oid.V)
	default:
		txns.WaitTransaction(r, ev.Packet, last)
	}
	return nil
}

// invalidStore returns why a store is refused, "" if it is good. A payload
// without data and with a zero checksum deletes the object, or undoes.
func invalidStore(p *proto.AskStoreObject) string {
	switch {
	case p.Compression > maxCompression:
		return "unknown compression"
	case p.OID > tid.MaxOID:
		return "object id out of range"
	case p.TTID > tid.Max || p.TTID == tid.Zero || p.DataSerial.V > tid.Max:
		return "transaction id out of range"
	case len(p.Data) == 0 && p.Checksum == proto.ZeroHash:
		return ""
	case sha1.Sum(p.Data) != p.Checksum:
		return "checksum differs from that of the data"
	}
	return ""
}
