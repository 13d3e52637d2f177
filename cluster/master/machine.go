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
	"github.com/neozodb/neo/cluster/vitals"
)

// Settings of a [Machine]. They do not change while it lives.
type Settings struct {
	Cluster    string
	Addr       proto.Address   // where the other nodes reach this one
	Masters    []proto.Address // all masters, this one included or not
	NID        proto.NodeID    // 0: the first free one
	Partitions int             // of a new database
	Replicas   int             // of a new database
	Autostart  int             // create a database once that many storages wait; 0: never
	Upstream   Upstream        // that the cluster may be a backup of
	Self       vitals.Self     // what this master tells of itself to operators
}

// Machine is a master without its connections. It has one owner.
type Machine struct {
	set      Settings
	now      time.Time
	hungUp   error   // why the connection that is being dropped has ended, nil if we end it
	clock    float64 // last moment given by monotonic
	out      []Effect
	returned bool // out was returned by the last step
	ended    bool

	nodes     nodetab.Table
	self      *proto.Node
	peers     map[ConnID]*peer
	members   []*peer // identified, in order of identification
	links     map[*proto.Node]*peer
	stores    map[proto.NodeID]*peer // identified storages
	where     map[proto.NodeID][]string
	dialing   map[proto.Address]bool
	displaced map[proto.Address]bool // storages that must get another id
	blind     bool                   // no table was known yet in this term: ids given may be in use
	saved     []proto.Address        // masters last saved
	learnt    bool                   // there may be others now
	announced proto.NodeID           // own id last told to the shell
	refusals  map[string]refusal     // of identifications, by reason

	claims []placeClaim // to places that are taken
	second *secondary   // nil: this master plays primary
	// unheard are the masters that this primary waits to hear of before it says that it is one;
	// nil: it has said so.
	unheard map[proto.Address]bool
	started float64 // since when it plays primary

	state  proto.ClusterState
	epoch  any // changes when answers to earlier questions become meaningless
	epochs int
	table  parttab.Managed

	rec recovery
	ver verification

	startup         startup
	backup          proto.Opt[tid.TID]
	leaving         bool               // this process was told to leave backup mode, and that is not done
	truncate        proto.Opt[tid.TID] // the database is being cut after this
	orderedTruncate proto.Opt[tid.TID] // this process was told to, and it is not done
	safePTID        uint64             // least version of a table that has all that was committed, as far as is known
	maxPTID         uint64             // greatest version ever broadcast
	held            []heldTable        // that a storage may have which is lost now; the last is the present one
	fed             []int              // partitions whose feeding cells are to be discarded
	final           *parttab.Managed   // the table when the operation has stopped; nil: not known
	notedPTID       uint64             // version that the storages are asked to confirm
	confirmedPTID   uint64             // greatest version that each storage with readable cells had stored
	served          bool               // the operation has begun since this master plays primary
	witnesses       []*peer            // that could be read when the operation stopped, and have not left since
	confirming      confirming
	confirmedTID    tid.TID // last committed when confirmedPTID was noted
	confirmedAt     time.Time
	seen            seen

	up       upstream
	follow   follower
	gate     gate
	checks   checks
	imports  imports
	reasons  map[proto.NodeID]string // why storages that are away have ended, as far as they said it
	ids      allocator
	txns     transactions
	pack     packs
	board    board
	starting int    // storages that were sent StartOperation and are not ready
	counter  uint64 // of storages that became ready
	marks    uint64 // of transactions prepared
	counts   counts
}

// startup is whether a database may start without all nodes with readable cells.
type startup uint8

const (
	startupWhole    startup = iota // no: as if this master knew nothing
	startupDegraded                // yes, as a loss of nodes has stopped the operation
	startupForced                  // yes: the operator said so
)

// peer is a connection, and what is known about who is at its other end.
type peer struct {
	conn     ConnID
	role     role
	dialed   proto.Address // of an outgoing connection
	node     *proto.Node   // once identified
	pending  int           // requests of ours without answer
	gone     bool
	silent   bool      // it gives no sign of life
	silentAt time.Time // when that was last said

	// Of a storage.
	newID     bool   // it came without the id that it has
	ready     uint64 // its number in the order of readiness; 0: not ready
	starting  bool
	lastAsked bool               // AskLastIDs was sent since the last recovery
	completed proto.Opt[tid.TID] // pack order done
	mark      uint64             // equal to Machine.marks: already involved
	claim     *claim             // what it said of its database when it came; nil: nothing
	reported  uint64             // version of the table that it had in the last recovery, or has confirmed since, if its cells were trusted then; else 0
	fresh     bool               // it has not served since it came: its database may be another one

	reports bool                        // it understands reports of checks
	imports bool                        // it understands messages about imports
	follows bool                        // it understands messages about backup clusters
	vitals  bool                        // it understands messages about nodes
	hold    proto.Opt[tid.TID]          // that the database of a storage remembers
	stored  proto.Opt[following.Stored] // by a storage of a backup cluster; absent: it has not said so since it was started
	tails   bool                        // it can compare the end of a partition with the upstream cluster

	// Of a client or an admin.
	readOnly bool
	backups  []string // names of backup clusters: of a backup master its own, of an admin those it watches
}

