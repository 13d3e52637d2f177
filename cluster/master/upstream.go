package master

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/nodetab"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Upstream is the cluster that a cluster may be a backup of. The zero Upstream is none.
type Upstream struct {
	Cluster string
	Masters []proto.Address
	Backup  bool // a new database is a backup from the beginning

	Delay    time.Duration       // transactions are only copied when they are that old; 0: at once
	Window   following.Window    // part of the day in which they are copied
	Schedule *following.Schedule // when to copy what there is then; nil: always
	Rate     int64               // most bytes per second of all storages together; 0: no limit
}

// upstream is the link to the primary master of the upstream cluster.
type upstream struct {
	id        proto.NodeID // that it gave us last
	link      *peer
	dialing   proto.Address
	next      int           // of the configured masters to be tried
	named     proto.Address // as primary, by another one
	listed    bool          // its nodes are known
	tabled    bool          // its partition table is known
	nodes     nodetab.Table
	table     parttab.Table
	known     bool // its last transaction is known
	packs     bool // its pack orders are known
	questions packQuestions
	note      string          // why there is no link
	notes     map[string]bool // those logged since the cluster was followed last
	tails     tails
}

// inBackup reports whether the cluster follows another one, or has stopped to.
func (m *Machine) inBackup() bool {
	return m.state == proto.StartingBackup || m.state == proto.BackingUp || m.state == proto.StoppingBackup
}

// announce changes the state of the cluster within its service: the questions that are
// under way go on.
func (m *Machine) announce(s proto.ClusterState) {
	m.state = s
	m.log(slog.LevelInfo, "cluster state", "state", s.String())
	for _, p := range m.members {
		m.notify(p, &proto.NotifyClusterInformation{State: s})
	}
}

// startBackup makes a running cluster a backup.
func (m *Machine) startBackup(p *peer, id uint32) *proto.Error {
	switch {
	case m.set.Upstream.Cluster == "":
		return deny("no upstream cluster to backup is configured")
	case len(m.txns.pending) > 0:
		return deny("a transaction is pending")
	case len(m.ofType(proto.Client)) > 0:
		return deny("a client is connected")
	}
	m.ack(p, id, stateChanged)
	m.seen.forget()
	m.follow.reset()
	m.backup, m.leaving = proto.Some(m.ids.committed), false
	m.gate.hold, m.gate.decided = proto.Opt[tid.TID]{}, true
	m.follow.told = proto.Some(m.ids.committed)
	for n, row := range m.table.Rows() {
		for _, c := range row {
			if c.State.Readable() {
				m.follow.cell(n, c.ID).backup = m.ids.committed
			}
		}
	}
	for _, s := range m.ofType(proto.Storage) {
		if s.node.State == proto.NodeRunning {
			m.tellTerms(s)
			m.notify(s, &proto.StartOperation{Backup: true})
		}
	}
	m.announce(proto.StartingBackup)
	return nil
}

// enterBackup starts the operation of a backup, after the verification.
func (m *Machine) enterBackup() {
	m.follow.reset()
	m.follow.moved = true
	m.seen.forget()
	m.restoreHold()
	m.follow.before = m.upToHold(m.ids.committed)
	for n, row := range m.table.Rows() {
		for _, c := range row {
			info := m.rec.info[m.stores[c.ID]]
			if c.State.Readable() && info != nil {
				m.follow.cell(n, c.ID).backup = m.upToHold(info.BackupTID.V)
			}
		}
	}
	m.backup = proto.Some(m.reached(true))
	m.become(proto.StartingBackup)
	m.served = true
	for _, p := range m.ofType(proto.Storage) {
		if p.node.State == proto.NodeRunning {
			m.startStorage(p)
		}
	}
}

