package replica

import (
	"cmp"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	// checkLength is how many transactions or records are compared at a time.
	checkLength = 1000
	// checkPause is how long a check waits for a commit, or for the source of a repair.
	checkPause = 50 * time.Millisecond
	repairWait = time.Second
	// checkReport is how often the master is told how far a check is.
	checkReport = time.Second
	// maxAgain is how often a partition is compared with the upstream cluster again.
	maxAgain = 3
	// checkLogged is how many differences of a partition are written to the log.
	checkLogged = 20
)

// checker compares replicas of a partition, with everything that is in them: first
// their transactions, then their records, chunk by chunk. Other storages send theirs
// as they would to a replica that has nothing; what comes is digested and dropped.
// Orders are processed one at a time.
//
// Replicas should have executed the same packs. If they have not, the report says so. The
// upstream cluster of a backup may have executed others: what these explain is no difference.
//
// It also does the first half of a repair: what this node has, and the source has not
// or not like this, is deleted, in a cell that is out of service. What is then missing
// is replicated.
type checker struct {
	m       *Machine
	run     int64 // of the orders that come, as the master has announced; 0: it does not want reports
	of      int   // how many these are; 0: it did not say
	tally   tally // of the check that goes on
	losses  int   // how often the master has lost the upstream cluster
	queue   []checkOrder
	current *comparison
	repairs map[int]checkOrder // of cells that the master is going to take out of service

	differences uint64 // found so far
}

// checkOrder is an order to compare, or to repair from the source.
type checkOrder struct {
	proto.CheckPartition
	run    int64
	of     int          // orders of the same check; 0: not known
	source proto.NodeID // of a repair; 0: a check
	losses int          // when it came
}

// tally is what the orders of a check have found.
type tally struct {
	begun             bool
	run               int64
	done, failed      int // orders
	rows, differences int
}

// comparison is the check of one partition.
type comparison struct {
	order   checkOrder
	members []*member   // this node, then others
	source  *member     // whose data are right; nil: that is not known
	records bool        // else transactions
	min     backend.Key // where the chunk begins
	length  int
	round   int
	ending  bool // all is compared; packs are looked at again
	partial bool // a member was lost
	packed  map[*member]proto.Opt[tid.TID]
	// Against an upstream cluster: records that packs may have removed on one side, which
	// are to be examined here, what then follows, and whether there were any.
	doubts  []doubt
	advance func()
	excused bool
	again   int // times that all was compared again, after a pack meanwhile
	lacking lackings

	rows, total int
	nodes       map[proto.NodeID]bool // that differ
	faulty      bool                  // the upstream cluster has something damaged
	stuck       map[proto.NodeID]bool // that have nothing better than a damaged source
	found       []check.Difference    // not reported yet
	listed      int
	notes       []string
	reported    time.Time
}

// compareKeys orders transactions, whose oid is 0, and records.
func compareKeys(a, b backend.Key) int {
	return cmp.Or(cmp.Compare(a.TID, b.TID), cmp.Compare(a.OID, b.OID))
}

// Content is what a node has of a transaction or of a record.
type Content struct {
	Damaged bool
	Hash    proto.Hash // of the data, or of all metadata
	Form    uint8      // compression; 0 if there are no data
	Absent  bool       // the object is deleted
}

// member is a node that takes part in a check.
type member struct {
	self  bool   // this node
	of    string // upstream cluster that it belongs to, which gives it no id here
	link  Link
	id    proto.NodeID
	ready bool
	ask   uint64
	done  bool
	items map[backend.Key]Content
	next  proto.Opt[backend.Key] // where the next chunk begins; absent: there is none
	pack  proto.Opt[tid.TID]
	asked int  // items, at most
	tries int  // of a single item, refused
	probe bool // it is asked for the id of the item that it refuses
}

func (m *member) String() string {
	if m.of != "" {
		return "cluster " + m.of
	}
	return m.id.String()
}

// checkable reports whether this node has data of a partition that may be compared.
func (c *checker) checkable(partition int) bool {
	if partition < 0 || partition >= c.m.set.Table.NP() {
		return false
	}
	switch c.m.set.Table.Cell(partition, c.m.set.ID) {
	case proto.OutOfDate, proto.Discarded:
		return false
	}
	return true
}

