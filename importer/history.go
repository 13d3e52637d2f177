package importer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Transaction implements [backend.Reading].
func (r reading) Transaction(ctx context.Context, t tid.TID) (backend.Meta, error) {
	b := r.b
	native := func() (backend.Meta, error) { return b.native.Transaction(ctx, t) }
	return either(b, func(done tid.TID) (backend.Meta, error) {
		m, err := native()
		if t <= done || t > b.end || err != nil && !errors.Is(err, backend.ErrNotFound) {
			return m, err
		}
		x, err := b.from.transaction(ctx, t)
		if err != nil {
			return backend.Meta{}, err
		}
		m = x.meta
		m.OIDs = slices.Clone(m.OIDs)
		return m, nil
	}, native)
}

// FinalTID implements [backend.Reading]. The transactions of the sources were
// committed elsewhere: no client has begun one of them here.
func (r reading) FinalTID(ctx context.Context, ttid tid.TID) (proto.Opt[tid.TID], error) {
	final, err := r.b.native.FinalTID(ctx, ttid)
	if !r.b.own.Load() && ttid <= r.b.end {
		final = proto.Opt[tid.TID]{}
	}
	return final, err
}

// TIDs implements [backend.Reading].
func (r reading) TIDs(ctx context.Context, partitions []int, skip, n int) ([]tid.TID, error) {
	b := r.b
	return either(b, func(done tid.TID) ([]tid.TID, error) { return b.tids(ctx, done, partitions, skip, n) },
		func() ([]tid.TID, error) { return b.native.TIDs(ctx, partitions, skip, n) })
}

func (b *Backend) tids(ctx context.Context, done tid.TID, partitions []int, skip, n int) ([]tid.TID, error) {
	want := skip + n
	// What is copied and what clients commit meanwhile moves the rest of the list, so
	// each list begins with the newest.
	list, err := b.native.TIDs(ctx, partitions, 0, want)
	if err != nil {
		return nil, err
	}
	all := below(list, tid.Max, b.end)
	if len(all) < want && done < b.end {
		np, err := b.partitionCount()
		if err != nil {
			return nil, err
		}
		mine := map[int]bool{}
		for _, p := range partitions {
			mine[p] = true
		}
		middle, err := b.from.descend(ctx, done, want-len(all), func(t tid.TID) bool { return np > 0 && mine[t.Partition(np)] })
		if err != nil {
			return nil, err
		}
		all = append(all, middle...)
	}
	for ask := want; len(all) < want; ask *= 2 {
		old := below(list, done, tid.Zero)
		if len(all)+len(old) >= want || len(list) < ask {
			all = append(all, old...)
			break
		}
		if list, err = b.native.TIDs(ctx, partitions, 0, 2*ask); err != nil {
			return nil, err
		}
	}
	all = all[:min(len(all), want)]
	return all[min(skip, len(all)):], nil
}

// below returns what of a descending list is in (after, upTo].
func below(list []tid.TID, upTo, after tid.TID) []tid.TID {
	i := slices.IndexFunc(list, func(t tid.TID) bool { return t <= upTo })
	if i < 0 {
		return nil
	}
	list = list[i:]
	if j := slices.IndexFunc(list, func(t tid.TID) bool { return t <= after }); j >= 0 {
		list = list[:j]
	}
	return slices.Clip(list)
}

// TIDsFrom implements [backend.Reading].
func (r reading) TIDsFrom(ctx context.Context, partition int, min, max tid.TID, n int) ([]tid.TID, error) {
	b := r.b
	return either(b, func(done tid.TID) ([]tid.TID, error) { return b.tidsFrom(ctx, done, partition, min, max, n) },
		func() ([]tid.TID, error) { return b.native.TIDsFrom(ctx, partition, min, max, n) })
}

func (b *Backend) tidsFrom(ctx context.Context, done tid.TID, partition int, lo, hi tid.TID, n int) ([]tid.TID, error) {
	var list []tid.TID
	left := func() int {
		if n <= 0 {
			return 0
		}
		return n - len(list)
	}
	native := func(lo, hi tid.TID) (full bool, err error) {
		if lo > hi || n > 0 && left() == 0 {
			return n > 0 && left() == 0, nil
		}
		part, err := b.native.TIDsFrom(ctx, partition, lo, hi, left())
		list = append(list, part...)
		return err != nil || n > 0 && left() == 0, err
	}
	if full, err := native(lo, min(hi, done)); full {
		return list, err
	}
	if from := max(lo, done+1); from <= min(hi, b.end) {
		np, err := b.partitionCount()
		if err != nil {
			return nil, err
		}
		err = b.from.ascend(ctx, from-1, hi, func(t tid.TID) bool {
			if np > 0 && t.Partition(np) == partition {
				list = append(list, t)
			}
			return n <= 0 || left() > 0
		})
		if err != nil {
			return nil, err
		}
	}
	_, err := native(max(lo, b.end+1), hi)
	return list, err
}