func (p *peer) String() string {
	if p.node != nil {
		return p.node.ID.String()
	}
	return fmt.Sprintf("connection %d", p.conn)
}

type role uint8

const (
	stranger       role = iota // incoming, not identified
	candidate                  // outgoing to another master, to find out who is primary
	leader                     // outgoing to our primary
	member                     // identified to us
	upstreamMaster             // outgoing to the upstream cluster
)

// NewMachine returns a master that plays primary. The effects of its start come
// with those of the first event.
func NewMachine(now time.Time, s Settings) *Machine {
	m := &Machine{
		set:       s,
		now:       now,
		peers:     map[ConnID]*peer{},
		links:     map[*proto.Node]*peer{},
		stores:    map[proto.NodeID]*peer{},
		where:     map[proto.NodeID][]string{},
		dialing:   map[proto.Address]bool{},
		displaced: map[proto.Address]bool{},
	}
	m.self = m.nodes.Put(proto.Node{Type: proto.Master, Addr: s.Addr, State: proto.NodeRunning})
	m.learnt = true
	for _, a := range s.Masters {
		m.learn(a)
	}
	m.playPrimary()
	return m
}

// Step consumes one event and returns what must be done, in order. The slice is
// valid until the next step.
func (m *Machine) Step(now time.Time, ev Event) []Effect {
	if m.ended {
		return nil
	}
	if m.returned {
		clear(m.out)
		m.out, m.returned = m.out[:0], false
	}
	m.now = now
	m.gate.reports.changed = m.gate.reports.changed || ev.Kind != Woken
	m.event(ev)
	m.admitClaims()
	m.tryStart()
	m.tryFollow()
	m.tryGate()
	m.advanceTold()
	m.endGate()
	m.tell()
	m.confirmOften()
	m.tellSelf()
	m.returned = true
	return m.out
}

func (m *Machine) event(ev Event) {
	switch ev.Kind {
	case nothing:
		return
	case Accepted:
		m.peers[ev.Conn] = &peer{conn: ev.Conn}
		return
	case Connected:
		m.connected(ev.Conn, ev.Addr)
		return
	case ConnectFailed:
		m.connectFailed(ev.Addr)
		return
	case StopAsked:
		m.exit(nil)
		return
	case Woken:
		m.gate.wake = time.Time{}
		return
	}
	p := m.peers[ev.Conn]
	if p == nil {
		return // closed by us meanwhile
	}
	switch ev.Kind {
	case Silent:
		m.silent(p, ev.Silence, ev.Beats)
		return
	case Probed:
		m.probed(p, ev.Alive, ev.Beats)
		return
	}
	p.silent = false
	switch ev.Kind {
	case Received:
		m.received(p, ev.ID, ev.Packet)
	case Answered:
		p.pending--
		m.answered(p, ev)
	case Closed:
		m.upstreamHungUp(p)
		m.hungUp = ev.Err
		m.drop(p)
	}
}

func (m *Machine) received(p *peer, id uint32, pkt proto.Packet) {
	switch pkt := pkt.(type) {
	case *proto.Ping:
		m.answer(p, id, &proto.Pong{})
		return
	case *proto.CloseClient:
		m.close(p)
		return
	case *proto.Error:
		// It answers a notification, as nothing else would be delivered here.
		m.log(slog.LevelWarn, "error from peer", "node", p.String(), "err", pkt.Error())
		return
	case *proto.FlushLog:
		m.flushLog(p)
		return
	case *proto.NotPrimaryMaster:
		if p.role == upstreamMaster {
			m.upstreamMoved(p, pkt)
			return
		}
		m.notPrimary(p, pkt)
		return
	case *proto.NotifyNodeInformation:
		if p.role != leader && p.role != upstreamMaster {
			m.log(slog.LevelDebug, "node information is ignored", "node", p.String())
			return
		}
	}
	switch {
	case p.role == member:
		m.memberPacket(p, id, pkt)
	case p.role == leader:
		m.leaderPacket(p, id, pkt)
	case p.role == upstreamMaster:
		m.upstreamPacket(p, pkt)
	case p.role == stranger && m.second != nil:
		m.redirect(p, id, pkt)
	case p.role == stranger:
		if r, ok := pkt.(*proto.RequestIdentification); ok {
			m.identify(p, id, r)
		} else {
			m.refuse(p, id, pkt, "identification expected")
		}
	default:
		m.unexpected(p, id, pkt)
	}
}

