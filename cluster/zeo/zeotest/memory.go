// Package zeotest holds a database in memory, with all that a Data.fs can do, so
// that the ZEO server can be tested and measured without anything below it, and
// a ZEO client to generate load.
package zeotest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/fsformat/pickle"
)

// Memory is a database in memory. Several servers may use it, each through a
// [Door] of its own.
type Memory struct {
	commit chan struct{} // holds one token: one transaction votes at a time

	mu      sync.RWMutex
	objects map[tid.OID][]txn.Record // by TID
	txns    []*transaction           // by TID
	lastOID tid.OID
	lastTID tid.TID
	clock   tid.Clock
	doors   []*Door
	count   atomic.Int64 // objects
	size    atomic.Int64 // bytes
}

type transaction struct {
	tid     tid.TID
	status  byte
	user    []byte
	desc    []byte
	ext     []byte
	records []txn.Record
}

// NewMemory returns an empty database.
func NewMemory() *Memory {
	m := &Memory{commit: make(chan struct{}, 1), objects: make(map[tid.OID][]txn.Record)}
	m.commit <- struct{}{}
	return m
}

// Door is a [zeo.Storage] on a [Memory].
type Door struct {
	*Memory
	F zeo.Features
	w zeo.Watcher
}

// Door returns another door. Features that are not wanted can be cleared in F.
func (m *Memory) Door() *Door {
	return &Door{Memory: m, F: zeo.Features{
		Name: "memory", Undo: true, Iterate: true, Objects: true, Restore: true, GC: true, Local: true,
	}}
}

// Features implements [zeo.Storage].
func (d *Door) Features() zeo.Features { return d.F }

// Watch implements [zeo.Storage].
func (d *Door) Watch(_ context.Context, w zeo.Watcher) (tid.TID, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.w = w
	d.doors = append(d.doors, d)
	return d.lastTID, nil
}

// Forget ends what Watch began.
func (d *Door) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doors = slices.DeleteFunc(d.doors, func(o *Door) bool { return o == d })
}

// Size implements [zeo.Storage].
func (m *Memory) Size() (int64, int64) {
	return m.count.Load(), m.size.Load()
}

// LastTID returns the last transaction.
func (m *Memory) LastTID(context.Context) (tid.TID, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.lastTID, nil
}

// Sync implements [zeo.Storage].
func (m *Memory) Sync(context.Context) error { return nil }

// LoadBefore implements [zeo.Storage].
func (m *Memory) LoadBefore(_ context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	revisions := m.objects[oid]
	if len(revisions) == 0 {
		return txn.Revision{}, txn.ErrNoSuchObject
	}
	i := len(revisions) - 1
	for i >= 0 && revisions[i].TID >= before {
		i--
	}
	if i < 0 {
		return txn.Revision{}, txn.ErrNotFound
	}
	if revisions[i].Data == nil {
		return txn.Revision{}, txn.ErrNoSuchObject
	}
	r := txn.Revision{Data: revisions[i].Data, Serial: revisions[i].TID}
	if i+1 < len(revisions) {
		r.Next = revisions[i+1].TID
	}
	return r, nil
}

