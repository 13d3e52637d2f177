package master

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// agreement is what the storages were told, and what is divided among them.
type agreement struct {
	told    following.Terms // without Packs
	rate    int64           // of each storage; 0: no limit
	divided time.Time       // when the rate was divided
	busy    int             // storages that were fetching then
}

// divideEvery is how often the rate is divided among the storages that fetch.
const divideEvery = time.Second

// divideRate divides the rate among the storages that fetch from upstream.
func (m *Machine) divideRate() {
	a, rate := &m.gate.agreed, m.set.Upstream.Rate
	if rate == 0 || !a.divided.IsZero() && m.now.Sub(a.divided) < divideEvery {
		return
	}
	busy := map[proto.NodeID]bool{}
	for n, id := range m.follow.primary {
		if r := m.follow.cell(n, id); r.replicating > r.backup {
			busy[id] = true
		}
	}
	a.divided, a.busy = m.now, len(busy)
	a.rate = max(1, rate/int64(max(1, a.busy)))
}

// tellTerms tells a storage on which terms it follows.
func (m *Machine) tellTerms(p *peer) {
	if p.follows {
		m.notify(p, m.terms().Packet())
		p.hold = m.gate.hold
	}
}

func (m *Machine) terms() *following.Terms {
	g := &m.gate
	return &following.Terms{Packs: m.follow.allowed, Rate: g.agreed.rate, Hold: g.hold, Paused: g.shut}
}

// agree tells the storages when the terms have changed.
func (m *Machine) agree() {
	m.divideRate()
	t := *m.terms()
	t.Packs = tid.Zero // see allowPacks
	if t == m.gate.agreed.told {
		return
	}
	m.gate.agreed.told = t
	for _, p := range m.ofType(proto.Storage) {
		if p.ready > 0 || p.starting {
			m.tellTerms(p)
		}
	}
}

// restoreHold takes over the hold that the storages remember. Only those with readable cells
// count: another one may not know that it was released.
func (m *Machine) restoreHold() {
	g := &m.gate
	if g.decided {
		return
	}
	g.decided = true
	for _, id := range m.table.ReadableNodes() {
		if p := m.stores[id]; p != nil && p.hold.OK && (!g.hold.OK || p.hold.V < g.hold.V) {
			g.hold = p.hold
		}
	}
	if g.hold.OK {
		m.log(slog.LevelInfo, "this backup is held: neoctl backup release ends that", "tid", g.hold.V.String())
	}
}

// remembered reports whether some storage remembers a hold over a restart.
func (m *Machine) remembered() bool {
	for _, id := range m.table.ReadableNodes() {
		if p := m.stores[id]; p != nil && p.follows {
			return true
		}
	}
	return false
}

// reports is what the admins were told.
type reports struct {
	last    following.Report
	at      time.Time
	changed bool      // something has happened since
	urgent  bool      // it was ordered
	linked  bool      // the upstream cluster was known in this operation
	late    time.Time // since when clients do not see all that is wanted; zero: they do
}

// reportEvery is how often admins are told at most, and lateEvery how often of what only
// time changes.
const (
	reportEvery = time.Second
	lateEvery   = 10 * time.Second
)

// followReport returns how far this cluster follows the upstream cluster.
func (m *Machine) followReport() following.Report {
	g, f, u := &m.gate, &m.follow, &m.set.Upstream
	r := following.Report{
		Backup: m.keepable(), Readable: f.told.V, Bound: m.upToHold(g.wanted), Hold: g.hold, Delay: u.Delay, Closed: g.shut,
		Linked: m.up.known, Rate: u.Rate, Note: m.up.note,
	}
	if g.reports.linked {
		r.Upstream = m.ids.committed
	}
	if r.Closed {
		r.Opens = m.opens()
	}
	if r.Readable >= r.Bound {
		g.reports.late = time.Time{}
	} else {
		if g.reports.late.IsZero() {
			g.reports.late = m.now
		}
		// By the ids of the upstream cluster, as the clocks may differ; but what was shut out has
		// not been wanted for longer than since the opening.
		from := m.outOfGaps(m.reachedBy(false, func(r *reach) tid.TID { return max(r.backup, m.upToHold(r.free)) }))
		by := r.Bound.Time().Sub(max(r.Readable, from).Time()) + m.now.Sub(g.raised)
		r.Due = max(0, min(by, m.now.Sub(g.reports.late)))
	}
	for _, id := range m.table.ReadableNodes() {
		p := m.stores[id]
		if p == nil || p.stored.V.Gap[1] == tid.Zero {
			continue
		}
		if gap := p.stored.V.Gap; r.Gap[1] == tid.Zero {
			r.Gap = gap
		} else {
			r.Gap = [2]tid.TID{min(r.Gap[0], gap[0]), max(r.Gap[1], gap[1])}
		}
	}
	if ahead := m.ids.committed.Time().Sub(m.now); r.Note == "" && u.Delay > 0 && r.Linked && ahead > time.Minute {
		r.Note = fmt.Sprintf("the ids of the upstream cluster are %s ahead of the clock of this master: the delay is counted from when a transaction is known",
			following.Duration(ahead))
	}
	return r
}

// opens returns when storages may fetch again; zero if that is not known.
func (m *Machine) opens() time.Time {
	g, u := &m.gate, &m.set.Upstream
	t := m.now
	if m.scheduled() && !g.run {
		if t = g.fires; t.IsZero() {
			return t
		}
	}
	if !u.Window.Open(t) {
		t = u.Window.Change(t)
	}
	return t
}

// tellReports tells the admins how far this cluster follows, when that has changed.
func (m *Machine) tellReports() {
	s := &m.gate.reports
	s.linked = s.linked || m.up.known
	if !s.urgent && (!s.changed && s.late.IsZero() || m.now.Sub(s.at) < reportEvery) {
		return
	}
	var admins []*peer
	for _, p := range m.members {
		if p.node.Type == proto.Admin && p.follows {
			admins = append(admins, p)
		}
	}
	if admins == nil {
		return
	}
	s.changed, s.urgent, s.at = false, false, m.now
	r := m.followReport()
	if r == s.last {
		return
	}
	s.last = r
	for _, p := range admins {
		m.notify(p, r.Packet())
	}
}

// nextReport returns when the admins are to be told again; zero: when something happens.
func (m *Machine) nextReport() time.Time {
	switch s := &m.gate.reports; {
	case s.at.IsZero():
		return s.at
	case s.changed:
		return s.at.Add(reportEvery)
	case !s.late.IsZero():
		return s.at.Add(lateEvery)
	}
	return time.Time{}
}

// joinFollowing tells an admin what it has missed.
func (m *Machine) joinFollowing(p *peer) {
	if p.node.Type == proto.Admin && p.follows && m.inBackup() {
		r := m.followReport()
		m.notify(p, r.Packet())
	}
}

// backupOrdered obeys an operator.
func (m *Machine) backupOrdered(p *peer, msg *following.Message) {
	text := m.orderHold(&msg.Order)
	if text != "" {
		m.log(slog.LevelInfo, "operator denied", "err", text)
	}
	m.gate.reports.urgent = true
	m.tryGate() // what was ordered is on its way to the storages before the answer, and the report too
	m.tellReports()
	m.notify(p, (&following.Message{Topic: following.Answered, Number: msg.Number, Text: text}).Packet())
}
