package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/pickle"
)

type logOptions struct {
	reader
	count   int
	forward bool
	records bool
}

func newLogCommand(env *cli.Env) *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use:   "log FILE [RANGE]",
		Short: "List transactions, the newest first",
		Long: `List transactions, the newest first: when, by whom, what for, how large. With
--records also what each one stored: data with their class and size, "from" the
transaction whose data an undo brought back, or "gone" for an object that was
deleted or whose creation was undone.` + exitStatus,
		Example: "  neofs log -n 3 var/Data.fs\n  neofs log --records var/Data.fs 2026-01-31..",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLog(cmd.Context(), env, &o, args)
		},
	}
	cmd.Flags().IntVarP(&o.count, "count", "n", 0, "how many at most (default: all)")
	cli.Flag(cmd.Flags(), &o.forward, "forward", "F", "the oldest first")
	cli.Flag(cmd.Flags(), &o.records, "records", "r", "list their records too")
	o.reader.addFlag(cmd)
	return cmd
}

func runLog(ctx context.Context, env *cli.Env, o *logOptions, args []string) error {
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
	if err := checkRange(ctx, r, args[1:]); err != nil {
		return err
	}
	all := r.ScanBackwards(ctx)
	if o.forward {
		all = r.Scan(ctx, after, upTo)
	}
	l := logger{env: env}
	n := 0
	for t, err := range all {
		if err != nil {
			return err
		}
		if t.TID <= after {
			break
		}
		if t.TID > upTo {
			continue
		}
		if err := l.transaction(t, o.records); err != nil {
			return err
		}
		if n++; n == o.count {
			break
		}
	}
	return nil
}

type logger struct {
	env     *cli.Env
	scanner pickle.Scanner
}

func (l *logger) transaction(t *fsformat.Transaction, records bool) error {
	status := ""
	if t.Status == 'p' {
		status = " packed"
	}
	_, err := fmt.Fprintf(l.env.Stdout, "%v %s user %q description %q size %d offset %d%s\n",
		t.TID, when(t.TID), t.User, t.Description, t.Head.Len, t.Head.Pos, status)
	if err != nil || !records {
		return err
	}
	for rec, err := range t.Records {
		if err != nil {
			return err
		}
		fmt.Fprintf(l.env.Stdout, "  %v ", rec.OID)
		switch {
		case rec.Data == nil:
			fmt.Fprint(l.env.Stdout, "gone")
		case rec.DataTID != 0:
			fmt.Fprintf(l.env.Stdout, "%s from %v", className(&l.scanner, rec.Data), rec.DataTID)
		default:
			fmt.Fprintf(l.env.Stdout, "%s %d bytes", className(&l.scanner, rec.Data), len(rec.Data))
		}
		if _, err := fmt.Fprintln(l.env.Stdout); err != nil {
			return err
		}
	}
	return nil
}

// className returns the class of a record, or why it is not known, in brackets.
func className(s *pickle.Scanner, data []byte) string {
	plain, _, err := pickle.Unwrap(data)
	if err != nil {
		return "(damaged wrapping)"
	}
	module, name, err := s.Class(plain)
	switch {
	case err != nil:
		return "(no class)"
	case len(name) == 0:
		return "(persistent class)"
	}
	return fmt.Sprintf("%s.%s", module, name)
}
