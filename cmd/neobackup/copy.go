package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/copier"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

type copyOptions struct {
	common
	identityOptions
	plan      bool
	verify    bool
	same      bool
	reencrypt bool
	scratch   string
}

func newCopyCommand(env *cli.Env) *cobra.Command {
	var o copyOptions
	cmd := &cobra.Command{
		Use:   "copy [options] FROM TO",
		Short: "Copy a repository to another place",
		Long: `Copy a repository to another store: for a second provider, or to change it. FROM and TO are names of
repositories in the configuration file, or URLs; of TO only the url, the credentials, the lock and the limits count.

The copy has the same objects, byte for byte: the same identity, keys, signatures, lineages, proofs. Each of the two can
take the place of the other, with the keys and identities that there are. No identity is needed.
While it is copied, and after any interruption, TO is a repository that restores what it has. When it is run
again, copy copies what is new; what is there is not read again. A writer may go on with FROM, and a keeper prune it.

What is read is verified before it is stored: hashes, signatures, chains. With --verify, what was stored is read
again. What nothing refers to any more, doom lists and foreign objects are left out, and counted.

TO must be empty, or a copy made by this command. One that has what FROM has not is left alone (exit status 7): a writer has
added to it.

With --reencrypt, TO is a repository of its own, with other recipients, other keys and another name, that neobackup
init has made: a [repository NAME] with its sign_key. The history of the current lineage of FROM, which an identity opens,
becomes the history of TO.` + exitStatus,
		Example: `  neobackup copy prod offsite
  neobackup copy --plan prod "s3://backups/prod?endpoint=s3.example.com&region=eu-2"
  neobackup copy --reencrypt --identity operator.txt prod new`,
		Args: cobra.ExactArgs(2),
		RunE: o.command(env, func(ctx context.Context, args []string) error { return runCopy(ctx, env, &o, args[0], args[1]) }),
	}
	fs := cmd.Flags()
	cli.Flag(fs, &o.plan, "plan", "", "say what would be copied, and end")
	cli.Flag(fs, &o.verify, "verify", "", "read everything again that was written")
	cli.Flag(fs, &o.reencrypt, "reencrypt", "", "into a repository of its own, with other keys")
	cli.Flag(fs, &o.same, "assume-same-history", "", "go on with a copy of which nothing shows any more that it is an earlier state of FROM")
	cli.Path(fs, &o.scratch, "scratch", "", "", "directory for objects that are being copied (default: that of the system)")
	cli.InFull(fs, "assume-same-history")
	o.identityOptions.addFlags(cmd)
	o.common.addFlags(cmd)
	return cmd
}

// of returns the settings of a repository that an argument names.
func (o *common) of(env *cli.Env, arg string) (*config.Repository, error) {
	c := *o
	c.repo = arg
	if isURL(arg) {
		c.config = "" // it says nothing about it
	}
	return c.settings(env)
}

func runCopy(ctx context.Context, env *cli.Env, o *copyOptions, from, to string) (err error) {
	if o.repo != "" {
		return cli.Usagef("copy takes both repositories as arguments, without -r")
	}
	if o.reencrypt && (o.plan || o.verify || o.same) {
		return cli.Usagef("--plan, --verify and --assume-same-history are for a copy with the same keys")
	}
	src, err := o.of(env, from)
	if err != nil {
		return err
	}
	dst, err := o.of(env, to)
	if err != nil {
		return err
	}
	if src.URL == dst.URL {
		return cli.Usagef("%s is to be copied into itself", src.URL)
	}
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	s, err := o.openSettings(ctx, env, src, log, attempts)
	if err != nil {
		return err
	}
	if o.stats {
		defer func() { o.printStats(env, s.count.Stats(), s.tried) }()
	}
	dir, err := s.stateDir()
	if err != nil {
		return err
	}
	if err := s.notOlder(ctx, dir); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = s.tampered()
		}
	}()
	if o.reencrypt {
		return runReencrypt(ctx, env, o, s, dst)
	}
	st, _, err := o.openStore(env, dst, log, attempts)
	if err != nil {
		return err
	}
	opts := copier.Options{
		From: s.Repository, To: st, Name: dst.URL, StateDir: dir, AssumeSameHistory: o.same, Verify: o.verify, Scratch: o.scratch,
		Lock: dst.Lock, LockDays: int(dst.LockDays), LockShortDays: int(dst.LockShortDays), Log: log.Logger,
	}
	start := time.Now()
	sum, err := copier.Plan(ctx, opts)
	if sum == nil {
		return err
	}
	if o.plan {
		return s.printCopied(ctx, sum, dst.URL, 0, err)
	}
	if sum.First {
		if _, err := o.probe(ctx, st, dst, ""); err != nil {
			return err
		}
	}
	bar := o.progress(env, "copying", "objects", 0)
	opts.Progress = func(p copier.Progress) { bar.set(p.Objects, p.Bytes, p.TotalBytes) }
	sum, err = copier.Copy(ctx, opts)
	bar.done()
	if sum == nil {
		return err
	}
	return s.printCopied(ctx, sum, dst.URL, time.Since(start), err)
}

