package importer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	// maxLogged is how many differences are logged one by one.
	maxLogged = 100
	// spanKeys is after how many records it is looked whether the native backend has
	// others beside them.
	spanKeys = 20000
	// keysAtOnce is how many it is asked for at once.
	keysAtOnce = 5000
	// loadsAtOnce is how many records are loaded at once.
	loadsAtOnce = 64
)

// compareAll compares everything, keeps the result, and with it decides what answers.
func (b *Backend) compareAll(ctx context.Context) error {
	found, err := b.compare(ctx, b.end, true)
	if err != nil {
		return err
	}
	c := &b.copying
	c.mu.Lock()
	b.keep(found)
	c.p.Verdict = equal
	if found.differences > 0 {
		c.p.Verdict = different
	}
	c.mu.Unlock()
	return b.save()
}

// compareOnDemand compares what is copied whenever that is asked for, until ctx ends or the
// native backend fails.
func (b *Backend) compareOnDemand(ctx context.Context) error {
	c := &b.copying
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.demanded:
		}
		found, err := b.compare(ctx, tid.TID(b.done.Load()), false)
		switch e, ok := errors.AsType[*SourceError](err); {
		case ok:
			b.log.Error("the comparison of what is copied has ended early: the sources cannot be read", "tid", e.TID, "last", e.Last, "err", e.Err)
			continue
		case err != nil:
			return err
		}
		c.mu.Lock()
		if c.p.Verdict == "" {
			b.keep(found)
		}
		c.mu.Unlock()
		if err := b.save(); err != nil {
			return err
		}
	}
}

// keep notes the result of a comparison. The caller holds copying.mu.
func (b *Backend) keep(f *findings) {
	p := &b.copying.p
	p.Compared, p.ComparedAt, p.Differences = hexTID(f.upTo), time.Now().UTC().Truncate(time.Second), f.differences
}

// findings is the result of a comparison.
type findings struct {
	upTo                         tid.TID
	transactions, records, bytes int64
	differences, accepted        int64
}

// comparer is the last stage of a comparison.
type comparer struct {
	b     *Backend
	ctx   context.Context
	np    int
	whole bool
	found findings

	from tid.TID // what is up to it was looked at
	last tid.TID // the last transaction that is complete
	keys []backend.Key
	tids []tid.TID
	at   time.Time // when the speed was sampled
}

