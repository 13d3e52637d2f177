package main

import (
	"context"
	"fmt"
	"net"
	"net/mail"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/neozodb/neo/cluster/admin"
	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/monitor/metrics"
	"github.com/neozodb/neo/cluster/monitor/page"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/vitals"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/monitored"
)

type options struct {
	cli.Daemon
	backups  []string
	maxLag   float64
	mailTo   []string
	interval float64
	smtp     string
	smtpTLS  bool
	smtpAuth string
	monitor  monitored.Option
}

func newCommand(env *cli.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "neoadmin -c CLUSTER [options]",
		Short: "Run an admin node of a NEO cluster",
		Long: `Run an admin node, through which neoctl operates a cluster. It can also watch
backups of the cluster, and write mails when something is wrong with one of them.

The node ends by itself when the cluster is shut down.` + cli.ExitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Load(cmd.Flags()); err != nil {
				return err
			}
			if err := o.check(cmd.Flags()); err != nil {
				return err
			}
			return run(cmd.Context(), env, &o)
		},
	}
	fs := cmd.Flags()
	o.AddFlags(fs, cli.Admin)
	cli.Texts(fs, &o.backups, "monitor-backup", "", "name of a backup cluster to watch; may be repeated")
	fs.Float64Var(&o.maxLag, "monitor-maxlag", 0, "seconds that a backup may be behind without a warning")
	cli.Texts(fs, &o.mailTo, "monitor-email", "", "address that gets the mails; may be repeated")
	fs.Float64Var(&o.interval, "monitor-interval", admin.DefaultMailInterval.Seconds(), "seconds between two mails, at least; what changes meanwhile is in the next one")
	cli.Text(fs, &o.smtp, "smtp", "", "localhost", "mail server, HOST[:PORT]")
	cli.Flag(fs, &o.smtpTLS, "smtp-tls", "", "encrypt the connection to the mail server (STARTTLS)")
	cli.Text(fs, &o.smtpAuth, "smtp-auth", "", "", "log in to the mail server with USER:PASSWORD")
	o.monitor.AddPageFlags(fs)
	return cmd
}

// check refuses values that make no sense, alone or without other options.
func (o *options) check(fs *pflag.FlagSet) error {
	if !(o.maxLag >= 0) {
		return cli.Usagef("--monitor-maxlag must be 0 seconds or more")
	}
	if !(o.interval > 0) {
		return cli.Usagef("--monitor-interval must be more than 0 seconds")
	}
	if len(o.backups) == 0 && cli.Given(fs, "monitor-maxlag") {
		return cli.Usagef("--monitor-maxlag is about backups, and none is watched: --monitor-backup")
	}
	for _, name := range []string{"monitor-interval", "smtp", "smtp-tls", "smtp-auth"} {
		if len(o.mailTo) == 0 && cli.Given(fs, name) {
			return cli.Usagef("--%s is about mails, and no address gets them: --monitor-email", name)
		}
	}
	return nil
}

func run(ctx context.Context, env *cli.Env, o *options) (err error) {
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	defer log.Crashed()

	cfg, err := o.config(ctx, env)
	if err != nil {
		return err
	}
	if err := o.monitor.Listen(ctx); err != nil {
		return err
	}
	defer o.monitor.Close()
	log.Node.Identify(o.Cluster, 0)
	cfg.Log, cfg.Record, cfg.FlushLog = log.Logger, log.LinkConfig(nil).Record, log.FlushFile
	cfg.Identified = func(id proto.NodeID) { log.Node.Identify(o.Cluster, int32(id)) }
	masters, dynamic, err := o.Masters(ctx)
	if err != nil {
		return err
	}
	cfg.Masters = bootstrap.NewMasters()
	for _, a := range masters {
		cfg.Masters.Learn(proto.Address(a))
	}
	if dynamic != nil {
		cfg.MastersKnown = func(list []proto.Address) {
			known := make([]conf.Address, len(list))
			for i, a := range list {
				known[i] = conf.Address(a)
			}
			if err := dynamic.Save(known); err != nil {
				log.Error("masters not saved", "err", err)
			}
		}
	}
	node, err := admin.New(cfg)
	if err != nil {
		return err
	}
	watched := metrics.NewSet("starting")
	watched.Certificates(cfg.TLS)
	watched.Complete(metrics.Admin(o.Cluster, cli.Version(), node))
	asker := page.NewAsker(link.Config{TLS: cfg.TLS})
	asker.Use(o.Cluster, node.Addr())
	o.monitor.ServePage(watched, log.Logger, asker)
	service := log.Service(ctx, env)
	defer service.Stopping()
	service.Ready(fmt.Sprintf("an admin of cluster %s at %v", o.Cluster, node.Addr()))
	signals, stop := context.WithCancel(ctx)
	wait := log.HandleSignals(signals, node.Dump)
	err = cli.Stopped(ctx, node.Run(ctx))
	stop()
	wait()
	return err
}

// config is the part of the configuration that comes from the options alone.
func (o *options) config(ctx context.Context, env *cli.Env) (admin.Config, error) {
	tlsConfig, err := o.TLSConfig()
	if err != nil {
		return admin.Config{}, err
	}
	limit, err := o.PeerTimeout.Limit()
	if err != nil {
		return admin.Config{}, err
	}
	bind, err := o.Bind(ctx)
	if err != nil {
		return admin.Config{}, err
	}
	cfg := admin.Config{
		Self: vitals.NewSelf(cli.Version()),

		Cluster:     o.Cluster,
		Bind:        proto.Address(bind),
		ID:          proto.NodeID(o.NodeID),
		TLS:         tlsConfig,
		PeerTimeout: limit,
		Backups:     o.backups,
		MaxLag:      time.Duration(o.maxLag * float64(time.Second)),

		MailInterval: time.Duration(o.interval * float64(time.Second)),
	}
	if len(o.mailTo) > 0 {
		m, err := o.mailer(env)
		if err != nil {
			return admin.Config{}, err
		}
		cfg.Mail = m.Send
	}
	return cfg, nil
}

// smtpPort is the port of mail servers.
const smtpPort = 25

func (o *options) mailer(env *cli.Env) (*admin.Mailer, error) {
	server, err := conf.ParseAddress(o.smtp, smtpPort)
	if err != nil {
		return nil, cli.Usagef("--smtp: %w", err)
	}
	m := &admin.Mailer{
		Server:   net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port))),
		StartTLS: o.smtpTLS,
		From:     mail.Address{Name: "NEO " + o.Cluster, Address: env.Getenv("EMAIL")},
		To:       o.mailTo,
	}
	for _, to := range m.To {
		if _, err := mail.ParseAddress(to); err != nil {
			return nil, cli.Usagef("mail address %q: %w", to, err)
		}
	}
	if o.smtpAuth != "" {
		var ok bool
		if m.User, m.Password, ok = strings.Cut(o.smtpAuth, ":"); !ok {
			return nil, cli.Usagef("--smtp-auth: want USER:PASSWORD")
		}
	}
	if m.From.Address == "" {
		u, err := user.Current()
		if err != nil {
			return nil, err
		}
		host, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		m.From.Address = u.Username + "@" + host
	}
	return m, nil
}
