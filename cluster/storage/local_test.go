package storage

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// working is a database with work of its own, and of which not all is local.
type working struct {
	backend.Backend
	begun chan context.Context
	end   chan error

	m       sync.Mutex
	learned map[tid.OID]bool
	asked   int
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

func (b *working) Prepare(_ context.Context, oid tid.OID) {
	b.m.Lock()
	defer b.m.Unlock()
	b.learned[oid] = true
}

func (b *working) LastObjectTID(ctx context.Context, oid tid.OID) (proto.Opt[tid.TID], error) {
	b.m.Lock()
	defer b.m.Unlock()
	if b.asked++; !b.learned[oid] {
		return proto.Opt[tid.TID]{}, backend.ErrNonReadable
	}
	return b.Backend.LastObjectTID(ctx, oid)
}

// The work of a database lasts as long as an operation, is reported, and when it
// fails the node goes on to serve.
func TestWorkOfDatabase(t *testing.T) {
	r := newRig(t)
	b := &working{begun: make(chan context.Context, 9), end: make(chan error), learned: map[tid.OID]bool{}}
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
	var dump strings.Builder
	s.Dump(&dump)
	if !strings.Contains(dump.String(), "import: copying") {
		t.Errorf("the dump says nothing of the work: %s", &dump)
	}
	b.end <- errors.New("the source is gone")
	c := s.client(1)
	call[*proto.AnswerStoreObject](c, store(10, 1, 0, "x"))
	s.finish(c, 10, 1)
	if a := call[*proto.AnswerObject](c, &proto.AskObject{OID: 1}); string(a.Data) != "x" {
		t.Errorf("after the work has failed: %+v", a)
	}
	b.m.Lock()
	if b.asked == 0 || !b.learned[1] {
		t.Errorf("%d checks, prepared: %v", b.asked, b.learned)
	}
	b.m.Unlock()

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
