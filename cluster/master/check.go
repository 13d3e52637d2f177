package master

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/proto"
)

// checks are the comparisons of replicas that were ordered, and what they found.
type checks struct {
	board   check.Board
	last    int64                // name of the last one
	jobs    map[job]*peer        // who compares
	repairs map[repairCell]int64 // by the name of the check that found the differences
}

// job is the check of a partition.
type job struct {
	check     int64
	partition int
}

type repairCell struct {
	partition int
	id        proto.NodeID
}

func (c repairCell) compare(o repairCell) int {
	return cmp.Or(cmp.Compare(c.partition, o.partition), cmp.Compare(c.id, o.id))
}

// checkReplicas makes one storage per partition compare the readable copies, those of a
// backup also with that of the upstream cluster, unless a reference is given.
func (m *Machine) checkReplicas(p *peer, id uint32, pkt *proto.CheckReplicas) *proto.Error {
	if e := m.changeable(); e != nil {
		return e
	}
	upstream := false // some partitions are compared with the upstream cluster
	for n, source := range pkt.Partitions {
		if n < 0 || n >= m.table.NP() {
			return deny("no partition %d", n)
		}
		if !source.OK {
			upstream = m.inBackup()
			continue
		}
		if source.V == check.Local {
			continue
		}
		if s := m.nodes.ByID(source.V); s == nil || s.Type != proto.Storage || s.Addr.IsZero() {
			return deny("%v is not a storage that can be reached", source.V)
		}
	}
	if upstream && (m.state != proto.BackingUp || !m.up.tabled) {
		return deny("the upstream cluster %q is not connected; neoctl check --local compares the replicas of this cluster only", m.set.Upstream.Cluster)
	}
	if len(pkt.Partitions) == 0 { // only whether checks have names here
		text := ""
		if p.reports {
			text = fmt.Sprint(check.Started, m.checks.last)
		}
		m.ack(p, id, text)
		return nil
	}
	upTo, note := m.ids.committed, ""
	if m.inBackup() {
		upTo = m.outOfGaps(m.reached(false))
	}
	switch {
	case pkt.Max.OK && m.inBackup() && pkt.Max.V > upTo:
		note = fmt.Sprintf("compared up to %v only: some copies have nothing later yet", upTo)
	case pkt.Max.OK:
		upTo = pkt.Max.V
	}
	if pkt.Min > upTo {
		m.log(slog.LevelInfo, "nothing to check", "min_tid", pkt.Min.String(), "max_tid", upTo.String())
		text := ""
		if p.reports {
			text = check.Nothing
		}
		m.ack(p, id, text)
		return nil
	}
	c := &m.checks
	if c.jobs == nil {
		c.jobs, c.repairs = map[job]*peer{}, map[repairCell]int64{}
	}
	c.last = max(c.last+1, m.now.UnixNano())
	partitions := slices.Sorted(maps.Keys(pkt.Partitions))
	r := &check.Report{Check: c.last, Partition: check.None, Partitions: partitions, Min: pkt.Min, Max: upTo}
	if upstream {
		r.Upstream = m.set.Upstream.Cluster
	}
	m.report(r)
	chosen := map[proto.NodeID]bool{}
	used := map[proto.Address]bool{}
	type given struct {
		to    *peer
		order *proto.CheckPartition
	}
	var orders []given
	share := map[*peer][]int{}
	for _, n := range partitions {
		source := pkt.Partitions[n]
		above := !source.OK && m.inBackup()
		if source.V == check.Local {
			source.OK = false
		}
		fail := func(format string, args ...any) {
			r := &check.Report{Check: c.last, Partition: n, State: check.Failed, Min: pkt.Min, Max: upTo, Note: fmt.Sprintf(format, args...)}
			if above {
				r.Upstream = m.set.Upstream.Cluster
			}
			m.report(r)
		}
		order := &proto.CheckPartition{Partition: n, Min: pkt.Min, Max: upTo}
		if above {
			order.Upstream, order.Source = m.set.Upstream.Cluster, m.upstreamCell(n, used)
			used[order.Source] = true
		}
		var cells, reporting []proto.NodeID
		for _, cell := range m.table.Row(n) {
			if s := m.stores[cell.ID]; cell.State.Readable() && s != nil {
				cells = append(cells, cell.ID)
				if s.reports {
					reporting = append(reporting, cell.ID)
				}
			}
		}
		switch {
		case len(cells) == 0:
			fail("no storage with a readable copy is connected")
			continue
		case above && order.Source.IsZero():
			fail("cluster %s has no readable copy now", m.set.Upstream.Cluster)
			continue
		case source.OK && !slices.Contains(cells, source.V):
			fail("%v has no readable copy", source.V)
			continue
		case reporting == nil && len(cells) == 1 && !above:
			fail("only %v has a readable copy: there is nothing to compare it with", cells[0])
			continue
		case reporting != nil:
			cells = reporting
		default:
			fail("%v does not report what it finds: see its log and that of the master", cells[0])
		}
		i := max(0, slices.IndexFunc(cells, func(id proto.NodeID) bool { return chosen[id] }))
		chosen[cells[i]] = true
		if source.OK {
			order.Source = m.nodes.ByID(source.V).Addr
		}
		s := m.stores[cells[i]]
		if s.reports {
			share[s] = append(share[s], n)
			c.jobs[job{c.last, n}] = s
			if note != "" {
				m.report(&check.Report{Check: c.last, Partition: n, State: check.Comparing, Min: pkt.Min, Max: upTo, Note: note, Upstream: order.Upstream})
			}
		}
		orders = append(orders, given{s, order})
	}
	for _, o := range orders {
		if list := share[o.to]; list != nil { // it is told once what follows
			delete(share, o.to)
			m.notify(o.to, (&check.Report{Check: c.last, Partition: check.None, Partitions: list}).Packet())
		}
		m.notify(o.to, o.order)
	}
	if orders == nil {
		m.checkEnded(c.last)
	}
	text := ""
	if p.reports {
		text = fmt.Sprint(check.Started, c.last)
	}
	m.ack(p, id, text)
	return nil
}

