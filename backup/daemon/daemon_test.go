package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// world is a daemon whose commands are functions, in a bubble of synctest. Time begins at 2000-01-01.
type world struct {
	t      *testing.T
	dir    string
	text   string       // of the configuration
	ahead  atomic.Int64 // of the clock of the host
	notify []Notifier

	mu       sync.Mutex
	runs     []string // "time repository command options"
	running  map[string]int
	commands map[string]func(ctx context.Context) Outcome // by "repository command" or "command"
	writers  map[string]*writer.Stats
	files    map[string]string // of state, where they are not in dir
	away     bool              // there is no writer, where none is set
	opened   map[string]*backup.Repository
	notices  []string // "time repository state alarm"
	last     []*Notice

	stop func()
	done chan error
}

func newWorld(t *testing.T, text string) *world {
	w := &world{t: t, dir: t.TempDir(), text: text, running: map[string]int{}, commands: map[string]func(context.Context) Outcome{}, writers: map[string]*writer.Stats{}, opened: map[string]*backup.Repository{}}
	w.notify = []Notifier{notifier{w}}
	// A source is followed until the end, unless a test wants it otherwise.
	w.commands[cmdFollow] = func(ctx context.Context) Outcome { <-ctx.Done(); return Outcome{} }
	return w
}

type notifier struct{ w *world }

func (notifier) Name() string { return "test" }

