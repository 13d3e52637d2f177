package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/pending"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	// maxFeeding is how many chunks are read at the same time for other storages.
	maxFeeding = 4
	// feedBuffer is how much may wait to be sent, in bytes, before the next record is read.
	feedBuffer = 256 << 10
	// maxChunk bounds the chunks that others may ask for, in items.
	maxChunk = 100000
)

// feeder gives other storages what they lack, and digests for the comparison of
// replicas. It works on goroutines of its own, after all other work: a slow
// receiver or a long list does not delay a client.
type feeder struct {
	n      *Node
	s      *session
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{}

	preparing chan struct{} // slots of prepare
}

func newFeeder(n *Node, s *session) *feeder {
	f := &feeder{n: n, s: s, slots: make(chan struct{}, maxFeeding), preparing: make(chan struct{}, maxPreparing)}
	f.ctx, f.cancel = context.WithCancel(n.ctx)
	return f
}

// stop waits for the end of all work.
func (f *feeder) stop() {
	f.cancel()
	f.wg.Wait()
}

// run lets a task work on a goroutine of its own.
func (f *feeder) run(task func()) {
	f.wg.Go(func() {
		select {
		case f.slots <- struct{}{}:
			if f.n.feeding.Rest(f.ctx.Done(), nil) {
				task()
			}
			<-f.slots
		case <-f.ctx.Done():
		}
	})
}

// post lets the goroutine of the node do something.
func (f *feeder) post(call func() error) {
	select {
	case f.n.inbox <- event{call: call}:
	case <-f.ctx.Done():
	}
}

// turn is a piece of work for another storage.
type turn struct {
	begin time.Time
	ctx   context.Context // of what it reads
	waits backend.Waits   // since begin
}

func (f *feeder) turn() *turn {
	t := &turn{begin: time.Now()}
	t.ctx = backend.WithWaits(f.ctx, &t.waits)
	return t
}

// worked counts the piece that ends now, of which so many bytes are sent. What it has
// waited for clients is not work.
func (f *feeder) worked(t *turn, bytes int) {
	f.n.feeding.Worked(time.Since(t.begin)-t.waits.Take(), bytes)
}

// breathe waits until what was sent is nearly gone, and gives way to clients and to
// packets that wait to be processed. It reports whether the task should go on.
func (f *feeder) breathe(conn *link.Conn, t *turn, bytes int) bool {
	f.worked(t, bytes)
	defer func() { t.begin = time.Now() }()
	for busy := 0; conn.Buffered() > feedBuffer || busy < 10 && len(f.n.inbox) > 0; busy++ {
		select {
		case <-f.ctx.Done():
			return false
		case <-conn.Done():
			return false
		case <-time.After(200 * time.Microsecond):
		}
	}
	return f.n.feeding.Rest(f.ctx.Done(), conn.Done()) && f.ctx.Err() == nil
}