// compare compares every transaction and every record of the sources up to a transaction
// with those of the native backend, which may have no others. whole: that is what the import
// does now.
func (b *Backend) compare(ctx context.Context, upTo tid.TID, whole bool) (*findings, error) {
	c := &b.copying
	select {
	case c.comparing <- struct{}{}:
		defer func() { <-c.comparing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	np, err := b.partitions()
	if err != nil {
		return nil, err
	}
	b.log.Info("comparing the sources with the copy", "to", upTo)
	begin := time.Now()
	k := &comparer{b: b, ctx: ctx, np: np, whole: whole, at: begin, found: findings{upTo: upTo}}
	err = b.pipeline(ctx, tid.Zero, upTo, b.examine, k.collect)
	if err == nil {
		err = k.others(upTo)
	}
	if e, ok := errors.AsType[*nativeError](err); ok {
		return nil, e.error
	}
	if err != nil {
		return nil, err
	}
	f := &k.found
	log := b.log.Info
	if f.differences > 0 {
		log = b.log.Error
	}
	log("the sources and the copy are compared", "to", upTo, "transactions", f.transactions, "records", f.records, "bytes", f.bytes,
		"differences", f.differences, "accepted", f.accepted, "took", time.Since(begin).Round(time.Millisecond))
	return f, nil
}

// examine compares the items of a chunk. It is called on several goroutines.
func (b *Backend) examine(ctx context.Context, c *chunk) {
	keys := make([]backend.ObjectKey, 0, loadsAtOnce)
	at := make([]*item, 0, loadsAtOnce)
	load := func() {
		if len(keys) == 0 {
			return
		}
		b.native.GetObjects(ctx, keys, func(i int, o *backend.Object, err error) bool {
			at[i].what, at[i].err = compareObject(at[i], o, err)
			return true
		})
		keys, at = keys[:0], at[:0]
	}
	for i := range c.items {
		it := &c.items[i]
		switch {
		case it.twice:
		case it.meta != nil:
			m, err := b.native.Transaction(ctx, it.tid)
			it.what, it.err = compareMeta(it.meta, &m, err)
		default:
			it.what, it.err = "missing in the copy", nil // unless it is told of
			if at = append(at, it); len(at) > 0 {
				keys = append(keys, backend.ObjectKey{OID: it.oid, At: some(it.tid)})
			}
			if len(keys) == loadsAtOnce {
				load()
			}
		}
	}
	load()
}

// compareObject says how a record differs from that of the native backend; err: that
// is not known.
func compareObject(it *item, o *backend.Object, e error) (what string, err error) {
	switch {
	case errors.Is(e, backend.ErrNotFound) || errors.Is(e, backend.ErrNoSuchObject):
		return "missing in the copy", nil
	case errors.As(e, new(*backend.CorruptError)):
		return e.Error(), nil
	case e != nil:
		return "", e
	case o.Serial != it.tid:
		return fmt.Sprintf("the copy has the one of %v instead", o.Serial), nil
	case !deflate.Valid(&o.ObjectData):
		return "the data in the copy differ from their checksum", nil
	}
	absent := deflate.Absent(&o.ObjectData)
	switch {
	case absent && it.data != nil:
		return "without data in the copy", nil
	case !absent && it.data == nil:
		return "without data in the sources", nil
	case !absent:
		data, err := deflate.Unpack(&o.ObjectData)
		if err != nil {
			return fmt.Sprintf("the data in the copy: %v", err), nil
		}
		if !bytes.Equal(data, it.data) {
			return "other data in the copy", nil
		}
	}
	if o.DataSerial != it.dataTID {
		return otherLink, nil
	}
	return "", nil
}

const otherLink = "linked to another record in the copy"

// compareMeta is compareObject for the metadata of a transaction.
func compareMeta(want, got *backend.Meta, e error) (what string, err error) {
	switch {
	case errors.Is(e, backend.ErrNotFound):
		return "missing in the copy", nil
	case e != nil:
		return "", e
	case !slices.Equal(got.OIDs, want.OIDs):
		return "other records, or in another order, in the copy", nil
	case got.Packed != want.Packed:
		return "other status in the copy", nil
	case !bytes.Equal(got.User, want.User) || !bytes.Equal(got.Description, want.Description) || !bytes.Equal(got.Extension, want.Extension):
		return "other metadata in the copy", nil
	case got.TTID != want.TTID:
		return "other first id in the copy", nil
	}
	return "", nil
}

// collect takes the results of a chunk.
func (k *comparer) collect(c *chunk, source, process time.Duration) error {
	cp := &k.b.copying
	begin := time.Now()
	limited, ok := cp.pace.RestFor(k.ctx.Done(), nil)
	if !ok {
		return k.ctx.Err()
	}
	defer k.b.turn()()
	rested := time.Now()
	for i := range c.items {
		it := &c.items[i]
		if it.err != nil {
			return &nativeError{it.err}
		}
		switch {
		case it.twice:
			continue
		case it.meta != nil:
			k.tids = append(k.tids, it.tid)
			k.last = it.tid
			k.found.transactions++
			if it.what != "" {
				k.differs(it.tid, nil, it.what)
			}
		default:
			k.keys = append(k.keys, backend.Key{TID: it.tid, OID: it.oid})
			k.found.records++
			k.found.bytes += int64(len(it.data))
			if it.what == otherLink {
				if ok, err := k.linkLost(it); err != nil {
					return &nativeError{err}
				} else if ok {
					it.what = ""
				}
			}
			switch {
			case it.what != "":
				k.differs(it.tid, &it.oid, it.what)
			case it.skipped:
				k.differs(it.tid, &it.oid, "unreadable in the sources")
			}
		}
	}
	if n := len(c.items); len(k.keys)+len(k.tids) >= spanKeys && c.items[n-1].meta != nil {
		if err := k.others(k.last); err != nil {
			return err
		}
	}
	took := time.Since(rested)
	cp.pace.Worked(c.worked(took), c.bytes)
	if !k.whole {
		return nil
	}
	cp.mu.Lock()
	defer cp.mu.Unlock()
	cp.compared = k.last
	cp.waits[slowSource] += source
	cp.waits[slowDatabase] += process + took
	cp.waits[slowLimit] += limited
	cp.waits[slowClients] += max(rested.Sub(begin)-limited, 0)
	if now := time.Now(); now.Sub(k.at) >= saveEvery {
		k.at = now
		pos, _ := k.b.position(k.last)
		cp.speed.add(now, k.found.bytes, pos)
		cp.waits.fade()
	}
	return nil
}

// linkLost reports whether the copy could not keep the link of a record: see writer.shared.
func (k *comparer) linkLost(it *item) (bool, error) {
	o, err := k.b.native.FetchObject(k.ctx, it.oid, it.tid)
	if err != nil || o.DataSerial != tid.Zero {
		return false, err
	}
	same, err := k.b.hasData(k.ctx, it)
	return err == nil && !same, err
}

// differs counts a difference, and logs it.
func (k *comparer) differs(t tid.TID, oid *tid.OID, what string) {
	args := []any{"tid", t, "kind", what}
	accepted := k.b.skipsIn(t)
	if oid != nil {
		args = append(args, "oid", *oid)
		accepted = k.b.skips(t, *oid)
	}
	if accepted {
		k.found.accepted++
		k.b.log.Warn("the copy differs from the sources, which is accepted by order", args...)
		return
	}
	switch k.found.differences++; {
	case k.found.differences <= maxLogged:
		k.b.log.Error("the copy differs from the sources", args...)
	case k.found.differences == maxLogged+1:
		k.b.log.Error("more differences between the copy and the sources are counted, but not logged")
	}
}

// others looks for what the native backend has up to a transaction beside what was compared
// with it.
func (k *comparer) others(upTo tid.TID) error {
	if upTo <= k.from {
		return nil
	}
	tids := make([][]tid.TID, k.np)
	for _, t := range k.tids {
		p := t.Partition(k.np)
		tids[p] = append(tids[p], t)
	}
	slices.SortFunc(k.keys, func(x, y backend.Key) int {
		return cmp.Or(cmp.Compare(x.TID, y.TID), cmp.Compare(x.OID, y.OID))
	})
	keys := make([][]backend.Key, k.np)
	for _, key := range k.keys {
		p := key.OID.Partition(k.np)
		keys[p] = append(keys[p], key)
	}
	for p := range k.np {
		known := tids[p]
		for min := k.from + 1; ; {
			found, err := k.b.native.TIDsFrom(k.ctx, p, min, upTo, keysAtOnce)
			if err != nil {
				return &nativeError{err}
			}
			for _, t := range found {
				for len(known) > 0 && known[0] < t {
					known = known[1:]
				}
				if len(known) == 0 || known[0] != t {
					k.differs(t, nil, "missing in the sources")
				}
				min = t + 1
			}
			if len(found) < keysAtOnce {
				break
			}
		}
	}
	for p := range k.np {
		known := keys[p]
		for min := (backend.Key{TID: k.from + 1}); ; {
			found, err := k.b.native.RecordsFrom(k.ctx, p, min.TID, upTo, min.OID, keysAtOnce)
			if err != nil {
				return &nativeError{err}
			}
			for _, f := range found {
				for len(known) > 0 && (known[0].TID < f.TID || known[0].TID == f.TID && known[0].OID < f.OID) {
					known = known[1:]
				}
				if len(known) == 0 || known[0] != f {
					k.differs(f.TID, &f.OID, "missing in the sources")
				}
				min = backend.Key{TID: f.TID, OID: f.OID + 1}
			}
			if len(found) < keysAtOnce {
				break
			}
		}
	}
	k.from, k.keys, k.tids = upTo, k.keys[:0], k.tids[:0]
	return nil
}