func (n notifier) Notify(ctx context.Context, x *Notice) error {
	if !sleep(ctx, 10*time.Millisecond) {
		return ctx.Err()
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.notices = append(n.w.notices, fmt.Sprintf("%s %s %s %s", n.w.clock(), x.Repository, x.State, alarmKey(x.Alarm, x.Job)))
	n.w.last = append(n.w.last, x)
	return nil
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

func (w *world) clock() string { return w.now().UTC().Format("02T15:04") }

func (w *world) section() *config.File {
	w.t.Helper()
	f, err := config.Parse(strings.NewReader(w.text), "neobackup.conf")
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// start starts the daemon.
func (w *world) start() {
	w.t.Helper()
	cfg := Config{Notifiers: w.notify, Host: "backup1", Now: w.now}
	for _, set := range w.section().Repositories {
		name := set.Name
		w.set(func() {
			if w.opened[name] == nil {
				w.opened[name] = backuptest.New(w.t, memstore.New(memstore.Options{}), false).Repository
			}
		})
		cfg.Repositories = append(cfg.Repositories, Repository{
			Settings: set, StateFile: cmp.Or(w.files[name], filepath.Join(w.dir, name+".json")),
			Run: func(ctx context.Context, command string, options []string) Outcome {
				w.mu.Lock()
				w.runs = append(w.runs, strings.Join(append([]string{w.clock(), name, command}, options...), " "))
				if w.running[name+command]++; w.running[name+command] > 1 {
					w.t.Errorf("%s %s overlaps itself", name, command)
				}
				do := w.commands[name+" "+command]
				if do == nil {
					do = w.commands[command]
				}
				w.mu.Unlock()
				defer func() {
					w.mu.Lock()
					defer w.mu.Unlock()
					w.running[name+command]--
				}()
				if do == nil {
					return Outcome{}
				}
				return do(ctx)
			},
			Open: func(context.Context) (*backup.Repository, error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.opened[name], nil
			},
			Writer: func() (writer.Stats, bool) {
				w.mu.Lock()
				defer w.mu.Unlock()
				if s := w.writers[name]; s != nil {
					return *s, true
				}
				return writer.Stats{Connected: true}, !w.away
			},
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop, w.done = cancel, make(chan error, 1)
	go func() { w.done <- Run(ctx, cfg) }()
	time.Sleep(1500 * time.Millisecond) // what a test does is between two ticks
}

// end stops the daemon in order.
func (w *world) end() {
	w.t.Helper()
	w.stop()
	if err := <-w.done; err != nil {
		w.t.Errorf("the daemon ended with %v", err)
	}
}

// set changes what commands and writers see.
func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// ran returns the runs since the last call.
func (w *world) ran() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.runs
	w.runs = nil
	slices.Sort(list) // what begins at the same moment does so in any order
	return list
}

// told returns the notices since the last call.
func (w *world) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.notices
	w.notices = nil
	slices.Sort(list)
	return list
}

// first and newest return the notices that were sent first and last.
func (w *world) first() *Notice  { return w.sent(0) }
func (w *world) newest() *Notice { return w.sent(-1) }

func (w *world) sent(i int) *Notice {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i < 0 {
		i += len(w.last)
	}
	return w.last[i]
}

func (w *world) want(what string, got []string, want ...string) {
	w.t.Helper()
	if !slices.Equal(got, want) {
		w.t.Errorf("%s:\ngot  %q\nwant %q", what, got, want)
	}
}

func (w *world) status(name string) *Status {
	w.t.Helper()
	s, err := ReadStatus(filepath.Join(w.dir, name+".json"))
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

const two = `[repository a]
url: file:///r
[repository b]
url: file:///r
`

func TestPlan(t *testing.T) {
	f, err := config.Parse(strings.NewReader("[repository a]\nurl: file:///a\n[schedule a]\ncheck: 30 3 * * *\n"), "x")
	if err != nil {
		t.Fatal(err)
	}
	times := f.Repositories[0].Schedule.Jobs[0].Times
	at := func(s string) (v time.Time) {
		if s != "" {
			v, err = time.Parse("2006-01-02 15:04", s)
		}
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, tt := range []struct{ name, last, now, next, from string }{
		{"never", "", "2026-03-01 12:00", "2026-03-02 03:30", "2026-03-01 12:00"},
		{"today", "2026-03-01 03:30", "2026-03-01 12:00", "2026-03-02 03:30", "2026-03-01 03:30"},
		{"due", "2026-03-01 03:30", "2026-03-02 03:30", "2026-03-02 03:30", "2026-03-01 03:30"},
		{"missed for a week", "2026-03-01 03:30", "2026-03-08 03:00", "2026-03-02 03:30", "2026-03-01 03:30"},
		{"a year ahead", "2026-03-01 03:30", "2027-03-01 03:00", "2026-03-02 03:30", "2026-03-01 03:30"},
		{"a year back", "2027-03-01 03:30", "2026-03-01 03:00", "2026-03-01 03:30", "2026-03-01 03:00"},
		{"a minute back", "2026-03-01 03:30", "2026-03-01 03:29", "2026-03-02 03:30", "2026-03-01 03:30"},
	} {
		next, from := plan(times, at(tt.last), at(tt.now))
		if !next.Equal(at(tt.next)) || !from.Equal(at(tt.from)) {
			t.Errorf("%s: next %v from %v", tt.name, next, from)
		}
	}
	pause := time.Duration(0)
	var list []time.Duration
	for range 11 {
		pause = nextPause(pause, time.Second)
		list = append(list, pause)
	}
	if list[0] != time.Second || list[1] != 2*time.Second || list[10] != lastPause || nextPause(lastPause, goodRun) != firstPause {
		t.Errorf("pauses %v", list)
	}
}

// Jobs run at their times, with their options, one after the other and never twice at the same time; a
// snapshot does not wait for them.
func TestJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, two+`[schedule a]
verify: 0 3 * * * --read-data=rotate/30
check: 0 3 * * *
snapshot: 0 * * * *
prune: 0 6 * * *
[schedule b]
follow: yes
extend_locks: 30 3 * * *
`)
		w.commands[cmdVerify] = func(context.Context) Outcome { time.Sleep(90 * time.Minute); return Outcome{} }
		w.opened["a"] = backuptest.New(t, memstore.New(memstore.Options{}), false).Repository
		w.start()
		time.Sleep(6*time.Hour + time.Minute)
		var got []string
		for _, r := range w.ran() {
			if !strings.Contains(r, "snapshot") || strings.Contains(r, "T04") {
				got = append(got, r)
			}
		}
		w.want("runs", got, "01T00:00 b follow", "01T03:00 a verify --read-data=rotate/30", "01T03:30 b extend-locks", "01T04:00 a snapshot", "01T04:30 a check", "01T06:00 a prune --confirm")
		w.end()
		s := w.status("a")
		if !s.Stopped || s.Jobs["check"].Exit != 0 || s.Jobs["check"].Last.Hour() != 4 || s.Runs(w.now()) {
			t.Errorf("status %+v", s)
		}
	})
}

// A run that was missed is made up for once, with an alarm; one that is late by a restart is no alarm. What ran is
// remembered.
func TestMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\n[schedule a]\ncheck: 0 3 * * *\n")
		w.start()
		time.Sleep(4 * time.Hour)
		w.want("first day", w.ran(), "01T03:00 a check")
		w.end()
		time.Sleep(23*time.Hour + 5*time.Minute) // 02T03:05
		w.start()
		time.Sleep(time.Hour)
		w.want("restart", w.ran(), "02T03:05 a check")
		if w.status("a").Stopped {
			t.Error("the daemon runs, and its notes say that it has ended")
		}
		w.end()
		time.Sleep(3 * 24 * time.Hour) // 05T04:05
		w.start()
		time.Sleep(23 * time.Hour)
		w.want("days later", w.ran(), "05T04:05 a check", "06T03:00 a check")
		w.want("notices", w.told(), "05T04:05 a begin missed/check", "05T04:05 a end missed/check")
		w.end()
	})
}

