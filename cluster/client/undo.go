package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Undo stores again what objects were before a transaction. An object that was
// modified since is merged by Config.Resolver; without it, or if that is
// impossible, the error is an [txn.UndoError]. It returns the objects written.
func (t *Txn) Undo(ctx context.Context, undone tid.TID) ([]tid.OID, error) {
	if err := t.usable(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.keepAll = true // an undo of the same object may follow
	t.mu.Unlock()
	info, err := t.c.TransactionInfo(ctx, undone)
	if err != nil {
		return nil, fmt.Errorf("undo transaction %v: %w", undone, err)
	}
	serials, err := t.undoSerials(ctx, undone, info.OIDs)
	if err != nil {
		return nil, err
	}
	var written []tid.OID
	for _, oid := range info.OIDs {
		s, ok := serials[oid]
		if !ok {
			continue // only checked by that transaction
		}
		delete(serials, oid)
		if err := t.undoOne(ctx, undone, oid, s); err != nil {
			return nil, err
		}
		written = append(written, oid)
	}
	if err := t.settle(ctx); err != nil {
		if errors.Is(err, ErrUndoPacked) {
			return nil, undoError(undone, tid.InvalidOID, err.Error(), ErrUndoPacked)
		}
		if ce, ok := errors.AsType[*txn.ConflictError](err); ok && slices.Contains(written, ce.OID) {
			return nil, undoError(undone, ce.OID, modifiedLater, nil)
		}
		return nil, err
	}
	return written, nil
}

// undoSerials asks, for each object of a transaction, what to store to undo it.
func (t *Txn) undoSerials(ctx context.Context, undone tid.TID, oids []tid.OID) (map[tid.OID]proto.UndoSerial, error) {
	np := t.np()
	groups := map[int][]tid.OID{}
	for _, oid := range oids {
		p := oid.Partition(np)
		groups[p] = append(groups[p], oid)
	}
	last, err := t.c.LastTID(ctx)
	if err != nil {
		return nil, err
	}
	result := map[tid.OID]proto.UndoSerial{}
	for partition, group := range groups {
		for len(group) > 0 {
			a, err := t.askUndo(ctx, partition, &proto.AskObjectUndoSerial{TTID: t.ttid, LastTID: last + 1, Undone: undone, OIDs: group})
			if errors.Is(err, txn.ErrNotFound) {
				return nil, undoError(undone, tid.InvalidOID, "non-undoable transaction", nil)
			}
			if errors.Is(err, ErrUndoPacked) {
				return nil, undoError(undone, tid.InvalidOID, err.Error(), ErrUndoPacked)
			}
			if err == nil {
				maps.Copy(result, a.Undo)
				group, err = t.written(ctx, undone, group, a.Undo)
			}
			if err != nil {
				return nil, fmt.Errorf("undo transaction %v: %w", undone, err)
			}
		}
	}
	return result, nil
}

// written returns those objects that a transaction wrote although the storage did
// not name them: when it was asked it had not yet heard that the transaction is
// committed. A load waits for that; then it can be asked again.
func (t *Txn) written(ctx context.Context, at tid.TID, oids []tid.OID, named map[tid.OID]proto.UndoSerial) (again []tid.OID, err error) {
	for _, oid := range oids {
		if _, ok := named[oid]; ok {
			continue
		}
		switch _, _, err := t.c.fetch(ctx, oid, at, tid.Zero); {
		case err == nil:
			again = append(again, oid)
		case !errors.Is(err, txn.ErrNotFound) && !errors.Is(err, txn.ErrNoSuchObject): // else only checked
			return nil, err
		}
	}
	return again, nil
}

// askUndo asks a readable cell that has not missed a store of this transaction.
func (t *Txn) askUndo(ctx context.Context, partition int, req *proto.AskObjectUndoSerial) (*proto.AnswerObjectUndoSerial, error) {
	for round := 0; ; round++ {
		v := t.c.view.Load()
		if v == nil || v.session != t.session {
			return nil, ErrMasterLost
		}
		for _, id := range t.c.readCells(v, partition, nil) {
			t.mu.Lock()
			conn, used := t.nodes[id]
			t.mu.Unlock()
			if !used {
				var err error
				if conn, err = t.c.storage(ctx, v, id); ctx.Err() != nil {
					return nil, ctx.Err()
				} else if err != nil {
					continue
				}
			}
			if conn == nil {
				continue
			}
			p, err := conn.Call(ctx, req)
			if err == nil {
				if a, ok := p.(*proto.AnswerObjectUndoSerial); ok {
					return a, nil
				}
				return nil, fmt.Errorf("%T answered with %T", req, p)
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			pe, ok := errors.AsType[*proto.Error](err)
			if !ok {
				t.mu.Lock()
				if t.nodes[id] == conn {
					t.lostLocked(id)
				}
				t.mu.Unlock()
			} else if pe.ErrCode != proto.NonReadableCell {
				return nil, fromWire(pe)
			}
		}
		if round > len(v.rows[partition]) {
			return nil, fmt.Errorf("read partition %d: %w", partition, ErrNoStorage)
		}
		if err := t.c.ping(ctx, v); err != nil {
			return nil, err
		}
	}
}

func undoError(undone tid.TID, oid tid.OID, reason string, kind error) error {
	return &txn.UndoError{TID: undone, Failures: []txn.UndoFailure{{OID: oid, Reason: reason}}, Err: kind}
}

const modifiedLater = "some data were modified by a later transaction"

func (t *Txn) undoOne(ctx context.Context, undone tid.TID, oid tid.OID, s proto.UndoSerial) error {
	var data []byte
	if s.Undo.OK {
		r, err := t.c.LoadAt(ctx, oid, s.Undo.V)
		if errors.Is(err, ErrDeleted) {
			err = nil
		}
		data = r.Data
		if err != nil {
			if errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject) {
				return undoError(undone, oid, ErrUndoPacked.Error(), ErrUndoPacked)
			}
			return err
		}
	}
	if s.IsCurrent {
		return t.StoreUndo(ctx, oid, s.Current, data, s.Undo.V)
	}
	if !s.Undo.OK || data == nil || t.c.cfg.Resolver == nil {
		return undoError(undone, oid, modifiedLater, nil)
	}
	var current []byte
	if s.Current == t.ttid {
		t.mu.Lock()
		w := t.done[oid]
		if w == nil {
			w = t.data[oid]
		}
		if w != nil {
			current = w.data
		}
		t.mu.Unlock()
	} else {
		r, err := t.c.LoadAt(ctx, oid, s.Current)
		if err != nil && !errors.Is(err, ErrDeleted) {
			return err
		}
		current = r.Data
	}
	if current == nil {
		return undoError(undone, oid, modifiedLater, nil)
	}
	merged, err := t.c.cfg.Resolver(ctx, Conflict{OID: oid, Committed: s.Current, Base: undone, Data: data, CommittedData: current})
	if err != nil || merged == nil {
		return undoError(undone, oid, modifiedLater, nil)
	}
	return t.StoreUndo(ctx, oid, s.Current, merged, tid.Zero)
}

// TransactionInfo returns the metadata of a committed transaction, or
// [txn.ErrNotFound]. Its objects are those written or only checked, in the order of
// the commit.
func (c *Client) TransactionInfo(ctx context.Context, t tid.TID) (*txn.Info, error) {
	a, err := steady(ctx, func() (*proto.AnswerTransactionInformation, error) {
		return readAs[*proto.AnswerTransactionInformation](ctx, c, uint64(t), &proto.AskTransactionInformation{TID: t})
	})
	if err != nil {
		return nil, fmt.Errorf("transaction %v: %w", t, err)
	}
	info := &txn.Info{
		TID:         a.TID,
		Status:      txn.Committed,
		User:        slices.Clone(a.User),
		Description: slices.Clone(a.Description),
		Extension:   slices.Clone(a.Extension),
		OIDs:        a.OIDs,
	}
	if a.Packed {
		info.Status = txn.Packed
	}
	return info, nil
}
