package backendtest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// HoldData implements [backend.Writing].
func (b *memory) HoldData(oid tid.OID, d proto.ObjectData, dataSerial proto.Opt[tid.TID]) (backend.DataID, error) {
	if err := b.enter(); err != nil {
		return backend.DataID{}, err
	}
	defer b.m.Unlock()
	id, err := b.store(oid, d, dataSerial, true)
	if err == nil && id.OK {
		b.held[id.ID]++
	}
	return id, err
}

func (b *memory) store(oid tid.OID, d proto.ObjectData, dataSerial proto.Opt[tid.TID], strict bool) (backend.DataID, error) {
	np := b.np()
	if np == 0 {
		return backend.DataID{}, backend.ErrNonReadable
	}
	p := oid.Partition(np)
	if dataSerial.OK {
		if r, ok := b.record(oid, dataSerial.V); ok {
			return r.data, nil
		}
		if strict && b.readable(p) == nil {
			return backend.DataID{}, backend.ErrUndoPacked
		}
	}
	if d.Checksum == proto.ZeroHash {
		return backend.DataID{}, nil
	}
	id := max(b.next[p], int64(p)<<48)
	b.next[p] = id + 1
	d.Data = append([]byte{}, d.Data...)
	put(b.Memory, b.disk.data, id, d)
	return backend.DataID{ID: id, OK: true}, nil
}

func (b *memory) record(oid tid.OID, t tid.TID) (record, bool) {
	for _, r := range b.disk.obj[oid] {
		if r.tid == t {
			return r, true
		}
	}
	return record{}, false
}

// add adds a record to the final tables.
func (b *memory) add(oid tid.OID, r record) error {
	if old, ok := b.record(oid, r.tid); ok {
		x, y := b.disk.data[old.data.ID], b.disk.data[r.data.ID]
		same := old.from == r.from && old.data.OK == r.data.OK &&
			(!old.data.OK || x.Checksum == y.Checksum && x.Compression == y.Compression)
		if !same {
			return fmt.Errorf("object %v at %v is already there and differs", oid, r.tid)
		}
		if old.data != r.data {
			b.prune([]backend.DataID{r.data})
		}
		return nil
	}
	recs := append(slices.Clone(b.disk.obj[oid]), r)
	slices.SortFunc(recs, func(x, y record) int { return compareTID(x.tid, y.tid) })
	put(b.Memory, b.disk.obj, oid, recs)
	return nil
}

func compareTID(x, y tid.TID) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// cut deletes the records of an object that f wants gone, and returns their data.
func (b *memory) cut(oid tid.OID, f func(r record) bool) (ids []backend.DataID, n int) {
	recs := b.disk.obj[oid]
	var kept []record
	for _, r := range recs {
		if !f(r) {
			kept = append(kept, r)
			continue
		}
		n++
		if r.data.OK {
			ids = append(ids, r.data)
		}
	}
	switch {
	case n == 0:
	case len(kept) == 0:
		remove(b.Memory, b.disk.obj, oid)
	default:
		put(b.Memory, b.disk.obj, oid, kept)
	}
	return ids, n
}

func (b *memory) release(id int64) {
	if b.held[id]--; b.held[id] <= 0 {
		delete(b.held, id)
	}
}

// ReleaseData implements [backend.Writing].
func (b *memory) ReleaseData(ids []backend.DataID, prune bool) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	for _, id := range ids {
		if id.OK {
			b.release(id.ID)
		}
	}
	if prune {
		b.prune(ids)
	}
	return nil
}

// LoadData implements [backend.Writing].
func (b *memory) LoadData(id backend.DataID) (proto.ObjectData, error) {
	if err := b.enter(); err != nil {
		return proto.ObjectData{}, err
	}
	defer b.m.Unlock()
	if !id.OK {
		return proto.ObjectData{}, nil
	}
	d, ok := b.disk.data[id.ID]
	if !ok {
		return d, fmt.Errorf("data %d: %w", id.ID, backend.ErrNotFound)
	}
	return d, nil
}

