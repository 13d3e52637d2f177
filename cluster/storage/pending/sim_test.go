package pending

import (
	"flag"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

var seed = flag.Uint64("seed", 0, "run one simulation only, from this seed")

// simTxn is a transaction as its client sees it.
type simTxn struct {
	client  proto.NodeID
	ttid    tid.TID
	final   tid.TID
	wants   []tid.OID // still to be stored or checked
	bases   map[tid.OID]tid.TID
	checks  map[tid.OID]bool
	waiting map[uint32]tid.OID // requests without answer
	voted   bool
	locked  bool
}

// sim drives a manager with clients that behave as the protocol wants, in random
// order, with losses.
type sim struct {
	t       *testing.T
	rand    *rand.Rand
	db      *fakeDB
	m       *Manager
	last    tid.TID // used by the master
	asks    uint32
	txns    map[tid.TID]*simTxn
	locked  []*simTxn // in the order of their final TIDs
	commits int
	aborts  int
	relocks int
	asked   []tid.OID // to be learned by the database
	learned int
}

func (s *sim) request(x *simTxn, oid tid.OID) Request {
	s.asks++
	x.waiting[s.asks] = oid
	return Request{x.client, s.asks}
}

func (s *sim) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	s.carryOut()
	if err := s.m.verify(s.db); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sim) begin(client proto.NodeID, objects int) {
	s.last++
	x := &simTxn{client: client, ttid: s.last, bases: map[tid.OID]tid.TID{}, checks: map[tid.OID]bool{}, waiting: map[uint32]tid.OID{}}
	for range 1 + s.rand.IntN(4) {
		if oid := tid.OID(s.rand.IntN(objects)); !slices.Contains(x.wants, oid) {
			x.wants = append(x.wants, oid)
		}
	}
	s.txns[x.ttid] = x
}

// use stores or checks an object.
func (s *sim) use(x *simTxn, oid tid.OID, check bool) {
	if s.db.last[oid] == 0 && s.rand.IntN(2) == 0 {
		s.db.remote[oid] = true
	}
	base := s.db.last[oid]
	if s.rand.IntN(10) == 0 && base > 0 {
		base-- // read too long ago
	}
	x.bases[oid] = base
	if check {
		x.checks[oid] = true
		s.must(s.m.Check(s.request(x, oid), x.client, &proto.AskCheckCurrentSerial{TTID: x.ttid, OID: oid, Serial: base}))
		return
	}
	d := proto.ObjectData{Checksum: proto.Hash{1}, Data: []byte{byte(oid)}}
	s.must(s.m.Store(s.request(x, oid), x.client, &proto.AskStoreObject{TTID: x.ttid, OID: oid, Serial: base, ObjectData: d}))
}

// step lets a transaction go on, if it can.
func (s *sim) step(x *simTxn) {
	switch {
	case x.locked:
	case x.voted:
		s.last++
		x.final = s.last
		if x.final.Partition(2) != x.ttid.Partition(2) {
			s.last++
			x.final = s.last
		}
		x.locked = true
		for oid, base := range x.bases {
			if last := s.db.last[oid]; last != base {
				s.t.Errorf("transaction %d goes on from %d of object %d, but the last revision is %d", x.ttid, base, oid, last)
			}
		}
		s.locked = append(s.locked, x)
		s.must(s.m.Lock(Request{"M", 0}, &proto.AskLockInformation{TTID: x.ttid, TID: x.final}))
	case len(x.wants) > 0:
		oid := x.wants[0]
		x.wants = x.wants[1:]
		s.use(x, oid, s.rand.IntN(4) == 0)
	case len(x.waiting) == 0 && len(x.bases) > 0:
		x.voted = true
		s.must(s.m.Vote(Request{x.client, 0}, x.client, &proto.AskVoteTransaction{TTID: x.ttid}))
	case len(x.waiting) == 0:
		delete(s.txns, x.ttid)
	}
}

func (s *sim) abort(x *simTxn) {
	s.aborts++
	delete(s.txns, x.ttid)
	s.must(s.m.ClientAbort(x.client, x.ttid))
	s.must(s.m.Abort(x.ttid))
}

// unlock completes the oldest locked transaction, as the master does.
func (s *sim) unlock() {
	x := s.locked[0]
	s.locked = s.locked[1:]
	for oid := range x.checks {
		if s.db.last[oid] != x.bases[oid] {
			s.t.Errorf("transaction %d needed object %d unchanged", x.ttid, oid)
		}
	}
	s.commits++
	delete(s.txns, x.ttid)
	s.must(s.m.Unlock(Request{"M", 0}, x.ttid))
}

