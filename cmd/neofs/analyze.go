package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/pickle"
)

type analyzeOptions struct {
	reader
	quiet
	csv bool
}

func newAnalyzeCommand(env *cli.Env) *cobra.Command {
	var o analyzeOptions
	cmd := &cobra.Command{
		Use:   "analyze FILE [RANGE]",
		Short: "Count and add up records by class",
		Long: `Say which classes fill a file: for each one how many records there are and how
many bytes of data, in all, of current states of objects, and of past ones,
which a pack would remove. The largest comes first. An undo is a record without
data of its own: if it is the current state of an object, the data that it
shares, of an earlier record, count as current.` + exitStatus,
		Example: "  neofs analyze var/Data.fs | head",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runAnalyze(cmd.Context(), env, &o, args)
		},
	}
	cli.Flag(cmd.Flags(), &o.csv, "csv", "", "comma-separated values")
	o.reader.addFlag(cmd)
	o.quiet.addFlag(cmd)
	return cmd
}

// usage is what a class takes.
type usage struct {
	class                   string
	records, bytes          int64
	currentRecords, current int64
}

func runAnalyze(ctx context.Context, env *cli.Env, o *analyzeOptions, args []string) error {
	after, upTo, err := parseRange(args[1:])
	if err != nil {
		return err
	}
	r, err := openIndexed(ctx, env, &o.reader, &o.quiet, args[0])
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
	progress, done := o.progress(env, "analyzing", r)
	classes := make(map[string]*usage)
	total := usage{class: "total"}
	transactions := 0
	start := int64(0) // of the range
	var s pickle.Scanner
	for t, err := range r.Scan(ctx, after, upTo) {
		if err != nil {
			return err
		}
		transactions++
		if start == 0 {
			start = t.Head.Pos
		}
		var places []fsformat.RecordHeader
		for p, err := range t.Places {
			if err != nil {
				return err
			}
			places = append(places, *p)
		}
		i := 0
		for rec, err := range t.Records {
			if err != nil {
				return err
			}
			p := places[i]
			i++
			class := "(gone)"
			if rec.Data != nil {
				class = className(&s, rec.Data)
			}
			u := classes[class]
			if u == nil {
				u = &usage{class: class}
				classes[class] = u
			}
			pos, _ := r.Index().Get(rec.OID)
			current := int64(0)
			if pos == p.Pos {
				data, err := r.DataRecord(&p)
				if err != nil {
					return err
				}
				if data.Pos >= start { // otherwise they are not in the range
					current = data.DataLen
				}
			}
			for _, u := range []*usage{u, &total} {
				u.records++
				u.bytes += p.DataLen
				if pos == p.Pos {
					u.currentRecords++
					u.current += current
				}
			}
		}
		progress(t.Head.End())
	}
	done()
	all := make([]*usage, 0, len(classes)+1)
	for _, u := range classes {
		all = append(all, u)
	}
	slices.SortFunc(all, func(a, b *usage) int {
		return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(a.class, b.class))
	})
	return printUsage(env, o, append(all, &total), transactions)
}

func printUsage(env *cli.Env, o *analyzeOptions, all []*usage, transactions int) error {
	if o.csv {
		fmt.Fprintln(env.Stdout, "class,records,bytes,current records,current bytes,past records,past bytes")
	} else {
		fmt.Fprintf(env.Stdout, "%d transactions\n%10s %14s %6s %10s %14s %10s %14s  %s\n",
			transactions, "records", "bytes", "%", "current", "bytes", "past", "bytes", "class")
	}
	sum := all[len(all)-1].bytes
	for _, u := range all {
		pastRecords, past := u.records-u.currentRecords, u.bytes-u.current
		if o.csv {
			fmt.Fprintf(env.Stdout, "%s,%d,%d,%d,%d,%d,%d\n", u.class, u.records, u.bytes, u.currentRecords, u.current, pastRecords, past)
			continue
		}
		_, err := fmt.Fprintf(env.Stdout, "%10d %14d %6.1f %10d %14d %10d %14d  %s\n",
			u.records, u.bytes, 100*float64(u.bytes)/float64(max(sum, 1)), u.currentRecords, u.current, pastRecords, past, u.class)
		if err != nil {
			return err
		}
	}
	return nil
}
