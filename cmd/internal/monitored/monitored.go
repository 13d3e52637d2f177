// Package monitored is the option --monitor of the programs: the address at which they are
// watched.
//
// # Invariant
//
// An address that cannot be used is refused before the program does anything else.
package monitored

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/neozodb/neo/cluster/monitor"
	"github.com/neozodb/neo/cluster/monitor/metrics"
	"github.com/neozodb/neo/cluster/monitor/page"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// Option is the option --monitor. Without it, nothing listens, and the methods do nothing.
type Option struct {
	addr     string
	listener net.Listener
	server   *monitor.Server
	// Of programs that show the cluster.
	repositories []string
	urls         []*url.URL
	stopPage     func()
}

// AddFlags defines --monitor. pages says what there is beside metrics and probes, "" if nothing.
func (o *Option) AddFlags(fs *pflag.FlagSet, pages string) {
	cli.Text(fs, &o.addr, "monitor", "", "", "HOST:PORT to be watched at, over HTTP: /metrics for Prometheus, /healthz and /readyz for probes"+pages+" (default: none)")
	cli.InFull(fs, "monitor") // --m is --masters
}

// Listen opens the address. Close must be called then, whatever comes.
func (o *Option) Listen(ctx context.Context) error {
	if err := o.checkPage(); err != nil {
		return err
	}
	if o.addr == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(o.addr)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return cli.Usagef("--monitor: %q is not HOST:PORT", o.addr)
	}
	if o.listener, err = monitor.Listen(ctx, o.addr); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("--monitor: %w: each node needs an address of its own", err)
		}
		return fmt.Errorf("--monitor: %w", err)
	}
	return nil
}

// Serve begins to answer, as early as possible: a start may take its time.
// page is what there is beside metrics and probes, nil if nothing.
func (o *Option) Serve(watched *metrics.Set, log *slog.Logger, page http.Handler) {
	if o.listener == nil {
		return
	}
	cfg := watched.Config()
	cfg.Log, cfg.Page = log, page
	o.server = monitor.Serve(o.listener, cfg)
}

// AddPageFlags is AddFlags of a program that shows the cluster.
func (o *Option) AddPageFlags(fs *pflag.FlagSet) {
	o.AddFlags(fs, "; / is a page that shows the cluster")
	cli.Texts(fs, &o.repositories, "backup-metrics", "", "show there also the backup repositories of the daemon of neobackup with this address of metrics, such as http://127.0.0.1:9145/metrics; may be repeated")
	cli.InFull(fs, "backup-metrics")
}

// checkPage refuses what --backup-metrics cannot be.
func (o *Option) checkPage() error {
	if len(o.repositories) > 0 && o.addr == "" {
		return cli.Usagef("--backup-metrics is about the page of --monitor, which is not given")
	}
	for _, s := range o.repositories {
		u, err := page.ParseMetricsURL(s)
		if err != nil {
			return cli.Usagef("--backup-metrics: %w", err)
		}
		o.urls = append(o.urls, u)
	}
	return nil
}

// ServePage begins to answer, with the page of the cluster that asker asks about.
func (o *Option) ServePage(watched *metrics.Set, log *slog.Logger, asker *page.Asker) {
	if o.listener == nil {
		return
	}
	p := page.New(page.Config{Collect: asker.Collect, Repositories: o.urls, Version: cli.Version(), Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Run(ctx)
	}()
	o.stopPage = func() {
		cancel()
		<-done
		asker.Close()
	}
	o.Serve(watched, log, p)
}

// Close ends it.
func (o *Option) Close() {
	if o.stopPage != nil {
		defer o.stopPage()
	}
	switch {
	case o.server != nil:
		o.server.Close()
	case o.listener != nil:
		_ = o.listener.Close() // nothing was served
	}
}
