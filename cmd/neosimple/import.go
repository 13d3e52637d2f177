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
	"github.com/neozodb/neo/cmd/internal/side"
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
	upTo, err := file.LastTID(ctx)
	if err != nil {
		return "", err
	}
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
	last, err := c.LastTID(ctx)
	if err != nil {
		return "", err
	}
	if err := checkImported(ctx, file, c, last, upTo); errors.As(err, new(*exporter.NotPrefixError)) {
		return "", fmt.Errorf("cluster %q already has data that are not from this file: %w; it stays as it is: start it without --import, or import into another --dir", cluster.Name(), err)
	} else if err != nil {
		return "", err
	}
	if last >= upTo {
		return fmt.Sprintf("It already has everything that is in %s.", o.source), nil
	}
	if err := file.TellRenumbered(ctx, last); err != nil {
		return "", err
	}
	return copyFile(ctx, env, o, file, c, last, upTo)
}

// checkImported compares what the cluster has, up to last, with the source. If it
// has gone on after the end of the source, the transaction there stands for all.
func checkImported(ctx context.Context, src exporter.Source, c *client.Client, last, upTo tid.TID) error {
	how := exporter.CompareOptions{AnyStatus: true, AnyOrder: true, FullData: true}
	after := tid.Zero
	if last >= upTo && upTo > tid.Zero {
		after, last = upTo-1, upTo
		how.Packed = true // what was written since may have made records superfluous
	}
	return exporter.Follows(ctx, src, c, after, last, how)
}

func copyFile(ctx context.Context, env *cli.Env, o *options, file *side.File, c *client.Client, last, upTo tid.TID) (string, error) {
	var transactions, records int64
	bar := cli.NewProgress(env, cli.ProgressConfig{What: "importing", Items: "transactions", Total: file.Size(), Quiet: o.quiet})
	a := c.NewAppender(ctx, client.AppenderOptions{})
	_, err := exporter.Copy(ctx, a, file, last, upTo, func(_ tid.TID, t, r, bytes int64) {
		transactions, records = t, r
		bar.Set(t, t*31+r*42+bytes) // about as much as in the file
	})
	if closeErr := a.Close(); closeErr != nil && !errors.Is(err, closeErr) {
		err = errors.Join(err, closeErr)
	}
	bar.Done()
	if err != nil {
		return "", fmt.Errorf("stopped after transaction %v: %w", a.LastTID(), err)
	}
	return fmt.Sprintf("It has %s with %s from %s.", plural(int(transactions), "transaction"), plural(int(records), "record"), o.source), nil
}
