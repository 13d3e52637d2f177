package storage

import (
	"cmp"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/replica"
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
	// checkLogged is how many differences of a partition are written to the log.
	checkLogged = 20
)

// checker compares replicas of a partition, with everything that is in them: first
// their transactions, then their records, chunk by chunk. Other storages send theirs
// as they would to a replica that has nothing; what comes is digested and dropped.
// Orders are processed one at a time.
//
// It does not know of packs: they must be complete everywhere. If they are not, the
// report says so.
//
// It also does the first half of a repair: what this node has, and the source has not
// or not like this, is deleted, in a cell that is out of service. What is then missing
// is replicated.
type checker struct {
	n       *Node
	s       *session
	run     int64 // of the orders that come, as the master has announced; 0: it does not want reports
	queue   []checkOrder
	current *comparison
	repairs map[int]checkOrder // of cells that the master is going to take out of service
}

// checkOrder is an order to compare, or to repair from the source.
type checkOrder struct {
	proto.CheckPartition
	run    int64
	source proto.NodeID // of a repair; 0: a check
}

// comparison is the check of one partition.
type comparison struct {
	order   checkOrder
	members []*member // this node, then others
	source  *member   // whose data are right; nil: that is not known
	records bool      // else transactions
	min     item      // where the chunk begins
	length  int
	round   int
	ending  bool // all is compared; packs are looked at again
	partial bool // a member was lost
	packed  map[proto.NodeID]proto.Opt[tid.TID]

	rows, total int
	nodes       map[proto.NodeID]bool // that differ
	stuck       map[proto.NodeID]bool // that have nothing better than a damaged source
	found       []check.Difference    // not reported yet
	listed      int
	notes       []string
	reported    time.Time
}

// item is a transaction, whose oid is 0, or a record.
type item struct {
	tid tid.TID
	oid tid.OID
}

func (a item) compare(b item) int {
	return cmp.Or(cmp.Compare(a.tid, b.tid), cmp.Compare(a.oid, b.oid))
}

// content is what a node has of an item.
type content struct {
	damaged bool
	hash    proto.Hash // of the data, or of all metadata
	form    uint8      // compression; 0 if there are no data
	absent  bool       // the object is deleted
}

// member is a node that takes part in a check.
type member struct {
	link  *peer // nil: this node
	id    proto.NodeID
	ready bool
	ask   uint32
	done  bool
	items map[item]content
	next  proto.Opt[item] // where the next chunk begins; absent: there is none
	pack  proto.Opt[tid.TID]
	asked int  // items, at most
	tries int  // of a single item, refused
	probe bool // it is asked for the id of the item that it refuses
}

func newChecker(n *Node, s *session) *checker {
	return &checker{n: n, s: s, repairs: map[int]checkOrder{}}
}

// checkable reports whether this node has data of a partition that may be compared.
func (n *Node) checkable(partition int) bool {
	if partition < 0 || partition >= n.table.NP() {
		return false
	}
	switch n.table.Cell(partition, n.id) {
	case proto.OutOfDate, proto.Discarded:
		return false
	}
	return true
}

// told processes what a master says that understands reports.
func (c *checker) told(r *check.Report) {
	switch {
	case r.State == check.Begun && r.Partition == check.None:
		c.run = r.Check
	case r.State == check.Repair && r.Partition >= 0:
		c.repairs[r.Partition] = checkOrder{proto.CheckPartition{Partition: r.Partition, Max: r.Max}, r.Check, r.Reference}
	}
}

func (c *checker) order(q *proto.CheckPartition) error {
	c.queue = append(c.queue, checkOrder{CheckPartition: *q, run: c.run})
	return c.next()
}

