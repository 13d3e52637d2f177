package master

import (
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// termsWorld is a gateWorld of two storages that understand terms, with an admin. It keeps what
// they were told last.
type termsWorld struct {
	*gateWorld
	terms  map[ConnID]following.Terms
	report following.Report
}

func newTermsWorld(t *testing.T, u Upstream) *termsWorld {
	for seed := uint64(0); ; seed++ {
		w := &termsWorld{newGateWorld(t, seed, u), map[ConnID]following.Terms{}, following.Report{}}
		if w.np < 3 || len(w.m.stores) != 2 {
			continue
		}
		for _, p := range w.m.stores {
			p.follows, p.stored = true, proto.Some(following.Stored{})
		}
		n := w.m.nodes.Put(proto.Node{Type: proto.Admin, ID: proto.NodeID(-0x30 << 24), State: proto.NodeRunning})
		a := &peer{conn: 99, role: member, node: n, follows: true}
		w.m.peers[a.conn], w.m.links[n] = a, a
		w.m.members = append(w.m.members, a)
		return w
	}
}

// at has the machine woken after a time, and takes what it says.
func (w *termsWorld) at(d time.Duration) {
	w.t.Helper()
	w.now = w.now.Add(d)
	w.listen(w.m.Step(w.now, Event{Kind: Woken}))
	w.m.out = w.m.out[:0]
}

func (w *termsWorld) listen(effects []Effect) {
	w.t.Helper()
	for _, e := range effects {
		info, ok := e.Packet.(*proto.NotifyMonitorInformation)
		if r, replicate := e.Packet.(*proto.Replicate); replicate {
			w.orders = append(w.orders, followOrder{proto.NodeID(e.Conn), r})
		}
		if !ok {
			continue
		}
		msg, ok, err := following.Parse(info)
		switch {
		case !ok || err != nil:
			w.t.Fatal(err)
		case msg.Topic == following.Agreed:
			w.terms[e.Conn] = msg.Terms
		case msg.Topic == following.Reported && e.Conn == 99:
			w.report = msg.Report
		}
	}
}

// The rate is for all storages that fetch, together.
func TestRateIsDivided(t *testing.T) {
	w := newTermsWorld(t, Upstream{Rate: 1000})
	w.changes = append(w.changes, followChange{tid.FromTime(w.now), w.all()})
	w.m.now = w.now
	w.m.expect(arrival{last: w.last(), unknown: true})
	w.at(0)
	w.at(time.Second)
	busy := map[proto.NodeID]bool{}
	for _, id := range w.m.follow.primary {
		busy[id] = true
	}
	if len(busy) != 2 {
		t.Fatalf("%d storages fetch", len(busy))
	}
	for c := range ConnID(2) {
		if r := w.terms[c+1].Rate; r != 500 {
			t.Errorf("%v may fetch %d bytes per second", c+1, r)
		}
	}
	// One of them is done.
	for n, id := range w.m.follow.primary {
		if id == 1 {
			w.m.follow.cell(n, id).backup = w.last()
		}
	}
	w.at(time.Second)
	if r := w.terms[2].Rate; r != 1000 {
		t.Errorf("the only storage that fetches may fetch %d bytes per second", r)
	}
}

// Storages pause outside of the window, and are told of a hold; the report says so, and what is
// shut out is not due.
func TestTermsAndReports(t *testing.T) {
	w := newTermsWorld(t, Upstream{Window: following.Window{From: 13 * time.Hour, To: 14 * time.Hour}})
	w.changes = append(w.changes, followChange{tid.FromTime(w.now), w.all()})
	w.m.up.known = true
	w.m.now = w.now
	w.m.expect(arrival{last: w.last(), unknown: true})
	w.m.gate.reports.changed = true
	w.at(time.Second)
	if !w.terms[1].Paused || !w.terms[2].Paused {
		t.Errorf("outside of the window: %+v", w.terms)
	}
	opens := time.Date(2026, 3, 1, 13, 0, 0, 0, time.UTC)
	if r := w.report; !r.Closed || !r.Opens.Equal(opens) || r.Due != 0 || r.Upstream != w.last() || r.Bound != 0 {
		t.Errorf("outside of the window: %+v", r)
	}
	w.at(opens.Sub(w.now))
	if w.terms[1].Paused || w.terms[2].Paused {
		t.Errorf("within the window: %+v", w.terms)
	}
	w.at(time.Second)
	w.at(10 * time.Minute)
	if r := w.report; r.Closed || r.Due < 10*time.Minute || r.Due > 11*time.Minute || r.Bound != w.last() {
		t.Errorf("within the window: %+v", r)
	}
	w.at(time.Hour)
	if r := w.report; !r.Closed || r.Due < 65*time.Minute || r.Bound != w.last() {
		t.Errorf("closed too early: %+v", r)
	}
	for len(w.orders) > 0 {
		w.m.now = w.now
		w.carryOut(0)
	}
	w.m.follow.moved = true
	w.m.gate.reports.changed = true
	w.at(time.Minute)
	if r := w.report; r.Due != 0 || r.Readable != w.last() || strings.Contains(r.DueText(), "ε") {
		t.Errorf("in the end: %+v", r)
	}
	w.m.now = w.now
	w.m.backupOrdered(w.m.peers[99], &following.Message{Topic: following.Ordered, Number: 7})
	w.listen(w.m.out)
	for c, terms := range w.terms {
		if terms.Hold != proto.Some(w.last()) {
			t.Errorf("%v: %+v", c, terms)
		}
	}
	if r := w.report; r.Hold != proto.Some(w.last()) {
		t.Errorf("%+v", r)
	}
}

// A new master takes the hold from storages that have readable cells; one that has none may not
// know that it was released.
func TestHoldIsRestored(t *testing.T) {
	for _, tt := range []struct {
		holds [2]proto.Opt[tid.TID]
		out   bool // the second storage has no readable cell
		want  proto.Opt[tid.TID]
	}{
		{},
		{[2]proto.Opt[tid.TID]{proto.Some[tid.TID](5), proto.Some[tid.TID](5)}, false, proto.Some[tid.TID](5)},
		{[2]proto.Opt[tid.TID]{{}, proto.Some[tid.TID](5)}, false, proto.Some[tid.TID](5)},
		{[2]proto.Opt[tid.TID]{proto.Some[tid.TID](7), proto.Some[tid.TID](0)}, false, proto.Some[tid.TID](0)},
		{[2]proto.Opt[tid.TID]{{}, proto.Some[tid.TID](5)}, true, proto.Opt[tid.TID]{}},
	} {
		w := newTermsWorld(t, Upstream{})
		for i, h := range tt.holds {
			w.m.stores[proto.NodeID(1+i)].hold = h
		}
		if tt.out {
			rows := make([][]proto.Cell, w.np)
			for p := range rows {
				rows[p] = []proto.Cell{{ID: 1, State: proto.UpToDate}, {ID: 2, State: proto.OutOfDate}}
			}
			w.m.table.Load(proto.Some(uint64(2)), 1, rows)
		}
		w.m.gate = gate{}
		w.m.restoreHold()
		if got := w.m.gate.hold; got != tt.want {
			t.Errorf("%+v: %+v", tt, got)
		}
		// What this master was told counts more.
		w.m.gate.hold = proto.Opt[tid.TID]{}
		w.m.restoreHold()
		if got := w.m.gate.hold; got.OK {
			t.Errorf("%+v: %+v, although released", tt, got)
		}
	}
}
