package pending

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/internal/scenario"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// fakeDB is a database that writes down what is done to it. Data ids are given
// in order, from 1.
type fakeDB struct {
	np         int
	last       map[tid.OID]tid.TID
	unreadable map[int]bool
	packed     map[tid.TID]bool // revisions that an undo no longer finds
	data       []proto.ObjectData
	held       map[int64]bool
	voted      map[tid.TID][]backend.Store
	log        []string
	fail       error
	tooLong    bool             // metadata is
	remote     map[tid.OID]bool // their last revision is not known here
	deleted    map[tid.OID]bool // by their last revision
}

func newFakeDB(np int) *fakeDB {
	return &fakeDB{np: np, last: map[tid.OID]tid.TID{}, unreadable: map[int]bool{}, packed: map[tid.TID]bool{}, held: map[int64]bool{}, voted: map[tid.TID][]backend.Store{}, remote: map[tid.OID]bool{}, deleted: map[tid.OID]bool{}}
}

func (d *fakeDB) note(format string, args ...any) {
	d.log = append(d.log, fmt.Sprintf(format, args...))
}

func (d *fakeDB) LastObjectTID(oid tid.OID) (t proto.Opt[tid.TID], err error) {
	if d.unreadable[oid.Partition(d.np)] {
		return t, fmt.Errorf("object: %w", backend.ErrNonReadable)
	}
	if d.remote[oid] {
		return t, fmt.Errorf("object: %w", backend.ErrNotPrepared)
	}
	if last, ok := d.last[oid]; ok {
		t = proto.Some(last)
	}
	return t, d.fail
}

func (d *fakeDB) Deleted(oid tid.OID, t tid.TID) (bool, error) {
	return d.deleted[oid] && d.last[oid] == t, d.fail
}

func (d *fakeDB) SetReplicated(p int) {
	delete(d.unreadable, p)
	d.note("replicated %d", p)
}

func (d *fakeDB) HoldData(oid tid.OID, o proto.ObjectData, serial proto.Opt[tid.TID]) (backend.DataID, error) {
	if serial.OK && d.packed[serial.V] {
		return backend.DataID{}, backend.ErrUndoPacked
	}
	if o.Checksum == proto.ZeroHash && !serial.OK {
		return backend.DataID{}, nil
	}
	d.data = append(d.data, o)
	id := int64(len(d.data))
	d.held[id] = true
	return backend.DataID{ID: id, OK: true}, nil
}

func (d *fakeDB) ReleaseData(ids []backend.DataID, prune bool) error {
	for _, id := range ids {
		if !d.held[id.ID] {
			return fmt.Errorf("data %d are not held", id.ID)
		}
		delete(d.held, id.ID)
		d.note("release %d prune=%v", id.ID, prune)
	}
	return nil
}

func (d *fakeDB) LoadData(id backend.DataID) (proto.ObjectData, error) {
	if !d.held[id.ID] {
		return proto.ObjectData{}, fmt.Errorf("data %d are not held", id.ID)
	}
	return d.data[id.ID-1], nil
}

func (d *fakeDB) Vote(ttid tid.TID, stores []backend.Store, meta *backend.Meta, pack *proto.PackRequest) error {
	if meta != nil && d.tooLong {
		return fmt.Errorf("the description of transaction %v is %w", ttid, backend.ErrTooLong)
	}
	s := ""
	d.voted[ttid] = slices.Clone(stores)
	for _, st := range stores {
		s += fmt.Sprintf(" %d:%d", st.OID, st.Data.ID)
	}
	d.note("vote %d meta=%v pack=%v%s", ttid, meta != nil, pack != nil, s)
	return nil
}

func (d *fakeDB) Lock(ttid, final tid.TID, approve bool) error {
	d.note("lock %d as %d approve=%v", ttid, final, approve)
	return nil
}