// memberPacket dispatches what an identified node sends. These questions are
// answered to everybody.
func (m *Machine) memberPacket(p *peer, id uint32, pkt proto.Packet) {
	switch pkt.(type) {
	case *proto.AskClusterState:
		m.answer(p, id, &proto.AnswerClusterState{State: proto.Some(m.state)})
		return
	case *proto.AskRecovery:
		backup := m.backup
		if m.state == proto.StartingBackup || m.state == proto.BackingUp {
			backup = proto.Some(m.lateFrom())
		}
		m.answer(p, id, &proto.AnswerRecovery{PTID: m.table.PTID(), BackupTID: backup, TruncateTID: m.truncate})
		return
	case *proto.AskLastIDs:
		if m.inBackup() && p.node.Type == proto.Client {
			m.answerError(p, id, proto.ReadOnlyAccess, "the connection is read-only")
			return
		}
		m.answer(p, id, &proto.AnswerLastIDs{
			LastTID:  proto.Some(m.txns.last(m.ids.committed)),
			LastOID:  proto.Some(m.ids.oid),
			FirstTID: m.ids.first,
		})
		return
	case *proto.AskLastTransaction:
		last := m.ids.committed
		if m.inBackup() && p.node.Type == proto.Client {
			last = m.follow.teller.upTo
		}
		m.answer(p, id, &proto.AnswerLastTransaction{TID: last})
		return
	}
	switch p.node.Type {
	case proto.Storage:
		m.storagePacket(p, id, pkt)
	case proto.Client:
		m.clientPacket(p, id, pkt)
	case proto.Admin:
		m.adminPacket(p, id, pkt)
	default:
		if n, ok := pkt.(*proto.NotifyMonitorInformation); ok && m.vitalsMessage(p, n) {
			return
		}
		m.unexpected(p, id, pkt)
	}
}

func (m *Machine) answered(p *peer, ev Event) {
	switch {
	case p.role == candidate || p.role == leader:
		m.identified(p, ev.Packet)
		return
	case p.role == upstreamMaster:
		m.upstreamAnswered(p, ev)
		return
	case ev.Tag != m.epoch:
		return // the question was about a state that is over
	}
	switch req := ev.Request.(type) {
	case *proto.AskLockInformation:
		m.lockAnswered(p, req.TTID, ev.Packet)
		return
	case *proto.AskTransactionInformation:
		m.objectsKnown(p, req.TID, ev.Packet)
		return
	case *proto.AskPackOrders:
		if m.state != proto.Verifying && req.Min == tid.Max {
			m.confirmAnswered(p)
			return
		}
		if m.state != proto.Verifying {
			m.packOrdersAnswered(p, ev.Packet)
			return
		}
	case *proto.AskLastIDs:
		if m.state != proto.Verifying {
			return // it was only asked to make the storage cut its data
		}
	}
	if e, ok := ev.Packet.(*proto.Error); ok {
		m.log(slog.LevelWarn, "storage cannot answer", "node", p.String(), "request", fmt.Sprintf("%T", ev.Request), "err", e.Error())
	}
	switch m.state {
	case proto.Recovering:
		if a, ok := ev.Packet.(*proto.AnswerRecovery); ok {
			p.reported = a.PTID.V
		}
		m.recoveryAnswered(p, ev.Packet)
	case proto.Verifying:
		m.verificationAnswered(p, ev.Request, ev.Packet)
	}
}

// Effects.

func (m *Machine) notify(p *peer, pkt proto.Packet) {
	m.out = append(m.out, Effect{Op: Notify, Conn: p.conn, Packet: pkt})
}

func (m *Machine) ask(p *peer, req proto.Request) {
	p.pending++
	m.out = append(m.out, Effect{Op: Ask, Conn: p.conn, Packet: req, Tag: m.epoch})
}

// answer answers a request, unless its connection has ended since.
func (m *Machine) answer(p *peer, id uint32, pkt proto.Packet) {
	if !p.gone {
		m.out = append(m.out, Effect{Op: Answer, Conn: p.conn, ID: id, Packet: pkt})
	}
}

func (m *Machine) answerError(p *peer, id uint32, code proto.ErrorCode, format string, args ...any) {
	m.answer(p, id, proto.Errorf(code, format, args...))
}

// refuse answers a request with a protocol error and ends the connection. A
// notification gets no answer: a Python client dies of one.
func (m *Machine) refuse(p *peer, id uint32, pkt proto.Packet, format string, args ...any) {
	m.refuseAs(proto.ProtocolError, p, id, pkt, format, args...)
}