// tryFollow goes on with what a backup waits for. It is called after every event.
func (m *Machine) tryFollow() {
	u := &m.up
	switch {
	case m.second != nil || m.ended:
	case m.state == proto.StartingBackup && m.leaving:
		m.leaveAgain()
	case m.state == proto.StartingBackup && u.link == nil:
		m.seekUpstream()
	case m.state == proto.StartingBackup && u.tabled:
		for _, id := range m.table.ReadableNodes() {
			// What it has recorded tells which gaps are behind the cluster: see allowPacks.
			if p := m.stores[id]; p == nil || p.ready == 0 || p.follows && !p.stored.OK {
				return
			}
		}
		if !m.sameHistory() {
			return
		}
		m.announce(proto.BackingUp)
		m.follow.since = m.now
		m.ask(u.link, &proto.AskLastTransaction{})
		m.askPacks(m.packsFrom(), packQuestion{})
	case m.state == proto.StoppingBackup && m.reached(false) >= m.backup.V:
		m.leaveBackup()
	}
}

// packsFrom returns from where on pack orders of the upstream cluster are needed.
func (m *Machine) packsFrom() tid.TID {
	from := m.backup.V.Add(1)
	for _, id := range m.pack.ids() {
		if o := m.pack.orders[id]; !o.Approved.OK && id < from {
			return id
		}
	}
	return from
}

// seekUpstream connects to the next master of the upstream cluster. The shell leaves a
// second between two attempts at one address.
func (m *Machine) seekUpstream() {
	u, all := &m.up, m.set.Upstream.Masters
	if !u.dialing.IsZero() || len(all) == 0 {
		return
	}
	u.dialing, u.named = u.named, proto.Address{}
	if u.dialing.IsZero() {
		u.dialing = all[u.next%len(all)]
		u.next++
	}
	m.dial(u.dialing)
}

// upstreamConnected identifies this cluster as a backup.
func (m *Machine) upstreamConnected(conn ConnID, a proto.Address) {
	u := &m.up
	u.dialing = proto.Address{}
	if m.state != proto.StartingBackup || u.link != nil {
		m.out = append(m.out, Effect{Op: Close, Conn: conn})
		return
	}
	u.link = &peer{conn: conn, dialed: a, role: upstreamMaster}
	u.listed, u.tabled, u.known, u.packs = false, false, false, false
	u.tails = tails{}
	u.nodes, u.table = nodetab.Table{}, parttab.Table{}
	m.peers[conn] = u.link
	m.ask(u.link, &proto.RequestIdentification{Type: proto.Client, ID: u.id, Cluster: m.set.Upstream.Cluster,
		Extra: map[string]proto.Value{"backup": []byte(m.set.Cluster)}})
}

// unfollowed notes why the upstream cluster cannot be followed, once for each reason.
func (m *Machine) unfollowed(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	m.up.note = text
	if !m.up.notes[text] {
		// Several masters may fail in turn, each for a reason of its own.
		if m.up.notes == nil || len(m.up.notes) >= maxRefusals {
			m.up.notes = map[string]bool{}
		}
		m.up.notes[text] = true
		m.log(slog.LevelWarn, "upstream cluster: "+text)
	}
}

func (m *Machine) upstreamAnswered(p *peer, ev Event) {
	u := &m.up
	if p != u.link {
		return
	}
	if e, ok := ev.Packet.(*proto.Error); ok {
		m.unfollowed("the master at %v refuses: %s", p.dialed, e.Message)
		m.close(p)
		return
	}
	switch a := ev.Packet.(type) {
	case *proto.AcceptIdentification:
		if a.Type != proto.Master || a.YourID == 0 {
			m.unfollowed("%v is not a master", p.dialed)
			m.close(p)
			return
		}
		u.id = a.YourID
		if u.note == "" { // else it is the next of many attempts
			m.log(slog.LevelInfo, "upstream master found", "addr", p.dialed.String())
		}
	case *proto.AnswerLastTransaction:
		m.upstreamLast(a.TID)
	case *proto.AnswerPackOrders:
		m.upstreamPacks(a.Orders)
	default:
		m.close(p)
	}
}

// upstreamLast takes the last transaction of the upstream cluster. What has changed
// while there was no link is not known: each cell must look.
func (m *Machine) upstreamLast(t tid.TID) {
	if m.state != proto.BackingUp && m.state != proto.StartingBackup {
		return
	}
	if t < m.ids.committed {
		m.unfollowed("it was truncated: its last transaction is %v, but this backup has known %v; truncate this cluster too", t, m.ids.committed)
		if m.keepable() == tid.Zero {
			m.log(slog.LevelError, "a backup that has nothing cannot be left")
			m.close(m.up.link)
			return
		}
		m.stopBackup()
		return
	}
	if m.state != proto.BackingUp {
		m.up.tails.may = true
		return
	}
	m.up.known, m.up.note, m.up.notes = true, "", nil
	m.expect(arrival{last: t, unknown: true})
}