// History implements [backend.Reading]. The sizes of what is not copied yet are those of the
// sources: not compressed, and 0 where the data are those of an earlier revision.
func (r reading) History(ctx context.Context, oid tid.OID, skip, n int) ([]proto.Revision, error) {
	b := r.b
	native := func() ([]proto.Revision, error) { return b.native.History(ctx, oid, skip, n) }
	return either(b, func(done tid.TID) ([]proto.Revision, error) {
		if last, known := b.from.known(oid); oid >= b.oids || known && last <= done {
			return native()
		}
		want := skip + n
		list, err := b.native.History(ctx, oid, 0, want)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(list, func(r proto.Revision) bool { return r.TID <= b.end }); i >= 0 {
			list = list[:i]
		}
		if len(list) < want {
			old, err := b.from.revisions(ctx, oid, want-len(list))
			if err != nil {
				return nil, err
			}
			for _, i := range old {
				list = append(list, proto.Revision{TID: i.TID, Size: int(i.Size)})
			}
		}
		return list[min(skip, len(list)):], nil
	}, native)
}

// oidList is what OIDsFrom returns.
type oidList struct {
	next proto.Opt[tid.OID]
	oids []tid.OID
}

// OIDsFrom implements [backend.Reading].
func (r reading) OIDsFrom(ctx context.Context, partition, n int, min tid.OID, at tid.TID) (next proto.Opt[tid.OID], oids []tid.OID, err error) {
	b := r.b
	native := func() (l oidList, err error) {
		l.next, l.oids, err = b.native.OIDsFrom(ctx, partition, n, min, at)
		return l, err
	}
	l, err := either(b, func(done tid.TID) (oidList, error) {
		if at <= done || min >= b.oids {
			return native()
		}
		return b.oidsFrom(ctx, partition, n, min, at)
	}, native)
	return l.next, l.oids, err
}

// oidsFrom merges the objects that exist at the end of the sources, or at a time before, with
// what clients have changed since.
func (b *Backend) oidsFrom(ctx context.Context, partition, n int, from tid.OID, at tid.TID) (l oidList, err error) {
	np, err := b.partitionCount()
	if err != nil {
		return l, err
	}
	to, native := tid.OID(tid.InvalidOID), []tid.OID(nil)
	if at > b.end {
		var next proto.Opt[tid.OID]
		if next, native, err = b.native.OIDsFrom(ctx, partition, n, from, at); next.OK {
			to = next.V
		}
	} else {
		_, err = b.native.TIDs(ctx, []int{partition}, 0, 1) // is it readable?
	}
	if err != nil {
		return l, err
	}
	old, err := b.from.objects(ctx, at, from, to, n, func(oid tid.OID) bool { return np > 0 && oid.Partition(np) == partition })
	if err != nil {
		return l, err
	}
	if len(old) == n && n > 0 {
		to = old[n-1] + tid.OID(np)
	}
	// Each object exists if the last of both says so.
	for len(old)+len(native) > 0 {
		var oid tid.OID
		var isOld, isNew bool
		if len(old) > 0 && (len(native) == 0 || old[0] <= native[0]) {
			oid, isOld = old[0], true
		} else {
			oid = native[0]
		}
		if isOld {
			old = old[1:]
		}
		if len(native) > 0 && native[0] == oid {
			native, isNew = native[1:], true
		}
		if oid >= to {
			break
		}
		if isOld != isNew && at > b.end {
			// It may also have been changed since it was listed.
			changed, deleted, err := b.native.RecordBefore(ctx, oid, min(at, tid.Max-1)+1)
			if err != nil {
				return l, err
			}
			if changed > b.end && deleted || changed <= b.end && !isOld {
				continue
			}
		}
		if l.oids = append(l.oids, oid); len(l.oids) == n {
			to = oid + tid.OID(np)
			break
		}
	}
	if to < tid.InvalidOID {
		l.next = proto.Some(to)
	}
	return l, nil
}

