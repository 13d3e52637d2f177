package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/monitor/metrics"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/vitals"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/monitored"
	"github.com/neozodb/neo/importer/config"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type options struct {
	cli.Daemon
	adapter     string
	database    string
	wait        float64
	engine      string
	dedup       bool
	disablePack bool
	disableDrop bool
	share       float64
	rate        string
	newNID      bool
	reset       bool
	extend      bool
	monitor     monitored.Option
}

func newCommand(env *cli.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "neostorage -c CLUSTER -d DATABASE [options]",
		Short: "Run a storage node of a NEO cluster",
		Long: `Run a storage node, which keeps a part of the database of a NEO cluster.

The database is the path of an SQLite file (--adapter SQLite), which is created
if need be, or file:PATH?OPTION=VALUE&… with cache_size, journal_mode and
synchronous. Only one process at a time may use it.

With --adapter Importer it is the path of a file that says which databases to serve and to
copy, and where to, such as neomigrate plan writes: see importer.conf.example. If such a source is
still written to, by applications that do not use the cluster yet, --extend-import makes a later
start import what was added: once the import is done, stop the node and what writes to the
source, run the same command with --extend-import, and start the node again. It is refused when
a client of the cluster has committed, and with several sources.

The node ends by itself when the cluster is shut down, or when it is dropped from
the cluster: then it erases its database.` + cli.ExitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Load(cmd.Flags()); err != nil {
				return err
			}
			if err := o.check(cmd.Flags()); err != nil {
				return err
			}
			return run(cmd.Context(), env, &o)
		},
	}
	fs := cmd.Flags()
	o.AddFlags(fs, cli.Storage)
	cli.Text(fs, &o.adapter, "adapter", "a", "MySQL", "kind of database: Importer, MySQL, MySQLdb, PyMySQL, SQLite")
	cli.Text(fs, &o.database, "database", "d", "", "database (required): of MySQL [USER[:PASSWORD]@]DATABASE[SOCKET], or //HOST[:PORT]/DATABASE[?user=USER&password=PASSWORD&tls=true]; of SQLite a path; of Importer its importer.conf")
	fs.Float64VarP(&o.wait, "wait", "w", 0, "seconds to wait for the database server, -1: without limit")
	cli.Text(fs, &o.engine, "engine", "e", "", "storage engine of MySQL: InnoDB or RocksDB (default InnoDB)")
	cli.Flag(fs, &o.dedup, "dedup", "", "store equal data once, in a new database")
	cli.Flag(fs, &o.disablePack, "disable-pack", "", "do not execute pack orders")
	cli.Flag(fs, &o.disableDrop, "disable-drop-partitions", "", "do not delete the data of discarded cells")
	fs.Float64Var(&o.share, "replication-share", storage.DefaultReplicationShare, "percent of the time that replication may take, in either direction, while clients are served; 100: it does not yield to them")
	cli.Text(fs, &o.rate, "replication-rate", "", "", "bytes per second given to other storages, such as 20MB (default: no limit)")
	cli.Flag(fs, &o.newNID, "new-nid", "", "ask for a new node id for a copied database, and exit")
	cli.Flag(fs, &o.reset, "reset", "", "erase the database and exit")
	cli.Flag(fs, &o.extend, "extend-import", "", "with --adapter Importer: import what was added to the source since the import began, at the next start, and exit")
	cli.Required(fs, "database")
	cli.CommandLineOnly(fs, "reset")
	cli.CommandLineOnly(fs, "extend-import")
	o.monitor.AddFlags(fs, "")
	return cmd
}

// check refuses options that make no sense together.
func (o *options) check(fs *pflag.FlagSet) error {
	importing, sqlite := o.adapter == adapter.Importer, o.adapter == adapter.SQLite
	switch {
	case importing && cli.Given(fs, "engine"):
		return cli.Usagef("--engine does not go with --adapter Importer: the engine of what the data are copied to is a key of %s", o.database)
	case sqlite && cli.Given(fs, "engine"):
		return cli.Usagef("--engine %s is for MySQL: it does not go with --adapter %s", o.engine, o.adapter)
	case o.extend && !importing:
		return cli.Usagef("--extend-import is for --adapter Importer, not %s", o.adapter)
	case o.extend && (o.reset || o.newNID):
		return cli.Usagef("--extend-import goes neither with --reset nor with --new-nid")
	case o.reset && o.newNID:
		return cli.Usagef("--reset does not go with --new-nid: a database that is erased has no node id")
	case o.newNID && o.NodeID != 0:
		return cli.Usagef("--new-nid does not go with --nid: the master gives the new id")
	case o.newNID && importing:
		return cli.Usagef("--new-nid does not go with --adapter Importer: a database that was copied gets another id when its import is finished, with the adapter that %s names first", o.database)
	}
	if importing || sqlite {
		o.engine = "" // [DEFAULT] means the other storages
	}
	if err := adapter.Check(o.adapter, o.engine, o.database); err != nil {
		return cli.Usagef("%w", err)
	}
	return nil
}

func (o *options) adapterConfig(log *slog.Logger) adapter.Config {
	return adapter.Config{Adapter: o.adapter, Database: o.database, Engine: o.engine,
		Wait: time.Duration(o.wait * float64(time.Second)), Dedup: o.dedup, HalfImported: o.reset, Log: log}
}

