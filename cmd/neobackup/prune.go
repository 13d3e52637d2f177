package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/keeper"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// keeper returns the keeper of a repository, as its section says. Without the key of a keeper it only looks.
func (s *session) keeper() (*keeper.Keeper, error) {
	o := keeper.Options{Repo: s.Repository, Settings: keeperSettings(s.set), Lock: s.set.Lock, LockShortDays: s.set.LockShortDays, Log: s.log.Logger, Now: s.o.now}
	o.Check = func(state *backup.State) error {
		p := &place{state: state}
		if err := s.seen(p); err != nil {
			return err
		}
		return p.older
	}
	var err error
	if s.set.KeeperKey != "" || s.set.SignKey != "" {
		if o.Signer, err = s.set.KeeperSigner(); err != nil && s.set.KeeperKey != "" {
			return nil, wrong(err)
		}
	}
	return keeper.New(o), nil
}

// keeperSettings are what a section says of the policy.
func keeperSettings(set *config.Repository) keeper.Settings {
	s := keeper.Settings{KeepLineagesDays: set.KeepLineagesDays, PruneGraceHours: int64((set.PruneGrace + time.Hour - 1) / time.Hour), LockDays: set.LockDays}
	for _, h := range set.Holds {
		x := keeper.Hold{TID: h.At.TID, Label: h.Label}
		if h.At.IsTime {
			x.Time = h.At.Time
		}
		s.Holds = append(s.Holds, x)
	}
	return s
}

type pruneOptions struct {
	common
	identityOptions
	confirm bool
	undo    bool
	share   string
	wraps   bool
}

func newPruneCommand(env *cli.Env) *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:   "prune [options]",
		Short: "Delete what a repository does not need any more",
		Long: `Find out what a repository does not need any more, and delete it in two steps. Without --confirm, only the
plan is printed: what stays, what goes, and why.

With --confirm, a doom list announces what goes; a later run, a day after or as the policy says, looks again
and deletes what the list names and is still not needed. Run it each day: each run deletes what an
earlier one announced. --undo cancels what the newest run announced.

Always kept are every lineage that is current, that a hold pins or that the newest proof of a restore needs, each with
all moments that it can restore; an old one for keep_lineages_days from the first proof of a later
one; and what was stored within the last day. Nothing is deleted while no policy is in force (neobackup policy),
while something that is needed is missing or damaged, or if more than half of what is stored would go besides
old lineages and what was merged.

--drop-wraps gives up wraps of the keys of epochs that key rotate has replaced, if --identity opens the newest one.
It must be given to both runs.

The host needs the key of a keeper (keeper_key, made by "neobackup key sign keeper FILE") and the permission to delete.` + exitStatus,
		Example: "  neobackup prune\n  neobackup prune --confirm\n  neobackup prune --undo",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, o.with(env, func(ctx context.Context, s *session) error { return runPrune(ctx, env, &o, s) })),
	}
	fs := cmd.Flags()
	cli.Flag(fs, &o.confirm, "confirm", "", "do it")
	cli.Flag(fs, &o.undo, "undo", "", "cancel what the newest run announced")
	cli.Text(fs, &o.share, "force-share", "", "50%", "greatest part of what is stored that may go, besides old lineages and what was merged")
	cli.Flag(fs, &o.wraps, "drop-wraps", "", "give up wraps of keys that newer ones have replaced")
	o.identityOptions.addFlags(cmd)
	o.common.addFlags(cmd)
	return cmd
}

// parseShare reads 80%.
func parseShare(s string) (float64, error) {
	n, ok := strings.CutSuffix(s, "%")
	x, err := strconv.ParseFloat(n, 64)
	if !ok || err != nil || !(x > 0 && x <= 100) {
		return 0, cli.Usagef("--force-share %s: want a part such as 80%%", s)
	}
	return x / 100, nil
}