// The clock of the host is a year ahead for a while, and a year behind: each job runs once more, and goes on at its times.
func TestClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\n[schedule a]\ncheck: 0 3 * * *\nfollow: yes\n")
		w.start()
		time.Sleep(4 * time.Hour)
		w.want("before", w.ran(), "01T00:00 a follow", "01T03:00 a check")
		w.ahead.Store(int64(365 * 24 * time.Hour))
		time.Sleep(time.Hour)
		w.want("ahead", w.ran(), "31T04:00 a check")
		w.ahead.Store(int64(0))
		time.Sleep(24 * time.Hour)
		w.want("right again", w.ran(), "02T03:00 a check")
		w.ahead.Store(int64(-365 * 24 * time.Hour))
		time.Sleep(24 * time.Hour)
		w.want("behind", w.ran(), "03T03:00 a check")
		w.end()
		// The same over a restart.
		w.ahead.Store(int64(365 * 24 * time.Hour))
		w.start()
		time.Sleep(time.Minute)
		w.want("ahead, started again", w.ran(), "02T05:00 a check", "02T05:00 a follow")
		w.end()
		w.ahead.Store(int64(0))
		w.start()
		time.Sleep(24 * time.Hour)
		w.want("right, started again", w.ran(), "03T05:01 a follow", "04T03:00 a check")
		w.end()
	})
}

// A job that is still running when it is due again is an alarm, and does not run twice.
func TestOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\n[schedule a]\ncheck: 0 * * * *\ndrill: 30 * * * *\n")
		w.opened["a"] = backuptest.New(t, memstore.New(memstore.Options{}), false).Repository
		w.commands["check"] = func(ctx context.Context) Outcome {
			if sleep(ctx, 150*time.Minute) {
				return Outcome{}
			}
			return Outcome{Exit: 1}
		}
		w.start()
		time.Sleep(4*time.Hour + time.Minute)
		w.want("runs", w.ran(), "01T00:30 a drill", "01T01:00 a check", "01T03:30 a drill", "01T04:00 a check")
		w.want("notices", w.told(), "01T02:00 a begin missed/check", "01T02:30 a begin missed/drill", "01T03:30 a end missed/check", "01T03:30 a end missed/drill")
		w.end() // it is interrupted
		if s := w.status("a"); s.Jobs["check"].Tries != 0 || s.Jobs["check"].Last.Hour() != 1 {
			t.Errorf("an interrupted job: %+v", s.Jobs["check"])
		}
	})
}

// sleep returns false if ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// A job with which the process ends is given up after three times, so that it does not end the backup again
// and again.
func TestKilledByJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\n[schedule a]\ncheck: 0 3 * * *\n")
		w.commands["check"] = func(ctx context.Context) Outcome { <-ctx.Done(); return Outcome{Exit: 1} }
		for i := range 5 {
			w.start()
			time.Sleep(3*time.Hour + time.Minute)
			path := filepath.Join(w.dir, "a.json")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			w.end()
			// As if it had been killed: nothing was noted at the end.
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := len(w.ran()); got != 1 && i < 3 || got != 0 && i >= 3 {
				t.Errorf("start %d: %d runs", i+1, got)
			}
		}
		w.start()
		time.Sleep(time.Minute)
		w.want("notices", w.told(), "01T06:02 a begin missed/check", "01T09:03 a begin failed/check")
		w.end()
	})
}

// A source that cannot be followed for now is tried again with growing pauses; one that never can
// is left alone, and the rest goes on.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, two+"[repository c]\nurl: file:///r\n[schedule a]\nfollow: yes\n[schedule b]\nfollow: yes\ncheck: 0 3 * * *\n[schedule c]\nfollow: yes\n")
		w.commands["a follow"] = func(context.Context) Outcome { return Outcome{Exit: 1, Code: "store", Message: "no answer"} }
		w.commands["b follow"] = func(context.Context) Outcome {
			return Outcome{Exit: 6, Code: "fenced", Message: "another writer", Hint: "stop the other one"}
		}
		w.start()
		time.Sleep(4 * time.Hour)
		count := map[string]int{}
		for _, r := range w.ran() {
			count[r[len("01T00:00 "):]]++
		}
		if n := count["a follow"]; n < 45 || n > 60 { // 9 in the first 5 minutes, then one in 5
			t.Errorf("a was tried %d times", n)
		}
		delete(count, "a follow")
		if fmt.Sprint(count) != "map[b check:1 b follow:1 c follow:1]" {
			t.Errorf("runs %v", count)
		}
		w.want("notices", w.told(), "01T00:00 b begin fenced", "01T00:01 a begin follow")
		if n := w.first(); n.Text != "the source is not followed any more: another writer" || n.Hint != "stop the other one; then start the daemon again: systemctl restart neobackup" || n.Host != "backup1" {
			t.Errorf("notice %+v", n)
		}
		w.set(func() {
			w.commands["a follow"] = w.commands[cmdFollow]
			w.writers["a"] = &writer.Stats{Waiting: true, Connected: true}
		})
		time.Sleep(16 * time.Minute)
		w.want("notices", w.told(), "01T04:13 a end follow")
		// After a restart, the other writer is gone.
		w.set(func() {
			w.commands["b follow"] = w.commands[cmdFollow]
			w.writers["b"] = &writer.Stats{Waiting: true, Connected: true}
		})
		w.end()
		w.start()
		time.Sleep(time.Minute)
		w.want("notices", w.told(), "01T04:16 b end fenced")
		w.end()
	})
}

