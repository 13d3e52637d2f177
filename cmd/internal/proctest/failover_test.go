package proctest

import (
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var failoverRounds = flag.Int("failover-rounds", 5, "primary masters killed by TestFailover")

// masters starts a cluster with three masters and two storages that replicate each
// other. The masters are returned in the order of their addresses.
func startMasters(t testing.TB, partitions int, extra ...string) (c *Cluster, masters []*Process) {
	t.Helper()
	c = &Cluster{Name: "test", Dir: t.TempDir(), Admin: fmt.Sprintf("127.0.0.1:%d", FreePort(t))}
	var addrs []string
	for range 3 {
		addrs = append(addrs, fmt.Sprintf("127.0.0.1:%d", FreePort(t)))
	}
	slices.Sort(addrs)
	c.Masters = strings.Join(addrs, " ")
	with := func(args ...string) []string {
		return slices.Concat([]string{"-c", c.Name, "-m", c.Masters}, extra, args)
	}
	for _, a := range addrs {
		masters = append(masters, Start(t, "neomaster", with("-b", a, "-A", "2", "-p", fmt.Sprint(partitions), "-r", "1")...))
	}
	for i := range 2 {
		c.Storages = append(c.Storages, Start(t, "neostorage", with("-a", "SQLite", "-d", filepath.Join(c.Dir, fmt.Sprintf("s%d.sqlite", i+1)))...))
	}
	c.AdminP = Start(t, "neoadmin", with("-b", c.Admin)...)
	c.WaitState(t, "RUNNING", patience)
	return c, masters
}

// primary returns the address of the primary master.
func (c *Cluster) primary(t testing.TB) string {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		out, _, _ := c.Ctl(t, "print", "node")
		for line := range strings.Lines(out) {
			if f := strings.Split(line, " | "); len(f) == 5 && strings.TrimSpace(f[1]) == "MASTER" && strings.TrimSpace(f[3]) == "RUNNING" && strings.TrimSpace(f[4]) == "None" {
				return strings.TrimSpace(f[2])
			}
		}
	}
	out, errOut, _ := c.Ctl(t, "print", "node")
	t.Fatalf("no primary master:\n%s%s", out, errOut)
	return ""
}

// wait waits until n more transactions have been acknowledged.
func (w *workload) wait(t testing.TB, n int, limit time.Duration, when string) {
	t.Helper()
	before := w.acknowledged()
	for deadline := time.Now().Add(limit); w.acknowledged() < before+n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no commit within %v %s", limit, when)
		}
	}
}

// The primary master is killed again and again while a client commits, and another
// one takes over.
func TestFailover(t *testing.T) {
	c, masters := startMasters(t, 4)
	w := startWorkload(t, c, 1)
	var times []time.Duration
	for range *failoverRounds {
		w.wait(t, 10, patience, "before the kill")
		time.Sleep(2500 * time.Millisecond) // all have settled
		addr := c.primary(t)
		i := slices.IndexFunc(masters, func(p *Process) bool { return slices.Contains(p.args, addr) })
		if i < 0 {
			t.Fatalf("%s is none of %s", addr, c.Masters)
		}
		w.longestPause()
		start := time.Now()
		masters[i].Kill()
		w.wait(t, 1, patience, "after the primary was killed")
		times = append(times, time.Since(start))
		w.wait(t, 10, patience, "later")
		if err := masters[i].Restart(); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(times)
	t.Logf("from the death of the primary to the next commit: median %v, all %v", times[len(times)/2].Round(time.Millisecond), times)
	wantRunning(t, append(masters, c.Storages...))
}
