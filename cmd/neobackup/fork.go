package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

type forkOptions struct {
	writing
	identityOptions
	at       string
	why      string
	noSource bool
	confirm  bool
}

func newForkCommand(env *cli.Env) *cobra.Command {
	var o forkOptions
	cmd := &cobra.Command{
		Use:   "fork [options]",
		Short: "Go on from an earlier moment, in a new lineage",
		Long: `Begin a new lineage that has the history up to an earlier moment, and goes on from there: for a source that
was truncated, or restored from an older copy. A writer refuses such a source (exit status 7), since it
lacks what the repository has.

Nothing is copied: the new lineage names what is stored already. What came after the moment stays in the old lineage,
and can be restored with --lineage until a keeper removes that.

The moment is the last transaction that source and repository share. With an identity it is found wherever it is;
without, only if it is at the end of what was stored at once; the message of the writer names that. --at T must
be that transaction, unless --no-source says that the source is not to be asked.

Without --confirm, the command says what it would do.` + exitStatus,
		Example: "  neobackup fork --identity operator.txt\n  neobackup fork --at 03f1a2b3c4d5e6f7 --confirm --why 'restored after the fire'",
		Args:    cobra.NoArgs,
		RunE:    o.command(env, func(ctx context.Context, _ []string) error { return runFork(ctx, env, &o) }),
	}
	fs := cmd.Flags()
	cli.Text(fs, &o.at, "at", "", "", "T: the last transaction of the new lineage (default: the last one that both have)")
	cli.Text(fs, &o.why, "why", "", "", "words for the note of the lineage")
	cli.Text(fs, &o.source, "source", "", "", "what is backed up: file:///path/Data.fs or neo://CLUSTER@MASTER:PORT")
	cli.Flag(fs, &o.noSource, "no-source", "", "do not compare with the source")
	cli.Flag(fs, &o.confirm, "confirm", "", "do it")
	cli.InFull(fs, "no-source")
	o.identityOptions.addFlags(cmd)
	o.common.addFlags(cmd)
	o.addTimeout(fs)
	return cmd
}

func runFork(ctx context.Context, env *cli.Env, o *forkOptions) error {
	at, err := o.moment(o.at)
	if err != nil {
		return err
	}
	if o.noSource && (at == tid.Zero || o.source != "") {
		return cli.Usagef("--no-source needs --at T, and no --source")
	}
	if o.source != "" {
		o.sets = append(o.sets, "source="+o.source)
	}
	return o.use(ctx, env, attempts, func(s *session) (err error) {
		signer, _, err := s.set.Signer(snapshot.Writer)
		if err != nil {
			return wrong(err)
		}
		dir, err := s.stateDir()
		if err != nil {
			return err
		}
		if err := s.notOlder(ctx, dir); err != nil {
			return err
		}
		var keys *backup.Keys
		if list, err := o.identities(env, s.set); err != nil {
			return err
		} else if len(list) > 0 || !s.Encrypted() {
			keys = s.Unlock(list...)
		}
		opts := writer.ForkOptions{Options: writer.Options{
			Repo: s.Repository, Signer: signer, StateDir: dir, Lock: s.set.Lock, LockDays: int(s.set.LockDays), LockShortDays: int(s.set.LockShortDays), Log: s.log.Logger,
		}, At: at, Keys: keys, Why: o.why}
		if !o.noSource {
			f, err := o.openFeed(ctx, s.set, s.Marker.Name, s.log)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, f.Close()) }()
			opts.Feed = f
		}
		f, err := writer.PlanFork(ctx, opts)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		var l *snapshot.Lineage
		if o.confirm {
			if l, err = f.Begin(ctx); err != nil {
				return err
			}
		}
		return s.printFork(f, l, o.now())
	})
}

// printFork says what a fork is, or would be if l is nil.
func (s *session) printFork(f *writer.Fork, l *snapshot.Lineage, now time.Time) error {
	if s.o.json {
		doc := map[string]any{
			"v": 1, "repository": s.Marker.Name, "parent": f.Parent.K, "head": pointOf(f.Head, now), "at": pointOf(f.At, now),
			"segments": f.Segments, "stored_bytes": f.Stored, "confirmed": l != nil,
		}
		if f.Common != tid.Zero {
			doc["common"], doc["common_exact"] = pointOf(f.Common, now), f.Known
		}
		if l != nil {
			doc["k"], doc["lineage"] = l.K, l.Lineage
		}
		return s.o.line(s.env.Stdout, doc)
	}
	var w strings.Builder
	if f.Common != tid.Zero {
		known := ""
		if !f.Known {
			known = ", as far as is known without an identity"
		}
		fmt.Fprintf(&w, "source and repository share the history up to %v (%s)%s\n", f.Common, when(f.Common), known)
	}
	fmt.Fprintf(&w, "lineage %d has transactions up to %v (%s); a fork at %v (%s) has %d segments of it, %s, and copies nothing\n",
		f.Parent.K, f.Head, when(f.Head), f.At, when(f.At), f.Segments, size(f.Stored))
	if l == nil {
		fmt.Fprintln(&w, "Nothing was done: --confirm does it.")
		return s.print(&w)
	}
	fmt.Fprintf(&w, "lineage %d is the current one, and goes on from there; what came after it is in lineage %d: restore --lineage %d\n", l.K, f.Parent.K, f.Parent.K)
	return s.print(&w)
}
