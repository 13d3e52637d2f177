package master

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/internal/scenario"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// TestScenarios plays the conversations of testdata/sim: see [scenario.Blocks].
func TestScenarios(t *testing.T) {
	scenario.Run(t, "../../testdata/sim/*.txt", func(t *testing.T, text string) string {
		s := newSim(t)
		return scenario.Blocks(text, func(commands []string) []string {
			s.said = nil
			for _, c := range commands {
				s.command(c)
			}
			return s.said
		})
	})
}

// sim is a machine and the peers of its connections.
type sim struct {
	t       *testing.T
	m       *Machine
	now     time.Time
	last    ConnID
	peers   map[string]*simPeer
	conns   map[ConnID]*simPeer
	dialing []proto.Address
	names   map[tid.TID]string // of transactions
	checks  []int64            // K1, K2...
	said    []string
	lines   []Line // logged last, in one step
	wake    time.Time
	quiet   bool
	ended   bool
	err     error
}

// simPeer is a node as the master sees it. With auto, it behaves like a storage
// without data.
type simPeer struct {
	name      string
	conn      ConnID
	closed    bool
	nextID    uint32
	asked     []simAsked
	timestamp float64
	ptid      proto.Opt[uint64]
	storage   bool
	auto      *simStore
}

type simAsked struct {
	req proto.Request
	tag any
}

// simStore is what a storage of the simulation knows.
type simStore struct {
	ptid     proto.Opt[uint64]
	replicas int
	rows     [][]proto.Cell
	truncate proto.Opt[tid.TID]
	lastTID  proto.Opt[tid.TID]
	voted    map[tid.TID]proto.Opt[tid.TID]
}

func newSim(t *testing.T) *sim {
	return &sim{t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), peers: map[string]*simPeer{},
		conns: map[ConnID]*simPeer{}, names: map[tid.TID]string{}}
}

func simAddr(port int) proto.Address { return proto.Address{Host: "10.0.0.1", Port: uint16(port)} }

