package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/repair"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// repairOptions are those of repair, recover and compact.
type repairOptions struct {
	reading
	cli.PeerTimeout
	from     string
	against  string
	gaps     bool
	unsigned bool
	quick    bool
	confirm  bool
	scratch  string
}

func (o *repairOptions) addFlags(cmd *cobra.Command, means bool) {
	fs := cmd.Flags()
	if means {
		cli.Text(fs, &o.from, "from", "", "", "another copy of the repository: its URL, or its name in the configuration file")
		cli.Text(fs, &o.against, "against", "", "", "the source, which has the same content: file:///path/Data.fs or neo://CLUSTER@MASTER:PORT (default: the configured one)")
		fs.Lookup("against").NoOptDefVal = configured
		cli.Flag(fs, &o.gaps, "accept-gaps", "", "give up what cannot be repaired: it becomes a gap, which a restore of a later moment must accept as well")
		cli.Flag(fs, &o.unsigned, "accept-unsigned", "", "use segments that no signed note names and that were not compared with the source")
	}
	cli.Flag(fs, &o.confirm, "confirm", "", "do it")
	cli.Path(fs, &o.scratch, "scratch", "", "", "directory for segments that are being read (default: that of [drill NAME], or that of the system)")
	o.reading.addFlags(cmd)
	o.PeerTimeout.AddFlags(fs)
}

func newRepairCommand(env *cli.Env) *cobra.Command {
	var o repairOptions
	cmd := &cobra.Command{
		Use:   "repair [options]",
		Short: "Mend what is damaged or missing in a repository",
		Long: `Read everything that the newest state needs, and find out how what is damaged or missing can be mended. Without
--confirm, only the plan is printed. For each object, the first means that works is taken:

  1. the same bytes: an older version of the object, where the bucket keeps versions, or another copy
     of the repository (--from)
  2. other segments of the same content, which a keeper has not deleted yet
  3. the same content, read from the source again (--against), if its digest is the one that was stored
  4. what a packed cluster still has of it: moments up to the pack cannot be restored any more
  5. a gap, with --accept-gaps: what is in it is lost. Moments before it can be restored as ever,
     later ones with restore --allow-gap

A broken chain of tails is closed: a new manifest sums up all tails, and lost ranges are read again.

Objects are only added, and a new manifest; nothing is deleted or written over. It is signed with the key of the
writer (sign_key), and encrypted content is stored again with the help of an --identity. A writer may go on
meanwhile, unless the last tail is damaged: then stop it before --confirm.` + exitStatus,
		Example: `  neobackup repair --identity operator.txt
  neobackup repair --identity operator.txt --from s3://copies/prod?region=eu-2 --against --confirm`,
		Args: cobra.NoArgs,
		RunE: o.command(env, func(ctx context.Context, _ []string) error { return runRepair(ctx, env, &o, repair.Repair) }),
	}
	cli.Flag(cmd.Flags(), &o.quick, "quick", "", "look only whether objects are there with their size, and do not read them")
	o.addFlags(cmd, true)
	return cmd
}

func newRecoverCommand(env *cli.Env) *cobra.Command {
	var o repairOptions
	cmd := &cobra.Command{
		Use:   "recover [options]",
		Short: "Find the history again when no manifest verifies",
		Long: `Put the history of a lineage together from what is stored, when its newest manifest is damaged or forged: first from
segments that signed notes name (older manifests, tails), then from those that catalog pages list, and from what else is
there. Without --confirm, only the plan is printed: where the history ends, holes, gaps, and the segments that no signed
note names. The public recipient is all that it takes to make such ones: they are used if the source has the
same content (--against), or if you accept them (--accept-unsigned).

First make sure that verify_keys is right: with a wrong key no manifest verifies either. A bucket that keeps versions
needs no recovery: readers use the version that is right, and repair stores it again.

Objects are only added, and a new manifest, which sums up all tails; nothing is deleted. The identity of an
operator is needed, and the key of the writer.` + exitStatus,
		Example: `  neobackup recover --identity operator.txt
  neobackup recover --identity operator.txt --against --confirm`,
		Args: cobra.NoArgs,
		RunE: o.command(env, func(ctx context.Context, _ []string) error { return runRepair(ctx, env, &o, repair.Recover) }),
	}
	o.addFlags(cmd, true)
	return cmd
}

func newCompactCommand(env *cli.Env) *cobra.Command {
	var o repairOptions
	cmd := &cobra.Command{
		Use:   "compact [options]",
		Short: "Merge small segments that the writer cannot merge",
		Long: `Merge the segments behind tails, and small ones, to greater ones. A writer does that by itself, from copies in its
state directory; what it stored before that was lost stays in small objects, until compact merges it, on
a host that can read it. The content is the same, which is verified before the new manifest is published. A writer
may go on meanwhile. Without --confirm, only the plan is printed.` + exitStatus,
		Example: "  neobackup compact --identity operator.txt\n  neobackup compact --identity operator.txt --confirm",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, func(ctx context.Context, _ []string) error { return runRepair(ctx, env, &o, repair.Compact) }),
	}
	o.addFlags(cmd, false)
	return cmd
}

