package backendtest

import (
	"cmp"
	"context"
	"crypto/sha1"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

func (b *memory) object(r record, next tid.TID) backend.Object {
	return backend.Object{Serial: r.tid, Next: next, ObjectData: dataOf(b.disk.data[r.data.ID], r.data), DataSerial: r.from}
}

// dataOf returns nothing for a record without data.
func dataOf(d proto.ObjectData, id backend.DataID) proto.ObjectData {
	if !id.OK {
		return proto.ObjectData{}
	}
	return d
}

// GetObject implements [backend.Reading].
func (b *memory) GetObject(ctx context.Context, oid tid.OID, at, before proto.Opt[tid.TID]) (backend.Object, error) {
	if err := b.enter(); err != nil {
		return backend.Object{}, err
	}
	defer b.m.Unlock()
	if _, err := b.readableOID(oid); err != nil {
		return backend.Object{}, err
	}
	recs := b.disk.obj[oid]
	if len(recs) == 0 {
		return backend.Object{}, backend.ErrNoSuchObject
	}
	for i, r := range slices.Backward(recs) {
		if at.OK && r.tid != at.V || !at.OK && before.OK && r.tid >= before.V {
			continue
		}
		next := tid.Zero
		if i+1 < len(recs) {
			next = recs[i+1].tid
		}
		return b.object(r, next), nil
	}
	return backend.Object{}, backend.ErrNotFound
}

// LastObjectTID implements [backend.Reading].
func (b *memory) LastObjectTID(ctx context.Context, oid tid.OID) (proto.Opt[tid.TID], error) {
	if err := b.enter(); err != nil {
		return proto.Opt[tid.TID]{}, err
	}
	defer b.m.Unlock()
	if p, err := b.readableOID(oid); err != nil && (b.np() == 0 || !b.replicated[p]) {
		return proto.Opt[tid.TID]{}, err
	}
	recs := b.disk.obj[oid]
	if len(recs) == 0 {
		return proto.Opt[tid.TID]{}, nil
	}
	return proto.Some(recs[len(recs)-1].tid), nil
}

// FetchObject implements [backend.Reading].
func (b *memory) FetchObject(ctx context.Context, oid tid.OID, t tid.TID) (backend.Object, error) {
	if err := b.enter(); err != nil {
		return backend.Object{}, err
	}
	defer b.m.Unlock()
	r, ok := b.record(oid, t)
	if !ok {
		return backend.Object{}, backend.ErrNotFound
	}
	return b.object(r, tid.Zero), nil
}

// RecordBefore implements [backend.Reading].
func (b *memory) RecordBefore(ctx context.Context, oid tid.OID, before tid.TID) (t tid.TID, deleted bool, err error) {
	if err := b.enter(); err != nil {
		return 0, false, err
	}
	defer b.m.Unlock()
	for _, r := range b.disk.obj[oid] {
		if r.tid < before {
			t, deleted = r.tid, !r.data.OK
		}
	}
	return t, deleted, nil
}

// Transaction implements [backend.Reading].
func (b *memory) Transaction(ctx context.Context, t tid.TID) (backend.Meta, error) {
	if err := b.enter(); err != nil {
		return backend.Meta{}, err
	}
	defer b.m.Unlock()
	if _, err := b.readableOID(tid.OID(t)); err != nil {
		return backend.Meta{}, err
	}
	m, ok := b.disk.trans[t]
	if !ok {
		return m, backend.ErrNotFound
	}
	return m, nil
}

// FetchTransaction implements [backend.Reading].
func (b *memory) FetchTransaction(ctx context.Context, t tid.TID) (backend.Meta, *proto.PackState, error) {
	if err := b.enter(); err != nil {
		return backend.Meta{}, nil, err
	}
	defer b.m.Unlock()
	m, ok := b.disk.trans[t]
	if !ok {
		return m, nil, backend.ErrNotFound
	}
	if p, ok := b.disk.packs[t]; ok {
		return m, &p, nil
	}
	return m, nil, nil
}

// FinalTID implements [backend.Reading].
func (b *memory) FinalTID(ctx context.Context, ttid tid.TID) (proto.Opt[tid.TID], error) {
	if err := b.enter(); err != nil {
		return proto.Opt[tid.TID]{}, err
	}
	defer b.m.Unlock()
	if _, err := b.readableOID(tid.OID(ttid)); err != nil {
		return proto.Opt[tid.TID]{}, err
	}
	for t, m := range b.disk.trans {
		if m.TTID == ttid {
			return proto.Some(t), nil
		}
	}
	return proto.Opt[tid.TID]{}, nil
}

// LastIDs implements [backend.Reading].
func (b *memory) LastIDs(ctx context.Context) (backend.LastIDs, error) {
	ids := backend.LastIDs{First: tid.Max}
	if err := b.enter(); err != nil {
		return ids, err
	}
	defer b.m.Unlock()
	see := func(t tid.TID) { ids.TID = proto.Some(max(t, ids.TID.V)) }
	for t := range b.disk.trans {
		if _, err := b.readableOID(tid.OID(t)); err == nil {
			see(t)
			ids.First = min(ids.First, t)
		}
	}
	for o, recs := range b.disk.obj {
		if _, err := b.readableOID(o); err == nil {
			see(recs[len(recs)-1].tid)
			ids.OID = proto.Some(max(o, ids.OID.V))
		}
	}
	return ids, nil
}

// tids returns the TIDs of a partition in order.
func (b *memory) tids(p int, lo, hi tid.TID) []tid.TID {
	var ts []tid.TID
	np := b.np()
	for t := range b.disk.trans {
		if t >= lo && t <= hi && np > 0 && t.Partition(np) == p {
			ts = append(ts, t)
		}
	}
	slices.Sort(ts)
	return ts
}

// TIDs implements [backend.Reading].
func (b *memory) TIDs(ctx context.Context, partitions []int, skip, n int) ([]tid.TID, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.m.Unlock()
	var ts []tid.TID
	for _, p := range partitions {
		if err := b.readable(p); err != nil {
			return nil, err
		}
		ts = append(ts, b.tids(p, 0, tid.Max)...)
	}
	slices.SortFunc(ts, func(x, y tid.TID) int { return cmp.Compare(y, x) })
	return first(ts[min(skip, len(ts)):], n), nil
}

func first[T any](s []T, n int) []T {
	if len(s) == 0 {
		return nil
	}
	return s[:min(n, len(s))]
}

// TIDsFrom implements [backend.Reading].
func (b *memory) TIDsFrom(ctx context.Context, partition int, min, max tid.TID, n int) ([]tid.TID, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.m.Unlock()
	return bounded(b.tids(partition, min, max), n), nil
}

func bounded[T any](s []T, n int) []T {
	if n <= 0 {
		n = len(s)
	}
	return first(s, n)
}

// History implements [backend.Reading].
func (b *memory) History(ctx context.Context, oid tid.OID, skip, n int) ([]proto.Revision, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.m.Unlock()
	if _, err := b.readableOID(oid); err != nil {
		return nil, err
	}
	var revs []proto.Revision
	for _, r := range slices.Backward(b.disk.obj[oid]) {
		revs = append(revs, proto.Revision{TID: r.tid, Size: len(b.object(r, 0).Data)})
	}
	return first(revs[min(skip, len(revs)):], n), nil
}

// OIDsFrom implements [backend.Reading].
func (b *memory) OIDsFrom(ctx context.Context, partition, n int, from tid.OID, at tid.TID) (next proto.Opt[tid.OID], oids []tid.OID, err error) {
	if err := b.enter(); err != nil {
		return next, nil, err
	}
	defer b.m.Unlock()
	if err := b.readable(partition); err != nil {
		return next, nil, err
	}
	np, seen := b.np(), 0
	for _, o := range slices.Sorted(maps.Keys(b.disk.obj)) {
		if o < from || o.Partition(np) != partition || b.disk.obj[o][0].tid > at {
			continue
		}
		for _, r := range slices.Backward(b.disk.obj[o]) {
			if r.tid <= at {
				if r.data.OK {
					oids = append(oids, o)
				}
				break
			}
		}
		if seen++; seen == n {
			next = proto.Some(o + tid.OID(np))
			break
		}
	}
	return next, oids, nil
}

// UndoHistory implements [backend.Reading].
func (b *memory) UndoHistory(ctx context.Context, oid tid.OID, undone tid.TID) (backend.UndoHistory, error) {
	var h backend.UndoHistory
	if err := b.enter(); err != nil {
		return h, err
	}
	defer b.m.Unlock()
	if _, err := b.readableOID(oid); err != nil {
		return h, err
	}
	for _, r := range b.disk.obj[oid] {
		switch {
		case r.tid < undone:
			h.Prev = proto.Some(r.tid)
		case r.tid == undone:
			h.Found = true
		default:
			h.Later = append(h.Later, backend.Later{TID: r.tid, DataSerial: r.from})
		}
	}
	if !h.Found {
		return backend.UndoHistory{}, nil
	}
	return h, nil
}

func (b *memory) records(partition int, lo, hi tid.TID, minOID tid.OID) []backend.Key {
	var keys []backend.Key
	np := b.np()
	for o, recs := range b.disk.obj {
		if np == 0 || o.Partition(np) != partition {
			continue
		}
		for _, r := range recs {
			if (r.tid > lo || r.tid == lo && o >= minOID) && r.tid <= hi {
				keys = append(keys, backend.Key{TID: r.tid, OID: o})
			}
		}
	}
	slices.SortFunc(keys, func(x, y backend.Key) int {
		return cmp.Or(cmp.Compare(x.TID, y.TID), cmp.Compare(x.OID, y.OID))
	})
	return keys
}

// RecordsFrom implements [backend.Reading].
func (b *memory) RecordsFrom(ctx context.Context, partition int, min, max tid.TID, minOID tid.OID, n int) ([]backend.Key, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.m.Unlock()
	return bounded(b.records(partition, min, max, minOID), n), nil
}

func digest[T any](s []T, f func(T) uint64) proto.Hash {
	if len(s) == 0 {
		return proto.ZeroHash
	}
	var texts []string
	for _, v := range s {
		texts = append(texts, fmt.Sprint(f(v)))
	}
	return sha1.Sum([]byte(strings.Join(texts, ",")))
}

// CheckTIDs implements [backend.Reading].
func (b *memory) CheckTIDs(ctx context.Context, partition, n int, min, max tid.TID) (*proto.AnswerCheckTIDRange, error) {
	ts, err := b.TIDsFrom(ctx, partition, min, max, n)
	a := &proto.AnswerCheckTIDRange{Count: len(ts), Checksum: digest(ts, func(t tid.TID) uint64 { return uint64(t) })}
	if len(ts) > 0 {
		a.Last = ts[len(ts)-1]
	}
	return a, err
}

// CheckSerials implements [backend.Reading].
func (b *memory) CheckSerials(ctx context.Context, partition, n int, min, max tid.TID, minOID tid.OID) (*proto.AnswerCheckSerialRange, error) {
	keys, err := b.RecordsFrom(ctx, partition, min, max, minOID, n)
	a := &proto.AnswerCheckSerialRange{
		Count:       len(keys),
		TIDChecksum: digest(keys, func(k backend.Key) uint64 { return uint64(k.TID) }),
		OIDChecksum: digest(keys, func(k backend.Key) uint64 { return uint64(k.OID) }),
	}
	if len(keys) > 0 {
		a.LastTID, a.LastOID = keys[len(keys)-1].TID, keys[len(keys)-1].OID
	}
	return a, err
}

// PackOrders implements [backend.Keeping].
func (b *memory) PackOrders(from tid.TID) ([]proto.PackOrder, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.m.Unlock()
	var orders []proto.PackOrder
	for _, id := range slices.Sorted(maps.Keys(b.disk.packs)) {
		_, committed := b.disk.trans[id]
		if _, err := b.readableOID(tid.OID(id)); err == nil && committed && id >= from {
			p := b.disk.packs[id]
			orders = append(orders, proto.PackOrder{ID: id, Approved: p.Approved, Partial: p.Partial, OIDs: p.OIDs, Time: p.Time})
		}
	}
	return orders, nil
}

// SignPackOrders implements [backend.Keeping].
func (b *memory) SignPackOrders(approved, rejected []tid.TID) (missing []tid.TID, changed bool, err error) {
	if err := b.enter(); err != nil {
		return nil, false, err
	}
	defer b.m.Unlock()
	for i, ids := range [][]tid.TID{rejected, approved} {
		for _, id := range ids {
			p, ok := b.disk.packs[id]
			if !ok {
				missing = append(missing, id)
				continue
			}
			if want := proto.Some(i == 1); p.Approved != want {
				p.Approved = want
				put(b.Memory, b.disk.packs, id, p)
				changed = true
			}
		}
	}
	return missing, changed, nil
}

// PackedIDs implements [backend.Keeping].
func (b *memory) PackedIDs(upToDateOnly bool) (map[int]tid.TID, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.m.Unlock()
	ids := map[int]tid.TID{}
	for k, row := range b.disk.cells {
		if k.id == b.disk.id && row.pack.OK && (!upToDateOnly || row.state == proto.UpToDate) {
			ids[k.partition] = row.pack.V
		}
	}
	return ids, nil
}

// SetPacked implements [backend.Keeping].
func (b *memory) SetPacked(partition int, id tid.TID) error {
	return b.packed(partition, func(old tid.TID) tid.TID {
		if order := b.disk.moment["order"]; id > order {
			for k, row := range b.disk.cells {
				if k.id == b.disk.id && row.pack.V > order {
					b.notePacked(row.pack.V) // by others
				}
			}
			put(b.Memory, b.disk.moment, "order", id)
		}
		return id
	})
}

// LowerPacked implements [backend.Keeping].
func (b *memory) LowerPacked(partition int, id tid.TID) error {
	return b.packed(partition, func(old tid.TID) tid.TID {
		if id > b.disk.moment["order"] {
			b.notePacked(id)
		}
		return min(old, id)
	})
}

func (b *memory) notePacked(t tid.TID) {
	put(b.Memory, b.disk.moment, "packed", max(t, b.disk.moment["packed"]))
}

func (b *memory) packed(partition int, f func(old tid.TID) tid.TID) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	if row, ok := b.mine(partition); ok {
		row.pack = proto.Some(f(row.pack.V))
		put(b.Memory, b.disk.cells, cellKey{partition, b.disk.id}, row)
	}
	return nil
}