// A source that is followed for some minutes each time and then fails is one alarm, not one each time.
func TestFollowFailsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\n[schedule a]\nfollow: yes\n")
		w.writers["a"] = &writer.Stats{Waiting: true, Connected: true}
		w.commands[cmdFollow] = func(ctx context.Context) Outcome {
			sleep(ctx, 5*time.Minute) // until it has something to store
			return Outcome{Exit: 5, Code: "denied", Message: "not allowed"}
		}
		w.start()
		time.Sleep(12 * time.Hour)
		w.want("notices", w.told(), "01T00:37 a begin follow")
		w.set(func() { w.commands[cmdFollow] = func(ctx context.Context) Outcome { <-ctx.Done(); return Outcome{} } })
		time.Sleep(30 * time.Minute)
		if got := w.told(); len(got) != 1 || !strings.HasSuffix(got[0], "a end follow") {
			t.Errorf("notices %q", got)
		}
		w.end()
	})
}

// A source or a store that does not answer for an hour is an alarm, although follow waits for both without end and max_rpo is
// not set.
func TestFollowWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\n[schedule a]\nfollow: yes\n")
		w.away = true // the store
		w.start()
		time.Sleep(90 * time.Minute)
		w.want("no store", w.told(), "01T01:00 a begin follow")
		w.set(func() { w.writers["a"] = &writer.Stats{} })
		time.Sleep(time.Hour)
		w.want("no source", w.told())
		w.set(func() { w.writers["a"] = &writer.Stats{Connected: true} })
		time.Sleep(time.Minute)
		w.want("both", w.told(), "01T02:30 a end follow")
		w.end()
	})
}

// A daemon with nothing left to do ends with the error of what it followed, after the notice of it. A state directory that
// is in use is waited for.
func TestNothingLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, two+"[schedule a]\nfollow: yes\n[schedule b]\nfollow: yes\n")
		w.commands["a follow"] = func(context.Context) Outcome {
			switch {
			case w.now().Hour() > 0:
			case w.now().Minute() < 20:
				return Outcome{Exit: 6, Code: busy, Message: "in use"}
			case w.now().Minute() < 40:
				return Outcome{Exit: 2, Code: absent, Message: "no such directory"}
			default:
				return Outcome{Exit: 2, Code: noRepository, Message: "nothing is there"}
			}
			return Outcome{Exit: 7, Code: "diverged", Message: "another database"}
		}
		w.commands["b follow"] = func(context.Context) Outcome { return Outcome{Exit: 2, Code: "configuration", Message: "no key"} }
		w.start()
		err := <-w.done
		stopped, ok := errors.AsType[*StoppedError](err)
		if !ok || stopped.Repository != "a" || stopped.Outcome.Exit != 7 || w.now().Hour() != 1 {
			t.Errorf("ended at %s with %v", w.clock(), err)
		}
		w.want("notices", w.told(), "01T00:00 b begin follow", "01T00:01 a begin follow", "01T01:03 a begin diverged", "01T01:03 a end follow")
		w.stop()
	})
}

// The RPO is that of the writer: nothing while it waits, else the age of what it knows. It must be exceeded for a
// minute; the alarm is told at its beginning, each day, and at its end, also by the next process.
func TestRPOOfWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\nmax_rpo: 30s\n[schedule a]\nfollow: yes\n")
		st := &writer.Stats{Waiting: true, Connected: true, Manifest: 1, Asof: w.now()}
		w.writers["a"] = st
		w.start()
		time.Sleep(time.Hour)
		w.set(func() { st.Waiting, st.Connected, st.Asof = false, false, w.now() })
		time.Sleep(85 * time.Second)
		w.want("soon", w.told())
		w.set(func() { st.Waiting = true })
		time.Sleep(5 * time.Second)
		w.set(func() { st.Waiting, st.Asof = false, w.now() })
		time.Sleep(100 * time.Second)
		w.want("late", w.told(), "01T01:03 a begin rpo")
		if n := w.first(); !strings.Contains(n.Text, "max_rpo is 30s; the source cannot be reached") || n.Hint == "" {
			t.Errorf("notice %+v", n)
		}
		w.end()
		time.Sleep(time.Hour)
		w.start()
		time.Sleep(25 * time.Hour)
		w.want("a day", w.told(), "02T01:13 a reminder rpo")
		w.set(func() { st.Waiting = true })
		time.Sleep(time.Minute)
		w.want("over", w.told(), "02T03:03 a end rpo")
		w.end()
		if s := w.status("a"); len(s.Alarms) != 0 {
			t.Errorf("alarms %v", s.Alarms)
		}
	})
}

func text(s string) *txn.Transaction {
	return backuptest.Txn(tid.FromTime(time.Now()), txn.Record{OID: 0, Data: []byte(s)})
}

