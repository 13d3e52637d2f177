package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/fsformat"
)

type indexOptions struct {
	reader
	quiet
	strict
	write bool
}

func newIndexCommand(env *cli.Env) *cobra.Command {
	var o indexOptions
	cmd := &cobra.Command{
		Use:   "index FILE",
		Short: "Verify or write the index of a file",
		Long: `Read the whole file and compare its index (FILE.index) with what is there; or
write a new index with --write, so that FileStorage opens the file at once. It
is the index that ZODB itself would write.

Of each record whose pointer to the previous one of its object is wrong, a warning is
printed, since a file that is opened with an index is not read any more; with
--strict no index is written, and the exit status is 1.

To write, no other program may have the file open for writing.` + exitStatus,
		Example: "  neofs index var/Data.fs\n  neofs index --write var/Data.fs",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runIndex(cmd.Context(), env, &o, args[0])
		},
	}
	cli.Flag(cmd.Flags(), &o.write, "write", "w", "write a new index")
	o.reader.addFlag(cmd)
	o.quiet.addFlag(cmd)
	o.strict.addFlag(cmd)
	return cmd
}

func runIndex(ctx context.Context, env *cli.Env, o *indexOptions, path string) error {
	r, err := o.open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	if o.write {
		unlock, err := fsformat.Lock(path)
		if err != nil {
			return err
		}
		defer unlock()
	}
	progress, done := o.progress(env, "reading", r)
	wrong := side.Wrong{Out: env.Stderr, File: path}
	x, err := r.BuildCheckedIndex(ctx, progress, wrong.Report)
	done()
	if err != nil {
		return withRenumber(err)
	}
	if o.strict.strict && wrong.N > 0 {
		return wrong.Refused()
	}
	wrong.Done("the index")
	if err := warnTail(ctx, env, r); err != nil {
		return err
	}
	if o.write {
		if err := x.Save(path + ".index"); err != nil {
			return err
		}
		fmt.Fprintf(env.Stdout, "%s.index written: %d objects\n", path, x.Len())
		return nil
	}
	stored, err := r.ReadIndex(path + ".index")
	if err != nil {
		return fmt.Errorf("%w (--write makes a new one)", err)
	}
	return compareIndexes(env, x, stored)
}

// compareIndexes compares the index of a file with a stored one, which may cover
// less.
func compareIndexes(env *cli.Env, built, stored *fsformat.Index) error {
	var wrong int64
	for oid, pos := range stored.All() {
		if got, ok := built.Get(oid); !ok || got != pos && (got < stored.End || pos >= stored.End) {
			fmt.Fprintf(env.Stdout, "object %v is at %d, in the index at %d\n", oid, got, pos)
			wrong++
		}
	}
	for oid, pos := range built.All() {
		if _, ok := stored.Get(oid); !ok && pos < stored.End {
			fmt.Fprintf(env.Stdout, "object %v, at %d, is not in the index\n", oid, pos)
			wrong++
		}
	}
	if wrong == 0 {
		fmt.Fprintf(env.Stdout, "the index is right: %d objects", stored.Len())
		if behind := built.End - stored.End; behind > 0 {
			fmt.Fprintf(env.Stdout, ", %d bytes behind", behind)
		}
		fmt.Fprintln(env.Stdout)
	}
	return found(wrong)
}
