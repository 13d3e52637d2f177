package neodoor

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	storagenode "github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// testCluster is a master and a storage in this process.
type testCluster struct {
	t       testing.TB
	masters []proto.Address
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	dir     string

	stopMaster func() // and waits for its end
}

func testLog(t testing.TB) *slog.Logger {
	if os.Getenv("DOOR_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil))
}

func startCluster(t testing.TB) (*testCluster, error) {
	dir, err := os.MkdirTemp("", "door-test-")
	if err != nil {
		return nil, err
	}
	log := testLog(t)
	c := &testCluster{t: t, dir: dir}
	for n := 0; ; n++ {
		// A port that no outgoing connection gets while the master is restarted.
		err := c.startMaster(proto.Address{Host: "127.0.0.1", Port: 10000 + rand.N[uint16](5000)})
		if err == nil {
			break
		}
		if n == 20 {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	db, err := sqlitedb.Open(context.Background(), filepath.Join(dir, "s1.sqlite"), sqlitedb.Options{})
	if err != nil {
		return nil, err
	}
	s, err := storagenode.New(storagenode.Config{
		Cluster: "test", Bind: proto.Address{Host: "127.0.0.1"}, Masters: bootstrap.NewMasters(c.masters...),
		Backend: db, Log: log.With("node", "S1"),
	})
	if err != nil {
		return nil, err
	}
	c.wg.Go(func() {
		if err := errors.Join(s.Run(ctx), db.Close()); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("storage: %v", err)
		}
	})
	return c, nil
}

// startMaster starts a master at an address, which it notes.
func (c *testCluster) startMaster(addr proto.Address) error {
	m, err := master.New(master.Config{
		Cluster: "test", Bind: addr, Partitions: 4, Autostart: 1, Log: testLog(c.t).With("node", "M"),
	})
	if err != nil {
		return err
	}
	c.masters = []proto.Address{m.Addr()}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	c.stopMaster = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			c.t.Errorf("master: %v", err)
		}
	})
	return nil
}

func (c *testCluster) open(ctx context.Context, readOnly bool) (*Cluster, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return Open(ctx, client.Config{Cluster: "test", Masters: c.masters, ReadOnly: readOnly, Log: testLog(c.t).With("node", "C")})
}

// Open implements [zeotest.Database].
func (c *testCluster) Open(ctx context.Context, o *zeotest.Order) (zeo.Storage, func(), error) {
	s, err := c.open(ctx, o.StorageReadOnly)
	if err != nil {
		return nil, nil, err
	}
	return s, func() {
		if err := s.Close(); err != nil {
			c.t.Errorf("closing the client: %v", err)
		}
	}, nil
}

// Remove implements [zeotest.Database].
func (c *testCluster) Remove() {
	c.stopMaster()
	c.cancel()
	c.wg.Wait()
	if err := os.RemoveAll(c.dir); err != nil {
		c.t.Error(err)
	}
}

