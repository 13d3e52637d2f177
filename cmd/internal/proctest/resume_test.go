package proctest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// memoryLimit is what no program may need for a database of any size.
const memoryLimit = 200 << 20

// watchMemory follows the peak memory of programs until stop is called, and
// reports the ones that needed too much.
func watchMemory(t testing.TB, processes ...*Process) (stop func()) {
	t.Helper()
	end, ended := make(chan struct{}), make(chan struct{})
	peak := make([]int64, len(processes))
	go func() {
		defer close(ended)
		for {
			for i, p := range processes {
				if n, ok := p.peakMemory(); ok {
					peak[i] = max(peak[i], n)
				}
			}
			select {
			case <-end:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return func() {
		t.Helper()
		close(end)
		<-ended
		for i, p := range processes {
			t.Logf("%s needed at most %d MB", p.Name, peak[i]>>20)
			if peak[i] == 0 {
				t.Errorf("%s ended before its memory was looked at", p.Name)
			}
			if peak[i] > memoryLimit {
				t.Errorf("%s needed %d MB of memory, want at most %d", p.Name, peak[i]>>20, int64(memoryLimit)>>20)
			}
		}
	}
}

// ends waits for a program that has to succeed.
func ends(t testing.TB, p *Process, limit time.Duration) {
	t.Helper()
	if err := p.Wait(t, limit); err != nil {
		t.Fatalf("%s: %v\n%s", p.Name, err, p.Output())
	}
}

// lastTID is the last transaction that a cluster says it has.
func (c *Cluster) lastTID(t testing.TB) tid.TID {
	t.Helper()
	cl, err := Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	last, err := cl.LastTID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// A database that is larger than the memory allowed in all goes in and comes out.
func TestLargeDatabase(t *testing.T) {
	file := filepath.Join(t.TempDir(), "large.fs")
	must(t, "neobench", "generate", file, "--size", "100MB", "--seed", "7")
	c := StartCluster(t, Options{Storages: 2, Partitions: 12})
	in := Start(t, "neomigrate", "-q", "-c", c.Name, file, c.Masters)
	check := watchMemory(t, append(c.Nodes(), in)...)
	ends(t, in, runLimit)
	check()

	path := filepath.Join(t.TempDir(), "out.fs")
	out := Start(t, "neoexport", "-q", "--verify", "-c", c.Name, c.Masters, path)
	check = watchMemory(t, append(c.Nodes(), out)...)
	ends(t, out, runLimit)
	check()
	sameFiles(t, path, file)

	// Killed after the first 64 MiB were made durable, it goes on from there.
	again := filepath.Join(t.TempDir(), "again.fs")
	for n := 0; ; n++ {
		killed := Start(t, "neoexport", "-q", "-c", c.Name, c.Masters, again)
		for killed.Running() && size(again+".part") < 80<<20 {
			time.Sleep(time.Millisecond)
		}
		killed.Kill()
		if err := os.Remove(again); err != nil {
			break
		}
		if n == maxLate {
			t.Fatal("the export was complete each time before it was killed")
		}
	}
	stdout, _ := must(t, "neoexport", "-c", c.Name, c.Masters, again)
	says(t, "neoexport", stdout, `again\.fs has everything up to transaction [0-9a-f]{16} already`)
	sameFiles(t, again, file)
}

// maxLate is how many times a test is late that is to kill a copy before its end.
const maxLate = 20

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// Copies that are killed or stopped go on when they are run again, and what comes
// out is the same.
func TestInterruptedCopies(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "source.fs")
	must(t, "neobench", "generate", file, "--size", "30MB")
	c := StartCluster(t, Options{Storages: 2, Partitions: 6})
	interrupted := 0
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		before := c.lastTID(t)
		p := Start(t, "neomigrate", "-c", c.Name, file, c.Masters)
		// What commits first may have been under way from the one before.
		for p.Running() && (c.lastTID(t) == before || !strings.Contains(p.Output(), "Migrating")) {
			time.Sleep(5 * time.Millisecond)
		}
		p.end(sig)
		if err := p.Wait(t, patience); err != nil {
			interrupted++
			if sig == syscall.SIGTERM {
				says(t, "neomigrate", p.Output(), `interrupted`)
			}
		}
	}
	if interrupted < 2 {
		t.Errorf("only %d of 3 copies were interrupted", interrupted)
	}
	// A storage and the master that die meanwhile cost the copy no more than that.
	p := Start(t, "neomigrate", "-q", "-c", c.Name, file, c.Masters)
	before := c.lastTID(t)
	for p.Running() && c.lastTID(t) == before {
		time.Sleep(5 * time.Millisecond)
	}
	for _, victim := range []*Process{c.Storages[1], c.Master} {
		victim.Kill()
		if err := victim.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	p.Wait(t, runLimit) // it may have succeeded
	c.WaitState(t, "RUNNING", patience)
	// One of the last transactions may be missing then, and the copy does not go on: an
	// operator cuts off what follows.
	stdout, stderr, status := Run(t, "neomigrate", "-c", c.Name, file, c.Masters)
	if missing := regexp.MustCompile(`transaction ([0-9a-f]{16}): missing in the destination`).FindStringSubmatch(stderr); missing != nil {
		at, err := tid.Parse(missing[1])
		if err != nil {
			t.Fatal(err)
		}
		if _, errOut, code := c.Ctl(t, "truncate", "--yes", fmt.Sprintf("tid:%d", uint64(at-1))); code != 0 {
			t.Fatal(errOut)
		}
		c.WaitState(t, "RUNNING", patience)
		stdout, stderr, status = Run(t, "neomigrate", "-c", c.Name, file, c.Masters)
	}
	if status != 0 {
		t.Fatalf("neomigrate ends with %d: %s", status, stderr)
	}
	says(t, "neomigrate", stdout, `The cluster has everything up to transaction [0-9a-f]{16} already`)

	out := filepath.Join(t.TempDir(), "out.fs")
	late := 0
	for signals := []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}; len(signals) > 0; {
		before := size(out + ".part")
		p := Start(t, "neoexport", "-q", "-c", c.Name, c.Masters, out)
		for p.Running() && size(out+".part") < before+4<<20 {
			time.Sleep(time.Millisecond)
		}
		p.end(signals[0])
		if err := p.Wait(t, patience); err != nil {
			if size(out) != 0 {
				t.Fatalf("%s exists although the export was interrupted", out)
			}
			signals = signals[1:]
			continue
		}
		// It ended before the signal: all over again.
		if late++; late > maxLate {
			t.Fatalf("the export ended each time before signal %v", signals[0])
		}
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
		signals = []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}
	}
	stdout, _ = must(t, "neoexport", "-c", c.Name, c.Masters, out)
	says(t, "neoexport", stdout, `has everything up to transaction [0-9a-f]{16} already`)
	sameFiles(t, out, file)
	if entries, err := os.ReadDir(filepath.Dir(out)); err != nil || strings.Contains(names(entries), ".part") {
		t.Errorf("after the export there are %s %v", names(entries), err)
	}
}

func names(entries []os.DirEntry) string {
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}
