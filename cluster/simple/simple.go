// Package simple runs a whole cluster in one process: a master, storages, an admin. The
// databases are of SQLite, in a directory, or of a database server.
//
// # Invariant
//
// It is a real cluster: the nodes only talk to each other through links, other
// nodes may join, and what is committed is in the databases like anywhere else. A
// directory is used by one process at a time, and never under another cluster
// name than the one it was created with.
package simple

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/vitals"
)

// Defaults of a [Config].
const (
	DefaultName       = "neo"
	DefaultPartitions = 12
	DefaultStorages   = 1
)

// Config configures a [Cluster]. A zero field takes the documented default.
type Config struct {
	Dir        string // where the databases are, created if need be; required
	Name       string // default: the name in the databases, otherwise DefaultName or, of a backup, UPSTREAM-backup
	Partitions int    // of a new database; default: DefaultPartitions
	Storages   int    // default: as many as there are databases, otherwise DefaultStorages
	// Databases are those of the storages, one each, as Adapter understands them. Default: files in Dir.
	Databases []string
	Adapter   string        // of Databases; required with them
	Engine    string        // of Databases; see [adapter.Config]
	Wait      time.Duration // for the server of Databases; see [adapter.Config]
	Replicas  int           // copies beside the first, of a new database

	Master   proto.Address   // where the master listens; default: a free port of 127.0.0.1
	Upstream master.Upstream // the cluster that this one may be a backup of; default: none
	// UpstreamPartitions, if not nil, is asked for the partitions of a new database. See
	// [Partitions].
	UpstreamPartitions func() (int, error)
	Admin              proto.Address // where the admin listens; default: a free port of 127.0.0.1

	// Version is that of the program, for operators. Default: not known.
	Version string

	TLS *tls.Config // default: plain connections
	// Record returns who is told of every packet of a node ("master", "storage1",
	// "admin"). Default: nobody is.
	Record  func(node string) func(sent bool, peer string, id uint32, p proto.Packet)
	Network link.Network // default: TCP
	Log     *slog.Logger // default: discard

	// Open opens the database of a storage, counted from 1, of several, at a path; it may
	// replace what would be opened there. Default: SQLite, or what Adapter says.
	Open func(n, of int, path string, log *slog.Logger) (backend.Backend, error)
}

// Cluster is a cluster in this process.
type Cluster struct {
	cfg       Config
	existing  bool // the databases had a partition table
	databases []backend.Backend
	master    *master.Master
	storages  []*storage.Node
	admin     *admin.Node
	stopping  atomic.Bool
}

// ErrInUse reports that another process uses the directory.
var ErrInUse = errors.New("in use by another process")

// New opens the databases and makes the nodes, which listen at once. A cluster
// that was made must be run.
func New(cfg Config) (*Cluster, error) {
	c := &Cluster{cfg: cfg}
	if c.cfg.Log == nil {
		c.cfg.Log = slog.New(slog.DiscardHandler)
	}
	c.cfg.Log = slog.New(quietHandler{c.cfg.Log.Handler(), &c.stopping})
	if err := c.make(); err != nil {
		// Whatever was made ends at once; that the database of a node which never
		// ran cannot be closed adds nothing to the reason.
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if closeErr := c.Run(ended); closeErr != nil {
			c.cfg.Log.Error("ending the nodes that were made", "err", closeErr)
		}
		return nil, err
	}
	return c, nil
}

func (c *Cluster) make() error {
	if err := os.MkdirAll(c.cfg.Dir, 0o777); err != nil {
		return fmt.Errorf("directory of the databases: %w", err)
	}
	if err := c.openDatabases(); err != nil {
		return err
	}
	cfg := &c.cfg
	if !c.existing && cfg.UpstreamPartitions != nil {
		var err error
		if cfg.Partitions, err = cfg.UpstreamPartitions(); err != nil {
			return err
		}
	}
	if cfg.Partitions == 0 {
		cfg.Partitions = DefaultPartitions
	}
	if !c.existing && cfg.Replicas >= cfg.Storages {
		return fmt.Errorf("%d replicas need at least %d storages", cfg.Replicas, cfg.Replicas+1)
	}
	loopback := proto.Address{Host: "127.0.0.1"}
	for _, a := range []*proto.Address{&cfg.Master, &cfg.Admin} {
		if a.IsZero() {
			*a = loopback
		}
	}
	self := vitals.NewSelf(cfg.Version)
	var err error
	c.master, err = master.New(master.Config{
		Cluster: cfg.Name, Bind: cfg.Master, Partitions: cfg.Partitions, Replicas: cfg.Replicas, Autostart: cfg.Storages, Upstream: cfg.Upstream, Self: self,
		TLS: cfg.TLS, Network: cfg.Network, Log: c.log("master"), Record: c.record("master"),
	})
	if err != nil {
		return fmt.Errorf("master: %w", err)
	}
	for i, db := range c.databases {
		name := fmt.Sprintf("storage%d", i+1)
		of := self
		of.Adapter, of.Database = c.place(i + 1)
		node, err := storage.New(storage.Config{
			Cluster: cfg.Name, Bind: loopback, Masters: bootstrap.NewMasters(c.master.Addr()), Backend: db, Self: of,
			TLS: cfg.TLS, Network: cfg.Network, Log: c.log(name), Record: c.record(name),
		})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		c.storages = append(c.storages, node)
	}
	c.admin, err = admin.New(admin.Config{
		Cluster: cfg.Name, Bind: cfg.Admin, Masters: bootstrap.NewMasters(c.master.Addr()), Self: self,
		TLS: cfg.TLS, Network: cfg.Network, Log: c.log("admin"), Record: c.record("admin"),
	})
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}

