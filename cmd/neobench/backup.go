package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/spf13/cobra"
)

func newBackup(env *cli.Env) *cobra.Command {
	c := comparison{out: env.Stdout}
	size := "100MB"
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Measure a backup cluster, and what it costs the cluster that it follows",
		Long: `Measure a backup cluster, and what it costs the cluster that it follows.

A cluster gets a copy of a Data.fs, then another cluster follows it. This is how fast the
first copy is; how long after a commit the backup has it, with one client that commits
twenty times a second and with clients that commit all the time; how many commits and how
much time of the processors the cluster needs with and without a backup; what is sent to
a backup that comes back; how long it takes until the backup is a cluster of its own.

With --peer, a backup of Python follows the same kind of cluster, with less data. All
processes share this machine: a backup that has its own costs less commits.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if c.size, err = parseSize(size); err != nil {
				return cli.Usagef("--size: %w", err)
			}
			return c.in(func() error { return c.backups(cmd.Context()) })
		},
	}
	cmd.Flags().StringVar(&c.bin, "bin", "bin", "directory of the built programs")
	cmd.Flags().StringVar(&c.neo, "peer", "", "Python that can also import neo; default: not compared with")
	cmd.Flags().StringVar(&size, "size", size, "size of the Data.fs")
	cmd.Flags().StringSliceVar(&c.storageArgs, "storage-option", nil, "option of our storages, such as --replication-share=50; repeatable")
	return cmd
}

// backing is what a backup does and costs.
type backing struct {
	first          float64  // MB of Data.fs per second
	firstSent      float64  // MB
	limited        float64  // MB sent per second when limit is ordered; 0: not measured
	paced, busy    *figures // how long after a commit the backup has it
	without, with  cost     // of the upstream cluster
	change, sent   float64  // MB: committed while the backup was stopped, sent to it then
	caughtUp       time.Duration
	promoted       time.Duration
	memory         float64 // MB: peak of the storage of the backup
	upstreamMemory float64
}

// cost is what commits need.
type cost struct {
	commits int
	elapsed time.Duration
	cpu     time.Duration // of all upstream processes
	backup  time.Duration // of all processes of the backup
}

func (c *cost) rate() float64 { return float64(c.commits) / c.elapsed.Seconds() }

func (c *cost) perCommit() float64 {
	return float64(c.cpu.Microseconds()) / float64(max(1, c.commits))
}

const (
	slice     = 5 * time.Second       // commits are measured with and without backup in turn
	paceEvery = 50 * time.Millisecond // between two commits of a client that is not in a hurry
	paceFor   = 15 * time.Second
	quietFor  = 2 * time.Second // a storage that writes nothing for so long has left nothing for later
)

// backups measures both implementations. That of Python gets less data.
func (c *comparison) backups(ctx context.Context) error {
	data := filepath.Join(c.dir, "Data.fs")
	if err := generate(data, c.size, 1); err != nil {
		return err
	}
	floor, err := copyFile(data, data+".floor")
	if err != nil {
		return err
	}
	c.line("copy of the Data.fs and fsync on this disk", float64(c.size)/1e6/floor.Seconds(), "MB/s", 0)
	echo, err := c.echoFloor(ctx, 1, 5000)
	if err != nil {
		return err
	}
	c.line(echo.name+", median", float64(echo.quantile(.5).Microseconds()), "µs", 0)
	fsync, err := fsyncFloor(c.dir)
	if err != nil {
		return err
	}
	c.line("one 24 kB append and fsync on this disk", float64(fsync.Microseconds()), "µs", 0)

	theirs := &backing{paced: &figures{}, busy: &figures{}, without: cost{elapsed: 1}, with: cost{elapsed: 1}}
	if c.neo != "" {
		small := filepath.Join(c.dir, "small.fs")
		if err := generate(small, min(c.size, 20e6), 1); err != nil {
			return err
		}
		if theirs, err = c.backupOf(ctx, "py", small, []string{c.neo}); err != nil {
			return err
		}
	}
	ours, err := c.backupOf(ctx, "go", data, nil)
	if err != nil {
		return err
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
	c.line("backup: first copy", ours.first, "MB/s", theirs.first)
	c.line("backup: sent for the first copy", ours.firstSent, "MB", theirs.firstSent)
	c.line(fmt.Sprintf("backup: sent of %d MB/s that are allowed", limit), ours.limited, "MB/s", 0)
	c.line("backup: lag of 20 commits/s, median", ms(ours.paced.quantile(.5)), "ms", ms(theirs.paced.quantile(.5)))
	c.line("backup: lag of 20 commits/s, longest", ms(ours.paced.quantile(1)), "ms", ms(theirs.paced.quantile(1)))
	c.line(fmt.Sprintf("backup: lag, %d clients commit, median", streaming), ms(ours.busy.quantile(.5)), "ms", ms(theirs.busy.quantile(.5)))
	c.line(fmt.Sprintf("backup: lag, %d clients commit, longest", streaming), ms(ours.busy.quantile(1)), "ms", ms(theirs.busy.quantile(1)))
	c.line(fmt.Sprintf("commit, %d clients, without backup", streaming), ours.without.rate(), "/s", theirs.without.rate())
	c.line(fmt.Sprintf("commit, %d clients, with backup", streaming), ours.with.rate(), "/s", theirs.with.rate())
	less := func(b *backing) float64 {
		if b.without.commits == 0 {
			return 0 // not measured
		}
		return 100 * (1 - b.with.rate()/b.without.rate())
	}
	c.line("commits lost to the backup, low is good", less(ours), "%", less(theirs))
	c.line("CPU of upstream/commit, without backup", ours.without.perCommit(), "µs", theirs.without.perCommit())
	c.line("CPU of upstream/commit, with backup", ours.with.perCommit(), "µs", theirs.with.perCommit())
	c.line("CPU of backup/commit", float64(ours.with.backup.Microseconds())/float64(max(1, ours.with.commits)), "µs",
		float64(theirs.with.backup.Microseconds())/float64(max(1, theirs.with.commits)))
	c.line("backup: committed while it was stopped", ours.change, "MB", theirs.change)
	c.line("backup: sent to it when it came back", ours.sent, "MB", theirs.sent)
	c.line("backup: caught up after", ms(ours.caughtUp), "ms", ms(theirs.caughtUp))
	c.line("backup: promotion", ms(ours.promoted), "ms", ms(theirs.promoted))
	c.line("backup: peak memory of its storage", ours.memory, "MB", theirs.memory)
	c.line("backup: peak memory of the upstream storage", ours.upstreamMemory, "MB", theirs.upstreamMemory)
	return nil
}

// follower is a backup cluster under measurement.
type follower struct {
	*running
	op    *ctl.Client
	begun time.Time // when it could find the upstream cluster
}

func (f *follower) stop() {
	if f.op != nil {
		f.op.Close()
	}
	f.running.stop()
}

// startBackup starts a backup of up, with more options of its master.
func (c *comparison) startBackup(ctx context.Context, up *running, name string, python []string, options ...string) (*follower, error) {
	r, err := c.launch(ctx, c.dir, name, python, 1, func(n int) []string {
		return []string{"-a", "SQLite", "-d", filepath.Join(c.dir, fmt.Sprintf("%s%d.sqlite", name, n))}
	}, append([]string{"-C", up.name, "-M", up.masters, "-B"}, options...)...)
	f := &follower{running: r}
	// The upstream master pauses until the backup waits for it, so that the moment is known
	// when the backup begins.
	master := up.processes[0].Process
	if err == nil {
		err = master.Signal(syscall.SIGSTOP)
	}
	if err == nil {
		err = f.dial(ctx)
		if err == nil {
			_, err = f.await(ctx, proto.StartingBackup)
		}
		f.begun = time.Now()
		err = errors.Join(err, master.Signal(syscall.SIGCONT))
	}
	if err != nil {
		if r != nil {
			f.stop()
		}
		return nil, fmt.Errorf("backup %s: %w", name, err)
	}
	return f, nil
}

func (f *follower) dial(ctx context.Context) error {
	if err := waitPort(ctx, f.admin); err != nil {
		return err
	}
	addr, err := conf.ParseAddress(f.admin, 0)
	if err != nil {
		return err
	}
	f.op, err = ctl.Dial(ctx, proto.Address(addr), link.Config{})
	return err
}

// await waits for a state of the cluster, and returns when it was seen first.
func (f *follower) await(ctx context.Context, want proto.ClusterState) (time.Time, error) {
	var state proto.ClusterState
	var err error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
		if state, err = f.op.ClusterState(ctx); err == nil && state == want {
			return time.Now(), nil
		}
		if _, refused := errors.AsType[*proto.Error](err); err != nil && !refused {
			f.op.Close()
			if err := f.dial(ctx); err != nil { // an admin hangs up that has no master yet
				return time.Time{}, err
			}
		}
	}
	return time.Time{}, errors.Join(fmt.Errorf("cluster %s is %v, not %v", f.name, state, want), err, ctx.Err())
}

// step is what the backup had at a moment.
type step struct {
	at     time.Time
	backup tid.TID
}

// reach waits until the backup has a transaction, and returns what it saw meanwhile.
func (f *follower) reach(ctx context.Context, every time.Duration, last func() tid.TID) ([]step, error) {
	var steps []step
	for moved := time.Now(); ; time.Sleep(every) {
		ids, err := f.op.LastIDs(ctx)
		if _, refused := errors.AsType[*proto.Error](err); err != nil && !refused {
			return nil, err
		}
		now := time.Now()
		if err == nil && ids.BackupTID.OK && (len(steps) == 0 || ids.BackupTID.V > steps[len(steps)-1].backup) {
			steps = append(steps, step{now, ids.BackupTID.V})
			moved = now
		}
		if t := last(); t > 0 && len(steps) > 0 && steps[len(steps)-1].backup >= t {
			return steps, nil
		}
		if now.After(moved.Add(5 * time.Minute)) {
			return nil, fmt.Errorf("backup %s does not get further: it has %+v, and %v is wanted", f.name, ids, last())
		}
	}
}

func always(t tid.TID) func() tid.TID { return func() tid.TID { return t } }

// committed is when a transaction was finished.
type committed struct {
	at  time.Time
	tid tid.TID
}

// commitFor commits with some clients until ctx ends, each at most once in a pause.
func (g target) commitFor(ctx context.Context, clients int, pause time.Duration) (list []committed, elapsed time.Duration, err error) {
	bodies := make([][]byte, 16)
	for i := range bodies {
		bodies[i] = body(2000, i)
	}
	var mu sync.Mutex
	var f figures
	err = parallel(context.WithoutCancel(ctx), g.cfg, clients, &f, func(whole context.Context, _ int, cl *client.Client) error {
		var mine []committed
		var oids []tid.OID
		for ctx.Err() == nil {
			if len(oids) < 10 {
				more, err := cl.NewOIDs(whole, 100)
				if err != nil {
					return err
				}
				oids = append(oids, more...)
			}
			t, err := store(whole, cl, oids[:10], func(tid.OID) tid.TID { return tid.Zero }, bodies)
			if err != nil {
				return err
			}
			mine = append(mine, committed{time.Now(), t})
			oids = oids[10:]
			if pause > 0 {
				time.Sleep(pause)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		list = append(list, mine...)
		return nil
	})
	slices.SortFunc(list, func(a, b committed) int { return cmp.Compare(a.tid, b.tid) })
	return list, f.elapsed, err
}

// lag commits for a while, and measures how long after each commit the backup has it. The
// backup is looked at once in every.
func (f *follower) lag(ctx context.Context, g target, clients int, pause, every, during time.Duration) (lags *figures, list []committed, elapsed time.Duration, err error) {
	var mu sync.Mutex
	var last tid.TID
	known := func() tid.TID {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
	var wg sync.WaitGroup
	var commitErr error
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		limited, stop := context.WithTimeout(ctx, during)
		defer stop()
		list, elapsed, commitErr = g.commitFor(limited, clients, pause)
		mu.Lock()
		defer mu.Unlock()
		if commitErr != nil || len(list) == 0 {
			cancel()
			return
		}
		last = list[len(list)-1].tid
	})
	steps, err := f.reach(watching, every, known)
	wg.Wait()
	if err = errors.Join(commitErr, err); err != nil {
		return nil, nil, 0, err
	}
	lags = &figures{}
	i := 0
	for _, c := range list {
		for steps[i].backup < c.tid {
			i++
		}
		lags.latencies = append(lags.latencies, max(0, steps[i].at.Sub(c.at)))
	}
	return lags, list, elapsed, nil
}

// backupOf measures a backup of a cluster of ours that has a copy of data.
func (c *comparison) backupOf(ctx context.Context, name, data string, python []string) (*backing, error) {
	st, err := os.Stat(data)
	if err != nil {
		return nil, err
	}
	mb := float64(st.Size()) / 1e6
	up, err := c.start(ctx, name+"-up", nil, 1)
	if err != nil {
		return nil, err
	}
	defer up.stop()
	if err := c.command(ctx, "neomigrate", "-q", "-c", up.name, data, up.masters); err != nil {
		return nil, err
	}
	g, err := up.target(ctx)
	if err != nil {
		return nil, err
	}
	feeding := up.processes[1] // the storage
	b := &backing{}
	alone := func(to *cost, d time.Duration) error {
		limited, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		before := cpuTime(up.processes)
		list, elapsed, err := g.commitFor(limited, streaming, 0)
		to.commits, to.elapsed, to.cpu = to.commits+len(list), to.elapsed+elapsed, to.cpu+cpuTime(up.processes)-before
		return err
	}

	// The first copy, of the Data.fs alone.
	settle(ctx, feeding)
	last, err := g.last(ctx)
	if err != nil {
		return nil, err
	}
	sent := written(feeding)
	f, err := c.startBackup(ctx, up, name+"-down", python)
	if err != nil {
		return nil, err
	}
	defer func() { f.stop() }()
	if _, err := f.reach(ctx, 5*time.Millisecond, always(last)); err != nil {
		return nil, err
	}
	b.first = mb / time.Since(f.begun).Seconds()
	b.firstSent = float64(written(feeding)-sent) / 1e6

	if python == nil {
		sent, took, err := c.limited(ctx, up, name+"-limited", last)
		if err != nil {
			return nil, err
		}
		b.limited = sent / took.Seconds()
	}

	if b.paced, _, _, err = f.lag(ctx, g, 1, paceEvery, 2*time.Millisecond, paceFor); err != nil {
		return nil, err
	}
	b.busy = &figures{}
	for range 2 {
		before, backupBefore := cpuTime(up.processes), cpuTime(f.processes)
		lags, list, elapsed, err := f.lag(ctx, g, streaming, 0, 20*time.Millisecond, slice)
		if err != nil {
			return nil, err
		}
		b.busy.latencies = append(b.busy.latencies, lags.latencies...)
		b.with.commits, b.with.elapsed, b.with.cpu = b.with.commits+len(list), b.with.elapsed+elapsed, b.with.cpu+cpuTime(up.processes)-before
		b.with.backup += cpuTime(f.processes) - backupBefore
		f.stop()
		if err := alone(&b.without, slice); err != nil {
			return nil, err
		}
		if f, err = c.startBackup(ctx, up, name+"-down", python); err != nil {
			return nil, err
		}
		if last, err = g.last(ctx); err != nil {
			return nil, err
		}
		if _, err := f.reach(ctx, 5*time.Millisecond, always(last)); err != nil {
			return nil, err
		}
	}

	f.stop()
	const txns, objects, size = 500, 10, 2000
	if _, err := g.commits(ctx, streaming, txns/streaming, objects, size, 0); err != nil {
		return nil, err
	}
	b.change = txns * objects * size / 1e6
	if last, err = g.last(ctx); err != nil {
		return nil, err
	}
	settle(ctx, feeding)
	sent = written(feeding)
	if f, err = c.startBackup(ctx, up, name+"-down", python); err != nil {
		return nil, err
	}
	if _, err := f.reach(ctx, time.Millisecond, always(last)); err != nil {
		return nil, err
	}
	b.caughtUp, b.sent = time.Since(f.begun), float64(written(feeding)-sent)/1e6
	b.memory, b.upstreamMemory = float64(peakMemory(f.processes[1].Process.Pid))/1e6, float64(peakMemory(feeding.Process.Pid))/1e6

	start := time.Now()
	if _, err := f.op.SetClusterState(ctx, proto.StoppingBackup); err != nil {
		return nil, err
	}
	running, err := f.await(ctx, proto.Running)
	b.promoted = running.Sub(start)
	return b, err
}

// limit is what a backup may fetch per second, in MB.
const limit = 4

// limited measures the first copy of another backup that may fetch limit. It returns how many
// MB were sent to it, and how long it took.
func (c *comparison) limited(ctx context.Context, up *running, name string, last tid.TID) (sent float64, took time.Duration, err error) {
	before := written(up.processes[1])
	f, err := c.startBackup(ctx, up, name, nil, "--backup-bandwidth", fmt.Sprintf("%dMB/s", limit))
	if err != nil {
		return 0, 0, err
	}
	defer f.stop()
	if _, err := f.reach(ctx, 5*time.Millisecond, always(last)); err != nil {
		return 0, 0, err
	}
	took = time.Since(f.begun)
	return float64(written(up.processes[1])-before) / 1e6, took, nil
}

// last returns the last transaction of a cluster.
func (g target) last(ctx context.Context) (tid.TID, error) {
	cl, err := client.Open(ctx, g.cfg)
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	return cl.LastTID(ctx)
}

// cpuTime returns the time of the processors that processes have used, 0 where that is
// not known.
func cpuTime(processes []*exec.Cmd) (sum time.Duration) {
	const tick = 10 * time.Millisecond
	for _, p := range processes {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
		if err != nil {
			return 0
		}
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(fields) < 13 {
			return 0
		}
		for _, f := range fields[11:13] {
			n, _ := strconv.ParseInt(f, 10, 64) // 0: the format is another one
			sum += time.Duration(n) * tick
		}
	}
	return sum
}

// settle waits until a process has written what it left for later, such as moves of committed
// records.
func settle(ctx context.Context, p *exec.Cmd) {
	n, since := written(p), time.Now()
	for begun := since; time.Since(since) < quietFor && time.Since(begun) < time.Minute && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if now := written(p); now > n+1000 { // it says now and then that it lives
			n, since = now, time.Now()
		}
	}
}

// written returns how many bytes a process has given to files and peers, 0 where that is
// not known.
func written(p *exec.Cmd) (n int64) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/io", p.Process.Pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, _ := fmt.Sscanf(s.Text(), "wchar: %d", &n); k == 1 {
			return n
		}
	}
	return 0
}
