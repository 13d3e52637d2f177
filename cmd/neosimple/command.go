package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/monitor/metrics"
	"github.com/neozodb/neo/cluster/monitor/page"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/monitored"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/spf13/cobra"
)

type options struct {
	cli.Logging
	cli.TLS
	side.Reading
	dir        string
	source     string // --import
	extend     bool
	backupOf   string
	name       string
	partitions int
	storages   int
	replicas   int
	masters    string
	admin      string
	zeo        string
	adapter    string
	databases  []string
	engine     string
	wait       float64
	quiet      bool
	monitor    monitored.Option
	watched    *metrics.Set
}

func newCommand(env *cli.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "neosimple [options]",
		Short: "Run a small NEO cluster in one process",
		Long: `Run a small NEO cluster in one process, until SIGINT or SIGTERM.

With --dir what is stored stays there: the next start with the same directory goes
on with it. So does one with --adapter MySQL and the same --database, of a server of MariaDB.
Otherwise the directory is a temporary one, removed at the end. With
--import the cluster serves a Data.fs at once, whatever its size, and copies it
while it serves: see "neoctl print import". New transactions are only in the cluster. When all
is copied and compared, the file is no longer needed. A cluster whose copy has not come to
its end needs --import again, and goes on. With more than one storage, --renumber or --strict
everything is copied before anything is served.
` + side.Help + `

With --backup-of it follows another cluster, which goes on to serve, and has a copy of
everything that is committed there. The other cluster may be of the Python implementation.
The number of partitions is that of the other cluster. What the backup has can be read,
and not written, while the other cluster is connected. It stays a backup at the next start, which needs --backup-of again, until
"neoctl set cluster STOPPING_BACKUP" makes it a cluster of its own. With --ca, --cert and
--key the other cluster must have certificates of that authority as well.

Applications that know ZEO need no NEO client: they are served at --zeo, storage
"1". With --ca, --cert and --key they need a certificate of that authority as well.

Once it is running, a line is written to stdout (with --zeo none without zeo=):

  ready name=NAME masters=HOST:PORT admin=HOST:PORT zeo=HOST:PORT` + cli.ExitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.backupOf != "" && cmd.Flags().Changed("partitions") {
				return cli.Usagef("--partitions does not go with --backup-of: a backup has as many as the cluster that it follows")
			}
			if o.quiet {
				o.Logging.Quiet(cmd.Flags())
			}
			return run(cmd.Context(), env, &o)
		},
	}
	fs := cmd.Flags()
	cli.Path(fs, &o.dir, "dir", "d", "", "directory of the databases")
	cli.Path(fs, &o.source, "import", "", "", "Data.fs to begin with")
	cli.Flag(fs, &o.extend, "extend-import", "", "with --import: import what was added to the Data.fs since its import began; only if no client of the cluster has committed")
	cli.Text(fs, &o.backupOf, "backup-of", "", "", backupSyntax+": be a backup of that cluster; HOST:PORT are its masters")
	cli.Text(fs, &o.name, "name", "n", "", fmt.Sprintf("name of the cluster (default that of the directory, or %q, or NAME-backup)", simple.DefaultName))
	fs.IntVarP(&o.partitions, "partitions", "p", simple.DefaultPartitions, "partitions of a new database that is no backup")
	fs.IntVar(&o.storages, "storages", 0, fmt.Sprintf("storages (default those of the directory, or %d)", simple.DefaultStorages))
	fs.IntVarP(&o.replicas, "replicas", "r", 0, "copies beside the first, of a new database")
	cli.Text(fs, &o.masters, "masters", "m", "127.0.0.1:0", "address of the master")
	cli.Text(fs, &o.admin, "admin", "", "127.0.0.1:0", "address of the admin")
	cli.Text(fs, &o.zeo, "zeo", "", "127.0.0.1:0", "address for ZEO clients, or "+noZEO)
	cli.Text(fs, &o.adapter, "adapter", "a", adapter.SQLite, "kind of databases: SQLite, in --dir, or MySQL, which --database names")
	cli.Texts(fs, &o.databases, "database", "", "database of a storage, as neostorage --database; with --adapter MySQL, once for each storage")
	cli.Text(fs, &o.engine, "engine", "e", "", "engine of MySQL: InnoDB or RocksDB (default InnoDB)")
	fs.Float64VarP(&o.wait, "wait", "w", 0, "seconds to wait for the database server, -1: without limit")
	cli.Flag(fs, &o.quiet, "quiet", "q", "only write the line to stdout, and errors")
	o.monitor.AddPageFlags(fs)
	o.Reading.AddFlags(fs)
	o.Logging.AddFlags(fs)
	if !cli.OnTerminal(env) { // as a service; a person is told what matters in words
		o.Logging.Informs(fs)
	}
	o.TLS.AddFlags(fs)
	return cmd
}

