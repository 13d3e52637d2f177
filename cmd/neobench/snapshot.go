package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

func newSnapshot(env *cli.Env) *cobra.Command {
	c := comparison{out: env.Stdout}
	size, minio := "200MB", ""
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Measure snapshots beside repozo and restic",
		Long: `Measure snapshots beside repozo and restic.

A Data.fs is stored for the first time, again after 1 % more was appended, and restored: by
neobackup, encrypted, in a directory and, with --minio, on an S3 server; by repozo, of the ZODB
of --python, compressed, a smaller one; and by restic, if it is installed. Figures are the time, the time
of the processors for each MB of the Data.fs, what is stored, and the peak memory.

Then the same change of a small and of a large Data.fs; and a running cluster: what a snapshot
of it takes, and what that costs its clients. If litestream is installed, it stores the database
of the storage, too.

Then a cluster is followed into a directory, with five commits a second: how long after a
commit it is in the repository, and what that costs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if c.size, err = parseSize(size); err != nil {
				return cli.Usagef("--size: %w", err)
			}
			return c.in(func() error { return c.snapshots(cmd.Context(), minio) })
		},
	}
	cmd.Flags().StringVar(&c.bin, "bin", "bin", "directory of the built programs")
	cmd.Flags().StringVar(&c.python, "python", "python3", "Python with ZODB")
	cmd.Flags().StringVar(&minio, "minio", "", "program of a MinIO server; default: not measured")
	cmd.Flags().StringVar(&size, "size", size, "size of the Data.fs")
	return cmd
}

// keeper is a way to keep backups of a Data.fs.
type keeper struct {
	name             string
	first, next, out func(ctx context.Context) *exec.Cmd
	restored         string                // file that out writes
	stored           func() (int64, error) // bytes
	size             int64                 // of the Data.fs; 0: as wanted
}

// spent is what a program needed.
type spent struct {
	elapsed, cpu time.Duration
	memory       int64 // bytes at the peak
}

// snapshots measures all ways, one after the other, on files of their own.
func (c *comparison) snapshots(ctx context.Context, minio string) error {
	data := filepath.Join(c.dir, "Data.fs")
	if err := generate(data, c.size, 1); err != nil {
		return err
	}
	floor, err := copyFile(data, data+".floor")
	if err != nil {
		return err
	}
	c.line("copy of the Data.fs and fsync on this disk", float64(c.size)/1e6/floor.Seconds(), "MB/s", 0)
	restored := filepath.Join(c.dir, "restored.fs")
	keepers := []func(string) (*keeper, error){
		func(dir string) (*keeper, error) {
			repo := filepath.Join(dir, "repository")
			k, err := c.neobackup(ctx, dir, "file://"+repo, "file://"+data, restored)
			if k != nil {
				k.stored = func() (int64, error) { return sizeOf(repo) }
			}
			return k, err
		},
		func(dir string) (*keeper, error) { return c.repozo(dir, data, restored), nil },
		func(dir string) (*keeper, error) { return c.restic(ctx, dir, data) },
	}
	if minio != "" {
		s, err := c.startMinIO(ctx, minio)
		if err != nil {
			return err
		}
		defer s.stop()
		keepers = append(keepers, func(dir string) (*keeper, error) {
			k, err := c.neobackup(ctx, dir, s.url, "file://"+data, restored)
			if k != nil {
				k.name, k.stored = "neobackup, MinIO", s.stored
			}
			return k, err
		})
	}
	fmt.Fprintf(c.out, "%-20s %-10s %9s %9s %10s %10s\n", "", "", "MB/s", "seconds", "CPU ms/MB", "peak MB")
	for i, make := range keepers {
		dir := filepath.Join(c.dir, fmt.Sprint("keeper", i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		k, err := make(dir)
		if err != nil {
			return err
		}
		if k == nil {
			continue
		}
		size := c.size
		if k.size != 0 {
			size = min(size, k.size)
		}
		if err := errors.Join(os.Remove(data), os.Remove(data+".index")); err != nil {
			return err
		}
		if err := generate(data, size, 1); err != nil {
			return err
		}
		if err := c.keep(ctx, k, data, size); err != nil {
			return err
		}
	}
	if err := os.Remove(data); err != nil {
		return err
	}
	for _, more := range []func(context.Context) error{c.increments, c.ofCluster, c.following} {
		if err := more(ctx); err != nil {
			return err
		}
	}
	return nil
}

const (
	followFor   = 30 * time.Second
	followPause = 200 * time.Millisecond // between two commits
)

func newFollowing(env *cli.Env) *cobra.Command {
	c := comparison{out: env.Stdout}
	interval, pause, during := time.Second, followPause, 10*time.Minute
	cmd := &cobra.Command{
		Use:   "following",
		Short: "Measure neobackup follow for long",
		Long: `Measure neobackup follow for long.

A cluster is followed into a directory while a client commits: how long after a commit it is in the
repository, how many objects that makes in a day, how much is stored for each new byte, and what it costs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			return c.in(func() error { return c.followFor(cmd.Context(), interval, pause, during) })
		},
	}
	cmd.Flags().StringVar(&c.bin, "bin", "bin", "directory of the built programs")
	cmd.Flags().DurationVar(&interval, "interval", interval, "between two looks at the source")
	cmd.Flags().DurationVar(&pause, "pause", pause, "between two commits")
	cmd.Flags().DurationVar(&during, "for", during, "how long")
	return cmd
}

