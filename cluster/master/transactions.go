package master

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// transaction is one that has begun and has not ended.
type transaction struct {
	ttid      tid.TID
	tid       tid.TID // once prepared, or imposed by the client
	imposed   bool
	prepared  bool  // its finish was asked for: it can no longer be aborted
	client    *peer // nil: its client has left after asking for the finish
	request   uint32
	asked     time.Time      // when its finish was asked for
	readiness uint64         // storages that became ready later do not have it in full
	failed    []proto.NodeID // storages that the client could not write to

	oids       []tid.OID
	deleted    []int // partitions of deleted objects
	waiting    []*peer
	involved   []*peer
	registered []*peer // storages that replicate and want to know its end
	finals     []asker // clients that want to know its end
	pack       *packOrder
}

// asker is a request that is answered later.
type asker struct {
	peer *peer
	id   uint32
}

// transactions are those that have begun, the queue in which they are committed,
// and the requests that wait for one of them to end or for a storage.
type transactions struct {
	pending map[tid.TID]*transaction
	queue   []*transaction // by TID: prepared ones, and those with an imposed TID
	delayed []delayed
	running bool // the delayed requests are being retried
	again   bool // and must be so once more
}

type delayed struct {
	asker
	packet proto.Packet
}

func (t *transactions) reset() {
	t.pending = map[tid.TID]*transaction{}
	t.queue, t.delayed = nil, nil
}

// unprepared returns how many transactions can still be aborted.
func (t *transactions) unprepared() (n uint64) {
	for _, x := range t.pending {
		if !x.prepared {
			n++
		}
	}
	return n
}

// queued returns the greatest TID that waits for its commit.
func (t *transactions) queued() tid.TID {
	if n := len(t.queue); n > 0 {
		return t.queue[n-1].tid
	}
	return tid.Zero
}

// last returns the greatest id in use: of a pending transaction, or else the
// last committed one.
func (t *transactions) last(committed tid.TID) tid.TID {
	last := max(committed, t.queued())
	for ttid := range t.pending {
		last = max(last, ttid)
	}
	return last
}

func (t *transactions) ttids() []tid.TID { return slices.Sorted(maps.Keys(t.pending)) }

// begin starts a transaction, or reports that it must wait. It waits while a
// storage is starting, as nobody could tell whether it gets the transaction in
// full, and for ever once the cluster stops. Where ids are imposed it may be refused:
// that costs no link, which a door shares among many users.
func (m *Machine) begin(p *peer, id uint32, pkt *proto.AskBeginTransaction) (done bool) {
	if m.starting > 0 || m.state != proto.Running {
		return false
	}
	t := &transaction{client: p, readiness: m.counter}
	if pkt.TID.OK {
		if err := m.checkImposed(p, pkt.TID.V); err != nil {
			m.answerError(p, id, proto.ProtocolError, "%s", err.Message)
			return true
		}
		t.ttid, t.tid, t.imposed = pkt.TID.V, pkt.TID.V, true
		m.txns.queue = append(m.txns.queue, t)
	} else {
		for _, o := range m.txns.queue {
			if o.imposed && !o.prepared {
				m.answerError(p, id, proto.ProtocolError, "transaction %v with an imposed id is pending", o.ttid)
				return true
			}
		}
		t.ttid = m.ids.next(m.now, m.txns.queued())
	}
	m.txns.pending[t.ttid] = t
	m.counts.begun++
	m.answer(p, id, &proto.AnswerBeginTransaction{TTID: t.ttid})
	return true
}

// checkImposed says why a client may not choose this TID. A client that copies a
// database may have several such transactions at once, in the order of their
// TIDs, as long as nobody else has any: they are queued for commit at once.
func (m *Machine) checkImposed(p *peer, t tid.TID) *proto.Error {
	if t <= m.ids.committed || t > tid.Max-1 {
		return proto.Errorf(proto.ProtocolError, "the imposed id %v is not above the last committed %v", t, m.ids.committed)
	}
	if len(m.txns.pending) > len(m.txns.queue) {
		return proto.Errorf(proto.ProtocolError, "the imposed id %v conflicts with pending transactions", t)
	}
	for _, o := range m.txns.queue {
		if !o.imposed || o.client != p || o.tid >= t {
			return proto.Errorf(proto.ProtocolError, "the imposed id %v conflicts with pending transaction %v", t, o.ttid)
		}
	}
	return nil
}