func (c *Cluster) log(node string) *slog.Logger { return c.cfg.Log.With("part", node) }

func (c *Cluster) record(node string) func(bool, string, uint32, proto.Packet) {
	if c.cfg.Record == nil {
		return nil
	}
	return c.cfg.Record(node)
}

// openDatabases opens what the directory has, and the databases to be made, and
// finds out the name of the cluster and the number of storages.
func (c *Cluster) openDatabases() error {
	cfg := &c.cfg
	if n := len(cfg.Databases); n > 0 {
		if cfg.Storages != 0 && cfg.Storages != n {
			return fmt.Errorf("%d databases are of as many storages, not of %d", n, cfg.Storages)
		}
		for i := range n {
			if err := c.openDatabase(i+1, n); err != nil {
				return err
			}
		}
		cfg.Storages = n
		return nil
	}
	found := 0
	for ; ; found++ {
		_, err := os.Stat(c.database(found + 1))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("directory of the databases: %w", err)
		}
	}
	// The first database stands for the directory: it is locked before anything
	// else is looked at.
	of := max(found, cfg.Storages, DefaultStorages)
	for n := 1; n <= of; n++ {
		if n > 1 && !c.existing && cfg.Storages > 0 && n > cfg.Storages {
			break // left by a creation that did not get far
		}
		if n > 1 && c.existing && n > found {
			break
		}
		if err := c.openDatabase(n, of); err != nil {
			return err
		}
	}
	if c.existing && cfg.Storages != 0 && cfg.Storages != len(c.databases) {
		return fmt.Errorf("%s has the databases of %d storages, not %d", cfg.Dir, len(c.databases), cfg.Storages)
	}
	cfg.Storages = len(c.databases)
	return nil
}

func (c *Cluster) database(n int) string {
	if len(c.cfg.Databases) > 0 {
		return c.cfg.Databases[n-1]
	}
	return filepath.Join(c.cfg.Dir, fmt.Sprintf("storage%d.sqlite", n))
}

// place returns what operators are told of a database, counted from 1.
func (c *Cluster) place(n int) (kind, database string) {
	kind = adapter.SQLite
	if len(c.cfg.Databases) > 0 {
		kind = c.cfg.Adapter
	}
	return kind, adapter.Place(kind, c.database(n))
}

// openNative opens a database of the kind that the configuration says.
func (c *Cluster) openNative(_, _ int, path string, log *slog.Logger) (backend.Backend, error) {
	cfg := adapter.Config{Adapter: adapter.SQLite, Database: path, Log: log}
	if len(c.cfg.Databases) > 0 {
		cfg.Adapter, cfg.Engine, cfg.Wait = c.cfg.Adapter, c.cfg.Engine, c.cfg.Wait
	}
	return adapter.Open(context.Background(), cfg)
}

func (c *Cluster) openDatabase(n, of int) error {
	path := c.database(n)
	open := c.cfg.Open
	if open == nil {
		open = c.openNative
	}
	db, err := open(n, of, path, c.log(fmt.Sprintf("storage%d", n)))
	where := c.cfg.Dir
	if len(c.cfg.Databases) > 0 {
		path = adapter.Name(c.cfg.Adapter, path)
		where = path
	}
	if errors.Is(err, backend.ErrLocked) {
		return fmt.Errorf("%s: %w", where, ErrInUse)
	}
	if err != nil {
		return err
	}
	c.databases = append(c.databases, db)
	stored, err := db.Config()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if c.cfg.Name == "" {
		c.cfg.Name = stored.Name
	}
	if up := c.cfg.Upstream; c.cfg.Name == "" && up.Backup {
		c.cfg.Name = up.Cluster + "-backup"
	}
	if c.cfg.Name == "" {
		c.cfg.Name = DefaultName
	}
	if stored.Name != "" && stored.Name != c.cfg.Name {
		return fmt.Errorf("%s belongs to cluster %q, not %q", path, stored.Name, c.cfg.Name)
	}
	c.existing = c.existing || stored.PTID.OK
	return nil
}

// Name returns the name of the cluster.
func (c *Cluster) Name() string { return c.cfg.Name }

// Storages returns the number of storages.
func (c *Cluster) Storages() int { return len(c.storages) }

// Existing reports whether the directory had a database before.
func (c *Cluster) Existing() bool { return c.existing }

// Master returns the address of the master.
func (c *Cluster) Master() proto.Address { return c.master.Addr() }

// Admin returns the address of the admin.
func (c *Cluster) Admin() proto.Address { return c.admin.Addr() }

