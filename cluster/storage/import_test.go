package storage

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// runner is a database whose work is what a test says.
type runner struct {
	backend.Backend
	report  chan importing.Report // taken by the next Progress
	now     importing.Report
	ordered chan importing.Order
	answer  chan error
}

func (b *runner) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func (b *runner) Order(o importing.Order) error {
	b.ordered <- o
	return <-b.answer
}

// progressing makes Progress safe to call from any goroutine.
type progressing struct {
	*runner
	m chan struct{}
}

func (b progressing) Progress() importing.Report {
	b.m <- struct{}{}
	defer func() { <-b.m }()
	select {
	case b.now = <-b.report:
	default:
	}
	return b.now
}

func newRunner() progressing {
	return progressing{&runner{report: make(chan importing.Report, 1), ordered: make(chan importing.Order), answer: make(chan error)}, make(chan struct{}, 1)}
}

// awaitImport returns the next message of the node about its import.
func awaitImport(s *testNode) *importing.Message {
	s.rig.t.Helper()
	m, ok, err := importing.Parse(await[*proto.NotifyMonitorInformation](s))
	if !ok || err != nil {
		s.rig.t.Fatal(ok, err)
	}
	return m
}

// silentFor lets time pass, in which the node must not send anything but signs of life.
func silentFor(s *testNode, d time.Duration) {
	s.rig.t.Helper()
	time.Sleep(d)
	for {
		select {
		case ev := <-s.events:
			if _, ok := ev.Packet.(*proto.NotifyMonitorInformation); ok {
				s.rig.t.Errorf("unexpected %+v", ev.Packet)
			}
		default:
			return
		}
	}
}

// A storage reports its import to a master that wants it, when something changes, at most
// once a second. It obeys orders while it serves.
func TestImportReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		b := newRunner()
		s := r.start(1, backendtest.NewMemory(), func(c *Config) {
			b.Backend = c.Backend
			c.Backend = b
		})
		s.initialize(1, table("U", "U"))
		silentFor(s, 10*time.Second+reportEvery/4) // a master of the Python implementation never asks
		asked := time.Now()
		s.master.Send((&importing.Message{Topic: importing.Wanted}).Packet())
		if m := awaitImport(s); m.Topic != importing.Reported || m.Report != (importing.Report{}) {
			t.Errorf("%+v", m)
		}
		if d := time.Since(asked); d > reportEvery/4 {
			t.Errorf("the first report came after %v instead of at once", d)
		}
		silentFor(s, 10*time.Second) // nothing has changed
		s.operate()
		want := importing.Report{State: importing.Copying, Last: 7, End: 14, Position: 50, Size: 100, Rate: 1.5, Note: "x"}
		begin := time.Now()
		for n := range 5 {
			want.Position++
			b.report <- want
			if m := awaitImport(s); m.Topic != importing.Reported || m.Report != want {
				t.Errorf("report %d: %+v", n, m)
			}
		}
		if d := time.Since(begin); d < 4*time.Second || d > 6*time.Second {
			t.Errorf("5 reports within %v", d)
		}
		silentFor(s, 10*time.Second)

		// The order takes its time, and another one waits; the node serves.
		pause := importing.Order{Kind: importing.Pause}
		s.master.Send(pause.Packet(1, 5))
		limit := importing.Order{Kind: importing.Limit, Rate: 1 << 20}
		s.master.Send(limit.Packet(1, 6))
		if o := <-b.ordered; o != pause {
			t.Errorf("got %+v", o)
		}
		c := s.client(1)
		call[*proto.AnswerStoreObject](c, store(10, 1, 0, "x"))
		s.finish(c, 10, 1)
		want.State = importing.Paused
		b.report <- want
		b.answer <- nil
		paused := false
		for {
			m := awaitImport(s)
			if m.Topic == importing.Answered {
				if m.Number != 5 || m.Text != "" || !paused {
					t.Errorf("answer %+v, after the report: %v", m, paused)
				}
				break
			}
			paused = m.Report.State == importing.Paused
		}
		if o := <-b.ordered; o != limit {
			t.Errorf("got %+v", o)
		}
		// No more than the node can hold.
		for n := range int64(maxImportOrders + 1) {
			s.master.Send(pause.Packet(1, 100+n))
		}
		if m := awaitImport(s); m.Topic != importing.Answered || m.Number != 100+maxImportOrders || m.Text == "" {
			t.Errorf("answer %+v", m)
		}
		b.answer <- errors.New("it cannot be limited")
		if m := awaitImport(s); m.Topic != importing.Answered || m.Number != 6 || m.Text != "it cannot be limited" {
			t.Errorf("answer %+v", m)
		}
		for n := range int64(maxImportOrders) {
			<-b.ordered
			b.answer <- nil
			if m := awaitImport(s); m.Number != 100+n || m.Text != "" {
				t.Errorf("answer %+v", m)
			}
		}

		// The next master is told when it wants to.
		s.master.Close()
		ask := s.connected()
		if !importing.Understands(ask.Extra) {
			t.Error("a storage that imports does not say so")
		}
		s.initialize(1, table("U", "U"))
		silentFor(s, 10*time.Second)
		s.master.Send((&importing.Message{Topic: importing.Wanted}).Packet())
		if m := awaitImport(s); m.Report != want {
			t.Errorf("%+v", m)
		}
		s.cancel()
		if err := s.wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// A storage without import says nothing of imports, and refuses orders.