// following measures for a moment.
func (c *comparison) following(ctx context.Context) error {
	return c.followFor(ctx, time.Second, followPause, followFor)
}

// followFor measures how long after a commit it is in a repository. Tails stay, so what was
// acknowledged when can be read afterwards.
func (c *comparison) followFor(ctx context.Context, interval, pause, during time.Duration) error {
	r, err := c.start(ctx, "followed", nil, 1)
	if err != nil {
		return err
	}
	defer r.stop()
	g, err := r.target(ctx)
	if err != nil {
		return err
	}
	dir := filepath.Join(c.dir, "followed")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	repo := filepath.Join(dir, "repository")
	k, err := c.neobackup(ctx, dir, "file://"+repo, "neo://followed@"+r.masters, "")
	if err != nil {
		return err
	}
	if err := quiet(k.first(ctx)); err != nil {
		return err
	}
	follow := k.first(ctx)
	follow.Args[1] = "follow"
	follow.Args = append(follow.Args, "--set", "interval="+interval.String())
	before, err := objectsOf(repo)
	if err != nil {
		return err
	}
	var complaints bytes.Buffer
	follow.Stderr = &complaints
	if err := follow.Start(); err != nil {
		return err
	}
	defer func() {
		follow.Process.Kill()
		follow.Wait()
	}()
	limited, cancel := context.WithTimeout(ctx, during)
	defer cancel()
	list, elapsed, err := g.commitFor(limited, 1, pause)
	if err != nil {
		return err
	}
	busy := cpuTime([]*exec.Cmd{follow})
	memory := peakMemory(follow.Process.Pid)
	var tails []tail
	for deadline := time.Now().Add(30*time.Second + interval); ; time.Sleep(100 * time.Millisecond) {
		if tails, err = tailsOf(repo); err != nil {
			return err
		}
		if n := len(tails); n > 0 && tails[n-1].upto >= list[len(list)-1].tid {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("neobackup follow does not reach the last transaction\n%s", complaints.String())
		}
	}
	after, err := objectsOf(repo)
	if err != nil {
		return err
	}
	lags := &figures{}
	i, used := 0, map[tid.TID]bool{}
	for _, t := range list {
		for tails[i].upto < t.tid {
			i++
		}
		used[tails[i].upto] = true
		lags.latencies = append(lags.latencies, max(0, tails[i].at.Sub(t.at)))
	}
	slices.Sort(lags.latencies)
	fmt.Fprintf(c.out, "follow, %.2f commits/s, interval %v: in the repository after %v (median), %v (longest); %.0f tails a minute; %.1f %% of a processor; peak %.0f MB\n",
		float64(len(list))/elapsed.Seconds(), interval, lags.quantile(.5).Round(time.Millisecond), lags.quantile(1).Round(time.Millisecond),
		float64(len(used))/elapsed.Minutes(), 100*busy.Seconds()/elapsed.Seconds(), float64(memory)/1e6)
	day := float64(24*time.Hour) / float64(elapsed)
	n, m, t := after.n-before.n, after.manifests-before.manifests, after.tails-before.tails
	fmt.Fprintf(c.out, "follow, %d commits in %v: %d objects (%.0f a day), of them %d tails and %d manifests (%.0f a day); %.2f times the bytes of the tails stored\n",
		len(list), elapsed.Round(time.Second), n, float64(n)*day, t, m, float64(m)*day, float64(after.size-before.size)/float64(max(1, after.tailSize-before.tailSize)))
	return nil
}

// stock is what a repository in a directory has.
type stock struct {
	n, tails, manifests int
	size, tailSize      int64
}

func objectsOf(repo string) (s stock, err error) {
	err = filepath.WalkDir(repo, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		s.n++
		s.size += info.Size()
		switch filepath.Base(filepath.Dir(path)) {
		case "t":
			s.tails++
			s.tailSize += info.Size()
		case "m":
			s.manifests++
		}
		return nil
	})
	return s, err
}

