package importer

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var (
	_ backend.Preparing = (*Backend)(nil)
	_ backend.Local     = (*Backend)(nil)
)

// newBackend returns the backend that serves a native backend together with the sources, of which
// nothing is known to be copied yet. source gives nothing after end, nor objects from oids on.
func newBackend(native Native, source txn.Database, end tid.TID, oids tid.OID, log *slog.Logger) *Backend {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	b := &Backend{native: native, source: source, end: end, oids: oids, log: log}
	b.reading = reading{Reading: native, b: b}
	b.Writing = native
	b.keeping = keeping{Keeping: native, b: b}
	b.from = newSources(source, end, log)
	b.begun = map[tid.OID]tid.TID{}
	if r, ok := native.(committedReader); ok {
		r.ReadCommitted(end)
	}
	return b
}

// learnFirst learns the first transaction of the sources, which [reading.LastIDs] returns
// without waiting for them. As soon as something is copied, the native backend has it. A
// source that does not answer is no reason not to start: then it is below all.
func (b *Backend) learnFirst(ctx context.Context) error {
	if b.first.Load() != 0 || b.done.Load() != 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	t, err := b.from.first(limited)
	switch {
	case err != nil && ctx.Err() == nil && (limited.Err() != nil || errors.Is(err, backend.ErrNonReadable)):
		b.log.Warn("a source of the import does not answer yet: the node starts without it", "err", err)
		t = 1
	case err != nil:
		return fmt.Errorf("first transaction of the sources: %w", err)
	}
	b.first.Store(uint64(t))
	return nil
}

// advance says that everything of the sources up to a TID is in the native backend, and wakes what
// waits for it.
func (b *Backend) advance(t tid.TID) {
	b.m.Lock()
	defer b.m.Unlock()
	b.done.Store(uint64(t))
	b.wake()
}

// finish says that the native backend answers all, and wakes what waits for it.
func (b *Backend) finish() {
	b.m.Lock()
	defer b.m.Unlock()
	if r, ok := b.native.(committedReader); ok {
		r.ReadCommitted(tid.Zero) // other nodes may fill cells of this one from now on
	}
	b.own.Store(true)
	b.wake()
}

// setCopying says whether [Backend.advance] is going to be called. Until it is, digests of what is
// not copied are refused: before the operation begins the goroutine that serves
// all peers asks for them.
func (b *Backend) setCopying(on bool) {
	b.m.Lock()
	defer b.m.Unlock()
	b.active = on
	b.wake()
}

// Local implements [backend.Local].
func (b *Backend) Local() bool { return b.own.Load() }

// wake wakes what waits. b.m is held.
func (b *Backend) wake() {
	if b.moved != nil {
		close(b.moved)
		b.moved = nil
	}
}

// await waits until what the sources have up to a TID is in the native backend. With hope it
// returns [backend.ErrNonReadable] when nothing is being copied.
func (b *Backend) await(ctx context.Context, t tid.TID, hope bool) error {
	t = min(t, b.end)
	err := b.awaitUntil(ctx, hope, func() bool { return tid.TID(b.done.Load()) >= t })
	if errors.Is(err, backend.ErrNonReadable) {
		err = fmt.Errorf("up to %v nothing is copied yet: %w", t, err)
	}
	return err
}

// awaitOwn waits until the sources are no longer needed.
func (b *Backend) awaitOwn(ctx context.Context) error {
	return b.awaitUntil(ctx, false, func() bool { return false })
}

