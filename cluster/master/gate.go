package master

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// gate is what is known of the upstream cluster and may not be copied yet.
type gate struct {
	queue []arrival // in the order of their ids
	seen  []mark    // of the delay, oldest first

	hold    proto.Opt[tid.TID] // nothing after it is copied
	decided bool               // this process knows whether there is a hold, better than storages

	shut   bool      // outside of the window, or no run is under way
	run    bool      // the schedule, or the operator, wants a run
	forced bool      // it was the operator: the window does not count
	target tid.TID   // of the run; Zero: not known yet
	fires  time.Time // next moment of the schedule

	wanted tid.TID   // last transaction that may have been copied by now
	raised time.Time // when wanted was raised
	looked time.Time // when what is not known one by one was last looked at
	wake   time.Time // when the shell was last told to wake the machine; zero: it need not

	agreed  agreement
	reports reports
}

// arrival is a transaction of the upstream cluster, or a run of transactions of which only
// the ends are known, first included. Nothing else has happened before the next arrival.
type arrival struct {
	first, last tid.TID // first is Zero if it is not known
	partitions  []int   // that they touch, sorted
	unknown     bool    // they may touch any partition
}

func (a *arrival) touches(n int) bool {
	if a.unknown {
		return true
	}
	_, found := slices.BinarySearch(a.partitions, n)
	return found
}

// join takes the arrival that follows.
func (a *arrival) join(b arrival) {
	a.last, a.unknown = b.last, a.unknown || b.unknown
	a.partitions = slices.Concat(a.partitions, b.partitions)
	slices.Sort(a.partitions)
	a.partitions = slices.Compact(a.partitions)
}

// mark is a transaction that was known to the upstream cluster at a moment.
type mark struct {
	start, at time.Time // of the first transaction that it stands for, and of the last
	tid       tid.TID
}

// marks is how many moments are remembered during a delay: a transaction may be that part
// of the delay late.
const marks = 1000

// reset forgets what belongs to an operation that is over. A hold stays.
func (g *gate) reset() {
	*g = gate{hold: g.hold, decided: g.decided, run: g.run, forced: g.forced, wake: g.wake}
}

// lost forgets what depends on the link to the upstream cluster.
func (g *gate) lost() { g.queue, g.target, g.looked = nil, tid.Zero, time.Time{} }

// expect queues what has happened upstream, until it may be copied.
func (m *Machine) expect(a arrival) {
	g := &m.gate
	m.ids.committed, m.ids.known = a.last, a.last
	if a.unknown {
		m.follow.teller.mayHaveCommitted(a.last)
	} else {
		m.follow.teller.committedUpstream(a.last)
	}
	g.queue = append(g.queue, a)
	if len(g.queue) > maxSpans {
		i := len(g.queue) / 2
		g.queue[i].join(g.queue[i+1])
		g.queue = slices.Delete(g.queue, i+1, i+2)
	}
	delay := m.set.Upstream.Delay
	if delay <= 0 {
		return
	}
	if n := len(g.seen); n > 0 && m.now.Sub(g.seen[n-1].start) < delay/marks {
		g.seen[n-1].tid, g.seen[n-1].at = a.last, m.now
		return
	}
	g.seen = append(g.seen, mark{m.now, m.now, a.last})
}

// delayed returns the last transaction whose delay is over: that was known a delay ago, or
// that is so old by the ids of the upstream cluster and by the clock of this master, both.
func (m *Machine) delayed() tid.TID {
	g, delay := &m.gate, m.set.Upstream.Delay
	i := 0
	for i < len(g.seen) && m.now.Sub(g.seen[i].at) >= delay {
		i++
	}
	var t tid.TID
	if i > 0 {
		t = g.seen[i-1].tid
		g.seen = slices.Delete(g.seen, 0, i-1) // it may be needed again
	}
	now := m.now
	if newest := m.ids.committed.Time(); newest.Before(now) {
		now = newest
	}
	return max(t, tid.FromTime(now.Add(-delay)))
}

// due returns the last transaction of the upstream cluster that may be copied, whatever the
// time of the day.
func (m *Machine) due() tid.TID {
	t := m.ids.committed
	if m.set.Upstream.Delay > 0 {
		t = min(t, m.delayed())
	}
	if h := m.gate.hold; h.OK {
		t = min(t, h.V)
	}
	return t
}

