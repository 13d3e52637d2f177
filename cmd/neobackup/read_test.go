package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeoclient"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

// cat shows what neofs shows of the source, now and earlier; diff lists what changed.
func TestCat(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.want(0, "snapshot")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	r, err := fsformat.Open(w.path("Data.fs"), fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.UseIndex(t.Context(), "", nil); err != nil {
		t.Fatal(err)
	}
	rev, err := r.LoadBefore(t.Context(), 0, tid.Max)
	if err != nil {
		t.Fatal(err)
	}
	out, _ := w.want(0, "cat", "--raw", "0")
	if out != string(rev.Data) {
		t.Errorf("cat of the root: %q", out)
	}
	out, _ = w.want(0, "cat", "0")
	w.says(out, `object 0000000000000000 of transaction `+rev.Serial.String(), `PersistentMapping`)
	first, err := r.LoadBefore(t.Context(), 0, rev.Serial)
	if err != nil {
		t.Fatal(err)
	}
	out, _ = w.want(0, "cat", "--raw", "--at", first.Serial.String(), "0")
	if out != string(first.Data) {
		t.Errorf("cat of the root before: %q", out)
	}
	out, _ = w.want(0, "cat", "--history", "0")
	infos, err := r.Revisions(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != len(infos) || !strings.HasPrefix(lines[0], rev.Serial.String()) {
		t.Errorf("history: %s, want %d lines", out, len(infos))
	}
	out, _ = w.want(0, "cat", "--json", "0")
	var doc struct {
		V        int
		OID, TID string
		Data     []byte
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.V != 1 || doc.TID != rev.Serial.String() || !bytes.Equal(doc.Data, rev.Data) {
		t.Errorf("document %s: %v", out, err)
	}
	out, _ = w.want(1, "cat", "ffff")
	if out != "" {
		t.Errorf("an object that is not there: %s", out)
	}
	out, _ = w.want(0, "diff", "040660a461511a11..latest")
	want := map[tid.OID]bool{}
	for tr, err := range r.Transactions(t.Context(), 0x040660a461511a11, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		for rec, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			want[rec.OID] = true
		}
	}
	if n := strings.Count(out, "\n"); n != len(want) {
		t.Errorf("diff: %s, want %d objects", out, len(want))
	}
	w.want(0, "diff", "latest..latest")
}

// serve shows the backup to ZEO clients, and with --follow what is added.
func TestServe(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	w.want(0, "snapshot", "--at", "2026-01-15")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs bytes.Buffer
	env := &cli.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: func(k string) string { return w.env[k] }}
	ready := make(chan net.Addr, 1)
	o := &serveOptions{at: "latest", bind: []string{"127.0.0.1:0"}, follow: true, refresh: 100 * time.Millisecond, ready: func(list []net.Addr) { ready <- list[0] }}
	o.now = time.Now
	done := make(chan error, 1)
	go func() { done <- runServe(ctx, env, o) }()
	var addr net.Addr
	select {
	case addr = <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	c, err := zeoclient.Dial(t.Context(), zeoclient.Config{Addr: addr.String()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	before, err := c.LastTID(t.Context())
	if err != nil || before == 0 {
		t.Fatalf("last transaction %v, %v", before, err)
	}
	w.want(0, "snapshot")
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		last, err := c.LastTID(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if last == 0x040660ee3597d844 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("what was added is not shown: %v\n%s", last, errs.String())
		}
	}
	rev, err := c.LoadBefore(t.Context(), 0, tid.Max)
	if err != nil || len(rev.Data) == 0 {
		t.Errorf("root %v, %v", rev, err)
	}
	cancel()
	if err := <-done; err != nil && ctx.Err() == nil {
		t.Error(err)
	}
}

// A state that is older than the one that this host has seen is told, by check as well.
func TestOlderState(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	w.want(0, "snapshot", "--at", "2026-01-15")
	w.want(0, "info")
	old := w.keys(`/m/|/t/`)
	w.want(0, "snapshot")
	for _, key := range w.keys(`/m/|/t/`) {
		if !slices.Contains(old, key) {
			if err := os.Remove(filepath.Join(w.path("repo"), key)); err != nil {
				t.Fatal(err)
			}
		}
	}
	out, _ := w.want(3, "info")
	w.says(out, `status +newer objects were removed`)
	_, stderr := w.want(3, "info", "-q")
	w.says(stderr, `error: prod: damage was found: newer objects were removed`)
	out, stderr = w.want(3, "list")
	w.says(out, `prod +older`)
	w.says(stderr, `error: damage was found: lineage 1: newer objects were removed`)
	out, _ = w.want(3, "check")
	w.says(out, `older: `)
	_, stderr = w.want(3, "restore", w.path("x.fs"))
	w.says(stderr, `warning: newer objects were removed`, `the latest moment cannot be restored`, `hint: --at [0-9a-f]{16} `)
	w.want(0, "restore", "--at", regexp.MustCompile(`--at ([0-9a-f]{16})`).FindStringSubmatch(stderr)[1], w.path("x.fs"))
	out, _ = w.want(3, "verify")
	w.says(out, `older: `)
	// A writer does not go on unless it is told to.
	_, stderr = w.want(3, "snapshot")
	w.says(stderr, `newer objects were removed`, `hint: .*neobackup repair.*remove seen.json in `)
	// A repair knows it too, and does not know less than was seen.
	out, _ = w.want(3, "repair")
	w.says(out, `are lost: cannot be repaired: no source was given`)
	for _, f := range must(filepath.Glob(filepath.Join(w.path("state"), "neobackup", "*", "seen.json"))) {
		b := must(os.ReadFile(f))
		if err := os.WriteFile(f, b[:len(b)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		_, stderr = w.want(1, "repair")
		w.says(stderr, `seen\.json`)
		if err := os.WriteFile(f, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range must(filepath.Glob(filepath.Join(w.path("state"), "neobackup", "*", "seen.json"))) {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	w.want(0, "snapshot")
	w.want(0, "check")
}

// Parts of the history are those of the whole, however they are read.
func TestLogParts(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	for _, at := range []string{"2026-01-10", "2026-01-15", "latest"} { // three segments
		w.want(0, "snapshot", "--at", at)
	}
	all, _ := w.want(0, "log", "--records")
	var texts []string // of each transaction, newest first
	for line := range strings.Lines(all) {
		if strings.HasPrefix(line, " ") {
			texts[len(texts)-1] += line
		} else {
			texts = append(texts, line)
		}
	}
	if len(texts) != 334 {
		t.Fatalf("%d transactions", len(texts))
	}
	for _, n := range []int{1, 2, 100, 333, 334, 400} {
		if out, _ := w.want(0, "log", "--records", "-n", strconv.Itoa(n)); out != strings.Join(texts[:min(n, 334)], "") {
			t.Errorf("log -n %d differs", n)
		}
	}
	from, to := texts[250][:16], texts[50][:16]
	if out, _ := w.want(0, "log", "--records", from+".."+to); out != strings.Join(texts[50:251], "") {
		t.Error("log of a range differs")
	}
	if out, _ := w.want(0, "log", "--records", "-n", "3", from+".."+to); out != strings.Join(texts[50:53], "") {
		t.Error("log -n 3 of a range differs")
	}
	slices.Reverse(texts)
	if out, _ := w.want(0, "log", "--records", "-F", from+".."+to); out != strings.Join(texts[333-250:334-50], "") {
		t.Error("log -F of a range differs")
	}
	whole, _ := w.want(0, "dump")
	part1, _ := w.want(0, "dump", ".."+to)
	next, _ := w.want(0, "log", "-F", "-n", "2", to+"..")
	part2, _ := w.want(0, "dump", strings.Split(next, "\n")[1][:16]+"..")
	if part1+part2 != whole {
		t.Errorf("parts of the dump have %d and %d bytes, the whole %d", len(part1), len(part2), len(whole))
	}
}
