package replica

import (
	"cmp"
	"crypto/sha1"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/internal/scenario"
	"github.com/neozodb/neo/cluster/nodetab"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

const np = 2

// conversation runs the commands of a file for the storage S1. Transactions, objects and
// partitions are small numbers, of which there are two; records are object@transaction,
// deletions object!transaction. The rows of the database are kept here, and what the
// machine asks about them is answered at once, as the shell does. Chunks have 3 items.
type conversation struct {
	t       *testing.T
	m       *Machine
	nodes   nodetab.Table
	table   parttab.Table
	now     time.Time
	wake    time.Time
	trans   map[tid.TID]bool
	records map[backend.Key]bool // whether they delete the object
	packed  map[int]tid.TID
	missing []tid.TID // orders that are not here
	damaged map[backend.Key]bool
	locked  tid.TID // greatest transaction that is being committed
	ready   map[string]bool
	ask     Effect            // the last one to a source
	asks    map[string]Effect // the last one to each source
	reminds []Effect
	masters []Effect
	events  []Event
	out     []string
	lines   []Line // of the log
}

func newConversation(t *testing.T) *conversation {
	s := &conversation{t: t, now: time.Unix(1000, 0), trans: map[tid.TID]bool{}, records: map[backend.Key]bool{}, packed: map[int]tid.TID{},
		damaged: map[backend.Key]bool{}, ready: map[string]bool{}, asks: map[string]Effect{}}
	for i := 1; i <= 4; i++ {
		s.nodes.Put(proto.Node{Type: proto.Storage, ID: proto.Storage.ID(i), State: proto.NodeRunning, Addr: addr(i)})
	}
	s.m = New(Settings{ID: proto.Storage.ID(1), Nodes: &s.nodes, Table: &s.table, Count: 3, Pick: func(int) int { return 0 }})
	return s
}

func addr(i int) proto.Address { return proto.Address{Host: "127.0.0.1", Port: uint16(i)} }

func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		panic(err) // a mistake in the scenario
	}
	return n
}

func nodeID(s string) proto.NodeID { return proto.Storage.ID(int(number(strings.TrimPrefix(s, "S")))) }

func state(letter string) proto.CellState {
	for _, st := range []proto.CellState{proto.OutOfDate, proto.UpToDate, proto.Feeding, proto.Corrupted} {
		if letter == string(parttab.Letter(st)) {
			return st
		}
	}
	return proto.Discarded
}

// data returns what a record holds.
func data(text string) proto.ObjectData {
	return proto.ObjectData{Data: []byte(text), Checksum: sha1.Sum([]byte(text))}
}

// record reads object@transaction or object!transaction.
func record(s string) (k backend.Key, deletion, ok bool) {
	i := strings.IndexAny(s, "@!")
	if i < 0 {
		return k, false, false
	}
	return backend.Key{OID: tid.OID(number(s[:i])), TID: tid.TID(number(s[i+1:]))}, s[i] == '!', true
}

