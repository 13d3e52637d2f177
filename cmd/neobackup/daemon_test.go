package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/daemon"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// add adds lines to the configuration of a world.
func (w *world) add(lines string) {
	w.t.Helper()
	w.write("neobackup.conf", w.read("neobackup.conf")+lines, 0o600)
}

// printed is what was printed up to now.
type printed struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.Write(b)
}

func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.String()
}

// runUntil runs neobackup until it is done, going by what it has printed or by what it has done, and
// returns what it prints and its exit code.
func (w *world) runUntil(done func(output string) bool, args ...string) (output string, code int) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	var out printed
	env := &cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out, Getenv: func(k string) string { return w.env[k] }}
	end := make(chan int, 1)
	go func() { end <- cli.Run(ctx, env, newCommand) }()
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		select {
		case code := <-end:
			return out.String(), code
		default:
		}
		if done(out.String()) || time.Now().After(deadline) {
			cancel()
			code := <-end
			return out.String(), code
		}
	}
}

// stateFile returns where the daemon notes what it does.
func (w *world) stateFile() string {
	w.t.Helper()
	dirs, err := filepath.Glob(w.path("state/neobackup/*"))
	if err != nil || len(dirs) != 1 {
		w.t.Fatalf("state directories %q, %v", dirs, err)
	}
	return filepath.Join(dirs[0], "daemon.json")
}

// status returns what the daemon has noted.
func (w *world) status() *daemon.Status {
	s, err := daemon.ReadStatus(w.stateFile())
	if err != nil {
		return &daemon.Status{}
	}
	return s
}

// A configuration that asks for nothing, or cannot be carried out, is refused at the start.
func TestDaemonRefused(t *testing.T) {
	w := newWorld(t)
	_, stderr := w.want(2, "daemon", "-r", "file:///x")
	w.says(stderr, `the daemon needs a configuration file`)
	w.prepare("site.fs")
	_, stderr = w.want(2, "daemon")
	w.says(stderr, `neobackup.conf: there is nothing to do: write a \[schedule NAME\] with follow: yes`)
	w.add("max_rpo: 30s\n")
	_, stderr = w.want(2, "daemon", "-r", "other")
	w.says(stderr, `there is no \[repository other\]`)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.add("[metrics]\nlisten: " + l.Addr().String() + "\n")
	_, stderr = w.want(1, "daemon")
	w.says(stderr, `\[metrics\] listen: .*address already in use`)
}

