package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/replica"
	"github.com/neozodb/neo/cluster/tid"
)

// fetchCount is how many transactions or records are asked for at a time, if
// Config.FetchCount does not say it.
const fetchCount = 1000

// replicator is the shell around the machine that decides about replication and checks.
type replicator struct {
	n       *Node
	s       *session
	m       *replica.Machine
	events  []replica.Event // that wait, since an effect has led to them
	working bool
	retry   *time.Timer
	asks    map[sourceRequest]uint64 // by what is asked on a link

	// What is fetched from upstream, of which the master bounds the rate.
	rate    fetchRate
	waiting *replica.Effect // an Ask that waits for it, or until the master lets it go on
	timer   *time.Timer     // of waiting
}

// sourceRequest names a request to another storage.
type sourceRequest struct {
	peer *peer
	id   uint32
}

func newReplicator(n *Node, s *session) *replicator {
	return &replicator{n: n, s: s, asks: map[sourceRequest]uint64{}, m: replica.New(replica.Settings{ID: n.id, Nodes: &n.nodes, Table: &n.table,
		Count: n.cfg.FetchCount, Pick: rand.IntN})}
}

// tell tells the machine what has happened, and does what it wants done.
func (r *replicator) tell(ev replica.Event) error {
	r.events = append(r.events, ev)
	if r.working {
		return nil
	}
	r.working = true
	defer func() { r.working = false }()
	for i := 0; i < len(r.events); i++ {
		effects := r.m.Step(time.Now(), r.events[i])
		r.events[i] = replica.Event{}
		for j := range effects {
			if effects[j].Op == replica.Replicated || effects[j].Op == replica.ShowBackup {
				r.show() // before the master tells clients of it
			}
			if err := r.carryOut(&effects[j]); err != nil {
				return err
			}
		}
	}
	r.events = r.events[:0]
	r.showCopy()
	return nil
}

// show lets clients of a backup cluster read what its cells have by now.
func (r *replicator) show() {
	if r.n.backupTID.Load() == nil {
		return
	}
	list := make([]tid.TID, r.n.table.NP())
	for p := range list {
		list[p] = r.m.Reached(p)
	}
	r.n.reached.Store(&list)
}

// later is tell for an effect that is being carried out.
func (r *replicator) later(ev replica.Event) { r.events = append(r.events, ev) }

// begin finds what is to be replicated when operation begins.
func (r *replicator) begin() error {
	list, err := r.n.db.Cells()
	if err != nil {
		return fmt.Errorf("reading the partition table: %w", err)
	}
	ev := replica.Event{Kind: replica.Begun, PackOrder: proto.Some(r.n.lastPack)}
	for _, c := range list {
		if c.ID == r.n.id {
			ev.Cells = append(ev.Cells, c)
		}
	}
	if err := r.tellBackup(ev); err != nil {
		return err
	}
	// A master that has no terms, of the Python implementation, does not say when.
	allowed := tid.Max
	if t := r.n.terms; t != nil {
		allowed = t.Packs
	}
	return r.tell(replica.Event{Kind: replica.PackAllowed, PackOrder: proto.Some(allowed)})
}

// tellBackup adds how far readable cells follow the upstream cluster.
func (r *replicator) tellBackup(ev replica.Event) error {
	if b := r.n.backupTID.Load(); b != nil {
		c, err := r.n.db.Config()
		if err != nil {
			return err
		}
		if r.n.terms != nil { // a master of the Python implementation expects nothing that it did not order
			ev.Reached = r.n.announced
		}
		ev.Backup, ev.Gap, ev.Ends = proto.Some(*b), c.BackupGap, map[int]replica.Ends{}
		for p := range r.n.table.NP() {
			if !r.n.isReadable(p) {
				continue
			}
			trans, obj, err := r.n.db.LastTIDs(r.n.ctx, p)
			if errors.Is(err, backend.ErrNotImplemented) {
				continue
			}
			if err != nil {
				return fmt.Errorf("last transactions of partition %d: %w", p, err)
			}
			ev.Ends[p] = replica.Ends{Transactions: trans, Records: obj}
		}
	}
	if err := r.tell(ev); err != nil {
		return err
	}
	r.show()
	return nil
}

// received takes a packet of the answer of a source. Left-overs of other requests are
// dropped.
func (r *replicator) received(p *peer, id uint32, q proto.Packet) error {
	ask, ok := r.asks[sourceRequest{p, id}]
	if !ok {
		return nil
	}
	if p.key.id == 0 {
		r.rate.fetched(time.Now(), r.n.terms, fetchedSize(q))
	}
	return r.tell(replica.Event{Kind: replica.Received, Ask: ask, Packet: q})
}

func (r *replicator) transactionEnded(ttid tid.TID, last proto.Opt[tid.TID]) error {
	return r.tell(replica.Event{Kind: replica.TransactionEnded, TTID: ttid, Last: last})
}

