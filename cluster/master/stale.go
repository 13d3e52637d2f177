package master

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// The database of a storage may have been replaced, while the storage was away, by an
// older copy of it. The table alone does not tell. See DESIGN.md, "Older copies".

// claim is what a storage says of its database when it comes. Those of other
// implementations say nothing.
type claim struct {
	confirmed  uint64              // version of the table; 0: none
	last       map[int]lastTIDs    // of the cells that it takes for readable
	unfinished map[tid.TID]tid.TID // by TTID: under which it was locked, Zero if that is not known
}

// lastTIDs are the last transaction and the last record of a partition.
type lastTIDs struct{ trans, obj tid.TID }

func parseClaim(values map[string]proto.Value) *claim {
	mark, ok := values["confirmed_ptid"].(int64)
	if !ok || mark < 0 {
		return nil
	}
	c := &claim{confirmed: uint64(mark), last: map[int]lastTIDs{}, unfinished: map[tid.TID]tid.TID{}}
	cells, _ := values["last_tids"].([]proto.Value)
	for _, v := range cells {
		row, _ := v.([]proto.Value)
		if len(row) != 3 {
			return nil
		}
		p, ok := row[0].(int64)
		trans, ok1 := unpackTID(row[1])
		obj, ok2 := unpackTID(row[2])
		if !ok || !ok1 || !ok2 || p < 0 || p > math.MaxInt32 {
			return nil
		}
		c.last[int(p)] = lastTIDs{trans, obj}
	}
	unfinished, _ := values["unfinished"].([]proto.Value)
	for _, v := range unfinished {
		row, _ := v.([]proto.Value)
		if len(row) != 2 {
			return nil
		}
		ttid, ok1 := unpackTID(row[0])
		t, ok2 := unpackTID(row[1])
		if !ok1 || !ok2 {
			return nil
		}
		c.unfinished[ttid] = t
	}
	return c
}

// newer returns the version of a newer table than that of the operation with which a
// storage has taken part in another one: the cluster has not gone on from there.
func (m *Machine) newer(r *proto.RequestIdentification) (ptid uint64, ok bool) {
	c := parseClaim(r.Extra)
	if c == nil || m.state == proto.Recovering || c.confirmed <= m.table.PTID().V {
		return 0, false
	}
	return c.confirmed, true
}

func unpackTID(v proto.Value) (tid.TID, bool) {
	b, ok := v.([]byte)
	if !ok || len(b) != 8 {
		return 0, false
	}
	return tid.TID(binary.BigEndian.Uint64(b)), true
}

// stale is what a recovery knows of older copies.
type stale struct {
	views     map[*peer][][]proto.Cell // tables of storages that have an older one
	confirmed uint64                   // greatest mark that a storage came with, which may have left again
	said      string                   // last warning
	offered   string                   // what an operator was told that a start may lose
	decided   bool                     // an operator knows it
	at        time.Time                // of either
}

func (s *stale) saw(p *peer, pkt *proto.AnswerPartitionTable) {
	if parttab.Check(pkt.Rows) == nil {
		s.views[p] = pkt.Rows
	}
}

// askViews asks the storages that report an older table for it: it says which of their
// cells they take for readable themselves.
func (m *Machine) askViews() {
	for _, id := range m.table.ReadableNodes() {
		p := m.stores[id]
		if p == nil || p.pending > 0 || !m.present(id) || m.rec.info[p].PTID.V == m.rec.target || m.rec.stale.views[p] != nil {
			continue
		}
		m.rec.stale.views[p] = [][]proto.Cell{}
		m.ask(p, &proto.AskPartitionTable{})
	}
}

// confirmed returns the greatest version of the table of which is known that every
// storage with readable cells had stored it before anything was committed under a
// later one; 0 if none is known. A storage that has an older one now has lost it.
func (m *Machine) confirmed() uint64 { return max(m.confirmedPTID, m.rec.stale.confirmed) }

