package master

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// gateWorld is a followWorld with time: what the upstream cluster commits comes through the
// gate.
type gateWorld struct {
	*followWorld
	now   time.Time
	wake  time.Time
	known map[tid.TID]time.Time // when the master was told
}

func newGateWorld(t *testing.T, seed uint64, u Upstream) *gateWorld {
	w := &gateWorld{followWorld: newFollowWorld(t, seed), known: map[tid.TID]time.Time{}}
	w.now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	u.Cluster = "up"
	w.m.set.Upstream = u
	w.m.now = w.now
	return w
}

// step tells the machine an event, and looks at what it orders.
func (w *gateWorld) step(ev Event) {
	w.t.Helper()
	effects := w.m.Step(w.now, ev)
	w.m.out = w.m.out[:0] // what take finds comes from what follows
	for _, e := range effects {
		switch r, _ := e.Packet.(*proto.Replicate); {
		case e.Op == Wake:
			w.wake = w.now.Add(e.Delay)
		case e.Op == Notify && r != nil:
			w.orders = append(w.orders, followOrder{proto.NodeID(e.Conn), r})
			w.ordered(r)
		}
	}
	w.check()
}

// ordered checks that an order does not go beyond what is wanted by now.
func (w *gateWorld) ordered(r *proto.Replicate) {
	w.t.Helper()
	m, u := w.m, &w.m.set.Upstream
	if h := m.gate.hold; h.OK && r.TID > h.V && r.Upstream != "" {
		w.t.Fatalf("%v is ordered, beyond the hold at %v", r.TID, h.V)
	}
	if r.Upstream != "" && !u.Window.Open(w.now) && !m.gate.forced {
		w.t.Fatalf("an order at %v, outside of %v", w.now, u.Window)
	}
	for _, c := range w.changes {
		if c.tid > r.TID || u.Delay == 0 {
			continue
		}
		at, told := w.known[c.tid]
		byClocks := !c.tid.Time().Add(u.Delay).After(w.now) && !c.tid.Time().Add(u.Delay).After(w.last().Time())
		if !byClocks && (!told || w.now.Sub(at) < u.Delay) {
			w.t.Fatalf("%v is ordered at %v: it contains %v of %v", r.TID, w.now, c.tid, c.tid.Time())
		}
	}
}

// commits has the upstream cluster commit, and the master told of it or not.
func (w *gateWorld) commits(tell bool) {
	c := followChange{tid: max(tid.FromTime(w.now), w.last()+1)}
	c.partitions = []int{c.tid.Partition(w.np)}
	if p := w.rng.IntN(w.np); p != c.partitions[0] {
		c.partitions = append(c.partitions, p)
	}
	w.changes = append(w.changes, c)
	if tell {
		w.known[c.tid] = w.now
		w.m.now = w.now
		w.m.expect(arrival{first: c.tid, last: c.tid, partitions: slices.Sorted(slices.Values(c.partitions))})
		w.step(Event{})
	}
}

// links tells the master the last transaction of the upstream cluster.
func (w *gateWorld) links() {
	w.m.now = w.now
	for _, c := range w.changes {
		if _, told := w.known[c.tid]; !told {
			w.known[c.tid] = w.now
		}
	}
	w.m.expect(arrival{last: w.last(), unknown: true})
	w.step(Event{})
}

// carry lets a storage carry out its first order.
func (w *gateWorld) carry() {
	to := w.orders[w.rng.IntN(len(w.orders))].to
	w.m.now = w.now
	i := slices.IndexFunc(w.orders, func(o followOrder) bool { return o.to == to })
	before := len(w.orders) - 1
	w.carryOut(i)
	for _, o := range w.orders[before:] {
		w.ordered(o.order)
	}
	w.step(Event{})
}

func (w *gateWorld) wait(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(min(end.Sub(w.now), max(time.Millisecond, time.Duration(w.rng.Int64N(int64(d))))))
		if !w.wake.IsZero() && !w.wake.After(w.now) {
			w.wake = time.Time{}
			w.step(Event{Kind: Woken})
		}
	}
}