// fromStorage processes a packet of another storage.
func (n *Node) fromStorage(e event) error {
	p, ev := e.peer, e.link
	s := n.session
	if s == nil {
		return nil // the connection is being closed
	}
	r := pending.Request{Conn: ev.Conn, ID: ev.ID}
	switch q := ev.Packet.(type) {
	case *proto.AskFetchTransactions:
		p.server = true
		if !e.waited && s.txns.TransactionLocked(q.Max) && n.isReadable(q.Partition) {
			s.txns.WaitTransaction(r, q, q.Max)
			return nil
		}
		s.feeder.run(func() { s.feeder.transactions(ev.Conn, ev.ID, q) })
	case *proto.AskFetchObjects:
		p.server = true
		if s.txns.TransactionLocked(q.Max) {
			ev.Conn.AbortError(ev.ID, proto.ProtocolError, "transactions up to %v must be fetched first", q.Max)
			return nil
		}
		s.feeder.run(func() { s.feeder.objects(ev.Conn, ev.ID, q) })
	case *proto.AskCheckTIDRange:
		p.server = true
		if !e.waited && s.txns.TransactionLocked(q.Max) {
			s.txns.WaitTransaction(r, q, q.Max)
			return nil
		}
		if !n.checkable(q.Partition) {
			ev.Conn.AnswerError(ev.ID, proto.CheckingError, "partition %d cannot be checked here", q.Partition)
			return nil
		}
		s.feeder.run(func() {
			work := s.feeder.turn()
			defer s.feeder.worked(work, 0)
			a, err := n.db.CheckTIDs(work.ctx, q.Partition, min(q.Length, maxChunk), q.Min, min(q.Max, tid.Max))
			s.feeder.finish(ev.Conn, ev.ID, a, q.Min, err)
		})
	case *proto.AskCheckSerialRange:
		p.server = true
		if s.txns.TransactionLocked(q.Max) {
			ev.Conn.AbortError(ev.ID, proto.ProtocolError, "transactions up to %v must be checked first", q.Max)
			return nil
		}
		if !n.checkable(q.Partition) {
			ev.Conn.AnswerError(ev.ID, proto.CheckingError, "partition %d cannot be checked here", q.Partition)
			return nil
		}
		s.feeder.run(func() {
			work := s.feeder.turn()
			defer s.feeder.worked(work, 0)
			a, err := n.db.CheckSerials(work.ctx, q.Partition, min(q.Length, maxChunk), q.Min, min(q.Max, tid.Max), q.MinOID)
			s.feeder.finish(ev.Conn, ev.ID, a, q.MinOID, err)
		})
	case *proto.AddTransaction, *proto.AddObject:
		return s.replicator.received(p, ev.ID, q)
	case *proto.CloseClient:
		p.server = false
		if !p.client {
			return n.drop(p)
		}
	default:
		n.unexpected(p, ev)
	}
	return nil
}

// finish is finishRead, unless the operation has ended: then the error may be only that.
func (f *feeder) finish(conn *link.Conn, id uint32, p proto.Packet, what fmt.Stringer, err error) {
	if f.ctx.Err() == nil {
		f.n.finishRead(f.ctx, conn, id, p, what, err)
	}
}

// notReadable answers a request for a partition that is not complete here.
func notReadable(conn *link.Conn, id uint32, partition int) {
	conn.AnswerError(id, proto.ReplicationError, "partition %d not readable", partition)
}

// refusalDelay is how long another storage waits for the answer that it cannot be given
// something now.
const refusalDelay = 5 * time.Second

// failed answers after an error of the database, if it is one.
func (f *feeder) failed(conn *link.Conn, id uint32, err error) {
	switch {
	case f.ctx.Err() != nil:
		// The operation has ended.
	case errors.Is(err, backend.ErrNotFound), errors.Is(err, backend.ErrNoSuchObject):
		// Packed or dropped since it was listed.
		conn.AnswerError(id, proto.ReplicationError, "a record vanished while it was fed")
	case errors.Is(err, backend.ErrNonReadable):
		// A source of an import does not answer, or is damaged, which may take days, and the
		// other asks again at once.
		f.n.log.Info("another storage cannot be given what is not copied yet", "err", err)
		select {
		case <-time.After(refusalDelay):
		case <-conn.Context().Done():
		case <-f.ctx.Done():
			return
		}
		conn.AnswerError(id, proto.ReplicationError, "%v", err)
	case errors.Is(err, backend.ErrNotImplemented):
		conn.AnswerError(id, proto.BackendNotImplemented, "%v", err)
	default:
		if corrupt, ok := errors.AsType[*backend.CorruptError](err); ok {
			f.n.counts.damaged.Add(1)
			f.n.log.Error("stored data are damaged", "err", corrupt)
			conn.AnswerError(id, proto.ReplicationError, "%v", corrupt)
			return
		}
		f.n.fail(err)
	}
}