// doubt says what speaks against the readable cell of a storage that is present, ""
// if nothing does.
func (m *Machine) doubt(partition int, id proto.NodeID) string {
	p := m.stores[id]
	has, confirmed := m.rec.info[p].PTID.V, m.confirmed()
	switch {
	case has < confirmed:
		return fmt.Sprintf("has an older copy of its database, with partition table %d, although it had stored table %d", has, confirmed)
	}
	if t := m.seen.lacks(partition, p); t != 0 {
		return fmt.Sprintf("has an older copy of its database, without transaction %v that was committed", t)
	}
	view := m.rec.stale.views[p]
	if m.rec.target < m.safePTID && m.final != nil &&
		// A storage that says nothing of its last transactions may have an older copy.
		(partition >= m.final.NP() || !m.final.Cell(partition, id).Readable() || p.claim == nil) {
		return fmt.Sprintf("has partition table %d, and may lack transactions that were committed with table %d", has, m.safePTID)
	}
	if has == m.rec.target {
		return ""
	}
	if view != nil && (partition >= len(view) || !slices.ContainsFunc(view[partition], func(c proto.Cell) bool {
		return c.ID == id && c.State.Readable()
	})) {
		return fmt.Sprintf("has partition table %d, in which its copy is not complete yet, although it is in table %d", has, m.rec.target)
	}
	if confirmed == 0 && has+1 < m.rec.target {
		return fmt.Sprintf("has partition table %d, although the newest is %d and names it as up to date", has, m.rec.target)
	}
	return ""
}

// otherHistory says that a table was never broadcast by this master, which was the only
// one since the operation began: it is that of a storage from which the cluster has not
// gone on.
func (m *Machine) otherHistory() string {
	return fmt.Sprintf("partition table %d comes from another history than the operation that has stopped, with table %d", m.rec.target, m.maxPTID)
}

// trustedWithout reports whether each partition is present, without some storages, in a
// copy against which nothing speaks.
func (m *Machine) trustedWithout(ids []proto.NodeID) bool {
	for n, row := range m.table.Rows() {
		if !slices.ContainsFunc(row, func(c proto.Cell) bool {
			return c.State.Readable() && m.present(c.ID) && !slices.Contains(ids, c.ID) && m.doubt(n, c.ID) == ""
		}) {
			return false
		}
	}
	return true
}

// untrusted says which partitions are only present in copies that must not be trusted,
// and why not; "" if there is none.
func (m *Machine) untrusted() string {
	type reason struct {
		id   proto.NodeID
		text string
	}
	var order []reason
	partitions := map[reason][]int{}
	for n, row := range m.table.Rows() {
		var doubts []reason
		sound := false
		for _, c := range row {
			if !c.State.Readable() || !m.present(c.ID) {
				continue
			}
			text := m.doubt(n, c.ID)
			if text == "" {
				sound = true
				break
			}
			doubts = append(doubts, reason{c.ID, text})
		}
		if sound {
			continue
		}
		for _, d := range doubts {
			if partitions[d] == nil {
				order = append(order, d)
			}
			partitions[d] = append(partitions[d], n)
		}
	}
	var list []string
	for _, r := range order {
		list = append(list, fmt.Sprintf("%v %s, and no storage that is present has another copy of %s", r.id, r.text, partitionsText(partitions[r])))
	}
	if list == nil {
		return ""
	}
	return strings.Join(list, "; ") + ": put its newest database back, or start a storage that has these partitions; " +
		"an explicit start goes on without what the copy lacks"
}

// partitionsText names partitions, in ranges.
func partitionsText(list []int) string {
	var b strings.Builder
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		if i > 0 {
			b.WriteString(", ")
		}
		if fmt.Fprint(&b, list[i]); j > i {
			fmt.Fprintf(&b, "-%d", list[j])
		}
		i = j + 1
	}
	if len(list) == 1 {
		return "partition " + b.String()
	}
	return "partitions " + b.String()
}

// warnChanged is warnOnce for a text that may change.
func (m *Machine) warnChanged(text string) {
	if m.rec.stale.said != text {
		m.rec.stale.said = text
		m.log(slog.LevelWarn, text, "ptid", m.table.PTID().V)
	}
}

