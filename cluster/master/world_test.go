package master

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/nodetab"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run only this seed of the random tests")
	seedsFlag = flag.Uint64("seeds", 400, "random histories")
)

// TestCommittedStaysCommitted lets clients commit while storages and the master
// die and come back, nodes are added and dropped, the table is tweaked, and the
// database is truncated, with messages in any order that the links allow. Then everything is
// repaired, and every transaction that a client was told to be committed must be
// in every readable copy, unless it was cut off, and the copies must be equal.
func TestCommittedStaysCommitted(t *testing.T) {
	seeds := make([]uint64, 0, *seedsFlag)
	for s := range *seedsFlag {
		seeds = append(seeds, s+1)
	}
	if *seedFlag != 0 {
		seeds = []uint64{*seedFlag}
	}
	acked, restored, excused := 0, 0, 0
	for _, seed := range seeds {
		w := newWorld(t, seed)
		w.run(4000)
		w.repair()
		w.verify()
		acked += len(w.acked)
		restored += w.copies.restored
		excused += w.copies.excused
		if t.Failed() {
			t.Fatalf("run again with -seed %d", seed)
		}
	}
	t.Logf("%d commits, %d older copies; %d commits lost of which nothing knew any more", acked, restored, excused)
	if acked < 10*len(seeds) {
		t.Errorf("only %d commits in %d runs: the test tests little", acked, len(seeds))
	}
}

// world is a master, storages with their disks, and clients, with the messages
// under way between them.
type world struct {
	t       *testing.T
	seed    uint64
	r       *rand.Rand
	now     time.Time
	m       *Machine
	last    ConnID
	links   map[ConnID]*worldLink
	stores  []*worldStore
	clients []*worldClient
	admin   *worldLink
	probed  []ConnID          // whose probe has not ended
	acked   map[tid.TID][]int // partitions of what clients were told is committed
	cuts    []worldCut
	copies  copies
}

// worldCut is a truncation that the master has accepted: what was committed in
// (after, upTo] may be gone.
type worldCut struct{ after, upTo tid.TID }

func (c worldCut) cuts(t tid.TID) bool { return t > c.after && t <= c.upTo }

// worldLink is a connection to the master: what is under way on it.
type worldLink struct {
	id       ConnID
	toMaster []Event
	toPeer   []Effect
	handle   func(Effect)
	lost     func()
	closing  bool // by the master, after toPeer
	hung     bool // nothing moves on it
	dead     bool // and the peer is gone, which the master does not know
	nextID   uint32
}

// worldStore is a storage: what is on its disk, and its present life.
type worldStore struct {
	w        *world
	number   int
	nid      proto.NodeID
	table    parttab.Table
	voted    map[tid.TID]*worldVote
	data     map[int]map[tid.TID]tid.TID // partition: tid to ttid
	truncate proto.Opt[tid.TID]
	marked   worldMark
	copies   []*worldCopy
	link     *worldLink // nil: dead
	starting bool
	working  bool
	waiting  map[tid.TID]bool // transactions to end before the replication
	fetching []int
	asked    bool
}

type worldVote struct {
	parts []int
	tid   tid.TID
}

type worldClient struct {
	w     *world
	link  *worldLink
	table parttab.Table
	nodes nodetab.Table
	ttid  tid.TID
	tid   tid.TID
	parts []int
	oids  []tid.OID
	busy  bool
	voted bool
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, r: rand.New(rand.NewPCG(seed, 1)), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		links: map[ConnID]*worldLink{}, acked: map[tid.TID][]int{}}
	n := 2 + w.r.IntN(3)
	w.m = NewMachine(w.now, Settings{Cluster: "test", Addr: simAddr(1), Partitions: 1 + w.r.IntN(4), Replicas: 1 + w.r.IntN(2), Autostart: n})
	for i := range n {
		w.stores = append(w.stores, &worldStore{w: w, number: i + 1, voted: map[tid.TID]*worldVote{}, data: map[int]map[tid.TID]tid.TID{}})
	}
	for range 3 {
		w.clients = append(w.clients, &worldClient{w: w})
	}
	for _, s := range w.stores {
		s.start()
	}
	return w
}

func (w *world) connect(handle func(Effect), lost func(), r *proto.RequestIdentification) *worldLink {
	w.last++
	l := &worldLink{id: w.last, handle: handle, lost: lost}
	w.links[l.id] = l
	l.toMaster = append(l.toMaster, Event{Kind: Accepted, Conn: l.id})
	r.Cluster = "test"
	if r.Extra == nil {
		r.Extra = map[string]proto.Value{}
	}
	l.send(r)
	return l
}

