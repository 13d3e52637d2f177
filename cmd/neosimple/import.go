package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/exporter"
)

// importFile makes sure that the cluster has everything that is in a Data.fs, and
// says in words what it did. A cluster with something else is left as it is.
func importFile(ctx context.Context, env *cli.Env, o *options, log *cli.Log, cluster *simple.Cluster) (done string, err error) {
	file, err := o.OpenFile(ctx, env, o.source, false, o.quiet)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	links := log.LinkConfig(nil)
	tlsConfig, err := o.TLSConfig()
	if err != nil {
		return "", err
	}
	c, err := client.Open(ctx, client.Config{
		Cluster: cluster.Name(), Masters: []proto.Address{cluster.Master()}, TLS: tlsConfig,
		CacheSize: 16 << 20, Log: links.Log, Record: links.Record, FlushLog: log.FlushFile,
	})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	var bar *cli.Progress
	var transactions, records int64
	err = exporter.ToCluster(ctx, file, c, func() exporter.Appender { return c.NewAppender(ctx, client.AppenderOptions{}) }, exporter.ClusterOptions{
		Continued: true,
		Opened: func(last, upTo tid.TID) error {
			if last >= upTo {
				return nil
			}
			if err := file.TellRenumbered(ctx, last); err != nil {
				return err
			}
			bar = cli.NewProgress(env, cli.ProgressConfig{What: "importing", Items: "transactions", Total: file.Size(), Quiet: o.quiet})
			return nil
		},
		Progress: func(_ tid.TID, t, r, bytes int64) {
			transactions, records = t, r
			bar.Set(t, t*31+r*42+bytes) // about as much as in the file
		},
	})
	if bar != nil {
		bar.Done()
	}
	switch {
	case errors.As(err, new(*exporter.NotPrefixError)):
		return "", fmt.Errorf("cluster %q already has data that are not from this file: %w; it stays as it is: start it without --import, or import into another --dir", cluster.Name(), err)
	case err != nil:
		return "", err
	case bar == nil:
		return fmt.Sprintf("It already has everything that is in %s.", o.source), nil
	}
	return fmt.Sprintf("It has %s with %s from %s.", plural(int(transactions), "transaction"), plural(int(records), "record"), o.source), nil
}
