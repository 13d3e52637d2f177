package zeo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// tap gives access to the watcher of a storage.
type tap struct {
	*zeotest.Door
	w zeo.Watcher
}

func (p *tap) Watch(ctx context.Context, w zeo.Watcher) (tid.TID, error) {
	p.w = w
	return p.Door.Watch(ctx, w)
}

func TestStorageOutOfService(t *testing.T) {
	m := zeotest.NewMemory()
	p := &tap{Door: m.Door()}
	s := serve(t, m, func(cfg *zeo.Config) { cfg.Storages["1"] = p })
	c := s.client(false)
	at := commit(t, c, zeotest.Store{OID: 1, Data: []byte("x")})
	p.w.Lost()
	if _, err := c.ReadFrame(); err != io.EOF && !errors.Is(err, net.ErrClosed) && err == nil {
		t.Errorf("connection after the loss: %v", err)
	}
	if d, err := zeotest.Register(s.addr, false); err == nil {
		d.Close()
		t.Error("a client can register while the storage is out of service")
	}
	p.w.Back(at + 10) // something was missed
	d := s.client(false)
	if v, err := d.Call("lastTransaction"); err != nil || !bytes.Equal(v.([]byte), (at+10).Bytes()) {
		t.Errorf("last transaction %x, %v", v, err)
	}
	if v, err := d.Call("getInvalidations", at); v != nil || err != nil {
		t.Errorf("what was missed is not known, but %v, %v was answered", v, err)
	}
}

// hanging answers no load until its context ends.
type hanging struct {
	*tap
	loads atomic.Int32
}

func (h *hanging) Features() zeo.Features {
	f := h.Door.Features()
	f.Local = false
	return f
}

func (h *hanging) wait(ctx context.Context) error {
	h.loads.Add(1)
	<-ctx.Done()
	return fmt.Errorf("load: %w", ctx.Err())
}

func (h *hanging) LoadBefore(ctx context.Context, _ tid.OID, _ tid.TID) (txn.Revision, error) {
	return txn.Revision{}, h.wait(ctx)
}

func (h *hanging) LoadAt(ctx context.Context, _ tid.OID, _ tid.TID) (txn.Revision, error) {
	return txn.Revision{}, h.wait(ctx)
}

