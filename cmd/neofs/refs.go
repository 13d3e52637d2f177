package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/pickle"
)

type refsOptions struct {
	reader
	quiet
	to bool
}

func newRefsCommand(env *cli.Env) *cobra.Command {
	var o refsOptions
	cmd := &cobra.Command{
		Use:   "refs FILE OID[@TID]",
		Short: "List what an object refers to, or what refers to it",
		Long: `List the references of an object: the kind (strong ones keep an object alive),
the object, and its class. With --to, list all current objects that refer to
it, which takes reading the file.` + exitStatus,
		Example: "  neofs refs var/Data.fs 0\n  neofs refs --to var/Data.fs 1f",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRefs(cmd.Context(), env, &o, args[0], args[1])
		},
	}
	cli.Flag(cmd.Flags(), &o.to, "to", "", "list the objects that refer to it")
	o.reader.addFlag(cmd)
	o.quiet.addFlag(cmd)
	return cmd
}

func runRefs(ctx context.Context, env *cli.Env, o *refsOptions, path, object string) error {
	oid, at, err := parseObject(object)
	if err != nil {
		return err
	}
	if o.to && at != tid.Max {
		return cli.Usagef("--to is about the present: %q has a TID", object)
	}
	r, err := openIndexed(ctx, env, &o.reader, &o.quiet, path)
	if err != nil {
		return err
	}
	defer r.Close()
	var s pickle.Scanner
	if o.to {
		return printReferrers(ctx, env, r, &s, oid)
	}
	rev, err := loadAfter(ctx, r, oid, at)
	if err != nil {
		return err
	}
	refs, err := references(&s, rev.Data)
	if err != nil {
		return fmt.Errorf("references of object %v: %w", oid, err)
	}
	for _, ref := range append([]pickle.Ref(nil), refs...) {
		database := string(ref.Database)
		fmt.Fprintf(env.Stdout, "%-11s %v ", ref.Kind, tid.OID(ref.OID))
		if database != "" {
			fmt.Fprintf(env.Stdout, "in database %q\n", database)
			continue
		}
		rev, err := loadAfter(ctx, r, tid.OID(ref.OID), at)
		switch {
		case absent(err):
			fmt.Fprintln(env.Stdout, "not there")
		case err != nil:
			return err
		default:
			var other pickle.Scanner
			fmt.Fprintln(env.Stdout, className(&other, rev.Data))
		}
	}
	return nil
}

func absent(err error) bool {
	return errors.Is(err, txn.ErrNoSuchObject) || errors.Is(err, txn.ErrNotFound)
}

func references(s *pickle.Scanner, data []byte) ([]pickle.Ref, error) {
	plain, _, err := pickle.Unwrap(data)
	if err != nil {
		return nil, err
	}
	return s.References(plain)
}

func printReferrers(ctx context.Context, env *cli.Env, r *fsformat.Reader, s *pickle.Scanner, oid tid.OID) error {
	var unknown int64
	for from := range r.Index().All() {
		if err := ctx.Err(); err != nil {
			return err
		}
		rev, err := r.LoadBefore(ctx, from, tid.Max)
		if absent(err) {
			continue
		}
		if err != nil {
			return err
		}
		refs, err := references(s, rev.Data)
		if err != nil {
			fmt.Fprintf(env.Stderr, "warning: references of object %v: %v\n", from, err)
			unknown++
			continue
		}
		for _, ref := range refs {
			if tid.OID(ref.OID) == oid && len(ref.Database) == 0 {
				fmt.Fprintf(env.Stdout, "%-11s %v %s\n", ref.Kind, from, className(s, rev.Data))
				break
			}
		}
	}
	return found(unknown)
}