func (s *sim) command(c string) {
	words := splitWords(c)
	opts := map[string]string{}
	for _, w := range words[1:] {
		k, v, _ := strings.Cut(w, "=")
		opts[k] = v
	}
	number := func(k string, def int) int {
		if v, ok := opts[k]; ok {
			n, err := strconv.Atoi(v)
			if err != nil {
				s.t.Fatalf("%s: %v", c, err)
			}
			return n
		}
		return def
	}
	switch words[0] {
	case "master":
		set := Settings{Cluster: "test", Addr: simAddr(number("port", 1)), Partitions: number("partitions", 2),
			Replicas: number("replicas", 0), Autostart: number("autostart", 0)}
		for _, p := range strings.Split(opts["masters"], ",") {
			if n, err := strconv.Atoi(p); err == nil {
				set.Masters = append(set.Masters, simAddr(n))
			}
		}
		s.m = NewMachine(s.now, set)
		s.step(Event{})
		return
	case "running": // running [replicas=1] s1 s2 c1: a new cluster with these nodes
		s.quiet = true
		s.m = NewMachine(s.now, Settings{Cluster: "test", Addr: simAddr(1), Partitions: number("partitions", 2),
			Replicas: number("replicas", 0), Autostart: strings.Count(c, " s"), Upstream: s.upstream(opts)})
		if n := number("other", 0); n > 0 { // another master, which is away
			s.m.learn(simAddr(n))
		}
		reports := func(w string) string { // reports=s1,a1: these understand reports of checks
			said := ""
			for _, key := range []string{"reports", "imports", "follows"} { // imports=s1,a1: messages about imports, and follows about backups
				if slices.Contains(strings.Split(opts[key], ","), w) {
					said += " " + key
				}
			}
			return said
		}
		for _, w := range words[1:] {
			if w[0] == 's' {
				s.command(w + " storage" + reports(w))
				s.peers[w].auto = &simStore{}
				s.settle()
			}
		}
		for _, w := range words[1:] {
			switch w[0] {
			case 's':
				s.peers[w].auto = nil
			case 'c':
				s.command(w + " client")
			case 'a':
				s.command(w + " admin" + reports(w))
			}
		}
		s.quiet = false
		if s.m.state != proto.Running {
			s.t.Fatalf("%s: the cluster is %v", c, s.m.state)
		}
		return
	case "wait":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			s.t.Fatal(err)
		}
		s.now = s.now.Add(d)
		if s.m.Impatient() {
			s.step(Event{})
		}
		if !s.wake.IsZero() && !s.wake.After(s.now) {
			s.wake = time.Time{}
			s.step(Event{Kind: Woken})
		}
		return
	case "stop":
		s.step(Event{Kind: StopAsked})
		return
	case "unreachable":
		n, _ := strconv.Atoi(words[1])
		s.undial(simAddr(n))
		s.step(Event{Kind: ConnectFailed, Addr: simAddr(n)})
		return
	case "show":
		s.show()
		return
	case "log": // the last lines
		for _, l := range s.lines {
			s.said = append(s.said, strings.TrimSpace(fmt.Sprintln(append([]any{l.Level, l.Text}, l.Attrs...)...)))
		}
		return
	case "value": // value t1 T1: these ids as numbers
		for _, w := range words[1:] {
			id := s.parseTID(w)
			s.said = append(s.said, fmt.Sprintf("%s is %v, partition %d", w, id, id.Partition(s.m.table.NP())))
		}
		return
	}
	p := s.peers[words[0]]
	if len(words) < 2 {
		s.t.Fatalf("command %q", c)
	}
	switch words[1] {
	case "storage", "client", "admin", "master":
		s.identify(words[0], words[1], opts)
	case "reached": // m2 reached port=2: a connection of the master
		a := simAddr(number("port", 2))
		s.undial(a)
		p = s.connect(words[0])
		s.step(Event{Kind: Connected, Conn: p.conn, Addr: a})
	case "lost":
		p.closed = true
		delete(s.conns, p.conn)
		s.step(Event{Kind: Closed, Conn: p.conn})
	case "silent": // s1 silent [mute]: for so long that it may be given up
		s.step(Event{Kind: Silent, Conn: p.conn, Silence: 8 * time.Second, Beats: len(words) < 3})
	case "alive", "dead": // s1 dead [mute]: the outcome of a probe
		s.step(Event{Kind: Probed, Conn: p.conn, Alive: words[1] == "alive", Beats: len(words) < 3})
	case "auto":
		p.auto = &simStore{}
		s.settle()
	case "manual":
		p.auto = nil
	case "reports": // s1 reports K1 partition=0 state=compared total=3 nodes=S2
		n, _ := strconv.Atoi(words[2][1:])
		s.receive(p, s.parseReport(s.checks[n-1], opts).Packet())
	case "import": // s1 import reported node=S1 state=failed note=why; a1 import ordered node=S1 number=7 order=pause
		s.receive(p, s.parseImport(words[2], opts).Packet())
	case "backup": // a1 backup hold 0x100: an operator orders it
		s.receive(p, s.parseBackupOrder(words[2:]).Packet(int64(p.nextID)))
	case "records": // s1 records 0x300 gap=0x100-0x200: it has recorded that all its readable cells follow up to there, and what is not all there
		stored := following.Stored{TID: s.parseTID(words[2])}
		if first, end, ok := strings.Cut(opts["gap"], "-"); ok {
			stored.Gap = [2]tid.TID{s.parseTID(first), s.parseTID(end)}
		}
		s.receive(p, stored.Packet())
	case "sends":
		s.receive(p, s.parsePacket(words[2], words[3:]))
	case "answers":
		s.answer(p, s.parsePacket(words[2], words[3:]))
	default:
		s.t.Fatalf("command %q", c)
	}
}

func (s *sim) undial(a proto.Address) {
	i := slices.Index(s.dialing, a)
	if i < 0 {
		s.t.Fatalf("the master does not connect to %v", a)
	}
	s.dialing = slices.Delete(s.dialing, i, i+1)
}

func (s *sim) connect(name string) *simPeer {
	s.last++
	p := &simPeer{name: name, conn: s.last}
	s.peers[name], s.conns[s.last] = p, p
	return p
}

func (s *sim) identify(name, typ string, opts map[string]string) {
	p := s.connect(name)
	s.step(Event{Kind: Accepted, Conn: p.conn})
	r := &proto.RequestIdentification{Cluster: "test", Extra: map[string]proto.Value{}}
	if v, ok := opts["cluster"]; ok {
		r.Cluster = v
	}
	if v, ok := opts["nid"]; ok {
		r.ID = parseNodeID(s.t, v)
	}
	port := 0
	switch typ {
	case "storage":
		r.Type = proto.Storage
		p.storage = true
		n, _ := strconv.Atoi(name[1:])
		port = 100 + n
		r.Extra["new_nid"] = []proto.Value{}
	case "client":
		r.Type = proto.Client
	case "admin":
		r.Type = proto.Admin
		port = 99
		r.Extra["backup"] = []proto.Value{}
	case "master":
		r.Type = proto.Master
		n, _ := strconv.Atoi(name[1:])
		port = n
	}
	if v, ok := opts["port"]; ok {
		port, _ = strconv.Atoi(v)
	}
	if port != 0 {
		r.Addr = simAddr(port)
	}
	for key, v := range opts {
		switch key {
		case "started":
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			r.IDTimestamp = proto.Some(f)
		case "confirmed": // the mark of a storage, of which last=0:111,1:90 are the last transactions
			mark, err := strconv.Atoi(v)
			if err != nil {
				s.t.Fatal(err)
			}
			r.Extra["confirmed_ptid"], r.Extra["last_tids"] = int64(mark), s.parseLast(opts["last"])
		case "reports":
			r.Extra[check.Extension] = int64(1)
		case "follows": // perhaps with the hold that it remembers
			r.Extra[following.Extension] = int64(1)
			if v != "" {
				r.Extra[following.HoldKey] = s.parseTID(v).Bytes()
			}
		case "imports":
			r.Extra[importing.Extension] = int64(1)
		case "readonly":
			r.Extra["read_only"] = true
		case "backup":
			if typ == "client" {
				r.Extra["backup"] = []byte(v)
			} else {
				r.Extra["backup"] = []proto.Value{[]byte(v)}
			}
		case "new_nid":
			var list []proto.Value
			for _, w := range strings.Split(v, ",") {
				n, _ := strconv.Atoi(w)
				list = append(list, int64(n))
			}
			r.Extra["new_nid"] = list
		}
	}
	s.receive(p, r)
}