func (l *worldLink) send(p proto.Packet) {
	l.nextID++
	l.toMaster = append(l.toMaster, Event{Kind: Received, Conn: l.id, ID: l.nextID, Packet: p})
}

// cut ends a connection from the peer's side.
func (l *worldLink) cut() {
	l.toMaster = append(l.toMaster, Event{Kind: Closed, Conn: l.id})
	l.handle, l.lost = nil, nil
}

func (w *world) step(ev Event) {
	w.now = w.now.Add(time.Duration(w.r.IntN(3)-1) * time.Microsecond) // the clock may step back
	if r, ok := ev.Packet.(*proto.RequestIdentification); ok && *seedFlag != 0 && r.Type == proto.Storage {
		w.t.Logf("connection %d comes as %v at %v", ev.Conn, r.ID, r.Addr)
	}
	committed := w.m.ids.committed
	state := w.m.state
	defer func() {
		if state == proto.Verifying && w.m.state == proto.Running {
			w.checkServing()
		}
	}()
	for _, e := range slices.Clone(w.m.Step(w.now, ev)) {
		switch e.Op {
		case Notify, Ask, Answer:
			if p, ok := e.Packet.(*proto.Truncate); ok {
				cut := worldCut{p.TID, committed}
				w.cuts = append(w.cuts, cut)
				maps.DeleteFunc(w.acked, func(t tid.TID, _ []int) bool { return cut.cuts(t) })
			}
			l := w.links[e.Conn]
			if l == nil {
				w.t.Fatalf("seed %d: %T sent on a closed connection", w.seed, e.Packet)
			}
			l.toPeer = append(l.toPeer, e)
			if f, ok := e.Packet.(*proto.NotifyUnlockInformation); ok {
				w.checkUnlock(f.TTID)
			}
		case Log:
			if *seedFlag != 0 {
				w.t.Logf("%v %s %v", e.Line.Level, e.Line.Text, e.Line.Attrs)
			}
		case Probe:
			w.probed = append(w.probed, e.Conn)
		case GiveUp:
			l := w.links[e.Conn]
			l.closing, l.hung, l.toMaster, l.toPeer = true, false, nil, nil
		case Abort, Close:
			l := w.links[e.Conn]
			l.closing, l.hung = true, false
			l.toMaster = nil
			if e.Op == Close {
				l.toPeer = nil
			}
		case Exit:
			w.t.Fatalf("seed %d: the master exits: %v", w.seed, e.Err)
		}
	}
}

// checkUnlock verifies that each living storage with the transaction has locked.
func (w *world) checkUnlock(ttid tid.TID) {
	if w.m.txns.pending[ttid] != nil {
		w.t.Errorf("seed %d: %v unlocked while pending", w.seed, ttid)
	}
}

// run does n random things.
func (w *world) run(n int) {
	for range n {
		switch k := w.r.IntN(1000); {
		case k < 6:
			w.stores[w.r.IntN(len(w.stores))].kill()
		case k < 40:
			w.stores[w.r.IntN(len(w.stores))].start()
		case k < 42:
			w.clients[w.r.IntN(len(w.clients))].disconnect()
		case k < 43:
			w.restartMaster()
		case k < 44:
			w.restartAll()
		case k < 48:
			w.operate()
		case k < 55:
			w.now = w.now.Add(confirmEvery)
		case k < 61:
			w.stores[w.r.IntN(len(w.stores))].save()
		case k < 66:
			w.disturb()
		case k < 70:
			w.endProbes(w.r.IntN(4) > 0)
		case k < 260:
			w.clients[w.r.IntN(len(w.clients))].act()
		default:
			w.deliver()
		}
	}
}

// restartMaster replaces the master by one that knows nothing.
func (w *world) restartMaster() {
	if w.r.IntN(3) > 0 || !w.m.table.PTID().OK {
		return // seldom, and not before there is a database
	}
	links := w.links
	w.probed = nil
	w.links, w.admin = map[ConnID]*worldLink{}, nil
	for _, id := range slices.Sorted(maps.Keys(links)) {
		if l := links[id]; l.lost != nil {
			l.lost()
		}
	}
	w.now = w.now.Add(time.Second)
	w.m = NewMachine(w.now, Settings{Cluster: "test", Addr: simAddr(1), Partitions: 1})
	w.copies.forced = false
}