// A source that nothing can be done about ends a daemon with nothing else to do, with the exit status of follow.
func TestDaemonFenced(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.add("[schedule prod]\nfollow: yes\n")
	w.write("Data.fs", w.read("Data.fs")[:4], 0o600)
	out, code := w.runUntil(func(string) bool { return w.status().Repository != "" && len(w.keys(`/t/`)) > 0 }, "daemon", "--set", "heartbeat=1s")
	if code != 1 && code != 0 { // ended by the test
		t.Fatalf("exit code %d\n%s", code, out)
	}
	w.want(0, "snapshot", "--set", "state_dir="+w.path("other"))
	if err := os.Chmod(w.path("prod-writer.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, code = w.runUntil(func(string) bool { return false }, "daemon")
	if code != 2 {
		t.Errorf("exit code %d, want 2\n%s", code, out)
	}
	w.says(out, `error: repository prod: the source is not followed any more, and nothing else is to be done: .*prod-writer.key is not a file of secrets`)
	if a := w.status().Alarms["follow"]; a == nil || !strings.Contains(a.Hint, "start the daemon again") {
		t.Errorf("alarm %+v", a)
	}
	if err := os.Chmod(w.path("prod-writer.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ = w.want(0, "info")
	w.says(out, `daemon +does not run on this host; it did until`, `alarm +since .* UTC: the source is not followed any more`)
}

// A state directory that cannot be made does not end the daemon, which has other repositories.
func TestDaemonNoStateDirectory(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.add("[schedule prod]\nfollow: yes\n")
	both := regexp.MustCompile(`(?s)there is no state directory.*follow has ended|follow has ended.*there is no state directory`)
	out, code := w.runUntil(both.MatchString, "daemon", "--set", "state_dir="+w.path("Data.fs/state"))
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	w.says(out, `there is no state directory .*repository=prod`, `follow has ended, and is started again .*state directory: `)
}

// Jobs are the commands with their options, on the settings with which the daemon was started; damage is told by its words. info
// says of the daemon what is known, and no more.
func TestDaemonJobs(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.want(0, "snapshot")
	w.add("[schedule prod]\ncheck: 0 3 * * *\nverify: 0 4 * * * --read-data=1/1\nsnapshot: 0 * * * * --label=hourly\n[drill prod]\nidentity: " + w.path("op1.txt") + "\n")
	out, _ := w.want(0, "info")
	w.says(out, `daemon +none has run on this host: the schedule needs neobackup daemon, here or on another host`, `due check +.* 03:00 UTC, if a daemon runs then`)
	segment := w.keys(`/s/`)
	if len(segment) == 0 {
		segment = w.keys(`/t/`)
	}
	path := w.path("repo/" + segment[0])
	b := []byte(w.read("repo/" + segment[0]))
	b[len(b)-100] ^= 1
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.stateFile(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, _ = w.run("info")
	w.says(out, `daemon +what one has done on this host cannot be read: `)
	past := time.Now().Add(-48 * time.Hour).UTC().Format(time.RFC3339)
	jobs := fmt.Sprintf(`{"from":%q}`, past)
	if err := os.WriteFile(w.stateFile(), fmt.Appendf(nil, `{"v":1,"repository":"prod","jobs":{"check":%s,"verify":%s,"snapshot":%s}}`, jobs, jobs, jobs), 0o600); err != nil {
		t.Fatal(err)
	}
	broke := false
	text, code := w.runUntil(func(string) bool {
		s := w.status()
		if !broke && s.Host != "" { // it was read, and the daemon does not read it again
			w.write("neobackup.conf", "[nonsense", 0o600)
			broke = true
		}
		return broke && s.Jobs["check"] != nil && !s.Jobs["check"].Last.IsZero() && !s.Jobs["verify"].Last.IsZero() && !s.Jobs["snapshot"].Last.IsZero()
	}, "daemon")
	_ = code
	s := w.status()
	if j := s.Jobs["check"]; j.Exit != 0 {
		t.Errorf("check: %+v\n%s", j, text)
	}
	if j := s.Jobs["snapshot"]; j.Exit != 0 {
		t.Errorf("snapshot: %+v\n%s", j, text)
	}
	j := s.Jobs["verify"]
	a := s.Alarms["damage/verify"]
	if j.Exit != 3 || a == nil || !strings.Contains(a.Text, "verify has found damage: ") || !strings.Contains(a.Hint, "neobackup repair -r prod") {
		t.Errorf("verify: %+v, alarm %+v\n%s", j, a, text)
	}
}

// Each option that a schedule may have is one of the command.
func TestScheduleOptions(t *testing.T) {
	root := newCommand(cli.OSEnv())
	for _, line := range []string{
		"check: @daily --store", "verify: @daily --read-data=rotate/30", "verify: @daily --read-data", "verify: @daily --against", "drill: @daily --mode=read --no-source --keep",
		"prune: @daily --confirm --force-share=80%%", "extend_locks: @daily", "snapshot: @daily --label=x",
	} {
		f, err := config.Parse(strings.NewReader("[repository a]\nurl: file:///a\n[schedule a]\n"+line+"\n"), "x")
		if err != nil {
			t.Fatal(err)
		}
		j := f.Repositories[0].Schedule.Jobs[0]
		cmd, _, err := root.Find([]string{j.Command})
		if err != nil || cmd.Name() != j.Command {
			t.Errorf("%s: there is no such command: %v", line, err)
			continue
		}
		for _, o := range j.Options {
			name, _, _ := strings.Cut(strings.TrimPrefix(o, "--"), "=")
			if cmd.Flags().Lookup(name) == nil {
				t.Errorf("%s has no %s", j.Command, o)
			}
		}
	}
}

// What a command has printed becomes its outcome.
func TestRunInDaemon(t *testing.T) {
	var logged bytes.Buffer
	h := &hooks{log: &cli.Log{Logger: slog.New(slog.NewTextHandler(&logged, nil))}, meter: &meter{}}
	env := &cli.Env{Getenv: func(string) string { return "" }}
	o := runInDaemon(withHooks(t.Context(), h), env, []string{"cost", "--prices"})
	if o.Exit != 2 || o.Code != "failed" || o.Message != "flag needs an argument: --prices" || !strings.Contains(logged.String(), "prices") {
		t.Errorf("%+v, %s", o, &logged)
	}
	h.file = &config.File{Path: "x"}
	o = runInDaemon(withHooks(t.Context(), h), env, []string{"info", "--json", "-r", "a"})
	if o.Exit != 2 || o.Code != "configuration" || o.Message != "x: there is no [repository a]" {
		t.Errorf("%+v", o)
	}
	l := &limited{n: 3}
	for _, s := range []string{"ab", "cd", "ef"} {
		if n, err := l.Write([]byte(s)); n != 2 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if l.String() != "abc" {
		t.Errorf("%q", l)
	}
}

// Requests are counted once, while a command runs and when it has ended.
func TestMeter(t *testing.T) {
	all := &meter{}
	get := func(m *meter, n int) {
		c := store.Count(memstore.New(memstore.Options{}))
		m.add(c)
		for range n {
			if _, _, err := c.Get(t.Context(), "x", 0, store.All); !errors.Is(err, store.ErrNotFound) {
				t.Fatal(err)
			}
		}
	}
	get(all, 1)
	a, b := &meter{up: all}, &meter{up: all}
	get(a, 2)
	get(b, 3)
	get(a, 4)
	for _, end := range []func(){func() {}, func() { all.end(a) }, func() { all.end(b) }} {
		end()
		if got := all.stats().Gets; got != 10 {
			t.Errorf("%d requests, want 10", got)
		}
	}
	if len(all.open) != 1 {
		t.Errorf("%d stores are still counted", len(all.open))
	}
}

// What is committed between the last flush and the end is stored, and counts as what it is.
func TestFollowDrains(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	whole := w.read("Data.fs")
	w.want(0, "snapshot")
	w.want(0, "restore", "--at", "2026-01-15", "-i", w.path("op1.txt"), w.path("early.fs"))
	early := w.read("early.fs")
	if !strings.HasPrefix(whole, early) || len(early) == len(whole) {
		t.Fatal("an earlier state is not the beginning of the file")
	}
	var out, got string
	for _, wait := range []time.Duration{3 * time.Second, time.Minute} { // a writer that has not caught up stores nothing more
		if out, got = followDrains(t, early, whole[len(early):], wait); got == "040660ee3597d844" {
			return
		}
	}
	t.Errorf("the head is %s\n%s", got, out)
}

// followDrains follows a file that grows once and is not followed long enough for that to be
// stored in time, and returns what was printed and what was stored last.
func followDrains(t *testing.T, early, later string, wait time.Duration) (out, last string) {
	t.Helper()
	w := newWorld(t)
	w.prepare("site.fs")
	w.write("Data.fs", early, 0o600)
	head := func() string {
		var info struct{ Head struct{ TID string } }
		out, _, _ := w.run("info", "--json")
		if err := json.Unmarshal([]byte(out), &info); err != nil {
			return ""
		}
		return info.Head.TID
	}
	grown, since := false, time.Time{}
	out, code := w.runUntil(func(string) bool {
		if head() == "" {
			return false
		}
		if !grown {
			grown, since = true, time.Now()
			f, err := os.OpenFile(w.path("Data.fs"), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Error(err)
				return true
			}
			if _, err := f.WriteString(later); err != nil || f.Close() != nil {
				t.Error("the file does not grow")
			}
		}
		return time.Since(since) > wait // it knows of it, and waits for its interval
	}, "follow", "--set", "interval=1h", "--set", "heartbeat=1h")
	if code != 0 && code != 1 {
		t.Errorf("exit code %d", code)
	}
	return out, head()
}
