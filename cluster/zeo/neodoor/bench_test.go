//go:build unix

package neodoor

import (
	"bufio"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// BenchmarkEndToEnd counts the allocations and the processor time of all that a load
// or a commit passes through: a ZEO client that costs nothing, the ZEO server, the
// client of the cluster, a storage and its SQLite database, over sockets. Nothing is
// in the cache.
func BenchmarkEndToEnd(b *testing.B) {
	records := map[string]func(r *rand.Rand) []byte{
		"compressed": func(r *rand.Rand) []byte {
			return []byte(strings.Repeat("an object ", 200) + string('a'+rune(r.IntN(26))))
		},
		"plain": func(r *rand.Rand) []byte {
			data := make([]byte, 2000)
			for i := range data {
				data[i] = byte(r.Uint32())
			}
			return data
		},
	}
	for _, kind := range []string{"compressed", "plain"} {
		addr, stop := benchDoor(b)
		z, err := zeotest.Register(addr, true)
		if err != nil {
			b.Fatal(err)
		}
		const objects = 2000
		rnd := rand.New(rand.NewPCG(1, 1))
		var base tid.TID
		for oid := tid.OID(0); oid < objects; oid += 100 {
			var stores []zeotest.Store
			for i := range tid.OID(100) {
				stores = append(stores, zeotest.Store{OID: oid + i, Data: records[kind](rnd)})
			}
			if base, err = z.Commit(stores...); err != nil {
				b.Fatal(err)
			}
		}
		var frames [][]byte
		for oid := range tid.OID(objects) {
			f := zeotest.Encode(true, zeotest.Tuple{1, false, "loadBefore", zeotest.Tuple{oid, base + 1}})
			frames = append(frames, append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...))
		}
		r := bufio.NewReader(z.Conn)
		i := 0
		b.Run("load/"+kind, func(b *testing.B) {
			b.ReportAllocs()
			defer reportCPU(b)()
			for b.Loop() {
				i = (i + 7919) % objects
				if _, err := z.Conn.Write(frames[i]); err != nil {
					b.Fatal(err)
				}
				head, err := r.Peek(4)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := r.Discard(4 + int(binary.BigEndian.Uint32(head))); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("commit/"+kind, func(b *testing.B) {
			data := records[kind](rnd)
			b.ReportAllocs()
			defer reportCPU(b)()
			for b.Loop() {
				if base, err = z.Commit(zeotest.Store{OID: objects - 1, Base: base, Data: data}); err != nil {
					b.Fatal(err)
				}
			}
		})
		z.Close()
		stop()
	}
}

// benchDoor serves a cluster of a master and a storage, without a cache.
func benchDoor(b *testing.B) (addr string, stop func()) {
	b.Helper()
	c, err := startCluster(b)
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s, err := Open(b.Context(), client.Config{Cluster: "test", Masters: c.masters, CacheSize: 1})
	if err != nil {
		b.Fatal(err)
	}
	server, err := zeo.New(b.Context(), zeo.Config{Storages: map[string]zeo.Storage{"1": s}})
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	return l.Addr().String(), func() {
		server.Close()
		if err := errors.Join(<-served, s.Close()); err != nil {
			b.Error(err)
		}
		c.Remove()
	}
}

// reportCPU returns a function that reports the processor time since.
func reportCPU(b *testing.B) func() {
	begin := cpuTime(b)
	return func() {
		b.ReportMetric(float64((cpuTime(b)-begin).Nanoseconds())/float64(b.N), "cpu-ns/op")
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
