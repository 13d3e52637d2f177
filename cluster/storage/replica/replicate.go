package replica

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// progress is how far a cell is replicated.
type progress struct {
	nextTrans, nextObj tid.TID // first ones not replicated yet
	// whole is the first TID, of a cell in a backup cluster, up to which it was not
	// announced. What is here from then on may have holes.
	whole tid.TID
	// blocker is the last unfinished transaction that the cell has to wait for:
	// tid.Invalid until the master answered, absent if there is none.
	blocker            proto.Opt[tid.TID]
	approved, rejected []tid.TID // of pack orders that are not here yet
	missed             missedPacks
	failures           int
	notBefore          time.Time // of the next attempt
	// Of a cell that is repaired: the only source, and whether what differs there is
	// still being deleted.
	from proto.NodeID
	held bool
}

// hold lets a cell wait, to be replicated from a given node.
func (m *Machine) hold(partition int, from proto.NodeID) {
	if c := m.cells[partition]; c != nil {
		c.held, c.from = true, from
	}
}

// unhold lets a cell be replicated, from the first transaction on.
func (m *Machine) unhold(partition int) {
	if c := m.cells[partition]; c != nil {
		c.held = false
	}
	m.next()
}

// origin is a source of replication ordered by the master of a backup cluster.
type origin struct {
	addr     proto.Address
	upstream string
}

// fetch is the replication under way.
type fetch struct {
	partition int
	cell      *progress
	origin    origin
	max       tid.TID
	link      Link
	started   bool
	pass      pass
	ask       uint64 // the outstanding request
	records   bool   // else transactions are asked for
	first     bool   // of the transactions
	min, last tid.TID
	minOID    tid.OID
	// listed is the last item that the source was told to be here, if it was not told all.
	listed  proto.Opt[backend.Key]
	lacking []backend.Key             // what the source has not, still to be looked at
	answer  *proto.AnswerFetchObjects // to go on with then
	deleted int                       // objects, by the pass for missed packs
	// lone is the last deletion received of an object that has nothing before it here: the
	// source keeps it for another replica.
	lone tid.TID
}

// Copying returns which cell is being replicated: records up to reached are there, tid.Zero as long
// as transactions are copied, and end is the last one that is wanted.
func (m *Machine) Copying() (partition int, reached, end tid.TID, active bool) {
	f := m.current
	if f == nil || !f.started {
		return 0, tid.Zero, tid.Zero, false
	}
	if f.records && f.pass == passFetch && f.min > 0 {
		reached = f.min - 1
	}
	return f.partition, min(reached, tid.Max), min(f.max, tid.Max), true
}

// following returns the TID after t, or Zero if t means that there is nothing.
func following(t tid.TID) tid.TID {
	if t == tid.Zero {
		return t
	}
	return t + 1
}

// begun finds what is to be replicated when operation begins.
func (m *Machine) begun(ev *Event) {
	m.lastPack = ev.PackOrder.V
	var outdated []int
	for _, c := range ev.Cells {
		switch {
		case c.State == proto.OutOfDate:
			next := following(c.TID)
			m.cells[c.Partition] = &progress{nextTrans: next, nextObj: next, blocker: proto.Some(tid.Invalid)}
			outdated = append(outdated, c.Partition)
		case c.State.Readable():
			m.cells[c.Partition] = &progress{}
		}
	}
	m.enterBackup(ev)
	m.outdated(outdated)
}

// enterBackup finds how far readable cells follow the upstream cluster.
func (m *Machine) enterBackup(ev *Event) {
	m.backup, m.gap = ev.Backup, ev.Gap
	b := ev.Backup
	if !b.OK {
		return
	}
	for p, c := range m.cells {
		c.whole = following(b.V)
		if ends, known := ev.Ends[p]; known && m.readable(p) {
			c.nextTrans = max(following(b.V), following(ends.Transactions))
			c.nextObj = max(following(b.V), ends.Records) // the last transaction may be there in part
		}
	}
	for _, p := range m.partitions() {
		if t := ev.Reached[p]; t > b.V && m.readable(p) {
			m.cells[p].whole = t + 1
			m.do(Effect{Op: TellMaster, Packet: &proto.NotifyReplicationDone{Partition: p, TID: t}})
		}
	}
	m.tellStored()
}

