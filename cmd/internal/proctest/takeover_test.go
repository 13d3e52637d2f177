package proctest

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/storage/mysqldb/mysqltest"
)

var (
	peer      = flag.String("peer", "", "TestTakeOver: a Python that can import neo, and for MariaDB MySQLdb")
	takeOvers = flag.Int("take-overs", 6, "how many times TestTakeOver kills and takes over, of each kind")
)

// A database is taken over, from the Python implementation and back, after all nodes were killed in the middle of
// commits, and of packs. It takes the Python implementation, so it is run by hand.
func TestTakeOver(t *testing.T) {
	if *peer == "" {
		t.Skip("-peer names no Python that can import neo")
	}
	for _, engine := range []string{"SQLite", "InnoDB", "RocksDB"} {
		t.Run(engine, func(t *testing.T) {
			c := &Cluster{Name: "test", Dir: t.TempDir(), Masters: fmt.Sprintf("127.0.0.1:%d", FreePort(t)), Admin: fmt.Sprintf("127.0.0.1:%d", FreePort(t))}
			database := []string{"-a", "SQLite", "-d", filepath.Join(c.Dir, "s1.sqlite")}
			if engine != "SQLite" {
				s := mysqltest.New(t, "", durable...)
				database = []string{"-a", "MySQL", "-d", s.String(s.Database(t)), "-e", engine, "-w", "10"}
			}
			var nodes []*Process
			run := func(python bool) {
				t.Helper()
				nodes = nil
				for _, n := range []struct {
					program string
					args    []string
				}{
					{"neomaster", []string{"-b", c.Masters, "-A", "1", "-p", "4"}},
					{"neostorage", database},
					{"neoadmin", []string{"-b", c.Admin}},
				} {
					args := append([]string{"-c", c.Name, "-m", c.Masters}, n.args...)
					path := Bin(t, n.program)
					if python {
						path, args = *peer, append([]string{"-c", "from neo.scripts." + n.program + " import main; main()"}, args...)
					}
					nodes = append(nodes, start(t, n.program, path, args))
				}
				c.WaitState(t, "RUNNING", patience)
			}
			kill := func() {
				for _, p := range nodes {
					p.Kill()
				}
			}
			rnd := rand.New(rand.NewPCG(1, 1))
			var all clustertest.Observed
			for n := range *takeOvers {
				python := n%2 == 0
				run(python)
				if n > 0 {
					db := c.verify(t, all)
					t.Logf("taken over by Python %v: %d transactions were acknowledged or attempted, %d are there", python, len(all.Attempts), len(db))
				}
				w := startMarked(t, c, 3, fmt.Sprintf("a%d.", n))
				time.Sleep(time.Second + time.Duration(rnd.IntN(1000))*time.Millisecond)
				kill()
				seen := w.stop()
				all.Attempts = slices.Concat(all.Attempts, seen.Attempts)
			}
			for n := range *takeOvers {
				python := n%2 == 0
				run(python)
				c.verifyPacked(t, all)
				w := startMarked(t, c, 1, fmt.Sprintf("b%d.", n))
				cl, err := Connect(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				last, err := cl.LastTID(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				order, err := cl.Pack(ctx, last)
				if err != nil {
					t.Fatal(err)
				}
				if n == *takeOvers-1 {
					if err := cl.WaitForPack(ctx, order); err != nil { // and with it those that were killed
						t.Fatal(err)
					}
				} else {
					time.Sleep(time.Duration(rnd.IntN(60)) * time.Millisecond)
				}
				kill()
				cancel()
				cl.Close()
				seen := w.stop()
				all.Attempts = slices.Concat(all.Attempts, seen.Attempts)
			}
			run(false)
			c.verifyPacked(t, all)
			for _, p := range nodes {
				if err := p.Stop(t); err != nil {
					t.Errorf("%s: %v", p.Name, err)
				}
			}
		})
	}
}