func (s *conversation) run(line string) {
	f := strings.Fields(line)
	opts := map[string]string{}
	var args []string
	for _, a := range f[1:] {
		if k, v, ok := strings.Cut(a, "="); ok {
			opts[k] = v
		} else {
			args = append(args, a)
		}
	}
	list := func(key string) []string {
		return strings.FieldsFunc(opts[key], func(r rune) bool { return r == ',' })
	}
	tids := func(words []string) (l []tid.TID) {
		for _, w := range words {
			l = append(l, tid.TID(number(w)))
		}
		return l
	}
	opt := func(key string) proto.Opt[tid.TID] {
		if v, ok := opts[key]; ok {
			return proto.Some(tid.TID(number(v)))
		}
		return proto.Opt[tid.TID]{}
	}
	switch f[0] {
	case "table": // a row for each partition
		var rows [][]proto.Cell
		for _, a := range args {
			var row []proto.Cell
			for w := range strings.SplitSeq(a, ",") {
				id, st, _ := strings.Cut(w, ":")
				row = append(row, proto.Cell{ID: nodeID(id), State: state(st)})
			}
			rows = append(rows, row)
		}
		s.table.Load(proto.Some[uint64](1), 1, rows)
	case "down", "up":
		n := s.nodes.ByID(nodeID(args[0]))
		n.State = map[string]proto.NodeState{"down": proto.NodeDown, "up": proto.NodeRunning}[f[0]]
	case "has":
		for _, a := range args {
			if k, deletion, ok := record(a); ok {
				s.records[k] = deletion
			} else {
				s.trans[tid.TID(number(a))] = true
			}
		}
	case "executed": // pack orders, on the cells here
		for p, v := range opts {
			s.packed[int(number(p))] = tid.TID(number(v))
		}
	case "begin", "backup": // partition=complete up to
		ev := Event{Kind: Begun, Backup: opt("backup"), PackOrder: opt("packs")}
		for p, row := range s.table.Rows() {
			for _, c := range row {
				if c.ID == s.m.set.ID {
					ev.Cells = append(ev.Cells, backend.Cell{Partition: p, ID: c.ID, State: c.State, TID: opt(strconv.Itoa(p)).V})
				}
			}
		}
		if ev.Backup.OK {
			ev.Ends = map[int]Ends{}
			for p := range np {
				var e Ends
				for t := range s.trans {
					if t.Partition(np) == p {
						e.Transactions = max(e.Transactions, t)
					}
				}
				for k := range s.records {
					if k.OID.Partition(np) == p {
						e.Records = max(e.Records, k.TID)
					}
				}
				ev.Ends[p] = e
			}
		}
		s.tell(ev)
	case "follow": // a transaction of the upstream cluster: partition=source, or nothing where there is nothing new
		q := &proto.Replicate{TID: tid.TID(number(args[0])), Upstream: "up", Sources: map[int]proto.Address{}}
		for p, v := range opts {
			a := proto.Address{}
			if v != "" {
				a = addr(int(number(v)))
			}
			q.Sources[int(number(p))] = a
		}
		s.tell(Event{Kind: BackupOrdered, Packet: q})
	case "allow": // pack orders up to one
		s.tell(Event{Kind: PackAllowed, PackOrder: proto.Some(tid.TID(number(args[0])))})
	case "unlinked": // the master, from the upstream cluster
		s.tell(Event{Kind: UpstreamLost})
	case "leave":
		s.tell(Event{Kind: BackupStopped})
	case "unfinished": // transactions, and the last TID
		s.tell(s.answerOfMaster(&proto.AnswerUnfinishedTransactions{LastTID: opt("last").V, TTIDs: tids(args)}))
	case "order": // id time, with the objects of a partial one; nothing if there is none
		a := &proto.AnswerPackOrders{}
		if len(args) > 0 {
			o := proto.PackOrder{ID: tid.TID(number(args[0])), Time: tid.TID(number(args[1])), Approved: proto.Some(true)}
			for _, w := range list("oids") {
				o.Partial, o.OIDs = true, append(o.OIDs, tid.OID(number(w)))
			}
			a.Orders = append(a.Orders, o)
		}
		s.tell(s.answerOfMaster(a))
	case "ended":
		s.tell(Event{Kind: TransactionEnded, TTID: tid.TID(number(args[0])), Last: opt("last")})
	case "approved":
		s.tell(Event{Kind: PackApproved, PackOrder: proto.Some(tid.TID(number(args[0])))})
	case "unknown":
		s.missing = tids(args)
		s.tell(Event{Kind: PackUnknown, Missing: tids(args), Approved: tids(list("approved"))})
	case "change": // partition=state of S1
		var changes []proto.CellChange
		for _, p := range slices.Sorted(maps.Keys(opts)) {
			c := proto.CellChange{Partition: int(number(p)), ID: s.m.set.ID, State: state(opts[p])}
			s.table.Set(c.Partition, c.ID, c.State)
			changes = append(changes, c)
		}
		s.tell(Event{Kind: TableChanged, Changes: changes})
	case "ready":
		s.ready[args[0]] = true
		s.tell(Event{Kind: LinkReady, Link: args[0]})
	case "lost":
		delete(s.ready, args[0])
		s.tell(Event{Kind: LinkLost, Link: args[0]})
	case "replaced":
		s.tell(Event{Kind: LinkReplaced, Link: args[0], New: args[0]})
	case "wait":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			panic(err)
		}
		if s.now = s.now.Add(d); !s.wake.IsZero() && !s.wake.After(s.now) {
			s.wake = time.Time{}
			s.tell(Event{Kind: Woken})
		}
	case "announce": // a check, or the repair of a partition from a source, or that the end of a partition is compared
		r := &check.Report{Check: 7, Partition: check.None, State: check.Begun, Max: tid.Max}
		if p, ok := opts["repair"]; ok {
			r.Partition, r.State, r.Reference = int(number(p)), check.Repair, nodeID(opts["from"])
		}
		if p, ok := opts["tail"]; ok {
			r.Partition, r.State = int(number(p)), check.Tail
		}
		for _, w := range list("partitions") {
			r.Partitions = append(r.Partitions, int(number(w)))
		}
		s.tell(Event{Kind: CheckAnnounced, Report: r})
	case "check": // a partition, up to max, perhaps against a source
		q := &proto.CheckPartition{Partition: int(number(args[0])), Max: opt("max").V}
		if v, ok := opts["source"]; ok {
			q.Source = addr(int(number(v)))
		}
		if v, ok := opts["upstream"]; ok {
			q.Upstream, q.Source = "up", addr(int(number(v)))
		}
		s.tell(Event{Kind: CheckOrdered, Packet: q})
	case "damage":
		for _, a := range args {
			k, _, _ := record(a)
			s.damaged[k] = true
		}
	case "lock": // the greatest transaction that is being committed
		s.locked = tid.TID(number(args[0]))
	case "remind":
		list := s.reminds
		s.reminds = nil
		for _, e := range list {
			s.now = s.now.Add(e.Delay)
			s.tell(Event{Kind: Reminded, Tag: e.Tag})
		}
	case "from": // what follows comes from this source
		s.ask = s.asks[args[0]]
	case "digest": // of these transactions; last=, if it is not the last one
		l := tids(args)
		a := &proto.AnswerCheckTIDRange{Count: len(l), Checksum: digestOf(l)}
		if len(l) > 0 {
			a.Last = l[len(l)-1]
		}
		s.tell(Event{Kind: Answered, Ask: s.ask.Ask, Packet: a})
	case "probe": // the only item, which is damaged
		k, _, ok := record(args[0])
		var a proto.Packet = &proto.AnswerCheckSerialRange{Count: 1, LastTID: k.TID, LastOID: k.OID}
		if !ok {
			a = &proto.AnswerCheckTIDRange{Count: 1, Last: tid.TID(number(args[0]))}
		}
		s.tell(Event{Kind: Answered, Ask: s.ask.Ask, Packet: a})
	case "add", "leftover": // what a source sends
		ask := s.ask.Ask
		if f[0] == "leftover" {
			ask--
		}
		for _, a := range args {
			ev := Event{Kind: Received, Ask: ask, Packet: &proto.AddTransaction{TID: 0}}
			if k, deletion, ok := record(a); ok {
				q := &proto.AddObject{OID: k.OID, Serial: k.TID}
				if !deletion {
					q.ObjectData = data(cmp.Or(opts["data"], "x"))
					if opts["data"] == "bad" {
						q.Checksum[0]++
					}
				}
				ev.Packet = q
			} else {
				ev.Packet = &proto.AddTransaction{TID: tid.TID(number(a))}
			}
			s.tell(ev)
		}
	case "answer": // what the source lacks; where it goes on, next=tid or oid@tid; packed=order
		ev := Event{Kind: Answered, Ask: s.ask.Ask}
		if _, ok := s.ask.Packet.(*proto.AskFetchTransactions); ok {
			ev.Packet = &proto.AnswerFetchTransactions{Packed: opt("packed"), Next: opt("next"), Delete: tids(args)}
		} else {
			a := &proto.AnswerFetchObjects{Delete: map[tid.TID][]tid.OID{}}
			if k, _, ok := record(opts["next"]); ok {
				a.Next, a.NextOID = proto.Some(k.TID), proto.Some(k.OID)
			}
			for _, w := range args {
				k, _, _ := record(w)
				a.Delete[k.TID] = append(a.Delete[k.TID], k.OID)
			}
			ev.Packet = a
		}
		s.tell(ev)
	case "refuse":
		s.tell(Event{Kind: Answered, Ask: s.ask.Ask, Packet: proto.Errorf(proto.ReplicationError, "not readable")})
	case "show": // what is here
		s.out = append(s.out, "here: "+s.contents())
	default:
		panic("unknown command " + f[0])
	}
}