func (m *Machine) refuseAs(code proto.ErrorCode, p *peer, id uint32, pkt proto.Packet, format string, args ...any) {
	e := proto.Errorf(code, format, args...)
	m.tellRefusal(p, pkt, e)
	if _, ok := pkt.(proto.Request); ok || p.node == nil || p.node.Type != proto.Client {
		m.answer(p, id, e)
	}
	m.abort(p)
}

// refusal is how often a reason to refuse an identification has come up.
type refusal struct {
	told   time.Time
	untold int // since then
}

const (
	refusalInterval = time.Minute
	maxRefusals     = 1000 // reasons that are remembered
)

// tellRefusal logs a refusal. A node that is refused an identification comes back each
// second: the same reason is told at most once a minute then.
func (m *Machine) tellRefusal(p *peer, pkt proto.Packet, e *proto.Error) {
	attrs := []any{"node", p.String(), "packet", fmt.Sprintf("%T", pkt), "err", e.Error()}
	if p.node == nil {
		r, known := m.refusals[e.Error()]
		if known && m.now.Sub(r.told) < refusalInterval {
			m.refusals[e.Error()] = refusal{r.told, r.untold + 1}
			m.log(slog.LevelDebug, "connection refused", attrs...)
			return
		}
		if r.untold > 0 {
			attrs = append(attrs, "untold", r.untold)
		}
		if m.refusals == nil || len(m.refusals) >= maxRefusals {
			m.refusals = map[string]refusal{}
		}
		m.refusals[e.Error()] = refusal{told: m.now}
	}
	level := slog.LevelWarn
	if e.ErrCode == proto.NotReady {
		level = slog.LevelInfo // it waits, as it should
	}
	m.log(level, "connection refused", attrs...)
}

func (m *Machine) unexpected(p *peer, id uint32, pkt proto.Packet) {
	m.refuse(p, id, pkt, "unexpected packet in state %v", m.state)
}

func (m *Machine) log(level slog.Level, text string, attrs ...any) {
	m.out = append(m.out, Effect{Op: Log, Line: &Line{level, text, attrs}})
}

// abort ends a connection after what is queued on it, and draws the consequences.
func (m *Machine) abort(p *peer) { m.end(p, Abort) }

// close ends a connection at once, and draws the consequences.
func (m *Machine) close(p *peer) { m.end(p, Close) }

func (m *Machine) end(p *peer, op Op) {
	if !p.gone {
		m.out = append(m.out, Effect{Op: op, Conn: p.conn})
		m.drop(p)
	}
}

// forget removes a connection without drawing consequences.
func (m *Machine) forget(p *peer) {
	p.gone = true
	delete(m.peers, p.conn)
	if p.role == member {
		m.members = slices.DeleteFunc(m.members, func(o *peer) bool { return o == p })
		delete(m.links, p.node)
		if m.stores[p.node.ID] == p {
			delete(m.stores, p.node.ID)
		}
		m.leaveImports(p)
		m.leaveVitals(p)
	}
}

// drop removes a connection that has ended and draws the consequences.
func (m *Machine) drop(p *peer) {
	if p.gone {
		return
	}
	m.tellLost(p)
	m.forget(p)
	switch p.role {
	case candidate:
		m.heard(p.dialed)
		m.elect()
	case leader:
		m.leaderLost(p)
	case upstreamMaster:
		m.upstreamLost(p)
	case member:
		switch p.node.Type {
		case proto.Storage:
			m.counts.lost++
			m.storageLost(p)
		case proto.Client:
			m.clientLost(p)
		case proto.Admin:
			m.nodes.Remove(p.node)
		case proto.Master:
			m.setState(p.node, proto.NodeDown)
			m.elect()
		}
	}
}

// monotonic returns the time in seconds since 1970, but always more than before.
func (m *Machine) monotonic() float64 {
	t := float64(m.now.UnixNano()) / 1e9
	if t <= m.clock {
		t = m.clock + 0.001
	}
	m.clock = t
	return t
}

// exit ends the master.
func (m *Machine) exit(err error) {
	if !m.ended {
		m.ended = true
		m.out = append(m.out, Effect{Op: Exit, Err: err})
	}
}

// ofType returns the identified nodes of a type, in order of identification. The
// slice is a copy: what is done with the nodes may end connections.
func (m *Machine) ofType(t proto.NodeType) []*peer {
	var list []*peer
	for _, p := range m.members {
		if p.node.Type == t {
			list = append(list, p)
		}
	}
	return list
}

// running reports whether a storage takes part in the operation.
func (m *Machine) running(id proto.NodeID) bool { return m.nodes.Running(id) }

// service reports whether the storages operate: the cluster serves clients, waits for
// their transactions before it stops, or is a backup.
func (m *Machine) service() bool {
	return m.state == proto.Running || m.state == proto.Stopping || m.inBackup()
}