// outdateStale takes the cells of older copies out of service where there is another
// copy, and says so.
func (m *Machine) outdateStale(serving func(proto.NodeID) bool) []proto.CellChange {
	reasons := map[string][]int{} // by node and reason
	changes := m.table.OutdateCells(func(n int, id proto.NodeID) bool {
		return serving(id) && m.doubt(n, id) == ""
	})
	for _, c := range changes {
		text := fmt.Sprintf("%v %s", c.ID, m.doubt(c.Partition, c.ID))
		reasons[text] = append(reasons[text], c.Partition)
	}
	for _, text := range slices.Sorted(maps.Keys(reasons)) {
		m.log(slog.LevelWarn, text+": it is replicated again from the other copies", "partitions", partitionsText(reasons[text]))
	}
	return changes
}

// The ends of the copies.

type endKey struct {
	partition int
	p         *peer
}

// end is what a copy has from some TIDs on.
type end struct {
	trans *proto.AnswerCheckTIDRange
	obj   *proto.AnswerCheckSerialRange
}

// compareEnds asks for the ends of the copies of each partition, once all that was to be
// committed is, and what was to be cut is cut: from there on where the shortest one
// ended when its storage came. All that an older copy can lack is after that. A storage
// that came before the last operation has no other database than it had.
func (m *Machine) compareEnds() {
	v := &m.ver
	for n, row := range m.table.Rows() {
		var copies []*peer
		fresh, equal := false, len(v.locked) == 0
		from := lastTIDs{tid.Max, tid.Max}
		for _, c := range row {
			p := m.stores[c.ID]
			if !c.State.Readable() || p == nil || p.node.State != proto.NodeRunning {
				continue
			}
			copies = append(copies, p)
			if !p.fresh {
				equal = false
				continue
			}
			var last lastTIDs
			if p.claim != nil {
				var ok bool // else it does not take its cell for complete
				last, ok = p.claim.last[n]
				equal = equal && ok
			} else {
				equal = false
				last = lastTIDs{v.last[p].Add(1), v.last[p].Add(1)}
			}
			equal = equal && (!fresh || last == from)
			fresh = true
			from.trans, from.obj = min(from.trans, last.trans), min(from.obj, last.obj)
		}
		if len(copies) < 2 || !fresh || equal {
			continue
		}
		for _, p := range copies {
			if p.claim != nil {
				v.ends[endKey{n, p}] = &end{}
				m.question(p, &proto.AskCheckTIDRange{Partition: n, Length: math.MaxInt32, Min: from.trans, Max: tid.Max})
				m.question(p, &proto.AskCheckSerialRange{Partition: n, Length: math.MaxInt32, Min: from.obj, Max: tid.Max})
			}
		}
	}
}

func (m *Machine) endAnswered(p *peer, req proto.Request, pkt proto.Packet) {
	switch req := req.(type) {
	case *proto.AskCheckTIDRange:
		if e := m.ver.ends[endKey{req.Partition, p}]; e == nil {
		} else if a, ok := pkt.(*proto.AnswerCheckTIDRange); ok {
			e.trans = a
		} else {
			delete(m.ver.ends, endKey{req.Partition, p})
		}
	case *proto.AskCheckSerialRange:
		if e := m.ver.ends[endKey{req.Partition, p}]; e == nil {
		} else if a, ok := pkt.(*proto.AnswerCheckSerialRange); ok {
			e.obj = a
		} else {
			delete(m.ver.ends, endKey{req.Partition, p})
		}
	}
}

// compare orders ends: an older copy is less.
func (e *end) compare(o *end) int {
	return cmp.Or(cmp.Compare(e.trans.Last, o.trans.Last), cmp.Compare(e.trans.Count, o.trans.Count),
		cmp.Compare(e.obj.LastTID, o.obj.LastTID), cmp.Compare(e.obj.Count, o.obj.Count))
}

func (e *end) equal(o *end) bool { return *e.trans == *o.trans && *e.obj == *o.obj }

// last returns the greatest TID of an end, Zero if there is nothing.
func (e *end) last() tid.TID { return max(e.trans.Last, e.obj.LastTID) }

