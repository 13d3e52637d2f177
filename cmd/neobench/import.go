package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/nodelog"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/zeoclient"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/cmd/internal/ports"
	"github.com/neozodb/neo/fsformat"
	"github.com/spf13/cobra"
)

// importSize is the default length of the Data.fs that is imported.
const importSize = "40MB"

func newImport(env *cli.Env) *cobra.Command {
	c := comparison{out: env.Stdout}
	size := importSize
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Measure an import: until ready, first read, until all is copied and compared, reads beside it",
		Long: `Measure the import of a Data.fs that has an index.

It is imported by neosimple --import: until it is ready, until a ZEO client has its first
object, until everything is copied, and until everything is compared. neomigrate copies it
into a neosimple. Python's FileStorage copies it with copyTransactionsFrom and serves it by
ZEO, both run by --python; if --peer names an interpreter that can import neo, its Importer
imports it, from the start of its nodes until table trans has all transactions.

Then a ZEO client loads objects, which nothing caches, during an import whose rate is limited
so that it lasts, and after it. Whatever is loaded is compared with the Data.fs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if c.importSize, err = parseSize(size); err != nil {
				return cli.Usagef("--size: %w", err)
			}
			return c.in(func() error { return c.imports(cmd.Context(), "") })
		},
	}
	cmd.Flags().StringVar(&c.bin, "bin", "bin", "directory of the built programs")
	cmd.Flags().StringVar(&c.python, "python", "python3", "Python with ZODB and ZEO")
	cmd.Flags().StringVar(&c.neo, "peer", "", "Python that can also import neo; default: not compared with")
	cmd.Flags().StringVar(&size, "size", size, "size of the Data.fs")
	return cmd
}

// imports measures imports of a Data.fs of its own.
func (c *comparison) imports(ctx context.Context, _ string) error {
	dir := filepath.Join(c.dir, "import")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what is left goes with the whole
	data := filepath.Join(dir, "Data.fs")
	if err := generate(data, c.importSize, 1); err != nil {
		return err
	}
	if err := c.command(ctx, "neofs", "index", "--write", data); err != nil {
		return err
	}
	s, err := sampleOf(ctx, data, 2000)
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context, string, *sample) error{c.wholeImport, c.firstRead, c.readsBeside} {
		if err := step(ctx, data, s); err != nil {
			return err
		}
	}
	return nil
}

// wholeImport measures how long it takes to copy everything.
func (c *comparison) wholeImport(ctx context.Context, data string, s *sample) error {
	floor, err := copyFile(data, data+".floor")
	if err != nil {
		return err
	}
	rate := func(d time.Duration) float64 { return float64(s.size) / 1e6 / d.Seconds() }
	c.line("copy of the Data.fs and fsync on this disk", rate(floor), "MB/s", 0)
	copies, err := c.peer(ctx, c.python, "copy", data)
	if err != nil {
		return err
	}
	theirReady, theirCopied, err := c.theirImport(ctx, data, s)
	if err != nil {
		return err
	}

	log := data + ".log"
	begun := time.Now()
	n, err := c.simple(ctx, "--zeo", "none", "--dir", data+".imported", "--import", data, "--logfile", log)
	if err != nil {
		return err
	}
	ready := time.Since(begun)
	err = followImport(ctx, n.admin, nil)
	if err = errors.Join(err, n.stop()); err != nil {
		return err
	}
	copied, compared, err := importTimes(ctx, log, begun)
	if err != nil {
		return err
	}
	c.line("import, until ready (Python: Importer), low is good", ready.Seconds()*1e3, "ms", theirReady.Seconds()*1e3)
	c.line("import, until copied (Python: copyTransactionsFrom)", rate(copied), "MB/s", copies["copy_MB_s"])
	if c.neo != "" {
		c.line("import, until copied (Python: Importer)", rate(copied), "MB/s", rate(theirCopied))
	}
	c.line("import, until copied and compared", rate(compared), "MB/s", 0)

	if n, err = c.simple(ctx, "--zeo", "none", "--dir", data+".migrated"); err != nil {
		return err
	}
	begun = time.Now()
	err = c.command(ctx, "neomigrate", "-q", "-c", n.name, data, n.masters)
	migrated := time.Since(begun)
	if err = errors.Join(err, n.stop()); err != nil {
		return err
	}
	c.line("neomigrate (Python: copyTransactionsFrom)", rate(migrated), "MB/s", copies["copy_MB_s"])
	return nil
}

// comparing is in the log of a node when everything is copied; see also imported.
const comparing = "comparing the sources with the copy"

// importTimes returns how long after begun everything was copied, and compared, as the log
// of the node says.
func importTimes(ctx context.Context, log string, begun time.Time) (copied, compared time.Duration, err error) {
	for e, err := range nodelog.Read(ctx, log, begun) {
		if err != nil {
			return 0, 0, err
		}
		after := time.Duration((e.Date - float64(begun.UnixNano())/1e9) * float64(time.Second))
		switch {
		case strings.HasPrefix(e.Msg, comparing):
			copied = after
		case strings.HasPrefix(e.Msg, imported):
			compared = after
		}
	}
	if copied == 0 || compared == 0 {
		return 0, 0, fmt.Errorf("%s does not say when the import has come to its end", log)
	}
	return copied, compared, nil
}

// theirImport measures the Importer of the Python implementation from the start of its nodes:
// until the cluster runs, and until its table trans has all transactions.
func (c *comparison) theirImport(ctx context.Context, data string, s *sample) (ready, copied time.Duration, err error) {
	if c.neo == "" {
		return 0, 0, nil
	}
	dir := filepath.Dir(data)
	source, database, config := filepath.Join(dir, "py.fs"), filepath.Join(dir, "py.sqlite"), filepath.Join(dir, "importer.conf")
	for _, end := range []string{"", ".index"} { // it opens them for writing
		if _, err := copyFile(data+end, source+end); err != nil {
			return 0, 0, err
		}
	}
	text := fmt.Sprintf("[neo]\nadapter: SQLite\ndatabase: %s\n[root]\nstorage:\n  <filestorage>\n    path %s\n  </filestorage>\n", database, source)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	cl, err := c.startWith(ctx, dir, "pyimport", []string{c.neo}, 1, func(int) []string { return []string{"-a", "Importer", "-d", config} })
	if err != nil {
		return 0, 0, err
	}
	defer cl.stop()
	ready = time.Since(begun)
	_, err = c.peer(ctx, c.neo, "imported", database, fmt.Sprint(s.transactions))
	return ready, time.Since(begun), err
}

// firstRead measures from the start of a server to the first object that a ZEO client has.
func (c *comparison) firstRead(ctx context.Context, data string, s *sample) error {
	measure := func(program string, args func(address string) []string) (time.Duration, error) {
		port, err := ports.Free()
		if err != nil {
			return 0, err
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		cmd := exec.CommandContext(ctx, program, args(address)...)
		var complaints strings.Builder
		cmd.Stderr = &complaints
		begun := time.Now()
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		err = s.first(ctx, address)
		took := time.Since(begun)
		cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		cmd.Wait()                          // its status is of no interest
		if err != nil {
			return 0, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, complaints.String())
		}
		return took, nil
	}
	theirs, err := measure(c.python, func(address string) []string { return []string{"-m", "ZEO.runzeo", "-a", address, "-f", data} })
	if err != nil {
		return err
	}
	ours, err := measure(filepath.Join(c.bin, "neosimple"), func(address string) []string {
		return []string{"-q", "--zeo", address, "--dir", data + ".first", "--import", data}
	})
	if err != nil {
		return err
	}
	c.line("import, until first read (Python: ZEO), low is good", ours.Seconds()*1e3, "ms", theirs.Seconds()*1e3)
	return nil
}

// reading is how long a client reads, during an import and after it.
const reading = 5 * time.Second

// readsBeside measures a client that reads during an import, and after it.
func (c *comparison) readsBeside(ctx context.Context, data string, s *sample) (err error) {
	n, err := c.simple(ctx, "--zeo", "none", "--dir", data+".beside", "--import", data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	limit := max(1, s.size/int64(3*reading.Seconds())) // some is copied before it holds
	if err := n.limit(ctx, limit); err != nil {
		return err
	}
	port, err := ports.Free()
	if err != nil {
		return err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	door := exec.CommandContext(ctx, filepath.Join(c.bin, "neozeo"), "-c", n.name, "-m", n.masters, "-b", address, "--cache-size", "1")
	if err := door.Start(); err != nil {
		return err
	}
	defer func() {
		door.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		door.Wait()                          // its status is of no interest
	}()
	if err := waitPort(ctx, address); err != nil {
		return err
	}

	copying, copied := context.WithTimeout(ctx, reading)
	defer copied()
	var first, last progress
	var wg sync.WaitGroup
	var followErr error
	wg.Go(func() {
		followErr = followImport(ctx, n.admin, func(r importing.Report) {
			if r.State > importing.Copying {
				copied()
			}
			if copying.Err() != nil {
				return
			}
			last = progress{time.Now(), r.Position}
			if first.at.IsZero() {
				first = last
			}
		})
	})
	during, err := s.read(copying, ctx, address)
	copied()
	if limitErr := n.limit(ctx, 0); limitErr != nil {
		n.cmd.Process.Kill() // the import would last
		err = errors.Join(err, limitErr)
	}
	wg.Wait()
	if err = errors.Join(err, followErr); err != nil {
		return err
	}
	over, cancel := context.WithTimeout(ctx, reading)
	defer cancel()
	after, err := s.read(over, ctx, address)
	if err != nil {
		return err
	}

	floor, err := c.echoFloor(ctx, 1, 20000)
	if err != nil {
		return err
	}
	for _, f := range []*figures{floor, during, after} {
		switch f {
		case during:
			f.name = fmt.Sprintf("ZEO load, %.1f s of an import (Go)", f.elapsed.Seconds())
		case after:
			f.name = "ZEO load, after the import (Go)"
		}
		c.line(f.name+", median", float64(f.quantile(.5).Microseconds()), "µs", 0)
		c.line(f.name+", 99 %", float64(f.quantile(.99).Microseconds()), "µs", 0)
	}
	c.line(fmt.Sprintf("import meanwhile, limited to %.1f MB/s", float64(limit)/1e6), last.rateSince(first), "MB/s", 0)
	return nil
}

// progress is how far an import was at a time.
type progress struct {
	at       time.Time
	position int64
}

// rateSince returns MB/s, 0 if they are not known.
func (p progress) rateSince(first progress) float64 {
	if !p.at.After(first.at) {
		return 0
	}
	return float64(p.position-first.position) / 1e6 / p.at.Sub(first.at).Seconds()
}

// simpleNode is a neosimple that runs.
type simpleNode struct {
	cmd                  *exec.Cmd
	complaints           strings.Builder // to be read when it has ended
	name, masters, admin string
}

// simple starts a neosimple and waits until it is ready.
func (c *comparison) simple(ctx context.Context, args ...string) (*simpleNode, error) {
	n := &simpleNode{cmd: exec.CommandContext(ctx, filepath.Join(c.bin, "neosimple"), append([]string{"-q"}, args...)...)}
	n.cmd.Stderr = &n.complaints
	stdout, err := n.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err == nil {
		_, err = fmt.Sscanf(line, "ready name=%s masters=%s admin=%s", &n.name, &n.masters, &n.admin)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("neosimple does not get ready: %w", err), n.stop())
	}
	return n, nil
}

func (n *simpleNode) stop() error {
	n.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	if err := n.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(n.cmd.Args, " "), err, n.complaints.String())
	}
	return nil
}

// operate calls f with a link to an admin, again while that does not know of the import yet.
func operate(ctx context.Context, admin string, f func(*ctl.Client) error) error {
	addrs, err := conf.ParseMasters(admin)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		client, err := ctl.Dial(ctx, cli.WireAddresses(addrs)[0], link.Config{})
		if err != nil {
			return err
		}
		err = f(client)
		client.Close()
		if !errors.Is(err, ctl.ErrNoImport) || time.Now().After(deadline) {
			return err
		}
	}
}

// limit bounds the rate of the import in bytes per second; 0: not any more.
func (n *simpleNode) limit(ctx context.Context, rate int64) error {
	return operate(ctx, n.admin, func(c *ctl.Client) error {
		return c.OrderImport(ctx, importing.Order{Kind: importing.Limit, Rate: rate})
	})
}

// stalled is how long nothing may happen to an import.
const stalled = time.Minute

// followImport calls f, if it is not nil, with what the admin of a cluster reports of an
// import, until that has come to its end. An import without progress is an error.
func followImport(ctx context.Context, admin string, f func(importing.Report)) error {
	ctx, progress, stop := whileProgressing(ctx, stalled)
	defer stop()
	var last []ctl.Import
	err := operate(ctx, admin, func(c *ctl.Client) error {
		c.Followed = func(list []ctl.Import) {
			if !slices.Equal(list, last) {
				last = slices.Clone(list)
				progress()
			}
			for _, i := range list {
				if f != nil {
					f(i.Report)
				}
			}
		}
		list, err := c.FollowImports(ctx)
		if err != nil {
			return err
		}
		for _, i := range list {
			if i.State != importing.Done {
				return fmt.Errorf("the import is %v", &i.Report)
			}
		}
		return nil
	})
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// whileProgressing returns a context that ends when progress was not called for that long.
func whileProgressing(ctx context.Context, limit time.Duration) (limited context.Context, progress, stop func()) {
	limited, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(limit, func() { cancel(fmt.Errorf("the import makes no progress for %v", limit)) })
	return limited, func() { timer.Reset(limit) }, func() {
		timer.Stop()
		cancel(nil)
	}
}

// sample is what a Data.fs has: its length, and some objects with their current revisions.
type sample struct {
	size, transactions int64
	oids               []tid.OID
	revisions          []txn.Revision
}

// sampleOf takes n random objects, the same of the same file.
func sampleOf(ctx context.Context, data string, n int) (*sample, error) {
	r, err := fsformat.Open(data, fsformat.Options{})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if unusable, err := r.UseIndex(ctx, "", nil); err != nil || unusable != nil {
		return nil, errors.Join(err, unusable)
	}
	s := &sample{size: r.Size()}
	for _, err := range r.Scan(ctx, tid.Zero, tid.Max) {
		if err != nil {
			return nil, err
		}
		s.transactions++
	}
	all := r.Index().OIDs()
	for _, i := range rand.New(rand.NewPCG(1, 4)).Perm(len(all))[:min(n, len(all))] {
		rev, err := r.LoadBefore(ctx, all[i], tid.Max)
		if err != nil {
			return nil, err
		}
		s.oids, s.revisions = append(s.oids, all[i]), append(s.revisions, rev)
	}
	return s, nil
}

// check returns an error if an object that was loaded is not that of the Data.fs.
func (s *sample) check(i int, got txn.Revision) error {
	if want := s.revisions[i]; got.Serial != want.Serial || !bytes.Equal(got.Data, want.Data) {
		return fmt.Errorf("object %v: %d bytes of transaction %v were loaded, the Data.fs has %d of %v",
			s.oids[i], len(got.Data), got.Serial, len(want.Data), want.Serial)
	}
	return nil
}

// first loads an object from a ZEO server as soon as that answers.
func (s *sample) first(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		cl, err := zeoclient.Dial(ctx, zeoclient.Config{Addr: address})
		if err != nil && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		defer cl.Close()
		rev, err := cl.LoadBefore(ctx, s.oids[0], tid.Max)
		if err != nil {
			return err
		}
		return s.check(0, rev)
	}
}

// read measures a ZEO client that loads random objects until the first context ends; the
// second one is that of the loads.
func (s *sample) read(until, ctx context.Context, address string) (*figures, error) {
	cl, err := zeoclient.Dial(ctx, zeoclient.Config{Addr: address})
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	f := &figures{}
	r := rand.New(rand.NewPCG(1, 5))
	begun := time.Now()
	for until.Err() == nil {
		i := r.IntN(len(s.oids))
		start := time.Now()
		rev, err := cl.LoadBefore(ctx, s.oids[i], tid.Max)
		f.latencies = append(f.latencies, time.Since(start))
		if err != nil {
			return nil, err
		}
		if err := s.check(i, rev); err != nil {
			return nil, err
		}
	}
	f.ops, f.elapsed = len(f.latencies), time.Since(begun)
	return f, nil
}

// copyFile copies a file and makes the copy durable. It returns how long that took.
func copyFile(from, to string) (time.Duration, error) {
	begun := time.Now()
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	// As a program writes, and not by the file system alone, which may copy nothing.
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, make([]byte, 1<<20))
	if err == nil {
		err = out.Sync()
	}
	return time.Since(begun), errors.Join(err, out.Close())
}