// told processes what a master says that understands reports.
func (c *checker) told(r *check.Report) {
	switch {
	case r.State == check.Begun && r.Partition == check.None:
		c.run, c.of = r.Check, len(r.Partitions)
	case r.State == check.Repair && r.Partition >= 0:
		c.repairs[r.Partition] = checkOrder{CheckPartition: proto.CheckPartition{Partition: r.Partition, Max: r.Max}, run: r.Check, source: r.Reference}
	}
}

func (c *checker) order(q *proto.CheckPartition) {
	c.queue = append(c.queue, checkOrder{CheckPartition: *q, run: c.run, of: c.of, losses: c.losses})
	c.next()
}

// tableChanged begins the repair of cells that are now out of service. What is
// replicated later begins at the first transaction, also after a restart.
func (c *checker) tableChanged(changes []proto.CellChange) {
	for _, ch := range changes {
		q, ok := c.repairs[ch.Partition]
		if !ok || ch.ID != c.m.set.ID {
			continue
		}
		delete(c.repairs, ch.Partition)
		if ch.State != proto.OutOfDate {
			continue
		}
		c.m.do(Effect{Op: SetComplete, Partition: ch.Partition, TID: tid.Zero})
		c.m.log(slog.LevelWarn, "repairing partition", "partition", ch.Partition, "from", q.source)
		c.m.hold(ch.Partition, q.source)
		c.queue = append(c.queue, q)
	}
	c.next()
}

// refuse ends an order that cannot be begun.
func (c *checker) refuse(q checkOrder, why string) {
	c.m.log(slog.LevelError, "check: "+why, "partition", q.Partition)
	c.report(q, &check.Report{State: check.Failed, Note: why})
	c.add(q, tally{failed: 1})
}

// add adds what an order has found, and logs the end of the check after its last one.
func (c *checker) add(q checkOrder, found tally) {
	if q.source != 0 {
		return
	}
	t := &c.tally
	t.done++
	t.failed += found.failed
	t.rows += found.rows
	t.differences += found.differences
	if t.done < q.of || slices.ContainsFunc(c.queue, func(o checkOrder) bool { return o.source == 0 && o.run == q.run }) {
		return
	}
	c.m.log(slog.LevelInfo, "check ended", "partitions", t.done, "not_compared", t.failed, "rows", t.rows, "differences", t.differences)
	c.tally = tally{}
}

// next begins the next order, unless one is being processed.
func (c *checker) next() {
	for c.current == nil && len(c.queue) > 0 {
		q := c.queue[0]
		c.queue = c.queue[1:]
		c.begin(q)
	}
}

// begin begins an order, if it can be begun.
func (c *checker) begin(q checkOrder) {
	repair := q.source != 0
	set := &c.m.set
	if t := &c.tally; !repair && (!t.begun || t.run != q.run) {
		*t = tally{begun: true, run: q.run}
		c.m.log(slog.LevelInfo, "check begins", "from", q.Min, "up_to", q.Max)
	}
	switch {
	case repair && set.Table.Cell(q.Partition, set.ID) != proto.OutOfDate:
		return // decided otherwise meanwhile
	case !repair && !c.checkable(q.Partition):
		c.refuse(q, fmt.Sprintf("the copy of %v is not readable", set.ID))
		return
	}
	k := &comparison{order: q, min: backend.Key{TID: q.Min}, length: checkLength, nodes: map[proto.NodeID]bool{}, stuck: map[proto.NodeID]bool{},
		packed: map[*member]proto.Opt[tid.TID]{}, reported: c.m.now}
	k.members = []*member{{self: true, id: set.ID, ready: true}}
	var connect []Effect
	add := func(t Target) *member {
		for _, m := range k.members {
			if t.Upstream == "" && m.id == t.ID {
				return m
			}
		}
		m := &member{id: t.ID, of: t.Upstream}
		k.members = append(k.members, m)
		connect = append(connect, Effect{Op: Connect, Partition: q.Partition, Target: t, Tag: m})
		return m
	}
	for _, cell := range set.Table.Row(q.Partition) {
		node := set.Nodes.ByID(cell.ID)
		if cell.ID == set.ID || !cell.State.Readable() || node == nil || node.State != proto.NodeRunning || repair && cell.ID != q.source {
			continue
		}
		m := add(Target{ID: cell.ID, Addr: node.Addr})
		if repair {
			k.source = m
		}
	}
	if repair && k.source == nil {
		c.later(q)
		return
	}
	if !q.Source.IsZero() {
		if q.Upstream != "" {
			k.source = add(Target{Addr: q.Source, Upstream: q.Upstream})
		} else if node := set.Nodes.ByAddr(q.Source); node != nil {
			k.source = add(Target{ID: node.ID, Addr: node.Addr})
		}
		if k.source == nil {
			c.refuse(q, fmt.Sprintf("%v is not a storage that is known here", q.Source))
			return
		}
	}
	if len(k.members) < 2 {
		if q.run == 0 {
			c.m.log(slog.LevelError, "no replica to compare with", "partition", q.Partition)
			c.add(q, tally{failed: 1})
			return
		}
		k.notes = append(k.notes, fmt.Sprintf("only %v has it: only checksums were verified", set.ID))
	}
	c.current = k
	for _, e := range connect {
		c.m.do(e)
	}
	c.ask() // when all are ready
}