// outdateBehind takes the cells out of service that lack what another copy has.
func (m *Machine) outdateBehind() {
	v := &m.ver
	behind := map[endKey]tid.TID{} // what another copy reaches
	for n, row := range m.table.Rows() {
		var best *end
		var reaches tid.TID
		for _, c := range row {
			e := v.ends[endKey{n, m.stores[c.ID]}]
			if e != nil && c.State.Readable() && (best == nil || e.compare(best) > 0) {
				best = e
				reaches = e.last()
			}
		}
		if best == nil {
			continue
		}
		for _, c := range row {
			p := m.stores[c.ID]
			if p == nil || !c.State.Readable() {
				continue
			}
			e := v.ends[endKey{n, p}]
			last, known := v.last[p]
			if e != nil && !e.equal(best) || p.claim == nil && p.fresh && known && last < reaches {
				behind[endKey{n, p}] = reaches
			}
		}
	}
	m.behindAsWhole(behind)
	if len(behind) == 0 {
		return
	}
	changes := m.table.OutdateCells(func(n int, id proto.NodeID) bool {
		_, bad := behind[endKey{n, m.stores[id]}]
		return !bad
	})
	for _, c := range changes {
		p := m.stores[c.ID]
		m.log(slog.LevelWarn, "storage has an older copy of its database: another copy has transactions that are missing there; "+
			"the partition is replicated again", "node", c.ID.String(), "partition", c.Partition,
			"tid", behind[endKey{c.Partition, p}].String())
	}
	m.broadcastCells(changes)
}

// behindAsWhole compares storages of which at least one says only how far its database
// goes as a whole: one that has all the partitions of another goes as far.
func (m *Machine) behindAsWhole(behind map[endKey]tid.TID) {
	v := &m.ver
	list := m.readableStores()
	for _, p := range list {
		for _, o := range list {
			last, known := v.last[p]
			other, otherKnown := v.last[o]
			if !p.fresh || p.claim != nil && o.claim != nil || !known || !otherKnown || last >= other {
				continue
			}
			var shared []int
			whole := true
			for n := range m.table.NP() {
				if m.table.Cell(n, o.node.ID).Readable() {
					whole = whole && m.table.Cell(n, p.node.ID).Readable()
					shared = append(shared, n)
				}
			}
			if !whole {
				continue
			}
			for _, n := range shared {
				behind[endKey{n, p}] = other
			}
		}
	}
}

// What this process has seen being committed.

// seen is the last transaction of each partition.
type seen struct {
	last   map[int]seenTransaction
	np     int
	packed tid.TID // greatest time of the packs that were ordered
}

type seenTransaction struct{ tid, ttid tid.TID }

func (s *seen) forget() { s.last = nil }

func (s *seen) committed(t *transaction, modified []int, np int) {
	if s.last == nil {
		s.last = map[int]seenTransaction{}
	}
	s.np = np
	s.last[t.ttid.Partition(np)] = seenTransaction{t.tid, t.ttid}
	for _, n := range modified {
		s.last[n] = seenTransaction{t.tid, t.ttid}
	}
}

// lacks returns the last transaction of a partition if a storage has come without it,
// else Zero. A storage that was lost before the order to unlock it has it voted, and
// locked where its metadata are: all had locked it when it was committed. A pack may have
// deleted its records, but not itself.
func (s *seen) lacks(partition int, p *peer) tid.TID {
	t, ok := s.last[partition]
	if !ok || !p.fresh || p.claim == nil {
		return tid.Zero
	}
	last, ok := p.claim.last[partition]
	if !ok || max(last.trans, last.obj) >= t.tid || t.tid <= s.packed && last.trans < t.tid {
		return tid.Zero
	}
	if locked, ok := p.claim.unfinished[t.ttid]; ok && (locked == t.tid || partition != t.ttid.Partition(s.np)) {
		return tid.Zero
	}
	return t.tid
}

// The mark.

// confirmEvery is how long a cluster may commit before the storages confirm a new
// version of the table again: an older copy of a partition without another copy is
// recognised unless it is about that new.
const confirmEvery = time.Minute

// Unconfirmed reports whether transactions were committed since the last confirmation: a
// Step without event, after a while, confirms again.
func (m *Machine) Unconfirmed() bool {
	return m.state == proto.Running && m.ids.committed > m.confirmedTID && m.marking()
}

