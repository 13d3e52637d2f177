package storage

import (
	"context"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// undoSerial answers what an undo needs to know about each object. bases are the
// revisions that the running transaction itself has stored or restored.
func (n *Node) undoSerial(ctx context.Context, limit tid.TID, p *proto.AskObjectUndoSerial, bases map[tid.OID]tid.TID) (proto.Packet, error) {
	answer := &proto.AnswerObjectUndoSerial{Undo: map[tid.OID]proto.UndoSerial{}}
	for _, oid := range p.OIDs {
		if oid > tid.MaxOID {
			continue
		}
		h, err := n.db.UndoHistory(ctx, oid, p.Undone)
		if err != nil {
			return nil, err
		}
		if p.Undone > limit {
			continue
		}
		if !h.Found { // listed in the transaction, but not modified: readCurrent
			if err := n.checkPacked(oid, p.Undone); err != nil {
				return nil, err
			}
			continue
		}
		for len(h.Later) > 0 && h.Later[len(h.Later)-1].TID > limit {
			h.Later = h.Later[:len(h.Later)-1]
		}
		base, stored := bases[oid]
		u, ok := findUndo(h, p.Undone, p.LastTID, proto.Opt[tid.TID]{V: base, OK: stored})
		if !ok {
			return nil, proto.Errorf(proto.OIDNotFound, "%v", oid)
		}
		if !u.Undo.OK { // it was created there, unless what was before is packed
			if err := n.checkPacked(oid, p.Undone); err != nil {
				return nil, err
			}
		}
		answer.Undo[oid] = u
	}
	return answer, nil
}

// checkPacked refuses to undo a transaction of which a pack may have deleted a record,
// or what was before.
func (n *Node) checkPacked(oid tid.OID, undone tid.TID) error {
	packed, err := n.db.PackedUpTo(oid)
	if err == nil && undone <= packed {
		err = proto.Errorf(proto.UndoPackError, "%v: what was at %v or before may be packed", oid, undone)
	}
	return err
}

// findUndo tells which revision an undo restores. Revisions after last are not
// seen by the client; current is what the running transaction wrote, if it did.
//
// Among revisions with the same data the last one is returned, so that the
// references from an undo to what it restored form a chain, and packing never
// has to rewrite them.
func findUndo(h backend.UndoHistory, undone, last tid.TID, current proto.Opt[tid.TID]) (u proto.UndoSerial, ok bool) {
	if current.OK {
		u.Current = current.V
	} else {
		for _, l := range h.Later {
			if l.TID >= last {
				break
			}
			u.Current = l.TID
		}
		if u.Current == tid.Zero {
			if last <= undone {
				return u, false
			}
			u.Current = undone
		}
	}
	u.Undo, u.IsCurrent = h.Prev, u.Current == undone
	for _, l := range h.Later {
		switch l.DataSerial {
		case tid.Zero:
		case undone:
			if u.Current == l.TID {
				u.IsCurrent = true
			} else {
				undone = l.TID
			}
		default:
			if u.Undo.OK && l.DataSerial == u.Undo.V {
				u.Undo.V = l.TID
			}
		}
	}
	return u, true
}
