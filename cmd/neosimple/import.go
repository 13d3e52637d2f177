package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/importer"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/source"
)

// background is the import of a Data.fs into the first storage while the cluster serves it.
type background struct {
	source  string
	backend *importer.Backend // nil: the file is copied before anything is served
}

// opener returns how the databases of the cluster are opened. A new database, or one into
// which an import has begun, serves the Data.fs while it is copied. Several storages, and files
// that are not taken as they are, need the copy first: see importFile.
func (b *background) opener(ctx context.Context, env *cli.Env, o *options) func(n, of int, path string, log *slog.Logger) (backend.Backend, error) {
	b.source = o.source
	return func(n, of int, path string, log *slog.Logger) (backend.Backend, error) {
		first := o.source != "" && n == 1
		db, err := openNative(ctx, o, path, first, log)
		if errors.Is(err, backend.ErrHalfImported) {
			return nil, fmt.Errorf("%w; here: start it again with --import and the Data.fs that it comes from", err)
		}
		if err != nil || !first {
			return db, err
		}
		native := db.(importer.Native) // each is one
		begun, used, err := condition(native)
		if err == nil && !begun && o.extend {
			err = cli.Usagef("--extend-import: no import has begun in %s that could be extended: start it without", adapter.Name(o.adapter, path))
		}
		if err == nil && !begun && (used || of > 1 || o.replicas > 0 || o.Renumber || o.Strict) {
			return db, nil
		}
		if err == nil && begun && o.Renumber {
			err = cli.Usagef("--renumber comes too late: the import of %s has begun without it", o.source)
		}
		if err != nil {
			return nil, errors.Join(err, db.Close())
		}
		cli.SpareMemory()
		var bar *cli.Progress
		var whole int64 // size of what bar is about
		cfg := importer.Config{
			Import: config.Import{
				Destination: config.Destination{Section: "neo", Adapter: o.adapter, Database: path, Compress: -1},
				Sources:     []config.Source{{Section: "root", DatabaseName: "root", Storage: config.Storage{File: &config.File{Path: o.source}}}},
			},
			Open: func(context.Context, config.Destination) (importer.Native, error) { return native, nil },
			Progress: func(_ string, pos, size int64) {
				if bar == nil {
					bar = cli.NewProgress(env, cli.ProgressConfig{What: "reading " + o.source + ", which has no index", Total: size, Quiet: o.quiet})
				}
				bar.Set(0, pos)
				whole = size
			},
			Advice: fmt.Sprintf("The file %s is not needed any more: the next start may be without --import.", o.source),
			Log:    log,
		}
		if o.extend {
			x, err := importer.Extend(ctx, cfg) // native is closed
			if err != nil {
				return nil, fmt.Errorf("--extend-import: %w", err)
			}
			if !o.quiet {
				fmt.Fprintln(env.Stderr, x)
			}
			if db, err = openNative(ctx, o, path, first, log); err != nil {
				return nil, err
			}
			native = db.(importer.Native)
		}
		b.backend, err = importer.Open(ctx, cfg)
		if bar != nil {
			if err == nil {
				bar.Set(0, whole) // it is told now and then
			}
			bar.Done()
		}
		switch {
		case errors.Is(err, fsformat.ErrOrder):
			return nil, fmt.Errorf("importing %s: %w (or here, with --renumber)", o.source, err)
		case err != nil && ctx.Err() != nil:
			return nil, errInterrupted
		case err != nil:
			return nil, fmt.Errorf("importing %s: %w", o.source, err) // native is closed
		}
		if err := b.same(ctx); err != nil {
			return nil, errors.Join(err, b.backend.Close())
		}
		return b.backend, nil
	}
}

// openNative opens the database of a storage.
func openNative(ctx context.Context, o *options, path string, halfImported bool, log *slog.Logger) (backend.Backend, error) {
	return adapter.Open(context.WithoutCancel(ctx), adapter.Config{
		Adapter: o.adapter, Database: path, Engine: o.engine, Wait: time.Duration(o.wait * float64(time.Second)), HalfImported: halfImported, Log: log,
	})
}

// same returns an error if an import that is finished was of another file, which nothing else
// looks at any more.
func (b *background) same(ctx context.Context) error {
	r := b.backend.Progress()
	if r.State != importing.Done {
		return nil
	}
	if _, _, err := source.Added(ctx, b.source, r.End); err != nil {
		return fmt.Errorf("the import is finished, but is not seen to be one of this file: %w; the cluster stays as it is: start it without --import", err)
	}
	return nil
}

// errInterrupted reports an end before anything was served.
var errInterrupted = errors.New("interrupted before everything was imported; with --dir, the same command goes on")

// condition returns whether an import into a database has begun, and whether it is used
// otherwise.
func condition(native importer.Native) (begun, used bool, err error) {
	state, err := native.ImportState()
	if err != nil {
		return false, false, err
	}
	cfg, err := native.Config()
	return state.OK, cfg.PTID.OK, err
}

// statusEvery is how often it is looked how far the import is.
const statusEvery = 500 * time.Millisecond

// follow shows how far the import is until ctx ends, or nothing more is to be done.
func (b *background) follow(ctx context.Context, env *cli.Env, quiet bool) {
	status := cli.NewStatus(env)
	defer status.End()
	for {
		r := b.backend.Progress()
		if !quiet || r.State.Bad() {
			status.Show(r.State.String(), r.String())
		}
		if r.State.Over() && !r.State.Bad() {
			status.End()
			if err := side.TellBlobs(env.Stderr, b.source, "", r.Blobs); err != nil {
				fmt.Fprintf(env.Stderr, "warning: %v\n", err)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(statusEvery):
		}
	}
}

// welcome says in words what is served.
func (b *background) welcome() string {
	r := b.backend.Progress()
	if r.State == importing.Done {
		return fmt.Sprintf("It has everything that was in %s up to transaction %v%s.", b.source, r.End, b.added(r.End))
	}
	return fmt.Sprintf("It serves what is in %s, and copies it meanwhile (%s).", b.source, r.Copied())
}

// added says that a file goes on after the end of its import, "" if it does not.
func (b *background) added(end tid.TID) string {
	last, n, err := source.Added(context.Background(), b.source, end)
	if err != nil || n == 0 {
		return ""
	}
	return fmt.Sprintf(", but NOT %s that the file has got since, up to %v: start again with --extend-import to import them too, unless clients of the cluster have committed", plural(n, "transaction"), last)
}

// left says what is to be done if the import has not come to its end, "" otherwise.
func (b *background) left() string {
	r := b.backend.Progress()
	if r.State == importing.Done {
		return ""
	}
	return fmt.Sprintf("The import of %s has not come to its end (%s): start the same command again, and it goes on.", b.source, r.Copied())
}

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
			file.CountBlobs(last)
			bar = cli.NewProgress(env, cli.ProgressConfig{What: "importing", Items: "transactions", Bytes: true, Total: file.Size(), Quiet: o.quiet})
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
	if err := file.TellBlobs(""); err != nil {
		return "", err
	}
	return fmt.Sprintf("It has %s with %s from %s.", plural(int(transactions), "transaction"), plural(int(records), "record"), o.source), nil
}