// marking reports whether a storage keeps the mark.
func (m *Machine) marking() bool {
	return slices.ContainsFunc(m.ofType(proto.Storage), func(p *peer) bool { return p.claim != nil && p.ready > 0 })
}

// confirming is a confirmation in service.
type confirming struct {
	asked   []*peer
	waiting map[*peer]bool
	again   bool // another one is wanted
}

// confirmOften has the storages confirm a new version of the table from time to time.
func (m *Machine) confirmOften() {
	if m.now.Sub(m.confirmedAt) >= confirmEvery && m.Unconfirmed() && len(m.confirming.waiting) == 0 && m.starting == 0 {
		m.broadcastTable(nil)
		m.confirmTable()
	}
}

// confirmLast has the storages confirm a new version before the cluster stops, so that
// every copy that was made while it worked is known as one. It reports whether there is
// something to wait for.
func (m *Machine) confirmLast() bool {
	if len(m.confirming.waiting) == 0 && m.ids.committed > m.confirmedTID && m.marking() {
		m.broadcastTable(nil)
		m.confirmTable()
	}
	return len(m.confirming.waiting) > 0
}

// confirmTable asks each storage a question that it answers after it has stored the
// table. When all have answered, those that keep the mark are told so.
func (m *Machine) confirmTable() {
	k := &m.confirming
	switch {
	case !m.service() || !m.marking() && m.settled():
		return
	case m.starting > 0: // all are asked, once these are ready or lost
		return
	case len(k.waiting) > 0:
		k.again = true
		return
	}
	*k = confirming{waiting: map[*peer]bool{}}
	m.notedPTID, m.confirmedTID = m.table.PTID().V, m.ids.committed
	for _, p := range m.ofType(proto.Storage) {
		if p.ready > 0 {
			k.asked = append(k.asked, p)
			k.waiting[p] = true
			m.ask(p, &proto.AskPackOrders{Min: tid.Max})
		}
	}
}

// confirmAnswered notes that a storage has stored the table, or is lost.
func (m *Machine) confirmAnswered(p *peer) {
	k := &m.confirming
	if !k.waiting[p] {
		return
	}
	if delete(k.waiting, p); len(k.waiting) > 0 {
		return
	}
	m.tableConfirmed()
	m.released(m.notedPTID)
	for _, p := range k.asked {
		if p.reported > 0 {
			p.reported = max(p.reported, m.notedPTID) // it has stored that since
		}
		if p.claim != nil && !p.gone {
			m.notify(p, &proto.StartOperation{Backup: false})
		}
	}
	again := k.again
	if *k = (confirming{}); again {
		m.confirmTable()
	}
	m.discardFed()
	m.stopIfIdle()
}

func (m *Machine) tableConfirmed() {
	m.confirmedPTID, m.confirmedAt = max(m.confirmedPTID, m.notedPTID), m.now
}

// showsStale looks whether the mark of a storage that comes after the recovery shows
// that one with readable cells has an older copy of its database.
func (m *Machine) showsStale(p *peer) {
	if m.state == proto.Recovering || p.claim == nil || p.gone {
		return
	}
	var list []*peer
	for _, o := range m.readableStores() {
		if o != p && o.reported > 0 && o.reported < p.claim.confirmed {
			list = append(list, o)
			m.log(slog.LevelError, fmt.Sprintf("%v has an older copy of its database: it had partition table %d when the cluster started, although %v shows "+
				"that it had stored table %d; transactions may be missing", o, o.reported, p, p.claim.confirmed))
		}
	}
	if list != nil && m.state == proto.Verifying && m.startup != startupForced {
		m.stopOperation(proto.Opt[tid.TID]{}) // the recovery decides again, with it
	}
}

// Explicit starts.

// An operator may repeat an order to start from confirmAfter to confirmTime after it was
// refused for the first time.
const (
	confirmAfter = 3 * time.Second
	confirmTime  = 10 * time.Minute
)