// Whatever is asked of a cluster that cannot serve tells so: clients are
// disconnected, and come back, instead of getting an error.
func TestOutage(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	ctx := t.Context()
	s, err := c.open(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	begun, err := s.Begin(ctx, zeo.Begin{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open := begun.(*clusterTxn)
	conflict := &txn.ConflictError{OID: 1, Committed: tid.Max, Base: 1}
	for name, call := range map[string]func() error{
		"Watch":      func() error { _, err := s.Watch(ctx, nil); return err },
		"Sync":       func() error { return s.Sync(ctx) },
		"LoadBefore": func() error { _, err := s.LoadBefore(ctx, 1, tid.Max); return err },
		"LoadAt":     func() error { _, err := s.LoadAt(ctx, 1, 1); return err },
		"Revisions":  func() error { _, err := s.Revisions(ctx, 1, 1); return err },
		"UndoLog":    func() error { _, err := s.UndoLog(ctx, 0, 1, func(*txn.Info) bool { return true }); return err },
		"Changes":    func() error { _, _, err := s.Changes(ctx, 0, 1); return err },
		"NextObject": func() error { _, _, err := s.NextObject(ctx, 0); return err },
		"NewOIDs":    func() error { _, err := s.NewOIDs(ctx, 1); return err },
		"Pack":       func() error { return s.Pack(ctx, tid.Max) },
		"Begin":      func() error { _, err := s.Begin(ctx, zeo.Begin{}); return err },
		"Transactions": func() (err error) {
			for _, err = range s.Transactions(ctx, 0, tid.Max) {
			}
			return err
		},
		"Store":     func() error { return open.Store(ctx, 1, 0, []byte("x")) },
		"Check":     func() error { return open.Check(ctx, 1, 0) },
		"Delete":    func() error { return open.Delete(ctx, 1, 0) },
		"Undo":      func() error { _, err := open.Undo(ctx, 1); return err },
		"Vote":      func() error { _, _, err := open.Vote(ctx); return err },
		"conflicts": func() error { _, err := open.conflicts(ctx, []error{conflict}); return err },
		"Finish":    func() error { _, err := open.Finish(ctx, nil); return err },
	} {
		if err := call(); !errors.Is(err, txn.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// pool starts clusters before they are needed, which takes a second.
type pool struct {
	ready chan *testCluster
	errs  chan error
}

func newPool(t testing.TB) *pool {
	p := &pool{ready: make(chan *testCluster, 2), errs: make(chan error, 1)}
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			c, err := startCluster(t)
			if err != nil {
				p.errs <- err
				return
			}
			s, err := c.open(context.Background(), true) // waits until it is ready
			if err == nil {
				err = s.Close()
			}
			if err != nil {
				c.Remove()
				p.errs <- err
				return
			}
			select {
			case p.ready <- c:
			case <-done:
				c.Remove()
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(done)
		<-stopped
		close(p.ready)
		for c := range p.ready {
			c.Remove()
		}
	})
	return p
}

func (p *pool) create(*zeotest.Order) (zeotest.Database, error) {
	select {
	case c := <-p.ready:
		return c, nil
	case err := <-p.errs:
		return nil, err
	}
}

// What ZEO and ZODB test a remote storage with, over a cluster.
func TestPython(t *testing.T) {
	full := append([]string{
		// NEO collects no garbage.
		"--expect-failure", "testPackAllRevisions",
		"--expect-failure", "testPackWithMultiDatabaseReferences",
		// NEO does not note in transactions that they were packed.
		"--expect-failure", "checkPackUndoLog",
		"--expect-failure", "testTransactionalUndoAfterPack",
		"ZEO.tests.testZEO:FileStorageTests",
	}, zeotest.UndoMerges...)
	p := newPool(t)
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"Full", full},
		{"Msgpack", []string{
			"--msgpack", "--expect-failure", "testPackAllRevisions", "--expect-failure", "testPackWithMultiDatabaseReferences",
			"ZEO.tests.testZEO:ClientConflictResolutionTests",
			"ZEO.tests.testZEO:MappingStorageTests",
		}},
		{"Recovery", []string{
			// NEO collects no garbage.
			"--expect-failure", "testPackWithGCOnDestinationAfterRestore",
			"ZEO.tests.testZEO:FileStorageRecoveryTests",
		}},
		{"Connections", []string{"ZEO.tests.testConnection:FileStorageConnectionTests"}},
		{"Reconnections", []string{
			"ZEO.tests.testConnection:FileStorageReconnectionTests",
			"ZEO.tests.testConnection:FileStorageInvqTests",
			"ZEO.tests.testConnection:FileStorageTimeoutTests",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { zeotest.RunPython(t, zeotest.Python(t), p.create, tt.args...) })
	}
}

// A client that goes through all objects sees those that were there when it began,
// however often that is done.
func TestNewObjectsAreListed(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	s := watch(t, c, time.Minute)
	var want []tid.OID
	for oid := tid.OID(1); oid < 4; oid++ {
		s.commit(t, oid)
		want = append(want, oid)
		var got []tid.OID
		from := tid.OID(0)
		for {
			oid, _, err := s.NextObject(t.Context(), from)
			if errors.Is(err, txn.ErrNoSuchObject) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, oid)
			from = oid + 1
		}
		if !slices.Equal(got, want) {
			t.Errorf("objects %v, want %v", got, want)
		}
	}
}

// What only reads refuses everything else in the words of ZODB.
func TestReadOnly(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	last := watch(t, c, time.Minute).commit(t, 1)
	s, err := c.open(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.Features().ReadOnly {
		t.Error("it does not say that it only reads")
	}
	_, begin := s.Begin(t.Context(), zeo.Begin{})
	_, oids := s.NewOIDs(t.Context(), 1)
	for what, err := range map[string]error{"begin": begin, "new ids": oids, "pack": s.Pack(t.Context(), last)} {
		if !errors.Is(err, txn.ErrReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