// unfinishedAsked is the tag of a question for unfinished transactions.
type unfinishedAsked map[int]*progress

// outdated asks the master what must be waited for before cells are complete.
func (m *Machine) outdated(partitions []int) {
	if len(partitions) == 0 {
		return
	}
	asked := unfinishedAsked{}
	for _, p := range partitions {
		asked[p] = m.cells[p]
		m.incomplete[p] = true
	}
	m.do(Effect{Op: Replicating, Partitions: partitions})
	m.do(Effect{Op: AskMaster, Packet: &proto.AskUnfinishedTransactions{Partitions: partitions}, Tag: asked})
}

func (m *Machine) masterAnswered(ev *Event) {
	switch tag := ev.Tag.(type) {
	case unfinishedAsked:
		m.unfinishedKnown(tag, ev.Packet)
	case ordersAsked:
		m.orderKnown(tag, ev.Packet)
	case packsAsked:
		m.checks.packsKnown(tag, ev.Packet)
	}
}

func (m *Machine) unfinishedKnown(asked unfinishedAsked, p proto.Packet) {
	a, ok := p.(*proto.AnswerUnfinishedTransactions)
	if !ok {
		return
	}
	blocker := proto.Opt[tid.TID]{}
	for _, t := range a.TTIDs {
		m.unfinished[t] = true
		blocker = proto.Some(max(blocker.V, t))
	}
	for p, c := range asked {
		if m.cells[p] == c { // else discarded meanwhile, perhaps assigned again
			c.blocker = blocker
			m.todo[p] = a.LastTID
		}
	}
	m.next()
}

// transactionEnded says how a transaction ended: last is the last TID then,
// absent if it was aborted.
func (m *Machine) transactionEnded(ttid tid.TID, last proto.Opt[tid.TID]) {
	if !m.unfinished[ttid] {
		return
	}
	delete(m.unfinished, ttid)
	first := tid.Invalid
	for t := range m.unfinished {
		first = min(first, t)
	}
	for _, p := range m.partitions() {
		c := m.cells[p]
		if !c.blocker.OK || c.blocker.V == tid.Invalid {
			continue
		}
		if last.OK {
			m.todo[p] = max(m.todo[p], last.V)
		}
		if c.blocker.V >= first {
			continue
		}
		if _, more := m.todo[p]; !more && !m.busy(p) {
			// All of them were aborted, and the cell is replicated.
			m.settle(p, c, proto.Some(c.blocker.V))
		}
		c.blocker = proto.Opt[tid.TID]{}
	}
	m.next()
}

// replicate processes an order of the master of a backup cluster.
func (m *Machine) replicate(q *proto.Replicate) {
	advanced := false
	for _, p := range slices.Sorted(maps.Keys(q.Sources)) {
		c := m.cells[p]
		if c == nil {
			continue
		}
		if addr := q.Sources[p]; !addr.IsZero() {
			m.unlinked = m.unlinked && q.Upstream == ""
			m.sources[p] = origin{addr, q.Upstream}
			if m.busy(p) && m.current.started && m.current.max > q.TID {
				m.abort() // something after it is held
			}
			m.todo[p] = q.TID
			continue
		}
		if _, more := m.todo[p]; !more && !m.busy(p) {
			// Nothing of the upstream cluster has touched the cell since it was announced.
			c.nextTrans, c.nextObj, c.whole = q.TID+1, q.TID+1, max(c.whole, q.TID+1)
			advanced = true
		}
	}
	if advanced {
		m.storeBackup()
		m.packApproved()
	}
	m.next()
}