// operate does something that an operator might.
func (w *world) operate() {
	if w.admin == nil {
		w.admin = w.connect(func(Effect) {}, func() { w.admin = nil }, &proto.RequestIdentification{Type: proto.Admin, Addr: simAddr(99)})
	}
	id := w.stores[w.r.IntN(len(w.stores))].nid
	switch w.r.IntN(9) {
	case 6, 7:
		// What is dropped earlier may never have had its table; and after an older
		// copy was put in place, no other storage is erased.
		if len(w.acked) > 0 && w.copies.restored == 0 {
			w.admin.send(&proto.SetNodeState{ID: id, State: proto.NodeUnknown})
		}
	case 8:
		w.admin.send(&proto.SetNumReplicas{Replicas: w.r.IntN(3)})
	case 5:
		if tids := slices.Sorted(maps.Keys(w.acked)); len(tids) > 0 {
			w.admin.send(&proto.Truncate{TID: tids[w.r.IntN(len(tids))]})
		}
	case 0:
		if len(w.stores) < 6 {
			s := &worldStore{w: w, number: len(w.stores) + 1, voted: map[tid.TID]*worldVote{}, data: map[int]map[tid.TID]tid.TID{}}
			w.stores = append(w.stores, s)
			s.start()
		}
	case 1:
		w.admin.send(&proto.AddPendingNodes{IDs: []proto.NodeID{1, 2, 3, 4, 5, 6}})
	case 2:
		w.admin.send(&proto.TweakPartitionTable{})
	case 3:
		w.admin.send(&proto.TweakPartitionTable{IDs: []proto.NodeID{id}})
	case 4:
		w.admin.send(&proto.SetNodeState{ID: id, State: proto.NodeDown})
	}
}

// deliver moves one message, the oldest of a random direction of a random link.
func (w *world) deliver() bool {
	ids := slices.Sorted(maps.Keys(w.links))
	w.r.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	for _, id := range ids {
		l := w.links[id]
		if l.hung {
			continue
		}
		if len(l.toPeer) > 0 && (len(l.toMaster) == 0 || w.r.IntN(2) == 0) {
			e := l.toPeer[0]
			l.toPeer = l.toPeer[1:]
			if l.handle != nil {
				l.handle(e)
			}
			return true
		}
		if len(l.toMaster) > 0 {
			ev := l.toMaster[0]
			l.toMaster = l.toMaster[1:]
			if ev.Kind == Closed {
				delete(w.links, id)
			}
			w.step(ev)
			return true
		}
		if l.closing {
			delete(w.links, id)
			if l.lost != nil {
				l.lost()
			}
			return true
		}
	}
	return false
}

// repair brings everybody back and waits until all is quiet.
func (w *world) repair() {
	w.copies.calm = true
	for _, c := range w.clients {
		c.disconnect()
	}
	for range 40 {
		w.resume()
		for _, s := range w.stores {
			s.start()
		}
		for n := 0; w.deliver(); n++ {
			if n > 200_000 {
				w.t.Fatalf("seed %d: the cluster does not come to rest", w.seed)
			}
		}
		for _, s := range w.stores {
			s.replicate()
		}
	}
	if w.m.state == proto.Recovering {
		// An interrupted truncation may need a decision.
		w.admin = w.connect(func(Effect) {}, func() {}, &proto.RequestIdentification{Type: proto.Admin, Addr: simAddr(98)})
		w.copies.forced = true
		w.admin.send(&proto.SetClusterState{State: proto.Recovering})
		w.admin.send(&proto.SetClusterState{State: proto.Verifying})
		for range 5 {
			for w.deliver() {
			}
			for _, s := range w.stores {
				s.replicate()
			}
		}
	}
	// A creation that was interrupted is for the operator to repeat.
	if w.m.state != proto.Running && len(w.acked) > 0 {
		w.t.Errorf("seed %d: with everybody back, the cluster is %v\n%s", w.seed, w.m.state, w.describe())
	}
}