// linked takes the link with a member.
func (c *checker) linked(m *member, ev *Event) {
	if c.current == nil || !slices.Contains(c.current.members, m) {
		c.m.do(Effect{Op: Release, Link: ev.Link})
		return
	}
	if m.link, m.ready = ev.Link, ev.Ready; m.ready {
		c.ask()
	}
}

// later lets a repair wait for its source.
func (c *checker) later(q checkOrder) {
	c.m.log(slog.LevelWarn, "repair waits for its source", "partition", q.Partition, "source", q.source)
	c.m.do(Effect{Op: Remind, Delay: repairWait, Tag: q})
}

// round is the tag of what concerns one round of a comparison.
type round struct {
	k *comparison
	n int
}

func (c *checker) now(r round) bool { return c.current == r.k && r.k.round == r.n }

func (c *checker) reminded(tag any) {
	switch tag := tag.(type) {
	case checkOrder:
		c.queue = append(c.queue, tag)
		c.next()
	case round:
		if c.now(tag) {
			c.ask()
		}
	}
}

// ask begins a round as soon as all members are ready.
func (c *checker) ask() {
	k := c.current
	for _, m := range k.members {
		if !m.ready {
			return
		}
	}
	if k.order.source == 0 && !c.checkable(k.order.Partition) {
		k.notes = append(k.notes, fmt.Sprintf("the copy of %v is not readable any more", c.m.set.ID))
		c.end(check.Failed)
		return
	}
	k.round++
	c.m.do(Effect{Op: SeeLocked, Max: k.last(), Tag: round{k, k.round}})
}

// lockedSeen asks the members, unless a transaction of the range is being committed.
func (c *checker) lockedSeen(ev *Event) {
	r, _ := ev.Tag.(round)
	switch {
	case r.k == nil || !c.now(r):
	case ev.Locked:
		c.m.do(Effect{Op: Remind, Delay: checkPause, Tag: r})
	default:
		for _, m := range r.k.members {
			c.askMember(r.k, m)
		}
	}
}

func (k *comparison) last() tid.TID { return min(k.order.Max, tid.Max) }

// askMember asks for what a member has from k.min on.
func (c *checker) askMember(k *comparison, m *member) {
	m.done, m.probe, m.asked = false, false, k.length
	m.items, m.next = map[backend.Key]Content{}, proto.Opt[backend.Key]{}
	if m.self {
		c.m.do(Effect{Op: Digest, Partition: k.order.Partition, Records: k.records, Min: k.min, Max: k.last(), Count: k.length, Nothing: k.ending,
			Packed: k.ending || !k.records && k.rows == 0, Tag: round{k, k.round}})
		return
	}
	q := k.order
	switch {
	case k.ending:
		// Nothing is wanted but the id of the last pack.
		c.send(m, &proto.AskFetchTransactions{Partition: q.Partition, Length: 1, Min: k.last(), Max: k.last(), AskPack: true})
	case k.records:
		c.send(m, &proto.AskFetchObjects{Partition: q.Partition, Length: k.length, Min: k.min.TID, Max: k.last(),
			MinOID: k.min.OID, Have: map[tid.TID][]tid.OID{}})
	default:
		c.send(m, &proto.AskFetchTransactions{Partition: q.Partition, Length: k.length, Min: k.min.TID, Max: k.last(),
			AskPack: k.rows == 0})
	}
}