// answerOfMaster answers the first question to which a packet is an answer.
func (s *conversation) answerOfMaster(p proto.Packet) Event {
	_, orders := p.(*proto.AnswerPackOrders)
	for i, e := range s.masters {
		if _, ok := e.Packet.(*proto.AskPackOrders); ok == orders {
			s.masters = slices.Delete(s.masters, i, i+1)
			return Event{Kind: MasterAnswered, Packet: p, Tag: e.Tag}
		}
	}
	s.t.Fatalf("the master was not asked for %T", p)
	return Event{}
}

func (s *conversation) tell(ev Event) {
	s.events = append(s.events, ev)
	for len(s.events) > 0 {
		ev := s.events[0]
		s.events = s.events[1:]
		for _, e := range s.m.Step(s.now, ev) {
			s.carryOut(e)
		}
	}
}

func (s *conversation) note(format string, args ...any) {
	s.out = append(s.out, fmt.Sprintf(format, args...))
}

func (s *conversation) text(k backend.Key) string {
	mark := "@"
	if s.records[k] {
		mark = "!"
	}
	return fmt.Sprintf("%d%s%d", k.OID, mark, k.TID)
}

// keys returns the records of a partition in their order.
func (s *conversation) keys(partition int) []backend.Key {
	var list []backend.Key
	for k := range s.records {
		if k.OID.Partition(np) == partition {
			list = append(list, k)
		}
	}
	slices.SortFunc(list, compareKeys)
	return list
}

