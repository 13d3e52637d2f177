package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/zdump"
)

type restoreOptions struct {
	input  string
	magic  string
	append bool
}

func newRestoreCommand(env *cli.Env) *cobra.Command {
	var o restoreOptions
	cmd := &cobra.Command{
		Use:   "restore FILE < DUMP",
		Short: "Make a Data.fs of a dump",
		Long: `Make a Data.fs of what "dump", or zodbtools' "zodb dump", has written, and print
the tid of each transaction. Digests are verified. The file appears under its
name when it is complete; --append adds to one that exists, one transaction
after the other.` + exitStatus,
		Example: "  neofs dump old.fs | neofs restore new.fs",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRestore(cmd.Context(), env, &o, args[0])
		},
	}
	cli.Path(cmd.Flags(), &o.input, "input", "i", "", "read the dump from a file (default, or -: standard input)")
	cli.Text(cmd.Flags(), &o.magic, "magic", "", string(fsformat.FS30), "FS30 for Python 3, FS21 for Python 2")
	cli.Flag(cmd.Flags(), &o.append, "append", "a", "append to a file that exists")
	return cmd
}

func runRestore(ctx context.Context, env *cli.Env, o *restoreOptions, path string) (err error) {
	if err := side.CheckMagic(o.magic); err != nil {
		return err
	}
	in := io.Reader(env.Stdin)
	if o.input != "" && o.input != "-" {
		if err := side.Distinct(o.input, path); err != nil {
			return err
		}
		f, err := os.Open(o.input)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	var w *fsformat.Writer
	if o.append {
		w, err = fsformat.OpenAppend(ctx, path, fsformat.WriterOptions{})
	} else {
		w, err = fsformat.Create(path, fsformat.WriterOptions{Magic: fsformat.Magic(o.magic)})
	}
	if err != nil {
		return err
	}
	defer w.Abort()
	if o.append {
		// The last id of the file is what the first of the dump must be above.
		if err := checkWholeOrder(ctx, path); err != nil {
			return err
		}
	}
	for t, err := range zdump.Read(in, w.LoadSerial) {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.Append(t); err != nil {
			return err
		}
		fmt.Fprintln(env.Stdout, t.TID)
	}
	return w.Close()
}

// checkWholeOrder verifies that the last id of a file is the greatest.
func checkWholeOrder(ctx context.Context, path string) error {
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		return err
	}
	defer r.Close() // only read
	return withRenumber(r.CheckOrder(ctx, tid.Zero))
}
