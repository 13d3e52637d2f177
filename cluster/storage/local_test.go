package storage

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// working is a database with work of its own.
type working struct {
	backend.Backend
	begun chan context.Context
	end   chan error
}

func (b *working) Run(ctx context.Context) error {
	b.begun <- ctx
	select {
	case err := <-b.end:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *working) Progress() importing.Report {
	return importing.Report{State: importing.Copying, Last: 7, End: 14}
}

func (b *working) Order(importing.Order) error { return nil }

// The work of a database lasts as long as an operation, is reported, and when it
// fails the node goes on to serve.
func TestWorkOfDatabase(t *testing.T) {
	r := newRig(t)
	b := &working{begun: make(chan context.Context, 9), end: make(chan error)}
	s := r.start(1, backendtest.NewMemory(), func(c *Config) {
		b.Backend = c.Backend
		c.Backend = b
	})
	s.initialize(1, table("U", "U"))
	select {
	case <-b.begun:
		t.Fatal("the work begins before the operation")
	default:
	}
	s.operate()
	<-b.begun
	eventually(t, "the dump tells of the work", func() bool { // it does not wait for long
		var dump strings.Builder
		s.Dump(&dump)
		return strings.Contains(dump.String(), "import: copying")
	})
	b.end <- errors.New("the source is gone")
	c := s.client(1)
	call[*proto.AnswerStoreObject](c, store(10, 1, 0, "x"))
	s.finish(c, 10, 1)
	if a := call[*proto.AnswerObject](c, &proto.AskObject{OID: 1}); string(a.Data) != "x" {
		t.Errorf("after the work has failed: %+v", a)
	}

	s.master.Send(&proto.StopOperation{})
	s.operate()
	ctx := <-b.begun
	s.cancel()
	if err := s.wait(); err != nil {
		t.Error(err)
	}
	if ctx.Err() == nil {
		t.Error("the node has ended before the work")
	}
}

// A panic in the work of a database ends the node.
func TestWorkOfDatabasePanics(t *testing.T) {
	r := newRig(t)
	b := &panicking{}
	s := r.start(1, backendtest.NewMemory(), func(c *Config) {
		b.Backend = c.Backend
		c.Backend = b
	})
	s.initialize(1, table("U", "U"))
	s.operate()
	if err := s.wait(); err == nil || !strings.Contains(err.Error(), "a state that cannot be") {
		t.Errorf("Run returned %v", err)
	}
}

type panicking struct{ backend.Backend }

func (*panicking) Run(context.Context) error   { panic("a state that cannot be") }
func (*panicking) Progress() importing.Report  { return importing.Report{} }
func (*panicking) Order(importing.Order) error { return nil }

// elsewhere is a database that reads objects from 100 on elsewhere, from where nothing comes while hanging is set.
type elsewhere struct {
	backend.Backend
	hanging chan struct{} // closed: it answers
	ended   chan error    // of reads and questions that have hung
	broken  atomic.Bool

	mu      sync.Mutex
	learned map[tid.OID]bool
}

func newElsewhere(b backend.Backend) *elsewhere {
	return &elsewhere{Backend: b, hanging: make(chan struct{}), ended: make(chan error, 100), learned: map[tid.OID]bool{}}
}

// wait waits for the other end.
func (b *elsewhere) wait(ctx context.Context, oid tid.OID) error {
	if oid < 100 {
		return nil
	}
	select {
	case <-b.hanging:
		return nil
	case <-ctx.Done():
		b.ended <- ctx.Err()
		return ctx.Err()
	}
}

func (b *elsewhere) LastObjectTID(ctx context.Context, oid tid.OID) (proto.Opt[tid.TID], error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if oid >= 100 && !b.learned[oid] {
		return proto.Opt[tid.TID]{}, backend.ErrNotPrepared
	}
	delete(b.learned, oid) // it may be forgotten at any time
	return b.Backend.LastObjectTID(ctx, oid)
}

func (b *elsewhere) Prepare(ctx context.Context, oid tid.OID) error {
	if err := b.wait(ctx, oid); err != nil {
		return err
	}
	if b.broken.Load() {
		return errors.New("the source is gone")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.learned[oid] = true
	return nil
}

func (b *elsewhere) GetObject(ctx context.Context, oid tid.OID, at, before proto.Opt[tid.TID]) (backend.Object, error) {
	if err := b.wait(ctx, oid); err != nil {
		return backend.Object{}, err
	}
	return b.Backend.GetObject(ctx, oid, at, before)
}

func (b *elsewhere) GetObjects(ctx context.Context, keys []backend.ObjectKey, f func(int, *backend.Object, error) bool) {
	backend.GetEach(ctx, b, keys, f)
}

func (b *elsewhere) UndoHistory(ctx context.Context, oid tid.OID, undone tid.TID) (backend.UndoHistory, error) {
	if err := b.wait(ctx, oid); err != nil {
		return backend.UndoHistory{}, err
	}
	return b.Backend.UndoHistory(ctx, oid, undone)
}

func (b *elsewhere) CheckTIDs(ctx context.Context, partition, n int, min, max tid.TID) (*proto.AnswerCheckTIDRange, error) {
	if err := b.wait(ctx, tid.OID(max)); err != nil {
		return nil, err
	}
	return b.Backend.CheckTIDs(ctx, partition, n, min, max)
}

// answered returns the next packet that a client receives, which must be of type T.
func answered[T proto.Packet](c *testClient) T {
	c.t.Helper()
	select {
	case ev := <-c.events:
		p, ok := ev.Packet.(T)
		if !ok {
			c.t.Fatalf("got %T %+v, want %T (%v)", ev.Packet, ev.Packet, p, ev.Err)
		}
		return p
	case <-time.After(patience):
		c.t.Fatal("no answer")
		panic("not reached")
	}
}

// While the other end of a database that is not local hangs, only what needs it waits: not the
// master, no other client, and of the same client no other store, nor its commit.
func TestSourceHangs(t *testing.T) {
	r := newRig(t)
	var b *elsewhere
	s := r.start(1, backendtest.NewMemory(), func(c *Config) {
		b = newElsewhere(c.Backend)
		c.Backend = b
	})
	s.initialize(1, table("U", "U"))
	s.master.Ask(&proto.AskCheckTIDRange{Length: 1, Max: 100}, nil) // of the ends, before the operation
	s.barrier()
	s.operate()

	// Its checks.
	c := s.client(1)
	c.Ask(store(10, 100, 0, "a"), nil)
	c.Ask(&proto.AskCheckCurrentSerial{TTID: 10, OID: 101}, nil)
	call[*proto.Pong](c, &proto.Ping{})
	call[*proto.AnswerStoreObject](c, store(10, 1, 0, "b"))
	if got := code(c, &proto.AskStoreTransaction{TTID: 10}); got != "PROTOCOL_ERROR" {
		t.Errorf("a vote without all stores is answered %s", got)
	}
	c = s.client(1)
	c.Ask(store(12, 100, 0, "a"), nil)
	call[*proto.AnswerStoreObject](c, store(12, 1, 0, "b"))

	// A load that has waited for the end of a commit, and one that has not.
	d := s.client(2)
	d.Ask(store(14, 102, 0, "x"), nil)
	b.mu.Lock()
	b.learned[102] = true
	b.mu.Unlock()
	if err := post(s, func() error { return s.session.txns.Prepared(102, true) }); err != nil {
		t.Fatal(err)
	}
	answered[*proto.AnswerStoreObject](d)
	call[*proto.AnswerStoreTransaction](d, &proto.AskStoreTransaction{TTID: 14, OIDs: []tid.OID{102}})
	s.master.Ask(&proto.AskLockInformation{TTID: 14, TID: 14}, nil)
	await[*proto.AnswerInformationLocked](s)
	e := s.client(3)
	e.Ask(&proto.AskObject{OID: 102}, nil)
	s.barrier()
	eventually(t, "the load waits", func() (waits bool) {
		post(s, func() error { _, n := s.session.txns.Len(); waits = n >= 2; return nil })
		return waits
	})
	s.master.Send(&proto.NotifyUnlockInformation{TTID: 14})
	s.barrier()

	// Others are served.
	d = s.client(2)
	s.commit(d, 16, 0, "y", 2)
	if a := call[*proto.AnswerObject](d, &proto.AskObject{OID: 2}); string(a.Data) != "y" {
		t.Errorf("got %+v", a)
	}
	d.Ask(&proto.AskObjectUndoSerial{TTID: 18, LastTID: 17, Undone: 14, OIDs: []tid.OID{102}}, nil)
	call[*proto.Pong](d, &proto.Ping{})

	// One client waits for a load, and goes on with others.
	f := s.client(2)
	f.Ask(&proto.AskObject{OID: 102, At: proto.Some(tid.TID(14))}, nil)
	if a := call[*proto.AnswerObject](f, &proto.AskObject{OID: 2}); string(a.Data) != "y" {
		t.Errorf("beside a load that hangs: %+v", a)
	}
	call[*proto.AnswerStoreObject](f, store(17, 3, 0, "z"))
	f.Close()
	s.lostRead(b)

	// What is asked over a connection that has ended is asked no more.
	d.Close()
	s.lostRead(b)

	// The other end answers again.
	close(b.hanging)
	if a := answered[*proto.AnswerStoreObject](c); a.Conflict.OK {
		t.Errorf("the store is answered %+v", a)
	}
	if a := answered[*proto.AnswerObject](e); string(a.Data) != "x" {
		t.Errorf("the load is answered %+v", a)
	}
	await[*proto.AnswerCheckTIDRange](s)
	s.finish(c, 12, 1, 100)

	// It is gone.
	b.broken.Store(true)
	if a := call[*proto.AnswerStoreObject](c, store(20, 104, 0, "z")); a.Conflict != proto.Some(tid.Zero) {
		t.Errorf("a store that cannot be checked is answered %+v", a)
	}
	s.finish(c, 20, 104) // another replica has checked it
	if a := call[*proto.AnswerObject](c, &proto.AskObject{OID: 104}); string(a.Data) != "z" {
		t.Errorf("a store that could not be checked is read as %+v", a)
	}
}

// lostRead waits for the end of a read of a client that is lost.
func (s *testNode) lostRead(b *elsewhere) {
	t := s.rig.t
	t.Helper()
	select {
	case err := <-b.ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the read of a lost client ends with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the read of a lost client goes on")
	}
}

// The end of the operation, and of the node, does not wait for a source that hangs.
func TestSourceHangsAtTheEnd(t *testing.T) {
	r := newRig(t)
	s := r.start(1, backendtest.NewMemory(), func(c *Config) { c.Backend = newElsewhere(c.Backend) })
	s.initialize(1, table("U", "U"))
	s.operate()
	c := s.client(1)
	c.Ask(store(10, 100, 0, "a"), nil)
	c.Ask(&proto.AskObjectUndoSerial{TTID: 10, LastTID: 9, Undone: 8, OIDs: []tid.OID{100}}, nil)
	call[*proto.Pong](c, &proto.Ping{})
	c.Ask(&proto.AskObject{OID: 100}, nil)
	s.master.Send(&proto.StopOperation{})
	s.master.Ask(&proto.AskCheckTIDRange{Length: 1, Max: 100}, nil)
	s.barrier()
	s.operate()
	c = s.client(1)
	c.Ask(store(10, 100, 0, "a"), nil)
	call[*proto.Pong](c, &proto.Ping{})
	s.cancel()
	if err := s.wait(); err != nil {
		t.Error(err)
	}
}

// post lets the goroutine of a node do something, and waits for it.
func post(s *testNode, f func() error) error {
	done := make(chan error, 1)
	s.post(func() error {
		done <- f()
		return nil
	})
	return <-done
}