func (s *conversation) before(oid tid.OID, t tid.TID) (last tid.TID, deletion bool) {
	for k, d := range s.records {
		if k.OID == oid && k.TID < t && k.TID > last {
			last, deletion = k.TID, d
		}
	}
	return last, deletion
}

func (s *conversation) contents() string {
	var words []string
	for _, t := range slices.Sorted(maps.Keys(s.trans)) {
		words = append(words, fmt.Sprint(uint64(t)))
	}
	for p := range np {
		for _, k := range s.keys(p) {
			words = append(words, s.text(k))
		}
	}
	return strings.Join(words, " ")
}

func (s *conversation) carryOut(e Effect) {
	switch e.Op {
	case Connect:
		name := e.Target.ID.String()
		if e.Target.Upstream != "" {
			name = fmt.Sprintf("%s%d", e.Target.Upstream, e.Target.Addr.Port)
		}
		s.note("connect to %s for partition %d", name, e.Partition)
		s.events = append(s.events, Event{Kind: Linked, Link: name, Ready: s.ready[name], Tag: e.Tag})
	case Release:
		s.note("%v: released", e.Link)
	case Drop, Breach:
		s.note("%v: closed", e.Link)
	case Satisfied:
	case Ask:
		s.ask, s.asks[fmt.Sprint(e.Link)] = e, e
		switch q := e.Packet.(type) {
		case *proto.AskFetchTransactions:
			pack := ""
			if q.AskPack {
				pack = " and packs"
			}
			s.note("%v: transactions%s of %d from %d to %d, have %d", e.Link, pack, q.Partition, q.Min, q.Max, q.Have)
		case *proto.AskFetchObjects:
			have := []string{}
			for _, t := range slices.Sorted(maps.Keys(q.Have)) {
				for _, oid := range q.Have[t] {
					have = append(have, s.text(backend.Key{TID: t, OID: oid}))
				}
			}
			s.note("%v: records of %d from %d@%d to %d, have %v", e.Link, q.Partition, q.MinOID, q.Min, q.Max, have)
		case *proto.AskCheckTIDRange:
			if q.Length == 1 {
				s.note("%v: id of the transaction of %d from %d on?", e.Link, q.Partition, q.Min)
			} else {
				s.note("%v: digest of %d transactions of %d from %d to %d?", e.Link, q.Length, q.Partition, q.Min, q.Max)
			}
		case *proto.AskCheckSerialRange:
			s.note("%v: id of the record of %d from %d@%d on?", e.Link, q.Partition, q.MinOID, q.Min)
		}
	case AskMaster:
		s.masters = append(s.masters, e)
		switch q := e.Packet.(type) {
		case *proto.AskUnfinishedTransactions:
			s.note("master: unfinished transactions of %v?", q.Partitions)
		case *proto.AskPackOrders:
			s.note("master: pack order from %d on?", q.Min)
		}
	case Wake:
		s.wake = s.now.Add(e.Delay)
		s.note("wake after %v", e.Delay)
	case ListTransactions:
		ev := Event{Kind: Listed, Tag: e.Tag}
		for _, t := range slices.Sorted(maps.Keys(s.trans)) {
			if t.Partition(np) == e.Partition && t >= e.Min.TID && t <= e.Max && len(ev.TIDs) < e.Count {
				ev.TIDs = append(ev.TIDs, t)
			}
		}
		if e.Packed {
			ev.PackOrder = proto.Some(s.packed[e.Partition])
		}
		s.events = append(s.events, ev)
	case ListRecords:
		ev := Event{Kind: Listed, Tag: e.Tag}
		for _, k := range s.keys(e.Partition) {
			if compareKeys(k, e.Min) >= 0 && k.TID <= e.Max && len(ev.Keys) < e.Count {
				ev.Keys = append(ev.Keys, k)
			}
		}
		s.events = append(s.events, ev)
	case Digest:
		ev := Event{Kind: Digested, Tag: e.Tag, Items: map[backend.Key]Content{}}
		if e.Packed {
			ev.PackOrder = proto.Some(s.packed[e.Partition])
		}
		add := func(k backend.Key, c Content) {
			switch {
			case e.Nothing || compareKeys(k, e.Min) < 0 || k.TID > e.Max || ev.Next.OK:
			case len(ev.Items) == e.Count:
				ev.Next = proto.Some(k)
			default:
				c.Damaged = s.damaged[k]
				ev.Items[k] = c
			}
		}
		if e.Records {
			for _, k := range s.keys(e.Partition) {
				d := data("x")
				if s.records[k] {
					d = proto.ObjectData{}
				}
				add(k, RecordContent(&d, true))
			}
		} else {
			for _, t := range slices.Sorted(maps.Keys(s.trans)) {
				if t.Partition(np) == e.Partition {
					add(backend.Key{TID: t}, MetaContent(&backend.Meta{}))
				}
			}
		}
		s.events = append(s.events, ev)
	case ListTail:
		ev := Event{Kind: TailListed, Tag: e.Tag}
		for _, t := range slices.Sorted(maps.Keys(s.trans)) {
			if t.Partition(np) == e.Partition {
				ev.TIDs = append(ev.TIDs, t)
			}
		}
		s.events = append(s.events, ev)
	case SeeLocked:
		s.events = append(s.events, Event{Kind: LockedSeen, Locked: s.locked != 0 && e.Max >= s.locked, Tag: e.Tag})
	case Remind:
		s.reminds = append(s.reminds, e)
		s.note("reminded after %v", e.Delay)
	case TellMaster:
		switch p := e.Packet.(type) {
		case *proto.NotifyPartitionCorrupted:
			s.note("master: partition %d differs on %v", p.Partition, p.IDs)
		case *proto.NotifyMonitorInformation:
			r, _, err := check.Parse(p)
			if err != nil {
				s.t.Fatal(err)
			}
			with := ""
			if r.Upstream != "" {
				with = " with " + r.Upstream
			}
			s.note("master: partition %d %v%s, %d rows, %d differences on %v, stuck %v, note %q", r.Partition, r.State, with, r.Rows, r.Total, r.Nodes, r.Stuck, r.Note)
			for _, d := range r.Found {
				s.note("master: %v", d)
			}
		}
	case Examine:
		ev := Event{Kind: Examined, Tag: e.Tag}
		if e.Until != 0 {
			ev.Record.Last, ev.Record.Deletion = s.before(e.Record.OID, e.Until+1)
		}
		ev.Record.Before, _ = s.before(e.Record.OID, e.Record.TID)
		ev.Record.Happened = e.Happened && s.trans[e.Record.TID]
		s.events = append(s.events, ev)
	case AddTransaction:
		q := e.Packet.(*proto.AddTransaction)
		s.trans[q.TID] = true
		s.note("db: add %d", q.TID)
	case AddRecord:
		q := e.Packet.(*proto.AddObject)
		k := backend.Key{TID: q.Serial, OID: q.OID}
		s.records[k] = len(q.Data) == 0
		s.note("db: add %s", s.text(k))
	case DeleteTransaction:
		delete(s.trans, e.Record.TID)
		s.note("db: delete %d", e.Record.TID)
	case DeleteRecord:
		s.note("db: delete %s", s.text(e.Record))
		delete(s.records, e.Record)
	case DeleteBefore:
		s.note("db: delete %d before %d", e.Record.OID, e.Record.TID)
		maps.DeleteFunc(s.records, func(k backend.Key, _ bool) bool { return k.OID == e.Record.OID && k.TID < e.Record.TID })
	case SetComplete:
		s.note("db: partition %d is complete up to %d", e.Partition, e.TID)
	case SetBackup:
		s.note("db: follows up to %d", e.TID)
	case SetGap:
		s.note("db: incomplete between %d and %d", e.Gap[0], e.Gap[1])
	case TellStored:
		s.note("master: follows up to %d, incomplete between %d and %d", e.TID, e.Gap[0], e.Gap[1])
	case ShowBackup:
		s.note("readers see up to %d", e.TID)
	case LowerPacked:
		s.packed[e.Partition] = min(s.packed[e.Partition], e.TID)
		s.note("db: partition %d has executed orders up to %d at most", e.Partition, e.TID)
	case NoteKept:
		s.note("db: partition %d keeps deletions up to %d", e.Partition, e.TID)
	case SignPacks:
		s.note("db: orders approved %d, rejected %d", e.Approved, e.Rejected)
		missing := slices.DeleteFunc(slices.Concat(e.Approved, e.Rejected), func(t tid.TID) bool { return !slices.Contains(s.missing, t) || s.trans[t] })
		s.events = append(s.events, Event{Kind: PackUnknown, Missing: missing, Approved: e.Approved})
	case Commit:
		s.note("db: commit")
	case Replicating:
		s.note("writes to %v are not checked", e.Partitions)
	case Readable:
		s.note("%v may be read", e.Partitions)
	case Discarded:
		s.note("%v are gone", e.Partitions)
	case Replicated:
		s.note("partition %d is replicated up to %d", e.Partition, e.TID)
	case Pack:
		s.note("pack: 0 %v, 1 %v", s.m.Complete(0, s.m.lastPack), s.m.Complete(1, s.m.lastPack))
	case ReadKept, TellPacked:
	case Log:
		s.lines = append(s.lines, *e.Line)
		if e.Line.Level >= slog.LevelWarn {
			s.note("log: %s", e.Line.Text)
		}
	default:
		s.t.Fatalf("unknown effect %d", e.Op)
	}
}

