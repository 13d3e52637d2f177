package cli

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/nodelog"
)

// Each signal of NEO reaches the process, SIGRTMIN too, and what it asks for can
// then be read from the log file.
func TestSignals(t *testing.T) {
	o := Logging{LogFile: filepath.Join(t.TempDir(), "node.log")}
	var stderr bytes.Buffer
	log, err := o.OpenLog(&Env{Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	wait := log.HandleSignals(ctx, func(w io.Writer) { io.WriteString(w, "partition table: UU") })

	log.Debug("first of all")
	for _, step := range []struct {
		sig  syscall.Signal
		want string
	}{
		{sigFlush, "first of all"},
		{sigDump, "partition table: UU"},
		{sigDebug, "goroutine "},
		{sigReopen, "partition table: UU"},
		{sigFlush, "first of all"}, // still, after another one
	} {
		if err := syscall.Kill(syscall.Getpid(), step.sig); err != nil {
			t.Fatal(err)
		}
		waitFor(t, o.LogFile, step.want)
	}
	cancel()
	wait()
	if err := log.Close(); err != nil {
		t.Error(err)
	}
	if stderr.Len() > 0 {
		t.Errorf("stderr: %s", stderr.String())
	}
}

func waitFor(t *testing.T, file, text string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		for e, err := range nodelog.Read(t.Context(), file, time.Time{}) {
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(e.Msg, text) {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no record with %q in the log", text)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestWarningsGoToStderr(t *testing.T) {
	var stderr bytes.Buffer
	log, err := new(Logging).OpenLog(&Env{Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("quiet")
	log.Warn("disk full", "path", "/data with space", "free", 0)
	got := stderr.String()
	if strings.Contains(got, "quiet") || !strings.Contains(got, ` WARNING   NEO        [  logging_test:`) ||
		!strings.HasSuffix(got, `] disk full path="/data with space" free=0`+"\n") {
		t.Errorf("stderr: %q", got)
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
}