// send asks a member.
func (c *checker) send(m *member, p proto.Packet) {
	c.m.asks++
	m.ask = c.m.asks
	c.m.do(Effect{Op: Ask, Link: m.link, Ask: m.ask, Packet: p})
}

// digested takes what this node has.
func (c *checker) digested(ev *Event) {
	r, _ := ev.Tag.(round)
	if r.k == nil || !c.now(r) {
		return
	}
	for _, m := range r.k.members {
		switch {
		case !m.self || m.done:
		case ev.Refused:
			c.lose(m, "its database cannot be checked")
			return
		default:
			m.done, m.items, m.next, m.pack = true, ev.Items, ev.Next, ev.PackOrder
			c.compare()
			return
		}
	}
}

// RecordContent digests a record. verified: its checksum is known to be right.
func RecordContent(d *proto.ObjectData, verified bool) Content {
	switch {
	case len(d.Data) == 0 && d.Checksum == proto.ZeroHash:
		return Content{Absent: true}
	case !verified && sha1.Sum(d.Data) != d.Checksum:
		return Content{Damaged: true}
	}
	return Content{Hash: d.Checksum, Form: d.Compression}
}

// MetaContent digests the metadata of a transaction. The order of the objects means
// nothing, nor whether the transaction was packed here.
func MetaContent(m *backend.Meta) Content {
	h := sha1.New()
	for _, b := range [][]byte{m.User, m.Description, m.Extension} {
		binary.Write(h, binary.BigEndian, uint64(len(b)))
		h.Write(b)
	}
	h.Write(m.TTID.Bytes())
	for _, oid := range slices.Sorted(slices.Values(m.OIDs)) {
		h.Write(oid.Bytes())
	}
	var x Content
	h.Sum(x.Hash[:0])
	return x
}

// receives returns the member whose answer a packet belongs to.
func (c *checker) receives(ask uint64) *member {
	if k := c.current; k != nil {
		for _, m := range k.members {
			if !m.self && m.ask == ask && !m.done {
				return m
			}
		}
	}
	return nil
}

// received digests what another storage has.
func (c *checker) received(m *member, p proto.Packet) {
	switch q := p.(type) {
	case *proto.AddTransaction:
		m.items[backend.Key{TID: q.TID}] = MetaContent(&backend.Meta{User: q.User, Description: q.Description, Extension: q.Extension, TTID: q.TTID, OIDs: q.OIDs})
	case *proto.AddObject:
		m.items[backend.Key{TID: q.Serial, OID: q.OID}] = RecordContent(&q.ObjectData, false)
	}
}

func (c *checker) answered(m *member, p proto.Packet) {
	k := c.current
	switch a := p.(type) {
	case *proto.AnswerFetchTransactions:
		if k.ending || k.rows == 0 {
			m.pack = a.Packed
		}
		if a.Next.OK && !k.ending {
			m.next = proto.Some(backend.Key{TID: a.Next.V})
		}
	case *proto.AnswerFetchObjects:
		if a.Next.OK && a.NextOID.OK {
			m.next = proto.Some(backend.Key{TID: a.Next.V, OID: a.NextOID.V})
		}
	case *proto.AnswerCheckTIDRange:
		m.probed(k, a.Count > 0, backend.Key{TID: a.Last})
	case *proto.AnswerCheckSerialRange:
		m.probed(k, a.Count > 0, backend.Key{TID: a.LastTID, OID: a.LastOID})
	case *proto.Error:
		if a.ErrCode == proto.ReplicationError && !m.probe && !k.ending {
			c.refused(k, m)
			return
		}
		c.lose(m, a.Message)
		return
	default:
		c.lose(m, "it gave no answer")
		return
	}
	if m.next.OK && compareKeys(m.next.V, k.min) <= 0 {
		c.lose(m, "its answers do not advance")
		return
	}
	m.tries, m.done = 0, true
	c.compare()
}

// refused narrows down what a member cannot read, to one item, whose id it then tells.
func (c *checker) refused(k *comparison, m *member) {
	if m.asked > 1 {
		k.length = max(1, m.asked/4)
		c.ask()
		return
	}
	if m.tries++; m.tries < 2 { // it might have been packed in that moment
		c.askMember(k, m)
		return
	}
	m.tries, m.probe = 0, true
	m.items = map[backend.Key]Content{}
	q := k.order
	if k.records {
		c.send(m, &proto.AskCheckSerialRange{Partition: q.Partition, Length: 1, Min: k.min.TID, Max: k.last(), MinOID: k.min.OID})
	} else {
		c.send(m, &proto.AskCheckTIDRange{Partition: q.Partition, Length: 1, Min: k.min.TID, Max: k.last()})
	}
}

