package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/monitor/metrics"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/neodoor"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/monitored"
	"github.com/neozodb/neo/cmd/internal/side"
)

type options struct {
	cli.Logging
	cli.TLS
	cli.PeerTimeout
	config, section string
	cluster         string
	masters         string
	bind            []string
	storages        []string
	file            string
	cacheSize       string

	readOnly  bool
	queueSize int
	queueAge  float64
	timeout   float64
	resolve   bool
	msgpack   bool
	pidFile   string
	sslCert   string
	sslKey    string
	sslAuth   string
	monitor   monitored.Option
	watched   *metrics.Set
}

func newCommand(env *cli.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "neozeo {-c CLUSTER -m MASTERS | --file DATA_FS} -b HOST:PORT [options]",
		Short: "Serve a NEO cluster to ZEO clients",
		Long: `Serve a NEO cluster, or Data.fs files (read-only), to unmodified ZEO clients.

Clients ask for a storage by its name, "1" if they are not told another. Every
--storage NAME is one more name of the cluster given by -c and -m or of the file
given by --file. --storage NAME=SOURCE serves another database under that name;
SOURCE is the path of a Data.fs, or neo://CLUSTER@HOST:PORT,HOST:PORT with the
masters of a cluster.

Conflicts are resolved by the clients, which have the classes. Any number of
neozeo may serve one cluster: all clients see the same transactions in the same
order.

Clients may pack: this removes history, as with pack-gc false in a Python server.
Objects that no other refers to stay; multi-zodb-gc of zc.zodbdgc removes them. What
they are shown as the number of objects and the size is an estimate from a sample.
They may copy other storages into an empty cluster (copyTransactionsFrom,
zodbconvert): transactions keep their ids.` + cli.ExitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := slices.Clone(o.bind)
			if err := cli.MergeFile(cmd.Flags(), o.config, o.section); err != nil {
				return err
			}
			if err := o.check(cmd.Flags()); err != nil {
				return err
			}
			if len(given) > 0 { // instead of those of the file
				o.bind = given
			}
			if env.Getenv("ZEO_MSGPACK") != "" && !cmd.Flags().Changed("msgpack") {
				o.msgpack = true
			}
			return run(cmd.Context(), env, &o, func([]net.Addr) {})
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

// check refuses options that make no sense together.
func (o *options) check(fs *pflag.FlagSet) error {
	const most = 100 * 365 * 86400. // seconds
	if o.file != "" && !cli.Given(fs, "cluster") {
		o.cluster = "" // [DEFAULT] means the nodes of a cluster
	}
	if _, err := client.ParseSize(o.cacheSize); err != nil {
		return cli.Usagef("--cache-size: %w", err)
	}
	switch {
	case o.cluster == "" && cli.Given(fs, "masters"):
		return cli.Usagef("--masters are those of a cluster, and none is named: --cluster")
	case (o.sslKey != "" || o.sslAuth != "") && o.sslCert == "":
		return cli.Usagef("--ssl-key and --ssl-authenticate do not go without --ssl-certificate")
	case o.sslCert != "" && o.sslAuth == "":
		return cli.Usagef("--ssl-certificate needs --ssl-authenticate, which says which clients are let in")
	case o.queueSize <= 0:
		return cli.Usagef("--invalidation-queue-size must be more than zero")
	case !(o.queueAge >= 0 && o.queueAge <= most):
		return cli.Usagef("--invalidation-age %v: want seconds, not negative", o.queueAge)
	case !(o.timeout >= 0 && o.timeout <= most):
		return cli.Usagef("--transaction-timeout %v: want seconds, 0 for no limit", o.timeout)
	}
	return nil
}

func (o *options) addFlags(fs *pflag.FlagSet) {
	cli.Path(fs, &o.config, "config", "f", "", "configuration file")
	cli.Text(fs, &o.section, "section", "s", "zeo", "section of the configuration file")
	cli.Text(fs, &o.cluster, "cluster", "c", "", "name of the cluster")
	cli.Text(fs, &o.masters, "masters", "m", "127.0.0.1:10000", "addresses of the masters, separated by spaces")
	cli.Texts(fs, &o.bind, "bind", "b", "listening address: HOST:PORT, PORT, or the path of a Unix socket; repeatable (required); those of the command line replace those of the file")
	cli.Texts(fs, &o.storages, "storage", "", `NAME or NAME=SOURCE of a storage; repeatable (default "1")`)
	cli.Path(fs, &o.file, "file", "", "", "serve this Data.fs, read-only, instead of a cluster")
	cli.Text(fs, &o.cacheSize, "cache-size", "", "256MB", "memory for cached objects, for each cluster")
	o.Logging.AddFlags(fs)
	o.Logging.Informs(fs)
	o.TLS.AddFlags(fs)
	o.PeerTimeout.AddFlags(fs)
	cli.Flag(fs, &o.readOnly, "read-only", "", "clients cannot write")
	fs.IntVar(&o.queueSize, "invalidation-queue-size", 10000, "transactions kept for clients that reconnect")
	fs.Float64Var(&o.queueAge, "invalidation-age", 0, "seconds; clients that were away for less can use older transactions as well")
	fs.Float64Var(&o.timeout, "transaction-timeout", 0, "seconds from vote to end of a transaction, after which the client is disconnected (default: no limit)")
	cli.Flag(fs, &o.resolve, "client-conflict-resolution", "", "accepted for compatibility: clients always resolve conflicts")
	cli.Flag(fs, &o.msgpack, "msgpack", "", "propose the msgpack encoding (not to clients of ZEO 5.0; also if ZEO_MSGPACK is set)")
	cli.Path(fs, &o.pidFile, "pid-filename", "", "", "write the process id to this file")
	cli.Path(fs, &o.sslCert, "ssl-certificate", "", "", "(PEM) certificate shown to clients; enables TLS with them")
	cli.Path(fs, &o.sslKey, "ssl-key", "", "", "(PEM) its private key (default: in the same file)")
	cli.Path(fs, &o.sslAuth, "ssl-authenticate", "", "", "(PEM) file or directory of the authorities of clients, with revocation lists")
	o.monitor.AddFlags(fs, "")
	cli.Required(fs, "bind")
	cli.CommandLineOnly(fs, "config", "section")
}

// storage is an open database.
type storage interface {
	zeo.Storage
	Close() error
}

// run serves until ctx ends; ready is told the addresses.
func run(ctx context.Context, env *cli.Env, o *options, ready func([]net.Addr)) (err error) {
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	defer log.Crashed()
	signals, stop := context.WithCancel(ctx)
	wait := log.HandleSignals(signals, func(io.Writer) {})
	defer wait()
	defer stop()

	cfg := zeo.Config{
		Storages:              make(map[string]zeo.Storage),
		ReadOnly:              o.readOnly,
		Msgpack:               o.msgpack,
		InvalidationQueueSize: o.queueSize,
		InvalidationAge:       seconds(o.queueAge),
		TransactionTimeout:    seconds(o.timeout),
		Log:                   log.Logger,
	}
	if o.sslCert != "" || o.sslKey != "" || o.sslAuth != "" {
		if cfg.TLS, err = zeo.LoadTLS(o.sslAuth, o.sslCert, o.sslKey); err != nil {
			return err
		}
	}
	sources, err := o.sources()
	if err != nil {
		return err
	}
	// Listening comes first: a port in use must not cost a long start.
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close() // closed already unless the start failed
		}
	}()
	for _, b := range o.bind {
		l, err := listen(b)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	if err := o.monitor.Listen(ctx); err != nil {
		return err
	}
	defer o.monitor.Close()
	o.watched = metrics.NewSet("starting: waiting for the databases to serve")
	o.watched.Certificates(cfg.TLS)
	o.monitor.Serve(o.watched, log.Logger, nil)
	service := log.Service(ctx, env)
	defer service.Stopping()
	service.Status("waiting for what is to be served")
	open := make(map[string]storage)
	defer func() {
		for name, st := range open {
			if e := st.Close(); e != nil && err == nil {
				err = fmt.Errorf("%s: %w", name, e)
			}
		}
	}()
	for name, source := range sources {
		// Each name has a storage of its own: it is watched once.
		st, err := o.open(ctx, log, source)
		if err != nil {
			return cli.Stopped(ctx, fmt.Errorf("storage %s: %w", name, err))
		}
		open[name] = st
		cfg.Storages[name] = st
	}
	server, err := zeo.New(ctx, cfg)
	if err != nil {
		return cli.Stopped(ctx, err)
	}
	defer server.Close()
	o.watched.Complete(metrics.ZEO(o.cluster, cli.Version(), server, clients(open)))
	if o.pidFile != "" {
		if err := os.WriteFile(o.pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o666); err != nil {
			return err
		}
		defer os.Remove(o.pidFile)
	}
	var addrs []net.Addr
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		addrs = append(addrs, l.Addr())
		log.Info("listening on", "addr", l.Addr().String())
		go func() { failed <- server.Serve(l) }()
	}
	log.Info("ready", "storages", strings.Join(slices.Sorted(maps.Keys(sources)), " "))
	ready(addrs)
	service.Ready(fmt.Sprintf("serving ZEO clients at %v", addrs))
	running := len(listeners)
	select {
	case <-ctx.Done():
		err = cli.Stopped(ctx, context.Cause(ctx))
	case err = <-failed:
		running--
	}
	server.Close()
	for range running {
		err = errors.Join(err, <-failed)
	}
	return err
}

