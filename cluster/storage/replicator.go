package storage

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// fetchCount is how many transactions or records are asked for at a time, if
// Config.FetchCount does not say it.
const fetchCount = 1000

// replicator completes the cells of this node from those of others, one
// partition at a time: first transactions, then records, in chunks. Each chunk is
// committed before the next one is asked for, and only then counts as done.
//
// It serves cells that are OUT_OF_DATE, and those of a backup cluster, which stay
// readable while they follow the upstream cluster.
//
// # Invariant
//
// A cell is complete below next, and what is recorded in the database as complete
// is committed.
type replicator struct {
	n          *Node
	s          *session
	cells      map[int]*progress
	todo       map[int]tid.TID // replicate up to
	sources    map[int]origin  // from where, if not from any readable cell
	unfinished map[tid.TID]bool
	current    *fetch
	link       *peer // used last
	retry      *time.Timer
	packs      packOrders
}

// progress is how far a cell is replicated.
type progress struct {
	nextTrans, nextObj tid.TID // first ones not replicated yet
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
func (r *replicator) hold(partition int, from proto.NodeID) {
	if c := r.cells[partition]; c != nil {
		c.held, c.from = true, from
	}
}

// unhold lets a cell be replicated, from the first transaction on.
func (r *replicator) unhold(partition int) error {
	if c := r.cells[partition]; c != nil {
		c.held = false
	}
	return r.next()
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
	link      *peer
	started   bool
	pass      pass
	ask       uint32 // the outstanding request
	min, last tid.TID
	minOID    tid.OID
	// listed is the last item that the source was told to be here, if it was not told all.
	listed  proto.Opt[backend.Key]
	deleted int // objects, by the pass for missed packs
	// lone is the last deletion received of an object that has nothing before it here: the
	// source keeps it for another replica.
	lone tid.TID
}

func newReplicator(n *Node, s *session) *replicator {
	return &replicator{n: n, s: s, cells: map[int]*progress{}, todo: map[int]tid.TID{}, sources: map[int]origin{},
		unfinished: map[tid.TID]bool{}}
}

// following returns the TID after t, or Zero if t means that there is nothing.
func following(t tid.TID) tid.TID {
	if t == tid.Zero {
		return t
	}
	return t + 1
}

// populate finds what is to be replicated when operation begins.
func (r *replicator) populate() error {
	list, err := r.n.db.Cells()
	if err != nil {
		return fmt.Errorf("reading the partition table: %w", err)
	}
	var outdated []int
	for _, c := range list {
		switch {
		case c.ID != r.n.id:
		case c.State == proto.OutOfDate:
			next := following(c.TID)
			r.cells[c.Partition] = &progress{nextTrans: next, nextObj: next, blocker: proto.Some(tid.Invalid)}
			outdated = append(outdated, c.Partition)
		case c.State.Readable():
			r.cells[c.Partition] = &progress{}
		}
	}
	if err := r.enterBackup(); err != nil {
		return err
	}
	r.outdated(outdated)
	return nil
}

// enterBackup finds how far readable cells follow the upstream cluster.
func (r *replicator) enterBackup() error {
	b := r.n.backupTID.Load()
	if b == nil {
		return nil
	}
	for p, c := range r.cells {
		if !r.n.isReadable(p) {
			continue
		}
		trans, obj, err := r.n.db.LastTIDs(p)
		if errors.Is(err, backend.ErrNotImplemented) {
			continue
		}
		if err != nil {
			return fmt.Errorf("last transactions of partition %d: %w", p, err)
		}
		c.nextTrans = max(following(*b), following(trans))
		c.nextObj = max(following(*b), obj) // the last transaction may be there in part
	}
	return nil
}

// outdated asks the master what must be waited for before cells are complete.
func (r *replicator) outdated(partitions []int) {
	if len(partitions) == 0 {
		return
	}
	r.s.txns.Replicating(partitions)
	asked := map[int]*progress{}
	for _, p := range partitions {
		asked[p] = r.cells[p]
	}
	r.n.master.conn.Ask(&proto.AskUnfinishedTransactions{Partitions: partitions}, question{r.s, func(ev link.Event) error {
		a, ok := ev.Packet.(*proto.AnswerUnfinishedTransactions)
		if !ok {
			return nil
		}
		blocker := proto.Opt[tid.TID]{}
		for _, t := range a.TTIDs {
			r.unfinished[t] = true
			blocker = proto.Some(max(blocker.V, t))
		}
		for p, c := range asked {
			if r.cells[p] == c { // else discarded meanwhile, perhaps assigned again
				c.blocker = blocker
				r.todo[p] = a.LastTID
			}
		}
		return r.next()
	}})
}

// transactionFinished says how a transaction ended: max is the last TID then,
// absent if it was aborted.
func (r *replicator) transactionFinished(ttid tid.TID, last proto.Opt[tid.TID]) error {
	if !r.unfinished[ttid] {
		return nil
	}
	delete(r.unfinished, ttid)
	first := tid.Invalid
	for t := range r.unfinished {
		first = min(first, t)
	}
	for _, p := range slices.Sorted(maps.Keys(r.cells)) {
		c := r.cells[p]
		if !c.blocker.OK || c.blocker.V == tid.Invalid {
			continue
		}
		if last.OK {
			r.todo[p] = max(r.todo[p], last.V)
		}
		if c.blocker.V >= first {
			continue
		}
		if _, more := r.todo[p]; !more && (r.current == nil || r.current.partition != p) {
			// All of them were aborted, and the cell is replicated.
			if err := r.settle(p, c, proto.Some(c.blocker.V)); err != nil {
				return err
			}
		}
		c.blocker = proto.Opt[tid.TID]{}
	}
	return r.next()
}

// replicate processes an order of the master of a backup cluster.
func (r *replicator) replicate(q *proto.Replicate) error {
	advanced := false
	for _, p := range slices.Sorted(maps.Keys(q.Sources)) {
		c := r.cells[p]
		if c == nil {
			continue
		}
		if addr := q.Sources[p]; !addr.IsZero() {
			r.sources[p] = origin{addr, q.Upstream}
			r.todo[p] = q.TID
			continue
		}
		if _, more := r.todo[p]; !more && (r.current == nil || r.current.partition != p) {
			c.nextTrans, c.nextObj = q.TID+1, q.TID+1
			advanced = true
		}
	}
	if advanced {
		if err := r.updateBackup(); err != nil {
			return err
		}
		if err := r.packSigned(); err != nil {
			return err
		}
	}
	return r.next()
}

// updateBackup records how far all cells follow the upstream cluster, and commits.
func (r *replicator) updateBackup() error {
	t, changed, err := r.storeBackup()
	if err != nil || !changed {
		return err
	}
	if err := r.n.commit(); err != nil {
		return err
	}
	r.n.backupTID.Store(&t)
	return nil
}

// storeBackup writes the backup TID, if it changes.
func (r *replicator) storeBackup() (t tid.TID, changed bool, err error) {
	old := r.n.backupTID.Load()
	if old == nil {
		return 0, false, nil
	}
	next, any := tid.Invalid, false
	for p, c := range r.cells {
		if r.n.isReadable(p) {
			next, any = min(next, c.nextTrans, c.nextObj), true
		}
	}
	if any && next != tid.Zero {
		t = next - 1
	}
	if t == *old {
		return t, false, nil
	}
	if err := r.n.db.SetBackupTID(proto.Some(t)); err != nil {
		return t, false, fmt.Errorf("storing the backup TID: %w", err)
	}
	return t, true, nil
}

// complete reports whether the history that a pack order deletes is all here.
func (r *replicator) complete(partition int, order tid.TID) bool {
	if r.n.backupTID.Load() == nil {
		return true
	}
	c := r.cells[partition]
	return c != nil && c.nextTrans > order && c.nextObj > order && c.missed.settled(order)
}

// signLater remembers decisions on pack orders that are not here yet.
func (r *replicator) signLater(missing, approved []tid.TID) {
	for _, id := range missing {
		c := r.cells[id.Partition(r.n.table.NP())]
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
func (r *replicator) next() error {
	if r.current != nil {
		return nil
	}
	now := time.Now()
	var best *fetch
	var where target
	wait := time.Duration(-1)
	for _, p := range slices.Sorted(maps.Keys(r.todo)) {
		c := r.cells[p]
		if c == nil {
			delete(r.todo, p)
			continue
		}
		if c.held {
			continue
		}
		if d := c.notBefore.Sub(now); d > 0 {
			if wait < 0 || d < wait {
				wait = d
			}
			continue
		}
		if best != nil && !r.before(c, best.cell) {
			continue
		}
		t, ok := r.source(p)
		if !ok {
			c.notBefore = now.Add(time.Second) // until a node is running again
			if wait < 0 || time.Second < wait {
				wait = time.Second
			}
			continue
		}
		best, where = &fetch{partition: p, cell: c, origin: r.sources[p]}, t
	}
	if best == nil {
		if wait >= 0 {
			r.wakeUp(wait)
		}
		return nil
	}
	r.current = best
	p, ready := r.n.use(where)
	best.link = p
	if r.link != nil && r.link != p {
		r.release()
	}
	r.link = p
	if ready {
		return r.begin(best)
	}
	return nil
}

// release says that the link used last is no longer needed. A check that uses it
// says so itself, at its end.
func (r *replicator) release() {
	if r.s.checker.find(r.link) == nil {
		r.n.release(r.link)
	}
}

func (r *replicator) before(a, b *progress) bool {
	if a.nextObj != b.nextObj {
		return a.nextObj < b.nextObj
	}
	return !a.blocker.OK && b.blocker.OK
}

func (r *replicator) wakeUp(d time.Duration) {
	if r.retry != nil {
		r.retry.Stop()
	}
	r.retry = time.AfterFunc(d, func() {
		r.n.post(func() error {
			if r.n.session != r.s {
				return nil
			}
			return r.next()
		})
	})
}

// source chooses where to replicate a partition from.
func (r *replicator) source(partition int) (target, bool) {
	if o, ok := r.sources[partition]; ok {
		if o.upstream != "" {
			return target{addr: o.addr, upstream: o.upstream}, true
		}
		node := r.n.nodes.ByAddr(o.addr)
		if node == nil || node.ID == r.n.id {
			return target{}, false
		}
		return target{id: node.ID, addr: o.addr}, true
	}
	var list []target
	for _, c := range r.n.table.Row(partition) {
		node := r.n.nodes.ByID(c.ID)
		if from := r.cells[partition].from; from != 0 && c.ID != from {
			continue
		}
		if c.ID != r.n.id && c.State.Readable() && node != nil && node.State == proto.NodeRunning && !node.Addr.IsZero() {
			list = append(list, target{id: c.ID, addr: node.Addr})
		}
	}
	if len(list) == 0 {
		return target{}, false
	}
	return list[rand.IntN(len(list))], true
}

// begin asks for the first transactions.
func (r *replicator) begin(f *fetch) error {
	if r.sources[f.partition] != f.origin { // ordered from elsewhere meanwhile
		return r.abort()
	}
	f.started = true
	if len(f.cell.missed.orders) > 0 {
		return r.beginMissed(f)
	}
	f.max, f.min = r.todo[f.partition], f.cell.nextTrans
	f.last = f.max
	delete(r.todo, f.partition)
	if err := r.notePacked(f); err != nil {
		return err
	}
	r.n.log.Debug("replicating", "partition", f.partition, "after", f.min, "up_to", f.max, "peer", f.link)
	return r.askTransactions(true)
}

func (r *replicator) askTransactions(first bool) error {
	f := r.current
	have, err := r.n.db.TIDsFrom(f.partition, f.min, f.last, r.n.cfg.FetchCount)
	if err != nil {
		return fmt.Errorf("listing transactions of partition %d: %w", f.partition, err)
	}
	f.listed = proto.Opt[backend.Key]{}
	if n := len(have); n == r.n.cfg.FetchCount {
		f.listed = proto.Some(backend.Key{TID: have[n-1]})
	}
	f.ask = f.link.conn.Ask(&proto.AskFetchTransactions{Partition: f.partition, Length: r.n.cfg.FetchCount, Min: f.min, Max: f.last,
		Have: have, AskPack: first}, question{r.s, func(ev link.Event) error { return r.fetched(f, ev) }})
	return nil
}

func (r *replicator) askObjects(first bool) error {
	f := r.current
	var b tid.TID
	changed := false
	if !first {
		f.cell.nextObj = f.min
		var err error
		if b, changed, err = r.storeBackup(); err != nil {
			return err
		}
		if err := r.record(f.partition, max(f.min, 1)-1); err != nil {
			return err
		}
	}
	if err := r.sign(f.cell); err != nil {
		return err
	}
	if err := r.n.commit(); err != nil {
		return err
	}
	if changed {
		r.n.backupTID.Store(&b)
	}
	return r.askRecords()
}

// askRecords asks for the next chunk of records.
func (r *replicator) askRecords() error {
	f := r.current
	keys, err := r.n.db.RecordsFrom(f.partition, f.min, f.last, f.minOID, r.n.cfg.FetchCount)
	if err != nil {
		return fmt.Errorf("listing records of partition %d: %w", f.partition, err)
	}
	have := map[tid.TID][]tid.OID{}
	for _, k := range keys {
		have[k.TID] = append(have[k.TID], k.OID)
	}
	f.listed = proto.Opt[backend.Key]{}
	if n := len(keys); n == r.n.cfg.FetchCount {
		f.listed = proto.Some(keys[n-1])
	}
	f.ask = f.link.conn.Ask(&proto.AskFetchObjects{Partition: f.partition, Length: r.n.cfg.FetchCount, Min: f.min, Max: f.last,
		MinOID: f.minOID, Have: have}, question{r.s, func(ev link.Event) error { return r.fetched(f, ev) }})
	return nil
}

// record stores how far an outdated cell is complete.
func (r *replicator) record(partition int, t tid.TID) error {
	if r.n.table.Cell(partition, r.n.id) != proto.OutOfDate {
		return nil
	}
	if err := r.n.db.SetCellTID(partition, t); err != nil {
		return fmt.Errorf("storing the progress of partition %d: %w", partition, err)
	}
	return nil
}

// sign applies decisions on pack orders that came before the orders.
func (r *replicator) sign(c *progress) error {
	if len(c.approved)+len(c.rejected) == 0 {
		return nil
	}
	approved, rejected := c.approved, c.rejected
	c.approved, c.rejected = nil, nil
	missing, _, err := r.n.db.SignPackOrders(approved, rejected)
	if err != nil {
		return fmt.Errorf("signing pack orders: %w", err)
	}
	r.signLater(missing, approved)
	return nil
}

// feeds reports whether a packet belongs to the outstanding request. Left-overs
// of an aborted replication must not be stored.
func (r *replicator) feeds(p *peer, id uint32) bool {
	f := r.current
	return f != nil && f.started && f.link == p && f.ask == id
}

func (r *replicator) addTransaction(p *peer, id uint32, q *proto.AddTransaction) error {
	if !r.feeds(p, id) {
		return nil
	}
	m := backend.Meta{User: q.User, Description: q.Description, Extension: q.Extension, Packed: q.Packed, TTID: q.TTID, OIDs: q.OIDs}
	if err := r.n.db.AddTransaction(q.TID, m, q.Pack); err != nil {
		return fmt.Errorf("replicating transaction %v: %w", q.TID, err)
	}
	return nil
}

func (r *replicator) addObject(p *peer, id uint32, q *proto.AddObject) error {
	if !r.feeds(p, id) || r.current.pass == passDelete {
		return nil
	}
	if err := r.n.db.AddObject(q.OID, q.Serial, q.ObjectData, q.DataSerial); err != nil {
		return fmt.Errorf("replicating object %v at %v: %w", q.OID, q.Serial, err)
	}
	if q.Checksum == proto.ZeroHash && len(q.Data) == 0 {
		before, _, err := r.n.db.RecordBefore(q.OID, q.Serial)
		if err != nil {
			return fmt.Errorf("replicating object %v at %v: %w", q.OID, q.Serial, err)
		}
		if before == tid.Zero {
			r.current.lone = max(r.current.lone, q.Serial)
		}
	}
	return nil
}

// fetched processes the end of a chunk.
func (r *replicator) fetched(f *fetch, ev link.Event) error {
	if r.current != f || ev.ID != f.ask || ev.Conn != f.link.conn {
		return nil
	}
	if f.lone != tid.Zero {
		if err := r.n.db.NoteKept(f.partition, f.lone); err != nil {
			return fmt.Errorf("recording deletions of partition %d: %w", f.partition, err)
		}
		f.lone = tid.Zero
	}
	switch a := ev.Packet.(type) {
	case *proto.AnswerFetchTransactions:
		for _, t := range a.Delete {
			if a.Next.OK && t >= a.Next.V {
				continue // not compared yet
			}
			if err := r.n.db.DeleteTransaction(t); err != nil {
				return fmt.Errorf("deleting transaction %v: %w", t, err)
			}
		}
		if a.Packed.OK {
			// What was not packed there is received unpacked.
			if err := r.n.db.LowerPacked(f.partition, a.Packed.V); err != nil {
				return fmt.Errorf("recording the pack of partition %d: %w", f.partition, err)
			}
			f.cell.missed.packedThere(a.Packed.V)
		}
		if f.pass == passAsk {
			return r.compareMissed(f, a.Packed)
		}
		if a.Next.OK && a.Next.V <= f.min {
			return r.refuse(ev, "the list of transactions does not advance")
		}
		next := a.Next
		if l := f.listed; l.OK && (!next.OK || next.V > l.V.TID+1) {
			next = proto.Some(l.V.TID + 1) // what is here after that was not compared
		}
		if next.OK {
			if err := r.n.commit(); err != nil {
				return err
			}
			f.min, f.cell.nextTrans = next.V, next.V
			return r.askTransactions(false)
		}
		f.min, f.minOID = f.cell.nextObj, 0
		f.cell.nextTrans = f.max + 1
		return r.askObjects(true)
	case *proto.AnswerFetchObjects:
		for _, t := range slices.Sorted(maps.Keys(a.Delete)) {
			for _, oid := range a.Delete[t] {
				if a.Next.OK && a.NextOID.OK && (t > a.Next.V || t == a.Next.V && oid >= a.NextOID.V) {
					continue // not compared yet
				}
				if err := r.lacking(f, oid, t); err != nil {
					return fmt.Errorf("deleting object %v at %v: %w", oid, t, err)
				}
			}
		}
		more := a.Next.OK && a.NextOID.OK
		if more && (a.Next.V < f.min || a.Next.V == f.min && a.NextOID.V <= f.minOID) {
			return r.refuse(ev, "the list of records does not advance")
		}
		next := backend.Key{TID: a.Next.V, OID: a.NextOID.V}
		if l := f.listed; l.OK && (!more || next.TID > l.V.TID || next.TID == l.V.TID && next.OID > l.V.OID) {
			more, next = true, backend.Key{TID: l.V.TID, OID: l.V.OID + 1} // what is here after that was not compared
		}
		if more {
			f.min, f.minOID = next.TID, next.OID
			if f.pass != passFetch {
				if err := r.n.commit(); err != nil {
					return err
				}
				return r.askRecords()
			}
			return r.askObjects(false)
		}
		if f.pass != passFetch {
			return r.endMissed(f)
		}
		return r.finish(f)
	case *proto.Error:
		r.n.log.Warn("replication refused", "partition", f.partition, "peer", f.link, "error", a)
	}
	return r.abort()
}

func (r *replicator) refuse(ev link.Event, why string) error {
	r.n.log.Error("replication: "+why, "partition", r.current.partition, "peer", r.current.link)
	ev.Conn.Abort()
	return r.abort()
}

// finish is called when everything up to the target is here.
func (r *replicator) finish(f *fetch) error {
	c, p := f.cell, f.partition
	c.nextObj = f.max + 1
	b, changed, err := r.storeBackup()
	if err != nil {
		return err
	}
	if err := r.record(p, f.max); err != nil {
		return err
	}
	if err := r.sign(c); err != nil {
		return err
	}
	if err := r.n.commit(); err != nil {
		return err
	}
	if changed {
		r.n.backupTID.Store(&b)
	}
	r.n.log.Info("replicated", "partition", p, "up_to", f.max, "peer", f.link)
	r.current, c.failures = nil, 0
	r.n.cfg.Dialer.Forget(f.link.conn.RemoteAddr())
	_, more := r.todo[p]
	_, ordered := r.sources[p]
	if !c.blocker.OK && (!more || ordered) {
		if err := r.settle(p, c, proto.Some(f.max)); err != nil {
			return err
		}
	}
	return r.goOn()
}

// goOn begins the next partition. The link used last is released if there is none.
func (r *replicator) goOn() error {
	if err := r.next(); err != nil {
		return err
	}
	if r.current == nil && r.link != nil {
		r.release()
		r.link = nil
	}
	return nil
}

// abort puts the current partition back, to be tried again after others.
func (r *replicator) abort() error {
	f := r.current
	if f == nil {
		return nil
	}
	r.current = nil
	if r.cells[f.partition] == f.cell {
		if f.started {
			r.todo[f.partition] = max(r.todo[f.partition], f.max)
		}
		f.cell.notBefore = time.Now().Add(min(time.Second, 50*time.Millisecond<<min(f.cell.failures, 5)))
		f.cell.failures++
	}
	return r.next()
}

func (r *replicator) linkReady(p *peer) error {
	if f := r.current; f != nil && f.link == p && !f.started {
		return r.begin(f)
	}
	return nil
}

func (r *replicator) linkLost(p *peer) error {
	if r.link == p {
		r.link = nil
	}
	if r.current != nil && r.current.link == p {
		r.n.log.Warn("source of replication lost", "partition", r.current.partition, "peer", p)
		return r.abort()
	}
	return nil
}

func (r *replicator) linkReplaced(old, p *peer) error {
	if r.link == old {
		r.link = p
	}
	if f := r.current; f != nil && f.link == old {
		if f.started { // the answer will never come
			r.n.log.Warn("source of replication connected again", "partition", f.partition, "peer", p)
			return r.abort()
		}
		f.link = p
		return r.linkReady(p)
	}
	return nil
}

// stopBackup ends the replication from the upstream cluster: cells that are
// behind still catch up with the best one of this cluster.
func (r *replicator) stopBackup() error {
	maps.DeleteFunc(r.todo, func(p int, _ tid.TID) bool { return r.sources[p].upstream != "" })
	f := r.current
	if f == nil || f.origin.upstream == "" {
		return nil
	}
	r.current = nil
	if err := r.n.drop(f.link); err != nil {
		return err
	}
	return r.next()
}

// tableChanged follows the cells of this node.
func (r *replicator) tableChanged(changes []proto.CellChange) error {
	var added, readable, discarded []int
	abort, packed := false, false
	for _, ch := range changes {
		if ch.ID != r.n.id {
			continue
		}
		p, c := ch.Partition, r.cells[ch.Partition]
		outdated := c != nil && c.blocker.OK || r.s.txns.Incomplete(p)
		switch ch.State {
		case proto.OutOfDate:
			if c != nil {
				if r.s.txns.Incomplete(p) {
					continue // it still is
				}
				discarded = append(discarded, p)
				abort = abort || r.current != nil && r.current.partition == p
			}
			r.cells[p] = &progress{blocker: proto.Some(tid.Invalid)}
			delete(r.todo, p)
			added = append(added, p)
		case proto.Discarded, proto.Corrupted:
			packed = packed || outdated
			delete(r.cells, p)
			delete(r.todo, p)
			delete(r.sources, p)
			discarded = append(discarded, p)
			abort = abort || r.current != nil && r.current.partition == p
		default:
			packed = packed || outdated
			if c == nil {
				r.cells[p] = &progress{}
			}
			readable = append(readable, p)
		}
	}
	if len(discarded) > 0 {
		if err := r.s.txns.Discarded(discarded); err != nil {
			return err
		}
	}
	r.outdated(added)
	r.s.txns.Readable(readable)
	if abort {
		if err := r.abort(); err != nil {
			return err
		}
	}
	if packed {
		if err := r.n.notifyPacked(false); err != nil {
			return err
		}
		return r.s.worker.maybePack()
	}
	return nil
}