// parseLast reads PARTITION:TID,...
func (s *sim) parseLast(text string) []proto.Value {
	list := []proto.Value{}
	for _, w := range strings.Split(text, ",") {
		p, t, ok := strings.Cut(w, ":")
		n, err := strconv.Atoi(p)
		if !ok || err != nil {
			continue
		}
		last := s.parseTID(t).Bytes()
		list = append(list, []proto.Value{int64(n), last, last})
	}
	return list
}

func (s *sim) receive(p *simPeer, pkt proto.Packet) {
	if p == nil || p.closed {
		s.t.Fatalf("no such connection to send %T", pkt)
	}
	p.nextID++
	s.step(Event{Kind: Received, Conn: p.conn, ID: p.nextID, Packet: pkt})
}

// answer answers the oldest question that the packet is an answer to. An Error
// answers the oldest of all.
func (s *sim) answer(p *simPeer, pkt proto.Packet) {
	i := slices.IndexFunc(p.asked, func(a simAsked) bool {
		_, isError := pkt.(*proto.Error)
		if lock, ok := a.req.(*proto.AskLockInformation); ok {
			if locked, ok := pkt.(*proto.AnswerInformationLocked); ok {
				return lock.TTID == locked.TTID
			}
		}
		return isError || a.req.AnswerCode() == pkt.Code()
	})
	if i < 0 {
		s.t.Fatalf("%s was not asked for a %T", p.name, pkt)
	}
	a := p.asked[i]
	p.asked = slices.Delete(p.asked, i, i+1)
	s.step(Event{Kind: Answered, Conn: p.conn, Packet: pkt, Request: a.req, Tag: a.tag})
}

// step gives the machine an event, checks and records what it does, and lets
// automatic storages react.
func (s *sim) step(ev Event) {
	s.now = s.now.Add(time.Millisecond)
	effects := slices.Clone(s.m.Step(s.now, ev))
	if slices.ContainsFunc(effects, func(e Effect) bool { return e.Op == Log }) {
		s.lines = nil
	}
	for _, e := range effects {
		s.effect(e)
	}
}

func (s *sim) say(format string, args ...any) {
	if !s.quiet {
		s.said = append(s.said, fmt.Sprintf(format, args...))
	}
}

func (s *sim) effect(e Effect) {
	if s.ended {
		s.t.Errorf("effect %v after the end", e.Op)
	}
	p := s.conns[e.Conn]
	switch e.Op {
	case Notify, Ask, Answer:
		if p == nil || p.closed {
			s.t.Fatalf("%T sent on connection %d, which is closed", e.Packet, e.Conn)
		}
		s.check(p, e.Packet)
		s.learnTIDs(e.Packet)
		if p.auto != nil {
			if e.Op == Ask {
				p.asked = append(p.asked, simAsked{e.Packet.(proto.Request), e.Tag})
			} else {
				p.auto.told(e.Packet)
				if _, ok := e.Packet.(*proto.StartOperation); ok {
					p.asked = append(p.asked, simAsked{nil, nil})
				}
			}
		} else if e.Op == Ask {
			p.asked = append(p.asked, simAsked{e.Packet.(proto.Request), e.Tag})
		}
		s.say("→ %s %s", p.name, s.format(e.Packet))
	case Abort, Close, GiveUp:
		if p == nil {
			s.t.Fatalf("connection %d ended twice", e.Conn)
		}
		p.closed = true
		p.asked = nil
		delete(s.conns, e.Conn)
		s.say("→ %s (%s)", p.name, map[Op]string{Abort: "aborted", Close: "closed", GiveUp: "given up"}[e.Op])
	case Probe:
		s.say("→ %s (probed)", p.name)
	case Wake:
		s.wake = s.now.Add(e.Delay)
	case Dial:
		s.dialing = append(s.dialing, e.Addr)
		s.say("connect to %d", e.Addr.Port)
	case StopListening:
		s.say("stop listening")
	case Log:
		s.lines = append(s.lines, *e.Line)
	case Exit:
		s.ended, s.err = true, e.Err
		if e.Err != nil {
			s.say("exit: %v", e.Err)
		} else {
			s.say("exit")
		}
	}
}

