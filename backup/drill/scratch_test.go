package drill

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A drill that its user interrupts, whatever it does, says nothing and leaves nothing.
func TestInterrupted(t *testing.T) {
	for _, mode := range []Mode{File, Cluster, Read} {
		w := newWorld(t)
		phases := []Phase{Opening, Restoring, Comparing, Objects, Source}
		if mode == Read {
			phases = []Phase{Opening, Reading, Objects, Source}
		}
		for _, phase := range phases {
			ctx, cancel := context.WithCancel(t.Context())
			o := w.o
			o.Mode = mode
			o.Progress = func(p Phase, _, _ int64) {
				if p == phase {
					cancel()
				}
			}
			res, err := w.run(ctx, o)
			cancel()
			if !errors.Is(err, context.Canceled) || res != nil && (res.Key != "" || res.Proof != nil) {
				t.Errorf("%s, %s: %v, %+v", mode, phase, err, res)
			}
		}
	}
}

// What killed drills have left is removed by the next one, nothing else ever.
func TestLeftovers(t *testing.T) {
	w := newWorld(t)
	w.o.Mode, w.o.Source = Read, nil
	w.o.Scratch = t.TempDir()
	other := t.TempDir()
	mkdir := func(name string, files ...string) string {
		t.Helper()
		dir := filepath.Join(w.o.Scratch, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	gone := []string{mkdir(scratchPrefix+"1", scratchMark, "Data.fs"), mkdir(scratchPrefix + "2")}
	link := filepath.Join(gone[0], "link")
	stay := []string{mkdir(scratchPrefix+"3", "Data.fs"), mkdir(keptPrefix+"4", scratchMark), mkdir("mine", scratchMark), filepath.Join(other, "precious"), filepath.Join(w.o.Scratch, scratchPrefix+"5")}
	for _, f := range stay[3:] {
		if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	running := mkdir(scratchPrefix+"6", scratchMark)
	stay = append(stay, running, filepath.Join(w.o.Scratch, scratchPrefix+"7"))
	f, err := os.Open(running)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, err := range []error{flock(f, syscall.LOCK_EX), os.Symlink(other, link), os.Symlink(other, stay[len(stay)-1])} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(other, scratchMark), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), w.o); err != nil {
		t.Fatal(err)
	}
	for _, dir := range gone {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	for _, path := range stay {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}

// A drill that finds the scratch directory locked tells that it waits, goes on when it gets the lock, and ends
// at once when it is interrupted.
func TestScratchLocked(t *testing.T) {
	for _, interrupted := range []bool{true, false} {
		w := newWorld(t)
		other, err := os.Open(w.o.Scratch)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := flock(other, syscall.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		told := make(chan string, 10)
		w.o.Mode, w.o.Source = Read, nil
		w.o.Log = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
			told <- string(b)
			return len(b), nil
		}), &slog.HandlerOptions{Level: slog.LevelWarn}))
		ended := make(chan error, 1)
		go func() {
			_, err := Run(ctx, w.o)
			ended <- err
		}()
		select {
		case text := <-told:
			if !strings.Contains(text, "another drill") || !strings.Contains(text, w.o.Scratch) {
				t.Error(text)
			}
		case err := <-ended:
			t.Fatalf("it does not wait: %v", err)
		case <-time.After(2 * time.Minute):
			t.Fatal("it does not tell that it waits")
		}
		if interrupted {
			cancel()
		} else if err := other.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if interrupted != errors.Is(err, context.Canceled) || !interrupted && err != nil {
				t.Errorf("interrupted: %v: %v", interrupted, err)
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("it still waits")
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// What was restored is kept if that is wanted, also by the next drill.
func TestKeep(t *testing.T) {
	w := newWorld(t)
	w.o.Source, w.o.Keep = nil, true
	res, err := Run(t.Context(), w.o)
	if err != nil {
		t.Fatal(err)
	}
	w.o.Keep = false
	if _, err := Run(t.Context(), w.o); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(res.Kept, "Data.fs"))
	if err != nil || st.Size() == 0 {
		t.Errorf("kept: %v", err)
	}
	if st, err := os.Stat(res.Kept); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("kept: %v, %v", st, err)
	}
	entries, err := os.ReadDir(w.o.Scratch)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

// envVictim is set in the process that TestKilled kills: its scratch directory.
const envVictim = "NEO_TEST_DRILL_VICTIM"

// A drill that is killed leaves data, until the next one begins.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(envVictim); dir != "" {
		w := newWorld(t)
		w.o.Scratch, w.o.Source = dir, nil
		w.o.Progress = func(p Phase, done, _ int64) {
			if p == Comparing {
				time.Sleep(time.Hour) // to be killed
			}
		}
		_, err := Run(t.Context(), w.o)
		t.Fatal(err)
	}
	w := newWorld(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), envVictim+"="+w.o.Scratch)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // if the test fails before
	left := func() []string {
		list, err := filepath.Glob(filepath.Join(w.o.Scratch, scratchPrefix+"*", "Data.fs"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	for i := 0; len(left()) == 0; i++ {
		if i == 6000 {
			t.Fatal("the drill does not come to its comparison")
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.o.Mode, w.o.Source = Read, nil
	if _, err := Run(t.Context(), w.o); err != nil { // beside it
		t.Fatal(err)
	}
	if len(left()) != 1 {
		t.Error("a drill has removed what another one uses")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("not killed")
	}
	if len(left()) != 1 {
		t.Error("nothing is left")
	}
	if _, err := w.run(t.Context(), w.o); err != nil {
		t.Fatal(err)
	}
}