func runPrune(ctx context.Context, env *cli.Env, o *pruneOptions, s *session) error {
	k, err := s.keeper()
	if err != nil {
		return err
	}
	if o.undo {
		if o.confirm || o.wraps {
			return cli.Usagef("--undo goes with no other option: it cancels")
		}
		return runUndo(ctx, env, o, k)
	}
	po := keeper.PruneOptions{Confirm: o.confirm}
	if po.ForceShare, err = parseShare(o.share); err != nil {
		return err
	}
	if o.wraps {
		if po.DropWraps, err = o.identities(env, s.set); err != nil {
			return err
		}
		if len(po.DropWraps) == 0 {
			return cli.Usagef("--drop-wraps needs --identity FILE: it shows that the newest wrap can be opened")
		}
	}
	var bar *progress
	po.Progress = func(objects, bytes, _, totalBytes int64) {
		if bar == nil {
			bar = o.progress(env, "deleted", "objects", totalBytes)
		}
		bar.set(objects, bytes, totalBytes)
	}
	rep, err := k.Prune(ctx, po)
	if bar != nil {
		bar.done()
	}
	if err != nil {
		return stoppedPrune(err, rep)
	}
	if o.json {
		if err := o.line(env.Stdout, struct {
			V          int    `json:"v"`
			Repository string `json:"repository"`
			Confirmed  bool   `json:"confirmed"`
			*keeper.PruneReport
		}{1, s.Marker.Name, o.confirm, rep}); err != nil {
			return err
		}
	} else if !o.quiet {
		if err := printPrune(env.Stdout, o, rep); err != nil {
			return err
		}
	}
	switch {
	case len(rep.Refused) == 0 || !o.confirm && !rep.Damaged:
		return nil
	case o.json && rep.Damaged:
		return &cli.Exit{Code: 3}
	case o.json:
		return &cli.Exit{Code: 1}
	case rep.Damaged:
		return fmt.Errorf("%w: nothing was deleted or announced", errDamage)
	}
	return errors.New("nothing was deleted or announced")
}

// stoppedPrune adds to an error what was done before it.
func stoppedPrune(err error, rep *keeper.PruneReport) error {
	if rep == nil {
		return err
	}
	if n := rep.Deleted.Objects; n > 0 {
		err = fmt.Errorf("%w; %d objects, %s, were deleted before that", err, n, size(rep.Deleted.Bytes))
	}
	if len(rep.Written) > 0 {
		err = fmt.Errorf("%w; announced before that: %s", err, strings.Join(rep.Written, ", "))
	}
	return err
}

func runUndo(ctx context.Context, env *cli.Env, o *pruneOptions, k *keeper.Keeper) error {
	lists, err := k.Undo(ctx, "prune --undo")
	if err != nil {
		return err
	}
	if o.json {
		return o.line(env.Stdout, map[string]any{"v": 1, "cancelled": lists})
	}
	if len(lists) == 0 {
		_, err := fmt.Fprintln(env.Stdout, "Nothing is announced that was not carried out yet.")
		return err
	}
	_, err = fmt.Fprintf(env.Stdout, "Cancelled: %s. What they name is not deleted by them; the next prune --confirm announces again what is not needed.\n", strings.Join(lists, ", "))
	return err
}

