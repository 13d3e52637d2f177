package master

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
)

// TestElectionsEnd lets masters, of which some know each other only through another
// one, start at various times, die and come back, with a network that is cut between
// some of them and messages in any order that the links allow. Once the network is
// whole, there is soon one primary, and the others are its secondaries.
func TestElectionsEnd(t *testing.T) {
	for seed := range uint64(2400) {
		if *seedFlag != 0 {
			seed = *seedFlag
		}
		w := &electionWorld{r: rand.New(rand.NewPCG(seed, 1)), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
		w.run()
		steps := 0
		for ; steps < 4000 && !w.settled(); steps++ {
			w.act()
		}
		for range 200 {
			w.act() // what was still under way changes nothing
		}
		if !w.settled() {
			t.Fatalf("no election after %d steps: run again with -seed %d\n%s", steps, seed, w)
		}
		if *seedFlag != 0 {
			return
		}
	}
}

// A master says that it is primary once it knows that no other one is.
func TestReadyIsSaidOfTheRole(t *testing.T) {
	w := &electionWorld{r: rand.New(rand.NewPCG(1, 1)), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), all: true,
		ends: map[ConnID]*electionEnd{}, cut: map[[2]*electionMaster]bool{}}
	first, second := &electionMaster{addr: simAddr(1)}, &electionMaster{addr: simAddr(2)}
	w.masters = []*electionMaster{first, second}
	says := func(n *electionMaster, when string, want ...any) {
		t.Helper()
		if !slices.Equal(n.roles, want) {
			t.Errorf("%s: ready as %v, want %v", when, n.roles, want)
		}
		n.roles = nil
	}
	acts := func(done func() bool) {
		t.Helper()
		for range 1000 {
			if done() {
				return
			}
			w.act()
		}
		t.Fatal("it does not come to an end")
	}
	w.start(first)
	says(first, "before the other one was asked")
	w.act()
	says(first, "the other one does not run", "primary")
	w.start(second)
	acts(w.settled)
	says(second, "one is primary already", "secondary")
	says(first, "another one stands by")
	w.cut[[2]*electionMaster{first, second}], w.cut[[2]*electionMaster{second, first}] = true, true
	w.disconnect(func(e *electionEnd) bool { return e.of == first })
	acts(func() bool { return len(second.roles) > 0 })
	says(second, "the primary is lost", "primary")
	// Both at once.
	clear(w.cut)
	first.roles = nil
	w.start(first)
	w.start(second)
	acts(w.settled)
	if roles := slices.Concat(first.roles, second.roles); len(roles) != 2 || roles[0] == roles[1] {
		t.Errorf("started together: ready as %v and %v", first.roles, second.roles)
	}
}

// electionWorld is several masters with the messages under way between them.
type electionWorld struct {
	r       *rand.Rand
	now     time.Time
	masters []*electionMaster
	ends    map[ConnID]*electionEnd // open
	last    ConnID
	all     bool                        // each knows all others from the start
	cut     map[[2]*electionMaster]bool // in both orders
}

type electionMaster struct {
	m     *Machine
	addr  proto.Address
	skew  time.Duration // of its clock
	dials []proto.Address
	roles []any // that it says it is ready for
}

// electionEnd is one end of a connection.
type electionEnd struct {
	of     *electionMaster
	id     ConnID
	other  *electionEnd
	in     []Event // under way to it
	nextID uint32
	asked  map[uint32]Effect
}

func (w *electionWorld) run() {
	w.ends, w.cut = map[ConnID]*electionEnd{}, map[[2]*electionMaster]bool{}
	w.all = w.r.IntN(2) == 0
	for i := range 2 + w.r.IntN(4) {
		w.masters = append(w.masters, &electionMaster{addr: simAddr(i + 1), skew: time.Duration(w.r.IntN(5)-2) * time.Second})
	}
	for _, n := range w.masters {
		w.start(n)
		for range w.r.IntN(10) {
			w.act()
		}
	}
	for range w.r.IntN(300) {
		n, o := w.masters[w.r.IntN(len(w.masters))], w.masters[w.r.IntN(len(w.masters))]
		switch w.r.IntN(40) {
		case 0, 1:
			if n != o {
				w.cut[[2]*electionMaster{n, o}] = !w.cut[[2]*electionMaster{n, o}]
				w.cut[[2]*electionMaster{o, n}] = w.cut[[2]*electionMaster{n, o}]
				w.disconnect(func(e *electionEnd) bool { return e.of == n && e.other.of == o })
			}
		case 2:
			w.disconnect(func(e *electionEnd) bool { return e.of == n })
			w.start(n)
		default:
			w.act()
		}
	}
	clear(w.cut)
}

