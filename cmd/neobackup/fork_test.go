package main

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// siteLast is the last transaction of site.fs.
const siteLast = "040660ee3597d844"

// tids returns the transactions of a Data.fs.
func (w *world) tids(name string) (list []string) {
	w.t.Helper()
	f, err := fsformat.Open(w.path(name), fsformat.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	for t, err := range f.Transactions(w.t.Context(), 0, tid.Max) {
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, t.TID.String())
	}
	return list
}

// commit appends a transaction to a Data.fs.
func (w *world) commit(name string, at tid.TID, data string) {
	w.t.Helper()
	f, err := fsformat.OpenAppend(w.t.Context(), w.path(name), fsformat.WriterOptions{})
	if err == nil {
		err = errors.Join(f.Append(&txn.Transaction{TID: at, Status: txn.Committed, User: []byte("u"), Description: []byte(data),
			Records: txn.Slice([]txn.Record{{OID: 1, TID: at, Data: []byte("\x80\x03cm\nC\nq\x00.\x80\x03}q\x01.")}})}), f.Close())
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// Every way in which a Data.fs may not be the one that was backed up ends the writer with 7, and the
// message names the way out, which works.
func TestSourceDiffers(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	list := w.tids("Data.fs")
	noted, within := list[200], list[250]
	w.want(0, "snapshot", "--at", noted)
	w.want(0, "snapshot")
	w.want(0, "restore", "-i", w.path("op1.txt"), "--at", within, w.path("older.fs"))
	whole, older := w.read("Data.fs"), w.read("older.fs")
	wantDiffers := func(args []string, says ...string) {
		t.Helper()
		out, stderr := w.want(7, append([]string{"snapshot"}, args...)...)
		w.says(out+stderr, append(says, `hint: `)...)
		w.env["NEOBACKUP_IDENTITY"] = "" // a writer has none
		_, stderr = w.want(7, append([]string{"follow"}, args...)...)
		w.says(stderr, says...)
	}
	out, stderr := w.want(1, "fork")
	w.says(out+stderr, `there is nothing to fork`, `hint: .*--no-source`)

	t.Run("wrong source", func(t *testing.T) {
		w.write("Other.fs", string(must(os.ReadFile(samples+"01-basic.fs"))), 0o600)
		wantDiffers([]string{"--source", w.path("Other.fs")}, `none of them is known to be in the source`, `hint: check that the source is the right one; .*init makes another repository`)
		_, stderr := w.want(7, "fork", "--source", w.path("Other.fs"), "-i", w.path("op1.txt"))
		w.says(stderr, `is it another database\?`)
	})
	t.Run("empty source", func(t *testing.T) {
		w.write("Empty.fs", "FS21", 0o600)
		wantDiffers([]string{"--source", w.path("Empty.fs")}, `the source is empty`)
		w.want(7, "fork", "--source", w.path("Empty.fs"), "-i", w.path("op1.txt"))
	})
	t.Run("packed", func(t *testing.T) {
		w := newWorld(t)
		w.prepare("05-before-pack.fs")
		w.want(0, "snapshot")
		w.write("new.fs", string(must(os.ReadFile(samples+"05-packed.fs"))), 0o600)
		if err := os.Rename(w.path("new.fs"), w.path("Data.fs")); err != nil {
			t.Fatal(err)
		}
		_, stderr := w.want(7, "snapshot", "--set", "on_pack=stop")
		w.says(stderr, `packed`, `hint: .*neobackup rebase --confirm`)
		w.want(0, "rebase", "--confirm")
		out, _ := w.want(0, "list", "--lineages")
		w.says(out, `(?m)^2 [0-9a-f]{32} rebase`)
	})
	t.Run("truncated", func(t *testing.T) {
		if err := os.Truncate(w.path("Data.fs"), int64(len(older))); err != nil {
			t.Fatal(err)
		}
		wantDiffers(nil, `they agree up to transaction `+noted, `the source was truncated or restored`, `hint: .*neobackup fork --at `+noted)
		out, _ := w.want(0, "fork")
		w.says(out, `share the history up to `+noted+` .*as far as is known`, `Nothing was done: --confirm`)
		_, stderr := w.want(7, "fork", "--at", list[100], "-i", w.path("op1.txt"))
		w.says(stderr, `which is `+within+`, not `+list[100], `hint: .*--no-source`)
		w.want(8, "fork", "--at", "0500000000000000", "--no-source")
		out, _ = w.want(0, "fork", "--json", "-i", w.path("op2.txt"))
		w.says(out, `"at":\{"tid":"`+within, `"common_exact":true`, `"confirmed":false`)
		out, _ = w.want(0, "list", "--lineages")
		if strings.Count(out, "\n") != 1 {
			t.Errorf("a plan has written something: %s", out)
		}
		objects := len(w.keys(""))
		out, _ = w.want(0, "fork", "-i", w.path("op1.txt"), "--confirm", "--why", "restored after the fire")
		w.says(out, `lineage 2 is the current one`, `restore --lineage 1`)
		if n := len(w.keys("")) - objects; n != 3 {
			t.Errorf("%d objects more, want a manifest, a tail and a note", n)
		}
		out, _ = w.want(0, "snapshot")
		w.says(out, `everything up to `+within+` .*: 0 transactions more`)
		out, _ = w.want(0, "list", "--lineages")
		w.says(out, `(?m)^2 [0-9a-f]{32} fork: restored after the fire`)
		w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
		w.want(0, "restore", w.path("forked.fs"))
		w.want(0, "restore", "--lineage", "1", w.path("parent.fs"))
		if w.read("forked.fs") != older || w.read("parent.fs") != whole {
			t.Error("the restored files differ")
		}
		for _, args := range [][]string{{"check"}, {"verify"}, {"verify", "--against"}} {
			out, _ := w.want(0, args...)
			w.says(out, `(?m)^found:? +0 faults, 0 warnings`)
		}
	})
	t.Run("restored from an older copy, and gone on", func(t *testing.T) {
		if err := os.Remove(w.path("Data.fs")); err != nil {
			t.Fatal(err)
		}
		w.want(0, "restore", "--at", list[220], w.path("Data.fs"))
		w.commit("Data.fs", 0x0500000000000000, "after the disaster")
		wantDiffers(nil, `the source has no transaction `+within, `hint: .*neobackup fork`)
		w.want(0, "fork", "-i", w.path("op1.txt"), "--confirm")
		out, _ := w.want(0, "snapshot")
		w.says(out, `everything up to 0500000000000000 .*: 1 transactions more`)
		w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
		w.want(0, "restore", w.path("again.fs"))
		if w.read("again.fs") != w.read("Data.fs") {
			t.Error("the restored file differs")
		}
		out, _ = w.want(0, "check")
		w.says(out, `(?m)^found +0 faults, 0 warnings`, `lineage 3`)
	})
}

// newCluster runs a cluster and returns its URL.
func (w *world) newCluster(name string) (url string) {
	w.t.Helper()
	c, err := simple.New(simple.Config{Dir: w.t.TempDir(), Name: name, Partitions: 3})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	if err := c.WaitRunning(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return "neo://" + name + "@" + c.Master().String()
}

// store commits an object in a cluster.
func (w *world) store(url string) tid.TID {
	w.t.Helper()
	name, master, _ := strings.Cut(strings.TrimPrefix(url, "neo://"), "@")
	addr, err := conf.ParseAddress(master, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := client.Open(w.t.Context(), client.Config{Cluster: name, Masters: []proto.Address{proto.Address(addr)}})
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	ctx := w.t.Context()
	oids, err := c.NewOIDs(ctx, 1)
	if err != nil {
		w.t.Fatal(err)
	}
	x, err := c.Begin(ctx, client.BeginOptions{Description: []byte("new")})
	if err == nil {
		err = x.Store(ctx, oids[0], 0, []byte("\x80\x03cm\nC\nq\x00.\x80\x03}q\x01."))
	}
	if err == nil {
		_, err = x.Vote(ctx)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	at, err := x.Finish(ctx, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return at
}

// A repository goes on with the cluster into which it was restored whole, and in a fork with one into which
// it was restored to an earlier moment. One that has nothing, or something else, is refused.
func TestClusterDiffers(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	list := w.tids("Data.fs")
	noted, within := list[200], list[250]
	w.want(0, "snapshot", "--at", noted)
	w.want(0, "snapshot")
	id := w.path("op1.txt")
	whole, early, empty, other := w.newCluster("whole"), w.newCluster("early"), w.newCluster("empty"), w.newCluster("other")
	w.want(0, "restore", "-i", id, whole)
	w.want(0, "restore", "-i", id, "--at", within, early)
	w.store(other)

	out, _ := w.want(0, "snapshot", "--source", whole)
	w.says(out, `everything up to `+siteLast+` .*: 0 transactions more`)
	at := w.store(whole)
	out, _ = w.want(0, "snapshot", "--source", whole)
	w.says(out, `everything up to `+at.String()+` .*: 1 transactions more`)
	out, _ = w.want(0, "list", "--lineages")
	if strings.Count(out, "\n") != 1 {
		t.Errorf("following the restored cluster made a lineage: %s", out)
	}

	_, stderr := w.want(7, "snapshot", "--source", empty)
	w.says(stderr, `the source is empty`, `hint: `)
	_, stderr = w.want(7, "snapshot", "--source", other)
	w.says(stderr, `none of them is known to be in the source`, `hint: .*init makes another repository`)
	_, stderr = w.want(7, "snapshot", "--source", early)
	w.says(stderr, `they agree up to transaction `+noted, `hint: .*neobackup fork --at `+noted)
	_, stderr = w.want(7, "fork", "--source", other, "-i", id)
	w.says(stderr, `is it another database`)
	out, _ = w.want(0, "fork", "--source", early, "-i", id, "--confirm")
	w.says(out, `share the history up to `+within)
	at = w.store(early)
	out, _ = w.want(0, "snapshot", "--source", early)
	w.says(out, `everything up to `+at.String()+` .*: 1 transactions more`)
	out, _ = w.want(0, "verify", "--against="+early, "-i", id)
	w.says(out, `(?m)^found: 0 faults, 0 warnings`)
	out, _ = w.want(0, "check")
	w.says(out, `(?m)^found +0 faults, 0 warnings`)
	if m := regexp.MustCompile(`(?m)^lineage (\d+)`).FindAllString(out, -1); len(m) != 2 {
		t.Errorf("lineages %v", m)
	}
}