// temporary reports that what is stored goes at the end.
func (o *options) temporary() bool { return o.dir == "" && len(o.databases) == 0 }

// check refuses values that make no sense.
func (o *options) check() error {
	switch {
	case o.partitions <= 0:
		return cli.Usagef("--partitions must be more than zero")
	case o.storages < 0:
		return cli.Usagef("--storages must be more than zero")
	case o.replicas < 0:
		return cli.Usagef("--replicas must not be negative")
	case (o.storages > 0 || o.temporary()) && o.replicas >= max(o.storages, simple.DefaultStorages) && o.replicas > 0:
		return cli.Usagef("--replicas %d needs at least --storages %d", o.replicas, o.replicas+1)
	case o.extend && (o.source == "" || o.temporary()):
		return cli.Usagef("--extend-import needs --import and --dir")
	case o.adapter == adapter.SQLite && (len(o.databases) > 0 || o.engine != ""):
		return cli.Usagef("--database and --engine are for --adapter MySQL: databases of SQLite are in --dir")
	case o.adapter == adapter.Importer:
		return cli.Usagef("--adapter Importer: a simple cluster imports with --import")
	case o.adapter != adapter.SQLite && len(o.databases) == 0:
		return cli.Usagef("--adapter %s needs --database, once for each storage", o.adapter)
	case len(o.databases) > 0 && o.dir != "":
		return cli.Usagef("--dir is for SQLite: it does not go with --database")
	case o.backupOf != "" && o.source != "":
		return cli.Usagef("--import does not go with --backup-of: a backup gets everything from the cluster that it follows")
	}
	for _, d := range append([]string{""}, o.databases...) {
		if err := adapter.Check(o.adapter, o.engine, d); err != nil {
			return cli.Usagef("%w", err)
		}
	}
	if o.source != "" {
		if err := side.Files(o.source); err != nil {
			return err
		}
		if _, err := os.Stat(o.source); err != nil {
			return fmt.Errorf("--import: %w", err)
		}
	}
	return nil
}

func run(ctx context.Context, env *cli.Env, o *options) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	cfg, err := o.config(ctx)
	if err != nil {
		return err
	}
	// A port in use must not cost an import.
	zeoPort, err := o.listenZEO(ctx)
	if err != nil {
		return err
	}
	if zeoPort != nil {
		defer zeoPort.Close() // by who serves it, unless the start failed
	}
	if err := o.monitor.Listen(ctx); err != nil {
		return err
	}
	defer o.monitor.Close()
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	defer log.Crashed()
	cfg.Log = log.Logger
	o.watched = metrics.NewSet("starting")
	o.watched.Certificates(cfg.TLS)
	asker := page.NewAsker(link.Config{TLS: cfg.TLS})
	o.monitor.ServePage(o.watched, log.Logger, asker)
	cfg.Record = func(node string) func(bool, string, uint32, proto.Packet) {
		return log.LinkConfig(nil).Record
	}
	if o.dir == "" {
		if cfg.Dir, err = os.MkdirTemp("", "neosimple-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
	}
	dir := cfg.Dir
	if len(o.databases) > 0 {
		var names []string
		for _, d := range o.databases {
			names = append(names, adapter.Name(o.adapter, d))
		}
		dir = strings.Join(names, ", ")
	}
	var b background
	cfg.Open = b.opener(ctx, env, o)
	cluster, err := simple.New(cfg)
	if err != nil {
		return err
	}
	o.watch(cluster)
	asker.Use(cluster.Name(), cluster.Admin())
	log.Node.Identify(cluster.Name(), 0)
	signals, stop := context.WithCancel(ctx)
	wait := log.HandleSignals(signals, cluster.Dump)
	err = serve(ctx, env, o, log, cluster, &b, dir, zeoPort)
	stop()
	wait()
	return err
}

// watch lets the nodes of the cluster be watched.
func (o *options) watch(cluster *simple.Cluster) {
	m, storages, a := cluster.Nodes()
	o.watched.Add(metrics.Master(cluster.Name(), cli.Version(), m), metrics.Admin(cluster.Name(), cli.Version(), a))
	for _, s := range storages {
		o.watched.Add(metrics.Storage(cluster.Name(), cli.Version(), s))
	}
}