// Vote implements [backend.Writing].
func (b *memory) Vote(ttid tid.TID, stores []backend.Store, meta *backend.Meta, pack *proto.PackRequest) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	b.forget(ttid)
	if len(stores) > 0 {
		put(b.Memory, b.disk.tobj, ttid, slices.Clone(stores))
	}
	if meta != nil {
		m := *meta
		m.TTID = ttid
		put(b.Memory, b.disk.voted, ttid, voted{meta: m})
	}
	if pack != nil {
		put(b.Memory, b.disk.packs, ttid, proto.PackState{Partial: len(pack.OIDs) > 0, OIDs: slices.Clone(pack.OIDs), Time: pack.Time})
	}
	return nil
}

func (b *memory) forget(ttid tid.TID) {
	remove(b.Memory, b.disk.tobj, ttid)
	remove(b.Memory, b.disk.voted, ttid)
	remove(b.Memory, b.disk.packs, ttid)
}

// Lock implements [backend.Writing].
func (b *memory) Lock(ttid, final tid.TID, approvePack bool) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	v, ok := b.disk.voted[ttid]
	if !ok && b.disk.tobj[ttid] == nil {
		return fmt.Errorf("transaction %v was not voted here", ttid)
	}
	if ok {
		v.final = proto.Some(final)
		put(b.Memory, b.disk.voted, ttid, v)
	}
	if approvePack {
		b.approve(ttid)
	}
	return nil
}

func (b *memory) approve(id tid.TID) {
	if p, ok := b.disk.packs[id]; ok {
		p.Approved = proto.Some(true)
		put(b.Memory, b.disk.packs, id, p)
	}
}

// Unlock implements [backend.Writing].
func (b *memory) Unlock(ttid, final tid.TID, meta, objects, pack bool) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	return b.unlock(ttid, final, meta, objects, pack)
}

func (b *memory) unlock(ttid, final tid.TID, meta, objects, pack bool) error {
	if v, ok := b.disk.voted[ttid]; meta && ok {
		put(b.Memory, b.disk.trans, final, v.meta)
		if p, ok := b.disk.packs[ttid]; pack && ok {
			remove(b.Memory, b.disk.packs, ttid)
			put(b.Memory, b.disk.packs, final, p)
		}
	} else if meta && b.disk.tobj[ttid] == nil {
		return fmt.Errorf("transaction %v was not voted here", ttid)
	}
	for _, s := range b.disk.tobj[ttid] {
		if err := b.add(s.OID, record{final, s.Data, s.DataSerial}); err != nil {
			return err
		}
		if s.Data.OK {
			b.release(s.Data.ID)
		}
	}
	remove(b.Memory, b.disk.voted, ttid)
	remove(b.Memory, b.disk.tobj, ttid)
	return nil
}

// Abort implements [backend.Writing].
func (b *memory) Abort(ttid tid.TID) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	b.forget(ttid)
	return nil
}

// Unfinished implements [backend.Writing].
func (b *memory) Unfinished() (map[tid.TID]proto.Opt[tid.TID], error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.m.Unlock()
	found := map[tid.TID]proto.Opt[tid.TID]{}
	for t := range b.disk.tobj {
		found[t] = proto.Opt[tid.TID]{}
	}
	for t, v := range b.disk.voted {
		found[t] = v.final
	}
	return found, nil
}

// Validate implements [backend.Writing].
func (b *memory) Validate(ttid, final tid.TID) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	if _, ok := b.disk.voted[ttid]; !ok && b.disk.tobj[ttid] == nil {
		return nil
	}
	b.approve(ttid)
	if err := b.unlock(ttid, final, true, true, true); err != nil {
		return err
	}
	b.commit()
	return nil
}

