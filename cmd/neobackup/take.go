package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/systemd"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// writing are the options of commands that add to a repository.
type writing struct {
	common
	cli.PeerTimeout
	source string
	same   bool
	rebase bool // the command is rebase

	follows   bool // the command is follow
	fromStart bool // the repository was empty
	mu        sync.Mutex
	bar       *progress
	caughtUp  bool // the bar is not shown any more
}

func (o *writing) addFlags(cmd *cobra.Command) {
	fs := cmd.Flags()
	cli.Text(fs, &o.source, "source", "", "", "what is backed up: file:///path/Data.fs or neo://CLUSTER@MASTER:PORT")
	cli.Flag(fs, &o.same, "assume-same-history", "", "go on although the source lacks the last transaction of the repository, which a pack of a Data.fs dropped: only if nothing else has changed")
	cli.InFull(fs, "assume-same-history")
	o.common.addFlags(cmd)
	o.addTimeout(fs)
}

func (o *writing) addTimeout(fs *pflag.FlagSet) { o.PeerTimeout.AddFlags(fs) }

type snapshotOptions struct {
	writing
	at    string
	label string
}

func newSnapshotCommand(env *cli.Env) *cobra.Command {
	var o snapshotOptions
	cmd := &cobra.Command{
		Use:   "snapshot [options]",
		Short: "Store what is new in the source, once",
		Long: `Store what the source has and the repository lacks, up to the last transaction that the
source has now, or the last one up to --at T, and end. The first time that is everything; a run that was interrupted
goes on where it was. The source goes on being used meanwhile.` + exitStatus,
		Example: "  neobackup snapshot\n  neobackup snapshot --label 'before the upgrade'",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, func(ctx context.Context, _ []string) error { return runSnapshot(ctx, env, &o) }),
	}
	cli.Text(cmd.Flags(), &o.at, "at", "", "", "T: store no later transaction")
	cli.Text(cmd.Flags(), &o.label, "label", "", "", "words for the manifest, which info does not need: to find it again")
	o.addFlags(cmd)
	return cmd
}

func newFollowCommand(env *cli.Env) *cobra.Command {
	var o writing
	cmd := &cobra.Command{
		Use:   "follow [options]",
		Short: "Store each transaction as it is committed",
		Long: `Store what the repository lacks, and then each transaction soon after it is committed, until
SIGINT or SIGTERM. What is new is looked for every interval (1 s unless set). If the source or the store cannot be
reached, follow waits for them. It may be killed at any time: what was acknowledged is in the repository,
and the next start goes on after it.

Another writer of the same repository ends it (exit status 6), and a source that is not the one that was
backed up (7): a service manager should not restart it then.` + exitStatus,
		Example: "  neobackup follow\n  neobackup follow -r prod --set interval=10s",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, func(ctx context.Context, _ []string) error { return runFollow(ctx, env, &o) }),
	}
	o.addFlags(cmd)
	return cmd
}

type rebaseOptions struct {
	writing
	confirm bool
}

func newRebaseCommand(env *cli.Env) *cobra.Command {
	var o rebaseOptions
	cmd := &cobra.Command{
		Use:   "rebase [options]",
		Short: "Read the whole source into a new lineage",
		Long: `Read the whole source into a new lineage, which then takes the place of the current one: after a pack of
a Data.fs, which cannot be followed, or to get rid of what packs have freed. The old lineage stays, and can be
restored with --lineage. Until the new one is complete, the old one is followed, where the source
still allows it; an interrupted rebase goes on when it is run again, also by follow.

Without --confirm, the command says what would be read and stored.` + exitStatus,
		Example: "  neobackup rebase\n  neobackup rebase --confirm",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, func(ctx context.Context, _ []string) error { return runRebase(ctx, env, &o) }),
	}
	cli.Flag(cmd.Flags(), &o.confirm, "confirm", "", "do it")
	o.addFlags(cmd)
	return cmd
}

