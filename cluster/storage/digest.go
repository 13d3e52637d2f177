package storage

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/replica"
	"github.com/neozodb/neo/cluster/tid"
)

// checkable reports whether this node has data of a partition that may be compared.
func (n *Node) checkable(partition int) bool {
	if partition < 0 || partition >= n.table.NP() {
		return false
	}
	switch n.table.Cell(partition, n.id) {
	case proto.OutOfDate, proto.Discarded:
		return false
	}
	return true
}

// digest reads what is here of a partition, on another goroutine, for a check.
func (r *replicator) digest(e *replica.Effect) {
	partition, records, nothing, packed, from, last, n, tag := e.Partition, e.Records, e.Nothing, e.Packed, e.Min, e.Max, e.Count, e.Tag
	f := r.s.feeder
	f.run(func() {
		ev := replica.Event{Kind: replica.Digested, Tag: tag}
		work := f.turn()
		var err error
		if !nothing {
			ev.Items, ev.Next, err = f.contents(work, partition, records, from, last, n)
		}
		if packed && err == nil {
			var ids map[int]tid.TID
			ids, err = r.n.db.PackedIDs(false)
			t, ok := ids[partition]
			ev.PackOrder = proto.Opt[tid.TID]{V: t, OK: ok}
		}
		f.worked(work, 0)
		r.tellRead(ev, "checking", partition, err)
	})
}

// listTail lists the last transactions here of a partition, on another goroutine.
func (r *replicator) listTail(e *replica.Effect) {
	partition, n, tag := e.Partition, e.Count, e.Tag
	f := r.s.feeder
	f.run(func() {
		ev := replica.Event{Kind: replica.TailListed, Tag: tag}
		var err error
		ev.TIDs, err = r.n.db.TIDs(f.ctx, []int{partition}, 0, n)
		slices.Reverse(ev.TIDs)
		r.tellRead(ev, "last transactions of", partition, err)
	})
}

// tellRead has the machine told what was read of a partition on a goroutine of the feeder, or that it
// cannot be read. Any other error ends the node.
func (r *replicator) tellRead(ev replica.Event, doing string, partition int, err error) {
	f := r.s.feeder
	if f.ctx.Err() != nil {
		return // the operation has ended
	}
	f.post(func() error {
		switch {
		case r.n.session != r.s:
			return nil
		case errors.Is(err, backend.ErrNotImplemented), errors.Is(err, backend.ErrNonReadable):
			ev.Refused = true
		case err != nil:
			return fmt.Errorf("%s partition %d: %w", doing, partition, err)
		}
		return r.tell(ev)
	})
}

// contents digests transactions or records of this node.
func (f *feeder) contents(work *turn, partition int, records bool, from backend.Key, last tid.TID, n int) (map[backend.Key]replica.Content, proto.Opt[backend.Key], error) {
	db := f.n.db
	var list []backend.Key
	if records {
		keys, err := db.RecordsFrom(work.ctx, partition, from.TID, last, from.OID, n+1)
		if err != nil {
			return nil, proto.Opt[backend.Key]{}, err
		}
		list = keys
	} else {
		tids, err := db.TIDsFrom(work.ctx, partition, from.TID, last, n+1)
		if err != nil {
			return nil, proto.Opt[backend.Key]{}, err
		}
		for _, t := range tids {
			list = append(list, backend.Key{TID: t})
		}
	}
	var next proto.Opt[backend.Key]
	if len(list) > n {
		next, list = proto.Some(list[n]), list[:n]
	}
	items := make(map[backend.Key]replica.Content, len(list))
	for _, i := range list {
		if f.ctx.Err() != nil {
			return nil, proto.Opt[backend.Key]{}, nil // the result is of no interest
		}
		if len(f.n.inbox) > 0 {
			f.worked(work, 0)
			time.Sleep(200 * time.Microsecond) // clients come first
			work.begin = time.Now()
		}
		var x replica.Content
		var err error
		if records {
			var o backend.Object
			if o, err = db.FetchObject(work.ctx, i.OID, i.TID); err == nil {
				x = replica.RecordContent(&o.ObjectData, true)
			}
		} else {
			var m backend.Meta
			if m, _, err = db.FetchTransaction(work.ctx, i.TID); err == nil {
				x = replica.MetaContent(&m)
			}
		}
		switch {
		case errors.Is(err, backend.ErrNotFound), errors.Is(err, backend.ErrNoSuchObject):
			continue // packed since it was listed
		case err != nil:
			if _, ok := errors.AsType[*backend.CorruptError](err); !ok {
				return nil, proto.Opt[backend.Key]{}, err
			}
			f.n.counts.damaged.Add(1)
			f.n.log.Error("stored data are damaged", "err", err)
			x = replica.Content{Damaged: true}
		}
		items[i] = x
	}
	return items, next, nil
}
