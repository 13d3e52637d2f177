package importer

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

const (
	// saveEvery is how often the progress is stored, and everything made durable.
	saveEvery = time.Second
	// saveBytes is how much is written before that is done in any case, so that the
	// database need not keep more in memory.
	saveBytes = 64 << 20
	// cleanAtOnce is how many records are found at once that have to be deleted.
	cleanAtOnce = 1000
)

func some[T any](v T) proto.Opt[T] { return proto.Opt[T]{V: v, OK: true} }

// copyAll copies what follows done. At its end, whatever its error, everything that was written
// whole is durable, unless the native backend has failed.
func (b *Backend) copyAll(ctx context.Context) error {
	b.copying.mu.Lock()
	start := tid.TID(b.copying.p.TID)
	b.copying.mu.Unlock()
	w := &writer{b: b, ctx: ctx, start: start, twice: map[backend.Key]bool{}}
	if err := b.clean(ctx, w.start); err != nil {
		return err
	}
	b.log.Info("copying transactions", "after", w.start, "to", b.end)
	w.saved = time.Now()
	err := b.pipeline(ctx, w.start, b.end, w.pack, w.write)
	if e, ok := errors.AsType[*nativeError](err); ok {
		return e.error
	}
	if err == nil {
		// The last transactions may have been left out by order.
		w.last(b.end)
	}
	if err := b.save(); err != nil {
		return err
	}
	return err
}

// nativeError is an error of the native backend: that of the sources is another matter.
type nativeError struct{ error }

// clean deletes what was written behind a transaction, before it was interrupted: records of a
// transaction that is not whole, or what the database has committed by itself.
func (b *Backend) clean(ctx context.Context, after tid.TID) error {
	np, err := b.partitions()
	if err != nil {
		return err
	}
	stored := false
	deleted := 0
	begin := func() error {
		if !stored { // from now on the last transaction says nothing
			stored = true
			return b.save()
		}
		return nil
	}
	rest := func(since time.Time) error {
		b.copying.pace.Worked(time.Since(since), 0)
		if !b.copying.pace.Rest(ctx.Done(), nil) {
			return ctx.Err()
		}
		return nil
	}
	for p := range np {
		for {
			since := time.Now()
			tids, err := b.native.TIDsFrom(ctx, p, after+1, b.end, cleanAtOnce)
			if err != nil {
				return err
			}
			if len(tids) == 0 {
				break
			}
			if err := begin(); err != nil {
				return err
			}
			for _, t := range tids {
				if err := b.native.DeleteTransaction(t); err != nil {
					return err
				}
			}
			if err := rest(since); err != nil {
				return err
			}
		}
	}
	for p := range np {
		for {
			since := time.Now()
			keys, err := b.native.RecordsFrom(ctx, p, after+1, b.end, 0, cleanAtOnce)
			if err != nil {
				return err
			}
			if len(keys) == 0 {
				break
			}
			if err := begin(); err != nil {
				return err
			}
			for _, k := range keys {
				if err := b.native.DeleteObject(k.OID, k.TID); err != nil {
					return err
				}
			}
			deleted += len(keys)
			if err := rest(since); err != nil {
				return err
			}
		}
	}
	if !stored {
		return nil
	}
	b.log.Info("records of an interrupted copy are deleted, to be written again", "after", after, "records", deleted)
	return b.native.Commit()
}

// partitions returns how many there are.
func (b *Backend) partitions() (int, error) {
	np, err := tableSize(b.native)
	if err == nil && np == 0 {
		err = errors.New("the import cannot begin: there is no partition table")
	}
	return np, err
}

// copyRecord writes a record before its turn, as the copy will.
func (b *Backend) copyRecord(r *txn.Record) error {
	var d proto.ObjectData
	if r.Data != nil {
		d = b.copying.packer.Pack(r.Data)
	}
	return b.native.AddObject(r.OID, r.TID, d, proto.Opt[tid.TID]{V: r.DataTID, OK: r.DataTID != tid.Zero})
}

// writer is the last stage of the copy.
type writer struct {
	b     *Backend
	ctx   context.Context
	start tid.TID              // committed when the copy began
	twice map[backend.Key]bool // records since then that another one of the same transaction replaces
	saved time.Time
	bytes int64 // since then
	part  counts
}

// counts are of what was written of a transaction.
type counts struct{ records, bytes, twice, blobs, skipped int64 }

// ended counts a transaction that is written.
func (w *writer) ended(t tid.TID) {
	mu, p, n := &w.b.copying.mu, &w.b.copying.p, &w.part
	mu.Lock()
	defer mu.Unlock()
	if n.blobs > 0 && p.Blobs == 0 {
		w.b.log.Warn("the sources have blobs: their records are imported, but not the files with their data, which a cluster cannot have", "tid", t)
	}
	p.TID = hexTID(t)
	p.Transactions++
	p.Records += n.records
	p.Bytes += n.bytes
	p.Twice += n.twice
	p.Blobs += n.blobs
	p.Skipped += n.skipped
	*n = counts{}
}