// A host that only reads notices a dead writer within two heartbeats, at few requests, and a store that is away.
func TestReader(t *testing.T) {
	for _, beat := range []time.Duration{5 * time.Minute, 20 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fmt.Sprintf("[repository a]\nurl: file:///r\nmax_rpo: 10s\ninterval: 1s\nheartbeat: %s\n", beat))
			mem := memstore.New(memstore.Options{})
			f := &faulty{Wrapped: store.Wrapped{Store: mem}}
			count := store.Count(f)
			r := backuptest.New(t, mem, true)
			r.Tail(text("one"))
			w.opened["a"] = reopen(t, r, count)
			w.start()
			for range 100 {
				time.Sleep(beat)
				r.Heartbeat()
			}
			w.want("alive", w.told())
			looks := int64(100*beat/min(lookEvery, beat/4)) + 2
			hours := int64(100*beat/time.Hour) + 1
			if st := count.Stats(); st.Lists > 2*looks+100+3*hours || st.Gets > 2*100+10+5*hours {
				t.Errorf("%d looks took %+v", looks, st)
			}
			died := time.Now()
			for len(w.peek()) == 0 {
				time.Sleep(time.Second)
			}
			if took := time.Since(died); took > 2*beat {
				t.Errorf("a dead writer was noticed after %v, heartbeat %v", took, beat)
			}
			if n := w.first(); n.Alarm != RPO || n.State != Begin || !strings.Contains(n.Hint, "host of the writer, "+backuptest.Writer) {
				t.Errorf("notice %+v", n)
			}
			r.Tail(text("two"))
			r.Manifest(true, false)
			time.Sleep(beat)
			w.told()
			if n := w.newest(); n.State != End {
				t.Errorf("notice %+v", n)
			}
			r.Heartbeat()
			f.away.Store(true)
			time.Sleep(2 * beat)
			if got := w.told(); len(got) != 1 || !strings.Contains(w.newest().Text, "no route") {
				t.Errorf("a store that is away: %q", got)
			}
			f.away.Store(false)
			r.Heartbeat()
			time.Sleep(beat)
			if got := w.told(); len(got) != 1 || w.newest().State != End {
				t.Errorf("it is back: %q", got)
			}
			w.end()
		})
	}
}

func (w *world) peek() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.notices
}

// reopen opens the repository of a test through another store.
func reopen(t *testing.T, r *backuptest.Repo, s store.Store) *backup.Repository {
	t.Helper()
	x, err := backup.Open(t.Context(), backup.Config{Store: s, Trusted: r.Trusted})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// A new lineage is found before the silence of the old one is taken for a writer that is dead.
func TestReaderLineage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\nmax_rpo: 10s\n")
		mem := memstore.New(memstore.Options{})
		r := backuptest.New(t, mem, false)
		last := text("one")
		r.Tail(last)
		r.Manifest(true, false)
		w.opened["a"] = reopen(t, r, mem)
		w.start()
		for i := range 20 {
			time.Sleep(5 * time.Minute)
			if i == 10 {
				r.ForkAt(last)
			}
			r.Heartbeat()
		}
		w.want("notices", w.told())
		time.Sleep(10 * time.Minute)
		w.want("notices", w.told(), "01T01:47 a begin rpo")
		w.end()
	})
}

// A store from which the newest objects were removed, or with notes without a signature, is damaged.
func TestReaderDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\nmax_rpo: 1h\n")
		mem := memstore.New(memstore.Options{})
		r := backuptest.New(t, mem, false)
		r.Tail(text("one"))
		w.opened["a"] = reopen(t, r, mem)
		w.start()
		time.Sleep(2 * time.Minute)
		key := r.Manifest(true, false)
		time.Sleep(2 * time.Minute)
		if err := mem.Delete(t.Context(), []string{key}); err != nil {
			t.Fatal(err)
		}
		next := r.Tail(text("two"))
		time.Sleep(2 * time.Minute)
		w.want("a late list", w.told())
		b, _, err := store.ReadAll(t.Context(), mem, next, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		forged := snapshot.TailKey(r.Lineage, 3)
		r.Put(forged, b)
		time.Sleep(2 * time.Minute)
		w.want("another's tail", w.told(), "01T00:07 a begin damage/look")
		if err := mem.Delete(t.Context(), []string{forged}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		w.want("gone", w.told(), "01T00:09 a end damage/look")
		w.end()
	})
}

// putProof stores a proof, of a drill that failed if there is a reason, and returns its key.
func putProof(t *testing.T, r *backuptest.Repo, reason string) string {
	t.Helper()
	s := r.Now()
	p := &snapshot.Proof{Repo: r.Marker.ID, Lineage: r.Lineage, Seq: s.Manifest.Seq, Manifest: s.Hash, TID: s.Head(), Time: time.Now().UTC().Truncate(time.Second),
		Mode: "file", Compared: snapshot.Compared{Source: "none"}, FirstReadMS: 1500, Seconds: 60, Epochs: []snapshot.KID{}, Result: snapshot.ResultOK}
	if reason != "" {
		p.Result, p.Reason = snapshot.ResultFailed, reason
	}
	b, err := snapshot.Sign(p, r.Driver)
	if err != nil {
		t.Fatal(err)
	}
	key := snapshot.Key{Kind: snapshot.KindProof, Lineage: r.Lineage, Time: p.Time, Upto: p.TID}.String()
	r.Put(key, b)
	return key
}