// tail is a step of the log of a repository: what it acknowledged, and when.
type tail struct {
	upto tid.TID
	at   time.Time
}

var uptoForm = regexp.MustCompile(`"upto":"([0-9a-f]{16})"`)

// tailsOf returns the tails in a directory, ascending.
func tailsOf(repo string) (list []tail, err error) {
	paths, err := filepath.Glob(filepath.Join(repo, "*", "t", "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		m := uptoForm.FindSubmatch(b)
		if m == nil {
			return nil, fmt.Errorf("%s is no tail", path)
		}
		upto, err := tid.Parse(string(m[1]))
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		list = append(list, tail{upto, info.ModTime()})
	}
	slices.SortFunc(list, func(a, b tail) int { return cmp.Compare(a.upto, b.upto) })
	return list, nil
}

// keep measures one way.
func (c *comparison) keep(ctx context.Context, k *keeper, data string, size int64) error {
	row := func(what string, size int64, s spent) { c.row(k.name, what, size, s) }
	s, err := c.spend(k.first(ctx))
	if err != nil {
		return err
	}
	row("first", size, s)
	first, err := k.stored()
	if err != nil {
		return err
	}
	grown, err := grow(data, size/100)
	if err != nil {
		return err
	}
	if s, err = c.spend(k.next(ctx)); err != nil {
		return err
	}
	row("1 % more", grown, s)
	second, err := k.stored()
	if err != nil {
		return err
	}
	if s, err = c.spend(k.out(ctx)); err != nil {
		return err
	}
	row("restore", size+grown, s)
	if err := equalFiles(data, k.restored); err != nil {
		return fmt.Errorf("%s: %w", k.name, err)
	}
	if err := os.Remove(k.restored); err != nil {
		return err
	}
	mb := float64(size) / 1e6
	fmt.Fprintf(c.out, "%-20s stored %.1f MB (%.2f of the Data.fs), then %.2f MB for %.2f MB\n", k.name, float64(first)/1e6, float64(first)/1e6/mb, float64(second-first)/1e6, float64(grown)/1e6)
	return nil
}

// spend runs a program.
func (c *comparison) spend(cmd *exec.Cmd) (s spent, err error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return s, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		s.memory = max(s.memory, peakMemory(cmd.Process.Pid))
		select {
		case err := <-done:
			if err != nil {
				return s, fmt.Errorf("%s: %w\n%s", cmd, err, out.String())
			}
			s.elapsed = time.Since(begun)
			s.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			return s, nil
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// neobackup makes a repository.
func (c *comparison) neobackup(ctx context.Context, dir, url, source, restored string) (*keeper, error) {
	identity := filepath.Join(dir, "identity.txt")
	program := filepath.Join(c.bin, "neobackup")
	recipient, err := exec.CommandContext(ctx, program, "key", "generate", identity).Output()
	if err != nil {
		return nil, fmt.Errorf("neobackup key generate: %w", err)
	}
	if len(url) > 7 && url[:7] == "file://" {
		if err := os.Mkdir(url[7:], 0o700); err != nil {
			return nil, err
		}
	}
	conf := filepath.Join(dir, "neobackup.conf")
	state := "state_dir=" + filepath.Join(dir, "state")
	run := func(ctx context.Context, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, program, append(args, "-q", "-f", conf, "--set", state)...)
	}
	if err := quiet(run(ctx, "init", url, "--name", "bench", "--source", source, "--recipient", string(bytes.TrimSpace(recipient)), "--single-recipient")); err != nil {
		return nil, err
	}
	snapshot := func(ctx context.Context) *exec.Cmd { return run(ctx, "snapshot") }
	return &keeper{
		name: "neobackup, directory", first: snapshot, next: snapshot, restored: restored,
		out: func(ctx context.Context) *exec.Cmd { return run(ctx, "restore", "--identity", identity, restored) },
	}, nil
}

// repozo is the tool of ZODB.
func (c *comparison) repozo(dir, data, restored string) *keeper {
	run := func(args ...string) func(context.Context) *exec.Cmd {
		return func(ctx context.Context) *exec.Cmd {
			return exec.CommandContext(ctx, c.python, append([]string{"-m", "ZODB.scripts.repozo", "-r", dir}, args...)...)
		}
	}
	return &keeper{
		name: "repozo -z", first: run("-B", "-F", "-z", "-f", data), next: run("-B", "-Q", "-z", "-f", data),
		out: run("-R", "-o", restored), restored: restored, size: 20e6, stored: func() (int64, error) { return sizeOf(dir) },
	}
}

// restic makes a repository of restic, nil if it is not installed.
func (c *comparison) restic(ctx context.Context, dir, data string) (*keeper, error) {
	program, err := exec.LookPath("restic")
	if err != nil {
		return nil, nil
	}
	repo := filepath.Join(dir, "repository")
	run := func(args ...string) func(context.Context) *exec.Cmd {
		return func(ctx context.Context) *exec.Cmd {
			cmd := exec.CommandContext(ctx, program, append([]string{"-q", "--no-cache", "-r", repo}, args...)...)
			cmd.Env = append(os.Environ(), "RESTIC_PASSWORD=bench")
			cmd.Dir = filepath.Dir(data)
			return cmd
		}
	}
	if err := quiet(run("init")(ctx)); err != nil {
		return nil, err
	}
	backup := run("backup", filepath.Base(data))
	out := filepath.Join(dir, "out")
	return &keeper{
		name: "restic", first: backup, next: backup, out: run("restore", "latest", "--target", out),
		restored: filepath.Join(out, filepath.Base(data)), stored: func() (int64, error) { return sizeOf(repo) },
	}, nil
}

// sizeOf returns how many bytes the files in a directory have.
func sizeOf(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		sum += info.Size()
		return err
	})
	return sum, err
}