// settle lets everything happen that waits, of itself, for a day at most.
func (w *gateWorld) settle() {
	w.t.Helper()
	for end := w.now.Add(25 * time.Hour); w.now.Before(end); {
		for n := 0; len(w.orders) > 0; n++ {
			if n > 10000 {
				w.t.Fatalf("no end of orders: %+v", w.orders)
			}
			w.carry()
		}
		if w.wake.IsZero() || w.wake.After(end) {
			return
		}
		w.now = w.wake
		w.wake = time.Time{}
		w.step(Event{Kind: Woken})
	}
}

func (w *gateWorld) order(o following.Order) string {
	w.m.now = w.now
	text := w.m.orderHold(&o)
	for _, e := range w.m.out {
		if r, ok := e.Packet.(*proto.Replicate); ok && e.Op == Notify {
			w.orders = append(w.orders, followOrder{proto.NodeID(e.Conn), r})
			w.ordered(r)
		}
	}
	w.m.out = w.m.out[:0]
	w.step(Event{})
	return text
}

// Whatever is held, delayed or outside of the window, nothing is ordered before it may be, no
// cell counts as further than it is, and at the end all have everything that they may have:
// with a hold, exactly up to there.
func TestGate(t *testing.T) {
	for seed := range uint64(1500) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			var u Upstream
			switch seed % 5 {
			case 1:
				u.Delay = []time.Duration{time.Second, time.Minute, time.Hour}[seed/5%3]
			case 2:
				u.Window = following.Window{From: 13 * time.Hour, To: 14 * time.Hour}
			case 3:
				u.Delay = time.Minute
				u.Window = following.Window{From: 12*time.Hour + 5*time.Minute, To: 11 * time.Hour}
			}
			if seed%5 == 4 {
				var err error
				if u.Schedule, err = following.ParseSchedule("30 * * * *"); err != nil {
					t.Fatal(err)
				}
			}
			w := newGateWorld(t, seed, u)
			for range w.rng.IntN(20) {
				w.commits(false)
				w.wait(time.Minute)
			}
			w.commits(false)
			w.links()
			var held proto.Opt[tid.TID] // what an accepted hold promises
			for range 150 {
				switch n := w.rng.IntN(20); {
				case n < 7:
					w.commits(true)
				case n < 9:
					w.wait(time.Duration(1 + w.rng.Int64N(int64(10*time.Minute))))
				case n == 9:
					var o following.Order
					kept := w.m.reached(true)
					switch w.rng.IntN(3) {
					case 0:
						o.TID = proto.Some(w.changes[w.rng.IntN(len(w.changes))].tid + tid.TID(w.rng.IntN(3)) - 1)
					case 1:
						o.TID = proto.Some(tid.FromTime(w.now.Add(time.Minute)))
					}
					refused := w.order(o) != ""
					if early := o.TID.OK && o.TID.V < kept; refused != early {
						t.Fatalf("hold %v with %v kept: refused %v", o.TID, kept, refused)
					}
					if !refused {
						held = proto.Some(kept)
						if o.TID.OK {
							held = o.TID
						}
					}
				case n == 10 && held.OK:
					w.order(following.Order{Kind: following.Release})
					held = proto.Opt[tid.TID]{}
				case n == 11:
					w.order(following.Order{Kind: following.RunNow})
				case len(w.orders) > 0:
					w.carry()
				}
			}
			w.settle()
			want := w.last()
			if held.OK {
				want = min(want, held.V)
			}
			if kept, readable := w.m.reached(true), w.m.reached(false); kept != want || readable != want {
				t.Errorf("kept %v, readable %v, want %v; held at %v, upstream %v\nqueue %+v\nspans %+v touched %v", kept, readable, want, held, w.last(), w.m.gate.queue, w.m.follow.spans, w.m.follow.touched)
			}
			if held.OK {
				w.order(following.Order{Kind: following.Release})
				w.settle()
			}
			if kept, readable := w.m.reached(true), w.m.reached(false); kept != w.last() || readable != w.last() {
				t.Errorf("in the end: kept %v, readable %v, upstream %v\nqueue %+v\nspans %+v touched %v, wake %v", kept, readable, w.last(), w.m.gate.queue, w.m.follow.spans, w.m.follow.touched, w.wake)
			}
			for p := range w.np {
				if n := len(w.m.follow.spans[p]); n > 0 {
					t.Errorf("%d transactions still wait in partition %d", n, p)
				}
			}
		})
	}
}

