package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

func newInfoCommand(env *cli.Env) *cobra.Command {
	var o reader
	cmd := &cobra.Command{
		Use:   "info FILE",
		Short: "Say what a file is",
		Long: `Say what a file is: its size, its transactions with the first, the last and the
greatest id, whether its end is complete, and whether its index (FILE.index) can
be used. Only the heads of the transactions are read; "check" reads everything.

The last id is the greatest one unless the clock of the server was set back, or
was wrong for a while. A copy of such a file needs "neoexport --renumber".` + exitStatus,
		Example: "  neofs info var/Data.fs",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runInfo(cmd.Context(), env, &o, args[0])
		},
	}
	o.addFlag(cmd)
	return cmd
}

func runInfo(ctx context.Context, env *cli.Env, o *reader, path string) error {
	r, err := o.open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	tail, err := r.Tail(ctx)
	if err != nil {
		return err
	}
	line := func(name, format string, args ...any) {
		fmt.Fprintf(env.Stdout, "%-8s "+format+"\n", append([]any{name}, args...)...)
	}
	python := "Python 3"
	if r.Magic() == fsformat.FS21 {
		python = "Python 2"
	}
	line("name", "%s", path)
	line("magic", "%s (%s)", r.Magic(), python)
	line("size", "%d", r.Size())
	order, damage := r.Order(ctx)
	if damage != nil && !errors.As(damage, new(*fsformat.CorruptError)) {
		return damage
	}
	if order.First != 0 {
		line("first", "%v  %s", order.First, when(order.First))
	}
	if tail.LastTID == 0 {
		line("last", "none: the database is empty")
	} else {
		line("last", "%v  %s", tail.LastTID, when(tail.LastTID))
	}
	switch {
	case damage != nil:
		line("greatest", "not known: %v", damage)
	case order.Greatest != 0:
		line("greatest", "%v  %s", order.Greatest, when(order.Greatest))
	}
	if order.Wrong > 0 {
		line("order", "%d of %d ids are not above the one before; the first at offset %d, %v: %s (neoexport --renumber copies the file)",
			order.Wrong, order.Transactions, order.FirstWrong.Offset, order.FirstWrong.TID, order.FirstWrong.Problem)
	}
	if tail.Ignored > 0 {
		line("end", "at %d: %s; the %d bytes that follow are ignored", tail.End, tail.Reason, tail.Ignored)
	} else {
		line("end", "complete")
	}
	x, err := r.ReadIndex(path + ".index")
	var unusable *fsformat.IndexError
	switch {
	case err == nil && x.End == tail.End:
		line("index", "%d objects", x.Len())
	case err == nil:
		line("index", "%d objects, %d bytes behind", x.Len(), tail.End-x.End)
	case errors.Is(err, fs.ErrNotExist):
		line("index", "none: the file is read whole when it is opened")
	case errors.As(err, &unusable):
		line("index", "unusable: %s", unusable.Problem)
	default:
		return err
	}
	return nil
}