// repairs returns what a plan is made with. The function closes what was opened.
func (o *repairOptions) repairs(ctx context.Context, env *cli.Env, s *session) (*repair.Options, func() error, error) {
	closed := func() error { return nil }
	ro := &repair.Options{
		Repo: s.Repository, AcceptGaps: o.gaps, AcceptUnsigned: o.unsigned, Quick: o.quick, Scratch: o.scratch, SegmentSize: s.set.SegmentSize, Level: s.set.Level,
		Lock: s.set.Lock, LockDays: int(s.set.LockDays), LockShortDays: int(s.set.LockShortDays), Log: s.log.Logger,
	}
	if ro.Scratch == "" && s.set.Drill != nil {
		ro.Scratch = s.set.Drill.Scratch
	}
	var err error
	if ro.Lineage, err = snapshot.ParseID(o.lineage); err != nil { // its note need not be readable
		l, err := s.reading(ctx, o.lineage)
		if err != nil {
			return nil, closed, err
		}
		ro.Lineage = l.Lineage
	}
	if ro.Keys, err = s.unlock(&o.identityOptions); err != nil {
		return nil, closed, err
	}
	if s.set.SignKey != "" {
		if ro.Signer, _, err = s.set.Signer(snapshot.Writer); err != nil {
			return nil, closed, wrong(err)
		}
	} else if o.confirm {
		_, _, err := s.set.Signer(snapshot.Writer)
		return nil, closed, wrong(err)
	}
	if o.from != "" {
		if ro.From, err = o.copyOf(ctx, env, s); err != nil {
			return nil, closed, fmt.Errorf("--from: %w", err)
		}
	}
	if o.against != "" {
		w := writing{common: o.common, PeerTimeout: o.PeerTimeout}
		if o.against != configured {
			if err := s.set.Set("source", o.against); err != nil {
				return nil, closed, cli.Usagef("--against: %w", err)
			}
		}
		src, err := w.openFeed(ctx, s.set, s.Marker.Name, s.log)
		if err != nil {
			return nil, closed, err
		}
		ro.Source, closed = src, src.Close
	}
	// What this host has seen tells of what was deleted, and its numbers must not be used again.
	dir, err := s.stateDir()
	if err != nil {
		return nil, closed, err
	}
	seen, err := verify.LoadSeen(dir, s.Marker.ID)
	if err != nil {
		return nil, closed, err
	}
	m := seen.Lineages[ro.Lineage.String()]
	ro.SeenManifest, ro.SeenTail = m.Seq, m.Tail
	return ro, closed, nil
}

// reading returns a lineage by its name, the current one without.
func (s *session) reading(ctx context.Context, name string) (*snapshot.Lineage, error) {
	l, err := s.lineage(ctx, name)
	if err != nil && !errors.Is(err, context.Canceled) {
		err = hint(err, "give the id of the lineage as --lineage: the first part of the names of its objects")
	}
	return l, err
}

// copyOf opens another copy of the repository.
func (o *repairOptions) copyOf(ctx context.Context, env *cli.Env, s *session) (*backup.Repository, error) {
	other := o.common
	other.repo, other.sets, other.verify = o.from, nil, nil
	if isURL(o.from) {
		other.config = ""
	}
	set := config.New()
	if isURL(o.from) {
		if err := set.Set("url", o.from); err != nil {
			return nil, cli.Usagef("%w", err)
		}
	} else {
		var err error
		if set, err = other.settings(env); err != nil {
			return nil, err
		}
	}
	st, _, err := o.openStore(env, set, s.log, attempts)
	if err != nil {
		return nil, err
	}
	return backup.Open(ctx, backup.Config{Store: st, Trusted: s.Trusted, Log: s.log.Logger})
}

func runRepair(ctx context.Context, env *cli.Env, o *repairOptions, plan func(context.Context, repair.Options) (*repair.Plan, error)) error {
	return o.use(ctx, env, attempts, func(s *session) (err error) {
		s.tells = true // it is what is repaired
		ro, closed, err := o.repairs(ctx, env, s)
		defer func() { err = errors.Join(err, closed()) }()
		if err != nil {
			return err
		}
		bar := o.progress(env, "reading", "", 0)
		ro.Progress = func(done, total int64) { bar.set(0, done, total) }
		p, err := plan(ctx, *ro)
		bar.done()
		if err != nil {
			return err
		}
		var res *repair.Result
		if o.confirm && p.Needed() && p.Err() == nil {
			if !o.json {
				if err := o.printPlan(env, p); err != nil {
					return err
				}
			}
			if res, err = p.Apply(ctx); err != nil {
				return err
			}
			s.repaired(ctx, ro.Lineage)
		}
		if o.json {
			if err := o.line(env.Stdout, repairDocument(p, res, o.confirm)); err != nil {
				return err
			}
			if err := o.repairErr(p, res); err != nil {
				return &cli.Exit{Code: classify(ctx, err).Exit}
			}
			return nil
		}
		if res == nil {
			if err := o.printPlan(env, p); err != nil {
				return err
			}
			return o.repairErr(p, res)
		}
		if !o.quiet {
			_, err = fmt.Fprintf(env.Stdout, "Done: %d objects stored, %s%s.\n", res.Objects, size(res.Bytes), published(res))
		}
		return err
	})
}

