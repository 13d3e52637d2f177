package storage

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Lists of a partition that is here, but not complete, are refused: a client with
// an older table would take what is left of it for all there is.
func TestListsOfUnreadablePartitions(t *testing.T) {
	for name, state := range map[string]proto.CellState{"outdated": proto.OutOfDate, "discarded": proto.Discarded} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			s := r.run(func(c *Config) { c.DisableDrop = true })
			c := s.client(1)
			s.commit(c, 10, 0, "x", 0, 1)
			s.commit(c, 13, 10, "y", 0, 1)
			s.master.Send(&proto.NotifyPartitionChanges{PTID: 2, Cells: []proto.CellChange{
				{Partition: 0, ID: 2, State: proto.UpToDate}, {Partition: 0, ID: 1, State: state}}})
			s.barrier()
			if list, err := s.db.TIDsFrom(t.Context(), 0, 0, tid.Max, 9); err != nil || len(list) != 1 {
				t.Fatalf("transactions left in the database: %v, %v", list, err)
			}
			for _, req := range []proto.Request{
				&proto.AskTIDsFrom{Max: 30, Length: 10, Partition: 0},
				&proto.AskTIDsFrom{Min: 10, Max: 10, Length: 1, Partition: 0},
				&proto.AskTIDsFrom{Min: 9, Max: 8, Length: 1, Partition: 0},
				&proto.AskTIDs{Last: 10, Partition: 0},
				&proto.AskOIDsFrom{Partition: 0, Length: 10, At: 30},
			} {
				if got := code(c, req); got != "NON_READABLE_CELL" {
					t.Errorf("%T %+v: got %s, want NON_READABLE_CELL", req, req, got)
				}
			}
			// The other partition is served, alone if none is named.
			if a := call[*proto.AnswerTIDsFrom](c, &proto.AskTIDsFrom{Max: 30, Length: 10, Partition: 1}); !cmp.Equal(a.TIDs, []tid.TID{13}) {
				t.Errorf("transactions: %v", a.TIDs)
			}
			if a := call[*proto.AnswerTIDs](c, &proto.AskTIDs{Last: 10, Partition: proto.InvalidPartition}); !cmp.Equal(a.TIDs, []tid.TID{13}) {
				t.Errorf("undo log: %v", a.TIDs)
			}
			if a := call[*proto.AnswerOIDsFrom](c, &proto.AskOIDsFrom{Partition: 1, Length: 10, At: 30}); !cmp.Equal(a.OIDs, []tid.OID{1}) {
				t.Errorf("objects: %v", a.OIDs)
			}
		})
	}
}