// probed takes the id of the only item of a chunk, which is damaged.
func (m *member) probed(k *comparison, found bool, at backend.Key) {
	if !found {
		return
	}
	m.items[at] = Content{Damaged: true}
	next := backend.Key{TID: at.TID, OID: at.OID + 1}
	if !k.records {
		next = backend.Key{TID: at.TID + 1}
	}
	if next.TID <= k.last() {
		m.next = proto.Some(next)
	}
}

// compare ends a round when all members have answered.
func (c *checker) compare() {
	k := c.current
	for _, m := range k.members {
		if !m.done {
			return
		}
	}
	if k.advance != nil {
		return // doubts of this chunk are being settled
	}
	if k.ending {
		if !k.lacking.asking && c.restart() || c.judgeLacking() {
			return
		}
		c.finish()
		return
	}
	if k.rows == 0 && !k.records {
		c.comparePacks(true)
	}
	// What all members have answered for.
	var limit proto.Opt[backend.Key]
	for _, m := range k.members {
		if m.next.OK && (!limit.OK || compareKeys(m.next.V, limit.V) < 0) {
			limit = m.next
		}
	}
	all := map[backend.Key]bool{}
	for _, m := range k.members {
		for i := range m.items {
			if compareKeys(i, k.min) >= 0 && (!limit.OK || compareKeys(i, limit.V) < 0) {
				all[i] = true
			}
		}
	}
	for _, i := range slices.SortedFunc(maps.Keys(all), compareKeys) {
		c.judge(i)
	}
	k.rows += len(all)
	k.advance = func() { c.chunkDone(limit) }
	c.settleDoubts()
}

// chunkDone goes on after a chunk. limit is where the next one begins, absent if there is
// none of this kind.
func (c *checker) chunkDone(limit proto.Opt[backend.Key]) {
	k := c.current
	k.length = min(checkLength, 2*k.length)
	if k.order.source != 0 {
		c.m.commit()
	}
	switch {
	case limit.OK:
		k.min = limit.V
	case !k.records:
		k.records, k.min = true, backend.Key{TID: k.order.Min}
	default:
		k.ending = true
	}
	if len(k.found) > 0 && k.upstream() == "" || c.m.now.Sub(k.reported) >= checkReport {
		c.progress(check.Comparing, "")
	}
	for _, m := range k.members {
		m.done = false // also while the next round waits
	}
	c.ask()
}

// judge compares what the members have of an item.
func (c *checker) judge(i backend.Key) {
	k := c.current
	if s := k.source; k.upstream() != "" && k.records {
		if _, has := s.items[i]; !has && c.removed(s, i) {
			c.judgeAlone(i)
			return
		}
	}
	c.judgeAmong(i, k.members, k.source)
}

// judgeAmong compares what some members have of an item. What a source has is right.
func (c *checker) judgeAmong(i backend.Key, members []*member, source *member) {
	k := c.current
	type vote struct {
		Content
		has bool
	}
	of := func(m *member) vote {
		x, has := m.items[i]
		return vote{x, has}
	}
	votes := map[vote]int{}
	for _, m := range members {
		votes[of(m)]++
	}
	if len(votes) == 1 && !of(members[0]).Damaged {
		return
	}
	var right *vote // as far as that is known
	if source != nil {
		if v := of(source); !v.Damaged {
			right = &v
		}
	} else {
		sound := 0
		for v, n := range votes {
			if !v.Damaged {
				sound += n
			}
		}
		for v, n := range votes {
			if !v.Damaged && 2*n > sound {
				right = &v
			}
		}
	}
	for _, m := range members {
		v := of(m)
		var kind check.Kind
		switch {
		case v.Damaged:
			kind = check.Damaged
		case right != nil && v == *right:
			continue
		case !v.has:
			kind = check.Missing
		case right != nil && !right.has:
			kind = check.Extra
		case right == nil && !disputed(members, i):
			continue // others lack it
		default:
			kind = check.Different
		}
		if k.order.source != 0 {
			if m.self && v.has && right != nil {
				c.delete(i)
			}
			continue
		}
		if kind == check.Missing && k.records && k.upstream() != "" && c.removed(m, i) {
			k.excused = true
			switch {
			case k.deletes(i):
				k.doubts = append(k.doubts, doubt{k, k.round, i, m, tid.Zero, nil})
			case m.self:
				k.doubts = append(k.doubts, doubt{k, k.round, i, m, c.packedHere(m), nil})
			}
			continue
		}
		if source != nil && right == nil && (!v.has || v.Damaged) && m != source && m.of == "" {
			k.stuck[m.id] = true
		}
		c.differs(i, kind, m)
	}
}