// bound returns the last transaction of the upstream cluster that is wanted by now: no
// order to fetch goes beyond it.
func (m *Machine) bound() tid.TID {
	g, t := &m.gate, m.due()
	if g.target != tid.Zero && (m.scheduled() || !m.set.Upstream.Window.Open(m.now)) {
		t = min(t, g.target)
	}
	return t
}

// scheduled reports whether copies are only made in runs, each up to a target.
func (m *Machine) scheduled() bool { return m.set.Upstream.Schedule != nil }

// open reports whether storages may be ordered to fetch now.
func (m *Machine) open() bool {
	g, u := &m.gate, &m.set.Upstream
	switch {
	case g.run && g.forced:
		return true
	case !u.Window.Open(m.now):
		return false
	}
	return g.run || !m.scheduled()
}

// tryGate lets through what may be copied by now. It is called after every event.
func (m *Machine) tryGate() {
	g := &m.gate
	if m.second != nil || m.ended || !m.inBackup() {
		return
	}
	if s := m.set.Upstream.Schedule; s != nil {
		if g.fires.IsZero() {
			g.fires = s.Next(m.now)
		}
		if !g.fires.IsZero() && !m.now.Before(g.fires) {
			g.fires = s.Next(m.now)
			g.run, g.target = true, tid.Zero
			m.log(slog.LevelInfo, "a scheduled run begins")
		}
	}
	if m.state == proto.BackingUp && m.up.known {
		if g.run && g.target == tid.Zero {
			g.target = m.due()
		}
		m.letThrough()
		if g.run && m.reached(false) >= min(g.target, m.due()) {
			g.run, g.forced, g.target = false, false, tid.Zero
			m.log(slog.LevelInfo, "the run is over", "readable_tid", m.reached(false).String())
		}
	}
	m.tellShut()
	m.agree()
}

// endGate tells what has come of an event, and orders the next look.
func (m *Machine) endGate() {
	if m.second == nil && !m.ended && m.inBackup() {
		m.tellReports()
		m.wakeAt(m.nextLook())
	}
}

// letThrough hands what is due to the follower, which gives the orders.
func (m *Machine) letThrough() {
	g, f := &m.gate, &m.follow
	if !m.open() {
		return
	}
	b := m.bound()
	if b > g.wanted {
		g.wanted, g.raised, g.reports.changed = b, m.now, true
	}
	for len(g.queue) > 0 && g.queue[0].first <= b {
		a := g.queue[0]
		end := min(a.last, b)
		if end < a.last {
			if exact := g.hold.OK && end == g.hold.V || end == g.target; !exact && a.first != tid.Zero && m.now.Sub(g.looked) < m.lookEvery() {
				break
			}
			g.looked = m.now
			g.queue[0].first = end + 1
		} else {
			g.queue = slices.Delete(g.queue, 0, 1)
		}
		first, prev := a.first, f.touched
		if a.unknown {
			prev = end
		}
		if first == tid.Zero {
			first = end
		}
		m.touch(first, end, prev, a.touches)
	}
	// What a hold keeps ends exactly there, as soon as it is known that nothing precedes.
	if h := g.hold; h.OK && b == h.V && f.touched < b && (len(g.queue) == 0 || g.queue[0].first > b) {
		m.touch(b, b, f.touched, func(int) bool { return false })
	}
}

// lookEvery is how often cells look for what is not known one by one, while a delay
// lasts.
func (m *Machine) lookEvery() time.Duration {
	return min(max(m.set.Upstream.Delay/100, time.Second), time.Minute)
}

// tellShut follows the window and the schedule.
func (m *Machine) tellShut() {
	g := &m.gate
	shut := !m.open()
	if shut == g.shut {
		return
	}
	g.shut, g.reports.changed = shut, true
	switch readable := m.reached(false); {
	case !shut:
		m.log(slog.LevelInfo, "storages may fetch from upstream")
		m.triggerAll()
	case readable < min(g.wanted, m.due()):
		m.log(slog.LevelWarn, "the window closes before this cluster has all that it should have: it goes on next time",
			"readable_tid", readable.String(), "wanted_tid", g.wanted.String())
	default:
		m.log(slog.LevelInfo, "storages fetch no more from upstream for now")
	}
}

