package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/config"
	"github.com/neozodb/neo/backup/daemon"
	"github.com/neozodb/neo/cmd/internal/cli"
)

// A daemon that tries each minute to open a repository that is not there, on a disk that is not mounted, keeps nothing of that.
func TestLookOpensNothing(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	set, err := config.ReadFile(w.path("neobackup.conf"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // the mount point
	if err := set.Repositories[0].Set("url", "file://"+dir); err != nil {
		t.Fatal(err)
	}
	env := &cli.Env{Getenv: func(k string) string { return w.env[k] }}
	o := &daemonOptions{common{now: time.Now}}
	r, err := o.repository(env, set, set.Repositories[0], &cli.Log{Logger: slog.New(slog.DiscardHandler)}, daemon.Config{Flushes: daemon.NewFlushes()})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := r.Open(t.Context()); !errors.Is(err, backup.ErrNoRepository) {
			t.Fatal(err)
		}
	}
	if n := r.Requests().Gets; n != 20 {
		t.Errorf("%d requests are counted", n)
	}
	open := func() (n int) {
		list, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range list {
			if to, err := os.Readlink(fd); err == nil && to == dir {
				n++
			}
		}
		return n
	}
	for i := 0; open() > 1; i++ {
		if i == 3000 {
			t.Fatalf("%d stores are still open", open())
		}
		runtime.GC()
		time.Sleep(20 * time.Millisecond)
	}
	runtime.KeepAlive(r)
}