func runRebase(ctx context.Context, env *cli.Env, o *rebaseOptions) error {
	if !o.confirm {
		return o.use(ctx, env, attempts, func(s *session) error {
			p, err := s.place(ctx, "")
			if err != nil {
				return err
			}
			sum, err := s.summarize(ctx, p, true)
			if err != nil {
				return err
			}
			if o.json {
				return o.line(env.Stdout, map[string]any{"v": 1, "repository": s.Marker.Name, "stored_bytes": sum.StoredBytes, "text_bytes": sum.TextBytes, "source_bytes": sum.SourceBytes, "confirmed": false})
			}
			source := ""
			if sum.SourceBytes > 0 {
				source = fmt.Sprintf(" (now %s)", size(sum.SourceBytes))
			}
			_, err = fmt.Fprintf(env.Stdout, "A rebase reads the whole source%s and stores it again, at most about %s; both lineages stay.\nNothing was done: --confirm does it. neobackup cost says what it costs.\n",
				source, size(sum.StoredBytes))
			return err
		})
	}
	o.rebase = true
	start := time.Now()
	return o.write(ctx, env, attempts, func(s *session, w *writer.Writer) error {
		if err := w.Rebase(ctx); err != nil {
			return err
		}
		o.done()
		return s.printTaken(w.Stats(), time.Since(start))
	})
}

// openFeed opens the source of a repository.
func (o *writing) openFeed(ctx context.Context, set *config.Repository, name string, log *cli.Log) (feed.Feed, error) {
	src := set.Source
	switch {
	case src.IsZero():
		return nil, cli.Usagef("what is to be backed up? Give --source file:///path/Data.fs or neo://CLUSTER@MASTER:PORT, or write source into the configuration file")
	case src.File != "":
		f, err := feed.OpenFile(ctx, src.File, feed.FileOptions{Poll: set.Interval, Log: log.Logger})
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", src.File, err)
		}
		return f, nil
	}
	masters, err := conf.ResolveAll(ctx, src.Masters)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", src, err)
	}
	cfg, err := o.clientConfig(set, log)
	if err != nil {
		return nil, err
	}
	cfg.Cluster = src.Cluster
	for _, a := range masters {
		cfg.Masters = append(cfg.Masters, proto.Address(a))
	}
	f, err := feed.OpenCluster(ctx, feed.ClusterOptions{Client: cfg, Repository: name, Poll: set.Interval, Log: log.Logger})
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", src, err)
	}
	return f, nil
}

// clientConfig returns how a cluster is reached, but for its address.
func (o *writing) clientConfig(set *config.Repository, log *cli.Log) (client.Config, error) {
	t := cli.TLS{CA: set.CA, Cert: set.Cert, Key: set.Key}
	tls, err := t.TLSConfig()
	if err != nil {
		return client.Config{}, wrong(err)
	}
	cfg := client.Config{ReadOnly: true, CacheSize: 1 << 20, TLS: tls}
	if cfg.PeerTimeout, err = o.PeerTimeout.Limit(); err != nil {
		return cfg, err
	}
	links := log.LinkConfig(tls)
	cfg.Log, cfg.Record, cfg.FlushLog = links.Log, links.Record, log.FlushFile
	return cfg, nil
}

// write opens the writer of a repository and calls do.
func (o *writing) write(ctx context.Context, env *cli.Env, attempts int, do func(s *session, w *writer.Writer) error) error {
	if o.source != "" {
		o.sets = append(o.sets, "source="+o.source)
	}
	return o.use(ctx, env, attempts, func(s *session) (err error) {
		defer s.log.Crashed()
		if o.hooks == nil { // else the daemon does it
			signals, stop := context.WithCancel(ctx)
			wait := s.log.HandleSignals(signals, func(io.Writer) {})
			defer wait()
			defer stop()
		}

		s.tells = true // a log line does, for one that does not end
		signer, _, err := s.set.Signer(snapshot.Writer)
		if err != nil {
			return wrong(err)
		}
		dir, err := s.stateDir()
		if err != nil {
			return err
		}
		if err := s.probeIfOld(ctx, dir); err != nil {
			return err
		}
		if err := s.notOlder(ctx, dir); err != nil {
			return err
		}
		for {
			err := o.writeOnce(ctx, env, s, signer, dir, do)
			if !o.follows || !s.set.RebaseOnPack || !is(err, feed.ErrPacked, feed.ErrReplaced) || as[*openError](err) {
				return err
			}
			s.log.Warn("the source is opened again", "err", err)
		}
	})
}

