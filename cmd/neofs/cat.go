package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/pickle"
)

type catOptions struct {
	reader
	quiet
	raw, history bool
}

func newCatCommand(env *cli.Env) *cobra.Command {
	var o catOptions
	cmd := &cobra.Command{
		Use:   "cat FILE OID[@TID]",
		Short: "Show an object",
		Long: `Show an object as it is, or as it was right after a transaction or at a moment:
its class and its state. Nothing of the database is executed: instances of
classes are described, references are shown as <reference ...>.` + exitStatus,
		Example: "  neofs cat var/Data.fs 0\n  neofs cat var/Data.fs 1f@2026-01-31T12:00\n  neofs cat --history var/Data.fs 1f",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCat(cmd.Context(), env, &o, args[0], args[1])
		},
	}
	cli.Flag(cmd.Flags(), &o.raw, "raw", "", "the data as they are stored: two pickles")
	cli.Flag(cmd.Flags(), &o.history, "history", "", "list the revisions of the object, the newest first")
	o.reader.addFlag(cmd)
	o.quiet.addFlag(cmd)
	return cmd
}

func runCat(ctx context.Context, env *cli.Env, o *catOptions, path, object string) error {
	oid, at, err := parseObject(object)
	if err != nil {
		return err
	}
	r, err := openIndexed(ctx, env, &o.reader, &o.quiet, path)
	if err != nil {
		return err
	}
	defer r.Close()
	if o.history {
		return printHistory(ctx, env, r, oid, at)
	}
	rev, err := loadAfter(ctx, r, oid, at)
	if err != nil {
		return err
	}
	if o.raw {
		_, err := env.Stdout.Write(rev.Data)
		return err
	}
	text, err := pickle.Show(rev.Data)
	if err != nil {
		return fmt.Errorf("object %v in transaction %v: %w (--raw shows its data)", oid, rev.Serial, err)
	}
	_, err = fmt.Fprintf(env.Stdout, "object %v of transaction %v, %s\n%s\n", oid, rev.Serial, when(rev.Serial), text)
	return err
}

// loadAfter loads an object as it was right after a transaction.
func loadAfter(ctx context.Context, r *fsformat.Reader, oid tid.OID, at tid.TID) (txn.Revision, error) {
	if at < tid.Max {
		at++
	}
	return r.LoadBefore(ctx, oid, at)
}

func printHistory(ctx context.Context, env *cli.Env, r *fsformat.Reader, oid tid.OID, at tid.TID) error {
	for rec, err := range r.Chain(ctx, oid) {
		if err != nil {
			return err
		}
		if rec.TID > at {
			continue
		}
		from, err := r.DataTID(rec)
		if err != nil {
			return err
		}
		fmt.Fprintf(env.Stdout, "%v %s ", rec.TID, when(rec.TID))
		switch {
		case rec.DataLen > 0:
			fmt.Fprintf(env.Stdout, "%d bytes\n", rec.DataLen)
		case from != 0:
			fmt.Fprintf(env.Stdout, "from %v\n", from)
		default:
			fmt.Fprintln(env.Stdout, "gone")
		}
	}
	return nil
}