// failedVote records that a client could not write a transaction everywhere, or
// reports that the answer must wait: concurrent transactions must not condemn
// storages that together hold the only copies of a partition.
func (m *Machine) failedVote(p *peer, id uint32, pkt *proto.FailedVote) (done bool) {
	t := m.own(p, pkt.TTID)
	if t == nil || t.prepared {
		m.refuse(p, id, pkt, "transaction %v is not being voted", pkt.TTID)
		return true
	}
	var failed []proto.NodeID
	for _, nid := range pkt.IDs {
		if s := m.stores[nid]; s != nil && m.holdsInFull(s, t) && !slices.Contains(failed, nid) {
			failed = append(failed, nid)
		}
	}
	if len(failed) > 0 {
		if !m.operationalWithout(failed) {
			m.answerError(p, id, proto.IncompleteTransaction, "transaction %v would be lost", t.ttid)
			return true
		}
		all := slices.Clone(failed)
		for _, o := range m.txns.pending {
			if o != t {
				all = append(all, o.failed...)
			}
		}
		if !m.operationalWithout(all) {
			return false
		}
	}
	t.failed = failed
	m.answerError(p, id, proto.Ack, "")
	return true
}

// holdsInFull reports whether a storage was ready when a transaction began, so
// that it got all of it.
func (m *Machine) holdsInFull(s *peer, t *transaction) bool {
	return s.ready > 0 && s.ready <= t.readiness
}

func (m *Machine) operationalWithout(ids []proto.NodeID) bool {
	return m.coveredWithout(ids...) && m.table.Operational(func(id proto.NodeID) bool { return m.running(id) && !slices.Contains(ids, id) })
}

// own returns the pending transaction of a client, or nil.
func (m *Machine) own(p *peer, ttid tid.TID) *transaction {
	if t := m.txns.pending[ttid]; t != nil && t.client == p {
		return t
	}
	return nil
}

// delay keeps a request until it can be answered.
func (m *Machine) delay(p *peer, id uint32, pkt proto.Packet) {
	m.txns.delayed = append(m.txns.delayed, delayed{asker{p, id}, pkt})
}

// retry answers the delayed requests that can now be, in their order. It is not
// re-entrant: if answering one makes another possible, it starts over.
func (m *Machine) retry() {
	x := &m.txns
	x.again = true
	if x.running {
		return
	}
	x.running = true
	for x.again && len(x.delayed) > 0 {
		x.again = false
		for i := 0; i < len(x.delayed) && !x.again; {
			d := x.delayed[i]
			if d.peer.gone || m.tryDelayed(d) {
				// What was done may have changed the queue, but only by a reset.
				if i < len(x.delayed) && x.delayed[i] == d {
					x.delayed = slices.Delete(x.delayed, i, i+1)
				}
				continue
			}
			i++
		}
	}
	x.running = false
}

func (m *Machine) tryDelayed(d delayed) bool {
	switch pkt := d.packet.(type) {
	case *proto.AskBeginTransaction:
		return m.begin(d.peer, d.id, pkt)
	case *proto.FailedVote:
		if m.own(d.peer, pkt.TTID) == nil { // aborted meanwhile
			m.answerError(d.peer, d.id, proto.IncompleteTransaction, "transaction %v was aborted", pkt.TTID)
			return true
		}
		return m.failedVote(d.peer, d.id, pkt)
	}
	panic("master: delayed packet of an unknown type")
}

// lockAnswered notes that a storage has locked a transaction.
func (m *Machine) lockAnswered(p *peer, ttid tid.TID, pkt proto.Packet) {
	if _, ok := pkt.(*proto.AnswerInformationLocked); !ok {
		m.log(slog.LevelError, "storage cannot lock", "node", p.String(), "ttid", ttid.String(), "answer", errorText(pkt))
		m.close(p) // its cells miss the transaction
		return
	}
	t := m.txns.pending[ttid]
	if t == nil {
		return
	}
	if i := slices.Index(t.waiting, p); i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
		if len(t.waiting) == 0 {
			m.commitReady()
		}
	}
}

