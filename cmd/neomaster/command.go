package main

import (
	"context"
	"fmt"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/monitor/metrics"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/vitals"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/monitored"
	"github.com/spf13/cobra"
)

type options struct {
	cli.Daemon
	autostart       int
	upstreamCluster string
	upstreamMasters string
	backup          bool
	schedule        string
	window          string
	bandwidth       string
	delay           string
	replicas        int
	partitions      int
	monitor         monitored.Option
}

func newCommand(env *cli.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "neomaster -c CLUSTER [options]",
		Short: "Run a master node of a NEO cluster",
		Long: `Run a master node. One of the masters of a cluster is primary: it knows the
nodes and where the data are, gives out transaction ids and orders the commits.
The others stand by. A master keeps nothing on disk.

The numbers of partitions and replicas only matter when the database is created.
A new database is created when the operator says so (neoctl start), or once the
number of storage nodes given with --autostart is there.` + cli.ExitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Load(cmd.Flags()); err != nil {
				return err
			}
			return run(cmd.Context(), env, &o)
		},
	}
	fs := cmd.Flags()
	o.AddFlags(fs, cli.Master)
	fs.IntVarP(&o.autostart, "autostart", "A", 0, "create a new database once that many storage nodes are pending")
	cli.Text(fs, &o.upstreamCluster, "upstream-cluster", "C", "", "name of the cluster to back up")
	cli.Text(fs, &o.upstreamMasters, "upstream-masters", "M", "", "masters of the cluster to back up")
	cli.Flag(fs, &o.backup, "backup", "B", "make a new database a backup")
	cli.Text(fs, &o.schedule, "backup-schedule", "", "", `when to copy what the upstream cluster has then: minute, hour, day of the month, month and day of the week as for cron, in UTC, such as "0 2 * * *" (default: always)`)
	cli.Text(fs, &o.window, "backup-window", "", "", "part of the day in UTC in which anything is copied from upstream, such as 02:00-05:00 (default: the whole day)")
	cli.Text(fs, &o.bandwidth, "backup-bandwidth", "", "", "bytes per second that all storages together copy from upstream, such as 50MB/s (default: no limit)")
	cli.Text(fs, &o.delay, "backup-delay", "", "", "how old a transaction must be to be copied, such as 90m, 12h or 7d (default: it is copied at once)")
	fs.IntVarP(&o.replicas, "replicas", "r", 0, "copies beside the first, of a new database")
	fs.IntVarP(&o.partitions, "partitions", "p", 100, "partitions of a new database, never to be changed")
	o.monitor.AddFlags(fs, "")
	return cmd
}

// check refuses options that contradict each other.
func (o *options) check() error {
	switch {
	case o.replicas < 0:
		return cli.Usagef("replicas must be a positive integer")
	case o.partitions <= 0:
		return cli.Usagef("partitions must be more than zero")
	case o.autostart < 0:
		return cli.Usagef("autostart must be a positive integer")
	case o.upstreamCluster != "" && o.upstreamCluster == o.Cluster:
		return cli.Usagef("upstream cluster name must be different from cluster name")
	case o.upstreamCluster != "" && o.upstreamMasters == "":
		return cli.Usagef("an upstream cluster needs upstream masters: --upstream-masters")
	case o.backup && o.upstreamCluster == "":
		return cli.Usagef("a backup needs an upstream cluster: --upstream-cluster")
	case o.upstreamMasters != "" && o.upstreamCluster == "":
		return cli.Usagef("upstream masters are those of an upstream cluster: --upstream-cluster")
	}
	return nil
}

// upstream returns what the backup options say, without the masters.
func (o *options) upstream() (u master.Upstream, err error) {
	u = master.Upstream{Cluster: o.upstreamCluster, Backup: o.backup}
	for _, v := range []struct {
		name, value string
		parse       func(string) error
	}{
		{"backup-schedule", o.schedule, func(s string) (err error) { u.Schedule, err = following.ParseSchedule(s); return }},
		{"backup-window", o.window, func(s string) (err error) { u.Window, err = following.ParseWindow(s); return }},
		{"backup-bandwidth", o.bandwidth, func(s string) (err error) { u.Rate, err = following.ParseRate(s); return }},
		{"backup-delay", o.delay, func(s string) (err error) { u.Delay, err = following.ParseDelay(s); return }},
	} {
		if v.value == "" {
			continue
		}
		if u.Cluster == "" {
			return u, cli.Usagef("--%s is for a backup: it needs an upstream cluster", v.name)
		}
		if err := v.parse(v.value); err != nil {
			return u, cli.Usagef("--%s: %w", v.name, err)
		}
	}
	return u, nil
}

func run(ctx context.Context, env *cli.Env, o *options) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	up, err := o.upstream()
	if err != nil {
		return err
	}
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	defer log.Crashed()

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
	if err := o.monitor.Listen(ctx); err != nil {
		return err
	}
	defer o.monitor.Close()
	log.Node.Identify(o.Cluster, 0)
	cfg := master.Config{
		Self: vitals.NewSelf(cli.Version()),

		Cluster:     o.Cluster,
		Bind:        proto.Address(bind),
		ID:          proto.NodeID(o.NodeID),
		Partitions:  o.partitions,
		Replicas:    o.replicas,
		Autostart:   o.autostart,
		TLS:         tlsConfig,
		PeerTimeout: limit,
		Log:         log.Logger,
		Record:      log.LinkConfig(nil).Record,
		FlushLog:    log.FlushFile,
		Identified:  func(id proto.NodeID) { log.Node.Identify(o.Cluster, int32(id)) },
	}
	for _, a := range masters {
		cfg.Masters = append(cfg.Masters, proto.Address(a))
	}
	if o.upstreamCluster != "" {
		upstream, err := conf.ParseMasters(o.upstreamMasters)
		if err != nil {
			return cli.Usagef("upstream masters: %w", err)
		}
		if upstream, err = conf.ResolveAll(ctx, upstream); err != nil {
			return fmt.Errorf("upstream masters: %w", err)
		}
		cfg.Upstream = up
		for _, a := range upstream {
			cfg.Upstream.Masters = append(cfg.Upstream.Masters, proto.Address(a))
		}
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
	node, err := master.New(cfg)
	if err != nil {
		return fmt.Errorf("starting the master: %w", err)
	}
	watched := metrics.NewSet("starting")
	watched.Certificates(tlsConfig)
	watched.Complete(metrics.Master(o.Cluster, cli.Version(), node))
	o.monitor.Serve(watched, log.Logger, nil)
	service := log.Service(ctx, env)
	defer service.Stopping()
	service.Ready(fmt.Sprintf("a master of cluster %s at %v", o.Cluster, node.Addr()))
	ctx, cancel := context.WithCancel(ctx)
	wait := log.HandleSignals(ctx, node.Dump)
	err = node.Run(ctx)
	cancel()
	wait()
	return err
}
