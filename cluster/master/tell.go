package master

import (
	"log/slog"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// teller tells the clients of a backup cluster what it has got: each transaction, with the
// objects that it changed, as if it had been committed here. Only storages know the objects.
type teller struct {
	committed []tid.TID // transactions upstream that clients were not told, oldest first
	unknown   tid.TID   // up to here there may be others
	upTo      tid.TID   // what clients were told
	asked     *peer     // the storage that was asked for the objects of the first one
	gapped    []tid.OID // objects changed by transactions in a gap, which are told with the next one
}

// maxUntold is how many transactions may wait. Clients that cannot be told of more
// connect again, and verify what they have cached.
const maxUntold = 10000

// committedUpstream notes a transaction of the upstream cluster.
func (t *teller) committedUpstream(id tid.TID) {
	if len(t.committed) == maxUntold {
		t.unknown = t.committed[0]
		t.committed = slices.Delete(t.committed, 0, 1)
	}
	t.committed = append(t.committed, id)
}

// mayHaveCommitted notes that transactions up to one are not known.
func (t *teller) mayHaveCommitted(id tid.TID) {
	t.committed, t.unknown, t.asked, t.gapped = nil, id, nil, nil
}

// tell goes on with telling clients what can be read.
func (m *Machine) tell() {
	t, told := &m.follow.teller, m.follow.told
	if m.state != proto.BackingUp || !told.OK || told.V <= t.upTo {
		return
	}
	clients := m.ofType(proto.Client)
	if len(clients) == 0 {
		m.toldAll()
		return
	}
	if t.upTo < t.unknown {
		if told.V < t.unknown {
			return // it is told at once when nothing unknown follows
		}
		m.log(slog.LevelInfo, "clients connect again: what has changed is not known one by one")
		m.closeClients()
		t.gapped = nil
		m.toldAll()
		return
	}
	if t.asked != nil {
		return
	}
	if len(t.committed) == 0 || t.committed[0] > told.V {
		m.toldAll()
		return
	}
	next := t.committed[0]
	for _, p := range m.readyCells(next.Partition(m.table.NP())) {
		if p.follows {
			t.asked = p
			m.ask(p, &proto.AskTransactionInformation{TID: next})
			return
		}
	}
	// Storages of the Python implementation do not answer a master. Its clients are not told either.
	m.toldAll()
}

// toldAll notes that clients know all that can be read, or need not be told.
func (m *Machine) toldAll() {
	t := &m.follow.teller
	if len(t.gapped) > 0 {
		m.tellClients(m.follow.told.V, nil)
	}
	t.upTo, t.asked = m.follow.told.V, nil
	t.committed = slices.DeleteFunc(t.committed, func(id tid.TID) bool { return id <= t.upTo })
}

// objectsKnown takes which objects a transaction has changed, and tells clients.
func (m *Machine) objectsKnown(p *peer, id tid.TID, pkt proto.Packet) {
	t := &m.follow.teller
	if t.asked != p || len(t.committed) == 0 || t.committed[0] != id || m.state != proto.BackingUp {
		return
	}
	t.asked = nil
	a, ok := pkt.(*proto.AnswerTransactionInformation)
	if !ok {
		m.log(slog.LevelWarn, "a storage does not know a transaction that it should have", "node", p.String(), "tid", id.String(), "err", pkt)
		t.mayHaveCommitted(id)
		m.tell()
		return
	}
	t.committed = slices.Delete(t.committed, 0, 1)
	if id <= t.upTo {
		m.tell()
		return
	}
	if m.outOfGaps(id) != id {
		// No client may believe to read this state: what packs upstream have removed is missing.
		t.gapped = append(t.gapped, a.OIDs...)
		m.tell()
		return
	}
	t.upTo = id
	m.tellClients(id, a.OIDs)
	m.tell()
}

// tellClients tells clients that objects have changed, with those that changed in a gap before.
func (m *Machine) tellClients(id tid.TID, oids []tid.OID) {
	t := &m.follow.teller
	if len(t.gapped) > 0 {
		oids = append(t.gapped, oids...)
		slices.Sort(oids)
		oids, t.gapped = slices.Compact(oids), nil
	}
	for _, c := range m.ofType(proto.Client) {
		if c.backups == nil {
			m.notify(c, &proto.InvalidateObjects{TID: id, OIDs: oids})
			continue
		}
		var list []int
		for _, oid := range oids {
			list = append(list, oid.Partition(m.table.NP()))
		}
		slices.Sort(list)
		m.notify(c, &proto.InvalidatePartitions{TID: id, Partitions: slices.Compact(list)})
	}
}

// tellerLost asks another storage what a lost one was asked.
func (m *Machine) tellerLost(p *peer) {
	if t := &m.follow.teller; t.asked == p {
		t.asked = nil
	}
}