// storeBackup records how far all cells follow the upstream cluster, if that has
// changed, makes it durable, and shows it.
func (m *Machine) storeBackup() {
	if !m.backup.OK {
		return
	}
	next, found := tid.Invalid, false
	for p, c := range m.cells {
		if m.readable(p) {
			next, found = min(next, c.whole), true
		}
	}
	t := tid.Zero
	if found && next != tid.Zero {
		t = next - 1
	}
	if t == m.backup.V {
		return
	}
	m.do(Effect{Op: SetBackup, TID: t})
	m.commit()
	m.backup = proto.Some(t)
	m.do(Effect{Op: ShowBackup, TID: t})
	if max(m.lastPack, m.gap[1]) > m.allowed {
		m.tellStored()
	}
}

// signLater remembers decisions on pack orders that are not here yet.
func (m *Machine) signLater(missing, approved []tid.TID) {
	for _, id := range missing {
		c := m.cells[id.Partition(m.set.Table.NP())]
		switch {
		case c == nil:
		case slices.Contains(approved, id):
			c.approved = append(c.approved, id)
		default:
			c.rejected = append(c.rejected, id)
		}
	}
}

// next begins the replication of the partition that is the furthest behind.
func (m *Machine) next() {
	if m.current != nil {
		return
	}
	var best *fetch
	var from Target
	wait := time.Duration(-1)
	for _, p := range slices.Sorted(maps.Keys(m.todo)) {
		c := m.cells[p]
		if c == nil {
			delete(m.todo, p)
			continue
		}
		if c.held {
			continue
		}
		if d := c.notBefore.Sub(m.now); d > 0 {
			if wait < 0 || d < wait {
				wait = d
			}
			continue
		}
		if best != nil && !before(c, best.cell) {
			continue
		}
		t, ok := m.source(p)
		if !ok {
			c.notBefore = m.now.Add(time.Second) // until a node is running again
			if wait < 0 || time.Second < wait {
				wait = time.Second
			}
			continue
		}
		best, from = &fetch{partition: p, cell: c, origin: m.sources[p]}, t
	}
	if best == nil {
		if wait >= 0 {
			m.do(Effect{Op: Wake, Delay: wait})
		}
		return
	}
	m.current = best
	m.do(Effect{Op: Connect, Partition: best.partition, Target: from, Tag: best})
}

// linked takes the link for what is to be replicated next.
func (m *Machine) linked(ev *Event) {
	f := m.current
	if f == nil || ev.Tag != any(f) {
		if ev.Link != m.link { // the partition was given up meanwhile
			m.release(ev.Link)
		}
		return
	}
	f.link = ev.Link
	if m.link != nil && m.link != ev.Link {
		m.release(m.link)
	}
	m.link = ev.Link
	if ev.Ready {
		m.begin(f)
	}
}

// before reports whether a cell is further behind than another one.
func before(a, b *progress) bool {
	if a.nextObj != b.nextObj {
		return a.nextObj < b.nextObj
	}
	return !a.blocker.OK && b.blocker.OK
}

// source chooses where to replicate a partition from.
func (m *Machine) source(partition int) (Target, bool) {
	if o, ok := m.sources[partition]; ok {
		if o.upstream != "" {
			return Target{Addr: o.addr, Upstream: o.upstream}, true
		}
		node := m.set.Nodes.ByAddr(o.addr)
		if node == nil || node.ID == m.set.ID {
			return Target{}, false
		}
		return Target{ID: node.ID, Addr: o.addr}, true
	}
	var list []Target
	for _, c := range m.set.Table.Row(partition) {
		node := m.set.Nodes.ByID(c.ID)
		if from := m.cells[partition].from; from != 0 && c.ID != from {
			continue
		}
		if c.ID != m.set.ID && c.State.Readable() && node != nil && node.State == proto.NodeRunning && !node.Addr.IsZero() {
			list = append(list, Target{ID: c.ID, Addr: node.Addr})
		}
	}
	if len(list) == 0 {
		return Target{}, false
	}
	return list[m.set.Pick(len(list))], true
}