func (w *world) verify() {
	if w.m.state != proto.Running {
		return
	}
	for p, row := range w.m.table.Rows() {
		var first *worldStore
		for _, c := range row {
			s := w.store(c.ID)
			if s == nil && !c.State.Readable() {
				continue // of a node that does not exist any more
			}
			if !c.State.Readable() {
				w.t.Errorf("seed %d: cell %v of partition %d is still %v", w.seed, c.ID, p, c.State)
				continue
			}
			for t, parts := range w.acked {
				if _, ok := s.data[p][t]; slices.Contains(parts, p) && !ok {
					w.t.Errorf("seed %d: %v has lost %v of partition %d", w.seed, c.ID, t, p)
				}
			}
			if first == nil {
				first = s
			} else if !maps.Equal(first.data[p], s.data[p]) {
				w.t.Errorf("seed %d: %v and %v differ in partition %d", w.seed, first.nid, s.nid, p)
			}
		}
	}
}

// store returns the connected storage with an id.
func (w *world) store(id proto.NodeID) *worldStore {
	for _, s := range w.stores {
		if s.nid == id && s.link != nil && w.m.stores[id] != nil && w.m.stores[id].conn == s.link.id {
			return s
		}
	}
	return nil
}

// Storages.

func (s *worldStore) start() {
	if s.link != nil {
		return
	}
	s.restore()
	s.marked.reported = 0
	s.starting, s.working, s.asked, s.fetching = false, false, false, nil
	s.link = s.w.connect(s.handle, func() { s.link = nil; s.working = false },
		&proto.RequestIdentification{Type: proto.Storage, ID: s.nid, Addr: simAddr(100 + s.number), Extra: s.claim()})
}

func (s *worldStore) kill() {
	if s.link != nil {
		s.link.cut()
		s.link, s.working = nil, false
		s.save()
	}
}

func (s *worldStore) answer(e Effect, p proto.Packet) {
	s.link.toMaster = append(s.link.toMaster, Event{Kind: Answered, Conn: s.link.id, Packet: p, Request: e.Packet.(proto.Request), Tag: e.Tag})
}

func (s *worldStore) fail(format string, args ...any) {
	s.w.t.Errorf("seed %d: %v: %s", s.w.seed, s.nid, fmt.Sprintf(format, args...))
}

func (s *worldStore) handle(e Effect) {
	switch p := e.Packet.(type) {
	case *proto.Error:
		if p.ErrCode == proto.ProtocolError && e.ID > 1 {
			s.fail("%v", p)
		}
	case *proto.AcceptIdentification:
		if s.nid != 0 && s.nid != p.YourID && s.table.PTID().OK && !s.marked.restored {
			s.fail("renamed %v", p.YourID)
		}
		s.nid = p.YourID
	case *proto.NotifyNodeInformation:
		for _, n := range p.Nodes {
			if n.ID != s.nid {
				continue
			}
			switch n.State {
			case proto.NodeUnknown: // the database is erased
				s.kill()
				s.nid, s.table, s.truncate = 0, parttab.Table{}, proto.Opt[tid.TID]{}
				s.marked = worldMark{}
				s.voted, s.data = map[tid.TID]*worldVote{}, map[int]map[tid.TID]tid.TID{}
				return
			case proto.NodeDown:
				s.kill()
				return
			}
		}
	case *proto.AskRecovery:
		s.marked.reported, s.marked.heard = s.table.PTID().V, s.w.m
		s.answer(e, &proto.AnswerRecovery{PTID: s.table.PTID(), TruncateTID: s.truncate})
	case *proto.Truncate:
		s.truncate = proto.Some(p.TID)
	case *proto.AskPartitionTable:
		s.answer(e, &proto.AnswerPartitionTable{PTID: s.table.PTID(), Replicas: s.table.Replicas(), Rows: copyRows(s.table.Rows())})
	case *proto.SendPartitionTable:
		s.table.Load(p.PTID, p.Replicas, p.Rows)
		s.marked.tableReceived(p.PTID.V)
		s.dropCells()
	case *proto.NotifyPartitionChanges:
		if s.table.PTID().OK { // else waiting for a full one
			if err := s.table.Apply(p, true); err != nil {
				if s.working {
					s.fail("%v", err)
				}
				s.kill()
				return
			}
			s.dropCells()
		}
	case *proto.AskLockedTransactions:
		a := &proto.AnswerLockedTransactions{TIDs: map[tid.TID]proto.Opt[tid.TID]{}}
		for ttid, v := range s.voted {
			a.TIDs[ttid] = proto.Opt[tid.TID]{V: v.tid, OK: v.tid != 0}
		}
		s.answer(e, a)
	case *proto.AskFinalTID:
		a := &proto.AnswerFinalTID{}
		for _, tids := range s.data {
			for t, ttid := range tids {
				if ttid == p.TTID {
					a.TID = proto.Some(t)
				}
			}
		}
		s.answer(e, a)
	case *proto.ValidateTransaction:
		if v := s.voted[p.TTID]; v != nil {
			v.tid = p.TID
			s.unlock(p.TTID)
		}
	case *proto.AskLastIDs:
		if s.truncate.OK {
			for _, tids := range s.data {
				maps.DeleteFunc(tids, func(t, _ tid.TID) bool { return t > s.truncate.V })
			}
			s.truncate = proto.Opt[tid.TID]{}
		}
		a := &proto.AnswerLastIDs{FirstTID: tid.Max}
		for part, tids := range s.data {
			if s.table.Cell(part, s.nid).Readable() {
				for t := range tids {
					a.LastTID = proto.Some(max(a.LastTID.V, t))
					a.FirstTID = min(a.FirstTID, t)
				}
			}
		}
		s.answer(e, a)
	case *proto.AskPackOrders:
		if !s.working || p.Min == tid.Max {
			s.marked.noted = s.table.PTID().V
		}
		s.answer(e, &proto.AnswerPackOrders{})
	case *proto.AskCheckTIDRange, *proto.AskCheckSerialRange:
		s.answerEnd(e)
	case *proto.StartOperation:
		s.marked.confirm()
		if s.working {
			return
		}
		s.voted = map[tid.TID]*worldVote{}
		s.working, s.asked = true, false
		s.link.send(&proto.NotifyReady{})
		s.replicate()
	case *proto.StopOperation:
		s.working = false
	case *proto.AskLockInformation:
		v := s.voted[p.TTID]
		if v == nil {
			// The cell was assigned after the stores: there is nothing to lock.
			v = &worldVote{}
			s.voted[p.TTID] = v
		}
		v.tid = p.TID
		s.answer(e, &proto.AnswerInformationLocked{TTID: p.TTID})
	case *proto.NotifyUnlockInformation:
		s.unlock(p.TTID)
	case *proto.AbortTransaction:
		if v := s.voted[p.TTID]; v != nil && v.tid == 0 {
			delete(s.voted, p.TTID)
		}
		s.transactionEnded(p.TTID)
	case *proto.NotifyTransactionFinished:
		s.transactionEnded(p.TTID)
	case *proto.AnswerUnfinishedTransactions:
		s.waiting = map[tid.TID]bool{}
		for _, ttid := range p.TTIDs {
			s.waiting[ttid] = true
		}
		if len(s.waiting) == 0 {
			s.fetch()
		}
	}
}