func (m *Machine) upstreamPacket(p *peer, pkt proto.Packet) {
	u := &m.up
	switch pkt := pkt.(type) {
	case *proto.NotifyNodeInformation:
		u.nodes.Update(pkt.Nodes, !u.listed, nil)
		u.listed = true
		m.tellUpstreamAdmin(nil)
		m.triggerAll()
	case *proto.SendPartitionTable:
		if len(pkt.Rows) != m.table.NP() {
			m.unfollowed("it has %d partitions, and this cluster %d: a backup needs as many as the upstream cluster", len(pkt.Rows), m.table.NP())
			m.close(p)
			return
		}
		if err := parttab.Check(pkt.Rows); err != nil {
			m.unfollowed("unusable partition table: %v", err)
			m.close(p)
			return
		}
		u.table.Load(pkt.PTID, pkt.Replicas, pkt.Rows)
		u.tabled = true
	case *proto.NotifyPartitionChanges:
		if err := u.table.Apply(pkt, false); err != nil {
			m.unfollowed("%v", err)
			m.close(p)
			return
		}
		m.triggerAll()
	case *proto.InvalidatePartitions:
		m.upstreamCommitted(p, pkt)
	case *proto.NotifyPackSigned:
		if u.packs {
			m.upstreamSigned(p, pkt)
		}
	case *proto.NotifyClusterInformation, *proto.InvalidateObjects:
	case *proto.StopOperation:
		m.close(p)
	default:
		m.unfollowed("unexpected %T", pkt)
		m.close(p)
	}
}

func (m *Machine) upstreamCommitted(p *peer, pkt *proto.InvalidatePartitions) {
	np := m.table.NP()
	if !m.up.known || m.state != proto.BackingUp {
		return // the answer to AskLastTransaction covers it
	}
	touched := []int{pkt.TID.Partition(np)}
	for _, n := range pkt.Partitions {
		touched = append(touched, n)
		if n < 0 || n >= np {
			m.unfollowed("it names partition %d of %d", n, np)
			m.close(p)
			return
		}
	}
	if pkt.TID <= m.ids.committed {
		m.unfollowed("transaction %v does not follow %v", pkt.TID, m.ids.committed)
		m.close(p)
		return
	}
	slices.Sort(touched)
	m.expect(arrival{first: pkt.TID, last: pkt.TID, partitions: slices.Compact(touched)})
}

// upstreamSigned passes decisions about pack orders on.
func (m *Machine) upstreamSigned(p *peer, pkt *proto.NotifyPackSigned) {
	unknown := tid.Max
	sign := func(ids []tid.TID, approved bool) {
		for _, id := range ids {
			if o := m.pack.orders[id]; o != nil {
				o.Approved = proto.Some(approved)
			} else if !m.pack.completed.OK || id > m.pack.completed.V {
				unknown = min(unknown, id)
			}
		}
	}
	sign(pkt.Approved, true)
	sign(pkt.Rejected, false)
	if unknown < tid.Max {
		m.askPacks(unknown, packQuestion{})
	}
	m.relaySigned()
	m.allowPacks()
}

func (m *Machine) relaySigned() {
	signed := m.pack.signed()
	if signed == nil {
		return
	}
	for _, s := range m.ofType(proto.Storage) {
		if s.ready > 0 {
			m.notify(s, signed)
		}
	}
}

// tellUpstreamAdmin tells our first admin, or one that comes, which admin of the upstream
// cluster wants to know of this one.
func (m *Machine) tellUpstreamAdmin(to *peer) {
	first := to
	for _, a := range m.ofType(proto.Admin) {
		if to == nil && (first == nil || a.node.ID < first.node.ID) {
			first = a
		}
	}
	for n := range m.up.nodes.Nodes() {
		if first != nil && n.Type == proto.Admin && n.State == proto.NodeRunning && !n.Addr.IsZero() {
			m.notify(first, &proto.NotifyUpstreamAdmin{Addr: n.Addr})
			return
		}
	}
}