// Nodes returns the nodes, for what watches them.
func (c *Cluster) Nodes() (*master.Master, []*storage.Node, *admin.Node) {
	return c.master, c.storages, c.admin
}

// Dump writes the states of all nodes.
func (c *Cluster) Dump(w io.Writer) {
	c.master.Dump(w)
	for _, s := range c.storages {
		s.Dump(w)
	}
	c.admin.Dump(w)
}

// Run serves until ctx ends or the cluster is stopped by an operator, and then
// returns nil. If a node ends with an error the others are stopped too; one that
// an operator has stopped is merely missing. When it returns all databases are
// closed.
func (c *Cluster) Run(ctx context.Context) error {
	// The master stops first: storages that are merely stopped must not become out
	// of date.
	masterCtx, stopMaster := context.WithCancel(context.WithoutCancel(ctx))
	defer stopMaster()
	defer context.AfterFunc(ctx, func() {
		c.stopping.Store(true)
		stopMaster()
	})()
	others, stopOthers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOthers()

	var errs errorList
	var masterDone, othersDone sync.WaitGroup
	if c.master != nil {
		masterDone.Go(func() { errs.add("master", c.master.Run(masterCtx)) })
	}
	left := make(chan error, len(c.storages)+1)
	start := func(name string, run func(context.Context) error) {
		othersDone.Go(func() {
			err := run(others)
			if others.Err() != nil && errors.Is(err, context.Canceled) {
				err = nil
			}
			errs.add(name, err)
			left <- err
		})
	}
	for i, s := range c.storages {
		start(fmt.Sprintf("storage%d", i+1), s.Run)
	}
	if c.admin != nil {
		start("admin", c.admin.Run)
	}
	ended := make(chan struct{})
	go func() { masterDone.Wait(); close(ended) }()
	running := len(c.storages) + 1
	for serving := true; serving; {
		select {
		case <-ended:
			serving = false
		case err := <-left:
			running--
			if err != nil {
				stopMaster()
				<-ended
				running, serving = 0, false
			}
		}
	}
	if c.master != nil && ctx.Err() == nil {
		waitFor(left, running)
	}
	stopOthers()
	othersDone.Wait()
	for i, db := range c.databases {
		if err := db.Close(); err != nil {
			errs.add(fmt.Sprintf("closing database %d", i+1), err)
		}
	}
	return errs.join()
}

// stopTimeout is how long nodes may take to notice that their cluster has stopped.
const stopTimeout = 5 * time.Second

// waitFor waits until n nodes have ended, or an error, or for stopTimeout.
func waitFor(left <-chan error, n int) {
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	for range n {
		select {
		case err := <-left:
			if err != nil {
				return
			}
		case <-timeout.C:
			return
		}
	}
}

// errorList gathers the errors of several goroutines.
type errorList struct {
	mu   sync.Mutex
	list []error
}

func (l *errorList) add(what string, err error) {
	if err == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, fmt.Errorf("%s: %w", what, err))
}

func (l *errorList) join() error { return errors.Join(l.list...) }

// pollInterval is how often WaitRunning looks.
const pollInterval = 20 * time.Millisecond

// WaitRunning returns once the cluster is RUNNING, which it makes sure of: since
// all nodes are here, no other one is to be waited for. A backup is waited for until it
// is BACKINGUP; if it is RUNNING instead the error is [ErrNotBackup].
func (c *Cluster) WaitRunning(ctx context.Context) error {
	client, err := ctl.Dial(ctx, c.Admin(), link.Config{TLS: c.cfg.TLS, Network: c.cfg.Network})
	if err != nil {
		return fmt.Errorf("waiting for the cluster: %w", err)
	}
	defer client.Close()
	last := "the admin has not found the master yet"
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		state, err := client.ClusterState(ctx)
		var refused *proto.Error
		switch {
		case err == nil && state == proto.Running && c.cfg.Upstream.Backup:
			return ErrNotBackup
		case err == nil && (state == proto.Running || state == proto.BackingUp):
			return nil
		case err == nil:
			last = "it is " + state.String()
			if state == proto.Recovering {
				if err := c.start(ctx, client); err != nil {
					if _, ok := errors.AsType[*ctl.LossError](err); ok {
						return fmt.Errorf("the cluster waits for the operator: %w", err)
					}
					last += ", " + err.Error()
				}
			}
		case !errors.As(err, &refused):
			return fmt.Errorf("waiting for the cluster: %w", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the cluster: %w: %s", context.Cause(ctx), last)
		}
	}
}

// start orders a cluster whose storages are all there to leave recovery.
func (c *Cluster) start(ctx context.Context, client *ctl.Client) error {
	nodes, err := client.Nodes(ctx, proto.Some(proto.Storage))
	if err != nil {
		return err
	}
	pending := 0
	for _, n := range nodes {
		if n.State == proto.NodePending || n.State == proto.NodeRunning {
			pending++
		}
	}
	if pending < len(c.storages) || !c.existing {
		return nil // a new one starts by itself
	}
	_, err = client.Start(ctx)
	return err
}
