package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/zdump"
)

type dumpOptions struct {
	reader
	quiet
	strict
	hashOnly bool
}

func newDumpCommand(env *cli.Env) *cobra.Command {
	var o dumpOptions
	cmd := &cobra.Command{
		Use:   "dump FILE [RANGE]",
		Short: "Write transactions with all their data as text",
		Long: `Write transactions with all their data to the standard output, in the format of
zodbtools ("zodb dump"), byte for byte. "restore" makes a Data.fs of it.

A file whose transaction ids do not increase is refused before anything is written:
see "neoexport --renumber". Of each record whose pointer to the previous one of its
object is wrong, which a dump does not show, a warning is printed; with --strict
nothing is written then.` + exitStatus,
		Example: "  neofs dump var/Data.fs | less\n  neofs dump --hashonly var/Data.fs 2026-01-01..2026-01-31",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDump(cmd.Context(), env, &o, args)
		},
	}
	cli.Flag(cmd.Flags(), &o.hashOnly, "hashonly", "", "only the digest of the data: to compare, not to restore")
	o.reader.addFlag(cmd)
	o.quiet.addFlag(cmd)
	o.strict.addFlag(cmd)
	return cmd
}

// withRenumber adds what can be done to the error of a file whose ids do not increase.
func withRenumber(err error) error {
	if errors.Is(err, fsformat.ErrOrder) {
		return fmt.Errorf("%w; neoexport --renumber makes a file of it whose ids increase", err)
	}
	return err
}

func runDump(ctx context.Context, env *cli.Env, o *dumpOptions, args []string) error {
	after, upTo, err := parseRange(args[1:])
	if err != nil {
		return err
	}
	r, err := o.open(args[0])
	if err != nil {
		return err
	}
	defer r.Close()
	if err := warnTail(ctx, env, r); err != nil {
		return err
	}
	if err := r.CheckOrder(ctx, tid.Zero); err != nil {
		return withRenumber(err)
	}
	wrong := side.Wrong{Out: env.Stderr, File: args[0]}
	checked := r.Checked(wrong.Report)
	if o.strict.strict {
		if err := checked.CheckPrevious(ctx, after); err != nil {
			return err
		}
		if wrong.N > 0 {
			return wrong.Refused()
		}
	}
	progress, done := o.progress(env, "dumping", r)
	defer done()
	w := zdump.NewWriter(env.Stdout, o.hashOnly)
	for t, err := range checked.Scan(ctx, after, upTo) {
		if err != nil {
			return err
		}
		if err := w.Write(&t.Transaction); err != nil {
			return err
		}
		progress(t.Head.End())
	}
	wrong.Done("the dump")
	return w.Flush()
}
