package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/fsformat"
)

type salvageOptions struct {
	reader
	quiet
	partial, strict bool
	offsets         string
}

func newSalvageCommand(env *cli.Env) *cobra.Command {
	var o salvageOptions
	cmd := &cobra.Command{
		Use:   "salvage DAMAGED NEW [RANGE]",
		Short: "Recover what is intact from a damaged file",
		Long: `Copy all transactions that are intact from a damaged file into a new one, in the
order of the file, and print every range of bytes that is left out, and why. The
damaged file is not changed. Whatever is kept and is not as it was has a line too:

  lost        bytes that are not in the new file: offsets, length, reason
  repaired    a damaged length, id or position of which others say what it was
  renumbered  a transaction whose id was not above that of the one before. As few
              as possible get another id, the next after the one before, and keep
              their place. Blob files are named after ids: those to rename are listed
  warning     kept as it is, and to be looked at: a transaction in the future, a
              record whose object id may be damaged (--strict: that ends the salvage)
  left out    a transaction undone in place, which is no part of the database

A transaction of which a record is damaged beyond repair is left out whole; with
--partial its other records are kept, which saves more and may leave objects that
do not agree with each other. Compare both with "neofs check" before using any.

With a RANGE of transactions or with --offsets, only a part of the file is copied.
Data that an undo shares with a transaction outside of it are copied too.

Exit status: 0 nothing was lost; 1 something was, or the salvage failed; 2 wrong
usage.`,
		Example: "  neofs salvage broken.fs saved.fs && neofs check saved.fs\n  neofs salvage --offsets 1048576.. broken.fs rest.fs",
		Args:    cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSalvage(cmd.Context(), env, &o, args)
		},
	}
	cli.Flag(cmd.Flags(), &o.partial, "partial", "p", "keep the intact records of damaged transactions")
	cli.Flag(cmd.Flags(), &o.strict, "strict", "", "fail at the first record whose object id may be damaged")
	cli.Text(cmd.Flags(), &o.offsets, "offsets", "", "", "only transactions that begin in these bytes of the file, `FROM..TO`: from FROM on, before TO")
	o.reader.addFlag(cmd)
	o.quiet.addFlag(cmd)
	return cmd
}

// parseOffsets reads FROM..TO. What is left out is 0.
func parseOffsets(s string) (from, to int64, err error) {
	if s == "" {
		return 0, 0, nil
	}
	a, b, ok := strings.Cut(s, "..")
	for _, f := range []struct {
		text string
		n    *int64
	}{{a, &from}, {b, &to}} {
		if f.text != "" && ok {
			*f.n, err = strconv.ParseInt(f.text, 10, 64)
			ok = err == nil && *f.n >= 0
		}
	}
	if !ok || to > 0 && to <= from {
		return 0, 0, cli.Usagef("%q is no range of offsets: FROM..TO", s)
	}
	return from, to, nil
}

func runSalvage(ctx context.Context, env *cli.Env, o *salvageOptions, args []string) error {
	from, to := args[0], args[1]
	opt := fsformat.SalvageOptions{Partial: o.partial, Strict: o.strict}
	var err error
	if opt.After, opt.UpTo, err = parseRange(args[2:]); err != nil {
		return err
	}
	if opt.From, opt.To, err = parseOffsets(o.offsets); err != nil {
		return err
	}
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
	opt.Progress = progress
	opt.Notice = func(n fsformat.Notice) { fmt.Fprintln(env.Stdout, n) }
	sum, err := fsformat.Salvage(ctx, r, w, opt, func(l fsformat.Lost) {
		fmt.Fprintf(env.Stdout, "lost: %v\n", l)
	})
	done()
	if err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "%d transactions with %d records recovered, %d of them incomplete; %d bytes lost in %d places\n",
		sum.Kept, sum.Records, sum.Partial, sum.LostBytes, sum.LostRanges)
	if sum.Repaired+sum.Renumbered+sum.Warnings > 0 {
		fmt.Fprintf(env.Stdout, "%d fields repaired, %d transactions renumbered, %d warnings\n", sum.Repaired, sum.Renumbered, sum.Warnings)
	}
	return found(sum.LostBytes)
}