// clients returns the storages that are in a cluster.
func clients(open map[string]storage) map[string]metrics.Client {
	in := map[string]metrics.Client{}
	for name, st := range open {
		if c, ok := st.(metrics.Client); ok {
			in[name] = c
		}
	}
	return in
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// listen opens a listener on what -b names.
func listen(bind string) (net.Listener, error) {
	if strings.Contains(bind, "/") {
		return listenUnix(bind)
	}
	if _, err := strconv.ParseUint(bind, 10, 16); err == nil {
		bind = ":" + bind
	} else if !strings.Contains(bind, ":") || strings.HasSuffix(bind, "]") {
		bind += ":0"
	}
	if host, port, err := net.SplitHostPort(bind); err != nil {
		return nil, cli.Usagef("--bind: %w", err)
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, cli.Usagef("--bind %s: port %q is not a number from 0 to 65535", net.JoinHostPort(host, port), port)
	}
	l, err := net.Listen("tcp", bind)
	if err != nil {
		return nil, fmt.Errorf("--bind: %w", err)
	}
	return l, nil
}

// listenUnix replaces a socket that a server which died has left.
func listenUnix(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if err == nil {
		return l, nil
	}
	if c, dialErr := net.Dial("unix", path); dialErr == nil {
		c.Close()
		return nil, err
	}
	if fi, statErr := os.Lstat(path); statErr != nil || fi.Mode()&os.ModeSocket == 0 {
		return nil, err
	}
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	return net.Listen("unix", path)
}

// source is where a storage comes from: a Data.fs or a cluster.
type source struct {
	file             string
	cluster, masters string
}

// sources returns the storages to serve, by name.
func (o *options) sources() (map[string]source, error) {
	main := source{file: o.file, cluster: o.cluster, masters: o.masters}
	switch {
	case o.file != "" && o.cluster != "":
		return nil, cli.Usagef("either a cluster or a file: give one of -c and --file")
	case o.file != "":
		main = source{file: o.file}
	}
	hasMain := o.file != "" || o.cluster != ""
	names := o.storages
	if len(names) == 0 {
		names = []string{"1"}
	}
	all := make(map[string]source)
	for _, s := range names {
		name, from, given := strings.Cut(s, "=")
		src := main
		switch {
		case name == "":
			return nil, cli.Usagef("storage %q has no name", s)
		case given:
			var err error
			if src, err = parseSource(from); err != nil {
				return nil, err
			}
		case !hasMain:
			return nil, cli.Usagef("storage %s: nothing to serve: give -c and -m, --file, or --storage NAME=SOURCE", name)
		}
		if _, twice := all[name]; twice {
			return nil, cli.Usagef("storage %s is given twice", name)
		}
		all[name] = src
	}
	return all, nil
}

func parseSource(s string) (source, error) {
	rest, ok := strings.CutPrefix(s, "neo://")
	if !ok {
		if s == "" {
			return source{}, cli.Usagef("storage without source after the equals sign")
		}
		return source{file: s}, nil
	}
	cluster, masters, ok := strings.Cut(rest, "@")
	if !ok || cluster == "" || masters == "" {
		return source{}, cli.Usagef("%q: want neo://CLUSTER@HOST:PORT,HOST:PORT", s)
	}
	return source{cluster: cluster, masters: strings.ReplaceAll(masters, ",", " ")}, nil
}

// open opens a database.
func (o *options) open(ctx context.Context, log *cli.Log, src source) (storage, error) {
	if src.file != "" {
		if err := side.Files(src.file); err != nil {
			return nil, err
		}
		path, err := conf.ExpandUser(src.file)
		if err != nil {
			return nil, err
		}
		return openFile(ctx, path)
	}
	size, err := client.ParseSize(o.cacheSize)
	if err != nil {
		return nil, cli.Usagef("--cache-size: %w", err)
	}
	masters, err := conf.ParseMasters(src.masters)
	if err != nil {
		return nil, cli.Usagef("masters of cluster %s: %w", src.cluster, err)
	}
	if masters, err = conf.ResolveAll(ctx, masters); err != nil {
		return nil, err
	}
	if len(masters) == 0 {
		return nil, cli.Usagef("no master address given")
	}
	cfg := client.Config{Cluster: src.cluster, ReadOnly: o.readOnly, CacheSize: size}
	for _, a := range masters {
		cfg.Masters = append(cfg.Masters, proto.Address(a))
	}
	if cfg.TLS, err = o.TLSConfig(); err != nil {
		return nil, err
	}
	o.watched.Certificates(cfg.TLS)
	if cfg.PeerTimeout, err = o.PeerTimeout.Limit(); err != nil {
		return nil, err
	}
	links := log.LinkConfig(cfg.TLS)
	cfg.Log, cfg.Record, cfg.FlushLog = links.Log, links.Record, log.FlushFile
	return neodoor.Open(ctx, cfg)
}