// grow appends transactions of about size bytes to a Data.fs, and returns by how much it grew.
func grow(data string, size int64) (int64, error) {
	extra := data + ".more"
	if err := generate(extra, size, 2); err != nil {
		return 0, err
	}
	r, err := fsformat.Open(extra, fsformat.Options{})
	if err != nil {
		return 0, err
	}
	defer r.Close()
	info, err := os.Stat(data)
	if err != nil {
		return 0, err
	}
	w, err := fsformat.OpenAppend(context.Background(), data, fsformat.WriterOptions{NoSync: true})
	if err != nil {
		return 0, err
	}
	id := w.LastTID()
	for t, err := range r.Transactions(context.Background(), tid.Zero, tid.Max) {
		if err != nil {
			return 0, errors.Join(err, w.Close())
		}
		id++
		moved := *t
		moved.TID = id
		var records []txn.Record
		for rec, err := range t.Records {
			if err != nil {
				return 0, errors.Join(err, w.Close())
			}
			records = append(records, txn.Record{OID: rec.OID, TID: id, Data: bytes.Clone(rec.Data)})
		}
		moved.Records = txn.Slice(records)
		if err := w.Append(&moved); err != nil {
			return 0, errors.Join(err, w.Close())
		}
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	after, err := os.Stat(data)
	if err != nil {
		return 0, err
	}
	return after.Size() - info.Size(), os.Remove(extra)
}

// equalFiles returns an error unless two files have the same bytes.
func equalFiles(a, b string) error { return quiet(exec.Command("cmp", a, b)) }

// minioServer is a MinIO server with one bucket.
type minioServer struct {
	cmd *exec.Cmd
	dir string
	url string
	cl  *minio.Client
}

// startMinIO starts a server, and gives its credentials to all programs.
func (c *comparison) startMinIO(ctx context.Context, program string) (*minioServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	const user, secret = "benchbench", "benchbenchbench"
	s := &minioServer{dir: filepath.Join(c.dir, "minio"), url: "s3://bench/repository?endpoint=" + address + "&insecure=1"}
	s.cmd = exec.CommandContext(ctx, program, "server", "--quiet", "--address", address, s.dir)
	s.cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+user, "MINIO_ROOT_PASSWORD="+secret, "MINIO_BROWSER=off")
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if err := waitPort(ctx, address); err != nil {
		s.stop()
		return nil, err
	}
	if s.cl, err = minio.New(address, &minio.Options{Creds: credentials.NewStaticV4(user, secret, "")}); err != nil {
		s.stop()
		return nil, err
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if err = s.cl.MakeBucket(ctx, "bench", minio.MakeBucketOptions{}); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, errors.Join(os.Setenv("NEOBACKUP_S3_ACCESS_KEY", user), os.Setenv("NEOBACKUP_S3_SECRET_KEY", secret))
}

// address returns where the server listens.
func (s *minioServer) address() string { return s.cl.EndpointURL().Host }

// stored returns the sizes of all objects.
func (s *minioServer) stored() (sum int64, err error) {
	for o := range s.cl.ListObjects(context.Background(), "bench", minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			return 0, o.Err
		}
		sum += o.Size
	}
	return sum, nil
}

func (s *minioServer) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.cmd.Wait()
}
