package master

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// recovery looks for the newest partition table that a storage has, and for the
// moment when the cluster can start with it.
type recovery struct {
	target  uint64  // greatest version reported; 0: none
	holders []*peer // which have it, in order of their answers
	asked   *peer   // the holder asked for it
	loaded  bool
	info    map[*peer]*proto.AnswerRecovery
	warned  bool   // of why the cluster does not start
	missing string // storages that were last said to be waited for
	since   time.Time
	long    bool // it takes long
	stale   stale
}

func newRecovery() recovery {
	return recovery{info: map[*peer]*proto.AnswerRecovery{}, stale: stale{views: map[*peer][][]proto.Cell{}}}
}

// patience is how long storages may be away before that is worth a warning: they are
// not all started in the same moment.
const patience = 5 * time.Second

func (m *Machine) recoveryAnswered(p *peer, pkt proto.Packet) {
	r := &m.rec
	switch pkt := pkt.(type) {
	case *proto.AnswerRecovery:
		r.info[p] = pkt
		if p.claim != nil && p.claim.confirmed <= pkt.PTID.V {
			r.stale.confirmed = max(r.stale.confirmed, p.claim.confirmed)
		}
		if m.displace(p) {
			return
		}
		switch {
		case !pkt.PTID.OK || pkt.PTID.V < r.target || pkt.PTID.V == 0:
		case pkt.PTID.V > r.target:
			r.target, r.holders, r.loaded = pkt.PTID.V, []*peer{p}, false
			m.askTable(p)
		case !slices.Contains(r.holders, p):
			r.holders = append(r.holders, p)
			if r.asked == nil && !r.loaded {
				m.askTable(p)
			}
		}
	case *proto.AnswerPartitionTable:
		r.stale.saw(p, pkt)
		if p != r.asked {
			return
		}
		r.asked = nil
		if !pkt.PTID.OK || pkt.PTID.V != r.target {
			return // of an earlier question; the holder has another version by now
		}
		if err := parttab.Check(pkt.Rows); err != nil || pkt.Replicas < 0 {
			m.log(slog.LevelError, "unusable partition table", "node", p.String(), "ptid", pkt.PTID.V, "err", err)
			m.close(p)
			return
		}
		m.loadTable(p, pkt)
	case *proto.Error:
		m.close(p) // it cannot take part; it may come back
	}
}

func (m *Machine) askTable(p *peer) {
	m.rec.asked = p
	m.ask(p, &proto.AskPartitionTable{})
}

func (m *Machine) loadTable(p *peer, pkt *proto.AnswerPartitionTable) {
	m.rec.loaded = true
	m.table.Load(pkt.PTID, pkt.Replicas, pkt.Rows)
	m.backup = m.rec.info[p].BackupTID
	if m.orderedTruncate.OK {
		m.backup = proto.Opt[tid.TID]{} // the order clears it
	}
	var unknown []*proto.Node
	for _, id := range m.table.Nodes() {
		if m.nodes.ByID(id) == nil {
			unknown = append(unknown, m.nodes.Put(proto.Node{Type: proto.Storage, ID: id, State: proto.NodeDown}))
		}
	}
	m.log(slog.LevelInfo, "partition table loaded", "node", p.String(), "ptid", pkt.PTID.V,
		"partitions", m.table.NP(), "replicas", m.table.Replicas())
	for _, o := range m.ofType(proto.Storage) {
		m.displace(o)
	}
	now := m.monotonic()
	table := m.tablePacket()
	for _, a := range m.ofType(proto.Admin) {
		if unknown != nil {
			list := make([]proto.Node, len(unknown))
			for i, n := range unknown {
				list[i] = *n
			}
			m.notify(a, &proto.NotifyNodeInformation{Timestamp: now, Nodes: list})
		}
		m.notify(a, table)
	}
}

// displace ends the link to a new storage that was given the id of one with
// cells: it came first, when nobody knew that the id was in use, and keeps the
// owner away. It gets another id when it comes back.
func (m *Machine) displace(p *peer) bool {
	return m.blind && m.rec.loaded && m.table.HasCells(p.node.ID) && m.makePlace(p)
}

