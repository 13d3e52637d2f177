package proctest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// BenchmarkDoor lets clients that cost little load and commit through neozeo, with
// a master and a storage, and through the Python ZEO server over a FileStorage:
// where Python clients are what limits both, this shows the servers. server-µs/op is
// the processor time of all processes of a side.
func BenchmarkDoor(b *testing.B) {
	sides := []struct {
		name  string
		start func(b *testing.B) (addr string, pids []int)
	}{{"neo", startDoor}, {"python", startPythonZEO}}
	for _, clients := range []int{1, 4} {
		for _, side := range sides {
			b.Run(fmt.Sprintf("load/clients=%d/%s", clients, side.name), func(b *testing.B) {
				addr, pids := side.start(b)
				oids := commitSome(b, addr, 100)
				last := tid.Max - 1
				measureDoor(b, addr, pids, clients, func(c *zeotest.Client, r *rand.Rand) error {
					_, _, _, err := c.LoadBefore(oids[r.IntN(len(oids))], last)
					return err
				})
			})
			b.Run(fmt.Sprintf("commit/clients=%d/%s", clients, side.name), func(b *testing.B) {
				addr, pids := side.start(b)
				next := commitSome(b, addr, 1)[0] + 1<<20
				var mu sync.Mutex
				measureDoor(b, addr, pids, clients, func(c *zeotest.Client, r *rand.Rand) error {
					mu.Lock()
					first := next
					next += 10
					mu.Unlock()
					_, err := c.Commit(tenObjects(first, r)...)
					return err
				})
			})
		}
	}
}

// tenObjects are new objects of 2 kB.
func tenObjects(first tid.OID, r *rand.Rand) []zeotest.Store {
	stores := make([]zeotest.Store, 10)
	for i := range stores {
		data := []byte("\x80\x03cpersistent.mapping\nPersistentMapping\n.\x80\x03C\xff")
		for len(data) < 2000 {
			data = strconv.AppendUint(data, r.Uint64(), 36)
		}
		stores[i] = zeotest.Store{OID: first + tid.OID(i), Data: data}
	}
	return stores
}

// commitSome commits n transactions and returns the objects.
func commitSome(b *testing.B, addr string, n int) (oids []tid.OID) {
	b.Helper()
	c, err := zeotest.Register(addr, false)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	r := rand.New(rand.NewPCG(1, 1))
	for i := range n {
		stores := tenObjects(tid.OID(10*i), r)
		if _, err := c.Commit(stores...); err != nil {
			b.Fatal(err)
		}
		for _, s := range stores {
			oids = append(oids, s.OID)
		}
	}
	return oids
}

// measureDoor has clients do b.N operations together.
func measureDoor(b *testing.B, addr string, pids []int, clients int, op func(*zeotest.Client, *rand.Rand) error) {
	var wg sync.WaitGroup
	list := make([]*zeotest.Client, clients)
	for i := range list {
		c, err := zeotest.Register(addr, false)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		list[i] = c
	}
	before := zeotest.ProcessorTime(b, pids...)
	b.ResetTimer()
	for i, c := range list {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(i)))
			for n := i; n < b.N; n += clients {
				if err := op(c, r); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64((zeotest.ProcessorTime(b, pids...)-before).Microseconds())/float64(b.N), "server-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}

func startDoor(b *testing.B) (addr string, pids []int) {
	c := StartCluster(b, Options{})
	addr = fmt.Sprintf("127.0.0.1:%d", FreePort(b))
	door := Start(b, "neozeo", "-c", c.Name, "-m", c.Masters, "-b", addr)
	waitForPort(b, addr)
	return addr, []int{c.Master.Pid(), c.Storages[0].Pid(), door.Pid()}
}

func startPythonZEO(b *testing.B) (addr string, pids []int) {
	addr = fmt.Sprintf("127.0.0.1:%d", FreePort(b))
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, zeotest.Python(b), "-m", "ZEO.runzeo", "-a", addr, "-f", filepath.Join(b.TempDir(), "Data.fs"))
	if err := cmd.Start(); err != nil {
		cancel()
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
	})
	waitForPort(b, addr)
	return addr, []int{cmd.Process.Pid}
}

// waitForPort waits until a server accepts connections.
func waitForPort(b testing.TB, addr string) {
	b.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			nc.Close()
			return
		}
		if time.Now().After(deadline) {
			b.Fatal(err)
		}
	}
}
