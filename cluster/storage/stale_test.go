package storage

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

func (s *testNode) confirmed() uint64 {
	s.rig.t.Helper()
	c, err := s.db.Config()
	if err != nil {
		s.rig.t.Fatal(err)
	}
	return c.Confirmed.V
}

// A storage remembers a table once the master says that all have stored it, and tells
// the next master so.
func TestConfirmedTable(t *testing.T) {
	r := newRig(t)
	s := r.start(1, backendtest.NewMemory(), nil)
	s.initialize(3, table("U", "U"))
	ask[*proto.AnswerPackOrders](s, &proto.AskPackOrders{})
	if got := s.confirmed(); got != 0 {
		t.Errorf("before the operation: %d", got)
	}
	s.operate()
	if got := s.confirmed(); got != 3 {
		t.Errorf("in operation: %d", got)
	}
	change := &proto.NotifyPartitionChanges{PTID: 4}
	s.master.Send(change)
	s.master.Ask(&proto.AskPackOrders{Min: tid.Max}, nil)
	await[*proto.AnswerPackOrders](s)
	s.master.Send(&proto.NotifyPartitionChanges{PTID: 5})
	s.master.Send(&proto.StartOperation{})
	s.barrier()
	if got := s.confirmed(); got != 4 {
		t.Errorf("confirmed again: %d", got)
	}
	// Another storage may be asked the like, and only one.
	s.master.Ask(&proto.AskPackOrders{Min: 7}, nil)
	await[*proto.AnswerPackOrders](s)

	c := s.client(1)
	s.commit(c, 10, 0, "x", 1, 2)
	call[*proto.AnswerStoreObject](c, store(14, 1, 10, "y"))
	call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 14, OIDs: []tid.OID{1}})
	s.master.Ask(&proto.AskLockInformation{TTID: 14, TID: 16}, nil)
	await[*proto.AnswerInformationLocked](s)
	s.master.Close()
	got := s.connected().Extra
	delete(got, "devpath")
	delete(got, "new_nid")
	delete(got, "check")
	delete(got, "vitals")
	pack := func(t tid.TID) proto.Value { return t.Bytes() }
	want := map[string]proto.Value{
		"confirmed_ptid": int64(4),
		"following":      int64(1),
		"last_words":     int64(1),
		"last_tids":      []proto.Value{[]proto.Value{int64(0), pack(10), pack(10)}, []proto.Value{int64(1), pack(0), pack(10)}},
		"unfinished":     []proto.Value{[]proto.Value{pack(14), pack(16)}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("identification (-want +got):\n%s", diff)
	}

	// The cluster goes on from an earlier table: the mark says nothing any more.
	s.announce(proto.NodeRunning)
	s.master.Send(&proto.SendPartitionTable{PTID: proto.Some[uint64](2), Rows: table("U", "U")})
	s.barrier()
	if got := s.confirmed(); got != 0 {
		t.Errorf("after an earlier table: %d", got)
	}
}

// A storage that joins in operation was asked nothing: it has no mark to keep.
func TestJoinsWithoutMark(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	if got := s.confirmed(); got != 0 {
		t.Errorf("got %d", got)
	}
	s.master.Send(&proto.StartOperation{})
	if e := expect[*proto.Error](s); e.ErrCode != proto.ProtocolError {
		t.Errorf("start of operation without question: %v", e)
	}
}

// Before the operation, the master compares the ends of the copies.
func TestEndsAreCompared(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	s.commit(s.client(1), 10, 0, "x", 1, 2)
	s.master.Send(&proto.StopOperation{})
	trans := ask[*proto.AnswerCheckTIDRange](s, &proto.AskCheckTIDRange{Partition: 0, Length: 1 << 30, Min: 5, Max: tid.Max})
	if trans.Count != 1 || trans.Last != 10 {
		t.Errorf("transactions: %+v", trans)
	}
	obj := ask[*proto.AnswerCheckSerialRange](s, &proto.AskCheckSerialRange{Partition: 1, Length: 1 << 30, Min: 5, Max: tid.Max})
	if obj.Count != 1 || obj.LastTID != 10 {
		t.Errorf("records: %+v", obj)
	}
	for _, q := range []proto.Request{&proto.AskCheckTIDRange{Partition: 7}, &proto.AskCheckSerialRange{Partition: 7}} {
		if e := ask[*proto.Error](s, q); e.ErrCode != proto.CheckingError {
			t.Errorf("%T: %v", q, e)
		}
	}
}

// What is missing in a cell that the master refuses may be anywhere, and so may be what
// is too much after a leap of the table.
func TestRefusedCellIsComparedFromTheBeginning(t *testing.T) {
	for name, order := range map[string]func(*testNode){
		"refused before the operation": func(s *testNode) {
			s.announce(proto.NodeRunning)
			s.master.Send(&proto.SendPartitionTable{PTID: proto.Some[uint64](2), Rows: table("UU", "UU")})
			s.master.Send(&proto.NotifyPartitionChanges{PTID: 3, Cells: []proto.CellChange{{Partition: 0, ID: 1, State: proto.OutOfDate}}})
		},
		"leap": func(s *testNode) {
			s.announce(proto.NodeRunning)
			s.master.Send(&proto.SendPartitionTable{PTID: proto.Some[uint64](1 + parttab.Leap), Rows: table("OU", "UU")})
		},
		"just late": nil,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			s := r.run(nil)
			s.commit(s.client(1), 10, 0, "x", 1, 2)
			s.master.Close()
			s.connected()
			want := tid.Zero
			if order == nil {
				want = 10
				order = func(s *testNode) {
					s.announce(proto.NodeRunning)
					s.master.Send(&proto.SendPartitionTable{PTID: proto.Some[uint64](3), Rows: table("OU", "UU")})
				}
			}
			order(s)
			s.barrier()
			cells, err := s.db.Cells()
			if err != nil {
				t.Fatal(err)
			}
			if cells[0].ID != 1 || cells[0].State != proto.OutOfDate || cells[0].TID != want {
				t.Errorf("got %+v, want OUT_OF_DATE from %v", cells[0], want)
			}
		})
	}
}