// at returns the record of a revision.
func (m *Memory) at(oid tid.OID, t tid.TID) *txn.Record {
	revisions := m.objects[oid]
	i, ok := slices.BinarySearchFunc(revisions, t, func(r txn.Record, t tid.TID) int {
		if r.TID < t {
			return -1
		} else if r.TID > t {
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return &revisions[i]
}

// LoadAt implements [zeo.Storage].
func (m *Memory) LoadAt(_ context.Context, oid tid.OID, serial tid.TID) (txn.Revision, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if r := m.at(oid, serial); r != nil && r.Data != nil {
		return txn.Revision{Data: r.Data, Serial: serial}, nil
	}
	return txn.Revision{}, txn.ErrNoSuchObject
}

func (m *Memory) txn(t tid.TID) *transaction {
	i, ok := slices.BinarySearchFunc(m.txns, t, func(x *transaction, t tid.TID) int {
		if x.tid < t {
			return -1
		} else if x.tid > t {
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return m.txns[i]
}

func (x *transaction) meta(size int64) txn.Info {
	return txn.Info{TID: x.tid, User: x.user, Description: x.desc, Extension: x.ext, Size: size, Status: x.status}
}

// size is what the record takes in a Data.fs.
func size(r *txn.Record) int64 {
	if r.DataTID != tid.Zero {
		return 0
	}
	return int64(len(r.Data))
}

// Revisions implements [zeo.Storage].
func (m *Memory) Revisions(_ context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	revisions := m.objects[oid]
	if len(revisions) == 0 {
		return nil, txn.ErrNoSuchObject
	}
	var list []txn.Info
	for i := len(revisions) - 1; i >= 0 && len(list) < n; i-- {
		list = append(list, m.txn(revisions[i].TID).meta(size(&revisions[i])))
	}
	return list, nil
}

// UndoLog implements [zeo.Storage].
func (m *Memory) UndoLog(_ context.Context, first, last int, accept func(*txn.Info) bool) ([]txn.Info, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var list []txn.Info
	for i, n := len(m.txns)-1, 0; i >= 0 && n < last; i-- {
		x := m.txns[i]
		if x.status == txn.Packed {
			break
		}
		length := int64(23 + len(x.user) + len(x.desc) + len(x.ext))
		for k := range x.records {
			length += 42 + max(size(&x.records[k]), 8)
		}
		if meta := x.meta(length); x.status == txn.Committed && accept(&meta) {
			if n >= first {
				list = append(list, meta)
			}
			n++
		}
	}
	return list, nil
}

// Transactions implements [zeo.Storage].
func (m *Memory) Transactions(_ context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		m.mu.RLock()
		txns := slices.Clone(m.txns)
		m.mu.RUnlock()
		for _, x := range txns {
			if x.tid <= after || x.tid > upTo {
				continue
			}
			if !yield(&txn.Transaction{
				TID: x.tid, Status: x.status, User: x.user, Description: x.desc, Extension: x.ext,
				Records: txn.Slice(x.records),
			}, nil) {
				return
			}
		}
	}
}

// Changes implements [zeo.Changer].
func (m *Memory) Changes(_ context.Context, after tid.TID, n int) ([]zeo.Change, tid.TID, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var list []zeo.Change
	for i := len(m.txns) - 1; i >= 0 && m.txns[i].tid > after; i-- {
		if len(list) == n {
			after = m.txns[i].tid
			break
		}
		c := zeo.Change{TID: m.txns[i].tid}
		for _, r := range m.txns[i].records {
			c.OIDs = append(c.OIDs, r.OID)
		}
		list = append(list, c)
	}
	slices.Reverse(list)
	return list, after, nil
}

// NextObject implements [zeo.Storage].
func (m *Memory) NextObject(_ context.Context, from tid.OID) (tid.OID, txn.Revision, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	found, any := tid.OID(0), false
	for oid, revisions := range m.objects {
		if oid >= from && (!any || oid < found) && revisions[len(revisions)-1].Data != nil {
			found, any = oid, true
		}
	}
	if !any {
		return 0, txn.Revision{}, txn.ErrNoSuchObject
	}
	revisions := m.objects[found]
	r := revisions[len(revisions)-1]
	return found, txn.Revision{Data: r.Data, Serial: r.TID}, nil
}

// NewOIDs implements [zeo.Storage].
func (m *Memory) NewOIDs(_ context.Context, n int) ([]tid.OID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	oids := make([]tid.OID, n)
	for i := range oids {
		m.lastOID++
		oids[i] = m.lastOID
	}
	return oids, nil
}

// Txn is a transaction on a [Memory]. It holds the commit lock.
type Txn struct {
	d       *Door
	b       zeo.Begin
	tid     tid.TID
	order   []tid.OID
	records map[tid.OID]txn.Record
	ended   bool
}

// Begin implements [zeo.Storage].
func (d *Door) Begin(ctx context.Context, b zeo.Begin) (zeo.Txn, error) {
	if d.F.ReadOnly {
		return nil, txn.ErrReadOnly
	}
	select {
	case <-d.commit:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	t := &Txn{d: d, b: b, tid: b.TID, records: make(map[tid.OID]txn.Record)}
	d.mu.Lock()
	defer d.mu.Unlock()
	if t.tid == tid.Zero {
		t.tid = d.clock.Next()
	} else if t.tid <= d.lastTID {
		d.commit <- struct{}{}
		return nil, fmt.Errorf("transaction %v is not after %v", t.tid, d.lastTID)
	}
	d.clock.Observe(t.tid)
	return t, nil
}

// Busy reports whether a transaction holds the commit lock.
func (m *Memory) Busy() bool { return len(m.commit) == 0 }

// current returns the newest record of an object, that of the transaction first.
func (t *Txn) current(oid tid.OID) *txn.Record {
	if r, ok := t.records[oid]; ok {
		return &r
	}
	t.d.mu.RLock()
	defer t.d.mu.RUnlock()
	return t.d.newest(oid)
}

func (m *Memory) newest(oid tid.OID) *txn.Record {
	if revisions := m.objects[oid]; len(revisions) > 0 {
		return &revisions[len(revisions)-1]
	}
	return nil
}

func (t *Txn) committed(oid tid.OID) (tid.TID, bool) {
	t.d.mu.RLock()
	defer t.d.mu.RUnlock()
	if r := t.d.newest(oid); r != nil {
		return r.TID, true
	}
	return tid.Zero, false
}

func (t *Txn) put(r txn.Record) {
	r.TID = t.tid
	if _, ok := t.records[r.OID]; !ok {
		t.order = append(t.order, r.OID)
	}
	t.records[r.OID] = r
}

// Store implements [zeo.Txn].
func (t *Txn) Store(_ context.Context, oid tid.OID, base tid.TID, data []byte) error {
	if now, ok := t.committed(oid); ok && now != base {
		return &txn.ConflictError{OID: oid, Committed: now, Base: base}
	}
	t.put(txn.Record{OID: oid, Data: data})
	return nil
}

// Check implements [zeo.Txn].
func (t *Txn) Check(_ context.Context, oid tid.OID, base tid.TID) error {
	now, ok := t.committed(oid)
	if !ok {
		return txn.ErrNoSuchObject
	}
	if now != base {
		return &txn.ReadConflictError{OID: oid, Committed: now, Base: base}
	}
	return nil
}

// Delete implements [zeo.Txn].
func (t *Txn) Delete(_ context.Context, oid tid.OID, base tid.TID) error {
	now, ok := t.committed(oid)
	if !ok {
		return txn.ErrNoSuchObject
	}
	if now != base {
		return &txn.ConflictError{OID: oid, Committed: now, Base: base}
	}
	t.put(txn.Record{OID: oid})
	return nil
}

// Restore implements [zeo.Restorer].
func (t *Txn) Restore(_ context.Context, r txn.Record) error {
	if r.DataTID != tid.Zero {
		t.d.mu.RLock()
		prev := t.d.at(r.OID, r.DataTID)
		t.d.mu.RUnlock()
		switch {
		case prev == nil:
			r.DataTID = tid.Zero
		case r.Data == nil:
			r.Data = prev.Data
		case !bytes.Equal(prev.Data, r.Data):
			r.DataTID = tid.Zero
		}
	}
	t.put(r)
	return nil
}

// Undo implements [zeo.Txn].
func (t *Txn) Undo(_ context.Context, undone tid.TID) ([]tid.OID, error) {
	t.d.mu.RLock()
	x := t.d.txn(undone)
	t.d.mu.RUnlock()
	if x == nil {
		return nil, &txn.UndoError{Failures: []txn.UndoFailure{{OID: tid.InvalidOID, Reason: "Invalid transaction id"}}}
	}
	if x.status != txn.Committed {
		return nil, &txn.UndoError{Failures: []txn.UndoFailure{{OID: tid.InvalidOID, Reason: "non-undoable transaction"}}}
	}
	var oids []tid.OID
	var failures []txn.UndoFailure
	for _, r := range x.records {
		now := t.current(r.OID)
		if now == nil || now.TID != undone && now.DataTID != undone && !same(now.Data, r.Data) {
			failures = append(failures, txn.UndoFailure{OID: r.OID, Reason: "Some data were modified by a later transaction"})
			continue
		}
		copied := txn.Record{OID: r.OID}
		t.d.mu.RLock()
		for _, p := range t.d.objects[r.OID] {
			if p.TID < undone {
				copied.Data, copied.DataTID = p.Data, p.TID
			}
		}
		t.d.mu.RUnlock()
		t.put(copied)
		oids = append(oids, r.OID)
	}
	if failures != nil {
		return nil, &txn.UndoError{Failures: failures}
	}
	return oids, nil
}

func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// Vote implements [zeo.Txn].
func (t *Txn) Vote(context.Context) ([]tid.OID, []*txn.ConflictError, error) { return nil, nil, nil }

// Finish implements [zeo.Txn].
func (t *Txn) Finish(_ context.Context, committed func(tid.TID)) (tid.TID, error) {
	if t.ended {
		return 0, errors.New("transaction has ended")
	}
	t.ended = true
	m := t.d.Memory
	m.mu.Lock()
	x := &transaction{tid: t.tid, status: t.b.Status, user: t.b.User, desc: t.b.Description, ext: t.b.Extension}
	for _, oid := range t.order {
		r := t.records[oid]
		r.Data = bytes.Clone(r.Data)
		x.records = append(x.records, r)
		m.objects[oid] = append(m.objects[oid], r)
		m.lastOID = max(m.lastOID, oid)
		m.size.Add(int64(len(r.Data)) + 42)
	}
	m.count.Store(int64(len(m.objects)))
	m.txns = append(m.txns, x)
	m.lastTID = t.tid
	// Within the lock: no load shows the transaction before it is announced.
	for _, d := range m.doors {
		if d != t.d {
			d.w.Committed(t.tid, t.order)
		}
	}
	committed(t.tid)
	m.mu.Unlock()
	m.commit <- struct{}{}
	return t.tid, nil
}

// Abort implements [zeo.Txn].
func (t *Txn) Abort(context.Context) error {
	if !t.ended {
		t.ended = true
		t.d.commit <- struct{}{}
	}
	return nil
}

// Pack implements [zeo.Storage]: it forgets what is not reachable at the moment
// nor was stored since, and older revisions.
func (m *Memory) Pack(_ context.Context, at tid.TID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	alive, err := m.reachable(at)
	if err != nil {
		return err
	}
	kept := make(map[tid.TID]map[tid.OID]bool)
	m.size.Store(0)
	for oid, revisions := range m.objects {
		first := 0 // the revision that is current at the moment, if it is of use
		for first+1 < len(revisions) && revisions[first+1].TID <= at {
			first++
		}
		if revisions[first].TID <= at && (!alive[oid] || revisions[first].Data == nil) {
			first++
		}
		if first == len(revisions) {
			delete(m.objects, oid)
			continue
		}
		revisions = slices.Clone(revisions[first:])
		for i := range revisions {
			r := &revisions[i]
			if kept[r.TID] == nil {
				kept[r.TID] = make(map[tid.OID]bool)
			}
			kept[r.TID][oid] = true
			if r.DataTID != tid.Zero && r.DataTID < revisions[0].TID {
				r.DataTID = tid.Zero
			}
			m.size.Add(int64(len(r.Data)) + 42)
		}
		m.objects[oid] = revisions
	}
	var txns []*transaction
	for _, x := range m.txns {
		y := *x
		y.records = nil
		for _, r := range x.records {
			if kept[x.tid][r.OID] {
				y.records = append(y.records, *m.at(r.OID, x.tid))
			}
		}
		if x.tid <= at {
			if len(y.records) == 0 {
				continue
			}
			y.status = txn.Packed
		}
		txns = append(txns, &y)
	}
	m.txns = txns
	m.count.Store(int64(len(m.objects)))
	return nil
}

// reachable returns the objects that the root, at a moment, or anything stored
// later refers to, directly or not.
func (m *Memory) reachable(at tid.TID) (map[tid.OID]bool, error) {
	alive := make(map[tid.OID]bool)
	var todo []tid.OID
	var scanner pickle.Scanner
	mark := func(oid tid.OID) {
		if !alive[oid] {
			alive[oid] = true
			todo = append(todo, oid)
		}
	}
	scan := func(r *txn.Record) error {
		if r.Data == nil {
			return nil
		}
		refs, err := scanner.References(r.Data)
		if err != nil {
			return fmt.Errorf("references of object %v: %w", r.OID, err)
		}
		for _, ref := range refs {
			if ref.Kind == pickle.Strong {
				mark(tid.OID(ref.OID))
			}
		}
		return nil
	}
	mark(0)
	for _, oid := range slices.Sorted(maps.Keys(m.objects)) {
		for i := range m.objects[oid] {
			if r := &m.objects[oid][i]; r.TID > at {
				if err := scan(r); err != nil {
					return nil, err
				}
			}
		}
	}
	for len(todo) > 0 {
		oid := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		var now *txn.Record
		for i := range m.objects[oid] {
			if r := &m.objects[oid][i]; r.TID <= at {
				now = r
			}
		}
		if now != nil {
			if err := scan(now); err != nil {
				return nil, err
			}
		}
	}
	return alive, nil
}