// carryOut gives answers to the clients.
func (s *sim) carryOut() {
	for {
		effects := s.m.Effects()
		if len(effects) == 0 {
			return
		}
		for _, e := range effects {
			if e.Kind == Prepare {
				s.asked = append(s.asked, e.OID)
				continue
			}
			if n, ok := e.Packet.(*proto.NotifyDeadlock); ok {
				if x := s.txns[n.TTID]; x != nil && !x.voted && x.client == e.Client {
					s.relocks++
					if err := s.m.Relock(s.request(x, n.OID), x.client, &proto.AskRelockObject{TTID: n.TTID, OID: n.OID}); err != nil {
						s.t.Fatal(err)
					}
				}
				continue
			}
			for _, x := range s.txns {
				if oid, ok := x.waiting[e.Request.ID]; ok {
					delete(x.waiting, e.Request.ID)
					s.answered(x, oid, e.Packet)
				}
			}
		}
	}
}

func (s *sim) answered(x *simTxn, oid tid.OID, p proto.Packet) {
	conflict := false
	switch p := p.(type) {
	case *proto.AnswerStoreObject:
		conflict = p.Conflict.OK
	case *proto.AnswerCheckCurrentSerial:
		conflict = p.Conflict.OK
	case *proto.AnswerRelockObject:
		conflict = p.Conflict != nil
	default:
		s.t.Fatalf("transaction %d, object %d: %v", x.ttid, oid, p)
	}
	if conflict && !slices.Contains(x.wants, oid) {
		delete(x.bases, oid)
		delete(x.checks, oid)
		x.wants = append(x.wants, oid) // resolved
	}
}

// Whatever the order: no deadlock, no lost update, nothing left behind.
func TestSimulation(t *testing.T) {
	learned := 0
	run := func(n uint64) {
		s := &sim{t: t, rand: rand.New(rand.NewPCG(n, 0)), db: newFakeDB(2), txns: map[tid.TID]*simTxn{}}
		s.m = New(s.db, 2)
		objects := 3 + s.rand.IntN(8)
		for i := 0; i < 300 || len(s.txns) > 0; i++ {
			if i > 20000 {
				t.Fatalf("%d transactions never end", len(s.txns))
			}
			if i < 300 && len(s.txns) < 6 {
				s.begin(proto.Client.ID(1+s.rand.IntN(4)), objects)
			}
			list := s.sorted()
			if len(list) == 0 {
				continue
			}
			x := list[s.rand.IntN(len(list))]
			switch k := s.rand.IntN(100); {
			case k < 2 && !x.locked && i < 300: // later, an abort would hide a deadlock
				s.abort(x)
			case k < 3 && i < 300:
				s.lose(x.client)
			case k < 20 && len(s.asked) > 0:
				s.prepared()
			case k < 30 && len(s.locked) > 0:
				s.unlock()
			default:
				s.step(x)
			}
		}
		if n, d := s.m.Len(); n+d+len(s.m.locks)+len(s.m.readLocks)+len(s.db.held)+len(s.db.voted) > 0 {
			t.Errorf("left behind: %d transactions, %d requests, %d locks, %d read locks, %d records", n, d, len(s.m.locks), len(s.m.readLocks), len(s.db.held))
		}
		t.Logf("seed %d: %d commits, %d aborts, %d relocks, %d revisions learned", n, s.commits, s.aborts, s.relocks, s.learned)
		learned += s.learned
		if s.commits == 0 {
			t.Error("nothing was committed")
		}
	}
	if *seed != 0 {
		run(*seed)
		return
	}
	for n := range uint64(100) {
		if run(n + 1); t.Failed() {
			t.Fatalf("repeat with -seed %d", n+1)
		}
	}
	if learned == 0 {
		t.Error("the database knew everything")
	}
}

// prepared lets the database know one of the objects for which requests wait.
func (s *sim) prepared() {
	i := s.rand.IntN(len(s.asked))
	oid := s.asked[i]
	s.asked = slices.Delete(s.asked, i, i+1)
	delete(s.db.remote, oid)
	s.learned++
	s.must(s.m.Prepared(oid, true))
}

// lose is the death of a client: its transactions that are not locked are over.
func (s *sim) lose(client proto.NodeID) {
	for _, x := range s.sorted() {
		if x.client == client && !x.locked {
			s.aborts++
			delete(s.txns, x.ttid)
		}
	}
	s.must(s.m.ConnClosed(client, client))
	s.must(s.m.ClientGone(client))
}

func (s *sim) sorted() []*simTxn {
	var list []*simTxn
	for _, x := range s.txns {
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b *simTxn) int { return int(a.ttid) - int(b.ttid) })
	return list
}