// begin asks for the first transactions.
func (m *Machine) begin(f *fetch) {
	if m.sources[f.partition] != f.origin { // ordered from elsewhere meanwhile
		m.abort()
		return
	}
	f.started = true
	if len(f.cell.missed.orders) > 0 {
		m.beginMissed(f)
		return
	}
	f.max = m.todo[f.partition]
	f.last = f.max
	if m.backup.OK && f.origin.upstream == "" && m.readable(f.partition) {
		// What came from upstream beyond this may lack what a cell of this cluster has.
		f.cell.nextTrans, f.cell.nextObj = min(f.cell.nextTrans, f.cell.whole), min(f.cell.nextObj, f.cell.whole)
	}
	f.min = f.cell.nextTrans
	delete(m.todo, f.partition)
	if m.caughtUp.since.IsZero() && f.origin.upstream == "" {
		m.caughtUp.since = m.now
	}
	m.log(slog.LevelDebug, "replicating", "partition", f.partition, "after", f.min, "up_to", f.max, "peer", f.link)
	m.listTransactions(true)
}

// listTransactions asks for the transactions of this node, to list them to the source.
func (m *Machine) listTransactions(first bool) {
	f := m.current
	f.records, f.first = false, first
	m.do(Effect{Op: ListTransactions, Partition: f.partition, Min: backend.Key{TID: f.min}, Max: f.last, Count: m.set.Count, Tag: f,
		Packed: first && !f.cell.missed.after.OK})
}

// completeChunk records what a chunk of records has completed, and goes on with the next one.
func (m *Machine) completeChunk(first bool) {
	f := m.current
	if !first {
		f.cell.nextObj = f.min
		m.record(f.partition, max(f.min, 1)-1)
	}
	m.sign(f.cell)
	m.commit()
	m.listRecords()
}

// listRecords asks for the records of this node, to list them to the source.
func (m *Machine) listRecords() {
	f := m.current
	f.records = true
	m.do(Effect{Op: ListRecords, Partition: f.partition, Min: backend.Key{TID: f.min, OID: f.minOID}, Max: f.last, Count: m.set.Count, Tag: f})
}

// listed asks the source for the next chunk.
func (m *Machine) listed(ev *Event) {
	f := m.current
	if f == nil || ev.Tag != any(f) {
		return
	}
	m.asks++
	f.ask, f.listed = m.asks, proto.Opt[backend.Key]{}
	e := Effect{Op: Ask, Link: f.link, Ask: f.ask}
	if f.records {
		if n := len(ev.Keys); n == m.set.Count {
			f.listed = proto.Some(ev.Keys[n-1])
		}
		have := map[tid.TID][]tid.OID{}
		for _, k := range ev.Keys {
			have[k.TID] = append(have[k.TID], k.OID)
		}
		e.Packet = &proto.AskFetchObjects{Partition: f.partition, Length: m.set.Count, Min: f.min, Max: f.last, MinOID: f.minOID, Have: have}
	} else {
		if ev.PackOrder.OK {
			m.notePacked(f, ev.PackOrder.V)
		}
		if n := len(ev.TIDs); n == m.set.Count {
			f.listed = proto.Some(backend.Key{TID: ev.TIDs[n-1]})
		}
		e.Packet = &proto.AskFetchTransactions{Partition: f.partition, Length: m.set.Count, Min: f.min, Max: f.last, Have: ev.TIDs, AskPack: f.first}
	}
	m.do(e)
}

// record stores how far an outdated cell is complete.
func (m *Machine) record(partition int, t tid.TID) {
	if m.set.Table.Cell(partition, m.set.ID) == proto.OutOfDate {
		m.do(Effect{Op: SetComplete, Partition: partition, TID: t})
	}
}

// sign applies decisions on pack orders that came before the orders.
func (m *Machine) sign(c *progress) {
	if len(c.approved)+len(c.rejected) == 0 {
		return
	}
	m.do(Effect{Op: SignPacks, Approved: c.approved, Rejected: c.rejected})
	c.approved, c.rejected = nil, nil
}