// databaseName returns the database as messages may show it.
func (o *options) databaseName() string { return adapter.Name(o.adapter, o.database) }

// extendImport makes the next start import what was added to the source.
func (o *options) extendImport(ctx context.Context, env *cli.Env, log *cli.Log) error {
	x, err := adapter.ExtendImport(ctx, o.adapterConfig(log.Logger))
	if err != nil {
		return fmt.Errorf("extending the import of %s: %w", o.database, err)
	}
	log.Info("import extended", "database", o.database, "was", x.Was, "end", x.End)
	_, err = fmt.Fprintln(env.Stdout, x)
	return err
}

// openDatabase opens the database that the options name.
func (o *options) openDatabase(ctx context.Context, log *slog.Logger) (backend.Backend, error) {
	return adapter.Open(ctx, o.adapterConfig(log))
}

// locked says what to do about a database that another process uses.
func (o *options) locked(err error) error {
	if !errors.Is(err, backend.ErrLocked) {
		return err
	}
	used := o.databaseName()
	if o.adapter == adapter.Importer {
		if imp, err := config.ReadFile(o.database); err == nil {
			used = adapter.Name(imp.Destination.Adapter, imp.Destination.Database)
		}
	}
	// The first line is what scripts look for.
	return fmt.Errorf("%w\n%s is used by another process: stop that first, or use another database", backend.ErrLocked, used)
}

// replication checks the limits of replication, and returns the bytes per second.
func (o *options) replication() (rate int64, err error) {
	if !(o.share > 0 && o.share <= 100) {
		return 0, cli.Usagef("--replication-share %g is not above 0 and up to 100", o.share)
	}
	if o.rate == "" {
		return 0, nil
	}
	n, err := client.ParseSize(o.rate)
	if err != nil {
		return 0, cli.Usagef("--replication-rate: %w", err)
	}
	return int64(n), nil
}

func run(ctx context.Context, env *cli.Env, o *options) (err error) {
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	defer log.Crashed()

	rate, err := o.replication()
	if err != nil {
		return err
	}
	tlsConfig, err := o.TLSConfig()
	if err != nil {
		return err
	}
	masters, dynamic, err := o.Masters(ctx)
	if err != nil {
		return err
	}
	limit, err := o.PeerTimeout.Limit()
	if err != nil {
		return err
	}
	bind, err := o.Bind(ctx)
	if err != nil {
		return err
	}
	if o.extend {
		return o.locked(o.extendImport(ctx, env, log))
	}
	if o.adapter == adapter.Importer {
		cli.SpareMemory()
	}
	watched := metrics.NewSet("starting: the database is being opened")
	watched.Certificates(tlsConfig)
	if !o.reset {
		if err := o.monitor.Listen(ctx); err != nil {
			return err
		}
		defer o.monitor.Close()
		o.monitor.Serve(watched, log.Logger, nil)
	}
	db, err := o.openDatabase(ctx, log.Logger)
	if errors.Is(err, backend.ErrLocked) {
		return o.locked(err)
	}
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := db.Close(); closeErr != nil && err == nil {
			err = fmt.Errorf("closing the database: %w", closeErr)
		}
	}()
	if o.reset {
		if err := db.Erase(); err != nil {
			return fmt.Errorf("erasing the database: %w", err)
		}
		log.Info("database erased", "database", o.databaseName())
		return nil
	}
	log.Node.Identify(o.Cluster, 0)
	self := vitals.NewSelf(cli.Version())
	self.Adapter, self.Database = o.adapter, adapter.Place(o.adapter, o.database)
	service := log.Service(ctx, env)
	defer service.Stopping()
	cfg := storage.Config{
		Self:        self,
		Cluster:     o.Cluster,
		Bind:        proto.Address(bind),
		Masters:     bootstrap.NewMasters(cli.WireAddresses(masters)...),
		Backend:     db,
		ID:          proto.NodeID(o.NodeID),
		NewID:       o.newNID,
		DisablePack: o.disablePack,
		DisableDrop: o.disableDrop,

		ReplicationShare: o.share,
		ReplicationRate:  rate,

		TLS:         tlsConfig,
		PeerTimeout: limit,
		FlushLog:    log.FlushFile,
		Identified: func(id proto.NodeID) {
			log.Node.Identify(o.Cluster, int32(id))
			service.Status(fmt.Sprintf("%v of cluster %s", id, o.Cluster))
		},
		Log:    log.Logger,
		Record: log.LinkConfig(nil).Record,
	}
	if dynamic != nil {
		cfg.MastersKnown = func(list []proto.Address) {
			known := make([]conf.Address, len(list))
			for i, a := range list {
				known[i] = conf.Address(a)
			}
			if err := dynamic.Save(known); err != nil {
				log.Error("list of masters not saved", "err", err)
			}
		}
	}
	node, err := storage.New(cfg)
	if err != nil {
		return err
	}
	watched.Complete(metrics.Storage(o.Cluster, cli.Version(), node))
	service.Ready(fmt.Sprintf("listening at %v, looking for the primary master of cluster %s", node.Addr(), o.Cluster))
	ctx, cancel := context.WithCancel(ctx)
	wait := log.HandleSignals(ctx, node.Dump)
	err = node.Run(ctx)
	cancel()
	wait()
	return err
}