// DropUnfinished implements [backend.Writing].
func (b *memory) DropUnfinished() error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	for ttid, stores := range maps.Clone(b.disk.tobj) {
		remove(b.Memory, b.disk.tobj, ttid)
		for _, s := range stores {
			if s.Data.OK {
				b.release(s.Data.ID)
				b.prune([]backend.DataID{s.Data})
			}
		}
	}
	for ttid := range maps.Clone(b.disk.voted) {
		b.forget(ttid)
	}
	np := b.np()
	for id := range maps.Clone(b.disk.packs) {
		if _, ok := b.disk.trans[id]; !ok && np > 0 && b.readable(id.Partition(np)) == nil {
			remove(b.Memory, b.disk.packs, id)
		}
	}
	b.commit()
	return nil
}

// DropUnfinishedPartitions implements [backend.Writing].
func (b *memory) DropUnfinishedPartitions(partitions []int) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	np := b.np()
	for ttid := range maps.Clone(b.disk.voted) {
		if slices.Contains(partitions, ttid.Partition(np)) {
			remove(b.Memory, b.disk.voted, ttid)
			remove(b.Memory, b.disk.packs, ttid)
		}
	}
	for ttid, stores := range maps.Clone(b.disk.tobj) {
		var kept []backend.Store
		for _, s := range stores {
			if !slices.Contains(partitions, s.OID.Partition(np)) {
				kept = append(kept, s)
			}
		}
		if kept == nil {
			remove(b.Memory, b.disk.tobj, ttid)
		} else {
			put(b.Memory, b.disk.tobj, ttid, kept)
		}
	}
	return nil
}

// Truncate implements [backend.Keeping].
func (b *memory) Truncate() error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	cut, ok := b.disk.moment["truncate"]
	if !ok {
		return nil
	}
	np := b.np()
	gone := func(p int, t tid.TID) bool {
		_, mine := b.mine(p)
		return mine && t > cut
	}
	for t := range maps.Clone(b.disk.trans) {
		if gone(t.Partition(np), t) {
			remove(b.Memory, b.disk.trans, t)
		}
	}
	for t := range maps.Clone(b.disk.packs) {
		if gone(t.Partition(np), t) {
			remove(b.Memory, b.disk.packs, t)
		}
	}
	for o := range maps.Clone(b.disk.obj) {
		ids, _ := b.cut(o, func(r record) bool { return gone(o.Partition(np), r.tid) })
		b.prune(ids)
	}
	for k, row := range maps.Clone(b.disk.cells) {
		if k.id == b.disk.id && row.state == proto.OutOfDate && row.tid > cut {
			row.tid = cut
			put(b.Memory, b.disk.cells, k, row)
		}
	}
	remove(b.Memory, b.disk.moment, "truncate")
	b.commit()
	return nil
}

// AddTransaction implements [backend.Writing].
func (b *memory) AddTransaction(t tid.TID, meta backend.Meta, pack *proto.PackState) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	if old, ok := b.disk.trans[t]; ok && !equalMeta(old, meta) {
		return fmt.Errorf("transaction %v is already there and differs", t)
	}
	put(b.Memory, b.disk.trans, t, meta)
	if pack != nil {
		put(b.Memory, b.disk.packs, t, *pack)
	}
	return nil
}

func equalMeta(x, y backend.Meta) bool {
	return bytes.Equal(x.User, y.User) && bytes.Equal(x.Description, y.Description) && bytes.Equal(x.Extension, y.Extension) &&
		x.Packed == y.Packed && x.TTID == y.TTID && slices.Equal(x.OIDs, y.OIDs)
}

// AddObject implements [backend.Writing].
func (b *memory) AddObject(oid tid.OID, t tid.TID, d proto.ObjectData, dataSerial proto.Opt[tid.TID]) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	id, err := b.store(oid, d, dataSerial, false)
	if err != nil {
		return err
	}
	return b.add(oid, record{t, id, dataSerial.V})
}

// DeleteTransaction implements [backend.Writing].
func (b *memory) DeleteTransaction(t tid.TID) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	remove(b.Memory, b.disk.trans, t)
	remove(b.Memory, b.disk.packs, t)
	return nil
}

// DeleteObject implements [backend.Writing].
func (b *memory) DeleteObject(oid tid.OID, t tid.TID) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	ids, _ := b.cut(oid, func(r record) bool { return r.tid == t })
	b.prune(ids)
	return nil
}
