package storage

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// checkCount is how many transactions or records are digested at a time.
const checkCount = 40000

// checker compares replicas of a partition: first their transactions, then their
// records, range by range, by digests of the ids. Orders are processed one at a
// time. It does not know of packs: they must be complete everywhere.
type checker struct {
	n       *Node
	s       *session
	queue   []*proto.CheckPartition
	current *comparison
}

// comparison is the check of one partition.
type comparison struct {
	order   *proto.CheckPartition
	members []*member // this node, then others
	source  *member   // whose data are right; nil: nobody knows
	records bool      // else transactions
	min     tid.TID
	minOID  tid.OID
	round   int
}

// member is a node that takes part in a check.
type member struct {
	link   *peer // nil: this node
	id     proto.NodeID
	ready  bool
	ask    uint32
	done   bool
	digest digest
}

// digest covers a range of transactions or records.
type digest struct {
	count      int
	tids, oids proto.Hash
	last       tid.TID
	lastOID    tid.OID
}

func newChecker(n *Node, s *session) *checker { return &checker{n: n, s: s} }

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

func (c *checker) order(q *proto.CheckPartition) error {
	c.queue = append(c.queue, q)
	return c.next()
}

func (c *checker) next() error {
	for c.current == nil && len(c.queue) > 0 {
		q := c.queue[0]
		c.queue = c.queue[1:]
		if !c.n.checkable(q.Partition) {
			c.n.log.Error("partition cannot be checked here", "partition", q.Partition)
			continue
		}
		k := &comparison{order: q, min: q.Min}
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
			if cell.ID != c.n.id && cell.State.Readable() && node != nil && node.State == proto.NodeRunning {
				add(target{id: cell.ID, addr: node.Addr})
			}
		}
		if !q.Source.IsZero() {
			if q.Upstream != "" {
				k.source = add(target{addr: q.Source, upstream: q.Upstream})
			} else if node := c.n.nodes.ByAddr(q.Source); node != nil {
				k.source = add(target{id: node.ID, addr: node.Addr})
			}
			if k.source == nil {
				c.n.log.Error("unknown source of a check", "partition", q.Partition, "source", q.Source)
				continue
			}
		}
		if len(k.members) < 2 {
			c.n.log.Error("no replica to compare with", "partition", q.Partition)
			continue
		}
		c.current = k
		if err := c.ask(); err != nil {
			return err
		}
	}
	return nil
}

// ask begins a round as soon as everybody is ready.
func (c *checker) ask() error {
	k := c.current
	for _, m := range k.members {
		if !m.ready {
			return nil
		}
	}
	q := k.order
	last := min(q.Max, tid.Max)
	if c.s.txns.TransactionLocked(last) {
		round := k.round
		time.AfterFunc(50*time.Millisecond, func() {
			c.n.post(func() error {
				if c.n.session != c.s || c.current != k || k.round != round {
					return nil
				}
				return c.ask()
			})
		})
		return nil
	}
	k.round++
	round := k.round
	for _, m := range k.members {
		m.done = false // also of a round that is asked again
		if m.link == nil {
			c.own(k, m, round)
			continue
		}
		then := question{c.s, func(ev link.Event) error { return c.answered(k, m, ev) }}
		if k.records {
			m.ask = m.link.conn.Ask(&proto.AskCheckSerialRange{Partition: q.Partition, Length: checkCount, Min: k.min, Max: last, MinOID: k.minOID}, then)
		} else {
			m.ask = m.link.conn.Ask(&proto.AskCheckTIDRange{Partition: q.Partition, Length: checkCount, Min: k.min, Max: last}, then)
		}
	}
	return nil
}