// report notes what is known of a check and tells the admins.
func (m *Machine) report(r *check.Report) {
	m.checks.board.Apply(r)
	pkt := r.Packet()
	for _, p := range m.members {
		if p.node.Type == proto.Admin && p.reports {
			m.notify(p, pkt)
		}
	}
}

// replayChecks tells an admin that comes what it has missed.
func (m *Machine) replayChecks(p *peer) {
	if !p.reports {
		return
	}
	for _, r := range m.checks.board.Replay() {
		m.notify(p, r.Packet())
	}
}

// checkReported takes what a storage has found.
func (m *Machine) checkReported(p *peer, pkt *proto.NotifyMonitorInformation) {
	r, ok, err := check.Parse(pkt)
	switch {
	case err != nil:
		m.log(slog.LevelWarn, "report not understood", "node", p.String(), "err", err.Error())
		return
	case !ok:
		return
	}
	if m.tailReported(p, r) {
		return
	}
	j := job{r.Check, r.Partition}
	if id, ok := m.checks.repairs[repairCell{r.Partition, p.node.ID}]; ok && id == r.Check && r.State == check.Failed {
		m.repairOver(repairCell{r.Partition, p.node.ID}, r.Note)
		return
	}
	if m.checks.jobs[j] != p {
		return // of a check that is over
	}
	if r.State == check.Compared || r.State == check.Failed {
		delete(m.checks.jobs, j)
		if run := m.checks.board.Run(r.Check); run != nil {
			r.Note = m.addUnread(r.Note, r.Partition)
		}
	}
	m.report(r)
	if r.State != check.Comparing {
		level := slog.LevelInfo
		if r.State == check.Compared && r.Total == 0 && r.Note == "" {
			level = slog.LevelDebug // it is well
		}
		m.log(level, "partition checked", "partition", r.Partition, "node", p.String(), "differences", r.Total, "nodes", idTexts(r.Nodes), "note", r.Note)
		m.checkEnded(r.Check)
	}
}

// checkEnded logs the end of a check, unless some of it goes on.
func (m *Machine) checkEnded(id int64) {
	run := m.checks.board.Run(id)
	if run == nil {
		return
	}
	for j := range m.checks.jobs {
		if j.check == id {
			return
		}
	}
	failed, rows, differences := 0, 0, 0
	for _, part := range run.Parts {
		if part.State == check.Failed {
			failed++
		}
		rows += part.Rows
		differences += part.Total
	}
	m.log(slog.LevelInfo, "check ended", "partitions", len(run.Parts), "not_compared", failed, "rows", rows, "differences", differences)
}

