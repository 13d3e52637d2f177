package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/fsformat"
)

type replaceOptions struct {
	reader
	quiet
	data             string
	previous, delete bool
}

func newReplaceCommand(env *cli.Env) *cobra.Command {
	var o replaceOptions
	cmd := &cobra.Command{
		Use:   "replace FILE NEW OID[@TID]",
		Short: "Copy a file with one revision of an object replaced or removed",
		Long: `Copy a file into a new one in which one revision of an object is another one: for
an object whose data are damaged, so that nothing can load it. FILE is not
changed; NEW must not exist. Keep FILE until the application runs with NEW.

OID alone is the current revision; OID@TID is the one that the transaction made, or
the newest one before it. It becomes, as exactly one option says:

  --previous   what the object was before, as if the change had been undone
  --data PATH  the bytes of a file (- for standard input): two pickles, as
               "neofs cat --raw" shows them, which Python must be able to load
  --delete     nothing: the object does not exist any more from there on. Objects
               that refer to it will fail to load it: see "neofs refs --to"

Records that share the data of the revision, which undos leave, change with it. Each
record that changes is printed. All transactions keep their ids, all else stays.
Restart ZEO clients with empty caches, and begin incremental copies of FILE anew: they
do not see a change of the past. A blob file is not touched.` + exitStatus,
		Example: `  neofs check Data.fs
  neofs cat --history Data.fs 1f
  neofs replace --previous Data.fs new.fs 1f && neofs check new.fs`,
		Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runReplace(cmd.Context(), env, &o, args[0], args[1], args[2])
		},
	}
	cli.Flag(cmd.Flags(), &o.previous, "previous", "", "the object becomes what it was before")
	cli.Path(cmd.Flags(), &o.data, "data", "", "", "the object gets the data of this file")
	cli.Flag(cmd.Flags(), &o.delete, "delete", "", "the object is deleted")
	o.reader.addFlag(cmd)
	o.quiet.addFlag(cmd)
	return cmd
}

func runReplace(ctx context.Context, env *cli.Env, o *replaceOptions, from, to, object string) error {
	oid, at, err := parseObject(object)
	if err != nil {
		return err
	}
	c := fsformat.Change{OID: oid, TID: at, Previous: o.previous}
	n := 0
	for _, given := range []bool{o.previous, o.data != "", o.delete} {
		if given {
			n++
		}
	}
	if n != 1 {
		return cli.Usagef("exactly one of --previous, --data and --delete is needed")
	}
	if err := side.Distinct(from, to); err != nil {
		return err
	}
	switch o.data {
	case "":
	case "-":
		c.Data, err = io.ReadAll(env.Stdin)
	default:
		c.Data, err = os.ReadFile(o.data)
	}
	if err != nil {
		return fmt.Errorf("reading the new data: %w", err)
	}
	if o.data != "" && len(c.Data) == 0 {
		return fmt.Errorf("%s: the new data are empty", o.data)
	}
	r, err := openIndexed(ctx, env, &o.reader, &o.quiet, from)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := warnTail(ctx, env, r); err != nil {
		return err
	}
	w, err := fsformat.Create(to, fsformat.WriterOptions{Magic: r.Magic()})
	if err != nil {
		return err
	}
	defer w.Abort()
	progress, done := o.progress(env, "copying", r)
	err = fsformat.Replace(ctx, r, w, c, progress, func(p fsformat.Replaced) {
		what := "deleted"
		switch {
		case p.Size > 0 && p.Shares:
			what = fmt.Sprintf("%d bytes, shared with that", p.Size)
		case p.Size > 0:
			what = fmt.Sprintf("%d bytes", p.Size)
		}
		was := fmt.Sprintf("%d bytes", p.DataLen)
		if p.DataLen == 0 {
			was = "a record without data of its own"
		}
		fmt.Fprintf(env.Stdout, "replaced: offset %d: transaction %v: object %v: %s, now %s\n", p.Pos, p.TID, p.OID, was, what)
	}, func(e *fsformat.CorruptError) { fmt.Fprintf(env.Stderr, "warning: %v\n", e) })
	done()
	if err != nil {
		return err
	}
	return w.Close()
}
