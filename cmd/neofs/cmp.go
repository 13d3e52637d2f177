package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

type cmpOptions struct {
	reader
	content bool
	all     bool
}

func newCmpCommand(env *cli.Env) *cobra.Command {
	var o cmpOptions
	cmd := &cobra.Command{
		Use:   "cmp FILE1 FILE2 [RANGE]",
		Short: "Compare the histories in two files",
		Long: `Compare two files transaction by transaction: ids, status, user, description,
extension, and the data of every record, and which earlier transaction an undo
took them from. Not compared: the order of the records in a transaction, and
positions. The first difference is printed, or all of them with --all.` + exitStatus,
		Example: "  neofs cmp var/Data.fs backup/Data.fs && echo same",
		Args:    cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCmp(cmd.Context(), env, &o, args)
		},
	}
	cli.Flag(cmd.Flags(), &o.content, "content", "", "ignore what a copy through a cluster may lose: status, undos as such, all but the last record of an object in a transaction")
	cli.Flag(cmd.Flags(), &o.all, "all", "a", "print all transactions that differ")
	o.reader.addFlag(cmd)
	return cmd
}

func runCmp(ctx context.Context, env *cli.Env, o *cmpOptions, args []string) error {
	after, upTo, err := parseRange(args[2:])
	if err != nil {
		return err
	}
	var files [2]*fsformat.Reader
	for i := range files {
		if files[i], err = o.open(args[i]); err != nil {
			return err
		}
		defer files[i].Close()
		if err := warnTail(ctx, env, files[i]); err != nil {
			return err
		}
		if err := checkRange(ctx, files[i], args[2:]); err != nil {
			return err
		}
	}
	opt := exporter.CompareOptions{AnyOrder: true, EachRecord: !o.content, AnyStatus: o.content, AnyLink: o.content}
	var differ, both int64
	var last tid.TID // that differs
	for d, err := range exporter.Compare(ctx, files[0], files[1], after, upTo, opt, func(_ tid.TID, n, _, _ int64) { both = n }) {
		if err != nil {
			if inner := errors.Unwrap(err); inner != nil {
				err = inner // names its file
			}
			return err
		}
		if d.TID == last {
			continue // one for each transaction
		}
		differ, last = differ+1, d.TID
		fmt.Fprintf(env.Stdout, "transaction %v: %s\n", d.TID, difference(&d))
		if !o.all {
			break
		}
	}
	if differ == 0 {
		fmt.Fprintf(env.Stdout, "equal: %d transactions\n", both)
	}
	return found(differ)
}

// difference describes a difference between two files.
func difference(d *exporter.Difference) string {
	what := d.What
	switch what {
	case exporter.MissingInFirst:
		what = "only in the second"
	case exporter.MissingInSecond:
		what = "only in the first"
	}
	a, b := d.First, d.Second
	switch {
	case !d.Record:
		return what
	case a == nil || b == nil:
		return fmt.Sprintf("object %v is %s", d.OID, what)
	case a.Absent != b.Absent:
		return fmt.Sprintf("object %v is absent in one of them only", d.OID)
	case a.DataTID != b.DataTID:
		return fmt.Sprintf("object %v has the data of transaction %v, not %v", d.OID, b.DataTID, a.DataTID)
	}
	return fmt.Sprintf("object %v: its %d bytes of data differ from the %d of the first", d.OID, b.Size, a.Size)
}