// A proof that is too old is an alarm, also if there never was one, and so is a drill that failed elsewhere.
func TestProofAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\nproof_max_age: 8d\n")
		mem := memstore.New(memstore.Options{})
		r := backuptest.New(t, mem, false)
		r.Tail(text("one"))
		r.Manifest(true, false)
		w.opened["a"] = reopen(t, r, mem)
		w.start()
		time.Sleep(8*24*time.Hour + 90*time.Minute)
		w.want("never", w.told(), "09T00:00 a begin proof")
		putProof(t, r, "")
		time.Sleep(2 * time.Hour)
		w.want("proved", w.told(), "09T02:00 a end proof")
		time.Sleep(8 * 24 * time.Hour)
		w.want("old", w.told(), "17T01:30 a begin proof")
		putProof(t, r, "")
		time.Sleep(24 * time.Hour)
		putProof(t, r, "object 5 differs")
		time.Sleep(2 * time.Hour)
		if n := w.newest(); n.State != Begin || !strings.Contains(n.Text, "has failed: object 5 differs") {
			t.Errorf("notice %+v", n)
		}
		w.end()
	})
}

// When the state file is lost, the repository tells when the last drill and the last prune were.
func TestLostState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\n[schedule a]\ndrill: 0 5 * * 0\nprune: 0 6 * * *\ncheck: 0 7 * * *\n")
		mem := memstore.New(memstore.Options{})
		r := backuptest.New(t, mem, false)
		r.Tail(text("one"))
		r.Manifest(true, false)
		putProof(t, r, "")
		d := &snapshot.Doom{Repo: r.Marker.ID, Created: time.Now().UTC(), Policy: 1, Objects: []snapshot.Doomed{{Key: snapshot.TailKey(r.Lineage, 1), Why: "x"}}}
		b, err := d.Sign(r.Keeper)
		if err != nil {
			t.Fatal(err)
		}
		r.Put(snapshot.Key{Kind: snapshot.KindDoom, Time: time.Now()}.String(), b)
		time.Sleep(9 * 24 * time.Hour) // 10T00:00, a Monday
		w.opened["a"] = reopen(t, r, mem)
		w.start()
		time.Sleep(23 * time.Hour)
		w.want("runs", w.ran(), "10T00:00 a drill", "10T00:00 a prune --confirm", "10T06:00 a prune --confirm", "10T07:00 a check")
		w.end()
		if err := os.WriteFile(filepath.Join(w.dir, "a.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.start()
		time.Sleep(time.Minute)
		w.end()
		if s := w.status("a"); s.Repository != "a" {
			t.Errorf("status %+v", s)
		}
	})
}

// Damage is over when all that the job reads was read again without.
func TestDamageRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\n[schedule a]\nverify: 0 3 * * * --read-data=rotate/3\ncheck: 0 4 * * *\n")
		day := 0
		w.commands[cmdVerify] = func(context.Context) Outcome {
			if day++; day == 2 {
				return Outcome{Exit: 3, Code: "damage", Message: "segment 5 is damaged", Damage: 2}
			}
			return Outcome{}
		}
		w.commands["check"] = func(context.Context) Outcome {
			if day == 2 {
				return Outcome{Exit: 5, Code: "denied", Message: "not allowed"}
			}
			return Outcome{}
		}
		w.start()
		time.Sleep(7 * 24 * time.Hour)
		w.want("notices", w.told(), "02T03:00 a begin damage/verify", "02T04:00 a begin failed/check", "03T03:10 a reminder damage/verify",
			"03T04:00 a end failed/check", "04T03:20 a reminder damage/verify", "05T03:00 a end damage/verify")
		w.end()
	})
	for o, want := range map[string]int{"--read-data=rotate/30": 30, "--read-data=5%": 60, "--read-data=2/7": 1, "--read-data": 1, "--against": 1} {
		if got := rounds(&config.Job{Command: cmdVerify, Options: []string{o}}); got != want {
			t.Errorf("%s: %d rounds", o, got)
		}
	}
}

// A lock that runs out, and clocks that differ, are alarms.
func TestLockAndClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\nmax_rpo: 300d\n[schedule a]\nextend_locks: 0 3 * * *\n")
		var off atomic.Int64
		mem := memstore.New(memstore.Options{Now: func() time.Time { return time.Now().Add(time.Duration(off.Load())) }})
		r := backuptest.New(t, mem, false)
		w.opened["a"] = reopen(t, r, mem)
		left := 5 * 24 * time.Hour
		w.commands[cmdLocks] = func(context.Context) Outcome {
			if w.now().Day() > 1 && w.now().Day() < 5 {
				return Outcome{Exit: 5, Code: "denied", Message: "not allowed"}
			}
			return Outcome{LockLeft: &left}
		}
		w.start()
		time.Sleep(5 * 24 * time.Hour)
		w.want("locks", w.told(), "02T03:00 a begin failed/extend-locks", "03T03:00 a begin lock", "03T03:10 a reminder failed/extend-locks",
			"04T03:10 a reminder lock", "04T03:20 a reminder failed/extend-locks", "05T03:00 a end failed/extend-locks", "05T03:00 a end lock")
		off.Store(int64(-6 * time.Minute))
		time.Sleep(time.Hour)
		off.Store(0)
		time.Sleep(time.Hour)
		w.want("clocks", w.told(), "06T00:01 a begin clock", "06T01:01 a end clock")
		w.end()
	})
}

