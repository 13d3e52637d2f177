// Command neoexport copies a cluster, or another Data.fs, into a Data.fs.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/moment"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/side"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

func main() {
	cli.Calm()
	cli.Main(newCommand)
}

type options struct {
	side.Options
	at         string
	packedUpTo string
	magic      string
	verify     bool
	restart    bool
	full       bool
}

func newCommand(env *cli.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "neoexport [options] SOURCE DESTINATION",
		Short: "Copy a cluster, or another Data.fs, into a Data.fs",
		Long: `Copy a cluster, or another Data.fs, into a Data.fs that FileStorage accepts.

SOURCE is an existing file, or a cluster.
` + side.ClusterHelp + `

A DESTINATION that exists is brought up to date: what it lacks is appended,
provided that it ends with what SOURCE has at the same place. A new one is called
DESTINATION.part until it is complete; if the command is interrupted, or the disk
is full, running it again goes on from there.

After a pack, SOURCE lacks what DESTINATION has: DESTINATION is then refused and
stays as it is. With --full a new file is written beside it, as
DESTINATION.part, which replaces DESTINATION when it is complete.
` + side.Help + `

A TID is written as 16 hexadecimal digits or as tid:<integer>; a moment as a UNIX
timestamp in seconds.` + cli.ExitStatus + `
With --verify, a difference is a failure.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return run(cmd.Context(), env, &o, args[0], args[1])
		},
	}
	fs := cmd.Flags()
	o.AddFlags(fs)
	cli.Text(fs, &o.at, "at", "", "", "export the database as of this transaction or moment")
	cli.Flag(fs, &o.verify, "verify", "", "compare both sides afterwards, record by record")
	cli.Flag(fs, &o.restart, "restart", "", "discard what an interrupted export left")
	cli.Flag(fs, &o.full, "full", "", "write everything anew, and replace DESTINATION when that is complete")
	cli.Text(fs, &o.packedUpTo, "packed-up-to", "", "", "give the history up to this transaction or moment the look of one packed by FileStorage")
	cli.Text(fs, &o.magic, "magic", "", "", "magic of a new file, FS30 (default, or that of the source) or FS21")
	return cmd
}

func run(ctx context.Context, env *cli.Env, o *options, source, destination string) (err error) {
	if err := side.CheckMagic(o.magic); err != nil {
		return err
	}
	opt := exporter.FileOptions{Restart: o.restart, Full: o.full, Magic: fsformat.Magic(o.magic)}
	if opt.UpTo, err = parseTID("--at", o.at); err != nil {
		return err
	}
	if o.at != "" && opt.UpTo == tid.Zero {
		return cli.Usagef("--at %s: nothing is that old", o.at)
	}
	if opt.PackedUpTo, err = parseTID("--packed-up-to", o.packedUpTo); err != nil {
		return err
	}
	if err := side.Files(source, destination); err != nil {
		return err
	}
	if side.IsURI(destination) {
		return cli.Usagef("%s is a cluster: neomigrate copies into one", destination)
	}
	if err := side.Distinct(source, destination); err != nil {
		return err
	}
	log, err := o.OpenLog(env)
	if err != nil {
		return err
	}
	defer log.End(&err)
	src, err := o.OpenSource(ctx, env, source, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	var size int64
	if src.File != nil {
		size = src.File.Size()
		if opt.Magic == "" {
			opt.Magic = src.File.Magic()
		}
	}
	existed := side.IsFile(destination) && !o.full
	last, err := export(ctx, env, o, src, destination, opt, size)
	if errors.As(err, new(*exporter.NotPrefixError)) {
		if existed {
			return fmt.Errorf("%w; %s stays as it is: keep it, or replace it with --full", err, destination)
		}
		return fmt.Errorf("%w; --restart discards what the interrupted export has left", err)
	}
	if err != nil || !o.verify {
		return err
	}
	return verify(ctx, env, o, src, destination, last, opt, existed, size)
}

func parseTID(option, s string) (tid.TID, error) {
	if s == "" {
		return tid.Zero, nil
	}
	t, err := moment.ParseTID(s, time.Now())
	if err != nil {
		return tid.Zero, cli.Usagef("%s: %w", option, err)
	}
	return t, nil
}

func export(ctx context.Context, env *cli.Env, o *options, src *side.Source, destination string, opt exporter.FileOptions, size int64) (tid.TID, error) {
	bar := cli.NewProgress(env, cli.ProgressConfig{What: "exporting", Items: "transactions", Bytes: true, Total: size, Quiet: o.Quiet})
	defer bar.Done()
	var tellErr error
	opt.Opened = func(after, _ tid.TID) {
		if after > tid.Zero && !o.Quiet {
			fmt.Fprintf(env.Stdout, "%s has everything up to transaction %v already\n", destination, after)
		}
		if src.File != nil {
			tellErr = src.File.TellRenumbered(ctx, after)
			if total, err := side.Remaining(ctx, src.File.Reader, after); err == nil { // else the copy fails too
				bar.SetTotal(total)
			}
		}
	}
	opt.Progress = func(_ tid.TID, transactions, _, bytes int64) { bar.Set(transactions, bytes) }
	last, err := exporter.ToFile(ctx, src, destination, opt)
	return last, errors.Join(err, tellErr)
}

// maxShown is how many differences are printed.
const maxShown = 20

// verify compares the file with the source it was made from.
func verify(ctx context.Context, env *cli.Env, o *options, src *side.Source, destination string, last tid.TID, opt exporter.FileOptions, existed bool, size int64) (err error) {
	r, err := fsformat.Open(destination, fsformat.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	bar := cli.NewProgress(env, cli.ProgressConfig{What: "verifying", Items: "transactions", Bytes: true, Total: size, Quiet: o.Quiet})
	defer bar.Done()
	// A link to data that was packed becomes data in a file. Statuses are those
	// wanted by an option, or may have changed since an earlier export. What was there
	// before may have come through a cluster, or the source has.
	how := exporter.CompareOptions{FullData: true, AnyStatus: opt.PackedUpTo != tid.Zero || src.File == nil, AnyOrder: existed}
	differences := 0
	for d, err := range exporter.Compare(ctx, src, r, tid.Zero, last, how, func(_ tid.TID, transactions, _, bytes int64) { bar.Set(transactions, bytes) }) {
		if err != nil {
			return err
		}
		if differences++; differences <= maxShown {
			fmt.Fprintln(env.Stderr, d)
		}
	}
	if differences > 0 {
		return fmt.Errorf("%s has %d differences from its source", destination, differences)
	}
	return nil
}