// received stores what a source sends. Left-overs of an aborted replication must not
// be stored.
func (m *Machine) received(ev *Event) {
	f := m.current
	if f == nil || !f.started || f.ask != ev.Ask {
		return
	}
	switch q := ev.Packet.(type) {
	case *proto.AddTransaction:
		m.do(Effect{Op: AddTransaction, Packet: q})
	case *proto.AddObject:
		if f.pass == passDelete {
			return
		}
		m.do(Effect{Op: AddRecord, Packet: q})
		if q.Checksum == proto.ZeroHash && len(q.Data) == 0 {
			m.do(Effect{Op: Examine, Record: backend.Key{TID: q.Serial, OID: q.OID}, Tag: deletionReceived{f, q.Serial}})
		}
	}
}

// deletionReceived is the tag of the question for what a deletion deletes.
type deletionReceived struct {
	fetch *fetch
	tid   tid.TID
}

// lackingAt is the tag of the question for a record that the source has not.
type lackingAt struct {
	fetch *fetch
	key   backend.Key
	asked bool    // whether its transaction is here
	until tid.TID // the time of the pack that may have removed it, of a pass for missed packs
}

func (m *Machine) examined(ev *Event) {
	switch tag := ev.Tag.(type) {
	case deletionReceived:
		if ev.Record.Before == tid.Zero {
			tag.fetch.lone = max(tag.fetch.lone, tag.tid)
		}
	case lackingAt:
		if tag.fetch == m.current {
			m.lacks(tag, ev.Record)
		}
	}
}

// answered processes the end of a chunk.
func (m *Machine) answered(ev *Event) {
	f := m.current
	if f == nil || f.ask != ev.Ask {
		return
	}
	if f.lone != tid.Zero {
		m.do(Effect{Op: NoteKept, Partition: f.partition, TID: f.lone})
		f.lone = tid.Zero
	}
	switch a := ev.Packet.(type) {
	case *proto.AnswerFetchTransactions:
		m.transactionsFetched(f, a)
		return
	case *proto.AnswerFetchObjects:
		f.answer, f.lacking = a, notThere(a)
		m.examineNext(f)
		return
	case *proto.Error:
		m.log(slog.LevelWarn, "replication refused", "partition", f.partition, "peer", f.link, "err", a)
	}
	m.abort()
}

func (m *Machine) transactionsFetched(f *fetch, a *proto.AnswerFetchTransactions) {
	for _, t := range a.Delete {
		if a.Next.OK && t >= a.Next.V {
			continue // not compared yet
		}
		m.do(Effect{Op: DeleteTransaction, Record: backend.Key{TID: t}})
	}
	if a.Packed.OK {
		// What was not packed there is received unpacked.
		m.do(Effect{Op: LowerPacked, Partition: f.partition, TID: a.Packed.V})
		f.cell.missed.packedThere(a.Packed.V, f.pass == passAsk)
	}
	if f.pass == passAsk {
		m.compareMissed(f, a.Packed)
		return
	}
	if a.Next.OK && a.Next.V <= f.min {
		m.refuse("the list of transactions does not advance")
		return
	}
	next := f.nextTransaction(a.Next)
	if next.OK {
		m.commit()
		f.min, f.cell.nextTrans = next.V, next.V
		m.listTransactions(false)
		return
	}
	f.min, f.minOID = f.cell.nextObj, 0
	f.cell.nextTrans = f.max + 1
	m.completeChunk(true)
}

// nextTransaction returns where the next chunk begins, after an answer that names where
// the source goes on: what is here after the last item listed was not compared.
func (f *fetch) nextTransaction(next proto.Opt[tid.TID]) proto.Opt[tid.TID] {
	if l := f.listed; l.OK && (!next.OK || next.V > l.V.TID+1) {
		return proto.Some(l.V.TID + 1)
	}
	return next
}

