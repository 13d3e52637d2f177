// Neolog shows the logs of nodes: ours and those of the Python implementation.
//
// What it prints has the shape that the Python implementation's neolog gives it,
// which scripts rely on. It never executes anything that a file contains.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/neozodb/neo/cluster/nodelog"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/spf13/cobra"
)

func main() {
	signal.Ignore(syscall.SIGPIPE) // a write tells that its reader is gone
	cli.Main(newCommand)
}

type options struct {
	all, decompress, color, json, follow, cluster, noNID bool

	date     string
	sleep    float64
	flush    []int
	nodes    []string
	from     string
	until    string
	packets  []string
	level    string
	oid, tid []string
}

func newCommand(env *cli.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "neolog [options] FILE...",
		Short: "Show the logs of nodes",
		Long: `Shows the logs of nodes, which are SQLite databases: those of this implementation and of the Python one, of any age,
in use or not, compressed (.gz .bz2 .xz .zst) or not. Several files are merged by date. A node that writes its log is not held up.

  neolog storage1.log                                 all of it
  neolog -f storage1.log                              and what is added, also after a rotation
  neolog --level WARNING --from 'yesterday 18:00' *.log
                                                      what went wrong since
  neolog -a --tid 0x40d564cb0d194fc *.log             how a transaction was committed, on all nodes
  neolog -a --oid 1f --packet 'Ask*Object' *.log      the loads and stores of an object
  neolog --packet Error --level ERROR master.log      what was refused, and what failed
  neolog --json -a storage1.log | jq .msg             for programs: one object a line

A node writes what it says within a second. The packets that it sends and receives stay in its memory until a warning, neoctl
flush_log or SIGRTMIN. A line is

  2026-11-20 20:08:06.8496 PACKET    S1         #0x0000 RequestIdentification          > M1 (127.0.0.1:31000)
  date in local time       severity  node       message  packet               sent > or received <  peer (address)

and " ! " begins a node that a packet tells of: id, type, address, state, since when (UTC).

Times (--from, --until) are local: 2026-11-20, '2026-11-20 18:00', 2026-11-20T18:00:00Z (Z: UTC), today, 'yesterday 18:00',
seconds since 1970, or a TID; -N is N seconds ago. For --tid and --oid, ids are hexadecimal. Filters of different kinds must all
be met; of one kind, any. --packet shows packets alone and --level records alone; together, both.` + cli.ExitStatus + `
2 also if no packet has the name asked for. A table or file that is damaged, or not there, is told on stderr; the rest is shown.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error { return run(cmd, env, &o, files) },
	}
	fs := cmd.Flags()
	cli.Flag(fs, &o.all, "all", "a", "show the arguments of packets")
	cli.Flag(fs, &o.decompress, "decompress", "A", "like -a, and the data of objects decompressed")
	cli.Flag(fs, &o.color, "color", "c", "color lines by severity, in place of its column")
	fs.StringVarP(&o.date, "date", "d", "%F %T", "format of dates, as for strftime; empty: none")
	cli.Flag(fs, &o.follow, "follow", "f", "go on with what is added to the files")
	fs.IntSliceVarP(&o.flush, "flush", "F", nil, "with -f: after each look, tell the process of this id to write its packets; may be repeated")
	cli.Texts(fs, &o.nodes, "node", "n", "only what is of this node, as the column shows it; - hides the column; may be repeated")
	fs.Float64VarP(&o.sleep, "sleep-interval", "s", 1, "with -f: seconds between two looks")
	cli.Text(fs, &o.from, "from", "", "", "only from this time on")
	cli.Text(fs, &o.until, "until", "", "", "only up to this time")
	cli.Flag(fs, &o.cluster, "cluster", "C", "show the name of the cluster in the column of the node")
	cli.Flag(fs, &o.noNID, "no-nid", "N", "show the names of nodes in their processes rather than their ids")
	cli.Texts(fs, &o.packets, "packet", "", "only packets of this name, such as AskObject or 'Ask*'; may be repeated")
	cli.Text(fs, &o.level, "level", "", "", "only records of at least this severity: DEBUG, INFO, WARNING, ERROR, CRITICAL")
	cli.Texts(fs, &o.oid, "oid", "", "only what tells of this object; may be repeated")
	cli.Texts(fs, &o.tid, "tid", "", "only what tells of this transaction, by its final or temporary id; may be repeated")
	cli.Flag(fs, &o.json, "json", "", "one JSON object a line; dates are UTC")
	cmd.MarkFlagsMutuallyExclusive("cluster", "no-nid")
	cmd.MarkFlagsMutuallyExclusive("json", "color")
	return cmd
}

// outcome is what reading the files came to, beside what was printed.
type outcome struct {
	env    *cli.Env
	failed bool
}

// tell says what is wrong with a file.
func (o *outcome) tell(err error) {
	fmt.Fprintf(o.env.Stderr, "error: %v\n", err)
	o.failed = true
}

func run(cmd *cobra.Command, env *cli.Env, o *options, files []string) error {
	ctx := cmd.Context()
	if o.sleep <= 0 {
		return cli.Usagef("--sleep-interval must be more than 0")
	}
	if len(o.flush) > 0 && !o.follow {
		return cli.Usagef("--flush is of no use without --follow")
	}
	f, err := newFilter(o, time.Now())
	if err != nil {
		return err
	}
	p := &printer{options: o, w: bufio.NewWriterSize(env.Stdout, 64<<10), notes: env.Stderr, noted: map[int]bool{}}
	if slices.Contains(o.nodes, "-") {
		p.hideNode = true
	}
	res := &outcome{env: env}
	logs, closeLogs, err := openLogs(ctx, files, f.from, res)
	if err != nil {
		return err
	}
	defer closeLogs()
	err = show(ctx, logs, f, p, res)
	for err == nil && o.follow && len(logs) > 0 {
		if err = p.w.Flush(); err == nil {
			err = flushProcesses(o.flush)
		}
		if err != nil {
			break
		}
		select {
		case <-ctx.Done():
			return cli.Stopped(ctx, context.Cause(ctx)) // the way to end it
		case <-time.After(time.Duration(o.sleep * float64(time.Second))):
		}
		err = showMore(ctx, logs, f, p, res)
	}
	if err == nil {
		err = p.w.Flush()
	}
	switch {
	case errors.Is(err, syscall.EPIPE):
		return &cli.Exit{Code: 1} // its reader has seen enough
	case err != nil:
		return err
	case res.failed:
		return &cli.Exit{Code: 1}
	}
	return nil
}

// show shows what the files have at this moment.
func show(ctx context.Context, logs []*log, f *filter, p *printer, res *outcome) error {
	var readers []*nodelog.Reader
	for _, l := range logs {
		readers = append(readers, l.reader)
	}
	if err := nodelog.Mark(ctx, readers...); err != nil {
		return err
	}
	return merge(ctx, logs, res, func(l *log, e *nodelog.Entry) error { return p.entry(f, l.name, e) })
}

// showMore shows what was added to the files since, also to those that have taken
// their places.
func showMore(ctx context.Context, logs []*log, f *filter, p *printer, res *outcome) error {
	moved := make([]bool, len(logs))
	for i, l := range logs {
		moved[i] = l.reader.Moved()
	}
	if err := show(ctx, logs, f, p, res); err != nil {
		return err
	}
	var begun []*log
	for i, l := range logs {
		if !moved[i] {
			continue
		}
		r, err := nodelog.OpenReader(ctx, l.path)
		if errors.Is(err, os.ErrNotExist) {
			continue // between two
		}
		if err != nil {
			return err
		}
		r.From(f.from)
		_ = l.reader.Close() // only read
		l.reader = r
		begun = append(begun, l)
	}
	if begun == nil {
		return nil
	}
	return show(ctx, begun, f, p, res)
}

// sigFlush has a node write its log: SIGRTMIN, as the C library has it.
const sigFlush = syscall.Signal(34)

func flushProcesses(pids []int) error {
	for _, pid := range pids {
		p, err := os.FindProcess(pid)
		if err == nil {
			err = p.Signal(sigFlush)
		}
		if err != nil {
			return fmt.Errorf("--flush: process %d: %w", pid, err)
		}
	}
	return nil
}

// merge calls do with the entries of all logs, by date.
func merge(ctx context.Context, logs []*log, res *outcome, do func(*log, *nodelog.Entry) error) error {
	type source struct {
		log  *log
		next func() (*nodelog.Entry, error, bool)
		e    *nodelog.Entry
	}
	var sources []*source
	advance := func(s *source) error {
		for {
			e, err, ok := s.next()
			if !ok || err == nil {
				s.e = e
				return nil
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			res.tell(err)
		}
	}
	for _, l := range logs {
		next, stop := pull(ctx, l)
		defer stop()
		s := &source{log: l, next: next}
		if err := advance(s); err != nil {
			return err
		}
		sources = append(sources, s)
	}
	for {
		var first *source
		for _, s := range sources {
			if s.e != nil && (first == nil || s.e.Date < first.e.Date) {
				first = s
			}
		}
		if first == nil {
			return nil
		}
		if err := do(first.log, first.e); err != nil {
			return err
		}
		if err := advance(first); err != nil {
			return err
		}
	}
}

// splitLines splits a message; an empty one has no line.
func splitLines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}
