package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/ports"
	"github.com/spf13/cobra"
)

func newMemory(env *cli.Env) *cobra.Command {
	c := comparison{out: env.Stdout}
	lengths := []string{"100MB", "400MB"}
	cmd := &cobra.Command{
		Use:   "memory",
		Short: "Measure the peak memory of each program over growing lengths of a database",
		Long: `Measure the peak memory of each program over growing lengths of a database.

Each program works through a Data.fs of each length: it is copied into a cluster,
replicated, exported, compared, and read and written by a ZEO client. The last
column is by how many megabytes the peak grows for each megabyte of database: near
0 for all but those that keep an index of the objects (neofs, and neozeo with a file).

The ZEO part needs --python, and is left out without it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			sizes, err := parseSizes(lengths)
			if err != nil {
				return err
			}
			return c.in(func() error { return c.memory(cmd.Context(), sizes) })
		},
	}
	cmd.Flags().StringVar(&c.bin, "bin", "bin", "directory of the built programs")
	cmd.Flags().StringVar(&c.python, "python", "", "Python with ZODB and ZEO")
	cmd.Flags().StringSliceVar(&lengths, "lengths", lengths, "lengths of the Data.fs, rising, such as 100MB,400MB,1600MB")
	return cmd
}

func parseSizes(list []string) (sizes []int64, err error) {
	for _, s := range list {
		n, err := parseSize(s)
		if err != nil {
			return nil, cli.Usagef("lengths: %w", err)
		}
		sizes = append(sizes, n)
	}
	if !slices.IsSorted(sizes) {
		return nil, cli.Usagef("lengths: they must rise")
	}
	return sizes, nil
}

// peaks are the greatest resident sizes of programs in bytes, by what they did.
type peaks struct {
	what []string
	of   map[string]int64
}

func (p *peaks) add(what string, bytes int64) {
	if _, known := p.of[what]; !known {
		p.what = append(p.what, what)
	}
	p.of[what] = max(p.of[what], bytes)
}

// memory measures the peak memory of each program for each length, and prints them
// side by side.
func (c *comparison) memory(ctx context.Context, lengths []int64) error {
	var columns []peaks
	for _, n := range lengths {
		p := peaks{of: map[string]int64{}}
		if err := c.peaksOf(ctx, n, &p); err != nil {
			return err
		}
		columns = append(columns, p)
	}
	fmt.Fprintf(c.out, "%-44s", "peak memory in MB, database of")
	for _, n := range lengths {
		fmt.Fprintf(c.out, " %7.0f MB", float64(n)/1e6)
	}
	fmt.Fprintln(c.out, "   MB per MB")
	for _, what := range columns[0].what {
		fmt.Fprintf(c.out, "%-44s", what)
		for _, p := range columns {
			fmt.Fprintf(c.out, " %10.1f", float64(p.of[what])/1e6)
		}
		if last := len(lengths) - 1; lengths[last] > lengths[0] {
			grown := columns[last].of[what] - columns[0].of[what]
			fmt.Fprintf(c.out, "  %10.3f", float64(grown)/float64(lengths[last]-lengths[0]))
		}
		fmt.Fprintln(c.out)
	}
	return nil
}

// peaksOf lets all programs work through a Data.fs of size bytes.
func (c *comparison) peaksOf(ctx context.Context, size int64, p *peaks) error {
	dir := filepath.Join(c.dir, fmt.Sprintf("memory%d", size))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what is left goes with the whole
	data := filepath.Join(dir, "Data.fs")
	// In a process of its own: the memory of this one is none of the figures.
	if err := c.measured(ctx, p, "", "neobench", "generate", data, "--size", fmt.Sprint(size)); err != nil {
		return err
	}
	if err := c.peaksOfCluster(ctx, dir, data, p); err != nil {
		return err
	}
	if err := c.peaksOfFiles(ctx, dir, data, p); err != nil {
		return err
	}
	return c.peaksOfImport(ctx, dir, data, p)
}

func (c *comparison) peaksOfCluster(ctx context.Context, dir, data string, p *peaks) error {
	cl, err := c.startIn(ctx, dir, "memory", nil, 1)
	if err != nil {
		return err
	}
	defer cl.stop()
	if err := c.measured(ctx, p, "neomigrate, into the cluster", "neomigrate", "-q", "-c", cl.name, data, cl.masters); err != nil {
		return err
	}
	if err := cl.replicate(ctx); err != nil {
		return err
	}
	out := filepath.Join(dir, "out.fs")
	if err := c.measured(ctx, p, "neoexport --verify, of the cluster", "neoexport", "-q", "--verify", "-c", cl.name, cl.masters, out); err != nil {
		return err
	}
	if err := c.measured(ctx, p, "neomigrate, on to a file", "neomigrate", "-q", "-c", cl.name, cl.masters, filepath.Join(dir, "on.fs")); err != nil {
		return err
	}
	if c.python == "" {
		return cl.peaks(p)
	}
	for _, server := range []struct {
		what string
		args []string
	}{
		{"neozeo, all read and as much written", []string{"-c", cl.name, "-m", cl.masters}},
		{"neozeo --file, all read", []string{"--file", data}},
	} {
		port, err := ports.Free()
		if err != nil {
			return err
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "neozeo"), append(server.args, "--cache-size", "16MB", "-b", address)...)
		if err := cmd.Start(); err != nil {
			return err
		}
		err = waitPort(ctx, address)
		if err == nil {
			_, err = c.peer(ctx, c.python, "read", "zeo:"+address)
		}
		if err == nil && server.args[0] == "-c" {
			st, statErr := os.Stat(data)
			if statErr == nil {
				_, statErr = c.peer(ctx, c.python, "write", "zeo:"+address, fmt.Sprint(st.Size()))
			}
			err = statErr
		}
		p.add(server.what, peakMemory(cmd.Process.Pid))
		cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		cmd.Wait()                          // its status is of no interest
		if err != nil {
			return err
		}
	}
	return cl.peaks(p)
}

// peaksOfFiles measures what works on Data.fs files alone.
func (c *comparison) peaksOfFiles(ctx context.Context, dir, data string, p *peaks) error {
	for _, args := range [][]string{
		{"neofs", "check", "-q", data},
		{"neofs", "analyze", data},
		{"neofs", "dump", data},
		{"neofs", "cmp", data, filepath.Join(dir, "out.fs")},
		{"neofs", "salvage", data, filepath.Join(dir, "salvaged.fs")},
		{"neoexport", "-q", data, filepath.Join(dir, "copy.fs")},
	} {
		what := args[0] + " " + args[1] // the command
		if args[0] == "neoexport" {
			what = "neoexport, of a file"
		}
		if err := c.measured(ctx, p, what, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// imported is in the log of a node when its import has come to its end.
const imported = "All data are imported"

// peaksOfImport measures a cluster in one process that imports, until everything is copied
// and compared.
func (c *comparison) peaksOfImport(ctx context.Context, dir, data string, p *peaks) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "neosimple"), "-q", "--log-level", "info", "--dir", filepath.Join(dir, "simple"), "--import", data)
	log, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var complaints strings.Builder
	ended := false
	for lines := bufio.NewScanner(log); !ended && lines.Scan(); {
		ended = strings.Contains(lines.Text(), imported)
		fmt.Fprintln(&complaints, lines.Text())
	}
	p.add("neosimple --import, until all is compared", peakMemory(cmd.Process.Pid))
	cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	err = cmd.Wait()
	if !ended {
		return fmt.Errorf("neosimple --import: %w\n%s", err, complaints.String())
	}
	return nil
}

// measured runs a program and adds its peak memory under a name, unless that is "".
func (c *comparison) measured(ctx context.Context, p *peaks, what, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, program), args...)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		return err
	}
	// Not what the system says of a process that has ended: that includes the
	// memory of this one, of which it was forked.
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	peak := int64(0)
	for {
		peak = max(peak, peakMemory(cmd.Process.Pid))
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, complaints.String())
			}
			if what != "" {
				p.add(what, peak)
			}
			return nil
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// peaks adds the memory of the nodes, over all that was done.
func (r *running) peaks(p *peaks) error {
	for i, cmd := range r.processes {
		peak := peakMemory(cmd.Process.Pid)
		if peak == 0 {
			return fmt.Errorf("%s of cluster %s has ended", filepath.Base(cmd.Path), r.name)
		}
		what := filepath.Base(cmd.Path)
		if i > 2 { // after master, storage and admin
			what += ", replica"
		}
		p.add(what, peak)
	}
	return nil
}