func (o *options) config(ctx context.Context) (simple.Config, error) {
	cfg := simple.Config{Version: cli.Version(), Dir: o.dir, Name: o.name, Partitions: o.partitions, Storages: o.storages, Replicas: o.replicas,
		Databases: o.databases, Adapter: o.adapter, Engine: o.engine, Wait: time.Duration(o.wait * float64(time.Second))}
	var err error
	if cfg.TLS, err = o.TLSConfig(); err != nil {
		return cfg, err
	}
	if cfg.Master, err = address(ctx, "masters", o.masters); err != nil {
		return cfg, err
	}
	if cfg.Admin, err = address(ctx, "admin", o.admin); err != nil {
		return cfg, err
	}
	return cfg, o.follow(ctx, &cfg)
}

// address returns the address that an option names, resolved.
func address(ctx context.Context, option, text string) (proto.Address, error) {
	a, err := conf.ParseAddress(text, 0)
	if err != nil {
		return proto.Address{}, cli.Usagef("--%s: %w", option, err)
	}
	if a, err = a.Resolve(ctx); err != nil {
		return proto.Address{}, fmt.Errorf("--%s: %w", option, err)
	}
	return proto.Address(a), nil
}

// serve runs the cluster until it is told to stop.
func serve(ctx context.Context, env *cli.Env, o *options, log *cli.Log, cluster *simple.Cluster, b *background, dir string, zeoPort net.Listener) error {
	// The nodes outlive what uses them.
	nodes, stopNodes := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNodes()
	using, stopUsing := context.WithCancel(ctx)
	defer stopUsing()
	ended := make(chan error, 1)
	go func() {
		err := cluster.Run(nodes)
		stopUsing()
		ended <- err
	}()
	imported, err := prepare(using, env, o, log, cluster, b)
	if err != nil {
		interrupted := ctx.Err() != nil
		stopNodes()
		runErr := explain(<-ended)
		switch {
		case interrupted && errors.Is(err, context.Canceled) && o.source != "":
			return errors.Join(errInterrupted, runErr)
		case interrupted && errors.Is(err, context.Canceled):
			return runErr // stopped in order, although early
		case runErr != nil && errors.Is(err, context.Canceled):
			return runErr // the reason
		}
		return errors.Join(err, runErr)
	}
	err = use(using, stopUsing, env, o, log, cluster, b, dir, imported, zeoPort)
	if using.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // told to stop, or the cluster has ended and says why
	}
	stopNodes()
	err = errors.Join(err, explain(<-ended))
	if b.backend != nil {
		if left := b.left(); left != "" {
			fmt.Fprintln(env.Stderr, left)
		}
	}
	if err == nil && !o.quiet {
		fmt.Fprintln(env.Stderr, "Stopped.")
	}
	return err
}

// startTimeout is how long the nodes may take to become a cluster.
const startTimeout = 60 * time.Second