func (d *fakeDB) Unlock(ttid, final tid.TID, meta, objects, pack bool) error {
	for _, st := range d.voted[ttid] {
		delete(d.held, st.Data.ID)
		d.last[st.OID] = final
		d.deleted[st.OID] = !st.Data.OK
		delete(d.remote, st.OID)
	}
	delete(d.voted, ttid)
	d.note("unlock %d as %d meta=%v objects=%v pack=%v", ttid, final, meta, objects, pack)
	return nil
}

func (d *fakeDB) Abort(ttid tid.TID) error {
	delete(d.voted, ttid)
	d.note("abort %d", ttid)
	return nil
}

func (d *fakeDB) DropUnfinishedPartitions(p []int) error {
	for ttid, stores := range d.voted {
		d.voted[ttid] = slices.DeleteFunc(stores, func(s backend.Store) bool { return slices.Contains(p, s.OID.Partition(d.np)) })
	}
	d.note("drop unfinished %v", p)
	return nil
}

// conversation runs the commands of a file. Objects, transactions, TIDs and
// partitions are small numbers, nodes are C1, C2, … Each client has one
// connection, of the same name.
type conversation struct {
	db   *fakeDB
	m    *Manager
	asks uint32
	out  []string

	dropped bool
}

func clientID(s string) proto.NodeID {
	n, _ := strconv.Atoi(strings.TrimPrefix(s, "C"))
	return proto.Client.ID(n)
}

func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		panic(err) // a mistake in the scenario
	}
	return n
}

func (s *conversation) run(line string) error {
	f := strings.Fields(line)
	opts := map[string]string{}
	for _, a := range f {
		if k, v, ok := strings.Cut(a, "="); ok {
			opts[k] = v
		}
	}
	opt := func(key string) proto.Opt[tid.TID] {
		if v, ok := opts[key]; ok {
			return proto.Some(tid.TID(number(v)))
		}
		return proto.Opt[tid.TID]{}
	}
	n := func(i int) tid.TID { return tid.TID(number(f[i])) }
	list := func(from int) (l []int) {
		for _, a := range f[from:] {
			l = append(l, int(number(a)))
		}
		return l
	}
	s.asks++
	r := Request{ID: s.asks}
	if len(f) > 1 {
		r.Conn = f[1]
	}
	switch f[0] {
	case "np":
		s.db = newFakeDB(int(n(1)))
		s.m = New(s.db, int(n(1)))
	case "object": // its last revision
		s.db.last[tid.OID(n(1))] = n(2)
	case "deleted": // the same, and it deletes the object
		s.db.last[tid.OID(n(1))], s.db.deleted[tid.OID(n(1))] = n(2), true
	case "remote": // the database does not know its last revision
		s.db.remote[tid.OID(n(1))] = true
	case "prepared":
		delete(s.db.remote, tid.OID(n(1)))
		return s.m.Prepared(tid.OID(n(1)), true)
	case "unprepared": // it could not learn it
		return s.m.Prepared(tid.OID(n(1)), false)
	case "unreadable":
		s.db.unreadable[int(n(1))] = true
	case "packed":
		s.db.packed[n(1)] = true
	case "store": // client ttid object base= [data=] [undo=]
		d := proto.ObjectData{Data: []byte(opts["data"])}
		if opts["data"] != "" {
			d.Checksum[0] = 1
		}
		return s.m.Store(r, clientID(f[1]), &proto.AskStoreObject{TTID: n(2), OID: tid.OID(n(3)), Serial: opt("base").V, ObjectData: d, DataSerial: opt("undo")})
	case "check":
		return s.m.Check(r, clientID(f[1]), &proto.AskCheckCurrentSerial{TTID: n(2), OID: tid.OID(n(3)), Serial: opt("base").V})
	case "relock":
		return s.m.Relock(r, clientID(f[1]), &proto.AskRelockObject{TTID: n(2), OID: tid.OID(n(3))})
	case "vote":
		return s.m.Vote(r, clientID(f[1]), &proto.AskVoteTransaction{TTID: n(2)})
	case "finish": // with metadata
		p := &proto.AskStoreTransaction{TTID: n(2)}
		if opts["pack"] != "" {
			p.Pack = &proto.PackRequest{Time: opt("pack").V}
		}
		return s.m.StoreTransaction(r, clientID(f[1]), p)
	case "lock":
		return s.m.Lock(Request{"M1", s.asks}, &proto.AskLockInformation{TTID: n(1), TID: n(2)})
	case "unlock":
		return s.m.Unlock(Request{"M1", s.asks}, n(1))
	case "abort": // by the client
		return s.m.ClientAbort(clientID(f[1]), n(2))
	case "over": // says the master
		return s.m.Abort(n(1))
	case "close":
		return s.m.ConnClosed(f[1], clientID(f[1]))
	case "gone":
		return s.m.ClientGone(clientID(f[1]))
	case "drop":
		s.dropped = true
		return s.m.Drop()
	case "replicating":
		s.m.Replicating(list(1))
	case "replicated":
		return s.m.Replicated(int(n(1)), n(2))
	case "changed":
		s.m.TableChanged()
	case "readable":
		for _, p := range list(1) {
			delete(s.db.unreadable, p)
		}
		s.m.Readable(list(1))
	case "discarded":
		for _, p := range list(1) {
			s.db.unreadable[p] = true
		}
		return s.m.Discarded(list(1))
	case "read":
		if p := (&proto.AskObject{OID: tid.OID(n(2))}); s.m.ObjectLocked(p.OID) {
			s.m.WaitObject(r, p, p.OID)
		} else {
			s.out = append(s.out, "not locked")
		}
	case "list":
		if p := (&proto.AskTIDsFrom{Max: n(2)}); s.m.TransactionLocked(p.Max) {
			s.m.WaitTransaction(r, p, p.Max)
		} else {
			s.out = append(s.out, "not locked")
		}
	case "final":
		t, pending := s.m.FinalTID(n(1))
		s.out = append(s.out, fmt.Sprintf("pending=%v final=%d", pending, t.V))
	case "undobase":
		t := s.m.UndoBase(n(1), tid.OID(n(2)))
		s.out = append(s.out, fmt.Sprintf("%v %d", t.OK, t.V))
	default:
		panic("unknown command " + f[0])
	}
	return nil
}

