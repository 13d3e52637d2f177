package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

type checkOptions struct {
	common
	store bool
}

func newCheckCommand(env *cli.Env) *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check [options]",
		Short: "Look whether everything is there",
		Long: `List all objects of a repository and read all notes: whether everything that is needed is there with
its size, all signatures and chains are right, and nothing is older than what this host has seen before.
No data are read: that does verify. No identity is needed.

With --store, only the store is tried, as by init: whether it gives the guarantees that a repository needs.
A writer does so by itself when the last time is a week ago.` + exitStatus,
		Example: "  neobackup check\n  neobackup check --store",
		Args:    cobra.NoArgs,
		RunE: o.command(env, func(ctx context.Context, _ []string) error {
			if o.store {
				return runCheckStore(ctx, env, &o)
			}
			return runCheck(ctx, env, &o)
		}),
	}
	cli.Flag(cmd.Flags(), &o.store, "store", "", "try the store")
	o.addFlags(cmd)
	return cmd
}

// findings prints what is found and remembers what kinds there are.
type findings struct {
	o    *common
	env  *cli.Env
	list []verify.Finding // of a document
	kind map[verify.Kind]bool
}

func (f *findings) report(x verify.Finding) {
	if f.kind == nil {
		f.kind = map[verify.Kind]bool{}
	}
	if !x.Warning {
		f.kind[x.Kind] = true
	}
	if f.o.json {
		f.list = append(f.list, x)
		return
	}
	if x.Warning {
		if !f.o.quiet {
			fmt.Fprintf(f.env.Stdout, "warning: %v\n", x)
		}
		return
	}
	fmt.Fprintln(f.env.Stdout, x)
}

// err returns the error of a command that has found damage.
func (f *findings) err() error {
	if len(f.kind) == 0 {
		return nil
	}
	err := errDamage
	switch {
	case len(f.kind) > 1:
	case f.kind[verify.Untrusted]:
		err = snapshot.ErrUntrusted
	case f.kind[verify.Newer]:
		err = snapshot.ErrVersion
	}
	return err
}

// end tells the error of a command whose findings are printed. A document has them already.
func (f *findings) end(ctx context.Context) error {
	err := f.err()
	if err != nil && f.o.json {
		return &cli.Exit{Code: classify(ctx, err).Exit}
	}
	return err
}

func runCheck(ctx context.Context, env *cli.Env, o *checkOptions) (err error) {
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	set, err := o.settings(env)
	if err != nil {
		return err
	}
	trusted, err := set.Trusted()
	if err != nil {
		return wrong(hint(err, "give --verify-key or verify_keys: init has printed the key"))
	}
	s, _, err := o.openStore(env, set, log, attempts)
	if err != nil {
		return err
	}
	cfg := backup.Config{Store: s, Trusted: trusted, Log: log.Logger}
	// A repository whose marker is damaged has no name here, and can be checked all the same.
	dir := set.StateDir
	r, err := backup.Open(ctx, cfg)
	switch {
	case err == nil:
		if dir, err = stateDir(env, set, r.Marker.ID); err != nil {
			return err
		}
	case errors.Is(err, backup.ErrNoRepository), errors.Is(err, snapshot.ErrVersion):
		return fmt.Errorf("%s: %w", set.URL, err)
	case !errors.Is(err, snapshot.ErrCorrupt) && !errors.Is(err, snapshot.ErrUntrusted):
		return fmt.Errorf("%s: %w", set.URL, err)
	}
	f := findings{o: &o.common, env: env}
	sum, err := verify.Check(ctx, cfg, verify.CheckOptions{StateDir: dir, Report: f.report})
	if err != nil {
		return err
	}
	if o.json {
		if err := o.line(env.Stdout, struct {
			V        int              `json:"v"`
			URL      string           `json:"url"`
			Findings []verify.Finding `json:"findings"`
			*verify.Summary
		}{1, set.URL, f.list, sum}); err != nil {
			return err
		}
		return f.end(ctx)
	}
	if !o.quiet {
		w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
		for _, l := range sum.Lineages {
			head := "empty"
			if l.Head != tid.Zero {
				head = fmt.Sprintf("up to %v (%s)", l.Head, when(l.Head))
			}
			fmt.Fprintf(w, "lineage %d\tmanifest %d, tail %d, %s in %d segments, %s\n", l.K, l.Seq, l.Tail, size(l.Bytes), l.Segments, head)
		}
		fmt.Fprintf(w, "objects\t%d, %s; %d of them (%s) are not needed any more\n", sum.Objects, size(sum.Bytes), sum.Spare, size(sum.SpareSize))
		for _, text := range sum.NotLooked {
			fmt.Fprintf(w, "not checked\t%s\n", text)
		}
		fmt.Fprintf(w, "found\t%d faults, %d warnings\n", sum.Damage, sum.Warnings)
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return f.end(ctx)
}

func runCheckStore(ctx context.Context, env *cli.Env, o *checkOptions) (err error) {
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	set, err := o.settings(env)
	if err != nil {
		return err
	}
	s, _, err := o.openStore(env, set, log, attempts)
	if err != nil {
		return err
	}
	dir := "" // the result is kept if the repository is there
	if trusted, err := set.Trusted(); err == nil {
		if r, err := backup.Open(ctx, backup.Config{Store: s, Trusted: trusted, Log: log.Logger}); err == nil {
			if dir, err = stateDir(env, set, r.Marker.ID); err != nil {
				return err
			}
		}
	}
	rep, err := o.probe(ctx, s, set, dir)
	if rep != nil && len(rep.Findings) > 0 {
		if o.json {
			if err := o.line(env.Stdout, map[string]any{"v": 1, "url": set.URL, "suitable": err == nil, "probe": rep}); err != nil {
				return err
			}
			if err != nil {
				return &cli.Exit{Code: classify(ctx, err).Exit}
			}
			return nil
		}
		if !o.quiet {
			err = errors.Join(err, printProbe(env, rep))
		}
	}
	return err
}

func printProbe(env *cli.Env, rep *store.Report) error {
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	for _, f := range rep.Findings {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Severity, f.Check, f.Detail)
	}
	if len(rep.Left) > 0 {
		fmt.Fprintf(w, "left\t%d objects under probe/ could not be deleted\n", len(rep.Left))
	}
	return w.Flush()
}