// A notice that cannot be delivered is tried again, and is in the state file meanwhile.
func TestUndelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\n[schedule a]\ncheck: 0 3 * * *\nfollow: yes\n")
		w.commands["check"] = func(context.Context) Outcome { return Outcome{Exit: 1, Message: "no"} }
		bad := &broken{err: errors.New("no route")}
		w.notify = []Notifier{bad}
		w.start()
		time.Sleep(3*time.Hour + 25*time.Minute)
		if n := bad.tries.Load(); n != 9 { // at 3:00, 3:10 and 3:20
			t.Errorf("%d tries", n)
		}
		w.end()
		if a := w.status("a").Alarms["failed/check"]; a == nil || !a.Told.IsZero() {
			t.Errorf("alarm %+v", a)
		}
		w.notify = []Notifier{bad, notifier{w}}
		w.start()
		time.Sleep(time.Minute)
		w.want("notices", w.told(), "01T03:25 a begin failed/check")
		w.end()
	})
}

type broken struct {
	err   error
	tries atomic.Int64
}

func (*broken) Name() string { return "broken" }

func (b *broken) Notify(context.Context, *Notice) error {
	b.tries.Add(1)
	return b.err
}

// A state directory that cannot be used does not keep the daemon from looking after its repository, nor after others.
func TestNoStateDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, two+"[schedule a]\nfollow: yes\ncheck: 0 3 * * *\n[schedule b]\nfollow: yes\n")
		w.commands["check"] = func(context.Context) Outcome { return Outcome{Exit: 1, Message: "no"} }
		w.files = map[string]string{"a": filepath.Join(w.dir, "not mounted", "a.json")}
		w.start()
		time.Sleep(4 * time.Hour)
		w.want("runs", w.ran(), "01T00:00 a follow", "01T00:00 b follow", "01T03:00 a check")
		w.want("notices", w.told(), "01T03:00 a begin failed/check")
		w.end()
	})
}