// UndoHistory implements [backend.Reading].
func (r reading) UndoHistory(ctx context.Context, oid tid.OID, undone tid.TID) (backend.UndoHistory, error) {
	b := r.b
	native := func() (backend.UndoHistory, error) { return b.native.UndoHistory(ctx, oid, undone) }
	return either(b, func(done tid.TID) (backend.UndoHistory, error) {
		h, err := native()
		if last, known := b.from.known(oid); err != nil || oid >= b.oids || known && last <= done {
			return h, err
		}
		h, err = b.undoHistory(ctx, oid, undone, h, done)
		if err == nil && h.Found {
			err = b.copyAhead(ctx, oid, &h, done)
		}
		if err != nil || !h.Found {
			return backend.UndoHistory{}, err
		}
		return h, nil
	}, native)
}

// undoHistory completes what the native backend knows. Where it has a revision, it knows its
// DataSerial as well.
func (b *Backend) undoHistory(ctx context.Context, oid tid.OID, undone tid.TID, h backend.UndoHistory, done tid.TID) (backend.UndoHistory, error) {
	if undone > b.end {
		if h.Found && (!h.Prev.OK || h.Prev.V <= b.end) {
			last, err := b.from.lastRevision(ctx, oid)
			h.Prev = proto.Opt[tid.TID]{V: last, OK: last != tid.Zero}
			return h, err
		}
		return h, nil
	}
	old, err := b.from.downTo(ctx, oid, min(undone, done))
	if err != nil {
		return h, err
	}
	if undone > done {
		h = backend.UndoHistory{}
	}
	var later []backend.Later
	for _, l := range h.Later {
		if l.TID <= done || l.TID > b.end {
			later = append(later, l)
		}
	}
	for _, i := range old {
		switch {
		case i.TID > undone && i.TID > done:
			from, err := b.from.dataTID(ctx, oid, i.TID)
			if err != nil {
				return h, err
			}
			later = append(later, backend.Later{TID: i.TID, DataSerial: from})
		case undone <= done: // the native backend knows
		case i.TID == undone:
			h.Found = true
		case i.TID < undone:
			h.Prev = proto.Opt[tid.TID]{V: max(h.Prev.V, i.TID), OK: true}
		}
	}
	if !h.Found {
		return h, nil
	}
	if undone > done {
		since, err := b.changesSince(ctx, oid)
		if err != nil {
			return h, err
		}
		later = append(later, since...)
	}
	slices.SortFunc(later, func(x, y backend.Later) int { return cmp.Compare(x.TID, y.TID) })
	h.Later = later
	return h, nil
}

// copyAhead copies what an undo restores: the store that the client sends refers to that
// revision, and must find it in the native backend. When its turn comes, the copy writes the
// same record again.
func (b *Backend) copyAhead(ctx context.Context, oid tid.OID, h *backend.UndoHistory, done tid.TID) error {
	if b.ahead == nil || !h.Prev.OK {
		return nil
	}
	restored := []tid.TID{h.Prev.V}
	for _, l := range h.Later { // the last one with the same data is what is referred to
		if slices.Contains(restored, l.DataSerial) {
			restored = append(restored, l.TID)
		}
	}
	for _, t := range restored {
		if t <= done || t > b.end {
			continue
		}
		rev, err := b.from.before(ctx, oid, t+1)
		if err != nil {
			return err
		}
		from, err := b.from.dataTID(ctx, oid, t)
		if err == nil && from != tid.Zero {
			linked, e := b.from.transaction(ctx, from)
			if e == nil && linked.twice[oid] {
				continue // the copy may find that the link leads to other data, and write it without
			}
			if err = e; errors.Is(e, backend.ErrNotFound) {
				err = nil
			}
		}
		if err == nil {
			err = b.ahead(&txn.Record{OID: oid, TID: t, Data: rev.Data, DataTID: from})
		}
		if err != nil {
			return fmt.Errorf("object %v at %v, which an undo restores: %w", oid, t, err)
		}
	}
	return nil
}

// changesSince returns the revisions of an object that clients have made since the end.
func (b *Backend) changesSince(ctx context.Context, oid tid.OID) ([]backend.Later, error) {
	first, err := b.nextNative(ctx, oid, nil, errLook)
	if err != nil || first == tid.Zero {
		return nil, err
	}
	o, err := b.native.GetObject(ctx, oid, proto.Some(first), proto.Opt[tid.TID]{})
	if err != nil {
		return nil, err
	}
	h, err := b.native.UndoHistory(ctx, oid, first)
	return append([]backend.Later{{TID: first, DataSerial: o.DataSerial}}, h.Later...), err
}