func published(res *repair.Result) string {
	if res.Seq == 0 {
		return ""
	}
	return fmt.Sprintf("; manifest %d is the newest", res.Seq)
}

// repairErr returns the error of a plan that was not carried out.
func (o *repairOptions) repairErr(p *repair.Plan, res *repair.Result) error {
	if res != nil {
		return nil
	}
	if err := p.Err(); err != nil {
		return err
	}
	if p.Needed() && p.Old != p.Head || p.Damage() {
		return hint(errDamage, "nothing was done: --confirm does it")
	}
	return nil
}

// repaired notes what a lineage has now: what this host has seen before may be lost, as the operator accepted.
func (s *session) repaired(ctx context.Context, lineage snapshot.ID) {
	dir, err := s.stateDir()
	if err != nil {
		return
	}
	seen, err := verify.LoadSeen(dir, s.Marker.ID)
	if err == nil {
		var state *backup.State
		if state, err = s.State(ctx, lineage, nil); err == nil {
			seen.Replace(state)
			err = seen.Save(dir)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("what was seen is not kept for the next time", "err", err)
	}
}

type holeRange struct {
	From tid.TID `json:"from"`
	To   tid.TID `json:"to"`
}

type gapRange struct {
	After tid.TID `json:"after"`
	Upto  tid.TID `json:"upto"`
	Note  string  `json:"note"`
}

func repairDocument(p *repair.Plan, res *repair.Result, confirmed bool) any {
	doc := struct {
		V         int            `json:"v"`
		Confirmed bool           `json:"confirmed"`
		Needed    bool           `json:"needed"`
		Plan      *repair.Plan   `json:"plan"`
		Holes     []holeRange    `json:"holes,omitempty"`
		Gaps      []gapRange     `json:"gaps,omitempty"`
		Result    *repair.Result `json:"result,omitempty"`
	}{V: 1, Confirmed: confirmed, Needed: p.Needed(), Plan: p, Result: res}
	for _, h := range p.Holes {
		doc.Holes = append(doc.Holes, holeRange{h.From, h.To})
	}
	for _, g := range p.Gaps {
		doc.Gaps = append(doc.Gaps, gapRange{g.After, g.Upto, g.Note})
	}
	return doc
}

// printPlan prints a plan. What cannot be repaired is printed in any case.
func (o *repairOptions) printPlan(env *cli.Env, p *repair.Plan) error {
	for _, s := range p.Steps {
		if s.Means != repair.None && o.quiet {
			continue
		}
		if _, err := fmt.Fprintln(env.Stdout, s); err != nil {
			return err
		}
	}
	if o.quiet {
		return nil
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	if p.Objects > 0 {
		fmt.Fprintf(w, "looked at\t%d objects, %s\n", p.Objects, size(p.Bytes))
	}
	if len(p.Steps) == 0 {
		fmt.Fprintf(w, "found\tnothing to do\n")
		return w.Flush()
	}
	fmt.Fprintf(w, "history\tup to %v (%s)", p.Head, when(p.Head))
	if p.Old != p.Head && p.Old != tid.Zero {
		fmt.Fprintf(w, "; now up to %v (%s)", p.Old, when(p.Old))
	}
	fmt.Fprintln(w)
	for _, h := range p.Holes {
		fmt.Fprintf(w, "hole\tmoments between %v (%s) and %v (%s) are not exact\n", h.From, when(h.From), h.To, when(h.To))
	}
	for _, g := range p.Gaps {
		fmt.Fprintf(w, "GAP\ttransactions after %v up to %v (%s) are lost\n", g.After, g.Upto, when(g.Upto))
	}
	for _, key := range p.Unsigned {
		fmt.Fprintf(w, "unsigned\t%s\n", key)
	}
	if p.Seq != 0 {
		fmt.Fprintf(w, "new\tmanifest %d, for all tails up to number %d\n", p.Seq, p.Tail)
	}
	if !o.confirm && p.Needed() && p.Err() == nil {
		fmt.Fprintf(w, "Nothing was done: --confirm does it.\n")
	}
	return w.Flush()
}