func printPrune(out io.Writer, o *pruneOptions, r *keeper.PruneReport) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	printPolicyLine(w, r)
	for _, l := range r.Lineages {
		state := "stays"
		if !l.Kept {
			state = "goes"
		}
		until := ""
		if !l.Until.IsZero() {
			until = ", until " + l.Until.Format("2006-01-02 15:04")
		}
		fmt.Fprintf(w, "lineage %d\t%s: %s%s\n", l.K, state, l.Why, until)
	}
	for _, goes := range []bool{false, true} {
		for _, g := range r.Groups {
			if g.Goes == goes {
				fmt.Fprintf(w, "%s\t%d objects, %s: %s\n", map[bool]string{false: "stays", true: "goes"}[goes], g.Objects, size(g.Bytes), g.Why)
			}
		}
	}
	if len(r.Foreign) > 0 {
		fmt.Fprintf(w, "foreign\tobjects that are none of a repository stay, such as %s\n", r.Foreign[0])
	}
	for _, l := range r.Lists {
		fmt.Fprintf(w, "announced\tby %s: %d objects, due %s\n", l.Key, l.Objects, l.Due.Format("2006-01-02 15:04"))
	}
	for _, text := range r.Refused {
		fmt.Fprintf(w, "refused\t%s\n", text)
	}
	if len(r.Refused) == 0 {
		count := func(name string, c keeper.Count, text string) {
			if c.Objects > 0 {
				fmt.Fprintf(w, "%s\t%d objects, %s%s\n", name, c.Objects, size(c.Bytes), text)
			}
		}
		if o.confirm {
			count("deleted", r.Deleted, "")
			count("still locked", r.Locked, ", deleted when their locks end")
			count("announced now", r.New, ": "+strings.Join(r.Written, ", "))
		} else {
			count("to delete", r.Due, ", announced and due")
			count("to announce", r.New, "")
		}
		count("waiting", r.Waiting, ", announced and not due yet")
		count("later", r.Later, ", announced when their locks end")
		count("spared", r.Spared, ", announced but needed by now")
		if r.Hidden > 0 {
			fmt.Fprintf(w, "versions\t%d objects are hidden only, if the bucket keeps versions: these credentials may not list or delete them; neobackup policy --bucket prints the rule with which the store does it\n", r.Hidden)
		}
		switch {
		case o.confirm && r.Deleted.Objects+r.New.Objects+r.Locked.Objects == 0:
			fmt.Fprintf(w, "nothing to do\n")
		case !o.confirm:
			fmt.Fprintf(w, "Nothing was done: --confirm does it.\n")
		}
	}
	return w.Flush()
}

// printPolicyLine prints the policy in force, and how that of this keeper differs.
func printPolicyLine(w io.Writer, r *keeper.PruneReport) {
	if r.Policy == nil {
		fmt.Fprintf(w, "policy\tnone\n")
	} else {
		fmt.Fprintf(w, "policy\t%d of %s: old lineages %d days, grace %d hours, %d holds\n", r.Policy.K, r.Policy.Created.Format("2006-01-02"), r.Policy.KeepLineagesDays, r.Policy.PruneGraceHours, len(r.Policy.Holds))
		for _, d := range r.Differences {
			fmt.Fprintf(w, "warning\t%s\n", differenceText(d))
		}
	}
	for _, i := range r.Ignored {
		fmt.Fprintf(w, "warning\t%s is ignored: %s\n", i.Key, i.Err)
	}
}

func differenceText(d keeper.Difference) string {
	switch {
	case d.InForce == "":
		return fmt.Sprintf("%s %s is configured, and not in force", d.Setting, d.Configured)
	case d.Configured == "":
		return fmt.Sprintf("%s %s is in force, and not configured", d.Setting, d.InForce)
	}
	return fmt.Sprintf("%s is %s in force, %s is configured", d.Setting, d.InForce, d.Configured)
}

type forgetOptions struct {
	common
	confirm bool
	why     string
}

func newForgetCommand(env *cli.Env) *cobra.Command {
	var o forgetOptions
	cmd := &cobra.Command{
		Use:   "forget [options] LINEAGE",
		Short: "Let an old lineage go before its time",
		Long: `Let an old lineage go before keep_lineages_days are over. LINEAGE is its number or the beginning of its id
(neobackup list --lineages). A doom list names all of it; prune deletes it after the grace, if that is right still then.
Until then, prune --undo cancels it.

Refused are the current lineage, one that a hold pins or the newest proof needs, and all as long as no
drill has proved a later one. What another lineage uses of it stays.

Without --confirm, only the plan is printed.` + exitStatus,
		Example: "  neobackup forget 2\n  neobackup forget 2 --confirm --why 'personal data'",
		Args:    cobra.ExactArgs(1),
		RunE: o.command(env, func(ctx context.Context, args []string) error {
			return o.use(ctx, env, attempts, func(s *session) error { return runForget(ctx, env, &o, s, args[0]) })
		}),
	}
	cli.Flag(cmd.Flags(), &o.confirm, "confirm", "", "do it")
	cli.Text(cmd.Flags(), &o.why, "why", "", "", "reason, for the doom list")
	o.addFlags(cmd)
	return cmd
}