// prepare waits for the cluster and fills it. It says in words what was imported.
func prepare(ctx context.Context, env *cli.Env, o *options, log *cli.Log, cluster *simple.Cluster, b *background) (imported string, err error) {
	if o.backupOf != "" {
		return "", awaitUpstream(ctx, env, o, cluster)
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := cluster.WaitRunning(starting); err != nil {
		return "", err
	}
	if b.backend != nil {
		return b.welcome(), nil
	}
	if o.source != "" {
		if imported, err = importFile(ctx, env, o, log, cluster); err != nil {
			return "", fmt.Errorf("importing %s: %w", o.source, err)
		}
	}
	return imported, nil
}

// use serves ZEO clients, says that the cluster is ready, and waits for the end of
// the context, which is also that of the cluster; stop ends it.
func use(ctx context.Context, stop func(), env *cli.Env, o *options, log *cli.Log, cluster *simple.Cluster, b *background, dir, imported string, zeoPort net.Listener) (err error) {
	ready := fmt.Sprintf("ready name=%s masters=%v admin=%v", cluster.Name(), cluster.Master(), cluster.Admin())
	if zeoPort != nil {
		d, openErr := openZEO(ctx, o, log, cluster, zeoPort, stop)
		if openErr != nil {
			return fmt.Errorf("serving ZEO clients: %w", openErr)
		}
		defer func() { err = errors.Join(err, d.close()) }()
		o.watched.Complete(metrics.ZEO(cluster.Name(), cli.Version(), d.server, map[string]metrics.Client{"1": d.storage}))
		ready += fmt.Sprintf(" zeo=%v", zeoPort.Addr())
	}
	o.watched.Complete()
	if !o.quiet {
		fmt.Fprint(env.Stderr, welcome(o, cluster, b, dir, imported, zeoPort))
	}
	if _, err := fmt.Fprintln(env.Stdout, ready); err != nil {
		return err
	}
	service := log.Service(ctx, env)
	defer service.Stopping()
	service.Ready(ready)
	if b.backend != nil {
		b.follow(ctx, env, o.quiet)
	}
	if o.backupOf != "" && !o.quiet {
		if err := watchBackup(ctx, env, o, cluster); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

// welcome says what is running and what to do with it.
func welcome(o *options, cluster *simple.Cluster, bg *background, dir, imported string, zeoPort net.Listener) string {
	var b strings.Builder
	what := "A new database"
	if cluster.Existing() {
		what = "The database"
	}
	keep := ""
	if o.temporary() {
		keep = ",\n  a temporary directory that is removed at the end (keep it with --dir DIR)"
	}
	fmt.Fprintf(&b, "Cluster %q is running: a master, %s and an admin in this process.\n", cluster.Name(), plural(cluster.Storages(), "storage"))
	fmt.Fprintf(&b, "  %s is in %s%s.\n", what, dir, keep)
	if imported != "" {
		fmt.Fprintf(&b, "  %s\n", imported)
	}
	if o.backupOf != "" {
		fmt.Fprintf(&b, "  It is a backup of %s: what it has can be read, and not written.\n", o.backupOf)
	}
	fmt.Fprintf(&b, "  master  %v\n  admin   %v\n  client  %s\n", cluster.Master(), cluster.Admin(), clientURI(o, cluster))
	if zeoPort != nil {
		fmt.Fprintf(&b, "  ZEO     %v\n", zeoPort.Addr())
	}
	opts := fmt.Sprintf("-c %s%s", cluster.Name(), tlsOptions(o))
	b.WriteString("Try, in another terminal:\n")
	if o.backupOf != "" {
		neoctl := fmt.Sprintf("  %s -a %v%s", program("neoctl"), cluster.Admin(), tlsOptions(o))
		fmt.Fprintf(&b, "%s print backup    # how far it is\n%s set cluster STOPPING_BACKUP    # make it a cluster of its own\n", neoctl, neoctl)
	} else if imported == "" {
		fmt.Fprintf(&b, "  %s %s Data.fs %v    # load a Data.fs into it\n", program("neomigrate"), opts, cluster.Master())
	} else {
		fmt.Fprintf(&b, "  %s -a %v%s print ids    # what it has: last object, last transaction\n", program("neoctl"), cluster.Admin(), tlsOptions(o))
	}
	if bg.backend != nil {
		fmt.Fprintf(&b, "  %s -a %v%s print import    # how far the copy is\n", program("neoctl"), cluster.Admin(), tlsOptions(o))
	}
	if zeoPort != nil {
		fmt.Fprintf(&b, "Load objects, in a Python with ZEO (pip install ZEO):\n%s", loadWithZEO(o, zeoPort))
	}
	fmt.Fprintf(&b, "Export everything to a Data.fs:\n  %s %s %v copy.fs\n", program("neoexport"), opts, cluster.Master())
	b.WriteString("Ctrl-C stops it.\n")
	return b.String()
}

func plural(n int, what string) string {
	if n == 1 {
		return "a " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// clientURI is what a ZODB client is configured with.
func clientURI(o *options, cluster *simple.Cluster) string {
	if o.TLS == (cli.TLS{}) {
		return fmt.Sprintf("neo://%s@%v", cluster.Name(), cluster.Master())
	}
	return fmt.Sprintf("neos://%s@%v?ca=%s&cert=%s&key=%s", cluster.Name(), cluster.Master(), o.CA, o.Cert, o.Key)
}

func tlsOptions(o *options) string {
	if o.TLS == (cli.TLS{}) {
		return ""
	}
	return fmt.Sprintf(" --ca %s --cert %s --key %s", o.CA, o.Cert, o.Key)
}

// program returns how to run another command: the one beside this one, or from
// the source.
func program(name string) string {
	if exe, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(exe), name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return "go run ./cmd/" + name
}
