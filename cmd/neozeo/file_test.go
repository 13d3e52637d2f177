package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/neozodb/neo/fsformat"
)

// start runs the command in this process until the test ends.
func start(t *testing.T, o *options) net.Addr {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	addrs := make(chan net.Addr, 1)
	done := make(chan error, 1)
	var stderr bytes.Buffer
	env := &cli.Env{Stdout: &stderr, Stderr: &stderr, Getenv: func(string) string { return "" }}
	if o.bind == nil {
		o.bind = []string{"127.0.0.1:0"}
	}
	if o.cacheSize == "" {
		o.cacheSize = "1MB"
	}
	go func() { done <- run(ctx, env, o, func(a []net.Addr) { addrs <- a[0] }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%v\n%s", err, &stderr)
		}
	})
	select {
	case a := <-addrs:
		return a
	case err := <-done:
		done <- nil
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("not ready after a minute")
	}
	panic("unreachable")
}

func TestUndoLogEndsAtThePack(t *testing.T) {
	s, err := openFile(t.Context(), "../../testdata/fs/05-packed.fs")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	log, err := s.UndoLog(t.Context(), 1, 100, func(*txn.Info) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	if len(log) != 3 { // of nine transactions five are packed, and one is skipped
		t.Errorf("undo log %+v, want 3 entries", log)
	}
}

// Clients see of a Data.fs what FileStorage shows of it.
func TestFilesAsFileStorageShowsThem(t *testing.T) {
	files, err := filepath.Glob("../../testdata/fs/*.fs")
	if err != nil {
		t.Fatal(err)
	}
	for _, encoding := range []string{"Z", "M"} {
		t.Run(encoding, func(t *testing.T) {
			o := options{msgpack: encoding == "M"}
			args := []string{"testdata/compare.py", "", encoding}
			for _, f := range files {
				if !readableByFileStorage(f) {
					continue
				}
				// The server makes no index files next to the samples.
				copied := filepath.Join(t.TempDir(), "Data.fs")
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(copied, b, 0o444); err != nil {
					t.Fatal(err)
				}
				name := strings.TrimSuffix(filepath.Base(f), ".fs")
				o.storages = append(o.storages, name+"="+copied)
				args = append(args, name+"="+f)
			}
			args[1] = start(t, &o).String()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			cmd := zeotest.Command(ctx, t, zeotest.Python(t), args...)
			cmd.Dir = "" // the names in args are relative to this one
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

// readableByFileStorage leaves out the samples of damage.
func readableByFileStorage(path string) bool {
	name := filepath.Base(path)
	return name < "08"
}

// Clients would not see what is above the last transaction of a file.
func TestFileOutOfOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	b, err := os.ReadFile("../../testdata/fs/damaged/tsreduction.fs")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := fsformat.Open(path, fsformat.Options{Renumber: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	x, err := r.BuildIndex(t.Context(), nil) // the one that FileStorage makes: ids are not in it
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Save(path + ".index"); err != nil {
		t.Fatal(err)
	}
	_, err = openFile(t.Context(), path)
	if !errors.Is(err, fsformat.ErrOrder) || !strings.Contains(err.Error(), "offset 415") || !strings.Contains(err.Error(), "neoexport --renumber") {
		t.Error(err)
	}
}