// tableChanged begins the repair of cells that are now out of service. What is
// replicated later begins at the first transaction, also after a restart.
func (c *checker) tableChanged(changes []proto.CellChange) error {
	for _, ch := range changes {
		q, ok := c.repairs[ch.Partition]
		if !ok || ch.ID != c.n.id {
			continue
		}
		delete(c.repairs, ch.Partition)
		if ch.State != proto.OutOfDate {
			continue
		}
		if err := c.n.db.SetCellTID(ch.Partition, tid.Zero); err != nil {
			return fmt.Errorf("storing the state of partition %d: %w", ch.Partition, err)
		}
		c.n.log.Warn("repairing partition", "partition", ch.Partition, "from", q.source)
		if err := c.s.replicator.tell(replica.Event{Kind: replica.Held, Partition: ch.Partition, Node: q.source}); err != nil {
			return err
		}
		c.queue = append(c.queue, q)
	}
	return c.next()
}

// refuse ends an order that cannot be begun.
func (c *checker) refuse(q checkOrder, why string) {
	c.n.log.Error("check: "+why, "partition", q.Partition)
	c.report(q, &check.Report{State: check.Failed, Note: why})
}

func (c *checker) next() error {
	for c.current == nil && len(c.queue) > 0 {
		q := c.queue[0]
		c.queue = c.queue[1:]
		repair := q.source != 0
		switch {
		case repair && c.n.table.Cell(q.Partition, c.n.id) != proto.OutOfDate:
			continue // decided otherwise meanwhile
		case !repair && !c.n.checkable(q.Partition):
			c.refuse(q, fmt.Sprintf("the copy of %v is not readable", c.n.id))
			continue
		}
		k := &comparison{order: q, min: item{tid: q.Min}, length: checkLength, nodes: map[proto.NodeID]bool{}, stuck: map[proto.NodeID]bool{},
			packed: map[proto.NodeID]proto.Opt[tid.TID]{}, reported: time.Now()}
		self := &member{id: c.n.id, ready: true}
		k.members = []*member{self}
		add := func(t target) *member {
			for _, m := range k.members {
				if t.upstream == "" && m.id == t.id {
					return m
				}
			}
			p, ready := c.n.use(t)
			m := &member{link: p, id: t.id, ready: ready}
			k.members = append(k.members, m)
			return m
		}
		for _, cell := range c.n.table.Row(q.Partition) {
			node := c.n.nodes.ByID(cell.ID)
			if cell.ID == c.n.id || !cell.State.Readable() || node == nil || node.State != proto.NodeRunning || repair && cell.ID != q.source {
				continue
			}
			m := add(target{id: cell.ID, addr: node.Addr})
			if repair {
				k.source = m
			}
		}
		if repair && k.source == nil {
			c.later(q)
			continue
		}
		if !q.Source.IsZero() {
			if q.Upstream != "" {
				k.source = add(target{addr: q.Source, upstream: q.Upstream})
			} else if node := c.n.nodes.ByAddr(q.Source); node != nil {
				k.source = add(target{id: node.ID, addr: node.Addr})
			}
			if k.source == nil {
				c.refuse(q, fmt.Sprintf("%v is not a storage that is known here", q.Source))
				continue
			}
		}
		if len(k.members) < 2 {
			if q.run == 0 {
				c.n.log.Error("no replica to compare with", "partition", q.Partition)
				continue
			}
			k.notes = append(k.notes, fmt.Sprintf("only %v has it: only checksums were verified", c.n.id))
		}
		c.current = k
		if err := c.ask(); err != nil {
			return err
		}
	}
	return nil
}

// later lets a repair wait for its source.
func (c *checker) later(q checkOrder) {
	c.n.log.Warn("repair waits for its source", "partition", q.Partition, "source", q.source)
	c.after(repairWait, func() error {
		c.queue = append(c.queue, q)
		return c.next()
	})
}

// after lets the goroutine of the node do something later, unless operation ends.
func (c *checker) after(d time.Duration, do func() error) {
	time.AfterFunc(d, func() {
		c.n.post(func() error {
			if c.n.session != c.s {
				return nil
			}
			return do()
		})
	})
}

