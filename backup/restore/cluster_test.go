package restore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

// run runs a cluster until the function that it returns is called.
func run(t *testing.T, cfg simple.Config) (*client.Client, func()) {
	t.Helper()
	c, err := simple.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	op, err := ctl.Dial(t.Context(), c.Admin(), link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer op.Close()
	for i := 0; ; i++ {
		s, err := op.ClusterState(t.Context())
		if err == nil && s == proto.Running {
			break
		}
		if i == 2400 {
			t.Fatalf("the cluster is %v (%v), not running", s, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	cl, err := client.Open(t.Context(), client.Config{Cluster: cfg.Name, Masters: []proto.Address{c.Master()}})
	if err != nil {
		t.Fatal(err)
	}
	end := func() {
		if !stopped {
			if err := cl.Close(); err != nil {
				t.Error(err)
			}
		}
		stop()
	}
	t.Cleanup(end)
	return cl, end
}

// digests returns what storages say of each cell of the databases in a directory.
func digests(t *testing.T, dir string, nodes, np int) map[int][]string {
	t.Helper()
	all := map[int][]string{}
	for n := range nodes {
		db, err := adapter.Open(t.Context(), adapter.Config{Adapter: adapter.SQLite, Database: filepath.Join(dir, fmt.Sprintf("storage%d.sqlite", n+1))})
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := db.Config()
		if err != nil {
			t.Fatal(err)
		}
		cells, err := db.Cells()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cells {
			if c.State != proto.UpToDate {
				t.Errorf("node %v: cell of partition %d on %v is %v", cfg.ID, c.Partition, c.ID, c.State)
			}
			if c.ID != cfg.ID {
				continue
			}
			trans, err := db.CheckTIDs(t.Context(), c.Partition, 1e6, 0, tid.Max)
			if err != nil {
				t.Fatal(err)
			}
			objs, err := db.CheckSerials(t.Context(), c.Partition, 1e6, 0, tid.Max, 0)
			if err != nil {
				t.Fatal(err)
			}
			all[c.Partition] = append(all[c.Partition], fmt.Sprintf("%+v %+v", *trans, *objs))
		}
		packed, err := db.PackedIDs(true)
		if err != nil {
			t.Fatal(err)
		}
		own := 0
		for _, c := range cells {
			if c.ID == cfg.ID {
				own++
			}
		}
		if len(packed) != own {
			t.Errorf("node %v has packs of %d cells, want %d", cfg.ID, len(packed), own)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(all) != np {
		t.Errorf("%d partitions, want %d", len(all), np)
	}
	return all
}

// Cluster and tables have the history of the source at any TID. Storages that are started
// on the tables serve it, and have the digests of a cluster to which it was copied.
func TestClusterAndTables(t *testing.T) {
	const np, nodes, replicas = 5, 3, 1
	for seed := range max(*seeds/6, 1) {
		r := rand.New(rand.NewPCG(uint64(seed), 4))
		s := newSample(t, r, 60, true)
		repo := repository(t, memstore.New(memstore.Options{}), r, s.list)
		f, err := fsformat.Open(s.path, fsformat.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, at := range []tid.TID{0, s.list[41].TID + 1} {
			src := source(repo, at)
			upTo := src.at()
			same := func(what string, cl *client.Client, how exporter.CompareOptions) {
				t.Helper()
				for d, err := range exporter.Compare(t.Context(), f, cl, 0, upTo, how, nil) {
					t.Fatalf("%s at %v: %v %v", what, at, d, err)
				}
			}
			dirs := [2]string{t.TempDir(), t.TempDir()}
			cl, stop := run(t, simple.Config{Dir: dirs[0], Name: "restored", Partitions: np, Storages: nodes, Replicas: replicas})
			appender := func() exporter.Appender { return cl.NewAppender(t.Context(), client.AppenderOptions{}) }
			res, err := src.ToCluster(t.Context(), cl, appender, ClusterOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if !res.Compared || res.Last > upTo {
				t.Errorf("cluster: %+v", res)
			}
			same("cluster", cl, exporter.CompareOptions{AnyStatus: true, AnyOrder: true})
			if _, err := src.ToCluster(t.Context(), cl, appender, ClusterOptions{}); !errors.Is(err, ErrNotEmpty) {
				t.Errorf("not empty: %v", err)
			}
			if res, err := src.ToCluster(t.Context(), cl, appender, ClusterOptions{Append: true}); err != nil || res.Resumed != res.Last {
				t.Errorf("again: %+v, %v", res, err)
			}
			stop()

			res, err = src.ToTables(t.Context(), TablesOptions{Cluster: "restored", Partitions: np, Replicas: replicas, Nodes: nodes, Dir: dirs[1]})
			if err != nil {
				t.Fatal(err)
			}
			if !res.Compared || res.Last > upTo {
				t.Errorf("tables: %+v", res)
			}
			want, got := digests(t, dirs[0], nodes, np), digests(t, dirs[1], nodes, np)
			for p := range np {
				for _, d := range got[p] {
					if d != want[p][0] || len(got[p]) != replicas+1 {
						t.Errorf("partition %d: %v, want %v", p, got[p], want[p])
					}
				}
			}
			cl, stop = run(t, simple.Config{Dir: dirs[1], Name: "restored"})
			same("tables", cl, exporter.CompareOptions{AnyOrder: true})
			x, err := cl.Begin(t.Context(), client.BeginOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := x.Store(t.Context(), 12345, 0, []byte("new")); err != nil {
				t.Fatal(err)
			}
			if _, err := x.Vote(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := x.Finish(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			stop()
		}
	}
}

// A restore into a cluster that is interrupted, by the repository or by the cluster, goes on where it
// was.
func TestClusterInterrupted(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	s := newSample(t, r, 150, true)
	mem := memstore.New(memstore.Options{})
	repo := repository(t, mem, r, s.list)
	cl, _ := run(t, simple.Config{Dir: t.TempDir(), Name: "restored", Partitions: 3})
	var last tid.TID
	for n := 3; ; n += 1 + r.IntN(4) {
		f := storetest.FailAt(mem, n, storetest.Fault{Err: storetest.ErrFault})
		failing, err := backup.Open(t.Context(), backup.Config{Store: f, Trusted: repo.Trusted})
		if err != nil {
			t.Fatal(err)
		}
		src := source(repo, 0)
		src.Repo, src.Fetch.Parallel = failing, 1
		src.Keys = failing.Unlock()
		if repo.Identity != nil {
			src.Keys = failing.Unlock(repo.Identity)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stop := Progress(nil)
		if n%2 == 0 {
			stop = func(p Phase, at tid.TID, done, total int64) {
				if p == Writing && at > last && r.IntN(8) == 0 {
					cancel()
				}
			}
		}
		_, err = src.ToCluster(t.Context(), cl, func() exporter.Appender { return cl.NewAppender(ctx, client.AppenderOptions{Window: 8}) }, ClusterOptions{Append: true, Progress: stop})
		cancel()
		if err == nil {
			break
		}
		if !errors.Is(err, storetest.ErrFault) && !errors.As(err, new(*exporter.InterruptedError)) {
			t.Fatal(err)
		}
		if last, err = cl.LastTID(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	f, err := fsformat.Open(s.path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d, err := range exporter.Compare(t.Context(), f, cl, 0, tid.Max, exporter.CompareOptions{AnyStatus: true, AnyOrder: true}, nil) {
		t.Fatal(d, err)
	}
}

// Tables of different nodes may be written by different processes, each interrupted anywhere. No node
// starts on tables that are not complete.
func TestTablesInterrupted(t *testing.T) {
	const np, nodes = 4, 2
	r := rand.New(rand.NewPCG(3, 5))
	s := newSample(t, r, 80, true)
	repo := repository(t, memstore.New(memstore.Options{}), r, s.list)
	src := source(repo, 0)
	dir := t.TempDir()
	opt := TablesOptions{Cluster: "restored", Partitions: np, Nodes: nodes, Dir: dir}
	for n := 1; n <= nodes; n++ {
		opt := opt
		opt.Only = []int{n}
		path := filepath.Join(dir, fmt.Sprintf("storage%d.sqlite", n))
		for fail := 1; ; fail += 1 + r.IntN(12) {
			opt.Open = func(ctx context.Context, node int) (Tables, error) {
				db, err := adapter.Open(ctx, adapter.Config{Adapter: adapter.SQLite, Database: path, HalfImported: true})
				if err != nil {
					return nil, err
				}
				return &failing{Tables: db.(Tables), left: fail, every: r.IntN(2) == 0}, nil
			}
			opt.Level = 1 + fail%9 // what is written again is not the same
			if _, err := src.ToTables(t.Context(), opt); err == nil {
				break
			} else if !errors.Is(err, errStopped) {
				t.Fatalf("stopped at %d: %v", fail, err)
			}
			if db, err := adapter.Open(t.Context(), adapter.Config{Adapter: adapter.SQLite, Database: path}); err == nil {
				cells, err := db.Cells()
				if err != nil || len(cells) > 0 {
					t.Fatalf("stopped at %d: a node starts on tables that are not complete: %v %v", fail, cells, err)
				}
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
			} else if !errors.Is(err, backend.ErrHalfImported) || !strings.Contains(err.Error(), "restore again") {
				t.Fatal(err)
			}
		}
	}
	cl, stop := run(t, simple.Config{Dir: dir, Name: "restored"})
	defer stop()
	f, err := fsformat.Open(s.path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d, err := range exporter.Compare(t.Context(), f, cl, 0, tid.Max, exporter.CompareOptions{AnyOrder: true}, nil) {
		t.Fatal(d, err)
	}
}

// A restore of several nodes that is stopped after some are complete goes on, up to the same moment. Once
// all are complete, or without those that are not, it is refused.
func TestTablesStoppedBetween(t *testing.T) {
	const np, nodes = 4, 3
	r := rand.New(rand.NewPCG(3, 8))
	s := newSample(t, r, 40, false)
	repo := repository(t, memstore.New(memstore.Options{}), r, s.list)
	for _, stop := range []int{2, 3} {
		dir := t.TempDir()
		opt := TablesOptions{Cluster: "restored", Partitions: np, Replicas: 1, Nodes: nodes, Dir: dir}
		broken := opt
		broken.Open = func(ctx context.Context, node int) (Tables, error) {
			db, err := adapter.Open(ctx, adapter.Config{Adapter: adapter.SQLite, Database: filepath.Join(dir, fmt.Sprintf("storage%d.sqlite", node)), HalfImported: true})
			if err != nil || node != stop {
				return db.(Tables), err
			}
			return &unfinished{db.(Tables)}, nil
		}
		at := s.list[30].TID
		if _, err := source(repo, at).ToTables(t.Context(), broken); !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		alone := opt
		alone.Only = []int{1}
		if _, err := source(repo, at).ToTables(t.Context(), alone); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("stopped at node %d, repeated for node 1 alone: %v", stop, err)
		}
		if _, err := source(repo, 0).ToTables(t.Context(), opt); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), at.String()) {
			t.Errorf("stopped at node %d, repeated up to another moment: %v", stop, err)
		}
		if res, err := source(repo, at).ToTables(t.Context(), opt); err != nil || !res.Compared {
			t.Fatalf("stopped at node %d: %+v %v", stop, res, err)
		}
		if _, err := source(repo, at).ToTables(t.Context(), opt); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("stopped at node %d, repeated once more: %v", stop, err)
		}
		func() {
			cl, stop := run(t, simple.Config{Dir: dir, Name: "restored"})
			defer stop()
			f, err := fsformat.Open(s.path, fsformat.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for d, err := range exporter.Compare(t.Context(), f, cl, 0, at, exporter.CompareOptions{AnyOrder: true}, nil) {
				t.Fatal(d, err)
			}
		}()
	}
}

// unfinished is a database of which the restore is never complete.
type unfinished struct{ Tables }

func (u *unfinished) SetID(proto.NodeID) error { return errStopped }

var errStopped = errors.New("stopped here")

// failing is a database that works for a while.
type failing struct {
	Tables
	left  int
	every bool // each write is durable
}

func (f *failing) count() error {
	if f.left--; f.left < 0 {
		return errStopped
	}
	return nil
}

func (f *failing) AddObject(oid tid.OID, t tid.TID, d proto.ObjectData, from proto.Opt[tid.TID]) error {
	if err := f.count(); err != nil {
		return err
	}
	err := f.Tables.AddObject(oid, t, d, from)
	if f.every && err == nil {
		err = f.Tables.Commit()
	}
	return err
}

func (f *failing) AddTransaction(t tid.TID, m backend.Meta, p *proto.PackState) error {
	if err := f.count(); err != nil {
		return err
	}
	err := f.Tables.AddTransaction(t, m, p)
	if f.every && err == nil { // with progress
		err = errors.Join(f.Tables.SetImportProgress(proto.Some((t - 1).String())), f.Tables.Commit())
	}
	return err
}

func (f *failing) SetID(id proto.NodeID) error {
	if err := f.count(); err != nil {
		return err
	}
	return f.Tables.SetID(id)
}

func (f *failing) SetImportState(s proto.Opt[string]) error {
	if err := f.count(); err != nil {
		return err
	}
	return f.Tables.SetImportState(s)
}

// Tables that are those of a node, or of another restore, stay as they are.
func TestTablesRefused(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 6))
	s := newSample(t, r, 30, false)
	repo := repository(t, memstore.New(memstore.Options{}), r, s.list)
	other := repository(t, memstore.New(memstore.Options{}), r, s.list)
	dir := t.TempDir()
	opt := TablesOptions{Cluster: "c", Partitions: 3, Nodes: 1, Dir: dir}
	path := filepath.Join(dir, "storage1.sqlite")
	half := func(repo *backuptest.Repo) {
		t.Helper()
		opt := opt
		opt.Open = func(ctx context.Context, node int) (Tables, error) {
			db, err := adapter.Open(ctx, adapter.Config{Adapter: adapter.SQLite, Database: path, HalfImported: true})
			if err != nil {
				return nil, err
			}
			return &failing{Tables: db.(Tables), left: 20}, nil
		}
		if _, err := source(repo, s.list[20].TID).ToTables(t.Context(), opt); !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
	}
	half(repo)
	for _, c := range []struct {
		src    *Source
		change func(o *TablesOptions)
		want   error
	}{
		{source(other, 0), func(*TablesOptions) {}, ErrForeign},
		{source(repo, 0), func(o *TablesOptions) { o.Partitions = 4 }, ErrForeign},
		{source(repo, 0), func(o *TablesOptions) { o.Cluster = "d" }, ErrForeign},
		{source(repo, 0), func(o *TablesOptions) { o.Nodes, o.Only = 2, []int{1} }, ErrForeign},
		{source(repo, s.list[2].TID), func(*TablesOptions) {}, ErrForeign},
		{source(repo, 0), func(*TablesOptions) {}, nil}, // goes on, further than it began
		{source(repo, 0), func(*TablesOptions) {}, ErrNotEmpty},
	} {
		o := opt
		c.change(&o)
		if _, err := c.src.ToTables(t.Context(), o); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", o, err, c.want)
		}
	}
	defer func() { freeIn = free }()
	freeIn = func(string) int64 { return 100 }
	opt.Dir = filepath.Join(dir, "new")
	if err := os.Mkdir(opt.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := source(repo, 0).ToTables(t.Context(), opt); !errors.Is(err, ErrSpace) {
		t.Errorf("no space: %v", err)
	}
	for _, o := range []TablesOptions{{}, {Cluster: "c"}, {Cluster: "c", Partitions: 1, Nodes: 1, Replicas: 1, Dir: dir}, {Cluster: "c", Partitions: 1, Nodes: 1, Only: []int{2}, Dir: dir}, {Cluster: "c", Partitions: 1, Nodes: 1}} {
		if _, err := source(repo, 0).ToTables(t.Context(), o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

// What is in the tables is read again and compared.
func TestTablesCompared(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 8))
	s := newSample(t, r, 40, false)
	repo := repository(t, memstore.New(memstore.Options{}), r, s.list)
	for i := range 12 {
		dir := t.TempDir()
		opt := TablesOptions{Cluster: "c", Partitions: 2, Nodes: 1}
		opt.Open = func(ctx context.Context, node int) (Tables, error) {
			db, err := adapter.Open(ctx, adapter.Config{Adapter: adapter.SQLite, Database: filepath.Join(dir, "db"), HalfImported: true})
			if err != nil {
				return nil, err
			}
			return &forgetful{Tables: db.(Tables), n: 3 + 5*(i/2), trans: i%2 == 0}, nil
		}
		if _, err := source(repo, 0).ToTables(t.Context(), opt); !errors.Is(err, ErrDifferent) && !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// forgetful is a database that does not write a row.
type forgetful struct {
	Tables
	n     int
	trans bool
}

func (f *forgetful) AddObject(oid tid.OID, t tid.TID, d proto.ObjectData, from proto.Opt[tid.TID]) error {
	if !f.trans {
		if f.n--; f.n == 0 {
			return nil
		}
	}
	return f.Tables.AddObject(oid, t, d, from)
}

func (f *forgetful) AddTransaction(t tid.TID, m backend.Meta, p *proto.PackState) error {
	if f.trans {
		if f.n--; f.n == 0 {
			m.Description = []byte("x")
		}
	}
	return f.Tables.AddTransaction(t, m, p)
}
