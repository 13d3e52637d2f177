package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

type checkOptions struct {
	reader
	quiet
	structure, strict bool
}

func newCheckCommand(env *cli.Env) *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Verify all that can be verified",
		Long: `Verify all of a file and print what is wrong, one line for each problem, then
what was seen.

Errors are what no program writes: damaged headers, lengths, ids and positions,
data that Python cannot load, an incomplete end, no byte at all. Warnings are what
a database can live with: references to objects that are not there,
transactions in the future, data that only some versions of Python load, a file
without a transaction. Only errors make the check fail, unless --strict.` + exitStatus,
		Example: "  neofs check var/Data.fs",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCheck(cmd.Context(), env, &o, args[0])
		},
	}
	cli.Flag(cmd.Flags(), &o.structure, "structure", "", "do not look into the data: faster")
	cli.Flag(cmd.Flags(), &o.strict, "strict", "", "fail on warnings too")
	o.reader.addFlag(cmd)
	o.quiet.addFlag(cmd)
	return cmd
}

func runCheck(ctx context.Context, env *cli.Env, o *checkOptions, path string) error {
	r, err := o.open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	progress, done := o.progress(env, "checking", r)
	sum, err := fsformat.Check(ctx, r, fsformat.CheckOptions{Structure: o.structure, Progress: progress}, func(p fsformat.Problem) {
		fmt.Fprintln(env.Stdout, p)
	})
	done()
	if err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "%d transactions, %d records of %d objects, %d bytes of data; last transaction %v\n",
		sum.Transactions, sum.Records, sum.Objects, sum.DataBytes, sum.LastTID)
	for _, n := range []struct {
		n    int64
		what string
	}{
		{sum.Packed, "packed transactions"},
		{sum.Undone, "transactions undone in place"},
		{sum.BackPointers, "records that share the data of earlier ones"},
		{sum.Absent, "records by which an object ceased to exist"},
		{sum.Blobs, "revisions of blobs, whose files are not checked"},
		{sum.Hidden, "revisions hidden by a pack"},
		{sum.Opaque, "records wrapped in an unknown way, whose contents were not checked"},
	} {
		if n.n > 0 {
			fmt.Fprintf(env.Stdout, "%d %s\n", n.n, n.what)
		}
	}
	if sum.Errors == 0 && sum.Warnings == 0 {
		fmt.Fprintln(env.Stdout, "no problems found")
		return nil
	}
	fmt.Fprintf(env.Stdout, "%d errors, %d warnings\n", sum.Errors, sum.Warnings)
	if o.strict {
		return found(sum.Errors + sum.Warnings)
	}
	return found(sum.Errors)
}