// What waits for a delay is bounded; what is not known one by one any more neither counts as
// copied too early, nor is a hold within it overstepped.
func TestGateIsBounded(t *testing.T) {
	w := newGateWorld(t, 3, Upstream{Delay: time.Hour})
	w.commits(false)
	w.links()
	w.settle()
	for range 3 * maxSpans {
		w.commits(true)
		w.now = w.now.Add(200 * time.Millisecond)
	}
	if n := len(w.m.gate.queue); n > maxSpans || n < maxSpans/2 {
		t.Errorf("%d transactions wait", n)
	}
	if n := len(w.m.gate.seen); n > marks+2 {
		t.Errorf("%d moments are remembered", n)
	}
	i := slices.IndexFunc(w.m.gate.queue, func(a arrival) bool { return a.first < a.last && !a.unknown })
	h := w.m.gate.queue[i].first + 1
	if text := w.order(following.Order{TID: proto.Some(h)}); text != "" {
		t.Fatal(text)
	}
	w.settle()
	if kept, readable := w.m.reached(true), w.m.reached(false); kept != h || readable != h {
		t.Errorf("kept %v, readable %v, held at %v", kept, readable, h)
	}
	if text := w.order(following.Order{Kind: following.Release}); text != "" {
		t.Fatal(text)
	}
	w.settle()
	if kept, readable := w.m.reached(true), w.m.reached(false); kept != w.last() || readable != w.last() {
		t.Errorf("kept %v, readable %v, upstream %v", kept, readable, w.last())
	}
}

// A clock that is wrong, here or upstream, makes nothing due early, and keeps nothing for
// longer than the delay.
func TestDelayWithWrongClock(t *testing.T) {
	for _, tt := range []struct {
		name  string
		ahead time.Duration // the clock of the upstream cluster against ours
		due   int           // of the transactions, at once
	}{
		{"equal", 0, 2},
		{"upstream ahead", 48 * time.Hour, 0},
		{"upstream behind", -48 * time.Hour, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newGateWorld(t, 1, Upstream{Delay: time.Hour})
			for _, age := range []time.Duration{2 * time.Hour, 61 * time.Minute, 30 * time.Minute, 0} {
				w.changes = append(w.changes, followChange{tid.FromTime(w.now.Add(tt.ahead - age)), w.all()})
			}
			w.links()
			due := func(after time.Duration, want int) {
				t.Helper()
				w.m.now = w.now.Add(after)
				n := 0
				for _, c := range w.changes {
					if c.tid <= w.m.bound() {
						n++
					}
				}
				if n != want {
					t.Errorf("after %v %d are due, want %d", after, n, want)
				}
			}
			due(0, tt.due)
			due(59*time.Minute, tt.due)
			if tt.ahead <= 0 {
				// The third one is an hour old by the ids of the upstream cluster, too.
				w.m.now = w.now.Add(31 * time.Minute)
				w.changes = append(w.changes, followChange{tid.FromTime(w.m.now.Add(tt.ahead)), w.all()})
				w.m.expect(arrival{first: w.last(), last: w.last(), unknown: true})
				due(31*time.Minute, 3)
				w.changes = w.changes[:4]
			}
			due(time.Hour, 4)
		})
	}
}

