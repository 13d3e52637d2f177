package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/serve"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cmd/internal/cli"
)

type serveOptions struct {
	reading
	at      string
	bind    []string
	follow  bool
	refresh time.Duration

	cert, key, auth string // TLS with clients

	ready func([]net.Addr) // for tests
}

func newServeCommand(env *cli.Env) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve -b HOST:PORT [options]",
		Short: "Serve the backup to ZEO clients, read-only, without restoring it",
		Long: `Serve what is in the repository to ZEO clients, as it was at --at T, without restoring it: the first
object is there about a second after the start. The name of the storage is 1. Clients cannot write. What they read is fetched from the store when
it is needed; indexes are kept in the state directory.

With --follow, clients see what is added to the repository, as another server would show it.` + exitStatus,
		Example: "  neobackup serve -b 127.0.0.1:8100 --identity operator.txt\n  neobackup serve -b 8100 --at 'yesterday 18:00' --identity operator.txt",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, func(ctx context.Context, _ []string) error { return runServe(ctx, env, &o) }),
	}
	fs := cmd.Flags()
	cli.Text(fs, &o.at, "at", "", "latest", "T: the moment to serve")
	cli.Texts(fs, &o.bind, "bind", "b", "listening address: HOST:PORT or PORT; repeatable (required)")
	cli.Flag(fs, &o.follow, "follow", "", "show what is added to the repository")
	fs.DurationVar(&o.refresh, "refresh", time.Second, "how often --follow looks for it")
	cli.Path(fs, &o.cert, "ssl-certificate", "", "", "(PEM) certificate shown to clients; enables TLS with them")
	cli.Path(fs, &o.key, "ssl-key", "", "", "(PEM) its private key (default: in the same file)")
	cli.Path(fs, &o.auth, "ssl-authenticate", "", "", "(PEM) file or directory of the authorities of clients, with revocation lists")
	o.addFlags(cmd)
	return cmd
}

func runServe(ctx context.Context, env *cli.Env, o *serveOptions) error {
	switch {
	case len(o.bind) == 0:
		return cli.Usagef("where? Give -b HOST:PORT")
	case o.follow && o.at != "latest":
		return cli.Usagef("--follow goes on from the newest transaction: without --at")
	case o.given("refresh") && !o.follow:
		return cli.Usagef("--refresh is for --follow")
	case o.refresh < 100*time.Millisecond:
		return cli.Usagef("--refresh %v is less than 100ms", o.refresh)
	}
	return cli.Stopped(ctx, o.view(ctx, env, func(s *session, p *place, keys *backup.Keys) (err error) {
		defer s.log.Crashed()
		signals, stop := context.WithCancel(ctx)
		wait := s.log.HandleSignals(signals, func(io.Writer) {})
		defer wait()
		defer stop()
		var listeners []net.Listener
		var addrs []net.Addr
		defer func() {
			for _, l := range listeners {
				l.Close() // closed already unless the start failed
			}
		}()
		for _, b := range o.bind {
			l, err := net.Listen("tcp", address(b))
			if err != nil {
				return err
			}
			listeners = append(listeners, l)
		}
		at, err := p.at(o.at, o.now())
		if err != nil {
			return err
		}
		if err := s.notBefore(ctx, p, keys, at); err != nil {
			return err
		}
		opt := serve.Options{Log: s.log.Logger}
		served := at
		if o.follow {
			opt.Follow, at = o.refresh, tid.Zero
		}
		if o.cert != "" || o.key != "" || o.auth != "" {
			if opt.TLS, err = zeo.LoadTLS(o.auth, o.cert, o.key); err != nil {
				return wrong(err)
			}
		}
		db, err := s.database(ctx, p, keys, at)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		for _, l := range listeners {
			o.say(env, "serving %s at %v (%s) on %v", s.Marker.Name, served, when(served), l.Addr())
			addrs = append(addrs, l.Addr())
		}
		if o.ready != nil {
			o.ready(addrs)
		}
		return serve.Serve(ctx, db, listeners, opt)
	}))
}

// address returns HOST:PORT of what -b says.
func address(bind string) string {
	if _, _, err := net.SplitHostPort(bind); err == nil {
		return bind
	}
	return fmt.Sprintf(":%s", bind)
}
