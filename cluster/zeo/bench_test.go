package zeo_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// With this variable the test binary is nothing but a server over a database in
// memory, whose processor time can be measured.
const benchServer = "NEO_ZEO_BENCH_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(benchServer) == "" {
		os.Exit(m.Run())
	}
	server, err := zeo.New(context.Background(), zeo.Config{Storages: map[string]zeo.Storage{"1": zeotest.NewMemory().Door()}})
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(l.Addr())
	log.Fatal(server.Serve(l))
}

// pythonServer is the same in Python, over its fastest storage.
const pythonServer = `
import asyncio, sys
from ZEO.StorageServer import StorageServer
from ZODB.MappingStorage import MappingStorage
s = StorageServer(('127.0.0.1', 0), {'1': MappingStorage()})
print('%s:%s' % tuple(s.addr[:2]) if isinstance(s.addr, tuple) and s.addr[1] else '%s:%s' % tuple(s.acceptor.addr[:2]), flush=True)
s.loop()
`

func startServer(b *testing.B, cmd *exec.Cmd) (addr string, pid int) {
	b.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		// Both end with a signal, which is an error to Wait.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line), cmd.Process.Pid
}

// loadFrames returns the calls that load objects 1 to n, one frame after another.
func loadFrames(msgpack bool, n int) []byte {
	var all []byte
	for oid := tid.OID(1); oid <= tid.OID(n); oid++ {
		b := zeotest.Encode(msgpack, zeotest.Tuple{zeotest.Tuple{oid, tid.Max}, false, "loadBefore", zeotest.Tuple{oid, tid.Max}})
		all = append(binary.BigEndian.AppendUint32(all, uint32(len(b))), b...)
	}
	return all
}

// skipFrames reads n frames.
func skipFrames(r *bufio.Reader, n int) error {
	for range n {
		head, err := r.Peek(4)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, r, 4+int64(binary.BigEndian.Uint32(head))); err != nil {
			return err
		}
	}
	return nil
}

const (
	benchObjects = 1000
	benchSize    = 1000
)

func fill(b *testing.B, addr string, msgpack bool) (*zeotest.Client, []zeotest.Store) {
	b.Helper()
	c, err := zeotest.Register(addr, msgpack)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	var stores []zeotest.Store
	for oid := range tid.OID(benchObjects + 1) {
		stores = append(stores, zeotest.Store{OID: oid, Data: bytes.Repeat([]byte("x"), benchSize)})
	}
	at, err := c.Commit(stores...)
	if err != nil {
		b.Fatal(err)
	}
	for i := range stores {
		stores[i].Base = at
	}
	return c, stores
}

// BenchmarkServer watches what a load, alone and prefetched, and a commit of one
// object of 1000 bytes cost the server, in processor time, beside the Python
// server.
func BenchmarkServer(b *testing.B) {
	for _, kind := range []string{"go", "go-msgpack", "python"} {
		msgpack := kind == "go-msgpack"
		start := func(b *testing.B) (string, int) {
			if kind == "python" {
				return startServer(b, exec.Command(zeotest.Python(b), "-c", pythonServer))
			}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), benchServer+"=1")
			return startServer(b, cmd)
		}
		measure := func(b *testing.B, pid int, run func()) {
			before := zeotest.ProcessorTime(b, pid)
			b.ResetTimer()
			run()
			b.StopTimer()
			b.ReportMetric(float64((zeotest.ProcessorTime(b, pid)-before).Microseconds())/float64(b.N), "server-µs/op")
		}
		b.Run("load/"+kind, func(b *testing.B) {
			addr, pid := start(b)
			c, _ := fill(b, addr, msgpack)
			frame := loadFrames(msgpack, 1)
			r := bufio.NewReader(c.Conn)
			measure(b, pid, func() {
				for range b.N {
					if _, err := c.Conn.Write(frame); err != nil {
						b.Fatal(err)
					}
					if err := skipFrames(r, 1); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
		b.Run("prefetch/"+kind, func(b *testing.B) {
			addr, pid := start(b)
			c, _ := fill(b, addr, msgpack)
			frames := loadFrames(msgpack, benchObjects)
			r := bufio.NewReaderSize(c.Conn, 64<<10)
			size := len(frames) / benchObjects
			measure(b, pid, func() {
				for left := b.N; left > 0; {
					n := min(left, 100)
					left -= n
					if _, err := c.Conn.Write(frames[:n*size]); err != nil {
						b.Fatal(err)
					}
					if err := skipFrames(r, n); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
		b.Run("commit/"+kind, func(b *testing.B) {
			addr, pid := start(b)
			c, stores := fill(b, addr, msgpack)
			measure(b, pid, func() {
				s := &stores[1]
				for range b.N {
					at, err := c.Commit(*s)
					if err != nil {
						b.Fatal(err)
					}
					s.Base = at
				}
			})
		})
	}
}