func (f *feeder) transactions(conn *link.Conn, id uint32, q *proto.AskFetchTransactions) {
	db := f.n.db
	if !f.n.isReadable(q.Partition) || q.Length < 1 {
		notReadable(conn, id, q.Partition)
		return
	}
	answer := &proto.AnswerFetchTransactions{}
	if q.AskPack {
		// Before anything is read: what is packed later will be packed again there.
		packed, err := db.PackedIDs(false)
		if err != nil {
			f.failed(conn, id, err)
			return
		}
		if t, ok := packed[q.Partition]; ok {
			answer.Packed = proto.Some(t)
		}
	}
	n, work := min(q.Length, maxChunk), f.turn()
	defer func() { f.worked(work, 0) }()
	list, err := db.TIDsFrom(work.ctx, q.Partition, q.Min, min(q.Max, tid.Max), n+1)
	if err != nil {
		f.failed(conn, id, err)
		return
	}
	if len(list) > n {
		answer.Next = proto.Some(list[n])
		list = list[:n]
	}
	have := make(map[tid.TID]bool, len(q.Have))
	for _, t := range q.Have {
		have[t] = true
	}
	for _, t := range list {
		if have[t] {
			delete(have, t)
			continue
		}
		m, pack, err := db.FetchTransaction(work.ctx, t)
		if err != nil {
			f.failed(conn, id, err)
			return
		}
		conn.SendAs(id, &proto.AddTransaction{TID: t, User: m.User, Description: m.Description, Extension: m.Extension,
			Packed: m.Packed, TTID: m.TTID, OIDs: m.OIDs, Pack: pack})
		if !f.breathe(conn, work, len(m.User)+len(m.Description)+len(m.Extension)+8*len(m.OIDs)) {
			return
		}
	}
	answer.Delete = slices.Sorted(maps.Keys(have))
	// Had the cell been dropped meanwhile, the list would be too short.
	if !f.n.isReadable(q.Partition) {
		notReadable(conn, id, q.Partition)
		return
	}
	conn.Answer(id, answer)
}

func (f *feeder) objects(conn *link.Conn, id uint32, q *proto.AskFetchObjects) {
	db := f.n.db
	if !f.n.isReadable(q.Partition) || q.Length < 1 {
		notReadable(conn, id, q.Partition)
		return
	}
	answer := &proto.AnswerFetchObjects{Delete: map[tid.TID][]tid.OID{}}
	n, work := min(q.Length, maxChunk), f.turn()
	defer func() { f.worked(work, 0) }()
	list, err := db.RecordsFrom(work.ctx, q.Partition, q.Min, min(q.Max, tid.Max), q.MinOID, n+1)
	if err != nil {
		f.failed(conn, id, err)
		return
	}
	if len(list) > n {
		answer.Next, answer.NextOID = proto.Some(list[n].TID), proto.Some(list[n].OID)
		list = list[:n]
	}
	have := map[backend.Key]bool{}
	for t, oids := range q.Have {
		for _, oid := range oids {
			have[backend.Key{TID: t, OID: oid}] = true
		}
	}
	for _, k := range list {
		if have[k] {
			delete(have, k)
			continue
		}
		o, err := db.FetchObject(work.ctx, k.OID, k.TID)
		if err != nil {
			f.failed(conn, id, err)
			return
		}
		add := &proto.AddObject{OID: k.OID, Serial: k.TID, ObjectData: o.ObjectData}
		if o.DataSerial != tid.Zero {
			add.DataSerial = proto.Some(o.DataSerial)
		}
		f.n.counts.fed.add(1, len(o.Data))
		conn.SendAs(id, add)
		if !f.breathe(conn, work, len(o.Data)) {
			return
		}
	}
	for k := range have {
		answer.Delete[k.TID] = append(answer.Delete[k.TID], k.OID)
	}
	if !f.n.isReadable(q.Partition) {
		notReadable(conn, id, q.Partition)
		return
	}
	conn.Answer(id, answer)
}
