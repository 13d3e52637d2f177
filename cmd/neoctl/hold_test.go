package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
)

// A hold keeps a backup exactly where the operator says, over a restart of all its nodes,
// until it is released or the backup is promoted, which keeps exactly that.
func TestHold(t *testing.T) {
	up, _ := runCluster(t, t.TempDir(), simple.Config{Name: "up", Partitions: partitions})
	cl, err := client.Open(t.Context(), client.Config{Cluster: "up", Masters: []proto.Address{up.Master()}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	t1 := commitAll(t, cl, 0, "first")
	dir := t.TempDir()
	ctl, stop := runBackup(t, dir, up, t1, simple.Config{Storages: 2, Replicas: 1})
	say := func(args string, code int, want ...string) string {
		t.Helper()
		out, got := ctl(args)
		if got != code {
			t.Errorf("neoctl %s: exit %d, want %d:\n%s", args, got, code, out)
		}
		for _, text := range want {
			if !strings.Contains(out, text) {
				t.Errorf("neoctl %s does not say %q:\n%s", args, text, out)
			}
		}
		return out
	}
	awaitText(t, ctl, "print summary", `"due": [[null,0]]`)
	awaitText(t, ctl, "print summary", "\nBACKUP: due 0 s\n")
	say("backup release", 1, "nothing is held")
	say("backup run-now", 1, "neither a schedule nor a window")
	say(fmt.Sprintf("backup hold tid:%#x", uint64(t1-1)), 1, "already has all up to "+t1.String())
	for _, args := range []string{"backup", "backup hold x", "backup hold 1 2", "backup release 1", "backup stop"} {
		say(args, 2)
	}
	// Between this transaction and the next one.
	h := t1 + 1000
	say(fmt.Sprintf("backup hold tid:%#x", uint64(h)), 0, "held at:")
	t2 := commitAll(t, cl, t1, "second")
	awaitText(t, ctl, "print ids", fmt.Sprintf("backup_tid = %#x ", uint64(h)))
	awaitText(t, ctl, "print backup", fmt.Sprintf(`"upstream_tid":"%v"`, t2))
	awaitText(t, ctl, "print backup", fmt.Sprintf(`"readable_tid":"%v"`, h))
	out := say("print backup", 0, "this cluster: due 0 s\n")
	var reports map[string]map[string]any
	if err := json.Unmarshal([]byte(strings.TrimPrefix(strings.SplitN(out, "\n", 2)[0], "# ")), &reports); err != nil {
		t.Fatal(err)
	}
	if r := reports[""]; r["hold_tid"] != h.String() || r["backup_tid"] != h.String() || r["readable_tid"] != h.String() || r["wanted_tid"] != h.String() ||
		r["due"] != 0.0 || r["linked"] != true || r["behind"] != false {
		t.Errorf("%+v", r)
	}
	stop()

	ctl, stop = runBackup(t, dir, up, h, simple.Config{Storages: 2, Replicas: 1})
	awaitText(t, ctl, "print summary", "\nBACKUP: due 0 s, held at "+h.String()+"\n")
	time.Sleep(300 * time.Millisecond)
	say("print ids", 0, fmt.Sprintf("backup_tid = %#x ", uint64(h)))
	say("backup release", 0)
	awaitText(t, ctl, "print ids", fmt.Sprintf("backup_tid = %#x ", uint64(t2)))
	say("backup hold", 0, "held at:        "+t2.String())
	t3 := commitAll(t, cl, t2, "third")
	awaitText(t, ctl, "print backup", fmt.Sprintf(`"upstream_tid":"%v"`, t3))
	say("print ids", 0, fmt.Sprintf("backup_tid = %#x ", uint64(t2)))
	say("set cluster STOPPING_BACKUP", 0)
	awaitText(t, ctl, "print cluster", "RUNNING")
	say("print ids", 0, fmt.Sprintf("last_tid = %#x ", uint64(t2)))
	awaitText(t, ctl, "print backup", "No backup reports")
	say("print backup", 3, "No backup reports")
	say("backup release", 1, "no backup reports")
	// As a backup again it is not held any more.
	say("set cluster STARTING_BACKUP", 0)
	awaitText(t, ctl, "print ids", fmt.Sprintf("backup_tid = %#x ", uint64(t3)))
	stop()
}

// A backup with a delay has no transaction before its time, and has it then by itself. With
// a window, it has nothing outside of it unless the operator wants it.
func TestDelayAndWindow(t *testing.T) {
	up, _ := runCluster(t, t.TempDir(), simple.Config{Name: "up", Partitions: partitions})
	cl, err := client.Open(t.Context(), client.Config{Cluster: "up", Masters: []proto.Address{up.Master()}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	const delay = 2 * time.Second
	delayed, _ := runBackup(t, t.TempDir(), up, tid.Zero, simple.Config{Upstream: master.Upstream{Delay: delay}})
	midnight := time.Now().UTC().Truncate(24 * time.Hour)
	hour := time.Now().UTC().Sub(midnight).Truncate(time.Hour)
	day := 24 * time.Hour
	shut, _ := runBackup(t, t.TempDir(), up, tid.Zero, simple.Config{Upstream: master.Upstream{
		Window: following.Window{From: (hour + 3*time.Hour) % day, To: (hour + 4*time.Hour) % day}}})

	begin := time.Now()
	t1 := commitAll(t, cl, 0, "first")
	has := fmt.Sprintf("backup_tid = %#x ", uint64(t1))
	for {
		out, _ := delayed("print ids")
		if early := time.Since(begin) < delay; strings.Contains(out, has) {
			if early {
				t.Errorf("after %v: %s", time.Since(begin), out)
			}
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("after %v: %s", time.Since(begin), out)
		}
		time.Sleep(20 * time.Millisecond)
	}
	awaitText(t, delayed, "print summary", "BACKUP: due 0 s, delay 2 s\n")
	awaitText(t, shut, "print summary", "BACKUP: due 0 s, closed until ")
	if out, _ := shut("print ids"); !strings.Contains(out, "backup_tid = 0x0 ") {
		t.Errorf("outside of the window: %s", out)
	}
	if out, code := shut("backup run-now"); code != 0 {
		t.Errorf("exit %d: %s", code, out)
	}
	awaitText(t, shut, "print ids", has)
	awaitText(t, shut, "print summary", "BACKUP: due 0 s, closed until ")
	commitAll(t, cl, t1, "second")
	if out, _ := shut("print ids"); !strings.Contains(out, has) {
		t.Errorf("after the run: %s", out)
	}
}
