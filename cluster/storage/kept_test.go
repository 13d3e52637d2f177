package storage

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
)

// Deletions that a pack has kept stay as long after it if an earlier pack has kept some too.
func TestKeptDeletionsOfLaterPack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		s := r.start(1, backendtest.NewMemory(), nil)
		s.initialize(1, table("UU", "UU"))
		s.operate()
		c := s.client(1)
		s.commit(c, 10, 0, "text", 0, 2)
		s.remove(c, 12, 10, 0)
		s.packed(c, 14, 13)
		time.Sleep(keepDeletions - time.Second)
		s.remove(c, 16, 10, 2)
		s.packed(c, 18, 17)
		kept := func() int {
			s.barrier()
			list, err := s.db.KeptDeletions()
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		time.Sleep(keepDeletions / 2)
		if kept() == 0 {
			t.Error("the deletions that the second pack has kept are gone at once")
		}
		time.Sleep(keepDeletions)
		if n := kept(); n != 0 {
			t.Errorf("deletions of %d partitions are kept without need", n)
		}
		s.announce(proto.NodeDown)
		if err := s.wait(); err != nil {
			t.Error(err)
		}
	})
}