// A client that waits for a server that is stopped is disconnected, and gets no error: another
// server may have the answer.
func TestCloseTellsNoErrors(t *testing.T) {
	m := zeotest.NewMemory()
	h := &hanging{tap: &tap{Door: m.Door()}}
	server, err := zeo.New(t.Context(), zeo.Config{Storages: map[string]zeo.Storage{"1": h}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	var clients sync.WaitGroup
	const n = 30
	for i := range n {
		c, err := zeotest.Register(l.Addr().String(), i%2 == 0)
		if err != nil {
			t.Fatal(err)
		}
		clients.Go(func() {
			defer c.Close()
			var err error
			switch i % 3 {
			case 0:
				_, _, _, err = c.LoadBefore(1, tid.Max)
			case 1:
				_, err = c.Call("loadSerial", tid.OID(1), tid.TID(1))
			case 2:
				_, err = c.Call("getTid", tid.OID(1))
			}
			if r, ok := errors.AsType[*zeotest.RemoteError](err); ok || err == nil {
				t.Errorf("client %d: %v", i, r)
			}
		})
	}
	for h.loads.Load() < n {
		time.Sleep(time.Millisecond)
	}
	server.Close()
	clients.Wait()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// However much a client waits for, nothing is left of it once the storage is out of
// service.
func TestLostStorageEndsWhatWaits(t *testing.T) {
	m := zeotest.NewMemory()
	h := &hanging{tap: &tap{Door: m.Door()}}
	s := serve(t, m, func(cfg *zeo.Config) { cfg.Storages["1"] = h })
	c := s.client(false)
	for i := range 50 { // more than are carried out at the same time
		oid := tid.OID(i)
		if err := c.SendAs(zeotest.Tuple{oid.Bytes(), tid.Max.Bytes()}, false, "loadBefore", oid, tid.Max); err != nil {
			t.Fatal(err)
		}
	}
	s.eventually("loads wait", func() bool { return h.loads.Load() == 8 })
	time.Sleep(20 * time.Millisecond) // for the reader to wait as well
	h.w.Lost()
	if m, err := c.Read(); err == nil {
		t.Errorf("got %v", m)
	}
	s.eventually("the connection has ended", func() bool { return s.log.Contains("msg=disconnected") })
}

// iterating tells whether an iteration over transactions is under way.
type iterating struct {
	*hanging
	under atomic.Int32
}

func (s *iterating) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		s.under.Add(1)
		defer s.under.Add(-1)
		s.Door.Transactions(ctx, after, upTo)(yield)
	}
}

// An iteration that its client lets go of ends, even if the connection ends first.
func TestIterationEndsWithItsConnection(t *testing.T) {
	m := zeotest.NewMemory()
	commit(t, serve(t, m, nil).client(false), zeotest.Store{OID: 1, Data: []byte("x")})
	st := &iterating{hanging: &hanging{tap: &tap{Door: m.Door()}}}
	s := serve(t, m, func(cfg *zeo.Config) { cfg.Storages["1"] = st })
	c := s.client(false)
	id, err := c.Call("iterator_start", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := c.Call("iterator_next", id); v == nil || err != nil || st.under.Load() != 1 {
		t.Fatalf("first transaction %v, %v, %d iterations", v, err, st.under.Load())
	}
	const most = 16 // calls at the same time
	for range most {
		if _, err := c.Send(false, "getTid", tid.OID(1)); err != nil {
			t.Fatal(err)
		}
	}
	s.eventually("calls wait", func() bool { return st.loads.Load() == most })
	if err := c.Async("iterator_gc", zeotest.List{id}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // for the reader to wait as well
	st.w.Lost()
	s.eventually("the connection has ended", func() bool { return s.log.Contains("msg=disconnected") })
	s.eventually("the iteration has ended", func() bool { return st.under.Load() == 0 })
}

// Clients that only read never tell which iterations they do not use any more: those
// used least end.
func TestForgottenIterations(t *testing.T) {
	m := zeotest.NewMemory()
	w := serve(t, m, nil).client(false)
	for oid := range tid.OID(20) {
		commit(t, w, zeotest.Store{OID: oid, Data: []byte("x")})
	}
	st := &iterating{hanging: &hanging{tap: &tap{Door: m.Door()}}}
	c := serve(t, m, func(cfg *zeo.Config) { cfg.Storages["1"] = st }).client(false)
	start := func() any {
		t.Helper()
		id, err := c.Call("iterator_start", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	next := func(id any) tid.TID {
		t.Helper()
		v, err := c.Call("iterator_next", id)
		if err != nil {
			t.Fatal(err)
		}
		return tid.FromBytes(v.(zeotest.Tuple)[0].([]byte))
	}
	used, first := start(), start()
	for n := range 1500 {
		if n%100 == 0 {
			next(used)
		}
		id := start()
		at := next(id)
		if _, err := c.Call("iterator_record_start", id, at); err != nil {
			t.Fatal(err)
		}
	}
	next(used)
	_, err := c.Call("iterator_next", first)
	wantClass(t, err, "builtins.KeyError")
	// The others are parked.
	if n := st.under.Load(); n > 8 {
		t.Errorf("%d iterations are under way", n)
	}
}

// A client that asks for much, reads nothing and goes leaves nothing behind.
func TestGoneReader(t *testing.T) {
	m := zeotest.NewMemory()
	commit(t, serve(t, m, nil).client(false), zeotest.Store{OID: 1, Data: make([]byte, 1<<20)})
	st := &remote{m.Door()}
	for range 20 {
		s := serve(t, m, func(cfg *zeo.Config) { cfg.Storages["1"] = st })
		c := s.client(false)
		load := zeotest.Tuple{tid.OID(1), tid.Max}
		for range 200 {
			if err := c.SendAs(load, false, "loadBefore", load...); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.ReadFrame(); err != nil {
			t.Fatal(err)
		}
		c.Close()
		s.eventually("the connection has ended", func() bool { return s.log.Contains("msg=disconnected") })
	}
}

// A client that reads is not dropped for what it has asked for, however big that is.
func TestBigAnswersAreNoReasonToDrop(t *testing.T) {
	m := zeotest.NewMemory()
	other := serve(t, m, nil).client(false)
	const loads = 8
	data := make([]byte, 4<<20)
	for oid := range tid.OID(loads) {
		commit(t, other, zeotest.Store{OID: oid, Data: data})
	}
	st := &together{remote: remote{m.Door()}}
	st.loads.Add(loads)
	s := serve(t, m, func(cfg *zeo.Config) {
		cfg.Storages["1"] = st
		cfg.OutputLimit = 8 << 20
	})
	c := s.client(true)
	for oid := range tid.OID(loads) {
		if err := c.SendAs(zeotest.Tuple{oid, tid.Max}, false, "loadBefore", oid, tid.Max); err != nil {
			t.Fatal(err)
		}
	}
	st.loads.Wait()
	time.Sleep(100 * time.Millisecond) // for the answers to wait for the client
	for oid := range tid.OID(3) {
		commit(t, other, zeotest.Store{OID: 100 + oid, Data: []byte("x")})
	}
	for answers, announced := 0, 0; answers < loads || announced < 3; {
		m, err := c.Read()
		if err != nil {
			t.Fatalf("after %d answers and %d announcements: %v", answers, announced, err)
		}
		if m.Name == ".reply" {
			answers++
		} else {
			announced++
		}
	}
}

// together is a storage whose loads end once all have begun.
type together struct {
	remote
	loads sync.WaitGroup
}

func (s *together) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	s.loads.Done()
	s.loads.Wait()
	return s.remote.LoadBefore(ctx, oid, before)
}

// remote is a storage on another machine, without cache.
type remote struct{ *zeotest.Door }

func (s *remote) Features() zeo.Features {
	f := s.Door.Features()
	f.Local = false
	return f
}

// failing fails some operations.
type failing struct {
	*zeotest.Door
	mu  sync.Mutex
	err error
}

func (f *failing) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *failing) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	if err := f.get(); err != nil {
		return txn.Revision{}, err
	}
	return f.Door.LoadBefore(ctx, oid, before)
}

func (f *failing) Begin(ctx context.Context, b zeo.Begin) (zeo.Txn, error) {
	t, err := f.Door.Begin(ctx, b)
	return &failingTxn{t, f}, err
}

type failingTxn struct {
	zeo.Txn
	f *failing
}

func (t *failingTxn) Finish(ctx context.Context, committed func(tid.TID)) (tid.TID, error) {
	err := t.f.get()
	if err == nil {
		return t.Txn.Finish(ctx, committed)
	}
	if errors.Is(err, errOutOfOrder) { // committed, but it is not known when
		return t.Txn.Finish(ctx, func(tid.TID) {})
	}
	return 0, err
}

var errOutOfOrder = errors.New("committed out of order")

// A storage that cannot serve disconnects its clients, which then try again; other
// errors are answers. No client is told that a commit failed unless it did.
func TestStorageFails(t *testing.T) {
	m := zeotest.NewMemory()
	f := &failing{Door: m.Door()}
	s := serve(t, m, func(cfg *zeo.Config) { cfg.Storages["1"] = f })
	fail := func(err error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.err = err
	}
	ended := func(err error) bool {
		_, remote := errors.AsType[*zeotest.RemoteError](err)
		return err != nil && !remote
	}
	c := s.client(false)
	at := commit(t, c, zeotest.Store{OID: 1, Data: []byte("x")})

	fail(errors.New("disk on fire"))
	_, _, _, err := c.LoadBefore(1, tid.Max)
	wantClass(t, err, "ZODB.POSException.StorageError")
	_, err = c.Commit(zeotest.Store{OID: 1, Base: at, Data: []byte("y")})
	wantClass(t, err, "ZODB.POSException.StorageError")
	if m.Busy() {
		t.Fatal("the storage keeps what could not be finished")
	}

	fail(fmt.Errorf("no master: %w", txn.ErrUnavailable))
	if _, _, _, err = c.LoadBefore(1, tid.Max); !ended(err) {
		t.Errorf("load without database: %v", err)
	}
	c = s.client(true)
	if _, err = c.Commit(zeotest.Store{OID: 1, Base: at, Data: []byte("y")}); !ended(err) {
		t.Errorf("commit without database: %v", err)
	}
	fail(fmt.Errorf("gone: %w", txn.ErrUnknownOutcome))
	c = s.client(true)
	if _, err = c.Commit(zeotest.Store{OID: 1, Base: at, Data: []byte("y")}); !ended(err) {
		t.Errorf("commit that may or may not be: %v", err)
	}

	// The commit is found in what the storage lists, and announced in its order.
	other := s.client(true)
	c = s.client(false)
	fail(errOutOfOrder)
	found := commit(t, c, zeotest.Store{OID: 1, Base: at, Data: []byte("z")})
	if _, err := other.Call("ping"); err != nil || len(other.Notices) != 1 || other.Notices[0].Name != "invalidateTransaction" {
		t.Errorf("the others are told %v, %v", other.Notices, err)
	}
	if v, err := other.Call("lastTransaction"); err != nil || !bytes.Equal(v.([]byte), found.Bytes()) {
		t.Errorf("last transaction %x, %v, want %v", v, err, found)
	}
}