func errorText(pkt proto.Packet) string {
	if e, ok := pkt.(*proto.Error); ok {
		return e.Error()
	}
	return "none"
}

// commitReady commits the transactions at the head of the queue that every
// storage has locked: strictly in the order of their TIDs.
func (m *Machine) commitReady() {
	x := &m.txns
	n := 0
	for len(x.queue) > 0 && x.queue[0].prepared && len(x.queue[0].waiting) == 0 {
		t := x.queue[0]
		x.queue = slices.Delete(x.queue, 0, 1)
		delete(x.pending, t.ttid)
		m.commit(t)
		n++
	}
	if n > 0 {
		m.retry()
		m.stopIfIdle()
	}
}

// commit announces a transaction. The client is told before the storages unlock,
// and the other clients before they can read what it wrote.
func (m *Machine) commit(t *transaction) {
	m.counts.commits.Observe(m.now.Sub(t.asked))
	var invalidate *proto.InvalidateObjects
	for _, p := range m.members {
		switch {
		case p.node.Type != proto.Client:
		case p == t.client:
			m.answer(p, t.request, &proto.AnswerTransactionFinished{TTID: t.ttid, TID: t.tid})
		case p.backups != nil:
			m.notify(p, &proto.InvalidatePartitions{TID: t.tid, Partitions: m.modified(t)})
		default:
			if invalidate == nil {
				invalidate = &proto.InvalidateObjects{TID: t.tid, OIDs: t.oids}
			}
			m.notify(p, invalidate)
		}
	}
	unlock := &proto.NotifyUnlockInformation{TTID: t.ttid}
	for _, s := range t.involved {
		m.notify(s, unlock)
	}
	if t.pack != nil {
		m.packCommitted(t.pack)
		m.tellPacks()
	}
	m.board.commits++
	m.tellCommits()
	for _, s := range t.registered {
		m.notify(s, &proto.NotifyTransactionFinished{TTID: t.ttid, Max: t.tid})
	}
	for _, a := range t.finals {
		m.answer(a.peer, a.id, &proto.AnswerFinalTID{TID: proto.Some(t.tid)})
	}
	m.ids.committed, m.ids.known = t.tid, t.tid
	m.seen.committed(t, m.modified(t), m.table.NP())
	m.ids.first = min(m.ids.first, t.tid)
	m.safePTID = m.table.PTID().V
}

// modified returns the partitions whose objects a transaction changed.
func (m *Machine) modified(t *transaction) []int {
	list := slices.Clone(t.deleted)
	for _, oid := range t.oids {
		list = append(list, oid.Partition(m.table.NP()))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// discard forgets a transaction that was not prepared and tells the storages
// that wait for its end, and those of also.
func (m *Machine) discard(t *transaction, also []*peer) {
	m.counts.aborted++
	delete(m.txns.pending, t.ttid)
	m.txns.queue = slices.DeleteFunc(m.txns.queue, func(o *transaction) bool { return o == t })
	for _, s := range t.registered {
		if !slices.Contains(also, s) {
			also = append(also, s)
		}
	}
	for _, s := range also {
		m.notify(s, &proto.AbortTransaction{TTID: t.ttid})
	}
	for _, a := range t.finals {
		m.answer(a.peer, a.id, &proto.AnswerFinalTID{})
	}
}

// ended follows the end of transactions without commit: others may have waited.
func (m *Machine) transactionsEnded() {
	m.commitReady()
	m.retry()
	m.stopIfIdle()
}

// clientLost drops what a client has begun. What it has asked to finish goes on
// without it.
func (m *Machine) clientLost(p *peer) {
	ended := false
	for _, ttid := range m.txns.ttids() {
		t := m.txns.pending[ttid]
		if t.client != p {
			continue
		}
		if t.prepared {
			t.client = nil
		} else {
			m.discard(t, nil)
			ended = true
		}
	}
	m.pack.clientLost(p)
	// The storages abort what they hold for it, but not what they have locked:
	// the order to lock was sent before this.
	m.setState(p.node, proto.NodeUnknown)
	if ended {
		m.transactionsEnded()
	}
}
