package proctest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/tid"
)

// A cluster that is told to stop ends with status 0 everywhere, comes back by
// itself once its programs run again, and has all its data. So it does when each
// program is stopped by itself, in any order.
func TestOrderlyStop(t *testing.T) {
	t.Parallel()
	file := filepath.Join(samples, "site.fs")
	c := StartCluster(t, Options{Storages: 2, Partitions: 6})
	c.migrate(t, file)
	restart := func() {
		t.Helper()
		for _, p := range c.Nodes() {
			if err := p.Wait(t, patience); err != nil {
				t.Errorf("%s ended with %v", p.Name, err)
			}
			if err := p.Restart(); err != nil {
				t.Fatal(err)
			}
		}
		c.WaitState(t, "RUNNING", patience)
		c.alive(t, file)
	}
	out, errOut, status := c.Ctl(t, "set", "cluster", "STOPPING")
	if out != "Cluster state changed\n" || errOut != "" || status != 0 {
		t.Errorf("set cluster STOPPING: %q %q, exit status %d", out, errOut, status)
	}
	restart()
	for _, p := range []*Process{c.Master, c.Storages[0], c.AdminP, c.Storages[1]} {
		p.end(syscall.SIGTERM)
	}
	restart()
	for _, p := range []*Process{c.Storages[1], c.AdminP, c.Storages[0], c.Master} {
		if err := p.Stop(t); err != nil {
			t.Errorf("%s stopped by SIGTERM: %v", p.Name, err)
		}
	}
	restart()
	for _, p := range c.Nodes() {
		p.end(syscall.SIGINT)
	}
	restart()
	for _, p := range c.Nodes() {
		says(t, p.Name, p.Output())
	}
}

// What waits for a master is stopped in order as well.
func TestStopWithoutMaster(t *testing.T) {
	t.Parallel()
	common := []string{"-c", "test", "-m", fmt.Sprintf("127.0.0.1:%d", FreePort(t)), "-b", "127.0.0.1:0"}
	for program, more := range map[string][]string{
		"neostorage": {"-a", "SQLite", "-d", filepath.Join(t.TempDir(), "s.sqlite")},
		"neoadmin":   nil,
		"neozeo":     nil,
	} {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			p := Start(t, program, append(more, common...)...)
			for deadline := time.Now().Add(patience); !strings.Contains(p.Output(), "no primary master"); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s does not look for a master", program)
				}
			}
			p.end(sig)
			if err := p.Wait(t, patience); err != nil || strings.Contains(p.Output(), "interrupted") {
				t.Errorf("%s stopped by %v: %v\n%s", program, sig, err, p.Output())
			}
		}
	}
}

// What a client had been told when the cluster is stopped under it is there.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Options{Storages: 2, Replicas: 1})
	cl, err := Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var seen clustertest.Observed
	var back atomic.Bool // the cluster was restarted: one more and enough
	done := make(chan struct{})
	go func() {
		defer close(done)
		own, base, last := tid.OID(0), tid.Zero, tid.Zero
		for n := 0; t.Context().Err() == nil; n++ {
			enough := back.Load()
			a := clustertest.Attempt{Mark: fmt.Sprint("transaction ", n), After: last}
			commit(t.Context(), cl, &a, &own, &base)
			seen.Attempts = append(seen.Attempts, a)
			if a.Outcome == clustertest.Committed {
				last = a.TID
				if enough {
					return
				}
			}
		}
	}()
	time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
	if _, errOut, status := c.Ctl(t, "set", "cluster", "stopping"); status != 0 {
		t.Errorf("set cluster stopping: %s, exit status %d", errOut, status)
	}
	for _, p := range c.Nodes() {
		if err := p.Wait(t, patience); err != nil {
			t.Errorf("%s ended with %v", p.Name, err)
		}
	}
	for _, p := range c.Nodes() {
		if err := p.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	c.WaitState(t, "RUNNING", patience)
	back.Store(true)
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the client does not come back")
	}
	db, err := clustertest.Dump(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range clustertest.Verify(seen, db) {
		t.Error(err)
	}
	if len(db) == 0 {
		t.Error("nothing was committed")
	}
}

var ready = regexp.MustCompile(`(?m)^ready name=(\S+) masters=(\S+) admin=(\S+)(?: zeo=\S+)?$`)

// waitReady waits for the nth line of neosimple that says where its cluster is.
func waitReady(t testing.TB, p *Process, nth int) *Cluster {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if all := ready.FindAllStringSubmatch(p.Output(), -1); len(all) >= nth {
			m := all[nth-1]
			return &Cluster{Name: m[1], Masters: m[2], Admin: m[3], Master: p, AdminP: p}
		}
		if !p.Running() {
			break
		}
	}
	t.Fatalf("neosimple is not ready:\n%s", p.Output())
	return nil
}

// The cluster in one process keeps what it has in its directory, which is its own.
func TestSimple(t *testing.T) {
	t.Parallel()
	dir, file := filepath.Join(t.TempDir(), "shop"), filepath.Join(samples, "site.fs")
	p := Start(t, "neosimple", "--dir", dir, "--name", "shop", "--import", file, "--storages", "2", "--partitions", "6")
	c := waitReady(t, p, 1)
	if c.Name != "shop" {
		t.Errorf("the cluster is called %s", c.Name)
	}
	c.alive(t, file)
	says(t, "neosimple", p.Output(), `It has 334 transactions with 2142 records from`, `Ctrl-C stops it`)
	if out, _, _ := c.Ctl(t, "print", "cluster"); out != "RUNNING\n" {
		t.Errorf("neoctl print cluster: %q", out)
	}
	refused(t, 1, []string{`^error: `, regexp.QuoteMeta(dir), `(?i)use|locked`}, "neosimple", "-q", "--dir", dir)
	c.alive(t, file)

	for nth, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL} {
		p.end(sig)
		if err := p.Wait(t, patience); err != nil && sig != syscall.SIGKILL {
			t.Errorf("neosimple stopped by %v: %v", sig, err)
		}
		if err := p.Restart(); err != nil {
			t.Fatal(err)
		}
		c = waitReady(t, p, nth+2)
		c.alive(t, file)
	}
	says(t, "neosimple", p.Output(), `It already has everything that is in`)
	if err := p.Stop(t); err != nil {
		t.Error(err)
	}
	refused(t, 1, []string{`02-undo\.fs`, `already has data that are not from this file`}, "neosimple", "-q", "--dir", dir, "--import", filepath.Join(samples, "02-undo.fs"))
	refused(t, 1, []string{`no\.fs: no such file`}, "neosimple", "-q", "--dir", dir, "--import", "/no.fs")
}

// Without --dir nothing is left behind.
func TestSimpleTemporary(t *testing.T) {
	tmp := t.TempDir()
	Bin(t, "neosimple") // not built in there
	t.Setenv("TMPDIR", tmp)
	p := Start(t, "neosimple", "-q")
	waitReady(t, p, 1)
	if entries, err := os.ReadDir(tmp); err != nil || len(entries) != 1 {
		t.Errorf("while it runs there are %s %v", names(entries), err)
	}
	if err := p.Stop(t); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(tmp); err != nil || len(entries) != 0 {
		t.Errorf("it left %s %v", names(entries), err)
	}
}