// The log has a line where a check begins, and one with what was found where it ends, however
// many partitions there are, and also if one is compared before the next one is ordered. A line
// for each partition is for developers, unless something is wrong.
func TestCheckLog(t *testing.T) {
	const equal = "from S2\nadd 10\nanswer packed=0\nadd 2@10\nanswer\nanswer packed=0"
	const lacks = "from S2\nanswer packed=0\nanswer\nanswer packed=0"
	for _, tt := range []struct {
		name, commands string
		want           []string
	}{
		{"one after the other", "announce partitions=0,1\ncheck 0 max=20\n" + equal + "\ncheck 1 max=20\n" + lacks,
			[]string{"INFO check begins", "ERROR replicas differ", "INFO check ended partitions=2 not_compared=0 rows=3 differences=1"}},
		{"at once", "announce partitions=0,1\ncheck 0 max=20\ncheck 1 max=20\n" + equal + "\n" + lacks,
			[]string{"INFO check begins", "ERROR replicas differ", "INFO check ended partitions=2 not_compared=0 rows=3 differences=1"}},
		{"of a master that does not say how many", "check 0 max=20\ncheck 1 max=20\n" + equal + "\n" + lacks,
			[]string{"INFO check begins", "ERROR replicas differ", "INFO check ended partitions=2 not_compared=0 rows=3 differences=1"}},
		{"not to the end", "announce partitions=0\ncheck 0 max=20\nlost S2\n",
			[]string{"INFO check begins", "WARN check goes on without a replica", "ERROR check given up", "INFO check ended partitions=1 not_compared=1 rows=0 differences=0"}},
		{"another one", "announce partitions=0\ncheck 0 max=20\n" + equal + "\nannounce partitions=0\ncheck 0 max=20\n" + equal,
			slices.Repeat([]string{"INFO check begins", "INFO check ended partitions=1 not_compared=0 rows=2 differences=0"}, 2)},
	} {
		s := newConversation(t)
		for line := range strings.Lines("table S1:U,S2:U S1:U,S2:U\nhas 10 11 2@10\nbegin\nready S2\n" + tt.commands) {
			s.run(line)
		}
		var got []string
		for _, l := range s.lines {
			switch text := l.Level.String() + " " + l.Text; {
			case l.Level == slog.LevelDebug:
			case l.Text == "check ended":
				for i := 0; i < len(l.Attrs); i += 2 {
					text += fmt.Sprintf(" %v=%v", l.Attrs[i], l.Attrs[i+1])
				}
				got = append(got, text)
			default:
				if i := strings.IndexByte(text, ':'); i < 0 { // else it is a single difference
					got = append(got, text)
				}
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: the log has %q, want %q", tt.name, got, tt.want)
		}
	}
}

// See [scenario.Lines].
func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/sim/*.txt", func(t *testing.T, text string) string {
		s := newConversation(t)
		return scenario.Lines(text, func(c string) []string {
			s.out = nil
			s.run(c)
			return s.out
		})
	})
}
