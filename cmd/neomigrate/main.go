// Command neomigrate copies a Data.fs into a cluster, or a cluster into a Data.fs.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/exporter"
)

func main() {
	cli.Calm()
	cli.Main(newCommand)
}

type options struct {
	side.Options
	level  int
	window int
}

func newCommand(env *cli.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "neomigrate [options] SOURCE DESTINATION",
		Short: "Copy a Data.fs into a cluster, or a cluster into a Data.fs",
		Long: `Copy a Data.fs into a cluster, or a cluster into a Data.fs.

If SOURCE is an existing file, DESTINATION is the list of the masters of a
cluster, separated by spaces. Otherwise SOURCE is such a list, and DESTINATION
the Data.fs to make or to bring up to date.

Transactions keep their ids, metadata, links to undone data and order of objects,
transactions without objects included. A cluster cannot be told that a transaction
was packed: its status becomes that of an ordinary one.

A copy that was interrupted goes on where it stopped when the command is run
again. A destination that does not hold exactly the beginning of the source is
left as it is. No other client may write to the cluster while it is filled.

An import by a storage node (neostorage --adapter Importer) serves the database while it
is copied: see neomigrate plan.
` + side.Help + cli.ExitStatus,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return run(cmd.Context(), env, &o, args[0], args[1])
		},
	}
	fs := cmd.Flags()
	o.AddFlags(fs)
	cli.Required(fs, "cluster")
	fs.IntVar(&o.level, "compress", client.DefaultLevel, "zlib level of records stored in the cluster, 0 for none; 1 costs a tenth less work than 5, and 6 % of space")
	fs.IntVar(&o.window, "window", 128, "transactions under way at once; 1 if another node of the cluster is too old for more")
	cmd.AddCommand(newPlanCommand(env))
	return cmd
}

func run(ctx context.Context, env *cli.Env, o *options, source, destination string) (err error) {
	if o.Cluster == "" {
		return cli.Usagef("the name of the cluster is missing (-c)")
	}
	if o.level < 0 || o.level > 9 {
		return cli.Usagef("--compress %d is not in 0..9", o.level)
	}
	if o.window < 1 || o.window > recent {
		return cli.Usagef("--window %d is not in 1..%d", o.window, recent)
	}
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	start := time.Now()
	if side.IsFile(source) {
		if side.IsFile(destination) {
			return cli.Usagef("both %s and %s are files: see neoexport", source, destination)
		}
		o.say(env, "Migrating from %s to %s", source, destination)
		err = toCluster(ctx, env, o, log, source, destination)
	} else {
		o.say(env, "Migrating from %s to %s", source, destination)
		err = toFile(ctx, env, o, log, source, destination)
	}
	if err != nil {
		return err
	}
	o.say(env, "Migration done in %.5f", time.Since(start).Seconds())
	return nil
}

func (o *options) say(env *cli.Env, format string, args ...any) {
	if !o.Quiet {
		fmt.Fprintf(env.Stdout, format+"\n", args...)
	}
}

// recent is how many transactions at the end of a cluster are compared with the
// source before anything is appended: not less than a copy has under way at once.
const recent = 256

// toCluster copies a Data.fs.
func toCluster(ctx context.Context, env *cli.Env, o *options, log *cli.Log, source, destination string) (err error) {
	r, err := o.OpenFile(ctx, env, source, o.AnyStatus, o.Quiet)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if _, err := r.LastTID(ctx); err != nil {
		return err
	}
	level := o.level
	if level == 0 {
		level = client.NoCompression
	}
	c, err := o.OpenCluster(ctx, destination, log, client.Config{Level: level, CacheSize: 16 << 20})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	var bar *cli.Progress
	defer func() {
		if bar != nil {
			bar.Done()
		}
	}()
	var refused error
	begin := func(last, _ tid.TID) error {
		if last > tid.Zero {
			o.say(env, "The cluster has everything up to transaction %v already", last)
		}
		if refused = r.TellRenumbered(ctx, last); refused != nil {
			return refused
		}
		var total int64
		if total, refused = side.Remaining(ctx, r.Reader, last); refused != nil {
			return refused
		}
		bar = cli.NewProgress(env, cli.ProgressConfig{What: "migrating", Items: "transactions", Bytes: true, Total: total, Quiet: o.Quiet})
		return nil
	}
	err = exporter.ToCluster(ctx, r, c, func() exporter.Appender { return c.NewAppender(ctx, client.AppenderOptions{Window: o.window}) }, exporter.ClusterOptions{
		Recent: recent,
		Opened: begin,
		Progress: func(_ tid.TID, transactions, records, bytes int64) {
			bar.Set(transactions, transactions*31+records*42+bytes) // about as much as in the file
		},
	})
	if e, ok := errors.AsType[*exporter.InterruptedError](err); ok {
		return fmt.Errorf("stopped after transaction %v, run again to go on: %w", e.Last, e.Err)
	}
	switch {
	case err == nil || refused != nil:
		return refused
	case errors.As(err, new(*exporter.NotPrefixError)):
		return fmt.Errorf("cluster %s: %w; it stays as it is: migrate to a new cluster instead", o.Cluster, err)
	}
	return fmt.Errorf("cluster %s: %w", o.Cluster, err)
}

// toFile copies a cluster.
func toFile(ctx context.Context, env *cli.Env, o *options, log *cli.Log, source, destination string) (err error) {
	src, err := o.OpenSource(ctx, env, source, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	bar := cli.NewProgress(env, cli.ProgressConfig{What: "migrating", Items: "transactions", Quiet: o.Quiet})
	defer bar.Done()
	_, err = exporter.ToFile(ctx, src, destination, exporter.FileOptions{
		Opened: func(after, _ tid.TID) {
			if after > tid.Zero {
				o.say(env, "%s has everything up to transaction %v already", destination, after)
			}
		},
		Progress: func(_ tid.TID, transactions, _, bytes int64) { bar.Set(transactions, bytes) },
	})
	if errors.As(err, new(*exporter.NotPrefixError)) {
		return fmt.Errorf("%w; it stays as it is: keep it, or replace it with neoexport --full", err)
	}
	return err
}