// confirmStart lets an operator start at once what loses nothing. Otherwise the order
// must be confirmed, after it was answered by what it may lose: see proto.ConfirmStart.
func (m *Machine) confirmStart() *proto.Error {
	s := &m.rec.stale
	text := m.startLoss()
	since := m.now.Sub(s.at)
	if text == "" || s.decided && since < confirmAfter || text == s.offered && since >= confirmAfter && since < confirmTime {
		return nil
	}
	if text != s.offered || s.decided || since >= confirmTime {
		s.offered, s.at, s.decided = text, m.now, false
	}
	return deny("%s%s", proto.ConfirmStart, text)
}

// decide notes that the next order to start is meant as it is, or that the last one
// does not count any more.
func (s *stale) decide(start bool, now time.Time) {
	s.offered, s.at, s.decided = "", now, start
}

// newestHere returns the greatest version of the table that a storage reports which is
// here; 0 if none has one.
func (m *Machine) newestHere() (ptid uint64) {
	for _, info := range m.rec.info {
		ptid = max(ptid, info.PTID.V)
	}
	return ptid
}

// fallBack takes the newest table that is here instead of one that has left with its
// storage, as the operator has ordered.
func (m *Machine) fallBack() {
	r := &m.rec
	if r.loaded || len(r.holders) > 0 || m.newestHere() == 0 {
		return
	}
	r.target = m.newestHere()
	for _, p := range m.ofType(proto.Storage) {
		if info := r.info[p]; info != nil && info.PTID.V == r.target {
			r.holders = append(r.holders, p)
		}
	}
	m.askTable(r.holders[0])
}

// startLoss says what a start by order of the operator may lose; "" if nothing.
func (m *Machine) startLoss() string {
	var list []string
	if m.rec.target == 0 {
		if m.maxPTID > 0 {
			return "the storages that have the database are away. A new, empty database would be made of those that are here, " +
				"and the others would be emptied when they come back."
		}
		return ""
	}
	if !m.rec.loaded {
		return fmt.Sprintf("The storage with the newest partition table, %d, has left; the newest one here is %d.", m.rec.target, m.newestHere())
	}
	for _, id := range m.table.ReadableNodes() {
		if m.present(id) {
			continue
		}
		var cells, only []int
		for n, row := range m.table.Rows() {
			if !m.table.Cell(n, id).Readable() {
				continue
			}
			cells = append(cells, n)
			if !slices.ContainsFunc(row, func(c proto.Cell) bool { return c.State.Readable() && m.present(c.ID) }) {
				only = append(only, n)
			}
		}
		text := fmt.Sprintf("%v is missing, which has %s.", id, partitionsText(cells))
		if only != nil {
			text += fmt.Sprintf(" Nothing that is here has %s: the cluster cannot work before it comes.", partitionsText(only))
		}
		list = append(list, text)
	}
	if m.served && m.rec.target > m.maxPTID {
		list = append(list, "The "+m.otherHistory()+".")
	}
	if m.rec.target < m.safePTID || m.rec.target < m.confirmedPTID {
		list = append(list, fmt.Sprintf("The newest partition table here is %d, but transactions were committed with table %d.",
			m.rec.target, max(m.safePTID, m.confirmedPTID)))
	}
	if away := m.leftBehind(); away != nil {
		list = append(list, "The "+m.otherTable(away)+".")
	}
	if text := m.untrusted(); text != "" {
		text, _, _ = strings.Cut(text, ": put")
		list = append(list, text+".")
	}
	if _, _, ok := m.settleTruncation(); !ok {
		list = append(list, "An order to truncate the database was interrupted: it would be carried out.")
	}
	if list == nil {
		return ""
	}
	here := tid.Zero
	for _, p := range m.ofType(proto.Storage) {
		if p.claim != nil {
			for _, last := range p.claim.last {
				here = max(here, last.trans, last.obj)
			}
		}
	}
	if here > 0 {
		text := fmt.Sprintf("The last transaction found here is %v (%v)", here, here.Time().Format(time.DateTime))
		if m.ids.known > here {
			text += fmt.Sprintf(", the last one that was committed is %v (%v)", m.ids.known, m.ids.known.Time().Format(time.DateTime))
		}
		list = append(list, text+".")
	}
	list = append(list, "Every transaction that only the missing storages or databases have IS LOST, also when they come back later.")
	return strings.Join(list, " ")
}