// own digests the data of this node, on another goroutine.
func (c *checker) own(k *comparison, m *member, round int) {
	partition, records, from, fromOID, last := k.order.Partition, k.records, k.min, k.minOID, min(k.order.Max, tid.Max)
	c.s.feeder.run(func() {
		var d digest
		var err error
		if records {
			var a *proto.AnswerCheckSerialRange
			if a, err = c.n.db.CheckSerials(partition, checkCount, from, last, fromOID); err == nil {
				d = serialDigest(a)
			}
		} else {
			var a *proto.AnswerCheckTIDRange
			if a, err = c.n.db.CheckTIDs(partition, checkCount, from, last); err == nil {
				d = tidDigest(a)
			}
		}
		c.s.feeder.post(func() error {
			if c.n.session != c.s || c.current != k || k.round != round {
				return nil
			}
			switch {
			case errors.Is(err, backend.ErrNotImplemented):
				c.n.log.Error("this database cannot be checked")
				return c.lose(m)
			case err != nil:
				return fmt.Errorf("checking partition %d: %w", partition, err)
			}
			m.done, m.digest = true, d
			return c.compare()
		})
	})
}

func tidDigest(a *proto.AnswerCheckTIDRange) digest {
	return digest{count: a.Count, tids: a.Checksum, last: a.Last}
}

func serialDigest(a *proto.AnswerCheckSerialRange) digest {
	return digest{a.Count, a.TIDChecksum, a.OIDChecksum, a.LastTID, a.LastOID}
}

func (c *checker) answered(k *comparison, m *member, ev link.Event) error {
	if c.current != k || m.ask != ev.ID || m.done || !slices.Contains(k.members, m) {
		return nil
	}
	switch a := ev.Packet.(type) {
	case *proto.AnswerCheckTIDRange:
		m.digest = tidDigest(a)
	case *proto.AnswerCheckSerialRange:
		m.digest = serialDigest(a)
	default:
		c.n.log.Warn("check refused", "partition", k.order.Partition, "peer", m.link, "error", ev.Packet)
		return c.lose(m)
	}
	m.done = true
	return c.compare()
}

// compare ends a round when everybody has answered.
func (c *checker) compare() error {
	k := c.current
	for _, m := range k.members {
		if !m.done {
			return nil
		}
	}
	first := k.members[0].digest
	if slices.ContainsFunc(k.members, func(m *member) bool { return m.digest != first }) {
		var bad []proto.NodeID
		var good []*member
		for _, m := range k.members {
			if k.source != nil && m.digest == k.source.digest {
				good = append(good, m)
			} else {
				bad = append(bad, m.id)
				c.release(m)
			}
		}
		c.n.log.Error("replicas differ", "partition", k.order.Partition, "nodes", fmt.Sprint(bad))
		c.n.master.conn.Send(&proto.NotifyPartitionCorrupted{Partition: k.order.Partition, IDs: bad})
		k.members = good
		if len(good) < 2 {
			c.queue = nil
			return c.end()
		}
		first = k.source.digest
	}
	switch {
	case first.count < checkCount && k.records:
		c.n.log.Info("replicas are equal", "partition", k.order.Partition)
		return c.end()
	case first.count < checkCount:
		k.records, k.min, k.minOID = true, k.order.Min, 0
	case k.records:
		k.min, k.minOID = first.last, first.lastOID+1
	default:
		k.min = first.last + 1
	}
	for _, m := range k.members {
		m.done = false // also while the next round waits
	}
	return c.ask()
}

func (c *checker) release(m *member) {
	if m.link != nil && (c.s.replicator.current == nil || c.s.replicator.current.link != m.link) {
		c.n.release(m.link)
	}
}

func (c *checker) end() error {
	for _, m := range c.current.members {
		c.release(m)
	}
	c.current = nil
	return c.next()
}

// lose goes on without a node, if that makes sense.
func (c *checker) lose(m *member) error {
	k := c.current
	k.members = slices.DeleteFunc(k.members, func(o *member) bool { return o == m })
	if m == k.source || len(k.members) < 2 {
		c.n.log.Error("check given up", "partition", k.order.Partition)
		return c.end()
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
		return c.lose(m)
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