func TestNoImport(t *testing.T) {
	r := newRig(t)
	s := r.run(nil)
	s.master.Send((&importing.Message{Topic: importing.Wanted}).Packet())
	s.master.Send((&importing.Order{}).Packet(1, 7))
	if m := awaitImport(s); m.Topic != importing.Answered || m.Number != 7 || m.Text == "" {
		t.Errorf("%+v", m)
	}
	s.master.Close()
	if ask := s.connected(); importing.Understands(ask.Extra) || ask.Extra[importing.Extension] != nil {
		t.Errorf("a storage without import says %v", ask.Extra)
	}
}

// packsLater is a database whose work forbids packs until it is done.
type packsLater struct {
	progressing
	end  chan struct{}
	done atomic.Bool
}

func (b *packsLater) Run(ctx context.Context) error {
	select {
	case <-b.end:
		b.done.Store(true)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *packsLater) PackedIDs(upToDateOnly bool) (map[int]tid.TID, error) {
	if upToDateOnly && !b.done.Load() {
		return nil, backend.ErrNotImplemented
	}
	return b.Backend.PackedIDs(upToDateOnly)
}

// A pack that is ordered while the database has work of its own is executed when that is
// done, in the same period of operation.
func TestPackAfterImport(t *testing.T) {
	r := newRig(t)
	b := &packsLater{progressing: newRunner(), end: make(chan struct{})}
	s := r.run(func(c *Config) {
		b.Backend = c.Backend
		c.Backend = b
	})
	c := s.client(1)
	s.commit(c, 10, 0, "one", 0, 1)
	s.commit(c, 12, 10, "two", 0, 1)
	s.packAt(c, 14, 13)
	s.commit(c, 16, 12, "three", 0)
	s.barrier()
	if got := s.revisions(c, 1); !slices.Equal(got, []tid.TID{12, 10}) {
		t.Errorf("revisions before: %v", got)
	}
	close(b.end)
	s.ordered(1)
	if p := await[*proto.NotifyPackCompleted](s); p.ID != 14 {
		t.Errorf("completed: %+v", p)
	}
	if got := s.revisions(c, 1); !slices.Equal(got, []tid.TID{12}) {
		t.Errorf("revisions after: %v", got)
	}
}

// brokenBy is a database with work of its own that fails, and that can write nothing more if the work has
// met what broke it.
type brokenBy struct {
	progressing
	work    chan error
	commits error // atomic by the order of work and Commit
}

func (b *brokenBy) Run(ctx context.Context) error {
	select {
	case err := <-b.work:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *brokenBy) Commit() error { return errors.Join(b.commits, b.Backend.Commit()) }

// A node ends whose database was broken by its own work, though nothing else is written. One whose work has
// failed for another reason goes on, and begins it again.
func TestWorkBreaksDatabase(t *testing.T) {
	for _, breaks := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			b := &brokenBy{progressing: newRunner(), work: make(chan error)}
			s := r.start(1, backendtest.NewMemory(), func(c *Config) {
				b.Backend = c.Backend
				c.Backend = b
			})
			s.initialize(1, table("U", "U"))
			s.operate()
			synctest.Wait()
			if breaks {
				b.commits = errDisk
				b.work <- errDisk
				if err := s.wait(); !errors.Is(err, errDisk) {
					t.Errorf("Run returned %v", err)
				}
				return
			}
			b.work <- errors.New("a source cannot be read")
			c := s.client(1)
			s.commit(c, 10, 0, "x", 1)
			b.work <- nil // it is begun again
			s.commit(c, 12, 0, "y", 2)
		})
	}
}

// A storage that cannot pack yet says that it has packed nothing: else the master would call
// an order completed when the others have executed it.
func TestPackedNothingYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		s := r.start(1, backendtest.NewMemory(), func(c *Config) { c.Backend = importerLike{c.Backend} })
		s.announce(proto.NodeRunning)
		s.master.Send(&proto.SendPartitionTable{PTID: proto.Some[uint64](1), Rows: table("U", "U")})
		s.master.Ask(&proto.AskLastIDs{}, nil)
		if got := expect[*proto.NotifyPackCompleted](s); got.ID != tid.Zero {
			t.Errorf("%+v", got)
		}
		expect[*proto.AnswerLastIDs](s)
	})
}
