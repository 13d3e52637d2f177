package proctest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/nodelog"
)

// Damaged logs keep no node from starting, and nodes that are killed leave whole
// ones with what they have logged.
func TestLogNeverMatters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	names := []string{"master", "s1", "admin"}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name+".log"), bytes.Repeat([]byte("damaged "), 5000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := StartCluster(t, Options{Dir: dir, Logs: true})
	c.migrate(t, filepath.Join(samples, "02-undo.fs"))
	for range 3 {
		for i, p := range []*Process{c.Master, c.Storages[0], c.AdminP} {
			file := filepath.Join(dir, names[i]+".log")
			waitForRecord(t, file, "listening", "connected to the primary master", "identified to the primary master", "playing primary")
			p.Kill()
			if len(logTexts(t, file)) == 0 {
				t.Errorf("%s: the log of %s is empty after it was killed", file, p.Name)
			}
			if err := p.Restart(); err != nil {
				t.Fatal(err)
			}
		}
		c.WaitState(t, "RUNNING", patience)
	}
	for i, p := range []*Process{c.Master, c.Storages[0], c.AdminP} {
		if n := strings.Count(p.Output(), "the node log is damaged"); n != 1 {
			t.Errorf("%s told %d times that its log was damaged", p.Name, n)
		}
		aside, err := filepath.Glob(filepath.Join(dir, names[i]+".log.damaged-*"))
		if err != nil || len(aside) != 1 {
			t.Errorf("%s put aside %q, %v", p.Name, aside, err)
		}
		if err := p.Stop(t); err != nil {
			t.Errorf("%s ended with %v", p.Name, err)
		}
	}
}

// A database that was erased was erased, whatever became of the log.
func TestResetWithoutLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	damaged := filepath.Join(dir, "damaged.log")
	if err := os.WriteFile(damaged, []byte("SQLite format 3\x00 and nothing else"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ log, said string }{
		{damaged, "the node log is damaged"},
		{filepath.Join(dir, "missing", "node.log"), "the node log cannot be written"},
		{"/dev/full", "the node log cannot be written"},
		{dir, "the node log cannot be written"},
	} {
		_, errOut, status := Run(t, "neostorage", "-c", "test", "-a", "SQLite", "-d", filepath.Join(dir, "s.sqlite"), "-l", x.log, "--reset")
		if status != 0 || !strings.Contains(errOut, x.said) {
			t.Errorf("--reset with log %s: exit status %d, printed %q", x.log, status, errOut)
		}
	}
}

func waitForRecord(t *testing.T, file string, texts ...string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		for _, msg := range logTexts(t, file) {
			for _, text := range texts {
				if strings.Contains(msg, text) {
					return
				}
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has none of %q", file, texts)
		}
	}
}

// logTexts returns the records of a log.
func logTexts(t *testing.T, file string) (list []string) {
	t.Helper()
	for e, err := range nodelog.Read(t.Context(), file, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Packet == nil {
			list = append(list, e.Msg)
		}
	}
	return list
}