func (r *replicator) linkLost(p *peer) error {
	r.forget(p)
	return r.tell(replica.Event{Kind: replica.LinkLost, Link: p})
}

func (r *replicator) linkReplaced(old, p *peer) error {
	r.forget(old)
	return r.tell(replica.Event{Kind: replica.LinkReplaced, Link: old, New: p})
}

// forget forgets what was asked on a link that has ended.
func (r *replicator) forget(p *peer) {
	if w := r.waiting; w != nil && w.Link == any(p) {
		r.waiting = nil
	}
	maps.DeleteFunc(r.asks, func(q sourceRequest, _ uint64) bool { return q.peer == p })
}

// carryOut does one thing that the machine wants done.
func (r *replicator) carryOut(e *replica.Effect) error {
	n, s := r.n, r.s
	p, _ := e.Link.(*peer)
	switch e.Op {
	case replica.Connect:
		p, ready := n.use(target{id: e.Target.ID, addr: e.Target.Addr, upstream: e.Target.Upstream})
		r.later(replica.Event{Kind: replica.Linked, Link: p, Ready: ready, Tag: e.Tag})
	case replica.Release:
		n.release(p)
	case replica.Drop:
		return n.drop(p)
	case replica.Breach:
		p.conn.Abort()
	case replica.Satisfied:
		n.cfg.Dialer.Forget(p.conn.RemoteAddr())
	case replica.Ask:
		if p.key.id == 0 && r.fetchLater(e) {
			return nil
		}
		ask := e.Ask
		if q, ok := e.Packet.(*proto.AskFetchObjects); ok && p.key.id == 0 {
			q.Length = r.rate.piece(n.terms, q.Length) // what the source lacks is only compared up to where it goes on
		}
		id := p.conn.Ask(e.Packet.(proto.Request), question{s, func(ev link.Event) error {
			delete(r.asks, sourceRequest{p, ev.ID})
			return r.tell(replica.Event{Kind: replica.Answered, Ask: ask, Packet: ev.Packet})
		}})
		r.asks[sourceRequest{p, id}] = ask
	case replica.AskMaster:
		tag := e.Tag
		n.master.conn.Ask(e.Packet.(proto.Request), question{s, func(ev link.Event) error {
			return r.tell(replica.Event{Kind: replica.MasterAnswered, Packet: ev.Packet, Tag: tag})
		}})
	case replica.Wake:
		if r.retry != nil {
			r.retry.Stop()
		}
		r.retry = r.remind(e.Delay, replica.Event{Kind: replica.Woken})
	case replica.Remind:
		r.remind(e.Delay, replica.Event{Kind: replica.Reminded, Tag: e.Tag})
	case replica.TellMaster:
		if n.master != nil {
			n.master.conn.Send(e.Packet)
		}
	case replica.SeeLocked:
		r.later(replica.Event{Kind: replica.LockedSeen, Locked: s.txns.TransactionLocked(e.Max), Tag: e.Tag})
	case replica.Digest:
		r.digest(e)
	case replica.ListTail:
		r.listTail(e)
	case replica.ListTransactions, replica.ListRecords, replica.Examine:
		return r.read(e)
	case replica.Commit:
		return n.commit()
	case replica.ShowBackup:
		t := e.TID
		n.backupTID.Store(&t)
	case replica.TellStored:
		if n.master != nil && n.terms != nil {
			n.master.conn.Send((&following.Stored{TID: e.TID, Gap: e.Gap}).Packet())
		}
	case replica.SignPacks:
		missing, _, err := n.db.SignPackOrders(e.Approved, e.Rejected)
		if err != nil {
			return fmt.Errorf("signing pack orders: %w", err)
		}
		r.later(replica.Event{Kind: replica.PackUnknown, Missing: missing, Approved: e.Approved})
	case replica.Replicating:
		s.txns.Replicating(e.Partitions)
	case replica.Readable:
		s.txns.Readable(e.Partitions)
	case replica.Discarded:
		return s.txns.Discarded(e.Partitions)
	case replica.Replicated:
		return s.txns.Replicated(e.Partition, e.TID)
	case replica.Pack:
		return s.worker.maybePack()
	case replica.ReadKept:
		return s.worker.readKept()
	case replica.TellPacked:
		return n.notifyPacked(false)
	case replica.Log:
		n.log.Log(context.Background(), e.Line.Level, e.Line.Text, e.Line.Attrs...)
	default:
		return r.write(e)
	}
	return nil
}

// remind tells the machine something later, unless operation ends.
func (r *replicator) remind(d time.Duration, ev replica.Event) *time.Timer {
	return time.AfterFunc(d, func() {
		r.n.post(func() error {
			if r.n.session != r.s {
				return nil
			}
			return r.tell(ev)
		})
	})
}