// ask begins a round as soon as all members are ready.
func (c *checker) ask() error {
	k := c.current
	for _, m := range k.members {
		if !m.ready {
			return nil
		}
	}
	if k.order.source == 0 && !c.n.checkable(k.order.Partition) {
		k.notes = append(k.notes, fmt.Sprintf("the copy of %v is not readable any more", c.n.id))
		return c.end(check.Failed)
	}
	k.round++
	if c.s.txns.TransactionLocked(k.last()) {
		round := k.round
		c.after(checkPause, func() error {
			if c.current != k || k.round != round {
				return nil
			}
			return c.ask()
		})
		return nil
	}
	for _, m := range k.members {
		c.askMember(k, m)
	}
	return nil
}

func (k *comparison) last() tid.TID { return min(k.order.Max, tid.Max) }

// askMember asks for what a member has from k.min on.
func (c *checker) askMember(k *comparison, m *member) {
	m.done, m.probe, m.asked = false, false, k.length
	m.items, m.next = map[item]content{}, proto.Opt[item]{}
	if m.link == nil {
		c.own(k, m)
		return
	}
	q := k.order
	then := question{c.s, func(ev link.Event) error { return c.answered(k, m, ev) }}
	switch {
	case k.ending:
		// Nothing is wanted but the id of the last pack.
		m.ask = m.link.conn.Ask(&proto.AskFetchTransactions{Partition: q.Partition, Length: 1, Min: k.last(), Max: k.last(), AskPack: true}, then)
	case k.records:
		m.ask = m.link.conn.Ask(&proto.AskFetchObjects{Partition: q.Partition, Length: k.length, Min: k.min.tid, Max: k.last(),
			MinOID: k.min.oid, Have: map[tid.TID][]tid.OID{}}, then)
	default:
		m.ask = m.link.conn.Ask(&proto.AskFetchTransactions{Partition: q.Partition, Length: k.length, Min: k.min.tid, Max: k.last(),
			AskPack: k.rows == 0}, then)
	}
}

// own reads the data of this node, on another goroutine.
func (c *checker) own(k *comparison, m *member) {
	partition, records, ending, from, last, n, round := k.order.Partition, k.records, k.ending, k.min, k.last(), k.length, k.round
	first := !records && k.rows == 0
	c.s.feeder.run(func() {
		items, next, err := map[item]content{}, proto.Opt[item]{}, error(nil)
		if !ending {
			items, next, err = c.s.feeder.contents(partition, records, from, last, n)
		}
		var pack proto.Opt[tid.TID]
		if (first || ending) && err == nil {
			var packed map[int]tid.TID
			packed, err = c.n.db.PackedIDs(false)
			t, ok := packed[partition]
			pack = proto.Opt[tid.TID]{V: t, OK: ok}
		}
		c.s.feeder.post(func() error {
			if c.n.session != c.s || c.current != k || k.round != round || m.done {
				return nil
			}
			switch {
			case errors.Is(err, backend.ErrNotImplemented):
				return c.lose(m, "its database cannot be checked")
			case err != nil:
				return fmt.Errorf("checking partition %d: %w", partition, err)
			}
			m.done, m.items, m.next, m.pack = true, items, next, pack
			return c.compare()
		})
	})
}

