package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Conflict is what a [Resolver] merges: Data was made from the revision Base,
// but Committed is the current one now.
type Conflict struct {
	OID             tid.OID
	Committed, Base tid.TID
	Data            []byte
	CommittedData   []byte // nil if the object was deleted
}

// Resolver merges two changes of an object into the record to store on top of
// the committed one. It needs the classes of the application, so it is outside
// of NEO. An error makes the conflict an error.
type Resolver func(ctx context.Context, c Conflict) ([]byte, error)

// resolve resolves the conflicts known so far. What it can not resolve stays in
// the table, so that the object may be stored again by the caller.
func (t *Txn) resolve(ctx context.Context) error {
	for {
		t.mu.Lock()
		var oid tid.OID
		var committed tid.TID
		for oid, committed = range t.conflict {
			break
		}
		w := t.data[oid]
		t.mu.Unlock()
		if committed == tid.Zero {
			return nil
		}
		if w == nil {
			return fmt.Errorf("transaction %v: conflict on object %v, which is not being stored", t.ttid, oid)
		}
		if err := t.resolveOne(ctx, oid, committed, w); err != nil {
			return err
		}
	}
}

func (t *Txn) resolveOne(ctx context.Context, oid tid.OID, committed tid.TID, w *write) error {
	if w.check {
		return &txn.ReadConflictError{OID: oid, Committed: committed, Base: w.serial}
	}
	if (w.restored || t.opt.rebase != nil) && committed < t.opt.TID {
		if t.opt.rebase != nil {
			if err := t.opt.rebase(ctx); err != nil {
				return err
			}
		}
		again := *w
		again.serial, again.waiting, again.again = committed, nil, true
		return t.send(ctx, oid, &again)
	}
	if tid.TID(t.c.last.Load()) < committed { // its invalidation is late
		if err := t.c.Sync(ctx); err != nil {
			return err
		}
	}
	if t.c.cfg.Resolver == nil || w.data == nil {
		return &txn.ConflictError{OID: oid, Committed: committed, Base: w.serial, Data: w.data}
	}
	theirs, err := t.c.LoadAt(ctx, oid, committed)
	if err != nil && !errors.Is(err, ErrDeleted) {
		return fmt.Errorf("transaction %v: conflict: %w", t.ttid, err)
	}
	data, err := t.c.cfg.Resolver(ctx, Conflict{OID: oid, Committed: committed, Base: w.serial, Data: w.data, CommittedData: theirs.Data})
	if err != nil {
		return &txn.ConflictError{OID: oid, Committed: committed, Base: w.serial, Data: w.data, Err: err}
	}
	if data == nil {
		return &txn.ConflictError{OID: oid, Committed: committed, Base: w.serial, Data: w.data, Err: errors.New("resolved to nothing")}
	}
	return t.send(ctx, oid, &write{data: data, kept: true, serial: committed, again: true})
}

// Conflicts waits for all answers of storages and returns the conflicts that
// stand in the way of a vote, without trying to resolve them: one
// [txn.ConflictError] or [txn.ReadConflictError] each, by object. Restored objects have
// none.
func (t *Txn) Conflicts(ctx context.Context) ([]error, error) {
	if err := t.quiet(ctx); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []error
	for _, oid := range slices.Sorted(maps.Keys(t.conflict)) {
		w, committed := t.data[oid], t.conflict[oid]
		if w.restored && committed < t.opt.TID {
			continue // for Vote to resolve
		}
		if w.check {
			list = append(list, &txn.ReadConflictError{OID: oid, Committed: committed, Base: w.serial})
		} else {
			list = append(list, &txn.ConflictError{OID: oid, Committed: committed, Base: w.serial, Data: w.data})
		}
	}
	return list, nil
}

// quiet waits until no answer is pending.
func (t *Txn) quiet(ctx context.Context) error {
	for {
		t.mu.Lock()
		err := t.usableLocked()
		waiting := t.waitingLocked()
		t.mu.Unlock()
		if err != nil || !waiting {
			return err
		}
		if err := t.wait(ctx); err != nil {
			return err
		}
	}
}

func (t *Txn) waitingLocked() bool {
	for _, n := range t.pending {
		if n > 0 {
			return true
		}
	}
	return false
}
