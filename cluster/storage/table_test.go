package storage

import (
	"errors"
	"fmt"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

func TestPartitionTable(t *testing.T) {
	t.Run("not filled", func(t *testing.T) {
		r := newRig(t)
		s := r.start(1, backendtest.NewMemory(), nil)
		s.announce(proto.NodeRunning)
		s.master.Send(&proto.SendPartitionTable{PTID: proto.Some[uint64](1), Rows: table("U", ".")})
		if e := expect[*proto.Error](s); e.ErrCode != proto.ProtocolError {
			t.Errorf("got %v", e)
		}
		s.connected()
		s.announce(proto.NodeRunning)
		if a := ask[*proto.AnswerRecovery](s, &proto.AskRecovery{}); a.PTID.OK {
			t.Errorf("the table was stored: %+v", a)
		}
	})
	for _, theirs := range []uint64{1, 2} {
		t.Run(fmt.Sprintf("of another database, %d", theirs), func(t *testing.T) {
			r := newRig(t)
			s := r.start(1, backendtest.NewMemory(), nil)
			s.initialize(2, table("U", "U"))
			s.operate()
			s.commit(s.client(1), 10, 0, "x", 1, 2)
			s.master.Send(&proto.StopOperation{})
			s.master.Send(&proto.SendPartitionTable{PTID: proto.Some(theirs), Rows: table(".U", ".U")})
			superseded, ok := errors.AsType[*SupersededError](s.wait())
			if !ok || superseded.Ours != 2 || superseded.Theirs != theirs {
				t.Errorf("the node ends with %v", superseded)
			}
			s.db.Close()
			s = r.start(1, s.mem, nil)
			s.initialize(2, table("U", "U"))
			s.operate()
			c := s.client(1)
			for _, oid := range []tid.OID{1, 2} {
				call[*proto.AnswerObject](c, &proto.AskObject{OID: oid})
			}
		})
	}
	t.Run("gap", func(t *testing.T) {
		r := newRig(t)
		s := r.run(nil)
		s.master.Send(&proto.NotifyPartitionChanges{PTID: 3, Cells: []proto.CellChange{{Partition: 0, ID: 2, State: proto.OutOfDate}}})
		if e := expect[*proto.Error](s); e.ErrCode != proto.ProtocolError {
			t.Errorf("got %v", e)
		}
		s.connected()
	})
	t.Run("change", func(t *testing.T) {
		r := newRig(t)
		s := r.run(nil)
		c := s.client(1)
		s.commit(c, 10, 0, "x", 1, 2)
		call[*proto.AnswerStoreObject](c, store(12, 1, 10, "y"))
		call[*proto.AnswerStoreObject](c, store(12, 2, 10, "y"))
		s.master.Send(&proto.NotifyPartitionChanges{PTID: 2, Cells: []proto.CellChange{{Partition: 0, ID: 2, State: proto.UpToDate}, {Partition: 0, ID: 1, State: proto.Discarded}}})
		s.barrier()
		if got := code(c, &proto.AskObject{OID: 2}); got != "NON_READABLE_CELL" {
			t.Errorf("load from a discarded cell: %s", got)
		}
		if a := call[*proto.AnswerStoreObject](c, store(12, 4, 0, "y")); a.Conflict != proto.Some(tid.Zero) {
			t.Errorf("store in a discarded cell: %+v", a)
		}
		call[*proto.AnswerObject](c, &proto.AskObject{OID: 1})
		call[*proto.AnswerVoteTransaction](c, &proto.AskVoteTransaction{TTID: 12})
		ask[*proto.AnswerInformationLocked](s, &proto.AskLockInformation{TTID: 12, TID: 12})
		s.master.Send(&proto.NotifyUnlockInformation{TTID: 12})
		eventually(t, "the partition is dropped", func() bool {
			_, obj, err := s.db.LastTIDs(t.Context(), 0)
			return err == nil && obj == tid.Zero
		})
		if a := call[*proto.AnswerObject](c, &proto.AskObject{OID: 1}); a.Serial != 12 {
			t.Errorf("load from the cell that stays: %+v", a)
		}
		if n := orphans(t, s.db); n != 0 {
			t.Errorf("%d orphans", n)
		}
	})
}
