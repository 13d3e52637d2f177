package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeoclient"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

func newServing(env *cli.Env) *cobra.Command {
	c := comparison{out: env.Stdout}
	size, minio, segment := "100MB", "", "128MiB"
	delays := []time.Duration{0, 20 * time.Millisecond, 50 * time.Millisecond}
	cmd := &cobra.Command{
		Use:   "serving",
		Short: "Measure reading through neobackup serve, from an S3 server that is far away",
		Long: `Measure reading through neobackup serve, from an S3 server that is far away.

A Data.fs is stored on a MinIO server, which is reached through a proxy that adds a latency to each
answer and connection. Then it is served, first without and then with a local index: how long after the start of the process
a client has the object that was changed last the longest ago, with how many requests and bytes; then
what reading another object takes, and the peak memory.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if c.size, err = parseSize(size); err != nil {
				return cli.Usagef("--size: %w", err)
			}
			if minio == "" {
				return cli.Usagef("--minio is missing: the program of a MinIO server")
			}
			return c.in(func() error { return c.serving(cmd.Context(), minio, segment, delays) })
		},
	}
	cmd.Flags().StringVar(&c.bin, "bin", "bin", "directory of the built programs")
	cmd.Flags().StringVar(&minio, "minio", "", "program of a MinIO server")
	cmd.Flags().StringVar(&size, "size", size, "size of the Data.fs")
	cmd.Flags().StringVar(&segment, "segment-size", segment, "size of the sealed segments: small ones make a small repository look like a large one")
	cmd.Flags().DurationSliceVar(&delays, "delay", delays, "latencies to add")
	return cmd
}

func (c *comparison) serving(ctx context.Context, minio, segment string, delays []time.Duration) error {
	s, err := c.startMinIO(ctx, minio)
	if err != nil {
		return err
	}
	defer s.stop()
	data := filepath.Join(c.dir, "Data.fs")
	if err := generate(data, c.size, 1); err != nil {
		return err
	}
	oldest, others, err := leastChanged(ctx, data)
	if err != nil {
		return err
	}
	dir := filepath.Join(c.dir, "served")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	k, err := c.neobackup(ctx, dir, s.url, "file://"+data, "")
	if err != nil {
		return err
	}
	first := k.first(ctx)
	first.Args = append(first.Args, "--set", "segment_size="+segment)
	if err := quiet(first); err != nil {
		return err
	}
	stored, err := s.stored()
	if err != nil {
		return err
	}
	if err := os.Remove(data); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "Data.fs of %d MB, stored %.0f MB in segments of %s\n", c.size/1e6, float64(stored)/1e6, segment)
	fmt.Fprintf(c.out, "%-8s %-14s %12s %8s %6s %10s %14s %16s %8s\n", "delay", "", "first read", "GET", "LIST", "MB", "object", "GET/object most", "peak MB")
	for _, delay := range delays {
		p, err := startFar(s.address(), delay)
		if err != nil {
			return err
		}
		url := strings.Replace(s.url, s.address(), p.addr(), 1)
		state := filepath.Join(dir, "reader-"+delay.String())
		for _, what := range []string{"without index", "with index"} {
			r, err := c.readServed(ctx, dir, url, state, oldest, others, p)
			if err != nil {
				return errors.Join(err, p.close())
			}
			fmt.Fprintf(c.out, "%-8v %-14s %12v %8d %6d %10.2f %14v %16d %8.0f\n", delay, what, r.first.Round(time.Millisecond), r.gets, r.lists, float64(r.bytes)/1e6, r.object.Round(100*time.Microsecond), r.most, float64(r.memory)/1e6)
		}
		if err := p.close(); err != nil {
			return err
		}
	}
	return nil
}

// leastChanged returns the object of a Data.fs that was not changed for the longest time, and some others.
func leastChanged(ctx context.Context, data string) (oldest tid.OID, others []tid.OID, err error) {
	r, err := fsformat.Open(data, fsformat.Options{})
	if err != nil {
		return 0, nil, err
	}
	defer r.Close()
	last := map[tid.OID]tid.TID{} // of the first ones
	seen := tid.OID(0)
	rnd := rand.New(rand.NewPCG(1, 1))
	for t, err := range r.Transactions(ctx, tid.Zero, tid.Max) {
		if err != nil {
			return 0, nil, err
		}
		for rec, err := range t.Records {
			if err != nil {
				return 0, nil, err
			}
			if seen = max(seen, rec.OID); rec.OID < 100 {
				last[rec.OID] = t.TID
			}
		}
	}
	at := tid.Max
	for oid, t := range last {
		if t < at {
			oldest, at = oid, t
		}
	}
	for range 30 {
		others = append(others, tid.OID(rnd.Uint64N(uint64(seen)+1)))
	}
	return oldest, others, nil
}

// reads is what reading through a server took.
type reads struct {
	first       time.Duration // from the start of the process to the first object
	gets, lists int64         // until then
	bytes       int64         // received until then
	object      time.Duration // of another object, median
	most        int64         // requests for one object
	memory      int64
}

// readServed starts a server and reads.
func (c *comparison) readServed(ctx context.Context, dir, url, state string, oldest tid.OID, others []tid.OID, p *far) (r reads, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return r, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "neobackup"), "serve", "-q", "-f", filepath.Join(dir, "neobackup.conf"), "--identity", filepath.Join(dir, "identity.txt"),
		"--set", "url="+url, "--set", "state_dir="+state, "-b", addr)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	p.reset()
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return r, err
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, complaints.String())
		}
	}()
	limited, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var cl *zeoclient.Client
	for {
		if cl, err = zeoclient.Dial(limited, zeoclient.Config{Addr: addr}); err == nil {
			break
		}
		if limited.Err() != nil {
			return r, err
		}
		time.Sleep(5 * time.Millisecond)
	}
	defer cl.Close()
	if _, err := cl.LoadBefore(limited, oldest, tid.Max); err != nil {
		return r, err
	}
	r.first = time.Since(begun)
	r.gets, r.lists, r.bytes = p.gets.Load(), p.lists.Load(), p.received.Load()
	for quiet := 0; quiet < 10 && limited.Err() == nil; quiet++ { // the index is read ahead
		n := p.gets.Load() + p.received.Load()
		time.Sleep(100 * time.Millisecond)
		if p.gets.Load()+p.received.Load() != n {
			quiet = -1
		}
	}
	var took []time.Duration
	for _, oid := range others {
		before, start := p.gets.Load(), time.Now()
		if _, err := cl.LoadBefore(limited, oid, tid.Max); err != nil {
			return r, fmt.Errorf("object %v: %w", oid, err)
		}
		took = append(took, time.Since(start))
		r.most = max(r.most, p.gets.Load()-before)
	}
	slices.Sort(took)
	r.object = took[len(took)/2]
	r.memory = peakMemory(cmd.Process.Pid)
	return r, nil
}

// far is a proxy before a server, which makes it look far away.
type far struct {
	to                    string
	delay                 time.Duration // of a round trip
	l                     net.Listener
	wg                    sync.WaitGroup
	mu                    sync.Mutex
	conns                 map[net.Conn]bool // nil: closed
	gets, lists, received atomic.Int64
}

func startFar(to string, delay time.Duration) (*far, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &far{to: to, delay: delay, l: l, conns: map[net.Conn]bool{}}
	f.wg.Go(f.accept)
	return f, nil
}

func (f *far) addr() string { return f.l.Addr().String() }

func (f *far) reset() {
	f.gets.Store(0)
	f.lists.Store(0)
	f.received.Store(0)
}

func (f *far) close() error {
	err := f.l.Close()
	f.mu.Lock()
	for c := range f.conns {
		c.Close() // ends what copies
	}
	f.conns = nil
	f.mu.Unlock()
	f.wg.Wait()
	return err
}

// keep notes a connection, or closes it if the proxy is closed.
func (f *far) keep(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conns == nil {
		c.Close()
		return false
	}
	f.conns[c] = true
	return true
}

func (f *far) accept() {
	for {
		in, err := f.l.Accept()
		if err != nil {
			return
		}
		if !f.keep(in) {
			return
		}
		f.wg.Go(func() {
			time.Sleep(f.delay) // of the handshake
			out, err := net.Dial("tcp", f.to)
			if err != nil {
				in.Close()
				return
			}
			if !f.keep(out) {
				return
			}
			f.wg.Go(func() {
				f.pass(out, in, func(b []byte) {
					if bytes.HasPrefix(b, []byte("GET ")) {
						line, _, _ := bytes.Cut(b, []byte("\n"))
						if bytes.Contains(line, []byte("list-type=")) {
							f.lists.Add(1)
						} else {
							f.gets.Add(1)
						}
					}
				})
			})
			f.pass(in, out, func(b []byte) { f.received.Add(int64(len(b))) })
		})
	}
}

// pass copies with half of the delay, whatever the rate.
func (f *far) pass(to, from net.Conn, look func([]byte)) {
	type piece struct {
		b   []byte
		due time.Time
	}
	ahead := make(chan piece, 10_000)
	f.wg.Go(func() {
		defer to.Close()
		for p := range ahead {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.b); err != nil {
				from.Close()
				for range ahead {
				}
				return
			}
		}
	})
	defer close(ahead)
	for {
		b := make([]byte, 64<<10)
		n, err := from.Read(b)
		if n > 0 {
			look(b[:n])
			ahead <- piece{b[:n], time.Now().Add(f.delay / 2)}
		}
		if err != nil {
			if err != io.EOF {
				from.Close()
			}
			return
		}
	}
}