// disputed reports whether members have an item, but not the same.
func disputed(members []*member, i backend.Key) bool {
	var first *Content
	for _, m := range members {
		x, has := m.items[i]
		switch {
		case !has || x.Damaged:
		case first == nil:
			first = &x
		case x != *first:
			return true
		}
	}
	return false
}

// differs notes a difference.
func (c *checker) differs(i backend.Key, kind check.Kind, m *member) {
	k := c.current
	d := check.Difference{Partition: k.order.Partition, Kind: kind, TID: i.TID, Node: m.id}
	if k.records {
		d.OID = proto.Some(i.OID)
		switch {
		case k.upstream() == "":
		case kind == check.Extra:
			k.lacking.add(k.source, lack{i, d, m})
			return
		case kind == check.Missing && !m.self:
			k.lacking.add(m, lack{i, d, m})
			return
		}
	}
	c.count(d, m)
}

// count counts a difference.
func (c *checker) count(d check.Difference, m *member) {
	k := c.current
	c.differences++
	k.total++
	if m.of == "" {
		k.nodes[m.id] = true
	} else {
		k.faulty = true
	}
	if k.listed < check.MaxFound {
		k.listed++
		k.found = append(k.found, d)
	}
	if k.total <= checkLogged && k.upstream() == "" {
		c.m.log(slog.LevelError, "replicas differ: "+d.String())
	}
}

// delete deletes what is wrong in a cell that is being repaired.
func (c *checker) delete(i backend.Key) {
	k := c.current
	k.total++
	if k.records {
		c.m.log(slog.LevelWarn, "repair: record deleted", "partition", k.order.Partition, "oid", i.OID, "tid", i.TID)
		c.m.do(Effect{Op: DeleteRecord, Record: i})
		return
	}
	c.m.log(slog.LevelWarn, "repair: transaction deleted", "partition", k.order.Partition, "tid", i.TID)
	c.m.do(Effect{Op: DeleteTransaction, Record: i})
}

// comparePacks notes if members have not executed the same pack orders: then what
// differs may be right.
func (c *checker) comparePacks(first bool) {
	k := c.current
	for _, m := range k.members {
		if !first && m.pack != k.packed[m] {
			k.notes = append(k.notes, fmt.Sprintf("%v has packed meanwhile", m))
		}
		k.packed[m] = m.pack
	}
	for _, m := range k.members[1:] {
		if o := k.members[0]; first && m.pack.V != o.pack.V {
			k.notes = append(k.notes, fmt.Sprintf("%v has executed pack orders up to %v, %v up to %v", o, o.pack.V, m, m.pack.V))
		}
	}
}

// progress tells the master how far the check is.
func (c *checker) progress(state check.State, note string) {
	k := c.current
	k.reported = c.m.now
	r := &check.Report{State: state, Rows: k.rows, Upstream: k.upstream()}
	if r.Upstream == "" || state != check.Comparing { // else all might be compared again
		r.Total, r.Found, r.Note, r.Faulty = k.total, k.found, note, k.faulty
		r.Nodes, r.Stuck = slices.Sorted(maps.Keys(k.nodes)), slices.Sorted(maps.Keys(k.stuck))
		k.found = nil
	}
	if k.source != nil {
		r.Reference = k.source.id
	}
	c.report(k.order, r)
}

func (c *checker) report(q checkOrder, r *check.Report) {
	if q.run == 0 || q.source != 0 && r.State != check.Failed {
		return // the end of a repair is that of its replication
	}
	r.Check, r.Partition, r.Min, r.Max = q.run, q.Partition, q.Min, q.Max
	c.m.do(Effect{Op: TellMaster, Packet: r.Packet()})
}