// corrupted takes what a storage has found that does not report more.
func (m *Machine) corrupted(p *peer, pkt *proto.NotifyPartitionCorrupted) {
	if p.reports || pkt.Partition < 0 || pkt.Partition >= m.table.NP() {
		return
	}
	runs := m.checks.board.Runs()
	for i := len(runs) - 1; i >= 0; i-- {
		part := runs[i].Parts[pkt.Partition]
		if part == nil {
			continue
		}
		// A Python storage names no id, if it was compared with the upstream cluster.
		ids := slices.DeleteFunc(slices.Clone(pkt.IDs), func(id proto.NodeID) bool { return id == 0 })
		m.report(&check.Report{Check: runs[i].ID, Partition: pkt.Partition, State: check.Failed, Reference: part.Reference, Min: part.Min, Max: part.Max,
			Total: len(pkt.IDs), Nodes: ids, Faulty: len(ids) < len(pkt.IDs), Upstream: part.Upstream, Note: fmt.Sprintf("%v has found differences: see its log", p)})
		return
	}
}

// addUnread adds to a note which copies of a partition could not be compared.
func (m *Machine) addUnread(note string, partition int) string {
	var notes []string
	if note != "" {
		notes = append(notes, note)
	}
	for _, cell := range m.table.Row(partition) {
		if !cell.State.Readable() || m.stores[cell.ID] == nil {
			notes = append(notes, fmt.Sprintf("the copy of %v is not readable: it was not compared", cell.ID))
		}
	}
	return strings.Join(notes, "; ")
}

// checksLost ends what is under way.
func (m *Machine) checksLost(why string) {
	c := &m.checks
	for _, j := range slices.SortedFunc(maps.Keys(c.jobs), func(a, b job) int { return compareJobs(a, b) }) {
		m.jobFailed(j, why)
	}
	for _, cell := range m.repairing(0) {
		m.repairOver(cell, why)
	}
}

func compareJobs(a, b job) int {
	if a.check != b.check {
		return int(min(1, max(-1, a.check-b.check)))
	}
	return a.partition - b.partition
}

func (m *Machine) jobFailed(j job, why string) {
	delete(m.checks.jobs, j)
	r := &check.Report{Check: j.check, Partition: j.partition, State: check.Failed, Note: why}
	if run := m.checks.board.Run(j.check); run != nil {
		if part := run.Parts[j.partition]; part != nil {
			r.Reference, r.Min, r.Max, r.Upstream = part.Reference, part.Min, part.Max, part.Upstream
		}
	}
	m.report(r)
	m.checkEnded(j.check)
}

// checkerLost ends what a storage was ordered to do.
func (m *Machine) checkerLost(p *peer) {
	for _, j := range slices.SortedFunc(maps.Keys(m.checks.jobs), compareJobs) {
		if m.checks.jobs[j] == p {
			m.jobFailed(j, fmt.Sprintf("%v, which compared, was lost", p))
		}
	}
	for _, cell := range m.repairing(p.node.ID) {
		m.repairOver(cell, fmt.Sprintf("%v was lost", p))
	}
}

// repairing returns the cells of a node that are repaired, of all nodes for 0.
func (m *Machine) repairing(id proto.NodeID) []repairCell {
	var list []repairCell
	for cell := range m.checks.repairs {
		if id == 0 || cell.id == id {
			list = append(list, cell)
		}
	}
	slices.SortFunc(list, repairCell.compare)
	return list
}

// repairOrdered takes the cells that a check has found to differ out of service, and
// lets their nodes get what the reference has.
func (m *Machine) repairOrdered(p *peer, pkt *proto.NotifyMonitorInformation) {
	order, ok, err := check.Parse(pkt)
	if err != nil || !ok || order.State != check.Repair {
		m.log(slog.LevelWarn, "order not understood", "node", p.String())
		return
	}
	refuse := func(format string, args ...any) {
		m.notify(p, (&check.Report{Check: order.Check, Partition: check.None, State: check.Failed, Note: fmt.Sprintf(format, args...)}).Packet())
	}
	run := m.checks.board.Run(order.Check)
	switch {
	case m.inBackup():
		refuse("the cluster is %v: the copies of a backup cluster are not repaired. Empty a bad one by a tweak without its node, drop the node, "+
			"and add it again; it then replicates what a good copy has", m.state)
		return
	case m.state != proto.Running:
		refuse("the cluster is %v", m.state)
		return
	case run == nil:
		refuse("the result of the check is not known any more")
		return
	case !run.Over():
		refuse("the check is not over")
		return
	}
	for _, n := range run.Partitions() {
		part := run.Parts[n]
		for _, id := range order.Nodes {
			if slices.Contains(part.Nodes, id) {
				m.repairCell(order.Check, part, repairCell{n, id})
			}
		}
	}
}

