package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Undo stores again what objects were before a transaction. An object that was
// modified since is merged by Config.Resolver; without it, or if that is
// impossible, the error is an [UndoError]. It returns the objects written.
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
			return nil, &UndoError{undone, tid.InvalidOID, err.Error(), ErrUndoPacked}
		}
		if ce, ok := errors.AsType[*ConflictError](err); ok && slices.Contains(written, ce.OID) {
			return nil, &UndoError{undone, ce.OID, modifiedLater, nil}
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
			if errors.Is(err, ErrNotFound) {
				return nil, &UndoError{undone, tid.InvalidOID, "non-undoable transaction", nil}
			}
			if errors.Is(err, ErrUndoPacked) {
				return nil, &UndoError{undone, tid.InvalidOID, err.Error(), ErrUndoPacked}
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
		case !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrNoSuchObject): // else only checked
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

const modifiedLater = "some data were modified by a later transaction"

func (t *Txn) undoOne(ctx context.Context, undone tid.TID, oid tid.OID, s proto.UndoSerial) error {
	var data []byte
	var err error
	if s.Undo.OK {
		data, err = t.c.LoadSerial(ctx, oid, s.Undo.V)
		if errors.Is(err, ErrDeleted) {
			data, err = nil, nil
		}
		if err != nil {
			if errors.Is(err, ErrNotFound) || errors.Is(err, ErrNoSuchObject) {
				return &UndoError{undone, oid, ErrUndoPacked.Error(), ErrUndoPacked}
			}
			return err
		}
	}
	if s.IsCurrent {
		return t.StoreUndo(ctx, oid, s.Current, data, s.Undo.V)
	}
	if !s.Undo.OK || data == nil || t.c.cfg.Resolver == nil {
		return &UndoError{undone, oid, modifiedLater, nil}
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
		current, err = t.c.LoadSerial(ctx, oid, s.Current)
		if err != nil && !errors.Is(err, ErrDeleted) {
			return err
		}
	}
	if current == nil {
		return &UndoError{undone, oid, modifiedLater, nil}
	}
	merged, err := t.c.cfg.Resolver(ctx, Conflict{OID: oid, Committed: s.Current, Base: undone, Data: data, CommittedData: current})
	if err != nil || merged == nil {
		return &UndoError{undone, oid, modifiedLater, nil}
	}
	return t.StoreUndo(ctx, oid, s.Current, merged, tid.Zero)
}

// TransactionInfo is what is known of a transaction besides its records.
type TransactionInfo struct {
	TID         tid.TID
	User        []byte
	Description []byte
	Extension   []byte // pickled dict, or empty
	Packed      bool
	OIDs        []tid.OID // written or only checked, in the order of the commit
}

// TransactionInfo returns the metadata of a committed transaction, or ErrNotFound.
func (c *Client) TransactionInfo(ctx context.Context, t tid.TID) (*TransactionInfo, error) {
	a, err := steady(ctx, func() (*proto.AnswerTransactionInformation, error) {
		return readAs[*proto.AnswerTransactionInformation](ctx, c, uint64(t), &proto.AskTransactionInformation{TID: t})
	})
	if err != nil {
		return nil, fmt.Errorf("transaction %v: %w", t, err)
	}
	return info(a), nil
}

func info(a *proto.AnswerTransactionInformation) *TransactionInfo {
	return &TransactionInfo{
		TID:         a.TID,
		User:        slices.Clone(a.User),
		Description: slices.Clone(a.Description),
		Extension:   slices.Clone(a.Extension),
		Packed:      a.Packed,
		OIDs:        a.OIDs,
	}
}