func (s *worldStore) unlock(ttid tid.TID) {
	v := s.voted[ttid]
	if v == nil {
		s.fail("unlock of unknown %v", ttid)
		return
	}
	delete(s.voted, ttid)
	for _, p := range v.parts {
		if s.table.Cell(p, s.nid) != proto.Discarded {
			if s.data[p] == nil {
				s.data[p] = map[tid.TID]tid.TID{}
			}
			s.data[p][v.tid] = ttid
		}
	}
}

func (s *worldStore) dropCells() {
	for p := range s.data {
		if s.table.Cell(p, s.nid) == proto.Discarded {
			delete(s.data, p)
		}
	}
	s.replicate()
}

// replicate asks what the outdated cells must wait for.
func (s *worldStore) replicate() {
	if !s.working || s.asked {
		return
	}
	s.fetching = nil
	for p := range s.table.NP() {
		if s.table.Cell(p, s.nid) == proto.OutOfDate {
			s.fetching = append(s.fetching, p)
		}
	}
	if s.fetching != nil {
		s.asked = true
		s.link.send(&proto.AskUnfinishedTransactions{Partitions: s.fetching})
	}
}

func (s *worldStore) transactionEnded(ttid tid.TID) {
	if s.asked && s.waiting[ttid] {
		delete(s.waiting, ttid)
		if len(s.waiting) == 0 {
			s.fetch()
		}
	}
}

// fetch copies what a readable cell has.
func (s *worldStore) fetch() {
	s.asked = false
	for _, p := range s.fetching {
		for _, c := range s.table.Row(p) {
			src := s.w.store(c.ID)
			if !c.State.Readable() || src == nil || src == s || !src.working || !src.table.Cell(p, src.nid).Readable() {
				continue
			}
			locked := false // reads wait for transactions that are locked
			for _, v := range src.voted {
				locked = locked || v.tid != 0
			}
			if locked {
				continue
			}
			got := maps.Clone(src.data[p])
			if got == nil {
				got = map[tid.TID]tid.TID{}
			}
			s.data[p] = got
			s.link.send(&proto.NotifyReplicationDone{Partition: p})
			break
		}
	}
}