// errLook lets nextNative look for the first revision after the end.
var errLook = errors.New("not asked for")

// What follows is for replication and checks, which compare and copy tables: it waits until
// the copy has reached what is asked for.

// FetchTransaction implements [backend.Reading].
func (r reading) FetchTransaction(ctx context.Context, t tid.TID) (backend.Meta, *proto.PackState, error) {
	if t <= r.b.end {
		if err := r.b.await(ctx, t, false); err != nil {
			return backend.Meta{}, nil, err
		}
	}
	return r.b.native.FetchTransaction(ctx, t)
}

// FetchObject implements [backend.Reading].
func (r reading) FetchObject(ctx context.Context, oid tid.OID, t tid.TID) (backend.Object, error) {
	if t <= r.b.end && oid < r.b.oids {
		if err := r.b.await(ctx, t, false); err != nil {
			return backend.Object{}, err
		}
	}
	return r.b.native.FetchObject(ctx, oid, t)
}

// RecordsFrom implements [backend.Reading]. What is copied is listed without waiting for
// more than is asked for, so that a replica follows the copy. A list that ends is only given
// when the import has ended: the replica would be complete, and readable beside this node, and
// this node could lose its cell while it still compares.
func (r reading) RecordsFrom(ctx context.Context, partition int, min, max tid.TID, minOID tid.OID, n int) ([]backend.Key, error) {
	b := r.b
	var list []backend.Key
	full := false
	records := func(upTo tid.TID) (_ bool, err error) {
		list, err = b.native.RecordsFrom(ctx, partition, min, upTo, minOID, n)
		full = n > 0 && len(list) == n
		return full, err
	}
	err := b.reached(ctx, min, max, false, records)
	if err == nil && !full && max >= b.end && b.prepared && !b.own.Load() {
		if err = b.awaitOwn(ctx); err == nil {
			_, err = records(max)
		}
	}
	if err != nil {
		return nil, err
	}
	return list, nil
}

// RecordBefore implements [backend.Reading].
func (r reading) RecordBefore(ctx context.Context, oid tid.OID, before tid.TID) (t tid.TID, deleted bool, err error) {
	b := r.b
	done, own := tid.TID(b.done.Load()), b.own.Load()
	t, deleted, err = b.native.RecordBefore(ctx, oid, before)
	if own || err != nil || oid >= b.oids || before <= done+1 || t > b.end {
		return t, deleted, err
	}
	last, err := b.from.lastRevision(ctx, oid)
	if err == nil && last <= done {
		return t, deleted, nil // the sources have nothing of the object after what is copied
	}
	if err := b.await(ctx, before-1, false); err != nil {
		return 0, false, err
	}
	return b.native.RecordBefore(ctx, oid, before)
}

// CheckTIDs implements [backend.Reading].
func (r reading) CheckTIDs(ctx context.Context, partition, n int, min, max tid.TID) (a *proto.AnswerCheckTIDRange, err error) {
	err = r.b.reached(ctx, min, max, true, func(upTo tid.TID) (full bool, err error) {
		a, err = r.b.native.CheckTIDs(ctx, partition, n, min, upTo)
		return err == nil && n > 0 && a.Count == n, err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// CheckSerials implements [backend.Reading].
func (r reading) CheckSerials(ctx context.Context, partition, n int, min, max tid.TID, minOID tid.OID) (a *proto.AnswerCheckSerialRange, err error) {
	err = r.b.reached(ctx, min, max, true, func(upTo tid.TID) (full bool, err error) {
		a, err = r.b.native.CheckSerials(ctx, partition, n, min, upTo, minOID)
		return err == nil && n > 0 && a.Count == n, err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// reached calls f with the end of the range [from, upTo] as soon as all of the range is in the native
// backend, and before with the part of it that is there: f tells whether that was enough.
func (b *Backend) reached(ctx context.Context, from, upTo tid.TID, hope bool, f func(upTo tid.TID) (full bool, err error)) error {
	done := tid.TID(b.done.Load())
	if from <= upTo && from <= b.end && upTo > done && done < b.end && !b.own.Load() {
		if from <= done {
			if full, err := f(done); full || err != nil {
				return err
			}
		}
		if err := b.await(ctx, upTo, hope); err != nil {
			return err
		}
	}
	_, err := f(upTo)
	return err
}
