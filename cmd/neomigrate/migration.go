package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/exporter"
)

// migration is a copy of a Data.fs into a cluster, which goes on after the cluster was out
// of service.
type migration struct {
	env  *cli.Env
	o    *options
	file *side.File
	c    *client.Client

	bar     *cli.Progress
	refused error // of what is told at the beginning

	total        int64     // bytes of the file that were to be copied
	before       int64     // of them, copied by earlier attempts
	transactions int64     // copied by earlier attempts
	copied       int64     // by this attempt
	latest       []tid.TID // copied, at least as many as may be under way
	last         tid.TID   // where the latest attempt began
}

const (
	// retries is how many attempts in a row may fail without a transaction copied, although
	// the cluster serves.
	retries    = 10
	retryPause = time.Second
)

// run copies, again and again while the cluster is out of service.
func (m *migration) run(ctx context.Context) error {
	opened := func(last, _ tid.TID) error {
		m.refused = m.begin(ctx, last)
		return m.refused
	}
	for failed := 0; ; {
		began := m.last
		err := exporter.ToCluster(ctx, m.file, m.c, func() exporter.Appender {
			return m.c.NewAppender(ctx, client.AppenderOptions{Window: m.o.window})
		}, exporter.ClusterOptions{Recent: recent, Opened: opened, Progress: m.progress})
		if err == nil || m.refused != nil || ctx.Err() != nil || m.bar == nil || !errors.Is(err, txn.ErrUnavailable) {
			return err
		}
		if failed++; m.last > began {
			failed = 0
		}
		if failed == retries {
			return err
		}
		fmt.Fprintf(m.env.Stderr, "the copy was interrupted, and goes on when cluster %s serves: %v\n", m.o.Cluster, err)
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return err
		}
		for {
			lost := m.c.Sync(ctx) // waits until it serves
			if lost == nil {
				break
			}
			if ctx.Err() != nil || !errors.Is(lost, txn.ErrUnavailable) {
				return err
			}
		}
	}
}

// begin says where an attempt begins.
func (m *migration) begin(ctx context.Context, last tid.TID) error {
	rest, err := side.Remaining(ctx, m.file.Reader, last)
	if err != nil {
		return err
	}
	m.last = last
	if m.bar != nil {
		for _, t := range m.latest {
			if t > last { // lost, and copied again
				m.copied--
			}
		}
		m.transactions += m.copied
		m.copied, m.latest = 0, nil
		m.before = m.total - rest
		fmt.Fprintf(m.env.Stderr, "the copy goes on after transaction %v\n", last)
		return nil
	}
	if last > tid.Zero {
		m.o.say(m.env, "The cluster has everything up to transaction %v already", last)
	}
	if err := m.file.TellRenumbered(ctx, last); err != nil {
		return err
	}
	m.total = rest
	m.file.CountBlobs(last)
	m.bar = cli.NewProgress(m.env, cli.ProgressConfig{What: "migrating", Items: "transactions", Bytes: true, Total: rest, Quiet: m.o.Quiet})
	return nil
}

// progress is told what an attempt has copied.
func (m *migration) progress(last tid.TID, transactions, records, bytes int64) {
	m.copied = transactions
	if m.latest = append(m.latest, last); len(m.latest) >= 2*recent {
		m.latest = append(m.latest[:0], m.latest[recent:]...)
	}
	// About as much as in the file.
	m.bar.Set(m.transactions+transactions, m.before+transactions*31+records*42+bytes)
}

// done ends the display.
func (m *migration) done() {
	if m.bar != nil {
		m.bar.Done()
	}
}

// maxShown is how many differences are named.
const maxShown = 20

// verify compares a file with a cluster, up to the last transaction of the file.
func verify(ctx context.Context, env *cli.Env, o *options, log *cli.Log, file, cluster string) (err error) {
	r, err := o.OpenFile(ctx, env, file, o.AnyStatus, o.Quiet)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	upTo, err := r.LastTID(ctx)
	if err == nil {
		err = r.CheckOrder(ctx, tid.Zero)
	}
	if err != nil {
		return err
	}
	c, err := o.OpenCluster(ctx, env, cluster, log, client.Config{ReadOnly: true, CacheSize: 1 << 20})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	last, err := c.LastTID(ctx)
	if err != nil {
		return err
	}
	bar := cli.NewProgress(env, cli.ProgressConfig{What: "comparing", Items: "transactions", Bytes: true, Total: r.Size(), Quiet: o.Quiet})
	defer bar.Done()
	var transactions, records int64
	differences := 0
	how := exporter.CompareOptions{AnyStatus: true, AnyOrder: true, FullData: true}
	for d, err := range exporter.Compare(ctx, r, c, tid.Zero, upTo, how, func(_ tid.TID, t, n, bytes int64) {
		transactions, records = t, n
		bar.Set(t, t*31+n*42+bytes)
	}) {
		if err != nil {
			return err
		}
		if differences++; differences <= maxShown {
			switch d.What {
			case exporter.MissingInFirst:
				d.What = "missing in " + file
			case exporter.MissingInSecond:
				d.What = "missing in the cluster"
			}
			fmt.Fprintln(env.Stderr, d)
		}
	}
	bar.Done()
	if differences > maxShown {
		fmt.Fprintf(env.Stderr, "and %d more\n", differences-maxShown)
	}
	if differences > 0 {
		return fmt.Errorf("%s and cluster %s have %d differences up to transaction %v, the last one of the file; a pack of one of them is one reason", file, o.Cluster, differences, upTo)
	}
	o.say(env, "No difference in %d transactions with %d records up to %v, the last transaction of %s", transactions, records, upTo, file)
	if last > upTo {
		o.say(env, "The cluster has more, up to %v: that is not in %s and not compared", last, file)
	}
	return nil
}