func describe(p proto.Packet) string {
	conflict := func(c proto.Opt[tid.TID]) string {
		switch {
		case !c.OK:
			return "locked"
		case c.V == tid.Zero:
			return "lockless"
		}
		return fmt.Sprintf("conflict with %d", c.V)
	}
	switch p := p.(type) {
	case *proto.AnswerStoreObject:
		return "stored: " + conflict(p.Conflict)
	case *proto.AnswerCheckCurrentSerial:
		return "checked: " + conflict(p.Conflict)
	case *proto.AnswerRelockObject:
		if p.Conflict == nil {
			return "relocked"
		}
		data := "no data"
		if p.Conflict.Data != nil {
			data = string(p.Conflict.Data.Data)
		}
		return fmt.Sprintf("relock: conflict of %d with %d, %s", p.Conflict.Serial, p.Conflict.Conflict, data)
	case *proto.NotifyDeadlock:
		return fmt.Sprintf("deadlock %d %d", p.TTID, p.OID)
	case *proto.NotifyReplicationDone:
		return fmt.Sprintf("replication done %d %d", p.Partition, p.TID)
	case *proto.Error:
		return p.Error()
	case *proto.AskObject:
		return fmt.Sprintf("load %d", p.OID)
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", p), "*proto.")
}

// flush writes down what happened: the database first, then the effects.
func (s *conversation) flush() {
	for _, l := range s.db.log {
		s.out = append(s.out, "db: "+l)
	}
	s.db.log = nil
	for _, e := range s.m.Effects() {
		to, how := fmt.Sprint(e.Request.Conn), ""
		switch e.Kind {
		case AnswerDurable:
			how = " (durable)"
		case Retry:
			how = " (retry)"
		case NotifyClient:
			to = e.Client.String()
		case NotifyMaster:
			to = "master"
		case Prepare:
			s.out = append(s.out, fmt.Sprintf("prepare %d", e.OID))
			continue
		}
		s.out = append(s.out, fmt.Sprintf("%s: %s%s", to, describe(e.Packet), how))
	}
}

// A scenario starts with a manager of two partitions. See [scenario.Lines].
func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txt", func(t *testing.T, text string) string {
		s := &conversation{db: newFakeDB(2)}
		s.m = New(s.db, 2)
		return scenario.Lines(text, func(c string) []string {
			s.out = nil
			if err := s.run(c); err != nil {
				t.Fatalf("%s: %v", c, err)
			}
			s.flush()
			if err := s.check(); err != nil {
				t.Fatalf("after %q: %v", c, err)
			}
			return s.out
		})
	})
}