// makePlace is displace for an id that another storage has as its own. It reports
// false if the one that is there has a database, or has not yet said so.
func (m *Machine) makePlace(p *peer) bool {
	info := m.rec.info[p]
	if m.state != proto.Recovering || info == nil || info.PTID.OK {
		return false
	}
	m.log(slog.LevelWarn, "a new storage was given the id of another one", "node", p.String(), "addr", p.node.Addr.String())
	m.displaced[p.node.Addr] = true
	m.close(p)
	return true
}

// recoveryLost handles the loss of a storage. The table it was asked for is
// asked from another holder; an older one is never taken instead.
func (m *Machine) recoveryLost(p *peer) {
	r := &m.rec
	if m.blind && p.newID && !r.loaded {
		m.displaced[p.node.Addr] = true // the id may be that of another one
	}
	m.witnessLost(p)
	delete(r.info, p)
	delete(r.stale.views, p)
	r.holders = slices.DeleteFunc(r.holders, func(o *peer) bool { return o == p })
	if r.asked == p {
		r.asked = nil
		if len(r.holders) > 0 {
			m.askTable(r.holders[0])
		}
	}
	if p.node.State != proto.NodeUnknown { // else it was dropped
		m.setState(p.node, proto.NodeDown)
	}
}

// mayBeNeeded reports whether a storage may hold what no other has, although the
// partition table has others with readable cells: it may be older than the last
// commit, and is perhaps not even known yet. Nor is the only one dropped that has the
// newest table, as the older ones may name it as up to date, and not those that are.
func (m *Machine) mayBeNeeded(id proto.NodeID) bool {
	p, r := m.stores[id], &m.rec
	switch {
	case m.state != proto.Recovering:
		return false
	case r.loaded && p != nil && (r.info[p] == nil || len(r.holders) == 1 && r.holders[0] == p):
		return true
	case r.loaded:
		return (p != nil || r.target < m.safePTID) && slices.Contains(m.table.ReadableNodes(), id)
	}
	return r.target > 0 || m.maxPTID > 0 || p != nil && r.info[p] == nil
}

// tryStart leaves the recovery if the cluster can start. It is called after
// every event.
func (m *Machine) tryStart() {
	if m.second != nil || m.ended || m.state != proto.Recovering {
		return
	}
	switch {
	case m.rec.target == 0:
		m.tryCreate()
	case m.rec.loaded && m.table.Filled():
		m.tryRestart()
	case !m.rec.loaded && len(m.rec.holders) == 0:
		m.warnChanged(fmt.Sprintf("waiting: the storage with the newest partition table, %d, has left", m.rec.target))
	}
}

// tryCreate makes a new database of all storages present. Once this process has
// known one, that is for the operator to decide: the storages that hold it are only
// away, and would be emptied when they come back.
func (m *Machine) tryCreate() {
	storages := m.ofType(proto.Storage)
	enough := m.set.Autostart > 0 && len(storages) >= m.set.Autostart
	if enough && m.maxPTID > 0 && m.startup != startupForced {
		if slices.ContainsFunc(storages, func(p *peer) bool { return m.rec.info[p] == nil }) {
			return // it may be one of those, and has not answered yet
		}
		m.warnOnce("waiting: the storages present are empty, those of the database are away; an explicit start makes a new database")
		return
	}
	wanted := m.startup == startupForced && len(storages) > 0 || enough
	if !wanted || slices.ContainsFunc(storages, func(p *peer) bool { return p.pending > 0 }) {
		return
	}
	var ids []proto.NodeID
	var nodes []*proto.Node
	for _, p := range storages {
		ids = append(ids, p.node.ID)
		nodes = append(nodes, p.node)
	}
	spread, err := m.table.Make(m.set.Partitions, m.set.Replicas, ids, m.place)
	if err != nil {
		m.log(slog.LevelError, "no partition table can be made", "err", err)
		return
	}
	if m.maxPTID > 0 {
		m.table.Number(m.maxPTID + 1)
	}
	m.warnTopology(spread)
	m.maxPTID = max(m.maxPTID, m.table.PTID().V)
	m.setRunning(nodes)
	for _, a := range m.ofType(proto.Admin) {
		m.sendTable(a)
	}
	m.enterVerification()
}

// place is the topology of the storages.
func (m *Machine) place(id proto.NodeID) []string { return m.where[id] }