type verifyOptions struct {
	reading
	cli.PeerTimeout
	readData string
	against  string
	scratch  string
}

func newVerifyCommand(env *cli.Env) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify [options]",
		Short: "Read the data, and compare them with the source",
		Long: `Read what is stored and verify all that can be verified: hashes, encryption, compression, the order
of transactions, that indexes and data say the same, that all earlier revisions that an undo refers to are there.
--read-data says how much: all (default), n/t (the n-th of t shares), rotate/t (the one that is due
today: t days read all) or p% at random. Without an identity, only the hashes of what is encrypted are verified.

--against SOURCE compares the history with that of a source, record by record, in place of it: without
a value, with the configured one.

All damage is printed, with objects and ranges of transactions.` + exitStatus,
		Example: "  neobackup verify --identity operator.txt\n  neobackup verify --read-data=rotate/30 --identity operator.txt\n  neobackup verify --against --identity operator.txt",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, func(ctx context.Context, _ []string) error { return runVerify(ctx, env, &o) }),
	}
	fs := cmd.Flags()
	cli.Text(fs, &o.readData, "read-data", "", "", "how much is read: all, n/t, rotate/t or p%")
	cli.Text(fs, &o.against, "against", "", "", "the source to compare with: file:///path/Data.fs or neo://CLUSTER@MASTER:PORT")
	fs.Lookup("read-data").NoOptDefVal = "all"
	fs.Lookup("against").NoOptDefVal = configured
	cli.Path(fs, &o.scratch, "scratch", "", "", "directory for segments that are being read (default: that of [drill NAME], or that of the system)")
	o.reading.addFlags(cmd)
	o.PeerTimeout.AddFlags(fs)
	return cmd
}

// configured is the value of --against without one.
const configured = "source"

