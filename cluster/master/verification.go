package master

import (
	"cmp"
	"errors"
	"log/slog"
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// ErrNoUpstream reports a database that is a backup of a cluster that this
// master was not told about.
var ErrNoUpstream = errors.New("the database is a backup: no upstream cluster to backup defined in configuration")

// verification finishes the transactions whose finish had begun, cuts the
// database if that was ordered, and learns the last ids. Each step ends when
// every storage asked has answered or is lost.
type verification struct {
	step    verificationStep
	waiting map[*peer]int // questions
	voted   map[tid.TID][]proto.NodeID
	locked  map[tid.TID]tid.TID
	unsure  []tid.TID // voted, not known to be locked: to be asked about
	asking  []*peer   // storages to ask about the first of them
	last    map[*peer]tid.TID
	ends    map[endKey]*end // of the copies that are compared
}

type verificationStep uint8

const (
	lockedStep verificationStep = iota
	finalStep
	lastIDsStep
	compareStep
	packStep
)

// enterVerification gives the storages their partition table, which they make
// durable, and starts the verification.
func (m *Machine) enterVerification() {
	for _, p := range m.peersOf(candidate) {
		m.out = append(m.out, Effect{Op: Close, Conn: p.conn})
		m.forget(p)
	}
	m.blind = false
	if !m.served || m.startup == startupForced {
		m.held = nil
	}
	m.hold()
	m.become(proto.Verifying)
	for _, p := range m.ofType(proto.Storage) {
		m.sendTable(p)
	}
	m.txns.reset()
	m.ids.reset()
	m.ver = verification{
		waiting: map[*peer]int{},
		voted:   map[tid.TID][]proto.NodeID{},
		locked:  map[tid.TID]tid.TID{},
		last:    map[*peer]tid.TID{},
		ends:    map[endKey]*end{},
	}
	if !m.backup.OK {
		m.askAll(m.readableStores(), &proto.AskLockedTransactions{})
		return
	}
	m.lastIDs()
}

// readableStores returns the running storages that have a readable cell.
func (m *Machine) readableStores() []*peer {
	var list []*peer
	for _, id := range m.table.ReadableNodes() {
		if p := m.stores[id]; p != nil && p.node.State == proto.NodeRunning {
			list = append(list, p)
		}
	}
	return list
}

// askAll asks storages the question of a step, and goes on if there are none.
func (m *Machine) askAll(list []*peer, req proto.Request) {
	for _, p := range list {
		m.question(p, req)
	}
	m.verificationNext()
}

// question asks one storage a question of a step.
func (m *Machine) question(p *peer, req proto.Request) {
	m.ver.waiting[p]++
	m.ask(p, req)
}

func (m *Machine) verificationAnswered(p *peer, req proto.Request, pkt proto.Packet) {
	v := &m.ver
	if v.waiting[p] == 0 {
		return
	}
	if v.waiting[p]--; v.waiting[p] == 0 {
		delete(v.waiting, p)
	}
	if v.step == compareStep {
		m.endAnswered(p, req, pkt)
		m.verificationNext()
		return
	}
	switch pkt := pkt.(type) {
	case *proto.AnswerLockedTransactions:
		for ttid, t := range pkt.TIDs {
			v.voted[ttid] = append(v.voted[ttid], p.node.ID)
			if t.OK {
				v.locked[ttid] = t.V
			}
		}
	case *proto.AnswerFinalTID:
		if pkt.TID.OK && len(v.unsure) > 0 {
			v.locked[v.unsure[0]] = pkt.TID.V
			v.asking = nil
		}
	case *proto.AnswerLastIDs:
		m.ids.saw(pkt)
		v.last[p] = pkt.LastTID.V
	case *proto.AnswerPackOrders:
		m.pack.add(pkt.Orders)
	case *proto.Error:
		// Without its answer it cannot take part: what it may know could be the
		// only trace of a commit.
		v.waiting[p] = 1
		m.close(p)
		return
	}
	m.verificationNext()
}

// deciding reports whether it is not known yet what was committed, and which copies have it.
func (m *Machine) deciding() bool { return m.state == proto.Verifying && m.ver.step <= compareStep }

// undecided reports whether a storage may be the only one that knows of a commit: the
// table that outdates others, lost during that commit, may have reached no disk; or the
// others may have older copies of their databases, which only the comparison shows. A
// recovery waits for all that have readable cells, and so it does until what was
// committed is known, unless it was told to go on without some.
func (m *Machine) undecided(id proto.NodeID) bool {
	return m.deciding() && m.startup == startupWhole && slices.Contains(m.table.ReadableNodes(), id)
}

// verificationLost goes on without a storage.
func (m *Machine) verificationLost(p *peer) {
	v := &m.ver
	v.asking = slices.DeleteFunc(v.asking, func(o *peer) bool { return o == p })
	if v.waiting[p] > 0 {
		delete(v.waiting, p)
		m.verificationNext()
	}
}

// verificationNext starts the next step if nothing more is awaited.
func (m *Machine) verificationNext() {
	v := &m.ver
	if len(v.waiting) > 0 || m.state != proto.Verifying {
		return
	}
	switch v.step {
	case lockedStep:
		v.step = finalStep
		for _, ttid := range slices.Sorted(maps.Keys(v.voted)) {
			if _, ok := v.locked[ttid]; !ok {
				v.unsure = append(v.unsure, ttid)
			}
		}
		if len(v.unsure) > 0 {
			v.asking = m.unlockers(v.unsure[0])
		}
		fallthrough
	case finalStep:
		for len(v.unsure) > 0 {
			if len(v.asking) > 0 {
				p := v.asking[0]
				v.asking = v.asking[1:]
				m.question(p, &proto.AskFinalTID{TTID: v.unsure[0]})
				return
			}
			if v.unsure = v.unsure[1:]; len(v.unsure) > 0 {
				v.asking = m.unlockers(v.unsure[0])
			}
		}
		m.validate()
		m.lastIDs()
	case lastIDsStep:
		m.truncate, m.orderedTruncate = proto.Opt[tid.TID]{}, proto.Opt[tid.TID]{}
		v.step = compareStep
		if !m.backup.OK { // else they follow the upstream cluster, each at its pace
			m.compareEnds()
		}
		m.verificationNext()
	case compareStep:
		if !m.backup.OK {
			m.outdateBehind()
		}
		v.step = packStep
		m.notedPTID = m.table.PTID().V
		m.askAll(m.readableStores(), &proto.AskPackOrders{Min: m.firstPackNeeded()})
	case packStep:
		m.verified()
	}
}

// unlockers returns the storages that may have committed a transaction already,
// and so do not list it as voted any more.
func (m *Machine) unlockers(ttid tid.TID) []*peer {
	var list []*peer
	for _, c := range m.table.Row(ttid.Partition(m.table.NP())) {
		p := m.stores[c.ID]
		if c.State.Readable() && p != nil && p.node.State == proto.NodeRunning && !slices.Contains(m.ver.voted[ttid], c.ID) {
			list = append(list, p)
		}
	}
	return list
}

// validate commits, on every storage that voted it, each transaction that was
// locked somewhere: its client may have been told that it is finished. The order is
// that of the TIDs: a storage that is lost in the middle takes itself for complete up
// to the last one that it has.
func (m *Machine) validate() {
	ttids := slices.SortedFunc(maps.Keys(m.ver.locked), func(a, b tid.TID) int {
		return cmp.Compare(m.ver.locked[a], m.ver.locked[b])
	})
	for _, ttid := range ttids {
		m.safePTID = m.table.PTID().V
		t := m.ver.locked[ttid]
		m.log(slog.LevelInfo, "transaction committed by verification", "ttid", ttid.String(), "tid", t.String())
		for _, id := range m.ver.voted[ttid] {
			if p := m.stores[id]; p != nil {
				m.notify(p, &proto.ValidateTransaction{TTID: ttid, TID: t})
			}
		}
	}
}

// lastIDs asks all storages, pending ones too, for their last ids. They cut their
// data first if that was ordered.
func (m *Machine) lastIDs() {
	m.ver.step = lastIDsStep
	all := m.ofType(proto.Storage)
	for _, p := range all {
		p.lastAsked = true
	}
	m.askAll(all, &proto.AskLastIDs{})
}

func (m *Machine) verified() {
	m.ver = verification{}
	if m.set.Upstream.Backup && m.ids.committed == tid.Zero {
		m.backup = proto.Some(tid.Zero)
	}
	if m.backup.OK && m.set.Upstream.Cluster == "" {
		m.exit(ErrNoUpstream)
		return
	}
	m.log(slog.LevelInfo, "verified", "last_tid", m.ids.committed.String(), "last_oid", m.ids.oid.String())
	m.updatePacks()
	// All readable ones have answered since they stored it.
	m.tableConfirmed()
	m.released(m.notedPTID)
	for _, p := range m.ofType(proto.Storage) {
		if !slices.Contains(m.table.ReadableNodes(), p.node.ID) {
			p.reported = 0 // what it had says nothing of what it will have
		}
	}
	if m.backup.OK {
		m.enterBackup()
		return
	}
	m.enterService()
}