// upstreamMoved follows the redirection to the primary.
func (m *Machine) upstreamMoved(p *peer, pkt *proto.NotPrimaryMaster) {
	if i := pkt.Primary; i.OK && i.V >= 0 && i.V < len(pkt.Masters) {
		m.up.named = pkt.Masters[i.V]
	}
	m.close(p)
}

// upstreamHungUp notes that a master which was not followed yet has ended the connection,
// without a word.
func (m *Machine) upstreamHungUp(p *peer) {
	if m.up.link == p && m.state == proto.StartingBackup {
		m.unfollowed("the master at %v hangs up before this cluster can follow it; it may require TLS, or be too old", p.dialed)
	}
}

// upstreamLost goes back to looking for the upstream cluster.
func (m *Machine) upstreamLost(p *peer) {
	if m.up.link != p {
		return
	}
	m.forgetUpstream()
	if m.state != proto.BackingUp {
		return
	}
	m.log(slog.LevelWarn, "upstream cluster lost", "addr", p.dialed.String())
	m.backup = proto.Some(m.keepable())
	m.follow.lost()
	m.gate.lost()
	m.closeClients()
	m.announce(proto.StartingBackup)
	m.answerWithoutUpstream()
}

// answerWithoutUpstream answers what upstream does not any more. The storages do not
// announce what they had from there: the state of the cluster tells them.
func (m *Machine) answerWithoutUpstream() {
	q := m.up.questions
	m.up.questions = packQuestions{}
	for _, w := range slices.Concat(q.sent, q.waiting) {
		m.answerPackQuestion(w)
	}
}

func (m *Machine) forgetUpstream() {
	u := &m.up
	u.link, u.listed, u.tabled, u.known, u.packs = nil, false, false, false, false
	u.tails = tails{}
	u.nodes, u.table = nodetab.Table{}, parttab.Table{}
}

func (m *Machine) closeUpstream() {
	if p := m.up.link; p != nil && !p.gone {
		m.forgetUpstream()
		m.out = append(m.out, Effect{Op: Close, Conn: p.conn})
		m.forget(p)
	}
}

func (m *Machine) closeClients() {
	for _, p := range m.ofType(proto.Client) {
		m.abort(p)
	}
}

// stopBackup waits until all readable cells are as far as the furthest ones, and leaves then.
func (m *Machine) stopBackup() {
	m.closeUpstream()
	m.backup = proto.Some(m.keepable())
	m.closeClients()
	m.leaving = true
	m.announce(proto.StoppingBackup)
	m.answerWithoutUpstream()
	m.log(slog.LevelInfo, "leaving backup mode", "tid", m.backup.V.String(), "last_tid", m.ids.committed.String())
	for n := range m.table.NP() {
		m.chooseLeader(n)
	}
}

// leaveAgain repeats the order to leave backup mode after a loss of operation, as soon as the
// storages have said what they have.
func (m *Machine) leaveAgain() {
	m.advanceTold()
	switch {
	case !m.follow.told.OK:
	case m.keepable() == tid.Zero:
		m.log(slog.LevelError, "leaving backup mode: nothing that is complete is left; the backup goes on")
		m.leaving = false
	default:
		m.stopBackup()
		m.tryFollow()
	}
}

// leaveBackup truncates the database after what all cells have.
func (m *Machine) leaveBackup() {
	t, last := m.backup.V, m.ids.committed
	if t < last {
		m.log(slog.LevelWarn, "leaving backup mode: the database is truncated", "after", t.String(), "last_tid", last.String())
	}
	m.backup, m.leaving = proto.Opt[tid.TID]{}, false
	m.checks.board.Left()
	m.gate.hold, m.gate.decided = proto.Opt[tid.TID]{}, true // the order to truncate clears it
	m.stopOperation(proto.Some(t))
	if t == last {
		m.startup = startupDegraded // nothing is to be cut
	}
}