func runVerify(ctx context.Context, env *cli.Env, o *verifyOptions) error {
	if o.readData != "" && o.against != "" {
		return cli.Usagef("either --read-data or --against")
	}
	share, err := verify.ParseShare(o.readData, o.now())
	if err != nil {
		return cli.Usagef("--read-data: %w", err)
	}
	return o.view(ctx, env, func(s *session, p *place, keys *backup.Keys) error {
		if o.scratch == "" && s.set.Drill != nil {
			o.scratch = s.set.Drill.Scratch
		}
		f := &findings{o: &o.common, env: env}
		s.tells = true
		if p.broken != nil {
			f.report(verify.Finding{Kind: verify.Broken, Key: p.broken.Key, Text: p.broken.Error(), Err: p.broken})
		}
		if p.older != nil {
			f.report(verify.Finding{Kind: verify.Older, Text: p.older.Error(), Err: p.older})
		}
		if o.against != "" {
			return o.compare(ctx, env, s, p, keys, f)
		}
		bar := o.progress(env, "verifying", "", 0)
		sum, err := verify.Read(ctx, verify.ReadOptions{Repo: s.Repository, Keys: keys, State: p.state, Share: share, Scratch: o.scratch, Report: f.report, Progress: func(done, total int64) { bar.set(0, done, total) }})
		bar.done()
		if err != nil {
			return err
		}
		if o.json {
			if err := o.line(env.Stdout, struct {
				V        int              `json:"v"`
				Share    string           `json:"share"`
				Findings []verify.Finding `json:"findings"`
				*verify.ReadSummary
			}{1, share.String(), f.list, sum}); err != nil {
				return err
			}
			return f.end(ctx)
		}
		if !o.quiet {
			fmt.Fprintf(env.Stdout, "%d of %d segments read, %s: %d transactions, %d records\n", sum.Read, sum.Segments, size(sum.Bytes), sum.Txns, sum.Records)
			if sum.Unopened > 0 {
				fmt.Fprintf(env.Stdout, "of %d of them only the SHA-256 was verified: %s\n", sum.Unopened, sum.Why)
			}
			if _, err := fmt.Fprintf(env.Stdout, "found: %d faults, %d warnings\n", sum.Damage, sum.Warnings); err != nil {
				return errors.Join(err, f.end(ctx))
			}
		}
		return f.end(ctx)
	})
}

// compare compares the history with that of a source.
func (o *verifyOptions) compare(ctx context.Context, env *cli.Env, s *session, p *place, keys *backup.Keys, f *findings) (err error) {
	w := writing{common: o.common, PeerTimeout: o.PeerTimeout}
	if o.against != configured {
		if err := s.set.Set("source", o.against); err != nil {
			return cli.Usagef("--against: %w", err)
		}
	}
	src, err := w.openFeed(ctx, s.set, s.Marker.Name, s.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	last, _, err := src.Last(ctx)
	if err != nil {
		return err
	}
	opt := verify.AgainstOptions{
		Repo: s.Repository, Keys: keys, State: p.state, Source: verify.FromFeed(src), Packed: src.Packed, Collected: src.Source().Kind == feed.KindFile, Fetch: backup.FetchOptions{Scratch: o.scratch}, Report: f.report,
	}
	if opt.Collected {
		if opt.Horizon, err = verify.Horizon(ctx, opt.Source, src.Packed); err != nil {
			return err
		}
	}
	switch {
	case last >= p.state.Head():
		opt.UpTo = last
	case opt.Horizon == tid.Max: // the pack may have dropped the last transactions
	default:
		opt.UpTo = last
		f.report(verify.Finding{Kind: verify.Different, Text: fmt.Sprintf("the source ends with %v, the repository with %v: it was truncated or restored, or is another database", last, p.state.Head())})
	}
	bar := o.progress(env, "comparing", "transactions", 0)
	opt.Progress = func(_ tid.TID, txns, _, bytes int64) { bar.set(txns, bytes, 0) }
	sum, err := verify.Against(ctx, opt)
	bar.done()
	if err != nil {
		return err
	}
	for _, t := range s.Tampered() {
		f.report(verify.Finding{Kind: verify.Damaged, Key: t.Key, Text: t.String(), Err: t.Err})
	}
	if o.json {
		if err := o.line(env.Stdout, struct {
			V        int              `json:"v"`
			Source   string           `json:"source"`
			Findings []verify.Finding `json:"findings"`
			After    tid.TID          `json:"after"`
			UpTo     tid.TID          `json:"upto"`
			*verify.AgainstSummary
		}{1, s.set.Source.String(), f.list, sum.After, sum.UpTo, sum}); err != nil {
			return err
		}
		return f.end(ctx)
	}
	if !o.quiet {
		fmt.Fprintf(env.Stdout, "%d transactions compared up to %v, %d records; %d differences are explained by packs\n", sum.Txns, sum.UpTo, sum.Records, sum.Explained)
		if _, err := fmt.Fprintf(env.Stdout, "found: %d faults, %d warnings\n", sum.Damage, sum.Warnings); err != nil {
			return errors.Join(err, f.end(ctx))
		}
	}
	return f.end(ctx)
}