// Metadata for which the database has no room is refused, and the transaction can be aborted.
func TestTooLong(t *testing.T) {
	s := &conversation{db: newFakeDB(2)}
	s.m = New(s.db, 2)
	s.db.tooLong = true
	for _, step := range []struct{ line, want string }{
		{"store C1 10 2 base=0 data=a", "C1: stored: locked"},
		{"finish C1 10", "C1: PROTOCOL_ERROR: the description of transaction 000000000000000a is too long for the database"},
		{"abort C1 10", "release"},
	} {
		s.out = nil
		if err := s.run(step.line); err != nil {
			t.Fatal(err)
		}
		s.flush()
		if err := s.check(); err != nil {
			t.Error(err)
		}
		if got := strings.Join(s.out, "\n"); !strings.Contains(got, step.want) {
			t.Errorf("%s: %q, want %q", step.line, got, step.want)
		}
	}
}

// check verifies what must always hold.
func (s *conversation) check() error {
	if s.dropped {
		return nil
	}
	return s.m.verify(s.db)
}

// verify looks for contradictions in the state.
func (m *Manager) verify(db *fakeDB) error {
	for oid, ttid := range m.locks {
		t := m.txns[ttid]
		if t == nil {
			return fmt.Errorf("lock of %v belongs to unknown transaction %v", oid, ttid)
		}
		if t.ops[oid] == nil {
			return fmt.Errorf("lock of %v belongs to %v, which does not use it", oid, ttid)
		}
	}
	held := map[int64]bool{}
	queued := map[tid.TID]int{}
	for _, t := range m.txns {
		for _, o := range t.ops {
			if o.stored && o.store.Data.OK {
				held[o.store.Data.ID] = true
			}
		}
	}
	for id := range db.held {
		if !held[id] {
			return fmt.Errorf("data %d are held for nobody", id)
		}
	}
	for id := range held {
		if !db.held[id] {
			return fmt.Errorf("data %d are needed but not held", id)
		}
	}
	for oid, ttid := range m.readLocks {
		if m.txns[ttid] == nil || m.txns[ttid].final == tid.Zero {
			return fmt.Errorf("object %v is locked for reading by %v, which is not being committed", oid, ttid)
		}
	}
	least := tid.Invalid
	for _, t := range m.txns {
		if t.final != tid.Zero {
			least = min(least, t.final)
		}
	}
	if least != m.lockedMin {
		return fmt.Errorf("least locked TID is %v, recorded as %v", least, m.lockedMin)
	}
	for i, w := range m.writes {
		if i > 0 && m.writes[i-1].ttid > w.ttid {
			return errors.New("delayed requests are not sorted")
		}
		queued[w.ttid]++
	}
	if m.unknown.OK {
		return fmt.Errorf("what could not be learned of %v is not forgotten", m.unknown.V)
	}
	for ttid, t := range m.txns {
		if t.queued != queued[ttid] {
			return fmt.Errorf("transaction %v has %d delayed requests, recorded as %d", ttid, queued[ttid], t.queued)
		}
	}
	return nil
}