// release gives up the link with a member. What is being replicated may still use it.
func (c *checker) release(m *member) {
	if m.link != nil && !c.m.Uses(m.link) && len(c.m.tails.on(m.link)) == 0 {
		c.m.do(Effect{Op: Release, Link: m.link})
	}
}

// end ends the check of a partition, and begins the next one.
func (c *checker) end(state check.State) {
	k := c.current
	if k.noteUnknown() || k.partial {
		state = check.Failed
	}
	note := ""
	for _, d := range k.found[:min(len(k.found), checkLogged)] {
		if k.upstream() != "" {
			c.m.log(slog.LevelError, "copies differ: "+d.String())
		}
	}
	k.excused = k.lacking.excused || k.excused && slices.ContainsFunc(k.members, func(m *member) bool { return k.packed[m].V != k.packed[k.source].V })
	if k.excused {
		k.notes = append(k.notes, "what a pack may have removed on one side only is not compared")
	}
	if state == check.Failed || k.total > 0 || len(k.members) < 2 || k.excused {
		// What cannot have done harm is of no interest.
		note = strings.Join(k.notes, "; ")
	}
	for _, m := range k.members {
		c.release(m)
	}
	bad := slices.Sorted(maps.Keys(k.nodes))
	log := func(level slog.Level, text string, attrs ...any) {
		c.m.log(level, text, append([]any{"partition", k.order.Partition, "rows", k.rows, "note", note}, attrs...)...)
	}
	switch {
	case k.order.source != 0:
		log(slog.LevelInfo, "what differs was deleted, and is replicated now", "deleted", k.total)
	case k.total == 0 && state == check.Failed:
		log(slog.LevelError, "check given up")
	case k.total == 0:
		log(slog.LevelDebug, "replicas are equal", "upstream", k.upstream())
	default:
		if k.source == nil && len(k.members) == 2 { // nothing tells which one is right
			bad = []proto.NodeID{k.members[0].id, k.members[1].id}
			slices.Sort(bad)
		}
		log(slog.LevelError, "replicas differ", "nodes", fmt.Sprint(bad), "differences", k.total)
		if len(bad) > 0 { // the upstream cluster has no id here
			c.m.do(Effect{Op: TellMaster, Packet: &proto.NotifyPartitionCorrupted{Partition: k.order.Partition, IDs: bad}})
		}
	}
	c.progress(state, note)
	found := tally{rows: k.rows, differences: k.total}
	if state == check.Failed {
		found.failed = 1
	}
	c.add(k.order, found)
	c.current = nil
	if k.order.source != 0 {
		c.m.unhold(k.order.Partition)
	}
	c.next()
}

// lose goes on without a node, if that makes sense. The check has failed in the end,
// for not all is compared; what differs is still found.
func (c *checker) lose(m *member, why string) {
	k := c.current
	k.members = slices.DeleteFunc(k.members, func(o *member) bool { return o == m })
	c.release(m)
	if q := k.order; q.source != 0 {
		c.m.log(slog.LevelWarn, "repair interrupted", "partition", q.Partition, "source", q.source, "reason", why)
		c.current = nil
		c.later(q)
		c.next()
		return
	}
	c.m.log(slog.LevelWarn, "check goes on without a replica", "partition", k.order.Partition, "node", m, "reason", why)
	k.partial = true
	k.notes = append(k.notes, fmt.Sprintf("%v was not compared to the end: %s", m, why))
	if m == k.source || len(k.members) < 2 {
		c.end(check.Failed)
		return
	}
	for _, o := range k.members {
		if !o.ready {
			return
		}
	}
	if k.round == 0 {
		c.ask()
		return
	}
	c.compare()
}

// find returns the member at the other end of a link.
func (c *checker) find(l Link) *member {
	if c.current != nil && l != nil {
		for _, m := range c.current.members {
			if m.link == l {
				return m
			}
		}
	}
	return nil
}

func (c *checker) linkReady(l Link) {
	if m := c.find(l); m != nil && !m.ready {
		m.ready = true
		c.ask()
	}
}

func (c *checker) linkLost(l Link) {
	if m := c.find(l); m != nil {
		c.lose(m, "the connection was lost")
	}
}

func (c *checker) linkReplaced(old, l Link) {
	if m := c.find(old); m != nil {
		m.link, m.ready = l, true
		c.ask() // again, if the answer was on its way
	}
}