func (m *Machine) warnTopology(spread bool) {
	if !spread {
		m.log(slog.LevelWarn, "replicas cannot be spread evenly over hosts and devices, which are ignored")
	}
}

// present reports whether a storage waits with a database of the cluster. One
// that has lost its database, but has kept its address, has not.
func (m *Machine) present(id proto.NodeID) bool {
	p := m.stores[id]
	return p != nil && p.node.State == proto.NodePending && m.rec.info[p] != nil && m.rec.info[p].PTID.OK
}

// tryRestart starts an existing database.
func (m *Machine) tryRestart() {
	if !m.table.Operational(m.present) {
		m.waitFor(m.table.ReadableNodes(), "waiting for storages: those connected do not have all partitions")
		return
	}
	truncate, outvoted, ok := m.settleTruncation()
	if !ok {
		m.warnOnce("waiting: some storages have an order to truncate the database, others have not, and cannot serve alone; " +
			"an explicit start repeats the order")
		return
	}
	m.truncate = truncate
	if truncate.OK {
		m.backup = proto.Opt[tid.TID]{} // the order clears it, also where it has not arrived yet
	}
	allowed := m.startup != startupWhole
	needed := m.table.ReadableNodes()
	if truncate.OK && !allowed {
		needed = m.table.Nodes()
	}
	m.askViews()
	for _, id := range m.table.Nodes() {
		if s := m.stores[id]; s != nil && s.pending > 0 {
			return // it is there, and may know better, or turn out to be new
		}
	}
	if m.served && m.rec.target > m.maxPTID && m.startup != startupForced {
		m.warnChanged(fmt.Sprintf("waiting: %s; an explicit start goes on from there", m.otherHistory()))
		return
	}
	if m.rec.target < m.safePTID && m.final == nil && m.startup != startupForced {
		// Even if all nodes that it trusts are there: others have replaced them.
		m.warnOnce("waiting: transactions were committed since this partition table; " +
			"an explicit start goes on without what only the missing storages have")
		return
	}
	for _, id := range needed {
		if !m.present(id) && !allowed {
			m.waitFor(needed, "waiting for storages: an explicit start goes on without what only they have")
			return
		}
	}
	if away := m.leftBehind(); away != nil && m.startup != startupForced {
		m.warnChanged(fmt.Sprintf("waiting: the %s; an explicit start goes on without what only they have", m.otherTable(away)))
		return
	}
	if text := m.untrusted(); text != "" && m.startup != startupForced {
		m.warnChanged("waiting: " + text)
		return
	}
	if truncate.OK && m.orderTruncation(truncate.V) {
		return
	}
	if outvoted != nil {
		m.log(slog.LevelWarn, "an interrupted truncation is not resumed", "nodes", idTexts(outvoted))
	}
	m.restart(func(id proto.NodeID) bool { return !slices.Contains(outvoted, id) })
}

// waitFor tells the operator which storages keep the cluster from starting, as soon
// as all that are connected have answered.
func (m *Machine) waitFor(ids []proto.NodeID, text string) {
	var away, empty []proto.NodeID
	for _, id := range ids {
		switch p := m.stores[id]; {
		case p == nil:
			away = append(away, id)
		case p.pending > 0:
			return
		case !m.present(id):
			empty = append(empty, id)
		}
	}
	attrs := []any{"ptid", m.table.PTID().V, "away", idTexts(away)}
	if len(empty) > 0 {
		attrs = append(attrs, "without_database", idTexts(empty))
	}
	r, line := &m.rec, fmt.Sprint(attrs...)
	if r.missing == "" {
		r.since = m.now
	}
	long := r.long || m.now.Sub(r.since) >= patience
	if line == r.missing && long == r.long {
		return
	}
	r.missing, r.long = line, long
	level := slog.LevelInfo
	if long {
		level = slog.LevelWarn
	}
	m.log(level, text, attrs...)
}

// Impatient reports whether the cluster waits for storages, and nobody was warned of
// it: a Step without event does that in time.
func (m *Machine) Impatient() bool {
	return m.state == proto.Recovering && m.rec.missing != "" && !m.rec.long
}

// warnOnce tells the operator why the cluster does not start.
func (m *Machine) warnOnce(text string) {
	if !m.rec.warned {
		m.rec.warned = true
		m.log(slog.LevelWarn, text, "ptid", m.table.PTID().V)
	}
}

