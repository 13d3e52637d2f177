package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/drill"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

type drillOptions struct {
	reading
	cli.PeerTimeout
	at       string
	mode     string
	scratch  string
	signKey  string
	noSource bool
	keep     bool
	older    bool
}

func newDrillCommand(env *cli.Env) *cobra.Command {
	var o drillOptions
	cmd := &cobra.Command{
		Use:   "drill [options]",
		Short: "Prove that the backup can be restored, by restoring it",
		Long: `Restore the repository as a stranger would, with nothing but the configuration, an identity and the
store, compare all of it, and store what came of it: a proof, signed by the key of the drill.

The root object is read as a client of "serve" would read it, and the time taken. Then all is restored:

  --mode file      to a Data.fs in the scratch directory
  --mode cluster   to the tables of a cluster there, which is started and read
  --mode read      to nothing: all that is stored is read and verified

What was restored is read again and compared with what the repository says of each segment, record by record with
the source if that can be reached, and 1000 objects at random byte by byte with what a client of "serve" gets. Each
epoch in use must be opened by the identity. In the end the restored data is removed, also after a failure; what a
drill has left that was killed, the next one removes.

Without --at, the head is restored, and after a proof of the head a moment chosen at random. A drill needs
the section [drill NAME] of the configuration, or options: an identity, a key of the role drill, whose other half is in
verify_keys, and a scratch directory with room for what is restored. "neobackup info" says what is
proven. Whether the drill was successful is the exit status too.` + exitStatus,
		Example: `  neobackup key sign drill /etc/neo/prod-drill.key
  neobackup drill
  neobackup drill --mode cluster --at 'yesterday 18:00'
  neobackup drill --mode read --no-source --identity operator.txt --sign-key prod-drill.key`,
		Args: cobra.NoArgs,
		RunE: o.command(env, func(ctx context.Context, _ []string) error { return runDrill(ctx, env, &o) }),
	}
	fs := cmd.Flags()
	cli.Text(fs, &o.at, "at", "", "", "T: the moment to restore (default: latest, and every second time one at random)")
	cli.Text(fs, &o.mode, "mode", "", "", "file, cluster or read (default: that of [drill NAME], or file)")
	cli.Path(fs, &o.scratch, "scratch", "", "", "directory with room for what is restored (default: that of [drill NAME])")
	cli.Path(fs, &o.signKey, "sign-key", "", "", "file with the key that signs the proof (default: that of [drill NAME])")
	cli.Flag(fs, &o.noSource, "no-source", "", "do not compare with the source")
	cli.Flag(fs, &o.older, "accept-older", "", "go on although newer objects are missing than what was found before, once it is known why")
	cli.Flag(fs, &o.keep, "keep", "", "do not remove what was restored")
	o.reading.addFlags(cmd)
	o.PeerTimeout.AddFlags(fs)
	return cmd
}

func runDrill(ctx context.Context, env *cli.Env, o *drillOptions) error {
	if o.mode != "" && !slices.Contains([]string{"file", "cluster", "read"}, o.mode) {
		return cli.Usagef("--mode %s: want file, cluster or read", o.mode)
	}
	return o.use(ctx, env, attempts, func(s *session) error {
		opt, err := o.options(ctx, s)
		if err != nil {
			return err
		}
		var bar *progress
		phase := drill.Opening
		opt.Progress = func(p drill.Phase, done, total int64) {
			if p != phase {
				if bar != nil {
					bar.done()
				}
				items := ""
				if p == drill.Objects {
					items = "objects"
				}
				phase, bar = p, o.progress(env, string(p), items, total)
			}
			switch {
			case bar == nil:
			case p == drill.Objects:
				bar.set(done, 0, total)
			default:
				bar.set(0, done, total)
			}
		}
		res, err := drill.Run(ctx, opt)
		if bar != nil {
			bar.done()
		}
		return o.tell(ctx, env, s, res, err)
	})
}

// options returns what a drill of the repository is made with.
func (o *drillOptions) options(ctx context.Context, s *session) (drill.Options, error) {
	d := s.set.Drill
	if d == nil {
		d = &config.Drill{}
	}
	section := "[drill " + s.set.Name + "]"
	opt := drill.Options{
		Store: s.Bare(), Trusted: s.Trusted, Mode: drill.Mode(d.Mode), Scratch: d.Scratch, Keep: o.keep, Lock: s.set.Lock, LockDays: int(s.set.LockDays),
		Now: o.now, Log: s.log.Logger, Check: s.notSeenNewer, AcceptOlder: o.older,
	}
	if o.mode != "" {
		opt.Mode = drill.Mode(o.mode)
	}
	if o.scratch != "" {
		opt.Scratch = o.scratch
	}
	if opt.Scratch == "" && opt.Mode == drill.Read {
		opt.Scratch = os.TempDir()
	}
	if opt.Scratch == "" {
		return opt, wrong(hint(fmt.Errorf("%s: there is no scratch directory for what is restored", section),
			"give --scratch DIRECTORY, or write scratch: DIRECTORY into %s: it is restored there for its owner alone, and removed again", section))
	}
	var err error
	if opt.Identities, err = o.identities(s.env, s.set); err != nil {
		return opt, err
	}
	if len(opt.Identities) == 0 && s.Encrypted() {
		return opt, wrong(hint(fmt.Errorf("%s: the repository is encrypted, and there is no identity", section),
			"write identity: FILE into %s, or give --identity FILE, of one of the recipients; \"neobackup key generate FILE\" makes one for drills, whose recipient then has to be among the recipients of the repository", section))
	}
	switch {
	case o.signKey != "":
		opt.Signer, err = (&config.Drill{SignKey: o.signKey}).Signer()
	case d.SignKey != "":
		opt.Signer, err = d.Signer()
	default:
		err = fmt.Errorf("%s: there is no sign_key for the proof", section)
	}
	if err != nil {
		return opt, wrong(hint(err, "\"neobackup key sign drill FILE\" makes a key: write sign_key: FILE into %s, and what it prints into verify_keys on every host", section))
	}
	l, err := s.lineage(ctx, o.lineage)
	if err != nil {
		return opt, err
	}
	opt.Lineage = l.Lineage
	if opt.At, err = o.moment(ctx, s, l); err != nil {
		return opt, err
	}
	current, err := s.Current(ctx)
	if err != nil {
		return opt, err
	}
	if !o.noSource && !s.set.Source.IsZero() && current.K == l.K {
		w := writing{common: o.common, PeerTimeout: o.PeerTimeout}
		opt.Source = func(ctx context.Context) (feed.Feed, error) { return w.openFeed(ctx, s.set, s.Marker.Name, s.log) }
	}
	return opt, nil
}

