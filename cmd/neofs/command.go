package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/moment"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/fsformat"
)

func newCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "neofs",
		Short: "Look into Data.fs files, check, dump, compare and salvage them",
		Long: `neofs works on Data.fs, the file of ZODB's FileStorage, without Python.

A Data.fs is a sequence of transactions. A transaction has an id (tid), which is
the time of its commit, says who did what, and has records: the new states of
objects. Nothing is ever overwritten: the past of every object (oid) stays in
the file until the database is packed.

Only index --write, restore, salvage and replace write, and never to their source. The
others may look at a file that is in use; what is being committed is not seen.

A TID is 16 hexadecimal digits, or a moment: 2026-01-31, 2026-01-31T12:30,
2026-01-31T12:30:00Z (UTC; a day is its first moment). A RANGE is FROM..TO, both
included, and both may be left out. An OID is up to 16 hexadecimal digits; 0 is the root.
` + strings.TrimPrefix(exitStatus, "\n"),
		PersistentPreRunE: func(_ *cobra.Command, args []string) error { return side.Files(args...) },
	}
	cmd.AddCommand(
		newInfoCommand(env), newCheckCommand(env), newLogCommand(env), newCatCommand(env), newRefsCommand(env),
		newAnalyzeCommand(env), newCmpCommand(env), newDumpCommand(env), newRestoreCommand(env), newIndexCommand(env), newSalvageCommand(env), newReplaceCommand(env),
	)
	return cmd
}

// exitStatus is the end of all help texts.
const exitStatus = "\n\nExit status: 0 done; 1 failed, or a difference or an error was found; 2 wrong usage."

// found is the end of a command that did its work and found something. What it
// found has been said.
func found(n int64) error {
	if n == 0 {
		return nil
	}
	return &cli.Exit{Code: 1}
}

// quiet is the option of commands that show progress.
type quiet struct{ quiet bool }

func (o *quiet) addFlag(cmd *cobra.Command) {
	cli.Flag(cmd.Flags(), &o.quiet, "quiet", "q", "show no progress")
}

// strict is the option of commands whose output does not show the pointers to
// previous records.
type strict struct{ strict bool }

func (o *strict) addFlag(cmd *cobra.Command) {
	cli.Flag(cmd.Flags(), &o.strict, "strict", "", "refuse a file with a wrong pointer to the previous record of an object; default: warn")
}

// progress shows how far the reading of a file is.
func (o *quiet) progress(env *cli.Env, what string, r *fsformat.Reader) (fsformat.Progress, func()) {
	// Small files are read before anybody wonders.
	p := cli.NewProgress(env, cli.ProgressConfig{What: what, Total: r.Size(), Quiet: o.quiet || r.Size() < 32<<20})
	return func(pos int64) { p.Set(0, pos) }, func() { p.Set(0, r.Size()); p.Done() }
}

// reader is the option group of commands that read a Data.fs.
type reader struct{ fsformat.Options }

func (o *reader) addFlag(cmd *cobra.Command) {
	cli.Flag(cmd.Flags(), &o.AnyStatus, "any-status", "", "take transactions with an invalid status for committed ones, as Python does")
}

func (o *reader) open(path string) (*fsformat.Reader, error) { return fsformat.Open(path, o.Options) }

// openIndexed opens a file of which objects will be loaded.
func openIndexed(ctx context.Context, env *cli.Env, o *reader, q *quiet, path string) (*fsformat.Reader, error) {
	r, err := o.open(path)
	if err != nil {
		return nil, err
	}
	progress, done := q.progress(env, "reading "+path, r)
	unusable, err := r.UseIndex(ctx, "", progress)
	done()
	if err != nil {
		r.Close()
		return nil, withRenumber(err)
	}
	if unusable != nil && !os.IsNotExist(unusable) {
		fmt.Fprintf(env.Stderr, "warning: %v; the file was read instead\n", unusable)
	}
	return r, nil
}

// warnTail tells of an incomplete end, which is left out.
func warnTail(ctx context.Context, env *cli.Env, r *fsformat.Reader) error {
	t, err := r.Tail(ctx)
	if err == nil && t.Ignored > 0 {
		fmt.Fprintf(env.Stderr, "warning: %s: offset %d: %s: %d bytes ignored\n", r.Name(), t.End, t.Reason, t.Ignored)
	}
	return err
}

// parseTID reads a tid or a moment.
func parseTID(s string) (tid.TID, error) {
	t, err := moment.ParseTID(s, time.Now())
	if err != nil {
		return 0, cli.Usagef("%w", err)
	}
	return t, nil
}

// parseRange reads FROM..TO and returns it as the reader wants it: (after, upTo].
func parseRange(args []string) (after, upTo tid.TID, err error) {
	upTo = tid.Max
	if len(args) == 0 {
		return 0, upTo, nil
	}
	from, to, ok := strings.Cut(args[0], "..")
	if !ok {
		return 0, 0, cli.Usagef("%q is no range: FROM..TO", args[0])
	}
	if from != "" {
		if after, err = parseTID(from); err != nil {
			return 0, 0, err
		}
		if after > 0 {
			after--
		}
	}
	if to != "" {
		if upTo, err = parseTID(to); err != nil {
			return 0, 0, err
		}
	}
	return after, upTo, nil
}

// checkRange verifies that what belongs to a range of ids, if one is given, is in one
// place of the file: otherwise a part of it would be left out.
func checkRange(ctx context.Context, r *fsformat.Reader, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return withRenumber(r.CheckOrder(ctx, tid.Zero))
}

// parseObject reads OID or OID@TID. at is tid.Max without TID.
func parseObject(s string) (oid tid.OID, at tid.TID, err error) {
	o, t, ok := strings.Cut(s, "@")
	o = strings.TrimPrefix(o, "0x")
	if len(o) < 16 {
		o = strings.Repeat("0", 16-len(o)) + o
	}
	if oid, err = tid.ParseOID(o); err != nil {
		return 0, 0, cli.Usagef("%q is no object id: up to 16 hexadecimal digits", s)
	}
	at = tid.Max
	if ok {
		at, err = parseTID(t)
	}
	return oid, at, err
}

// when is the time of a transaction as people read it.
func when(t tid.TID) string { return t.Time().Format("2006-01-02 15:04:05.000000") }
