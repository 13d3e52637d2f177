package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/fsformat"
)

type salvageOptions struct {
	reader
	quiet
	partial bool
}

func newSalvageCommand(env *cli.Env) *cobra.Command {
	var o salvageOptions
	cmd := &cobra.Command{
		Use:   "salvage DAMAGED NEW",
		Short: "Recover what is intact from a damaged file",
		Long: `Copy all transactions that are intact from a damaged file into a new one, and
print every range of bytes that is left out, and why. The damaged file is not
changed.

A transaction of which a record is damaged is left out whole; with --partial its
other records are kept, which saves more and may leave objects that do not
agree with each other. Compare both with "neofs check" before using any.

Exit status: 0 nothing was lost; 1 something was, or the salvage failed; 2 wrong
usage.`,
		Example: "  neofs salvage broken.fs saved.fs && neofs check saved.fs",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSalvage(cmd.Context(), env, &o, args[0], args[1])
		},
	}
	cli.Flag(cmd.Flags(), &o.partial, "partial", "p", "keep the intact records of damaged transactions")
	o.reader.addFlag(cmd)
	o.quiet.addFlag(cmd)
	return cmd
}

func runSalvage(ctx context.Context, env *cli.Env, o *salvageOptions, from, to string) error {
	if err := side.Distinct(from, to); err != nil {
		return err
	}
	r, err := o.open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := fsformat.Create(to, fsformat.WriterOptions{Magic: r.Magic()})
	if err != nil {
		return err
	}
	defer w.Abort()
	progress, done := o.progress(env, "salvaging", r)
	sum, err := fsformat.Salvage(ctx, r, w, fsformat.SalvageOptions{Partial: o.partial, Progress: progress}, func(l fsformat.Lost) {
		fmt.Fprintf(env.Stdout, "lost: %v\n", l)
	})
	done()
	if err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "%d transactions with %d records recovered, %d of them incomplete; %d bytes lost\n",
		sum.Kept, sum.Records, sum.Partial, sum.LostBytes)
	return found(sum.LostBytes)
}
