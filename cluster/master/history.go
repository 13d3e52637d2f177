package master

import (
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/proto"
)

// tails are the comparisons of the last transactions of each partition with those of the
// upstream cluster, before anything is fetched from it. One storage for each compares.
type tails struct {
	asked bool          // for its last transaction: it may have been truncated
	may   bool          // it was not
	run   int64         // names the comparison; 0: none has begun
	jobs  map[int]*peer // by partition
	bad   *check.Report // of the first partition that differs, or else of the first that could not be compared
}

// lost begins again if a storage is lost that compares.
func (t *tails) lost(p *peer) {
	if slices.Contains(slices.Collect(maps.Values(t.jobs)), p) {
		t.run, t.jobs, t.bad = 0, nil, nil
	}
}

// sameHistory reports whether the upstream cluster has the transactions that this cluster
// has. The answers come later: it is called after every event.
func (m *Machine) sameHistory() bool {
	t := &m.up.tails
	switch {
	case !t.asked:
		t.asked = true
		m.ask(m.up.link, &proto.AskLastTransaction{})
		return false
	case !t.may:
		return false
	case t.run != 0:
		return len(t.jobs) == 0
	}
	used := map[proto.Address]bool{}
	orders := map[int]*proto.CheckPartition{}
	jobs := map[int]*peer{}
	for n := range m.table.NP() {
		i := slices.IndexFunc(m.readyCells(n), func(p *peer) bool { return p.tails })
		if i < 0 {
			continue // storages of the Python implementation cannot say it
		}
		source := m.upstreamCell(n, used)
		if source.IsZero() {
			m.unfollowed("partition %d has no readable copy there", n)
			return false
		}
		used[source] = true
		jobs[n] = m.readyCells(n)[i]
		orders[n] = &proto.CheckPartition{Partition: n, Upstream: m.set.Upstream.Cluster, Source: source}
	}
	c := &m.checks
	c.last = max(c.last+1, m.now.UnixNano())
	t.run, t.jobs = c.last, jobs
	for _, n := range slices.Sorted(maps.Keys(jobs)) {
		m.notify(jobs[n], (&check.Report{Check: t.run, Partition: n, State: check.Tail}).Packet())
		m.notify(jobs[n], orders[n])
	}
	return len(jobs) == 0
}

// tailReported takes how a comparison has ended, and reports whether it was one of these.
func (m *Machine) tailReported(p *peer, r *check.Report) bool {
	t := &m.up.tails
	if t.run == 0 || r.Check != t.run {
		return false
	}
	if t.jobs[r.Partition] != p {
		return true
	}
	delete(t.jobs, r.Partition)
	// All are awaited: each attempt then ends with the same reason, which is logged once.
	if b := t.bad; (r.State != check.Compared || r.Total > 0) && (b == nil || r.Total > b.Total || r.Total == b.Total && r.Partition < b.Partition) {
		t.bad = r
	}
	if len(t.jobs) > 0 || t.bad == nil {
		return true
	}
	if r = t.bad; r.Total == 0 {
		m.unfollowed("the last transactions of partition %d could not be compared: %s", r.Partition, r.Note)
	} else {
		m.unfollowed("it has another history: its transactions of partition %d from %v to %v are not those of this cluster. It was created again, "+
			"or truncated and used since. Nothing is copied. Check the addresses; else leave backup mode, truncate this cluster to a transaction "+
			"that both have, or begin with an empty database", r.Partition, r.Min, r.Max)
	}
	m.close(m.up.link)
	return true
}