// reasons say why objects are left out.
var reasons = map[string]string{
	copier.Spare: "to which nothing refers any more", copier.Unfinished: "of a lineage that is not complete", copier.ProbeLeft: "of probes",
	copier.DoomList: "with which a keeper deletes", copier.Foreign: "that are none of a repository", copier.Untrusted: "that no trusted key has signed",
}

// printCopied says what was copied, or would be: nothing took no time. broken is nil unless FROM is damaged, and was
// copied as far as it is whole.
func (s *session) printCopied(ctx context.Context, sum *copier.Summary, to string, took time.Duration, broken error) error {
	head, plan := sum.State.Head(), took == 0
	if s.o.json {
		end := error(nil)
		text := ""
		if broken != nil {
			text, end = broken.Error(), &cli.Exit{Code: classify(ctx, broken).Exit} // the document says it
		}
		return errors.Join(s.o.line(s.env.Stdout, struct {
			V          int    `json:"v"`
			Repository string `json:"repository"`
			To         string `json:"to"`
			Plan       bool   `json:"plan"`
			Head       *point `json:"head"`
			*copier.Summary
			Seconds float64 `json:"seconds"`
			Broken  string  `json:"broken,omitempty"`
		}{1, s.Marker.Name, to, plan, pointOf(head, s.o.now()), sum, took.Seconds(), text}), end)
	}
	if s.o.quiet && !plan {
		return broken
	}
	var w strings.Builder
	until := "no transaction yet"
	if head != tid.Zero {
		until = fmt.Sprintf("everything up to %v (%s)", head, when(head))
	}
	if plan {
		left := copier.Count{Objects: sum.Needed.Objects - sum.Equal.Objects, Bytes: sum.Needed.Bytes - sum.Equal.Bytes}
		fmt.Fprintf(&w, "%d objects, %s, would be copied; %d, %s, are there already\n", left.Objects, size(left.Bytes), sum.Equal.Objects, size(sum.Equal.Bytes))
		fmt.Fprintf(&w, "the copy would have %s, in %d lineages\n", until, sum.Lineages)
	} else {
		again := ""
		if sum.Read.Objects > 0 {
			again = ", and read again"
		}
		fmt.Fprintf(&w, "%d objects, %s, were copied%s; %d, %s, were there already\n", sum.Copied.Objects, size(sum.Copied.Bytes), again, sum.Equal.Objects, size(sum.Equal.Bytes))
		fmt.Fprintf(&w, "the copy has %s, in %d lineages\n", until, sum.Lineages)
	}
	for _, why := range slices.Sorted(maps.Keys(sum.LeftOut)) {
		n := sum.LeftOut[why]
		fmt.Fprintf(&w, "left out: %d objects, %s, %s\n", n.Objects, size(n.Bytes), reasons[why])
	}
	if sum.OtherWraps > 0 {
		fmt.Fprintf(&w, "warning: %d wraps of keys are others in the copy, and stay: rotate its keys there as well\n", sum.OtherWraps)
	}
	if plan {
		fmt.Fprintln(&w, "Nothing was copied: without --plan it is.")
	}
	return errors.Join(s.print(&w), broken)
}

// runReencrypt copies a repository into one of its own.
func runReencrypt(ctx context.Context, env *cli.Env, o *copyOptions, from *session, dst *config.Repository) error {
	if dst.SignKey == "" {
		return cli.Usagef("--reencrypt: TO is a repository of its own: neobackup init makes it, and its [repository NAME] names its sign_key")
	}
	to, err := o.openSettings(ctx, env, dst, from.log, attempts)
	if err != nil {
		return err
	}
	signer, _, err := dst.Signer(snapshot.Writer)
	if err != nil {
		return wrong(err)
	}
	keys, err := from.unlock(&o.identityOptions)
	if err != nil {
		return err
	}
	dir, err := to.stateDir()
	if err != nil {
		return err
	}
	if err := to.probeIfOld(ctx, dir); err != nil {
		return err
	}
	if err := to.notOlder(ctx, dir); err != nil {
		return err
	}
	w := writing{common: o.common}
	start := time.Now()
	st, err := copier.Reencrypt(ctx, copier.ReencryptOptions{
		From: from.Repository, Keys: keys, Feed: copier.FeedOptions{Fetch: backup.FetchOptions{Scratch: o.scratch}},
		Writer: writer.Options{
			Repo: to.Repository, Signer: signer, StateDir: dir, Recipients: dst.Recipients, SegmentSize: dst.SegmentSize, Level: dst.Level,
			Lock: dst.Lock, LockDays: int(dst.LockDays), LockShortDays: int(dst.LockShortDays), RebaseOnPack: dst.RebaseOnPack,
			Log: to.log.Logger, Progress: w.shown(env, config.Source{}),
		},
	})
	w.done()
	if err != nil {
		return err
	}
	to.o = &o.common
	return to.printTaken(st, time.Since(start))
}
