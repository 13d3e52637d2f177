package replica

import (
	"crypto/sha1"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// A cluster that has the name of the upstream cluster need not be it: it may have been
// created again. So before anything is fetched, the last transactions of each partition
// are compared by their ids, which packs do not change.

// tailLength returns how many transactions of a partition are compared: fewer if there
// are many partitions.
func tailLength(np int) int { return max(10, min(1000, 100_000/np)) }

// tail is the comparison of the last transactions of a partition with those upstream.
type tail struct {
	run   int64 // as the master has announced it
	order *proto.CheckPartition
	tids  []tid.TID // ascending
	link  Link
	ready bool
	ask   uint64
}

// tails are the comparisons under way, or announced.
type tails struct {
	m    *Machine
	list map[int]*tail // by partition
}

// announced notes that the order to check a partition which follows is about its end.
func (t *tails) announced(r *check.Report) {
	t.drop(r.Partition)
	t.list[r.Partition] = &tail{run: r.Check}
}

// drop gives up a comparison.
func (t *tails) drop(partition int) {
	if k := t.list[partition]; k != nil {
		delete(t.list, partition)
		t.release(k)
	}
}

func (t *tails) release(k *tail) {
	if k.link != nil && !t.m.Uses(k.link) && t.m.checks.find(k.link) == nil && len(t.on(k.link)) == 0 {
		t.m.do(Effect{Op: Release, Link: k.link})
	}
}

// order takes an order that was announced, and reports whether it was.
func (t *tails) order(q *proto.CheckPartition) bool {
	k := t.list[q.Partition]
	if k == nil || k.order != nil {
		return false
	}
	k.order = q
	if !t.m.readable(q.Partition) {
		t.fail(k, fmt.Sprintf("the copy of %v is not readable", t.m.set.ID))
		return true
	}
	t.m.do(Effect{Op: ListTail, Partition: q.Partition, Count: tailLength(t.m.set.Table.NP()), Tag: k})
	return true
}

func (t *tails) current(k *tail) bool { return k.order != nil && t.list[k.order.Partition] == k }

// tailListed takes the last transactions here. Without any there is nothing to compare.
func (t *tails) tailListed(k *tail, ev *Event) {
	switch {
	case !t.current(k):
	case ev.Refused:
		t.fail(k, fmt.Sprintf("the database of %v does not list its transactions", t.m.set.ID))
	case len(ev.TIDs) == 0:
		t.end(k, &check.Report{State: check.Compared})
	default:
		k.tids = ev.TIDs
		t.m.do(Effect{Op: Connect, Partition: k.order.Partition, Target: Target{Addr: k.order.Source, Upstream: k.order.Upstream}, Tag: k})
	}
}

func (t *tails) linked(k *tail, ev *Event) {
	if !t.current(k) {
		t.m.do(Effect{Op: Release, Link: ev.Link})
		return
	}
	if k.link, k.ready = ev.Link, ev.Ready; k.ready {
		t.send(k)
	}
}

func (t *tails) linkReady(l Link) {
	for _, k := range t.on(l) {
		if !k.ready {
			k.ready = true
			t.send(k)
		}
	}
}

func (t *tails) linkLost(l Link) {
	for _, k := range t.on(l) {
		k.link = nil
		t.fail(k, fmt.Sprintf("the connection with the storage at %v was lost", k.order.Source))
	}
}

// on returns the comparisons that use a link, by partition.
func (t *tails) on(l Link) (list []*tail) {
	if l == nil {
		return nil
	}
	for n := range t.m.set.Table.NP() {
		if k := t.list[n]; k != nil && k.link == l {
			list = append(list, k)
		}
	}
	return list
}

// send asks for one transaction more than are here: another one between them counts.
func (t *tails) send(k *tail) {
	t.m.asks++
	k.ask = t.m.asks
	t.m.do(Effect{Op: Ask, Link: k.link, Ask: k.ask, Packet: &proto.AskCheckTIDRange{Partition: k.order.Partition, Length: len(k.tids) + 1,
		Min: k.tids[0], Max: k.tids[len(k.tids)-1]}})
}

// receives returns the comparison that an answer belongs to.
func (t *tails) receives(ask uint64) *tail {
	for _, k := range t.list {
		if k.ask == ask && ask != 0 {
			return k
		}
	}
	return nil
}

func (t *tails) answered(k *tail, p proto.Packet) {
	switch a := p.(type) {
	case *proto.AnswerCheckTIDRange:
		last := k.tids[len(k.tids)-1]
		r := &check.Report{State: check.Compared, Min: k.tids[0], Max: last, Rows: len(k.tids)}
		if a.Count != len(k.tids) || a.Last != last || a.Checksum != digestOf(k.tids) {
			r.Total = 1
			t.m.log(slog.LevelError, "the upstream cluster has other transactions", "partition", k.order.Partition, "from", k.tids[0], "up_to", last, "peer", k.link)
		}
		t.end(k, r)
	case *proto.Error:
		t.fail(k, a.Message)
	default:
		t.fail(k, "it gave no answer")
	}
}

// digestOf returns the digest of transactions that storages of all implementations answer.
func digestOf(tids []tid.TID) proto.Hash {
	var b []byte
	for i, x := range tids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(x), 10)
	}
	return sha1.Sum(b)
}

func (t *tails) fail(k *tail, why string) { t.end(k, &check.Report{State: check.Failed, Note: why}) }

func (t *tails) end(k *tail, r *check.Report) {
	delete(t.list, k.order.Partition)
	r.Check, r.Partition, r.Upstream = k.run, k.order.Partition, k.order.Upstream
	t.m.do(Effect{Op: TellMaster, Packet: r.Packet()})
	t.release(k)
}