// A scheduled run copies what there is when it begins, and no more; what the window cuts off
// goes on when it opens again, and is a warning.
func TestScheduleAndWindow(t *testing.T) {
	var warned int
	schedule, err := following.ParseSchedule("0 13 * * *")
	if err != nil {
		t.Fatal(err)
	}
	w := newGateWorld(t, 5, Upstream{Schedule: schedule, Window: following.Window{From: 13 * time.Hour, To: 14 * time.Hour}})
	w.commits(false)
	w.links()
	until := func(hour, minute int) {
		t.Helper()
		end := time.Date(w.now.Year(), w.now.Month(), w.now.Day(), hour, minute, 0, 0, time.UTC)
		if end.Before(w.now) {
			end = end.AddDate(0, 0, 1)
		}
		for w.now.Before(end) {
			w.now = w.now.Add(min(end.Sub(w.now), time.Minute))
			for _, e := range w.m.Step(w.now, Event{Kind: Woken}) {
				if r, ok := e.Packet.(*proto.Replicate); ok {
					w.orders = append(w.orders, followOrder{proto.NodeID(e.Conn), r})
				}
				if e.Op == Log && strings.Contains(e.Line.Text, "the window closes before") {
					warned++
				}
			}
			w.m.out = w.m.out[:0]
		}
	}
	reached := func(want tid.TID) {
		t.Helper()
		if kept, readable := w.m.reached(true), w.m.reached(false); kept != want || readable != want {
			t.Errorf("at %v: kept %v, readable %v, want %v", w.now, kept, readable, want)
		}
	}
	until(12, 59)
	if len(w.orders) > 0 {
		t.Fatalf("ordered: %+v", w.orders)
	}
	until(13, 1)
	first := w.last()
	w.commits(true)
	second := w.last()
	if len(w.orders) == 0 {
		t.Fatal("the run has not begun")
	}
	until(14, 1)
	if warned != 1 {
		t.Errorf("%d warnings", warned)
	}
	for len(w.orders) > 0 {
		w.carry()
	}
	if w.m.reached(false) < first {
		t.Errorf("what was ordered is not finished: %v", w.m.reached(false))
	}
	until(12, 0)
	if w.m.reached(true) >= second {
		t.Error("the transaction of after the run has been copied")
	}
	until(13, 1) // the next run
	for len(w.orders) > 0 {
		w.carry()
	}
	reached(second)
	w.commits(true)
	until(13, 30)
	if len(w.orders) > 0 {
		t.Error("ordered after the run")
	}
	if text := w.order(following.Order{Kind: following.RunNow}); text != "" {
		t.Fatal(text)
	}
	for len(w.orders) > 0 {
		w.carry()
	}
	reached(w.last())
	if warned != 1 {
		t.Errorf("%d warnings", warned)
	}
}

func TestOrdersOfTheOperator(t *testing.T) {
	w := newGateWorld(t, 3, Upstream{})
	w.commits(false)
	w.links()
	w.settle()
	kept := w.last()
	for _, tt := range []struct {
		order following.Order
		want  string
	}{
		{following.Order{Kind: following.Release}, "nothing is held"},
		{following.Order{Kind: following.RunNow}, "neither a schedule nor a window"},
		{following.Order{TID: proto.Some(kept - 1)}, "already has all up to " + kept.String()},
		{following.Order{}, ""},
		{following.Order{TID: proto.Some(kept)}, ""},
		{following.Order{Kind: following.Release}, ""},
	} {
		if text := w.order(tt.order); !strings.Contains(text, tt.want) || tt.want == "" && text != "" {
			t.Errorf("%v: %q", tt.order, text)
		}
	}
	w.m.stores[1].stored = proto.Some(following.Stored{Gap: [2]tid.TID{kept, kept + 10}})
	for h, want := range map[tid.TID]string{kept + 1: fmt.Sprintf("between %v and %v can be kept: hold %v or later", kept, kept+10, kept+10), kept + 9: "was packed", kept + 10: "", kept: ""} {
		if text := w.order(following.Order{TID: proto.Some(h)}); !strings.Contains(text, want) || want == "" && text != "" {
			t.Errorf("hold %v: %q", h, text)
		}
	}
	w.m.state = proto.Running
	if text := w.order(following.Order{}); !strings.Contains(text, "RUNNING: it is no backup") {
		t.Errorf("%q", text)
	}
}