// contents digests transactions or records of this node.
func (f *feeder) contents(partition int, records bool, from item, last tid.TID, n int) (map[item]content, proto.Opt[item], error) {
	db := f.n.db
	var list []item
	if records {
		keys, err := db.RecordsFrom(partition, from.tid, last, from.oid, n+1)
		if err != nil {
			return nil, proto.Opt[item]{}, err
		}
		for _, k := range keys {
			list = append(list, item{k.TID, k.OID})
		}
	} else {
		tids, err := db.TIDsFrom(partition, from.tid, last, n+1)
		if err != nil {
			return nil, proto.Opt[item]{}, err
		}
		for _, t := range tids {
			list = append(list, item{tid: t})
		}
	}
	var next proto.Opt[item]
	if len(list) > n {
		next, list = proto.Some(list[n]), list[:n]
	}
	items := make(map[item]content, len(list))
	for _, i := range list {
		if f.ctx.Err() != nil {
			return nil, proto.Opt[item]{}, nil // the result is of no interest
		}
		if len(f.n.inbox) > 0 {
			time.Sleep(200 * time.Microsecond) // clients come first
		}
		var x content
		var err error
		if records {
			var o backend.Object
			if o, err = db.FetchObject(i.oid, i.tid); err == nil {
				x = recordContent(&o.ObjectData, true)
			}
		} else {
			var m backend.Meta
			if m, _, err = db.FetchTransaction(i.tid); err == nil {
				x = metaContent(&m)
			}
		}
		switch {
		case errors.Is(err, backend.ErrNotFound), errors.Is(err, backend.ErrNoSuchObject):
			continue // packed since it was listed
		case err != nil:
			if _, ok := errors.AsType[*backend.CorruptError](err); !ok {
				return nil, proto.Opt[item]{}, err
			}
			f.n.log.Error("stored data are damaged", "error", err)
			x = content{damaged: true}
		}
		items[i] = x
	}
	return items, next, nil
}

// recordContent digests a record. verified: its checksum is known to be right.
func recordContent(d *proto.ObjectData, verified bool) content {
	switch {
	case len(d.Data) == 0 && d.Checksum == proto.ZeroHash:
		return content{absent: true}
	case !verified && sha1.Sum(d.Data) != d.Checksum:
		return content{damaged: true}
	}
	return content{hash: d.Checksum, form: d.Compression}
}

// metaContent digests the metadata of a transaction. The order of the objects means
// nothing, nor whether the transaction was packed here.
func metaContent(m *backend.Meta) content {
	h := sha1.New()
	for _, b := range [][]byte{m.User, m.Description, m.Extension} {
		binary.Write(h, binary.BigEndian, uint64(len(b)))
		h.Write(b)
	}
	h.Write(m.TTID.Bytes())
	for _, oid := range slices.Sorted(slices.Values(m.OIDs)) {
		h.Write(oid.Bytes())
	}
	var x content
	h.Sum(x.hash[:0])
	return x
}

// receives returns the member whose answer begins with a packet.
func (c *checker) receives(p *peer, id uint32) *member {
	if k := c.current; k != nil {
		for _, m := range k.members {
			if m.link == p && p != nil && m.ask == id && !m.done {
				return m
			}
		}
	}
	return nil
}

// addTransaction digests what another storage has. taken: it was asked for here.
func (c *checker) addTransaction(p *peer, id uint32, q *proto.AddTransaction) (taken bool) {
	m := c.receives(p, id)
	if m == nil {
		return false
	}
	m.items[item{tid: q.TID}] = metaContent(&backend.Meta{User: q.User, Description: q.Description, Extension: q.Extension, TTID: q.TTID, OIDs: q.OIDs})
	return true
}

func (c *checker) addObject(p *peer, id uint32, q *proto.AddObject) (taken bool) {
	m := c.receives(p, id)
	if m == nil {
		return false
	}
	m.items[item{q.Serial, q.OID}] = recordContent(&q.ObjectData, false)
	return true
}

