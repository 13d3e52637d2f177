package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	mostOfCluster = 1e9                   // bytes of the Data.fs of which a cluster is made
	calmPause     = 50 * time.Millisecond // between two commits of a client that works
	calmClients   = 2                     // that work
	calmFor       = 5 * time.Second       // without a snapshot
	changedEach   = 20_000                // bytes of a transaction of the change
	changedBody   = 2000                  // bytes of an object of it
)

// ofCluster measures snapshots of a running cluster, what they cost its clients, and litestream on the
// database of its storage, if it is installed.
func (c *comparison) ofCluster(ctx context.Context) error {
	size := min(c.size, mostOfCluster)
	mb := float64(size) / 1e6
	data := filepath.Join(c.dir, "cluster.fs")
	if err := generate(data, size, 1); err != nil {
		return err
	}
	r, err := c.start(ctx, "snapped", nil, 1)
	if err != nil {
		return err
	}
	defer r.stop()
	if err := c.command(ctx, "neomigrate", "-q", "-c", r.name, data, r.masters); err != nil {
		return err
	}
	if err := errors.Join(os.Remove(data), os.RemoveAll(data+".index")); err != nil {
		return err
	}
	g, err := r.target(ctx)
	if err != nil {
		return err
	}
	settle(ctx, r.processes[1])
	keep := func(name string) (*keeper, error) {
		dir := filepath.Join(c.dir, name)
		repo := filepath.Join(dir, "repository")
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		k, err := c.neobackup(ctx, dir, "file://"+repo, "neo://"+r.name+"@"+r.masters, "")
		if k != nil {
			k.name, k.stored = "neobackup, cluster", func() (int64, error) { return sizeOf(repo) }
		}
		return k, err
	}
	alone, err := keep("alone")
	if err != nil {
		return err
	}
	before := cpuTime(r.processes)
	s, err := c.spend(alone.first(ctx))
	if err != nil {
		return err
	}
	c.row(alone.name, "first", size, s)
	stored, err := alone.stored()
	if err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%-20s stored %.1f MB; the nodes of the cluster used %.1f ms of a processor for each MB\n", alone.name, float64(stored)/1e6, float64((cpuTime(r.processes)-before).Milliseconds())/mb)

	limited, cancel := context.WithTimeout(ctx, calmFor)
	calm, err := g.work(limited)
	cancel()
	if err != nil {
		return err
	}
	beside, err := keep("beside")
	if err != nil {
		return err
	}
	working, cancel := context.WithCancel(ctx)
	defer cancel()
	type worked struct {
		f   *figures
		err error
	}
	done := make(chan worked, 1)
	go func() {
		f, err := g.work(working)
		done <- worked{f, err}
	}()
	s, err = c.spend(nice(beside.first(ctx))) // else they would compete for the processors as well
	cancel()
	w := <-done
	if err := errors.Join(err, w.err); err != nil {
		return err
	}
	c.row(beside.name, "beside", size, s)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
	fmt.Fprintf(c.out, "%-20s commits of %d clients: median %.1f ms without a snapshot, %.1f ms beside one (%.2f times); 99 %%: %.1f and %.1f ms\n", beside.name, calmClients,
		ms(calm.quantile(.5)), ms(w.f.quantile(.5)), ms(w.f.quantile(.5))/ms(calm.quantile(.5)), ms(calm.quantile(.99)), ms(w.f.quantile(.99)))

	if _, err = c.spend(alone.next(ctx)); err != nil { // what was committed meanwhile
		return err
	}
	if stored, err = alone.stored(); err != nil {
		return err
	}
	change := func() error {
		_, err := g.commits(ctx, 1, int(size/100/changedEach), changedEach/changedBody, changedBody, 0)
		return err
	}
	stream, err := exec.LookPath("litestream")
	run := func(args ...string) *exec.Cmd { return exec.CommandContext(ctx, stream, args...) }
	replica := filepath.Join(c.dir, "litestream")
	db := filepath.Join(c.dir, r.name+"0.sqlite")
	if err == nil {
		if s, err = c.spend(run("replicate", "-once", db, "file://"+replica)); err != nil {
			return err
		}
		c.row("litestream, SQLite", "first", size, s)
	}
	streamed, _ := sizeOf(replica) // 0 if it is not installed
	if err := change(); err != nil {
		return err
	}
	if s, err = c.spend(alone.next(ctx)); err != nil {
		return err
	}
	c.row(alone.name, "1 % more", size/100, s)
	after, err := alone.stored()
	if err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%-20s stored %.2f MB for %.2f MB\n", alone.name, float64(after-stored)/1e6, mb/100)
	if stream == "" {
		return nil
	}
	if s, err = c.spend(run("replicate", "-once", db, "file://"+replica)); err != nil {
		return err
	}
	c.row("litestream, SQLite", "1 % more", size/100, s)
	streamedAfter, err := sizeOf(replica)
	if err != nil {
		return err
	}
	copied := filepath.Join(c.dir, "litestream.sqlite")
	if s, err = c.spend(run("restore", "-o", copied, "file://"+replica)); err != nil {
		return err
	}
	c.row("litestream, SQLite", "restore", size, s)
	fmt.Fprintf(c.out, "%-20s stored %.1f MB, not encrypted, then %.2f MB for %.2f MB\n", "litestream, SQLite", float64(streamed)/1e6, float64(streamedAfter-streamed)/1e6, mb/100)
	return nil
}