func runForget(ctx context.Context, env *cli.Env, o *forgetOptions, s *session, name string) error {
	l, err := s.lineage(ctx, name)
	if err != nil {
		return err
	}
	k, err := s.keeper()
	if err != nil {
		return err
	}
	rep, err := k.Forget(ctx, l.Lineage, keeper.ForgetOptions{Confirm: o.confirm, Why: o.why})
	if err != nil {
		return err
	}
	if o.json {
		return o.line(env.Stdout, struct {
			V          int    `json:"v"`
			Repository string `json:"repository"`
			Confirmed  bool   `json:"confirmed"`
			*keeper.ForgetReport
		}{1, s.Marker.Name, o.confirm, rep})
	}
	until := "and would stay: the policy does not let it go yet"
	if !rep.Until.IsZero() {
		until = "and would go " + rep.Until.Format("2006-01-02 15:04")
	}
	text := fmt.Sprintf("Lineage %d has %d objects, %s, %s.\n", rep.K, rep.Goes.Objects, size(rep.Goes.Bytes), until)
	if rep.Stays.Objects > 0 {
		text += fmt.Sprintf("%d objects, %s, stay: other lineages use them, or they are less than a day old.\n", rep.Stays.Objects, size(rep.Stays.Bytes))
	}
	if o.confirm {
		text += fmt.Sprintf("Announced by %s: prune --confirm deletes it from %s on; until then, prune --undo cancels it.\n", strings.Join(rep.Written, ", "), rep.Due.Format("2006-01-02 15:04"))
	} else {
		text += "Nothing was done: --confirm does it.\n"
	}
	_, err = io.WriteString(env.Stdout, text)
	return err
}

func newExtendLocksCommand(env *cli.Env) *cobra.Command {
	var o common
	cmd := &cobra.Command{
		Use:   "extend-locks [options]",
		Short: "Extend the object locks of what is needed",
		Long: `Extend the lock of each object that is needed, if it ends within half of lock_days: then nothing that a
restore needs can be deleted for as long, by any credentials (compliance), or without a permission of its own
(governance). All versions of an object are locked. Run it each day on the host of the keeper.

It prints how much was extended, and the least time for which a needed object is locked. Objects that are
damaged or missing keep it from nothing else: it names them, and ends with status 3.` + exitStatus,
		Example: "  neobackup extend-locks",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, o.with(env, func(ctx context.Context, s *session) error { return runExtendLocks(ctx, env, &o, s) })),
	}
	o.addFlags(cmd)
	return cmd
}

func runExtendLocks(ctx context.Context, env *cli.Env, o *common, s *session) error {
	k, err := s.keeper()
	if err != nil {
		return err
	}
	rep, err := k.ExtendLocks(ctx)
	if err != nil {
		return err
	}
	return o.tellLocks(env, s.Marker.Name, rep)
}

// tellLocks prints how locks were extended. The error is the damage that was found.
func (o *common) tellLocks(env *cli.Env, repository string, rep *keeper.LockReport) error {
	var least *int64
	if rep.Least >= 0 {
		n := int64(rep.Least.Seconds())
		least = &n
	}
	if o.json {
		if err := o.line(env.Stdout, struct {
			V            int    `json:"v"`
			Repository   string `json:"repository"`
			LeastSeconds *int64 `json:"least_seconds,omitempty"`
			*keeper.LockReport
		}{1, repository, least, rep}); err != nil {
			return err
		}
		if rep.Damaged {
			return &cli.Exit{Code: 3}
		}
		return nil
	}
	text := ""
	if !o.quiet {
		text = fmt.Sprintf("%d objects are needed; the locks of %d were extended (%s, %d days).\nThe least is locked for %s: %s\n",
			rep.Needed, rep.Extended, rep.Mode, rep.Days, config.FormatDuration(rep.Least.Truncate(time.Minute)), rep.LeastKey)
		if rep.Ended > 0 {
			text += fmt.Sprintf("%d were not locked before.\n", rep.Ended)
		}
	}
	if !o.quiet || rep.Damaged {
		for _, d := range rep.Damage {
			text += fmt.Sprintf("warning: %s\n", d)
		}
	}
	if _, err := io.WriteString(env.Stdout, text); err != nil {
		return err
	}
	if rep.Damaged {
		return fmt.Errorf("%w: the locks of all else that is needed were extended", errDamage)
	}
	return nil
}