// awaitUntil waits until reached returns true or the sources are no longer needed. With hope
// it returns [backend.ErrNonReadable] when nothing is being copied.
func (b *Backend) awaitUntil(ctx context.Context, hope bool, reached func() bool) error {
	for {
		b.m.Lock()
		if b.moved == nil {
			b.moved = make(chan struct{})
		}
		moved, active := b.moved, b.active
		b.m.Unlock()
		switch {
		case b.own.Load() || reached():
			return nil
		case hope && !active:
			return backend.ErrNonReadable
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// partitionCount returns the number of partitions, 0 if there is no partition table.
func (b *Backend) partitionCount() (int, error) {
	if np := b.np.Load(); np > 0 {
		return int(np), nil
	}
	np, err := tableSize(b.native)
	b.np.Store(int64(np))
	return np, err
}

// tableSize returns the number of partitions of the stored table, 0 if there is none.
func tableSize(native Native) (int, error) {
	cells, err := native.Cells()
	np := 0
	for _, c := range cells {
		np = max(np, c.Partition+1)
	}
	return np, err
}

// either answers from sources and native backend by both, with the TID up to which all is
// copied, or from the native backend alone once it has all. Sources may be closed then.
func either[T any](b *Backend, both func(done tid.TID) (T, error), native func() (T, error)) (T, error) {
	if b.own.Load() {
		return native()
	}
	v, err := both(tid.TID(b.done.Load()))
	if err != nil && b.own.Load() {
		return native()
	}
	return v, err
}

// key is what GetObject is asked for.
type key struct {
	oid        tid.OID
	at, before proto.Opt[tid.TID]
}

// last returns the greatest revision that may be meant.
func (k key) last() tid.TID {
	switch {
	case k.at.OK:
		return k.at.V
	case k.before.OK:
		return max(k.before.V, 1) - 1
	}
	return tid.Max
}

// GetObject implements [backend.Reading].
func (r reading) GetObject(ctx context.Context, oid tid.OID, at, before proto.Opt[tid.TID]) (backend.Object, error) {
	b, k := r.b, key{oid, at, before}
	b.serving()
	native := func() (backend.Object, error) { return b.native.GetObject(ctx, oid, at, before) }
	return either(b, func(done tid.TID) (backend.Object, error) {
		o, err := native()
		if b.answered(k, &o, err, done) {
			return o, err
		}
		return b.complete(ctx, k, o, err, done)
	}, native)
}

// GetObjects implements [backend.Reading]. What needs the sources is asked for at
// the same time.
func (r reading) GetObjects(ctx context.Context, keys []backend.ObjectKey, f func(i int, o *backend.Object, err error) bool) {
	b := r.b
	b.serving()
	if b.own.Load() {
		b.native.GetObjects(ctx, keys, f)
		return
	}
	type unanswered struct {
		i   int
		k   key
		o   backend.Object
		err error
	}
	var list []unanswered
	more, done := true, tid.TID(b.done.Load())
	b.native.GetObjects(ctx, keys, func(i int, o *backend.Object, err error) bool {
		k := key{keys[i].OID, keys[i].At, keys[i].Before}
		if err != nil {
			o = &backend.Object{}
		}
		if b.answered(k, o, err, done) {
			more = f(i, o, err)
		} else {
			list = append(list, unanswered{i, k, *o, err})
		}
		return more
	})
	if !more || len(list) == 0 {
		return
	}
	for chunk := range slices.Chunk(list, maxAsking) {
		var wg sync.WaitGroup
		for i := range chunk {
			u := &chunk[i]
			wg.Go(func() {
				u.o, u.err = either(b, func(tid.TID) (backend.Object, error) { return b.complete(ctx, u.k, u.o, u.err, done) },
					func() (backend.Object, error) { return b.native.GetObject(ctx, u.k.oid, u.k.at, u.k.before) })
			})
		}
		wg.Wait()
		for i := range chunk {
			if u := &chunk[i]; !f(u.i, &u.o, u.err) {
				return
			}
		}
	}
}

// maxAsking is how many objects of one request are asked for at the same time.
const maxAsking = 16

// answered reports whether what the native backend has answered is the answer: o, or err.
func (b *Backend) answered(k key, o *backend.Object, err error, done tid.TID) bool {
	switch {
	case err == nil && o.Serial > b.end:
		return true
	case err != nil && !errors.Is(err, backend.ErrNotFound) && !errors.Is(err, backend.ErrNoSuchObject):
		return true // not readable, for instance
	case k.oid >= b.oids:
		return true
	case err == nil && o.Serial <= done && k.last() <= done && o.Next != tid.Zero && o.Next <= done:
		return true
	case errors.Is(err, backend.ErrNotFound) && (k.at.OK && k.at.V > b.end || k.last() <= done):
		return true
	}
	return false
}

// complete returns the answer where that of the native backend, o or err, is not. Rows after
// done and not after end are there by chance: an interrupted copy has left them.
func (b *Backend) complete(ctx context.Context, k key, o backend.Object, err error, done tid.TID) (backend.Object, error) {
	found := err == nil && o.Serial <= done
	last, known := b.from.known(k.oid)
	switch {
	case k.at.OK && k.at.V > b.end, k.last() <= done && !found:
		// The native backend has no such revision. Does it know the object?
		if errors.Is(err, backend.ErrNoSuchObject) {
			if last, err := b.from.lastRevision(ctx, k.oid); err != nil {
				return backend.Object{}, err
			} else if last != tid.Zero {
				return backend.Object{}, fmt.Errorf("object %v: %w", k.oid, backend.ErrNotFound)
			}
		}
		if err == nil {
			err = fmt.Errorf("object %v: %w", k.oid, backend.ErrNotFound)
		}
		return backend.Object{}, err
	case found && known && last <= done:
		// All of the object that the sources have is in the native backend. That its next
		// revision is one of the sources is not possible.
		return o, nil
	case k.last() <= done:
		next, nextErr := b.from.next(ctx, k.oid, o.Serial)
		if nextErr == nil && next == tid.Zero {
			next, nextErr = b.nextNative(ctx, k.oid, &o, nil)
		}
		if o.Next = next; nextErr != nil {
			return backend.Object{}, nextErr
		}
		return o, nil
	}
	before := tid.TID(tid.Max)
	if k.last() < tid.Max {
		before = k.last() + 1
	}
	rev, srcErr := b.from.before(ctx, k.oid, before)
	if k.at.OK && (errors.Is(srcErr, backend.ErrNoSuchObject) || errors.Is(srcErr, backend.ErrNotFound) || srcErr == nil && rev.Serial != k.at.V) {
		if hidden, ok, err := b.from.hidden(ctx, k.oid, k.at.V); err != nil {
			return backend.Object{}, err
		} else if ok {
			rev, srcErr = hidden, nil
		}
	}
	switch {
	case errors.Is(srcErr, backend.ErrNoSuchObject):
		// Also what the native backend knows of it is after the end.
		if found {
			return o, nil
		}
		if err == nil {
			err = srcErr
		}
		return backend.Object{}, err
	case srcErr != nil:
		return backend.Object{}, srcErr
	case k.at.OK && rev.Serial != k.at.V:
		return backend.Object{}, fmt.Errorf("object %v at %v: %w", k.oid, k.at.V, backend.ErrNotFound)
	}
	next := rev.Next
	if next == tid.Zero {
		var nextErr error
		if next, nextErr = b.nextNative(ctx, k.oid, &o, err); nextErr != nil {
			return backend.Object{}, nextErr
		}
	}
	if found && o.Serial == rev.Serial {
		o.Next = next
		return o, nil
	}
	answer := backend.Object{Serial: rev.Serial, Next: next, ObjectData: sourceData(rev.Data)}
	dataTID := b.from.cheapDataTID
	if k.at.OK {
		dataTID = b.from.dataTID // an exact load is part of a copy of the history, or of an undo
	}
	from, fromErr := dataTID(ctx, k.oid, rev.Serial)
	if answer.DataSerial = from; fromErr != nil {
		return backend.Object{}, fromErr
	}
	return answer, nil
}

// sourceData returns the data of a record of the sources, nil: a deletion.
func sourceData(data []byte) proto.ObjectData {
	if data == nil {
		return proto.ObjectData{}
	}
	return proto.ObjectData{Checksum: sha1.Sum(data), Data: data}
}

// nextNative returns the first revision of an object after the end, Zero if there is none. o or err
// is what the native backend knows of a revision that is not after the end.
func (b *Backend) nextNative(ctx context.Context, oid tid.OID, o *backend.Object, err error) (tid.TID, error) {
	switch {
	case err == nil && (o.Next == tid.Zero || o.Next > b.end):
		return o.Next, nil
	case errors.Is(err, backend.ErrNoSuchObject):
		return tid.Zero, nil
	}
	b.m.Lock()
	t, known := b.begun[oid]
	cuts := b.cuts
	b.m.Unlock()
	if known {
		return t, nil
	}
	first := tid.Zero
	for skip, n := 0, 4; ; skip, n = skip+n, n*4 {
		// Newest first: what is added meanwhile moves what follows, and is seen twice.
		list, err := b.native.History(ctx, oid, skip, n)
		if err != nil {
			return tid.Zero, err
		}
		for _, r := range list {
			if r.TID > b.end {
				first = r.TID
			}
		}
		if len(list) < n || list[n-1].TID <= b.end {
			break
		}
	}
	if first != tid.Zero {
		b.m.Lock()
		defer b.m.Unlock()
		if len(b.begun) >= maxBegun {
			clear(b.begun)
		}
		if b.cuts == cuts {
			b.begun[oid] = first
		}
	}
	return first, nil
}

// maxBegun is how many objects are kept of which the first revision after the end is known.
const maxBegun = 1 << 16

// LastObjectTID implements [backend.Reading]. It does not wait: see [Backend.Prepare].
func (r reading) LastObjectTID(ctx context.Context, oid tid.OID) (proto.Opt[tid.TID], error) {
	b := r.b
	own := b.own.Load()
	last, err := b.native.LastObjectTID(ctx, oid)
	if own || err != nil || oid >= b.oids || last.OK && last.V > b.end {
		return last, err
	}
	t, known := b.from.known(oid)
	switch {
	case !known && b.own.Load():
		return b.native.LastObjectTID(ctx, oid)
	case !known:
		return proto.Opt[tid.TID]{}, fmt.Errorf("object %v: %w", oid, backend.ErrNotPrepared)
	}
	if last.OK && last.V <= tid.TID(b.done.Load()) {
		t = max(t, last.V)
	}
	return proto.Opt[tid.TID]{V: t, OK: t != tid.Zero}, nil
}

// Prepare learns the last revision of an object, for [reading.LastObjectTID]. What it learns stays
// right, since the sources do not change: it is only forgotten to make room for others.
func (b *Backend) Prepare(ctx context.Context, oid tid.OID) error {
	_, err := either(b, func(tid.TID) (tid.TID, error) {
		if oid >= b.oids {
			return tid.Zero, nil
		}
		return b.from.lastRevision(ctx, oid)
	}, func() (tid.TID, error) { return tid.Zero, nil })
	return err
}

// LastIDs implements [backend.Reading]. The greatest ids are those of the sources from the
// beginning: what the cluster gives out must be above all that is going to be copied.
func (r reading) LastIDs(ctx context.Context) (backend.LastIDs, error) {
	b := r.b
	ids, err := b.native.LastIDs(ctx)
	if err != nil || b.end == tid.Zero {
		return ids, err
	}
	ids.TID = proto.Some(max(ids.TID.V, b.end))
	if b.oids > 0 {
		ids.OID = proto.Some(max(ids.OID.V, b.oids-1))
	}
	if !b.own.Load() {
		if err := b.learnFirst(ctx); err != nil {
			if !errors.Is(err, backend.ErrNonReadable) {
				err = fmt.Errorf("%w: %w", backend.ErrNonReadable, err)
			}
			return backend.LastIDs{}, err
		}
	}
	if first := tid.TID(b.first.Load()); first != tid.Zero {
		ids.First = min(ids.First, first)
	}
	return ids, nil
}

// LastTIDs implements [backend.Reading]. It does not wait. All that the sources have of a
// partition is served here, so that an end of the copy before theirs is not that of an
// older copy of this database. Where the partition ends in the sources is not known without
// reading them: the end of all of them is said. What clients have committed since is said
// exactly, and that is what a master remembers and misses in an older copy.
func (r reading) LastTIDs(ctx context.Context, partition int) (trans, obj tid.TID, err error) {
	b := r.b
	own := b.own.Load()
	trans, obj, err = b.native.LastTIDs(ctx, partition)
	if own || err != nil {
		return trans, obj, err
	}
	return max(trans, b.end), max(obj, b.end), nil
}