// nice gives way to other programs, where that is possible: as on a machine of its own.
func nice(cmd *exec.Cmd) *exec.Cmd {
	if path, err := exec.LookPath("nice"); err == nil {
		cmd.Args = append([]string{path, "-n", "19", cmd.Path}, cmd.Args[1:]...)
		cmd.Path = path
	}
	return cmd
}

// increments measures the same change of a small and of a large Data.fs.
func (c *comparison) increments(ctx context.Context) error {
	change := c.size / 8 / 100
	for _, size := range []int64{c.size / 8, c.size} {
		dir := filepath.Join(c.dir, fmt.Sprint("increments", size))
		repo, data := filepath.Join(dir, "repository"), filepath.Join(dir, "Data.fs")
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := generate(data, size, 1); err != nil {
			return err
		}
		k, err := c.neobackup(ctx, dir, "file://"+repo, "file://"+data, "")
		if err != nil {
			return err
		}
		if err := quiet(k.first(ctx)); err != nil {
			return err
		}
		before, err := sizeOf(repo)
		if err != nil {
			return err
		}
		var all []spent
		const times = 5
		for range times {
			if _, err := grow(data, change); err != nil {
				return err
			}
			s, err := c.spend(k.next(ctx))
			if err != nil {
				return err
			}
			all = append(all, s)
		}
		after, err := sizeOf(repo)
		if err != nil {
			return err
		}
		slices.SortFunc(all, func(a, b spent) int { return cmp.Compare(a.elapsed, b.elapsed) })
		fmt.Fprintf(c.out, "%-20s %.1f MB more of %.0f MB: %.0f ms (median of %d), %.0f ms of a processor, %.2f MB stored\n", "neobackup, directory", float64(change)/1e6, float64(size)/1e6,
			float64(all[times/2].elapsed.Microseconds())/1e3, times, float64(all[times/2].cpu.Microseconds())/1e3, float64(after-before)/1e6/times)
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// row prints what a program needed for some bytes of a Data.fs.
func (c *comparison) row(name, what string, size int64, s spent) {
	mb := float64(size) / 1e6
	fmt.Fprintf(c.out, "%-20s %-10s %9.1f %9.2f %10.1f %10.0f\n", name, what, mb/s.elapsed.Seconds(), s.elapsed.Seconds(), float64(s.cpu.Milliseconds())/mb, float64(s.memory)/1e6)
}

// work commits now and then, as people do, until ctx ends.
func (g target) work(ctx context.Context) (*figures, error) {
	f := &figures{name: "work"}
	bodies := make([][]byte, 16)
	for i := range bodies {
		bodies[i] = body(changedBody, i)
	}
	var mu sync.Mutex
	err := parallel(context.WithoutCancel(ctx), g.cfg, calmClients, f, func(whole context.Context, _ int, cl *client.Client) error {
		var lat []time.Duration
		for ctx.Err() == nil {
			oids, err := cl.NewOIDs(whole, 10)
			if err != nil {
				return err
			}
			start := time.Now()
			if _, err := store(whole, cl, oids, func(tid.OID) tid.TID { return tid.Zero }, bodies); err != nil {
				return err
			}
			lat = append(lat, time.Since(start))
			time.Sleep(calmPause)
		}
		mu.Lock()
		defer mu.Unlock()
		f.latencies = append(f.latencies, lat...)
		return nil
	})
	slices.Sort(f.latencies)
	return f, err
}
