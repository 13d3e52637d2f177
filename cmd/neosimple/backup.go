package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// backupSyntax is that of --backup-of.
const backupSyntax = "NAME@HOST:PORT[,HOST:PORT...]"

const (
	// askTimeout is how long the upstream cluster may take to say how many partitions it has.
	askTimeout = 10 * time.Second
	// patience is how long the upstream cluster may take to be found before the user is told.
	patience = 3 * time.Second
)

// parseBackupOf reads the value of --backup-of. A URI as clients have it, neo://..., is
// taken as well.
func parseBackupOf(ctx context.Context, s string) (up master.Upstream, err error) {
	wrong := func(format string, args ...any) (master.Upstream, error) {
		return up, cli.Usagef("--backup-of %q: %s; want %s: the name of the cluster to follow and its masters, such as neo@192.0.2.1:10000",
			s, fmt.Sprintf(format, args...), backupSyntax)
	}
	name, list, ok := strings.Cut(strings.TrimPrefix(s, "neo://"), "@")
	switch {
	case !ok:
		return wrong("there is no @")
	case name == "":
		return wrong("there is no name before the @")
	}
	masters, err := conf.ParseMasters(strings.ReplaceAll(list, ",", " "))
	switch {
	case err != nil:
		return wrong("%v", err)
	case len(masters) == 0:
		return wrong("there is no address after the @")
	}
	if masters, err = conf.ResolveAll(ctx, masters); err != nil {
		return up, fmt.Errorf("--backup-of: %w", err)
	}
	up = master.Upstream{Cluster: name, Backup: true}
	for _, a := range masters {
		up.Masters = append(up.Masters, proto.Address(a))
	}
	return up, nil
}

// follow makes the cluster of a configuration a backup, if the options say so.
func (o *options) follow(ctx context.Context, cfg *simple.Config) error {
	if o.backupOf == "" {
		return nil
	}
	up, err := parseBackupOf(ctx, o.backupOf)
	if err != nil {
		return err
	}
	if o.name == up.Cluster {
		return cli.Usagef("--name %s: a backup needs another name than the cluster that it follows", o.name)
	}
	cfg.Upstream, cfg.Partitions = up, 0
	cfg.UpstreamPartitions = func() (int, error) {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		n, err := simple.Partitions(ctx, up, link.Config{TLS: cfg.TLS})
		if err != nil {
			return 0, fmt.Errorf("--backup-of: %w; a new backup can only begin while that cluster is running, and reachable here under this name", err)
		}
		return n, nil
	}
	return nil
}

// awaitUpstream waits until the backup follows its upstream cluster, which need not be
// there: a backup has nothing better to do than to wait for it.
func awaitUpstream(ctx context.Context, env *cli.Env, o *options, cluster *simple.Cluster) error {
	defer time.AfterFunc(patience, func() {
		if !o.quiet {
			fmt.Fprintf(env.Stderr, "Waiting for the upstream cluster, %s. Nothing is served before it is found.\n", o.backupOf)
		}
	}).Stop()
	err := cluster.WaitRunning(ctx)
	if errors.Is(err, simple.ErrNotBackup) {
		return fmt.Errorf("--backup-of: %w. Start it without --backup-of to use it as it is; "+
			"to follow another cluster from now on, begin with an empty --dir", err)
	}
	return err
}

// explain adds to the end of a cluster what to do about it.
func explain(err error) error {
	if errors.Is(err, master.ErrNoUpstream) {
		return fmt.Errorf("%w; here: start it with --backup-of %s", err, backupSyntax)
	}
	return err
}

// watchBackup says up to where the backup has everything that the upstream cluster has, as soon
// as it has that, and when it is no backup any more, unless ctx ends before.
func watchBackup(ctx context.Context, env *cli.Env, o *options, cluster *simple.Cluster) error {
	tls, err := o.TLSConfig()
	if err != nil {
		return err
	}
	for copied := false; ; {
		admin, err := ctl.Dial(ctx, cluster.Admin(), link.Config{TLS: tls})
		if err == nil {
			err = watch(ctx, env, admin, &copied)
			admin.Close()
		}
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if !copied {
			return fmt.Errorf("watching the backup: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(statusEvery):
		}
	}
}

// watch is watchBackup as long as an admin is there.
func watch(ctx context.Context, env *cli.Env, admin *ctl.Client, copied *bool) error {
	for {
		state, err := admin.ClusterState(ctx)
		if err == nil && state == proto.Running {
			fmt.Fprintln(env.Stderr, "This cluster is no backup any more. ZEO clients can still only read from it here: "+
				"to let them write, stop it, and start it without --backup-of.")
			return nil
		}
		var list []ctl.Backup
		if err == nil && !*copied {
			list, err = admin.Backups(ctx)
		}
		if _, refused := errors.AsType[*proto.Error](err); err != nil && !refused && !errors.Is(err, ctl.ErrNoBackup) {
			return err
		}
		if err == nil && !*copied && list[0].Cluster == "" && list[0].Linked && list[0].Readable >= list[0].Upstream {
			done := "the upstream cluster has no transaction yet"
			if last := list[0].Readable; last > tid.Zero {
				done = fmt.Sprintf("everything up to transaction %v (%s UTC) is copied", last, last.Time().UTC().Format("2006-01-02 15:04:05"))
			}
			fmt.Fprintf(env.Stderr, "done: %s. What is committed from now on is copied at once.\n", done)
			*copied = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(statusEvery):
		}
	}
}