// read reads what the machine wants to know of the database.
func (r *replicator) read(e *replica.Effect) error {
	db := r.n.db
	ev := replica.Event{Kind: replica.Listed, Tag: e.Tag}
	var err error
	switch e.Op {
	case replica.ListTransactions:
		if e.Packed {
			ids, err := db.PackedIDs(false)
			switch {
			case err == nil:
				ev.PackOrder = proto.Some(ids[e.Partition])
			case !errors.Is(err, backend.ErrNotImplemented):
				return fmt.Errorf("completed pack orders: %w", err)
			}
		}
		if ev.TIDs, err = db.TIDsFrom(r.n.ctx, e.Partition, e.Min.TID, e.Max, e.Count); err != nil {
			return fmt.Errorf("listing transactions of partition %d: %w", e.Partition, err)
		}
	case replica.ListRecords:
		if ev.Keys, err = db.RecordsFrom(r.n.ctx, e.Partition, e.Min.TID, e.Max, e.Min.OID, e.Count); err != nil {
			return fmt.Errorf("listing records of partition %d: %w", e.Partition, err)
		}
	case replica.Examine:
		ev.Kind = replica.Examined
		if ev.Record, err = r.examine(e); err != nil {
			return fmt.Errorf("examining object %v at %v: %w", e.Record.OID, e.Record.TID, err)
		}
	}
	r.later(ev)
	return nil
}

// examine reads what is here of an object, as far as the decision about its record can
// depend on it.
func (r *replicator) examine(e *replica.Effect) (x replica.Record, err error) {
	db, k := r.n.db, e.Record
	if e.Until != tid.Zero {
		if x.Last, x.Deletion, err = db.RecordBefore(r.n.ctx, k.OID, e.Until+1); err != nil || x.Last != k.TID {
			return x, err
		}
	}
	if x.Before, _, err = db.RecordBefore(r.n.ctx, k.OID, k.TID); err != nil {
		return x, err
	}
	if e.Happened && x.Deletion && x.Before != tid.Zero {
		list, err := db.TIDsFrom(r.n.ctx, k.TID.Partition(r.n.table.NP()), k.TID, k.TID, 1)
		if err != nil {
			return x, err
		}
		x.Happened = len(list) > 0
	}
	return x, nil
}

// write writes to the database, which a later effect commits.
func (r *replicator) write(e *replica.Effect) error {
	db, k := r.n.db, e.Record
	switch e.Op {
	case replica.AddTransaction:
		q := e.Packet.(*proto.AddTransaction)
		m := backend.Meta{User: q.User, Description: q.Description, Extension: q.Extension, Packed: q.Packed, TTID: q.TTID, OIDs: q.OIDs}
		if err := db.AddTransaction(q.TID, m, q.Pack); err != nil {
			return fmt.Errorf("replicating transaction %v: %w", q.TID, err)
		}
	case replica.AddRecord:
		q := e.Packet.(*proto.AddObject)
		if err := db.AddObject(q.OID, q.Serial, q.ObjectData, q.DataSerial); err != nil {
			return fmt.Errorf("replicating object %v at %v: %w", q.OID, q.Serial, err)
		}
		r.n.counts.fetched.add(1, len(q.Data))
	case replica.DeleteTransaction:
		if err := db.DeleteTransaction(k.TID); err != nil {
			return fmt.Errorf("deleting transaction %v: %w", k.TID, err)
		}
	case replica.DeleteRecord:
		if err := db.DeleteObject(k.OID, k.TID); err != nil {
			return fmt.Errorf("deleting object %v at %v: %w", k.OID, k.TID, err)
		}
	case replica.DeleteBefore:
		for {
			t, _, err := db.RecordBefore(r.n.ctx, k.OID, k.TID)
			if err == nil && t != tid.Zero {
				err = db.DeleteObject(k.OID, t)
			}
			if err != nil {
				return fmt.Errorf("deleting object %v before %v: %w", k.OID, k.TID, err)
			}
			if t == tid.Zero {
				return nil
			}
		}
	case replica.SetComplete:
		if err := db.SetCellTID(e.Partition, e.TID); err != nil {
			return fmt.Errorf("storing the progress of partition %d: %w", e.Partition, err)
		}
	case replica.SetBackup:
		if err := db.SetBackupTID(proto.Some(e.TID)); err != nil {
			return fmt.Errorf("storing the backup TID: %w", err)
		}
	case replica.SetGap:
		if err := db.SetBackupGap(e.Gap); err != nil {
			return fmt.Errorf("storing the gap of the backup: %w", err)
		}
	case replica.LowerPacked:
		if err := db.LowerPacked(e.Partition, e.TID); err != nil {
			return fmt.Errorf("recording the pack of partition %d: %w", e.Partition, err)
		}
	case replica.NoteKept:
		if err := db.NoteKept(e.Partition, e.TID); err != nil {
			return fmt.Errorf("recording deletions of partition %d: %w", e.Partition, err)
		}
	default:
		return fmt.Errorf("the replication wants %d done, which is unknown", e.Op)
	}
	return nil
}