// orderTruncation sends the order to cut the database to the storages that do
// not have it, and asks them to confirm it. It reports whether there were any.
func (m *Machine) orderTruncation(t tid.TID) bool {
	waiting := false
	for _, p := range m.ofType(proto.Storage) {
		if info := m.rec.info[p]; info != nil && (!info.TruncateTID.OK || info.TruncateTID.V > t) {
			delete(m.rec.info, p)
			m.notify(p, &proto.Truncate{TID: t})
			m.ask(p, &proto.AskRecovery{})
			waiting = true
		}
	}
	return waiting
}

// settleTruncation decides after which TID the database is to be cut, if at all.
//
// An order that only some storages have was interrupted, and nobody knows
// whether they have already cut their data. If this process gave the order, it
// goes on. Otherwise the cluster starts from the storages without order; the
// others are outvoted: they cut themselves, and replicate what they lack. ok is
// false if neither is possible without the operator.
func (m *Machine) settleTruncation() (truncate proto.Opt[tid.TID], outvoted []proto.NodeID, ok bool) {
	if m.orderedTruncate.OK {
		return m.orderedTruncate, nil, true
	}
	var orders []tid.TID
	free, same := 0, 0
	for _, id := range m.table.ReadableNodes() {
		if !m.present(id) {
			continue
		}
		info := m.rec.info[m.stores[id]]
		switch {
		case info.TruncateTID.OK:
			// With an older table too: it carries the order out once it is asked its last ids.
			orders = append(orders, info.TruncateTID.V)
			outvoted = append(outvoted, id)
			if info.PTID.V == m.rec.target {
				same++
			}
		case info.PTID.V == m.rec.target:
			free++
		}
	}
	switch {
	case len(orders) == 0:
		return truncate, nil, true
	case free == 0 && same > 0 && slices.Min(orders) == slices.Max(orders):
		return proto.Some(orders[0]), nil, true
	case m.trustedWithout(outvoted):
		return truncate, outvoted, true
	case m.startup == startupForced:
		return proto.Some(slices.Min(orders)), nil, true
	}
	return truncate, nil, false
}

// restart makes every connected storage of the table RUNNING, takes the readable
// cells of the others out of service, and goes on to verification. sound is
// false for storages whose readable cells must not be trusted.
func (m *Machine) restart(sound func(proto.NodeID) bool) {
	var nodes []*proto.Node
	for _, p := range m.ofType(proto.Storage) {
		if p.node.State == proto.NodePending && m.table.HasCells(p.node.ID) {
			nodes = append(nodes, p.node)
		}
	}
	serving := func(id proto.NodeID) bool { return m.present(id) && sound(id) }
	changes := m.table.Outdate(0, serving)
	leap := m.truncate.OK || m.startup == startupForced && (len(changes) > 0 || m.rec.target < m.safePTID || m.leftBehind() != nil || m.untrusted() != "")
	if refused := m.outdateStale(serving); refused != nil {
		changes = append(changes, refused...)
	}
	m.setRunning(nodes)
	// Each start has a version of its own: a copy of a database that was made before
	// it has an older one.
	if leap {
		m.seen.forget()
		m.maxPTID = m.table.Number(max(m.table.PTID().V, m.maxPTID) + parttab.Leap)
	} else {
		m.renumber()
	}
	if len(m.ofType(proto.Admin)) > 0 {
		pkt := &proto.NotifyPartitionChanges{PTID: m.maxPTID, Replicas: m.table.Replicas(), Cells: changes}
		for _, a := range m.ofType(proto.Admin) {
			m.notify(a, pkt)
		}
	}
	if len(changes) > 0 {
		m.log(slog.LevelWarn, "starting without some readable cells", "ptid", m.maxPTID, "cells", len(changes))
	}
	m.safePTID = max(m.safePTID, m.rec.target) // whatever was committed, by others too, is in it
	m.enterVerification()
}

// setRunning makes storages RUNNING and tells everybody.
func (m *Machine) setRunning(nodes []*proto.Node) {
	for _, n := range nodes {
		n.State = proto.NodeRunning
	}
	m.broadcastNodes(nodes...)
}