func (c *checker) answered(k *comparison, m *member, ev link.Event) error {
	if c.current != k || m.ask != ev.ID || m.done || !slices.Contains(k.members, m) {
		return nil
	}
	advances := func(next item) bool { return next.compare(k.min) > 0 }
	switch a := ev.Packet.(type) {
	case *proto.AnswerFetchTransactions:
		if k.ending || k.rows == 0 {
			m.pack = a.Packed
		}
		if a.Next.OK && !k.ending {
			m.next = proto.Some(item{tid: a.Next.V})
		}
	case *proto.AnswerFetchObjects:
		if a.Next.OK && a.NextOID.OK {
			m.next = proto.Some(item{a.Next.V, a.NextOID.V})
		}
	case *proto.AnswerCheckTIDRange:
		m.probed(k, a.Count > 0, item{tid: a.Last})
	case *proto.AnswerCheckSerialRange:
		m.probed(k, a.Count > 0, item{a.LastTID, a.LastOID})
	case *proto.Error:
		if a.ErrCode == proto.ReplicationError && !m.probe && !k.ending {
			return c.refused(k, m)
		}
		return c.lose(m, a.Message)
	default:
		return c.lose(m, "it gave no answer")
	}
	if m.next.OK && !advances(m.next.V) {
		return c.lose(m, "its answers do not advance")
	}
	m.tries, m.done = 0, true
	return c.compare()
}

// refused narrows down what a member cannot read, to one item, whose id it then tells.
func (c *checker) refused(k *comparison, m *member) error {
	if m.asked > 1 {
		k.length = max(1, m.asked/4)
		return c.ask()
	}
	if m.tries++; m.tries < 2 { // it might have been packed in that moment
		c.askMember(k, m)
		return nil
	}
	m.tries, m.probe = 0, true
	m.items = map[item]content{}
	q := k.order
	then := question{c.s, func(ev link.Event) error { return c.answered(k, m, ev) }}
	if k.records {
		m.ask = m.link.conn.Ask(&proto.AskCheckSerialRange{Partition: q.Partition, Length: 1, Min: k.min.tid, Max: k.last(), MinOID: k.min.oid}, then)
	} else {
		m.ask = m.link.conn.Ask(&proto.AskCheckTIDRange{Partition: q.Partition, Length: 1, Min: k.min.tid, Max: k.last()}, then)
	}
	return nil
}

// probed takes the id of the only item of a chunk, which is damaged.
func (m *member) probed(k *comparison, found bool, at item) {
	if !found {
		return
	}
	m.items[at] = content{damaged: true}
	next := item{at.tid, at.oid + 1}
	if !k.records {
		next = item{tid: at.tid + 1}
	}
	if next.tid <= k.last() {
		m.next = proto.Some(next)
	}
}

// compare ends a round when all members have answered.
func (c *checker) compare() error {
	k := c.current
	for _, m := range k.members {
		if !m.done {
			return nil
		}
	}
	if k.ending {
		c.comparePacks(false)
		return c.end(check.Compared)
	}
	if k.rows == 0 && !k.records {
		c.comparePacks(true)
	}
	// What all members have answered for.
	var limit proto.Opt[item]
	for _, m := range k.members {
		if m.next.OK && (!limit.OK || m.next.V.compare(limit.V) < 0) {
			limit = m.next
		}
	}
	all := map[item]bool{}
	for _, m := range k.members {
		for i := range m.items {
			if i.compare(k.min) >= 0 && (!limit.OK || i.compare(limit.V) < 0) {
				all[i] = true
			}
		}
	}
	for _, i := range slices.SortedFunc(maps.Keys(all), item.compare) {
		if err := c.judge(i); err != nil {
			return err
		}
	}
	k.rows += len(all)
	k.length = min(checkLength, 2*k.length)
	if k.order.source != 0 {
		if err := c.n.commit(); err != nil {
			return err
		}
	}
	switch {
	case limit.OK:
		k.min = limit.V
	case !k.records:
		k.records, k.min = true, item{tid: k.order.Min}
	default:
		k.ending = true
	}
	if len(k.found) > 0 || time.Since(k.reported) >= checkReport {
		c.progress(check.Comparing, "")
	}
	for _, m := range k.members {
		m.done = false // also while the next round waits
	}
	return c.ask()
}