// Clients.

func (c *worldClient) disconnect() {
	if c.link != nil {
		c.link.cut()
		*c = worldClient{w: c.w}
	}
}

func (c *worldClient) act() {
	if c.link == nil {
		c.link = c.w.connect(c.handle, func() { *c = worldClient{w: c.w} }, &proto.RequestIdentification{Type: proto.Client})
		return
	}
	switch {
	case c.table.NP() == 0 || c.busy:
	case c.ttid == 0:
		c.busy = true
		c.link.send(&proto.AskBeginTransaction{})
	case !c.voted:
		c.vote()
	default:
		c.busy = true
		c.link.send(&proto.AskFinishTransaction{TTID: c.ttid, OIDs: c.oids})
	}
}

// vote writes to every cell that can be reached, and reports those that cannot.
func (c *worldClient) vote() {
	w := c.w
	np := c.table.NP()
	c.parts, c.oids = []int{c.ttid.Partition(np)}, nil
	for range 1 + w.r.IntN(3) {
		oid := tid.OID(w.r.IntN(50))
		c.oids = append(c.oids, oid)
		c.parts = append(c.parts, oid.Partition(np))
	}
	slices.Sort(c.parts)
	c.parts = slices.Compact(c.parts)
	var failed []proto.NodeID
	for _, p := range c.parts {
		locked := false
		for _, cell := range c.table.Row(p) {
			s := w.store(cell.ID)
			switch {
			case !c.nodes.Running(cell.ID):
			case s == nil || s.link == nil || !s.working || w.r.IntN(100) == 0:
				if !slices.Contains(failed, cell.ID) {
					failed = append(failed, cell.ID)
				}
			case s.table.Cell(p, s.nid) != proto.Discarded:
				v := s.voted[c.ttid]
				if v == nil {
					v = &worldVote{}
					s.voted[c.ttid] = v
				}
				if !slices.Contains(v.parts, p) {
					v.parts = append(v.parts, p)
				}
				locked = locked || s.table.Cell(p, s.nid).Readable()
			}
		}
		if !locked {
			c.abort()
			return
		}
	}
	c.voted = true
	if failed != nil {
		c.busy = true
		c.link.send(&proto.FailedVote{TTID: c.ttid, IDs: failed})
	}
}

func (c *worldClient) abort() {
	c.link.send(&proto.AbortTransaction{TTID: c.ttid, IDs: []proto.NodeID{1, 2, 3, 4, 5, 6}})
	c.ttid, c.voted, c.busy = 0, false, false
}

func (c *worldClient) handle(e Effect) {
	switch p := e.Packet.(type) {
	case *proto.NotifyNodeInformation:
		c.nodes.Update(p.Nodes, false, nil)
	case *proto.SendPartitionTable:
		c.table.Load(p.PTID, p.Replicas, p.Rows)
	case *proto.NotifyPartitionChanges:
		if err := c.table.Apply(p, false); err != nil {
			c.w.t.Errorf("seed %d: %v", c.w.seed, err)
		}
	case *proto.AnswerBeginTransaction:
		c.ttid, c.busy = p.TTID, false
	case *proto.Error:
		c.busy = false
		switch p.ErrCode {
		case proto.IncompleteTransaction:
			if c.voted {
				c.abort()
			}
		case proto.ProtocolError:
			c.w.t.Errorf("seed %d: client: %v", c.w.seed, p)
		}
	case *proto.AnswerTransactionFinished:
		if p.TID <= c.w.lastAcked(c) {
			c.w.t.Errorf("seed %d: %v is not above the last commit", c.w.seed, p.TID)
		}
		c.tid = p.TID
		if !slices.ContainsFunc(c.w.cuts, func(cut worldCut) bool { return cut.cuts(p.TID) }) {
			c.w.acked[p.TID] = c.parts
		}
		c.ttid, c.voted, c.busy = 0, false, false
	case *proto.InvalidateObjects:
		if p.TID <= c.tid {
			c.w.t.Errorf("seed %d: invalidation of %v after %v", c.w.seed, p.TID, c.tid)
		}
		c.tid = p.TID
	}
}

// lastAcked returns the last commit that a client has heard of.
func (w *world) lastAcked(c *worldClient) tid.TID { return c.tid }
