package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/spf13/cobra"
)

func newReplication(env *cli.Env) *cobra.Command {
	c := comparison{out: env.Stdout}
	size := "100MB"
	cmd := &cobra.Command{
		Use:   "replication",
		Short: "Measure replication, and commits during it",
		Long: `Measure replication, and commits during it.

A cluster gets a copy of a Data.fs, then a second storage. With the clients idle,
this is how fast the second storage gets its copy. With clients that commit all the
time, it is how many commits are left of those of the complete cluster, which writes
to both storages as well.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if c.size, err = parseSize(size); err != nil {
				return cli.Usagef("--size: %w", err)
			}
			return c.in(func() error {
				data := filepath.Join(c.dir, "Data.fs")
				if err := generate(data, c.size, 1); err != nil {
					return err
				}
				return c.replication(cmd.Context(), data)
			})
		},
	}
	cmd.Flags().StringVar(&c.bin, "bin", "bin", "directory of the built programs")
	cmd.Flags().StringVar(&c.neo, "peer", "", "Python that can also import neo; default: not compared with")
	cmd.Flags().StringVar(&size, "size", size, "size of the Data.fs")
	cmd.Flags().StringSliceVar(&c.storageArgs, "storage-option", nil, "option of our storages, such as --replication-share=50; repeatable")
	return cmd
}

// replicating is what replication does to a cluster.
type replicating struct {
	idle, busy           float64 // MB/s, without clients and with them
	before, during, over float64 // commits/s: one storage, replication, two storages
	p50, p99             time.Duration
}

// How long commits are measured around a replication, and at most during it.
const (
	around = 10 * time.Second
	within = 2 * time.Minute
)

// replication measures both implementations. That of Python gets less data.
func (c *comparison) replication(ctx context.Context, data string) error {
	var theirs replicating
	if c.neo != "" {
		small := filepath.Join(c.dir, "replicated.fs")
		if err := generate(small, min(c.size, 10e6), 1); err != nil {
			return err
		}
		var err error
		if theirs, err = c.replicationOf(ctx, "pyrepl", small, []string{c.neo}); err != nil {
			return err
		}
	}
	ours, err := c.replicationOf(ctx, "repl", data, nil)
	if err != nil {
		return err
	}
	c.line("replication, no clients", ours.idle, "MB/s", theirs.idle)
	c.line(fmt.Sprintf("replication, %d clients commit", streaming), ours.busy, "MB/s", theirs.busy)
	c.line(fmt.Sprintf("commit, %d clients, one storage", streaming), ours.before, "/s", theirs.before)
	c.line(fmt.Sprintf("commit, %d clients, two storages", streaming), ours.over, "/s", theirs.over)
	c.line(fmt.Sprintf("commit, %d clients, during replication", streaming), ours.during, "/s", theirs.during)
	c.line("commits lost to replication, low is good", lost(ours), "%", lost(theirs))
	c.line("commit during replication, median", float64(ours.p50.Microseconds()), "µs", float64(theirs.p50.Microseconds()))
	c.line("commit during replication, 99 %", float64(ours.p99.Microseconds()), "µs", float64(theirs.p99.Microseconds()))
	return nil
}

// lost is what part of the commits replication costs, in percent.
func lost(r replicating) float64 {
	if r.over == 0 {
		return 0
	}
	return 100 * (1 - r.during/r.over)
}

// streaming is how many clients commit all the time.
const streaming = 4

func (c *comparison) replicationOf(ctx context.Context, name, data string, python []string) (r replicating, err error) {
	st, err := os.Stat(data)
	if err != nil {
		return r, err
	}
	mb := float64(st.Size()) / 1e6
	filled := func(name string) (*running, error) {
		cl, err := c.start(ctx, name, python, 1)
		if err != nil {
			return nil, err
		}
		if err := c.command(ctx, "neomigrate", "-q", "-c", cl.name, data, cl.masters); err != nil {
			cl.stop()
			return nil, err
		}
		return cl, nil
	}
	idle, err := filled(name + "-idle")
	if err != nil {
		return r, err
	}
	err = idle.addReplica()
	start := time.Now()
	if err == nil {
		err = idle.awaitReplica(ctx)
	}
	r.idle = mb / time.Since(start).Seconds()
	idle.stop()
	if err != nil {
		return r, err
	}

	cl, err := filled(name + "-busy")
	if err != nil {
		return r, err
	}
	defer cl.stop()
	g, err := cl.target(ctx)
	if err != nil {
		return r, err
	}
	stream := func(d time.Duration) (*figures, error) {
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return g.stream(ctx, streaming, 10, 2000)
	}
	before, err := stream(around)
	if err != nil {
		return r, err
	}
	r.before = before.rate()
	if err := cl.addReplica(); err != nil {
		return r, err
	}
	copying, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	start = time.Now()
	var wg sync.WaitGroup
	var waitErr error
	took := time.Duration(0)
	wg.Go(func() {
		defer cancel()
		if waitErr = cl.awaitReplica(copying); waitErr == nil {
			took = time.Since(start)
		}
	})
	during, err := g.stream(copying, streaming, 10, 2000)
	wg.Wait()
	if err != nil {
		return r, err
	}
	r.during, r.p50, r.p99 = during.rate(), during.quantile(.5), during.quantile(.99)
	if took > 0 {
		r.busy = mb / took.Seconds()
	} else if err := cl.awaitReplica(ctx); err != nil { // it took too long to be measured
		return r, err
	}
	over, err := stream(around)
	if err != nil {
		return r, err
	}
	r.over = over.rate()
	return r, nil
}

// stream measures clients that commit until ctx ends.
func (g target) stream(ctx context.Context, clients, objects, size int) (*figures, error) {
	f := &figures{name: fmt.Sprintf("commit, %d clients", clients)}
	bodies := make([][]byte, 16)
	for i := range bodies {
		bodies[i] = body(size, i)
	}
	var mu sync.Mutex
	err := parallel(context.WithoutCancel(ctx), g.cfg, clients, f, func(whole context.Context, _ int, cl *client.Client) error {
		var lat []time.Duration
		var oids []tid.OID
		for ctx.Err() == nil {
			if len(oids) < objects {
				more, err := cl.NewOIDs(whole, 100)
				if err != nil {
					return err
				}
				oids = append(oids, more...)
			}
			start := time.Now()
			if _, err := store(whole, cl, oids[:objects], func(tid.OID) tid.TID { return tid.Zero }, bodies); err != nil {
				return err
			}
			oids = oids[objects:]
			lat = append(lat, time.Since(start))
		}
		mu.Lock()
		defer mu.Unlock()
		f.latencies = append(f.latencies, lat...)
		f.ops += len(lat)
		return nil
	})
	return f, err
}