// Pack implements [backend.Keeping].
func (b *memory) Pack(partition int, t tid.TID, oids []tid.OID, keep tid.TID, after proto.Opt[tid.OID], n int) (last proto.Opt[tid.OID], deleted int, err error) {
	if err := b.enter(); err != nil {
		return last, 0, err
	}
	defer b.m.Unlock()
	np := b.np()
	if partition < 0 || partition >= np {
		return last, 0, backend.ErrNonReadable
	}
	b.notePacked(t)
	all := slices.Sorted(maps.Keys(b.disk.obj))
	if oids != nil {
		all = slices.Sorted(slices.Values(oids))
	}
	seen := 0
	var ids []backend.DataID
	for _, o := range all {
		if o.Partition(np) != partition || after.OK && o <= after.V {
			continue
		}
		upTo := slices.DeleteFunc(slices.Clone(b.disk.obj[o]), func(r record) bool { return r.tid > t })
		if seen >= max(n, 1) {
			break
		}
		if len(upTo) > 0 {
			seen += len(upTo)
			newest := upTo[len(upTo)-1]
			whole := !newest.data.OK && newest.tid <= keep
			if !newest.data.OK && !whole {
				b.noteKept(partition, t)
			}
			gone, k := b.cut(o, func(r record) bool { return r.tid < newest.tid || r.tid == newest.tid && whole })
			ids = append(ids, gone...)
			deleted += k
		}
		last = proto.Some(o)
	}
	b.prune(ids)
	if seen < max(n, 1) {
		last = proto.Opt[tid.OID]{}
	}
	return last, deleted, nil
}