// check verifies the promises of the protocol that hold for every packet.
func (s *sim) check(p *simPeer, pkt proto.Packet) {
	switch pkt := pkt.(type) {
	case *proto.NotifyNodeInformation:
		if pkt.Timestamp <= p.timestamp {
			s.t.Errorf("%s: node information %v after %v", p.name, pkt.Timestamp, p.timestamp)
		}
		p.timestamp = pkt.Timestamp
	case *proto.SendPartitionTable:
		p.ptid = pkt.PTID
	case *proto.NotifyPartitionChanges:
		if p.ptid.OK && (p.storage && pkt.PTID != p.ptid.V+1 || pkt.PTID <= p.ptid.V) {
			s.t.Errorf("%s: table %d after %d", p.name, pkt.PTID, p.ptid.V)
		}
		p.ptid = proto.Some(pkt.PTID)
	}
}

// upstream reads upstream=port, the master of the cluster to be followed, delay and window.
func (s *sim) upstream(opts map[string]string) Upstream {
	n, err := strconv.Atoi(opts["upstream"])
	if err != nil {
		return Upstream{}
	}
	u := Upstream{Cluster: "up", Masters: []proto.Address{simAddr(n)}}
	if d := opts["delay"]; d != "" {
		if u.Delay, err = following.ParseDelay(d); err != nil {
			s.t.Fatal(err)
		}
	}
	if w := opts["window"]; w != "" {
		if u.Window, err = following.ParseWindow(w); err != nil {
			s.t.Fatal(err)
		}
	}
	return u
}

func (s *sim) parseBackupOrder(words []string) *following.Order {
	o := &following.Order{}
	for o.Kind.String() != words[0] {
		o.Kind++
	}
	if len(words) > 1 {
		o.TID = proto.Some(s.parseTID(words[1]))
	}
	return o
}

// settle lets the automatic storages answer until nothing is left to answer.
func (s *sim) settle() {
	for again := true; again; {
		again = false
		for _, name := range sortedKeys(s.peers) {
			p := s.peers[name]
			if p.auto == nil || p.closed || len(p.asked) == 0 {
				continue
			}
			again = true
			a := p.asked[0]
			p.asked = p.asked[1:]
			if a.req == nil {
				s.receive(p, &proto.NotifyReady{})
				continue
			}
			s.step(Event{Kind: Answered, Conn: p.conn, Packet: p.auto.answer(s.t, a.req), Request: a.req, Tag: a.tag})
		}
	}
}

func (st *simStore) told(pkt proto.Packet) {
	switch pkt := pkt.(type) {
	case *proto.SendPartitionTable:
		st.ptid, st.replicas, st.rows = pkt.PTID, pkt.Replicas, pkt.Rows
	case *proto.Truncate:
		st.truncate = proto.Some(pkt.TID)
	}
}

func (st *simStore) answer(t *testing.T, req proto.Request) proto.Packet {
	switch req := req.(type) {
	case *proto.AskRecovery:
		return &proto.AnswerRecovery{PTID: st.ptid, TruncateTID: st.truncate}
	case *proto.AskPartitionTable:
		return &proto.AnswerPartitionTable{PTID: st.ptid, Replicas: st.replicas, Rows: st.rows}
	case *proto.AskLockedTransactions:
		return &proto.AnswerLockedTransactions{TIDs: st.voted}
	case *proto.AskFinalTID:
		return &proto.AnswerFinalTID{}
	case *proto.AskLastIDs:
		st.truncate = proto.Opt[tid.TID]{}
		return &proto.AnswerLastIDs{LastTID: st.lastTID, FirstTID: tid.Max}
	case *proto.AskPackOrders:
		return &proto.AnswerPackOrders{}
	case *proto.AskLockInformation:
		return &proto.AnswerInformationLocked{TTID: req.TTID}
	}
	t.Fatalf("a storage is asked %T", req)
	return nil
}

func (s *sim) show() {
	s.said = append(s.said, fmt.Sprintf("%v, table %s: %s", s.m.state, opt(s.m.table.PTID()), s.rows(s.m.table.Rows())))
}