// moment returns what --at says.
func (o *drillOptions) moment(ctx context.Context, s *session, l *snapshot.Lineage) (tid.TID, error) {
	if o.at == "" {
		return 0, nil
	}
	m, err := config.ParseMoment(o.at, o.now())
	switch {
	case err != nil:
		return 0, cli.Usagef("--at: %w", err)
	case m.Latest:
		return drill.Head, nil
	}
	p, err := s.place(ctx, fmt.Sprint(l.K))
	if err != nil {
		return 0, err
	}
	return p.at(o.at, o.now())
}

// notSeenNewer returns an error if this host has seen a newer state.
func (s *session) notSeenNewer(st *backup.State) error {
	p := &place{state: st}
	return errors.Join(s.seen(p), p.older)
}

// tell shows what a drill found out, and what became of it.
func (o *drillOptions) tell(ctx context.Context, env *cli.Env, s *session, res *drill.Result, err error) error {
	if res == nil || res.Proof == nil {
		return err
	}
	p, c := res.Proof, res.Proof.Compared
	if o.json {
		doc := struct {
			V          int    `json:"v"`
			Repository string `json:"repository"`
			K          int64  `json:"k"`
			*snapshot.Proof
			Moment     *point           `json:"moment,omitempty"`
			Head       bool             `json:"head"`
			Key        string           `json:"key"`
			Objects    int64            `json:"objects_compared"`
			Existing   int64            `json:"objects"`
			References int64            `json:"references"`
			Dangling   int64            `json:"dangling"`
			Source     string           `json:"source"`
			Findings   []verify.Finding `json:"findings,omitempty"`
			Found      int64            `json:"found"`
			Warnings   []string         `json:"warnings,omitempty"`
			Kept       string           `json:"kept,omitempty"`
			Error      *failure         `json:"error,omitempty"`
		}{
			1, res.Repository, res.K, p, pointOf(p.TID, o.now()), res.Head, res.Key, res.Objects, res.Existing, res.References, res.Dangling,
			res.Source, res.Findings, res.Found, res.Warnings, res.Kept, nil,
		}
		if err == nil {
			return o.line(env.Stdout, doc)
		}
		f := classify(ctx, err)
		doc.Error = &f
		if err := o.line(env.Stdout, doc); err != nil {
			return err
		}
		return &cli.Exit{Code: f.Exit}
	}
	for _, f := range res.Findings {
		if len(res.Findings) > 1 { // one is the error
			fmt.Fprintln(env.Stdout, f)
		}
	}
	if o.quiet && err == nil {
		return nil
	}
	for _, text := range res.Warnings {
		fmt.Fprintf(env.Stderr, "warning: %s\n", text)
	}
	if !o.quiet {
		if printErr := printDrill(env, res, p, c); printErr != nil {
			return errors.Join(err, printErr)
		}
	}
	return err
}

func printDrill(env *cli.Env, res *drill.Result, p *snapshot.Proof, c snapshot.Compared) error {
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	what := "a moment"
	if res.Head {
		what = "the head"
	}
	if p.Result == snapshot.ResultOK {
		line("proven", "%s until %v  %s, %s", res.Repository, p.TID, when(p.TID), what)
	} else {
		line("FAILED", "%s until %v  %s, %s", res.Repository, p.TID, when(p.TID), what)
	}
	line("mode", "%s", p.Mode)
	if c.Segments > 0 {
		line("compared", "%d segments, %d transactions, %d records, %s of text", c.Segments, c.Txns, c.Records, size(c.Bytes))
		line("source", "%s", res.Source)
	}
	if res.Objects > 0 {
		line("objects", "%d of %d byte by byte; of %d references, %d lead to no object", res.Objects, res.Existing, res.References, res.Dangling)
	}
	if p.FirstReadMS > 0 {
		line("first read", "%v", time.Duration(p.FirstReadMS)*time.Millisecond)
	}
	if len(p.Epochs) > 0 {
		var list []string
		for _, kid := range p.Epochs {
			list = append(list, kid.String())
		}
		line("epochs", "%s opened", strings.Join(list, ", "))
	}
	line("read", "%s in %d requests, %d s in all", size(p.BytesRead), p.Gets, p.Seconds)
	if res.Key != "" {
		line("proof", "%s", res.Key)
	}
	if res.Kept != "" {
		line("kept", "%s", res.Kept)
	}
	return w.Flush()
}