// Two daemons do not look after the same repository.
func TestTwoDaemons(t *testing.T) {
	w := newWorld(t, two)
	set := Repository{Settings: w.section().Repositories[0], StateFile: filepath.Join(w.dir, "a.json")}
	d := &daemon{log: slog.New(slog.DiscardHandler)}
	r, err := newRepo(d, set, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newRepo(d, set, time.Now()); !errors.Is(err, ErrBusy) {
		t.Errorf("a second daemon: %v", err)
	}
	if err := r.lock.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := newRepo(d, set, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	again.lock.Close()
}

// A state file of a newer version, or of another repository, is not used.
func TestStatusRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	for _, text := range []string{"", "{", `{"v":2}`, `[]`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := ReadStatus(path); err == nil {
			t.Errorf("%q: %+v", text, s)
		}
	}
	if err := os.WriteFile(path, []byte(`{"v":1,"jobs":{"x":null},"alarms":{"y":null}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := ReadStatus(path)
	if err != nil || len(s.Jobs)+len(s.Alarms) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	b, err := json.Marshal(s)
	if err != nil || strings.Contains(string(b), "null") {
		t.Errorf("%s, %v", b, err)
	}
}

// A store that does not let a look be given up, as a directory of a server that is away, is not taken for one that is not looked at
// for the moment.
func TestLookHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, two+"max_rpo: 10s\n[schedule a]\ncheck: 0 5 * * *\n")
		back := make(chan struct{})
		for _, name := range []string{"a", "b"} {
			mem := memstore.New(memstore.Options{})
			r := backuptest.New(t, mem, false)
			r.Tail(text("one"))
			w.opened[name] = reopen(t, r, &hung{Wrapped: store.Wrapped{Store: mem}, at: w.now().Add(2*time.Hour + 30*time.Minute), back: back})
			go func() {
				for range 90 {
					time.Sleep(2 * time.Minute)
					r.Heartbeat()
				}
			}()
		}
		w.start()
		time.Sleep(5 * time.Hour)
		w.want("notices", w.told(), "01T02:36 b begin rpo", "01T04:00 a begin failed/look")
		if n := w.first(); !strings.Contains(n.Text, "the store does not answer") {
			t.Errorf("notice %+v", n)
		}
		close(back)
		time.Sleep(2 * time.Minute)
		w.want("it is back", w.told(), "01T05:01 a end failed/look")
		w.end()
	})
}

// hung is a store that hangs from some time on until back is closed, whatever becomes of the caller.
type hung struct {
	store.Wrapped
	at   time.Time
	back chan struct{}
}

func (h *hung) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	if !time.Now().Before(h.at) {
		<-h.back
	}
	return h.Store.List(ctx, prefix, after)
}

// That the store cannot be looked at is an alarm after an hour of that, not before, on each host, also where nothing but a drill is wanted,
// whose next time only the store tells; and it ends, also when the configuration was changed meanwhile.
func TestBlind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, two+"max_rpo: 30s\n[schedule a]\ndrill: 0 5 * * *\n[schedule b]\nfollow: yes\n")
		away := map[string]*faulty{}
		for _, name := range []string{"a", "b"} {
			mem := memstore.New(memstore.Options{})
			r := backuptest.New(t, mem, false)
			r.Tail(text("one"))
			away[name] = &faulty{Wrapped: store.Wrapped{Store: mem}}
			w.opened[name] = reopen(t, r, away[name])
			away[name].away.Store(true)
		}
		w.writers["b"] = &writer.Stats{Waiting: true, Connected: true}
		w.start()
		time.Sleep(70 * time.Minute)
		w.want("away", w.told(), "01T01:00 a begin failed/look", "01T01:00 b begin failed/look")
		away["a"].away.Store(false)
		away["b"].away.Store(false)
		time.Sleep(2 * time.Minute)
		w.want("back", w.told(), "01T01:11 a end failed/look", "01T01:11 b end failed/look")
		time.Sleep(50 * time.Minute)
		away["a"].away.Store(true)
		away["b"].away.Store(true)
		time.Sleep(30 * time.Minute) // the looks of an hour after fail
		w.want("a moment", w.told())
		time.Sleep(time.Hour)
		w.told()
		w.end()
		w.text = strings.Replace(w.text, "[repository b]", "max_rpo: 1d\n[repository b]", 1)
		away["a"].away.Store(false)
		away["b"].away.Store(false)
		w.start()
		time.Sleep(2 * time.Minute)
		if list := w.status("a").Alarms; len(list) != 0 {
			t.Errorf("alarms %v", list)
		}
		w.end()
	})
}

// What could not be written while the disk was full is written when it is not any more.
func TestStateWrittenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\n[schedule a]\ncheck: 0 3 * * *\n")
		w.commands["check"] = func(context.Context) Outcome { return Outcome{Exit: 1, Message: "no"} }
		w.start()
		time.Sleep(time.Hour)
		path := filepath.Join(w.dir, "a.json")
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// In its place is something that no file can replace.
		if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Hour)
		if err := errors.Join(os.Remove(path), os.WriteFile(path, old, 0o600)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if s := w.status("a"); s.Alarms["failed/check"] == nil || s.Jobs["check"].Exit != 1 {
			t.Errorf("status %+v", s)
		}
		w.end()
	})
}

// An alarm that nothing would end, since the configuration does not ask for it any more, is given up.
func TestAlarmGivenUp(t *testing.T) {
	for _, c := range []struct {
		schedule string
		stays    bool
	}{{"check: 0 3 * * *", false}, {"extend_locks: 0 3 * * *", true}} {
		w := newWorld(t, "[repository a]\nurl: file:///r\n[schedule a]\n"+c.schedule+"\n")
		path := filepath.Join(w.dir, "a.json")
		if err := os.WriteFile(path, []byte(`{"v":1,"repository":"a","alarms":{"lock":{"kind":"lock","text":"x","since":"2026-01-01T00:00:00Z"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := newRepo(&daemon{log: slog.New(slog.DiscardHandler)}, Repository{Settings: w.section().Repositories[0], StateFile: path}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if got := r.alarms.on(Lock, ""); got != c.stays {
			t.Errorf("with %s: the alarm is in force: %v", c.schedule, got)
		}
		r.lock.Close()
	}
}

// A proof that was copied is as old as it says itself, as for info.
func TestProofCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "[repository a]\nurl: file:///r\nproof_max_age: 8d\n")
		mem := memstore.New(memstore.Options{})
		r := backuptest.New(t, mem, false)
		r.Tail(text("one"))
		r.Manifest(true, false)
		key := putProof(t, r, "")
		time.Sleep(7 * 24 * time.Hour)
		b, _, err := store.ReadAll(t.Context(), mem, key, 1<<20)
		if err == nil {
			err = mem.Delete(t.Context(), []string{key})
		}
		if err != nil {
			t.Fatal(err)
		}
		r.Put(key, b)
		w.opened["a"] = reopen(t, r, mem)
		w.start()
		time.Sleep(20 * time.Hour)
		w.want("not yet", w.told())
		time.Sleep(5 * time.Hour)
		w.want("old", w.told(), "09T00:00 a begin proof")
		if n := w.first(); !strings.Contains(n.Text, "the last restore was proved at 2000-01-01 00:00:00 UTC") {
			t.Errorf("notice %+v", n)
		}
		w.end()
	})
}