func (w *electionWorld) start(n *electionMaster) {
	for id, e := range w.ends { // of its former life
		if e.of == n {
			delete(w.ends, id)
		}
	}
	n.dials = nil
	known := []proto.Address{n.addr, w.masters[0].addr}
	if w.all {
		for _, o := range w.masters {
			known = append(known, o.addr)
		}
	}
	n.m = NewMachine(w.now.Add(n.skew), Settings{Cluster: "test", Addr: n.addr, Masters: known, Partitions: 1})
	w.step(n, Event{})
}

// disconnect breaks connections: some of what is under way arrives.
func (w *electionWorld) disconnect(which func(*electionEnd) bool) {
	for _, e := range w.open() {
		if which(e) {
			for _, e := range []*electionEnd{e, e.other} {
				e.in = append(e.in[:w.r.IntN(len(e.in)+1)], Event{Kind: Closed, Conn: e.id})
			}
		}
	}
}

// open returns the open ends, in a fixed order.
func (w *electionWorld) open() []*electionEnd {
	var list []*electionEnd
	for id := range w.last {
		if e := w.ends[id+1]; e != nil {
			list = append(list, e)
		}
	}
	return list
}

// act lets one attempt to connect end, or one message arrive.
func (w *electionWorld) act() {
	var jobs []func()
	for _, n := range w.masters {
		for _, a := range n.dials {
			jobs = append(jobs, func() { w.dial(n, a) })
		}
	}
	for _, e := range w.open() {
		if len(e.in) > 0 {
			jobs = append(jobs, func() {
				ev := e.in[0]
				if e.in = e.in[1:]; ev.Kind == Closed {
					delete(w.ends, e.id)
				}
				w.step(e.of, ev)
			})
		}
	}
	if len(jobs) > 0 {
		jobs[w.r.IntN(len(jobs))]()
	}
}

func (w *electionWorld) dial(n *electionMaster, a proto.Address) {
	n.dials = slices.DeleteFunc(n.dials, func(o proto.Address) bool { return o == a })
	w.now = w.now.Add(time.Second)
	i := slices.IndexFunc(w.masters, func(o *electionMaster) bool { return o.addr == a })
	if w.masters[i].m == nil || w.cut[[2]*electionMaster{n, w.masters[i]}] {
		w.step(n, Event{Kind: ConnectFailed, Addr: a})
		return
	}
	near, far := &electionEnd{of: n, id: w.last + 1}, &electionEnd{of: w.masters[i], id: w.last + 2}
	w.last += 2
	for _, e := range []*electionEnd{near, far} {
		w.ends[e.id], e.asked = e, map[uint32]Effect{}
	}
	near.other, far.other = far, near
	far.in = []Event{{Kind: Accepted, Conn: far.id}}
	w.step(n, Event{Kind: Connected, Conn: near.id, Addr: a})
}

func (w *electionWorld) step(n *electionMaster, ev Event) {
	w.now = w.now.Add(time.Millisecond)
	for _, eff := range slices.Clone(n.m.Step(w.now.Add(n.skew), ev)) {
		e := w.ends[eff.Conn]
		if eff.Op == Dial {
			n.dials = append(n.dials, eff.Addr)
		}
		if eff.Op == Log && eff.Line.Text == "ready" {
			n.roles = append(n.roles, eff.Line.Attrs[1])
		}
		if e == nil {
			continue
		}
		out := Event{Conn: e.other.id, Packet: eff.Packet}
		switch eff.Op {
		case Notify, Ask:
			e.nextID++
			e.asked[e.nextID] = eff
			out.Kind, out.ID = Received, e.nextID
		case Answer:
			out.Kind, out.Tag = Answered, e.other.asked[eff.ID].Tag
			out.Request, _ = e.other.asked[eff.ID].Packet.(proto.Request)
		case Abort, Close:
			delete(w.ends, e.id)
			out = Event{Kind: Closed, Conn: e.other.id}
		default:
			continue
		}
		e.other.in = append(e.other.in, out)
	}
}

func (w *electionWorld) settled() bool {
	var primary *electionMaster
	for _, n := range w.masters {
		if n.m.second == nil {
			if primary != nil {
				return false
			}
			primary = n
		}
	}
	return primary != nil && !slices.ContainsFunc(w.masters, func(n *electionMaster) bool {
		s := n.m.second
		return s != nil && (s.target != primary.addr || !s.identified || s.link == nil)
	})
}

func (w *electionWorld) String() string {
	var b strings.Builder
	for _, n := range w.masters {
		n.m.dump(&b)
		fmt.Fprintf(&b, "  connecting to %v\n", n.dials)
	}
	return b.String()
}