// openError is an error before anything was written.
type openError struct{ error }

func (e *openError) Unwrap() error { return e.error }

// writeOnce opens the source and the writer, and calls do.
func (o *writing) writeOnce(ctx context.Context, env *cli.Env, s *session, signer *snapshot.Signer, dir string, do func(s *session, w *writer.Writer) error) (err error) {
	f, err := o.openFeed(ctx, s.set, s.Marker.Name, s.log)
	if err != nil {
		return &openError{err}
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w, err := writer.Open(ctx, writer.Options{
		Repo: s.Repository, Signer: signer, Feed: f, StateDir: dir, Recipients: s.set.Recipients,
		Interval: s.set.Interval, Heartbeat: s.set.Heartbeat, SegmentSize: s.set.SegmentSize, Level: s.set.Level,
		Lock: s.set.Lock, LockDays: int(s.set.LockDays), LockShortDays: int(s.set.LockShortDays),
		RebaseOnPack: s.set.RebaseOnPack || o.rebase, AssumeSameHistory: o.same, Log: s.log.Logger,
		Progress: o.shown(env, s.set.Source), Flushed: o.hooks.flushed(),
	})
	if err != nil {
		return &openError{err}
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	defer s.noteSeen(ctx, w, dir)()
	defer o.done()
	o.fromStart = w.Stats().Head == tid.Zero
	defer o.hooks.opened(w)()
	return do(s, w)
}

// seenEvery is how often a writer notes for the next start what it has stored.
var seenEvery = time.Minute

// noteSeen notes what the writer stores, now and then until the function that it returns is called: otherwise
// the next start would not know that newer objects than those of this start have to be there.
func (s *session) noteSeen(ctx context.Context, w *writer.Writer, dir string) (end func()) {
	note := func() {
		seen, err := verify.LoadSeen(dir, s.Marker.ID)
		if err == nil {
			st := w.Stats()
			seen.Note(st.Lineage, st.Manifest, st.Tail, st.Head)
			err = seen.Save(dir)
		}
		if err != nil { // a full disk must not end a backup
			s.log.Warn("what was stored is not noted for the next start", "err", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(seenEvery)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				note()
			}
		}
	}()
	return func() {
		cancel()
		<-done
		note()
	}
}

// notOlder refuses a repository from which what this host has seen was removed: a writer would use
// its numbers again.
func (s *session) notOlder(ctx context.Context, dir string) error {
	p, err := s.place(ctx, "")
	if err != nil || p.older == nil {
		return err
	}
	return hint(fmt.Errorf("%w: newer objects were removed from the repository, or the store shows an old state: %w", errDamage, p.older),
		"find out how that came, and bring them back: neobackup repair finds older versions of the bucket, or takes what is gone from a copy (--from) or the source (--against). To go on with what is left, remove seen.json in %s", dir)
}

// shown returns what shows the progress of a writer. One that follows shows it until it has caught up.
func (o *writing) shown(env *cli.Env, source config.Source) func(writer.Progress) {
	first := true
	var total int64 // not known, but for a file from its beginning
	return func(p writer.Progress) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.caughtUp {
			return
		}
		if o.bar == nil {
			o.bar = o.progress(env, "storing", "transactions", 0)
		}
		if first && p.Txns > 0 && source.File != "" {
			first = false
			if st, err := os.Stat(source.File); err == nil && o.fromStart {
				total = st.Size() // the text of a Data.fs is about as long
			}
		}
		o.bar.set(p.Txns, p.Text, total)
		if o.follows && p.Head >= p.Target {
			o.caughtUp = true
			o.bar.done()
			o.say(env, "up to date: everything up to %v (%s) is stored", p.Head, when(p.Head))
		}
	}
}

// done ends the progress.
func (o *writing) done() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.bar != nil && !o.caughtUp {
		o.bar.done()
	}
	o.caughtUp = true
}