// nextRecord is the same for records.
func (f *fetch) nextRecord(a *proto.AnswerFetchObjects) (next backend.Key, more bool) {
	more = a.Next.OK && a.NextOID.OK
	next = backend.Key{TID: a.Next.V, OID: a.NextOID.V}
	if l := f.listed; l.OK && (!more || next.TID > l.V.TID || next.TID == l.V.TID && next.OID > l.V.OID) {
		return backend.Key{TID: l.V.TID, OID: l.V.OID + 1}, true
	}
	return next, more
}

// notThere returns the records of which an answer says that the source has them not,
// as far as they are compared.
func notThere(a *proto.AnswerFetchObjects) (list []backend.Key) {
	for _, t := range slices.Sorted(maps.Keys(a.Delete)) {
		for _, oid := range a.Delete[t] {
			if a.Next.OK && a.NextOID.OK && (t > a.Next.V || t == a.Next.V && oid >= a.NextOID.V) {
				continue // not compared yet
			}
			list = append(list, backend.Key{TID: t, OID: oid})
		}
	}
	return list
}

// recordsFetched ends a chunk of records when what the source lacks was looked at.
func (m *Machine) recordsFetched(f *fetch) {
	a := f.answer
	f.answer = nil
	if a.Next.OK && a.NextOID.OK && (a.Next.V < f.min || a.Next.V == f.min && a.NextOID.V <= f.minOID) {
		m.refuse("the list of records does not advance")
		return
	}
	next, more := f.nextRecord(a)
	switch {
	case more && f.pass != passFetch:
		f.min, f.minOID = next.TID, next.OID
		m.commit()
		m.listRecords()
	case more:
		f.min, f.minOID = next.TID, next.OID
		m.completeChunk(false)
	case f.pass != passFetch:
		m.endMissed(f)
	default:
		m.finish(f)
	}
}

// refuse ends the link with a source that breaks the protocol.
func (m *Machine) refuse(why string) {
	m.log(slog.LevelError, "replication: "+why, "partition", m.current.partition, "peer", m.current.link)
	m.do(Effect{Op: Breach, Link: m.current.link})
	m.abort()
}

// finish is called when everything up to the target is here.
func (m *Machine) finish(f *fetch) {
	c, p := f.cell, f.partition
	c.nextObj = f.max + 1
	m.record(p, f.max)
	m.sign(c)
	m.commit()
	m.log(slog.LevelDebug, "replicated", "partition", p, "up_to", f.max, "peer", f.link)
	if f.origin.upstream == "" { // what a backup follows has no end
		m.caughtUp.partitions++
		m.caughtUp.last = f.max
	}
	m.current, c.failures = nil, 0
	m.do(Effect{Op: Satisfied, Link: f.link})
	_, more := m.todo[p]
	_, ordered := m.sources[p]
	switch {
	case f.origin.upstream != "" && m.unlinked: // ordered again when there is a link
	case !c.blocker.OK && (!more || ordered):
		c.missed.upstream = f.origin.upstream != ""
		m.settle(p, c, proto.Some(f.max))
	}
	m.goOn()
}

// caughtUp is what was replicated from other storages of the cluster since nothing was to be
// replicated.
type caughtUp struct {
	since      time.Time
	partitions int // how often one was complete
	last       tid.TID
}

// goOn begins the next partition. The link used last is released if there is none.
func (m *Machine) goOn() {
	m.next()
	if m.current == nil && m.link != nil {
		m.release(m.link)
		m.link = nil
	}
	if c := m.caughtUp; c.partitions > 0 && m.current == nil && len(m.todo) == 0 {
		m.caughtUp = caughtUp{}
		m.log(slog.LevelInfo, "replicated", "partitions", c.partitions, "up_to", c.last, "took", m.now.Sub(c.since).Round(time.Millisecond))
	}
}

// abort puts the current partition back, to be tried again after others.
func (m *Machine) abort() {
	f := m.current
	if f == nil {
		return
	}
	m.current = nil
	if m.cells[f.partition] == f.cell {
		if f.started {
			m.todo[f.partition] = max(m.todo[f.partition], f.max)
		}
		f.cell.notBefore = m.now.Add(min(time.Second, 50*time.Millisecond<<min(f.cell.failures, 5)))
		f.cell.failures++
	}
	m.next()
}

