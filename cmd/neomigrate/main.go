// Command neomigrate copies a Data.fs into a cluster, or a cluster into a Data.fs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
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
	level   int
	window  int
	verify  bool
	blobDir string
}

func newCommand(env *cli.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "neomigrate [options] SOURCE DESTINATION",
		Short: "Copy a Data.fs into a cluster, or a cluster into a Data.fs",
		Long: `Copy a Data.fs into a cluster, or a cluster into a Data.fs.

If SOURCE is an existing file, DESTINATION is a cluster. Otherwise SOURCE is one, and
DESTINATION the Data.fs to make or to bring up to date.
` + side.ClusterHelp + `

Transactions keep their ids, metadata, links to undone data and order of objects,
transactions without objects included. A cluster cannot be told that a transaction
was packed: its status becomes that of an ordinary one.

A copy that was interrupted goes on where it stopped when the command is run
again. A destination that does not hold exactly the beginning of the source is
left as it is. No other client may write to the cluster while it is filled. If the
cluster stops to serve, because the disk of a storage is full for instance, it is said
why, and the copy goes on when it serves again. If one of the last transactions was lost with
a storage, it ends, and says with which order to neoctl it can go on.

A cluster has no blobs: their records are copied, the files with their data are not.
How many there are is said at the end.

With --verify nothing is written: all transactions up to the last one of the file are
compared, record by record. The status, the order of the records of a transaction,
and whether data are shared with an earlier record do not count.

An import by a storage node (neostorage --adapter Importer) serves the database while it
is copied: see neomigrate plan.
` + side.Help + cli.ExitStatus + `
With --verify, a difference is a failure.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return run(cmd.Context(), env, &o, args[0], args[1])
		},
	}
	fs := cmd.Flags()
	o.AddFlags(fs)
	fs.IntVar(&o.level, "compress", client.DefaultLevel, "zlib level of records stored in the cluster, 0 for none; 1 costs a tenth less work than 5, and 6 % of space")
	fs.IntVar(&o.window, "window", 128, "transactions under way at once; 1 if another node of the cluster is too old for more")
	cli.Flag(fs, &o.verify, "verify", "", "write nothing, and compare both sides, record by record")
	cli.Path(fs, &o.blobDir, "blob-dir", "", "", "directory of the blobs of SOURCE, whose files are counted (default: blobstorage or blobs beside it)")
	cmd.AddCommand(newPlanCommand(env))
	return cmd
}

func run(ctx context.Context, env *cli.Env, o *options, source, destination string) (err error) {
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
	if err := side.Files(source, destination); err != nil {
		return err
	}
	fromFile := side.IsFile(source)
	file, cluster := source, destination
	if !fromFile {
		file, cluster = destination, source
	}
	switch {
	case side.IsFile(cluster):
		return cli.Usagef("both %s and %s are files: see neoexport", source, destination)
	case side.IsURI(file):
		return cli.Usagef("%s and %s are both clusters: one side must be a Data.fs", source, destination)
	case o.blobDir != "" && !fromFile:
		return cli.Usagef("--blob-dir is for the copy of a Data.fs")
	}
	if o.blobDir != "" {
		if _, err := os.Stat(o.blobDir); err != nil {
			return fmt.Errorf("--blob-dir: %w", err)
		}
	}
	if o.verify {
		return verify(ctx, env, o, log, file, cluster)
	}
	start := time.Now()
	o.say(env, "Migrating from %s to %s", source, destination)
	if fromFile {
		err = toCluster(ctx, env, o, log, source, destination)
	} else {
		err = toFile(ctx, env, o, log, source, destination)
	}
	if err != nil {
		return err
	}
	o.say(env, "Migration done in %.5f s", time.Since(start).Seconds())
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
	c, err := o.OpenCluster(ctx, env, destination, log, client.Config{Level: level, CacheSize: 16 << 20})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	m := migration{env: env, o: o, file: r, c: c}
	defer m.done()
	err = m.run(ctx)
	if m.refused != nil {
		return m.refused
	}
	if e, ok := errors.AsType[*exporter.InterruptedError](err); ok {
		return fmt.Errorf("stopped after transaction %v, run again to go on: %w", e.Last, e.Err)
	}
	if e, ok := errors.AsType[*exporter.NotPrefixError](err); ok {
		hint := "migrate to a new cluster instead"
		if d := e.First; d.What == exporter.MissingInDestination && d.TID > 1 {
			// A storage was lost while many transactions were under way: later ones were committed.
			hint = fmt.Sprintf("after the loss of a storage, neoctl truncate 0x%v takes away what follows the gap, and this command then goes on from there; else migrate to a new cluster instead", d.TID-1)
		}
		return fmt.Errorf("cluster %s: %w; it stays as it is: %s", o.Cluster, err, hint)
	}
	if err != nil {
		return fmt.Errorf("cluster %s: %w", o.Cluster, err)
	}
	m.done()
	return r.TellBlobs(o.blobDir)
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