// KeptDeletions implements [backend.Keeping].
func (b *memory) KeptDeletions() (map[int]tid.TID, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.m.Unlock()
	return maps.Clone(b.disk.kept), nil
}

// NoteKept implements [backend.Keeping].
func (b *memory) NoteKept(partition int, t tid.TID) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	b.noteKept(partition, t)
	return nil
}

func (b *memory) noteKept(partition int, t tid.TID) {
	put(b.Memory, b.disk.kept, partition, max(t, b.disk.kept[partition]))
}

// DropDeletions implements [backend.Keeping].
func (b *memory) DropDeletions(partition int, after proto.Opt[tid.OID], n int) (last proto.Opt[tid.OID], deleted int, err error) {
	if err := b.enter(); err != nil {
		return last, 0, err
	}
	defer b.m.Unlock()
	t, ok := b.disk.kept[partition]
	if !ok {
		return last, 0, nil
	}
	np, seen := b.np(), 0
	for _, o := range slices.Sorted(maps.Keys(b.disk.obj)) {
		if o.Partition(np) != partition || after.OK && o <= after.V || b.disk.obj[o][0].tid > t {
			continue
		}
		if seen++; seen > max(n, 1) {
			return last, deleted, nil
		}
		last = proto.Some(o)
		if first := b.disk.obj[o][0]; !first.data.OK {
			_, k := b.cut(o, func(r record) bool { return r.tid == first.tid })
			deleted += k
		}
	}
	remove(b.Memory, b.disk.kept, partition)
	return proto.Opt[tid.OID]{}, deleted, nil
}

