// Package side opens what a copy is made from or to, as it is named on a command
// line: an existing path is a Data.fs, anything else the masters of a cluster.
package side

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

// Options are those of a command with a cluster on one side.
type Options struct {
	cli.Logging
	cli.TLS
	Reading
	Cluster   string // -c
	Quiet     bool   // -q
	AnyStatus bool   // --any-status
}

// AddFlags defines -c, -q, --any-status, --strict, --renumber, -l, --ca, --cert and
// --key.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	cli.Text(fs, &o.Cluster, "cluster", "c", "", "name of the cluster")
	cli.Flag(fs, &o.Quiet, "quiet", "q", "print nothing but errors")
	cli.Flag(fs, &o.AnyStatus, "any-status", "", "take transactions of a Data.fs with an invalid status for committed ones, as Python does")
	o.Reading.AddFlags(fs)
	o.Logging.AddFlags(fs)
	o.TLS.AddFlags(fs)
}

// IsFile reports whether a side that exists is a Data.fs.
func IsFile(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// OpenCluster connects to a cluster. name is the list of its masters.
func (o *Options) OpenCluster(ctx context.Context, name string, log *cli.Log, cfg client.Config) (*client.Client, error) {
	if o.Cluster == "" {
		return nil, cli.Usagef("%q is not a file, so it must be the masters of a cluster: its name is missing (-c)", name)
	}
	masters, err := conf.ParseMasters(name)
	if err != nil {
		return nil, fmt.Errorf("%q is neither an existing file nor a list of masters: %w", name, err)
	}
	if len(masters) == 0 {
		return nil, cli.Usagef("empty list of masters")
	}
	if masters, err = conf.ResolveAll(ctx, masters); err != nil {
		return nil, fmt.Errorf("%q is neither an existing file nor a list of masters: %w", name, err)
	}
	if cfg.TLS, err = o.TLSConfig(); err != nil {
		return nil, err
	}
	for _, a := range masters {
		cfg.Masters = append(cfg.Masters, proto.Address(a))
	}
	cfg.Cluster = o.Cluster
	links := log.LinkConfig(cfg.TLS)
	cfg.Log, cfg.Record, cfg.FlushLog = links.Log, links.Record, log.FlushFile
	return client.Open(ctx, cfg)
}

// Remaining returns how many bytes of a file hold what comes after a transaction:
// what a copy that goes on there has to do.
func Remaining(ctx context.Context, r *fsformat.Reader, after tid.TID) (int64, error) {
	for t, err := range r.Scan(ctx, after, tid.Max) {
		if err != nil {
			return 0, err
		}
		return r.Size() - t.Head.Pos, nil
	}
	return 0, nil
}

// Source is a database to read from.
type Source struct {
	txn.History
	File  *File // nil for a cluster
	close func() error
}

// CheckOrder is [File.CheckOrder]. A cluster has its transactions in order.
func (s *Source) CheckOrder(ctx context.Context, after tid.TID) error {
	if s.File == nil {
		return nil
	}
	return s.File.CheckOrder(ctx, after)
}

// Known is that of a file, see [fsformat.Checked]. A cluster has no use for it.
func (s *Source) Known(known func(tid.OID) bool) {
	if s.File != nil {
		s.File.Known(known)
	}
}

// Close closes the file or the links.
func (s *Source) Close() error { return s.close() }

// OpenSource opens a database for reading.
func (o *Options) OpenSource(ctx context.Context, env *cli.Env, name string, log *cli.Log) (*Source, error) {
	if IsFile(name) {
		f, err := o.OpenFile(ctx, env, name, o.AnyStatus, o.Quiet)
		if err != nil {
			return nil, err
		}
		return &Source{f, f, f.Close}, nil
	}
	// Nothing is loaded twice: the cache would only take memory.
	c, err := o.OpenCluster(ctx, name, log, client.Config{ReadOnly: true, CacheSize: 1 << 20})
	if err != nil {
		return nil, err
	}
	return &Source{c, nil, c.Close}, nil
}

// ErrSame reports a copy of a database onto itself.
var ErrSame = errors.New("source and destination are the same file")

// Distinct returns an error if a new Data.fs would be written over the file it is
// made from: under its own name, or under that which it has until it is complete.
func Distinct(source, destination string) error {
	switch {
	case same(source, destination):
		return cli.Usagef("%s: %w", source, ErrSame)
	case same(source, destination+".part"):
		return cli.Usagef("%s: %w while it is written: give the destination another name", source, ErrSame)
	}
	return nil
}

// same reports whether two paths are the same file.
func same(a, b string) bool {
	fa, errA := os.Stat(a)
	fb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(fa, fb)
}