// judge compares what the members have of an item.
func (c *checker) judge(i item) error {
	k := c.current
	type vote struct {
		content
		has bool
	}
	of := func(m *member) vote {
		x, has := m.items[i]
		return vote{x, has}
	}
	votes := map[vote]int{}
	for _, m := range k.members {
		votes[of(m)]++
	}
	if len(votes) == 1 && !of(k.members[0]).damaged {
		return nil
	}
	var right *vote // as far as that is known
	if k.source != nil {
		if v := of(k.source); !v.damaged {
			right = &v
		}
	} else {
		sound := 0
		for v, n := range votes {
			if !v.damaged {
				sound += n
			}
		}
		for v, n := range votes {
			if !v.damaged && 2*n > sound {
				right = &v
			}
		}
	}
	for _, m := range k.members {
		v := of(m)
		var kind check.Kind
		switch {
		case v.damaged:
			kind = check.Damaged
		case right != nil && v == *right:
			continue
		case !v.has:
			kind = check.Missing
		case right != nil && !right.has:
			kind = check.Extra
		case right == nil && !disputed(k.members, i):
			continue // others lack it
		default:
			kind = check.Different
		}
		if k.order.source != 0 {
			if m.link == nil && v.has && right != nil {
				if err := c.delete(i); err != nil {
					return err
				}
			}
			continue
		}
		if k.source != nil && right == nil && (!v.has || v.damaged) && m != k.source {
			k.stuck[m.id] = true
		}
		c.differs(i, kind, m)
	}
	return nil
}

// disputed reports whether members have an item, but not the same.
func disputed(members []*member, i item) bool {
	var first *content
	for _, m := range members {
		x, has := m.items[i]
		switch {
		case !has || x.damaged:
		case first == nil:
			first = &x
		case x != *first:
			return true
		}
	}
	return false
}

// differs notes a difference.
func (c *checker) differs(i item, kind check.Kind, m *member) {
	k := c.current
	d := check.Difference{Partition: k.order.Partition, Kind: kind, TID: i.tid, Node: m.id}
	if k.records {
		d.OID = proto.Some(i.oid)
	}
	k.total++
	k.nodes[m.id] = true
	if k.listed < check.MaxFound {
		k.listed++
		k.found = append(k.found, d)
	}
	if k.total <= checkLogged {
		c.n.log.Error("replicas differ: " + d.String())
	}
}

// delete deletes what is wrong in a cell that is being repaired.
func (c *checker) delete(i item) error {
	k := c.current
	k.total++
	if k.records {
		c.n.log.Warn("repair: record deleted", "partition", k.order.Partition, "oid", i.oid, "tid", i.tid)
		if err := c.n.db.DeleteObject(i.oid, i.tid); err != nil {
			return fmt.Errorf("deleting object %v at %v: %w", i.oid, i.tid, err)
		}
		return nil
	}
	c.n.log.Warn("repair: transaction deleted", "partition", k.order.Partition, "tid", i.tid)
	if err := c.n.db.DeleteTransaction(i.tid); err != nil {
		return fmt.Errorf("deleting transaction %v: %w", i.tid, err)
	}
	return nil
}

// comparePacks notes if members have not executed the same pack orders: then what
// differs may be right.
func (c *checker) comparePacks(first bool) {
	k := c.current
	for _, m := range k.members {
		if !first && m.pack != k.packed[m.id] {
			k.notes = append(k.notes, fmt.Sprintf("%v has packed meanwhile", m.id))
		}
		k.packed[m.id] = m.pack
	}
	for _, m := range k.members[1:] {
		if o := k.members[0]; first && m.pack.V != o.pack.V {
			k.notes = append(k.notes, fmt.Sprintf("%v has executed pack orders up to %v, %v up to %v", o.id, o.pack.V, m.id, m.pack.V))
		}
	}
}

// progress tells the master how far the check is.
func (c *checker) progress(state check.State, note string) {
	k := c.current
	k.reported = time.Now()
	r := &check.Report{State: state, Rows: k.rows, Total: k.total, Found: k.found, Note: note,
		Nodes: slices.Sorted(maps.Keys(k.nodes)), Stuck: slices.Sorted(maps.Keys(k.stuck))}
	if k.source != nil {
		r.Reference = k.source.id
	}
	k.found = nil
	c.report(k.order, r)
}