// pack makes of records what is stored. It is called on several goroutines.
func (w *writer) pack(ctx context.Context, c *chunk) {
	for i := range c.items {
		if it := &c.items[i]; it.data != nil && !it.twice {
			it.packed = w.b.copying.packer.Pack(it.data)
			if it.packed.Compression == deflate.None {
				it.packed.Data = bytes.Clone(it.packed.Data) // the chunk is used again
				if it.packed.Data == nil {
					it.packed.Data = []byte{}
				}
			}
		}
	}
}

// write writes a chunk. source and process are how long it was waited for.
func (w *writer) write(c *chunk, source, process time.Duration) error {
	cp := &w.b.copying
	begin := time.Now()
	limited, ok := cp.pace.RestFor(w.ctx.Done(), nil)
	if !ok {
		return w.ctx.Err()
	}
	defer w.b.turn()()
	rested := time.Now()
	if err := w.items(c); err != nil {
		return &nativeError{err}
	}
	if w.bytes += int64(c.bytes); w.bytes >= saveBytes || rested.Sub(w.saved) >= saveEvery {
		if err := w.save(); err != nil {
			return &nativeError{err}
		}
	}
	took := time.Since(rested)
	cp.pace.Worked(c.worked(took), c.bytes)
	cp.mu.Lock()
	defer cp.mu.Unlock()
	cp.waits[slowSource] += source
	cp.waits[slowProcessor] += process
	cp.waits[slowDatabase] += took
	cp.waits[slowLimit] += limited
	cp.waits[slowClients] += max(rested.Sub(begin)-limited, 0)
	return nil
}

// items writes what is in a chunk.
func (w *writer) items(c *chunk) error {
	native, n := w.b.native, &w.part
	for i := range c.items {
		it := &c.items[i]
		switch {
		case it.meta != nil:
			if err := native.AddTransaction(it.tid, *it.meta, nil); err != nil {
				return err
			}
			w.ended(it.tid)
			continue
		case it.twice:
			w.b.log.Warn("an object is twice in a transaction: the last record counts, as for all readers of the source", "tid", it.tid, "oid", it.oid)
			w.twice[backend.Key{TID: it.tid, OID: it.oid}] = true
			n.twice++
			continue
		case it.skipped:
			w.b.log.Warn("a record that cannot be read is without data in the copy, by order", "tid", it.tid, "oid", it.oid)
			n.skipped++
		case it.blob:
			n.blobs++
		}
		from, err := w.shared(it)
		if err == nil {
			err = native.AddObject(it.oid, it.tid, it.packed, from)
		}
		if err != nil {
			return err
		}
		n.records++
		n.bytes += int64(len(it.data))
	}
	return nil
}

// shared returns the transaction whose data a record has. Where the object is twice in
// that one, the native backend may have other data for it.
func (w *writer) shared(it *item) (proto.Opt[tid.TID], error) {
	if it.dataTID == tid.Zero {
		return proto.Opt[tid.TID]{}, nil
	}
	from := some(it.dataTID)
	if len(w.twice) == 0 && (it.dataTID > w.start || w.b.copying.p.Twice == 0) || it.dataTID > w.start && !w.twice[backend.Key{TID: it.dataTID, OID: it.oid}] {
		return from, nil
	}
	same, err := w.b.hasData(w.ctx, it)
	if err == nil && !same {
		w.b.log.Warn("a record loses its link to the one whose data it has, since that one is replaced in its own transaction", "tid", it.tid, "oid", it.oid, "link", it.dataTID)
		from = proto.Opt[tid.TID]{}
	}
	return from, err
}

// hasData reports whether the native backend has the data of a record where that says they
// are. If there is no record, the data of the record itself will do.
func (b *Backend) hasData(ctx context.Context, it *item) (bool, error) {
	o, err := b.native.FetchObject(ctx, it.oid, it.dataTID)
	if errors.Is(err, backend.ErrNotFound) || errors.Is(err, backend.ErrNoSuchObject) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if deflate.Absent(&o.ObjectData) {
		return it.data == nil, nil
	}
	data, err := deflate.Unpack(&o.ObjectData)
	return err == nil && it.data != nil && bytes.Equal(data, it.data), err
}

// last notes that there is nothing else up to t.
func (w *writer) last(t tid.TID) {
	w.b.copying.mu.Lock()
	defer w.b.copying.mu.Unlock()
	w.b.copying.p.TID = hexTID(t)
}

// save stores the progress, and samples the speed.
func (w *writer) save() error {
	if err := w.b.save(); err != nil {
		return err
	}
	c := &w.b.copying
	pos, _ := w.b.position(tid.TID(w.b.done.Load()))
	c.mu.Lock()
	defer c.mu.Unlock()
	w.saved, w.bytes = time.Now(), 0
	c.speed.add(w.saved, c.p.Bytes, pos)
	c.waits.fade()
	return nil
}
