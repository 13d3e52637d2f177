package storage

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// Every answer that a database may give has its code.
func TestErrorCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{backend.ErrNonReadable, "NON_READABLE_CELL"},
		{backend.ErrNoSuchObject, "OID_DOES_NOT_EXIST: 0000000000000007"},
		{backend.ErrNotFound, "OID_NOT_FOUND: 0000000000000007"},
		{backend.ErrUndoPacked, "UNDO_PACK_ERROR: 0000000000000007"},
		{backend.ErrNotImplemented, "BACKEND_NOT_IMPLEMENTED: not implemented by this backend"},
		{&backend.CorruptError{OID: 7, TID: 8, Detail: "checksum"}, "NON_READABLE_CELL: object 0000000000000007 at 0000000000000008 is corrupt: checksum"},
	} {
		if got := wireError(tt.err, tid.OID(7)); got == nil || got.Error() != tt.want {
			t.Errorf("%v: got %v, want %s", tt.err, got, tt.want)
		}
	}
	if got := wireError(errors.New("disk full"), tid.OID(7)); got != nil {
		t.Errorf("a broken database is answered %v", got)
	}
}

// importerLike is a database that lacks operations.
type importerLike struct{ backend.Backend }

var errNoHistory = errors.Join(backend.ErrNotImplemented, errors.New("history"))

func (importerLike) History(context.Context, tid.OID, int, int) ([]proto.Revision, error) {
	return nil, errNoHistory
}
func (importerLike) UndoHistory(context.Context, tid.OID, tid.TID) (backend.UndoHistory, error) {
	return backend.UndoHistory{}, errNoHistory
}
func (importerLike) OIDsFrom(context.Context, int, int, tid.OID, tid.TID) (proto.Opt[tid.OID], []tid.OID, error) {
	return proto.Opt[tid.OID]{}, nil, errNoHistory
}
func (importerLike) TIDs(context.Context, []int, int, int) ([]tid.TID, error) {
	return nil, errNoHistory
}
func (importerLike) TIDsFrom(context.Context, int, tid.TID, tid.TID, int) ([]tid.TID, error) {
	return nil, errNoHistory
}
func (importerLike) PackedIDs(bool) (map[int]tid.TID, error)       { return nil, errNoHistory }
func (importerLike) UnassignedPartitions() ([]int, error)          { return nil, errNoHistory }
func (importerLike) PackOrders(tid.TID) ([]proto.PackOrder, error) { return nil, errNoHistory }
func (importerLike) SignPackOrders(_, _ []tid.TID) ([]tid.TID, bool, error) {
	return nil, false, errNoHistory
}
func (importerLike) CheckTIDs(context.Context, int, int, tid.TID, tid.TID) (*proto.AnswerCheckTIDRange, error) {
	return nil, errNoHistory
}

func TestBackendNotImplemented(t *testing.T) {
	r := newRig(t)
	s := r.start(1, backendtest.NewMemory(), func(c *Config) { c.Backend = importerLike{c.Backend} })
	s.initialize(1, table("U", "U"))
	s.operate()
	c := s.client(1)
	s.commit(c, 10, 0, "x", 1)
	for _, req := range []proto.Request{
		&proto.AskObjectHistory{OID: 1, Last: 1},
		&proto.AskObjectUndoSerial{TTID: 12, LastTID: 11, Undone: 10, OIDs: []tid.OID{1}},
		&proto.AskOIDsFrom{Length: 1, At: 20},
		&proto.AskTIDs{Last: 1, Partition: proto.InvalidPartition},
		&proto.AskTIDsFrom{Max: 9, Length: 1},
	} {
		if got := code(c, req); got != "BACKEND_NOT_IMPLEMENTED" {
			t.Errorf("%T: got %s", req, got)
		}
	}
	b := s.dial("b")
	call[*proto.AcceptIdentification](b, &proto.RequestIdentification{Type: proto.Storage, Cluster: "test"})
	for _, req := range []proto.Request{
		&proto.AskFetchTransactions{Length: 10, Max: 20},
		&proto.AskCheckTIDRange{Length: 10, Max: 20},
	} {
		if got := code(b, req); got != "BACKEND_NOT_IMPLEMENTED" {
			t.Errorf("%T: got %s", req, got)
		}
	}
	s.master.Send(&proto.NotifyPackSigned{Approved: []tid.TID{10}})
	call[*proto.AnswerObject](c, &proto.AskObject{OID: 1})
}

