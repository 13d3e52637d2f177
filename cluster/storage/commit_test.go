package storage

import (
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

// lockAll votes and locks transactions of one object each.
func (s *testNode) lockAll(c *testClient, ttids ...tid.TID) {
	s.rig.t.Helper()
	for _, ttid := range ttids {
		oid := tid.OID(ttid)
		call[*proto.AnswerStoreObject](c, store(ttid, oid, 0, "x"))
		call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: ttid, OIDs: []tid.OID{oid}})
		ask[*proto.AnswerInformationLocked](s, &proto.AskLockInformation{TTID: ttid, TID: ttid})
	}
}

// unlockAll unlocks transactions, one every 300 ms.
func (s *testNode) unlockAll(ttids ...tid.TID) {
	s.rig.t.Helper()
	for _, ttid := range ttids {
		s.master.Send(&proto.NotifyUnlockInformation{TTID: ttid})
		s.barrier()
		time.Sleep(300 * time.Millisecond)
	}
}

// What was unlocked is committed within 1.5 s, at once for all, without any other
// packet.
func TestDeferredCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		mem := backendtest.NewMemory()
		s := r.start(1, mem, nil)
		s.initialize(1, table("U", "U"))
		s.operate()
		s.lockAll(s.client(1), 10, 13, 14)
		before := mem.Commits()
		s.unlockAll(10, 13, 14)
		if n := mem.Commits() - before; n != 0 {
			t.Errorf("%d commits in 900 ms", n)
		}
		time.Sleep(600 * time.Millisecond)
		if n := mem.Commits() - before; n != 1 {
			t.Errorf("%d commits in 1.5 s, want 1", n)
		}
		time.Sleep(time.Minute)
		if n := mem.Commits() - before; n != 1 {
			t.Errorf("%d commits in a minute, want 1", n)
		}
		if err := mem.Crash(); err != nil {
			t.Fatal(err)
		}
		db, err := mem.Open()
		if err != nil {
			t.Fatal(err)
		}
		if list, err := db.Unfinished(); err != nil || len(list) > 0 {
			t.Errorf("unfinished after a crash: %v, %v", list, err)
		}
	})
}

// counted counts the commits of an SQLite database.
type counted struct {
	*sqldb.DB
	full, votes atomic.Int32
}

func (b *counted) Commit() error {
	b.full.Add(1)
	return b.DB.Commit()
}

func (b *counted) CommitVotes() error {
	b.votes.Add(1)
	return b.DB.CommitVotes()
}

// A database that can move transactions to the final tables later need not do it
// for votes and locks. It does within 1.5 s of the unlock, at once for all, even if
// there are votes meanwhile.
func TestDeferredMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		path := filepath.Join(t.TempDir(), "db")
		db := &counted{}
		s := r.start(1, backendtest.NewMemory(), func(c *Config) {
			db.DB = openFile(t, path)
			c.Backend = db
		})
		s.initialize(1, table("U", "U"))
		s.operate()
		unfinished := func() map[tid.TID]proto.Opt[tid.TID] {
			t.Helper()
			synctest.Wait()
			list, err := crashed(t, path).Unfinished()
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		c := s.client(1)
		full, votes := db.full.Load(), db.votes.Load()
		s.lockAll(c, 10, 13, 14)
		if n, m := db.full.Load()-full, db.votes.Load()-votes; n != 0 || m != 6 {
			t.Errorf("%d commits of everything and %d of votes for three votes and three locks, want 0 and 6", n, m)
		}
		s.unlockAll(10, 13, 14)
		call[*proto.AnswerStoreObject](c, store(17, 17, 0, "x"))
		call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 17, OIDs: []tid.OID{17}})
		want := map[tid.TID]proto.Opt[tid.TID]{10: proto.Some[tid.TID](10), 13: proto.Some[tid.TID](13), 14: proto.Some[tid.TID](14), 17: {}}
		if diff := cmp.Diff(want, unfinished()); diff != "" {
			t.Errorf("unfinished, if the node dies 900 ms after the first unlock (-want +got):\n%s", diff)
		}
		time.Sleep(600 * time.Millisecond)
		want = map[tid.TID]proto.Opt[tid.TID]{17: {}}
		if diff := cmp.Diff(want, unfinished()); diff != "" {
			t.Errorf("unfinished, if the node dies after 1.5 s (-want +got):\n%s", diff)
		}
		time.Sleep(time.Minute)
		if n := db.full.Load() - full; n != 1 {
			t.Errorf("%d commits of everything, want 1", n)
		}
	})
}

// A deleted object is as free as one that does not exist: the base of a store may be a later
// deletion, which another replica keeps and which was packed here, or was never fetched. Of an
// object that exists a base that is not here is a fault, and so it is where not all is local.
func TestBaseAfterDeletion(t *testing.T) {
	for name, use := range map[string]func(b backend.Backend) backend.Backend{
		"memory": func(b backend.Backend) backend.Backend { return b },
		"sqlite": func(backend.Backend) backend.Backend { return openFile(t, filepath.Join(t.TempDir(), "neo.sqlite")) },
		"remote": func(b backend.Backend) backend.Backend { return newElsewhere(b) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			s := r.start(1, backendtest.NewMemory(), func(c *Config) { c.Backend = use(c.Backend) })
			s.initialize(1, table("U", "U"))
			s.operate()
			c := s.client(1)
			s.commit(c, 10, 0, "a", 2, 4)
			call[*proto.AnswerStoreObject](c, &proto.AskStoreObject{TTID: 20, OID: 2, Serial: 10})
			s.finish(c, 20, 2)
			if a := call[*proto.AnswerStoreObject](c, store(40, 2, 10, "b")); a.Conflict != proto.Some(tid.TID(20)) {
				t.Errorf("base before the deletion: %+v", a)
			}
			if name == "remote" {
				if got := code(c, store(40, 2, 30, "b")); got != "PROTOCOL_ERROR" {
					t.Errorf("base after a deletion that may be none: %s", got)
				}
				return
			}
			s.commit(c, 40, 30, "b", 2)
			if a := call[*proto.AnswerObject](c, &proto.AskObject{OID: 2}); a.Serial != 40 || string(a.Data) != "b" {
				t.Errorf("after the store: %+v", a)
			}
			if got := code(c, store(50, 4, 30, "b")); got != "PROTOCOL_ERROR" {
				t.Errorf("base that is not here: %s", got)
			}
		})
	}
}
