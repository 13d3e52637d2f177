package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/ports"
	"github.com/neozodb/neo/fsformat"
	"github.com/spf13/cobra"
)

//go:embed peer.py
var peerScript string

// comparison runs everything in one directory, one thing after the other.
type comparison struct {
	bin    string // our programs
	python string // an interpreter with ZODB and ZEO
	neo    string // an interpreter with the Python implementation of NEO; optional
	size   int64
	dir    string
	out    io.Writer

	importSize  int64    // of the Data.fs that is imported
	lengths     []int64  // over which memory is measured
	storageArgs []string // more options of our storages
}

func newCompare(env *cli.Env) *cobra.Command {
	c := comparison{out: env.Stdout}
	size, toImport, lengths := "100MB", importSize, []string{"100MB", "400MB"}
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "Start clusters, measure everything beside Python, print ratios",
		Long: `Start clusters on this machine, measure everything beside Python, print ratios.

The Python sides are FileStorage and ZEO, run by --python, and, if --peer names
an interpreter that can import neo, the Python implementation of NEO. Every
figure of a line was measured in this run.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if c.size, err = parseSize(size); err != nil {
				return cli.Usagef("--size: %w", err)
			}
			if c.importSize, err = parseSize(toImport); err != nil {
				return cli.Usagef("--import-size: %w", err)
			}
			if c.lengths, err = parseSizes(lengths); err != nil {
				return err
			}
			return c.in(func() error { return c.run(cmd.Context()) })
		},
	}
	cmd.Flags().StringVar(&c.bin, "bin", "bin", "directory of the built programs")
	cmd.Flags().StringVar(&c.python, "python", "python3", "Python with ZODB and ZEO")
	cmd.Flags().StringVar(&c.neo, "peer", "", "Python that can also import neo; default: not compared with")
	cmd.Flags().StringVar(&size, "size", size, "size of the Data.fs")
	cmd.Flags().StringVar(&toImport, "import-size", toImport, "size of the Data.fs that is imported")
	cmd.Flags().StringSliceVar(&lengths, "lengths", lengths, "lengths of a Data.fs over which the peak memory of the programs is measured")
	return cmd
}

// in runs f with a directory of its own.
func (c *comparison) in(f func() error) (err error) {
	if c.dir, err = os.MkdirTemp("", "neobench-"); err != nil {
		return err
	}
	defer os.RemoveAll(c.dir)
	if err := os.WriteFile(filepath.Join(c.dir, "peer.py"), []byte(peerScript), 0o600); err != nil {
		return err
	}
	return f()
}

func (c *comparison) run(ctx context.Context) error {
	data := filepath.Join(c.dir, "Data.fs")
	if err := generate(data, c.size, 1); err != nil {
		return err
	}
	for _, step := range []func(context.Context, string) error{c.files, c.copies, c.service, c.replication, c.zeo, c.imports} {
		if err := step(ctx, data); err != nil {
			return err
		}
	}
	return c.memory(ctx, c.lengths)
}

func (c *comparison) line(what string, ours float64, unit string, theirs float64) {
	fmt.Fprintf(c.out, "%-52s %10.1f %-8s", what, ours, unit)
	if theirs > 0 {
		fmt.Fprintf(c.out, " Python %10.1f   ratio %6.2f", theirs, ours/theirs)
	}
	fmt.Fprintln(c.out)
}

// files compares the reading of a Data.fs.
func (c *comparison) files(ctx context.Context, data string) error {
	theirs, err := c.peer(ctx, c.python, "scan", data)
	if err != nil {
		return err
	}
	r, err := fsformat.Open(data, fsformat.Options{})
	if err != nil {
		return err
	}
	defer r.Close()
	mb := float64(r.Size()) / 1e6
	start := time.Now()
	if _, err := r.BuildIndex(ctx, nil); err != nil {
		return err
	}
	c.line("Data.fs: rebuild of the index", mb/time.Since(start).Seconds(), "MB/s", theirs["rebuild_MB_s"])
	start = time.Now()
	if err := c.command(ctx, "neofs", "check", "-q", data); err != nil {
		return err
	}
	c.line("Data.fs: full check (neofs check)", mb/time.Since(start).Seconds(), "MB/s", theirs["check_MB_s"])
	return nil
}

// copies measures neomigrate and neoexport.
func (c *comparison) copies(ctx context.Context, data string) error {
	theirImport, theirExport, err := c.theirCopies(ctx)
	if err != nil {
		return err
	}
	cl, err := c.start(ctx, "copy", nil, 1)
	if err != nil {
		return err
	}
	defer cl.stop()
	st, err := os.Stat(data)
	if err != nil {
		return err
	}
	mb := float64(st.Size()) / 1e6
	start := time.Now()
	if err := c.command(ctx, "neomigrate", "-q", "-c", cl.name, data, cl.masters); err != nil {
		return err
	}
	c.line("neomigrate Data.fs into a cluster", mb/time.Since(start).Seconds(), "MB/s", theirImport)
	out := filepath.Join(c.dir, "out.fs")
	start = time.Now()
	if err := c.command(ctx, "neoexport", "-q", "-c", cl.name, cl.masters, out); err != nil {
		return err
	}
	c.line("neoexport of that cluster", mb/time.Since(start).Seconds(), "MB/s", theirExport)
	if err := exec.CommandContext(ctx, "cmp", data, out).Run(); err != nil {
		return fmt.Errorf("the export differs from the original: %w", err)
	}
	for _, p := range cl.processes {
		c.line("peak memory of "+filepath.Base(p.Path), float64(peakMemory(p.Process.Pid))/1e6, "MB", 0)
	}
	g, err := cl.target(ctx)
	if err != nil {
		return err
	}
	return c.goLoads(ctx, g, ", of the Data.fs", nil)
}

// goLoads measures the Go client, beside an empty round trip and the figures of
// Python, by number of clients.
func (c *comparison) goLoads(ctx context.Context, g target, of string, theirs map[int]map[string]float64) error {
	oids, err := g.someOIDs(ctx, 50000)
	if err != nil {
		return err
	}
	for _, n := range []int{1, 4} {
		floor, err := c.echoFloor(ctx, n, 20000/n)
		if err != nil {
			return err
		}
		c.line(floor.name+", median", float64(floor.quantile(.5).Microseconds()), "µs", 0)
		c.line(floor.name, floor.rate(), "/s", 0)
		f, err := g.loads(ctx, n, 40000/n, oids)
		if err != nil {
			return err
		}
		c.line(f.name+of+" (Go), median", float64(f.quantile(.5).Microseconds()), "µs", theirs[n]["load_us"])
		c.line(f.name+of+" (Go)", f.rate(), "/s", theirs[n]["loads_s"])
	}
	return nil
}

func (c *comparison) theirCopies(ctx context.Context) (imported, exported float64, err error) {
	if c.neo == "" {
		return 0, 0, nil
	}
	small := filepath.Join(c.dir, "small.fs")
	if err := generate(small, min(c.size, 5e6), 1); err != nil {
		return 0, 0, err
	}
	cl, err := c.start(ctx, "pycopy", []string{c.neo}, 1)
	if err != nil {
		return 0, 0, err
	}
	defer cl.stop()
	st, err := os.Stat(small)
	if err != nil {
		return 0, 0, err
	}
	mb := float64(st.Size()) / 1e6
	start := time.Now()
	if err := quiet(pythonProgram(ctx, c.neo, "neomigrate", "-q", "-c", cl.name, small, cl.masters)); err != nil {
		return 0, 0, err
	}
	imported = mb / time.Since(start).Seconds()
	start = time.Now()
	if err := quiet(pythonProgram(ctx, c.neo, "neomigrate", "-q", "-c", cl.name, cl.masters, small+".out")); err != nil {
		return 0, 0, err
	}
	return imported, mb / time.Since(start).Seconds(), nil
}

// service compares commits and loads on new, empty clusters.
func (c *comparison) service(ctx context.Context, _ string) error {
	theirs := map[int]map[string]float64{}
	var theirConflicts map[string]float64
	if c.neo != "" {
		for _, n := range []int{1, 4} {
			cl, err := c.start(ctx, fmt.Sprintf("py%d", n), []string{c.neo}, 1)
			if err != nil {
				return err
			}
			theirs[n], err = c.peer(ctx, c.neo, "storage", "neo:"+cl.name+"@"+cl.masters, fmt.Sprint(n))
			if err == nil && n == contenders {
				theirConflicts, err = c.conflicts(ctx, cl)
			}
			cl.stop()
			if err != nil {
				return err
			}
		}
	}
	cl, err := c.start(ctx, "service", nil, 1)
	if err != nil {
		return err
	}
	defer cl.stop()
	g, err := cl.target(ctx)
	if err != nil {
		return err
	}
	floor, err := fsyncFloor(c.dir)
	if err != nil {
		return err
	}
	c.line("one 24 kB append and fsync on this disk", float64(floor.Microseconds()), "µs", 0)
	for _, n := range []int{1, 4, 16} {
		f, err := g.commits(ctx, n, 2000/n, 10, 2000, 0)
		if err != nil {
			return err
		}
		c.line(f.name+" (Go)", f.rate(), "/s", theirs[n]["commits_s"])
		if n == 1 {
			c.line(f.name+" (Go), median", float64(f.quantile(.5).Microseconds()), "µs", theirs[n]["commit_us"])
		}
	}
	for _, n := range []int{contenders, 16} {
		f, err := g.commits(ctx, n, 1000/n, 10, 2000, hotObjects)
		if err != nil {
			return err
		}
		var rate float64
		if n == contenders {
			rate = theirConflicts["commits_s"]
		}
		c.line(fmt.Sprintf("%s (Go), %d conflicts", f.name, f.conflicts), f.rate(), "/s", rate)
	}
	if err := c.goLoads(ctx, g, "", theirs); err != nil {
		return err
	}
	if c.neo != "" {
		ours, err := c.conflicts(ctx, cl)
		if err != nil {
			return err
		}
		c.line(fmt.Sprintf("commit, %d clients, %d hot (Python), %.0f conflicts", contenders, hotObjects, ours["conflicts"]), ours["commits_s"], "/s", theirConflicts["commits_s"])
		for _, n := range []int{1, 4} {
			ours, err := c.peer(ctx, c.neo, "storage", "neo:"+cl.name+"@"+cl.masters, fmt.Sprint(n))
			if err != nil {
				return err
			}
			c.line(fmt.Sprintf("commit, %d clients (Python)", n), ours["commits_s"], "/s", theirs[n]["commits_s"])
			c.line(fmt.Sprintf("load, %d clients (Python)", n), ours["loads_s"], "/s", theirs[n]["loads_s"])
		}
	}
	return nil
}

// Clients that compete for a few objects.
const (
	contenders = 4
	hotObjects = 8
)

// conflicts measures Python clients that conflict.
func (c *comparison) conflicts(ctx context.Context, cl *running) (map[string]float64, error) {
	return c.peer(ctx, c.neo, "conflicts", "neo:"+cl.name+"@"+cl.masters, fmt.Sprint(contenders), "200", fmt.Sprint(hotObjects))
}

// zeo compares the ZEO door with the Python ZEO server over a FileStorage, both
// with Python clients.
func (c *comparison) zeo(ctx context.Context, _ string) error {
	for _, n := range []int{1, 2, 4} {
		port, err := ports.Free()
		if err != nil {
			return err
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		server := exec.CommandContext(ctx, c.python, "-m", "ZEO.runzeo", "-a", address, "-f", filepath.Join(c.dir, fmt.Sprintf("zeo%d.fs", n)))
		theirs, err := c.door(ctx, address, n, []*exec.Cmd{server})
		if err != nil {
			return err
		}
		cl, err := c.start(ctx, fmt.Sprintf("zeo%d", n), nil, 1)
		if err != nil {
			return err
		}
		if port, err = ports.Free(); err != nil {
			return err
		}
		address = fmt.Sprintf("127.0.0.1:%d", port)
		server = exec.CommandContext(ctx, filepath.Join(c.bin, "neozeo"), "-c", cl.name, "-m", cl.masters, "-b", address)
		ours, err := c.door(ctx, address, n, append(cl.processes, server))
		cl.stop()
		if err != nil {
			return err
		}
		c.line(fmt.Sprintf("ZEO commit, %d clients (Python)", n), ours["commits_s"], "/s", theirs["commits_s"])
		c.line(fmt.Sprintf("ZEO load, %d clients (Python)", n), ours["loads_s"], "/s", theirs["loads_s"])
		c.line(fmt.Sprintf("ZEO server CPU/commit, %d clients, low is good", n), ours["commit_cpu_us"], "µs", theirs["commit_cpu_us"])
		c.line(fmt.Sprintf("ZEO server CPU/load, %d clients, low is good", n), ours["load_cpu_us"], "µs", theirs["load_cpu_us"])
	}
	return nil
}

// door starts a server, measures through it with the CPU time of the given
// processes, of which it is the last one, and stops it.
func (c *comparison) door(ctx context.Context, address string, clients int, processes []*exec.Cmd) (map[string]float64, error) {
	server := processes[len(processes)-1]
	server.Stdout, server.Stderr = io.Discard, io.Discard
	if err := server.Start(); err != nil {
		return nil, err
	}
	defer func() {
		server.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		server.Wait()                          // its status is of no interest
	}()
	if err := waitPort(ctx, address); err != nil {
		return nil, err
	}
	args := []string{"storage", "zeo:" + address, fmt.Sprint(clients), "1200", "16000"}
	for _, p := range processes {
		args = append(args, fmt.Sprint(p.Process.Pid))
	}
	return c.peer(ctx, c.python, args...)
}

// running is a cluster of processes.
type running struct {
	name, masters, admin string
	processes            []*exec.Cmd
	program              func(prog string, args ...string) *exec.Cmd
	node                 func(prog string, args ...string) error // starts one more
	storage              func() error                            // starts one more
}

// start starts a cluster with durable SQLite and waits until it serves. With
// python, the nodes are those of the Python implementation.
func (c *comparison) start(ctx context.Context, name string, python []string, storages int) (*running, error) {
	return c.startIn(ctx, c.dir, name, python, storages)
}

// startIn is start, with the databases in a directory.
func (c *comparison) startIn(ctx context.Context, dir, name string, python []string, storages int) (*running, error) {
	return c.startWith(ctx, dir, name, python, storages, func(n int) []string {
		return []string{"-a", "SQLite", "-d", filepath.Join(dir, fmt.Sprintf("%s%d.sqlite", name, n))}
	})
}

// startWith is startIn, with storages whose databases are what the options returned for
// each, from 0, say.
func (c *comparison) startWith(ctx context.Context, dir, name string, python []string, storages int, database func(n int) []string) (*running, error) {
	r, err := c.launch(ctx, dir, name, python, storages, database)
	for deadline := time.Now().Add(2 * time.Minute); err == nil; time.Sleep(100 * time.Millisecond) {
		out, ctlErr := r.ctl("print", "cluster")
		if out == "RUNNING" {
			return r, nil
		}
		if time.Now().After(deadline) {
			err = fmt.Errorf("cluster %s does not start: %w", name, ctlErr)
		}
	}
	if r != nil {
		r.stop()
	}
	return nil, err
}

// launch is startWith without the wait, and with more options of the master.
func (c *comparison) launch(ctx context.Context, dir, name string, python []string, storages int, database func(n int) []string, master ...string) (*running, error) {
	var at [2]int
	for i := range at {
		var err error
		if at[i], err = ports.Free(); err != nil {
			return nil, err
		}
	}
	r := &running{name: name, masters: fmt.Sprintf("127.0.0.1:%d", at[0]), admin: fmt.Sprintf("127.0.0.1:%d", at[1])}
	r.program = func(prog string, args ...string) *exec.Cmd {
		if python != nil {
			return pythonProgram(ctx, python[0], prog, args...)
		}
		return exec.CommandContext(ctx, filepath.Join(c.bin, prog), args...)
	}
	r.node = func(prog string, args ...string) error {
		cmd := r.program(prog, append([]string{"-c", name, "-m", r.masters}, args...)...)
		log, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%s-%d.log", name, prog, len(r.processes))))
		if err != nil {
			return err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			return err
		}
		r.processes = append(r.processes, cmd)
		return nil
	}
	databases := 0
	r.storage = func() error {
		args := database(databases)
		databases++
		if python == nil {
			args = append(args, c.storageArgs...)
		}
		return r.node("neostorage", args...)
	}
	err := r.node("neomaster", append([]string{"-b", r.masters, "-A", fmt.Sprint(storages), "-p", "12"}, master...)...)
	for range storages {
		err = errors.Join(err, r.storage())
	}
	return r, errors.Join(err, r.node("neoadmin", "-b", r.admin))
}

// ctl runs neoctl.
func (r *running) ctl(args ...string) (string, error) {
	out, err := r.program("neoctl", append([]string{"-a", r.admin}, args...)...).Output()
	return strings.TrimSpace(string(out)), err
}

// addReplica starts a storage that gets a copy of everything.
func (r *running) addReplica() error {
	if err := r.storage(); err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out, err := r.ctl("print", "node")
		if err == nil && strings.Contains(out, "PENDING") {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cluster %s sees no other storage: %w\n%s", r.name, err, out)
		}
	}
	for _, order := range [][]string{{"add", "all"}, {"set", "replicas", "1"}, {"tweak"}} {
		if out, err := r.ctl(order...); err != nil {
			return fmt.Errorf("cluster %s: neoctl %s: %w\n%s", r.name, strings.Join(order, " "), err, out)
		}
	}
	return nil
}

// replicated reports whether all cells of all storages are complete.
func (r *running) replicated() (bool, error) {
	out, err := r.ctl("print", "pt")
	if err != nil {
		return false, fmt.Errorf("partition table of cluster %s: %w", r.name, err)
	}
	rows := 0
	for line := range strings.Lines(out) { // "S1 R UUUU", for each storage
		if f := strings.Fields(line); len(f) == 3 && strings.HasPrefix(f[0], "S") {
			rows++
			if strings.Trim(f[2], "U") != "" {
				return false, nil
			}
		}
	}
	return rows > 1, nil
}

// replicate adds a storage and waits until it has a copy of everything.
func (r *running) replicate(ctx context.Context) error {
	if err := r.addReplica(); err != nil {
		return err
	}
	return r.awaitReplica(ctx)
}

// awaitReplica waits until the copies are complete.
func (r *running) awaitReplica(ctx context.Context) error {
	for {
		if done, err := r.replicated(); err != nil || done {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *running) stop() {
	for _, p := range r.processes {
		p.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	}
	for _, p := range r.processes {
		p.Wait() // its status is of no interest
	}
}

func (r *running) target(ctx context.Context) (target, error) {
	masters, err := conf.ParseMasters(r.masters)
	return target{client.Config{Cluster: r.name, Masters: cli.WireAddresses(masters)}}, err
}

func (c *comparison) command(ctx context.Context, program string, args ...string) error {
	return quiet(exec.CommandContext(ctx, filepath.Join(c.bin, program), args...))
}

func quiet(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

func pythonProgram(ctx context.Context, python, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, python, append([]string{"-c", "from neo.scripts." + program + " import main; main()"}, args...)...)
}

// peer runs the embedded script.
func (c *comparison) peer(ctx context.Context, python string, args ...string) (map[string]float64, error) {
	cmd := exec.CommandContext(ctx, python, append([]string{filepath.Join(c.dir, "peer.py")}, args...)...)
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("peer.py %s: %w\n%s", strings.Join(args, " "), err, errOut.String())
	}
	var figures map[string]float64
	if err := json.Unmarshal(out, &figures); err != nil {
		return nil, fmt.Errorf("peer.py %s printed %q: %w", strings.Join(args, " "), out, err)
	}
	return figures, nil
}

// fsyncFloor returns the median time to append 24 kB and make it durable.
func fsyncFloor(dir string) (time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "floor"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	figures := figures{}
	block := body(24000, 0)
	for range 300 {
		start := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		figures.latencies = append(figures.latencies, time.Since(start))
	}
	return figures.quantile(.5), nil
}

func waitPort(ctx context.Context, address string) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		nc, err := net.Dial("tcp", address)
		if err == nil {
			return nc.Close()
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("nothing listens: %w", err)
		}
	}
}

// peakMemory returns the greatest resident size of a process in bytes, 0 if it ended.
func peakMemory(pid int) int64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kb int64
		if n, _ := fmt.Sscanf(s.Text(), "VmHWM: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	return 0
}