// A database that fails ends the node: it must not answer for what it lost.
func TestDatabaseFails(t *testing.T) {
	r := newRig(t)
	s := r.run(func(c *Config) { c.Backend = &failing{Backend: c.Backend} })
	c := s.client(1)
	call[*proto.AnswerStoreObject](c, store(10, 1, 0, "x"))
	call[*proto.AnswerStoreObject](c, store(12, 2, 0, "unvoted"))
	s.db.(*failing).fail(s)
	if got := code(c, &proto.AskStoreTransaction{TTID: 10, OIDs: []tid.OID{1}}); !strings.Contains(got, "closed") {
		t.Errorf("vote without commit was answered: %s", got)
	}
	if err := s.wait(); !errors.Is(err, errDisk) {
		t.Errorf("Run returned %v", err)
	}
	if s.db.(*failing).released {
		t.Error("data were released after the failure")
	}
}

// Packets that never stop to arrive delay neither the commit of what was unlocked nor
// the end of a node whose database failed.
func TestConstantLoad(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	s.lockAll(s.client(1), 10)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					s.post(func() error { time.Sleep(20 * time.Microsecond); return nil })
				}
			}
		})
	}
	defer wg.Wait()
	defer close(stop)
	eventually(t, "the inbox is full", func() bool { return len(s.inbox) == inboxSize })
	before := s.mem.Commits()
	s.master.Send(&proto.NotifyUnlockInformation{TTID: 10})
	eventually(t, "the unlock is committed", func() bool { return s.mem.Commits() > before })
	s.fail(errDisk)
	if err := s.wait(); !errors.Is(err, errDisk) {
		t.Errorf("Run returned %v", err)
	}
}

// After a panic nothing more is committed.
func TestPanic(t *testing.T) {
	r := newRig(t)
	db := &counting{}
	s := r.run(func(c *Config) {
		db.Backend = c.Backend
		c.Backend = db
	})
	c := s.client(1)
	call[*proto.AnswerStoreObject](c, store(10, 1, 0, "x"))
	before := make(chan int, 1)
	s.post(func() error {
		before <- db.commits
		panic("a state that cannot be")
	})
	if err := s.wait(); err == nil || !strings.Contains(err.Error(), "a state that cannot be") {
		t.Errorf("Run returned %v", err)
	}
	if n := <-before; db.commits != n {
		t.Errorf("%d commits after the panic", db.commits-n)
	}
}

// counting is a database that counts commits.
type counting struct {
	backend.Backend
	commits int
}

func (b *counting) Commit() error {
	b.commits++
	return b.Backend.Commit()
}

func (b *counting) CommitVotes() error { return b.Commit() }

var errDisk = errors.New("disk full")

type failing struct {
	backend.Backend
	broken   bool
	released bool // since then
}

func (b *failing) fail(s *testNode) {
	done := make(chan bool)
	s.post(func() error {
		b.broken = true
		close(done)
		return nil
	})
	<-done
}

func (b *failing) ReleaseData(ids []backend.DataID, prune bool) error {
	b.released = b.released || b.broken
	return b.Backend.ReleaseData(ids, prune)
}

func (b *failing) Commit() error {
	if b.broken {
		return errDisk
	}
	return b.Backend.Commit()
}

func (b *failing) CommitVotes() error { return b.Commit() }
