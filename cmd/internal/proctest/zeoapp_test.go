package proctest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

var appMinutes = flag.Float64("app-minutes", 40./60, "how long processes are killed under the application of TestZEOApplication")

// appLog is what the workers of an application said.
type appLog struct {
	mu            sync.Mutex
	acknowledged  map[string]bool
	unknown       map[string]bool
	bad           []string
	retries, ends int
}

func (l *appLog) read(r io.Reader) {
	for in := bufio.NewScanner(r); in.Scan(); {
		l.line(in.Text())
	}
}

func (l *appLog) line(text string) {
	word, rest, _ := strings.Cut(text, " ")
	l.mu.Lock()
	defer l.mu.Unlock()
	switch word {
	case "begin":
	case "ok":
		l.acknowledged[rest] = true
	case "unknown":
		l.unknown[rest] = true
	case "retries":
		var n int
		if _, err := fmt.Sscan(rest, &n); err != nil {
			l.bad = append(l.bad, text)
		}
		l.retries += n
		l.ends++
	default:
		l.bad = append(l.bad, text)
	}
}

func (l *appLog) commits() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acknowledged)
}

// appContent is what is in the database at the end.
type appContent struct {
	Length int      `json:"length"`
	Keys   []string `json:"keys"`
	Stale  []string `json:"stale"` // loads of workers that gave something else than was current
}

// An application in Python works through two neozeo while these, the storages and
// the master are killed. It sees its own commits; at the end what was acknowledged
// is there, once, and its BTrees are sound.
func TestZEOApplication(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-crash-seed=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	script, err := filepath.Abs("testdata/zeoapp.py")
	if err != nil {
		t.Fatal(err)
	}
	interpreter := zeotest.Python(t)
	c := StartCluster(t, Options{Storages: 2, Partitions: 6})
	var doors []*Process
	var addrs []string
	for i := range 2 {
		addr := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
		args := []string{"-c", c.Name, "-m", c.Masters, "-b", addr}
		if i == 1 {
			args = append(args, "--msgpack")
		}
		doors = append(doors, Start(t, "neozeo", args...))
		addrs = append(addrs, addr)
	}
	loads := t.TempDir()
	command := func(ctx context.Context, args ...string) *exec.Cmd {
		cmd := zeotest.Command(ctx, t, interpreter, append([]string{script}, args...)...)
		cmd.Env = append(cmd.Env, "LOADS="+loads)
		return cmd
	}
	short, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	if out, err := command(short, append([]string{"setup"}, addrs...)...).CombinedOutput(); err != nil {
		t.Fatalf("setup: %v\n%s", err, out)
	}

	log := &appLog{acknowledged: map[string]bool{}, unknown: map[string]bool{}}
	const workers = 4
	working, abort := context.WithCancel(t.Context())
	defer abort()
	var stdins []io.Closer
	var ends sync.WaitGroup
	for w := range workers {
		cache := ""
		if w%2 == 1 {
			cache = t.TempDir()
		}
		prefer := []string{addrs[w/2], addrs[1-w/2]}
		cmd := command(working, append([]string{"work", fmt.Sprintf("w%d", w), cache}, prefer...)...)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stdins = append(stdins, stdin)
		ends.Go(func() {
			log.read(stdout)
			if err := cmd.Wait(); err != nil {
				t.Errorf("worker %d: %v", w, err)
			}
			if t.Failed() || *appMinutes > 1 {
				t.Logf("worker %d wrote:\n%s", w, tail(stderr.String(), 8000))
			}
		})
	}
	stop := sync.OnceFunc(func() {
		for _, c := range stdins {
			c.Close() // ends the worker
		}
		stuck := time.AfterFunc(runLimit, func() {
			t.Error("a worker does not end")
			abort()
		})
		ends.Wait()
		stuck.Stop()
	})
	defer stop()

	victims := append([]*Process{c.Master}, append(doors, c.Storages...)...)
	kills := map[string]int{}
	longest := time.Duration(0)
	progress := func(what string) {
		t.Helper()
		before, since := log.commits(), time.Now()
		for log.commits() < before+3 {
			if time.Since(since) > patience {
				out, errOut, _ := c.Ctl(t, "print", "node")
				t.Fatalf("nothing is committed any more after %s\n%s%s", what, out, errOut)
			}
			time.Sleep(10 * time.Millisecond)
		}
		longest = max(longest, time.Since(since))
	}
	progress("the start")
	for until := time.Now().Add(time.Duration(*appMinutes * float64(time.Minute))); time.Now().Before(until); {
		time.Sleep(time.Duration(rnd.IntN(2000)) * time.Millisecond)
		wantRunning(t, victims)
		victim := victims[rnd.IntN(len(victims))]
		victim.Kill()
		kills[victim.Name]++
		time.Sleep(time.Duration(rnd.IntN(500)) * time.Millisecond)
		if err := victim.Restart(); err != nil {
			t.Fatal(err)
		}
		progress(victim.Name + " was killed")
	}
	stop()
	wantRunning(t, victims)
	log.check(t, workers)
	for _, addr := range addrs {
		checking, cancel := context.WithTimeout(t.Context(), runLimit+time.Duration(*appMinutes*float64(time.Minute)))
		defer cancel()
		cmd := command(checking, "check", addr)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("check: %v\n%s", err, stderr.String())
		}
		var got appContent
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		log.compare(t, &got)
		loads = t.TempDir() // compared once
		for _, s := range got.Stale[:min(len(got.Stale), 20)] {
			t.Error("stale load by worker ", s)
		}
	}
	t.Logf("killed %v; %d transactions acknowledged, %d with unknown outcome, %d retries; longest time to 3 commits %v",
		kills, len(log.acknowledged), len(log.unknown), log.retries, longest.Round(time.Millisecond))
}

// check wants an orderly end of all workers without complaints.
func (l *appLog) check(t *testing.T, workers int) {
	t.Helper()
	if l.ends != workers {
		t.Errorf("%d workers came to their end, not %d", l.ends, workers)
	}
	for i, b := range l.bad {
		if i == 20 {
			t.Errorf("and %d more", len(l.bad)-i)
			break
		}
		t.Error(b)
	}
}

// compare wants what was acknowledged and, beside it, only what may be there.
func (l *appLog) compare(t *testing.T, got *appContent) {
	t.Helper()
	there, found := map[string]bool{}, 0
	for _, k := range got.Keys {
		if there[k] {
			t.Errorf("%s is in the tree twice", k)
		}
		there[k] = true
		switch {
		case l.unknown[k]:
			found++
		case !l.acknowledged[k]:
			t.Errorf("%s is in the tree, although its commit failed", k)
		}
	}
	for k := range l.acknowledged {
		if !there[k] {
			t.Errorf("%s was acknowledged but is not in the tree", k)
		}
	}
	if want := len(l.acknowledged) + found; got.Length != want {
		t.Errorf("the length is %d; %d transactions were acknowledged and %d of unknown outcome are there", got.Length, len(l.acknowledged), found)
	}
}