// PackedUpTo implements [backend.Keeping].
func (b *memory) PackedUpTo(oid tid.OID) (tid.TID, error) {
	if err := b.enter(); err != nil {
		return 0, err
	}
	defer b.m.Unlock()
	t := b.disk.moment["packed"]
	if np := b.np(); np > 0 {
		if row, ok := b.mine(oid.Partition(np)); ok && row.pack.V > b.disk.moment["order"] {
			t = max(t, row.pack.V)
		}
	}
	return t, nil
}

// DropPartition implements [backend.Keeping].
func (b *memory) DropPartition(partition, n int) (done bool, err error) {
	if err := b.enter(); err != nil {
		return false, err
	}
	defer b.m.Unlock()
	if _, mine := b.mine(partition); mine || !b.drop[partition] {
		return true, nil
	}
	np := b.np()
	keys := bounded(b.records(partition, 0, tid.Max, 0), max(n, 1))
	for _, k := range keys {
		ids, _ := b.cut(k.OID, func(r record) bool { return r.tid == k.TID })
		b.prune(ids)
	}
	if len(keys) > 0 {
		return false, nil
	}
	var list []tid.TID
	for t := range b.disk.trans {
		if t.Partition(np) == partition {
			list = append(list, t)
		}
	}
	slices.Sort(list)
	now := bounded(list, max(n, 1))
	for _, t := range now {
		remove(b.Memory, b.disk.trans, t)
	}
	if len(list) >= max(n, 1) {
		return false, nil // more, perhaps
	}
	for t := range maps.Clone(b.disk.packs) {
		if t.Partition(np) == partition {
			remove(b.Memory, b.disk.packs, t)
		}
	}
	delete(b.drop, partition)
	return true, nil
}

// UnassignedPartitions implements [backend.Keeping].
func (b *memory) UnassignedPartitions() ([]int, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.m.Unlock()
	return slices.Sorted(maps.Keys(b.drop)), nil
}

// GetObjects implements [backend.Reading].
func (b *memory) GetObjects(ctx context.Context, keys []backend.ObjectKey, f func(i int, o *backend.Object, err error) bool) {
	backend.GetEach(ctx, b, keys, f)
}