func (c *checker) report(q checkOrder, r *check.Report) {
	if q.run == 0 || c.n.master == nil || q.source != 0 && r.State != check.Failed {
		return // the end of a repair is that of its replication
	}
	r.Check, r.Partition, r.Min, r.Max = q.run, q.Partition, q.Min, q.Max
	c.n.master.conn.Send(r.Packet())
}

func (c *checker) release(m *member) {
	if m.link != nil && !c.s.replicator.m.Uses(m.link) {
		c.n.release(m.link)
	}
}

// end ends the check of a partition, and begins the next one.
func (c *checker) end(state check.State) error {
	k := c.current
	if k.partial {
		state = check.Failed
	}
	note := ""
	if state == check.Failed || len(k.nodes) > 0 || len(k.members) < 2 {
		// What cannot have done harm is of no interest.
		note = strings.Join(k.notes, "; ")
	}
	for _, m := range k.members {
		c.release(m)
	}
	bad := slices.Sorted(maps.Keys(k.nodes))
	log := c.n.log.With("partition", k.order.Partition, "rows", k.rows, "note", note)
	switch {
	case k.order.source != 0:
		log.Info("what differs was deleted, and is replicated now", "deleted", k.total)
	case len(bad) == 0 && state == check.Failed:
		log.Error("check given up")
	case len(bad) == 0:
		log.Info("replicas are equal")
	default:
		if k.source == nil && len(k.members) == 2 { // nothing tells which one is right
			bad = []proto.NodeID{k.members[0].id, k.members[1].id}
			slices.Sort(bad)
		}
		log.Error("replicas differ", "nodes", fmt.Sprint(bad), "differences", k.total)
		c.n.master.conn.Send(&proto.NotifyPartitionCorrupted{Partition: k.order.Partition, IDs: bad})
	}
	c.progress(state, note)
	c.current = nil
	if k.order.source != 0 {
		if err := c.s.replicator.tell(replica.Event{Kind: replica.Unheld, Partition: k.order.Partition}); err != nil {
			return err
		}
	}
	return c.next()
}

// lose goes on without a node, if that makes sense. The check has failed in the end,
// for not all is compared; what differs is still found.
func (c *checker) lose(m *member, why string) error {
	k := c.current
	k.members = slices.DeleteFunc(k.members, func(o *member) bool { return o == m })
	c.release(m)
	if q := k.order; q.source != 0 {
		c.n.log.Warn("repair interrupted", "partition", q.Partition, "source", q.source, "reason", why)
		c.current = nil
		c.later(q)
		return c.next()
	}
	c.n.log.Warn("check goes on without a replica", "partition", k.order.Partition, "node", m.id, "reason", why)
	k.partial = true
	k.notes = append(k.notes, fmt.Sprintf("%v was not compared to the end: %s", m.id, why))
	if m == k.source || len(k.members) < 2 {
		return c.end(check.Failed)
	}
	for _, o := range k.members {
		if !o.ready {
			return nil
		}
	}
	if k.round == 0 {
		return c.ask()
	}
	return c.compare()
}

func (c *checker) find(p *peer) *member {
	if c.current != nil {
		for _, m := range c.current.members {
			if m.link == p {
				return m
			}
		}
	}
	return nil
}

func (c *checker) linkReady(p *peer) error {
	if m := c.find(p); m != nil && !m.ready {
		m.ready = true
		return c.ask()
	}
	return nil
}

func (c *checker) linkLost(p *peer) error {
	if m := c.find(p); m != nil {
		return c.lose(m, "the connection was lost")
	}
	return nil
}

func (c *checker) linkReplaced(old, p *peer) error {
	if m := c.find(old); m != nil {
		m.link, m.ready = p, true
		return c.ask() // again, if the answer was on its way
	}
	return nil
}