// probeIfOld tries the store if that was not done lately.
func (s *session) probeIfOld(ctx context.Context, dir string) error {
	if p := lastProbe(dir, s.set); p != nil && s.o.now().Sub(p.Report.Time) < probeAge && p.Report.Err(s.set.URL) == nil {
		return nil
	}
	before := s.count.Stats()
	rep, err := s.o.probe(ctx, s.Store, s.set, dir)
	after := s.count.Stats()
	s.tried = store.Stats{
		Puts: after.Puts - before.Puts, Gets: after.Gets - before.Gets, Lists: after.Lists - before.Lists, Deletes: after.Deletes - before.Deletes,
		Failed: after.Failed - before.Failed, Sent: after.Sent - before.Sent, Received: after.Received - before.Received,
	}
	if err != nil {
		return err
	}
	for _, f := range rep.Findings {
		if f.Severity == store.Warning {
			s.log.Warn("the store", "check", f.Check, "detail", f.Detail)
		}
	}
	return nil
}

func runSnapshot(ctx context.Context, env *cli.Env, o *snapshotOptions) error {
	at, err := o.moment(o.at)
	if err != nil {
		return err
	}
	start := time.Now()
	return o.write(ctx, env, attempts, func(s *session, w *writer.Writer) error {
		if err := w.Snapshot(ctx, at, o.label); err != nil {
			return err
		}
		o.done()
		return s.printTaken(w.Stats(), time.Since(start))
	})
}

// printTaken says what a writer has stored.
func (s *session) printTaken(st writer.Stats, took time.Duration) (err error) {
	o, w := s.o, s.env.Stdout
	switch {
	case o.json:
		err = o.line(w, map[string]any{
			"v": 1, "repository": s.Marker.Name, "lineage": st.Lineage, "head": pointOf(st.Head, o.now()), "transactions": st.Txns, "records": st.Records,
			"text_bytes": st.Text, "stored_bytes": st.Stored, "objects": st.Objects, "manifest": st.Manifest, "seconds": took.Seconds(),
		})
	case o.quiet:
	case st.Head == tid.Zero:
		_, err = fmt.Fprintf(w, "%s: the source has no transaction\n", s.Marker.Name)
	default:
		_, err = fmt.Fprintf(w, "%s has everything up to %v (%s): %d transactions more, %s of text\n", s.Marker.Name, st.Head, when(st.Head), st.Txns, size(st.Text))
	}
	return err
}

// drainTimeout is how long a writer that was told to stop goes on storing what it knows of. A service manager
// kills later.
const drainTimeout = 10 * time.Second

// drain stores what a writer that was told to stop has not stored yet.
func drain(ctx context.Context, w *writer.Writer) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	return w.Drain(ctx)
}

// tell tells the service manager how the command is.
func (o *writing) tell(env *cli.Env, m *systemd.Manager, lines ...string) {
	if err := m.Tell(lines...); err != nil {
		o.say(env, "the service manager cannot be told: %v", err)
	}
}

func runFollow(ctx context.Context, env *cli.Env, o *writing) error {
	start := time.Now()
	m := systemd.NewManager("")
	if o.hooks == nil {
		m = manager(env)
	}
	// It is ready to wait for a source and a store that are away.
	o.tell(env, m, "READY=1", "STATUS=waiting for the source and the store")
	defer o.tell(env, m, "STOPPING=1")
	// A store that is away for long must not end it.
	return cli.Stopped(ctx, o.write(ctx, env, 0, func(s *session, w *writer.Writer) error {
		o.say(env, "following %s into %s", s.set.Source, s.set.URL)
		o.follows = true
		o.tell(env, m, "STATUS=following "+s.set.Source.String())
		err := w.Follow(ctx)
		if ctx.Err() != nil {
			if err := drain(ctx, w); err != nil {
				s.log.Warn("what was committed last is not stored; the next start stores it", "err", err)
			}
		}
		if cli.Stopped(ctx, err) != nil {
			return err
		}
		return s.printTaken(w.Stats(), time.Since(start))
	}))
}
