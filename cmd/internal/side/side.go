// Package side opens what a copy is made from or to, as it is named on a command
// line: an existing path is a Data.fs, anything else the masters of a cluster.
package side

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/pflag"

	"github.com/neozodb/neo/cluster/client"
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
	Cluster   string // -c, or what the file or a side says once OpenCluster was called
	File      string // -f
	Quiet     bool   // -q
	AnyStatus bool   // --any-status
}

// AddFlags defines -c, -f, -q, --any-status, --strict, --renumber, -l, --ca, --cert and
// --key.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	cli.Text(fs, &o.Cluster, "cluster", "c", "", "name of the cluster")
	cli.Path(fs, &o.File, "file", "f", "", "configuration file, whose section DEFAULT has cluster, masters, ca, cert and key")
	cli.Flag(fs, &o.Quiet, "quiet", "q", "print nothing but errors")
	cli.Flag(fs, &o.AnyStatus, "any-status", "", "take transactions of a Data.fs with an invalid status for committed ones, as Python does")
	o.Reading.AddFlags(fs)
	o.Logging.AddFlags(fs)
	o.TLS.AddFlags(fs)
}

// IsFile reports whether a side that exists is a Data.fs.
func IsFile(name string) bool {
	if IsURI(name) {
		return false
	}
	_, err := os.Stat(name)
	return err == nil
}

// OpenCluster connects to a cluster. name is the list of its masters, its URI, or
// neo:// for that of the configuration file. While a cluster does not serve, it is said on
// stderr why.
func (o *Options) OpenCluster(ctx context.Context, env *cli.Env, name string, log *cli.Log, cfg client.Config) (*client.Client, error) {
	masters, err := o.masters(ctx, env, name)
	if err != nil {
		return nil, err
	}
	if cfg.TLS, err = o.TLSConfig(); err != nil {
		return nil, err
	}
	for _, a := range masters {
		cfg.Masters = append(cfg.Masters, proto.Address(a))
	}
	cfg.Cluster = o.Cluster
	cfg.OnWait = tellWait(env, o.Cluster)
	links := log.LinkConfig(cfg.TLS)
	cfg.Log, cfg.Record, cfg.FlushLog = links.Log, links.Record, log.FlushFile
	return client.Open(ctx, cfg)
}

// tellWait says why a cluster is waited for, once for each reason, and the end of that.
func tellWait(env *cli.Env, cluster string) func(error) {
	last := ""
	return func(why error) {
		text := "cluster " + cluster + " serves again"
		if why != nil {
			if e, ok := errors.AsType[*proto.Error](why); ok && e.ErrCode == proto.NotReady {
				why = errors.New(e.Message) // of the master
			}
			text = fmt.Sprintf("waiting for cluster %s: %v", cluster, why)
		}
		if text != last {
			fmt.Fprintln(env.Stderr, text)
		}
		last = text
	}
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
	c, err := o.OpenCluster(ctx, env, name, log, client.Config{ReadOnly: true, CacheSize: 1 << 20})
	if err != nil {
		return nil, err
	}
	return &Source{c, nil, c.Close}, nil
}

// Files returns an error if one of the paths is that by which programs mean stdin or stdout.
func Files(paths ...string) error {
	if slices.Contains(paths, "-") {
		return cli.Usagef("- is neither stdin nor stdout here: a Data.fs is read and written at many places; for a file of that name write ./-")
	}
	return nil
}

// CheckMagic returns an error if the value of --magic is none; "" is that of a default.
func CheckMagic(magic string) error {
	switch fsformat.Magic(magic) {
	case "", fsformat.FS30, fsformat.FS21:
		return nil
	}
	return cli.Usagef("--magic %q: want %s or %s", magic, fsformat.FS30, fsformat.FS21)
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