func (m *Machine) repairCell(run int64, part *check.Part, cell repairCell) {
	n, id, from := cell.partition, cell.id, part.Reference
	s := m.stores[id]
	why := ""
	switch {
	case part.Upstream != "":
		why = fmt.Sprintf("it was compared with cluster %s, which is no copy of this cluster: nothing is repaired from there", part.Upstream)
	case from == 0:
		why = "it was compared without a reference"
	case from == id:
		why = fmt.Sprintf("%v is the reference", id)
	case slices.Contains(part.Stuck, id):
		why = fmt.Sprintf("%v is damaged where %v has nothing better: repair %v first, from another copy", from, id, from)
	case s == nil || s.ready == 0:
		why = fmt.Sprintf("%v does not run", id)
	case !s.reports:
		why = fmt.Sprintf("%v is not of this implementation: empty it by a tweak, drop it, and add it again with an empty database", id)
	case m.stores[from] == nil || m.stores[from].ready == 0 || !m.table.Cell(n, from).Readable():
		why = fmt.Sprintf("%v has no readable copy any more", from)
	case m.table.Cell(n, id) != proto.UpToDate:
		why = fmt.Sprintf("the copy of %v is %v", id, m.table.Cell(n, id))
	}
	if why == "" && !m.settled() {
		after := m.table.Clone()
		after.Suspend(id, n, m.running)
		if !m.covered(func(id proto.NodeID) bool { return m.running(id) && slices.Contains(after.ReadableNodes(), id) }) {
			why = "the storages have not all stored yet which copies are complete: try again"
		}
	}
	if why == "" {
		changes := m.table.Suspend(id, n, m.running)
		if changes != nil {
			m.notify(s, (&check.Report{Check: run, Partition: n, State: check.Repair, Reference: from, Max: m.ids.committed}).Packet())
			m.broadcastCells(changes)
			m.checks.repairs[cell] = run
			m.log(slog.LevelInfo, "repairing", "partition", n, "node", id.String(), "from", from.String())
			m.report(&check.Report{Check: run, Partition: n, State: check.Repairing, Reference: from, Nodes: []proto.NodeID{id}})
			return
		}
		why = fmt.Sprintf("%v has the last readable copy", id)
	}
	m.report(&check.Report{Check: run, Partition: n, State: check.Failed, Reference: from, Min: part.Min, Max: part.Max,
		Note: fmt.Sprintf("the copy of %v was not repaired: %s", id, why)})
}

// cellsRepaired follows the cells that are repaired.
func (m *Machine) cellsRepaired(changes []proto.CellChange) {
	for _, ch := range changes {
		cell := repairCell{ch.Partition, ch.ID}
		if _, ok := m.checks.repairs[cell]; !ok || ch.State == proto.OutOfDate {
			continue
		}
		if ch.State == proto.UpToDate {
			m.repairOver(cell, "")
		} else {
			m.repairOver(cell, fmt.Sprintf("it is %v", ch.State))
		}
	}
}

// repairOver ends the repair of a cell, which has failed if there is a reason.
func (m *Machine) repairOver(cell repairCell, why string) {
	run := m.checks.repairs[cell]
	delete(m.checks.repairs, cell)
	r := &check.Report{Check: run, Partition: cell.partition, State: check.Repaired}
	for other, id := range m.checks.repairs {
		if id == run && other.partition == cell.partition {
			r.State = check.Repairing
		}
	}
	if known := m.checks.board.Run(run); known != nil {
		if part := known.Parts[cell.partition]; part != nil {
			r.Reference, r.Min, r.Max = part.Reference, part.Min, part.Max
		}
	}
	if why != "" {
		r.State, r.Note = check.Failed, fmt.Sprintf("the copy of %v was not repaired: %s", cell.id, why)
	}
	m.report(r)
}