func (m *Machine) linkReady(l Link) {
	if f := m.current; f != nil && f.link == l && !f.started {
		m.begin(f)
	}
}

func (m *Machine) linkLost(l Link) {
	if m.link == l {
		m.link = nil
	}
	if m.Uses(l) {
		m.log(slog.LevelInfo, "source of replication lost", "partition", m.current.partition, "peer", l)
		m.abort()
	}
}

func (m *Machine) linkReplaced(old, l Link) {
	if m.link == old {
		m.link = l
	}
	f := m.current
	switch {
	case !m.Uses(old):
	case f.started: // the answer will never come
		m.log(slog.LevelInfo, "source of replication connected again", "partition", f.partition, "peer", l)
		m.abort()
	default:
		f.link = l
		m.linkReady(l)
	}
}

// stopBackup ends the replication from the upstream cluster: cells that are
// behind still catch up with the best one of this cluster.
func (m *Machine) stopBackup() {
	maps.DeleteFunc(m.todo, func(p int, _ tid.TID) bool { return m.sources[p].upstream != "" })
	m.upstreamLost()
	f := m.current
	if f == nil || f.origin.upstream == "" {
		return
	}
	m.current = nil
	if m.link == f.link {
		m.link = nil
	}
	m.do(Effect{Op: Drop, Link: f.link})
	m.next()
}

// upstreamLost forgets what is not announced yet of what came from the upstream cluster:
// its master does not say any more what may have been packed there. A cell that was to be
// compared for packs is not, and will be.
func (m *Machine) upstreamLost() {
	m.unlinked = true
	m.checks.losses++
	for _, c := range m.cells {
		if k := &c.missed; k.upstream {
			if len(k.orders) > 0 {
				k.after.V = k.base
			}
			k.done, k.orders, k.upstream = proto.Opt[tid.TID]{}, nil, false
		}
	}
}

// endComparison ends a comparison for packs that upstreamLost has given up.
func (m *Machine) endComparison() {
	if f := m.current; f != nil && f.pass != passFetch && len(f.cell.missed.orders) == 0 {
		m.current = nil
		m.goOn()
	}
}

// tableChanged follows the cells of this node.
func (m *Machine) tableChanged(changes []proto.CellChange) {
	var added, readable, discarded []int
	abort, packed := false, false
	for _, ch := range changes {
		if ch.ID != m.set.ID {
			continue
		}
		p, c := ch.Partition, m.cells[ch.Partition]
		outdated := c != nil && c.blocker.OK || m.incomplete[p]
		switch ch.State {
		case proto.OutOfDate:
			if c != nil {
				if m.incomplete[p] {
					continue // it still is
				}
				discarded = append(discarded, p)
				abort = abort || m.busy(p)
			}
			m.cells[p] = &progress{blocker: proto.Some(tid.Invalid)}
			delete(m.todo, p)
			added = append(added, p)
		case proto.Discarded, proto.Corrupted:
			packed = packed || outdated
			delete(m.cells, p)
			delete(m.todo, p)
			delete(m.sources, p)
			discarded = append(discarded, p)
			abort = abort || m.busy(p)
		default:
			packed = packed || outdated
			if c == nil {
				m.cells[p] = &progress{whole: following(m.backup.V)}
			}
			readable = append(readable, p)
		}
	}
	if len(discarded) > 0 {
		for _, p := range discarded {
			delete(m.incomplete, p)
		}
		m.do(Effect{Op: Discarded, Partitions: discarded})
	}
	m.outdated(added)
	if len(readable) > 0 {
		for _, p := range readable {
			delete(m.incomplete, p)
		}
		m.do(Effect{Op: Readable, Partitions: readable})
		m.storeBackup()
	}
	if abort {
		m.abort()
	}
	if packed {
		m.do(Effect{Op: TellPacked})
		m.do(Effect{Op: Pack})
	}
}
