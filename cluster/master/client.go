package master

import (
	"log/slog"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// clientPacket handles what a client sends.
func (m *Machine) clientPacket(p *peer, id uint32, pkt proto.Packet) {
	if p.readOnly && m.refuseWrite(p, id, pkt) {
		return
	}
	switch pkt := pkt.(type) {
	case *proto.AskBeginTransaction:
		if !m.begin(p, id, pkt) {
			m.delay(p, id, pkt)
		}
	case *proto.AskNewOIDs:
		oids, err := m.ids.newOIDs(pkt.Count)
		if err != nil {
			m.answerError(p, id, proto.Denied, "%v", err)
			return
		}
		m.answer(p, id, &proto.AnswerNewOIDs{OIDs: oids})
	case *proto.FailedVote:
		if !m.failedVote(p, id, pkt) {
			m.delay(p, id, pkt)
		}
	case *proto.AskFinishTransaction:
		m.finish(p, id, pkt)
	case *proto.AbortTransaction:
		m.abortTransaction(p, pkt)
	case *proto.AskFinalTID:
		m.finalTID(p, id, pkt.TTID)
	case *proto.AskPackOrders:
		m.packOrdersAsked(p, id, pkt.Min)
	case *proto.WaitForPack:
		m.waitForPack(p, id, pkt.ID)
	default:
		m.unexpected(p, id, pkt)
	}
}

// refuseWrite refuses what only a client that may write can ask.
func (m *Machine) refuseWrite(p *peer, id uint32, pkt proto.Packet) bool {
	switch pkt.(type) {
	case *proto.AskBeginTransaction, *proto.AskNewOIDs, *proto.AskFinishTransaction, *proto.AskFinalTID, *proto.FailedVote:
		m.answerError(p, id, proto.ReadOnlyAccess, "the connection is read-only")
		return true
	case *proto.AbortTransaction:
		return true
	}
	return false
}

// abortTransaction drops a transaction. A client that has come back may abort
// one that was dropped with its former link, and one that is being finished
// cannot be aborted: both are ignored.
func (m *Machine) abortTransaction(p *peer, pkt *proto.AbortTransaction) {
	t := m.own(p, pkt.TTID)
	if t == nil || t.prepared {
		m.log(slog.LevelInfo, "abort ignored", "node", p.String(), "ttid", pkt.TTID.String())
		return
	}
	var ready []*peer
	for _, s := range m.ofType(proto.Storage) {
		if s.ready > 0 && (slices.Contains(pkt.IDs, s.node.ID) || slices.Contains(t.registered, s)) {
			ready = append(ready, s)
		}
	}
	m.discard(t, ready)
	m.transactionsEnded()
}

// finalTID tells a client that lost the answer to its finish what became of it.
func (m *Machine) finalTID(p *peer, id uint32, ttid tid.TID) {
	t := m.txns.pending[ttid]
	switch {
	case t != nil:
		t.finals = append(t.finals, asker{p, id})
	case m.txns.last(m.ids.committed) < ttid:
		m.answer(p, id, &proto.AnswerFinalTID{})
	default:
		// Only its storages know.
		m.answer(p, id, &proto.AnswerFinalTID{TID: proto.Some(tid.Max)})
	}
}