// nextLook returns when the gate must be looked at again, if nothing happens before; zero
// if it need not.
func (m *Machine) nextLook() (next time.Time) {
	g, u := &m.gate, &m.set.Upstream
	soon := func(t time.Time) {
		if t.After(m.now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	soon(u.Window.Change(m.now))
	soon(g.fires)
	soon(m.nextReport())
	if g.agreed.busy > 0 {
		soon(g.agreed.divided.Add(divideEvery))
	}
	if u.Delay > 0 && len(g.queue) > 0 && m.state == proto.BackingUp && m.open() {
		first := max(g.queue[0].first, m.follow.touched)
		if first.Time().Add(u.Delay).Before(m.ids.committed.Time()) {
			soon(first.Time().Add(u.Delay + time.Millisecond)) // the clock of this master is behind
		}
		for _, s := range g.seen {
			if at := s.at.Add(u.Delay); at.After(m.now) {
				soon(at)
				break
			}
		}
		if g.queue[0].first < m.bound() {
			soon(g.looked.Add(m.lookEvery()))
		}
	}
	return next
}

// wakeAt has the machine called at a moment, if nothing happens before.
func (m *Machine) wakeAt(t time.Time) {
	g := &m.gate
	if t.IsZero() || t.Equal(g.wake) && g.wake.After(m.now) {
		return
	}
	g.wake = t
	m.out = append(m.out, Effect{Op: Wake, Delay: min(max(t.Sub(m.now), time.Millisecond), time.Hour)})
}

// orderHold obeys an order of the operator, or says why not.
func (m *Machine) orderHold(o *following.Order) (refusal string) {
	g := &m.gate
	switch {
	case m.state == proto.StoppingBackup:
		return "the cluster is leaving backup mode"
	case m.state != proto.StartingBackup && m.state != proto.BackingUp:
		return fmt.Sprintf("the cluster is %v: it is no backup of another one", m.state)
	}
	switch o.Kind {
	case following.Hold:
		kept := m.reached(true)
		h := kept
		if o.TID.OK {
			h = o.TID.V
		}
		if h < kept {
			return fmt.Sprintf("this cluster already has all up to %v (%s): a hold cannot be earlier", kept, moment(kept))
		}
		if before, after := m.outOfGaps(h), m.beyondGaps(h); before < h {
			return fmt.Sprintf("the upstream cluster was packed before all was copied, and nothing between %v and %v can be kept: hold %v or later", before, after, after)
		}
		if !m.remembered() {
			m.log(slog.LevelWarn, "no storage of this cluster can remember a hold: it ends with this master")
		}
		m.setHold(proto.Some(h))
	case following.Release:
		if !g.hold.OK {
			return "nothing is held"
		}
		m.setHold(proto.Opt[tid.TID]{})
	case following.RunNow:
		if !m.scheduled() && m.set.Upstream.Window == (following.Window{}) {
			return "there is neither a schedule nor a window: this cluster always copies"
		}
		g.run, g.forced, g.target = true, true, tid.Zero
	}
	m.log(slog.LevelInfo, "backup ordered", "order", o.String())
	return ""
}

// setHold changes up to where transactions are copied. What is being fetched beyond is
// stopped.
func (m *Machine) setHold(h proto.Opt[tid.TID]) {
	g, f := &m.gate, &m.follow
	before := g.hold
	g.hold, g.decided = h, true
	if touched := f.touched; before.OK && m.state == proto.BackingUp && m.upToHold(touched) > before.V {
		// What waits for nothing but the hold has nothing to fetch.
		end := m.upToHold(touched)
		m.touch(end, end, before.V, func(int) bool { return false })
		f.touched = touched
	}
	for r := range f.all() {
		r.asked, r.incomplete = tid.Zero, tid.Zero // what a hold has kept back is no gap
		if h.OK && r.replicating > h.V {
			r.replicating = tid.Zero
		}
	}
	if h.OK {
		g.wanted = min(g.wanted, h.V)
	}
	m.triggerAll()
}

// upToHold returns t, or the hold if that is before: no cell counts as further.
func (m *Machine) upToHold(t tid.TID) tid.TID {
	if h := m.gate.hold; h.OK {
		return min(t, h.V)
	}
	return t
}

func moment(t tid.TID) string { return t.Time().Format("2006-01-02 15:04:05 UTC") }
